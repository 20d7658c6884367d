"""What the document that the product comes from promises, each with the test that shows it.

`PROMISES` has a row for every sentence and list item of it, by its beginning, but for those of `NOT_PROMISED`;
where the document is at hand a test compares. Its examples are run as they stand: configurations, programs, the
frontend's code. Its keys are in tests/test_keys.py. A row whose test does not exist fails the suite.
"""

from __future__ import annotations

import ast
import json
import re
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import trio
import yaml

from actors.configuration import RUNTIME, Configuration
from actors.reference import defaults
from actors.trees import changes
from tests.fakes import ask_tool, say, think
from tests.forks import run
from tests.service import LIGHT, service
from tests.sweep import Sweep, watching

ROOT = Path(__file__).resolve().parents[1]
HERE = "test_seed.py::"
SWEEP = "test_sweep.py::test_sweep"
WITHOUT_RESTART = "test_watcher.py::test_edits_in_place_replaces_and_swapped_links_come_into_force"
SAVED = "test_configuration.py::test_saving_keeps_only_what_differs_and_counts_versions"
EXAMPLES = HERE + "test_its_configurations_load_as_they_are"
PROGRAMS = HERE + "test_its_programs_run_as_they_are"
FRONTEND = HERE + "test_its_frontend_runs_as_it_is"
ARROWS = HERE + "test_its_arrows_are_in_the_log"
TURN = "test_scenarios.py::test_a_turn_streams_and_ends_once"
TOOL = "test_scenarios.py::test_a_real_tool_runs_and_its_result_goes_back"
RESTART = "test_scenarios.py::test_what_was_said_survives_a_restart"
RETENTION = "test_sweeper.py::test_limits_hold_as_soon_as_they_are_configured"
PARAMETERS = "test_streamer.py::test_what_is_sent"
ANOTHER = "test_keys.py::test_another_provider_in_mid_stream"
CHECKED = "test_config_commands.py::test_check_tells_every_mistake_of_both_files_with_its_line"
HEAPED = "test_gateway.py::test_much_text_does_not_wait_for_the_tick"
LEAN = "test_gateway.py::test_persist_deltas_false_stores_no_text_of_a_running_answer"
MODULES = "test_architecture.py::test_module"
METRICS = "test_metrics.py::test_the_numbers_are_those_of_what_has_happened"

