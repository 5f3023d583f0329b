"""Every chosen model on the same patient-safe folds, judged by one protocol: which way of fusing works on a cohort.

`compare` draws the splits, trains what is not trained yet and judges what there is; `open_comparison` reads a finished
or interrupted comparison from its folder and trains nothing. What explains a comparison afterwards (importance, the
retraining null, explanations of cases) starts from a `Comparison`, since every trained model lies in its folder.
"""

import dataclasses
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from fusion_jax.data.address import cohort_address, open_address
from fusion_jax.data.cohort import Cohort
from fusion_jax.data.splits import Split, Splits, check_leakage, draw_once, k_fold, load_splits
from fusion_jax.evaluation.assembly import CONCORDANCES, Evaluation, evaluate
from fusion_jax.evaluation.panel import Panel, make_panel
from fusion_jax.evaluation.protocol import Protocol
from fusion_jax.models.images import remembered
from fusion_jax.models.recipe import Recipe
from fusion_jax.models.registry import RECIPES, make_recipe, resolved
from fusion_jax.models.target import Target, target_of
from fusion_jax.models.target import Task as TargetKind
from fusion_jax.models.task import run_task
from fusion_jax.records import run_record, write_json, write_text
from fusion_jax.records.predictions import Predictions, check_predictions
from fusion_jax.training.cross_validation import (
    Failure,
    Task,
    TaskProgress,
    cross_validate,
    merge_predictions,
    read_failures,
)
from fusion_jax.training.executors import ExecutorFactory
from fusion_jax.training.tuning import check_budget
from fusion_jax.wording import counted, listed

__all__ = [
    "Choice",
    "Comparison",
    "Models",
    "Plan",
    "carry_out",
    "compare",
    "default_models",
    "open_comparison",
    "open_plan",
    "plan",
]

TASKS, SPLITS, RECORD, CHECK, PREDICTIONS = (
    "tasks", "splits.json", "comparison.json", "cohort_check.json", "predictions.csv",
)  # fmt: skip

FORMAT = 1

GIGABYTES = 4.0
"""Of memory that images of a comparison may take in this process."""

LOG = logging.getLogger("fusion_jax.models.comparison")


OF_ENCODERS = ("encoder", "encoders", "encoding", "features", "head", "dropout", "source_dropout", "weights")
"""Arguments of networks that a network of searched cells does not have."""


class Choice(NamedTuple):
    """A model of a comparison.

    Attributes:
      recipe: its name in the table of recipes.
      arguments: of the recipe, as JSON holds them.
    """

    recipe: str
    arguments: Mapping[str, Any]


Models: TypeAlias = Sequence[str] | Mapping[str, Choice | Mapping[str, Any] | str] | None
"""Models of a comparison: names of recipes, or name in the tables to recipe and arguments."""


@dataclass(frozen=True)
class Plan:
    """What a comparison is going to do; nothing is trained yet.

    Attributes:
      folder: of everything.
      cohort: to compare on.
      address: of the cohort, as JSON holds it.
      target: what is predicted.
      splits: by which every model is trained and tested.
      inner: how training cases are set aside for stopping and choosing.
      seeds: of the trainings of every split.
      choices: model to recipe and arguments, in the order of the tables.
      recipes: model to its recipe.
      sources: model to the sources of the cohort that it reads.
      protocol: by which predictions will be judged, with the models that a fused one has to beat.
      covariates: columns of the cohort to show subgroups of.
      copies: groups of cases that hold one image.
      remarks: what the check of the cohort found that makes results wrong.
    """

    folder: Path
    cohort: Cohort
    address: Mapping[str, Any]
    target: Target
    splits: Splits
    inner: Mapping[str, Any]
    seeds: tuple[int, ...]
    choices: Mapping[str, Choice]
    recipes: Mapping[str, Recipe]
    sources: Mapping[str, tuple[str, ...]]
    protocol: Protocol
    covariates: tuple[str, ...]
    copies: tuple[tuple[str, ...], ...]
    remarks: tuple[str, ...]

    @property
    def tasks(self) -> tuple[Task, ...]:
        """All trainings: the models of a split beside each other, so that a stopped comparison is an even one."""
        return tuple(
            Task(model, split.repeat, split.fold, seed)
            for seed in self.seeds
            for split in self.splits.splits
            for model in self.choices
        )

    @property
    def waiting(self) -> tuple[Task, ...]:
        """Trainings without predictions."""
        return tuple(task for task in self.tasks if not (self.task_folder(task) / "predictions.csv").exists())

    def task_folder(self, task: Task) -> Path:
        """Where a training lies."""
        return task.folder(self.folder / TASKS)

    def split(self, task: Task) -> Split:
        """The split of a training."""
        return next(split for split in self.splits.splits if (split.repeat, split.fold) == (task.repeat, task.fold))


