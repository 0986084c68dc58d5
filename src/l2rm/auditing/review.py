"""The review over HTTP: the page under `/review`, its JSON under `/review/api`."""

import hashlib
import sqlite3
import tempfile
from collections.abc import Callable, Coroutine
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse
from fastapi.routing import APIRoute
from jinja2 import Environment, StrictUndefined
from starlette.background import BackgroundTask

from l2rm.auditing.decisions import Choice
from l2rm.auditing.exports import Kind, Undecided, export
from l2rm.auditing.folder import TABLE, AuditFolder
from l2rm.auditing.queue import Filter, ReviewQueue, Said, Show
from l2rm.auditing.thumbnails import small_webp
from l2rm.auditing.views import Changes, DecisionIn, ImageView, Outcome, PageView, PairView, Summary, UndoIn, View
from l2rm.encoders.pixels import UndecodableImageError
from l2rm.errors import InputError

PREFIX = "/review"
CONTENT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
LARGEST_BODY = 16_384
SIDES = {"large": 768, "small": 144}
_STATIC = {
    "review.js": "text/javascript",
    "view.js": "text/javascript",
    "outbox.js": "text/javascript",
    "dialogs.js": "text/javascript",
    "review.css": "text/css",
    "icon.svg": "image/svg+xml",
}


class GuardedRoute(APIRoute):
    """Refuses what no page of ours sends, and turns bad values and a store that cannot be written into answers."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def guarded(request: Request) -> Response:
            if request.method == "POST" and (refusal := _refusal(request)) is not None:
                return refusal
            try:
                response = await handle(request)
            except RequestValidationError as error:
                response = JSONResponse({"detail": _invalid(error)}, 422)
            except sqlite3.Error as error:
                response = JSONResponse({"detail": f"decisions cannot be stored: {error}"}, 503)
            response.headers["X-Content-Type-Options"] = "nosniff"
            response.headers["Referrer-Policy"] = "no-referrer"
            response.headers["Cross-Origin-Resource-Policy"] = "same-origin"
            response.headers.setdefault("Cache-Control", "no-store")
            return response

        return guarded


def _refusal(request: Request) -> Response | None:
    """Another site may not decide in somebody's name: it cannot send JSON without asking, and is never allowed to."""
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return JSONResponse({"detail": "requests of other sites are refused"}, 403)
    if request.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
        return JSONResponse({"detail": "send application/json"}, 415)
    length = request.headers.get("content-length", "")
    if not length.isdecimal():
        return JSONResponse({"detail": "send Content-Length"}, 411)
    if int(length) > LARGEST_BODY:
        return JSONResponse({"detail": f"at most {LARGEST_BODY} bytes"}, 413)
    return None


def _invalid(error: RequestValidationError) -> str:
    """What is wrong, without the value itself: it may be NaN or half a character, which JSON cannot carry back."""
    first = error.errors()[0]
    return ".".join(map(str, first["loc"])) + f": {first['msg']}"


def review_router(folder: Path, *, search: str | None = None) -> APIRouter:
    """The review of one audit folder, to be included in an application.

    Images are found by number only: no path ever comes from a request.

    Args:
        folder: what `l2rm audit` wrote.
        search: where the same application has a search page, for the link to it.

    Raises:
        InputError: no audit in the folder, or decisions that cannot be stored beside it.
    """
    router = APIRouter(prefix=PREFIX, route_class=GuardedRoute, tags=["review"])
    queue = ReviewQueue(AuditFolder.open(folder))
    queue.warm_up()
    view = View(queue)
    _add_pages(router, queue, search)
    _add_pairs(router, queue, view)
    _add_images(router, queue, view)
    _add_export(router, queue)
    _add_deciding(router, queue, view)
    return router


def _add_pages(router: APIRouter, queue: ReviewQueue, search: str | None) -> None:
    pages = resources.files("l2rm.auditing") / "pages"
    static = {name: (pages / name).read_bytes() for name in _STATIC}
    version = hashlib.sha256(b"".join(static.values())).hexdigest()[:12]
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    template = environment.from_string((pages / "review.html.jinja").read_text(encoding="utf-8"))
    table = (queue.folder.folder / TABLE).stat()
    audit = f"{table.st_mtime_ns:x}{table.st_size:x}"

    @router.get("", response_class=HTMLResponse, include_in_schema=False)
    def page(request: Request) -> Response:
        root = request.scope.get("root_path", "")
        known = {"version": version, "audit": audit, "source": queue.folder.source}
        html = template.render(base=root + PREFIX, search=search and root + search, **known)
        return HTMLResponse(html, headers={"Content-Security-Policy": CONTENT_POLICY})

    @router.get("/static/{stamp}/{name}", include_in_schema=False)
    def static_file(stamp: str, name: str) -> Response:
        if stamp != version or name not in static:
            raise HTTPException(404, "no such file")
        cache = {"Cache-Control": "private, max-age=31536000, immutable"}
        return Response(static[name], media_type=_STATIC[name], headers=cache)


