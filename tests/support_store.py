"""A store in memory whose clock stands still, and processes that use it in turns, one request at a time."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from shipctl.errors import CorruptArtifactError, StoreError
from shipctl.spec.models import StoreSpec
from shipctl.stages.artifacts import FileEntry
from shipctl.store.local import LocalStore
from shipctl.store.objects import Moved, ObjectInfo, ObjectStore

Before = Callable[[str, str], None]
"""Called with the name of the method and the key before every request."""


class Shelf:
    """What several stores in memory share: the objects, and the time."""

    def __init__(self) -> None:
        self.objects: dict[str, tuple[bytes, float]] = {}
        self.now = 1e9
        self.lock = threading.RLock()
        self.begun: dict[str, float] = {}

    def keys(self, prefix: str = "") -> list[str]:
        return sorted(key for key in self.objects if key.startswith(prefix))


def _nothing(_op: str, _key: str) -> None:
    pass


class MemoryStore(ObjectStore):
    """An object store in memory."""

    def __init__(self, shelf: Shelf | None = None, before: Before = _nothing) -> None:
        super().__init__(StoreSpec(uri="memory://shelf"), Path())
        self.shelf = shelf or Shelf()
        self.before = before

    def stat(self, key: str) -> ObjectInfo | None:
        self.before("stat", key)
        with self.shelf.lock:
            found = self.shelf.objects.get(key)
        return None if found is None else ObjectInfo(key, len(found[0]), found[1])

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        self.before("list", prefix)
        with self.shelf.lock:
            found = [(key, self.shelf.objects[key]) for key in self.shelf.keys(prefix)]
        for key, (data, modified) in found:
            yield ObjectInfo(key, len(data), modified)

    def read(self, key: str) -> bytes | None:
        self.before("read", key)
        with self.shelf.lock:
            return self.shelf.objects.get(key, (None, 0.0))[0]

    def create(self, key: str, data: bytes) -> bool:
        self.before("create", key)
        with self.shelf.lock:
            if key in self.shelf.objects:
                return False
            self.shelf.objects[key] = (data, self.shelf.now)
        return True

    def write(self, key: str, data: bytes) -> None:
        self.before("write", key)
        with self.shelf.lock:
            self.shelf.objects[key] = (data, self.shelf.now)

    def upload(
        self, key: str, source: Path, *, sha256: str, size: int, moved: Moved = lambda _: None
    ) -> None:
        self.before("upload", key)
        data = source.read_bytes()
        if len(data) != size:
            raise StoreError(f"{source} changed")
        if hashlib.sha256(data).hexdigest() != sha256:
            raise CorruptArtifactError(f"{source} is damaged", sha256)
        with self.shelf.lock:
            self.shelf.objects[key] = (data, self.shelf.now)
        moved(size)

    def download(self, key: str, target: Path, *, size: int, moved: Moved = lambda _: None) -> None:
        self.before("download", key)
        data = self.shelf.objects.get(key, (None, 0.0))[0]
        if data is None or len(data) != size:
            raise StoreError(f"memory://shelf has no {key} of {size} bytes; publish it again")
        target.write_bytes(data)
        moved(size)

    def delete(self, keys: Iterable[str]) -> None:
        keys = list(keys)
        self.before("delete", keys[0] if keys else "")
        with self.shelf.lock:
            for key in keys:
                self.shelf.objects.pop(key, None)

    def unfinished(self, *, older_than: float) -> Iterator[str]:
        self.before("unfinished", "")
        yield from [name for name, begun in self.shelf.begun.items() if begun < older_than]

    def discard(self, name: str) -> None:
        self.before("discard", name)
        self.shelf.begun.pop(name, None)


def put(local: LocalStore, data: bytes, path: str = "model.onnx") -> FileEntry:
    """Put a file into the local store and return its entry."""
    source = local.root / "source"
    source.parent.mkdir(parents=True, exist_ok=True)
    source.write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    local.put(source, sha256=digest, move=True)
    return FileEntry(path=path, sha256=digest, size=len(data))


class Killed(BaseException):
    """Raised out of every request of a process from the moment at which it is killed."""


class Process:
    """A thread that stops before each of its requests until it is told to go on. Only one of all runs at a time."""

    current = threading.local()

    def __init__(self, shelf: Shelf, work: Callable[[ObjectStore], object]) -> None:
        self.store = MemoryStore(shelf, self._before)
        self.pending: tuple[str, str] = ("begin", "")
        self.done = False
        self.result: object = None
        self.error: BaseException | None = None
        self.history: list[tuple[str, str]] = []
        self.times: list[float] = []
        self._killed = False
        self._go = threading.Semaphore(0)
        self._stopped = threading.Semaphore(0)
        self._director = threading.current_thread()
        self._thread = threading.Thread(target=self._run, args=(work,), daemon=True)
        self._thread.start()
        self._stopped.acquire()

    def _run(self, work: Callable[[ObjectStore], object]) -> None:
        Process.current.process = self
        try:
            self._before("begin", "")
            self.result = work(self.store)
        except BaseException as exc:  # noqa: BLE001  (looked at by the test)
            self.error = exc
        self.done = True
        self._stopped.release()

    def _before(self, op: str, key: str) -> None:
        if threading.current_thread() is self._director:
            return
        if not self._killed:
            self.pending = (op, key)
            self._stopped.release()
            self._go.acquire()
        if self._killed:
            raise Killed
        self.history.append((op, key))
        self.times.append(self.store.shelf.now)

    @classmethod
    def pause(cls, _seconds: float) -> None:
        """What `shipctl.store.leases.pause` does meanwhile: let the others go on."""
        cls.current.process._before("pause", "")

    def step(self) -> None:
        """Let it go on until the next request."""
        if not self.done:
            self._go.release()
            self._stopped.acquire()

    def run_to(self, op: str, prefix: str = "") -> None:
        """Let it go on until it is about to send such a request."""
        while not self.done and not (self.pending[0] == op and self.pending[1].startswith(prefix)):
            self.step()
        assert not self.done, f"it ended before {op} {prefix}: {self.error!r}"

    def finish(self) -> object:
        """Let it go on to its end and return its result, or raise what it raised."""
        while not self.done:
            self.step()
        if self.error is not None:
            raise self.error
        return self.result

    def kill(self) -> None:
        """End it where it stands: nothing that it asks for is done any more."""
        self._killed = True
        while not self.done:
            self._go.release()
            self._stopped.acquire()
        self._thread.join()
