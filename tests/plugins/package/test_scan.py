"""Stage `scan`."""

from __future__ import annotations

import bz2
import collections
import gzip
import io
import json
import lzma
import pickle
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

pytest.importorskip("picklescan")
pytest.importorskip("license_expression")

from shipctl.errors import GateError, StageError
from shipctl.evidence.package import MANIFEST, PackagedArtifact, PackageManifest
from shipctl.stages.artifacts import Artifact, ModelPackage, OnnxModel, TorchModel, TritonRepository
from shipctl.stages.context import JudgeContext, StageContext
from shipctl.stages.verdicts import Outcome, Verdict
from shipctl.testing.conformance import StageConformance
from shipctl.testing.samples import SIGNATURE, sealed, tiny_onnx_model
from shipctl_plugins.package import _scan_advisories as advisories
from shipctl_plugins.package import _scan_archives, _scan_files, _scan_findings, _scan_pickles
from shipctl_plugins.package._scan_findings import Findings, Waiver
from shipctl_plugins.package.scan import Inputs, Options, Outputs, Scan
from support_hostile import (
    ARCHIVES,
    EVIL,
    GOOD_PICKLE,
    PICKLES,
    call,
    encrypted_flag,
    entry,
    linked,
    nested,
    npy,
    overlapping,
    tarred,
    with_other_local_name,
    zipped,
)
from support_packaging import full_case

Run = Callable[..., "Scanned"]


class TestConformance(StageConformance):
    stage = "scan"

    def inputs(self, tmp_path: Path) -> Mapping[str, Artifact | list[Artifact] | None]:
        return {"subject": tiny_onnx_model(tmp_path / "inputs")}


class Scanned:
    """Outputs of one scan, and what they are judged to be."""

    def __init__(self, outputs: Outputs, options: Options) -> None:
        self.report = outputs.report
        self.rows: list[dict[str, Any]] = outputs.report.details["findings"]
        self.ids = {row["id"] for row in self.rows}
        self._outputs = outputs
        self._options = options

    def judge(self, **options: Any) -> dict[str, Verdict]:
        given = Options(**{**self._options.model_dump(), **options})
        return {verdict.gate: verdict for verdict in Scan(given).judge(self._outputs, JudgeContext())}

    def failed(self, **options: Any) -> set[str]:
        return {
            gate for gate, verdict in self.judge(**options).items() if verdict.outcome is not Outcome.PASS
        }


@pytest.fixture
def run(tmp_path: Path, context: Callable[..., StageContext]) -> Run:
    """Scan a model of these files: by name, bytes, text or a link's target as a path."""

    def scan_it(
        files: Mapping[str, bytes | str | Path], kind: type[Artifact] = TorchModel, **options: Any
    ) -> Scanned:
        folder = tmp_path / f"subject-{len(list(tmp_path.iterdir()))}"
        for name, content in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, Path):
                path.symlink_to(content)
            else:
                path.write_bytes(content.encode() if isinstance(content, str) else content)
        given = Options(**options)
        outputs = Scan(given).run(Inputs(subject=subject_at(folder, kind)), context())
        return Scanned(outputs, given)

    return scan_it


def subject_at(folder: Path, kind: type[Artifact]) -> Any:
    folder.mkdir(exist_ok=True)
    if kind is ModelPackage:
        return sealed(ModelPackage.at(folder, name="m", version="1.0.0", model="0" * 64, signature=SIGNATURE))
    if kind is TritonRepository:
        return sealed(
            TritonRepository.at(folder, model="m", signature=SIGNATURE, max_batch_size=0, source="0" * 64)
        )
    if kind is OnnxModel:
        return sealed(OnnxModel.at(folder, signature=SIGNATURE))
    return sealed(TorchModel.at(folder, builder="model.py:build", signature=SIGNATURE))


def manifest(license_: str | None = "Apache-2.0") -> bytes:
    content = PackageManifest(
        name="m",
        version="1.0.0",
        license=license_,
        signature=SIGNATURE,
        artifacts=(PackagedArtifact(role="model", path="model", digest="0" * 64, manifest={}),),
        files=(),
    )
    return content.model_dump_json().encode()


def onnx_bytes(*nodes: onnx.NodeProto, **fields: Any) -> bytes:
    graph = helper.make_graph(
        list(nodes) or [helper.make_node("Relu", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
        fields.pop("initializer", None),
    )
    content: bytes = helper.make_model(graph, **fields).SerializeToString()
    return content


def outside(location: str, name: str = "w", **more: str) -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[1])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **more}.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


# -- what is clean ---------------------------------------------------------------------------------------------


def test_clean_package_passes_every_gate(run: Run, digits_onnx: OnnxModel, specs: Path) -> None:
    scanned = run(
        {
            MANIFEST: manifest(),
            "model/model.onnx": digits_onnx.path.read_bytes(),
            "data/golden/golden.npz": (specs / "data" / "digits-golden.npz").read_bytes(),
            "processing/labels.json": "[1, 2]",
            "MODEL_CARD.md": "# Digits\n",
            "requirements.txt": "numpy==1.0\n",
        },
        ModelPackage,
    )
    assert scanned.failed() == set()
    assert scanned.rows == []
    assert scanned.report.metrics["scan.files"] == 6
    assert scanned.report.metrics["scan.members"] == 3  # of the npz
    assert scanned.judge()["scan.pickles"].message == "nothing found"


