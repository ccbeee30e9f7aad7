"""Pickles: what would be imported and called if one were loaded. Nothing is ever loaded.

Which globals a pickle names is worked out by picklescan, with its lists of dangerous and of harmless ones; whatever
is on neither list is suspicious, so a gadget that nobody has heard of is found too. Three things are done here
because picklescan 1.0.5 goes wrong without them: pickles that stand one after another are handed to it one by one
(it would resolve the second one's memo with the first one's), what cannot be parsed is a finding and not a pass, and
codes of the extension registry are found.
"""

from __future__ import annotations

import io
import logging
import pickletools
import re
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from shipctl_plugins.package._scan_findings import Findings, Severity

MAGIC = re.compile(rb"\x80[\x00-\x05]")
"""The beginning of a pickle from protocol 2 on; earlier ones have none."""
HARMLESS = frozenset(
    {
        "_codecs.encode", "builtins.bytearray", "builtins.complex", "builtins.frozenset", "builtins.set",
        "builtins.slice", "collections.defaultdict", "numpy._core.multiarray.scalar", "numpy._core.numeric._frombuffer",
        "numpy.core.multiarray.scalar", "numpy.core.numeric._frombuffer", "torch.Size", "torch.UntypedStorage",
        "torch._utils._rebuild_parameter", "torch._utils._rebuild_tensor_v3", "torch.device",
        "torch.storage.UntypedStorage",
        *(f"torch.{kind}" for kind in ("bfloat16", "bool", "float8_e4m3fn", "float8_e5m2", "uint8")),
        *(f"torch.float{bits}" for bits in (16, 32, 64)), *(f"torch.int{bits}" for bits in (8, 16, 32, 64)),
    }
)  # fmt: skip
"""Beyond picklescan's own list: they make values, and call nothing that was not named itself."""

_MAX_OPCODES = 5_000_000
_MAX_ARGUMENT = 512 << 20
"""Bytes of a single argument, which has to be held in memory."""
_MAX_TAIL = 64 << 20
_KEPT = 512
"""Bytes of an argument that are handed on; longer ones are data, and no names."""
_MAX_STREAMS = 10_000
_MAX_CANDIDATES = 10_000
_LEGACY_TORCH = 0x1950A86A20F9469CFC6C
_LEGACY_PICKLES = 5
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)*")
_START = re.compile(rb"\x80[\x02-\x05]|[ci][A-Za-z_][\w.]{0,200}\n[A-Za-z_][\w.]{0,200}\n")


class TooLargeError(Exception):
    """A pickle is larger than what can be looked at."""


class _Parsed(NamedTuple):
    reduced: bytes
    """The same opcodes, with long data replaced by short data of the same kind."""
    complete: bool
    """Whether it came to its STOP."""
    reason: str
    extensions: tuple[int, ...]
    first: object
    """The argument of the second opcode: the magic number in PyTorch's old format."""


