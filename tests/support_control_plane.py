"""A real Kubernetes control plane on loopback: etcd, kube-apiserver, kube-controller-manager, and a fake kubelet.

The programs are found as envtest's users are used to: in the folder that ``KUBEBUILDER_ASSETS`` names.
"""

from __future__ import annotations

import fcntl
import importlib.util
import json
import os
import secrets
import shutil
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any

from support_kube import Kube
from support_s3 import certificates, free_port

PROGRAMS = ("etcd", "kube-apiserver", "kube-controller-manager")
FOLDER = Path(__file__).parent / "control_plane"
LIMITED = tuple(f"limited-{number}" for number in range(1, 6))
"""Users that may do nothing, until a test binds a role to them."""
_PATIENCE = 60.0
"""Seconds that a start may take on a busy machine."""
_SLOWEST = 20.0
"""Seconds after which a control plane that does not answer is taken for dead."""
_ATTEMPTS = 3
"""Ports are chosen before the programs take them: somebody else may be quicker."""
_CONTROLLERS = (
    "daemonset,deployment,disruption,endpoint,endpointslice,garbagecollector,horizontalpodautoscaling,job,"
    "namespace,replicaset,resourcequota,serviceaccount,statefulset"
)
_ENVIRONMENT = {
    "GOGC": "400",  # a quarter of the garbage collections, for some hundred MiB more
    "PYTHONPATH": str(Path(__file__).parent),  # for the fake kubelet
}
# The kernel ends a program together with the process that started it, however that ends.
_TOGETHER = (
    "import ctypes, os, sys\n"
    "ctypes.CDLL(None).prctl(1, 9)\n"
    "os.getppid() == int(sys.argv[1]) or sys.exit('whoever started this has ended')\n"
    "os.execv(sys.argv[2], sys.argv[2:])\n"
)


@dataclass(frozen=True)
class ControlPlane:
    """Where the API server is, and who may ask it what."""

    kubeconfig: Path
    """Of a user who may do everything."""
    folder: Path
    url: str
    ca: Path
    token: str = field(repr=False)
    users: Mapping[str, str] = field(repr=False)
    """Tokens of :data:`LIMITED`."""


class StartError(Exception):
    """A program of the control plane has ended, or does not become ready."""


def why_no_control_plane() -> str | None:
    """Return why there can be no control plane here, or None."""
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    if not assets:
        return "KUBEBUILDER_ASSETS names no Kubernetes control plane: make kube"
    for program in PROGRAMS:
        if not os.access(Path(assets) / program, os.X_OK):
            return f"KUBEBUILDER_ASSETS={assets} has no {program}: make kube"
    for package in ("kubernetes", "yaml"):
        if importlib.util.find_spec(package) is None:
            return f"{package} is not installed: pip install 'shipctl[kubernetes]'"
    return None


@contextmanager
def shared_control_plane(folder: Path) -> Iterator[ControlPlane]:
    """Use the control plane in ``folder`` together with other processes of the same test session.

    Who comes first starts it. That one waits at the end until nobody uses it any more, and stops it.

    Raises:
        StartError: it does not start.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = folder / "plane.json"
    with ExitStack() as stack:
        with (folder / "starting").open("w") as door:
            fcntl.flock(door, fcntl.LOCK_EX)
            users = stack.enter_context((folder / "users").open("w"))
            plane = _running(state)
            if plane is None:
                plane = stack.enter_context(control_plane_in(folder / "plane"))
                state.write_text(json.dumps(asdict(plane), default=str))
                stack.callback(_wait_for_users, folder / "starting", users, state)
            fcntl.flock(users, fcntl.LOCK_SH)
        yield plane


@contextmanager
def control_plane_in(folder: Path) -> Iterator[ControlPlane]:
    """Run a control plane of one's own, with the custom resources, in ``folder``, which is removed afterwards.

    Raises:
        StartError: it does not start.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        shutil.rmtree(folder, ignore_errors=True)
        programs = _Programs(folder)
        try:
            try:
                plane = programs.start()
            except StartError as exc:
                if attempt == _ATTEMPTS or "address already in use" not in str(exc):
                    raise
                continue
            yield plane
        finally:
            programs.stop()
        shutil.rmtree(folder, ignore_errors=True)
        return


