"""Streams written for the oddities that are seen in the wild, each decoded at every split, and some over a socket.

What is recorded of real providers is in tests/test_completion.py where the recordings are at hand; these are
ours, and stay with the repository.
"""

from __future__ import annotations

import gzip
import json
import zlib
from typing import Any

import pytest

from actors.completion import Completion
from actors.sse import Decoder
from actors.verdict import Complaint
from protocol.errors import Code
from protocol.streamer import Piece, Text, Thinking
from tests.fakes import Cut, FakeProvider, Script, Stall, fail, raw, say
from tests.streaming import harness, provider


def chunk(content: Any = None, finish: str | None = None) -> str:
    delta = {} if content is None else {"content": content}
    return json.dumps({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})


A, B, STOP = chunk("a"), chunk("b"), chunk(finish="stop")
PRETTY = json.dumps(json.loads(A), indent=1)

ANSWERS: dict[str, bytes] = {
    # All of these say "ab" and end as they should.
    "plain": f"data: {A}\n\ndata: {B}\n\ndata: {STOP}\n\ndata: [DONE]\n\n".encode(),
    "CRLF": f"data: {A}\r\n\r\ndata: {B}\r\n\r\ndata: {STOP}\r\n\r\ndata: [DONE]\r\n\r\n".encode(),
    "CR": f"data: {A}\r\rdata: {B}\r\rdata: {STOP}\r\rdata: [DONE]\r\r".encode(),
    "no space after the colon": f"data:{A}\n\ndata:{B}\n\ndata:{STOP}\n\ndata:[DONE]\n\n".encode(),
    "a byte order mark": b"\xef\xbb\xbf" + f"data: {A}\n\ndata: {B}\n\ndata: {STOP}\n\ndata: [DONE]\n\n".encode(),
    "data of many lines": ("data: " + PRETTY.replace("\n", "\ndata: ") + f"\n\ndata: {B}\n\ndata: {STOP}\n\n").encode(),
    "comments": f": PROCESSING\n\n:\ndata: {A}\n: keep-alive\n\n:\n\ndata: {B}\n\n: x\ndata: {STOP}\n\n".encode(),
    "ids, retries and names": (
        f"id: 1\nretry: 5\nevent: message\ndata: {A}\n\nevent: completion.chunk\ndata: {B}\n\ndata: {STOP}\n\n"
    ).encode(),
    "pings": (
        f"event: ping\ndata: {{}}\n\ndata: {A}\n\nevent: heartbeat\ndata:\n\ndata: {B}\n\ndata: {STOP}\n\n"
    ).encode(),
    "no end mark": f"data: {A}\n\ndata: {B}\n\ndata: {STOP}\n\n".encode(),
    "no end mark, no blank line": f"data: {A}\n\ndata: {B}\n\ndata: {STOP}".encode(),
    "no finish, but the end mark": f"data: {A}\n\ndata: {B}\n\ndata: [DONE]\n\n".encode(),
    "the finish with the last text": f"data: {A}\n\ndata: {chunk('b', 'stop')}\n\n".encode(),
    "an empty finish on every chunk": (
        f"data: {chunk('a', '')}\n\ndata: {chunk('b', '')}\n\ndata: {chunk('', 'stop')}\n\n"
    ).encode(),
    "no choices, empty choices, null": (
        f'data: {{"id":"x"}}\n\ndata: {{"choices":[]}}\n\ndata: {{"choices":null}}\n\n'
        f"data: {A}\n\ndata: {B}\n\ndata: {STOP}\n\n"
    ).encode(),
    "content as parts": (
        f"data: {chunk([{'type': 'text', 'text': 'a'}])}\n\n"
        f"data: {chunk({'type': 'text', 'text': 'b'})}\n\ndata: {STOP}\n\n"
    ).encode(),
    "each chunk in a list": f"data: [{A}]\n\ndata: [{B}]\n\ndata: [{STOP}]\n\n".encode(),
    "an error that is null": f'data: {A[:-1]}, "error": null}}\n\ndata: {B}\n\ndata: {STOP}\n\n'.encode(),
    "a message at the end that repeats it": (
        f"data: {A}\n\ndata: {B}\n\ndata: "
        '{"choices":[{"index":0,"message":{"content":"ab"},"finish_reason":"stop"}]}\n\n'
    ).encode(),
}

