from __future__ import annotations

import json
import re
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from actors.catalogue import NAME_MAX, merge
from protocol.mcp_server import Catalogue, Resource, Tool

SCHEMA: dict[str, Any] = {"type": "object", "properties": {"x": {"$ref": "#/$defs/X"}}, "$defs": {"X": {"const": 1}}}


def offering(server: str, *names: str) -> Catalogue:
    tools = [Tool(name=name, description=f"{name} of {server}", schema=SCHEMA, annotations={}) for name in names]
    return Catalogue(server=server, tools=tools, resources=[], prompts=[], instructions="")


def model_names(*catalogues: Catalogue) -> list[str]:
    return [tool["function"]["name"] for tool in merge({c.server: c for c in catalogues}).tools_for_model]


def test_unique_names_stay_as_they_are() -> None:
    assert model_names(offering("demo", "add", "echo"), offering("git", "log")) == ["add", "echo", "log"]


def test_every_collider_is_named_after_its_server() -> None:
    names = model_names(offering("demo", "search", "add"), offering("web", "search"))
    assert names == ["add", "demo__search", "web__search"]


def test_the_way_back_finds_server_and_tool_and_nothing_else() -> None:
    merged = merge({"demo": offering("demo", "search"), "web": offering("web", "search", "get.page")})
    found = merged.find("web__search")
    assert found is not None
    assert (found[0], found[1].name) == ("web", "search")
    assert merged.find("search") is None
    page = merged.find("get_page")
    assert page is not None
    assert page[1].name == "get.page"
    assert merged.names()["web", "get.page"] == "get_page"


def test_a_server_that_imitates_prefixed_names_takes_nobodys_tool() -> None:
    merged = merge({"a": offering("a", "x", "b__x"), "b": offering("b", "x")})
    assert len(merged.tools_for_model) == 3
    assert sorted((server, tool.name) for server, tool in filter(None, map(merged.find, merged.names().values()))) == [
        ("a", "b__x"),
        ("a", "x"),
        ("b", "x"),
    ]


def test_long_names_are_cut_and_told_apart() -> None:
    long = "n" * 80
    names = model_names(offering("demo", long + "1", long + "2"))
    assert [len(name) for name in names] == [NAME_MAX, NAME_MAX]
    assert names[0] != names[1]


def test_schemas_go_to_the_model_verbatim() -> None:
    (tool,) = merge({"demo": offering("demo", "add")}).tools_for_model
    assert tool == {
        "type": "function",
        "function": {"name": "add", "description": "add of demo", "parameters": SCHEMA},
    }


def test_what_is_sent_is_made_once_for_the_same_offer() -> None:
    merged = merge({"demo": offering("demo", "add", "echo")})
    assert msgspec.json.decode(merged.tools_text) == merged.tools_for_model
    assert merged.tools_text is merged.tools_text


def test_what_servers_put_into_json_can_be_sent() -> None:
    odd = Tool(name="odd", description="half a pair: \ud800", schema={"maximum": 2**70}, annotations={})
    merged = merge({"demo": Catalogue(server="demo", tools=[odd], resources=[], prompts=[], instructions="")})
    assert json.loads(merged.tools_text) == merged.tools_for_model
    assert json.loads(msgspec.json.encode([msgspec.Raw(merged.tools_text)]))


def test_nothing_offered_gives_nothing() -> None:
    assert merge({}).tools_for_model == []
    assert merge({}).tools_text == b""


NAMES = st.one_of(st.sampled_from(["x", "a__x", "b__x", "x.y", "x_y", "x y", "", "n" * 70, "ä"]), st.text(max_size=80))
OFFERS = st.dictionaries(
    st.one_of(st.sampled_from(["a", "b", "a__b"]), st.text(max_size=8)), st.lists(NAMES, max_size=6)
)


@given(OFFERS, st.randoms())
def test_names_are_valid_unique_complete_and_independent_of_arrival(offers: dict[str, list[str]], rng: Any) -> None:
    catalogues = {server: offering(server, *names) for server, names in offers.items()}
    merged = merge(catalogues)
    names = [tool["function"]["name"] for tool in merged.tools_for_model]
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name) for name in names)
    assert len(names) == len(set(names))
    reached = {(server, tool.name) for server, tool in filter(None, map(merged.find, names))}
    assert reached == {(server, name) for server, offered in offers.items() for name in offered}
    shuffled = list(offers.items())
    rng.shuffle(shuffled)
    again = merge({server: offering(server, *sorted(offered, reverse=True)) for server, offered in shuffled})
    assert again.names() == merged.names()


def test_the_system_prompt_is_made_once_for_the_same_offer() -> None:
    merged = merge({"demo": Catalogue("demo", [], [Resource("demo://readme", "readme", "", "")], [], "Use me.")})
    first = merged.prompt("Be brief.", instructions=True)
    assert first.startswith("Be brief.")
    assert "Use me." in first
    assert "demo://readme" in first
    assert merged.prompt("Be brief.", instructions=True) is first
    assert "Use me." not in merged.prompt("Be brief.", instructions=False)
    assert merged.prompt("Be long.", instructions=True).startswith("Be long.")
    assert merge({}).prompt("Be brief.", instructions=True) == "Be brief."
