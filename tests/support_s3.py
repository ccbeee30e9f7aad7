"""S3 servers for tests and benchmarks: Ceph's RADOS gateway, which is a real one, and moto, which is quick.

The gateway is one monitor, one object storage daemon and one `radosgw` of Debian's packages, on loopback, in a folder
of its own. They end with the process that started them, even when that is killed.
"""

from __future__ import annotations

import fcntl
import ipaddress
import json
import os
import secrets
import shutil
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple
from unittest.mock import patch

from shipctl.spec.models import StoreSpec

if TYPE_CHECKING:
    import pytest
from shipctl_plugins._s3.faults import Retries
from shipctl_plugins.stores.s3_store import S3Store

_PROGRAMS = ("ceph", "ceph-authtool", "ceph-mon", "ceph-osd", "monmaptool", "radosgw", "radosgw-admin")
VIRTUAL_HOST = "s3.test"
"""The name below which the shared gateway answers for its buckets."""
_PATIENCE = 90.0
_SMALLEST_PART = 1024
"""Bytes. S3 takes no parts below 5 MiB; tests would then move a lot."""


class NoServerError(Exception):
    """The gateway cannot be started here; the message says why."""


@dataclass(frozen=True)
class S3Server:
    """A server that answers, and one user of it."""

    endpoint: str
    access_key: str
    secret_key: str
    region: str = "us-east-1"
    secure_endpoint: str | None = None
    """The same over https, where there is a certificate."""

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which programs find the user, and no other."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": self.region,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }

    def bucket(self) -> str:
        """Make a bucket and return its name."""
        import minio

        name = f"test-{secrets.token_hex(6)}"
        client = minio.Minio(
            self.endpoint.removeprefix("http://"),
            self.access_key,
            self.secret_key,
            secure=False,
            region=self.region,
        )
        client.make_bucket(name)
        return name

    def spec(self, *, endpoint: str | None = None, prefix: str = "", **fields: str) -> StoreSpec:
        """Return the store spec of a new bucket."""
        uri = f"s3://{self.bucket()}" + (f"/{prefix}" if prefix else "")
        return StoreSpec.model_validate(
            {"uri": uri, "endpoint": endpoint or self.endpoint, "region": self.region, **fields}
        )


def use(monkeypatch: pytest.MonkeyPatch, server: S3Server) -> None:
    """Let everything in this process be this user of the server, and nobody else."""
    for name in list(os.environ):
        if name.startswith(("AWS_", "MINIO_")):
            monkeypatch.delenv(name)
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)


class SmallParts(S3Store):
    """Moves small files as it would large ones, and is not patient."""

    part_size = 256 * 1024
    in_one = 2 * part_size
    retries = Retries(attempts=4, first=0.01)


# -- moto --------------------------------------------------------------------------------------------------


@contextmanager
def moto_server() -> Iterator[S3Server]:
    """Run moto in a thread of this process. It accepts any secret, checks no digest, and takes small parts."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    with patch("moto.s3.models.S3_UPLOAD_PART_MIN_SIZE", _SMALLEST_PART):
        server.start()
        try:
            host, port = server.get_host_and_port()
            yield S3Server(f"http://{host}:{port}", "test", "test-secret")
        finally:
            server.stop()


# -- certificates ------------------------------------------------------------------------------------------


class Certificates(NamedTuple):
    """An authority, and a server on 127.0.0.1 that it vouches for."""

    authority: Path
    server: Path
    """PEM file with key and certificate."""

    def context(self) -> ssl.SSLContext:
        """Return what a server needs."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.server)
        return context


