# SPDX-License-Identifier: Apache-2.0
"""A fact and the settings -> what is not as it must be. Pure.

Each judgement says what is wrong, on which resource, and what to do. What only a person can do has
no `mend`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from fnmatch import fnmatchcase
from ipaddress import ip_network
from typing import Any

from pydantic import JsonValue

from acquisition.containment.state import Wanted
from acquisition.snapshot import missing_actions
from pipeline.config import Settings
from pipeline.readiness.checks import PAIRS, PROBE, QUOTAS, SAML_ROLES
from pipeline.readiness.model import Fault, Finding, Observation, Place, Unseen
from pipeline.readiness.policies import (
    all_objects,
    anybody,
    covers,
    gives,
    statements,
    trusts,
    trusts_saml,
    trusts_service,
)

OFFSET_S = 10.0  # signatures are refused from 300 s; a record's time must be better than that
YEAR = timedelta(days=365)
FREE_ADDRESSES = 8
# What a workstation calls (A18); S3 through a gateway or an interface.
ENDPOINTS = ("ebs", "ec2", "kms", "lambda", "logs", "s3", "ssm", "ssmmessages", "sts")
PUBLIC_BLOCKS = ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy",
                 "RestrictPublicBuckets")  # fmt: skip
DELETES = ("s3:DeleteObject", "s3:DeleteObjectVersion")
NO_STORE = Fault("the store is a directory, not a bucket", "set store to s3://…", "warning")


class Context:
    """What a judgement knows beside the fact."""

    def __init__(self, settings: Settings, now: datetime, place: Place) -> None:
        self.settings = settings
        self.now = now
        self.place = place

    @property
    def audit(self) -> str:
        """The Audit account."""
        return self.settings.aws.audit_account or self.place.account


Judge = Callable[[Any, Context], Iterator[Fault]]
JUDGES: dict[str, Judge] = {}


def judges(name: str) -> Callable[[Judge], Judge]:
    """Register the judgement of a check."""

    def register(function: Judge) -> Judge:
        JUDGES[name] = function
        return function

    return register


def judge(seen: Observation, settings: Settings, now: datetime) -> list[Finding]:
    """Return one finding for each fault, or one that says that all is well."""
    check, place = seen.check, seen.place
    if isinstance(seen.fact, Unseen):
        hint = "let the role of this run read it, or run it again: impound readiness"
        return [Finding(check, place, "unknown", f"not seen: {seen.fact.why}", hint)]
    faults = list(JUDGES[check.name](seen.fact, Context(settings, now, place)))
    return [Finding(check, place, f.status, f.what, f.fix, f.mend) for f in faults] or [
        Finding(check, place, "ok", check.title)
    ]


def mend(**what: JsonValue) -> dict[str, JsonValue]:
    """What `--fix` needs to know."""
    return what


# -- this machine ------------------------------------------------------------------------------


@judges("installation")
def installation(fact: Any, _: Context) -> Iterator[Fault]:
    """A changed file is a failure, a working tree a warning."""
    again = "install impound again, from a wheel whose digest you know"
    if fact["state"] == "different":
        parts = [f"{len(fact[k])} {k} ({', '.join(fact[k][:3])})"
                 for k in ("changed", "missing", "extra") if fact[k]]  # fmt: skip
        yield Fault(f"installed files: {', '.join(parts)}", again)
    elif fact["state"] == "editable":
        yield Fault(fact["why"], again, "warning")
    elif fact["state"] != "equal":
        yield Fault(fact["why"], again, "unknown")


@judges("clock")
def clock(fact: Any, _: Context) -> Iterator[Fault]:
    """Custody entries carry this machine's time."""
    if abs(fact["offset_s"]) > OFFSET_S:
        yield Fault(f"this machine's clock is {-fact['offset_s']:+.0f} s from that of AWS",
                    "set it: chronyc makestep")  # fmt: skip


@judges("symbols")
def symbols(fact: Any, _: Context) -> Iterator[Fault]:
    """Without them memory analysis makes symbols from the image, or is a gap."""
    if not fact["files"]:
        yield Fault(f"no kernel symbols in {fact['directory']}",
                    "put symbol files (*.json.xz) of your golden images' kernels there",
                    "warning")  # fmt: skip


@judges("gameday")
def gameday(fact: Any, c: Context) -> Iterator[Fault]:
    """A warning: it stops nobody."""
    fix = "rehearse: impound gameday"
    if fact["last"] is None:
        yield Fault("no game day is recorded in _readiness", fix, "warning")
    elif c.now - datetime.fromisoformat(fact["last"]) > YEAR:
        yield Fault(f"the last game day was on {fact['last'][:10]}", fix, "warning")


