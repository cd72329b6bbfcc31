"""``archiver demo``, as a newcomer runs it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.cli.running import archiver


def test_demo_archives_proves_and_says_so_without_a_terminal(tmp_path: Path) -> None:
    done = archiver(
        "demo",
        "--data-dir",
        tmp_path / "kept",
        "--megabytes",
        "24",
        cwd=tmp_path,
        TEMPORAL_ADDRESS="127.0.0.1:1",
        ARCHIVER_LTS__ROOT="/nowhere",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    for said in (
        r"dataset  20\.500\.12345/\S+   \d{3} files, ",
        r"pack     1/\d  [\d.]+ MiB",
        r"copy     1/\d  [\d.]+ [KM]iB",
        r"verify   1/\d  [\d.]+ [KM]iB",
        r"scicat   [2-9] datablocks registered, datasetOnArchiveDisk, job finishedSuccessful",
        r"proof    \$ sha256sum -c manifest-sha256.txt   -> \d+ OK",
        r"\$ tar -xzf data/N.tar.gz; diff -r source unpacked   -> identical",
        r"left in staging: 0 objects",
        r"\d+ MB/s",
        r"again    same dataset once more: 1 dataset: 1 archived before",
        r"result   everything held",
    ):
        assert re.search(said, done.stdout), said
    assert "DOES NOT HOLD" not in done.stdout
    assert list((tmp_path / "kept").rglob("bagit.txt"))
    assert not (tmp_path / "kept" / "dev" / "dev.json").exists()


def test_a_demo_whose_webhook_is_lost_is_taken_up_by_the_sweep(tmp_path: Path) -> None:
    done = archiver("demo", "--megabytes", "2", "--lose-webhook", cwd=tmp_path, TMPDIR=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"webhook  lost on purpose: the archiver was not told of job \S+; its sweep", done.stdout)
    assert re.search(r"job      archive \S+   no webhook -> found by the sweep after [\d.]+ s", done.stdout)
    assert "result   everything held" in done.stdout
    assert "DOES NOT HOLD" not in done.stdout


@pytest.fixture
def broken(tmp_path: Path) -> str:
    """An S3 server that tells its version and then does not start."""
    path = tmp_path / "versitygw"
    path.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Version  : v1.8.0" && exit 0\nexit 1\n')
    path.chmod(0o755)
    return str(path)


def test_a_demo_that_cannot_start_says_why_and_is_no_success(tmp_path: Path, broken: str) -> None:
    done = archiver("demo", cwd=tmp_path, ARCHIVER_VERSITYGW_BIN=broken)
    assert done.returncode not in (0, 3)
    assert done.stderr.startswith("error    S3 server did not start")
    assert "Traceback" not in done.stderr


def test_a_demo_with_a_server_that_is_none_says_so(tmp_path: Path) -> None:
    done = archiver("demo", cwd=tmp_path, ARCHIVER_VERSITYGW_BIN="/bin/false")
    assert done.returncode == 2
    assert done.stderr.startswith("error    ARCHIVER_VERSITYGW_BIN names no versitygw that will do")
    assert "found    /" in done.stderr


def test_a_demo_leaves_no_directory_behind(tmp_path: Path, broken: str) -> None:
    done = archiver("demo", cwd=tmp_path, ARCHIVER_VERSITYGW_BIN=broken, TMPDIR=str(tmp_path))
    assert done.returncode != 0
    assert not list(tmp_path.glob("archiver-demo-*"))
    assert json.loads(archiver("--json", "demo", cwd=tmp_path, ARCHIVER_VERSITYGW_BIN=broken).stdout)["error"]
