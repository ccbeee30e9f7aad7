"""One model of one pipeline on this machine: the acts of a release on its servers and its door.

Every act looks first and does only what is missing, so that it can be asked for again after a SIGKILL at any
point. What requests reach changes in :meth:`Deployment.shift` alone, and what counts as stable in
:meth:`Deployment.commit`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

from shipctl.errors import StageError
from shipctl.release.target import Candidate, Observation, in_words
from shipctl.release.traffic import Traffic
from shipctl.stages.verdicts import Verdict
from shipctl_plugins._envoy.config import COMPARATOR
from shipctl_plugins._envoy.proxy import DoorPorts
from shipctl_plugins._triton.comparator import Comparator
from shipctl_plugins._triton.deployed import Backends, Deployed
from shipctl_plugins._triton.golden import Tolerance, golden_question
from shipctl_plugins._triton.golden_load import GoldenLoad, Load
from shipctl_plugins._triton.preflight import blessing, run_preflight
from shipctl_plugins._triton.releases import ModelRecord, Published
from shipctl_plugins._triton.replicas import ReplicaSetRecord, replica_sets, stop_all
from shipctl_plugins._triton.single_server import leave_single_server

REPLAY_S = 10.0
"""How long an answer to a replayed sample is waited for."""
STARTS = 3
"""How often a candidate's replica is started before it counts as broken."""
MOVE_S = 90.0
"""How long replicas may take that replace the one server of shipctl 0.1."""
_POLL_S = 0.2


