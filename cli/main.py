"""The ``archiver`` command: results on standard output, progress and errors on standard error.

Exit codes: ``CODES``.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from archiver.errors import ArchiverError, SettingsInvalid
from archiver.names import refuse_other_encodings
from archiver.text import cut, joined, printable
from archiver.text import lines as line_by_line

if TYPE_CHECKING:
    from archiver.settings import Settings

PANELS = {
    "Try it": ("demo", "dev"),
    "Archive and bring back": ("archive", "retrieve", "start"),
    "See what goes on": ("jobs", "status", "watch"),
    "Step in": ("cancel", "retry", "abandon", "pause", "resume", "sweep"),
    "Look after what is archived": ("verify", "ls", "receipt", "rebuild"),
    "Set up and check": ("setup", "doctor", "health", "config"),
    "Serve": ("worker", "bridge"),
}
"""The commands, in groups, in the order in which ``--help`` shows them."""
PANEL_OF = {command: panel for panel, commands in PANELS.items() for command in commands}
CODES = (
    "Exit codes: 0 done; 1 failed; 2 usage or settings; 3 partly (some datasets failed); 4 content error (the user must act); "
    "5 not found; 6 refused (rights, state); 7 unreachable (try again); 8 integrity mismatch; 124 time-out; 130 interrupted."
)


class App(typer.Typer):
    """Commands that also take ``--json`` behind their name, and stand in their group of the help."""

    def command(  # type: ignore[override]
        self, name: str | None = None, **how: Any
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """As ``Typer.command``."""

        def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
            @functools.wraps(function)
            def run(*given: Any, as_json: bool = False, **named: Any) -> Any:
                options.json = options.json or as_json
                return function(*given, **named)

            flag = Annotated[bool, typer.Option("--json", help="Print results as JSON.")]
            signature = inspect.signature(function, eval_str=True)
            kept = list(signature.parameters.values())
            more = inspect.Parameter("as_json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=flag)
            run.__signature__ = signature.replace(parameters=[*kept, more])  # type: ignore[attr-defined]
            run.__annotations__ = {one.name: one.annotation for one in (*kept, more)}
            panel = PANEL_OF.get(name or function.__name__.replace("_", "-"))
            super(App, self).command(name, rich_help_panel=panel, **how)(run)
            return function

        return decorate


app = App(
    name="archiver",
    help="Moves SciCat datasets to long-term storage, verified, and shows what it does.",
    epilog=CODES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
config_app = App(help="Show, check and explain the settings.", no_args_is_help=True)


REF = "A job's id (its beginning will do), a dataset's pid, or a workflow's id."
QUEUE = "A queue or group as --queues names it (pack, lts-copy, lts ...); none: all that move data."


class Release(StrEnum):
    """Of SciCat's backend."""

    V4_27 = "4.27"
    V5_2 = "5.2"
    MASTER = "master"


@dataclass
class Options:
    """The options before the command."""

    config: Path | None = None
    json: bool = False
    quiet: bool = False

    def settings(self) -> Settings:
        """The settings; raises ``SettingsInvalid``."""
        from archiver.settings import find_file, load

        return load(find_file(self.config))

    def out(self, told: str | Iterable[str], **data: Any) -> None:
        """A result: for people, a text or its lines, or with ``--json`` one JSON object with a version."""
        text = line_by_line(told) if isinstance(told, str) else joined(told)
        print(json.dumps({"version": 1, **data}) if self.json else text, flush=True)

    def say(self, text: str) -> None:
        """Progress: one line."""
        if not self.quiet:
            print(printable(text), file=sys.stderr, flush=True)


options = Options()


def _version(wanted: bool) -> None:
    if wanted:
        from importlib import metadata

        print(f"archiver {metadata.version('scicat-archiver')}")
        raise typer.Exit


@app.callback()
def before(
    config: Annotated[Path | None, typer.Option("-c", "--config", help="Settings file (TOML).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print results as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No progress on standard error.")] = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Log what is done on standard error.")] = False,
    no_color: Annotated[bool, typer.Option("--no-color", help="No colours (also: NO_COLOR).")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Tell the version and end.")
    ] = False,
) -> None:
    """Options for every command."""
    options.config, options.json, options.quiet = config, as_json, quiet
    refuse_other_encodings()
    if verbose:
        logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(name)s %(message)s")
    # Where nobody asked for a log, a retry is no line among those of an error.
    logging.getLogger("stamina").addHandler(logging.NullHandler())
    if no_color:
        os.environ["NO_COLOR"] = "1"


