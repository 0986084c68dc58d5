"""The service over its own protocol: answers, limits, and what a hostile visitor would try."""

import io
import json
import struct
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from l2rm.data.pairs import Pairs
from l2rm.search.index import Index
from l2rm.similarity.model import RetrievalModel

from .conftest import ENCODER, draw

pytest.importorskip("fastapi", reason="the extra serve brings it")
from fastapi.testclient import TestClient

from l2rm.search.questions import Limits
from l2rm.search.service import make_app

LIMITS = Limits(upload_bytes=200_000, seconds=20)


@pytest.fixture(scope="module")
def client(served_index: Index) -> Iterator[TestClient]:
    app = make_app(served_index, limits=LIMITS, hosts=("testserver",))
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def png(size: tuple[int, int] = (32, 32), colour: str = "red") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, format="PNG")
    return file.getvalue()


def bomb(side: int = 60_000) -> bytes:
    """A PNG of a few kB that claims to be of 3.6 thousand million pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 1_000_000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


# ------------------------------------------------------------------------------------------------------------ answers


def test_words_items_and_vectors(client: TestClient, served_index: Index) -> None:
    text = "a red kite"
    wanted = [(hit.id, hit.name) for hit in served_index.search_text(text, k=7)]
    by_get = client.get("/api/search", params={"q": text, "k": 7}).json()["results"]
    by_post = client.post("/api/search", json={"text": text, "k": 7}).json()["results"]
    assert [(hit["id"], hit["name"]) for hit in by_get] == [(hit["id"], hit["name"]) for hit in by_post] == wanted
    like = client.post("/api/search", json={"image": 4, "target": "captions", "k": 3}).json()["results"]
    assert [hit["id"] for hit in like] == [
        hit.id for hit in served_index.search_item("image", 4, k=3, target="caption")
    ]
    vector = served_index.items["image"].vector(9)
    assert client.post("/api/search", json={"vector": vector.tolist()}).json()["results"][0]["id"] == 9
    body = np.stack([vector, -vector]).astype("<f4").tobytes()
    many = client.post("/api/search/vectors", params={"k": 3}, content=body).json()
    assert (len(many["ids"]), len(many["scores"][0]), many["ids"][0][0]) == (2, 3, 9)


def test_batch_is_the_same_one_by_one(client: TestClient) -> None:
    queries = [{"text": "red"}, {"image": 3, "target": "captions"}, {"caption": 3, "k": 2}]
    together = client.post("/api/search/batch", json={"queries": queries}).json()["results"]
    for query, results in zip(queries, together, strict=True):
        alone = client.post("/api/search", json=query).json()["results"]
        assert [hit["id"] for hit in results] == [hit["id"] for hit in alone]


def test_picture_finds_itself(client: TestClient, drawn: Pairs) -> None:
    content = drawn.image_path(8).read_bytes()  # type: ignore[union-attr]
    answer = client.post("/api/search/picture?target=images&k=2", files={"file": ("x.png", content)})
    assert answer.json()["results"][0]["name"] == drawn.images[8]


def test_pictures_leave_re_encoded(client: TestClient) -> None:
    answer = client.get("/api/images/3/picture", params={"size": 160})
    assert answer.headers["content-type"] == "image/webp"
    with Image.open(io.BytesIO(answer.content)) as picture:
        assert (picture.format, picture.size) == ("WEBP", (32, 32))
    assert client.get("/api/images/3").json()["captions"][0].endswith(" 3")


def test_health_metrics_and_openapi(client: TestClient) -> None:
    assert client.get("/healthz").json()["status"] == "ok"
    client.get("/api/search", params={"q": "red"})
    text = client.get("/metrics").text
    assert 'l2rm_items{kind="image"} 60.0' in text
    assert 'l2rm_requests_total{route="/api/search",status="200"}' in text
    assert {"/api/search", "/api/search/batch", "/api/search/picture"} <= client.get("/openapi.json").json()[
        "paths"
    ].keys()


def test_changes_on_the_disk_are_followed(
    cosine: RetrievalModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("l2rm.search.service.RELOAD_SECONDS", 0)
    Index.build(draw(tmp_path / "drawn"), cosine, out=tmp_path / "index", encoder=ENCODER)
    with TestClient(make_app(Index(tmp_path / "index"), hosts=("testserver",))) as client:
        assert len(client.get("/api/search", params={"q": "red", "k": 100}).json()["results"]) == 60
        Index(tmp_path / "index").remove(images=[1, 2])
        assert len(client.get("/api/search", params={"q": "red", "k": 100}).json()["results"]) == 58


# ------------------------------------------------------------------------------------------------------------- limits


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/search", {"text": "x" * 10_000}),
        ("/api/search", {"text": ""}),
        ("/api/search", {}),
        ("/api/search", {"text": "a", "image": 1}),
        ("/api/search", {"text": "a", "k": 0}),
        ("/api/search", {"text": "a", "k": 10**9}),
        ("/api/search", {"text": "a", "target": "both"}),
        ("/api/search", {"image": 10**30}),
        ("/api/search", {"vector": [1.0]}),
        ("/api/search", {"vector": [1e300] * 16}),
        ("/api/search", {"text": "a", "surprise": 1}),
        ("/api/search/batch", {"queries": []}),
        ("/api/search/batch", {"queries": [{"text": "a"}] * 257}),
    ],
)
def test_bad_questions_are_told_in_a_line(path: str, body: object, client: TestClient) -> None:
    answer = client.post(path, json=body)
    assert answer.status_code == 422
    assert "\n" not in answer.json()["detail"]


def test_long_words_and_broken_bodies(client: TestClient) -> None:
    assert client.get("/api/search", params={"q": "x" * 10_000}).status_code == 422
    assert client.post("/api/search", content=b"{", headers={"content-type": "application/json"}).status_code == 422
    assert client.post("/api/search/vectors", content=b"123").status_code == 422
    nan = np.full(16, np.nan, dtype="<f4").tobytes()
    assert client.post("/api/search/vectors", content=nan).status_code == 422
    assert (
        client.post(
            "/api/search", content=b'{"vector": [NaN]}', headers={"content-type": "application/json"}
        ).status_code
        == 422
    )
    assert client.get("/api/images/77777").status_code == 404


@pytest.mark.parametrize("path", ["/api/search/picture", "/api/search/vectors", "/api/search", "/nowhere"])
def test_large_bodies_are_refused_before_they_are_read(path: str, client: TestClient) -> None:
    content = b"0" * (LIMITS.upload_bytes + 1)
    assert client.post(path, content=content).status_code == 413

    def unannounced() -> Iterator[bytes]:
        for _ in range(50):
            yield b"0" * 10_000

    if path != "/nowhere":
        headers = {"content-type": "multipart/form-data; boundary=x"} if path.endswith("picture") else {}
        assert client.post(path, content=unannounced(), headers=headers).status_code in (400, 413)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no picture",
        b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%id) (w) file\n",
        b"GIF89a" + b"\xff" * 50,
        png()[:60],
        bomb(),
    ],
)
def test_uploads_that_are_no_pictures(content: bytes, client: TestClient) -> None:
    answer = client.post("/api/search/picture", files={"file": ("x.png", content, "image/png")})
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith("picture: ")


def test_bomb_within_pillow_s_own_limit(client: TestClient) -> None:
    file = io.BytesIO()
    Image.new("1", (8000, 8000)).save(file, format="PNG")
    answer = client.post("/api/search/picture", files={"file": ("x.png", file.getvalue(), "image/png")})
    assert answer.status_code == 422
    assert "too many" in answer.json()["detail"]


def test_slow_answers_are_given_up(served_index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    monkeypatch.setattr(Index, "search", lambda *_, **__: time.sleep(1))
    app = make_app(served_index, limits=replace(LIMITS, seconds=0.1), hosts=("testserver",))
    with TestClient(app) as client:
        assert client.get("/api/search", params={"q": "red"}).status_code == 504


# ------------------------------------------------------------------------------------------------------------ security


@pytest.mark.parametrize(
    "path",
    [
        "/assets/../service.py",
        "/assets/%2e%2e/service.py",
        "/api/images/../../../../etc/passwd",
        "/api/images/..%2f..%2fetc%2fpasswd/picture",
        "/api/images/picture%200.png/picture",
        "/api/images/-1/picture",
        "//etc/passwd",
    ],
)
def test_no_path_leads_out(path: str, client: TestClient) -> None:
    answer = client.get(path)
    assert answer.status_code in (404, 422)
    assert b"root:" not in answer.content
    assert b"import" not in answer.content


def test_files_that_are_no_rasters_do_not_pass(cosine: RetrievalModel, tmp_path: Path) -> None:
    pairs = draw(tmp_path / "drawn", 4)
    index = Index.build(pairs, cosine, out=tmp_path / "index")
    script = "<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>"
    (tmp_path / "drawn" / pairs.images[0]).write_text(script)
    (tmp_path / "drawn" / pairs.images[1]).write_bytes(bomb())
    (tmp_path / "drawn" / pairs.images[2]).unlink()
    with TestClient(make_app(index, hosts=("testserver",))) as client:
        for number in range(3):
            answer = client.get(f"/api/images/{number}/picture")
            assert answer.status_code == 422
            assert "svg" not in answer.text.replace(".png", "")
        assert client.get("/api/images/3/picture").status_code == 200


def test_pictures_within_shards_are_shown(cosine: RetrievalModel, tmp_path: Path) -> None:
    pairs = draw(tmp_path / "drawn", 4)
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for name in pairs.images[:3]:
            tar.add(tmp_path / "drawn" / name, name)
    packed = replace(pairs, images=tuple(f"0.tar/{name}" for name in pairs.images), image_root=tmp_path)
    index = Index.build(packed, cosine, out=tmp_path / "index")
    with TestClient(make_app(index, hosts=("testserver",))) as client:
        shown = Image.open(io.BytesIO(client.get("/api/images/1/picture").content))
        assert (shown.format, shown.size) == ("WEBP", (32, 32))
        assert client.get("/api/images/3/picture").status_code == 422


def test_captions_with_html_are_text(cosine: RetrievalModel, tmp_path: Path) -> None:
    pairs = draw(tmp_path / "drawn", 4)
    evil = "<img src=x onerror=alert(1)>\"'</script><script>alert(2)</script>"
    pairs = replace(pairs, captions=(evil,) * len(pairs))
    index = Index.build(pairs, cosine, out=tmp_path / "index")
    with TestClient(make_app(index, hosts=("testserver",))) as client:
        page = client.get("/").text
        assert "onerror=alert" in page
        assert "<img src=x" not in page
        assert "<script>alert" not in page
        answer = client.get("/api/search", params={"q": evil})
        assert answer.headers["content-type"] == "application/json"
        assert answer.json()["results"][0]["captions"] == [evil] * 2


def test_headers_and_hosts(client: TestClient) -> None:
    for path in ("/", "/api/index", "/nowhere", "/assets/search.js"):
        headers = client.get(path, headers={"Origin": "https://elsewhere.example"}).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in headers
    rebound = client.get("/api/index", headers={"Host": "elsewhere.example:8000"})
    assert rebound.status_code == 400
    assert "images" not in json.loads(rebound.text)


def test_page_names_nothing_elsewhere(client: TestClient) -> None:
    for path in ("/", "/assets/search.css", "/assets/search.js"):
        text = client.get(path).text.replace("http://www.w3.org/", "")
        assert "http:" not in text
        assert "https:" not in text
        assert "//cdn" not in text
    page = client.get("/").text
    assert "style=" not in page  # which the policy would not let through
    assert "onclick" not in page


# ---------------------------------------------------------------------------------------------------------------- fuzz


@pytest.mark.filterwarnings("ignore")
def test_no_request_fails(served_index: Index) -> None:
    """What the OpenAPI document allows, and what it forbids, is answered or refused, never a failure of ours."""
    schemathesis = pytest.importorskip("schemathesis", reason="the extra test brings it")
    from hypothesis import HealthCheck, Phase, given, settings
    from schemathesis import GenerationMode

    schema = schemathesis.openapi.from_asgi("/openapi.json", make_app(served_index, limits=LIMITS, hosts=("*",)))
    statuses: dict[str, set[int]] = {}
    for found in schema.get_all_operations():
        operation = found.ok()
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            if mode is GenerationMode.NEGATIVE and not (operation.body or operation.query or operation.path_parameters):
                continue  # nothing of it can be wrong

            def ask(case: Any) -> None:
                status = case.call().status_code
                statuses.setdefault(case.path, set()).add(status)
                assert status < 500, case.as_curl_command()

            few = settings(
                max_examples=4, deadline=None, phases=[Phase.generate], derandomize=True, database=None,
                suppress_health_check=list(HealthCheck),
            )  # fmt: skip
            few(given(case=operation.as_strategy(generation_mode=mode))(ask))()
    assert len(statuses) >= 8
    assert all(min(seen) < 500 for seen in statuses.values())
    assert {200, 422} <= statuses["/api/search"]
