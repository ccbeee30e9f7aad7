from __future__ import annotations

import copy
import subprocess
import sys
import time
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shipctl.spec import Duration, ExpressionError, evaluate, has_expression, references
from shipctl.spec.expressions import ANYTHING, MAX_LENGTH, all_references, missing

SCOPE: dict[str, Any] = {
    "vars": {
        "a": "x",
        "n": 3,
        "l": [1, 2],
        "items": "it",
        "big": "x" * 60_000,
        "m": {"k": "v"},
        "many": ["x"] * 1500,
    },
    "env": {"HOME": "/root"},
    "slo": {"latency": {"p95": Duration("100ms")}},
    "stages": {"int8-cal": {"metrics": {"accuracy": 0.9}}, "4bit": {"metrics": {"accuracy": 0.8}}},
    "matrix": {"method": "minmax"},
}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("${{ vars.a }}", "x"),
        ("${{vars.n}}", 3),
        ("  ${{ vars.n }}\n", 3),
        ("${{ vars.l }}", [1, 2]),
        ("${{ none }}", None),
        ("x-${{ vars.n }}-${{ vars.l }}-${{ true }}-${{ none }}", "x-3-[1, 2]-true-null"),
        ("${{ slo.latency.p95 * 2 }}", Duration("200ms")),
        ("at most ${{ slo.latency.p95 }}", "at most 100ms"),
        ("${{ stages.int8-cal.metrics.accuracy > 0.8 }}", True),
        ("${{ stages.4bit.metrics.accuracy }}", 0.8),
        ("${{ stages['int8-cal'].metrics['accuracy'] }}", 0.9),
        ("${{ 'stages.int8-cal' }}", "stages.int8-cal"),
        ("${{ vars.items }}", "it"),
        ("${{ {'a': {'b': 1}}}}", {"a": {"b": 1}}),
        ("${{ '}}' }}!", "}}!"),
        ("${{ '${{' }}", "${{"),
        ("${{ vars.zz | default('d') }}", "d"),
        ("${{ vars.zz.y | default(3) }}", 3),
        ("${{ vars.zz is defined }}", False),
        ("${{ vars.zz if vars.zz is defined else 1 }}", 1),
        ("${{ vars[matrix.method] | default(5) }}", 5),
        ("${{ env.HOME.startswith('/r') }}", True),
        ("${{ vars['a'] + 'b' if vars.n > 2 else none }}", "xb"),
        ("${{ vars.l[1] }}", 2),
        ("${{ vars.l + [3] }}", [1, 2, 3]),
        ("${{ (1, 2) }}", [1, 2]),
        ("${{ 7 // 2 + 7 % 2 - 1 / 2 }}", 3.5),
        ("${{ -vars.n + 1 }}", -2),
        ("${{ 'a' in vars and not 'q' in vars }}", True),
        ("${{ vars.a | upper }}${{ ' y ' | trim }}", "Xy"),
        ("${{ [3, 1] | min }}${{ [3, 1] | max }}${{ [3, 1] | first }}${{ [3, 1] | last }}", "1331"),
        ("${{ ['a', 1] | join('-') }}", "a-1"),
        ("${{ 'a.b' | replace('.', '/') }}", "a/b"),
        ("${{ '3' | int + '1.5' | float }}", 4.5),
        ("${{ 1.256 | round(2) }}", 1.26),
        ("${{ vars.m | tojson }}", '{"k": "v"}'),
        ("${{ vars.l | length }}", 2),
        ("${{ 3 | string + 'x' }}", "3x"),
        ("no expression", "no expression"),
        ("$ {{ x }}", "$ {{ x }}"),
    ],
)
def test_expressions_compute_and_keep_the_type(text: str, value: object) -> None:
    result = evaluate(text, SCOPE)
    assert result == value
    assert type(result) is type(value)


