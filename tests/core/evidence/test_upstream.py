"""What the OpenSSF's `model_signing` says about our signatures, and we about its."""

from __future__ import annotations

import io
import runpy
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from unittest.mock import patch

import pytest

from shipctl.evidence.keys import Algorithm, PrivateKey
from shipctl.evidence.verify import Trust, verify_package
from support_signing import Issued, issue, list_files, make_package, native_key, refused, signed

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        any(find_spec(name) is None for name in ("model_signing", "OpenSSL")), reason="needs model-signing"
    ),
]
ECDSA: list[Algorithm] = ["ecdsa-p256", "ecdsa-p384", "ecdsa-p521"]


def model_signing(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Do what `python -m model_signing …` does, in this process, which imports it once."""
    command = ["model_signing", *map(str, arguments)]
    out, err = io.StringIO(), io.StringIO()
    with patch.object(sys, "argv", command), redirect_stdout(out), redirect_stderr(err):
        try:
            runpy.run_module("model_signing", run_name="__main__")
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        else:
            code = 0
    return subprocess.CompletedProcess(command, code, out.getvalue(), err.getvalue())


def verify_by_key(folder: Path, public: Path) -> subprocess.CompletedProcess[str]:
    return model_signing("verify", "key", "--public_key", public, "--signature", folder / "model.sig", folder)


@pytest.fixture
def chain() -> tuple[Issued, Issued, Issued]:
    """Root, intermediate and leaf."""
    root = issue("root", ca=True)
    middle = issue("middle", root, ca=True)
    return root, middle, issue("release", middle, key=native_key("ecdsa-p384"))


@pytest.mark.parametrize("algorithm", ECDSA)
def test_upstream_accepts_ours_and_refuses_what_we_refuse(tmp_path: Path, algorithm: Algorithm) -> None:
    key = PrivateKey.generate(algorithm)
    public = tmp_path / "key.pub"
    public.write_text(key.public.pem())
    folder = signed(make_package(tmp_path / "package"), key)
    done = verify_by_key(folder, public)
    assert (done.returncode, done.stdout) == (0, "Verification succeeded\n"), done.stderr
    (folder / "model/hook.py").write_text("import os")
    done = verify_by_key(folder, public)
    assert done.returncode == 1
    assert "Extra files found in model 'package': model/hook.py" in done.stderr


def test_upstream_accepts_our_certificate_chains(
    tmp_path: Path, chain: tuple[Issued, Issued, Issued]
) -> None:
    root, middle, leaf = chain
    (tmp_path / "root.pem").write_text(root.pem)
    folder = signed(make_package(tmp_path / "package"), leaf.signing_key(middle))
    done = model_signing(
        "verify", "certificate", "--certificate_chain", tmp_path / "root.pem",
        "--signature", folder / "model.sig", folder,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "Verification succeeded\n"), done.stderr


@pytest.mark.parametrize("algorithm", ECDSA)
def test_we_accept_what_upstream_signed(tmp_path: Path, algorithm: Algorithm) -> None:
    key = PrivateKey.generate(algorithm)
    (tmp_path / "key.pem").write_bytes(key.pem())
    folder = make_package(tmp_path / "package")
    done = model_signing(
        "sign", "key", "--private_key", tmp_path / "key.pem", "--signature", folder / "model.sig", folder
    )
    assert done.returncode == 0, done.stderr
    trust = Trust((key.public,))
    found = verify_package(folder, trust, expect="digits@1.1.0")
    assert (found.signer, found.files) == (key.public.id, 7)
    assert "which is not trusted here" in refused(folder, "untrusted", Trust((PrivateKey.generate().public,)))
    # upstream does not look at these at all
    (folder / ".gitattributes").write_text("")
    assert "P: .gitattributes was not signed" in refused(folder, "surplus", trust)


def test_we_accept_what_upstream_signed_with_a_certificate(
    tmp_path: Path, chain: tuple[Issued, Issued, Issued]
) -> None:
    root, middle, leaf = chain
    for name, text in (
        ("key.pem", leaf.signing_key().pem().decode()), ("leaf.pem", leaf.pem), ("middle.pem", middle.pem),
    ):  # fmt: skip
        (tmp_path / name).write_text(text)
    folder = make_package(tmp_path / "package")
    done = model_signing(
        "sign", "certificate", "--private_key", tmp_path / "key.pem", "--signing_certificate", tmp_path / "leaf.pem",
        "--certificate_chain", tmp_path / "middle.pem", "--signature", folder / "model.sig", folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    trust = Trust(roots=(root.certificate,), identities=("release",))
    assert verify_package(folder, trust).certificate == "CN=release,O=Example"


def test_what_upstream_signs_without_looking_is_refused(tmp_path: Path) -> None:
    """A signature by upstream over a folder that our manifest does not fit is refused for that."""
    key = PrivateKey.generate("ecdsa-p256")
    (tmp_path / "key.pem").write_bytes(key.pem())
    folder = make_package(tmp_path / "package")
    (folder / "extra.txt").write_text("x")
    model_signing(
        "sign", "key", "--private_key", tmp_path / "key.pem", "--signature", folder / "model.sig", folder
    )
    assert "package.json does not list extra.txt" in refused(folder, "manifest", Trust((key.public,)))
    list_files(folder)
    assert "package.json, which says what the package is, was altered" in refused(
        folder, "altered", Trust((key.public,))
    )
