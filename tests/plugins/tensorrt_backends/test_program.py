"""The back end `trtexec` against a program that records how it is called, and against real logs of the real one.

The logs are excerpts of what users posted publicly about TensorRT 10.13 and 10.16.
"""

from __future__ import annotations

import json
import stat
import sys
from pathlib import Path
from typing import Any

import pytest

from shipctl.errors import SpecError, StageError, UnavailableError
from shipctl.stages.artifacts import OnnxModel
from shipctl.stages.context import CheckContext, JudgeContext
from shipctl.stages.verdicts import Outcome
from shipctl_plugins._tensorrt import backends, parity
from shipctl_plugins._tensorrt.backends import banner_version
from shipctl_plugins._tensorrt.devices import Gpu
from shipctl_plugins._tensorrt.with_trtexec import faults_of
from shipctl_plugins.optimize import trtexec
from shipctl_plugins.optimize.trtexec import Inputs, Options, Outputs, Trtexec

PROGRAM = """\
#!{python}
import json, pathlib, sys
here = pathlib.Path(__file__).parent
print("&&&& RUNNING TensorRT.trtexec [TensorRT v{number}] [b9] # " + " ".join(sys.argv))
if "--help" in sys.argv:
    sys.exit(0)
(here / "called.json").write_text(json.dumps(sys.argv[1:]))
options = dict(word.lstrip("-").partition("=")[::2] for word in sys.argv[1:])
print((here / "log").read_text() if (here / "log").exists() else "[05/20/2026-10:11:12] [I] Engine built in 2 sec.")
if (here / "log").exists():
    sys.exit(1)
pathlib.Path(options["saveEngine"]).write_bytes(b"engine")
if (here / "layers.json").exists():
    pathlib.Path(options["exportLayerInfo"]).write_bytes((here / "layers.json").read_bytes())
if "timingCacheFile" in options:
    cache = pathlib.Path(options["timingCacheFile"])
    cache.write_bytes((cache.read_bytes() if cache.exists() else b"") + b"timed;")
print("&&&& PASSED TensorRT.trtexec [TensorRT v{number}] [b9]")
"""


def tensor(kind: str) -> dict[str, Any]:
    """One as TensorRT 10 writes it."""
    return {"Name": "t", "Location": "Device", "Dimensions": [8, 32, 8, 8], "Format/Datatype": kind}


def layer(node: str, kind: str, type_name: str = "CaskConvolution") -> dict[str, Any]:
    return {
        "Name": f"{node} + relu", "LayerType": type_name, "Inputs": [tensor(kind)], "Outputs": [tensor(kind)],
        "Weights": {"Type": "Half", "Count": 9}, "Metadata": f"[ONNX Layer: {node}]\x1e[ONNX Layer: relu]",
    }  # fmt: skip


