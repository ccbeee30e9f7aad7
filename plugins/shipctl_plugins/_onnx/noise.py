"""Keeps libraries that warn, log and print from writing past the run's log."""

from __future__ import annotations

import logging
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import TextIOBase
from pathlib import Path

Log = Callable[[str], None]


class _Lines(TextIOBase):
    """A text stream that hands on whole lines, each one once, without blanks."""

    def __init__(self, log: Log, ignored: tuple[str, ...]) -> None:
        self._log = log
        self._ignored = ignored
        self._streams = (sys.stdout, sys.stderr)
        self._rest = ""
        self._seen: set[str] = set()

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self.line(line)
        return len(text)

    def line(self, text: str) -> None:
        text = text.strip()
        if text and text not in self._seen and not any(part in text for part in self._ignored):
            self._seen.add(text)
            # the log may well print, and that must not come back here
            with redirect_stdout(self._streams[0]), redirect_stderr(self._streams[1]):
                self._log(text)

    def flush(self) -> None:
        if self._rest:
            self.line(self._rest)
            self._rest = ""


class _Handler(logging.Handler):
    def __init__(self, lines: _Lines) -> None:
        super().__init__(logging.WARNING)
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.line(f"{record.name}: {record.getMessage()}".partition("\n")[0])


@contextmanager
def routed(log: Log, *ignored: str) -> Iterator[None]:
    """Send warnings, log records from WARNING on, and everything printed meanwhile to ``log``.

    Lines that contain one of ``ignored`` are dropped.
    Import noisy libraries before: a logger that gets its handler inside keeps it.
    """
    lines = _Lines(log, ignored)
    known = [logging.getLogger(name) for name in list(logging.root.manager.loggerDict)]
    swapped = [(logger, logger.handlers) for logger in known if logger.handlers]
    swapped.append((logging.root, logging.root.handlers))
    with redirect_stdout(lines), redirect_stderr(lines), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for logger, _ in swapped:
            logger.handlers = [_Handler(lines)]
        try:
            yield
        finally:
            for logger, handlers in swapped:
                logger.handlers = handlers
            lines.flush()
            for warning in caught:
                lines.line(f"{warning.category.__name__}: {warning.message}".partition("\n")[0])


@contextmanager
def temporary_files_in(folder: Path) -> Iterator[None]:
    """Make :mod:`tempfile` work below ``folder``, for libraries that give no way to say where."""
    before = tempfile.tempdir
    folder.mkdir(parents=True, exist_ok=True)
    tempfile.tempdir = str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before
