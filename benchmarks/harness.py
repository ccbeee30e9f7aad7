"""Measures whole processes side by side, and prints what came out."""

from __future__ import annotations

import json
import os
import platform
import resource
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from time import perf_counter


class NotMeasuredError(Exception):
    """A figure that cannot be had here; the message says why, and the rest is measured all the same."""


@dataclass(frozen=True)
class Sample:
    """One process with all its children: seconds on the clock, and seconds of processor time (user and system)."""

    wall: float
    cpu: float
    said: str


@dataclass(frozen=True)
class Row:
    """All samples of one thing that was measured."""

    label: str
    samples: tuple[Sample, ...]

    @property
    def wall(self) -> float:
        """The median on the clock, in seconds."""
        return median(sample.wall for sample in self.samples)

    @property
    def cpu(self) -> float:
        """The median of processor time, in seconds."""
        return median(sample.cpu for sample in self.samples)

    def record(self) -> dict[str, object]:
        """Return what ``--json`` writes; all times are seconds."""
        return {
            "label": self.label,
            "wall_median": self.wall,
            "wall": [sample.wall for sample in self.samples],
            "cpu_median": self.cpu,
            "cpu": [sample.cpu for sample in self.samples],
        }


@dataclass
class Samples:
    """Rows that grow while several things are measured in turn, and why some could not be."""

    rows: dict[str, list[Sample]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def take(
        self, label: str, command: Sequence[str], *, cwd: Path, env: Mapping[str, str], timeout: float
    ) -> Sample | None:
        """Measure once more. After a failure the label is left alone, and None is returned."""
        if label in self.missing:
            return None
        try:
            sample = timed(command, cwd=cwd, env=env, timeout=timeout)
        except NotMeasuredError as exc:
            self.rows.pop(label, None)
            self.missing[label] = str(exc)
            return None
        self.rows.setdefault(label, []).append(sample)
        return sample

    def row(self, label: str) -> Row | None:
        """Return what was measured under a label."""
        return Row(label, tuple(self.rows[label])) if self.rows.get(label) else None


def timed(command: Sequence[str], *, cwd: Path, env: Mapping[str, str], timeout: float) -> Sample:
    """Run a command to its end.

    :raises NotMeasuredError: if it fails, or is not done after ``timeout`` seconds; then its process group is gone
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = perf_counter()
    with subprocess.Popen(
        command,
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as process:
        try:
            output, _ = process.communicate(timeout=timeout)
        except BaseException as exc:
            os.killpg(process.pid, signal.SIGKILL)
            if isinstance(exc, subprocess.TimeoutExpired):
                message = f"not done after {timeout:.0f} s"
                raise NotMeasuredError(message) from exc
            raise
    wall = perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    said = output.decode(errors="replace")
    if process.returncode != 0:
        last = said.strip().splitlines()[-1] if said.strip() else "nothing was said"
        message = f"exit code {process.returncode}: {last[:160]}"
        raise NotMeasuredError(message)
    return Sample(wall, after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime, said)


def clean_environment(home: Path) -> dict[str, str]:
    """Return environment variables for measured programs: nobody's settings, one thread, nothing sent home."""
    home.mkdir(parents=True, exist_ok=True)
    kept = {name: os.environ[name] for name in ("LANG", "LC_ALL", "TMPDIR") if name in os.environ}
    return kept | {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "HOME": str(home),
        "OMP_NUM_THREADS": "1",
        "DVC_NO_ANALYTICS": "1",
        "DVC_SITE_CACHE_DIR": str(home / "dvc"),
    }


def say(line: str) -> None:
    """Tell on stderr how far it is."""
    print(line, file=sys.stderr, flush=True)


def table(rows: Sequence[Row], columns: Mapping[str, Row | None], *, stages: int | None = None) -> str:
    """Return a table of medians, ranges and processor time, with a ratio to each row of ``columns``.

    With ``stages``, one more column has milliseconds on the clock per stage.
    """
    head = ["", "median s", "min..max", "cpu s"]
    if stages:
        head.append("ms/stage")
    head += [f"× {name}" for name, reference in columns.items() if reference]
    lines = [head]
    for row in rows:
        walls = [sample.wall for sample in row.samples]
        line = [row.label, f"{row.wall:.3f}", f"{min(walls):.3f}..{max(walls):.3f}", f"{row.cpu:.3f}"]
        if stages:
            line.append(f"{row.wall / stages * 1000:.2f}")
        line += [f"{row.wall / reference.wall:.2f}" for reference in columns.values() if reference]
        lines.append(line)
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def host() -> dict[str, object]:
    """Return what a reader of the figures has to know about this machine."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "processors": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 2),
    }


def host_line() -> str:
    """Return :func:`host` as a line to print."""
    facts = host()
    return (
        f"{facts['system']}, {facts['processors']} processors, load {facts['load']} at the start, "
        f"Python {facts['python']}"
    )


def write_json(path: Path | None, body: Mapping[str, object]) -> None:
    """Write the figures where ``--json`` said, if it did."""
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(body, indent=1) + "\n")
