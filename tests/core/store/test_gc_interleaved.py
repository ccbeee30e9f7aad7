"""Publications, collections, releases and time itself in any order, each broken off anywhere: no byte is ever lost.

Every process stops before each of its requests, and the machine decides who goes on, who is killed, and how much time
goes by. Two things it must not do, because no protocol over such a store can stand them: let the lifetime of a lock go
by between a collection's look at its lock and the request that it then sends, and let a day go by between the
manifest of a publication and its registration.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from shipctl.errors import ShipctlError
from shipctl.records import canonical_json
from shipctl.signature import Signature
from shipctl.stages.artifacts import FileEntry, ModelPackage
from shipctl.store import gc, leases, model_reading, roots
from shipctl.store.depot import Depot, blob_key, manifest_key, result_key
from shipctl.store.gc import DAY, MONTH, collect
from shipctl.store.leases import LIFETIME
from shipctl.store.local import LocalStore, Result
from shipctl.store.models import ModelRegistry
from shipctl.store.objects import ObjectStore
from support_store import Killed, MemoryStore, Process, Shelf, put

TENSOR = {"name": "x", "dtype": "float32", "shape": ["batch", 4]}
SIGNATURE = Signature.model_validate({"inputs": [TENSOR], "outputs": [{**TENSOR, "name": "y"}]})
CONTENTS = (b"a", b"bb", b"ccc", b"dddd", b"eeeee")
CHOSEN = st.sets(st.integers(0, len(CONTENTS) - 1), min_size=1, max_size=2)
VERSIONS = st.sampled_from([f"1.{number}.0" for number in range(6)])
MOMENTS = (
    ("list", "results/"),
    ("list", "blobs/"),
    ("delete", "blobs/"),
    ("write", "manifests/"),
    ("read", "gc/"),
)
"""Requests before which it is worth to stop."""
WORKING = 3
"""Processes at a time."""


class Work:
    """A process and what it is for."""

    def __init__(
        self, kind: str, shelf: Shelf, work: Callable[[ObjectStore], object], subject: Any = None
    ) -> None:
        self.kind = kind
        self.subject = subject
        self.process = Process(shelf, work)


class Machine(RuleBasedStateMachine):
    """One store, and everybody who uses it."""

    local: ClassVar[LocalStore]
    files: ClassVar[list[FileEntry]]
    missing: ClassVar[list[Callable[[pytest.MonkeyPatch], None]]] = []
    """What takes safeguards out, to see that they are missed."""

    def __init__(self) -> None:
        super().__init__()
        self.shelf = Shelf()
        self.objects = MemoryStore(self.shelf)
        self.working: list[Work] = []
        self.marks: list[leases._Mark] = []
        self.packages: dict[str, set[str]] = {}
        """Digest to the keys that it consists of."""
        self.deployed: dict[str, str] = {}
        self.shared: set[tuple[FileEntry, ...]] = set()
        self.known: tuple[int, dict[str, tuple[str, float | None]]] = (0, {})
        self.old: set[int] = set()
        """Contents that were published last without being referred to."""
        self.serial = 0
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(leases, "elapsed", lambda: self.shelf.now)
        self.patch.setattr(leases, "pause", self.pause)
        self.patch.setattr(leases, "_renew", lambda *_: None)
        self.patch.setattr(gc, "_READERS", 1)
        self.patch.setattr(model_reading, "READERS", 1)
        begin = leases._Mark.__init__

        def remember(mark: leases._Mark, *arguments: Any) -> None:
            begin(mark, *arguments)
            self.marks.append(mark)

        self.patch.setattr(leases._Mark, "__init__", remember)
        for safeguard in self.missing:
            safeguard(self.patch)

    def pause(self, seconds: float) -> None:
        if getattr(Process.current, "process", None) is not None:
            Process.pause(seconds)
        else:
            self.shelf.now += LIFETIME

    def teardown(self) -> None:
        try:
            self.come_to_rest()
        finally:
            for work in self.working:
                work.process.kill()
            self.patch.undo()

    # -- who uses the store --------------------------------------------------------------------------------

    def begin(self, kind: str, work: Callable[[ObjectStore], object], subject: Any = None) -> None:
        self.working.append(Work(kind, self.shelf, work, subject))

    def package(self, version: str, chosen: set[int]) -> ModelPackage:
        files = tuple(self.files[index] for index in sorted(chosen))
        made = ModelPackage(name="digits", version=version, model="0" * 64, signature=SIGNATURE, files=files)
        self.packages[made.digest] = {manifest_key(made.digest), *(blob_key(entry.sha256) for entry in files)}
        return made

    @precondition(lambda self: not self.working)
    @rule(version=VERSIONS, chosen=CHOSEN)
    def something_old_is_there(self, version: str, chosen: set[int]) -> None:
        Depot(self.objects, self.local, jobs=1).publish(self.package(version, chosen))
        self.old = chosen
        self.shelf.now += 2 * DAY

    def registry(self, objects: ObjectStore) -> ModelRegistry:
        return ModelRegistry(objects, now=lambda: self.shelf.now)

    @precondition(lambda self: len(self.working) < WORKING)
    @rule(
        version=VERSIONS,
        chosen=CHOSEN,
        register=st.booleans(),
        outer=st.booleans(),
        old=st.booleans(),
    )
    def publish(self, version: str, chosen: set[int], register: bool, outer: bool, old: bool) -> None:
        package = self.package(version, chosen | self.old if old else chosen)

        def work(objects: ObjectStore) -> None:
            depot = Depot(objects, self.local, jobs=1)
            if outer:
                with depot.leased(package.files, manifests=[package.digest]):
                    depot.publish(package)
                    if register:
                        self.registry(objects).register(package, lineage={})
            else:
                depot.publish(package)
                if register:
                    self.registry(objects).register(package, lineage={})

        self.begin("publisher", work, package)

    def result(self, files: tuple[FileEntry, ...]) -> Result:
        output = {"kind": "dataset", "role": "x", "files": [entry.model_dump() for entry in files]}
        fingerprint = files[0].sha256[:32] + files[-1].sha256[:32]
        return Result(fingerprint=fingerprint, uses="x", outputs={"data": output}, created=0.0, seconds=0.0)

    @precondition(lambda self: len(self.working) < WORKING)
    @rule()
    def collect(self) -> None:
        self.begin("collector", collect)

    # -- what goes on --------------------------------------------------------------------------------------

    @precondition(lambda self: self.working)
    @rule(index=st.integers(0, WORKING - 1), steps=st.integers(1, 8))
    def go_on(self, index: int, steps: int) -> None:
        work = self.working[index % len(self.working)]
        for _ in range(steps):
            work.process.step()
        self.look_at(work)

    @precondition(lambda self: self.working)
    @rule(index=st.integers(0, WORKING - 1), op=st.sampled_from(MOMENTS))
    def go_to(self, index: int, op: tuple[str, str]) -> None:
        work = self.working[index % len(self.working)]
        for _ in range(60):
            if work.process.pending[0] == op[0] and work.process.pending[1].startswith(op[1]):
                break
            work.process.step()
        self.look_at(work)

    @precondition(lambda self: self.working)
    @rule(index=st.integers(0, WORKING - 1))
    def go_to_the_end(self, index: int) -> None:
        work = self.working[index % len(self.working)]
        for _ in range(60):
            work.process.step()
        self.look_at(work)

    @precondition(lambda self: self.working)
    @rule(index=st.integers(0, WORKING - 1))
    def kill(self, index: int) -> None:
        work = self.working.pop(index % len(self.working))
        work.process.kill()

    def look_at(self, work: Work) -> None:
        if not work.process.done:
            return
        self.working.remove(work)
        error = work.process.error
        if error is not None and not isinstance(error, (ShipctlError, Killed)):
            raise error
        if error is not None:
            text = str(error)
            assert "nothing was deleted from" not in text, text
            return
        if work.kind == "deployer" and work.process.result:
            key, digest = work.subject
            self.deployed[key] = digest
        if work.kind == "sharer":
            self.shared.add(work.subject)

    @rule(seconds=st.sampled_from([1, 200, LIFETIME / 2, LIFETIME + 1, DAY / 2, 2 * DAY, 2 * DAY, 40 * DAY]))
    def time_goes_by(self, seconds: float) -> None:
        for work in self.working:
            op, key = work.process.pending
            if work.kind == "collector" and op == "delete" and not key.startswith(("leases/", "gc/")):
                return
            written = [
                at
                for (done, key), at in zip(work.process.history, work.process.times, strict=True)
                if done == "write" and key.startswith("manifests/")
            ]
            if work.kind == "publisher" and written and self.shelf.now + seconds - written[-1] > DAY * 0.9:
                return
        self.shelf.now += seconds

    # -- what people do ------------------------------------------------------------------------------------

    def versions(self) -> dict[str, tuple[str, float | None]]:
        """Return digest and time of retirement of all registered versions."""
        count = len(self.shelf.keys("registry/"))
        if self.known[0] != count:
            states = self.registry(self.objects).states()
            found = {v: (s.digest, s.retired) for state in states.values() for v, s in state.versions.items()}
            self.known = (count, found)
        return self.known[1]

    # -- what must hold ------------------------------------------------------------------------------------

    def needed(self) -> set[str]:
        """Return the keys that have to be there now."""
        live = [
            digest
            for digest, retired in self.versions().values()
            if retired is None or self.shelf.now - retired < MONTH
        ]
        return set().union(*(self.packages[digest] for digest in (*live, *self.deployed.values())))

    @invariant()
    def nothing_is_lost(self) -> None:
        missing = self.needed() - set(self.shelf.objects)
        assert not missing, f"lost: {missing}"
        for files in self.shared:
            found = self.shelf.objects.get(result_key(self.result(files).fingerprint))
            if found is not None and self.shelf.now - found[1] < MONTH:
                gone = {blob_key(entry.sha256) for entry in files} - set(self.shelf.objects)
                assert not gone, f"a result has lost {gone}"

    def come_to_rest(self) -> None:
        """Everybody dies, much time goes by, and two collections leave exactly what is needed."""
        self.nothing_is_lost()
        for work in self.working:
            work.process.kill()
        self.shelf.now += 400 * DAY
        self.deployed = {}
        self.objects.delete(self.shelf.keys("deployments/"))
        for _ in range(2):
            collect(self.objects)
        kept = {
            key
            for key in self.shelf.objects
            if key.startswith(("blobs/", "manifests/", "results/", "leases/"))
        }
        assert kept == self.needed(), "something stays for ever"
        assert leases.LOCK not in self.shelf.objects


class Everything(Machine):
    """The same with all else that people do."""

    @precondition(lambda self: len(self.working) < WORKING)
    @rule(chosen=CHOSEN)
    def share(self, chosen: set[int]) -> None:
        files = tuple(self.files[index] for index in sorted(chosen))
        self.begin(
            "sharer", lambda objects: Depot(objects, self.local, jobs=1).share(self.result(files)), files
        )

    @precondition(lambda self: len(self.working) < WORKING)
    @rule(version=VERSIONS, chosen=CHOSEN)
    def deploy(self, version: str, chosen: set[int]) -> None:
        package = self.package(version, chosen)
        self.serial += 1
        key = f"deployments/{self.serial}.json"
        body = {
            **dict.fromkeys(("pipeline", "stage", "target", "host"), "x"),
            "serving": [package.digest],
            "manifests": [package.digest],
            "files": [entry.sha256 for entry in package.files],
        }

        def work(objects: ObjectStore) -> bool:
            depot = Depot(objects, self.local, jobs=1)
            with depot.leased(package.files, manifests=[package.digest]) as lease:
                if depot.manifest(package.digest) is None:
                    return False
                depot.push(package.files)
                objects.write(key, canonical_json(body))
                return lease.holds

        self.begin("deployer", work, (key, package.digest))

    @rule()
    def leases_are_renewed(self) -> None:
        stores = [work.process.store for work in self.working]
        for mark in self.marks:
            if mark.objects in stores and mark.key.startswith("leases/") and mark.key in self.shelf.objects:
                mark.renew()

    @rule(version=VERSIONS, alias=st.sampled_from(["staging", "production"]))
    def alias(self, version: str, alias: str) -> None:
        if version in self.versions() and self.versions()[version][1] is None:
            self.registry(self.objects).alias(f"digits@{version}", alias)

    @rule(version=VERSIONS)
    def retire(self, version: str) -> None:
        if version in self.versions():
            self.registry(self.objects).retire(f"digits@{version}", force=True, reason="test")

    @precondition(lambda self: self.deployed)
    @rule()
    def stop(self) -> None:
        key = min(self.deployed)
        del self.deployed[key]
        self.objects.delete([key])


@pytest.fixture(autouse=True, scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What everybody publishes."""
    Machine.local = LocalStore(tmp_path_factory.mktemp("local"))
    Machine.files = [put(Machine.local, data, f"{data[:1].decode()}.bin") for data in CONTENTS]


