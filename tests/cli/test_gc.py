"""`shipctl gc`."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from shipctl.engine.locks import project_lock
from shipctl.spec.models import StoreSpec
from shipctl.store.depot import blob_key
from shipctl.store.local import LocalStore
from shipctl.store.objects import open_store
from shipctl.testing.fixtures import SampleProject
from support_cli import RELEASING, Call
from support_store import put

MONTHS = 90 * 86400


def age(folder: Path, seconds: float = MONTHS) -> None:
    """Let every file of a store be that old."""
    for path in folder.rglob("*"):
        if path.is_file():
            os.utime(path, (time.time() - seconds,) * 2)


def blobs(folder: Path) -> int:
    return len([path for path in (folder / "blobs").rglob("*") if path.is_file()])


@pytest.fixture
def own(light: SampleProject) -> Path:
    """The project's own store, where runs have left something."""
    return light.root / ".shipctl" / "store"


def test_a_project_that_has_nothing(light: SampleProject, call: Call, own: Path) -> None:
    result = call("gc")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.lines == [
        f"{own.as_uri()}: 0 B freed",
        "  files      0 deleted (0 B), 0 stay (0 B)",
        "  artifacts  0 deleted (0 B), 0 stay (0 B)",
        "  results    0 deleted (0 B), 0 stay (0 B)",
        "  uploads    0 unfinished deleted",
        "kept what is needed by 0 versions, 0 deployments, 0 publications under way",
    ]


def test_old_results_go_and_are_made_again(light: SampleProject, call: Call, own: Path) -> None:
    assert call("apply").exit_code == 0
    assert call("gc").lines[0].endswith(": 0 B freed")
    age(own)
    dry = call("gc", "--dry-run", "--json").document
    assert dry["schema"] == "shipctl.gc/1"
    assert dry["collected"]["dry_run"] is True
    assert (dry["collected"]["results"]["deleted"], dry["collected"]["results"]["kept"]) == (2, 0)
    assert blobs(own) == dry["collected"]["files"]["deleted"] == 2
    done = call("gc", "--json").document["collected"]
    assert done == {**dry["collected"], "dry_run": False}
    assert blobs(own) == 0
    assert not (own / "gc" / "lock").exists()
    assert call("apply").exit_code == 0
    assert blobs(own) == 2


def test_how_long_results_are_kept(light: SampleProject, call: Call, own: Path) -> None:
    assert call("apply").exit_code == 0
    age(own, 10 * 86400)
    assert call("gc", "--json").document["collected"]["results"]["deleted"] == 0
    assert call("gc", "--keep-results", "9d", "--min-age", "11d", "--json").document["collected"][
        "results"
    ] == {
        "kept": 2,
        "kept_bytes": sum(path.stat().st_size for path in (own / "results").rglob("*") if path.is_file()),
        "deleted": 0,
        "deleted_bytes": 0,
    }
    assert call("gc", "--keep-results", "9d", "--json").document["collected"]["results"]["deleted"] == 2


def test_what_a_target_serves_or_can_go_back_to_stays(light: SampleProject, call: Call, own: Path) -> None:
    for version, level in (("1.0.0", 1), ("1.1.0", 2)):
        spec = RELEASING.replace("1.0.0", version)
        light.write({"spec.yaml": spec.replace("light-copy", f"light-copy\n    with: {{level: {level}}}")})
        assert call("apply").exit_code == 0
    age(own)
    for path in (own / "deployments").glob("*.json"):
        path.unlink()  # as it is for a release that was made before the store was named
    assert call("gc").exit_code == 0
    assert blobs(own) == 1, "both releases have the same bytes"
    result = call("rollback")
    assert (result.exit_code, result.stderr) == (0, "")


def test_a_damaged_record_of_releases_stops_it(light: SampleProject, call: Call, own: Path) -> None:
    light.write({"spec.yaml": RELEASING})
    assert call("apply").exit_code == 0
    (record,) = (light.root / ".shipctl" / "targets").glob("*/releases/*/*.json")
    record.write_text("{")
    age(own)
    before = blobs(own)
    result = call("gc")
    assert result.exit_code == 1
    assert result.stderr == f"error: {record} is damaged (1 errors); restore it, or move it away\n"
    assert blobs(own) == before


def test_it_waits_for_no_run_unless_it_is_told(light: SampleProject, call: Call, own: Path) -> None:
    assert call("apply").exit_code == 0
    with project_lock(light.root / ".shipctl" / "lock", "shipctl apply", 0):
        result = call("gc")
        assert result.exit_code == 8
        assert "`shipctl apply`" in result.stderr
        assert call("gc", "--dry-run").exit_code == 0
        assert call("gc", "--store", "elsewhere").exit_code == 0, "that store is not this project's"
        assert call("gc", "--store", ".shipctl/store").exit_code == 8


def test_the_store_of_the_spec_or_of_the_command_line(light: SampleProject, call: Call) -> None:
    for name in ("shared", "other"):
        local = LocalStore(light.root / name)
        put(local, name.encode())
        age(local.root)
    text = light.root.joinpath("spec.yaml").read_text()
    light.write({"spec.yaml": text + "store: shared\n"})
    assert call("gc").lines[0] == f"{(light.root / 'shared').as_uri()}: 6 B freed"
    assert (blobs(light.root / "shared"), blobs(light.root / "other")) == (0, 1)
    assert call("gc", "spec.yaml", "--store", "other").lines[0].endswith("other: 5 B freed")
    assert blobs(light.root / "other") == 0


def test_what_cannot_be_read_is_named(light: SampleProject, call: Call) -> None:
    store = light.root / "shared"
    put(LocalStore(store), b"x")
    (store / "deployments").mkdir()
    (store / "deployments" / "a.json").write_text("{}")
    age(store)
    result = call("gc", "--store", "shared", "--json")
    assert result.exit_code == 1
    message = (
        f"nothing was deleted from {store.as_uri()}: it cannot be told what deployments/a.json needs: "
        "its files are no list of digests; if that target is gone, remove the object"
    )
    assert result.stderr == f"error: {message}\n"
    assert json.loads(result.stdout)["message"] == message
    assert blobs(store) == 1


def test_another_collection_that_goes_on(light: SampleProject, call: Call) -> None:
    from shipctl.store.leases import CollectorLock

    with open_store(StoreSpec(uri="shared"), light.root) as objects:
        lock = CollectorLock(objects)
        lock.acquire()
        result = call("gc", "--store", "shared")
        assert result.exit_code == 8
        assert result.stderr.startswith(f"error: {objects.uri} is being collected by ")
        assert call("gc", "--store", "shared", "--dry-run").exit_code == 0
        lock.release()
    assert call("gc", "--store", "shared").exit_code == 0


def test_durations_need_a_unit(light: SampleProject, call: Call) -> None:
    result = call("gc", "--min-age", "1")
    assert result.exit_code == 2
    assert "--min-age" in result.stderr


def test_keys_of_files_are_those_of_the_local_store(tmp_path: Path) -> None:
    local = LocalStore(tmp_path)
    entry = put(local, b"x")
    assert local.blob(entry.sha256) == tmp_path / blob_key(entry.sha256)
