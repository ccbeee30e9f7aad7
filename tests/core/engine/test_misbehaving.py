"""Stages that break their promises: one clear failure each, and the rest goes on."""

from __future__ import annotations

import re
import uuid
from pathlib import Path

import pytest

from support_engine import EngineProject, processes_with, wait_for

SPEC = """
    - {id: bad, uses: USES, with: {how: HOW}EXTRA}
    - {id: after, uses: append, with: {label: after}}
    - {id: well, uses: make, needs: [], with: {label: well}}
    - {id: more, uses: append, with: {label: more}}
    """
ANY = r"\d+"
SLOW = pytest.mark.slow
"""For what starts a worker where another case stands for it in the quick tests."""
EVERYWHERE = {
    "raise": (1, "ValueError: no good"),
    "stage-error": (1, "the model has no head"),
    "plugin-error": (3, "the plugin is broken"),
    "unavailable": (2, "there is no moon tonight"),
    "gate-error": (4, "not good enough"),
    "undeclared": (3, "Misbehave.run returned more, which it does not declare; it declares thing"),
    "missing-file": (1, "output of kind thing names never.txt, which the stage did not write"),
}
IN_A_WORKER = {
    "segfault": (1, "its worker process died of SIGSEGV; its last words: about to fall"),
    "exit": (1, "its worker process ended with exit code 7"),
    "fork": (1, rf"left 1 process running, which was stopped: {ANY} (sleep 600)"),
    "daemonise": (1, rf"left 1 process running, which was stopped: {ANY} (sleep 600)"),
    **EVERYWHERE,
}
INLINE = {
    "raise-bare": (1, "RuntimeError"),
    "wrong-kind": (3, "Misbehave.run returned no thing as output 'thing'"),
    "not-outputs": (3, "Misbehave.run returned dict, not Outputs"),
    "outside": (1, "output of kind thing lies at /etc/hostname, outside the stage's work directory"),
    "symlink": (1, "output link.txt is not a plain file; copy what it points to"),
    "symlink-inside": (1, "output link.txt is not a plain file; copy what it points to"),
    "pipe": (1, "output pipe is not a plain file; copy what it points to"),
    **EVERYWHERE,
}


def assert_only_that_failed(project: EngineProject, expected: tuple[int, str], run_code: int) -> None:
    """The rest of the spec went on, and the next run finds everything in order."""
    assert run_code == expected[0]
    project.assert_whole()
    project.edit(
        next(line for line in project.path.read_text().splitlines() if "id: bad" in line),
        "  - {id: bad, uses: make, needs: []}",
    )
    again = project.apply()
    assert again.code == 0
    assert again.ran == ["", "after"], "what had finished is not run again"


def pattern(message: str) -> str:
    return re.escape(message).replace(re.escape(ANY), ANY)


@pytest.mark.parametrize(("how", "expected"), [
    pytest.param(how, expected, id=how, marks=[] if how in {"segfault", "fork", "raise", "undeclared"} else SLOW)
    for how, expected in IN_A_WORKER.items()
])  # fmt: skip
def test_a_stage_that_misbehaves_in_a_worker_fails_alone(
    project: EngineProject, how: str, expected: tuple[int, str]
) -> None:
    project.spec(SPEC.replace("USES", "misbehave").replace("HOW", how).replace("EXTRA", ""))
    run = project.apply()
    assert re.fullmatch(pattern(expected[1]), run.messages["bad"]), run.messages["bad"]
    verb = "was rejected" if expected[0] == 4 else "failed"
    assert run.statuses == {
        "bad": "rejected" if expected[0] == 4 else "failed", "after": "blocked", "well": "done", "more": "done",
    }  # fmt: skip
    assert run.messages["after"] == f"bad {verb}"
    assert run.result.message == f"bad: {run.messages['bad']}"
    assert_only_that_failed(project, expected, run.code)


@pytest.mark.parametrize(("how", "expected"), INLINE.items(), ids=list(INLINE))
def test_a_stage_that_misbehaves_inline_fails_alone_in_the_same_words(
    project: EngineProject, how: str, expected: tuple[int, str]
) -> None:
    project.spec(SPEC.replace("USES", "misbehave-inline").replace("HOW", how).replace("EXTRA", ""))
    run = project.apply()
    code, message = expected
    assert re.fullmatch(pattern(message.replace("Misbehave.run", "MisbehaveInline.run")), run.messages["bad"])
    assert_only_that_failed(project, (code, message), run.code)


@pytest.mark.parametrize("uses", ["misbehave", "misbehave-inline"])
def test_an_artifact_without_files_is_refused(project: EngineProject, uses: str) -> None:
    project.spec(SPEC.replace("USES", uses).replace("HOW", "missing-root").replace("EXTRA", ""))
    run = project.apply()
    assert run.statuses["bad"] == "failed"
    assert "has no files" in run.messages["bad"]
    assert_only_that_failed(project, (1, ""), run.code)


