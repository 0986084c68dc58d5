"""`l2rm serve`."""

import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from l2rm.commands.command import Command
from l2rm.errors import InputError

if TYPE_CHECKING:
    from fastapi import FastAPI


@dataclass(frozen=True, kw_only=True)
class Serve(Command):
    """Open the search page of an index, the review page of an audit, or both; with an HTTP API beside them.

    Answers this computer alone, until --host says otherwise. Ctrl-C stops it. The API is told by /openapi.json.

    Examples:
      l2rm serve index
      l2rm serve index --audit audit --port 8080
      l2rm serve --audit audit
    """

    index: Annotated[Path | None, Positional, arg(metavar="INDEX")] = None
    """Folder that l2rm index made."""
    audit: Annotated[Path | None, arg(metavar="DIR")] = None
    """Folder that l2rm audit wrote, to be reviewed."""
    port: int = 8000
    """0 takes a free one."""
    host: str = "127.0.0.1"
    """Address to listen at; 0.0.0.0 is every computer that can reach this one."""
    upload_megabytes: float = 16
    """Of an uploaded picture, or of any request."""
    timeout: float = 30
    """Seconds for receiving and answering a request."""
    shortlist: int = 200
    """Items that SGR and SAF score."""

    def run(self) -> None:
        if self.index is None and self.audit is None:
            raise InputError("serve: nothing is given; give an INDEX, --audit DIR, or both")
        app = self._app()
        import uvicorn

        with _listening(self.host, self.port) as listener:
            config = uvicorn.Config(
                app,
                log_level="warning",
                access_log=False,
                timeout_keep_alive=15,
                timeout_graceful_shutdown=3,
                limit_concurrency=512,
                server_header=False,
            )
            address = f"http://{_shown(self.host)}:{listener.getsockname()[1]}/"
            print(f"{address}  (Ctrl-C stops)", flush=True)
            uvicorn.Server(config).run(sockets=[listener])

    def _app(self) -> "FastAPI":
        try:
            from l2rm.auditing.review import review_router
            from l2rm.search.service import make_app
        except ImportError as error:
            raise InputError(f"serve: {error}; install the extra: pip install 'l2rm[serve]'") from error
        from l2rm.search.index import Index
        from l2rm.search.questions import Limits

        index, routers = None, []
        if self.index is not None:
            index = Index(self.index)
            index.warm_up()
        if self.audit is not None:
            routers.append(review_router(self.audit, search=None if index is None else "/"))
        limits = Limits(upload_bytes=int(self.upload_megabytes * 2**20), seconds=self.timeout, shortlist=self.shortlist)
        review = None if self.audit is None else "/review"
        return make_app(index, limits=limits, hosts=_hosts(self.host), routers=routers, review=review)


def _hosts(host: str) -> tuple[str, ...]:
    """Names that a browser may call the service by."""
    if host in ("0.0.0.0", "::"):
        return ("*",)
    return ("127.0.0.1", "localhost", "[::1]", f"[{host}]" if ":" in host else host)


def _shown(host: str) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)


def _listening(host: str, port: int) -> Any:
    """A socket that listens.

    Raises:
        InputError: the port is taken, or the address is not this computer's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(2048)
    except (OSError, OverflowError) as error:
        listener.close()
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{host}:{port}: {reason}; choose another --port or --host") from error
    return listener
