"""The journal: an SQLite file (WAL) in which every run writes what it does, before and after it does it.

The store is the truth about artifacts and the target about releases; the journal is the history, and
what `plan` compares with to say why a stage runs again.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Self

from shipctl.errors import StoreError
from shipctl.stages.verdicts import Verdict

_SCHEMA = """
CREATE TABLE IF NOT EXISTS runs (
  id TEXT PRIMARY KEY, pipeline TEXT, version TEXT, spec TEXT, command TEXT, user TEXT, host TEXT,
  plan TEXT, started REAL, finished REAL, exit_code INTEGER, message TEXT);
CREATE TABLE IF NOT EXISTS stages (
  run TEXT, node TEXT, stage TEXT, uses TEXT, attempt INTEGER, status TEXT, message TEXT, reasons TEXT,
  fingerprint TEXT, started REAL, seconds REAL, peak_memory INTEGER, PRIMARY KEY (run, node));
CREATE TABLE IF NOT EXISTS verdicts (run TEXT, node TEXT, time REAL, body TEXT);
CREATE INDEX IF NOT EXISTS verdicts_run ON verdicts (run);
CREATE TABLE IF NOT EXISTS steps (
  run TEXT, node TEXT, target TEXT, revision TEXT, phase TEXT, message TEXT, time REAL);
CREATE INDEX IF NOT EXISTS steps_run ON steps (run);
CREATE TABLE IF NOT EXISTS components (pipeline TEXT, node TEXT, body TEXT, PRIMARY KEY (pipeline, node));
CREATE TABLE IF NOT EXISTS processes (pid INTEGER, started TEXT, boot TEXT, run TEXT, PRIMARY KEY (pid, started));
"""


class RunRow(NamedTuple):
    """A run; times are seconds since the epoch, `finished` is None while it runs or after it was killed."""

    id: str
    pipeline: str
    version: str
    spec: str
    command: str
    user: str
    host: str
    plan: str
    started: float
    finished: float | None
    exit_code: int | None
    message: str | None


class StageRow(NamedTuple):
    """A node in a run."""

    run: str
    node: str
    stage: str
    uses: str
    attempt: int
    status: str
    message: str
    reasons: list[str]
    fingerprint: str | None
    started: float | None
    seconds: float | None
    peak_memory: int | None


class StepRow(NamedTuple):
    """A step of a release."""

    run: str
    node: str
    target: str
    revision: str
    phase: str
    message: str
    time: float


class ProcessRow(NamedTuple):
    """A process that a run started: its pid, its start time in ticks and the machine's boot id."""

    pid: int
    started: str
    boot: str
    run: str


