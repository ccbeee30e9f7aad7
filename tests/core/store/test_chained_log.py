"""Append-only logs: nobody is lost, nothing can be changed unseen."""

from __future__ import annotations

import json
import math
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from shipctl import GateError, StoreError
from shipctl.errors import SpecError
from shipctl.records import canonical_json
from shipctl.store.log import Actor, Heads, Log, LogEntry, audit
from shipctl.store.objects import ObjectInfo, ObjectStore
from support_registry import folder_store

TAMPERED = "somebody changed the store by hand: compare it with a backup"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def objects(folder: Path) -> ObjectStore:
    return folder_store(folder)


@pytest.fixture
def log(objects: ObjectStore) -> Log:
    return Log(objects, "things")


def count(state: dict[str, Any]) -> dict[str, Any]:
    return {"count": state.get("count", 0) + 1}


def filled(log: Log, entries: int = 5) -> Log:
    for number in range(1, entries + 1):
        log.append("add", f"thing-{number}", {"number": number}, fold=count, now=lambda: 7.0)
    return log


def path(folder: Path, number: int) -> Path:
    return folder / "things" / f"{number:08d}.json"


def altered(folder: Path, number: int, **fields: Any) -> None:
    """Change an entry as somebody with a text editor would."""
    file = path(folder, number)
    document = json.loads(file.read_bytes()) | fields
    file.chmod(0o644)
    file.write_bytes(canonical_json(document))


def message(call: Callable[[], object]) -> str:
    with pytest.raises(StoreError) as caught:
        call()
    return str(caught.value)


# -- appending and reading -------------------------------------------------------------------------------------


def test_an_empty_log_has_no_head(log: Log) -> None:
    assert log.head() is None
    assert log.entries() == []


def test_entries_are_numbered_and_chained_and_carry_the_state(log: Log) -> None:
    filled(log, 3)
    entries = log.entries()
    assert [entry.number for entry in entries] == [1, 2, 3]
    assert [entry.subject for entry in entries] == ["thing-1", "thing-2", "thing-3"]
    assert [entry.state for entry in entries] == [{"count": 1}, {"count": 2}, {"count": 3}]
    assert [entry.previous for entry in entries] == ["", entries[0].digest, entries[1].digest]
    assert entries[0].time == 7.0
    assert log.head() == entries[-1]


def test_no_two_writers_make_the_same_bytes(objects: ObjectStore) -> None:
    """Else a store that compares bytes after a lost answer would tell both of them that they had won."""
    first, second = filled(Log(objects, "one"), 1).head(), filled(Log(objects, "two"), 1).head()
    assert first is not None
    assert second is not None
    assert first.model_dump(exclude={"nonce"}) == second.model_dump(exclude={"nonce"})
    assert first.digest != second.digest


def test_the_key_of_an_entry_is_its_number(log: Log, folder: Path) -> None:
    filled(log, 1)
    assert [file.name for file in (folder / "things").iterdir()] == ["00000001.json"]


def test_an_entry_without_a_fold_leaves_the_state_as_it_is(log: Log) -> None:
    filled(log, 2)
    assert log.append("look", "thing-1", {}).state == {"count": 2}


def test_a_fold_may_refuse_and_then_nothing_is_written(log: Log) -> None:
    def refuse(state: dict[str, Any]) -> dict[str, Any]:
        raise GateError(f"not with {state['count']}")

    filled(log, 2)
    with pytest.raises(GateError, match="not with 2"):
        log.append("add", "thing", {}, fold=refuse)
    assert len(log.entries()) == 2


def test_a_fold_may_fill_in_the_details(log: Log) -> None:
    details: dict[str, Any] = {}

    def fold(state: dict[str, Any]) -> dict[str, Any]:
        details["before"] = dict(state)
        return {"a": 1}

    assert log.append("add", "thing", details, fold=fold).details == {"before": {}}


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.1, 10**20, "\u2028 ü", None, [1, {"a": []}]])
def test_any_json_survives_with_its_digest(log: Log, value: object) -> None:
    written = log.append("add", "thing", {"value": value})
    assert log.head() == written
    assert log.append("add", "thing", {}).previous == written.digest
    log.entries()


@pytest.mark.parametrize("entries", [999, 1000, 1001, 2047])
def test_the_head_of_a_long_log_is_found(log: Log, folder: Path, entries: int) -> None:
    filled(log, 1)
    first = json.loads(path(folder, 1).read_bytes())
    for number in range(2, entries):
        path(folder, number).hardlink_to(path(folder, 1))
    path(folder, entries).write_bytes(canonical_json(first | {"number": entries}))
    head = log.head()
    assert head is not None
    assert head.number == entries


