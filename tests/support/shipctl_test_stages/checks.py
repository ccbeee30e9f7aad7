"""A check with a bound, a measurement that differs from run to run, and a stage that takes its time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from shipctl import (
    Bound,
    JudgeContext,
    Report,
    Stage,
    StageContext,
    StageError,
    StageOutputs,
    Verdict,
    compare,
)
from shipctl_test_stages.artifacts import Thing
from shipctl_test_stages.basic import Labelled, NoInputs, OneThing, Outputs, write
from shipctl_test_stages.tracing import trace


class Reported(StageOutputs):
    """A report."""

    report: Report


class CheckOptions(Labelled):
    """What is asked."""

    max: float = Bound(default=1000, description="The longest text that passes.")
    fail: bool = Field(default=False, description="Whether to break down instead of measuring.")
    judge: Literal["compare", "raise", "none"] = Bound(default="compare", description="How to judge.")


def report(thing: Thing, ctx: StageContext, metrics: dict[str, float]) -> Report:
    """Return a report about a thing, with its file."""
    path = ctx.workdir / "report.txt"
    path.write_text(str(metrics))
    return Report.at(path, subject=thing.digest, title="Length", metrics=metrics)


class Check(Stage[CheckOptions, OneThing, Reported]):
    """Measure how long a thing's text is, and judge that."""

    api_version = 1
    isolation = "inline"
    subject = "thing"
    metrics = ("length",)

    def run(self, inputs: OneThing, ctx: StageContext) -> Reported:
        self.options.began()
        if self.options.fail:
            raise StageError("the ruler broke")
        length = float(len(inputs.thing.path.read_text()))
        return Reported(report=report(inputs.thing, ctx, {"length": length}))

    def judge(self, outputs: Reported, ctx: JudgeContext) -> Sequence[Verdict]:
        if self.options.judge == "raise":
            raise ValueError("no idea")
        if self.options.judge == "none":
            return ()
        value = outputs.report.metrics.get("length")
        return [compare("length", value, "<=", self.options.max, subject=ctx.subject)]


class Measure(Stage[Labelled, OneThing, Reported]):
    """Take the time of day, which is never the same."""

    api_version = 1
    isolation = "inline"
    subject = "thing"
    measurement = True
    metrics = ("clock",)

    def run(self, inputs: OneThing, ctx: StageContext) -> Reported:
        self.options.began()
        trace(f"begin {self.options.label}")
        now = time.time()
        time.sleep(0.05)
        trace(f"end {self.options.label}")
        return Reported(report=report(inputs.thing, ctx, {"clock": now}))


class SleepOptions(Labelled):
    """How long."""

    seconds: float = Field(default=0.2, description="How long to sleep.")


class Sleep(Stage[SleepOptions, NoInputs, Outputs]):
    """Sleep in a worker, tracing when it begins and ends."""

    api_version = 1

    def run(self, inputs: NoInputs, ctx: StageContext) -> Outputs:
        self.options.began()
        trace(f"begin {self.options.label}")
        time.sleep(self.options.seconds)
        trace(f"end {self.options.label}")
        return write(ctx, self.options.label)
