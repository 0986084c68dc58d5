"""The review page in a real browser: keys, clicks, undo, two tabs, exports, desktop and phone, accessibility."""

import json
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from l2rm.data.decided import read_decisions

READY = "#pair:not([hidden])"


@pytest.fixture(scope="module")
def browser(browsing: ModuleType) -> Iterator[Any]:
    with browsing.chromium() as one:
        yield one


@pytest.fixture
def folder(reviewed: ModuleType, tmp_path: Path) -> Path:
    return reviewed.write_audit(tmp_path / "audit")


@pytest.fixture
def base(reviewed: ModuleType, folder: Path) -> Iterator[str]:
    with reviewed.served(folder) as address:
        yield address


class Visit:
    """Pages of one browser context; complaints of any page fail the test."""

    def __init__(self, browser: Any, **options: Any) -> None:
        self.context = browser.new_context(accept_downloads=True, **options)
        self.context.set_default_timeout(30_000)
        self.complaints: list[str] = []
        self.asked: list[str] = []

    def _heard(self, message: Any) -> None:
        refused = "ERR_CONNECTION_REFUSED" in message.text  # what the browser says where a server is gone
        if message.type == "error" and not refused:
            self.complaints.append(message.text)

    def open(self, base: str, ready: str = READY) -> Any:
        page = self.context.new_page()
        page.on("console", self._heard)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self.asked.append(request.url))
        page.goto(f"{base}/review")
        page.wait_for_selector(ready)
        return page


@pytest.fixture
def visit(browser: Any, browsing: ModuleType) -> Iterator[Visit]:
    one = Visit(browser, viewport=browsing.DESKTOP)
    yield one
    one.context.close()
    assert one.complaints == []


def shown(page: Any) -> str:
    return page.inner_text("#pair-id")


def wait_shown(page: Any, pair_id: str) -> None:
    page.wait_for_function("id => document.getElementById('pair-id').textContent === id", arg=pair_id)


def saved(folder: Path) -> dict[str, str]:
    return {one.pair_id: one.new_image or one.new_caption or one.verdict for one in read_decisions(folder)}


def wait_saved(page: Any, folder: Path, expected: dict[str, str]) -> None:
    deadline = time.monotonic() + 60
    while saved(folder) != expected and time.monotonic() < deadline:
        page.wait_for_timeout(30)
    assert saved(folder) == expected


def test_a_review_by_keys(visit: Visit, base: str, folder: Path) -> None:
    page = visit.open(base)
    for number, key in enumerate("krdc"):
        assert shown(page) == f"pair/{number}"
        page.keyboard.press(key)
    wait_shown(page, "pair/4")
    expected = {"pair/0": "keep", "pair/1": "picture 1.png", "pair/2": "drop", "pair/3": "caption 10 of a purple thing"}
    wait_saved(page, folder, expected)
    page.get_by_text("4 of 60 suspicious pairs decided").first.wait_for()  # told a moment after it is saved
    page.keyboard.press("ArrowLeft")
    assert (shown(page), page.inner_text("#verdict")) == ("pair/3", "new caption")
    assert page.get_attribute('[data-partner="caption"]', "aria-pressed") == "true"
    page.keyboard.press("x")
    del expected["pair/3"]
    wait_saved(page, folder, expected)
    for number, back in ((3, "caption 10 of a purple thing"), (3, None), (2, None), (1, None), (0, None)):
        page.keyboard.press("u")
        if back:
            expected[f"pair/{number}"] = back
        else:
            del expected[f"pair/{number}"]
        wait_saved(page, folder, expected)
        wait_shown(page, f"pair/{number}")
    page.wait_for_function("() => document.getElementById('undo').disabled")


def test_a_review_by_clicks(visit: Visit, base: str, folder: Path) -> None:
    page = visit.open(base)
    page.get_by_role("button", name="Keep").click()
    page.get_by_role("button", name="Drop").click()
    page.get_by_role("button", name="Rematch").click()
    wait_shown(page, "pair/3")
    wait_saved(page, folder, {"pair/0": "keep", "pair/1": "drop", "pair/2": "picture 2.png"})
    page.get_by_role("button", name="Undo").click()
    wait_shown(page, "pair/2")
    page.get_by_role("button", name="Skip").click()
    page.get_by_role("button", name="pair pair/5, undecided").click()
    assert shown(page) == "pair/5"
    assert page.get_by_role("button", name="New caption").is_disabled()  # none is suggested
    wait_saved(page, folder, {"pair/0": "keep", "pair/1": "drop"})


