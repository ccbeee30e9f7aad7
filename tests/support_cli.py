"""A distribution of light stages, and specs that use them: for tests of the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from shipctl.testing.fixtures import Invocation

Call = Callable[..., Invocation]

LIGHT = '''
"""Stages that need nothing: they copy, measure, fail and release."""

from __future__ import annotations

import json
import shutil

from pydantic import Field

from shipctl import (
    Bound, Dataset, Phase, ReleaseStage, ReleaseState, Report, Serving, Stage, StageError, StageInputs,
    StageOptions, StageOutputs, Step, UnavailableError, compare,
)


class CopyOptions(StageOptions):
    level: int = Field(default=1, description="Nothing, but it counts.")


class DataInputs(StageInputs):
    samples: Dataset


class DataOutputs(StageOutputs):
    samples: Dataset


class LightCopy(Stage[CopyOptions, DataInputs, DataOutputs]):
    """Copy a data set."""

    api_version = 1
    isolation = "inline"

    def run(self, inputs, ctx):
        ctx.log(f"copying at level {self.options.level}")
        path = ctx.workdir / f"copy-{self.options.level}.npz"
        shutil.copyfile(inputs.samples.path, path)
        return DataOutputs(samples=Dataset.at(path, role="copy"))


class ScoreOptions(StageOptions):
    score: float = Field(default=0.9, description="What is measured.")
    min_score: float = Bound(0.5, description="The smallest score that passes.")


class ReportOutputs(StageOutputs):
    report: Report


class LightScore(Stage[ScoreOptions, DataInputs, ReportOutputs]):
    """Score a data set."""

    api_version = 1
    isolation = "inline"
    subject = "samples"
    metrics = ("score",)

    def run(self, inputs, ctx):
        path = ctx.workdir / "report.json"
        path.write_text("{}")
        return ReportOutputs(report=Report.at(
            path, subject=inputs.samples.digest, title="Score", metrics={"score": self.options.score}))

    def judge(self, outputs, ctx):
        return [compare("score", outputs.report.metrics.get("score"), ">=", self.options.min_score)]


class LightFail(Stage[CopyOptions, DataInputs, DataOutputs]):
    """Fail."""

    api_version = 1
    isolation = "inline"

    def run(self, inputs, ctx):
        raise StageError("the disk is made of cheese; use another one")


class LightMissing(LightCopy):
    """Need what is not there."""

    def check(self, ctx):
        raise UnavailableError("needs a quantum computer: buy one")


class ReleaseOptions(StageOptions):
    target: str = Field(default="shelf", description="Where to.")


class Release(ReleaseStage[ReleaseOptions, DataInputs, ReleaseState]):
    """Put a data set on a shelf."""

    api_version = 1

    def target(self):
        return self.options.target

    def _shelf(self, ctx):
        return ctx.target_dir / "shelf.json"

    def _served(self, ctx):
        return json.loads(self._shelf(ctx).read_text()) if self._shelf(ctx).exists() else None

    def preview(self, ctx):
        return ["a new data set comes onto the shelf"]

    def in_place(self, inputs, ctx):
        served = self._served(ctx)
        return served is not None and served["revision"] == ctx.revision

    def step(self, state, inputs, ctx):
        ctx.target_dir.mkdir(parents=True, exist_ok=True)
        self._shelf(ctx).write_text(json.dumps({"revision": ctx.revision, "version": ctx.version, "since": ctx.now()}))
        return state, Step(phase=Phase.DONE, message=f"{ctx.version} is on the shelf")

    def abort(self, state, inputs, ctx):
        return state, Step(phase=Phase.ROLLED_BACK, message="taken away")

    def status(self, ctx):
        served = self._served(ctx)
        if served is None:
            return []
        return [Serving(name=ctx.pipeline, version=served["version"], revision=served["revision"],
                        since=served["since"], healthy=True, endpoints={"http": "http://127.0.0.1:1", "metrics/0": "http://127.0.0.1:2/metrics"},
                        details={"traffic": "100 %", "pids": "17, 18", "logs": "/var/log/shelf"})]

    def down(self, ctx):
        if self._served(ctx) is None:
            return []
        self._shelf(ctx).unlink()
        return ["the shelf was emptied"]
'''

ENTRY_POINTS = """
[shipctl.stages]
light-copy = light_stages:LightCopy
light-score = light_stages:LightScore
light-fail = light_stages:LightFail
light-missing = light_stages:LightMissing
light-release = light_stages:Release
"""

SPEC = """\
apiVersion: shipctl.dev/v1
kind: Pipeline
metadata: {name: light, version: 1.0.0}
data:
  samples: {uri: samples.npz}
stages:
  - id: copy
    uses: light-copy
  - id: score
    uses: light-score
"""

RELEASING = f"{SPEC}  - id: release\n    uses: light-release\n    needs: [copy, score]\n"


def install(folder: Path, name: str, module: str, entry_points: str) -> None:
    """Write a module and the metadata of a distribution, as an installer would."""
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.py").write_text(module)
    metadata = folder / f"{name}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.0\n"
    )
    (metadata / "entry_points.txt").write_text(entry_points)
