"""An audit of shards, stage by stage; whatever is finished is a file, and stays finished."""

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from l2rm.auditing.check import checked_probability
from l2rm.auditing.evidence import draw_negatives
from l2rm.auditing.folder import FORMAT, TABLE, mixture_facts
from l2rm.data.packed import TAR
from l2rm.data.shards import find_shards
from l2rm.data.tables import write_table
from l2rm.errors import InputError
from l2rm.evaluation.detection import Detection, measure_detection
from l2rm.files import written_whole
from l2rm.rematching.candidates import Candidates
from l2rm.rematching.division import BetaMixture
from l2rm.rematching.partners import find_partners
from l2rm.rematching.together import Units
from l2rm.scale.engine import Engine
from l2rm.scale.folder import FACTS, ShardsAudit, ShardsConfig, begin, finished, is_finished
from l2rm.scale.stages import GROUP, Decide, Judge, Sample, Search, Suggest
from l2rm.scale.vectors import Embed, Whole, keys_of

LEFT_OUT, TABLES, WORK = "left_out.csv", "audit", "work"
FITTED = 10_000_000
"""Losses that the mixture is fitted to, at most: of more, that many are drawn."""
REVIEWED = 1_000_000
"""Pairs up to which the tables are joined to the `audit.parquet` that the review page reads."""


def audit_shards(
    source: str | Path,
    out: str | Path,
    config: ShardsConfig,
    engine: Engine,
    *,
    resume: bool = False,
    device: str = "cpu",
) -> ShardsAudit:
    """Judge every pair of many shards by the cosine of its embeddings, and find partners for the mismatched.

    The match probabilities, partners and decisions are those of `l2rm.auditing.audit_scores`, or, with `plan`, of
    `l2rm.auditing.rematch_scores`, up to rounding; a pair that is kept is suggested nothing. `out/audit/` gets a table
    a shard, `out/audit.json` the counts. Memory holds a block, and some 40 bytes a pair where all pairs must be seen at
    once (the mixture; with `plan`, some 3 KB for each that looks mismatched, more).

    Args:
        source: shards, as `find_shards` takes them.
        out: a folder; new, or with `resume` one that an audit of the same shards was stopped in.
        config: what to do.
        engine: who does it.
        resume: go on with what is finished.
        device: where an encoder runs.

    Raises:
        InputError: a folder that is in use without `resume`, other shards or another configuration with it, and what is
            wrong with the shards.
    """
    folder = Path(out).absolute()
    shards = tuple(one.absolute() for one in find_shards(source))
    if shards[0].suffix == TAR and len({one.parent for one in shards}) > 1:  # images are named from there
        raise InputError(f"{source}: shards of several folders; move them into one, or take one after the other")
    begin(folder, shards, config, resume=resume)
    if is_finished(folder):
        return finished(folder)
    run = _Run(folder=folder, shards=shards, config=config, engine=engine, source=str(source))
    whole, left_out = run.embedded(device)
    probability, mixture = run.judged(whole)
    partners = run.planned(whole, probability) if config.plan else run.suggested(whole, probability, mixture)
    return run.decided(whole, probability, mixture, partners, left_out)


class _Stage(Protocol):
    def record(self, number: int) -> Path: ...

    def __call__(self, number: int) -> None: ...


@dataclass(frozen=True, kw_only=True)
class _Partners:
    """Files, an entry a suspect: its row, image, caption and confidence."""

    suspects: Path
    image: Path
    caption: Path
    confidence: Path


