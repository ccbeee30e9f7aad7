"""Types of command-line values."""

from __future__ import annotations

from pathlib import Path

import click


class DurationType(click.ParamType[float]):
    """A duration with its unit, such as `30s`."""

    name = "duration"

    def convert(self, value: str | float, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return seconds."""
        from shipctl.spec.units import Duration

        try:
            return float(Duration(value))
        except ValueError as exc:
            self.fail(str(exc), param, ctx)


PATH = click.Path(path_type=Path)
DURATION = DurationType()
