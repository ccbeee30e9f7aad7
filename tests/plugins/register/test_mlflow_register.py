"""`mlflow-register` on MLflow's own file store, without a server: what it makes, repeats, takes back and says."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from shipctl.errors import SpecError, StageError, StoreError, UnavailableError
from shipctl.stages.artifacts import ModelPackage
from shipctl.stages.base import Phase
from shipctl.stages.context import CheckContext
from shipctl_plugins._mlflow.client import MlflowServer
from shipctl_plugins.register.mlflow_register import (
    MlflowRegister,
    MlflowRegisterInputs,
    MlflowRegisterOptions,
    MlflowRegisterState,
)
from support_mlflow import SPEC_DIGEST, WRITES, InProcessMlflow, Killed, Releaser, make_package, stage_on

pytestmark = pytest.mark.mlflow

SERVER = "http://mlflow.example"
MakeReleaser = Callable[..., Releaser]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / ".git").mkdir()
    return tmp_path


@pytest.fixture
def mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> InProcessMlflow:
    for name, value in {
        "MLFLOW_ALLOW_FILE_STORE": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        "MLFLOW_TRACKING_URI": "",
    }.items():
        monkeypatch.setenv(name, value)
    return InProcessMlflow((tmp_path / "mlflow").as_uri())


@pytest.fixture
def releaser(project: Path, mlflow: InProcessMlflow) -> MakeReleaser:
    """Make something that releases with a new stage each time, all of which ask the same server."""

    def make(**options: Any) -> Releaser:
        def stage() -> MlflowRegister:
            made = stage_on(SERVER, **options)
            made.__dict__["_server"] = MlflowServer(made._server.login, mlflow)
            return made

        return Releaser(project, stage)

    return make


def versions(mlflow: InProcessMlflow) -> dict[int, str]:
    """Return version number to reference."""
    found = mlflow.agent.versions("digits")
    return {item["version"]: item["tags"]["shipctl.reference"] for item in found}


def aliases(mlflow: InProcessMlflow) -> dict[str, int]:
    model = mlflow.agent.registered_model("digits")
    return dict(model["aliases"]) if model is not None else {}


def runs(mlflow: InProcessMlflow, package: ModelPackage) -> list[dict[str, Any]]:
    experiment = mlflow.agent.experiment("digits")
    return (
        mlflow.agent.runs(experiment["id"], "shipctl.digest", package.digest)
        if experiment is not None
        else []
    )


# -- what it makes -------------------------------------------------------------------------------------------


def test_a_package_becomes_a_version_with_run_tags_and_aliases(
    project: Path, mlflow: InProcessMlflow, releaser: MakeReleaser
) -> None:
    package = make_package(project, "1.0.0")
    driver = releaser(alias=["staging", "production"], tags={"team": "blue"})
    end = driver.release(package)

    assert end.phase is Phase.DONE
    assert end.message == (
        "digits@1.0.0 is version 1 of digits in MLflow at http://mlflow.example; staging points to it (before: "
        "nothing); production points to it (before: nothing)"
    )
    [version] = mlflow.agent.versions("digits")
    assert version["source"] == "shipctl:/digits@1.0.0"
    assert version["status"] == "READY"
    assert version["tags"] == {
        "shipctl.digest": package.digest,
        "shipctl.label.critical": "true",
        "shipctl.license": "MIT",
        "shipctl.model": package.model,
        "shipctl.owner": "vision-team",
        "shipctl.pipeline": "digits",
        "shipctl.reference": "digits@1.0.0",
        "shipctl.revision": "revision of 1.0.0",
        "shipctl.run": "run of 1.0.0",
        "shipctl.signer": package.signer,
        "shipctl.spec": SPEC_DIGEST,
        "shipctl.store": (project / ".shipctl" / "store").as_uri(),
        "shipctl.version": "1.0.0",
        "team": "blue",
    }
    model = mlflow.agent.registered_model("digits")
    assert model is not None
    assert model["description"] == "Reads handwritten digits."
    assert model["tags"]["shipctl.owner"] == "vision-team"
    assert model["aliases"] == {"staging": 1, "production": 1}
    [run] = runs(mlflow, package)
    assert run["finished"]
    assert version["run_id"] == run["id"]
    assert driver.lines == ["metric broken is no finite number and is not sent to MLflow"]


def test_the_run_has_the_metrics_and_what_was_packaged(
    project: Path, mlflow: InProcessMlflow, releaser: MakeReleaser
) -> None:
    from mlflow.tracking import MlflowClient

    package = make_package(project, "1.0.0")
    releaser().release(package)
    [run] = runs(mlflow, package)
    seen = MlflowClient((project / "mlflow").as_uri()).get_run(run["id"])
    assert seen.info.run_name == "digits@1.0.0"
    assert seen.data.metrics == {"accuracy": 0.97, "latency.p95": 0.0021}
    assert seen.data.params["input.x"] == "float32 [batch, 4]"
    assert seen.data.params["data.calibration"] == "c" * 64
    assert seen.data.params["package"] == package.digest


def test_names_of_model_and_experiment_can_be_chosen(
    project: Path, mlflow: InProcessMlflow, releaser: MakeReleaser
) -> None:
    releaser(name="vision digits", experiment="releases").release(make_package(project, "1.0.0"))
    assert mlflow.agent.registered_model("vision digits") is not None
    assert mlflow.agent.registered_model("digits") is None
    assert mlflow.agent.experiment("releases") is not None


def test_a_store_that_others_reach_stands_in_the_source() -> None:
    from shipctl_plugins._mlflow.entry import source_uri

    assert (
        source_uri("s3://models/team", "digits@1.0.0", "ab" * 32)
        == f"s3://models/team/manifests/ab/{'ab' * 32}"
    )


def test_a_model_of_somebody_else_keeps_its_description(
    project: Path, mlflow: InProcessMlflow, releaser: MakeReleaser
) -> None:
    mlflow.agent.create_registered_model("digits", "Theirs.", {"team": "theirs"})
    releaser().release(make_package(project, "1.0.0"))
    model = mlflow.agent.registered_model("digits")
    assert model is not None
    assert model["description"] == "Theirs."
    assert model["tags"]["team"] == "theirs"


# -- again ---------------------------------------------------------------------------------------------------


def test_what_is_registered_is_in_place(
    project: Path, mlflow: InProcessMlflow, releaser: MakeReleaser
) -> None:
    first, second = make_package(project, "1.0.0"), make_package(project, "1.1.0")
    driver = releaser(alias="production")
    assert not driver.in_place(first)
    driver.release(first)
    assert driver.in_place(first)
    assert not driver.in_place(second)
    mlflow.agent.set_alias(
        "digits", "production", mlflow.agent.create_version("digits", "s3://b/x", "", "", {})["version"]
    )
    assert not driver.in_place(first)


def test_released_again_it_makes_nothing_twice(
    project: Path, mlflow: InProcessMlflow, releaser: MakeReleaser
) -> None:
    package = make_package(project, "1.0.0")
    driver = releaser(alias="production")
    driver.release(package)
    mlflow.forget()
    driver.release(package, run="another run", revision="with other options")
    assert [call for call in mlflow.calls if call.startswith(("create", "delete", "log"))] == []
    assert versions(mlflow) == {1: "digits@1.0.0"}
    assert len(runs(mlflow, package)) == 1
    assert mlflow.agent.versions("digits")[0]["tags"]["shipctl.revision"] == "with other options"


def _calls(project: Path, mlflow: InProcessMlflow, driver: Releaser) -> list[str]:
    driver.release(make_package(project, "0.9.0"))
    mlflow.forget()
    driver.release(make_package(project, "0.9.1"))
    calls = list(mlflow.calls)
    mlflow.forget()
    return calls


def _worth_dying_at(moment: str, calls: list[str]) -> list[int]:
    """Return the calls to die at: after one that only reads, everything is as it was before it."""
    return [index for index, call in enumerate(calls) if moment == "die_before" or call.startswith(WRITES)]


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["die_before", "die_after"])
def test_killed_at_any_call_it_goes_on_and_makes_nothing_twice(
    project: Path, mlflow: InProcessMlflow, releaser: MakeReleaser, moment: str
) -> None:
    from mlflow.tracking import MlflowClient

    driver = releaser(alias="production")
    calls = _calls(project, mlflow, driver)
    assert len(calls) > 12
    server, before = project / "mlflow", project / "before"
    shutil.copytree(server, before)
    for index in _worth_dying_at(moment, calls):
        shutil.rmtree(server)  # MLflow reads each version that there is, again and again
        shutil.copytree(before, server)
        package = make_package(project, f"1.0.{index}")
        driver.kept, driver.steps = {}, []
        mlflow.forget()
        setattr(mlflow, moment, index)
        with pytest.raises(Killed):
            driver.drive(package)
        mlflow.forget()
        end = driver.drive(package)
        assert end.phase is Phase.DONE
        [version] = mlflow.agent.versions("digits", "shipctl.digest", package.digest)
        [run] = runs(mlflow, package)
        assert version["run_id"] == run["id"]
        assert aliases(mlflow) == {"production": version["version"]}
        history = MlflowClient((project / "mlflow").as_uri()).get_metric_history(run["id"], "accuracy")
        assert len(history) == 1
        assert driver.in_place(package)


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["die_before", "die_after"])
def test_killed_at_any_call_a_first_release_can_be_aborted(
    project: Path, mlflow: InProcessMlflow, releaser: MakeReleaser, moment: str
) -> None:
    driver = releaser(alias="production")
    package = make_package(project, "1.0.0")
    driver.release(package)
    driver.drive(package, undo=True)
    mlflow.forget()
    driver.release(package)
    calls = list(mlflow.calls)
    driver.drive(package, undo=True)
    for index in _worth_dying_at(moment, calls):
        driver.kept, driver.steps = {}, []
        mlflow.forget()
        setattr(mlflow, moment, index)
        with pytest.raises(Killed):
            driver.drive(package)
        mlflow.forget()
        end = driver.drive(package, undo=True)
        assert end.phase is Phase.REJECTED
        assert mlflow.agent.registered_model("digits") is None
        assert runs(mlflow, package) == []


@pytest.mark.parametrize(
    "call", ["create_version", "create_run", "create_registered_model", "create_experiment"]
)
@pytest.mark.parametrize(
    "faults",
    [
        ["lost"],
        pytest.param(["unreachable"], marks=pytest.mark.slow),
        pytest.param(["unreachable", "lost"], marks=pytest.mark.slow),
    ],
)
def test_a_lost_answer_makes_nothing_twice(
    project: Path, mlflow: InProcessMlflow, releaser: MakeReleaser, call: str, faults: list[str]
) -> None:
    package = make_package(project, "1.0.0")
    mlflow.fail = {call: list(faults)}
    assert releaser(alias="production").release(package).phase is Phase.DONE
    assert versions(mlflow) == {1: "digits@1.0.0"}
    assert len(runs(mlflow, package)) == 1
    assert mlflow.calls.count(call) == len(faults) + (faults[-1] == "unreachable")


def test_a_twin_that_came_through_late_is_removed(
    project: Path, mlflow: InProcessMlflow, releaser: MakeReleaser
) -> None:
    package = make_package(project, "1.0.0")
    driver = releaser(alias="production")
    driver.release(package)
    [version] = mlflow.agent.versions("digits")
    mlflow.agent.create_version("digits", version["source"], version["run_id"], "", version["tags"])
    driver.release(package)
    assert versions(mlflow) == {1: "digits@1.0.0"}


# -- back ----------------------------------------------------------------------------------------------------


def test_a_rollback_moves_the_alias_to_the_earlier_version(
    project: Path, mlflow: InProcessMlflow, releaser: MakeReleaser
) -> None:
    first, second = make_package(project, "1.0.0"), make_package(project, "1.1.0")
    driver = releaser(alias="production")
    driver.release(first)
    end = driver.release(second)
    assert end.message == (
        "digits@1.1.0 is version 2 of digits in MLflow at http://mlflow.example; production points to it (before: "
        "version 1)"
    )
    end = driver.release(first, intent="rollback", run="run of the rollback")
    assert end.phase is Phase.DONE
    assert aliases(mlflow) == {"production": 1}
    assert versions(mlflow) == {1: "digits@1.0.0", 2: "digits@1.1.0"}
    assert driver.in_place(first)


def test_an_abort_puts_the_alias_back_and_deletes_what_was_made(
    project: Path, mlflow: InProcessMlflow, releaser: MakeReleaser
) -> None:
    first, second = make_package(project, "1.0.0"), make_package(project, "1.1.0")
    driver = releaser(alias=["production", "canary"])
    releaser(alias="production").release(first)
    driver.release(second)
    end = driver.drive(second, undo=True)
    assert end.phase is Phase.ROLLED_BACK
    assert end.message == "digits 1.1.0 was withdrawn from MLflow; production points to version 1"
    assert versions(mlflow) == {1: "digits@1.0.0"}
    assert aliases(mlflow) == {"production": 1}
    assert runs(mlflow, second) == []
    assert len(runs(mlflow, first)) == 1


def test_an_abort_of_a_rollback_deletes_no_version(
    project: Path, mlflow: InProcessMlflow, releaser: MakeReleaser
) -> None:
    first, second = make_package(project, "1.0.0"), make_package(project, "1.1.0")
    driver = releaser(alias="production")
    driver.release(first)
    driver.release(second)
    driver.release(first, intent="rollback", run="run of the rollback")
    end = driver.drive(first, undo=True, intent="rollback", run="run of the rollback")
    assert end.phase is Phase.ROLLED_BACK
    assert aliases(mlflow) == {"production": 2}
    assert versions(mlflow) == {1: "digits@1.0.0", 2: "digits@1.1.0"}


def test_an_abort_says_what_somebody_else_holds_on_to(
    project: Path, mlflow: InProcessMlflow, releaser: MakeReleaser
) -> None:
    first, second = make_package(project, "1.0.0"), make_package(project, "1.1.0")
    driver = releaser(alias="production")
    driver.release(first)
    driver.release(second)
    mlflow.agent.set_alias("digits", "blessed", 2)
    end = driver.drive(second, undo=True)
    assert (
        end.message == "digits 1.1.0 was withdrawn from MLflow; version 2 stays, since blessed points to it"
    )
    assert aliases(mlflow) == {"production": 1, "blessed": 2}


def test_an_abort_leaves_an_alias_that_somebody_else_moved(
    project: Path, mlflow: InProcessMlflow, releaser: MakeReleaser
) -> None:
    first, second, third = (make_package(project, version) for version in ("1.0.0", "1.1.0", "1.2.0"))
    driver = releaser(alias="production")
    driver.release(first)
    driver.release(second)
    driver.release(third)
    mlflow.agent.set_alias("digits", "production", 1)
    end = driver.drive(third, undo=True)
    assert end.message == (
        "digits 1.2.0 was withdrawn from MLflow; production was moved to version 1 by somebody else and stays so"
    )
    assert aliases(mlflow) == {"production": 1}


def test_an_alias_whose_version_is_gone_is_removed(
    project: Path, mlflow: InProcessMlflow, releaser: MakeReleaser
) -> None:
    first, second = make_package(project, "1.0.0"), make_package(project, "1.1.0")
    driver = releaser(alias="production")
    driver.release(first)
    driver.release(second)
    mlflow.agent.delete_version("digits", 1)
    end = driver.drive(second, undo=True)
    assert end.message == (
        "digits 1.1.0 was withdrawn from MLflow; production is removed, since version 1, which it pointed to, is gone"
    )


# -- looking -------------------------------------------------------------------------------------------------


def test_preview_and_status_ask_the_server(project: Path, releaser: MakeReleaser) -> None:
    first, second = make_package(project, "1.0.0"), make_package(project, "1.1.0")
    driver = releaser(alias="production")
    ctx = driver.context(second)
    assert driver.make().status(ctx) == []
    assert driver.make().preview(ctx) == [
        "digits is registered in MLflow at http://mlflow.example for the first time",
        "alias production is set to it (now nothing)",
    ]
    driver.release(first)
    assert driver.make().preview(ctx) == [
        "digits gets a version for 1.1.0 in MLflow at http://mlflow.example, if it has none",
        "alias production is set to it (now version 1)",
    ]
    [serving] = driver.make().status(ctx)
    assert (serving.name, serving.version, serving.revision) == ("digits", "1.0.0", "revision of 1.0.0")
    assert serving.healthy
    assert serving.endpoints == {"page": "http://mlflow.example/#/models/digits/versions/1"}
    assert serving.details["alias"] == "production"
    assert driver.make().down(ctx) == ()


def test_without_an_alias_status_shows_the_newest_version(project: Path, releaser: MakeReleaser) -> None:
    driver = releaser()
    driver.release(make_package(project, "1.0.0"))
    package = make_package(project, "1.1.0")
    driver.release(package)
    assert [item.version for item in driver.make().status(driver.context(package))] == ["1.1.0"]


# -- refusals ------------------------------------------------------------------------------------------------


def test_a_package_that_is_not_published_is_refused_before_anything_is_made(
    project: Path, mlflow: InProcessMlflow, releaser: MakeReleaser
) -> None:
    package = make_package(project, "1.0.0", publish=False)
    driver = releaser()
    with pytest.raises(StageError) as failure:
        driver.release(package)
    assert str(failure.value) == (
        f"digits@1.0.0 ({package.digest[:12]}) is not in the store {(project / '.shipctl' / 'store').as_uri()}, and "
        "MLflow only refers to it; let `publish` run before this stage (add it to `needs`)"
    )
    end = driver.drive(package, undo=True)
    assert end.phase is Phase.REJECTED
    assert end.message == "nothing was changed in MLflow for digits 1.0.0"
    assert mlflow.calls == ["ping"]


@pytest.mark.slow
def test_a_server_that_is_down_is_said_once_and_in_bounded_time(project: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        uri = f"http://somebody:secret@127.0.0.1:{closed.getsockname()[1]}"
    shown = uri.replace("somebody:secret@", "")
    said = f"cannot reach MLflow at {shown}: connection refused; see whether it runs, and whether the address is right"
    package, stage = make_package(project, "1.0.0"), stage_on(uri, timeout="1s")
    ctx = Releaser(project, lambda: stage).context(package)
    with pytest.raises(StoreError) as failure:
        stage.step(MlflowRegisterState(), MlflowRegisterInputs(package=package), ctx)
    assert str(failure.value) == said
    assert stage.preview(ctx) == [f"what would change cannot be said: {said}"]
    with pytest.raises(UnavailableError) as unavailable:
        stage.check(CheckContext(project=project, pipeline="digits"))
    assert str(unavailable.value) == said
    assert not list(project.rglob("mlruns"))


def test_no_server_named_is_a_mistake_in_the_spec(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    stage = MlflowRegister(MlflowRegisterOptions())
    with pytest.raises(SpecError) as failure:
        stage.check(CheckContext(project=project, pipeline="digits"))
    assert (
        str(failure.value)
        == "no MLflow server is named: set `uri`, or export MLFLOW_TRACKING_URI=https://HOST"
    )
    assert stage.target() == "mlflow"


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("http://127.0.0.1:5000", "mlflow-127.0.0.1-5000"),
        ("https://user:secret@mlflow.example/team/", "mlflow-mlflow.example-team"),
        ("databricks://prod", "mlflow-prod"),
    ],
)
def test_each_server_is_a_target_of_its_own(uri: str, name: str) -> None:
    assert stage_on(uri).target() == name


@pytest.mark.parametrize("alias", ["latest", "Latest", "v2", "1", "a b", ""])
def test_an_alias_that_mlflow_refuses_is_refused_when_the_spec_is_read(alias: str) -> None:
    with pytest.raises(ValidationError):
        stage_on(SERVER, alias=[alias])


def test_options_of_a_plan_that_wait_for_a_secret_are_read_all_the_same() -> None:
    known: dict[str, Any] = {
        "uri": SERVER,
        "alias": "production",
        "timeout": "5s",
    }  # and `token: ${{ secrets.mlflow }}`
    stage = MlflowRegister(MlflowRegisterOptions.model_construct(**known))
    assert stage.options.alias == ("production",)
    assert stage.options.timeout == 5.0


def test_secrets_are_in_no_representation_of_the_client() -> None:
    stage = stage_on("http://u:hidden1@mlflow.example", token="hidden2", username="me", password="hidden3")
    assert "hidden" not in repr(stage._server.login)
