# SPDX-License-Identifier: Apache-2.0
"""Following an instance through the event history: hostile events, limits, what is not seen."""

from __future__ import annotations

import json

import pytest
from botocore.exceptions import ClientError

from acquisition.containment.trail import PAGES, Session, Trail
from evidence_store.errors import Error

OWN, ROLE_ID = "i-0123456789abcdef0", "AROAAAAAAAAAAAAAAAAAA"
MEMBER, OTHER = "222222222222", "333333333333"


def event(principal, name="AssumeRole", **more):
    said = {
        "eventName": name, "eventTime": "2026-03-01T12:00:00Z", "eventID": "e-1",
        "userIdentity": {"type": "AssumedRole", "principalId": principal},
        "sourceIPAddress": "10.0.0.5", **more,
    }  # fmt: skip
    return {"CloudTrailEvent": json.dumps(said)}


def assumed(principal, session="job", role=f"arn:aws:iam::{MEMBER}:role/path/deploy", **more):
    return event(principal, **{
        "requestParameters": {"roleArn": role},
        "responseElements": {"assumedRoleUser": {"assumedRoleId": f"{ROLE_ID}:{session}"}}, **more,
    })  # fmt: skip


class History:
    """LookupEvents of one account and Region; events by the name that they are asked for by."""

    def __init__(self, pages=(), fails=None, **named):
        self.pages, self.named, self.fails, self.asked = list(pages), named, fails, []

    def lookup_events(self, LookupAttributes=(), NextToken=None, **_how):
        if self.fails:
            raise self.fails
        name = LookupAttributes[0]["AttributeValue"] if LookupAttributes else ""
        self.asked.append(name)
        if name:
            return {"Events": self.named.get(name.replace("-", "_"), [])}
        number = int(NextToken or 0)
        more = {"NextToken": str(number + 1)} if number + 1 < len(self.pages) else {}
        return {"Events": self.pages[number] if self.pages else [], **more}


def follow(history, addresses=(), **more):
    histories = history if isinstance(history, dict) else {MEMBER: history}

    def client(account, _region):
        found = histories.get(account)
        if found is None:
            raise Error(f"{account} is out of reach")
        return found

    how = {"sleep": lambda _s: None, "clock": lambda: 0.0} | more
    return Trail(client, MEMBER, ("eu-central-1",), **how).follow(OWN, 12, addresses)


MINE = f"{ROLE_ID}:{OWN}"


def test_what_its_session_assumed_and_what_that_assumed():
    found = follow(History(**{
        OWN.replace("-", "_"): [assumed(MINE, "one")],
        "one": [assumed(f"{ROLE_ID}:one", "two"), assumed("AROAXXXXXXXXXXXXXXXXX:one", "not-ours")],
        "two": [assumed(f"{ROLE_ID}:two", "one")],  # round again
    }))  # fmt: skip
    assert found.sessions == (Session(MEMBER, "deploy", f"{ROLE_ID}:one"),
                              Session(MEMBER, "deploy", f"{ROLE_ID}:two"))  # fmt: skip
    assert found.gaps == ()


def test_another_instance_of_that_name_is_not_it():
    own = OWN.replace("-", "_")
    found = follow(History(**{own: [assumed("AIDAXXXXXXXXXXXXXXXXX"), assumed(f"x{OWN}:x")]}))
    assert found.sessions == ()


def test_a_role_of_an_account_out_of_reach_is_known_and_not_followed():
    role = f"arn:aws:iam::{OTHER}:role/cross"
    found = follow(History(**{OWN.replace("-", "_"): [assumed(MINE, role=role)]}))
    assert [(s.account, s.role) for s in found.sessions] == [(OTHER, "cross")]
    assert [g for g in found.gaps if "out of reach" in g]


@pytest.mark.parametrize(
    "broken",
    [
        {"CloudTrailEvent": "no json"}, {"CloudTrailEvent": "[]"}, {},
        assumed(MINE, role="arn:aws:iam::x:role/y"), assumed(MINE, "a b"), assumed(MINE, "*"),
        assumed(MINE, requestParameters=None), assumed(MINE, responseElements="x"),
        assumed(MINE, requestParameters={"roleArn": ["x"]}),
    ],
)  # fmt: skip
def test_an_event_that_makes_no_sense_is_a_gap(broken):
    found = follow(History(**{OWN.replace("-", "_"): [broken, assumed(MINE, "good")]}))
    assert [s.user_id for s in found.sessions] == [f"{ROLE_ID}:good"]
    assert found.gaps


def test_an_attacker_who_assumes_thousands_is_followed_so_far():
    many = [assumed(MINE, f"s{n:04}") for n in range(3000)]
    history = History(**{OWN.replace("-", "_"): many})
    found = follow(history)
    assert len(found.sessions) == 20
    assert [g for g in found.gaps if "more than 20 sessions" in g]
    assert len(history.asked) == 21


def user_event(address="10.0.0.5", **who):
    said = {"type": "IAMUser", "userName": "bob", "accountId": MEMBER,
            "accessKeyId": "AKIAIOSFODNN7EXAMPLE"} | who  # fmt: skip
    return event("", "ListBuckets", userIdentity=said, sourceIPAddress=address)


def test_keys_by_the_address_they_were_used_from():
    events = [user_event(), user_event("192.0.2.1", userName="else")]
    found = follow(History([events]), ["10.0.0.5"])
    assert [(k.account, k.user) for k in found.keys] == [(MEMBER, "bob")]


@pytest.mark.parametrize(
    ("who", "said"),
    [({"type": "Root"}, "root user"), ({"userName": "a/b c"}, "not named"),
     ({"accountId": None}, "not named")],
)  # fmt: skip
def test_a_key_that_cannot_be_taken_away_is_a_gap(who, said):
    found = follow(History([[user_event(**who)]]), ["10.0.0.5"])
    assert found.keys == ()
    assert [g for g in found.gaps if said in g]


def test_only_so_many_pages_are_read():
    history = History([[user_event("192.0.2.1")]] * (PAGES + 5))
    found = follow(history, ["10.0.0.5"])
    assert history.asked.count("") == PAGES
    assert [g for g in found.gaps if "only the newest events were read" in g]


def test_it_stops_in_time():
    ticks = iter(range(0, 1000, 10))
    found = follow(History([[]] * 50), ["10.0.0.5"], clock=lambda: float(next(ticks)))
    assert [g for g in found.gaps if "only the newest events" in g]


def test_no_right_is_a_gap():
    refused = ClientError({"Error": {"Code": "AccessDenied", "Message": "no"}}, "LookupEvents")
    found = follow(History(fails=refused))
    assert found.sessions == ()
    assert [g for g in found.gaps if "cloudtrail:LookupEvents" in g]


def test_its_own_calls_that_succeeded():
    listed = [event(MINE, "ListBuckets"), event(MINE, "GetCallerIdentity"),
              event(MINE, "DeleteTrail", errorCode="AccessDenied")]  # fmt: skip
    found = follow(History(**{OWN.replace("-", "_"): listed}))
    assert [name for _, name in found.calls] == ["ListBuckets"]