FAILURES: dict[str, tuple[bytes, Code, str, str]] = {
    # wire -> code, what was said before, a part of the provider's words
    "nothing": (b"", Code.LLM_STREAM_BROKEN, "", ""),
    "only comments": (b": a\n\n: b\n\n", Code.LLM_STREAM_BROKEN, "", ""),
    "only the end mark": (b"data: [DONE]\n\n", Code.LLM_STREAM_BROKEN, "", ""),
    "end without a finish": (f"data: {A}\n\n".encode(), Code.LLM_STREAM_BROKEN, "a", ""),
    "end inside a chunk": (f"data: {A}\n\ndata: {B[:-9]}".encode(), Code.LLM_STREAM_BROKEN, "a", ""),
    "end inside a character": (
        f"data: {A}\n\n".encode() + 'data: {"choices":[{"delta":{"content":"é'.encode()[:-1],
        Code.LLM_STREAM_BROKEN,
        "a",
        "",
    ),
    "a chunk that is none": (f"data: {A}\n\ndata: {{oops\n\n".encode(), Code.LLM_STREAM_BROKEN, "a", "oops"),
    "a number": (b"data: 1\n\n", Code.LLM_STREAM_BROKEN, "", "1"),
    "an error object": (
        f'data: {A}\n\ndata: {{"error":{{"message":"it fell","code":502}}}}\n\n'.encode(),
        Code.LLM_UNAVAILABLE,
        "a",
        "it fell",
    ),
    "an error object in a list": (
        b'data: [{"error":{"code":429,"message":"quota","status":"RESOURCE_EXHAUSTED"}}]\n\n',
        Code.LLM_RATE_LIMITED,
        "",
        "quota",
    ),
    "a list of errors": (b'data: {"error":[{"msg":"bad field"}]}\n\n', Code.LLM_UNAVAILABLE, "", "bad field"),
    "an error that is text": (b'data: {"error":"no GPU"}\n\n', Code.LLM_UNAVAILABLE, "", "no GPU"),
    "an error event": (
        b'event: error\ndata: {"message":"too long a prompt","code":400}\n\n',
        Code.LLM_REJECTED,
        "",
        "too",
    ),
    "an error event that is text": (b"event: error\ndata: busy\n\n", Code.LLM_UNAVAILABLE, "", "busy"),
    "an error of a choice": (
        b'data: {"choices":[{"delta":{},"error":{"code":502,"message":"upstream"},"finish_reason":"error"}]}\n\n',
        Code.LLM_UNAVAILABLE,
        "",
        "upstream",
    ),
    "an error that is an event's type": (
        b'data: {"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}\n\n',
        Code.LLM_UNAVAILABLE,
        "",
        "Overloaded",
    ),
    "a detail": (b'data: {"detail":"Not authenticated"}\n\n', Code.LLM_UNAVAILABLE, "", "Not authenticated"),
    "a finish that is an error": (f"data: {chunk('a', 'error')}\n\n".encode(), Code.LLM_UNAVAILABLE, "a", ""),
    "too long, said in the stream": (
        b'data: {"error":{"message":"maximum context length is 10","code":"context_length_exceeded"}}\n\n',
        Code.LLM_CONTEXT_TOO_LONG,
        "",
        "10",
    ),
}


def splits(wire: bytes) -> list[list[bytes]]:
    """The wire whole, byte by byte, and in two at every byte."""
    halves = [[wire[:at], wire[at:]] for at in range(len(wire) + 1)]
    return [[wire], [wire[i : i + 1] for i in range(len(wire))], *halves]


