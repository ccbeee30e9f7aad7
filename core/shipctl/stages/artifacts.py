"""Artifacts: the immutable, content-addressed things that stages hand to each other.

An artifact is a frozen record: a kind, the files it consists of, and what the next stage must know about
them. Two artifacts with equal content have equal digests wherever they were made: neither paths nor times
are part of it. A stage makes one with :meth:`Artifact.at`; the engine then reads the files, stores them by
digest, and hands the next stage a copy whose :attr:`Artifact.root` is a read-only view of the same files.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, PrivateAttr

from shipctl.records import Record, digest_of
from shipctl.signature import Signature
from shipctl.spec.models import DataReading

_LONGEST = 1024
"""Bytes of a path in an artifact."""


def _inside(path: str) -> str:
    """Return a path that stays in the artifact, whoever wrote the manifest that it stands in."""
    parts = path.split("/")
    if (
        not path
        or "\0" in path
        or len(path.encode()) > _LONGEST
        or any(part in {"", ".", ".."} for part in parts)
    ):
        message = f"{path[:80]!r} is no path of a file in an artifact"
        raise ValueError(message)
    return path


class FileEntry(Record):
    """One file of an artifact."""

    path: Annotated[str, AfterValidator(_inside)] = Field(
        description="Where the file stands in the artifact, with forward slashes."
    )
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="SHA-256 of the bytes, hexadecimal.")
    size: int = Field(ge=0, description="Length in bytes.")


def _apart(files: tuple[FileEntry, ...]) -> tuple[FileEntry, ...]:
    """Return files none of which stands where another one, or the folder of another one, does."""
    paths = {entry.path for entry in files}
    if len(paths) != len(files):
        raise ValueError("two files have the same path")
    for path in paths:
        folder = path.rpartition("/")[0]
        while folder:
            if folder in paths:
                message = f"{folder[:80]!r} is a file and a folder"
                raise ValueError(message)
            folder = folder.rpartition("/")[0]
    return files


class Artifact(Record):
    """Base of all artifacts. A plugin may derive kinds of its own; ``kind`` names them in manifests."""

    kind: ClassVar[str] = "artifact"

    files: Annotated[tuple[FileEntry, ...], AfterValidator(_apart)] = Field(
        default=(), description="The files, in order of their paths."
    )

    _root: Path | None = PrivateAttr(default=None)

    @classmethod
    def at(cls, root: Path, **fields: Any) -> Self:
        """Return an artifact of what lies at ``root``: one file, or a folder with everything below it.

        ``root`` has to be in the stage's work directory when ``run`` returns; the engine fills ``files``.
        """
        return cls(**fields).located(root)

    def located(self, root: Path) -> Self:
        """Return the same artifact, whose files lie at ``root``."""
        twin = self.model_copy()
        twin._root = root  # noqa: SLF001  (our own private attribute, on a copy)
        return twin

    @property
    def root(self) -> Path:
        """Where the files are on this machine: the file itself for one made of a file, else the folder.

        :raises RuntimeError: if the artifact was not handed to a stage (a bug of the caller)
        """
        if self._root is None:
            message = f"this {self.kind} has no files on this machine"
            raise RuntimeError(message)
        return self._root

    @property
    def path(self) -> Path:
        """The artifact's only file.

        :raises RuntimeError: if it has not exactly one
        """
        if self.root.is_file():
            return self.root
        if len(self.files) != 1:
            message = f"this {self.kind} has {len(self.files)} files; take them from `root`"
            raise RuntimeError(message)
        return self.root / self.files[0].path

    @property
    def digest(self) -> str:
        """SHA-256 of kind, fields and files: the artifact's identity, the same on every machine."""
        return digest_of(self.manifest())

    @property
    def size(self) -> int:
        """Bytes in all files together."""
        return sum(entry.size for entry in self.files)

    def manifest(self) -> dict[str, Any]:
        """Return the JSON form that the digest is computed from and the store keeps."""
        return {"kind": self.kind, **json.loads(self.model_dump_json())}


class SourceModel(Artifact):
    """Base of a model as its framework has it, before there is a graph of it."""

    signature: Signature = Field(description="The inputs and outputs that the spec promises.")
    trusted: bool = Field(
        default=False,
        description="Whether the spec says `trust_pickle: true`: a pickle can run any code when it is opened.",
    )


class TorchModel(SourceModel):
    """A PyTorch model: a builder function with its weights, or a file that holds both.

    ``builder`` is a Python function that returns the torch.nn.Module. The others are one file: ``exported-program``
    (`.pt2`, torch.export.save), ``torchscript`` (torch.jit.save) and ``pickle`` (torch.save of a module).
    """

    kind: ClassVar[str] = "torch-model"

    format: Literal["builder", "exported-program", "torchscript", "pickle"] = Field(
        default="builder", description="What the files are."
    )
    builder: str = Field(
        default="",
        description="`path/in/the/artifact.py:function`, which returns the torch.nn.Module; empty in other formats.",
    )
    weights: str | None = Field(
        default=None,
        description="The builder's weights in the artifact: a safetensors file or a state dict (.pt, .pth).",
    )
    modules: str = Field(
        default="",
        description="Digest of the user's own installed packages that the builder imports besides.",
    )


