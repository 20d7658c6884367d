"""Lists of models as providers give them, and how they are to be read; for the streamer's reader and the server's."""

from __future__ import annotations

import json
from typing import Any

OPENROUTER = {
    "data": [
        {
            "id": "openai/gpt-4o-mini",
            "name": "OpenAI: GPT-4o-mini",
            "context_length": 128000,
            "architecture": {"modality": "text+image->text", "input_modalities": ["text", "image", "file"]},
            "pricing": {"prompt": "0.00000015", "completion": "0.0000006", "request": "0", "image": "0.000217"},
            "top_provider": {"context_length": 128000, "max_completion_tokens": 16384},
            "supported_parameters": ["max_tokens", "tools", "tool_choice", "structured_outputs"],
        },
        {
            "id": "deepseek/deepseek-r1:free",
            "name": "DeepSeek: R1 (free)",
            "context_length": 163840,
            "architecture": {"input_modalities": ["text"]},
            "pricing": {"prompt": "0", "completion": "0"},
            "supported_parameters": ["include_reasoning", "reasoning"],
        },
        {"id": "openrouter/auto", "context_length": 2000000, "pricing": {"prompt": "-1", "completion": "-1"}},
    ]
}
FORMS: dict[str, tuple[Any, list[dict[str, Any]]]] = {
    "OpenRouter": (
        OPENROUTER,
        [
            {
                "id": "deepseek/deepseek-r1:free",
                "name": "DeepSeek: R1 (free)",
                "context_tokens": 163840,
                "input_price": 0.0,
                "output_price": 0.0,
                "features": ["reasoning"],
            },
            {
                "id": "openai/gpt-4o-mini",
                "name": "OpenAI: GPT-4o-mini",
                "context_tokens": 128000,
                "input_price": 0.15,
                "output_price": 0.6,
                "features": ["structured_output", "tools", "vision"],
            },
            {"id": "openrouter/auto", "context_tokens": 2000000},
        ],
    ),
    "OpenAI": (
        {"object": "list", "data": [{"id": "gpt-4o", "object": "model", "created": 1, "owned_by": "system"}]},
        [{"id": "gpt-4o"}],
    ),
    "Together: a bare list, prices a million": (
        [
            {
                "id": "meta-llama/Llama-3.3-70B",
                "display_name": "Llama 3.3",
                "context_length": 131072,
                "pricing": {"hourly": 0, "input": 0.88, "output": 0.88, "base": 0},
            }
        ],
        [
            {
                "id": "meta-llama/Llama-3.3-70B",
                "name": "Llama 3.3",
                "context_tokens": 131072,
                "input_price": 0.88,
                "output_price": 0.88,
            }
        ],
    ),
    "Mistral: capabilities": (
        {
            "data": [
                {
                    "id": "pixtral-12b",
                    "name": "pixtral-12b",
                    "max_context_length": 131072,
                    "capabilities": {"completion_chat": True, "function_calling": True, "vision": True, "audio": False},
                }
            ]
        },
        [{"id": "pixtral-12b", "context_tokens": 131072, "features": ["tools", "vision"]}],
    ),
    "Groq": ({"data": [{"id": "q", "active": True, "context_window": 8192}]}, [{"id": "q", "context_tokens": 8192}]),
    "vLLM": ({"data": [{"id": "v", "max_model_len": 4096}]}, [{"id": "v", "context_tokens": 4096}]),
    "llama.cpp": (
        {"models": [{"name": "x"}], "data": [{"id": "s", "meta": {"n_ctx_train": 8192, "n_params": 134515008}}]},
        [{"id": "s", "context_tokens": 8192}],
    ),
    "DeepInfra": (
        {
            "data": [
                {"id": "d", "metadata": {"pricing": {"input_tokens": 0.05, "output_tokens": 0.1}, "tags": ["vision"]}}
            ]
        },
        [{"id": "d", "input_price": 0.05, "output_price": 0.1}],
    ),
    "odd entries are left out, odd values too": (
        {
            "data": [
                None,
                {"name": "no id"},
                {"id": ""},
                {"id": 7},
                {"id": "x" * 1000},
                {
                    "id": "odd",
                    "name": 5,
                    "context_length": "many",
                    "context_window": True,
                    "pricing": {"prompt": "free", "completion": None},
                    "supported_parameters": [1, None],
                    "capabilities": "all",
                },
                {"id": "odd2", "pricing": ["x"], "context_length": -1, "features": {"Tool-Use": True}},
                {"id": "odd3", "pricing": {"prompt": "1e999", "completion": True}},
            ]
        },
        [{"id": "odd"}, {"id": "odd2", "features": ["tools"]}, {"id": "odd3"}],
    ),
    "nothing": ({"data": []}, []),
}
"""An answer, and the models in it."""

NO_LISTS = [b"", b"<html>", b"null", b"{}", b'{"data": {}}', b'{"error": {"message": "no"}}', b"[" * 100_000, b"\xff"]


def written(form: str) -> bytes:
    """The answer's body."""
    return json.dumps(FORMS[form][0]).encode()
