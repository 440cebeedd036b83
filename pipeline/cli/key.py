# SPDX-License-Identifier: Apache-2.0
"""`impound key …`: signing keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from evidence_store.errors import SigningKeyError
from evidence_store.ledger import Draft
from evidence_store.sign import PublicKey
from evidence_store.store import allow_key
from pipeline.cli.base import Globals, Group, pass_globals, receipt, table
from pipeline.cli.case import checked, read_public_key
from pipeline.session import KEY_NAMES


@click.group(cls=Group)
def key() -> None:
    """Signing keys: make, show, allow, revoke."""


@key.command()
@pass_globals
def new(options: Globals) -> None:
    """Make the entry key and the checkpoint key of this user."""
    session = options.session
    if not session.missing_keys():
        raise SigningKeyError(
            f"both signing keys exist in {session.key_path('entry').parent}; nothing was changed",
            hint="impound key show prints their fingerprints",
        )
    made = session.make_keys(session.missing_keys())
    options.result(
        {"keys": [_describe(options, name, k) for name, k in made.items()]},
        [f"{name} key {k.fingerprint}  {session.key_path(name)}" for name, k in made.items()],
    )


@key.command()
@pass_globals
def show(options: Globals) -> None:
    """Show the public halves of this user's keys."""
    rows = [_describe(options, n, options.session.public_key(n)) for n in KEY_NAMES
            if n not in options.session.missing_keys()]  # fmt: skip
    if not rows:
        raise SigningKeyError("there are no signing keys yet", hint="make them: impound key new")
    options.result(
        {"keys": rows},
        table(("USE", "KID", "FINGERPRINT", "FILE"),
              [(r["use"], r["kid"], r["sha256"], r["public"]) for r in rows]),
    )  # fmt: skip


def _describe(options: Globals, name: str, public: PublicKey) -> dict[str, Any]:
    path = options.session.key_path(name)
    return {"use": name, "kid": public.kid, "sha256": public.fingerprint,
            "private": str(path), "public": str(path.with_suffix(".pub.pem"))}  # fmt: skip


@key.command()
@click.argument("case_id", metavar="CASE")
@click.argument("public", metavar="PUBLIC.pem", type=click.Path(path_type=Path))
@click.option("--use", type=click.Choice(KEY_NAMES), default="entry", help="What it may sign.")
@pass_globals
def add(options: Globals, case_id: str, public: Path, use: str) -> None:
    """Allow another person's key in a case."""
    added = read_public_key(public)
    found = options.open_store(writing=True).case(checked(case_id))
    allow_key(found, added, use)
    checkpoint = options.seal(found)
    options.result(
        {"case": case_id, "kid": added.kid, "sha256": added.fingerprint, "use": use,
         "receipt": receipt(checkpoint)},
        [f"key {added.fingerprint} may sign ({use}) in case {case_id}"],
    )  # fmt: skip


@key.command()
@click.argument("case_id", metavar="CASE")
@click.argument("kid", metavar="KID")
@pass_globals
def revoke(options: Globals, case_id: str, kid: str) -> None:
    """End a key's right to sign from now on; what it signed before stays valid."""
    found = options.open_store(writing=True).case(checked(case_id))
    live = [k.allowed for k in found.listed_keys if k.revoked is None]
    chosen = next((k for k in live if k.kid == kid), None)
    if chosen is None:
        raise SigningKeyError(
            f"no key {kid} may sign in case {case_id}",
            hint=f"impound case show {case_id} lists the keys",
        )
    use = chosen.use
    if sum(k.use == use for k in live) == 1:
        raise SigningKeyError(
            f"{kid} is the only {use} key in case {case_id}",
            hint=f"allow another one first: impound key add {case_id} PUBLIC.pem --use {use}",
        )
    found.record(lambda: Draft("key.revoked", {"keys": [chosen]}))
    checkpoint = options.seal(found)
    options.result(
        {"case": case_id, "kid": kid, "use": use, "receipt": receipt(checkpoint)},
        [f"key {kid} may no longer sign ({use}) in case {case_id}"],
    )
