"""The review's API over real HTTP."""

import io
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import quote, urlencode

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from l2rm.auditing.decisions import Choice, DecisionStore
from l2rm.auditing.exports import export
from l2rm.auditing.folder import AuditFolder
from l2rm.auditing.queue import ReviewQueue

httpx = pytest.importorskip("httpx", reason="httpx is not installed: pip install -e '.[test]'")


class Client:
    """Asks the review's API as one tab of a browser does."""

    def __init__(self, base: str, tab: str = "tab") -> None:
        self.http = httpx.Client(base_url=base, timeout=60)
        self.tab, self.number = tab, 0

    def get(self, path: str, **parameters: Any) -> Any:
        response = self.http.get(f"/review/api/{path}", params=parameters)
        assert response.status_code == 200, response.text
        return response.json()

    def pairs(self, **parameters: Any) -> list[dict[str, Any]]:
        return self.get("pairs", **parameters)["pairs"]

    def post(self, path: str, **body: Any) -> Any:
        self.number += 1
        body = {"tab": self.tab, "request": f"{self.tab}-{self.number}", **body}
        return self.http.post(f"/review/api/{path}", json=body)

    def decide(self, pair: dict[str, Any], verdict: str, **more: Any) -> dict[str, Any]:
        response = self.post("decisions", row=pair["row"], verdict=verdict, seen=pair["version"], **more)
        assert response.status_code == 200, response.text
        return response.json()

    def export(self, **parameters: Any) -> Any:
        return self.http.get("/review/api/export", params=parameters)


@pytest.fixture
def folder(reviewed: ModuleType, tmp_path: Path) -> Path:
    return reviewed.write_audit(tmp_path / "audit")


@pytest.fixture
def base(reviewed: ModuleType, folder: Path) -> Iterator[str]:
    with reviewed.served(folder) as address:
        yield address


@pytest.fixture
def client(base: str) -> Client:
    return Client(base)


def test_pairs_come_in_order_of_suspicion_page_by_page(client: Client) -> None:
    found: list[dict[str, Any]] = []
    while page := client.pairs(after=found[-1]["rank"] if found else -1, limit=50):
        found += page
    assert [pair["pair_id"] for pair in found] == [f"pair/{n}" for n in range(120)]
    assert found[0]["row"] == 119  # the table has them backwards
    assert found[1]["probability"] == pytest.approx(1 / 120)
    assert found[0]["given"]["captions"] == [found[1]["caption"]]  # what else the image is given, not the pair itself
    assert found[5]["suggested_caption"] == ""


def test_filters_and_search(client: Client) -> None:
    assert client.get("pairs", said="mismatched")["total"] == 60
    assert client.get("pairs", said="drop")["total"] == 20
    teal = [n for n in range(120) if n % 6 == 5 or (n != 5 and (n + 7) % 6 == 5)]  # its caption, or the suggested one
    assert [pair["pair_id"] for pair in client.pairs(words="TEAL Thing", limit=100)] == [f"pair/{n}" for n in teal]
    assert [pair["pair_id"] for pair in client.pairs(words="pair/77")] == ["pair/77"]
    assert client.get("pairs", words="nowhere")["total"] == 0
    first, second = client.pairs(limit=2)
    client.decide(first, "keep")
    client.decide(second, "drop")
    assert client.get("pairs", show="undecided")["total"] == 118
    assert [pair["row"] for pair in client.pairs(show="decided")] == [first["row"], second["row"]]
    assert [pair["row"] for pair in client.pairs(show="drop")] == [second["row"]]
    assert client.get("pairs", show="all")["total"] == 120


