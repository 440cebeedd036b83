# SPDX-License-Identifier: Apache-2.0
"""Is a bag what was exported? Every byte is hashed once; nothing in it is believed or followed.

Steps, in this order
    1. The folder: regular files with names of the store's form; `bagit.txt`, no `fetch.txt`.
    2. `tagmanifest-sha256.txt` and `manifest-sha256.txt`: form, each file once, SHA-256 of each
       listed file, no file unlisted; `Payload-Oxum`.
    3. The one case in `data/`, as `verify_case` does with `deep`; items that the signed
       `item.exported` left out are notes.
    4. `bag.note`: the tag manifest is signed by an entry key of the case.
    5. `bag-info.txt` and `keys/` say what the ledger says; `data/raw/…` are the images' bytes.

If a step fails so that the next makes no sense, the verdict ends there.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from evidence_store.ahead import in_order
from evidence_store.backend import LocalBackend, parts_of_fd, sha256_of_fd
from evidence_store.bag import layout
from evidence_store.digest import LinearDigest, SegmentList
from evidence_store.errors import IntegrityError, StoreError, StoreNotFoundError
from evidence_store.item import Manifest
from evidence_store.model import CASE_ID, CustodyEvent
from evidence_store.sign import parse_note, verify_note
from evidence_store.store import Case, Store
from evidence_store.transfer import Progress
from evidence_store.verify import Remark, Verdict, verify_case

_SHOWN = 100


@dataclass
class BagVerdict:
    """What was found.

    Attributes:
        findings: what is broken; `about` is a file of the bag, or of the case in it.
        notes: what is sound but should be known.
        case: the verdict on the case; None if it was not reached.
        export: the `item.exported` that the bag was made for.
        files: files in the payload.
        size: their bytes.
        root: of the ledger in the bag, and how many entries that is.
    """

    folder: Path
    findings: list[Remark] = field(default_factory=list)
    notes: list[Remark] = field(default_factory=list)
    case: Verdict | None = None
    export: CustodyEvent | None = None
    files: int = 0
    size: int = 0
    opened: Case | None = None
    digests: dict[str, tuple[str, int]] = field(default_factory=dict)

    @property
    def outcome(self) -> str:
        """`clean`, `notes` or `broken`."""
        return "broken" if self.findings else "notes" if self.notes else "clean"

    @property
    def exit_code(self) -> int:
        """0 clean, 3 sound with notes, 10 broken."""
        return {"clean": 0, "notes": 3, "broken": 10}[self.outcome]

    @property
    def export_id(self) -> str:
        """Which export it is, as the ledger says."""
        return str((self.export.data or {}).get("export_id", "")) if self.export else ""


def verify_bag(
    folder: Path,
    *,
    linear: bool = False,
    workers: int = 2,
    progress: Progress = lambda _done, _total: None,
    receipt: tuple[int, str] | None = None,
    first_key: str | None = None,
) -> BagVerdict:
    """Verify a bag. Writes nothing.

    Args:
        folder: the bag.
        linear: also recompute the digests of all bytes in order that manifests state.
        workers: files hashed at once.
        progress: called with (bytes hashed, bytes in all).
        receipt: (size, base64 root) that the ledger must extend.
        first_key: fingerprint that the case's first key must have.

    Raises: StoreNotFoundError if there is no such folder; StoreError if it cannot be read.
    """
    if not folder.is_dir():
        raise StoreNotFoundError(f"no folder {folder}", hint="name the folder of a bag")
    return _Check(folder, linear, workers, progress, receipt, first_key).run()


class _Stop(Exception):
    """A finding after which the rest makes no sense."""


class _Hashed(LocalBackend):
    """The payload as a store whose objects were hashed already."""

    def __init__(self, root: Path, digests: dict[str, tuple[str, int]]) -> None:
        super().__init__(root)
        self._digests = digests

    def sha256(self, key: str) -> tuple[str, int]:
        """Return what the pass over the payload found."""
        return self._digests.get(f"data/{key}") or super().sha256(key)


@dataclass
class _Check:
    folder: Path
    linear: bool
    workers: int
    progress: Progress
    receipt: tuple[int, str] | None
    first_key: str | None
    verdict: BagVerdict = field(init=False)
    present: dict[str, int] = field(default_factory=dict)
    tag_sha256: str = ""

    def __post_init__(self) -> None:
        self.verdict = BagVerdict(self.folder)

    def run(self) -> BagVerdict:
        try:
            self._folder()
            tagged = self._listing(layout.TAG_MANIFEST, _is_tag)
            self._tag_files(tagged)
            listed = self._listing(layout.MANIFEST, lambda name: name.startswith("data/"))
            self._payload(listed)
            info = self._info()
            case = self._case()
            self._note(case)
            self._agrees(case, info)
            self._raw(case)
        except _Stop:
            pass
        return self.verdict

    def _broken(self, about: str, text: str) -> None:
        self.verdict.findings.append(Remark(layout.shown(about), text))

    def _read(self, name: str, limit: int) -> bytes:
        try:
            return layout.read_file(self.folder, name, limit)
        except IntegrityError as e:
            self._broken(name, str(e))
            raise _Stop from e

    def _folder(self) -> None:
        odd = 0
        for found in layout.walk(self.folder):
            if found.problem:
                odd += 1
                if odd <= _SHOWN:
                    self._broken(found.name, found.problem)
            else:
                self.present[found.name] = found.size
        if odd > _SHOWN:
            self._broken(".", f"{odd - _SHOWN} more are no files of a bag")
        if layout.DECLARATION not in self.present:
            unfinished = layout.PLAN in self.present
            self._broken(
                layout.DECLARATION,
                "is missing: this is no bag"
                + (", but an export that did not end" if unfinished else ""),
            )
            raise _Stop
        if self._read(layout.DECLARATION, 1024) != layout.BAGIT:
            self._broken(layout.DECLARATION, "does not declare BagIt 1.0 in UTF-8")
            raise _Stop
        if "fetch.txt" in self.present:
            self._broken("fetch.txt", "names parts that lie elsewhere; such a bag is refused")
        for name in (layout.TAG_MANIFEST, layout.MANIFEST, layout.INFO, layout.NOTE):
            if name not in self.present:
                self._broken(name, "is missing")
        if self.verdict.findings:
            raise _Stop  # what is no regular file must not be opened by a path through it

    def _listing(self, name: str, fits: Callable[[str], bool]) -> dict[str, str]:
        try:
            return layout.read_listing(self.folder, name, fits, len(self.present) + 10_000)
        except IntegrityError as e:
            self._broken(name, str(e))
            raise _Stop from e

    def _compare(self, listed: dict[str, str], names: list[str], listing: str) -> None:
        """Hash what is listed, several at once; name what differs, is missing or was added."""
        total, done, wrong = sum(self.present.get(n, 0) for n in listed), 0, 0
        for name, found in self._hash([n for n in listed if n in self.present]):
            actual, size = found
            self.verdict.digests[name] = found
            done += size
            self.progress(done, total)
            if actual != listed[name]:
                wrong += 1
                if wrong <= _SHOWN:
                    self._broken(name, f"has SHA-256 {actual}, {listing} {listed[name]}")
        if wrong > _SHOWN:
            self._broken(listing, f"{wrong - _SHOWN} more files differ")
        for text, group in (
            ("is missing", sorted(listed.keys() - self.present.keys())),
            (f"was added: {listing} does not name it", sorted({*names} - listed.keys())),
        ):
            for name in group[:_SHOWN]:
                self._broken(name, text)
            if len(group) > _SHOWN:
                self._broken(listing, f"of {len(group) - _SHOWN} more: {text}")

    def _hash(self, names: list[str]) -> Iterator[tuple[str, tuple[str, int]]]:
        def one(name: str) -> tuple[str, int]:
            try:
                fd = layout.open_file(self.folder, name)
            except StoreError as e:
                return f"unknown ({e})", 0
            try:
                return sha256_of_fd(fd)
            except OSError as e:
                return f"unknown ({e.strerror})", 0
            finally:
                os.close(fd)

        with ThreadPoolExecutor(self.workers, thread_name_prefix="bag") as pool:
            yield from zip(names, in_order(pool, one, names), strict=True)

    def _tag_files(self, tagged: dict[str, str]) -> None:
        names = [n for n in self.present if _is_tag(n)]
        self._compare(tagged, names, layout.TAG_MANIFEST)
        for name in sorted(layout.REQUIRED_TAGS - tagged.keys()):
            self._broken(layout.TAG_MANIFEST, f"does not name {name}")
        with os.fdopen(layout.open_file(self.folder, layout.TAG_MANIFEST), "rb") as f:
            self.tag_sha256 = hashlib.file_digest(f, "sha256").hexdigest()

    def _payload(self, listed: dict[str, str]) -> None:
        names = [n for n in self.present if n.startswith("data/")]
        self._compare(listed, names, layout.MANIFEST)
        self.verdict.files = len(names)
        self.verdict.size = sum(self.present[n] for n in names)
        for name in names:
            parts = name.split("/")
            inside = name == "data/store.json" or parts[1] == "cases"
            if not inside and not (len(parts) == 4 and name.startswith(f"{layout.RAW}/")
                                   and parts[3] == "disk.raw"):  # fmt: skip
                self._broken(name, "is nothing that an export writes")

    def _info(self) -> dict[str, str]:
        try:
            info = layout.parse_info(self._read(layout.INFO, layout.MAX_TAG_BYTES))
        except IntegrityError as e:
            self._broken(layout.INFO, str(e))
            return {}
        oxum = f"{self.verdict.size}.{self.verdict.files}"
        if info.get("Payload-Oxum") != oxum:
            self._broken(layout.INFO, f"Payload-Oxum is not {oxum}, what the payload has")
        return info

    def _case(self) -> Case:
        backend = _Hashed(self.folder / "data", self.verdict.digests)
        cases = sorted({n.split("/")[2] for n in self.present if n.startswith("data/cases/")})
        if len(cases) != 1 or not CASE_ID.fullmatch(cases[0]):
            self._broken("data/cases", f"holds {len(cases)} cases; a bag holds one")
            raise _Stop
        case = Case(Store(backend), cases[0])
        verdict = verify_case(
            case, deep=True, linear=self.linear, workers=self.workers, receipt=self.receipt,
            first_key=self.first_key, left_out=lambda item: self._is_left_out(case, item),
        )  # fmt: skip
        verdict.leftovers = None
        self.verdict.case = verdict
        self.verdict.findings += verdict.findings
        self.verdict.notes += verdict.notes
        if not case.ledger.entries:
            raise _Stop
        self.verdict.opened = case
        self.verdict.export = layout.last_export(case.ledger.events)
        if self.verdict.export is None:
            self._broken("ledger", "no entry says that this was exported")
            raise _Stop
        return case

    def _is_left_out(self, case: Case, item: str) -> bool:
        export = layout.last_export(case.ledger.events)
        try:
            return export is not None and layout.left_out(export)(item)
        except IntegrityError:
            return False

    def _note(self, case: Case) -> None:
        try:
            note = parse_note(self._read(layout.NOTE, 1 << 14))
            verify_note(note, case.ledger.ring.entry)
            if note.text != layout.bag_text(self.verdict.export_id, self.tag_sha256):
                raise IntegrityError(f"does not sign {layout.TAG_MANIFEST} as it is")
        except IntegrityError as e:
            self._broken(layout.NOTE, str(e))

    def _agrees(self, case: Case, info: dict[str, str]) -> None:
        verdict = self.verdict.case
        assert verdict is not None  # noqa: S101
        said = {
            "Impound-Case": case.case_id,
            "Impound-Export-Id": self.verdict.export_id,
            "Impound-Entries": str(verdict.entries),
            "Impound-First-Key": verdict.first_key,
        }
        if verdict.sealed:
            said["Impound-Checkpoint-Size"] = str(verdict.sealed)
            said["Impound-Checkpoint-Root"] = verdict.root
        for name, value in said.items():
            if info and info.get(name) != value:
                self._broken(layout.INFO, f"{name} is not {value}, as in the ledger")
        listed = {f"keys/{k.allowed.kid}.pem": k.allowed.kid for k in case.listed_keys}
        for name in self.present:
            if name.startswith("keys/") and name not in listed:
                self._broken(name, "is a key that the ledger does not name")
        for name, kid in listed.items():
            inner = f"data/{case.prefix}/keys/{kid}.pem"
            if self.verdict.digests.get(name) != self.verdict.digests.get(inner):
                self._broken(name, "is not the key that the case has under this name")
        known = layout.KNOWN_TAGS | listed.keys() | {layout.TAG_MANIFEST, layout.NOTE}
        for name in sorted(self.present.keys() - known):
            if not name.startswith(("data/", "keys/")):
                self.verdict.notes.append(Remark(name, "is no file that an export writes"))

    def _raw(self, case: Case) -> None:
        """Each `disk.raw` holds the bytes of its image."""
        for name in sorted(n for n in self.present if n.startswith(f"{layout.RAW}/")):
            item = name.split("/")[2]
            try:
                manifest = case.manifest(item)
                if manifest.layout != "image":
                    raise IntegrityError("is of a file set")
                stated = (manifest.content or {}).get("sha256")
                actual, size = self.verdict.digests.get(name, ("", 0))
                if size != manifest.size or (stated and actual != stated):
                    raise IntegrityError("is not what was acquired")
                if not stated:
                    self._by_segments(name, manifest, case.segments(manifest))
            except (IntegrityError, StoreError) as e:
                self._broken(name, str(e))

    def _by_segments(self, name: str, manifest: Manifest, segments: SegmentList) -> None:
        """Compare where no digest of all bytes in order was recorded."""
        fd = layout.open_file(self.folder, name)
        try:
            stream = _Stream(fd)
            for index in range(segments.count):
                digest, zero = stream.take(segments.length(index))
                expected = segments.digests.get(f"{index:016x}")
                if (digest != expected) if expected else not zero:
                    raise IntegrityError(f"differs from {manifest.item} in segment {index}")
        finally:
            os.close(fd)


class _Stream:
    """An open file taken in pieces: the digest of each, and whether it is all zero."""

    def __init__(self, fd: int) -> None:
        self._view = memoryview(bytearray(4 << 20))
        self._parts = parts_of_fd(fd, lambda: self._view)
        self._rest: memoryview | int = 0

    def take(self, length: int) -> tuple[str, bool]:
        """Return (SHA-256, all zero) of the next `length` bytes."""
        digest, zero = LinearDigest(), True
        while length > 0:
            if not self._length():
                self._rest = next(self._parts, 0)
                if not self._length():
                    break
            n = min(length, self._length())
            if isinstance(self._rest, int):
                digest.zeros(n)
                self._rest -= n
            else:
                digest.update(self._rest[:n])
                zero = zero and bytes(self._rest[:n]).count(0) == n
                self._rest = self._rest[n:]
            length -= n
        return digest.results()["sha256"], zero

    def _length(self) -> int:
        return self._rest if isinstance(self._rest, int) else len(self._rest)


def _is_tag(name: str) -> bool:
    return not name.startswith("data/") and name not in (layout.TAG_MANIFEST, layout.NOTE)
