"""Reference A's way back, as it is often written: every step a loop over files, every hand-over through a disk.

    python -m benchmarks.reference_back

The datablock copied to scratch; ``tarfile`` extracts it; MD5 of every file; boto3's upload. Four threads where files are
independent. The datablock itself is not checked, and nothing is fsynced. The endpoint and keys come from the environment,
as boto3 takes them. A request per line of standard input (``{"block", "scratch", "bucket", "prefix"}``), an answer per line.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config

from benchmarks.reference_a import THREADS, md5_of


def bring_back(s3: Any, block: Path, scratch: Path, bucket: str, prefix: str) -> int:
    """All files of ``block`` into the bucket; how many."""
    tar, files = scratch / block.name, scratch / "files"
    shutil.copyfile(block, tar)
    with tarfile.open(tar) as archive:
        archive.extractall(files)
    paths = sorted(os.path.join(folder, name) for folder, _, names in os.walk(files) for name in names)
    with ThreadPoolExecutor(THREADS) as pool:
        sums = [*pool.map(lambda path: md5_of(Path(path)), paths)]
        list(pool.map(lambda path: s3.upload_file(path, bucket, prefix + os.path.relpath(path, files)), paths))
    return len(sums)


def main() -> None:
    s3 = boto3.client("s3", config=Config(s3={"addressing_style": "path"}))
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        done = bring_back(s3, Path(asked["block"]), Path(asked["scratch"]), asked["bucket"], asked["prefix"])
        print(json.dumps({"files": done}), flush=True)


if __name__ == "__main__":
    main()