class TensorflowModel(SourceModel):
    """A TensorFlow model: the folder of a SavedModel, or a Keras 3 file (`.keras`)."""

    kind: ClassVar[str] = "tensorflow-model"

    format: Literal["saved-model", "keras"] = Field(description="What the files are.")


class SklearnModel(SourceModel):
    """A scikit-learn estimator or pipeline in one file: skops' own format, or a pickle (also joblib's)."""

    kind: ClassVar[str] = "sklearn-model"

    format: Literal["skops", "pickle"] = Field(description="What the file is.")


class HuggingFaceModel(SourceModel):
    """A folder in Hugging Face's layout: `config.json`, safetensors, the tokenizer's files."""

    kind: ClassVar[str] = "hugging-face-model"


class OnnxModel(Artifact):
    """An ONNX model: `model.onnx`, with external data files beside it where there are some."""

    kind: ClassVar[str] = "onnx-model"

    signature: Signature = Field(description="Inputs and outputs of the graph.")
    opset: int | None = Field(
        default=None,
        description="Version of the default operator set; None for a model that the spec brings.",
    )
    precision: str = Field(
        default="fp32", description="What most of its arithmetic is done in: fp32, fp16, int8, …"
    )
    derived_from: str | None = Field(default=None, description="Digest of the model it was made from.")

    @property
    def path(self) -> Path:
        """The graph's file: the only one, or `model.onnx` where external data lies beside it."""
        return super().path if self.root.is_file() or len(self.files) == 1 else self.root / "model.onnx"


class Dataset(Artifact):
    """Samples with names: arrays in an .npz file, columns of a .csv file, images in folders, or a Python function."""

    kind: ClassVar[str] = "dataset"

    role: str = Field(description="Its name below `data:` in the spec: calibration, evaluation, golden, …")
    format: Literal["npz", "csv", "images", "python"] = Field(
        default="npz", description="What the files are."
    )
    reading: DataReading = Field(
        default=DataReading(), description="What the spec says about how they are read."
    )
    function: str = Field(
        default="", description="`path/in/the/artifact.py:function`, which returns or yields the samples."
    )


class Report(Artifact):
    """What a stage measured about a subject. Bounds are not in it: verdicts are made from it anew each time."""

    kind: ClassVar[str] = "report"

    subject: str = Field(description="Digest of the artifact that was measured.")
    title: str = Field(description="What was measured, for a heading.")
    metrics: dict[str, float] = Field(
        default_factory=dict,
        description="Named numbers in base units (seconds, bytes, fractions, per second), such as latency.p95.",
    )
    details: dict[str, Any] = Field(
        default_factory=dict, description="JSON for the report page: tables and series."
    )


class TensorrtEngine(Artifact):
    """A TensorRT engine (`model.plan`): built for one GPU architecture and, mostly, one version of TensorRT."""

    kind: ClassVar[str] = "tensorrt-engine"

    signature: Signature = Field(description="Inputs and outputs of the engine.")
    flavor: Literal["tensorrt", "tensorrt-rtx"] = Field(
        description="TensorRT, which Triton's tensorrt backend loads, or TensorRT for RTX, which it does not."
    )
    version: str = Field(description="Version of the TensorRT that built it, such as 10.13.3.")
    compute_capabilities: tuple[str, ...] = Field(
        description="The GPU architectures that it runs on, such as 8.9; `current` for the one that built it."
    )
    precision: str = Field(
        default="fp32", description="What most of its arithmetic is done in: fp32, fp16, int8, …"
    )
    profiles: tuple[dict[str, tuple[int, int, int]], ...] = Field(
        default=(),
        description="Optimisation profiles: smallest, tuned and largest size of each varying dimension, by name.",
    )
    derived_from: str | None = Field(default=None, description="Digest of the model it was made from.")


class TritonRepository(Artifact):
    """A Triton model repository for one model: `<model>/config.pbtxt` and `<model>/<version>/…`."""

    kind: ClassVar[str] = "triton-repository"

    model: str = Field(
        pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.+-]{0,254}$",
        description="The model's name, which is its folder's.",
    )
    signature: Signature = Field(description="Inputs and outputs, the batch dimension included.")
    max_batch_size: int = Field(ge=0, description="As in config.pbtxt; 0 means that Triton does not batch.")
    source: str = Field(description="Digest of the model inside.")


class ModelPackage(Artifact):
    """A model with its evidence, ready to be published: a folder laid out as `package.json` in it says.

    The layout is that of :mod:`shipctl.evidence.package`; `sign` adds `model.sig`.
    """

    kind: ClassVar[str] = "model-package"

    name: str = Field(description="The model's name in the registry: `metadata.name` of its spec.")
    version: str = Field(description="Its semantic version: `metadata.version` of its spec.")
    model: str = Field(description="Digest of the model inside.")
    signature: Signature = Field(description="Inputs and outputs of the model.")
    signer: str | None = Field(
        default=None, description="`sha256:` and the key's fingerprint once it is signed; None before."
    )


class PackageArchive(Artifact):
    """A package as one thing to hand on: a tar file, or the folder of an OCI image layout."""

    kind: ClassVar[str] = "package-archive"

    name: str = Field(description="The model's name.")
    version: str = Field(description="Its semantic version.")
    package: str = Field(description="Digest of the package inside.")
    format: Literal["tar", "oci"] = Field(description="Which of the two.")
