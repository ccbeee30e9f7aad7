"""What the registry of models says: names, versions, where they come from. It changes nothing.

    registry/<model>/00000001.json, …   the log of one model; its newest entry has the state of the model
    deployments/<id>.json               what targets need, which is written by those who release

A version is read from the entry that registered it, which has to say what the newest one remembers of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from pydantic import ValidationError

from shipctl.errors import SpecError, StoreError
from shipctl.records import digest_of
from shipctl.spec.problems import listed, near
from shipctl.store.deployments import Deployment, read_deployments
from shipctl.store.log import READERS, Heads, Log, LogEntry
from shipctl.store.model_state import ModelState, Reference, check_name, resolve
from shipctl.store.objects import ObjectStore
from shipctl.store.registered import RegisteredVersion, Registration

REGISTRY = "registry"
"""Prefix of the models' logs."""


class ModelReader:
    """The models of a store, to look at."""

    def __init__(self, objects: ObjectStore, *, heads: Heads | None = None) -> None:
        """``heads`` remembers the ends of logs on this machine, so that one which was cut is refused."""
        self.objects = objects
        self._heads = heads

    def log(self, name: str) -> Log:
        """Return the log of a model."""
        return Log(self.objects, f"{REGISTRY}/{check_name(name)}", heads=self._heads)

    def models(self) -> list[str]:
        """Return the names of all models, sorted."""
        return sorted(self._ends())

    def states(self) -> dict[str, ModelState]:
        """Return the state of every model, by name."""
        ends = self._ends()

        def read(name: str) -> ModelState:
            head = self.log(name).head_at(ends[name])
            return ModelState.of(name, head.state if head is not None else {})

        with ThreadPoolExecutor(READERS) as threads:
            return dict(zip(sorted(ends), threads.map(read, sorted(ends)), strict=True))

    def state(self, name: str) -> ModelState:
        """Return the state of one model.

        :raises SpecError: if there is no such model
        """
        state = self.get(name)
        if state is None:
            raise self._no_model(name)
        return state

    def get(self, name: str) -> ModelState | None:
        """Return the state of one model, None if there is no such model."""
        head = self.log(name).head()
        return None if head is None else ModelState.of(name, head.state)

    def versions(self, name: str) -> list[RegisteredVersion]:
        """Return all versions of a model, lowest first, retired ones too.

        :raises SpecError: if there is no such model
        """
        state = self.state(name)
        return self.read(name, state, state.sorted())

    def resolve(self, reference: str) -> RegisteredVersion:
        """Return what NAME@VERSION, NAME@ALIAS or NAME (the highest version that is no pre-release) means.

        :raises SpecError: if it means nothing, or something that was retired
        """
        version, state = self._resolve(reference)
        return self.read(Reference.parse(reference).name, state, [version])[0]

    def find(self, reference: str) -> RegisteredVersion:
        """Return what a reference means, also if that was retired: to look at, not to use.

        :raises SpecError: if it means nothing
        """
        version, state = self._resolve(reference, retired=True)
        return self.read(Reference.parse(reference).name, state, [version])[0]

    def read(self, name: str, state: ModelState, versions: Sequence[str]) -> list[RegisteredVersion]:
        """Return versions of a model whose state is at hand, side by side.

        :raises StoreError: if the log holds something else than what was registered
        """
        log = self.log(name)
        with ThreadPoolExecutor(READERS) as threads:
            return list(threads.map(lambda version: self._read(log, name, state, version), versions))

    def history(self, name: str, *, expect_head: str | None = None) -> list[LogEntry]:
        """Return everything that was done to a model, oldest first, after verifying the chain.

        :param expect_head: as for :meth:`shipctl.store.log.Log.verify`
        :raises SpecError: if there is no such model
        :raises StoreError: if the chain is broken
        """
        entries = self.log(name).verify(expect_head=expect_head)
        if not entries:
            raise self._no_model(name)
        return entries

    def deployments(self) -> list[Deployment]:
        """Return what targets need.

        :raises StoreError: if that cannot be told, because one is damaged
        """
        return read_deployments(self.objects)

    # -- within --------------------------------------------------------------------------------------------

    def _resolve(self, reference: str, *, retired: bool = False) -> tuple[str, ModelState]:
        name, ref = Reference.parse(reference)
        state = self.state(name)
        return resolve(name, state, ref, retired=retired), state

    def _read(self, log: Log, name: str, state: ModelState, version: str) -> RegisteredVersion:
        known = state.versions[version]
        entry = log.entry(known.entry)
        try:
            registration = Registration.model_validate(entry.details)
        except ValidationError:
            registration = None
        named = registration is not None and (
            registration.package.get("name"),
            registration.package.get("version"),
            registration.version,
        ) == (name, version, version)
        whole = registration is not None and (
            digest_of(registration.package) == registration.digest == known.digest
        )
        if registration is None or digest_of(entry.details) != known.details or not named or not whole:
            message = (
                f"entry {known.entry} of {log} is not what registered {name}@{version}: it was altered; "
                f"`shipctl registry history {name}` tells where"
            )
            raise StoreError(message)
        return RegisteredVersion(
            name=name,
            version=version,
            digest=known.digest,
            package=registration.package,
            stage=known.stage,
            tags=known.tags,
            aliases=state.aliases_of(version),
            registered=known.registered,
            by=entry.actor,
            retired=known.retired,
            reason=known.reason,
            lineage={**registration.lineage, "parent": known.parent},
            about=registration.about,
        )

    def _ends(self) -> dict[str, int]:
        """Return the number of the newest entry of every model, from one listing."""
        ends: dict[str, int] = {}
        for info in self.objects.list(f"{REGISTRY}/"):
            name, _, file = info.key.removeprefix(f"{REGISTRY}/").partition("/")
            number = file.removesuffix(".json")
            if number.isdigit():
                ends[name] = max(ends.get(name, 0), int(number))
        return ends

    def _no_model(self, name: str) -> SpecError:
        known = self.models()
        hint = near(name, known) or f"; there are {listed(known)}" if known else "; nothing is registered yet"
        return SpecError(f"there is no model {name!r} in {self.objects.uri}{hint}")
