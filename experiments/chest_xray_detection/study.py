"""Trains what the config names, part by part; what is trained is kept, and a run that was stopped goes on."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.chest_xray_detection.cohort import five_folds, paper_split, patient_split
from experiments.chest_xray_detection.config import PRESETS, Config, Part, Settings
from experiments.chest_xray_detection.models import (
    BASELINE,
    DUAL,
    PUBLISHED,
    feature_models,
    fusion_models,
    model,
    real_model,
)
from fusion_jax.detection.study import DetectorStudy, compare_detectors
from fusion_jax.records import write_json
from fusion_jax.training.cross_validation import TaskProgress
from fusion_jax.training.executors import spawned

__all__ = ["INFORMATIVE", "UNINFORMATIVE", "Studies", "arm_address", "carry_out"]

INFORMATIVE, UNINFORMATIVE = "informative", "uninformative"

SECONDS = "seconds.json"

Told = Callable[[str, int, int], None]


class Studies(NamedTuple):
    """What was trained.

    Attributes:
      found: part ("informative", "uninformative", "fusion", "features", "jsrt", "lungs", "mimic") to its study.
      skipped: part to why it was not run.
      seconds: part to the time that it took, over all calls.
    """

    found: Mapping[str, DetectorStudy]
    skipped: Mapping[str, str]
    seconds: Mapping[str, float]


def carry_out(config: Config, settings: Settings | None = None, *, told: Told | None = None) -> Studies:
    """Train every part.

    Args:
      config: of the run.
      settings: other settings than those of the preset, for tests.
      told: moves the bars on the screen.

    Raises:
      ValueError: options that lack one another, or a cohort that cannot be used.
    """
    settings = settings or PRESETS[config.preset]
    out = config.out / config.preset
    found: dict[str, DetectorStudy] = {}
    skipped: dict[str, str] = {}
    seconds = json.loads((out / SECONDS).read_text(encoding="utf-8")) if (out / SECONDS).exists() else {}
    for name, part in _parts(config, settings).items():
        start = time.perf_counter()
        try:
            found[name] = compare_detectors(
                part.address,
                part.models,
                out=out / name,
                folds=None,
                seeds=part.seeds,
                split_seed=config.seed,
                fractions=settings.fractions,
                draw=part.draw,
                executor_factory=spawned(config.workers) if config.workers > 1 else None,
                report=_bar(told, name),
            )
        except FileNotFoundError as error:
            if name not in ("jsrt", "lungs"):
                raise
            skipped[name] = str(error)
            continue
        # Added up: a call that only gathers what is there must not pass for the run.
        seconds[name] = round(seconds.get(name, 0.0) + time.perf_counter() - start, 1)
        write_json(out / SECONDS, seconds)
    return Studies(found, skipped, seconds)


def arm_address(config: Config, settings: Settings, arm: str, *, seed: int | None = None) -> dict[str, Any]:
    """The address of a synthetic cohort."""
    return {
        "function": "experiments.chest_xray_detection.cohort:synthetic_cohort",
        "arguments": {
            "arm": arm,
            "n": settings.cases,
            "size": settings.size,
            "seed": config.seed if seed is None else seed,
            "strength": settings.strength,
        },
    }


class _Asked(NamedTuple):
    address: Mapping[str, Any]
    models: Mapping[str, Any]
    seeds: Sequence[int]
    draw: Callable[[Any], Any] | None = None


def _parts(config: Config, settings: Settings) -> dict[str, _Asked]:
    """What is trained for each part, in the order in which it is."""
    few = config.seeds[: settings.ablation_seeds]
    informative = arm_address(config, settings, INFORMATIVE)
    published = {name: model(config, settings, name) for name in PUBLISHED}
    asked: dict[Part, dict[str, _Asked]] = {
        "arms": {
            INFORMATIVE: _Asked(informative, published, config.seeds),
            UNINFORMATIVE: _Asked(
                arm_address(config, settings, UNINFORMATIVE),
                {name: published[name] for name in (BASELINE, DUAL)},
                config.seeds,
            ),
        },
        "fusion": {"fusion": _Asked(informative, fusion_models(config, settings), few)},
        "features": {"features": _Asked(informative, feature_models(config, settings), few)},
        "jsrt": {
            "jsrt": _Asked(
                _here("jsrt_cohort"),
                {name: real_model(config, settings, name) for name in (BASELINE, DUAL)},
                few,
                five_folds,
            )
        },
        "lungs": {
            "lungs": _Asked(
                _here("covid_cohort"),
                {name: real_model(config, settings, name, lungs=True) for name in (BASELINE, DUAL)},
                few,
            )
        },
    }
    if "mimic" in config.parts:
        draw = paper_split if config.split == "paper" else patient_split
        features = feature_models(config, settings)
        asked["mimic"] = {"mimic": _Asked(_mimic(config), {**published, **features}, config.seeds, draw)}
    return {name: part for wanted in config.parts for name, part in asked[wanted].items()}


def _here(function: str, **arguments: Any) -> dict[str, Any]:
    return {"function": f"experiments.chest_xray_detection.cohort:{function}", "arguments": arguments}


def _mimic(config: Config) -> dict[str, Any]:
    paths: dict[str, Path | None] = {
        "cxr": config.mimic_cxr,
        "ed": config.mimic_ed,
        "patients": config.mimic_patients,
        "reflacx": config.reflacx,
    }
    options = {"cxr": "--mimic-cxr", "ed": "--mimic-ed", "patients": "--mimic-patients", "reflacx": "--reflacx"}
    for name, path in paths.items():
        if path is None:
            raise ValueError(f"--parts mimic without {options[name]}; expected all of {', '.join(options.values())}.")
    return _here("mimic_cohort", **{n: str(p) for n, p in paths.items()}, tolerance_days=config.tolerance_days)


def _bar(told: Told | None, name: str) -> Callable[[TaskProgress], None] | None:
    if told is None:
        return None
    return lambda progress: told(name, progress.done + progress.failed, progress.total)
