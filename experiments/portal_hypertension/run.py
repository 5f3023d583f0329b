"""Runs Table 1, Figures 6 and 7 and the test of the central claim on a cohort, and writes one report."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from experiments.command_line import Told, of_trainings, pretrained, progress_bars, run_from_command_line
from experiments.portal_hypertension.claim import Claim, Study, judge, kept_study, run_study
from experiments.portal_hypertension.config import PRESETS, Config, Settings
from experiments.portal_hypertension.heads import PENALTIES
from experiments.portal_hypertension.report import HEADS, answers, screen, write_results
from experiments.portal_hypertension.study import FEATURES, Opened, open_study
from experiments.portal_hypertension.table import judge_heads, rows_of_table, run_table, trained_folders
from experiments.portal_hypertension.trained_heads import HeadTraining, run_trained_study
from fusion_jax.evaluation.assembly import Evaluation
from fusion_jax.models.deep import features

__all__ = ["run"]

IMAGENET = "torchvision's resnet152-394f9c45.pth (IMAGENET1K_V1; the name begins its SHA-256)"

# A small network from scratch learns nothing in the steps that fine-tuning takes.
FROM_SCRATCH: Mapping[str, Any] = {
    "optimiser": "adam",
    "learning_rate": 3e-3,
    "schedule": "constant",
    "batch_size": 16,
    "epochs": 40,
    "patience": 10,
    "augment": "horizontal-flip",
}

FINE_TUNING: Mapping[str, Any] = {"batch_size": 32, "learning_rate": 4e-3, "epochs": 8, "patience": 4}
FINE_TUNED = ("image only", "image + PE, gamma 0.09", "image + PE, gamma 1", "image + PE, gamma 3")
FINE_TUNED_SPLITS = 3


def run(config: Config, settings: Settings | None = None) -> Path:
    """Run what the config names; returns the path of the report.

    Args:
      config: of the run.
      settings: other settings than those of the preset, for tests.
    """
    started = time.perf_counter()
    settings = settings or PRESETS[config.preset]
    weights = pretrained(config, IMAGENET)
    splits = config.splits or settings.splits
    table_splits = min(config.table_splits or settings.table_splits, splits)
    name = config.cohort if config.cohort in ("livers", "sarcoma", "dial") else Path(config.cohort).resolve().name
    out = config.out / f"{name}-{config.preset}"
    out.mkdir(parents=True, exist_ok=True)
    console = Console()
    with progress_bars(console) as told:
        opened = open_study(config.cohort, settings, out, seed=config.seed, progress=told)
        vectors = opened.source == FEATURES
        training = dict(settings.training)
        if not vectors and config.preset == "cpu":
            training |= FROM_SCRATCH
        if weights:
            training["weights"] = {opened.source: weights}
        width = image_width(settings)
        models = rows_of_table(opened.cohort, opened.source, width, settings.encoder, training)
        shared: dict[str, Any] = {"width": width, "resamples": settings.resamples, "seed": config.seed}
        table = run_table(
            opened.address,
            models,
            out / "table",
            lambda cohort: opened.splits(table_splits, config.seed),
            report=of_trainings(told, "Table 1: trainings"),
            **shared,
        )
        if vectors:
            stored = opened.stored_features()
            found = [stored] * splits
        else:
            encoders = table
            if table_splits < splits:
                encoders = run_table(
                    opened.address,
                    {"image only": models["image only"]},
                    out / "encoders",
                    lambda cohort: opened.splits(splits, config.seed),
                    report=of_trainings(told, "encoders of further splits"),
                    **shared,
                )
            folders = trained_folders(encoders, "image only")
            everybody = np.arange(len(opened.cohort))
            found = [features(folders[number], opened.cohort, everybody)[opened.source] for number in range(splits)]
        claims, exact = claims_of(config, settings, opened, found, out, told)
        tuned = None
        if opened.images is not None:
            address, file = opened.images
            kept = {"weights": {"image": {"file": str(file), "origin": "trained on other synthetic livers"}}}
            images = _with_images(opened, address)
            chosen = rows_of_table(images, "image", width, settings.encoder, {**training, **FINE_TUNING, **kept})
            tuned = run_table(
                address,
                {model: chosen[model] for model in FINE_TUNED},
                out / "fine_tuned",
                lambda cohort: opened.splits(min(FINE_TUNED_SPLITS, table_splits), config.seed),
                report=of_trainings(told, "end to end: trainings"),
                singles=("image only",),
                **shared,
            )
        seconds = time.perf_counter() - started
        report = write_results(config, out, opened, table, claims, exact, tuned, seconds)
    console.print(screen(opened, table))
    for line in answers(opened, table, claims, exact)[:5]:
        console.print(f"- {line}")
    console.print(f"Report: {report}")
    return report


def image_width(settings: Settings) -> int:
    """Number of image features, d1."""
    return int(settings.encoder.get("projection") or 2048)


def claims_of(
    config: Config,
    settings: Settings,
    opened: Opened,
    found: Sequence[Any],
    out: Path,
    told: Told,
) -> tuple[dict[str, Claim], Evaluation]:
    """The claim under every head, by the head's name, and whether fusion helped under exact heads."""
    count = len(found)
    rows = opened.rows(count, config.seed)

    def counter(what: str, total: int) -> Callable[[], None]:
        told(what, 0, total)
        done = [0]

        def advance() -> None:
            done[0] += 1
            told(what, done[0], total)

        return advance

    common = (found, opened.markers, opened.label, rows)
    known = {"cohort": opened.cohort.fingerprint, "splits": opened.splits(count, config.seed).hash, "seed": config.seed}
    bootstrap: dict[str, Any] = {"resamples": settings.resamples, "seed": config.seed}
    study = kept_study(
        out / "heads_ridge.npz",
        {**known, "gammas": settings.gammas, "penalties": PENALTIES},
        lambda: run_study(*common, settings.gammas, seed=config.seed, advance=counter("heads: exact ridge", count)),
    )
    claims = {"ridge": judge(study, **bootstrap), "fixed": judge(study, fixed=True, **bootstrap)}
    for name, hidden in (("sgd", ()), ("mlp", (32,))):
        training = HeadTraining(**dict[str, Any](settings.head_training))._replace(hidden=hidden)
        gammas = settings.trained_gammas
        what = f"heads: {HEADS[name]}"

        def trained(training: HeadTraining = training, what: str = what) -> Study:
            advance = counter(what, len(settings.trained_gammas))
            return run_trained_study(*common, settings.trained_gammas, training, seed=config.seed, advance=advance)

        asked = {**known, "gammas": gammas, "training": training._asdict()}
        claims[name] = judge(kept_study(out / f"heads_{name}.npz", asked, trained), **bootstrap)
    return claims, judge_heads(study, opened.cohort, out / "predictions_ridge.csv", **bootstrap)


def _with_images(opened: Opened, address: Mapping[str, Any]) -> Any:
    from fusion_jax.data.address import open_address

    return open_address(dict(address))


if __name__ == "__main__":
    run_from_command_line(Config, run, __doc__)
