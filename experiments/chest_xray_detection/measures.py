"""What the detectors of a study found in its test cases, as matches and numbers."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float

from fusion_jax.evaluation.detection import BoxCounts, average_precision, box_counts
from fusion_jax.evaluation.detection_gain import PrecisionGains, precision_gains
from fusion_jax.evaluation.detection_matching import AREAS, OVERLAP_GRID, Matches, Overlap, match_boxes
from fusion_jax.records.detections import BoxTruth, check_detections, check_truth
from fusion_jax.wording import listed

if TYPE_CHECKING:
    import pandas as pd

    from fusion_jax.detection.study import DetectorStudy

__all__ = ["COUNTED", "HIT", "Measured", "curve_of", "measure", "measure_study", "trained_models"]

HIT = 0.5
"""Overlap of a hit, as published."""

COUNTED = 0.05
"""Score from which a detection is counted, as the caption says."""

MOST = 100


class Measured(NamedTuple):
    """Detections of some models on the same test cases, judged by both overlaps.

    Attributes:
      truth: boxes that are there.
      matches: overlap to model to one matching a training, by seed.
      gains: overlap to average precision and gains over the first model.
      recall: overlap to model to recall of all detections at the hit, mean over seeds, shape `(k + 1,)`.
    """

    truth: BoxTruth
    matches: Mapping[Overlap, Mapping[str, Sequence[Matches]]]
    gains: Mapping[Overlap, PrecisionGains]
    recall: Mapping[Overlap, Mapping[str, Float[np.ndarray, "k1"]]]

    def counts(self, model: str, *, overlap: Overlap = "iobb", score: float = COUNTED) -> BoxCounts:
        """Boxes found, false detections and boxes missed by the training of the first seed."""
        return box_counts(self.matches[overlap][model][0], overlap=HIT, score=score)


def measure_study(studies: Sequence["DetectorStudy"], *, resamples: int, seed: int = 0) -> Measured:
    """Judge the test detections of studies on the same cases, such as an ablation beside the detectors it varies.

    Only seeds from which all models were trained are judged, and of a model that failed altogether nothing is said.

    Raises:
      ValueError: no such seed.
    """
    import pandas as pd

    seeds = set.intersection(*(_complete(study) for study in studies))
    if not seeds:
        failed = [f"{one.task.model}, seed {one.task.seed}" for study in studies for one in study.failed]
        raise ValueError(f"no seed from which every detector was trained; failed: {listed(failed)}. Run it again.")
    tables = []
    for study in studies:
        table: Any = study.detections
        folds = [split.fold for split in study.judged_splits()]
        judged = (table["split"] == "test") & (table["repeat"] == 0) & table["fold"].isin(folds)
        tables.append(table[judged & table["seed"].isin(sorted(seeds))])
    return measure(
        studies[0].truth,
        pd.concat(tables, ignore_index=True),
        [model for study in studies for model in trained_models(study)],
        sorted(seeds),
        classes=studies[0].plan.cohort.box_classes,
        resamples=resamples,
        seed=seed,
    )


def trained_models(study: "DetectorStudy") -> list[str]:
    """Models of which at least one training ended well, in the order of the plan."""
    done = {task.model for task in study.done}
    return [model for model in study.plan.models if model in done]


def _complete(study: "DetectorStudy") -> set[int]:
    """Seeds from which every model was trained in every split that is judged."""
    done = {(task.model, task.fold, task.seed) for task in study.done if task.repeat == 0}
    wanted = [(model, split.fold) for model in trained_models(study) for split in study.judged_splits()]
    return {seed for seed in study.plan.seeds if all((*one, seed) in done for one in wanted)}


def measure(
    truth: "pd.DataFrame",
    detections: "pd.DataFrame",
    models: Sequence[str],
    seeds: Sequence[int],
    *,
    classes: Sequence[str],
    resamples: int,
    seed: int = 0,
) -> Measured:
    """Judge detections; the first model is the one that gains are over.

    Args:
      truth: as `check_truth` takes it.
      detections: with the columns `model` and `seed` beside those of `check_detections`.
      models: in the order of the tables.
      seeds: of the trainings that are judged.
      classes: in order.
      resamples: of patients and seeds.
      seed: of the resamples.
    """
    known = check_truth(truth, where="truth", classes=classes)
    matches: dict[Overlap, dict[str, list[Matches]]] = {}
    overlaps: tuple[Overlap, ...] = ("iobb", "iou")
    for overlap in overlaps:
        matches[overlap] = {}
        for model in models:
            matches[overlap][model] = []
            for one in seeds:
                own: Any = detections[(detections["model"] == model) & (detections["seed"] == one)]
                matches[overlap][model].append(_matched(own, known, model, overlap))
    gains: dict[Overlap, PrecisionGains] = {
        overlap: precision_gains(
            of_models, baseline=models[0], patients=known.patients, overlap=HIT, resamples=resamples, seed=seed
        )
        for overlap, of_models in matches.items()
    }
    recall: dict[Overlap, dict[str, np.ndarray]] = {
        overlap: {model: _recall(entries) for model, entries in of.items()} for overlap, of in matches.items()
    }
    return Measured(known, matches, gains, recall)


def curve_of(entries: Sequence[Matches]) -> Float[np.ndarray, "s t"]:
    """Average precision, mean over classes, of every training at every overlap of `OVERLAP_GRID`."""
    found = [average_precision(one, max_detections=(MOST,)).of(AREAS[0].name, MOST)[0] for one in entries]
    return np.stack([np.nanmean(precision, axis=0) for precision in found])


def _matched(table: "pd.DataFrame", truth: BoxTruth, model: str, overlap: Overlap) -> Matches:
    found = check_detections(table, truth, where=f"detections of {model}", model=model) if len(table) else []
    boxes, case, label, score = np.zeros((0, 4)), *(np.zeros(0, np.int64),) * 2, np.zeros(0)
    if found:
        _, case, label, boxes, score = found[0]
    return match_boxes(
        truth.boxes,
        truth.case,
        truth.label,
        boxes,
        case,
        label,
        score,
        cases=len(truth.cases),
        classes=len(truth.classes),
        overlap=overlap,
        thresholds=OVERLAP_GRID,
        areas=AREAS[:1],
        max_detections=MOST,
    )


def _recall(entries: Sequence[Matches]) -> Float[np.ndarray, "k1"]:
    found = [average_precision(one, max_detections=(MOST,)).of(AREAS[0].name, MOST)[1] for one in entries]
    at = OVERLAP_GRID.index(HIT)
    by_class = np.mean([recall[:, at] for recall in found], axis=0)
    return np.append(by_class, np.nanmean(by_class))
