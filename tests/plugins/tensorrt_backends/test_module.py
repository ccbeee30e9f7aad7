"""The back end `tensorrt`, which is the code of tensorrt_rtx: version switches, and what is refused before a build.

Under the name tensorrt stands TensorRT for RTX here, which has the same interface and needs no GPU.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from shipctl.errors import SpecError, StageError, UnavailableError
from shipctl.stages.artifacts import OnnxModel
from shipctl.stages.context import CheckContext
from shipctl_plugins._tensorrt import backends
from shipctl_plugins._tensorrt.backends import Backend
from shipctl_plugins._tensorrt.building import Job, one_line
from shipctl_plugins._tensorrt.devices import Gpu, capability_of, gpus
from shipctl_plugins._tensorrt.options import EngineOptions
from shipctl_plugins._tensorrt.profiles import complete_profiles, shapes
from shipctl_plugins._tensorrt.with_module import build_with_module
from shipctl_plugins.optimize.trtexec import Options, Trtexec
from support_lazy import lazy

rtx = lazy("tensorrt_rtx", reason="tensorrt-rtx is not installed")


def job(model: OnnxModel, folder: Path, version: str, **options: Any) -> Job:
    wanted = EngineOptions.model_validate({"gpu": "L4", **options})
    profiles = complete_profiles(model.signature, wanted)
    return Job(
        model=model.path, plan=folder / "model.plan", scratch=folder, options=wanted,
        backend=Backend("tensorrt", version), capabilities=("8.9",), log=lambda line: None,
        profiles=tuple(shapes(model.signature, profile) for profile in profiles),
    )  # fmt: skip


@pytest.fixture
def flags(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Put a tensorrt in place, and return the flags that networks are made with."""
    made: list[int] = []
    module = ModuleType("tensorrt")
    module.__dict__.update({name: getattr(rtx, name) for name in dir(rtx) if not name.startswith("__")})

    class Builder:
        def __init__(self, logger: Any) -> None:
            self._builder = rtx.Builder(logger)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._builder, name)

        def create_network(self, flags: int) -> Any:
            made.append(flags)
            return self._builder.create_network(flags)

    vars(module).update(Builder=Builder, __version__="10.13.3.9")
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    return made


@pytest.mark.parametrize(
    ("version", "typed", "said"),
    [("10.13.3.9", True, True), ("10.13.3.9", False, False), ("11.1.0.106", True, False)],
)
def test_network_is_strongly_typed_where_that_is_a_choice(
    digits_onnx: OnnxModel, tmp_path: Path, flags: list[int], version: str, typed: bool, said: bool
) -> None:
    vars(sys.modules["tensorrt"])["__version__"] = version
    built = build_with_module(job(digits_onnx, tmp_path, version, strongly_typed=typed))
    assert flags == [1 << int(rtx.NetworkDefinitionCreationFlag.STRONGLY_TYPED) if said else 0]
    assert built.version == ".".join(version.split(".")[:3])
    assert len(built.layers) == 10


def test_plugin_library_that_does_not_load_is_named(
    digits_onnx: OnnxModel, tmp_path: Path, flags: list[int]
) -> None:
    path = tmp_path / "plugin.so"
    path.write_text("no library")
    with pytest.raises(StageError, match=rf"^plugin library {path} does not load: ."):
        build_with_module(job(digits_onnx, tmp_path, "11.0.0", plugins=[str(path)]))


def check(tmp_path: Path, **options: Any) -> None:
    Trtexec(Options.model_validate(options)).check(CheckContext(project=tmp_path, pipeline="p"))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {
                "sparsity": "enable",
                "builder_optimization_level": 3,
                "timing_cache": "/x",
                "dla_core": 0,
                "version_compatible": True,
                "hardware_compatible": "ampere_plus",
                "compute_capability": ["9.0"],
                "binary": "trtexec",
                "version": "2",
            },
            SpecError,
            (
                "cannot do this: version 2 is asked for; binary belongs to the back end trtexec; hardware_compatible: "
                "engines "
                "run on the architectures of compute_capability; builder_optimization_level: kernels "
                "are chosen on the user's "
                "GPU; sparsity: kernels are chosen on the user's GPU; timing_cache: nothing is timed while it builds; "
                "version_compatible: it has no lean runtime; dla_core: it is for GPUs only; compute "
                "capability 9.0: it builds "
                "for 7.5, 8.0, 8.6, 8.9, 12.0, 12.1"
            ),
        ),
        ({"sparsity": "force"}, SpecError, "sparsity force is a feature of the program trtexec"),
        (
            {"strongly_typed": False, "precision": ["fp16"]},
            SpecError,
            "fp16: its networks are strongly typed",
        ),
        (
            {"compute_capability": ["8.9"], "refit": True},
            UnavailableError,
            "refit: tensorrt-rtx builds engines for refitting only with a GPU, and this machine has none",
        ),
        (
            {"gpu": "Unheard Of"},
            SpecError,
            "no compute capability of 'Unheard Of' is known here; say it with compute_capability",
        ),
        (
            {"gpu": "L4", "compute_capability": ["8.9"]},
            SpecError,
            "both say what to build for; leave one out",
        ),
        (
            {},
            UnavailableError,
            (
                "builds on a GPU, and this machine has none (or no driver); say for which architectures to build "
                "ahead of time: "
                '`compute_capability: ["8.9"]`'
            ),
        ),
    ],
)
def test_what_tensorrt_for_rtx_cannot_do_is_told_at_plan_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: Any, error: Any, message: str
) -> None:
    monkeypatch.setattr(backends, "gpus", tuple)
    with pytest.raises(error) as caught:
        check(tmp_path, backend="tensorrt-rtx", **options)
    assert message in str(caught.value)


def test_module_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "installed", lambda name: False)
    with pytest.raises(UnavailableError) as caught:
        check(tmp_path, backend="tensorrt", gpu="L4")
    assert str(caught.value) == "the module tensorrt is not installed; pip install 'shipctl[tensorrt]'"


def test_names_of_gpus_are_compared_by_words() -> None:
    assert Gpu("NVIDIA L4", "8.9").is_called("l4")
    assert not Gpu("NVIDIA L40S", "8.9").is_called("L4")
    assert Gpu("NVIDIA GeForce RTX 4090", "8.9").is_called("RTX 4090")
    assert Gpu("NVIDIA A100-SXM4-80GB", "8.0").is_called("A100")
    assert [capability_of(name) for name in ("RTX 4090", "NVIDIA A100", "NVIDIA GeForce RTX 3060", "abacus")] == [
        "8.9", "8.0", "8.6", None,
    ]  # fmt: skip
    assert all(gpu.name and "." in gpu.capability for gpu in gpus())


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            (
                "IBuilder::buildSerializedNetwork: Error Code 1: Myelin ([pass.cpp:337: check] Cannot compile 'x' for "
                "SM75: no. "
                "In compileGraph at /_src/codeGenerator.cpp:2012)"
            ),
            "Cannot compile 'x' for SM75: no",
        ),
        (
            (
                "Invalid Node - b\nITensor::getDimensions: Error Code 4: API Usage Error (b: input has type Int32. In "
                "checkType "
                "at /_src/nodeBase.cpp:456)\n[checkMacros.cpp::catchCudaError::250] Error Code 1: Cuda Runtime "
                "(cudaError 35)"
            ),
            "Invalid Node - b; b: input has type Int32",
        ),
        ("plain", "plain"),
    ],
)
def test_messages_become_one_line(text: str, line: str) -> None:
    assert one_line(text) == line
