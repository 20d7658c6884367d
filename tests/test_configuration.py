"""The files: first start, mistakes at the start and later, saving, the environment; what each key changes."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from actors.configuration import LAST_GOOD, RUNTIME, Configuration, load_environment
from actors.layers import ConfigurationError, parse
from actors.snapshot import key_variable, on_loopback, with_local_model
from actors.trees import Tree
from actors.versions import FOLDER
from protocol.watcher import Snapshot
from tests import forks
from tests.test_checks import DEFAULTS

SEED = """\
# MCP Chatbot Configuration
chat:
  websocket:
    host: "localhost"
    port: 8000
    endpoint: "/ws/chat"
    allow_origins: ["*"]
    allow_credentials: true
    max_message_size: 16777216  # 16MB
    ping_interval: 20
    ping_timeout: 10

  storage:
    type: "auto_persist"
    persistence:
      db_path: "chat_history.db"
      retention:
        max_age_hours: 24
        max_messages: 1000
        max_sessions: 2
        cleanup_interval_minutes: 2
    saved_sessions:
      enabled: true
      retention_days: null
      max_saved: 50

  service:
    system_prompt: |
      You are a helpful assistant with a sense of humor.
      You have access to to a list of tools like setting your own configuration.
    streaming:
      enabled: true
    max_tool_hops: 8
    tool_notifications:
      enabled: true
      show_args: true
      icon: "🔧"
      format: "{icon} Executing tool: {tool_name}"

llm:
  active: "openrouter"
  providers:
    openrouter:
      base_url: "https://openrouter.ai/api/v1"
      model: "openai/gpt-4o-mini"
      temperature: 0.7
      max_tokens: 4096
      top_p: 1.0
      transforms: ["middle-out"]

mcp:
  config_file: "servers_config.json"
  connection:
    max_reconnect_attempts: 5
    initial_reconnect_delay: 1.0
    max_reconnect_delay: 30.0
    connection_timeout: 30.0
    ping_timeout: 10.0
"""

QUICK_REFERENCE = """\
chat:
  service:
    streaming:
      enabled: true
      persistence:
        persist_deltas: false      # Maximum speed
        interval_ms: 200           # Moderate flushing
        min_chars: 1024            # Reasonable buffers

    max_tool_hops: 8               # Prevent infinite loops

    logging:
      llm_replies: false           # Reduce overhead
      tool_execution: true         # Keep important logs

llm:
  active: "openrouter"
  providers:
    openrouter:
      base_url: "https://openrouter.ai/api/v1"
      model: "openai/gpt-4o-mini"
      temperature: 0.7
      max_tokens: 4096

# Storage configuration
chat:
  storage:
    type: "auto_persist"          # Buffered persistence
    persistence:
      db_path: "chat_history.db"
      retention:
        max_age_hours: 24
        max_messages: 1000
        max_sessions: 2
        cleanup_interval_minutes: 2