def write_kubeconfig(path: Path, url: str, ca: Path, token: str, namespace: str = "default") -> Path:
    """Write a kubeconfig (JSON is YAML too) with one context, named "test"."""
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "clusters": [{"name": "test", "cluster": {"server": url, "certificate-authority": str(ca)}}],
        "users": [{"name": "test", "user": {"token": token}}],
        "contexts": [
            {"name": "test", "context": {"cluster": "test", "user": "test", "namespace": namespace}}
        ],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(config, indent=1))
    path.chmod(0o600)
    return path


def _running(state: Path) -> ControlPlane | None:
    """Return the control plane that another process has started, if it still answers, however slowly."""
    try:
        kept: dict[str, Any] = json.loads(state.read_text())
    except (OSError, ValueError):
        return None
    paths = {name: Path(kept[name]) for name in ("kubeconfig", "folder", "ca")}
    plane = ControlPlane(**{**kept, **paths})
    until = time.monotonic() + _SLOWEST
    while not _ready(plane):
        if time.monotonic() > until:
            return None
        time.sleep(0.1)
    return plane


def _ready(plane: ControlPlane) -> bool:
    """Whether the API server answers, and has all that it makes at its start (the roles, among others)."""
    request = urllib.request.Request(
        f"{plane.url}/readyz", headers={"Authorization": f"Bearer {plane.token}"}
    )
    with suppress(OSError):
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}),
            urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=str(plane.ca))),
        )
        with opener.open(request, timeout=5) as answer:
            return bool(answer.status == 200)
    return False


def _wait_for_users(door: Path, users: IO[str], state: Path) -> None:
    """Wait until the last user has gone, and let nobody in who would find it stopped."""
    fcntl.flock(users, fcntl.LOCK_UN)
    while True:
        with door.open("w") as own:
            fcntl.flock(own, fcntl.LOCK_EX)
            with suppress(BlockingIOError):
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                state.unlink()
                return
        time.sleep(0.2)


