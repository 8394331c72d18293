"""A request → what is wanted, or a sentence on what is wrong with it."""

from __future__ import annotations

import asyncio
import difflib
from collections.abc import Sequence

from starlette.requests import ClientDisconnect, Request

from clipkit.errors import ClipkitError, ConfigError
from clipkit.inputs import clean_text
from clipkit.serve.engine import Wanted
from clipkit.serve.limits import Limits

SEARCH_PARAMETERS = ("text", "negative", "like", "where", "k", "rows", "v")
_DIGITS = 9  # of a row or number: more than any store has, and nothing that int() takes long for


class Refused(ClipkitError):
    """A request that ends with a status other than 400.

    Attributes:
        status: of the answer.
    """

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


async def read_search(request: Request, limits: Limits, *, rows: bool) -> Wanted:
    """What ``/api/search`` is asked for; the body of a POST is the picture.

    Args:
        request: the search.
        limits: what it may ask for.
        rows: whether each row is a hit where it does not say.

    Raises:
        ClipkitError: something is wrong; a ``Refused`` where that is not a plain 400.
    """
    query = request.query_params
    only_known(request, SEARCH_PARAMETERS)
    where = query.getlist("where")
    if len(where) > limits.conditions:
        raise ConfigError(f"where: {len(where)} conditions; at most {limits.conditions}")
    for condition in where:
        if len(condition) > limits.condition:
            raise ConfigError(f"where: a condition of more than {limits.condition} characters")
    texts = {name: _text(query.get(name), name, limits) for name in ("text", "negative")}
    like = query.get("like")
    k = 24 if "k" not in query else whole_number(query["k"], "k")
    if not 1 <= k <= limits.k:
        raise ConfigError(f"k: {k}; 1 to {limits.k}")
    given = query.get("rows", str(rows).lower())
    if given not in ("true", "false"):
        raise ConfigError(f"rows: {given[:20]!r}; give true or false")
    picture = await read_picture(request, limits) if request.method == "POST" else None
    if texts["text"] is None and like is None and picture is None:
        raise ConfigError(
            "nothing to look for; give text=, like=, or a picture as the body of a POST"
        )
    return Wanted(
        texts["text"],
        texts["negative"],
        None if like is None else whole_number(like, "like"),
        picture,
        tuple(where),
        k,
        rows=given == "true",
        state=query.get("v"),
    )


async def read_picture(request: Request, limits: Limits) -> bytes:
    """The body, as long as it is not too large and does not come too slowly; it is kept only up
    to the cap.

    Raises:
        Refused: 413 too large, 408 too slow, 400 nothing there.
    """
    too_large = Refused(413, f"the picture is larger than {limits.body / 1e6:g} MB")
    if int(request.headers.get("content-length") or 0) > limits.body:  # h11 saw to its digits
        raise too_large
    parts, size = [], 0
    try:
        async with asyncio.timeout(limits.body_s):
            async for part in request.stream():
                size += len(part)
                if size > limits.body:
                    raise too_large
                parts.append(part)
    except TimeoutError:
        raise Refused(408, f"the picture took longer than {limits.body_s:g} s to come") from None
    except ClientDisconnect:
        raise Refused(400, "the picture ended too early") from None
    if not size:
        raise ConfigError("the body is empty; it should be a picture's file")
    return b"".join(parts)


def whole_number(text: str, name: str) -> int:
    """0, 1, 2 …

    Raises:
        ConfigError: it is none, or too long.
    """
    if not (text.isascii() and text.isdecimal() and len(text) <= _DIGITS):
        raise ConfigError(f"{name}: {text[:20]!r} is not a whole number from 0 on")
    return int(text)


def only_known(request: Request, names: Sequence[str]) -> None:
    """Refuses parameters that mean nothing, since they were meant to mean something.

    Raises:
        ConfigError: names the nearest one.
    """
    for given in request.query_params:
        if given not in names:
            near = difflib.get_close_matches(given[:40], names, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names) or 'none'}"
            raise ConfigError(f"{given[:40]}: no such parameter; {hint}")


def _text(text: str | None, name: str, limits: Limits) -> str | None:
    if text is None or not text.strip():
        return None
    if len(text) > limits.text:
        raise ConfigError(f"{name}: {len(text):,} characters; at most {limits.text:,}")
    return clean_text(text, where=name)
