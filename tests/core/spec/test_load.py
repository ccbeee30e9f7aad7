from __future__ import annotations

import gc
import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, ValidationError

from shipctl.spec import (
    Duration,
    LoadedSpec,
    Percentage,
    Rate,
    Retry,
    StageSpec,
    add_validation_errors,
    load_spec,
    stage_dependencies,
)

Load = Callable[..., LoadedSpec]
Fault = Callable[..., str]

HEAD = "apiVersion: shipctl.dev/v1\nkind: Pipeline\nmetadata: {name: m, version: 1.0.0}\n"
STAGE = "stages:\n  - uses: noop\n"


def messages(said: str) -> list[str]:
    return [line for line in said.splitlines() if not line.startswith("    ")]


def test_a_minimal_spec_has_defaults(load: Load, in_folder: Path) -> None:
    loaded = load(HEAD + STAGE)
    (stage,) = loaded.spec.stages
    assert (stage.id, stage.uses, stage.options, stage.needs, stage.when) == ("noop", "noop", {}, None, True)
    assert (stage.retry, stage.timeout, stage.matrix, stage.inputs) == (Retry(), None, {}, {})
    assert (loaded.spec.seed, loaded.spec.model, loaded.environment, loaded.overlaid) == (
        0,
        None,
        None,
        frozenset(),
    )
    assert (loaded.path, loaded.root) == (in_folder / "s.yaml", in_folder)
    assert loaded.files == ((in_folder / "s.yaml", hashlib.sha256((HEAD + STAGE).encode()).hexdigest()),)


def test_fields_have_their_types(load: Load) -> None:
    spec = load(
        HEAD
        + "slo: {latency: {p95: 100ms}, error_rate: 1%, throughput: 200/s}\n"
        + "data: {evaluation: {uri: a.npz, metric: accuracy, min: 0.97}}\n"
        + STAGE
        + "    retry: 3\n    timeout: 5m\n    needs: []\n    inputs: {model: a.b, more: [a]}\n"
        + "    resources: {memory: 8GiB}\n    matrix: {m: [a, 1, 2.5, true]}\n"
        + "  - {id: a, uses: x, needs: []}\n"
    ).spec
    assert spec.slo.latency.p95 == Duration("100ms")
    assert (spec.slo.error_rate, spec.slo.throughput) == (Percentage(0.01), Rate("200/s"))
    assert spec.data["evaluation"].min == 0.97
    stage = spec.stages[0]
    assert (stage.retry.attempts, stage.timeout, stage.needs) == (3, Duration(300), ())
    assert stage.inputs == {"model": "a.b", "more": ("a",)}
    assert stage.matrix == {"m": ("a", 1, 2.5, True)}
    with pytest.raises(ValidationError, match="frozen"):
        stage.id = "b"  # type: ignore[misc]


def test_a_spec_survives_json(load: Load) -> None:
    spec = load(
        HEAD + "budget: {rollback: 300s}\n" + STAGE + "    matrix: {m: [a]}\n    with: {opset: 21}\n"
    ).spec
    assert type(spec).model_validate(spec.model_dump(mode="json", by_alias=True)) == spec


def test_the_signature_of_a_model_is_known_when_both_sides_are(load: Load) -> None:
    tensor = "[{name: a, dtype: int8, shape: [batch, 2]}]"
    spec = load(HEAD + f"model: {{uri: m.onnx, inputs: {tensor}, outputs: {tensor}}}\n" + STAGE).spec
    assert spec.model is not None
    assert spec.model.signature is not None
    assert spec.model.signature.is_batched
    spec = load(HEAD + f"model: {{uri: m.onnx, files: '*.py', inputs: {tensor}}}\n" + STAGE).spec
    assert spec.model is not None
    assert (spec.model.signature, spec.model.files) == (None, ("*.py",))


