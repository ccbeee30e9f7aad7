"""The registry of models: versions that never change, and names for them that move with a history.

    registry/<model>/00000001.json, …   the log of one model; its newest entry has the state of the model
    audit/00000001.json, …              who changed what, over everything in the store
    deployments/<id>.json               what targets need, which is written by those who release

It needs nothing but a store that can create a key only if nobody has it. What is registered must have been published
before (:class:`shipctl.store.depot.Depot`): the registry holds manifests, not files.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from shipctl.errors import SpecError, StoreError
from shipctl.records import digest_of
from shipctl.stages.artifacts import ModelPackage
from shipctl.store import model_changes as changes
from shipctl.store.deployments import Deployment, use_of
from shipctl.store.log import Heads, State, audit
from shipctl.store.model_changes import Unchanged, Use
from shipctl.store.model_reading import REGISTRY, ModelReader
from shipctl.store.model_state import AbTest, ModelState, Reference, VersionState, check_name, resolve
from shipctl.store.objects import ObjectStore
from shipctl.store.registered import Description, RegisteredVersion, Registration
from shipctl.store.versions import check_version

__all__ = ["REGISTRY", "Description", "ModelRegistry", "RegisteredVersion", "Retired"]


class Retired(NamedTuple):
    """What came of a retirement."""

    version: str
    aliases: tuple[str, ...]
    """Those that were dropped."""
    ab: str | None
    """The A/B test that was dropped."""
    deployments: tuple[Deployment, ...]
    """Those that still need it, and are left as they are."""
    changed: bool
    """Whether it was not retired before."""


class ModelRegistry(ModelReader):
    """The models of a store, to look at and to change. Safe for any number of writers anywhere."""

    def __init__(
        self, objects: ObjectStore, *, heads: Heads | None = None, now: Callable[[], float] = time.time
    ) -> None:
        """``heads`` remembers the ends of logs on this machine, so that one which was cut is refused."""
        super().__init__(objects, heads=heads)
        self._now = now

    # -- changing ------------------------------------------------------------------------------------------

    def register(
        self,
        package: ModelPackage,
        *,
        lineage: Mapping[str, Any],
        tags: Mapping[str, str] | None = None,
        about: Description | None = None,
    ) -> RegisteredVersion:
        """Register a package that was published under its name and version.

        The same package again changes nothing, tags included. ``lineage`` may name the `parent` version; without it
        that is the version below this one.

        :raises GateError: if the version is registered with another digest, or was retired
        :raises SpecError: if name or version cannot be one
        """
        name, version = check_name(package.name), check_version(package.version)
        registration = Registration(
            version=version,
            digest=package.digest,
            package=package.manifest(),
            lineage=dict(lineage),
            about=about or Description(),
        )
        details = json.loads(registration.model_dump_json())
        parent = details["lineage"].get("parent")

        def add(state: ModelState) -> ModelState:
            new = VersionState(
                digest=package.digest,
                entry=state.number + 1,
                details=digest_of(details),
                registered=self._now(),
                parent=parent,
                tags=changes.check_tags(tags or {}),
            )
            return changes.register(name, state, version, new)

        self._change(name, "register", f"{name}@{version}", details, add, new=True)
        return self.find(f"{name}@{version}")

    def alias(self, reference: str, *aliases: str) -> dict[str, tuple[str | None, str]]:
        """Let aliases point at a version and return those that moved, with the version before and the one after.

        :raises SpecError: if the reference means nothing usable, or an alias cannot be one
        """
        name, ref = Reference.parse(reference)
        moved: dict[str, tuple[str | None, str]] = {}
        details: dict[str, Any] = {}

        def move(state: ModelState) -> ModelState:
            version = resolve(name, state, ref)
            after = changes.set_aliases(state, version, aliases)
            moved.clear()
            for alias in aliases:
                if state.aliases.get(alias) != version:
                    moved[alias] = (state.aliases.get(alias), version)
            details["aliases"] = _moves(moved)
            return after

        self._change(name, "alias", reference, details, move)
        return moved

    def unalias(self, name: str, *aliases: str) -> dict[str, str]:
        """Remove aliases and return the versions that they pointed at.

        :raises SpecError: if one is not there
        """
        dropped: dict[str, str] = {}
        details: dict[str, Any] = {}

        def drop(state: ModelState) -> ModelState:
            after = changes.drop_aliases(name, state, aliases)
            dropped.clear()
            dropped.update({alias: state.aliases[alias] for alias in aliases})
            details["aliases"] = {alias: {"from": version, "to": None} for alias, version in dropped.items()}
            return after

        self._change(name, "unalias", name, details, drop)
        return dropped

    def set_stage(self, reference: str, stage: str) -> bool:
        """Say where a version stands in its life (one of STAGES); return whether that is new.

        :raises SpecError: if the reference means nothing usable, or there is no such stage
        """
        name, ref = Reference.parse(reference)
        details: dict[str, Any] = {}

        def move(state: ModelState) -> ModelState:
            version = resolve(name, state, ref)
            details.update({"version": version, "from": state.versions[version].stage or "none", "to": stage})
            return changes.set_stage(state, version, stage)

        return self._change(name, "stage", reference, details, move)

    def tag(self, reference: str, tags: Mapping[str, str]) -> bool:
        """Set tags of a version, or of the model where only its name is given; return whether that is new.

        :raises SpecError: if the reference means nothing, or a key cannot be one
        """
        return self._retag(
            "tag", reference, {"set": dict(tags)}, lambda _, s, v: changes.set_tags(s, v, tags)
        )

    def untag(self, reference: str, *keys: str) -> bool:
        """Remove tags of a version, or of the model where only its name is given.

        :raises SpecError: if the reference means nothing, or a tag is not there
        """
        details = {"removed": list(keys)}
        return self._retag("untag", reference, details, lambda n, s, v: changes.drop_tags(n, s, v, keys))

    def configure_ab(self, name: str, ab: AbTest | None) -> bool:
        """Set the model's A/B test, or remove it; return whether that is new. Arms may be named by alias.

        :raises SpecError: if it makes no sense
        """
        details = {"ab": None if ab is None else ab.model_dump(mode="json")}
        return self._change(name, "ab", name, details, lambda state: changes.configure_ab(name, state, ab))

    def retire(self, reference: str, *, reason: str | None = None, force: bool = False) -> Retired:
        """Retire a version: nothing resolves to it any more, and its files may go after the store's retention.

        ``force`` drops the aliases and the A/B test that need it. What is deployed is never touched: it serves on, and
        the files stay as long as it does.

        :raises GateError: if something needs it and ``force`` is not given
        :raises SpecError: if the reference means nothing, or ``force`` has no reason
        """
        if force and not (reason and reason.strip()):
            message = f"{reference} is retired by force only with a reason; give --reason TEXT"
            raise SpecError(message)
        name, ref = Reference.parse(reference)
        if ref is None:
            message = f"which version of {name} is meant? write {name}@VERSION"
            raise SpecError(message)
        deployments = self.deployments()
        details: dict[str, Any] = {"reason": reason, "forced": force}
        outcome: list[Retired] = []

        def leave(state: ModelState) -> ModelState:
            version = resolve(name, state, ref, retired=True)
            needing = self._needing(name, state, version, deployments)
            still = tuple(deployment for deployment, _ in needing)
            outcome[:] = [Retired(version, (), None, still, changed=False)]
            after = changes.retire(
                name,
                state,
                version,
                at=self._now(),
                reason=reason,
                force=force,
                elsewhere=[use for _, use in needing],
            )
            dropped = state.aliases_of(version)
            test = state.ab.name if state.ab is not None and after.ab is None else None
            details.update({"version": version, "aliases": list(dropped), "ab": test})
            outcome[:] = [Retired(version, dropped, test, still, changed=True)]
            return after

        self._change(name, "retire", reference, details, leave)
        return outcome[0]

    # -- within --------------------------------------------------------------------------------------------

    def _change(
        self,
        name: str,
        action: str,
        subject: str,
        details: dict[str, Any],
        change: Callable[[ModelState], ModelState],
        *,
        new: bool = False,
    ) -> bool:
        """Append an entry to a model's log and to the audit log; False if there was nothing to do.

        ``change`` may still fill ``details``, because it is called before the entry is written.
        """

        def fold(state: State) -> State:
            if not state and not new:
                raise self._no_model(name)
            after: State = json.loads(change(ModelState.of(name, state)).model_dump_json())
            return after

        audit(self.objects, heads=self._heads).head()  # whoever cannot write it down shall not do it
        try:
            entry = self.log(name).append(action, subject, details, fold=fold, now=self._now)
        except Unchanged:
            return False
        short = {key: value for key, value in entry.details.items() if key not in _IN_THE_LOG_ONLY}
        place = {"log": f"{REGISTRY}/{name}", "entry": entry.number, "entry_digest": entry.digest}
        try:
            audit(self.objects, heads=self._heads).append(action, subject, {**short, **place}, now=self._now)
        except StoreError as exc:
            message = f"{action} of {subject} is done, and could not be written to the audit log: {exc}"
            raise StoreError(message) from exc
        return True

    def _retag(
        self,
        action: str,
        reference: str,
        details: dict[str, Any],
        change: Callable[[str, ModelState, str | None], ModelState],
    ) -> bool:
        name, ref = Reference.parse(reference)

        def apply(state: ModelState) -> ModelState:
            version = None if ref is None else resolve(name, state, ref, retired=True)
            details["version"] = version
            return change(name, state, version)

        return self._change(name, action, reference, details, apply)

    def _needing(
        self, name: str, state: ModelState, version: str, deployments: Iterable[Deployment]
    ) -> list[tuple[Deployment, Use]]:
        """Return the deployments that refer to a version, and in which way.

        They name its package; or what is in it, such as the repository, where they name no package of this model
        (which may be another version with the same files).
        """
        deployments = list(deployments)
        if not deployments:
            return []
        found = self.read(name, state, [version])[0]
        packages = {known.digest for known in state.versions.values()}
        needing = []
        for deployment in deployments:
            wanted = {found.digest}
            if not packages & deployment.digests:
                wanted |= {found.package["model"], *found.about.contains.values()}
            if wanted & deployment.digests:
                needing.append((deployment, use_of(deployment, serves=bool(wanted & {*deployment.serving}))))
        return needing


_IN_THE_LOG_ONLY = frozenset({"package", "lineage", "about"})
"""Details that the audit log need not repeat."""


def _moves(moved: Mapping[str, tuple[str | None, str]]) -> dict[str, dict[str, str | None]]:
    return {alias: {"from": before, "to": after} for alias, (before, after) in moved.items()}
