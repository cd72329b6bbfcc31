"""Every error the archiver raises on purpose: one root, three branches.

ArchiverError
|-- ContentError      the user must act: what the catalogue says and what lies there differ. Never retried.
|   |-- MissingFiles, FileDiffers, SurplusFiles, SourceChanged   landing zone against catalogue
|   |-- EmptyDataset, DuplicatePath, PathCollision, HostilePath  the catalogue's list cannot be true
|   |-- ChecksumDiffers                                          bytes against the catalogue's checksum
|   |-- CatalogueChanged                                         the catalogue's list when archiving began and at its end
|   |-- DestinationRefused, TargetDiffers, NameRefused                        where retrieved data is to go, or what lies there
|   `-- UnknownDataset, UnknownFiles                             the job names a pid, or files, that SciCat does not know
|-- SystemFault       the operator or time must act. Retried, unless ``retryable`` is false.
|   |-- SourceFault, StagingFault, LtsFault, TargetFault, CatalogueFault, OwnFault   the side it belongs to
|   |-- StagedLost                                               a staged object that is to be made again
|   |-- LtsMarkerMissing, LtsFull, NoBag, NotRecalled, TargetFull LTS and retrieval target, special cases
|   |-- JobNotWritable                                           SciCat refuses every status of a job (a CatalogueFault)
|   `-- IntegrityMismatch                                        bytes changed between two of our own steps
|-- Refused           never starts: foreign job type, foreign storage location, no dataset list
`-- Stopped           told to stop (cancel, worker shutdown): not a failure
"""

from __future__ import annotations

from archiver.text import NEXT, cut, joined, printable


class ArchiverError(Exception):
    """What went wrong, in the four lines an operator reads: error, expected, found, next.

    ``what`` is one sentence without secrets or URLs with signatures. ``dataset``, ``datablock`` and ``file`` name the
    thing where one is concerned. The whole message is bounded by ``MAX_MESSAGE`` characters.
    """

    MAX_MESSAGE = 1000
    workflow = ""
    """Id of the workflow that tells it to SciCat's users, where one does."""
    retryable = False

    def __init__(
        self,
        what: str,
        *,
        expected: str | None = None,
        found: str | None = None,
        next_step: str | None = None,
        dataset: str | None = None,
        datablock: int | None = None,
        file: str | None = None,
    ) -> None:
        self.what = what
        self.expected = expected
        self.found = found
        self.next_step = next_step
        self.dataset = dataset
        self.datablock = datablock
        self.file = file
        super().__init__(self.one_line())

    @property
    def type_name(self) -> str:
        """The stable name used in retry policies, failures and SciCat messages."""
        return type(self).__name__

    def one_line(self) -> str:
        """The message as one line: what, where, expected against found, what to do next."""
        where = [
            f"{label} {value}"
            for label, value in (("dataset", self.dataset), ("datablock", self.datablock), ("file", self.file))
            if value is not None and (f"{label} {value}" if label == "datablock" else str(value)) not in self.what
        ]
        text = self.what + (f" ({', '.join(where)})" if where else "")
        if self.expected is not None or self.found is not None:
            text += f"; expected {self.expected or 'nothing'}, found {self.found or 'nothing'}"
        return cut(printable(text + (NEXT + self.next_step if self.next_step else "")), self.MAX_MESSAGE)

    def lines(self) -> str:
        """The message as up to four lines: error, expected, found, next."""
        rows = [
            ("error", self.what),
            ("expected", self.expected),
            ("found", self.found),
            ("next", self.next_step),
        ]
        return joined(f"{label:<9}{value}" for label, value in rows if value)

    def as_data(self) -> dict[str, str | None]:
        """The message for programs."""
        return {
            "type": self.type_name,
            "message": self.one_line(),
            "error": self.what,
            "expected": self.expected,
            "found": self.found,
            "next": self.next_step,
        }


class ContentError(ArchiverError):
    """The catalogue and the landing zone disagree, or the catalogue's list cannot be true."""


class MissingFiles(ContentError):
    """Files of the catalogue are not in the landing zone."""


class FileDiffers(ContentError):
    """A file's size in the landing zone is not the catalogue's."""


class SurplusFiles(ContentError):
    """The landing zone holds files that the catalogue does not list."""


