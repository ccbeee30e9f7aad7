"""The program `shipctl`: the list of its commands, and the one boundary where errors become exit codes."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from shipctl import __version__
from shipctl.cli.lazy import LazyGroup
from shipctl.cli.output import Output, common_options
from shipctl.errors import ShipctlError

COMMANDS = {
    "init": "Write a starter spec for a model, and a CI workflow.",
    "validate": "Check specs: form, stages, options, edges and files.",
    "plan": "Show what apply would do, and why.",
    "render": "Print what a release puts on its target, as YAML.",
    "diff": "Show how what is live differs from what a release would make of it.",
    "apply": "Do what a spec, or a plan file, says.",
    "status": "Show what serves, since when, from which digest.",
    "history": "Show runs and releases, newest first.",
    "approve": "Approve a release that waits for it.",
    "reject": "Reject a release that waits for an approval.",
    "promote": "Release to one environment what serves in another.",
    "watch": "Go on with the release that is under way until it is over.",
    "abort": "Abort the release that is under way.",
    "rollback": "Serve an earlier release again.",
    "down": "Stop what a pipeline runs on its targets.",
    "registry": "Show and change registered models.",
    "retire": "Retire a version of a model, so that nobody takes it any more.",
    "verify": "Verify that a package is what somebody who is trusted has signed.",
    "pull": "Take a published package out of a store, verified.",
    "keygen": "Make a key that signs packages.",
    "gc": "Remove from a store what nothing refers to any more.",
    "report": "Write a self-contained HTML page about a run.",
    "stages": "List, describe, check or create stage plugins.",
    "schema": "Print the JSON schema of specs, installed stages included.",
}

EPILOG = """\b
Exit codes:
  0    done
  1    a stage failed
  2    the spec or the command line is wrong, or something is missing here
  3    a plugin is broken
  4    a gate said no
  5    the plan file is stale, or an approval has expired
  6    waiting for an approval, or paused
  7    rolled back
  8    another run holds the lock
  9    diff --exit-code: a release would change something
  70   a bug in shipctl; the traceback is in .shipctl/crash-*.txt
  130  interrupted
"""

_INTERRUPTED = 130
_NOT_OURS = frozenset({errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT})
"""What a file system may say that is no bug of ours."""
_BROKEN_PIPE = 141  # 128 + SIGPIPE, what a shell reports for any program whose reader has gone


def _print_version(ctx: click.Context, _: click.Parameter, value: bool) -> None:  # noqa: FBT001
    if value and not ctx.resilient_parsing:
        click.echo(f"shipctl {__version__}")
        ctx.exit()


@click.group(
    cls=LazyGroup,
    package="shipctl.cli.commands",
    summaries=COMMANDS,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=False,
    invoke_without_command=True,
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the version.",
)
@common_options
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Take a model from its framework to a serving system by one declarative spec."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main() -> None:
    """Run the command line of this process."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code; whatever goes wrong is shown here and nowhere else."""
    # Looked up before parsing, because what is wrong with the arguments is told in the same way.
    output = Output(
        json="--json" in arguments, plain="--no-color" in arguments or bool(os.environ.get("NO_COLOR"))
    )
    try:
        code = _invoke(arguments, output)
        sys.stdout.flush()
    except ShipctlError as exc:
        output.error(str(exc), exc.exit_code)
        return exc.exit_code
    except click.ClickException as exc:
        output.error(_usage(exc), exc.exit_code)
        return exc.exit_code
    except (KeyboardInterrupt, click.Abort):
        output.error("interrupted; the same command goes on where it stood", _INTERRUPTED)
        return _INTERRUPTED
    except BrokenPipeError:
        # The interpreter flushes stdout once more at its end, which must not raise again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return _BROKEN_PIPE
    except OSError as exc:
        if exc.errno not in _NOT_OURS:
            return _bug(exc, arguments, output)
        where = f" {exc.filename}" if exc.filename else ""
        output.error(f"cannot write{where}: {exc.strerror}; make it writable, or make room", 1)
        return 1
    except Exception as exc:  # noqa: BLE001  (the boundary: everything else is a bug of ours)
        return _bug(exc, arguments, output)
    return code


def _invoke(arguments: Sequence[str], output: Output) -> int:
    try:
        with cli.make_context("shipctl", list(arguments), obj=output) as ctx:
            cli.invoke(ctx)
    except click.exceptions.Exit as exc:
        return exc.exit_code
    return 0


def _usage(exc: click.ClickException) -> str:
    message = exc.format_message()
    message = message[:1].lower() + message[1:]
    if isinstance(exc, click.UsageError) and exc.ctx:
        message = f"{message.rstrip('.')}\nsee `{exc.ctx.command_path} --help`"
    return message


def _bug(exc: Exception, arguments: Sequence[str], output: Output) -> int:
    from shipctl.cli.crash import EXIT_CODE, write_report

    path = write_report(exc, arguments, Path.cwd())
    where = f"the traceback is in {path}" if path else "the traceback is above"
    summary = str(exc).partition("\n")[0]
    output.error(f"{type(exc).__name__}: {summary}; {where}, please report it", EXIT_CODE, label="bug")
    return EXIT_CODE
