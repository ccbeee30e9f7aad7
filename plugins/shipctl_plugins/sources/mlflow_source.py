"""Models from an MLflow server: `mlflow:/NAME/3`, `mlflow:/NAME/latest`, `mlflow:/NAME@ALIAS`.

The server is the one of MLFLOW_TRACKING_URI. A version that `mlflow-register` made is taken from our store, where its
files have digests. Of any other one only an ONNX graph is taken: the other flavours are pickles or Python code.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import ClassVar
from urllib.parse import quote, unquote

from shipctl.engine.project import Project
from shipctl.errors import SpecError, StoreError
from shipctl.evidence.package import MANIFEST, PackageManifest
from shipctl.records import digest_of
from shipctl.spec.models import StoreSpec
from shipctl.stages.artifacts import FileEntry, OnnxModel
from shipctl.store.depot import Depot, open_depot
from shipctl.store.local import LocalStore
from shipctl.store.objects import Moved, unheard
from shipctl.store.sources import MODEL_FILE, ModelSource, Resolved
from shipctl_plugins._mlflow.client import NAME, MlflowServer, StoredFile, Version
from shipctl_plugins._mlflow.entry import DIGEST, REFERENCE, STORE
from shipctl_plugins._mlflow.flavours import (
    MLMODEL,
    MLMODEL_LIMIT,
    graph_of_files,
    graph_of_flavours,
    is_below,
    read_mlmodel,
)
from shipctl_plugins._mlflow.login import Login, tracking_uri

_URI = re.compile(
    r"mlflow:/(?P<name>[^/@]+)(?:/(?P<version>[1-9]\d*|latest)|@(?P<alias>[\w-]+))", re.IGNORECASE
)


@dataclass(frozen=True)
class _Logged:
    """A version whose artifacts MLflow has."""

    version: Version
    files: tuple[StoredFile, ...]
    graph: str
    """Path of the .onnx file."""

    @property
    def uri(self) -> str:
        return f"models:/{self.version.name}/{self.version.version}"


class MlflowSource(ModelSource):
    """Take the ONNX model of a version that is registered with an MLflow server."""

    api_version: ClassVar[int] = 1

    def resolve(self, uri: str, *, base: Path, store: StoreSpec | None) -> Resolved:
        """Ask the server which version that is now, and of which files it consists."""
        server = _server()
        version = _find(server, uri)
        if DIGEST in version.tags:
            return _ours(server, version, uri, base, store)
        logged = _logged(server, version)
        return Resolved(
            uri=uri, pinned=_pinned(version), identity=_identity(server, logged), size=_size(logged)
        )

    def fetch(
        self,
        resolved: Resolved,
        folder: Path,
        *,
        base: Path,
        store: StoreSpec | None,
        moved: Moved = unheard,
    ) -> None:
        """Download the graph and the external data that it names, from our store or from MLflow's."""
        digest = resolved.identity.get("package")
        if digest is not None:
            with _depot(base, store) as depot:
                _take_out(depot, _model_in(depot, digest, resolved.uri), folder, moved)
            return
        server = _server()
        logged = _logged(server, _find(server, resolved.pinned))
        if _identity(server, logged) != resolved.identity:
            message = (
                f"{resolved.pinned} in MLflow at {server.shown} is not what it was when the plan was made; plan "
                "again"
            )
            raise StoreError(message)
        _download(server, logged, folder, moved)


# -- which version ---------------------------------------------------------------------------------------------


def _server() -> MlflowServer:
    return MlflowServer(Login(uri=tracking_uri(None)))


def _find(server: MlflowServer, uri: str) -> Version:
    """Return the version that a URI names at this moment.

    :raises SpecError: if it names none
    """
    match = _URI.fullmatch(uri)
    if match is None:
        message = (
            f"cannot read {uri!r}; write mlflow:/NAME/VERSION, mlflow:/NAME/latest or mlflow:/NAME@ALIAS"
        )
        raise SpecError(message)
    name, number, alias = unquote(match["name"]), match["version"], match["alias"]
    if not NAME.fullmatch(name):
        message = f"cannot read {uri!r}: {name!r} is no name of a registered model"
        raise SpecError(message)
    server.ping()
    model = server.model(name)
    if model is None:
        message = f"{uri}: there is no registered model {name!r} in MLflow at {server.shown}"
        raise SpecError(message)
    found: Version | None
    if alias is not None:
        if alias not in model.aliases:
            known = ", ".join(sorted(model.aliases)) or "none"
            message = f"{uri}: {name} has no alias {alias!r} in MLflow at {server.shown}; it has {known}"
            raise SpecError(message)
        found = server.version(name, model.aliases[alias])
    elif number.lower() == "latest":
        found = next(reversed(server.versions(name)), None)
    else:
        found = server.version(name, int(number))
    if found is None:
        have = ", ".join(str(item.version) for item in server.versions(name)) or "none"
        message = f"{uri}: {name} has no such version in MLflow at {server.shown}; it has {have}"
        raise SpecError(message)
    return found


def _pinned(version: Version) -> str:
    return f"mlflow:/{quote(version.name, safe=' ')}/{version.version}"


# -- what MLflow has -------------------------------------------------------------------------------------------


