"""What publishing to S3 costs: shipctl beside `aws s3 cp`, boto3's transfer manager and the minio client's own calls.

All of them against the same RADOS gateway, which this starts on loopback, each in a process of its own. One large file,
many small ones, and second versions of which nine files of ten are those of the first. Every round measures each client
once, in turn, and the server gives the space back between two of them: trust the ratios more than the seconds, since
server and clients share the processors.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import environments
from harness import NotMeasuredError, clean_environment, host, host_line, say, write_json

sys.path.insert(0, str(environments.ROOT / "tests"))

from support_s3 import NoServerError, S3Server, gateway

CLIENTS = ("shipctl", "minio", "minio, tuned", "boto3", "aws")
WORKER = Path(__file__).with_name("store_clients.py")
TIMEOUT = 600.0
_BLOCK = 4 << 20
_UNITS = {"": 1, "KB": 1000, "MB": 1000**2, "GB": 1000**3}
_SHARED = 10
"""One file of so many is new in a second version."""
_LESS = 9
_PEAK = 200
"""MB."""
File = tuple[str, str, int]


@dataclass(frozen=True)
class Sample:
    """One process: seconds on the clock and of processor time, peak memory, and what the server was sent."""

    wall: float
    cpu: float
    peak: int
    sent: int


@dataclass(frozen=True)
class Load:
    """Files that are published together, and what a second version of them consists of."""

    name: str
    title: str
    first: list[File]
    second: list[File] | None

    @property
    def size(self) -> int:
        """Bytes of the first version."""
        return sum(size for _, _, size in self.first)


Samples = dict[tuple[str, str, str], list[Sample]]
"""By load, what was done (publish, fetch, second), and client."""


@dataclass
class Bench:
    """One run: the server, the clients, and all samples."""

    folder: Path
    state: Path
    server: S3Server
    aws: str | None
    samples: Samples = field(default_factory=dict)
    missing: dict[tuple[str, str, str], str] = field(default_factory=dict)

    def measure(self, loads: Sequence[Load], rounds: int) -> None:
        """Measure every client with every load in every round, beginning with another client each time."""
        # The first bytes that a new server gets take several times as long: it makes its pools and files.
        self._one(loads[0], "minio")
        self._one(loads[-1], "minio")
        self.samples.clear()
        clients = [client for client in CLIENTS if client != "aws" or self.aws]
        for number in range(rounds):
            for load in loads:
                for client in clients[number % len(clients) :] + clients[: number % len(clients)]:
                    say(f"round {number + 1} of {rounds}: {load.title}, {client}")
                    self._one(load, client)

    def _one(self, load: Load, client: str) -> None:
        bucket = self.server.bucket()
        self._take(load, "publish", client, load.first, bucket, "v1")
        self._take(load, "fetch", client, load.first, bucket, "v1")
        if load.second is not None:
            # shipctl's blobs are shared by all versions; the others have a folder for each
            self._take(load, "second", client, load.second, bucket, "v1" if client == "shipctl" else "v2")
        self._empty(bucket)

    def _take(self, load: Load, act: str, client: str, files: list[File], bucket: str, prefix: str) -> None:
        key = (load.name, act, client)
        if key in self.missing:
            return
        names = self.folder / f"{load.name}-{act}.json"
        names.write_text(json.dumps(files))
        work = self.folder / "local" if client == "shipctl" and act != "fetch" else self.folder / "fetched"
        work.mkdir(exist_ok=True)
        env = clean_environment(self.folder / "home") | self.server.environment
        env |= {"AWS_ENDPOINT_URL_S3": self.server.endpoint, "BUCKET": bucket}
        before = self._received()
        try:
            wall, cpu, peak = _timed(self._command(client, act, names, files, bucket, prefix, work), env)
        except NotMeasuredError as exc:
            self.missing[key] = str(exc)
            return
        finally:
            shutil.rmtree(self.folder / "fetched", ignore_errors=True)
        self.samples.setdefault(key, []).append(Sample(wall, cpu, peak, self._received() - before))

    def _command(
        self, client: str, act: str, names: Path, files: list[File], bucket: str, prefix: str, work: Path
    ) -> list[str]:
        if client != "aws":
            act = "fetch" if act == "fetch" else "publish"
            return [sys.executable, str(WORKER), client, act, str(names), prefix, str(work)]
        there = f"s3://{bucket}/{prefix}/"
        if act == "fetch":
            return [str(self.aws), "s3", "cp", "--only-show-errors", "--recursive", there, str(work)]
        source = Path(files[0][0]).parent
        chosen = ["--recursive", str(source)]
        if len(files) == 1:
            chosen = [files[0][0]]
        elif act == "second":
            source = self.folder / "second"
            shutil.rmtree(source, ignore_errors=True)
            source.mkdir()
            for path, _, _ in files:
                os.link(path, source / Path(path).name)
            chosen = ["--recursive", str(source)]
        return [str(self.aws), "s3", "cp", "--only-show-errors", *chosen, there]

    def _received(self) -> int:
        """Bytes of bodies that the gateway has got so far, by its own count."""
        socket = str(self.state / "client.rgw.a.asok")
        said = subprocess.run(
            ["ceph", "--admin-daemon", socket, "perf", "dump", "rgw"], capture_output=True, check=True
        )
        found: int = json.loads(said.stdout)["rgw"]["put_b"]
        return found

    def _empty(self, bucket: str) -> None:
        """Remove a bucket, and wait until the server has given its space back."""
        admin = ["radosgw-admin", "-c", str(self.state / "ceph.conf")]
        env = {**os.environ, "CEPH_CONF": str(self.state / "ceph.conf")}
        for command in (
            ["bucket", "rm", f"--bucket={bucket}", "--purge-objects"],
            ["gc", "process", "--include-all"],
        ):
            subprocess.run([*admin, *command], env=env, capture_output=True, check=True, timeout=TIMEOUT)
        until = time.monotonic() + 120
        while time.monotonic() < until:
            left = subprocess.run(
                [*admin, "gc", "list", "--include-all"], env=env, capture_output=True, check=True
            )
            if not json.loads(left.stdout):
                return
            time.sleep(1)


def _timed(command: Sequence[str], env: Mapping[str, str]) -> tuple[float, float, int]:
    """Run one process to its end, and return seconds, seconds of processor time, and its peak memory in bytes.

    :raises NotMeasuredError: if it fails, or is not done in time; then its process group is gone
    """
    with tempfile.TemporaryFile() as output:
        began = time.perf_counter()
        process = subprocess.Popen(
            command,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        alarm = signal.signal(signal.SIGALRM, lambda *_: os.killpg(process.pid, signal.SIGKILL))
        signal.alarm(int(TIMEOUT))
        try:
            _, status, used = os.wait4(process.pid, 0)
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, alarm)
        wall = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        said = output.read().decode(errors="replace").strip().splitlines()
    if process.returncode != 0:
        message = f"exit code {process.returncode}: {said[-1][:200] if said else 'nothing was said'}"
        raise NotMeasuredError(message)
    return wall, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024


def _write(path: Path, size: int, seed: int) -> File:
    """Write a file that cannot be compressed, and return its line of a list."""
    source = random.Random(seed)
    digest = hashlib.sha256()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as stream:
        left = size
        while left:
            block = source.randbytes(min(left, _BLOCK))
            digest.update(block)
            stream.write(block)
            left -= len(block)
    return str(path), digest.hexdigest(), size


def _loads(folder: Path, size: int, count: int, each: int) -> Iterator[Load]:
    """Make the files, and put them into shipctl's local store, where a pipeline would have left them."""
    yield Load("one", f"1 × {_shown(size)}", [_write(folder / "one" / "model.bin", size, 0)], None)
    for name, number, bytes_each in (("ten", _SHARED, size // (2 * _SHARED)), ("many", count, each)):
        first = [_write(folder / name / f"{item:05d}", bytes_each, 1 + item) for item in range(number)]
        new = [
            _write(folder / f"{name}-new" / f"{item:05d}", bytes_each, 1_000_000 + item)
            for item in range(0, number, _SHARED)
        ]
        changed = {Path(file[0]).name: file for file in new}
        second = [changed.get(Path(file[0]).name, file) for file in first]
        yield Load(name, f"{number:,} × {_shown(bytes_each)}", first, second)


def _stock(local: Path, loads: Sequence[Load]) -> None:
    for load in loads:
        for path, sha256, _ in [*load.first, *(load.second or [])]:
            blob = local / "blobs" / sha256[:2] / sha256
            blob.parent.mkdir(parents=True, exist_ok=True)
            if not blob.exists():
                os.link(path, blob)


def _shown(size: float) -> str:
    unit = next(unit for unit in ("GB", "MB", "KB", "") if size >= _UNITS[unit])
    return f"{size / _UNITS[unit]:.3g} {unit}".rstrip()


def _bytes(text: str) -> int:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]B)?", text)
    if not found:
        message = f"{text!r} is no size; write 200MB or 2GB"
        raise argparse.ArgumentTypeError(message)
    return int(float(found[1]) * _UNITS[found[2] or ""])


