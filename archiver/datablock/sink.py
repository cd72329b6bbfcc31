"""Where the files of a datablock go when they are taken out of it: the seam of ``extract.py`` and the retrieval targets."""

from __future__ import annotations

from typing import Protocol

from archiver.datablock.manifest import ManifestFile


class FileSink(Protocol):
    """Takes files one after another, each of them ``begin``, then ``data``, then ``commit`` or ``abort``."""

    def begin(self, file: ManifestFile) -> bool:
        """The next file. False: not wanted, or already there and intact; nothing else is called for it.

        If it raises, nothing was begun, and nothing else is called.
        """
        ...

    def data(self, chunk: memoryview) -> None:
        """Bytes of the file. The chunk is the caller's again when this returns: what is kept is copied."""
        ...

    def commit(self) -> None:
        """All bytes came, and their SHA-256 is the manifest's: only now may the file be seen under its name."""
        ...

    def abort(self) -> None:
        """Wrong bytes, a stop, or an error, also of ``commit``: nothing of this file may stay. Called at most once."""
        ...