def test_another_image_is_searched_and_chosen(visit: Visit, base: str, folder: Path) -> None:
    page = visit.open(base)
    page.keyboard.press("o")
    page.fill("#picker-words", "purple 100")
    page.get_by_role("button", name="image picture 50.png").click()
    wait_shown(page, "pair/1")
    wait_saved(page, folder, {"pair/0": "picture 50.png"})
    page.keyboard.press("ArrowLeft")
    assert "Chosen" in page.inner_text("#suggested figcaption")
    assert page.get_attribute("#suggested-image", "alt") == "Chosen image: picture 50.png"


def test_filters_search_and_what_is_said_when_nothing_is_left(visit: Visit, base: str) -> None:
    page = visit.open(base)
    page.keyboard.press("d")
    page.select_option("#show", "drop")
    wait_shown(page, "pair/0")
    assert page.inner_text("#count") == "1 pair"
    page.select_option("#show", "all")
    page.select_option("#said", "drop")
    wait_shown(page, "pair/40")
    page.keyboard.press("/")
    page.keyboard.type("kettle d k")  # letters are words here, and decide nothing
    page.wait_for_selector("#empty:not([hidden])")
    assert page.inner_text("#empty-title") == "No pair fits"
    assert page.get_by_role("button", name="Keep").is_disabled()
    page.get_by_role("button", name="Show all pairs").click()
    wait_shown(page, "pair/0")
    assert page.inner_text("#count") == "120 pairs"


def test_to_the_last_pair(visit: Visit, reviewed: ModuleType, tmp_path: Path) -> None:
    folder = reviewed.write_audit(tmp_path / "short", rows=44)
    with reviewed.served(folder) as base:
        page = visit.open(base)
        for _ in range(44):  # more than a page of them, as fast as keys can be pressed
            page.keyboard.press("k")
            page.wait_for_function("() => !document.getElementById('loading').checkVisibility()")
        page.wait_for_selector("#empty:not([hidden])")
        page.wait_for_function("() => document.getElementById('progress-text').textContent.startsWith('22 of 22')")
        wait_saved(page, folder, {f"pair/{n}": "keep" for n in range(44)})
        page.keyboard.press("u")
        wait_shown(page, "pair/43")


def test_exports_are_downloaded(visit: Visit, base: str, tmp_path: Path) -> None:
    page = visit.open(base)
    page.keyboard.press("d")
    page.wait_for_function("() => document.getElementById('progress-text').textContent.startsWith('1 of')")
    page.get_by_role("button", name="Export").first.click()
    page.select_option("#form", "jsonl")
    with page.expect_download() as download:
        page.get_by_role("button", name="Download").click()
    assert download.value.suggested_filename == "decisions.jsonl"
    download.value.save_as(tmp_path / "decisions.jsonl")
    assert json.loads((tmp_path / "decisions.jsonl").read_text())["pair_id"] == "pair/0"
    page.wait_for_function("() => document.getElementById('export-status').textContent === 'decisions.jsonl: 1 rows'")
    page.get_by_label(re.compile("Index file")).check()
    assert page.locator("#form").is_disabled()
    with page.expect_download() as download:
        page.get_by_role("button", name="Download").click()
    assert download.value.suggested_filename == "index.npy"
    page.keyboard.press("Escape")
    assert not page.locator("#export").is_visible()


def test_two_tabs_do_not_overwrite_each_other(visit: Visit, base: str, folder: Path) -> None:
    one = visit.open(base)
    other = visit.open(base)
    assert shown(one) == shown(other) == "pair/0"
    one.keyboard.press("k")
    wait_saved(one, folder, {"pair/0": "keep"})
    other.bring_to_front()
    other.keyboard.press("d")  # has not seen it yet, or just now
    other.wait_for_function(
        "() => document.getElementById('trouble-text').textContent.includes('another tab')"
        " || document.getElementById('status').textContent.includes('another tab')"
        " || document.getElementById('pair-id').textContent === 'pair/1'"
    )
    if "another tab" in other.inner_text("#trouble"):
        assert saved(folder) == {"pair/0": "keep"}
        other.get_by_role("button", name="Mine counts (drop)").click()
    wait_saved(other, folder, {"pair/0": "drop"})
    one.bring_to_front()
    one.keyboard.press("ArrowLeft")
    one.wait_for_function("() => document.getElementById('verdict').textContent === 'dropped'")  # it shows up by itself


