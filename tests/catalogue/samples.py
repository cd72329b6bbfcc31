"""Every query that the product sends, with arguments as it gives them: by the name of the function that makes it."""

from __future__ import annotations

from archiver.catalogue import payloads, queries
from archiver.catalogue.queries import Query

SAMPLES: dict[str, Query] = {
    "jobs": queries.jobs("archive", "jobSubmitted"),
    "jobs, beyond": queries.jobs("archive", "inProgress", after="3f1c", until="ffff"),
    "some_jobs": queries.some_jobs(["3f1c2a52-8f0f-4a55-9d0c-0a8e1c5c7a11"]),
    "pids": queries.pids(payloads.STARTED),
    "pids, beyond": queries.pids(payloads.STARTED, after="a/b", until="z/z"),
    "storage_locations": queries.storage_locations(["a/b"]),
    "newest_datasets": queries.newest_datasets(20),
    "origdatablock_ids": queries.origdatablock_ids("a/b", skip=100),
    "origdatablocks": queries.origdatablocks("a/b", ["1", "2"]),
    "datablocks": queries.datablocks("a/b", skip=2),
    "datablocks_of_archive_id": queries.datablocks_of_archive_id("a/b/data/1.tar.gz"),
}