CALLS = (
    "may not be called in an expression; methods of text are"
    " endswith, lower, removeprefix, removesuffix, startswith, upper"
)
ROOTS = "there is vars, env, secrets, matrix, stages, slo, budget, metadata to use"
LARGE = "the result is larger than 64 KiB; compute less in an expression"
DEEP = "the expression is nested too deeply; compute less in it"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("${{ vars.aa }}", "vars.aa is undefined; did you mean 'a'?"),
        ("${{ vars.registry }}", "vars.registry is undefined; declare it under 'vars'"),
        ("${{ vars.m.q }}", "vars.m.q is undefined; there is k"),
        ("${{ vars.n.q }}", "vars.n.q is undefined; vars.n is not a mapping"),
        ("${{ vars.aa + 1 }}", "vars.aa is undefined; did you mean 'a'?"),
        ("${{ vars.a | upper(vars.zz) }}", "vars.zz is undefined; declare it under 'vars'"),
        ("${{ vars.l[5] }}", "a value in 'vars.l[5]' is undefined; use '| default' if it may be"),
        ("${{ var.a }}", "var is undefined; did you mean 'vars'?"),
        ("${{ foo }}", f"foo is undefined; {ROOTS}"),
        ("${{ loop.index }}", f"loop is undefined; {ROOTS}"),
        ("${{ 7**(7**8) }}", "'**' is not allowed in an expression; write the number"),
        ("${{ 'a'*1000000000 }}", "'*' cannot take text and a number; it computes with numbers only"),
        ("${{ [1]*1000000000 }}", "'*' cannot take a list and a number; it computes with numbers only"),
        ("${{ true * 2 }}", "'*' cannot take a boolean and a number; it computes with numbers only"),
        ("${{ vars.a + 1 }}", "'+' cannot take text and a number; write numbers as text with '| string'"),
        ("${{ '%1000000000d' % 1 }}", "'%' cannot take text and a number; it computes with numbers only"),
        ("${{ range(10) }}", f"range() {CALLS}"),
        ("${{ 'a'.ljust(1000000000) }}", f"ljust() {CALLS}"),
        ("${{ '{0}'.format(1) }}", f"format() {CALLS}"),
        ("${{ cycler(1) }}", f"cycler() {CALLS}"),
        ("${{ lipsum() }}", f"lipsum() {CALLS}"),
        ("${{ vars.items() }}", f"items() {CALLS}"),
        ("${{ 'a'.upper(*[1]) }}", "upper() takes its arguments by position; write them without names"),
        (
            "${{ 'a' | center(1000000000) }}",
            (
                "filter 'center' is not allowed in an expression; there is abs, default, first, float, int, join, last,"
                " length, lower, max, min, replace, round, string, tojson, trim, upper"
            ),
        ),
        ("${{ vars.l | map('x') }}", "filter 'map' is not allowed in an expression; did you mean 'max'?"),
        (
            "${{ 1 is even }}",
            "test 'even' is not allowed in an expression; there is defined, none, number, string",
        ),
        (
            '${{ "".__class__.__mro__ }}',
            "attribute '__mro__' is not allowed in an expression; names in it begin with a letter",
        ),
        (
            "${{ vars.__class__ }}",
            "attribute '__class__' is not allowed in an expression; names in it begin with a letter",
        ),
        ("${{ vars['__class__'] }}", "vars.__class__ is undefined; declare it under 'vars'"),
        (
            "${{ vars.a ~ 1 }}",
            "'~' is not allowed in an expression; join texts with '+', or put two ${{ }} side by side",
        ),
        (
            "${{ vars.a[0:2] }}",
            "slices are not allowed in an expression; use '| first', '| last' or one index",
        ),
        ("${{ 1 if true }}", "an 'if' in an expression needs its 'else'; write 'a if b else c'"),
        (
            "${{ [x for x in y] }}",
            "'[x for x in y]' is not an expression (expected token ',', got 'for'); check it",
        ),
        ("${{ 1 2 }}", "'1 2' is not an expression (unexpected 'integer'); check it"),
        ("${{ 1 + }}", "'1 +' is not an expression (unexpected 'end of template'); check it"),
        ("${{ }}", "the expression is empty; write a name, such as ${{ vars.name }}"),
        ("a ${{ vars.a", "the expression '${{ vars.a' is not closed; end it with '}}'"),
        ("${{ 1/0 }}", "'1/0' cannot be computed (division by zero); check the types in it"),
        ("${{ 99999999999999999999 }}", "number '99999999999999999999' is too large; write a smaller one"),
        (
            "${{ 9223372036854775807 + 2 }}",
            "the result of '+' is too large for a number; compute with smaller ones",
        ),
        ("${{ 1e308 * 10 }}", "the result of '*' is too large for a number; compute with smaller ones"),
        ("${{ 1e999 }}", "number 'inf' is too large; write a smaller one"),
        ("${{ 'nan' | float }}", "'| float' has no usable number as result; give it a smaller one"),
        ("${{ 'x' | int }}", "'| int' cannot read text; give it a number"),
        ("${{ vars.a | round }}", "'| round' takes a number and 0 to 15 digits, not text; write round(2)"),
        (
            "${{ [] | first }}",
            "'| first' takes a list with items, not an empty list; use '| default' before it",
        ),
        (
            "${{ 'aa' | replace('', 'b') }}",
            "'| replace' takes two texts, the first not empty; write replace('old', 'new')",
        ),
        ("${{ 3 | upper }}", "'| upper' takes text, not a number; use '| string' before it"),
        ("${{ 3 | join }}", "'| join' takes a list and a text, not a number; write join(',')"),
        (
            "${{ 3 | length }}",
            "'| length' takes text, a list or a mapping, not a number; use '| string' before it",
        ),
        (
            "${{ vars.a.upper }}",
            "the result is not plain data; compute a text, a number, a list or a mapping",
        ),
        ("${{ vars.big + vars.big }}", LARGE),
        ("${{ vars.big }}${{ vars.big }}", LARGE),
        ("${{ [vars.big, vars.big] }}", LARGE),
        ("${{ vars.big | replace('x', 'yyyy') }}", LARGE),
        ("${{ vars.many | join(vars.a + '----------------------------------------------------') }}", LARGE),
        ("${{ vars.many + vars.many }}", LARGE),
        ("${{ " + "(" * 480 + "1" + ")" * 480 + " }}", DEEP),
        ("${{ " + "-" * 300 + "1 }}", DEEP),
        ("${{ " + "not " * 200 + "1 }}", DEEP),
        ("${{ vars" + ".a" * 300 + " }}", DEEP),
        ("${{ " + "[" * 200 + "]" * 200 + " }}", DEEP),
        ("${{ " + "1+" * 400 + "1 }}", DEEP),
        (
            "${{ vars.a" + " | upper" * 20 + " }}",
            "more than 12 filters and comparisons; compute less in an expression",
        ),
        (
            "${{ " + "x" * 1001 + " }}",
            f"the expression has more than {MAX_LENGTH} characters; compute less in it",
        ),
        ("${{ 1 }}" * 200, "more than 100 expressions in one text; write less into it"),
    ],
)
def test_what_is_not_allowed_is_refused_at_once(second: float, text: str, message: str) -> None:
    start = time.process_time()
    with pytest.raises(ExpressionError) as caught:
        evaluate(text, SCOPE)
    assert str(caught.value) == message
    assert time.process_time() - start < second / 4, "a few milliseconds on an idle machine"


