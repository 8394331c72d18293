"""The server from outside: its answers, its description, and what it refuses."""

from __future__ import annotations

import http.client
import json
import os
import socket
import threading
import time
import urllib.parse
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from serve_process import ROWS, rss_anon, serving
from tiny_model import noise_image, png_bytes

import clipkit


class Client:
    """One request a connection; nothing is repeated or followed."""

    def __init__(self, url: str) -> None:
        parts = urllib.parse.urlsplit(url)
        assert parts.hostname is not None
        assert parts.port is not None
        self.host, self.port = parts.hostname, parts.port

    def ask(
        self,
        path: str,
        *,
        method: str = "GET",
        body: Any = None,
        headers: dict[str, str] | None = None,
        chunked: bool = False,
    ) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=40)
        try:
            connection.request(method, path, body, headers or {}, encode_chunked=chunked)
            answer = connection.getresponse()
            return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def json(self, path: str, **options: Any) -> tuple[int, Any]:
        status, _, body = self.ask(path, **options)
        return status, json.loads(body)


@pytest.fixture(scope="module")
def client(server):
    return Client(server[0])


def quoted(**parameters: Any) -> str:
    return "/api/search?" + urllib.parse.urlencode(parameters, doseq=True)


def test_text_search_gives_what_python_gives(client, store):
    status, answer = client.json(quoted(text="red number 7", k=5))
    assert status == 200
    result = clipkit.EmbeddingStore(store).index().search("red number 7", k=5)
    assert [hit["row"] for hit in answer["hits"]] == list(result.rows)
    np.testing.assert_allclose([hit["score"] for hit in answer["hits"]], result.scores, atol=1e-3)


def test_an_image_of_the_store_finds_itself(client):
    status, answer = client.json("/api/search?k=1", method="POST", body=png_bytes(noise_image(11)))
    assert status == 200
    assert answer["hits"][0]["caption"] == "green number 11"
    assert answer["hits"][0]["score"] > 0.999


def test_more_like_a_row_leaves_it_out(client):
    status, answer = client.json(quoted(like=3, k=ROWS))
    assert status == 200
    assert sorted(hit["row"] for hit in answer["hits"]) == [r for r in range(ROWS) if r != 3]


def test_conditions_hold_and_may_leave_nothing(client):
    status, answer = client.json(quoted(text="cat", where=["caption~number 1"], k=200))
    assert status == 200
    assert {hit["row"] for hit in answer["hits"]} == {1, *range(10, 20)}
    assert client.json(quoted(text="cat", where=["caption~nowhere"]))[1]["hits"] == []


def test_pictures_are_small_webp(client):
    status, headers, body = client.ask("/api/pictures/5")
    assert (status, headers["content-type"], body[8:12]) == (200, "image/webp", b"WEBP")


def test_answers_are_as_the_description_says(client):
    description = client.json("/openapi.json")[1]

    def check(path: str, url: str, method: str = "get", **options: Any) -> None:
        status, answer = client.json(url, method=method.upper(), **options)
        operation = description["paths"][path][method]
        schema = operation["responses"][str(status)]["content"]["application/json"]["schema"]
        jsonschema.validate(answer, {**schema, "components": description["components"]})

    check("/api/store", "/api/store")
    check("/api/search", quoted(text="cat"))
    check("/api/search", quoted(text="cat", k=0))
    check("/api/search", "/api/search", "post", body=png_bytes(noise_image(0)))
    check("/api/search", "/api/search", "post", body=b"GIF89a")
    check("/api/pictures/{row}", f"/api/pictures/{ROWS}")
    for path in description["paths"]:
        assert client.ask(path.replace("{row}", "0"), method="DELETE")[0] == 405


BOMB = png_bytes(noise_image(0)).replace(  # its header says 60,000 × 60,000
    (20).to_bytes(4, "big") + (16).to_bytes(4, "big"), (60_000).to_bytes(4, "big") * 2
)


