# SPDX-License-Identifier: Apache-2.0
"""A landing zone in the AWS stand-in, as the command line needs it: images, settings, variables."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.gameday.aws.accounts import AUDIT, REGION
from pipeline.gameday.aws.seed import Seeded
from pipeline.gameday.aws.stand import Stand

GIB = 1 << 30
BLOCK = 512 << 10


def image(path: Path, size: int, blocks: Mapping[int, bytes]) -> Path:
    """A sparse file with these blocks of 512 KiB."""
    with path.open("wb") as f:
        f.truncate(size)
        for index, content in blocks.items():
            os.pwrite(f.fileno(), content, index * BLOCK)
    return path


_DIGESTS: dict[bytes, str] = {}


def sha256(path: Path) -> str:
    """SHA-256 of a sparse file; of equal files only the first is read whole, zeros and all."""
    size, at = path.stat().st_size, 0
    data = hashlib.sha256(size.to_bytes(8, "big"))
    with path.open("rb") as f:
        while at < size:
            try:
                start = os.lseek(f.fileno(), at, os.SEEK_DATA)
            except OSError:
                break
            at = os.lseek(f.fileno(), start, os.SEEK_HOLE)
            data.update(f"{start}-{at}".encode() + os.pread(f.fileno(), at - start, start))
        known = _DIGESTS.get(data.digest())
        if known is None:
            f.seek(0)
            known = _DIGESTS[data.digest()] = hashlib.file_digest(f, "sha256").hexdigest()
    return known


def environment(home: Path, zone: Seeded, endpoint: str) -> dict[str, str]:
    """Write the settings of this landing zone into `home`; return the variables."""
    assert zone.estate
    settings = home / "impound.toml"
    settings.write_text(
        f'[aws]\naudit_account = "{AUDIT}"\nsnapshot_key = "{zone.estate.copy_key}"\n'
        f'external_id = "{zone.estate.external_id}"\n'
        'source_lock = "governance"\nsource_lock_days = 1\n'
    )
    return {
        **zone.responder.environment(), "AWS_ENDPOINT_URL": endpoint,
        "AWS_CONFIG_FILE": str(home / "none"), "AWS_SHARED_CREDENTIALS_FILE": str(home / "none"),
        "AWS_EC2_METADATA_DISABLED": "true", "IMPOUND_CONFIG": str(settings),
        "AWS_DEFAULT_REGION": REGION,
    }  # fmt: skip


def snapshots(stand: Stand, account: str) -> list[dict[str, Any]]:
    """All snapshots that an account has, but for the nightly one that was there before."""
    found = stand.client("ec2", account).describe_snapshots(OwnerIds=["self"])["Snapshots"]
    return [s for s in found if s.get("Description") != "nightly"]
