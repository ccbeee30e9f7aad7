"""A package as one thing to hand on: a tar file, or an OCI image layout that container registries take.

The same package gives the same bytes: entries are sorted, and owner, mode and time of files are left out. In an
OCI layout each top-level part of the package (`model`, `repository`, `evidence`, …) is a layer of its own, so that a
second version with the same weights sends only what differs. The configuration is that of an ordinary image, which
lets every tool copy it and Kubernetes mount it.

Specifications: https://github.com/opencontainers/image-spec (image-layout.md, manifest.md, config.md), POSIX pax.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import stat
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol

from shipctl.errors import GateError, StoreError
from shipctl.evidence.extraction import Extraction, Verified
from shipctl.evidence.package import MANIFEST
from shipctl.records import canonical_json
from shipctl.store.files import temporary_in

Buffer = bytes | bytearray | memoryview
Compression = Literal["none", "gzip"]
ARTIFACT_TYPE = "application/vnd.shipctl.model.package.v1"
_MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
_CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
_LAYER_TYPES: dict[str, Compression] = {
    "application/vnd.oci.image.layer.v1.tar": "none",
    "application/vnd.oci.image.layer.v1.tar+gzip": "gzip",
}
_TYPE_OF = {compression: kind for kind, compression in _LAYER_TYPES.items()}
_REST = ""
"""Stands for the files beside the folders, which share a layer."""
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_MAX_DOCUMENT = 4 << 20
_GZIP = b"\x1f\x8b"
_LEVEL = 6
_CHUNK = 1 << 20


class Writable(Protocol):
    """What a tar file is written to."""

    def write(self, data: Buffer, /) -> int:
        """Take all of ``data`` and return its length in bytes."""
        ...


# -- writing -----------------------------------------------------------------------------------------------------


def write_tar(folder: Path, target: Path, *, compression: Compression = "none") -> None:
    """Write all files of ``folder`` as the tar file ``target``, replacing it at once when it is whole.

    :raises StoreError: if the folder holds anything but plain files and folders, or cannot be read
    """
    files = _files(folder)
    with temporary_in(target.parent) as twin:
        with twin.open("wb") as stream:
            if compression == "none":
                _write_tar(folder, files, stream)
            else:
                with _compressed(stream) as packed:
                    _write_tar(folder, files, packed)
        twin.replace(target)


def write_oci(
    folder: Path,
    target: Path,
    *,
    name: str,
    version: str,
    licenses: str | None = None,
    description: str | None = None,
    vendor: str | None = None,
    compression: Compression = "none",
) -> None:
    """Write the package in ``folder`` as an OCI image layout with one image, whose tag is the version.

    A `+` in the version is a `_` in the tag, since tags have none; the annotation keeps it.

    :raises StoreError: if ``target`` is not empty, or the folder holds anything but plain files and folders
    """
    if target.exists() and any(target.iterdir()):
        message = f"{target} is not empty; name a folder that does not exist yet"
        raise StoreError(message)
    blobs = target / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    about = {
        "title": name,
        "version": version,
        "licenses": licenses,
        "description": description,
        "vendor": vendor,
    }
    annotations = {f"org.opencontainers.image.{key}": value for key, value in about.items() if value}
    parts: dict[str, list[str]] = {}
    for path in _files(folder):
        head, slash, _ = path.partition("/")
        parts.setdefault(head if slash else _REST, []).append(path)
    layers, contents = [], []
    for part, files in sorted(parts.items()):
        layer, content = _layer(folder, files, blobs, compression)
        layers.append({**layer, "annotations": {"org.opencontainers.image.title": part or "package"}})
        contents.append(content)
    config = {
        # nothing in it runs, but tools refuse an image that is for no platform
        "architecture": "amd64", "os": "linux",
        "config": {"Labels": annotations},
        "rootfs": {"type": "layers", "diff_ids": contents},
    }  # fmt: skip
    manifest = {
        "schemaVersion": 2, "mediaType": _MANIFEST_TYPE, "artifactType": ARTIFACT_TYPE,
        "config": _document(config, _CONFIG_TYPE, blobs), "layers": layers, "annotations": annotations,
    }  # fmt: skip
    entry = {
        **_document(manifest, _MANIFEST_TYPE, blobs), "artifactType": ARTIFACT_TYPE,
        "annotations": {"org.opencontainers.image.ref.name": version.replace("+", "_")},
    }  # fmt: skip
    (target / "oci-layout").write_bytes(canonical_json({"imageLayoutVersion": "1.0.0"}))
    (target / "index.json").write_bytes(canonical_json({"schemaVersion": 2, "manifests": [entry]}))


def _files(folder: Path) -> list[str]:
    """Return the paths of all files below ``folder``, sorted as text."""
    found = []
    for path in folder.rglob("*"):
        mode = path.lstat().st_mode
        if stat.S_ISREG(mode):
            found.append(path.relative_to(folder).as_posix())
        elif not stat.S_ISDIR(mode):
            message = f"{path} is neither a file nor a folder; a package has nothing else, so copy what it points to"
            raise StoreError(message)
    if not found:
        message = f"{folder} has no files, so there is nothing to archive"
        raise StoreError(message)
    return sorted(found)


def _write_tar(folder: Path, files: Sequence[str], stream: Writable) -> None:
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT, copybufsize=_CHUNK) as tar:  # type: ignore[call-overload]  # it only writes
        for name in files:
            path = folder / name
            info = tarfile.TarInfo(name)
            info.size, info.mode, info.mtime = path.stat().st_size, 0o644, 0
            try:
                with path.open("rb") as source:
                    tar.addfile(info, source)
            except OSError as exc:
                message = f"{path} cannot be archived: {exc}"
                raise StoreError(message) from exc


def _compressed(stream: Any) -> gzip.GzipFile:
    """Return a stream to write to whose bytes go to ``stream`` by gzip, the same each time."""
    return gzip.GzipFile(filename="", mode="wb", compresslevel=_LEVEL, fileobj=stream, mtime=0)


class _Hashing:
    """A stream that remembers the digest and size of what was written to it."""

    def __init__(self, stream: Writable) -> None:
        self._stream = stream
        self._digest = hashlib.sha256()
        self.size = 0

    def write(self, data: Buffer, /) -> int:
        count = len(memoryview(data))
        self._digest.update(data)
        self.size += count
        self._stream.write(data)
        return count

    def tell(self) -> int:
        return self.size

    @property
    def digest(self) -> str:
        return f"sha256:{self._digest.hexdigest()}"


def _layer(
    folder: Path, files: Sequence[str], blobs: Path, compression: Compression
) -> tuple[dict[str, Any], str]:
    """Write a layer; return its descriptor and the digest of its content before compression."""
    with temporary_in(blobs) as twin:
        with twin.open("wb") as file:
            blob = content = _Hashing(file)
            if compression == "none":
                _write_tar(folder, files, blob)
            else:
                with _compressed(blob) as packed:
                    content = _Hashing(packed)
                    _write_tar(folder, files, content)
        twin.replace(blobs / blob.digest.removeprefix("sha256:"))
    return {"mediaType": _TYPE_OF[compression], "digest": blob.digest, "size": blob.size}, content.digest


def _document(value: Mapping[str, Any], kind: str, blobs: Path) -> dict[str, Any]:
    """Write a JSON blob and return its descriptor."""
    body = canonical_json(value)
    digest = hashlib.sha256(body).hexdigest()
    (blobs / digest).write_bytes(body)
    return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(body)}


# -- reading -----------------------------------------------------------------------------------------------------


@contextmanager
def opened(path: Path) -> Iterator[Path]:
    """Yield the folder of a package that is a folder, a tar (plain or gzip), or an OCI image layout (also in a tar).

    An archive is unpacked to a temporary folder, which is removed afterwards. Only its own digests are checked;
    whether the package is what it should be, :mod:`shipctl.evidence.verify` says.

    :raises StoreError: if there is nothing to read, or it cannot be read
    :raises GateError: if the archive holds what no package holds, or a blob is not what its digest says
    """
    if path.is_dir() and not _is_layout(path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="shipctl-package-") as scratch:
        target = Path(scratch) / "package"
        target.mkdir()
        if path.is_dir():
            _open_layout(path, target, path)
        else:
            _open_tar(path, target)
            if _is_layout(target):
                inner = Path(scratch) / "layout"
                target.rename(inner)
                target.mkdir()
                _open_layout(inner, target, path)
        yield _package_in(target)


def _is_layout(folder: Path) -> bool:
    return (
        (folder / "oci-layout").is_file()
        and (folder / "index.json").is_file()
        and not (folder / MANIFEST).is_file()
    )


def _package_in(folder: Path) -> Path:
    """Return the folder itself, or the only one in it where the tar was made of the folder and not of its content."""
    inside = list(folder.iterdir())
    if len(inside) == 1 and (inside[0] / MANIFEST).is_file():
        return inside[0]
    return folder


def _open_tar(path: Path, target: Path) -> None:
    try:
        if not path.is_file():
            what = "is no file" if path.exists() else "does not exist"
            message = f"{path} {what}; give a package's folder, its tar file, or an OCI image layout"
            raise StoreError(message)
        with path.open("rb") as file:
            start = file.read(len(_GZIP))
            file.seek(0)
            size = os.fstat(file.fileno()).st_size
            Extraction(target, path, size).take_tar(file, compressed=start == _GZIP)
    except OSError as exc:
        message = f"{path} cannot be read: {exc}"
        raise StoreError(message) from exc


def _open_layout(layout: Path, target: Path, path: Path) -> None:
    """Unpack the only image of an OCI layout; ``path`` is what the user named."""
    with (layout / "index.json").open("rb") as file:
        index = _json(file.read(_MAX_DOCUMENT + 1), path)
    images = index.get("manifests")
    if not isinstance(images, list) or len(images) != 1:
        count = len(images) if isinstance(images, list) else "no list of"
        message = f"{path} holds {count} images; copy the one you mean out of it with `skopeo copy`"
        raise StoreError(message)
    _expect(images[0], {_MANIFEST_TYPE}, path)
    body = _blob_bytes(layout, images[0], path)
    manifest = _json(body, path)
    layers = manifest.get("layers")
    if not isinstance(layers, list) or not layers:
        message = f"{path} holds an image without layers"
        raise StoreError(message)
    for layer in layers:
        _expect(layer, set(_LAYER_TYPES), path)
    packed = sum(_blob_path(layout, layer, path).stat().st_size for layer in layers)
    extraction = Extraction(target, path, packed)
    for layer in layers:
        with _blob(layout, layer, path) as verified:
            try:
                extraction.take_tar(verified, compressed=_LAYER_TYPES[layer["mediaType"]] == "gzip")
            except StoreError:
                verified.finish()  # damage is a better reason than what it looks like to a reader of tars
                raise
            verified.finish()


def _expect(descriptor: Any, kinds: set[str], path: Path) -> None:
    kind = descriptor.get("mediaType") if isinstance(descriptor, dict) else None
    if kind not in kinds:
        message = f"{path} holds a {kind!r} where {' or '.join(sorted(kinds))} is expected"
        raise StoreError(message)


def _descriptor(descriptor: Mapping[str, Any], path: Path) -> tuple[str, int]:
    """Return SHA-256 (hex) and size in bytes."""
    found = _DIGEST.fullmatch(str(descriptor.get("digest")))
    size = descriptor.get("size")
    if found is None or not isinstance(size, int) or isinstance(size, bool) or size < 0:
        message = f"{path} is no OCI image layout: {json.dumps(descriptor)[:200]} is no descriptor by SHA-256"
        raise StoreError(message)
    return found[1], size


@contextmanager
def _blob(layout: Path, descriptor: Mapping[str, Any], path: Path) -> Iterator[Verified]:
    sha256, size = _descriptor(descriptor, path)
    with _blob_path(layout, descriptor, path).open("rb") as file:
        yield Verified(file, name=f"{path}: blob sha256:{sha256}", sha256=sha256, size=size)


def _blob_path(layout: Path, descriptor: Mapping[str, Any], path: Path) -> Path:
    """Return the file of a blob, which need not have the size that the descriptor says."""
    sha256, _ = _descriptor(descriptor, path)
    place = layout / "blobs" / "sha256" / sha256
    try:
        mode = place.lstat().st_mode
    except FileNotFoundError:
        message = f"{path} is not whole: blob sha256:{sha256} is missing; get it again"
        raise StoreError(message) from None
    if not stat.S_ISREG(mode):
        message = f"{path} is refused: blob sha256:{sha256} is no plain file"
        raise GateError(message)
    return place


def _blob_bytes(layout: Path, descriptor: Mapping[str, Any], path: Path) -> bytes:
    with _blob(layout, descriptor, path) as verified:
        body = verified.read(_MAX_DOCUMENT)
        verified.finish()
    return body


def _json(body: bytes, path: Path) -> dict[str, Any]:
    try:
        value = json.loads(body) if len(body) <= _MAX_DOCUMENT else None
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        message = f"{path} is no OCI image layout: a document in it is not a JSON object"
        raise StoreError(message)
    return value
