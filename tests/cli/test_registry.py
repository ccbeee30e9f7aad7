"""`shipctl registry`."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from shipctl.cli.documents.every import EVERY_DOCUMENT
from shipctl.records import canonical_json
from shipctl.store.models import Description, ModelRegistry
from shipctl.testing.fixtures import SampleProject
from support_cli import Call
from support_registry import folder_store, package, registered

WHEN = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"


@pytest.fixture
def registry(project: SampleProject, monkeypatch: pytest.MonkeyPatch) -> ModelRegistry:
    """The project's own registry, with three versions of a model and one of another."""
    monkeypatch.delenv("SHIPCTL_STORE", raising=False)
    monkeypatch.setattr("getpass.getuser", lambda: "ada")
    monkeypatch.setattr("socket.gethostname", lambda: "lab")
    for name in ("GITHUB_ACTIONS", "GITLAB_CI", "BUILD_URL"):
        monkeypatch.delenv(name, raising=False)
    registry = ModelRegistry(folder_store(project.root / ".shipctl" / "store"))
    registered(registry, "0.9.0", "1.0.0", metrics={"accuracy": 0.95})
    registry.register(
        package("1.1.0"),
        lineage={"spec": "ab12", "data": {"evaluation": "cd34"}, "run": "run-7"},
        tags={"team": "ocr"},
        about=Description(
            metrics={"accuracy": 0.98, "latency.p95": 0.012},
            labels={"tier": "gold"},
            owner="vision",
            description="Reads\n\x1b[31mdigits",
            license="Apache-2.0",
            contains={"model": "ef" * 32},
        ),
    )
    registered(registry, "0.1.0", name="iris")
    registry.alias("digits@1.0.0", "production")
    return registry


def short(version: str, name: str = "digits") -> str:
    return package(version, name=name).digest[:12]


# -- looking ---------------------------------------------------------------------------------------------------


def test_list_shows_each_model_on_one_line(registry: ModelRegistry, call: Call) -> None:
    registry.tag("iris", {"team": "botany"})
    registry.retire("digits@0.9.0")
    assert call("registry", "list").lines == [
        "digits  1.1.0       2 versions  1 retired  production=1.0.0",
        "iris    0.1.0       1 version  [team=botany]",
    ]


def test_list_as_json(registry: ModelRegistry, call: Call) -> None:
    registry.set_stage("digits@1.1.0", "staging")
    document = call("registry", "list", "--json").document
    assert document["schema"] == "shipctl.registry-list/1"
    assert document["models"][0] == {
        "name": "digits",
        "latest": "1.1.0",
        "versions": ["1.1.0", "1.0.0", "0.9.0"],
        "retired": [],
        "aliases": {"production": "1.0.0"},
        "stages": {"1.1.0": "staging"},
        "tags": {},
        "ab": None,
    }


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (["--stage", "staging"], ["digits"]),
        (["--stage", "none"], ["digits", "iris"]),
        (["--stage", "production"], []),
        (["--tag", "team"], ["digits", "iris"]),
        (["--tag", "team=botany"], ["iris"]),
        (["--tag", "team=ocr", "--tag", "colour"], []),
    ],
)
def test_list_takes_some(registry: ModelRegistry, call: Call, options: list[str], names: list[str]) -> None:
    registry.set_stage("digits@1.1.0", "staging")
    registry.tag("iris", {"team": "botany"})
    document = call("registry", "list", "--json", *options).document
    assert [model["name"] for model in document["models"]] == names


def test_list_of_nothing_says_so(project: SampleProject, call: Call, tmp_path: Path) -> None:
    store = tmp_path / "empty"
    assert call("registry", "list", "--store", str(store)).lines == [
        f"nothing is registered in {store.as_uri()} yet"
    ]
    assert call("registry", "list", "--store", str(store), "-q").lines == []


def test_list_of_nothing_like_that_says_so(registry: ModelRegistry, call: Call) -> None:
    assert call("registry", "list", "--stage", "x").lines == [
        f"no models like that in {registry.objects.uri}"
    ]