@dataclass(frozen=True)
class Comparison:
    """A comparison that was trained and judged.

    Attributes:
      plan: what was to be done.
      predictions: of all models without a failed training; their table is `folder / "predictions.csv"`.
      panel: of the predictions.
      evaluation: judged by the protocol, of the ensemble over repeats and seeds.
      failed: trainings that ended with an error.
    """

    plan: Plan
    predictions: Predictions
    panel: Panel
    evaluation: Evaluation
    failed: tuple[Failure, ...]

    @property
    def folder(self) -> Path:
        """Of the comparison."""
        return self.plan.folder

    @property
    def models(self) -> tuple[str, ...]:
        """Models that were judged, in the order of the tables."""
        return self.evaluation.view.models

    @property
    def fused(self) -> tuple[str, ...]:
        """Models that read several sources."""
        return tuple(model for model in self.models if len(self.plan.sources[model]) > 1)


def compare(
    cohort: Mapping[str, Any] | str | Path,
    models: Models = None,
    *,
    out: str | Path,
    folds: int = 5,
    repeats: int = 1,
    seeds: Sequence[int] = (0,),
    split_seed: int = 0,
    draw: Callable[[Cohort], Splits] | None = None,
    task: TargetKind = "auto",
    inner: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    protocol: Protocol | None = None,
    covariates: Sequence[str] = (),
    copies: bool = True,
    executor_factory: ExecutorFactory | None = None,
    report: Callable[[TaskProgress], None] | None = None,
) -> Comparison:
    """Train and judge models on identical folds of a cohort's patients.

    Call it again on the same folder to go on where it stopped, to add a model, or to judge anew: finished trainings are
    never repeated, and another cohort, other splits or other arguments under one name are refused.

    Args:
      cohort: its address, since every training opens it by itself, perhaps in another process: a folder with
        `cohort.toml` or shards, the name of a collection, or as a mapping `{"folder": path}`, `{"shards": path}`,
        `{"load": name}` or `{"function": "package.module:name", "arguments": {...}}`, the function returning a cohort.
      models: names of recipes, or name in the tables to recipe and arguments (`Choice`, or `{"recipe": name,
        "arguments": {...}}`, or the name of a recipe). By default `default_models(cohort)`: every single source, the
        usual ways to fuse them, and the classical baselines.
      out: folder of the comparison.
      folds, repeats: of the stratified cross-validation over patients; copies of an image stay in one fold.
      seeds: of training; every model is trained with each of them in every fold.
      split_seed: of the draw of the folds.
      draw: draws other splits, such as those of a publication; `folds`, `repeats` and `split_seed` are then not used.
      task: "label" or "survival", for cohorts that have both a label and times.
      inner: how training cases are set aside for stopping and choosing; arguments of `training.inner.inner_split`.
      settings: arguments that all deep models share, such as `{"epochs": 40}`, so that their budget is equal. Those of
        a model go before.
      protocol: by which the predictions are judged, fixed beforehand; without `singles`, the models that read one
        source each are named by themselves.
      covariates: columns of the cohort to show subgroups of.
      copies: look for copies of images before anything is split, which reads every image once.
      executor_factory: makes the executor that runs the trainings; by default they run here, one after the other.
      report: told about every training, for progress bars; see `cross_validate`.

    Returns:
      The comparison, also when some trainings failed: their models are left out of the tables and named in `failed`.

    Raises:
      ValueError: a model, split or argument that does not fit, before anything is trained; or no model is left.
    """
    made = plan(
        cohort,
        models,
        out=out,
        folds=folds,
        repeats=repeats,
        seeds=seeds,
        split_seed=split_seed,
        draw=draw,
        task=task,
        inner=inner,
        settings=settings,
        protocol=protocol,
        covariates=covariates,
        copies=copies,
    )
    return carry_out(made, executor_factory=executor_factory, report=report)


