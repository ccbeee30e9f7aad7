"""One branch of a Git repository, by the `git` program: read, and given a commit at a time.

A bare copy of the newest commit lies in the target's folder. Nothing is ever checked out: commits are made of the
objects alone (git-scm.com/book/en/v2/Git-Internals-Git-Objects), so that a kill leaves nothing half done, and what is
not pushed never was.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import NamedTuple

from shipctl.errors import ShipctlError, SpecError, StageError, UnavailableError
from shipctl_plugins._gitops.program import Program

BASE = "refs/shipctl/base"
_ATTEMPTS = 6
_BACKOFF = 0.2
"""Seconds before the second attempt at a push; twice that before each further one."""
_RACES = (
    "stale info",
    "fetch first",
    "non-fast-forward",
    "cannot lock ref",
    "failed to update ref",
    "failed to lock",
)
_NO_BRANCH = ("couldn't find remote ref", "could not find remote ref", "remote branch")


class Entry(NamedTuple):
    """One file of a commit."""

    mode: str
    blob: str


class Pushed(NamedTuple):
    """What became of a push."""

    done: bool
    message: str = ""
    """Why the server does not take it, where trying again is no use."""


class RefusedError(StageError):
    """The server does not let us push to a branch, by a rule of its own."""


@dataclass(frozen=True)
class Change:
    """What a commit is to make of the branch."""

    files: Mapping[str, bytes]
    """Path to content; what is there already stays as it is."""
    removed: Sequence[str] = ()
    message: str = ""


class Repository:
    """One branch, as the last :meth:`fetch` has seen it."""

    def __init__(self, program: Program, log: Callable[[str], None] = print) -> None:
        self.program = program
        self.options = program.options
        self.url = program.url
        self._log = log

    # -- reading ---------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Look whether the repository can be reached and has the branch; nothing is fetched or written.

        :raises UnavailableError: if it cannot be reached
        :raises SpecError: if there is no such branch
        """
        heads = self.heads(self.options.branch)
        if self.options.branch not in heads:
            message = (
                f"{self.program.place} has no branch {self.options.branch}; create it with one commit, or "
                "correct git.branch"
            )
            raise SpecError(message)

    def heads(self, *branches: str) -> dict[str, str]:
        """Return branch to commit, as the server says now.

        :raises UnavailableError: if it cannot be reached
        """
        wanted = [f"refs/heads/{branch}" for branch in branches]
        said = self.program.remote("ls-remote", "--quiet", "--", self.url, *wanted, bare=False)
        found = (line.split("\t", 1) for line in said.splitlines() if "\t" in line)
        return {name.removeprefix("refs/heads/"): commit for commit, name in found}

    def fetch(self, branch: str | None = None) -> str | None:
        """Fetch the newest commit of a branch, without its history, and return it; None if there is no such branch.

        :raises UnavailableError: if the repository cannot be reached
        """
        branch = branch or self.options.branch
        ref = BASE if branch == self.options.branch else "refs/shipctl/other"
        with self._locked():
            try:
                self.program.remote(
                    "fetch", "--quiet", "--depth=1", "--no-tags", "--no-write-fetch-head", "--no-auto-maintenance",
                    "--", self.url, f"+refs/heads/{branch}:{ref}",
                )  # fmt: skip
            except UnavailableError as exc:
                if any(words in str(exc) for words in _NO_BRANCH):
                    return None
                raise
            return self.program.local("rev-parse", "--verify", "--quiet", f"{ref}^{{commit}}").strip()

    def has(self, commit: str, *, deep: bool = False) -> bool:
        """Whether a commit is here, or can be fetched; ``deep``: with all history, where a server gives none alone."""
        if not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", commit):
            return False
        alone = ["--depth=1", "--", self.url, commit]
        whole = ["--unshallow", "--", self.url, f"+refs/heads/{self.options.branch}:{BASE}"]
        with self._locked():
            for wanted in (None, alone, whole) if deep else (None, alone):
                if wanted is not None:
                    with suppress(ShipctlError):
                        self.program.remote("fetch", "--quiet", "--no-tags", "--no-write-fetch-head", *wanted)
                if self.program.local("cat-file", "-t", commit, ok=(0, 1, 128)).strip() == "commit":
                    return True
        return False

    def files(self, commit: str, path: str) -> dict[str, Entry]:
        """Return name, relative to the folder ``path``, to what a commit has there."""
        listed = self.program.local(
            "ls-tree", "-r", "-z", "--full-tree", commit, "--", *([path] if path else [])
        )
        found = {}
        for line in filter(None, listed.split("\0")):
            about, name = line.split("\t", 1)
            mode, _, blob = about.split(" ")[:3]
            inside = name.removeprefix(f"{path}/") if path else name
            found[inside] = Entry(mode, blob)
        return found

    def read(self, blob: str) -> bytes:
        """Return the content of a file by the name of its object."""
        return self.program.content(blob)

    def tree(self, commit: str, path: str) -> str:
        """Return the name of the folder ``path`` of a commit as an object, "" where there is none."""
        return self.program.local(
            "rev-parse", "--verify", "--quiet", f"{commit}:{path}", ok=(0, 1, 128)
        ).strip()

    # -- writing ---------------------------------------------------------------------------------------------

    def change(self, make: Callable[[str], Change | None], *, branch: str | None = None) -> tuple[str, bool]:
        """Commit to a branch and return the commit that it is at, and whether that is a new one.

        ``make`` is told the newest commit of the base branch and says what is to be different; None, or what changes
        nothing, makes no commit. Where somebody else pushes at the same time it is asked again. ``branch`` is
        another branch, which is made anew at that commit.

        :raises UnavailableError: if the repository cannot be reached
        :raises RefusedError: if the server does not let us push
        :raises StageError: if others are faster each time
        """
        goal = branch or self.options.branch
        for attempt in range(_ATTEMPTS):
            base = self._base()
            wanted = make(base)
            commit = self._commit(base, wanted) if wanted is not None else None
            if commit is None:
                return base, False
            lease = base if branch is None else self.heads(goal).get(goal, "")
            pushed = self._push(commit, goal, lease)
            if pushed.done:
                if branch is None:
                    self.program.local("update-ref", BASE, commit)
                return commit, True
            if pushed.message:
                raise RefusedError(f"{self.program.shown} does not take a commit to {goal}: {pushed.message}")
            self._log(f"somebody else has pushed to {goal} meanwhile; doing it again on top of that")
            time.sleep(_BACKOFF * 2**attempt * (0.5 + random.random()))  # noqa: S311  (no secret)
        message = f"others push to {goal} of {self.program.shown} all the time; run the same command again"
        raise StageError(message)

    def remove(self, branch: str) -> bool:
        """Remove a branch and return whether it was there.

        :raises UnavailableError: if the repository cannot be reached
        :raises RefusedError: if the server does not let us
        """
        there = self.heads(branch).get(branch)
        if there is None:
            return False
        pushed = self._push("", branch, there)
        if pushed.message:
            raise RefusedError(f"{self.program.shown} does not let us remove {branch}: {pushed.message}")
        return pushed.done

    def _base(self) -> str:
        base = self.fetch()
        if base is None:
            message = (
                f"{self.program.shown}: there is no such branch any more; create it, or correct git.branch"
            )
            raise StageError(message)
        return base

    def _commit(self, base: str, change: Change) -> str | None:
        """Return a commit on top of ``base``, None if it would be the same."""
        with self._locked():
            index = self.program.folder / "shipctl.index"
            index.unlink(missing_ok=True)
            environ = {"GIT_INDEX_FILE": str(index)}
            self.program.local("read-tree", base, environ=environ)
            lines = [f"0 {'0' * len(base)}\t{path}\0" for path in change.removed]
            for path, content in change.files.items():
                blob = self.program.local("hash-object", "-w", "--stdin", stdin=content).strip()
                lines.append(f"100644 {blob}\t{path}\0")
            self.program.local(
                "update-index", "-z", "--index-info", environ=environ, stdin="".join(lines).encode()
            )
            tree = self.program.local("write-tree", environ=environ).strip()
            index.unlink(missing_ok=True)
            if tree == self.program.local("rev-parse", f"{base}^{{tree}}").strip():
                return None
            message = f"{change.message.rstrip()}\n".encode()
            return self.program.local(
                "commit-tree", tree, "-p", base, "-F", "-", stdin=message, environ=self.program.author()
            ).strip()

    def _push(self, commit: str, branch: str, lease: str) -> Pushed:
        ref = f"refs/heads/{branch}"
        try:
            self.program.remote(
                "push", "--porcelain", "--no-verify", f"--force-with-lease={ref}:{lease}", "--", self.url,
                f"{commit}:{ref}",
            )  # fmt: skip
        except UnavailableError as exc:
            text = str(exc)
            refused = re.search(r"\[remote rejected\] \(([^)]*)\)", text)
            if "[rejected]" in text or any(words in text for words in _RACES):
                return Pushed(done=False)
            if refused is not None:
                hint = "; ".join(re.findall(r"remote: (?:error: )?([^|]+)", text))
                return Pushed(done=False, message=f"{refused[1]}{f' ({hint.strip()})' if hint else ''}")
            with suppress(UnavailableError):  # the answer may have been lost on its way
                if commit and self.heads(branch).get(branch) == commit:
                    return Pushed(done=True)
            raise
        return Pushed(done=True)

    # -- the copy --------------------------------------------------------------------------------------------

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep other processes off the copy; locks of git's that a killed one has left are stale then."""
        import fcntl

        self.program.folder.mkdir(parents=True, exist_ok=True)
        with (self.program.folder / "shipctl.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for stale in self.program.folder.rglob("*.lock"):
                if stale.name != "shipctl.lock":
                    stale.unlink(missing_ok=True)
            self.program.init()
            yield
