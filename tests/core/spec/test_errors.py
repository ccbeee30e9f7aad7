"""What is said about a spec that is wrong, word for word."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from shipctl.errors import SpecError
from shipctl.spec import Location, Problems, near

Fault = Callable[..., str]

HEAD = "apiVersion: shipctl.dev/v1\nkind: Pipeline\nmetadata: {name: m, version: 1.0.0}\n"
STAGE = "stages:\n  - uses: noop\n"

# what follows HEAD, and all that is said about it: line, column and message
TABLE: list[tuple[str, list[tuple[int, int, str]]]] = [
    (
        "stags: []\n",
        [
            (1, 1, "'stages' is missing; add it"),
            (4, 1, "'stags' is not known in a spec; did you mean 'stages'?"),
        ],
    ),
    ("stages: []\n", [(4, 9, "stages is empty; add at least one item")]),
    ("stages:\n", [(4, 1, "stages must be a list, not null; correct it")]),
    ("stages:\n  - noop\n", [(5, 5, "stages[0] must be a mapping, not 'noop'; correct it")]),
    (STAGE + "    wehn: true\n", [(6, 5, "'wehn' is not known in stages[0]; did you mean 'when'?")]),
    (
        STAGE + "    zzz: true\n",
        [
            (
                6,
                5,
                (
                    "'zzz' is not known in stages[0]; it takes approval, environment, id, inputs, matrix, needs, "
                    "resources, retry, timeout, uses, when, with"
                ),
            )
        ],
    ),
    (STAGE + "    with: [1]\n", [(6, 11, "stages[0].with must be a mapping, not a list; correct it")]),
    ("stages:\n  - id: a\n", [(5, 5, "'uses' is missing in stages[0]; add it")]),
    (
        "stages:\n  - uses: ${{ vars.x }}\n",
        [(5, 11, "stages[0].uses may not be an expression; write the value out")],
    ),
    (
        "stages:\n  - {id: A b, uses: noop}\n",
        [
            (
                5,
                10,
                "'A b' is not a stage id; write lower-case letters, digits, '-' and '_', such as int8-minmax",
            )
        ],
    ),
    (
        STAGE + "    timeout: 30\n",
        [(6, 14, "30 is not a duration; write a number with ns, us, ms, s, m, h or d, such as 30s")],
    ),
    (
        STAGE + "    retry: 0\n",
        [(6, 12, "stages[0].retry must be greater than or equal to 1, not 0; correct it")],
    ),
    (
        STAGE + "    retry: {attempts: two}\n",
        [(6, 23, "stages[0].retry.attempts must be a whole number, not 'two'; correct it")],
    ),
    (
        STAGE + "    approval: {required: 'no'}\n",
        [(6, 26, "stages[0].approval.required must be true or false, not 'no'; correct it")],
    ),
    (
        STAGE + "    resources: {gpu: 1.5, memory: 8 GiB}\n",
        [
            (6, 22, "stages[0].resources.gpu must be a whole number, not 1.5; correct it"),
            (
                6,
                35,
                "'8 GiB' is not a size; write a number with B, KB, MB, GB, TB, KiB, MiB, GiB or TiB, such as 8GiB",
            ),
        ],
    ),
    (
        STAGE + "    matrix: {a: [], b-c: [1], d: [[1]], e: [1, 1]}\n",
        [
            (6, 17, "a matrix axis is a list with at least one value; write [a, b]"),
            (6, 26, "'b-c' is not a name; write letters, digits and '_', beginning with a letter"),
            (6, 34, "a matrix axis has texts, numbers and booleans, not [1]; write [a, b]"),
            (6, 44, "a matrix axis has the same value twice; remove one"),
        ],
    ),
    (
        STAGE
        + (
            "    matrix: {a0: [1, 2], a1: [1, 2], a2: [1, 2], a3: [1, 2], a4: [1, 2], a5: [1, 2], a6: [1, 2], "
            "a7: [1, 2], a8: [1, 2]}\n"
        ),
        [(5, 5, "the matrix has 512 combinations and may have 256; take values out")],
    ),
    (
        STAGE + "    inputs: {model: a b}\n",
        [(6, 21, "'a b' names no stage; write a stage id, 'stage.output', or a list of them")],
    ),
    (STAGE + "    when: maybe\n", [(6, 11, "'maybe' is no condition; write true, false or one ${{ … }}")]),
    (
        STAGE + "    when: x ${{ true }}\n",
        [(6, 11, "'x ${{ true }}' is no condition; write true, false or one ${{ … }}")],
    ),
    ("seed: yes\n" + STAGE, [(4, 7, "seed must be a whole number, not 'yes'; correct it")]),
    (
        "slo: {latency: {p95: 5 parsecs}, error_rate: 5, throughput: 200}\n" + STAGE,
        [
            (
                4,
                22,
                "'5 parsecs' is not a duration; write a number with ns, us, ms, s, m, h or d, such as 30s",
            ),
            (
                4,
                46,
                "5 is not a percentage; write a number from 0% to 100%, such as 0.5%, or a fraction from 0 to 1",
            ),
            (4, 61, "200 is not a rate; write a number with /s, /m or /h, such as 200/s"),
        ],
    ),
    (
        "model: {uri: a, inputs: [{name: a, dtype: float33, shape: [-1, 1.5]}]}\n" + STAGE,
        [
            (
                4,
                43,
                (
                    "model.inputs[0].dtype must be 'float16', 'float32', 'float64', 'bfloat16', 'int8', 'int16', "
                    "'int32', 'int64', 'uint8', 'uint16', 'uint32', 'uint64', 'bool' or 'string', not 'float33'; did"
                    " you mean 'float32'?"
                ),
            ),
            (
                4,
                60,
                "model.inputs[0].shape[0] must be greater than or equal to 1 or text, not -1; correct it",
            ),
            (4, 64, "model.inputs[0].shape[1] must be a whole number or text, not 1.5; correct it"),
        ],
    ),
    (
        "secrets: {t: {env: A, file: b}, u: {}}\n" + STAGE,
        [
            (4, 14, "a secret comes from exactly one place; write one of env, file and command"),
            (4, 36, "a secret comes from exactly one place; write one of env, file and command"),
        ],
    ),
    (
        "stages:\n  - {id: onnx, uses: a}\n  - {id: int8, uses: b, needs: onx}\n",
        [(6, 32, "there is no stage 'onx'; did you mean 'onnx'?")],
    ),
    (STAGE + "  - uses: noop\n", [(6, 5, "stage id 'noop' is used twice; give this one an 'id' of its own")]),
    (
        "stages:\n  - {id: a, uses: n, needs: [a, b]}\n",
        [
            (5, 30, "stage 'a' needs itself; name the stages before it"),
            (5, 33, "there is no stage 'b'; there is a"),
        ],
    ),
    (
        "stages:\n  - {id: a, uses: n, needs: c}\n  - {id: b, uses: n}\n  - {id: c, uses: n}\n",
        [(5, 29, "the stages wait for each other: a needs c needs b needs a; break the circle")],
    ),
    (
        "stages:\n  - {id: a, uses: n, with: {x: '${{ stages.b.metrics.y }}'}}\n  - {id: b, uses: n}\n",
        [(5, 10, "the stages wait for each other: a needs b needs a; break the circle")],
    ),
    (
        STAGE + "    inputs: {model: onnx.model, other: [noop]}\n",
        [
            (6, 21, "there is no stage 'onnx'; there is noop"),
            (6, 41, "stage 'noop' takes its own output; name a stage before it"),
        ],
    ),
    (
        STAGE + "    environment: prodution\nenvironments: {production: {}}\n",
        [(6, 18, "there is no environment 'prodution'; did you mean 'production'?")],
    ),
    (
        "model: {uri: a, inputs: [{name: a, dtype: int8, shape: []}, {name: a, dtype: int8, shape: []}]}\n"
        + STAGE,
        [(4, 68, "tensor 'a' is declared twice; give every tensor a name of its own")],
    ),
    (
        "vars: {registry: a}\nstages:\n  - uses: noop\n    with: {x: '${{ vars.regsitry }}'}\n",
        [(7, 15, "vars.regsitry is undefined; did you mean 'registry'?")],
    ),
    (
        STAGE + "    matrix: {method: [a]}\n    with:\n      x:\n        - ${{ matrix.metod }}\n",
        [(9, 11, "matrix.metod is undefined; did you mean 'method'?")],
    ),
    (
        STAGE + "    with: {x: '${{ env.HOME }}', y: '${{ secrets.t }}', z: '${{ stages.nop.metrics.x }}'}\n",
        [
            (6, 15, "env.HOME is undefined; list it under 'env' and set it before shipctl runs"),
            (6, 37, "secrets.t is undefined; declare it under 'secrets'"),
            (6, 60, "stages.nop is undefined; did you mean 'noop'?"),
        ],
    ),
    (
        STAGE + "    with: {x: '${{ stages.noop.metrics.x }}', y: '${{ 1 + }}'}\n",
        [
            (6, 15, "stage 'noop' uses its own results; name a stage before it"),
            (6, 50, "'1 +' is not an expression (unexpected 'end of template'); check it"),
        ],
    ),
    (
        "stages:\n  - {id: a, uses: n}\n  - {id: b, uses: n, when: '${{ stages.a.result }}'}\n",
        [(6, 28, "stages.a.result is undefined; there is outputs, metrics")],
    ),
    (
        STAGE + "    when: ${{ secrets.t == 1 }}\nsecrets: {t: {env: T}}\n",
        [(6, 11, "secrets may be used in a stage's 'with' only, so that they cannot show elsewhere")],
    ),
    (
        "vars: {a: '${{ secrets.t }}', b: '${{ matrix.t }}', c: '${{ slo.latency }}', d: '${{ vars }}'}\n"
        + STAGE,
        [
            (4, 11, "secrets may be used in a stage's 'with' only, so that they cannot show elsewhere"),
            (
                4,
                34,
                "matrix is known when a stage runs; use it in 'with', 'when', 'inputs' or 'resources.labels'",
            ),
            (4, 56, "slo may not be used in vars; write the value out"),
            (4, 81, "a variable may not use all of vars; name the one that it uses"),
        ],
    ),
    (
        "vars: {a: '${{ vars.b }}', b: '${{ vars.c }}', c: '${{ vars.a }}', d: '${{ vars.a }}'}\n" + STAGE,
        [
            (
                4,
                11,
                "the variables use each other: vars.a -> vars.b -> vars.c -> vars.a; write one of them out",
            )
        ],
    ),
    (
        STAGE + "    with: {n: '${{ vars.n }}'}\nenvironments: {production: {vars: {n: 1}}}\n",
        [(6, 15, "vars.n is undefined; environment 'production' sets it, so choose it with -e production")],
    ),
    (
        "vars:\n  x: &x\n    p: '${{ vars.nope }}'\n  y:\n    <<: *x\n" + STAGE,
        [(6, 8, "vars.nope is undefined; declare it under 'vars'")],
    ),
    (
        "x-retry: &retry {attempts: two}\nstages:\n  - uses: noop\n    retry: {<<: *retry}\n",
        [
            (
                4,
                1,
                (
                    "'x-retry' is not known in a spec; it takes apiVersion, budget, data, env, environments, include, "
                    "kind, metadata, model, secrets, seed, slo, stages, store, vars"
                ),
            ),
            (4, 28, "stages[0].retry.attempts must be a whole number, not 'two'; correct it"),
        ],
    ),
]


def written(text: str, line: int, column: int, message: str) -> str:
    return f"s.yaml:{line}:{column}: {message}\n    {text.splitlines()[line - 1]}\n    {' ' * (column - 1)}^"


@pytest.mark.parametrize(("text", "problems"), TABLE)
def test_every_problem_is_told_at_its_place(
    fault: Fault, text: str, problems: list[tuple[int, int, str]]
) -> None:
    assert fault(HEAD + text) == "\n".join(written(HEAD + text, *problem) for problem in problems)


def test_the_head_is_checked(fault: Fault) -> None:
    text = (
        "apiVersion: shipctl.dev/v2\nmetadata: {name: Digits_1, version: 1.4, labels: {a: true}, ownr: x}\n"
        + STAGE
    )
    assert fault(text) == (
        "s.yaml:1:1: 'kind' is missing; add 'kind: Pipeline'\n    apiVersion: shipctl.dev/v2\n    ^\n"
        "s.yaml:1:13: apiVersion must be 'shipctl.dev/v1', not 'shipctl.dev/v2'; did you mean 'shipctl.dev/v1'?\n"
        "    apiVersion: shipctl.dev/v2\n                ^\n"
        "s.yaml:2:18: 'Digits_1' is not a name; write at most 63 lower-case letters, digits and '-', such as"
        " digits-cnn\n"
        "    metadata: {name: Digits_1, version: 1.4, labels: {a: true}, ownr: x}\n                     ^\n"
        "s.yaml:2:37: metadata.version must be text, not 1.4; put it in quotes\n"
        "    metadata: {name: Digits_1, version: 1.4, labels: {a: true}, ownr: x}\n"
        "                                        ^\n"
        "s.yaml:2:54: metadata.labels.a must be text, not true; put it in quotes\n"
        "    metadata: {name: Digits_1, version: 1.4, labels: {a: true}, ownr: x}\n"
        "                                                         ^\n"
        "s.yaml:2:61: 'ownr' is not known in metadata; did you mean 'owner'?\n"
        "    metadata: {name: Digits_1, version: 1.4, labels: {a: true}, ownr: x}\n"
        "                                                                ^"
    )


def test_faults_of_every_kind_are_told_together(fault: Fault) -> None:
    said = fault(
        HEAD.replace("version: 1.0.0", "version: '1'")
        + "slo: {latency: {p95: fast}}\nvars: {a: '${{ vars.b }}'}\n"
        + STAGE
        + "    timeout: 3\n    with: {x: '${{ vars.c }}'}\n  - {id: b, uses: n, needs: nop}\n",
    )
    assert [line.split(": ")[1] for line in said.splitlines() if line.startswith("s.yaml")] == [
        "'1' is not a semantic version; write three numbers, such as 1.4.0",
        "'fast' is not a duration; write a number with ns, us, ms, s, m, h or d, such as 30s",
        "vars.b is undefined; declare it under 'vars'",
        "3 is not a duration; write a number with ns, us, ms, s, m, h or d, such as 30s",
        "vars.c is undefined; declare it under 'vars'",
        "there is no stage 'nop'; did you mean 'noop'?",
    ]


def test_a_wrong_name_of_a_stage_does_not_cause_more_errors(fault: Fault) -> None:
    assert (
        fault(HEAD + "stages:\n  - {id: A, uses: n}\n  - {id: b, uses: n, needs: A}\n").count("s.yaml") == 2
    )


def test_after_a_hundred_problems_there_are_more(fault: Fault) -> None:
    said = fault(HEAD + STAGE + "".join(f"k{i}: 1\n" for i in range(200)))
    assert said.count("s.yaml:") == 100
    assert said.endswith("\nand there may be more problems; fix these first")


def test_a_caret_stands_below_its_column_after_tabs_and_wide_characters() -> None:
    assert Location("f", 1, 4, "\t日本x").excerpt() == "    \t日本x\n    \t    ^"


def test_a_long_line_is_cut_around_its_column() -> None:
    excerpt = Location("f", 1, 501, "a" * 500 + "X" + "b" * 500).excerpt()
    source, caret = excerpt.splitlines()
    assert len(source) < 130
    assert source[caret.index("^")] == "X"


def test_problems_are_sorted_by_place_and_told_once() -> None:
    problems = Problems()
    assert not problems
    problems.raise_if_any()
    for place in (
        Location("b", 1, 1),
        Location("a", 10, 1),
        Location("a", 2, 5),
        Location("--set x=1"),
        Location("a", 2, 5),
    ):
        problems.add(place, "wrong")
    assert [str(problem) for problem in problems] == [
        "--set x=1: wrong",
        "a:2:5: wrong",
        "a:10:1: wrong",
        "b:1:1: wrong",
    ]
    with pytest.raises(SpecError, match=r"^--set x=1: wrong\na:2:5: wrong\n"):
        problems.raise_if_any()
    with pytest.raises(TypeError, match="a path of keys needs a locator"):
        problems.add(("a",), "wrong")


def test_near_finds_typos_and_nothing_far() -> None:
    assert near("traget", ["target", "source"]) == "; did you mean 'target'?"
    assert near("xyz", ["target", "source"]) == ""
    assert near("a" * 10_000, ["a" * 10_001]) == ""
