"""What the local target keeps on disk: immutable versions, one stable one, and what the server reads."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from shipctl.errors import CorruptArtifactError, StageError, StoreError
from shipctl.stages.artifacts import TritonRepository
from shipctl_plugins._triton.releases import Published, Releases, serving_config


@pytest.fixture
def releases(tmp_path: Path) -> Releases:
    return Releases(tmp_path / "target")


def publish(
    releases: Releases, repository: TritonRepository, revision: str, pipeline: str = "p"
) -> Published:
    return releases.publish(repository, revision=revision, version="1.0.0", pipeline=pipeline, now=1.0)


def files(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_versions_count_up_and_are_never_written_again(
    releases: Releases, make_repository: Callable[..., TritonRepository]
) -> None:
    first, second = make_repository("one"), make_repository("two")
    assert publish(releases, first, "r1").number == 1
    assert publish(releases, second, "r2").number == 2
    assert publish(releases, first, "r1").number == 1
    path = releases.release("m", 1) / "m" / "1" / "model.onnx"
    assert path.read_text() == "one"
    assert stat.S_IMODE(path.stat().st_mode) == 0o444
    assert [entry.revision for entry in releases.record().models["m"].published] == ["r1", "r2"]


def test_version_that_was_never_recorded_is_written_anew(
    releases: Releases, make_repository: Callable[..., TritonRepository]
) -> None:
    publish(releases, make_repository("one"), "r1")
    (releases.folder / "target.json").unlink()  # killed between the copy and the record
    assert publish(releases, make_repository("two"), "r2").number == 1
    assert (releases.release("m", 1) / "m" / "1" / "model.onnx").read_text() == "two"


def test_flipped_byte_is_found_while_copying(
    releases: Releases, make_repository: Callable[..., TritonRepository]
) -> None:
    repository = make_repository("one")
    path = repository.root / "m" / "1" / "model.onnx"
    path.write_text("onf")
    with pytest.raises(CorruptArtifactError) as caught:
        publish(releases, repository, "r1")
    digest = repository.files[0].sha256
    assert str(caught.value) == (
        f"{path} does not have the digest {digest[:12]}… that it was released with; it was damaged after it was made"
    )
    assert releases.model("m") is None


def test_repository_with_more_versions_is_refused(
    releases: Releases, make_repository: Callable[..., TritonRepository]
) -> None:
    repository = make_repository("one")
    files = tuple(
        entry.model_copy(update={"path": entry.path.replace("/1/", "/2/")}) for entry in repository.files
    )
    with pytest.raises(StageError) as caught:
        publish(releases, repository.model_copy(update={"files": files}).located(repository.root), "r1")
    assert str(caught.value) == (
        "the repository of m has to hold m/config.pbtxt and one version folder m/1; it holds m/2/model.onnx, "
        "m/config.pbtxt"
    )


def test_version_policy_belongs_to_the_target(
    releases: Releases, make_repository: Callable[..., TritonRepository]
) -> None:
    with pytest.raises(StageError) as caught:
        publish(releases, make_repository("one", config="version_policy { all {} }\n"), "r1")
    assert str(caught.value) == (
        "the config.pbtxt of m has a version_policy, which the target decides; leave it out"
    )


def test_model_of_another_pipeline_is_not_taken_over(
    releases: Releases, make_repository: Callable[..., TritonRepository]
) -> None:
    publish(releases, make_repository("one"), "r1", "theirs")
    releases.commit_stable("m", None, 1, 1.0)
    with pytest.raises(StageError) as caught:
        publish(releases, make_repository("two"), "r2", "ours")
    assert str(caught.value) == (
        "the model m on this target belongs to the pipeline theirs, not to ours; choose another model name, or take "
        "the other one down first"
    )


def test_stable_moves_by_compare_and_swap(
    releases: Releases, make_repository: Callable[..., TritonRepository]
) -> None:
    for number in (1, 2, 3):
        publish(releases, make_repository(str(number)), f"r{number}")
    releases.commit_stable("m", None, 1, 5.0)
    releases.commit_stable("m", None, 1, 6.0)  # said again: nothing happens
    known = releases.model("m")
    assert known is not None
    assert (known.stable, known.since) == (1, 5.0)
    with pytest.raises(
        StageError, match="m was changed meanwhile: version 1 serves where 2 was expected; run again"
    ):
        releases.commit_stable("m", 2, 3, 7.0)


def test_server_reads_the_version_asked_for(
    releases: Releases, make_repository: Callable[..., TritonRepository], tmp_path: Path
) -> None:
    publish(releases, make_repository("one"), "r1")
    publish(releases, make_repository("two", **{"labels.txt": "a"}), "r2")
    for _ in range(2):  # said again: nothing changes
        releases.lay_out("m", 2, tmp_path / "read")
        assert files(tmp_path / "read" / "m") == {
            "2/model.onnx": "two",
            "config.pbtxt": 'name: "m"\nparameters { key: "shipctl.model_digest" value { string_value: "two" } }\n'
            "version_policy { specific { versions: [2] } }\n"
            'parameters { key: "shipctl.revision" value { string_value: "r2" } }\n',
            "labels.txt": "a",
        }


def test_old_releases_go_but_the_stable_one_stays(
    releases: Releases, make_repository: Callable[..., TritonRepository]
) -> None:
    for number in range(1, 7):
        publish(releases, make_repository(str(number)), f"r{number}")
    releases.commit_stable("m", None, 2, 1.0)
    releases.prune("m")
    assert sorted(path.name for path in (releases.folder / "releases" / "m").iterdir()) == [
        "2",
        "4",
        "5",
        "6",
    ]
    assert (
        publish(releases, make_repository("1 again"), "r1").number == 1
    )  # a rollback brings its files along
    assert releases.release("m", 1).is_dir()


def test_damaged_record_says_what_to_do(releases: Releases) -> None:
    releases.folder.mkdir()
    (releases.folder / "target.json").write_text("{")
    with pytest.raises(StoreError) as caught:
        releases.record()
    folder = releases.folder
    assert (
        str(caught.value) == f"{folder}/target.json is damaged; restore it, or remove {folder} to begin anew"
    )


def test_serving_config_escapes_what_it_adds() -> None:
    assert serving_config("a: 1", 2, 'r"') == (
        "a: 1\nversion_policy { specific { versions: [2] } }\n"
        'parameters { key: "shipctl.revision" value { string_value: "r\\"" } }\n'
    )
