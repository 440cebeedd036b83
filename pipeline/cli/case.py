# SPDX-License-Identifier: Apache-2.0
"""`impound case …` and `impound seal`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from acquisition.footprint import acts
from evidence_store.case import CaseState
from evidence_store.errors import IntegrityError, SigningKeyError, StoreError
from evidence_store.ledger import Draft
from evidence_store.model import Authority, CustodyEvent, clean
from evidence_store.sign import PublicKey
from evidence_store.store import Case, check_case_id
from pipeline.cli.base import Command, Globals, Group, human, pass_globals, receipt, table
from pipeline.errors import UsageError
from pipeline.lineage import Link, lineage

_MAX_ACTS = 200  # of one session in a listing
_MAX_FOOTPRINT_BYTES = 16 << 20


@click.group(cls=Group)
def case() -> None:
    """Open, list, show and close cases."""


def checked(case_id: str) -> str:
    """Return a case id in form. Raises: UsageError."""
    try:
        return check_case_id(case_id)
    except ValueError as e:
        raise UsageError(str(e)) from e


@case.command("open")
@click.argument("case_id", metavar="CASE")
@click.option("--ticket", help="Ticket that this is done under (default: CASE).")
@click.option("--title", default="", help="What the case is about.")
@click.option("--contact", default="", help="Whom to notify.")
@click.option("--authority", default="", help="Legal basis, or who ordered it.")
@click.option(
    "--checkpoint-key",
    type=click.Path(path_type=Path),
    metavar="PUBLIC.pem",
    help="Public half of a checkpoint key kept elsewhere (default: this user's own).",
)
@pass_globals
def open_(
    options: Globals,
    case_id: str,
    ticket: str | None,
    title: str,
    contact: str,
    authority: str,
    checkpoint_key: Path | None,
) -> None:
    """Open a case, and the store if there is none yet."""
    checked(case_id)
    session = options.session
    elsewhere = None if checkpoint_key is None else read_public_key(checkpoint_key)
    offer_keys(
        options, [n for n in session.local_key_uses if not (elsewhere and n == "checkpoint")]
    )
    store = session.open_store(writing=True)
    opened = store.create_case(
        case_id,
        Authority(ticket=clean(ticket or case_id, 100), basis=clean(authority, 200)),
        deployment=session.settings.deployment,
        title=title,
        contact=contact,
        checkpoint_key=elsewhere or session.checkpoint_public,
    )
    checkpoint = options.seal(opened)
    first = opened.ledger.ring.first
    options.result(
        {"case": case_id, "store": store.backend.uri, "origin": opened.ledger.origin,
         "first_key": first, "receipt": receipt(checkpoint)},
        [f"case {case_id} is open in {store.backend.uri}",
         f"first key {first}",
         "  (write this fingerprint into the ticket: it is how others know the ledger is yours)"],
    )  # fmt: skip


def read_public_key(path: Path) -> PublicKey:
    """Return the public key in a file. Raises: SigningKeyError."""
    try:
        return PublicKey.from_pem(path.read_bytes())
    except OSError as e:
        raise SigningKeyError(f"cannot read {path}: {e.strerror}") from e


def offer_keys(options: Globals, wanted: Sequence[str]) -> None:
    """Make the local keys on first use, if somebody can give a passphrase for them."""
    session = options.session
    missing = [name for name in session.missing_keys() if name in wanted]
    if not missing:
        return
    if not (session.passphrase.unattended or options.yes):
        if not session.passphrase.interactive:
            raise UsageError(
                "there are no signing keys yet",
                hint="make them with: impound key new (with IMPOUND_PASSPHRASE_FILE if unattended)",
            )
        names = " and ".join(missing)
        click.confirm(f"No signing key ({names}) yet. Make it now?", abort=True, err=True)
    for name, key in session.make_keys(missing).items():
        options.say(f"made {name} key {key.fingerprint}")


@case.command("list")
@pass_globals
def list_(options: Globals) -> None:
    """List the cases of the store."""
    store = options.open_store()
    rows: list[dict[str, Any]] = []
    for case_id in store.case_ids():
        state = store.case(case_id).state
        rows.append({"case": case_id, "opened": state.opened, "closed": state.sealed or None,
                     "items": len(state.items), "title": state.title})  # fmt: skip
    options.result(
        {"cases": rows},
        table(("CASE", "OPENED", "CLOSED", "ITEMS", "TITLE"),
              [(r["case"], r["opened"], r["closed"] or "-", r["items"], r["title"]) for r in rows]),
    )  # fmt: skip


@case.command()
@click.argument("case_id", metavar="CASE")
@pass_globals
def show(options: Globals, case_id: str) -> None:
    """Show a case: items, ledger, last checkpoint."""
    found = options.read_case(checked(case_id))
    state, checkpoint = found.state, found.latest_checkpoint()
    entries = [_entry(e.event, e.sha256) for e in found.ledger.entries]
    chains = _lineages(found)
    sessions = _sessions(found)
    items: list[dict[str, Any]] = [
        {
            "item": i.item_id, "kind": i.kind, "source": i.source, "state": i.state,
            "intents": [{"seq": n.seq, "outcome": _outcome(n.outcome)} for n in i.intents],
            "lineage": [link.document() for link in chains.get(i.item_id, ())],
        }
        for i in state.items.values()
    ]  # fmt: skip
    document = {
        "case": case_id, "title": state.title, "contact": state.contact, "ticket": state.ticket,
        "opened": state.opened, "closed": state.sealed or None, "origin": found.ledger.origin,
        "first_key": found.ledger.ring.first, "checkpoint": receipt(checkpoint),
        "received": state.received and {**state.received, "exports": list(state.deliveries)},
        "keys": [{**k.allowed.model_dump(), "since": k.since, "revoked": k.revoked}
                 for k in found.listed_keys],
        "items": items, "entries": entries, "sessions": sessions,
    }  # fmt: skip
    lines = [
        f"case {case_id}  {state.title}",
        f"ticket {state.ticket}  contact {state.contact or '-'}  opened {state.opened}"
        + (f"  closed {state.sealed}" if state.sealed else ""),
        f"first key {found.ledger.ring.first}",
        f"checkpoint {checkpoint or 'none'}  entries {len(entries)}",
        *_received(state),
        "",
        *table(("ITEM", "KIND", "STATE", "ACQUISITIONS", "SOURCE"),
               [(i["item"], i["kind"], i["state"],
                 ", ".join(n["outcome"] for n in i["intents"]) or "-",
                 i["source"]) for i in items]),
        *_chained(chains),
        *_footprints(sessions),
        "",
        *table(("KEY", "USE", "SINCE ENTRY", "REVOKED BY", "FINGERPRINT"),
               [(k.allowed.kid, k.allowed.use, k.since,
                 "-" if k.revoked is None else k.revoked, k.allowed.sha256)
                for k in found.listed_keys]),
        "",
        *table(("SEQ", "TIME", "ACTION", "ITEM", "RESULT", "WHO", "NOTE"),
               [(e["seq"], e["time"], e["action"], e["item"] or "-", e["result"], e["who"],
                 ": ".join(filter(None, (e["step"], e["note"])))) for e in entries]),
    ]  # fmt: skip
    options.result(document, lines)


def _lineages(found: Case) -> dict[str, list[Link]]:
    """Item -> where it comes from, of those that were read from a snapshot."""
    events = list(found.ledger.events)
    chains: dict[str, list[Link]] = {}
    for record in found.state.items.values():
        if record.kind == "disk" and record.acquired:
            try:
                source = found.manifest(record.item_id).source
            except (StoreError, IntegrityError) as e:  # the ledger is shown all the same
                chains[record.item_id] = [Link("item", record.item_id, f"unknown: {e}", None)]
                continue
            if chain := lineage(record.item_id, source, events):
                chains[record.item_id] = chain
    return chains


def _chained(chains: Mapping[str, list[Link]]) -> list[str]:
    if not chains:
        return []
    rows = [(item if n == 0 else "", "-" if link.entry is None else link.entry,
             f"{'  ' * n}{'→ ' if n else ''}{link}")
            for item, chain in chains.items() for n, link in enumerate(chain)]  # fmt: skip
    return ["", *table(("ITEM", "ENTRY", "LINEAGE"), rows)]


def _sessions(found: Case) -> list[dict[str, Any]]:
    """Sessions on hosts, each with its acts as its footprint has them."""
    made = []
    for event in found.ledger.events:
        if event.action != "session.recorded" or event.item is None:
            continue
        done: list[dict[str, Any]] = []
        error = None
        try:
            for member in [m for m in found.members(event.item) if m["object"]]:
                with os.fdopen(found.open_member(event.item, member["name"]), "rb") as f:
                    done += acts(f.read(_MAX_FOOTPRINT_BYTES).splitlines())
        except (StoreError, IntegrityError) as e:  # the ledger is shown all the same
            error = str(e)
        made.append({"entry": event.seq, "item": event.item, **(event.data or {}), "acts": done,
                     "error": error})  # fmt: skip
    return made


def _footprints(sessions: list[dict[str, Any]]) -> list[str]:
    rows = []
    for session in sessions:
        rows.append(
            (
                session["item"],
                "-",
                "-",
                "-",
                session["error"]
                or f"{session.get('step')} on {session.get('target')} by {session.get('login')}",
            )
        )
        for act in session["acts"][:_MAX_ACTS]:
            if act.get("what") == "command":
                code = act.get("code")
                rows.append(
                    (
                        "",
                        "-" if code is None else code,
                        act.get("out_bytes", "-"),
                        act.get("outcome", "no end"),
                        str(act.get("command"))[:120],
                    )
                )
        if (left := len(session["acts"]) - _MAX_ACTS) > 0:
            rows.append(("", "-", "-", "-", f"and {left} more acts, in {session['item']}"))
    return ["", *table(("SESSION", "CODE", "BYTES", "OUTCOME", "COMMAND"), rows)] if rows else []


def _received(state: CaseState) -> list[str]:
    """Where the case came from, if it came in a bag."""
    if state.received is None:
        return []
    first = state.received
    return [
        f"received from {first.get('origin')}, first key {first.get('first_key')}",
        *(f"  export {export_id}, entry {event.seq} of {event.time}: "
          f"{(event.data or {}).get('items') or 'no items'}"
          for export_id, event in state.deliveries.items()),
    ]  # fmt: skip


def _outcome(outcome: str) -> str:
    return {"resumed": "interrupted, resumed", "open": "interrupted"}.get(outcome, outcome)


def _step(event: CustodyEvent) -> str | None:
    data = event.data or {}
    if not event.action.startswith(("step.", "target.", "approval.")):
        return None
    return f"{data.get('step')} {data.get('target')}"


def _entry(event: CustodyEvent, sha256: str) -> dict[str, Any]:
    said = event.actor.asserted
    return {
        "seq": event.seq, "time": event.time, "action": event.action, "item": event.item,
        "result": event.result, "who": str(said.get("responder") or said.get("user") or ""),
        "identity": (event.actor.authenticated or {}).get("arn"),
        "step": _step(event), "note": event.note, "refs": event.refs or [], "sha256": sha256,
    }  # fmt: skip


@case.command()
@click.argument("case_id", metavar="CASE")
@click.option("--note", default="", help="Why it is closed.")
@pass_globals
def close(options: Globals, case_id: str, note: str) -> None:
    """Close a case: it takes no more evidence, and is sealed."""
    found = options.open_store(writing=True).case(checked(case_id))
    if not found.state.sealed:
        fields = {"note": clean(note, 500)} if note else {}
        found.record(lambda: Draft("case.sealed", dict(fields)))
    checkpoint = options.seal(found)
    options.result(
        {"case": case_id, "closed": found.state.sealed, "receipt": receipt(checkpoint)},
        [f"case {case_id} closed {found.state.sealed}"],
    )


@click.command(cls=Command)
@click.argument("case_id", metavar="CASE")
@pass_globals
def seal(options: Globals, case_id: str) -> None:
    """Sign a checkpoint over a case's ledger and print the receipt."""
    found = options.read_case(checked(case_id))
    session = options.session
    if session.settings.signing.sealer and session.in_aws:
        checkpoint = session.ask_sealer(found)
    else:
        checkpoint = found.seal(session.signer("checkpoint"))
    options.result(
        {"case": case_id, "receipt": receipt(checkpoint)},
        [f"receipt {case_id} {checkpoint}"],
    )


def size_cell(size: int | None) -> str:
    """Return a size for a table cell."""
    return "-" if size is None else human(size)
