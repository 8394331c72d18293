"""The routes: the page, the API that it uses, and the API's description.

GET  /                      the page; /app.js, /style.css and /icon.svg belong to it
GET  /api/store             what is searched
GET  /api/search            by text, by row, with conditions
POST /api/search            by a picture, too, which is the body
GET  /api/pictures/{row}    the picture of a row
GET  /openapi.json          the description
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable
from importlib.resources import files

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from clipkit.errors import CheckpointError, ClipkitError
from clipkit.serve.engine import Engine, Found, Updated, Wanted
from clipkit.serve.facts import hit_json
from clipkit.serve.guard import Guard, error_response, host_names, is_loopback
from clipkit.serve.limits import Limits
from clipkit.serve.openapi import describe
from clipkit.serve.parameters import Refused, only_known, read_search, whole_number
from clipkit.serve.pictures import NoPicture

_STATIC = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/app.js": ("app.js", "text/javascript; charset=utf-8"),
    "/style.css": ("style.css", "text/css; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
_EDGES = {"small": 256, "large": 1024}  # pixels

Handler = Callable[[Request], Awaitable[Response]]


def build_app(
    engine: Engine, *, host: str, token: str | None, limits: Limits, rows: bool = False
) -> ASGIApp:
    """All of the server but its sockets.

    Args:
        engine: answers searches.
        host: the address that is listened at, which the Host header is compared with.
        token: what clients must show; none: nothing.
        limits: what they may ask for.
        rows: whether each row is a hit where a search does not say.
    """
    description = describe(limits)
    stores = engine.stores

    async def take_over() -> None:
        """An update that is finished is served from here on."""
        if stores.has_changed():
            await asyncio.to_thread(stores.refresh)

    async def found_by(wanted: Wanted) -> Found:
        await take_over()
        before = stores.current
        try:
            return await engine.search(wanted)
        except CheckpointError:
            # Perhaps an update removed the files that were just searched.
            await take_over()
            if stores.current is before:
                raise
            return await engine.search(wanted)

    async def store(request: Request) -> Response:
        only_known(request, ())
        await take_over()
        return JSONResponse(stores.current.facts)

    async def search(request: Request) -> Response:
        wanted = await read_search(request, limits, rows=rows)
        begin = time.perf_counter()
        try:
            found = await found_by(wanted)
        except Updated as error:
            raise Refused(409, str(error)) from error
        took = round((time.perf_counter() - begin) * 1e3, 1)
        state = found.served.facts["id"]
        hits = [
            hit_json(hit, number, state)
            for hit, number in zip(found.hits, found.numbers, strict=True)
        ]
        return JSONResponse({"hits": hits, "store": state, "took_ms": took})

    async def picture(request: Request) -> Response:
        only_known(request, ("size", "v"))
        row = whole_number(request.path_params["row"], "row")
        edge = _EDGES.get(request.query_params.get("size", "small"))
        if edge is None:
            raise Refused(400, f"size: one of {', '.join(_EDGES)}")
        await take_over()
        served = stores.current
        if request.query_params.get("v", served.facts["id"]) != served.facts["id"]:
            raise Refused(404, "the store has been updated since; search again")
        try:
            data = await served.pictures.get(row, edge)
        except NoPicture as error:
            raise Refused(404, str(error)) from error
        # v changes with the store, so that what is kept under it stays right.
        kept = "private, max-age=86400" if "v" in request.query_params else "no-store"
        return Response(data, media_type="image/webp", headers={"Cache-Control": kept})

    async def openapi(request: Request) -> Response:
        return JSONResponse(description)

    def route(path: str, handler: Handler, methods: list[str]) -> Route:
        return Route(path, _answered(handler, limits), methods=methods)

    routes = [
        route("/api/store", store, ["GET"]),
        route("/api/search", search, ["GET", "POST"]),
        route("/api/pictures/{row}", picture, ["GET"]),
        route("/openapi.json", openapi, ["GET"]),
        *(route(path, _static(*which), ["GET"]) for path, which in _STATIC.items()),
    ]
    handlers = {HTTPException: _no_route, Exception: _failed}
    app = Starlette(routes=routes, exception_handlers=handlers)
    app.router.redirect_slashes = False
    return Guard(
        app,
        hosts=host_names(host),
        any_address=not is_loopback(host),
        token=token,
        limits=limits,
    )


def _answered(handler: Handler, limits: Limits) -> Handler:
    """A handler whose errors are answers, and which ends in time."""

    async def answer(request: Request) -> Response:
        try:
            async with asyncio.timeout(limits.request_s + limits.body_s):
                return await handler(request)
        except TimeoutError:
            return error_response(503, "this took too long; try again", {"Retry-After": "5"})
        except Refused as error:
            return error_response(error.status, str(error))
        except CheckpointError as error:
            return error_response(500, str(error))
        except ClipkitError as error:
            return error_response(400, str(error))

    return answer


def _static(name: str, media_type: str) -> Handler:
    """A file of the page, read once. Browsers ask whether it has changed."""
    data = (files("clipkit.serve") / "static" / name).read_bytes()
    etag = f'"{hashlib.sha256(data).hexdigest()[:16]}"'
    headers = {"ETag": etag, "Cache-Control": "no-cache"}

    async def answer(request: Request) -> Response:
        if request.headers.get("if-none-match") == etag:
            return Response(status_code=304, headers=headers)
        return Response(data, media_type=media_type, headers=headers)

    return answer


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    words = {404: "there is nothing under this path", 405: "this method is not for this path"}
    text = words.get(error.status_code, error.detail)
    return error_response(error.status_code, text, dict(error.headers or {}))


async def _failed(request: Request, error: Exception) -> Response:
    # The client learns only that it was not its fault; the guard tells whoever runs the server.
    return error_response(500, "something failed here; the server's log says what")
