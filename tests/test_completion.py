"""What becomes of chat/completions answers: real recordings of 18 providers, and each rule by itself.

The recordings are compared with what the openai package decodes from the same bytes. Where we differ on
purpose, `DIFFERENT` says so with the reason; nothing else may differ.
"""

from __future__ import annotations

import json
import re
import tracemalloc
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest

from actors.completion import Completion, request_body
from actors.sse import Decoder, Event
from actors.verdict import Complaint, of_status
from protocol.errors import Code
from protocol.streamer import Complete, Finished, Piece, Text, Thinking
from protocol.watcher import ClientOptions, Provider

DIFFERENT: dict[str, dict[str, Any]] = {
    # What we make of it -> because
    "rec/21_mistral_oning-streams-thinking-separately-from-content_0.sse": {
        "content": "144",  # the first digit comes as a text part in a list, which the package does not join
        "reasoning": "The user is asking for the product",  # thinking comes as content parts; how it begins
    },
    "rec/24_openai_test-tools-streaming-variant-d_0.sse": {
        "args": "{}",  # arguments were null throughout; "" would be refused when it is sent back
    },
    "rec/25_openai_test-tools-streaming-variant-b_0.sse": {
        "finish": "tool_calls",  # none was said, but there are calls, and the end mark came
    },
    "rec/32_openai_async-stream_0.sse": {
        "content": "I'm sorry, I can\u2019t assist with that request.",  # a refusal stands in place of content
    },
    "rec/47_snowflake_test-snowflake-model-streaming_0.sse": {
        "finish": "stop",  # none was said, but the end mark came
    },
}

ERRORS = {
    "rec/08_deepseek_ek-chat-handles-context-length-exceeded-errors_0.body": Code.LLM_CONTEXT_TOO_LONG,
    "rec/09_deepseek_ek-deepseek-chat-raises-appropriate-auth-error_0.body": Code.LLM_AUTH_FAILED,
    "rec/16_groq_test-tool-use-failed-error-with-text_0.body": Code.LLM_REJECTED,
    "rec/17_groq_test-tool-regular-error_0.body": Code.LLM_REJECTED,
    "rec/22_mistral_ral-small-latest-raises-appropriate-auth-error_0.body": Code.LLM_AUTH_FAILED,
    "rec/35_openai_return-matrix-direct-binary-audio-openai-chat_1.body": Code.LLM_REJECTED,
    "rec/38_openai_openai-gpt-4o-completions_0.body": Code.LLM_AUTH_FAILED,
    "rec/43_perplexity_y-sonar-handles-context-length-exceeded-errors_0.body": Code.LLM_CONTEXT_TOO_LONG,
    "rec/52_ollama-cloud_ss-120b-handles-context-length-exceeded-errors_0.body": Code.LLM_CONTEXT_TOO_LONG,
    "rec/63_openrouter_iku-4-5-handles-context-length-exceeded-errors_0.body": Code.LLM_CONTEXT_TOO_LONG,
    "rec/65_openrouter_test-openrouter-errors-raised_0.body": Code.LLM_RATE_LIMITED,
    "rec/71_azure_st-non-reasoning-raises-appropriate-auth-error_0.body": Code.LLM_AUTH_FAILED,
}


def decode(wire: bytes, size: int = 65536) -> tuple[list[Piece], Completion]:
    decoder, completion, out = Decoder(), Completion(7, "asked-model"), list[Piece]()
    for i in range(0, len(wire), size):
        for event in decoder.feed(wire[i : i + size]):
            completion.take(event, out)
    for event in decoder.close():
        completion.take(event, out)
    return out, completion


def finish(wire: bytes, out: list[Piece]) -> Finished:
    decoder, completion = Decoder(), Completion(7, "asked-model")
    for event in [*decoder.feed(wire), *decoder.close()]:
        completion.take(event, out)
    return completion.finish()


def answer(*chunks: dict[str, Any] | str) -> tuple[list[Piece], Finished]:
    out, completion = take(*chunks)
    return out, completion.finish()


def take(*chunks: dict[str, Any] | str) -> tuple[list[Piece], Completion]:
    completion, out = Completion(7, "asked-model"), list[Piece]()
    for chunk in chunks:
        data = chunk.encode() if isinstance(chunk, str) else json.dumps(chunk).encode()
        completion.take(Event(data), out)
    return out, completion