class Deployment(Deployed):
    """A pipeline's model, with what a release does to it."""

    _replay: GoldenLoad | None = None

    # -- keeping what serves --------------------------------------------------------------------------------

    def ensure_serving(self, epoch: int) -> None:
        """Have what is stable serve: after the machine was switched off, and after an upgrade from shipctl 0.1.

        While the door runs, its supervisor restarts what dies.

        :raises StageError: if it cannot be started
        """
        found = self.known()
        if found is None:
            return
        model, known = found
        self._revive(model, known)
        if known.stable is None:
            return
        if not known.behind_door:
            self._move_behind_door(model, known, epoch)
            return
        if self.door.running:
            return
        self.log(f"the door of {model} does not run; starting it and the replicas behind it")
        for number in (known.stable, known.previous):
            group = self.group(model, number) if number is not None else None
            record = group.record() if group else None
            if group is not None and record is not None:
                group.start(self.environment(), record, self.log)
            elif group is not None and number == known.stable:
                self._start(model, known.serving)
        self.door.ensure(self.ports, servers=self._kept(model))
        routed = self.door.get()
        backends = routed.backends | self._backends(known, model, routed.backends)
        backends |= self._comparing(known, model, routed.traffic)
        if routed.backends != backends:  # replicas listen elsewhere now
            self.door.set(routed.traffic, backends, etag=routed.etag, epoch=epoch)

    # -- the acts -------------------------------------------------------------------------------------------

    def prepare(self, candidate: Candidate) -> str:
        """Publish the candidate and start its replicas, which load for seconds after that.

        :raises StageError: if the model belongs to somebody else, or there is no room for it
        """
        model = candidate.repository.model
        found = self.known()
        if found is not None and found[0] != model and found[1].stable is not None:
            message = (
                f"the pipeline {self.pipeline} serves the model {found[0]} here, and the candidate is {model}, which "
                "nobody who asks for the other would reach; `shipctl down` first, or release it by another pipeline"
            )
            raise StageError(message)
        self.environment()
        entry = self.releases.publish(
            candidate.repository,
            revision=candidate.revision,
            version=candidate.version,
            pipeline=self.pipeline,
            now=self.now(),
        )
        group = self.group(model, entry.number)
        if not group.servers() and (problem := self.room(candidate.repository.size).problem):
            raise StageError(problem)
        started = self._start(model, entry)
        verb = f"{_counted(started)} starting" if started else f"{_counted(self.replicas)} running"
        return f"{model} {candidate.version} is published as version {entry.number}: {verb}"

    def preflight(
        self, candidate: Candidate, tolerance: Tolerance, timeout: float
    ) -> tuple[str, tuple[Verdict, ...]]:
        """Ask the candidate golden samples where nobody else reaches it; return a line for a person and the verdicts.

        :raises StageError: as :func:`run_preflight`
        """
        environment = self.environment()
        judgement = run_preflight(environment, self.releases, candidate, tolerance=tolerance, timeout=timeout)
        if judgement.passed:
            return f"preflight passed on {blessing(environment)}: {judgement.summary}", judgement.verdicts
        message = f"preflight of {candidate.repository.model} {candidate.version}: {judgement.summary}"
        return message, judgement.verdicts

    def shift(self, traffic: Traffic, epoch: int) -> str:
        """Distribute the requests so; the door is opened by the first that does.

        :raises StaleEpochError: if somebody else has taken over
        :raises StageError: if more would reach a revision that is not ready
        """
        self.lease.check(epoch)
        found = self.known()
        if found is None:
            message = f"the pipeline {self.pipeline} has nothing here that could get requests; run again"
            raise StageError(message)
        model, known = found
        seen = self.observe()
        self._admit(traffic, seen)
        self.door.ensure(self.ports, servers=self._kept(model))
        routed = self.door.get()
        backends = self._backends(known, model, traffic.revisions) | self._comparing(known, model, traffic)
        after = self.door.set(traffic, backends, etag=routed.etag, epoch=epoch)
        if traffic.mirror is None:
            self._comparator().stop()
        return f"{model}: {in_words(after.traffic, seen.replicas)}"

    def commit(self, expected: str | None, revision: str | None, epoch: int) -> str:
        """Make ``revision`` the stable one if ``expected`` is. The one compare-and-swap of a promotion.

        :raises StageError: if something else is stable by now
        """
        found = self.known()
        if found is None:
            message = f"the pipeline {self.pipeline} has nothing here that could be stable; run again"
            raise StageError(message)
        model, known = found
        for name in (expected, revision):
            if name is not None and known.by_revision(name) is None:
                message = f"revision {name[:12]} is not on this target; run again"
                raise StageError(message)
        number = known.number_of(revision)
        with self.lease.guard(epoch):
            self.releases.commit_stable(model, known.number_of(expected), number, self.now())
            if number is not None:
                self.releases.put_behind_door(model)
        self._keep(model)
        entry = known.by_number(number)
        return f"{model} {entry.version} (version {number}) is stable" if entry else f"no {model} is stable"

    def scale_down(self, revision: str, epoch: int) -> str:
        """Stop the replicas of a revision, and forget old releases. With nothing left, the door stops as well.

        :raises StageError: while it is stable, or requests can reach it
        """
        with self.lease.guard(epoch):
            found = self.known()
            entry = found[1].by_revision(revision) if found else None
            if found is None or entry is None:
                return f"revision {revision[:12]} has no replicas"
            model, known = found
            if known.stable == entry.number:
                message = f"{model} {entry.version} is stable; its replicas are not stopped"
                raise StageError(message)
            routed = self.routed()
            traffic = routed.traffic if routed else Traffic()
            if revision in traffic.revisions:
                message = f"{model} {entry.version} can still get requests; its replicas are not stopped"
                raise StageError(message)
            self.releases.forget_previous(model, entry.number)
            self._keep(model)
        count = self.group(model, entry.number).stop()
        self.releases.prune(model)
        line = f"{model} {entry.version} (version {entry.number}): {_counted(count)} stopped"
        if known.stable is None and not any(group.record() for group in replica_sets(self.releases, model)):
            self.door.stop()
        return line

    def down(self) -> list[str]:
        """Stop everything of this pipeline; what is published stays."""
        record = self.releases.record()
        models = {name: known for name, known in record.models.items() if known.pipeline == self.pipeline}
        stopped = [*self.door.stop(), *self._comparator().stop()] if models else []
        lines = [f"{what} was stopped" for what in stopped]
        for model, known in sorted(models.items()):
            groups = list(replica_sets(self.releases, model))
            for group, count in zip(groups, stop_all(groups), strict=True):
                if count:
                    entry = known.by_number(group.number)
                    version = entry.version if entry else "of an unknown version"
                    lines.append(f"{model} {version} (version {group.number}): {_counted(count)} stopped")
            if not known.behind_door and known.stable is not None:
                left = leave_single_server(self.releases, model)
                lines += [left] if left else []
            if known.stable is not None:
                self.releases.commit_stable(model, known.stable, None, self.now())
        return lines

    def replay(self, candidate: Candidate, rate: float | None) -> None:
        """Send golden samples through the door, ``rate`` requests per second, until we end; None stops that."""
        if rate is None or candidate.golden is None or not self.door.running:
            if self._replay is not None:
                self._replay.stop()
            self._replay = None
            return
        repository = candidate.repository
        question = golden_question(
            self.door.endpoints,
            model=repository.model,
            signature=repository.signature,
            max_batch_size=repository.max_batch_size,
            golden=candidate.golden.path,
            timeout=REPLAY_S,
        )
        load = Load(question=question, rate=rate)
        if self._replay is not None and self._replay.running and self._replay.load == load:
            return
        if self._replay is not None:
            self._replay.stop()
        self._replay = GoldenLoad(load)

    # -- helpers --------------------------------------------------------------------------------------------

    def _start(self, model: str, entry: Published | None) -> int:
        if entry is None:
            return 0
        record = ReplicaSetRecord(revision=entry.revision, version=entry.version, wanted=self.replicas)
        return self.group(model, entry.number).start(self.environment(), record, self.log)

    def _revive(self, model: str, known: ModelRecord) -> None:
        """Start the replicas of a candidate again that died while they started: somebody may have taken a port."""
        for group in replica_sets(self.releases, model):
            record = group.record()
            if record is None or group.number in {known.stable, known.previous} or group.lost:
                continue
            if len(group.servers()) < record.wanted and group.starts < STARTS:
                routed = self.routed()
                if routed is None or record.revision not in routed.traffic.revisions:
                    group.start(self.environment(), record, self.log)

    def _kept(self, model: str) -> list[Path]:
        """Return the folders of the replicas that are started again when they die: stable's and its predecessor's."""
        known = self.releases.model(model)
        numbers = (known.stable, known.previous) if known else ()
        return [
            place for number in numbers if number is not None for place in self.group(model, number).places()
        ]

    def _keep(self, model: str) -> None:
        if self.door.running:
            self.door.keep(self._kept(model))

    def _backends(self, known: ModelRecord, model: str, revisions: Iterable[str]) -> Backends:
        """Return the replicas of each of these revisions that has any."""
        numbers = {revision: known.number_of(revision) for revision in sorted(revisions)}
        found = {
            revision: self.group(model, number).backends()
            for revision, number in numbers.items()
            if number is not None
        }
        return {revision: backends for revision, backends in found.items() if backends}

    def _comparator(self) -> Comparator:
        return Comparator(self.door.folder, log=self.log)

    def _comparing(self, known: ModelRecord, model: str, traffic: Traffic) -> Backends:
        """Have what compares answers run where requests are copied, and return where it listens."""
        if traffic.mirror is None or traffic.fallback is None:
            return {}
        stable, candidate = traffic.fallback, traffic.mirror.candidate
        backends = self._backends(known, model, (stable, candidate))
        listens = self._comparator().ensure(
            backends.get(stable, ()),
            backends.get(candidate, ()),
            stable_revision=stable,
            candidate_revision=candidate,
        )
        return {COMPARATOR: (listens,)}

    def _admit(self, traffic: Traffic, seen: Observation) -> None:
        """Refuse to let more requests reach a revision that is not ready.

        The way back is never refused: what is stable, or was just before, is restarted when it dies.
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

    def _move_behind_door(self, model: str, known: ModelRecord, epoch: int) -> None:
        """Replace shipctl 0.1's server by replicas and a door at the same address; it is away for a moment."""
        entry = known.serving
        if entry is None:
            return
        self.log(f"{model} {entry.version} is served as shipctl 0.1 did; moving it behind a door")
        self._start(model, entry)
        group = self.group(model, entry.number)
        deadline = time.monotonic() + MOVE_S
        while not ((seen := group.look()) and seen.whole):
            problem = seen.problem if seen else "they have no record"
            if problem or time.monotonic() > deadline:
                why = problem or f"they are not ready after {MOVE_S:.0f} s"
                message = (
                    f"{model} {entry.version} cannot be moved behind a door, it goes on serving as it did: {why}; "
                    "`shipctl down`, then apply again, begins anew"
                )
                raise StageError(message)
            time.sleep(_POLL_S)
        http, grpc, _ = self.releases.record().ports
        others = [
            name for name, other in self.releases.record().models.items() if name != model and other.stable
        ]
        if line := leave_single_server(self.releases, model):
            self.log(line)
        as_before = self.ports if others else _filled(self.ports, http, grpc)
        try:
            self.door.ensure(as_before, servers=group.places())
        except StageError:
            if as_before == self.ports:
                raise
            self.door.ensure(self.ports, servers=group.places())
        routed = self.door.get()
        traffic = Traffic.only(entry.revision)
        backends = self._backends(known, model, traffic.revisions)
        self.door.set(traffic, backends, etag=routed.etag, epoch=epoch)
        self.releases.put_behind_door(model)


def _counted(replicas: int) -> str:
    return f"{replicas} replica{'' if replicas == 1 else 's'}"


def _filled(ports: DoorPorts, http: int, grpc: int) -> DoorPorts:
    return DoorPorts(http=ports.http or http, grpc=ports.grpc or grpc, admin=ports.admin)
