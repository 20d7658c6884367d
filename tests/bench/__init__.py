"""Benchmarks of the whole product, a command per table: `uv run --group bench python -m tests.bench TABLE`."""
