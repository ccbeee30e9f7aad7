"""The best variant of a model: how long it takes to find it, and how fast it is, beside Olive; the table of variants.

Both sides get the same ONNX file, the same samples, the same accuracy budget and the same kinds of variants (FP16, INT8
dynamic, INT8 static with every way of choosing ranges, per channel and per tensor), from nothing to the chosen model as
a user would run them: `shipctl apply` with a `search`, and an Olive workflow with its search. What each has chosen is
then scored and timed here, in turn, by the same code. With ``--table FILE`` no Olive: the specs of `specs/` are run up
to their choice, and the table of their variants is written.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import environments
import numpy as np
from harness import NotMeasuredError, clean_environment, host, host_line, say, timed, write_json
from olive_search import score
from variants import copy_of_specs, report_of, shipctl, write_table

from shipctl_plugins._onnx.session import open_session
from shipctl_plugins.qualify._timing import interleave

WORKER = Path(__file__).resolve().parent / "olive_search.py"
TIMEOUT = 1200.0
METHODS = ("minmax", "entropy", "percentile")
MEASURING = {"batch_sizes": [1], "warmup": "50ms", "min_duration": "450ms", "max_duration": "1s"}
"""Of `search`: one sample per call, as Olive measures it."""


@dataclass(frozen=True)
class Job:
    """A model to optimise."""

    name: str
    spec: str
    """The spec that makes the ONNX file, and knows the samples."""
    maker: str
    """The stage of it that does."""
    metric: str
    budget: float
    inputs: list[dict[str, Any]]
    outputs: list[dict[str, Any]]
    scoring: dict[str, Any]
    op_types: tuple[str, ...] | None = None


_IDS = [
    {"name": name, "dtype": "int64", "shape": ["batch", "sequence"]}
    for name in ("input_ids", "attention_mask", "token_type_ids")
]
JOBS = (
    Job(
        "digits CNN", "digits-search.yaml", "simple", "accuracy", 0.005,
        [{"name": "image", "dtype": "float32", "shape": ["batch", 1, 8, 8]}],
        [{"name": "logits", "dtype": "float32", "shape": ["batch", 10]}], {},
    ),
    Job(
        "MiniLM-L6", "minilm.yaml", "onnx", "spearman", 0.02, _IDS,
        [{"name": "sentence_embedding", "dtype": "float32", "shape": ["batch", 384]}], {"task": "pairs"},
        ("MatMul", "Gemm"),
    ),
)  # fmt: skip


@dataclass
class Found:
    """What one side chose in one round."""

    seconds: float
    model: Path
    said: dict[str, Any]


def main() -> int:
    """Measure, and print what came out."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3, help="searches of each side")
    parser.add_argument(
        "--environments", type=Path, default=environments.DEFAULT_FOLDER, help="where Olive's is made"
    )
    parser.add_argument("--only", metavar="NAME", help="only the model whose name has this in it")
    parser.add_argument(
        "--table", metavar="FILE.md", type=Path, help="write the table of variants there, and end"
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the figures to FILE")
    given = parser.parse_args()
    print(host_line(), flush=True)
    with tempfile.TemporaryDirectory(prefix="shipctl-bench-") as name:
        folder = Path(name)
        if given.table:
            return write_table(given.table, folder)
        try:
            olive = environments.olive(given.environments)
            print(f"olive-ai {olive.version}", flush=True)
        except NotMeasuredError as exc:
            print(f"Olive is not measured: {exc}", flush=True)
            return 1
        jobs = [job for job in JOBS if (given.only or "").lower() in job.name.lower()]
        figures = [compare(job, olive, folder / job.maker, given.rounds) for job in jobs]
    write_json(given.json, {"host": host(), "olive": olive.version, "figures": figures})
    return 0


def compare(job: Job, olive: environments.Environment, folder: Path, rounds: int) -> dict[str, Any]:
    """Let both sides search a model, in turn, and measure what they chose."""
    folder.mkdir(parents=True)
    say(f"{job.name}: making the ONNX file")
    model, data = prepare(job, folder)
    found: dict[str, list[Found]] = {"shipctl": [], "olive": []}
    missing: dict[str, str] = {}
    for number in range(rounds):
        for side, search in (("shipctl", by_shipctl), ("olive", by_olive)):
            if side in missing:
                continue
            say(f"{job.name}: round {number + 1} of {rounds}, {side}")
            place = folder / f"{side}-{number}"
            place.mkdir()
            try:
                found[side].append(search(job, model, data, place, olive))
            except NotMeasuredError as exc:
                missing[side] = str(exc)
    return report(job, model, data, found, missing)


def prepare(job: Job, folder: Path) -> tuple[Path, dict[str, Path]]:
    """Return the ONNX file that both sides begin with, and the samples as .npz files by role."""
    from shipctl.engine.pipeline import prepare as load_pipeline
    from shipctl.stages.artifacts import Dataset
    from shipctl_plugins._onnx.arrays import load_arrays

    specs = copy_of_specs(folder / "specs")
    shipctl(specs / job.spec, "--until", job.maker)
    model = artifact_file(specs / job.spec, job.maker, folder / "source.onnx")
    pipeline = load_pipeline(specs / job.spec)
    data = {}
    for role in ("evaluation", "calibration"):
        source = pipeline.sources[f"data.{role}"]
        root = folder / role
        for entry in source.artifact.files:
            place = root / entry.path
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source.places[entry.path], place)
        single = root / source.artifact.files[0].path
        assert isinstance(source.artifact, Dataset)
        arrays = load_arrays(source.artifact.located(single if len(source.artifact.files) == 1 else root))
        data[role] = folder / f"{role}.npz"
        kept: dict[str, Any] = {
            name: array for name, array in arrays.items() if role == "evaluation" or name != "label"
        }
        np.savez(data[role], **kept)
    return model, data


