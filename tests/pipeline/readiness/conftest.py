# SPDX-License-Identifier: Apache-2.0
"""A whole organisation in which everything is in place, made once for these tests.

Each test puts back what it broke.
"""

from __future__ import annotations

import os
from types import SimpleNamespace

import botocore.session
import pytest

from pipeline.config import load
from pipeline.gameday.aws.accounts import AUDIT, LOG_ARCHIVE, REGION
from pipeline.gameday.aws.organisation import organise
from pipeline.gameday.aws.seed import seed
from pipeline.gameday.aws.stand import InProcess
from pipeline.readiness.organisation import estate
from pipeline.session import Passphrase, Session

TEMPLATE = (
    '{"Description": "impound, one incident: rehearsed", '
    '"Resources": {"Q": {"Type": "AWS::SQS::Queue"}}}'
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """stand, seeded, organisation, settings file, session, estate; the environment is set."""
    folder = tmp_path_factory.mktemp("organisation")
    image = folder / "root.img"
    with image.open("wb") as f:
        f.truncate(1 << 30)
    (folder / "symbols").mkdir()
    (folder / "symbols" / "linux-6.1.json.xz").write_bytes(b"x")
    with pytest.MonkeyPatch.context() as patch, InProcess() as stand:
        # Service models are read once for all command lines.
        shared = botocore.session.get_session().get_component("data_loader")
        patch.setattr("botocore.session.create_loader", lambda _path: shared)
        seeded = seed(stand, "pipeline.sealer:handler", [image])
        made = organise(stand, seeded, TEMPLATE)
        path = folder / "impound.toml"
        path.write_text("\n".join([
            f'store = "{seeded.store}"', "[aws]", f'audit_account = "{AUDIT}"',
            f'log_archive_account = "{LOG_ARCHIVE}"',
            f'snapshot_key = "{seeded.estate.copy_key}"',
            f'external_id = "{seeded.estate.external_id}"', *made.aws_settings(),
            "[s3]", f'kms_key = "{seeded.store_key}"',
            "[signing]", f'entry_key = "{seeded.entry_key}"',
            f'checkpoint_key = "{seeded.checkpoint_key}"', f'sealer = "{seeded.sealer}"',
            *made.settings(), f'symbols = "{folder / "symbols"}"',
        ]))  # fmt: skip
        for name in [n for n in os.environ if n.startswith(("AWS_", "IMPOUND_", "XDG_"))]:
            patch.delenv(name)
        for name, value in {
            **seeded.responder.environment(), "AWS_CONFIG_FILE": str(folder / "none"),
            "AWS_SHARED_CREDENTIALS_FILE": str(folder / "none"), "HOME": str(folder),
            "AWS_EC2_METADATA_DISABLED": "true", "IMPOUND_CONFIG": str(path),
            "AWS_DEFAULT_REGION": REGION,
        }.items():  # fmt: skip
            patch.setenv(name, value)
        session = Session(load().settings, seeded.store, Passphrase())
        yield SimpleNamespace(
            stand=stand, seeded=seeded, made=made, path=path, session=session,
            estate=estate(session),
        )  # fmt: skip
