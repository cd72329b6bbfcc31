"""The download script, run by real shells at a real server: all of it, verified, or no success, never a byte elsewhere."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from archiver.errors import HostilePath
from archiver.retrieval.script import Fetch, download_script, short_script
from tests.retrieval.shelf import Shelf, shelf

PID = "20.500.12345/demo-1"
SHELLS = ["sh", "dash", "bash"]
TOOLS = [
    *("sh", "cat", "cmp", "find", "ln", "mkdir", "mv", "rm", "rmdir", "sleep", "tar", "gzip", "tr", "wc"),
    *("curl", "wget", "sha256sum", "shasum", "perl"),
]
WORK = ".archiver-download"
HOSTILE = [
    "a b/ c",
    "-rf",
    "--help/-x",
    "new\nline\n",
    "tab\there",
    "quo'te\"s",
    "'; touch /tmp/pwned; '",
    "$(touch pwned)",
    "`touch pwned`",
    "$HOME/${PATH}",
    "back\\slash\\n%s%d",
    "ümläut/漢字/\U0001f600",
    "*?[a-z]{b,c}",
    "#comment !bang ~ & | ; < > ( )",
    "\x1b[31mred\x1b[0m\r",
    "..a/.b../...",
    ".archiver-download/running/process",
    "/".join(["x" * 200] * 5),
    "=:,@^",
    " ",
    "\u202eright to left",
]


@pytest.fixture
def server() -> Iterator[Shelf]:
    with shelf() as found:
        yield found


def written(*fetches: Fetch, pid: str = PID, until: str = "2026-12-01T12:00:00Z") -> str:
    return "".join(download_script([(pid, fetches)], valid_until=until))


class Folder:
    """A directory that scripts are run in, and what lies around it."""

    def __init__(self, root: Path, shell: str = "sh") -> None:
        self.root = root
        self.here = root / "here"
        self.here.mkdir()
        self.home = root / "home"
        self.home.mkdir()
        self.shell = shell
        self.path = os.environ["PATH"]

    def without(self, *tools: str) -> Folder:
        """Where these tools are not installed."""
        tools_here = self.root / "tools"
        tools_here.mkdir()
        for name in TOOLS:
            if name not in tools and (found := shutil.which(name)):
                (tools_here / name).symlink_to(found)
        self.path = str(tools_here)
        return self

    def start(self, script: str, *arguments: str, piped: bool = False) -> subprocess.Popen[bytes]:
        name = self.root / "download.sh"
        name.write_text(script, "utf-8", newline="")
        shell = shutil.which(self.shell)
        assert shell
        environment = {"PATH": self.path, "HOME": str(self.home), "ARCHIVER_PAUSE": "0", "LANG": "en_US.UTF-8"}
        words = [shell, "-s", "--", *arguments] if piped else [shell, str(name), *arguments]
        return subprocess.Popen(
            words,
            cwd=self.here,
            env=environment,
            stdin=name.open("rb") if piped else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def run(self, script: str, *arguments: str, piped: bool = False) -> tuple[int, str]:
        """How it ended and what it said."""
        process = self.start(script, *arguments, piped=piped)
        said, _ = process.communicate(timeout=120)
        return process.returncode, said.decode("utf-8", "replace")

    def files(self, below: str = PID) -> dict[str, bytes]:
        """What lies there."""
        start = os.fsencode(self.here / below)
        return {
            os.path.relpath(os.path.join(folder, name), start).decode(): Path(
                os.fsdecode(os.path.join(folder, name))
            ).read_bytes()
            for folder, _, names in os.walk(start)
            for name in names
        }

    def around(self) -> set[str]:
        """Everything that is not in the directory."""
        return {str(one) for one in self.root.rglob("*") if self.here not in one.parents and "tools" not in one.parts}


@pytest.fixture(params=SHELLS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    return Folder(tmp_path, request.param)


@pytest.fixture
def one(tmp_path: Path) -> Folder:
    """With one shell, where shells make no difference."""
    return Folder(tmp_path)


def packed(files: dict[str, bytes], *, links: dict[str, str] | None = None, mode: str = "w:gz") -> bytes:
    """A datablock."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode, format=tarfile.PAX_FORMAT) as tar:  # type: ignore[call-overload]
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        for name, target in (links or {}).items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            tar.addfile(member)
    return out.getvalue()