def test_decisions_wait_for_a_server_that_is_gone(visit: Visit, reviewed: ModuleType, folder: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with reviewed.served(folder, port) as base:
        page = visit.open(base)
        page.keyboard.press("k")
        wait_saved(page, folder, {"pair/0": "keep"})
    page.keyboard.press("d")
    page.keyboard.press("r")
    page.wait_for_function(
        "() => document.getElementById('trouble-text').textContent.includes('2 decisions not saved yet')"
    )
    assert saved(folder) == {"pair/0": "keep"}
    with reviewed.served(folder, port):
        wait_saved(page, folder, {"pair/0": "keep", "pair/1": "drop", "pair/2": "picture 2.png"})
        page.wait_for_selector("#trouble", state="hidden")
        page.keyboard.press("u")
        wait_shown(page, "pair/2")


def test_captions_are_text_and_nothing_comes_from_elsewhere(visit: Visit, base: str, reviewed: ModuleType) -> None:
    page = visit.open(base)
    page.get_by_role("button", name="pair pair/3,").click()
    assert page.inner_text("#caption") == reviewed.EVIL
    page.keyboard.press("?")
    page.keyboard.press("Escape")
    assert page.title() == "Review · shop.csv"
    assert page.locator("#caption img, #queue script").count() == 0
    assert all(url.startswith((base, "blob:")) for url in visit.asked)


def test_an_audit_without_pixels_shows_names(visit: Visit, reviewed: ModuleType, tmp_path: Path) -> None:
    folder = reviewed.write_audit(tmp_path / "features", pixels=False, facts=False)
    with reviewed.served(folder) as base:
        page = visit.open(base)
        assert "picture 0.png" in page.inner_text("#given .noimage")
        assert "no pixels" in page.inner_text("#status")
        page.get_by_role("button", name="Export").first.click()
        assert page.get_by_label(re.compile("Index file")).is_disabled()
        assert not [url for url in visit.asked if "/images/" in url]


def test_nothing_jumps_and_the_next_picture_is_there(visit: Visit, base: str) -> None:
    page = visit.open(base)
    boxes = """() => [...document.querySelectorAll('.choice, .frame, #caption')].map(
      (element) => JSON.stringify(element.getBoundingClientRect()))"""
    before = page.evaluate(boxes)
    for key in "kdrkx":
        page.keyboard.press(key)
        assert page.evaluate(boxes) == before
    wait_shown(page, "pair/4")
    page.wait_for_function("() => document.getElementById('given-image').naturalWidth > 0")
    assert page.locator("#given-image").is_visible()
    loaded = [url for url in visit.asked if "size=large" in url]
    assert any(f"/images/{(4 + 3) // 2}?" in url for url in loaded)  # two pairs ahead


@pytest.mark.parametrize(
    ("size", "scheme"),
    [
        ("DESKTOP", "light"),
        ("PHONE", "dark"),
        pytest.param("DESKTOP", "dark", marks=pytest.mark.slow),
        pytest.param("PHONE", "light", marks=pytest.mark.slow),
    ],
)
def test_everybody_can_use_it(browser: Any, browsing: ModuleType, base: str, scheme: str, size: str) -> None:
    visit = Visit(browser, viewport=getattr(browsing, size), color_scheme=scheme, has_touch=size == "PHONE")
    page = visit.open(base)
    page.keyboard.press("k")
    page.keyboard.press("ArrowLeft")
    for button, dialog in (("#open-help", "#help"), ("#open-export", "#export"), ("#other", "#picker")):
        page.click(button)
        page.wait_for_selector(f"{dialog}[open]")
        assert page.evaluate(browsing.UNNAMED) == []
        assert page.evaluate(browsing.LOW_CONTRAST) == []
        page.keyboard.press("Escape")
    assert page.locator("#given-image").get_attribute("alt") == "Given image: picture 0.png"
    assert page.evaluate("[...document.images].every((image) => image.hasAttribute('alt'))")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.evaluate("document.documentElement.scrollHeight <= innerHeight")
    for button in page.locator(".choice").all():
        box = button.bounding_box()
        assert min(box["width"], box["height"]) >= 44
        assert box["y"] + box["height"] <= page.viewport_size["height"]
    reached = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.className"))
        ring = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert ring != "none" or page.evaluate("document.activeElement === document.body")
    assert {"open-export", "open-help", "choice keep", "undo", "next"} <= reached
    visit.context.close()
    assert visit.complaints == []


def test_a_phone_reviews_and_filters(browser: Any, browsing: ModuleType, base: str, folder: Path) -> None:
    visit = Visit(browser, viewport=browsing.PHONE, has_touch=True, is_mobile=True, device_scale_factor=2)
    page = visit.open(base)
    assert not page.locator("#show").is_visible()
    page.get_by_role("button", name="Drop").tap()
    wait_shown(page, "pair/1")
    page.get_by_role("button", name="Filter").tap()
    page.select_option("#show", "decided")
    wait_shown(page, "pair/0")
    page.get_by_role("button", name="Undo").tap()
    wait_saved(page, folder, {})
    visit.context.close()
    assert visit.complaints == []
