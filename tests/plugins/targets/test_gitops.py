"""Releases by commits to a Git repository: what is committed, by whom, and how one goes back."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path

import pytest
import yaml

from shipctl.errors import SpecError, StageError, UnavailableError
from shipctl.release.delegated import Standing
from shipctl.release.strategy import Strategy, canary_steps
from shipctl.spec.models import StoreSpec
from shipctl.stages.context import CheckContext
from shipctl_plugins._gitops.options import GitopsOptions
from shipctl_plugins._kubernetes.app import LABEL_REVISION, short
from shipctl_plugins.targets.gitops import Gitops
from support_gitops import (
    FOLDER,
    GIT,
    Open,
    Remote,
    StumblingGit,
    candidate,
    opener,
    over_http,
    submit_elsewhere,
)

ROLLING = Strategy(name="rolling")
BLUEGREEN = Strategy.model_validate({"name": "bluegreen", "scaleDownDelay": "0s"})
TOKEN = "hush-4711-hush/+="


@pytest.fixture
def remote(tmp_path: Path) -> Remote:
    return Remote(tmp_path)


@pytest.fixture
def open_it(tmp_path: Path, remote: Remote) -> Open:
    return opener(tmp_path, remote)


@pytest.fixture
def stumbling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StumblingGit:
    """The `git` that the target finds writes down its calls, and stumbles as it is told."""
    made = StumblingGit(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{made.folder}{os.pathsep}{os.environ['PATH']}")
    return made


def kinds(remote: Remote) -> list[str]:
    return sorted(f"{item['kind']}/{item['metadata']['name']}" for item in remote.objects())


def selected(remote: Remote) -> dict[str, str]:
    """Return the selector of the Service that clients use."""
    (found,) = [
        item for item in remote.objects() if (item["kind"], item["metadata"]["name"]) == ("Service", "digits")
    ]
    return dict(found["spec"]["selector"])


def without_state(files: dict[str, str]) -> dict[str, str]:
    return {name: text for name, text in files.items() if not name.startswith(".shipctl-")}


# -- what is committed ---------------------------------------------------------------------------------------


def test_a_release_is_one_commit_that_says_what_it_is(remote: Remote, open_it: Open, tmp_path: Path) -> None:
    first = candidate(tmp_path, "1.0.0")
    said = open_it(git={"author": "Release Bot <bot@example.com>"}).submit(first, ROLLING)
    assert said.message == f"1.0.0 is committed to main as {remote.head()[:10]}"
    assert remote.count() == 2
    assert remote.message().splitlines() == [
        "Release Bot <bot@example.com>",
        "digits 1.0.0: release",
        "",
        "Pipeline: digits",
        "Version: 1.0.0",
        f"Revision: {first.revision}",
        "Stage: release",
        "Run: run-1",
        "",
    ]
    assert remote.git("show", "main:README.md") == "clusters\n"


def test_a_message_of_ones_own(remote: Remote, open_it: Open, tmp_path: Path) -> None:
    template = "chore({stage}): {pipeline} to {version} by {run}\n\n{what} of {revision}"
    open_it(git={"message": template}).submit(candidate(tmp_path, "1.0.0"), ROLLING)
    assert remote.message().splitlines()[1] == "chore(release): digits to 1.0.0 by run-1"
    assert "Run: run-1" in remote.message()


def test_the_tree_is_a_kustomization_of_one_deployment_that_the_cluster_rolls(
    remote: Remote, open_it: Open, tmp_path: Path
) -> None:
    first = candidate(tmp_path, "1.0.0")
    target = open_it(namespace="models", replicas=3)
    target.submit(
        first, Strategy.model_validate({"name": "rolling", "surge": {"maxSurge": 1, "maxUnavailable": 0}})
    )
    assert kinds(remote) == [
        "Deployment/digits",
        "NetworkPolicy/digits",
        "Service/digits",
        f"Service/digits-{short(first.revision)}",
        "ServiceAccount/digits",
    ]
    (made,) = [item for item in remote.objects() if item["kind"] == "Deployment"]
    assert made["metadata"]["namespace"] == "models"
    spec = made["spec"]
    assert spec["replicas"] == 3
    assert spec["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    pods = spec["template"]["metadata"]["labels"]
    assert spec["selector"]["matchLabels"].items() <= pods.items()
    assert selected(remote).items() <= pods.items()
    assert LABEL_REVISION not in {*spec["selector"]["matchLabels"], *selected(remote)}
    uri = f"--model-repository=s3://models/triton/{first.repository.digest}"
    assert uri in spec["template"]["spec"]["containers"][0]["args"]


def test_manifests_are_the_tree_that_is_committed(remote: Remote, open_it: Open, tmp_path: Path) -> None:
    first = candidate(tmp_path, "1.0.0")
    target = open_it()
    target.submit(first, ROLLING)
    assert target.manifests(first) == without_state(remote.files())


def test_committing_again_what_is_there_makes_no_commit(
    remote: Remote, open_it: Open, tmp_path: Path
) -> None:
    first = candidate(tmp_path, "1.0.0")
    open_it().submit(first, ROLLING)
    said = open_it(run="run-2", machine="there").submit(first, ROLLING)
    assert said.message == f"1.0.0 stands in commit {remote.head()[:10]} already"
    assert remote.count() == 2


def test_files_of_an_earlier_release_go_and_those_of_others_stay(
    remote: Remote, open_it: Open, tmp_path: Path
) -> None:
    first, second = candidate(tmp_path, "1.0.0"), candidate(tmp_path, "1.1.0")
    target = open_it()
    target.submit(first, ROLLING)
    remote.commit({f"{FOLDER}/patch.yaml": "mine: true\n", "other/x.yaml": "y: 1\n"}, "a patch")
    target.submit(second, ROLLING)
    files = remote.files()
    assert files["patch.yaml"] == "mine: true\n"
    assert f"service-digits-{short(second.revision)}.yaml" in files
    assert f"service-digits-{short(first.revision)}.yaml" not in files
    assert "patch.yaml" not in files["kustomization.yaml"]
    assert remote.git("show", "main:other/x.yaml") == "y: 1\n"


def test_somebody_elses_file_is_not_written_over(remote: Remote, open_it: Open, tmp_path: Path) -> None:
    remote.commit({f"{FOLDER}/kustomization.yaml": "resources: []\n"}, "mine")
    with pytest.raises(
        StageError, match=r"has kustomization\.yaml, which shipctl has not written; move that away"
    ):
        open_it().submit(candidate(tmp_path, "1.0.0"), ROLLING)
    assert remote.count() == 2


def test_diff_is_against_what_is_committed(remote: Remote, open_it: Open, tmp_path: Path) -> None:
    first, second = candidate(tmp_path, "1.0.0"), candidate(tmp_path, "1.1.0")
    target = open_it()
    lines = target.diff(first)
    assert lines[0] == "--- /dev/null"
    assert f"+++ b/{FOLDER}/deployment-digits.yaml" in lines
    target.submit(first, ROLLING)
    assert target.diff(first) == []
    lines = target.diff(second)
    assert f"-            - --model-repository=s3://models/triton/{first.repository.digest}" in lines
    assert f"+            - --model-repository=s3://models/triton/{second.repository.digest}" in lines
    assert remote.count() == 2


def test_the_model_lies_in_the_store_before_anything_is_committed(
    remote: Remote, open_it: Open, tmp_path: Path
) -> None:
    first = candidate(tmp_path, "1.0.0")
    open_it().submit(first, ROLLING)
    laid = tmp_path / "store" / "repositories" / first.repository.digest / "digits" / "1" / "model.onnx"
    assert laid.read_text() == "1.0.0"


def test_a_damaged_state_is_named(remote: Remote, open_it: Open, tmp_path: Path) -> None:
    remote.commit({f"{FOLDER}/.shipctl-release": "{"}, "oops")
    with pytest.raises(
        StageError, match=rf"^{FOLDER}/\.shipctl-release of file://.* is damaged \(1 errors\); restore"
    ):
        open_it().follow("0" * 64)


# -- others push at the same time ------------------------------------------------------------------------------


def test_a_commit_of_somebody_else_in_between_is_built_upon(
    remote: Remote, open_it: Open, tmp_path: Path, stumbling: StumblingGit
) -> None:
    other = remote.commit({"other.txt": "other"}, "somebody else", branch="main")
    remote.git("update-ref", "refs/heads/main", f"{other}~1")
    stumbling.at_push(f"git --git-dir={remote.path} update-ref refs/heads/main {other}")
    lines: list[str] = []
    open_it(log=lines.append).submit(candidate(tmp_path, "1.0.0"), ROLLING)
    assert remote.git("rev-parse", "main~1").strip() == other
    assert remote.git("show", "main:other.txt") == "other"
    assert lines == ["somebody else has pushed to main meanwhile; doing it again on top of that"]


def test_of_two_releases_at_once_both_are_in_the_history(
    remote: Remote, open_it: Open, tmp_path: Path, stumbling: StumblingGit
) -> None:
    first, second = candidate(tmp_path, "1.0.0"), candidate(tmp_path, "1.1.0")
    open_it(machine="there").submit(second, ROLLING)
    theirs = remote.head()
    remote.git("update-ref", "refs/heads/main", f"{theirs}~1")
    stumbling.at_push(f"git --git-dir={remote.path} update-ref refs/heads/main {theirs}")
    target = open_it()
    target.submit(first, ROLLING)
    assert target.follow(first.revision).current == first.revision
    assert json.loads(remote.files()[".shipctl-release"])["history"] == {second.revision: theirs}
    assert f"service-digits-{short(second.revision)}.yaml" not in remote.files()


def test_it_gives_up_where_others_are_always_faster(
    remote: Remote, open_it: Open, tmp_path: Path, stumbling: StumblingGit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shipctl_plugins._gitops.git._BACKOFF", 0.0)
    stumbling.at_push('echo "! refs/x:refs/y [rejected] (stale info)"; exit 1', once=False)
    with pytest.raises(
        StageError, match=r"others push to main of .* all the time; run the same command again"
    ):
        open_it().submit(candidate(tmp_path, "1.0.0"), ROLLING)


# -- being killed, and lost answers ------------------------------------------------------------------------------


def test_killed_between_commit_and_push_it_goes_on(
    remote: Remote, tmp_path: Path, stumbling: StumblingGit
) -> None:
    stumbling.at_push("kill -9 $PPID; exit 1")
    assert submit_elsewhere(tmp_path, "1.0.0").returncode == -9
    assert remote.count() == 1
    (tmp_path / "here/.shipctl/targets/gitops/digits.git/shallow.lock").write_text("left behind")
    done = submit_elsewhere(tmp_path, "1.0.0")
    assert done.returncode == 0, done.stderr
    assert remote.count() == 2
    assert done.stdout == f"1.0.0 is committed to main as {remote.head()[:10]}\n"


def test_killed_after_the_push_nothing_is_committed_twice(
    remote: Remote, tmp_path: Path, stumbling: StumblingGit
) -> None:
    stumbling.at_push(f'{GIT} "$@"; kill -9 $PPID; exit 1')
    assert submit_elsewhere(tmp_path, "1.0.0").returncode == -9
    assert remote.count() == 2
    assert (
        submit_elsewhere(tmp_path, "1.0.0").stdout == f"1.0.0 stands in commit {remote.head()[:10]} already\n"
    )
    assert remote.count() == 2


def test_a_push_whose_answer_is_lost_counts(
    remote: Remote, open_it: Open, tmp_path: Path, stumbling: StumblingGit
) -> None:
    stumbling.at_push(
        f'{GIT} "$@" >/dev/null; echo "fatal: the remote end hung up unexpectedly" >&2; exit 128'
    )
    said = open_it().submit(candidate(tmp_path, "1.0.0"), ROLLING).message
    assert said == f"1.0.0 is committed to main as {remote.head()[:10]}"
    assert remote.count() == 2


# -- who may, and with what ------------------------------------------------------------------------------------


def everything_in(folder: Path) -> bytes:
    return b"\n".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_a_token_reaches_the_server_and_nothing_else(
    remote: Remote, open_it: Open, tmp_path: Path, stumbling: StumblingGit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEPLOY_TOKEN", TOKEN)
    monkeypatch.setenv("GIT_TRACE_CURL", "1")
    monkeypatch.setenv("GIT_CURL_VERBOSE", "1")
    lines: list[str] = []
    with over_http(remote, "git", TOKEN) as url:
        git = {"repository": url, "tokenEnv": "DEPLOY_TOKEN"}
        target = open_it(git=git, log=lines.append)
        target.submit(candidate(tmp_path, "1.0.0"), ROLLING)
        assert target.follow(candidate(tmp_path, "1.0.0").revision).standing is Standing.HEALTHY
        assert remote.count() == 2
        monkeypatch.setenv("DEPLOY_TOKEN", "wrong-4712")
        with pytest.raises(UnavailableError) as caught:
            open_it(git=git).follow("0" * 64)
    assert f"{url} (main) cannot be reached: Authentication failed for '{url}/'" in str(caught.value)
    for secret in (TOKEN, "wrong-4712"):
        assert secret not in stumbling.said
        assert secret not in "\n".join([*lines, str(caught.value), remote.message()])
        assert secret.encode() not in everything_in(tmp_path / "here")
        assert secret.encode() not in everything_in(remote.path)


def test_a_server_that_tells_the_token_is_not_quoted(
    remote: Remote, open_it: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEPLOY_TOKEN", TOKEN)
    remote.hook("pre-receive", f"echo 'no rights for {TOKEN}' >&2; exit 1")
    with over_http(remote, "git", TOKEN) as url:
        target = open_it(git={"repository": url, "tokenEnv": "DEPLOY_TOKEN"})
        with pytest.raises(StageError, match=r"pre-receive hook declined \(no rights for \*\*\*\)$"):
            target.submit(candidate(tmp_path, "1.0.0"), ROLLING)


def test_gits_own_helpers_are_asked_where_no_token_is_named(
    remote: Remote, open_it: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "gitconfig"
    config.write_text(f'[credential]\n\thelper = "!f() {{ echo username=git; echo password={TOKEN}; }}; f"\n')
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(config))
    with over_http(remote, "git", TOKEN) as url:
        open_it(git={"repository": url}).submit(candidate(tmp_path, "1.0.0"), ROLLING)
    assert remote.count() == 2


def test_nobody_is_asked_for_a_password(
    remote: Remote, open_it: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    with over_http(remote, "git", TOKEN) as url:
        began = time.monotonic()
        with pytest.raises(UnavailableError, match="could not read Username"):
            open_it(git={"repository": url}).follow("0" * 64)
    assert time.monotonic() - began < 10


def test_a_token_that_is_not_there_is_named(open_it: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_SUCH_TOKEN", raising=False)
    target = open_it(git={"repository": "https://git.invalid/x.git", "tokenEnv": "NO_SUCH_TOKEN"})
    with pytest.raises(UnavailableError, match=r"^the environment variable NO_SUCH_TOKEN is not set; export"):
        target.follow("0" * 64)


def test_a_server_that_never_answers_is_not_waited_for(open_it: Open) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        target = open_it(git={"repository": f"http://127.0.0.1:{port}/x.git", "timeout": "1s"})
        began = time.monotonic()
        with pytest.raises(
            UnavailableError, match="did not answer within 1 s; see whether it works, or raise git"
        ):
            target.follow("0" * 64)
    assert time.monotonic() - began < 5


def test_a_server_that_refuses_is_quoted(remote: Remote, open_it: Open, tmp_path: Path) -> None:
    remote.hook("pre-receive", 'echo "main is protected, open a pull request" >&2; exit 1')
    with pytest.raises(StageError) as caught:
        open_it().submit(candidate(tmp_path, "1.0.0"), ROLLING)
    assert str(caught.value) == (
        f"{remote.url} (main) does not take a commit to main: pre-receive hook declined "
        "(main is protected, open a pull request)"
    )


def test_hooks_and_settings_of_the_user_change_nothing(
    remote: Remote, open_it: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    for name in ("pre-push", "reference-transaction", "post-commit"):
        (hooks / name).write_text(f"#!/bin/sh\ntouch {tmp_path}/hooked\nexit 1\n")
        (hooks / name).chmod(0o755)
    config = tmp_path / "gitconfig"
    config.write_text(
        f"[core]\n\thooksPath = {hooks}\n\tautocrlf = true\n[commit]\n\tgpgSign = true\n[push]\n\tgpgSign = true\n"
        "[user]\n\tname = Somebody\n\temail = some@body\n"
    )
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(config))
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("GIT_AUTHOR_NAME", "Somebody Else")
    monkeypatch.setenv("DEPLOY_TOKEN", TOKEN)
    with over_http(remote, "git", TOKEN) as url:
        open_it(git={"repository": url, "tokenEnv": "DEPLOY_TOKEN"}).submit(
            candidate(tmp_path, "1.0.0"), ROLLING
        )
    monkeypatch.delenv("GIT_DIR")
    assert remote.message().startswith("shipctl <shipctl@localhost>\n")
    assert not (tmp_path / "hooked").exists()


# -- before anything has run ---------------------------------------------------------------------------------


def check(tmp_path: Path, remote: Remote, **git: str) -> None:
    given = {"git": {"repository": remote.url, "path": FOLDER, **git}}
    options = GitopsOptions.model_validate({"modelRepository": "s3://models/triton", **given})
    Gitops.check(
        options,
        CheckContext(project=tmp_path, pipeline="digits", store=StoreSpec(uri="s3://b/c"), base=tmp_path),
    )


def test_check_looks_for_the_branch(tmp_path: Path, remote: Remote) -> None:
    before = sorted(tmp_path.rglob("*"))
    check(tmp_path, remote)
    check(tmp_path, remote, repository="remote.git")
    with pytest.raises(
        SpecError, match=r"^file://.* has no branch prod; create it with one commit, or correct git\.b"
    ):
        check(tmp_path, remote, branch="prod")
    with pytest.raises(
        UnavailableError, match=r"nowhere \(main\) cannot be reached: .*does not appear to be a git rep"
    ):
        check(tmp_path, remote, repository="nowhere")
    assert sorted(tmp_path.rglob("*")) == before


def test_check_needs_git(tmp_path: Path, remote: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UnavailableError, match=r"^git is not installed; install it"):
        check(tmp_path, remote)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"repository": "https://me:pass@example.com/x"}, "has credentials in it"),
        ({"repository": "--upload-pack=evil"}, "is no address of a Git repository"),
        ({"repository": "ext::sh -c evil"}, "is no address of a Git repository"),
        ({"repository": "ext::evil"}, "names a helper program"),
        ({"path": "../up"}, "is no folder inside a repository"),
        ({"path": "/abs"}, "is no folder inside a repository"),
        ({"path": "a/.git/hooks"}, "is no folder inside a repository"),
        ({"branch": "--force"}, "is no name of a branch"),
        ({"branch": "refs/heads/main"}, "is no name of a branch"),
        ({"branch": "a..b"}, "is no name of a branch"),
        ({"author": "somebody"}, "is no author; write it as"),
        (
            {"message": "{who} did it"},
            r"there is no \{who\} for a commit's message; there are \{what\}, \{pipeline\}",
        ),
        ({"tokenEnv": "glpat-123"}, "never write the token itself"),
        (
            {"repository": "git@example.com:x.git", "tokenEnv": "TOKEN"},
            "tokenEnv is for a repository at https://",
        ),
        (
            {"repository": "http://example.com/x.git", "tokenEnv": "TOKEN"},
            "for everybody to read; write https://",
        ),
    ],
)
def test_options_that_cannot_be_meant(given: dict[str, str], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        GitopsOptions.model_validate({"git": {"repository": "https://example.com/x", "path": "a", **given}})


@pytest.mark.parametrize("path", [".", "./", "a", "a/b/", "./a"])
def test_folders_that_can_be_meant(path: str) -> None:
    made = GitopsOptions.model_validate({"git": {"repository": "../x", "path": path}})
    assert made.git.path == path.strip("./")


def test_at_the_top_of_a_repository(remote: Remote, open_it: Open, tmp_path: Path) -> None:
    first = candidate(tmp_path, "1.0.0")
    target = open_it(git={"path": "."})
    target.submit(first, ROLLING)
    assert "deployment-digits.yaml" in remote.git("ls-tree", "--name-only", "main").splitlines()
    assert target.follow(first.revision).standing is Standing.HEALTHY
    assert "-" not in {line[:1] for line in target.diff(first)}


def test_strategies_that_shift_weights_are_refused(open_it: Open) -> None:
    options = open_it().options
    for name in ("canary", "ab-test", "shadow"):
        steps = canary_steps() if name == "canary" else ()
        why = Gitops.supports(Strategy.model_validate({"name": name, "steps": steps}), options)
        assert why is not None
        assert why.startswith(f"the target gitops cannot do {name}: ")
        assert why.endswith(
            "use rolling or bluegreen with it, or one of the targets kubernetes, argo-rollouts and kserve"
        )
    assert Gitops.supports(ROLLING, options) is None
    assert Gitops.supports(BLUEGREEN, options) is None


def test_the_plan_says_what_stands_where(remote: Remote, open_it: Open, tmp_path: Path) -> None:
    target = open_it()
    assert target.preview("x") == [
        f"nothing stands in {FOLDER} of {remote.url} (main), commit {remote.head()[:10]}"
    ]
    first = candidate(tmp_path, "1.0.0")
    target.submit(first, ROLLING)
    assert target.preview("x")[0].startswith(f"1.0.0 ({first.revision[:12]}) stands in {FOLDER} of ")


def test_a_preflight_looks_at_the_objects_and_asks_the_model(open_it: Open, tmp_path: Path) -> None:
    found = open_it().preflight(candidate(tmp_path, "1.0.0"))
    assert [verdict.gate for verdict in found.verdicts] == ["manifests", "preflight"]
    assert found.verdicts[0].message == "5 objects are valid for Kubernetes 1.34"
    templates = tmp_path / "templates"
    templates.mkdir()
    (templates / "serviceaccount.yaml.j2").write_text(
        "apiVersion: v1\nkind: ServiceAccount\nmetadata: {{ metadata | toyaml }}\nsecrets: none\n"
    )
    bad = open_it(templates=str(templates)).preflight(candidate(tmp_path, "1.0.0"))
    assert [str(verdict.outcome) for verdict in bad.verdicts] == ["fail"]
    assert bad.message.startswith("ServiceAccount digits: ")


# -- going back ----------------------------------------------------------------------------------------------


def test_going_back_commits_the_tree_before_and_pins(remote: Remote, open_it: Open, tmp_path: Path) -> None:
    first, second = candidate(tmp_path, "1.0.0"), candidate(tmp_path, "1.1.0")
    open_it().submit(first, ROLLING)
    good = without_state(remote.files())
    open_it(replicas=5).submit(second, ROLLING)
    assert without_state(remote.files()) != good
    said = open_it(machine="there", run="run-9", replicas=5).abort(second.revision, first.revision)
    assert said.message == f"1.1.0: back to 1.0.0: commit {remote.head()[:10]}"
    assert without_state(remote.files()) == good
    pins = json.loads(remote.files()[".shipctl-pins"])["pins"]
    assert (list(pins), pins[second.revision]["version"]) == ([second.revision], "1.1.0")
    assert "digits 1.1.0: back to 1.0.0" in remote.message()
    assert remote.count() == 4
    open_it().abort(second.revision, first.revision)
    assert remote.count() == 4


def test_what_is_pinned_counts_as_rolled_back_on_every_machine(
    remote: Remote, open_it: Open, tmp_path: Path
) -> None:
    first, second = candidate(tmp_path, "1.0.0"), candidate(tmp_path, "1.1.0")
    open_it().submit(first, ROLLING)
    open_it().submit(second, ROLLING)
    open_it().abort(second.revision, first.revision)
    records, etag = open_it(machine="elsewhere").records().load()
    gone = records.was_rolled_back(second.revision)
    assert gone is not None
    assert (gone.version, gone.message) == ("1.1.0", "rolled back elsewhere, as the repository says")
    assert records.stable is None
    store = open_it(machine="elsewhere").records()
    store.save(records, etag)
    assert open_it(machine="elsewhere").records().load()[0] == records


def test_releasing_again_what_was_rolled_back_removes_the_pin(
    remote: Remote, open_it: Open, tmp_path: Path
) -> None:
    first, second = candidate(tmp_path, "1.0.0"), candidate(tmp_path, "1.1.0")
    for each in (first, second):
        open_it().submit(each, ROLLING)
    open_it().abort(second.revision, first.revision)
    open_it().submit(second, ROLLING)
    assert ".shipctl-pins" not in remote.files()
    assert open_it(machine="elsewhere").records().load()[0].records == ()


def test_a_rollback_restores_the_tree_and_pins_what_it_leaves(
    remote: Remote, open_it: Open, tmp_path: Path
) -> None:
    first, second = candidate(tmp_path, "1.0.0"), candidate(tmp_path, "1.1.0")
    open_it().submit(first, ROLLING)
    good = without_state(remote.files())
    open_it().submit(second, ROLLING)
    open_it(intent="rollback", replicas=7).submit(first, ROLLING)
    assert without_state(remote.files()) == good
    assert list(json.loads(remote.files()[".shipctl-pins"])["pins"]) == [second.revision]


def test_a_first_release_goes_back_to_nothing(remote: Remote, open_it: Open, tmp_path: Path) -> None:
    first = candidate(tmp_path, "1.0.0")
    target = open_it()
    target.submit(first, ROLLING)
    target.abort(first.revision, None)
    assert kinds(remote) == ["ConfigMap/digits-nothing"]
    assert target.follow(first.revision).standing is Standing.ABSENT
    assert target.status() == ()
    assert list(json.loads(remote.files()[".shipctl-pins"])["pins"]) == [first.revision]


def test_a_person_who_reverts_the_commit_is_seen(remote: Remote, open_it: Open, tmp_path: Path) -> None:
    first, second = candidate(tmp_path, "1.0.0"), candidate(tmp_path, "1.1.0")
    target = open_it()
    target.submit(first, ROLLING)
    target.submit(second, ROLLING)
    remote.revert(remote.head())
    seen = target.follow(second.revision)
    assert (seen.current, seen.standing) == (first.revision, Standing.ABSENT)


def test_a_history_without_the_tree_before_says_so(remote: Remote, open_it: Open, tmp_path: Path) -> None:
    first, second = candidate(tmp_path, "1.0.0"), candidate(tmp_path, "1.1.0")
    open_it().submit(first, ROLLING)
    open_it().submit(second, ROLLING)
    rewritten = remote.git("commit-tree", "main^{tree}", "-m", "all of it anew").strip()
    remote.git("update-ref", "refs/heads/main", rewritten)
    remote.git("reflog", "expire", "--expire=now", "--all")
    remote.git("gc", "--quiet", "--prune=now")
    with pytest.raises(
        StageError, match=r"does not have commit [0-9a-f]{10}, in which it stood .* any more; apply the"
    ):
        open_it(machine="new").abort(second.revision, first.revision)
    open_it().abort(second.revision, first.revision)  # where it was released, the copy still has it


def test_a_way_back_that_may_not_be_pushed_waits_on_a_branch(
    remote: Remote, open_it: Open, tmp_path: Path
) -> None:
    first, second = candidate(tmp_path, "1.0.0"), candidate(tmp_path, "1.1.0")
    open_it().submit(first, ROLLING)
    open_it().submit(second, ROLLING)
    remote.hook("pre-receive", "while read old new ref; do [ $ref != refs/heads/main ] || exit 1; done")
    with pytest.raises(
        StageError, match=r"the way back is on the branch shipctl/digits-back \([0-9a-f]{10}\): merge it"
    ):
        open_it().abort(second.revision, first.revision)
    remote.git("update-ref", "refs/heads/main", "refs/heads/shipctl/digits-back")
    assert open_it().follow(first.revision).standing is Standing.HEALTHY


def test_down_takes_everything_out(remote: Remote, open_it: Open, tmp_path: Path) -> None:
    first = candidate(tmp_path, "1.0.0")
    target = open_it()
    target.submit(first, ROLLING)
    assert target.down() == [f"digits is taken out of {remote.url} (main): commit {remote.head()[:10]}"]
    assert kinds(remote) == ["ConfigMap/digits-nothing"]
    assert target.down() == []
    target.submit(first, ROLLING)
    assert "Deployment/digits" in kinds(remote)


# -- bluegreen -----------------------------------------------------------------------------------------------


def test_bluegreen_is_three_commits(remote: Remote, open_it: Open, tmp_path: Path) -> None:
    first, second = candidate(tmp_path, "1.0.0"), candidate(tmp_path, "1.1.0")
    target = open_it()
    target.submit(first, BLUEGREEN)
    assert target.follow(first.revision).standing is Standing.HEALTHY
    target.submit(second, BLUEGREEN)
    names = [f"Deployment/digits-{short(each.revision)}" for each in (first, second)]
    assert set(names) <= set(kinds(remote))
    assert selected(remote)[LABEL_REVISION] == short(first.revision)
    seen = target.follow(second.revision)
    assert (seen.standing, seen.stable, seen.weight, seen.step) == (Standing.PAUSED, first.revision, 0, 0)
    assert seen.until is not None
    target.resume(second.revision)
    assert set(names) <= set(kinds(remote))
    assert selected(remote)[LABEL_REVISION] == short(second.revision)
    seen = target.follow(second.revision)
    assert (seen.standing, seen.stable, seen.weight, seen.step) == (Standing.PAUSED, first.revision, 100, 1)
    target.resume(second.revision)
    assert names[0] not in kinds(remote)
    seen = target.follow(second.revision)
    assert (seen.standing, seen.stable, seen.weight, seen.step) == (Standing.HEALTHY, second.revision, 100, 2)
    count = remote.count()
    target.resume(second.revision)
    assert remote.count() == count == 5


def test_bluegreen_waits_for_people_and_for_the_old_one(
    remote: Remote, open_it: Open, tmp_path: Path
) -> None:
    first, second = candidate(tmp_path, "1.0.0"), candidate(tmp_path, "1.1.0")
    given = {"name": "bluegreen", "autoPromotion": False, "scaleDownDelay": "1h", "progressDeadline": "2m"}
    strategy = Strategy.model_validate(given)
    target = open_it(now=lambda: 1000.0)
    target.submit(first, strategy)
    target.submit(second, strategy)
    seen = target.follow(second.revision)
    assert (seen.asks, seen.until) == ("promote", None)
    target.resume(second.revision)
    seen = target.follow(second.revision)
    assert (seen.asks, seen.until) == ("", 1060.0)  # half of what may pass without any progress


@pytest.mark.parametrize("steps", [0, 1])
def test_bluegreen_goes_back_in_one_commit_while_the_old_one_is_warm(
    remote: Remote, open_it: Open, tmp_path: Path, steps: int
) -> None:
    first, second = candidate(tmp_path, "1.0.0"), candidate(tmp_path, "1.1.0")
    target = open_it()
    target.submit(first, BLUEGREEN)
    good = without_state(remote.files())
    target.submit(second, BLUEGREEN)
    for _ in range(steps):
        target.resume(second.revision)
    count = remote.count()
    target.abort(second.revision, first.revision)
    assert without_state(remote.files()) == good
    assert remote.count() == count + 1
    assert target.follow(second.revision).weight == 0
    assert target.follow(first.revision).standing is Standing.HEALTHY


def test_bluegreen_brings_the_old_ones_pods_first_once_they_are_gone(
    remote: Remote, open_it: Open, tmp_path: Path
) -> None:
    first, second = candidate(tmp_path, "1.0.0"), candidate(tmp_path, "1.1.0")
    target = open_it()
    target.submit(first, BLUEGREEN)
    good = without_state(remote.files())
    target.submit(second, BLUEGREEN)
    for _ in range(2):
        target.resume(second.revision)
    assert "the pods of 1.0.0 come back beside it" in target.abort(second.revision, first.revision).message
    assert selected(remote)[LABEL_REVISION] == short(second.revision)
    assert f"Deployment/digits-{short(first.revision)}" in kinds(remote)
    assert target.follow(first.revision).standing is Standing.PAUSED
    target.abort(second.revision, first.revision)
    assert without_state(remote.files()) == good


def test_from_rolling_to_bluegreen_what_serves_goes_on(remote: Remote, open_it: Open, tmp_path: Path) -> None:
    first, second = candidate(tmp_path, "1.0.0"), candidate(tmp_path, "1.1.0")
    target = open_it()
    target.submit(first, ROLLING)
    target.submit(second, BLUEGREEN)
    assert "Deployment/digits" in kinds(remote)
    assert selected(remote)[LABEL_REVISION] == short(first.revision)
    target.resume(second.revision)
    target.resume(second.revision)
    assert "Deployment/digits" not in kinds(remote)
    with pytest.raises(
        StageError, match=r"^1\.1\.0 serves as bluegreen, and to go on by rolling would take it away"
    ):
        target.submit(candidate(tmp_path, "1.2.0"), ROLLING)


# -- pull requests -------------------------------------------------------------------------------------------


def test_a_pull_request_waits_until_it_is_merged(remote: Remote, open_it: Open, tmp_path: Path) -> None:
    first, second = candidate(tmp_path, "1.0.0"), candidate(tmp_path, "1.1.0")
    open_it().submit(first, ROLLING)
    target = open_it(git={"pullRequest": True})
    said = target.submit(second, ROLLING).message
    assert said == f"1.1.0 is committed to shipctl/digits-1.1.0 as {remote.head('shipctl/digits-1.1.0')[:10]}"
    assert remote.count() == 2
    seen = target.follow(second.revision)
    assert (seen.standing, seen.current, seen.stable) == (Standing.PAUSED, second.revision, first.revision)
    assert (seen.asks, seen.weight) == ("promote", 0)
    assert seen.message.startswith("shipctl/digits-1.1.0 waits to be merged into main of file://")
    tip = remote.head("shipctl/digits-1.1.0")
    target.submit(second, ROLLING)
    assert remote.head("shipctl/digits-1.1.0") == tip
    remote.git("update-ref", "refs/heads/main", tip)
    assert target.follow(second.revision).standing is Standing.HEALTHY


def test_an_approval_merges_what_waits(remote: Remote, open_it: Open, tmp_path: Path) -> None:
    first, second = candidate(tmp_path, "1.0.0"), candidate(tmp_path, "1.1.0")
    open_it().submit(first, ROLLING)
    target = open_it(git={"pullRequest": True})
    target.submit(second, ROLLING)
    remote.commit({"other.txt": "other"}, "somebody else")
    target.resume(second.revision)
    assert remote.branches() == ["main"]
    assert remote.git("show", "main:other.txt") == "other"
    assert target.follow(second.revision).standing is Standing.HEALTHY
    target.abort(second.revision, first.revision)
    assert target.follow(first.revision).standing is Standing.HEALTHY


def test_a_pull_request_that_is_given_up_leaves_nothing(
    remote: Remote, open_it: Open, tmp_path: Path
) -> None:
    first, second = candidate(tmp_path, "1.0.0"), candidate(tmp_path, "1.1.0")
    open_it().submit(first, ROLLING)
    target = open_it(git={"pullRequest": True})
    target.submit(second, ROLLING)
    assert (
        target.abort(second.revision, first.revision).message == "the branch shipctl/digits-1.1.0 is removed"
    )
    assert remote.branches() == ["main"]
    assert remote.count() == 2
    assert target.follow(second.revision).current == first.revision


def test_every_object_reads_back_as_it_was_written(remote: Remote, open_it: Open, tmp_path: Path) -> None:
    open_it(ingress={"host": "digits.example.com"}).submit(candidate(tmp_path, "1.0.0"), ROLLING)
    files = remote.files()
    listed = yaml.safe_load(files["kustomization.yaml"])["resources"]
    assert sorted(listed) == sorted(set(without_state(files)) - {"kustomization.yaml"})
    assert all(len(list(yaml.safe_load_all(files[name]))) == 1 for name in listed)
