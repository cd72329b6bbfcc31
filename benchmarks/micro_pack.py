"""Packing and verifying without network and Temporal, side by side with what is usual.

    python -m benchmarks.micro_pack [--mib 512] [--files 20000] [--rounds 3] [--dir DIR]

Packing: ours against ``tarfile`` + ``gzip.compress`` level 1 in one pass with a SHA-256 per file, both from memory to
nowhere. Verifying: our process against ``openssl dgst -sha256`` on a pipe from ``dd iflag=direct``, and on the file
after DONTNEED: the same file, past the cache. Rounds take turns; medians are printed, with the CPU of our process.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import os
import random
import resource
import statistics
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from archiver.datablock.files import PlannedFile
from archiver.datablock.pack import Packed, pack
from archiver.datablock.plan import Plan
from archiver.datablock.verifier import VerifierProcess
from archiver.progress import Silent

MIB = 2**20
GET_BYTES = 2 * MIB
TIME = "2026-03-04T05:06:07.890Z"


def random_data(size: int) -> bytes:
    return os.urandom(size)


def detector_data(size: int) -> bytes:
    """16-bit counts, mostly 0, as a photon-counting detector gives them; 4 MiB of them, repeated."""
    rng = random.Random(1)
    counts = rng.choices(range(12), [60, 20, 8, 4, 2, 2, 1, 1, 1, 0.5, 0.3, 0.2], k=2 * MIB)
    tile = b"".join(count.to_bytes(2, "little") for count in counts)
    return (tile * (size // len(tile) + 1))[:size]


class Source:
    """``count`` files of ``size`` bytes that lie in memory: pieces of ``data``, each another one as far as it reaches."""

    def __init__(self, count: int, size: int, data: bytes) -> None:
        self._data = memoryview(data)
        self._starts = [k * size % (len(data) - size + 1) for k in range(count)]
        self.files = [PlannedFile(f"raw/run_{k // 1000:04}/frame_{k:06}.bin", size, TIME, "v") for k in range(count)]
        self.size_bytes = count * size

    def open(self) -> Iterator[tuple[PlannedFile, list[memoryview]]]:
        for file, start in zip(self.files, self._starts, strict=True):
            data = self._data[start : start + file.size]
            yield file, [data[at : at + GET_BYTES] for at in range(0, file.size, GET_BYTES)]


def ours(source: Source) -> Packed:
    plan = Plan(
        "0" * 32, "20.500.1/bench", "tar.gz", 1, 4 * MIB, 1, len(source.files), source.size_bytes, source.size_bytes
    )
    return pack(source.open(), plan=plan, n=1, progress=Silent())


def run_ours(source: Source) -> None:
    for _ in ours(source):
        pass


class _Nowhere(io.RawIOBase):
    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        return len(memoryview(data))  # type: ignore[arg-type]


def run_tarfile(source: Source) -> None:
    packer = gzip.GzipFile(fileobj=io.BufferedWriter(_Nowhere()), mode="wb", compresslevel=1, mtime=0)
    with tarfile.open(fileobj=packer, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        for file, parts in source.open():
            digest = hashlib.sha256()
            for part in parts:
                digest.update(part)
            info = tarfile.TarInfo(file.path)
            info.size = file.size
            archive.addfile(info, io.BytesIO(b"".join(parts)))
    packer.close()


def timed(run: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU seconds of ``run`` and of the children that ended in it."""

    def cpu() -> float:
        mine, theirs = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
        return mine.ru_utime + mine.ru_stime + theirs.ru_utime + theirs.ru_stime

    started, used = time.perf_counter(), cpu()
    run()
    return time.perf_counter() - started, cpu() - used


def compare(title: str, size_bytes: int, files: int, rounds: int, runs: dict[str, Callable[[], object]]) -> None:
    took: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            took[name].append(timed(run))
    base = statistics.median(wall for wall, _ in next(iter(took.values())))
    for name, pairs in took.items():
        wall = statistics.median(wall for wall, _ in pairs)
        cpu = statistics.median(cpu for _, cpu in pairs)
        print(
            f"{title:<28} {name:<26} {wall / base:6.2f} x time  {size_bytes / MIB / wall:8.0f} MiB/s "
            f"{1e6 * wall / files:10.1f} us/file  {cpu:6.2f} cpu-s"
        )


def verifying(title: str, source: Source, rounds: int, folder: Path) -> None:
    packed = ours(source)
    path = folder / "block.tar.gz"
    with path.open("wb") as file:
        for chunk in packed:
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    verifier = VerifierProcess()

    def run_verifier() -> None:
        verifier.verify(path, packed.manifest, direct_io="auto", progress=Silent())
        # The child's CPU counts only once it has ended.
        verifier.stop()

    def run_dd() -> None:
        subprocess.run(
            f"dd if={path} iflag=direct bs=4M status=none | openssl dgst -sha256", shell=True, check=True, stdout=-3
        )

    def run_openssl() -> None:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        subprocess.run(["openssl", "dgst", "-sha256", str(path)], check=True, stdout=-3)

    runs = {"verifier process": run_verifier, "dd direct | openssl dgst": run_dd, "DONTNEED, openssl dgst": run_openssl}
    compare(f"verify {title}", packed.result.packed_bytes, len(source.files), rounds, runs)
    path.unlink()


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--mib", type=int, default=512)
    options.add_argument("--files", type=int, default=20_000)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--dir", type=Path, default=None, help="where the datablocks to verify are written")
    given = options.parse_args()
    random_blob, size = random_data(256 * MIB), given.mib // 4 * MIB
    cases = {
        f"4 x {given.mib // 4} MiB random": Source(4, size, random_blob),
        f"4 x {given.mib // 4} MiB detector": Source(4, size, detector_data(max(size, 256 * MIB))),
        f"{given.files} x 10 KiB random": Source(given.files, 10 * 1024, random_blob),
    }
    for title, source in cases.items():
        runs = {"ours": lambda s=source: run_ours(s), "tarfile + gzip -1": lambda s=source: run_tarfile(s)}
        compare(f"pack {title}", source.size_bytes, len(source.files), given.rounds, runs)
    with tempfile.TemporaryDirectory(dir=given.dir) as folder:
        for title, source in cases.items():
            verifying(title, source, given.rounds, Path(folder))


if __name__ == "__main__":
    main()
