"""What tests of the command line share: tiny data, and a run trained on them once."""

import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

settings.register_profile("fuzz", max_examples=5000, deadline=None, print_blob=True)  # `make fuzz`

if threading.current_thread() is threading.main_thread():  # a shell's background jobs are started deaf to Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)

WORDS = ("red", "blue", "dog", "cat", "kite", "sea", "tree", "car", "sun", "moon")
TINY = [
    "--quiet",
    "--batch-size=16",
    "--warmup-epochs=1",
    "--rematching-epochs=1",
    "--lr=0.002",
    "--model.embed-dim=16",
    "--model.word-dim=8",
    "--model.similarity-dim=8",
    "--model.min-word-count=1",
    "--model.dropout=0",
]


def write_precomp(folder: Path, *, images: int = 40, captions: int = 2, regions: int = 3, dim: int = 16) -> Path:
    """A precomp folder whose regions are words, and whose captions name them."""
    generator = np.random.default_rng(0)
    meaning = generator.normal(size=(len(WORDS), dim))
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", images), ("dev", 10), ("test", 10)):
        words = generator.integers(len(WORDS), size=(count, regions))
        features = meaning[words] + 0.1 * generator.normal(size=(count, regions, dim))
        np.save(folder / f"{split}_ims.npy", features.astype(np.float32))
        lines = [" ".join(WORDS[word] for word in row) for row in words for _ in range(captions)]
        (folder / f"{split}_caps.txt").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def one_thread(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One thread, which is quickest for tiny models, and a cache of one's own."""
    import torch

    monkeypatch.setenv("L2RM_CACHE", str(tmp_path_factory.mktemp("cache")))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def precomp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_precomp(tmp_path_factory.mktemp("data") / "precomp")


@pytest.fixture
def make_precomp() -> Callable[..., Path]:
    return write_precomp


@pytest.fixture(scope="session")
def tiny() -> list[str]:
    """Options of a model that trains in a second."""
    return list(TINY)


@pytest.fixture(scope="session")
def index(precomp: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from l2rm.cli import main

    out = tmp_path_factory.mktemp("index") / "image_40.npy"
    assert main(["corrupt", str(precomp), "--ratio", "0.4", "--level", "image", "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="session")
def trained(precomp: Path, index: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; tests must leave it as it is."""
    from l2rm.cli import main

    patch = pytest.MonkeyPatch()
    patch.setenv("L2RM_CACHE", str(tmp_path_factory.mktemp("cache")))
    out = tmp_path_factory.mktemp("runs") / "sgr"
    assert main(["train", str(precomp), "--out", str(out), "--mismatch", str(index), *TINY]) == 0
    patch.undo()
    return out


SPOKEN = ("red", "green", "blue", "dog", "cat", "a", "picture", "of")


def save_two_towers(folder: Path, kind: str) -> Path:
    """A CLIP or SigLIP of a few thousand random weights."""
    import torch
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    torch.manual_seed(0)
    words = ["<pad>", "<s>", "</s>", "<unk>", *SPOKEN]
    reading = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    reading.pre_tokenizer = pre_tokenizers.Whitespace()
    reading.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=reading, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**small, "vocab_size": len(words), "max_position_embeddings": 12}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    vision = {**small, "image_size": 16, "patch_size": 8}
    if kind == "clip":
        config = transformers.CLIPConfig(text_config={**text, **ids}, vision_config=vision, projection_dim=8)
        model = transformers.CLIPModel(config)
        processor = transformers.models.clip.image_processing_pil_clip.CLIPImageProcessorPil(
            size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}
        )
    else:
        config = transformers.SiglipConfig(text_config={**text, **ids}, vision_config=vision)
        model = transformers.SiglipModel(config)
        processor = transformers.models.siglip.image_processing_pil_siglip.SiglipImageProcessorPil(
            size={"height": 16, "width": 16}
        )
    for part in (model, tokenizer, processor):
        part.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def make_two_towers() -> Callable[[Path, str], Path]:
    return save_two_towers
