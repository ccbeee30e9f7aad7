"""`shipctl watch`: goes on with what is under way, and rolls back what an Alertmanager alerts about."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from shipctl.release.records import FileRecords, ReleaseRecord
from support_approvals import Become, actions, be, gated
from support_engine import EngineProject, project, test_stages, wait_for

pytestmark = pytest.mark.slow

__all__ = ["be", "project", "test_stages"]

ALERTMANAGER = shutil.which("prometheus-alertmanager") or shutil.which("alertmanager")
EXPOSED = (
    "whoever reaches 0.0.0.0 could have a release rolled back; say with `--token-env NAME` which environment variable "
    "holds the token that the Alertmanager sends, or listen at 127.0.0.1"
)
TOKEN = "only the alertmanager knows that"


@pytest.fixture(autouse=True)
def ada(be: Become) -> None:
    """Whoever calls in these tests is ada, on this machine."""


def spec(project: EngineProject, version: str, options: str = "") -> EngineProject:
    return gated(project, version, approval="", options=options)


def serving(project: EngineProject) -> str | None:
    found = project.serving()
    return found["version"] if found else None


def records(project: EngineProject) -> tuple[ReleaseRecord, ...]:
    return FileRecords(project.state / "targets" / "shelf", "demo", "d").load()[0].records


def phases(project: EngineProject) -> list[tuple[str, str]]:
    return [(item.version, str(item.phase)) for item in records(project)]


# -- going on --------------------------------------------------------------------------------------------------------


def test_apply_hands_over_once_it_is_promoted_and_watch_goes_on_to_the_end(project: EngineProject) -> None:
    spec(project, "1.0.0").apply()
    code, said = spec(project, "2.0.0", "watch: 2").command("apply", "--no-watch")
    assert (code, serving(project)) == (0, "2.0.0"), said
    assert "2.0.0 is promoted on shelf; `shipctl watch spec.yaml` watches it to its end" in said
    assert phases(project)[-1] == ("2.0.0", "watching")
    assert records(project)[-1].driver == ""
    code, said = project.command("watch")
    assert code == 0, said
    assert phases(project)[-1] == ("2.0.0", "done")
    assert re.search(r"d watching on shelf: watching 2\.0\.0$", said, re.MULTILINE)


def test_with_nothing_under_way_it_says_so(project: EngineProject) -> None:
    spec(project, "1.0.0").apply()
    assert project.command("watch") == (0, "no release of demo is under way\n")
    _, said = project.command("watch", "--json")
    document = json.loads(said)
    assert (document["schema"], document["runs"], document["exit_code"]) == ("shipctl.watch/1", [], 0)


def test_it_runs_nothing_but_the_release(project: EngineProject) -> None:
    """Even where the spec says something else by now: what was begun is brought to its end."""
    spec(project, "2.0.0", "watch: 1").command("apply", "--no-watch")
    ran = len(project.trace())
    code, _ = spec(project, "3.0.0").command("watch")
    assert (code, serving(project)) == (0, "2.0.0")
    assert not [line for line in project.trace()[ran:] if line.startswith("run ")]


@pytest.mark.parametrize(
    ("options", "code"),
    [("fail_at: shifting, fail_how: abort", 7), ("ask_at: promoting", 6)],
    ids=["rolled back", "waits"],
)
def test_its_exit_codes_are_those_of_apply(project: EngineProject, options: str, code: int) -> None:
    spec(project, "1.0.0").apply()
    spec(project, "2.0.0", options)
    kill = {"SHIPCTL_TEST_KILL": "hook release_stepped preflight"}
    assert project.shipctl("apply", "spec.yaml", environ=kill)[0] == -9
    assert project.command("watch")[0] == code


def test_what_another_process_drives_is_left_to_it(project: EngineProject) -> None:
    spec(project, "2.0.0", "wait: 30")
    with project.start("apply", "spec.yaml") as other:
        wait_for(lambda: (project.state / "targets" / "shelf" / "releases").exists() and phases(project), 20)
        code, said = project.command("watch")
        other.kill()
    assert code == 8
    assert said.startswith("error: locked by ada@")


def test_a_stage_that_does_not_exist_is_told(project: EngineProject) -> None:
    spec(project, "1.0.0")
    assert project.command("watch", "--stage", "e") == (2, "error: --stage e: spec.yaml releases d\n")


# -- alerts ----------------------------------------------------------------------------------------------------------


class Ear:
    """A `shipctl watch --listen` in a process of its own."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[str] = []
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.fullmatch(r"listening at http://127\.0\.0\.1:(\d+)/alerts for alerts about demo\n", line)
        assert found is not None, line + process.stdout.read()
        self.port = int(found[1])

    def send(
        self, body: object, path: str = "/alerts", method: str = "POST", **headers: str
    ) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        text = body if isinstance(body, str) else json.dumps(body)
        connection.request(method, path, text, {"Content-Type": "application/json", **headers})
        answer = connection.getresponse()
        said = answer.read().decode()
        connection.close()
        return answer.status, said

    def alert(self, labels: Mapping[str, str], status: str = "firing", starts: float | None = None) -> int:
        return self.send(notification(labels, status, starts))[0]

    def wait_for(self, words: str) -> None:
        """Wait until it says so."""
        assert self.process.stdout is not None
        said = ""
        while words not in said:
            line = self.process.stdout.readline()
            assert line, f"it ended: {said}"
            said += line

    def ended(self) -> tuple[int, str]:
        said, _ = self.process.communicate(timeout=30)
        return self.process.returncode, said


