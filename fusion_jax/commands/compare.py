"""`fusion-jax compare`: which way of fusing works on a cohort, by how much, and why."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from fusion_jax.evaluation.protocol import Primary

__all__ = ["Config", "run"]

OPTIONAL = tyro.conf.arg(metavar="VALUE", help_behavior_hint="")


@dataclass(frozen=True)
class Config:
    """Train and judge ways of fusing the sources of a cohort, on identical folds of its patients.

    Every chosen model is trained in every fold, beside classical baselines, and judged by one protocol: did fusion
    help, by how much, and how small a gain could this cohort have shown? Writes report.html, tables/, predictions.csv,
    splits.json and a folder for every training (tasks/) to the folder OUT. Called again with the same OUT it goes on
    where it was stopped; finished trainings are never repeated.

    Example: fusion-jax compare data/sarcoma --models image-only clinical-only gated logistic-regression

    Attributes:
      cohort: folder with a cohort.toml or shards, or the name of a bundled cohort.
      models: recipes, as NAME, NAME{"argument": value}, or LABEL=NAME{...} to give it another name in the tables.
        Default: every source alone, concatenate, gated, probability, and the classical baselines.
      list_models: show all recipes, and stop.
      config: JSON file with "models", label to {"recipe": NAME, "arguments": {...}}, and "settings", arguments that all
        networks share. Options go before these settings, and the arguments of a model before both.
      out: folder of the results. Default: results/compare/ and the name of the cohort.
      folds: of the stratified cross-validation over patients.
      repeats: of the cross-validation, with new folds.
      seeds: of training; their scores are averaged.
      split_seed: of the draw of the folds.
      task: what is predicted, where the cohort has a label and times.
      preset: quick looks at the data in minutes (fewer epochs, no retraining null); its figures are no results.
      encoder: of images, for all networks, such as cnn or resnet18.
      epochs: at most, for all networks; likewise the next ones.
      batch_size: cases of a step.
      learning_rate: of the optimiser.
      patience: epochs without improvement on inner validation patients before training stops.
      augment: what images go through in training.
      workers: processes that train side by side; 1 trains in this process.
      dask: address of the scheduler of a Dask cluster that trains instead, such as tcp://10.0.0.1:8786.
      primary: the metric that decides whether fusion helped; harrell_c for survival.
      margin: smallest gain in the primary metric that would matter; says whether the interval excludes it.
      single: models that a fused one has to beat. Default: those that read one source.
      subgroups: columns of the cohort to show subgroups of.
      resamples: of the bootstrap.
      importance: permutations of every column and source, for permutation importance; 0 leaves it out.
      null: retrainings with a source of other patients, for the retraining null; 0 leaves it out.
      null_minutes: that those of one source may take; models that train longer are left out, and the report says so.
      explained: cases that are shown with a map of where in the image the score hangs; 0 for none.
      copies: look for copies of images before splitting, which reads every image once.
      seed: of resampling and analyses.
      compilation_cache: keep compiled programs for the next run, in a private folder of the user's cache.
    """

    cohort: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="COHORT", help_behavior_hint="(required)")] = ""
    models: Annotated[tuple[str, ...], tyro.conf.arg(metavar="MODEL...", help_behavior_hint="")] = ()
    list_models: bool = False
    config: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")] = None
    folds: int = 5
    repeats: int = 1
    seeds: tuple[int, ...] = (0,)
    split_seed: int = 0
    task: Literal["auto", "label", "survival"] = "auto"
    preset: Literal["standard", "quick"] = "standard"
    encoder: Annotated[str | None, OPTIONAL] = None
    epochs: Annotated[int | None, OPTIONAL] = None
    batch_size: Annotated[int | None, OPTIONAL] = None
    learning_rate: Annotated[float | None, OPTIONAL] = None
    patience: Annotated[int | None, OPTIONAL] = None
    augment: Annotated[str | None, OPTIONAL] = None
    workers: int = 1
    dask: Annotated[str | None, tyro.conf.arg(metavar="ADDRESS", help_behavior_hint="")] = None
    primary: Primary = "auc"
    margin: Annotated[float | None, OPTIONAL] = None
    single: Annotated[tuple[str, ...], tyro.conf.arg(metavar="MODEL...", help_behavior_hint="")] = ()
    subgroups: Annotated[tuple[str, ...], tyro.conf.arg(metavar="COLUMN...", help_behavior_hint="")] = ()
    resamples: int = 5000
    importance: Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="(10; quick: 3)")] = None
    null: Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="(99; quick: 0)")] = None
    null_minutes: float = 2.0
    explained: int = 4
    copies: bool = True
    seed: int = 0
    compilation_cache: bool = True


def run(config: Config) -> int:
    """Train, judge, write the report and print a short table.

    Returns:
      0; 1 where some trainings failed, and the others were judged.

    Raises:
      ValueError: input that cannot be used; the message says what was found where, what was expected and what to do.
      OSError: a file that cannot be read or written.
    """
    from fusion_jax.commands._compare.asked import default_folder, make_protocol, read_models
    from fusion_jax.commands._compare.screen import print_models, print_plan, training_bar
    from fusion_jax.commands._evaluate.outputs import print_table
    from fusion_jax.commands._shared.models import executor
    from fusion_jax.commands._shared.screen import checked_folder, progress_bar

    if config.list_models:
        print_models()
        return 0
    protocol = make_protocol(config)
    models, settings = read_models(config)
    factory = executor(config.workers, config.dask)
    out = checked_folder(config.out or default_folder(config.cohort))
    from fusion_jax.models.analysis import analyse
    from fusion_jax.models.comparison import carry_out, plan
    from fusion_jax.reporting.comparison import write_comparison

    with progress_bar("opening the cohort") as bar:
        made = plan(
            config.cohort,
            models or None,
            out=out,
            folds=config.folds,
            repeats=config.repeats,
            seeds=config.seeds,
            split_seed=config.split_seed,
            task=config.task,
            settings=settings,
            protocol=protocol,
            covariates=config.subgroups,
            copies=config.copies,
            progress=lambda done, total: bar(done, total, "looking for copies of images"),
        )
    print_plan(made)
    with training_bar() as report:
        comparison = carry_out(made, executor_factory=factory, report=report)
    quick = config.preset == "quick"
    with progress_bar("asking the models") as bar:
        analysis = analyse(
            comparison,
            importance=(3 if quick else 10) if config.importance is None else config.importance,
            null=(0 if quick else 99) if config.null is None else config.null,
            null_minutes=config.null_minutes,
            explained=config.explained,
            seed=config.seed,
            report=bar,
        )
        bar(1, 1, "writing the report")
        report_path = write_comparison(comparison, analysis)
    print_table([comparison.evaluation])
    for one in comparison.failed:
        print(f"Failed: {one.task.model}, repeat {one.task.repeat}, fold {one.task.fold}: {one.message}")
    print(f"\nReport: {report_path}")
    return 1 if comparison.failed else 0
