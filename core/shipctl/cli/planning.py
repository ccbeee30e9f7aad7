"""What `plan` and `apply` have in common: the options that make a plan, and the text of one."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from shipctl.cli.types import PATH

if TYPE_CHECKING:
    from shipctl.stages.events import PlannedNode

CommandT = TypeVar("CommandT", bound=Callable[..., Any])

_STYLES: dict[str, dict[str, Any]] = {
    "run": {"fg": "yellow"},
    "cached": {"dim": True},
    "skipped": {"dim": True},
    "in-place": {"dim": True},
    "release": {"fg": "cyan"},
    "blocked": {"fg": "red"},
    "missing": {"fg": "red"},
}
_SUMMARY = {
    "run": "to run",
    "cached": "cached",
    "skipped": "skipped",
    "release": "release",
    "in-place": "in place",
    "blocked": "blocked",
}
_ALWAYS = ("run", "cached", "skipped")


def environment_options(command: CommandT) -> CommandT:
    """Add what changes a spec: ``-e`` and ``--set``."""
    command = click.option(
        "--set",
        "overrides",
        metavar="KEY=VALUE",
        multiple=True,
        help="Override a value of the spec, such as vars.registry=…; repeatable.",
    )(command)
    return click.option("-e", "--environment", metavar="NAME", help="Overlay an environment of the spec.")(
        command
    )


def context_option(command: CommandT) -> CommandT:
    """Add ``--context``, for a command that asks targets."""
    return click.option(
        "--context",
        metavar="NAME",
        help="The kubeconfig's context of every target that has one, whatever the spec says.",
    )(command)


def plan_options(command: CommandT) -> CommandT:
    """Add what a plan depends on: ``-e``, ``--set``, ``--context``, ``--until``."""
    command = click.option("--until", metavar="STAGE", help="Stop after this stage and what it needs.")(
        command
    )
    return environment_options(context_option(command))


def spec_argument(command: CommandT) -> CommandT:
    """Add the optional argument SPEC."""
    return click.argument("spec", metavar="[SPEC]", required=False, type=PATH)(command)


def count_actions(nodes: Sequence[PlannedNode]) -> dict[str, int]:
    """Return how many nodes there are of each action, in the order of the summary."""
    found = Counter(str(node.action) for node in nodes)
    return {action: found[action] for action in _SUMMARY if found[action]}


def plan_lines(nodes: Sequence[PlannedNode], *, narrow: int = 9) -> Iterator[str]:
    """Yield the lines of a plan: action, node, reason. Every line can be found with grep by its first word.

    What would change on a target stands below its release, what this machine lacks below its stage.
    """
    width = max((len(node.node) for node in nodes), default=0)

    def line(word: str, node: str, text: str) -> str:
        return (
            f"{click.style(word.ljust(narrow), **_STYLES.get(word, {}))} {node.ljust(width)}  {text}".rstrip()
        )

    for node in nodes:
        yield line(node.action, node.node, "; ".join(node.reasons))
        if node.environment:
            yield line("isolated", node.node, node.environment)
        for change in node.changes:
            yield line("change", node.node, change)
        if node.unavailable:
            yield line("missing", node.node, node.unavailable)


def summary_line(nodes: Sequence[PlannedNode]) -> str:
    """Return `plan: 3 to run, 5 cached, 0 skipped, 1 release`."""
    found = Counter(str(node.action) for node in nodes)
    parts = []
    for action, words in _SUMMARY.items():
        if found[action] or action in _ALWAYS:
            plural = "s" if action == "release" and found[action] > 1 else ""
            parts.append(f"{found[action]} {words}{plural}")
    return f"plan: {', '.join(parts)}"


def option_words(environment: str | None, overrides: Sequence[str], context: str | None) -> list[str]:
    """Return ``-e``, ``--set`` and ``--context`` as they are written on a command line."""
    return [
        *(["-e", environment] if environment else []),
        *(word for item in overrides for word in ("--set", item)),
        *(["--context", context] if context is not None else []),
    ]


def what_still_works(nodes: Sequence[PlannedNode], spec: Path, options: Sequence[str] = ()) -> str | None:
    """Return a sentence with the command that avoids everything unavailable; None if all is available.

    `--until STAGE` runs a stage and what it needs, so the last stage none of whose nodes needs something
    unavailable does the most.
    """
    broken: set[str] = set()
    for node in nodes:  # in running order: what a node needs comes before it
        if node.unavailable or broken.intersection(node.needs):
            broken.add(node.node)
    if not broken:
        return None
    stages_broken = {node.stage for node in nodes if node.node in broken}
    whole = [node.stage for node in nodes if node.stage not in stages_broken]
    if not whole:
        return "nothing of this spec can run on this machine"
    command = shlex.join(["shipctl", "apply", str(spec), *options, "--until", whole[-1]])
    return f"up to {whole[-1]!r} it works here: {command}"
