"""Goes on with releases until they are over, and rolls back what serves when an Alertmanager says so."""

from __future__ import annotations

import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from shipctl.engine.aborting import ask
from shipctl.engine.alerts import Alert, Listen, listening
from shipctl.engine.apply import RunResult
from shipctl.engine.graph import Node
from shipctl.engine.hooks import Hooks
from shipctl.engine.interrupts import interruptible
from shipctl.engine.operating import Act, release_of, releases_of, run_acts
from shipctl.engine.pipeline import Pipeline, prepare
from shipctl.engine.releases import Drive, Release
from shipctl.engine.standing_by import StandBy, behind_lock
from shipctl.engine.walk import NodeEnd
from shipctl.errors import LockedError, RolledBackError, RunInterruptedError, ShipctlError, SpecError
from shipctl.release.records import AbortWish, ReleaseRecord
from shipctl.spec.problems import near
from shipctl.stages.registry import Registry

LOOK = 2.0
"""Seconds between two looks whether a release was begun that nobody drives."""
AGAIN = 15.0
"""Seconds until something is tried again that did not work."""
SKEW = 60.0
"""Seconds by which the clocks of the machines may differ."""
_LONGEST = 600.0
"""Seconds between two tries at most; each is twice as long as the one before."""
_KEPT = 100
"""Runs that are told of at the end."""
_REMEMBERED = 1000
"""Alerts that are remembered so that they are told once."""


class Watched(NamedTuple):
    """How watching ended."""

    exit_code: int
    message: str
    runs: tuple[RunResult, ...]


def watch(
    spec: Path,
    *,
    hooks: Hooks,
    say: Callable[[str], None],
    stage: str | None = None,
    environment: str | None = None,
    overrides: Sequence[str] = (),
    context: str | None = None,
    lock_timeout: float = 0.0,
    listen: Listen | None = None,
    registry: Registry | None = None,
) -> Watched:
    """Go on with the releases that are under way until they are over; nothing else is planned or run.

    With ``listen``, alerts are heard from the beginning and after that: one that is about a release under way has it
    aborted, and one about what serves has that rolled back. ``say`` is told of them.

    :raises SpecError: if the spec is wrong, or releases nothing
    :raises LockedError: if another process drives what is under way
    """
    pipeline = prepare(spec, environment=environment, overrides=overrides, context=context, registry=registry)
    nodes = [node for node in releases_of(pipeline) if stage in {None, node.id, node.spec.id}]
    if not nodes:
        known = [node.id for node in releases_of(pipeline)]
        message = f"--stage {stage}: {pipeline.loaded.path.name} releases {', '.join(known)}{near(str(stage), known)}"
        raise SpecError(message)
    watcher = _Watcher(pipeline, nodes, hooks, say, f"shipctl watch {spec.name}", lock_timeout)
    if listen is not None:
        return watcher.listen(listen)
    result = watcher.go_on(watcher.under_way())
    if result is None:
        where = f" in {environment}" if environment else ""
        return Watched(0, f"no release of {pipeline.name} is under way{where}", ())
    return Watched(result.exit_code, result.message, (result,))


