"""The same chain of trivial stages for each tool: every stage writes one more than the stage before it wrote."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

SPEC = "pipeline.yaml"


def _write_shipctl(folder: Path, length: int) -> None:
    lines = [
        "apiVersion: shipctl.dev/v1",
        "kind: Pipeline",
        "metadata: {name: chain, version: 1.0.0}",
        "stages:",
        "  - {id: s1, uses: count-first, with: {start: 1}}",
        *(f"  - {{id: s{number}, uses: count-next}}" for number in range(2, length + 1)),
    ]
    (folder / SPEC).write_text("\n".join(lines) + "\n")


def _counted_shipctl(folder: Path, length: int) -> bool:
    digest = hashlib.sha256(str(length).encode()).hexdigest()
    return any((folder / ".shipctl" / "store").rglob(digest))


def _write_doit(folder: Path, length: int) -> None:
    (folder / "0.txt").write_text("0\n")
    (folder / "dodo.py").write_text(f"""\
from pathlib import Path

DOIT_CONFIG = {{"verbosity": 0}}


def add_one(before, after):
    Path(after).write_text(str(int(Path(before).read_text()) + 1))


def task_step():
    for i in range(1, {length} + 1):
        before, after = f"{{i - 1}}.txt", f"{{i}}.txt"
        yield {{
            "name": after,
            "actions": [(add_one, [before, after])],
            "file_dep": [before],
            "targets": [after],
        }}
""")


def _write_snakemake(folder: Path, length: int) -> None:
    (folder / "0.txt").write_text("0\n")
    (folder / "Snakefile").write_text(f"""\
rule all:
    input: "{length}.txt"

rule step:
    input: lambda wildcards: f"{{int(wildcards.i) - 1}}.txt"
    output: "{{i}}.txt"
    wildcard_constraints: i="[1-9][0-9]*"
    shell: "echo $(($(cat {{input}}) + 1)) > {{output}}"
""")


def _write_dvc(folder: Path, length: int) -> None:
    (folder / "0.txt").write_text("0\n")
    # What `dvc init --no-scm` makes, without the second that it takes.
    (folder / ".dvc").mkdir()
    (folder / ".dvc" / "config").write_text(
        "[core]\n    no_scm = True\n    analytics = false\n    check_update = false\n"
    )
    lines = ["stages:"]
    for number in range(1, length + 1):
        lines += [
            f"  s{number}:",
            f"    cmd: echo $(($(cat {number - 1}.txt) + 1)) > {number}.txt",
            f"    deps: [{number - 1}.txt]",
            f"    outs: [{number}.txt]",
        ]
    (folder / "dvc.yaml").write_text("\n".join(lines) + "\n")


def _counted_files(folder: Path, length: int) -> bool:
    last = folder / f"{length}.txt"
    return last.is_file() and last.read_text().strip() == str(length)


@dataclass(frozen=True)
class Tool:
    """How one tool is given the chain: by ``write``, carried out by ``arguments``, and looked at by ``counted``."""

    name: str
    arguments: tuple[str, ...]
    write: Callable[[Path, int], None]
    counted: Callable[[Path, int], bool]
    longest: int = 1000
    why_not_longer: str = ""


SHIPCTL = Tool("shipctl", ("apply", SPEC), _write_shipctl, _counted_shipctl)
PEERS = (
    Tool("doit", (), _write_doit, _counted_files),
    Tool(
        "snakemake",
        ("--cores", "1", "--quiet", "all"),
        _write_snakemake,
        _counted_files,
        longest=100,
        why_not_longer="it fails on a chain this long, in the depth of its recursion",
    ),
    Tool(
        "dvc",
        ("repro", "--quiet"),
        _write_dvc,
        _counted_files,
        longest=100,
        why_not_longer="its first run grows faster than the chain, and takes about 15 s for 100 stages",
    ),
)
