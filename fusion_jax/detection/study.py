"""Detectors on the same patient-safe splits of a cohort: every model, fold and seed a task that can be resumed."""

import dataclasses
import functools
import json
import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fusion_jax.data.address import cohort_address, open_address
from fusion_jax.data.cohort import Cohort
from fusion_jax.data.splits import Split, Splits, check_leakage, draw_once, given, k_fold, load_splits, monte_carlo
from fusion_jax.detection.inputs import at_size, box_image
from fusion_jax.detection.recipe import DetectionRecipe, check, make_detection_recipe
from fusion_jax.detection.tables import DETECTION_COLUMNS, truth_table
from fusion_jax.detection.trained import find, load_detector
from fusion_jax.records import read_json_lines, run_record, write_json, write_text
from fusion_jax.training.checkpoint import CHECKPOINTS
from fusion_jax.training.cross_validation import (
    Failure,
    Task,
    TaskProgress,
    cross_validate,
    merge_predictions,
    read_failures,
)
from fusion_jax.training.executors import ExecutorFactory
from fusion_jax.training.keys import run_key
from fusion_jax.wording import listed

if TYPE_CHECKING:
    import pandas  # noqa: ICN001 - run-time checks in the tests look the full name of an annotation up

__all__ = [
    "DetectorPlan",
    "DetectorStudy",
    "carry_out_detectors",
    "compare_detectors",
    "draw_detection_splits",
    "open_detector_study",
    "plan_detectors",
    "run_detector",
]

TASKS, SPLITS, RECORD, PREDICTIONS, DETECTIONS, TRUTH = (
    "tasks", "splits.json", "study.json", "predictions.csv", "detections", "truth.csv",
)  # fmt: skip

FORMAT, KIND = 1, "detection study"

OF_TRAINING = ("split", "repeat", "fold", "seed")
"""Columns after those of a detection, that say which training it is from."""

logger = logging.getLogger("fusion_jax.detection.study")


def draw_detection_splits(
    cohort: Cohort,
    *,
    folds: int | None = None,
    repeats: int = 1,
    seed: int = 0,
    fractions: tuple[float, float, float] = (0.7, 0.15, 0.15),
    column: str | None = None,
) -> Splits:
    """Divide patients for detection, those with boxes of rare classes spread evenly.

    Args:
      cohort: with boxes.
      folds: number of folds of a cross-validation; by default patients are divided once.
      repeats: of the draw.
      seed: of the draw.
      fractions: of the patients in training, validation and test. Of a cross-validation, which says itself how many are
        tested, the first two give the share of the others that is set aside for validation.
      column: of the table that says of every case train, validation or test; nothing is drawn then.

    Raises:
      ValueError: parts that cannot be; see `fusion_jax.data.k_fold`, `monte_carlo` and `given`.

    References:
      70/15/15: Hsieh et al.; specs/mdf_net.md, section 2.1, where rows and not patients are divided.
    """
    if column is not None:
        return given(cohort, column, name=column)
    if abs(sum(fractions) - 1) > 1e-9 or min(fractions) < 0:
        raise ValueError(f"fractions are {fractions}; expected training, validation and test that sum to 1.")
    stratum = "classes of boxes"
    while stratum in cohort.table.columns:
        stratum += "_"
    marked = dataclasses.replace(cohort, table=cohort.table.assign(**{stratum: _rarest_class(cohort)}))
    if folds is None:
        return monte_carlo(marked, seed=seed, repeats=repeats, fractions=fractions, by=(stratum,))
    share = fractions[1] / (fractions[0] + fractions[1])
    return k_fold(marked, folds, seed=seed, repeats=repeats, validation=share, by=(stratum,))


