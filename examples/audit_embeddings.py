"""Which pairs are mismatched, judged by embeddings alone: no training, no images, no model of ours.

Run it: python examples/audit_embeddings.py
"""

import numpy as np

import l2rm

# Two hundred images with one caption each. Stand-ins for what CLIP or a model of your own would give:
# the two embeddings of a pair point in much the same direction.
rng = np.random.default_rng(0)
images = rng.normal(size=(200, 32))
captions = images + 0.7 * rng.normal(size=(200, 32))
images /= np.linalg.norm(images, axis=1, keepdims=True)
captions /= np.linalg.norm(captions, axis=1, keepdims=True)

pairs = l2rm.Pairs(
    images=tuple(f"{number}.jpg" for number in range(200)),
    image_of=np.arange(200),
    captions=tuple(f"caption of {number}.jpg" for number in range(200)),
)

# Mismatch 30 % on purpose, so that there is a truth to measure against.
noisy = l2rm.inject_mismatches(pairs, ratio=0.3, level="image", seed=0)
audit = l2rm.audit_scores(l2rm.MatrixScores(images @ captions.T), noisy.pairs, progress=False)

print(f"{audit.is_mismatched.sum()} of {len(pairs)} pairs look mismatched; {noisy.is_mismatched.sum()} are")
if audit.detection is not None:
    print(f"AUROC {audit.detection.auroc:.3f}, F1 {audit.detection.f1:.3f}")
first = int(np.flatnonzero(audit.is_mismatched)[0])
row = audit.table.slice(first, 1).to_pylist()[0]
print(f"{row['caption']!r} is given {row['image']}: {row['decision']}, to {row['rematch_image']}")
