"""Files that would run code, escape or explode when they are loaded. Nothing here ever loads them."""

from __future__ import annotations

import io
import pickle
import struct
import tarfile
import zipfile
from typing import Any

COMMAND = "echo owned"


class Calls:
    """Pickles to a call of ``function`` with ``arguments``; what is named need not exist here."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call


def call(module: str, name: str, *arguments: str, protocol: int = 4) -> bytes:
    """Assemble a pickle that calls ``module.name(*arguments)``, without importing the module."""
    if protocol < 4:
        head = b"\x80" + bytes([protocol]) if protocol >= 2 else b""
        pushed = b"".join(b"V" + text.encode() + b"\n" for text in arguments)
        return head + f"c{module}\n{name}\n".encode() + b"(" + pushed + b"tR."
    body = b"".join(_text(text) for text in (module, name)) + b"\x93"
    body += b"(" + b"".join(_text(text) for text in arguments) + b"tR."
    return b"\x80" + bytes([protocol]) + body


def _text(text: str) -> bytes:
    return b"\x8c" + bytes([len(text)]) + text.encode()


def zipped(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0)), content, compression)
    return buffer.getvalue()


def with_broken_crc(archive: bytes) -> bytes:
    """Return a zip whose checksums are wrong: zipfile refuses it, PyTorch's reader does not look."""
    data = bytearray(archive)
    for signature, offset in ((b"PK\x03\x04", 14), (b"PK\x01\x02", 16)):
        at = data.find(signature)
        while at >= 0:
            data[at + offset : at + offset + 4] = b"\x00\x01\x02\x03"
            at = data.find(signature, at + 4)
    return bytes(data)


def with_other_local_name(archive: bytes, name: bytes, other: bytes) -> bytes:
    """Return a zip whose local header names a member otherwise than its directory does."""
    assert len(name) == len(other)
    at = archive.index(name)
    return archive[:at] + other + archive[at + len(name) :]


def encrypted_flag(archive: bytes) -> bytes:
    """Return a zip whose members claim to be encrypted: PyTorch's reader ignores that."""
    data = bytearray(archive)
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = data.find(signature)
        while at >= 0:
            data[at + offset] |= 1
            at = data.find(signature, at + 4)
    return bytes(data)


def npy(header: str, data: bytes) -> bytes:
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


def object_array() -> bytes:
    return npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", call("os", "system", COMMAND))


GOOD_PICKLE = pickle.dumps({"weights": [1.0, 2.0, 3.0]}, protocol=4)
EVIL = call("posix", "system", COMMAND)

_MEMO = (
    b"\x80\x04"
    + _text("os") + b"\x94" + _text("system") + b"\x94" + b"00"  # remembered as 0 and 1, and taken off again
    + b"h\x00h\x01\x93" + _text(COMMAND) + b"\x85R."
)  # fmt: skip
_MEMO_OF_THE_FIRST = (
    b"\x80\x04" + _text("collections") + b"\x94" + _text("OrderedDict") + b"\x94" + b"."
)  # fmt: skip