# --- all of it ---------------------------------------------------------------


def test_files_of_every_hostile_name_come_whole_and_nothing_is_written_elsewhere(folder: Folder, server: Shelf) -> None:
    files = {name: f"{n}{name}".encode() * 10 for n, name in enumerate(HOSTILE)} | {"empty": b"", "nul": b"\0\n" * 500}
    script = written(*(server.put(name, data) for name, data in files.items()))
    before = folder.around() | {str(folder.root / "download.sh")}
    code, said = folder.run(script)
    assert code == 0, said
    assert folder.files() == files
    assert f"All {len(files)} are here and right." in said
    assert folder.around() == before
    assert not Path("/tmp/pwned").exists()
    assert [one.name for one in folder.here.iterdir()] == [PID.split("/")[0]], "of the work nothing is left"
    assert "\x1b" not in said
    assert "canary" not in said


def test_what_is_here_is_checked_and_not_brought_again(folder: Folder, server: Shelf) -> None:
    script = written(server.put("a", b"a" * 100), server.put("b/c", b"b" * 100))
    assert folder.run(script)[0] == 0
    asked = len(server.asked)
    code, said = folder.run(script)
    assert (code, len(server.asked), said.count("here     ")) == (0, asked, 2)
    (folder.here / PID / "a").unlink()
    assert folder.run(script)[0] == 0
    assert server.asked[asked:] == [("/k0", 0)]


def test_files_of_several_datasets_come_into_folders_of_their_own(one: Folder, server: Shelf) -> None:
    odd = "ünusual pid/with/../slashes\n"
    both = [("p.1/x", [server.put("same", b"1")]), (odd, [server.put("same", b"2")])]
    code, said = one.run("".join(download_script(both)))
    assert code == 0, said
    assert one.files("p.1/x") == {"same": b"1"}
    (other,) = (path for path in one.here.iterdir() if path.name.startswith("pid="))
    assert (other / "same").read_bytes() == b"2"


@pytest.mark.parametrize("name", ["to/here", "-", "--", "-rf", "new\nline", "$(x)"])
def test_another_directory_may_be_given(one: Folder, server: Shelf, name: str) -> None:
    script = written(server.put("a", b"a"))
    code, said = one.run(script, "--", name)
    assert code == 0, said
    assert (one.here / name / PID / "a").read_bytes() == b"a"


def test_it_runs_from_a_pipe_too(folder: Folder, server: Shelf) -> None:
    block = packed({"x": b"x", "y": b"y"})
    script = written(server.put("a", b"a"), server.put("1.tar.gz", block, unpack=True), server.put("b", b"b"))
    code, said = folder.run(script, piped=True)
    assert code == 0, said
    assert folder.files() == {"a": b"a", "b": b"b", "x": b"x", "y": b"y"}


@pytest.mark.parametrize("tools", [("curl",), ("sha256sum",), ("curl", "sha256sum")])
def test_wget_or_shasum_do_where_curl_or_sha256sum_are_not(
    folder: Folder, server: Shelf, tools: tuple[str, ...]
) -> None:
    cut = {"/k1": 60_000}
    server.befalls = lambda path, start, data: data[: cut.pop(path, len(data))]
    files = {"a'b": b"a", "large": bytes(100_000), "empty": b"", "new\nline": b"x"}
    before = folder.without(*tools).around() | {str(folder.root / "download.sh")}
    code, said = folder.run(written(*(server.put(name, data) for name, data in files.items())))
    assert code == 0, said
    assert folder.files() == files
    assert [start for path, start in server.asked if path == "/k1"] == [0, 60_000]
    assert folder.around() == before, "wget would keep a file of its own at home"


@pytest.mark.parametrize(
    ("tools", "says"), [(("curl", "wget"), "neither curl nor wget"), (("sha256sum", "shasum"), "neither sha256sum")]
)
def test_a_tool_that_is_not_there_is_named(one: Folder, server: Shelf, tools: tuple[str, ...], says: str) -> None:
    code, said = one.without(*tools).run(written(server.put("a", b"a")))
    assert code == 1
    assert f"error    {says}" in said


