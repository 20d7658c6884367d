"""Where tokens are kept: for their owner only, whole, and never in the way when that fails."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from actors.token_file import TokenFile

RECORD = {"tokens": {"access_token": "s3cr3t"}}


async def test_a_record_is_kept_for_its_owner_and_its_address_only(tmp_path: Path) -> None:
    file = TokenFile(str(tmp_path), "../wiki", "https://wiki.example/mcp")
    assert await file.load() == {}
    await file.save(RECORD)
    assert file.path.parent == tmp_path / "oauth"
    assert [path.name for path in file.path.parent.iterdir()] == [file.path.name]
    assert (file.path.stat().st_mode & 0o777, file.path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert await TokenFile(str(tmp_path), "../wiki", "https://wiki.example/mcp").load() == RECORD
    assert await TokenFile(str(tmp_path), "../wiki", "https://other.example/mcp").load() == {}
    assert await TokenFile(str(tmp_path), "wiki", "https://wiki.example/mcp").load() == {}

    file.path.chmod(0o644)
    file.path.parent.chmod(0o755)
    assert await file.load() == RECORD
    assert (file.path.stat().st_mode & 0o777, file.path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    file.path.chmod(0o644)
    await file.save(RECORD | {"issuer": "https://login.example"})
    assert file.path.stat().st_mode & 0o777 == 0o600
    await file.save({})
    assert not file.path.exists()


async def test_what_cannot_be_read_or_written_is_told_and_not_quoted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = TokenFile(str(tmp_path), "wiki", "https://wiki.example/mcp")
    await file.save(RECORD)
    file.path.write_text('{"tokens": "s3cr3t"')
    assert await file.load() == {}
    assert "cannot be read: JSONDecodeError" in caplog.text
    file.path.write_text('["s3cr3t"]')
    assert await file.load() == {}

    (tmp_path / "full").write_text("no directory")
    with caplog.at_level(logging.ERROR):
        await TokenFile(str(tmp_path / "full"), "wiki", "https://wiki.example/mcp").save(RECORD)
    assert "are not kept: Not a directory" in caplog.text
    assert "s3cr3t" not in caplog.text