def test_package_that_the_package_stage_made_passes(
    tmp_path: Path, digits_onnx: OnnxModel, specs: Path, context: Any
) -> None:
    package = full_case(tmp_path, digits_onnx, specs / "data").run().package
    outputs = Scan(Options()).run(Inputs(subject=package), context())
    assert outputs.report.details["findings"] == []
    assert outputs.report.metrics["scan.models"] == 2  # the model, and its copy in the repository
    assert {v.outcome for v in Scan(Options()).judge(outputs, JudgeContext())} == {Outcome.PASS}


def test_model_of_one_file_is_scanned(tmp_path: Path, context: Any) -> None:
    model = tiny_onnx_model(tmp_path / "m")
    outputs = Scan(Options()).run(Inputs(subject=model), context())
    assert outputs.report.metrics["scan.models"] == 1
    assert outputs.report.subject == model.digest


def test_torch_source_is_clean(digits_torch: TorchModel, context: Any) -> None:
    outputs = Scan(Options()).run(Inputs(subject=digits_torch), context())
    assert {row["id"] for row in outputs.report.details["findings"]} == {
        "python-code@digits.py",
        "python-code@layers.py",
    }
    assert {v.outcome for v in Scan(Options()).judge(outputs, JudgeContext())} == {Outcome.PASS}


def test_random_weights_are_taken_for_what_they_are(run: Run) -> None:
    """Two bytes of every few hundred tensors look like the beginning of a pickle."""
    random = np.random.default_rng(0)
    files: dict[str, bytes | str | Path] = {}
    for number, start in enumerate(
        (b"", b"\x80\x02", b"\x80\x04", b"\x80\x05", b"x\x9c", b"\x1f\x8b", b"c", b"i", b"MZ")
    ):
        files[f"{number}.bin"] = start + random.standard_normal(5_000).astype(np.float32).tobytes()
    assert run(files).rows == []


def test_arrays_without_objects_are_clean(run: Run) -> None:
    buffers = {name: io.BytesIO() for name in ("a.npy", "a.npz", "packed.npz", "two.npy", "empty.npy")}
    np.save(buffers["a.npy"], np.ones((2, 3)))
    np.savez(buffers["a.npz"], x=np.ones(3), y=np.array(["a"]))
    np.savez_compressed(buffers["packed.npz"], x=np.ones(3))
    np.save(buffers["two.npy"], np.ones(3))
    np.save(buffers["two.npy"], np.arange(3))
    np.save(buffers["empty.npy"], np.ones((0, 3)))
    assert run({name: buffer.getvalue() for name, buffer in buffers.items()}).rows == []


# -- pickles ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model.pkl", "model.pt", "weights.bin", "notes.txt"])
@pytest.mark.parametrize("trick", PICKLES)
def test_pickle_that_runs_something_is_found_whatever_its_name(run: Run, trick: str, name: str) -> None:
    scanned = run({name: PICKLES[trick]})
    assert any(row["id"].startswith("pickle-global:") for row in scanned.rows)
    assert "scan.pickles" in scanned.failed(allow_pickles=True, allow_code=("script",))


@pytest.mark.parametrize("name", ["model.pt", "weights.bin", "notes.txt"])
@pytest.mark.parametrize("trick", ARCHIVES)
def test_pickle_in_an_archive_is_found_whatever_its_name(run: Run, trick: str, name: str) -> None:
    scanned = run({name: ARCHIVES[trick]})
    assert scanned.failed(allow_pickles=True) & {"scan.pickles", "scan.unscannable"}
    if trick != "7z":
        assert any(row["id"].startswith("pickle-global:") for row in scanned.rows)


@pytest.mark.parametrize("content", [b"garbage", GOOD_PICKLE[:-5], b"\x80\x05", GOOD_PICKLE + b"more"])
def test_pickle_that_cannot_be_parsed_never_passes(run: Run, content: bytes) -> None:
    assert run({"model.pkl": content}).failed(allow_pickles=True) == {"scan.unscannable"}


def test_harmless_pickle_is_allowed_only_on_request(run: Run) -> None:
    good = {"a.pkl": GOOD_PICKLE, "b.pkl": pickle.dumps(collections.OrderedDict(a=[1.5, "x", b"y", {2}]))}
    scanned = run(good)
    assert scanned.failed() == {"scan.pickles"}
    assert scanned.judge()["scan.pickles"].message == (
        "2 findings: pickle@a.pkl: is unpickled when it is loaded; prefer safetensors, ONNX or plain arrays; "
        "pickle@b.pkl: is unpickled when it is loaded; prefer safetensors, ONNX or plain arrays"
    )
    assert scanned.failed(allow_pickles=True) == set()


@pytest.mark.torch
@pytest.mark.parametrize("zip_format", [True, False])
def test_state_dict_of_torch_is_harmless(run: Run, tmp_path: Path, zip_format: bool) -> None:
    torch = pytest.importorskip("torch")
    path = tmp_path / "model.pt"
    state = {
        "w": torch.ones(300),
        "p": torch.nn.Parameter(torch.ones(2)),
        "h": torch.ones(2, dtype=torch.float16),
    }
    torch.save(state, path, _use_new_zipfile_serialization=zip_format)
    scanned = run({"model.pt": path.read_bytes()})
    assert {row["id"].partition("@")[0] for row in scanned.rows} == {"pickle"}
    assert scanned.failed(allow_pickles=True) == set()