def test_expressions_are_evaluated_in_order_of_their_use(load: Load) -> None:
    loaded = load(
        HEAD.replace("1.0.0", "'${{ env.TAG }}'")
        + "env: [TAG, UNSET]\n"
        + "vars: {c: '${{ vars.b }}c', b: '${{ vars.a[0] }}b', a: [x, '${{ env.UNSET | default(1) }}'], ms: 100}\n"
        + "slo: {latency: {p95: '${{ vars.ms }}ms'}}\n"
        + "model: {uri: '${{ metadata.name }}.onnx'}\n"
        + "stages:\n  - uses: noop\n    timeout: ${{ slo.latency.p95 * 10 }}\n    matrix: {c: ['${{ vars.c }}']}\n"
        + "    with: {c: '${{ vars.c }}', m: '${{ matrix.c }}'}\n    when: ${{ vars.ms > 1 }}\n",
        environ={"TAG": "2.0.1", "OTHER": "x"},
    )
    spec = loaded.spec
    assert spec.metadata.version == "2.0.1"
    assert spec.vars == {"c": "xbc", "b": "xb", "a": ["x", 1], "ms": 100}
    assert spec.slo.latency.p95 == Duration("100ms")
    assert spec.model is not None
    assert spec.model.uri == "m.onnx"
    assert spec.stages[0].timeout == Duration(1)
    assert spec.stages[0].matrix == {"c": ("xbc",)}
    assert spec.stages[0].options == {"c": "${{ vars.c }}", "m": "${{ matrix.c }}"}, "evaluated by the engine"
    assert spec.stages[0].when == "${{ vars.ms > 1 }}"
    assert loaded.scope() == {
        "vars": spec.vars,
        "env": {"TAG": "2.0.1"},
        "metadata": {"name": "m", "version": "2.0.1", "labels": {}},
        "slo": {"latency": {"p95": Duration("100ms")}},
        "budget": {},
    }
    loaded.scope()["vars"]["a"].append("changed")
    assert spec.vars["a"] == ["x", 1]


def test_an_environment_lays_its_variables_over(load: Load) -> None:
    text = (
        HEAD
        + "vars: {registry: a, path: '${{ vars.registry }}/m', other: 1}\n"
        + "stages:\n  - uses: noop\n    with: {x: ['${{ vars.path }}'], y: '${{ vars.other }}'}\n"
        + "    matrix: {r: ['${{ vars.registry }}']}\n    timeout: 3s\n"
        + "environments:\n  staging: {vars: {registry: b, extra: 2}}\n  production: {}\n"
    )
    assert load(text).spec.vars == {"registry": "a", "path": "a/m", "other": 1}
    loaded = load(text, environment="staging")
    assert loaded.spec.vars == {"registry": "b", "path": "b/m", "other": 1, "extra": 2}
    assert (loaded.environment, set(loaded.overlaid)) == ("staging", {"registry", "path", "extra"})
    assert str(loaded.locate(("vars", "registry"))) == "s.yaml:11:30"
    assert loaded.overlaid_reads(0) == {
        ("stages", 0, "with", "x", 0): "path",
        ("stages", 0, "matrix", "r", 0): "registry",
    }
    assert load(text, environment="production").overlaid_reads(0) == {}


def test_what_is_set_on_the_command_line_wins_over_the_environment(load: Load) -> None:
    text = HEAD + "vars: {a: 1}\n" + STAGE + "environments: {e: {vars: {a: 2, b: 3}}}\n"
    loaded = load(text, environment="e", overrides=["vars.a=9"])
    assert (loaded.spec.vars, set(loaded.overlaid)) == ({"a": 9, "b": 3}, {"b"})
    loaded = load(text, environment="e", overrides=["environments.e.vars.a=8"])
    assert (loaded.spec.vars["a"], set(loaded.overlaid)) == (8, {"a", "b"})


def test_what_decides_the_artifact_may_not_read_the_environment(fault: Fault) -> None:
    said = fault(
        HEAD
        + "vars: {w: a, v: '${{ vars.w }}'}\nmodel: {uri: '${{ vars.v }}'}\n"
        + STAGE
        + "environments: {staging: {vars: {w: b}}}\n",
        environment="staging",
    )
    assert messages(said) == [
        (
            "s.yaml:5:14: model reads vars.v, which environment 'staging' changes, and every environment must ship the"
            " same artifact; use the variable in release stages only"
        )
    ]


def test_an_unknown_environment_is_told_at_the_option(fault: Fault) -> None:
    text = HEAD + STAGE + "environments: {production: {}}\n"
    assert fault(text, environment="prodution") == (
        "-e prodution: there is no environment 'prodution'; did you mean 'production'?"
    )
    assert (
        fault(HEAD + STAGE, environment="x")
        == "-e x: there is no environment 'x'; there is none in this spec"
    )