class SourceChanged(ContentError):
    """A source file changed or vanished between plan and read."""


class ChecksumDiffers(ContentError):
    """The bytes read do not have the checksum that the catalogue gives."""


class CatalogueChanged(ContentError):
    """The catalogue lists other files than when archiving began."""


class EmptyDataset(ContentError):
    """The catalogue lists no file at all."""


class DuplicatePath(ContentError):
    """Two files of one path."""


class PathCollision(ContentError):
    """One path is a file and, in another path, a folder."""


class HostilePath(ContentError):
    """A path that is absolute, climbs with '..', holds NUL, or cannot be said exactly."""


class CatalogueRecordInvalid(ContentError):
    """SciCat's record of the dataset or of its files has another shape or other values than can be true."""


class UnknownDataset(ContentError):
    """The job names a pid that SciCat does not know."""


class UnknownFiles(ContentError):
    """A retrieve job lists files that the dataset does not have."""


class DestinationRefused(ContentError):
    """Retrieved data may not go where the job wants it: outside the configured roots, or through a symbolic link."""


class TargetDiffers(ContentError):
    """Something else lies where a retrieved file is to go. It is never overwritten."""


class NameRefused(ContentError):
    """A file whose name its destination cannot hold: too long a key, or a name that the file system does not take."""


class SystemFault(ArchiverError):
    """Time or the operator must act; the side is the subclass. Retried unless ``retryable=False`` is given."""

    side = "ours"

    def __init__(self, what: str, *, retryable: bool = True, **details: object) -> None:
        super().__init__(what, **details)  # type: ignore[arg-type]
        self.retryable = retryable


class SourceFault(SystemFault):
    """The landing zone does not answer, or answers with an error."""

    side = "source"


class StagingFault(SystemFault):
    """The staging bucket does not answer, or answers with an error."""

    side = "staging"


class StagedLost(StagingFault):
    """An object in staging is gone, or is not what this run stored. The workflow has it made again.

    ``lost``: ``record``, ``listing``, ``plan``, ``datablock``, ``manifest``, ``verification`` or ``bag``; of a retrieval
    ``selection``.
    """

    def __init__(self, what: str, *, lost: str, **details: object) -> None:
        super().__init__(what, retryable=False, **details)
        self.lost = lost


class LtsFault(SystemFault):
    """The long-term storage failed."""

    side = "lts"


class LtsMarkerMissing(LtsFault):
    """The LTS has no identity marker, or another one: an unmounted mount point is not an LTS."""


class LtsFull(LtsFault):
    """Not enough space on the LTS. A wait, never a failure of the dataset."""


class NoBag(LtsFault):
    """The LTS has no complete bag of a dataset: nothing, or what an archiving that never ended left."""


class NotRecalled(LtsFault):
    """The datablock is in a class that must be restored before it can be read. The workflow asks for that, and waits."""


class TargetFault(SystemFault):
    """Where retrieved data goes, a bucket or a directory, does not answer, or answers with an error."""

    side = "target"


class TargetFull(TargetFault):
    """Not enough space where retrieved data goes. A wait, never a failure of the dataset."""


class CatalogueFault(SystemFault):
    """SciCat does not answer, answers with an error, or refuses our account."""

    side = "catalogue"


class JobNotWritable(CatalogueFault):
    """SciCat refuses every status of a job, because a dataset that the job names was deleted. Trying again never helps."""

    def __init__(self, what: str, **details: object) -> None:
        super().__init__(what, **{**details, "retryable": False})  # type: ignore[arg-type]


class IntegrityMismatch(SystemFault):
    """Bytes differ between two of our own steps: pack, staging, copy, LTS. Never the user's doing."""


class OwnFault(SystemFault):
    """Our own state is not as it must be (plan object missing, process died)."""


class Refused(ArchiverError):
    """The request is not ours, or must not be done: nothing was started or changed."""


class ForeignJob(Refused):
    """A job of another type: it is another program's, and nothing of it is ours to write."""


class UnknownJob(Refused):
    """SciCat knows no job of this id."""


class SettingsInvalid(Refused):
    """Settings are missing, unknown or contradict each other."""


class Stopped(ArchiverError):
    """Told to stop between two chunks, by a cancel or by the worker's shutdown."""
