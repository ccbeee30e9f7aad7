"""`shipctl watch`."""

from __future__ import annotations

import os
from pathlib import Path

import click

from shipctl.cli.output import Output, common_options, json_option
from shipctl.cli.planning import context_option, environment_options, spec_argument
from shipctl.cli.registering import clean
from shipctl.cli.running import display_options, lock_timeout_option, watched
from shipctl.cli.specfile import find_spec
from shipctl.cli.types import DURATION
from shipctl.errors import SpecError


@click.command("watch")
@spec_argument
@environment_options
@context_option
@click.option("--stage", metavar="STAGE", help="Only this release stage.")
@click.option(
    "--listen",
    metavar="HOST:PORT",
    help="Take notifications of an Alertmanager there, such as 127.0.0.1:9095, and roll back what an alert is about.",
)
@click.option(
    "--for",
    "seconds",
    metavar="DURATION",
    type=DURATION,
    help="With --listen: for how long, such as 1h; by default until it is interrupted.",
)
@click.option(
    "--token-env",
    metavar="NAME",
    help="With --listen: the environment variable with the bearer token that the Alertmanager has to send.",
)
@lock_timeout_option
@display_options
@json_option
@common_options
def command(
    spec: Path | None,
    environment: str | None,
    overrides: tuple[str, ...],
    context: str | None,
    stage: str | None,
    listen: str | None,
    seconds: float | None,
    token_env: str | None,
    lock_timeout: float,
    display: str | None,
    events: Path | None,
) -> None:
    """Go on with the release that is under way until it is over.

    No other stage is planned or run. The exit codes are those of `apply`; with nothing under way it is 0.

    With --listen, alerts are heard meanwhile and after that. One that names this pipeline (label `pipeline` or
    `model`) and what it is about (`version` or `revision`) aborts a release under way, or rolls back what serves; with
    --for the command ends with 7 then.
    """
    from shipctl.cli.documents.runs import WatchDocument
    from shipctl.engine.alerts import listen_at
    from shipctl.engine.watch import watch

    output = Output.current()
    if listen is None and (seconds is not None or token_env is not None):
        raise SpecError("--for and --token-env go with --listen")
    ear = None if listen is None else listen_at(listen, seconds, _token(token_env))
    with watched(display, events) as hooks:
        done = watch(
            find_spec(spec),
            hooks=hooks,
            say=lambda line: output.say(clean(line)),
            stage=stage,
            environment=environment,
            overrides=overrides,
            context=context,
            lock_timeout=lock_timeout,
            listen=ear,
        )
    for problem in (*hooks.problems, *(warning for run in done.runs for warning in run.warnings)):
        output.complain(str(problem), label="warning")
    runs = tuple(run.run for run in done.runs)
    output.document(WatchDocument(exit_code=done.exit_code, message=done.message, runs=runs))
    if done.exit_code:
        output.complain(done.message)
        click.get_current_context().exit(done.exit_code)
    if not done.runs:
        output.say(done.message)


def _token(name: str | None) -> str | None:
    """Return the token that an environment variable holds.

    :raises SpecError: if it holds none
    """
    if name is None:
        return None
    token = os.environ.get(name, "").strip()
    if not token:
        message = f"--token-env {name}: the environment variable {name} is not set, or empty; export it"
        raise SpecError(message)
    return token
