"""The whole way of a release: built, packaged, scanned, signed, published to a real S3 server, served from there."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from shipctl_plugins._triton.environment import ensure_server_environment
from shipctl_plugins._triton.server import TritonServer
from support_in_process import in_process
from support_models import write_second_version
from support_s3 import S3Server, use
from support_specs import copy_specs

pytestmark = [
    pytest.mark.triton,
    pytest.mark.torch,
    pytest.mark.s3,
    pytest.mark.slow,
    pytest.mark.timeout(600),
]

SPECS = Path(__file__).parents[2] / "specs"
POLICY = """\
apiVersion: shipctl.dev/v1
kind: Policy
signatures:
  required: true
  keys: [specs/keys/release.key.pub]
"""


@dataclass
class Runner:
    """One machine: a checkout of the specs, and a store that all share."""

    root: Path
    environ: dict[str, str]
    said: list[str] = field(default_factory=list)

    def shipctl(self, *arguments: str, code: int = 0) -> str:
        command = [sys.executable, "-m", "shipctl.cli", *arguments]
        done = subprocess.run(
            command, cwd=self.root, env=self.environ, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == code, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        self.said.append(done.stderr)
        return done.stdout

    def here(self, *arguments: str, code: int = 0) -> str:
        """Run a command that only looks, or one of many, in this process; the others are as a user has them."""
        with patch.dict(os.environ, self.environ, clear=True):
            done = in_process(self.root, *arguments)
        assert done.exit_code == code, f"{arguments}: {done}"
        return done.stdout

    def json(self, *arguments: str, code: int = 0) -> Any:
        return json.loads(self.shipctl(*arguments, "--json", code=code))

    def look(self, *arguments: str) -> Any:
        return json.loads(self.here(*arguments, "--json"))


@pytest.fixture
def bucket(rgw: S3Server) -> str:
    return rgw.bucket()


@pytest.fixture
def runner(tmp_path: Path, rgw: S3Server, bucket: str) -> Iterator[Callable[[str], Runner]]:
    """Makes one more machine with a checkout of the same specs and the same policy."""
    keys = tmp_path / "keys"
    made: list[Runner] = []

    def make(name: str) -> Runner:
        root = tmp_path / name
        copy_specs(root / "specs", "keys")
        (root / ".git").mkdir()
        (root / "shipctl-policy.yaml").write_text(POLICY)
        environ = {
            **{key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "SHIPCTL_"))},
            **rgw.environment,
            "AWS_ENDPOINT_URL_S3": rgw.endpoint,
            "SHIPCTL_STORE": f"s3://{bucket}/team",
        }
        machine = Runner(root, environ)
        if not keys.exists():
            machine.shipctl("keygen", str(keys / "release.key"))
        shutil.copytree(keys, root / "specs" / "keys")
        made.append(machine)
        return machine

    yield make
    for machine in made:
        machine.here("down", "specs/digits-serve.yaml")


def objects(rgw: S3Server, bucket: str) -> Any:
    import minio

    return minio.Minio(
        rgw.endpoint.removeprefix("http://"), rgw.access_key, rgw.secret_key, secure=False, region=rgw.region
    )


@pytest.fixture
def golden() -> dict[str, Any]:
    import numpy as np

    with np.load(SPECS / "data" / "digits-golden.npz") as arrays:
        return dict(arrays)


def served_from_bucket(rgw: S3Server, uri: str, folder: Path, golden: dict[str, Any]) -> list[int]:
    """Return the classes that a Triton server gives, which knows nothing but the bucket."""
    import tritonclient.http

    place = uri.removeprefix("s3://")
    server = TritonServer.start(
        ensure_server_environment(print),
        repository=folder / "none",
        folder=folder,
        models=["digits"],
        bound=True,
        arguments=[f"--model-repository=s3://{rgw.endpoint}/{place}"],
    )
    try:
        client = tritonclient.http.InferenceServerClient(server.endpoints["http"].removeprefix("http://"))
        image = tritonclient.http.InferInput("image", list(golden["image"].shape), "FP32")
        image.set_data_from_numpy(golden["image"])
        classes = client.infer("digits", [image]).as_numpy("logits").argmax(axis=1)
        client.close()
        return [int(item) for item in classes]
    finally:
        server.stop()


def test_digits_from_pytorch_to_a_bucket_and_from_there_to_triton(
    runner: Callable[[str], Runner],
    rgw: S3Server,
    bucket: str,
    golden: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # One machine builds and publishes.
    ci = runner("ci")
    first = ci.json("apply", "specs/digits-registry.yaml")
    assert first["statuses"]["publish"] == "done"

    # Another one has nothing to build: results, measurements and the publication are in the store.
    other = runner("other")
    again = other.json("apply", "specs/digits-registry.yaml")
    assert {status for name, status in again["statuses"].items() if name != "publish"} == {"cached"}
    assert again["warnings"] == []

    # A third one serves it: what it fetched was signed by whom the policy trusts.
    production = runner("production")
    production.shipctl("apply", "specs/digits-serve.yaml")
    [target] = production.look("status", "specs/digits-serve.yaml")["targets"]
    assert [serving["healthy"] for serving in target["serving"]] == [True]
    found = production.json("verify", "digits@staging", "--expect", "digits@1.0.0")
    assert found["package"]["digest"] == ci.look("registry", "show", "digits@1.0.0")["version"]["digest"]

    # A Triton server of anybody's reads the repository straight from the bucket.
    tags = ci.look("registry", "show", "digits@1.0.0")["version"]["tags"]
    assert tags["triton-repository"] == f"s3://{bucket}/team/repositories/{found['package']['digest']}"
    use(monkeypatch, rgw)
    classes = served_from_bucket(rgw, tags["triton-repository"], production.root / "direct", golden)
    assert classes == golden["label"].tolist()

    # What each spec for a cluster would put there holds against the schemas, and reads from that bucket.
    for spec in sorted((production.root / "specs/kubernetes").glob("*.yaml")):
        name = f"specs/kubernetes/{spec.name}"
        production.here("apply", name, "--until", "unpack")
        rendered = production.here("render", name)
        assert f"/{bucket}/team/repositories/" in rendered, name

    # The second version takes over; the first one stays, and anybody can go back.
    write_second_version(
        ci.root / "specs/models/digits.safetensors", ci.root / "specs/models/second.safetensors"
    )
    ci.shipctl(
        "apply", "specs/digits-registry.yaml",
        "--set", "metadata.version=1.1.0", "--set", "model.weights=models/second.safetensors",
    )  # fmt: skip
    assert ci.look("registry", "show", "digits@staging")["version"]["version"] == "1.1.0"
    production.shipctl("apply", "specs/digits-serve.yaml", "--set", "metadata.version=1.1.0")
    production.shipctl("rollback", "specs/digits-serve.yaml", "--set", "metadata.version=1.1.0")
    [target] = production.look("status", "specs/digits-serve.yaml")["targets"]
    assert target["serving"][0]["version"] == "1.0.0"

    # What serves is kept, whatever is collected; a version that serves cannot be retired.
    production.here("retire", "digits@1.0.0", code=4)
    collected = ci.json("gc", "--store", f"s3://{bucket}/team", "--min-age", "0s", "--keep-results", "0s")
    assert collected["collected"]["files"]["deleted"] > 0
    production.here("verify", "digits@1.0.0")

    # One byte of the model is changed in the bucket: nobody serves it any more.
    digest = next(
        entry["sha256"] for entry in found["package"]["entries"] if entry["path"] == "model/model.onnx"
    )
    client, key = objects(rgw, bucket), f"team/blobs/{digest[:2]}/{digest}"
    answer = client.get_object(bucket, key)
    data = bytearray(answer.read())
    answer.release_conn()
    data[100] ^= 1
    client.put_object(bucket, key, io.BytesIO(bytes(data)), len(data))
    late = runner("late")
    late.shipctl("verify", "digits@1.0.0", code=1)
    assert "is damaged" in late.said[-1]
    late.shipctl("apply", "specs/digits-serve.yaml", code=1)
    assert late.look("status", "specs/digits-serve.yaml")["targets"][0]["serving"] == []

    # Everything is on record, whoever did it.
    entries = ci.look("history", "specs/digits-registry.yaml", "--audit", "-n", "100")["entries"]
    log = [(entry["action"], entry["subject"]) for entry in reversed(entries)]
    assert log[:4] == [
        ("apply begun", "digits@1.0.0"),
        ("register", "digits@1.0.0"),
        ("alias", "digits@1.0.0"),
        ("apply done", "digits@1.0.0"),
    ]
    assert ("rollback done", "digits@1.0.0") in log
