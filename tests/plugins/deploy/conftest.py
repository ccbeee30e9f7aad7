"""The target `memory`, and releases of a stage on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import support_target
from shipctl.release.options import StrategyInputs
from shipctl.release.stage import StrategyStage
from shipctl.stages.artifacts import Dataset, TritonRepository
from shipctl.stages.base import Phase
from shipctl.stages.context import Objectives, ReleaseContext
from shipctl.testing.fixtures import FakeClock
from shipctl.testing.samples import SIGNATURE, sealed, tiny_dataset
from shipctl_plugins.deploy.bluegreen import Bluegreen
from support_kubernetes_releases import installed
from support_strategy import Release, Serve, StartRelease

__all__ = ["installed"]


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> support_target.World:
    """What is on the target `memory`."""
    return support_target.install(monkeypatch)


@pytest.fixture
def start_release(tmp_path: Path, world: support_target.World) -> StartRelease:
    """Return a function that begins a release of a stage class on the target `memory`."""
    clock = FakeClock()
    golden: Dataset = tiny_dataset(tmp_path / "data", "golden")

    def start(
        cls: type[StrategyStage[Any]], version: str, *, slo: dict[str, float] | None = None, **options: Any
    ) -> Release:
        given = {"target": "memory", "analysis": {"provider": "memory"}, **options}
        root = tmp_path / "made" / version
        (root / "m" / "1").mkdir(parents=True, exist_ok=True)
        (root / "m" / "config.pbtxt").write_text('name: "m"\n')
        fields: dict[str, Any] = {
            "model": "m",
            "signature": SIGNATURE,
            "max_batch_size": 8,
            "source": "0" * 64,
        }
        repository = sealed(TritonRepository.at(root, **fields))
        approved: set[str] = set()
        context = ReleaseContext(
            project=tmp_path, target_dir=tmp_path / "target", pipeline="m", version=version, stage="release",
            revision=version.replace(".", "") * 20, run=f"run-{version}", objectives=Objectives(slo=slo or {}),
            approved=lambda: frozenset(approved), log=lambda _line: None, now=clock,
        )  # fmt: skip
        inputs = StrategyInputs(repository=repository, golden=golden)
        stage = cls(cls.options_model.model_validate(given))
        return Release(stage, inputs, context, clock, approved, world)

    return start


@pytest.fixture
def serving(start_release: StartRelease) -> Serve:
    """Return a function that makes version 1.0.0 serve."""

    def serve() -> Release:
        release = start_release(Bluegreen, "1.0.0", analysis=None, scaleDownDelay="0s")
        assert release.run().phase is Phase.DONE
        release.world.acts.clear()
        return release

    return serve
