"""The original backend's runtime file, as its latest version writes it, loads as it is."""

from __future__ import annotations

from actors.checks import check
from actors.layers import parse
from actors.reference import defaults
from actors.servers_file import NO_SERVERS
from actors.snapshot import make_snapshot
from protocol.watcher import Snapshot

ORIGINAL = """\
_runtime_config: {created_from_defaults: true, default_config_path: config.yaml, is_runtime_config: true,
  last_modified: 1756217789.3510947, version: 10}
chat:
  service:
    logging: {tool_execution: true, tool_results: true, result_truncate_length: 150, llm_reply_truncate_length: 300}
  storage:
    persistence:
      retention: {cleanup_interval_minutes: 30, clear_triggers_before_full_wipe: 2, max_sessions: 3}
      saved_sessions: {enabled: false, max_saved: 50, retention_days: null}
  websocket: {allow_origins: ['*'], host: localhost}
connection_pool:
  keepalive_expiry_seconds: 30
  max_connections: 10
  max_keepalive_connections: 5
  request_timeout_seconds: 30
  total_timeout_seconds: 120
  logging: {pool_stats: true}
llm:
  active: openrouter_reasoning
  providers:
    groq: {base_url: https://api.groq.com/openai/v1, model: llama, response_format: {type: text}, top_p: 1.0}
    openrouter_reasoning: {base_url: https://openrouter.ai/api/v1, model: o3-mini, reasoning_effort: high}
logging:
  advanced:
    async_logging: true
    log_file_path: logs/app.log
    structured_logging: false
  format: '%(asctime)s - %(levelname)s - %(message)s'
  level: WARNING
  modules:
    chat:
      enable_features: {llm_replies: true, system_prompt: false, tool_arguments: true}
      level: INFO
      truncate_lengths: {llm_reply: 500, result: 200}
    connection_pool:
      enable_features: {pool_stats: true}
      level: warning
      max_log_entries: 1000
    mcp:
      level: DEBUG
      truncate_lengths: {tool_results_truncate: 200}
mcp:
  connection: {ping_timeout: 10.0, logging: {enabled: true}}
"""


def read(text: str) -> tuple[Snapshot, list[str]]:
    layer = parse(text, "runtime_config.yaml")
    checked = check([defaults(), layer])
    return make_snapshot(checked, layer.data, NO_SERVERS, checked.warnings, "/state", 1), checked.warnings


def test_what_has_a_meaning_here_counts() -> None:
    snapshot, _ = read(ORIGINAL)
    logging = snapshot.logging
    assert (logging.level, logging.modules) == (
        "WARNING",
        {"chat": "INFO", "connection_pool": "WARNING", "mcp": "DEBUG"},
    )
    assert logging.features == {
        "llm_replies": True,
        "tool_execution": True,
        "system_prompt": False,
        "tool_results": True,
    }
    # In both places: ours counts.
    assert logging.truncate == {"llm_replies": 300, "tool_results": 150}
    client = snapshot.llm.providers["groq"].client
    assert (client.max_connections, client.max_keepalive_connections) == (10, 5)
    assert (client.keepalive_expiry, client.first_token_timeout, client.total_timeout) == (30, 30, 120)
    assert snapshot.storage.saved_sessions.enabled is False
    assert snapshot.llm.providers["openrouter_reasoning"].parameters == {"reasoning_effort": "high"}


def test_what_has_none_is_said_once_and_fails_nothing() -> None:
    _, warnings = read(ORIGINAL)
    said = sorted(line.split(": ")[1] for line in warnings)
    assert said == [
        "chat.service.logging.tool_arguments",
        "chat.storage.persistence.retention.clear_triggers_before_full_wipe",
        "chat.websocket.allow_origins",
        "connection_pool.logging",
        "logging.advanced",
        "logging.modules.connection_pool.enable_features",
        "logging.modules.connection_pool.max_log_entries",
        "logging.modules.mcp.truncate_lengths",
        "mcp.connection.logging",
    ]
    assert all(line.startswith("runtime_config.yaml:") for line in warnings)


def test_the_lengths_of_its_modules_count_where_nothing_else_is_said() -> None:
    snapshot, warnings = read("logging: {modules: {chat: {truncate_lengths: {llm_reply: 7, result: 8}}}}")
    assert snapshot.logging.truncate == {"llm_replies": 7, "tool_results": 8}
    assert snapshot.logging.modules == {}
    assert warnings == []