def test_unknown_name_is_allowed_by_pattern_but_a_dangerous_one_is_not(run: Run) -> None:
    scanned = run({"a.pkl": call("mine.models", "Net"), "b.pkl": EVIL})
    message = scanned.judge(allow_pickles=True, allowed_globals=("mine.*", "posix.*"))["scan.pickles"].message
    assert message == (
        "1 finding: pickle-global:posix.system@b.pkl: unpickling calls or imports posix.system, "
        "which runs what it is told to"
    )


def test_object_array_is_a_pickle(run: Run) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    assert "pickle@a.npy" in run({"a.npy": buffer.getvalue()}).ids


def test_bytes_behind_an_array_never_pass(run: Run) -> None:
    content = npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1,), }", bytes(8)) + EVIL
    assert "unscannable@a.npy" in run({"a.npy": content}).ids


@pytest.mark.parametrize("limit", ["_MAX_OPCODES", "_MAX_ARGUMENT", "_MAX_STREAMS"])
def test_pickle_beyond_a_limit_never_passes(run: Run, monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    monkeypatch.setattr(_scan_pickles, limit, 20)
    content = pickle.dumps(list(range(50)), protocol=0) if limit != "_MAX_STREAMS" else GOOD_PICKLE * 30
    content = pickle.dumps(b"x" * 30, protocol=4) if limit == "_MAX_ARGUMENT" else content
    assert "scan.unscannable" in run({"a.pkl": content}).failed(allow_pickles=True)


def test_long_values_do_not_hide_a_name(run: Run) -> None:
    content = b"\x80\x04X" + (600).to_bytes(4, "little") + b"a" * 600 + b"0" + EVIL[2:]
    assert "pickle-global:posix.system@a.pkl" in run({"a.pkl": content}).ids


# -- archives --------------------------------------------------------------------------------------------------

HOSTILE_ARCHIVES: dict[str, tuple[bytes, str]] = {
    "zip that climbs": (zipped({"../../etc/passwd": b"x"}), "archive-path"),
    "zip with an absolute name": (zipped({"/etc/passwd": b"x"}), "archive-path"),
    "zip with a drive": (zipped({"C:/x": b"x"}), "archive-path"),
    "zip with backslashes": (zipped({"..\\..\\x": b"x"}), "archive-path"),
    "zip with a NUL": (zipped({"ab": b"x"}).replace(b"ab", b"a\x00"), "archive-path"),
    "zip with a link": (linked(zipped({"a": b"/etc/passwd"})), "archive-link"),
    "zip with one name twice": (
        zipped({"data.pkl": b"x", "data.pkm": b"y"}).replace(b"data.pkm", b"data.pkl"),
        "archive-inconsistent",
    ),
    "zip with two names for one": (
        with_other_local_name(zipped({"data.pkl": b"x"}), b"data.pkl", b"data.txt"),
        "archive-inconsistent",
    ),
    "zip behind other bytes": (b"GIF89a" + zipped({"a": b"x"}), "archive-inconsistent"),
    "zip that is encrypted": (encrypted_flag(zipped({"a": b"x"})), "unscannable"),
    "zip that is cut": (zipped({"a": b"x" * 500})[:100], "unscannable"),
    "zip of zeros": (zipped({"a": bytes(101 << 20)}, zipfile.ZIP_DEFLATED), "archive-bomb"),
    "zip that overlaps": (overlapping(1 << 20, 50), "archive-bomb"),
    "zips in zips": (nested(9), "archive-bomb"),
    "tar that climbs": (tarred((entry("../x"), b"x")), "archive-path"),
    "tar with an absolute name": (tarred((entry("/x"), b"x")), "archive-path"),
    "tar with a link inside": (tarred((entry("a/b", tarfile.SYMTYPE, "c"), b"")), "archive-link"),
    "tar with a link outside": (tarred((entry("a/b", tarfile.SYMTYPE, "../../c"), b"")), "archive-link"),
    "tar with a hard link": (tarred((entry("a", tarfile.LNKTYPE, "/etc/passwd"), b"")), "archive-link"),
    "tar with a device": (tarred((entry("a", tarfile.CHRTYPE), b"")), "archive-link"),
    "tar with a pickle": (tarred((entry("a"), EVIL)), "pickle-global"),
    "gzip with a pickle": (gzip.compress(EVIL, mtime=0), "pickle-global"),
    "bzip2 with a pickle": (bz2.compress(EVIL), "pickle-global"),
    "xz with a pickle": (lzma.compress(EVIL), "pickle-global"),
    "lzma with a pickle": (lzma.compress(EVIL, lzma.FORMAT_ALONE), "pickle-global"),
    "zlib with a pickle": (zlib.compress(EVIL), "pickle-global"),
    "tar.gz with a zip with a pickle": (
        gzip.compress(tarred((entry("x"), zipped({"y": EVIL}))), mtime=0),
        "pickle-global",
    ),
    "gzip that is cut": (gzip.compress(b"x" * 1000, mtime=0)[:-12], "unscannable"),
    "rar": (b"Rar!\x1a\x07\x01\x00" + bytes(20), "unscannable"),
    "zstd": (b"\x28\xb5\x2f\xfd" + bytes(20), "unscannable"),
}


@pytest.mark.parametrize("name", ["a.npz", "model.pt", "weights.bin"])
@pytest.mark.parametrize("trick", HOSTILE_ARCHIVES)
def test_hostile_archive_is_found(run: Run, trick: str, name: str) -> None:
    content, rule = HOSTILE_ARCHIVES[trick]
    scanned = run({name: content})
    assert rule in {row["id"].partition("@")[0].partition(":")[0] for row in scanned.rows}
    assert scanned.failed(allow_pickles=True)


def test_link_that_leaves_is_worse_than_one_that_stays(run: Run) -> None:
    rows = run(
        {
            "a.tar": HOSTILE_ARCHIVES["tar with a link outside"][0],
            "b.tar": HOSTILE_ARCHIVES["tar with a link inside"][0],
        }
    ).rows
    assert [(row["file"], row["severity"]) for row in rows] == [
        ("a.tar!a/b", "critical"),
        ("b.tar!a/b", "high"),
    ]


def test_stream_that_unpacks_without_end_is_stopped(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    class Small(_scan_archives.Budget):
        def __init__(self, size: int) -> None:
            super().__init__(size)
            self.left = 10_000

    monkeypatch.setattr(_scan_archives, "Budget", Small)
    bomb = gzip.compress(bytes(1 << 20), mtime=0)
    assert run({"a.gz": bomb}).rows == [
        {
            "id": "archive-bomb@a.gz",
            "severity": "critical",
            "file": "a.gz",
            "message": "was not looked at to its end: it unpacks to far more than it holds",
        }
    ]
    assert "archive-bomb@b.tar" in run({"b.tar": tarred((entry("a"), bytes(50_000)))}).ids


def test_too_many_members_are_a_bomb(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_scan_archives, "MAX_MEMBERS", 5)
    assert "archive-bomb@a.zip" in run({"a.zip": zipped({str(n): b"" for n in range(7)})}).ids


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (b"\xff" * 3_000 + EVIL, None),
        (EVIL + bytes(3_000), "pickle-global:posix.system"),
        (zipped({"a": EVIL}) + b"", "unscannable"),
        (bytes(3_000) + zipped({"a": EVIL}), "unscannable"),
        (npy("{'descr': '<f8', 'fortran_order': False, 'shape': (400,), }", bytes(3_200)), "unscannable"),
    ],
)
def test_member_larger_than_memory_is_looked_at_as_a_stream(
    run: Run, monkeypatch: pytest.MonkeyPatch, content: bytes, rule: str | None
) -> None:
    monkeypatch.setattr(_scan_files, "_IN_MEMORY", 100)
    rows = run({"a.zip": zipped({"m": content})}).rows
    assert any(row["id"] == f"{rule}@a.zip!m" for row in rows) if rule else not rows


