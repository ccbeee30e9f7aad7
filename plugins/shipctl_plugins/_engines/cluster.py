"""What targets with an engine in a cluster have in common: where they are, what they keep, and what they look at."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from shipctl.errors import ShipctlError, SpecError, StageError, UnavailableError
from shipctl.release.delegated import DelegatedTarget
from shipctl.release.records import RecordStore
from shipctl.release.strategy import Strategy
from shipctl.release.target import LEASE_SECONDS, Applied, Candidate
from shipctl.stages.base import Serving
from shipctl.stages.context import CheckContext, ReleaseContext
from shipctl_plugins._engines.notes import ANNOTATION, Kept, Notes, Object, notes_of
from shipctl_plugins._kubernetes import differences, objects
from shipctl_plugins._kubernetes.api.connection import ConflictError, Ref, connect
from shipctl_plugins._kubernetes.api.opened import opened
from shipctl_plugins._kubernetes.app import LABEL_REVISION, App, Place, short
from shipctl_plugins._kubernetes.lease import ClusterLease
from shipctl_plugins._kubernetes.manifests.documents import files_of
from shipctl_plugins._kubernetes.manifests.options import KubernetesOptions, app_of, with_store
from shipctl_plugins._kubernetes.manifests.render import operator_role
from shipctl_plugins._kubernetes.manifests.roles import Rule, operator_rules
from shipctl_plugins._kubernetes.objects import Kind
from shipctl_plugins._kubernetes.preflight import LocalPreflight, Preflighter
from shipctl_plugins._kubernetes.records import ConfigMapRecords
from shipctl_plugins._kubernetes.removal import taken_away
from shipctl_plugins._kubernetes.repository import lay_out
from shipctl_plugins._kubernetes.rights import check_rights
from shipctl_plugins._kubernetes.state import Entry

SERIES_LABEL = LABEL_REVISION.replace(".", "_").replace("/", "_")
"""What Prometheus makes of the pods' label; monitors copy it to every series."""
_ATTEMPTS = 6
"""Times that an object is looked at again because its controller has written it meanwhile."""


