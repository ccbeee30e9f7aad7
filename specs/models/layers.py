"""Building blocks shared by the example models."""

from __future__ import annotations

from torch import Tensor, nn


class ConvBlock(nn.Module):
    """3x3 convolution, batch normalisation, ReLU; height and width stay as they are.

    Takes float32 ``[batch, in_channels, height, width]``, gives ``[batch, out_channels, height, width]``.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        # no bias: batch normalisation subtracts it again
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        y: Tensor = self.act(self.norm(self.conv(x)))
        return y
