"""Reference A, the many-pass way, as it is often written: every step a loop over files, every hand-over through a disk.

    python -m benchmarks.reference_a BUCKET PREFIX SCRATCH LTS

boto3's transfer to scratch; MD5 of every file; ``tarfile`` without compression; MD5 of the tar; copy to the LTS; copy back;
MD5 again; MD5 of every member again. Four threads where files are independent. No staging, no fsync, no read past the
cache. The endpoint and keys come from the environment, as boto3 takes them.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import boto3
from botocore.config import Config

THREADS = 4


def md5(file: IO[bytes]) -> str:
    return hashlib.file_digest(file, "md5").hexdigest()  # type: ignore[arg-type]


def md5_of(path: Path) -> str:
    with path.open("rb") as file:
        return md5(file)


def main(bucket: str, prefix: str, scratch: Path, lts: Path) -> None:
    s3 = boto3.client("s3", config=Config(s3={"addressing_style": "path"}))
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    paths = sorted(entry["Key"][len(prefix) :] for page in pages for entry in page.get("Contents", []))
    source, tar, back = scratch / "source", scratch / "datablock.tar", scratch / "back.tar"

    def download(path: str) -> None:
        target = source / path
        target.parent.mkdir(parents=True, exist_ok=True)
        s3.download_file(bucket, prefix + path, str(target))

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(download, paths))
        sums = dict(zip(paths, pool.map(lambda path: md5_of(source / path), paths), strict=True))
    with tarfile.open(tar, "w") as archive:
        for path in paths:
            archive.add(source / path, path)
    tar_sum = md5_of(tar)

    on_lts = lts / "datablock.tar"
    shutil.copyfile(tar, on_lts)

    shutil.copyfile(on_lts, back)
    if md5_of(back) != tar_sum:
        sys.exit("the tar on the LTS is another")
    with tarfile.open(back) as archive:
        for member in archive:
            file = archive.extractfile(member)
            assert file is not None
            if sums.pop(member.name) != md5(file):
                sys.exit(f"{member.name} on the LTS is another")
    if sums:
        sys.exit(f"{len(sums)} files are not on the LTS")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