# --- what may befall ---------------------------------------------------------------


def test_a_transfer_that_breaks_off_goes_on_where_it_was(folder: Folder, server: Shelf) -> None:
    data = os.urandom(1_000_000)
    server.befalls = lambda path, start, rest: rest[:300_000]
    code, said = folder.run(written(server.put("a", data)))
    assert code == 0, said
    assert folder.files() == {"a": data}
    starts = [start for _, start in server.asked]
    assert starts == sorted(starts)
    assert len(set(starts)) == len(starts) > 3, "every byte once"


@pytest.mark.parametrize("tools", [(), ("curl",)])
def test_a_server_that_cannot_continue_is_asked_from_the_start(
    one: Folder, server: Shelf, tools: tuple[str, ...]
) -> None:
    data, cut = os.urandom(200_000), [100_000]
    server.ranges = False
    server.befalls = lambda path, start, rest: rest[: cut.pop() if cut else len(rest)]
    code, said = one.without(*tools).run(written(server.put("a", data)))
    assert code == 0, said
    assert one.files() == {"a": data}


def test_a_script_that_is_killed_goes_on_where_it_was(folder: Folder, server: Shelf) -> None:
    data, killed = os.urandom(500_000), []

    def kill(path: str, start: int, rest: bytes) -> bytes:
        if not killed:
            part = folder.here / WORK / f"{hashlib.sha256(data).hexdigest()}.part"
            killed.append(part)
            return rest[:200_000]
        if len(killed) == 1:
            killed.append(part := killed[0])
            assert part.stat().st_size == 200_000
            os.killpg(process.pid, 9)
            return b""
        return rest

    server.befalls = kill
    script = written(server.put("a", data))
    process = folder.start(script)
    process.communicate(timeout=120)
    assert process.returncode == -9
    assert folder.files() == {}
    code, said = folder.run(script)
    assert code == 0, said
    assert folder.files() == {"a": data}
    assert server.asked[-1] == ("/k0", 200_000)


@pytest.mark.parametrize("tools", [(), ("curl",)])
def test_wrong_bytes_are_never_seen_under_the_files_name(folder: Folder, server: Shelf, tools: tuple[str, ...]) -> None:
    server.befalls = lambda path, start, data: data if path == "/k1" else bytes([data[0] ^ 1]) + data[1:]
    script = written(server.put("a", b"a" * 100), server.put("b", b"b"))
    code, said = folder.without(*tools).run(script)
    assert code == 1
    assert folder.files() == {"b": b"b"}
    assert f"error    {PID}/a: other bytes came than were archived, twice" in said
    assert "error    1 of 2 are not here" in said
    assert not (folder.here / WORK).exists()
    server.befalls = lambda path, start, data: data
    assert folder.run(script)[0] == 0


def test_bytes_that_were_changed_between_two_parts_are_brought_anew(one: Folder, server: Shelf) -> None:
    data, cut = os.urandom(1000), [b"x" * 400]
    server.befalls = lambda path, start, rest: cut.pop() if cut else rest
    code, said = one.run(written(server.put("a", data)))
    assert code == 0, said
    assert [start for _, start in server.asked] == [0, 400, 0]


@pytest.mark.parametrize("tools", [(), ("curl",)])
@pytest.mark.parametrize("status", [400, 403])
def test_a_link_that_has_expired_is_told_with_what_to_do_and_what_is_here_stays(
    folder: Folder, server: Shelf, status: int, tools: tuple[str, ...]
) -> None:
    server.befalls = lambda path, start, data: status if path == "/k1" else data
    script = written(server.put("a", b"a"), server.put("b", b"b"), server.put("c", b"c"))
    code, said = folder.without(*tools).run(script)
    assert code == 1
    assert folder.files() == {"a": b"a"}
    assert f"(status {status}); links work until 2026-12-01T12:00:00Z; what is here stays; next: submit a new" in said
    assert "/k2" not in [path for path, _ in server.asked], "the others have expired with it"
    assert b"AccessDenied" not in b"".join(one.read_bytes() for one in folder.here.rglob("*") if one.is_file())


