r"""Fusion quality of live features: how the sources of a trained network balance, epoch by epoch and case by case.

Features are scaled as a cohort, never per case: of every source one mean and one standard deviation over all features
of the reference cases (training cases, at most 64 of those that have every source), :math:`z = (x - m) / s`. One
bandwidth for all sources, Scott's rule by `fusion_jax.quality.cohort_bandwidth` on the scaled features of these cases.
Scale and bandwidth of an epoch are that epoch's; those of the test cases are the trained network's, fitted to training
cases. Sources of a single feature, such as the probability of a whole network, have no density to speak of and are not
measured.
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from fusion_jax.arrays import Variables
from fusion_jax.data.cohort import Cohort
from fusion_jax.data.splits import Rows
from fusion_jax.models.network import Network
from fusion_jax.quality import FusionQuality, cohort_bandwidth, fusion_quality, summarise
from fusion_jax.records import atomic_path, write_csv, write_json, write_text

__all__ = ["FeatureScale", "QualityLog", "feature_scale", "measure_quality", "write_case_quality"]

REFERENCE = 64
"""Cases that scale and bandwidth are taken from, at most."""

LEAST_FEATURES = 2

CASES, LOG, DENSITIES = "quality_cases.csv", "quality.jsonl", "quality_densities.npz"

logger = logging.getLogger("fusion_jax.models.quality")


class FeatureScale(NamedTuple):
    """How features become comparable.

    Attributes:
      centre, spread: of every source.
      bandwidth: of the kernel, in units of scaled features.
    """

    centre: dict[str, float]
    spread: dict[str, float]
    bandwidth: float

    def apply(self, features: Mapping[str, Float[np.ndarray, "n f"]]) -> dict[str, Float[np.ndarray, "n f"]]:
        """Scaled features."""
        return {
            name: (np.asarray(features[name], np.float64) - self.centre[name]) / self.spread[name]
            for name in self.centre
        }


def feature_scale(features: Mapping[str, Float[np.ndarray, "n f"]]) -> FeatureScale:
    """Scale and bandwidth of a cohort's features.

    Args:
      features: source to the features of the reference cases.

    Raises:
      ValueError: fewer than two sources, or every source is constant.

    Example:
      >>> x = np.arange(8.0).reshape(2, 4)
      >>> scale = feature_scale({"image": x, "clinical": 10 * x})
      >>> scale.centre, round(scale.spread["clinical"] / scale.spread["image"])
      ({'image': 3.5, 'clinical': 35.0}, 10)
    """
    if len(features) < 2:
        raise ValueError(f"fusion quality is of two sources or more; found {', '.join(features) or 'none'}.")
    centre = {name: float(np.mean(x)) for name, x in features.items()}
    spread = {name: float(np.std(x)) or 1.0 for name, x in features.items()}
    scaled = FeatureScale(centre, spread, 1.0).apply(features)
    return FeatureScale(centre, spread, cohort_bandwidth(scaled, "scott"))


def measure_quality(
    features: Mapping[str, Float[np.ndarray, "n f"]], scale: FeatureScale, *, keep_densities: bool = False
) -> FusionQuality:
    """Fusion quality of every case, of features scaled by `scale`; see `fusion_jax.quality.fusion_quality`."""
    scaled = {name: x.astype(np.float32) for name, x in scale.apply(features).items()}
    low, high = (float(limit(list(map(limit, scaled.values())))) for limit in (np.min, np.max))
    # A grid whose size is a power of two: its length, and with it the program, stays the same from epoch to epoch.
    points = 2 ** int(np.ceil(np.log2(max(64.0, (high - low + 12 * scale.bandwidth) / (scale.bandwidth * STEP)))))
    return fusion_quality(scaled, bandwidth=scale.bandwidth, grid_size=points, keep_densities=keep_densities)


STEP = 0.08
"""Distance of grid points in bandwidths, at most."""


class QualityLog:
    """Fusion quality of the reference cases after every epoch, as lines of `quality.jsonl`."""

    def __init__(self, folder: Path, network: Network, ready: Cohort, rows: Rows, batch_size: int) -> None:
        """Choose the reference cases.

        Args:
          folder: of the training.
          network: whose features are measured.
          ready: prepared cohort.
          rows: of the split; training rows are measured.
          batch_size: of the forward pass.
        """
        self.path, self.network, self.ready, self.batch_size = folder / LOG, network, ready, batch_size
        self.rows = reference_rows(network, ready, rows.train)

    def __call__(self, variables: Variables, epoch: int) -> None:
        """Measure and write."""
        features = _features(self.network, variables, self.ready, self.rows, self.batch_size)
        line: dict[str, Any] = {"epoch": epoch}
        if features is not None:
            try:
                scale = feature_scale(features)
            except ValueError as error:  # dead features: nothing varies within a case
                line["unmeasured"] = str(error)
            else:
                line |= {"bandwidth": scale.bandwidth, "cases": len(self.rows)} | _means(
                    measure_quality(features, scale)
                )
        else:
            return
        before = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        # After a kill an epoch runs again: its line is replaced.
        kept = [old for old in before if json.loads(old)["epoch"] < epoch]
        write_text(self.path, "\n".join([*kept, json.dumps(line)]) + "\n")


def write_case_quality(
    folder: Path,
    network: Network,
    variables: Variables,
    *,
    reference: tuple[Cohort, Int[np.ndarray, "m"]],
    tested: tuple[Cohort, Int[np.ndarray, "n"]],
    batch_size: int,
) -> dict[str, Any] | None:
    """Fusion quality of tested cases, one row a case, and the densities of the most typical one.

    Args:
      folder: of the training; gets `quality_cases.csv` and `quality_densities.npz`.
      network, variables: trained.
      reference: prepared cohort and rows that scale and bandwidth are taken from: training cases.
      tested: prepared cohort and rows to measure.
      batch_size: of the forward pass.

    Returns:
      Means over the tested cases for the record; None where there is nothing to measure.
    """
    cohort, rows = tested
    known = _features(network, variables, reference[0], reference_rows(network, *reference), batch_size)
    rows = rows[np.all([cohort.present[name][rows] for name in network.sources], axis=0)]
    if known is None or not len(rows):
        return None
    features = _features(network, variables, cohort, rows, batch_size)
    if features is None:
        return None
    try:
        scale = feature_scale(known)
    except ValueError as error:
        logger.warning("%s: fusion quality was not measured: %s", folder, error)
        return None
    quality = measure_quality(features, scale, keep_densities=True)
    table: dict[str, Any] = {"case_id": [cohort.case_id[int(row)] for row in rows]}
    for name in features:
        table |= {
            f"size/{name}": np.asarray(quality.sizes[name]),
            f"energy/{name}": np.asarray(quality.energies[name]),
            f"overlap/{name}": np.asarray(quality.overlap[name]),
            f"total_variation/{name}": np.asarray(quality.total_variation[name]),
        }
    for first, second in _pairs(quality):
        pair = f"{first}/{second}"
        table |= {
            f"gamma/{pair}": np.asarray(quality.gamma[first, second]),
            f"gamma_star/{pair}": np.asarray(quality.gamma_star[first, second]),
            f"energy_gap/{pair}": np.asarray(quality.energy_gap[first, second]),
            f"scale_free_gap/{pair}": np.asarray(quality.scale_free_gap[first, second]),
        }
    write_csv(folder / CASES, {name: np.asarray(values).tolist() for name, values in table.items()})
    first, second = _pairs(quality)[0]
    gaps = np.asarray(quality.energy_gap[first, second])
    typical = int(np.argsort(gaps, kind="stable")[len(gaps) // 2])
    with atomic_path(folder / DENSITIES) as path, path.open("wb") as file:
        np.savez(
            file,
            allow_pickle=False,
            grid=np.asarray(quality.grid),
            fused=np.asarray(quality.fused_density)[typical],
            **{f"source/{name}": np.asarray(values)[typical] for name, values in quality.densities.items()},
        )
    record = {
        "bandwidth": scale.bandwidth,
        "centre": scale.centre,
        "spread": scale.spread,
        "cases": len(rows),
        "typical_case": cohort.case_id[int(rows[typical])],
        **_means(quality),
    }
    write_json(folder / "quality.json", record)
    return record


def reference_rows(network: Network, ready: Cohort, rows: Int[np.ndarray, "n"]) -> Int[np.ndarray, "m"]:
    """Rows that have every source of a network, at most 64, spread evenly."""
    whole = rows[np.all([ready.present[name][rows] for name in network.sources], axis=0)]
    if len(whole) > REFERENCE:
        whole = whole[np.unique(np.linspace(0, len(whole) - 1, REFERENCE).astype(int))]
    return whole


def _features(
    network: Network, variables: Variables, ready: Cohort, rows: Int[np.ndarray, "n"], batch_size: int
) -> dict[str, np.ndarray] | None:
    """Features in the order of the network; None where there is no fusion of features to measure."""
    if len(network.sources) < 2 or not len(rows):
        return None
    found = network.outputs(variables, ready, rows, batch_size).features
    features = {name: np.asarray(found[name]) for name in network.sources if name in found}
    if len(features) < 2 or any(x.shape[1] < LEAST_FEATURES for x in features.values()):
        return None
    return features


def _pairs(quality: FusionQuality) -> list[tuple[str, str]]:
    return [pair for pair in quality.energy_gap if pair[0] < pair[1]]


def _means(quality: FusionQuality) -> dict[str, float]:
    found = {name: float(value) for name, value in summarise(quality).items()}
    found |= {f"overlap/{name}": float(np.mean(value)) for name, value in quality.overlap.items()}
    found |= {f"gamma/{a}/{b}": float(np.mean(quality.gamma[a, b])) for a, b in _pairs(quality)}
    return {name: value for name, value in sorted(found.items()) if np.isfinite(value)}
