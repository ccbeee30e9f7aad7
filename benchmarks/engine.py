"""What the engine itself costs: chains of trivial stages, planned, run, and run again with nothing changed.

Whole processes are timed, as a user starts them. Every round measures each tool once, one after the other, so
that a change in the machine's load meets all of them: trust the ratios more than the seconds.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import environments
from chains import PEERS, SHIPCTL, SPEC, Tool
from environments import Environment
from harness import (
    Row,
    Sample,
    Samples,
    clean_environment,
    host,
    host_line,
    say,
    table,
    write_json,
)

SIZES = (10, 100, 1000)
TIMEOUT = 300.0
PASS, PYDANTIC = "python -c pass", "import pydantic"
TOUCHED = "shipctl, spec touched"
_SETTLED = 2.2
"""Seconds: shipctl, like git, does not trust the time of a file that is younger than about two seconds."""


Runs = dict[str, tuple[Tool | None, list[str], Path]]
"""What is run again, by label: the tool (None for plain Python), the command, and where."""


@dataclass(frozen=True)
class Target:
    """A promise of the project, and the figure that was measured for it (None: could not be)."""

    text: str
    figure: float | None
    bound: float

    @property
    def outcome(self) -> str:
        """Whether it was kept."""
        return "not measured" if self.figure is None else "met" if self.figure <= self.bound else "missed"


@dataclass
class Bench:
    """One run of the benchmark: its tools, its folder, and all samples by length of the chain and phase."""

    folder: Path
    tools: dict[str, Environment]
    firsts: int
    again: int
    measured: dict[tuple[int, str], Samples] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.env = clean_environment(self.folder / "home")

    def samples(self, length: int, phase: str) -> Samples:
        """Return where the samples of one table are gathered."""
        return self.measured.setdefault((length, phase), Samples())

    def row(self, length: int, phase: str, label: str) -> Row | None:
        """Return one line of one table."""
        return self.samples(length, phase).row(label)

    def measure(self, sizes: tuple[int, ...]) -> None:
        """Measure every tool with chains of these lengths, all of them in every round: growth is compared too."""
        chosen = {
            length: [tool for tool in (SHIPCTL, *PEERS) if tool.name in self.tools and length <= tool.longest]
            for length in sizes
        }
        folders = {
            (length, tool.name): [self._chain(tool, length, number) for number in range(self.firsts)]
            for length, tools in chosen.items()
            for tool in tools
        }
        time.sleep(_SETTLED)
        for number in range(self.firsts):
            say(f"first run, round {number + 1} of {self.firsts}")
            for length, tools in chosen.items():
                for tool in tools:
                    self._first(tool, length, folders[length, tool.name][number])
        # The folders stay until the end: ext4 looks for a free inode more slowly where many were just freed.
        ready: dict[int, list[tuple[Tool, Path]]] = {
            length: [
                (tool, folders[length, tool.name][-1])
                for tool in tools
                if tool.name not in self.samples(length, "first").missing
            ]
            for length, tools in chosen.items()
        }
        self._again(ready)

    def _chain(self, tool: Tool, length: int, number: int) -> Path:
        folder = self.folder / f"{tool.name}-{length}-{number}"
        folder.mkdir()
        tool.write(folder, length)
        return folder

    def _take(self, length: int, phase: str, label: str, command: list[str], folder: Path) -> Sample | None:
        samples = self.samples(length, phase)
        return samples.take(label, command, cwd=folder, env=self.env, timeout=TIMEOUT)

    def _command(self, tool: Tool) -> list[str]:
        return [self.tools[tool.name].program(tool.name), *tool.arguments]

    def _first(self, tool: Tool, length: int, folder: Path) -> None:
        if tool is SHIPCTL:
            command = [self.tools[tool.name].program(tool.name), "plan", SPEC]
            self._take(length, "plan", tool.name, command, folder)
        if self._take(length, "first", tool.name, self._command(tool), folder) and not tool.counted(
            folder, length
        ):
            self._drop(length, "first", tool.name, f"it did not count to {length}")

    def _drop(self, length: int, phase: str, label: str, why: str) -> None:
        samples = self.samples(length, phase)
        samples.rows.pop(label, None)
        samples.missing[label] = why

    def _again(self, ready: dict[int, list[tuple[Tool, Path]]]) -> None:
        plans = {length: self._reruns(length, done) for length, done in ready.items()}
        for length, runs in plans.items():
            self._round(runs, length, "warm-up")
        made = {
            (length, label): _outputs(tool, folder)
            for length, runs in plans.items()
            for label, (tool, _, folder) in runs.items()
        }
        for number in range(self.again):
            if number % 5 == 0:
                say(f"nothing changed, round {number + 1} of {self.again}")
            for length, runs in plans.items():
                self._round(runs, length, "again")
        for length, runs in plans.items():
            for label, (tool, _, folder) in runs.items():
                if _outputs(tool, folder) != made[length, label]:
                    self._drop(length, "again", label, "it ran stages again")

    def _reruns(self, length: int, done: list[tuple[Tool, Path]]) -> Runs:
        runs: Runs = {}
        for tool, folder in done:
            if tool is SHIPCTL:
                python = self.tools[tool.name].program("python")
                runs[PASS] = (None, [python, "-c", "pass"], self.folder)
                runs[PYDANTIC] = (None, [python, "-c", "import pydantic"], self.folder)
                twin = self.folder / f"touched-{length}"
                shutil.copytree(folder, twin)
                runs[TOUCHED] = (tool, self._command(tool), twin)
            runs[tool.name] = (tool, self._command(tool), folder)
        return runs

    def _round(self, runs: Runs, length: int, phase: str) -> None:
        for label, (_, command, folder) in runs.items():
            if label == TOUCHED:
                (folder / SPEC).touch()
            self._take(length, phase, label, command, folder)


def _outputs(tool: Tool | None, folder: Path) -> dict[str, int]:
    """Return what a tool has made, and when: it stays the same if no stage ran again."""
    if tool is None:
        return {}
    found = (folder / ".shipctl" / "store").rglob("*") if tool is SHIPCTL else folder.glob("*.txt")
    return {str(path): path.stat().st_mtime_ns for path in found if path.is_file()}


def per_further_stage(bench: Bench, phase: str, label: str, shorter: int, longer: int) -> float | None:
    """Return the milliseconds that each stage beyond the shorter chain adds; the start of the process drops out."""
    less, more = bench.row(shorter, phase, label), bench.row(longer, phase, label)
    return (more.wall - less.wall) / (longer - shorter) * 1000 if less and more else None


def _ratio(above: Row | None, below: Row | None) -> float | None:
    return above.wall / below.wall if above and below else None


def targets(bench: Bench) -> list[Target]:
    """Return what the project promises, beside what was measured."""
    again = {length: bench.row(length, "again", SHIPCTL.name) for length in SIZES}
    touched = bench.row(10, "again", TOUCHED)
    first = bench.row(1000, "first", SHIPCTL.name)
    slope = per_further_stage(bench, "first", SHIPCTL.name, 10, 100)
    steep = per_further_stage(bench, "first", SHIPCTL.name, 100, 1000)
    dvc = bench.row(10, "again", "dvc")
    return [
        Target(
            "10 stages, nothing changed: at most 3 × `import pydantic`",
            _ratio(again[10], bench.row(10, "again", PYDANTIC)),
            3,
        ),
        Target("10 stages, nothing changed: at most a third of dvc", _ratio(again[10], dvc), 1 / 3),
        Target("10 stages, spec touched: at most a third of dvc", _ratio(touched, dvc), 1 / 3),
        Target(
            "100 stages, nothing changed: at most 2 × doit",
            _ratio(again[100], bench.row(100, "again", "doit")),
            2,
        ),
        Target(
            "1,000 stages, first run: at most 2 ms per stage", first.wall / 1000 / 1e-3 if first else None, 2
        ),
        Target(
            "a further stage costs the same at 1,000 as at 100 (first run, ratio at most 1.5)",
            steep / slope if slope and steep else None,
            1.5,
        ),
    ]


def _tables(bench: Bench, sizes: tuple[int, ...]) -> Iterator[str]:
    labels = [SHIPCTL.name, TOUCHED, *(tool.name for tool in PEERS), PYDANTIC, PASS]
    for length in sizes:
        for phase, title in (
            ("plan", "shipctl plan, nothing done yet"),
            ("first", "first run"),
            ("again", "run again, nothing changed"),
        ):
            samples = bench.samples(length, phase)
            rows = [row for label in labels if (row := samples.row(label))]
            if rows:
                names = ("doit", "snakemake", "dvc", PYDANTIC) if phase == "again" else ("doit", "dvc")
                columns = {name: samples.row(name) for name in names}
                yield f"\n{length:,} stages: {title}\n" + table(rows, columns, stages=length)


def _growth(bench: Bench) -> Iterator[str]:
    yield "\nmilliseconds that each further stage adds (start of the process not counted)"
    yield f"{'':42}{'10 to 100':>12}{'100 to 1,000':>14}"
    for phase, label, title in (
        ("plan", SHIPCTL.name, "shipctl, plan"),
        ("first", SHIPCTL.name, "shipctl, first run"),
        ("again", SHIPCTL.name, "shipctl, nothing changed"),
        ("again", TOUCHED, "shipctl, nothing changed but spec touched"),
        *(("first", tool.name, f"{tool.name}, first run") for tool in PEERS),
        *(("again", tool.name, f"{tool.name}, nothing changed") for tool in PEERS),
    ):
        figures = [per_further_stage(bench, phase, label, *pair) for pair in ((10, 100), (100, 1000))]
        if any(figure is not None for figure in figures):
            shown = ["" if figure is None else f"{figure:.3f}" for figure in figures]
            yield f"{title:42}{shown[0]:>12}{shown[1]:>14}"


def _notes(bench: Bench, sizes: tuple[int, ...], absent: dict[str, str]) -> Iterator[str]:
    for name, why in absent.items():
        yield f"{name} was not measured: {why}"
    for tool in PEERS:
        if tool.longest < max(sizes):
            yield f"{tool.name} was measured up to {tool.longest} stages: {tool.why_not_longer}"
    for (length, phase), samples in bench.measured.items():
        for label, why in samples.missing.items():
            if phase != "warm-up":
                yield f"{label}, {length} stages ({phase}) was not measured: {why}"
    row = bench.row(sizes[0], "again", SHIPCTL.name)
    if row:
        usual = min(row.samples, key=lambda sample: abs(sample.wall - row.wall))
        yield f"when nothing had changed, shipctl said: {usual.said.strip().splitlines()[-1]}"


def main() -> None:
    """Measure, and print what came out."""
    names = [SHIPCTL.name, *(tool.name for tool in PEERS)]
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write all samples to FILE")
    parser.add_argument("--environments", metavar="DIR", type=Path, default=environments.DEFAULT_FOLDER)
    parser.add_argument(
        "--tools", nargs="+", choices=names, default=names, metavar="NAME", help=f"of {names}"
    )
    parser.add_argument("--sizes", nargs="+", type=int, choices=SIZES, default=list(SIZES), metavar="N")
    given = parser.parse_args()
    sizes = tuple(sorted(given.sizes))

    tools, absent = environments.installed(given.environments, given.tools)
    machine, facts = host_line(), host()
    with tempfile.TemporaryDirectory(prefix="shipctl-bench-") as folder:
        bench = Bench(Path(folder), tools, firsts=2 if given.quick else 4, again=5 if given.quick else 15)
        bench.measure(sizes)

    versions = {name: tool.version for name, tool in tools.items()}
    print(f"{machine}; " + ", ".join(f"{name} {version}" for name, version in versions.items()))
    for text in _tables(bench, sizes):
        print(text)
    for text in _growth(bench):
        print(text)
    kept = targets(bench)
    print("\ntargets")
    for target in kept:
        figure = "" if target.figure is None else f" ({target.figure:.2f})"
        print(f"  {target.outcome:12}  {target.text}{figure}")
    notes = list(_notes(bench, sizes, absent))
    print("\n" + "\n".join(notes))
    rows = {
        f"{length} {phase}": [row.record() for label in samples.rows if (row := samples.row(label))]
        for (length, phase), samples in bench.measured.items()
        if phase != "warm-up"
    }
    outcomes = [{"target": t.text, "figure": t.figure, "bound": t.bound, "outcome": t.outcome} for t in kept]
    write_json(
        given.json,
        {"host": facts, "versions": versions, "figures": rows, "targets": outcomes, "notes": notes},
    )


if __name__ == "__main__":
    main()
