"""DSSE envelopes: some bytes, what they are, and signatures over both.

https://github.com/secure-systems-lab/dsse, protocol and envelope v1.0. What is signed is the pre-authentication
encoding (PAE) of type and bytes, so that nothing has to be brought into a canonical form to be verified.
"""

from __future__ import annotations

import base64
import binascii
import json
from typing import Any

from pydantic import ConfigDict, Field, ValidationError

from shipctl.errors import VerificationError
from shipctl.evidence.keys import PublicKey, SigningKey
from shipctl.records import Record, canonical_json

PAYLOAD_TYPE = "application/vnd.in-toto+json"
"""Of an in-toto statement."""
MAX_BYTES = 64 << 20
"""Of a file with an envelope in it: enough for a package of two hundred thousand files."""


def pae(payload_type: str, payload: bytes) -> bytes:
    """Return what is signed: ``DSSEv1 SP LEN(type) SP type SP LEN(payload) SP payload``, lengths in bytes."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


class EnvelopeSignature(Record):
    """One signature of an envelope."""

    sig: str = Field(description="The signature in base64: ECDSA in DER, Ed25519 as 64 bytes.")
    keyid: str = Field(default="", description="Which key it may be by; not signed, so only ever a hint.")


class Envelope(Record):
    """A DSSE envelope as it stands in JSON."""

    model_config = ConfigDict(populate_by_name=True, serialize_by_alias=True)

    payload: str = Field(description="The bytes, in base64.")
    payload_type: str = Field(alias="payloadType", description="What they are.")
    signatures: tuple[EnvelopeSignature, ...] = Field(min_length=1, max_length=1, description="By one key.")

    @classmethod
    def signed(cls, payload: bytes, key: SigningKey, payload_type: str = PAYLOAD_TYPE) -> Envelope:
        """Sign ``payload``."""
        signature = key.sign(pae(payload_type, payload))
        return cls(
            payload=base64.b64encode(payload).decode(),
            payload_type=payload_type,
            signatures=(EnvelopeSignature(sig=base64.b64encode(signature).decode(), keyid=key.public.id),),
        )

    def body(self) -> bytes:
        """Return the payload's bytes.

        :raises ValueError: if they are not base64 in the one form that an encoder writes
        """
        return strict_base64(self.payload)

    def is_signed_by(self, key: PublicKey) -> bool:
        """Whether the signature is ``key``'s and says so, if it says whose it is."""
        signature = self.signatures[0]
        if signature.keyid not in {"", key.id}:
            return False
        try:
            return key.verifies(strict_base64(signature.sig), pae(self.payload_type, self.body()))
        except ValueError:
            return False

    def dump(self) -> bytes:
        """Return the envelope's file."""
        return canonical_json(self.model_dump(mode="json"))


def read_envelope(data: bytes, where: str) -> Envelope:
    """Read an envelope; nothing is verified.

    :raises VerificationError: if it is none
    """
    try:
        return Envelope.model_validate(strict_json(data))
    except ValueError as exc:  # a ValidationError is one
        raise VerificationError(
            f"{where} is no signed envelope ({fault_of(exc)}); it was damaged or written by something else",
            "signature",
        ) from None


def strict_json(data: bytes) -> Any:
    """Read JSON that every parser reads in the same way: no key twice, nothing beside it, in a form that is usual.

    So that what is not covered by a signature (the file that holds it) cannot be changed unnoticed either.

    :raises ValueError: if it is not that
    """
    try:
        value = json.loads(data)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    text = data.removesuffix(b"\n")
    forms: tuple[dict[str, Any], ...] = ({"separators": (",", ":")}, {}, {"indent": 2}, {"indent": 4})
    if not any(json.dumps(value, ensure_ascii=False, **form).encode() == text for form in forms):
        raise ValueError("a key twice, or blanks where no program writes them")
    return value


def strict_base64(text: str) -> bytes:
    """Return the bytes of base64 text in the one form that an encoder writes.

    :raises ValueError: if it is in another
    """
    try:
        found = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("not base64") from None
    if base64.b64encode(found).decode() != text:
        raise ValueError("base64 with stray bits")
    return found


def fault_of(exc: ValueError) -> str:
    """Return in a few words what is wrong with a document that could not be read."""
    if isinstance(exc, ValidationError):
        error = exc.errors(include_url=False, include_input=False)[0]
        return f"{'.'.join(map(str, error['loc']))}: {error['msg'][:1].lower()}{error['msg'][1:]}"
    return str(exc).partition("\n")[0]