class _Watcher:
    """Watches the releases of one spec."""

    def __init__(
        self,
        pipeline: Pipeline,
        nodes: Sequence[Node],
        hooks: Hooks,
        say: Callable[[str], None],
        command: str,
        lock_timeout: float,
    ) -> None:
        self._pipeline = pipeline
        self._nodes = nodes
        self._hooks = hooks
        self._say = say
        self._command = command
        self._lock_timeout = lock_timeout
        self._runs: list[RunResult] = []
        self._wanted: dict[str, _Wanted] = {}
        self._later: dict[str, float] = {}
        self._said: dict[str, str] = {}
        self._tries: dict[str, int] = {}
        self._others = {
            node.id: StandBy(release_of(pipeline, node), lambda _: None, say, if_running="queue")
            for node in nodes
        }
        self._wake = threading.Event()

    def under_way(self) -> list[Node]:
        """Return the stages whose releases are under way."""
        return [node for node in self._nodes if self._record(node) is not None]

    def _record(self, node: Node) -> ReleaseRecord | None:
        return release_of(self._pipeline, node).under_way()

    def go_on(self, nodes: Sequence[Node]) -> RunResult | None:
        """Bring releases to their ends; None if there are none.

        :raises LockedError: if another process drives them
        """
        return self._run(nodes, lambda release, drive: release.go_on(drive)) if nodes else None

    def _run(self, nodes: Sequence[Node], act: Act) -> RunResult:
        with behind_lock(self._pipeline.project, self._command, self._lock_timeout, ()):
            result = run_acts(self._pipeline, nodes, self._hooks, self._command, act)
        self._runs = [*self._runs[-_KEPT:], result]
        return result

    # -- with an ear for alerts --------------------------------------------------------------------------------

    def listen(self, listen: Listen) -> Watched:
        """Go on with what is under way, and hear alerts until the time is over, or somebody wants it to end."""
        end = time.monotonic() + listen.seconds if listen.seconds is not None else None
        heard: queue.SimpleQueue[list[Alert] | None] = queue.SimpleQueue()
        ears = threading.Thread(target=self._consider_all, args=(heard,), name="considering")
        with interruptible() as asked:
            try:
                with listening(listen, heard.put) as url:
                    ears.start()
                    self._say(f"listening at {url} for alerts about {self._pipeline.name}")
                    return self._until(end, asked)
            except KeyboardInterrupt:
                return self._over()
            finally:
                heard.put(None)
                if ears.ident is not None:
                    ears.join()

    def _over(self) -> Watched:
        return Watched(0, "not listening any more", tuple(self._runs))

    def _until(self, end: float | None, asked: threading.Event) -> Watched:
        while not asked.is_set():
            result = self._next()
            bad = result is not None and result.exit_code != 0
            if result is not None and (
                result.exit_code == RunInterruptedError.exit_code or (bad and end is not None)
            ):
                return Watched(result.exit_code, result.message, tuple(self._runs))
            left = LOOK if end is None else end - time.monotonic()
            if left <= 0:
                return Watched(0, "the time is over, and no alert was about what serves", tuple(self._runs))
            if result is None:
                self._wake.wait(min(left, LOOK))
                self._wake.clear()
        return self._over()

    def _next(self) -> RunResult | None:
        """Do what is to be done now, and return how that went; None if there is nothing."""
        for node in self._nodes:
            if time.monotonic() < self._later.get(node.id, 0.0):
                continue
            try:
                result = self._do(node)
            except (ShipctlError, OSError) as exc:
                self._postpone(node, str(exc))
                continue
            if result is not None:
                if result.exit_code and (node.id in self._wanted or self._record(node) is not None):
                    self._postpone(node, result.message)
                else:
                    self._tries.pop(node.id, None)
                return result
        return None

    def _postpone(self, node: Node, why: str) -> None:
        tries = self._tries[node.id] = self._tries.get(node.id, -1) + 1
        self._later[node.id] = time.monotonic() + min(AGAIN * 2.0 ** min(tries, 10), _LONGEST)
        line = f"{node.id}: {why}; trying again"
        if line != self._said.get(node.id):
            self._say(line)
        self._said[node.id] = line

    def _do(self, node: Node) -> RunResult | None:
        wanted = self._wanted.get(node.id)
        record = self._record(node)
        if record is not None:
            return None if self._others[node.id].look() else self.go_on([node])
        if wanted is None:
            return None
        result = self._run([node], wanted.act)
        if (
            result.exit_code != LockedError.exit_code
        ):  # whatever came of it, the same alert asks for it only once
            self._wanted.pop(node.id)
        if result.exit_code:
            return result
        message = f"{wanted.why}: {result.message}"
        self._say(f"{node.id}: {message}")
        return result.model_copy(update={"exit_code": RolledBackError.exit_code, "message": message})

    # -- in a thread of its own --------------------------------------------------------------------------------

    def _consider_all(self, heard: queue.SimpleQueue[list[Alert] | None]) -> None:
        told: OrderedDict[object, None] = OrderedDict()
        releases = {node.id: release_of(self._pipeline, node) for node in self._nodes}
        while (alerts := heard.get()) is not None:
            for alert in alerts:
                try:
                    line = self._considered(alert, releases)
                except (ShipctlError, OSError) as exc:
                    line = f"alert {alert.name} is not acted on: {exc}"
                key = (alert.key, line)
                if line and key not in told:
                    self._say(line)
                told[key] = None
                if len(told) > _REMEMBERED:
                    told.popitem(last=False)
            self._wake.set()

    def _considered(self, alert: Alert, releases: dict[str, Release]) -> str:
        """Act on an alert, and say how."""
        name = f"alert {alert.name}"
        problem = _unclear(alert, self._pipeline)
        if problem is not None:
            return f"{name} {problem}; nothing is done"
        for node, release in releases.items():
            versions = {}
            with suppress(ShipctlError):
                versions = release.versions()
            record = release.under_way()
            if record is not None and record.intent == "apply" and _is_about(alert, record, versions):
                ask(release.store, AbortWish(number=record.number, reason=name))
                return f"{name} is about {record.version}, which is {record.phase}; aborting that"
            stable = release.records().stable
            if stable is not None and _is_about(alert, stable, versions):
                if node not in self._wanted:
                    self._wanted[node] = _Wanted(stable, alert)
                    self._later.pop(node, None)
                return f"{name} is about {stable.version}, which serves on {release.label}; rolling it back"
        what = alert.labels.get("revision") or alert.labels.get("version")
        return f"{name} is about {what}, which does not serve, or began before that was released; nothing is done"


