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


class TimeType(click.ParamType[float]):
    """A moment: ISO 8601 (UTC unless it says otherwise), such as `2026-03-01` or `2026-03-01T12:00Z`, or seconds."""

    name = "time"

    def convert(self, value: str | float, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return seconds since the epoch."""
        import re
        from datetime import UTC, datetime

        text = str(value).strip()
        if re.fullmatch(r"[0-9]{9,12}(\.[0-9]+)?", text):
            return float(text)
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            self.fail(f"{text!r} is no time; write it like 2026-03-01T12:00Z", param, ctx)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


PATH = click.Path(path_type=Path)
DURATION = DurationType()
TIME = TimeType()
