"""Names of files: always UTF-8 bytes, whatever the process's locale says.

Catalogue, S3 and tar have names in UTF-8. Python encodes a ``str`` for the system by the process's locale: under a Latin-1
one ``Müller`` would be another file. So ``os.fsencode`` and ``os.fsdecode`` are not used anywhere else (ruff: TID251).
"""

from __future__ import annotations

import os
import sys

from archiver.errors import SettingsInvalid


def path_bytes(path: str) -> bytes:
    """A path as the file system has it. Bytes that were no UTF-8 (``path_text``) come out as they were."""
    return path.encode("utf-8", "surrogateescape")


def path_text(path: bytes) -> str:
    """The inverse of ``path_bytes``: bytes that are no UTF-8 become lone surrogates, which ``check_path`` refuses."""
    return path.decode("utf-8", "surrogateescape")


def entry_bytes(entry: os.DirEntry[str]) -> bytes:
    """The name of an entry of an open directory, which Python has decoded by the process's locale."""
    return os.fsencode(entry.name)  # noqa: TID251  undoes exactly what os.scandir did


def refuse_other_encodings() -> None:
    """Raises ``SettingsInvalid`` if this process would encode names otherwise: directories in settings go that way."""
    found = sys.getfilesystemencoding()
    if found.lower().replace("-", "") != "utf8":
        raise SettingsInvalid(
            "this process would read and write names of files in another encoding than UTF-8",
            expected="a locale with UTF-8, such as C.UTF-8",
            found=f"{found}, from LC_ALL, LC_CTYPE or LANG",
            next_step="start it with LC_ALL=C.UTF-8, or with PYTHONUTF8=1",
        )
