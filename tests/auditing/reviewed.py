"""An audit folder made by hand, and the review of it served over real HTTP."""

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import uvicorn
from fastapi import FastAPI
from PIL import Image

from l2rm.auditing.review import review_router

ROWS = 120
EVIL = '<img src=x onerror="document.title=1"><script>document.title=2</script> & "quotes"'
COLOURS = ("red", "green", "blue", "orange", "purple", "teal")


def write_audit(
    folder: Path, *, rows: int = ROWS, pixels: bool = True, facts: bool = True, images: int | None = None
) -> Path:
    """An audit of `rows` pairs, two captions an image; row 0 is the least likely to match, and so on.

    Rows are in the order of suspicion backwards in the table (the last row is the most suspicious), so that order is
    something to get right. The first third are to be rematched, the next sixth dropped, the rest kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    count = images or rows // 2
    names = [f"picture {image}.png" for image in range(count)]
    said = ["rematch" if n < rows // 3 else "drop" if n < rows // 2 else "keep" for n in range(rows)]
    captions = [f"caption {n} of a {COLOURS[n % len(COLOURS)]} thing" for n in range(rows)]
    captions[3] = EVIL
    given = [names[n * count // rows] for n in range(rows)]
    suggested = [names[(n * count // rows + 1) % count] for n in range(rows)]
    columns = {
        "pair_id": [f"pair/{n}" for n in range(rows)],
        "image": given,
        "caption": captions,
        "match_probability": [n / rows for n in range(rows)],
        "is_mismatched": [verdict != "keep" for verdict in said],
        "rematch_image": suggested,
        "rematch_caption": [None if n == 5 else captions[(n + 7) % rows] for n in range(rows)],
        "rematch_confidence": [1 - n / rows for n in range(rows)],
        "decision": said,
    }
    table = pa.table({name: pa.array(cells[::-1]) for name, cells in columns.items()})
    pq.write_table(table, folder / "audit.parquet")
    root = folder / "images"
    if pixels:
        root.mkdir(exist_ok=True)
        for image, name in enumerate(names[:60]):
            Image.new("RGB", (60 + image, 40), COLOURS[image % len(COLOURS)]).save(root / name)
    if facts:
        known = {"format": 1, "source": "shop.csv", "image_root": str(root) if pixels else None, "images": names}
        (folder / "audit.json").write_text(json.dumps(known))
    return folder


@contextlib.contextmanager
def served(folder: Path, port: int = 0) -> Iterator[str]:
    """The address of a real server with the review of a folder."""
    app = FastAPI()
    app.include_router(review_router(folder))
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 120
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.01)
    assert server.started
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
