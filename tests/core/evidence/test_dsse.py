from __future__ import annotations

import json

import pytest

from shipctl.errors import VerificationError
from shipctl.evidence.dsse import Envelope, pae, read_envelope, strict_base64, strict_json
from shipctl.evidence.keys import PrivateKey


def test_pae_is_that_of_the_specification() -> None:
    """The example of https://github.com/secure-systems-lab/dsse/blob/v1.0.0/protocol.md."""
    assert pae("http://example.com/HelloWorld", b"hello world") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )


def test_pae_counts_bytes() -> None:
    assert pae("ü", "ß!".encode()) == "DSSEv1 2 ü 3 ß!".encode()


def test_an_envelope_comes_back_as_it_was_signed() -> None:
    key = PrivateKey.generate()
    envelope = read_envelope(Envelope.signed(b'{"a":1}', key).dump(), "e.json")
    assert envelope.body() == b'{"a":1}'
    assert envelope.payload_type == "application/vnd.in-toto+json"
    assert envelope.is_signed_by(key.public)
    assert not envelope.is_signed_by(PrivateKey.generate().public)


def test_type_and_payload_are_both_signed() -> None:
    key = PrivateKey.generate()
    envelope = Envelope.signed(b"x", key)
    assert not envelope.model_copy(update={"payload_type": "text/plain"}).is_signed_by(key.public)
    assert not envelope.model_copy(update={"payload": "eQ=="}).is_signed_by(key.public)


@pytest.mark.parametrize("index", range(0, 400, 7))
def test_no_byte_of_an_envelope_can_be_flipped(index: int) -> None:
    key = PrivateKey.generate()
    data = bytearray(Envelope.signed(b"payload " * 10, key).dump())
    data[index % len(data)] ^= 1
    try:
        accepted = read_envelope(bytes(data), "e.json").is_signed_by(key.public)
    except VerificationError:
        return
    assert not accepted


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b'{"a":1,"a":2}', "a key twice"),
        (b'{"a":1 }', "blanks"),
        (b"\xff\xfe{\x00}\x00", "a key twice, or blanks"),
        (b'{"a":NaN}x', "Extra data"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_json_that_parsers_may_read_differently_is_refused(text: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        strict_json(text)


@pytest.mark.parametrize("indent", [None, 2, 4])
def test_json_in_a_usual_form_is_read(indent: int | None) -> None:
    value = {"b": [1, "ü"], "a": {}}
    assert strict_json(json.dumps(value, indent=indent, ensure_ascii=False).encode() + b"\n") == value


@pytest.mark.parametrize("text", ["eR==", "eQ", "eQ==\n", "e Q==", "e-=="])
def test_base64_in_another_form_than_an_encoder_writes_is_refused(text: str) -> None:
    assert strict_base64("eQ==") == b"y"
    with pytest.raises(ValueError, match="base64"):
        strict_base64(text)


def test_two_signatures_in_an_envelope_are_refused() -> None:
    envelope = json.loads(Envelope.signed(b"x", PrivateKey.generate()).dump())
    envelope["signatures"] *= 2
    with pytest.raises(VerificationError, match=r"^e.json is no signed envelope \(signatures: "):
        read_envelope(json.dumps(envelope).encode(), "e.json")
