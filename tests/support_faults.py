"""Releases under load while something breaks: each function does one, and tells what the clients noticed of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support_release import Fault, Load, Project, Requests, load

STEPS = [
    {"setWeight": 25},
    {"pause": {"duration": "1s"}},
    {"setWeight": 50},
    {"pause": {"duration": "1s"}},
]
ANALYSIS = {
    "interval": "1s",
    "minSamples": 20,
    "inconclusiveLimit": 100,
    "errorTolerance": "2%",
    "errorLimit": "25%",
    "slowTolerance": "50%",
    "slowLimit": "100%",
}
SINGLE = {"uses": "local", "with": {"replicas": 1}}
"""The target of versions that never become stable: one server is enough for them."""
KILLED_AT = ("is published as", ", 25 % to", ", 50 % to", "is stable")
"""In which lines of a canary's output shipctl is killed: before the first request, twice on the way, and at its end."""
LATEST = 40
"""So many answers are the latest ones."""
RATE = 80
"""Requests per second."""


@dataclass(frozen=True)
class Outcome:
    """What one release came to, and what its clients saw."""

    exit_code: int
    output: str
    requests: Requests
    back: float | None
    """Seconds from the fault to the last answer by the candidate; None where nothing broke, or it went on serving."""

    @property
    def line(self) -> str:
        """One line for a table."""
        failed, all_of_them = len(self.requests.failed), len(self.requests.all)
        back = "" if self.back is None else f", stable after {self.back:.1f} s"
        return (
            f"{failed} of {all_of_them} failed in {self.requests.trouble:.1f} s{back}, exit {self.exit_code}"
        )


@dataclass
class World:
    """A project whose first version serves, under load."""

    project: Project
    door: str
    load: Load
    version: int = 0
    serving: str = "1.0.0"
    logs: list[str] = field(default_factory=list)

    @property
    def target(self) -> Path:
        """The target's folder."""
        return self.project.root / ".shipctl" / "targets" / "local" / "triton"

    def next(self, fault: Fault | None = None, *, strategy: str = "canary", **options: Any) -> str:
        """Write the next version of the spec and return it."""
        self.version += 1
        version = f"1.{self.version}.0"
        given: dict[str, Any] = {"analysis": ANALYSIS, "scaleDownDelay": "2s"}
        if strategy == "canary":
            given["steps"] = STEPS
        self.project.write(version, fault, strategy=strategy, options={**given, **options})
        return version

    def number(self) -> int:
        """Return Triton's version number of what was published last."""
        return max(int(path.name) for path in (self.target / "releases" / "m").glob("[0-9]*"))

    def servers(self, number: int) -> list[int]:
        """Return the process ids of a version's servers."""
        states = sorted((self.target / "servers" / "m" / str(number)).glob("*/server.json"))
        return [json.loads(path.read_text())["pid"] for path in states]

    def stable(self) -> int:
        """Return Triton's version number of what is stable."""
        record = json.loads((self.target / "target.json").read_text())
        found: int = record["models"]["m"]["stable"]
        return found

    def wait_for(self, what: Callable[[], bool], seconds: float = 60) -> None:
        """Wait until something is so."""
        deadline = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < deadline, "it never came to that"
            time.sleep(0.1)

    def wait_for_candidate(self, share: float = 0.3) -> int:
        """Wait until the version published last answers that share of the requests, and return its number."""

        def answers() -> bool:
            number = self.number()
            latest = self.latest()
            if number == self.stable() or len(latest) < LATEST:
                return False
            return latest.count(str(number)) >= share * LATEST

        self.wait_for(answers)
        return self.number()

    def latest(self) -> list[str]:
        """Return the versions that gave the latest answers."""
        return [line["version"] for line in self.load.read().all if "version" in line][-LATEST:]

    def only_stable_answers(self) -> bool:
        """Whether no other version has given one of the latest answers."""
        return set(self.latest()) == {str(self.stable())}

    def run(self, act: Callable[[subprocess.Popen[str]], float | None] | None = None) -> Outcome:
        """Apply the spec; ``act`` breaks something meanwhile, and returns when (seconds since the epoch)."""
        began = time.time()
        process = self.project.start("apply", "spec.yaml")
        fault = act(process) if act is not None else None
        output = process.communicate(timeout=180)[0]
        self.logs.append(output)
        return self.outcome(began, process.returncode, output, fault)

    def outcome(self, began: float, code: int, output: str, fault: float | None) -> Outcome:
        """Return what became of the requests since ``began``."""
        time.sleep(0.5)
        requests = Requests(tuple(line for line in self.load.read().all if line["at"] >= began))
        stable, back = str(self.stable()), None
        if fault is not None:
            others = [
                line["at"]
                for line in requests.all
                if line["at"] >= fault and "version" in line and line["version"] != stable
            ]
            back = max(0.0, others[-1] - fault) if others else 0.0
        return Outcome(code, output, requests, back)


