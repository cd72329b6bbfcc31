"""All settings: one TOML file and/or ``ARCHIVER_*`` environment variables, validated at start, unknown keys refused.

Order: environment over file over default. The file is the one given, else ``ARCHIVER_CONFIG``, ``./archiver.toml``,
``~/.config/archiver/archiver.toml``, ``/etc/archiver/archiver.toml``: the first that exists. Nested keys in the
environment use two underscores: ``ARCHIVER_LTS__ROOT=/lts``. A secret may come from a file instead:
``ARCHIVER_SCICAT__PASSWORD_FILE=/run/secrets/scicat``. Temporal's connection comes from Temporal's own environment
configuration (``TEMPORAL_ADDRESS``, ``TEMPORAL_NAMESPACE``, TLS, API key); ``[temporal]`` gives only its defaults.
"""

from __future__ import annotations

import os
import re
import string
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import urlsplit

from pydantic import (
    AnyHttpUrl,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from archiver.errors import SettingsInvalid
from archiver.names import refuse_other_encodings

SIZE_UNITS = {
    "B": 1,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
}
SECRETS = (
    ("scicat", "password"),
    ("scicat", "token"),
    ("s3", "secret_key"),
    ("bridge", "token"),
    ("bridge", "password"),
    ("rabbitmq", "url"),
    ("landing.s3", "secret_key"),
    ("lts.bucket.s3", "secret_key"),
)
"""Section and name of each secret that a file may hold."""
LANDING_FIELDS = frozenset({"pid", "source_folder", "owner_group", "proposal_id"})


def parse_size(value: object) -> object:
    """``"20GiB"`` as bytes; numbers pass. Raises ``ValueError`` for anything else that is text."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", value)
    unit = SIZE_UNITS.get((match[2] or "B").upper()) if match else None
    if match is None or unit is None:
        raise ValueError(f"{value!r} is not a size such as 20GiB, 500MB or 1048576")
    return int(float(match[1]) * unit)


def _prefix(value: str) -> str:
    if value and (not value.endswith("/") or value.startswith("/")):
        raise ValueError("must end with / and not begin with it")
    return value


def _reserve(value: str) -> str:
    if match := re.fullmatch(r"(\d+(?:\.\d+)?)%", value):
        if float(match[1]) >= 100:
            raise ValueError("must be below 100%")
    else:
        parse_size(value)
    return value


def _reserve_bytes(reserve: str, total_bytes: int) -> int:
    """A validated reserve, a share or a size, of a file system of ``total_bytes``."""
    if reserve.endswith("%"):
        return int(total_bytes * float(reserve[:-1]) / 100)
    size = parse_size(reserve)
    assert isinstance(size, int)  # noqa: S101  validated
    return size


class Section(BaseModel):
    """One table of the settings file: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class TemporalSettings(Section):
    """Defaults beneath Temporal's own environment configuration."""

    address: str = "127.0.0.1:7233"
    """host:port of the Temporal frontend; ``TEMPORAL_ADDRESS`` wins."""
    namespace: str = "default"
    """Temporal namespace; ``TEMPORAL_NAMESPACE`` wins."""
    config_file: Path | None = None
    """A Temporal environment configuration file (TOML) for TLS and API keys; ``TEMPORAL_CONFIG_FILE`` wins."""
    profile: str | None = None
    """Profile in that file; ``TEMPORAL_PROFILE`` wins."""


class SciCatSettings(Section):
    """The SciCat backend and our account there."""

    url: AnyHttpUrl = AnyHttpUrl("http://127.0.0.1:3000")
    """Base URL without ``/api``."""
    username: str | None = None
    """Functional account; needs ``password``. Needs ADMIN_GROUPS and DELETE_GROUPS (docs/scicat.md)."""
    password: SecretStr | None = None
    """Password of ``username``."""
    token: SecretStr | None = None
    """A long-lived token instead of username and password."""
    login_path: Literal["/api/v3/auth/login", "/api/v3/auth/ldap", "/api/v3/auth/msad"] = "/api/v3/auth/login"
    """Where ``username`` logs in."""
    ca_file: Path | None = None
    """Certificates (PEM) of a private authority that signed SciCat's, believed beside the public ones."""
    connect_timeout_seconds: float = Field(10, gt=0)
    """For opening a connection."""
    read_timeout_seconds: float = Field(60, gt=35)
    """For an answer; above 35 s, because SciCat hangs 30 s on a lost database before it answers."""
    max_answer_bytes: int = Field(64 * 2**20, ge=2**20)
    """An answer larger than this is refused."""

    _size = field_validator("max_answer_bytes", mode="before")(parse_size)

    @model_validator(mode="after")
    def _one_credential(self) -> SciCatSettings:
        if self.token is not None and (self.username or self.password):
            raise ValueError("give either token, or username and password, not both")
        if (self.username is None) != (self.password is None):
            raise ValueError("username and password belong together: one of them is missing")
        return self


class S3Settings(Section):
    """An S3 endpoint and our keys there."""

    endpoint: AnyHttpUrl | None = None
    """URL of the S3 server; absent: AWS."""
    access_key: str | None = None
    """Access key id."""
    secret_key: SecretStr | None = None
    """Secret access key."""
    region: str = "us-east-1"
    """Region name used in signatures."""
    path_style: bool = True
    """Path-style addressing (nearly every S3 server outside AWS)."""
    unsigned_payload: bool = True
    """Do not sign request bodies: our own SHA-256 guards every transfer; saves about 1 CPU second per GiB."""


class LandingSettings(Section):
    """Where source files lie."""

    url_template: str = "s3://landing/{pid}/"
    """``s3://bucket/prefix/`` or ``file:///directory``; fields {pid}, {source_folder}, {owner_group}, {proposal_id}. Where
    {source_folder}, which begins with /, follows a /, they are one.
    In a directory symbolic links are followed before the first field only: what users name leads nowhere else."""
    s3: S3Settings | None = None
    """Another S3 than ``[s3]`` for the landing zone."""
    surplus: Literal["refuse", "allow"] = "refuse"
    """Files in the landing zone that the catalogue does not list: a content error, or left alone."""
    delete_after_archive: bool = False
    """Remove exactly the archived source files after a fresh proof (P1)."""
    delete_least_level: Literal["host", "store", "tape", "tape-read"] = "host"
    """Least verification level that a proof for deletion must state."""
    delete_check: Literal["read", "version"] = "read"
    """What shows right before a source file is removed that it is still the archived one: ``read``: its bytes, read again and
    compared with the manifest. ``version``: what the store tells (ETag and LastModified; size and times), if that is certain:
    only for stores through which all changes go."""
    without_version: Literal["read_twice", "refuse"] = "read_twice"
    """Source files without a version that is certain (objects without a strong ETag; file systems without fractions of seconds):
    read a second time while they are packed, and compared, or refused."""

    @field_validator("url_template")
    @classmethod
    def _template(cls, value: str) -> str:
        if not value.startswith(("s3://", "file:///")):
            raise ValueError("must begin with s3:// or file:///")
        try:
            parts = list(string.Formatter().parse(value))
        except ValueError as error:
            raise ValueError(f"is not a template: {error}") from None
        fields = {name for _, name, _, _ in parts if name is not None}
        if any(conversion or how for _, _, how, conversion in parts):
            raise ValueError("has a field with a format: write {pid}, without : and ! in the braces")
        if unknown := fields - LANDING_FIELDS:
            raise ValueError(f"has unknown fields {sorted(unknown)}; known are {sorted(LANDING_FIELDS)}")
        if not fields & {"pid", "source_folder"}:
            raise ValueError("names neither {pid} nor {source_folder}: every dataset would share one place")
        fixed = value.partition("{")[0]
        if value.startswith("s3://"):
            bucket, slash, _ = fixed.removeprefix("s3://").partition("/")
            if not slash:
                raise ValueError(
                    "has a field in the name of the bucket: a / must come first, as in s3://landing/{pid}/"
                )
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{1,62}", bucket):
                raise ValueError(f"{bucket!r} is no name of a bucket: write s3://bucket/prefix/{{pid}}/")
        elif ".." in value.split("/"):
            raise ValueError("climbs with '..': write the directory's own path")
        return value


class StagingSettings(Section):
    """The bucket that plans and packed datablocks pass through."""

    bucket: str = "staging"
    """Bucket name."""
    prefix: str = ""
    """Key prefix, ending in / if not empty."""

    @field_validator("prefix")
    @classmethod
    def _slash(cls, value: str) -> str:
        return _prefix(value)


class RetrievalSettings(Section):
    """Where retrieved data is put for users."""

    bucket: str = "retrieval"
    """Bucket name."""
    prefix: str = ""
    """Key prefix, ending in / if not empty; a dataset's pid comes next."""
    public_endpoint: AnyHttpUrl | None = None
    """URL of the S3 server as requesters reach it, for presigned URLs; absent: the one of ``[s3]``."""
    quota: int = Field(0, ge=0)
    """Bytes that may lie in the bucket below the prefix; 0: no limit. A retrieval that would pass it waits."""
    expire_days: float = Field(14, gt=0)
    """Retrieved data is removed from the bucket so long after the last retrieval that wanted it."""
    reserve: str = "5%"
    """Space to leave free on the file system of one of ``roots``: a share (``5%``) or a size (``500GiB``)."""

    roots: tuple[Path, ...] = ()
    """Directories on shared file systems below which jobs may have their data put; empty: links only."""
    destinations: dict[str, str] = {}
    """What a retrieve job's ``option``, ``retrieveDestination`` or ``destinationPath`` means: ``files`` (links to files),
    ``datablocks`` (links to datablocks as they are) or a directory at or below one of ``roots``. A path below ``roots`` needs
    no entry; ``/archive/retrieve``, which clients always send, means the default unless it has one."""
    default_destination: str = "files"
    """The same, for a job that names no destination."""
    url_life_seconds: int = Field(7 * 86400, ge=60, le=7 * 86400)
    """How long links work; S3 allows no more than 7 days, which SciCat's mails promise."""
    unknown_files: Literal["refuse", "deliver"] = "refuse"
    """Names in a job's ``files`` that the dataset does not have: nothing of the dataset is delivered, or the others are."""

    _size = field_validator("quota", mode="before")(parse_size)

    @field_validator("prefix")
    @classmethod
    def _slash(cls, value: str) -> str:
        return _prefix(value)

    @field_validator("reserve")
    @classmethod
    def _share_or_size(cls, value: str) -> str:
        return _reserve(value)

    def reserve_bytes(self, total_bytes: int) -> int:
        """The reserve in bytes for a file system of ``total_bytes``."""
        return _reserve_bytes(self.reserve, total_bytes)

    @model_validator(mode="after")
    def _outlives_links(self) -> RetrievalSettings:
        if self.expire_days * 86400 < self.url_life_seconds:
            raise ValueError("expire_days ends before the links of url_life_seconds do")
        return self

    @model_validator(mode="after")
    def _known_destinations(self) -> RetrievalSettings:
        for root in self.roots:
            if not root.is_absolute() or ".." in root.parts or root == Path("/"):
                raise ValueError(f"roots: {root} is not an absolute directory below /")
        for name, target in (*self.destinations.items(), ("default_destination", self.default_destination)):
            if not name.strip():
                raise ValueError("destinations: a name is empty")
            if target not in ("files", "datablocks") and self.root_of(target) is None:
                raise ValueError(
                    f"{name}: {target!r} is neither files nor datablocks, nor a directory at or below roots"
                )
        return self

    def root_of(self, path: str) -> tuple[str, str] | None:
        """The innermost of ``roots`` that an absolute path lies in, and the rest of the path; None if it lies in none."""
        inside = [
            (str(root), path[len(str(root)) :].strip("/"))
            for root in self.roots
            if path.rstrip("/") == str(root) or path.startswith(f"{root}/")
        ]
        return max(inside, key=lambda one: len(one[0]), default=None)


class DatablockSettings(Section):
    """How datablocks are cut and written."""

    target_bytes: int = Field(20 * 2**30, ge=2**20)
    """Plain bytes per datablock; a single larger file gets its own."""
    max_files: int = Field(20_000, ge=1, le=50_000)
    """Files per datablock."""
    max_metadata_bytes: int = Field(8_000_000, ge=10_000, le=15_000_000)
    """Bytes of SciCat metadata (JSON) per datablock; SciCat refuses bodies over 16 MB with a 500."""
    format: Literal["tar.gz", "tar", "tar.zst"] = "tar.gz"
    """Output format."""
    level: int = Field(1, ge=1, le=3)
    """Compression level of ISA-L (gzip) or zstd."""
    member_bytes: int = Field(4 * 2**20, ge=2**16, le=2**26)
    """Plain bytes per independent gzip member: the step of the index for single-file retrieval."""
    fetch_bytes: int = Field(32 * 2**20, ge=4 * 2**20)
    """Bytes fetched ahead per pack slot."""
    fetch_objects: int = Field(128, ge=1, le=256)
    """Source objects fetched ahead per pack slot, up to 16 at a time."""

    _size = field_validator("target_bytes", "max_metadata_bytes", "member_bytes", "fetch_bytes", mode="before")(
        parse_size
    )


class LtsBucketSettings(Section):
    """A bucket as long-term storage, of an archive class (Glacier) or any other."""

    name: str
    """Bucket name; it carries the identity marker written by ``archiver setup``."""
    prefix: str = ""
    """Key prefix, ending in / if not empty."""
    s3: S3Settings | None = None
    """Another S3 than ``[s3]``."""
    storage_class: str = Field("STANDARD", pattern=r"[A-Z][A-Z_]*")
    """Class of the datablocks, as the store calls it (``GLACIER``, ``DEEP_ARCHIVE``). Everything small stays ``STANDARD``."""
    read_back: bool = True
    """Read each datablock back, and unpack it, before it goes into its class. Without: the store's own SHA-256 must be that of
    the staged bytes, which are unpacked instead; the level is then ``cache``, too little for ``delete_after_archive``."""
    restore_tier: Literal["Bulk", "Standard", "Expedited"] = "Standard"
    """How fast, and dear, a restore is asked for."""
    restore_days: int = Field(10, ge=1)
    """How long a restored copy is kept readable."""
    part_bytes: int = Field(16 * 2**20, ge=5 * 2**20, le=5 * 2**30)
    """Bytes of an uploaded part; more for datablocks that would need over 10,000 of them."""

    _size = field_validator("part_bytes", mode="before")(parse_size)

    @field_validator("prefix")
    @classmethod
    def _slash(cls, value: str) -> str:
        return _prefix(value)

    @model_validator(mode="after")
    def _tier_of_the_class(self) -> LtsBucketSettings:
        if (self.storage_class, self.restore_tier) == ("DEEP_ARCHIVE", "Expedited"):
            raise ValueError("restore_tier: there is no Expedited for the class DEEP_ARCHIVE")
        return self


class LtsSettings(Section):
    """The long-term storage: a mounted file system, or a bucket."""

    root: Path = Path("/lts")
    """Directory that holds the datasets; carries the identity marker written by ``archiver setup``."""
    bucket: LtsBucketSettings | None = None
    """A bucket instead of ``root``."""
    identity: str = Field("lts", pattern=r"[A-Za-z0-9._-]{1,64}")
    """Name of this LTS; the marker must carry it."""
    reserve: str = "5%"
    """Space to leave free: a share (``5%``) or a size (``500GiB``)."""
    space_poll_seconds: float = Field(15, gt=0)
    """How often a copy that waits for space looks again."""
    direct_io: Literal["auto", "never"] = "auto"
    """O_DIRECT where the file system takes it; ``never``: fsync and DONTNEED."""

    @field_validator("reserve")
    @classmethod
    def _reserve(cls, value: str) -> str:
        return _reserve(value)

    def reserve_bytes(self, total_bytes: int) -> int:
        """The reserve in bytes for a file system of ``total_bytes``."""
        return _reserve_bytes(self.reserve, total_bytes)


class ArchiveSettings(Section):
    """What is told to SciCat, and how much runs at once."""

    storage_location: str = "archive"
    """Our name in ``datasetlifecycle.storageLocation``; datasets with another non-empty one are refused."""
    job_type: str = "archive"
    """SciCat job type that we take."""
    retrieve_job_type: str = "retrieve"
    """SciCat job type of those that bring data back."""
    tape_copies: Literal[1, 2] = 1
    """Copies that the LTS itself keeps of what is written there; a job whose ``tapeCopies`` is another number is refused."""
    datasets_at_once: int = Field(10, ge=1, le=200)
    """Datasets of one job in work at a time."""
    datablocks_at_once: int = Field(4, ge=1, le=100)
    """Datablocks of one dataset in work at a time."""
    archivable_after_failure: bool = True
    """After a failure the dataset is archivable again, so that a new job can be submitted."""
    give_up_after_hours: float = Field(72, gt=0)
    """How long system errors of one step are retried before the dataset is given up as failed."""

    @model_validator(mode="after")
    def _two_types(self) -> ArchiveSettings:
        if self.job_type == self.retrieve_job_type:
            raise ValueError("job_type and retrieve_job_type are the same")
        return self


class SlotSettings(Section):
    """Concurrent activities per worker process and queue."""

    catalogue: int = Field(20, ge=1)
    """SciCat calls."""
    pack: int = Field(default_factory=lambda: max(1, (os.cpu_count() or 2) // 2), ge=1)
    """Plan, pack, clean up."""
    lts_space: int = Field(1, ge=1)
    """Waits for LTS space."""
    lts_copy: int = Field(2, ge=1)
    """Copies to the LTS."""
    lts_verify: int = Field(1, ge=1)
    """Verifications."""
    lts_read: int = Field(2, ge=1)
    """Datablocks read for retrieval."""
    lts_bag: int = Field(4, ge=1)
    """Small metadata work on the LTS: surveys, bag files, clean-up."""
    delete: int = Field(1, ge=1)
    """Deletion of archived source files."""


class WorkerSettings(Section):
    """The worker process."""

    graceful_shutdown_seconds: float = Field(300, ge=0)
    """How long SIGTERM lets running activities go on before they are told to stop and are retried elsewhere."""
    heartbeat_timeout_seconds: float = Field(60, ge=5)
    """A data-moving activity that says nothing for this long is taken for dead and retried."""
    metrics_address: str | None = None
    """host:port of the Prometheus endpoint."""
    lock_dir: Path | None = None
    """Where the exclusive locks of the LTS queues lie; default: in the LTS root."""
    log_format: Literal["text", "json"] = "text"
    """Log lines for people or for machines."""


class SweepSettings(Section):
    """The sweeps: what SciCat's webhook lost, and what terminated runs left (docs/sweep.md)."""

    every_seconds: float = Field(60, ge=0)
    """How often SciCat is asked for jobs that nobody started; 0: never (``archiver setup`` makes the schedule)."""
    submitted_code: str = "jobSubmitted"
    """Status code of a job that nobody has taken up (SciCat's ``JOB_DEFAULT_STATUS_CODE``)."""
    lost_jobs: Literal["restart", "report"] = "restart"
    """Jobs that SciCat believes in progress while no workflow runs: start them again, or report them as not done."""
    lost_after_seconds: float = Field(600, ge=0)
    """A job is taken for lost when its workflow has been gone for so long."""
    leftovers_every_seconds: float = Field(3600, ge=0)
    """How often leftovers of terminated runs are looked for; 0: never."""
    retrieved_every_seconds: float = Field(3600, ge=0)
    """How often retrieved data that nobody wants any more (``retrieval.expire_days``) is removed; 0: never."""
    leftovers_after_hours: float = Field(24, ge=0)
    """What is younger is left alone, whatever it is."""
    compare_days: float = Field(3, ge=0)
    """With the leftovers: what ended within so many days is compared with what SciCat says of it, and a status that a step
    wrote too late is put right. 0: never."""


class DoctorSettings(Section):
    """``archiver doctor``."""

    dev: bool = False
    """A system for trying out, on this machine alone (``archiver dev`` writes it): a Temporal that obeys everybody is then
    no failure, if it listens on a loopback address."""
    check_seconds: float = Field(10, gt=0)
    """How long one check may take before it counts as failed."""


class BridgeSettings(Section):
    """The bridge: where SciCat's webhook comes in."""

    host: str = "127.0.0.1"
    """Address to listen on; ``0.0.0.0``: all."""
    port: int = Field(8000, ge=1, le=65535)
    """TCP port to listen on."""
    token: SecretStr | None = None
    """What callers give as ``Authorization: Bearer ...``. Without it, or username and password, the bridge does not start."""
    username: str | None = None
    """What callers give with HTTP basic authentication; needs ``password``."""
    password: SecretStr | None = None
    """Password of ``username``."""
    max_body_bytes: int = Field(4 * 2**20, ge=1024)
    """A body larger than this is refused (a whole job of 10,000 datasets has 2 MiB)."""
    head_seconds: float = Field(5, gt=0)
    """A connection whose request line and headers have not come within this time is closed."""
    body_seconds: float = Field(10, gt=0)
    """A body that has not come within this time is refused."""
    answer_seconds: float = Field(10, gt=0)
    """SciCat and Temporal together have so long; then the caller gets a 503: SciCat's user waits for our answer."""
    unknown_job_seconds: float = Field(1, ge=0)
    """A job that SciCat does not show is asked for again so long: its webhook may be ahead of its database."""
    connections: int = Field(500, ge=1)
    """Requests at a time, of one caller four fifths of them; further ones get a 503. Of half as many
    connections more, one on which nothing is asked makes room. Health checks are always answered."""

    _size = field_validator("max_body_bytes", mode="before")(parse_size)

    @field_validator("token", "password")
    @classmethod
    def _long_enough(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not re.fullmatch(r"[!-~]{16,}", value.get_secret_value().strip()):
            raise ValueError("must have 16 characters or more, all of them printable ASCII without spaces")
        return value

    @model_validator(mode="after")
    def _pair(self) -> BridgeSettings:
        if (self.username is None) != (self.password is None):
            raise ValueError("username and password belong together: one of them is missing")
        if self.username is not None and (not self.username or ":" in self.username):
            raise ValueError("username must not be empty or have a colon")
        return self


class RabbitMQSettings(Section):
    """SciCat's jobs from RabbitMQ, beside or instead of its webhook; needs the extra ``rabbitmq`` (docs/scicat.md)."""

    url: SecretStr | None = None
    """``amqp://user:password@host:5672/vhost``, or ``amqps://`` (with ``?cafile=/path`` for a private authority).
    Where it is set, ``archiver bridge`` takes jobs from there too."""
    queues: tuple[str, ...] = Field(("client.jobs.write.v4",), min_length=1)
    """Durable queues that SciCat writes to: ``queue`` of the ``rabbitmq`` action in its jobConfig."""
    dead_letter_queue: str = Field("archiver.jobs.dead-letter", min_length=1, max_length=255)
    """Where messages go that are no job of ours, with the reason in their headers."""
    prefetch: int = Field(20, ge=1, le=1000)
    """Messages of each queue in hand at a time."""

    @field_validator("url")
    @classmethod
    def _amqp(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            url = urlsplit(value.get_secret_value().strip())
            if url.scheme not in ("amqp", "amqps") or not url.hostname:
                raise ValueError("must begin with amqp:// or amqps:// and name a host")
            try:
                _ = url.port
            except ValueError:
                raise ValueError("has a port that is none") from None
        return value


class _TomlFile(InitSettingsSource):
    """The settings file, read with the line number in the error where it does not parse."""

    def __init__(self, settings_cls: type[BaseSettings], path: Path | None) -> None:
        data: dict[str, Any] = {}
        if path is not None:
            try:
                data = tomllib.loads(path.read_text("utf-8"))
            except OSError as error:
                raise SettingsInvalid(
                    f"settings file {path} cannot be read: {error.strerror}", next_step="check the path and its rights"
                ) from None
            except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
                raise SettingsInvalid(
                    f"settings file {path} is not TOML: {error}", next_step="mend that line"
                ) from None
        super().__init__(settings_cls, data)


class _SecretFiles(InitSettingsSource):
    """``ARCHIVER_<SECTION>__<SECRET>_FILE``: a secret by the path of a file that holds it."""

    def __init__(self, settings_cls: type[BaseSettings], environment: Mapping[str, str]) -> None:
        data: dict[str, Any] = {}
        for section, name in SECRETS:
            variable = f"ARCHIVER_{section.replace('.', '__')}__{name}_FILE".upper()
            if path := environment.get(variable):
                try:
                    secret = Path(path).read_text("utf-8").strip()
                except OSError as error:
                    raise SettingsInvalid(f"{variable} names {path}, which cannot be read: {error.strerror}") from None
                values = data
                for part in section.split("."):
                    values = values.setdefault(part, {})
                values[name] = secret
        super().__init__(settings_cls, data)


class _Environment(EnvSettingsSource):
    """The environment without the ``_FILE`` variables, which ``_SecretFiles`` reads: no section has such a key."""

    def __call__(self) -> dict[str, Any]:
        data = super().__call__()
        for section, name in SECRETS:
            values: Any = data
            for part in section.split("."):
                values = values.get(part) if isinstance(values, dict) else None
            if isinstance(values, dict):
                values.pop(f"{name}_file", None)
        return data


class Settings(BaseSettings):
    """All of it. Made by ``load``."""

    model_config = SettingsConfigDict(
        env_prefix="ARCHIVER_", env_nested_delimiter="__", extra="forbid", frozen=True, use_attribute_docstrings=True
    )

    temporal: TemporalSettings = TemporalSettings()
    scicat: SciCatSettings = SciCatSettings()
    s3: S3Settings = S3Settings()
    landing: LandingSettings = LandingSettings()
    staging: StagingSettings = StagingSettings()
    retrieval: RetrievalSettings = RetrievalSettings()
    datablock: DatablockSettings = DatablockSettings()
    lts: LtsSettings = LtsSettings()
    archive: ArchiveSettings = ArchiveSettings()
    slots: SlotSettings = SlotSettings()
    worker: WorkerSettings = WorkerSettings()
    bridge: BridgeSettings = BridgeSettings()
    rabbitmq: RabbitMQSettings = RabbitMQSettings()
    doctor: DoctorSettings = DoctorSettings()
    sweep: SweepSettings = SweepSettings()

    @model_validator(mode="after")
    def _consistent(self) -> Settings:
        if self.landing.url_template.startswith("file://"):
            source = self.landing.url_template.removeprefix("file://").split("{")[0].rstrip("/") or "/"
            root = str(self.lts.root).rstrip("/")
            if root == source or (root.startswith(source + "/") and source != "/"):
                raise ValueError(f"lts.root {root} lies inside the landing zone {source}")
        else:
            bucket = self.landing.url_template.removeprefix("s3://").split("/")[0]
            if bucket == self.staging.bucket and self.landing.s3 is None:
                raise ValueError(f"landing.url_template and staging.bucket name the same bucket {bucket!r}")
        if self.retrieval.bucket == self.staging.bucket:
            raise ValueError(f"retrieval.bucket and staging.bucket name the same bucket {self.staging.bucket!r}")
        self._lts_bucket_is_its_own()
        for to in self.retrieval.roots:
            if self.lts.root.is_relative_to(to) or to.is_relative_to(self.lts.root):
                raise ValueError(f"retrieval.roots: {to} and lts.root {self.lts.root} lie in one another")
        if self.datablock.fetch_bytes < self.datablock.member_bytes:
            raise ValueError("datablock.fetch_bytes is smaller than datablock.member_bytes")
        return self

    def lock_dir(self) -> Path:
        """Where the exclusive locks of the LTS queues lie. Raises ``SettingsInvalid`` if that must be said and is not."""
        if self.worker.lock_dir is not None:
            return self.worker.lock_dir
        if self.lts.bucket is not None:
            raise SettingsInvalid(
                "worker.lock_dir is not set",
                expected="a directory of this host for the locks of the LTS queues, as a bucket (lts.bucket) has none",
                found="nothing",
                next_step="set worker.lock_dir, and serve the LTS queues on this host only",
            )
        return self.lts.root / ".archiver" / "locks"

    def _lts_bucket_is_its_own(self) -> None:
        """Raises ``ValueError`` if another purpose's bucket is named as the LTS: what expires there must not be archives."""
        lts = self.lts.bucket
        if lts is None:
            return
        on = lts.s3 or self.s3
        others = [
            ("staging.bucket", self.staging.bucket, self.s3),
            ("retrieval.bucket", self.retrieval.bucket, self.s3),
        ]
        if self.landing.url_template.startswith("s3://"):
            landing = self.landing.url_template.removeprefix("s3://").split("/")[0]
            others.append(("landing.url_template", landing, self.landing.s3 or self.s3))
        for setting, name, s3 in others:
            if (name, s3.endpoint) == (lts.name, on.endpoint):
                raise ValueError(f"lts.bucket and {setting} name the same bucket {name!r}")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Environment over secret files over the TOML file (given as the ``init`` source by ``load``)."""
        return _Environment(settings_cls), init_settings


def find_file(given: Path | None = None) -> Path | None:
    """The settings file to use, or None if there is none. Raises ``SettingsInvalid`` if the one named is not there."""
    named = given or (Path(os.environ["ARCHIVER_CONFIG"]) if os.environ.get("ARCHIVER_CONFIG") else None)
    if named is not None:
        if not named.is_file():
            raise SettingsInvalid(f"settings file {named} is not there", next_step="check -c or ARCHIVER_CONFIG")
        return named
    usual = (Path("archiver.toml"), Path.home() / ".config/archiver/archiver.toml", Path("/etc/archiver/archiver.toml"))
    return next((path for path in usual if path.is_file()), None)


def load(path: Path | None = None) -> Settings:
    """Read and check all settings; ``path`` as ``find_file`` returns it. Raises ``SettingsInvalid`` naming each key.

    Every process of ours begins here, so here one is refused whose names of files would be in another encoding.
    """
    refuse_other_encodings()
    data = _merged(_TomlFile(Settings, path)(), _SecretFiles(Settings, os.environ)())
    try:
        _refuse_unknown_environment()
        return Settings(**data)
    except ValidationError as error:
        raise SettingsInvalid(
            _explain(error, path), next_step="archiver config schema  explains every setting"
        ) from None


def _refuse_unknown_environment() -> None:
    """Unknown ``ARCHIVER_*`` variables are spelling mistakes: pydantic-settings would ignore them."""
    known = {"ARCHIVER_CONFIG", "ARCHIVER_CACHE_DIR", "ARCHIVER_TEMPORAL_BIN", "ARCHIVER_VERSITYGW_BIN"}
    known |= set(_variables("ARCHIVER", Settings))
    known |= {f"ARCHIVER_{section.replace('.', '__')}__{name}_FILE".upper() for section, name in SECRETS}
    for name in os.environ:
        upper = name.upper()
        if upper.startswith("ARCHIVER_") and upper not in known:
            raise SettingsInvalid(f"environment variable {name} is no setting", next_step="archiver config schema")


def _variables(above: str, table: type[BaseModel]) -> Iterator[str]:
    """The environment variables of a table and of those in it."""
    for name, field in table.model_fields.items():
        variable = f"{above}{'_' if table is Settings else '__'}{name}".upper()
        yield variable
        if (inner := table_of(field.annotation)) is not None:
            yield from _variables(variable, inner)


def table_of(annotation: object) -> type[BaseModel] | None:
    """The table that a setting is, or may be; None for a value."""
    kinds = get_args(annotation) or (annotation,)
    return next((one for one in kinds if isinstance(one, type) and issubclass(one, BaseModel)), None)


def _merged(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Table by table."""
    deep = {
        name: _merged(under[name], value)
        for name, value in over.items()
        if isinstance(value, dict) and isinstance(under.get(name), dict)
    }
    return {**under, **over, **deep}


def _explain(error: ValidationError, path: Path | None) -> str:
    """Each mistake with its key, never with its value (it may be a secret)."""
    rows = []
    for item in error.errors(include_url=False, include_input=False):
        key = ".".join(str(part) for part in item["loc"]) or "settings"
        text = (
            "is not a known setting" if item["type"] == "extra_forbidden" else item["msg"].removeprefix("Value error, ")
        )
        rows.append(f"{key}: {text}")
    return f"settings{f' in {path}' if path else ''} are wrong: " + "; ".join(rows)
