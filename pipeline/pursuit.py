# SPDX-License-Identifier: Apache-2.0
"""What isolation finds out once the instance is cut off: it takes seconds that the cut has not.

Keys that were named, all sessions of the role if that is asked for; sessions that its own ones
assumed, and users' keys (CloudTrail); whom it talked to (flow logs). The same for a plan and for a
run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from pydantic import JsonValue

from acquisition.containment.flows import Flows
from acquisition.containment.identity import ContainmentError, resource
from acquisition.containment.state import (
    Attribute,
    Change,
    Deny,
    Plan,
    State,
    Wanted,
    applied,
    plan,
    some,
    token_end,
)
from acquisition.containment.trail import Acted, Key
from evidence_store.errors import Error
from pipeline import sightings

if TYPE_CHECKING:
    from pipeline.isolate import Containment

Note = Callable[[str, dict[str, JsonValue]], None]
_LISTED = 10  # of what was found, in one event


@dataclass
class Later:
    """The stages after the cut; each sees what the ones before it did.

    Attributes:
        of: the instance.
        gaps: what is not known or not done is added to these.
        ask: whether others may be broken too.
        note: records what was found, before anything is done about it.
        peers, acted: what logs told; breaks: instances that lose their sessions too.
        waits: what was not approved, or "".
    """

    of: Containment
    gaps: list[str]
    ask: Callable[[str], bool]
    note: Note = lambda _name, _facts: None
    peers: Flows | None = None
    acted: Acted = field(default_factory=Acted)
    breaks: tuple[str, ...] = ()
    waits: str = ""

    def run(
        self, state: State, planned: Plan, made: Iterable[Change],
        act: Callable[[State, Plan], Iterable[Change]],
    ) -> list[Change]:  # fmt: skip
        """Plan and act, stage after stage; return the changes made.

        Args:
            state: before any change.
            planned: what was planned for it.
            made: what was done of that.
            act: makes changes, and returns those that it made.
        """
        wanted = self.of.wanted
        tried = {(c.attribute, str(c.after)) for c in planned.changes}
        done: list[Change] = []
        self._add_gaps(planned.gaps)
        for stage in (self._named, self._followed, self._talked):
            state = applied(state, made)
            state, wanted = stage(state, wanted)
            found = plan(state, wanted)
            more = [replace(c, phase="after") for c in found.changes
                    if (c.attribute, str(c.after)) not in tried]  # fmt: skip
            tried |= {(c.attribute, str(c.after)) for c in more}
            self._add_gaps(found.gaps)
            made = act(state, Plan(tuple(more)))
            done += made
        return done

    def _add_gaps(self, gaps: Iterable[str]) -> None:
        self.gaps += [g for g in gaps if g not in self.gaps]

    def _seen(self, state: State, attributes: Iterable[Attribute]) -> State:
        """Read what was not looked at before; what cannot be read is a gap."""
        read = dict(state.attributes)
        for one in attributes:
            if one not in read:
                try:
                    read[one] = self.of.aws.read(one)
                except Error as e:
                    self._add_gaps([f"{e}" + (f" ({e.hint})" if e.hint else "")])
        return replace(state, attributes=read)

    def _with_keys(self, state: State, wanted: Wanted, keys: Iterable[Key]) -> tuple[State, Wanted]:
        for key in keys:
            state = self._seen(state, sightings.attributes_of(key, self.of.target))
            wanted = replace(wanted, keys_end=wanted.keys_end or token_end(datetime.now(UTC)))
        return state, wanted

    def _named(self, state: State, wanted: Wanted) -> tuple[State, Wanted]:
        keys = []
        for name in self.of.user_keys:
            try:
                keys.append(sightings.key_of(self.of.accounts, self.of.target, name))
            except Error as e:
                self._add_gaps([f"{e}" + (f" ({e.hint})" if e.hint else "")])
        state, wanted = self._with_keys(state, wanted, keys)
        return state, self._wide(state, wanted) if self.of.role_wide else wanted

    def _wide(self, state: State, wanted: Wanted) -> Wanted:
        own = f"*:{state.instance}"
        roles = [a.resource for a, v in state.of("session-deny")
                 if a.resource in state.roles or own in Deny.parse(v).users]  # fmt: skip
        if not roles:
            self._add_gaps(["--role-wide: the instance has no role"])
            return wanted
        where = self.of.target.region
        try:
            self.breaks = tuple(self.of.aws.sharing(roles))
            others = some(self.breaks, 20) if self.breaks else "no other instance"
        except ContainmentError as e:
            self._add_gaps([f"which instances --role-wide breaks is not known: {e}"])
            others = f"instances that cannot be listed ({e})"
        question = (
            f"--role-wide ends all sessions of role {', '.join(roles)}: it breaks {others} in "
            f"{where} until their credentials renew, and what uses the role elsewhere (other "
            "Regions, functions, services), which is not listed"
        )
        if all(Deny.parse(state.attributes.get(Attribute("session-deny", r))).before
               for r in roles):  # fmt: skip
            return wanted
        if not self.ask(f"{question}. End them?"):
            self.waits = question
            return wanted
        return replace(wanted, wide=token_end(datetime.now(UTC)))

    def _followed(self, state: State, wanted: Wanted) -> tuple[State, Wanted]:
        of = self.of
        of.say("look for sessions that it assumed in CloudTrail")
        self.acted = sightings.acted(of.accounts, of.settings.aws, of.target, of.aws, of.sleep)
        self._add_gaps(self.acted.gaps)
        found = [f"{s.account} {s.role} {s.user_id}" for s in self.acted.sessions]
        found += [f"{k.account} {k.user} {k.key}" for k in self.acted.keys]
        if found:
            self.note("acted", {"found": len(found), "first": list[JsonValue](found[:_LISTED])})
        sessions: dict[str, tuple[str, ...]] = {}
        for one in self.acted.sessions:
            role = resource(one.account, one.role, of.target.account)
            sessions[role] = (*sessions.get(role, ()), one.user_id)
        state = self._seen(state, [Attribute("session-deny", role) for role in sessions])
        return self._with_keys(state, replace(wanted, sessions=sessions), self.acted.keys)

    def _talked(self, state: State, wanted: Wanted) -> tuple[State, Wanted]:
        of = self.of
        of.say("look for its peers in the flow logs")
        self.peers, gaps = sightings.peers(of.accounts, of.settings.aws, of.target, of.aws)
        self._add_gaps(gaps)
        observed = sightings.cidrs(self.peers.peers)
        if observed:
            first = list[JsonValue](observed[: 2 * _LISTED])
            self.note("peers", {"found": len(observed), "first": first})
        return state, replace(wanted, peers=(*wanted.peers, *observed))
