"""``archiver rebuild --from-lts``: SciCat's datablock records and counters from the bags on the LTS (docs/rebuild.md).

Each dataset is told as soon as it was looked at, and then forgotten: an LTS of any size needs no more memory than a few datasets.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import closing
from typing import Any, Protocol

from archiver.catalogue.client import SciCat
from archiver.catalogue.rebuild import Rebuilding, Rebuilt
from archiver.errors import ArchiverError, IntegrityMismatch, LtsMarkerMissing, NoBag, SettingsInvalid, SystemFault
from archiver.pids import path_pid, pid_path
from archiver.settings import Settings
from archiver.storage.lts import Lts
from archiver.storage.open import open_lts
from archiver.text import joined
from cli import exits

DATASETS_AT_ONCE = 8
"""Most of the time is SciCat's; what is written about one dataset is written one after another."""
FAULTS_IN_A_ROW = 5
"""After so many datasets that SciCat or the LTS did not answer for, it is not the datasets' fault."""
SHOWN = 10

Data = dict[str, Any]


class Options(Protocol):
    """What the command line gives: settings, and where to tell results and progress."""

    def settings(self) -> Settings: ...

    def out(self, told: str | Iterable[str], **data: Any) -> None: ...

    def say(self, text: str) -> None: ...


async def rebuild(options: Options, pid: str | None, *, from_lts: bool, apply: bool) -> int:
    """Tell each dataset's outcome, then the sums; returns the exit code.

    Raises ``LtsMarkerMissing``, ``CatalogueFault`` or ``LtsFault`` if there is no going on; run again, it goes on from there.
    """
    if not from_lts:
        raise SettingsInvalid(
            "rebuild needs to be told from what",
            expected="--from-lts",
            found="nothing",
            next_step="archiver rebuild --from-lts  tells what would be done, and with --apply does it",
        )
    settings = options.settings()
    with closing(open_lts(settings)) as lts:
        await asyncio.to_thread(lts.check_marker)
        async with SciCat(settings.scicat) as scicat:
            await scicat.whoami()
            tally = _Tally(options, apply)
            work = Rebuilding(scicat, lts, settings.archive, apply=apply)
            paths, one_by_one = _paths(lts, pid, options), asyncio.Lock()

            async def some() -> None:
                while True:
                    async with one_by_one:
                        path = await anext(paths, None)
                    if path is None:
                        return
                    await _one(work, path, tally)

            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(DATASETS_AT_ONCE):
                        group.create_task(some())
            except ExceptionGroup as failed:
                raise failed.exceptions[0] from None
    return tally.end()


async def _one(work: Rebuilding, path: str, tally: _Tally) -> None:
    """One dataset. Raises only what keeps all of them from being looked at."""
    try:
        tally.good(await work.dataset(path))
    except LtsMarkerMissing:
        raise
    except ArchiverError as error:
        tally.failed(path_pid(path), error)
        if tally.in_a_row >= FAULTS_IN_A_ROW:
            raise


class _Tally:
    """Tells each outcome, and counts them."""

    def __init__(self, options: Options, apply: bool) -> None:
        self._options = options
        self._apply = apply
        self._counts: Counter[str] = Counter(good=0, bad=0, unknown=0, rebuilt=0, records=0)
        self._codes: Counter[int] = Counter()
        self.in_a_row = 0
        """Datasets that could not be looked at, one after another."""

    def good(self, done: Rebuilt) -> None:
        self.in_a_row = 0
        self._counts.update(good=1, rebuilt=done.changes, records=len(done.missing))
        self._options.out(lines(done, apply=self._apply), **data(done, apply=self._apply))

    def failed(self, pid: str, error: ArchiverError) -> None:
        outcome = outcome_of(error)
        self.in_a_row = self.in_a_row + 1 if outcome == "unknown" else 0
        self._counts[outcome] += 1
        self._codes[exits.exit_code(error)] += 1
        told = {"type": error.type_name, "message": error.one_line()}
        self._options.out(not_done(pid, error), pid=pid, outcome=outcome, error=told)

    def end(self) -> int:
        """Tell the sums; the exit code."""
        counts = self._counts
        self._options.out(sums(counts, apply=self._apply), apply=self._apply, datasets=_all(counts), **counts)
        return code_of(self._codes, counts["good"])