def test_file_whose_name_promises_an_archive_has_to_be_one(run: Run) -> None:
    assert run({"a.npz": b"nothing"}).ids == {"unscannable@a.npz"}


# -- operators and code ----------------------------------------------------------------------------------------


def domains(scanned: Scanned) -> dict[str, str]:
    return {row["domain"]: row["operators"] for row in scanned.report.details["operators"]}


def test_operators_of_known_domains_pass(run: Run) -> None:
    content = onnx_bytes(
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Gelu", ["a"], ["y"], domain="com.microsoft"),
        opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)],
    )
    scanned = run({"model.onnx": content}, OnnxModel)
    assert domains(scanned) == {"ai.onnx": "Relu", "com.microsoft": "Gelu"}
    assert scanned.failed() == set()


def test_operator_of_another_domain_is_found_wherever_it_hides(run: Run) -> None:
    foreign = helper.make_node("Steal", ["x"], ["y"], domain="com.evil")
    branch = helper.make_graph(
        [foreign], "branch", [], [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])]
    )
    function = helper.make_function(
        "mine", "Call", ["x"], ["y"], [foreign], [helper.make_opsetid("com.evil", 1)]
    )
    training = onnx.ModelProto.FromString(onnx_bytes())
    training.training_info.add().algorithm.CopyFrom(branch)
    models = {
        "graph": onnx_bytes(foreign),
        "subgraph": onnx_bytes(helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch)),
        "function": onnx_bytes(helper.make_node("Call", ["x"], ["y"], domain="mine"), functions=[function]),
        "training": training.SerializeToString(),
    }
    for name, content in models.items():
        for file in ("model.onnx", "model.bin", "1/model"):
            verdict = run({file: content}, OnnxModel).judge()["scan.operators"]
            assert verdict.outcome is Outcome.FAIL, (name, file)
            assert verdict.message == (
                f"1 finding: onnx-domain:com.evil@{file}: operators of the domain 'com.evil' come from a library "
                "beside the runtime: Steal"
            )


def test_functions_of_the_model_itself_are_no_foreign_operators(run: Run) -> None:
    function = helper.make_function(
        "mine",
        "Twice",
        ["x"],
        ["y"],
        [helper.make_node("Add", ["x", "x"], ["y"])],
        [helper.make_opsetid("", 21)],
    )
    node = helper.make_node("Twice", ["x"], ["y"], domain="mine")
    scanned = run({"model.onnx": onnx_bytes(node, functions=[function])}, OnnxModel)
    assert domains(scanned) == {"ai.onnx": "Add"}


