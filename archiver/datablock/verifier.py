"""The process that verifies, as the rest of the archiver sees it."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from archiver.datablock.verify import VerifyResult
from archiver.errors import IntegrityMismatch, LtsFault, OwnFault
from archiver.progress import Progress


class VerifierProcess:
    """A verifier in a process of its own, started when first needed and kept. One request at a time."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def verify(self, path: Path, manifest: bytes, *, direct_io: str, progress: Progress) -> VerifyResult:
        """Verify the datablock at ``path``; may be repeated.

        Raises ``IntegrityMismatch``, ``LtsFault``, ``OwnFault`` if the process died, and ``Stopped`` from ``progress``,
        which kills the process.
        """
        process = self._start()
        request = {"path": str(path), "manifest": base64.b64encode(manifest).decode(), "direct_io": direct_io}
        done = False
        try:
            answer = self._ask(process, request, progress)
            done = True
        finally:
            if not done:
                self.stop()
        if "result" in answer:
            return VerifyResult(**answer["result"])
        kind = {"IntegrityMismatch": IntegrityMismatch, "LtsFault": LtsFault}[answer["error"]]
        fields = {key: answer[key] for key in ("expected", "found", "next_step", "retryable")}
        raise kind(f"{answer['what']} ({path.parent.parent.name}/{path.name})", **fields)

    def stop(self) -> None:
        """End the process; the next request starts another."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    pipe.close()
            self._process = None

    def _start(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self.stop()
            command = [sys.executable, "-m", "archiver.datablock.verify"]
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        return self._process

    def _ask(self, process: subprocess.Popen[bytes], request: dict[str, Any], progress: Progress) -> dict[str, Any]:
        assert process.stdin is not None  # noqa: S101
        assert process.stdout is not None  # noqa: S101
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
        except BrokenPipeError:
            raise self._died(process) from None
        for line in process.stdout:
            message: dict[str, Any] = json.loads(line)
            if "progress" not in message:
                return message
            progress.advance(message["progress"])
        raise self._died(process)

    def _died(self, process: subprocess.Popen[bytes]) -> OwnFault:
        code = process.wait()
        return OwnFault(
            "the verifier process died",
            expected="an answer",
            found=f"signal {-code}" if code < 0 else f"exit code {code}",
            next_step="retried with a new process; see the worker's log",
        )
