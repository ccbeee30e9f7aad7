"""A small Keras 3 network for the handwritten digits that come with scikit-learn.

Running this file trains it and writes what a pipeline needs:

    python specs/models/keras_digits.py

- ``specs/models/keras-digits.keras``: the trained model;
- ``specs/data/keras-digits-calibration.npz``: a stratified part of the training images;
- ``specs/data/keras-digits-evaluation.npz``: held-out images;
- ``specs/data/keras-digits-golden.npz``: a dozen other held-out images and the trained model's logits for them.

Each data file has ``image`` (float32 ``[n, 8, 8, 1]``, 0 to 1, channels last as Keras has them) and ``label``
(int64 ``[n]``); the golden one also ``logits`` (float32 ``[n, 10]``). No image is in two of training, evaluation and
golden.

Needs tensorflow, keras and scikit-learn; takes less than a minute. The same versions on the same kind of processor
give the same data and weights; the model's file also holds the time at which it was saved.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

SEED = 21
EPOCHS = 40
BATCH = 32
EVALUATION = 600
CALIBRATION = 300
GOLDEN_POOL = 100
GOLDEN = 12
# Distance from the best logit to the next: a golden answer that changes class means a wrong model, no close call.
GOLDEN_MARGIN = 4.0

Images = NDArray[np.float32]
Labels = NDArray[np.int64]


def build() -> keras.Model:
    """Return the untrained network, 26 thousand parameters.

    Takes float32 ``image [batch, 8, 8, 1]`` in 0..1, gives float32 ``logits [batch, 10]``.
    """
    image = keras.Input((8, 8, 1), name="image")
    x: Any = image
    for index, (channels, pool) in enumerate(((16, False), (32, True), (64, True))):
        x = keras.layers.Conv2D(channels, 3, padding="same", use_bias=False, name=f"conv_{index}")(x)
        x = keras.layers.BatchNormalization(name=f"norm_{index}")(x)
        x = keras.layers.ReLU(name=f"relu_{index}")(x)
        if pool:
            x = keras.layers.MaxPooling2D(name=f"pool_{index}")(x)
    x = keras.layers.Flatten(name="flatten")(x)
    x = keras.layers.Dropout(0.3, name="dropout")(x)
    logits = keras.layers.Dense(10, name="logits")(x)
    return keras.Model(image, logits, name="digits")


def load_splits() -> dict[str, tuple[Images, Labels]]:
    """Return images and labels per split, all stratified by class.

    ``train``, ``evaluation`` and ``golden`` (the pool that golden samples are chosen from) are disjoint;
    ``calibration`` is a part of ``train``.
    """
    pixels, classes = load_digits(return_X_y=True)
    images = (pixels / 16).astype(np.float32).reshape(-1, 8, 8, 1)
    labels = classes.astype(np.int64)

    def divide(indices: Labels, size: int) -> tuple[Labels, Labels]:
        rest, part = train_test_split(indices, test_size=size, stratify=labels[indices], random_state=SEED)
        return rest, part

    train, held_out = divide(np.arange(len(labels)), EVALUATION + GOLDEN_POOL)
    evaluation, golden = divide(held_out, GOLDEN_POOL)
    _, calibration = divide(train, CALIBRATION)
    splits = {"train": train, "evaluation": evaluation, "golden": golden, "calibration": calibration}
    return {name: (images[indices], labels[indices]) for name, indices in splits.items()}


def train(model: keras.Model, images: Images, labels: Labels) -> None:
    """Train ``model`` in place with AdamW and a learning rate that falls to nothing."""
    steps = EPOCHS * -(-len(labels) // BATCH)
    rate = keras.optimizers.schedules.CosineDecay(3e-3, steps)
    model.compile(
        optimizer=keras.optimizers.AdamW(rate, weight_decay=1e-2),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    history = model.fit(images, labels, batch_size=BATCH, epochs=EPOCHS, verbose=0)
    print(f"loss after {EPOCHS} epochs: {history.history['loss'][-1]:.4f}")


def predict(model: keras.Model, images: Images) -> Images:
    """Return the float32 logits ``[n, 10]`` of ``images``."""
    return np.asarray(model(images, training=False))


def choose_golden(logits: Images, labels: Labels) -> Labels:
    """Return the indices of ``GOLDEN`` samples that are right by ``GOLDEN_MARGIN``, every class among them."""
    best = np.sort(logits, axis=1)
    clear = (logits.argmax(1) == labels) & (best[:, -1] - best[:, -2] >= GOLDEN_MARGIN)
    by_class = [np.flatnonzero(clear & (labels == digit)) for digit in range(10)]
    # round by round over the classes: one of each before the second of any
    rounds = [indices[turn] for turn in range(GOLDEN) for indices in by_class if turn < len(indices)]
    if not all(map(len, by_class)) or len(rounds) < GOLDEN:
        raise ValueError("too few clear golden samples; train longer or lower GOLDEN_MARGIN")
    return np.array(rounds[:GOLDEN])


def write_arrays(path: Path, **arrays: NDArray[Any]) -> None:
    """Write ``arrays`` to a compressed ``.npz``."""
    np.savez_compressed(path, allow_pickle=False, **arrays)
    print(f"{path}: {len(arrays['label'])} samples, {path.stat().st_size} bytes")


def main() -> None:
    """Train the network and write it and the data splits."""
    specs = Path(__file__).resolve().parents[1]
    parser = argparse.ArgumentParser(description="train the Keras digits network; write model and data")
    parser.add_argument("--out", type=Path, default=specs, help="folder that gets models/ and data/")
    out: Path = parser.parse_args().out
    for folder in ("models", "data"):
        (out / folder).mkdir(parents=True, exist_ok=True)

    keras.utils.set_random_seed(SEED)
    splits = load_splits()
    model = build()
    train(model, *splits["train"])

    images, labels = splits["evaluation"]
    accuracy = (predict(model, images).argmax(1) == labels).mean()
    print(f"accuracy on {len(labels)} held-out images: {accuracy:.4f}")

    # without the optimiser's state, which is twice as large as the weights
    place = out / "models" / "keras-digits.keras"
    model.compile()
    keras.Model(model.inputs[0], model.outputs[0], name="digits").save(place)
    print(f"{place}: {place.stat().st_size} bytes")
    for name in ("calibration", "evaluation"):
        images, labels = splits[name]
        write_arrays(out / "data" / f"keras-digits-{name}.npz", image=images, label=labels)
    images, labels = splits["golden"]
    chosen = choose_golden(predict(model, images), labels)
    images, labels = images[chosen], labels[chosen]
    write_arrays(
        out / "data" / "keras-digits-golden.npz", image=images, label=labels, logits=predict(model, images)
    )


if __name__ == "__main__":
    main()