def test_further_domains_are_allowed_without_a_new_scan(run: Run) -> None:
    scanned = run(
        {"model.onnx": onnx_bytes(helper.make_node("F", ["x"], ["y"], domain="com.mine"))}, OnnxModel
    )
    assert scanned.failed() == {"scan.operators"}
    assert scanned.failed(allowed_domains=("ai.onnx", "com.mine")) == set()


@pytest.mark.parametrize(
    "place", ["../secret", "/etc/passwd", "a/../../x", "C:\\x", "..\\x", "\\\\host\\share", "", "a\x00b"]
)
def test_external_data_that_leaves_the_folder_is_found(run: Run, place: str) -> None:
    scanned = run({"model.onnx": onnx_bytes(initializer=[outside(place)])}, OnnxModel)
    assert [row["severity"] for row in scanned.rows] == ["critical"]
    assert scanned.rows[0]["id"].startswith("onnx-external:")
    assert scanned.failed() == {"scan.operators"}


def test_external_data_is_found_wherever_a_tensor_can_stand(run: Run) -> None:
    tensor = outside("../x")
    sparse = onnx.SparseTensorProto(values=tensor, indices=outside("../indices"), dims=[1])
    graph = helper.make_graph([], "g", [], [], [tensor])
    in_sparse = helper.make_graph([], "g", [], [])
    in_sparse.sparse_initializer.append(sparse)
    nodes = {
        "tensor": helper.make_node("Constant", [], ["y"], value=tensor),
        "tensors": helper.make_node("C", [], ["y"], values=[tensor]),
        "sparse": helper.make_node("Constant", [], ["y"], sparse_value=sparse),
        "graph": helper.make_node("If", ["x"], ["y"], then_branch=graph),
        "graphs": helper.make_node("If", ["x"], ["y"], branches=[graph]),
        "sparse in a graph": helper.make_node("If", ["x"], ["y"], then_branch=in_sparse),
    }
    for name, node in nodes.items():
        assert "onnx-external:../x@model.onnx" in run({"model.onnx": onnx_bytes(node)}, OnnxModel).ids, name
    function = helper.make_function("mine", "F", [], ["y"], [nodes["tensor"]], [helper.make_opsetid("", 21)])
    scanned = run({"model.onnx": onnx_bytes(functions=[function])}, OnnxModel)
    assert "onnx-external:../x@model.onnx" in scanned.ids


def test_external_data_beside_the_model_has_to_be_there_and_long_enough(run: Run) -> None:
    def look(**more: str) -> list[str]:
        model = onnx_bytes(initializer=[outside("weights.bin", **more)])
        return [
            row["message"] for row in run({"model.onnx": model, "weights.bin": bytes(64)}, OnnxModel).rows
        ]

    assert look(offset="32", length="32") == []
    assert look() == []
    short = ["tensor 'w' is read from bytes that 'weights.bin' does not have"]
    assert look(offset="32", length="33") == short
    assert look(offset="-1", length="3") == short
    assert look(offset="x") == short
    gone = run({"model.onnx": onnx_bytes(initializer=[outside("gone.bin")])}, OnnxModel).rows
    assert gone[0]["message"] == "tensor 'w' is read from 'gone.bin', which is not there"


def test_model_in_an_archive_has_no_data_beside_it(run: Run) -> None:
    model = onnx_bytes(initializer=[outside("weights.bin")])
    rows = run({"a.zip": zipped({"model.onnx": model}), "weights.bin": bytes(64)}).rows
    assert [row["message"] for row in rows] == ["tensor 'w' is read from 'weights.bin', which is not there"]


def test_external_data_behind_a_link_is_found(run: Run, tmp_path: Path) -> None:
    (tmp_path / "real.bin").write_bytes(bytes(64))
    model = onnx_bytes(initializer=[outside("weights.bin")])
    scanned = run({"model.onnx": model, "weights.bin": tmp_path / "real.bin"}, OnnxModel)
    assert {"onnx-external:weights.bin@model.onnx", "link@weights.bin"} <= scanned.ids


def test_model_that_does_not_parse_never_passes(run: Run) -> None:
    assert run({"model.onnx": b"not a model"}, OnnxModel).ids == {"unscannable@model.onnx"}


def test_code_is_listed_and_bounded(run: Run) -> None:
    scanned = run(
        {
            "m/config.pbtxt": '# backend: "python"\nname: "m"\nbackend : \'python\'\n',
            "m/1/model.py": "class TritonPythonModel: ...\n",
            "m/1/libx.so": b"\x7fELF\x02",
            "m/1/libx.so.1": b"x",
            "m/1/weights": b"MZ" + bytes(58) + (64).to_bytes(4, "little") + b"PE\x00\x00",
            "m/1/mac": b"\xcf\xfa\xed\xfe",
            "m/1/x.wasm": b"\x00asm",
            "m/1/x.pyc": b"x",
            "tools/run": "#!/bin/sh\n",
            "tools/x.py": "",
        },
        TritonRepository,
    )
    assert scanned.ids == {
        "native-code@m/1/libx.so", "native-code@m/1/libx.so.1", "native-code@m/1/mac", "native-code@m/1/weights",
        "native-code@m/1/x.pyc", "native-code@m/1/x.wasm", "python-backend@m/1/model.py",
        "python-backend@m/config.pbtxt", "python-code@tools/x.py", "script@tools/run",
    }  # fmt: skip
    assert scanned.failed() == {"scan.code"}
    assert scanned.failed(allow_code=("native-code",)) == {"scan.code"}
    assert scanned.failed(allow_code=("native-code", "python-backend")) == set()
    assert scanned.failed(allow_code=("native-code", "python-backend"), max_severity="info") == {"scan.code"}


