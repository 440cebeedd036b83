# SPDX-License-Identifier: Apache-2.0
"""The templates as CloudFormation would make them: intrinsics resolved, policies listed.

Only what these templates use. Names and ARNs are those that AWS would give, as far as they are
given at all; else the logical name stands for them.

Source: CloudFormation User Guide, "Intrinsic function reference", "Fn::GetAtt".
"""

from __future__ import annotations

import base64
import copy
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import yaml

from pipeline.gameday.aws.accounts import AUDIT, LOG_ARCHIVE, MEMBER, REGION
from pipeline.templates import NAMES, template

ROOT = Path(__file__).parents[2]
MANAGEMENT = "999999999999"
ORGANIZATION = "o-a1b2c3d4e5"
BUCKET = "evidence"
CUSTODIAN = f"arn:aws:iam::{AUDIT}:role/impound-custodian"
CONTAINMENT = f"arn:aws:iam::{AUDIT}:role/aws-controltower-AuditAdministratorRole"
SECRET = f"arn:aws:secretsmanager:{REGION}:{AUDIT}:secret:engine-AbCdEf"
CODE = {"CodeBucket": "code", "CodeKey": "impound.zip"}
CHECKPOINT_KEY = f"arn:aws:kms:{REGION}:{LOG_ARCHIVE}:key/CheckpointKey"

ACCOUNTS = {"audit": AUDIT, "forensics": AUDIT, "member": MEMBER, "seal": LOG_ARCHIVE,
            "org": MANAGEMENT}  # fmt: skip
PARAMETERS: dict[str, dict[str, str]] = {
    "seal": {"AuditAccount": AUDIT, "EvidenceBucket": BUCKET, **CODE},
    "audit": {
        "EvidenceBucketName": BUCKET, "OrganizationId": ORGANIZATION, "ExternalId": "impound-x",
        "Namespace": "acme", "CustodianArn": CUSTODIAN,
        "SealerRoleArn": f"arn:aws:iam::{LOG_ARCHIVE}:role/impound-sealer",
        "SealerArn": f"arn:aws:lambda:{REGION}:{LOG_ARCHIVE}:function:impound-sealer",
        "CheckpointKey": CHECKPOINT_KEY, "TrailBucket": f"impound-trail-{LOG_ARCHIVE}-{REGION}",
        "ManagementAccount": MANAGEMENT, "IsolationSources": '"10.9.0.0/24", "10.9.1.0/24"',
        "ContainmentRoleArn": CONTAINMENT, "MakeControlTowerRoles": "true",
        "EngineSecret": SECRET, "Contact": "soc@example.org", **CODE,
    },
    "member": {
        "AuditAccount": AUDIT, "ExternalId": "impound-x", "Namespace": "acme",
        "HomeRegion": REGION, "GlobalRegion": REGION,
        "AuditBus": f"arn:aws:events:{REGION}:{AUDIT}:event-bus/impound",
        "IsolationSources": "10.9.0.0/24,10.9.1.0/24",
        "SamlProvider": f"arn:aws:iam::{MEMBER}:saml-provider/idp",
        "MakeControlTowerRoles": "true",
    },
    "org": {"Namespace": "acme", "TargetIds": "r-abcd"},
    "forensics": {
        "Case": "T-1", "Contact": "soc@example.org", "VpcId": "vpc-0123456789abcdef0",
        "SubnetId": "subnet-0123456789abcdef0", "TargetCidr": "10.1.2.3/32",
        "EndpointGroup": "sg-0123456789abcdef0", "S3PrefixList": "pl-0123456789abcdef0",
        "EvidenceBucket": BUCKET, "EvidenceKey": f"arn:aws:kms:{REGION}:{AUDIT}:key/EvidenceKey",
        "VolumeKey": f"arn:aws:kms:{REGION}:{AUDIT}:key/CopyKey", "Settings": "/impound/settings",
    },
}  # fmt: skip
_NAMING = ("RoleName", "BucketName", "QueueName", "FunctionName", "TopicName", "TrailName",
           "LogGroupName", "InstanceProfileName", "Name")  # fmt: skip


class _Loader(yaml.SafeLoader):
    """YAML with CloudFormation's short forms."""


def _short(loader: _Loader, suffix: str, node: yaml.Node) -> dict[str, Any]:
    value: Any
    if isinstance(node, yaml.ScalarNode):
        value = loader.construct_scalar(node)
    elif isinstance(node, yaml.SequenceNode):
        value = loader.construct_sequence(node, deep=True)
    else:
        value = loader.construct_mapping(node, deep=True)
    if suffix == "GetAtt" and isinstance(value, str):
        value = value.split(".", 1)
    return {suffix if suffix in ("Ref", "Condition") else f"Fn::{suffix}": value}


