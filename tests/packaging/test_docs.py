"""Pages of the documentation that are made from the code are as the code is now."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_stages", DOCS / "make_stages.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pages_of_stages_are_up_to_date(maker: ModuleType) -> None:
    there = {path.name: path.read_text("utf-8") for path in (DOCS / "stages").glob("*.md")}
    wanted = maker.pages()
    stale = sorted(name for name in {*there, *wanted} if there.get(name) != wanted.get(name))
    assert not stale, f"run `make docs`: {', '.join(stale)}"


def test_a_page_shows_options_and_the_example(maker: ModuleType) -> None:
    page = maker.pages()["torch-export.md"]
    assert "| `opset` | integer | `21` | Version of the ONNX operator set. |" in page
    assert "uses: torch-export" in page
