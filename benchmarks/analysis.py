"""How often the analysis aborts a release for no reason, and how soon it sees that a candidate is worse.

    python benchmarks/analysis.py            # about half an hour
    python benchmarks/analysis.py --quick    # some minutes

Every simulated release goes through the very code that judges real ones, a measurement every 15 s: steps of 5, 10, 25,
50 and 100 % with 60 s each for equal revisions, of 5, 10, 25 and 50 % with 150 s each for worse candidates. Seeded, so
that the same figures come out again. `--plots FOLDER` draws them.
"""

from __future__ import annotations

import argparse
import math
import time as clock
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import curves
import numpy as np
from harness import host_line, say, write_json
from streams import Requests, Rollout, Scenario, at_tolerance, limits, lognormal, scenarios

from shipctl.release.analysis import AnalysisState, judge, plan_lines
from shipctl.release.analysis.sequence import deviations
from shipctl.release.metrics import Samples
from shipctl.release.rollout import Measurement
from shipctl.release.strategy import AnalysisOptions
from shipctl.stages.verdicts import Outcome

INTERVAL = 15.0
RATES = (20, 50, 100, 200, 500, 1000)
WORSE = {"+20 % latency": (1.2, 0.0), "+1 point of errors": (1.0, 0.01)}
UP = Rollout()
CANARY = Rollout(weights=(5, 10, 25, 50), pause=150.0)
SEED = 20240


class Look(NamedTuple):
    """One measurement of a release."""

    at: float
    requests: int
    state: AnalysisState
    measurement: Measurement


class Ended(NamedTuple):
    """How a simulated release ended."""

    failed_at: float
    """Seconds; infinite if it did not fail."""
    requests: int
    """Requests to the candidate until then."""
    passed_at: float
    """When the comparison passed for the first time, in seconds; infinite if it never did."""
    reasons: tuple[str, ...]


