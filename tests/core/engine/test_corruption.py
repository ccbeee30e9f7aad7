"""Damaged files of the store: found before use, named, and made again."""

from __future__ import annotations

import hashlib
import json

from support_engine import EngineProject, flip_bit

CHAIN = """
    - {id: a, uses: make, with: {text: aaaa, label: a}}
    - {id: b, uses: append, with: {add: bbbb, label: b}}
    - {id: c, uses: USES, with: {add: cccc, label: c}}
    """


def damaged(project: EngineProject, uses: str = "append") -> None:
    """Run the chain, then make `c` want its input again."""
    project.spec(CHAIN.replace("USES", uses)).apply()
    project.edit("add: cccc", "add: dddd")


def test_one_flipped_bit_is_named_and_the_producer_runs_again(project: EngineProject) -> None:
    damaged(project)
    blob = project.blob_of("aaaabbbb")
    flip_bit(blob)
    body = blob.read_bytes()
    said = project.apply()
    assert said.code == 0
    (log,) = [line for line in said.log if "adding" not in line]
    wrong = hashlib.sha256(body).hexdigest()[:12]
    assert log == (
        f"c: thing.txt in the store is damaged: its digest is {wrong}… and not {blob.name[:12]}…; running b again"
    )
    assert said.ran == ["b", "c"]
    assert said.statuses == {"a": "cached", "b": "done", "c": "done"}
    project.assert_whole()


def test_the_same_for_a_consumer_in_a_worker(project: EngineProject) -> None:
    damaged(project, "append-worker")
    flip_bit(project.blob_of("aaaabbbb"))
    run = project.apply()
    assert (run.code, run.ran) == (0, ["b", "c"])
    project.assert_whole()


def test_damage_nobody_uses_is_left_alone(project: EngineProject) -> None:
    project.spec(CHAIN.replace("USES", "append")).apply()
    flip_bit(project.blob_of("aaaabbbb"))
    assert project.apply().ran == []


def test_damage_at_several_levels_is_repaired_in_one_run(project: EngineProject) -> None:
    damaged(project)
    flip_bit(project.blob_of("aaaabbbb"))
    flip_bit(project.blob_of("aaaa"))
    run = project.apply()
    assert (run.code, run.ran) == (0, ["a", "b", "c"])
    project.assert_whole()


def test_a_missing_file_is_made_again(project: EngineProject) -> None:
    damaged(project)
    project.blob_of("aaaabbbb").unlink()
    run = project.apply()
    assert (run.code, run.ran) == (0, ["b", "c"])


def test_a_missing_file_of_a_stage_that_never_makes_the_same_twice(project: EngineProject) -> None:
    project.spec("- {id: a, uses: make}\n- {id: m, uses: measure, with: {label: m}}").apply()
    next(blob for blob in project.blobs() if "clock" in blob.read_text()).unlink()
    run = project.apply()
    assert (run.code, run.ran) == (0, ["m"])
    project.assert_whole()
    assert project.apply().ran == [], "what was made last is what counts"


def test_a_flipped_bit_in_a_result_makes_it_not_count(project: EngineProject) -> None:
    project.spec(CHAIN.replace("USES", "append")).apply()
    result = next(path for path in project.results() if b'"append"' in path.read_bytes())
    flip_bit(result)
    assert len(project.apply().ran) == 1
    assert project.apply().ran == []


