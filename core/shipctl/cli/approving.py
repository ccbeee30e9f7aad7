"""What `approve` and `reject` have in common: their options, whose key signs, and the text of what waits."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from shipctl.cli.output import Output, common_options, json_option
from shipctl.cli.planning import environment_options, spec_argument
from shipctl.cli.registering import clean
from shipctl.cli.specfile import find_spec
from shipctl.errors import SpecError

if TYPE_CHECKING:
    from shipctl.cli.documents.approvals import PendingLine
    from shipctl.engine.deciding import Decision, Pending
    from shipctl.evidence.approval_rules import Standing
    from shipctl.evidence.approvals import Request
    from shipctl.evidence.keys import PrivateKey

CommandT = TypeVar("CommandT", bound=Callable[..., Any])


def decision_options(command: CommandT) -> CommandT:
    """Add what an approval and a rejection take."""
    for decorate in (
        common_options,
        json_option,
        click.option(
            "--password-file",
            metavar="FILE",
            type=click.Path(path_type=Path),
            help="The password of the key, in the first line of a file.",
        ),
        click.option(
            "--key",
            metavar="FILE|-",
            help="Sign with this private key (PEM); - reads it from standard input.",
        ),
        click.option("--role", metavar="ROLE", help="In which of your roles; one that is asked by default."),
        click.option("--reason", metavar="TEXT", default="", help="Why; kept with it."),
        click.option(
            "--release",
            metavar="DIGEST",
            help="The release that is meant, by 12 digits of its digest at least.",
        ),
        click.option("--stage", metavar="STAGE", help="The release stage that is meant."),
        environment_options,
        spec_argument,
    ):
        command = decorate(command)
    return command


def say(
    decision: Decision,
    spec: Path | None,
    environment: str | None,
    overrides: tuple[str, ...],
    *,
    stage: str | None,
    release: str | None,
    reason: str,
    role: str | None,
    key: str | None,
    password_file: Path | None,
    expires: float | None = None,
) -> None:
    """Approve or reject, and tell what was said."""
    from shipctl.cli.documents.approvals import DecisionDocument
    from shipctl.engine.deciding import decide

    output = Output.current()
    done = decide(
        find_spec(spec),
        decision,
        environment=environment,
        overrides=overrides,
        stage=stage,
        release=release,
        reason=reason,
        role=role,
        key=_key(key, password_file),
        expires=expires,
    )
    for line in request_lines(done.request):
        output.say(line)
    for statement in done.statements:
        signed = f", signed with {done.signer}" if done.signer is not None else ""
        output.say(clean(f"{statement.what} {statement}{signed}"))
    if not done.changed:
        output.say("you said so before; nothing was changed")
    elif decision == "approve":
        output.say("the command that waits goes on when it is run again")
    output.document(
        DecisionDocument(
            release=done.request.plan.digest,
            decision=decision,
            changed=done.changed,
            signer=done.signer,
            statements=done.statements,
        )
    )


def _key(name: str | None, password_file: Path | None) -> PrivateKey | None:
    """Read the private key that signs.

    :raises SpecError: if it cannot be read
    """
    if name is None:
        if password_file is not None:
            raise SpecError("--password-file goes with --key")
        return None
    from shipctl.evidence.keys import PrivateKey, read_key_file

    password = None
    if password_file is not None:
        password = read_key_file(password_file).decode(errors="replace").partition("\n")[0]
    pem = sys.stdin.read() if name == "-" else read_key_file(Path(name))
    return PrivateKey.load(pem, password=password, where="the key" if name == "-" else name)


def request_lines(request: Request) -> list[str]:
    """Write what a release is that waits."""
    from shipctl.report import text

    plan = request.plan
    facts = {
        "asked": f"{', '.join(request.asks)}, since {text.moment(request.at)}, by {request.by} (run {request.run})",
        "roles": " or ".join(request.roles) or "any of the policy",
        "revision": f"{plan.revision}, stage {plan.stage}",
        "stable": plan.stable or "nothing",
    }
    lines = [f"{click.style(plan.digest, bold=True)}  {plan}"]
    lines += [f"  {name:<8}  {clean(value)}" for name, value in facts.items()]
    return lines + [f"  change    {clean(line)}" for line in request.preview]


def pending_lines(found: Pending) -> Iterator[str]:
    """Yield the lines about a release that waits, and how it stands with what is asked."""
    yield from request_lines(found.request)
    for what, stands in found.standing.items():
        yield f"  {clean(f'{what}: {_stands(stands)}')}"
        yield from (f"    does not count: {clean(line)}" for line in stands.ignored)


def _stands(stands: Standing) -> str:
    if stands.rejected is not None:
        return str(stands.rejected)
    if stands.approved is not None:
        return str(stands.approved)
    return f"{stands.expired}, which has expired" if stands.expired is not None else "waits"


def pending_line(found: Pending) -> PendingLine:
    """Return a release that waits as the document shows it."""
    from shipctl.cli.documents.approvals import AskedLine, PendingLine

    request, plan = found.request, found.request.plan
    return PendingLine(
        release=plan.digest,
        **plan.model_dump(),
        roles=request.roles,
        by=request.by,
        run=request.run,
        at=request.at,
        preview=request.preview,
        asked=tuple(
            AskedLine(
                what=what,
                approved=item.approved,
                rejected=item.rejected,
                expired=item.expired,
                ignored=item.ignored,
            )
            for what, item in found.standing.items()
        ),
    )
