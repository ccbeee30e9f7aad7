"""The local target's memory: which versions were published, which one serves, and their files.

Below the target's folder::

    target.json             the record: per model its published versions and which one is stable
    releases/<model>/<n>/   version n as it was published: the repository's files, manifest.json last
    probes/                 a recorded question and answer per version
    servers/                the servers: see :mod:`shipctl_plugins._triton.replicas`
    serving/, server/       the one server that shipctl 0.1 had for all models, and what it reads

A published version is never changed. Numbers grow and are never given twice, because Triton answers
unversioned requests from the largest number that is loaded.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import Field, ValidationError

from shipctl.errors import CorruptArtifactError, StageError, StoreError
from shipctl.records import Record
from shipctl.stages.artifacts import TritonRepository
from shipctl.store.files import hash_file, sync_file, write_atomic
from shipctl_plugins._triton.config_text import REVISION_PARAMETER, quoted

_VERSION_POLICY = re.compile(r"^\s*version_policy\b", re.MULTILINE)
_KEPT_RELEASES = 3


class Published(Record):
    """One version of a model on this target."""

    number: int = Field(ge=1, description="Triton's version number.")
    revision: str = Field(description="Digest of what was released: inputs and options.")
    digest: str = Field(description="Digest of the repository artifact.")
    version: str = Field(description="Semantic version of the release.")
    at: float = Field(description="When it was published, seconds since the epoch.")


class ModelRecord(Record):
    """What the target knows about one model."""

    pipeline: str = Field(description="The pipeline that releases it.")
    stable: int | None = Field(default=None, description="The version that serves, None for none.")
    previous: int | None = Field(
        default=None, description="The version that served before, while its replicas are kept."
    )
    since: float | None = Field(default=None, description="Since when, seconds since the epoch.")
    published: tuple[Published, ...] = Field(
        default=(), description="All versions, in order of their numbers."
    )
    behind_door: bool = Field(
        default=False,
        description="Whether replicas behind a door serve it; false for the one server of shipctl 0.1.",
    )

    def by_number(self, number: int | None) -> Published | None:
        """Return that version, if it was published."""
        return next((entry for entry in self.published if entry.number == number), None)

    def by_revision(self, revision: str) -> Published | None:
        """Return the version that a revision was published as, if it was."""
        return next((entry for entry in self.published if entry.revision == revision), None)

    def number_of(self, revision: str | None) -> int | None:
        """Return the version that a revision was published as; None for no revision, and for one that was not."""
        entry = self.by_revision(revision) if revision is not None else None
        return entry.number if entry is not None else None

    @property
    def serving(self) -> Published | None:
        """The version that serves."""
        return self.by_number(self.stable)


class TargetRecord(Record):
    """Everything that the target remembers between runs."""

    ports: tuple[int, int, int] = Field(
        default=(0, 0, 0), description="HTTP, gRPC, metrics port of shipctl 0.1's server."
    )
    models: dict[str, ModelRecord] = Field(default_factory=dict, description="Per model.")


class Releases:
    """The files below a target's folder. Every change of the record is one atomic replacement under a lock."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.serving = folder / "serving"

    def record(self) -> TargetRecord:
        """Return the record, an empty one for a new target.

        :raises StoreError: if it cannot be read
        """
        path = self.folder / "target.json"
        try:
            return TargetRecord.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return TargetRecord()
        except (OSError, ValidationError) as error:
            what = (
                "is damaged" if isinstance(error, ValidationError) else f"cannot be read ({error.strerror})"
            )
            message = f"{path} {what}; restore it, or remove {self.folder} to begin anew"
            raise StoreError(message) from error

    def model(self, name: str) -> ModelRecord | None:
        """Return what is known about a model."""
        return self.record().models.get(name)

    def put_behind_door(self, model: str) -> None:
        """Note that replicas behind a door serve a model from now on."""
        self._update(model, lambda known: known.model_copy(update={"behind_door": True}))

    def commit_stable(self, model: str, expected: int | None, number: int | None, now: float) -> None:
        """Make ``number`` the serving version if ``expected`` is; saying it twice is the same as once.

        :raises StageError: if something else serves by now
        """

        def change(known: ModelRecord) -> ModelRecord:
            if known.stable == number:
                return known
            if known.stable != expected:
                message = (
                    f"{model} was changed meanwhile: version {known.stable} serves where {expected} was expected; "
                    "run again"
                )
                raise StageError(message)
            since, previous = (None, None) if number is None else (now, known.stable)
            return known.model_copy(update={"stable": number, "previous": previous, "since": since})

        self._update(model, change)

    def forget_previous(self, model: str, number: int) -> None:
        """Note that the replicas of the version that served before are gone."""
        self._update(
            model,
            lambda known: known.model_copy(update={"previous": None}) if known.previous == number else known,
        )

    def publish(
        self, repository: TritonRepository, *, revision: str, version: str, pipeline: str, now: float
    ) -> Published:
        """Copy ``repository`` as the next version of its model; a revision that is there is returned as it is.

        Every file's bytes are verified while they are copied.

        :raises CorruptArtifactError: if they differ from the artifact's digests
        :raises StageError: if the artifact is not the repository of one version
        """
        name = repository.model
        known = self.model(name) or ModelRecord(pipeline=pipeline)
        if known.pipeline != pipeline and known.stable is not None:
            message = (
                f"the model {name} on this target belongs to the pipeline {known.pipeline}, not to {pipeline}; choose "
                f"another model name, or take the other one down first"
            )
            raise StageError(message)
        found = known.by_revision(revision)
        number = found.number if found else max((entry.number for entry in known.published), default=0) + 1
        entry = found or Published(
            number=number, revision=revision, digest=repository.digest, version=version, at=now
        )
        final = self.release(name, number)
        if not _is_release_of(final, revision):
            self._copy(repository, entry, final)
        if found is None or known.pipeline != pipeline:
            published = known.published if found else (*known.published, entry)
            changed = known.model_copy(update={"published": published, "pipeline": pipeline})
            self._change(
                lambda record: record.model_copy(update={"models": {**record.models, name: changed}})
            )
        return entry

    def release(self, model: str, number: int) -> Path:
        """Return the folder of a published version."""
        return self.folder / "releases" / model / str(number)

    def probe(self, model: str, number: int) -> Path:
        """Return the file of a version's recorded question and answer."""
        return self.folder / "probes" / f"{model}-{number}.json"

    def lay_out(self, model: str, number: int, root: Path) -> None:
        """Make ``root`` a repository for a server that loads this version of a model, and no other.

        Its files are linked from the release; config.pbtxt comes last and in one piece.
        """
        chosen, folder = self.release(model, number) / model, root / model
        place = folder / str(number)
        if not place.is_dir():
            new = folder.parent / f".{model}-{number}.new"
            shutil.rmtree(new, ignore_errors=True)
            shutil.copytree(chosen / "1", new, copy_function=_link)
            folder.mkdir(parents=True, exist_ok=True)
            new.rename(place)
        for path in _model_files(chosen):
            if path.name != "config.pbtxt":
                write_atomic(folder / path.relative_to(chosen), path.read_bytes())
        known = self.model(model)
        entry = known.by_number(number) if known else None
        text = serving_config((chosen / "config.pbtxt").read_text(), number, entry.revision if entry else "")
        write_atomic(folder / "config.pbtxt", text.encode())

    def prune(self, model: str) -> None:
        """Remove releases that are older than the last few, and neither serve nor did just before."""
        known = self.model(model)
        if known is None:
            return
        kept = {entry.number for entry in known.published[-_KEPT_RELEASES:]} | {known.stable, known.previous}
        for folder in (self.folder / "releases" / model).glob("[0-9]*"):
            if int(folder.name) not in kept:
                shutil.rmtree(folder, ignore_errors=True)

    def remove_serving(self, model: str) -> None:
        """Take a model out of what the server of shipctl 0.1 reads."""
        (self.serving / model / "config.pbtxt").unlink(missing_ok=True)
        shutil.rmtree(self.serving / model, ignore_errors=True)

    def _copy(self, repository: TritonRepository, entry: Published, final: Path) -> None:
        model = repository.model
        versions = {file.path.split("/")[1] for file in repository.files if file.path.count("/") > 1}
        config = repository.root / model / "config.pbtxt"
        if versions != {"1"} or not config.is_file():
            message = (
                f"the repository of {model} has to hold {model}/config.pbtxt and one version folder {model}/1; "
                f"it holds {', '.join(file.path for file in repository.files) or 'nothing'}"
            )
            raise StageError(message)
        if _VERSION_POLICY.search(config.read_text()):
            message = (
                f"the config.pbtxt of {model} has a version_policy, which the target decides; leave it out"
            )
            raise StageError(message)
        new = final.with_name(f".{final.name}.new")
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(final, ignore_errors=True)  # unrecorded: its maker was killed before it was recorded
        for file in repository.files:
            place = new / file.path
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(repository.root / file.path, place)
            if hash_file(place)[0] != file.sha256:
                message = (
                    f"{repository.root / file.path} does not have the digest {file.sha256[:12]}… that it was released "
                    "with; it was damaged after it was made"
                )
                raise CorruptArtifactError(message, file.sha256)
            place.chmod(0o444)
            sync_file(place)
        write_atomic(new / "manifest.json", entry.model_dump_json(indent=2).encode())
        new.rename(final)
        sync_file(final.parent)

    def _update(self, model: str, change: Callable[[ModelRecord], ModelRecord]) -> None:
        def changed(record: TargetRecord) -> TargetRecord:
            known = record.models.get(model)
            if known is None:
                message = f"the target knows nothing of the model {model}; run again"
                raise StageError(message)
            return record.model_copy(update={"models": {**record.models, model: change(known)}})

        self._change(changed)

    def _change(self, change: Callable[[TargetRecord], TargetRecord]) -> None:
        with self._locked():
            before = self.record()
            after = change(before)
            if after != before:
                write_atomic(self.folder / "target.json", after.model_dump_json(indent=2).encode())

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def serving_config(text: str, number: int, revision: str) -> str:
    """Return the published config.pbtxt with what the target adds: which version to load, and what it is."""
    return (
        f"{text.rstrip()}\n"
        f"version_policy {{ specific {{ versions: [{number}] }} }}\n"
        f"parameters {{ key: {quoted(REVISION_PARAMETER)} value {{ string_value: {quoted(revision)} }} }}\n"
    )


def _is_release_of(folder: Path, revision: str) -> bool:
    try:
        return Published.model_validate_json((folder / "manifest.json").read_bytes()).revision == revision
    except (OSError, ValidationError):
        return False


def _model_files(folder: Path) -> list[Path]:
    """Return the files of a model that are not part of a version, such as labels."""
    return sorted(
        path for path in folder.rglob("*") if path.is_file() and path.relative_to(folder).parts[0] != "1"
    )


def _link(source: str, place: str) -> None:
    """Link a file, or copy it where the file system has no links."""
    try:
        os.link(source, place)
    except OSError:
        shutil.copyfile(source, place)
