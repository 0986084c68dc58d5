"""Make the pictures of the search page for the README, with Chromium.

`python benchmarks/pictures.py INDEX [--words "red heart"] [--out docs/images]`
"""

import argparse
import asyncio
import contextlib
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import uvicorn
from playwright.async_api import Browser, async_playwright

from l2rm.search.index import Index
from l2rm.search.service import make_app

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip


def main() -> None:
    """Serve the index, look at it at two widths, in light and dark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("index", type=Path)
    parser.add_argument("--words", default="red heart")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs/images")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with served(options.index) as address:
        asyncio.run(take(address, options.words, options.out))


async def take(address: str, words: str, out: Path) -> None:
    """Photograph the pages; phones at their own density, which is what a small picture is read at."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        phone = {"width": 390, "height": 800}
        await photograph(browser, f"{address}?q={words}", out / "search.png", {"width": 1200, "height": 780})
        await photograph(browser, f"{address}?q={words}", out / "search-phone.png", phone, dark=True)
        await photograph(browser, address, out / "search-start.png", {"width": 1200, "height": 780})
        await photograph(browser, address, out / "search-start-phone.png", phone)
        await photograph(
            browser,
            f"{address}?q={words}&in=captions",
            out / "search-captions.png",
            {"width": 1200, "height": 780},
            dark=True,
        )
        await browser.close()


async def photograph(browser: Browser, address: str, path: Path, size: dict[str, int], *, dark: bool = False) -> None:
    """One page, once its pictures are there."""
    scheme = "dark" if dark else "light"
    page = await browser.new_page(viewport=size, color_scheme=scheme)  # type: ignore[arg-type]
    await page.goto(address)
    await page.wait_for_load_state("networkidle")
    await page.screenshot(path=path)
    await page.close()
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of the index's service, while the block runs."""
    index = Index(folder)
    index.warm_up()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(make_app(index), log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        server.should_exit = True
        thread.join()


if __name__ == "__main__":
    main()