# -- the Audit account -------------------------------------------------------------------------


@judges("bucket-lock")
def bucket_lock(fact: Any, c: Context) -> Iterator[Fault]:
    """Versions, Object Lock, default key."""
    if not (bucket := fact["bucket"]):
        yield NO_STORE
        return
    if not fact["exists"]:
        yield Fault(f"the evidence bucket {bucket} does not exist", "deploy cfn/audit.yaml")
        return
    if not (fact["versions"] and fact["locks"]):
        yield Fault(f"{bucket} does not lock what is put into it", "turn versions and lock on",
                    mend=mend(bucket=bucket, what="lock"))  # fmt: skip
    key = c.settings.s3.kms_key
    if key and fact["key"] != key:
        yield Fault(f"{bucket} encrypts by default with {fact['key'] or 'the key of S3'}, not "
                    f"{key}", "set its default key", mend=mend(bucket=bucket, what="key", key=key),
                    )  # fmt: skip


@judges("bucket-policy")
def bucket_policy(fact: Any, _: Context) -> Iterator[Fault]:
    """Nobody deletes; no stranger reads; what else the policy of audit.yaml denies."""
    if not (bucket := fact["bucket"]):
        yield NO_STORE
        return
    said = statements(fact["policy"])
    missing = [a for a in DELETES if not any(
        s.get("Effect") == "Deny" and anybody(s) and "Condition" not in s and covers(s, a)
        and all_objects(s, bucket) for s in said
    )]  # fmt: skip
    if missing:
        yield Fault(f"the policy of {bucket} does not deny {', '.join(missing)} to everybody",
                    "add the statement", mend=mend(bucket=bucket))  # fmt: skip
    for s in said:
        if s.get("Effect") == "Allow" and anybody(s) and "Condition" not in s:
            yield Fault(f"the policy of {bucket} allows {s.get('Action')} to everybody",
                        f"remove the statement {s.get('Sid', '')!r} from it")  # fmt: skip
    if not any(s.get("Effect") == "Deny" and "aws:SecureTransport" in json.dumps(s)
               for s in said):  # fmt: skip
        yield Fault(f"the policy of {bucket} does not deny requests without TLS",
                    "update the stack of cfn/audit.yaml", "warning")  # fmt: skip


@judges("bucket-public")
def bucket_public(fact: Any, _: Context) -> Iterator[Fault]:
    """All four switches."""
    if not (bucket := fact["bucket"]):
        yield NO_STORE
        return
    off = [name for name in PUBLIC_BLOCKS if not fact["blocks"].get(name)]
    if off:
        yield Fault(f"{bucket} does not set {', '.join(off)}", "block public access",
                    mend=mend(bucket=bucket))  # fmt: skip


@judges("keys")
def keys(fact: Any, _: Context) -> Iterator[Fault]:
    """They exist, are enabled, and do what they are for."""
    for setting, key in sorted(fact.items()):
        signs = setting.startswith("signing.")
        if not key["arn"]:
            yield Fault(f"{setting} is not set", "deploy cfn/audit.yaml and cfn/seal.yaml, and set "
                        "it in the settings", "warning")  # fmt: skip
        elif key["state"] in ("Disabled", "PendingDeletion"):
            yield Fault(f"{setting} {key['arn']} is {key['state']}", "cancel that and enable it",
                        mend=mend(arn=key["arn"], state=key["state"]))  # fmt: skip
        elif key["state"] != "Enabled":
            yield Fault(f"{setting} {key['arn']} is {key['state']}", "correct the setting")
        elif signs and (key["spec"], key["usage"]) != ("ECC_NIST_P256", "SIGN_VERIFY"):
            yield Fault(f"{setting} {key['arn']} is {key['spec']} for {key['usage']}",
                        "use a key of ECC_NIST_P256 for SIGN_VERIFY")  # fmt: skip
        elif not signs and key["usage"] != "ENCRYPT_DECRYPT":
            yield Fault(f"{setting} {key['arn']} is for {key['usage']}", "use one that encrypts")
    owners = {k: v["arn"].split(":")[4] for k, v in fact.items()
              if k.startswith("signing.") and v["arn"]}  # fmt: skip
    if len(owners) == 2 and len(set(owners.values())) == 1:
        yield Fault("one account holds both signing keys", "deploy cfn/seal.yaml in the Log Archive"
                    " account", "warning")  # fmt: skip


