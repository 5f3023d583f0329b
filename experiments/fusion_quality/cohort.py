"""Fusion quality of the bundled PET-CT cohort: 48 patients with soft-tissue sarcoma, 24 with distant metastases.

Sources of a patient: PET and CT values of the same voxels of the tumour, equally many in every patient, and age, sex
and grade. Everything is scaled by cohort. Distant metastases are the outcome and never an input.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import rankdata
from sklearn import config_context
from sklearn.linear_model import LogisticRegression

from experiments.fusion_quality.config import Config
from fusion_jax.data import clinical_inputs, soft_tissue_sarcoma
from fusion_jax.quality import (
    FusionQuality,
    bandwidth_stability,
    dominant_source,
    fusion_quality,
    masked_positional_encoding,
    outcome_null,
    pairing_null,
)

Sources = dict[str, np.ndarray]
PAIRS = (("pet", "ct"), ("pet", "clinical"), ("ct", "clinical"))
SIZES_TRIED = 25
# Fixed before looking: the bias towards PET of the whole layer. The rest is exploration and called so.
PRIMARY = "TV of pet, after"


def measure_cohort(config: Config, advance: Callable[[str], None]) -> dict[str, Any]:
    """Fusion quality of every patient before and after positional encoding, and its relation to the outcome."""
    advance("reading the cohort")
    sample = soft_tissue_sarcoma(paper_cohort=True)
    table = sample.table
    voxels = min(int(mask.sum()) for mask in sample.mask)
    images = {
        name: _by_cohort(_tumour_values(volumes, sample.mask, voxels, config.seed))
        for name, volumes in (("pet", sample.pet), ("ct", sample.ct))
    }
    clinical, present, names = clinical_inputs(table)
    weights = present.astype(float)

    advance("measuring before encoding")
    raw = images | {
        "clinical": np.column_stack([_by_cohort(*column) for column in zip(clinical.T, weights.T, strict=True)])
    }
    raw_weights = {"clinical": weights}
    before = fusion_quality(raw, weights=raw_weights, bandwidth=config.cohort_bandwidth)

    advance("trying encoding sizes")
    encode = jax.jit(jax.vmap(masked_positional_encoding, in_axes=(0, None, None)), static_argnums=2)
    sizes = _even_multiples(len(names), config.largest_size)
    tried = {size: _encoded(encode, clinical, weights, size, config.largest_size) for size in sizes}
    gaps = {pair: np.empty((len(sizes), len(table))) for pair in PAIRS[1:]}
    for number, (values, mass) in enumerate(tried.values()):
        quality = fusion_quality(
            images | {"clinical": values},
            weights={"clinical": mass},
            bandwidth=config.cohort_bandwidth,
            keep_densities=False,
        )
        for pair, rows in gaps.items():
            rows[number] = quality.energy_gap[pair]
    mean_gap = sum(rows.mean(axis=1) for rows in gaps.values()) / len(gaps)
    balanced = sizes[int(np.abs(mean_gap).argmin())]

    advance("measuring after encoding")
    values, mass = tried[balanced]
    encoded, encoded_weights = images | {"clinical": values}, {"clinical": mass}
    after = fusion_quality(encoded, weights=encoded_weights, bandwidth=config.cohort_bandwidth)

    advance("checking bandwidths and pairings")
    stability = {
        stage: bandwidth_stability(sources, config.cohort_bandwidth, weights=mass, conclude=_conclusions)
        for stage, sources, mass in (("before", raw, raw_weights), ("after", encoded, encoded_weights))
    }
    key = jax.random.key(config.seed)
    nulls = {
        pair: pairing_null(after, pair, jax.random.fold_in(key, number), permutations=config.permutations)
        for number, pair in enumerate(PAIRS)
    }

    advance("relating source bias to the outcome")
    outcome = table["distant_metastases"].to_numpy(bool)
    covariates = np.column_stack([np.log(table["tumour_volume_ml"].to_numpy(float)), _pet_spacing(table)])
    relations = [relate(name, values, outcome, covariates, config) for name, values in _biases(before, after)]
    return {
        "patients": list(sample.patient_id),
        "outcome": outcome,
        "voxels": voxels,
        "missing_grade": int((~present).sum()),
        "sizes": np.asarray(sizes),
        "gaps": gaps,
        "balanced_size": balanced,
        "before": before,
        "after": after,
        "stability": stability,
        "nulls": nulls,
        "relations": relations,
    }


def _tumour_values(volumes: tuple, masks: tuple, voxels: int, seed: int) -> np.ndarray:
    """Values of the same random tumour voxels in every modality, shape `(patients, voxels)`."""
    rows = []
    for patient, (volume, mask) in enumerate(zip(volumes, masks, strict=True)):
        chosen = np.random.default_rng([seed, patient]).choice(int(mask.sum()), voxels, replace=False)
        rows.append(volume[mask][np.sort(chosen)])
    return np.stack(rows)


def _by_cohort(values: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Standard scores by the mean and standard deviation of the whole cohort; 0 where the weight is 0."""
    weights = np.ones_like(values, float) if weights is None else weights
    mean = np.average(values, weights=weights)
    deviation = np.sqrt(np.average((values - mean) ** 2, weights=weights))
    return np.where(weights > 0, (values - mean) / deviation, 0.0)