def test_a_result_of_another_version_does_not_count(project: EngineProject) -> None:
    project.spec("- {id: a, uses: make, with: {label: a}}").apply()
    (result,) = project.results()
    body = json.dumps({"fingerprint": result.name, "uses": "make", "outputs": [], "extra": 1}).encode()
    result.write_bytes(hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
    assert project.apply().ran == ["a"]
    assert project.apply().ran == []


def test_a_damaged_file_of_the_specs_own_is_taken_again(project: EngineProject) -> None:
    (project.root / "test.npz").write_bytes(b"12345678")
    project.spec(
        "- {id: r, uses: read-data, with: {label: r}}", head="data: {evaluation: {uri: test.npz}}"
    ).apply()
    flip_bit(project.blob_of("12345678"))
    project.edit("label: r", "label: s")
    run = project.apply()
    assert (run.code, run.ran) == (0, ["s"])
    assert run.log[0].startswith("r: test.npz in the store is damaged")
    assert run.log[0].endswith("; taking it from the project again")
    project.assert_whole()


def test_many_damaged_files_of_the_specs_own_are_all_taken_again(project: EngineProject) -> None:
    names = ["one", "two", "three", "four"]
    for name in names:
        (project.root / f"{name}.npz").write_text(name)
    data = ", ".join(f"{name}: {{uri: {name}.npz}}" for name in names)
    project.spec("- {id: r, uses: read-all, with: {label: old}}", head=f"data: {{{data}}}").apply()
    for name in names:
        flip_bit(project.blob_of(name))
    project.edit("label: old", "label: new")
    run = project.apply()
    assert (run.code, run.ran) == (0, ["new"]), run.messages
    assert len(run.log) == len(names)


def test_damage_behind_a_selection_makes_the_first_maker_run_again(project: EngineProject) -> None:
    project.spec(
        """
        - {id: a, uses: make, with: {text: aaaa, label: a}}
        - {id: b, uses: make, needs: [], with: {text: bbbb, label: b}}
        - {id: s, uses: choose, needs: [a, b], with: {label: s}}
        - {id: t, uses: choose, needs: s, with: {label: t}}
        - {id: c, uses: append, with: {add: c, label: c}}
        """
    ).apply()
    flip_bit(project.blob_of("aaaa"))
    project.edit("add: c", "add: d")
    run = project.apply()
    assert run.code == 0, run.messages
    assert run.ran == ["a", "c"], "the selections still hold: they pass on what is the same again"
    assert any(line.endswith("running a again") for line in run.log)
    assert "aaaad" in project.stored_texts()
    project.assert_whole()


def test_damage_found_while_something_else_still_runs(project: EngineProject) -> None:
    """A stage that waits for the damaged one and for another is not forgotten."""
    project.spec(
        """
        - {id: a, uses: make, with: {text: aaaa, label: a}}
        - {id: slow, uses: sleep, needs: [], with: {seconds: 0.3, label: slow1}}
        - {id: b, uses: append, needs: a, with: {add: b, label: b}}
        - {id: j, uses: join, needs: [a, slow], with: {label: j}}
        - {id: last, uses: append, needs: j, with: {label: last}}
        """
    ).apply()
    flip_bit(project.blob_of("aaaa"))
    project.edit("add: b", "add: c")
    project.edit("label: slow1", "label: slow2")
    run = project.apply()
    assert run.code == 0, run.messages
    assert sorted(run.ran) == ["a", "b", "j", "last", "slow2"]
    project.assert_whole()


def test_a_stage_that_changes_its_input_damages_nobody_elses(project: EngineProject) -> None:
    """Inputs are links to the store; whoever writes through one is found out by the next reader."""
    project.spec(CHAIN.replace("USES", "append")).apply()
    with project.blob_of("aaaa").open("r+b") as stream:  # what `b` would do with its input
        stream.write(b"A")
    project.edit("add: bbbb", "add: eeee")
    run = project.apply()
    assert (run.code, run.ran) == (0, ["a", "b", "c"])
    assert "aaaaeeeecccc" in project.stored_texts()


def test_a_release_checks_what_it_ships(project: EngineProject) -> None:
    project.spec("- {id: a, uses: make, with: {text: aaaa, label: a}}\n- {id: d, uses: file-deploy}")
    project.apply(project.plan(until="a"))
    flip_bit(project.blob_of("aaaa"))
    run = project.apply()
    assert (run.code, run.ran) == (0, ["a"])
    assert project.serving() is not None
    assert (project.serving() or {})["text"] == "aaaa"
