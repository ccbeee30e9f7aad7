"""Known vulnerabilities of what is required, from a database on this machine in the format of https://ossf.github.io/osv-schema/."""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shipctl.errors import StageError
from shipctl_plugins._evidence.requirements import Requirement
from shipctl_plugins.package._scan_findings import Findings, Severity, rank

if TYPE_CHECKING:
    from packaging.version import Version

ECOSYSTEM = "PyPI"
_LARGEST_RECORD = 16 << 20
_WORDS: dict[str, Severity] = {
    "LOW": "low", "MODERATE": "medium", "MEDIUM": "medium", "HIGH": "high", "CRITICAL": "critical",
}  # fmt: skip
# CVSS v3.1, section 7.1 and 7.4 (https://www.first.org/cvss/v3.1/specification-document).
_METRICS: dict[str, dict[str, float]] = {
    "AV": {"N": 0.85, "A": 0.62, "L": 0.55, "P": 0.2},
    "AC": {"L": 0.77, "H": 0.44},
    "UI": {"N": 0.85, "R": 0.62},
    "C": {"H": 0.56, "L": 0.22, "N": 0.0},
    "I": {"H": 0.56, "L": 0.22, "N": 0.0},
    "A": {"H": 0.56, "L": 0.22, "N": 0.0},
}
_PRIVILEGES = {"U": {"N": 0.85, "L": 0.62, "H": 0.27}, "C": {"N": 0.85, "L": 0.68, "H": 0.5}}
_GRADES: tuple[tuple[float, Severity], ...] = (
    (9.0, "critical"),
    (7.0, "high"),
    (4.0, "medium"),
    (0.1, "low"),
)


@dataclass
class Database:
    """The records about Python distributions."""

    records: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """By the normal form of the distribution's name."""
    count: int = 0
    modified: float = 0.0
    """When the newest record was changed, in seconds since the epoch."""

    @property
    def newest(self) -> str:
        """The same as a text (ISO 8601, UTC)."""
        return datetime.fromtimestamp(self.modified, UTC).isoformat()


def read_database(path: Path) -> Database:
    """Read a zip of OSV records (such as https://osv-vulnerabilities.storage.googleapis.com/PyPI/all.zip), or JSON.

    :raises StageError: if it is neither, has no record about Python, or one that cannot be read
    """
    from packaging.utils import canonicalize_name

    database = Database()
    try:
        for record in _records(path):
            database.count += 1
            database.modified = max(database.modified, _time(record["modified"]))
            names = {str(canonicalize_name(name)) for name, _ in _affected(record)}
            if not record.get("withdrawn"):
                for name in sorted(names):
                    database.records.setdefault(name, []).append(record)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, zipfile.BadZipFile) as exc:
        message = f"{path} is no database of OSV records: {type(exc).__name__}: {exc}; take one from https://osv.dev"
        raise StageError(message) from exc
    if not database.records:
        raise StageError(
            f"{path} has no record about {ECOSYSTEM}; take that of {ECOSYSTEM} from https://osv.dev"
        )
    return database


def _records(path: Path) -> Iterator[dict[str, Any]]:
    if not zipfile.is_zipfile(path):
        content = json.loads(path.read_bytes())
        yield from content if isinstance(content, list) else [content]
        return
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.filename.endswith(".json"):
                if member.file_size > _LARGEST_RECORD:
                    raise ValueError(f"{member.filename} is larger than {_LARGEST_RECORD} bytes")
                yield json.loads(archive.read(member))


