"""Records of releases: what serves, what can be gone back to, and who wrote first."""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shipctl import Phase, StoreError
from shipctl.release.records import KEEP, AbortWish, FileRecords, Records, ReleaseRecord
from shipctl.store.files import flocked


def record(
    number: int, revision: str = "r", phase: Phase = Phase.DONE, *, left: bool = False
) -> ReleaseRecord:
    return ReleaseRecord(
        number=number, revision=revision, version=f"{number}.0.0", intent="apply", run="run", user="me",
        phase=phase, started=number, updated=number, rolled_back=left,
    )  # fmt: skip


RECORDS = st.lists(
    st.tuples(st.sampled_from("abcd"), st.sampled_from([*Phase]), st.booleans()), max_size=12
).map(lambda rows: [record(n, r, p, left=left and p is Phase.DONE) for n, (r, p, left) in enumerate(rows, 1)])


@settings(max_examples=200)
@given(items=RECORDS)
def test_what_holds_for_any_history(items: list[ReleaseRecord]) -> None:
    records = Records()
    for item in items:
        records = records.put(item)
    assert [item.number for item in records.records] == [item.number for item in items]
    stable = records.stable
    if stable is not None:
        assert stable.phase is Phase.DONE
        assert not stable.rolled_back
        later = [item for item in items if item.number > stable.number]
        assert all(item.phase is not Phase.DONE or item.rolled_back for item in later)
    else:
        assert all(item.phase is not Phase.DONE or item.rolled_back for item in items)
    back = records.way_back()
    assert [item.number for item in back] == sorted((item.number for item in back), reverse=True)
    assert len({item.revision for item in back}) == len(back)
    for item in back:
        same = [other for other in items if other.revision == item.revision]
        assert item.phase is Phase.DONE
        assert not any(other.rolled_back or other.phase is Phase.ROLLED_BACK for other in same)
        assert stable is not None
        assert item.revision != stable.revision
    for revision in "abcd":
        gone = records.was_rolled_back(revision)
        assert gone is None or gone.rolled_back or gone.phase is Phase.ROLLED_BACK


def test_putting_a_record_again_replaces_it() -> None:
    records = Records().put(record(1, phase=Phase.PENDING)).put(record(2)).put(record(1))
    assert [(item.number, item.phase) for item in records.records] == [(1, Phase.DONE), (2, Phase.DONE)]
    assert records.latest is not None
    assert records.latest.number == 2


def test_what_serves_and_the_way_back_survive_any_number_of_attempts() -> None:
    records = Records().put(record(1, "old")).put(record(2, "new"))
    for number in range(3, KEEP + 20):
        records = records.put(record(number, f"attempt {number}", Phase.REJECTED))
    assert records.stable is not None
    assert records.stable.revision == "new"
    assert [item.revision for item in records.way_back()] == ["old"]
    assert len(records.records) == KEEP + 2


def test_of_two_writers_the_second_is_told(tmp_path: Path) -> None:
    file = FileRecords(tmp_path, "pipeline", "stage")
    records, etag = file.load()
    assert (records, etag) == (Records(), "")
    mine, theirs = records.put(record(1, "mine")), records.put(record(1, "theirs"))
    new = file.save(theirs, etag)
    with pytest.raises(
        StoreError, match="was changed by another run; see `shipctl status`, then run the same command again"
    ):
        file.save(mine, etag)
    assert file.load() == (theirs, new)
    file.save(mine, new)
    assert file.load()[0] == mine


def test_of_many_writers_at_once_none_is_lost(tmp_path: Path) -> None:
    """Each looks, and writes one more: a write between another one's look and its write would be lost."""

    def write(count: int) -> None:
        file, done = FileRecords(tmp_path, "pipeline", "stage"), 0
        while done < count:
            records, etag = file.load()
            with suppress(StoreError):
                file.save(records.put(record(len(records.records) + 1)), etag)
                done += 1

    threads = [threading.Thread(target=write, args=(10,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(FileRecords(tmp_path, "pipeline", "stage").load()[0].records) == 40


def test_a_writer_that_hangs_is_told_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shipctl.release.records.LOCK_SECONDS", 0.1)
    file = FileRecords(tmp_path, "pipeline", "stage")
    etag = file.save(Records().put(record(1)), "")
    place = tmp_path / "releases" / "pipeline"
    with flocked(place / "stage.lock", 0), pytest.raises(StoreError) as caught:
        file.save(Records().put(record(2)), etag)
    assert str(caught.value) == (
        f"another process writes {place / 'stage.json'} and does not finish; look for it, and end it"
    )
    assert file.load()[1] == etag


def test_a_wish_to_abort_stays_until_its_release_ends() -> None:
    wish = AbortWish(number=2, reason="wrong build")
    records = Records(records=(record(1), record(2, phase=Phase.SHIFTING)), abort=wish)
    assert records.put(record(2, phase=Phase.ANALYSING)).abort == wish
    assert records.put(record(2, phase=Phase.ABORTING)).abort == wish
    assert records.put(record(2, phase=Phase.ROLLED_BACK)).abort is None
    assert records.put(record(3, phase=Phase.PENDING)).abort is None


def test_records_of_pipelines_and_stages_are_apart(tmp_path: Path) -> None:
    FileRecords(tmp_path, "one", "stage").save(Records().put(record(1)), "")
    assert FileRecords(tmp_path, "two", "stage").load()[0] == Records()
    assert FileRecords(tmp_path, "one", "other").load()[0] == Records()
