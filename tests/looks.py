"""Looks at a running service from outside, for the sweep of its keys (tests/sweep.py).

Frames, requests that the provider gets, HTTP answers, lines of the log, the database, the status. A look is an
async function of the world; those of turns are made of a message and the part that is looked at. What is done
before the changes of a sweep is here too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import closing
from typing import Any

import apsw
import trio
import trio_websocket

from tests.fakes import Asked, Script, fail, say
from tests.mcp_house import ODD
from tests.peer import PING, peer
from tests.service import Frame, of_type
from tests.sweep import Look, World
from tests.tls import Tls

# What can be seen of a turn.


def asked(part: Callable[[Asked], object], message: str = "say 1 words") -> Look:
    """That part of the request that the provider gets in a turn."""

    async def look(w: World) -> object:
        await w.turn(message)
        return part(w.s.provider.requests[-1])

    return look


def frames(part: Callable[[list[Frame]], object], message: str = "say 2 words") -> Look:
    """That part of a turn's frames."""

    async def look(w: World) -> object:
        return part(await w.turn(message))

    return look


def logged(part: Callable[[list[str]], object], message: str = "say 2 words") -> Look:
    """That part of the lines that a turn leaves in the log."""

    async def look(w: World) -> object:
        await w.turn(message)
        return part(await w.lines.new())

    return look


def behind_ms(words: str) -> Callable[[list[str]], object]:
    """What stands behind the milliseconds of the one line with these words; None: there is no such line."""

    def part(lines: list[str]) -> object:
        found = [re.split(r"\d+ ms", line)[1] for line in lines if words in line]
        return found[-1] if found else None

    return part


def count(words: str) -> Callable[[list[str]], object]:
    """How many lines have these words."""
    return lambda lines: sum(words in line for line in lines)


def all_json(lines: list[str]) -> object:
    """Whether every line is a JSON object."""
    return bool(lines) and all(line.startswith("{") and isinstance(json.loads(line), dict) for line in lines)


def notice(field: str) -> Look:
    """That field of the frame that tells of a tool call."""
    return frames(lambda found: of_type(found, "tool_execution")[0].get(field), CALL)


CALL = 'tool hello {"who": "x"}'


def failing(message: str) -> Look:
    """The seconds that the error names by which a turn fails."""

    return frames(seconds, message)


def seconds(found: list[Frame]) -> object:
    """The seconds that the error names by which a turn fails."""
    return re.findall(r"([\d.]+) s\b", of_type(found, "error")[0]["error_message"])


def broken_but_for_another_model(request: Any) -> Script:
    """A provider's reply: its own model does not work."""
    return fail(500) if request["model"] == "fake-1" else say("x")


async def tries(w: World) -> object:
    """Requests of a turn whose provider is broken."""
    before = len(w.s.provider.requests)
    await w.turn("fail 500")
    return len(w.s.provider.requests) - before


async def rounds(w: World) -> object:
    """Requests that a turn may make whose model asks for tools for ever."""
    before = len(w.s.provider.requests)
    found = await w.turn(f"loop{CALL.removeprefix('tool')}")
    assert found[-1]["error"]["error_code"] == "TOOL_HOPS_EXCEEDED"
    return len(w.s.provider.requests) - before


async def connections(w: World) -> object:
    """Whether a second turn's request comes on the connection of the first."""
    first, second = [await asked(lambda request: request.connection)(w) for _ in range(2)]
    return "kept" if first == second else "another"


def beside_another(part: Callable[[list[Frame]], object]) -> Look:
    """That part of a turn that comes while another answer runs and does not end."""

    async def look(w: World) -> object:
        async with w.s.client("?conversation=new") as other:
            await stall(w)
            found = await other.say("say 1 words")
            await stop(w)
        return part(found)

    return look


def outcome(found: list[Frame]) -> object:
    """How a turn ended."""
    return found[-1]["outcome"]


def code(found: list[Frame]) -> object:
    """The code of the error by which a turn fails."""
    return of_type(found, "error")[0]["error_code"]


async def two_turns(w: World) -> object:
    """How two turns end, one after the other."""
    return [outcome(await w.turn("say 1 words")) for _ in range(2)]


async def tries_of_two(w: World) -> object:
    """Requests of two turns whose provider is broken."""
    return [await tries(w) for _ in range(2)]


async def rest(w: World) -> object:
    """For how long a provider is left alone that has failed, as the next turn says."""
    await w.turn("fail 500")
    return await failing("fail 500")(w)


async def open_connections(w: World) -> object:
    """How many connections the provider has, with nobody asking it."""
    await w.client.alive()
    return w.s.provider.open


async def nobody_accepts(w: World) -> None:
    """Before the changes: the provider's address is one where connections are not accepted."""
    full = w.stack.enter_context(closing(trio.socket.socket()))
    await full.bind(("127.0.0.1", 0))
    full.listen(0)
    await w.stack.enter_async_context(await trio.open_tcp_stream(*full.getsockname()))  # the only one that has room
    await w.change({"llm.providers.<name>.base_url": f"http://127.0.0.1:{full.getsockname()[1]}/v1"})


