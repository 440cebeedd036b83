# SPDX-License-Identifier: Apache-2.0
"""The list of checks, in the order in which a reader wants them."""

from __future__ import annotations

from pipeline.accounts import ADMINISTRATOR_EXECUTION, AUDIT_ADMINISTRATOR
from pipeline.readiness.model import Check

AUDIT_READ_ONLY = "aws-controltower-AuditReadOnlyRole"
READ_ONLY_EXECUTION = "aws-controltower-ReadOnlyExecutionRole"
PAIRS = ((AUDIT_READ_ONLY, READ_ONLY_EXECUTION), (AUDIT_ADMINISTRATOR, ADMINISTRATOR_EXECUTION))
SAML_ROLES = {"securityaudit": "SecurityAudit", "securityresponse": "AdministratorAccess"}
READINESS_CASE = "_readiness"
FORENSICS_STACK = "impound, one incident"  # how the template's description begins
PROBE = "impound.readiness"  # source of the event that proves the path
# (service, quota code, name, what a response to several instances needs)
QUOTAS = (
    ("ec2", "L-1216C47A", "On-Demand Standard vCPUs", 32),
    ("ebs", "L-309BACF6", "snapshots in the Region", 1000),
)

CHECKS = (
    Check("installation", "M11", "installed files are those of the wheel", "installation"),
    Check("clock", "", "this machine's clock agrees with AWS", "installation"),
    Check("symbols", "M20", "kernel symbols for memory analysis are here", "installation"),
    Check("gameday", "M14", "the last game day is younger than 12 months", "installation"),
    Check("bucket-lock", "M5", "the evidence bucket locks what is put into it",
          "audit", mends=True),
    Check("bucket-policy", "M5", "the evidence bucket's policy forbids deletion",
          "audit", mends=True),
    Check("bucket-public", "M5", "the evidence bucket is closed to the public",
          "audit", mends=True),
    Check("keys", "M4", "the keys of the settings can be used", "audit", mends=True),
    Check("subnet", "M12", "the forensics subnet reaches the services it needs",
          "audit", regional=True, mends=True),
    Check("ami", "M11", "the forensics AMI is there, encrypted and young", "audit", regional=True),
    Check("template", "M12", "the forensics template is valid and was rehearsed",
          "audit", regional=True),
    Check("quotas", "M12", "quotas of the Audit account allow a response",
          "audit", regional=True, mends=True),
    Check("way", "M3", "the account is reached as the settings say", "account"),
    Check("automation-roles", "M3", "the automation roles exist and trust each other",
          "account", mends=True),
    Check("contact", "M1", "the account has a security contact", "account", mends=True),
    Check("saml-roles", "M2", "the federated roles exist", "account", mends=True),
    Check("cloudtrail", "M6", "CloudTrail logs, validates and delivers", "account",
          regional=True, mends=True),
    Check("log-key", "M6", "the key of the logs lets responders read them", "audit",
          regional=True, mends=True),
    Check("guardduty", "M7", "GuardDuty is on", "account", regional=True, mends=True),
    Check("securityhub", "M7", "Security Hub is on", "account", regional=True, mends=True),
    Check("config", "M6", "AWS Config records and delivers", "account", regional=True, mends=True),
    Check("flow-logs", "M6", "flow logs of every VPC are delivered", "account",
          regional=True, mends=True),
    Check("member-key", "M4", "a key for snapshots exists and is lent to Audit", "member",
          regional=True, mends=True),
    Check("volumes", "M4", "every volume can be shared with Audit", "member",
          regional=True, mends=True),
    Check("isolation-group", "M9", "every VPC has its isolation group, with its rules", "member",
          regional=True, mends=True),
    Check("path", "M10", "a way leads from the forensics subnet to every VPC", "member",
          regional=True, mends=True),
    Check("login", "M13", "responders can log in to every instance", "member", regional=True),
    Check("events", "M7", "an event of the account arrives in Audit's queue", "member",
          regional=True, mends=True),
)  # fmt: skip
BY_NAME = {check.name: check for check in CHECKS}
