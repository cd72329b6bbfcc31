"""SciCat's records as we read them: tolerant of fields that we do not know, strict on those that we use."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from archiver.catalogue.modes import file_mode
from archiver.datablock.files import CatalogueFile
from archiver.errors import CatalogueRecordInvalid

ARCHIVED = "datasetOnArchiveDisk"
"""archiveStatusMessage of an archived dataset."""
MAX_SAFE_INTEGER = 2**53
"""Above it SciCat loses precision silently."""


def _unicode(text: str) -> str:
    text.encode()
    return text


Text = Annotated[str, AfterValidator(_unicode)]
"""A text that can be said in UTF-8: JSON can write halves of characters, which no message of ours could carry."""


class Record(BaseModel):
    """Base: unknown fields ignored, camelCase names by alias, null the same as absent."""

    model_config = ConfigDict(extra="ignore", populate_by_name=True, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, values: Any) -> Any:
        return (
            {key: value for key, value in values.items() if value is not None} if isinstance(values, dict) else values
        )


class JobDataset(Record):
    """An entry of a job's dataset list; ``files`` empty: the whole dataset."""

    pid: Text
    files: list[Text] = []
    landing_zone: Any = Field(None, alias="landingZone")


class Job(Record):
    """A job, from its v4 or v3 shape."""

    id: Text
    type: Text
    status_code: Text = Field("", alias="statusCode")
    status_message: Text = Field("", alias="statusMessage")
    datasets: list[JobDataset] = Field([], alias="datasetList")
    has_list: bool = False
    params: dict[str, Any] = Field({}, alias="jobParams")
    owner_group: Text | None = Field(None, alias="ownerGroup")
    execution_time: Any = Field(None, alias="executionTime")
    """When it is to be started, as it was written."""
    result: dict[str, Any] = Field({}, alias="jobResultObject")

    @classmethod
    def read(cls, document: dict[str, Any], *, lists: bool = True) -> Job:
        """Without ``lists`` the dataset list is left out. Raises ``CatalogueRecordInvalid`` if it is no job."""
        params = document.get("jobParams")
        params = params if isinstance(params, dict) else {}
        listed = params.get("datasetList", document.get("datasetList"))
        try:
            return cls.model_validate(
                {
                    "id": document.get("id") or document.get("_id") or "",
                    "type": document.get("type") or "",
                    "statusCode": document.get("statusCode") or document.get("jobStatusMessage") or "",
                    "statusMessage": document.get("statusMessage") or "",
                    "datasetList": (listed or []) if lists else [],
                    "has_list": listed is not None,
                    "jobParams": params,
                    "ownerGroup": document.get("ownerGroup"),
                    "executionTime": params.get("executionTime") or document.get("executionTime"),
                    "jobResultObject": document.get("jobResultObject") or {},
                }
            )
        except ValidationError as error:
            raise _invalid(f"job {document.get('id')}", error) from None


class JobHead(Record):
    """What a list of jobs tells of each."""

    id: Text
    type: Text = ""
    status_code: Text = Field("", alias="statusCode")
    created_at: Text = Field("", alias="createdAt")
    updated_at: Text = Field("", alias="updatedAt")

    @classmethod
    def read(cls, document: dict[str, Any]) -> JobHead:
        """Raises ``CatalogueRecordInvalid`` if it is no job."""
        texts = {name: value for name, value in document.items() if isinstance(value, str)}
        texts.setdefault("id", texts.get("_id", ""))
        try:
            return cls.model_validate(texts)
        except ValidationError as error:
            raise _invalid(f"job {document.get('id')}", error) from None


class Lifecycle(Record):
    """The fields of datasetlifecycle that we use."""

    archivable: bool = True
    retrievable: bool = False
    archive_status_message: Text = Field("", alias="archiveStatusMessage")
    archive_return_message: Any = Field(None, alias="archiveReturnMessage")
    storage_location: Text | None = Field(None, alias="storageLocation")
    retrieve_status_message: Text = Field("", alias="retrieveStatusMessage")
    retrieve_return_message: Any = Field(None, alias="retrieveReturnMessage")

    @property
    def is_archived(self) -> bool:
        """Whether it says that the dataset is archived and can be retrieved."""
        return self.retrievable and self.archive_status_message == ARCHIVED

    @property
    def archive_job(self) -> str:
        """The job that its archive message names; others than we write no such message."""
        return _job_named(self.archive_return_message)

    @property
    def retrieved_by_us(self) -> bool:
        """Whether its retrieve message is one of ours."""
        return bool(_job_named(self.retrieve_return_message))


