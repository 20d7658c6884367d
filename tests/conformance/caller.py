"""What the suite runs as its client: hands the scenario to the process that plays them all, and waits for its end.

Light on purpose, since some forty of these run at once. Args: the socket of that process, the URL of the server.
"""

from __future__ import annotations

import json
import os
import socket
import sys

with socket.socket(socket.AF_UNIX) as stage:
    stage.connect(sys.argv[1])
    scenario = {
        "name": os.environ["MCP_CONFORMANCE_SCENARIO"],
        "version": os.environ["MCP_CONFORMANCE_PROTOCOL_VERSION"],
        "context": json.loads(os.environ.get("MCP_CONFORMANCE_CONTEXT", "{}")),
        "url": sys.argv[2],
    }
    stage.sendall(json.dumps(scenario).encode() + b"\n")
    with stage.makefile("r") as answer:
        trouble = json.loads(answer.readline())
if trouble:
    sys.exit(trouble)