class Installed:
    """A recording trtexec on a machine with one L4."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "trtexec"

    def install(self, number: int) -> None:
        self.path.write_text(PROGRAM.format(python=sys.executable, number=number))
        self.path.chmod(self.path.stat().st_mode | stat.S_IXUSR)

    def layers(self, *rows: dict[str, Any]) -> None:
        (self.folder / "layers.json").write_text(
            json.dumps({"Layers": list(rows), "Bindings": ["image", "logits"]})
        )

    @property
    def arguments(self) -> list[str]:
        words: list[str] = json.loads((self.folder / "called.json").read_text())
        return words


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Installed:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    for module in (backends, parity, trtexec):
        monkeypatch.setattr(module, "gpus", lambda: (Gpu("NVIDIA L4", "8.9"),))
    return Installed(folder)


def run(model: OnnxModel, context: Any, **options: Any) -> tuple[Outputs, dict[str, Outcome]]:
    stage = Trtexec(
        Options.model_validate({"backend": "trtexec", "gpu": "L4", "require_run": False, **options})
    )
    outputs = stage.run(Inputs(model=model), context())
    return outputs, {verdict.gate: verdict.outcome for verdict in stage.judge(outputs, JudgeContext())}


EVERYTHING = {
    "workspace": "2GiB",
    "builder_optimization_level": 5,
    "sparsity": "force",
    "version_compatible": True,
    "hardware_compatible": "ampere_plus",
    "dla_core": 1,
    "gpu_fallback": True,
    "refit": True,
    "plugins": ["/opt/plugin.so"],
    "profiles": [{"batch": {"opt": 4, "max": 8}}, {"batch": {"min": 8, "opt": 16, "max": 64}}],
}
FLAGS = [
    "--profilingVerbosity=detailed", "--iterations=1", "--warmUp=0", "--duration=0",
    "--profile=0", "--minShapes=image:1x1x8x8", "--optShapes=image:4x1x8x8", "--maxShapes=image:8x1x8x8",
    "--profile=1", "--minShapes=image:8x1x8x8", "--optShapes=image:16x1x8x8", "--maxShapes=image:64x1x8x8",
    "--shapes=image:4x1x8x8",
]  # fmt: skip
MORE_FLAGS = [
    "--memPoolSize=workspace:2147483648B", "--builderOptimizationLevel=5", "--sparsity=force",
    "--hardwareCompatibilityLevel=ampere+", "--useDLACore=1", "--versionCompatible", "--allowGPUFallback", "--refit",
    "--dynamicPlugins=/opt/plugin.so",
]  # fmt: skip


@pytest.mark.parametrize(
    ("number", "options", "between"),
    [
        (101303, {"version": "10.13"}, ["--stronglyTyped"]),
        (101303, {"version": "10", "strongly_typed": False, "precision": ["fp16"]}, ["--fp16"]),
        (110100, {"version": "11.1.0"}, []),
    ],
)
def test_every_option_becomes_its_flag(
    program: Installed, digits_onnx: OnnxModel, context: Any, number: int, options: Any, between: list[str]
) -> None:
    program.install(number)
    outputs, _ = run(digits_onnx, context, **EVERYTHING, **options)
    onnx, plan, layers, *rest = program.arguments
    assert onnx == f"--onnx={digits_onnx.path}"
    assert plan == f"--saveEngine={outputs.model.root / 'model.plan'}"
    assert layers.endswith("/tmp/layers.json")
    assert rest == [*FLAGS, *between, *MORE_FLAGS]
    assert outputs.model.version == ("10.13.3" if number < 110000 else "11.1.0")
    assert (outputs.model.flavor, outputs.model.compute_capabilities) == ("tensorrt", ("8.9",))


def test_engine_that_ignored_fp16_fails(program: Installed, digits_onnx: OnnxModel, context: Any) -> None:
    """The types of TensorRT 10 stand in words about the format; a product in FP32 is a fallback, another is not."""
    program.install(101303)
    wide, half = "Row major linear FP32 format", "Channel major FP16 format where channel % 8 == 0"
    program.layers(
        layer("node_of_c0", half), layer("node_of_c1", half), layer("node_of_c2", wide), layer("node_of_c4", half),
        {"Name": "Reformatting CopyNode", "LayerType": "Reformat", "Inputs": [tensor(wide)], "Metadata": ""},
        layer("node_of_logits", "Half", "gemm"),
    )  # fmt: skip
    outputs, verdicts = run(digits_onnx, context, version="10", strongly_typed=False, precision=["fp16"])
    assert verdicts == {"precision": Outcome.FAIL, "inspection": Outcome.PASS}
    assert outputs.report.metrics["products.as_asked"] == 4
    assert {row["node"]: row["verdict"] for row in outputs.report.details["products"]}[
        "node_of_c2"
    ] == "fell back"
    assert outputs.report.metrics["layers.fp16"] == 4
    _, excused = run(
        digits_onnx, context, version="10", strongly_typed=False, precision=["fp16"],
        allow_full_precision=["node_of_c2"],
    )  # fmt: skip
    assert excused == {"precision": Outcome.PASS, "inspection": Outcome.PASS}


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        (None, "trtexec exported no layer information that can be read: "),
        ("rubbish", "trtexec exported no layer information that can be read: "),
        ([layer("node_of_c0", "N/A due to dynamic shapes")], ""),
        (["node_of_c0 + relu", "node_of_logits"], ""),
    ],
)
def test_layers_without_types_are_inconclusive(
    program: Installed, digits_onnx: OnnxModel, context: Any, rows: Any, why: str
) -> None:
    program.install(101303)
    if rows == "rubbish":
        (program.folder / "layers.json").write_text("{")
    elif rows is not None:
        program.layers(*rows)
    outputs, verdicts = run(digits_onnx, context, version="10", strongly_typed=False, precision=["fp16"])
    assert verdicts["inspection"] is Outcome.INCONCLUSIVE
    assert outputs.report.details["uninspected"].startswith(why)


def test_timing_cache_is_kept_between_builds(
    program: Installed, digits_onnx: OnnxModel, context: Any, tmp_path: Path
) -> None:
    program.install(110000)
    cache = tmp_path / "caches" / "l4.cache"
    for expected in (b"timed;", b"timed;timed;"):
        run(digits_onnx, context, version="11", timing_cache=str(cache))
        assert cache.read_bytes() == expected
    assert [path.name for path in cache.parent.iterdir()] == ["l4.cache"]


NODE = """\
[09/28/2025-09:21:52] [E] [TRT] ModelImporter.cpp:961: While parsing node number 267 [Conv -> "/layers.0/Conv_out"]:
[09/28/2025-09:21:52] [E] [TRT] ModelImporter.cpp:964: --- Begin node ---
input: "/model/Reshape_output_0"
name: "/model/Conv"
op_type: "Conv"
[09/28/2025-09:21:52] [E] [TRT] ModelImporter.cpp:965: --- End node ---
[09/28/2025-09:21:52] [E] [TRT] ModelImporter.cpp:967: ERROR: ModelImporter.cpp:194 In function parseNode:
[6] Invalid Node - /model/Conv
ITensor::getDimensions: Error Code 4: Shape Error (broadcast dimensions must be conformable In op at /_src/shape.cpp:27)
[09/28/2025-09:21:52] [E] [TRT] ModelImporter.cpp:961: While parsing node number 268 [Foo -> "y"]:
[09/28/2025-09:21:52] [E] [TRT] ModelImporter.cpp:967: ERROR: onnxOpCheckers.cpp:818 In function checkFallback:
[6] creator && "Plugin not found, are the plugin name, version, and namespace correct?"
[09/28/2025-09:21:52] [E] Failed to parse onnx file
[09/28/2025-09:21:52] [I] Finished parsing network model. Parse time: 1.98327
[09/28/2025-09:21:52] [E] Parsing model failed
[09/28/2025-09:21:52] [E] Failed to create engine from model or file.
[09/28/2025-09:21:52] [E] Engine set up failed
&&&& FAILED TensorRT.trtexec [TensorRT v101303] [b9] # ./trtexec --onnx=m.onnx
"""


def test_parser_errors_are_one_line_per_node(
    program: Installed, digits_onnx: OnnxModel, context: Any
) -> None:
    program.install(101303)
    (program.folder / "log").write_text(NODE)
    with pytest.raises(StageError) as caught:
        run(digits_onnx, context, version="10")
    assert str(caught.value).splitlines() == [
        "trtexec 10.13.3 ended with 1:",
        "  /layers.0/Conv_out (Conv): Invalid Node - /model/Conv; broadcast dimensions must be conformable",
        '  y (Foo): creator && "Plugin not found, are the plugin name, version, and namespace correct?"',
    ]


@pytest.mark.parametrize(
    ("output", "said"),
    [
        (
            (
                "[01/06/2026-12:05:53] [E] Error[4]: [graphShapeAnalyzer.cpp::analyzeShapes::2084] Error Code 4: "
                "Miscellaneous "
                "(IConditionalOutputLayer If: dimensions not compatible)\n[01/06/2026-12:05:53] [E] "
                "Engine set up failed"
            ),
            ["IConditionalOutputLayer If: dimensions not compatible"],
        ),
        (
            "=== Build Options ===\n[05/20/2026-10:11:12] [E] Unknown option: --fp16 \n&&&& FAILED TensorRT.trtexec",
            ["Unknown option: --fp16"],
        ),
        (
            "libnvinfer.so.11: cannot open shared object file",
            ["libnvinfer.so.11: cannot open shared object file"],
        ),
        ("", ["it printed nothing"]),
    ],
)
def test_other_errors_are_found_in_the_log(output: str, said: list[str]) -> None:
    assert [*faults_of(output)] == said


@pytest.mark.parametrize(
    ("number", "version"),
    [("101303", "10.13.3"), ("110100", "11.1.0"), ("100001", "10.0.1"), ("8601", "8.6.1")],
)
def test_banner_tells_the_version(number: str, version: str) -> None:
    assert banner_version(number) == version


@pytest.mark.parametrize(
    ("number", "options", "error", "message"),
    [
        (
            101303,
            {},
            SpecError,
            "trtexec 10.13.3 cannot do this: version is missing; write `version: 10.13.3`",
        ),
        (101303, {"version": "11"}, SpecError, "trtexec 10.13.3 cannot do this: version 11 is asked for"),
        (
            8601,
            {"version": "8.6"},
            SpecError,
            "trtexec 8.6.1 cannot do this: TensorRT 10 and 11 are supported",
        ),
        (
            110100,
            {"version": "11", "strongly_typed": False, "precision": ["int8", "fp16"]},
            SpecError,
            (
                "trtexec 11.1.0 cannot do this: int8, fp16: its networks are strongly typed, precision lives in the "
                "graph; put "
                "fp16, int8-calibration or modelopt-quantize before this stage"
            ),
        ),
        (
            110100,
            {"version": "11", "gpu": None, "compute_capability": ["8.9"]},
            SpecError,
            (
                "trtexec 11.1.0 cannot do this: compute_capability: it builds for the GPU at hand "
                "only (say which with gpu); "
                "tensorrt-rtx builds ahead of time"
            ),
        ),
        (
            110100,
            {"version": "11", "gpu": None},
            SpecError,
            (
                "trtexec 11.1.0 cannot do this: gpu is missing: an engine runs on one kind of GPU "
                "only, so the spec has to "
                "name it, such as `gpu: L4`"
            ),
        ),
        (
            110100,
            {"version": "11", "gpu": "A100"},
            UnavailableError,
            "gpu 'A100' is asked for, and this machine's first GPU is NVIDIA L4",
        ),
        (
            101303,
            {"version": "10", "precision": ["best"], "gpu_fallback": True, "timing_cache": "x"},
            SpecError,
            (
                "precision best lets TensorRT take whatever is fastest, so there is nothing to hold "
                "the engine to; name the "
                "types, such as [fp16]; precision asks for weak typing, which is `strongly_typed: "
                "false` (TensorRT 10 only); "
                "gpu_fallback needs a dla_core; timing_cache: 'x' is a relative path; write it from / or ~"
            ),
        ),
    ],
)
def test_what_it_cannot_do_is_told_at_plan_time(
    program: Installed, tmp_path: Path, number: int, options: Any, error: Any, message: str
) -> None:
    program.install(number)
    stage = Trtexec(Options.model_validate({"backend": "trtexec", "gpu": "L4", **options}))
    with pytest.raises(error) as caught:
        stage.check(CheckContext(project=tmp_path, pipeline="p"))
    assert str(caught.value) == message


def test_program_that_is_none_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    context = CheckContext(project=tmp_path, pipeline="p")
    for options, message in (
        (
            {},
            "there is no program trtexec on PATH; install TensorRT, or say with `binary` where its trtexec is",
        ),
        (
            {"binary": sys.executable},
            f"{Path(sys.executable).resolve()} is no trtexec of TensorRT: asked for --help it says",
        ),
    ):
        with pytest.raises(UnavailableError) as caught:
            Trtexec(Options.model_validate({"backend": "trtexec", "gpu": "L4", **options})).check(context)
        assert str(caught.value).startswith(message)


def test_machine_without_a_gpu_is_told(
    program: Installed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program.install(110000)
    monkeypatch.setattr(backends, "gpus", tuple)
    with pytest.raises(UnavailableError) as caught:
        Trtexec(Options(backend="trtexec", gpu="L4", version="11")).check(
            CheckContext(project=tmp_path, pipeline="p")
        )
    assert str(caught.value) == "trtexec 11.0.0 builds on a GPU, and this machine has none (or no driver)"


def test_weak_int8_without_quantisers_fails(program: Installed, digits_onnx: OnnxModel, context: Any) -> None:
    """The program would make up ranges, and the engine would answer nonsense."""
    program.install(101303)
    with pytest.raises(
        StageError, match=r"^precision int8 needs a graph with quantisers, and this one has none "
    ):
        run(digits_onnx, context, version="10", strongly_typed=False, precision=["int8"])