class ClusterEngine(DelegatedTarget):
    """A target whose engine drives one object of the namespace, named after the app."""

    kind: ClassVar[Kind]
    """The object."""
    others: ClassVar[tuple[Kind, ...]] = ()
    """Further kinds of the engine's of which there may be objects of ours."""
    options: KubernetesOptions

    def __init__(self, options: KubernetesOptions, ctx: ReleaseContext) -> None:
        options = with_store(options, ctx.store)
        super().__init__(options, ctx)
        self.rendered_app = app_of(options, ctx.pipeline, ctx.environment)

    # -- what it is made of ----------------------------------------------------------------------------------

    @cached_property
    def place(self) -> Place:
        """The app and its cluster, which is not asked before something of it is needed."""
        cluster = opened(self.options, self.ctx.base, self.ctx.log)
        return Place(
            cluster, app_of(self.options, self.ctx.pipeline, self.ctx.environment, cluster.namespace)
        )

    @property
    def app(self) -> App:
        """What it is called in the cluster."""
        return self.place.app

    @property
    def ref(self) -> Ref:
        """The engine's object."""
        return Ref(self.kind.api_version, self.kind.name, self.app.name)

    @cached_property
    def lease(self) -> ClusterLease:
        """Who hands over, follows and aborts; the engine goes on without."""
        return ClusterLease(self.place, self.ctx.now)

    @cached_property
    def preflighter(self) -> Preflighter:
        """What asks golden samples."""
        folder = self.ctx.target_dir / "preflight" / self.ctx.pipeline
        return LocalPreflight(folder.absolute(), self.ctx.pipeline, self.ctx.now, self.ctx.log)

    @classmethod
    @abstractmethod
    def rules(cls, app: App) -> list[Rule]:
        """Return the rules of a Role by which the engine's objects are written."""

    @classmethod
    def check_cluster(
        cls, options: KubernetesOptions, ctx: CheckContext, routes: Sequence[Object] = ()
    ) -> None:
        """Look whether the engine is there, and the kinds of ``routes``, and whether we may tell it anything.

        :raises UnavailableError: if not
        """
        try:
            cluster = connect(options, ctx.base, lambda _line: None)
            app = app_of(options, ctx.pipeline, ctx.environment, cluster.namespace)
            routed = [Kind(each["apiVersion"], each["kind"]) for each in routes]
            for kind in (cls.kind, *cls.others, *routed):
                if not cluster.has(kind.api_version, kind.name):
                    cluster.list(kind.api_version, kind.name)  # its own error says what brings the kind
            rules = [rule for rule in operator_rules(options, app) if rule["apiGroups"] != ["apps"]]
            check_rights(cluster, app, [*rules, *cls.rules(app)])
        except (SpecError, UnavailableError):
            raise
        except ShipctlError as exc:
            raise UnavailableError(str(exc)) from exc

    # -- what is rendered ------------------------------------------------------------------------------------

    @abstractmethod
    def rendered(self, app: App, candidate: Candidate, strategy: Strategy) -> list[Object]:
        """Return everything that a release puts there, the engine's object last; nothing is asked."""

    def rights(self) -> dict[str, str]:
        """Return the Role of who runs shipctl for this app."""
        app = self.rendered_app
        return files_of(operator_role(self.options, app, further=self.rules(app), base=self.ctx.base))

    def manifests(self, candidate: Candidate, strategy: Strategy | None = None) -> dict[str, str]:
        """Return a file per object; the namespace is the options', or `default`."""
        return files_of(self.rendered(self.rendered_app, candidate, strategy or Strategy(name="canary")))

    def diff(self, candidate: Candidate, strategy: Strategy | None = None) -> Sequence[str]:
        """Return a unified diff of the live objects against a dry run of what would be applied."""
        found = self.rendered(self.app, candidate, strategy or Strategy(name="canary"))
        return differences.unified(self.place, [self.beside(each) for each in found])

    def beside(self, found: Object) -> Object:
        """Return a manifest with what is not the spec's in the live object: the note on the engine's."""
        live = self.place.cluster.get(self.ref) if objects.reference(found) == self.ref else None
        note = ((live or {}).get("metadata", {}).get("annotations") or {}).get(ANNOTATION)
        if note is None:
            return found
        annotations = {**found["metadata"].get("annotations", {}), ANNOTATION: note}
        return {**found, "metadata": {**found["metadata"], "annotations": annotations}}

    # -- what a release does ---------------------------------------------------------------------------------

    def records(self) -> RecordStore:
        """Return the ConfigMap of this stage's releases."""
        return ConfigMapRecords(lambda: self.place, self.ctx.stage)

    def acquire(self, holder: str) -> int:
        """Take or renew the lease."""
        self._epoch = self.lease.acquire(holder, LEASE_SECONDS)
        return self._epoch

    _epoch: int = 0

    def release(self, epoch: int) -> None:
        """Give the lease back."""
        self.lease.release(epoch)

    def _kept(self) -> AbstractContextManager[None]:
        """Renew the lease while something takes longer than it holds."""
        return self.lease.kept(self._epoch) if self._epoch else nullcontext()

    def preflight(self, candidate: Candidate) -> Applied:
        """Ask golden samples of a server on this machine, which ends with that."""
        timeout = float(self.options.preflight_timeout)
        with self._kept():
            message, verdicts = self.preflighter(candidate, self.options.golden, timeout)
        return Applied(message=message, verdicts=verdicts)

    def publish(self, candidate: Candidate) -> None:
        """Have the candidate's repository where the cluster's servers read it."""
        from shipctl.engine.project import Project
        from shipctl.store.depot import open_depot
        from shipctl.store.local import LocalStore

        local = LocalStore(Project(self.ctx.project).store)
        with self._kept(), open_depot(self.ctx.store, self.ctx.base, local) as depot:
            lay_out(depot, candidate.repository)

    def look(self) -> tuple[Object | None, Notes]:
        """Return the engine's object and what is remembered on it."""
        found = self.place.cluster.get(self.ref)
        return found, notes_of(found)

    def changed(self, change: Callable[[Object | None, Notes], str]) -> str:
        """Have ``change`` look at the object and write it, again if somebody has written it in between.

        :raises ConflictError: if somebody does each time
        """
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return change(*self.look())
            except ConflictError:
                if attempt == _ATTEMPTS:
                    raise
        raise AssertionError  # unreachable: the last attempt returns or raises

    def write(
        self,
        found: Object,
        notes: Notes | None = None,
        *,
        force: bool,
        dry_run: bool = False,
    ) -> Object:
        """Apply the engine's object with these notes, and return what the server makes of it.

        Everything of ours in its spec is written in this way alone, so that what is left out is removed. ``force``
        takes over what somebody else has changed.
        """
        if notes is not None:
            annotations = {**found["metadata"].get("annotations", {}), ANNOTATION: notes.text()}
            metadata = {**found["metadata"], "annotations": annotations}
            found = {**found, "metadata": metadata}
        if force:
            return self.place.cluster.apply(found, force=True, dry_run=dry_run)
        return objects.apply(self.place, found, self.ctx.log, dry_run=dry_run) or found

    # -- what serves -----------------------------------------------------------------------------------------

    @staticmethod
    def named(notes: Notes, revision: str | None) -> str:
        """Return what a person calls a revision."""
        kept = notes.kept(revision)
        if kept is not None:
            return f"{kept.entry.version} ({kept.entry.revision[:12]})"
        return revision[:12] if revision is not None else "nothing"

    def nothing(self, stable: str | None) -> str:
        """Say that the engine's object is not there, which is right where nothing was stable.

        :raises StageError: if something was
        """
        if stable is None:
            return f"there is no {self.kind.name} {self.app.name}"
        message = (
            f"{self.kind.name} {self.app.name} is gone from {self.app.namespace}, and {stable[:12]} with it; apply an "
            "earlier version again"
        )
        raise StageError(message)

    def served(self, kept: Kept, *, healthy: bool, **details: str) -> Serving:
        """Return a revision as `shipctl status` has it."""
        entry: Entry = kept.entry
        return Serving(
            name=entry.model, version=entry.version, revision=entry.revision, since=entry.since, healthy=healthy,
            endpoints=self.endpoints(), details={"namespace": self.app.namespace, **details},
        )  # fmt: skip

    def endpoints(self) -> dict[str, str]:
        """Return the addresses of the door inside of the cluster."""
        host, service = f"{self.app.name}.{self.app.namespace}.svc", self.options.service
        return {"http": f"http://{host}:{service.httpPort}", "grpc": f"{host}:{service.grpcPort}"}

    def versions(self) -> dict[str, str]:
        """Return revision to Triton's version number in its repository."""
        return {name: str(kept.entry.number) for name, kept in self.look()[1].revisions.items()}

    def metric_labels(self) -> dict[str, dict[str, str]]:
        """Return revision to the label that tells its series from another's: all have the same version number."""
        return {name: {SERIES_LABEL: short(name)} for name in self.look()[1].revisions}

    def down(self) -> Sequence[str]:
        """Delete what carries this app's labels, but for the history of its releases, under the lease.

        :raises LockedError: if another process drives a release of it
        """
        everything = (self.kind, *self.others, *objects.EVERYTHING)
        kinds = [kind for kind in everything if kind.name != "ConfigMap"]
        lines = taken_away(self.place, self.lease, kinds, self.ctx.log)
        self._epoch = 0
        return lines


def manifest(app: App, kind: Kind, name: str, **rest: Any) -> Object:
    """Return the beginning of a manifest of an app's."""
    metadata = {"name": name, "namespace": app.namespace, "labels": dict(app.labels)}
    return {"apiVersion": kind.api_version, "kind": kind.name, "metadata": metadata, **rest}


def base_of(ctx: ReleaseContext | CheckContext) -> Path:
    """Return the folder that paths of the spec are relative to."""
    return Path(ctx.base)
