"""The names that plugins and scripts may rely on. A change here is a change for everybody who wrote one."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys

import pytest

import shipctl

PUBLIC = {
    "API_VERSION", "Applied", "Artifact", "Backend", "Bound", "Candidate", "Capability", "CheckContext", "Dataset",
    "DelegatedTarget", "Duration", "FileEntry", "Followed", "FromSpec", "GateError", "Hooks", "HuggingFaceModel",
    "JudgeContext", "Lineage", "LineageNode", "LineageSource", "LoadedSpec", "MetricContext", "MetricOptions",
    "MetricProvider", "ModelPackage", "ModelSource", "NoOptions", "ObjectInfo", "ObjectStore", "Objectives",
    "Observation", "OnnxModel", "Outcome", "PackageArchive", "Percentage", "Phase", "Plan", "PluginError",
    "ProjectFile", "Rate", "ReleaseContext", "ReleaseStage", "ReleaseState", "ReleaseTarget", "Replicas", "Report",
    "Resolved", "Routed", "RouterContext", "RouterOptions", "RunResult", "Samples", "Serving", "ShipctlError",
    "Signature", "Size", "SklearnModel", "SourceModel", "SpecError", "Stage", "StageContext", "StageError",
    "StageInputs", "StageOptions", "StageOutputs", "StaleEpochError", "StalePlanError", "Standing", "Step",
    "StoreError", "StoreSpec", "Strategy", "StrategyInputs", "StrategyOptions", "StrategyStage", "Surge", "Target",
    "TargetOptions", "TensorSpec", "TensorflowModel", "TensorrtEngine", "TorchModel", "Traffic", "TrafficRouter",
    "TritonRepository", "UnavailableError", "Upstream", "Verdict", "VerificationError", "__version__", "apply",
    "compare", "events", "hookimpl", "load_spec", "make_plan", "read_plan",
}  # fmt: skip


def test_the_public_names_are_these() -> None:
    assert set(shipctl.__all__) == PUBLIC
    assert len(shipctl.__all__) == len(PUBLIC)


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_every_public_name_exists(name: str) -> None:
    assert getattr(shipctl, name) is not None


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"^module 'shipctl' has no attribute 'Pipeline1'$"):
        _ = shipctl.Pipeline1


def test_importing_the_package_imports_nothing_else() -> None:
    program = "import sys, shipctl; print(*[name for name in sys.modules if name.startswith('shipctl')])"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30
    )
    assert done.stdout.split() == ["shipctl"]


def test_the_version_is_that_of_the_distribution() -> None:
    assert shipctl.__version__ == importlib.metadata.version("shipctl")