@pytest.mark.parametrize(("uses", "message"), [
    ("misbehave", "its worker process ended with exit code 1; its last words: enough"),
    ("misbehave-inline", "SystemExit: enough"),
])  # fmt: skip
def test_sys_exit_is_a_failure_of_the_stage(project: EngineProject, uses: str, message: str) -> None:
    project.spec(SPEC.replace("USES", uses).replace("HOW", "sys-exit").replace("EXTRA", ""))
    run = project.apply()
    assert run.messages["bad"] == message
    assert_only_that_failed(project, (1, ""), run.code)


@pytest.mark.parametrize(("how", "extra", "message"), [
    ("hang", "timeout: 400ms", "ran longer than its timeout of 0.4s and was stopped"),
    pytest.param("hang-hard", "timeout: 400ms", "ran longer than its timeout of 0.4s and was stopped", marks=SLOW),
    ("fill", "resources: {disk: 1MB}", "wrote {} to its work directory, and `resources.disk` allows 1MB"),
    pytest.param(
        "fill-at-once", "resources: {disk: 1MB}",
        "wrote {} to its work directory, and `resources.disk` allows 1MB", marks=SLOW,
    ),
])  # fmt: skip
def test_a_stage_that_takes_too_much_is_stopped(
    project: EngineProject, monkeypatch: pytest.MonkeyPatch, how: str, extra: str, message: str
) -> None:
    token = uuid.uuid4().hex
    monkeypatch.setenv("SHIPCTL_TEST_TOKEN", token)
    project.spec(SPEC.replace("USES", "misbehave").replace("HOW", how).replace("EXTRA", f", {extra}"))
    run = project.apply()
    assert re.fullmatch(re.escape(message).replace(r"\{\}", r"\S+"), run.messages["bad"]), run.messages["bad"]
    assert processes_with(token) == []
    assert_only_that_failed(project, (1, ""), run.code)


def test_a_timeout_holds_for_an_inline_stage_too(project: EngineProject) -> None:
    project.spec(
        SPEC.replace("USES", "misbehave-inline").replace("HOW", "hang").replace("EXTRA", ", timeout: 400ms")
    )
    run = project.apply()
    assert run.messages["bad"] == "ran longer than its timeout of 0.4s and was stopped"


def test_an_inline_stage_that_fills_its_work_directory_fails(project: EngineProject) -> None:
    extra = ", resources: {disk: 1MB}"
    project.spec(
        SPEC.replace("USES", "misbehave-inline").replace("HOW", "fill-at-once").replace("EXTRA", extra)
    )
    run = project.apply()
    assert run.messages["bad"] == "wrote 3MB to its work directory, and `resources.disk` allows 1MB"
    assert_only_that_failed(project, (1, ""), run.code)


def test_what_a_stage_forked_is_gone(project: EngineProject, monkeypatch: pytest.MonkeyPatch) -> None:
    token = uuid.uuid4().hex
    monkeypatch.setenv("SHIPCTL_TEST_TOKEN", token)
    for how in ("fork", "daemonise"):
        project.spec(f"- {{id: bad, uses: misbehave, with: {{how: {how}}}}}")
        assert project.apply().code == 1
        wait_for(lambda: not processes_with(token), 2)


def test_a_files_name_in_the_users_folder_does_not_shadow_pythons_own(project: EngineProject) -> None:
    """`python -m` would import `json` from the current folder."""
    (project.root / "json.py").write_text("raise RuntimeError('mine')\n")
    project.spec("- {id: w, uses: make-worker, with: {label: w}}")
    assert project.apply().code == 0


def test_a_hook_that_raises_changes_nothing_and_silences_nobody(project: EngineProject) -> None:
    from shipctl import Hooks, apply, events, hookimpl

    heard: list[str] = []

    class Loud:
        @hookimpl
        def shipctl_stage_finished(self, event: events.StageFinished) -> None:
            raise RuntimeError("boo")

    class Quiet:
        @hookimpl
        def shipctl_stage_finished(self, event: events.StageFinished) -> None:
            heard.append(event.node)

    project.spec("- {id: a, uses: make}\n- {id: b, uses: append}")
    hooks = Hooks([Quiet(), Loud(), Quiet()], installed=False)
    assert apply(project.plan(), hooks=hooks).exit_code == 0
    assert heard == ["a", "a", "b", "b"]
    assert len(hooks.problems) == 2
    assert hooks.problems[0].endswith("failed in shipctl_stage_finished: RuntimeError: boo")


def test_a_hook_that_does_not_import_is_reported(
    project: EngineProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shipctl import Hooks

    folder = tmp_path / "plug" / "broken_hook-1.0.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-hook\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text("[shipctl.hooks]\nbroken = no_such_module:Hook\n")
    monkeypatch.syspath_prepend(folder.parent)
    assert Hooks().problems == [
        "hook 'broken' (no_such_module:Hook) does not load: ModuleNotFoundError: No module named 'no_such_module'"
    ]
