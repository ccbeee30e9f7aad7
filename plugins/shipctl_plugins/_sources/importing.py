"""A user's own Python file: importing it without a trace, and saying in one line what fails in it."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from shipctl.errors import StageError


@contextmanager
def imported_function(reference: str, root: Path, what: str) -> Iterator[Callable[..., Any]]:
    """Import ``reference``, a `path/in/root.py:function`; its modules can be imported only inside.

    ``root`` is an artifact's: its folder, or its only file. ``what`` names the thing in messages: `builder`.

    :raises StageError: if there is no such file or function, or the file does not import
    """
    base = root.parent if root.is_file() else root
    with importable(reference, base, what) as module:
        name = reference.partition(":")[2]
        function = getattr(module, name, None)
        if not callable(function):
            there = ", ".join(sorted(key for key, value in vars(module).items() if inspect.isfunction(value)))
            message = f"{what} {reference}: there is no function {name!r}, only {there or 'none'}"
            raise StageError(message)
        yield function


def describe(exc: BaseException, base: Path | None = None) -> str:
    """Return an exception in one line, with the file and line below ``base`` that it comes from."""
    text = f"{type(exc).__name__}: {str(exc).strip().partition(chr(10))[0]}"
    if base is not None:
        for frame in reversed(traceback.extract_tb(exc.__traceback__)):
            path = Path(frame.filename)
            if path.is_relative_to(base):
                return f"{text} ({path.relative_to(base).as_posix()}:{frame.lineno})"
    return text


@contextmanager
def importable(reference: str, base: Path, what: str) -> Iterator[ModuleType]:
    """Import the file of ``reference``; all modules below ``base`` are gone again afterwards.

    Two models may have modules of the same names, and a worker is used for many stages.
    """
    relative = reference.partition(":")[0]
    file = base / relative
    if not file.is_file():
        there = ", ".join(sorted(path.relative_to(base).as_posix() for path in base.rglob("*.py")))
        message = f"{what} {reference}: there is no file {relative}, only {there or 'none'}"
        raise StageError(message)
    name, folder = _module_name(file)
    folders = list(dict.fromkeys(map(str, (folder, base))))
    own = {Path(found).stem for place in folders for found in _entries(place)} - sys.stdlib_module_names
    hidden = {key: module for key, module in sys.modules.items() if key.partition(".")[0] in own}
    before, path_before, bytecode_before = set(sys.modules), list(sys.path), sys.dont_write_bytecode
    for key in hidden:
        del sys.modules[key]
    sys.path[:0] = folders
    # the artifact's folder is read-only, and a cache there would be a file more
    sys.dont_write_bytecode = True
    importlib.invalidate_caches()
    try:
        try:
            module = _import_file(name, file)
        except Exception as exc:  # a model's module may raise anything
            message = f"{what} {reference} does not import: {describe(exc, base)}"
            raise StageError(message) from exc
        yield module
    finally:
        for key in [key for key, module in sys.modules.items() if key not in before or key in hidden]:
            if _lies_below(sys.modules[key], base):
                del sys.modules[key]
        sys.modules.update(hidden)
        sys.path[:] = path_before
        sys.dont_write_bytecode = bytecode_before
        for place in folders:
            sys.path_importer_cache.pop(place, None)


def _module_name(file: Path) -> tuple[str, Path]:
    """Return the dotted name of ``file`` and the folder that has to be on the path for it."""
    parts, folder = [file.stem], file.parent
    while (folder / "__init__.py").is_file():
        parts.insert(0, folder.name)
        folder = folder.parent
    return ".".join(parts), folder


def _entries(folder: str) -> list[Path]:
    """Return the modules and packages directly in ``folder``; one without `__init__.py` never shadows another."""
    return [p for p in Path(folder).iterdir() if p.suffix == ".py" or (p / "__init__.py").is_file()]


def _import_file(name: str, file: Path) -> ModuleType:
    if "." in name:
        return importlib.import_module(name)
    # by its file, and not in the place of a loaded module that is called like it
    name = f"_shipctl_{name}" if name in sys.modules else name
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        message = f"{file.name} is not a Python file"
        raise ImportError(message)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _lies_below(module: ModuleType, base: Path) -> bool:
    origin = getattr(module, "__file__", None)
    if origin:
        return Path(origin).is_relative_to(base)
    return any(Path(place).is_relative_to(base) for place in getattr(module, "__path__", ()))