class _Tape:
    """A stream for `pickletools.genops` that remembers the bytes of the current opcode."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._taken: list[bytes] = []
        self.position = 0

    def read(self, size: int) -> bytes:
        if size > _MAX_ARGUMENT:
            # More than the file has is an error in any case; asking for it first would fill the memory.
            size = _MAX_ARGUMENT + 1
        return self._keep(self._stream.read(size) if size > 0 else b"")

    def readline(self) -> bytes:
        return self._keep(self._stream.readline(_MAX_ARGUMENT + 1))

    def tell(self) -> int:
        return self.position

    def count(self, opcodes: int) -> None:
        if opcodes > _MAX_OPCODES:
            raise TooLargeError(f"it has more than {_MAX_OPCODES} opcodes")

    def take(self) -> list[bytes]:
        taken, self._taken = self._taken, []
        return taken

    def _keep(self, data: bytes) -> bytes:
        if len(data) > _MAX_ARGUMENT:
            raise TooLargeError(f"one of its values is longer than {_MAX_ARGUMENT} bytes")
        self._taken.append(data)
        self.position += len(data)
        return data


def look_for_pickles(stream: BinaryIO, file: str, found: Findings, *, expected: bool) -> bool:
    """Look at every pickle in ``stream`` and return whether there was one.

    ``expected`` says that the file's name promises a pickle: then whatever cannot be parsed is a finding. Otherwise it
    is taken for other data, unless it begins as a pickle and ends as one, or names something to import.
    """
    count, legacy = 0, False
    try:
        for parsed, first_byte in _streams(stream):
            if not parsed.complete:
                named = _report(parsed, file, found, only_names=not (expected and count == 0))
                count += named
                if not count and expected:
                    found.unscannable(file, f"it should be a pickle, but {parsed.reason}")
                elif count and not (legacy and count >= _LEGACY_PICKLES):
                    _tail(stream, first_byte, file, found)
                break
            named = _report(parsed, file, found, only_names=not expected and not count)
            if not (expected or named or count or MAGIC.match(parsed.reduced)):
                return False  # a few bytes that happen to be opcodes, and would do nothing
            legacy = legacy or (count == 0 and parsed.first == _LEGACY_TORCH)
            count += 1
            if count > _MAX_STREAMS:
                found.unscannable(file, f"it has more than {_MAX_STREAMS} pickles one after another")
                break
    except TooLargeError as exc:
        found.unscannable(file, f"a pickle in it is too large: {exc}")
        return True
    if count:
        found.pickles += count
        found.add(
            "pickle",
            "medium",
            file,
            "is unpickled when it is loaded; prefer safetensors, ONNX or plain arrays",
        )
    return bool(count)


def _streams(stream: BinaryIO) -> Iterator[tuple[_Parsed, int]]:
    """Yield the pickles one after another, each with where it begins; the last may be something else."""
    tape = _Tape(stream)
    while True:
        start = tape.position
        parsed = _parse(tape)
        if tape.position == start:
            return
        yield parsed, start
        if not parsed.complete:
            return


def _parse(tape: _Tape) -> _Parsed:
    """Take one pickle from the tape, up to its STOP or to what is no opcode."""
    kept: list[bytes] = []
    extensions: list[int] = []
    first: object = None
    complete, reason, count = False, "", 0
    try:
        for opcode, argument, _ in pickletools.genops(tape):  # type: ignore[arg-type]
            count += 1
            tape.count(count)
            if count == 2:  # noqa: PLR2004  (the first one names the protocol)
                first = argument
            if opcode.name.startswith("EXT"):
                extensions.append(int(argument or 0))
            kept.append(_reduced(opcode.name, tape.take()))
            complete = opcode.name == "STOP"
    except TooLargeError:
        raise
    except Exception as exc:  # noqa: BLE001  (pickletools fails on broken bytes in many ways)
        reason = str(exc) or type(exc).__name__
    return _Parsed(b"".join(kept), complete, reason or "it ends early", tuple(extensions), first)


def _reduced(name: str, taken: list[bytes]) -> bytes:
    """Return the opcode's bytes, or for long data a short one that pushes the same kind of thing."""
    raw = b"".join(taken)
    if name == "FRAME":
        return b""
    if len(raw) <= _KEPT or name in {"GLOBAL", "INST", "PERSID"}:
        return raw
    return b"\x8c\x07unknown" if "UNICODE" in name or "STRING" in name else b"N"


def _report(parsed: _Parsed, file: str, found: Findings, *, only_names: bool) -> bool:
    """Note the globals of one pickle; ``only_names`` skips what cannot be one. Return whether there were any."""
    from picklescan.scanner import SafetyLevel, scan_pickle_bytes

    logging.getLogger("picklescan").setLevel(logging.CRITICAL + 1)
    try:
        result = scan_pickle_bytes(io.BytesIO(parsed.reduced), file, multiple_pickles=False)
    except Exception as exc:  # noqa: BLE001  (a scanner that stumbles has not said that all is well)
        if not only_names:
            found.unscannable(file, f"picklescan: {type(exc).__name__}: {exc}")
        return not only_names
    named = False
    for item in sorted(result.globals, key=lambda item: (item.module, item.name)):
        if only_names and not (_NAME.fullmatch(item.module) and _NAME.fullmatch(item.name)):
            continue
        named = True
        name = f"{item.module}.{item.name}"
        if item.safety is SafetyLevel.Dangerous:
            _global(found, file, name, "critical", "which runs what it is told to")
        elif item.safety is SafetyLevel.Suspicious and name not in HARMLESS:
            _global(found, file, name, "high", "which is not on the list of harmless names")
    for code in parsed.extensions if parsed.complete or not only_names else ():
        named = True
        _global(
            found, file, f"extension-{code}", "high", "a code whose meaning only the loading process knows"
        )
    return named


def _global(found: Findings, file: str, name: str, severity: Severity, what: str) -> None:
    found.add("pickle-global", severity, file, f"unpickling calls or imports {name}, {what}", name)


def _tail(stream: BinaryIO, start: int, file: str, found: Findings) -> None:
    """Note bytes after the last pickle, and search them for more: a loader may go on reading where it stopped."""
    if not stream.seekable():
        found.unscannable(file, f"from byte {start} on it is no pickle")
        return
    stream.seek(start)
    tail = io.BytesIO(stream.read(_MAX_TAIL))
    found.unscannable(file, f"from byte {start} on it is no pickle")
    for number, match in enumerate(_START.finditer(tail.getbuffer())):
        if number >= _MAX_CANDIDATES:
            break
        tail.seek(match.start())
        _report(_parse(_Tape(tail)), file, found, only_names=True)
