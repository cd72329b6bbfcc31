"""Who goes first where many wait: Temporal's priority by size class, and fairness between owner groups.

A backlog is ordered, nothing that runs is interrupted: one slot has to come free. Keys run from 1 (first) to 5; 1 and 2
are kept for retrievals, for which somebody waits. Needs ``matching.enableFairness`` on the server (deploy/temporal).
"""

from __future__ import annotations

from temporalio import workflow
from temporalio.common import Priority

with workflow.unsafe.imports_passed_through():
    from archiver.text import printable

RETRIEVE, RETRIEVE_BULK = 1, 2
USUAL = 3
"""Temporal's own default, and so that of every job's own steps."""
BULK = 4
SMALL_JOB_DATASETS = 10
"""A job of more datasets is bulk: whoever archives a whole experiment waits for days anyway."""
SMALL_DATASET_BYTES = 2**40
"""A larger dataset is bulk, in whatever job."""
LONGEST_FAIRNESS_KEY = 64
"""Bytes; Temporal refuses a longer one."""


def of_dataset(job_datasets: int, owner_group: str) -> Priority:
    """Of a dataset in a job of so many."""
    return _priority(USUAL if job_datasets <= SMALL_JOB_DATASETS else BULK, owner_group)


def of_datablock(dataset_key: int | None, dataset_bytes: int, owner_group: str) -> Priority:
    """Of a datablock, in a dataset of that key and size: it never goes before its dataset."""
    key = dataset_key or USUAL
    return _priority(key if dataset_bytes <= SMALL_DATASET_BYTES else max(key, BULK), owner_group)


def of_retrieval(job_datasets: int, owner_group: str) -> Priority:
    """Of a dataset that somebody waits for, and of its datablocks, in a job of so many."""
    return _priority(RETRIEVE if job_datasets <= SMALL_JOB_DATASETS else RETRIEVE_BULK, owner_group)


def _priority(key: int, owner_group: str) -> Priority:
    group = printable(owner_group).encode()[:LONGEST_FAIRNESS_KEY].decode(errors="ignore")
    return Priority(priority_key=key, fairness_key=group or None)
