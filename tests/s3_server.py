"""moto's S3 server on loopback, behind a proxy that answers 500, waits, or cuts connections when it is told to."""

import http.client
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import fsspec
import pytest

WAIT_S, HELD_S = 30, 200


@dataclass
class Faults:
    """What the proxy does to the next requests whose path contains `match`; `done` lists what it did.

    A PUT whose path contains `hold` is not passed on: it waits until it is `released`, and is then cut off.
    """

    match: str = ""
    hold: str = ""
    errors: int = 0
    cuts: int = 0
    lost_answers: int = 0
    slow_s: float = 0.0
    done: list[str] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, method: str, path: str) -> str:
        with self.lock:
            if self.hold and self.hold in path and method == "PUT":
                self.done.append("held")
                return "held"
            if not self.match or self.match not in path or method not in ("PUT", "GET"):
                return ""
            for kind in ("errors", "cuts", "lost_answers"):
                left = getattr(self, kind)
                if left and (kind == "errors" or method == "PUT"):
                    setattr(self, kind, left - 1)
                    self.done.append(kind)
                    return kind
            if self.slow_s:
                self.done.append("slow")
                return "slow"
            return ""


@contextmanager
def s3_server() -> Iterator[tuple[str, Faults]]:
    """(URL of the proxy, its faults), while the block runs."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    faults = Faults()

    class Proxy(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            kind, released = faults.take(self.command, self.path), faults.released
            length = int(self.headers.get("Content-Length") or 0)
            if kind == "cuts":  # in the middle of what is sent
                self.rfile.read(length // 2)
                self.close_connection = True
                self.connection.close()
                return
            body = self.rfile.read(length)
            if kind == "held":
                released.wait(HELD_S)
                self.close_connection = True
                self.connection.close()
                return
            if kind == "errors":
                answer = b"<Error><Code>InternalError</Code><Message>injected</Message></Error>"
                self.answer(500, [("Content-Type", "application/xml")], answer)
                return
            if kind == "slow":
                time.sleep(faults.slow_s)
            upstream = http.client.HTTPConnection(host, port, timeout=WAIT_S)
            try:
                upstream.request(self.command, self.path, body, dict(self.headers))
                response = upstream.getresponse()
                data = response.read()
                if kind == "lost_answers":  # it was stored, and the client does not learn of it
                    self.close_connection = True
                    self.connection.close()
                    return
                self.answer(response.status, response.getheaders(), data)
            finally:
                upstream.close()

        def answer(self, status: int, headers: list[tuple[str, str]], data: bytes) -> None:
            self.send_response(status)
            for name, value in headers:
                if name.lower() not in ("content-length", "transfer-encoding", "connection", "date", "server"):
                    self.send_header(name, value)
            size = next((v for n, v in headers if n.lower() == "content-length"), str(len(data)))
            self.send_header("Content-Length", size if self.command == "HEAD" else str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_any  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    proxy.daemon_threads = True
    thread = threading.Thread(target=proxy.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{proxy.server_address[1]}", faults
    finally:
        proxy.shutdown()
        proxy.server_close()
        thread.join(WAIT_S)
        server.stop()


@contextmanager
def s3_bucket(url: str, faults: Faults, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """URL of a new bucket of a server, for this process and those that it starts while the block runs."""
    for name, value in {
        "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": url, "AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": "/nonexistent",
        "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    name = f"s3://b{uuid.uuid4().hex[:12]}"
    fsspec.filesystem("s3").mkdir(name)
    faults.__init__()  # type: ignore[misc]
    try:
        yield name
    finally:
        faults.__init__()  # type: ignore[misc]
        fsspec.get_filesystem_class("s3").clear_instance_cache()
