"""One training as a task that any worker can do: named by text and numbers, done when its predictions are written."""

import dataclasses
import functools
import json
import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from fusion_jax.data.address import open_address
from fusion_jax.data.cohort import Cohort
from fusion_jax.data.splits import Split, Splits, check_leakage, load_splits
from fusion_jax.models.images import remembered
from fusion_jax.models.recipe import Recipe, Report, open_recipe
from fusion_jax.models.registry import make_recipe
from fusion_jax.models.target import Target, check_labels, survival_of
from fusion_jax.records import run_record, write_csv, write_json
from fusion_jax.records.arguments import close_to
from fusion_jax.training.checkpoint import CHECKPOINTS
from fusion_jax.training.inner import inner_split
from fusion_jax.training.keys import run_key

__all__ = ["PREDICTIONS", "prediction_rows", "run_split", "run_task", "united"]

PREDICTIONS = "predictions.csv"

INNER_SEED = 0
"""Of the inner split, which must not depend on the seed of the training: its cases are compared over seeds."""

GIGABYTES = 4.0
"""Of memory that a worker keeps images in, from task to task."""

logger = logging.getLogger("fusion_jax.models.task")


def run_task(config_json: str, model: str, repeat: int, fold: int, seed: int, folder: str) -> None:
    """Train one model on one split from one seed, and write its predictions, last of all.

    A function at the top of a module that takes text and numbers only, so that any executor can run it anywhere.
    The recipe gets the training and validation cases and no others: test cases cannot leak, for they are not there.

    Args:
      config_json: an object with `cohort`, an address as `open_address` reads it; `splits`, the path of a file of
        splits; `models`, name in the tables to `{"recipe": name, "arguments": {...}}`; and, if wanted, `inner`,
        arguments of `training.inner.inner_split`, and `copies`, groups of cases that hold one image.
      model: one of these names.
      repeat, fold: of the split.
      seed: of the training; compared models share it, and with it sampling and augmentation.
      folder: of this training; `predictions.csv` in it says that the task is done.

    Raises:
      ValueError: a configuration, cohort, split or recipe that does not fit; the message names it.
    """
    config = json.loads(config_json)
    for key in ("cohort", "splits", "models"):
        if key not in config:
            raise ValueError(f"the configuration of a task has no {key!r}; it has {', '.join(config)}.")
    if model not in config["models"]:
        raise ValueError(f"no model {model!r} in the configuration; {close_to(model, config['models'])}")
    choice = config["models"][model]
    recipe = make_recipe(choice["recipe"], choice.get("arguments"))
    cohort = _opened(json.dumps(config["cohort"], sort_keys=True), str(config.get("fingerprint", "")))
    splits = _loaded(str(config["splits"]), Path(config["splits"]).stat().st_mtime_ns, cohort)
    found = [split for split in splits.splits if (split.repeat, split.fold) == (repeat, fold)]
    if not found:
        raise ValueError(f"{config['splits']}: no split of repeat {repeat} and fold {fold}; draw the splits again.")
    may_cross = splits.settings.get("patients") == "may cross"
    run_split(
        recipe,
        cohort,
        found[0],
        seed=seed,
        folder=Path(folder),
        model=model,
        inner=config.get("inner"),
        copies=config.get("copies", ()),
        patients_may_cross=may_cross,
    )


def run_split(
    recipe: Recipe,
    cohort: Cohort,
    split: Split,
    *,
    seed: int,
    folder: Path,
    model: str,
    report: Report | None = None,
    inner: Mapping[str, Any] | None = None,
    copies: Sequence[Sequence[str]] = (),
    patients_may_cross: bool = False,
) -> None:
    """Train a recipe on a split of a cohort in hand, and write its predictions, last of all.

    Args:
      recipe: to fit.
      cohort: of the split.
      split: whose training and validation cases the recipe sees.
      seed: of the training.
      folder: of this training.
      model: name in the tables.
      report: told how the training is getting on.
      inner: arguments of `training.inner.inner_split`, which sets a part of the training cases aside for stopping and
        choosing where the split has no validation cases; the same part for every model and every seed.
      copies: groups of cases that hold one image; no inner division parts them either.
      patients_may_cross: for a published protocol that divided cases; patients may then be in two parts.
    """
    started = time.perf_counter()
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    check_leakage(cohort, split, patients="may cross" if patients_may_cross else "together")
    rows = split.rows(cohort)
    predicts: Any = getattr(recipe, "target", None)
    if predicts is not None:
        check_labels(cohort, predicts(cohort), rows.test)  # before hours of training
    # What is not in this cohort cannot be looked at: neither by an encoder, nor by whoever chooses an epoch.
    seen = united(cohort.take(np.sort(np.concatenate([rows.train, rows.validation]))), copies)
    found = inner_split(seen, split, seed=INNER_SEED, **(inner or {}))
    train, validation = ([seen.case_id[int(row)] for row in part] for part in found[:2])
    division = split._replace(train=tuple(train), validation=tuple(validation), test=(), inner=())
    recipe.fit(seen, division, run_key(seed, split.repeat, split.fold), folder, report=report)
    record = open_recipe(folder)
    target = Target.from_json(record["target"])
    held = division.rows(cohort).validation
    table: list[dict[str, Any]] = []
    for part, chosen in (("validation", held), ("test", rows.test)):
        if len(chosen):
            scores = recipe.predict(folder, cohort, chosen)
            table += prediction_rows(
                cohort, chosen, scores, target, model=model, split=part, fold=split.fold, repeat=split.repeat, seed=seed
            )
    measure: Any = getattr(recipe, "measure", None)
    quality = measure(folder, cohort, rows.test) if measure is not None and len(rows.test) else None
    write_json(
        folder / "run.json",
        {
            **record["facts"],
            "quality": quality,
            "task_seconds": time.perf_counter() - started,
            "model": model,
            "recipe": record["name"],
            "arguments": record["arguments"],
            "repeat": split.repeat,
            "fold": split.fold,
            "seed": seed,
            "cohort": cohort.name,
            "cases": {"train": len(train), "validation": len(held), "test": len(rows.test)},
            "inner_split": found.reason,
            "sources": list(recipe.sources(cohort)),
            "run": run_record(),
        },
    )
    write_csv(folder / PREDICTIONS, table)
    # The weights are kept beside it. Those of the last step, with the optimiser's moments, are three times as large and
    # were for a training that is killed.
    for checkpoints in [path for path in folder.rglob(CHECKPOINTS) if path.is_dir()]:
        shutil.rmtree(checkpoints)