@app.command()
def setup(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what is missing, make nothing.")] = False,
) -> None:
    """Prepare namespace, search attributes, buckets and the LTS marker. May be repeated."""
    from cli.setup import set_up

    lines: list[str] = []
    made = asyncio.run(set_up(options.settings(), dry_run=dry_run, say=lines.append))
    options.out(lines, made=made, steps=lines)


@app.command()
def doctor(
    fix: Annotated[bool, typer.Option("--fix", help="First make what setup makes, but for the LTS marker.")] = False,
    dataset: Annotated[str | None, typer.Option(help="Also see that this dataset's files lie there.")] = None,
    deep: Annotated[bool, typer.Option("--deep", help="Look at the whole LTS, however long it takes.")] = False,
    problems: Annotated[bool, typer.Option("--problems", help="Show only what is not ok.")] = False,
) -> None:
    """Try every right and connection that is needed; say what is missing and what mends it."""
    from cli.doctor import examine, mend, report

    settings = options.settings()

    async def run() -> tuple[str, dict[str, Any]]:
        if fix:
            await mend(settings, options.say)
        return report(await examine(settings, dataset=dataset, deep=deep), problems=problems)

    text, data = asyncio.run(run())
    options.out(text, **data)
    raise typer.Exit(0 if data["ok"] else 1)


@config_app.command("show")
def config_show() -> None:
    """The settings in force, secrets masked."""
    from cli.config import shown

    text, data = shown(options.settings())
    options.out(text, settings=data)


@config_app.command("check")
def config_check() -> None:
    """Check the settings; exit code 2 names each mistake, and what must be set and is not."""
    from archiver.settings import find_file
    from cli.config import missing

    path = find_file(options.config)
    gaps = missing(options.settings())
    if len(gaps) > 1:
        raise SettingsInvalid(
            "nothing is configured",
            expected=" and ".join(gaps),
            found=f"neither in {path} nor in the environment" if path else "no settings file, and no such variables",
            next_step="archiver config schema > archiver.toml  writes a file to fill in",
        )
    for gap in gaps:
        options.say(f"not set: {gap}; whatever needs it does not work here")
    options.out([f"ok: {path or 'defaults and environment'}"], file=str(path) if path else None)


@config_app.command("schema")
def config_schema() -> None:
    """Every setting, its default and what it means."""
    from archiver.settings import Settings
    from cli.config import explained

    print(json.dumps(Settings.model_json_schema(), indent=1) if options.json else explained())


@app.command()
def worker(
    queues: Annotated[str, typer.Option(help="Comma-separated queues or groups, as worker.py --help says.")] = "all",
) -> None:
    """Serve task queues (the same as worker.py)."""
    import worker as worker_module

    arguments = ["--queues", queues] + (["-c", str(options.config)] if options.config else [])
    raise typer.Exit(worker_module.main(arguments))


@app.command()
def bridge() -> None:
    """Serve SciCat's webhook: POST /api/v1/jobs starts the job's workflow. Needs bridge.token, or username and password."""
    from bridge.serve import serve

    serve(options.settings())


dev_app = App(invoke_without_command=True)
"""``archiver dev``, and what plays with it."""