class _Wanted:
    """A rollback that an alert asks for."""

    def __init__(self, record: ReleaseRecord, alert: Alert) -> None:
        self._record = record
        self._alert = alert
        self.why = f"alert {alert.name}"

    def act(self, release: Release, drive: Drive) -> NodeEnd:
        """Roll back, unless something else serves by now."""
        stable = release.records().stable
        if stable is None or stable.number != self._record.number:
            return NodeEnd("in-place", f"{self._record.version} does not serve any more")
        labels = {name: value for name, value in self._alert.labels.items() if name in _TOLD}
        subject = f"{release.pipeline.name}@{self._record.version}"
        drive.auditor.record("alert", subject, {"stage": release.stage_id, "target": release.label, **labels})
        drive.log(f"alert {self._alert.name}: rolling back {self._record.version}")
        return release.rollback(drive, None)


_TOLD = ("alertname", "severity", "version", "revision")
"""Labels that are kept in the audit log."""
_DIGITS = 12
"""Digits of a revision's digest that name it at least."""


def _unclear(alert: Alert, pipeline: Pipeline) -> str | None:
    """Say why an alert is no evidence against what this pipeline releases; None if it may be."""
    labels = alert.labels
    names = [labels[name] for name in ("pipeline", "model") if name in labels]
    if not names:
        return "names no pipeline and no model"
    if any(name != pipeline.name for name in names):
        return f"is about {' and '.join(dict.fromkeys(names))} and not about {pipeline.name}"
    if not {"version", "revision"} & labels.keys():
        return "names no version and no revision"
    environment = pipeline.loaded.environment
    if "environment" in labels and environment is not None and labels["environment"] != environment:
        return f"is about {labels['environment']} and not about {environment}"
    return None


def _is_about(alert: Alert, record: ReleaseRecord, versions: dict[str, str]) -> bool:
    """Whether an alert is about a release, and began after that had."""
    version, revision = alert.labels.get("version"), alert.labels.get("revision")
    known = {record.version, versions.get(record.revision)}
    if alert.starts < record.started - SKEW or (version is not None and version not in known):
        return False
    return revision is None or (len(revision) >= _DIGITS and record.revision.startswith(revision))
