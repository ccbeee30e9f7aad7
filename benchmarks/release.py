"""Releases under load while something breaks: failed requests, seconds of trouble, seconds until stable answers alone.

Real Triton servers behind a real Envoy, load by Triton's own client, the command line as a user runs it. With
``--equal N``, N releases of an equal candidate by canary instead: how many were given up though nothing was wrong.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import environments
from harness import host, host_line, write_json

sys.path.insert(0, str(environments.ROOT / "tests"))

import support_faults as faults
import support_prometheus
from support_faults import Outcome, World, world

SCENARIOS: dict[str, Callable[[World], Outcome]] = {
    "promoted by canary": faults.promote_by_canary,
    "promoted by bluegreen": faults.promote_by_bluegreen,
    "candidate answers a quarter with errors": faults.candidate_fails,
    "candidate is several times slower": faults.candidate_is_slow,
    "candidate is wrong: preflight": faults.candidate_is_wrong,
    "candidate differs: shadow": faults.candidate_differs,
    "candidate is killed at 50 %": faults.candidate_is_killed,
    "one stable server of two is killed": faults.stable_is_killed,
    "shipctl is killed at four places": faults.shipctl_is_killed,
    "shipctl is killed, nobody comes back": faults.nobody_comes_back,
    "A/B test by users": faults.split_by_users,
}
EQUAL_STEPS = [{"setWeight": 50}, {"pause": {"duration": "3s"}}]


def main() -> int:
    """Measure, and print what came out."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rate", type=float, default=faults.RATE, help="requests per second")
    parser.add_argument("--equal", metavar="N", type=int, default=0, help="release N equal candidates")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the figures to FILE")
    given = parser.parse_args()
    print(f"{host_line()}; {given.rate:g} requests/s", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="shipctl-bench-"))
    (folder / ".shipctl").mkdir()
    try:
        with world(folder, rate=given.rate) as live:
            figures = equal(live, given.equal) if given.equal else broken(live, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if given.json:
        write_json(given.json, {"host": host(), "rate": given.rate, "figures": figures})
    return 0


def broken(live: World, folder: Path) -> list[dict[str, object]]:
    """Let everything happen that can, and return a row for each."""
    scenarios = dict(SCENARIOS)
    if support_prometheus.BINARY is not None:
        scenarios["Prometheus goes away"] = lambda live: without_prometheus(live, folder / "prometheus")
    print("| what happens | requests | failed | seconds of trouble | stable again after | exit |")
    print("|---|---|---|---|---|---|")
    rows: list[dict[str, object]] = []
    for name, scenario in scenarios.items():
        outcome = scenario(live)
        failed, count = len(outcome.requests.failed), len(outcome.requests.all)
        back = "" if outcome.back is None else f"{outcome.back:.1f} s"
        trouble = f"{outcome.requests.trouble:.1f}" if failed else ""
        print(f"| {name} | {count:,} | {failed} | {trouble} | {back} | {outcome.exit_code} |", flush=True)
        rows.append(
            {
                "what": name,
                "requests": count,
                "failed": failed,
                "trouble": outcome.requests.trouble,
                "back": outcome.back,
                "exit": outcome.exit_code,
            }
        )
    return rows


def without_prometheus(live: World, folder: Path) -> Outcome:
    """Stop the Prometheus that measures a canary."""
    with support_prometheus.prometheus(folder, []) as server:
        return faults.source_goes_away(live, server.url, server.kill)


def equal(live: World, count: int) -> list[dict[str, object]]:
    """Release equal candidates, and return how each ended."""
    rows: list[dict[str, object]] = []
    for number in range(1, count + 1):
        live.next(steps=EQUAL_STEPS, scaleDownDelay="0s")
        outcome = live.run()
        rows.append(
            {
                "exit": outcome.exit_code,
                "failed": len(outcome.requests.failed),
                "requests": len(outcome.requests.all),
            }
        )
        aborted = sum(row["exit"] != 0 for row in rows)
        print(f"{number}: exit {outcome.exit_code}; {aborted} given up so far; {outcome.line}", flush=True)
        if outcome.exit_code:
            print(outcome.output, flush=True)
    return rows


if __name__ == "__main__":
    sys.exit(main())