@pytest.mark.parametrize("tools", [(), ("curl",)])
def test_a_file_that_is_gone_is_told_and_the_others_come(one: Folder, server: Shelf, tools: tuple[str, ...]) -> None:
    script = written(server.put("a", b"a"), server.put("b", b"b"))
    del server.files["/k0"]
    code, said = one.without(*tools).run(script)
    assert (code, one.files()) == (1, {"b": b"b"})
    assert f"error    {PID}/a: it is no longer there (status 404)" in said


@pytest.mark.parametrize("tools", [(), ("curl",)])
def test_a_server_in_trouble_is_asked_five_times_and_then_the_next_file_comes(
    one: Folder, server: Shelf, tools: tuple[str, ...]
) -> None:
    server.befalls = lambda path, start, data: 503 if path == "/k0" else data
    code, said = one.without(*tools).run(written(server.put("a", b"a"), server.put("b", b"b")))
    assert (code, one.files()) == (1, {"b": b"b"})
    assert [path for path, _ in server.asked].count("/k0") == 5
    assert f"error    {PID}/a: it cannot be brought" in said


@pytest.mark.parametrize("keep", [0.3, 0.9, 0.99])
def test_a_script_that_was_cut_off_never_ends_well(folder: Folder, server: Shelf, keep: float) -> None:
    script = written(*(server.put(f"f{n}", bytes([n])) for n in range(20)))
    code, _ = folder.run(script[: int(len(script) * keep)])
    assert code != 0


def test_a_script_cut_off_between_two_files_says_that_it_is_not_whole(folder: Folder, server: Shelf) -> None:
    lines = written(server.put("a", b"a"), server.put("b", b"b")).splitlines(keepends=True)
    code, said = folder.run("".join(lines[:-1]))
    assert code == 1
    assert "it is not whole" in said


# --- what is there already ---------------------------------------------------------------


def test_p3_a_file_that_differs_is_left_as_it_is_and_no_success(folder: Folder, server: Shelf) -> None:
    mine = folder.here / PID / "a"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    code, said = folder.run(written(server.put("a", b"a"), server.put("b", b"b")))
    assert code == 1
    assert folder.files() == {"a": b"mine", "b": b"b"}
    assert "another file of this name is here and stays" in said


@pytest.mark.parametrize("where", ["20.500.12345", PID, f"{PID}/in", f"{PID}/in/a", WORK])
@pytest.mark.parametrize("dangling", [False, True])
def test_p3_a_link_that_leads_elsewhere_is_not_followed(
    folder: Folder, server: Shelf, where: str, dangling: bool
) -> None:
    elsewhere = folder.root / "elsewhere"
    if not dangling:
        elsewhere.mkdir()
    (folder.here / where).parent.mkdir(parents=True, exist_ok=True)
    (folder.here / where).symlink_to(elsewhere)
    block = packed({"in/a": b"b", "in/b": b"b"})
    code, said = folder.run(written(server.put("in/a", b"a"), server.put("1.tar.gz", block, unpack=True)))
    assert code == 1
    assert "link" in said or "another file" in said
    assert not elsewhere.exists() if dangling else list(elsewhere.iterdir()) == []
    assert (folder.here / where).is_symlink()


def test_a_link_in_the_place_of_what_is_being_brought_is_not_followed(one: Folder, server: Shelf) -> None:
    fetch = server.put("a", b"a")
    (one.here / WORK).mkdir()
    (one.here / WORK / f"{fetch.sha256}.part").symlink_to(one.root / "elsewhere")
    code, said = one.run(written(fetch))
    assert code == 1
    assert "is in the way" in said
    assert not (one.root / "elsewhere").exists()


def test_two_runs_in_one_directory_do_not_write_into_each_others_files(one: Folder, server: Shelf) -> None:
    script = written(server.put("a", b"a" * 1000))
    said: list[Any] = []

    def second(path: str, start: int, data: bytes) -> bytes:
        if not said:
            said.append(None)
            said[0] = one.run(script)
        return data

    server.befalls = second
    first = one.start(script)
    first.communicate(timeout=120)
    code, words = said[0]
    assert (first.returncode, code) == (0, 1)
    assert f"another run (process {first.pid}) is at work here" in words