def notification(
    labels: Mapping[str, str], status: str = "firing", starts: float | None = None
) -> dict[str, Any]:
    """What an Alertmanager 0.25 sends, with labels for what it is about."""
    began = datetime.fromtimestamp(time.time() if starts is None else starts, UTC)
    labels = {"alertname": "TooManyErrors", "pipeline": "demo", "severity": "page", **labels}
    return {
        "receiver": "shipctl",
        "status": status,
        "alerts": [
            {
                "status": status,
                "labels": labels,
                "annotations": {"summary": "5 % of the requests fail"},
                "startsAt": began.isoformat().replace("+00:00", "123Z"),
                "endsAt": "0001-01-01T00:00:00Z",
                "generatorURL": "http://prometheus:9090/graph",
                "fingerprint": "c1b8d6a2f0e3b4d5",
            }
        ],
        "groupLabels": {"alertname": "TooManyErrors"},
        "commonLabels": labels,
        "commonAnnotations": {},
        "externalURL": "http://alertmanager:9093",
        "version": "4",
        "groupKey": '{}:{alertname="TooManyErrors"}',
        "truncatedAlerts": 0,
    }


@contextmanager
def listening(project: EngineProject, *arguments: str, **environ: str) -> Iterator[Ear]:
    with project.start(
        "watch", "spec.yaml", "--listen", "127.0.0.1:0", *arguments, environ=environ
    ) as process:
        try:
            yield Ear(process)
        finally:
            process.kill()


def two(project: EngineProject) -> EngineProject:
    spec(project, "1.0.0").apply()
    spec(project, "2.0.0").apply()
    return project


def test_an_alert_about_what_serves_rolls_it_back(project: EngineProject) -> None:
    with listening(two(project), "--for", "1m") as ear:
        assert ear.alert({"version": "2.0.0"}) == 200
        code, said = ear.ended()
    assert (code, serving(project)) == (7, "1.0.0"), said
    assert "alert TooManyErrors is about 2.0.0, which serves on shelf; rolling it back" in said
    assert re.search(r"^error: alert TooManyErrors: done 1\.0\.0$", said, re.MULTILINE), said
    assert phases(project)[-1] == ("1.0.0", "done")
    assert "alert" in actions(project)
    assert project.command("apply")[0] == 7, "and it is not put back"


def test_told_again_and_again_it_is_rolled_back_once(project: EngineProject) -> None:
    spec(project, "0.9.0").apply()
    with listening(two(project)) as ear:
        for _ in range(5):
            assert ear.alert({"version": "2.0.0"}) == 200
        wait_for(lambda: phases(project)[-1] == ("1.0.0", "done"), 20)
        for _ in range(5):
            assert ear.alert({"version": "2.0.0"}) == 200
        time.sleep(1)
        ear.process.send_signal(signal.SIGTERM)
        code, said = ear.ended()
    assert code == 0, said
    assert serving(project) == "1.0.0"
    assert len(records(project)) == 4
    assert said.count("is about 2.0.0, which does not serve, or began before that was released") == 1