def plan(
    cohort: Mapping[str, Any] | str | Path,
    models: Models = None,
    *,
    out: str | Path,
    folds: int = 5,
    repeats: int = 1,
    seeds: Sequence[int] = (0,),
    split_seed: int = 0,
    draw: Callable[[Cohort], Splits] | None = None,
    task: TargetKind = "auto",
    inner: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    protocol: Protocol | None = None,
    covariates: Sequence[str] = (),
    copies: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Plan:
    """Check everything, look for copies of images and draw the splits; nothing is trained.

    Args:
      cohort, models, out, folds, repeats, seeds, split_seed, draw, task, inner, settings, protocol, covariates, copies:
        see `compare`.
      progress: told how many of how many cases have been read in search of copies.

    Raises:
      ValueError: what does not fit, with the way out.
    """
    out, address = Path(out), cohort_address(cohort)
    opened = _opened(address)
    target = target_of(opened, task)
    _check_labels(opened, target)
    chosen = _choices(models, opened, task, settings or {})
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds are {listed(seeds)}; expected different whole numbers, at least one.")
    missing = [column for column in covariates if column not in opened.table.columns]
    if missing:
        raise ValueError(
            f"{opened.name}: no column {missing[0]!r} for subgroups; it has {listed(opened.table.columns, 12)}."
        )
    recipes = {name: _recipe(name, choice) for name, choice in chosen.items()}
    sources = {name: tuple(dict.fromkeys(recipe.sources(opened))) for name, recipe in recipes.items()}
    _check_targets(recipes, opened, target)
    protocol = _protocol(protocol or Protocol(), target, _without_masks(opened, sources))
    found, remarks = _checked(out, opened, copies, progress)
    remarks = (*remarks, *_searched_here(models, opened))

    def drawn(whole: Cohort) -> Splits:
        groups = None if not found else _groups(whole, found)
        return k_fold(whole, folds, seed=split_seed, repeats=repeats, groups=groups)

    splits = draw_once(out / SPLITS, opened, draw or drawn)
    together = "may cross" if splits.settings.get("patients") == "may cross" else "together"
    for split in splits.splits:
        check_leakage(opened, split, duplicates=found, patients=together)
    if draw is None:
        _check_drawn(out, splits, {"k": folds, "repeats": repeats, "seed": split_seed})
    return Plan(
        folder=out,
        cohort=opened,
        address=address,
        target=target,
        splits=splits,
        inner=dict(inner or {}),
        seeds=tuple(seeds),
        choices=chosen,
        recipes=recipes,
        sources=sources,
        protocol=protocol,
        covariates=tuple(covariates),
        copies=found,
        remarks=remarks,
    )


def carry_out(
    made: Plan,
    *,
    executor_factory: ExecutorFactory | None = None,
    report: Callable[[TaskProgress], None] | None = None,
) -> Comparison:
    """Train what is not trained yet, and judge.

    Raises:
      ValueError: no model is left to judge, or the folder holds another comparison.
    """
    config: dict[str, Any] = {
        "cohort": made.address,
        "fingerprint": made.cohort.fingerprint,
        "splits_hash": made.splits.hash,
        "splits": str((made.folder / SPLITS).resolve()),
        "models": {name: choice._asdict() for name, choice in made.choices.items()},
    }
    if made.inner:
        config["inner"] = made.inner
    if made.copies:
        config["copies"] = made.copies
    done = cross_validate(
        made.tasks, run_task, executor_factory, root=made.folder / TASKS, config=config, report=report
    )
    write_json(
        made.folder / RECORD,
        {
            "format": FORMAT,
            "cohort": made.address,
            "name": made.cohort.name,
            "fingerprint": made.cohort.fingerprint,
            "target": made.target.to_json(),
            "splits": made.splits.hash,
            "inner": made.inner,
            "seeds": made.seeds,
            "models": config["models"],
            "protocol": dataclasses.asdict(made.protocol),
            "covariates": made.covariates,
            "remarks": made.remarks,
            "record": run_record(),
        },
    )
    return _judged(made, done.failed)


def open_comparison(out: str | Path, *, protocol: Protocol | None = None) -> Comparison:
    """The comparison of a folder, judged by `protocol` or by the one it was made with; nothing is trained.

    Raises:
      FileNotFoundError: no comparison there.
      ValueError: the cohort or the splits are no longer those of the comparison.
    """
    made = open_plan(out, protocol=protocol)
    return _judged(made, read_failures(made.folder / TASKS))


def open_plan(out: str | Path, *, protocol: Protocol | None = None) -> Plan:
    """What a comparison in a folder was to do.

    Raises:
      FileNotFoundError: no comparison there.
      ValueError: the cohort or the splits are no longer those of the comparison.
    """
    out = Path(out)
    path = out / RECORD
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not there; expected the folder that `fusion-jax compare --out` wrote.")
    stored = json.loads(path.read_text(encoding="utf-8"))
    if stored.get("format") != FORMAT:
        raise ValueError(f"{path}: format {stored.get('format')!r}; this version reads {FORMAT}. Compare again.")
    cohort = _opened(stored["cohort"])
    if cohort.fingerprint != stored["fingerprint"]:
        raise ValueError(
            f"{path}: cohort {cohort.name} has changed since it was compared (another fingerprint). Restore it, or "
            "compare again in another folder."
        )
    choices = {name: Choice(choice["recipe"], choice["arguments"]) for name, choice in stored["models"].items()}
    recipes = {name: make_recipe(choice.recipe, choice.arguments) for name, choice in choices.items()}
    if protocol is None:
        fields: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in stored["protocol"].items()
        }
        protocol = Protocol(**fields)
    sources = {name: tuple(dict.fromkeys(recipe.sources(cohort))) for name, recipe in recipes.items()}
    found, remarks = _checked(out, cohort, False, None)
    remarks = tuple(dict.fromkeys((*remarks, *stored.get("remarks", ()))))
    target = Target.from_json(stored["target"])
    return Plan(
        folder=out,
        cohort=cohort,
        address=stored["cohort"],
        target=target,
        splits=load_splits(out / SPLITS, cohort),
        inner=stored["inner"],
        seeds=tuple(stored["seeds"]),
        choices=choices,
        recipes=recipes,
        sources=sources,
        protocol=_protocol(protocol, target, _without_masks(cohort, sources)),
        covariates=tuple(stored["covariates"]),
        copies=found,
        remarks=remarks,
    )


