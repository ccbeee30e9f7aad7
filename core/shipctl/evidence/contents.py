"""What lies in a package: its files, each hashed once, and whether its parts agree with each other."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from shipctl.errors import GateError, VerificationError
from shipctl.evidence.package import ADDED_BY_SIGNING, MANIFEST, PROVENANCE, PackageManifest
from shipctl.evidence.provenance import reference_of, subjects_of
from shipctl.stages.artifacts import FileEntry
from shipctl.store.files import hash_file

_READERS = 8
_SHOWN = 10
AGAIN = "do not use this copy; take the package from where it was published again"


def shown(name: str) -> str:
    """Return a file's name for a message: one that could deceive a terminal is escaped."""
    return name if name.isprintable() else ascii(name)


def short(digest: str) -> str:
    """Return the beginning of a digest."""
    return f"{digest[:12]}…"


def in_order(names: Sequence[str]) -> list[str]:
    """Return paths in the order that packages and model signatures list them: folder by folder."""
    return sorted(names, key=lambda name: PurePosixPath(name).parts)


def listing(folder: Path, label: str) -> tuple[list[str], list[str]]:
    """Return the paths of all files below ``folder``, and those of the folders that hold nothing, in order.

    :raises VerificationError: if there is anything but plain files and folders
    """
    files: list[str] = []
    empty: list[str] = []
    waiting = [""]
    while waiting:
        inside = waiting.pop()
        try:
            entries = list(os.scandir(folder / inside))
        except OSError as exc:
            raise VerificationError(
                f"{label}: {shown(inside) or 'the package'} cannot be read: {exc.strerror}; make it readable and"
                " verify again",
                "unreadable",
            ) from None
        if inside and not entries:
            empty.append(inside)
        for entry in entries:
            name = f"{inside}/{entry.name}" if inside else entry.name
            mode = entry.stat(follow_symlinks=False).st_mode
            if stat.S_ISDIR(mode):
                waiting.append(name)
                continue
            _check_plain(entry.path, mode, f"{label}: {shown(name)}")
            files.append(name)
    return in_order(files), in_order(empty)


def _check_plain(path: str, mode: int, what: str) -> None:
    if stat.S_ISLNK(mode):
        raise VerificationError(
            f"{what} is a link to {shown(os.readlink(path))}; a package has plain files only: {AGAIN}",  # noqa: PTH115
            "link",
        )
    if not stat.S_ISREG(mode):
        raise VerificationError(f"{what} is not a plain file; a package has nothing else: {AGAIN}", "special")
    if mode & (stat.S_ISUID | stat.S_ISGID):
        raise VerificationError(
            f"{what} has the set-user-ID or set-group-ID bit, which no file of a package has: {AGAIN}", "mode"
        )


def hash_files(folder: Path, names: Sequence[str], label: str) -> tuple[FileEntry, ...]:
    """Return every file with its digest and size. Each is read once, in pieces, several side by side.

    :raises VerificationError: if one cannot be read
    """

    def entry(name: str) -> FileEntry:
        try:
            digest, size, _ = hash_file(folder / name)
        except OSError as exc:
            raise VerificationError(
                f"{label}: {shown(name)} cannot be read: {exc.strerror}; make it readable and verify again",
                "unreadable",
            ) from None
        return FileEntry(path=name, sha256=digest, size=size)

    with ThreadPoolExecutor(min(_READERS, os.cpu_count() or 1)) as threads:
        return tuple(threads.map(entry, names))


def read_checked(folder: Path, entry: FileEntry, label: str) -> bytes:
    """Return the bytes of a small file that was hashed before: exactly those, or nothing.

    :raises VerificationError: if it has changed since
    """
    try:
        data = (folder / entry.path).read_bytes()
    except OSError as exc:
        raise VerificationError(
            f"{label}: {entry.path} cannot be read: {exc.strerror}", "unreadable"
        ) from None
    if hashlib.sha256(data).hexdigest() != entry.sha256:
        raise VerificationError(f"{label}: {entry.path} changed while it was verified; {AGAIN}", "altered")
    return data


