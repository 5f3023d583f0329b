"""What `fusion-jax quality` measures: a cohort as given and, where asked, after encoding one source."""

import itertools
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from fusion_jax.arrays import Array
from fusion_jax.commands._quality.features import Features, Outcome
from fusion_jax.commands.quality import Config
from fusion_jax.evaluation.delong import delong, delong_interval
from fusion_jax.quality import (
    ENCODINGS,
    Encoding,
    EncodingPlan,
    FusionQuality,
    NullTest,
    Stability,
    bandwidth_stability,
    cohort_bandwidth,
    dominant_source,
    energy_gap_from_energies,
    fusion_quality,
    masked_positional_encoding,
    outcome_null,
    pairing_null,
    plan_encoding,
    total_variation,
)
from fusion_jax.quality.measure import PLANNED_CASES

__all__ = ["Encoded", "Pair", "Relation", "Results", "Stage", "area_interval", "mass_curves", "measure", "size_curve"]

Pair: TypeAlias = tuple[str, str]

FEW_COLUMNS = 16
DENSITY_CASES = 4000  # densities of this many cases are held in memory; all other numbers are of every case
CURVE_GAMMAS = 241
LARGEST_GAMMA = 10.0


class Stage(NamedTuple):
    """A measurement, before or after encoding.

    Attributes:
      name: of the stage, in words.
      quality: of every case, without densities.
      dense: of the cases whose densities are held, with densities.
      distances: total variation between the two sources of each pair, in the cases of `dense`.
      stability: whether the source that holds most energy does so over a range of bandwidths.
      shares: mean share of each source in the fused energy at those bandwidths.
      gaps: mean scale-free gap of each pair at those bandwidths.
    """

    name: str
    quality: FusionQuality
    dense: FusionQuality
    distances: dict[Pair, np.ndarray]
    stability: Stability
    shares: dict[str, np.ndarray]
    gaps: dict[Pair, np.ndarray]


class Encoded(NamedTuple):
    """What was encoded and how.

    Attributes:
      source: what was encoded, from `markers` columns to `size` coordinates.
      partner: the largest other source, of `width` features, which gamma and the plan refer to.
      plan: sizes tried and the one that balances; None where sizes cannot be swept.
    """

    source: str
    markers: int
    size: int
    partner: str
    width: int
    plan: EncodingPlan | None
    plan_cases: int


class Relation(NamedTuple):
    """Relation of a source's bias to the outcome: area under the ROC curve, 95 % interval, permutation test."""

    stage: str
    source: str
    area: float
    interval: tuple[float, float]
    null: NullTest


class Results(NamedTuple):
    """Everything that the files and the report are made of.

    Attributes:
      config, features, outcome: what was given.
      pairs: of sources; in a pair with the encoded source, that one comes second.
      scaling: how every source was scaled, by its name.
      bandwidth: the number that was given, or that the rule gave.
      stages: before encoding and, if a source was encoded, after it.
      encoded: what was encoded.
      nulls: of the pairings of the last stage; none for a single case.
      relations: of every source's bias to the outcome, stage by stage.
    """

    config: Config
    features: Features
    pairs: list[Pair]
    scaling: dict[str, dict[str, Any]]
    bandwidth: float
    stages: list[Stage]
    encoded: Encoded | None
    nulls: dict[Pair, NullTest]
    outcome: Outcome | None
    relations: list[Relation]


def measure(features: Features, outcome: Outcome | None, config: Config, advance: Callable[[str], None]) -> Results:
    """Measure checked features; `advance` is told what begins.

    Raises:
      ValueError: values that no kernel or encoding can be fitted to; the message says what to do.
    """
    # The encoded source last, so that gamma is its size relative to another.
    names = sorted(features.values, key=lambda name: name == config.encode)
    pairs = list(itertools.combinations(names, 2))
    per_column = _per_column(features, config)
    scaling, given = {}, {}
    for name in names:
        given[name], scaling[name] = _scaled(features.values[name], config.scale, per_column=name in per_column)
    bandwidth = cohort_bandwidth(given, config.bandwidth) if isinstance(config.bandwidth, str) else config.bandwidth

    advance("measuring the features as given")
    stages = [_stage("as given", given, pairs, bandwidth, config, advance)]
    encoded = None
    if config.encode is not None:
        advance("looking for the size of the encoding that balances")
        encoded, coordinates = _encode(features, given, config, config.encode, bandwidth)
        scaled, scaling[f"{config.encode}, encoded"] = _scaled(coordinates, config.scale, per_column=False)
        advance("measuring the encoded features")
        stages.append(_stage("encoded", given | {config.encode: scaled}, pairs, bandwidth, config, advance))

    advance("permuting cases")
    last, nulls, relations = stages[-1], {}, []
    if len(features.case_ids) > 1:
        for number, pair in enumerate(pairs):
            key = jax.random.fold_in(jax.random.key(config.seed), number)
            nulls[pair] = pairing_null(last.dense, pair, key, permutations=config.permutations)
    if outcome is not None:
        for stage, name in itertools.product(stages, names):
            relations.append(_relation(stage, name, outcome.labels, config))
    return Results(config, features, pairs, scaling, bandwidth, stages, encoded, nulls, outcome, relations)


