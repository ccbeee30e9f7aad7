from __future__ import annotations

import hashlib
import os
import re
import resource
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shipctl.errors import SpecError
from shipctl.spec import Document, load_document
from shipctl.spec.composer import MAX_DEPTH, MAX_EXPANDED, MAX_NODES
from shipctl.spec.yaml import MAX_BYTES


def read(folder: Path, content: str | bytes) -> Document:
    path = folder / "d.yaml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return load_document(path)


def fault(folder: Path, content: str | bytes) -> str:
    with pytest.raises(SpecError) as caught:
        read(folder, content)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("on", "on"),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("010", 10),
        ("0x1F", 31),
        ("0o17", 15),
        ("-3", -3),
        ("1.5", 1.5),
        (".5", 0.5),
        ("1e3", 1000.0),
        ("1.4.0", "1.4.0"),
        ("1_000", "1_000"),
        ("2026-01-01", "2026-01-01"),
        ("12:30:45", "12:30:45"),
        ("'5'", "5"),
        ("!!str 5", "5"),
        ("! 5", "5"),
        ("=", "="),
        ("-", None),
        ("1%", "1%"),
        ("${{ vars.a }}", "${{ vars.a }}"),
        ("18446744073709551615", 2**64 - 1),
    ],
)
def test_scalars_are_those_of_yaml_1_2(tmp_path: Path, text: str, value: object) -> None:
    expected = [None] if text == "-" else value
    data = read(tmp_path, f"a:\n  {text}\n").data
    assert data == {"a": expected}
    assert type(data["a"]) is type(expected)


def test_a_yaml_1_1_directive_does_not_bring_norway_back(tmp_path: Path) -> None:
    assert read(tmp_path, "%YAML 1.1\n---\na: no\n").data == {"a": "no"}


def test_a_document_knows_its_text_digest_and_positions(tmp_path: Path) -> None:
    text = "a: 1\nb:\n  - x\n  - {c: d}\n"
    document = read(tmp_path, text)
    assert (document.text, document.sha256) == (text, hashlib.sha256(text.encode()).hexdigest())

    def at(*keys: Any, part: Any = "value") -> tuple[int, int]:
        found = document.locate(keys, part)
        return found.line, found.column

    assert at("a") == (1, 4)
    assert at("a", part="key") == (1, 1)
    assert at("b", 1, "c") == (4, 9)
    assert at("b", 1, "c", part="key") == (4, 6)
    assert at("b", 0) == at("b", 0, part="key") == (3, 5)
    assert at() == (1, 1)
    assert at("b", 1, "zz") == (4, 5), "what is missing is at its parent"
    assert at("b", 9) == (2, 1)


def test_a_byte_order_mark_and_windows_line_ends_do_not_shift_positions(tmp_path: Path) -> None:
    document = read(tmp_path, b"\xef\xbb\xbfa: 1\r\nb: {c: 2}\r\n")
    assert (document.data, document.locate(("b", "c")).column) == ({"a": 1, "b": {"c": 2}}, 8)
    assert document.locate(("b", "c")).source == "b: {c: 2}"


def test_aliases_and_merge_keys_are_located_where_their_text_stands(tmp_path: Path) -> None:
    document = read(
        tmp_path,
        "base: &base {opset: 21, extra: 1}\n"
        "more: &more {extra: 2, third: 3}\n"
        "one:\n  <<: *base\n  extra: 9\n"
        "two:\n  <<: [*base, *more]\n"
        "three: *base\n"
        "four: {<<: {inline: 4}}\n",
    )
    assert document.data["one"] == {"opset": 21, "extra": 9}
    assert document.data["two"] == {"opset": 21, "extra": 1, "third": 3}
    assert document.data["four"] == {"inline": 4}
    places = {
        ("one", "opset"): (1, 21),
        ("one", "extra"): (5, 10),
        ("two", "opset"): (1, 21),
        ("two", "extra"): (1, 32),
        ("two", "third"): (2, 31),
        ("three", "opset"): (1, 21),
        ("four", "inline"): (9, 21),
    }
    found = {keys: (document.locate(keys).line, document.locate(keys).column) for keys in places}
    assert found == places
    assert document.locate(("one", "opset"), "key").column == 14


KEYS = st.text("abcdefgh_", min_size=1, max_size=6)
SCALARS = st.one_of(
    st.integers(-999, 999), st.booleans(), st.text("xyz ", min_size=1, max_size=4).map(lambda t: f"_{t}_")
)
TREES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3), st.dictionaries(KEYS, inner, min_size=1, max_size=4)
    ),
    max_leaves=15,
)