def compare_with_signed(
    signed: Mapping[str, str], files: Sequence[FileEntry], unsigned: frozenset[str], label: str
) -> None:
    """Raise VerificationError that tells every file whose digest is not the one that was signed.

    ``unsigned`` are the files that no signature over the package can cover: itself.
    """
    problems = []
    for entry in files:
        wanted = signed.get(entry.path)
        if entry.path in unsigned or wanted == entry.sha256:
            continue
        role = ", which says what the package is," if entry.path == MANIFEST else ""
        problems.append(
            f"{label}: {shown(entry.path)}{role} was altered after it was signed: its SHA-256 is "
            f"{short(entry.sha256)}, and {short(wanted or '')} was signed"
        )
    raise_all(problems, "altered")


def compare_names(
    signed: Mapping[str, str],
    names: Sequence[str],
    empty: Sequence[str],
    unsigned: frozenset[str],
    label: str,
) -> None:
    """Raise VerificationError that tells every file that is missing or was not signed."""
    there = set(names)
    missing = [name for name in in_order(list(signed)) if name not in there]
    raise_all([f"{label}: {shown(name)} was signed and is missing" for name in missing], "missing")
    surplus = [name for name in names if name not in signed and name not in unsigned]
    problems = [
        f"{label}: {shown(name)} was not signed and does not belong to the package" for name in surplus
    ]
    problems += [f"{label}: the empty folder {shown(name)} does not belong to the package" for name in empty]
    raise_all(problems, "surplus")


def raise_all(problems: Sequence[str], kind: str) -> None:
    """Raise one VerificationError for several faults of a kind, or none."""
    if not problems:
        return
    more = [f"and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
    raise VerificationError("\n".join([*problems[:_SHOWN], *more]) + f"; {AGAIN}", kind)


def check_manifest(manifest: PackageManifest, files: Sequence[FileEntry], label: str) -> None:
    """Raise VerificationError if `package.json` does not list exactly the files that there are."""
    listed = {entry.path: entry for entry in manifest.files}
    there = {entry.path: entry for entry in files if entry.path not in ADDED_BY_SIGNING | {MANIFEST}}
    problems = []
    if len(listed) != len(manifest.files):
        problems.append(f"{label}: {MANIFEST} lists a file twice")
    for name in in_order([*(set(listed) | set(there))]):
        if name not in there:
            problems.append(f"{label}: {MANIFEST} lists {shown(name)}, which the package does not have")
        elif name not in listed:
            problems.append(f"{label}: {MANIFEST} does not list {shown(name)}")
        elif listed[name] != there[name]:
            problems.append(
                f"{label}: {MANIFEST} lists {shown(name)} with another digest or size than it has"
            )
    if problems:
        count = len(problems)
        text = "\n".join([*problems[:_SHOWN], *([f"and {count - _SHOWN} more"] if count > _SHOWN else [])])
        raise VerificationError(
            f"{text}; it was put together wrongly: have it packaged and signed again", "manifest"
        )


def check_provenance(data: bytes, manifest: PackageManifest, files: Sequence[FileEntry], label: str) -> None:
    """Raise VerificationError if the provenance is not about this package.

    Every subject of the in-toto statement must be a file of the package with that digest, there must be one, and a
    statement of shipctl's own must be about this name and version.
    """
    digests = {entry.path: entry.sha256 for entry in files}
    try:
        statement = json.loads(data)
        subjects = subjects_of(statement if isinstance(statement, dict) else {})
    except (ValueError, RecursionError, GateError):
        raise VerificationError(
            f"{label}: {PROVENANCE} is no in-toto statement with subjects; have it packaged and signed again",
            "provenance",
        ) from None
    about = reference_of(statement)
    if about not in {"@", manifest.reference}:
        raise VerificationError(
            f"{label}: {PROVENANCE} is about {shown(about)} and the package is {manifest.reference}; have it packaged"
            " and signed again",
            "provenance",
        )
    for name, digest in subjects.items():
        if digests.get(name) != digest:
            what = "has another digest" if name in digests else "is not in the package"
            raise VerificationError(
                f"{label}: {PROVENANCE} is about other files: its subject {shown(name)} ({short(digest)}) {what}; "
                "have it packaged and signed again",
                "provenance",
            )