def test_repository_that_only_comments_on_python_is_clean(run: Run) -> None:
    files = {
        "m/config.pbtxt": '# backend: "python"\nbackend: "onnxruntime"\n',
        "m/1/model.onnx": onnx_bytes(),
    }
    assert run(files, TritonRepository).rows == []


# -- licences --------------------------------------------------------------------------------------------------


def licensed(run: Run, license_: str | None, requirements: str = "") -> Scanned:
    return run({MANIFEST: manifest(license_), "requirements.txt": requirements}, ModelPackage)


def test_package_without_a_licence_does_not_pass(run: Run) -> None:
    verdict = licensed(run, None).judge()["scan.licenses"]
    assert verdict.outcome is Outcome.FAIL
    assert verdict.message == (
        "1 finding: license-missing@package.json: the model has no licence; say under which it may be used"
    )


def test_licence_is_judged_by_lists(run: Run) -> None:
    scanned = licensed(run, "MIT OR GPL-3.0-only")
    assert scanned.failed(allowed_licenses=("MIT",)) == set()
    assert scanned.failed(allowed_licenses=("BSD-*",)) == {"scan.licenses"}
    assert scanned.failed(denied_licenses=("GPL-*",)) == set()
    assert scanned.failed(denied_licenses=("GPL-*", "MIT")) == {"scan.licenses"}
    assert licensed(run, "MIT AND GPL-3.0-only").judge(denied_licenses=("GPL-*",))[
        "scan.licenses"
    ].message == (
        "1 finding: license:model:MIT AND GPL-3.0-only@package.json: "
        "the model 1.0.0 is under MIT AND GPL-3.0-only, which is not allowed"
    )


def test_licence_that_is_no_expression_is_an_error(run: Run) -> None:
    with pytest.raises(GateError, match="names 'Ours', which SPDX does not know"):
        licensed(run, "Ours").judge(allowed_licenses=("MIT",))


def test_licences_of_requirements_come_from_installed_distributions(run: Run) -> None:
    import packaging

    scanned = licensed(run, "MIT", f"packaging=={packaging.__version__}\nnumpy==0.1\nnowhere==1.0\n")
    rows = {row["of"]: (row["license"], row["source"]) for row in scanned.report.details["licenses"]}
    assert rows["packaging"][0] == "Apache-2.0 OR BSD-2-Clause"
    assert rows["numpy"] == ("", "not installed in this version")
    assert rows["nowhere"] == ("", "not installed in this version")
    assert scanned.failed() == set()  # an unknown licence is a low finding
    assert scanned.failed(max_severity="info") == {"scan.licenses"}
    assert scanned.failed(allowed_licenses=("MIT",)) == {"scan.licenses"}


# -- vulnerabilities -------------------------------------------------------------------------------------------


def advisory(name: str, *events: Mapping[str, str], **fields: Any) -> dict[str, Any]:
    return {
        "id": f"GHSA-{name}",
        "modified": "2026-01-02T03:04:05Z",
        "summary": f"{name} is broken",
        "affected": [
            {
                "package": {"ecosystem": "PyPI", "name": name},
                "ranges": [{"type": "ECOSYSTEM", "events": list(events)}],
            }
        ],
        "database_specific": {"severity": "HIGH"},
        **fields,
    }


RANGE = ({"introduced": "1.0"}, {"fixed": "1.5"}, {"introduced": "2.0"}, {"last_affected": "2.3"})


@pytest.mark.parametrize(
    ("version", "affected"),
    [
        ("0.9", False), ("1.0rc1", False), ("1.0", True), ("1.4.99", True), ("1.5", False), ("1.5.post1", False),
        ("1.9", False), ("2.0", True), ("2.3", True), ("2.3+cpu", True), ("2.3.1", False), ("3", False), ("x.y", True),
    ],
)  # fmt: skip
def test_ranges_are_evaluated_as_the_schema_says(version: str, affected: bool) -> None:
    record = advisory("Some_Thing", *RANGE)
    assert advisories.applies("some-thing", version, record) is affected
    shuffled = advisory("Some_Thing", *reversed(RANGE))
    assert advisories.applies("some-thing", version, shuffled) is affected


def test_zero_is_before_every_version_and_listed_versions_count() -> None:
    assert advisories.applies("a", "0.0.dev1", advisory("a", {"introduced": "0"}))
    listed = advisory("a")
    listed["affected"][0]["versions"] = ["weird-release", "1.0.0"]
    assert advisories.applies("a", "1.0", listed)
    assert not advisories.applies("a", "1.1", listed)
    commits = advisory("a", {"introduced": "0"})
    commits["affected"][0]["ranges"][0]["type"] = "GIT"
    assert not advisories.applies("a", "1.0", commits)
    unclear = advisory("a", {"introduced": "not-a-version"})
    assert advisories.applies("a", "1.0", unclear)