def write(
    value: Any,
    indent: str,
    lines: list[str],
    keys: tuple[Any, ...],
    places: dict[tuple[Any, ...], tuple[int, int]],
) -> None:
    """Write ``value`` in block style and note where each key was put."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        path = (*keys, key)
        lead = f"{indent}{key}:" if isinstance(value, dict) else f"{indent}-"
        # an item of a list has no key, so it is where its value begins
        nested = isinstance(item, dict | list)
        if isinstance(value, dict):
            places[path] = (len(lines) + 1, len(indent) + 1)
        elif not nested:
            places[path] = (len(lines) + 1, len(lead) + 2)
        if nested:
            lines.append(lead)
            write(item, indent + "  ", lines, path, places)
        else:
            lines.append(f"{lead} {str(item).lower() if isinstance(item, bool) else item}")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(tree=st.dictionaries(KEYS, TREES, min_size=1, max_size=4))
def test_every_key_of_a_document_is_located_at_its_true_line(tmp_path: Path, tree: dict[str, Any]) -> None:
    lines: list[str] = []
    places: dict[tuple[Any, ...], tuple[int, int]] = {}
    write(tree, "", lines, (), places)
    document = read(tmp_path, "\n".join(lines) + "\n")
    assert document.data == tree
    for keys, place in places.items():
        found = document.locate(keys, "key")
        assert (found.line, found.column) == place, keys
        assert found.source == lines[place[0] - 1]


FAULTS = [
    ("a: 1\na: 2\n", "2:1: key 'a' is written twice, first in line 1; remove one of them\n    a: 2\n    ^"),
    (
        "{a: 1, a: 2}\n",
        "1:8: key 'a' is written twice, first in line 1; remove one of them\n    {a: 1, a: 2}\n           ^",
    ),
    ("a:\n\tb: 1\n", "2:1: a tab may not indent YAML; use spaces\n    \tb: 1\n    ^"),
    ("a: |\n x\n\ty\n", "3:1: a tab may not indent YAML; use spaces\n    \ty\n    ^"),
    (
        "a: b: c\n",
        (
            "1:5: a ':' may not stand here; check the indentation, or put a text with ': ' in quotes\n"
            "    a: b: c\n        ^"
        ),
    ),
    ('a: "x\n', '1:4: the quoted text that starts here never ends; close it\n    a: "x\n       ^'),
    (
        "a: [1, 2\nb: 3\n",
        "2:2: the '[' of line 1, column 4 is not closed, or a ',' is missing here; close it\n    b: 3\n     ^",
    ),
    (
        "a: {b: ${{ x }}}\n",
        (
            "1:9: the '{' of line 1, column 4 is not closed, or a ',' is missing here;"
            " put an expression inside of brackets in quotes\n    a: {b: ${{ x }}}\n            ^"
        ),
    ),
    ("a:\n  - b\n c: 1\n", "3:2: the indentation does not fit the lines above; align it\n     c: 1\n     ^"),
    ("a: @x\n", "1:4: '@' may not start a value; put it in quotes\n    a: @x\n       ^"),
    ("a: `x`\n", "1:4: '`' may not start a value; put it in quotes\n    a: `x`\n       ^"),
    ("1: x\n", "1:1: key 1 is not text; put it in quotes: '1'\n    1: x\n    ^"),
    ("true: x\n", "1:1: key true is not text; put it in quotes: 'true'\n    true: x\n    ^"),
    ("? [a]\n: b\n", "1:3: a key must be text; write 'name: value'\n    ? [a]\n      ^"),
    (
        "a: 1\n---\nb: 2\n",
        "2:1: a second document starts here; a spec is one document, remove the '---'\n    ---\n    ^",
    ),
    ("", "1:1: the file is empty; 'shipctl init' writes a spec to start from"),
    ("# only\n", "1:1: the file is empty; 'shipctl init' writes a spec to start from"),
    ("- a\n", "1:1: a spec is a mapping; begin with 'apiVersion: shipctl.dev/v1'\n    - a\n    ^"),
    (
        "a: !!python/object:os.system x\n",
        (
            "1:4: tag tag:yaml.org,2002:python/object:os.system is not allowed; remove it (put text in quotes)\n"
            "    a: !!python/object:os.system x\n       ^"
        ),
    ),
    ("a: !x {}\n", "1:4: tag !x is not allowed; remove it (put text in quotes)\n    a: !x {}\n       ^"),
    (
        "base: &base 1\na: *bas\n",
        "2:4: alias *bas has no anchor &bas before it; did you mean 'base'?\n    a: *bas\n       ^",
    ),
    (
        "a: &a [*a]\n",
        "1:8: alias *a stands inside of its own anchor; take it out\n    a: &a [*a]\n           ^",
    ),
    ("&a a: 1\n*a : 2\n", "2:1: alias *a may not be a key; write the key out\n    *a : 2\n    ^"),
    (
        "a: 1\n<<: 3\n",
        "2:1: '<<' merges mappings; write '<<: *anchor' or '<<: [*one, *two]'\n    <<: 3\n    ^",
    ),
    (
        "a: &a {}\n<<: *a\n<<: *a\n",
        "3:1: key '<<' is written twice; merge a list: '<<: [*one, *two]'\n    <<: *a\n    ^",
    ),
    ("a: .inf\n", "1:4: .inf is not a usable number; put text in quotes\n    a: .inf\n       ^"),
    ("a: .NaN\n", "1:4: .NaN is not a usable number; put text in quotes\n    a: .NaN\n       ^"),
    ("a: 1e999\n", "1:4: number 1e999 is too large; put text in quotes\n    a: 1e999\n       ^"),
    (
        "a: 18446744073709551616\n",
        "1:4: number 18446744073709551616 is too large; put text in quotes\n    a: 18446744073709551616\n       ^",
    ),
    (b"a: 1\nb: \xff\n", "2:4: byte 0xff is not UTF-8 text; save the file as UTF-8"),
    ("a: 1\n".encode("utf-16"), "1:1: the file is UTF-16 or UTF-32; save it as UTF-8"),
    ("a: x\x00y\n", "1:5: character U+0000 may not stand in a spec; save plain UTF-8 text"),
    ("a: 1\nb: \x1b[31m\n", "2:4: character U+001B may not stand in a spec; save plain UTF-8 text"),
    ("a: \u202ex\n", "1:4: character U+202E may not stand in a spec; save plain UTF-8 text"),
    (
        'a: "\\e[31m"\n',
        '1:4: an escape here stands for character U+001B, which is refused; remove it\n    a: "\\e[31m"\n       ^',
    ),
    (
        'a: "\\uD800"\n',
        '1:4: an escape here stands for character U+D800, which is refused; remove it\n    a: "\\uD800"\n       ^',
    ),
]


@pytest.mark.parametrize(("content", "message"), FAULTS)
def test_a_fault_has_one_message_with_its_place(tmp_path: Path, content: str | bytes, message: str) -> None:
    assert fault(tmp_path, content) == f"{tmp_path}/d.yaml:{message}"


def test_a_quoted_merge_key_is_an_ordinary_key(tmp_path: Path) -> None:
    assert read(tmp_path, '"<<": 1\n<<: {a: 2}\n').data == {"<<": 1, "a": 2}


def test_things_that_are_no_file_are_refused(tmp_path: Path) -> None:
    def said(path: Path) -> str:
        with pytest.raises(SpecError) as caught:
            load_document(path)
        return str(caught.value)

    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "secret.yaml").write_text("a: 1")
    assert (
        said(tmp_path / "none.yaml") == f"{tmp_path}/none.yaml: there is no such file; name the spec's file"
    )
    assert said(tmp_path) == f"{tmp_path}: is a folder; name the spec's file"
    assert said(tmp_path / "fifo") == f"{tmp_path}/fifo: is not a regular file; name the spec's file"
    assert said(Path("/dev/zero")) == "/dev/zero: is not a regular file; name the spec's file"
    assert said(Path("a\0b")).endswith(
        "cannot be read (a NUL character is in it); check the path and its permissions"
    )


def laughs() -> str:
    return "a0: &a0 [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10)
    )


def merges(keys: int, times: int) -> str:
    return "a: &a\n" + "".join(f"  k{i}: 1\n" for i in range(keys)) + "b: {<<: [" + "*a," * times + "]}\n"


def full(unit: str, start: str = "", end: str = "") -> str:
    return start + unit * ((MAX_BYTES - len(start) - len(end)) // len(unit)) + end


HOSTILE: dict[str, tuple[str, str]] = {
    "billion laughs": (laughs(), f"aliases stand for more than {MAX_EXPANDED} values"),
    "chained aliases": (
        "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 500)),
        f"more than {MAX_DEPTH} levels",
    ),
    "merge bomb": (merges(9_000, 1_000), f"aliases stand for more than {MAX_EXPANDED} values"),
    "open lists": ("[" * 100_000, f"more than {MAX_DEPTH} levels"),
    "open lists with values": (full("[a,"), f"more than {MAX_DEPTH} levels"),
    "open mappings": (full("{"), f"more than {MAX_DEPTH} levels"),
    "nested dashes": (full("- "), f"more than {MAX_DEPTH} levels"),
    "complex keys": (full("? "), "a key must be text"),
    "items": (full("- x\n"), f"more than {MAX_NODES} keys and values"),
    "empty items": (full("- \n"), f"more than {MAX_NODES} keys and values"),
    "anchors": (full("- &a x\n"), f"more than {MAX_NODES} keys and values"),
    "escapes": (full('- "\\x41"\n'), f"more than {MAX_NODES} keys and values"),
    "flow items": (full("a,", "a: [", "]"), f"more than {MAX_NODES} keys and values"),
    "flow pairs": (full("a: ,", "a: [", "]"), f"more than {MAX_NODES} keys and values"),
    "flow lists": (full("[],", "a: [", "]"), f"more than {MAX_NODES} keys and values"),
    "one plain text": (full("x "), "a spec is a mapping"),
    "one folded text": (full(" x\n", "a: >\n"), ""),
    "one literal text": (full("\n", "a: |\n"), ""),
    "one quoted text": (full("\\\n", 'a: "', '"'), ""),
    "one quoted text of escapes": (full("\\x41", 'a: "', '"'), ""),
    "one text of quotes": (full("''", "a: '", "'"), ""),
    "a plain text of many lines": (full(" x\n", "a: x\n"), ""),
    "blanks": (full(" "), "the file is empty"),
    "line ends": (full("\n"), "the file is empty"),
    "comments": (full("#\n"), "the file is empty"),
    "tags": (full("!a ", "a: "), "tag !a is not allowed"),
    "many keys": ("".join(f"k{i}: 1\n" for i in range(9_900)), ""),
    "a long key": ("a" * 100_000 + ": 1\n", "a ':' may not stand here"),
    "percent signs": (full("%"), "is not YAML"),
    "documents": (full("---\n"), "a second document"),
}
QUICK = {
    "billion laughs", "chained aliases", "merge bomb", "open lists", "open lists with values", "open mappings",
    "nested dashes", "complex keys", "items", "blanks", "comments", "tags", "a long key", "percent signs", "documents",
}  # fmt: skip
"""One of each kind; the rest take about half a second each."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in HOSTILE]
)
def test_hostile_yaml_ends_within_a_second_and_little_memory(
    tmp_path: Path, second: float, name: str
) -> None:
    content, message = HOSTILE[name]
    assert len(content.encode()) <= MAX_BYTES, "this tests what is below the limit of the size"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    if message:
        said = fault(tmp_path, content)
        assert message in said
        assert said.count("d.yaml") == 1
        assert len(said) < 600
    else:
        read(tmp_path, content)
    # CPU time, so that a busy machine does not fail the test; the slowest takes half of it
    assert time.process_time() - start < second
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024


def test_a_file_of_100_mb_is_refused_without_being_read(tmp_path: Path) -> None:
    path = tmp_path / "big.yaml"
    with path.open("wb") as file:
        file.truncate(100 * 1024 * 1024)
    start = time.process_time()
    with pytest.raises(SpecError) as caught:
        load_document(path)
    assert time.process_time() - start < 0.05
    assert str(caught.value) == (
        f"{path}: has 104857600 bytes and a spec may have {MAX_BYTES};"
        " move data into files of its own and stages into files named under include"
    )


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=200)
@given(
    content=st.one_of(
        st.binary(max_size=200),
        st.text(max_size=200).map(str.encode),
        st.text("a:- {}[]&*!|>'\"#%@,?\n\t<", max_size=60).map(str.encode),
    )
)
def test_any_bytes_are_read_or_refused_with_one_message(tmp_path: Path, content: bytes) -> None:
    said = ""
    try:
        read(tmp_path, content)
    except SpecError as exc:
        said = str(exc)
    assert said == "" or re.match(rf"{re.escape(str(tmp_path))}/d\.yaml:\d+:\d+: .*;", said)
