"""The folder of a package while it is filled: every file once, with its digest, laid out as package.json will say."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from shipctl.errors import StageError
from shipctl.evidence.package import PackagedArtifact
from shipctl.stages.artifacts import Artifact, FileEntry
from shipctl.store.files import hash_file, place_file


class Contents:
    """Files below one folder."""

    def __init__(self, root: Path) -> None:
        root.mkdir(parents=True)
        self.root = root
        self._entries: dict[str, FileEntry] = {}

    def __contains__(self, path: str) -> bool:
        return path in self._entries

    @property
    def files(self) -> tuple[FileEntry, ...]:
        """All files, folder by folder, as artifacts list them."""
        return tuple(
            self._entries[path] for path in sorted(self._entries, key=lambda item: PurePosixPath(item).parts)
        )

    def digests(self) -> dict[str, str]:
        """Return path to SHA-256 (hex)."""
        return {entry.path: entry.sha256 for entry in self.files}

    def put_artifact(self, role: str, folder: str, artifact: Artifact) -> PackagedArtifact:
        """Add all files of an artifact, whose digests are known, and return what package.json says of it."""
        for entry in artifact.files:
            path = f"{folder}/{entry.path}"
            place_file(file_of(artifact, entry), self._free(path))
            self._entries[path] = entry.model_copy(update={"path": path})
        return PackagedArtifact(role=role, path=folder, digest=artifact.digest, manifest=artifact.manifest())

    def put_file(self, path: str, source: Path) -> None:
        """Add a copy of a file of the project.

        :raises StageError: if it cannot be read
        """
        target = self._free(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copyfile(source, target)
        except OSError as exc:
            message = f"{source} cannot be read: {exc.strerror}; correct the path or the file"
            raise StageError(message) from exc
        digest, size, _ = hash_file(target)
        self._entries[path] = FileEntry(path=path, sha256=digest, size=size)

    def put(self, path: str, content: str | bytes) -> None:
        """Add a file with this content; text is UTF-8."""
        body = content.encode() if isinstance(content, str) else content
        target = self._free(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(body)
        self._entries[path] = FileEntry(path=path, sha256=hashlib.sha256(body).hexdigest(), size=len(body))

    def put_json(self, path: str, value: Any) -> None:
        """Add a JSON file; equal values give equal bytes."""
        self.put(path, as_json(value))

    def _free(self, path: str) -> Path:
        if path in self._entries:
            message = f"{path} would be in the package twice; give the files different names"
            raise StageError(message)
        return self.root / path


def as_json(value: Mapping[str, Any] | list[Any]) -> str:
    """Return JSON for people and machines: sorted keys, a line per entry, no NaN."""
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def file_of(artifact: Artifact, entry: FileEntry) -> Path:
    """Return where one file of an artifact lies."""
    return artifact.root if artifact.root.is_file() else artifact.root / entry.path
