"""The HTTP service: search as JSON, pictures by their id, and the page."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import jinja2
import numpy as np
import orjson
from fastapi import APIRouter, FastAPI, File, Request, Response, UploadFile
from fastapi import Path as PathParameter
from fastapi import Query as Parameter
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse

from l2rm.errors import InputError
from l2rm.search.batching import Batcher
from l2rm.search.guard import Guard
from l2rm.search.index import Index
from l2rm.search.pictures import SIZES, Thumbnails, check_upload
from l2rm.search.queries import Query
from l2rm.search.questions import (
    ID_LIMIT,
    KIND_OF,
    Batched,
    BatchQuestion,
    Facts,
    Found,
    FoundVectors,
    ItemFacts,
    Limits,
    Problem,
    Question,
    Target,
    as_dict,
)  # fmt: skip
from l2rm.search.telemetry import Telemetry

ItemId = Annotated[int, PathParameter(ge=0, lt=ID_LIMIT)]
ASSETS = Path(__file__).parent / "page"
_FLOATS = {
    "required": True,
    "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
}
RELOAD_SECONDS = 1.0
WALL = 24
_PROBLEMS: dict[int | str, dict[str, Any]] = {code: {"model": Problem} for code in (400, 404, 413, 422, 504)}


def make_app(
    index: Index | None,
    *,
    limits: Limits | None = None,
    hosts: Sequence[str] = ("127.0.0.1", "localhost", "[::1]"),
    routers: Sequence[APIRouter] = (),
    review: str | None = None,
) -> FastAPI:
    """The service of an index, of further pages, or of both.

    Args:
        index: what is searched; None to serve `routers` alone.
        limits: of requests.
        hosts: names that it answers to, so that no other web site can have a browser ask for it; "*" for any.
        routers: further pages.
        review: where the review page is, for the link to it; without an index `/` leads there.
    """
    limits = limits or Limits()
    telemetry = Telemetry()
    service = None if index is None else _Service(index, limits, telemetry)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        if service is not None:
            service.close()

    app = FastAPI(
        title="l2rm search",
        version=version("l2rm"),
        description="Search images and captions by words, pictures, items and vectors.",
        docs_url=None,  # these pages would fetch scripts from elsewhere
        redoc_url=None,
        lifespan=lifespan,
    )
    app.add_middleware(
        Guard, max_bytes=limits.upload_bytes, seconds=limits.seconds, hosts=hosts, observe=telemetry.observe
    )
    app.add_exception_handler(InputError, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)

    @app.get("/healthz", tags=["service"], summary="Whether it answers")
    async def healthz() -> dict[str, str]:
        return {"status": "ok", "version": app.version}

    @app.get("/metrics", tags=["service"], summary="Counters, for Prometheus", response_class=Response,
             responses={200: {"content": {"text/plain": {}}}})  # fmt: skip
    async def metrics() -> Response:
        if service is not None:
            service.count()
        return Response(telemetry.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    if service is not None:
        app.include_router(service.routes())
        app.include_router(_page(service, review))
    elif review is not None:
        app.add_api_route("/", lambda: RedirectResponse(review), include_in_schema=False, methods=["GET"])
    for router in routers:
        app.include_router(router)
    return app


async def _refused(_: Request, error: Exception) -> Response:
    return JSONResponse({"detail": str(error)}, status_code=404 if "no such item" in str(error) else 422)


async def _invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part != "body") or "body"
    return JSONResponse({"detail": f"{where}: {first['msg']}"}, status_code=422)


@dataclass(frozen=True)
class _Asked:
    """What queries of one batch have in common."""

    target: Target
    k: int
    raw: bool = False


class _Service:
    """An index and what answers about it."""

    def __init__(self, index: Index, limits: Limits, telemetry: Telemetry) -> None:
        self.index, self.limits = index, limits
        self.thumbnails = Thumbnails()
        self.batcher = Batcher(self._answer)
        self._telemetry = telemetry
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="l2rm-pictures")
        self._looked = time.monotonic()

    def close(self) -> None:
        self.batcher.close()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def count(self) -> None:
        for kind, items in self.index.items.items():
            self._telemetry.holds(kind, len(items))

    def _answer(self, asked: _Asked, queries: Sequence[Any]) -> Sequence[Any]:
        """Runs in the search thread, which alone touches the index."""
        self._follow()
        if asked.raw:
            lengths = [len(one) for one in queries]
            scores, ids = self.index.find_vectors(np.concatenate(queries), target=KIND_OF[asked.target], k=asked.k)
            cuts = np.cumsum(lengths)[:-1]
            return list(zip(np.split(ids, cuts), np.split(scores, cuts), strict=True))
        return self.index.search(queries, target=KIND_OF[asked.target], k=asked.k, shortlist=self.limits.shortlist)

    def _follow(self) -> None:
        """Take up what another process has added or removed."""
        if time.monotonic() - self._looked > RELOAD_SECONDS:
            self._looked = time.monotonic()
            if self.index.changed():
                self.index = self.index.reopen()

    async def ask(self, query: Query, target: Target, k: int) -> list[dict[str, Any]]:
        hits = await self.batcher.ask(_Asked(target, k), query)
        self._telemetry.answered(target)
        return [as_dict(hit) for hit in hits]

    def routes(self) -> APIRouter:
        router = APIRouter(prefix="/api", tags=["search"], responses=_PROBLEMS)
        K = Annotated[int, Parameter(ge=1, le=self.limits.k, description="Results")]

        @router.get("/index", summary="What the index holds")
        async def facts() -> Facts:
            return Facts.of(self.index, self.limits)

        @router.get("/search", summary="Search by words", response_model=Found)
        async def search_words(
            q: Annotated[str, Parameter(min_length=1, max_length=self.limits.text)],
            target: Target = Target.images,
            k: K = 10,
        ) -> Response:
            return await self._timed(self.ask(Query(text=q), target, k))

        @router.post("/search", summary="Search by words, an item or a vector", response_model=Found)
        async def search(question: Question) -> Response:
            question.check(self.limits)
            return await self._timed(self.ask(question.query(), question.target, question.k))

        @router.post("/search/batch", summary="Several searches at once", response_model=Batched)
        async def batch(questions: BatchQuestion) -> Response:
            for one in questions.queries:
                one.check(self.limits)
            began = time.perf_counter()
            asked = (self.ask(one.query(), one.target, one.k) for one in questions.queries)
            results = await asyncio.gather(*asked)
            seconds = time.perf_counter() - began
            return _json({"results": results, "seconds": seconds})

        @router.post("/search/picture", summary="Search by a picture", response_model=Found)
        async def picture(
            file: Annotated[UploadFile, File(description="A JPEG, PNG, WebP, GIF, BMP or TIFF")],
            target: Target = Target.captions,
            k: K = 10,
        ) -> Response:
            content = await file.read()
            await asyncio.get_running_loop().run_in_executor(self._pool, check_upload, content)
            return await self._timed(self.ask(Query(picture=content), target, k))

        @router.post(
            "/search/vectors",
            summary="Search by many vectors: a body of float32, little-endian, row by row; answers ids and scores",
            response_model=FoundVectors,
            openapi_extra={"requestBody": _FLOATS},
        )  # fmt: skip
        async def vectors(request: Request, target: Target = Target.images, k: K = 10) -> Response:
            body, dim = await request.body(), self.index.manifest.dim
            if not body or len(body) % (4 * dim):
                raise InputError(f"body: {len(body)} bytes are not rows of {dim} float32 numbers")
            given = np.frombuffer(body, dtype="<f4").reshape(-1, dim)
            if len(given) > self.limits.vectors:
                raise InputError(f"body: {len(given)} vectors are too many; send at most {self.limits.vectors}")
            if not np.isfinite(given).all():
                raise InputError("body: has a NaN or infinite value; compute it again")
            ids, scores = await self.batcher.ask(_Asked(target, k, raw=True), given)
            self._telemetry.answered(target, len(given))
            return _json({"ids": ids, "scores": scores})

        @router.get("/images/{number}", summary="An image and its captions")
        async def image(number: ItemId) -> ItemFacts:
            facts: ItemFacts = await self._in_pool(self._image_facts, number)
            return facts

        @router.get("/images/{number}/picture", summary="An image's pixels, as WebP", response_class=Response,
                    responses={200: {"content": {"image/webp": {}}}})  # fmt: skip
        async def pixels(number: ItemId, size: int = 320) -> Response:
            if size not in SIZES:
                raise InputError(f"size: {size} is none of {', '.join(map(str, SIZES))}")
            content = await self._in_pool(self._picture, number, size)
            return Response(content, media_type="image/webp", headers={"Cache-Control": "private, max-age=3600"})

        return router

    async def _in_pool(self, work: Any, *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work, *arguments)

    def _image_facts(self, number: int) -> ItemFacts:
        name = str(self.index.items["image"].value(number, "name"))
        captions = self.index.captions_of(number)[: self.limits.k]
        texts = [str(self.index.items["caption"].value(one, "caption")) for one in captions]
        return ItemFacts(id=number, name=name, captions=texts)

    def _picture(self, number: int, size: int) -> bytes:
        path = self.index.image_path(number)
        if path is None:
            raise InputError(f"image:{number}: no such item with pixels; the index was made from features")
        return self.thumbnails.get(path, size)

    async def _timed(self, work: Any) -> Response:
        began = time.perf_counter()
        results = await work
        return _json({"results": results, "seconds": time.perf_counter() - began})


def _json(content: Any) -> Response:
    return Response(orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json")


def _page(service: _Service, review: str | None) -> APIRouter:
    """The page and its files."""
    router = APIRouter(include_in_schema=False)
    loader = jinja2.FileSystemLoader(ASSETS)
    template = jinja2.Environment(autoescape=True, loader=loader, trim_blocks=True).get_template("search.html.jinja")

    @router.get("/", response_class=HTMLResponse)
    async def page() -> str:
        index = service.index
        images = index.items["image"].ids
        shown = np.random.default_rng(3).permutation(images)[:WALL]
        return template.render(
            facts=Facts.of(index, service.limits), review=review, wall=wall(index, shown), examples=examples(index)
        )

    for name, kind in (("search.css", "text/css"), ("search.js", "text/javascript"), ("icon.svg", "image/svg+xml")):
        content = (ASSETS / name).read_bytes()
        router.add_api_route(f"/assets/{name}", _constant(content, kind), methods=["GET"])
    return router


def _constant(content: bytes, kind: str) -> Any:
    async def file() -> Response:
        return Response(content, media_type=f"{kind}; charset=utf-8", headers={"Cache-Control": "no-cache"})

    return file


def wall(index: Index, shown: Any) -> list[dict[str, Any]]:
    """Some pictures to begin with."""
    return [as_dict(index.hit("image", int(number), 0.0)) for number in shown]


def examples(index: Index, wanted: int = 5) -> list[str]:
    """Some short captions of the index, as things to look for."""
    ids = index.items["caption"].ids
    drawn: Any = np.random.default_rng(7).permutation(ids)[:200] if index.manifest.fingerprint else []
    texts = [str(index.items["caption"].value(int(number), "caption")) for number in drawn]
    short = [text for text in dict.fromkeys(texts) if 3 <= len(text) <= 28 and text.isascii()]
    return (short or list(dict.fromkeys(texts)))[:wanted]
