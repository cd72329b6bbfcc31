"""The one table: ratios first, each beside its target."""

from __future__ import annotations

from dataclasses import dataclass

HEAD = ("what", "figure", "target", "", "ours", "reference A", "reference B")
NOT_RUN = "NOT RUN"


@dataclass(frozen=True)
class Row:
    """A line. ``figure`` and ``target`` in ``unit``; ``least``: the target is a lower bound, else an upper one."""

    what: str
    figure: float | None
    unit: str = ""
    target: float | None = None
    least: bool = True
    ours: str = ""
    a: str = ""
    b: str = ""

    def cells(self) -> tuple[str, ...]:
        """As text."""
        if self.figure is None:
            return (
                self.what,
                NOT_RUN if self.target is not None else "",
                self._target(),
                "",
                self.ours,
                self.a,
                self.b,
            )
        return (self.what, self._number(self.figure), self._target(), self._verdict(), self.ours, self.a, self.b)

    def _number(self, value: float) -> str:
        digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 20 else 2
        return f"{value:,.{digits}f}{self.unit}"

    def _target(self) -> str:
        if self.target is None:
            return ""
        return f"{'at least' if self.least else 'at most'} {self.target:g}{self.unit}"

    def _verdict(self) -> str:
        if self.target is None or self.figure is None:
            return ""
        held = self.figure >= self.target if self.least else self.figure <= self.target
        return "reached" if held else "NOT reached"


def markdown(rows: list[Row]) -> str:
    """For ``benchmarks/README.md``."""
    lines = [HEAD, ("---", "---:", "---", "---", "---", "---", "---"), *(row.cells() for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def plain(rows: list[Row]) -> str:
    """For a terminal."""
    lines = [HEAD, *(row.cells() for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEAD))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if k == 1 else cell.ljust(width)
            for k, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