def test_other_logs_and_other_files_are_not_mixed_up(objects: ObjectStore, log: Log) -> None:
    filled(log, 2)
    filled(Log(objects, "things-2"), 3)
    filled(Log(objects, "things/below"), 4)
    objects.write("things/readme.txt", b"hello")
    assert len(log.entries()) == 2
    head = log.head()
    assert head is not None
    assert head.number == 2


def test_the_audit_log_is_a_log(objects: ObjectStore) -> None:
    audit(objects).append("alias", "digits@1.0.0", {"to": "production"})
    assert [entry.action for entry in Log(objects, "audit").entries()] == ["alias"]


# -- who -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "ci"),
    [
        ({}, None),
        (
            {
                "GITHUB_ACTIONS": "true",
                "GITHUB_ACTOR": "ada",
                "GITHUB_SERVER_URL": "https://github.com",
                "GITHUB_REPOSITORY": "acme/models",
                "GITHUB_RUN_ID": "7",
            },
            "ada@https://github.com/acme/models/actions/runs/7",
        ),
        (
            {"GITLAB_CI": "true", "GITLAB_USER_LOGIN": "ada", "CI_JOB_URL": "https://git/j/7"},
            "ada@https://git/j/7",
        ),
        ({"BUILD_URL": "https://jenkins/7"}, "unknown@https://jenkins/7"),
    ],
)
def test_an_actor_says_which_job_it_is(environ: dict[str, str], ci: str | None) -> None:
    actor = Actor.current(environ)
    assert actor.ci == ci
    assert str(actor) == (ci or f"{actor.user}@{actor.host}")


def test_an_account_without_a_name_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found: 4711")

    monkeypatch.setattr("getpass.getuser", nobody)
    assert Actor.current({}).user == "unknown"


# -- many at once ----------------------------------------------------------------------------------------------


def test_of_many_threads_none_is_lost_and_every_state_counts(folder: Path) -> None:
    def work(number: int) -> LogEntry:
        return Log(folder_store(folder), "things").append("add", f"thing-{number}", {}, fold=count)

    with ThreadPoolExecutor(16) as threads:
        written = list(threads.map(work, range(48)))
    entries = Log(folder_store(folder), "things").entries()
    assert {entry.subject for entry in entries} == {f"thing-{number}" for number in range(48)}
    assert [entry.state["count"] for entry in entries] == list(range(1, 49))
    assert {entry.digest for entry in written} == {entry.digest for entry in entries}


def _append(folder: Path, name: str) -> None:
    for number in range(5):
        Log(folder_store(folder), "things").append("add", f"{name}-{number}", {}, fold=count)


def test_of_several_processes_none_is_lost(folder: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_append, args=(folder, name)) for name in "abc"]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert Log(folder_store(folder), "things").entries()[-1].state == {"count": 15}


def test_a_writer_that_was_overtaken_folds_the_newer_state(objects: ObjectStore, log: Log) -> None:
    filled(log, 1)
    calls: list[int] = []

    def slow(state: dict[str, Any]) -> dict[str, Any]:
        calls.append(state["count"])
        if len(calls) == 1:
            Log(objects, "things").append("add", "faster", {}, fold=count)
        return count(state)

    assert log.append("add", "slower", {}, fold=slow).state == {"count": 3}
    assert calls == [1, 2]


# -- tampering -------------------------------------------------------------------------------------------------


def test_an_altered_entry_is_named(log: Log, folder: Path) -> None:
    before = filled(log).entries()
    altered(folder, 3, subject="another")
    now = log.entry(3).digest
    assert message(log.entries) == (
        f"entry 3 of log things of {folder.as_uri()} was altered or exchanged after it was written: entry 4 followed "
        f"{before[2].digest[:12]}…, and it is {now[:12]}… now; {TAMPERED}"
    )


def test_an_altered_first_entry_is_named(log: Log, folder: Path) -> None:
    filled(log)
    altered(folder, 1, actor={"user": "somebody", "host": "else", "ci": None})
    assert message(log.entries).startswith(f"entry 1 of log things of {folder.as_uri()} was altered")


def test_an_entry_that_names_another_one_before_it_is_named(log: Log, folder: Path) -> None:
    before = filled(log).entries()
    altered(folder, 5, previous="ab" * 32)
    assert message(log.entries) == (
        f"entry 5 of log things of {folder.as_uri()} does not follow entry 4: it names abababababab… before it, and "
        f"that is {before[3].digest[:12]}…; one of the two was altered or exchanged; {TAMPERED}"
    )


def test_a_missing_entry_is_named(log: Log, folder: Path) -> None:
    filled(log)
    path(folder, 3).unlink()
    expected = f"entry 3 of log things of {folder.as_uri()} is missing, although entry 4 is there; {TAMPERED}"
    assert message(log.entries) == expected
    assert message(log.head) == expected
    assert message(lambda: log.append("add", "thing", {})) == expected
    assert not path(folder, 3).exists()


