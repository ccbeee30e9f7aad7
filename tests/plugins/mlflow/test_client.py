"""The client of MLflow servers: what is said when one is down, hangs, refuses us or is none; what it leaves behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shipctl.errors import StoreError, UnavailableError
from shipctl_plugins._mlflow.client import MlflowServer, Transport
from shipctl_plugins._mlflow.login import Login
from shipctl_plugins._mlflow.process import AgentProcess
from support_mlflow import Saying, ServedHere

pytestmark = pytest.mark.mlflow


def refusal(login: Login, transport: Transport | None = None) -> str:
    """Return what is said of a server that does not let us in, by a client in this process or with its own."""
    server = MlflowServer(login, transport or ServedHere(login))
    try:
        with pytest.raises(StoreError) as failure:
            server.ping()
    finally:
        server.close()
    return str(failure.value)


@pytest.mark.slow
def test_a_wrong_token_is_said_without_the_token() -> None:
    with Saying(401, "You are not authenticated. Please see https://www.mlflow.org/docs/latest/auth") as web:
        login = Login(web.uri, token="wrong-token")
        said = refusal(login, AgentProcess(login))
    assert said == (
        f"MLflow at {web.uri} refused our credentials; set `token`, or `username` and `password`, of somebody who may "
        "write there (or MLFLOW_TRACKING_TOKEN and its kin)"
    )
    assert [item["Authorization"] for item in web.headers] == ["Bearer wrong-token"]


@pytest.mark.slow
def test_name_and_password_of_the_spec_win_over_a_token_of_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "of-the-environment")
    with Saying(403, "Permission denied") as web:
        refusal(Login(web.uri, username="me", password="secret"))
    assert [item["Authorization"] for item in web.headers] == ["Basic bWU6c2VjcmV0"]


@pytest.mark.slow
def test_a_token_of_the_spec_wins_over_a_name_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "somebody")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "else")
    with Saying(403, "Permission denied") as web:
        refusal(Login(web.uri, token="of-the-spec"))
    assert [item["Authorization"] for item in web.headers] == ["Bearer of-the-spec"]


@pytest.mark.slow
def test_without_credentials_those_of_the_environment_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "of-the-environment")
    with Saying(403, "Permission denied") as web:
        refusal(Login(web.uri))
    assert [item["Authorization"] for item in web.headers] == ["Bearer of-the-environment"]


@pytest.mark.slow
@pytest.mark.parametrize("status", [200, 404])
def test_a_server_that_is_no_mlflow_is_named(status: int) -> None:
    with Saying(status, "<html>Welcome</html>") as web:
        said = refusal(Login(web.uri))
    assert said == (
        f"{web.uri} answers, but not as an MLflow server; write the address that its pages have, without `#/…`"
    )


@pytest.mark.slow
def test_a_server_that_fails_is_asked_three_times() -> None:
    with Saying(503, "<html>Busy</html>") as web:
        said = refusal(Login(web.uri))
    assert said == f"MLflow at {web.uri} answers with errors (503); look at its log, or run again later"
    assert len(web.headers) == 3


@pytest.mark.slow
def test_what_makes_something_is_never_sent_twice_by_mlflow_itself() -> None:
    with Saying(503, "<html>Busy</html>") as web:
        login = Login(web.uri)
        with pytest.raises(StoreError, match=r"answers with errors \(503\)"):
            MlflowServer(login, ServedHere(login)).call("create_experiment", name="e", tags={})
    assert len(web.headers) == 1


@pytest.mark.slow
def test_a_server_that_hangs_costs_bounded_time() -> None:
    with Saying(200, "{}", delay=60) as web:
        began = time.monotonic()
        said = refusal(Login(web.uri, timeout=1))
        assert time.monotonic() - began < 20
    assert said == (
        f"cannot reach MLflow at {web.uri}: timed out; see whether it runs, and whether the address is right"
    )


@pytest.mark.slow
def test_a_client_that_hangs_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shipctl_plugins._mlflow.process._START_S", 1.0)
    with Saying(200, "{}", delay=60) as web:
        process = AgentProcess(Login(web.uri, timeout=30))
        with pytest.raises(StoreError) as failure:
            process("ping", {}, 2.0)
    assert str(failure.value) == f"MLflow at {web.uri} did not answer within 2 s; run again later"
    assert process._running is None


@pytest.mark.slow
def test_the_environment_of_shipctl_stays_as_it_is_and_nothing_is_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    before = dict(os.environ)
    with Saying(200, "{}", content_type="application/json") as web:
        server = MlflowServer(Login(web.uri, token="a-token"))
        server.ping()
        assert dict(os.environ) == before
        assert len(list(temporary.iterdir())) == 1
        server.close()
    assert list(temporary.iterdir()) == []
    assert list(tmp_path.iterdir()) == [temporary]


@pytest.mark.slow
def test_the_client_ends_with_shipctl_however_that_ends(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\n"
        "from shipctl_plugins._mlflow.client import MlflowServer\n"
        "from shipctl_plugins._mlflow.login import Login\n"
        "server = MlflowServer(Login(sys.argv[1]))\n"
        "server.ping()\n"
        "print(server._transport._running[0].pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    with Saying(200, "{}", content_type="application/json") as web:
        done = subprocess.run(
            [sys.executable, "-c", code, web.uri],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            timeout=60,
            check=False,
        )
    pid = int(done.stdout)
    deadline = time.monotonic() + 10
    while (
        Path(f"/proc/{pid}").exists()
        and "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2][:3]
    ):
        assert time.monotonic() < deadline, "the client outlived shipctl"
        time.sleep(0.05)
    assert list(tmp_path.iterdir()) == []


def test_a_client_that_cannot_import_mlflow_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mlflow.py").write_text("raise ImportError('No module named mlflow')")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    server = MlflowServer(Login("http://127.0.0.1:1"))
    with pytest.raises(UnavailableError) as failure:
        server.ping()
    server.close()
    assert str(failure.value) == (
        "MLflow's client does not import (No module named mlflow); pip install 'shipctl[mlflow]'"
    )


@pytest.mark.slow
def test_a_client_that_dies_is_started_again() -> None:
    with Saying(200, "{}", content_type="application/json") as web:
        process = AgentProcess(Login(web.uri))
        assert process("ping", {}, 30.0) == {"value": None}
        assert process._running is not None
        process._running[0].kill()
        with pytest.raises(StoreError, match="ended unexpectedly"):
            process("ping", {}, 30.0)
        assert process("ping", {}, 30.0) == {"value": None}
        process.close()
