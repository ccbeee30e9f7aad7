"""A function of the project's own: in a process that nothing comes out of but its answer."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from shipctl.errors import SpecError, StageError
from shipctl.release.metrics import MetricContext
from shipctl.release.references import validated
from shipctl.stages.context import CheckContext
from shipctl.testing.metrics import MetricProviderConformance
from shipctl_plugins.metrics.python_function import PythonFunction, PythonOptions
from support_metrics import CANDIDATE, elapsed

MODULE = """
import json, os, pathlib, signal, subprocess, sys, threading, time
import neighbour

HERE = pathlib.Path(__file__).parent


def good(pipeline, model, revision, version, since, until):
    print("hello from the function")
    asked = [pipeline, model, revision, version, since, until]
    (HERE / "asked.json").write_text(json.dumps(asked))
    return {"requests": 4, "errors": 1, "durations": [0.5, 0.25, 0.125], "coverage": neighbour.COVERAGE}


def number(**asked):
    return 0.75


def raising(**asked):
    raise KeyError("no such table")


def leaving(**asked):
    sys.exit("not today")


def dying(**asked):
    print("something terrible", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGSEGV)


def hanging(**asked):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    (HERE / "pids").write_text(f"{os.getpid()} {child.pid}")
    time.sleep(60)


def threading_on(**asked):
    threading.Thread(target=time.sleep, args=(60,)).start()
    return 1.0


def leaving_a_child(**asked):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    (HERE / "pids").write_text(f"{os.getpid()} {child.pid}")
    return 1.0


def nan(**asked):
    return float("nan")


def nothing(**asked):
    pass


def odd(**asked):
    return {"requests": 4, "errors": 1, "durations": (0.5,), "model": object()}


def few(pipeline):
    return 1.0


def counted(since, until, **asked):
    rows = json.loads((HERE / "rows.json").read_text())
    rows = [row for row in rows if since <= row[0] < until]
    return {"requests": sum(row[1] for row in rows), "errors": sum(row[2] for row in rows)}


CONSTANT = 5
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "metrics").mkdir()
    (tmp_path / "metrics" / "quality.py").write_text(MODULE)
    (tmp_path / "metrics" / "neighbour.py").write_text("COVERAGE = 0.5\n")
    (tmp_path / "measures.py").write_text(
        "def alone(**asked):\n    return 3\n\n\nclass Group:\n    inner = alone\n"
    )
    return tmp_path


def function(ctx: MetricContext, name: str, timeout: str = "20s") -> PythonFunction:
    where = name if ":" in name else f"metrics/quality.py:{name}"
    return PythonFunction(PythonOptions.model_validate({"function": where, "timeout": timeout}), ctx)


def test_a_function_of_a_file_is_asked(ctx: MetricContext, folder: Path) -> None:
    """It finds its neighbours, prints what it likes, and shipctl's process learns nothing but its answer."""
    found = function(ctx, "good").query(CANDIDATE, 1.0, 2.0)
    assert (found.requests, found.errors, found.durations, found.coverage) == (4, 1, (0.5, 0.25, 0.125), 0.5)
    asked = (folder / "metrics" / "asked.json").read_text()
    assert asked == f'["digits", "digits", "{CANDIDATE}", "4", 1.0, 2.0]'
    assert "neighbour" not in sys.modules
    assert found.query.startswith('function metrics/quality.py:good {"pipeline": "digits"')


def test_a_number_is_a_value(ctx: MetricContext, folder: Path) -> None:
    found = function(ctx, "number").query(CANDIDATE, 1.0, 2.0)
    assert (found.value, found.requests, found.durations) == (0.75, 0, None)


def test_a_function_of_a_module_is_asked(ctx: MetricContext, folder: Path) -> None:
    assert function(ctx, "measures:alone").query(CANDIDATE, 1.0, 2.0).value == 3.0
    assert function(ctx, "measures:Group.inner").query(CANDIDATE, 1.0, 2.0).value == 3.0


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("raising", "failed: KeyError: 'no such table' (quality.py:20)"),
        ("leaving", "failed: SystemExit: not today (quality.py:24)"),
        ("dying", "ended without an answer; it wrote something terrible"),
        ("nan", "did not answer with a JSON object (NaN is not JSON)"),
        ("nothing", "did not answer with a JSON object (it is a NoneType); it said null"),
        ("odd", "failed: TypeError: Object of type object is not JSON serializable"),
        ("few", "failed: TypeError: few() got an unexpected keyword argument 'model'"),
        ("no_such", "failed: AttributeError: module 'shipctl_metric_function' has no attribute 'no_such'"),
        ("CONSTANT", "failed: TypeError: CONSTANT is a int, not a function"),
        ("nowhere:it", "failed: ModuleNotFoundError: No module named 'nowhere'"),
    ],
)
def test_what_goes_wrong_is_an_error_that_says_where(
    ctx: MetricContext, folder: Path, name: str, said: str
) -> None:
    with pytest.raises(StageError) as caught:
        function(ctx, name).query(CANDIDATE, 1.0, 2.0)
    assert f"function {name if ':' in name else f'metrics/quality.py:{name}'} {said}" in str(caught.value)