SINGLE, FUSED = ("image-only", "clinical-only"), ("concatenate", "gated", "probability")
BASELINES = {
    "label": ("logistic-regression", "random-forest", "gradient-boosting"),
    "survival": ("cox",),
}
MEASURED = "+measurements"


def default_models(cohort: Cohort, task: TargetKind = "auto") -> tuple[str, ...]:
    """Recipes that answer whether fusion helps on a cohort: every source alone, three ways to fuse, the baselines.

    Args:
      cohort: to compare on.
      task: that is compared.

    Example:
      >>> from fusion_jax.data.collections import hcc_survival
      >>> default_models(hcc_survival())
      ('clinical-only', 'logistic-regression', 'random-forest', 'gradient-boosting')
    """
    images = [name for name, source in cohort.sources.items() if source.kind == "image"]
    alone = [f"{name}-only" for name in images] if len(images) > 1 else []
    classical = BASELINES[target_of(cohort, task).kind]
    wanted = [*alone, *SINGLE, *FUSED, *classical, *(name + MEASURED for name in classical)]
    return tuple(name for name in wanted if _suits(name, cohort))


def _suits(name: str, cohort: Cohort) -> bool:
    try:
        read = make_recipe(name).sources(cohort)
    except ValueError:
        return False
    return name not in FUSED or len(read) > 1


# What a plan is made of.


def _opened(address: Mapping[str, Any]) -> Cohort:
    """The cohort with images kept in memory once read: copies, maps and importance ask for them again and again."""
    return remembered(open_address(address), gigabytes=GIGABYTES)


def _check_labels(cohort: Cohort, target: Target) -> None:
    if target.kind != "label":
        return
    without = np.flatnonzero(cohort.label < 0)
    if len(without):
        raise ValueError(
            f"{cohort.name}: {counted(len(without), 'case')} without a label in {target.column!r} "
            f"({listed(cohort.case_id[row] for row in without)}); a comparison needs one of every case. Take them out "
            "with a rule in the cohort's definition."
        )


