"""The local store: what goes in comes out the same, the first result counts, damage is found."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import shutil
import time
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shipctl import Artifact, FileEntry, StageError, StoreError
from shipctl.errors import CorruptArtifactError
from shipctl.store import local
from shipctl.store.files import CHUNK, hash_file, write_atomic
from shipctl.store.local import LocalStore, Result


class Box(Artifact):
    """Any files."""

    kind: ClassVar[str] = "box"


class Other(Artifact):
    """Any files of another kind."""

    kind: ClassVar[str] = "other"


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


def box(folder: Path, files: dict[str, bytes]) -> Box:
    """Return an artifact of a folder with those files."""
    for name, body in files.items():
        path = folder / "out" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)
    return Box.at(folder / "out")


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


SEGMENT = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=20).filter(
    lambda name: name not in {".", ".."} and len(name.encode()) < 200
)
FILES = st.dictionaries(SEGMENT, st.binary(max_size=50), min_size=1, max_size=5)


@settings(max_examples=10)
@given(files=FILES, inner=FILES)
def test_what_is_published_is_viewed_the_same(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes], inner: dict[str, bytes]
) -> None:
    tmp = tmp_path_factory.mktemp("trip")
    store = LocalStore(tmp / "store")
    given_files = {f"f-{name}"[:60]: body for name, body in files.items()}
    given_files |= {f"folder/{name}": body for name, body in inner.items()}
    published = store.publish(box(tmp, given_files), tmp / "out")
    assert {entry.path for entry in published.files} == set(given_files)
    seen = store.view(published, tmp / "view")
    assert tree(tmp / "view") == given_files
    assert (seen.digest, seen.root) == (published.digest, tmp / "view")
    assert store.has_files(published.files)
    assert store.artifact(Box, published.manifest()).digest == published.digest


def test_odd_names_and_big_and_empty_files(store: LocalStore, tmp_path: Path) -> None:
    files = {
        " leading space": b"1", "ünïcode-日本": b"2", "new\nline": b"3", "-rf": b"4", "*": b"5", ".hidden/.dot": b"6",
        "empty": b"", "big": os.urandom(CHUNK + 7), "exactly": b"x" * CHUNK, "same as exactly": b"x" * CHUNK,
    }  # fmt: skip
    published = store.publish(box(tmp_path, files), tmp_path / "out")
    store.view(published, tmp_path / "view")
    assert tree(tmp_path / "view") == files


def test_a_single_file_is_an_artifact(store: LocalStore, tmp_path: Path) -> None:
    (tmp_path / "one.bin").write_bytes(b"one")
    published = store.publish(Box.at(tmp_path / "one.bin"), tmp_path)
    assert [entry.path for entry in published.files] == ["one.bin"]
    assert store.view(published, tmp_path / "view").path.read_bytes() == b"one"


def test_equal_files_are_stored_once(store: LocalStore, tmp_path: Path) -> None:
    store.publish(box(tmp_path, {"a": b"same", "b": b"same"}), tmp_path)
    blobs = [path for path in (store.root / "blobs").rglob("*") if path.is_file()]
    assert [path.name for path in blobs] == [hashlib.sha256(b"same").hexdigest()]
    assert blobs[0].stat().st_mode & 0o777 == 0o444


def test_links_to_large_files_are_not_read_again_unless_they_changed(
    store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = os.urandom(CHUNK)
    published = store.publish(box(tmp_path, {"large": large, "small": b"1"}), tmp_path)
    blob = store.blob(published.files[0].sha256)

    def again(change: bytes = b"", forbidden: dict[bytes, str] | None = None) -> tuple[list[str], Box]:
        os.utime(blob, (1e9, 1e9))
        store.view(published, tmp_path / "in")
        known = store.stamps([published])
        made = box(tmp_path, {"new": b"2"})
        os.link(tmp_path / "in" / "large", tmp_path / "out" / "linked")
        shutil.copyfile(tmp_path / "in" / "large", tmp_path / "out" / "copied")
        if change:
            blob.chmod(0o644)
            blob.write_bytes(change)
        read: list[str] = []

        def reading(path: Path, *rest: Any) -> tuple[str, int, bytes | None]:
            read.append(path.name)
            return hash_file(path, *rest)

        with monkeypatch.context() as patched:
            patched.setattr(local, "hash_file", reading)
            made = store.publish(made, tmp_path, forbidden, known)
        shutil.rmtree(tmp_path / "out")
        return read, made

    digest = hashlib.sha256(large).hexdigest()
    read, made = again()
    assert read == ["copied", "new"]
    assert {entry.path: entry.sha256 for entry in made.files if entry.path != "new"} == {
        "copied": digest, "linked": digest,
    }  # fmt: skip
    with pytest.raises(StageError, match="token"):
        again(forbidden={large[500:600]: "token"})
    shutil.rmtree(tmp_path / "out")
    read, made = again(change=large[::-1])
    assert read == ["copied", "linked", "new"]
    assert made.files[1].sha256 == hashlib.sha256(large[::-1]).hexdigest()


def test_viewing_replaces_what_lies_there(store: LocalStore, tmp_path: Path) -> None:
    published = store.publish(box(tmp_path, {"a": b"1"}), tmp_path)
    for _ in range(2):
        store.view(published, tmp_path / "view")
    assert tree(tmp_path / "view") == {"a": b"1"}


@pytest.mark.parametrize("damage", ["flip", "truncate", "grow", "remove"])
def test_damage_is_found_before_use(store: LocalStore, tmp_path: Path, damage: str) -> None:
    published = store.publish(box(tmp_path, {"a": b"12345678"}), tmp_path)
    blob = store.blob(published.files[0].sha256)
    blob.chmod(0o644)
    if damage == "remove":
        blob.unlink()
    else:
        blob.write_bytes({"flip": b"12345679", "truncate": b"1234567", "grow": b"123456789"}[damage])
    with pytest.raises(CorruptArtifactError, match=r"^a ") as caught:
        store.view(published, tmp_path / "view")
    assert caught.value.digest == published.files[0].sha256
    assert store.has_files(published.files) is (damage == "flip"), "planning looks at the size alone"


@settings(max_examples=40)
@given(before=st.integers(0, 40), secret=st.binary(min_size=4, max_size=12), border=st.integers(-15, 3))
def test_a_forbidden_text_is_found_wherever_it_stands(
    tmp_path_factory: pytest.TempPathFactory, before: int, secret: bytes, border: int
) -> None:
    path = tmp_path_factory.mktemp("f") / "file"
    at = max(0, CHUNK + border if before % 2 else before)
    path.write_bytes(b"\xff" * at + secret + b"\xff" * 10)
    digest, size, found = hash_file(path, (b"never-there", secret))
    assert (digest, size, found) == (
        hashlib.sha256(path.read_bytes()).hexdigest(),
        at + len(secret) + 10,
        secret,
    )


def test_a_forbidden_text_is_stored_nowhere(store: LocalStore, tmp_path: Path) -> None:
    made = box(tmp_path, {"a": b"fine", "b": b"xx secret xx"})
    with pytest.raises(
        StageError, match=r"^output b contains the value of secret 'token'; nothing was stored$"
    ):
        store.publish(made, tmp_path, {b"secret": "token"})
    assert not (store.root / "blobs").exists()


def test_a_file_that_changes_while_it_is_taken_is_noticed(store: LocalStore, tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"new")
    with pytest.raises(StoreError, match=r"data changed while it was read; run the same command again"):
        store.put(tmp_path / "data", sha256=hashlib.sha256(b"old").hexdigest())
    assert [*store.root.rglob("*.tmp")] == []


# -- results -------------------------------------------------------------------------------------------------

FINGERPRINT = "f" * 64


def result(uses: str = "make", **more: Any) -> Result:
    return Result(fingerprint=FINGERPRINT, uses=uses, outputs={}, created=time.time(), seconds=0.1, **more)


def test_the_first_result_counts(store: LocalStore) -> None:
    first, second = result("first"), result("second")
    assert store.save_result(first) is first
    assert store.save_result(second) == first
    assert store.load_result(FINGERPRINT) == first


def test_a_result_can_be_dropped_and_made_again(store: LocalStore) -> None:
    store.save_result(result("first"))
    store.drop_result(FINGERPRINT)
    assert store.load_result(FINGERPRINT) is None
    store.drop_result(FINGERPRINT)
    assert store.save_result(result("second")).uses == "second"


def test_a_damaged_result_does_not_count_and_is_replaced(store: LocalStore) -> None:
    store.save_result(result("first"))
    path = store.result_path(FINGERPRINT)
    body = path.read_bytes()
    for position in range(0, len(body), 7):
        damaged = bytearray(body)
        damaged[position] ^= 1
        path.write_bytes(damaged)
        assert store.load_result(FINGERPRINT) is None, position
    assert store.save_result(result("second")).uses == "second"
    assert store.load_result(FINGERPRINT) is not None


def _publish(root: Path, number: int, barrier: Any, answers: Any) -> None:
    store = LocalStore(root)
    barrier.wait()
    answers.put(store.save_result(result(f"process {number}")).uses)


def test_of_two_processes_both_get_the_first_result(store: LocalStore) -> None:
    context = multiprocessing.get_context("fork")
    barrier, answers = context.Barrier(2), context.Queue()
    processes = [context.Process(target=_publish, args=(store.root, n, barrier, answers)) for n in range(2)]
    for process in processes:
        process.start()
    said = {answers.get(timeout=10) for _ in processes}
    for process in processes:
        process.join(10)
    found = store.load_result(FINGERPRINT)
    assert found is not None
    assert said == {found.uses}


def test_a_manifest_of_another_kind_is_refused(store: LocalStore) -> None:
    with pytest.raises(StoreError, match="expected a other in the store and found a box"):
        store.artifact(Other, Box().manifest())


def test_nan_and_infinity_survive(store: LocalStore, tmp_path: Path) -> None:
    from shipctl import Report

    (tmp_path / "r").write_text("r")
    report = Report.at(
        tmp_path / "r", subject="s", title="t", metrics={"a": float("nan"), "b": float("inf"), "c": 1.0}
    )
    manifest = store.publish(report, tmp_path).manifest()
    store.save_result(Result(
        fingerprint=FINGERPRINT, uses="m", outputs={"report": manifest}, created=0, seconds=0))  # fmt: skip
    loaded = store.load_result(FINGERPRINT)
    assert loaded is not None
    back = store.artifact(Report, loaded.outputs["report"])
    assert str(back.metrics) == str(report.metrics)


def test_tidy_removes_what_was_half_written(store: LocalStore) -> None:
    (store.root / "tmp").mkdir(parents=True)
    (store.root / "tmp" / ".half.tmp").write_text("half")
    store.tidy()
    assert not (store.root / "tmp").exists()
    store.tidy()


# -- files ---------------------------------------------------------------------------------------------------


def test_an_atomic_write_replaces_or_leaves_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / "file"
    write_atomic(path, b"one")
    write_atomic(path, b"two", durable=False)
    assert path.read_bytes() == b"two"

    def fail(*_: object) -> None:
        raise OSError("no space")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no space"):
        write_atomic(path, b"three")
    assert path.read_bytes() == b"two"
    assert [item.name for item in path.parent.iterdir()] == ["file"]


def test_the_digest_of_an_artifact_is_of_content_alone(tmp_path: Path) -> None:
    entry = FileEntry(path="a", sha256="0" * 64, size=1)
    one, two = Box(files=(entry,)), Box(files=(entry,)).located(tmp_path)
    assert one.digest == two.digest
    assert one.digest != Other(files=(entry,)).digest
    assert one.digest != Box(files=(entry.model_copy(update={"path": "b"}),)).digest
    with pytest.raises(RuntimeError, match="this box has no files on this machine"):
        one.root  # noqa: B018