def united(cohort: Cohort, copies: Sequence[Sequence[str]]) -> Cohort:
    """The cohort in which patients whose cases hold one image are one patient, so that nothing parts them.

    Args:
      cohort: of some of these cases.
      copies: groups of case ids.

    Example:
      >>> cohort = Cohort.from_arrays({"age": np.zeros((3, 1))}, label=[0, 1, 0], case_id=["a", "b", "c"])
      >>> united(cohort, [("a", "c")]).patient_id.tolist()
      ['a', 'b', 'a']
    """
    patients = dict(zip(cohort.case_id, cohort.patient_id.tolist(), strict=True))
    ids = cohort.patient_id.astype(object)
    for group in copies:
        alike = {patients[case] for case in group if case in patients}
        # Of patients that earlier groups joined, the joint one.
        joint = sorted({ids[row] for row, patient in enumerate(cohort.patient_id.tolist()) if patient in alike})
        if len(joint) > 1:
            ids[np.isin(ids.astype(str), joint)] = joint[0]
    return dataclasses.replace(cohort, patient_id=ids.astype(cohort.patient_id.dtype))


def prediction_rows(
    cohort: Cohort,
    rows: Int[np.ndarray, "n"],
    scores: Float[np.ndarray, "n k"],
    target: Target,
    *,
    model: str,
    split: str,
    fold: int | str = "",
    repeat: int | str = "",
    seed: int | str = "",
) -> list[dict[str, Any]]:
    """Predictions of a recipe as rows of the predictions table.

    Args:
      cohort: with these cases.
      rows: of the cohort.
      scores: as `Recipe.predict` returns them.
      target: what was predicted. Label, time and event are left out where the cohort does not have them.
      model, split, fold, repeat, seed: for the columns of that name; empty ones are left out.

    Raises:
      ValueError: a score that is not finite; the message names the case.
    """
    if len(bad := np.flatnonzero(~np.isfinite(scores).all(axis=1))):
        raise ValueError(
            f"{model}: the prediction of case {cohort.case_id[int(rows[bad[0]])]} is {scores[bad[0]].tolist()} "
            f"({len(bad)} such cases); expected finite numbers. Look at its sources."
        )
    of_training = {"fold": fold, "repeat": repeat, "seed": seed}
    common = {"split": split} | {name: value for name, value in of_training.items() if value != ""}
    codes = cohort.label if target.kind == "label" and cohort.columns("label") else None
    follow_up = survival_of(cohort, rows) if target.kind == "survival" and cohort.columns("time") else None
    words = cohort.classes if codes is not None else ()
    found = []
    for place, row in enumerate(map(int, rows)):
        line: dict[str, Any] = {
            "case_id": cohort.case_id[row],
            "patient_id": str(cohort.patient_id[row]),
            "model": model,
        }
        if codes is not None:
            line["label"] = words[codes[row]] if codes[row] >= 0 else None
        line |= _scores(scores[place], target)
        line |= common
        if cohort.site is not None:
            line["site"] = str(cohort.site[row])
        if follow_up is not None:
            line |= {"time": float(follow_up.time[place]), "event": int(follow_up.event[place])}
        found.append(line)
    return found


@functools.lru_cache(maxsize=1)
def _opened(address: str, _fingerprint: str) -> Cohort:
    """A worker does many tasks on one cohort; one that was changed in between is another."""
    # Every task reads the same images.
    return remembered(open_address(json.loads(address)), gigabytes=GIGABYTES)


@functools.lru_cache(maxsize=1)
def _loaded(path: str, _changed: int, cohort: Cohort) -> Splits:
    return load_splits(path, cohort)


def _scores(scores: Float[np.ndarray, "k"], target: Target) -> dict[str, float]:
    if target.kind == "survival":
        return {"score": float(scores[0])}
    if len(target.classes) == 2:
        return {"score": float(scores[1])}
    return {f"score_{word}": float(score) for word, score in zip(target.classes, scores, strict=True)}
