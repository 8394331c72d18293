"""Shards and images behind a real HTTP server that fails now and then, or for good."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from sample_files import encoded, write_shards

from clipkit.config.schema import SourceConfig
from clipkit.data import SampleError, files, open_source
from clipkit.errors import DataError


class Server:
    """Serves a folder, with ranges; ``failures`` answers in a row are ``status`` first."""

    def __init__(self, folder: Path) -> None:
        outer = self
        self.failures, self.status, self.asked = 0, 503, Counter[str]()

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.do_GET(body=False)

            def do_GET(self, body: bool = True) -> None:
                outer.asked[self.path] += 1
                if outer.failures > 0:
                    outer.failures -= 1
                    self.send_error(outer.status)
                    return
                path = folder / self.path.lstrip("/")
                if not path.is_file():
                    self.send_error(404)
                    return
                data = path.read_bytes()
                first, last = 0, len(data) - 1
                if asked := self.headers.get("Range"):
                    begin, _, end = asked.removeprefix("bytes=").partition("-")
                    first, last = int(begin), min(last, int(end)) if end else last
                    self.send_response(206)
                    self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
                else:
                    self.send_response(200)
                self.send_header("Content-Length", str(last + 1 - first))
                self.send_header("Accept-Ranges", "bytes")
                self.end_headers()
                if body:
                    self.wfile.write(data[first : last + 1])

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(files, "RETRY_WAITS", [0.01, 0.01, 0.01])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    running = Server(tmp_path)
    yield running
    running.close()


def test_a_shard_behind_http_is_the_shard(tmp_path: Path, server: Server) -> None:
    local = open_source(SourceConfig(path=write_shards(tmp_path, [4])), progress=False)
    remote = open_source(SourceConfig(path=f"{server.url}/train-000.tar"), progress=False)
    assert [remote[i].image for i in range(4)] == [local[i].image for i in range(4)]
    # The index is kept: opening it again asks for its size, and reads nothing.
    server.asked.clear()
    open_source(SourceConfig(path=f"{server.url}/train-000.tar"), progress=False)
    assert server.asked["/train-000.tar"] <= 4


def test_a_passing_fault_is_waited_out(tmp_path: Path, server: Server) -> None:
    write_shards(tmp_path, [4])
    reader = open_source(SourceConfig(path=f"{server.url}/train-000.tar"), progress=False)
    image = reader[2].image
    server.failures = 3
    assert reader[2].image == image
    assert server.failures == 0


def test_a_lasting_fault_ends_in_a_line_that_says_how_often_it_was_tried(
    tmp_path: Path, server: Server
) -> None:
    write_shards(tmp_path, [4])
    reader = open_source(SourceConfig(path=f"{server.url}/train-000.tar"), progress=False)
    server.failures = 1000
    with pytest.raises(DataError, match=r"train-000\.tar: cannot be read .*after 4 attempts"):
        reader[2]
    server.status, before = 403, server.asked["/train-000.tar"]
    with pytest.raises(DataError, match=r"train-000\.tar: cannot be read"):
        reader[2]
    assert server.asked["/train-000.tar"] == before + 1  # a refusal is not asked again


def test_a_dead_link_costs_its_sample_alone(tmp_path: Path, server: Server) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded())
    rows = [{"url": f"{server.url}/{name}.jpg", "caption": name} for name in ("a", "gone")]
    table = tmp_path / "pairs.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    reader = open_source(SourceConfig(path=str(table)), progress=False)
    assert reader[0].image == encoded()
    with pytest.raises(SampleError, match="missing image file"):
        reader[1]
    server.failures, server.status = 2, 403
    with pytest.raises(SampleError, match=r"(missing|unreadable) image file"):
        reader[0]