@dev_app.callback()
def dev(
    context: typer.Context,
    data_dir: Annotated[Path, typer.Option(help="Where everything is kept.")] = Path("archiver-dev"),
    temporal_port: Annotated[int, typer.Option(help="0: a free one")] = 0,
    ui_port: Annotated[int, typer.Option(help="Web UI; 0: a free one")] = 0,
    s3_port: Annotated[int, typer.Option(help="0: a free one")] = 0,
    scicat_port: Annotated[int, typer.Option(help="stand-in; 0: a free one")] = 0,
    bridge_port: Annotated[int, typer.Option(help="0: a free one")] = 0,
    scicat_version: Annotated[Release, typer.Option(help="That the stand-in behaves as.")] = Release.V5_2,
    scicat_url: Annotated[str, typer.Option(envvar="SCICAT_URL", help="Use this SciCat instead of the stand-in.")] = "",
    scicat_user: Annotated[str, typer.Option(envvar="SCICAT_USER")] = "",
    scicat_password: Annotated[str, typer.Option(envvar="SCICAT_PASSWORD", show_envvar=True)] = "",
) -> None:
    """Start everything on this machine: Temporal, Web UI, S3, SciCat stand-in, workers, bridge. Ctrl-C stops all of it.

    archiver dev sample  makes a dataset to play with.
    """
    if context.invoked_subcommand is not None:
        return
    from cli.dev import DevOptions, DevSystem, interrupt_on_sigterm, web_pages

    _needs_account(scicat_url, scicat_user, scicat_password)
    wanted = DevOptions(
        data_dir=data_dir,
        temporal_port=temporal_port,
        ui_port=ui_port,
        s3_port=s3_port,
        scicat_port=scicat_port,
        bridge_port=bridge_port,
        scicat_version=scicat_version,
        scicat_url=scicat_url,
        scicat_user=scicat_user,
        scicat_password=scicat_password,
    )
    system = DevSystem(wanted, options.say)
    interrupt_on_sigterm()
    system.start()
    hidden = ("secret", "password", "token")
    shown = {key: value for key, value in system.info.items() if not any(word in key for word in hidden)}
    lines = [f"{key:<22}{value}" for key, value in shown.items()]
    pages = web_pages(system.info)
    lines += [f"{key:<22}{value}" for key, value in pages.items()]
    options.out(
        [
            "ready",
            *lines,
            f"settings              {system.config}",
            f"try                   archiver dev sample --data-dir {data_dir}  makes a dataset to play with",
        ],
        **shown,
        pages=pages,
    )
    system.run()


@dev_app.command("sample")
def dev_sample(
    data_dir: Annotated[Path, typer.Option(help="That of the archiver dev that runs.")] = Path("archiver-dev"),
    size: Annotated[str, typer.Option(help="About so much data, such as 200MiB or 5GiB.")] = "50MiB",
    files: Annotated[int, typer.Option(min=0, max=1_000_000, help="So many small files beside the large ones.")] = 300,
    hostile: Annotated[bool, typer.Option("--hostile", help="Also names that programs stumble over.")] = False,
) -> None:
    """Make a dataset to play with: its files in the landing zone, its records in the stand-in SciCat."""
    from archiver.settings import parse_size
    from cli.sample import make_sample

    try:
        wanted = parse_size(size)
    except ValueError as error:
        raise SettingsInvalid(f"--size {error}", expected="a size", found=repr(size)) from None
    made = make_sample(data_dir, int(str(wanted)), files=files, hostile=hostile, say=options.say)
    follow = f"archiver -c {data_dir / 'archiver.toml'} archive {made.pid} --wait"
    told = f"dataset {made.pid}: {len(made.files)} files, {made.size_bytes} bytes"
    options.out([told, f"next: {follow}"], pid=made.pid, files=len(made.files), size_bytes=made.size_bytes, next=follow)


FROM = "Take pids from this file too, one a line (-: standard input); blank lines and # comments are skipped."


@app.command()
def archive(
    pids: Annotated[list[str] | None, typer.Argument(help="Datasets to archive.", metavar="PID...")] = None,
    source: Annotated[str | None, typer.Option("--from", metavar="FILE", help=FROM)] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Follow the jobs to their end.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Compare files with SciCat and plan datablocks; make nothing.")
    ] = False,
) -> None:
    """Create the SciCat job for these datasets, as a user would, and start it; of more than 100 datasets, several jobs."""
    from cli.pid_list import wanted

    found = wanted(pids or [], source, options.say)
    if dry_run:
        from cli import dry_run as dry

        lines, data, code = asyncio.run(dry.dry_run(options.settings(), found, options.say))
        options.out(lines, **data)
        raise typer.Exit(code)
    _submit(found, wait)


@app.command()
def retrieve(
    pids: Annotated[list[str] | None, typer.Argument(help="Datasets to bring back.", metavar="PID...")] = None,
    source: Annotated[str | None, typer.Option("--from", metavar="FILE", help=FROM)] = None,
    files: Annotated[
        list[str] | None,
        typer.Option("--file", metavar="PATH", help="Only this file, as SciCat lists it; may be repeated; of one PID."),
    ] = None,
    to: Annotated[
        str, typer.Option("--to", help="A directory below retrieval.roots, or a destination of the settings.")
    ] = "",
    wait: Annotated[bool, typer.Option("--wait", help="Follow the jobs to their end.")] = False,
) -> None:
    """Create the SciCat job that brings datasets back, or single files of one, as a user would, and start it."""
    from cli.pid_list import wanted

    found = wanted(pids or [], source, options.say)
    if files and len(found) > 1:
        raise SettingsInvalid(
            "--file names files of one dataset",
            expected="one PID",
            found=f"{len(found)}",
            next_step="ask for the files of each dataset by a command of its own",
        )
    _submit(found, wait, retrieve=True, files=files, to=to)


