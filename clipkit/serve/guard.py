"""What stands before every route: whose request it is, how many there are, and what a browser
may do with the answer.

The page changes nothing, so that there is nothing to forge; a page elsewhere could only make this
server work, and is refused as well.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import socket
import traceback
from collections.abc import Iterable
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clipkit.serve.limits import Limits

SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


def error_response(status: int, text: str, headers: dict[str, str] | None = None) -> Response:
    """What is answered where something is wrong, in one line."""
    return JSONResponse({"error": text}, status, headers)


def is_loopback(host: str) -> bool:
    """Whether an address to listen at is seen from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def host_names(host: str) -> set[str]:
    """The names that a Host header may have for a server that listens at an address.

    A page elsewhere can let its own name lead here (DNS rebinding), and would then be of the
    same origin; its name is not among these.
    """
    if is_loopback(host):
        return {*_LOOPBACK, host}
    return {*_LOOPBACK, host.lower(), socket.gethostname().lower(), socket.getfqdn().lower()}


class Guard:
    """Refuses what should not reach the routes, and adds the security headers to every answer.

    Args:
        app: the routes.
        hosts: see ``host_names``.
        any_address: whether a Host header may be any IP address, too: one cannot be rebound.
        token: what clients must show; none: nothing.
        limits: how many requests are worked on at once.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        hosts: Iterable[str],
        any_address: bool,
        token: str | None,
        limits: Limits,
    ) -> None:
        self._app, self._limits = app, limits
        self._hosts, self._any_address = set(hosts), any_address
        self._token = token
        self._in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        cookie: str | None = None

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
                if cookie is not None:
                    headers.append("Set-Cookie", cookie)
            await send(message)

        refusal = self._refuse(scope)
        if refusal is None and self._token is not None:
            shown = self._shown_token(scope)
            if shown is None:
                refusal = _no_token(scope)
            elif shown == "url":
                cookie = f"{_cookie_name(scope)}={self._secret}; HttpOnly; SameSite=Strict; Path=/"
        if refusal is None and self._in_flight >= self._limits.in_flight:
            refusal = error_response(503, "too many requests at once", {"Retry-After": "1"})
        if refusal is not None:
            await refusal(scope, receive, send_guarded)
            return
        self._in_flight += 1
        try:
            await self._app(scope, receive, send_guarded)
        except Exception:
            traceback.print_exc()  # Starlette has answered, and raises it again
        finally:
            self._in_flight -= 1

    def _refuse(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        host = _host_name(headers.get("host", ""))
        if host not in self._hosts and not (self._any_address and _is_address(host)):
            return error_response(421, "this server is not known under the name in Host")
        # Browsers say where a request comes from; others do not, and have no cookies to abuse.
        site = headers.get("sec-fetch-site", "none")
        is_visit = scope["path"] == "/" and headers.get("sec-fetch-mode") == "navigate"
        if site not in ("none", "same-origin") and not is_visit:
            return error_response(403, "pages elsewhere may not ask this server")
        return None

    @property
    def _secret(self) -> str:
        """What the cookie holds: a proof of the token, not the token."""
        assert self._token is not None
        return hmac.digest(self._token.encode(), b"clipkit serve", hashlib.sha256).hex()

    def _shown_token(self, scope: Scope) -> str | None:
        """How a valid token was shown, if one was: ``header``, ``cookie`` or ``url``."""
        assert self._token is not None
        headers = Headers(scope=scope)
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and _equal(given.strip(), self._token):
            return "header"
        for crumb in headers.get("cookie", "").split(";"):
            name, _, value = crumb.strip().partition("=")
            if name == _cookie_name(scope) and _equal(value, self._secret):
                return "cookie"
        if scope["path"] == "/":
            query = parse_qs(scope["query_string"].decode("latin-1"))
            if _equal(query.get("token", [""])[0], self._token):
                return "url"
        return None


def _no_token(scope: Scope) -> Response:
    text = "this server wants its token: open /?token=TOKEN, or send Authorization: Bearer TOKEN"
    headers = {"WWW-Authenticate": "Bearer"}
    if scope["path"] == "/":
        return PlainTextResponse(text, 401, headers)
    return error_response(401, text, headers)


def _equal(given: str, wanted: str) -> bool:
    """In a time that does not tell how much of it is right."""
    return hmac.compare_digest(given.encode(), wanted.encode())


def _cookie_name(scope: Scope) -> str:
    # Cookies know no ports: two servers on one machine would overwrite each other's.
    server = scope.get("server") or ("", 0)
    return f"clipkit-{server[1]}"


def _host_name(header: str) -> str:
    """``[::1]:8000`` → ``::1``, ``LocalHost.:8000`` → ``localhost``."""
    if header.startswith("["):
        return header[1:].partition("]")[0].lower()
    return header.partition(":")[0].lower().removesuffix(".")


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
