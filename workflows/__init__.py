"""Deterministic orchestration. Imports temporalio.workflow, the standard library, archiver.model and archiver.pids only."""