# --- datablocks ---------------------------------------------------------------


@pytest.mark.parametrize(("name", "mode"), [("1.tar.gz", "w:gz"), ("1.tar", "w"), ("a:b 'c'.tar.gz", "w:gz")])
def test_a_datablock_is_verified_and_its_files_are_put_under_their_names(
    folder: Folder, server: Shelf, name: str, mode: str
) -> None:
    files = {name: name.encode() * 3 for name in HOSTILE}
    script = written(
        server.put(name, packed(files, mode=mode), unpack=True),
        server.put("2.tar", packed({"second": b"2"}, mode="w"), unpack=True),
    )
    before = folder.around() | {str(folder.root / "download.sh")}
    code, said = folder.run(script)
    assert code == 0, said
    assert folder.files() == files | {"second": b"2"}
    assert folder.around() == before
    assert "no longer needed" in said
    asked = len(server.asked)
    (folder.here / PID / "second").unlink()
    assert folder.run(script)[0] == 0
    assert folder.files() == files | {"second": b"2"}
    assert len(server.asked) == asked, "from the datablock that is here"


def test_p3_a_file_in_a_datablock_that_differs_from_one_here_is_left_out(folder: Folder, server: Shelf) -> None:
    mine = folder.here / PID / "in" / "a"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    block = packed({"in/a": b"a", "in/b": b"b"})
    code, said = folder.run(written(server.put("1.tar.gz", block, unpack=True)))
    assert (code, folder.files()) == (1, {"in/a": b"mine", "in/b": b"b"})
    assert "in/a: another file of this name is here and stays" in said
    mine.unlink()
    assert folder.run(written(server.put("1.tar.gz", block, unpack=True)))[0] == 0
    assert folder.files() == {"in/a": b"a", "in/b": b"b"}


def test_nothing_of_a_datablock_with_wrong_bytes_is_unpacked(folder: Folder, server: Shelf) -> None:
    fetch = server.put("1.tar.gz", packed({"a": b"a"}), unpack=True)
    server.files["/k0"] = packed({"a": b"b"})
    fetch = Fetch(fetch.name, len(server.files["/k0"]), fetch.sha256, fetch.url, unpack=True)
    code, _ = folder.run(written(fetch))
    assert (code, folder.files()) == (1, {})
    assert not (folder.here / WORK).exists()


@pytest.mark.parametrize(
    ("files", "links"),
    [
        ({"../out": b"x", "a": b"a"}, {}),
        ({"/tmp/pwned-by-tar": b"x"}, {}),
        ({"a": b"a"}, {"l": "/etc"}),
        ({}, {"l": "../../.."}),
    ],
)
def test_a_datablock_that_would_write_elsewhere_does_not_and_is_no_success(
    folder: Folder, server: Shelf, files: dict[str, bytes], links: dict[str, str]
) -> None:
    block = packed(files, links=links)
    before = folder.around() | {str(folder.root / "download.sh")}
    code, _ = folder.run(written(server.put("1.tar.gz", block, unpack=True)))
    assert folder.around() == before
    assert not Path("/tmp/pwned-by-tar").exists()
    assert not [one for one in folder.here.rglob("*") if one.is_symlink()]
    assert not (folder.here / "out").exists()
    # GNU tar takes the leading / away and says so: such a file lies below the dataset.
    assert code == (0 if "/tmp/pwned-by-tar" in files else 1)


# --- a short script that brings the script ----------------------------------------------------------


def test_the_short_script_brings_the_script_verifies_and_runs_it(folder: Folder, server: Shelf) -> None:
    fetch = server.put("download.sh", written(server.put("a", b"a"), server.put("b", b"b")).encode())
    short = short_script(fetch.sha256, fetch.url)
    code, said = folder.run(short, "to")
    assert code == 0, said
    assert folder.files(f"to/{PID}") == {"a": b"a", "b": b"b"}
    assert not (folder.here / "to" / WORK).exists()
    assert not [*folder.here.glob(".archiver-*")]
    (folder.here / "to" / PID / "a").write_bytes(b"mine")
    assert folder.run(short, "to")[0] == 1


