"""The numbers behind the report of `fusion-jax quality`: quality.json, cases.csv and gamma.csv."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fusion_jax.commands._quality.features import CASE_ID
from fusion_jax.commands._quality.measure import Pair, Results, Stage, mass_curves, size_curve
from fusion_jax.quality import FusionQuality, NullTest

__all__ = ["case_table", "gamma_table", "of_pairs", "of_sources", "source_names", "spread", "summary"]


def case_table(results: Results) -> dict[str, Sequence[Any]]:
    """One row a case; numbers before encoding have `before_encoding__` in front of their names."""
    table: dict[str, Sequence[Any]] = {CASE_ID: results.features.case_ids}
    if results.outcome is not None:
        outcome = results.outcome
        table["outcome"] = [outcome.positive if label else outcome.negative for label in outcome.labels]
    for stage in reversed(results.stages):
        prefix = "" if stage is results.stages[-1] else "before_encoding__"
        for quantity, by_source in of_sources(stage.quality).items():
            for name in source_names(results.pairs):
                table[f"{prefix}{quantity}__{name}"] = np.asarray(by_source[name], float).tolist()
        for quantity, by_pair in of_pairs(stage.quality).items():
            for a, b in results.pairs:
                table[f"{prefix}{quantity}__{a}__{b}"] = np.asarray(by_pair[a, b], float).tolist()
    return table


def of_sources(quality: FusionQuality) -> dict[str, Mapping[str, Any]]:
    return {
        "size": quality.sizes,
        "energy": quality.energies,
        "energy_share": quality.energy_shares,
        "overlap": quality.overlap,
        "total_variation": quality.total_variation,
        "jensen_shannon": quality.jensen_shannon,
        "balanced_size": quality.balanced_sizes,
    }


def of_pairs(quality: FusionQuality) -> dict[str, Mapping[Pair, Any]]:
    return {
        "gamma": quality.gamma,
        "gamma_star": quality.gamma_star,
        "energy_gap": quality.energy_gap,
        "scale_free_gap": quality.scale_free_gap,
    }


def source_names(pairs: Sequence[Pair]) -> list[str]:
    """Names in the order of the pairs."""
    return list(dict.fromkeys(name for pair in pairs for name in pair))


def gamma_table(results: Results) -> list[dict[str, Any]]:
    """Curves over gamma: `mass` varies the mass of the second source, `size` encodes it anew at every size."""
    columns = ("gamma", "size_b", "mean", "lower", "median", "upper", "bias_a", "bias_b")
    names = (
        "gamma",
        "size_b",
        "energy_gap_mean",
        "energy_gap_lower_quartile",
        "energy_gap_median",
        "energy_gap_upper_quartile",
        "total_variation_a_median",
        "total_variation_b_median",
    )
    rows = []

    def add(curve: str, a: str, b: str, curves: Mapping[str, np.ndarray], cases: int) -> None:
        for index in range(len(curves["gamma"])):
            cells = {name: curves[c][index] if c in curves else None for name, c in zip(names, columns, strict=True)}
            rows.append({"curve": curve, "source_a": a, "source_b": b, **cells, "cases": cases})

    last = results.stages[-1]
    for a, b in results.pairs:
        add("mass", a, b, mass_curves(last, (a, b)), len(last.distances[a, b]))
    encoded = results.encoded
    if encoded is not None and encoded.plan is not None:
        add("size", encoded.partner, encoded.source, size_curve(results), encoded.plan_cases)
    return rows


def spread(values: Any) -> dict[str, float]:
    sample = np.asarray(values, float)
    low, middle, high = np.quantile(sample, (0.25, 0.5, 0.75))
    return {"n": sample.size, "mean": sample.mean(), "lower_quartile": low, "median": middle, "upper_quartile": high}


def summary(results: Results) -> dict[str, Any]:
    """What quality.json holds; `record` comes on top."""
    config, features, encoded = results.config, results.features, results.encoded
    files = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in dict.fromkeys(features.files.values())}
    if config.outcome is not None:
        files[config.outcome] = hashlib.sha256(config.outcome.read_bytes()).hexdigest()
    return {
        "config": dataclasses.asdict(config),
        "files": [{"path": path, "sha256": digest} for path, digest in files.items()],
        "cases": len(features.case_ids),
        "paired_by": features.paired_by,
        "sources": {
            name: {
                "file": features.files[name],
                "features": values.shape[1],
                "missing_values": int(np.isnan(values).sum()),
                "columns": features.columns[name],
            }
            for name, values in features.values.items()
        },
        "scaling": results.scaling,
        "bandwidth": results.bandwidth,
        "stages": {stage.name: _stage_summary(stage, results.pairs) for stage in results.stages},
        "encoding": None if encoded is None else encoded._asdict(),
        "pairing_null": [_null_summary(null) | {"pair": pair} for pair, null in results.nulls.items()],
        "outcome": None
        if results.outcome is None
        else {
            "name": results.outcome.name,
            "positive": results.outcome.positive,
            "negative": results.outcome.negative,
            "positive_cases": int(results.outcome.labels.sum()),
            "relations": [
                _null_summary(one.null)
                | {"stage": one.stage, "source": one.source, "area": one.area, "interval_95": one.interval}
                for one in results.relations
            ],
        },
    }


def _stage_summary(stage: Stage, pairs: Sequence[Pair]) -> dict[str, Any]:
    return {
        "sources": {
            name: {quantity: spread(values[name]) for quantity, values in of_sources(stage.quality).items()}
            for name in source_names(pairs)
        },
        "pairs": [
            {"a": pair[0], "b": pair[1]}
            | {quantity: spread(values[pair]) for quantity, values in of_pairs(stage.quality).items()}
            | {"total_variation": spread(stage.distances[pair])}
            for pair in pairs
        ],
        "grid": {"points": stage.quality.grid.size, "error_bound": float(np.max(stage.quality.error_bound))},
        "stability": {
            "bandwidths": stage.stability.bandwidths,
            "dominant_source": stage.stability.conclusions,
            "stable": stage.stability.stable,
            "mean_energy_shares": stage.shares,
            "mean_scale_free_gaps": [{"a": a, "b": b, "gaps": gaps} for (a, b), gaps in stage.gaps.items()],
        },
    }


def _null_summary(null: NullTest) -> dict[str, Any]:
    return {
        "hypothesis": null.hypothesis,
        "statistic": null.statistic,
        "null_mean": float(null.null.mean()),
        "null_95": np.quantile(null.null, (0.025, 0.975)),
        "p_value": null.p_value,
        "permutations": null.null.size,
        "cases": null.cases,
    }