def test_set_reads_yaml_and_names_stages_by_id(load: Load) -> None:
    text = (
        HEAD
        + "vars: &v {a: 1, b: {c: 2}}\nslo:\n"
        + "model: {uri: a, inputs: [{name: image, dtype: int8, shape: []}]}\n"
        + "stages:\n  - {id: onnx, uses: x, with: &w {opset: 21}}\n  - {uses: y, with: *w}\n"
    )
    loaded = load(
        text,
        overrides=[
            "stages.onnx.with.opset=20",
            "stages.1.with.list=[a, {b: c}]",
            "stages.y.when=false",
            "vars.a=text with = and : ok",
            "vars.b.c=",
            "slo.latency.p95=20ms",
            "model.inputs.image.dtype=float32",
            "metadata.labels.new='1'",
        ],
    )
    spec = loaded.spec
    assert spec.stages[0].options == {"opset": 20}
    assert spec.stages[1].options == {"opset": 21, "list": ["a", {"b": "c"}]}, "the alias keeps its value"
    assert spec.stages[1].when is False
    assert spec.vars == {"a": "text with = and : ok", "b": {"c": ""}}
    assert spec.slo.latency.p95 == Duration("20ms")
    assert spec.model is not None
    assert spec.model.inputs[0].dtype == "float32"
    assert spec.metadata.labels == {"new": "1"}
    assert str(loaded.locate(("stages", 0, "with", "opset"))) == "--set stages.onnx.with.opset=20"
    assert str(loaded.locate(("stages", 1, "with", "opset"))) == "s.yaml:8:42"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("a", "is no override; write --set path.to.key=value"),
        ("a..b=1", "is no override; write --set path.to.key=value"),
        ("vars.regstry=1", "there is no variable 'regstry'; did you mean 'registry'?"),
        ("environments.prod.vars.a=1", "there is no environment 'prod'; there is none"),
        ("stages.nop.with.x=1", "there is no 'nop' in stages; did you mean 'noop'?"),
        ("stages.7.with.x=1", "there is no '7' in stages; there is noop"),
        ("metadata.name.x=1", "metadata.name is a value, not a mapping; end the path there"),
        ("metdata.name=x", "'metdata' is not known in a spec; did you mean 'metadata'?"),
        ("stages.noop.wth.x=1", "'wth' is not known in stages[0]; did you mean 'with'?"),
        (
            "stages.noop.timeout=5",
            "5 is not a duration; write a number with ns, us, ms, s, m, h or d, such as 30s",
        ),
        ("vars.registry=${{ vars.x }}", "vars.x is undefined; declare it under 'vars'"),
        ("vars.registry=[", "the text ends where a value has to follow; complete it"),
        ("vars.registry=[a", "the '[' of line 1, column 1 is not closed, or a ',' is missing here; close it"),
        ("seed=[", None),
    ],
)
def test_an_override_that_fits_nowhere_is_told_at_the_option(
    fault: Fault, override: str, message: str | None
) -> None:
    said = fault(HEAD + "vars: {registry: a}\n" + STAGE, overrides=[override])
    assert said.startswith(f"--set {override}: ")
    if message is not None:
        assert said == f"--set {override}: {message}"


def test_all_overrides_are_checked_at_once(fault: Fault) -> None:
    said = fault(HEAD + STAGE, overrides=["vars.a=1", "x", "stages.b.when=true"], environment="e")
    assert said == (
        "--set stages.b.when=true: there is no 'b' in stages; there is noop\n"
        "--set vars.a=1: there is no variable 'a'; there is none\n"
        "--set x: is no override; write --set path.to.key=value\n"
        "-e e: there is no environment 'e'; there is none in this spec"
    )


