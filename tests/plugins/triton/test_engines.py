"""Stage `triton-config` with a TensorRT engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format  # type: ignore[import-untyped]

from shipctl.errors import SpecError, StageError
from shipctl.signature import Signature, TensorSpec
from shipctl.stages.artifacts import TensorrtEngine, TritonRepository
from shipctl.stages.context import CheckContext, StageContext, Upstream
from shipctl.testing.samples import sealed
from shipctl_plugins._triton.config_text import parse_config
from shipctl_plugins.triton.triton_config import TritonConfig, TritonConfigInputs, TritonConfigOptions

SIGNATURE = Signature(
    inputs=(TensorSpec(name="x", dtype="float16", shape=("batch", 4)),),
    outputs=(TensorSpec(name="y", dtype="float16", shape=("batch", 3)),),
)


def engine(folder: Path, **fields: Any) -> TensorrtEngine:
    (folder / "engine").mkdir(parents=True)
    (folder / "engine" / "model.plan").write_bytes(b"engine")
    known = {
        "signature": SIGNATURE, "flavor": "tensorrt", "version": "10.13.3", "compute_capabilities": ("8.9",),
        "profiles": ({"batch": (1, 8, 24)},),
    }  # fmt: skip
    return sealed(TensorrtEngine.at(folder / "engine", **{**known, **fields}))


def make(tmp_path: Path, model: TensorrtEngine, **options: Any) -> tuple[TritonRepository, dict[str, Any]]:
    stage = TritonConfig(TritonConfigOptions.model_validate({"name": "digits", **options}))
    (tmp_path / "work").mkdir()
    context = StageContext(workdir=tmp_path / "work", log=lambda line: None)
    repository = sealed(stage.run(TritonConfigInputs(model=model), context).repository)
    text = (repository.root / "digits" / "config.pbtxt").read_text()
    return repository, dict(json_format.MessageToDict(parse_config(text), preserving_proto_field_name=True))


def test_engine_becomes_a_plan_on_gpus(tmp_path: Path) -> None:
    model = engine(tmp_path)
    repository, config = make(tmp_path, model)
    assert [entry.path for entry in repository.files] == ["digits/1/model.plan", "digits/config.pbtxt"]
    assert (repository.max_batch_size, repository.source) == (24, model.digest)
    assert config == {
        "name": "digits",
        "platform": "tensorrt_plan",
        "max_batch_size": 24,
        "input": [{"name": "x", "data_type": "TYPE_FP16", "dims": ["4"]}],
        "output": [{"name": "y", "data_type": "TYPE_FP16", "dims": ["3"]}],
        "instance_group": [{"count": 1, "kind": "KIND_GPU"}],
        "dynamic_batching": {},
        "parameters": {"shipctl.model_digest": {"string_value": model.digest}},
    }


def test_all_profiles_are_served(tmp_path: Path) -> None:
    profiles = ({"batch": (1, 1, 4)}, {"batch": (4, 16, 64)})
    _, config = make(
        tmp_path, engine(tmp_path, profiles=profiles), instance_group={"kind": "gpu", "gpus": [1]}
    )
    assert config["max_batch_size"] == 64
    assert config["instance_group"] == [{"count": 1, "kind": "KIND_GPU", "gpus": [1], "profile": ["0", "1"]}]


def test_engine_without_varying_dimensions_is_not_batched(tmp_path: Path) -> None:
    signature = Signature(
        inputs=(TensorSpec(name="x", dtype="float32", shape=(2, 4)),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=(2, 3)),),
    )
    _, config = make(tmp_path, engine(tmp_path, signature=signature, profiles=()))
    assert "max_batch_size" not in config
    assert config["input"][0]["dims"] == ["2", "4"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"max_batch_size": 32},
            (
                "max_batch_size 32 is above the 24 that the engine's profile goes up to; build it for larger batches, "
                "or lower "
                "max_batch_size"
            ),
        ),
        ({"warmup": [32]}, "warmup: 32 is above max_batch_size 24"),
        (
            {"dynamic_batching": {"preferred_batch_size": [8, 28]}},
            "dynamic_batching.preferred_batch_size: 28 is above max_batch_size 24",
        ),
        (
            {"instance_group": {"kind": "cpu"}},
            "instance_group: a TensorRT engine runs on a GPU, not in instances of kind cpu",
        ),
    ],
)
def test_what_the_engine_cannot_do_fails(tmp_path: Path, options: Any, message: str) -> None:
    with pytest.raises(StageError) as caught:
        make(tmp_path, engine(tmp_path), **options)
    assert str(caught.value) == message


def test_engine_for_rtx_is_refused(tmp_path: Path) -> None:
    model = engine(tmp_path, flavor="tensorrt-rtx", version="1.7.1")
    message = (
        "this engine is one of TensorRT for RTX, which Triton's tensorrt backend does not load; build it with "
        "`backend: tensorrt` or `trtexec`, or serve the ONNX model"
    )
    with pytest.raises(StageError) as at_run:
        make(tmp_path, model)
    assert str(at_run.value) == message
    context = CheckContext(
        project=tmp_path, pipeline="p", inputs={"model": (Upstream(node="model", uses="", artifact=model),)}
    )
    with pytest.raises(SpecError) as at_plan:
        TritonConfig(TritonConfigOptions()).check(context)
    assert str(at_plan.value) == message
