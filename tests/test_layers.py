"""YAML texts with lines, and their mistakes in words."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.layers import (
    ConfigurationError,
    Layer,
    dump,
    json_lines,
    parse,
    parse_value,
    place,
)
from actors.trees import same, written

MISTAKES = [
    ("a:\n\tb: 1\n", "f:2:1: a tab, where YAML allows only spaces; replace it by spaces"),
    ("a: {b: 1\n", "f:2:1: the file ends inside a `{` or `[`; is it truncated?"),
    ('a: "x\n', "f:2:1: the file ends inside a quoted text; is it truncated?"),
    ("a: 1\nwebso", "f:2:6: a key without a colon; is the file truncated?"),
    ("a: b: c\n", "f:1:5: a second `: ` here; put the text in quotes, or correct the indentation"),
    (
        "a:\n  - x\n b: 1\n",
        "f:3:2: the indentation does not fit the lines above; align it with its section",
    ),
    ("a: @x", "f:1:4: a character that cannot begin a value; put the text in quotes"),
    ("a: *x", "f:1:4: an alias (`*name`) without its anchor; put the text in quotes if it is none"),
    ("---\na: 1\n---\nb: 2", "f:3:1: a second document (`---`); only one is allowed"),
    (
        "a: !!python/object/apply:os.system [x]",
        "f:1:4: the tag !!python/object/apply:os.system is not allowed here, remove it",
    ),
    ("a: !own 1", "f:1:4: the tag !own is not allowed here, remove it"),
    ("a: !!int abc", "f:1:4: is not a number that can be read"),
    ("a: .inf", "f:1:4: is not a finite number, which cannot be sent on"),
    ("a: 99999999999999999999", "f:1:4: is a number past 64 bits, which cannot be sent on"),
    ('a: "\\ud83d"', "f:1:4: holds half of a \\u surrogate pair, write the character itself"),
    ("a: |\n  \x00", "f:2: the character 0 is not allowed in YAML, remove it"),
    ("? [a]\n: b", "f:1:3: a key must be plain text"),
    ("a: &x [*x]", "f:1:4: is nested too deeply, or contains itself"),
    ("<<: 1", "f:1:5: `<<` needs a mapping"),
    ("[" * 1000, "f: is nested too deeply"),
    ("- a\n", "f:1: must be a mapping of keys such as `chat:` and `llm:`"),
    ("", "f:1: is empty; write {} into it to run on the defaults"),
    ("# only a comment\n", "f:1: is empty; write {} into it to run on the defaults"),
]


@pytest.mark.parametrize(("text", "message"), MISTAKES, ids=[repr(text[:20]) for text, _ in MISTAKES])
def test_mistakes_are_told_with_file_line_and_column(text: str, message: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        parse(text, "f")
    assert raised.value.problems == (message,)


def test_aliases_cannot_blow_up() -> None:
    bomb = "a: &a [1,1,1,1,1,1,1,1,1,1]\n"
    for one, other in ("ba", "cb", "dc", "ed", "fe"):
        bomb += f"{one}: &{one} [{','.join([f'*{other}'] * 10)}]\n"
    with pytest.raises(ConfigurationError, match="more than 20000 values"):
        parse(bomb, "f")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1.", 1.0),
        (".5", 0.5),
        ("-3", -3),
        ("0x1F", 31),
        ("0o17", 15),
        ("16_777_216", 16777216),
        ("08000", "08000"),
        ("2026-01-01", "2026-01-01"),
        ("12:30", "12:30"),
        ("yes", True),
        ("Off", False),
        ("", None),
        ("~", None),
        ('"8000"', "8000"),
        ('"\\ud83d\\ude00"', "😀"),
    ],
)
def test_scalars_are_what_they_look_like(text: str, value: object) -> None:
    assert same(parse(f"a: {text}", "f").data["a"], value)


def test_keys_are_text() -> None:
    assert parse("logit_bias: {50256: -100}\non: 1", "f").data == {"logit_bias": {"50256": -100}, "on": 1}


def test_keys_that_are_there_twice_are_warned_of() -> None:
    layer = parse("chat: {a: 1}\nllm: 1\nchat: {b: 2}\nllm: 3\n", "f")
    assert layer.data == {"chat": {"a": 1, "b": 2}, "llm": 3}
    assert layer.warnings == [
        "f:3: chat: is there twice (first on line 1); both were joined",
        "f:4: llm: is there twice (first on line 2); the later one counts",
    ]


def test_merge_keys_give_what_the_mapping_lacks() -> None:
    text = "base: &b {x: 1, y: 2}\none: {<<: *b, y: 3}\ntwo: {<<: [{y: 4}, *b]}\n"
    data = parse(text, "f").data
    assert data["one"] == {"x": 1, "y": 3}
    assert data["two"] == {"x": 1, "y": 4}


def test_every_key_has_its_line_and_what_is_missing_the_one_above() -> None:
    below = parse("a:\n  b: 1\n  c: [x,\n    y]\n", "low.yaml")
    above = parse("# comment\n\na:\n  b: 2\n", "high.yaml")
    assert place([below, above], ("a", "b")) == "high.yaml:4"
    assert place([below, above], ("a", "c", 1)) == "low.yaml:4"
    assert place([below, above], ("a", "nothing")) == "high.yaml:3"
    assert place([below, Layer("command line", {"a": {"b": 3}})], ("a", "b")) == "command line"
    assert written(("a", "c", 1, "d")) == "a.c[1].d"


def test_json_has_lines_too() -> None:
    text = '{\n\t"a": {\n\t\t"b": "\\ud83d\\ude00"\n\t}\n}'
    assert json_lines(text)["a", "b"] == 3
    assert json_lines('{"' + "k" * 2000 + '": 1}') == {}


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(texts, anything, max_size=4))
def test_what_is_dumped_is_read_back(tree: dict[str, Any]) -> None:
    assert same(parse(dump(tree), "f").data, tree)


@given(st.text(max_size=60))
def test_no_text_fails_otherwise_than_by_its_own_error(text: str) -> None:
    # Anything but ConfigurationError comes out and fails the test.
    with contextlib.suppress(ConfigurationError):
        assert isinstance(parse(text, "f").data, dict)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("8080", 8080),
        ("", None),
        ("[a, 1]", ["a", 1]),
        ("{a: {b: null}}", {"a": {"b": None}}),
        ('"8080"', "8080"),
        ("a word: no", {"a word": False}),
        ("openai/gpt-4o", "openai/gpt-4o"),
    ],
)
def test_one_value_is_read_as_behind_a_key(text: str, value: object) -> None:
    assert same(parse_value(text), value)


@pytest.mark.parametrize("text", ["[a", "!!python/object x", "\x00", "*x", ".inf", "[" * 1000])
def test_what_is_no_value_is_said(text: str) -> None:
    with pytest.raises(ConfigurationError, match="value"):
        parse_value(text)


def test_what_no_file_can_hold_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="no file can hold"):
        dump({"a": object()})