def _affected(record: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for item in record.get("affected") or ():
        package = item.get("package") or {}
        if package.get("ecosystem") == ECOSYSTEM:
            yield str(package["name"]), item


def _time(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def match(database: Database, required: Sequence[Requirement], file: str, found: Findings) -> None:
    """Note every vulnerability of what is required; ``file`` is where it is required."""
    for item in required:
        records = database.records.get(item.name, ())
        if item.version is None:
            if records:
                message = (
                    f"{item.name} {item.specifier}: {len(records)} advisories may apply; pin its version"
                )
                found.add("unpinned", "medium", file, message, item.name)
            continue
        for record, severity, names in _merged(item, records):
            summary = str(record.get("summary") or record.get("details") or "").strip().partition("\n")[0]
            also = f" ({', '.join(names)})" if names else ""
            told = f"{record['id']}{also}, {severity}: {summary}{_fixed(item.name, record)}"
            found.add(
                "vulnerability", severity, file, f"{item.name} {item.version}: {told}",
                f"{record['id']}:{item.name}@{item.version}",
            )  # fmt: skip


def _merged(
    item: Requirement, records: Iterable[Mapping[str, Any]]
) -> Iterator[tuple[Mapping[str, Any], Severity, list[str]]]:
    """Yield what applies, records about the same thing (GHSA-…, PYSEC-…) once, with the worst known severity."""
    groups: list[tuple[set[str], list[Mapping[str, Any]]]] = []
    for record in sorted(records, key=lambda record: str(record["id"])):
        if not applies(item.name, str(item.version), record):
            continue
        names, together = {str(record["id"]), *map(str, record.get("aliases") or ())}, [record]
        for group in [group for group in groups if group[0] & names]:
            groups.remove(group)
            names, together = names | group[0], group[1] + together
        groups.append((names, together))
    for names, together in groups:
        known = [severity for record in together if (severity := severity_of(record))]
        # What nobody has graded may be anything.
        worst: Severity = max(known, key=rank) if known else "high"
        yield together[0], worst, sorted(names - {str(together[0]["id"])})


def applies(name: str, version: str, record: Mapping[str, Any]) -> bool:
    """Whether a record is about this version, by the algorithm of the OSV schema; what cannot be decided is."""
    from packaging.utils import canonicalize_name
    from packaging.version import InvalidVersion, Version

    try:
        given = Version(Version(version).public)
        return any(
            _in_versions(given, item) or any(_in_range(given, part) for part in item.get("ranges") or ())
            for affected, item in _affected(record)
            if canonicalize_name(affected) == name
        )
    except InvalidVersion:
        return True


def _in_versions(given: Version, item: Mapping[str, Any]) -> bool:
    from packaging.version import InvalidVersion, Version

    for text in item.get("versions") or ():
        try:
            if Version(text) == given:
                return True
        except InvalidVersion:  # old releases have names of all kinds, none of which is this one
            continue
    return False


def _in_range(given: Version, part: Mapping[str, Any]) -> bool:
    from packaging.version import Version

    if part.get("type") not in {"ECOSYSTEM", "SEMVER"}:
        return False  # commits
    lowest = Version("0.dev0")
    events = [
        (lowest if text == "0" else Version(text), kind)
        for event in part.get("events") or ()
        for kind, text in event.items()
    ]
    # At one version, the end of one interval stands before the beginning of the next.
    order = {"fixed": 0, "limit": 0, "introduced": 1, "last_affected": 2}
    inside = False
    for version, kind in sorted(events, key=lambda event: (event[0], order.get(event[1], 3))):
        if kind == "introduced" and given >= version:
            inside = True
        elif (kind in {"fixed", "limit"} and given >= version) or (
            kind == "last_affected" and given > version
        ):
            inside = False
    return inside


def _fixed(name: str, record: Mapping[str, Any]) -> str:
    from packaging.utils import canonicalize_name

    fixed = [
        event["fixed"]
        for affected, item in _affected(record)
        if canonicalize_name(affected) == name
        for part in item.get("ranges") or ()
        if part.get("type") != "GIT"
        for event in part.get("events") or ()
        if "fixed" in event
    ]
    return f"; fixed in {', '.join(dict.fromkeys(map(str, fixed)))}" if fixed else ""


def severity_of(record: Mapping[str, Any]) -> Severity | None:
    """Return how bad a record says it is: in words, or by its CVSS v3 vector; None where it does not say."""
    word = _WORDS.get(str((record.get("database_specific") or {}).get("severity", "")).upper())
    if word:
        return word
    scores = [
        score
        for item in record.get("severity") or ()
        if (score := cvss3_base_score(str(item.get("score", "")))) is not None
    ]
    if not scores:
        return None
    return next((grade for least, grade in _GRADES if max(scores) >= least), "info")


def cvss3_base_score(vector: str) -> float | None:
    """Return the base score (0 to 10) of a CVSS v3.0 or v3.1 vector; None for anything else."""
    if not vector.startswith(("CVSS:3.0/", "CVSS:3.1/")):
        return None
    given = dict(part.split(":", 1) for part in vector.split("/")[1:] if ":" in part)
    try:
        values = {name: table[given[name]] for name, table in _METRICS.items()}
        privileges = _PRIVILEGES[given["S"]][given["PR"]]
    except KeyError:
        return None
    changed = given["S"] == "C"
    base = 1 - (1 - values["C"]) * (1 - values["I"]) * (1 - values["A"])
    impact = 7.52 * (base - 0.029) - 3.25 * (base - 0.02) ** 15 if changed else 6.42 * base
    if impact <= 0:
        return 0.0
    exploitability = 8.22 * values["AV"] * values["AC"] * privileges * values["UI"]
    raw = min((impact + exploitability) * (1.08 if changed else 1.0), 10.0)
    # Rounded up to one decimal, in integers as the standard's appendix A does it.
    scaled = round(raw * 100_000)
    return scaled / 100_000 if scaled % 10_000 == 0 else (math.floor(scaled / 10_000) + 1) / 10
