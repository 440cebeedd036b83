# SPDX-License-Identifier: Apache-2.0
"""Isolation as a response records it: observe → protect → plan → apply → prove, and release.

    made = Containment(recorder, accounts, settings, target)
    made.plan()                     what `isolate` would do now: the very object that it does
    made.protect()                  only what keeps the instance from being lost
    made.isolate()                  all of it; what is done already is not done again
    made.release_plan(), made.release()

What the instance was stands in the ledger before the first change. Each change is an intent
(`step.started`) and an outcome (`target.changed`, `target.restored` or `step.failed`), so whoever
comes later, on whichever machine, goes on from there. What cannot be done is a gap; the rest goes
on.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import cached_property, partial
from typing import Any

from pydantic import JsonValue

from acquisition.containment.aws import Aws, GoneError
from acquisition.containment.flows import Flows
from acquisition.containment.identity import ContainmentError
from acquisition.containment.probe import (
    Proof,
    judged,
    permitted_source,
    ports_to_try,
    probe,
)
from acquisition.containment.state import (
    ANEW,
    NEW_GROUP,
    OUTLIVES,
    Attribute,
    Change,
    History,
    Phase,
    Plan,
    State,
    Undone,
    Verdict,
    Wanted,
    is_member,
    plan,
    same,
    some,
    undo,
    verdict,
)
from acquisition.containment.trail import Acted
from acquisition.errors import AcquisitionError
from acquisition.reach import UnreachableError, connect, own_address
from acquisition.target import Target
from evidence_store.ledger import Draft
from evidence_store.model import clean
from pipeline import sightings, steps
from pipeline.accounts import Accounts
from pipeline.config import Settings
from pipeline.errors import PipelineError
from pipeline.pursuit import Later

_ROOM = 1500  # bytes of attributes in one event, which has 4,096 in all
_ENDED = ("terminated", "shutting-down")
IN_FORCE = timedelta(seconds=120)  # after so long a deny is taken to hold everywhere


@dataclass
class Outcome:
    """What `isolate` did.

    Attributes:
        made: changes of this run, with what reads now as `after`.
        gaps: what could not be seen or done.
        verdict: what re-reading proved; None if it was not asked.
        waits: what needs an approval before the instance is cut off, or "".
        peers: whom it talked to, as flow logs say; None if they were not asked.
        breaks: others that lost their sessions too.
        after_denial: calls that succeeded all the same, in words.
    """

    target: Target
    made: list[Change] = field(default_factory=list)
    gaps: list[str] = field(default_factory=list)
    verdict: Verdict | None = None
    waits: str = ""
    peers: Flows | None = None
    breaks: tuple[str, ...] = ()
    after_denial: list[str] = field(default_factory=list)

    def document(self) -> dict[str, JsonValue]:
        """As JSON."""
        found = self.verdict
        return {
            "target": self.target.arn, "changes": [c.document() for c in self.made],
            "verdict": found.verdict if found else None, "left": list(found.left) if found else [],
            "unfiltered": list(found.unfiltered) if found else [], "gaps": list(self.gaps),
            "waits": self.waits, "peers": sightings.document(self.peers),
            "breaks": list(self.breaks),
        }  # fmt: skip


@dataclass(frozen=True)
class ToUndo:
    """What `release` would do with one attribute: restore it, or leave it and why."""

    attribute: Attribute
    before: JsonValue
    after: JsonValue
    now: JsonValue
    what: str
    note: str = ""


@dataclass
class Containment:
    """One instance, and what was done to it in one case.

    Attributes:
        recorder: the case, or a journal that stands in for it.
        peers: addresses (CIDR) to cut at once by network ACL.
        user_keys: access keys to deactivate.
        role_wide: end all sessions of its role, other instances' too.
        approve: asked before what may cost the instance, or others; False leaves it waiting.
        sleep: between looks.
        packets: whether isolation is proved by packets from this machine.
        probe_s: how long a port is given to answer.
        sockets: looks by a login at the flows of the instance; None: nobody logs in. Raises
            AcquisitionError, PipelineError.
    """

    recorder: steps.Recorder
    accounts: Accounts
    settings: Settings
    target: Target
    peers: tuple[str, ...] = ()
    say: Callable[[str], None] = lambda _line: None
    approve: Callable[[str], bool] = lambda _question: False
    sleep: Callable[[float], None] = time.sleep
    packets: bool = False
    probe_s: float = 3.0
    sockets: Callable[[], tuple[str, ...]] | None = None
    user_keys: tuple[str, ...] = ()
    role_wide: bool = False

    @property
    def wanted(self) -> Wanted:
        """What isolation looks like."""
        given = {a: after for a, (_, after) in self.history().made.items()}
        return Wanted(self.settings.aws.isolation_sources, peers=self.peers, given=given)

    @cached_property
    def aws(self) -> Aws:
        """The instance, as AWS has it."""
        client = partial(self.accounts.client, account=self.target.account,
                         region=self.target.region)  # fmt: skip
        return Aws(
            client("ec2"), client("autoscaling"), client("iam"), self.target.resource_id,
            lambda account: self.accounts.client("iam", account, self.target.region), self.sleep,
        )  # fmt: skip

    # -- what is, and what was -------------------------------------------------------------------

    def history(self) -> History:
        """What the ledger says of changes that are not undone."""
        history = History()
        for event in self.recorder.ledger.events:
            data = event.data or {}
            if data.get("of") != self.target.arn or "attribute" not in data:
                continue
            attribute = Attribute.parse(str(data["attribute"]))
            restoring = data.get("step") == "restore"
            if event.action == "step.started" and not restoring:
                history.began(attribute, data.get("before"), data.get("after"))
            elif event.action == "target.changed":
                history.changed(attribute, data.get("after"))
            elif event.action == "step.failed" and not restoring:
                history.failed(attribute)
            elif event.action == "target.restored":
                history.restored(attribute)
        return history

    def look(self) -> State:
        """Return what the instance is now. Raises: ContainmentError."""
        history = self.history()
        return self.aws.observe([*self.original(), *history.made, *history.open])

    def plan(self) -> Plan:
        """Return what `isolate` would change now, and what it could not. Raises: ContainmentError.

        The changes are the very ones that `isolate` makes if nothing else happens meanwhile.
        """
        state = self._living(self.look())
        planned = plan(state, self.wanted)
        later = Later(self, list(state.gaps), lambda _question: True)
        changes = later.run(state, planned, planned.changes, lambda _state, made: made.changes)
        return Plan((*planned.changes, *changes), tuple(later.gaps), later.breaks)

    def original(self) -> dict[Attribute, JsonValue]:
        """What the instance was before the first change, as the ledger has it."""
        found: dict[Attribute, JsonValue] = {}
        for event in steps.events_of(self.recorder, "state", self.target.arn):
            for one in (event.data or {}).get("attributes", []):  # type: ignore[union-attr]
                if isinstance(one, dict):
                    found.setdefault(Attribute.parse(str(one["attribute"])), one["value"])
        return found

    def observe(self) -> State:
        """Return what the instance is; record it unless that was done. Raises: ContainmentError."""
        state = self._living(self.look())
        begun = steps.begin(self.recorder, "observe state", self.target.arn)
        if begun.done is None:
            for part in _parts(state.attributes):
                steps.note(self.recorder, "state", self.target.arn, attributes=part)
            steps.done(
                self.recorder, begun, attributes=len(state.attributes), state=state.phase,
                interfaces=len(state.interfaces), gaps=len(state.gaps),
            )  # fmt: skip
        return state

    def _living(self, state: State) -> State:
        if state.phase in _ENDED:
            raise GoneError(
                f"{self.target.resource_id} is {state.phase}: there is nothing to isolate",
                hint="look for its volumes and snapshots: impound acquire volume VOLUME",
            )
        return state

    # -- isolate ---------------------------------------------------------------------------------

    def protect(self) -> Outcome:
        """Keep the instance and its volumes from being lost. Raises: ContainmentError."""
        outcome = Outcome(self.target)
        self._protect(outcome, self.observe())
        self._record_gaps("protect", outcome)
        return outcome

    def isolate(self) -> Outcome:
        """Protect, cut off, end its sessions, and prove it. Raises: ContainmentError."""
        outcome = Outcome(self.target)
        state = self.observe()
        self._settle(state)
        self._protect(outcome, state)
        outcome.waits = self._waits(state)
        if not outcome.waits:
            planned = plan(state, self.wanted)
            self._apply(outcome, state, planned, "cut")
            self._apply(outcome, state, planned, "sessions")
            self._later(outcome, state, planned)
        self._prove(outcome)
        self._record_gaps("isolate", outcome)
        return outcome

    def _later(self, outcome: Outcome, state: State, planned: Plan) -> None:
        """What is found out once the instance is cut off, for it takes seconds."""

        def act(state: State, more: Plan) -> list[Change]:
            before = len(outcome.made)
            self._apply(outcome, state, more, "after")
            return outcome.made[before:]

        def note(name: str, facts: dict[str, JsonValue]) -> None:
            steps.note(self.recorder, name, self.target.arn, **facts)

        later = Later(self, outcome.gaps, self._approve_wide, note)
        later.run(state, planned, outcome.made, act)
        outcome.peers, outcome.breaks, outcome.waits = later.peers, later.breaks, later.waits
        if later.acted.calls:
            outcome.after_denial = self._since_denied(later.acted)

    def _approve_wide(self, question: str) -> bool:
        given = self.approve(question)
        if given:
            data = {"step": "role-wide", "target": self.target.arn}
            self.recorder.record(lambda: Draft("approval.given", {
                "data": dict(data), "note": clean(question, 500)
            }))  # fmt: skip
        return given

    def _denied_at(self) -> datetime | None:
        """When the last deny was written that stands."""
        made = {str(a) for a in self.history().made if a.kind in ("session-deny", "user-deny")}
        times = [e.at for e in self.recorder.ledger.events
                 if e.action == "target.changed" and (e.data or {}).get("of") == self.target.arn
                 and (e.data or {}).get("attribute") in made]  # fmt: skip
        return max(times, default=None)

    def _since_denied(self, acted: Acted) -> list[str]:
        """Calls of its own sessions that succeeded though they were denied for long enough."""
        denied = self._denied_at()
        if denied is None:
            return []
        late = [f"{call} {at:%H:%M:%SZ}" for at, call in acted.calls if at > denied + IN_FORCE]
        text = f"its sessions still acted after they were denied: {some(late)}"
        return [text] if late else []

    def _settle(self, state: State) -> None:
        """Record the outcome of changes that an earlier run made and could not record."""
        planned = {c.attribute for c in plan(state, self.wanted).changes}
        for attribute, (before, after) in list(self.history().open.items()):
            now = state.attributes.get(attribute)
            if attribute in planned or attribute not in state.attributes or same(now, before):
                continue
            begun = self._begin("change", attribute, before, after)
            facts = self._facts(attribute, before, now) | {"found": "made by an earlier run"}
            steps.changed(self.recorder, begun, "target.changed", **facts)

    def _protect(self, outcome: Outcome, state: State) -> None:
        outcome.gaps += state.gaps
        self._apply(outcome, state, plan(state, self.wanted), "protect")

    def _waits(self, state: State) -> str:
        """Say why the instance may not be cut off yet: Auto Scaling would end it."""
        group = state.managed_by
        try:
            held = self.aws.read(Attribute("membership", self.target.resource_id))
        except ContainmentError as e:
            if not group:
                return ""
            why = f"{e}; its tag says that it is in {group}"
        else:
            if not is_member(held):
                return ""
            group = str(held["group"]) if isinstance(held, dict) else group
            why = f"it is still in the Auto Scaling group {group}"
        text = f"{self.target.resource_id} may be terminated once it is cut off: {why}"
        if not self.approve(f"{text}. Cut it off all the same?"):
            return text
        fields = {"data": {"step": "isolate", "target": self.target.arn}, "note": clean(text, 500)}
        self.recorder.record(lambda: Draft("approval.given", dict(fields)))
        return ""

    def _apply(self, outcome: Outcome, state: State, planned: Plan, phase: Phase) -> None:
        new: dict[str, JsonValue] = {}  # VPC -> isolation group made just now
        for change in planned.changes:
            if change.phase != phase:
                continue
            after = change.after
            if after == [NEW_GROUP]:
                vpc = state.interfaces[change.attribute.resource]
                if vpc not in new:
                    outcome.gaps.append(f"{change.attribute}: there is no isolation group for it")
                    continue
                after = [new[vpc]]
            now = self._change(outcome, change, after)
            if change.attribute.kind == "isolation-group" and isinstance(now, dict):
                new[change.attribute.resource] = now["id"]

    def _change(self, outcome: Outcome, change: Change, after: JsonValue) -> JsonValue:
        """Make one change; return what reads afterwards, None if it failed."""
        attribute = change.attribute
        self.say(f"{attribute}: {short(change.before)} → {short(after)}")
        begun = self._begin("change", attribute, change.before, after)
        try:
            now = self.aws.write(attribute, after)
        except ContainmentError as e:
            steps.failed(self.recorder, begun, str(e))
            outcome.gaps.append(_said(e))
            return None
        steps.changed(
            self.recorder, begun, "target.changed", **self._facts(attribute, change.before, now)
        )
        outcome.made.append(Change(attribute, change.before, now, change.phase))
        return now

    def _begin(
        self, name: str, attribute: Attribute, before: JsonValue, after: JsonValue
    ) -> steps.Begun:
        """Record the intent; one that is open and says something else was overtaken."""
        where = clean(f"{self.target.resource_id} {attribute}")
        facts = self._facts(attribute, before, after)
        begun = steps.begin(self.recorder, name, where, **facts)
        held = steps.events_of(self.recorder, name, where)
        said = next((e.data or {} for e in reversed(held) if e.action == "step.started"), {})
        if not (same(said.get("before"), before) and same(said.get("after"), after)):
            steps.failed(self.recorder, begun, "overtaken: the value is another one by now")
            begun = steps.begin(self.recorder, name, where, **facts)
        return begun

    def _facts(
        self, attribute: Attribute, before: JsonValue, after: JsonValue
    ) -> dict[str, JsonValue]:
        return {"of": self.target.arn, "attribute": clean(str(attribute)), "before": _fit(before),
                "after": _fit(after)}  # fmt: skip

    def _prove(self, outcome: Outcome) -> None:
        """Read all again: nothing is claimed that does not read so."""
        try:
            now = self.look()
        except ContainmentError as e:
            outcome.verdict = Verdict("not isolated", (str(e),))
        else:
            wrong = [
                f"{attribute} was changed and is {short(now.attributes.get(attribute))}"
                for attribute, (_, after) in self.history().made.items()
                if attribute.kind not in ("groups", "address", "isolation-group")
                and not same(now.attributes.get(attribute), after)
                and attribute.kind != "scale-in-protection"
            ]  # fmt: skip
            found = verdict(now, self.wanted, [*wrong, *outcome.after_denial])
            if denied := self._denied_at():
                found = replace(found, unfiltered=(
                    f"the last deny was written at {denied:%Y-%m-%dT%H:%M:%SZ}; IAM takes up to "
                    f"{IN_FORCE.seconds} s to hold it everywhere, and CloudTrail a quarter of an "
                    "hour to show who acted since: isolate again to see",
                    *found.unfiltered,
                ))  # fmt: skip
            outcome.verdict = judged(found, self.wanted, self._probed(now, outcome))
        found = outcome.verdict
        facts: dict[str, JsonValue] = {
            "verdict": found.verdict, "left": [clean(t, 120) for t in found.left[:6]],
            "left_in_all": len(found.left),
            "unfiltered": [clean(t, 120) for t in found.unfiltered[:6]],
        }  # fmt: skip
        if found.not_probed:
            facts["not_probed"] = clean(found.not_probed, 200)
        steps.note(self.recorder, "prove", self.target.arn, **facts)
        if found.verdict == "groups applied, not probed":
            outcome.gaps.append(f"{found.verdict}: {found.not_probed}")
        elif found.verdict == "isolated except":
            outcome.gaps += [f"isolated except: {text}" for text in found.left]

    def _probed(self, now: State, outcome: Outcome) -> Proof:
        """Try its ports from here, if isolation lets us in; record what was tried."""
        nothing = "no packet was sent to prove that nothing gets through"
        if not self.packets:
            return Proof(why_not=nothing)
        ssh, wanted = self.settings.ssh, self.wanted
        addresses = {i: now.addresses[i] for i in now.interfaces if now.addresses.get(i)}
        if not wanted.sources or not addresses:
            lacking = "aws.isolation_sources names no network" if addresses else "no address"
            return Proof(why_not=f"{nothing}: {lacking}")
        first = next(iter(addresses.values()))[0]
        try:
            source = ssh.source or own_address(ssh.proxy.rpartition(":")[0] or first)
        except UnreachableError as e:
            return Proof(why_not=f"{nothing}: {e}")
        if not permitted_source(source, wanted):
            return Proof(source, why_not=f"{nothing}: {source} is not among aws.isolation_sources")
        self.say(f"probing {len(addresses)} interfaces from {source}")
        dial = partial(connect, proxy=ssh.proxy, seconds=self.probe_s)
        sights = probe(addresses, ports_to_try(wanted), dial)
        for sight in sights:
            if sight.reached:
                self.say(f"{sight.address} port {sight.port}: {sight.answered}")
        reached = [f"{s.address}:{s.port} {s.answered}" for s in sights if s.reached]
        facts: dict[str, JsonValue] = {
            "source": source, "ports": list(dict.fromkeys(s.port for s in sights)),
            "reached": [clean(t, 60) for t in reached[:20]], "reached_in_all": len(reached),
            "silent": len(sights) - len(reached),
        }  # fmt: skip
        steps.note(self.recorder, "probe", self.target.arn, **facts)
        return Proof(source, sights, flows=self._held(outcome))

    def _held(self, outcome: Outcome) -> tuple[str, ...] | None:
        if self.sockets is None:
            return None
        try:
            return self.sockets()
        except (AcquisitionError, PipelineError) as e:
            outcome.gaps.append(f"its flows were not looked at: {clean(str(e), 300)}")
            return None

    def _record_gaps(self, name: str, outcome: Outcome) -> None:
        """One event for each gap of this target, once."""
        for gap in dict.fromkeys(outcome.gaps):
            note = clean(gap, 500)

            def build(note: str = note) -> Draft | None:
                held = steps.events_of(self.recorder, name, self.target.arn)
                if any(e.action == "step.skipped" and e.note == note for e in held):
                    return None
                data = {"step": name, "target": self.target.arn}
                return Draft("step.skipped", {"data": data, "note": note})

            self.recorder.record(build)

    # -- release ---------------------------------------------------------------------------------

    def release_plan(self) -> list[ToUndo]:
        """Return what `release` would do now. Raises: ContainmentError."""
        wanted = self.history().to_undo()
        if not wanted:
            return []
        try:
            gone = self.look().phase in _ENDED
        except GoneError:
            gone = True
        return [self._to_undo(a, before, after, gone=gone) for a, before, after in wanted]

    def _to_undo(
        self, attribute: Attribute, before: JsonValue, after: JsonValue, *, gone: bool
    ) -> ToUndo:
        made = partial(ToUndo, attribute, before, after)
        if gone and attribute.kind not in OUTLIVES:
            return made(None, "leave", "the instance is not there any more")
        try:
            now = self.aws.read(attribute)
        except ContainmentError as e:
            return made(None, "leave", _said(e))
        if attribute.kind == "scale-in-protection" and now is None:
            return made(now, "restore")  # once it is a member again
        found = undo(before, after, now)
        if found == "changed":
            return made(
                now, "leave", f"changed since by somebody else, to {short(now)}; left as it is"
            )
        return made(now, "restore" if found == "ours" else "nothing")

    def release(self) -> list[Undone]:
        """Put back what this case changed and nobody changed since. Raises: ContainmentError.

        An instance whose interfaces could not be put back does not go back into its Auto Scaling
        group either: what nobody can reach is ended there.
        """
        done: list[Undone] = []
        for one in self.release_plan():
            shut = [u.attribute for u in done
                    if u.attribute.kind == "groups" and u.restored == "cannot"]  # fmt: skip
            if shut and one.attribute.kind == "membership" and one.what == "restore":
                note = f"its group would end it: {shut[0]} is not as it was"
                one = replace(one, what="leave", note=note)
            done.append(self._restore(one))
        return done

    def _restore(self, one: ToUndo) -> Undone:
        attribute = one.attribute
        begun = self._begin("restore", attribute, one.after, one.before)
        if one.what == "leave":
            steps.failed(self.recorder, begun, one.note)
            return Undone(attribute, "cannot", one.note)
        now, note = one.now, "it was so already"
        if one.what == "restore":
            self.say(f"{attribute}: {short(one.now)} → {short(one.before)}")
            try:
                now = self.aws.write(attribute, one.before)
                note = self._made_anew(attribute, one.before, now)
            except ContainmentError as e:
                steps.failed(self.recorder, begun, str(e))
                return Undone(attribute, "cannot", _said(e))
        elif attribute.kind != "membership":
            note = self._made_anew(attribute, one.before, now) or note
        anew = attribute.kind in ANEW and note != "it was so already"
        done = Undone(attribute, "new id" if anew else "exact", note)
        steps.changed(
            self.recorder, begun, "target.restored",
            **self._facts(attribute, one.after, now), restored=done.restored,
        )  # fmt: skip
        return done

    def _made_anew(self, attribute: Attribute, before: JsonValue, now: JsonValue) -> str:
        """Say what is another one than before; "" if nothing is."""
        if not isinstance(before, dict) or not isinstance(now, dict):
            return ""
        if attribute.kind == "membership":
            group = str(before["group"])
            return f"a member of {group} again, which has now: {self.aws.capacity(group)}"
        old, new = before.get("association"), now.get("association")
        return "" if old == new else f"{old} is now {new}"


def _parts(attributes: Mapping[Attribute, JsonValue]) -> Iterable[list[JsonValue]]:
    """Attributes in portions that an event has room for."""
    part: list[JsonValue] = []
    size = 0
    for attribute, value in sorted(attributes.items(), key=lambda item: item[0]):
        one: JsonValue = {"attribute": clean(str(attribute)), "value": _fit(value)}
        length = len(json.dumps(one))
        if part and size + length > _ROOM:
            yield part
            part, size = [], 0
        part.append(one)
        size += length
    if part:
        yield part


def _fit(value: JsonValue) -> JsonValue:
    """A value without what a ledger refuses: names in AWS are chosen by others."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, list):
        return [_fit(v) for v in value]
    if isinstance(value, dict):
        return {k: _fit(v) for k, v in value.items()}
    return value


def short(value: Any) -> str:
    """A value in a line.

    >>> short(["sg-1", "sg-2"]), short(None), short(True)
    ('sg-1 sg-2', 'none', 'on')
    """
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, list):
        return " ".join(map(str, value))
    if isinstance(value, dict):
        return clean(" ".join(f"{k}={short(v)}" for k, v in value.items()), 120)
    return clean(str(value), 80)


def _said(e: ContainmentError) -> str:
    return f"{e} ({e.hint})" if e.hint else str(e)
