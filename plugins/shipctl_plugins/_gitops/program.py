"""The `git` program: how it is run, with which credentials, and what of its words is passed on.

No credentials are on a command line, in a file, or in a message: a token reaches git in the environment, by a
credential helper that is for the repository's server alone (git-scm.com/docs/gitcredentials).
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote, urlsplit

from shipctl.errors import StageError, UnavailableError
from shipctl_plugins._gitops.options import GitOptions

MASK = "***"
_LOCAL_TIMEOUT = 60.0
"""Seconds that git may take for what needs no network."""
_KEPT = ("GIT_CONFIG_", "GIT_SSH", "GIT_SSL_", "GIT_PROXY", "GIT_ASKPASS", "GIT_EXEC_PATH")
"""Variables of git that say how a server is reached; all others would change what is done, or log it."""
_HELPER = (
    '!f() { test "$1" = get || exit 0; printf "username=%s\\npassword=%s\\n" '
    '"$SHIPCTL_GIT_USERNAME" "$SHIPCTL_GIT_PASSWORD"; }; f'
)
_CONFIG = {
    "core.hooksPath": os.devnull,
    "core.fsmonitor": "false",
    "core.logAllRefUpdates": "false",
    "gc.auto": "0",
    "maintenance.auto": "false",
    "fetch.recurseSubmodules": "false",
    "push.recurseSubmodules": "no",
    "push.followTags": "false",
    "push.gpgSign": "false",
    "advice.detachedHead": "false",
}
_USERINFO = re.compile(r"(?<=://)[^/@\s]+@")


class Program:
    """Git, for one repository and one bare copy of it."""

    def __init__(self, options: GitOptions, folder: Path, base: Path) -> None:
        """``folder`` is where the copy lies, ``base`` what a relative path of a repository is relative to."""
        self.options = options
        self.folder = folder
        self.url = address(options.repository, base)

    @property
    def shown(self) -> str:
        """The repository and its branch, for a person."""
        return f"{self.place} ({self.options.branch})"

    @property
    def place(self) -> str:
        """The repository, for a person."""
        return _USERINFO.sub("", self.url)

    def init(self) -> None:
        """Make the copy if it is not there."""
        if not (self.folder / "HEAD").exists():
            self._run(["init", "--quiet", "--bare", "--template=", str(self.folder)], bare=False)

    def local(
        self,
        *words: str,
        stdin: bytes | None = None,
        environ: Mapping[str, str] | None = None,
        ok: tuple[int, ...] = (0,),
    ) -> str:
        """Run what needs no server and return what it prints, bytes that are no UTF-8 as surrogates.

        :raises StageError: if it ends with none of the exit codes ``ok``
        """
        return self._run(list(words), stdin=stdin, environ=environ, ok=ok).decode(errors="surrogateescape")

    def content(self, blob: str) -> bytes:
        """Return the content of a file by the name of its object."""
        return self._run(["cat-file", "blob", blob])

    def remote(self, *words: str, bare: bool = True) -> str:
        """Run what talks to the server.

        :raises UnavailableError: if it fails; what git says is in it
        """
        timeout = float(self.options.timeout)
        return self._run(list(words), timeout=timeout, remote=True, bare=bare).decode(errors="replace")

    def _run(
        self,
        words: list[str],
        *,
        stdin: bytes | None = None,
        environ: Mapping[str, str] | None = None,
        timeout: float = _LOCAL_TIMEOUT,
        remote: bool = False,
        bare: bool = True,
        ok: tuple[int, ...] = (0,),
    ) -> bytes:
        token = self._token() if remote else None
        command = [
            git_program(),
            "--literal-pathspecs",
            *(word for key, value in _CONFIG.items() for word in ("-c", f"{key}={value}")),
        ]
        command += [f"--git-dir={self.folder}"] if bare else []
        done = _finished(
            [*command, *words], stdin, {**_environ(), **(environ or {}), **self._credentials(token)}, timeout
        )
        if done is None:
            message = f"{self.shown} did not answer within {timeout:g} s; see whether it works, or raise git.timeout"
            raise UnavailableError(message)
        if done.returncode in ok:
            return done.stdout
        said = _told(done.stderr, done.stdout if words[0] == "push" else b"", token)
        if remote:
            raise UnavailableError(f"{self.shown} cannot be reached: {said}")
        message = f"git {words[0]} failed in {self.folder}: {said}; remove that folder and run again"
        raise StageError(message)

    def _token(self) -> str | None:
        name = self.options.tokenEnv
        if name is None:
            return None
        token = os.environ.get(name, "").strip()
        if not token:
            raise UnavailableError(
                f"the environment variable {name} is not set; export the repository's token in it"
            )
        return token

    def _credentials(self, token: str | None) -> dict[str, str]:
        """Return the variables by which git gets the token: for this one server, and before any other helper."""
        if token is None:
            return {}
        parts = urlsplit(self.url)
        key = f"credential.{parts.scheme}://{parts.netloc}.helper"
        count = int(os.environ.get("GIT_CONFIG_COUNT", "0") or 0)
        return {
            "SHIPCTL_GIT_USERNAME": self.options.username,
            "SHIPCTL_GIT_PASSWORD": token,
            "GIT_CONFIG_COUNT": str(count + 2),
            f"GIT_CONFIG_KEY_{count}": key,
            f"GIT_CONFIG_VALUE_{count}": "",
            f"GIT_CONFIG_KEY_{count + 1}": key,
            f"GIT_CONFIG_VALUE_{count + 1}": _HELPER,
        }

    def author(self) -> dict[str, str]:
        """Return the variables that say who commits."""
        name, _, mail = self.options.author.rpartition(" <")
        return {
            f"GIT_{who}_{what}": value
            for who in ("AUTHOR", "COMMITTER")
            for what, value in (("NAME", name), ("EMAIL", mail.rstrip(">")))
        }


def address(repository: str, base: Path) -> str:
    """Return what git is told: a URL as it is, and a folder by its absolute path."""
    if "://" in repository or re.match(r"[^/]+:", repository):
        return repository
    return str((base / Path(repository).expanduser()).absolute())


def git_program() -> str:
    """Return the path of git.

    :raises UnavailableError: if it is not installed
    """
    found = shutil.which("git")
    if found is None:
        raise UnavailableError("git is not installed; install it (Debian: apt-get install git)")
    return found


def _environ() -> dict[str, str]:
    """Return the environment for git: it asks nobody, speaks English, and does nothing but what it is told."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("GIT_", "SHIPCTL_GIT_")) or name.startswith(_KEPT)
    }
    return {
        "GIT_ASKPASS": "",
        **kept,
        "SSH_ASKPASS": "",
        "GIT_TERMINAL_PROMPT": "0",
        "LC_ALL": "C",
        "LANGUAGE": "",
    }


def _finished(
    command: Sequence[str], stdin: bytes | None, environ: Mapping[str, str], timeout: float
) -> subprocess.CompletedProcess[bytes] | None:
    """Run a program to its end; None if that does not come in time. Its children end with it."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE if stdin is not None else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=dict(environ),
        start_new_session=True,  # so that nothing asks at a terminal, and all of it can be ended
    )
    try:
        stdout, stderr = process.communicate(stdin, timeout)
    except BaseException as exc:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        if isinstance(exc, subprocess.TimeoutExpired):
            return None
        raise
    return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)


def _told(stderr: bytes, stdout: bytes, token: str | None) -> str:
    """Return what git says, in one line without credentials."""
    lines = [line.strip() for line in (stdout + b"\n" + stderr).decode(errors="replace").splitlines()]
    said = [
        line.removeprefix("fatal: ")
        for line in lines
        if line and not line.startswith(("hint:", "To ", "Done"))
    ]
    text = _USERINFO.sub(f"{MASK}@", " | ".join(dict.fromkeys(said)))
    if token is not None:
        for form in sorted({token, quote(token), quote(token, safe="")}, key=len, reverse=True):
            text = text.replace(form, MASK)
    return text or "it says nothing"