def test_show_a_model_with_its_versions(registry: ModelRegistry, call: Call) -> None:
    registry.set_stage("digits@1.0.0", "archived")
    registry.retire("digits@0.9.0")
    lines = call("registry", "show", "digits").lines
    assert lines[0] == "digits  1.1.0       2 versions  1 retired  production=1.0.0"
    assert re.fullmatch(
        rf"  1\.1\.0  none         {short('1.1.0')}  {WHEN}  accuracy=0\.9800  latency\.p95=12ms  \[team=ocr\]",
        lines[1],
    )
    assert re.fullmatch(
        rf"  1\.0\.0  archived     {short('1.0.0')}  {WHEN}  production  accuracy=0\.9500", lines[2]
    )
    assert re.fullmatch(rf"  0\.9\.0  retired      {short('0.9.0')}  {WHEN}  accuracy=0\.9500", lines[3])
    document = call("registry", "show", "digits", "--json").document
    assert document["schema"] == "shipctl.registry-model/1"
    assert [version["version"] for version in document["versions"]] == ["1.1.0", "1.0.0", "0.9.0"]
    assert document["versions"][0]["parent"] == "1.0.0"


def test_show_a_version_with_all_that_is_known_of_it(registry: ModelRegistry, call: Call) -> None:
    registry.alias("digits@1.1.0", "staging")
    lines = call("registry", "show", "digits@staging").lines
    assert lines[0] == "digits@1.1.0"
    assert [re.sub(WHEN, "WHEN", line) for line in lines[1:]] == [
        f"  digest       {package('1.1.0').digest}",
        "  files        1 file, 5 B",
        "  signed by    nobody",
        "  aliases      staging",
        "  tags         team=ocr",
        "  registered   WHEN by ada@lab",
        "  parent       1.0.0",
        "  owner        vision",
        "  description  Reads digits",
        "  license      Apache-2.0",
        "  labels       tier=gold",
        "  metrics      accuracy=0.9800  latency.p95=12ms",
        f"  contains     model={'ef' * 6}",
    ]
    document = call("registry", "show", "digits@staging", "--json").document
    assert document["schema"] == "shipctl.registry-version/1"
    assert document["version"]["by"] == {"user": "ada", "host": "lab", "ci": None}
    assert document["package"] == json.loads(json.dumps(package("1.1.0").manifest()))
    assert document["lineage"]["data"] == {"evaluation": "cd34"}


def test_show_a_retired_version_says_why(registry: ModelRegistry, call: Call) -> None:
    registry.retire("digits@0.9.0", reason="leaks")
    lines = call("registry", "show", "digits@0.9.0").lines
    assert any(re.fullmatch(rf"  retired     {WHEN}: leaks", line) for line in lines)


def test_history_is_verified_and_newest_first(registry: ModelRegistry, call: Call) -> None:
    registry.alias("digits@1.1.0", "production")
    registry.tag("digits", {"team": "ocr"})
    registry.retire("digits@0.9.0", reason="leaks")
    lines = [re.sub(WHEN, "WHEN", line) for line in call("registry", "history", "digits").lines]
    assert lines == [
        "    7  WHEN  retire    digits@0.9.0  reason leaks  by ada@lab",
        "    6  WHEN  tag       digits  team=ocr  by ada@lab",
        "    5  WHEN  alias     digits@1.1.0  production: 1.0.0 → 1.1.0  by ada@lab",
        "    4  WHEN  alias     digits@1.0.0  production: none → 1.0.0  by ada@lab",
        f"    3  WHEN  register  digits@1.1.0  {short('1.1.0')}  by ada@lab",
        f"    2  WHEN  register  digits@1.0.0  {short('1.0.0')}  by ada@lab",
        f"    1  WHEN  register  digits@0.9.0  {short('0.9.0')}  by ada@lab",
        f"7 entries, the chain is whole; head sha256:{registry.history('digits')[-1].digest}",
    ]
    document = call("registry", "history", "digits", "--json", "-n", "2").document
    assert document["schema"] == "shipctl.registry-history/1"
    assert (document["total"], document["head"]) == (7, registry.history("digits")[-1].digest)
    assert [entry["action"] for entry in document["entries"]] == ["retire", "tag"]
    assert document["entries"][0]["digest"] == document["head"]


