"""Checkpoints of the public code (L2RM and its kin: SGRAF, NCR, RCL) become runs, and runs become such checkpoints.

A checkpoint is a pickle. Nothing of it is executed: tensors, plain containers and an argparse namespace are admitted,
and anything else is refused by name.
"""

import argparse
import dataclasses
import json
import math
import pickle
import re
import struct
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from l2rm.data.vocabulary import Vocabulary
from l2rm.errors import InputError
from l2rm.files import folder_written_whole, written_whole
from l2rm.rematching.settings import RematchingConfig
from l2rm.similarity.model import build_model
from l2rm.similarity.settings import DataShape, ModelConfig
from l2rm.training.check import check_config
from l2rm.training.run import Run, load_run, write_model, write_record
from l2rm.training.settings import TrainConfig
from l2rm.training.train import refuse_taken

NAMES = {
    "image_tower.project.": "img_enc.fc.",
    "caption_tower.embed.": "txt_enc.embed.",
    "caption_tower.gru.": "txt_enc.cap_rnn.",
    "image_pool.local.": "sim_enc.v_global_w.embedding_local.0.",
    "image_pool.local_norm.": "sim_enc.v_global_w.embedding_local.1.",
    "image_pool.mean.": "sim_enc.v_global_w.embedding_global.0.",
    "image_pool.mean_norm.": "sim_enc.v_global_w.embedding_global.1.",
    "image_pool.gate.": "sim_enc.v_global_w.embedding_common.0.",
    "caption_pool.local.": "sim_enc.t_global_w.embedding_local.0.",
    "caption_pool.mean.": "sim_enc.t_global_w.embedding_global.0.",
    "caption_pool.gate.": "sim_enc.t_global_w.embedding_common.0.",
    "local_node.": "sim_enc.sim_tranloc_w.",
    "global_node.": "sim_enc.sim_tranglo_w.",
    "to_score.": "sim_enc.sim_eval_w.",
    "gate.": "sim_enc.SAF_module.attn_sim_w.",
    "gate_norm.": "sim_enc.SAF_module.bn.",
}
"""Beginnings of our names of parameters, and the public code's; graph steps are numbered besides."""
GRAPH = {"query.": "graph_query_w.", "key.": "graph_key_w.", "out.": "sim_graph_w."}
PARTS = ("img_enc", "txt_enc", "sim_enc")
"""What a checkpoint that holds a list of state dicts, as SGRAF's does, lists."""
MASK = "<mask>"
"""The word that some published models have a row more for."""


def convert(checkpoint: str | Path, vocabulary: str | Path, out: str | Path) -> Run:
    """Make a RUN folder of a published checkpoint: it evaluates, audits and answers `similarity` like any other.

    Args:
        checkpoint: `model_best.pth.tar` with a SGR or SAF model under `net`, or as a list under `model`.
        vocabulary: the published JSON that the model was trained with.
        out: the RUN folder to be made.

    Raises:
        InputError: no such file, no checkpoint, something in it that is no tensor, parameters that are missing or
            unknown, a vocabulary of another size, a folder that is taken.

    Example:
        >>> run = convert("model_best.pth.tar", "f30k_precomp_vocab.json", "runs/published")  # doctest: +SKIP
    """
    checkpoint, out = Path(checkpoint), Path(out)
    refuse_taken(out, resume=False)
    if out.is_dir() and any(out.iterdir()):
        raise InputError(f"{out}: is a folder with other files in it; choose another --out")
    content = _read(checkpoint)
    state = _state(content, checkpoint)
    words = Vocabulary.read(vocabulary)
    model_config, shape = _sizes(state, checkpoint)
    rows = shape.vocabulary_size or 0
    if rows == len(words) + 1 and MASK not in words.words:
        words = Vocabulary(words=(*words.words, MASK), tokeniser=words.tokeniser)
    if rows != len(words):
        raise InputError(
            f"{vocabulary}: has {len(words)} words, but {checkpoint} was trained with {rows}; give its own vocabulary"
        )
    model = build_model(model_config, shape)
    ours = {published_name(name): name for name in model.state_dict()}
    counters = {name for name in ours if name.endswith("num_batches_tracked")}  # old checkpoints have none
    if missing := sorted(ours.keys() - state.keys() - counters):
        raise InputError(f"{checkpoint}: lacks {missing[0]}; it is no SGR or SAF model as SGRAF builds them")
    if unknown := sorted(state.keys() - ours.keys()):
        raise InputError(f"{checkpoint}: has {unknown[0]}, which SGR and SAF as SGRAF builds them have not")
    try:
        model.load_state_dict({ours[name]: value for name, value in state.items()}, strict=False)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{checkpoint}: its parameters do not fit together ({reason})") from error
    tokeniser: Any = words.tokeniser  # checked by Vocabulary: a name that ModelConfig knows
    model_config = dataclasses.replace(model_config, tokeniser=tokeniser)
    config = TrainConfig(model=model_config, rematching=_rematching(content))
    check_config(config)
    origin = {name: _number(content.get(name)) for name in ("epoch", "best_rsum")}
    with folder_written_whole(out) as beside:
        write_record(beside, config, shape, finished=True, converted={"from": checkpoint.name, **origin})
        write_model(beside, model)
        words.write(beside / "vocabulary.json")
    return load_run(out)


