"""Networks of PyTorch that tests save to files. Import it in tests and fixtures alone: it imports torch."""

from __future__ import annotations

import torch


class Branch(torch.nn.Module):
    """Does one of two things, as the data says."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.linear(x)
        if bool(y.sum() > 0):
            return y + 1
        return y - 1


class Loop(Branch):
    """Repeats itself, as the shape says."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x
        for _ in range(x.shape[0]):
            y = torch.tanh(y * 0.9)
        z: torch.Tensor = self.linear(y)
        return z


class Two(torch.nn.Module):
    """Takes one input by position and one by keyword, and gives two by name."""

    def forward(self, ids: torch.Tensor, *, mask: torch.Tensor) -> dict[str, torch.Tensor]:
        kept = ids.float() * mask
        return {
            "unused": kept,
            "hidden": kept[..., None] * torch.ones(4),
            "pooled": kept.sum(1, keepdim=True),
        }


class Scaled(torch.nn.Module):
    """Multiplies by a weight, and by the size of a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.linear(x) * x.shape[0]
        return y