def test_history_of_an_altered_log_is_refused(registry: ModelRegistry, call: Call) -> None:
    key = registry.log("digits").key(2)
    document = json.loads(registry.objects.read(key) or b"")
    registry.objects.write(key, canonical_json(document | {"time": 1.0}))
    result = call("registry", "history", "digits")
    assert result.exit_code == 1
    assert result.stderr.startswith(
        f"error: entry 2 of log registry/digits of {registry.objects.uri} was altered or exchanged after it was written"
    )


def test_history_is_compared_with_a_head_that_was_noted(
    registry: ModelRegistry, call: Call, project: SampleProject
) -> None:
    head = call("registry", "history", "digits", "--json").document["head"]
    assert call("registry", "history", "digits", "--expect-head", head).exit_code == 0
    (project.root / ".shipctl" / "store" / "registry" / "digits" / "00000004.json").unlink()
    (project.root / ".shipctl" / "heads.json").unlink()
    assert call("registry", "history", "digits").exit_code == 0
    (project.root / ".shipctl" / "heads.json").unlink()
    result = call("registry", "history", "digits", "--expect-head", f"sha256:{head}")
    assert result.exit_code == 1
    assert f"has no entry {head[:12]}…, which was its newest when that was noted" in result.stderr


def test_search_finds_versions(registry: ModelRegistry, call: Call) -> None:
    lines = call("registry", "search", "accuracy>=0.97").lines
    assert len(lines) == 1
    assert re.fullmatch(
        rf"digits@1\.1\.0  none         {short('1.1.0')}  {WHEN}  accuracy=0\.9800  latency\.p95=12ms  \[team=ocr\]",
        lines[0],
    )
    document = call("registry", "search", "name:digits", "alias:production", "--json").document
    assert document["schema"] == "shipctl.registry-search/1"
    assert document["query"] == "name:digits alias:production"
    assert [version["version"] for version in document["versions"]] == ["1.0.0"]


def test_search_that_finds_nothing_says_so(registry: ModelRegistry, call: Call) -> None:
    result = call("registry", "search", "mnist")
    assert (result.exit_code, result.lines) == (0, [f"nothing found for 'mnist' in {registry.objects.uri}"])


def test_search_without_a_meaning_is_a_usage_error(registry: ModelRegistry, call: Call) -> None:
    result = call("registry", "search", "colr:red")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: there is no field 'colr' to search; there are alias, by, ")


def test_lineage_says_where_a_version_comes_from(registry: ModelRegistry, call: Call) -> None:
    registered(registry, "1.2.0", "1.3.0-rc.1")
    lines = [re.sub(WHEN, "WHEN", line) for line in call("registry", "lineage", "digits@1.1.0").lines]
    assert lines == [
        "digits@1.1.0",
        f"  package          {package('1.1.0').digest}",
        "  registered       WHEN by ada@lab",
        "  after            1.0.0 ← 0.9.0",
        "  before           1.2.0",
        "  data evaluation  cd34",
        "  run              run-7",
        "  spec             ab12",
    ]
    document = call("registry", "lineage", "digits@1.1.0", "--json").document
    assert document["schema"] == "shipctl.registry-lineage/1"
    assert (document["ancestors"], document["children"]) == (["1.0.0", "0.9.0"], ["1.2.0"])
    assert call("registry", "lineage", "digits@0.9.0").lines[3] == "  after       nothing: it is the first"