@pytest.mark.parametrize(
    ("path", "status", "word"),
    [
        ("/api/search", 400, "nothing to look for"),
        (quoted(text="a", k=0), 400, "k: 0"),
        (quoted(text="a", k=201), 400, "k: 201"),
        (quoted(text="a", k="1e3"), 400, "whole number"),
        (quoted(text="x" * 1001), 400, "1,001 characters"),
        (quoted(texts="a"), 400, "did you mean text"),
        (quoted(text="a", where=["widht>3"]), 400, "width"),
        (quoted(text="a", where=["width>=1"] * 17), 400, "17 conditions"),
        (quoted(like=ROWS), 400, "row"),
        (quoted(like=-1), 400, "whole number"),
        ("/api/pictures/40", 404, "no row"),
        ("/api/pictures/9999999999999", 400, "whole number"),
        ("/api/pictures/../../../../etc/passwd", 404, ""),
        ("/api/pictures/%2e%2e%2f%2e%2e%2fetc%2fpasswd", 404, ""),
        ("/api/pictures/%2Fetc%2Fpasswd", 404, ""),
        ("/../../etc/passwd", 404, ""),
        ("/static/../app.py", 404, ""),
        ("/api/pictures/0?size=huge", 400, "size"),
        ("/nothing", 404, ""),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_sentence(client, path, status, word):
    answered, answer = client.json(path)
    assert answered == status
    assert word in answer["error"]
    assert "Traceback" not in answer["error"]
    assert "\n" not in answer["error"]


@pytest.mark.parametrize(
    "body",
    [b"", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"<html></html>", b"%!PS-Adobe-3.0 EPSF",
     BOMB, png_bytes(noise_image(1))[:200], b"http://127.0.0.1/x.png"],
)  # fmt: skip
def test_what_is_no_picture_is_refused(client, body):
    status, answer = client.json("/api/search", method="POST", body=body)
    assert status == 400
    assert answer["error"]


def test_a_body_over_the_cap_is_refused_before_it_is_read(client):
    status, _, _ = client.ask("/api/search", method="POST", headers={"Content-Length": "10000001"})
    assert status == 413


def test_a_chunked_body_over_the_cap_is_refused_while_it_comes(client):
    parts = (b"x" * 1_000_000 for _ in range(11))
    headers = {"Transfer-Encoding": "chunked"}
    try:
        status, _, _ = client.ask(
            "/api/search", method="POST", body=parts, headers=headers, chunked=True
        )
    except (BrokenPipeError, ConnectionResetError):
        pytest.fail("the answer was lost with the connection")
    assert status == 413


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 421),
        ({"Host": "127.0.0.1.evil.example:80"}, 421),
        ({"Host": "localhost"}, 200),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
    ],
)
def test_pages_elsewhere_cannot_ask(client, headers, status):
    answered, given, _ = client.ask("/api/store", headers={**headers, "Origin": "http://evil"})
    assert answered == status
    assert not [name for name in given if name.startswith("access-control")]
    assert given["x-content-type-options"] == "nosniff"
    assert "default-src 'none'" in given["content-security-policy"]


def test_an_address_that_others_reach_wants_a_token(clipkit, store):
    done = clipkit("serve", store, "--host", "0.0.0.0", "--port", 0)
    assert done.returncode == 2
    assert "token" in done.stderr
    assert clipkit("serve", store, "--port", 0, "--token", "short").returncode == 2


def test_without_the_token_nothing_is_answered(store):
    token = "0123456789abcdef0123"
    with serving(store, "--token", token) as (url, _):
        client = Client(url)
        assert client.ask("/api/store")[0] == 401
        assert client.ask("/")[0] == 401
        assert client.ask("/api/store", headers={"Authorization": "Bearer wrong"})[0] == 401
        assert client.ask("/api/store", headers={"Authorization": f"Bearer {token}"})[0] == 200
        status, headers, _ = client.ask(f"/?token={token}")
        assert status == 200
        assert "HttpOnly; SameSite=Strict" in headers["set-cookie"]
        cookie = headers["set-cookie"].split(";")[0]
        assert token not in cookie
        assert client.ask("/api/store", headers={"Cookie": cookie})[0] == 200


