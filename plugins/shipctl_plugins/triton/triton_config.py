"""Stage `triton-config`: an ONNX model or a TensorRT engine becomes an immutable Triton model repository."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, StringConstraints

from shipctl.errors import SpecError, StageError
from shipctl.records import Record
from shipctl.spec.units import Duration
from shipctl.stages.artifacts import OnnxModel, TensorrtEngine, TritonRepository
from shipctl.stages.base import Stage, StageInputs, StageOptions, StageOutputs
from shipctl.stages.context import CheckContext, StageContext
from shipctl.store.files import place_file
from shipctl_plugins._triton.config_text import (
    DIGEST_PARAMETER,
    configured_tensors,
    declared_tensors,
    disagreements,
    graph_tensors,
    parse_config,
    quoted,
)
from shipctl_plugins._triton.engines import check_engine, largest_batch

if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULT_MAX_BATCH_SIZE = 32
RESERVED_PREFIX = "shipctl."

PositiveInt = Annotated[int, Field(ge=1)]


class DynamicBatching(Record):
    """Let Triton put requests that wait at the same time into one batch."""

    preferred_batch_size: tuple[PositiveInt, ...] = Field(
        default=(), description="Batch sizes to aim for; none lets Triton take whatever waits."
    )
    max_queue_delay: Duration = Field(
        default=Duration(0), description="How long a request may wait for others, such as 100us."
    )


class InstanceGroup(Record):
    """How many copies of the model run at the same time, and on what."""

    count: int = Field(default=1, ge=1, description="Copies of the model (per GPU, for kind gpu).")
    kind: Literal["auto", "cpu", "gpu"] = Field(
        default="auto",
        description="Where they run; auto takes a GPU where the server has one, and always for a TensorRT engine.",
    )
    gpus: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        default=(), description="Numbers of the GPUs, for kind gpu."
    )


class TritonConfigOptions(StageOptions):
    """Everything else in config.pbtxt comes from the model's signature."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")] | None = Field(
        default=None, description="The model's name on the server; left out, the pipeline's."
    )
    max_batch_size: int | None = Field(
        default=None,
        ge=0,
        description="Largest batch that the server puts together; 32 for a model with a batch dimension, what its "
        "profile goes up to for a TensorRT engine, else 0.",
    )
    dynamic_batching: DynamicBatching | Literal["auto", "off"] = Field(
        default="auto",
        description="Batching across requests; auto turns it on, without delay, where it is possible.",
    )
    instance_group: InstanceGroup = Field(default=InstanceGroup(), description="Copies of the model.")
    warmup: tuple[PositiveInt, ...] = Field(
        default=(), description="Batch sizes to run once with zeros while loading, before the model is ready."
    )
    response_cache: bool = Field(
        default=False, description="Answer repeated requests from the server's cache."
    )
    parameters: dict[str, str] = Field(
        default_factory=dict, description="More `parameters`, such as intra_op_thread_count for the backend."
    )


class TritonConfigInputs(StageInputs):
    """What it takes."""

    model: OnnxModel | TensorrtEngine


class TritonConfigOutputs(StageOutputs):
    """What it gives."""

    repository: TritonRepository