def test_a_missing_beginning_is_named(log: Log, folder: Path) -> None:
    filled(log)
    path(folder, 1).unlink()
    assert message(log.entries) == (
        f"entry 1 of log things of {folder.as_uri()} is missing, although entry 2 is there; {TAMPERED}"
    )


def test_a_log_that_begins_in_the_middle_is_refused(log: Log, folder: Path) -> None:
    filled(log, 1)
    altered(folder, 1, previous="ab" * 32)
    assert message(log.entries) == (
        f"entry 1 of log things of {folder.as_uri()} follows another entry, so those before it were taken away; "
        f"{TAMPERED}"
    )


def test_an_entry_in_the_place_of_another_is_named(log: Log, folder: Path) -> None:
    filled(log)
    path(folder, 3).unlink()
    path(folder, 3).write_bytes(path(folder, 2).read_bytes())
    assert message(log.entries) == (
        f"entry 3 of log things of {folder.as_uri()} says that it is number 2: it was moved; {TAMPERED}"
    )


@pytest.mark.parametrize("body", [b"", b"{}", b"\xff", b'{"number": 5, "more": 1}'])
def test_what_is_no_entry_is_named(log: Log, folder: Path, body: bytes) -> None:
    filled(log)
    path(folder, 5).unlink()
    path(folder, 5).write_bytes(body)
    assert message(log.head) == (
        f"entry 5 of log things of {folder.as_uri()} cannot be read: it is damaged, or was written by a newer version "
        f"of shipctl; {TAMPERED}"
    )


def test_an_entry_that_is_gone_when_it_is_read_is_named(log: Log, folder: Path) -> None:
    filled(log, 1)
    assert (
        message(lambda: log.entry(2)) == f"entry 2 of log things of {folder.as_uri()} is missing; {TAMPERED}"
    )


@pytest.mark.parametrize("number", [1, 2, 3, 4])
@pytest.mark.parametrize(
    "field", ["time", "action", "subject", "details", "state", "nonce", "previous", "actor"]
)
def test_no_field_of_an_entry_can_be_changed_unseen(log: Log, folder: Path, number: int, field: str) -> None:
    filled(log)
    values: dict[str, Any] = {
        "time": 8.0,
        "details": {"number": 99},
        "state": {"count": 99},
        "actor": {"user": "eve", "host": "h", "ci": None},
    }
    altered(folder, number, **{field: values.get(field, "ab" * 32)})
    assert f"entry {number} " in message(log.entries) or f"entry {number + 1} " in message(log.entries)


def test_an_entry_cannot_be_rewritten_with_other_spaces(log: Log, folder: Path) -> None:
    filled(log)
    file = path(folder, 2)
    file.write_bytes(json.dumps(json.loads(file.read_bytes()), indent=1).encode())
    assert "entry 2 " in message(log.entries)


def test_a_log_that_another_writer_forked_is_refused_while_appending(
    objects: ObjectStore, log: Log, folder: Path
) -> None:
    filled(log, 2)

    def forge(state: dict[str, Any]) -> dict[str, Any]:
        if not path(folder, 3).exists():
            Log(objects, "things").append("add", "other", {}, fold=count)
            altered(folder, 3, previous="cd" * 32)
        return count(state)

    assert message(lambda: log.append("add", "mine", {}, fold=forge)).startswith(
        f"entry 3 of log things of {folder.as_uri()} does not follow entry 2: it names cdcdcdcdcdcd… before it"
    )


# -- the end of a log ------------------------------------------------------------------------------------------


def test_the_chain_alone_cannot_tell_that_its_end_is_missing(log: Log, folder: Path) -> None:
    filled(log)
    path(folder, 5).unlink()
    assert len(log.entries()) == 4


def test_a_digest_that_was_noted_tells_that_the_end_is_missing(log: Log, folder: Path) -> None:
    head = filled(log).entries()[-1].digest
    assert len(log.verify(expect_head=head)) == 5
    assert len(log.verify(expect_head=f"sha256:{head[:12]}")) == 5
    filled(log, 1)
    assert len(log.verify(expect_head=head)) == 6
    path(folder, 5).unlink()
    path(folder, 6).unlink()
    assert message(lambda: log.verify(expect_head=head)) == (
        f"log things of {folder.as_uri()} has no entry {head[:12]}…, which was its newest when that was noted: entries "
        f"were taken away at its end, or it was rewritten; {TAMPERED}"
    )