def export(run: Run, path: str | Path) -> Path:
    """Write a SGR or SAF run as the public code would have saved it, and its vocabulary in the published form beside.

    Returns:
        The vocabulary's file: `model_best.pth.tar` is accompanied by `model_best_vocab.json`.

    Raises:
        InputError: a model that the public code does not have, or that reads words otherwise; a file that is there.
    """
    path, config, shape = Path(path), run.config.model, run.model.shape
    read_by = run.model.vocabulary
    if config.similarity not in ("sgr", "saf") or not isinstance(read_by, Vocabulary) or config.caption_tower != "gru":
        raise InputError(f"{run.folder}: only sgr and saf models that read words in order (gru) have a published form")
    if read_by.tokeniser != "published":
        raise InputError(
            f"{run.folder}: reads words by {read_by.tokeniser!r}, the public code by its own rules; "
            "train with tokeniser published (--paper) to export"
        )
    stem = path.name.removesuffix(".tar").removesuffix(".pth")
    beside_it = path.with_name(f"{stem}_vocab.json")
    for taken in (path, beside_it):
        if taken.exists():
            raise InputError(f"{taken}: is there already; choose another --out")
    options = {
        "data_name": stem,
        "data_path": "./data",
        "vocab_path": ".",
        "batch_size": run.config.batch_size,
        "workers": 0,
        "img_dim": shape.image_dim,
        "embed_size": config.embed_dim,
        "word_dim": config.word_dim,
        "sim_dim": config.similarity_dim,
        "vocab_size": shape.vocabulary_size,
        "num_layers": 1,
        "bi_gru": True,
        "no_imgnorm": False,
        "no_txtnorm": False,
        "module_name": config.similarity.upper(),
        "sgr_step": config.graph_steps,
        "margin": run.config.rematching.margin,
        "tau": run.config.rematching.tau,
        "reg": run.config.rematching.reg,
        "rho": run.config.rematching.mass,
    }
    best = run.record.get("best") or run.record.get("converted") or {}
    content = {
        "epoch": best.get("epoch"),
        "net": OrderedDict((published_name(name), value.cpu()) for name, value in run.model.state_dict().items()),
        "best_rsum": best.get("rsum", best.get("best_rsum")),
        "opt": argparse.Namespace(**options),
    }
    words = read_by.words
    vocabulary = {
        "word2idx": {word: number for number, word in enumerate(words)},
        "idx2word": {str(number): word for number, word in enumerate(words)},
        "idx": len(words),
    }
    with written_whole(path) as beside:
        torch.save(content, beside)
    with written_whole(beside_it) as beside:
        beside.write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    return beside_it