"""

# Every key of the seed's documents: another value, and where the snapshot has it.
SWEEP: list[tuple[str, object, str]] = [
    ("chat.websocket.host", "127.0.0.2", "websocket.host"),
    ("chat.websocket.port", 8080, "websocket.port"),
    ("chat.websocket.endpoint", "/chat", "websocket.endpoint"),
    ("chat.websocket.allow_origins", ["https://a.example"], "websocket.allow_origins"),
    ("chat.websocket.allow_credentials", False, "websocket.allow_credentials"),
    ("chat.websocket.max_message_size", 2048, "websocket.max_message_size"),
    ("chat.websocket.ping_interval", 5.0, "websocket.ping_interval"),
    ("chat.websocket.ping_timeout", 6.0, "websocket.ping_timeout"),
    ("chat.storage.type", "memory", "storage.type"),
    ("chat.storage.persistence.db_path", "other.db", "storage.db_path"),
    ("chat.storage.persistence.retention.max_age_hours", 1.0, "storage.retention.max_age_hours"),
    ("chat.storage.persistence.retention.max_messages", 5, "storage.retention.max_messages"),
    ("chat.storage.persistence.retention.max_sessions", 6, "storage.retention.max_sessions"),
    ("chat.storage.persistence.retention.cleanup_interval_minutes", 7.0, "storage.retention.cleanup_interval_minutes"),
    ("chat.storage.saved_sessions.enabled", False, "storage.saved_sessions.enabled"),
    ("chat.storage.saved_sessions.retention_days", 3.0, "storage.saved_sessions.retention_days"),
    ("chat.storage.saved_sessions.max_saved", 4, "storage.saved_sessions.max_saved"),
    ("chat.service.system_prompt", "Be short.", "service.system_prompt"),
    ("chat.service.streaming.enabled", False, "service.streaming"),
    ("chat.service.streaming.persistence.persist_deltas", False, "service.deltas.persist_deltas"),
    ("chat.service.streaming.persistence.interval_ms", 100, "service.deltas.interval_ms"),
    ("chat.service.streaming.persistence.min_chars", 512, "service.deltas.min_chars"),
    ("chat.service.max_tool_hops", 12, "service.max_tool_hops"),
    ("chat.service.tool_notifications.enabled", False, "service.tool_notifications.enabled"),
    ("chat.service.tool_notifications.show_args", False, "service.tool_notifications.show_args"),
    ("chat.service.tool_notifications.icon", "*", "service.tool_notifications.icon"),
    ("chat.service.tool_notifications.format", "{tool_name}", "service.tool_notifications.format"),
    ("chat.service.logging.llm_replies", True, "service.logging.llm_replies"),
    ("chat.service.logging.tool_execution", False, "service.logging.tool_execution"),
    ("chat.service.logging.system_prompt", True, "service.logging.system_prompt"),
    ("chat.service.logging.tool_results", True, "logging.features.tool_results"),
    ("chat.service.logging.llm_reply_truncate_length", 7, "logging.truncate.llm_replies"),
    ("chat.service.logging.result_truncate_length", 0, "logging.truncate.tool_results"),
    ("chat.service.drain_s", 3.0, "drain_s"),
    ("chat.sessions.default", "new", "service.default_session"),
    ("llm.providers.openrouter.base_url", "https://x.example/v1", "llm.providers.openrouter.base_url"),
    ("llm.providers.openrouter.model", "m", "llm.providers.openrouter.model"),
    ("llm.providers.openrouter.temperature", 0.1, "llm.providers.openrouter.parameters.temperature"),
    ("llm.providers.openrouter.max_tokens", 9, "llm.providers.openrouter.parameters.max_tokens"),
    ("llm.providers.openrouter.top_p", 0.5, "llm.providers.openrouter.parameters.top_p"),
    ("llm.providers.openrouter.transforms", [], "llm.providers.openrouter.parameters.transforms"),
    ("mcp.connection.max_reconnect_attempts", 9, "mcp.connection.max_reconnect_attempts"),
    ("mcp.connection.initial_reconnect_delay", 0.5, "mcp.connection.initial_reconnect_delay"),
    ("mcp.connection.max_reconnect_delay", 9.0, "mcp.connection.max_reconnect_delay"),
    ("mcp.connection.connection_timeout", 9.0, "mcp.connection.connection_timeout"),
    ("mcp.connection.ping_timeout", 9.0, "mcp.connection.ping_timeout"),
    ("logging.level", "DEBUG", "logging.level"),
    ("logging.format", "%(message)s", "logging.format"),
    ("logging.json", True, "logging.json"),
    ("logging.modules", {"streamer": "DEBUG"}, "logging.modules"),
]


def nested(key: str, value: object) -> Tree:
    tree: Any = value
    for part in reversed(key.split(".")):
        tree = {part: tree}
    return dict(tree)


def at(snapshot: Snapshot, path: str) -> object:
    found: Any = msgspec.to_builtins(snapshot)
    for part in path.split("."):
        found = found[part]
    return found


def edit(state: Path, text: str) -> None:
    (state / RUNTIME).write_text(text, "utf-8")


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A state directory after a first start."""
    Configuration(tmp_path / "state").snapshot()
    return tmp_path / "state"