def test_lineage_of_parents_that_name_each_other_ends(registry: ModelRegistry, call: Call) -> None:
    registry.register(package("3.0.0"), lineage={"parent": "4.0.0"})
    registry.register(package("4.0.0"), lineage={"parent": "3.0.0"})
    assert call("registry", "lineage", "digits@3.0.0", "--json").document["ancestors"] == ["4.0.0", "3.0.0"]


@pytest.mark.parametrize("command", ["show", "lineage"])
def test_a_version_that_is_not_there_has_a_near_name(
    registry: ModelRegistry, call: Call, command: str
) -> None:
    result = call("registry", command, "digits@1.1.1")
    assert (result.exit_code, result.stderr) == (
        2,
        "error: digits has no version 1.1.1; did you mean '1.1.0'?\n",
    )


# -- changing --------------------------------------------------------------------------------------------------


def test_alias_moves_and_says_from_where(registry: ModelRegistry, call: Call) -> None:
    assert call("registry", "alias", "digits@1.1.0", "production", "blue").lines == [
        "production: 1.0.0 → 1.1.0",
        "blue: none → 1.1.0",
    ]
    assert call("registry", "alias", "digits@blue", "production").lines == [
        "digits@blue has production already; nothing was changed"
    ]
    document = call("registry", "alias", "digits@1.0.0", "production", "--json").document
    assert document["schema"] == "shipctl.registry-change/1"
    assert (document["changed"], document["message"]) == (True, "production: 1.1.0 → 1.0.0")
    assert document["model"]["aliases"] == {"production": "1.0.0", "blue": "1.1.0"}


def test_alias_is_removed(registry: ModelRegistry, call: Call) -> None:
    assert call("registry", "alias", "digits", "production", "--delete").lines == [
        "production pointed at digits@1.0.0, and is gone"
    ]
    result = call("registry", "alias", "digits@1.0.0", "production", "--delete")
    assert (result.exit_code, result.stderr) == (
        2,
        "error: an alias is removed from a model; write `shipctl registry alias digits ALIAS --delete`\n",
    )


def test_alias_that_looks_like_a_version_is_refused(registry: ModelRegistry, call: Call) -> None:
    result = call("registry", "alias", "digits@1.1.0", "v2")
    assert (result.exit_code, result.stderr) == (
        2,
        "error: 'v2' looks like a version, so it cannot be an alias; write a word, such as production\n",
    )


def test_stage_is_set(registry: ModelRegistry, call: Call) -> None:
    assert call("registry", "stage", "digits@1.1.0", "staging").lines == ["digits@1.1.0 is in stage staging"]
    assert call("registry", "stage", "digits@1.1.0", "staging").lines == [
        "digits@1.1.0 is in stage staging already"
    ]
    assert registry.resolve("digits@1.1.0").stage == "staging"


def test_tags_are_set_and_removed(registry: ModelRegistry, call: Call) -> None:
    assert call("registry", "tag", "digits@1.1.0", "a=1", "b=x=y", "--delete", "team").lines == [
        "digits@1.1.0: tags changed"
    ]
    assert registry.resolve("digits@1.1.0").tags == {"a": "1", "b": "x=y"}
    assert call("registry", "tag", "digits@1.1.0", "a=1").lines == [
        "digits@1.1.0: tags are so already; nothing was changed"
    ]
    call("registry", "tag", "digits", "team=vision")
    assert registry.state("digits").tags == {"team": "vision"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tag", "digits"], "nothing to do; give KEY=VALUE, or --delete KEY"),
        (["tag", "digits", "team"], "'team' is no tag; write KEY=VALUE"),
        (["tag", "digits", "=x"], "'=x' is no tag; write KEY=VALUE"),
        (["ab", "digits", "--metric", "ctr"], "an A/B test needs arms; write --arm VERSION=WEIGHT for each"),
        (
            ["ab", "digits", "--clear", "--arm", "1.0.0=100"],
            "--clear removes the A/B test; leave out the other options",
        ),
        (
            ["ab", "digits", "--arm", "1.0.0"],
            "'1.0.0' is no arm; write VERSION=WEIGHT with a percentage above 0, such as 1.1.0=10",
        ),
        (
            ["ab", "digits", "--arm", "1.0.0=0"],
            "'1.0.0=0' is no arm; write VERSION=WEIGHT with a percentage above 0, such as 1.1.0=10",
        ),
        (
            ["ab", "digits", "--arm", "1.0.0=nan"],
            "'1.0.0=nan' is no arm; write VERSION=WEIGHT with a percentage above 0, such as 1.1.0=10",
        ),
    ],
)
def test_what_cannot_be_meant_is_said(
    registry: ModelRegistry, call: Call, arguments: list[str], message: str
) -> None:
    result = call("registry", *arguments)
    assert (result.exit_code, result.stderr) == (2, f"error: {message}\n")