@dataclasses.dataclass(frozen=True)
class DetectorPlan:
    """What is going to be trained; nothing is yet.

    Attributes:
      folder: of everything.
      cohort: opened.
      address: of the cohort, as JSON holds it.
      splits: by which every model is trained and tested.
      seeds: of the trainings of every split.
      models: name in the tables to `{"recipe": name, "arguments": {...}}`.
      recipes: name in the tables to recipe.
    """

    folder: Path
    cohort: Cohort
    address: Mapping[str, Any]
    splits: Splits
    seeds: tuple[int, ...]
    models: Mapping[str, Mapping[str, Any]]
    recipes: Mapping[str, DetectionRecipe]

    @property
    def tasks(self) -> tuple[Task, ...]:
        """All trainings: the models of a split beside each other, so that a stopped study is an even one."""
        return tuple(
            Task(model, split.repeat, split.fold, seed)
            for seed in self.seeds
            for split in self.splits.splits
            for model in self.models
        )

    @property
    def waiting(self) -> tuple[Task, ...]:
        """Trainings without detections."""
        return tuple(task for task in self.tasks if not (self.task_folder(task) / PREDICTIONS).exists())

    def task_folder(self, task: Task) -> Path:
        """Where a training lies."""
        return task.folder(self.folder / TASKS)

    def split(self, task: Task) -> Split:
        """The split of a training."""
        return next(split for split in self.splits.splits if (split.repeat, split.fold) == (task.repeat, task.fold))


class DetectorStudy(NamedTuple):
    """What has come of a plan.

    Attributes:
      plan: what was to be trained.
      done: trainings with detections, in the order of the plan.
      failed: the others.
      detections: of all trainings on their validation and test cases, with the columns of `DETECTION_COLUMNS` and
        `split` ("validation" or "test"), `repeat`, `fold` and `seed`; boxes in the pixels of the cohort's images.
      truth: boxes of the cases that `tested` is judged on; a case without a box has one row without a box.
    """

    plan: DetectorPlan
    done: tuple[Task, ...]
    failed: tuple[Failure, ...]
    detections: "pandas.DataFrame"
    truth: "pandas.DataFrame"

    def history(self, task: Task) -> list[dict[str, Any]]:
        """Lines of `metrics.jsonl` of a training, one an epoch."""
        return read_json_lines(self.plan.task_folder(task) / "metrics.jsonl")

    def record(self, task: Task) -> dict[str, Any]:
        """What a training says of itself: arguments, config and facts, as `load_detector` reads them."""
        return load_detector(self.plan.task_folder(task))

    def anchors(self, task: Task) -> dict[str, Any]:
        """Design of the anchors of a training, and the part of its training boxes that they reach."""
        return json.loads((self.plan.task_folder(task) / "anchors.json").read_text(encoding="utf-8"))

    @property
    def tested_names(self) -> tuple[str, ...]:
        """Names of the models in `tested`, those that found nothing among them."""
        if len(self.plan.seeds) == 1:
            return tuple(dict.fromkeys(task.model for task in self.done))
        return tuple(dict.fromkeys(_seeded(task.model, task.seed) for task in self.done))

    def judged_splits(self, repeat: int = 0) -> tuple[Split, ...]:
        """Splits in which all of `tested_names` were trained: in others a failed training would pass for missed boxes.

        Args:
          repeat: of the splits.
        """
        return _judged(self.plan.splits, self.done, repeat)

    @property
    def detection_files(self) -> tuple[Path, ...]:
        """Where `tested` is stored, a file for each of `tested_names`."""
        return tuple(self.plan.folder / DETECTIONS / f"{_file_name(name)}.csv" for name in self.tested_names)

    def tested(self, *, repeat: int = 0) -> "pandas.DataFrame":
        """Detections on test cases as `fusion-jax evaluate-boxes` reads them, folds pooled.

        With several seeds every seed is a model of its own, called `<model> seed <seed>`: detections cannot be averaged
        as scores can, and rows of seeds never add to the number of patients.

        Args:
          repeat: of the splits; `truth` is that of the first. Every patient is tested once in it, at most.
        """
        folds = [split.fold for split in self.judged_splits(repeat)]
        table: Any = self.detections
        chosen = table[(table["split"] == "test") & (table["repeat"] == repeat) & table["fold"].isin(folds)]
        if len(self.plan.seeds) > 1:
            named = zip(chosen["model"], chosen["seed"], strict=True)
            chosen = chosen.assign(model=[_seeded(model, seed) for model, seed in named])
        return chosen[list(DETECTION_COLUMNS)].reset_index(drop=True)


