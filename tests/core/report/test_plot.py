from __future__ import annotations

import re
from xml.etree import ElementTree as ET

import pytest

from shipctl.report.plot import HEIGHT, WIDTH, Curve, latency_plot

SVG = "{http://www.w3.org/2000/svg}"


def draw(*curves: Curve, bounds: tuple[tuple[float, float, str], ...] = ()) -> ET.Element:
    svg = latency_plot(curves, bounds)
    return ET.fromstring(svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1))


def places(line: ET.Element) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in line.attrib["points"].split())]


def curve(*seconds: float, label: str = "model") -> Curve:
    percentiles = (10.0, 50.0, 90.0, 99.0, 99.9)
    return Curve(label, tuple(zip(percentiles, seconds, strict=True)))


def test_the_tail_has_as_much_room_as_the_middle() -> None:
    (line,) = draw(curve(1, 1, 2, 3, 4)).iter(f"{SVG}polyline")
    places_x = [x for x, _ in places(line)]
    assert len(places_x) == 4, "it begins at the median"
    assert places_x[2] - places_x[1] == pytest.approx(places_x[3] - places_x[2], abs=0.2)


def test_slower_is_higher_and_everything_is_inside() -> None:
    for values in ((1, 1, 2, 3, 4), (1e-5, 2e-5, 3e-5, 1e-3, 5e-2)):
        root = draw(curve(*values), curve(*(value * 2 for value in values), label="twice"))
        for line in root.iter(f"{SVG}polyline"):
            heights = [y for _, y in places(line)]
            assert heights == sorted(heights, reverse=True)
            assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in places(line))


def test_latencies_over_more_than_a_decade_get_a_logarithmic_axis() -> None:
    labels = [item.text for item in draw(curve(1e-5, 1e-5, 1e-4, 1e-3, 1e-2)).iter(f"{SVG}text")]
    assert {"10us", "100us", "1ms", "10ms"} <= set(labels)
    labels = [item.text for item in draw(curve(1, 1, 2, 3, 4)).iter(f"{SVG}text")]
    assert labels[:6] == ["0s", "800ms", "1.6s", "2.4s", "3.2s", "4.0s"]


def test_a_bound_is_drawn_where_it_does_not_press_the_curves_flat() -> None:
    near = draw(curve(1, 1, 2, 3, 4), bounds=((95.0, 5.0, "p95 bound 5.0s"),))
    assert [item.text for item in near.iter(f"{SVG}text") if item.attrib["class"] == "bound-label"] == [
        "p95 bound 5.0s"
    ]
    far = draw(curve(1, 1, 2, 3, 4), bounds=((95.0, 500.0, "p95 bound"),))
    assert not [item for item in far.iter() if item.attrib.get("class") == "bound"]


def test_labels_are_escaped() -> None:
    assert "<b>" not in latency_plot([curve(1, 1, 2, 3, 4, label="<b>x</b>")])


def test_nothing_to_draw_is_nothing() -> None:
    assert latency_plot([]) == ""
    assert latency_plot([Curve("one point", ((50.0, 1.0),))]) == ""


def test_at_most_eight_curves_are_drawn() -> None:
    svg = latency_plot([curve(1, 1, 2, 3, float(index + 4)) for index in range(12)])
    assert sorted(set(re.findall(r"line (c\d+)", svg))) == [f"c{index}" for index in range(8)]