def error_of(found: list[Frame]) -> object:
    """Why a turn failed."""
    return [frame["error_message"].split(": ")[1] for frame in of_type(found, "error")]


# Of sockets and pages.


async def another_peer(w: World) -> None:
    """Before the changes: a socket that answers nothing by itself, and one that does."""
    w.peer = await w.stack.enter_async_context(peer(w.s))
    w.other = await w.stack.enter_async_context(w.s.client())
    # A ping that meets a close is too much for the clients' library.
    w.stack.push_async_callback(w.change, {"chat.websocket.ping_interval": 0})


async def pinged(w: World) -> object:
    """Wait for a ping on a socket that was there before."""
    while (found := await w.peer.receive()) is not None:
        if found == (PING, b""):
            return "pinged"
    return "dropped"


async def silent(w: World) -> object:
    """How a socket ends that answers no ping."""
    while await w.peer.receive() is not None:
        pass
    return "dropped"


async def large(w: World) -> object:
    """What becomes of a large frame on a socket that was there before."""
    try:
        await w.other.send("ping", padding="x" * 3000)
        await w.other.until("pong")
    except trio_websocket.ConnectionClosed as closed:
        return closed.reason and closed.reason.code
    return "taken"


async def endpoints(w: World) -> object:
    """Which of two paths is the WebSocket's."""
    return [path for path in ("/ws/chat", "/other") if (await w.s.get(path))[0] == 426]


PAGE = "https://chat.example"


async def page_may(w: World) -> object:
    """What a page of another origin gets: the status, and whether it may send credentials."""
    status, headers, _ = await w.s.get("/healthz", Origin=PAGE)
    return status, headers.get("access-control-allow-credentials")


async def where(w: World) -> object:
    """The loopback addresses that answer at the port in force."""
    if w.s.moved:
        w.s.port = w.s.moved[-1][1]
    return [host for host in ("127.0.0.1", "127.0.0.2") if await answers(host, w.s.port)]


async def answers(host: str, port: int) -> bool:
    """Somebody accepts connections there."""
    try:
        await (await trio.open_tcp_stream(host, port)).aclose()
    except OSError:
        return False
    return True


async def refused_address(w: World) -> object:
    """Whether an address of everybody is refused, as readiness tells; and whether it is listened on."""
    if w.s.moved:
        w.s.port = w.s.moved[-1][1]
    _, _, body = await w.s.get("/readyz")
    return b"nobody is asked who they are" in body, bool(w.s.moved) and w.s.moved[-1][0]


async def entered(w: World) -> object:
    """Whether who names no conversation is led to the last one."""
    await w.client.say("say 1 words")
    async with w.s.client() as late:
        return late.conversation == w.client.conversation


async def saving(w: World) -> object:
    """The answer to a wish to save."""
    await w.client.send("save_session", name="x", request_id="save")
    while (found := await w.client.next()).get("request_id") != "save":
        pass
    return found["type"]


# Of what is stored.


async def rows(w: World, sql: str) -> list[Any]:
    """Of the database, read beside the service, which does something meanwhile."""
    await w.client.alive()
    # Not by the sqlite3 module: a second SQLite in one process loses the locks of the first.
    with closing(apsw.Connection(str(w.s.state / "chat_history.db"), flags=apsw.SQLITE_OPEN_READONLY)) as db:
        return list(db.execute(sql))


async def talked(w: World) -> None:
    """Before the changes: four conversations, and one that is saved three times; nobody is in any of them."""
    for number in range(5):
        async with w.s.client("?conversation=new") as client:
            for _ in range(2):
                await client.say("say 1 words")
            for name in ("s0", "s1", "s2") if number == 0 else ():
                await client.send("save_session", name=name)
                await client.until("session_saved")


async def conversations(w: World) -> object:
    """How many there are that are not saved."""
    return (await rows(w, "SELECT count(*) FROM conversation WHERE n NOT IN (SELECT conversation FROM saved)"))[0][0]


async def saved_sessions(w: World) -> list[Frame]:
    """The owner's saved sessions."""
    await w.client.send("list_sessions")
    found: list[Frame] = (await w.client.until("sessions"))[-1]["sessions"]
    return found


async def saved_names(w: World) -> object:
    """Their names."""
    return [row["name"] for row in await saved_sessions(w)]


async def turns(w: World) -> object:
    """How many turns there are in them."""
    return (await rows(w, "SELECT count(*) FROM turn WHERE conversation NOT IN (SELECT conversation FROM saved)"))[0][0]


async def running_answer(w: World) -> None:
    """Before the changes: a turn that is ended before the service stops, which would wait for it."""
    w.stack.push_async_callback(stop, w)
    await stall(w)


