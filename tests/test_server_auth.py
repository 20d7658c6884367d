"""`auth` in the servers file: what is taken, what is wrong with the rest, and when it is used at all."""

from __future__ import annotations

from typing import Any

import pytest

from actors.server_auth import authorization, final
from actors.server_faults import Unusable
from protocol.watcher import Authorization
from tests.mcp_house import odd


def test_every_key_is_taken() -> None:
    whole: dict[str, Any] = {
        "type": "oauth",
        "client_id": "us",
        "client_secret": "${SECRET}",
        "scopes": "read write",
        "issuer": "https://login.example",
        "client_metadata_url": "https://us.example/client.json",
        "redirect_port": 8765,
        "token_endpoint_auth_method": "client_secret_post",
        "_why": "a comment",
    }
    without_comment = {key: value for key, value in whole.items() if key != "_why"}
    assert authorization(whole) == Authorization(**(without_comment | {"scopes": ["read", "write"]}))
    assert authorization({}) == Authorization()


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("oauth", "must be an object"),
        ({"clientId": "us"}, "'clientId'"),
        ({"type": "basic"}, "oauth, client_credentials, none"),
        ({"client_id": ""}, "client_id"),
        ({"client_secret": "s3cr3t"}, "without client_id"),
        ({"scopes": ["a b"]}, "scopes"),
        ({"scopes": 3}, "scopes"),
        ({"issuer": "login.example"}, "issuer must be an address"),
        ({"client_metadata_url": "http://us.example/client.json"}, "begins with https://"),
        ({"client_metadata_url": "https://us.example"}, "with a path"),
        ({"redirect_port": True}, "redirect_port"),
        ({"redirect_port": 70000}, "redirect_port"),
        ({"token_endpoint_auth_method": "private_key_jwt"}, "client_secret_basic, client_secret_post"),
        ({"type": "client_credentials"}, "needs client_id and client_secret"),
        ({"type": "client_credentials", "client_id": "us", "client_secret": "s3cr3t"}, "needs issuer"),
    ],
)
def test_what_is_wrong_is_told_without_its_value(entry: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        authorization(entry)
    assert "s3cr3t" not in str(caught.value)


def test_what_is_done_follows_from_the_whole_entry() -> None:
    def of(**more: Any) -> Authorization | None:
        return final(odd("", command="", args=[], url="https://wiki.example/mcp", **more), {"SECRET": "s3cr3t"})

    assert of() == Authorization(type="asked")
    assert of(headers={"authorization": "Bearer key"}) is None
    assert of(auth=Authorization(type="none")) is None
    secret = Authorization(client_id="us", client_secret="${SECRET}")
    assert of(auth=secret) == Authorization(client_id="us", client_secret="s3cr3t")
    assert of(auth=secret, headers={"Authorization": "Bearer key"}) is not None
    with pytest.raises(Unusable, match="OTHER"):
        of(auth=Authorization(client_id="us", client_secret="${OTHER}"))
