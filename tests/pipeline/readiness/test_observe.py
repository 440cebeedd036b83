# SPDX-License-Identifier: Apache-2.0
"""Facts of this machine, and what differs from the practice organisation."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from pipeline.gameday.aws.accounts import AUDIT
from pipeline.readiness import look
from pipeline.readiness.checks import BY_NAME
from pipeline.readiness.observe import OBSERVERS

pytestmark = pytest.mark.xdist_group("readiness")


def found(estate, name):
    return look.findings(estate, [BY_NAME[name]], 60)[0]


@pytest.mark.parametrize(("late_s", "status"), [(0, "ok"), (45, "failed"), (-45, "failed")])
def test_the_clock_is_that_of_aws(place, late_s, status):
    estate = replace(place.estate, now=lambda: datetime.now(UTC) + timedelta(seconds=late_s))
    seen = found(estate, "clock")
    assert seen.status == status, seen.what
    if late_s:
        said = [f"{late_s + off:+d} s" for off in (-2, -1, 0, 1, 2)]  # AWS says whole seconds
        assert any(each in seen.what for each in said), seen.what


def test_kernel_symbols_are_counted(place, monkeypatch, tmp_path):
    assert found(place.estate, "symbols").status == "ok"
    settings = place.session.settings.model_copy(deep=True)
    empty = settings.model_copy(update={
        "readiness": settings.readiness.model_copy(update={"symbols": str(tmp_path)})
    })  # fmt: skip
    session = replace(place.session, settings=empty)
    seen = found(replace(place.estate, session=session), "symbols")
    assert (seen.status, str(tmp_path) in seen.what) == ("warning", True)


def test_the_installation_is_compared(place, monkeypatch):
    from pipeline import installation

    assert found(place.estate, "installation").status in ("ok", "warning", "unknown")
    bad = installation.Installation("different", "", 3, changed=("pipeline/x.py",))
    monkeypatch.setattr(installation, "check", lambda: bad)
    seen = found(place.estate, "installation")
    assert (seen.status, "pipeline/x.py" in seen.what) == ("failed", True)


def test_the_last_game_day_is_read_from_its_case(place):
    assert OBSERVERS["gameday"](look.observe.View(place.estate, look.Place())) == {"last": None}
    from pipeline.readiness.record import Run, readiness_case

    case = readiness_case(place.session, place.session.open_store(writing=True))
    run = Run([], [], datetime.now(UTC), "")
    run.text = "game day response"
    case.ingest("record", run)
    seen = found(place.estate, "gameday")
    assert seen.status == "ok", seen.what


def test_a_template_that_was_never_launched(place, monkeypatch):
    assert found(place.estate, "template").status == "ok"
    monkeypatch.setattr("pipeline.readiness.observe.FORENSICS_STACK", "another")
    assert found(place.estate, "template").status == "warning"


def test_a_template_that_is_refused(place):
    from pipeline.gameday.aws.faults import Fault

    place.stand.faults.add(Fault(
        "error", service="cloudformation", operation="ValidateTemplate", account=AUDIT,
        code="ValidationError", status=400, message="Unresolved resource dependencies",
    ))  # fmt: skip
    try:
        seen = found(place.estate, "template")
    finally:
        place.stand.faults.clear()
    assert (seen.status, "Unresolved" in seen.what) == ("failed", True)


def test_keys_of_aws_and_of_strangers(place):
    """A volume under the key of EBS, and one under a key that is not of the organisation."""
    from pipeline.gameday.aws.accounts import MEMBER, REGION

    ec2 = place.made.client("ec2", MEMBER)
    stranger = f"arn:aws:kms:{REGION}:999999999999:key/11111111-1111-1111-1111-111111111111"
    of_aws = ec2.create_volume(AvailabilityZone=f"{REGION}a", Size=1, Encrypted=True)["VolumeId"]
    assert found(place.estate, "volumes").status == "ok"
    view = look.observe.View(place.estate, look.Place(MEMBER, REGION))
    fact = OBSERVERS["volumes"](view)
    managed = [k for k in fact["keys"] if k["manager"] == "AWS"]
    assert [k["volumes"] for k in managed] == [[of_aws]]
    from moto.ec2.models import ec2_backends

    volume = ec2_backends[MEMBER][REGION].volumes[of_aws]
    volume.kms_key_id = stranger
    seen = found(place.estate, "volumes")
    assert (seen.status, seen.mend, stranger in seen.what) == ("failed", None, True)
    ec2.delete_volume(VolumeId=of_aws)