def decode(parts: list[bytes], out: list[Piece]) -> Completion:
    decoder, completion = Decoder(), Completion(1, "m")
    for part in parts:
        for event in decoder.feed(part):
            completion.take(event, out)
    for event in decoder.close():
        completion.take(event, out)
    return completion


def said(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces if isinstance(piece, Text | Thinking))


@pytest.mark.parametrize("what", ANSWERS)
def test_an_answer_however_it_is_written(what: str) -> None:
    for parts in splits(ANSWERS[what]):
        out: list[Piece] = []
        finished = decode(parts, out).finish()
        assert (said(out), finished.finish_reason) == ("ab", "stop"), parts


@pytest.mark.parametrize("what", FAILURES)
def test_a_failure_however_it_is_written(what: str) -> None:
    wire, code, before, words = FAILURES[what]
    for parts in splits(wire):
        out: list[Piece] = []
        with pytest.raises(Complaint) as caught:
            decode(parts, out).finish()
        assert (caught.value.code, said(out)) == (code, before), parts
        assert words in caught.value.words


@pytest.mark.parametrize("what", [what for what in ANSWERS if what != "plain"])
def test_an_answer_cut_before_its_finish_is_never_one(what: str) -> None:
    wire = ANSWERS[what]
    end = max(wire.rfind(b'"stop"'), wire.rfind(b"[DONE]") if b'"stop"' not in wire else -1)
    for at in range(end):
        out: list[Piece] = []
        with pytest.raises(Complaint) as caught:
            decode([wire[:at]], out).finish()
        assert caught.value.code == Code.LLM_STREAM_BROKEN
        assert "ab".startswith(said(out))


# Over a socket: what is of HTTP, or too large to be split at every byte.


def packed(coding: str, wire: bytes, bits: int = zlib.MAX_WBITS) -> Script:
    body = gzip.compress(wire) if coding.endswith("gzip") else zlib.compress(wire, wbits=bits)
    return Script((body[:9], body[9:]), headers={"Content-Encoding": coding}, done=False)


BODIES: dict[str, Script] = {
    "gzip that nobody asked for": packed("gzip", ANSWERS["plain"]),
    "gzip by its old name": packed("x-gzip", ANSWERS["plain"]),
    "deflate that nobody asked for": packed("deflate", ANSWERS["plain"]),
    "deflate without a header": packed("deflate", ANSWERS["plain"], -zlib.MAX_WBITS),
    "gzip in two members": Script(
        (gzip.compress(ANSWERS["plain"][:50]) + gzip.compress(ANSWERS["plain"][50:]),),
        headers={"Content-Encoding": "gzip"},
        done=False,
    ),
    "identity, said aloud": Script((ANSWERS["plain"],), headers={"Content-Encoding": "identity"}, done=False),
    "no content type": Script((ANSWERS["plain"],), content_type="", done=False),
    "plain text": Script((ANSWERS["plain"],), content_type="text/plain; charset=utf-8", done=False),
    "JSON by its name": Script((ANSWERS["plain"],), content_type="application/json", done=False),
    "ended by the connection": raw(ANSWERS["no end mark"], framing="close"),
    "the whole answer at once, though streamed was asked": raw(
        b'{"choices":[{"message":{"role":"assistant","content":"ab"},"finish_reason":"stop"}]}'
    ),
    "the same behind a byte order mark and space": raw(
        b"\xef\xbb\xbf", b" \r\n", b'{"choices":[{"message":{"content":"ab"},"finish_reason":"stop"}]}'
    ),
}


@pytest.mark.parametrize("what", BODIES)
async def test_a_body_however_it_comes(what: str) -> None:
    async with FakeProvider(BODIES[what]) as upstream, harness(provider(upstream.base_url, retries=0)) as h:
        h.ask(1)
        assert (await h.finished(1)).finish_reason == "stop"
        assert h.text(1) == "ab"