def delta(finish: str | None = None, **fields: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": fields, "finish_reason": finish}]}


def text(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces if isinstance(piece, Text))


def thinking(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces if isinstance(piece, Thinking))


STOP = delta("stop")


class Recording(msgspec.Struct):
    file: str
    status: int
    wire: bytes
    expected: dict[str, Any]
    special: list[str]


@pytest.fixture
def recordings(shared: Path) -> list[Recording]:
    folder = shared / "streams"
    expected = json.loads((folder / "expected_openai_sdk.json").read_bytes())
    found = [
        Recording(
            row["file"], row["status"], (folder / row["file"]).read_bytes(), expected[row["file"]], row["special"]
        )
        for row in json.loads((folder / "index.json").read_bytes())
    ]
    assert len(found) == len(expected) >= 47
    return found


def test_recorded_streams_mean_what_the_openai_package_reads(recordings: list[Recording]) -> None:
    seen = 0
    for recording in recordings:
        if recording.status != 200 or recording.expected["error"]:
            continue
        seen += 1
        expected = recording.expected | DIFFERENT.get(recording.file, {})
        out, completion = decode(recording.wire)
        finished = completion.finish()
        assert text(out) == expected["content"], recording.file
        if recording.file in DIFFERENT and "reasoning" in DIFFERENT[recording.file]:
            assert thinking(out).startswith(expected["reasoning"]), recording.file
        else:
            assert thinking(out) == expected["reasoning"], recording.file
        calls = [(c["id"], c["name"], expected.get("args", c["args"])) for c in recording.expected["tools"].values()]
        assert [(c.id, c.name, c.arguments) for c in finished.tool_calls] == calls, recording.file
        finish = expected["finish"] if isinstance(expected["finish"], str) else expected["finish"][-1]
        assert finished.finish_reason == finish, recording.file
        assert (finished.usage or {}).get("total_tokens") == expected["usage"], recording.file
        assert finished.model != "asked-model", recording.file
        assert {piece.request for piece in out} <= {7}
    assert seen == 34


def test_recorded_streams_mean_the_same_at_every_split(recordings: list[Recording]) -> None:
    splits = 0
    for recording in recordings:
        if recording.status != 200 or recording.expected["error"]:
            continue
        out, completion = decode(recording.wire)
        whole = completion.finish()
        for size in (1, 61, 1460):  # at every byte at once, and at those of packets
            pieces, completion = decode(recording.wire, size)
            assert (pieces, completion.finish()) == (out, whole), (recording.file, size)
        # And in two at every byte: an event's end leaves the decoder as it was, so each event is shown by itself.
        ends = [match.end() for match in re.finditer(rb"(?:\r?\n){2}", recording.wire)]
        for start, end in pairwise([0, *ends]):
            one = recording.wire[start:end]
            events = Decoder().feed(one)
            for at in range(1, len(one)):
                decoder = Decoder()
                assert decoder.feed(one[:at]) + decoder.feed(one[at:]) == events, (recording.file, start + at)
                splits += 1
    assert splits > 400_000


def test_recorded_streams_cut_anywhere_are_never_a_success(recordings: list[Recording]) -> None:
    cut = 0
    for recording in recordings:
        if recording.status != 200 or recording.expected["error"]:
            continue
        # What comes before the first finish reason (or before the end mark, where none is said).
        end = recording.wire.find(b'"finish_reason":"')
        end = end if end >= 0 else recording.wire.find(b"[DONE]")
        start = recording.wire.rfind(b"data:", 0, end)
        whole, _ = decode(recording.wire)
        for part in range(0, start, max(1, start // 40)):
            out = list[Piece]()
            with pytest.raises(Complaint) as caught:
                finish(recording.wire[:part], out)
            assert caught.value.code == Code.LLM_STREAM_BROKEN, (recording.file, part)
            cut += 1
            assert text(whole).startswith(text(out))
    assert cut > 800


def test_a_recorded_error_in_the_middle_of_a_stream(recordings: list[Recording]) -> None:
    (recording,) = [r for r in recordings if r.status == 200 and r.expected["error"]]
    with pytest.raises(Complaint) as caught:
        decode(recording.wire)
    assert caught.value.code == Code.LLM_UNAVAILABLE
    assert caught.value.words in recording.expected["error"]
    assert caught.value.words


def test_recorded_error_bodies(recordings: list[Recording]) -> None:
    bodies = [recording for recording in recordings if recording.status != 200]
    assert {recording.file for recording in bodies} == set(ERRORS)
    for recording in bodies:
        complaint = of_status(recording.status, recording.wire)
        assert complaint.code == ERRORS[recording.file], recording.file
        # The package quotes the same words; for one of them it finds none ({"detail": ...}).
        said = recording.expected["error"].partition(" - ")[2]
        shown = complaint.fault("p", lambda words: words).body.text
        assert said[:100] in shown, recording.file
        assert len(shown) < 500


def test_what_recorded_providers_added_is_kept(recordings: list[Recording]) -> None:
    raw = {
        r.file[4:6]: decode(r.wire)[1].finish().raw for r in recordings if r.status == 200 and not r.expected["error"]
    }
    by_file = {r.file[4:6]: r.expected for r in recordings}
    assert raw["07"] == {"reasoning_content": by_file["07"]["reasoning"]}
    assert raw["10"] == {"reasoning": by_file["10"]["reasoning"]}  # not `channel`: it is the delta's
    assert raw["81"] == {}  # `index` within the delta neither
    assert raw["32"] == {"refusal": "I'm sorry, I can\u2019t assist with that request."}
    # One block of reasoning came in pieces, each in two fields: whole in both.
    assert raw["59"]["reasoning"] == by_file["59"]["reasoning"]
    (detail,) = [d for d in raw["59"]["reasoning_details"] if d.get("text")]
    assert (detail["type"], detail["text"]) == ("reasoning.text", by_file["59"]["reasoning"])
    assert [d["type"] for d in raw["62"]["reasoning_details"]] == ["reasoning.encrypted"]
    # Content that was parts goes back as parts, in order.
    thought, said = raw["21"]["content"]
    assert (thought["type"], said) == ("thinking", {"type": "text", "text": "144"})
    assert "".join(part["text"] for part in thought["thinking"]).startswith("The user is asking for the product")


def test_what_recorded_answers_refer_to(recordings: list[Recording]) -> None:
    cited = {
        r.file[4:6]: found
        for r in recordings
        if r.status == 200 and not r.expected["error"] and (found := decode(r.wire)[1].finish().annotations)
    }
    assert {name: len(found) for name, found in cited.items()} == {"41": 8, "88": 7}
    assert cited["41"][0]["url_citation"] == {
        "url": "https://www.youtube.com/watch?v=gJEC9-B37KI",
        "title": "Counting to 3 | Learn Numbers + More Counting Songs | 123 Numbers",
    }
    assert cited["88"][1]["url_citation"] == {"url": "https://en.wikipedia.org/wiki/San_Francisco"}


# Reasoning


@pytest.mark.parametrize(
    "field",
    [
        "thinking",
        "reasoning",
        "reasoning_content",
        "thought_process",
        "internal_thoughts",
        "chain_of_thought",
        "rationale",
    ],
)
def test_reasoning_in_every_known_field(field: str) -> None:
    out, finished = answer(delta(**{field: "Hm"}), delta(**{field: "m."}), delta(content="Yes."), STOP)
    assert out == [Thinking(7, "Hm"), Thinking(7, "m."), Text(7, "Yes.")]
    assert finished.raw == {field: "Hmm."}


def test_reasoning_that_comes_in_two_fields_is_shown_once_and_kept_twice() -> None:
    details = [{"type": "reasoning.text", "text": "a", "index": 0}]
    chunks = [
        delta(reasoning="a", reasoning_content="a"),
        delta(reasoning="a", reasoning_details=details),
        delta(reasoning="", reasoning_content="b"),
    ]
    out, finished = answer(*chunks, STOP)
    assert thinking(out) == "aab"
    assert finished.raw == {"reasoning": "aa", "reasoning_content": "ab", "reasoning_details": details}


def test_reasoning_details_alone_are_shown_and_joined_by_block() -> None:
    def detail(**fields: Any) -> dict[str, Any]:
        return delta(content="", reasoning_details=[{"index": 0, "type": "reasoning.summary", **fields}])

    block = {"index": 1, "type": "reasoning.encrypted", "data": "zzz"}
    out, finished = answer(detail(summary="a"), detail(summary="b", format="f"), delta(reasoning_details=[block]), STOP)
    assert thinking(out) == "ab"
    assert finished.raw["reasoning_details"] == [
        {"index": 0, "type": "reasoning.summary", "summary": "ab", "format": "f"},
        block,
    ]


# Content and other fields


def test_content_parts_in_any_form() -> None:
    out, finished = answer(
        delta(content="a"),
        delta(content=[{"type": "text", "text": "b"}, "c", {"type": "reasoning", "reasoning": "hm"}]),
        delta(content=[{"type": "image_url", "image_url": {"url": "u"}}]),
        delta(content="d"),
        STOP,
    )
    assert out == [Text(7, "a"), Text(7, "b"), Text(7, "c"), Thinking(7, "hm"), Text(7, "d")]
    assert finished.raw["content"] == [
        {"type": "text", "text": "abc"},
        {"type": "reasoning", "reasoning": "hm"},
        {"type": "image_url", "image_url": {"url": "u"}},
        {"type": "text", "text": "d"},
    ]


def test_content_parts_of_text_only_are_text() -> None:
    out, finished = answer(delta(content=[{"type": "text", "text": "b"}]), STOP)
    assert (text(out), finished.raw) == ("b", {})


def test_unknown_fields_are_kept_whole() -> None:
    _, finished = answer(
        delta(role="assistant", content="x", audio={"id": "a", "transcript": "he"}, annotations=[{"n": 1}], sig="A"),
        delta(content="y", audio={"id": "a", "transcript": "llo", "expires_at": 5}, annotations=[{"n": 2}], sig="B"),
        delta(content="", novel=None, empty=""),
        STOP,
    )
    assert finished.raw == {
        "audio": {"id": "a", "transcript": "hello", "expires_at": 5},
        "annotations": [{"n": 1}, {"n": 2}],
        "sig": "AB",
    }


def test_annotations_are_given_out_and_kept() -> None:
    link = {"type": "url_citation", "url_citation": {"url": "https://a.example", "title": "A", "start_index": 1}}
    _, finished = answer(delta(content="x"), delta(annotations=[link]), delta(annotations=["odd"]), STOP)
    assert finished.annotations == [link]
    assert finished.raw == {"annotations": [link, "odd"]}


def test_addresses_beside_the_message_become_annotations() -> None:
    urls = ["https://a.example", "https://b.example"]
    for extra in ({}, {"novel": None}):  # each of the two paths
        chunk = delta(content="x", **extra) | {
            "citations": urls,
            "search_results": [{"url": urls[1], "title": "B"}, {"url": "https://c.example"}, "odd"],
        }
        _, finished = answer(chunk, chunk, STOP)
        assert finished.annotations == [
            {"type": "url_citation", "url_citation": {"url": urls[0]}},
            {"type": "url_citation", "url_citation": {"url": urls[1], "title": "B"}},
        ]
        assert finished.raw == {}
    for odd in ("text", [1], {"a": 1}, None):
        assert answer(delta(content="x") | {"citations": odd, "search_results": odd}, STOP)[1].annotations == []


def test_only_the_first_of_several_choices_is_followed() -> None:
    def choice(index: int, content: str) -> dict[str, Any]:
        return {"choices": [{"index": index, "delta": {"content": content}}]}

    out, _ = answer(choice(0, "a"), choice(1, "b"), choice(0, "c"), STOP)
    assert text(out) == "ac"


@pytest.mark.parametrize(
    "chunk",
    ['{"choices":[{"delta":{"content":"\\ud83d"}}],"x":NaN}', '{"choices":[{"index":0,"delta":{"a":Infinity}}]}'],
)
def test_json_that_only_a_lenient_reader_reads(chunk: str) -> None:
    _, finished = answer(chunk, delta(content="x"), STOP)
    assert finished.finish_reason == "stop"
    msgspec.json.encode(finished)


# Tool calls


def calls(*deltas: list[dict[str, Any]], finish: str = "tool_calls") -> list[tuple[str, str, str]]:
    _, finished = answer(*(delta(tool_calls=d) for d in deltas), delta(finish))
    return [(c.id, c.name, c.arguments) for c in finished.tool_calls]


def call(index: int | None = None, id: str | None = None, name: str | None = None, args: Any = None) -> dict[str, Any]:
    made: dict[str, Any] = {"type": "function", "function": {"name": name, "arguments": args}}
    return made | ({} if index is None else {"index": index}) | ({} if id is None else {"id": id})


TOOL_RULES: dict[str, tuple[list[list[dict[str, Any]]], list[tuple[str, str, str]]]] = {
    "one in pieces": (
        [[call(0, "a", "f", "")], [call(0, args='{"x"')], [call(0, args=":1}")]],
        [("a", "f", '{"x":1}')],
    ),
    "interleaved by index": (
        [[call(0, "a", "f"), call(1, "b", "g")], [call(1, args="{}")], [call(0, args='{"x":1}')]],
        [("a", "f", '{"x":1}'), ("b", "g", "{}")],
    ),
    "a new id on a used index": (
        [[call(0, "a", "f", '{"x":1}')], [call(0, "b", "g", "{}")], [call(0, "c", "g", "{}")]],
        [("a", "f", '{"x":1}'), ("b", "g", "{}"), ("c", "g", "{}")],
    ),
    "the same id repeated": (
        [[call(0, "a", "f", "{")], [call(0, "a", "f", "}")]],
        [("a", "f", "{}")],
    ),
    "a new id for every piece": (
        [[call(0, "a", "f", "{")], [call(0, "b", "", "}")]],
        [("a", "f", "{}")],
    ),
    "an empty id goes on": (
        [[call(0, "a", "f", "{")], [call(0, "", "", "}")]],
        [("a", "f", "{}")],
    ),
    "no index: an id begins, none goes on": (
        [[call(None, "a", "f", "{")], [call(None, None, None, "}")], [call(None, "b", "g", "{}")]],
        [("a", "f", "{}"), ("b", "g", "{}")],
    ),
    "no index: a known id goes on with its call": (
        [[call(None, "a", "f", "{"), call(None, "b", "g", "{}")], [call(None, "a", None, "}")]],
        [("a", "f", "{}"), ("b", "g", "{}")],
    ),
    "arguments as an object": ([[call(0, "a", "f", {"x": [1]})]], [("a", "f", '{"x":[1]}')]),
    "no arguments": ([[call(0, "a", "f")]], [("a", "f", "{}")]),
    "arguments that are no JSON stay": ([[call(0, "a", "f", '{"x":')]], [("a", "f", '{"x":')]),
    "indexes that do not begin at 0": (
        [[call(3, "a", "f", "{}")], [call(5, "b", "g", "{}")]],
        [("a", "f", "{}"), ("b", "g", "{}")],
    ),
    "an empty delta is no call": ([[{}], [call(0, "a", "f", "{}")]], [("a", "f", "{}")]),
}


@pytest.mark.parametrize("rule", TOOL_RULES)
def test_tool_calls(rule: str) -> None:
    deltas, expected = TOOL_RULES[rule]
    assert calls(*deltas) == expected
    assert calls(*deltas, finish="stop") == expected  # what was accumulated decides, not the reason


def test_whole_calls_without_id_or_index_get_ids_made_here() -> None:
    made = calls(
        [call(None, None, "f", "{}"), call(None, None, "f", "{}")], [call(0, "", "g", "{}")], [call(0, "", "g", "{}")]
    )
    assert [(name, args) for _, name, args in made] == [("f", "{}"), ("f", "{}"), ("g", "{}"), ("g", "{}")]
    assert len({id for id, _, _ in made}) == 4
    assert all(len(id) == 9 and id.isalnum() for id, _, _ in made)


def test_two_calls_never_share_an_id() -> None:
    made = calls([call(0, "same", "f", "{}"), call(1, "same", "g", "{}")])
    assert len({id for id, _, _ in made}) == 2
    assert made[0][0] == "same"


def test_further_fields_of_a_call_are_kept() -> None:
    extra = {"google": {"thought_signature": "S"}}
    _, finished = answer(delta(tool_calls=[{**call(0, "a", "f", "{}"), "extra_content": extra}]), delta("tool_calls"))
    assert finished.tool_calls[0].raw == {"extra_content": extra}


# The end


def test_an_empty_finish_reason_is_none() -> None:
    _, completion = take(delta("", content="x"))
    with pytest.raises(Complaint) as caught:
        completion.finish()
    assert caught.value.code == Code.LLM_STREAM_BROKEN


def test_the_end_mark_after_nothing_is_no_answer() -> None:
    _, completion = take("[DONE]")
    with pytest.raises(Complaint):
        completion.finish()


def test_usage_is_the_last_one_seen_wherever_it_came() -> None:
    chunk = delta(content="x") | {"usage": {"total_tokens": 1}}
    inner = delta("stop")
    inner["choices"][0]["usage"] = {"total_tokens": 2}
    assert answer(chunk, inner)[1].usage == {"total_tokens": 2}
    assert answer(chunk, STOP, {"choices": [], "usage": {"total_tokens": 3}}, "[DONE]")[1].usage == {"total_tokens": 3}
    assert answer(chunk, STOP, {"choices": [], "usage": None})[1].usage == {"total_tokens": 1}


def test_the_whole_message_repeated_at_the_end_is_not_said_twice() -> None:
    last = {"choices": [{"index": 0, "message": {"role": "assistant", "content": "ab"}, "finish_reason": "stop"}]}
    out, _ = answer(delta(content="a"), delta(content="b"), last)
    assert text(out) == "ab"


def test_one_json_answer_gives_the_same_pieces() -> None:
    message = {
        "role": "assistant",
        "content": "Yes.",
        "reasoning_content": "Hm.",
        "tool_calls": [{"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
    }
    body = {"model": "m1", "choices": [{"message": message, "finish_reason": "stop"}], "usage": {"total_tokens": 3}}
    completion, out = Completion(7, "asked"), list[Piece]()
    completion.take_whole(json.dumps(body).encode(), out)
    finished = completion.finish()
    assert out == [Thinking(7, "Hm."), Text(7, "Yes.")]
    assert (finished.model, finished.usage, finished.raw) == ("m1", {"total_tokens": 3}, {"reasoning_content": "Hm."})
    assert [c.id for c in finished.tool_calls] == ["a"]


# Errors within an answer of status 200

IN_STREAM: dict[str, tuple[str, bytes, Code]] = {
    "object": ('{"error":{"message":"no","code":502}}', b"", Code.LLM_UNAVAILABLE),
    "object with choices": ('{"choices":[],"error":{"message":"no","code":429}}', b"", Code.LLM_RATE_LIMITED),
    "text": ('{"error":"rate limit reached: no"}', b"", Code.LLM_RATE_LIMITED),
    "list": ('[{"error":{"code":400,"message":"no","status":"INVALID_ARGUMENT"}}]', b"", Code.LLM_REJECTED),
    "too long": ('{"error":{"message":"no","code":"context_length_exceeded"}}', b"", Code.LLM_CONTEXT_TOO_LONG),
    "key": ('{"error":{"message":"no","type":"authentication_error"}}', b"", Code.LLM_AUTH_FAILED),
    "object: error": ('{"object":"error","message":"no","code":400}', b"", Code.LLM_REJECTED),
    "detail": ('{"detail":"no"}', b"", Code.LLM_UNAVAILABLE),
    "event: error": ('{"message":"no"}', b"error", Code.LLM_UNAVAILABLE),
    "event: error, text": ("no", b"error", Code.LLM_UNAVAILABLE),
    "in the choice": ('{"choices":[{"delta":{},"error":{"message":"no","code":503}}]}', b"", Code.LLM_UNAVAILABLE),
    "in a choice of unknown form": (
        '{"choices":[{"delta":{"z":1},"error":{"message":"no"}}]}',
        b"",
        Code.LLM_UNAVAILABLE,
    ),
    "no JSON": ("no", b"", Code.LLM_STREAM_BROKEN),
    "JSON without end": ('{"choices":' + "[" * 100_000 + '"no"', b"", Code.LLM_STREAM_BROKEN),
    "JSON of no use": ('"no"', b"", Code.LLM_STREAM_BROKEN),
}


@pytest.mark.parametrize("form", IN_STREAM)
def test_errors_within_the_stream(form: str) -> None:
    data, name, code = IN_STREAM[form]
    completion, out = Completion(7, "m"), list[Piece]()
    with pytest.raises(Complaint) as caught:
        completion.take(Event(data.encode(), name), out)
    assert caught.value.code == code
    assert "no" in caught.value.words or form == "JSON without end"
    assert (out, completion.shown) == ([], False)


def test_finish_reason_error_is_a_failure() -> None:
    with pytest.raises(Complaint):
        take(delta("error", content="x"))


def test_chunks_that_say_nothing_are_passed_over() -> None:
    completion, out = Completion(7, "m"), list[Piece]()
    for event in (Event(b"nothing", b"ping"), Event(b'{"type":"ping"}'), Event(b"{}"), Event(b'{"choices":null}')):
        completion.take(event, out)
    assert (out, completion.complete) == ([], False)


# The request


def provider(parameters: dict[str, Any] | None = None, **client: Any) -> Provider:
    return Provider("p", "http://127.0.0.1:1/v1", "m1", None, parameters or {}, ClientOptions(**client))


def ask(model: str = "", tools: list[dict[str, Any]] | None = None) -> Complete:
    text = msgspec.json.encode(tools) if tools else b""
    return Complete(1, "front/gateway", "p", model, [{"role": "user", "content": "hi"}], text, "c")


def sent(request: Complete, to: Provider) -> Any:
    return msgspec.json.decode(msgspec.json.encode(request_body(request, to)))


def test_the_body_has_every_parameter_as_it_is() -> None:
    parameters = {
        "temperature": 0.3,
        "timeout": 5,
        "headers": {"a": [1, {"b": None}]},
        "provider": {"order": ["x", "y"]},
    }
    assert request_body(ask(), provider(parameters)) == {
        "model": "m1",
        "messages": [{"role": "user", "content": "hi"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        **parameters,
    }


def test_the_body_leaves_out_what_is_none_and_does_not_invent() -> None:
    assert "stream_options" not in request_body(ask(), provider({"stream_options": None, "top_p": None}))
    assert "top_p" not in request_body(ask(), provider({"top_p": None}))
    assert request_body(ask(), provider({"stream_options": {"x": 1}}))["stream_options"] == {"x": 1}
    assert request_body(ask("m2"), provider())["model"] == "m2"
    whole = request_body(ask(), provider(stream=False))
    assert (whole["stream"], "stream_options" in whole, "tools" in whole) == (False, False, False)


def test_the_body_offers_our_tools_beside_the_providers_own() -> None:
    ours, own = {"type": "function", "function": {"name": "f"}}, {"type": "web_search"}
    assert sent(ask(tools=[ours]), provider())["tools"] == [ours]
    assert sent(ask(tools=[ours]), provider({"tools": [own]}))["tools"] == [own, ours]


@pytest.mark.parametrize("field", ["content", "reasoning", "reasoning_content", "refusal"])
def test_a_long_answer_keeps_little_more_than_its_letters(field: str) -> None:
    events = [Event(json.dumps(delta(**{field: f"word {number:5} "})).encode()) for number in range(4000)]
    completion, out = Completion(7, "asked-model"), list[Piece]()
    for event in events[:1000]:  # what is made once is made
        completion.take(event, out)
    out.clear()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for event in events[1000:]:
            completion.take(event, out)
            out.clear()
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    letters = 3000 * len("word 12345 ")
    assert grown < 1.5 * letters  # each as a string of its own would be 6.5 times as much


def test_long_arguments_keep_little_more_than_their_letters() -> None:
    begun = delta(tool_calls=[{"index": 0, "id": "c", "function": {"name": "write", "arguments": '{"text": "'}}])
    more = Event(json.dumps(delta(tool_calls=[{"index": 0, "function": {"arguments": "some words "}}])).encode())
    completion, out = Completion(7, "asked-model"), list[Piece]()
    completion.take(Event(json.dumps(begun).encode()), out)
    tracemalloc.start()
    try:
        for _ in range(3000):
            completion.take(more, out)
        kept = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert kept < 1.5 * 3000 * len("some words ")


def test_text_that_was_joined_stands_whole_before_the_parts_behind_it() -> None:
    words = [f"word {number} " for number in range(1000)]
    image = {"type": "image_url", "image_url": {"url": "data:,"}}
    _, finished = answer(*(delta(content=word) for word in words), delta(content=[image]), STOP)
    assert finished.raw["content"] == [{"type": "text", "text": "".join(words)}, image]
