from __future__ import annotations

import logging

import pytest
import trio

from actors.server_log import BURST, LINE, ServerLog


def lines(caplog: pytest.LogCaptureFixture) -> list[tuple[str, int, str]]:
    return [found for found in caplog.record_tuples if found[0].startswith("actors.mcp.")]


def clean(text: str) -> str:
    return text.replace("s3cr3t", "***")


@pytest.mark.autojump
async def test_what_is_below_the_level_is_dropped_and_the_level_can_change(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "actors.mcp.demo")
    log = ServerLog("demo", "WARNING", clean)
    for level in ("debug", "info", "notice", "warning", "error", "critical", "alert", "emergency", "what"):
        log.take(level, "", level)
    assert [text for _, _, text in lines(caplog)] == ["warning", "error", "critical", "alert", "emergency"]
    log.level = "INFO"
    log.take("notice", "db", {"rows": 3})
    assert lines(caplog)[-1] == ("actors.mcp.demo", logging.INFO, '[db] {"rows":3}')


@pytest.mark.autojump
async def test_a_message_is_one_short_line_without_secrets(caplog: pytest.LogCaptureFixture) -> None:
    log = ServerLog("demo", "DEBUG", clean)
    log.take("error", "", "token s3cr3t\nERROR actors.store all is lost\x1b[2J\u2028")
    log.take("error", "", "x" * (LINE - 3) + "s3cr3t")
    log.take("error", "", "x" * 10 * LINE)
    texts = [text for _, _, text in lines(caplog)]
    assert texts[0] == "token *** ERROR actors.store all is lost [2J "
    assert texts[1].endswith("x***")
    assert texts[2] == "x" * LINE + "…"


@pytest.mark.autojump
async def test_a_flood_is_cut_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    log = ServerLog("demo", "DEBUG", clean)
    for number in range(BURST + 7):
        log.take("error", "", str(number))
    assert len(lines(caplog)) == BURST
    await trio.sleep(1)  # autojump: virtual
    log.take("error", "", "later")
    assert [text for _, _, text in lines(caplog)][-2:] == [
        "(7 messages of this server were not passed on: it logs too much)",
        "later",
    ]
