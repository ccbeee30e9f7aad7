"""Stages that make, change and join texts. Each traces its ``label`` when it runs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from shipctl import (
    Dataset,
    OnnxModel,
    Stage,
    StageContext,
    StageInputs,
    StageOptions,
    StageOutputs,
    TorchModel,
)
from shipctl_test_stages.artifacts import Other, Thing
from shipctl_test_stages.tracing import kill_point, trace


class Labelled(StageOptions):
    """Options that say what to trace."""

    label: str = Field(default="", description="What to trace.")

    def began(self) -> None:
        """Trace, and die here if that is asked for."""
        trace(f"run {self.label}")
        kill_point(f"inside {self.label}")


class NoInputs(StageInputs):
    """None."""


class OneThing(StageInputs):
    """One thing."""

    thing: Thing


class Things(StageInputs):
    """Several things."""

    things: list[Thing]


class Outputs(StageOutputs):
    """One thing."""

    thing: Thing


def write(ctx: StageContext, text: str) -> Outputs:
    """Return a thing with that text."""
    path = ctx.workdir / "thing.txt"
    path.write_text(text)
    return Outputs(thing=Thing.at(path))


class MakeOptions(Labelled):
    """The text."""

    text: str = Field(default="x", description="The text.")


class Make(Stage[MakeOptions, NoInputs, Outputs]):
    """Make a thing."""

    api_version = 1
    isolation: ClassVar[Literal["process", "inline"]] = "inline"

    def run(self, inputs: NoInputs, ctx: StageContext) -> Outputs:
        self.options.began()
        return write(ctx, self.options.text)


class MakeWorker(Make):
    """Make a thing in a worker."""

    isolation = "process"


class AppendOptions(Labelled):
    """What to add."""

    add: str = Field(default="y", description="What to add.")


class Append(Stage[AppendOptions, OneThing, Outputs]):
    """Add to a thing."""

    api_version = 1
    isolation: ClassVar[Literal["process", "inline"]] = "inline"

    def run(self, inputs: OneThing, ctx: StageContext) -> Outputs:
        self.options.began()
        print(f"adding {self.options.add}")
        return write(ctx, inputs.thing.path.read_text() + self.options.add)


class AppendWorker(Append):
    """Add to a thing in a worker."""

    isolation = "process"


class JoinOptions(Labelled):
    """How many."""

    most: int | None = Field(default=None, description="How many things are joined at most.")


class Join(Stage[JoinOptions, Things, Outputs]):
    """Join things with plus signs."""

    api_version = 1
    isolation = "inline"

    def limits(self) -> Mapping[str, int]:
        return {} if self.options.most is None else {"things": self.options.most}

    def run(self, inputs: Things, ctx: StageContext) -> Outputs:
        self.options.began()
        return write(ctx, "+".join(thing.path.read_text() for thing in inputs.things))


class Choose(Stage[Labelled, Things, Outputs]):
    """Pass on the thing whose text comes first in the alphabet, unchanged."""

    api_version = 1
    isolation = "inline"

    def run(self, inputs: Things, ctx: StageContext) -> Outputs:
        self.options.began()
        return Outputs(thing=min(inputs.things, key=lambda thing: thing.path.read_text()))


class OtherOutputs(StageOutputs):
    """Something else."""

    other: Other


class Convert(Stage[Labelled, OneThing, OtherOutputs]):
    """Turn a thing into something else."""

    api_version = 1
    isolation = "inline"

    def run(self, inputs: OneThing, ctx: StageContext) -> OtherOutputs:
        self.options.began()
        path = ctx.workdir / "other.txt"
        path.write_text(inputs.thing.path.read_text())
        return OtherOutputs(other=Other.at(path))


class TwoThings(StageOutputs):
    """Two things."""

    left: Thing
    right: Thing


class Pair(Stage[Labelled, NoInputs, TwoThings]):
    """Make two things."""

    api_version = 1
    isolation = "inline"

    def run(self, inputs: NoInputs, ctx: StageContext) -> TwoThings:
        self.options.began()
        for name in ("left", "right"):
            (ctx.workdir / name).write_text(name)
        return TwoThings(left=Thing.at(ctx.workdir / "left"), right=Thing.at(ctx.workdir / "right"))


class ModelInput(StageInputs):
    """The source model."""

    model: TorchModel | OnnxModel


class ReadModel(Stage[Labelled, ModelInput, Outputs]):
    """List the files of the source model."""

    api_version = 1
    isolation = "inline"

    def run(self, inputs: ModelInput, ctx: StageContext) -> Outputs:
        self.options.began()
        root = inputs.model.root
        return write(ctx, "\n".join(sorted(p.relative_to(root).as_posix() for p in root.rglob("*.*"))))


class DataInput(StageInputs):
    """A data set."""

    evaluation: Dataset


class ReadData(Stage[Labelled, DataInput, Outputs]):
    """Take the size of a data set."""

    api_version = 1
    isolation = "inline"

    def run(self, inputs: DataInput, ctx: StageContext) -> Outputs:
        self.options.began()
        return write(ctx, str(inputs.evaluation.path.stat().st_size))


class DataInputs(StageInputs):
    """Four data sets."""

    one: Dataset
    two: Dataset
    three: Dataset
    four: Dataset


class ReadAll(Stage[Labelled, DataInputs, Outputs]):
    """Put four data sets together."""

    api_version = 1
    isolation = "inline"

    def run(self, inputs: DataInputs, ctx: StageContext) -> Outputs:
        self.options.began()
        parts = (inputs.one, inputs.two, inputs.three, inputs.four)
        return write(ctx, " ".join(part.path.read_text() for part in parts))


class Sensitive(Stage[Labelled, NoInputs, Outputs]):
    """Depend on everything that a fingerprint can hold."""

    api_version = 1
    isolation = "inline"
    environ = ("SHIPCTL_TEST_FLAVOUR",)
    reads = ("slo",)
    templates = ("triton",)
    tools: ClassVar[tuple[Any, ...]] = ("shipctl-test-toolbox",)

    def run(self, inputs: NoInputs, ctx: StageContext) -> Outputs:
        self.options.began()
        return write(ctx, f"{os.environ.get('SHIPCTL_TEST_FLAVOUR')} {ctx.seed} {dict(ctx.objectives.slo)}")
