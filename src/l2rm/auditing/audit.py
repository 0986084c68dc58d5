"""Find the mismatched pairs of a data set, suggest a partner for each, and decide what to do with it."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from l2rm.auditing.check import check_judging, checked_probability
from l2rm.auditing.confidence import Trials, Unseen
from l2rm.auditing.crossfit import CrossFit
from l2rm.auditing.evidence import gather_evidence
from l2rm.auditing.folder import write_facts
from l2rm.auditing.issues import Issue, find_issues
from l2rm.auditing.near_duplicates import NearDuplicates, find_near_duplicates
from l2rm.auditing.ratio import MismatchRatio, mismatch_ratio
from l2rm.data.pairs import Pairs
from l2rm.data.tables import write_table
from l2rm.errors import InputError
from l2rm.evaluation.detection import Detection, RematchHits, measure_detection, measure_rematch
from l2rm.evaluation.evaluate import Models, mean_scores, member_scores
from l2rm.evaluation.metrics import Metrics
from l2rm.evaluation.scores import Scores
from l2rm.files import folder_written_whole, written_whole
from l2rm.rematching.division import BetaMixture
from l2rm.rematching.ranks import RankMixture

MetricsByMethod = Mapping[str, Metrics | Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Audit:
    """The verdict on every pair (row) of a data set.

    Attributes:
        pairs: what was audited.
        losses: `(rows,)` the mean hinge of each given pair against other images and captions; see `audit_scores`.
        mixture: the Beta mixture fitted to the losses.
        match_probability: `(rows,)` in [0, 1].
        candidates: `(rows, k)` images for each caption, best first, never the given one; the first is suggested.
        rematch_row: `(rows,)` the row whose caption is suggested for the pair's image, −1 where there is none.
        rematch_confidence: `(rows,)` how sure the suggested image is; see `audit_scores`.
        keep_threshold, rematch_threshold: what decides; see `decision`.
        by_losses: whether `match_probability` is the mixture's, not one given from elsewhere.
        p_values, rank_mixture: of a cross-fitted audit, what `match_probability` comes from; see `CrossFit`.
        issues: what else is wrong, kind by kind: duplicated captions, near-duplicate images, captions of no
            information.
        calibrated: whether `rematch_confidence` is how often such suggestions are right; else it only ranks them.
        judge: what judged, in a few words for the report.
    """

    pairs: Pairs
    losses: np.ndarray
    mixture: BetaMixture
    match_probability: np.ndarray
    candidates: np.ndarray
    rematch_row: np.ndarray
    rematch_confidence: np.ndarray
    keep_threshold: float
    rematch_threshold: float
    by_losses: bool = True
    p_values: np.ndarray | None = None
    rank_mixture: RankMixture | None = None
    issues: tuple[Issue, ...] = ()
    calibrated: bool = False
    judge: str = "similarities given"

    @property
    def is_mismatched(self) -> np.ndarray:
        """`(rows,)` bool: the audit's own verdict, `match_probability < keep_threshold`. The truth is not looked at."""
        return self.match_probability < self.keep_threshold

    @property
    def decision(self) -> np.ndarray:
        """`(rows,)` `keep` what looks matched; else `rematch` where the suggestion is confident enough; else `drop`."""
        otherwise = np.where(self.rematch_confidence >= self.rematch_threshold, "rematch", "drop")
        return np.where(self.is_mismatched, otherwise, "keep")

    @cached_property
    def mismatch_ratio(self) -> MismatchRatio | None:
        """The estimated share of mismatched pairs, with an interval; None where the losses tell none."""
        known: dict[str, Any] = {"match_probability": self.match_probability}
        if self.p_values is not None:
            known = {"p_values": self.p_values}
        elif self.by_losses:
            known = {"losses": self.losses}
        return mismatch_ratio(self.pairs.image_of, **known)

    @cached_property
    def table(self) -> pa.Table:
        """One row a pair: `pair_id, image, caption, match_probability, is_mismatched` (the verdict), `rematch_image,
        rematch_caption, rematch_confidence, decision`; then `is_<name>_issue, <name>_score` for each of `issues`."""
        images, captions = self.pairs.images, self.pairs.captions
        columns: dict[str, Any] = {
            "pair_id": pa.array(self.pairs.pair_ids, pa.string()),
            "image": pa.array([images[image] for image in self.pairs.image_of], pa.string()),
            "caption": pa.array(captions, pa.string()),
            "match_probability": pa.array(self.match_probability, pa.float64()),
            "is_mismatched": pa.array(self.is_mismatched, pa.bool_()),
            "rematch_image": pa.array([images[image] for image in self.candidates[:, 0]], pa.string()),
            "rematch_caption": pa.array([captions[row] if row >= 0 else None for row in self.rematch_row], pa.string()),
            "rematch_confidence": pa.array(self.rematch_confidence, pa.float64()),
            "decision": pa.array(self.decision.tolist(), pa.string()),
        }
        for issue in self.issues:
            columns |= issue.columns()
        return pa.table(columns)

    @cached_property
    def detection(self) -> Detection | None:
        """The verdict against the truth, where the pairs know it and hold both kinds; else None."""
        truth = self.pairs.is_mismatched
        if truth is None or truth.all() or not truth.any():
            return None
        return measure_detection(self.match_probability, truth, threshold=self.keep_threshold)

    @cached_property
    def rematch_hits(self) -> RematchHits | None:
        """How often the true image of a truly mismatched caption is suggested; None where the truth is not known.

        A caption whose true image is not in the data set counts as a miss.
        """
        truth, true_image_of = self.pairs.is_mismatched, self.pairs.true_image_of
        if truth is None or true_image_of is None or not truth.any():
            return None
        return measure_rematch(self.candidates[truth], true_image_of[truth])

    def to_html(self, path: str | Path, *, metrics: MetricsByMethod | None = None, credits: str = "") -> Path:
        """Write the report, one file that needs nothing else.

        Args:
            path: where to.
            metrics: retrieval metrics by method, for a table.
            credits: one line about where the data come from and under what licence.
        """
        self._write_report(Path(path), Path(path).parent, metrics=metrics, credits=credits)
        return Path(path)

    def write(self, folder: str | Path, *, metrics: MetricsByMethod | None = None, credits: str = "") -> Path:
        """Write `audit.parquet`, `audit.json` and `report.html` into a folder: all, or none. Other files there stay.

        Rows that could not be used (`pairs.left_out`) are listed in `left_out.csv`, where there are any.

        Raises:
            InputError: the folder's name belongs to a file.
        """
        folder = Path(folder)
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder}: is a file; name a folder for audit.parquet and report.html")
        if not folder.exists():
            with folder_written_whole(folder) as whole:
                self._write_all(whole, folder, metrics=metrics, credits=credits)
        else:
            self._write_all(folder, folder, metrics=metrics, credits=credits)
        return folder

    def _write_all(self, folder: Path, name: Path, *, metrics: MetricsByMethod | None, credits: str) -> None:
        with written_whole(folder / "audit.parquet") as beside:
            pq.write_table(self.table, beside)
            self._write_report(folder / "report.html", name, metrics=metrics, credits=credits)
            write_facts(self, folder / "audit.json")
            self._write_left_out(folder / "left_out.csv")

    def _write_report(self, path: Path, name: Path, *, metrics: MetricsByMethod | None, credits: str) -> None:
        """The report, which calls the folder of the audit `name`."""
        from l2rm.auditing.report import render_report

        with written_whole(path) as beside:
            page = render_report(self, metrics=metrics, credits=credits, folder=str(name))
            beside.write_text(page, encoding="utf-8")

    def _write_left_out(self, path: Path) -> None:
        left_out = self.pairs.left_out
        if not left_out:
            path.unlink(missing_ok=True)
            return
        columns = {name: [getattr(one, name) for one in left_out] for name in ("row", "image", "reason")}
        write_table(path, columns)