@judges("subnet")
def subnet(fact: Any, _: Context) -> Iterator[Fault]:
    """Free addresses, none of them public, and the services within reach."""
    if not fact["wanted"]:
        yield Fault("no subnet for workstations is set", "set readiness.subnets")
        return
    if not fact["subnets"]:
        yield Fault(f"none of {', '.join(fact['wanted'])} is in this Region",
                    "make one for workstations and name it in readiness.subnets")  # fmt: skip
    for s in fact["subnets"]:
        name = s["id"]
        if s["free"] < FREE_ADDRESSES:
            yield Fault(f"{name} has {s['free']} free addresses", "name another in the settings")
        if s["public"]:
            yield Fault(f"{name} gives instances public addresses", "turn it off",
                        mend=mend(subnet=name))  # fmt: skip
        if missing := [e for e in ENDPOINTS if e not in fact["endpoints"][s["vpc"]]]:
            yield Fault(f"{s['vpc']} of {name} has no endpoint for {', '.join(missing)}",
                        "make them", mend=mend(subnet=name, vpc=s["vpc"], services=list(missing)),
                        )  # fmt: skip


@judges("ami")
def ami(fact: Any, c: Context) -> Iterator[Fault]:
    """There, available, encrypted, young."""
    build = "build one: packer build ami/packer.pkr.hcl, and put its id into the parameter"
    if fact["image"] is None:
        yield Fault(f"the parameter {fact['parameter']} does not exist", build)
        return
    if fact["state"] != "available":
        yield Fault(f"the forensics AMI {fact['image']} is {fact['state']}", build)
        return
    if not fact["encrypted"]:
        yield Fault(f"the forensics AMI {fact['image']} is not encrypted", build)
    age = c.now - datetime.fromisoformat(fact["created"])
    if age > timedelta(days=c.settings.readiness.ami_days):
        yield Fault(f"the forensics AMI {fact['image']} is {age.days} days old", build)


@judges("template")
def template(fact: Any, c: Context) -> Iterator[Fault]:
    """Valid, and launched before it is needed."""
    if fact["refused"]:
        yield Fault(f"CloudFormation refuses the forensics template: {fact['refused']}",
                    "install this version of impound again")  # fmt: skip
    elif fact["last"] is None or c.now - datetime.fromisoformat(fact["last"]) > YEAR:
        when = f"was launched last on {fact['last'][:10]}" if fact["last"] else "was never launched"
        yield Fault(f"the forensics template {when}, as far as CloudFormation remembers",
                    "rehearse: impound workstation launch, then terminate", "warning")  # fmt: skip


@judges("quotas")
def quotas(fact: Any, _: Context) -> Iterator[Fault]:
    """Enough for a response to several instances."""
    for service, code, name, least in QUOTAS:
        if (value := fact[code]) is None:
            yield Fault(f"the quota {name} ({code}) is not told", "look it up", "unknown")
        elif value < least:
            yield Fault(f"{name}: {value:.0f} are allowed, {least} are needed", "ask AWS for more",
                        mend=mend(service=service, code=code, value=least))  # fmt: skip


# -- every account -----------------------------------------------------------------------------


@judges("way")
def way(fact: Any, c: Context) -> Iterator[Fault]:
    """Proved by having arrived."""
    if fact["refused"]:
        yield Fault(fact["refused"], "deploy cfn/member.yaml there, or correct the table "
                    f"[accounts.{c.place.account}]")  # fmt: skip


@judges("automation-roles")
def automation_roles(fact: Any, c: Context) -> Iterator[Fault]:
    """They exist, trust whom they must, and were walked where we may."""
    own = c.place.account == c.audit
    firsts = {second: first for first, second in PAIRS}
    for name, trust in fact["roles"].items():
        first = firsts.get(name, "")
        if trust is None:
            yield Fault(f"the role {name} does not exist", "make it",
                        mend=mend(role=name, first=first))  # fmt: skip
            continue
        good = trusts_service(trust, "lambda.amazonaws.com") if own else trusts(
            trust, c.audit, first
        )  # fmt: skip
        if not good:
            whom = "AWS Lambda" if own else f"{first} of {c.audit}"
            yield Fault(f"the role {name} does not trust {whom}", "let it",
                        mend=mend(role=name, first=first, exists=True))  # fmt: skip
        elif refusal := fact["walked"].get(name):
            yield Fault(f"{first} of {c.audit} may not assume {name}: {refusal}",
                        f"let {first} do sts:AssumeRole on it")  # fmt: skip