async def stall(w: World) -> None:
    """A turn whose answer runs and does not end."""
    await w.client.send("user_message", message="stall after 3")
    text = ""
    while text != "w1 w2 w3":
        text += (await w.client.until("assistant_delta"))[-1]["text"]


async def stop(w: World) -> None:
    """End it."""
    await w.client.send("stop")
    await w.client.until("turn_finished")


async def stored(w: World) -> object:
    """What is on disk of the answer that runs."""
    bodies = await rows(w, "SELECT body FROM tick ORDER BY n")
    return "".join(text for (body,) in bodies for *_, text, _ in json.loads(body))


async def stored_of_a_new_one(w: World) -> object:
    """What is on disk of an answer that begins now, once it is all there."""
    await stop(w)
    await stall(w)
    while (found := await stored(w)) != "w1 w2 w3":
        pass
    return found


# Of the MCP servers.

PARKED_S = 300  # until a parked server is tried again
OTHERS = "others.json"


async def another_file(w: World) -> None:
    """Before the changes: a second file of servers, that end at once, never speak, or speak no more."""
    commands = {"exits": ["false"], "mute": ["sleep", "1000"], "deaf": ["python", ODD, "stops_reading"]}
    entries = {name: {"command": command, "args": args} for name, (command, *args) in commands.items()}
    (w.s.state / OTHERS).write_text(json.dumps({"mcpServers": entries}))


async def servers(w: World) -> list[dict[str, Any]]:
    """Their parts of the status."""
    tree = json.loads((await w.s.get("/status"))[2])
    [mcp] = [part for part in tree["children"] if part["name"] == "mcp"]
    found: list[dict[str, Any]] = mcp["children"]
    return found


async def server_names(w: World) -> object:
    """Their names."""
    return sorted(part["name"] for part in await servers(w))


def server(name: str, part: Callable[[dict[str, Any]], object]) -> Look:
    """That of one server's part of the status."""

    async def look(w: World) -> object:
        return [part(found) for found in await servers(w) if found["name"] == name]

    return look


def state_and_restarts(found: dict[str, Any]) -> object:
    """Where it is, after how many restarts."""
    return found["state"], found["restarts"]


def next_try(found: dict[str, Any]) -> object:
    """Where it is, and whether it is started again much later than a parked one would be."""
    return found["state"], (found["retry_in_s"] or 0) > PARKED_S


def where_and_for_ever(found: dict[str, Any]) -> object:
    """Where it is, and whether it stays there until it is changed."""
    return found["state"], found["retry_in_s"] is None


def fact(name: str) -> Callable[[dict[str, Any]], object]:
    """What it says of itself under that name."""
    return lambda found: found["facts"].get(name)


def no_directory(found: dict[str, Any]) -> object:
    """Whether it is said that its working directory is not there."""
    return "does not exist; correct `cwd`" in found["last_error"]


async def logged_by_server(w: World) -> object:
    """Levels of what a server writes to the log in a call."""
    await w.turn(CALL)
    return [line.split(" - ")[2] for line in await w.lines.new() if " - actors.mcp.<name> - " in line]


async def seconds_of_call(w: World) -> object:
    """How long a tool may take that never answers, as its result says; nothing while the tool is not there."""
    ended = of_type(await w.turn(CALL.replace("hello", "hang")), "tool_execution")[-1]
    return re.findall(r"([\d.]+) s\b", ended["result"])


def seconds_of_error(found: dict[str, Any]) -> object:
    """The last number of seconds that its last error names."""
    return re.findall(r"([\d.]+) s\b", found["last_error"])[-1:]


async def delays(w: World) -> object:
    """How the waits before the tries of a server go on that always ends, as sockets are told, until it is parked."""
    found: list[int] = []
    while (wait := (await w.client.until("degraded", what="mcp/exits"))[-1]["retry_in_ms"]) < PARKED_S * 1000 / 2:
        found.append(wait)
    first, *_, last = filter(None, found)  # the first try is at once
    return "grow" if last > 2 * first else "stay"  # by a fifth more or less each


# Of TLS.


async def behind_tls(w: World) -> None:
    """Before the changes: the provider is asked by TLS."""
    w.tls = Tls(w.s.state, w.s.provider.port)
    nursery = await w.stack.enter_async_context(trio.open_nursery())
    w.stack.callback(nursery.cancel_scope.cancel)
    await nursery.start(w.tls.serve)
    await w.change({"llm.providers.<name>.base_url": f"https://127.0.0.1:{w.tls.port}/v1"})


def trusted(found: list[Frame]) -> object:
    """Whether the provider's certificate is; else that this is said."""
    errors = [frame["error_message"] for frame in of_type(found, "error")]
    return not errors or ["certificate is not trusted" in error for error in errors]


async def http_version(w: World) -> object:
    """What a request speaks, and how its turn ends."""
    outcome = (await w.turn("say 1 words"))[-1]["outcome"]
    return w.tls.protocols[-1], outcome
