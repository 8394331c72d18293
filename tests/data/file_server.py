"""A folder behind HTTP, with faults and delays where a test wants them."""

from __future__ import annotations

import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Server:
    """Serves a folder, with ranges; ``failures`` answers in a row are ``status`` first.

    Attributes:
        url: of the folder.
        failures: answers that are errors from now on.
        status: of these.
        delay: seconds before each answer.
        asked: requests by path.
        sent: bytes by path.
        most: requests that were open at a time, at most.
    """

    def __init__(self, folder: Path) -> None:
        outer = self
        self.failures, self.status, self.delay = 0, 503, 0.0
        self.asked, self.sent = Counter[str](), Counter[str]()
        self.open = self.most = 0
        lock = threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.do_GET(body=False)

            def do_GET(self, body: bool = True) -> None:
                outer.asked[self.path] += 1
                with lock:
                    outer.open += 1
                    outer.most = max(outer.most, outer.open)
                time.sleep(outer.delay)
                with lock:
                    outer.open -= 1
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
                self.send_header("ETag", f'"{path.stat().st_mtime_ns}"')
                self.end_headers()
                if body:
                    outer.sent[self.path] += last + 1 - first
                    self.wfile.write(data[first : last + 1])

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