@judges("contact")
def contact(fact: Any, c: Context) -> Iterator[Fault]:
    """A distribution list that AWS can write to."""
    wanted = c.settings.readiness.contact_email
    known = mend(email=wanted) if wanted and c.settings.readiness.contact_phone else None
    fix = "set it" if known else "set readiness.contact_email and contact_phone, then --fix contact"
    if fact is None:
        yield Fault("the account has no security contact", fix, mend=known)
    elif wanted and fact["email"].lower() != wanted.lower():
        yield Fault(f"the security contact is {fact['email']}, not {wanted}", fix, mend=known)


@judges("saml-roles")
def saml_roles(fact: Any, c: Context) -> Iterator[Fault]:
    """Both roles, with their policies, trusted by an identity provider of the account."""
    space = c.settings.readiness.namespace
    for end, policy in SAML_ROLES.items():
        role, providers = fact["roles"][end], fact["providers"]
        name = role["name"] if role else f"{space or '<Namespace>'}-saml-{end}"
        possible = bool(providers and (space or role))
        known = mend(role=name, policy=policy, provider=providers[0] if providers else "",
                     exists=bool(role)) if possible else None  # fmt: skip
        fix = "deploy cfn/member.yaml, or make them here" if possible else (
            "make a SAML provider in the account and set readiness.namespace"
        )  # fmt: skip
        if not role:
            yield Fault(f"the role {name} does not exist", fix, mend=known)
            continue
        if not trusts_saml(role["trust"], providers):
            yield Fault(f"the role {name} trusts no SAML provider of the account", fix, mend=known)
        elif policy not in role["policies"]:
            yield Fault(f"the role {name} lacks the policy {policy}", fix, mend=known)


@judges("cloudtrail")
def cloudtrail(fact: Any, _: Context) -> Iterator[Fault]:
    """One trail that does everything is enough; of the others nothing is asked."""
    good = [t for t in fact if t["everywhere"] and t["validates"] and t["logging"]
            and not t["error"]]  # fmt: skip
    if good:
        return
    best = next((t for t in fact if t["everywhere"]), None)
    if best is None:
        yield Fault("no trail covers all Regions of the account", "make an organisation trail")
        return
    wrong = [text for bad, text in (
        (not best["logging"], "does not log"), (not best["validates"], "makes no digests"),
        (bool(best["error"]), f"delivers nothing: {best['error']}"),
    ) if bad]  # fmt: skip
    known = None if best["error"] else mend(arn=best["arn"], home=best["home"])
    yield Fault(f"the trail {best['arn']} {' and '.join(wrong)}",
                "turn it on" if known else f"correct the policy of {best['bucket']}",
                mend=known)  # fmt: skip


@judges("log-key")
def log_key(fact: Any, c: Context) -> Iterator[Fault]:
    """Logs that responders cannot decrypt are no evidence."""
    for arn, key in fact.items():
        if not gives(key["policy"], c.audit, "kms:Decrypt"):
            yield Fault(f"the key of the logs {arn} does not give {c.audit} kms:Decrypt",
                        "add it to its policy", mend=mend(arn=arn, audit=c.audit,
                                                          actions=["kms:Decrypt"]))  # fmt: skip


@judges("guardduty")
def guardduty(fact: Any, _: Context) -> Iterator[Fault]:
    """On."""
    if not fact["on"]:
        yield Fault("GuardDuty is off", "turn it on", mend=mend(detector=fact["detector"]))


@judges("securityhub")
def securityhub(fact: Any, _: Context) -> Iterator[Fault]:
    """On."""
    if not fact["on"]:
        yield Fault("Security Hub is off", "turn it on", mend=mend())


@judges("config")
def config(fact: Any, _: Context) -> Iterator[Fault]:
    """A recorder that records, and a channel to deliver by."""
    if not fact["recorders"] or not fact["channels"]:
        yield Fault("AWS Config has no recorder or no delivery channel",
                    "set it up by AWS Control Tower, delivering to Log Archive")  # fmt: skip
        return
    for recorder in fact["recorders"]:
        if not recorder["recording"]:
            yield Fault(f"the recorder {recorder['name']} does not record", "start it",
                        mend=mend(recorder=recorder["name"]))  # fmt: skip
        elif recorder["error"]:
            yield Fault(f"the recorder {recorder['name']} fails: {recorder['error']}",
                        "correct its role and the bucket's policy")  # fmt: skip


