"""Wire models: one request and one result per workflow and activity, and what queries answer.

They travel through Temporal, so they are tolerant (every new field optional with a default, unknown fields ignored,
nothing renamed or narrowed), carry references and counts instead of file lists (P9), and never a secret (P8).
Sizes are bytes, times are ISO 8601 UTC, datablocks are numbered from 1.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

SEARCH_ATTRIBUTES: dict[str, Literal["Keyword", "Int"]] = {
    "ScicatJobId": "Keyword",
    "DatasetPid": "Keyword",
    "OwnerGroup": "Keyword",
    "Operation": "Keyword",
    "Stage": "Keyword",
    "BytesTotal": "Int",
    "DatablockCount": "Int",
}
"""Custom search attributes and their Temporal types; made by ``archiver setup``."""

MAX_OUTCOMES = 200
"""Outcomes kept one by one in a job's result; beyond it only counts (failures are kept first)."""

LEVELS = ("cache", "host", "store", "tape", "tape-read")
"""What a verification proved, weakest first (docs/operators.md)."""

PACK_READS = 2
"""Times a source is read in one attempt to pack before a difference to the catalogue or the plan is taken for the source's."""
COPY_READS = 3
"""Times a staged datablock is read in one attempt to copy before other bytes than were packed are taken for what lies there."""

MAX_OUTCOME_MESSAGE = 400
"""Characters of one outcome's message in a job's result."""


class Wire(BaseModel):
    """Base of all wire models."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Policy(Wire):
    """The settings that steer a workflow, read once by an activity so that replay sees the same."""

    datasets_at_once: int = 10
    datablocks_at_once: int = 4
    give_up_seconds: float = 72 * 3600
    heartbeat_seconds: float = 60
    delete_sources: bool = False


class StopRequest(Wire):
    """The ``cancel`` signal: why, and who asks."""

    reason: str = "no reason given"
    who: str = "unknown"

    def as_text(self) -> str:
        """As the reason of Temporal's own cancel, which is one text: what a job hands on to its datasets."""
        return f"{self.reason} [asked by {self.who}]"

    @classmethod
    def from_text(cls, text: str | None) -> StopRequest:
        """The inverse, also of a reason that a person gave to Temporal, or of none."""
        reason, asked, who = (text or "").removesuffix("]").rpartition(" [asked by ")
        if asked:
            return cls(reason=reason, who=who)
        return cls(reason=text or "cancelled in Temporal", who="Temporal (Web UI or CLI)")


class Subscribe(Wire):
    """The ``subscribe`` signal: a job that wants to be told a dataset's outcome."""

    workflow_id: str


class ErrorInfo(Wire):
    """What a failed activity says of its error, beside the message."""

    type: str = "Unknown"
    kind: Literal["content", "system", "refused"] = "system"
    message: str = ""
    where: str = ""
    lost: str = ""
    """What of the staged objects is to be made again (``errors.StagedLost``); ``datablock``: of which datablock."""
    datablock: int = 0


class Event(Wire):
    """One thing that happened to a dataset, for its receipt (docs/receipt.md). ``type``: a PREMIS event type."""

    time: str
    type: str
    event: str
    """What happened, as a curator would say it."""
    outcome: Literal["success", "failure"] = "success"
    agent: str = ""
    object: str = ""
    """The dataset's pid, or a datablock's archiveId."""
    job: str = ""
    workflow: str = ""
    run: str = ""
    detail: dict[str, int | float | str] = {}


class Contents(Wire):
    """Which files, by number, bytes and one digest over paths and sizes; in no order (``datablock/contents.py``)."""

    files: int = 0
    size_bytes: int = 0
    digest: str = ""
    """64 hexadecimal digits; empty: of no file, or not known."""

    def plus(self, other: Contents) -> Contents:
        """Of both together."""
        total = (int(self.digest or "0", 16) + int(other.digest or "0", 16)) % 2**256
        return Contents(
            files=self.files + other.files, size_bytes=self.size_bytes + other.size_bytes, digest=f"{total:064x}"
        )

    def same(self, other: Contents) -> bool:
        """Whether both are of the same files; never where a digest is not known."""
        ours, theirs = ((one.files, one.size_bytes, one.digest) for one in (self, other))
        return bool(self.digest) and ours == theirs

    def in_words(self) -> str:
        """For messages."""
        return f"{self.files} files of {self.size_bytes} B, digest {self.digest[:16] or 'none'}"