class Journal:
    """The journal of one project. One connection, shared by the threads of a run behind a lock."""

    def __init__(self, path: Path) -> None:
        """Open or create the file.

        :raises StoreError: if it cannot be used
        """
        self._lock = threading.RLock()
        database: sqlite3.Connection | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            database = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=30)
            database.execute("PRAGMA journal_mode=WAL")
            database.execute("PRAGMA synchronous=NORMAL")
            if not database.execute("SELECT 1 FROM sqlite_master WHERE name = 'processes'").fetchone():
                database.executescript(_SCHEMA)
        except (sqlite3.Error, OSError) as exc:
            if database is not None:
                database.close()
            message = (
                f"cannot open the journal {path}: {exc}; move it away to begin a new one (artifacts stay)"
            )
            raise StoreError(message) from exc
        self._db = database

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit all writes inside together."""
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:  # whatever ended the block, half of it must not stay
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def _write(self, sql: str, *values: object) -> None:
        with self._lock:
            self._db.execute(sql, values)

    def _read(self, sql: str, *values: object) -> list[Any]:
        with self._lock:
            return self._db.execute(sql, values).fetchall()

    # -- runs ----------------------------------------------------------------------------------------------

    def begin_run(self, row: RunRow) -> None:
        """Record that a run begins."""
        self._write(f"INSERT INTO runs VALUES ({','.join('?' * len(row))})", *row)  # noqa: S608  (question marks only)

    def end_run(self, run: str, finished: float, exit_code: int, message: str) -> None:
        """Record how a run ended."""
        self._write(
            "UPDATE runs SET finished = ?, exit_code = ?, message = ? WHERE id = ?",
            finished,
            exit_code,
            message,
            run,
        )

    def runs(self, limit: int = 50, pipeline: str | None = None) -> list[RunRow]:
        """Return the latest runs, newest first."""
        if pipeline is None:
            rows = self._read("SELECT * FROM runs ORDER BY started DESC LIMIT ?", limit)
        else:
            rows = self._read(
                "SELECT * FROM runs WHERE pipeline = ? ORDER BY started DESC LIMIT ?", pipeline, limit
            )
        return [RunRow(*row) for row in rows]

    def run(self, run: str) -> RunRow | None:
        """Return one run."""
        rows = self._read("SELECT * FROM runs WHERE id = ?", run)
        return RunRow(*rows[0]) if rows else None

    # -- stages --------------------------------------------------------------------------------------------

    def record_stage(self, row: StageRow) -> None:
        """Record where a node of a run stands, replacing what was said before."""
        values = [json.dumps(value) if isinstance(value, list) else value for value in row]
        self._write(f"INSERT OR REPLACE INTO stages VALUES ({','.join('?' * len(row))})", *values)  # noqa: S608

    def stages(self, run: str) -> list[StageRow]:
        """Return the nodes of a run in the order in which they were first recorded."""
        rows = self._read("SELECT * FROM stages WHERE run = ? ORDER BY started, rowid", run)
        return [StageRow._make((*row[:7], json.loads(row[7]), *row[8:])) for row in rows]

    def record_verdict(self, run: str, node: str, verdict: Verdict, time: float) -> None:
        """Record the answer of a gate."""
        self._write("INSERT INTO verdicts VALUES (?, ?, ?, ?)", run, node, time, verdict.model_dump_json())

    def verdicts(self, run: str) -> list[tuple[str, Verdict]]:
        """Return the verdicts of a run with their nodes."""
        rows = self._read("SELECT node, body FROM verdicts WHERE run = ? ORDER BY rowid", run)
        return [(node, Verdict.model_validate_json(body)) for node, body in rows]

    def record_step(self, row: StepRow) -> None:
        """Record a step of a release."""
        self._write("INSERT INTO steps VALUES (?, ?, ?, ?, ?, ?, ?)", *row)

    def steps(self, run: str | None = None, limit: int = 1000) -> list[StepRow]:
        """Return the steps of a run's releases, or of all runs, oldest first."""
        if run is not None:
            rows = self._read("SELECT * FROM steps WHERE run = ? ORDER BY rowid", run)
        else:
            rows = self._read(
                "SELECT * FROM (SELECT *, rowid AS r FROM steps ORDER BY r DESC LIMIT ?) ORDER BY r", limit
            )
        return [StepRow(*row[:7]) for row in rows]

    # -- what plan compares with ---------------------------------------------------------------------------

    def remember_components(self, pipeline: str, node: str, components: Any) -> None:
        """Keep the components of the last finished run of a node."""
        self._write(
            "INSERT OR REPLACE INTO components VALUES (?, ?, ?)", pipeline, node, json.dumps(components)
        )

    def components(self, pipeline: str) -> dict[str, Any]:
        """Return, per node, the components of its last finished run."""
        rows = self._read("SELECT node, body FROM components WHERE pipeline = ?", pipeline)
        return {node: json.loads(body) for node, body in rows}

    # -- processes -----------------------------------------------------------------------------------------

    def add_process(self, row: ProcessRow) -> None:
        """Record a process before it does anything."""
        self._write("INSERT OR REPLACE INTO processes VALUES (?, ?, ?, ?)", *row)

    def remove_process(self, pid: int) -> None:
        """Forget a process that has ended."""
        self._write("DELETE FROM processes WHERE pid = ?", pid)

    def processes(self) -> Sequence[ProcessRow]:
        """Return the processes that no run has seen end."""
        return [ProcessRow(*row) for row in self._read("SELECT * FROM processes")]
