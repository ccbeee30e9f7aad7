"""Triton's python backend takes plain paths only; projects lie anywhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from shipctl.errors import StageError
from shipctl_plugins._triton.paths import plain_path


def test_a_plain_path_is_itself(tmp_path: Path) -> None:
    assert plain_path(tmp_path / "a-b_c.d") == tmp_path / "a-b_c.d"


@pytest.mark.parametrize("name", ["sp ace", "ümlaut", "quo'te"])
def test_any_other_path_is_reached_through_a_plain_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = tmp_path / name
    folder.mkdir()
    plain = plain_path(folder)
    assert plain.readlink() == folder
    assert plain_path(plain) == plain
    plain.unlink()
    assert plain_path(folder) == plain, "the link is made again"
    (folder / "model").write_text("x")
    assert (plain / "model").read_text() == "x"


def test_a_folder_of_somebody_else_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    import os

    (tmp_path / f"shipctl-{os.getuid()}").symlink_to(elsewhere)
    with pytest.raises(StageError, match="belongs to somebody else"):
        plain_path(tmp_path / "sp ace")
