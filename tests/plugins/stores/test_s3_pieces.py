"""Files in pieces: read once, a few pieces ahead of those that are being sent."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from shipctl.errors import CorruptArtifactError
from shipctl_plugins._s3.parallel import side_by_side
from shipctl_plugins._s3.slices import Source

DATA = bytes(range(256)) * 5000


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Source]:
    (tmp_path / "file").write_bytes(DATA)
    with Source(tmp_path / "file", len(DATA)) as source:
        yield source


@pytest.mark.parametrize("size", [1000, 300_000, 640_000, 1_280_000, 2_000_000])
def test_each_piece_has_its_own_digests(source: Source, size: int) -> None:
    parts = [DATA[start : start + size] for start in range(0, len(DATA), size)]
    found = list(source.pieces(size, hashlib.sha256(DATA).hexdigest(), md5_of={2}))
    assert [piece.sha256 for piece in found] == [hashlib.sha256(part).hexdigest() for part in parts]
    assert [(piece.number, piece.offset, piece.size) for piece in found] == [
        (number, (number - 1) * size, len(part)) for number, part in enumerate(parts, 1)
    ]
    assert [piece.md5 for piece in found] == [
        hashlib.md5(part, usedforsecurity=False).hexdigest() if number == 2 else ""
        for number, part in enumerate(parts, 1)
    ]


def test_the_last_piece_of_a_damaged_file_is_kept_back(source: Source) -> None:
    pieces = source.pieces(500_000, "0" * 64)
    assert [next(pieces).number, next(pieces).number] == [1, 2]
    with pytest.raises(CorruptArtifactError):
        next(pieces)


def test_results_come_in_order() -> None:
    with ThreadPoolExecutor(3) as threads:
        assert side_by_side(threads, lambda number: number * 2, range(100)) == list(range(0, 200, 2))
        assert side_by_side(threads, str, []) == []


def test_pieces_are_taken_as_there_is_room_for_them() -> None:
    taken, done, most = 0, 0, 0

    def pieces() -> Iterator[int]:
        nonlocal taken, most
        for number in range(50):
            taken += 1
            most = max(most, taken - done)
            yield number

    def work(number: int) -> int:
        nonlocal done
        done += 1
        return number

    with ThreadPoolExecutor(1) as threads:
        assert side_by_side(threads, work, pieces()) == list(range(50))
    assert most <= 10


def test_after_a_failure_no_further_piece_is_read_or_begun() -> None:
    taken: list[int] = []
    begun: list[int] = []
    failed = threading.Event()

    def pieces() -> Iterator[int]:
        for number in range(1000):
            taken.append(number)
            if number == 5:
                failed.wait(20)
            yield number

    def work(number: int) -> None:
        begun.append(number)
        if number == 3:
            failed.set()
            raise OSError(number)

    with ThreadPoolExecutor(2) as threads, pytest.raises(OSError, match="3"):
        side_by_side(threads, work, pieces())
    assert len(taken) < 20
    assert len(begun) < 20