# -- what came out -----------------------------------------------------------------------------------------


def _row(bench: Bench, load: Load, act: str, client: str) -> list[str] | None:
    found = bench.samples.get((load.name, act, client))
    ours = bench.samples.get((load.name, act, "shipctl"))
    if not found:
        return None
    wall = _wall(found)
    walls = [sample.wall for sample in found]
    return [
        client,
        f"{wall:.2f}",
        f"{min(walls):.2f}..{max(walls):.2f}",
        f"{load.size / wall / 1e6:.0f}",
        f"{median(sample.cpu for sample in found):.2f}",
        f"{max(sample.peak for sample in found) / 1e6:.0f}",
        f"{median(sample.sent for sample in found) / 1e6:.1f}",
        f"{wall / _wall(ours):.2f}" if ours else "",
    ]


def _wall(samples: Sequence[Sample]) -> float:
    return median(sample.wall for sample in samples)


def _tables(bench: Bench, loads: Sequence[Load]) -> Iterator[str]:
    head = ["", "median s", "min..max", "MB/s", "cpu s", "peak MB", "sent MB", "× shipctl"]
    titles = {
        "publish": "first publication",
        "second": "second version, 90 % as before",
        "fetch": "fetched again",
    }
    for load in loads:
        for act, title in titles.items():
            rows = [row for client in CLIENTS if (row := _row(bench, load, act, client))]
            if rows:
                widths = [max(len(line[column]) for line in [head, *rows]) for column in range(len(head))]
                yield f"\n{load.title}: {title}"
                for line in [head, *rows]:
                    yield "  ".join(
                        cell.rjust(width) if column else cell.ljust(width)
                        for column, (cell, width) in enumerate(zip(line, widths, strict=True))
                    ).rstrip()


