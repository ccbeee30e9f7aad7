"""`shipctl verify`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from shipctl.cli.output import Output, common_options, json_option
from shipctl.cli.packages import trust_options
from shipctl.cli.stores import store_options
from shipctl.cli.types import TIME
from shipctl.errors import VerificationError

if TYPE_CHECKING:
    from shipctl.evidence.verify import Verified


@click.command("verify")
@click.argument("what", metavar="PATH|URI|RELEASE")
@trust_options
@click.option("--expect", metavar="NAME@VERSION", help="Which release it has to be.")
@click.option(
    "--at", metavar="TIME", type=TIME, help="When certificates have to have been valid; now by default."
)
@store_options
@json_option
@common_options
def command(
    what: str,
    keys: tuple[Path, ...],
    certificates: tuple[Path, ...],
    identities: tuple[str, ...],
    policy: Path | None,
    expect: str | None,
    at: float | None,
    store: str | None,
    spec: Path | None,
    environment: str | None,
    overrides: tuple[str, ...],
) -> None:
    """Verify that a package is what somebody who is trusted has signed.

    It is a folder, a tar or an OCI layout; a package in a store (s3://bucket/prefix/NAME@VERSION); or a release of
    the registry (NAME@VERSION, NAME@ALIAS). Every byte is read; nothing but the store is asked, and that only for the
    last two. With --key or --certificates only these are trusted, else the policy decides.
    """
    from shipctl.cli.documents.packages import VerifyDocument
    from shipctl.cli.packages import laid_out, named, store_of, trust_of
    from shipctl.cli.stores import chosen_project
    from shipctl.evidence.verify import verify_package

    output = Output.current()
    project = chosen_project(spec).root
    trust = trust_of(keys, certificates, identities, policy, project)
    meant = named(what)
    place = None if meant.path is not None else store_of(meant, store, spec, environment, overrides)
    moment = time.time() if at is None else at
    with laid_out(meant, place, project) as package:
        found = verify_package(
            package.path, trust, expect=expect or package.expect, at=moment, label=package.label
        )
        if package.digest is not None and found.digest != package.digest:
            raise VerificationError(
                f"{package.label}: the package is {found.digest}, correctly signed, and the store has "
                f"{package.digest} under that name; find out who changed the store",
                "expected",
            )
    if package.retired:
        output.complain(f"{found.reference} was retired", label="warning")
    for line in _lines(found):
        output.result(line)
    output.document(VerifyDocument(what=what, at=moment, package=found))


def _lines(found: Verified) -> list[str]:
    from shipctl.report import text

    whole = click.style("verified", fg="green", bold=True)
    lines = [
        f"{whole} {found.reference}: {text.plural(found.files, 'file')}, {text.size(found.bytes)}, all as signed",
        f"signed by {found.signer} ({found.algorithm})",
    ]
    if found.certificate is not None:
        until = f", valid until {text.moment(found.expires)}" if found.expires is not None else ""
        lines.append(f"certificate of {found.certificate}{until}")
    lines.append(f"digest {found.digest}")
    return lines
