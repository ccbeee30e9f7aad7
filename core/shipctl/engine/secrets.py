"""Secrets: resolved in the moment that they are needed, and taken out of everything that is shown or stored."""

from __future__ import annotations

import base64
import json
import os
import shlex
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, quote_plus

from shipctl.errors import SpecError

if TYPE_CHECKING:
    from shipctl.spec import LoadedSpec

MASK = "***"
MIN_LENGTH = 4
"""Shorter values would mask half of every text; a secret like that protects nothing."""
_COMMAND_TIMEOUT = 60


class Secrets(Mapping[str, str]):
    """The spec's secrets by name. A value is fetched when it is first asked for."""

    def __init__(self, loaded: LoadedSpec) -> None:
        self._loaded = loaded
        self._values: dict[str, str] = {}
        self._masks: list[str] = []

    def __getitem__(self, name: str) -> str:
        if name not in self._loaded.spec.secrets:
            raise KeyError(name)
        if name not in self._values:
            value = self._fetch(name)
            if len(value) < MIN_LENGTH:
                message = (
                    f"secret {name!r} has fewer than {MIN_LENGTH} characters; that cannot be kept out of logs"
                )
                raise SpecError(message)
            self._values[name] = value
            self._masks = sorted(
                {form for item in self._values.values() for form in _forms(item)}, key=len, reverse=True
            )
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._loaded.spec.secrets)

    def __len__(self) -> int:
        return len(self._loaded.spec.secrets)

    def _fetch(self, name: str) -> str:
        source = self._loaded.spec.secrets[name]
        where = self._loaded.locate(("secrets", name))
        if source.env is not None:
            if source.env not in os.environ:
                message = f"{where}: secret {name!r} is not set; export {source.env}"
                raise SpecError(message)
            return os.environ[source.env]
        if source.file is not None:
            try:
                return (
                    (self._loaded.root / Path(source.file).expanduser())
                    .read_text(encoding="utf-8")
                    .strip("\n")
                )
            except (OSError, UnicodeDecodeError) as exc:
                message = f"{where}: secret {name!r} cannot be read from {source.file}: {type(exc).__name__}"
                raise SpecError(message) from None
        command = list(source.command or ())
        try:
            done = subprocess.run(
                command,
                cwd=self._loaded.root,
                capture_output=True,
                text=True,
                timeout=_COMMAND_TIMEOUT,
                check=True,
            )
        except (OSError, subprocess.SubprocessError) as exc:
            message = f"{where}: secret {name!r}: `{shlex.join(command)}` failed ({type(exc).__name__})"
            raise SpecError(message) from None
        return done.stdout.rstrip("\n")

    def redact(self, text: str) -> str:
        """Return the text with every known secret, plain or encoded, replaced by ***."""
        for form in self._masks:
            text = text.replace(form, MASK)
        return text

    def forbidden(self) -> dict[bytes, str]:
        """Return the byte strings that no stored file may contain, and whose they are."""
        return {form.encode(): name for name, value in self._values.items() for form in _forms(value)}


def _public_half(value: bytes) -> bytes:
    """Return the public key (SubjectPublicKeyInfo, DER) of a private key in PEM; nothing for any other secret.

    A private key's file holds the public one as well, which stands in every certificate of it.
    """
    if b"PRIVATE KEY-----" not in value:
        return b""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

    try:
        key = load_pem_private_key(value, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):  # damaged, or encrypted: then all of it is secret
        return b""
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _is_public(line: str, public: bytes) -> bool:
    """Whether a line of a private key's file says nothing but a part of the public key, or what kind of file it is."""
    if line.startswith("-----"):
        return True
    try:
        return base64.b64decode(line, validate=True) in public
    except ValueError:
        return False


def _forms(value: str) -> set[str]:
    """Return the ways in which a secret shows.

    As it is, each long line of it, quoted as in a URL, in JSON or in Python, and base64 at any alignment.
    """
    raw = value.encode()
    forms = {value, repr(value)[1:-1], quote(value), quote(value, safe=""), quote_plus(value)}
    forms |= {json.dumps(value, ensure_ascii=ascii_only)[1:-1] for ascii_only in (True, False)}
    public = _public_half(raw)
    forms |= {
        line
        for line in value.splitlines()
        if len(line) >= MIN_LENGTH * 2 and not (public and _is_public(line, public))
    }
    for shift in range(3):
        encoded = base64.b64encode(b"\0" * shift + raw).decode().rstrip("=")
        fixed = encoded[(shift * 8 + 5) // 6 : len(encoded) - (1 if (len(raw) + shift) % 3 else 0)]
        forms |= {fixed, fixed.replace("+", "-").replace("/", "_")}
    return {form for form in forms if len(form) >= MIN_LENGTH}
