"""The whole method on a toy: mismatch pairs, train L2RM and a plain model, compare them, audit the pairs.

Run it: python examples/train_and_audit.py [FOLDER]     (it leaves report.html and two runs in FOLDER)
"""

import sys
import tempfile
from pathlib import Path

import numpy as np

import l2rm

out = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.mkdtemp(prefix="l2rm-"))
WORDS = np.array(
    ["red", "blue", "green", "dog", "cat", "bird", "kite", "sea", "tree", "car", "sun", "moon", "boat", "hill"]
)

# Images are described by three regions each, and every region shows one thing; captions name the things.
rng = np.random.default_rng(0)
things = rng.integers(len(WORDS), size=(400, 3))
regions = rng.normal(size=(len(WORDS), 24))[things] + 0.3 * rng.normal(size=(400, 3, 24))
pairs = l2rm.Pairs(
    images=tuple(f"image {number}" for number in range(400)),
    image_of=np.arange(400),
    captions=tuple(" ".join(words) for words in WORDS[things]),
    features=l2rm.Features(array=regions.astype(np.float32)),
)
train, dev, test = pairs.split(dev=50, test=100, seed=0)
noisy = l2rm.inject_mismatches(train, ratio=0.4, level="image", seed=0)

model = l2rm.ModelConfig(similarity="cosine", embed_dim=32, word_dim=16, min_word_count=1, dropout=0.0)
settings = {"batch_size": 25, "warmup_epochs": 4, "rematching_epochs": 6, "decay_every": 4, "lr": 5e-3, "model": model}
runs = {}
for method in ("plain", "l2rm"):
    config = l2rm.TrainConfig(method=method, **settings)
    runs[method] = l2rm.train(noisy.pairs, dev, config, out=out / method, progress=False)
    print(f"{method}: test rSum {l2rm.evaluate(runs[method].model, test, progress=False).rsum:.1f}")

audit = l2rm.audit(noisy.pairs, runs["l2rm"].model, unseen=dev, progress=False)
audit.to_html(out / "report.html")
print(f"{audit.is_mismatched.sum()} of {len(train)} pairs look mismatched; {noisy.is_mismatched.sum()} are")
if audit.detection is not None:
    print(f"AUROC {audit.detection.auroc:.3f}; the report is {out / 'report.html'}")