class _Programs:
    """The programs of one control plane, as children of this process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._assets = Path(os.environ["KUBEBUILDER_ASSETS"])
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._until = time.monotonic() + _PATIENCE

    def start(self) -> ControlPlane:
        """Start all of them, and define the kinds of other projects."""
        (self.folder / "log").mkdir(parents=True)
        store, peer, port = free_port(), free_port(), free_port()
        files = certificates(self.folder / "tls")
        plane = self._introduce_users(f"https://127.0.0.1:{port}", files.authority)
        self._start_store(store, peer)
        self._start_server(store, port, files.server)
        self._start("fake-kubelet", sys.executable, str(FOLDER / "fake_kubelet.py"), str(plane.kubeconfig))
        self._wait(lambda: _ready(plane), "kube-apiserver does not become ready")
        self._start_controllers(plane)
        with Kube(plane.kubeconfig) as kube:
            self._define_kinds(kube)
            self._wait(lambda: _controllers_work(kube), "kube-controller-manager does nothing")
        return plane

    def stop(self) -> None:
        """End them. Nothing that they keep is needed any more."""
        for child in reversed(self._children.values()):
            child.kill()
            child.wait()
        self._children.clear()

    def _introduce_users(self, url: str, ca: Path) -> ControlPlane:
        tokens = {name: secrets.token_hex(16) for name in ("admin", *LIMITED)}
        lines = [
            f'{token},{name},{name},"{"system:masters" if name == "admin" else "limited"}"\n'
            for name, token in tokens.items()
        ]
        (self.folder / "tokens.csv").write_text("".join(lines))
        token = tokens.pop("admin")
        kubeconfig = write_kubeconfig(self.folder / "kubeconfig", url, ca, token)
        return ControlPlane(kubeconfig, self.folder, url, ca, token, tokens)

    def _start_store(self, port: int, peer: int) -> None:
        url, peer_url = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{peer}"
        self._start(
            "etcd",
            str(self._assets / "etcd"),
            "--name=test",
            f"--data-dir={self.folder / 'etcd'}",
            f"--listen-client-urls={url}",
            f"--advertise-client-urls={url}",
            f"--listen-peer-urls={peer_url}",
            f"--initial-advertise-peer-urls={peer_url}",
            f"--initial-cluster=test={peer_url}",
            "--unsafe-no-fsync",
            "--log-level=warn",
        )

    def _start_server(self, store: int, port: int, key_pair: Path) -> None:
        self._start(
            "kube-apiserver",
            str(self._assets / "kube-apiserver"),
            f"--etcd-servers=http://127.0.0.1:{store}",
            "--bind-address=127.0.0.1",
            "--advertise-address=127.0.0.1",
            f"--secure-port={port}",
            f"--tls-cert-file={key_pair}",
            f"--tls-private-key-file={key_pair}",
            f"--cert-dir={self.folder / 'tls'}",
            f"--token-auth-file={self.folder / 'tokens.csv'}",
            "--authorization-mode=RBAC",
            "--allow-privileged=true",
            "--service-cluster-ip-range=10.0.0.0/16",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={key_pair}",
            f"--service-account-signing-key-file={key_pair}",
            # it waits for tokens of service accounts, which nobody makes here
            "--disable-admission-plugins=ServiceAccount",
            "--endpoint-reconciler-type=none",
            # housekeeping of clusters that live for long and have many users, which costs a tenth of a core
            "--enable-priority-and-fairness=false",
            "--etcd-compaction-interval=0",
            "--etcd-count-metric-poll-period=0",
            "--profiling=false",
        )

    def _start_controllers(self, plane: ControlPlane) -> None:
        self._start(
            "kube-controller-manager",
            str(self._assets / "kube-controller-manager"),
            f"--kubeconfig={plane.kubeconfig}",
            "--leader-elect=false",
            "--port=0",
            "--secure-port=0",
            f"--controllers={_CONTROLLERS}",
            "--kube-api-qps=500",  # the 20 a second of a real one are the time of all tests that wait for pods
            "--kube-api-burst=1000",
            "--profiling=false",
        )

    def _start(self, name: str, *command: str) -> None:
        with (self.folder / "log" / name).open("wb") as log:
            self._children[name] = subprocess.Popen(
                [sys.executable, "-Ic", _TOGETHER, str(os.getpid()), *command],
                env={**os.environ, **_ENVIRONMENT},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def _define_kinds(self, kube: Kube) -> None:
        import yaml

        definitions = [
            definition
            for name in ("crds.yaml", "crds-schemaless.yaml")
            for definition in yaml.load_all((FOLDER / name).read_text(), yaml.CSafeLoader)
        ]
        for definition in definitions:
            kube.create(definition)
        for definition in definitions:
            name = definition["metadata"]["name"]
            self._wait(partial(_established, kube, name), f"{name} is not established")

    def _wait(self, condition: Callable[[], bool], otherwise: str) -> None:
        while not condition():
            ended = [name for name, child in self._children.items() if child.poll() is not None]
            if ended or time.monotonic() > self._until:
                name = ended[0] if ended else otherwise.partition(" ")[0]
                raise StartError(f"{name} has ended" if ended else otherwise, self._said(name))
            time.sleep(0.05)

    def _said(self, name: str) -> str:
        with suppress(OSError):
            return (self.folder / "log" / name).read_text(errors="replace")[-2000:]
        return ""


def _established(kube: Kube, name: str) -> bool:
    conditions = kube.get("CustomResourceDefinition", name).get("status", {}).get("conditions") or []
    return any(one["type"] == "Established" and one["status"] == "True" for one in conditions)


def _controllers_work(kube: Kube) -> bool:
    """Whether the controller manager runs: the service account of each namespace is among what it makes."""
    return bool(kube.list("ServiceAccount", "default"))