def test_a_script_that_is_not_as_it_was_made_is_not_run(folder: Folder, server: Shelf) -> None:
    fetch = server.put("download.sh", b"touch pwned; exit 0 ")
    code, said = folder.run(short_script(hashlib.sha256(b"another").hexdigest(), fetch.url))
    assert code == 1
    assert "the script cannot be brought" in said
    assert not (folder.here / "pwned").exists()
    assert not [*folder.here.glob(".archiver-*")]


def test_the_short_script_writes_through_no_link(folder: Folder, server: Shelf) -> None:
    fetch = server.put("download.sh", written(server.put("a", b"a")).encode())
    elsewhere = folder.root / "elsewhere"
    elsewhere.write_bytes(b"mine")
    (folder.here / f".archiver-{fetch.sha256}.sh").symlink_to(elsewhere)
    assert folder.run(short_script(fetch.sha256, fetch.url))[0] == 0
    assert elsewhere.read_bytes() == b"mine"


# --- other ways to start it ------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_is_told_and_nothing_is_brought(folder: Folder, server: Shelf, option: str) -> None:
    code, said = folder.run(written(server.put("a", b"a")), option)
    assert code == 0
    assert "sh download.sh [DIRECTORY]" in said
    assert [*folder.here.iterdir()] == []


def test_an_option_that_is_none_is_no_directory(folder: Folder, server: Shelf) -> None:
    code, said = folder.run(written(server.put("a", b"a")), "--hepl")
    assert code == 2
    assert "--hepl is no option; next: sh download.sh --help" in said
    assert [*folder.here.iterdir()] == []


def test_a_directory_whose_name_begins_with_a_dash_can_be_given(folder: Folder, server: Shelf) -> None:
    assert folder.run(written(server.put("a", b"a")), "--", "-to")[0] == 0
    assert folder.files(f"-to/{PID}") == {"a": b"a"}


def test_list_prints_each_link_for_other_programs_and_brings_nothing(folder: Folder, server: Shelf) -> None:
    one, two = server.put("a b", b"a"), server.put("1.tar.gz", packed({"in/x": b"x"}), unpack=True)
    code, said = folder.run(written(one, two), "--list")
    assert code == 0, said
    assert [line.split("\t") for line in said.splitlines()] == [
        [str(fetch.size), fetch.sha256, f"{PID}/{fetch.name}", fetch.url] for fetch in (one, two)
    ]
    assert [*folder.here.iterdir()] == []


# --- P8 and what it is made of ---------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "/a", "../a", "a//b", "a\0b", "\ud800"])
def test_a_name_that_no_file_can_have_is_in_no_script(name: str) -> None:
    with pytest.raises(HostilePath):
        written(Fetch(name, 1, "a" * 64, "http://host/x"))


@pytest.mark.parametrize(
    "url",
    [
        "http://h/canary'x",
        'http://h/canary"',
        "http://h/canary x",
        "http://h/canary\n",
        "file:///canary",
        "http://h/canary\\",
        "-canary",
    ],
)
def test_p8_a_url_that_is_none_is_refused_without_being_told(url: str) -> None:
    fetch = Fetch("a", 1, "a" * 64, url)
    with pytest.raises(ValueError, match="has a URL that is none") as error:
        written(fetch)
    assert "canary" not in f"{error.value}{fetch!r}"
    with pytest.raises(ValueError, match="has a SHA-256 that is none"):
        written(Fetch("a", 1, "a' * 64", "http://h/x"))


def test_p8_no_url_is_among_the_arguments_that_every_user_of_a_machine_sees(one: Folder, server: Shelf) -> None:
    seen: list[str] = []

    def look(path: str, start: int, data: bytes) -> bytes:
        for entry in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                if os.getsid(int(entry.parent.name)) == process.pid:
                    seen.append(entry.read_bytes().decode("utf-8", "replace"))
            except OSError:
                pass
        return data

    server.befalls = look
    process = one.start(written(server.put("a", b"a")))
    process.communicate(timeout=120)
    assert process.returncode == 0
    assert any("curl" in words for words in seen)
    assert not any("canary" in words or f":{server.port}" in words for words in seen)