class Dataset(Record):
    """A dataset; ``raw`` is the whole document."""

    pid: Text
    owner_group: Text | None = Field(None, alias="ownerGroup")
    access_groups: list[Text] = Field(default_factory=list, alias="accessGroups")
    instrument_group: Text | None = Field(None, alias="instrumentGroup")
    source_folder: Text | None = Field(None, alias="sourceFolder")
    number_of_files: int | None = Field(None, alias="numberOfFiles")
    size: int | None = None
    packed_size: int | None = Field(None, alias="packedSize")
    number_of_files_archived: int | None = Field(None, alias="numberOfFilesArchived")
    lifecycle: Lifecycle = Field(default_factory=Lifecycle, alias="datasetlifecycle")
    raw: dict[str, Any] = {}

    @property
    def proposal_id(self) -> str:
        """Its first proposal: v4 has a list, ``proposalIds``, v3 one value, ``proposalId``."""
        listed = self.raw.get("proposalIds") or [self.raw.get("proposalId")]
        first = listed[0] if isinstance(listed, list) else None
        return first if isinstance(first, str) else ""

    @property
    def landing_fields(self) -> dict[str, str]:
        """What the landing zone's URL template is filled with."""
        fields = {
            "pid": self.pid,
            "source_folder": self.source_folder,
            "owner_group": self.owner_group,
            "proposal_id": self.proposal_id,
        }
        return {name: value for name, value in fields.items() if value}

    @classmethod
    def read(cls, document: dict[str, Any]) -> Dataset:
        """Raises ``CatalogueRecordInvalid`` if it is no dataset."""
        try:
            return cls.model_validate({**document, "raw": document})
        except ValidationError as error:
            raise _invalid(f"dataset {document.get('pid')}", error) from None


class Datablock(Record):
    """A datablock as registered, without its files."""

    id: Text = Field(alias="_id")
    archive_id: Text = Field(alias="archiveId")
    dataset: Text = Field("", alias="datasetId")
    size: int
    packed_size: int = Field(alias="packedSize")
    version: Text = ""
    created_at: Text = Field("", alias="createdAt")
    files: int = 0

    @classmethod
    def read(cls, document: dict[str, Any]) -> Datablock:
        """Raises ``CatalogueRecordInvalid`` if it is no datablock."""
        try:
            files = document.get("dataFileList")
            return cls.model_validate({**document, "files": len(files) if isinstance(files, list) else 0})
        except ValidationError as error:
            raise _invalid(f"datablock {document.get('archiveId')}", error) from None


class OrigDatablock(Record):
    """A block of a dataset's source files, as it came."""

    id: Text = Field(alias="_id")
    dataset: Text = Field("", alias="datasetId")
    chk_alg: Text | None = Field(None, alias="chkAlg")
    files: list[Any] = Field(default_factory=list, alias="dataFileList")

    @classmethod
    def read(cls, document: dict[str, Any]) -> OrigDatablock:
        """Raises ``CatalogueRecordInvalid`` if it is no origdatablock."""
        try:
            return cls.model_validate(document)
        except ValidationError as error:
            raise _invalid(f"origdatablock {document.get('_id')}", error) from None

    def catalogue_files(self, pid: str) -> Iterator[CatalogueFile]:
        """Its files. Raises ``CatalogueRecordInvalid`` for an entry whose path or size cannot be."""
        for entry in self.files:
            if not isinstance(entry, dict) or not isinstance(entry.get("path"), str):
                raise self._wrong(pid, "a path", repr(entry)[:200])
            size = entry.get("size")
            if isinstance(size, float) and size.is_integer():
                size = int(size)
            if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= MAX_SAFE_INTEGER:
                raise self._wrong(pid, f"a size of whole bytes for {entry['path']!a}", repr(entry.get("size"))[:60])
            yield CatalogueFile(
                path=entry["path"],
                size=size,
                time=_text(entry.get("time")) or "",
                chk=_text(entry.get("chk")),
                chk_alg=_text(self.chk_alg) if entry.get("chk") else None,
                mode=file_mode(entry.get("perm")),
                uid=_text(entry.get("uid")),
                gid=_text(entry.get("gid")),
            )

    def _wrong(self, pid: str, expected: str, found: str) -> CatalogueRecordInvalid:
        return CatalogueRecordInvalid(
            f"origdatablock {self.id} of dataset {pid} lists a file that cannot be",
            expected=expected,
            found=found,
            next_step="correct the origdatablock, then submit the job again",
            dataset=pid,
        )


def _job_named(message: Any) -> str:
    job = message.get("job") if isinstance(message, dict) else None
    return job if isinstance(job, str) else ""


def _text(value: object) -> str | None:
    return str(value) if isinstance(value, (str, int)) and not isinstance(value, bool) and value != "" else None


def _invalid(what: str, error: ValidationError) -> CatalogueRecordInvalid:
    first = error.errors(include_url=False, include_input=False)[0]
    return CatalogueRecordInvalid(
        f"SciCat's record of {ascii(what)[1:-1][:200]} is not as expected",
        expected=f"field {'.'.join(str(part) for part in first['loc'])}: {first['msg']}"[:200],
        found="another value",
        next_step="correct the record in SciCat, then submit the job again",
    )
