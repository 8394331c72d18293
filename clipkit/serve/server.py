"""Stores → a running server: the socket, uvicorn, and the line that says where it is."""

from __future__ import annotations

import logging
import signal
import socket
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import uvicorn

from clipkit.errors import ConfigError
from clipkit.retrieval.store import read_manifest
from clipkit.serve.app import build_app
from clipkit.serve.engine import Engine
from clipkit.serve.guard import is_loopback
from clipkit.serve.limits import Limits
from clipkit.serve.protocol import PatientProtocol
from clipkit.serve.stores import ServedStores

_LEAST_TOKEN = 16  # characters; shorter ones can be tried through


class Server(uvicorn.Server):
    """Serves stores until it is told to stop (``should_exit``).

    Args:
        folders: of one store, or of several that one model made.
        model: what made them; none: the one that the first store names.
        host: the address to listen at.
        port: 0 for any free one.
        token: what clients must show; wanted at any address that others can reach.
        limits: what clients may ask for.
        rows: whether each row is a hit where a search does not say; else one of each image is.
        on_ready: called once, with the server's address, when it answers.

    Raises:
        ConfigError: an address that others can reach without a token; a token that is too short;
            a host or port that cannot be had.
        CheckpointError: the store or its model cannot be used.

    Attributes:
        engine: answers its searches.
        url: its address, with the token where there is one.
    """

    def __init__(
        self,
        folders: str | Path | Sequence[str | Path],
        *,
        model: str | None = None,
        host: str = "127.0.0.1",
        port: int = 8000,
        token: str | None = None,
        limits: Limits | None = None,
        rows: bool = False,
        on_ready: Callable[[str], None] | None = None,
    ) -> None:
        limits = limits or Limits()
        _check_token(host, token)
        folders = [folders] if isinstance(folders, str | Path) else folders
        for folder in folders:
            read_manifest(Path(folder).expanduser())  # what is no store is said before the rest
        self._listening = _bind(host, port)
        self._on_ready = on_ready
        self.engine = Engine(ServedStores(folders, model, limits), limits)
        app = build_app(self.engine, host=host, token=token, limits=limits, rows=rows)
        shown = socket.gethostname() if host in ("0.0.0.0", "::") else host
        shown = f"[{shown}]" if ":" in shown else shown
        query = f"?token={token}" if token else ""
        self.url = f"http://{shown}:{self._listening.getsockname()[1]}/{query}"
        super().__init__(
            uvicorn.Config(
                app,
                http=PatientProtocol.with_limits(limits),
                ws="none",
                lifespan="off",
                loop="asyncio",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=int(limits.head_s) + 1,  # the protocol's own comes first
                timeout_graceful_shutdown=3,
            )
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self._on_ready is not None:
            self._on_ready(self.url)

    def serve_until_stopped(self) -> None:
        """Serves; Ctrl-C and SIGTERM end it in the ordinary way."""
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # clients' mistakes
        # Texts that are cut at the model's context are a client's matter, too.
        warnings.simplefilter("ignore", UserWarning)
        for number in (signal.SIGINT, signal.SIGTERM):
            # uvicorn raises the signal again once it has stopped, for what was there before it.
            signal.signal(number, lambda *_: None)
        self.run(sockets=[self._listening])

    def serve_in_thread(self) -> None:
        """``serve_until_stopped`` for another thread than the main one, which gets no signals."""
        self.run(sockets=[self._listening])


def _check_token(host: str, token: str | None) -> None:
    if token is None and not is_loopback(host):
        raise ConfigError(
            f"--host {host}: others could reach this address, so a token is needed; add "
            '--token "$(openssl rand -hex 16)", or leave --host out'
        )
    if token is not None and (
        len(token) < _LEAST_TOKEN or not token.isascii() or not token.isalnum()
    ):
        raise ConfigError(
            f"--token: give at least {_LEAST_TOKEN} letters and digits, as openssl rand -hex 16 "
            "prints them"
        )


def _bind(host: str, port: int) -> socket.socket:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as error:
        raise ConfigError(f"--host {host}: no such address here") from error
    family, _, _, _, address = found[0]
    # The protocol by name: asyncio turns Nagle's algorithm off only where it stands. With it on, an
    # answer's body waits 40 ms for the client to confirm its head.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except (OSError, OverflowError) as error:
        listening.close()
        reason = getattr(error, "strerror", None) or "no such port"
        raise ConfigError(
            f"{host}:{port}: cannot be listened at ({reason}); --port 0 takes any free port"
        ) from error
    return listening