@pytest.mark.parametrize("noted", ["", "abc", "x" * 64, "a" * 65])
def test_what_is_no_digest_is_no_anchor(log: Log, noted: str) -> None:
    filled(log, 1)
    with pytest.raises(SpecError) as caught:
        log.verify(expect_head=noted)
    assert str(caught.value) == f"{noted!r} is no digest of a head; give the 12 to 64 digits that were noted"


@pytest.fixture
def heads(tmp_path: Path) -> Heads:
    return Heads(tmp_path / "heads.json")


def test_a_machine_that_saw_the_end_notices_that_it_is_missing(
    objects: ObjectStore, folder: Path, heads: Heads
) -> None:
    watched = filled(Log(objects, "things", heads=heads))
    assert watched.head() is not None
    path(folder, 5).unlink()
    expected = (
        f"log things of {folder.as_uri()} ends at entry 4, and entry 5 was seen here before: entries were taken away "
        f"at its end; {TAMPERED}. If it was put back on purpose, remove {heads.path}"
    )
    assert message(watched.head) == expected
    assert message(watched.entries) == expected
    assert message(lambda: watched.append("add", "thing", {})) == expected
    heads.path.unlink()
    assert len(watched.entries()) == 4


@pytest.mark.parametrize("entries", [0, 3])
@pytest.mark.parametrize("read", [Log.head, Log.entries])
def test_an_entry_that_another_run_of_this_machine_wrote_meanwhile_is_not_missed(
    objects: ObjectStore,
    folder: Path,
    heads: Heads,
    monkeypatch: pytest.MonkeyPatch,
    read: Callable[[Log], object],
    entries: int,
) -> None:
    log = filled(Log(objects, "things", heads=heads), entries)
    listing = objects.list

    def outdated(prefix: str) -> Iterator[ObjectInfo]:
        found = list(listing(prefix))
        filled(Log(folder_store(folder), "things", heads=heads), 1)
        return iter(found)

    with monkeypatch.context() as patch:
        patch.setattr(objects, "list", outdated)
        read(log)
    assert [entry.number for entry in log.entries()] == list(range(1, entries + 2))
    path(folder, entries + 1).unlink()
    assert "entries were taken away at its end" in message(lambda: read(log))


def test_a_machine_that_saw_a_log_notices_that_it_is_gone(
    objects: ObjectStore, folder: Path, heads: Heads
) -> None:
    watched = filled(Log(objects, "things", heads=heads), 1)
    path(folder, 1).unlink()
    assert message(watched.head).startswith(
        f"log things of {folder.as_uri()} ends at entry 0, and entry 1 was seen here before"
    )


@pytest.mark.parametrize("more", [0, 2])
def test_a_machine_that_saw_the_end_notices_that_it_was_rewritten(
    objects: ObjectStore, folder: Path, heads: Heads, more: int
) -> None:
    watched = filled(Log(objects, "things", heads=heads))
    before = watched.entries()[-1].digest
    path(folder, 5).unlink()
    filled(Log(objects, "things"), 1 + more)
    now = watched.entry(5).digest
    expected = (
        f"entry 5 of log things of {folder.as_uri()} is {now[:12]}…, and was {before[:12]}… when it was seen here "
        f"before: the log was rewritten; {TAMPERED}. If that was on purpose, remove {heads.path}"
    )
    assert message(watched.head) == expected
    assert message(watched.entries) == expected


def test_heads_are_kept_per_store_and_log(tmp_path: Path, objects: ObjectStore, heads: Heads) -> None:
    filled(Log(objects, "things", heads=heads), 3)
    filled(Log(objects, "others", heads=heads), 1)
    filled(Log(folder_store(tmp_path / "second"), "things", heads=heads), 2)
    known = json.loads(heads.path.read_text())
    assert {prefix: head[0] for prefix, head in known[objects.uri].items()} == {"things": 3, "others": 1}
    assert known[(tmp_path / "second").as_uri()]["things"][0] == 2


def test_an_older_head_does_not_replace_a_newer_one(heads: Heads, objects: ObjectStore) -> None:
    entries = filled(Log(objects, "things", heads=heads), 3).entries()
    Log(objects, "things", heads=heads)._remember(entries[0])
    found = heads.get(objects.uri, "things")
    assert found is not None
    assert found.number == 3


def test_damaged_memory_of_heads_is_said(heads: Heads, objects: ObjectStore) -> None:
    heads.path.write_text("{")
    assert message(Log(objects, "things", heads=heads).head).startswith(
        f"cannot read {heads.path}, which remembers the ends of logs: "
    )


def test_a_folder_that_cannot_be_written_to_keeps_nobody_from_reading(
    tmp_path: Path, objects: ObjectStore
) -> None:
    (tmp_path / "file").write_text("")
    filled(Log(objects, "things", heads=Heads(tmp_path / "file" / "heads.json")), 2)
    assert len(Log(objects, "things").entries()) == 2
