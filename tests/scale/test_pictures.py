"""Shards of pictures and captions, embedded on the way."""

import io
import tarfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from l2rm.auditing.audit import audit_scores
from l2rm.auditing.folder import AuditFolder
from l2rm.data.pairs import Pairs
from l2rm.encoders.image import encode
from l2rm.encoders.pixels import opened
from l2rm.errors import InputError
from l2rm.scale.engine import Engine
from l2rm.scale.folder import ShardsConfig
from l2rm.scale.pipeline import audit_shards
from l2rm.similarity.scoring import FeatureScores

pytest.importorskip("transformers", reason="the extra hf (transformers) is not installed")
pytestmark = pytest.mark.usefixtures("one_thread")
WORDS = ("red", "green", "blue", "dog", "cat")


def write_tars(folder: Path, *, bad: bool) -> Path:
    generator = np.random.default_rng(0)
    folder.mkdir()
    for shard in range(3):
        with tarfile.open(folder / f"{shard}.tar", "w") as tar:
            for row in range(20):
                file = io.BytesIO()
                Image.fromarray(generator.integers(0, 255, (12, 14, 3), dtype=np.uint8)).save(file, "PNG")
                picture = b"no picture" if bad and (shard, row) == (1, 7) else file.getvalue()
                text = " ".join(generator.choice(WORDS, 4)).encode()
                for ending, content in (("png", picture), ("txt", text)):
                    info = tarfile.TarInfo(f"{shard}{row:04d}.{ending}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return folder


def test_pictures_are_embedded_shard_by_shard(tiny_clip: ModuleType, here: Engine, tmp_path: Path) -> None:
    model = str(tiny_clip.save_model(tmp_path / "clip", "clip"))
    folder = write_tars(tmp_path / "shards", bad=True)
    with pytest.raises(InputError, match=r"1\.tar/10007\.png does not decode"):
        audit_shards(folder, tmp_path / "strict", ShardsConfig(encoder=model), here)
    with pytest.raises(InputError, match="holds pictures; give a model"):
        audit_shards(folder, tmp_path / "without", ShardsConfig(), here)
    result = audit_shards(folder, tmp_path / "audit", ShardsConfig(encoder=model, skip_bad=True), here)
    assert (result.counts["pairs"], result.counts["left_out"]) == (59, 1)
    pairs = encode(Pairs.read(folder), encoder=model, skip_bad=True, progress=False)
    audit = audit_scores(FeatureScores(pairs), pairs, progress=False, flags=False)
    found = pq.read_table(tmp_path / "audit" / "audit.parquet")
    assert found["pair_id"].to_pylist() == audit.table["pair_id"].to_pylist()
    np.testing.assert_allclose(found["match_probability"], audit.match_probability, atol=2e-3)
    review = AuditFolder.open(tmp_path / "audit")
    path = review.image_path(int(review.image_of[0]))
    assert path is not None
    assert opened(path, 12).size == (14, 12)
