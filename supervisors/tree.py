"""The whole product as one literal: every actor, in the order in which it starts (and, reversed, stops)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from protocol.spec import Child, Group, Intensity, OnLimit


def product(
    *,
    watcher: Mapping[str, Any],
    writer: Mapping[str, Any],
    local: Mapping[str, Any],
    gateway: Mapping[str, Any],
    reporter: Mapping[str, Any],
) -> Group:
    """The tree; the arguments are the `args` of the actors that need some.

    Core parts escalate: without store, streamer or gateway there is no service, so after too many failures
    the process ends and whoever runs it starts it anew. Fragile leaves park and are shown red.
    """
    return Group(
        "mcp-actors",
        (
            Child(
                "watcher",
                "actors.watcher:run",
                keep="actors.watcher:keep",
                redeliver=True,
                on_limit=OnLimit.PARK,
                park_s=60.0,
                args=watcher,
            ),
            Child("reporter", "supervisors.reporter:run", on_limit=OnLimit.PARK, park_s=60.0, args=reporter),
            Child("logs", "actors.logs:run", redeliver=True, on_limit=OnLimit.PARK, park_s=60.0),
            Group(
                "store",
                (
                    Child(
                        "writer",
                        "actors.writer:run",
                        keep="actors.writer:keep",
                        mailbox=4096,
                        shutdown_s=15.0,
                        intensity=Intensity(restarts=20, period_s=10.0),
                        args=writer,
                    ),
                ),
            ),
            Group(
                "llm",
                (
                    Child(
                        "local",
                        "actors.local_model:run",
                        redeliver=True,
                        on_limit=OnLimit.PARK,
                        shutdown_s=10.0,
                        args=local,
                    ),
                    Child(
                        "streamer",
                        "actors.streamer:run",
                        mailbox=4096,
                        intensity=Intensity(restarts=20, period_s=10.0),
                    ),
                ),
            ),
            Group("mcp", dynamic=True),
            Child(
                "roster",
                "actors.roster:run",
                keep="actors.roster:keep",
                redeliver=True,
                on_limit=OnLimit.PARK,
                park_s=60.0,
            ),
            Group(
                "front",
                (
                    Group("sessions", dynamic=True),
                    Child(
                        "gateway",
                        "actors.gateway:run",
                        keep="actors.gateway:keep",
                        mailbox=1024,
                        intensity=Intensity(restarts=20, period_s=10.0),
                        args=gateway,
                    ),
                ),
            ),
        ),
    )
