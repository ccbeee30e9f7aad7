"""What a spec says about an engine, the same for every back end."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from shipctl.records import Record
from shipctl.spec.fields import ProjectFile
from shipctl.spec.units import Size
from shipctl.stages.base import StageOptions

Precision = Literal["fp16", "bf16", "int8", "fp8", "int4", "best"]
Capability = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,2}\.[0-9]$")]
Path = Annotated[str, StringConstraints(min_length=1)]


class Range(Record):
    """The sizes that a varying dimension may have, and the one that the engine is tuned for."""

    min: int = Field(default=1, ge=1, description="The smallest size.")
    opt: int = Field(ge=1, description="The size that kernels are chosen for.")
    max: int = Field(ge=1, description="The largest size.")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.min <= self.opt <= self.max:
            message = f"min {self.min}, opt {self.opt} and max {self.max} are not in this order"
            raise ValueError(message)
        return self


Profile = dict[str, Range]


def _unique(values: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(values)) != len(values):
        message = f"{', '.join(values)} has a value twice"
        raise ValueError(message)
    return values


class EngineOptions(StageOptions):
    """What an engine build is asked."""

    backend: Literal["auto", "trtexec", "tensorrt", "tensorrt-rtx"] = Field(
        default="auto",
        description="What builds: the trtexec program, the tensorrt module, or the tensorrt_rtx module, whose engines "
        "are another kind that Triton does not load. auto takes the module tensorrt, else trtexec.",
    )
    binary: Path | None = Field(
        default=None, description="Where the trtexec program is; left out, it is looked for on PATH."
    )
    version: Annotated[str, StringConstraints(pattern=r"^[0-9]+(\.[0-9]+){0,3}$")] | None = Field(
        default=None,
        description="The version of TensorRT that has to build, such as 10.13 or 11; trtexec needs it said, since "
        "results are kept by what the spec says and the program's own version is not part of that.",
    )
    gpu: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]*$")] | None = Field(
        default=None,
        description="The GPU that the engine is for, by its name (L4, A100, RTX 4090): built on a machine that has "
        "it, or ahead of time by tensorrt-rtx.",
    )
    compute_capability: Annotated[tuple[Capability, ...], AfterValidator(_unique)] = Field(
        default=(),
        description="Architectures to build for ahead of time, without a GPU, such as 8.9 (tensorrt-rtx only).",
    )
    profiles: tuple[Profile, ...] = Field(
        default=(),
        description="Optimisation profiles: sizes of the model's varying dimensions, by the names in its signature.",
    )
    batch: Range = Field(
        default=Range(opt=8, max=32),
        description="Sizes of the batch dimension where no profile says them.",
    )
    workspace: Size | None = Field(
        default=None,
        description="GPU memory that a kernel may use while it runs; left out, all there is.",
    )
    timing_cache: Path | None = Field(
        default=None,
        description="File that keeps kernel timings between builds (absolute, or from ~): builds get quick and "
        "alike. It is no part of what results are kept by.",
    )
    builder_optimization_level: int | None = Field(
        default=None,
        ge=0,
        le=5,
        description="How long kernels are searched for; left out, TensorRT's default 3.",
    )
    sparsity: Literal["disable", "enable", "force"] = Field(
        default="disable",
        description="Kernels for 2:4 sparse weights: enable uses them where weights are, force (trtexec only) prunes "
        "any weights, for measuring speed.",
    )
    version_compatible: bool = Field(
        default=False, description="Let the engine load in later versions of TensorRT too."
    )
    hardware_compatible: Literal["none", "ampere_plus", "same_compute_capability"] = Field(
        default="none", description="On which other GPUs the engine runs, at a cost in speed."
    )
    dla_core: int | None = Field(
        default=None,
        ge=0,
        description="Deep learning accelerator to build for (Jetson); layers that it cannot do fail.",
    )
    gpu_fallback: bool = Field(
        default=False, description="With dla_core: run on the GPU what the DLA cannot do."
    )
    refit: bool = Field(default=False, description="Let weights be exchanged later without a new build.")
    plugins: tuple[ProjectFile, ...] = Field(
        default=(), description="Libraries (.so) with plugins for operators that TensorRT has not."
    )
    strongly_typed: bool = Field(
        default=True,
        description="Do arithmetic in the types that the graph says. TensorRT 10 can do otherwise, with `precision`.",
    )
    precision: Annotated[tuple[Precision, ...], AfterValidator(_unique)] = Field(
        default=(),
        description="TensorRT 10 without strong typing: the types it may lower arithmetic to. From 11 on precision "
        "lives in the graph.",
    )