def test_the_seeds_documents_load_as_they_are(state: Path) -> None:
    for text in (SEED, QUICK_REFERENCE):
        edit(state, text)
        snapshot = Configuration(state).snapshot()
        assert snapshot.websocket.port == 8000
        assert not [line for line in snapshot.problems if "not known" in line or "not in force" in line]
    assert snapshot.service.deltas.persist_deltas is False
    assert snapshot.storage.type == "auto_persist"


@pytest.mark.parametrize(("key", "value", "path"), SWEEP, ids=[key for key, _, _ in SWEEP])
def test_every_key_changes_its_field_and_nothing_else(state: Path, key: str, value: object, path: str) -> None:
    configuration = Configuration(state)
    before = configuration.snapshot()
    configuration.save_runtime_config(nested(key, value))
    after = configuration.snapshot()
    assert at(before, path) != value
    assert at(after, path) == value
    assert after.problems == []
    # Set back, it is as it was: nothing else had changed.
    back = {"streamer": None} if key == "logging.modules" else _default(key)
    configuration.save_runtime_config(nested(key, back))
    assert msgspec.structs.replace(configuration.snapshot(), version=before.version) == before


def _default(key: str) -> object:
    found: Any = DEFAULTS.data
    for part in key.split("."):
        found = found[part]
    return found


def test_the_sweep_has_every_key_of_the_reference() -> None:
    def keys(tree: Tree, path: str = "") -> set[str]:
        return {
            found
            for key, value in tree.items()
            for found in (keys(value, f"{path}{key}.") if isinstance(value, dict) else {f"{path}{key}"})
        }

    # Which servers file and which provider are tested by themselves, below.
    assert keys(parse(SEED, "seed").data) - {key for key, _, _ in SWEEP} == {"llm.active", "mcp.config_file"}


