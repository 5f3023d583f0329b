"""The central claim of Wang et al. 2023 as a test: is accuracy best where the encoding is as large as the image?

For every split, control and gamma = d2* / d1 a head is fitted to the training patients, its penalty chosen on the
validation patients, and its AUC taken on the test patients. What is reported is the mean of these AUCs over the splits.
Intervals resample the patients, once for all splits and models, so that differences between models are paired.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from experiments.portal_hypertension.blocks import CONTROLS, Control, block_sizes, marker_block
from experiments.portal_hypertension.heads import ridge_heads, standardised
from fusion_jax.data.splits import Rows
from fusion_jax.records import atomic_path

__all__ = ["Claim", "Curve", "Study", "bootstrapped_mean_auc", "judge", "kept_study", "mean_auc", "run_study"]

LEVEL = 0.95


class Study(NamedTuple):
    """What the heads of one cohort said.

    Attributes:
      gammas: asked for; `sizes / features` are met.
      sizes: d2* of each gamma.
      features: d1.
      label: of the patients.
      test, train: which patients were in that part of each split.
      models: names of the rows of `logits`: "image", "markers", and (control, size).
      logits: of all patients, from the head whose penalty the validation patients chose.
      fixed: the same with one penalty for all.
      penalties: chosen, by index.
    """

    gammas: tuple[float, ...]
    sizes: tuple[int, ...]
    features: int
    label: Int[np.ndarray, "n"]
    train: Bool[np.ndarray, "s n"]
    test: Bool[np.ndarray, "s n"]
    models: tuple[str | tuple[str, int], ...]
    logits: Float[np.ndarray, "m s n"]
    fixed: Float[np.ndarray, "m s n"]
    penalties: Int[np.ndarray, "m s"]

    def row(self, model: str | tuple[str, int]) -> int:
        """Row of a model."""
        return self.models.index(model)

    @property
    def nearest(self) -> int:
        """The size whose gamma is nearest to 1."""
        return self.sizes[int(np.argmin(np.abs(np.log(np.divide(self.sizes, self.features)))))]


def kept_study(path: Path, settings: Mapping[str, Any], make: Callable[[], Study]) -> Study:
    """The study of a file that was made with these settings; else made, and written there.

    Args:
      path: of the file.
      settings: all that the study follows from, as JSON holds it.
      make: makes it.
    """
    key = json.dumps(settings, sort_keys=True, default=list)
    if path.is_file():
        with np.load(path, allow_pickle=False) as file:
            if str(file["settings"]) == key:
                models = [
                    tuple(model) if isinstance(model, list) else model for model in json.loads(str(file["models"]))
                ]
                gammas, sizes = (tuple(file[name].tolist()) for name in ("gammas", "sizes"))
                arrays = {name: file[name] for name in ("label", "train", "test", "logits", "fixed", "penalties")}
                return Study(gammas=gammas, sizes=sizes, features=int(file["features"]), models=tuple(models), **arrays)
    study = make()
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, settings=key, **{**study._asdict(), "models": json.dumps(study.models)})
    return study


def run_study(
    features: Sequence[Float[np.ndarray, "n f"]],
    markers: Float[np.ndarray, "n t"],
    label: Int[np.ndarray, "n"],
    rows: Sequence[Rows],
    gammas: tuple[float, ...],
    *,
    controls: Sequence[Control] = CONTROLS,
    fixed_penalty: int = 1,
    seed: int = 0,
    advance: Callable[[], None] = lambda: None,
) -> Study:
    """Fit every head.

    Args:
      features: of the images, one array a split: an encoder may have been trained on its training patients.
      markers: in native units.
      label: 0 or 1.
      rows: of each split.
      gammas: relative sizes to try.
      controls: blocks to try.
      fixed_penalty: index of the penalty of `Study.fixed`.
      seed: of the controls.
      advance: called once a split.
    """
    from threadpoolctl import threadpool_limits

    width = features[0].shape[1]
    sizes = block_sizes(gammas, width, markers.shape[1])
    models: list[str | tuple[str, int]] = ["image", "markers", *((c, size) for c in controls for size in sizes)]
    shape = (len(models), len(rows), len(label))
    logits, fixed = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    penalties = np.zeros(shape[:2], np.int64)
    train, test = np.zeros(shape[1:], bool), np.zeros(shape[1:], bool)
    for number, (own, split) in enumerate(zip(features, rows, strict=True)):
        train[number, split.train], test[number, split.test] = True, True
        image = standardised(own, split.train)
        for index, model in enumerate(models):
            if model == "image":
                layer = image
            elif model == "markers":
                layer = standardised(markers, split.train)
            else:
                control, size = model
                block = marker_block(control, markers, size, split.train, seed=1000 * seed + number)  # pyright: ignore[reportArgumentType]
                layer = np.concatenate([image, block], axis=1)
            # Matrices this small cost threads more than they gain.
            with threadpool_limits(1):
                found = ridge_heads(layer, label, split.train, split.validation)
            logits[index, number] = found.logits[found.chosen]
            fixed[index, number] = found.logits[fixed_penalty]
            penalties[index, number] = found.chosen
        advance()
    return Study(gammas, sizes, width, label, train, test, tuple(models), logits, fixed, penalties)


def mean_auc(
    logits: Float[np.ndarray, "m s n"], label: Int[np.ndarray, "n"], part: Bool[np.ndarray, "s n"]
) -> Float[np.ndarray, "m s"]:
    """AUC of every model in every split over the patients of `part`.

    Example:
      >>> mean_auc(np.array([[[0.0, 1.0, 2.0, 3.0]]]), np.array([0, 1, 0, 1]), np.ones((1, 4), bool)).tolist()
      [[0.75]]
    """
    from scipy.stats import rankdata

    found = np.empty(logits.shape[:2])
    for split, chosen in enumerate(part):
        positive = label[chosen] == 1
        ranks = rankdata(logits[:, split, chosen], axis=1)
        count = positive.sum()
        wins = ranks[:, positive].sum(axis=1) - count * (count + 1) / 2
        found[:, split] = wins / (count * (len(positive) - count))
    return found


def bootstrapped_mean_auc(
    logits: Float[np.ndarray, "m s n"],
    label: Int[np.ndarray, "n"],
    part: Bool[np.ndarray, "s n"],
    *,
    resamples: int,
    seed: int,
) -> Float[np.ndarray, "r m"]:
    """Mean over the splits of the AUC of every model, in bootstrap resamples of the patients within their class.

    One draw of patients weights the pairs of all splits; a split in which a class has no weight left is not counted,
    and a draw without any other split is NaN.
    """
    rng = np.random.default_rng([seed, len(label)])
    weights = np.zeros((resamples, len(label)), np.float32)
    for value in (0, 1):
        members = np.flatnonzero(label == value)
        weights[:, members] = rng.multinomial(len(members), np.full(len(members), 1 / len(members)), size=resamples)
    total = np.zeros((resamples, len(logits)))
    counted = np.zeros((resamples, 1))
    for split, chosen in enumerate(part):
        positive, negative = np.flatnonzero(chosen & (label == 1)), np.flatnonzero(chosen & (label == 0))
        own = logits[:, split]
        above = own[:, positive, None] - own[:, None, negative]
        wins = ((above > 0) + 0.5 * (above == 0)).astype(np.float32)
        first, second = weights[:, positive], weights[:, negative]
        pairs = first.sum(axis=1, keepdims=True) * second.sum(axis=1, keepdims=True)
        won = np.stack([np.sum((first @ one) * second, axis=1) for one in wins], axis=1)
        there = pairs > 0
        total += np.where(there, won / np.where(there, pairs, 1.0), 0.0)
        counted += there
    return np.where(counted > 0, total / np.maximum(counted, 1), np.nan)


@dataclasses.dataclass(frozen=True)
class Curve:
    """AUC against gamma of one kind of block.

    Attributes:
      control: the block.
      gammas: met, `sizes / features`.
      auc, low, high: mean test AUC over the splits with its interval over patients.
      train_auc: mean over the splits.
      best: in how many splits each gamma has the largest test AUC; ties share a split. Splits share patients, so that
        these counts are no independent draws.
    """

    control: str
    gammas: tuple[float, ...]
    auc: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    train_auc: tuple[float, ...]
    best: tuple[float, ...]


class Difference(NamedTuple):
    """Difference of two mean AUCs with its interval over patients and the p-value of its bootstrap."""

    what: str
    value: float
    low: float
    high: float
    p_value: float


@dataclasses.dataclass(frozen=True)
class Claim:
    """What the curves say of the claim.

    Attributes:
      curves: of every block.
      singles: "image" and "markers": mean test AUC with its interval.
      benefit: of image + encoding at gamma nearest 1 over the better single source.
      peak: of gamma nearest 1 over every other gamma, positional encoding.
      over_controls: of the positional encoding over each control, at gamma nearest 1.
      splits, patients: counts.
    """

    curves: tuple[Curve, ...]
    singles: Mapping[str, tuple[float, float, float]]
    benefit: Difference
    peak: tuple[Difference, ...]
    over_controls: tuple[Difference, ...]
    splits: int
    patients: int


def judge(study: Study, *, resamples: int = 1000, seed: int = 0, fixed: bool = False) -> Claim:
    """AUC against gamma with intervals, the distribution of the best gamma, and gamma near 1 against all else.

    Args:
      study: of one cohort.
      resamples: of the patients.
      seed: of the resamples.
      fixed: judge the heads with one penalty for all.
    """
    logits = study.fixed if fixed else study.logits
    tested, trained = (mean_auc(logits, study.label, part) for part in (study.test, study.train))
    drawn = bootstrapped_mean_auc(logits, study.label, study.test, resamples=resamples, seed=seed)
    met = tuple(size / study.features for size in study.sizes)
    nearest = study.nearest
    middle = tested.mean(axis=1)

    def interval(draws: Float[np.ndarray, "r"]) -> tuple[float, float]:
        low, high = np.nanquantile(draws, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
        return float(low), float(high)

    def difference(what: str, one: int, other: int) -> Difference:
        draws = drawn[:, one] - drawn[:, other]
        value, sd = float(middle[one] - middle[other]), float(np.nanstd(draws, ddof=1))
        p_value = math.erfc(abs(value) / sd / math.sqrt(2)) if sd > 0 else 1.0
        return Difference(what, value, *interval(draws), p_value)

    curves, shares = [], {}
    for control in dict.fromkeys(model[0] for model in study.models if isinstance(model, tuple)):
        rows = [study.row((control, size)) for size in study.sizes]
        largest = tested[rows] >= tested[rows].max(axis=0) - 1e-12
        shares[control] = (largest / largest.sum(axis=0)).sum(axis=1)
        ends = [interval(drawn[:, row]) for row in rows]
        curves.append(
            Curve(
                control,
                met,
                tuple(float(middle[row]) for row in rows),
                tuple(low for low, _ in ends),
                tuple(high for _, high in ends),
                tuple(float(trained[row].mean()) for row in rows),
                tuple(float(share) for share in shares[control]),
            )
        )
    best_single = max(("image", "markers"), key=lambda name: middle[study.row(name)])
    own = study.row(("positional", nearest))
    return Claim(
        tuple(curves),
        {name: (float(middle[study.row(name)]), *interval(drawn[:, study.row(name)])) for name in ("image", "markers")},
        difference(f"over {best_single} alone", own, study.row(best_single)),
        tuple(
            difference(f"gamma {gamma:.3g}", own, study.row(("positional", size)))
            for gamma, size in zip(met, study.sizes, strict=True)
            if size != nearest
        ),
        tuple(
            difference(curve.control, own, study.row((curve.control, nearest)))
            for curve in curves
            if curve.control != "positional"
        ),
        len(study.test),
        len(study.label),
    )
