"""The service against bare FAISS: latency and queries a second at 16 concurrent clients, same vectors, same threads.

`python benchmarks/serve.py [--count 1000000] [--dim 256] [--page INDEX] --json FILE`     (`--tiny`: seconds)

Vectors are drawn around 500 centres in 32 dimensions, turned into 256, with noise. Bare FAISS is called as a library
from 16 threads, a query a call, and from one thread, 16 queries a call. Over HTTP, 16 clients on keep-alive
connections in a process of their own send a vector and wait for its answer; or 16 vectors at once. Everything shares
the machine's cores. Rounds take turns, and medians over rounds are told. `--page` measures in Chromium, from Enter to
the first picture.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from provenance import provenance

from l2rm.data.features import Features
from l2rm.data.pairs import Pairs
from l2rm.files import written_whole
from l2rm.search.approximate import Lists, faiss
from l2rm.search.index import Index

CLIENTS, K = 16, 10
Search = Callable[[np.ndarray], Any]
WORDS = ("red heart", "cat", "house by the sea", "clock", "green tree", "smiling face", "car", "flower", "moon")


def main() -> None:
    """Build, measure in turns, print, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--page", type=Path)
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    if options.tiny:
        options.count, options.dim, options.seconds, options.rounds = 20_000, 16, 0.3, 1
    result: dict[str, Any] = {**provenance(), "load_average_before": round(os.getloadavg()[0], 1)}
    result |= {"vectors": options.count, "dim": options.dim, "clients": CLIENTS, "k": K, "threads": os.cpu_count()}
    with tempfile.TemporaryDirectory(prefix="l2rm-serve-", dir=options.folder) as folder:
        began = time.perf_counter()
        index, exact, queries = build(Path(folder), options.count, options.dim)
        result |= {"build_s": round(time.perf_counter() - began, 1), "approximate": index.manifest.approximate["image"]}
        result["rows"] = measure(index, lists_of(index), queries, options.seconds, options.rounds)
        result["exact_rows"] = measure(exact, everything_of(exact), queries, options.seconds, options.rounds)
    if options.page is not None:
        result["page"] = page(options.page)
    for rows, prefix in (("rows", ""), ("exact_rows", "exact_")):
        http, calls, batches = (result[rows][name] for name in ("http", "bare_calls", "bare_batches"))
        best = max(calls["queries_s"], batches["queries_s"])
        result[f"{prefix}of_bare_throughput"] = round(http["queries_s"] / best, 3)
        result[f"{prefix}p95_over_bare"] = round(http["p95_ms"] / calls["p95_ms"], 2)
    with written_whole(options.json) as beside:
        beside.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({name: value for name, value in result.items() if "bare" in name}))


def build(folder: Path, count: int, dim: int) -> tuple[Index, Index, np.ndarray]:
    """An approximate and an exact index of clustered vectors, and queries that are like them."""
    generator = np.random.default_rng(0)
    inner = min(32, dim)
    centres = 1.5 * generator.standard_normal((500, inner), np.float32)
    outwards = generator.standard_normal((inner, dim), np.float32)
    file = folder / "vectors.npy"
    vectors = np.lib.format.open_memmap(file, "w+", np.float32, (count, dim))

    def drawn(number: int) -> np.ndarray:
        point = centres[generator.integers(len(centres), size=number)] + generator.standard_normal(
            (number, inner), np.float32
        )
        return point @ outwards + 0.3 * generator.standard_normal((number, dim), np.float32)

    for start in range(0, count, 2**16):
        vectors[start : start + 2**16] = drawn(min(2**16, count - start))
    queries = drawn(2000)
    near = np.arange(2000) % count
    pairs = Pairs(
        images=tuple(map(str, range(count))),
        image_of=near,
        captions=tuple(map(str, range(2000))),
        features=Features(array=vectors),
        caption_features=Features(array=queries),
        source="clustered",
    )
    index = Index.build(pairs, out=folder / "index", approximate_above=min(100_000, count // 2))
    exact = Index.build(pairs, out=folder / "exact", approximate_above=None)
    file.unlink()
    return index, exact, queries / np.linalg.norm(queries, axis=1, keepdims=True)


def lists_of(index: Index) -> Search:
    """FAISS's search of the approximate index."""
    facts = index.manifest.approximate["image"]
    lists = Lists(index.folder / facts["file"], facts["probes"])
    return lambda some: lists.search(some, K, np.empty(0, dtype=np.int64))


def everything_of(index: Index) -> Search:
    """FAISS's exact search of the vectors."""
    library = faiss()
    library.omp_set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1))
    (file,) = index.folder.glob("segments/*/image_vectors.npy")
    vectors = np.load(file, mmap_mode="r")
    return lambda some: library.knn(some, vectors, K, metric=library.METRIC_INNER_PRODUCT)


