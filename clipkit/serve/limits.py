"""What one client may ask for, and how long it may take."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of a server; the defaults are for a page that some tens of people use at once.

    Attributes:
        body: bytes of an uploaded picture.
        pixels: of an uploaded picture, read from its header before anything is decoded.
        text: characters of a query.
        conditions: of one query; each of them at most ``condition`` characters.
        condition: see ``conditions``.
        k: results of one query.
        connections: that may be open at once.
        in_flight: requests that are worked on at once; the next ones are told to come back.
        head_s: seconds for the whole head of a request, or between two of them.
        body_s: seconds for the whole body.
        request_s: seconds for the answer.
        send_s: seconds from a request's head to the answer's last byte, after which the
            connection is cut: for clients that do not read.
        embeds: vectors of texts that are kept.
        pictures_bytes: of encoded pictures that are kept.
    """

    body: int = 10_000_000
    pixels: int = 50_000_000
    text: int = 1_000
    conditions: int = 16
    condition: int = 300
    k: int = 200
    connections: int = 256
    in_flight: int = 64
    head_s: float = 10.0
    body_s: float = 20.0
    request_s: float = 30.0
    send_s: float = 60.0
    embeds: int = 2_048
    pictures_bytes: int = 64 * 2**20
