"""What a release does to an app in a cluster. Every act looks first and does only what is missing.

What requests reach changes in :meth:`Acts.shift` alone, and what counts as stable in :meth:`Acts.commit`. A promotion
never changes a pod: it moves weights between Deployments that stay as they were made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from shipctl.errors import ShipctlError, StageError
from shipctl.release.router import Backend
from shipctl.release.surge import Surge
from shipctl.release.target import Capability, Observation, in_words
from shipctl.release.traffic import WHOLE, Traffic
from shipctl_plugins._kubernetes import objects
from shipctl_plugins._kubernetes import state as states
from shipctl_plugins._kubernetes.api.connection import Ref
from shipctl_plugins._kubernetes.app import LABEL_REVISION, App, Place
from shipctl_plugins._kubernetes.capacity import quota_problem
from shipctl_plugins._kubernetes.mending import Mender
from shipctl_plugins._kubernetes.observe import Look, Observer
from shipctl_plugins._kubernetes.plans import Plans
from shipctl_plugins._kubernetes.shadowing import NobodyError, Shadowing
from shipctl_plugins._kubernetes.state import RECALLED, Entry, ModelState
from shipctl_plugins._kubernetes.traffic.routing import ClusterRouter
from shipctl_plugins._kubernetes.traffic.scaling import Scaling, check_surge, rivals
from shipctl_plugins._kubernetes.traffic.ways import COMPARATOR

Object = dict[str, Any]


@dataclass(frozen=True)
class Acts:
    """The acts on one app; ``plans`` are the manifests of what is released."""

    observer: Observer
    plans: Plans
    shadowing: Shadowing
    now: Callable[[], float]
    log: Callable[[str], None]

    @property
    def place(self) -> Place:
        """The app, and where it is."""
        return self.observer.place

    @property
    def app(self) -> App:
        """What it is called."""
        return self.observer.place.app

    def scaling(self, epoch: int) -> Scaling:
        """Return what changes the numbers of its replicas, for whoever holds the lease of that epoch."""
        return Scaling(self.place, lambda: self.observer.lease.check(epoch))

    @property
    def mender(self) -> Mender:
        """What brings back what was deleted."""
        return Mender(self.observer, self.plans, self.log)

    def remember_again(self, look: Look, epoch: int) -> None:
        """Write down what a look has found where the state was gone.

        :raises StageError: if somebody else acts meanwhile
        """
        state = look.state.model_copy(update={"router": self.plans.options.router})
        self._save(state, look.version, epoch)
        stable = look.state.serving
        name = f"{stable.version} ({stable.revision[:12]})" if stable is not None else _short(state.stable)
        self.log(
            f"the ConfigMap {self.app.kept} was gone, and is written again: stable is {name}, as traffic says"
        )

    # -- prepare --------------------------------------------------------------------------------------------

    def prepare(self, entry: Entry, surge: Surge | None, epoch: int, publish: Callable[[], str]) -> str:
        """Start a candidate's replicas without any traffic; ``publish`` has its repository in the store before.

        :raises StageError: if the app serves another model, there is no room, or somebody else has changed what is ours
        """
        look = self.observer.look()
        self._one_model(look.state, entry)
        if surge is None and look.state.stable not in {None, entry.revision}:
            look = self.mender.mended(look, Traffic.only(look.state.stable), epoch, replaced=False)
        if surge is not None and rivals(look, entry.revision):
            weighs = Capability.WEIGHTS in type(self.observer.router).capabilities
            check_surge(entry, self.plans.options.router.uses, weighs=weighs)
        entry = _known(look.state, entry)
        scaling = self.scaling(epoch)
        count = scaling.begun_with(look, entry, surge)
        self._fits(self.plans.revision(entry, None)[0], count - look.group(entry.revision).counted)
        told = [] if entry.revision in look.deployments else [publish()]
        self._remember(look, entry, epoch)
        for manifest in self.plans.sooner():
            objects.apply(self.place, manifest, self.log)
        for manifest in self.plans.later():  # a conflict is better known now than with the promotion
            live = self.place.cluster.get(objects.reference(manifest))
            objects.apply(self.place, manifest, self.log, dry_run=live is not None)
        door = self.place.cluster.get(Ref("v1", "Service", self.app.name))
        objects.apply(self.place, self.plans.door(door), self.log)
        if surge is not None:
            scaling.make_room(look, entry, surge)
        self._start(look, entry, count, scaling)
        told.append(f"{entry.model} {entry.version}: {_counted(count)} of {self.app.of(entry.revision)}")
        return "; ".join(told)

    def _start(self, look: Look, entry: Entry, count: int, scaling: Scaling) -> None:
        """Have the revision's objects, with so many replicas; what is there as another spec made it is left so."""
        there = look.deployments.get(entry.revision)
        as_made = entry.rendered in {"", self.plans.rendered(entry)}
        if there is None or as_made:
            # with the number that it has: its scale belongs to whoever changed that last
            asked = look.group(entry.revision).asked if there is not None else count
            for manifest in self.plans.revision(entry, asked):
                made = objects.apply(self.place, manifest, self.log)
                there = made if manifest["kind"] == "Deployment" else there
        if there is not None:
            scaling.scale(there, count)

    def _one_model(self, state: ModelState, entry: Entry) -> None:
        stable = state.serving
        if stable is not None and stable.rendered != RECALLED and stable.model != entry.model:
            message = (
                f"{self.app.name} in {self.app.namespace} serves the model {stable.model}, and the candidate is "
                f"{entry.model}, which nobody who asks for the other would reach; `shipctl down` first, or set another "
                "`name` for the target"
            )
            raise StageError(message)

    def _remember(self, look: Look, entry: Entry, epoch: int) -> None:
        """Keep what is known of the candidate, and nothing any more of what was begun and has left no trace."""
        kept = {look.state.stable, look.state.previous, *look.deployments}
        entries = {name: known for name, known in look.state.entries.items() if name in kept}
        change = {
            "entries": {**entries, entry.revision: entry},
            "router": self.plans.options.router,
            "ports": (self.place.http_port, self.place.grpc_port),
        }
        state = look.state.model_copy(update=change)
        if state != look.state:
            self._save(state, look.version, epoch)

    def _save(self, state: ModelState, version: str, epoch: int) -> None:
        """Replace the state that was read before.

        Whoever was overtaken since he read it hears of it here; whoever is overtaken after this look at the lease has
        read a version that the other one has changed.
        """
        self.observer.lease.check(epoch)
        try:
            states.save(self.place, state, version, epoch)
        except StageError:
            self.observer.lease.check(epoch)
            raise

    def _fits(self, deployment: Object, more: int) -> None:
        problem = quota_problem(self.place.cluster, deployment, more)
        if problem is not None:
            message = (
                f"the candidate does not fit into {self.app.namespace}: {problem}; free some, raise the quota, or "
                "release with k8s-rolling, which replaces replicas a few at a time"
            )
            raise StageError(message)

    # -- shift ----------------------------------------------------------------------------------------------

    def shift(self, traffic: Traffic, surge: Surge | None, epoch: int) -> str:
        """Distribute the requests so; with ``surge`` one round of replacing replicas, which the traffic follows.

        Nothing is copied before the comparator answers, whose pod may take longer to start than the candidate's: that
        is said, and whoever asks again tries again.

        :raises StaleEpochError: if somebody else has taken over
        :raises StageError: if more would reach a revision that is not ready
        """
        look = self.mender.mended(self.observer.look(), traffic, epoch, replaced=surge is not None)
        goal = next((name for name, weight in traffic.weights.items() if weight == WHOLE), None)
        entry = look.state.entries.get(goal) if goal is not None else None
        scaling = self.scaling(epoch)
        if surge is not None and entry is not None and not scaling.has_replaced(look, entry):
            return scaling.replace(
                look, entry, surge, lambda ready: self._follow(look, traffic, ready, epoch)
            )
        self._admit(traffic, look.observation)
        if traffic.preview is not None:
            preview = self.plans.preview(traffic.preview)
            objects.apply(self.place, preview, self.log)
        backends = self._backends(look, traffic)
        try:
            backends |= self._comparator(traffic, epoch)
        except NobodyError as error:
            return f"nothing is copied yet: {error}"
        after = self.observer.router.set(traffic, backends, etag=look.routed.etag, epoch=epoch).traffic
        if traffic.preview is None:
            self.place.cluster.delete(Ref("v1", "Service", self.app.preview))
        return f"{self.app.name}: {in_words(after, look.observation.replicas)}"

    def _follow(self, look: Look, traffic: Traffic, ready: Mapping[str, int], epoch: int) -> None:
        """Have requests go where replicas are ready, and stay so.

        Nobody is named to fall back on, so this is never taken for what was asked for before all replicas are there.
        """
        router = self.observer.router
        traffic = traffic.model_copy(update={"fallback": None})
        if isinstance(router, ClusterRouter) and any(ready.values()):
            backends = {name: self.observer.backends(name) for name in look.deployments}
            router.follow(traffic, ready, backends, etag=look.routed.etag, epoch=epoch)

    def _backends(self, look: Look, traffic: Traffic) -> dict[str, tuple[Backend, ...]]:
        return {
            name: self.observer.backends(name)
            for name in traffic.revisions
            if name in look.deployments or name in {look.state.stable, look.state.previous}
        }

    def _comparator(self, traffic: Traffic, epoch: int) -> dict[str, tuple[Backend, ...]]:
        """Return who gets copies, after telling it what to compare; empty if nothing is copied."""
        if traffic.mirror is None or traffic.fallback is None:
            return {}
        with self.observer.lease.kept(epoch):  # a pod that cannot be reached takes the API server its time
            self.shadowing.turn_to(traffic.fallback, traffic.mirror.candidate)
        return {COMPARATOR: (self.shadowing.backend,)}

    def _admit(self, traffic: Traffic, seen: Observation) -> None:
        """Refuse to let more requests reach a revision that is not ready.

        The way back is never refused: what is stable, or was just before, is what the cluster starts again.
        """
        for revision in sorted(traffic.revisions - {seen.stable, seen.previous}):
            more = traffic.weight(revision) > seen.traffic.weight(revision)
            fresh = revision not in seen.traffic.revisions
            if not (more or fresh) or seen.ready(revision):
                continue
            replicas = seen.replicas.get(revision)
            state = f"{replicas.ready} of {replicas.wanted} replicas are" if replicas else "no replica is"
            why = f" ({replicas.problem})" if replicas and replicas.problem else ""
            message = f"revision {revision[:12]} gets no requests: {state} ready{why}"
            raise StageError(message)

    # -- commit ---------------------------------------------------------------------------------------------

    def commit(self, expected: str | None, revision: str | None, epoch: int, *, ours: bool) -> str:
        """Make ``revision`` the stable one if ``expected`` is. The one compare-and-swap of a promotion.

        ``ours`` says whether the spec of now is that revision's: then what it shares with others becomes as it says.

        :raises StageError: if something else is stable by now
        """
        state, version = states.load(self.place)
        if state == ModelState():  # it may have been deleted
            look = self.observer.look()
            state, version = look.state, look.version
        if state.stable != revision:
            for name in (expected, revision):
                if name is not None and name not in {state.stable, *state.entries}:
                    message = f"revision {name[:12]} is not in {self.app.namespace}; run again"
                    raise StageError(message)
            if state.stable != expected:
                message = (
                    f"{self.app.name} was changed meanwhile: {_short(state.stable)} is stable where {_short(expected)} "
                    "was expected; run again"
                )
                raise StageError(message)
            previous = state.stable if revision is not None else None
            since = self.now() if revision is not None else None
            changed = {"stable": revision, "previous": previous, "committed": since}
            self._save(state.model_copy(update=changed), version, epoch)
        if revision is None:
            return f"no {self.app.name} is stable"
        lines = self._as_the_spec_says(accounts=False) if ours else []
        for line in lines:
            self.log(line)
        entry = state.entries.get(revision)
        name = f"{entry.model} {entry.version} ({revision[:12]})" if entry is not None else revision[:12]
        return f"{name} is stable"

    def _as_the_spec_says(self, *, accounts: bool) -> list[str]:
        """Have what revisions share be what the spec says. The promotion stands, whatever comes of this."""
        lines = []
        try:
            for manifest in self.plans.later():
                objects.apply(self.place, manifest, self.log)
            alive = self.observer.look().deployments
            lines = objects.prune(self.place, self.plans.shared(), alive, accounts=accounts)
        except ShipctlError as exc:
            lines.append(f"not everything is as the spec says: {exc}")
        return lines

    # -- scale down -----------------------------------------------------------------------------------------

    def scale_down(self, revision: str, epoch: int, *, ours: str) -> str:
        """Remove a revision that gets no requests: its Deployment, its Service, and what scales and protects it.

        ``ours`` is the revision that the spec of now describes. What the stable one gave up meanwhile, it gets back.

        :raises StageError: while it is stable, or requests can reach it
        """
        look = self.observer.look()
        entry = look.state.entries.get(revision)
        name = f"{entry.model} {entry.version}" if entry is not None else f"revision {revision[:12]}"
        if look.state.stable == revision:
            message = f"{name} is stable; its replicas are not stopped"
            raise StageError(message)
        if revision in look.routed.traffic.revisions:
            message = f"{name} can still get requests; its replicas are not stopped"
            raise StageError(message)
        if entry is None and revision not in look.deployments:
            return f"{name} has no replicas"
        self.observer.lease.check(epoch)
        mine = [
            each
            for each in objects.ours(self.place, objects.OF_REVISIONS)
            if _is_of(each, self.app, revision)
        ]
        objects.remove(self.place, mine)
        self._forget(look, revision, epoch)
        left = look.group(revision).asked
        lines = [
            f"{name}: {_counted(left)} stopped" if left else f"{name} is removed: its replicas were replaced"
        ]
        stable = look.state.serving
        if stable is not None:
            look = self.mender.mended(look, Traffic.only(stable.revision), epoch, replaced=False)
        if stable is not None and (back := self.scaling(epoch).restore(look, stable)):
            lines.append(back)
        if stable is not None and stable.revision == ours and set(look.deployments) <= {ours, revision}:
            lines += self._as_the_spec_says(accounts=True)
        return "; ".join(lines)

    def _forget(self, look: Look, revision: str, epoch: int) -> None:
        if revision not in look.state.entries:
            return
        entries = {name: entry for name, entry in look.state.entries.items() if name != revision}
        previous = None if look.state.previous == revision else look.state.previous
        state = look.state.model_copy(update={"entries": entries, "previous": previous})
        self._save(state, look.version, epoch)


def _known(state: ModelState, entry: Entry) -> Entry:
    """Return what is remembered of a candidate: its servers stay as they were made first."""
    known = state.entries.get(entry.revision, entry)
    return entry.model_copy(update={"rendered": RECALLED}) if known.rendered == RECALLED else known


def _is_of(found: Object, app: App, revision: str) -> bool:
    return objects.revision_label(found) == app.pods_of(revision)[LABEL_REVISION]


def _counted(replicas: int) -> str:
    return f"{replicas} replica{'' if replicas == 1 else 's'}"


def _short(revision: str | None) -> str:
    return "nothing" if revision is None else revision[:12]
