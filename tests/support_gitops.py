"""A Git repository that releases are committed to, a git that stumbles as it is told, and who applies what is there."""

from __future__ import annotations

import atexit
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

from shipctl.release.target import Candidate
from shipctl.spec.models import StoreSpec
from shipctl.stages.artifacts import TritonRepository
from shipctl.stages.context import ReleaseContext
from shipctl.stages.verdicts import Outcome, Verdict
from shipctl.testing.samples import SIGNATURE, sealed
from shipctl_plugins._gitops.options import GitopsOptions
from shipctl_plugins._triton.golden import Tolerance
from shipctl_plugins.targets.gitops import Gitops
from support_kube import Kube

GIT = shutil.which("git") or "git"
FOLDER = "clusters/prod/digits"
TEMPLATES = Path(__file__).parents[1] / "templates" / "shipctl_templates" / "kubernetes"


def _git(repository: Path, *words: str, stdin: str | None = None) -> str:
    who = {"GIT_AUTHOR_NAME": "Ann", "GIT_AUTHOR_EMAIL": "ann@example.com"}
    who |= {"GIT_COMMITTER_NAME": "Ann", "GIT_COMMITTER_EMAIL": "ann@example.com"}
    done = subprocess.run(
        [GIT, f"--git-dir={repository}", *words], input=stdin, capture_output=True, text=True, check=False,
        timeout=30, env={"PATH": os.environ["PATH"], "HOME": str(repository.parent), **who},
    )  # fmt: skip
    assert done.returncode == 0, f"{words}: {done.stderr}"
    return done.stdout


@cache
def _begun() -> Path:
    """A bare repository with one commit, made once for all tests of this process."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = folder / "remote.git"
    _git(path, "init", "--quiet", "--bare", "--initial-branch=main", str(path))
    _commit(path, "main", {"README.md": "clusters\n"}, "begin", new=True)
    return path


def _commit(
    repository: Path, branch: str, files: Mapping[str, str | None], message: str, *, new: bool
) -> None:
    lines = [f"commit refs/heads/{branch}", "committer Ann <ann@example.com> now", _data(message)]
    if not new:
        lines.append(f"from refs/heads/{branch}^0")
    for path, text in files.items():
        lines.append(f"D {path}" if text is None else f"M 100644 inline {path}\n{_data(text)}")
    _git(repository, "fast-import", "--quiet", "--date-format=now", stdin="\n".join([*lines, ""]))


def _data(text: str) -> str:
    return f"data {len(text.encode())}\n{text}"


class Remote:
    """A bare repository with one commit, and what tests want to know of it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "remote.git"
        shutil.copytree(_begun(), self.path)

    @property
    def url(self) -> str:
        return self.path.as_uri()

    def git(self, *words: str, stdin: str | None = None) -> str:
        """Run git, the real one, on the repository itself."""
        return _git(self.path, *words, stdin=stdin)

    def commit(self, files: Mapping[str, str | None], message: str, branch: str = "main") -> str:
        """Commit as somebody else: path to text, None for what is removed."""
        _commit(self.path, branch, files, message, new=branch not in self.branches())
        return self.head(branch)

    def revert(self, commit: str) -> None:
        """Undo a commit at the head of the branch, as a person does."""
        self.git("update-ref", "refs/heads/main", self.git(
            "commit-tree", f"{commit}~1^{{tree}}", "-p", commit, "-m", "Revert"
        ).strip())  # fmt: skip

    def head(self, branch: str = "main") -> str:
        ref = self.path / "refs" / "heads" / branch
        if ref.exists():  # it is not packed, and wins over one that is
            return ref.read_text().strip()
        return self.git("rev-parse", f"refs/heads/{branch}").strip()

    def branches(self) -> list[str]:
        return self.git("for-each-ref", "--format=%(refname:lstrip=2)", "refs/heads").split()

    def count(self, branch: str = "main") -> int:
        return int(self.git("rev-list", "--count", branch))

    def message(self, branch: str = "main") -> str:
        return self.git("log", "-1", "--format=%an <%ae>%n%B", branch)

    def files(self, commit: str = "main", folder: str = FOLDER) -> dict[str, str]:
        """Return what lies in the folder: name to text."""
        names = self.git("ls-tree", "-r", "--name-only", commit, "--", f"{folder}/").splitlines()
        wanted = "".join(f"{commit}:{name}\n" for name in names)
        told = self.git("cat-file", "--batch", stdin=wanted).encode()
        found = {}
        for name in names:
            head, _, told = told.partition(b"\n")
            size = int(head.split()[-1])
            found[name.removeprefix(f"{folder}/")] = told[:size].decode()
            told = told[size + 1 :]
        return found

    def objects(self, commit: str = "main", folder: str = FOLDER) -> list[dict[str, Any]]:
        """Return the objects that the kustomization lists, as kustomize builds them."""
        files = self.files(commit, folder)
        if "kustomization.yaml" not in files:
            return []
        listed = yaml.safe_load(files["kustomization.yaml"])["resources"]
        return [item for name in listed for item in yaml.safe_load_all(files[name])]

    def hook(self, name: str, script: str) -> None:
        """Have the server run something."""
        path = self.path / "hooks" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)


