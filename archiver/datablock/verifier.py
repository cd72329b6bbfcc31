"""The process that verifies, as the rest of the archiver sees it."""

from __future__ import annotations

import base64
import json
import os
import queue
import select
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from archiver import errors
from archiver.datablock.verify import VerifyResult
from archiver.progress import Progress

LOOK_SECONDS = 1.0
"""How often a silent process is looked away from, so that a stop is heard while the LTS hangs."""
END_SECONDS = 5.0
"""How long a killed process may take to go; one that hangs in a read of a dead LTS is left to the system."""


class VerifierProcess:
    """A verifier in a process of its own, started when first needed and kept. One request at a time, others wait."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def verify(self, path: Path, manifest: bytes, *, direct_io: str, progress: Progress) -> VerifyResult:
        """Verify the datablock at ``path``; may be repeated.

        Raises ``IntegrityMismatch``, ``LtsFault``, ``OwnFault`` if the process died, and ``Stopped`` from ``progress``,
        which kills the process.
        """
        request = {"path": str(path), "manifest": base64.b64encode(manifest).decode(), "direct_io": direct_io}
        with self._lock:
            try:
                answer = self._ask(self._start(), request, progress)
            except BaseException:
                self._end()
                raise
        if "result" in answer:
            return VerifyResult(**answer["result"])
        kind: type[errors.SystemFault] = getattr(errors, answer["error"])
        fields = {key: answer[key] for key in ("expected", "found", "next_step", "retryable")}
        raise kind(f"{answer['what']} ({path.parent.parent.name}/{path.name})", **fields)

    def stop(self) -> None:
        """End the process, after the request under way; the next request starts another."""
        with self._lock:
            self._end()

    def _start(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self._end()
            # In a session of its own: Ctrl-C is for the worker, which ends or drains what it verifies.
            command = [sys.executable, "-m", "archiver.datablock.verify"]
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, start_new_session=True
            )
        return self._process

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            pass
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()

    def _ask(self, process: subprocess.Popen[bytes], request: dict[str, Any], progress: Progress) -> dict[str, Any]:
        assert process.stdin is not None  # noqa: S101
        try:
            line = memoryview(json.dumps(request).encode() + b"\n")
            while line:
                line = line[process.stdin.write(line) :]
        except BrokenPipeError:
            raise self._died(process) from None
        for answer in self._lines(process, progress):
            message: dict[str, Any] = json.loads(answer)
            if "progress" not in message:
                return message
            progress.advance(message["progress"])
        raise self._died(process)

    def _lines(self, process: subprocess.Popen[bytes], progress: Progress) -> Iterator[bytes]:
        assert process.stdout is not None  # noqa: S101
        pipe = process.stdout.fileno()
        poll = select.poll()
        poll.register(pipe, select.POLLIN | select.POLLHUP)
        rest = b""
        while True:
            if not poll.poll(LOOK_SECONDS * 1000):
                progress.advance()
                continue
            data = os.read(pipe, 2**16)
            if not data:
                return
            *lines, rest = (rest + data).split(b"\n")
            yield from lines

    def _died(self, process: subprocess.Popen[bytes]) -> errors.OwnFault:
        code = process.wait()
        return errors.OwnFault(
            "the verifier process died",
            expected="an answer",
            found=f"signal {-code}" if code < 0 else f"exit code {code}",
            next_step="retried with a new process; see the worker's log",
        )


class Verifiers:
    """So many verifier processes, each started when first needed."""

    def __init__(self, number: int) -> None:
        self._idle: queue.SimpleQueue[VerifierProcess] = queue.SimpleQueue()
        for _ in range(number):
            self._idle.put(VerifierProcess())

    @contextmanager
    def one(self) -> Iterator[VerifierProcess]:
        """A verifier process, for as long as the context lasts."""
        verifier = self._idle.get()
        try:
            yield verifier
        finally:
            self._idle.put(verifier)

    def close(self) -> None:
        """End those that are idle."""
        while not self._idle.empty():
            self._idle.get().stop()
