"""A small convolutional network for the handwritten digits that come with scikit-learn.

``build()`` gives the architecture; running this file trains it and writes what a pipeline needs:

    python specs/models/digits.py

- ``specs/models/digits.safetensors``: the trained weights;
- ``specs/data/digits-calibration.npz``: a stratified part of the training images;
- ``specs/data/digits-evaluation.npz``: held-out images;
- ``specs/data/digits-golden.npz``: a dozen other held-out images and the trained model's logits for them.

Each data file has ``image`` (float32 ``[n, 1, 8, 8]``, 0 to 1) and ``label`` (int64 ``[n]``); the golden one
also ``logits`` (float32 ``[n, 10]``). No image is in two of training, evaluation and golden.

Needs torch, safetensors and scikit-learn; takes some seconds. The same versions on the same kind of processor
give the same bytes.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from layers import ConvBlock
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    import numpy as np

SEED = 20
EPOCHS = 30
BATCH = 32
EVALUATION = 600
CALIBRATION = 300
GOLDEN_POOL = 100
GOLDEN = 12
# Distance from the best logit to the next. Rounding in another runtime or INT8 moves logits by far less, so a
# golden answer that changes class means a wrong model and not a close call.
GOLDEN_MARGIN = 4.0


class DigitsNet(nn.Module):
    """Four convolution blocks and a linear classifier, 95 thousand parameters.

    Takes float32 ``image [batch, 1, 8, 8]`` in 0..1, gives float32 ``logits [batch, 10]``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            ConvBlock(1, 32),
            ConvBlock(32, 64),
            ConvBlock(64, 64),
            nn.MaxPool2d(2),
            ConvBlock(64, 64),
            nn.MaxPool2d(2),
            nn.Flatten(),
        )
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(64 * 2 * 2, 10)

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits of a batch of images."""
        logits: Tensor = self.head(self.dropout(self.features(image)))
        return logits


def build() -> nn.Module:
    """Return the untrained network."""
    return DigitsNet()


def load_splits() -> dict[str, tuple[Tensor, Tensor]]:
    """Return images (float32 ``[n, 1, 8, 8]``) and labels (int64 ``[n]``) per split, all stratified by class.

    ``train``, ``evaluation`` and ``golden`` (the pool that golden samples are chosen from) are disjoint;
    ``calibration`` is a part of ``train``.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, classes = load_digits(return_X_y=True)
    images = torch.from_numpy(pixels / 16).to(torch.float32).reshape(-1, 1, 8, 8)
    labels = torch.from_numpy(classes).to(torch.int64)

    def divide(indices: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
        rest, part = train_test_split(indices, test_size=size, stratify=classes[indices], random_state=SEED)
        return rest, part

    train, held_out = divide(torch.arange(len(labels)).numpy(), EVALUATION + GOLDEN_POOL)
    evaluation, golden = divide(held_out, GOLDEN_POOL)
    _, calibration = divide(train, CALIBRATION)
    splits = {"train": train, "evaluation": evaluation, "golden": golden, "calibration": calibration}
    return {name: (images[indices], labels[indices]) for name, indices in splits.items()}


def train(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    """Train ``model`` in place with AdamW and a one-cycle learning rate; leave it in evaluation mode."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-2)
    steps = -(-len(labels) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=EPOCHS * steps)
    model.train()
    for epoch in range(1, EPOCHS + 1):
        total = 0.0
        order = torch.randperm(len(labels))
        for start in range(0, len(labels), BATCH):
            batch = order[start : start + BATCH]
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(images[batch]), labels[batch])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            total += loss.item() * len(batch)
        if epoch % 10 == 0:
            print(f"epoch {epoch}: loss {total / len(labels):.4f}")
    model.eval()


def predict(model: nn.Module, images: Tensor) -> Tensor:
    """Return the float32 logits ``[n, 10]`` of ``images``."""
    with torch.inference_mode():
        logits: Tensor = model(images)
    return logits


def choose_golden(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the indices of ``GOLDEN`` samples that are right by ``GOLDEN_MARGIN``, every class among them.

    Raises ``ValueError`` if a class has no such sample or there are too few in all.
    """
    best = logits.topk(2).values
    clear = (logits.argmax(1) == labels) & (best[:, 0] - best[:, 1] >= GOLDEN_MARGIN)
    candidates: list[int] = clear.nonzero().flatten().tolist()
    by_class = [[i for i in candidates if labels[i] == digit] for digit in range(10)]
    missing = [digit for digit, indices in enumerate(by_class) if not indices]
    if missing or len(candidates) < GOLDEN:
        found = f"{len(candidates)} of {GOLDEN}, none for classes {missing}"
        raise ValueError(f"too few clear golden samples: {found}; train longer or lower GOLDEN_MARGIN")
    # round by round over the classes: one of each before the second of any
    rounds = [indices[turn] for turn in range(GOLDEN) for indices in by_class if turn < len(indices)]
    return torch.tensor(rounds[:GOLDEN])


def write_arrays(path: Path, **arrays: Tensor) -> None:
    """Write ``arrays`` to a compressed ``.npz`` (numpy gives its members a fixed date, so bytes repeat)."""
    import numpy as np

    np.savez_compressed(path, allow_pickle=False, **{name: array.numpy() for name, array in arrays.items()})
    print(f"{path}: {len(arrays['label'])} samples, {path.stat().st_size} bytes")


def main() -> None:
    """Train the network and write its weights and data splits."""
    from safetensors.torch import save_file

    specs = Path(__file__).resolve().parents[1]
    parser = argparse.ArgumentParser(description="train the digits network; write weights and data splits")
    parser.add_argument("--out", type=Path, default=specs, help="folder that gets models/ and data/")
    out: Path = parser.parse_args().out
    for folder in ("models", "data"):
        (out / folder).mkdir(parents=True, exist_ok=True)

    torch.manual_seed(SEED)
    torch.use_deterministic_algorithms(mode=True)
    # several threads only wait for each other on a network this small, and their sums differ from run to run
    torch.set_num_threads(1)

    splits = load_splits()
    model = build()
    train(model, *splits["train"])

    images, labels = splits["evaluation"]
    accuracy = (predict(model, images).argmax(1) == labels).float().mean().item()
    print(f"accuracy on {len(labels)} held-out images: {accuracy:.4f}")

    weights = out / "models" / "digits.safetensors"
    save_file(model.state_dict(), weights)
    print(f"{weights}: {weights.stat().st_size} bytes")
    for name in ("calibration", "evaluation"):
        images, labels = splits[name]
        write_arrays(out / "data" / f"digits-{name}.npz", image=images, label=labels)
    images, labels = splits["golden"]
    chosen = choose_golden(predict(model, images), labels)
    images, labels = images[chosen], labels[chosen]
    # asked again for these alone: a convolution may round differently in another batch size
    logits = predict(model, images)
    write_arrays(out / "data" / "digits-golden.npz", image=images, label=labels, logits=logits)


if __name__ == "__main__":
    main()
