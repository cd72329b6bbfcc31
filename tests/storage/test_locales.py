"""Names are UTF-8 bytes whatever the locale says; a process of ours is not even started with another encoding."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.needs import need

PLAIN = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
NAMES = ("Müller/π.dat", "日本/é.txt", "e\u0301", "ascii")

ROUND_TRIP = """
import hashlib, json, sys
from pathlib import Path
from archiver.datablock.files import PlannedFile
from archiver.datablock.manifest import ManifestFile
from archiver.progress import Silent
from archiver.settings import LandingSettings, RetrievalSettings, S3Settings
from archiver.storage.landing import open_landing
from archiver.storage.retrieval_directory import RetrievalDirectory, mark

base, names = sys.argv[1], json.loads(sys.stdin.read())
assert sys.getfilesystemencoding() != "utf-8", "NOT RUN: this process has UTF-8"
fields = {"pid": "p/x", "source_folder": "/" + names[0].split("/")[0]}
landing = open_landing(LandingSettings(url_template="file://" + base + "/data{source_folder}/"), S3Settings(), fields)
files = [PlannedFile(file.path, file.size, "", file.version) for file in landing.list()]
assert sorted(file.path for file in files) == sorted(names), [ascii(file.path) for file in files]
read = {file.path: b"".join(map(bytes, chunks)) for file, chunks in landing.fetch(files, ahead_bytes=1, ahead_objects=1)}
mark(Path(base, "back"), dry_run=False)
back = RetrievalDirectory(base + "/back", names[0].split("/")[0], RetrievalSettings(roots=(base + "/back",)))
archived = [ManifestFile(file.path, file.size, hashlib.sha256(read[file.path]).hexdigest(), "", 0, 0) for file in files]
with back.sink("p/x", "all", "1", Silent(), piece="1") as sink:
    for file in archived:
        assert sink.begin(file)
        sink.data(memoryview(read[file.path]))
        sink.commit()
assert [one.size for one in back.delivered("p/x", archived)] == [file.size for file in archived]
assert landing.delete([(file, one.sha256) for file, one in zip(files, archived)], Silent()) == len(files)
print("held")
"""


@pytest.fixture(scope="session")
def latin1(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A locale in which names are Latin-1, made here: systems rarely have one."""
    need("localedef")
    folder = tmp_path_factory.mktemp("locales")
    made = subprocess.run(
        ["localedef", "-f", "ISO-8859-1", "-i", "de_DE", str(folder / "de_DE.ISO-8859-1")],
        capture_output=True,
        text=True,
    )
    assert (folder / "de_DE.ISO-8859-1").is_dir(), f"NOT RUN: localedef: {made.stderr}"
    return {"LOCPATH": str(folder), "LC_ALL": "de_DE.ISO-8859-1", **PLAIN}


@pytest.fixture(params=["C", "latin1"])
def locale(request: pytest.FixtureRequest) -> Mapping[str, str]:
    if request.param == "C":
        return {"LC_ALL": "C", **PLAIN}
    found: dict[str, str] = request.getfixturevalue("latin1")
    return found


def python(locale: Mapping[str, str], *arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("LC_", "LANG", "PYTHON"))}
    return subprocess.run(
        [sys.executable, *arguments], env={**environment, **locale}, input=given, capture_output=True, text=True
    )


def test_names_are_the_same_bytes_in_landing_zone_and_retrieval_directory(
    tmp_path: Path, locale: Mapping[str, str]
) -> None:
    source = tmp_path / "data" / "Müller"
    names = [f"Müller/{name}" for name in NAMES]
    for name in names:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(name.encode())
    (tmp_path / "back").mkdir()
    done = python(locale, "-c", ROUND_TRIP, str(tmp_path), given=json.dumps(names))
    assert (done.returncode, done.stdout) == (0, "held\n"), done.stderr[-2000:]
    back = tmp_path / "back" / "Müller" / "p" / "x"
    found = {path.relative_to(back).as_posix(): path.read_bytes() for path in back.rglob("*") if path.is_file()}
    assert found == {name: name.encode() for name in names}
    assert [path for path in source.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    "program",
    [["-m", "cli.main", "config", "check"], ["worker.py"], ["-m", "cli.main", "bridge"], ["-m", "cli.main", "dev"]],
)
def test_no_process_of_ours_starts_with_another_encoding(locale: Mapping[str, str], program: list[str]) -> None:
    done = python(locale, *program)
    assert done.returncode == 2, done.stderr
    said = done.stdout + done.stderr
    for words in ("another encoding than UTF-8", "expected ", "found ", "LC_ALL=C.UTF-8"):
        assert words in said


def test_a_c_locale_that_python_makes_utf_8_is_none_of_these(locale: Mapping[str, str]) -> None:
    done = python({**locale, "PYTHONUTF8": "1"}, "-m", "cli.main", "config", "check")
    assert "another encoding" not in done.stdout + done.stderr
