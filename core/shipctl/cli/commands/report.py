"""`shipctl report`."""

from __future__ import annotations

from pathlib import Path

import click

from shipctl import __version__
from shipctl.cli.output import Output, common_options, json_option
from shipctl.cli.types import PATH
from shipctl.errors import SpecError


@click.command("report")
@click.argument("run", required=False)
@click.option(
    "-o",
    "--output",
    "file",
    metavar="FILE.html",
    type=PATH,
    help="Where to write the page; report-RUN.html by default.",
)
@json_option
@common_options
def command(run: str | None, file: Path | None) -> None:
    """Write a self-contained HTML page about a run: the latest, or the one whose id begins with RUN.

    Stages with their times, verdicts of gates, what was measured, what was selected and what dropped and why,
    artifacts with their digests, and the steps of releases. With --json the same data, and no page unless -o
    asks for it.
    """
    from shipctl.cli.documents.runs import ReportDocument
    from shipctl.engine.project import Project
    from shipctl.report.build import build_report

    output = Output.current()
    report = build_report(Project.here(Path.cwd()), run)
    if file is not None or not output.json:
        from shipctl.report.page import render_page

        path = file or Path(f"report-{report.run.id}.html")
        try:
            path.write_text(render_page(report, __version__), encoding="utf-8")
        except OSError as exc:
            message = f"cannot write {path}: {exc.strerror}"
            raise SpecError(message) from exc
        output.say(f"written to {path}")
    output.document(ReportDocument(report=report))
