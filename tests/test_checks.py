"""Unknown keys, the original backend's keys, secrets: what is said of them, and what comes of them."""

from __future__ import annotations

from pathlib import Path

import pytest

import actors
from actors.checks import check, refusals
from actors.layers import ConfigurationError, Layer, parse
from actors.trees import Tree, deep_merge

DEFAULTS = parse((Path(actors.__file__).parent / "defaults.yaml").read_text("utf-8"), "defaults.yaml")


def read(text: str) -> Layer:
    return parse(text, "runtime_config.yaml")


def test_the_defaults_are_valid_and_silent() -> None:
    checked = check([DEFAULTS])
    assert checked.warnings == []
    assert checked.tree == DEFAULTS.data


def test_unknown_keys_are_warned_of_with_a_guess() -> None:
    text = "chat:\n  websocket:\n    prot: 1\nweb: {}\nllm:\n  providers:\n    openrouter:\n"
    text += "      client:\n        retry: 1\n"
    checked = check([DEFAULTS, read(text)])
    assert checked.warnings == [
        "runtime_config.yaml:3: chat.websocket.prot: is not known here and is ignored; is port meant?",
        "runtime_config.yaml:4: web: is not known here and is ignored",
        "runtime_config.yaml:9: llm.providers.openrouter.client.retry: is not known here and is ignored; "
        "is retries meant?",
    ]
    assert checked.settings.chat.websocket.port == 8000


def test_every_other_key_of_a_provider_is_a_parameter() -> None:
    text = "llm: {providers: {openrouter: {timeout: 5, headers: {a: b}, retry: {n: [1, null]}, top_p: null, x: yes}}}"
    checked = check([DEFAULTS, read(text)])
    assert checked.warnings == []
    assert checked.settings.llm.providers["openrouter"].model_extra == {
        "temperature": 0.7,
        "max_tokens": 4096,
        "transforms": ["middle-out"],
        "timeout": 5,
        "headers": {"a": "b"},
        "retry": {"n": [1, None]},
        "x": True,
    }


def test_an_empty_provider_is_taken_away_unless_it_is_the_active_one() -> None:
    text = "llm:\n  active: groq\n  providers:\n    openai:\n    groq:\n      # model: other\n"
    checked = check([DEFAULTS, read(text)])
    assert list(checked.settings.llm.providers) == ["openrouter", "groq"]
    assert checked.warnings == [
        "runtime_config.yaml:5: llm.providers.groq: is empty and is ignored: the active provider is not taken away"
    ]
    with pytest.raises(ConfigurationError, match="names no provider"):
        check([DEFAULTS, read("llm: {active: mine, providers: {mine: }}")])
    # A program would not read a warning.
    said = Layer("given", {"llm": {"providers": {"groq": None, "openai": None}}})
    why = "given: llm.providers.groq: is the active provider; let llm.active name another one first"
    assert refusals(said, checked.tree) == [why]
    said = Layer("given", {"llm": {"active": "openrouter", "providers": {"groq": None}}})
    assert refusals(said, checked.tree) == []


def test_the_metadata_is_no_setting() -> None:
    checked = check([DEFAULTS, read("_runtime_config: {version: 11, last_modified: 1.5, anything: 2}")])
    assert checked.warnings == []
    assert "_runtime_config" not in checked.tree


ORIGINAL = """\
chat:
  storage:
    persistence:
      retention:
        clear_triggers_before_full_wipe: 2
      saved_sessions:
        enabled: false
        max_saved: 7
  service:
    logging:
      llm_reply_truncate_length: 500
      result_truncate_length: 200
connection_pool:
  max_connections: 10
  max_keepalive_connections: 5
  keepalive_expiry_seconds: 30
  request_timeout_seconds: 30
  total_timeout_seconds: 120
logging:
  level: "WARNING"
  modules:
    chat:
      level: "INFO"
      enable_features:
        llm_replies: true
        tool_results: true
  advanced:
    structured_logging: false
"""


def test_keys_of_the_original_backend_are_read_or_warned_of() -> None:
    checked = check([DEFAULTS, read(ORIGINAL)])
    settings = checked.settings
    assert settings.chat.storage.saved_sessions.enabled is False
    assert settings.chat.storage.saved_sessions.max_saved == 7
    assert settings.chat.service.logging.llm_replies is True
    assert settings.chat.service.logging.system_prompt is False
    assert settings.connection_pool.request_timeout_seconds == 30
    told = {line.split(": ")[1]: line.split(": ")[0] for line in checked.warnings}
    assert told == {
        "chat.storage.persistence.retention.clear_triggers_before_full_wipe": "runtime_config.yaml:5",
        "logging.advanced": "runtime_config.yaml:27",
    }
    assert all(": has no effect: " in line for line in checked.warnings)


def test_the_right_place_wins_over_the_original_one() -> None:
    text = "chat: {storage: {persistence: {saved_sessions: {max_saved: 7, enabled: false}},"
    text += " saved_sessions: {max_saved: 9}}}"
    saved = check([DEFAULTS, read(text)]).settings.chat.storage.saved_sessions
    assert (saved.max_saved, saved.enabled) == (9, False)


SECRET = "sk-or-v1-0123456789abcdef"


@pytest.mark.parametrize(
    "key", ["api_key", "API-KEY", "apikey", "token", "secret", "password", "authorization", "access_token", "x_api_key"]
)
def test_a_secret_in_the_file_is_neither_used_nor_shown(key: str) -> None:
    checked = check([DEFAULTS, read(f"llm:\n  providers:\n    openrouter:\n      {key}: {SECRET}\n")])
    assert checked.warnings == [
        f"runtime_config.yaml:4: llm.providers.openrouter.{key}: looks like a secret and is not used; "
        "put it into the environment or .env, and remove it here"
    ]
    assert SECRET not in repr(checked)


def test_nested_secrets_are_found_and_parameters_that_sound_alike_stay() -> None:
    tree: Tree = {
        "max_tokens": 5,
        "stop_token": "x",
        "extra_body": {"token": SECRET, "keep": [{"api_key": SECRET, "n": 1}]},
        "response_format": {"schema": {"properties": {"password": {"type": "string"}}}},
        "client": {"headers": {"Authorization": SECRET, "X-Api-Key": "${MY_KEY}"}},
    }
    layer = Layer("runtime_config.yaml", {"llm": {"providers": {"openrouter": tree}}})
    checked = check([DEFAULTS, layer])
    provider = checked.settings.llm.providers["openrouter"]
    assert SECRET not in repr(checked)
    assert provider.client.headers == {"X-Api-Key": "${MY_KEY}"}
    assert len(checked.warnings) == 3
    assert provider.model_extra == deep_merge(
        {"temperature": 0.7, "top_p": 1.0, "transforms": ["middle-out"]},
        {
            "max_tokens": 5,
            "stop_token": "x",
            "extra_body": {"keep": [{"n": 1}]},
            "response_format": tree["response_format"],
        },
    )


def test_any_origin_is_allowed_with_a_warning() -> None:
    checked = check([DEFAULTS, read('chat:\n  websocket:\n    allow_origins: ["*"]\n')])
    assert checked.warnings == [
        'runtime_config.yaml:3: chat.websocket.allow_origins: "*" lets every web page use this service'
    ]
