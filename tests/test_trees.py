"""Merging and comparing trees: what stays, what goes, and that both together give back what was wanted."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.trees import (
    Path,
    Tree,
    changes,
    deep_merge,
    difference,
    find,
    leaves,
    only,
    removes,
    same,
    value_at,
    with_value,
    without,
    written,
)


def test_null_takes_away_below_providers_only() -> None:
    base: Tree = {
        "chat": {"port": 1, "limit": 2},
        "llm": {"providers": {"one": {"top_p": 1, "nested": {"x": 1, "y": 2}, "api_key_env": "K"}, "two": {"m": 1}}},
    }
    over: Tree = {
        "chat": {"limit": None},
        "llm": {"providers": {"one": {"top_p": None, "nested": {"x": None}, "api_key_env": None}, "two": None}},
    }
    assert deep_merge(base, over) == {
        "chat": {"port": 1, "limit": None},
        "llm": {"providers": {"one": {"nested": {"y": 2}, "api_key_env": None}}},
    }
    assert deep_merge(base, {"chat": None, "llm": {"providers": None}}) == base
    assert not removes(("llm", "providers"))


names = st.sampled_from(["llm", "providers", "a", "b", "api_key_env", "client"])
scalars = st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from([0.0, 1.0, "x", "1e-3", "yes", "~", ""])
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(names, inner, max_size=3), max_leaves=12
)
trees = st.dictionaries(names, values, max_size=4)


def plain(tree: Tree) -> Tree:
    """Without nulls that remove: as a merged configuration is."""
    return deep_merge({}, tree)


@given(trees, trees)
def test_merging_twice_is_merging_once_and_changes_no_input(base: Tree, over: Tree) -> None:
    before = json.dumps([base, over])
    once = deep_merge(base, over)
    assert same(deep_merge(once, over), once)
    assert json.dumps([base, over]) == before
    assert same(deep_merge(once, {}), once)


@given(trees, trees)
def test_what_is_not_said_stays(base: Tree, over: Tree) -> None:
    base = plain(base)
    merged = deep_merge(base, over)
    assert all(same(merged[key], base[key]) for key in base if key not in over)
    assert set(merged) <= set(base) | set(over)


@given(trees, trees)
def test_the_difference_makes_the_wanted_out_of_the_base(base: Tree, over: Tree) -> None:
    base = plain(base)
    wanted = deep_merge(base, over)
    assert same(deep_merge(base, difference(base, wanted)), wanted)
    assert difference(base, base) == {}


@given(trees, trees)
def test_changes_name_what_differs_and_nothing_else(base: Tree, over: Tree) -> None:
    before, after = plain(base), deep_merge(plain(base), over)
    found = changes(before, after)
    assert bool(found) == (not same(before, after))
    old, new = dict(leaves(before)), dict(leaves(after))
    for key, was, now in found:
        assert not same(was, now) or was is None
        assert any(written(path) == key for path in {*old, *new})


def test_what_comes_into_an_empty_mapping_is_named_and_not_the_mapping() -> None:
    assert changes({"a": {}, "b": {"c": 1}}, {"a": {"x": 1}, "b": {}}) == [("a.x", None, 1), ("b.c", 1, None)]
    assert changes({"a": {}}, {"a": 1}) == [("a", {}, 1)]


@given(trees)
def test_leaves_make_the_tree_again(tree: Tree) -> None:
    again: Tree = {}
    for path, value in leaves(tree):
        again = with_value(again, path, value)
    assert same(again, tree)


TREE: Tree = {"llm": {"active": "my.llm", "providers": {"my.llm": {"model": "m"}, "my": {"llm": {"x": 1}}}}}


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("llm.active", ("llm", "active")),
        ("llm.providers.my.llm.model", ("llm", "providers", "my.llm", "model")),
        ("llm.providers.my.other", ("llm", "providers", "my", "other")),
        ("llm.providers.new.model", ("llm", "providers", "new", "model")),
        ("nothing.at.all", ("nothing", "at", "all")),
    ],
)
def test_paths_are_found_as_people_write_them(text: str, path: Path) -> None:
    assert find(TREE, text) == path


def test_parts_of_a_tree() -> None:
    path = ("llm", "providers", "my.llm", "model")
    assert value_at(TREE, path) == "m"
    assert value_at(TREE, (*path, "deeper")) is None
    assert only(TREE, path) == {"llm": {"providers": {"my.llm": {"model": "m"}}}}
    assert only(TREE, ("llm", "nothing")) is None
    assert only(TREE, (*path, "deeper")) is None
    assert without(TREE, ("llm", "providers")) == {"llm": {"active": "my.llm"}}
    assert with_value(TREE, ("llm", "active", "x"), 1)["llm"]["active"] == {"x": 1}
    assert TREE["llm"]["active"] == "my.llm"
