"""The registry of models: immutable versions, aliases with a history, and what needs a version."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from shipctl import GateError, SpecError, StoreError
from shipctl.errors import ShipctlError
from shipctl.records import canonical_json
from shipctl.store.log import Heads, audit
from shipctl.store.model_state import AbTest, Arm, ModelState
from shipctl.store.models import Description, ModelRegistry
from shipctl.store.objects import ObjectStore
from support_registry import deployed, folder_store, package, registered


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def objects(folder: Path) -> ObjectStore:
    return folder_store(folder)


@pytest.fixture
def registry(objects: ObjectStore) -> ModelRegistry:
    return ModelRegistry(objects, now=lambda: 100.0)


def refusal(kind: type[ShipctlError], call: Any) -> str:
    with pytest.raises(kind) as caught:
        call()
    assert type(caught.value) is kind
    return str(caught.value)


def ab(*arms: tuple[str, float], **fields: Any) -> AbTest:
    parts = tuple(Arm(version=version, weight=weight) for version, weight in arms)
    return AbTest(**{"name": "colours", "arms": parts, "started": 5.0, **fields})


# -- registering -----------------------------------------------------------------------------------------------


def test_a_registered_version_is_found_with_all_that_is_known_of_it(registry: ModelRegistry) -> None:
    made = package("1.0.0")
    about = Description(
        metrics={"accuracy": 0.98}, labels={"tier": "gold"}, owner="vision", contains={"model": "ab"}
    )
    lineage = {"spec": "cd", "data": {"evaluation": "ef"}, "run": "run-7"}
    version = registry.register(made, lineage=lineage, tags={"team": "vision"}, about=about)
    assert version == registry.resolve("digits@1.0.0")
    assert version.reference == "digits@1.0.0"
    assert version.digest == made.digest
    assert version.artifact() == made
    assert version.package == made.manifest()
    assert version.lineage == {**lineage, "parent": None}
    assert version.about == about
    assert (version.stage, version.aliases, version.tags) == (None, (), {"team": "vision"})
    assert (version.registered, version.retired) == (100.0, None)
    assert version.by.user


def test_metrics_that_are_no_numbers_survive(registry: ModelRegistry) -> None:
    registered(registry, "1.0.0", metrics={"drop": float("inf")})
    assert registry.resolve("digits").about.metrics == {"drop": float("inf")}


def test_the_same_package_again_changes_nothing(registry: ModelRegistry) -> None:
    first = registry.register(package(), lineage={})
    assert registry.register(package(), lineage={"run": "later"}, tags={"a": "b"}) == first
    assert len(registry.history("digits")) == 1


def test_a_version_is_immutable(registry: ModelRegistry) -> None:
    first = registry.register(package(), lineage={})
    other = package(content="another")
    assert refusal(GateError, lambda: registry.register(other, lineage={})) == (
        f"digits 1.0.0 is already registered with another digest ({first.digest[:12]}… and not {other.digest[:12]}…); "
        "versions are immutable: raise metadata.version"
    )
    assert registry.resolve("digits@1.0.0").digest == first.digest


def test_of_many_publishers_of_one_version_exactly_one_wins_and_the_others_are_told(folder: Path) -> None:
    def publish(number: int) -> str:
        registry = ModelRegistry(folder_store(folder))
        try:
            return registry.register(package(content=f"build {number}"), lineage={}).digest
        except GateError as exc:
            assert "versions are immutable" in str(exc)  # noqa: PT017  (in a thread)
            return ""

    with ThreadPoolExecutor(16) as threads:
        won = [digest for digest in threads.map(publish, range(16)) if digest]
    registry = ModelRegistry(folder_store(folder))
    assert won == [registry.resolve("digits@1.0.0").digest]
    assert len(registry.history("digits")) == 1
    assert [entry.action for entry in audit(folder_store(folder)).entries()] == ["register"]


def test_of_many_publishers_of_different_versions_all_get_in(folder: Path) -> None:
    def publish(number: int) -> str:
        return ModelRegistry(folder_store(folder)).register(package(f"1.{number}.0"), lineage={}).version

    with ThreadPoolExecutor(16) as threads:
        assert list(threads.map(publish, range(16))) == [f"1.{number}.0" for number in range(16)]
    registry = ModelRegistry(folder_store(folder))
    assert [version.version for version in registry.versions("digits")] == [f"1.{n}.0" for n in range(16)]
    assert len(registry.history("digits")) == 16
    assert len(audit(folder_store(folder)).entries()) == 16


@pytest.mark.parametrize("count", [8])
def test_the_same_package_from_many_publishers_is_registered_once(folder: Path, count: int) -> None:
    def publish(_: int) -> str:
        return ModelRegistry(folder_store(folder)).register(package(), lineage={}).digest

    with ThreadPoolExecutor(count) as threads:
        assert set(threads.map(publish, range(count))) == {package().digest}
    assert len(ModelRegistry(folder_store(folder)).history("digits")) == 1


@pytest.mark.parametrize(
    ("name", "version", "message"),
    [
        (
            "Digits",
            "1.0.0",
            "'Digits' is no name of a model; write at most 63 lower-case letters, digits and '-'",
        ),
        (
            "a/../b",
            "1.0.0",
            "'a/../b' is no name of a model; write at most 63 lower-case letters, digits and '-'",
        ),
        ("digits", "1.0", "'1.0' is not a semantic version; write three numbers, such as 1.4.0"),
    ],
)
def test_names_and_versions_are_checked(
    registry: ModelRegistry, name: str, version: str, message: str
) -> None:
    assert refusal(SpecError, lambda: registry.register(package(version, name=name), lineage={})) == message
    assert registry.models() == []


def test_a_version_comes_after_the_one_below_it(registry: ModelRegistry) -> None:
    registered(registry, "1.0.0", "2.0.0", "1.1.0-rc.1", "1.1.0", "3.0.0-rc.1")
    parents = {version.version: version.lineage["parent"] for version in registry.versions("digits")}
    assert parents == {
        "1.0.0": None,
        "1.1.0-rc.1": "1.0.0",
        "1.1.0": "1.0.0",
        "2.0.0": "1.0.0",
        "3.0.0-rc.1": "2.0.0",
    }


def test_a_publisher_may_name_the_parent(registry: ModelRegistry) -> None:
    registered(registry, "1.0.0", "2.0.0")
    assert registry.register(package("3.0.0"), lineage={"parent": "1.0.0"}).lineage["parent"] == "1.0.0"


# -- resolving -------------------------------------------------------------------------------------------------


def test_references_mean_a_version_an_alias_or_the_highest_release(registry: ModelRegistry) -> None:
    registered(registry, "1.9.0", "1.10.0", "2.0.0-rc.1")
    registry.alias("digits@1.9.0", "production")
    assert registry.resolve("digits@1.9.0").version == "1.9.0"
    assert registry.resolve("digits@production").version == "1.9.0"
    assert registry.resolve("digits@2.0.0-rc.1").version == "2.0.0-rc.1"
    assert registry.resolve("digits").version == "1.10.0"


def test_of_two_builds_of_one_version_the_later_is_meant(registry: ModelRegistry) -> None:
    registered(registry, "1.0.0+b", "1.0.0+a")
    assert registry.resolve("digits").version == "1.0.0+a"


def test_what_was_retired_is_not_meant(registry: ModelRegistry) -> None:
    registered(registry, "1.0.0", "1.1.0")
    registry.retire("digits@1.1.0")
    assert registry.resolve("digits").version == "1.0.0"


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("digit", "there is no model 'digit' in {uri}; did you mean 'digits'?"),
        ("digit@1.0.0", "there is no model 'digit' in {uri}; did you mean 'digits'?"),
        ("mnist", "there is no model 'mnist' in {uri}; there are digits"),
        ("digits@3.0.0", "digits has no version 3.0.0; did you mean '1.0.0'?"),
        ("digits@v7", "digits has no version v7; there are 2.0.0-rc.1, 1.0.0"),
        ("digits@prodution", "digits has no alias 'prodution'; did you mean 'production'?"),
        ("digits@blue", "digits has no alias 'blue'; it has production"),
        (
            "digits@latest",
            "digits has no alias latest; its highest version is digits without anything behind it",
        ),
        (
            "digits@0.9.0",
            "digits@0.9.0 was retired (leaks); use another version; there are 2.0.0-rc.1, 1.0.0",
        ),
        (
            "digits@",
            "'digits@' names no model; write NAME, NAME@VERSION or NAME@ALIAS, such as digits@1.0.0",
        ),
        (
            "digits@a@b",
            "'digits@a@b' names no model; write NAME, NAME@VERSION or NAME@ALIAS, such as digits@1.0.0",
        ),
        ("../x", "'../x' names no model; write NAME, NAME@VERSION or NAME@ALIAS, such as digits@1.0.0"),
    ],
)
def test_a_reference_that_means_nothing_says_what_may_have_been_meant(
    registry: ModelRegistry, objects: ObjectStore, reference: str, message: str
) -> None:
    registered(registry, "0.9.0", "1.0.0", "2.0.0-rc.1")
    registry.alias("digits@1.0.0", "production")
    registry.retire("digits@0.9.0", reason="leaks")
    assert refusal(SpecError, lambda: registry.resolve(reference)) == message.format(uri=objects.uri)


def test_a_model_with_nothing_to_mean_says_why(registry: ModelRegistry, objects: ObjectStore) -> None:
    assert refusal(SpecError, lambda: registry.resolve("digits")) == (
        f"there is no model 'digits' in {objects.uri}; nothing is registered yet"
    )
    registered(registry, "1.0.0-a", "1.0.0-b")
    assert refusal(SpecError, lambda: registry.resolve("digits")) == (
        "digits has only pre-releases: 1.0.0-b, 1.0.0-a; name one, such as digits@1.0.0-b"
    )
    registry.retire("digits@1.0.0-a")
    registry.retire("digits@1.0.0-b")
    assert refusal(SpecError, lambda: registry.resolve("digits")) == (
        "all versions of digits were retired: 1.0.0-b, 1.0.0-a; register a new one"
    )


def test_a_retired_version_can_still_be_looked_at(registry: ModelRegistry) -> None:
    registered(registry, "1.0.0")
    registry.retire("digits@1.0.0", reason="leaks")
    found = registry.find("digits@1.0.0")
    assert (found.retired, found.reason) == (100.0, "leaks")


# -- aliases, stages, tags -------------------------------------------------------------------------------------


def test_aliases_move_with_a_history_of_who_and_from_where(registry: ModelRegistry) -> None:
    registered(registry, "1.0.0", "1.1.0")
    assert registry.alias("digits@1.0.0", "staging", "production") == {
        "staging": (None, "1.0.0"),
        "production": (None, "1.0.0"),
    }
    assert registry.alias("digits@1.1.0", "staging", "blue") == {
        "staging": ("1.0.0", "1.1.0"),
        "blue": (None, "1.1.0"),
    }
    assert registry.alias("digits@staging", "production") == {"production": ("1.0.0", "1.1.0")}
    assert registry.resolve("digits@1.1.0").aliases == ("blue", "production", "staging")
    moves = [entry for entry in registry.history("digits") if entry.action == "alias"]
    assert moves[-1].details == {"aliases": {"production": {"from": "1.0.0", "to": "1.1.0"}}}
    assert moves[-1].subject == "digits@staging"
    assert moves[-1].actor.user


def test_an_alias_that_stands_there_already_changes_nothing(registry: ModelRegistry) -> None:
    registered(registry, "1.0.0")
    registry.alias("digits@1.0.0", "staging")
    assert registry.alias("digits@1.0.0", "staging") == {}
    assert len(registry.history("digits")) == 2


def test_aliases_are_removed(registry: ModelRegistry) -> None:
    registered(registry, "1.0.0")
    registry.alias("digits@1.0.0", "staging", "blue")
    assert registry.unalias("digits", "staging") == {"staging": "1.0.0"}
    assert registry.resolve("digits").aliases == ("blue",)
    assert refusal(SpecError, lambda: registry.unalias("digits", "staging")) == (
        "digits has no alias 'staging'; it has blue"
    )


@pytest.mark.parametrize(
    ("alias", "message"),
    [
        ("1.0.0", "'1.0.0' looks like a version, so it cannot be an alias; write a word, such as production"),
        ("v2", "'v2' looks like a version, so it cannot be an alias; write a word, such as production"),
        ("2.x", "'2.x' looks like a version, so it cannot be an alias; write a word, such as production"),
        ("latest", "'latest' cannot be an alias: the name of a model alone means its highest version"),
        ("Prod", "'Prod' is no alias; write lower-case letters, digits, '-' and '_', a letter first"),
        ("a@b", "'a@b' is no alias; write lower-case letters, digits, '-' and '_', a letter first"),
        ("", "'' is no alias; write lower-case letters, digits, '-' and '_', a letter first"),
    ],
)
def test_what_cannot_be_an_alias_is_refused(registry: ModelRegistry, alias: str, message: str) -> None:
    registered(registry, "1.0.0")
    assert refusal(SpecError, lambda: registry.alias("digits@1.0.0", alias)) == message


def test_an_alias_never_points_at_a_retired_version(registry: ModelRegistry) -> None:
    registered(registry, "1.0.0", "1.1.0")
    registry.retire("digits@1.0.0")
    assert refusal(SpecError, lambda: registry.alias("digits@1.0.0", "staging")) == (
        "digits@1.0.0 was retired; use another version; there are 1.1.0"
    )


def test_of_many_who_move_one_alias_every_move_is_in_the_history(folder: Path) -> None:
    versions = [f"1.{number}.0" for number in range(8)]
    registered(ModelRegistry(folder_store(folder)), *versions)

    def move(version: str) -> None:
        ModelRegistry(folder_store(folder)).alias(f"digits@{version}", "production")

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(move, versions))
    registry = ModelRegistry(folder_store(folder))
    moves = [e.details["aliases"]["production"] for e in registry.history("digits") if e.action == "alias"]
    assert moves[0]["from"] is None
    assert [move["from"] for move in moves[1:]] == [move["to"] for move in moves[:-1]]
    assert {move["to"] for move in moves} == set(versions)
    assert registry.resolve("digits@production").version == moves[-1]["to"]


def test_a_version_stands_in_a_stage(registry: ModelRegistry) -> None:
    registered(registry, "1.0.0")
    assert registry.set_stage("digits@1.0.0", "staging")
    assert not registry.set_stage("digits@1.0.0", "staging")
    assert registry.resolve("digits").stage == "staging"
    assert registry.history("digits")[-1].details == {"version": "1.0.0", "from": "none", "to": "staging"}
    assert registry.set_stage("digits@1.0.0", "none")
    assert registry.resolve("digits").stage is None


def test_a_stage_that_there_is_not_is_refused(registry: ModelRegistry) -> None:
    registered(registry, "1.0.0")
    assert refusal(SpecError, lambda: registry.set_stage("digits@1.0.0", "prodution")) == (
        "there is no stage 'prodution'; did you mean 'production'?"
    )
    assert refusal(SpecError, lambda: registry.set_stage("digits@1.0.0", "blue")) == (
        "there is no stage 'blue'; there are none, development, staging, production, archived"
    )


def test_models_and_versions_have_tags(registry: ModelRegistry) -> None:
    registered(registry, "1.0.0")
    assert registry.tag("digits@1.0.0", {"a": "1", "b": ""})
    assert registry.tag("digits", {"team": "vision"})
    assert not registry.tag("digits", {"team": "vision"})
    assert registry.resolve("digits").tags == {"a": "1", "b": ""}
    assert registry.state("digits").tags == {"team": "vision"}
    assert registry.untag("digits@1.0.0", "a")
    assert registry.resolve("digits").tags == {"b": ""}
    assert refusal(SpecError, lambda: registry.untag("digits@1.0.0", "c")) == (
        "digits@1.0.0 has no tag 'c'; it has b"
    )
    assert refusal(SpecError, lambda: registry.untag("digits", "tem")) == (
        "digits has no tag 'tem'; did you mean 'team'?"
    )
    assert refusal(SpecError, lambda: registry.tag("digits", {"a b": "1"})) == (
        "'a b' is no key of a tag; write letters, digits and . _ - / in it"
    )


# -- A/B -------------------------------------------------------------------------------------------------------


def test_an_ab_test_is_kept_with_the_model(registry: ModelRegistry) -> None:
    registered(registry, "1.0.0", "1.1.0")
    registry.alias("digits@1.1.0", "candidate")
    assert registry.configure_ab(
        "digits", ab(("1.0.0", 90), ("candidate", 10), key="header:x-user", metric="ctr")
    )
    kept = registry.state("digits").ab
    assert kept == ab(("1.0.0", 90), ("1.1.0", 10), key="header:x-user", metric="ctr")
    assert not registry.configure_ab(
        "digits", ab(("1.0.0", 90), ("1.1.0", 10), key="header:x-user", metric="ctr", started=9)
    )
    assert registry.configure_ab("digits", None)
    assert not registry.configure_ab("digits", None)
    assert registry.state("digits").ab is None


@pytest.mark.parametrize(
    ("test", "message"),
    [
        (
            ab(("1.0.0", 100)),
            "an A/B test of digits needs two arms or more; write --arm VERSION=WEIGHT for each",
        ),
        (
            ab(("1.0.0", 50), ("1.0.0", 50)),
            "digits@1.0.0 is an arm twice; give each arm a version of its own",
        ),
        (
            ab(("1.0.0", 50), ("1.1.0", 40)),
            "the weights of the arms are 90 together; they are percentages, so let them be 100",
        ),
        (ab(("1.0.0", 50), ("1.2.0", 50)), "digits has no version 1.2.0; did you mean '1.1.0'?"),
        (
            ab(("1.0.0", 50), ("1.1.0", 50), key="x-user"),
            "'x-user' recognises no user; write header:NAME or cookie:NAME, such as header:x-user",
        ),
    ],
)
def test_an_ab_test_that_makes_no_sense_is_refused(
    registry: ModelRegistry, test: AbTest, message: str
) -> None:
    registered(registry, "1.0.0", "1.1.0")
    assert refusal(SpecError, lambda: registry.configure_ab("digits", test)) == message


# -- retiring --------------------------------------------------------------------------------------------------


def test_a_version_that_nothing_needs_is_retired_once(registry: ModelRegistry) -> None:
    registered(registry, "1.0.0", "1.1.0")
    done = registry.retire("digits@1.0.0", reason="leaks")
    assert (done.version, done.aliases, done.deployments, done.changed) == ("1.0.0", (), (), True)
    assert not registry.retire("digits@1.0.0").changed
    assert registry.history("digits")[-1].details == {
        "reason": "leaks",
        "forced": False,
        "version": "1.0.0",
        "aliases": [],
        "ab": None,
    }


def test_a_version_that_is_needed_is_not_retired_and_all_that_needs_it_is_named(
    registry: ModelRegistry, objects: ObjectStore
) -> None:
    versions = registered(registry, "1.0.0", "1.1.0")
    registry.alias("digits@1.0.0", "production")
    registry.configure_ab("digits", ab(("1.0.0", 50), ("1.1.0", 50)))
    deployed(objects, serving=[versions["1.0.0"].digest], target="local")
    deployed(objects, manifests=[versions["1.0.0"].digest, versions["1.1.0"].digest], target="edge")
    text = refusal(GateError, lambda: registry.retire("digits@production"))
    assert (
        text.splitlines()[0] == "digits@1.0.0 is needed and was not retired (or give --force --reason TEXT):"
    )
    assert sorted(text.splitlines()[1:]) == [
        (
            "  alias production points at it: `shipctl registry alias digits@VERSION production`, or `shipctl registry "
            "alias digits production --delete`"
        ),
        "  it is an arm of the A/B test colours: `shipctl registry ab digits --clear`",
        (
            "  stage release of digits on edge (from gpu-7) may go back to it: release newer versions there until it "
            "does not, or `shipctl down`"
        ),
        "  stage release of digits on local (from gpu-7) serves it: release another version there, or `shipctl down`",
    ]
    assert registry.resolve("digits@1.0.0").retired is None


def test_force_drops_what_points_at_it_and_leaves_what_is_deployed(
    registry: ModelRegistry, objects: ObjectStore
) -> None:
    versions = registered(registry, "1.0.0", "1.1.0")
    registry.alias("digits@1.0.0", "production")
    registry.alias("digits@1.1.0", "staging")
    registry.configure_ab("digits", ab(("1.0.0", 50), ("1.1.0", 50)))
    deployed(objects, serving=[versions["1.0.0"].digest])
    before = {info.key: objects.read(info.key) for info in objects.list("deployments/")}
    done = registry.retire("digits@1.0.0", reason="leaks", force=True)
    assert (done.aliases, done.ab) == (("production",), "colours")
    assert [deployment.target for deployment in done.deployments] == ["local"]
    state = registry.state("digits")
    assert (state.aliases, state.ab) == ({"staging": "1.1.0"}, None)
    assert {info.key: objects.read(info.key) for info in objects.list("deployments/")} == before


@pytest.mark.parametrize("reason", [None, "", "  "])
def test_force_needs_a_reason(registry: ModelRegistry, reason: str | None) -> None:
    registered(registry, "1.0.0")
    assert refusal(SpecError, lambda: registry.retire("digits@1.0.0", reason=reason, force=True)) == (
        "digits@1.0.0 is retired by force only with a reason; give --reason TEXT"
    )


def test_a_retirement_names_the_version(registry: ModelRegistry) -> None:
    registered(registry, "1.0.0")
    assert refusal(SpecError, lambda: registry.retire("digits")) == (
        "which version of digits is meant? write digits@VERSION"
    )


def test_a_retired_version_is_never_used_again(registry: ModelRegistry) -> None:
    registered(registry, "1.0.0")
    registry.retire("digits@1.0.0")
    assert refusal(GateError, lambda: registered(registry, "1.0.0")) == (
        "digits 1.0.0 was retired; a version is never used again: raise metadata.version"
    )


def test_what_is_deployed_may_be_named_by_what_is_in_the_package(
    registry: ModelRegistry, objects: ObjectStore
) -> None:
    registered(registry, "1.0.0", contains={"repository": "abc"})
    deployed(objects, serving=["abc"])
    assert "serves it" in refusal(GateError, lambda: registry.retire("digits@1.0.0"))


def test_a_deployment_of_another_version_with_the_same_model_is_none_of_this_one(
    registry: ModelRegistry, objects: ObjectStore
) -> None:
    versions = registered(registry, "1.0.0", "1.1.0", contains={"repository": "abc"})
    deployed(objects, serving=["abc", versions["1.1.0"].digest])
    assert registry.retire("digits@1.0.0").changed


@pytest.mark.parametrize("body", [b"{", b"[]", b"{}", b'{"pipeline": "p"}'])
def test_a_damaged_deployment_lets_nothing_be_retired(
    registry: ModelRegistry, objects: ObjectStore, body: bytes
) -> None:
    registered(registry, "1.0.0")
    objects.write("deployments/x.json", body)
    assert refusal(StoreError, lambda: registry.retire("digits@1.0.0")) == (
        "cannot read deployments/x.json in the store, so nobody knows what that deployment needs; apply its spec "
        "again, or remove it if there is no such deployment"
    )


def test_an_alias_that_is_set_while_a_version_retires_wins_or_is_refused(folder: Path) -> None:
    for attempt in range(10):
        name = f"digits-{attempt}"
        registered(ModelRegistry(folder_store(folder)), "1.0.0", "1.1.0", name=name)

        def point(name: str = name) -> bool:
            try:
                return bool(ModelRegistry(folder_store(folder)).alias(f"{name}@1.0.0", "production"))
            except SpecError:
                return False

        def leave(name: str = name) -> bool:
            try:
                return ModelRegistry(folder_store(folder)).retire(f"{name}@1.0.0").changed
            except GateError:
                return False

        with ThreadPoolExecutor(2) as threads:
            first, second = threads.submit(point), threads.submit(leave)
        assert first.result() != second.result()


# -- the logs --------------------------------------------------------------------------------------------------


def test_every_change_is_in_the_audit_log_with_its_place(
    registry: ModelRegistry, objects: ObjectStore
) -> None:
    registered(registry, "1.0.0", "1.1.0")
    registry.alias("digits@1.0.0", "production")
    registry.unalias("digits", "production")
    registry.set_stage("digits@1.0.0", "staging")
    registry.tag("digits", {"a": "b"})
    registry.untag("digits", "a")
    registry.configure_ab("digits", ab(("1.0.0", 50), ("1.1.0", 50)))
    registry.configure_ab("digits", None)
    registry.retire("digits@1.0.0")
    entries = audit(objects).entries()
    assert [entry.action for entry in entries] == [
        *("register", "register", "alias", "unalias", "stage", "tag", "untag", "ab", "ab", "retire")
    ]
    history = registry.history("digits")
    assert [entry.details["entry_digest"] for entry in entries] == [entry.digest for entry in history]
    assert entries[0].details == {
        "version": "1.0.0",
        "digest": package("1.0.0").digest,
        "log": "registry/digits",
        "entry": 1,
        "entry_digest": history[0].digest,
    }


def test_a_change_that_cannot_be_audited_is_not_made(registry: ModelRegistry, objects: ObjectStore) -> None:
    registered(registry, "1.0.0")
    objects.write("audit/00000001.json", b"{")
    text = refusal(StoreError, lambda: registry.alias("digits@1.0.0", "production"))
    assert text.startswith("entry 1 of log audit of ")
    assert registry.state("digits").aliases == {}


def test_models_are_listed_with_their_states(registry: ModelRegistry) -> None:
    assert registry.models() == []
    assert registry.get("digits") is None
    registered(registry, "1.0.0")
    assert registry.get("digits") == registry.state("digits")
    registered(registry, "2.0.0", "2.1.0", name="iris")
    assert registry.models() == ["digits", "iris"]
    assert {name: state.latest() for name, state in registry.states().items()} == {
        "digits": "1.0.0",
        "iris": "2.1.0",
    }


def test_an_altered_registration_is_refused(registry: ModelRegistry, objects: ObjectStore) -> None:
    registered(registry, "1.0.0", "1.1.0")
    key = registry.log("digits").key(1)
    document = json.loads(objects.read(key) or b"")
    document["details"]["about"]["metrics"] = {"accuracy": 1.0}
    objects.write(key, canonical_json(document))
    assert refusal(StoreError, lambda: registry.resolve("digits@1.0.0")) == (
        f"entry 1 of log registry/digits of {objects.uri} is not what registered digits@1.0.0: it was altered; "
        "`shipctl registry history digits` tells where"
    )
    assert registry.resolve("digits@1.1.0").version == "1.1.0"
    assert "does not follow entry 1" in refusal(StoreError, lambda: registry.history("digits"))


def test_a_machine_that_saw_a_version_notices_that_it_was_taken_away(
    tmp_path: Path, objects: ObjectStore, folder: Path
) -> None:
    registry = ModelRegistry(objects, heads=Heads(tmp_path / "heads.json"))
    registered(registry, "1.0.0", "1.1.0")
    (folder / "registry" / "digits" / "00000002.json").unlink()
    text = refusal(StoreError, lambda: registry.resolve("digits"))
    assert text.startswith(
        f"log registry/digits of {objects.uri} ends at entry 1, and entry 2 was seen here before"
    )
    assert refusal(StoreError, registry.states) == text


def test_a_state_of_a_newer_shipctl_is_said(registry: ModelRegistry) -> None:
    registry.log("digits").append("register", "digits@1.0.0", {}, fold=lambda _: {"future": True})
    assert refusal(StoreError, lambda: registry.resolve("digits")) == (
        "cannot read what the registry says of digits (1 errors): a newer version of shipctl wrote it; update this one"
    )


def test_a_state_of_many_versions_stays_small(registry: ModelRegistry, objects: ObjectStore) -> None:
    state = ModelState()
    registered(registry, "1.0.0")
    state = registry.state("digits")
    one = state.versions["1.0.0"]
    many = state.model_copy(update={"versions": {f"1.{n}.0": one for n in range(500)}})
    assert len(many.model_dump_json()) < 170_000