def test_decisions_are_told_and_undone(client: Client) -> None:
    pair = client.pairs(limit=1)[0]
    outcome = client.decide(pair, "rematch")
    assert outcome["pair"]["new_image"]["name"] == pair["suggested"]["name"]
    assert (
        outcome["progress"] | {"rematch": 1, "decided": 1, "suspects_decided": 1, "undoable": 1} == outcome["progress"]
    )
    other = client.decide(outcome["pair"], "rematch", partner="caption")["pair"]
    assert (other["new_image"], other["new_caption"]) == (None, pair["suggested_caption"])
    third = client.decide(other, "rematch", image=7)["pair"]
    assert third["new_image"]["name"] == "picture 7.png"
    assert client.post("undo").json()["pair"]["new_caption"] == pair["suggested_caption"]
    assert client.post("undo").json()["pair"]["new_image"]["name"] == pair["suggested"]["name"]
    assert client.post("undo").json()["pair"]["decision"] == ""
    assert client.post("undo").json() | {"pair": None} == client.post("undo").json()
    assert client.get("summary")["progress"]["decided"] == 0


def test_two_tabs_see_each_other(client: Client, base: str) -> None:
    other = Client(base, "other")
    pair = client.pairs(limit=1)[0]
    start = other.get("summary")["version"]
    client.decide(pair, "keep")
    news = other.get("changes", since=start)
    assert [(one["row"], one["decision"]) for one in news["pairs"]] == [(pair["row"], "keep")]
    assert other.get("changes", since=news["version"])["pairs"] == []
    refused = other.decide(pair, "drop")  # it has not seen version 1
    assert (refused["conflict"], refused["pair"]["decision"]) == (True, "keep")
    assert not other.decide(refused["pair"], "drop")["conflict"]
    mine = client.post("undo").json()
    assert (mine["conflict"], mine["pair"]["decision"]) == (True, "drop")


