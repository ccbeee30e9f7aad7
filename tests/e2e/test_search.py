"""The search over variants of the digits model, as `shipctl apply` runs it: budgets, rungs, report."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support_in_process import in_process

pytestmark = [pytest.mark.torch, pytest.mark.slow, pytest.mark.timeout(400)]

SPECS = Path(__file__).parents[2] / "specs"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("torch", reason="PyTorch is not installed")
    root = tmp_path_factory.mktemp("search") / "specs"
    shutil.copytree(SPECS, root, ignore=shutil.ignore_patterns(".shipctl", "minilm"))
    (root / ".git").mkdir()
    # a full measurement takes half a minute, in which a test learns nothing
    spec = root / "digits-search.yaml"
    spec.write_text(spec.read_text().replace("max_time: 2m", "max_time: 2m\n      max_duration: 1s"))
    assert "max_duration: 1s" in spec.read_text()
    return root


def shipctl(project: Path, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "shipctl.cli", *words],
        cwd=project, capture_output=True, text=True, timeout=350, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def look(project: Path, *words: str) -> str:
    """Run a command that changes nothing, in this process."""
    done = in_process(project, *words)
    assert done.exit_code == 0, done
    return done.stdout


def test_the_search_finds_a_quantised_model_and_accounts_for_every_candidate(project: Path) -> None:
    planned = json.loads(look(project, "plan", "digits-search.yaml", "--json"))
    assert "not tried: best takes 8 of 9 candidates" in json.dumps(planned)
    shipctl(project, "apply", "-j", "1", "digits-search.yaml")
    report: dict[str, Any] = json.loads(look(project, "report", "--json"))["report"]
    (selection,) = report["selections"]
    assert [item["node"] for item in selection["not_tried"]] == ["dynamic"]
    rows = {item["node"]: item for item in selection["candidates"]}
    assert len(rows) == 8
    assert all(item["reason"] for item in rows.values())
    (chosen,) = (node for node, item in rows.items() if item["chosen"])
    assert chosen.startswith("int8["), rows
    assert rows["simple"]["share"] < 1, (
        "the plain model is far slower than INT8: it needs no full measurement"
    )
    assert len(selection["pareto"]["points"]) == 8
    (search,) = (item for item in report["measurements"] if item["node"] == "best")
    assert [row["share"] for row in search["details"]["rungs"]] == [1 / 8, 1 / 4, 1 / 2, 1.0]
    assert search["metrics"]["samples"] == 600
    assert search["metrics"]["accuracy_drop"] <= 0.005
    page = project / "report.html"
    shipctl(project, "report", "-o", str(page))
    assert "latency.p95 and accuracy_drop of the candidates" in page.read_text()


def test_a_second_run_has_nothing_to_do_and_another_limit_only_makes_what_is_new(project: Path) -> None:
    def actions() -> dict[str, str]:
        plan = json.loads(look(project, "plan", "digits-search.yaml", "--json"))
        return {node["node"]: node["action"] for node in plan["nodes"]}

    shipctl(project, "apply", "-j", "1", "digits-search.yaml")
    assert set(actions().values()) == {"cached", "skipped"}
    spec = project / "digits-search.yaml"
    spec.write_text(spec.read_text().replace("max_trials: 8", "max_trials: 9"))
    assert {node for node, action in actions().items() if action == "run"} == {"dynamic", "best"}