def _choices(models: Models, cohort: Cohort, task: TargetKind, settings: Mapping[str, Any]) -> dict[str, Choice]:
    """Models with their recipes and the arguments that all networks share."""
    if models is None:
        models = default_models(cohort, task)
    if isinstance(models, str):
        raise TypeError(f"models is {models!r}; expected a list of names, such as [{models!r}].")
    named = models if isinstance(models, Mapping) else {name: name for name in models}
    if not named:
        raise ValueError("no model was chosen; expected at least one.")
    if not isinstance(models, Mapping) and len(named) < len(list(models)):
        raise ValueError(f"a model was named twice among {listed(models, 12)}; give the second a name of its own.")
    found = {}
    for name, value in named.items():
        choice = Choice(*resolved(*_choice(name, value)))
        entry = RECIPES.get(choice.recipe, RECIPES["concatenate"])  # `<source>-only` is a network, too
        shared = dict(settings) if entry.kind == "deep" else {}
        if task != "auto":
            shared["task"] = task
        if entry.kind == "searched" and settings:
            # What networks share is for the one that is trained in the end.
            shared["retrain"] = {name: value for name, value in settings.items() if name not in OF_ENCODERS}
        arguments = _merged(shared, choice.arguments)
        if entry.kind == "tuned":
            arguments["candidates"] = _candidates(name, arguments, cohort, settings)
        found[name] = Choice(choice.recipe, arguments)
    _check_tuning(found)
    return found


def _searched_here(models: Models, cohort: Cohort) -> tuple[str, ...]:
    """Genotypes that were searched on cases of this cohort, whose scores are then too good."""
    if models is None:
        return ()
    from fusion_jax.models.architecture import searched_on

    found = []
    for name in models:
        recipe = _choice(name, models[name] if isinstance(models, Mapping) else name).recipe
        if recipe.startswith("genotype:"):
            seen = searched_on(recipe.partition(":")[2]) & set(cohort.case_id)
            if seen:
                found.append(
                    f"the cells of {name} were searched on {len(seen)} of the {len(cohort)} cases that are compared on "
                    "here; its scores are too good. Compare mm-nas, which searches anew in every fold."
                )
    return tuple(found)


