"""A small vision transformer for the handwritten digits of `digits.py`.

``build()`` gives the architecture; running this file trains it and writes what a pipeline needs:

    python specs/models/digits_transformer.py

- ``specs/models/digits-transformer.safetensors``: the trained weights;
- ``specs/data/digits-transformer-golden.npz``: a dozen held-out images (``image``, ``label``) and the trained
  model's ``logits`` for them.

Calibration and evaluation data are those of `digits.py`, whose splits it is trained on.

Needs torch, safetensors and scikit-learn; takes less than a minute. The same versions on the same kind of
processor give the same bytes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

SEED = 20
EPOCHS = 60
BATCH = 32
WIDTH = 64
HEADS = 4
LAYERS = 2
PATCHES = 16


class Block(nn.Module):
    """Self-attention and a feed-forward part, each added to what it reads after layer normalisation.

    Takes and gives float32 ``[batch, patches, width]`` (Xiong et al. 2020, "pre-LN").
    """

    def __init__(self) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(WIDTH)
        self.queries_keys_values = nn.Linear(WIDTH, 3 * WIDTH)
        self.attended = nn.Linear(WIDTH, WIDTH)
        self.norm_feed = nn.LayerNorm(WIDTH)
        self.feed = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        parts = self.queries_keys_values(self.norm_attention(x)).chunk(3, dim=-1)
        query, key, value = (
            part.unflatten(-1, (HEADS, WIDTH // HEADS)).transpose(
                1, 2
            )  # [batch, heads, patches, width / heads]
            for part in parts
        )
        mixed = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        x = x + self.dropout(self.attended(mixed))
        y: Tensor = x + self.dropout(self.feed(self.norm_feed(x)))
        return y


class DigitsTransformer(nn.Module):
    """Two blocks over patches of 4×4 pixels that overlap, their mean, and a linear classifier; 70 thousand parameters.

    Takes float32 ``image [batch, 1, 8, 8]`` in 0..1, gives float32 ``logits [batch, 10]``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, WIDTH, kernel_size=4, stride=2, padding=1)
        self.position = nn.Parameter(0.02 * torch.randn(1, PATCHES, WIDTH))
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, 10)

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits of a batch of images."""
        patches = self.embed(image).flatten(2).transpose(1, 2)
        logits: Tensor = self.head(self.norm(self.blocks(patches + self.position)).mean(1))
        return logits


def build() -> nn.Module:
    """Return the untrained network."""
    return DigitsTransformer()


def shifted(images: Tensor) -> Tensor:
    """Return the images ``[n, 1, 8, 8]``, each moved by at most one pixel in either direction."""
    rows, columns = (torch.randint(0, 3, (len(images), 1)) + torch.arange(8) for _ in range(2))
    padded = functional.pad(images, (1, 1, 1, 1))
    return padded[torch.arange(len(images))[:, None, None], 0, rows[:, :, None], columns[:, None, :]][:, None]


def train(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    """Train ``model`` in place with AdamW and a one-cycle learning rate; leave it in evaluation mode."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=5e-2)
    steps = -(-len(labels) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=EPOCHS * steps)
    model.train()
    for epoch in range(1, EPOCHS + 1):
        total = 0.0
        order = torch.randperm(len(labels))
        for start in range(0, len(labels), BATCH):
            batch = order[start : start + BATCH]
            optimizer.zero_grad()
            loss = functional.cross_entropy(
                model(shifted(images[batch])), labels[batch], label_smoothing=0.05
            )
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            total += loss.item() * len(batch)
        if epoch % 10 == 0:
            print(f"epoch {epoch}: loss {total / len(labels):.4f}")
    model.eval()


def main() -> None:
    """Train the network and write its weights and golden samples."""
    # the data of the other network, and its way to choose golden samples
    from digits import choose_golden, load_splits, predict, write_arrays
    from safetensors.torch import save_file

    specs = Path(__file__).resolve().parents[1]
    parser = argparse.ArgumentParser(description="train the transformer; write weights and golden samples")
    parser.add_argument("--out", type=Path, default=specs, help="folder that gets models/ and data/")
    out: Path = parser.parse_args().out
    for folder in ("models", "data"):
        (out / folder).mkdir(parents=True, exist_ok=True)

    torch.manual_seed(SEED)
    torch.use_deterministic_algorithms(mode=True)
    torch.set_num_threads(1)

    splits = load_splits()
    model = build()
    train(model, *splits["train"])

    images, labels = splits["evaluation"]
    accuracy = (predict(model, images).argmax(1) == labels).float().mean().item()
    print(f"accuracy on {len(labels)} held-out images: {accuracy:.4f}")

    weights = out / "models" / "digits-transformer.safetensors"
    save_file(model.state_dict(), weights)
    print(f"{weights}: {weights.stat().st_size} bytes")
    images, labels = splits["golden"]
    chosen = choose_golden(predict(model, images), labels)
    images, labels = images[chosen], labels[chosen]
    golden = out / "data" / "digits-transformer-golden.npz"
    write_arrays(golden, image=images, label=labels, logits=predict(model, images))


if __name__ == "__main__":
    main()
