"""`shipctl render`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from shipctl.cli.output import Output, common_options, json_option
from shipctl.cli.planning import context_option, environment_options, spec_argument
from shipctl.cli.specfile import find_spec
from shipctl.cli.types import PATH
from shipctl.errors import SpecError

if TYPE_CHECKING:
    from shipctl.engine.rendering import Rendered


@click.command("render")
@spec_argument
@environment_options
@context_option
@click.option("--stage", metavar="ID", help="Only this release stage.")
@click.option(
    "-o", "--output", "folder", metavar="DIR", type=PATH, help="Write one file per object into this folder."
)
@click.option(
    "--rights",
    is_flag=True,
    help="Only what gives who runs shipctl its rights there, for an administrator to apply.",
)
@json_option
@common_options
def command(
    spec: Path | None,
    environment: str | None,
    overrides: tuple[str, ...],
    context: str | None,
    stage: str | None,
    folder: Path | None,
    *,
    rights: bool,
) -> None:
    """Print what a release puts on its target, as YAML; no target is asked.

    What would be released comes from the store, so the stages before the release have to have run: `apply --until`.
    A comment above each object says which file `-o` writes it to.
    """
    from shipctl.cli.documents.rendering import RenderDocument, RenderedFile, RenderedRelease
    from shipctl.engine.rendering import render

    output = Output.current()
    found = render(
        find_spec(spec),
        stage=stage,
        environment=environment,
        overrides=overrides,
        context=context,
        rights=rights,
    )
    if folder is not None:
        count = write(found, folder)
        output.say(f"written to {folder}: {count} file{'' if count == 1 else 's'}")
    else:
        for line in lines(found):
            output.result(line)
    output.document(
        RenderDocument(
            releases=tuple(
                RenderedRelease(
                    stage=item.stage,
                    target=item.target,
                    environment=item.environment,
                    version=item.version,
                    revision=item.revision,
                    files=tuple(RenderedFile(path=path, text=text) for path, text in item.files.items()),
                )
                for item in found
            ),
            folder=None if folder is None else str(folder),
        )
    )


def lines(found: Sequence[Rendered]) -> Iterator[str]:
    """Yield one stream of YAML documents; what says where each is from is a comment."""
    for item in found:
        where = f"{item.target} in {item.environment}" if item.environment else item.target
        head = f"# {item.stage} on {where}"
        head += f": {item.version} ({item.revision[:12]})" if item.revision else ""
        if not item.files:
            yield f"{head}; this target takes no manifests"
            continue
        yield head
        for path, text in item.files.items():
            yield "---"
            yield f"# {path}"
            yield text.removeprefix("---\n").rstrip("\n")


def write(found: Sequence[Rendered], folder: Path) -> int:
    """Write the files, those of several release stages each into a folder of its own, and return how many.

    :raises SpecError: if that cannot be done
    """
    count = 0
    for item in found:
        below = folder / item.stage if len(found) > 1 else folder
        for name, text in item.files.items():
            path = below / name
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text if text.endswith("\n") else f"{text}\n", encoding="utf-8")
            except OSError as exc:
                message = f"cannot write {path}: {exc.strerror}; name another folder with -o"
                raise SpecError(message) from exc
            count += 1
    return count