def _candidates(
    name: str, arguments: Mapping[str, Any], cohort: Cohort, settings: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Candidates of a tuned model with the arguments that all networks share."""
    given = arguments.get("candidates")
    if not isinstance(given, Mapping) or not given:
        raise ValueError(f"model {name!r} is tuned and has no candidates; expected names with a recipe each.")
    return {own: choice._asdict() for own, choice in _choices(given, cohort, "auto", settings).items()}


def _check_tuning(choices: Mapping[str, Choice]) -> None:
    """One budget for all: where one network is chosen among candidates, every network is, among equally many."""
    tuned = {name: choice.arguments["candidates"] for name, choice in choices.items() if choice.recipe == "tuned"}
    if not tuned:
        return
    network = RECIPES["concatenate"]  # as is `<source>-only`
    fixed = [name for name, choice in choices.items() if RECIPES.get(choice.recipe, network).kind == "deep"]
    check_budget({**tuned, **{name: {name: {}} for name in fixed}})


def _merged(shared: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Both sets of arguments, level by level; `own` goes before."""
    found = {**shared}
    for name, value in own.items():
        before = found.get(name)
        both = isinstance(before, Mapping) and isinstance(value, Mapping)
        found[name] = _merged(before, value) if both else value  # pyright: ignore[reportArgumentType]
    return found


def _choice(name: str, value: Choice | Mapping[str, Any] | str) -> Choice:
    if isinstance(value, str):
        return Choice(value, {})
    if isinstance(value, Choice):
        return value
    if "recipe" not in value or not set(value) <= {"recipe", "arguments"}:
        raise ValueError(f"model {name!r} has the keys {listed(value)}; expected 'recipe' and perhaps 'arguments'.")
    return Choice(value["recipe"], dict(value.get("arguments") or {}))


def _recipe(name: str, choice: Choice) -> Recipe:
    """The recipe of a model; an argument of another type is an input like any other, refused with a message."""
    try:
        return make_recipe(choice.recipe, choice.arguments)
    except TypeError as error:
        raise ValueError(f"model {name!r}: {error}") from None


def _check_targets(recipes: Mapping[str, Recipe], cohort: Cohort, target: Target) -> None:
    """All models predict the same thing, which is known before the first is trained."""
    for name, recipe in recipes.items():
        predicts: Any = getattr(recipe, "target", None)
        found = target if predicts is None else predicts(cohort)
        if found.kind != target.kind:
            raise ValueError(
                f"model {name!r} predicts {found.kind}, and the task of this comparison is {target.kind}. Ask for "
                f"task = {found.kind!r}, or leave the model out."
            )


def _without_masks(cohort: Cohort, sources: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """What each model reads; the mask of an image is no source of its own."""
    return {
        model: tuple(name for name in read if cohort.sources[name].kind != "mask") for model, read in sources.items()
    }


def _protocol(protocol: Protocol, target: Target, sources: Mapping[str, tuple[str, ...]]) -> Protocol:
    """The protocol with the models that a fused one has to beat."""
    if target.kind == "survival" and protocol.primary not in CONCORDANCES:
        protocol = dataclasses.replace(protocol, primary="harrell_c", test="bootstrap")
    singles = protocol.singles or tuple(model for model, read in sources.items() if len(read) == 1)
    unknown = [model for model in singles if model not in sources]
    if unknown:
        raise ValueError(f"single source {unknown[0]!r} is no model of this comparison: {listed(sources, 12)}.")
    return dataclasses.replace(protocol, singles=() if len(singles) == len(sources) else singles)


def _checked(
    out: Path, cohort: Cohort, copies: bool, progress: Callable[[int, int], None] | None
) -> tuple[tuple[tuple[str, ...], ...], tuple[str, ...]]:
    """Groups of cases that hold one image, and the errors that the cohort's check found; kept in the folder."""
    path = out / CHECK
    if path.exists():
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["fingerprint"] == cohort.fingerprint and (stored["images"] or not copies):
            return tuple(tuple(group) for group in stored["copies"]), tuple(stored["errors"])
    from fusion_jax.data.integrity import check_cohort

    report = check_cohort(cohort, images=copies, progress=progress)
    errors = tuple(
        f"{one.where + ': ' if one.where else ''}{one.message}" for one in report.findings if one.severity == "error"
    )
    stored = {
        "fingerprint": cohort.fingerprint,
        "images": copies,
        "copies": report.duplicates,
        "errors": errors,
        "counts": report.counts,
    }
    write_json(path, stored)
    return report.duplicates, errors


def _groups(cohort: Cohort, copies: Sequence[Sequence[str]]) -> list[str | None]:
    group_of = {case: f"copies {number}" for number, group in enumerate(copies) for case in group}
    return [group_of.get(case) for case in cohort.case_id]


def _check_drawn(out: Path, splits: Splits, wanted: Mapping[str, Any]) -> None:
    """Splits of an earlier call are kept, and must be those that are asked for now."""
    for name, value in wanted.items():
        if name in splits.settings and splits.settings[name] != value:
            raise ValueError(
                f"{out / SPLITS}: drawn with {name} = {splits.settings[name]}, and {name} = {value} is asked for now. "
                "Ask for the same, or compare in another folder."
            )


# What a comparison is made of.


def _judged(made: Plan, failed: Sequence[Failure]) -> Comparison:
    """Predictions of all models that were trained in every split, and what they are worth."""
    wanted = set(made.tasks)
    incomplete = {task.model for task in wanted if not (made.task_folder(task) / "predictions.csv").exists()}
    models = [model for model in made.choices if model not in incomplete]
    if not models:
        said = "\n".join(f"  {one.task.model}, fold {one.task.fold}: {one.message}" for one in failed[:4])
        raise ValueError(
            f"{made.folder}: no model was trained in every fold, so nothing can be judged.\n{said}".strip()
        )
    table: Any = merge_predictions(made.folder / TASKS, models)
    ours = {(task.model, str(task.repeat), str(task.fold), str(task.seed)) for task in wanted}
    keys = zip(table["model"], *(table[name].astype(str) for name in ("repeat", "fold", "seed")), strict=True)
    # A folder may hold trainings with further seeds, of an earlier call.
    table = table[np.array([key in ours for key in keys])]
    path = made.folder / PREDICTIONS
    write_text(path, table.to_csv(index=False, lineterminator="\n"))
    positive = made.target.classes[1] if len(made.target.classes) == 2 else None
    predictions = check_predictions({str(path): table}, positive=positive)
    panel = make_panel(predictions)
    singles = tuple(model for model in made.protocol.singles if model in models)
    protocol = dataclasses.replace(made.protocol, singles=() if len(singles) == len(models) else singles)
    covariates: Any = made.cohort.table[list(made.covariates)] if made.covariates else None
    return Comparison(made, predictions, panel, evaluate(panel, protocol, covariates=covariates), tuple(failed))
