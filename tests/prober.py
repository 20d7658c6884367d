"""Asks a service again and again whether it is alive, from a process of its own: what it measures is not its askers.

`python -m tests.prober PORT` asks `/healthz` until its standard input ends, each time on a new connection, 50 ms
apart; then prints how often it asked and the longest answer in seconds. Another answer than 200 ends it with an error.
"""

from __future__ import annotations

import http.client
import select
import sys
import time

BETWEEN_S = 0.05


def main() -> None:
    """The command."""
    probes, slowest = 0, 0.0
    while not select.select([sys.stdin], [], [], BETWEEN_S)[0]:
        began = time.perf_counter()
        connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]), timeout=10.0)
        connection.request("GET", "/healthz")
        answer = connection.getresponse()
        if answer.status != 200:
            sys.exit(f"answered {answer.status}")
        answer.read()
        connection.close()
        probes, slowest = probes + 1, max(slowest, time.perf_counter() - began)
    print(probes, slowest)  # noqa: T201 - it is a command


if __name__ == "__main__":
    main()
