# ruff: noqa: E501 - scripts for the browser
"""The page in a real browser: search, upload, more like this; what is wrong is said; and it is for everyone.

Debian's Chromium (apt package chromium); skipped where there is none.
"""

import re
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from l2rm.data.pairs import Pairs
from l2rm.search.index import Index
from l2rm.similarity.model import RetrievalModel

from .conftest import ENCODER, draw

uvicorn = pytest.importorskip("uvicorn", reason="the extra serve brings it")
playwright = pytest.importorskip("playwright.sync_api", reason="the extra test brings it")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium; apt-get install chromium")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip
DESKTOP, PHONE = {"width": 1200, "height": 800}, {"width": 375, "height": 700}
EVIL = "<b>bold</b> \"quoted\" <script>document.title='broken'</script>"


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    pairs = draw(tmp_path_factory.mktemp("pictures"), 40)
    return replace(pairs, captions=(EVIL, *pairs.captions[1:]))


@pytest.fixture(scope="module")
def address(pairs: Pairs, cosine: RetrievalModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    from l2rm.search.questions import Limits
    from l2rm.search.service import make_app

    index = Index.build(pairs, cosine, out=tmp_path_factory.mktemp("index") / "index", encoder=ENCODER)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(make_app(index, limits=Limits(upload_bytes=100_000)), log_level="warning")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        server.should_exit = True
        thread.join(10)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(params=[DESKTOP, PHONE], ids=["desktop", "phone"])
def size(request: pytest.FixtureRequest) -> dict[str, int]:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def page(size: dict[str, int], browser: Any, address: str) -> Iterator[Any]:
    """A page that asks its own service alone, and breaks neither a rule of its policy nor a script."""
    context = browser.new_context(viewport=size)
    page = context.new_page()
    page.set_default_timeout(30_000)
    said: list[str] = []
    elsewhere: list[str] = []
    page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on(
        "request",
        lambda one: elsewhere.append(one.url) if not one.url.startswith((address, "blob:", "data:")) else None,
    )
    page.goto(address)
    yield page
    assert not elsewhere
    assert not [line for line in said if "422" not in line and "413" not in line and "ERR_" not in line]
    context.close()


def wait_for(page: Any, count: int = 24, kind: str = "picture") -> None:
    page.locator("#status").filter(has_text=re.compile(rf"^{count} {kind}s in \d+ ms$")).wait_for()


def test_a_visit(page: Any, pairs: Pairs, address: str) -> None:
    """What people do, in one go: words, captions, more like this, back, a picture of one's own, and away with it."""
    assert page.locator(".tile").count() == 24
    page.keyboard.press("/")
    page.keyboard.type("red kite")
    page.keyboard.press("Enter")
    wait_for(page)
    assert page.url.endswith("?q=red+kite")
    assert page.locator("h2").inner_text() == "Pictures for “red kite”"
    images = page.locator(".tile img")
    assert images.count() == 24
    for i in range(4):
        assert images.nth(i).evaluate("async (one) => { await one.decode(); return one.naturalWidth; }") > 0
    scores = [
        float(text) for text in re.findall(r"score (-?\d\.\d{3})", " ".join(page.locator(".tile").all_inner_texts()))
    ]
    assert scores == sorted(scores, reverse=True)

    page.get_by_label("Captions").check()
    wait_for(page, kind="caption")
    assert page.locator(".row").count() == 24
    page.get_by_label("Pictures").check()
    wait_for(page)

    first = page.locator(".tile a").first
    name = re.sub(r", score.*", "", first.get_attribute("aria-label"))
    first.click()
    page.locator("h2").filter(has_text="More like this picture").wait_for()
    wait_for(page)
    page.locator("#chip-text").filter(has_text=name.removeprefix("More like ")).wait_for()
    page.go_back()
    page.locator("h2").filter(has_text="Pictures for “red kite”").wait_for()

    page.locator("#file").set_input_files(pairs.image_path(11))
    page.locator("h2").filter(has_text="Captions for your picture").wait_for()
    wait_for(page, kind="caption")
    page.get_by_label("Pictures").check()
    wait_for(page)
    assert page.locator(".tile .label").first.inner_text() == pairs.captions[22]
    page.get_by_label("Remove this picture from the search").click()
    page.locator("h2").filter(has_text="Some of the pictures").wait_for()
    assert page.evaluate("document.activeElement.id") == "words"
    assert page.url == address


@pytest.mark.parametrize("size", [DESKTOP], ids=["desktop"])
def test_dropped_picture(page: Any, pairs: Pairs) -> None:
    content = list(pairs.image_path(3).read_bytes())  # type: ignore[union-attr]
    page.evaluate(
        """(content) => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([new Uint8Array(content)], "mine.png", { type: "image/png" }));
            for (const type of ["dragenter", "drop"]) window.dispatchEvent(new DragEvent(type, { dataTransfer: transfer }));
        }""",
        content,
    )
    wait_for(page, kind="caption")
    assert page.locator("#chip-text").inner_text() == "mine.png"


@pytest.mark.parametrize("size", [DESKTOP], ids=["desktop"])
def test_what_is_wrong_is_said(page: Any, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    page.locator("#file").set_input_files(tmp_path / "broken.png")
    page.get_by_role("alert").filter(has_text="not an image that can be read").wait_for()
    (tmp_path / "large.png").write_bytes(b"0" * 200_000)
    page.locator("#file").set_input_files(tmp_path / "large.png")
    page.get_by_role("alert").filter(has_text="at most 0 MB").wait_for()
    page.route("**/api/search?*", lambda route: route.abort())
    page.get_by_label("Words to look for").fill("red")
    page.keyboard.press("Enter")
    page.get_by_role("alert").filter(has_text="does not answer").wait_for()
    page.unroute("**/api/search?*")
    page.get_by_role("button", name="Try again").click()
    wait_for(page, kind="caption")  # it still looks among captions
    assert page.get_by_role("alert").count() == 0


@pytest.mark.parametrize("size", [DESKTOP], ids=["desktop"])
def test_loading_and_nothing_found(page: Any) -> None:
    held: list[Any] = []
    page.route("**/api/search?*", lambda route: held.append(route))
    page.get_by_label("Words to look for").fill("red")
    page.keyboard.press("Enter")
    page.locator("#results[aria-busy=true] .waiting").first.wait_for()
    held[0].fulfill(json={"results": [], "seconds": 0})
    page.get_by_text("Nothing found.").wait_for()
    assert page.locator("#status").inner_text().startswith("0 pictures in ")


@pytest.mark.parametrize("size", [DESKTOP], ids=["desktop"])
def test_captions_are_text(page: Any, pairs: Pairs, address: str) -> None:
    page.goto(f"{address}?like=image:1&in=captions")
    wait_for(page, kind="caption")
    page.get_by_label("Words to look for").fill(EVIL)
    page.keyboard.press("Enter")
    wait_for(page, kind="caption")
    page.locator(".row .text").filter(has_text="<b>bold</b>").first.wait_for()
    assert page.locator("#results b, #results script, h2 b").count() == 0
    assert page.title().startswith("<b>bold</b>")


AUDIT = """() => {
  const shown = (node) => node.checkVisibility({ visibilityProperty: true, opacityProperty: false }) && node.getClientRects().length;
  const nameOf = (node) => (node.getAttribute("aria-label") || node.labels?.[0]?.textContent || node.textContent || node.querySelector("img")?.alt || "").trim();
  const rgb = (text) => (text.match(/[\\d.]+/g) ?? []).map(Number);
  const luminance = ([r, g, b]) => [r, g, b].map((v) => v / 255).map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const colour = rgb(getComputedStyle(at).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const problems = [];
  for (const node of document.querySelectorAll("a[href], button, input, [role=button]"))
    if (shown(node) && !nameOf(node)) problems.push("no name: " + node.outerHTML.slice(0, 90));
  for (const node of document.querySelectorAll("img"))
    if (shown(node) && !node.hasAttribute("alt")) problems.push("no alt: " + node.outerHTML.slice(0, 90));
  for (const node of document.querySelectorAll("body *")) {
    const own = [...node.childNodes].some((one) => one.nodeType === 3 && one.textContent.trim());
    const style = getComputedStyle(node);
    if (!own || !shown(node) || style.clipPath.startsWith("inset") || node.closest(".unseen, .skip, noscript")) continue;
    const [a, b] = [luminance(rgb(style.color)), luminance(behind(node))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    const large = parseFloat(style.fontSize) >= 24 || (parseFloat(style.fontSize) >= 18.66 && style.fontWeight >= 700);
    if (ratio < (large ? 3 : 4.5)) problems.push(`contrast ${ratio.toFixed(2)}: ${node.className} ${node.textContent.slice(0, 30)}`);
  }
  const levels = [...document.querySelectorAll("h1, h2, h3")].map((node) => Number(node.tagName[1]));
  levels.forEach((level, i) => { if (level > (levels[i - 1] ?? 0) + 1) problems.push("heading skips a level"); });
  const ids = [...document.querySelectorAll("[id]")].map((node) => node.id);
  if (new Set(ids).size < ids.length) problems.push("an id is used twice");
  if (!document.documentElement.lang || !document.title || !document.querySelector("main")) problems.push("no lang, title or main");
  if (document.documentElement.scrollWidth > innerWidth) problems.push("scrolls sideways: " + document.documentElement.scrollWidth);
  for (const node of document.querySelectorAll("button, .targets label, .examples a, .tile a")) {
    const box = node.getBoundingClientRect();
    if (shown(node) && (box.width < 24 || box.height < 24)) problems.push("too small to touch: " + nameOf(node));
  }
  return problems;
}"""


@pytest.mark.parametrize("query", ["", "?q=red", "?q=red&in=captions", "?like=image:3"])
def test_everyone_can_use_it(query: str, page: Any, address: str) -> None:
    page.emulate_media(reduced_motion="reduce")
    page.goto(address + query)
    if query:
        wait_for(page, kind="caption" if "captions" in query else "picture")
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        assert page.evaluate(AUDIT) == []


@pytest.mark.parametrize("size", [DESKTOP], ids=["desktop"])
def test_keys_reach_everything_in_order(page: Any) -> None:
    reached = []
    for _ in range(9):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate(
                "document.activeElement.id || document.activeElement.className || document.activeElement.name"
            )
        )
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none" or reached[-1] in (
            "words",
            "in",
        )
    assert reached[:6] == ["skip", "mark", "words", "choose", "go", "in"]
    while page.evaluate("document.activeElement.closest('.tile') === null"):
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.locator("h2").filter(has_text="More like this picture").wait_for()
    assert page.evaluate("document.activeElement.id") == "heading"