def test_exports(client: Client, folder: Path, tmp_path: Path) -> None:
    kept, dropped, moved, retold = client.pairs(limit=4)
    client.decide(kept, "keep")
    client.decide(dropped, "drop")
    client.decide(moved, "rematch")
    client.decide(retold, "rematch", partner="caption")
    response = client.export(what="decisions", form="parquet")
    assert response.headers["content-disposition"] == 'attachment; filename="decisions.parquet"'
    table = pq.read_table(io.BytesIO(response.content)).to_pylist()
    assert {row["pair_id"]: row["decision"] for row in table} == {
        "pair/0": "keep", "pair/1": "drop", "pair/2": "rematch", "pair/3": "rematch",
    }  # fmt: skip
    for form in ("csv", "tsv", "jsonl"):
        content = client.export(what="decisions", form=form).content
        (tmp_path / f"decisions.{form}").write_bytes(content)
        from l2rm.data.decided import read_decisions

        assert {one.pair_id for one in read_decisions(tmp_path / f"decisions.{form}")} == {
            f"pair/{n}" for n in range(4)
        }
    lines = client.export(what="pairs", form="jsonl", undecided="audit").text.splitlines()
    pairs = {row["pair_id"]: row for row in map(json.loads, lines)}
    assert len(pairs) == 120 - 1 - 20  # one dropped by hand, twenty by the audit
    assert pairs["pair/2"]["image"] == moved["suggested"]["name"]
    assert pairs["pair/3"]["caption"] == retold["suggested_caption"]
    assert [pairs[f"pair/{n}"]["decided_by"] for n in (0, 10, 100)] == ["person", "audit", "nobody"]
    keys = client.export(what="filter", undecided="drop").text.split("\n")
    assert keys == ["pair/0", ""]
    assert client.export(what="filter", undecided="audit").headers["l2rm-note"] == "38 rematched pairs are not listed"
    index = np.load(io.BytesIO(client.export(what="index", undecided="keep").content), allow_pickle=False)
    expected = np.array([n * 60 // 120 for n in range(120)][::-1])
    expected[moved["row"]] = moved["suggested"]["image"]
    np.testing.assert_array_equal(index, expected)
    assert "2 dropped pairs or new captions" in client.export(what="index", undecided="keep").headers["l2rm-note"]


def test_a_filter_selects_what_webdataset_reads(reviewed: ModuleType, tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset", reason="the extra webdataset is not installed")
    folder = reviewed.write_audit(tmp_path / "audit", rows=6)  # of which 3 are kept
    images = [f"{shard}.tar/{key}.png" for shard in "01" for key in (f"{shard}1", f"{shard}2", "same")]
    for shard in "01":
        with tarfile.open(tmp_path / f"shop-{shard}.tar", "w") as tar:
            for image in images:
                if image.startswith(shard):
                    tar.addfile(tarfile.TarInfo(image.partition("/")[2]), io.BytesIO())
    table = pq.read_table(folder / "audit.parquet")
    decisions = pa.array(["keep", "drop", "drop", "keep", "rematch", "keep"])
    for name, cells in (("image", pa.array(images)), ("decision", decisions)):
        table = table.set_column(table.column_names.index(name), name, cells)
    pq.write_table(table, folder / "audit.parquet")
    (folder / "audit.json").unlink()
    queue = ReviewQueue(AuditFolder.open(folder))
    told = export(queue, "filter", tmp_path / "keep.txt")
    assert told.rows == 2
    assert "1 rematched pairs are not listed; 1 that stay share a key" in told.note
    document = (Path(__file__).parents[2] / "docs/review.md").read_text(encoding="utf-8")
    (snippet,) = re.findall(r"```python\n(.*?)```", document, re.DOTALL)
    for name in ("keep.txt", "shop-"):
        snippet = snippet.replace(name, str(tmp_path / name))
    snippet = snippet.replace("{0000..0099}", "{0..1}")
    known = {"webdataset": webdataset}
    exec(compile(snippet, "docs/review.md", "exec"), known)
    assert [sample["__key__"] for sample in known["dataset"]] == ["01", "11"]


def test_an_index_needs_to_know_how_images_are_counted(reviewed: ModuleType, tmp_path: Path) -> None:
    folder = reviewed.write_audit(tmp_path / "old", pixels=False, facts=False)
    with reviewed.served(folder) as base:
        client = Client(base)
        assert client.get("summary") | {"has_images": False, "has_index": False} == client.get("summary")
        refused = client.export(what="index")
        assert (refused.status_code, "no audit.json" in refused.json()["detail"]) == (409, True)
        assert client.http.get("/review/api/images/0").status_code == 404


def test_images_are_small_and_made_anew(client: Client, folder: Path) -> None:
    Image.new("RGB", (3000, 1500), "navy").save(folder / "images" / "picture 1.png")
    response = client.http.get("/review/api/images/1")
    picture = Image.open(io.BytesIO(response.content))
    assert (response.headers["content-type"], picture.format, picture.size) == ("image/webp", "WEBP", (768, 384))
    small = Image.open(io.BytesIO(client.http.get("/review/api/images/1", params={"size": "small"}).content))
    assert small.size == (144, 72)


def test_files_that_are_no_pictures_are_not_shown(client: Client, folder: Path) -> None:
    images = folder / "images"
    (images / "picture 2.png").write_text('<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>')
    (images / "picture 3.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n" + b"0 " * 600)
    Image.new("1", (20_000, 20_000)).save(images / "picture 4.png")  # 50 KB that are 400 million pixels
    (images / "picture 5.png").write_bytes((images / "picture 6.png").read_bytes()[:60])
    (images / "picture 7.png").unlink()
    for number in range(2, 8):
        expected = 200 if number == 6 else 404
        assert client.http.get(f"/review/api/images/{number}").status_code == expected, number


def test_pictures_within_shards_are_shown(reviewed: ModuleType, tmp_path: Path) -> None:
    folder = reviewed.write_audit(tmp_path / "audit", rows=4)
    shard = folder / "images" / "0.tar"
    with tarfile.open(shard, "w") as tar:
        tar.add(folder / "images" / "picture 0.png", "0.png")
    table = pq.read_table(folder / "audit.parquet").drop(["image"])
    names = pa.array(["0.tar/1.png", "0.tar/1.png", "0.tar/0.png", "0.tar/0.png"])
    pq.write_table(table.append_column("image", names), folder / "audit.parquet")
    facts = json.loads((folder / "audit.json").read_text())
    (folder / "audit.json").write_text(json.dumps(facts | {"images": ["0.tar/0.png", "0.tar/1.png"]}))
    with reviewed.served(folder) as address:
        http = Client(address).http
        assert Image.open(io.BytesIO(http.get("/review/api/images/0").content)).size == (60, 40)
        assert http.get("/review/api/images/1").status_code == 404
        shard.write_bytes(shard.read_bytes()[:700])
        assert http.get("/review/api/images/0", params={"size": "small"}).status_code == 404


@pytest.mark.parametrize("path", ["images/60", "images/-1", "images/..%2f..%2faudit.parquet", "pairs/120", "pairs/-1"])
def test_only_numbers_that_exist_name_anything(client: Client, path: str) -> None:
    assert client.http.get(f"/review/api/{path}").status_code in (404, 422)


def test_static_files_are_these_and_no_others(client: Client) -> None:
    page = client.http.get("/review").text
    stamp = page.split("/review/static/")[1].split("/")[0]
    for name in ("review.js", "view.js", "outbox.js", "dialogs.js", "review.css", "icon.svg"):
        assert client.http.get(f"/review/static/{stamp}/{name}").status_code == 200
    for name in ("..%2freview.py", "review.html.jinja", "%2e%2e/audit.py"):
        assert client.http.get(f"/review/static/{stamp}/{name}").status_code == 404


def test_the_page_runs_nothing_but_its_own(client: Client) -> None:
    response = client.http.get("/review")
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert response.headers["x-content-type-options"] == "nosniff"
    assert "<script>" not in response.text
    assert "http://" not in response.text.replace("http://www.w3.org", "")
    assert "https://" not in response.text


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"content-type": "text/plain"}, 415),
        ({"content-type": "application/json", "sec-fetch-site": "cross-site"}, 403),
        ({"content-type": "application/json", "content-length": "99999999"}, 413),
    ],
)
def test_what_no_page_of_ours_sends_is_refused(base: str, headers: dict[str, str], status: int) -> None:
    body = json.dumps({"row": 1, "verdict": "keep", "seen": 0, "tab": "t", "request": "r"}).encode()
    head = {"content-length": str(len(body)), **headers}
    host, port = base.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        lines = [f"POST /review/api/decisions HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n"]
        lines += [f"{name}: {value}\r\n" for name, value in head.items()]
        connection.sendall("".join(lines).encode() + b"\r\n" + body)
        answer = connection.recv(4096).decode()
    assert f" {status} " in answer.splitlines()[0]
    assert Client(base).get("summary")["progress"]["decided"] == 0


