"""An HTTP server of files as an S3 server gives them: with ranges, and with what may befall a transfer."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from archiver.retrieval.script import Fetch


class Shelf:
    """Files by the path of their URL; ``befalls(path, start, data)`` may answer otherwise: a status, or other bytes."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.files: dict[str, bytes] = {}
        self.asked: list[tuple[str, int]] = []
        """Path and first byte of each request."""
        self.ranges = True
        self.befalls: Callable[[str, int, bytes], int | bytes] = lambda path, start, data: data
        """Fewer bytes than announced: the line breaks there."""

    def put(self, name: str, data: bytes, *, unpack: bool = False, sha256: str | None = None) -> Fetch:
        """A file and how to fetch it."""
        path = f"/k{len(self.files)}"
        self.files[path] = data
        url = f"http://127.0.0.1:{self.port}{path}?X-Amz-Signature=canary%2Bsignature&a=[1]"
        return Fetch(name, len(data), sha256 or hashlib.sha256(data).hexdigest(), url, unpack)


@contextmanager
def shelf() -> Iterator[Shelf]:
    """A server of one's own."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.close_connection = True
            path = self.path.split("?")[0]
            assert "X-Amz-Signature=canary%2Bsignature" in self.path
            asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("range", "")) if found.ranges else None
            start = int(asked[1]) if asked else 0
            found.asked.append((path, start))
            if path not in found.files:
                return self.say(404)
            data = found.files[path][start:]
            if asked and not data:
                return self.say(416)
            answer = found.befalls(path, start, data)
            if isinstance(answer, int):
                return self.say(answer)
            self.send_response(206 if asked else 200)
            self.send_header("Content-Length", str(len(data)))
            if asked:
                size = len(found.files[path])
                self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
            self.end_headers()
            self.wfile.write(answer)
            return None

        def say(self, status: int) -> None:
            text = b"<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>"
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found = Shelf(server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