def test_one_that_hangs_is_killed_with_all_it_started(ctx: MetricContext, folder: Path) -> None:
    def ask() -> None:
        with pytest.raises(StageError) as caught:
            function(ctx, "hanging", "1500ms").query(CANDIDATE, 1.0, 2.0)
        assert str(caught.value) == (
            "function metrics/quality.py:hanging took more than 1.5 s; make it quicker, or raise `timeout`"
        )

    assert elapsed(ask) < 5
    assert gone(folder)


def gone(folder: Path) -> bool:
    pids = [int(pid) for pid in (folder / "metrics" / "pids").read_text().split()]
    deadline = time.monotonic() + 5
    while any(alive(pid) for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_nobody_waits_for_what_it_left_running(ctx: MetricContext, folder: Path) -> None:
    assert elapsed(lambda: function(ctx, "threading_on").query(CANDIDATE, 1.0, 2.0)) < 5
    assert elapsed(lambda: function(ctx, "leaving_a_child").query(CANDIDATE, 1.0, 2.0)) < 5
    assert gone(folder)


def test_it_ends_with_shipctl(folder: Path) -> None:
    """Killed without a word, it leaves no function behind."""
    code = (
        "import sys, pathlib; from shipctl_plugins.metrics.python_function import *; "
        "options = PythonOptions(function='metrics/quality.py:hanging', timeout='60s'); "
        "ctx = MetricContext('p', 'm', {}, project=pathlib.Path(sys.argv[1])); "
        "PythonFunction(options, ctx).query('b', 1.0, 2.0)"
    )
    shipctl = subprocess.Popen([sys.executable, "-c", code, str(folder)])
    pids = folder / "metrics" / "pids"
    deadline = time.monotonic() + 20
    while not (pids.exists() and len(pids.read_text().split()) == 2):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    shipctl.kill()
    shipctl.wait()
    assert gone(folder), "the function still runs"


def test_a_plan_imports_it_and_does_not_call_it(folder: Path, check_ctx: CheckContext) -> None:
    def check(name: str) -> None:
        PythonFunction.check(PythonOptions(function=name), check_ctx)

    check("metrics/quality.py:raising")
    assert not (folder / "metrics" / "asked.json").exists()
    with pytest.raises(SpecError) as caught:
        check("metrics/nowhere.py:it")
    assert str(caught.value) == (
        f"function metrics/nowhere.py:it: there is no file {folder}/metrics/nowhere.py; correct `function`"
    )
    with pytest.raises(SpecError, match="has no attribute 'no_such'"):
        check("metrics/quality.py:no_such")


@pytest.mark.parametrize("name", ["measure", "quality.py", "a-b:c", "quality.py:", "x.py:a b", ":f"])
def test_a_text_that_names_no_function_is_refused(name: str) -> None:
    with pytest.raises(SpecError) as caught:
        validated(PythonOptions, {"function": name}, "metric provider 'python'")
    assert str(caught.value) == (
        f"metric provider 'python': {name!r} names no function; "
        "write metrics/quality.py:measure or package.module:measure"
    )


class TestConformance(MetricProviderConformance):
    """The kit's promises, of a function that counts rows of a file."""

    name, plugin, revision, covers = "python", PythonFunction, CANDIDATE, False

    @pytest.fixture
    def provider(self, ctx: MetricContext, folder: Path) -> PythonFunction:
        self.rows = folder / "metrics" / "rows.json"
        self.all = list[list[float]]()
        self.clock = 1000.0
        return function(ctx, "counted")

    def happen(self, provider: Any, requests: int, errors: int) -> tuple[float, float]:
        self.clock += 20
        self.all.append([self.clock - 10, requests, errors])
        self.rows.write_text(str(self.all))
        return self.clock - 20, self.clock

    def take_away(self, provider: Any) -> None:
        self.rows.unlink()
