"""Everything of MCP beside plain calls, through the actor of a server that has one of everything, in both eras."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
import trio

from actors import kept_results, mcp_client
from protocol.contents import Content
from protocol.errors import Code, Fault
from protocol.mail import Gone
from protocol.mcp_server import (
    CallTool,
    Catalogue,
    CompleteArgument,
    Completion,
    GetPrompt,
    ReadResource,
    ResourceUpdated,
    SubscribeResource,
    ToolOutcome,
    UnsubscribeResource,
)
from tests.http_servers import MODERN, Asked, Reply, cut, http_server
from tests.http_servers import Fault as Answering
from tests.mcp_house import House, house, names, rich
from tests.rich_server import CLOCK, ICON, PIXELS
from tests.test_mcp_http import at_url

GATEWAY = "front/gateway"
HUNDRED_KB = 100_000


async def use(at: House, tool: str, *, check: bool = False, **arguments: Any) -> ToolOutcome:
    call = CallTool(tool, tool, arguments, to=GATEWAY, conversation="c1", check=check)
    outcome: ToolOutcome = await at.ref("rich").ask(call, within=15)
    return outcome


@pytest.mark.parametrize("era", ["", "older"])
async def test_one_of_everything(era: str, tmp_path: Path) -> None:
    async with house(rich(era), state=tmp_path) as at:
        offered: Catalogue = await at.next(Catalogue)
        tools = {tool.name: tool for tool in offered.tools}
        picture = tools["picture"]
        assert (picture.title, picture.icons, picture.meta) == ("A picture", [ICON], {"example.com/kind": "art"})
        assert tools["sums"].output_schema is not None
        assert [(t.uri_template, t.name, t.meta) for t in offered.templates] == [
            ("rich://city/{name}", "city", {"k": 1})
        ]
        assert [(prompt.name, prompt.title, prompt.icons) for prompt in offered.prompts] == [("visit", "Visit", [ICON])]
        offered = await at.next(Catalogue)  # once it is known what can be read
        clock = next(resource for resource in offered.resources if resource.uri == CLOCK)
        assert (clock.title, clock.size, clock.icons) == ("The clock", 5, [ICON])
        assert at.facts("rich")["era"] == ("legacy" if era else "modern")

        await results(at, tmp_path)
        await prompts_and_resources(at, tmp_path)
        await subscriptions(at)


async def results(at: House, state: Path) -> None:
    outcome = await use(at, "picture")
    assert outcome.text.split("\n") == [
        "look:",
        "[image image/png, 48 bytes]",
        "[audio audio/wav, 48 bytes]",
        "inside",
        "[link rich://clock clock]",
    ]
    text, image, audio, resource, link = outcome.contents
    assert (text, audio.type, audio.mime_type) == (Content("text", 5, text="look:"), "audio", "audio/wav")
    assert (image.data, image.size, image.mime_type) == (PIXELS, 48, "image/png")
    assert (image.annotations, image.meta) == ({"audience": ["user"], "priority": 0.5}, {"made": "by hand"})
    assert (resource.type, resource.uri, resource.text) == ("resource", "rich://a", "inside")
    assert (link.type, link.uri, link.title, link.size) == ("resource_link", CLOCK, "The clock", 5)

    film = await use(at, "film", size=HUNDRED_KB)
    (part,) = film.contents
    assert (film.text, part.data, part.size) == ("[image image/gif, 100000 bytes]", None, HUNDRED_KB)
    kept = kept_results.read(str(state), "c1", part.result_id, 0, 2 * HUNDRED_KB)
    assert kept.data == bytes(HUNDRED_KB)

    long = await use(at, "text", size=300_000)
    assert long.text.endswith("[cut here: these are the first 262144 of 600000 bytes]")
    assert (long.size, long.contents) == (600_000, [])
    assert kept_results.read(str(state), "c1", long.result_id, 599_998, 9).data.decode() == "ä"

    sums = await use(at, "sums")
    assert (sums.ok, sums.text, sums.structured, sums.contents) == (True, '{"sum":3}', {"sum": 3}, [])
    wrong = await use(at, "wrong")
    assert not wrong.ok
    assert "does not fit its output schema: 'three' is not of type 'integer' - at `$.sum`" in wrong.text
    assert wrong.text.endswith("\nthree")
    assert at.facts("rich")["results_against_schema"] == 1

    with pytest.raises(Fault, match=r"do not fit the tool's schema: 0 is less than the minimum") as caught:
        await use(at, "film", check=True, size=0)
    assert caught.value.code is Code.INVALID_MESSAGE
    assert "list_tools" in caught.value.body.hint
    assert (await use(at, "film", check=True, size=1)).ok


async def prompts_and_resources(at: House, state: Path) -> None:
    ask = at.ref("rich").ask
    filled = await ask(GetPrompt("visit", {"city": "Bern"}, "c1"), within=15)
    assert [message.content.type for message in filled.messages] == ["text", "image"]
    assert (filled.messages[0].content.text, filled.messages[1].content.data) == ("Visit Bern.", PIXELS)
    cities = CompleteArgument("city", "Be", prompt="visit", known={"not": "Bergen"})
    assert await ask(cities, within=15) == Completion(["Berlin", "Bern"], 2)
    template = CompleteArgument("name", "P", template="rich://city/{name}")
    assert (await ask(template, within=15)).values == ["Paris"]
    (city,) = await ask(ReadResource("rich://city/Paris", "c1"), within=15)
    assert city.text == "Paris"
    (film,) = await ask(ReadResource("rich://film", "c1"), within=15)
    assert (film.size, film.data, film.cut) == (900_000, None, True)
    assert kept_results.read(str(state), "c1", film.result_id, 0, 10).size == 900_000
    (whole,) = await ask(ReadResource("rich://film"), within=15)
    assert (whole.result_id, len(base64.b64decode(str(whole.data)))) == ("", 900_000)


async def subscriptions(at: House) -> None:
    ask, offer = at.ref("rich").ask, at.ref("rich").offer
    with pytest.raises(Fault) as caught:
        await ask(SubscribeResource("rich://film", GATEWAY), within=15)
    assert caught.value.code in (Code.NOT_FOUND, Code.FORBIDDEN)
    await use(at, "touch")  # nobody wants to know
    assert await ask(SubscribeResource(CLOCK, GATEWAY), within=15)
    assert CLOCK in (await use(at, "wanted")).text
    await use(at, "touch", times=1000)
    assert await at.next(ResourceUpdated) == ResourceUpdated("rich", CLOCK)

    offer(UnsubscribeResource(CLOCK, GATEWAY))
    while CLOCK in (await use(at, "wanted")).text:
        pass
    await use(at, "learn")
    while "learned" not in names(await at.next(Catalogue)):
        pass


def result(**fields: Any) -> Answering:
    """Answers with that, in the newer era."""

    async def answer(asked: Asked, reply: Reply) -> None:
        about = {"resultType": "complete", "ttlMs": 0, "cacheScope": "private"}
        await reply.json({"jsonrpc": "2.0", "id": asked.message["id"], "result": {**fields, **about}})

    return answer


class Streams:
    """Answers to `subscriptions/listen`: the first is lost on the way, the others stay open."""

    def __init__(self) -> None:
        self.tried = 0
        self.open: list[tuple[Asked, Reply]] = []
        self.ended = trio.Event()
        """Set whenever one ends, and then made anew."""

    async def listen(self, asked: Asked, reply: Reply) -> None:
        self.tried += 1
        if self.tried == 1:
            await cut(asked, reply)
            return
        self.open.append((asked, reply))
        await reply.begin()
        await self.tell("subscriptions/acknowledged", notifications=asked.message["params"]["notifications"])
        try:
            await trio.sleep_forever()
        finally:
            self.open.remove((asked, reply))
            self.ended.set()
            self.ended = trio.Event()

    async def tell(self, what: str, **params: Any) -> None:
        """To the latest."""
        asked, reply = self.open[-1]
        meta = {"io.modelcontextprotocol/subscriptionId": asked.message["id"]}
        await reply.event({"jsonrpc": "2.0", "method": f"notifications/{what}", "params": {**params, "_meta": meta}})


async def test_a_subscription_over_http_is_a_stream_that_is_opened_again_and_ends_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mcp_client, "LISTEN_PAUSE_S", 0.01)
    streams, updated = Streams(), ResourceUpdated("odd", CLOCK)
    async with http_server(modern=True) as server:
        server.faults["server/discover"] = result(
            supportedVersions=[MODERN], capabilities={"tools": {}, "resources": {"subscribe": True}}
        )
        server.faults["resources/list"] = result(resources=[])
        server.faults["subscriptions/listen"] = streams.listen
        async with house(at_url(server)) as at:
            await at.next(Catalogue)
            assert await at.ref().ask(SubscribeResource(CLOCK, GATEWAY), within=15)
            assert await at.next(ResourceUpdated) == updated  # nobody knows what happened before the second try
            await streams.tell("resources/updated", uri=CLOCK)
            assert await at.next(ResourceUpdated) == updated
            server.drop()
            assert await at.next(ResourceUpdated) == updated
            assert (await at.call("hello")).text == "hello"
            assert len(streams.open) == 1
            at.ref().offer(UnsubscribeResource(CLOCK, GATEWAY))
            while streams.open:
                await streams.ended.wait()


async def test_a_subscription_outlives_the_server(tmp_path: Path) -> None:
    async with house(rich(), state=tmp_path) as at:
        await at.next(Catalogue)
        await at.ref("rich").ask(SubscribeResource(CLOCK, GATEWAY), within=15)
        with pytest.raises(Gone):
            await use(at, "die")
        assert await at.next(ResourceUpdated) == ResourceUpdated("rich", CLOCK)  # it may have changed meanwhile
        assert CLOCK in (await use(at, "wanted")).text
        await use(at, "touch")
        assert await at.next(ResourceUpdated) == ResourceUpdated("rich", CLOCK)