Outcome = Literal["archived", "already_archived", "retrieved", "failed", "cancelled"]
GOOD: tuple[Outcome, ...] = ("archived", "already_archived", "retrieved")


class DatasetOutcome(Wire):
    """How a dataset ended."""

    pid: str
    outcome: Outcome
    message: str = ""
    error: ErrorInfo | None = None
    datablocks: int = 0
    files: int = 0
    size_bytes: int = 0
    packed_bytes: int = 0
    level: str = ""


class Counts(Wire):
    """Datasets of a job by outcome."""

    archived: int = 0
    already_archived: int = 0
    content_errors: int = 0
    system_errors: int = 0
    cancelled: int = 0
    retrieved: int = 0

    def plus(self, outcome: DatasetOutcome) -> Counts:
        """These counts and one more outcome."""
        if outcome.outcome == "failed":
            field = "system_errors" if outcome.error is None or outcome.error.kind == "system" else "content_errors"
        else:
            field = outcome.outcome
        return self.model_copy(update={field: getattr(self, field) + 1})

    @property
    def total(self) -> int:
        """All of them."""
        return self.good + self.content_errors + self.system_errors + self.cancelled

    @property
    def good(self) -> int:
        """Datasets that ended as the job wanted."""
        return self.archived + self.already_archived + self.retrieved


class JobState(Wire):
    """What an ``ArchiveJob`` carries from one run to the next (continue-as-new)."""

    offset: int = 0
    total: int = 0
    counts: Counts = Counts()
    outcomes: list[DatasetOutcome] = []
    size_bytes: int = 0
    policy: Policy = Policy()
    owner_group: str = ""


class ArchiveJobRequest(Wire):
    """Input of ``ArchiveJob``. Without ``pids`` the list is taken from the SciCat job."""

    job_id: str
    pids: list[str] | None = None
    state: JobState | None = None


class ArchiveJobResult(Wire):
    """Result of ``ArchiveJob``: what was written to SciCat."""

    job_id: str
    status_code: str
    message: str
    counts: Counts


class BeginJobRequest(Wire):
    """Read the job, check that it is ours, set it in progress; ``limit``: pids of the first page that are wanted too."""

    job_id: str
    pids: list[str] | None = None
    workflow_id: str = ""
    limit: int = 0


class PageRequest(Wire):
    """Which pids of the job's list are wanted."""

    job_id: str
    pids: list[str] | None = None
    offset: int = 0
    limit: int = 200


class PageResult(Wire):
    """Pids in the job's order, each once."""

    pids: list[str]


class BeginJobResult(Wire):
    """The job as the workflow needs it, with its first page."""

    total: int
    policy: Policy
    pids: list[str] = []
    owner_group: str = ""
    note: str = ""
    """Why SciCat could not be told that the job is in progress; empty: it was told."""


class FinishJobRequest(Wire):
    """The end of a job, for SciCat. ``problem`` is set if the job as a whole could not be done."""

    job_id: str
    total: int
    counts: Counts
    outcomes: list[DatasetOutcome]
    problem: ErrorInfo | None = None
    stopped: StopRequest | None = None


class FinishJobResult(Wire):
    """What stands in SciCat now."""

    status_code: str
    message: str


class DatasetState(Wire):
    """What an ``ArchiveDataset`` carries from one run to the next (continue-as-new)."""

    run: str
    begun: BeginDatasetResult
    listing: ListingResult
    plan: PlanResult
    verified: Contents = Contents()
    """What the datablocks hold that are verified so far; ``level``: the weakest that was proved of them."""
    level: str = ""
    mended: int = 0
    reusable: list[int] = []
    next_datablock: int = 1
    packed_bytes: int = 0
    subscribers: list[str] = []
    events: list[Event] = []
    """Those of the dataset as a whole; those of a datablock lie with its record in staging."""