@pytest.mark.slow
def test_clients_that_stall_are_cut_off_and_hold_up_no_one(client):
    stalled = []
    for start in (
        b"GET / HTTP/1.1\r\nHost: loc",
        b"POST /api/search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nabc",
    ):
        for _ in range(20):
            one = socket.create_connection((client.host, client.port), timeout=60)
            one.sendall(start)
            stalled.append(one)
    assert client.json(quoted(text="cat"))[0] == 200
    answers = []
    for one in stalled:
        with one:
            answers.append(one.recv(100)[:12])
            assert one.recv(10_000) is not None
    assert set(answers) == {b"HTTP/1.1 408"}


@pytest.mark.slow
def test_thousands_of_requests_leave_memory_as_it_was(server):
    """Some queries that are new, some known, and pictures, from eight clients at once."""
    url, pid = server
    faults: list[object] = []

    def visit(number: int, count: int) -> None:
        parts = urllib.parse.urlsplit(url)
        connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=60)
        for i in range(count):
            path = (
                f"/api/pictures/{i % ROWS}"
                if i % 5 == 0
                else quoted(text=f"cat {number} {i % 300}")
            )
            connection.request("GET", path)
            answer = connection.getresponse()
            answer.read()
            if answer.status != 200:
                faults.append((path, answer.status))
        connection.close()

    def burst(count: int) -> None:
        clients = [threading.Thread(target=visit, args=(n, count // 8)) for n in range(8)]
        for one in clients:
            one.start()
        for one in clients:
            one.join()

    burst(3_000)
    before = rss_anon(pid)
    burst(20_000 if os.environ.get("CLIPKIT_MATRIX") == "full" else 5_000)
    assert faults == []
    assert rss_anon(pid) - before < 10 * 2**20


@pytest.fixture
def server_here(store):
    """A server in a thread of this process."""
    from clipkit.serve.server import Server

    ready = threading.Event()
    server = Server(store, port=0, on_ready=lambda _: ready.set())
    thread = threading.Thread(target=server.serve_in_thread)
    thread.start()
    try:
        assert ready.wait(60)
        yield server
    finally:
        server.should_exit = True
        thread.join(20)


def test_an_answer_does_not_wait_until_its_head_is_confirmed(server_here):
    """Nagle's algorithm would hold the body back for 40 ms."""
    parts = urllib.parse.urlsplit(server_here.url)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=60)
    connection.request("GET", "/api/store")
    assert connection.getresponse().read()
    (there,) = server_here.server_state.connections
    taken = there.transport.get_extra_info("socket")
    assert taken.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    connection.close()


def test_a_failure_of_ours_is_answered_in_json_and_told_in_the_log(
    server_here, monkeypatch, capsys
):
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("the reason")

    client = Client(server_here.url)
    monkeypatch.setattr(server_here.engine.index, "search_embeds", fail)
    status, headers, body = client.ask(quoted(text="red"))
    assert status == 500
    assert json.loads(body) == {"error": "something failed here; the server's log says what"}
    assert headers["x-content-type-options"] == "nosniff"
    told, deadline = "", time.monotonic() + 20  # it is told after the answer
    while "RuntimeError: the reason" not in told and time.monotonic() < deadline:
        told += capsys.readouterr().err
    assert "RuntimeError: the reason" in told
    assert client.json("/api/store")[0] == 200


def test_a_store_that_is_not_there_is_one_sentence(clipkit, tmp_path):
    done = clipkit("serve", tmp_path / "nothing")
    assert done.returncode == 4
    assert "no such folder" in done.stderr
    assert "Traceback" not in done.stderr
    done = clipkit("serve", cwd=tmp_path)
    assert done.returncode == 2
    assert "demo.sh" in done.stderr


def test_the_page_lives_on_when_the_source_is_gone(store, tmp_path):
    import shutil

    copy = tmp_path / "store"
    shutil.copytree(store, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["source"]["path"] = str(tmp_path / "gone.tar")
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with serving(copy) as (url, _):
        client = Client(url)
        assert "no pictures can be shown" in client.json("/api/store")[1]["fault"]
        assert len(client.json(quoted(text="cat", k=3))[1]["hits"]) == 3
        assert client.ask("/api/pictures/0")[0] == 404
    assert Path(copy / "manifest.json").is_file()