PROMISES = {
    # Overview
    "The MCP Backend OpenRouter is a sophisticated chatbot platform": TOOL,
    "Modular Architecture": MODULES,
    "Dynamic Configuration": SWEEP,
    "Flexible LLM Support": PARAMETERS,
    "Real-time Communication": FRONTEND,
    "Persistent Storage": RESTART,
    "MCP SDK": "test_mcp_server.py::test_the_demo_server_is_listed_read_called_and_cancelled",
    "Pydantic": "test_settings.py::test_what_is_wrong_is_told_with_file_line_and_key",
    "WebSocket": TURN,
    "SQLite": "test_writer.py::test_an_answer_means_that_it_is_on_disk_and_commits_are_shared",
    "YAML": EXAMPLES,
    # Architecture
    "The system follows a modular design where complex/fragile modules are isolated": "test_faults.py::test_fault",
    "Usage statistics conversion": "test_running_turn.py::test_usage_is_summed_where_it_is_numbers",
    "Tool call accumulation from streaming deltas": "test_completion.py::test_tool_calls",
    "Tool execution with error handling": "test_scenarios.py::test_parallel_calls_progress_and_failures",
    "Tool result formatting and hop limit checking": "test_scenarios.py::"
    "test_a_model_that_never_stops_asking_is_stopped",
    "Logging: `→ MCP": ARROWS,
    "LLM response streaming with delta persistence": "test_gateway.py::test_what_grows_is_stored_while_the_answer_runs",
    "Tool call iteration handling": TOOL,
    "Logging: `→ Frontend": ARROWS,
    "Non-streaming request/response flow": "test_scenarios.py::test_without_streaming_only_the_whole_message_comes",
    "Basic tool call execution without delta complexity": "test_streamer.py::"
    "test_without_streaming_the_same_pieces_come",
    "Resource availability checking and catalog": "test_server_resources.py::"
    "test_only_what_can_be_read_and_holds_something_is_available",
    "System prompt building with resources": "test_system_prompt.py::"
    "test_instructions_resources_and_prompts_follow_in_order",
    "Logging: `→ Resources": ARROWS,
    "Logging: `→ Orchestrator": ARROWS,
    # Runtime configuration
    "The system uses a persistent runtime configuration": SAVED,
    "`src/config.yaml` - Reference/Default Configuration (never modified)": PROGRAMS,
    "`src/runtime_config.yaml` - Persistent Runtime Configuration": SAVED,
    "Dynamic Updates": SWEEP,
    "Persistent Changes": "test_watcher.py::test_versions_go_on_after_a_restart_of_the_service",
    "Automatic Detection": WITHOUT_RESTART,
    "Deep Merging": "test_configuration.py::test_saving_a_part_keeps_the_rest",
    "Automatic Recovery": "test_configuration.py::test_without_a_last_good_version_it_is_made_from_the_defaults",
    "Metadata Tracking": SAVED,
    "Directly edit `src/runtime_config.yaml`": WITHOUT_RESTART,
    # The model
    'The `LLMClient` is designed to be "ready for anything"': PARAMETERS,
    "Automatic Parameter Pass-Through": "test_completion.py::test_the_body_has_every_parameter_as_it_is",
    "Reasoning Model Support": "test_completion.py::test_reasoning_in_every_known_field",
    "Provider Flexibility": "test_completion.py::test_recorded_streams_mean_what_the_openai_package_reads",
    "Future-Proof": "test_completion.py::test_what_recorded_providers_added_is_kept",
    "Add to Config": ANOTHER,
    "That's It": ANOTHER,
    # Frontend
    "The system provides WebSocket-based real-time communication": FRONTEND,
    "Auto-Persist Mode": RETENTION,
    "User-Controlled Sessions": RESTART,
    "Manual Session Management": "test_verbs.py::test_a_session_is_saved_listed_loaded_and_deleted",
    # Performance
    "This section consolidates the performance optimizations": HEAPED,
    "Buffers streaming deltas in memory": "test_gateway.py::test_what_comes_while_a_tick_is_stored_counts_for_the_next",
    "Flushes in batches": HEAPED,
    "Ensures a final flush": RESTART,
    "After: every 200 ms or 1024 chars": HEAPED,
    "Result: 10-100x fewer disk operations": "test_writer.py::"
    "test_an_answer_means_that_it_is_on_disk_and_commits_are_shared",
    "Frontend streaming unaffected": LEAN,
    "Massive DB performance improvement": LEAN,
    "Potential data loss if the server crashes": "test_crash.py::test_sigkill_in_mid_answer",
    "Memory usage grows until buffers are flushed": HEAPED,
    "Enables HTTP/2 for connection multiplexing": SWEEP,
    "Configures connection pooling and keep-alive": SWEEP,
    "Uses streaming-optimized headers": PARAMETERS,
    "Avoids constructing Pydantic models for every streaming chunk": MODULES,
    "Yields raw dicts": MODULES,
    "Streaming latency (time from first to last character)": METRICS,
    "Database performance (SQLite write frequency": METRICS,
    "Memory usage (delta buffer sizes": METRICS,
    "Reduce `min_chars`": SWEEP,
    "Increase flush frequency via `interval_ms`": SWEEP,
    "Database locking": "test_writer_trouble.py::test_another_programs_lock_is_waited_out_or_said",
    "Ensure SQLite WAL mode is enabled": "test_store.py::test_writing_is_durable",
    "Review concurrent access patterns": "test_store.py::test_one_owner_per_file",
    "Ensure `chat.service.streaming.enabled: true`": SWEEP,
    "Verify LLM provider configuration": "test_config_commands.py::"
    "test_check_says_what_would_be_in_force_and_makes_nothing",
    "Disable buffered persistence": LEAN,
    "Disable HTTP/2": SWEEP,
    "Parallel tool execution": "test_scenarios.py::test_parallel_calls_progress_and_failures",
    # Troubleshooting
    "Check file permissions": "test_config_commands.py::test_a_state_directory_that_cannot_be_written_is_told",
    "Verify YAML syntax": CHECKED,
    "Check system logs for error messages": "test_main.py::test_broken_configuration_is_shown_and_the_service_starts",
    "Try manual reload": "test_configuration.py::test_reload_says_whether_something_changed",
    "Verify server is running": "test_scenarios.py::test_status_health_readiness_schema_and_page",
    "Check port configuration": "test_keys.py::test_a_changed_port_opens_the_new_listener_before_the_old_one_ends",
    "Verify frontend WebSocket URL": SWEEP,
    "Check `servers_config.json`": CHECKED,
    "Verify MCP servers are running": "test_main.py::test_it_starts_although_no_server_does",
    "Check tool schema validation in logs": "test_mcp_client.py::test_bad_schemas_hide_no_tool_and_are_told",
    "Verify API keys in environment": "test_streamer.py::test_without_the_key",
    "Check base URL configuration": "test_streamer.py::test_unusable_addresses",
    "Validate model names and parameter compatibility": "test_completion.py::test_recorded_error_bodies",
    "Monitor rate limits": "test_limits.py::test_a_provider_that_asks_for_peace_has_it_within_bounds",
    # Checklists
    "Configure environment variables in `.env`": "test_configuration.py::"
    "test_the_environment_wins_over_env_files_and_the_working_directorys_over_the_states",
    "Implement WebSocket connection": FRONTEND,
    "Add clear history button": FRONTEND,
    "Handle all message types": FRONTEND,
    "Implement error handling": FRONTEND,
    "Test streaming message display": TURN,
    "Add tool execution notifications": SWEEP,
    "Verify configuration reloading": WITHOUT_RESTART,
    "Test chat functionality with multiple turns": "test_scenarios.py::test_the_model_is_told_what_was_said_before",
    "Confirm tool execution works with your MCP servers": "test_roster.py::"
    "test_servers_come_change_and_go_with_the_file",
    "Test WebSocket reconnection handling": "test_resume.py::"
    "test_clients_that_come_and_go_get_every_turn_without_gap_and_nothing_twice",
    "Validate error scenarios": "test_faults.py::test_fault",
    "Set appropriate logging levels": SWEEP,
    "Configure retention policies": SWEEP,
    "Set up monitoring for WebSocket connections": METRICS,
    "Monitor database growth": METRICS,
    "Configure appropriate timeouts": SWEEP,
}
"""The beginning of a sentence or list item, in plain letters -> the test."""

