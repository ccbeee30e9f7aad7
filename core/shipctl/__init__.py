"""shipctl ships models: one declarative spec per model, from the source to a server, and back if it degrades.

Everything that a plugin or a script may rely on is importable from here; the rest may change. Names are
imported when they are first used, so that `import shipctl` costs next to nothing.
"""

from __future__ import annotations

TYPE_CHECKING = False  # type checkers know better; importing typing would cost a third of `shipctl --version`

if TYPE_CHECKING:
    from shipctl.engine.apply import RunResult, apply
    from shipctl.engine.hooks import Hooks
    from shipctl.engine.plan import Plan, make_plan, read_plan
    from shipctl.errors import (
        GateError,
        PluginError,
        ShipctlError,
        SpecError,
        StageError,
        StalePlanError,
        StoreError,
        UnavailableError,
        VerificationError,
    )
    from shipctl.release.delegated import DelegatedTarget, Followed, Standing
    from shipctl.release.metrics import MetricContext, MetricOptions, MetricProvider, Samples
    from shipctl.release.options import StrategyInputs, StrategyOptions
    from shipctl.release.router import Backend, Routed, RouterContext, RouterOptions, TrafficRouter
    from shipctl.release.stage import StrategyStage
    from shipctl.release.strategy import Strategy
    from shipctl.release.surge import Surge
    from shipctl.release.target import (
        Applied,
        Candidate,
        Capability,
        Observation,
        ReleaseTarget,
        Replicas,
        StaleEpochError,
        Target,
        TargetOptions,
    )
    from shipctl.release.traffic import Traffic
    from shipctl.signature import Signature, TensorSpec
    from shipctl.spec import Duration, LoadedSpec, Percentage, Rate, Size, load_spec
    from shipctl.spec.fields import ProjectFile
    from shipctl.spec.models import StoreSpec
    from shipctl.stages import events
    from shipctl.stages.artifacts import (
        Artifact,
        Dataset,
        FileEntry,
        HuggingFaceModel,
        ModelPackage,
        OnnxModel,
        PackageArchive,
        Report,
        SklearnModel,
        SourceModel,
        TensorflowModel,
        TensorrtEngine,
        TorchModel,
        TritonRepository,
    )
    from shipctl.stages.base import (
        API_VERSION,
        Bound,
        FromSpec,
        NoOptions,
        Phase,
        ReleaseStage,
        ReleaseState,
        Serving,
        Stage,
        StageInputs,
        StageOptions,
        StageOutputs,
        Step,
    )
    from shipctl.stages.context import (
        CheckContext,
        JudgeContext,
        Lineage,
        LineageNode,
        LineageSource,
        Objectives,
        ReleaseContext,
        StageContext,
        Upstream,
    )
    from shipctl.stages.hookspecs import hookimpl
    from shipctl.stages.verdicts import Outcome, Verdict, compare
    from shipctl.store.objects import ObjectInfo, ObjectStore
    from shipctl.store.sources import ModelSource, Resolved

__version__ = "0.1.0"

_HOMES = {
    "shipctl.engine.apply": ["RunResult", "apply"],
    "shipctl.engine.hooks": ["Hooks"],
    "shipctl.engine.plan": ["Plan", "make_plan", "read_plan"],
    "shipctl.errors": [
        "GateError", "PluginError", "ShipctlError", "SpecError", "StageError", "StalePlanError", "StoreError",
        "UnavailableError", "VerificationError",
    ],
    "shipctl.release.delegated": ["DelegatedTarget", "Followed", "Standing"],
    "shipctl.release.metrics": ["MetricContext", "MetricOptions", "MetricProvider", "Samples"],
    "shipctl.release.options": ["StrategyInputs", "StrategyOptions"],
    "shipctl.release.router": ["Backend", "Routed", "RouterContext", "RouterOptions", "TrafficRouter"],
    "shipctl.release.stage": ["StrategyStage"],
    "shipctl.release.strategy": ["Strategy"],
    "shipctl.release.surge": ["Surge"],
    "shipctl.release.target": [
        "Applied", "Candidate", "Capability", "Observation", "ReleaseTarget", "Replicas", "StaleEpochError", "Target",
        "TargetOptions",
    ],
    "shipctl.release.traffic": ["Traffic"],
    "shipctl.signature": ["Signature", "TensorSpec"],
    "shipctl.spec": ["Duration", "LoadedSpec", "Percentage", "Rate", "Size", "load_spec"],
    "shipctl.stages.events": ["events"],
    "shipctl.spec.fields": ["ProjectFile"],
    "shipctl.spec.models": ["StoreSpec"],
    "shipctl.stages.artifacts": [
        "Artifact", "Dataset", "FileEntry", "HuggingFaceModel", "ModelPackage", "OnnxModel", "PackageArchive", "Report",
        "SklearnModel", "SourceModel", "TensorflowModel", "TensorrtEngine", "TorchModel", "TritonRepository",
    ],
    "shipctl.stages.base": [
        "API_VERSION", "Bound", "FromSpec", "NoOptions", "Phase", "ReleaseStage", "ReleaseState", "Serving", "Stage",
        "StageInputs", "StageOptions", "StageOutputs", "Step",
    ],
    "shipctl.stages.context": [
        "CheckContext", "JudgeContext", "Lineage", "LineageNode", "LineageSource", "Objectives", "ReleaseContext",
        "StageContext", "Upstream",
    ],
    "shipctl.stages.hookspecs": ["hookimpl"],
    "shipctl.stages.verdicts": ["Outcome", "Verdict", "compare"],
    "shipctl.store.objects": ["ObjectInfo", "ObjectStore"],
    "shipctl.store.sources": ["ModelSource", "Resolved"],
}  # fmt: skip
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
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
]  # fmt: skip


def __getattr__(name: str) -> object:
    from importlib import import_module

    home = _HOME_OF.get(name)
    if home is None:
        message = f"module 'shipctl' has no attribute {name!r}"
        raise AttributeError(message)
    module = import_module(home)
    return module if name == "events" else getattr(module, name)


def __dir__() -> list[str]:
    return sorted(__all__)
