"""What is committed when: the next content of the folder, made of the one before it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from shipctl.errors import StageError
from shipctl.release.strategy import Strategy
from shipctl.release.target import Candidate
from shipctl.stages.context import ReleaseContext
from shipctl_plugins._gitops.git import Change, Repository
from shipctl_plugins._gitops.options import GitopsOptions, filled
from shipctl_plugins._gitops.shape import Manifest, closed, files_for, revision_manifests, shared_manifests
from shipctl_plugins._gitops.tree import (
    SHARED,
    Entry,
    Files,
    Pin,
    Pins,
    Release,
    Tree,
    remembering,
)
from shipctl_plugins._kubernetes.app import App, short
from shipctl_plugins._kubernetes.manifests.render import ALL, Workload, door, files_of
from shipctl_plugins._kubernetes.repository import base_uri, version_number

NO_CHANGE = "nothing is to be committed"


class Changes:
    """Makes changes for one release stage of one pipeline. ``said`` is the line for a person about the last one."""

    def __init__(self, options: GitopsOptions, app: App, repository: Repository, ctx: ReleaseContext) -> None:
        self._options = options
        self._app = app
        self._repository = repository
        self._ctx = ctx
        self.said = NO_CHANGE

    # -- rendering ---------------------------------------------------------------------------------------------

    def objects(self, candidate: Candidate, strategy: Strategy) -> tuple[list[Manifest], list[Manifest]]:
        """Return what all revisions share, with a Service that selects this one, and what this one has for itself.

        :raises SpecError: if a template of the project does not work, or servers cannot read the store
        """
        selected = ALL if strategy.name == "rolling" else candidate.revision
        return self._shared(selected), self._own(candidate, strategy)

    def rendered(self, candidate: Candidate, strategy: Strategy) -> Files:
        """Return the files of a release that is through."""
        shared, own = self.objects(candidate, strategy)
        return files_for(shared, {candidate.revision: own})

    def _shared(self, selected: str | None) -> list[Manifest]:
        return shared_manifests(self._options, self._app, selected, self._ctx.base)

    def _own(self, candidate: Candidate, strategy: Strategy) -> list[Manifest]:
        repository = candidate.repository
        workload = Workload(
            app=self._app,
            revision=candidate.revision,
            version=candidate.version,
            model=repository.model,
            repository=self._uri(candidate),
            digest=repository.digest,
            number=version_number(repository),
        )
        return revision_manifests(self._options, workload, strategy, self._ctx.base)

    def _uri(self, candidate: Candidate) -> str:
        return f"{base_uri(self._options, self._ctx.store)}/{candidate.repository.digest}"

    def _door(self, selected: str) -> dict[str, str]:
        return files_of([door(self._options, self._app, selected, base=self._ctx.base)])

    # -- forward -----------------------------------------------------------------------------------------------

    def released(self, tree: Tree, candidate: Candidate, strategy: Strategy) -> Change:
        """Put a revision into the tree: in place of the one before, or, for bluegreen, beside it.

        :raises StageError: if what is there cannot become that
        """
        before, revision = tree.release, candidate.revision
        old = before.serving if before is not None else None
        if (
            before is not None
            and old is not None
            and (before.strategy, strategy.name) == ("bluegreen", "rolling")
        ):
            message = (
                f"{before.entries[old].version} serves as bluegreen, and to go on by rolling would take it away before "
                "anything else is ready; go on with bluegreen, or begin anew after `shipctl down`"
            )
            raise StageError(message)
        files = self._earlier(tree, revision, strategy) or self.rendered(candidate, strategy)
        beside = strategy.name == "bluegreen" and old not in {None, revision}
        entries = {revision: self._entry(candidate)}
        if beside and before is not None and old is not None:
            entries = {old: before.entries[old], **entries}
            kept = tree.files().only(old)
            files = Files({**kept.texts, **files.texts}, {**kept.owners, **files.owners})
            files = files.adding(self._door(old), SHARED)
        release = Release(
            pipeline=self._ctx.pipeline,
            strategy="bluegreen" if strategy.name == "bluegreen" else "rolling",
            current=revision,
            stable=tree.current,
            serving=old if beside else revision,
            changed=self._ctx.now(),
            warm=min(float(strategy.scaleDownDelay), float(strategy.progressDeadline) / 2),
            asks=not strategy.autoPromotion,
            entries=entries,
            history=remembering(before.history if before is not None else {}, tree.current, tree.commit),
            run=self._ctx.run,
        )
        pins = tree.pins.without(revision)
        if self._ctx.intent == "rollback" and before is not None and tree.current not in {None, revision}:
            pins = self._pinning(pins, before, str(tree.current))
        return self._becoming(tree, release, pins, files, candidate.version, revision, "release")

    def _earlier(self, tree: Tree, revision: str, strategy: Strategy) -> Files | None:
        """Return the files that a revision had when it stood in the tree, for a rollback to it."""
        if self._ctx.intent != "rollback" or tree.release is None:
            return None
        commit = tree.release.history.get(revision)
        if commit is None or not self._repository.has(commit, deep=True):
            return None
        then = Tree(self._repository, commit)
        if then.release is None or then.release.strategy != strategy.name or then.release.serving != revision:
            return None
        return then.files().only(SHARED, revision)

    def _entry(self, candidate: Candidate) -> Entry:
        return Entry(
            revision=candidate.revision,
            version=candidate.version,
            model=candidate.repository.model,
            digest=candidate.repository.digest,
            repository=self._uri(candidate),
            since=self._ctx.now(),
        )

    def merged(self, tree: Tree, branch: Tree, revision: str) -> Change | None:
        """Put what stands on a branch for it into the tree."""
        wanted = branch.release
        if wanted is None or tree.current == revision:
            return None
        before = tree.release
        history = remembering(before.history if before is not None else {}, tree.current, tree.commit)
        release = wanted.model_copy(
            update={"stable": tree.current, "history": history, "changed": self._ctx.now()}
        )
        version = wanted.entries[revision].version
        return self._becoming(
            tree, release, tree.pins.without(revision), branch.files(), version, revision, "release"
        )

    def onward(self, tree: Tree, revision: str) -> Change | None:
        """Have the Service select a revision that stands beside the one before; or, if it does, remove that one."""
        release = tree.release
        if release is None or release.current != revision or len(release.entries) < 2:  # noqa: PLR2004
            self.said = f"there is nothing to go on with for {short(revision)}"
            return None
        version, changes = release.entries[revision].version, self._now()
        files = tree.files()
        if release.serving != revision:
            what = "the Service selects it"
            changes |= {"serving": revision}
            files = files.adding(self._door(revision), SHARED)
        else:
            what = "the one before it is removed"
            changes |= {"entries": {revision: release.entries[revision]}}
            files = files.only(SHARED, revision)
        changed = release.model_copy(update=changes)
        return self._becoming(tree, changed, tree.pins, files, version, revision, what)

    # -- back --------------------------------------------------------------------------------------------------

    def back(self, tree: Tree, revision: str, stable: str | None, ready: Callable[[], bool]) -> Change | None:
        """Put ``stable`` (None: nothing) back into the tree, and pin ``revision``.

        For bluegreen, where the pods of ``stable`` are gone, they come first, and the Service selects them once
        ``ready`` says so: until then what there is goes on answering.

        :raises StageError: if the repository does not have that tree any more
        """
        release = tree.release
        if release is None or revision not in release.entries:
            self.said = NO_CHANGE
            return None
        version = release.entries[revision].version
        pins = self._pinning(tree.pins, release, revision)
        if stable is None:
            return self._emptied(tree, release, pins, version, revision)
        there, then = self._stood(release, stable)
        if release.strategy == "bluegreen" and release.serving == revision:
            if stable not in release.entries:
                return self._beside(tree, pins, there.files().only(stable), then.entries[stable], revision)
            if release.current == stable and not ready():
                self.said = f"waiting for the pods of {then.entries[stable].version}"
                return None
        files = there.files().only(SHARED, stable)
        if then.strategy == "bluegreen":
            files = files.adding(self._door(stable), SHARED)
        going = then.model_copy(
            update={
                **self._now(), "current": stable, "stable": stable, "serving": stable,
                "entries": {stable: then.entries[stable]}, "history": release.history,
            }
        )  # fmt: skip
        what = f"back to {then.entries[stable].version}"
        return self._becoming(tree, going, pins, files, version, revision, what)

    def _stood(self, release: Release, stable: str) -> tuple[Tree, Release]:
        """Return the tree in which a revision stood, and what it says.

        :raises StageError: if it cannot be had
        """
        commit = release.history.get(stable)
        if commit is not None and self._repository.has(commit, deep=True):
            there = Tree(self._repository, commit)
            if there.release is not None and stable in there.release.entries:
                return there, there.release
        where = (
            f"commit {commit[:10]}, in which it stood" if commit is not None else "a commit in which it stood"
        )
        place = self._repository.program.shown
        message = (
            f"{place} does not have {where} ({short(stable)}) any more; apply the spec of that version again"
        )
        raise StageError(message)

    def _beside(self, tree: Tree, pins: Pins, own: Files, entry: Entry, revision: str) -> Change:
        """Put the pods of what was stable beside those of what serves."""
        assert tree.release is not None  # noqa: S101  (the caller has looked)
        release, there, stable = tree.release, tree.files(), entry.revision
        files = Files({**there.texts, **own.texts}, {**there.owners, **own.owners})
        entries = {**release.entries, stable: entry}
        going = release.model_copy(
            update={**self._now(), "current": stable, "stable": stable, "entries": entries}
        )
        what = f"the pods of {entry.version} come back beside it"
        return self._becoming(tree, going, pins, files, release.entries[revision].version, revision, what)

    def nothing(self, tree: Tree) -> Change | None:
        """Take everything out of the tree."""
        if tree.release is None or tree.release.current is None:
            return None
        return self._emptied(tree, tree.release, tree.pins, self._ctx.version, tree.release.current)

    def _emptied(self, tree: Tree, release: Release, pins: Pins, version: str, revision: str) -> Change:
        history = remembering(release.history, release.current, tree.commit)
        gone = {"current": None, "stable": None, "serving": None, "entries": {}, "history": history}
        changed = release.model_copy(update={**self._now(), **gone})
        what = "nothing is released any more"
        return self._becoming(tree, changed, pins, closed(self._app), version, revision, what)

    def _pinning(self, pins: Pins, release: Release, revision: str) -> Pins:
        if revision in pins.pins:
            return pins
        version = release.entries[revision].version if revision in release.entries else short(revision)
        return pins.adding(revision, Pin(version=version, since=self._ctx.now(), run=self._ctx.run))

    # -- committing --------------------------------------------------------------------------------------------

    def _now(self) -> dict[str, Any]:
        return {"changed": self._ctx.now(), "run": self._ctx.run}

    def _becoming(
        self, tree: Tree, release: Release, pins: Pins, files: Files, version: str, revision: str, what: str
    ) -> Change:
        self.said = f"{version}: {what}"
        return tree.becoming(release, pins, files, self._message(version, revision, what))

    def _message(self, version: str, revision: str, what: str) -> str:
        ctx = self._ctx
        values = {
            "what": what, "pipeline": ctx.pipeline, "version": version, "revision": revision, "stage": ctx.stage,
            "environment": ctx.environment or "", "run": ctx.run,
        }  # fmt: skip
        rest = {
            "Pipeline": ctx.pipeline, "Version": version, "Revision": revision, "Stage": ctx.stage,
            "Environment": ctx.environment, "Run": ctx.run,
        }  # fmt: skip
        lines = [f"{name}: {value}" for name, value in rest.items() if value]
        return "\n".join([filled(self._options.git.message, values), "", *lines])
