"""Processes with the signals that a person's terminal gives them."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Sequence
from typing import Any


def spawn(command: Sequence[object], **more: Any) -> subprocess.Popen[str]:
    """``subprocess.Popen``, with SIGINT as usual: a suite that a script starts in the background (``make test &``) ignores it,
    and its children would too.
    """

    def usual_signals() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    return subprocess.Popen([str(word) for word in command], preexec_fn=usual_signals, **more)