def certificates(folder: Path) -> Certificates:
    """Write a new authority's certificate and a server's into a folder."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    def name(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])

    now = datetime.now(UTC)
    authority_key, server_key = (
        ec.generate_private_key(ec.SECP256R1()),
        ec.generate_private_key(ec.SECP256R1()),
    )

    def builder(subject: str, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(name(subject))
            .issuer_name(name("test authority"))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
        )

    authority = (
        builder("test authority", authority_key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(authority_key.public_key()), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    loopback = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    server = (
        builder("test server", server_key)
        .add_extension(loopback, critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False
        )
        .sign(authority_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    folder.mkdir(parents=True, exist_ok=True)
    found = Certificates(folder / "authority.pem", folder / "server.pem")
    found.authority.write_bytes(authority.public_bytes(pem))
    private = server_key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    found.server.write_bytes(private + server.public_bytes(pem))
    return found


# -- the RADOS gateway -------------------------------------------------------------------------------------


def why_no_gateway() -> str | None:
    """Return what is missing to start a gateway here, or None."""
    missing = [name for name in (*_PROGRAMS, "setpriv") if shutil.which(name) is None]
    if missing:
        return f"{missing[0]} is not on PATH: apt-get install ceph-mon ceph-osd radosgw ceph-common"
    return None


@contextmanager
def gateway(
    folder: Path, *, gigabytes: int = 4, settings: Mapping[str, str] | None = None, tls: Path | None = None
) -> Iterator[S3Server]:
    """Run a gateway whose state is in ``folder``, which may take up to ``gigabytes`` on disk.

    ``settings`` go to the gateway's section of ceph.conf; ``tls`` is a PEM file with a key and a certificate for
    127.0.0.1. Removes the folder's contents when it is done.

    :raises NoServerError: if packages are missing, or it does not answer in time
    """
    reason = why_no_gateway()
    if reason:
        raise NoServerError(reason)
    cluster = _Cluster(folder, gigabytes, settings or {}, tls)
    try:
        yield cluster.start()
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def shared_gateway(folder: Path, *, tls: Path | None = None) -> Iterator[S3Server]:
    """Use the gateway in ``folder`` together with other processes of the same test session.

    Who comes first starts it. That one waits at the end until nobody uses it any more, and stops it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = folder / "server.json"
    with ExitStack() as stack:
        with (folder / "starting").open("w") as door:
            fcntl.flock(door, fcntl.LOCK_EX)
            users = stack.enter_context((folder / "users").open("w"))
            server = _running(state)
            if server is None:
                settings = {"rgw_multipart_min_part_size": str(_SMALLEST_PART), "rgw_dns_name": VIRTUAL_HOST}
                server = stack.enter_context(gateway(folder / "cluster", settings=settings, tls=tls))
                state.write_text(json.dumps(asdict(server)))
                stack.callback(_close, door.name, users, state)
            fcntl.flock(users, fcntl.LOCK_SH)
        yield server


def _running(state: Path) -> S3Server | None:
    """Return the server that another process has started, if it still answers."""
    try:
        server = S3Server(**json.loads(state.read_text()))
    except (OSError, ValueError):
        return None
    return server if _answers(server.endpoint) else None


def _close(door: str, users: IO[str], state: Path) -> None:
    """Wait until the last user has gone, and let nobody in who would find it stopped."""
    fcntl.flock(users, fcntl.LOCK_UN)
    while True:
        with Path(door).open("w") as own:
            fcntl.flock(own, fcntl.LOCK_EX)
            try:
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pass
            else:
                state.unlink()
                return
        time.sleep(0.2)


