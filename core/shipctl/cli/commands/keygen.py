"""`shipctl keygen`."""

from __future__ import annotations

import os
from pathlib import Path

import click

from shipctl.cli.output import Output, common_options, json_option
from shipctl.cli.types import PATH
from shipctl.errors import SpecError

_TYPES = ("ed25519", "ecdsa-p256", "ecdsa-p384", "ecdsa-p521")


@click.command("keygen")
@click.argument("path", type=PATH)
@click.option(
    "--type",
    "algorithm",
    type=click.Choice(_TYPES),
    default="ed25519",
    show_default=True,
    help="The kind of key; `model_signing verify` takes the ecdsa ones only.",
)
@click.option(
    "--password-file",
    metavar="FILE",
    type=PATH,
    help="Encrypt the private key with the first line of a file.",
)
@json_option
@common_options
def command(path: Path, algorithm: str, password_file: Path | None) -> None:
    """Make a key that signs packages: PATH, for nobody else to read, and PATH.pub to give away.

    Nothing is overwritten. In a spec the private key is a secret, in a policy the public one is trusted.
    """
    from shipctl.cli.documents.packages import KeygenDocument
    from shipctl.evidence.keys import ALGORITHMS, PrivateKey

    output = Output.current()
    public = path.with_name(f"{path.name}.pub")
    for place in (path, public):
        if place.exists() or place.is_symlink():
            raise SpecError(f"{place} exists, and a lost key cannot be made again; choose another path")
    key = PrivateKey.generate(next(item for item in ALGORITHMS if item == algorithm))
    _create(path, key.pem(_password(password_file)), 0o600)
    try:
        _create(public, key.public.pem().encode(), 0o644)
    except SpecError:
        path.unlink()
        raise
    output.say(f"wrote {path} (keep it secret) and {public}")
    output.result(key.public.id)
    output.say(
        f"next: name {public} under `signatures.keys` in shipctl-policy.yaml, and {path} as a secret of the spec"
    )
    output.document(
        KeygenDocument(id=key.public.id, algorithm=algorithm, private=str(path), public=str(public))
    )


def _password(file: Path | None) -> str | None:
    if file is None:
        return None
    try:
        password = file.read_text(encoding="utf-8").partition("\n")[0]
    except (OSError, UnicodeDecodeError) as exc:
        raise SpecError(f"the password cannot be read from {file}: {type(exc).__name__}") from None
    if not password:
        raise SpecError(f"the first line of {file} is empty; write a password there")
    return password


def _create(path: Path, data: bytes, mode: int) -> None:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    except OSError as exc:
        raise SpecError(f"cannot write {path}: {exc.strerror}; choose another path") from None
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
