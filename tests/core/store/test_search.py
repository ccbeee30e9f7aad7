"""Searches over registered versions."""

from __future__ import annotations

import math

import pytest

from shipctl import SpecError
from shipctl.store.models import ModelRegistry
from shipctl.store.search import search
from support_registry import folder_store, package, registered


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> ModelRegistry:
    registry = ModelRegistry(folder_store(tmp_path_factory.mktemp("store")))
    registered(registry, "1.0.0", metrics={"accuracy": 0.95, "latency.p95": 0.030}, owner="vision")
    registered(
        registry,
        "1.1.0",
        metrics={"accuracy": 0.98, "latency.p95": 0.010, "drop": math.nan, "size": 3 * 2**20},
        owner="vision",
        description="Reads handwritten digits",
        labels={"tier": "gold"},
        license="Apache-2.0",
    )
    registered(registry, "1.2.0-rc.1", metrics={"accuracy": 0.99})
    registered(registry, "0.5.0", name="iris", metrics={"accuracy": 0.97}, description="Tells flowers apart")
    registered(registry, "0.1.0", name="old", metrics={"accuracy": 0.99})
    registry.register(
        package("0.6.0", name="iris"),
        lineage={"data": {"evaluation": "feed42"}, "spec": "ab"},
        tags={"team": "botany"},
    )
    registry.alias("digits@1.1.0", "production")
    registry.set_stage("digits@1.1.0", "production")
    registry.tag("digits", {"team": "ocr"})
    registry.tag("digits@1.0.0", {"note": "two words", "team": "ml"})
    registry.retire("old@0.1.0")
    return registry


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", "digits@1.2.0-rc.1 digits@1.1.0 digits@1.0.0 iris@0.6.0 iris@0.5.0"),
        ("digits", "digits@1.2.0-rc.1 digits@1.1.0 digits@1.0.0"),
        ("DIGITS@1.1", "digits@1.1.0"),
        ("handwritten", "digits@1.1.0"),
        ("'flowers apart'", "iris@0.5.0"),
        ("flowers digits", ""),
        ("vision", "digits@1.1.0 digits@1.0.0"),
        ("botany", "iris@0.6.0"),
        ("gold", "digits@1.1.0"),
        ("production", "digits@1.1.0"),
        ("name:i*", "iris@0.6.0 iris@0.5.0"),
        ("name:di version:1.1.0", ""),
        ("version:1.?.0", "digits@1.1.0 digits@1.0.0"),
        ("stage:production", "digits@1.1.0"),
        ("stage:none name:digits", "digits@1.2.0-rc.1 digits@1.0.0"),
        ("alias:prod*", "digits@1.1.0"),
        ("owner:vision license:Apache*", "digits@1.1.0"),
        ("parent:1.0.0", "digits@1.1.0"),
        ("data:evaluation", "iris@0.6.0"),
        ("data:feed42", "iris@0.6.0"),
        ("spec:ab", "iris@0.6.0"),
        ("run:run-1.1.0", "digits@1.1.0"),
        (f"digest:{package('1.1.0').digest[:10]}*", "digits@1.1.0"),
        ("tag:team", "digits@1.2.0-rc.1 digits@1.1.0 digits@1.0.0 iris@0.6.0"),
        ("tag:team=ocr", "digits@1.2.0-rc.1 digits@1.1.0"),
        ("tag:team=ml", "digits@1.0.0"),
        ("'tag:note=two words'", "digits@1.0.0"),
        ("label:tier=g*", "digits@1.1.0"),
        ("label:tier=silver", ""),
        ("is:retired", "old@0.1.0"),
        ("is:prerelease", "digits@1.2.0-rc.1"),
        ("is:aliased", "digits@1.1.0"),
        ("accuracy>=0.97", "digits@1.2.0-rc.1 digits@1.1.0 iris@0.5.0"),
        ("accuracy>0.97", "digits@1.2.0-rc.1 digits@1.1.0"),
        ("accuracy<=95%", "digits@1.0.0"),
        ("accuracy=0.98", "digits@1.1.0"),
        ("accuracy!=0.98 name:digits", "digits@1.2.0-rc.1 digits@1.0.0"),
        ("latency.p95<20ms", "digits@1.1.0"),
        ("latency.p95<0.02", "digits@1.1.0"),
        ("size>=3MiB", "digits@1.1.0"),
        ("drop!=0", ""),
        ("drop<1", ""),
        ("xyz>0", ""),
        ("accuracy>0.9 stage:production", "digits@1.1.0"),
    ],
)
def test_every_word_of_a_query_has_to_hold(registry: ModelRegistry, query: str, expected: str) -> None:
    assert " ".join(version.reference for version in search(registry, query)) == expected


def test_the_account_that_registered_is_searched(registry: ModelRegistry) -> None:
    who = registry.resolve("iris").by
    assert len(search(registry, f"by:{who.user} name:iris")) == 2
    assert search(registry, "by:nobody-of-that-name") == []


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("nam:x", "there is no field 'nam' to search; did you mean 'name'?"),
        (
            "colour:x",
            (
                "there is no field 'colour' to search; there are alias, by, data, digest, is, label, license, name, "
                "owner, parent, 5 more"
            ),
        ),
        ("stage:", "'stage:' lacks what stage has to be; write stage:VALUE"),
        ("is:retird", "'is:retird' means nothing; did you mean 'retired'?"),
        ("is:x", "'is:x' means nothing; write is:retired or is:prerelease or is:aliased"),
        (
            "accuracy>much",
            "cannot compare with 'much' in 'accuracy>much'; write a number, such as 0.97, 97%, 20ms or 3MiB",
        ),
        (
            "accuracy>nan",
            "cannot compare with 'nan' in 'accuracy>nan'; write a number, such as 0.97, 97%, 20ms or 3MiB",
        ),
        ("'open", """cannot read the query "'open": no closing quotation; close the quotes"""),
    ],
)
def test_a_query_without_a_meaning_is_refused(registry: ModelRegistry, query: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        search(registry, query)
    assert str(caught.value) == message