def audit(
    pairs: Pairs,
    model: Models,
    *,
    unseen: Pairs | NDArray[np.int64] | None = None,
    progress: bool = True,
    **options: Any,
) -> Audit:
    """Judge every pair by a trained model, or by the mean similarity of several: `audit_scores` of their scores.

    Args:
        pairs: images and captions as given. Where they have no features, their images are encoded.
        model: one model or several.
        unseen: pairs that the model has not learned, such as its dev split, or the numbers of such rows of `pairs`:
            they tell how sure its suggestions are. Without them a model that was trained on `pairs` is far too sure, as
            it knows these by heart.
        progress: tell on standard error how far it is.
        options: thresholds and the like, as in `audit_scores`.

    Raises:
        InputError: features that the model cannot take or that are not finite, and what `audit_scores` refuses.

    Example:
        >>> audit(noisy.pairs, run.model, unseen=dev).to_html("report.html")  # doctest: +SKIP
    """
    members = member_scores(model, pairs, progress=progress)
    scores = mean_scores(members)
    if isinstance(unseen, Pairs):
        options["unseen"] = Unseen.beside(pairs, members, unseen, model)
    elif unseen is not None:
        options["unseen"] = Unseen(scores=scores, image_of=pairs.image_of, rows=unseen)
    return audit_scores(scores, pairs, progress=progress, **{"judge": "a trained model", **options})