class ArchiveDatasetRequest(Wire):
    """Input of ``ArchiveDataset``."""

    pid: str
    job_id: str = ""
    policy: Policy = Policy()
    state: DatasetState | None = None


class BeginDatasetRequest(Wire):
    """Read the dataset; if it can be archived, mark it started."""

    pid: str
    job_id: str
    workflow_id: str = ""
    run: str = ""


class BeginDatasetResult(Wire):
    """``go``: marked as started. ``already``: archived before, nothing changed."""

    state: Literal["go", "already"]
    message: str = ""
    owner_group: str = ""
    source: dict[str, str] = {}
    """Fields for the landing zone's URL template."""
    record: str = ""
    """SHA-256 of the catalogue's record as it was staged."""
    datablocks: int = 0
    files: int = 0
    size_bytes: int = 0
    packed_bytes: int = 0
    agent: str = ""
    """Who did it: our name and version, and the host. So in every result that makes an event (``Event.agent``)."""


class PidRequest(Wire):
    """An activity about a dataset. ``run``: the name of the run that asks, under which it stores (``storage/staging.py``)."""

    pid: str
    job_id: str = ""
    run: str = ""


class ListingResult(Contents):
    """The origdatablocks' files, stored as sorted lists in staging. ``listing``: SHA-256 of the list of these lists."""

    listing: str = ""
    origdatablocks: int


class PlanRequest(Wire):
    """Compare the catalogue with the landing zone and cut datablocks."""

    pid: str
    run: str = ""
    listing: str = ""
    source: dict[str, str]
    files: int = 0


class PlanResult(Wire):
    """The stored plan, by reference. ``index``: SHA-256 of the staged plan, which holds the digest of each datablock's list."""

    plan_id: str
    index: str = ""
    format: str = "tar.gz"
    datablocks: int
    files: int
    size_bytes: int
    largest_bytes: int
    agent: str = ""


class SurveyRequest(Wire):
    """What does the LTS hold of this dataset?"""

    pid: str
    plan_id: str
    format: str = "tar.gz"
    datablocks: int


class SurveyResult(Wire):
    """``reusable``: verified datablocks of this very plan. ``complete``: the bag is complete for this plan."""

    reusable: list[int] = []
    complete: bool = False
    superseded: int = 0
    removed: int = 0
    agent: str = ""


class ArchiveDatablockRequest(Wire):
    """Input of ``ArchiveDatablock``."""

    pid: str
    job_id: str
    run: str = ""
    plan_id: str
    plan_index: str = ""
    format: str = "tar.gz"
    n: int
    of: int
    largest_bytes: int
    reuse: bool = False
    """A verified datablock of this plan lies on the LTS: read it again instead of packing and copying."""
    source: dict[str, str] = {}
    owner_group: str = ""
    policy: Policy = Policy()


class DatablockRef(Wire):
    """Which datablock an activity is to work on."""

    pid: str
    run: str = ""
    plan_id: str
    n: int
    format: str = "tar.gz"


class PackRequest(DatablockRef):
    """Pack a datablock into staging. ``fresh``: what is staged already did not verify, pack again."""

    plan_index: str = ""
    source: dict[str, str] = {}
    fresh: bool = False


class PackResult(Wire):
    """A staged datablock."""

    size_bytes: int
    packed_bytes: int
    files: int
    sha256: str
    manifest_sha256: str
    agent: str = ""


class SpaceRequest(DatablockRef):
    """Wait until the LTS has room for this datablock, and promise it."""

    need_bytes: int


class SpaceResult(Wire):
    """How long it took."""

    waited_seconds: float


class CopyRequest(DatablockRef):
    """Copy a staged datablock to the LTS."""

    packed_bytes: int
    sha256: str


class CopyResult(Wire):
    """The datablock lies on the LTS, not yet verified."""

    archive_id: str
    agent: str = ""


class VerifyRequest(DatablockRef):
    """Read a datablock back from the LTS and compare it with its manifest.

    Without ``manifest_sha256`` the datablock was there before this run, and its manifest lies beside it on the LTS.
    """

    packed_bytes: int = 0
    manifest_sha256: str = ""
    job_id: str = ""
    events: list[Event] = []
    """What happened to this datablock in this run until now, to be kept with its record."""


