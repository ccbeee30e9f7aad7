"""What a scan says: findings with an id that a waiver can name."""

from __future__ import annotations

from typing import Any, Literal, get_args

from pydantic import Field

from shipctl.records import Record

Severity = Literal["info", "low", "medium", "high", "critical"]
SEVERITIES: tuple[Severity, ...] = get_args(Severity)
MOST = 5_000
"""Findings that are kept of one scan; whoever makes more has failed anyway."""


def rank(severity: str) -> int:
    """Return how bad it is, from 0; what is unknown is as bad as it can be."""
    return SEVERITIES.index(severity) if severity in SEVERITIES else len(SEVERITIES)


class Finding(Record):
    """One thing that somebody should look at."""

    id: str = Field(description="`rule:detail@file`; the same for the same thing in every scan.")
    severity: Severity = Field(description="How bad it is if it is what it looks like.")
    file: str = Field(description="Path in the artifact; members of archives after an exclamation mark.")
    message: str = Field(description="One line for a person.")

    @property
    def rule(self) -> str:
        """What was looked for, such as `pickle-global`."""
        return self.id.partition("@")[0].partition(":")[0]

    @property
    def detail(self) -> str:
        """What was found, such as `posix.system`; empty for some rules."""
        return self.id.removesuffix(f"@{self.file}").partition(":")[2]

    @property
    def names(self) -> tuple[str, str]:
        """What a waiver may call it: its id, or the id without the file for all of its kind."""
        return (self.id, self.id.removesuffix(f"@{self.file}"))


class Waiver(Record):
    """A finding that somebody has looked at and answers for."""

    finding: str = Field(min_length=1, description="Its id, or the id without `@file` for all of its kind.")
    reason: str = Field(min_length=1, description="Why it may stay.")
    by: str = Field(min_length=1, description="Who says so.")


def make(rule: str, severity: Severity, file: str, message: str, detail: str = "") -> Finding:
    """Return a finding with the id that its parts give."""
    name = f"{rule}:{_clean(detail)}" if detail else rule
    return Finding(id=f"{name}@{_clean(file)}", severity=severity, file=_clean(file), message=_clean(message))


class Findings:
    """Findings of one scan, each once, and how much was looked at."""

    def __init__(self) -> None:
        self._found: dict[str, Finding] = {}
        self.pickles = 0
        self.archives = 0
        self.members = 0
        self.models = 0

    def add(self, rule: str, severity: Severity, file: str, message: str, detail: str = "") -> None:
        """Note a finding."""
        if len(self._found) < MOST:
            finding = make(rule, severity, file, message, detail)
            self._found.setdefault(finding.id, finding)
        elif len(self._found) == MOST:
            last = make(
                "unscannable", "critical", "", f"more than {MOST} findings; the rest was not recorded"
            )
            self._found[last.id] = last

    def unscannable(self, file: str, reason: str) -> None:
        """Note that something could not be looked at, which never passes."""
        self.add("unscannable", "high", file, f"cannot be scanned: {reason}")

    def rows(self) -> list[dict[str, Any]]:
        """Return them as a table for a report, the worst first."""
        ordered = sorted(self._found.values(), key=lambda f: (-rank(f.severity), f.file, f.id))
        return [finding.model_dump(mode="json") for finding in ordered]


def _clean(text: str) -> str:
    """Make a text from a hostile file fit for a terminal and a page: printable, and not too long."""
    shown = "".join(letter if letter.isprintable() else f"\\x{ord(letter):02x}" for letter in text)
    return shown if len(shown) <= 300 else f"{shown[:297]}…"  # noqa: PLR2004
