"""A stage as a page of documentation in Markdown, made from what its class says about itself."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from shipctl.cli.documents.stages import StageDocument
from shipctl.cli.option_words import default_words, grouped, type_words


def stage_page(document: StageDocument, example: str = "") -> str:
    """Return the page; ``example`` is the text of a spec that shows the stage."""
    stage = document.stage
    parts = [f"# {stage.name}", markdown_of(document.description)]
    if document.requires:
        wanted = " ".join(f"'{brings}'" for brings in sorted(set(document.requires.values())))
        parts.append(f"Needs `pip install {wanted}`.")
    for title, entries in (("Takes", document.inputs), ("Gives", document.outputs)):
        if entries:
            rows = "\n".join(f"| `{name}` | {kind} |" for name, kind in entries.items())
            parts.append(f"## {title}\n\n| name | kind |\n|---|---|\n{rows}")
    known = document.options.get("$defs", {})
    parts.append("## Options\n\n" + (_options(document.options, known) or "None."))
    parts += [
        f"### {title}\n\n{_options(group, known)}" for title, group in grouped(document.options).items()
    ]
    if document.metrics:
        parts.append("## Metrics\n\n" + ", ".join(f"`{name}`" for name in document.metrics))
    if example:
        parts.append(f"## Example\n\n```yaml\n{example.strip()}\n```")
    return "\n\n".join(parts) + "\n"


def _options(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    rows = []
    for name, option in schema.get("properties", {}).items():
        default = default_words(name, schema)
        shown = default if default == "required" else f"`{default}`"
        bound = " *(only judges)*" if option.get("bound") else ""
        rows.append(
            f"| `{name}` | {_cell(type_words(option, definitions))} | {_cell(shown)} | "
            f"{_cell(option.get('description', ''))}{bound} |"
        )
    head = "| option | type | default | |\n|---|---|---|---|\n"
    return head + "\n".join(rows) if rows else ""


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def markdown_of(docstring: str) -> str:
    """Return a docstring as Markdown: what is indented below a line that ends with `::` becomes a block of YAML."""
    return "\n\n".join(_blocks(docstring))


def _blocks(docstring: str) -> Iterator[str]:
    literal = False
    code: list[str] = []
    for paragraph in docstring.split("\n\n"):
        if literal and paragraph.startswith("    "):
            code.append(textwrap.dedent(paragraph))
            continue
        if code:
            yield _fenced(code)
            code = []
        literal = paragraph.endswith("::")
        # a block may begin right below its line
        head, _, rest = paragraph.partition("::\n")
        if rest.startswith("    "):
            yield f"{head}:"
            yield _fenced([textwrap.dedent(rest)])
        else:
            yield paragraph.removesuffix(":") if literal else paragraph
    if code:
        yield _fenced(code)


def _fenced(code: list[str]) -> str:
    return "```yaml\n" + "\n\n".join(code) + "\n```"
