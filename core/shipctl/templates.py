"""The one Jinja2 environment that every template of shipctl is rendered in."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Environment


def folder(owner: str) -> Path:
    """Return the folder of the templates of ``owner`` (`triton`, `report`, …)."""
    return Path(str(files("shipctl_templates"))) / owner


def environment(owner: str, *, html: bool = False) -> Environment:
    """Return an environment over that folder: an undefined name is an error, ``html`` escapes values."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(folder(owner)),
        undefined=StrictUndefined,
        autoescape=html,  # noqa: S701  (config.pbtxt and YAML are no HTML; pages ask for `html`)
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
