"""The process that reads the LTS for requesters, by itself: the very activity ``retrieve-datablock``, without Temporal around it.

    python -m benchmarks.reading CONFIG

A request per line of standard input: ``{"retrieve": <RetrieveDatablockRequest>}``, or ``{"look_through": <datablock>}``, which
reads, decodes and checks all of it as a whole retrieval does and keeps nothing. The answer is a line too: what was done, and how
many bytes the process took from files meanwhile, by whatever call, manifest included (``rchar`` of proc(5); with O_DIRECT too).
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
from temporalio.testing import ActivityEnvironment

from activities.queues import Service
from archiver.datablock.extract import extract
from archiver.datablock.manifest import ManifestFile
from archiver.direct_io import PastCacheReader
from archiver.retrieval import wire as w
from archiver.settings import Settings, load
from worker import keep_memory_together

QUEUE = "lts-read"


class Nothing:
    """A sink that takes every file and keeps none."""

    def begin(self, file: ManifestFile) -> bool:
        return True

    def data(self, chunk: memoryview) -> None:
        pass

    def commit(self) -> None:
        pass

    def abort(self) -> None:
        pass


def look_through(path: Path) -> dict[str, Any]:
    """A whole datablock, to nowhere."""
    manifest = (path.parent / f"{path.name.partition('.')[0]}.manifest.jsonl.gz").read_bytes()
    reader = PastCacheReader(path)
    done = extract(lambda: reader, manifest, Nothing(), progress=lambda size: None)
    return {**asdict(done), "how": reader.how}


async def serve(settings: Settings) -> None:
    """Until standard input ends."""
    async with Service(settings, [QUEUE]) as service:
        (queue,) = service.activity_queues
        retrieve: Callable[..., w.RetrieveDatablockResult] = next(
            one for one in queue.activities if one.__name__ == "retrieve_datablock"
        )
        say(ready=True)
        for line in sys.stdin:
            asked = json.loads(line)
            before = psutil.Process().io_counters().read_chars
            if "look_through" in asked:
                done = look_through(Path(asked["look_through"]))
            else:
                request = w.RetrieveDatablockRequest.model_validate(asked["retrieve"])
                done = ActivityEnvironment().run(retrieve, request).model_dump()
            say(**done, read_chars=psutil.Process().io_counters().read_chars - before)


def say(**message: Any) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    keep_memory_together()
    asyncio.run(serve(load(Path(sys.argv[1]))))
