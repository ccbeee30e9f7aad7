"""How a revision stands: what the repository says, together with who applies it."""

from __future__ import annotations

from pathlib import Path

from shipctl.release.delegated import Followed, Standing
from shipctl.stages.context import ReleaseContext
from shipctl.store.files import write_atomic
from shipctl_plugins._gitops.engines import ArgoCd, Deployments, Engine, Flux, Health, Live, Nobody
from shipctl_plugins._gitops.options import GitopsOptions
from shipctl_plugins._gitops.tree import Release
from shipctl_plugins._kubernetes.api.access import Access
from shipctl_plugins._kubernetes.api.connection import Cluster
from shipctl_plugins._kubernetes.api.opened import opened
from shipctl_plugins._kubernetes.app import App

WHOLE = 100
_FLUX = "kustomize.toolkit.fluxcd.io"


class Promoted:
    """Remembers, on this machine, what was once seen whole: a revision that stumbles later still is the stable one."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __contains__(self, release: Release) -> bool:
        try:
            return self._path.read_text(encoding="utf-8") == self._key(release)
        except OSError:
            return False

    def add(self, release: Release) -> None:
        """Remember the revision of this commit."""
        if release not in self:
            write_atomic(self._path, self._key(release).encode())

    @staticmethod
    def _key(release: Release) -> str:
        return f"{release.current} {release.changed!r}"


def engine_of(options: GitopsOptions, app: App, ctx: ReleaseContext) -> Engine:
    """Return who applies the repository.

    :raises UnavailableError: if there is no way to the cluster
    """
    wanted = options.engine
    if wanted.argocd is not None:
        return ArgoCd(_cluster(options, wanted.argocd.namespace, ctx), wanted.argocd)
    if wanted.flux is not None:
        cluster = _cluster(options, wanted.flux.namespace, ctx)
        version = "v1" if cluster.has(f"{_FLUX}/v1", "Kustomization") else "v1beta2"
        return Flux(cluster, wanted.flux, version)
    return Deployments(_cluster(options, app.namespace, ctx), app) if wanted.wait else Nobody()


def _cluster(options: GitopsOptions, namespace: str, ctx: ReleaseContext) -> Cluster:
    access = Access(
        kubeconfig=options.kubeconfig, context=options.context, namespace=namespace, timeout=options.timeout
    )
    return opened(access, ctx.base, ctx.log)


def followed(revision: str, release: Release, live: Live, promoted: Promoted) -> Followed:
    """Say how one revision stands, by what is committed and by what is live."""
    if release.current is None:
        standing = Standing.ABSENT if live.applied else Standing.PROGRESSING
        return Followed(standing=standing, message=live.message)
    standing, until = _standing(release, live)
    if standing is Standing.HEALTHY:
        promoted.add(release)
    # asked about something else, what stands there is what a release before this one has ended with
    ended = revision not in {release.current, release.stable}
    whole = standing is Standing.HEALTHY or release in promoted or ended
    stable = release.current if whole else release.stable
    if revision != release.current:
        return _other(revision, release, live, stable)
    return Followed(
        standing=standing,
        stable=stable,
        current=release.current,
        step=_step(release),
        until=until,
        weight=_weight(release, live),
        replicas=live.replicas,
        message=live.message,
        asks="promote" if standing is Standing.PAUSED and until is None else "",
    )


def _standing(release: Release, live: Live) -> tuple[Standing, float | None]:
    """Return how the newest revision stands, and until when it pauses."""
    if live.applied and live.health is Health.DEGRADED:
        return Standing.DEGRADED, None
    if not live.applied or live.health is Health.PROGRESSING:
        return Standing.PROGRESSING, None
    if release.serving != release.current:
        return Standing.PAUSED, None if release.asks else release.changed
    if len(release.entries) > 1:
        return Standing.PAUSED, release.changed + release.warm
    return Standing.HEALTHY, None


def _step(release: Release) -> int:
    if release.strategy == "rolling" or release.serving != release.current:
        return 0
    return 1 if len(release.entries) > 1 else 2


def _weight(release: Release, live: Live) -> int:
    """Return what the newest revision gets; 0 where that is not known."""
    if live.weight is not None:
        return live.weight
    settled = live.applied and live.health is Health.HEALTHY
    return WHOLE if settled and release.serving == release.current else 0


def _other(revision: str, release: Release, live: Live, stable: str | None) -> Followed:
    """Return how a revision stands that is not the newest one."""
    serves = release.serving == revision
    rest = WHOLE - live.weight if live.weight is not None else 0
    return Followed(
        standing=Standing.HEALTHY if serves else Standing.ABSENT,
        stable=stable,
        current=release.current,
        weight=WHOLE if serves and live.weight is None else rest,
        message=live.message,
    )