class VerifyResult(Contents):
    """A verified datablock and what it holds; its manifest now lies beside it and its record in staging."""

    level: str
    how_read: str
    packed_bytes: int
    sha256: str
    event: Event | None = None


class ArchiveDatablockResult(Contents):
    """Result of ``ArchiveDatablock``."""

    n: int
    packed_bytes: int
    level: str
    reused: bool = False
    events: list[Event] = []


class DatasetRef(Wire):
    """Which dataset and plan an activity is to work on."""

    pid: str
    job_id: str = ""
    run: str = ""
    plan_id: str = ""
    plan_index: str = ""
    format: str = "tar.gz"
    datablocks: int = 0
    source: dict[str, str] = {}
    record: str = ""
    """As ``BeginDatasetResult.record``; ``bag``: as ``BagResult.index``."""
    bag: str = ""
    listed: Contents = Contents()
    """The catalogue's files when the run read them."""
    verified: Contents = Contents()
    """What all datablocks hold that the run verified; ``level``: the weakest that was proved of one."""
    level: str = ""
    restage: bool = False
    """Manifests in staging were lost: they are to be stored again, as they lie on the LTS."""
    events: list[Event] = []
    """What happened to the dataset, for its receipt, where the activity writes that."""


class CompareRequest(Wire):
    """See that the catalogue lists exactly these files now. ``listed``: what it listed when it was read, where that is known."""

    pid: str
    verified: Contents
    listed: Contents = Contents()
    datablocks: int = 0
    """With as many records of datablocks, of ``packed_bytes`` together; 0: they are not looked at, none need be there yet."""
    packed_bytes: int = 0


class BagResult(Wire):
    """The bag on the LTS. ``index``: SHA-256 of the staged list of its datablocks."""

    index: str = ""

    files: int
    level: str
    agent: str = ""


class RegisterResult(Wire):
    """The registered datablocks, summed."""

    datablocks: int
    files: int
    size_bytes: int
    packed_bytes: int
    created: int
    agent: str = ""


class FinishDatasetRequest(Wire):
    """Tell SciCat that the dataset is archived."""

    pid: str
    job_id: str
    datablocks: int
    files: int
    size_bytes: int
    packed_bytes: int
    level: str


class FailDatasetRequest(Wire):
    """Tell SciCat that the dataset was not archived, and why."""

    pid: str
    job_id: str
    error: ErrorInfo | None = None
    stopped: StopRequest | None = None


class Done(Wire):
    """Result of an activity that has nothing to say but what it did."""

    what: str = ""
    agent: str = ""


class DeleteResult(Wire):
    """Source files removed after archiving."""

    files: int
    kept: int = 0
    agent: str = ""


class Heartbeat(Wire):
    """Details of a heartbeat: what a running activity has done so far."""

    done_bytes: int = 0
    total_bytes: int = 0
    files: int = 0
    note: str = ""


class DatablockProgress(Wire):
    """Answer of ``ArchiveDatablock``'s ``progress`` query."""

    pid: str
    n: int
    of: int
    stage: str
    size_bytes: int = 0
    packed_bytes: int = 0
    files: int = 0
    tries: int = 1


class DatasetProgress(Wire):
    """Answer of ``ArchiveDataset``'s ``progress`` query."""

    pid: str
    job_id: str
    stage: str
    datablocks: int = 0
    datablocks_done: int = 0
    running: list[int] = []
    files: int = 0
    size_bytes: int = 0
    packed_bytes: int = 0
    message: str = ""


class JobProgress(Wire):
    """Answer of ``ArchiveJob``'s ``progress`` query."""

    job_id: str
    stage: str
    total: int = 0
    counts: Counts = Counts()
    running: list[str] = []
    waiting_for_others: list[str] = []
    outcomes: list[DatasetOutcome] = []
    message: str = ""