class TritonConfig(Stage[TritonConfigOptions, TritonConfigInputs, TritonConfigOutputs]):
    """Lay out a Triton model repository with a config.pbtxt made from the model's signature."""

    api_version: ClassVar[int] = 1
    requires: ClassVar[Mapping[str, str]] = {"tritonclient": "shipctl[triton]"}
    templates: ClassVar[tuple[str, ...]] = ("triton",)
    tools: ClassVar[tuple[str, ...]] = ("tritonclient",)
    reads: ClassVar[tuple[Literal["pipeline", "slo", "budget", "data"], ...]] = ("pipeline",)

    def check(self, ctx: CheckContext) -> None:
        """Refuse options that contradict each other, and an engine that Triton does not load."""
        options = self.options
        for upstream in ctx.inputs.get("model", ()):
            if isinstance(upstream.artifact, TensorrtEngine) and (
                wrong := check_engine(upstream.artifact, options.instance_group.kind)
            ):
                raise SpecError(wrong)
        if reserved := [key for key in options.parameters if key.startswith(RESERVED_PREFIX)]:
            message = f"parameters: {reserved[0]!r} is one of shipctl's own; choose a key without 'shipctl.'"
            raise SpecError(message)
        if options.instance_group.gpus and options.instance_group.kind != "gpu":
            message = f"instance_group: gpus need kind gpu, not {options.instance_group.kind}"
            raise SpecError(message)
        largest = DEFAULT_MAX_BATCH_SIZE if options.max_batch_size is None else options.max_batch_size
        if isinstance(options.dynamic_batching, DynamicBatching):
            if largest == 0:
                message = "dynamic_batching needs a max_batch_size above 0"
                raise SpecError(message)
            preferred = options.dynamic_batching.preferred_batch_size
            self._check_sizes("dynamic_batching.preferred_batch_size", preferred, largest)
        self._check_sizes("warmup", options.warmup, max(largest, 1))

    def run(self, inputs: TritonConfigInputs, ctx: StageContext) -> TritonConfigOutputs:
        """Write `<name>/config.pbtxt` and `<name>/1/`, after reading the configuration back and checking it."""
        model = inputs.model
        if isinstance(model, TensorrtEngine) and (
            wrong := check_engine(model, self.options.instance_group.kind)
        ):
            raise StageError(wrong)
        max_batch_size = self._max_batch_size(model)
        name = self.options.name or ctx.objectives.pipeline.get("name", "model")
        text = self._render(model, name, max_batch_size, ctx)
        tensors = (
            declared_tensors(model.signature)
            if isinstance(model, TensorrtEngine)
            else graph_tensors(model.path)
        )
        if faults := disagreements(parse_config(text), *tensors):
            message = "Triton would refuse this repository:\n" + "\n".join(f"  {line}" for line in faults)
            raise StageError(message)
        root = ctx.workdir / "repository"
        version = root / name / "1"
        if isinstance(model, TensorrtEngine):
            place_file(model.path, version / "model.plan")
        else:
            _copy_model(model.root, version)
        (version.parent / "config.pbtxt").write_text(text)
        ctx.log(f"{name}: max_batch_size {max_batch_size}, config.pbtxt agrees with the model")
        repository = TritonRepository.at(
            root,
            model=name,
            signature=model.signature,
            max_batch_size=max_batch_size,
            source=model.digest,
        )
        return TritonConfigOutputs(repository=repository)

    def _render(
        self, model: OnnxModel | TensorrtEngine, name: str, max_batch_size: int, ctx: StageContext
    ) -> str:
        options, batched = self.options, max_batch_size > 0
        engine = model if isinstance(model, TensorrtEngine) else None
        instances = options.instance_group
        if engine is not None:
            instances = instances.model_copy(update={"kind": "gpu"})
        batching: DynamicBatching | None = None
        if batched and options.dynamic_batching != "off":
            batching = DynamicBatching() if options.dynamic_batching == "auto" else options.dynamic_batching
        inputs = configured_tensors(model.signature.inputs, batched=batched)
        if options.warmup:
            _check_warmup(inputs)
        environment = ctx.templates("triton")
        environment.filters["quoted"] = quoted
        environment.filters["microseconds"] = lambda duration: round(float(duration) * 1e6)
        return environment.get_template("config.pbtxt.j2").render(
            name=name,
            backend="onnxruntime" if engine is None else None,
            platform=None if engine is None else "tensorrt_plan",
            max_batch_size=max_batch_size,
            inputs=inputs,
            outputs=configured_tensors(model.signature.outputs, batched=batched),
            instances=instances,
            profiles=range(len(engine.profiles)) if engine is not None and len(engine.profiles) > 1 else (),
            batching=batching,
            warmup=options.warmup,
            response_cache=options.response_cache,
            parameters={**dict(sorted(options.parameters.items())), DIGEST_PARAMETER: model.digest},
        )

    def _max_batch_size(self, model: OnnxModel | TensorrtEngine) -> int:
        asked = self.options.max_batch_size
        if isinstance(model, TensorrtEngine) and model.signature.is_batched:
            largest = largest_batch(model) if asked is None else asked
            if largest > largest_batch(model):
                message = (
                    f"max_batch_size {largest} is above the {largest_batch(model)} that the engine's profile goes "
                    "up to; build it for larger batches, or lower max_batch_size"
                )
                raise StageError(message)
            self._check_at_run(largest)
            return largest
        if model.signature.is_batched:
            return DEFAULT_MAX_BATCH_SIZE if asked is None else asked
        if asked or isinstance(self.options.dynamic_batching, DynamicBatching):
            tensors = "; ".join(map(str, (*model.signature.inputs, *model.signature.outputs)))
            message = (
                "Triton cannot batch this model: not every tensor begins with the same varying dimension "
                f"({tensors}); export it with one, or set max_batch_size: 0 and dynamic_batching: off"
            )
            raise StageError(message)
        return 0

    def _check_at_run(self, largest: int) -> None:
        """Hold the sizes in the options against the largest batch of an engine, which is not known before."""
        options = self.options
        batching = options.dynamic_batching
        try:
            if isinstance(batching, DynamicBatching):
                self._check_sizes(
                    "dynamic_batching.preferred_batch_size", batching.preferred_batch_size, largest
                )
            self._check_sizes("warmup", options.warmup, max(largest, 1))
        except SpecError as exc:
            raise StageError(str(exc)) from exc

    @staticmethod
    def _check_sizes(where: str, sizes: tuple[int, ...], largest: int) -> None:
        if too_large := [size for size in sizes if size > largest]:
            message = f"{where}: {too_large[0]} is above max_batch_size {largest}"
            raise SpecError(message)


def _check_warmup(inputs: list[dict[str, Any]]) -> None:
    for tensor in inputs:
        if -1 in tensor["dims"]:
            message = (
                f"warmup: input {tensor['name']!r} has a varying dimension beside the batch ({tensor['dims']}), so "
                "there is no size to warm up with; leave warmup out"
            )
            raise StageError(message)


def _copy_model(source: Path, version: Path) -> None:
    """Put the graph there as `model.onnx`, with the files beside it that hold its external data."""
    files = [source] if source.is_file() else sorted(path for path in source.rglob("*") if path.is_file())
    for path in files:
        place = version / ("model.onnx" if source.is_file() else path.relative_to(source))
        place_file(path, place)
