# SPDX-License-Identifier: Apache-2.0
"""ListObjectVersions as S3 pages it.

moto leaves out the first key after a `key-marker` that comes without a version, and copies every
object of the bucket for each page.

Source: S3 API Reference, ListObjectVersions (`KeyMarker`, `VersionIdMarker`, `CommonPrefixes`).
"""

from __future__ import annotations

from collections.abc import Iterator

from moto.s3.models import FakeDeleteMarker, FakeKey, S3Backend

_Version = FakeKey | FakeDeleteMarker


def install() -> None:
    """Put it in the place of moto's."""
    S3Backend.list_object_versions = list_object_versions  # type: ignore[method-assign]


def list_object_versions(
    self: S3Backend, bucket_name: str, delimiter: str | None = None, key_marker: str | None = None,
    max_keys: int | None = 1000, prefix: str = "", version_id_marker: str | None = None,
) -> tuple[list[FakeKey], list[str], list[FakeDeleteMarker], str | None, str | None]:  # fmt: skip
    """Return (versions, common prefixes, delete markers, next key marker, next version marker)."""
    limit = 1000 if max_keys is None else max_keys
    versions: list[FakeKey] = []
    markers: list[FakeDeleteMarker] = []
    folders: list[str] = []
    last: tuple[str | None, str | None] = (None, None)
    bucket = self.get_bucket(bucket_name)
    for name, version in _after(bucket.keys.iterlists(), prefix, key_marker, version_id_marker):
        folder = _folder(name, prefix, delimiter)
        if folder is not None and (folder in folders[-1:] or folder == key_marker):
            continue
        if len(versions) + len(markers) + len(folders) >= limit:
            return (versions, folders, markers, *last)
        if folder is not None:
            folders.append(folder)
            last = (folder, None)
            continue
        (markers if isinstance(version, FakeDeleteMarker) else versions).append(version)  # type: ignore[arg-type]
        last = (name, str(version.version_id))
    return versions, folders, markers, None, None


def _after(
    keys: Iterator[tuple[str, list[_Version]]], prefix: str, key: str | None, version: str | None
) -> Iterator[tuple[str, _Version]]:
    """Yield (name, version), newest first, of what comes after the markers."""
    for name, stored in sorted(keys):
        if not name.startswith(prefix) or (key is not None and name < key):
            continue
        if name == key and version is None:
            continue
        skipping = name == key
        for found in reversed(stored):
            found.is_latest = found is stored[-1]  # type: ignore[union-attr]
            if not skipping:
                yield name, found
            elif str(found.version_id) == version:
                skipping = False


def _folder(name: str, prefix: str, delimiter: str | None) -> str | None:
    if not delimiter or delimiter not in name[len(prefix) :]:
        return None
    return name[: name.index(delimiter, len(prefix)) + len(delimiter)]
