"""Every other stage of a chain."""

from __future__ import annotations

from shipctl import NoOptions, Stage, StageContext, StageInputs
from trivial_stages import Number, Outputs


class Inputs(StageInputs):
    """The number before."""

    number: Number


class Following(Stage[NoOptions, Inputs, Outputs]):
    """Write the number after the one that it reads."""

    api_version = 1
    isolation = "inline"

    def run(self, inputs: Inputs, ctx: StageContext) -> Outputs:
        """Read a number and write the next."""
        return Outputs(number=Number.written(ctx.workdir, int(inputs.number.path.read_text()) + 1))
