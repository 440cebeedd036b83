# SPDX-License-Identifier: Apache-2.0
"""A case as a CASE/UCO graph: facts of the ledger and the manifests, for other people's tools.

Equal ledger, equal bytes: ids are UUIDs of version 5 over the origin and what a node stands for.
Nothing stands here that the ledger does not say; every action names its entry.

    case                case-investigation:Investigation
    custody event       case-investigation:InvestigativeAction
    item                case-investigation:ProvenanceRecord, and what it holds:
    stored file         uco-observable:Image or ObservableObject, FileFacet, ContentDataFacet
    actor, tool         uco-identity:Identity, uco-tool:Tool

Source: CASE 1.4 and UCO 1.4 (https://caseontology.org).
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Mapping
from typing import Any

from evidence_store.item import Manifest
from evidence_store.model import CustodyEvent

_SPACE = uuid.uuid5(uuid.NAMESPACE_URL, "https://c2sp.org/tlog-checkpoint#impound")
_CONTEXT = {
    "kb": "http://example.org/kb/",
    "case-investigation": "https://ontology.caseontology.org/case/investigation/",
    "uco-action": "https://ontology.unifiedcyberontology.org/uco/action/",
    "uco-core": "https://ontology.unifiedcyberontology.org/uco/core/",
    "uco-identity": "https://ontology.unifiedcyberontology.org/uco/identity/",
    "uco-observable": "https://ontology.unifiedcyberontology.org/uco/observable/",
    "uco-tool": "https://ontology.unifiedcyberontology.org/uco/tool/",
    "uco-types": "https://ontology.unifiedcyberontology.org/uco/types/",
    "xsd": "http://www.w3.org/2001/XMLSchema#",
}
_METHODS = {"sha256": "SHA256", "sha1": "SHA1", "md5": "MD5"}
Node = dict[str, Any]


def graph(
    case_id: str, title: str, events: Iterable[CustodyEvent], manifests: Mapping[str, Manifest]
) -> bytes:
    """Return the bytes of `case.jsonld`.

    Args:
        case_id: the case.
        title: what it is about.
        events: its ledger, in order.
        manifests: of every stored item.
    """
    events = list(events)
    maker = _Graph(events[0].origin, manifests)
    for event in events:
        maker.action(event)
    body = {"@context": _CONTEXT, "@graph": maker.nodes(case_id, title)}
    return json.dumps(body, ensure_ascii=False, indent=1, sort_keys=True).encode() + b"\n"


class _Graph:
    def __init__(self, origin: str, manifests: Mapping[str, Manifest]) -> None:
        self._origin = origin
        self._manifests = manifests
        self._nodes: dict[str, Node] = {}

    def nodes(self, case_id: str, title: str) -> list[Node]:
        members = [n for n in self._nodes if n.startswith(("kb:action-", "kb:provenance-"))]
        case: Node = {
            "@id": self._id("investigation", case_id),
            "@type": "case-investigation:Investigation",
            "uco-core:name": case_id,
            "uco-core:description": title or case_id,
            "uco-core:object": [_ref(member) for member in members],
        }
        return [case, *self._nodes.values()]

    def _id(self, kind: str, *what: object) -> str:
        text = json.dumps([self._origin, kind, *map(str, what)])
        return f"kb:{kind}-{uuid.uuid5(_SPACE, text)}"

    def _node(self, kind: str, what: tuple[object, ...], type_: str, fields: Node) -> Node:
        name = self._id(kind, *what)
        return self._nodes.setdefault(name, {"@id": name, "@type": type_, **fields})

    def action(self, event: CustodyEvent) -> None:
        said = event.actor.asserted
        who = str(said.get("responder") or said.get("user") or "unknown")
        host = str(event.actor.host.get("name", ""))
        identity = self._node(
            "identity",
            (who, host),
            "uco-identity:Identity",
            {"uco-core:name": who, "uco-core:description": f"as asserted on host {host}"},
        )
        tool = self._node(
            "tool",
            (event.tool.name, event.tool.version),
            "uco-tool:Tool",
            {"uco-core:name": event.tool.name, "uco-tool:version": event.tool.version},
        )
        described = f"ledger seq {event.seq}, result {event.result}"
        action = self._node(
            "action",
            (event.seq,),
            "case-investigation:InvestigativeAction",
            {
                "uco-core:name": event.action,
                "uco-core:description": described + (f": {event.note}" if event.note else ""),
                "uco-action:endTime": _time(event.time),
                "uco-action:performer": _ref(identity["@id"]),
                "uco-action:instrument": [_ref(tool["@id"])],
            },
        )
        if event.item is None:
            return
        manifest = self._manifests.get(event.item)
        record = self._provenance(event.item, manifest)
        taken = event.action in ("item.acquired", "item.received") and manifest is not None
        if taken and manifest is not None:
            action["uco-action:startTime"] = _time(manifest.started)
            action["uco-action:object"] = [
                _ref(self._provenance(p, self._manifests.get(p))["@id"]) for p in manifest.parents
            ] or [_ref(self._source(manifest)["@id"])]
            action["uco-action:result"] = [_ref(record["@id"]), *record.get("uco-core:object", [])]
        else:
            action["uco-action:object"] = [_ref(record["@id"])]

    def _source(self, manifest: Manifest) -> Node:
        return self._node(
            "source",
            (manifest.item,),
            "uco-observable:ObservableObject",
            {
                "uco-core:name": str(manifest.source.get("text", "")),
                "uco-core:description": "what the item was read from",
            },
        )

    def _provenance(self, item_id: str, manifest: Manifest | None) -> Node:
        name = self._id("provenance", item_id)
        if name in self._nodes:
            return self._nodes[name]
        record = self._node(
            "provenance",
            (item_id,),
            "case-investigation:ProvenanceRecord",
            {
                "uco-core:description": f"item {item_id}",
                "case-investigation:exhibitNumber": item_id,
            },
        )
        if manifest is not None:
            if manifest.parents:
                record["case-investigation:rootExhibitNumber"] = self._root(item_id)
            held = self._held(manifest)
            record["uco-core:object"] = [_ref(node["@id"]) for node in held]
        return record

    def _root(self, item_id: str) -> str:
        seen = {item_id}
        while (known := self._manifests.get(item_id)) and known.parents:
            if known.parents[0] in seen:
                break
            item_id = known.parents[0]
            seen.add(item_id)
        return item_id

    def _held(self, manifest: Manifest) -> list[Node]:
        item = manifest.item
        image = manifest.layout == "image"
        content = self._file(
            item,
            "disk.raw" if image else "data",
            manifest.size,
            {_METHODS[k]: v for k, v in (manifest.content or {}).items() if k in _METHODS},
            "uco-observable:Image" if image else "uco-observable:ObservableObject",
        )
        listing = self._file(
            item,
            "segments.sha256",
            None,
            {"SHA256": manifest.image_root},
            "uco-observable:ObservableObject",
        )
        return [content, listing]

    def _file(
        self, item: str, name: str, size: int | None, hashes: Mapping[str, str], type_: str
    ) -> Node:
        length = {} if size is None else {"uco-observable:sizeInBytes": size}
        facets: list[Node] = [
            {
                "@id": self._id("file-facet", item, name),
                "@type": "uco-observable:FileFacet",
                "uco-observable:fileName": name,
                **length,
            }
        ]
        if hashes:
            facets.append(
                {
                    "@id": self._id("content-facet", item, name),
                    "@type": "uco-observable:ContentDataFacet",
                    **length,
                    "uco-observable:hash": [
                        {
                            "@id": self._id("hash", item, name, method),
                            "@type": "uco-types:Hash",
                            "uco-types:hashMethod": method,
                            "uco-types:hashValue": {"@type": "xsd:hexBinary", "@value": value},
                        }
                        for method, value in sorted(hashes.items())
                    ],
                }
            )
        return self._node(
            "file",
            (item, name),
            type_,
            {"uco-core:name": f"{item}/{name}", "uco-core:hasFacet": facets},
        )


def _ref(name: str) -> dict[str, str]:
    return {"@id": name}


def _time(text: str) -> dict[str, str]:
    return {"@type": "xsd:dateTime", "@value": text}
