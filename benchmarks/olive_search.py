"""Olive's part of `optimise.py`, run in Olive's environment: search the best variant of a model, and say which it is.

    python olive_search.py TASK.json

The task says `model`, `evaluation` and `calibration` (.npz), `metric` (`accuracy` or `spearman`), `budget` (of its
drop), `folder` to work in, and `passes`. The last line printed is JSON: the chosen model and its numbers.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

TASK = "OLIVE_SEARCH_TASK"
"""The variable that names the task for what Olive imports from this file by itself."""
BATCH = 64
"""Samples per run when a model is scored."""


def task() -> dict[str, Any]:
    """Return the task."""
    body: dict[str, Any] = json.loads(Path(os.environ[TASK]).read_text())
    return body


def quality(model: Any, device: Any = None, execution_providers: Any = None, **_: Any) -> dict[str, float]:
    """Score a model on all evaluation samples: Olive calls this for its custom metric."""
    said = task()
    session = model.prepare_session(device=device, execution_providers=execution_providers)
    return {said["metric"]: score(session, said["evaluation"], said["metric"])}


def score(session: Any, evaluation: str | Path, metric: str) -> float:
    """Return the accuracy of a model's answers, or Spearman's rank correlation of the similarity of pairs."""
    with np.load(evaluation) as file:
        data = {name: file[name] for name in file.files}
    names, labels = [item.name for item in session.get_inputs()], data["label"]
    starts = range(0, len(labels), BATCH)
    answers = np.concatenate(
        [session.run(None, {name: data[name][at : at + BATCH] for name in names})[0] for at in starts]
    )
    if metric == "accuracy":
        return float((answers.argmax(-1) == labels).mean())
    one, two = answers[0::2].astype(np.float64), answers[1::2].astype(np.float64)
    alike = (one * two).sum(-1) / np.linalg.norm(one, axis=-1) / np.linalg.norm(two, axis=-1)
    return float(np.corrcoef(_ranks(alike), _ranks(labels[0::2]))[0, 1])


def _ranks(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return ranks, equal values with their mean."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks: np.ndarray[Any, Any] = (ends - (counts - 1) / 2)[places]
    return ranks


def register() -> None:
    """Tell Olive of the data sets."""
    from importlib import import_module

    import torch

    Registry = import_module("olive.data.registry").Registry  # noqa: N806  (a class)

    class Samples(torch.utils.data.Dataset[Any]):
        """Arrays by name, a sample each."""

        def __init__(self, path: str) -> None:
            data = np.load(path)
            self._features = {name: data[name] for name in data.files if name != "label"}

        def __len__(self) -> int:
            return len(next(iter(self._features.values())))

        def __getitem__(self, index: int) -> tuple[dict[str, Any], int]:
            return {name: array[index] for name, array in self._features.items()}, 0

    def reader(role: str) -> Callable[..., Samples]:
        def read(**_: Any) -> Samples:  # Olive insists on a plain function
            return Samples(task()[role])

        return read

    for role in ("calibration", "evaluation"):
        Registry.register_dataset(f"{role}_samples")(reader(role))


def config(said: dict[str, Any]) -> dict[str, Any]:
    """Return the workflow: all passes are alternatives, latency is the objective, the drop is bounded."""
    metric, script = said["metric"], str(Path(__file__).resolve())
    goal = {"type": "max-degradation", "value": said["budget"]}

    def data(name: str, kind: str, batch: int) -> dict[str, Any]:
        return {
            "name": name,
            "type": "DummyDataContainer",
            "user_script": script,
            "load_dataset_config": {"type": kind},
            "dataloader_config": {"type": "default_dataloader", "batch_size": batch},
        }

    provider = [{"device": "cpu", "execution_providers": ["CPUExecutionProvider"]}]
    metrics = [
        {
            "name": metric,
            "type": "custom",
            "sub_types": [{"name": metric, "priority": 2, "higher_is_better": True, "goal": goal}],
            "user_config": {"user_script": script, "evaluate_func": "quality"},
        },
        {
            "name": "latency",
            "type": "latency",
            "data_config": "timing",
            "sub_types": [{"name": "p95", "priority": 1}],
        },
    ]
    return {
        "input_model": {"type": "OnnxModel", "config": {"model_path": said["model"]}},
        "systems": {"here": {"type": "LocalSystem", "config": {"accelerators": provider}}},
        "data_configs": [
            data("calibration", "calibration_samples", 16),
            data("timing", "evaluation_samples", 1),
        ],
        "evaluators": {"both": {"metrics": metrics}},
        "passes": {"quantize": said["passes"]},
        "search_strategy": {"execution_order": "joint", "sampler": "sequential"},
        "evaluator": "both",
        "host": "here",
        "target": "here",
        "cache_dir": str(Path(said["folder"]) / "cache"),
        "output_dir": str(Path(said["folder"]) / "out"),
        "log_severity_level": 3,
    }


def main() -> None:
    """Search, and print what was found."""
    os.environ[TASK] = sys.argv[1]
    from importlib import import_module

    found = import_module("olive.workflows").run(config(task())).get_best_candidate()
    print(json.dumps({"model": found.model_path, "numbers": found.metrics_value}))


if __name__ == "__main__":
    main()
elif TASK in os.environ:  # Olive has imported it
    register()
