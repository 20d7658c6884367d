"""What the document that the product comes from promises, each with the test that shows it.

`PROMISES` is a literal table: its sentence, and the test. A row whose test does not exist fails the suite. Its
keys are in tests/test_keys.py; its project tree and development guidelines are not promises.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

PROMISES = {
    # Overview and configuration
    "Runtime configuration changes without restarts": "test_sweep.py::test_sweep",
    "Automatic parameter pass-through for any model": "test_keys.py::test_another_provider_in_mid_stream",
    "WebSocket-based frontend integration": "test_readme.py::test_the_javascript_example_runs",
    "Automatic conversation persistence": "test_scenarios.py::test_what_was_said_survives_a_restart",
    "Configurable retention": "test_sweeper.py::test_limits_hold_as_soon_as_they_are_configured",
    "All changes persist across restarts": "test_configuration.py::"
    "test_saving_keeps_only_what_differs_and_counts_versions",
    "Automatic file modification detection and reload": "test_watcher.py::"
    "test_edits_in_place_replaces_and_swapped_links_come_into_force",
    "Partial configuration updates supported": "test_configuration.py::test_saving_a_part_keeps_the_rest",
    "Auto-recreation from defaults if corrupted": "test_configuration.py::"
    "test_without_a_last_good_version_it_is_made_from_the_defaults",
    "Version numbers and modification timestamps": "test_configuration.py::"
    "test_saving_keeps_only_what_differs_and_counts_versions",
    "Its reference and example configurations load": "test_configuration.py::test_the_seeds_documents_load_as_they_are",
    "Programmatic updates, saved and reloaded": "test_configuration.py::"
    "test_saving_keeps_only_what_differs_and_counts_versions",
    "Manual reload": "test_configuration.py::test_reload_says_whether_something_changed",
    "Environment variables in .env": "test_configuration.py::"
    "test_the_environment_wins_over_env_files_and_the_working_directorys_over_the_states",
    "The model sets its own configuration": "test_config_server.py::"
    "test_with_the_real_service_a_change_is_in_force_and_a_version_of_the_tool",
    # Chat
    "Tool call accumulation from streaming deltas": "test_completion.py::*",
    "Tool execution with error handling": "test_scenarios.py::test_parallel_calls_progress_and_failures",
    "Hop limit checking": "test_scenarios.py::test_a_model_that_never_stops_asking_is_stopped",
    "Standard message, response with thinking and usage": "test_scenarios.py::test_a_turn_streams_and_ends_once",
    "Non-streaming request/response flow": "test_scenarios.py::test_without_streaming_only_the_whole_message_comes",
    "Resource availability checking, catalogue, prompt with resources": "test_server_resources.py::*",
    "System prompt building with resources": "test_system_prompt.py::"
    "test_instructions_resources_and_prompts_follow_in_order",
    "The arrows of the log: orchestrator, LLM, MCP": "test_logs.py::test_one_turn_can_be_followed_by_its_tag",
    "Logging features and levels, changed while it runs": "test_logs.py::test_features_are_switched_while_it_runs",
    # The model
    "Reasoning in every field the document names": "test_completion.py::*",
    "Any parameter goes to the API": "test_streamer.py::test_what_is_sent",
    "Connection pool and streaming headers": "test_streamer.py::test_what_is_sent",
    "Works with any OpenAI-compatible provider": "test_completion.py::*",
    # Frontend
    "clear_history starts a new session": "test_scenarios.py::test_clear_history_enters_a_fresh_conversation",
    "save_session": "test_verbs.py::test_a_session_is_saved_listed_loaded_and_deleted",
    "No automatic clearing on reconnect": "test_scenarios.py::test_what_was_said_survives_a_restart",
    "STORAGE_FULL": "test_writer_trouble.py::*",
    "SESSION_NOT_FOUND": "test_verbs.py::test_a_session_is_saved_listed_loaded_and_deleted",
    "MCP_SERVER_UNAVAILABLE": "test_session.py::"
    "test_the_death_of_a_tool_server_in_a_call_fails_the_call_and_the_turn_goes_on",
    "tool_execution with name and status": "test_scenarios.py::test_a_real_tool_runs_and_its_result_goes_back",
    # Performance options
    "Deltas are buffered: one write per 200 ms or 1024 characters": "test_gateway.py::"
    "test_much_text_does_not_wait_for_the_tick",
    "persist_deltas off writes no text while it streams": "test_gateway.py::"
    "test_persist_deltas_false_stores_no_text_of_a_running_answer",
    "WAL mode": "test_store.py::*",
    "Parallel tool execution": "test_scenarios.py::test_parallel_calls_progress_and_failures",
    # Servers
    "enabled, command, args, cwd, env of a server": "test_server_command.py::*",
    "defaultTimeout, maxRetries, retryDelay, logLevel, autoReconnect": "test_servers_file.py::*",
    "Servers come and go with servers_config.json": "test_roster.py::test_servers_come_change_and_go_with_the_file",
    "Demo server": "test_demo_server.py::*",
    "Prompt-only demo server with its template": "test_demo_prompt_server.py::"
    "test_it_offers_prompts_only_and_an_edit_counts_at_once",
    # Scripts
    "mcp-reset-config": "test_config_commands.py::*",
    "Validate the configuration": "test_config_commands.py::*",
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


@pytest.mark.parametrize("promise", PROMISES)
def test_promise(promise: str) -> None:
    module, _, name = PROMISES[promise].partition("::")
    assert names_in(module), f"there is no tests/{module}"
    assert name == "*" or name in names_in(module), f"there is no {PROMISES[promise]}"
