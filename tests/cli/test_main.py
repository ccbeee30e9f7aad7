from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from importlib import import_module

import click
import pytest

import shipctl
from shipctl import errors
from shipctl.cli import main
from shipctl.testing.fixtures import SampleProject
from support_cli import Call

PLAN = "shipctl.cli.commands.plan"


def replace_plan(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Make `shipctl plan` raise."""

    def fail(_: object) -> None:
        raise error

    monkeypatch.setattr(import_module(PLAN), "find_spec", fail)


def test_version(call: Call) -> None:
    assert call("--version").stdout == f"shipctl {shipctl.__version__}\n"


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)])
def test_help_lists_commands_and_exit_codes(call: Call, arguments: tuple[str, ...]) -> None:
    result = call(*arguments)
    assert result.exit_code == 0
    for name in main.COMMANDS:
        assert f"\n  {name} " in result.stdout
    for line in ("  4    a gate said no\n", "  130  interrupted\n", "  70   a bug in shipctl;"):
        assert line in result.stdout


def test_every_exit_code_of_an_error_is_documented() -> None:
    classes = [
        item
        for item in vars(errors).values()
        if isinstance(item, type) and issubclass(item, errors.ShipctlError)
    ]
    documented = {line.split()[0] for line in main.EPILOG.splitlines() if line.strip()[:1].isdigit()}
    assert {str(item.exit_code) for item in classes} <= documented


@pytest.mark.parametrize("name", main.COMMANDS)
def test_summary_in_the_list_is_that_of_the_command(name: str) -> None:
    command = import_module(f"shipctl.cli.commands.{name}").command
    assert isinstance(command, click.Command)
    assert command.name == name
    first = (command.help or "").partition("\n\n")[0].replace("\n", " ")
    assert first.rstrip(".").startswith(main.COMMANDS[name].rstrip(".")[:20]), first


@pytest.mark.parametrize("name", main.COMMANDS)
def test_every_command_has_help_and_every_option_too(call: Call, name: str) -> None:
    result = call(name, "--help")
    assert result.exit_code == 0
    assert result.stdout.startswith(f"Usage: shipctl {name} ")
    command = import_module(f"shipctl.cli.commands.{name}").command
    assert [
        option.name for option in command.params if isinstance(option, click.Option) and not option.help
    ] == []


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("aply",), "error: no command named 'aply'; did you mean 'apply'?\nsee `shipctl --help`\n"),
        (
            ("xyzzy",),
            f"error: no command named 'xyzzy'; the commands are {', '.join(main.COMMANDS)}\nsee `shipctl --help`\n",
        ),
        (
            ("apply", "--jobs", "0"),
            "error: invalid value for '--jobs' / '-j': 0 is not in the range x>=1\nsee `shipctl apply --help`\n",
        ),
        (
            ("apply", "--lock-timeout", "5"),
            (
                "error: invalid value for '--lock-timeout': '5' is not a duration; "
                "write a number with ns, us, ms, s, m, h or d, such as 30s\nsee `shipctl apply --help`\n"
            ),
        ),
    ],
)
def test_usage_errors_say_what_is_wrong_and_where_to_look(
    call: Call, arguments: tuple[str, ...], text: str
) -> None:
    result = call(*arguments)
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", text)


@pytest.mark.parametrize(
    "cls", [errors.StageError, errors.GateError, errors.LockedError, errors.WaitingError]
)
def test_an_error_is_its_message_and_its_exit_code(
    call: Call, monkeypatch: pytest.MonkeyPatch, cls: type[errors.ShipctlError]
) -> None:
    replace_plan(monkeypatch, cls("the sky is falling; take cover"))
    result = call("plan")
    assert (result.exit_code, result.stderr) == (cls.exit_code, "error: the sky is falling; take cover\n")


def test_an_error_with_json_is_a_document_too(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    replace_plan(monkeypatch, errors.LockedError("somebody is at it"))
    result = call("plan", "--json")
    assert result.document == {"schema": "shipctl.error/1", "exit_code": 8, "message": "somebody is at it"}
    assert result.stderr == "error: somebody is at it\n"


def test_a_usage_error_with_json_is_a_document_too(call: Call) -> None:
    assert call("plan", "--nonsense", "--json").document["exit_code"] == 2


def test_interrupted(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    replace_plan(monkeypatch, KeyboardInterrupt())
    result = call("plan")
    assert (result.exit_code, result.stderr) == (
        130,
        "error: interrupted; the same command goes on where it stood\n",
    )


def test_a_bug_is_one_line_and_a_file_without_secrets(
    call: Call, project: SampleProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("API_TOKEN", "hunter2-environment")
    replace_plan(monkeypatch, ZeroDivisionError("division by zero\nand more"))
    result = call("plan", "--set", "vars.token=hunter2-argument")
    (report,) = (project.root / ".shipctl").glob("crash-*.txt")
    assert result.exit_code == 70
    assert result.stderr == (
        f"bug: ZeroDivisionError: division by zero; the traceback is in {report}, please report it\n"
    )
    text = report.read_text()
    assert text.startswith(f"shipctl {shipctl.__version__}, Python ")
    assert "command: shipctl plan\n" in text
    assert "in fail" in text
    assert "hunter2" not in text
    assert stat.S_IMODE(report.stat().st_mode) == 0o600


def test_a_bug_where_nothing_can_be_written_goes_to_the_temporary_folder(
    call: Call, project: SampleProject, monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    (project.root / ".shipctl").rmdir()
    (project.root / ".shipctl").write_text("in the way")
    replace_plan(monkeypatch, RuntimeError("oops"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert f"the traceback is in {tmp_path}/crash-" in call("plan").stderr


def test_a_reader_that_goes_away_is_no_error(project: SampleProject) -> None:
    command = f"{sys.executable} -m shipctl.cli --help | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command], cwd=project.root, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stderr == ""
    assert done.stdout.strip() in {"0", "141"}


def test_options_may_stand_before_or_after_the_command(light: SampleProject, call: Call) -> None:
    assert call("-q", "validate", "spec.yaml").stdout == call("validate", "spec.yaml", "-q").stdout == ""
    assert call("validate", "spec.yaml").stdout == "spec.yaml: valid\n"


def run_on_a_terminal(project: SampleProject, *arguments: str, **environ: str) -> str:
    """Return what a command writes to a terminal."""
    pty = pytest.importorskip("pty")
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "shipctl.cli", *arguments],
        cwd=project.root,
        stdout=follower,
        stderr=follower,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TERM": "xterm", **environ},
    )
    os.close(follower)
    chunks = []
    while True:
        try:
            chunk = os.read(leader, 65536)
        except OSError:  # Linux says so when the other end is closed
            break
        if not chunk:
            break
        chunks.append(chunk)
    os.close(leader)
    assert process.wait(timeout=60) == 0
    return b"".join(chunks).decode()


def test_a_terminal_gets_colours_unless_told_otherwise(light: SampleProject) -> None:
    assert "\x1b[33mrun" in run_on_a_terminal(light, "plan", "spec.yaml")
    assert "\x1b" not in run_on_a_terminal(light, "plan", "spec.yaml", NO_COLOR="1")
    assert "\x1b" not in run_on_a_terminal(light, "plan", "spec.yaml", "--no-color")


def test_a_terminal_gets_the_live_display(light: SampleProject) -> None:
    text = run_on_a_terminal(light, "apply", "spec.yaml")
    assert "✓" in text
    assert "2 done" in text


def test_json_documents_name_their_schema(light: SampleProject, call: Call) -> None:
    for arguments in (
        ("validate", "spec.yaml"),
        ("plan", "spec.yaml"),
        ("apply", "spec.yaml"),
        ("history", "spec.yaml"),
    ):
        document = json.loads(call(*arguments, "--json").stdout)
        assert document["schema"].startswith("shipctl.")