def plan_detectors(
    cohort: Mapping[str, Any] | str | Path,
    models: Sequence[str] | Mapping[str, Mapping[str, Any]],
    *,
    out: str | Path,
    folds: int | None = None,
    repeats: int = 1,
    seeds: Sequence[int] = (0,),
    split_seed: int = 0,
    fractions: tuple[float, float, float] = (0.7, 0.15, 0.15),
    column: str | None = None,
    draw: Callable[[Cohort], Splits] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> DetectorPlan:
    """Check everything that can be checked without reading images, and draw the splits; nothing is trained.

    Args:
      cohort, models, out, folds, repeats, seeds, split_seed, fractions, column, draw, settings: see
        `compare_detectors`.

    Raises:
      ValueError: what does not fit, with the way out.
    """
    out, address = Path(out), cohort_address(cohort)
    opened = _without_labels(open_address(address))
    box_image(opened)
    _check_repeats(opened)
    chosen = _choices(models, settings or {})
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds are {listed(seeds)}; expected different whole numbers, at least one.")
    recipes = {name: make_detection_recipe(choice["recipe"], choice["arguments"]) for name, choice in chosen.items()}

    def drawn(whole: Cohort) -> Splits:
        return draw_detection_splits(
            whole, folds=folds, repeats=repeats, seed=split_seed, fractions=fractions, column=column
        )

    wanted = draw or drawn
    found = draw_once(out / SPLITS, opened, wanted)
    if found.hash != wanted(opened).hash:
        raise ValueError(
            f"{out / SPLITS} was drawn with other settings ({found.kind}, {found.settings}). Restore the settings, or "
            "choose another folder."
        )
    for split in found.splits:
        check_leakage(opened, split, patients=_together(found))
        for recipe in recipes.values():
            check(recipe, opened, split)
    return DetectorPlan(out, opened, address, found, tuple(int(seed) for seed in seeds), chosen, recipes)


def carry_out_detectors(
    made: DetectorPlan,
    *,
    executor_factory: ExecutorFactory | None = None,
    report: Callable[[TaskProgress], None] | None = None,
    progress: Callable[[Task, Any], None] | None = None,
) -> DetectorStudy:
    """Train what is not trained yet, and gather the tested detections in `detections/` and the boxes in `truth.csv`.

    Args:
      made: from `plan_detectors`.
      executor_factory: makes the executor that runs the trainings; by default they run here, one after the other.
      report: told of every training that ends.
      progress: told how far the training is that runs, where it runs in this process.

    Raises:
      ValueError: no training has ended well, or the folder holds another study.
    """
    config = {
        "cohort": dict(made.address),
        "fingerprint": made.cohort.fingerprint,
        "splits_hash": made.splits.hash,
        "splits": str((made.folder / SPLITS).resolve()),
        "models": made.models,
    }

    def here(config_json: str, model: str, repeat: int, fold: int, seed: int, folder: str) -> None:
        task = Task(model, repeat, fold, seed)
        told = None if progress is None else functools.partial(progress, task)
        _run(config_json, task, Path(folder), report=told)

    cross_validate(
        made.tasks,
        here if executor_factory is None else run_detector,
        executor_factory,
        root=made.folder / TASKS,
        config=config,
        report=report,
    )
    write_json(
        made.folder / RECORD,
        {
            "format": FORMAT,
            "kind": KIND,
            "cohort": made.address,
            "name": made.cohort.name,
            "fingerprint": made.cohort.fingerprint,
            "splits": made.splits.hash,
            "seeds": made.seeds,
            "models": made.models,
            "run": run_record(),
        },
    )
    return _gathered(made)


def compare_detectors(
    cohort: Mapping[str, Any] | str | Path,
    models: Sequence[str] | Mapping[str, Mapping[str, Any]],
    *,
    out: str | Path,
    folds: int | None = None,
    repeats: int = 1,
    seeds: Sequence[int] = (0,),
    split_seed: int = 0,
    fractions: tuple[float, float, float] = (0.7, 0.15, 0.15),
    column: str | None = None,
    draw: Callable[[Cohort], Splits] | None = None,
    settings: Mapping[str, Any] | None = None,
    executor_factory: ExecutorFactory | None = None,
    report: Callable[[TaskProgress], None] | None = None,
    progress: Callable[[Task, Any], None] | None = None,
) -> DetectorStudy:
    """Train detectors on one cohort, each in every split and with every seed; what is trained is never repeated.

    Args:
      cohort: its address, since every training opens it by itself, perhaps in another process: a folder with
        `cohort.toml` or shards, the name of a collection, or as a mapping `{"function": "package.module:name",
        "arguments": {...}}`, see `fusion_jax.data.cohort_address`.
      models: names of detectors, or name in the tables to `{"recipe": name, "arguments": {...}}`.
      out: folder of the study.
      folds: of a stratified cross-validation over patients; by default patients are divided once.
      repeats: of the division, with new draws.
      seeds: of training; every model is trained with each of them in every split.
      split_seed: of the draw.
      fractions: of the patients in training, validation and test, see `draw_detection_splits`.
      column: of the table that says of every case train, validation or test.
      draw: draws other splits, such as those of a publication, and the same ones in every call; the five arguments
        before are then not used. It gets the cohort without labels, so that no rule about classes applies.
      settings: arguments that all models share, such as `{"epochs": 40}`; those of a model go before.
      executor_factory, report, progress: see `carry_out_detectors`.

    Returns:
      The study, also where some trainings failed: they are named in `failed`.

    Raises:
      ValueError: a cohort, model, split or argument that does not fit, before anything is trained; or no training has
        ended well.
    """
    made = plan_detectors(
        cohort,
        models,
        out=out,
        folds=folds,
        repeats=repeats,
        seeds=seeds,
        split_seed=split_seed,
        fractions=fractions,
        column=column,
        draw=draw,
        settings=settings,
    )
    return carry_out_detectors(made, executor_factory=executor_factory, report=report, progress=progress)


def open_detector_study(out: str | Path) -> DetectorStudy:
    """The study of a folder, finished or interrupted; nothing is trained.

    Raises:
      FileNotFoundError: no study there.
      ValueError: the cohort is no longer that of the study, or nothing is trained yet.
    """
    path = Path(out) / RECORD
    stored = _stored_study(path)
    cohort = _without_labels(open_address(stored["cohort"]))
    if cohort.fingerprint != stored["fingerprint"]:
        raise ValueError(
            f"{path}: cohort {cohort.name} has changed since detectors were trained on it (another fingerprint). "
            "Restore it, or train again in another folder."
        )
    models = stored["models"]
    recipes = {name: make_detection_recipe(own["recipe"], own["arguments"]) for name, own in models.items()}
    splits = load_splits(Path(out) / SPLITS, cohort)
    made = DetectorPlan(Path(out), cohort, stored["cohort"], splits, tuple(stored["seeds"]), models, recipes)
    return _gathered(made)


def run_detector(config_json: str, model: str, repeat: int, fold: int, seed: int, folder: str) -> None:
    """Train one detector on one split from one seed, and write its detections, last of all.

    A function at the top of a module that takes text and numbers only, so that any executor can run it anywhere. The
    recipe gets the training and validation cases and no others.

    Args:
      config_json: an object with `cohort`, an address; `splits`, the path of a file of splits; `models`, name in the
        tables to `{"recipe": name, "arguments": {...}}`; and perhaps `fingerprint`, that the cohort has to have.
      model: one of these names.
      repeat, fold: of the split.
      seed: of the training; compared models share it, and with it the order of cases and their mirroring.
      folder: of this training; `predictions.csv` in it says that the task is done.
    """
    _run(config_json, Task(model, repeat, fold, seed), Path(folder), report=None)


def _run(config_json: str, task: Task, folder: Path, *, report: Callable[[Any], None] | None) -> None:
    started = time.perf_counter()
    config = json.loads(config_json)
    choice = config["models"][task.model]
    recipe = make_detection_recipe(choice["recipe"], choice["arguments"])
    address = json.dumps(config["cohort"], sort_keys=True), str(config.get("fingerprint", ""))
    splits = _loaded(str(config["splits"]), Path(config["splits"]).stat().st_mtime_ns, *address)
    split = next((one for one in splits.splits if (one.repeat, one.fold) == (task.repeat, task.fold)), None)
    if split is None:
        raise ValueError(f"{config['splits']}: no split of repeat {task.repeat} and fold {task.fold}; draw them again.")
    image = box_image(_opened(*address), recipe.image)
    cohort = _sized(*address, image, (int(recipe.image_size[0]), int(recipe.image_size[1])), recipe.gigabytes)
    check_leakage(cohort, split, patients=_together(splits))
    rows = split.rows(cohort)
    # What is not in this cohort cannot be looked at: neither by an encoder, nor by whoever chooses an epoch.
    seen = cohort.take(np.sort(np.concatenate([rows.train, rows.validation])))
    recipe.fit(seen, split._replace(test=()), run_key(task.seed, task.repeat, task.fold), folder, report=report)
    parts = []
    for name, chosen in (("validation", rows.validation), ("test", rows.test)):
        chosen = chosen[cohort.present[image][chosen]]
        if len(chosen):
            found = find(folder, cohort, chosen).table
            parts.append(found.assign(split=name))
    table = _joined(parts).assign(model=task.model, repeat=task.repeat, fold=task.fold, seed=task.seed)
    table = table[[*DETECTION_COLUMNS, *OF_TRAINING]]
    record = load_detector(folder)
    write_json(
        folder / "run.json",
        {
            **record["facts"],
            **task._asdict(),
            "recipe": record["name"],
            "arguments": record["arguments"],
            "cohort": cohort.name,
            "tested": len(rows.test),
            "task_seconds": time.perf_counter() - started,
            "run": run_record(),
        },
    )
    write_text(folder / PREDICTIONS, table.to_csv(index=False, lineterminator="\n"))
    # The weights are kept beside it; checkpoints were for a training that is killed.
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)