def _logged(server: MlflowServer, version: Version) -> _Logged:
    """Return what a version consists of.

    :raises SpecError: if there is no ONNX graph that can be taken
    """
    shown = _pinned(version)
    uri = f"models:/{version.name}/{version.version}"
    files = tuple(server.files(uri))
    paths = [item.path for item in files]
    described = next((item for item in files if item.path == MLMODEL), None)
    if described is None:
        return _Logged(version, files, graph_of_files(paths, shown))
    if (described.size or 0) > MLMODEL_LIMIT:
        message = f"the MLmodel file of {shown} has {described.size} bytes, more than {MLMODEL_LIMIT}"
        raise SpecError(message)
    with tempfile.TemporaryDirectory(prefix="shipctl-mlflow-") as folder:
        text = server.download(uri, MLMODEL, Path(folder)).read_text(encoding="utf-8", errors="replace")
    return _Logged(version, files, graph_of_flavours(read_mlmodel(text, shown), paths, shown))


def _identity(server: MlflowServer, logged: _Logged) -> dict[str, str]:
    """Return what tells this version from any other. MLflow knows no digests, so time and sizes have to do."""
    version = logged.version
    return {
        "server": server.shown,
        "name": version.name,
        "version": str(version.version),
        "run": version.run_id,
        "source": version.source,
        "created": f"{version.created:.3f}",
        "graph": logged.graph,
        "files": digest_of([[item.path, item.size] for item in logged.files]),
    }


def _size(logged: _Logged) -> int | None:
    """Return the bytes to download, None where external data may lie beside the graph: only the graph says which."""
    beside = [
        item
        for item in logged.files
        if PurePosixPath(item.path).suffix not in {".txt", ".yaml", ".json", ".md"}
    ]
    alone = all(item.path in {logged.graph, MLMODEL} for item in beside)
    return next((item.size for item in logged.files if item.path == logged.graph), None) if alone else None


def _download(server: MlflowServer, logged: _Logged, folder: Path, moved: Moved) -> None:
    sizes = {item.path: item.size for item in logged.files}
    shown = _pinned(logged.version)
    with tempfile.TemporaryDirectory(prefix=".mlflow-", dir=folder.parent) as unfinished:

        def get(path: str, target: Path) -> None:
            place = server.download(logged.uri, path, Path(unfinished))
            size = place.stat().st_size
            if sizes[path] is not None and size != sizes[path]:
                message = (
                    f"{path} of {shown} has {size} bytes, and the server speaks of {sizes[path]}; run again"
                )
                raise StoreError(message)
            target.parent.mkdir(parents=True, exist_ok=True)
            place.replace(target)
            moved(size)

        graph = folder / MODEL_FILE
        get(logged.graph, graph)
        for name in server.call("external_data", path=str(graph.absolute()), bounded=False):
            path = (PurePosixPath(logged.graph).parent / name).as_posix()
            if not is_below(name) or path not in sizes or name == MODEL_FILE:
                message = (
                    f"the graph of {shown} keeps weights in {name!r}, which is not among the files of that "
                    "version"
                )
                raise StoreError(message)
            get(path, folder / name)


# -- what our store has ----------------------------------------------------------------------------------------


def _depot(base: Path, store: StoreSpec | None) -> Depot:
    return open_depot(store, base, LocalStore(Project.here(base).store))


def _ours(server: MlflowServer, version: Version, uri: str, base: Path, store: StoreSpec | None) -> Resolved:
    """Resolve a version that `mlflow-register` made."""
    digest, reference = version.tags[DIGEST], version.tags.get(REFERENCE, "")
    with _depot(base, store) as depot:
        if depot.manifest(digest) is None:
            message = (
                f"{uri} is the package {reference} in the store {version.tags.get(STORE)}, and the store of this spec "
                f"({depot.objects.uri}) does not have it; set `store` to that one"
            )
            raise SpecError(message)
        files = _model_in(depot, digest, uri)
    identity = {
        "server": server.shown,
        "name": version.name,
        "version": str(version.version),
        "package": digest,
        "reference": reference,
    }
    return Resolved(
        uri=uri,
        pinned=_pinned(version),
        identity=identity,
        size=sum(entry.size for entry in files),
        files=files,
    )


def _model_in(depot: Depot, digest: str, uri: str) -> tuple[FileEntry, ...]:
    """Return the files of the ONNX model in a published package.

    :raises StoreError: if the package is not there any more
    :raises SpecError: if its model is no ONNX model
    """
    manifest = depot.manifest(digest)
    if manifest is None:
        message = f"{uri}: the package {digest[:12]} is not in {depot.objects.uri} any more; publish it again"
        raise StoreError(message)
    entries = {item["path"]: FileEntry.model_validate(item) for item in manifest["files"]}
    depot.fetch([entries[MANIFEST]])
    content = depot.local.verify(entries[MANIFEST]).read_bytes()
    model = PackageManifest.model_validate_json(content).artifact("model")
    if model is None or model.manifest.get("kind") != OnnxModel.kind:
        kind = model.manifest.get("kind") if model is not None else "no model"
        message = (
            f"{uri}: the package {digest[:12]} holds {kind}, and only an ONNX model can be taken from it"
        )
        raise SpecError(message)
    return OnnxModel.model_validate(
        {key: value for key, value in model.manifest.items() if key != "kind"}
    ).files


def _take_out(depot: Depot, files: tuple[FileEntry, ...], folder: Path, moved: Moved) -> None:
    """Copy a package's model; its graph is called `model.onnx` there already, or is the only file."""
    depot.fetch(files, moved=moved)
    for entry in files:
        target = folder / (MODEL_FILE if len(files) == 1 else entry.path)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(depot.local.verify(entry), target)