def measure(index: Index, search: Search, queries: np.ndarray, seconds: float, rounds: int) -> dict[str, Any]:
    """Medians over rounds of each way to ask."""
    command = [sys.executable, "-m", "l2rm", "serve", str(index.folder), "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    port = int(server.stdout.readline().split("/")[2].split(":")[1])
    ways: dict[str, Callable[[float], list[tuple[float, int]]]] = {
        "bare_calls": lambda s: bare(search, queries, s, threads=CLIENTS, batch=1),
        "bare_batches": lambda s: bare(search, queries, s, threads=1, batch=CLIENTS),
        "http": lambda s: over_http(port, queries, s, 1),
        "http_batches": lambda s: over_http(port, queries, s, CLIENTS),
    }
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    try:
        for way in ways.values():  # pages come into memory, threads are started
            way(min(1.0, seconds))
        for _ in range(rounds):
            for name, way in ways.items():
                began = time.perf_counter()
                took = way(seconds)
                passed = time.perf_counter() - began
                milliseconds = 1000 * np.array([one for one, _ in took])
                row = {"queries_s": sum(count for _, count in took) / min(passed, seconds * 1.5)}
                row |= {f"p{q}_ms": float(np.percentile(milliseconds, q)) for q in (50, 95)}
                found[name].append(row)
                print(name, {key: round(value, 2) for key, value in row.items()}, flush=True)
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(30)
    return {
        name: {key: round(float(np.median([row[key] for row in rows])), 3) for key in rows[0]}
        for name, rows in found.items()
    }


def bare(search: Search, queries: np.ndarray, seconds: float, *, threads: int, batch: int) -> list[tuple[float, int]]:
    """(seconds, queries) of every call."""
    took: list[tuple[float, int]] = []
    until = time.perf_counter() + seconds

    def work(number: int) -> None:
        place = 97 * number
        while (began := time.perf_counter()) < until:
            place = (place + batch) % (len(queries) - batch)
            search(queries[place : place + batch])
            took.append((time.perf_counter() - began, batch))

    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return took


def over_http(port: int, queries: np.ndarray, seconds: float, batch: int) -> list[tuple[float, int]]:
    """The same by clients in a process of their own."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(_clients, (port, queries, seconds, batch))


def _clients(port: int, queries: np.ndarray, seconds: float, batch: int) -> list[tuple[float, int]]:
    return asyncio.run(_all_clients(port, queries, seconds, batch))


async def _all_clients(port: int, queries: np.ndarray, seconds: float, batch: int) -> list[tuple[float, int]]:
    until = time.perf_counter() + seconds
    parts = await asyncio.gather(*(_client(port, queries, until, batch, number) for number in range(CLIENTS)))
    return [one for part in parts for one in part]


async def _client(port: int, queries: np.ndarray, until: float, batch: int, number: int) -> list[tuple[float, int]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    size = batch * queries.shape[1] * 4
    head = f"POST /api/search/vectors?k={K} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {size}\r\n\r\n".encode()
    took, place = [], 97 * number
    while (began := time.perf_counter()) < until:
        place = (place + batch) % (len(queries) - batch)
        writer.write(head + queries[place : place + batch].astype("<f4").tobytes())
        answer = await reader.readuntil(b"\r\n\r\n")
        length = int(answer.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        content = await reader.readexactly(length)
        took.append((time.perf_counter() - began, batch))
        if not answer.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"{answer!r} {content!r}")
    writer.close()
    return took


def page(folder: Path) -> dict[str, Any]:
    """Milliseconds from the Enter key to the first picture that is drawn, each search another one."""
    from playwright.sync_api import sync_playwright

    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    server = subprocess.Popen(
        [sys.executable, "-m", "l2rm", "serve", str(folder), "--port", "0"], stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    address = server.stdout.readline().split()[0]
    took: list[float] = []
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=flags)
            window = browser.new_page()
            window.goto(address)
            window.wait_for_load_state("networkidle")
            took = [window.evaluate(FIRST_PICTURE, words) for words in WORDS]
            browser.close()
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(30)
    return {"median_ms": round(float(np.median(took)), 1), "largest_ms": round(max(took), 1), "searches": len(took)}


FIRST_PICTURE = """(words) => new Promise((done) => {
  const results = document.getElementById("results"), before = results.firstElementChild;
  document.getElementById("words").value = words;
  const began = performance.now();
  document.getElementById("form").requestSubmit();
  const look = () => {
    const picture = results.querySelector(".tile img");
    const changed = results.firstElementChild !== before;
    if (changed && picture?.complete && picture.naturalWidth) done(performance.now() - began);
    else requestAnimationFrame(look);
  };
  look();
})"""


if __name__ == "__main__":
    main()
