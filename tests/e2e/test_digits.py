"""The main job on the real model: from PyTorch to a real Triton, again, a bad version, and back."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
from ruamel.yaml import YAML

from support_in_process import in_process
from support_models import write_bad_version, write_second_version
from support_specs import copy_specs

pytestmark = [
    pytest.mark.triton,
    pytest.mark.torch,
    pytest.mark.slow,
    pytest.mark.timeout(600),
]

SPECS = Path(__file__).parents[2] / "specs"
CHECKS = {"weights", "accuracy", "speed", "best"}


@dataclass
class Project:
    """A copy of `specs/` with the command line beside it."""

    root: Path
    runs: list[subprocess.CompletedProcess[str]] = field(default_factory=list)

    def shipctl(self, *arguments: str, code: int = 0) -> str:
        command = [sys.executable, "-m", "shipctl.cli", *arguments]
        done = subprocess.run(
            command, cwd=self.root, capture_output=True, text=True, timeout=300, check=False
        )
        self.runs.append(done)
        assert done.returncode == code, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def json(self, *arguments: str) -> Any:
        return json.loads(self.shipctl(*arguments, "--json"))

    def look(self, *arguments: str) -> Any:
        """Run a command that changes nothing, in this process."""
        done = in_process(self.root, *arguments, "--json")
        assert done.exit_code == 0, done
        return done.document

    def spec(self, version: str, weights: str, *, quick: bool) -> str:
        """Write a spec of another version and return its name; a quick one has no measurements to choose by."""
        yaml = YAML(typ="safe")
        data = yaml.load(self.root / "digits.yaml")
        data["metadata"]["version"] = version
        data["model"]["weights"] = f"models/{weights}"
        if quick:
            data["stages"] = [stage for stage in data["stages"] if stage["id"] not in CHECKS]
            data["stages"][[stage["id"] for stage in data["stages"]].index("int8")].pop("matrix")
            next(stage for stage in data["stages"] if stage["id"] == "int8")["with"] = {"method": "minmax"}
        name = f"digits-{version}.yaml"
        yaml.dump(data, self.root / name)
        return name

    def endpoints(self) -> dict[str, str]:
        [target] = self.look("status", "digits.yaml")["targets"]
        [serving] = target["serving"]
        assert serving["healthy"]
        return {**serving["endpoints"], "version": serving["version"]}


def ask(endpoints: dict[str, str], image: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
    """Ask Triton for logits with its own client, over both protocols and without naming a version."""
    import tritonclient.grpc
    import tritonclient.http

    answers = {}
    for name, module in (("http", tritonclient.http), ("grpc", tritonclient.grpc)):
        client = module.InferenceServerClient(endpoints[name].removeprefix("http://"))
        tensor = module.InferInput("image", list(image.shape), "FP32")
        tensor.set_data_from_numpy(image)
        answers[name] = client.infer("digits", [tensor]).as_numpy("logits")
        client.close()
    return answers


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray[Any, Any]]:
    with np.load(SPECS / "data" / "digits-golden.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    root = tmp_path_factory.mktemp("digits")
    copy_specs(root)
    made = Project(root)
    yield made
    made.shipctl("down", "digits.yaml")


def test_digits_from_pytorch_to_triton_and_back(
    project: Project, golden: dict[str, np.ndarray[Any, Any]], tmp_path: Path
) -> None:
    # The first version: everything runs, and a client that is not ours gets the right classes.
    first = project.json("apply", "digits.yaml")
    assert first["exit_code"] == 0
    assert first["statuses"]["release"] == "done"
    endpoints = project.endpoints()
    assert endpoints["version"] == "1.0.0"
    first_answers = ask(endpoints, golden["image"])
    for answer in first_answers.values():
        assert answer.argmax(axis=1).tolist() == golden["label"].tolist()

    # Again: nothing had to be done.
    again = project.json("apply", "digits.yaml")
    assert set(again["statuses"].values()) == {"cached", "in-place"}

    # A second version takes over.
    write_second_version(
        project.root / "models" / "digits.safetensors", project.root / "models" / "second.safetensors"
    )
    second = project.spec("1.1.0", "second.safetensors", quick=True)
    project.shipctl("apply", second)
    assert project.endpoints()["version"] == "1.1.0"
    answered = ask(project.endpoints(), golden["image"])["http"]
    assert answered.argmax(axis=1).tolist() == golden["label"].tolist()
    assert np.abs(answered - first_answers["http"]).max() > 1e-3

    # A bad one loads, but its golden samples differ: rejected, and no request of a client notices.
    write_bad_version(
        project.root / "models" / "digits.safetensors", project.root / "models" / "bad.safetensors"
    )
    bad = project.spec("1.2.0", "bad.safetensors", quick=True)
    with Client(endpoints, golden["image"]) as client:
        project.shipctl("apply", bad, code=4)
    assert client.failures == []
    assert client.requests > 10
    assert "agreement" in project.runs[-1].stdout
    assert project.endpoints()["version"] == "1.1.0"
    np.testing.assert_allclose(ask(project.endpoints(), golden["image"])["grpc"], answered, atol=1e-5)

    # Back to the first, by one command; what was left is refused until it is asked for.
    with Client(endpoints, golden["image"]) as client:
        project.shipctl("rollback", second)
    assert client.failures == []
    assert project.endpoints()["version"] == "1.0.0"
    for protocol, answer in ask(endpoints, golden["image"]).items():
        np.testing.assert_allclose(answer, first_answers[protocol], atol=1e-5)
    refused = json.loads(project.shipctl("apply", second, "--json", code=7))
    assert "was rolled back" in refused["message"]
    assert "--retry" in refused["message"]
    history = project.look("history", "digits.yaml")
    assert [(item["version"], item["phase"]) for item in history["releases"]] == [
        ("1.0.0", "done"),
        ("1.2.0", "rejected"),
        ("1.1.0", "done"),
        ("1.0.0", "done"),
    ]

    # The page of the first run holds what a person asks for.
    page = tmp_path / "run.html"
    project.shipctl("report", first["run"], "-o", str(page))
    text = page.read_text()
    assert "<svg" in text
    for word in ("torch-export", "accuracy", "latency", "int8"):
        assert word in text
    assert "http://" not in text.replace("http://www.w3.org/2000/svg", "").replace("http://127.0.0.1", "")


class Client:
    """Asks a server again and again in a thread, as users would while something is released."""

    def __init__(self, endpoints: dict[str, str], image: np.ndarray[Any, Any]) -> None:
        self.requests = 0
        self.failures: list[str] = []
        self._endpoints = endpoints
        self._image = image
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._stop.wait(0.05):
            self.requests += 1
            try:
                ask(self._endpoints, self._image)
            except Exception as exc:  # noqa: BLE001  (any failure of a request is one)
                self.failures.append(f"{type(exc).__name__}: {exc}")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def test_servers_survive_the_death_of_shipctl_and_down_stops_them(project: Project) -> None:
    [serving] = project.json("status", "digits.yaml")["targets"][0]["serving"]
    pids = [int(pid) for pid in serving["details"]["pids"].split(", ")]
    assert len(pids) == 2
    assert all(map(_runs, pids))
    said = project.shipctl("down", "digits.yaml")
    assert "digits 1.0.0 (version 1): 2 replicas stopped" in said
    assert not any(map(_runs, pids))
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"{serving['endpoints']['http']}/v2/health/live", timeout=5)
    assert project.look("status", "digits.yaml")["targets"][0]["serving"] == []
    project.shipctl("apply", "digits.yaml")  # a stopped target is brought back from what is in the store
    again = project.endpoints()
    assert again["version"] == "1.0.0"
    assert again["http"] == serving["endpoints"]["http"]  # the door is where it was


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
