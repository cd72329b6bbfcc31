"""``archiver ARGUMENTS`` within this process, up to its exit code: for many commands, without a start of Python for each."""

from __future__ import annotations

import asyncio
import contextlib
import io
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from cli import main


@dataclass(frozen=True)
class Ended:
    """What the command wrote, and its exit code."""

    code: int
    out: str
    err: str

    def in_lines(self, count: int = 4) -> bool:
        """Whether all it said is one error, as people are to read it; three lines where there is nothing to do next."""
        words = [line.split(maxsplit=1)[0] for line in self.err.splitlines()]
        return not self.out and words == ["error", "expected", "found", "next"][:count]


async def inside(config: Path, *arguments: Any) -> Ended:
    """In a thread, so that workers of this process go on."""

    def one() -> Ended:
        flags = [argument for argument in arguments if argument == "--json"]
        rest = [str(argument) for argument in arguments if argument != "--json"]
        out, err = io.StringIO(), io.StringIO()
        with (
            patch.object(sys, "argv", ["archiver", *flags, "-c", str(config), *rest]),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            code = main.run()
        return Ended(code, out.getvalue(), err.getvalue())

    return await asyncio.to_thread(one)
