"""The official conformance suite of MCP against the actor of an MCP server: `.ci/conformance` runs it.

The suite plays servers and authorization servers, one per scenario, and runs a command that is to be their client.
Ours (`caller.py`) only hands the scenario over to one process (`__main__.py`), in which the product's actor runs under
the product's supervisor with an entry of a servers file (`stage.py`); what a user and a model would do is `roles.py`.
"""