def test_an_alert_about_what_is_being_watched_takes_it_back(project: EngineProject) -> None:
    spec(project, "1.0.0").apply()
    spec(project, "2.0.0", "watch: 60").command("apply", "--no-watch")
    with listening(project, "--for", "1m") as ear:
        wait_for(lambda: records(project)[-1].driver != "", 20)
        assert ear.alert({"version": "2.0.0"}) == 200
        code, said = ear.ended()
    assert (code, serving(project)) == (7, "1.0.0"), said
    assert "aborted: alert TooManyErrors; 1.0.0 serves" in said
    assert phases(project)[-1] == ("2.0.0", "rolled-back")


def test_an_alert_is_heard_while_another_process_drives_the_release(project: EngineProject) -> None:
    spec(project, "1.0.0").apply()
    spec(project, "2.0.0", "wait: 30")
    with project.start("apply", "spec.yaml") as other:
        wait_for(lambda: phases(project)[-1] == ("2.0.0", "preparing"), 20)
        with listening(project) as ear:
            assert ear.alert({"version": "2.0.0"}) == 200
            assert other.wait(20) == 7
        other.kill()
    assert phases(project)[-1] == ("2.0.0", "rolled-back")


@pytest.mark.parametrize(
    ("labels", "why"),
    [
        ({"version": "1.0.0"}, "is about 1.0.0, which does not serve"),
        ({"version": "2.0.0", "pipeline": "other"}, "is about other and not about demo"),
        ({"version": "2.0.0", "model": "other"}, "is about demo and other and not about demo"),
        ({}, "names no version and no revision"),
        ({"revision": "0123456789abcdef"}, "is about 0123456789abcdef, which does not serve"),
        ({"revision": ""}, "is about None, which does not serve"),
    ],
    ids=["another version", "another pipeline", "another model", "no version", "another revision", "none"],
)
def test_an_alert_about_something_else_does_nothing(
    project: EngineProject, labels: dict[str, str], why: str
) -> None:
    with listening(two(project), "--for", "2s") as ear:
        assert ear.alert(labels) == 200
        code, said = ear.ended()
    assert (code, serving(project)) == (0, "2.0.0"), said
    assert why in said
    assert "\nthe time is over, and no alert was about what serves\n" in said


def test_a_resolved_alert_does_nothing_nor_one_that_is_older_than_the_release(project: EngineProject) -> None:
    with listening(two(project), "--for", "2s") as ear:
        assert ear.alert({"version": "2.0.0"}, "resolved") == 200
        assert ear.alert({"version": "2.0.0"}, starts=time.time() - 3600) == 200
        code, said = ear.ended()
    assert (code, serving(project)) == (0, "2.0.0"), said


def test_by_the_revision_that_it_names(project: EngineProject) -> None:
    two(project)
    with listening(project, "--for", "1m") as ear:
        assert ear.alert({"revision": records(project)[-1].revision[:12]}) == 200
        assert ear.ended()[0] == 7
    assert serving(project) == "1.0.0"


def test_with_nothing_to_go_back_to_it_says_so_and_goes_on_listening(project: EngineProject) -> None:
    spec(project, "1.0.0").apply()
    with listening(project) as ear:
        assert ear.alert({"version": "1.0.0"}) == 200
        ear.wait_for("nothing to roll back to")
        assert ear.send("", "/healthz", "GET") == (200, "listening\n")
        ear.process.send_signal(signal.SIGINT)
        assert ear.ended()[0] == 0
    assert serving(project) == "1.0.0"


