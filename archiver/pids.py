"""Dataset pids as names elsewhere: reversible, and never two pids for one name.

SciCat's usual pid is ``<prefix>/<suffix>`` (``20.500.11935/0e54...``), but with privilege it is any string
(SciCat then checks nothing). The usual form keeps its shape as a path of two segments, so that people find it; any other pid
becomes one segment ``pid=<percent-encoded>``. ``=`` is in no segment of the usual form, so the two never meet.
"""

from __future__ import annotations

import hashlib
import re
from urllib.parse import quote, unquote

_USUAL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}/[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")
_OTHER = "pid="
MAX_WORKFLOW_ID = 200
"""Characters; servers on SQL may cap workflow ids at 255."""


def is_pid_part(name: str) -> bool:
    """Whether a folder's name may be one of the two that a pid of the usual form has as its path (not ``lost+found``)."""
    return _PART.fullmatch(name) is not None


def pid_path(pid: str) -> str:
    """The pid as a relative path for the LTS and for staging keys. Raises ``ValueError`` if it cannot be one."""
    if _USUAL.fullmatch(pid):
        return pid
    name = _OTHER + quote(pid, safe="")
    if not pid or len(name) > 255:
        raise ValueError(f"pid {pid[:80]!r} is empty or too long to be a directory name")
    return name


def path_pid(path: str) -> str:
    """The pid of a relative path made by ``pid_path``. Raises ``ValueError`` for any other path."""
    pid = unquote(path.removeprefix(_OTHER)) if path.startswith(_OTHER) else path
    if pid_path(pid) != path:
        raise ValueError(f"{path!r} is not the directory of a dataset")
    return pid


def workflow_id(kind: str, *parts: str) -> str:
    """``kind/part/part``, shortened by digest where it would pass ``MAX_WORKFLOW_ID`` characters."""
    text = "/".join((kind, *parts))
    if len(text) <= MAX_WORKFLOW_ID:
        return text
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]
    return f"{text[: MAX_WORKFLOW_ID - 33]}~{digest}"