@judges("flow-logs")
def flow_logs(fact: Any, c: Context) -> Iterator[Fault]:
    """Of all traffic, active, delivered."""
    for vpc, logs in fact.items():
        whole = [f for f in logs if f["active"] and f["traffic"] == "ALL"]
        if any(not f["error"] for f in whole):
            continue
        if whole:
            yield Fault(f"the flow log {whole[0]['id']} of {vpc} is not delivered: "
                        f"{whole[0]['error']}", f"correct {whole[0]['destination']}")  # fmt: skip
            continue
        to = c.settings.readiness.flow_log_destination
        yield Fault(f"{vpc} has no flow log of all traffic", "make one" if to else
                    "set readiness.flow_log_destination, then --fix flow-logs",
                    mend=mend(vpc=vpc, destination=to) if to else None)  # fmt: skip


# -- member accounts ---------------------------------------------------------------------------


@judges("member-key")
def member_key(fact: Any, c: Context) -> Iterator[Fault]:
    """There, a customer's own, enabled, lent to Audit."""
    reference, key = fact["reference"], fact["key"]
    if not reference:
        yield Fault("no key for snapshots that cannot be shared is set", "set aws.member_key")
    elif key is None:
        known = mend(alias=reference, audit=c.audit) if reference.startswith("alias/") else None
        yield Fault(f"the key {reference} does not exist", "deploy cfn/member.yaml, or "
                    "make one here" if known else "correct the setting", mend=known)  # fmt: skip
    else:
        yield from _lent(key, f"the key {reference}", c)


def _lent(key: Mapping[str, Any], called: str, c: Context) -> Iterator[Fault]:
    """Whether a customer managed key can be used by Audit."""
    if key["manager"] == "AWS":
        yield Fault(f"{called} is managed by AWS and cannot be shared", "use one of your own")
    elif key["state"] != "Enabled":
        possible = key["state"] in ("Disabled", "PendingDeletion")
        yield Fault(f"{called} is {key['state']}", "enable it", mend=mend(
            arn=key["arn"], state=key["state"]) if possible else None)  # fmt: skip
    elif missing := missing_actions(key["policy"], c.audit, key["arn"].split(":")[1]):
        yield Fault(f"{called} does not give {c.audit} {', '.join(missing)}",
                    "add them to its policy", mend=mend(arn=key["arn"], audit=c.audit,
                                                        actions=list(missing)))  # fmt: skip


@judges("volumes")
def volumes(fact: Any, c: Context) -> Iterator[Fault]:
    """A snapshot of each can be copied by Audit, as it is or by way of the account's own key."""
    for key in fact["keys"]:
        several = f" and {len(key['volumes']) - 1} more" if len(key["volumes"]) > 1 else ""
        called = f"{key['arn']} of {key['volumes'][0]}{several}"
        if "unseen" in key:
            yield Fault(f"the key {called} is not seen: {key['unseen']}",
                        "let the role of this run read it", "unknown")  # fmt: skip
        elif key["manager"] == "AWS":
            if not fact["member_key"]:
                yield Fault(f"{called} is managed by AWS and cannot be shared", "set "
                            "aws.member_key: snapshots are copied under it first")  # fmt: skip
        elif key["manager"] == "FOREIGN":
            yield Fault(f"the key {called} is of another organisation or account",
                        "copy the volume under a key of this account")  # fmt: skip
        elif key["state"] == "absent":
            yield Fault(f"the key {called} does not exist any more",
                        "copy what can be read of it now")  # fmt: skip
        else:
            yield from _lent(key, f"the key {called}", c)


@judges("isolation-group")
def isolation_group(fact: Any, c: Context) -> Iterator[Fault]:
    """There, with these rules and no others."""
    wanted = Wanted(c.settings.aws.isolation_sources).rules
    for vpc, group in fact.items():
        if group is None:
            yield Fault(f"{vpc} has no isolation group", "make it",
                        mend=mend(vpc=vpc, id="", rules=list(wanted)))  # fmt: skip
            continue
        more = [f"permits {r}" for r in group["rules"] if r not in wanted]
        less = [f"lacks {r}" for r in wanted if r not in group["rules"]]
        if more or less:
            yield Fault(f"the isolation group {group['id']} of {vpc} {', '.join(more + less)}",
                        "give it its rules", mend=mend(vpc=vpc, id=group["id"],
                                                       rules=list(wanted)))  # fmt: skip