class StumblingGit:
    """A program `git` before the real one: it writes down how it is called, and does what a test wants at a push."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.calls = folder / "calls"
        self.calls.touch()
        program = folder / "git"
        program.write_text(
            "#!/bin/sh\n"
            f'for word; do printf "%s " "$word"; done >> {self.calls}; echo >> {self.calls}\n'
            f'case " $* " in *" push "*) if [ -e {folder}/at-push ]; then . {folder}/at-push; fi;; esac\n'
            f'exec {GIT} "$@"\n'
        )
        program.chmod(0o755)

    def at_push(self, script: str, *, once: bool = True) -> None:
        """Run shell at the next push, before it or (with exit) in its place."""
        end = f"rm {self.folder}/at-push\n" if once else ""
        (self.folder / "at-push").write_text(f"{end}{script}\n")

    @property
    def said(self) -> str:
        return self.calls.read_text()


def candidate(folder: Path, version: str, model: str = "digits") -> Candidate:
    """Return something to release, whose model is the text of its version."""
    root = folder / "made" / version
    (root / model / "1").mkdir(parents=True, exist_ok=True)
    (root / model / "1" / "model.onnx").write_text(version)
    (root / model / "config.pbtxt").write_text(f'name: "{model}"\n')
    fields = {"model": model, "signature": SIGNATURE, "max_batch_size": 8, "source": "0" * 64}
    repository = sealed(TritonRepository.at(root, **fields))
    revision = hashlib.sha256(version.encode()).hexdigest()
    return Candidate(revision=revision, version=version, repository=repository, golden=None)


def passing(candidate: Candidate, tolerance: Tolerance, timeout: float) -> tuple[str, tuple[Verdict, ...]]:
    """Stand for a server on this machine that answers well."""
    return f"{candidate.version} answers", (Verdict(gate="preflight", outcome=Outcome.PASS, message="fine"),)


Open = Callable[..., Gitops]


def opener(folder: Path, remote: Remote) -> Open:
    """Return a function: the target as a new process would open it, on one machine or another."""

    def open_it(
        machine: str = "here",
        run: str = "run-1",
        intent: str = "apply",
        now: Callable[[], float] = time.time,
        log: Callable[[str], None] = lambda _line: None,
        git: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Gitops:
        given = {
            "engine": {"wait": False}, "modelRepository": "s3://models/triton", "disruptionBudget": None,
            **options, "git": {"repository": remote.url, "path": FOLDER, **(git or {})},
        }  # fmt: skip
        ctx = ReleaseContext(
            project=folder / machine, target_dir=folder / machine / ".shipctl" / "targets" / "gitops",
            pipeline="digits", version="1.0.0", stage="release", revision="", run=run, log=log,
            intent="rollback" if intent == "rollback" else "apply", base=folder,
            store=StoreSpec(uri=(folder / "store").as_uri()), now=now,
        )  # fmt: skip
        target = Gitops(GitopsOptions.model_validate(given), ctx)
        target.preflighter = passing
        return target

    return open_it


def quick_templates(folder: Path) -> str:
    """Return a folder with a template of Deployments whose pods count as available at once."""
    made = folder / "templates"
    made.mkdir()
    text = (TEMPLATES / "deployment.yaml.j2").read_text()
    assert "minReadySeconds: 5" in text
    (made / "deployment.yaml.j2").write_text(text.replace("minReadySeconds: 5", "minReadySeconds: 0"))
    return str(made)


class Player:
    """Plays Argo CD or Flux: applies what is committed to a real API server, and removes what is not any more."""

    def __init__(self, kube: Kube, remote: Remote, namespace: str, folder: str = FOLDER) -> None:
        self.kube = kube
        self.remote = remote
        self.namespace = namespace
        self.folder = folder
        self.applied: set[tuple[str, str]] = set()
        self.commit = ""
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def sync(self) -> str:
        """Apply the newest commit and return it."""
        commit = self.remote.head()
        objects = self.remote.objects(commit, self.folder)
        for item in objects:
            self.kube.apply(item, self.namespace, manager="player", force=True)
        now = {(f"{item['apiVersion']}/{item['kind']}", item["metadata"]["name"]) for item in objects}
        for kind, name in self.applied - now:
            self.kube.delete(kind, name, self.namespace)
        self.applied, self.commit = now, commit
        return commit

    @contextmanager
    def playing(self) -> Iterator[Player]:
        """Apply each new commit as it comes, until the block ends."""

        def run() -> None:
            while not self._stop.wait(0.1):
                if self.remote.head() != self.commit:
                    self.sync()

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            self._thread.join()


@contextmanager
def over_http(remote: Remote, user: str, password: str) -> Iterator[str]:
    """Serve a repository by `git http-backend` on loopback to whoever has the password, and yield its URL."""
    import base64

    remote.git("config", "http.receivepack", "true")
    wanted = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(b"")

        def do_POST(self) -> None:
            self._answer(self._body())

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") == "chunked":
                body = b""
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                return body
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))

        def _answer(self, body: bytes) -> None:
            if self.headers.get("Authorization") != wanted:
                self.send_response(401)
                self.send_header("WWW-Authenticate", 'Basic realm="git"')
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            path, _, query = self.path.partition("?")
            environ = {
                "PATH": os.environ["PATH"], "GIT_PROJECT_ROOT": str(remote.path.parent), "GIT_HTTP_EXPORT_ALL": "1",
                "PATH_INFO": path, "QUERY_STRING": query, "REQUEST_METHOD": self.command, "REMOTE_USER": user,
                "REMOTE_ADDR": "127.0.0.1", "CONTENT_TYPE": self.headers.get("Content-Type", ""),
                "CONTENT_LENGTH": str(len(body)), "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
                "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
            }  # fmt: skip
            done = subprocess.run(
                [GIT, "http-backend"], input=body, capture_output=True, env=environ, check=True
            )
            head, _, content = done.stdout.partition(b"\r\n\r\n")
            fields = dict(line.split(": ", 1) for line in head.decode().splitlines())
            self.send_response(int(fields.pop("Status", "200").split()[0]))
            for name, value in fields.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/{remote.path.name}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


SUBMIT = """
import sys
from pathlib import Path
from shipctl.release.strategy import Strategy
from support_gitops import Remote, candidate, opener

folder = Path(sys.argv[1])
remote = Remote.__new__(Remote)
remote.path = folder / "remote.git"
target = opener(folder, remote)(run="killed")
print(target.submit(candidate(folder, sys.argv[2]), Strategy(name="rolling")).message)
"""


def submit_elsewhere(folder: Path, version: str) -> subprocess.CompletedProcess[str]:
    """Release in a process of its own."""
    places = os.pathsep.join(path for path in sys.path if path)
    return subprocess.run(
        [sys.executable, "-c", SUBMIT, str(folder), version],
        capture_output=True, text=True, check=False, timeout=60, env={**os.environ, "PYTHONPATH": places},
    )  # fmt: skip
