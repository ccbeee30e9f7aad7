"""What a model's or data set's path in the spec is: which artifact its files make."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from shipctl.engine.closure import script_closure
from shipctl.engine.filecache import FileCache
from shipctl.engine.onnx_files import external_files
from shipctl.records import digest_of
from shipctl.spec.models import DataSource, ModelSpec
from shipctl.stages.artifacts import (
    Artifact,
    Dataset,
    FileEntry,
    HuggingFaceModel,
    OnnxModel,
    SklearnModel,
    TensorflowModel,
    TorchModel,
)

if TYPE_CHECKING:
    from shipctl.spec import Problems

MODELS = (
    "a Python file with a builder (models/net.py:build), an .onnx, .pt2, .pt, .keras or .skops file, the folder of a "
    "SavedModel or of a Hugging Face model, registry:/NAME@VERSION, or the URI of an installed source"
)
DATA = (
    "an .npz file with named arrays, a .csv file with a header, a folder of images, or a Python function that makes "
    "samples (data/samples.py:calibration)"
)
STATE_DICTS = frozenset({".pt", ".pth", ".bin"})
IMAGES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp"})
_PICKLES = {".pkl": SklearnModel, ".pickle": SklearnModel, ".joblib": SklearnModel}
_OTHER_WEIGHTS = ("*.bin", "*.h5", "*.msgpack", "*.ot", "*.onnx", "*.pth", "*.pt", "*.ckpt*", "*.gguf")
"""Weights of a Hugging Face folder in other forms than safetensors: most are pickles, and none is needed."""


@dataclass(frozen=True)
class Found:
    """An artifact whose files are where they are."""

    artifact: Artifact
    places: Mapping[str, Path]
    """Path in the artifact to the file on this machine."""


class _RefusedError(Exception):
    """A problem was added."""


@dataclass
class Finder:
    """Makes artifacts of paths; what is wrong is added to ``problems`` under the keys of the spec."""

    root: Path
    """The folder that paths are relative to."""
    cache: FileCache
    problems: Problems
    keys: tuple[str | int, ...] = ()
    """Where in the spec the thing stands: `("model",)`."""

    def model(self, spec: ModelSpec) -> Found | None:
        """Return the model that ``spec`` names by a path; None if something is wrong with it."""
        with suppress(_RefusedError):
            return self._model(spec)
        return None

    def data(self, spec: DataSource) -> Found | None:
        """Return the samples that ``spec`` names; None if something is wrong with them."""
        with suppress(_RefusedError):
            return self._data(spec)
        return None

    # -- models ------------------------------------------------------------------------------------------------

    def _model(self, spec: ModelSpec) -> Found:
        if spec.signature is None:
            self.problems.add(
                self.keys, "the model needs `inputs` and `outputs`: name, dtype and shape of each tensor"
            )
            raise _RefusedError
        fields: dict[str, Any] = {"signature": spec.signature}
        file, _, function = spec.uri.partition(":")
        path = self.root / file
        extra = self._extra_files(spec.files)
        if function and path.suffix == ".py" and function.isidentifier():
            return self._built(spec, path, function, extra, fields)
        if spec.weights is not None:
            self._refuse("weights", f"only a builder (models/net.py:build) takes weights, not {spec.uri!r}")
        if not path.exists():
            self._refuse("uri", f"{spec.uri!r} does not exist; paths are relative to the spec's folder")
        make = self._file if path.is_file() else self._folder
        found = make(spec, path, extra, fields) if not function else None
        if found is None:
            self._refuse("uri", f"cannot ship {spec.uri!r}; write {MODELS}")
        return found

    def _file(
        self, spec: ModelSpec, path: Path, extra: Mapping[str, Path], fields: dict[str, Any]
    ) -> Found | None:
        suffix = path.suffix.lower()
        if suffix == ".onnx":
            return self._made(OnnxModel, {"model.onnx": path, **self._beside_graph(path, extra)}, fields)
        named = {path.name: path, **extra}
        fields["trusted"] = spec.trust_pickle
        if suffix == ".keras":
            return self._made(TensorflowModel, named, fields | {"format": "keras"})
        if suffix == ".skops":
            return self._made(SklearnModel, named, fields | {"format": "skops"})
        if suffix == ".pt2":
            return self._made(TorchModel, named, fields | {"format": "exported-program"})
        if suffix in {".pt", ".pth", ".ts"} and is_torchscript(path):
            return self._made(TorchModel, named, fields | {"format": "torchscript"})
        kind = TorchModel if suffix in STATE_DICTS else _PICKLES.get(suffix)
        if kind is None:
            return None
        safer = (
            "a .skops file"
            if kind is SklearnModel
            else "a .pt2 file (torch.export.save), or name its builder and give the state dict as `weights`"
        )
        self._require_trust(spec, path, f"save it as {safer}")
        return self._made(kind, named, fields | {"format": "pickle"})

    def _beside_graph(self, path: Path, extra: Mapping[str, Path]) -> dict[str, Path]:
        """Return the files with external data of a graph, and what else the spec names, by their names beside it."""
        try:
            locations = external_files(path)
        except ValueError as exc:
            self._refuse("uri", f"{path.name} cannot be read: {exc}; write or fetch it again")
        found = {_name(item, path.parent): item for item in extra.values()}
        for location in locations:
            place = path.parent / location
            if not location or Path(location).is_absolute() or ".." in Path(location).parts:
                self._refuse("uri", f"{path.name} has data in {location!r}, which is not beside it")
            if not place.is_file():
                self._refuse(
                    "uri",
                    f"{path.name} has its data in {location!r}, which is not there; put it beside {path.name}",
                )
            found[Path(location).as_posix()] = place
        return found

    def _folder(
        self, spec: ModelSpec, path: Path, extra: Mapping[str, Path], fields: dict[str, Any]
    ) -> Found | None:
        fields["trusted"] = spec.trust_pickle
        named = {item.relative_to(path).as_posix(): item for item in _visible(path)} | dict(extra)
        if "saved_model.pb" in named:
            return self._made(TensorflowModel, named, fields | {"format": "saved-model"})
        if "config.json" not in named:
            return None
        if any(item.suffix == ".safetensors" for item in named.values()):
            others = {item for pattern in _OTHER_WEIGHTS for item in path.rglob(pattern)}
            named = {name: item for name, item in named.items() if item not in others}
        else:
            self._require_trust(spec, path, "save its weights as safetensors")
        return self._made(HuggingFaceModel, named, fields)

    def _built(
        self,
        spec: ModelSpec,
        path: Path,
        function: str,
        extra: Mapping[str, Path],
        fields: dict[str, Any],
    ) -> Found:
        self._require_file(path, "uri", spec.uri.partition(":")[0])
        base, named, elsewhere = self._script(path, extra)
        weights = None
        if spec.weights is not None:
            place = self.root / spec.weights
            self._require_file(place, "weights", spec.weights)
            if place.suffix != ".safetensors" and place.suffix.lower() not in STATE_DICTS:
                self._refuse(
                    "weights", f"cannot load {spec.weights!r}; save the state dict as .safetensors (or .pt)"
                )
            weights = _name(place, base)
            named[weights] = place
        fields |= {
            "builder": f"{_name(path, base)}:{function}", "weights": weights, "trusted": spec.trust_pickle,
            "modules": digest_of(elsewhere) if elsewhere else "",
        }  # fmt: skip
        return self._made(TorchModel, named, fields)

    def _require_trust(self, spec: ModelSpec, path: Path, better: str) -> None:
        if not spec.trust_pickle:
            self._refuse(
                "uri",
                f"{path.name} is a pickle, which can run any code when it is opened; {better}, or write "
                "`trust_pickle: true` below `model:` if you trust who made it",
            )

    # -- data --------------------------------------------------------------------------------------------------

    def _data(self, spec: DataSource) -> Found:
        role = str(self.keys[-1])
        fields: dict[str, Any] = {"role": role, "reading": spec.reading}
        file, _, function = spec.uri.partition(":")
        path = self.root / file
        if role == "golden" and path.exists() and path.suffix != ".npz":
            self._refuse("uri", f"golden samples come from an .npz file, not from {spec.uri!r}")
        extra = self._extra_files(spec.files)
        if function and path.suffix == ".py" and function.isidentifier():
            self._require_file(path, "uri", file)
            base, named, _ = self._script(path, extra)
            fields |= {"format": "python", "function": f"{_name(path, base)}:{function}"}
            self._require_used(spec, "files")
            return self._made(Dataset, named, fields)
        if function and path.exists():
            self._refuse("uri", f"cannot read {spec.uri!r} as data; write {DATA}")
        if path.is_dir():
            images = {
                item.relative_to(path).as_posix(): item
                for item in _visible(path)
                if item.suffix.lower() in IMAGES
            }
            if not images:
                self._refuse("uri", f"{spec.uri!r} has no images ({', '.join(sorted(IMAGES))}); write {DATA}")
            self._require_used(spec, "image")
            return self._made(Dataset, images, fields | {"format": "images"})
        self._require_file(path, "uri", spec.uri)
        if path.suffix not in {".npz", ".csv"}:
            self._refuse("uri", f"cannot read {spec.uri!r} as data; write {DATA}")
        self._require_used(spec, "label" if path.suffix == ".csv" else "")
        return self._made(Dataset, {path.name: path}, fields | {"format": path.suffix[1:]})

    def _require_used(self, spec: DataSource, used: str) -> None:
        """Refuse what says how other kinds of data are read: it would change nothing."""
        for key, kind in {
            "files": "a Python function",
            "image": "a folder of images",
            "label": "a .csv file",
        }.items():
            if key != used and key in spec.model_fields_set:
                self._refuse(
                    key, f"{spec.uri!r} is not {kind}, for which alone there is `{key}`; leave it out"
                )

    # -- what both need ------------------------------------------------------------------------------------------

    def _script(self, path: Path, extra: Mapping[str, Path]) -> tuple[Path, dict[str, Path], dict[str, str]]:
        """Return the folder that names are relative to, the files of a script's own, and what it imports besides."""
        inside = path.resolve().is_relative_to(self.root.resolve())
        base = self.root if inside else path.parent
        own, elsewhere = script_closure(path, (path.parent, self.root), self.cache)
        return base, {_name(item, base): item for item in own} | dict(extra), elsewhere

    def _made(
        self, kind: Callable[..., Artifact], named: Mapping[str, Path], fields: dict[str, Any]
    ) -> Found:
        files, places = entries(named, self.cache)
        return Found(kind(files=files, **fields), places)

    def _extra_files(self, patterns: tuple[str, ...]) -> dict[str, Path]:
        """Return path below the root to file of what the patterns match."""
        named: dict[str, Path] = {}
        for index, pattern in enumerate(patterns):
            hits = [path for path in sorted(self.root.glob(pattern)) if path.is_file()]
            if not hits:
                self.problems.add(
                    (*self.keys, "files", index), f"{pattern!r} matches no file below {self.root}"
                )
            named.update({path.relative_to(self.root).as_posix(): path for path in hits})
        return named

    def _require_file(self, path: Path, key: str, shown: str) -> None:
        if not path.is_file():
            what = "is a folder" if path.is_dir() else "does not exist"
            self._refuse(key, f"{shown!r} {what}; paths are relative to the spec's folder")

    def _refuse(self, key: str, message: str) -> NoReturn:
        self.problems.add((*self.keys, key), message)
        raise _RefusedError


def is_torchscript(path: Path) -> bool:
    """Whether a file is what torch.jit.save writes: an archive with code in it, and not only a pickle."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile):
        return False
    return any(name.partition("/")[2] == "constants.pkl" for name in names)


def entries(named: Mapping[str, Path], cache: FileCache) -> tuple[tuple[FileEntry, ...], dict[str, Path]]:
    """Return the files of an artifact, hashed, and where they are."""
    files = [
        FileEntry(path=name, sha256=cache.digest(place), size=place.stat().st_size)
        for name, place in sorted(named.items())
    ]
    return tuple(files), dict(named)


def _visible(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts):
            yield path


def _name(path: Path, base: Path) -> str:
    try:
        return path.resolve().relative_to(base.resolve()).as_posix()
    except ValueError:
        return path.name