def _gathered(made: DetectorPlan) -> DetectorStudy:
    done = tuple(task for task in made.tasks if task not in made.waiting)
    failures = {failure.task: failure for failure in read_failures(made.folder / TASKS)}
    failed = tuple(failures.get(task, Failure(task, "not trained yet", None)) for task in made.waiting)
    if not done:
        said = f": {failed[0].message}" if failed else ""
        raise ValueError(f"{made.folder}: no training has ended well{said}. Mend it, and call this again.")
    detections = merge_predictions(made.folder / TASKS, list(dict.fromkeys(task.model for task in done)))
    judged = _judged(made.splits, done, 0)
    folds = [split for split in made.splits.splits if split.repeat == 0]
    if not judged:
        raise ValueError(
            f"{made.folder}: there is no split in which all detectors were trained, {len(failed)} trainings are "
            f"missing: {failed[0].message}. Mend it, and call this again."
        )
    if len(judged) < len(folds):
        logger.warning(
            "%s: detectors are judged on %d of %d splits; in the others some were not trained",
            made.folder,
            len(judged),
            len(folds),
        )
    tested = {case for split in judged for case in split.test}
    image = next(iter(made.recipes.values())).image
    there = made.cohort.present[box_image(made.cohort, image)]
    rows = [row for row, case in enumerate(made.cohort.case_id) if case in tested and there[row]]
    truth = truth_table(made.cohort, np.array(rows, np.int64))
    study = DetectorStudy(made, done, failed, detections, truth)
    tested_rows = study.tested()
    for name in study.tested_names:
        own = tested_rows[tested_rows["model"] == name]
        write_text(made.folder / DETECTIONS / f"{_file_name(name)}.csv", own.to_csv(index=False, lineterminator="\n"))
    write_text(made.folder / TRUTH, truth.to_csv(index=False, lineterminator="\n"))
    return study


