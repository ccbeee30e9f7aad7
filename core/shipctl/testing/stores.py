"""The conformance kit for stores: what shipctl relies on, as tests that the author of a store plugin inherits."""
# ruff: noqa: D102 - these are tests, though they are shipped: their names say what they check

from __future__ import annotations

import hashlib
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

import pytest

from shipctl.errors import CorruptArtifactError, StoreError
from shipctl.store.objects import ObjectStore

ODD_KEYS = (
    "registry/a b/ü.json",
    "registry/a+b/c.json",
    "odd/100%.bin",
    "odd/%41.bin",
    "odd/x=y&z;w.bin",
    "odd/what?#here.bin",
    "odd/<tag>&amp;.bin",
    'odd/it\'s "so".bin',
    "odd/~tilde@[1].bin",
    "odd/日本語.bin",
    "odd/dots..bin",
)
"""Keys that a careless plugin quotes twice, not at all, or decodes wrongly."""
_WRITERS = 16
_CLOCKS_DIFFER = 600.0
"""Seconds by which the clock of a store may be off."""


class StoreConformance:
    """Subclass it with a fixture ``store`` that returns an empty store, and pytest checks what shipctl relies on.

    ::

        class TestMyStore(StoreConformance):
            part_size = 64 * 1024

            @pytest.fixture
            def store(self, tmp_path):
                return MyStore(StoreSpec(uri=f"my://{tmp_path}"), tmp_path)
    """

    part_size: ClassVar[int] = 1 << 20
    """Where the store goes over to moving a file in parts; sizes around it are tried (bytes)."""
    many: ClassVar[int] = 60
    """How many objects are listed and deleted at once; more than a page of the store, where that is affordable."""

    # -- small objects -------------------------------------------------------------------------------------

    def test_an_empty_store_can_be_checked(self, store: ObjectStore) -> None:
        store.check()
        assert list(store.list("")) == []

    def test_missing_objects_are_none(self, store: ObjectStore) -> None:
        assert store.stat("blobs/no") is None
        assert store.read("blobs/no") is None

    def test_what_was_written_is_read(self, store: ObjectStore) -> None:
        for data in (b"", b"one", bytes(range(256)) * 300):
            store.write("a/object", data)
            assert store.read("a/object") == data
            found = store.stat("a/object")
            assert found is not None
            assert (found.key, found.size) == ("a/object", len(data))
            assert abs(found.modified - time.time()) < _CLOCKS_DIFFER, (
                "`modified` is not in seconds since the epoch"
            )

    @pytest.mark.parametrize("key", ODD_KEYS)
    def test_odd_keys_are_kept_as_they_are(self, store: ObjectStore, tmp_path: Path, key: str) -> None:
        assert store.create(key, b"created")
        assert store.read(key) == b"created"
        store.write(key, b"written")
        assert store.read(key) == b"written"
        self._upload(store, key, self._file(tmp_path, 3000))
        found = store.stat(key)
        assert found is not None
        assert (found.key, found.size) == (key, 3000)
        assert [each.key for each in store.list(key[: key.index("/") + 2])] == [key]
        store.delete([key])
        assert store.stat(key) is None

    def test_create_never_replaces(self, store: ObjectStore) -> None:
        assert store.create("log/1", b"first") is True
        assert store.create("log/1", b"second") is False
        assert store.read("log/1") == b"first"
        store.delete(["log/1"])
        assert store.create("log/1", b"third") is True

    def test_exactly_one_of_sixteen_creates(self, store: ObjectStore) -> None:
        for attempt in range(3):
            key = f"log/{attempt}"
            together = threading.Barrier(_WRITERS)

            def race(number: int, key: str = key, together: threading.Barrier = together) -> bool:
                together.wait()
                return store.create(key, b"by %d" % number)

            with ThreadPoolExecutor(_WRITERS) as threads:
                won = list(threads.map(race, range(_WRITERS)))
            assert won.count(True) == 1
            assert store.read(key) == b"by %d" % won.index(True)

    def test_readers_see_the_old_or_the_new_bytes(self, store: ObjectStore) -> None:
        whole = [bytes([letter]) * 40_000 for letter in b"ab"]
        store.write("state", whole[0])
        done = threading.Event()

        def rewrite() -> None:
            for turn in range(30):
                store.write("state", whole[turn % 2])
            done.set()

        writer = threading.Thread(target=rewrite)
        writer.start()
        seen = []
        while not done.is_set():
            seen.append(store.read("state"))
        writer.join()
        assert all(data in whole for data in seen), "a reader saw a mixture"

    # -- lists ---------------------------------------------------------------------------------------------

    def test_list_is_in_the_order_of_keys(self, store: ObjectStore) -> None:
        """Of whole keys, not of folders: `a-b` comes before `a/b`."""
        keys = ["a/b", "a-b", "a.b", "a/é", "a/c/d", "B", "a/c.d", "ab"]
        for key in keys:
            store.write(key, key.encode())
        assert [each.key for each in store.list("")] == sorted(keys)
        assert [each.size for each in store.list("")] == [len(key.encode()) for key in sorted(keys)]

    def test_a_prefix_is_the_beginning_of_a_key(self, store: ObjectStore) -> None:
        for key in ("a/bc", "a/bd/e", "a/b-c", "b/a"):
            store.write(key, b"")
        assert [each.key for each in store.list("a/b")] == ["a/b-c", "a/bc", "a/bd/e"]
        assert [each.key for each in store.list("a/bd/")] == ["a/bd/e"]
        assert list(store.list("c")) == []

    def test_many_objects_are_listed_and_deleted(self, store: ObjectStore) -> None:
        keys = [f"many/{number:06d}" for number in range(self.many)]
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(lambda key: store.write(key, b"x"), keys))
        assert [each.key for each in store.list("many/")] == keys
        store.delete(iter(keys[1:]))
        assert [each.key for each in store.list("")] == keys[:1]

    def test_deleting_what_is_not_there_is_no_fault(self, store: ObjectStore) -> None:
        store.write("there", b"x")
        store.delete([])
        store.delete(["not/there", "there", "neither"])
        assert list(store.list("")) == []

    # -- files ---------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("parts", ["0", "1 byte", "small", "part - 1", "part", "part + 1", "3.5 parts"])
    def test_files_of_any_size_come_back_as_they_were(
        self, store: ObjectStore, tmp_path: Path, parts: str
    ) -> None:
        size = {
            "0": 0,
            "1 byte": 1,
            "small": 1000,
            "part - 1": self.part_size - 1,
            "part": self.part_size,
            "part + 1": self.part_size + 1,
            "3.5 parts": self.part_size * 7 // 2,
        }[parts]
        source = self._file(tmp_path, size)
        sent, received = _Count(), _Count()
        self._upload(store, "blobs/file", source, moved=sent)
        store.download("blobs/file", tmp_path / "back", size=size, moved=received)
        assert (tmp_path / "back").read_bytes() == source.read_bytes()
        assert (sent.total, received.total) == (size, size), "`moved` did not hear of every byte once"
        found = store.stat("blobs/file")
        assert found is not None
        assert found.size == size
        assert [each.key for each in store.list("")] == ["blobs/file"]
        assert list(store.unfinished(older_than=time.time() + 3600)) == []

    def test_an_upload_replaces(self, store: ObjectStore, tmp_path: Path) -> None:
        size = self.part_size * 2 + 5
        for turn in range(2):
            self._upload(store, "blobs/file", self._file(tmp_path, size, seed=turn))
        store.download("blobs/file", tmp_path / "back", size=size)
        assert (tmp_path / "back").read_bytes() == self._file(tmp_path, size, seed=1).read_bytes()

    @pytest.mark.parametrize("real", [-1, 1])
    @pytest.mark.parametrize("parts", [0, 3])
    def test_a_file_of_another_size_is_not_stored(
        self, store: ObjectStore, tmp_path: Path, real: int, parts: int
    ) -> None:
        source = self._file(tmp_path, 1000 + parts * self.part_size)
        with pytest.raises(StoreError):
            self._upload(store, "blobs/file", source, size=source.stat().st_size - real)
        assert store.stat("blobs/file") is None

    @pytest.mark.parametrize("parts", [0, 3])
    def test_a_file_of_another_content_is_not_stored(
        self, store: ObjectStore, tmp_path: Path, parts: int
    ) -> None:
        source = self._file(tmp_path, 1000 + parts * self.part_size)
        for sha256 in ("0" * 64, hashlib.sha256(b"").hexdigest()):
            with pytest.raises(CorruptArtifactError) as caught:
                store.upload("blobs/file", source, sha256=sha256, size=source.stat().st_size)
            assert caught.value.digest == sha256
            assert store.stat("blobs/file") is None
            assert list(store.list("")) == []

    @pytest.mark.parametrize("place", ["first byte", "middle", "last byte"])
    @pytest.mark.parametrize("parts", [0, 1, 3])
    def test_a_damaged_file_replaces_nothing(
        self, store: ObjectStore, tmp_path: Path, parts: int, place: str
    ) -> None:
        source = self._file(tmp_path, 1000 + parts * self.part_size)
        size, whole = source.stat().st_size, source.read_bytes()
        self._upload(store, "blobs/file", source)
        with source.open("r+b") as stream:
            at = stream.seek({"first byte": 0, "middle": size // 2, "last byte": size - 1}[place])
            stream.write(bytes([whole[at] ^ 1]))
        with pytest.raises(CorruptArtifactError):
            store.upload("blobs/file", source, sha256=hashlib.sha256(whole).hexdigest(), size=size)
        assert source.read_bytes() != whole, "the store wrote to what it was to read"
        store.download("blobs/file", tmp_path / "back", size=size)
        assert (tmp_path / "back").read_bytes() == whole

    def test_a_file_that_was_repaired_can_be_uploaded(self, store: ObjectStore, tmp_path: Path) -> None:
        source = self._file(tmp_path, self.part_size * 3 + 11)
        size, whole = source.stat().st_size, source.read_bytes()
        source.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(CorruptArtifactError):
            store.upload("blobs/file", source, sha256=hashlib.sha256(whole).hexdigest(), size=size)
        source.write_bytes(whole)
        self._upload(store, "blobs/file", source)
        store.download("blobs/file", tmp_path / "back", size=size)
        assert (tmp_path / "back").read_bytes() == whole

    def test_a_missing_file_is_a_store_error(self, store: ObjectStore, tmp_path: Path) -> None:
        with pytest.raises(StoreError):
            store.upload("blobs/file", tmp_path / "no", sha256="0" * 64, size=10)
        assert store.stat("blobs/file") is None

    def test_an_object_of_another_size_is_not_downloaded(self, store: ObjectStore, tmp_path: Path) -> None:
        for size in (1000, self.part_size * 3):
            self._upload(store, "blobs/file", self._file(tmp_path, size))
            for wrong in (size - 1, size + 1):
                with pytest.raises(StoreError):
                    store.download("blobs/file", tmp_path / "back", size=wrong)
                assert not (tmp_path / "back").exists(), "half a file was left behind"

    def test_a_missing_object_is_not_downloaded(self, store: ObjectStore, tmp_path: Path) -> None:
        for size in (0, 1000, self.part_size * 3):
            with pytest.raises(StoreError):
                store.download("blobs/no", tmp_path / "back", size=size)
            assert not (tmp_path / "back").exists(), "an empty file was left behind"

    def test_an_interrupted_upload_shows_nothing_and_can_be_repeated(
        self, store: ObjectStore, tmp_path: Path
    ) -> None:
        source = self._file(tmp_path, self.part_size * 4 + 7)

        def interrupt(_count: int) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            self._upload(store, "blobs/file", source, moved=interrupt)
        found = store.stat("blobs/file")
        assert found is None or found.size == source.stat().st_size, "half an object can be seen"
        assert [each.key for each in store.list("")] == (["blobs/file"] if found else [])
        self._upload(store, "blobs/file", source)
        store.download("blobs/file", tmp_path / "back", size=source.stat().st_size)
        assert (tmp_path / "back").read_bytes() == source.read_bytes()

    def test_an_interrupted_upload_can_be_given_up(self, store: ObjectStore, tmp_path: Path) -> None:
        source = self._file(tmp_path, self.part_size * 4 + 7)

        def interrupt(_count: int) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            self._upload(store, "blobs/file", source, moved=interrupt)
        assert list(store.unfinished(older_than=time.time() - 3600)) == []
        for name in store.unfinished(older_than=time.time() + 3600):
            store.discard(name)
        assert list(store.unfinished(older_than=time.time() + 3600)) == []

    def test_several_files_move_at_once(self, store: ObjectStore, tmp_path: Path) -> None:
        files = [self._file(tmp_path, self.part_size * 2 + number, seed=number) for number in range(4)]
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(lambda path: self._upload(store, f"blobs/{path.name}", path), files))
            back = [tmp_path / f"{path.name}.back" for path in files]
            pairs = zip(files, back, strict=True)
            list(
                threads.map(
                    lambda pair: store.download(
                        f"blobs/{pair[0].name}", pair[1], size=pair[0].stat().st_size
                    ),
                    pairs,
                )
            )
        assert [path.read_bytes() for path in back] == [path.read_bytes() for path in files]

    # -- helpers -------------------------------------------------------------------------------------------

    def _file(self, tmp_path: Path, size: int, *, seed: int = 0) -> Path:
        path = tmp_path / f"source-{size}-{seed}"
        path.write_bytes(random.Random(seed).randbytes(size))  # noqa: S311  (test data)
        return path

    def _upload(
        self,
        store: ObjectStore,
        key: str,
        source: Path,
        *,
        size: int | None = None,
        moved: Callable[[int], None] | None = None,
    ) -> None:
        sha256 = hashlib.sha256(source.read_bytes()).hexdigest()
        length = source.stat().st_size if size is None else size
        store.upload(key, source, sha256=sha256, size=length, moved=moved or _Count())


class _Count:
    """Adds up what it hears, from any thread."""

    def __init__(self) -> None:
        self.total = 0
        self._lock = threading.Lock()

    def __call__(self, count: int) -> None:
        with self._lock:
            self.total += count