def released(requests: Requests, rollout: Rollout, options: AnalysisOptions) -> Iterator[Look]:
    """Judge a release measurement by measurement."""
    usual = float(np.quantile(requests.latency[~requests.candidate], 0.95)) if len(requests.time) else 0.0
    slo = {"error_rate": 0.02, "latency.p95": 1.5 * usual}
    state = AnalysisState()
    for begin in np.arange(0.0, rollout.seconds, INTERVAL):
        full = rollout.weights[int(begin // rollout.pause)] == 100  # noqa: PLR2004  (percent)
        inside = slice(*np.searchsorted(requests.time, (begin, begin + INTERVAL)))
        own, other = (_samples(requests, inside, begin, candidate=which) for which in (True, False))
        state, measurement = judge(
            options, slo, state, stable=None if full else other, candidate=own, at_full=full
        )
        yield Look(begin + INTERVAL, state.requests, state, measurement)


def _samples(requests: Requests, inside: slice, begin: float, *, candidate: bool) -> Samples:
    mine = requests.candidate[inside] == candidate
    time, latency, failed = (
        part[inside][mine] for part in (requests.time, requests.latency, requests.failed)
    )
    # trusted values: checking each float once more would be most of the time
    return Samples.model_construct(
        revision="candidate" if candidate else "stable",
        since=float(begin),
        until=float(begin + INTERVAL),
        requests=len(time),
        errors=int(failed.sum()),
        durations=tuple(latency[~failed].tolist()),
        times=tuple(time[~failed].tolist()),
        failed=tuple(time[failed].tolist()),
        replicas=None,
        value=None,
        coverage=1.0,
        query="",
        raw="",
    )


def end(looks: Iterator[Look]) -> Ended:
    """Follow a release until it fails or is through."""
    passed, look = math.inf, None
    for look in looks:
        if look.measurement.outcome is Outcome.FAIL:
            gates = (v.gate for v in look.measurement.verdicts if v.outcome is Outcome.FAIL)
            return Ended(look.at, look.requests, passed, tuple(gates))
        if look.measurement.outcome is Outcome.PASS and not look.state.at_full:
            passed = min(passed, look.at)
    return Ended(math.inf, look.requests if look else 0, passed, ())


def naive(requests: Requests, rollout: Rollout) -> tuple[bool, bool]:
    """Say whether a z-test at 5 % would ever abort: looking at every measurement, and at every request.

    The tests are for errors, and for requests slower than the p95 of the stable revision's first 300.
    """
    early = requests.time < rollout.seconds - rollout.pause * (rollout.weights[-1] == 100)  # noqa: PLR2004
    candidate, stable = requests.candidate[early], ~requests.candidate[early]
    threshold = np.quantile(requests.latency[early][stable][:300], 0.95)
    looks = np.searchsorted(requests.time[early], np.arange(INTERVAL, rollout.seconds, INTERVAL)) - 1
    at_looks = at_requests = False
    for bad in (requests.latency[early] > threshold, requests.failed[early]):
        n, m = np.cumsum(candidate), np.cumsum(stable)
        p, q = np.cumsum(bad & candidate) / np.maximum(n, 1), np.cumsum(bad & stable) / np.maximum(m, 1)
        pooled = np.cumsum(bad) / np.arange(1, len(bad) + 1)
        error = np.sqrt(
            np.maximum(pooled * (1 - pooled), 1e-12) * (1 / np.maximum(n, 1) + 1 / np.maximum(m, 1))
        )
        signal = ((p - q) / error > deviations(0.05)) & (n >= 50) & (m >= 50)  # noqa: PLR2004
        at_looks |= bool(signal[looks].any())
        at_requests |= bool(signal.any())
    return at_looks, at_requests


def equal_revisions(chosen: Sequence[Scenario], repeats: int) -> list[dict[str, Any]]:
    """Return for each scenario how many releases of an equal candidate are aborted."""
    options, rows = AnalysisOptions(), []
    for scenario in chosen:
        begun = clock.monotonic()
        aborted, reasons, looks, every, passed = 0, dict[str, int](), 0, 0, list[float]()
        for repeat in range(repeats):
            requests = scenario.drawn(np.random.default_rng((SEED, repeat)), UP)
            ended = end(released(requests, UP, options))
            aborted += ended.failed_at < math.inf
            passed.append(ended.passed_at)
            for reason in ended.reasons:
                reasons[reason] = reasons.get(reason, 0) + 1
            one, other = naive(requests, UP)
            looks, every = looks + one, every + other
        rows.append(
            {
                "scenario": scenario.name,
                "releases": repeats,
                "aborted": aborted / repeats,
                "at_most": _upper(aborted, repeats),
                "naive_at_looks": looks / repeats,
                "naive_at_requests": every / repeats,
                "passed": sum(map(math.isfinite, passed)) / repeats,
                "passed_after_s": _quantile(passed, 0.5),
                "reasons": reasons,
            }
        )
        say(f"{scenario.name}: {aborted} of {repeats} aborted, {clock.monotonic() - begun:.0f} s")
    return rows


def worse_candidates(repeats: int) -> list[dict[str, Any]]:
    """Return how soon candidates that are worse by the limits are seen, by request rate."""
    options, rows = AnalysisOptions(), []
    for label, (slower, errors) in WORSE.items():
        for spread in (0.5, 1.0) if slower > 1 else (0.5,):
            scenario = Scenario("", lognormal(spread))
            for rate in RATES:
                rollout = CANARY._replace(rate=rate)
                ends = [
                    end(
                        released(
                            scenario.drawn(
                                np.random.default_rng((SEED, repeat)), rollout, slower=slower, errors=errors
                            ),
                            rollout,
                            options,
                        )
                    )
                    for repeat in range(repeats)
                ]
                seen = [one.failed_at for one in ends]
                rows.append(
                    {
                        "worse": label + (", heavy tail" if spread > 0.5 else ""),  # noqa: PLR2004
                        "rate": rate,
                        "releases": repeats,
                        "seen": sum(map(math.isfinite, seen)) / repeats,
                        "median_s": _quantile(seen, 0.5),
                        "p90_s": _quantile(seen, 0.9),
                        "median_requests": _quantile(
                            [one.requests if math.isfinite(one.failed_at) else math.inf for one in ends], 0.5
                        ),
                        "times": sorted(seen),
                    }
                )
                say(f"{rows[-1]['worse']} at {rate}/s: {rows[-1]['seen']:.2f} seen")
    return rows


def _quantile(values: Sequence[float], share: float) -> float:
    """Return a value that so many do not exceed; infinite where too few ever get there."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def _upper(events: int, trials: int) -> float:
    """Return the exact (Clopper-Pearson) upper end of a one-sided 95 % interval, by bisection."""
    low, high = events / trials, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        tail = sum(math.comb(trials, k) * middle**k * (1 - middle) ** (trials - k) for k in range(events + 1))
        low, high = (middle, high) if tail > 0.05 else (low, middle)  # noqa: PLR2004
    return high


def _seconds(value: float) -> str:
    return "never" if math.isinf(value) else f"{value:.0f} s"


def tables(equal: Sequence[dict[str, Any]], worse: Sequence[dict[str, Any]]) -> str:
    """Return both tables as Markdown."""
    out = [
        "| equal revisions | aborted | at most (95 %) | z-test, each measurement | z-test, each request | passes |"
    ]
    out.append("|---|---|---|---|---|---|")
    out += [
        f"| {row['scenario']} | {row['aborted']:.1%} of {row['releases']} | {row['at_most']:.1%} "
        f"| {row['naive_at_looks']:.0%} | {row['naive_at_requests']:.0%} "
        f"| {row['passed']:.0%}, median {_seconds(row['passed_after_s'])} |"
        for row in equal
    ]
    out += [
        "",
        "| worse candidate | requests/s | seen in 10 min | median | 9 of 10 | requests to it, median |",
    ]
    out.append("|---|---|---|---|---|---|")
    out += [
        f"| {row['worse']} | {row['rate']} | {row['seen']:.0%} | {_seconds(row['median_s'])} "
        f"| {_seconds(row['p90_s'])} "
        f"| {'' if math.isinf(row['median_requests']) else format(row['median_requests'], ',.0f')} |"
        for row in worse
    ]
    return "\n".join(out)


def draw(folder: Path, equal: Sequence[dict[str, Any]], worse: Sequence[dict[str, Any]]) -> None:
    """Draw false aborts, power by rate, the time it takes, and one release of either kind."""
    curves.bars(
        folder / "analysis-false-aborts.svg",
        "Releases of an equal candidate that are aborted",
        [
            (row["scenario"], (row["naive_at_requests"], row["naive_at_looks"], row["aborted"]))
            for row in equal
        ],
        ("z-test at each request", "z-test at each measurement", "confidence sequence"),
        0.05,
    )
    rates = curves.Axis(
        "requests per second, all of the door", [(rate, str(rate)) for rate in RATES], log=True
    )
    labels = list(dict.fromkeys(row["worse"] for row in worse))
    shares = curves.Axis("releases in which it is seen", [(part / 4, f"{part * 25} %") for part in range(5)])
    curves.lines(
        folder / "analysis-power.svg",
        "Worse candidates that are seen within 10 minutes (5, 10, 25, 50 %)",
        rates,
        shares,
        [
            curves.Line(label, [(row["rate"], row["seen"]) for row in worse if row["worse"] == label])
            for label in labels
        ],
    )
    seconds = curves.Axis("seconds", [(value, str(value)) for value in (15, 30, 60, 120, 300, 600)], log=True)
    curves.lines(
        folder / "analysis-time.svg",
        "Until a worse candidate is seen: median (line), 9 of 10 (upper end)",
        rates,
        seconds,
        [
            curves.Line(
                label,
                [(row["rate"], row["median_s"]) for row in own if math.isfinite(row["median_s"])],
                band=[
                    (row["rate"], row["median_s"], min(row["p90_s"], 600.0))
                    for row in own
                    if math.isfinite(row["median_s"])
                ],
            )
            for label in labels
            for own in [[row for row in worse if row["worse"] == label]]
        ],
    )
    for name, title, slower in (
        ("equal", "an equal candidate", 1.0),
        ("slower", "a candidate that is 20 % slower", 1.2),
    ):
        _draw_one(folder / f"analysis-{name}.svg", title, slower)


def _draw_one(path: Path, title: str, slower: float) -> None:
    """Draw what is known of one release's slow requests, look by look, though nothing stops it."""
    rollout = Rollout(weights=(5, 10, 25, 50))
    requests = Scenario("", lognormal(0.5)).drawn(np.random.default_rng(SEED), rollout, slower=slower)
    points = []
    for look in released(requests, rollout, AnalysisOptions()):
        slow = look.state.slow
        if not slow.apart.track.blocks:
            continue
        bounds = slow.apart.bounds(0.02, 0.05)
        tolerated = slow.tolerated.stable.value - slow.apart.stable.value
        limit = slow.limited.stable.value - slow.apart.stable.value
        points.append((look.at, bounds.mean, bounds.lower, bounds.upper, tolerated, limit))
    ticks = [(value / 100, f"{value:+d}" if value else "0") for value in (-10, -5, 0, 5, 10, 15)]
    curves.lines(
        path,
        f"Slow requests of {title}, less those of the stable one",
        curves.Axis("seconds since the first shift", [(value, str(value)) for value in range(0, 241, 60)]),
        curves.Axis("points", ticks),
        [
            curves.Line(
                "difference and its bounds",
                [(at, mean) for at, mean, *_ in points],
                band=[(at, low, high) for at, _, low, high, *_ in points],
            ),
            curves.Line("tolerance: fails above", [(point[0], point[4]) for point in points], dashed=True),
            curves.Line("limit: passes below", [(point[0], point[5]) for point in points], dashed=True),
        ],
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few releases of each kind")
    parser.add_argument("--releases", type=int, help="simulated releases per scenario")
    parser.add_argument("--plots", type=Path, help="folder for SVG files")
    parser.add_argument("--json", type=Path, help="file for all figures")
    options = parser.parse_args()
    repeats = options.releases or (40 if options.quick else 400)
    print(host_line())
    equal = equal_revisions([*scenarios(), *at_tolerance(), *limits()], repeats)
    worse = worse_candidates(max(20, repeats // 4))
    print(tables(equal, worse))
    print("\nwhat `shipctl plan` says:")
    for rate in (20, 200, 1000):
        print(
            "\n".join(
                plan_lines(AnalysisOptions(), {}, rate=rate, weights=CANARY.weights, pauses=[150.0] * 4)
            )
        )
    write_json(options.json, {"equal": equal, "worse": worse})
    if options.plots:
        draw(options.plots, equal, worse)


if __name__ == "__main__":
    main()