BROKEN: dict[str, tuple[Script, Code, str]] = {
    "an empty body": (raw(b""), Code.LLM_STREAM_BROKEN, "broke off"),
    "an empty body of no length": (raw(b"", framing="close"), Code.LLM_STREAM_BROKEN, "broke off"),
    "a coding that nobody can read": (
        Script((b"\x0b\x01\x80",), headers={"Content-Encoding": "br"}, done=False),
        Code.LLM_UNAVAILABLE,
        "compressed",
    ),
    "gzip that is none": (
        Script((b"nonsense", Stall()), headers={"Content-Encoding": "gzip"}, done=False),
        Code.LLM_STREAM_BROKEN,
        "compressed",
    ),
    "end inside a chunk": (Script((chunk("a").encode()[:20], Cut()), done=False), Code.LLM_STREAM_BROKEN, "broke"),
    "a page": (
        Script((b"<!DOCTYPE html><html><title>Sign in</title>",), content_type="text/html", done=False),
        Code.LLM_UNAVAILABLE,
        "Sign in",
    ),
    "a page by another name": (raw(b"  \n<html><h1>Blocked</h1>"), Code.LLM_UNAVAILABLE, "Blocked"),
    "a page as error": (
        Script((b"<html><h1>502 Bad Gateway</h1>nginx</html>",), 502, content_type="text/html", done=False),
        Code.LLM_UNAVAILABLE,
        "502 Bad Gateway",
    ),
    "an error with an empty body": (Script((), 500, done=False), Code.LLM_UNAVAILABLE, "HTTP 500"),
    "an error in a list": (
        Script((b'[{"error":{"code":400,"message":"API key expired."}}]',), 400, done=False),
        Code.LLM_AUTH_FAILED,
        "API key expired.",
    ),
    "an error packed": (
        Script((gzip.compress(b'{"error":{"message":"sleeping"}}'),), 503, {"Content-Encoding": "gzip"}, done=False),
        Code.LLM_UNAVAILABLE,
        "sleeping",
    ),
    "an error of a megabyte": (fail(400, "x" * 1_000_000), Code.LLM_REJECTED, "xxx"),
    "a whole answer of errors": (raw(b'{"errors":["a","b"],"error":{"message":"out"}}'), Code.LLM_UNAVAILABLE, "out"),
    "text that is no stream": (raw(b"upstream connect error\n"), Code.LLM_STREAM_BROKEN, "upstream connect error"),
}


@pytest.mark.parametrize("what", BROKEN)
async def test_a_body_that_is_no_answer(what: str) -> None:
    script, code, words = BROKEN[what]
    async with FakeProvider(script) as upstream, harness(provider(upstream.base_url, retries=0)) as h:
        h.ask(1)
        fault = (await h.failed(1)).fault
        assert fault.code == code
        assert words in fault.text
        assert len(fault.text) < 500
        assert h.text(1) == ""


async def test_a_chunk_of_five_megabytes() -> None:
    large = "é" * 2_500_000
    wire = f"data: {chunk(large)}\n\n".encode()
    parts = tuple(wire[i : i + 100_000] for i in range(0, len(wire), 100_000))
    script = Script((*parts, *say("b").items))
    async with FakeProvider(script) as upstream, harness(provider(upstream.base_url)) as h:
        h.ask(1)
        await h.finished(1)
        assert h.text(1) == large + "b"


async def test_what_expands_without_bound_ends_at_the_limit_of_an_event() -> None:
    bomb = gzip.compress(b"data: " + b"x" * 40_000_000)
    assert len(bomb) < 50_000
    script = Script((bomb,), headers={"Content-Encoding": "gzip"}, done=False)
    async with FakeProvider(script) as upstream, harness(provider(upstream.base_url)) as h:
        h.ask(1)
        fault = (await h.failed(1)).fault
        assert fault.code == Code.LLM_STREAM_BROKEN
        assert "larger than" in fault.text
        assert len(upstream.requests) == 1