@pytest.mark.parametrize(
    ("vector", "score"),
    [
        # From https://www.first.org/cvss/v3.1/examples
        ("CVSS:3.0/AV:N/AC:L/PR:L/UI:N/S:C/C:L/I:L/A:N", 6.4),
        ("CVSS:3.1/AV:N/AC:L/PR:N/UI:N/S:U/C:H/I:H/A:H", 9.8),
        ("CVSS:3.1/AV:N/AC:L/PR:N/UI:R/S:C/C:H/I:H/A:H", 9.6),
        ("CVSS:3.1/AV:L/AC:H/PR:H/UI:N/S:U/C:L/I:N/A:N", 1.9),
        ("CVSS:3.1/AV:N/AC:L/PR:N/UI:N/S:U/C:N/I:N/A:N", 0.0),
        ("CVSS:3.1/AV:N/AC:L/PR:N/UI:N/S:C/C:H/I:H/A:H", 10.0),
        ("CVSS:4.0/AV:N/AC:L/AT:N/PR:N/UI:N/VC:H/VI:H/VA:H/SC:N/SI:N/SA:N", None),
        ("CVSS:3.1/AV:N", None),
        ("", None),
    ],
)
def test_cvss_base_score(vector: str, score: float | None) -> None:
    assert advisories.cvss3_base_score(vector) == score


def test_severity_is_taken_from_words_before_vectors() -> None:
    vector = {"type": "CVSS_V3", "score": "CVSS:3.1/AV:N/AC:L/PR:N/UI:N/S:U/C:H/I:H/A:H"}
    assert advisories.severity_of({"severity": [vector]}) == "critical"
    assert (
        advisories.severity_of({"severity": [vector], "database_specific": {"severity": "MODERATE"}})
        == "medium"
    )
    assert advisories.severity_of({"severity": [{"type": "CVSS_V4", "score": "CVSS:4.0/AV:N"}]}) is None


@pytest.fixture
def database(tmp_path: Path) -> Callable[..., str]:
    def write(*records: Mapping[str, Any], as_zip: bool = True) -> str:
        path = tmp_path / ("all.zip" if as_zip else "all.json")
        content = zipped({f"{record['id']}.json": json.dumps(record).encode() for record in records})
        path.write_bytes(content if as_zip else json.dumps(records).encode())
        return str(path)

    return write


def test_known_vulnerability_is_found(run: Run, database: Any) -> None:
    path = database(
        advisory("numpy", {"introduced": "0"}, {"fixed": "1.22"}, aliases=["CVE-1"]),
        advisory(
            "numpy",
            {"introduced": "0"},
            {"fixed": "1.22"},
            id="PYSEC-1",
            aliases=["CVE-1"],
            database_specific={},
        ),
        advisory("onnx", {"introduced": "0"}, {"fixed": "1.0"}),
        advisory("withdrawn", {"introduced": "0"}, withdrawn="2026-01-01T00:00:00Z"),
    )
    text = "numpy==1.21\nonnx==1.18\nwithdrawn==1\nclean==1\n"
    scanned = run({"requirements.txt": text}, vulnerabilities=path)
    verdict = scanned.judge()["scan.vulnerabilities"]
    assert verdict.outcome is Outcome.FAIL
    assert verdict.message == (
        "1 finding: vulnerability:GHSA-numpy:numpy@1.21@requirements.txt: numpy 1.21: GHSA-numpy (CVE-1, PYSEC-1), "
        "high: numpy is broken; fixed in 1.22"
    )
    assert "scan.vulnerabilities" not in scanned.failed(max_vulnerability="high")
    assert scanned.report.metrics["scan.database_records"] == 4


def test_ungraded_vulnerability_counts_as_high(run: Run, database: Any) -> None:
    path = database(advisory("numpy", {"introduced": "0"}, database_specific={}), as_zip=False)
    rows = run({"requirements.txt": "numpy==2.0\n"}, vulnerabilities=path).rows
    assert [row["severity"] for row in rows] == ["high"]


def test_requirement_without_a_version_cannot_be_cleared(run: Run, database: Any) -> None:
    path = database(advisory("numpy", {"introduced": "0"}, {"fixed": "1.22"}))
    scanned = run({"requirements.txt": "numpy>=1.0\nother>=1.0\n"}, vulnerabilities=path)
    assert scanned.ids == {"unpinned:numpy@requirements.txt"}
    assert "scan.vulnerabilities" in scanned.failed()


def test_requirement_that_cannot_be_read_never_passes(run: Run) -> None:
    scanned = run({"requirements.txt": "-r more.txt\n"})
    assert scanned.failed() == {"scan.unscannable"}


