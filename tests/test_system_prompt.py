from __future__ import annotations

import re
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from actors.system_prompt import INSTRUCTIONS_MAX, LINE_MAX, build
from protocol.mcp_server import Catalogue, Prompt, Resource

BASE = "You are a test.\n"


def resource(uri: str, name: str = "", description: str = "", mime_type: str = "") -> Resource:
    return Resource(uri=uri, name=name, description=description, mime_type=mime_type)


def offering(server: str, *resources: Resource, prompts: tuple[Prompt, ...] = (), instructions: str = "") -> Catalogue:
    return Catalogue(server, [], list(resources), list(prompts), instructions)


def built(*catalogues: Catalogue, limit: int = 8_000, prompt: str = BASE) -> str:
    return build(prompt, {c.server: c for c in catalogues}, limit_chars=limit)


def test_without_servers_it_is_the_configured_prompt() -> None:
    assert built() == BASE
    assert built(offering("demo")) == BASE
    assert built(prompt="") == ""


def test_instructions_resources_and_prompts_follow_in_order() -> None:
    haiku = Prompt("haiku", "Ask for a\nhaiku.", [{"name": "topic"}, {"name": "mood", "required": True}])
    text = built(
        offering("web", resource("web://news", "news", "What happened", "text/html")),
        offering("demo", resource("demo://readme"), prompts=(haiku,), instructions="Try me.\n\n# Not a heading\n"),
    )
    assert text == (
        "You are a test.\n\n"
        "What the connected MCP servers say of themselves:\n"
        "- demo: Try me.\n"
        "  # Not a heading\n\n"
        "Resources that are available now:\n"
        "- demo://readme (server demo)\n"
        "- web://news (news, text/html, server web): What happened\n\n"
        "Prompts that the user can choose:\n"
        "- haiku(topic, mood) (server demo): Ask for a haiku."
    )


def test_without_a_configured_prompt_the_servers_are_told_of_alone() -> None:
    assert built(offering("a", resource("a://1")), prompt=" ").startswith("Resources that are available now:")


def test_one_large_server_crowds_out_nobody_and_what_is_missing_is_told() -> None:
    many = offering("a", *(resource(f"a://{number}", description="x" * 50) for number in range(10_000)))
    few = offering("z", resource("z://1"), resource("z://2"), instructions="Hello.")
    text = built(many, few, limit=2_000)
    assert "- z: Hello." in text
    assert "z://1" in text
    assert "z://2" in text
    assert len(text) <= len(BASE) + 2_000
    (missing,) = re.findall(r"\(Left out for their size: (\d+) resources\.\)$", text)
    assert int(missing) + text.count("- a://") == 10_000


def test_no_line_and_no_instructions_are_endless() -> None:
    text = built(offering("a", resource("a://1", description="d" * 9_999), instructions="i" * 9_999))
    assert max(map(len, text.splitlines())) <= INSTRUCTIONS_MAX + len("- a: ")
    assert len(text.splitlines()[-1]) == LINE_MAX
    assert text.endswith("…")


WORDS = st.text(max_size=40)
OFFERS = st.dictionaries(
    st.sampled_from(["a", "b", "c d"]),
    st.tuples(st.lists(st.tuples(WORDS, WORDS, WORDS, WORDS), max_size=8), WORDS),
)


@given(OFFERS, st.integers(0, 1_000), WORDS, st.randoms())
def test_it_is_bounded_keeps_the_prompt_and_does_not_depend_on_arrival(
    offers: dict[str, Any], limit: int, prompt: str, rng: Any
) -> None:
    catalogues = {
        server: offering(server, *(resource(*fields) for fields in resources), instructions=instructions)
        for server, (resources, instructions) in offers.items()
    }
    text = build(prompt, catalogues, limit_chars=limit)
    assert len(text) <= len(prompt) + limit
    assert text.startswith(prompt.rstrip())
    shuffled = list(catalogues.items())
    rng.shuffle(shuffled)
    assert build(prompt, dict(shuffled), limit_chars=limit) == text