BESIDE = {
    "Environment: a model sets its own configuration": "test_config_server.py::"
    "test_with_the_real_service_a_change_is_in_force_and_a_version_of_the_tool",
    "The reference configuration": HERE + "test_its_reference_configuration_is_ours",
    "The example configurations": EXAMPLES,
    "Programmatic updates, testing the configuration": PROGRAMS,
    "clear_history, user_message, and the frontend's handlers": FRONTEND,
    "save_session with a conversation_id": HERE + "test_a_conversation_is_saved_by_its_id",
    "Response with message, thinking, usage, model and finish_reason": HERE
    + "test_an_answer_has_every_field_of_the_document",
    "No proxy of the environment (trust_env=False)": "test_streamer.py::test_no_proxy_of_the_environment_is_asked",
    "STORAGE_FULL": "test_writer_trouble.py::test_a_full_disk_is_said_and_passes",
    "SESSION_NOT_FOUND": FRONTEND,
    "MCP_SERVER_UNAVAILABLE": "test_session.py::"
    "test_the_death_of_a_tool_server_in_a_call_fails_the_call_and_the_turn_goes_on",
    "Storage in memory": "test_writer_trouble.py::test_a_store_in_memory_leaves_no_file",
    "Tool results are formatted": "test_tool_result.py::test_structured_content_is_the_text_when_there_is_none",
    "Tool schemas are validated and converted": "test_tool_schema.py::test_what_is_no_object_schema_becomes_one",
    "Every key of servers_config.json": "test_sweep.py::test_sweep_of_the_servers_file",
    "Its servers_config.json": "test_servers_file.py::test_every_key_of_the_documented_file_is_read",
    "Servers/demo_server.py": "test_demo_server.py::test_its_tools_do_what_they_say",
    "Servers/demo_prompt_server.py and its template": "test_demo_prompt_server.py::"
    "test_it_offers_prompts_only_and_an_edit_counts_at_once",
    "mcp-reset-config": "test_config_commands.py::test_the_reset_keeps_the_old_file",
    "Detailed logging by level and format": SWEEP,
}
"""What its code, tables and headings promise -> the test."""

