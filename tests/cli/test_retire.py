"""`shipctl retire`."""

from __future__ import annotations

import pytest

from shipctl.store.models import ModelRegistry
from shipctl.testing.fixtures import SampleProject
from support_cli import Call
from support_registry import deployed, folder_store, registered


@pytest.fixture
def registry(project: SampleProject, monkeypatch: pytest.MonkeyPatch) -> ModelRegistry:
    """The project's own registry with two versions of a model."""
    monkeypatch.delenv("SHIPCTL_STORE", raising=False)
    registry = ModelRegistry(folder_store(project.root / ".shipctl" / "store"))
    registered(registry, "1.0.0", "1.1.0")
    return registry


def test_a_version_that_nothing_needs_is_retired(registry: ModelRegistry, call: Call) -> None:
    result = call("retire", "digits@1.0.0", "--reason", "leaks")
    assert (result.exit_code, result.lines, result.stderr) == (0, ["digits@1.0.0 is retired"], "")
    assert registry.find("digits@1.0.0").reason == "leaks"
    assert call("retire", "digits@1.0.0").lines == ["digits@1.0.0 was retired before; nothing was changed"]


def test_what_was_retired_cannot_be_meant_any_more(registry: ModelRegistry, call: Call) -> None:
    call("retire", "digits@1.0.0", "--reason", "leaks")
    result = call("registry", "alias", "digits@1.0.0", "production")
    assert (result.exit_code, result.stderr) == (
        2,
        "error: digits@1.0.0 was retired (leaks); use another version; there are 1.1.0\n",
    )


def test_a_version_that_is_needed_is_refused_with_what_to_do(registry: ModelRegistry, call: Call) -> None:
    registry.alias("digits@1.0.0", "production")
    deployed(registry.objects, serving=[registry.resolve("digits@1.0.0").digest])
    result = call("retire", "digits@production")
    assert (result.exit_code, result.stderr) == (
        4,
        (
            "error: digits@1.0.0 is needed and was not retired (or give --force --reason TEXT):\n"
            "  alias production points at it: `shipctl registry alias digits@VERSION production`, or `shipctl registry "
            "alias digits production --delete`\n"
            "  stage release of digits on local (from gpu-7) serves it: release another version there, or "
            "`shipctl down`\n"
        ),
    )


def test_force_needs_a_reason(registry: ModelRegistry, call: Call) -> None:
    result = call("retire", "digits@1.0.0", "--force")
    assert (result.exit_code, result.stderr) == (
        2,
        "error: digits@1.0.0 is retired by force only with a reason; give --reason TEXT\n",
    )


def test_force_drops_aliases_and_leaves_what_is_deployed(registry: ModelRegistry, call: Call) -> None:
    registry.alias("digits@1.0.0", "production", "blue")
    arms = ["--arm", "1.0.0=50", "--arm", "1.1.0=50", "--name", "colours"]
    assert call("registry", "ab", "digits", *arms).exit_code == 0
    deployed(registry.objects, serving=[registry.resolve("digits@1.0.0").digest])
    before = [registry.objects.read(info.key) for info in registry.objects.list("deployments/")]
    result = call("retire", "digits@1.0.0", "--force", "--reason", "leaks")
    assert (result.exit_code, result.lines, result.stderr) == (
        0,
        [
            "digits@1.0.0 is retired",
            "  alias blue is gone",
            "  alias production is gone",
            "  the A/B test colours is gone",
        ],
        "warning: release on local (from gpu-7) still needs digits@1.0.0; its files stay as long\n",
    )
    assert [registry.objects.read(info.key) for info in registry.objects.list("deployments/")] == before


def test_retire_as_json(registry: ModelRegistry, call: Call) -> None:
    registry.alias("digits@1.0.0", "production")
    document = call("retire", "digits@production", "--force", "--reason", "leaks", "--json").document
    assert document == {
        "schema": "shipctl.retire/1",
        "store": registry.objects.uri,
        "name": "digits",
        "version": "1.0.0",
        "changed": True,
        "aliases": ["production"],
        "ab": None,
        "deployments": [],
    }


def test_a_retirement_names_the_version(registry: ModelRegistry, call: Call) -> None:
    result = call("retire", "digits")
    assert (result.exit_code, result.stderr) == (
        2,
        "error: which version of digits is meant? write digits@VERSION\n",
    )


def test_a_retirement_is_in_the_history_of_the_model_and_in_the_audit_log(
    registry: ModelRegistry, call: Call
) -> None:
    call("retire", "digits@1.0.0", "--reason", "leaks")
    assert "retire    digits@1.0.0  reason leaks" in call("registry", "history", "digits").lines[0]
    assert " retire  digits@1.0.0" in call("history", "--audit").lines[0]