class _Cluster:
    """The daemons of one small cluster, as children of this process."""

    def __init__(self, folder: Path, gigabytes: int, settings: Mapping[str, str], tls: Path | None) -> None:
        self.folder = folder
        self._gigabytes = gigabytes
        self._settings = dict(settings)
        self._tls = tls
        self._port, self._secure_port, self._monitor = free_port(), free_port(), free_port()
        self._daemons: list[subprocess.Popen[bytes]] = []

    def start(self) -> S3Server:
        shutil.rmtree(self.folder, ignore_errors=True)
        for name in ("mon", "osd", "rgw"):
            (self.folder / name).mkdir(parents=True)
        identity = str(uuid.uuid4())
        (self.folder / "ceph.conf").write_text(self._configuration(identity))
        self._start_monitor(identity)
        self._start_storage()
        self._daemon("radosgw", "-n", "client.rgw.a")
        endpoint = f"http://127.0.0.1:{self._port}"
        until = time.monotonic() + _PATIENCE
        while not _answers(endpoint):
            self._check(until)
            time.sleep(0.1)
        access, secret = "AKIASHIPCTL", secrets.token_hex(20)
        create = ["user", "create", "--uid=shipctl", "--display-name=shipctl"]
        self._run("radosgw-admin", *create, f"--access-key={access}", f"--secret-key={secret}")
        secure = f"https://127.0.0.1:{self._secure_port}" if self._tls else None
        return S3Server(endpoint, access, secret, secure_endpoint=secure)

    def stop(self) -> None:
        """End the daemons, newest first; none is asked twice."""
        for daemon in reversed(self._daemons):
            daemon.terminate()
            try:
                daemon.wait(5)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        self._daemons.clear()

    def _start_monitor(self, identity: str) -> None:
        everything = ["--cap", "mon", "allow *", "--cap", "osd", "allow *"]
        keyring = str(self.folder / "keyring")
        self._run("ceph-authtool", "-C", keyring, "--gen-key", "-n", "mon.", "--cap", "mon", "allow *")
        self._run("ceph-authtool", keyring, "--gen-key", "-n", "client.admin", *everything)
        self._run("ceph-authtool", keyring, "--gen-key", "-n", "client.rgw.a", *everything)
        self._run(
            "ceph-authtool",
            keyring,
            "--gen-key",
            "-n",
            "osd.0",
            "--cap",
            "mon",
            "allow profile osd",
            *everything[3:],
        )
        monmap = str(self.folder / "monmap")
        address = ["--addv", "a", f"[v2:127.0.0.1:{self._monitor}]"]
        self._run("monmaptool", "--create", *address, "--fsid", identity, "--clobber", monmap)
        self._run("ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap, "--keyring", keyring)
        self._daemon("ceph-mon", "-i", "a")

    def _start_storage(self) -> None:
        """One daemon with the number 0. Its key comes from the keyring that the monitor was made with."""
        identity = str(uuid.uuid4())
        self._run("ceph", "osd", "new", identity, "0")
        self._run("ceph", "osd", "crush", "add", "osd.0", "1.0", "root=default", "host=localhost")
        self._run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", identity)
        self._daemon("ceph-osd", "-i", "0")

    def _run(self, *command: str) -> str:
        environment = {**os.environ, "CEPH_CONF": str(self.folder / "ceph.conf")}
        try:
            done = subprocess.run(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_PATIENCE,
                check=True,
            )
        except subprocess.CalledProcessError as exc:
            message = f"`{' '.join(command[:3])} …` failed: {exc.stderr.strip()[-400:]}"
            raise NoServerError(message) from exc
        return done.stdout

    def _daemon(self, *command: str) -> None:
        """Start a daemon in the foreground, which is killed with this process."""
        with (self.folder / f"{command[0]}.out").open("wb") as output:
            self._daemons.append(
                subprocess.Popen(
                    ["setpriv", "--pdeathsig", "KILL", *command, "-f"],
                    env={**os.environ, "CEPH_CONF": str(self.folder / "ceph.conf")},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                )
            )

    def _check(self, until: float) -> None:
        for daemon in self._daemons:
            if daemon.poll() is not None:
                said = "".join(path.read_text(errors="replace")[-300:] for path in self.folder.glob("*.out"))
                message = f"a daemon ended with code {daemon.returncode}: {said}"
                raise NoServerError(message)
        if time.monotonic() > until:
            message = f"the gateway did not answer within {_PATIENCE:.0f} s"
            raise NoServerError(message)

    def _configuration(self, identity: str) -> str:
        folder = self.folder
        frontend = f"beast endpoint=127.0.0.1:{self._port}"
        if self._tls:
            pem = f"ssl_certificate={self._tls} ssl_private_key={self._tls}"
            frontend += f" ssl_endpoint=127.0.0.1:{self._secure_port} {pem}"
        common = {
            "fsid": identity,
            "mon_initial_members": "a",
            "mon_host": f"[v2:127.0.0.1:{self._monitor}/0]",
            "public_addr": "127.0.0.1",
            "cluster_addr": "127.0.0.1",
            "ms_bind_ipv6": "false",
            "ms_bind_msgr1": "false",
            "auth_cluster_required": "cephx",
            "auth_service_required": "cephx",
            "auth_client_required": "cephx",
            # one copy of everything, on one disk, without the manager that would look after it
            "osd_pool_default_size": "1",
            "osd_pool_default_min_size": "1",
            "osd_pool_default_pg_num": "4",
            "osd_pool_default_pgp_num": "4",
            "osd_pool_default_pg_autoscale_mode": "off",
            "mon_allow_pool_size_one": "true",
            "mon_allow_pool_delete": "true",
            "mon_data_avail_warn": "2",
            "mon_data_avail_crit": "1",
            "osd_crush_chooseleaf_type": "0",
            "osd_objectstore": "bluestore",
            "bluestore_block_size": str(self._gigabytes << 30),
            "osd_memory_target": "939524096",
            "osd_class_load_list": "*",
            "osd_class_default_list": "*",
            "log_file": f"{folder}/$name.log",
            "admin_socket": f"{folder}/$name.asok",
            "pid_file": f"{folder}/$name.pid",
            "run_dir": str(folder),
            "keyring": f"{folder}/keyring",
            "mon_data": f"{folder}/mon",
            "osd_data": f"{folder}/osd",
            "rgw_data": f"{folder}/rgw",
        }
        own = {
            "rgw_frontends": frontend,
            "rgw_thread_pool_size": "32",
            "rgw_enable_usage_log": "false",
            # what was deleted or replaced gives its space back at once and not after hours
            "rgw_gc_obj_min_wait": "1",
            "rgw_gc_processor_period": "5",
            "rgw_gc_processor_max_time": "5",
            **self._settings,
        }
        lines = ["[global]", *(f"{name} = {value}" for name, value in common.items())]
        lines += ["[client.rgw.a]", *(f"{name} = {value}" for name, value in own.items())]
        return "\n".join(lines) + "\n"


def _answers(endpoint: str) -> bool:
    try:
        with urllib.request.urlopen(endpoint, timeout=5):
            return True
    except urllib.error.HTTPError as exc:
        exc.close()
        return True
    except OSError:
        return False


def free_port() -> int:
    """Return a port of loopback that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
