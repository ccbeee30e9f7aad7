"""Frameworks that take seconds to import, for the files of tests that use them: imported by the first test to do so."""

from __future__ import annotations

import warnings
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import pytest


def skip_without(name: str, *, reason: str) -> None:
    """Skip the file where the module ``name`` is not installed, as :func:`pytest.importorskip` does."""
    try:
        there = find_spec(name) is not None
    except ModuleNotFoundError:  # a parent of a dotted name
        there = False
    if not there:
        pytest.skip(reason, allow_module_level=True)


def lazy(name: str, *, reason: str) -> Any:
    """Return the module ``name``, which is imported when it is first asked for something; skip the file without it."""
    skip_without(name, reason=reason)
    return _Lazy(name)


class _Lazy(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # pytest asks whatever a file has what it is
            raise AttributeError(name)
        return getattr(self._module(), name)

    def __dir__(self) -> list[str]:
        return dir(self._module())

    def _module(self) -> ModuleType:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # as at collection: what a framework says of itself fails no test
            return import_module(self.__name__)