def outcome_of(error: ArchiverError) -> str:
    """``bad``: looked at, and it cannot be; ``unknown``: it could not be looked at. What was not tried is never good."""
    faulty = isinstance(error, SystemFault) and not isinstance(error, IntegrityMismatch)
    return "unknown" if faulty and not isinstance(error, NoBag) else "bad"


def code_of(codes: Counter[int], good: int) -> int:
    """0 all well; 8 if a bag is damaged or contradicts SciCat; else 3 if some are well, and if none is, the first's own code."""
    if not codes:
        return 0
    if exits.MISMATCH in codes:
        return exits.MISMATCH
    return exits.PARTLY if good else next(iter(codes))


def data(done: Rebuilt, *, apply: bool) -> Data:
    """For programs."""
    return {
        "pid": done.pid,
        "outcome": "good",
        "done": apply and done.changes,
        "datablocks": done.datablocks,
        "missing": done.missing,
        "counters": {name: {"was": was, "is": right} for name, (was, right) in done.counters.items()},
        "archive_status_was": done.status,
        "notes": done.notes,
    }


def lines(done: Rebuilt, *, apply: bool) -> str:
    """For people."""
    if not done.changes:
        head = f"{done.pid}  as it is  {_number(done.datablocks, 'datablock')}"
        return joined([head, *(f"    {note}" for note in done.notes)])
    rows = [f"{done.pid}  {'REBUILT' if apply else 'TO REBUILD'}"]
    rows[0] += f"  {len(done.missing)} of {_number(done.datablocks, 'datablock')} without a record"
    rows += [f"    {archive_id}" for archive_id in done.missing[:SHOWN]]
    if len(done.missing) > SHOWN:
        rows.append(f"    and {len(done.missing) - SHOWN} more")
    rows += [f"    {name} {was} -> {right}" for name, (was, right) in done.counters.items()]
    if done.status is not None:
        rows.append(f"    archiveStatusMessage {done.status or '-'} -> datasetOnArchiveDisk")
    return joined([*rows, *(f"    {note}" for note in done.notes)])


def not_done(pid: str, error: ArchiverError) -> str:
    """For people: why not."""
    word = "NOT REBUILT" if outcome_of(error) == "bad" else "COULD NOT BE LOOKED AT"
    return joined([f"{pid}  {word}  {error.one_line()}"])


def sums(counts: Counter[str], *, apply: bool) -> str:
    """The last line."""
    parts = [
        f"{counts['good'] - counts['rebuilt']} as they are",
        f"{counts['rebuilt']} {'rebuilt' if apply else 'to rebuild'} ({_number(counts['records'], 'record')})",
        f"{counts['bad']} not rebuilt",
        f"{counts['unknown']} could not be looked at",
    ]
    said = ", ".join(part for part in parts if not part.startswith("0 "))
    text = f"{_number(_all(counts), 'dataset')}: {said or 'no bag on the LTS'}"
    if apply:
        return text
    todo = counts["rebuilt"] > 0
    return f"{text}; dry run, nothing was changed" + ("; --apply does it" if todo else "")


def _all(counts: Counter[str]) -> int:
    return counts["good"] + counts["bad"] + counts["unknown"]


def _number(count: int, thing: str) -> str:
    return f"{count} {thing}{'s' if count != 1 else ''}"


async def _paths(lts: Lts, pid: str | None, options: Options) -> AsyncIterator[str]:
    """The directory of this dataset, or those of all on the LTS, one after another."""
    if pid is not None:
        try:
            yield pid_path(pid)
        except ValueError:
            raise exits.NotFound(
                f"{pid[:200]!a} is no dataset's pid",
                expected="a pid of at most 255 bytes once it is percent-encoded",
                found="another text",
                next_step="check the pid",
            ) from None
        return
    found: Iterator[str] = lts.datasets()
    while (path := await asyncio.to_thread(next, found, None)) is not None:
        try:
            path_pid(path)
        except ValueError:
            options.say(f"passed over: {path!a} is no dataset's directory")
            continue
        yield path
