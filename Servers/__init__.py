"""Stand-alone MCP servers and child programs, run as child processes. Import nothing of ours."""
