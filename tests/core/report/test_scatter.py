from __future__ import annotations

import math
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from shipctl.report.axes import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Axis, text_width
from shipctl.report.data import Pareto, ParetoPoint
from shipctl.report.scatter import curve_plot, pareto_plot

SVG = "{http://www.w3.org/2000/svg}"


def parsed(svg: str) -> ET.Element:
    return ET.fromstring(svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1))


def point(name: str, x: float, y: float, **fields: Any) -> ParetoPoint:
    return ParetoPoint(
        **{"name": name, "node": None, "x": x, "y": y, "on_front": False, "chosen": False, **fields}
    )


def front(*points: ParetoPoint, **fields: Any) -> Pareto:
    values: dict[str, Any] = {
        "x": "latency.p95", "x_direction": "minimize", "x_bounds": (), "y": "accuracy_drop",
        "y_direction": "minimize", "y_bounds": (), "points": points,
    }  # fmt: skip
    return Pareto(**{**values, **fields})


PLAIN = front(
    point("fp32", 4e-5, 0.0, on_front=True),
    point("int8", 2e-5, 0.002, on_front=True, chosen=True),
    point("fp16", 5e-5, 0.0, share=0.125),
)


def of_class(root: ET.Element, tag: str, name: str) -> list[ET.Element]:
    return [item for item in root.iter(f"{SVG}{tag}") if name in item.attrib.get("class", "").split()]


def test_better_is_left_and_below_and_the_front_joins_what_is_on_it() -> None:
    svg, legend, note = pareto_plot(PLAIN)
    root = parsed(svg)
    fp32, int8, fp16 = (
        (float(c.attrib["cx"]), float(c.attrib["cy"])) for c in of_class(root, "circle", "variant")
    )
    assert int8[0] < fp32[0] < fp16[0]
    assert int8[1] < fp32[1] == fp16[1]
    (line,) = of_class(root, "polyline", "front")
    assert line.attrib["points"] == " ".join(f"{x:.1f},{y:.1f}" for x, y in (int8, fp32))
    assert (len(of_class(root, "circle", "chosen")), len(of_class(root, "circle", "hollow"))) == (1, 1)
    assert [(item.number, item.name, item.style, item.said) for item in legend] == [
        (1, "fp32", "on-front", "40us, accuracy_drop 0"),
        (2, "int8", "chosen", "20us, accuracy_drop 0.0020"),
        (3, "fp16", "behind", "50us, accuracy_drop 0, from 1/8 of the measurement"),
    ]
    assert note == ""


def test_bounds_are_dashed_and_those_far_away_are_told() -> None:
    bounds = {"y_bounds": ((0.005, "drop <= 0.5%"),), "x_bounds": ((0.1, "p95 <= 100ms"),)}
    svg, _, note = pareto_plot(PLAIN.model_copy(update=bounds))
    root = parsed(svg)
    assert len(of_class(root, "line", "bound")) == 1
    assert [item.text for item in of_class(root, "text", "bound-label")] == ["drop <= 0.5%"]
    assert note == "not shown, far away: p95 <= 100ms (100ms)"


@pytest.mark.parametrize(
    "values",
    [[(1.0, 0.0)] * 2, [(k * 1e-6 + 1e-4, 0.0) for k in range(12)], [(10.0**-k, 0.5) for k in range(7)]],
)
def test_everything_is_inside_and_labels_cover_neither_points_nor_each_other(
    values: list[tuple[float, float]],
) -> None:
    points = [
        point(f"a-variant[{n}]", x, y, chosen=n == 1, on_front=n == 0) for n, (x, y) in enumerate(values)
    ]
    svg, legend, _ = pareto_plot(front(*points))
    root = parsed(svg)
    assert len(legend) == len(values)
    for circle in of_class(root, "circle", "variant"):
        assert LEFT <= float(circle.attrib["cx"]) <= WIDTH - RIGHT
        assert TOP <= float(circle.attrib["cy"]) <= HEIGHT - BOTTOM
    boxes = []
    for label in of_class(root, "text", "point-label"):
        width = text_width(label.text or "")
        x, y = float(label.attrib["x"]), float(label.attrib["y"])
        left = x - {"start": 0, "middle": width / 2, "end": width}[label.attrib["text-anchor"]]
        boxes.append((left, y - 10, left + width, y + 3))
        assert left >= LEFT
        assert left + width <= WIDTH - RIGHT
    for n, one in enumerate(boxes):
        for other in boxes[n + 1 :]:
            assert (
                one[2] <= other[0] + 0.2
                or other[2] <= one[0] + 0.2
                or one[3] <= other[1] + 0.2
                or other[3] <= one[1] + 0.2
            )
    assert len(boxes) >= min(len(values), 4)