ALL = settings(
    max_examples=40,
    stateful_step_count=40,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
    print_blob=False,
)


def test_nothing_is_ever_lost() -> None:
    run_state_machine_as_test(Everything, settings=ALL)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_nothing_is_ever_lost_in_many_more_orders() -> None:
    run_state_machine_as_test(Everything, settings=settings(ALL, max_examples=100, stateful_step_count=60))


def _no_leases(patch: pytest.MonkeyPatch) -> None:
    look = roots._add_leases

    def count_only(found: roots.Roots, objects: ObjectStore, now: float) -> None:
        seen = roots.Roots()
        look(seen, objects, now)
        found.expired = seen.expired

    patch.setattr(roots, "_add_leases", count_only)


def _no_waiting(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(leases, "_wait_for_collection", lambda *_: None)


def _publisher_first(machine: Machine) -> None:
    """A publisher that has found its bytes there meets a whole collection."""
    machine.publish(version="1.1.0", chosen={0}, register=True, outer=False, old=False)
    machine.go_to(0, ("write", "manifests/"))
    machine.collect()
    machine.go_to_the_end(1)


def _collector_first(machine: Machine) -> None:
    """A collection that has looked at the leases meets a publisher."""
    machine.collect()
    machine.go_to(0, ("delete", "blobs/"))
    machine.publish(version="1.1.0", chosen={0}, register=True, outer=False, old=False)
    machine.go_to(1, ("write", "manifests/"))
    machine.go_to_the_end(0)


@pytest.mark.parametrize("removed", [True, False], ids=["without it", "with it"])
@pytest.mark.parametrize(
    ("safeguard", "meeting"), [(_no_leases, _publisher_first), (_no_waiting, _collector_first)]
)
def test_both_sides_have_to_look(
    safeguard: Callable[[pytest.MonkeyPatch], None], meeting: Callable[[Machine], None], removed: bool
) -> None:
    machine = type("Met", (Machine,), {"missing": [safeguard] if removed else []})()
    try:
        machine.something_old_is_there(version="1.0.0", chosen={0})
        meeting(machine)
        while machine.working:
            machine.go_to_the_end(0)
        if removed:
            with pytest.raises(AssertionError, match=r"^lost: "):
                machine.nothing_is_lost()
        else:
            machine.nothing_is_lost()
            assert "1.1.0" in machine.versions()
    finally:
        for work in machine.working:
            work.process.kill()
        machine.patch.undo()