def test_included_files_lie_below_and_keep_their_places(load: Load, in_folder: Path) -> None:
    loaded = load(
        HEAD
        + "include: [parts/a.yaml, b.yaml]\nvars: {x: own, list: [9]}\nstages:\n  - {id: last, uses: n}\n",
        files={
            "parts/a.yaml": "include: ../common.yaml\nvars: {x: a, y: a, list: []}\nstages: [{id: first, uses: n}]\n",
            "b.yaml": "include: [common.yaml]\nvars: {y: b}\nstages: [{id: second, uses: n}]\n",
            "common.yaml": "vars: {z: common, y: common}\nbudget: {rollback: 5s}\nstages: [{id: zeroth, uses: n}]\n",
        },
    )
    spec = loaded.spec
    assert [stage.id for stage in spec.stages] == ["zeroth", "first", "second", "last"]
    assert spec.vars == {"z": "common", "y": "b", "x": "own", "list": [9]}
    assert spec.budget.rollback == Duration(5)
    assert spec.include == ("parts/a.yaml", "b.yaml")
    places = {
        ("vars", "x"): "s.yaml:5:11",
        ("vars", "y"): "b.yaml:2:11",
        ("vars", "z"): "common.yaml:1:11",
        ("stages", 1, "id"): "parts/a.yaml:3:15",
    }
    assert {keys: str(loaded.locate(keys)) for keys in places} == places
    assert [str(path.relative_to(in_folder)) for path, _ in loaded.files] == [
        "s.yaml",
        "parts/a.yaml",
        "common.yaml",
        "b.yaml",
    ]
    assert all(hashlib.sha256(path.read_bytes()).hexdigest() == digest for path, digest in loaded.files)


def test_a_fault_in_an_included_file_is_told_there(fault: Fault) -> None:
    assert fault(HEAD + "include: a.yaml\n" + STAGE, files={"a.yaml": "vars:\n  x: ${{ vars.q }}\n"}) == (
        "a.yaml:2:6: vars.q is undefined; declare it under 'vars'\n      x: ${{ vars.q }}\n         ^"
    )
    assert fault(HEAD + "include: a.yaml\n" + STAGE, files={"a.yaml": "vars:\n\tx: 1\n"}) == (
        "a.yaml:2:1: a tab may not indent YAML; use spaces\n    \tx: 1\n    ^"
    )


def test_files_that_include_each_other_are_refused(fault: Fault) -> None:
    files = {"a.yaml": "include: b.yaml\n", "b.yaml": "vars: {}\ninclude: [a.yaml]\n"}
    assert fault(HEAD + "include: a.yaml\n" + STAGE, files=files) == (
        "b.yaml:2:11: the files include each other: s.yaml -> a.yaml -> b.yaml -> a.yaml; take one out\n"
        "    include: [a.yaml]\n              ^"
    )


def test_a_missing_include_is_told_where_it_is_named(fault: Fault) -> None:
    assert fault(HEAD + "include: nope.yaml\n" + STAGE) == (
        "s.yaml:4:10: 'nope.yaml' does not exist; include a file relative to this one\n"
        "    include: nope.yaml\n             ^"
    )


def test_includes_that_double_each_time_stay_bounded(fault: Fault, second: float) -> None:
    files = {f"f{i}.yaml": f"include: [f{i + 1}.yaml, f{i + 1}.yaml]\n" for i in range(40)}
    start = time.process_time()
    said = fault(HEAD + "include: f0.yaml\n" + STAGE, files={**files, "f40.yaml": "vars: {}\n"})
    assert time.process_time() - start < second
    assert said == (
        "f31.yaml: with this file the spec has more than 32 files or 262144 characters; include less"
    )


def test_dependencies_are_needs_inputs_and_results_that_are_used(load: Load) -> None:
    spec = load(
        HEAD
        + "stages:\n"
        + "  - {id: a, uses: n}\n"
        + "  - {id: b, uses: n}\n"
        + "  - {id: c, uses: n, needs: a, inputs: {m: b.model}}\n"
        + "  - {id: d-x, uses: n, needs: []}\n"
        + "  - {id: e, uses: n, needs: [], with: {x: ['${{ stages.d-x.metrics.y + stages.a.outputs.z }}']}}\n"
        + "  - {id: f, uses: n, needs: [], when: '${{ stages.c.metrics.ok }}'}\n"
    ).spec
    assert stage_dependencies(spec.stages) == {
        "a": (),
        "b": ("a",),
        "c": ("a", "b"),
        "d-x": (),
        "e": ("a", "d-x"),
        "f": ("c",),
    }


class Options(BaseModel):
    model_config = ConfigDict(extra="forbid")
    opset: int
    interval: Duration = Duration(1)
    either: int | list[int] = 0