def test_wrong_decisions_are_refused(client: Client) -> None:
    pair = {pair["pair_id"]: pair for pair in client.pairs(limit=10)}["pair/5"]  # no caption is suggested for it
    good = {"row": pair["row"], "verdict": "rematch", "seen": 0}
    for changed, status in (
        ({"row": 120}, 404),
        ({"row": -1}, 422),
        ({"row": "0; DROP TABLE decisions"}, 422),
        ({"partner": "caption"}, 422),
        ({"image": 60}, 404),
        ({"image": pair["given"]["image"]}, 422),
        ({"verdict": "perhaps"}, 422),
        ({"tab": "a b"}, 422),
        ({"seen": -1}, 422),
    ):
        assert client.post("decisions", **{**good, **changed}).status_code == status, changed
    assert client.get("summary")["progress"]["decided"] == 0


@pytest.mark.parametrize(
    "body",
    [
        b'{"row": NaN, "verdict": "keep", "seen": 0, "tab": "t", "request": "r"}',
        b'{"row": 1, "verdict": "keep", "seen": 1e400, "tab": "t", "request": "r"}',
        rb'{"row": 1, "verdict": "keep", "seen": 0, "tab": "\ud800", "request": "r"}',
        rb'"\udc00"',
        b"NaN",
        b"[",
        b"\xff\xfe{",
        b"[" * 16_000,
    ],
)
def test_values_that_json_cannot_carry_back(base: str, body: bytes) -> None:
    headers = {"content-type": "application/json"}
    response = httpx.post(f"{base}/review/api/decisions", content=body, headers=headers)
    assert response.status_code in (400, 422)
    assert isinstance(response.json()["detail"], str)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
