"""The endpoint of a server with a url: what is filled in, what is refused, and what is never shown."""

from __future__ import annotations

import msgspec
import pytest

from actors.server_command import roots_of
from actors.server_endpoint import endpoint_of
from actors.server_faults import Unusable
from protocol.watcher import McpServer

SERVER = McpServer(
    name="wiki", enabled=True, command="", args=[], cwd=None, env={}, timeout=1.0, auto_reconnect=True,
    protocol="auto", url="https://wiki.example/mcp", type="auto",
)  # fmt: skip


def server(**changes: object) -> McpServer:
    return msgspec.structs.replace(SERVER, **changes)


def test_variables_are_filled_and_not_shown() -> None:
    wiki = server(
        url="https://me:pass-planted@${HOST}/t/${KEY}/mcp?k=${KEY}&plain=query-planted",
        headers={"Authorization": "Bearer ${TOKEN}", "X-Plain": "header-planted"},
        ca_file="ca.pem",
    )
    environ = {"HOST": "h.example:8443", "KEY": "key-planted", "TOKEN": "token-planted"}
    endpoint = endpoint_of(wiki, "/state", environ)
    assert endpoint.url == "https://me:pass-planted@h.example:8443/t/key-planted/mcp?k=key-planted&plain=query-planted"
    assert endpoint.headers == {"Authorization": "Bearer token-planted", "X-Plain": "header-planted"}
    assert (endpoint.kind, endpoint.ca_file) == ("auto", "/state/ca.pem")
    assert endpoint.shown == "https://h.example:8443/t/***/mcp"
    assert "planted" not in repr(endpoint)
    assert "planted" not in repr(endpoint.facts())
    said = "no key-planted for token-planted, header-planted, pass-planted, query-planted"
    assert endpoint.clean(said) == "no *** for ***, ***, ***, ***"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"url": "https://${NOT_SET}/"}, "environment variable NOT_SET for its `url`"),
        ({"headers": {"A": "${NOT_SET}"}}, "environment variable NOT_SET for its `headers.A`"),
        ({"url": "wiki.example/mcp"}, "its `url` is no address"),
        ({"url": "ftp://wiki.example/mcp"}, "its `url` is no address"),
        ({"url": "https:///mcp"}, "its `url` is no address"),
        ({"url": "https://wiki.example:99999/"}, "its `url` is no address"),
        ({"url": "https://wiki.example/a b"}, "its `url` is no address"),
        ({"headers": {"A B": "x"}}, "'A B' is no header"),
        ({"headers": {"Host": "x"}}, "'Host' is no header"),
        ({"headers": {"A": "x\r\nB: y"}}, "the value of its header A"),
        ({"headers": {"A": "ä"}}, "the value of its header A"),
    ],
)
def test_what_cannot_be_used_is_told_without_its_value(changes: dict[str, object], words: str) -> None:
    with pytest.raises(Unusable, match="MCP server 'wiki'") as caught:
        endpoint_of(server(**changes), "/state", {})
    assert words in str(caught.value)


def test_roots_are_file_uris() -> None:
    wiki = server(roots=["a b", "/abs", "file:///uri"])
    assert roots_of(wiki, "/state") == ["file:///state/a%20b", "file:///abs", "file:///uri"]
