"""Stage `prune`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from pydantic import ValidationError

from shipctl.errors import SpecError, StageError
from shipctl.signature import Signature, TensorSpec
from shipctl.stages.artifacts import Dataset, OnnxModel
from shipctl.stages.context import CheckContext, JudgeContext, Upstream
from shipctl.stages.verdicts import Outcome
from shipctl.testing.conformance import StageConformance
from shipctl_plugins._onnx import arrays
from shipctl_plugins._onnx.plain_graphs import weights_of
from shipctl_plugins._onnx.session import open_session, run_session
from shipctl_plugins.optimize.prune import Inputs, Options, Outputs, Prune
from support_small_transformer import small_transformer

Nodes = list[onnx.NodeProto]


class TestConformance(StageConformance):
    stage = "prune"
    options = {"method": "magnitude", "ratio": 0.5}  # noqa: RUF012


def prune(model: OnnxModel, context: Any, calibration: Dataset | None = None, **options: Any) -> Outputs:
    return Prune(Options(**options)).run(Inputs(model=model, calibration=calibration), context())


def rows(outputs: Outputs) -> dict[str, tuple[int, int]]:
    return {row["layer"]: (row["before"], row["after"]) for row in outputs.report.details["layers"]}


def reasons(outputs: Outputs) -> dict[str, str]:
    return {row["layer"]: row["why"] for row in outputs.report.details["layers"]}


def weights(outputs: Outputs) -> dict[str, Any]:
    return weights_of(onnx.load(outputs.model.path).graph)


def accuracy(model: OnnxModel, evaluation: Dataset) -> float:
    data = arrays.load_arrays(evaluation)
    answers = run_session(open_session(model.path), {"image": data["image"]})["logits"]
    return float((answers.argmax(1) == data["label"]).mean())


# -- channels on the digits model ----------------------------------------------------------------------------


def test_channels_of_digits_go_and_shapes_shrink(digits_onnx: OnnxModel, context: Any) -> None:
    stage = Prune(Options(ratio=0.25))
    outputs = stage.run(Inputs(model=digits_onnx), context())
    assert rows(outputs) == {
        "Conv": (32, 24), "Conv_2": (64, 48), "Conv_4": (64, 48), "Conv_7": (64, 48), "Gemm": (10, 10),
    }  # fmt: skip
    assert reasons(outputs)["Gemm"] == "it is output 'logits'"
    shapes = {name: array.shape for name, array in weights(outputs).items()}
    assert (shapes["w1"], shapes["b1"], shapes["w"]) == ((48, 24, 3, 3), (48,), (10, 48 * 4))
    metrics = outputs.report.metrics
    assert metrics["pruned.channels"] == 8 + 16 * 3
    assert metrics["pruned.layers"] == 4
    assert metrics["parameters.before"] == 95242
    assert metrics["parameters.after"] == sum(array.size for array in weights(outputs).values())
    # by hand: two per multiplication, 8·8 places of the first three convolutions, 4·4 of the last, and the head
    assert metrics["flops.before"] == 2 * (64 * 9 * (32 + 32 * 64 + 64 * 64) + 16 * 9 * 64 * 64 + 256 * 10)
    assert metrics["flops.after"] == 2 * (64 * 9 * (24 + 24 * 48 + 48 * 48) + 16 * 9 * 48 * 48 + 192 * 10)
    assert metrics["size.after"] == outputs.model.size < digits_onnx.size * 0.6
    assert outputs.model.signature == digits_onnx.signature
    assert outputs.model.derived_from == digits_onnx.digest
    assert [verdict.gate for verdict in stage.judge(outputs, JudgeContext())] == ["outputs.not_finite"]


@pytest.mark.slow
def test_compensation_keeps_the_accuracy(
    digits_onnx: OnnxModel, calibration: Dataset, evaluation: Dataset, context: Any
) -> None:
    """Half of the channels: without it the model knows nothing any more."""
    plain = prune(digits_onnx, context, calibration, ratio=0.5, compensate=False)
    fitted = prune(digits_onnx, context, calibration, ratio=0.5)
    assert fitted.report.details["fitted"] == ["Conv_2", "Conv_4", "Conv_7", "Gemm"]
    assert plain.report.details["fitted"] == []
    assert accuracy(plain.model, evaluation) < 0.5
    assert accuracy(fitted.model, evaluation) > accuracy(digits_onnx, evaluation) - 0.01
    assert fitted.model.size == plain.model.size < digits_onnx.size * 0.27


def test_least_important_channels_go(digits_onnx: OnnxModel, context: Any) -> None:
    before = weights_of(onnx.load(digits_onnx.path).graph)["w0"]
    after = weights(prune(digits_onnx, context, ratio=0.25, norm="l1", exclude=["Conv_*"]))["w0"]
    norms = np.abs(before).sum((1, 2, 3))
    np.testing.assert_array_equal(after, before[np.sort(np.argsort(norms)[8:])])


def test_layers_can_have_fractions_of_their_own(digits_onnx: OnnxModel, context: Any) -> None:
    outputs = prune(digits_onnx, context, layers={"Conv_4": 0.5, "Conv_*": 0.1}, multiple_of=8)
    assert rows(outputs) == {
        "Conv": (32, 32), "Conv_2": (64, 64), "Conv_4": (64, 32), "Conv_7": (64, 64), "Gemm": (10, 10),
    }  # fmt: skip
    assert reasons(outputs)["Conv"] == "it was not asked for"
    assert reasons(outputs)["Conv_2"] == (
        "the ratio takes less than one channel, or than multiple_of asks for"
    )


def test_same_input_gives_the_same_digest(digits_onnx: OnnxModel, calibration: Dataset, context: Any) -> None:
    digests = {
        prune(digits_onnx, context, calibration, ratio=0.25, samples=32).model.digest for _ in range(2)
    }
    assert len(digests) == 1


# -- what depends on channels --------------------------------------------------------------------------------


class Net:
    """Builds a graph in which chosen channels are zero, so that a right cut of just those changes no answer."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(3)
        self.nodes: Nodes = []
        self.weights: dict[str, Any] = {}

    def conv(
        self, source: str, name: str, size: tuple[int, int], dead: Any = (), kernel: int = 3, **more: Any
    ) -> str:
        """Add a convolution of ``size`` (outputs, inputs per group) whose ``dead`` outputs are zero."""
        weight = self.rng.standard_normal((*size, kernel, kernel)).astype(np.float32)
        bias = self.rng.standard_normal(size[0]).astype(np.float32)
        weight[list(dead)], bias[list(dead)] = 0, 0
        self.weights[f"{name}.w"], self.weights[f"{name}.b"] = weight, bias
        pads = {"pads": [kernel // 2] * 4}
        return self.add("Conv", [source, f"{name}.w", f"{name}.b"], name, **pads, **more)

    def dense(self, source: str, name: str, size: tuple[int, int]) -> str:
        """Add a fully connected layer of ``size`` (outputs, inputs)."""
        self.weights[f"{name}.w"] = self.rng.standard_normal(size).astype(np.float32)
        return self.add("Gemm", [source, f"{name}.w"], name, transB=1)

    def add(self, op: str, inputs: list[str], name: str, **attributes: Any) -> str:
        """Add any node and return the name of its output."""
        self.nodes.append(helper.make_node(op, inputs, [f"{name}_out"], name, **attributes))
        return f"{name}_out"

    def constant(self, name: str, value: Any) -> str:
        """Add a weight."""
        self.weights[name] = np.asarray(value)
        return name

    def model(self, last: str, make: Any, outputs: tuple[Any, ...] = ("batch", 5), **more: Any) -> OnnxModel:
        """Return the model with ``last`` as output and an image of 3 channels, 8 by 8, as input."""
        signature = Signature(
            inputs=(TensorSpec(name="image", dtype="float32", shape=("batch", 3, 8, 8)),),
            outputs=(TensorSpec(name="answer", dtype="float32", shape=outputs),),
        )
        nodes = [*self.nodes, helper.make_node("Identity", [last], ["answer"], "end")]
        made: OnnxModel = make(nodes, self.weights, signature, **more)
        return made


@pytest.fixture
def exact(onnx_model: Any, context: Any) -> Callable[..., Outputs]:
    """Prune a net and see that the answers stay what they were."""

    def make(
        net: Net, last: str, ratio: float = 0.25, shape: tuple[Any, ...] = ("batch", 5), **options: Any
    ) -> Outputs:
        outputs = prune(net.model(last, onnx_model, shape), context, ratio=ratio, **options)
        assert outputs.report.metrics["parity.max_rel_error"] < 1e-5
        return outputs

    return make


def test_normalisation_follows_its_convolution(exact: Any) -> None:
    net = Net()
    hidden = net.conv("image", "a", (8, 3), dead=(1, 6))
    scale = np.linspace(1, 2, 8, dtype=np.float32)
    shift, mean = np.ones(8, np.float32), np.ones(8, np.float32)
    shift[[1, 6]] = mean[[1, 6]] = 0
    names = [net.constant(f"n{i}", array) for i, array in enumerate((scale, shift, mean, scale**2))]
    hidden = net.add("BatchNormalization", [hidden, *names], "norm")
    hidden = net.add("Relu", [hidden], "relu")
    last = net.dense(net.add("Flatten", [hidden], "flat"), "head", (5, 8 * 64))
    outputs = exact(net, last)
    assert rows(outputs) == {"a": (8, 6), "head": (5, 5)}
    assert [weights(outputs)[f"n{index}"].shape for index in range(4)] == [(6,)] * 4
    assert weights(outputs)["head.w"].shape == (5, 6 * 64)


def test_normalisation_counts_in_the_importance(onnx_model: Any, context: Any) -> None:
    """A channel of large weights that its normalisation makes small is a small one."""
    net = Net()
    hidden = net.conv("image", "a", (4, 3))
    net.weights["a.w"][0] *= 100
    names = [
        net.constant(name, np.array(values, np.float32))
        for name, values in (("g", [1e-6, 1, 1, 1]), ("b", [0] * 4), ("m", [0] * 4), ("v", [1] * 4))
    ]
    hidden = net.add("BatchNormalization", [hidden, *names], "norm")
    last = net.dense(net.add("Flatten", [hidden], "flat"), "head", (5, 4 * 64))
    outputs = prune(net.model(last, onnx_model), context, ratio=0.25)
    np.testing.assert_array_equal(weights(outputs)["g"], [1, 1, 1])


def test_both_sides_of_a_residual_addition_lose_the_same(exact: Any) -> None:
    net = Net()
    left = net.conv("image", "a", (8, 3), dead=(2, 5))
    inner = net.add("Relu", [net.conv(left, "b", (12, 8), dead=(0, 1, 11))], "relu1")
    right = net.conv(inner, "c", (8, 12), dead=(2, 5))
    added = net.add("Relu", [net.add("Add", [right, left], "sum")], "relu2")
    pooled = net.add("Flatten", [net.add("GlobalAveragePool", [added], "pool")], "flat")
    outputs = exact(net, net.dense(pooled, "head", (5, 8)))
    assert rows(outputs) == {"a": (8, 6), "b": (12, 9), "c": (8, 6), "head": (5, 5)}


def test_residual_addition_to_the_input_is_left_alone(exact: Any) -> None:
    net = Net()
    hidden = net.conv("image", "a", (8, 3), dead=(0, 7))
    back = net.conv(hidden, "b", (3, 8))
    added = net.add("Add", [back, "image"], "sum")
    outputs = exact(net, net.dense(net.add("Flatten", [added], "flat"), "head", (5, 192)))
    assert rows(outputs) == {"a": (8, 6), "b": (3, 3), "head": (5, 5)}
    assert reasons(outputs)["b"] == "Add 'sum' joins it with what is left alone"


def test_layers_that_are_added_up_need_one_ratio(onnx_model: Any, context: Any) -> None:
    net = Net()
    left, right = net.conv("image", "a", (8, 3)), net.conv("image", "b", (8, 3))
    added = net.add("Add", [left, right], "sum")
    model = net.model(net.dense(net.add("Flatten", [added], "flat"), "head", (5, 512)), onnx_model)
    with pytest.raises(StageError) as caught:
        prune(model, context, layers={"a": 0.25, "b": 0.5})
    assert str(caught.value) == (
        "these layers are added up, so they lose the same channels; give them the same ratio (a: 0.25, b: 0.5)"
    )


def test_concatenation_keeps_its_offsets(exact: Any) -> None:
    net = Net()
    first = net.conv("image", "a", (8, 3), dead=(7, 6))
    second = net.conv("image", "b", (4, 3), dead=(2,))
    both = net.add("Concat", ["image", first, second], "both", axis=1)
    last = net.conv(both, "c", (4, 15), dead=(3,))
    outputs = exact(net, net.dense(net.add("Flatten", [last], "flat"), "head", (5, 256)))
    assert rows(outputs) == {"a": (8, 6), "b": (4, 3), "c": (4, 3), "head": (5, 5)}
    assert weights(outputs)["c.w"].shape == (3, 3 + 6 + 3, 3, 3)


@pytest.mark.parametrize("factor", [1, 2])
def test_depthwise_convolution_follows_what_it_reads(exact: Any, factor: int) -> None:
    net = Net()
    hidden = net.conv("image", "a", (8, 3), dead=(3, 4))
    follows = [place * factor + offset for place in (3, 4) for offset in range(factor)]
    hidden = net.conv(hidden, "depth", (8 * factor, 1), dead=follows, group=8)
    last = net.conv(net.add("Relu", [hidden], "relu"), "point", (4, 8 * factor), (1,), kernel=1)
    outputs = exact(net, net.dense(net.add("Flatten", [last], "flat"), "head", (5, 256)))
    assert rows(outputs) == {"a": (8, 6), "point": (4, 3), "head": (5, 5)}
    assert weights(outputs)["depth.w"].shape == (6 * factor, 1, 3, 3)
    depth = next(node for node in onnx.load(outputs.model.path).graph.node if node.name == "depth")
    assert next(entry.i for entry in depth.attribute if entry.name == "group") == 6


def test_gate_of_a_squeeze_and_excitation_follows(exact: Any) -> None:
    net = Net()
    hidden = net.conv("image", "a", (8, 3), dead=(0, 1))
    pooled = net.add("ReduceMean", [hidden, net.constant("places", [2, 3])], "pool", keepdims=1)
    small = net.add("Relu", [net.conv(pooled, "down", (4, 8), dead=(1,), kernel=1)], "relu")
    gate = net.add("Tanh", [net.conv(small, "up", (8, 4), dead=(0, 1), kernel=1)], "tanh")
    scaled = net.add("Mul", [hidden, gate], "scale")
    outputs = exact(net, net.dense(net.add("Flatten", [scaled], "flat"), "head", (5, 512)))
    assert rows(outputs) == {"a": (8, 6), "down": (4, 3), "up": (8, 6), "head": (5, 5)}


def test_target_of_a_reshape_is_rewritten(exact: Any) -> None:
    net = Net()
    target = net.constant("target", [-1, 256])
    hidden = net.conv("image", "a", (4, 3), dead=(2,))
    first = net.dense(net.add("Reshape", [hidden, target], "flat1"), "one", (5, 256))
    other = net.add("Reshape", [net.conv("image", "b", (4, 3)), target], "flat2")
    last = net.add("Add", [first, net.dense(other, "two", (5, 256))], "sum")
    outputs = exact(net, last, exclude=["b", "one", "two"])
    made = weights(outputs)
    np.testing.assert_array_equal(made["target/flat1"], [-1, 192])
    np.testing.assert_array_equal(made["target"], [-1, 256])


def test_channels_last_are_followed_through_transpositions(exact: Any) -> None:
    net = Net()
    turned = net.add("Transpose", [net.conv("image", "a", (8, 3), dead=(0, 5))], "turn", perm=[0, 2, 3, 1])
    turned = net.add("Add", [turned, net.constant("bias", np.zeros(8, np.float32))], "bias_add")
    outputs = exact(net, net.dense(net.add("Flatten", [turned], "flat"), "head", (5, 512)))
    assert rows(outputs) == {"a": (8, 6), "head": (5, 5)}
    assert weights(outputs)["bias"].shape == (6,)


def test_transposed_convolution_loses_outputs_and_inputs(exact: Any) -> None:
    net = Net()
    hidden = net.conv("image", "a", (8, 3), dead=(1, 2))
    kernel = net.rng.standard_normal((8, 4, 2, 2)).astype(np.float32)
    kernel[:, 3] = 0
    hidden = net.add("ConvTranspose", [hidden, net.constant("up.w", kernel)], "up", strides=[2, 2])
    outputs = exact(net, net.dense(net.add("Flatten", [hidden], "flat"), "head", (5, 4 * 256)))
    assert rows(outputs) == {"a": (8, 6), "up": (4, 3), "head": (5, 5)}
    assert outputs.report.metrics["flops.before"] == 2 * (64 * 9 * 3 * 8 + 64 * 8 * 4 * 4 + 1024 * 5)


@pytest.mark.parametrize(
    ("op", "attributes", "extra", "why"),
    [
        ("Softmax", {"axis": 1}, {}, "Softmax 'op' works across it"),
        ("ReduceMean", {"keepdims": 1}, {"axes": np.array([1])}, "ReduceMean 'op' works across it"),
        ("Split", {"axis": 1, "num_outputs": 2}, {}, "Split 'op' takes a part of it"),
        ("Gather", {"axis": 1}, {"places": np.array([0, 3])}, "Gather 'op' chooses from it"),
        ("Slice", {}, {"s": np.array([0]), "e": np.array([4]), "a": np.array([1])}, "Slice 'op' takes a part of it"),
        ("DepthToSpace", {"blocksize": 2}, {}, "DepthToSpace 'op' uses it"),
        ("Reshape", {}, {"to": np.array([0, 2, 4, 8, 8])}, "Reshape 'op' splits it or merges it with others"),
        ("Resize", {"mode": "nearest"}, {"": np.array(0), "sizes": np.array([1, 8, 16, 16])}, "Resize 'op' uses it"),
    ],
)  # fmt: skip
def test_what_cannot_be_cut_is_left_alone(
    onnx_model: Any, context: Any, op: str, attributes: Any, extra: dict[str, Any], why: str
) -> None:
    net = Net()
    before = net.conv("image", "before", (8, 3))
    source = net.conv(before, "a", (8, 8))
    names = [name and net.constant(name, value) for name, value in extra.items()]
    if op == "Resize":
        names = ["", "", "sizes"]
    last = net.add(op, [source, *names], "op", **attributes)
    if op == "Split":
        net.nodes[-1].output.append("rest")
    pooled = net.add("ReduceMean", [last, net.constant("all", [-1, -2])], "pool", keepdims=0)
    model = net.model(pooled, onnx_model, outputs=("batch", *(("c", "d") if op == "Reshape" else ("c",))))
    outputs = prune(model, context, ratio=0.5, batches=(1,))
    assert rows(outputs) == {"before": (8, 4), "a": (8, 8)}
    assert reasons(outputs)["a"] == why


def test_grouped_convolution_is_left_alone(onnx_model: Any, context: Any) -> None:
    net = Net()
    hidden = net.conv("image", "a", (8, 3))
    hidden = net.conv(hidden, "grouped", (8, 2), group=4)
    last = net.conv(hidden, "c", (4, 8))
    outputs = prune(
        net.model(net.dense(net.add("Flatten", [last], "f"), "head", (5, 256)), onnx_model),
        context,
        ratio=0.5,
    )
    assert rows(outputs) == {"a": (8, 8), "c": (4, 2), "head": (5, 5)}
    assert reasons(outputs)["a"] == "Conv 'grouped' has 4 groups"


def test_every_layer_keeps_a_channel(onnx_model: Any, context: Any) -> None:
    """Both channels of one are the least important of all, and one of them stays."""
    net = Net()
    small, large = net.conv("image", "small", (2, 3)), net.conv("image", "large", (6, 3))
    both = net.add("Concat", [small, large], "both", axis=1)
    added = net.add("Add", [both, net.conv("image", "other", (8, 3))], "sum")
    net.weights["other.w"][:2] *= 1e-3
    last = net.dense(net.add("Flatten", [added], "flat"), "head", (5, 512))
    outputs = prune(net.model(last, onnx_model), context, ratio=0.6)
    assert rows(outputs) == {"small": (2, 1), "large": (6, 3), "other": (8, 4), "head": (5, 5)}


def test_inner_layers_of_a_transformer_are_pruned(onnx_model: Any, context: Any) -> None:
    outputs = prune(onnx_model(*small_transformer()), context, ratio=0.25)
    found = rows(outputs)
    assert {name: size for name, size in found.items() if size[0] != size[1]} == {
        "block0.f1": (64, 48), "block1.f1": (64, 48),
    }  # fmt: skip
    assert reasons(outputs)["block0.q"] == "Reshape 'block0.q_split' splits it or merges it with others"
    assert reasons(outputs)["block0.o"] == "Add 'block0.skip1' joins it with what is left alone"
    assert weights(outputs)["block0.f2.w"].shape == (48, 32)


def test_fitting_takes_products_without_a_bias(onnx_model: Any, dataset: Any, context: Any) -> None:
    nodes, values, signature = small_transformer()
    data = dataset(
        "calibration", tokens=np.random.default_rng(5).standard_normal((128, 8, 32)).astype(np.float32)
    )
    model = onnx_model(nodes, values, signature)
    plain = prune(model, context, data, ratio=0.5, compensate=False)
    fitted = prune(model, context, data, ratio=0.5)
    assert fitted.report.details["fitted"] == ["block0.f2", "block1.f2"]
    assert fitted.report.metrics["parity.cosine"] > plain.report.metrics["parity.cosine"]


# -- single weights ------------------------------------------------------------------------------------------


def test_smallest_weights_of_every_layer_become_zero(digits_onnx: OnnxModel, context: Any) -> None:
    outputs = prune(digits_onnx, context, method="magnitude", ratio=0.5, exclude=["Gemm"])
    before, after = weights_of(onnx.load(digits_onnx.path).graph), weights(outputs)
    for name in ("w0", "w1", "w2", "w4"):
        gone = (after[name] == 0).sum()
        assert gone == before[name].size // 2
        assert np.abs(before[name][after[name] == 0]).max() <= np.abs(after[name][after[name] != 0]).min()
    assert (after["w"] != 0).all()
    assert outputs.report.metrics["pruned.weights"] == 92448 // 2
    assert outputs.report.metrics["sparsity"] == pytest.approx(46224 / 95008)
    assert outputs.report.metrics["flops.after"] == outputs.report.metrics["flops.before"]
    assert reasons(outputs)["Gemm"] == "it is in exclude"


def test_smallest_weights_of_all_layers_together(digits_onnx: OnnxModel, context: Any) -> None:
    outputs = prune(digits_onnx, context, method="magnitude", ratio=0.5, scope="global")
    left = {name: after / before for name, (before, after) in rows(outputs).items()}
    assert outputs.report.metrics["sparsity"] == 0.5
    assert left["Conv"] > 0.9 > left["Conv_7"]


def test_two_of_four_neighbours_along_the_inputs_stay(digits_onnx: OnnxModel, context: Any) -> None:
    outputs = prune(digits_onnx, context, method="2:4")
    made = weights(outputs)
    for name in ("w1", "w2", "w4"):
        fours = made[name].reshape(len(made[name]), -1, 4, 3, 3)
        assert ((fours != 0).sum(2) == 2).all()
    assert ((made["w"].reshape(10, -1, 4) != 0).sum(2) == 2).all()
    assert reasons(outputs)["Conv"] == "its 1 inputs are no multiple of 4"
    assert rows(outputs)["Conv_2"] == (18432, 9216)


def test_two_of_four_of_a_product_are_along_its_rows(onnx_model: Any, context: Any) -> None:
    made = weights(prune(onnx_model(*small_transformer(1)), context, method="2:4"))
    assert ((made["block0.q.w"].reshape(8, 4, 32) != 0).sum(1) == 2).all()
    assert ((made["head.w"].reshape(8, 4, 10) != 0).sum(1) == 2).all()


# -- failures ------------------------------------------------------------------------------------------------


def test_ratio_that_takes_nothing_fails(digits_onnx: OnnxModel, context: Any) -> None:
    with pytest.raises(StageError) as caught:
        prune(digits_onnx, context, ratio=0.01)
    assert str(caught.value) == (
        "nothing was pruned (Conv: the ratio takes less than one channel, or than multiple_of asks for; "
        "Conv_2: the ratio takes less than one channel, or than multiple_of asks for; "
        "Conv_4: the ratio takes less than one channel, or than multiple_of asks for; "
        "Conv_7: the ratio takes less than one channel, or than multiple_of asks for; "
        "Gemm: it is output 'logits'); raise the ratio, or leave the stage out"
    )


def test_pattern_that_is_there_already_fails(digits_onnx: OnnxModel, context: Any) -> None:
    done = prune(digits_onnx, context, method="2:4").model
    with pytest.raises(
        StageError, match=r"^nothing was pruned \(Conv: its 1 inputs are no multiple of 4; Conv_2: has "
    ):
        prune(done, context, method="2:4")


def test_model_without_layers_fails(onnx_model: Any, context: Any) -> None:
    net = Net()
    model = net.model(net.add("Relu", ["image"], "relu"), onnx_model, outputs=("batch", 3, 8, 8))
    with pytest.raises(StageError) as caught:
        prune(model, context, ratio=0.5)
    assert str(caught.value) == (
        "nothing was pruned: the graph has no Conv, ConvTranspose, Gemm, MatMul with a float weight; "
        "leave the stage out"
    )


@pytest.mark.parametrize("option", ["layers", "exclude"])
def test_pattern_that_fits_no_layer_fails(digits_onnx: OnnxModel, context: Any, option: str) -> None:
    options: dict[str, Any] = {"layers": {"head": 0.5}} if option == "layers" else {"exclude": ["head"]}
    with pytest.raises(StageError) as caught:
        prune(digits_onnx, context, ratio=0.5, **options)
    assert str(caught.value) == (
        f"`{option}`: 'head' fits no layer; there are Conv, Conv_2, Conv_4, Conv_7, Gemm"
    )


def test_compensation_without_data_is_refused_at_plan_time(tmp_path: Path) -> None:
    stage = Prune(Options(ratio=0.5, compensate=True))
    with pytest.raises(SpecError) as caught:
        stage.check(CheckContext(project=tmp_path, pipeline="p"))
    assert str(caught.value) == "compensate needs calibration data: name some below `data:`, or leave it out"
    there = {"calibration": (Upstream(node="data.calibration", uses=""),)}
    stage.check(CheckContext(project=tmp_path, pipeline="p", inputs=there))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "method channels needs a ratio, such as 0.25, or layers"),
        ({"method": "2:4", "ratio": 0.5}, "ratio is not for method 2:4, but for magnitude and channels"),
        ({"method": "magnitude", "ratio": 0.5, "norm": "l1"}, "norm is not for method magnitude, but for channels"),
        ({"method": "magnitude", "scope": "global", "layers": {"a": 0.5}},
         "scope global takes one ratio for all layers, and no layers"),
        ({"layers": {"a": 0.0}}, "layers: 0.0 is no fraction between 0 and 1; name layers to leave alone in exclude"),
    ],
)  # fmt: skip
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Options(**options)
    assert message in str(caught.value)


@pytest.mark.parametrize("method", ["channels", "magnitude"])
def test_options_survive_the_way_to_a_worker(method: str) -> None:
    """Where every field is given."""
    options = Options.model_validate({"method": method, "ratio": 0.5})
    assert Options.model_validate(options.model_dump()) == options


def test_bounds_are_judged_where_they_are_given(digits_onnx: OnnxModel, context: Any) -> None:
    stage = Prune(Options(ratio=0.5, min_top1=0.9))
    outputs = stage.run(Inputs(model=digits_onnx), context())
    found = {verdict.gate: verdict.outcome for verdict in stage.judge(outputs, JudgeContext())}
    assert found == {"outputs.not_finite": Outcome.PASS, "parity.top1": Outcome.FAIL}