def _submit(
    pids: list[str], wait: bool, *, retrieve: bool = False, files: list[str] | None = None, to: str = ""
) -> None:
    """Make the jobs, start each, and with ``wait`` follow all of them."""
    from activities.connection import connect
    from cli import jobs

    async def run() -> int:
        settings = options.settings()
        client = await connect(settings)
        made = jobs.submit(settings, pids, options.say, retrieve=retrieve, files=files, to=to)
        # SciCat's webhook may have started it by now.
        handles = [await jobs.start(client, job, None, again=False, retrieve=retrieve) async for job in made]
        return await _started(handles, wait)

    raise typer.Exit(asyncio.run(run()))


@app.command()
def verify(pid: Annotated[str, typer.Argument(help="An archived dataset.", metavar="PID")]) -> None:
    """Read a dataset on the LTS again and compare, with SciCat too: 0 good, 8 bad or missing, 5 not archived, 1 unknown.

    The receipt tells of it; nothing else is changed.
    """
    from activities.connection import connect
    from cli import verify as check

    async def run() -> int:
        settings = options.settings()
        done = await check.verify(await connect(settings), settings, pid, options.say)
        options.out(check.lines(done), **done.model_dump())
        return check.CODES[done.outcome]

    raise typer.Exit(asyncio.run(run()))


@app.command(name="ls")
def list_dataset(
    pid: Annotated[str, typer.Argument(help="A dataset's pid.", metavar="PID")],
    files: Annotated[
        bool, typer.Option("--files", help="Every file, with its SHA-256, as the manifests have it.")
    ] = False,
) -> None:
    """What lies where, by SciCat, LTS and manifests side by side: 0 where they agree, 8 where they do not."""
    from cli.ls import ls

    text, data, code = asyncio.run(ls(options.settings(), pid, files=files))
    options.out(text, **data)
    raise typer.Exit(code)


@app.command()
def rebuild(
    pid: Annotated[str | None, typer.Argument(help="Only this dataset; default: every bag.", metavar="[PID]")] = None,
    from_lts: Annotated[bool, typer.Option("--from-lts", help="From the bags on the LTS; must be given.")] = False,
    apply: Annotated[bool, typer.Option("--apply", help="Do it; without, it is only told what would be done.")] = False,
) -> None:
    """After a disaster: register in SciCat again what the bags on the LTS hold. Changes no record that exists."""
    from cli.rebuild import rebuild as rebuild_from

    raise typer.Exit(asyncio.run(rebuild_from(options, pid, from_lts=from_lts, apply=apply)))


