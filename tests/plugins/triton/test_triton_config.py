"""Stage `triton-config`: a repository that Triton loads, and what Triton would refuse is found offline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from google.protobuf import json_format  # type: ignore[import-untyped]
from onnx import TensorProto, helper

from shipctl.errors import SpecError, StageError
from shipctl.signature import Signature, TensorSpec
from shipctl.stages.artifacts import OnnxModel, TritonRepository
from shipctl.stages.context import CheckContext, StageContext
from shipctl.testing.conformance import StageConformance
from shipctl.testing.samples import sealed, tiny_onnx_model
from shipctl_plugins._triton.config_text import disagreements, graph_tensors, parse_config, quoted
from shipctl_plugins.triton.triton_config import TritonConfig, TritonConfigInputs, TritonConfigOptions


class TestConformance(StageConformance):
    stage = "triton-config"


def make(tmp_path: Path, model: OnnxModel, **options: Any) -> TritonRepository:
    stage = TritonConfig(TritonConfigOptions.model_validate(options))
    stage.check(CheckContext(project=tmp_path, pipeline="p"))
    work = tmp_path / "work"
    work.mkdir()
    context = StageContext(workdir=work, log=lambda line: None)
    return sealed(stage.run(TritonConfigInputs(model=model), context).repository)


def config_of(repository: TritonRepository) -> dict[str, Any]:
    text = (repository.root / repository.model / "config.pbtxt").read_text()
    return dict(json_format.MessageToDict(parse_config(text), preserving_proto_field_name=True))


def onnx_model(
    folder: Path, inputs: dict[str, list[Any]], outputs: dict[str, list[Any]], kind: str = "float32"
) -> OnnxModel:
    """A model whose outputs are its inputs, by position; the shapes are as given."""
    element = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    nodes = [helper.make_node("Identity", [i], [o]) for i, o in zip(inputs, outputs, strict=True)]
    sides = [
        [helper.make_tensor_value_info(name, element, shape) for name, shape in side.items()]
        for side in (inputs, outputs)
    ]
    folder.mkdir(parents=True)
    graph = helper.make_graph(nodes, "g", sides[0], sides[1])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10),
        folder / "model.onnx",
    )
    specs = [
        tuple(
            TensorSpec.model_validate({"name": name, "dtype": kind, "shape": shape})
            for name, shape in side.items()
        )
        for side in (inputs, outputs)
    ]
    return sealed(OnnxModel.at(folder, signature=Signature(inputs=specs[0], outputs=specs[1]), opset=21))


def test_repository_holds_config_and_version_one(tmp_path: Path) -> None:
    model = tiny_onnx_model(tmp_path / "model")
    repository = make(tmp_path, model, name="digits")
    assert [entry.path for entry in repository.files] == ["digits/1/model.onnx", "digits/config.pbtxt"]
    assert (repository.root / "digits/1/model.onnx").read_bytes() == model.path.read_bytes()
    assert (repository.model, repository.max_batch_size, repository.source) == ("digits", 32, model.digest)
    assert config_of(repository) == {
        "name": "digits",
        "backend": "onnxruntime",
        "max_batch_size": 32,
        "input": [{"name": "x", "data_type": "TYPE_FP32", "dims": ["4"]}],
        "output": [{"name": "y", "data_type": "TYPE_FP32", "dims": ["3"]}],
        "instance_group": [{"count": 1}],
        "dynamic_batching": {},
        "parameters": {"shipctl.model_digest": {"string_value": model.digest}},
    }


def test_every_option_arrives(tmp_path: Path) -> None:
    repository = make(
        tmp_path,
        tiny_onnx_model(tmp_path / "model"),
        max_batch_size=16,
        dynamic_batching={"preferred_batch_size": [4, 8], "max_queue_delay": "1.5ms"},
        instance_group={"count": 2, "kind": "gpu", "gpus": [0, 1]},
        warmup=[1, 8],
        response_cache=True,
        parameters={"intra_op_thread_count": "2"},
    )
    config = config_of(repository)
    assert config["dynamic_batching"] == {
        "preferred_batch_size": [4, 8],
        "max_queue_delay_microseconds": "1500",
    }
    assert config["instance_group"] == [{"count": 2, "kind": "KIND_GPU", "gpus": [0, 1]}]
    assert config["response_cache"] == {"enable": True}
    assert config["parameters"]["intra_op_thread_count"] == {"string_value": "2"}
    zeros = {"x": {"data_type": "TYPE_FP32", "dims": ["4"], "zero_data": True}}
    assert config["model_warmup"] == [
        {"name": "batch of 1", "batch_size": 1, "inputs": zeros},
        {"name": "batch of 8", "batch_size": 8, "inputs": zeros},
    ]


def test_batching_can_be_turned_off(tmp_path: Path) -> None:
    config = config_of(make(tmp_path, tiny_onnx_model(tmp_path / "model"), dynamic_batching="off"))
    assert "dynamic_batching" not in config


def test_model_without_batch_dimension_keeps_all_dimensions(tmp_path: Path) -> None:
    model = onnx_model(tmp_path / "m", {"a": [1, "length"]}, {"b": [1, "length"]}, "int64")
    config = config_of(make(tmp_path, model))
    assert "max_batch_size" not in config
    assert "dynamic_batching" not in config
    assert config["input"] == [{"name": "a", "data_type": "TYPE_INT64", "dims": ["1", "-1"]}]


def test_one_number_per_sample_is_reshaped(tmp_path: Path) -> None:
    """Triton refuses empty dims."""
    config = config_of(make(tmp_path, onnx_model(tmp_path / "m", {"a": ["n"]}, {"b": ["n"]}), warmup=[2]))
    assert config["output"] == [{"name": "b", "data_type": "TYPE_FP32", "dims": ["1"], "reshape": {}}]


@pytest.mark.parametrize(
    "name", ['say "x"', "back\\slash", "new\nline", "tab\t", "ünïcode ✓", "ctrl\x01", "a' }"]
)
def test_any_tensor_name_survives(tmp_path: Path, name: str) -> None:
    model = onnx_model(tmp_path / "m", {name: ["n", 2]}, {f"{name} out": ["n", 2]})
    config = config_of(make(tmp_path, model))
    assert (config["input"][0]["name"], config["output"][0]["name"]) == (name, f"{name} out")
    assert parse_config(f"name: {quoted(name)}").name == name


def test_external_data_goes_along(tmp_path: Path) -> None:
    model = tiny_onnx_model(tmp_path / "model")
    (tmp_path / "model" / "weights.bin").write_bytes(b"w")
    repository = make(tmp_path, sealed(model.located(tmp_path / "model")), name="m")
    assert [entry.path for entry in repository.files] == [
        "m/1/model.onnx",
        "m/1/weights.bin",
        "m/config.pbtxt",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"parameters": {"shipctl.x": "1"}},
            "parameters: 'shipctl.x' is one of shipctl's own; choose a key without 'shipctl.'",
        ),
        ({"instance_group": {"gpus": [0]}}, "instance_group: gpus need kind gpu, not auto"),
        ({"max_batch_size": 0, "dynamic_batching": {}}, "dynamic_batching needs a max_batch_size above 0"),
        (
            {"max_batch_size": 4, "dynamic_batching": {"preferred_batch_size": [2, 8]}},
            "dynamic_batching.preferred_batch_size: 8 is above max_batch_size 4",
        ),
        ({"warmup": [64]}, "warmup: 64 is above max_batch_size 32"),
    ],
)
def test_contradicting_options_are_refused_at_plan_time(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    stage = TritonConfig(TritonConfigOptions.model_validate(options))
    with pytest.raises(SpecError) as caught:
        stage.check(CheckContext(project=tmp_path, pipeline="p"))
    assert str(caught.value) == message


def test_batching_a_model_of_fixed_size_is_refused(tmp_path: Path) -> None:
    model = onnx_model(tmp_path / "m", {"a": [1, 3]}, {"b": [1, 3]})
    with pytest.raises(StageError) as caught:
        make(tmp_path, model, max_batch_size=8)
    assert str(caught.value) == (
        "Triton cannot batch this model: not every tensor begins with the same varying dimension (a: float32[1, 3]; "
        "b: float32[1, 3]); export it with one, or set max_batch_size: 0 and dynamic_batching: off"
    )


def test_warmup_needs_known_sizes(tmp_path: Path) -> None:
    model = onnx_model(tmp_path / "m", {"a": ["n", "length"]}, {"b": ["n", "length"]})
    with pytest.raises(StageError) as caught:
        make(tmp_path, model, warmup=[1])
    assert str(caught.value) == (
        "warmup: input 'a' has a varying dimension beside the batch ([-1]), so there is no size to warm up with; "
        "leave warmup out"
    )


def test_signature_that_is_not_the_graphs_is_found_before_triton_does(tmp_path: Path) -> None:
    model = onnx_model(tmp_path / "m", {"a": ["n", 2]}, {"b": ["n", 2]})
    other = onnx_model(tmp_path / "o", {"x": ["n", 2]}, {"b": ["n", 2]})
    with pytest.raises(StageError) as caught:
        make(tmp_path, model.model_copy(update={"signature": other.signature}).located(model.root))
    assert str(caught.value) == (
        "Triton would refuse this repository:\n  unexpected inference input 'x', allowed inputs are: a"
    )


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (
            'max_batch_size: 4 input { name: "a" data_type: TYPE_FP32 dims: [2] }',
            None,
        ),
        (
            'max_batch_size: 4 input { name: "a" data_type: TYPE_INT8 dims: [2] }',
            (
                "unable to load model 'm', configuration expects datatype TYPE_INT8 for input 'a', "
                "model provides TYPE_FP32"
            ),
        ),
        (
            'max_batch_size: 4 input { name: "a" data_type: TYPE_FP32 dims: [3, 2] }',
            (
                "model 'm', tensor 'a': the model expects 2 dimensions (shape [-1,2]) but the model configuration "
                "specifies 3 dimensions (an initial batch dimension because max_batch_size > 0 followed by the "
                "explicit tensor shape, making complete shape [-1,3,2])"
            ),
        ),
        (
            'input { name: "a" data_type: TYPE_FP32 dims: [2] }',
            (
                "model 'm', tensor 'a': the model expects 2 dimensions (shape [-1,2]) but the model configuration "
                "specifies 1 dimensions (shape [2])"
            ),
        ),
        (
            "max_batch_size: 4",
            "unable to load model 'm', configuration expects 0 inputs, model provides 1",
        ),
        (
            (
                'max_batch_size: 4 input { name: "a" data_type: TYPE_FP32 dims: [2] } '
                'output { name: "f" data_type: TYPE_FP32 dims: [2] }'
            ),
            (
                "model 'm', tensor 'f': for the model to support batching the shape should have at least 1 dimension "
                "and the first dimension must be -1; but shape expected by the model is [1,2]"
            ),
        ),
    ],
)
def test_disagreements_are_worded_as_triton_words_them(
    tmp_path: Path, config: str, expected: str | None
) -> None:
    graph = helper.make_graph(
        [helper.make_node("Identity", ["a"], ["b"])],
        "g",
        [helper.make_tensor_value_info("a", TensorProto.FLOAT, ["n", 2])],
        [helper.make_tensor_value_info("f", TensorProto.FLOAT, [1, 2])],
    )
    onnx.save(helper.make_model(graph), tmp_path / "model.onnx")
    tensors = graph_tensors(tmp_path / "model.onnx")
    assert disagreements(parse_config(f'name: "m" {config}'), *tensors) == ([expected] if expected else [])


def test_unreadable_config_is_named_with_its_place() -> None:
    with pytest.raises(
        StageError, match=r"^the rendered config.pbtxt cannot be read by Triton: 1:1 : .*no field named"
    ):
        parse_config("nonsense: 1")