NOT_PROMISED = {
    "what the document says of itself, or how its code was cut": (
        "Core data structures",
        "Pure data models",
        "Previous Purpose",
        "Status: ❌",
        "Replacement",
        "Hybrid message yielding",
        "Straightforward LLM interactions",
        "Component initialization",
        "High-level flow control",
        "Before: every character",
        "Accumulates content chunks",
        "Uses optimized JSON parsing",
        "See Performance Optimizations",
        "This comprehensive documentation",
    ),
    "headings of advice": (
        "HTTP/2 import error",
        "High memory usage",
        "Streaming not working",
        "Performance regression",
    ),
    "plans and experiments of then": (
        "Planned improvements",
        "Lazy resource loading",
        "Connection pre-warming",
        "Response compression",
        "Experimental features",
        "uvloop integration",
        "Custom JSON parsers",
        "Memory-mapped files",
    ),
    "advice about its own code, which is not here; the README says what takes its place": (
        "Re-enable per-chunk validation",
        "Restore `StreamingChunk",
        "Use `tool_schema_manager.py`",
        "Install dependencies",
        "Review and customize `src/config.yaml`",
        "Start the server",
    ),
    "for whoever runs it": ("Ensure firewall allows", "Set up backup procedures"),
}


@cache
def names_in(module: str) -> set[str]:
    """Names of the tests of a module."""
    path = ROOT / "tests" / module
    if not path.is_file():
        return set()
    tree = ast.parse(path.read_text())
    functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return {node.name for node in functions if node.name.startswith("test_")}


@pytest.mark.parametrize("promise", [*PROMISES, *BESIDE])
def test_promise(promise: str) -> None:
    module, _, name = {**PROMISES, **BESIDE}[promise].partition("::")
    assert name in names_in(module), f"there is no {module}::{name}"


def sentences(document: str) -> Iterator[str]:
    """Its sentences and list items in plain letters, without headings, labels, code and what it asks of developers."""
    prose = re.sub(r"^ *```.*?^ *```", "", document, flags=re.DOTALL | re.MULTILINE).partition("## Overview\n")[2]
    prose = re.sub(r"^## Development Guidelines.*?^## ", "## ", prose, flags=re.DOTALL | re.MULTILINE)
    for line in prose.splitlines():
        text = line.strip().replace("**", "").replace("\u2013", "-")
        text = re.sub(r"^(?:-|\d+\.) +(?:\[ \] +)?", "", text)
        text = re.sub(r"\[([^\]]+)\]\(#[^)]*\)", r"\1", text)
        text = re.sub(r"^[^\w`→]+", "", text)
        if text and not line.startswith(("#", "---")) and not re.fullmatch(r"\*\*[^*]+\*\*:?", line.strip()):
            yield text