def audit_scores(
    scores: Scores,
    pairs: Pairs,
    *,
    keep_threshold: float = 0.5,
    rematch_threshold: float = 0.5,
    margin: float = 0.2,
    candidates: int = 10,
    seed: int = 0,
    progress: bool = True,
    match_probability: np.ndarray | None = None,
    ranks: CrossFit | None = None,
    unseen: Unseen | None = None,
    copies: NearDuplicates | None = None,
    flags: bool = True,
    judge: str = "similarities given",
) -> Audit:
    """Judge every pair by how its score compares with those of other images and captions.

    The loss of the pair (image i, caption c) with score s is

        mean_j [margin + S(i, j) − s]₊  +  mean_k [margin + S(k, c) − s]₊

    with j over captions not given to image i and k over images other than i: all of them up to 1,024, else a fixed
    sample of 1,024 drawn by `seed`. A two-component Beta mixture of the losses turns a loss into a match probability.
    The suggested image of a caption is the best-scoring one that it is not given; `rematch_confidence` is the match
    probability, under the same mixture, of the loss that this pair would have, computed the same way; captions given to
    the suggested image, or to the same image as c, are no negatives then. It ranks suggestions rather than being a
    calibrated probability: the best of many images tends to look good. With `ranks` or `unseen` it is calibrated: how
    often, for captions whose image is known, an image that fits as well turns out to be that one (`Trials`).

    Args:
        scores: similarities, images × captions, in the order of `pairs.images` and its rows.
        pairs: images and captions as given.
        keep_threshold: keep a pair whose match probability is at least this.
        rematch_threshold: of the others, rematch those whose confidence is at least this and drop the rest.
        margin: of the hinge, in units of the scores.
        candidates: how many suggested images to keep for every caption (`Audit.candidates`).
        seed: draws the negatives.
        progress: tell on standard error how far it is.
        match_probability: `(rows,)` from elsewhere (averaged over the epochs of a training, say) instead of the
            mixture's; confidences still come from the mixture.
        ranks: how a cross-fit judged these pairs; its probabilities count then, and confidences are tried on those of
            the pairs that look matched.
        unseen: pairs that a trained judge has not learned; confidences are tried on them.
        copies: pictures that are the same, where they were looked for already.
        flags: look for what fools similarity (`Audit.issues`).
        judge: what judges, in a few words for the report.

    Raises:
        InputError: scores that do not fit the pairs, NaN scores, fewer than two images, a threshold or probability
            outside [0, 1].

    Example:
        >>> from l2rm.evaluation.scores import MatrixScores
        >>> S = np.random.default_rng(0).normal(0, 0.2, size=(40, 40))
        >>> S[np.r_[1:10, 0, 10:40], np.arange(40)] += 1  # the first ten captions went one image too far
        >>> pairs = Pairs(images=tuple(f"{i}.jpg" for i in range(40)), image_of=np.arange(40), captions=("text",) * 40)
        >>> audit = audit_scores(MatrixScores(S), pairs, progress=False)
        >>> audit.is_mismatched.nonzero()[0].tolist(), audit.table["rematch_image"][0].as_py()
        ([0, 1, 2, 3, 4, 5, 6, 7, 8, 9], '1.jpg')
    """
    thresholds = {"keep_threshold": keep_threshold, "rematch_threshold": rematch_threshold}
    check_judging("audit", scores, pairs, thresholds)
    if match_probability is not None:
        match_probability = checked_probability("audit", match_probability, len(pairs))
    evidence = gather_evidence(
        scores, pairs.image_of, margin=margin, candidates=candidates, seed=seed, progress=progress
    )
    if not (finite := np.isfinite(evidence.losses)).all():
        row = int(np.argmin(finite))
        raise InputError(
            f"scores: infinite around row {row + 1} (pair {pairs.pair_ids[row]}); check the similarity matrix"
        )
    mixture = BetaMixture.fit(torch.from_numpy(evidence.losses))
    by_losses = match_probability is None and ranks is None
    trials = None
    if ranks is not None:
        match_probability = ranks.match_probability
        trials = Trials.of_given(evidence, match_probability)
    elif match_probability is None:
        match_probability = _probability(mixture, evidence.losses)
    if unseen is not None:
        trials = Trials.of_unseen(unseen, images=pairs.n_images, rows=len(pairs), margin=margin, seed=seed)
    suggested = evidence.suggestion_losses
    confidence = _probability(mixture, suggested) if trials is None else trials.confidence(suggested)
    if flags and copies is None:
        copies = find_near_duplicates(pairs, progress=progress)
    return Audit(
        pairs=pairs,
        losses=evidence.losses,
        mixture=mixture,
        match_probability=match_probability,
        candidates=evidence.candidates,
        rematch_row=evidence.best_caption,
        rematch_confidence=confidence,
        keep_threshold=keep_threshold,
        rematch_threshold=rematch_threshold,
        by_losses=by_losses,
        p_values=None if ranks is None else ranks.p_values,
        rank_mixture=None if ranks is None else ranks.mixture,
        issues=find_issues(pairs, scores, copies, seed=seed) if flags else (),
        calibrated=trials is not None,
        judge=judge,
    )


def _probability(mixture: BetaMixture, losses: np.ndarray) -> np.ndarray:
    probability: np.ndarray = mixture.match_probability(torch.from_numpy(losses)).numpy()
    return probability