def _add_pairs(router: APIRouter, queue: ReviewQueue, view: View) -> None:
    """What is under review, and what became of it."""
    folder = queue.folder

    @router.get("/api/summary")
    def summary(tab: Annotated[str, Query(max_length=64)] = "") -> Summary:
        """What is under review, and how far it is."""
        return Summary(
            source=folder.source,
            has_images=folder.image_root is not None,
            has_index=folder.in_order,
            version=queue.refresh(),
            progress=view.progress(tab),
        )

    @router.get("/api/pairs")
    def pairs(
        show: Show = "undecided",
        said: Said = "anything",
        words: Annotated[str, Query(max_length=200)] = "",
        after: Annotated[int, Query(ge=-1, lt=2**31)] = -1,
        limit: Annotated[int, Query(ge=1, le=100)] = 30,
    ) -> PageView:
        """Pairs in order of suspicion, those whose rank is above `after`."""
        found = queue.page(Filter(show=show, said=said, words=words), after=after, limit=limit)
        return PageView(pairs=[view.pair(row) for row in found.rows], total=found.total)

    @router.get("/api/pairs/{row}", responses={404: {"description": "no such row"}})
    def pair(row: int) -> PairView:
        """One pair, by the number of its row in audit.parquet."""
        queue.refresh()
        return view.pair(_checked(row, len(folder), "row"))

    @router.get("/api/changes")
    def changes(
        since: Annotated[int, Query(ge=0, lt=2**62)], tab: Annotated[str, Query(max_length=64)] = ""
    ) -> Changes:
        """What was decided after a version."""
        rows, version = queue.changes(since)
        return Changes(pairs=[view.pair(row) for row in rows], version=version, progress=view.progress(tab))


def _add_images(router: APIRouter, queue: ReviewQueue, view: View) -> None:
    folder = queue.folder

    @lru_cache(maxsize=600)
    def small(number: int, side: int) -> bytes:
        path = folder.image_path(number)
        if path is None:
            raise UndecodableImageError("the audit has no pixels")
        return small_webp(path, side)

    @router.get("/api/images")
    def images(words: Annotated[str, Query(min_length=1, max_length=200)]) -> list[ImageView]:
        """Images whose name or captions hold the words."""
        return [view.image(number) for number in queue.images(words)]

    @router.get(
        "/api/images/{number}",
        response_class=Response,
        responses={200: {"content": {"image/webp": {}}}, 404: {"description": "no such image, or no pixels"}},
    )
    def image(number: int, size: Literal["large", "small"] = "large") -> Response:
        """The picture, small and encoded anew."""
        try:
            content = small(_checked(number, len(folder.images), "image"), SIDES[size])
        except UndecodableImageError as error:
            raise HTTPException(404, str(error)) from error
        return Response(content, media_type="image/webp", headers={"Cache-Control": "private, max-age=86400"})


def _add_export(router: APIRouter, queue: ReviewQueue) -> None:
    @router.get("/api/export", response_class=FileResponse, responses={409: {"description": "cannot be exported"}})
    def exported(
        what: Kind = "decisions",
        form: Literal["parquet", "csv", "tsv", "jsonl"] = "parquet",
        undecided: Undecided = "audit",
    ) -> Response:
        """Decisions or repaired pairs as a table, the keys to keep as text, or an index file."""
        suffix = {"filter": "txt", "index": "npy"}.get(what, form)
        scratch = tempfile.TemporaryDirectory()
        path = Path(scratch.name) / f"{what}.{suffix}"
        try:
            told = export(queue, what, path, undecided=undecided)
        except InputError as error:
            scratch.cleanup()
            raise HTTPException(409, str(error)) from error
        headers = {"L2rm-Rows": str(told.rows), "L2rm-Note": told.note}
        return FileResponse(path, filename=path.name, headers=headers, background=BackgroundTask(scratch.cleanup))


def _add_deciding(router: APIRouter, queue: ReviewQueue, view: View) -> None:
    refusals: dict[int | str, dict[str, Any]] = {
        status: {"description": text}
        for status, text in {
            **{403: "another site asks", 411: "no length", 413: "too long", 415: "no JSON"},
            503: "decisions cannot be stored",
        }.items()
    }

    @router.post("/api/decisions", responses={404: {"description": "no such row or image"}, **refusals})
    def decide(asked: DecisionIn) -> Outcome:
        """Decide about a pair, unless somebody else did since it was `seen`."""
        row = _checked(asked.row, len(queue.folder), "row")
        answer = queue.decide(row, _choice(queue, asked), seen=asked.seen, tab=asked.tab, request=asked.request)
        return view.outcome(answer, asked.tab)

    @router.post("/api/undo", responses=refusals)
    def undo(asked: UndoIn) -> Outcome:
        """Take back the last decision of a tab; `pair` is null where there is none."""
        answer = queue.store.undo(tab=asked.tab, request=asked.request)
        if answer is None:
            return Outcome(pair=None, conflict=False, progress=view.progress(asked.tab))
        return view.outcome(answer, asked.tab)


def _choice(queue: ReviewQueue, asked: DecisionIn) -> Choice:
    folder = queue.folder
    if asked.verdict != "rematch":
        return Choice(verdict=asked.verdict)
    if asked.image is None and asked.partner == "caption":
        if not folder.rematch_captions[asked.row]:
            raise HTTPException(422, "no caption is suggested for this image")
        return Choice(verdict="rematch", new_caption=folder.rematch_captions[asked.row])
    number = int(folder.rematch_image_of[asked.row]) if asked.image is None else asked.image
    if number < 0:
        raise HTTPException(422, "no image is suggested for this caption")
    _checked(number, len(folder.images), "image")
    if number == folder.image_of[asked.row]:
        raise HTTPException(422, "that is the image it has")
    return Choice(verdict="rematch", new_image=folder.images[number])


def _checked(number: int, count: int, what: str) -> int:
    if not 0 <= number < count:
        raise HTTPException(404, f"no {what} {number}; there are {count}")
    return number
