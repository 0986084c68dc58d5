"""The report is one inert, self-contained page."""

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.integrate import trapezoid

from l2rm.auditing.audit import audit_scores
from l2rm.auditing.issues import find_issues
from l2rm.auditing.near_duplicates import find_near_duplicates
from l2rm.auditing.pictures import thumbnail
from l2rm.auditing.report import _ranks_by_powers, percent, worst_pairs
from l2rm.encoders.pixels import decode
from l2rm.evaluation.metrics import evaluate_scores
from l2rm.rematching.ranks import RankMixture


class Page(HTMLParser):
    """Tags with attributes, and the text outside of styles."""

    VOID = ("meta", "img", "path", "use", "br", "link", "input")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.text = " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.texts.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def written(audit, folder: Path, **settings: object) -> Page:  # type: ignore[no-untyped-def]
    page = Page(audit.to_html(folder / "report.html", **settings).read_text(encoding="utf-8"))
    assert page.open == []
    return page


def test_page_is_self_contained_and_accessible(pictured, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    metrics = evaluate_scores(pictured.scores, pictured.pairs.image_of)
    page = written(
        pictured.audit, tmp_path, metrics={"l2rm": metrics, "plain": metrics.to_dict()}, credits="Images: CC BY-SA 4.0"
    )
    assert not page.all("script")
    assert not page.all("link")
    for _, attributes in page.tags:
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith(("data:image/webp;base64,", "#"))
        assert not any(name.startswith("on") for name in attributes)
    images = page.all("img")
    assert len(images) == 2 * len(worst_pairs(pictured.audit))
    assert all(image["alt"] for image in images)
    assert all(header.get("scope") for header in page.all("th"))
    assert [attributes["lang"] for attributes in page.all("html")] == ["en"]
    assert "Images: CC BY-SA 4.0" in page.text
    assert f"{metrics.rsum:.1f}" in page.text
    assert f"{pictured.audit.detection.auroc:.3f}" in page.text
    assert "✓ true image" in page.text
    svg = page.all("svg")
    assert len(svg) > 2
    assert (tmp_path / "report.html").stat().st_size < 400_000


def test_headline_counts(case, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    page = written(case.audit, tmp_path)
    assert f"{int(case.audit.is_mismatched.sum())} of 120 pairs look mismatched" in page.text
    assert f"{int((case.audit.decision == 'rematch').sum())}" in page.text


def test_no_id_is_used_twice(case, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    page = written(case.audit, tmp_path)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) >= 5
    assert len(ids) == len(set(ids))


def test_histogram_follows_the_colours_of_the_page(case, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    text = case.audit.to_html(tmp_path / "report.html").read_text(encoding="utf-8")
    for variable in ("ink", "quiet", "line", "matched", "mismatched"):
        assert re.search(rf"<svg.*var\(--{variable}\).*</svg>", text, re.DOTALL)
    assert not re.search(r"#0[1-6]0[1-6]0[1-6]\b", text)
    for label in ("truly matched", "truly mismatched", "fit: matched", "fit: mismatched", "loss of a pair", ">pairs<"):
        assert label in text


def test_the_same_audit_gives_the_same_page(case, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    pages = [case.audit.to_html(tmp_path / name).read_bytes() for name in ("one.html", "two.html")]
    assert pages[0] == pages[1]


def test_page_says_where_match_probabilities_come_from(case, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    given = audit_scores(case.scores, case.pairs, match_probability=case.audit.match_probability, progress=False)
    pages = [" ".join(written(audit, tmp_path).texts) for audit in (case.audit, given)]
    assert ["comes from the left one" in page for page in pages] == [True, False]
    assert ["as the training found them" in page for page in pages] == [False, True]


EVIL = '<script>document.title="owned"</script><img src=x onerror=alert(1)> & "quoted"'


def test_markup_in_the_data_is_inert(case, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    pairs = replace(
        case.pairs,
        captions=(EVIL,) * len(case.pairs),
        images=tuple(f'{name}"><b onclick="x">' for name in case.pairs.images),
        source="<i>table</i>",
    )
    audit = replace(case.audit, pairs=pairs)
    metrics = {"<u>m</u>": evaluate_scores(case.scores, pairs.image_of)}
    page = written(audit, tmp_path, metrics=metrics, credits="<a href='http://example.org'>credits</a>")
    present = {name for name, _ in page.tags}
    assert not present & {"script", "img", "i", "u"}
    assert all((attributes["href"] or "").startswith("#") for attributes in page.all("a"))
    assert not any("onclick" in attributes or "onerror" in attributes for _, attributes in page.tags)
    assert EVIL in page.text
    policy = next(tag["content"] for tag in page.all("meta") if tag.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert "default-src 'none'" in policy


def test_worst_pairs_are_the_least_likely_one_an_image(pictured) -> None:  # type: ignore[no-untyped-def]
    audit = pictured.audit
    cards = worst_pairs(audit, limit=9)
    probabilities = [card.probability for card in cards]
    assert probabilities == sorted(probabilities)
    assert probabilities[0] == audit.match_probability.min()
    assert len({card.given.name for card in cards}) == len(cards) == 9
    best = np.array([audit.match_probability[audit.pairs.image_of == i].min() for i in range(audit.pairs.n_images)])
    np.testing.assert_allclose(probabilities, np.sort(best)[:9])
    for card in cards:
        row = audit.pairs.pair_ids.index(card.pair_id)
        true = audit.pairs.true_image_of[row]
        assert card.truth == (
            "matched"
            if true == audit.pairs.image_of[row]
            else "right"
            if card.suggested.name == audit.pairs.images[true]
            else "wrong"
        )
        assert all(f"caption {index} " in text for text in card.suggested.captions for index in [text.split()[1]])


def test_names_stand_in_for_absent_pictures(case, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    page = written(case.audit, tmp_path)
    assert not page.all("img")
    assert worst_pairs(case.audit)[0].given.name in page.text


def test_pairs_whose_picture_is_unreadable_are_passed_over(pictured, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    worst = worst_pairs(pictured.audit)
    for card in worst[1:4]:
        path = pictured.pairs.image_root / card.given.name
        (tmp_path / card.given.name).write_bytes(path.read_bytes())
    (tmp_path / worst[0].given.name).write_bytes(b"no picture")
    audit = replace(pictured.audit, pairs=replace(pictured.pairs, image_root=tmp_path))
    assert [card.given.name for card in worst_pairs(audit)] == [card.given.name for card in worst[1:4]]


def test_report_without_truth_or_mismatches(fitted, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    blind = audit_scores(
        fitted.scores,
        replace(fitted.pairs, true_image_of=None),
        match_probability=np.ones(len(fitted.pairs)),
        progress=False,
    )
    page = written(blind, tmp_path)
    assert "No pair looks mismatched" in page.text
    assert "AUROC" not in page.text
    assert "truly" not in page.text


def test_thumbnail_is_small_and_keeps_transparency(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, size=(500, 900, 4), dtype=np.uint8)
    Image.fromarray(noise, "RGBA").resize((1800, 1000)).save(tmp_path / "a.png")
    uri = thumbnail(tmp_path / "a.png")
    assert uri is not None
    small = Image.open(io.BytesIO(base64.b64decode(re.sub("^data:image/webp;base64,", "", uri))))
    assert small.size == (160, 89)
    assert small.mode == "RGBA"
    assert len(uri) < 30_000


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "I;16", "1"])
def test_thumbnail_of_any_mode(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    Image.new(mode, (20, 20)).save(path)
    assert (thumbnail(path) or "").startswith("data:image/webp")


def test_thumbnail_of_16_bits_is_as_bright_as_what_the_encoder_sees(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(np.full((20, 20), 100 * 257, dtype=np.uint16)).save(path)
    small = Image.open(io.BytesIO(base64.b64decode((thumbnail(path) or "").partition(",")[2])))
    assert abs(int(np.asarray(small.convert("L")).mean()) - int(decode(path, 8).mean())) <= 2


def test_what_is_no_picture_has_no_thumbnail(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    assert thumbnail(tmp_path / "broken.png") is None
    assert thumbnail(tmp_path / "absent.png") is None
    assert thumbnail(tmp_path) is None
    assert thumbnail(None) is None


def test_percent_does_not_round_something_to_nothing() -> None:
    assert [percent(share) for share in (0, 1e-9, 0.5, 0.999, 1)] == ["0 %", "< 1 %", "50 %", "> 99 %", "100 %"]


def test_what_is_flagged_is_shown_with_its_pictures(pictured, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    captions = ("<i>generic</i> title",) * 3 + pictured.pairs.captions[3:]
    pairs = replace(pictured.pairs, captions=captions)
    copies = find_near_duplicates(pairs)
    issues = (*find_issues(pairs, pictured.scores, None), find_issues(pairs, pictured.scores, copies)[-1])
    page = written(replace(pictured.audit, pairs=pairs, issues=issues), tmp_path)
    assert "One caption on different images" in page.text
    assert "3 pairs in 1 group." in page.text
    assert "<i>generic</i> title" in page.text  # as text, not as a tag
    assert "The same picture more than once" in page.text  # plain colours next to each other in number
    links = {attributes["href"] for attributes in page.all("a")}
    anchors = {f"#{attributes['id']}" for _, attributes in page.tags if attributes.get("id")}
    assert links <= anchors


def test_ranks_are_shown_where_they_judged(case, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    p_values = np.where(case.audit.is_mismatched, 0.5, 0.005)
    mixture = RankMixture.fit(torch.from_numpy(p_values))
    audit = replace(case.audit, p_values=p_values, rank_mixture=mixture, by_losses=False)
    page = written(audit, tmp_path)
    assert "by a model that had seen none of them" in page.text
    assert "share of other images that fit the caption" in page.text
    assert audit.mismatch_ratio is not None
    assert percent(audit.mismatch_ratio.estimate) in page.text


def test_what_to_do_next_names_this_audit(case, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    page = written(case.audit, tmp_path)
    assert f"l2rm serve --audit {tmp_path}" in page.text
    assert "l2rm rematch pictures.csv --model RUN" in page.text


def test_the_curve_of_ranks_is_smooth_and_holds_as_many_pairs() -> None:
    generator = np.random.default_rng(0)
    p_values = np.append(generator.beta(0.3, 6, size=700), generator.random(300))
    p_values = (np.floor(500 * p_values) + 0.5) / 500  # as 500 images are counted
    mixture = RankMixture.fit(torch.from_numpy(p_values))
    logs, density = _ranks_by_powers(p_values, mixture)
    grid = np.linspace(logs.min(), 0, 20_001)
    curves = density(grid)
    matched, mismatched = trapezoid(curves, grid)
    assert matched + mismatched == pytest.approx(1, abs=0.05)  # less what is left of the axis
    assert mismatched == pytest.approx(mixture.mismatch_ratio, rel=0.01)
    teeth = (np.abs(np.diff(curves[0])) > 0.05).sum()
    assert (curves >= 0).all()
    assert teeth == 0