def test_the_options_of_a_plugin_are_told_at_their_place(load: Load) -> None:
    loaded = load(HEAD + STAGE + "    with:\n      opst: 21\n      interval: 5\n      either: x\n")
    problems = loaded.problems()
    options = loaded.spec.stages[0].options
    with pytest.raises(ValidationError) as caught:
        Options.model_validate(options)
    add_validation_errors(problems, caught.value, Options, options, ("stages", 0, "with"))
    assert [str(problem).splitlines()[0] for problem in problems] == [
        "s.yaml:6:5: 'opset' is missing in stages[0].with; add it",
        "s.yaml:7:7: 'opst' is not known in stages[0].with; did you mean 'opset'?",
        "s.yaml:8:17: 5 is not a duration; write a number with ns, us, ms, s, m, h or d, such as 30s",
        "s.yaml:9:15: stages[0].with.either must be a whole number or a list, not 'x'; correct it",
    ]


def test_stage_specs_can_be_made_in_code() -> None:
    stage = StageSpec.model_validate({"uses": "noop", "with": {"a": 1}})
    assert (stage.id, stage.options) == ("noop", {"a": 1})


def test_a_hundred_stages_load_fast(in_folder: Path, second: float) -> None:
    text = (
        HEAD
        + "stages:\n"
        + "".join(f"  - id: s{i}\n    uses: noop\n    with: {{n: {i}}}\n" for i in range(100))
    )
    Path("s.yaml").write_text(text)
    load_spec("s.yaml")
    gc.collect()
    times = []
    for _ in range(5):
        start = time.process_time()
        load_spec("s.yaml")
        times.append(time.process_time() - start)
    assert min(times) < second / 10, "about 20 ms on an idle machine"


HOSTILE: dict[str, Any] = {
    "unknown keys": (
        STAGE + "".join(f"key{i:05}: 1\n" for i in range(9_000)),
        "and there may be more problems",
    ),
    "variables that use the next": (
        STAGE + "vars:\n" + "".join(f"  v{i}: '${{{{ vars.v{(i + 1) % 990} }}}}'\n" for i in range(990)),
        "the variables use each other: vars.v0 -> vars.v1 -> ",
    ),
    "too many expressions": (
        STAGE + "vars:\n" + "".join(f"  v{i}: '${{{{ vars.w{i} }}}}'\n" for i in range(8_000)),
        "more than 1000 expressions outside of 'with'; write the values out",
    ),
    "doubling": (
        STAGE
        + "vars:\n  v0: xxxx\n"
        + "".join(f"  v{i}: '${{{{ vars.v{i - 1} + vars.v{i - 1} }}}}'\n" for i in range(1, 900)),
        "the result is larger than 64 KiB",
    ),
    "costly expressions": (
        STAGE
        + "vars:\n  l: ["
        + "a," * 1900
        + "]\n"
        + "".join(f"  v{i}: '${{{{ vars.l | tojson | length + {i} }}}}'\n" for i in range(990)),
        "the expressions compute too much",
    ),
    "a circle of stages": (
        "stages:\n" + "".join(f"- {{id: s{i}, uses: a, needs: [s{(i + 1) % 2000}]}}\n" for i in range(2_000)),
        "the stages wait for each other: s0 needs s1 needs ",
    ),
    "unknown stages": (
        "stages:\n" + "".join(f"- {{id: s{i}, uses: a, needs: [t{i}]}}\n" for i in range(2_000)),
        "there is no stage 't0'; there is s0, s1, s10, s100, s1000, s1001, s1002, s1003, s1004, s1005, 1990 more",
    ),
    "many expressions in one text": (
        "stages:\n- uses: a\n  with:\n    a: '" + "".join(f"${{{{ {i} }}}}" for i in range(15_000)) + "'\n",
        "the spec has more than 5000 expressions; write values out",
    ),
}
QUICK = {"variables that use the next", "doubling", "many expressions in one text"}
"""The rest take half a second and more each."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in HOSTILE]
)
def test_hostile_specs_end_within_a_second(fault: Fault, second: float, name: str) -> None:
    text, message = HOSTILE[name]
    start = time.process_time()
    said = fault(HEAD + text)
    assert time.process_time() - start < second
    assert message in said