def _even_multiples(markers: int, largest: int) -> list[int]:
    step = 2 * markers
    return sorted({round(size / step) * step for size in np.geomspace(step, largest, SIZES_TRIED)})


def _encoded(
    encode: Callable, clinical: np.ndarray, weights: np.ndarray, size: int, padded: int
) -> tuple[np.ndarray, ...]:
    """Encodings in native units, scaled by cohort, in one padded shape; a missing value's block has weight 0."""
    coordinates, mass = (np.asarray(a, float) for a in encode(clinical, float(size), padded))
    mass = mass * np.repeat(weights, padded // weights.shape[1], axis=1)
    return _by_cohort(coordinates, mass), mass


def _conclusions(quality: FusionQuality) -> tuple[str, str]:
    """The source that holds most of the fused energy, and which of PET and CT holds more, on average."""
    return dominant_source(quality), "pet" if float(jnp.mean(quality.energy_gap["pet", "ct"])) > 0 else "ct"


def _pet_spacing(table: Any) -> np.ndarray:
    return table["pet_spacing_in_plane_mm"].to_numpy(float)


def _biases(before: FusionQuality, after: FusionQuality) -> Iterator[tuple[str, np.ndarray]]:
    for stage, quality in (("before", before), ("after", after)):
        for name, bias in quality.total_variation.items():
            yield f"TV of {name}, {stage}", np.asarray(bias, float)
    for pair in PAIRS:
        yield f"ΔE of {pair[0]} over {pair[1]}, after", np.asarray(after.energy_gap[pair], float)


def relate(
    name: str, values: np.ndarray, outcome: np.ndarray, covariates: np.ndarray, config: Config
) -> dict[str, Any]:
    """Area under the ROC curve and odds ratio of one number a patient, unadjusted and adjusted.

    Intervals are percentiles over resamples of patients, drawn within each outcome; p-values permute patients.
    """
    generator = np.random.default_rng(config.seed)
    groups = [np.flatnonzero(outcome), np.flatnonzero(~outcome)]
    drawn = np.stack([np.concatenate([generator.choice(g, g.size) for g in groups]) for _ in range(config.resamples)])
    both = np.column_stack([values, covariates])
    # The checks of scikit-learn cost more than its fits of 48 patients.
    with config_context(assume_finite=True, skip_parameter_validation=True):
        odds = [_odds_ratio(both[rows, :1], outcome[rows]) for rows in drawn]
        adjusted = [_odds_ratio(both[rows], outcome[rows]) for rows in drawn]
    return {
        "quantity": name,
        "primary": name == PRIMARY,
        "patients": int(outcome.size),
        "events": int(outcome.sum()),
        "auc": float(_areas(values[None], outcome[None])[0]),
        "auc_interval": _interval(_areas(values[drawn], outcome[drawn])),
        "p_value": outcome_null(values, outcome, permutations=config.permutations, seed=config.seed).p_value,
        "odds_ratio_per_sd": _odds_ratio(both[:, :1], outcome),
        "odds_ratio_interval": _interval(odds),
        "adjusted_odds_ratio_per_sd": _odds_ratio(both, outcome),
        "adjusted_interval": _interval(adjusted),
        "adjusted_p_value": outcome_null(
            values, outcome, covariates=covariates, permutations=config.permutations, seed=config.seed
        ).p_value,
    }


def _areas(values: np.ndarray, outcome: np.ndarray) -> np.ndarray:
    """Area under the ROC curve of every row, ties counted half: the Mann-Whitney statistic from ranks."""
    positives, negatives = outcome.sum(axis=1), (~outcome).sum(axis=1)
    ranks = np.where(outcome, rankdata(values, axis=1), 0.0).sum(axis=1)
    return (ranks - positives * (positives + 1) / 2) / (positives * negatives)


def _odds_ratio(columns: np.ndarray, outcome: np.ndarray) -> float:
    """Odds ratio per standard deviation of the first column, given the others."""
    scaled = (columns - columns.mean(axis=0)) / columns.std(axis=0)
    # A ridge of 1/100 of a patient's weight: without it a resample that separates the outcome has no finite ratio.
    model = LogisticRegression(C=100.0, solver="newton-cholesky").fit(scaled, outcome)
    return float(np.exp(model.coef_[0, 0]))


def _interval(values: Sequence[float] | np.ndarray) -> list[float]:
    return [float(v) for v in np.quantile(values, (0.025, 0.975))]
