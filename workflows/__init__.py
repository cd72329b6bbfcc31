"""Deterministic orchestration: imports temporalio, the standard library and `archiver.model` and `.pids` only."""
