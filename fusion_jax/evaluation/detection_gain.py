"""How much better one detector is than another, over patients and over seeds of training."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Num

from fusion_jax.arrays import Array
from fusion_jax.evaluation.detection import (
    PrecisionData,
    View,
    make_precision_data,
    threshold_index,
    weighted_average_precision,
    with_mean,
)
from fusion_jax.evaluation.detection_matching import Matches
from fusion_jax.evaluation.resampling import Interval, bootstrap, make_design, percentile_interval

__all__ = ["PrecisionGains", "precision_gains"]


class PrecisionGains(NamedTuple):
    """Average precision of detectors trained from several seeds, and what each gains over one of them.

    Attributes:
      models: names, in the order of the axes `m`; the baseline among them.
      seeds: number of trainings of each.
      precision: average precision of every training, shape `(m, s, k+1)`, the mean over classes last.
      value: mean over the seeds, shape `(m, k+1)`.
      interval: of `value`, over patients and seeds.
      gain: `value` less that of the baseline, shape `(m, k+1)`; 0 for the baseline itself.
      gain_interval: of `gain`.
      above: share of the resamples, of those that drew a box of the class, in which the gain is above 0, shape
        `(m, k+1)`.
    """

    models: tuple[str, ...]
    seeds: int
    precision: Float[np.ndarray, "m s k1"]
    value: Float[np.ndarray, "m k1"]
    interval: Interval
    gain: Float[np.ndarray, "m k1"]
    gain_interval: Interval
    above: Float[np.ndarray, "m k1"]


def precision_gains(
    matches: Mapping[str, Sequence[Matches]],
    *,
    baseline: str,
    patients: Sequence[str] | None = None,
    overlap: float = 0.5,
    resamples: int = 5000,
    seed: int = 0,
    level: float = 0.95,
) -> PrecisionGains:
    r"""Gain in average precision over a baseline, with patients and seeds resampled.

    A model is the mean of its trainings, :math:`\mathrm{AP}_m = \frac1S \sum_s \mathrm{AP}_{ms}`, and its gain
    :math:`\mathrm{AP}_m - \mathrm{AP}_0`. A resample draws patients (those with and without a box apart) and,
    independently, seeds, both with replacement and the same for all models: training s of every model began from the
    same seed and saw the same batches. With few seeds the interval is somewhat too narrow, by a factor of about
    :math:`\sqrt{(S - 1) / S}` in the part that is due to them.

    Args:
      matches: model to the matches of its trainings, in the same order of seeds, all against the same truth.
      baseline: the model that gains are over.
      patients: of each case; every case is one's own unless given.
      overlap: threshold of a hit.
      resamples: of patients and seeds.
      seed: of the resamples.
      level: of the intervals, which are percentile intervals.

    Raises:
      ValueError: an unknown baseline, models with different numbers of trainings, or matches of different truths.

    Example:
      >>> from fusion_jax.evaluation.detection_matching import match_boxes
      >>> truth, zero = np.array([[0.0, 0, 10, 10]]), np.zeros(1, int)
      >>> setting = {"cases": 1, "classes": 1, "thresholds": [0.5]}
      >>> hit = match_boxes(truth, zero, zero, truth, zero, zero, np.ones(1), **setting)
      >>> miss = match_boxes(truth, zero, zero, truth + 20, zero, zero, np.ones(1), **setting)
      >>> found = precision_gains({"image": [miss], "fused": [hit]}, baseline="image", resamples=10)
      >>> found.gain[1].tolist(), found.above[1].tolist()
      ([1.0, 1.0], [1.0, 1.0])

    References:
      Efron & Tibshirani 1993, "An Introduction to the Bootstrap", chapter 8, of two samples.
    """
    models = tuple(matches)
    if baseline not in matches:
        raise ValueError(f"baseline is {baseline!r}; expected one of {', '.join(models)}.")
    numbers = {name: len(entries) for name, entries in matches.items()}
    if len(set(numbers.values())) > 1 or not min(numbers.values()):
        raise ValueError(f"trainings of each model: {numbers}; expected the same number, from the same seeds.")
    seeds = numbers[baseline]
    entries = [entry for of_model in matches.values() for entry in of_model]
    at = threshold_index(entries[0].thresholds, overlap)
    data = make_precision_data([View(entry) for entry in entries], thresholds=[entries[0].thresholds[at]])
    first = entries[0]
    points = np.asarray(_precision(data, jnp.ones(first.cases)), np.float64)
    precision = points.reshape(len(models), seeds, -1)
    holds = np.zeros(first.cases, np.int64)
    holds[first.truth_case[first.counted[:, 0]]] = 1
    drawn = bootstrap(_precision, data, make_design(holds, patients), resamples=resamples, seed=seed)
    drawn = drawn.reshape(resamples, len(models), seeds, -1)
    often = np.random.default_rng([seed, seeds]).multinomial(seeds, np.full(seeds, 1 / seeds), resamples)
    values = np.einsum("rs,rmsk->rmk", often / seeds, drawn)
    zero = models.index(baseline)
    gains = values - values[:, zero : zero + 1]
    value = precision.mean(axis=1)
    return PrecisionGains(
        models=models,
        seeds=seeds,
        precision=precision,
        value=value,
        interval=percentile_interval(values, level),
        gain=value - value[zero],
        gain_interval=percentile_interval(gains, level),
        above=np.sum(gains > 0, axis=0) / np.maximum(np.sum(np.isfinite(gains), axis=0), 1),
    )


def _precision(data: PrecisionData, weights: Num[Array, "n"]) -> Float[Array, "e k1"]:
    precision, _ = weighted_average_precision(data, weights)
    return with_mean(precision)[..., 0]