def artifact_file(spec: Path, stage: str, target: Path) -> Path:
    """Copy the ONNX file that a stage made in the latest run of a project."""
    from shipctl.engine.journal import Journal
    from shipctl.engine.project import Project
    from shipctl.stages.artifacts import OnnxModel
    from shipctl.store.local import LocalStore

    project = Project.of(spec)
    with Journal(project.journal) as journal:
        run = journal.runs(limit=1)[0]
        row = next(row for row in journal.stages(run.id) if row.node == stage)
    store = LocalStore(project.store)
    result = store.load_result(row.fingerprint or "")
    if result is None:
        message = f"stage {stage} of {spec.name} left nothing"
        raise NotMeasuredError(message)
    made = store.artifact(OnnxModel, result.outputs["model"])
    shutil.copy(store.view(made, target.with_suffix(".view")).path, target)
    return target


def by_shipctl(
    job: Job, model: Path, data: dict[str, Path], place: Path, _: environments.Environment
) -> Found:
    """Search with `shipctl apply` in a new project."""
    (place / ".git").mkdir()
    for name, path in {"model.onnx": model, **{f"{role}.npz": path for role, path in data.items()}}.items():
        shutil.copy(path, place / name)
    floor = quality(job, model, data) - job.budget
    (place / "spec.yaml").write_text(json.dumps(spec_of(job, floor), indent=1))
    command = [sys.executable, "-m", "shipctl.cli", "apply", "spec.yaml"]
    sample = timed(command, cwd=place, env=clean_environment(place / "home"), timeout=TIMEOUT)
    chosen = artifact_file(place / "spec.yaml", "best", place / "chosen.onnx")
    said = report_of(place / "spec.yaml")["selections"][0]
    return Found(
        sample.wall, chosen, {"choice": next(item for item in said["candidates"] if item["chosen"])["node"]}
    )


def spec_of(job: Job, floor: float) -> dict[str, Any]:
    """Return the spec of the search: the file itself, FP16, dynamic INT8 and static INT8 in six ways."""
    quick = {"min_top1": None, "min_cosine": None}
    types = {"op_types": list(job.op_types)} if job.op_types else {}
    static = {"method": "${{ matrix.method }}", "per_channel": "${{ matrix.per_channel }}", **types, **quick}
    search = {
        "objective": "latency.p95",
        "subject_to": [f"{job.metric} >= {floor:.6f}"],
        "require_stable": False,
    }
    return {
        "apiVersion": "shipctl.dev/v1",
        "kind": "Pipeline",
        "metadata": {"name": "best", "version": "1.0.0"},
        "model": {"uri": "model.onnx", "inputs": job.inputs, "outputs": job.outputs},
        "data": {role: {"uri": f"{role}.npz"} for role in ("evaluation", "calibration")},
        "stages": [
            {"id": "simple", "uses": "onnx-simplify"},
            {"id": "fp16", "uses": "fp16", "needs": "simple", "with": {"min_top1": None}},
            {"id": "dynamic", "uses": "int8-dynamic", "needs": "simple",
             "with": {"per_channel": True, "keep_in_budget": False, **quick}},
            {"id": "static", "uses": "int8-calibration", "needs": "simple",
             "matrix": {"method": list(METHODS), "per_channel": [True, False]},
             "with": {**static, "keep_in_budget": False}},
            {"id": "best", "uses": "search", "needs": ["simple", "fp16", "dynamic", "static"],
             "with": {**search, **MEASURING, **job.scoring}},
        ],
    }  # fmt: skip


