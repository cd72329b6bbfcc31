"""Plans and datablocks for tests, from files given as path and bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

from archiver.datablock.files import CatalogueFile, PlannedFile, SourceFile, path_key, read_lines
from archiver.datablock.pack import Packed, pack
from archiver.datablock.plan import Plan, make_plan
from archiver.progress import Silent
from archiver.settings import DatablockSettings

TIME = "2026-03-04T05:06:07.890Z"


def limits(**more: object) -> DatablockSettings:
    """Limits, small members by default so that tests make several."""
    return DatablockSettings.model_validate({"member_bytes": 2**16, **more})


def catalogue(files: dict[str, bytes], **more: object) -> list[CatalogueFile]:
    """As the catalogue lists them, sorted."""
    listed = [CatalogueFile(path, len(data), TIME, **more) for path, data in files.items()]  # type: ignore[arg-type]
    return sorted(listed, key=lambda file: path_key(file.path))


def source(files: dict[str, bytes]) -> list[SourceFile]:
    """As the landing zone lists them, sorted."""
    listed = [SourceFile(path, len(data), hashlib.md5(data).hexdigest()) for path, data in files.items()]
    return sorted(listed, key=lambda file: path_key(file.path))


def planned(
    listed: Iterable[CatalogueFile], there: Iterable[SourceFile], surplus: str = "refuse", **more: object
) -> tuple[Plan, dict[int, list[PlannedFile]]]:
    """The plan, and the files of each datablock."""
    stored: dict[int, list[PlannedFile]] = {}

    def sink(n: int, chunks: Iterator[bytes]) -> str:
        data = b"".join(chunks)
        stored[n] = list(read_lines([data], PlannedFile))
        return hashlib.sha256(data).hexdigest()

    plan = make_plan(
        listed, there, pid="20.500.1/x", limits=limits(**more), surplus=surplus, sink=sink, progress=Silent()
    )
    return plan, stored


def packed(
    files: dict[str, bytes], *, chunk: int = 10_000, listed: list[CatalogueFile] | None = None, **more: object
) -> tuple[bytes, Packed]:
    """The first datablock of these files, and what made it."""
    plan, blocks = planned(listed or catalogue(files), source(files), **more)
    parts = ((file, [files[file.path][i : i + chunk] for i in range(0, file.size, chunk)]) for file in blocks[1])
    making = pack(parts, plan=plan, n=1, progress=Silent())
    return b"".join(making), making