def _per_column(features: Features, config: Config) -> tuple[str, ...]:
    if config.per_column is not None:
        return config.per_column
    few = [name for name, values in features.values.items() if values.shape[1] <= FEW_COLUMNS]
    return tuple(dict.fromkeys([config.encode, *few] if config.encode else few))


def _scaled(values: np.ndarray, scale: str, *, per_column: bool) -> tuple[np.ndarray, dict[str, Any]]:
    """Values scaled by the cohort, NaN where they are, and the numbers that scaled them."""
    axis = 0 if per_column else None
    if scale == "none":
        return values, {"by": "nothing", "centre": 0.0, "scale": 1.0}
    if scale == "zscore":
        centre, spread = np.nanmean(values, axis), np.nanstd(values, axis)
    elif scale == "robust":
        low, centre, high = np.nanquantile(values, (0.25, 0.5, 0.75), axis)
        # A yes/no column can have no interquartile range.
        spread = np.where(high > low, high - low, np.nanstd(values, axis))
    else:
        centre = np.nanmin(values, axis)
        spread = np.nanmax(values, axis) - centre
    spread = np.where(spread > 1e-12 * np.abs(centre), spread, 1.0)  # a constant has one by rounding
    return (values - centre) / spread, {
        "by": "column" if per_column else "all values",
        "centre": centre,
        "scale": spread,
    }


def _stage(
    name: str,
    sources: dict[str, np.ndarray],
    pairs: list[Pair],
    bandwidth: float,
    config: Config,
    advance: Callable[[str], None],
) -> Stage:
    weights = {source: np.where(np.isnan(values), 0.0, 1.0) for source, values in sources.items()}
    filled = {source: np.nan_to_num(values) for source, values in sources.items()}
    quality_of = partial(fusion_quality, bandwidth=bandwidth, normalise=config.kernel == "normalised")
    cases = len(next(iter(filled.values())))
    if cases <= DENSITY_CASES:
        dense = quality = quality_of(filled, weights=weights)
    else:
        quality = quality_of(filled, weights=weights, keep_densities=False)
        some = np.linspace(0, cases - 1, DENSITY_CASES).astype(int)
        dense = quality_of(
            {source: values[some] for source, values in filled.items()},
            weights={source: values[some] for source, values in weights.items()},
            grid=quality.grid,
        )
    step = float(dense.grid[-1] - dense.grid[0]) / (dense.grid.size - 1)
    distances = {
        (a, b): np.asarray(total_variation(dense.densities[a], dense.densities[b], grid_step=step)) for a, b in pairs
    }

    advance(f"trying other bandwidths ({name})")
    seen = []

    def conclude(found: FusionQuality) -> str:
        seen.append(found)
        return dominant_source(found)

    stability = bandwidth_stability(filled, bandwidth, weights=weights, conclude=conclude)
    shares = {source: np.array([np.mean(one.energy_shares[source]) for one in seen]) for source in sources}
    gaps = {pair: np.array([np.mean(one.scale_free_gap[pair]) for one in seen]) for pair in pairs}
    return Stage(name, quality, dense, distances, stability, shares, gaps)