def test_every_sentence_of_the_document_has_a_row(shared: Path) -> None:
    rows = [*PROMISES, *(start for starts in NOT_PROMISED.values() for start in starts)]
    found = list(sentences((shared / "seed.md").read_text()))
    assert len(found) > 100
    assert [text for text in found if not any(text.startswith(row) for row in rows)] == []
    assert [row for row in rows if not any(text.startswith(row) for text in found)] == []


# Its examples, as they stand.


def examples(shared: Path, language: str) -> list[str]:
    """The document's examples in that language."""
    found = re.findall(rf"^ *```{language}\n(.*?)^ *```", (shared / "seed.md").read_text(), re.DOTALL | re.MULTILINE)
    return [str(example) for example in found]


def test_its_configurations_load_as_they_are(shared: Path, tmp_path: Path) -> None:
    found = examples(shared, "yaml")
    assert len(found) >= 15
    for number, text in enumerate(found):
        state = tmp_path / str(number)
        state.mkdir()
        tree = yaml.safe_load(text)
        name, entry = next(iter(tree.items()))
        if "base_url" in entry:  # one provider: where it belongs, every other key of it goes to the model as it is
            text = yaml.safe_dump({"llm": {"active": name, "providers": tree}})
        (state / RUNTIME).write_text(text)
        report = Configuration(state).check()
        assert report.errors == [], text
        expected = ('"*" lets every web page', "openrouter: is empty and is ignored", "is there twice")
        assert all(any(words in line for words in expected) for line in report.warnings), (text, report.warnings)
        assert report.snapshot is not None
        if "base_url" in entry:
            rest = {key: value for key, value in entry.items() if key not in ("base_url", "model")}
            assert report.snapshot.llm.providers[name].parameters == rest


async def test_its_programs_run_as_they_are(shared: Path, tmp_path: Path) -> None:
    """But for where the class comes from. The reference configuration is not written by any of it."""
    found = [text for text in examples(shared, "python") if "config = Configuration()" in text]
    assert len(found) == 2
    reference = (ROOT / "actors" / "defaults.yaml").read_bytes()
    program = "".join(text.partition("# Test LLM client")[0] for text in found).replace(
        "src.config", "actors.configuration"
    )
    done = await run(program, cwd=tmp_path)
    assert done.code == 0, done.err
    shown: Any = ast.literal_eval(done.out)
    assert (shown["chat"]["websocket"]["port"], shown["llm"]["active"]) == (9000, "groq")
    saved = yaml.safe_load((tmp_path / "state" / RUNTIME).read_text())
    assert saved.pop("_runtime_config")["version"] == 2
    assert saved == {"chat": {"websocket": {"port": 9000}}, "llm": {"active": "groq"}}
    assert (ROOT / "actors" / "defaults.yaml").read_bytes() == reference


def test_its_reference_configuration_is_ours(shared: Path) -> None:
    """But for what the README says; all else that it names has the same default here."""
    [reference] = [yaml.safe_load(text) for text in examples(shared, "yaml") if "# MCP Chatbot Configuration" in text]
    differing = {key for key, ours, theirs in changes(defaults().data, reference) if theirs is not None}
    assert differing == {
        "chat.websocket.host",  # localhost is two addresses on many machines
        "chat.websocket.allow_origins",
        "chat.service.system_prompt",  # one "to" less
    }
    [deltas] = [yaml.safe_load(text) for text in examples(shared, "yaml") if "(default: false)" in text]
    differing = {key for key, ours, theirs in changes(defaults().data, deltas) if theirs is not None}
    assert differing == {"chat.service.streaming.persistence.persist_deltas"}


FRONT_END = """
const websocket = new WebSocket(%s), said = [], send = (frame) => websocket.send(JSON.stringify(frame));
for (const name of ["clearChatMessages", "showNotification", "displayMessage", "displayThinking",
                    "showToolExecution", "handleError", "showError"])
  globalThis[name] = (...values) => said.push([name, ...values]);
%s
const handlers = [];
%s
handlers.push(websocket.onmessage);
%s
handlers.push(websocket.onmessage);
websocket.onopen = () => websocket.send(%s);
websocket.onmessage = (event) => {
  for (const handler of handlers) handler(event);
  const type = JSON.parse(event.data).type;
  if (type === "turn_finished") clearHistory();
  else if (type === "session_cleared") send({ type: "load_session", saved_id: "expired" });
  else if (type === "error") { console.log(JSON.stringify(said)); websocket.close(); }
};
"""


