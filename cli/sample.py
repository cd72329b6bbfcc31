"""The dataset that ``archiver demo`` makes up: a few hundred files of mixed sizes and difficult names."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass, field
from pathlib import Path

MIB = 2**20
SMALL_FILES = 300
NAMES = ("Übersicht der Messung.txt", "Ubersicht\u0308 zerlegt.txt", 'notes/it\'s "done".txt', "notes/two\nlines.txt")


@dataclass
class Sample:
    """The made-up dataset: its files below ``folder`` with their sizes; ``pid`` is what SciCat gave it."""

    folder: Path
    pid: str = ""
    files: list[tuple[str, int]] = field(default_factory=list)

    @property
    def size_bytes(self) -> int:
        """Of all files."""
        return sum(size_bytes for _, size_bytes in self.files)


def make_files(folder: Path, megabytes: int) -> Sample:
    """About so many MiB below ``folder``: one large file, ten middle, hundreds small. Some compress, some do not."""
    rng = random.Random(megabytes)  # noqa: S311  no secret
    sample = Sample(folder)
    tile = rng.randbytes(4096) + bytes(4096 * 7)
    large = megabytes * MIB * 6 // 10
    wanted: list[tuple[str, int, bool]] = [("raw/scan_0001.h5", large, True)]
    wanted += [(f"raw/scan_{k:04}.h5", large // 20, k % 2 == 0) for k in range(2, 12)]
    wanted += [(f"frames/frame {k:04}.tif", rng.randrange(200, 60_000), False) for k in range(SMALL_FILES)]
    wanted += [(name, 1234, True) for name in NAMES]
    wanted += [("empty.log", 0, True)]
    for path, count, compresses in wanted:
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as file:
            for start in range(0, count, MIB):
                piece = min(MIB, count - start)
                file.write((tile * (piece // len(tile) + 1))[:piece] if compresses else rng.randbytes(piece))
        sample.files.append((path, count))
    return sample


def sha256(path: Path) -> str:
    """Of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