def test_the_first_start_makes_the_files(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "state"
    snapshot = Configuration(folder).snapshot()
    assert snapshot.problems == []
    assert snapshot.version == 1
    assert snapshot.state_dir == str(folder)
    made = parse((folder / RUNTIME).read_text("utf-8"), RUNTIME).data
    meta = made.pop("_runtime_config")
    assert made == {}
    assert meta.pop("last_modified") > 1_700_000_000
    assert meta == {
        "version": 1,
        "is_runtime_config": True,
        "default_config_path": "defaults.yaml",
        "created_from_defaults": True,
    }
    assert "only what you want different" in (folder / RUNTIME).read_text("utf-8")
    assert (folder / "servers_config.json").is_file()
    assert snapshot.mcp.servers
    assert stat.S_IMODE((folder / RUNTIME).stat().st_mode) == 0o600
    assert sorted(os.listdir(folder)) == [
        ".runtime_config.lock",
        "config_history",
        LAST_GOOD,
        RUNTIME,
        "servers_config.json",
    ]


def test_the_defaults_are_what_the_project_decided(state: Path) -> None:
    snapshot = Configuration(state).snapshot()
    assert (snapshot.websocket.host, snapshot.websocket.allow_origins) == ("127.0.0.1", [])
    assert snapshot.service.deltas.persist_deltas is True
    assert snapshot.service.default_session == "latest"
    assert snapshot.drain_s == 20
    assert snapshot.service.logging == {
        "llm_replies": False,
        "tool_execution": True,
        "system_prompt": False,
        "tool_results": False,
    }


@pytest.mark.parametrize("broken", [b"chat:\n\tport: 1\n", b"", b"chat: {web", b"\xff\xfe", b"x" * 300_000])
def test_an_unparsable_file_at_the_start_is_set_aside_and_made_anew(state: Path, broken: bytes) -> None:
    edit(state, "chat: {websocket: {port: 8123}}")
    Configuration(state).snapshot()
    (state / RUNTIME).write_bytes(broken)
    configuration = Configuration(state)
    snapshot = configuration.snapshot()
    assert snapshot.websocket.port == 8123
    kept = [path for path in state.iterdir() if path.name.startswith(f"{RUNTIME}.broken-")]
    assert len(kept) == 1
    assert kept[0].read_bytes() == broken
    assert snapshot.problems[-1] == (
        f"{RUNTIME}: could not be parsed; it is kept as {kept[0].name} and was made anew from its last good version"
    )
    assert snapshot.problems[0].startswith(f"{RUNTIME}:")
    # It is said, by a second object of the same start too, until the file changes.
    assert Configuration(state, configuration.said).snapshot().problems == snapshot.problems
    assert configuration.snapshot().problems == snapshot.problems
    edit(state, "chat: {websocket: {port: 8124}}")
    assert configuration.snapshot().problems == []


def test_without_a_last_good_version_it_is_made_from_the_defaults(state: Path) -> None:
    (state / LAST_GOOD).unlink()
    edit(state, "chat: {")
    snapshot = Configuration(state).snapshot()
    assert "made anew from the defaults" in snapshot.problems[-1]
    assert parse((state / RUNTIME).read_text("utf-8"), "f").data["_runtime_config"]["version"] == 1


def test_a_valid_yaml_that_is_not_valid_is_left_alone_and_the_last_good_version_runs(state: Path) -> None:
    edit(state, "chat: {websocket: {port: 8123}}")
    Configuration(state).snapshot()
    wrong = "chat:\n  websocket:\n    port: abc\n    ping_timeout: no\n"
    edit(state, wrong)
    snapshot = Configuration(state).snapshot()
    assert snapshot.websocket.port == 8123
    assert snapshot.problems == [
        f'{RUNTIME}:3: chat.websocket.port: must be a whole number from 0 to 65535 (got "abc")',
        f"{RUNTIME}:4: chat.websocket.ping_timeout: must be a number above 0 and up to 1000000 (got false)",
        f"{RUNTIME}: is not in force; its last good version is ({LAST_GOOD})",
    ]
    assert (state / RUNTIME).read_text("utf-8") == wrong
    (state / LAST_GOOD).unlink()
    assert Configuration(state).snapshot().problems[-1] == f"{RUNTIME}: is not in force; the defaults are"


@pytest.mark.parametrize("text", ["", "chat: {", "chat: {websocket: {port: x}}", "llm: {active: nobody}"])
def test_while_it_runs_a_mistake_changes_nothing_and_sets_nothing_aside(state: Path, text: str) -> None:
    edit(state, "chat: {websocket: {port: 8123}}")
    configuration = Configuration(state)
    before = configuration.snapshot()
    edit(state, text)
    after = configuration.snapshot()
    assert after.problems[-1] == f"{RUNTIME}: is not in force; what was in force before stays"
    assert msgspec.structs.replace(after, problems=[]) == before
    assert (state / RUNTIME).read_text("utf-8") == text
    assert not [name for name in os.listdir(state) if "broken" in name]
    (state / RUNTIME).unlink()
    assert configuration.snapshot().problems[0] == f"{RUNTIME}: is missing"
    assert not (state / RUNTIME).exists()


def test_a_state_directory_that_cannot_be_written_is_said_and_the_service_runs(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    snapshot = Configuration(tmp_path / "file" / "state").snapshot()
    assert snapshot.websocket.port == 8000
    assert (
        f"state directory {tmp_path}/file/state: cannot be written (Not a directory); changes are not kept"
        in snapshot.problems
    )
    assert snapshot.mcp.servers == {}


def test_what_is_no_file_is_refused_without_waiting_for_it(state: Path) -> None:
    (state / RUNTIME).unlink()
    os.mkfifo(state / RUNTIME)
    assert f"{RUNTIME}: is not a regular file" in Configuration(state).snapshot().problems


def test_the_command_line_is_above_all_and_never_saved(state: Path) -> None:
    configuration = Configuration(state)
    edit(state, "chat: {websocket: {port: 1, host: localhost}}")
    assert configuration.snapshot({"chat": {"websocket": {"port": 0}}}).websocket.port == 0
    configuration.save_runtime_config({"chat": {"websocket": {"host": "::1"}}})
    assert configuration.get_config_dict()["chat"]["websocket"]["port"] == 1
    with pytest.raises(ConfigurationError) as raised:
        configuration.snapshot({"chat": {"websocket": {"port": 70000}}})
    assert raised.value.problems == (
        "command line: chat.websocket.port: must be a whole number from 0 to 65535 (got 70000)",
    )


# Providers.


def test_providers_have_parameters_key_variable_and_client(state: Path) -> None:
    edit(
        state,
        """
connection_pool: {max_connections: 7, request_timeout_seconds: 33}
llm:
  active: my-llm.2
  providers:
    openrouter: null
    openai: null
    groq: null
    my-llm.2:
      base_url: https://x.example/v1
      model: m
      timeout: 5
      headers: {X: y}
      client: {max_connections: 3, headers: {H: "${V}"}}
    near: {base_url: "http://127.0.0.1:11434/v1", model: m}
    near_with_key: {base_url: "http://localhost/v1", model: m, api_key_env: MY_KEY}
    free: {base_url: "https://x.example", model: m, api_key_env: null}
""",
    )
    snapshot = Configuration(state).snapshot()
    assert snapshot.problems == []
    providers = snapshot.llm.providers
    assert {name: provider.api_key_env for name, provider in providers.items()} == {
        "my-llm.2": "MY_LLM_2_API_KEY",
        "near": None,
        "near_with_key": "MY_KEY",
        "free": None,
    }
    mine = providers["my-llm.2"]
    assert mine.parameters == {"timeout": 5, "headers": {"X": "y"}}
    assert (mine.client.max_connections, mine.client.first_token_timeout) == (3, 33)
    assert mine.client.headers == {"H": "${V}"}
    assert providers["near"].client.max_connections == 7


@pytest.mark.parametrize(
    ("url", "near"),
    [
        ("http://127.0.0.1:1/v1", True),
        ("http://127.8.8.8", True),
        ("http://[::1]:80", True),
        ("http://localhost", True),
        ("http://127.0.0.1.example.com", False),
        ("http://10.0.0.1", False),
        ("https://localhost.example.com", False),
    ],
)
def test_loopback_addresses(url: str, near: bool) -> None:
    assert on_loopback(url) is near


def test_key_variables() -> None:
    assert [key_variable(name) for name in ("openrouter", "my-llm", "ä.b")] == [
        "OPENROUTER_API_KEY",
        "MY_LLM_API_KEY",
        "__B_API_KEY",
    ]


def test_the_local_model_steps_in_only_where_the_key_is_missing(state: Path) -> None:
    snapshot = Configuration(state).snapshot()
    url = "http://127.0.0.1:1/v1"
    local = with_local_model(snapshot, url, "tiny", {})
    assert local.llm.active == "local"
    assert (local.llm.providers["local"].base_url, local.llm.providers["local"].api_key_env) == (url, None)
    assert local.llm.providers["local"].parameters == {"max_tokens": 512}
    assert set(local.llm.providers) == {*snapshot.llm.providers, "local"}
    assert with_local_model(snapshot, url, "tiny", {"OPENROUTER_API_KEY": "k"}) is snapshot
    assert with_local_model(snapshot, url, "tiny", {"OPENROUTER_API_KEY": ""}).llm.active == "local"
    edit(
        state,
        "llm: {active: local, providers: {local: {base_url: 'http://127.0.0.1:2', model: theirs}}}",
    )
    theirs = Configuration(state).snapshot()
    assert with_local_model(theirs, url, "tiny", {}) is theirs
    edit(state, "llm: {providers: {local: {base_url: 'http://127.0.0.1:2', model: theirs}}}")
    both = with_local_model(Configuration(state).snapshot(), url, "tiny", {})
    assert both.llm.active == "local-model"
    assert both.llm.providers["local"].model == "theirs"


# Servers.


def test_the_servers_file_is_the_one_that_is_named(state: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text('{"mcpServers": {"x": {"command": "c"}}}')
    edit(state, f"mcp: {{config_file: {tmp_path}/mine.json}}")
    configuration = Configuration(state)
    snapshot = configuration.snapshot()
    assert list(snapshot.mcp.servers) == ["x"]
    assert configuration.watched == (state / RUNTIME, tmp_path / "mine.json")


def test_retries_of_the_servers_file_win_over_the_defaults_and_the_runtime_file_over_both(state: Path) -> None:
    (state / "servers_config.json").write_text('{"mcpServers": {}, "settings": {"maxRetries": 3, "retryDelay": 2}}')
    connection = Configuration(state).snapshot().mcp.connection
    assert (connection.max_reconnect_attempts, connection.initial_reconnect_delay) == (3, 2.0)
    edit(state, "mcp: {connection: {max_reconnect_attempts: 7}}")
    connection = Configuration(state).snapshot().mcp.connection
    assert (connection.max_reconnect_attempts, connection.initial_reconnect_delay) == (7, 2.0)


def test_a_broken_servers_file_keeps_the_servers_that_run(state: Path) -> None:
    configuration = Configuration(state)
    before = configuration.snapshot().mcp.servers
    (state / "servers_config.json").write_text('{"mcpServers": {')
    after = configuration.snapshot()
    assert after.mcp.servers == before
    assert after.problems == [
        "servers_config.json:1:17: Expecting property name enclosed in double quotes; is the file truncated?",
        "servers_config.json: is not in force; the servers in force before stay",
    ]
    assert Configuration(state).snapshot().mcp.servers == {}


# For scripts.


def test_saving_keeps_only_what_differs_and_counts_versions(state: Path) -> None:
    shutil.rmtree(state / FOLDER)  # a file brought along from elsewhere goes on counting
    configuration = Configuration(state)
    edit(
        state,
        "chat: {websocket: {port: 9}}\nllm: {providers: {openrouter: {top_p: null}}}\n"
        "_runtime_config: {version: 11, mine: 1}",
    )
    config = configuration.get_config_dict()
    assert "top_p" not in config["llm"]["providers"]["openrouter"]
    config["chat"]["websocket"]["port"] = 8000
    config["llm"]["active"] = "other"
    config["llm"]["providers"]["other"] = {"base_url": "https://other.example/v1", "model": "yes"}
    assert configuration.save_runtime_config(config) == 12
    saved = parse((state / RUNTIME).read_text("utf-8"), RUNTIME).data
    meta = saved.pop("_runtime_config")
    assert (meta["version"], meta["mine"], meta["is_runtime_config"]) == (12, 1, True)
    assert saved == {
        "llm": {
            "active": "other",
            "providers": {
                "openrouter": {"top_p": None},
                "other": {"base_url": "https://other.example/v1", "model": "yes"},
            },
        }
    }
    assert configuration.get_llm_config()["model"] == "yes"
    assert configuration.get_config_dict() == config


def test_saving_a_part_keeps_the_rest(state: Path) -> None:
    configuration = Configuration(state)
    configuration.save_runtime_config({"chat": {"websocket": {"port": 1}}})
    configuration.save_runtime_config({"chat": {"websocket": {"host": "::1"}}})
    configuration.save_runtime_config({"llm": {"providers": {"openrouter": {"transforms": None}}}})
    config = configuration.get_config_dict()
    assert (config["chat"]["websocket"]["port"], config["chat"]["websocket"]["host"]) == (1, "::1")
    assert "transforms" not in config["llm"]["providers"]["openrouter"]


def test_what_is_not_valid_is_not_saved(state: Path) -> None:
    before = (state / RUNTIME).read_bytes()
    with pytest.raises(ConfigurationError, match=r"given configuration: chat\.websocket\.port: must be"):
        Configuration(state).save_runtime_config({"chat": {"websocket": {"port": "x"}}})
    edit(state, "chat: {")
    with pytest.raises(ConfigurationError):
        Configuration(state).save_runtime_config({})
    with pytest.raises(ConfigurationError):
        Configuration(state).reload_runtime_config()
    assert (state / RUNTIME).read_bytes() != before


def test_prompts_of_any_form_survive_a_save(state: Path) -> None:
    configuration = Configuration(state)
    for prompt in ("\n\n", "a\nb", " x\n y", "1e-3", "# no comment", "x: y", "\u2028", "---\n", "...\n", "é🔧"):
        configuration.save_runtime_config({"chat": {"service": {"system_prompt": prompt}}})
        assert configuration.get_config_dict()["chat"]["service"]["system_prompt"] == prompt


def test_reload_says_whether_something_changed(state: Path) -> None:
    configuration = Configuration(state)
    assert configuration.reload_runtime_config() is True
    assert configuration.reload_runtime_config() is False
    edit(state, "chat: {websocket: {port: 5}}")
    assert configuration.reload_runtime_config() is True


def test_a_save_keeps_mode_and_link_and_leaves_no_other_file(state: Path, tmp_path: Path) -> None:
    target = tmp_path / "elsewhere.yaml"
    (state / RUNTIME).rename(target)
    target.chmod(0o640)
    (state / RUNTIME).symlink_to(target)
    Configuration(state).save_runtime_config({"chat": {"websocket": {"port": 5}}})
    assert (state / RUNTIME).is_symlink()
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    assert "port: 5" in target.read_text("utf-8")
    assert sorted(os.listdir(tmp_path)) == ["elsewhere.yaml", "state"]
    assert not [name for name in os.listdir(state) if name.startswith(f".{RUNTIME}.")]


SAVER = """
import sys
from actors.configuration import Configuration
configuration = Configuration(sys.argv[1])
for number in range(10):
    configuration.save_runtime_config({"llm": {"providers": {"openrouter": {sys.argv[2]: number}}}})
"""


async def test_savers_at_the_same_time_lose_nothing(state: Path) -> None:
    async def save(name: str) -> None:
        assert (await forks.run(SAVER, str(state), name)).code == 0

    async with trio.open_nursery() as nursery:
        for name in ("one", "two", "three"):
            nursery.start_soon(save, name)
    config = Configuration(state).get_llm_config()
    assert (config["one"], config["two"], config["three"]) == (9, 9, 9)
    assert parse((state / RUNTIME).read_text("utf-8"), "f").data["_runtime_config"]["version"] == 31


def test_secrets_in_the_file_never_come_out(state: Path) -> None:
    edit(
        state,
        "llm: {providers: {openrouter: {api_key: sk-planted-secret,"
        " client: {headers: {Authorization: sk-planted-secret}}}}}",
    )
    configuration = Configuration(state)
    snapshot = configuration.snapshot()
    assert len(snapshot.problems) == 2
    assert "planted" not in repr(snapshot)
    assert "planted" not in repr(configuration.get_config_dict())


# The environment.


def test_the_environment_wins_over_env_files_and_the_working_directorys_over_the_states(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("T_REAL", "T_CWD", "T_STATE", "T_EMPTY"):
        monkeypatch.setenv(name, "remove")  # so that it is gone after the test, whatever this sets
        monkeypatch.delenv(name)
    monkeypatch.setenv("T_REAL", "real")
    (tmp_path / "cwd").mkdir()
    (tmp_path / "state").mkdir()
    (tmp_path / "cwd" / ".env").write_text("T_REAL=cwd\nexport T_CWD='cwd'  # comment\nT_EMPTY\n\nnot a line =\n")
    (tmp_path / "state" / ".env").write_text("T_REAL=state\nT_CWD=state\nT_STATE=state\n")
    env = tmp_path / "cwd" / ".env"
    left_out = [f"{env}:{line}: is not NAME=value, and was left out" for line in (3, 5)]
    assert load_environment(tmp_path / "cwd", tmp_path / "state") == left_out
    assert [os.environ.get(name) for name in ("T_REAL", "T_CWD", "T_STATE", "T_EMPTY")] == [
        "real",
        "cwd",
        "state",
        None,
    ]
    assert load_environment(tmp_path / "nowhere", tmp_path) == []


def test_an_env_file_that_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"KEY=\xff\xfe")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / ".env").symlink_to(tmp_path / "fifo")
    problem = f"{tmp_path / '.env'}: was not read (it is not UTF-8)"
    assert load_environment(tmp_path, tmp_path / "other") == [problem]