async def test_its_frontend_runs_as_it_is(shared: Path, tmp_path: Path) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("no node on this machine")
    scripts = examples(shared, "javascript")
    [clear] = [text for text in scripts if "function clearHistory" in text]
    [handle] = [text for text in scripts if "case 'session_cleared'" in text]
    [errors] = [text for text in scripts if "case 'STORAGE_FULL'" in text]
    [message] = [text for text in examples(shared, "json") if '"user_message"' in text]
    answer = think("The user is greeting me...", then=("I'm here ", "to help!"))
    async with service(tmp_path, ask_tool("none", {}), answer) as s:
        script = FRONT_END % (json.dumps(s.url), clear, handle, errors, json.dumps(message))
        flags = ["--experimental-websocket", "--no-warnings"]  # needed before Node 22
        done = await trio.run_process(
            [node, *flags, "-e", script], capture_stdout=True, capture_stderr=True, check=False
        )
        assert done.returncode == 0, done.stderr.decode()
    assert json.loads(done.stdout) == [
        ["showToolExecution", "none", "executing"],
        ["showToolExecution", "none", "failed"],
        ["displayMessage", "I'm here to help!", "assistant"],
        ["displayThinking", "The user is greeting me..."],
        ["clearChatMessages"],
        ["showNotification", "New session started"],
        ["clearChatMessages"],
        ["showNotification", "New conversation started"],
        ["handleError", "There is no such saved session."],
        ["showError", "Saved session not found - it may have expired"],
    ]


async def test_an_answer_has_every_field_of_the_document(shared: Path, tmp_path: Path) -> None:
    [written] = [text for text in examples(shared, "python") if '"finish_reason": "..."' in text]
    fields = set(re.findall(r'^ *"(\w+)":', written, re.MULTILINE))
    [example] = [text for text in examples(shared, "json") if '"assistant_message"' in text]
    fields |= set(re.findall(r'^  "(\w+)":', example, re.MULTILINE))
    assert fields == {"type", "message", "thinking", "usage", "model", "finish_reason"}
    async with service(tmp_path, think("hm", then=("hi",))) as s, s.client() as client:
        [found] = [frame for frame in await client.say("hello") if frame["type"] == "assistant_message"]
        assert fields <= set(found)
        assert set(re.findall(r'"(\w+_tokens)":', example)) <= set(found["usage"])


async def test_a_conversation_is_saved_by_its_id(shared: Path, tmp_path: Path) -> None:
    [example] = [json.loads(text) for text in examples(shared, "json") if '"save_session"' in text]
    async with service(tmp_path, say("x")) as s, s.client() as client, s.client("?conversation=new") as other:
        await client.say("keep this")
        await other.send(**{**example, "conversation_id": client.conversation})
        saved = (await other.until("session_saved"))[-1]
        assert (saved["name"], saved["conversation_id"]) == (example["name"], client.conversation)


async def test_its_arrows_are_in_the_log(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named = re.findall(r"\*\*Logging\*\*: (.*)", (shared / "seed.md").read_text())
    arrows = [arrow.replace("[server]", "[demo]") for line in named for arrow in re.findall("`([^`]+)`", line)]
    assert len(arrows) == 7
    sweep = Sweep((), {"logging.level": "DEBUG"}, LIGHT, (ask_tool("add", {"a": 1, "b": 1}), say("2")))
    async with watching(tmp_path, monkeypatch, sweep) as w:
        await w.client.say("1 + 1?")
        log = "\n".join(await w.lines.new())
        assert [arrow for arrow in arrows if arrow not in log] == []
