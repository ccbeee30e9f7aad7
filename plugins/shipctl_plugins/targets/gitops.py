"""Target `gitops`: the objects are committed to a Git repository, and whoever watches that applies them.

One commit is a release (`rolling`), or three: the new revision beside the old one; once it is ready, the Service that
selects it; and after a while the old one's end (`bluegreen`). Going back is a commit as well, with the tree of the
revision before, and pins what was gone back from: neither the next synchronisation nor another machine's `apply` brings
it back.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import ClassVar

from shipctl.engine.project import Project
from shipctl.errors import ShipctlError, SpecError, StageError
from shipctl.release.delegated import DelegatedTarget, Followed, Standing
from shipctl.release.records import FileRecords, RecordStore
from shipctl.release.strategy import Strategy
from shipctl.release.target import Applied, Candidate, TargetOptions
from shipctl.stages.base import Serving
from shipctl.stages.context import CheckContext, ReleaseContext
from shipctl.stages.verdicts import Outcome, Verdict
from shipctl.store.depot import open_depot
from shipctl.store.local import LocalStore
from shipctl_plugins._gitops.changes import Changes
from shipctl_plugins._gitops.engines import Engine, Health
from shipctl_plugins._gitops.git import Change, RefusedError, Repository
from shipctl_plugins._gitops.options import GitopsOptions
from shipctl_plugins._gitops.program import Program, git_program
from shipctl_plugins._gitops.records import PinnedRecords
from shipctl_plugins._gitops.requests import Requests
from shipctl_plugins._gitops.sight import Promoted, engine_of, followed
from shipctl_plugins._gitops.tree import KUSTOMIZATION, Tree, kustomization
from shipctl_plugins._kubernetes.lint.problems import problems
from shipctl_plugins._kubernetes.manifests.options import app_of, with_store
from shipctl_plugins._kubernetes.manifests.render import elsewhere
from shipctl_plugins._kubernetes.preflight import LocalPreflight, Preflighter
from shipctl_plugins._kubernetes.repository import base_uri, lay_out

STRATEGIES = ("rolling", "bluegreen")
_SHORT = 10
"""Digits of a commit that name it for a person."""


class Gitops(DelegatedTarget):
    """Commit what is to run to a Git repository that Argo CD, Flux or somebody else applies to a cluster."""

    api_version: ClassVar[int] = 1
    options_model: ClassVar[type[TargetOptions]] = GitopsOptions
    steps_itself: ClassVar[bool] = False
    options: GitopsOptions

    def __init__(self, options: GitopsOptions, ctx: ReleaseContext) -> None:
        options = with_store(options, ctx.store)
        super().__init__(options, ctx)
        self.app = app_of(options, ctx.pipeline, ctx.environment)
        self._folder = ctx.target_dir.absolute()
        program = Program(options.git, self._folder / f"{ctx.pipeline}.git", ctx.base)
        self.repository = Repository(program, log=ctx.log)
        self._changes = Changes(options, self.app, self.repository, ctx)
        self._requests = Requests(self.repository, self.app)

    @cached_property
    def engine(self) -> Engine:
        """Who applies the repository; finding out raises UnavailableError if there is no way to the cluster."""
        return engine_of(self.options, self.app, self.ctx)

    # -- before anything has run -----------------------------------------------------------------------------

    @classmethod
    def check(cls, options: GitopsOptions, ctx: CheckContext) -> None:
        """Look for git, the branch, and where servers read models from.

        :raises UnavailableError: if git is not here, or the repository cannot be reached
        :raises SpecError: if there is no such branch, or servers cannot read the store
        """
        git_program()
        base_uri(options, ctx.store)
        Repository(Program(options.git, ctx.project, ctx.base)).check()

    @classmethod
    def supports(cls, strategy: Strategy, options: object) -> str | None:  # noqa: ARG003  (all are the same here)
        """Refuse all that shifts weights, which nobody does from a file."""
        if strategy.name in STRATEGIES:
            return None
        return (
            f"the target gitops cannot do {strategy.name}: from files, nobody shifts traffic step by step; use rolling "
            "or bluegreen with it, or one of the targets kubernetes, argo-rollouts and kserve"
        )

    @classmethod
    def not_enforced(cls, strategy: Strategy, options: object) -> Sequence[str]:
        """Name what is missing."""
        assert isinstance(options, GitopsOptions)  # noqa: S101  (the options of this class)
        lines = [
            "golden samples are asked of a server on this machine, and not of the pods that serve",
            "nobody holds a lease, and no watchdog goes back by itself: who applies the repository goes by it alone",
            "the way back takes as long as that takes to see a commit, and pods to be ready",
        ]
        if strategy.name == "rolling":
            lines.append("while pods are replaced, both revisions answer, as the Deployment has it")
        if strategy.preview:
            lines.append("there is no preview door")
        engine = options.engine
        if not (engine.argocd or engine.flux or engine.wait):
            lines.append("what becomes of a commit is not looked at: `engine.wait` is false")
        return lines

    def preview(self, candidate: str, strategy: Strategy | None = None) -> Sequence[str]:
        """Say what stands in the repository, and what is wanting in how it is applied."""
        tree = self._tree()
        release = tree.release
        serving = release.entries.get(release.serving or "") if release is not None else None
        what = f"{serving.version} ({serving.revision[:12]})" if serving is not None else "nothing"
        folder = self.options.git.path or "."
        lines = [
            f"{what} stands in {folder} of {self.repository.program.shown}, commit {tree.commit[:_SHORT]}"
        ]
        if self.options.git.pullRequest:
            lines.append(f"it is pushed to a branch, and waits to be merged into {self.options.git.branch}")
        try:
            lines += self.engine.hints()
        except ShipctlError as exc:
            lines.append(f"who applies it cannot be asked: {exc}")
        return lines

    def records(self) -> RecordStore:
        """Return the records of this machine, with what the repository has pinned."""
        kept = FileRecords(self.ctx.target_dir, self.ctx.pipeline, self.ctx.stage)
        return PinnedRecords(kept, lambda: self._tree().pins.pins)

    def manifests(self, candidate: Candidate, strategy: Strategy | None = None) -> dict[str, str]:
        """Return the tree of a release that is through; without a strategy, by rolling."""
        files = self._changes.rendered(candidate, strategy or Strategy(name="rolling"))
        return {**files.texts, KUSTOMIZATION: kustomization(files)}

    def diff(self, candidate: Candidate, strategy: Strategy | None = None) -> Sequence[str]:
        """Compare what is committed with the tree of a release that is through; without a strategy, by the same."""
        tree = self._tree()
        before = tree.release.strategy if tree.release is not None else "rolling"
        old = tree.files().texts
        new = self._changes.rendered(candidate, strategy or Strategy(name=before)).texts
        lines: list[str] = []
        for name in sorted({*old, *new}):
            where = f"{self.options.git.path}/{name}".lstrip("/")
            lines += difflib.unified_diff(
                old.get(name, "").splitlines(),
                new.get(name, "").splitlines(),
                f"a/{where}" if name in old else "/dev/null",
                f"b/{where}" if name in new else "/dev/null",
                lineterm="",
            )
        return lines

    # -- releasing ---------------------------------------------------------------------------------------------

    @cached_property
    def preflighter(self) -> Preflighter:
        """Who asks golden samples."""
        return LocalPreflight(self._folder / "preflight", self.ctx.pipeline, self.ctx.now, self.ctx.log)

    def preflight(self, candidate: Candidate) -> Applied:
        """Look whether a cluster would take the objects, and ask a server on this machine golden samples.

        :raises StageError: if no server can be started here
        """
        shared, own = self._changes.objects(candidate, Strategy(name="bluegreen"))
        version = self.options.kubernetesVersion
        wrong = problems([*shared, *own], version, elsewhere=elsewhere(self.options))
        said = f"{len(shared) + len(own)} objects are valid for Kubernetes {version}"
        verdict = Verdict(
            gate="manifests",
            outcome=Outcome.FAIL if wrong else Outcome.PASS,
            message="; ".join(wrong) if wrong else said,
            subject=candidate.repository.digest,
        )
        if wrong:
            return Applied(message=verdict.message, verdicts=(verdict,))
        timeout = float(self.options.preflight_timeout)
        message, verdicts = self.preflighter(candidate, self.options.golden, timeout)
        return Applied(message=message, verdicts=(verdict, *verdicts))

    def submit(self, candidate: Candidate, strategy: Strategy) -> Applied:
        """Put the model where servers read it, and commit the revision; to a branch of its own if so wished."""
        self._publish(candidate)
        revision = candidate.revision
        asked = self.options.git.pullRequest and self.ctx.intent == "apply"
        branch = self._requests.branch(candidate.version) if asked else None

        def make(commit: str) -> Change | None:
            tree = Tree(self.repository, commit)
            if tree.current == revision and revision not in tree.pins.pins:
                return None
            return self._changes.released(tree, candidate, strategy)

        if asked and self._requests.find(revision) is not None:
            return Applied(message=f"{candidate.version} waits on the branch {branch} already")
        commit, new = self.repository.change(make, branch=branch)
        if not new:
            return Applied(message=f"{candidate.version} stands in commit {commit[:_SHORT]} already")
        where = branch or self.options.git.branch
        return Applied(message=f"{candidate.version} is committed to {where} as {commit[:_SHORT]}")

    def follow(self, revision: str) -> Followed:
        """Look at the repository, and at who applies it."""
        tree = self._tree()
        if self.options.git.pullRequest:
            waiting = self._requests.waiting(tree, revision)
            if waiting is not None:
                return waiting
        if tree.release is None:
            return Followed(standing=Standing.ABSENT)
        promoted = Promoted(self._folder / f"{self.ctx.pipeline}-{self.ctx.stage}.promoted")
        live = self.engine.look(tree, lambda commit: self._has(tree, commit))
        return followed(revision, tree.release, live, promoted)

    def resume(self, revision: str) -> Applied:
        """Commit what comes next: what waits on a branch, the Service's switch, the end of the old revision."""
        if self.options.git.pullRequest:
            merged = self._requests.merge(revision, self._changes)
            if merged is not None:
                return Applied(message=f"merged into {self.options.git.branch} as {merged[:_SHORT]}")
        return self._changed(lambda tree: self._changes.onward(tree, revision))

    def abort(self, revision: str, stable: str | None) -> Applied:
        """Commit the tree of ``stable`` again, and pin ``revision``; remove the branch that it waits on."""
        forgotten = self._requests.forget(revision) if self.options.git.pullRequest else None
        try:
            back = self._changed(lambda tree: self._back(tree, revision, stable))
        except RefusedError as exc:
            branch = self._requests.way_back
            commit, _ = self.repository.change(
                lambda base: self._back(Tree(self.repository, base), revision, stable), branch=branch
            )
            message = f"{exc}; the way back is on the branch {branch} ({commit[:_SHORT]}): merge it now"
            raise StageError(message) from exc
        return Applied(message=f"the branch {forgotten} is removed") if forgotten is not None else back

    def _back(self, tree: Tree, revision: str, stable: str | None) -> Change | None:
        def ready() -> bool:
            live = self.engine.look(tree, lambda commit: self._has(tree, commit))
            return live.applied and live.health is Health.HEALTHY

        return self._changes.back(tree, revision, stable, ready)

    # -- looking -----------------------------------------------------------------------------------------------

    def endpoints(self) -> dict[str, str]:
        """Return the addresses inside of the cluster."""
        host, service = f"{self.app.name}.{self.app.namespace}.svc", self.options.service
        return {"http": f"http://{host}:{service.httpPort}", "grpc": f"{host}:{service.grpcPort}"}

    def status(self) -> Sequence[Serving]:
        """Return what is committed to serve, and whether it does."""
        tree = self._tree()
        entry = tree.release.entries.get(tree.release.serving or "") if tree.release is not None else None
        if entry is None:
            return ()
        live = self.engine.look(tree, lambda commit: self._has(tree, commit))
        applied = live.message or ("yes" if live.applied else "not yet")
        serving = Serving(
            name=entry.model,
            version=entry.version,
            revision=entry.revision,
            since=entry.since,
            healthy=live.applied and live.health is Health.HEALTHY,
            endpoints=self.endpoints(),
            details={"commit": tree.commit[:_SHORT], "applied": applied},
        )
        return (serving,)

    def down(self) -> Sequence[str]:
        """Commit a tree in which nothing is released."""
        commit, new = self.repository.change(lambda base: self._changes.nothing(Tree(self.repository, base)))
        where = f"{self.repository.program.shown}: commit {commit[:_SHORT]}"
        return [f"{self.app.name} is taken out of {where}"] if new else []

    # -- parts -------------------------------------------------------------------------------------------------

    def _tree(self) -> Tree:
        commit = self.repository.fetch()
        if commit is None:
            message = (
                f"{self.repository.program.shown}: there is no such branch; create it, or correct git.branch"
            )
            raise SpecError(message)
        return Tree(self.repository, commit)

    def _has(self, tree: Tree, commit: str) -> bool:
        """Whether a commit has the same in our folder as the newest one."""
        if commit == tree.commit:
            return True
        same = self.repository.has(commit)
        return same and self.repository.tree(commit, self.options.git.path) == tree.identity

    def _changed(self, make: Callable[[Tree], Change | None]) -> Applied:
        commit, new = self.repository.change(lambda base: make(Tree(self.repository, base)))
        return Applied(
            message=f"{self._changes.said}: commit {commit[:_SHORT]}" if new else self._changes.said
        )

    def _publish(self, candidate: Candidate) -> None:
        """Have the candidate's repository where the cluster's servers read it."""
        with open_depot(self.ctx.store, self.ctx.base, LocalStore(Project(self.ctx.project).store)) as depot:
            lay_out(depot, candidate.repository)
