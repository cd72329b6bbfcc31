"""An HTTP proxy before the S3 server that lets faults befall the requests which match: the network and a server gone bad.

It passes the ``Host`` header on as it came, so signatures hold.
"""

from __future__ import annotations

import re
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import formatdate
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

EVER = 10**9


@dataclass
class S3Fault:
    """What befalls the next ``times`` requests of this method whose unquoted path and query match ``pattern``."""

    method: str
    pattern: str
    times: int = 1
    skip: int = 0
    """Matching requests that pass first."""
    status: int = 0
    """Answered instead, with an error body of S3's shape that says ``message``."""
    message: str = "no"
    reset: bool = False
    """The connection is reset in the middle of the answer (of a GET) or instead of it."""
    flip: bool = False
    """One bit of the body is another; its length and all headers are as they were."""
    late: float = 0
    """The answer's Date is so many seconds ahead."""
    before: Callable[[], None] | None = None
    """Called before the request is passed on; ``at`` too, with its unquoted path."""
    at: Callable[[str], None] | None = None
    befell: int = 0


class FaultyS3:
    """The proxy: ``faults`` may be added at any time, those that are used up are dropped."""

    def __init__(self, upstream: str) -> None:
        self.faults: list[S3Fault] = []
        self._lock = threading.Lock()
        parts = urlsplit(upstream)
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _pass(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                fault = proxy._fault(self.command, unquote(self.path))
                if fault is not None and fault.before is not None:
                    fault.before()
                if fault is not None and fault.at is not None:
                    fault.at(unquote(self.path))
                if fault is not None and fault.status:
                    data = f"<Error><Code>Fault</Code><Message>{fault.message}</Message></Error>".encode()
                    self._answer(fault.status, [("Content-Type", "application/xml")], data)
                    return
                if fault is not None and fault.reset and self.command != "GET":
                    self._reset()
                    return
                connection = HTTPConnection(parts.hostname or "", parts.port, timeout=60)
                try:
                    headers = {name: value for name, value in self.headers.items() if name.lower() != "expect"}
                    connection.request(self.command, self.path, body, headers)
                    answer = connection.getresponse()
                    data = answer.read()
                finally:
                    connection.close()
                if fault is not None and fault.flip and data:
                    data = data[:-1] + bytes([data[-1] ^ 1])
                if fault is not None and fault.reset:
                    self._answer(answer.status, answer.getheaders(), data, send=len(data) // 2)
                    self._reset()
                    return
                headers = answer.getheaders()
                if fault is not None and fault.late:
                    headers = [(name, value) for name, value in headers if name.lower() != "date"]
                    headers.append(("Date", formatdate(time.time() + fault.late, usegmt=True)))
                self._answer(answer.status, headers, data)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = do_PATCH = _pass

            def _answer(
                self, status: int, headers: list[tuple[str, str]], data: bytes, *, send: int | None = None
            ) -> None:
                self.send_response_only(status)
                length = None
                for name, value in headers:
                    if name.lower() == "content-length":
                        length = value
                    elif name.lower() not in ("transfer-encoding", "connection"):
                        self.send_header(name, value)
                self.send_header("Content-Length", length if self.command == "HEAD" and length else str(len(data)))
                self.end_headers()
                self.wfile.write(data[:send])
                self.wfile.flush()

            def _reset(self) -> None:
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
                self.close_connection = True

            def log_message(self, format: str, *args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 64

            def handle_error(self, request: object, client_address: object) -> None:
                """A client that went away, or one that was reset."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=[0.05], name="faulty-s3", daemon=True)

    def _fault(self, method: str, path: str) -> S3Fault | None:
        with self._lock:
            for fault in self.faults:
                if fault.method != method or not re.search(fault.pattern, path):
                    continue
                if fault.skip:
                    fault.skip -= 1
                    continue
                fault.befell += 1
                fault.times -= 1
                if fault.times <= 0:
                    self.faults.remove(fault)
                return fault
        return None

    def start(self) -> FaultyS3:
        """Serve."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """Serve no more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)