def _read(path: Path) -> dict[str, Any]:
    """The checkpoint's own dictionary, with nothing executed."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; give a checkpoint such as model_best.pth.tar")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about protocols, above the one line that says what is wrong
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"holds {refused[1]}, which is neither a tensor nor an option" if refused else "is no checkpoint"
        raise InputError(f"{path}: {what}; nothing of it was executed, and it is not converted") from error
    except (
        OSError,
        RuntimeError,
        EOFError,
        LookupError,
        TypeError,
        ValueError,
        AttributeError,
        AssertionError,
        struct.error,
    ) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"{path}: cannot be read as a checkpoint ({reason})") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds a {type(content).__name__} and no dictionary; give a model_best.pth.tar")
    return content


def _state(content: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """The published state dict: under `net`, or as a list of three under `model`."""
    found = content.get("net", content.get("model"))
    if isinstance(found, list | tuple) and len(found) == len(PARTS) and all(isinstance(one, dict) for one in found):
        found = {f"{part}.{name}": value for part, one in zip(PARTS, found, strict=True) for name, value in one.items()}
    if not isinstance(found, dict) or not found or not all(isinstance(value, Tensor) for value in found.values()):
        keys = ", ".join(map(str, content)) or "nothing"
        raise InputError(f"{path}: has no state dict under net or model (it has {keys}); give a model_best.pth.tar")
    for name, value in found.items():
        if not value.numel() or value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise InputError(f"{path}: {name} has no numbers of its own, shape {tuple(value.shape)}; it is damaged")
    # of a model that several GPUs trained together, every name begins with "module."
    return {re.sub(r"(^|\.)module\.", r"\1", str(name)): value for name, value in found.items()}


def _sizes(state: Mapping[str, Tensor], path: Path) -> tuple[ModelConfig, DataShape]:
    """Dimensions, read off the parameters."""

    def size(name: str, dim: int) -> int:
        if name not in state or state[name].dim() <= dim:
            raise InputError(f"{path}: lacks {name}; it is no SGR or SAF model as SGRAF builds them")
        return int(state[name].shape[dim])

    steps = {name.split(".")[2] for name in state if name.startswith("sim_enc.SGR_module.")}
    config = ModelConfig(
        similarity="sgr" if steps else "saf",
        embed_dim=size("img_enc.fc.weight", 0),
        word_dim=size("txt_enc.embed.weight", 1),
        similarity_dim=size("sim_enc.sim_tranloc_w.weight", 0),
        graph_steps=len(steps) or 3,
        tokeniser="published",
    )
    shape = DataShape(
        image_dim=size("img_enc.fc.weight", 1),
        regions=size("sim_enc.v_global_w.embedding_local.1.weight", 0),
        vocabulary_size=size("txt_enc.embed.weight", 0),
    )
    return config, shape


def _rematching(content: Mapping[str, Any]) -> RematchingConfig:
    """What the checkpoint's options tell of the method."""
    options = vars(content["opt"]) if isinstance(content.get("opt"), argparse.Namespace) else {}
    known = {"margin": "margin", "tau": "tau", "reg": "reg", "rho": "mass"}
    numbers = {ours: _number(options.get(theirs)) for theirs, ours in known.items()}
    told: dict[str, Any] = {name: float(value) for name, value in numbers.items() if value is not None}
    return RematchingConfig(**told)


def _number(value: Any) -> float | int | None:
    """A finite number, None for anything else that a checkpoint may hold in its place."""
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number and math.isfinite(value) else None


def published_name(name: str) -> str:
    """The public code's name of our parameter.

    Example:
        >>> published_name("graph.0.out.bias")
        'sim_enc.SGR_module.0.sim_graph_w.bias'
    """
    if name.startswith("graph."):
        _, step, rest = name.split(".", 2)
        ours = next(one for one in GRAPH if rest.startswith(one))
        return f"sim_enc.SGR_module.{step}.{GRAPH[ours]}{rest.removeprefix(ours)}"
    ours = next(one for one in NAMES if name.startswith(one))
    return NAMES[ours] + name.removeprefix(ours)