def _targets(bench: Bench, loads: Sequence[Load]) -> Iterator[tuple[str, float | None, bool]]:
    """Yield the project's promises: text, figure, and whether it was kept."""

    def ratio(load: Load, act: str, peer: str, of: Callable[[Sequence[Sample]], float]) -> float | None:
        ours = bench.samples.get((load.name, act, "shipctl"))
        theirs = bench.samples.get((load.name, act, peer))
        return of(theirs) / of(ours) if ours and theirs else None

    def sent(samples: Sequence[Sample]) -> float:
        return median(sample.sent for sample in samples)

    for load in loads:
        for peer, least in (("minio", 1.0), ("boto3", 1.3)):
            figure = ratio(load, "publish", peer, _wall)
            text = f"{load.title}: first publication at least {least} × as fast as {peer}"
            yield text, figure, figure is not None and figure >= least
        if load.second is not None:
            figure = ratio(load, "second", "minio", sent)
            text = f"{load.title}: second version sends at most 1/{_LESS} of what minio sends"
            yield text, figure, figure is not None and figure >= _LESS
    peaks = [
        sample.peak / 1e6 for key, all_of in bench.samples.items() if key[2] == "shipctl" for sample in all_of
    ]
    peak = max(peaks, default=None)
    yield (
        f"peak memory of shipctl at most {_PEAK} MB, whatever the size",
        peak,
        peak is not None and peak <= _PEAK,
    )


def main() -> None:
    """Measure, and print what came out."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--size", type=_bytes, default=_bytes("2GB"), help="of the large file (2GB)")
    parser.add_argument("--files", type=int, default=2000, help="how many small ones (2000)")
    parser.add_argument(
        "--each", type=_bytes, default=_bytes("100KB"), help="the size of a small one (100KB)"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", metavar="FILE", type=Path, help="write all samples to FILE")
    parser.add_argument("--environments", metavar="DIR", type=Path, default=environments.DEFAULT_FOLDER)
    given = parser.parse_args()

    tools, absent = environments.installed(given.environments, ["awscli"])
    machine, facts = host_line(), host()
    with tempfile.TemporaryDirectory(prefix="shipctl-bench-") as folder:
        place = Path(folder)
        say("making the files")
        loads = list(_loads(place / "files", given.size, given.files, given.each))
        _stock(place / "local", loads)
        room = 2 + -(-2 * max(load.size for load in loads) // (1 << 30))
        try:
            with gateway(place / "gateway", gigabytes=room) as server:
                aws = tools["awscli"].program("aws") if "awscli" in tools else None
                bench = Bench(place, place / "gateway", server, aws)
                bench.measure(loads, given.rounds)
        except NoServerError as exc:
            sys.exit(f"cannot measure: {exc}")

    print(machine + "".join(f"; {name} {tool.version}" for name, tool in tools.items()))
    for text in _tables(bench, loads):
        print(text)
    print("\ntargets")
    kept = list(_targets(bench, loads))
    for text, figure, met in kept:
        shown = "" if figure is None else f" ({figure:.2f})"
        print(f"  {'not measured' if figure is None else 'met' if met else 'missed':12}  {text}{shown}")
    notes = [f"{name} was not measured: {why}" for name, why in absent.items()]
    notes += [f"{' '.join(key)} was not measured: {why}" for key, why in bench.missing.items()]
    print("\n" + "\n".join(notes))
    figures = {" ".join(key): [vars(sample) for sample in found] for key, found in bench.samples.items()}
    outcomes = [{"target": text, "figure": figure, "met": met} for text, figure, met in kept]
    write_json(given.json, {"host": facts, "figures": figures, "targets": outcomes, "notes": notes})


if __name__ == "__main__":
    main()
