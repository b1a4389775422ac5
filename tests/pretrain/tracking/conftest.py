"""A real MLflow server and a proxy before it that fails in the ways servers and networks fail."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests

SERVER_START_SECONDS = 90


class Proxy:
    """Forwards to `target`. The faults below can be set at any time, from any thread."""

    def __init__(self, target: str) -> None:
        self.target = target
        self.errors_left = 0
        """So many requests are answered 500 and go no further."""
        self.lost_replies: list[str] = []
        """One request whose path ends with an entry is carried out, and its reply is lost."""
        self.gate = threading.Event()
        """Cleared: requests wait at the proxy (a server that is slow)."""
        self.gate.set()
        self.requests: Counter[str] = Counter()
        """Requests that came, by the end of their path."""
        self.delivered: list[tuple[str, int]] = []
        """(metric, step) of each value that went through to the server."""
        self._changed = threading.Condition()
        self._server: ThreadingHTTPServer | None = None
        self.port = free_port()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def up(self) -> None:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            def do_any(self) -> None:
                proxy.handle(self)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_any  # noqa: N815

            def log_message(self, format: str, *args: object) -> None:
                """Quiet."""

        ThreadingHTTPServer.allow_reuse_address = True
        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def down(self) -> None:
        """Connections are refused from now on."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        name = "/".join(request.path.split("?")[0].split("/")[-2:])
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        with self._changed:
            self.requests[name] += 1
            self._changed.notify_all()
        self.gate.wait(60)
        if self.errors_left > 0:
            self.errors_left -= 1
            request.send_error(500)
            return
        headers = {k: v for k, v in request.headers.items() if k.lower() not in ("host", "connection")}
        answer = requests.request(
            request.command, self.target + request.path, data=body, headers=headers, timeout=60
        )
        if answer.ok and name == "runs/log-batch":
            with self._changed:
                self.delivered += [(m["key"], int(m["step"])) for m in json.loads(body).get("metrics", [])]
                self._changed.notify_all()
        if name in self.lost_replies:
            self.lost_replies.remove(name)
            request.close_connection = True
            return
        request.send_response(answer.status_code)
        request.send_header("Content-Type", answer.headers.get("Content-Type", "application/json"))
        request.send_header("Content-Length", str(len(answer.content)))
        request.end_headers()
        request.wfile.write(answer.content)

    def wait_for(self, condition: Callable[[Proxy], bool], timeout: float = 30) -> None:
        """Block until the requests seen so far fulfil `condition`."""
        with self._changed:
            assert self._changed.wait_for(lambda: condition(self), timeout), "the requests did not come"


class Server:
    """What the tests ask a store about runs, past the proxy."""

    def __init__(self, uri: str) -> None:
        from mlflow import MlflowClient

        self.uri = uri
        self.client = MlflowClient(tracking_uri=uri)

    def runs(self, experiment: str) -> list[Any]:
        known = self.client.get_experiment_by_name(experiment)
        return list(self.client.search_runs([known.experiment_id])) if known else []

    def only_run(self, experiment: str) -> Any:
        (run,) = self.runs(experiment)
        return run

    def steps(self, run_id: str, metric: str) -> list[int]:
        return [m.step for m in self.client.get_metric_history(run_id, metric)]

    def history(self, run_id: str) -> dict[tuple[str, int], list[float]]:
        """Every value of every training metric on the server, by (metric, step)."""
        found: dict[tuple[str, int], list[float]] = {}
        for name in self.client.get_run(run_id).data.metrics:
            if not name.startswith("system/"):
                for metric in self.client.get_metric_history(run_id, name):
                    found.setdefault((name, metric.step), []).append(metric.value)
        return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One MLflow server on this machine, shared: every test has an experiment of its own."""
    folder = tmp_path_factory.mktemp("mlflow-server")
    port = free_port()
    log = (folder / "log").open("w")
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)),
            *("--workers", "1", "--backend-store-uri", f"sqlite:///{folder / 'server.db'}"),
            *("--artifacts-destination", str(folder / "artifacts")),
        ],
        stdout=log,
        stderr=subprocess.STDOUT,
        env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"},
    )
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + SERVER_START_SECONDS
        while not answers(url):
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.1)
        yield Server(url)
    finally:
        process.terminate()
        process.wait(30)
        log.close()


def answers(url: str) -> bool:
    try:
        return requests.get(f"{url}/health", timeout=5).ok
    except requests.ConnectionError:
        return False


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    """A fresh proxy before the server; up."""
    proxy = Proxy(server.uri)
    proxy.up()
    yield proxy
    proxy.gate.set()
    proxy.down()


class Outages(logging.Handler):
    """What the uploader says of the server, to wait for and to count."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[str] = []
        self._changed = threading.Condition()

    def emit(self, record: logging.LogRecord) -> None:
        with self._changed:
            self.told.append(record.getMessage())
            self._changed.notify_all()

    def count(self, text: str) -> int:
        return sum(text in message for message in self.told)

    def wait_for(self, text: str, number: int) -> None:
        with self._changed:
            told = self._changed.wait_for(lambda: self.count(text) >= number, 60)
            assert told, f"not told {number} times: {text}"


@pytest.fixture
def outages() -> Iterator[Outages]:
    handler = Outages()
    logging.getLogger("pretrain.tracking").addHandler(handler)
    yield handler
    logging.getLogger("pretrain.tracking").removeHandler(handler)


@pytest.fixture
def local() -> type[Server]:
    """Opens any tracking URI for questions."""
    return Server


@pytest.fixture(autouse=True)
def no_store_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """A developer's own MLflow server is not for tests."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "run"
    folder.mkdir(parents=True)
    return folder