@judges("path")
def path(fact: Any, c: Context) -> Iterator[Fault]:
    """Routed from the forensics subnet, by a shared subnet, or by an endpoint in a source."""
    sources = [ip_network(s) for s in c.settings.aws.isolation_sources]
    if not sources:
        yield Fault("the isolation groups let nobody in", "set aws.isolation_sources to the "
                    "forensics subnet")  # fmt: skip
        return

    def inside(cidr: str) -> bool:
        return bool(cidr) and any(ip_network(cidr).subnet_of(s) for s in sources)  # type: ignore[arg-type]

    for vpc, seen in fact.items():
        routed = any(s.subnet_of(ip_network(to)) for to, _ in seen["routes"]  # type: ignore[arg-type]
                     for s in sources)  # fmt: skip
        if routed or any(map(inside, seen["shared"])) or any(map(inside, seen["endpoints"])):
            continue
        possible = sorted(name for name, cidr in seen["subnets"].items() if inside(cidr))
        if seen["endpoints"]:
            yield Fault(f"{vpc}: the Instance Connect Endpoint lies in {seen['endpoints'][0]}, "
                        "which the isolation group does not let in", "add that network to "
                        "aws.isolation_sources")  # fmt: skip
            continue
        yield Fault(
            f"no way leads from the forensics subnet to {vpc}", "make an EC2 Instance Connect "
            "Endpoint" if possible else "route the forensics subnet to it, or make an EC2 Instance "
            "Connect Endpoint and add its subnet to aws.isolation_sources",
            mend=mend(vpc=vpc, subnet=possible[0]) if possible else None,
        )  # fmt: skip


@judges("login")
def login(fact: Any, c: Context) -> Iterator[Fault]:
    """`none` is a gap: the disks are taken all the same."""
    for i in fact:
        if method(i, c.settings.readiness.ca_images) == "none":
            yield Fault(f"{i['instance']}: nobody can log in ({i['platform'] or i['image']})",
                        "use an image with EC2 Instance Connect, or one that trusts your SSH "
                        "authority (readiness.ca_images); until then memory is a gap",
                        "gap")  # fmt: skip


def method(instance: Mapping[str, Any], ca_images: Iterable[str]) -> str:
    """Return how a responder logs in: EC2 Instance Connect, CA, key or none. Pure.

    From the outside it can only be told by the image; the tag `impound-login` says it outright.
    """
    said = instance["tags"].get("impound-login", "")
    if said in ("EC2 Instance Connect", "CA", "key", "none"):
        return str(said)
    if instance["platform"].lower() == "windows":
        return "none"
    if instance["metadata"] and _has_connect(instance["image_name"], instance["owner"]):
        return "EC2 Instance Connect"
    if instance["image"] in ca_images:
        return "CA"
    return "key" if instance["key"] else "none"


def _has_connect(image: str, owner: str) -> bool:
    """Source: EC2 User Guide, "Install EC2 Instance Connect" (images that have it)."""
    names = ("al2023-ami-2*", "amzn2-ami-hvm-2*", "ubuntu/images/*ubuntu-*-2[02468].04-*")
    return owner in ("amazon", "") and any(fnmatchcase(image, n) for n in names)


@judges("events")
def events(fact: Any, _: Context) -> Iterator[Fault]:
    """Proved by one that came through."""
    if not fact["bus"] or not fact["queue"]:
        yield Fault("the event bus or the queue of the Audit account does not exist",
                    "deploy cfn/audit.yaml")  # fmt: skip
        return
    rules = fact["rules"]
    off = [name for name, rule in rules.items() if not rule["on"]]
    for name in off:
        yield Fault(f"the rule {name} that forwards events is disabled", "enable it",
                    mend=mend(enable=name))  # fmt: skip
    if off or fact["arrived"]:
        return
    if not rules:
        yield Fault("no rule forwards events to the Audit account", "deploy cfn/member.yaml, or "
                    "make one", mend=mend(bus=fact["bus"], rule="impound-forward"))  # fmt: skip
    elif not any(PROBE in rule["pattern"] for rule in rules.values()):
        yield Fault("the path is not proved: no rule forwards events of the source " + PROBE,
                    "make one", "unknown",
                    mend(bus=fact["bus"], rule="impound-readiness"))  # fmt: skip
    elif fact["arrived"] is None:
        yield Fault("whether events arrive cannot be told: the queue holds others, or is read by a "
                    "function that does not log them", "look at the log of the intake function",
                    "unknown")  # fmt: skip
    else:
        yield Fault("an event that was sent did not arrive in the queue", "look at the policies of "
                    "bus and queue, and at the dead letters")  # fmt: skip