def test_old_database_is_no_answer(run: Run, database: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = database(
        advisory("x", {"introduced": "0"}),
        advisory("y", {"introduced": "0"}, modified="2025-01-01T00:00:00Z"),
    )
    scanned = run({"requirements.txt": "numpy==2.0\n"}, vulnerabilities=path)
    newest = 1767323045.0  # 2026-01-02T03:04:05Z
    assert scanned.report.metrics["scan.database_modified"] == newest
    assert scanned.report.details["database"] == {"records": 2, "newest": "2026-01-02T03:04:05+00:00"}
    monkeypatch.setattr("time.time", lambda: newest + 10 * 86400)
    assert scanned.judge()["scan.database"].message == "age of the database 10.0 days <= 90.0 days"
    assert scanned.judge(max_database_age="9d")["scan.database"].outcome is Outcome.FAIL


def test_without_a_database_the_gate_says_so(run: Run) -> None:
    scanned = run({"requirements.txt": "numpy==2.0\n"})
    assert scanned.judge()["scan.database"].outcome is Outcome.PASS
    assert scanned.judge()["scan.database"].message == (
        "no database was given (`vulnerabilities`), so nothing is known of what is required"
    )
    assert scanned.judge()["scan.vulnerabilities"].message == "not looked for; scan.database says why"
    assert scanned.judge(require_vulnerabilities=True)["scan.database"].outcome is Outcome.INCONCLUSIVE
    assert run({"a.txt": "x"}).judge()["scan.database"].message == (
        "there is no requirements.txt, so no known vulnerability was looked for"
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"nothing", "is no database of OSV records: JSONDecodeError: "),
        (b"[]", "has no record about PyPI; take that of PyPI from https://osv.dev"),
        (
            b'[{"id": "x"}]',
            "is no database of OSV records: KeyError: 'modified'; take one from https://osv.dev",
        ),
        (b'["x"]', "is no database of OSV records: TypeError: "),
        (b'[{"modified": "yesterday"}]', "is no database of OSV records: ValueError: "),
    ],
)
def test_what_is_no_database_is_refused(run: Run, tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "osv.json"
    path.write_bytes(content)
    with pytest.raises(StageError) as caught:
        run({"requirements.txt": "numpy==2.0\n"}, vulnerabilities=str(path))
    assert str(caught.value).startswith(f"{path} {message}")


# -- waivers and failing closed --------------------------------------------------------------------------------


def test_waived_finding_passes_and_is_shown(run: Run) -> None:
    scanned = run({"a.pkl": call("mine", "Net"), "b.pkl": call("mine", "Net")})
    one = Waiver(finding="pickle-global:mine.Net@a.pkl", reason="our own class", by="Ada")
    verdict = scanned.judge(allow_pickles=True, ignore=(one,))["scan.pickles"]
    assert verdict.outcome is Outcome.FAIL
    assert verdict.message.startswith("1 finding: pickle-global:mine.Net@b.pkl")
    every = Waiver(finding="pickle-global:mine.Net", reason="our own class", by="Ada")
    verdict = scanned.judge(allow_pickles=True, ignore=(every,))["scan.pickles"]
    assert verdict.outcome is Outcome.PASS
    assert verdict.message == (
        "pickle-global:mine.Net@a.pkl is waived by Ada: our own class; "
        "pickle-global:mine.Net@b.pkl is waived by Ada: our own class; 2 within the bounds"
    )


def test_waiver_of_a_whole_rule_is_no_waiver_of_its_details(run: Run) -> None:
    waiver = Waiver(finding="pickle-global", reason="all", by="Eve")
    assert "scan.pickles" in run({"a.pkl": EVIL}).failed(allow_pickles=True, ignore=(waiver,))


def test_unscannable_file_passes_only_by_a_waiver(run: Run) -> None:
    scanned = run({"a.7z": ARCHIVES["7z"]})
    assert scanned.failed(max_severity="critical") == {"scan.unscannable"}
    waiver = Waiver(finding="unscannable@a.7z", reason="looked at by hand", by="Ada")
    assert scanned.failed(ignore=(waiver,)) == set()


def test_scanner_that_crashes_is_a_finding(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: Any, **__: Any) -> bool:
        raise RecursionError("too deep")

    monkeypatch.setattr(_scan_files, "look_for_pickles", crash)
    scanned = run({"a.txt": "x"})
    assert [row["message"] for row in scanned.rows] == ["cannot be scanned: RecursionError: too deep"]
    assert scanned.failed() == {"scan.unscannable"}


def test_picklescan_that_crashes_is_a_finding(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: Any, **__: Any) -> None:
        raise ValueError("stumbled")

    monkeypatch.setattr("picklescan.scanner.scan_pickle_bytes", crash)
    assert run({"a.pkl": GOOD_PICKLE}).failed(allow_pickles=True) == {"scan.unscannable"}


def test_file_that_cannot_be_read_is_a_finding(tmp_path: Path, context: Any) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "gone").write_text("x")
    subject = subject_at(tmp_path / "a", TorchModel)
    (tmp_path / "a" / "gone").unlink()
    rows = Scan(Options()).run(Inputs(subject=subject), context()).report.details["findings"]
    assert [row["id"] for row in rows] == ["unscannable@gone"]


def test_empty_subject_is_an_error(run: Run) -> None:
    verdict = run({}).judge()["scan.files"]
    assert verdict.outcome is Outcome.ERROR
    assert verdict.message == "there was no file, so nothing was scanned"


def test_report_without_its_rows_is_an_error(run: Run) -> None:
    scanned = run({"a.pkl": EVIL})
    scanned.report.details["findings"].clear()
    outcomes = {gate: verdict.outcome for gate, verdict in scanned.judge().items()}
    assert outcomes.pop("scan.files") is Outcome.PASS
    assert set(outcomes.values()) == {Outcome.ERROR}


def test_names_from_hostile_files_are_made_printable(run: Run) -> None:
    rows = run({"a.zip": zipped({"x\x1b[31m\n.pkl": EVIL})}).rows
    assert all(text.isprintable() for row in rows for text in row.values())
    assert "a.zip!x\\x1b[31m\\x0a.pkl" in {row["file"] for row in rows}


def test_findings_are_bounded_and_the_rest_does_not_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_scan_findings, "MOST", 3)
    found = Findings()
    for number in range(10):
        found.add("script", "low", f"{number}", "is a script")
    assert next(row["id"] for row in found.rows()) == "unscannable@"
    assert len(found.rows()) == 4