MAX_FOUND = 100
"""Datasets that one step of a sweep finds: the others are the next sweep's, so that histories stay small (P9)."""
MAX_SWEPT = 50
"""Lines about single jobs or datasets in the result of a sweep; beyond it only counts."""


class SweepRequest(Wire):
    """Input of ``Sweep`` and ``SweepLeftovers``, and of their steps. ``dry_run``: say what would be done, change nothing."""

    dry_run: bool = False
    looks: int = 1
    """How often one run of ``Sweep`` looks at SciCat's jobs."""
    every_seconds: float = 60
    """Between two looks."""


class SweepJobsResult(Wire):
    """Jobs that SciCat has as submitted or in progress, and what was done about them."""

    submitted: int = 0
    in_progress: int = 0
    running: int = 0
    """Of both, those whose workflow runs: nothing is to be done."""
    started: int = 0
    delayed: int = 0
    """Of those started, the ones that wait for their execution time."""
    restarted: int = 0
    reported: int = 0
    corrected: int = 0
    """Their workflow ended and told it, but a late ``inProgress`` was written over that: told again."""
    waiting: int = 0
    """Lost, but not for long enough yet."""
    foreign: int = 0
    """Another archive's: left alone."""
    untold: int = 0
    """SciCat refuses their status, because a dataset of theirs was deleted: nothing is left to be done."""
    failed: int = 0
    """SciCat did not answer for it, as it did for others: the next sweep tries again."""
    more: bool = False
    """Time was up: the next step goes on."""
    lines: list[str] = []
    """What was done about the first ``MAX_SWEPT``."""

    def plus(self, other: SweepJobsResult) -> SweepJobsResult:
        """The sum of what two steps of one sweep did; what they found is the later one's."""
        done = ("started", "delayed", "restarted", "reported", "corrected")
        sums = {name: getattr(self, name) + getattr(other, name) for name in done}
        return other.model_copy(update={**sums, "lines": [*self.lines, *other.lines][:MAX_SWEPT]})


class FoundLeftovers(Wire):
    """Datasets of which something lies about, the oldest first, at most as many as one sweep takes."""

    pids: list[str] = []
    what: list[str] = []
    """Of each: what, and since when."""
    more: int = 0
    """Found, but left for the next sweep."""
    young: int = 0
    running: int = 0


class SweepDatasetRequest(Wire):
    """Input of ``SweepDataset``."""

    pid: str


class LookResult(Wire):
    """Whether a dataset is idle, and what SciCat says of it."""

    idle: bool
    why: str = ""
    archived: bool = False
    started: bool = False
    """SciCat has it as started, by us, and not for a short time only."""
    job_id: str = ""
    unarchived: bool = False
    """SciCat says, in words of ours, that it is not archived: the bag on the LTS may say otherwise."""
    told: FailDatasetRequest | None = None
    """What its last workflow told SciCat, if that was a failure or a stop."""


class ComparedResult(Wire):
    """Jobs and retrievals that ended in the last days, and of how many SciCat's word was put right."""

    compared: int = 0
    corrected: int = 0
    lines: list[str] = []


class BagSummary(Wire):
    """A complete bag on the LTS. ``records``: a digest over archiveId, packed bytes and SHA-256 of its datablocks."""

    complete: bool = False
    job_id: str = ""
    datablocks: int = 0
    files: int = 0
    size_bytes: int = 0
    packed_bytes: int = 0
    level: str = ""
    records: str = ""
    contents: Contents = Contents()


class RestoreRequest(FinishDatasetRequest):
    """Report a dataset as archived again; ``records`` and ``contents`` as of ``BagSummary``."""

    records: str
    contents: Contents


class RestoreResult(Wire):
    """Whether that was done, and why not."""

    restored: bool = False
    what: str = ""


class SweepLeftoversResult(Wire):
    """What was found and done; ``problems``: places that could not be looked at, or datasets that could not be cleared."""

    found: int = 0
    cleared: int = 0
    corrected: int = 0
    """Jobs and retrievals of which SciCat's word was put right."""
    running: int = 0
    young: int = 0
    more: int = 0
    problems: list[str] = []
    lines: list[str] = []


DatasetState.model_rebuild()
