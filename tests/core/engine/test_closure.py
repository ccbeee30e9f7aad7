"""Which files a script or a module consists of, for every form of import."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from shipctl.engine.closure import module_closure, script_closure
from shipctl.engine.filecache import FileCache

FILES = {
    "main.py": "",
    "plain.py": "",
    "pkg/__init__.py": "",
    "pkg/mod.py": "",
    "pkg/name.py": "",
    "pkg/sub/__init__.py": "",
    "pkg/sub/leaf.py": "",
    "bare/mod.py": "",
    "json.py": "",
}
FORMS: list[tuple[str, set[str]]] = [
    ("import plain", {"plain.py"}),
    ("import plain as p, json as j", {"plain.py", "json.py"}),
    ("import pkg", {"pkg/__init__.py"}),
    ("import pkg.mod", {"pkg/__init__.py", "pkg/mod.py"}),
    ("from pkg import mod", {"pkg/__init__.py", "pkg/mod.py"}),
    ("from pkg import (mod as m,\n    name)", {"pkg/__init__.py", "pkg/mod.py", "pkg/name.py"}),
    ("from pkg.mod import anything", {"pkg/__init__.py", "pkg/mod.py"}),
    ("from pkg import *", {"pkg/__init__.py"}),
    ("from pkg.sub.leaf import x", {"pkg/__init__.py", "pkg/sub/__init__.py", "pkg/sub/leaf.py"}),
    ("import bare.mod", {"bare/mod.py"}),
    ("from . import plain", {"plain.py"}),
    ("from .pkg import mod", {"pkg/__init__.py", "pkg/mod.py"}),
    ("def f():\n    import plain", {"plain.py"}),
    ("if 1:\n    try:\n        import plain\n    except OSError:\n        import pkg", {"plain.py", "pkg/__init__.py"}),
    ("class A:\n    from pkg.mod import x", {"pkg/__init__.py", "pkg/mod.py"}),
    ("async def f():\n    with g():\n        from pkg import name", {"pkg/__init__.py", "pkg/name.py"}),
    ("import os, sys, torch, numpy, no_such_module", set()),
    ("text = 'import plain'  # import plain", set()),
    ("import plain\n!! no python", set()),
    ("import pkg.nothing", {"pkg/__init__.py"}),
    ("from .... import far", set()),
]  # fmt: skip


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(text)
    return tmp_path


@pytest.mark.parametrize(("text", "expected"), FORMS, ids=[text.splitlines()[0] for text, _ in FORMS])
def test_a_script_consists_of_what_it_imports(project: Path, text: str, expected: set[str]) -> None:
    (project / "main.py").write_text(text)
    own, elsewhere = script_closure(project / "main.py", (project,), FileCache(None))
    assert {path.relative_to(project).as_posix() for path in own} == {"main.py", *expected}
    assert elsewhere == {}


def test_modules_that_import_each_other_come_to_an_end(project: Path) -> None:
    (project / "main.py").write_text("import plain")
    (project / "plain.py").write_text("import main\nfrom pkg import mod")
    (project / "pkg/mod.py").write_text("from . import name\nfrom .. import plain")
    (project / "pkg/name.py").write_text("from .mod import x\nimport pkg.sub.leaf")
    own, _ = script_closure(project / "main.py", (project,), FileCache(None))
    assert len(own) == 7


def test_the_nearer_root_wins(project: Path, tmp_path: Path) -> None:
    (project / "models").mkdir()
    (project / "models" / "plain.py").write_text("")
    script = project / "models" / "net.py"
    script.write_text("import plain\nimport pkg")
    own, _ = script_closure(script, (script.parent, project), FileCache(None))
    assert {path.relative_to(project).as_posix() for path in own} == {
        "models/net.py",
        "models/plain.py",
        "pkg/__init__.py",
    }


def test_installed_packages_are_left_out_and_editable_ones_are_in(
    project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    editable = tmp_path_factory.mktemp("editable")
    (editable / "editable_of_mine").mkdir()
    (editable / "editable_of_mine" / "__init__.py").write_text("from editable_of_mine import inner")
    (editable / "editable_of_mine" / "inner.py").write_text("import pydantic")
    monkeypatch.setattr(sys, "path", [str(editable), *sys.path])
    (project / "main.py").write_text("import editable_of_mine, pydantic, jinja2")
    own, elsewhere = script_closure(project / "main.py", (project,), FileCache(None))
    assert own == {project / "main.py"}
    assert set(elsewhere) == {"editable_of_mine/__init__.py", "editable_of_mine/inner.py"}


def test_a_stage_of_ours_has_its_helpers_but_not_core() -> None:
    found = module_closure("shipctl_plugins.qualify.select", FileCache(None))
    assert "shipctl_plugins/qualify/select.py" in found
    assert "shipctl_plugins/__init__.py" in found
    assert all(name.startswith("shipctl_plugins/") for name in found)
    assert not any("torch_export" in name for name in found)


def test_the_cache_keeps_digests_and_imports_between_runs(project: Path) -> None:
    (project / "main.py").write_text("import plain")
    first = FileCache(project / "files.json")
    first.imports(project / "main.py")
    first.save()
    again = FileCache(project / "files.json")
    assert again.imports(project / "main.py") == ["plain"]
    (project / "files.json").write_text("{ damaged")
    assert FileCache(project / "files.json").imports(project / "main.py") == ["plain"]
    (project / "files.json").write_text('{"x": 1}')
    assert FileCache(project / "files.json").digest(project / "plain.py") == FileCache(None).digest(
        project / "plain.py"
    )