_Loader.add_multi_constructor("!", _short)
# Dates stay text: a policy's Version is one.
_Loader.yaml_implicit_resolvers = {
    k: [(tag, r) for tag, r in v if tag != "tag:yaml.org,2002:timestamp"]
    for k, v in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


@cache
def _parsed(name: str) -> Any:
    return yaml.load(template(name), _Loader)


_GONE = object()


@dataclass
class Stack:
    """One template with its parameters, in one account and Region."""

    name: str
    parameters: Mapping[str, str] = field(default_factory=dict)
    region: str = REGION
    settings: str = ""

    def __post_init__(self) -> None:
        self.account = ACCOUNTS[self.name]
        self.template = copy.deepcopy(_parsed(self.name))
        given = PARAMETERS[self.name] | dict(self.parameters)
        self._values: dict[str, Any] = {
            "AWS::AccountId": self.account, "AWS::Region": self.region, "AWS::Partition": "aws",
            "AWS::URLSuffix": "amazonaws.com", "AWS::NoValue": _GONE,
        }  # fmt: skip
        for key, declared in self.template["Parameters"].items():
            value = str(given.get(key, declared.get("Default", "")))
            pattern = declared.get("AllowedPattern")
            assert pattern is None or re.fullmatch(pattern, value), (key, value)
            if declared["Type"] == "CommaDelimitedList":
                self._values[key] = value.split(",")
            elif declared["Type"].startswith("AWS::SSM::Parameter::Value"):
                self._values[key] = self.settings
            else:
                self._values[key] = value
        assert given.keys() <= self.template["Parameters"].keys()

    @cached_property
    def resources(self) -> dict[str, dict[str, Any]]:
        """Those whose condition holds, resolved."""
        made = {}
        for key, body in self.template["Resources"].items():
            if "Condition" not in body or self.condition(body["Condition"]):
                rest = {k: v for k, v in body.items() if k != "Condition"}
                made[key] = self.resolve(rest)
        return made

    def of(self, kind: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield (logical name, properties) of the resources of a type."""
        for key, body in self.resources.items():
            if body["Type"] == kind:
                yield key, body.get("Properties", {})

    def condition(self, name: str) -> bool:
        """Whether a condition holds."""
        return bool(self.resolve(self.template["Conditions"][name]))

    def resolve(self, value: Any) -> Any:
        """Return a value without intrinsics."""
        if isinstance(value, list):
            return [r for v in value if (r := self.resolve(v)) is not _GONE]
        if not isinstance(value, dict):
            return value
        if len(value) == 1:
            [(key, inner)] = value.items()
            if key == "Ref":
                return self._ref(inner)
            if key == "Condition" and isinstance(inner, str):
                return self.condition(inner)
            if key.startswith("Fn::"):
                return getattr(self, f"_{key[4:].lower()}")(inner)
        return {k: r for k, v in value.items() if (r := self.resolve(v)) is not _GONE}

    def _ref(self, name: str) -> Any:
        if name in self._values:
            return self._values[name]
        kind = self.template["Resources"][name]["Type"]
        if kind == "AWS::SNS::Topic":
            return self.arn(name)
        return self.named(name)

    def named(self, name: str) -> str:
        """Physical name of a resource."""
        body = self.template["Resources"][name].get("Properties", {})
        for key in _NAMING:
            if key in body:
                return str(self.resolve(body[key]))
        return name

    def arn(self, name: str) -> str:
        """ARN of a resource."""
        kind = self.template["Resources"][name]["Type"]
        called, where = self.named(name), f"{self.region}:{self.account}"
        return {
            "AWS::S3::Bucket": f"arn:aws:s3:::{called.lower()}",
            "AWS::KMS::Key": f"arn:aws:kms:{where}:key/{name}",
            "AWS::IAM::Role": f"arn:aws:iam::{self.account}:role/{called}",
            "AWS::SQS::Queue": f"arn:aws:sqs:{where}:{called}",
            "AWS::SNS::Topic": f"arn:aws:sns:{where}:{called}",
            "AWS::Lambda::Function": f"arn:aws:lambda:{where}:function:{called}",
            "AWS::Logs::LogGroup": f"arn:aws:logs:{where}:log-group:{called}:*",
            "AWS::Events::EventBus": f"arn:aws:events:{where}:event-bus/{called}",
            "AWS::Events::Rule": f"arn:aws:events:{where}:rule/{called}",
        }[kind]

    def _getatt(self, what: list[str]) -> Any:
        name, attribute = what
        if attribute == "Arn":
            return self.arn(name)
        body = self.template["Resources"][name]["Properties"]
        if attribute in body:
            return self.resolve(body[attribute])
        return f"{name}.{attribute}"

    def _sub(self, value: Any) -> str:
        text, more = (value, {}) if isinstance(value, str) else value
        known = {k: self.resolve(v) for k, v in more.items()}

        def put(match: re.Match[str]) -> str:
            name = match[1]
            if name.startswith("!"):
                return f"${{{name[1:]}}}"
            if name in known:
                return str(known[name])
            if "." in name:
                return str(self._getatt(name.split(".", 1)))
            return str(self._ref(name))

        return re.sub(r"\$\{([^}]+)\}", put, text)

    def _if(self, value: list[Any]) -> Any:
        return self.resolve(value[1] if self.condition(value[0]) else value[2])

    def _equals(self, value: list[Any]) -> bool:
        return str(self.resolve(value[0])) == str(self.resolve(value[1]))

    def _not(self, value: list[Any]) -> bool:
        return not self.resolve(value[0])

    def _and(self, value: list[Any]) -> bool:
        return all(self.resolve(v) for v in value)

    def _join(self, value: list[Any]) -> str:
        return str(value[0]).join(self.resolve(value[1]))

    def _base64(self, value: Any) -> str:
        return base64.b64encode(str(self.resolve(value)).encode()).decode()

    def _select(self, value: list[Any]) -> Any:
        return self.resolve(value[1])[int(value[0])]


@dataclass(frozen=True)
class Document:
    """One policy. `place`: where it stands; `owner`: ARN of the role, or of what it protects."""

    place: str
    kind: str  # identity, trust, resource, scp
    owner: str
    body: dict[str, Any]

    @property
    def sids(self) -> list[str]:
        """Names of its statements."""
        return [s["Sid"] for s in self.body["Statement"]]

    def without(self, sid: str) -> Document:
        """The same, one statement less."""
        kept = [s for s in self.body["Statement"] if s["Sid"] != sid]
        return Document(self.place, self.kind, self.owner, {**self.body, "Statement": kept})


def documents(stack: Stack) -> Iterator[Document]:
    """Yield every policy of a stack."""
    arns = {stack.named(k).lower(): stack.arn(k) for k, _ in stack.of("AWS::S3::Bucket")}
    for key, p in stack.of("AWS::IAM::Role"):
        place = f"{stack.name}.{key}"
        yield Document(f"{place}.trust", "trust", stack.arn(key), p["AssumeRolePolicyDocument"])
        for policy in p.get("Policies", []):
            yield Document(f"{place}.{policy['PolicyName']}", "identity", stack.arn(key),
                           policy["PolicyDocument"])  # fmt: skip
    for key, p in stack.of("AWS::KMS::Key"):
        yield Document(f"{stack.name}.{key}", "resource", stack.arn(key), p["KeyPolicy"])
    for key, p in stack.of("AWS::S3::BucketPolicy"):
        yield Document(f"{stack.name}.{key}", "resource", arns[p["Bucket"].lower()],
                       p["PolicyDocument"])  # fmt: skip
    for key, p in stack.of("AWS::SQS::QueuePolicy"):
        yield Document(f"{stack.name}.{key}", "resource", "sqs", p["PolicyDocument"])
    for key, p in stack.of("AWS::SNS::TopicPolicy"):
        yield Document(f"{stack.name}.{key}", "resource", p["Topics"][0], p["PolicyDocument"])
    for key, p in stack.of("AWS::Events::EventBusPolicy"):
        yield Document(f"{stack.name}.{key}", "resource", p["Statement"]["Resource"],
                       {"Version": "2012-10-17", "Statement": [p["Statement"]]})  # fmt: skip
    for key, p in stack.of("AWS::Lambda::Permission"):
        function = f"arn:aws:lambda:{stack.region}:{stack.account}:function:{p['FunctionName']}"
        who = p["Principal"]
        statement = {
            "Sid": key, "Effect": "Allow", "Action": p["Action"], "Resource": function,
            "Principal": {"AWS": f"arn:aws:iam::{who}:root"} if who.isdigit() else {"Service": who},
        } | ({"Condition": {"ArnLike": {"aws:SourceArn": p["SourceArn"]}}}
             if "SourceArn" in p else {})  # fmt: skip
        yield Document(f"{stack.name}.{key}", "resource", function,
                       {"Version": "2012-10-17", "Statement": [statement]})  # fmt: skip
    for key, p in stack.of("AWS::Organizations::Policy"):
        yield Document(f"{stack.name}.{key}", "scp", "", p["Content"])


@cache
def stacks() -> dict[str, Stack]:
    """All of them, with everything switched on."""
    return {name: Stack(name) for name in NAMES}


@cache
def world() -> tuple[Document, ...]:
    """Every policy of every template."""
    return tuple(d for name in NAMES for d in documents(stacks()[name]))