@app.command()
def start(
    job: Annotated[str, typer.Argument(help="Id of a job that SciCat has.", metavar="JOB")],
    pids: Annotated[list[str] | None, typer.Argument(help="Only these datasets.", metavar="[PID...]")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Follow the job to its end.")] = False,
) -> None:
    """Start the workflow of a job that SciCat already has. Starting it again is harmless."""
    from activities.connection import connect
    from cli import jobs

    async def run() -> int:
        jobs.check_job_id(job)
        settings = options.settings()
        client = await connect(settings)
        retrieve = await jobs.is_retrieval(settings, job)
        return await _started([await jobs.start(client, job, pids, retrieve=retrieve)], wait)

    raise typer.Exit(asyncio.run(run()))


async def _started(handles: list[Any], wait: bool) -> int:
    """Tell that these jobs were started, or with ``wait`` how each ended; the exit code of all."""
    from cli import exits, jobs
    from cli.refs import name_of

    if not wait:
        told = [{"job": name_of(handle.id), "workflow": handle.id} for handle in handles]
        options.out([f"started {handle.id}" for handle in handles], jobs=told, **told[0])
        return 0

    async def one(handle: Any) -> tuple[str, dict[str, Any], int]:
        job_id, say = name_of(handle.id), options.say
        say(f"started {handle.id}")
        mark = f"{job_id}  " if len(handles) > 1 else ""
        result, problem = await jobs.finish(handle, lambda line: say(mark + line))
        if result is None:
            data = {"job": job_id, "workflow": handle.id, "problem": problem}
            return f"{job_id}  FAILED  {problem}", data, jobs.code_of(result)
        data = {**result.model_dump(), "job": job_id, "workflow": handle.id}
        return f"{job_id}  {result.status_code}  {result.message}", data, jobs.code_of(result)

    ended = await asyncio.gather(*map(one, handles))
    told = [data for _, data, _ in ended]
    options.out([text for text, _, _ in ended], jobs=told, **told[0])
    codes = {code for _, _, code in ended}
    return codes.pop() if len(codes) == 1 else exits.PARTLY


@app.command()
def status(ref: Annotated[str, typer.Argument(help=REF, metavar="REF")]) -> None:
    """What a job or dataset is doing, what it waits for, or how it ended."""
    from cli.status import describe

    text, data = asyncio.run(describe(options.settings(), ref))
    options.out(text, **data)


@app.command()
def receipt(pid: Annotated[str, typer.Argument(help="A dataset's pid.", metavar="PID")]) -> None:
    """What happened to a dataset, in order: its receipt beside the bag, else what SciCat and Temporal still know."""
    from cli.receipt import receipt as receipt_of

    text, data = asyncio.run(receipt_of(options.settings(), pid))
    options.out(text, **data)


@app.command()
def watch(
    ref: Annotated[str, typer.Argument(help=REF, metavar="REF")],
    timeout: Annotated[float | None, typer.Option(min=0, help="Stop watching after so many seconds (124).")] = None,
) -> None:
    """Follow a job or dataset to its end; ends with its exit code. Ctrl-C stops watching, not the job."""
    from rich.console import Console

    from activities.connection import answering, connect
    from cli import watch as watching
    from cli.status import lines

    settings, started = options.settings(), time.monotonic()

    async def run() -> dict[str, Any]:
        client = await connect(settings)
        with answering():
            console = Console(stderr=True, quiet=options.quiet)
            return await watching.watch(client, ref, console=console, say=options.say, timeout=timeout)

    try:
        found = asyncio.run(run())
    except (KeyboardInterrupt, watching.TimeIsUp) as early:
        print(printable(watching.goes_on(ref, time.monotonic() - started)), file=sys.stderr, flush=True)
        raise typer.Exit(130 if isinstance(early, KeyboardInterrupt) else watching.TIMED_OUT) from None
    options.out(lines(found), **found)
    raise typer.Exit(watching.code_of(found))


@app.command("jobs")
def list_jobs(
    running: Annotated[bool, typer.Option("--running", help="Only those under way.")] = False,
    failed: Annotated[bool, typer.Option("--failed", help="Only those that ended otherwise than well.")] = False,
    stuck: Annotated[bool, typer.Option("--stuck", help="Only those that cannot go on, and why.")] = False,
    group: Annotated[str | None, typer.Option(help="Only those with datasets of this owner group.")] = None,
    since: Annotated[str | None, typer.Option(help="Only those begun within 30m, 12h, 7d, 2w.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most so many.")] = 20,
) -> None:
    """Jobs, those under way first.

    Stuck is a job below which a step has failed three times in a row or more, or waits in a queue that no worker serves, or
    a workflow cannot go on. What waits for LTS space, for a slot, or for a paused queue is not stuck.
    """
    from activities.connection import answering, connect
    from cli.listing import jobs, lines

    async def run() -> dict[str, Any]:
        client = await connect(options.settings())
        with answering():
            return await jobs(
                client, limit=limit, running=running, failed=failed, stuck=stuck, group=group, since=since
            )

    told = asyncio.run(run())
    options.out(lines(told), **told)


@app.command()
def cancel(
    ref: Annotated[str, typer.Argument(help=REF, metavar="REF")],
    reason: Annotated[str, typer.Option(help="Why; SciCat's users read it.")],
    who: Annotated[str | None, typer.Option(help="Who asks; default: user@host.")] = None,
) -> None:
    """Stop a job or a dataset. Verified datablocks stay, the rest is cleaned up, SciCat tells who and why."""
    from activities.connection import answering, connect
    from cli import hand

    async def run() -> dict[str, Any]:
        client = await connect(options.settings())
        with answering():
            return await hand.cancel(client, ref, reason=reason, who=who or hand.whoever())

    told = asyncio.run(run())
    options.out([f"{told['workflow']} was asked to stop; archiver watch {ref} follows it"], **told)


@app.command()
def retry(
    ref: Annotated[str, typer.Argument(help=REF, metavar="REF")],
    reason: Annotated[str, typer.Option(help="Why; who looks at the job later reads it.")] = "no reason given",
    who: Annotated[str | None, typer.Option(help="Who asks; default: user@host.")] = None,
) -> None:
    """Take up again what failed or was stopped: one dataset, or a job. What was verified is used again.

    Datasets of a job that were abandoned stay so: name them to take them up.
    """
    from activities.connection import answering, connect
    from cli import hand

    async def run() -> dict[str, Any]:
        settings = options.settings()
        client = await connect(settings)
        with answering():
            return await hand.retry(client, settings, ref, reason=reason, who=who or hand.whoever())

    told = asyncio.run(run())
    for pid in told["abandoned"]:
        options.say(f"{pid} was abandoned: left alone; archiver retry {pid}  takes it up all the same")
    options.out([f"started {told['workflow']}; archiver watch {told['job']} follows it"], **told)


@app.command()
def abandon(
    ref: Annotated[str, typer.Argument(help=REF, metavar="REF")],
    reason: Annotated[str, typer.Option(help="Why; SciCat's users read it.")],
    who: Annotated[str | None, typer.Option(help="Who asks; default: user@host.")] = None,
    within: Annotated[float, typer.Option(min=0, max=3600, help="Seconds in which it may still clean up.")] = 60,
) -> None:
    """Stop a job or a dataset for good, also where its clean-up cannot succeed: after some time no step is tried again."""
    from activities.connection import answering, connect
    from cli import hand

    async def run() -> dict[str, Any]:
        settings = options.settings()
        client = await connect(settings)
        with answering():
            return await hand.abandon(client, settings, ref, reason=reason, who=who or hand.whoever(), within=within)

    told = asyncio.run(run())
    count = len(told["terminated"])
    how = (
        f"{count} workflows were terminated; archiver sweep clears what they left"
        if count
        else "it cleaned up after itself"
    )
    more = [told["untold"]] if told.get("untold") else []
    options.out([f"{told['workflow']} is abandoned: {how}", *more], **told)


@app.command()
def pause(
    queue: Annotated[str | None, typer.Argument(help=QUEUE, metavar="[QUEUE]")] = None,
    reason: Annotated[str, typer.Option(help="Why.")] = "no reason given",
    who: Annotated[str | None, typer.Option(help="Who asks; default: user@host.")] = None,
    show: Annotated[bool, typer.Option("--show", help="Only tell what is paused.")] = False,
) -> None:
    """Begin no more steps that move data, or none of one queue; what runs goes on to its end. Lasts until resume."""
    _set_paused(queue, True, reason, who, show)


@app.command()
def resume(
    queue: Annotated[str | None, typer.Argument(help=QUEUE, metavar="[QUEUE]")] = None,
    reason: Annotated[str, typer.Option(help="Why.")] = "no reason given",
    who: Annotated[str | None, typer.Option(help="Who asks; default: user@host.")] = None,
) -> None:
    """Let what was paused go on: all queues, or one."""
    _set_paused(queue, False, reason, who, False)


def _set_paused(queue: str | None, paused: bool, reason: str, who: str | None, show: bool) -> None:
    from activities.connection import answering, connect
    from cli import hand, queues

    # Everything is resumed, also a queue that was paused by its own name.
    names = queues.ACTIVITY_QUEUES if queue is None and (show or not paused) else queues.names_of(queue)

    async def run() -> list[queues.QueueState]:
        client = await connect(options.settings())
        with answering():
            if show:
                return list((await queues.read(client, names)).values())
            return await queues.set_paused(client, names, paused, reason=reason, who=who or hand.whoever())

    states = asyncio.run(run())
    options.out([queues.line(state) for state in states], queues=[state.as_data() for state in states])


@app.command()
def health(
    queue: Annotated[
        list[str] | None,
        typer.Option("--queue", help="Only this queue or group, as --queues names it; may be repeated."),
    ] = None,
) -> None:
    """For probes: 0 if Temporal answers, a worker serves every queue, and no sweep fails again and again; else 1, or 7 if
    Temporal does not answer. With --queue only workers are looked at."""
    from activities.connection import answering, connect
    from cli import health as probe

    names = probe.names_of(queue) if queue else None

    async def run() -> dict[str, Any]:
        client = await connect(options.settings())
        with answering():
            return await probe.health(client, names)

    told = asyncio.run(run())
    options.out(probe.lines(told), **told)
    raise typer.Exit(0 if told["healthy"] else 1)


@app.command()
def sweep(
    part: Annotated[str, typer.Argument(help="jobs, leftovers, or all.", metavar="[PART]")] = "all",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, change nothing.")] = False,
) -> None:
    """Do now what the schedules do: start jobs that nobody started, clear what terminated runs left."""
    from cli import sweep as sweeping

    if part not in (*sweeping.PARTS, "all"):
        raise SettingsInvalid(f"there is no sweep for {part!r}", expected="jobs, leftovers or all", found=repr(part))
    parts = [part] if part in sweeping.PARTS else list(sweeping.PARTS)
    said = asyncio.run(sweeping.sweep(options.settings(), parts, dry_run=dry_run, say=options.say))
    options.out("\n".join(text for text, _ in said.values()), **{name: data for name, (_, data) in said.items()})
    raise typer.Exit(3 if any(data.get("problems") for _, data in said.values()) else 0)


@app.command()
def demo(
    data_dir: Annotated[Path | None, typer.Option(help="Keep everything here; default: a temporary directory.")] = None,
    megabytes: Annotated[int, typer.Option(min=1, max=10_000, help="About so much data.")] = 200,
    scicat_url: Annotated[str, typer.Option(help="Use this SciCat instead of the stand-in.")] = "",
    scicat_user: Annotated[str, typer.Option()] = "",
    scicat_password: Annotated[str, typer.Option(envvar="SCICAT_PASSWORD")] = "",
    lose_webhook: Annotated[
        bool, typer.Option("--lose-webhook", help="Nobody tells the archiver of the job: its sweep must find it.")
    ] = False,
) -> None:
    """Archive a made-up dataset on an embedded system, and prove that it is archived."""
    from cli.demo import run_demo
    from cli.dev import interrupt_on_sigterm

    _needs_account(scicat_url, scicat_user, scicat_password)
    interrupt_on_sigterm()
    account = (scicat_url, scicat_user, scicat_password)
    raise typer.Exit(run_demo(data_dir, megabytes, options.say, account, lose_webhook=lose_webhook))


def _needs_account(scicat_url: str, user: str, password: str) -> None:

    if scicat_url and not (user and password):
        raise SettingsInvalid(
            "--scicat-url needs an account", expected="--scicat-user and --scicat-password", found="one is missing"
        )


app.add_typer(config_app, name="config", rich_help_panel=PANEL_OF["config"])
app.add_typer(dev_app, name="dev", rich_help_panel=PANEL_OF["dev"])
app.registered_commands.sort(key=lambda one: list(PANEL_OF).index(one.name or one.callback.__name__))  # type: ignore[union-attr]


def main() -> None:
    """The entry point. Ends the process."""
    code = run()
    # Temporal's runtime threads may still run, and abort an interpreter that finalizes beneath them.
    os._exit(code)


def run() -> int:
    """One command; its exit code. The one place where errors become four lines: no traceback meets an operator."""
    from cli import exits

    try:
        try:
            app(standalone_mode=True)
        finally:
            sys.stdout.flush()
    except ArchiverError as error:
        if options.json:
            with contextlib.suppress(OSError):
                print(json.dumps({"version": 1, "error": error.as_data()}), flush=True)
        print(error.lines(), file=sys.stderr)
        return exits.exit_code(error)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if code == exits.USAGE and "--json" in sys.argv:
            told = SettingsInvalid("wrong usage", expected="see standard error", next_step="archiver COMMAND --help")
            print(json.dumps({"version": 1, "error": told.as_data()}), flush=True)
        return code
    except BrokenPipeError:  # whoever read us has seen enough
        return 0
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if os.environ.get("PYTHONFAULTHANDLER"):
            raise
        print(printable(cut(f"error    unexpected {type(error).__name__}: {error}", 800)), file=sys.stderr)
        print("next     report it; PYTHONFAULTHANDLER=1 shows where it happened", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    main()
