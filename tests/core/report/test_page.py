from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from shipctl.report.data import GateLine, NotTried, Pareto, ParetoPoint
from shipctl.report.page import details_of, latency_figures, render_page, timeline
from shipctl.stages.verdicts import compare
from support_report import benchmark, measurement, sample_report, stage

VOID = {"meta", "br", "img", "input", "link", "hr"}


class Reader(HTMLParser):
    """Collects the text, and insists that every element is closed where it was opened."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text.append(data.strip())


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    return reader


def test_page_shows_every_section() -> None:
    words = " ".join(read(render_page(sample_report(), "0.1.0")).text)
    for text in (
        "digits", "1.4.0", "stopped by a gate", "ada on forge", "accuracy: 0.91 is not >= 0.97",
        "Stages", "int8[method=minmax]", "accuracy was rejected", "429.2 MiB", "(1.5s)",
        "Release", "golden samples agree",
        "Selection", "Minimize latency.p95", "60 us against 30 us of int8[method=minmax]",
        "Latency", "batch 1, 1 thread", "batch 8, 1 thread", "made-a", "not shown, far above: p95 bound 100ms",
        "Gates", "inconclusive", "it did not settle",
        "Measurements", "Title of accuracy", "confusion", "classes", "logits", "1, 3",
        "Artifacts", "opset 21, precision fp32", "380.0 KiB", "bbbbbbbbbbbb",
        "Written by shipctl 0.1.0",
    ):  # fmt: skip
        assert text in words, text


def test_a_selection_has_its_front_and_what_was_not_made() -> None:
    selection = sample_report().selections[0]
    points = [
        ParetoPoint(
            name="int8 aaaa", node="int8[method=minmax]", x=3e-5, y=0.001, on_front=True, chosen=True
        ),
        ParetoPoint(name="fp32 bbbb", node="onnx", x=6e-5, y=0.0, on_front=True, chosen=False, share=0.25),
    ]
    front = Pareto(
        x="latency.p95", x_direction="minimize", x_bounds=((0.1, "p95 <= 100ms"),), y="accuracy_drop",
        y_direction="minimize", y_bounds=((0.005, "drop <= 0.5%"),), points=tuple(points),
    )  # fmt: skip
    left_out = NotTried(node="int4", reason="best takes 2 of 3 candidates")
    partly = selection.candidates[1].model_copy(update={"share": 0.25})
    changed = {"pareto": front, "not_tried": (left_out,), "candidates": (selection.candidates[0], partly)}
    page = render_page(sample_report(selections=(selection.model_copy(update=changed),)), "0.1.0")
    words = " ".join(read(page).text)
    for text in (
        "latency.p95 and accuracy_drop of the candidates", "drop <= 0.5%", "2 onnx",
        "60us, accuracy_drop 0, from 1/4 of the measurement", "Not shown, far away: p95 <= 100ms (100ms).",
        "after 1/4", "int4 not made", "best takes 2 of 3 candidates",
    ):  # fmt: skip
        assert text in words, text


def test_sensitivity_has_its_curve() -> None:
    rows = [{"quantized": count, "accuracy": 0.99 - count / 100, "drop": count / 100} for count in range(4)]
    shown = details_of({"curve": rows, "search": {"metric": "accuracy", "before": 0.99, "budget": 0.005}})
    assert "budget 0.9850" in shown.curve
    assert [table.title for table in shown.tables] == ["curve"], "and its numbers"
    report = sample_report(measurements=(measurement("int8", "a" * 64, {"curve": rows}),))
    assert "Accuracy by number of quantised layers" in " ".join(read(render_page(report, "0.1.0")).text)
    assert details_of({"curve": [[1, 2], [3, 4]]}).curve == ""


def test_the_worst_gates_come_first() -> None:
    words = read(render_page(sample_report(), "0.1.0")).text
    outcomes = [word for word in words[words.index("Gates") :] if word in {"fail", "inconclusive", "pass"}]
    assert outcomes == ["fail", "inconclusive", "pass"]


def test_page_needs_nothing_from_elsewhere() -> None:
    page = render_page(sample_report(), "0.1.0")
    assert not re.search(r"https?:|@import|url\(|<script|<link", page)
    reader = read(page)
    assert not [item for item in reader.attributes if item[1] in {"src", "href"} or item[1].startswith("on")]


def test_values_are_escaped() -> None:
    page = render_page(sample_report(stages=(stage("<script>alert(1)</script>", message="<b>&"),)), "0.1.0")
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


@pytest.mark.parametrize(
    ("exit_code", "word"),
    [(0, "succeeded"), (1, "failed"), (4, "stopped by a gate"), (6, "waiting"), (7, "rolled back"),
     (130, "interrupted"), (None, "unfinished")],
)  # fmt: skip
def test_the_badge_says_how_the_run_ended(exit_code: int | None, word: str) -> None:
    report = sample_report()
    run = report.run.model_copy(
        update={"exit_code": exit_code, "finished": None if exit_code is None else 1.0}
    )
    assert word in read(render_page(report.model_copy(update={"run": run}), "0.1.0")).text


def test_an_empty_run_has_a_page() -> None:
    empty = dict.fromkeys(("stages", "gates", "measurements", "selections", "artifacts", "steps"), ())
    words = read(render_page(sample_report(**empty), "0.1.0")).text
    assert "Gates" not in words
    assert "Latency" not in words


def test_one_model_gets_one_plot_of_its_configurations() -> None:
    (figure,) = latency_figures(
        sample_report(measurements=(benchmark("speed", "a" * 64, batches=(1, 8, 32)),))
    )
    assert figure.title == "latency of made-a"
    assert figure.legend == ("batch 1, 1 thread", "batch 8, 1 thread", "batch 32, 1 thread")


def test_several_models_get_a_plot_per_configuration() -> None:
    figures = latency_figures(sample_report())
    assert [(figure.title, figure.legend) for figure in figures] == [
        ("batch 1, 1 thread", ("made-a", "made-b")),
        ("batch 8, 1 thread", ("made-a", "made-b")),
    ]


def test_bounds_are_drawn_for_the_headline_configuration_only() -> None:
    near = GateLine(node="speed", verdict=compare("latency.p95", 3e-5, "<=", 4e-3))
    first, second = latency_figures(sample_report(gates=(near,)))
    assert "p95 bound 4ms" in first.svg
    assert "bound" not in second.svg


def test_bars_lie_within_the_run() -> None:
    bars = timeline(sample_report())
    assert set(bars) == {"onnx", "accuracy"}
    assert all(begin >= 0 and length > 0 and begin + length <= 100.5 for begin, length in bars.values())


def test_details_become_tables_matrices_and_facts() -> None:
    shown = details_of(
        {"rows": [{"a_b": 1.5, "on": True}, {"c": "x", "deep": [1]}], "grid": [[1, 2]], "odd": [[]], "n": 3}
    )
    (table,) = shown.tables
    assert (table.title, table.columns, table.rows) == (
        "rows",
        ("a b", "on", "c"),
        (("1.5000", "yes", ""), ("", "", "x")),
    )
    assert shown.matrices == {"grid": [[1, 2]]}
    assert shown.facts["n"] == "3"


def test_latencies_of_a_benchmark_are_shown_in_their_unit() -> None:
    (table,) = details_of(benchmark("speed", "a" * 64, batches=(1,)).details).tables
    assert table.columns == ("batch", "threads", "stable", "latency mean", "latency p99.5")
    assert table.rows == (("1", "1", "yes", "20us", "100us"),)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_real_browser_draws_the_page(tmp_path: Path, scheme: str) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium on PATH: apt-get install chromium")
    page, picture = tmp_path / "page.html", tmp_path / "page.png"
    page.write_text(render_page(sample_report(), "0.1.0"), encoding="utf-8")
    # Chromium's own colour preference: 0 is dark, 1 is light.
    flags = (
        "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", "--hide-scrollbars", "--window-size=1280,2400",
        f"--blink-settings=preferredColorScheme={int(scheme == 'light')}",
    )  # fmt: skip
    done = subprocess.run(
        [
            browser,
            *flags,
            f"--user-data-dir={tmp_path / 'profile'}",
            f"--screenshot={picture}",
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    data = picture.read_bytes()
    assert data.startswith(b"\x89PNG")
    assert (int.from_bytes(data[16:20]), int.from_bytes(data[20:24])) == (1280, 2400)
    assert len(data) > 50_000, "an empty page would be smaller"