def test_an_ab_test_is_set_shown_and_removed(registry: ModelRegistry, call: Call) -> None:
    assert call("registry", "ab", "digits").lines == ["digits has no A/B test"]
    told = "digits: A/B test colours: 1.0.0 90 %, 1.1.0 10 %, by header:x-user, decided by ctr"
    options = ["--arm", "production=90", "--arm", "1.1.0=10%", "--key", "header:x-user", "--metric", "ctr"]
    assert call("registry", "ab", "digits", *options, "--name", "colours").lines == [told]
    assert call("registry", "ab", "digits", *options, "--name", "colours").lines == [
        f"{told}; nothing was changed"
    ]
    assert call("registry", "ab", "digits", "-q").lines == [told]
    assert call("registry", "show", "digits").lines[-1] == told
    document = call("registry", "ab", "digits", "--json").document
    assert document["model"]["ab"]["arms"] == [
        {"version": "1.0.0", "weight": 90.0},
        {"version": "1.1.0", "weight": 10.0},
    ]
    assert call("registry", "ab", "digits", "--clear").lines == ["digits has no A/B test"]


def test_a_change_to_a_model_that_is_not_there_is_refused(registry: ModelRegistry, call: Call) -> None:
    for arguments in (["tag", "digit", "a=b"], ["alias", "digit@1.0.0", "x"], ["ab", "digit", "--clear"]):
        result = call("registry", *arguments)
        assert (result.exit_code, result.stderr) == (
            2,
            f"error: there is no model 'digit' in {registry.objects.uri}; did you mean 'digits'?\n",
        )
    assert registry.models() == ["digits", "iris"]


def test_every_change_is_in_the_audit_log(registry: ModelRegistry, call: Call) -> None:
    call("registry", "alias", "digits@1.1.0", "production")
    call("registry", "tag", "digits", "a=b")
    lines = call("history", "--audit").lines
    assert any(" tag  digits" in line for line in lines)
    assert any(" alias  digits@1.1.0" in line for line in lines)


def test_the_group_alone_lists_its_commands(project: SampleProject, call: Call) -> None:
    lines = call("registry").lines
    for name in ("list", "show", "history", "alias", "stage", "tag", "ab", "search", "lineage"):
        assert any(line.startswith(f"  {name} ") for line in lines)


def test_documents_fit_their_schema(registry: ModelRegistry, call: Call) -> None:
    for name, arguments in {
        "registry-list": ["registry", "list"],
        "registry-model": ["registry", "show", "digits"],
        "registry-version": ["registry", "show", "digits@production"],
        "registry-history": ["registry", "history", "digits"],
        "registry-change": ["registry", "alias", "digits@1.1.0", "blue"],
        "registry-search": ["registry", "search", "digits"],
        "registry-lineage": ["registry", "lineage", "digits"],
        "retire": ["retire", "digits@0.9.0"],
    }.items():
        schema = EVERY_DOCUMENT[name].model_json_schema(mode="serialization", by_alias=True)
        Draft202012Validator.check_schema(schema)
        assert schema["properties"]["schema"]["const"] == f"shipctl.{name}/1"
        Draft202012Validator(schema).validate(call(*arguments, "--json").document)
