"""`fusion-jax evaluate`: judge anybody's predictions, with intervals over patients and paired tests."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from fusion_jax.evaluation.protocol import Primary

if TYPE_CHECKING:
    from fusion_jax.evaluation.protocol import Protocol

__all__ = ["Config", "run"]

OPTIONAL = tyro.conf.arg(metavar="COLUMN", help_behavior_hint="")


@dataclass(frozen=True)
class Config:
    """Judge the predictions of one or more models on the same cases.

    Writes report.html, the tables of the report as CSV, Markdown and LaTeX (tables/), every number in full precision
    (estimates.csv, comparisons.csv, cases.csv ...), model_card.md and evaluation.json to the folder OUT.

    Example: fusion-jax evaluate Image=cnn.csv Clinical=forest.csv Fused=fusion.csv --single Image Clinical

    Attributes:
      tables: CSV, Excel or Parquet files with a row a case: case_id, model, label, score; optional patient_id,
        instance, split, fold, repeat, seed, site, time, event, score_CLASS. NAME=FILE names the model of a file
        without a column of models. Files without case ids are paired by row order.
      out: folder of the results. Default: results/evaluate/ and the name of the first file.
      single: models that see one source each; the others are fused, and have to beat every one of these.
      primary: the metric that decides whether fusion helped; harrell_c for tables with times alone.
      test: of differences in the primary metric.
      margin: smallest gain in the primary metric that would matter; says whether the interval excludes it.
      case: column of case ids; likewise the next ones. Default: the names of the predictions table.
      patient: column of patient ids: the unit of all intervals and tests.
      model: column of models.
      label: column of labels.
      score: column of scores.
      instance: column of slices, views or augmented copies of a case.
      split: column that tells test from validation rows.
      fold: column of folds.
      repeat: column of repeats of the cross-validation.
      seed_column: column of seeds of training.
      site: column of sites.
      time: column of follow-up times.
      event: column of events, 0 or 1.
      class_prefix: what columns of scores of three classes and more begin with.
      positive: of two labels, the positive one.
      scores: what scores are: probabilities, logits (turned into probabilities), or scores of which only the order
        counts. Default: probabilities where all lie in [0, 1].
      mismatched: models that were not run on the same cases: refuse, or compare on the common ones.
      level: what a row is judged as: a case, a patient (all cases together), or an instance.
      aggregate: how scores of several instances become one.
      trainings: several repeats or seeds: judge the ensemble (their mean score), or each by itself.
      sensitivity: held when specificity is read off, and by thresholds from validation rows.
      specificity: held when sensitivity is read off.
      threshold: on the scale of the scores. Default: 0.5 for probabilities.
      interval: bootstrap intervals: percentile, or bias-corrected and accelerated.
      resamples: of the bootstrap.
      permutations: of permutation tests.
      confidence: of intervals.
      prevalence: of the population the results are for; default: that of the rows.
      horizons: times at which survival is judged. Default: quartiles of the event times.
      cohort: folder of a cohort (cohort.toml), for subgroups and the gallery.
      covariates: table with a case_id column, for subgroups without a cohort.
      subgroups: columns to show subgroups of.
      least_cell: subgroups with fewer rows are withheld.
      gallery: cases of each of TP, FP, FN and TN to show with image and clinical values; needs a cohort.
      seed: of all resampling.
      compilation_cache: keep compiled programs for the next run, in a private folder of the user's cache.
    """

    tables: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[NAME=]FILE...", help_behavior_hint="(required)")
    ]
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")] = None
    single: Annotated[tuple[str, ...], tyro.conf.arg(metavar="MODEL...", help_behavior_hint="")] = ()
    primary: Primary = "auc"
    test: Literal["bootstrap", "delong", "permutation"] = "bootstrap"
    margin: Annotated[float | None, tyro.conf.arg(metavar="FLOAT", help_behavior_hint="")] = None
    case: Annotated[str | None, OPTIONAL] = None
    patient: Annotated[str | None, OPTIONAL] = None
    model: Annotated[str | None, OPTIONAL] = None
    label: Annotated[str | None, OPTIONAL] = None
    score: Annotated[str | None, OPTIONAL] = None
    instance: Annotated[str | None, OPTIONAL] = None
    split: Annotated[str | None, OPTIONAL] = None
    fold: Annotated[str | None, OPTIONAL] = None
    repeat: Annotated[str | None, OPTIONAL] = None
    seed_column: Annotated[str | None, OPTIONAL] = None
    site: Annotated[str | None, OPTIONAL] = None
    time: Annotated[str | None, OPTIONAL] = None
    event: Annotated[str | None, OPTIONAL] = None
    class_prefix: str = "score_"
    positive: Annotated[str | None, tyro.conf.arg(metavar="LABEL", help_behavior_hint="")] = None
    scores: Literal["auto", "probability", "logit", "score"] = "auto"
    mismatched: Literal["refuse", "common"] = "refuse"
    level: Literal["case", "patient", "instance"] = "case"
    aggregate: Literal["mean", "max", "vote"] = "mean"
    trainings: Literal["ensemble", "each"] = "ensemble"
    sensitivity: float = 0.95
    specificity: float = 0.95
    threshold: Annotated[float | None, tyro.conf.arg(metavar="FLOAT", help_behavior_hint="")] = None
    interval: Literal["percentile", "bca"] = "percentile"
    resamples: int = 5000
    permutations: int = 2000
    confidence: float = 0.95
    prevalence: Annotated[float | None, tyro.conf.arg(metavar="FLOAT", help_behavior_hint="")] = None
    horizons: Annotated[tuple[float, ...], tyro.conf.arg(metavar="TIME...", help_behavior_hint="")] = ()
    cohort: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")] = None
    covariates: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    subgroups: Annotated[tuple[str, ...], tyro.conf.arg(metavar="COLUMN...", help_behavior_hint="")] = ()
    least_cell: int = 20
    gallery: int = 0
    seed: int = 0
    compilation_cache: bool = True


def run(config: Config) -> int:
    """Judge the predictions, write the results and print a short table.

    Raises:
      ValueError: input that cannot be used; the message says what was found where, what was expected and what to do.
      OSError: a file that cannot be read or written.
    """
    from fusion_jax.commands._evaluate.inputs import read_inputs
    from fusion_jax.commands._evaluate.outputs import print_table, write_results
    from fusion_jax.commands._shared.screen import checked_folder, progress_bar

    protocol = make_protocol(config)
    out = checked_folder(config.out or Path("results") / "evaluate" / default_name(config))
    inputs = read_inputs(config)
    out.mkdir(parents=True, exist_ok=True)  # before the work, not after it
    with progress_bar("evaluating") as bar:
        from fusion_jax.evaluation.assembly import evaluate

        views = inputs.panel.each() if config.trainings == "each" else (inputs.panel.ensemble(),)
        found, steps = [], 0
        for view in views:

            def advance(doing: str, name: str = view.name) -> None:
                nonlocal steps
                steps += 1
                bar(steps, len(views) * (6 + len(inputs.panel.models)), f"{name}: {doing}" if len(views) > 1 else doing)

            found.append(evaluate(inputs.panel, protocol, view=view, covariates=inputs.covariates, advance=advance))
        bar(steps, steps + 1, "writing the report")
        report = write_results(out, found, inputs, config)
    print_table(found)
    print(f"\nReport: {report}")
    return 0


def name_and_path(word: str) -> tuple[str, str]:
    """The two parts of NAME=FILE; no name where there is a file of just that name, or no sign of equality."""
    name, equals, path = word.partition("=")
    return (name, path) if equals and not Path(word).exists() else ("", word)


def default_name(config: Config) -> str:
    """Folder of the results: the first file, and how many more there are."""
    from fusion_jax.commands._shared.screen import file_name
    from fusion_jax.records.predictions import model_name

    if not config.tables:
        raise ValueError("no table of predictions was given; expected at least one file.")
    first = file_name(model_name(name_and_path(config.tables[0])[1]))
    return first if len(config.tables) == 1 else f"{first}_and_{len(config.tables) - 1}_more"


def make_protocol(config: Config) -> "Protocol":
    """The protocol that the options describe.

    Raises:
      ValueError: an option outside its range, by the name of the option.
    """
    from fusion_jax.evaluation.protocol import Protocol

    if config.subgroups and config.cohort is None and config.covariates is None:
        raise ValueError("--subgroups needs a table to join: --cohort DIR or --covariates FILE.")
    if config.gallery and config.cohort is None:
        raise ValueError("--gallery shows images of a cohort; say where it is with --cohort DIR.")
    try:
        return Protocol(
            primary=config.primary,
            test=config.test,
            singles=config.single,
            margin=config.margin,
            sensitivity=config.sensitivity,
            specificity=config.specificity,
            threshold=config.threshold,
            interval=config.interval,
            resamples=config.resamples,
            permutations=config.permutations,
            level=config.confidence,
            least_cell=config.least_cell,
            prevalence=config.prevalence,
            horizons=config.horizons or None,
            seed=config.seed,
        )
    except ValueError as error:
        named = str(error).replace("least_cell", "least-cell").replace("level is", "confidence is")
        raise ValueError(f"--{named}" if named.split(" ", 1)[1].startswith("is ") else named) from None
