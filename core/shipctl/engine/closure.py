"""Which source files a stage or a model builder consists of, found from the text without importing it.

The closure holds the module itself and every module it imports, at any depth, that belongs to the same
top-level package or is the user's own (not installed into site-packages, not of the standard library).
Other installed packages count by their version, where a stage declares them as tools.
"""

from __future__ import annotations

import importlib.util
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path

from shipctl.engine.filecache import FileCache

CORE = "shipctl"
"""Core is left out: what stages rely on there is the plugin API, which has a version."""


@cache
def _installed() -> tuple[Path, ...]:
    paths = sysconfig.get_paths()
    return tuple({Path(paths[key]).resolve() for key in ("purelib", "platlib", "stdlib", "platstdlib")})


@cache
def _top_level(name: str) -> Path | None:
    """Return the folder of a top-level package, or the file of a module, without importing it."""
    if name in sys.stdlib_module_names or name == CORE:
        return None
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError, AttributeError):
        return None
    if spec is None:
        return None
    if spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations)))
    return Path(spec.origin) if spec.origin and spec.origin.endswith(".py") else None


def is_own(place: Path) -> bool:
    """Whether a module's place is the user's: not in site-packages and not in the standard library."""
    resolved = place.resolve()
    return not any(resolved.is_relative_to(folder) for folder in _installed())


def _files(top: Path, parts: Sequence[str]) -> Iterator[Path]:
    """Yield the files that importing ``top.parts…`` executes: every package on the way, then the module."""
    if top.is_file():
        yield top
        return
    here = top
    if (here / "__init__.py").is_file():
        yield here / "__init__.py"
    for part in parts:
        if (here / part).is_dir():
            here = here / part
            if (here / "__init__.py").is_file():
                yield here / "__init__.py"
        elif (here / f"{part}.py").is_file():
            yield here / f"{part}.py"
            return
        else:
            return


def _dotted(path: Path, top: Path, name: str) -> str:
    """Return the dotted package that relative imports in the file at ``path`` start from."""
    inner = path.relative_to(top).parent.parts if top.is_dir() else ()
    return ".".join((name, *inner))


def _absolute(imported: str, package: str) -> str:
    if not imported.startswith("."):
        return imported
    level = len(imported) - len(imported.lstrip("."))
    base = package.split(".")
    kept = base[: len(base) - (level - 1)]
    rest = imported[level:]
    return ".".join([*kept, rest] if rest else kept)


def module_closure(module: str, cache: FileCache, extra: Iterable[str] = ()) -> dict[str, str]:
    """Return the source files of a stage's module: name in its package to SHA-256.

    ``extra`` names modules that the text does not show (a stage's ``sources``).
    """
    own_package = module.partition(".")[0]
    found: dict[str, str] = {}
    seen: set[Path] = set()
    waiting = [module, *extra]
    while waiting:
        name, *parts = waiting.pop().split(".")
        top = _top_level(name)
        if top is None or (name != own_package and not is_own(top)):
            continue
        for path in _files(top, parts):
            if path in seen:
                continue
            seen.add(path)
            inner = path.relative_to(top).as_posix() if top.is_dir() else path.name
            found[f"{name}/{inner}"] = cache.digest(path)
            package = _dotted(path, top, name)
            waiting.extend(_absolute(imported, package) for imported in cache.imports(path))
    return found


def script_closure(script: Path, roots: Sequence[Path], cache: FileCache) -> tuple[set[Path], dict[str, str]]:
    """Return what a user's Python file consists of.

    First the files below ``roots``: itself and its own modules. Then the user's own modules elsewhere (an
    editable install), as :func:`module_closure` gives them.
    """
    seen: set[Path] = set()
    elsewhere: dict[str, str] = {}
    waiting = [script]
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        for imported in cache.imports(path):
            level = len(imported) - len(imported.lstrip("."))
            parts = [part for part in imported[level:].split(".") if part]
            bases = [path.parents[level - 1]] if level else list(roots)
            for base in bases:
                hits = list(_script_files(base, parts))
                waiting.extend(hits)
                if hits:
                    break
            else:
                top = _top_level(parts[0]) if parts and not level else None
                if top is not None and is_own(top):
                    elsewhere.update(module_closure(".".join(parts), cache))
    return seen, elsewhere


def _script_files(base: Path, parts: Sequence[str]) -> Iterator[Path]:
    if not parts:
        if (base / "__init__.py").is_file():
            yield base / "__init__.py"
        return
    head = base / parts[0]
    if head.is_dir():
        yield from _files(head, parts[1:])
    elif head.with_suffix(".py").is_file():
        yield head.with_suffix(".py")
