"""Boosted trees that tell malignant from benign tumours by thirty measurements (scikit-learn's breast cancer data).

Running this file trains them and writes what a pipeline needs:

    python specs/models/forest.py

- ``specs/models/forest.skops``: the trained model;
- ``specs/data/forest-calibration.csv``: a stratified part of the training samples;
- ``specs/data/forest-evaluation.csv``: held-out samples;
- ``specs/data/forest-golden.npz``: a dozen other held-out samples (``measurements`` float32 ``[n, 30]``) and the
  trained model's ``label`` (int64 ``[n]``, 1 for benign) and ``probabilities`` (float32 ``[n, 2]``) for them.

The .csv files have a header: a column per measurement, in the order in which the model takes them, and ``label``.
No sample is in two of training, evaluation and golden.

Needs scikit-learn and skops; takes some seconds. The same versions give the same data and the same trees; the model's
file also holds numbers of its own making that differ from run to run.
"""

from __future__ import annotations

import argparse
import csv
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import skops.io
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.model_selection import train_test_split

SEED = 22
EVALUATION = 170
CALIBRATION = 120
GOLDEN_POOL = 40
GOLDEN = 12
# Probability of the winning class: a golden answer that changes means a wrong model, no close call.
GOLDEN_CERTAINTY = 0.9

Table = NDArray[np.float32]
Labels = NDArray[np.int64]


def load_splits() -> tuple[list[str], dict[str, tuple[Table, Labels]]]:
    """Return the names of the measurements, and samples and labels per split, all stratified by class.

    ``train``, ``evaluation`` and ``golden`` (the pool that golden samples are chosen from) are disjoint;
    ``calibration`` is a part of ``train``.
    """
    data = load_breast_cancer()
    names = [name.replace(" ", "_") for name in data.feature_names]
    table, labels = data.data.astype(np.float32), data.target.astype(np.int64)

    def divide(indices: Labels, size: int) -> tuple[Labels, Labels]:
        rest, part = train_test_split(indices, test_size=size, stratify=labels[indices], random_state=SEED)
        return rest, part

    train, held_out = divide(np.arange(len(labels)), EVALUATION + GOLDEN_POOL)
    evaluation, golden = divide(held_out, GOLDEN_POOL)
    _, calibration = divide(train, CALIBRATION)
    splits = {"train": train, "evaluation": evaluation, "golden": golden, "calibration": calibration}
    return names, {name: (table[indices], labels[indices]) for name, indices in splits.items()}


def choose_golden(probabilities: NDArray[Any], labels: Labels) -> Labels:
    """Return the indices of ``GOLDEN`` samples that are right with ``GOLDEN_CERTAINTY``, half of each class."""
    clear = (probabilities.argmax(1) == labels) & (probabilities.max(1) >= GOLDEN_CERTAINTY)
    by_class = [np.flatnonzero(clear & (labels == kind))[: GOLDEN // 2] for kind in (0, 1)]
    if sum(map(len, by_class)) < GOLDEN:
        raise ValueError("too few clear golden samples; lower GOLDEN_CERTAINTY")
    return np.sort(np.concatenate(by_class))


def write_table(path: Path, names: list[str], table: Table, labels: Labels) -> None:
    """Write a .csv file with a header; nine digits give every float32 back as it was."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*names, "label"])
        for row, label in zip(table, labels, strict=True):
            writer.writerow([*(f"{value:.9g}" for value in row), int(label)])
    print(f"{path}: {len(labels)} samples, {path.stat().st_size} bytes")


def main() -> None:
    """Train the trees and write them and the data splits."""
    specs = Path(__file__).resolve().parents[1]
    parser = argparse.ArgumentParser(description="train the boosted trees; write model and data")
    parser.add_argument("--out", type=Path, default=specs, help="folder that gets models/ and data/")
    out: Path = parser.parse_args().out
    for folder in ("models", "data"):
        (out / folder).mkdir(parents=True, exist_ok=True)

    names, splits = load_splits()
    model = HistGradientBoostingClassifier(max_iter=60, max_leaf_nodes=8, random_state=SEED)
    model.fit(*splits["train"])
    table, labels = splits["evaluation"]
    print(f"accuracy on {len(labels)} held-out samples: {model.score(table, labels):.4f}")

    place = out / "models" / "forest.skops"
    skops.io.dump(model, place, compression=zipfile.ZIP_DEFLATED)
    print(f"{place}: {place.stat().st_size} bytes")
    for name in ("calibration", "evaluation"):
        write_table(out / "data" / f"forest-{name}.csv", names, *splits[name])
    table, labels = splits["golden"]
    chosen = choose_golden(model.predict_proba(table), labels)
    table, labels = table[chosen], labels[chosen]
    golden = out / "data" / "forest-golden.npz"
    np.savez_compressed(
        golden, allow_pickle=False, measurements=table, label=labels,
        probabilities=model.predict_proba(table).astype(np.float32),
    )  # fmt: skip
    print(f"{golden}: {len(labels)} samples, {golden.stat().st_size} bytes")


if __name__ == "__main__":
    main()
