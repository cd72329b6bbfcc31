"""How long-running domain code reports progress and learns that it must stop."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called by streaming code after every chunk, from any thread.

    ``advance`` may raise ``errors.Stopped``: the caller then cleans up what this attempt wrote and lets it through.
    """

    def advance(self, size_bytes: int = 0, files: int = 0) -> None:
        """Report work done since the last call: payload bytes and whole files. Raises ``errors.Stopped``."""

    def note(self, text: str) -> None:
        """Say in a few words what is being waited for or done now; also an occasion to stop."""


class Silent:
    """A ``Progress`` that reports nothing and never stops."""

    def advance(self, size_bytes: int = 0, files: int = 0) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""
