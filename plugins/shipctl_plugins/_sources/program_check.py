"""What an exported program (`.pt2`) may hold if opening it must not run code.

``torch.export.load`` trusts its file: it unpickles what the file calls pickled, hands shapes (`expr_str`) to sympy,
which evaluates them as Python, writes guards and names into the source of a function, and takes any callable below
`torch` for an operator. Here the archive is read before torch sees it, and whatever is not a plain program (tensors
as raw bytes, ATen operators, arithmetic over sizes) is named. Pickles that are left (example inputs) are opened with
``weights_only``.
"""

from __future__ import annotations

import ast
import json
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from shipctl.errors import StageError

_NAME = re.compile(r"[\w.+-]*")
"""Names of values and parameters, devices, versions."""
_TARGET = re.compile(
    r"torch\.ops\.(aten|prims?)\.(?!from_file)\w+(\.\w+)?"
    r"|torch\.ops\.higher_order\.(cond|while_loop|map_impl|scan|wrap_with_set_grad_enabled|wrap_with_autocast)"
    r"|_operator\.(getitem|add|sub|mul|floordiv|truediv|mod|pow|neg|pos|eq|ne|lt|le|gt|ge|and_|or_|not_)"
    r"|math\.(ceil|floor|trunc|sqrt)|torch\.sym_\w+|torch\._sym_\w+"
)
_MARK = "archive_version"
"""A file that every such archive has."""
_PAYLOAD = re.compile(r"(weight|tensor)_\d+")
_FUNCTIONS = frozenset({
    "Symbol", "Integer", "Float", "Rational", "Add", "Mul", "Pow", "Max", "Min", "Mod", "Abs", "ceiling", "floor",
    "Eq", "Ne", "Lt", "Le", "Gt", "Ge", "Equality", "Unequality", "StrictLessThan", "LessThan", "StrictGreaterThan",
    "GreaterThan", "And", "Or", "Not", "Piecewise", "FloorDiv", "ModularIndexing", "Where", "PythonMod", "CleanDiv",
    "CeilToInt", "FloorToInt", "CeilDiv", "LShift", "RShift", "PowByNatural", "FloatPow", "FloatTrueDiv",
    "IntTrueDiv", "IsNonOverlappingAndDenseIndicator", "TruncToFloat", "TruncToInt", "RoundToInt", "RoundDecimal",
    "ToFloat", "Identity",
})  # fmt: skip
_METHODS = frozenset({"size", "stride", "storage_offset"})
_NODES = (
    ast.Expression, ast.BoolOp, ast.BinOp, ast.UnaryOp, ast.Compare, ast.Subscript, ast.Constant, ast.Name, ast.Load,
    ast.boolop, ast.operator, ast.unaryop, ast.cmpop, ast.keyword, ast.Tuple, ast.IfExp,
)  # fmt: skip
_EXPRESSIONS = frozenset({"expr_str", "guards_code"})
_TREES = frozenset({"in_spec", "out_spec"})
_UNREAD = frozenset({"metadata", "as_string", "as_strings"})
"""Never made code of: traces, and arguments of operators."""


def require_plain_program(path: Path) -> None:
    """See that the `.pt2` file at ``path`` is whole, and that ``torch.export.load`` would run nothing of it.

    :raises StageError: if it is no such archive, or holds what could run code
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.partition("/")[2]: name for name in archive.namelist()}
            found = next(_suspicious(archive, names), None) if _MARK in names else ""
    except (OSError, zipfile.BadZipFile, EOFError) as exc:
        message = (
            f"{path.name} is not a whole .pt2 archive: {exc}; save the program again with torch.export.save"
        )
        raise StageError(message) from exc
    except (ValueError, RecursionError) as exc:
        message = f"{path.name} holds JSON that cannot be read; save the program again with torch.export.save"
        raise StageError(message) from exc
    if found == "":
        message = (
            f"{path.name} has no program of the present format in it: it is cut off, or of a torch before 2.8; save it "
            "again with torch.export.save"
        )
        raise StageError(message)
    if found:
        message = (
            f"{path.name} holds {found}, with which it can run any code when it is opened; save it with a recent "
            "torch.export.save, or write `trust_pickle: true` below `model:` if you trust who made it"
        )
        raise StageError(message)


def _suspicious(archive: zipfile.ZipFile, names: Mapping[str, str]) -> Iterator[str]:
    for short, name in names.items():
        if short.startswith("data/aotinductor/"):
            yield "compiled code"
        elif short.startswith(("data/weights/", "data/constants/")):
            file = short.rpartition("/")[2]
            if file.endswith("_config.json"):
                yield from _payloads(json.loads(archive.read(name)))
            elif not _PAYLOAD.fullmatch(file):
                yield f"an object that is no tensor ({file[:80]})"
        elif short.startswith("models/"):
            yield from _strings(json.loads(archive.read(name)))


def _payloads(config: Any) -> Iterator[str]:
    entries = config.get("config", {}) if isinstance(config, dict) else {}
    for name, entry in entries.items():
        if entry.get("use_pickle"):
            yield f"a pickled tensor ({str(name)[:80]})"
        if not _PAYLOAD.fullmatch(str(entry.get("path_name"))):
            yield f"an object that is no tensor ({str(name)[:80]})"


def _strings(value: Any, key: str = "") -> Iterator[str]:
    """Yield what is said in the program's JSON and is more than names, operators and arithmetic."""
    if isinstance(value, dict):
        for name, item in value.items():
            if not _NAME.fullmatch(name):
                yield f"a name that is none ({name[:80]!r})"
            if name not in _UNREAD:
                yield from _strings(item, name)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item, key)
    elif isinstance(value, str) and not _harmless(value, key):
        what = {"target": "an operator", "expr_str": "a size", "guards_code": "a guard"}.get(key, "a text")
        yield f"{what} that is none ({value[:80]!r})"


def _harmless(text: str, key: str) -> bool:
    if key == "target":
        return _TARGET.fullmatch(text) is not None
    if key in _EXPRESSIONS:
        return _is_arithmetic(text)
    if key in _TREES:
        return "__" not in text  # torch's marker of an enumeration, whose module it imports
    return _NAME.fullmatch(text) is not None


def _is_arithmetic(text: str) -> bool:
    """Whether ``text`` only computes with numbers, symbols and sizes."""
    if "__" in text:
        return False
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return False
    return _computes(tree)


def _computes(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        called = node.func
        known = (isinstance(called, ast.Name) and called.id in _FUNCTIONS) or (
            isinstance(called, ast.Attribute) and called.attr in _METHODS and _computes(called.value)
        )
        return known and all(map(_computes, (*node.args, *node.keywords)))
    return isinstance(node, _NODES) and all(map(_computes, ast.iter_child_nodes(node)))
