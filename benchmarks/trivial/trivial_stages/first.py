"""The first stage of a chain."""

from __future__ import annotations

from pydantic import Field

from shipctl import Stage, StageContext, StageInputs, StageOptions
from trivial_stages import Number, Outputs


class Options(StageOptions):
    """Where to begin."""

    start: int = Field(default=1, description="The number that the chain begins with.")


class Inputs(StageInputs):
    """Nothing."""


class First(Stage[Options, Inputs, Outputs]):
    """Write a number."""

    api_version = 1
    isolation = "inline"

    def run(self, inputs: Inputs, ctx: StageContext) -> Outputs:
        """Write the number that the options say."""
        return Outputs(number=Number.written(ctx.workdir, self.options.start))
