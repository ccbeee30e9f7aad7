"""Target `kubernetes`: Triton in Deployments of a cluster, per revision one, and a router that divides requests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from shipctl.errors import ShipctlError, StageError
from shipctl.release.records import RecordStore
from shipctl.release.router import Backend, RouterContext, TrafficRouter
from shipctl.release.routers import open_router, router_class
from shipctl.release.strategy import Strategy
from shipctl.release.target import (
    LEASE_SECONDS,
    Action,
    Applied,
    Candidate,
    Capability,
    Commit,
    Observation,
    Preflight,
    Prepare,
    ScaleDown,
    Shift,
    StaleEpochError,
    Target,
    TargetOptions,
)
from shipctl.release.traffic import Traffic
from shipctl.stages.base import Serving
from shipctl.stages.context import CheckContext, ReleaseContext
from shipctl_plugins._kubernetes import checks, differences, objects, telling
from shipctl_plugins._kubernetes.acts import Acts
from shipctl_plugins._kubernetes.api.opened import opened
from shipctl_plugins._kubernetes.app import LABEL_REVISION, App, Place, short
from shipctl_plugins._kubernetes.fencing import fence, live
from shipctl_plugins._kubernetes.lease import ClusterLease
from shipctl_plugins._kubernetes.leftovers import left_by
from shipctl_plugins._kubernetes.manifests.documents import files_of
from shipctl_plugins._kubernetes.manifests.options import KubernetesOptions, app_of, with_store
from shipctl_plugins._kubernetes.manifests.render import operator_role
from shipctl_plugins._kubernetes.observe import Look, Observer
from shipctl_plugins._kubernetes.plans import Plans
from shipctl_plugins._kubernetes.preflight import LocalPreflight, Preflighter
from shipctl_plugins._kubernetes.records import ConfigMapRecords
from shipctl_plugins._kubernetes.removal import taken_away
from shipctl_plugins._kubernetes.repository import base_uri, lay_out
from shipctl_plugins._kubernetes.shadowing import Shadowing
from shipctl_plugins._kubernetes.state import load
from shipctl_plugins._kubernetes.traffic.routing import ClusterRouter

SERIES_LABEL = LABEL_REVISION.replace(".", "_").replace("/", "_")
"""What Prometheus makes of the pods' label: monitors copy it to every series."""


