"""A server that speaks S3 on loopback: moto's, behind a gate where tests refuse requests and lose answers."""

from __future__ import annotations

import logging
import os
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from substyle.pipelines.storage import bucket

BUCKET = "photographs"
KEY, SECRET = "PLANTEDKEYID000000", "PLANTED+secret/0123456789abcdef"


@dataclass
class Fault:
    """What happens to some requests.

    Attributes:
        method, path: regular expressions that fit the requests.
        times: how many of them; all for -1.
        status: what is answered; 0 does what is asked and then answers 500, as a connection that broke too late.
        after: so many of them pass first.
    """

    method: str
    path: str
    times: int = -1
    status: int = 500
    after: int = 0
    seen: int = 0


class Server:
    """The server; its bucket is `BUCKET`."""

    def __init__(self) -> None:
        from moto.server import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import make_server

        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._app: Callable[..., Iterable[bytes]] = DomainDispatcherApplication(create_backend_app)
        self._gate = threading.Lock()
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str]] = []
        self.sent: Counter[str] = Counter()  # bytes by path
        self.conditional = True  # whether conditions of writes are kept
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self._request("PUT", f"/{BUCKET}")

    def environment(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
        }

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @contextmanager
    def failing(self, *faults: Fault) -> Iterator[list[Fault]]:
        self.faults = list(faults)
        try:
            yield self.faults
        finally:
            self.faults = []

    def _answer(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        # one request at a time: moto looks and writes in two steps, which a real server makes one
        with self._gate:
            self.requests.append((method, path))
            fault = next((f for f in self.faults if self._meets(f, method, path)), None)
            if fault is not None and fault.status:
                environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
                return _refuse(start, fault.status)
            if not self.conditional:
                environ.pop("HTTP_IF_NONE_MATCH", None)
                environ.pop("HTTP_IF_MATCH", None)
            done = self._app(environ, start if fault is None else lambda *_: lambda _: None)
            body = b"".join(done)
            self.sent[path] += len(body)
            return [body] if fault is None else _refuse(start, 500)

    @staticmethod
    def _meets(fault: Fault, method: str, path: str) -> bool:
        if not (re.fullmatch(fault.method, method) and re.search(fault.path, path)):
            return False
        fault.seen += 1
        return fault.seen > fault.after and (fault.times < 0 or fault.seen <= fault.after + fault.times)

    def _request(self, method: str, path: str) -> None:
        from urllib.request import Request, urlopen

        urlopen(Request(self.url + path, method=method)).close()


def _refuse(start: Callable[..., Any], status: int) -> list[bytes]:
    # as S3 answers: with the key that was used, which must not be told further
    body = f"<Error><Code>Refused{KEY[:0]}</Code><AWSAccessKeyId>{KEY}</AWSAccessKeyId></Error>".encode()
    start(f"{status} Refused", [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
    return [body]


@contextmanager
def served() -> Iterator[Server]:
    """A server that this process uses for the block, with retries that do not wait long."""
    server = Server()
    before = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith(("AWS_", "AZURE_", "GOOGLE_"))}
    retries = bucket.RETRIES
    bucket.RETRIES = {
        "max_retries": 2,
        "retry_timeout": timedelta(seconds=20),
        "backoff": {"init_backoff": timedelta(milliseconds=1), "max_backoff": timedelta(milliseconds=5), "base": 2},
    }
    os.environ.update(server.environment())
    try:
        yield server
    finally:
        for name in server.environment():
            del os.environ[name]
        os.environ.update(before)
        bucket.RETRIES = retries
        server.stop()
