"""Where a container's filter refuses ``openat2``: the same files, and still not a byte from outside."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest

FILTER = """
import ctypes, platform, struct, sys
number, answer = 437, int(sys.argv[1])
# if the call is openat2: an error, else: allowed (seccomp(2); a filter of containers in four instructions)
code = [(0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, 0x00050000 | answer), (0x06, 0, 0, 0x7FFF0000)]
steps = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in code))
class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("steps", ctypes.c_void_p)]
program = Program(len(code), ctypes.addressof(steps))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, ctypes.byref(program), 0, 0) == 0, ctypes.get_errno()
"""
"""What refuses ``openat2`` to a process and its children, with the errno of the first argument, as filters of containers do."""

HOLDS = """
import os
from archiver.datablock.files import PlannedFile
from archiver.errors import HostilePath, SourceChanged
from archiver.progress import Silent
from archiver.settings import LandingSettings, S3Settings
from archiver.storage import directory
from archiver.storage.landing import open_landing
import hashlib

assert not directory.has_openat2()
base = sys.argv[2]

def landing(pid):
    return open_landing(LandingSettings(url_template=f"file://{base}/{{pid}}"), S3Settings(), {"pid": pid})

def planned(pid):
    return [PlannedFile(file.path, file.size, "", file.version) for file in landing(pid).list()]

def read(pid, files):
    parts = landing(pid).fetch(files, ahead_bytes=1, ahead_objects=1)
    return {file.path: b"".join(map(bytes, chunks)) for file, chunks in parts}

files = planned("p/x")
assert read("p/x", files) == {"a": b"1", "d/e/f": b"22"}, files
for pid in ("p/link", "link/x"):
    try:
        planned(pid)
        raise SystemExit(f"{pid} was followed")
    except HostilePath as error:
        assert "symbolic link" in error.what
assert planned("p/none") == []
os.rename(f"{base}/p/x/d", f"{base}/moved")
for target in (f"{base}/moved", f"../../moved", "."):
    os.symlink(target, f"{base}/p/x/d")
    try:
        read("p/x", files[1:])
        raise SystemExit(f"{target} was followed")
    except SourceChanged:
        os.unlink(f"{base}/p/x/d")
os.rename(f"{base}/moved", f"{base}/p/x/d")
for path in ("../y", "d/../../y", "/etc/passwd"):
    root = os.open(f"{base}/p/x", os.O_RDONLY)
    try:
        directory.open_beneath(root, path.encode(), os.O_RDONLY)
        raise SystemExit(f"{path} was opened")
    except OSError as error:
        assert error.errno == 18, error
data = {"a": b"1", "d/e/f": b"22"}
assert landing("p/x").delete([(file, hashlib.sha256(data[file.path]).hexdigest()) for file in files], Silent()) == 2
print("held")
"""


@pytest.mark.parametrize("answer", [errno.EPERM, errno.ENOSYS])
def test_a_directory_is_archived_from_where_openat2_is_refused(tmp_path: Path, answer: int) -> None:
    (tmp_path / "p" / "x" / "d" / "e").mkdir(parents=True)
    (tmp_path / "p" / "x" / "a").write_bytes(b"1")
    (tmp_path / "p" / "x" / "d" / "e" / "f").write_bytes(b"22")
    (tmp_path / "p" / "y").write_bytes(b"outside")
    (tmp_path / "p" / "link").symlink_to("x")
    (tmp_path / "link").symlink_to("p")
    done = subprocess.run(
        [sys.executable, "-c", FILTER + HOLDS, str(answer), str(tmp_path)], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "held\n"), done.stderr[-2000:]