class Kubernetes(Target):
    """Serve in a cluster: per revision a Deployment, in front of them what the option `router` names."""

    api_version: ClassVar[int] = 1
    options_model: ClassVar[type[TargetOptions]] = KubernetesOptions
    capabilities: ClassVar[frozenset[Capability]] = frozenset(Capability) - {Capability.ACCESS_LOG}
    options: KubernetesOptions

    # -- what it is made of ---------------------------------------------------------------------------------

    def __init__(self, options: KubernetesOptions, ctx: ReleaseContext) -> None:
        super().__init__(with_store(options, ctx.store), ctx)

    @cached_property
    def place(self) -> Place:
        """The app and its cluster, which is not asked before something of it is needed."""
        cluster = opened(self.options, self.ctx.base, self.ctx.log)
        return Place(
            cluster, app_of(self.options, self.ctx.pipeline, self.ctx.environment, cluster.namespace)
        )

    @cached_property
    def lease(self) -> ClusterLease:
        """Who may act."""
        return ClusterLease(self.place, self.ctx.now, routes=lambda: live(self.router))

    @cached_property
    def router(self) -> TrafficRouter:
        """What divides requests."""
        ctx = RouterContext(
            name=self.place.app.name,
            access=self.place,
            guard=self.lease.check,
            log=self.ctx.log,
            now=self.ctx.now,
        )
        return open_router(self.options.router, ctx)

    @property
    def observer(self) -> Observer:
        """What looks."""
        return Observer(self.place, self.router, self.lease)

    @property
    def acts(self) -> Acts:
        """What acts."""
        plans = self._plans(self.place.app)
        return Acts(self.observer, plans, self.shadowing, self.ctx.now, self.ctx.log)

    @cached_property
    def shadowing(self) -> Shadowing:
        """What compares answers to copies of requests."""
        return Shadowing(self.place, self._comparisons, self.ctx.log)

    @property
    def _comparisons(self) -> Path:
        name = "-".join(filter(None, (self.ctx.pipeline, self.ctx.environment)))
        return (self.ctx.target_dir / "comparisons" / name).absolute()

    @cached_property
    def preflighter(self) -> Preflighter:
        """What asks golden samples."""
        folder = self.ctx.target_dir / "preflight" / self.ctx.pipeline
        return LocalPreflight(folder.absolute(), self.ctx.pipeline, self.ctx.now, self.ctx.log)

    def _plans(self, app: App) -> Plans:
        return Plans(self.options, app, self.ctx.base)

    # -- before a release -----------------------------------------------------------------------------------

    @classmethod
    def offers(cls, options: Any) -> frozenset[Capability]:
        """Return what its router does; copies only where something compares them, a watchdog where one is wanted."""
        router, router_options = router_class(options.router)
        offers: Callable[[Any], frozenset[Capability]] | None = getattr(router, "offers", None)
        found = offers(router_options) if offers is not None else router.capabilities
        if options.comparator is None:
            found -= {Capability.MIRROR}  # a proxy throws away the answers to copies
        return found | ({Capability.WATCHDOG} if options.watchdog is not None else set())

    @classmethod
    def refuses(cls, options: KubernetesOptions, traffic: Traffic) -> str | None:
        """Ask the router."""
        router, router_options = router_class(options.router)
        return router.refuses(traffic, router_options) if issubclass(router, ClusterRouter) else None

    @classmethod
    def check(cls, options: KubernetesOptions, ctx: CheckContext) -> None:
        """Look at everything that a release needs; see :mod:`shipctl_plugins._kubernetes.checks`."""
        checks.check(options, ctx)

    def records(self) -> RecordStore:
        """Return the ConfigMap of this stage's releases."""
        return ConfigMapRecords(lambda: self.place, self.ctx.stage)

    def preview(self, candidate: str, strategy: Strategy | None = None) -> Sequence[str]:
        """Say what serves, what would be changed, and what becomes of weights."""
        uri = base_uri(self.options, self.ctx.store)
        return telling.preview(self.observer, self._plans(self.place.app), candidate, uri, strategy)

    def diff(self, candidate: Candidate, strategy: Strategy | None = None) -> Sequence[str]:
        """Return a unified diff of the live objects against a dry run of what would be applied."""
        return differences.unified(
            self.place,
            telling.manifests_live(self.observer, self._plans(self.place.app), self._entry(candidate)),
        )

    def manifests(self, candidate: Candidate, strategy: Strategy | None = None) -> dict[str, str]:
        """Return a file per object; the namespace is the options', or `default`. Routes are as after a promotion."""
        app = app_of(self.options, self.ctx.pipeline, self.ctx.environment)
        plans = self._plans(app)
        entry = plans.entry(candidate, self.ctx.store, 0.0)
        return files_of(
            [
                *plans.shared(),
                *plans.revision(entry, entry.replicas),
                plans.door(),
                *self._routes(app, entry.revision),
            ]
        )

    def rights(self) -> dict[str, str]:
        """Return the Role of who runs shipctl for this app."""
        app = app_of(self.options, self.ctx.pipeline, self.ctx.environment)
        return files_of(operator_role(self.options, app, base=self.ctx.base))

    def _routes(self, app: App, revision: str) -> list[dict[str, Any]]:
        place = Place(None, app)  # type: ignore[arg-type]  # nothing is asked while manifests are made
        router = open_router(self.options.router, RouterContext(name=app.name, access=place))
        if not isinstance(router, ClusterRouter):
            return []
        backends = {revision: (Backend(name=app.of(revision), http="", grpc=""),)}
        return router.manifests(Traffic.only(revision), backends)

    # -- a release ------------------------------------------------------------------------------------------

    def acquire(self, holder: str) -> int:
        """Take or renew the lease. Who takes it over makes sure first that nobody from before can still write."""
        epoch = self.lease.acquire(holder, LEASE_SECONDS)
        if epoch != self._fenced:
            fence(self.place, self.router, epoch)
            self._fenced = epoch
        return epoch

    _fenced: int = -1

    def release(self, epoch: int) -> None:
        """Give the lease back."""
        self.lease.release(epoch)

    def observe(self, candidate: str | None = None) -> Observation:
        """Look at Deployments, pods, the state, the lease and the router; a state that is gone is written again."""
        look = self.observer.look()
        if look.recalled:
            self._remember_again(look)
        seen = look.observation
        if self.options.comparator is not None and seen.traffic.mirror is not None:
            ours = self.lease.kept(self._fenced) if self._fenced > 0 else nullcontext()
            with ours:  # a pod that cannot be reached takes the API server its time
                self.shadowing.follow(seen.traffic, seen.stable)
        return seen

    def _remember_again(self, look: Look) -> None:
        """Write the state again that somebody has deleted, if the lease is ours; who only looks writes nothing."""
        try:
            self.lease.check(self._fenced)
        except StageError:
            return
        self.acts.remember_again(look, self._fenced)

    def apply(self, action: Action, candidate: Candidate | None, epoch: int) -> Applied:
        """Do one act; see :class:`shipctl_plugins._kubernetes.acts.Acts`."""
        self.lease.check(epoch)
        match action:
            case Prepare():
                wanted = _needed(candidate)
                entry = self._entry(wanted)
                for line in left_by(self.place, load(self.place)[0].router, self.options.router):
                    self.ctx.log(line)  # after that nobody remembers which router was before
                return Applied(
                    message=self.acts.prepare(
                        entry, action.surge, epoch, lambda: self._publish(wanted, epoch)
                    )
                )
            case Preflight():
                timeout = float(self.options.preflight_timeout)
                with self.lease.kept(epoch):
                    message, verdicts = self.preflighter(_needed(candidate), self.options.golden, timeout)
                return Applied(message=message, verdicts=verdicts)
            case Shift():
                return Applied(message=self.acts.shift(action.traffic, action.surge, epoch))
            case Commit():
                ours = action.revision == self.ctx.revision
                said = self.acts.commit(action.expected, action.revision, epoch, ours=ours)
                if ours:
                    self._prune_routes(epoch)
                return Applied(message=said)
            case ScaleDown():
                if load(self.place)[0].stable == self.ctx.revision:  # before their destinations are gone
                    self._prune_routes(epoch)
                return Applied(message=self.acts.scale_down(action.revision, epoch, ours=self.ctx.revision))

    def _prune_routes(self, epoch: int) -> None:
        """Have no routes of a router that the spec does not name any more. The promotion stands, come what may."""
        if not isinstance(self.router, ClusterRouter):
            return  # its objects are not known
        try:
            self.lease.check(epoch)
            rendered = map(
                objects.reference, self._plans(self.place.app).shared()
            )  # a folder of templates has any
            lines = objects.prune_routes(self.place, [*rendered, *(way.ref for way in self.router.ways)])
        except StaleEpochError:
            raise
        except ShipctlError as exc:
            lines = [f"routes of a router of before may be left: {exc}"]
        for line in lines:
            self.ctx.log(line)

    def _entry(self, candidate: Candidate) -> Any:
        return self._plans(self.place.app).entry(candidate, self.ctx.store, self.ctx.now())

    def _publish(self, candidate: Candidate, epoch: int) -> str:
        """Have the candidate's repository where the cluster's servers read it."""
        from shipctl.engine.project import Project
        from shipctl.store.depot import open_depot
        from shipctl.store.local import LocalStore

        local = LocalStore(Project(self.ctx.project).store)
        with self.lease.kept(epoch), open_depot(self.ctx.store, self.ctx.base, local) as depot:
            sent = lay_out(depot, candidate.repository)
            where = depot.objects.uri
        self.lease.check(epoch)
        return (
            f"{sent.sent} files of {candidate.repository.model} laid out in {where}"
            if sent.sent
            else f"it lies in {where}"
        )

    def shift_seconds(self) -> float:
        """Return how long the router may take to be in effect."""
        return float(getattr(self.router, "settle", 5.0))

    # -- what serves ----------------------------------------------------------------------------------------

    def endpoints(self) -> dict[str, str]:
        """Return `http` and `grpc` of the door, and `metrics/<revision>/<pod>` where pods can be reached."""
        return telling.endpoints(self.observer)

    def status(self) -> Sequence[Serving]:
        """Return what is stable, and what a release has put beside it."""
        return telling.status(self.observer)

    def down(self) -> Sequence[str]:
        """Delete everything that carries this app's labels: what brings requests first, who may act last.

        The lease is taken first, unless this very object has it: nobody writes what was deleted once more.

        :raises LockedError: if another process acts on it, such as one that drives a release
        """
        lines = taken_away(self.place, self.lease, objects.EVERYTHING, self.ctx.log, self._leave)
        self._fenced = -1
        return lines

    def _leave(self) -> list[str]:
        """Have the router remove what it has made."""
        down: Callable[[], list[str]] | None = getattr(self.router, "down", None)
        return down() if down is not None else []

    def versions(self) -> dict[str, str]:
        """Return revision to Triton's version number in its repository."""
        return {name: str(entry.number) for name, entry in load(self.place)[0].entries.items()}

    def metric_labels(self) -> dict[str, dict[str, str]]:
        """Return revision to the label that tells its series from another's: all have the same version number."""
        return {name: {SERIES_LABEL: short(name)} for name in load(self.place)[0].entries}

    @property
    def logs(self) -> Path | None:
        """Where comparisons are kept that were read from the cluster; None where nothing compares."""
        return self._comparisons if self.options.comparator is not None else None

    def replay(self, candidate: Candidate, rate: float | None) -> None:
        """Say that nothing is replayed: the door is in the cluster, and this machine is not."""
        if rate is not None and not self._said_no_replay:
            self._said_no_replay = True
            self.ctx.log(
                "target kubernetes sends no golden samples through the door; have a Job in the cluster do that"
            )

    _said_no_replay: bool = False


def _needed(candidate: Candidate | None) -> Candidate:
    if candidate is None:
        message = "there is nothing to release"
        raise StageError(message)
    return candidate
