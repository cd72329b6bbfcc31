"""A proxy in front of an S3 server that does wrong on request."""

from __future__ import annotations

import http.client
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

from pydantic import AnyHttpUrl

from archiver.settings import S3Settings

ERROR = b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>%s</Code><Message>not now</Message></Error>'


@dataclass(frozen=True)
class Asked:
    """One request."""

    method: str
    path: str
    range: str

    @property
    def uploads_part(self) -> bool:
        return self.method == "PUT" and "partNumber=" in self.path

    @property
    def completes(self) -> bool:
        return self.method == "POST" and "uploadId=" in self.path


class WrongS3:
    """``spoil`` names what is to be done wrong, for the requests that ``where`` picks; ``times`` of them."""

    def __init__(self, s3: S3Settings) -> None:
        upstream = urlsplit(str(s3.endpoint))
        self.spoil, self.times, self.done = "", 0, 0
        self.released = threading.Event()
        """What hangs does so until this is set."""
        self.where: Callable[[Asked], bool] = lambda asked: True
        lock = threading.Lock()
        wrong = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self) -> None:
                try:
                    super().handle_one_request()
                except ConnectionError:
                    self.close_connection = True

            def log_message(self, format: str, *args: object) -> None:
                pass

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                with lock:
                    hit = wrong.done < wrong.times and wrong.where(
                        Asked(self.command, self.path, self.headers.get("Range") or "")
                    )
                    wrong.done += hit
                spoil = wrong.spoil if hit else ""
                if spoil == "hang":
                    wrong.released.wait(120)
                if spoil in ("reset", "hang"):
                    return self.reset()
                if spoil == "503":
                    return self.send(503, [], ERROR % b"SlowDown")
                if spoil == "200 with an error":
                    return self.send(200, [("Content-Type", "application/xml")], ERROR % b"InternalError")
                if spoil == "200 with HTML":
                    return self.send(200, [("Content-Type", "text/html")], b"<html><p>Please log in<br></html>")
                if spoil == "lost":
                    return self.send(200, [("ETag", '"0123456789abcdef0123456789abcdef"')], b"")
                if spoil == "flip what is sent":
                    body = flip(body)
                status, headers, data = self.forward(body)
                if spoil == "do it and drop":
                    return self.reset()
                if spoil == "flip":
                    data = flip(data)
                length = len(data) // 2 if spoil == "short" else len(data)
                self.send(status, headers, data[: len(data) // 2] if spoil in ("cut", "short") else data, length)
                if spoil == "cut":
                    self.reset()

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = answer

            def forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
                connection = http.client.HTTPConnection(upstream.hostname or "", upstream.port, timeout=60)
                connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
                for name, value in self.headers.items():
                    if name.lower() not in ("connection", "expect"):
                        connection.putheader(name, value)
                connection.endheaders(body)
                answer = connection.getresponse()
                data = answer.read()
                skipped = ("content-length", "transfer-encoding", "connection")
                headers = [(name, value) for name, value in answer.getheaders() if name.lower() not in skipped]
                if self.command == "HEAD":
                    headers.append(("Content-Length", answer.headers.get("Content-Length", "0")))
                connection.close()
                return answer.status, headers, data

            def send(self, status: int, headers: list[tuple[str, str]], data: bytes, length: int | None = None) -> None:
                self.send_response_only(status)
                for name, value in headers:
                    self.send_header(name, value)
                if self.command != "HEAD":
                    self.send_header("Content-Length", str(len(data) if length is None else length))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)

            def reset(self) -> None:
                self.wfile.flush()
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
                self.close_connection = True
                raise ConnectionAbortedError

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        port = self._server.server_address[1]
        self.s3 = s3.model_copy(update={"endpoint": AnyHttpUrl(f"http://127.0.0.1:{port}")})

    def do(self, spoil: str, where: Callable[[Asked], bool] = lambda asked: True, times: int = 10**9) -> None:
        """Do this wrong from now on."""
        self.spoil, self.where, self.times, self.done = spoil, where, times, 0

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def flip(data: bytes) -> bytes:
    """One bit, in the middle."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :] if data else data