def _encode(
    features: Features, given: Mapping[str, np.ndarray], config: Config, name: str, bandwidth: float
) -> tuple[Encoded, np.ndarray]:
    """What was encoded, and the coordinates of every case, shape `(b, size)`; NaN where a value is missing."""
    values = features.values[name]
    others = {other: array for other, array in given.items() if other != name}
    largest = max(others, key=lambda other: others[other].shape[1])
    markers, width = values.shape[1], others[largest].shape[1]
    encoding = ENCODINGS[config.encoding]()
    positional = config.encoding == "positional"
    size = config.encoding_size
    present = ~np.isnan(values)
    params = encoding.fit(np.where(present, values, 0.0), jax.random.key(config.seed))

    plan = None
    complete = np.flatnonzero(present.all(axis=1) & ~np.isnan(others[largest]).any(axis=1))
    # Shorter encodings of pca are not beginnings of longer ones: it has no sweep over sizes.
    if complete.size and config.encoding != "pca":
        most = max(LARGEST_GAMMA, 8.0 * markers / width)
        encode = masked_positional_encoding if positional else _Beginning(encoding, params)
        plan = plan_encoding(
            others[largest][complete],
            values[complete],
            bandwidth=bandwidth,
            largest_gamma=most,
            encode=_by_cohort(encode, values[complete], int(most * width), config.scale),
        )
    if size is None and positional and plan is None:
        raise ValueError(
            f"no case has all values of {name!r} and {largest!r}, which the size of the encoding is read off. Give "
            "--encoding-size, or impute missing values."
        )
    if size is None:
        size = plan.size if positional and plan is not None else width
    coordinates = np.asarray(encoding.encode(params, np.where(present, values, 0.0), size), float)
    if not present.all():
        coordinates[~np.repeat(present, size // markers, axis=1)] = np.nan
    cases = min(PLANNED_CASES, complete.size)
    return Encoded(name, markers, size, largest, width, plan, cases), coordinates


class _Beginning:
    """The first coordinates of a long encoding, which are a shorter one; compared by identity, so that jit knows it."""

    def __init__(self, encoding: Encoding, params: Any) -> None:
        self.encoding, self.params = encoding, params

    def __call__(self, values: Array, size: Array, padded_size: int) -> tuple[Array, Array]:
        coordinate = jnp.arange(padded_size, dtype=size.dtype)
        return self.encoding.encode(self.params, values, padded_size), jnp.clip(size - coordinate, 0.0, 1.0)


class _ByCohort(NamedTuple):
    """An encoding scaled by the cohort: centre and scale at some sizes, interpolated between them."""

    encode: Callable[..., Any]
    log_sizes: tuple[float, ...]
    centres: tuple[float, ...]
    scales: tuple[float, ...]

    def __call__(self, values: Array, size: Array, padded_size: int) -> tuple[Array, Array]:
        coordinates, weights = self.encode(values, size, padded_size)
        knots, centres, scales = (jnp.asarray(a, coordinates.dtype) for a in self[1:])
        centre, scale = (jnp.interp(jnp.log(size), knots, at) for at in (centres, scales))
        return (coordinates - centre) / scale, weights


def _by_cohort(encode: Callable[..., Any], values: np.ndarray, largest: int, scale: str) -> Callable[..., Any]:
    if scale == "none":
        return encode
    markers = values.shape[1]
    padded = -(-largest // markers) * markers
    some = np.unique(np.linspace(0, len(values) - 1, max(8, min(256, 2**22 // padded))).astype(int))
    at_size = jax.jit(jax.vmap(encode, in_axes=(0, None, None)), static_argnums=2)
    knots = np.unique(np.round(np.geomspace(2, largest / markers, 17))) * markers
    centres, scales = [], []
    for size in knots:
        coordinates, weights = (np.asarray(a, float) for a in at_size(values[some], float(size), padded))
        _, found = _scaled(np.where(weights > 0, coordinates, np.nan), scale, per_column=False)
        centres.append(float(found["centre"]))
        scales.append(float(found["scale"]))
    return _ByCohort(encode, tuple(np.log(knots).tolist()), tuple(centres), tuple(scales))


def _relation(stage: Stage, source: str, positive: np.ndarray, config: Config) -> Relation:
    bias = np.asarray(stage.quality.total_variation[source], float)
    null = outcome_null(bias, positive, permutations=config.permutations, seed=config.seed)
    return Relation(stage.name, source, null.statistic, area_interval(bias, positive), null)


def area_interval(values: np.ndarray, positive: np.ndarray) -> tuple[float, float]:
    """95 % DeLong interval of the area under the ROC curve; the whole range where a variance cannot be had.

    That is so with a single case of a class, and where the bias tells the classes apart without exception: no spread
    says nothing about how far from that other cases may be.
    """
    interval = delong_interval(delong(positive, values))
    low, high = float(interval.low[0]), float(interval.high[0])
    return (0.0, 1.0) if math.isnan(low) else (low, high)


def mass_curves(stage: Stage, pair: Pair) -> dict[str, np.ndarray]:
    """Energy gap and source bias where only the mass of the second source varies, over the cases of `stage.dense`."""
    gamma = np.geomspace(0.01, 100.0, CURVE_GAMMAS)
    energies = (np.asarray(stage.dense.energies[name])[:, None] for name in pair)
    gap = np.asarray(energy_gap_from_energies(*np.broadcast_arrays(*energies, gamma)), float)
    low, middle, high = np.quantile(gap, (0.25, 0.5, 0.75), axis=0)
    distance = float(np.median(stage.distances[pair]))
    return {
        "gamma": gamma,
        "mean": gap.mean(axis=0),
        "lower": low,
        "median": middle,
        "upper": high,
        # The fused density is a mixture of the two, so its distance to each is a share of the distance between them.
        "bias_a": gamma / (1.0 + gamma) * distance,
        "bias_b": 1.0 / (1.0 + gamma) * distance,
    }


def size_curve(results: Results) -> dict[str, np.ndarray]:
    """Mean energy gap where a source is encoded anew at every size; nothing if no sizes were tried."""
    encoded = results.encoded
    if encoded is None or encoded.plan is None:
        return {}
    # The plan is made with normalised kernels.
    peak = 1.0 if results.config.kernel == "normalised" else 2.0 * math.pi * results.bandwidth**2
    sizes = encoded.plan.sizes
    return {"gamma": sizes / encoded.width, "size_b": sizes, "mean": peak * encoded.plan.gaps}