def test_what_is_no_notification_is_refused_by_its_kind(project: EngineProject) -> None:
    with listening(two(project), "--token-env", "EAR", EAR=TOKEN) as ear:
        known = {"Authorization": f"Bearer {TOKEN}"}
        whole = notification({"version": "2.0.0"})
        assert ear.send(whole) == (401, "send the token as `Authorization: Bearer …`\n")
        assert ear.send(whole, Authorization="Bearer wrong")[0] == 401
        assert ear.send(whole, "/api/v2/alerts", **known) == (404, "send alerts to /alerts\n")
        assert ear.send("", "/", "GET")[0] == 404
        for body, why in (
            ("nothing", "the body is no JSON: "),
            ("[]", "the body is no notification of an Alertmanager in version 4"),
            ({**whole, "version": "3"}, "the body is no notification of an Alertmanager in version 4"),
            (
                {**whole, "alerts": [{"status": "firing"}]},
                "an alert lacks its status, labels or startsAt (KeyError: 'labels')",
            ),
            ({**whole, "alerts": ["firing"]}, "an alert lacks its status, labels or startsAt (TypeError: "),
            (
                {**whole, "alerts": [{**whole["alerts"][0], "startsAt": "soon"}]},
                "Invalid isoformat string: 'soon'",
            ),
            (
                {**whole, "alerts": [{**whole["alerts"][0], "status": "odd"}]},
                "an alert is 'odd', which is neither",
            ),
            ("x" * (8 << 20), "the length of the body has to be declared, and at most 1048576 bytes"),
        ):
            code, said = ear.send(body, **known)
            assert (code, said.startswith(why)) == (400, True), said
        code, said = ear.send(whole, **known, **{"Content-Type": "text/plain"})
        assert (code, said) == (400, "the body is not declared as application/json\n")
        assert ear.process.poll() is None
        assert ear.send(whole, **known) == (200, "heard\n")
        wait_for(lambda: phases(project)[-1] == ("1.0.0", "done"), 20)
        ear.process.send_signal(signal.SIGINT)
        assert TOKEN not in ear.ended()[1]
    assert project.holding(TOKEN.encode()) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--for", "1m"), "--for and --token-env go with --listen"),
        (("--listen", "9095"), "'9095' is no address to listen at; write HOST:PORT, such as 127.0.0.1:9095"),
        (("--listen", "[::1]:x"), "'[::1]:x' is no address to listen at; write HOST:PORT, such as 127.0.0.1:9095"),
        (
            ("--listen", "127.0.0.1:0", "--token-env", "NOBODY"),
            "--token-env NOBODY: the environment variable NOBODY is not set, or empty; export it",
        ),
        (
            ("--listen", "0.0.0.0:9095"),
            EXPOSED,
        ),
    ],
)  # fmt: skip
def test_an_address_that_cannot_be_meant_is_refused(
    project: EngineProject, arguments: tuple[str, ...], said: str
) -> None:
    spec(project, "1.0.0")
    assert project.command("watch", "spec.yaml", *arguments) == (2, f"error: {said}\n")


def test_a_port_that_is_taken_is_told(project: EngineProject) -> None:
    with listening(two(project)) as ear:
        code, said = project.command("watch", "spec.yaml", "--listen", f"127.0.0.1:{ear.port}")
    assert code == 2
    assert said == (
        f"error: cannot listen at 127.0.0.1:{ear.port}: Address already in use; choose another port, or 0 for any\n"
    )


@pytest.mark.skipif(
    ALERTMANAGER is None, reason="there is no Alertmanager: apt-get install prometheus-alertmanager"
)
def test_a_real_alertmanager_rolls_back_what_an_alert_is_about(
    project: EngineProject, tmp_path: Path
) -> None:
    with listening(two(project), "--for", "1m", "--token-env", "EAR", EAR=TOKEN) as ear:
        (tmp_path / "alertmanager.yml").write_text(
            f"""
            route: {{receiver: shipctl, group_wait: 0s, group_interval: 1s, repeat_interval: 1s}}
            receivers:
              - name: shipctl
                webhook_configs:
                  - url: http://127.0.0.1:{ear.port}/alerts
                    send_resolved: true
                    http_config: {{authorization: {{credentials: {TOKEN}}}}}
            """
        )
        with alertmanager(tmp_path) as port:
            labels = {"alertname": "TooManyErrors", "model": "demo", "version": "2.0.0"}
            body = json.dumps([{"labels": labels}])
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            connection.request("POST", "/api/v2/alerts", body, {"Content-Type": "application/json"})
            assert connection.getresponse().status == 200
            connection.close()
            code, said = ear.ended()
    assert (code, serving(project)) == (7, "1.0.0"), said


@contextmanager
def alertmanager(folder: Path) -> Iterator[int]:
    """Start an Alertmanager with the configuration in a folder, and yield its port."""
    assert ALERTMANAGER is not None
    command = [
        ALERTMANAGER, f"--config.file={folder / 'alertmanager.yml'}", f"--storage.path={folder / 'data'}",
        "--web.listen-address=127.0.0.1:0", "--cluster.listen-address=",
    ]  # fmt: skip
    log = folder / "alertmanager.log"
    with (
        log.open("w") as said,
        subprocess.Popen(command, stdout=said, stderr=said, env=os.environ) as process,
    ):
        try:
            wait_for(lambda: port_in(log), 20)
            yield port_in(log)
        finally:
            process.kill()


def port_in(log: Path) -> int:
    found = re.search(r"127\.0\.0\.1:(\d+)", log.read_text())
    return int(found[1]) if found else 0
