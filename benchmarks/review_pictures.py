"""Pictures of the review page for the documents, from an audit of the quick start.

`python benchmarks/review_pictures.py --audit quickstart --out docs/images`

Needs Debian's chromium and the extras `serve` and `test`. The audit is copied, so that no decision is left in it.
"""

import argparse
import io
import shutil
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from PIL import Image
from playwright.sync_api import Page, sync_playwright

from l2rm.auditing.review import review_router

CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
SHOWN = "1F3A6/en"  # "cinema", given a flag; a camera is suggested
PICTURES: dict[str, dict[str, Any]] = {
    "review": {"viewport": {"width": 1280, "height": 800}},
    "review-phone": {"viewport": {"width": 390, "height": 780}, "device_scale_factor": 2, "is_mobile": True},
}


def main() -> None:
    """Serve, click, photograph."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--audit", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for name, context in PICTURES.items():
        with tempfile.TemporaryDirectory() as scratch, sync_playwright() as playwright:
            for part in ("audit.parquet", "audit.json"):
                shutil.copy(options.audit / part, scratch)
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
            page = browser.new_context(**context).new_page()
            review(page, serve(Path(scratch)))
            save(page.screenshot(), options.out / f"{name}.png")
            browser.close()


def serve(folder: Path) -> str:
    """The address of a server of the review."""
    app = FastAPI()
    app.include_router(review_router(folder))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    threading.Thread(target=server.run, daemon=True).start()
    while not server.started:
        time.sleep(0.05)
    return f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/review"


def review(page: Page, address: str) -> None:
    """English names that the audit would rematch: some decisions, up to the pair to be shown."""
    page.goto(address)
    page.wait_for_selector("#pair:not([hidden])")
    page.evaluate("document.getElementById('tools').classList.add('open')")
    page.select_option("#said", "rematch")
    page.fill("#words", "/en")
    page.keyboard.press("Enter")  # leaves the field, so that keys decide
    page.wait_for_timeout(2000)
    page.evaluate("document.getElementById('tools').classList.remove('open')")
    for _ in range(20):
        page.wait_for_timeout(900)  # as long as a person looks
        if page.inner_text("#pair-id") == SHOWN:
            break
        page.keyboard.press("r" if page.inner_text("#caption") == "person standing" else "d")
    assert page.inner_text("#pair-id") == SHOWN
    page.wait_for_function("[...document.images].every((image) => image.complete)")


def save(screenshot: bytes, path: Path) -> None:
    """A PNG of 256 colours, a few dozen KB."""
    Image.open(io.BytesIO(screenshot)).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


if __name__ == "__main__":
    main()