fields = st.fixed_dictionaries(
    {},
    optional={
        "row": json_values | st.integers(0, 130),
        "verdict": json_values | st.sampled_from(["keep", "rematch", "drop", ""]),
        "partner": json_values | st.sampled_from(["image", "caption"]),
        "image": json_values | st.integers(0, 130),
        "seen": json_values | st.integers(0, 5),
        "tab": json_values | st.just("t"),
        "request": json_values | st.text("abc0123", min_size=1, max_size=8),
    },
)
query = st.dictionaries(
    st.sampled_from(["show", "said", "words", "after", "limit", "since", "tab", "what", "form", "undecided", "size"]),
    st.text(max_size=30) | st.integers().map(str) | st.sampled_from(["all", "index", "csv", "\x00", "é" * 250]),
    max_size=5,
)


@pytest.fixture(scope="module")
def fuzzed(reviewed: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with reviewed.served(reviewed.write_audit(tmp_path_factory.mktemp("fuzz"))) as base:
        yield Client(base)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    path=st.sampled_from(["decisions", "undo"]),
    body=fields.map(lambda one: json.dumps(one).encode()) | st.binary(max_size=60),
)
def test_no_request_body_breaks_the_server(fuzzed: Client, path: str, body: bytes) -> None:
    headers = {"content-type": "application/json"}
    assert fuzzed.http.post(f"/review/api/{path}", content=body, headers=headers).status_code < 500


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    path=st.sampled_from(["summary", "pairs", "pairs/3", "images", "images/3", "changes", "export"])
    | st.text(max_size=12).map(lambda text: f"images/{text}"),
    parameters=query,
)
def test_no_query_breaks_the_server(fuzzed: Client, path: str, parameters: dict[str, str]) -> None:
    url = f"/review/api/{quote(path, safe='/')}?{urlencode(parameters)}"
    assert fuzzed.http.get(url).status_code < 500


SERVER = """
import sys
from pathlib import Path
import uvicorn
from fastapi import FastAPI
from l2rm.auditing.review import review_router

app = FastAPI()
app.include_router(review_router(Path(sys.argv[1])))
uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="error")
"""


