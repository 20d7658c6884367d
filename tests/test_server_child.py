from __future__ import annotations

import math

from actors.server_child import child
from protocol.spec import OnLimit
from protocol.watcher import Connection
from tests.mcp_house import odd


def test_the_child_follows_the_configuration() -> None:
    on = Connection(
        max_reconnect_attempts=5,
        initial_reconnect_delay=1.0,
        max_reconnect_delay=30.0,
        connection_timeout=10.0,
        ping_timeout=5.0,
    )
    place = child(odd("normal"), on, state_dir="/state", log_level="INFO")
    assert (place.name, place.run, place.on_limit) == ("odd", "actors.mcp_server:run", OnLimit.PARK)
    assert (place.intensity.restarts, place.backoff.first_s, place.backoff.cap_s) == (5, 1.0, 30.0)
    assert place.park_s == 300
    # Every attempt may take all its time, and the last failure must still meet the first in one period.
    assert place.intensity.period_s > 5 * (10.0 + 30.0 * 1.2)
    alone = child(odd("normal", auto_reconnect=False), on, state_dir="/state", log_level="INFO")
    assert (alone.intensity.restarts, alone.park_s) == (0, math.inf)
