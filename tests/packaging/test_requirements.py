"""Whatever is imported is declared: by the base where core imports it, by an extra where only a plugin does."""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from shipctl.stages.registry import Registry

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OURS = {"shipctl", "shipctl_plugins", "shipctl_templates"}
# Modules that come with a declared distribution and are part of its interface.
COMES_WITH = {"botocore": "boto3", "grpc": "tritonclient", "pydantic_core": "pydantic"}
# Run by Triton in the server's own environment, which has what they import.
ELSEWHERE = "_triton/backend"


def names(requirements: Iterable[str]) -> set[str]:
    return {canonicalize_name(Requirement(text).name) for text in requirements}


@cache
def owners() -> Mapping[str, list[str]]:
    """Return the distributions that bring each top-level module; looking takes a quarter of a second."""
    return packages_distributions()


BASE = names(PROJECT["dependencies"])
EXTRAS = {extra: names(texts) for extra, texts in PROJECT["optional-dependencies"].items()}


def imported(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield the top-level name of each import below ``folder``, wherever in a module it stands."""
    for path in folder.rglob("*.py"):
        if ELSEWHERE in path.as_posix():
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from ((alias.name.partition(".")[0], path) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                yield node.module.partition(".")[0], path


def undeclared(folder: str, declared: set[str]) -> list[str]:
    """Return the imports below ``folder`` that none of the ``declared`` distributions brings."""
    faults = set()
    for module, path in imported(ROOT / folder):
        if module in sys.stdlib_module_names or module in OURS:
            continue
        brought_by = {
            canonicalize_name(name) for name in owners().get(module, [COMES_WITH.get(module, module)])
        }
        if not (brought_by | {COMES_WITH.get(module, module)}) & declared:
            faults.add(f"{path.relative_to(ROOT)}: {module}")
    return sorted(faults)


def test_core_imports_only_what_the_base_install_brings() -> None:
    assert undeclared("core", BASE | names(["pytest"])) == []  # shipctl.testing is for those who have pytest


def test_plugins_import_only_what_the_base_install_or_an_extra_brings() -> None:
    assert undeclared("plugins", BASE.union(*EXTRAS.values())) == []


@pytest.mark.parametrize("name", PROJECT["entry-points"]["shipctl.stages"])
def test_a_stage_says_what_brings_the_modules_it_requires(name: str) -> None:
    for module, source in Registry().load(name).requires.items():
        requirement = Requirement(source)
        assert requirement.name == "shipctl", source
        declared = BASE.union(*(EXTRAS[extra] for extra in requirement.extras))
        brought_by = {canonicalize_name(owner) for owner in owners().get(module.partition(".")[0], [module])}
        assert brought_by & declared, f"{source} does not bring {module!r}"


def test_the_two_runtimes_are_separate_extras() -> None:
    assert EXTRAS["cpu"] == {"onnxruntime"}
    assert EXTRAS["gpu"] == {"onnxruntime-gpu"}
    for extra, distributions in EXTRAS.items():
        if extra not in {"cpu", "gpu"}:
            assert distributions.isdisjoint({"onnxruntime", "onnxruntime-gpu"}), extra


def test_constraints_pin_every_direct_requirement_inside_its_range() -> None:
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    lines = (line.partition("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines())
    pins = {
        canonicalize_name(r.name): next(iter(r.specifier)).version
        for r in map(Requirement, filter(None, lines))
    }
    direct = [
        *PROJECT["dependencies"],
        *(text for texts in PROJECT["optional-dependencies"].values() for text in texts),
    ]
    direct += [text for group in groups.values() for text in group if isinstance(text, str)]
    for text in direct:
        requirement = Requirement(text)
        if requirement.name in {"onnxruntime-gpu", "tensorrt"}:
            continue  # tested on machines with a GPU only
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), text
