"""HTTP/1.1 for clients that are slow on purpose: every wait on one of them has an end."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from clipkit.serve.limits import Limits

_BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\n"
    b"Content-Length: 0\r\n\r\n"
)
_TOO_SLOW = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


class PatientProtocol(H11Protocol):
    """uvicorn's protocol with a deadline at any time: for the next request's head, or for the
    answer to be taken; and with a cap on connections. ``with_limits`` makes one of some limits.
    """

    limits = Limits()

    @classmethod
    def with_limits(cls, limits: Limits) -> type[PatientProtocol]:
        """A protocol for a server of these limits."""
        return type("PatientProtocol", (cls,), {"limits": limits})

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.limits.connections:
            transport.write(_BUSY)
            transport.close()
            return
        self._allow(self.limits.head_s)

    def data_received(self, data: bytes) -> None:
        worked = self._is_working()
        super().data_received(data)
        if self._is_working() and not worked:
            self._allow(self.limits.send_s)

    def on_response_complete(self) -> None:
        # What is left of a body that was refused is read and dropped for as long, too.
        self._allow(self.limits.head_s)
        super().on_response_complete()
        if self._is_working():  # on a request that had been sent along with the last one
            self._allow(self.limits.send_s)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        super().connection_lost(exc)

    def _is_working(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _allow(self, seconds: float) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = self.loop.call_later(seconds, self._end)

    def _end(self) -> None:
        # Half a head came, and nothing was answered: a slow but honest client learns why.
        if self.conn.our_state is h11.IDLE and self.conn.trailing_data[0]:
            self.transport.write(_TOO_SLOW)
        # abort, not close: closing waits for the client to take what was sent.
        self.transport.abort()