def test_many_costly_expressions_together_are_bounded(second: float) -> None:
    text = "${{ " + " + ".join(["(vars.many | tojson | length)"] * 6) + " }}"
    start = time.process_time()
    with pytest.raises(ExpressionError, match="the expressions compute too much; write the values out"):
        evaluate([text] * 10_000, SCOPE)
    assert time.process_time() - start < second / 2


def test_evaluation_goes_through_lists_and_mappings_and_changes_nothing() -> None:
    value = {"a": ["${{ vars.l }}", 1], "b": {"c": "${{ vars.m }}"}}
    before, scope = copy.deepcopy(value), copy.deepcopy(SCOPE)
    result = evaluate(value, scope)
    assert result == {"a": [[1, 2], 1], "b": {"c": {"k": "v"}}}
    result["a"][0].append(9)
    result["b"]["c"]["k"] = "changed"
    assert (value, scope) == (before, SCOPE)


def test_references_are_found_without_evaluating() -> None:
    value = {
        "a": ["${{ vars[env.X].b + stages.int8-cal.metrics.a }}", "${{ slo.latency['p95'] }}"],
        "b": "x ${{ vars.zz | default(matrix.m) }}",
        "c": "'vars.no'",
    }
    assert references(value) == {
        ("vars",),
        ("env", "X"),
        ("stages", "int8-cal", "metrics", "a"),
        ("slo", "latency", "p95"),
        ("vars", "zz"),
        ("matrix", "m"),
    }


def test_a_reference_that_may_be_undefined_is_marked() -> None:
    found = {r.path[1]: r.guarded for r in all_references("${{ vars.a if vars.a is defined else vars.b }}")}
    assert found == {"a": True, "b": False}


def test_has_expression_looks_inside() -> None:
    assert has_expression({"a": [{"b": "x ${{ y }}"}]})
    assert not has_expression({"a": [{"b": "x {{ y }}"}, 3, None]})


def test_missing_stops_at_what_is_not_known_yet() -> None:
    assert missing(("stages", "a", "outputs", "x"), {"stages": {"a": {"outputs": ANYTHING}}}) == ""
    assert (
        missing(("stages", "b"), {"stages": {"a": {}}}) == "stages.b is undefined; name a stage of this spec"
    )


@given(st.text("abvrs.()[]{}'\"|+-*/%~<>=!,: 0123456789_envmatrixslo", max_size=60))
def test_any_text_in_an_expression_gives_a_value_or_an_error(source: str) -> None:
    with suppress(ExpressionError):
        evaluate("${{ " + source + " }}", SCOPE)


def test_jinja_is_imported_only_for_an_expression() -> None:
    code = (
        "import sys, shipctl.spec as s\n"
        "s.evaluate({'a': ['x', 1]}, {}); s.references('x'); s.has_expression('${{ x }}')\n"
        "assert not {'jinja2', 'rich', 'numpy', 'torch', 'onnx'} & set(sys.modules), 'too early'\n"
        "s.evaluate('${{ 1 }}', {})\n"
        "assert 'jinja2' in sys.modules\n"
    )
    subprocess.run(
        [sys.executable, "-W", "error", "-c", code], check=True, env={"PYTHONPATH": ":".join(sys.path)}
    )
