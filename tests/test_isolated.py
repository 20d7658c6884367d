"""Names of the processes that servers with `isolate: true` live in; tests/test_processes.py shows one."""

from __future__ import annotations

from supervisors.isolated import role_of


def test_roles_are_short_and_differ() -> None:
    names = ["a/b", "a_b", "x" * 300, "x" * 301, "ä"]
    roles = [role_of(name) for name in names]
    assert len(set(roles)) == len(names)
    assert all(len(role) < 40 and role.replace("-", "_").isascii() and "/" not in role for role in roles)