def by_olive(
    job: Job, model: Path, data: dict[str, Path], place: Path, olive: environments.Environment
) -> Found:
    """Search with an Olive workflow in a new folder."""

    def any_of(values: Sequence[Any]) -> dict[str, Any]:
        return {"olive_parameter_type": "SearchParameter", "type": "Categorical", "support": list(values)}

    types = {"op_types_to_quantize": list(job.op_types)} if job.op_types else {}
    task = {
        "model": str(model), "metric": job.metric, "budget": job.budget, "folder": str(place),
        **{role: str(path) for role, path in data.items()},
        "passes": [
            {"type": "OnnxStaticQuantization", "data_config": "calibration", "quant_format": "QDQ", "precision": "int8",
             "activation_type": "uint8", "quant_preprocess": True, "reduce_range": False,
             "calibrate_method": any_of(["MinMax", "Entropy", "Percentile"]), "per_channel": any_of([True, False]),
             **types},
            {"type": "OnnxDynamicQuantization", "precision": "int8", "per_channel": True, "reduce_range": False,
             "quant_preprocess": True},
            {"type": "OnnxFloatToFloat16"},
        ],
    }  # fmt: skip
    (place / "task.json").write_text(json.dumps(task, indent=1))
    command = [olive.program("python"), str(WORKER), str(place / "task.json")]
    env = clean_environment(place / "home") | {"OLIVE_DISABLE_TELEMETRY": "1"}
    sample = timed(command, cwd=place, env=env, timeout=TIMEOUT)
    said = json.loads(sample.said.strip().splitlines()[-1])
    return Found(sample.wall, Path(said["model"]), {"numbers": said["numbers"]})


def quality(job: Job, model: Path, data: dict[str, Path]) -> float:
    """Return the quality of a model on all evaluation samples."""
    return score(open_session(model), data["evaluation"], job.metric)


def report(
    job: Job, model: Path, data: dict[str, Path], found: dict[str, list[Found]], missing: dict[str, str]
) -> dict[str, Any]:
    """Score and time what was chosen, side by side, print it and return it."""
    with np.load(data["evaluation"]) as file:
        feed = {item["name"]: file[item["name"]][:1] for item in job.inputs}
    files = {
        "source": [model],
        **{side: [item.model for item in items] for side, items in found.items() if items},
    }
    flat = [(side, path) for side, paths in files.items() for path in paths]
    runs = [partial(open_session(path).run, None, feed) for _, path in flat]
    raced = interleave(runs, warmup=0.3, window=1.0, longest=6.0, tolerance=0.0)
    latency: dict[str, float] = {}
    for side in files:
        slices = [
            float(np.percentile(part.latencies, 95))
            for (owner, _), one in zip(flat, raced, strict=True)
            if owner == side
            for part in one.slices
        ]
        latency[side] = median(slices)
    before = quality(job, model, data)
    rows: dict[str, dict[str, Any]] = {
        side: {
            "seconds": [item.seconds for item in found.get(side, [])],
            "p95": latency[side],
            job.metric: [quality(job, path, data) for path in paths],
            "said": [item.said for item in found.get(side, [])],
        }
        for side, paths in files.items()
    }
    print(f"\n{job.name}: {job.metric} {before:.4f} before, at most {job.budget:.3f} may be lost")
    print(
        "| | seconds to find it | p95 of what was found | against the source | drop |\n|---|---|---|---|---|"
    )
    for side, row in rows.items():
        walls = f"{median(row['seconds']):.1f}" if row["seconds"] else ""
        drop = max(before - value for value in row[job.metric])
        print(
            f"| {side} | {walls} | {row['p95'] * 1e6:.1f} us | {latency['source'] / row['p95']:.2f} × | {drop:.4f} |"
        )
    if {"shipctl", "olive"} <= rows.keys():
        faster = latency["olive"] / latency["shipctl"]
        time = median(rows["olive"]["seconds"]) / median(rows["shipctl"]["seconds"])
        print(
            f"\nfound by shipctl against found by Olive: {faster:.2f} × as fast, {time:.2f} × as quickly found"
        )
    for side, why in missing.items():
        print(f"{side} is not measured: {why}")
    return {"model": job.name, "metric": job.metric, "before": before, "rows": rows, "missing": missing}


if __name__ == "__main__":
    sys.exit(main())