def test_a_killed_server_forgets_nothing_that_it_answered(folder: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    answered: dict[int, str] = {}
    for turn, verdict in enumerate(("keep", "drop")):
        server = subprocess.Popen([sys.executable, "-c", SERVER, str(folder), str(port)])
        client = Client(f"http://127.0.0.1:{port}", f"turn{turn}")
        _wait(client)
        for pair in client.pairs(limit=20):
            answered[client.decide(pair, verdict)["pair"]["row"]] = verdict
        server.send_signal(signal.SIGKILL)
        server.wait()
        client.http.close()

    queue = ReviewQueue(AuditFolder.open(folder))
    assert {row: choice.verdict for row, choice in queue.decisions().items()} == answered
    assert len(answered) == 40  # the second server knew what the first one was told


def _wait(client: Client) -> None:
    for _ in range(1200):
        try:
            client.get("summary")
            return
        except httpx.TransportError:
            time.sleep(0.1)
    raise AssertionError("the server did not start")


def test_decisions_about_another_audit_do_not_count(reviewed: ModuleType, folder: Path, tmp_path: Path) -> None:
    with reviewed.served(folder) as base:
        client = Client(base)
        for pair in client.pairs(limit=10):
            client.decide(pair, "drop")
    small = reviewed.write_audit(tmp_path / "small", rows=12, images=3)  # for the same pair ids
    for name in ("decisions.sqlite", "decisions.sqlite-wal"):
        if (folder / name).exists():
            shutil.copy(folder / name, small / name)
    with reviewed.served(small) as base:
        progress = Client(base).get("summary")["progress"]
        assert progress["decided"] + progress["strays"] == 10
        assert progress["strays"] == 8  # all but pair/0 and pair/1 have another image now
        stray = Client(base).pairs(said="anything", limit=12)[5]
        assert not Client(base).decide(stray, "keep")["conflict"]


def test_a_rematch_to_an_image_that_is_gone_does_not_count(reviewed: ModuleType, tmp_path: Path) -> None:
    folder = reviewed.write_audit(tmp_path / "audit", rows=12)
    queue = ReviewQueue(AuditFolder.open(folder))
    for pair_id, image in (("pair/0", "picture 5.png"), ("pair/1", "picture 3.png")):
        choice = Choice(verdict="rematch", new_image=image)
        queue.decide(queue.row_of[pair_id], choice, seen=0, tab="one", request=pair_id)
    assert (queue.counts()["rematch"], queue.counts()["strays"]) == (2, 0)
    table = pq.read_table(folder / "audit.parquet").slice(2)  # without the pairs of picture 5
    suggested = pa.array(["picture 0.png"] * len(table))
    table = table.set_column(table.column_names.index("rematch_image"), "rematch_image", suggested)
    pq.write_table(table, folder / "audit.parquet")
    facts = json.loads((folder / "audit.json").read_text())
    (folder / "audit.json").write_text(json.dumps(facts | {"images": facts["images"][:5]}))
    queue = ReviewQueue(AuditFolder.open(folder))
    assert queue.decisions() == {queue.row_of["pair/1"]: choice}
    assert (queue.counts()["rematch"], queue.counts()["strays"]) == (1, 1)
    export(queue, "index", tmp_path / "index.npy", undecided="keep")
    assert np.load(tmp_path / "index.npy")[::-1].tolist() == [0, 3, 1, 1, 2, 2, 3, 3, 4, 4]
    row = queue.row_of["pair/0"]
    queue.decide(row, Choice(verdict="keep"), seen=queue.version(row), tab="one", request="again")
    assert (queue.counts()["decided"], queue.counts()["strays"]) == (2, 0)


def test_no_decision_is_told_as_it_was_before_its_version(
    reviewed: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = ReviewQueue(AuditFolder.open(reviewed.write_audit(tmp_path / "audit", rows=12)))
    elsewhere, since, reads = DecisionStore(queue.store.path), queue.store.since, []

    def read(version: int) -> Any:
        reads.append(version)
        if len(reads) == 2:  # another process decides between the two reads of one question
            elsewhere.decide(queue.pair(3), Choice(verdict="keep"), seen=0, tab="other", request="r")
        return since(version)

    monkeypatch.setattr(queue.store, "since", read)
    version, told = 0, {}
    for _ in range(2):
        rows, version = queue.changes(version)
        told |= {row: queue.choice(row).verdict for row in rows}
    assert told == {3: "keep"}


def test_a_large_audit_answers_by_the_page(reviewed: ModuleType, tmp_path: Path) -> None:
    folder = reviewed.write_audit(tmp_path / "large", rows=50_000, pixels=False)
    with reviewed.served(folder) as base:
        client = Client(base)
        response = client.http.get("/review/api/pairs", params={"words": "teal", "limit": 40})
        assert response.json()["total"] == 2 * (50_000 // 6)
        assert len(response.content) < 60_000
        assert len(client.http.get("/review").content) < 20_000


def test_images_are_found_by_their_own_words(client: Client) -> None:
    found = client.get("images", words="purple 100")
    assert [(image["name"], len(image["captions"])) for image in found] == [("picture 50.png", 2)]
    for words in ("teal 11", "picture 7.png"):
        found = client.get("images", words=words)
        assert found
        for image in found:
            texts = [f"{image['name']} {caption}" for caption in image["captions"]]
            assert any(all(word in text for word in words.split()) for text in texts)