def test_what_is_no_number_is_not_drawn() -> None:
    svg, legend, _ = pareto_plot(front(point("a", math.nan, 0.0), point("b", 1.0, 0.0)))
    assert [item.name for item in legend] == ["b"]
    assert "nan" not in svg
    assert pareto_plot(front(point("a", math.inf, 0.0))) == ("", [], "")


def test_names_are_escaped() -> None:
    assert "<b>" not in pareto_plot(front(point("<b>x</b>", 1.0, 0.0, chosen=True)))[0]


def test_ticks_are_round_and_say_their_unit() -> None:
    axis = Axis.over("latency.p95", [2.3e-5, 5e-5])
    assert [axis.label(value) for value in axis.ticks()] == ["30us", "40us", "50us"]
    assert Axis.over("latency.p95", [1e-5, 1e-2]).log
    assert not Axis.over("accuracy", [0.05, 0.99]).log
    drop = Axis.over("accuracy_drop", [0.0, 0.005])
    assert [drop.label(value) for value in drop.ticks()] == ["0", "0.001", "0.002", "0.003", "0.004", "0.005"]
    assert [Axis.over("layers", [0, 3], whole=True).label(tick) for tick in (0, 1, 2, 3)] == [
        "0",
        "1",
        "2",
        "3",
    ]
    assert Axis.over("accuracy", [0.5, 0.5]).ticks()


def row(quantized: int, accuracy: float) -> dict[str, Any]:
    return {"quantized": quantized, "accuracy": accuracy, "drop": 0.99 - accuracy}


def test_curve_joins_the_best_of_each_number_of_layers() -> None:
    rows = [row(0, 0.99), row(3, 0.97), row(3, 0.98), row(5, 0.9)]
    search = {"metric": "accuracy", "before": 0.99, "budget": 0.005}
    root = parsed(curve_plot(rows, search))
    (line,) = of_class(root, "polyline", "line")
    heights = [float(pair.split(",")[1]) for pair in line.attrib["points"].split()]
    assert len(heights) == 3
    assert heights == sorted(heights), "less accuracy is lower"
    assert len(of_class(root, "circle", "dot")) == 4
    assert [item.text for item in of_class(root, "text", "bound-label")] == ["budget 0.9850"]


def test_curve_of_an_error_is_the_other_way_round() -> None:
    search = {"metric": "rmse", "before": 4.0, "budget": 0.5}
    root = parsed(curve_plot([row(0, 4.0), row(2, 12.0), row(2, 8.0)], search))
    (line,) = of_class(root, "polyline", "line")
    assert [item.text for item in of_class(root, "text", "bound-label")] == ["budget 6"]
    dots = sorted(float(dot.attrib["cy"]) for dot in of_class(root, "circle", "dot"))
    assert float(line.attrib["points"].split()[-1].split(",")[1]) == pytest.approx(dots[1], abs=0.1)


def test_no_curve_of_one_point_or_of_something_else() -> None:
    assert curve_plot([row(0, 0.99)], {}) == ""
    assert (
        curve_plot([{"quantized": "a"}, {"accuracy": 1.0}, {"quantized": True, "accuracy": math.nan}], {})
        == ""
    )