PICKLES: dict[str, bytes] = {
    "os.system, protocol 0": call("os", "system", COMMAND, protocol=0),
    "os.system, protocol 2": call("os", "system", COMMAND, protocol=2),
    "os.system, protocol 4": call("os", "system", COMMAND),
    "os.system, protocol 5": call("os", "system", COMMAND, protocol=5),
    "builtins.eval": call("builtins", "eval", "1"),
    "builtins.exec, by pickle itself": pickle.dumps(Calls(exec, "pass"), protocol=4),
    "builtins.__import__": call("builtins", "__import__", "os"),
    "INST": b"(V" + COMMAND.encode() + b"\nios\nsystem\n.",
    "OBJ": b"(cos\nsystem\nV" + COMMAND.encode() + b"\no.",
    "NEWOBJ": b"\x80\x02csubprocess\nPopen\n(V" + COMMAND.encode() + b"\nt\x81.",
    "name through the memo": _MEMO,
    "memo of the pickle before": _MEMO_OF_THE_FIRST + _MEMO,
    "name on top of another": b"\x80\x04" + _text("collections") + _text("x") + b"00" + EVIL[2:],
    "second pickle behind a good one": GOOD_PICKLE + EVIL,
    "third pickle behind two good ones": GOOD_PICKLE * 2 + EVIL,
    "good pickle, bytes, then a pickle": GOOD_PICKLE + b"\xff\xfe\xfd" + EVIL,
    "call before broken bytes": call("os", "system", COMMAND)[:-1] + b"\xff\xff",
    "call before the end of the file": call("os", "system", COMMAND)[:-1],
    "operator.methodcaller": call("operator", "methodcaller", "system", COMMAND),
    "operator.attrgetter": call("operator", "attrgetter", "system"),
    "functools.partial": call("functools", "partial", COMMAND),
    "runpy": call("runpy", "run_path", "x.py"),
    "pip.main": call("pip", "main", "install x"),
    "pip._internal": call("pip._internal", "main", "install x"),
    "_io.open": call("_io", "open", "/etc/passwd"),
    "io.open": call("io", "open", "/etc/passwd"),
    "importlib": call("importlib", "import_module", "x"),
    "nested attribute": call("collections", "OrderedDict.fromkeys.__self__", "x"),
    "a gadget nobody has on a list": call("some_package.helpers", "run_anything", COMMAND),
    "torch gadget": call("torch.hub", "load", "x/y", "z"),
    "numpy gadget": call("numpy.testing._private.utils", "runstring", "1", "{}"),
    "pickle in a pickle": call("pickle", "loads", "x"),
    "extension registry": b"\x80\x02\x82\x01)R.",
    "protocol 4 frame that lies": b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f" + EVIL[2:],
}
"""Name of the trick to bytes, each a file that runs something when it is unpickled (once, or as often as it can be)."""

ARCHIVES: dict[str, bytes] = {
    "member of a zip": zipped({"archive/data.pkl": EVIL, "archive/version": b"3\n"}),
    "member of a zip, other name": zipped({"archive/weights.raw": EVIL}),
    "member of a zip, protocol 0, other name": zipped({"notes.txt": PICKLES["os.system, protocol 0"]}),
    "zip in a zip": zipped({"inner.bin": zipped({"deep.dat": EVIL})}, zipfile.ZIP_DEFLATED),
    "zip with broken checksums": with_broken_crc(zipped({"archive/data.pkl": EVIL})),
    "zip that says it is encrypted": encrypted_flag(zipped({"archive/data.pkl": EVIL})),
    "zip behind a pickle": EVIL + zipped({"data": b"x"}),
    "object array": object_array(),
    "object array in a zip": zipped({"x.npy": object_array()}),
    "7z": b"7z\xbc\xaf\x27\x1c\x00\x04" + bytes(64),
}


def tarred(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for info, content in members:
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def entry(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def linked(archive: bytes) -> bytes:
    """Return a zip whose members say that they are symbolic links."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as source, zipfile.ZipFile(buffer, "w") as target:
        for member in source.infolist():
            content = source.read(member)
            member.external_attr = 0o120777 << 16
            target.writestr(member, content)
    return buffer.getvalue()


def overlapping(size: int, count: int) -> bytes:
    """Return a zip whose directory names one compressed member ``count`` times, as David Fifield's bombs do."""
    plain = zipped({"0": bytes(size)}, zipfile.ZIP_DEFLATED)
    at = plain.index(b"PK\x01\x02")
    end = plain.index(b"PK\x05\x06")
    record = plain[at:end]
    records = b"".join(record[:46] + bytes([33 + number]) + record[47:] for number in range(count))
    tail = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, count, count, len(records), at, 0)
    return plain[:at] + records + tail


def nested(depth: int) -> bytes:
    content = b"inside"
    for _ in range(depth):
        content = zipped({"inner": content})
    return content
