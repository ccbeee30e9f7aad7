"""Whatever a stage depends on makes it run again, and nothing else does."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shipctl.store.files import hash_file
from support_engine import EngineProject

MODEL = """
    model:
      uri: models/net.py:build
      inputs: [{name: x, dtype: float32, shape: [batch, 2]}]
      outputs: [{name: y, dtype: float32, shape: [batch, 2]}]
    """
STAGES = """
    - {id: a, uses: make, with: {label: a}}
    - {id: r, uses: read-model, needs: [], with: {label: r}}
    - {id: b, uses: append, with: {label: b}}
    """


@pytest.fixture
def modelled(project: EngineProject) -> EngineProject:
    """A model whose builder imports modules in every way, everything applied."""
    files = {
        "models/net.py": """
            import helper
            import deep.inner.core
            from parts import layer
            from parts.more import thing as other
            def build():
                from lazy import late
            """,
        "models/helper.py": "import second",
        "models/second.py": "",
        "models/lazy.py": "late = 1",
        "models/parts/__init__.py": "from . import layer",
        "models/parts/layer.py": "from .sub.leaf import x\nfrom .. import parts",
        "models/parts/more.py": "thing = 1",
        "models/parts/sub/__init__.py": "",
        "models/parts/sub/leaf.py": "x = 1",
        "models/parts/unused.py": "",
        "models/deep/inner/core.py": "import shared",
        "models/unused.py": "",
        "shared.py": "",
    }
    write(project.root, files)
    project.spec(STAGES, head=MODEL)
    assert project.apply().ran == ["a", "r", "b"]
    return project


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))


@pytest.mark.parametrize("name", [
    "models/net.py", "models/helper.py", "models/second.py", "models/lazy.py", "models/parts/__init__.py",
    "models/parts/layer.py", "models/parts/more.py", "models/parts/sub/__init__.py", "models/parts/sub/leaf.py",
    "models/deep/inner/core.py", "shared.py",
])  # fmt: skip
def test_editing_what_the_builder_imports_runs_what_uses_the_model(
    modelled: EngineProject, name: str
) -> None:
    with (modelled.root / name).open("a") as stream:
        stream.write("\nCHANGED = True\n")
    assert modelled.to_run() == ["r", "b"]
    assert modelled.reasons()["r"] == ["input model changed"]


@pytest.mark.parametrize("name", ["models/unused.py", "models/parts/unused.py"])
def test_editing_what_the_builder_does_not_import_runs_nothing(modelled: EngineProject, name: str) -> None:
    (modelled.root / name).write_text("CHANGED = True\n")
    assert modelled.to_run() == []


def test_an_import_that_is_added_counts_from_then_on(modelled: EngineProject) -> None:
    with (modelled.root / "models/second.py").open("a") as stream:
        stream.write("import unused\n")
    assert modelled.apply().ran == ["r", "b"]
    (modelled.root / "models/unused.py").write_text("CHANGED = True\n")
    assert modelled.to_run() == ["r", "b"]


def test_weights_and_further_files_count(modelled: EngineProject) -> None:
    (modelled.root / "models/net.safetensors").write_bytes(b"w1")
    (modelled.root / "labels.txt").write_text("1")
    modelled.edit(
        "uri: models/net.py:build",
        "uri: models/net.py:build\n  weights: models/net.safetensors\n  files: '*.txt'",
    )
    assert modelled.apply().ran == ["r", "b"]
    (modelled.root / "models/net.safetensors").write_bytes(b"w2")
    assert modelled.apply().ran == ["r"], "the names of the files are the same"
    (modelled.root / "labels.txt").write_text("2")
    assert modelled.to_run() == ["r", "b"]


def test_touching_a_file_without_changing_it_runs_nothing(modelled: EngineProject) -> None:
    for path in modelled.root.rglob("*.py"):
        path.touch()
    modelled.path.touch()
    assert modelled.to_run() == []
    shutil.copy(modelled.root / "models/net.py", modelled.root / "copy.py")
    (modelled.root / "copy.py").replace(modelled.root / "models/net.py")
    assert modelled.to_run() == []


def test_an_edit_within_one_tick_of_the_clock_is_seen(modelled: EngineProject) -> None:
    """Same size, same modification time: only the content differs."""
    path = modelled.root / "models/second.py"
    path.write_text("X = 1\n")
    modelled.apply()
    before = path.stat()
    for value in (2, 3):
        path.write_text(f"X = {value}\n")
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert modelled.to_run() == ["r", "b"], value


def test_a_digest_is_believed_only_of_a_file_that_has_settled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shipctl.engine import filecache

    path = tmp_path / "file"
    path.write_text("one")
    reads: list[Path] = []

    def counting(place: Path) -> tuple[str, int, bytes | None]:
        reads.append(place)
        return hash_file(place)

    monkeypatch.setattr(filecache, "hash_file", counting)
    cache = filecache.FileCache(tmp_path / "files.json")
    cache.digest(path)
    cache.digest(path)
    assert len(reads) == 2, "it was just written, and may be written again without a sign"
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 10)
    cache.digest(path)
    cache.digest(path)
    cache.save()
    assert len(reads) == 3
    filecache.FileCache(tmp_path / "files.json").digest(path)
    assert len(reads) == 3


def test_comments_and_layout_of_the_spec_do_not_count(modelled: EngineProject) -> None:
    modelled.path.write_text(
        "# a comment\n" + modelled.path.read_text().replace("uses: make,", "uses:   'make' ,")
    )
    assert modelled.to_run() == []


def test_paths_do_not_count(modelled: EngineProject, tmp_path: Path) -> None:
    elsewhere = EngineProject(tmp_path / "elsewhere")
    shutil.copytree(modelled.root, elsewhere.root, dirs_exist_ok=True)
    assert elsewhere.to_run() == []
    assert [n.fingerprint for n in elsewhere.plan().nodes] == [n.fingerprint for n in modelled.plan().nodes]


def test_a_bound_is_judged_anew_without_running(project: EngineProject) -> None:
    project.spec(
        "- {id: a, uses: make, with: {text: aaaa}}\n- {id: k, uses: check, with: {max: 10, label: k}}"
    )
    assert project.apply().code == 0
    project.edit("max: 10", "max: 3")
    run = project.apply()
    assert (run.code, run.ran, run.statuses["k"]) == (4, [], "rejected")
    assert run.messages["k"] == "length: length 4 is not <= 3 (fail)"
    project.edit("max: 3", "max: 4")
    run = project.apply()
    assert (run.code, run.ran, run.statuses["k"]) == (0, [], "cached")


# -- what a stage declares -------------------------------------------------------------------------------------


@pytest.fixture
def sensitive(
    project: EngineProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[EngineProject]:
    """A stage that depends on a tool, an environment variable, a template folder, the SLO and the seed."""
    from shipctl.engine import fingerprint

    toolbox(tmp_path, "1.0")
    write(tmp_path / "templates" / "triton", {"a.j2": "a", "sub/b.j2": "b"})
    write(tmp_path / "templates" / "other", {"c.j2": "c"})
    monkeypatch.setattr(sys, "path", [str(tmp_path / "tools"), *sys.path])
    monkeypatch.setattr(fingerprint, "folder", lambda owner: tmp_path / "templates" / owner)
    monkeypatch.delenv("SHIPCTL_TEST_FLAVOUR", raising=False)
    project.spec(
        "- {id: s, uses: sensitive, with: {label: s}}\n- {id: a, uses: make, needs: [], with: {label: a}}",
        head="seed: 1\nslo: {error_rate: 1%}\nbudget: {accuracy_drop: 1%}",
    )
    fingerprint._version.cache_clear()
    assert project.apply().code == 0
    yield project
    fingerprint._version.cache_clear()


def toolbox(tmp_path: Path, version: str) -> None:
    from shipctl.engine import fingerprint

    text = f"Metadata-Version: 2.1\nName: shipctl-test-toolbox\nVersion: {version}\n"
    shutil.rmtree(tmp_path / "tools", ignore_errors=True)
    write(tmp_path / "tools" / f"shipctl_test_toolbox-{version}.dist-info", {"METADATA": text})
    fingerprint._version.cache_clear()


def new_template(tmp_path: Path) -> None:
    (tmp_path / "templates" / "triton" / "new.j2").write_text("new")


DECLARED: list[tuple[str, Callable[[Path], object], list[str]]] = [
    ("tool", lambda tmp: toolbox(tmp, "2.0"), ["version of shipctl-test-toolbox 1.0 -> 2.0"]),
    (
        "template",
        lambda tmp: write(tmp / "templates/triton", {"sub/b.j2": "B"}),
        ["template folder triton changed"],
    ),
    ("new template", new_template, ["template folder triton changed"]),
    (
        "variable",
        lambda tmp: os.environ.update(SHIPCTL_TEST_FLAVOUR="mint"),
        ["environment variable SHIPCTL_TEST_FLAVOUR None -> mint"],
    ),
]


@pytest.mark.parametrize(
    ("change", "reasons"), [row[1:] for row in DECLARED], ids=[row[0] for row in DECLARED]
)
def test_what_a_stage_declares_counts(
    sensitive: EngineProject,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Path], object],
    reasons: list[str],
) -> None:
    monkeypatch.setenv("SHIPCTL_TEST_FLAVOUR", "")
    monkeypatch.delenv("SHIPCTL_TEST_FLAVOUR")
    change(tmp_path)
    assert sensitive.to_run() == ["s"]
    assert sensitive.reasons()["s"] == reasons
    assert sensitive.apply().ran == ["s"]
    assert sensitive.to_run() == []


@pytest.mark.parametrize(("old", "new", "to_run", "reasons"), [
    ("error_rate: 1%", "error_rate: 2%", ["s"], ["spec block slo changed"]),
    ("accuracy_drop: 1%", "accuracy_drop: 2%", [], []),
    ("seed: 1", "seed: 2", ["s", "a"], ["seed 1 -> 2"]),
    ("1.0.0", "1.0.1", [], []),
])  # fmt: skip
def test_blocks_of_the_spec_count_for_who_reads_them(
    sensitive: EngineProject, old: str, new: str, to_run: list[str], reasons: list[str]
) -> None:
    sensitive.edit(old, new)
    assert sensitive.to_run() == to_run
    assert sensitive.reasons()["s"] == reasons


def test_templates_that_it_does_not_declare_do_not_count(sensitive: EngineProject, tmp_path: Path) -> None:
    write(tmp_path / "templates" / "other", {"c.j2": "C"})
    assert sensitive.to_run() == []


# -- a plugin in development -----------------------------------------------------------------------------------

PLUGIN = """
    from dev_helpers.own import VALUE
    from DEV.near import near
    from . import nearer
    from shipctl import NoOptions, Stage, StageContext, StageInputs, StageOutputs
    from shipctl_test_stages.artifacts import Thing


    class Outputs(StageOutputs):
        thing: Thing


    class Dev(Stage[NoOptions, StageInputs, Outputs]):
        \"\"\"In development.\"\"\"

        api_version = 1
        isolation = "inline"
        sources = ("DEV.hidden",)

        def run(self, inputs: StageInputs, ctx: StageContext) -> Outputs:
            path = ctx.workdir / "x"
            path.write_text("x")
            return Outputs(thing=Thing.at(path))
    """


@pytest.fixture
def developed(project: EngineProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EngineProject:
    """A plugin in an editable package of its own, applied once."""
    dev = f"dev_{tmp_path.parent.name.replace('-', '_')}_{tmp_path.name}"
    root = tmp_path / "editable"
    write(root, {
        f"{dev}/__init__.py": "", f"{dev}/stage.py": PLUGIN.replace("DEV", dev), f"{dev}/near.py": "near = 1",
        f"{dev}/nearer.py": "", f"{dev}/hidden.py": "", f"{dev}/unused.py": "",
        "dev_helpers/__init__.py": "", "dev_helpers/own.py": "from dev_helpers.deep import VALUE",
        "dev_helpers/deep.py": "VALUE = 1", "dev_helpers/unused.py": "",
        f"{dev}-1.0.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {dev}\nVersion: 1.0\n",
        f"{dev}-1.0.dist-info/entry_points.txt": f"[shipctl.stages]\ndev = {dev}.stage:Dev\n",
    })  # fmt: skip
    monkeypatch.setattr(sys, "path", [str(root), *sys.path])
    monkeypatch.delitem(sys.modules, "dev_helpers", raising=False)
    for name in [name for name in sys.modules if name.startswith("dev_helpers.")]:
        monkeypatch.delitem(sys.modules, name)
    from shipctl.engine import closure

    closure._top_level.cache_clear()
    (tmp_path / "package").write_text(dev)
    project.spec(
        "- {id: d, uses: dev}\n- {id: b, uses: append, with: {label: b}}\n- {id: a, uses: make, needs: []}"
    )
    assert project.apply().code == 0
    return project


@pytest.mark.parametrize("name", [
    "DEV/stage.py", "DEV/near.py", "DEV/nearer.py", "DEV/hidden.py", "DEV/__init__.py", "dev_helpers/own.py",
    "dev_helpers/deep.py", "dev_helpers/__init__.py",
])  # fmt: skip
def test_editing_a_plugin_or_its_helpers_runs_its_stages(
    developed: EngineProject, tmp_path: Path, name: str
) -> None:
    name = name.replace("DEV", (tmp_path / "package").read_text())
    with (tmp_path / "editable" / name).open("a") as stream:
        stream.write("\nCHANGED = True\n")
    assert developed.to_run() == ["d", "b"]
    assert developed.reasons()["d"] == [f"source file {name} changed"]
    assert developed.apply().ran == [], "it makes the same as before, so what follows stays"


@pytest.mark.parametrize("name", ["DEV/unused.py", "dev_helpers/unused.py"])
def test_editing_what_a_plugin_does_not_import_runs_nothing(
    developed: EngineProject, tmp_path: Path, name: str
) -> None:
    name = name.replace("DEV", (tmp_path / "package").read_text())
    (tmp_path / "editable" / name).write_text("CHANGED = True\n")
    assert developed.to_run() == []


def test_a_version_number_that_moves_does_not_count(developed: EngineProject, tmp_path: Path) -> None:
    dev = (tmp_path / "package").read_text()
    metadata = tmp_path / "editable" / f"{dev}-1.0.dist-info" / "METADATA"
    metadata.write_text(metadata.read_text().replace("1.0", "1.1"))
    assert developed.to_run() == []
