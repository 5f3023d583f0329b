"""Trains and judges the models of the paper on ten folds of patients, and writes one report."""

import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from experiments.command_line import pretrained, run_from_command_line
from experiments.hcc_recurrence.cohort import prepared, radiomics_by_mirp, user_phases
from experiments.hcc_recurrence.config import PRESETS, Config, Settings
from experiments.hcc_recurrence.models import SELECTION, SINGLES, models_of
from experiments.hcc_recurrence.report import Study, screen, write_results
from experiments.hcc_recurrence.study import (
    NO_INNER,
    clinical_cohorts,
    declared_factors,
    patient_level,
    selected_on_all,
    ten_folds,
)
from fusion_jax.commands._compare.screen import training_bar
from fusion_jax.commands._shared.screen import progress_bar
from fusion_jax.data import Cohort
from fusion_jax.data.synthetic import liver_cancer_ct
from fusion_jax.evaluation.protocol import Protocol
from fusion_jax.models.analysis import analyse
from fusion_jax.models.comparison import carry_out, plan
from fusion_jax.training.executors import spawned

__all__ = ["run"]

IMAGENET = "torchvision's resnet50-0676ba61.pth (IMAGENET1K_V1; the name begins its SHA-256)"

BOUNDS = (0.746, 0.857, 0.879)
"""AUC of the best possible rule on the synthetic cohort; see `fusion_jax.data.synthetic.liver_cancer_ct`."""


def run(config: Config, settings: Settings | None = None) -> Path:
    """Run what the config names; returns the path of the report.

    Args:
      config: of the run.
      settings: other settings than those of the preset, for tests.
    """
    started = time.perf_counter()
    settings = settings or PRESETS[config.preset]
    weights = pretrained(config, IMAGENET)
    synthetic = config.cohort == "synthetic"
    name = "synthetic" if synthetic else Path(config.cohort).resolve().name
    out = config.out / f"{name}-{config.preset}{'-global' if config.selection == 'global' else ''}"
    data = config.out / f"{name}-{settings.size}px-seed{config.seed}"
    make = functools.partial(_slices, config, settings)
    console = Console()
    with progress_bar("reading slices") as bar:
        cohort, measurements = prepared(make, data, settings.size, lambda done, total: bar(done, total))
    features, measured = _features(config, make, data, measurements)
    if config.selection == "global":
        columns, selection = selected_on_all(cohort), None
        console.print(
            "Warning: factors are selected on all patients, those that are tested among them; scores will be too good."
        )
    else:
        columns, selection = declared_factors(cohort), SELECTION
    models = models_of(settings, columns, selection=selection, features=features, weights=weights)
    protocol = Protocol(
        singles=tuple(model for model in SINGLES if model in models),
        resamples=settings.resamples,
        permutations=settings.resamples,
        seed=config.seed,
    )
    made = plan(
        {"shards": str(data / "cohort")},
        models,
        out=out,
        seeds=settings.seeds,
        draw=functools.partial(ten_folds, folds=settings.folds, seed=config.seed),
        inner=NO_INNER,
        protocol=protocol,
        copies=False,
    )
    executor = spawned(config.workers) if config.workers > 1 else None
    with training_bar() as report:
        slices = carry_out(made, executor_factory=executor, report=report)
    with progress_bar("asking the models") as bar:
        analysis = analyse(slices, importance=0, null=0, explained=0, seed=config.seed, report=bar)
    clinical = None
    if synthetic and settings.clinical_cohorts:
        with progress_bar("clinical model on many cohorts") as bar:
            clinical = clinical_cohorts(
                out / "clinical_cohorts",
                settings.clinical_cohorts,
                trees=settings.trees,
                advance=lambda done, total: bar(done, total),
            )
    study = Study(
        slices,
        patient_level(slices),
        analysis,
        clinical,
        config.selection,
        measured,
        BOUNDS if synthetic else (),
        {key: str(value) for key, value in dataclasses.asdict(config).items()}
        | {"settings": dataclasses.asdict(settings)},
        time.perf_counter() - started,
    )
    path = write_results(study, out)
    console.print(screen(study))
    for failure in slices.failed:
        console.print(f"Failed: {failure.task.model}, fold {failure.task.fold}: {failure.message}", markup=False)
    console.print(f"{study.seconds:.0f} s. Report: {path}")
    return path


def _slices(config: Config, settings: Settings) -> Cohort:
    if config.cohort == "synthetic":
        return liver_cancer_ct(settings.patients, size=settings.slice_size, seed=config.seed).cohort
    return user_phases(Path(config.cohort))


def _features(
    config: Config, make: Callable[[], Cohort], data: Path, measurements: Path | None
) -> tuple[Path | None, str]:
    """Table of the radiomics model, and what it is."""
    if config.features is not None:
        return config.features.resolve(), f"the features of {config.features.name}"
    if config.mirp:
        path = data / "radiomics.csv"
        if not path.is_file():
            radiomics_by_mirp(make, path)
        return path.resolve(), "first-order and texture features of mirp, of the three phases"
    if measurements is None:
        return None, ""
    return measurements.resolve(), (
        "size and first-order statistics of the three phases inside the ellipse of the lesion's box, 22 numbers that "
        "stand for the paper's unlisted features"
    )


if __name__ == "__main__":
    run_from_command_line(Config, run, __doc__)