@contextmanager
def world(root: Path, *, rate: float = RATE) -> Iterator[World]:
    """Serve version 1.0.0 of the model m, and send requests to it, until the block ends."""
    project = Project(root)
    project.write("1.0.0", strategy="bluegreen", options={"analysis": None, "scaleDownDelay": "0s"})
    done = project.shipctl("apply", "spec.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    try:
        door = project.status()[0]["endpoints"]["http"].removeprefix("http://")
        with load(door, root / "requests.jsonl", rate=rate, ones=0.25) as running:
            yield World(project, door, running)
    finally:
        project.shipctl("down", "spec.yaml")


# -- one function per thing that happens ---------------------------------------------------------------------


def promote_by_canary(live: World) -> Outcome:
    """Release a good version by canary."""
    live.next()
    return live.run()


def promote_by_bluegreen(live: World) -> Outcome:
    """Release a good version at once."""
    live.next(strategy="bluegreen")
    return live.run()


def candidate_fails(live: World) -> Outcome:
    """Release a version that answers a quarter of the requests with an error, which no golden sample shows."""
    live.next("errors", target=SINGLE)
    return live.run(lambda _: live.wait_for_candidate(0.05) and time.time())


def candidate_is_slow(live: World) -> Outcome:
    """Release a version that takes several times as long."""
    live.next("slow", target=SINGLE)
    return live.run(lambda _: live.wait_for_candidate(0.05) and time.time())


def candidate_is_wrong(live: World) -> Outcome:
    """Release a version that answers golden samples wrongly: it never gets a request."""
    live.next("wrong", target=SINGLE)
    return live.run()


def candidate_differs(live: World) -> Outcome:
    """Shadow a version whose answers differ where no golden sample looks."""
    live.next(
        "differs",
        strategy="shadow",
        target=SINGLE,
        percent="50%",
        duration="30s",
        compare={"comparisons": 50},
    )
    return live.run()


def candidate_is_killed(live: World) -> Outcome:
    """Kill all servers of the candidate while it has half of the traffic."""
    live.next(steps=[{"setWeight": 50}, {"pause": {"duration": "20s"}}])

    def kill(_process: subprocess.Popen[str]) -> float:
        number = live.wait_for_candidate()
        for pid in live.servers(number):
            os.kill(pid, signal.SIGKILL)
        return time.time()

    return live.run(kill)


def stable_is_killed(live: World) -> Outcome:
    """Kill one of the two servers of the stable version during a canary."""
    live.next(steps=[{"setWeight": 50}, {"pause": {"duration": "1s"}}])

    def kill(_process: subprocess.Popen[str]) -> None:
        live.wait_for_candidate(0.05)
        os.kill(live.servers(live.stable())[0], signal.SIGKILL)

    return live.run(kill)


def shipctl_is_killed(live: World) -> Outcome:
    """Kill shipctl again and again during a canary, and start the same command each time."""
    live.next(analysis={**ANALYSIS, "compare": False})  # which takes long where latencies vary
    began, output = time.time(), ""
    for place in KILLED_AT:
        process = live.project.start("apply", "spec.yaml")
        assert process.stdout is not None
        reached = False
        for line in process.stdout:
            output += line
            if reached := place in line:
                break
        process.kill()
        process.communicate()
        assert reached, output
    done = live.project.shipctl("apply", "spec.yaml")
    return live.outcome(began, done.returncode, output + done.stdout + done.stderr, None)


def nobody_comes_back(live: World) -> Outcome:
    """Kill shipctl at half of the traffic and leave it at that: the watchdog returns to the stable version."""
    live.next(target=SINGLE, steps=[{"setWeight": 50}, {"pause": {"duration": "60s"}}])
    began = time.time()
    process = live.project.start("apply", "spec.yaml")
    live.wait_for_candidate()
    process.kill()
    fault = time.time()
    output = process.communicate()[0]
    live.wait_for(live.only_stable_answers)
    outcome = live.outcome(began, process.returncode, output, fault)
    aborted = live.project.shipctl("abort", "spec.yaml", "--reason", "nobody came back")
    assert aborted.returncode == 0, aborted.stdout + aborted.stderr
    return outcome


def source_goes_away(live: World, prometheus: str, stop: Callable[[], None]) -> Outcome:
    """Stop the Prometheus that measures a canary: what cannot be asked never promotes."""
    metric = {
        "name": "failures",
        "provider": {
            "uses": "prometheus",
            "with": {"url": prometheus, "query": "vector(0)", "timeout": "2s"},
        },
        "max": 0.5,
    }
    live.next(
        target=SINGLE,
        steps=[{"setWeight": 50}, {"pause": {"duration": "60s"}}],
        analysis={**ANALYSIS, "metrics": [metric], "consecutiveErrorLimit": 2},
    )

    def end(_process: subprocess.Popen[str]) -> float:
        live.wait_for_candidate()
        stop()
        return time.time()

    return live.run(end)


def split_by_users(live: World) -> Outcome:
    """Let two good versions serve half of the users each until it is clear that there is no difference."""
    live.next(
        strategy="ab-test",
        duration="60s",
        test={"goal": "error_rate", "minimumEffect": "15%"},
        sticky={"kind": "header", "name": "x-user-id"},
    )
    return live.run()
