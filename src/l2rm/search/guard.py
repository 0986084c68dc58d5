"""What stands before every request: its size, its time, and the headers of every answer."""

import asyncio
import time
from collections.abc import Callable, Collection
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}


def _host(header: str) -> str:
    """The name in a Host header, without the port."""
    end = header.find("]") + 1 or header.rfind(":")
    return header[:end] if end > 0 else header


class _TooLarge(Exception):  # noqa: N818 - it is an answer
    pass


class Guard:
    """Refuse bodies above a limit (413), give up on slow requests (504), and set security headers.

    Args:
        app: what is guarded.
        max_bytes: of a body, as it arrives; what it claims to be is believed only where that is too much.
        seconds: for receiving and answering.
        hosts: names that may be asked for, so that no other web site's name leads a browser here; "*" for any.
        observe: told (route, status, seconds) of every request.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        max_bytes: int,
        seconds: float,
        hosts: Collection[str],
        observe: Callable[[str, int, float], None],
    ) -> None:
        self.app, self.max_bytes, self.seconds, self.observe = app, max_bytes, seconds, observe
        self.hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status, received = time.perf_counter(), 0, 0

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.max_bytes:
                raise _TooLarge
            return message

        async def dressed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        headers = Headers(scope=scope)
        claimed = headers.get("content-length", "0")
        try:
            if "*" not in self.hosts and _host(headers.get("host", "")) not in self.hosts:
                await self._refuse(scope, receive, dressed, status, 400, "not a name of this service; see --host")
                return
            if claimed.isdecimal() and int(claimed) > self.max_bytes:
                raise _TooLarge
            async with asyncio.timeout(self.seconds):
                await self.app(scope, limited, dressed)
        except _TooLarge:
            await self._refuse(scope, receive, dressed, status, 413, f"more than {self.max_bytes} bytes; send less")
        except TimeoutError:
            await self._refuse(scope, receive, dressed, status, 504, f"took more than {self.seconds:g} s; try again")
        finally:
            route: Any = scope.get("route")
            self.observe(getattr(route, "path", "other"), status, time.perf_counter() - began)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send, sent: int, status: int, why: str) -> None:
        if sent:  # the answer has begun and cannot be another
            return
        answer = JSONResponse({"detail": why}, status, headers={"Connection": "close"})
        await answer(scope, receive, send)
