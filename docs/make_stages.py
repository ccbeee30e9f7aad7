"""Writes docs/stages: a page per stage, from what its class says about itself and the spec that shows it.

python docs/make_stages.py            # what `make docs` runs
"""

from __future__ import annotations

import sys
from pathlib import Path

from shipctl.cli.plugins import describe, load_all
from shipctl.cli.stage_page import stage_page
from shipctl.stages.registry import Registry

DOCS = Path(__file__).parent
EXAMPLES = DOCS.parent / "specs" / "stages"
FOLDERS = {
    "validate": "Look at what comes in", "convert": "Convert", "optimize": "Optimise", "qualify": "Measure and choose",
    "triton": "Serve", "package": "Package and prove", "register": "Register", "deploy": "Release",
}  # fmt: skip


def pages() -> dict[str, str]:
    """Return file name to text of every page of the stages that shipctl ships, and of their index."""
    registry = Registry()
    found: dict[str, str] = {}
    rows: dict[str, list[str]] = {title: [] for title in FOLDERS.values()}
    survey = load_all(registry)
    for name in sorted(survey.classes):
        package, _, module = survey.classes[name].__module__.partition(".")
        if package != "shipctl_plugins":
            continue
        document = describe(registry, name)
        example = EXAMPLES / f"{name}.yaml"
        found[f"{name}.md"] = stage_page(document, example.read_text("utf-8") if example.is_file() else "")
        rows[FOLDERS[module.partition(".")[0]]].append(
            f"| [{name}]({name}.md) | {document.stage.kind} | {document.stage.summary} |"
        )
    tables = [
        f"## {title}\n\n| stage | kind | |\n|---|---|---|\n" + "\n".join(lines)
        for title, lines in rows.items()
        if lines
    ]
    intro = (
        "# Stages\n\nEach page is made from the stage itself (`make docs`; `shipctl stages describe NAME` says the "
        "same in a terminal), and its example is a spec of `specs/stages` that a test runs. An option that *only "
        "judges* is a bound: changing it runs nothing again."
    )
    found["README.md"] = "\n\n".join([intro, *tables]) + "\n"
    return found


def main() -> int:
    """Write what changed, and delete pages of stages that are gone."""
    folder = DOCS / "stages"
    folder.mkdir(exist_ok=True)
    wanted = pages()
    for path in folder.glob("*.md"):
        if path.name not in wanted:
            path.unlink()
    for name, text in wanted.items():
        (folder / name).write_text(text, encoding="utf-8")
    print(f"{len(wanted)} pages in {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
