"""Wire models of retrieval, under the rules of ``archiver.model``: references and counts, no list of files, no link (P8, P9)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from archiver import model as m

Kind = Literal["files", "datablocks", "directory"]
"""Files under their own names in the retrieval bucket, datablocks as they are there, or files in a directory."""


class Destination(m.Wire):
    """Where a job wants its data. ``root`` and ``path`` are a directory's: a configured root, and the path below it."""

    kind: Kind = "files"
    root: str = ""
    path: str = ""


class Wanted(m.Wire):
    """What a job wants of one dataset. ``selection`` names the destination and the files, the same for every job that asks
    for the same; ``files`` is their number, 0: all of the dataset."""

    pid: str
    selection: str
    files: int = 0


class RetrieveState(m.Wire):
    """What a ``RetrieveJob`` carries from one run to the next (continue-as-new)."""

    job: m.JobState
    destination: Destination


class RetrieveJobRequest(m.Wire):
    """Input of ``RetrieveJob``. Without ``pids`` the list is taken from the SciCat job."""

    job_id: str
    pids: list[str] | None = None
    state: RetrieveState | None = None


class RetrievePage(m.Wire):
    """A page of what a job wants, in its order."""

    wanted: list[Wanted]


class BeginRetrieveJobResult(RetrievePage):
    """The job as the workflow needs it, with its first page."""

    total: int
    policy: m.Policy
    destination: Destination
    owner_group: str = ""
    note: str = ""
    """As of ``BeginJobResult``."""


class FinishRetrieveJobRequest(m.FinishJobRequest):
    """The end of a retrieve job, for SciCat."""

    pids: list[str] | None = None
    destination: Destination = Destination()


class Selection(m.Wire):
    """What an activity is to work on: the wanted part of a dataset, and where it goes."""

    pid: str
    selection: str
    job_id: str
    destination: Destination = Destination()
    records: str = ""
    """SHA-256 of the staged list of the catalogue's datablocks: JSON, archiveId to packed size."""
    wanted: str = ""
    """SHA-256 of the staged list of wanted names: JSON, gzip; empty: all of the dataset."""


class BeginRetrieveResult(m.Wire):
    """The dataset is marked, its records and the wanted names are stored in staging."""

    owner_group: str = ""
    datablocks: int
    files: int = 0
    """Wanted by name; 0: all."""
    records: str = ""
    wanted: str = ""
    """As in ``Selection``."""


class PlanRetrieveResult(m.Wire):
    """Catalogue and LTS agree; these datablocks hold what is wanted."""

    datablocks: list[int]
    files: int
    size_bytes: int
    packed_bytes: int
    largest_bytes: int
    """Plain bytes of the largest of these datablocks."""
    recall: list[int] = Field(default_factory=list)
    """Those of them that the LTS must restore before they can be read."""
    refused: int = 0
    """Files that cannot lie at the destination, whatever is tried; the first of them in words."""
    refused_first: str = ""


class RetrieveDatasetState(m.Wire):
    """What a ``RetrieveDataset`` carries from one run to the next (continue-as-new)."""

    begun: BeginRetrieveResult
    plan: PlanRetrieveResult
    done: int = 0
    """Of the plan's datablocks, from the first on."""
    files: int = 0
    subscribers: list[str] = Field(default_factory=list)


class RetrieveDatasetRequest(Selection):
    """Input of ``RetrieveDataset``."""

    policy: m.Policy = m.Policy()
    state: RetrieveDatasetState | None = None


class RetrieveDatablockRequest(Selection):
    """Input of ``RetrieveDatablock``, and of its step."""

    n: int
    of: int
    largest_bytes: int
    policy: m.Policy = m.Policy()
    owner_group: str = ""
    recall: bool = False
    """It must be restored before it can be read."""


class RetrieveDatablockResult(m.Wire):
    """What of a datablock lies at the destination now, whichever try brought it there."""

    n: int
    files: int
    size_bytes: int


class ExpireResult(m.Wire):
    """What the end of retrieved data removed: datasets, their objects and bytes, open uploads of dead processes.

    ``kept``: datasets that are still wanted; ``unreadable``: those whose mark cannot be read, which are left alone.
    """

    datasets: int = 0
    objects: int = 0
    size_bytes: int = 0
    kept: int = 0
    unreadable: int = 0
    uploads: int = 0


class FinishRetrieveRequest(Selection):
    """Tell SciCat that the dataset was retrieved, from these datablocks."""

    datablocks: list[int]
    files: int
    size_bytes: int


class FailRetrieveRequest(Selection):
    """Tell SciCat that the dataset was not retrieved, and why."""

    error: m.ErrorInfo | None = None
    stopped: m.StopRequest | None = None


class HeldResult(m.Wire):
    """The datablocks of a dataset's bag, in order; ``packed_bytes``: of the largest; ``recall``: those that the LTS must
    restore before they can be read."""

    datablocks: list[int]
    packed_bytes: int = 0
    recall: list[int] = Field(default_factory=list)
    bad: str = ""
    """What of the bag's own small files does not match, in words; empty: all of them do."""


class RecallRequest(m.Wire):
    """Datablocks of a dataset that are to be made readable."""

    pid: str
    datablocks: list[int]


class RecallResult(m.Wire):
    """Those that cannot be read yet; the LTS has been asked for them."""

    pending: list[int]


class CheckRequest(m.Wire):
    """Read this datablock again and compare."""

    pid: str
    n: int


class CheckResult(m.Contents):
    """Of one datablock. ``bad`` says what does not match, in words; empty: all of it does."""

    packed_bytes: int = 0
    level: str = ""
    bad: str = ""


class CheckDatasetResult(m.Contents):
    """``good``: every datablock is what its manifest and its bag say, and together they hold the files that the catalogue
    lists. ``unknown``: something could not be read, nothing was found to be wrong. ``messages``: of what is bad or unknown, the
    first ``MAX_CHECKED``."""

    pid: str
    outcome: Literal["good", "bad", "unknown"]
    datablocks: int = 0
    packed_bytes: int = 0
    catalogue: Literal["not compared", "same", "differs"] = "not compared"
    """Whether SciCat's origdatablocks list the files of all datablocks, and no others."""
    level: str = ""
    bad: list[int] = Field(default_factory=list)
    unknown: list[int] = Field(default_factory=list)
    messages: list[str] = Field(default_factory=list)
    nothing: bool = False
    """The LTS has no bag of it at all."""


class CheckDatasetRequest(m.Wire):
    """Input of ``VerifyDataset``. ``done`` and ``after``: what earlier runs of it checked, up to that datablock."""

    pid: str
    policy: m.Policy = m.Policy()
    done: CheckDatasetResult | None = None
    after: int = 0


MAX_CHECKED = 20
"""Messages in the result of a verification."""