def _judged(splits: Splits, done: Sequence[Task], repeat: int) -> tuple[Split, ...]:
    """Splits of a repeat in which every model was trained, from every seed, that was trained anywhere."""
    trained = {(task.model, task.seed) for task in done}
    of_split: dict[tuple[int, int], set[tuple[str, int]]] = {}
    for task in done:
        of_split.setdefault((task.repeat, task.fold), set()).add((task.model, task.seed))
    return tuple(
        split
        for split in splits.splits
        if split.repeat == repeat and of_split.get((split.repeat, split.fold)) == trained
    )


def _seeded(model: str, seed: int) -> str:
    return f"{model} seed {int(seed)}"


def _file_name(model: str) -> str:
    """The name of a model as that of a file, as its trainings have it."""
    return Task(model, 0, 0, 0).folder("").parent.name


def _choices(
    models: Sequence[str] | Mapping[str, Mapping[str, Any]], settings: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Every model as recipe and arguments, those that all share among them."""
    if isinstance(models, str):
        raise TypeError(f"models is {models!r}; expected a list of names, such as [{models!r}].")
    named: Mapping[str, Any] = models if isinstance(models, Mapping) else {name: name for name in models}
    if not named or len(named) < len(models):
        raise ValueError(f"models are {listed(models)}; expected at least one, and every one once.")
    found = {}
    for name, said in named.items():
        choice: Mapping[str, Any] = {"recipe": said} if isinstance(said, str) else said
        if "recipe" not in choice or set(choice) - {"recipe", "arguments"}:
            raise ValueError(f"model {name!r} is {dict(choice)}; expected recipe and arguments.")
        arguments: dict[str, Any] = dict(choice.get("arguments") or {})
        if "config" in settings and "config" in arguments:
            arguments["config"] = {**settings["config"], **arguments["config"]}
        found[name] = {"recipe": choice["recipe"], "arguments": {**settings, **arguments}}
    return found


def _rarest_class(cohort: Cohort) -> list[str]:
    """Of every case the class of its boxes that fewest patients have; "none" without a box."""
    if cohort.boxes is None:
        raise ValueError(f"{cohort.name}: no boxes; expected a table of boxes in the cohort file.")
    patients: dict[int, set[str]] = {}
    for own, patient in zip(cohort.boxes, cohort.patient_id.tolist(), strict=True):
        for code in set(own.classes.tolist()):
            patients.setdefault(code, set()).add(patient)
    count = {code: len(found) for code, found in patients.items()}
    return [
        cohort.box_classes[min(set(own.classes.tolist()), key=lambda code: (count[code], code))]
        if len(own.classes)
        else "none"
        for own in cohort.boxes
    ]


def _check_repeats(cohort: Cohort) -> None:
    """Refuse a case that has a box twice: one of them would never be found.

    Raises:
      ValueError: naming case and box.
    """
    for case, own in zip(cohort.case_id, cohort.boxes or (), strict=True):
        rows = np.column_stack([own.classes, own.corners])
        distinct, count = np.unique(rows, axis=0, return_counts=True)
        if len(distinct) < len(rows):
            code, *corners = distinct[count.argmax()].tolist()
            raise ValueError(
                f"{cohort.name}: case {case} has the box {', '.join(f'{side:g}' for side in corners)} of class "
                f"{cohort.box_classes[int(code)]!r} {count.max()} times. Leave one of them."
            )


def _without_labels(cohort: Cohort) -> Cohort:
    """The cohort with boxes as its only target, so that gaps of a label or a class with few cases refuse nobody."""
    roles = {name: role if role in ("input", "group") else "never" for name, role in cohort.roles.items()}
    levels = {name: words for name, words in cohort.levels.items() if name not in cohort.columns("label")}
    return dataclasses.replace(cohort, roles=roles, levels=levels)


def _joined(parts: Sequence["pandas.DataFrame"]) -> "pandas.DataFrame":
    import pandas as pd

    filled = [part for part in parts if len(part)]
    if not filled:
        return pd.DataFrame(columns=[*DETECTION_COLUMNS, "split"])
    return pd.concat(filled, ignore_index=True)


def _stored_study(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not there; expected the folder that `fusion-jax detect train --out` wrote.")
    stored = json.loads(path.read_text(encoding="utf-8"))
    if stored.get("kind") != KIND or stored.get("format") != FORMAT:
        raise ValueError(f"{path}: no record of detectors that this version reads. Train again.")
    return stored


def _together(splits: Splits) -> Any:
    return "may cross" if splits.settings.get("patients") == "may cross" else "together"


@functools.lru_cache(maxsize=1)
def _opened(address: str, fingerprint: str) -> Cohort:
    """A worker does many tasks on one cohort; one that was changed in between is another."""
    cohort = _without_labels(open_address(json.loads(address)))
    if fingerprint and cohort.fingerprint != fingerprint:
        raise ValueError(
            f"{cohort.name}: the cohort has changed since its splits were drawn. Restore it, or begin anew."
        )
    return cohort


@functools.lru_cache(maxsize=2)
def _sized(address: str, fingerprint: str, image: str, size: tuple[int, int], gigabytes: float) -> Cohort:
    """Every task reads the same images."""
    return at_size(_opened(address, fingerprint), image, size, gigabytes=gigabytes)


@functools.lru_cache(maxsize=1)
def _loaded(path: str, _changed: int, address: str, fingerprint: str) -> Splits:
    return load_splits(path, _opened(address, fingerprint))
