"""Stage `sign`: the package with a signature that anybody can verify offline."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, ValidatorFunctionWrapHandler, WrapValidator

from shipctl.errors import SpecError, StageError, UnavailableError
from shipctl.evidence.package import ADDED_BY_SIGNING
from shipctl.spec.fields import ProjectFile, Text
from shipctl.stages.artifacts import ModelPackage
from shipctl.stages.base import Stage, StageInputs, StageOptions, StageOutputs
from shipctl.stages.context import CheckContext, StageContext
from shipctl.store.files import place_file

if TYPE_CHECKING:
    from shipctl.evidence.keys import SigningKey

_PEM = "-----BEGIN"


def _text_or_file(value: object, handler: ValidatorFunctionWrapHandler) -> object:
    return value if isinstance(value, str) and _PEM in value else handler(value)


Pem = Annotated[ProjectFile, WrapValidator(_text_or_file)]
"""PEM text, or the path of a file with it."""


class Options(StageOptions):
    """What stands below ``with:``; exactly one of ``key`` and ``command``."""

    key: Text | None = Field(
        default=None,
        repr=False,
        description="The private key as PEM text, from a secret: `${{ secrets.signing_key }}`. Ed25519 or ECDSA.",
    )
    password: Text | None = Field(
        default=None, repr=False, description="What an encrypted key opens with; from a secret as well."
    )
    public_key: Pem | None = Field(
        default=None,
        description="The public key, as a PEM file or text. A rotated key then signs anew; the private one must fit.",
    )
    certificates: Pem | None = Field(
        default=None,
        description="The certificate of the key and those between it and the root, as a PEM file or text.",
    )
    command: tuple[Text, ...] | None = Field(
        default=None,
        min_length=1,
        description="A program that signs instead of a key (KMS, HSM): the bytes to sign on its standard input, the "
        "signature (DER, P1363 or base64 of either) on its standard output. Needs public_key.",
    )


class Inputs(StageInputs):
    """What the stage takes."""

    package: ModelPackage


class Outputs(StageOutputs):
    """What the stage gives."""

    package: ModelPackage


class Sign(Stage[Options, Inputs, Outputs]):
    """Sign a package, so that `shipctl verify` and `model_signing verify` can tell whether it was altered.

    Adds `model.sig` (OpenSSF model signing) over all files, and the provenance in a signed envelope. A signature that
    is there is replaced.
    """

    api_version = 1
    isolation = "inline"

    def check(self, ctx: CheckContext) -> None:
        """Look whether the options fit together, and whether the command is there."""
        if (self.options.key is None) == (self.options.command is None):
            raise SpecError("give exactly one of `key` (from a secret) and `command`")
        if self.options.command is not None:
            if self.options.public_key is None:
                raise SpecError("`command` needs `public_key`: the key that its signatures are checked with")
            if shutil.which(self.options.command[0]) is None:
                raise UnavailableError(
                    f"needs the program {self.options.command[0]}, which signs; install it, or give its full path"
                )

    def run(self, inputs: Inputs, ctx: StageContext) -> Outputs:
        """Lay the package out again with its signatures."""
        from shipctl.evidence.bundle import sign_package

        try:
            key = self._key()
            folder = ctx.workdir / "package"
            _lay_out(inputs.package, folder)
            sign_package(folder, key, files=inputs.package.files)
        except SpecError as exc:
            raise StageError(str(exc)) from None
        ctx.log(f"signed {inputs.package.name}@{inputs.package.version} with {key.public.id}")
        given = inputs.package
        return Outputs(
            package=ModelPackage.at(
                folder,
                name=given.name,
                version=given.version,
                model=given.model,
                signature=given.signature,
                signer=key.public.id,
            )
        )

    def _key(self) -> SigningKey:
        from shipctl.evidence.certificates import for_key, load_certificates
        from shipctl.evidence.keys import CommandKey, PrivateKey, PublicKey

        options = self.options
        public = None
        if options.public_key is not None:
            public = PublicKey.load(_content(options.public_key), "public_key")
        if options.key is not None and options.command is None:
            key: SigningKey = PrivateKey.load(options.key, password=options.password, where="key")
            if public is not None and public != key.public:
                raise StageError(
                    f"the private key is {key.public.id} and public_key is {public.id}; give the two halves of one key"
                )
        elif options.command is not None and options.key is None:
            if public is None:
                raise StageError("`command` needs `public_key`: the key that its signatures are checked with")
            key = CommandKey(options.command, public)
        else:
            raise StageError("give exactly one of `key` (from a secret) and `command`")
        if options.certificates is not None:
            chain = load_certificates(_content(options.certificates), "certificates")
            key.certificates = for_key(chain, key.public, at=time.time())
        return key


def _content(pem: str) -> str | bytes:
    from shipctl.evidence.keys import read_key_file

    return pem if _PEM in pem else read_key_file(Path(pem))


def _lay_out(package: ModelPackage, folder: Path) -> None:
    """Put the files of a package below ``folder`` without copying them where the file system can.

    They are links to the store's own read-only files, and moving a link back onto the file that it is changes nothing.
    """
    for entry in package.files:
        if entry.path in ADDED_BY_SIGNING:
            continue
        place = folder / entry.path
        place.unlink(missing_ok=True)  # never written through: what is there may be a link as well
        place_file(package.root / entry.path, place)
