# SPDX-License-Identifier: Apache-2.0
"""Auto Scaling as it treats its members: it ends the unhealthy ones, and keeps to its sizes.

moto ends nobody, takes any standby and detachment whatever the group's minimum, and counts standby
members when one is attached.

Source: EC2 Auto Scaling User Guide ("Health checks for instances", "Detach or attach instances",
"Temporarily remove instances", "Instance scale-in protection": it does not protect from health
checks, nor does termination protection); EC2 Auto Scaling API Reference (DetachInstances,
AttachInstances, EnterStandby, ExitStandby, SetInstanceHealth). Not in these, so unconfirmed: the
exact wording of the refusals.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from moto.autoscaling.models import autoscaling_backends

from pipeline.gameday.aws.call import Answer, Call, before
from pipeline.gameday.aws.conditions import conditions

_failed: dict[str, int] = {}


def reset() -> None:
    """Forget the checks of an earlier stand-in."""
    _failed.clear()


def _member_ids(call: Call) -> list[str]:
    return [str(v) for k, v in call.parameters.items() if k.startswith("InstanceIds.")]


def _invalid(call: Call, message: str) -> Answer:
    return call.error(400, "ValidationError", message)


@before("autoscaling", "DetachInstances", "EnterStandby", "ExitStandby", "SetInstanceProtection")
def members_only(call: Call) -> Answer | None:
    """Who is no member, or not in the state for it, is refused; so is going below the minimum."""
    backend = autoscaling_backends[call.account][call.region]
    name = str(call.parameters.get("AutoScalingGroupName"))
    group: Any = backend.autoscaling_groups.get(name)
    if group is None:
        return _invalid(call, f"AutoScalingGroup name not found - {name}")
    states = {s.instance.id: s for s in group.instance_states}
    ids = _member_ids(call)
    for each in ids:
        if each not in states:
            return _invalid(call, f"The instance {each} is not part of Auto Scaling group {name}.")
        wanted = {"EnterStandby": "InService", "ExitStandby": "Standby"}.get(call.operation)
        if wanted and states[each].lifecycle_state != wanted:
            return _invalid(call, f"The instance {each} is not in {wanted}.")
    shrinks = call.parameters.get("ShouldDecrementDesiredCapacity") == "true"
    active = [i for i in ids if states[i].lifecycle_state == "InService"]
    if shrinks and group.desired_capacity - len(active) < group.min_size:
        return _invalid(
            call, f"AutoScalingGroup {name} has min-size={group.min_size}, max-size="
            f"{group.max_size}, and desired-size={group.desired_capacity}. Please update the "
            "AutoScalingGroup sizes appropriately.",
        )  # fmt: skip
    if call.operation == "ExitStandby" and group.desired_capacity + len(ids) > group.max_size:
        return _invalid(
            call, f"AutoScalingGroup {name} has max-size={group.max_size} and desired-size="
            f"{group.desired_capacity}. To take {len(ids)} out of standby, please update the "
            "AutoScalingGroup sizes appropriately.",
        )  # fmt: skip
    return None


@before("autoscaling", "AttachInstances")
def room_for_more(call: Call) -> Answer | None:
    """The desired capacity grows by as many; it does not pass the maximum, and nobody is taken."""
    backend = autoscaling_backends[call.account][call.region]
    name = str(call.parameters.get("AutoScalingGroupName"))
    group: Any = backend.autoscaling_groups.get(name)
    if group is None:
        return _invalid(call, f"AutoScalingGroup name not found - {name}")
    ids = _member_ids(call)
    for each in ids:
        held = [g.name for g in backend.autoscaling_groups.values()
                if each in {s.instance.id for s in g.instance_states}]  # fmt: skip
        if held:
            return _invalid(call, f"Instance {each} is already part of {held[0]}.")
        instance = backend.ec2_backend.get_instance(each)
        if instance.state != "running":
            return _invalid(call, f"Instance {each} is not in correct state.")
    if group.desired_capacity + len(ids) > group.max_size:
        return _invalid(
            call, f"AutoScalingGroup {name} has min-size={group.min_size}, max-size="
            f"{group.max_size}, and desired-size={group.desired_capacity}. Attach would exceed "
            "max-size.",
        )  # fmt: skip
    return None


def time_passes(call: Call) -> None:
    """At each request: members that failed their health checks are ended and replaced."""
    backend = autoscaling_backends[call.account][call.region]
    for group in list(backend.autoscaling_groups.values()):
        unhealthy = [s for s in _in_service(group) if not _healthy(group, s)]
        present = {s.instance.id for s in unhealthy}
        for state in unhealthy:
            _failed[state.instance.id] = _failed.get(state.instance.id, 0) + 1
        for gone in [i for i in _failed if i not in present]:
            if any(s.instance.id == gone for s in group.instance_states):
                del _failed[gone]
        ended = [s for s in unhealthy
                 if _failed[s.instance.id] > conditions.settings.health_checks]  # fmt: skip
        if not ended:
            continue
        for state in ended:
            state.instance.disable_api_termination = False
            state.instance.terminate()
            group.instance_states.remove(state)
        group.set_desired_capacity(group.desired_capacity)


def _in_service(group: Any) -> Iterator[Any]:
    return (s for s in group.instance_states if s.lifecycle_state == "InService")


def _healthy(group: Any, state: Any) -> bool:
    """As the group's own check sees it; the load balancer's asks whether it can get through."""
    if state.health_status != "Healthy" or state.instance.state != "running":
        return False
    if group.health_check_type != "ELB":
        return True
    rules = [r for n in state.instance.nics.values() for g in n.group_set for r in g.ingress_rules]
    return any(r.from_port != 22 for r in rules)


for _service in ("ec2", "autoscaling"):
    before(_service, "*")(time_passes)