@dataclass(frozen=True, kw_only=True)
class _Run:
    """One way through the stages."""

    folder: Path
    shards: tuple[Path, ...]
    config: ShardsConfig
    engine: Engine
    source: str

    @property
    def work(self) -> Path:
        return self.folder / WORK

    def _do(self, stage: _Stage, count: int, what: str) -> None:
        """Whatever of a stage is not there yet."""
        missing = [number for number in range(count) if not stage.record(number).exists()]
        if missing:
            stage.record(0).parent.mkdir(parents=True, exist_ok=True)
            self.engine.run(stage, missing, what)

    # --------------------------------------------------------------------------------------------------------- stages

    def embedded(self, device: str) -> tuple[Whole, list[dict[str, str]]]:
        """All shards as one data set, and the samples that were left out: row, image and reason of each."""
        config, folder = self.config, self.work / "vectors"
        embed = Embed(
            shards=self.shards,
            folder=folder,
            encoder=config.encoder,
            skip_bad=config.skip_bad,
            device=device,
        )
        self._do(embed, len(self.shards), "embedding shards")
        told = [json.loads(embed.record(number).read_text()) for number in range(len(self.shards))]
        for shard, one in zip(self.shards, told, strict=True):
            if (one["dim"], one["columns"]) != (told[0]["dim"], told[0]["columns"]):
                raise InputError(f"{shard}: has other dimensions or columns than {self.shards[0].name}; make all alike")
        starts = np.append(0, np.cumsum([one["rows"] for one in told]))
        if starts[-1] < 2:
            raise InputError(f"{self.source}: {starts[-1]} pairs; it takes two images to compare")
        whole = Whole(folder=folder, starts=starts, shared=self._shared(folder, told))
        if whole.n_images < 2:
            raise InputError(f"{self.source}: one image; it takes two images to compare")
        if "pair_id" in told[0]["columns"] and (twins := whole.twin_ids()):
            one, two = (self.shards[np.searchsorted(whole.starts, row, side="right") - 1] for row in twins[:2])
            raise InputError(
                f"{two}: pair_id {twins[2]!r} stands in {one.name} already; give every pair of all shards its own, or "
                "leave them out"
            )
        return whole, [row for one in told for row in one["left_out"]]

    def _shared(self, folder: Path, told: list[dict[str, Any]]) -> tuple[Path, Path] | None:
        """Rows of one image's name share an image, numbered as it first appears; None where names are all distinct."""
        if "image" not in told[0]["columns"]:
            return None
        keys = keys_of(folder, len(told), "image")
        _, first, place = np.unique(keys, return_index=True, return_inverse=True)
        if len(first) == len(keys):
            return None
        order = np.argsort(first)
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        return self._saved("image_of", rank[place]), self._saved("first_row", first[order])

    def judged(self, whole: Whole) -> tuple[NDArray[np.float64], BetaMixture]:
        """Match probabilities of all pairs, and the mixture behind them."""
        judge = Judge(whole=whole, sample=self._sample(whole), margin=self.config.margin, folder=self.work / "losses")
        self._do(judge, len(self.shards), "judging shards")
        losses = np.concatenate([np.load(judge.record(number)) for number in range(len(self.shards))])
        fitted = losses
        if len(losses) > FITTED:
            fitted = losses[np.random.default_rng(self.config.seed).choice(len(losses), FITTED, replace=False)]
        mixture = BetaMixture.fit(torch.from_numpy(fitted))
        return mixture.match_probability(torch.from_numpy(losses)).numpy(), mixture

    def _sample(self, whole: Whole) -> Sample:
        images, captions = draw_negatives(self.config.seed, whole.n_images, len(whole))
        return Sample.of(whole, images, captions)

    def _suspects(self, probability: NDArray[np.float64]) -> tuple[Path, int, int]:
        """File of the rows that look mismatched, how many, and in how many groups."""
        rows = np.flatnonzero(probability < self.config.keep_threshold)
        return self._saved("suspects", rows), len(rows), -(-len(rows) // GROUP)

    def suggested(self, whole: Whole, probability: NDArray[np.float64], mixture: BetaMixture) -> _Partners:
        """The best image of every suspect, and how sure that is."""
        suspects, _, groups = self._suspects(probability)
        stage = Suggest(
            whole=whole,
            sample=self._sample(whole),
            margin=self.config.margin,
            suspects=suspects,
            most=1 if whole.shared is None else int(np.bincount(whole.image_of(np.arange(len(whole)))).max()),
            folder=self.work / "suggested",
        )
        self._do(stage, groups, "finding partners")
        image, loss, caption = (self._gathered(stage, groups, name) for name in ("image", "loss", "caption"))
        confidence = mixture.match_probability(torch.from_numpy(loss.astype(np.float64))).numpy()
        return self._partners(suspects, image, caption, confidence)

    def planned(self, whole: Whole, probability: NDArray[np.float64]) -> _Partners:
        """The image that one plan for all gives every suspect."""
        suspects, _, groups = self._suspects(probability)

        def nearest(units: Units, images: NDArray[np.int64], candidates: int) -> Candidates:
            stage = Search(
                whole=whole,
                suspects=suspects,
                images=self._saved("room", images),
                candidates=candidates,
                folder=self.work / "candidates",
            )
            self._do(stage, groups, "finding candidates")
            return Candidates(
                captions=np.arange(len(units)),
                images=self._gathered(stage, groups, "images").astype(np.int32),
                scores=self._gathered(stage, groups, "scores").astype(np.float32),
            )

        config = self.config
        found = find_partners(
            _Scores(whole),
            whole.image_of(np.arange(len(whole))),
            checked_probability("audit", probability, len(whole)),
            below=config.keep_threshold,
            candidates=config.candidates,
            seed=config.seed,
            nearest=nearest,
        )
        rows = np.load(suspects)
        return self._partners(suspects, found.suggested[rows, 0], np.full(len(rows), -1), found.confidence[rows])

    def decided(
        self,
        whole: Whole,
        probability: NDArray[np.float64],
        mixture: BetaMixture,
        partners: _Partners,
        left_out: list[dict[str, str]],
    ) -> ShardsAudit:
        """Tables of all shards, and the counts."""
        config = self.config
        stage = Decide(
            whole=whole,
            losses=self.work / "losses",
            mixture=mixture,
            keep_threshold=config.keep_threshold,
            rematch_threshold=config.rematch_threshold,
            folder=self.folder / TABLES,
            **vars(partners),
        )
        self._do(stage, len(self.shards), "writing tables")
        counts = {"pairs": len(whole), "images": whole.n_images, "left_out": len(left_out)}
        counts["mismatched"] = int((probability < config.keep_threshold).sum())
        confidence, image = np.load(partners.confidence), np.load(partners.image)
        counts["keep"] = len(whole) - counts["mismatched"]
        counts["rematch"] = int(((confidence >= config.rematch_threshold) & (image >= 0)).sum())
        counts["drop"] = counts["mismatched"] - counts["rematch"]
        detection = self._detection(whole, probability)
        if len(whole) <= REVIEWED:
            self._join(stage)
        facts = {
            "format": FORMAT,
            "source": self.source,
            "image_root": None if config.encoder is None else str(self.shards[0].parent),
            "keep_threshold": config.keep_threshold,
            "rematch_threshold": config.rematch_threshold,
            "counts": counts,
            "by_losses": True,
            "calibrated": config.plan,
            "mixture": mixture_facts(mixture),
            "images": None,
            "mismatch_ratio": mixture.mismatch_ratio,
            "detection": None if detection is None else asdict(detection),
        }
        if left_out:
            write_table(self.folder / LEFT_OUT, {name: [one[name] for one in left_out] for name in left_out[0]})
        with written_whole(self.folder / FACTS) as beside:
            beside.write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        shutil.rmtree(self.work)
        return finished(self.folder)

    # -------------------------------------------------------------------------------------------------------- details

    def _detection(self, whole: Whole, probability: NDArray[np.float64]) -> Detection | None:
        known = [whole.texts("is_mismatched", whole.rows_of(number)) for number in range(len(self.shards))]
        truth = np.array([flag for part in known for flag in part or ()], dtype=bool)
        if len(truth) != len(probability) or truth.all() or not truth.any():
            return None
        return measure_detection(probability, truth, threshold=self.config.keep_threshold)

    def _join(self, stage: _Stage) -> None:
        """One table of all, a shard after the other."""
        with written_whole(self.folder / TABLE) as beside:
            schema = pq.read_schema(stage.record(0))
            with pq.ParquetWriter(beside, schema) as writer:
                for number in range(len(self.shards)):
                    writer.write_table(pq.read_table(stage.record(number), schema=schema))

    def _partners(
        self,
        suspects: Path,
        image: NDArray[np.int64],
        caption: NDArray[np.int64],
        confidence: NDArray[np.float64],
    ) -> _Partners:
        return _Partners(
            suspects=suspects,
            image=self._saved("partner_image", image.astype(np.int64)),
            caption=self._saved("partner_caption", caption.astype(np.int64)),
            confidence=self._saved("confidence", confidence.astype(np.float64)),
        )

    def _gathered(self, stage: _Stage, groups: int, name: str) -> NDArray[Any]:
        found = []
        for number in range(groups):
            with np.load(stage.record(number)) as file:
                found.append(file[name])
        return np.concatenate(found) if found else np.empty(0)

    def _saved(self, name: str, array: NDArray[Any]) -> Path:
        path = self.work / f"{name}.npy"
        with written_whole(path) as beside:
            np.save(beside, array)
        return path


class _Scores:
    """Cosines of all images and captions, block by block."""

    def __init__(self, whole: Whole) -> None:
        self._whole = whole

    @property
    def n_images(self) -> int:
        return self._whole.n_images

    @property
    def n_captions(self) -> int:
        return len(self._whole)

    def block(self, images: NDArray[np.int64], captions: NDArray[np.int64]) -> torch.Tensor:
        return self._whole.images(images) @ self._whole.captions(captions).T
