"""Writes files from a folder of templates; what is there already stays."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shipctl.errors import SpecError
from shipctl.templates import environment, folder

_SUFFIX = ".j2"


def render_tree(owner: str, variables: Mapping[str, Any]) -> dict[Path, str]:
    """Render every template of ``owner`` and return relative path to text.

    In names, `__key__` stands for the variable `key`.
    """
    root = folder(owner)
    templates = environment(owner)
    rendered: dict[Path, str] = {}
    for path in sorted(root.rglob(f"*{_SUFFIX}")):
        name = path.relative_to(root).as_posix()
        target = name.removesuffix(_SUFFIX)
        for key, value in variables.items():
            target = target.replace(f"__{key}__", str(value))
        rendered[Path(target)] = templates.get_template(name).render(variables)
    return rendered


def write_files(folder: Path, files: Mapping[Path, str], *, force: bool = False) -> list[Path]:
    """Write all files below ``folder``, or none; return their paths.

    :raises SpecError: if one exists and ``force`` is not given, or if one cannot be written
    """
    paths = {folder / name: text for name, text in files.items()}
    existing = [str(path) for path in paths if path.exists()]
    if existing and not force:
        noun = "exists" if len(existing) == 1 else "exist"
        message = f"{', '.join(existing)} {noun} already; nothing was written, --force overwrites"
        raise SpecError(message)
    for path, text in paths.items():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        except OSError as exc:
            message = f"cannot write {path}: {exc.strerror}"
            raise SpecError(message) from exc
    return list(paths)
