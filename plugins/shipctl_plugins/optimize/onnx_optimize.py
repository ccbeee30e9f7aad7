"""Stage `onnx-optimize`: ONNX Runtime's own graph optimisations, done once and for all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from shipctl.errors import StageError
from shipctl.stages.artifacts import Dataset, OnnxModel, Report
from shipctl.stages.base import Stage, StageInputs, StageOutputs
from shipctl.stages.context import JudgeContext, StageContext
from shipctl.stages.verdicts import Verdict
from shipctl_plugins._onnx import graph, parity
from shipctl_plugins._onnx.made import made_from
from shipctl_plugins._onnx.noise import routed, temporary_files_in
from shipctl_plugins._onnx.onnx_parity import compare_models
from shipctl_plugins._onnx.plain_graphs import separate_weights
from shipctl_plugins._onnx.reports import write_report
from shipctl_plugins._onnx.session import first_line, too_new

if TYPE_CHECKING:
    from onnx import ModelProto

LAYER_NORMALIZATION = 17
"""The opset that brought the operator, which fusions write into graphs of older ones as well."""

Kind = Literal[
    "none", "bart", "bert", "bert_keras", "bert_tf", "clip", "conformer", "gpt2", "gpt2_tf", "gpt_neox",
    "mmdit", "phi", "qwen3", "sam2", "swin", "t5", "tnlr", "unet", "vae", "vit",
]  # fmt: skip


class Options(parity.ExactParityOptions):
    """What stands below ``with:``."""

    level: Literal["none", "basic", "extended"] = Field(
        default="basic",
        description="Optimisations of the graph: basic stays within ONNX's own operators, extended also fuses "
        "into those of ONNX Runtime, which TensorRT does not take.",
    )
    model_type: Kind = Field(
        default="none",
        description="Which patterns of transformers to look for (attention, layer normalisation, GELU) "
        "before; their fused operators are ONNX Runtime's.",
    )
    num_heads: int = Field(
        default=0, ge=0, description="Attention heads, with a model_type; 0 detects them in the graph."
    )
    hidden_size: int = Field(
        default=0, ge=0, description="Hidden size, with a model_type; 0 detects it in the graph."
    )

    @field_validator("level", mode="before")
    @classmethod
    def _portable(cls, level: Any) -> Any:
        if level in {"all", "layout"}:
            message = (
                f"level {level!r} writes memory layouts of this machine's processor into the graph; say extended: "
                "ONNX Runtime does the rest where it loads the model"
            )
            raise ValueError(message)
        return level

    @model_validator(mode="after")
    def _something_to_do(self) -> Self:
        if self.model_type == "none":
            if self.level == "none":
                raise ValueError("level none and model_type none leave nothing to do; name one of them")
            if self.num_heads or self.hidden_size:
                raise ValueError("num_heads and hidden_size are for a model_type; name it, such as bert")
        return self


class Inputs(StageInputs):
    """What the stage takes."""

    model: OnnxModel
    calibration: Dataset | None = None


class Outputs(StageOutputs):
    """What the stage gives."""

    model: OnnxModel
    report: Report


class OnnxOptimize(Stage[Options, Inputs, Outputs]):
    """Fuse and fold an ONNX graph by ONNX Runtime's optimisers, check it and compare.

    First its optimiser for transformers where `model_type` names one, then those that it has for all graphs.
    The report counts nodes before and after and what they were fused to, and names the operator sets of the
    result (`domains`): with `com.microsoft` among them only ONNX Runtime runs it. A `model_type` by which
    nothing is fused is a failure. Attention is found as products and a softmax; export a model without
    `scaled_dot_product_attention` (in Hugging Face's models `attn_implementation: eager`).
    """

    api_version = 1
    requires: ClassVar[Mapping[str, str]] = {"onnxruntime": "shipctl[cpu]"}
    metrics = (*parity.METRICS, "nodes.before", "nodes.after", "fused.nodes")
    tools = ("onnxruntime", "onnx", "numpy")

    def run(self, inputs: Inputs, ctx: StageContext) -> Outputs:
        """Optimise, check, compare."""
        source, options, scratch = inputs.model, self.options, ctx.workdir / "tmp"
        model = before = graph.load_source(source)
        separate_weights(before)
        with routed(ctx.log), temporary_files_in(scratch):
            if options.model_type != "none":
                model = _fuse_transformer(before, options, scratch)
            if options.level != "none":
                model = _optimize(model, options.level, scratch)
        _declare_domains(model)
        differences = graph.graph_differences(model, source.signature)
        if differences:
            message = (
                f"the optimised graph has another signature: {'; '.join(differences)}; leave the stage out"
            )
            raise StageError(message)
        graph.declare(model, source.signature)
        graph.strip_notes(model)
        folder = graph.save_model(model, ctx.workdir / "model")
        _check(folder / graph.MODEL_FILE, graph.opset_of(model))
        measured = compare_models(source, folder, inputs.calibration, options, ctx)
        result = made_from(source, folder, graph.opset_of(model))
        fused = _fusions(before, model)
        domains = sorted(
            {node.domain or "ai.onnx" for part in graph.every_graph(model.graph) for node in part.node}
        )
        ctx.log(f"fused to {', '.join(f'{count} {name}' for name, count in fused.items()) or 'nothing'}")
        report = write_report(
            ctx.workdir, subject=result.digest, title="Graph optimised by ONNX Runtime",
            metrics=measured.metrics() | {
                "nodes.before": float(graph.node_count(before)), "nodes.after": float(graph.node_count(model)),
                "fused.nodes": float(sum(fused.values())),
            },
            details=measured.details() | {
                "fused": [{"op_type": name, "nodes": count} for name, count in fused.items()], "domains": domains,
            },
        )  # fmt: skip
        return Outputs(model=result, report=report)

    def judge(self, outputs: Outputs, ctx: JudgeContext) -> Sequence[Verdict]:
        """Compare parity with its bounds."""
        return parity.judge_parity(outputs.report, self.options)


def _fuse_transformer(before: ModelProto, options: Options, scratch: Path) -> ModelProto:
    from onnxruntime.transformers import optimizer

    path = graph.save_model(before, scratch / "source") / graph.MODEL_FILE
    try:
        # opt_level 0: patterns alone; the graph's own optimisations come after them
        found = optimizer.optimize_model(
            str(path),
            options.model_type,
            num_heads=options.num_heads,
            hidden_size=options.hidden_size,
            opt_level=0,
        )
        found.topological_sort()
    except Exception as exc:  # fusions raise whatever an unexpected graph makes them raise
        message = (
            f"ONNX Runtime's optimiser for model_type {options.model_type} fails on this graph: "
            f"{type(exc).__name__}: {first_line(exc)}"
        )
        raise StageError(message) from exc
    model: ModelProto = found.model
    if not _fusions(before, model):
        message = (
            f"nothing was fused: the graph has no pattern of model_type {options.model_type}; "
            "try another one, name num_heads and hidden_size, or say none"
        )
        raise StageError(message)
    return model


def _optimize(model: ModelProto, level: str, scratch: Path) -> ModelProto:
    import onnxruntime

    path = graph.save_model(model, scratch / "fused") / graph.MODEL_FILE
    target = scratch / "optimized" / graph.MODEL_FILE
    target.parent.mkdir()
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    settings.graph_optimization_level = (
        onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        if level == "basic"
        else onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    )
    settings.optimized_model_filepath = str(target)
    if model.ByteSize() > graph.INLINE_LIMIT:
        settings.add_session_config_entry(
            "session.optimized_model_external_initializers_file_name", graph.EXTERNAL_FILE
        )
    try:
        onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
    except Exception as exc:  # its exceptions share no base of their own
        message = (
            too_new(exc)
            or f"ONNX Runtime {onnxruntime.__version__} does not optimise this graph: {first_line(exc)}"
        )
        raise StageError(message) from exc
    return graph.load_model(target)


def _declare_domains(model: ModelProto) -> None:
    """Import the operator sets that the graph uses: one optimiser lists all it knows, the other forgets its own."""
    used = {node.domain for part in graph.every_graph(model.graph) for node in part.node}
    used |= {node.domain for function in model.functions for node in function.node}
    used = used - {"ai.onnx"} | {""}
    versions = {
        "" if entry.domain == "ai.onnx" else entry.domain: entry.version for entry in model.opset_import
    }
    del model.opset_import[:]
    for domain in sorted(used):
        model.opset_import.add(domain=domain, version=versions.get(domain, 1))


def _fusions(before: ModelProto, after: ModelProto) -> dict[str, int]:
    """Return the operators that there are more of than before, with how many more."""

    def operators(model: ModelProto) -> Counter[str]:
        return Counter(node.op_type for part in graph.every_graph(model.graph) for node in part.node)

    return dict(sorted((operators(after) - operators(before)).items()))


def _check(path: Path, opset: int) -> None:
    try:
        graph.check_model(path)
    except StageError as exc:
        if opset >= LAYER_NORMALIZATION:
            raise
        message = f"{exc}; fusions need opset {LAYER_NORMALIZATION}: export the model with it or a newer one"
        raise StageError(message) from exc
