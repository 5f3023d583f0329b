"""Predictions as arrays: who is judged, by whom, and on which one score.

A panel holds the scores of every training of every model for the same rows in the same order. What a test is run on is
a view of it: one score for each row and model. Several trainings are either averaged into one score, which is then the
score of their ensemble, or viewed one by one; they never stand beside each other as if they were more patients.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float, Int

from fusion_jax.records.predictions import Predictions
from fusion_jax.wording import counted, listed

__all__ = ["Aggregate", "Level", "Panel", "Run", "Validation", "View", "make_panel"]

Level: TypeAlias = Literal["case", "patient", "instance"]
Aggregate: TypeAlias = Literal["mean", "max", "vote"]

VOTE = 0.5


class Validation(NamedTuple):
    """Predictions for cases that neither trained the model nor are judged.

    Attributes:
      units: names of the rows, shape `(v,)`.
      labels: shape `(v,)`.
      scores: shape `(v,)`, or `(v, k)` for three classes and more.
      folds: number of the fold whose training they belong to, shape `(v,)`; None without folds.
      patients: patient of each row, shape `(v,)`; None where the table does not tell.
    """

    units: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    folds: np.ndarray | None
    patients: np.ndarray | None


class Run(NamedTuple):
    """One training of one model.

    Attributes:
      name: "repeat 0, seed 1"; empty where there is only one.
      scores: of the rows of the panel, shape `(n,)`, or `(n, k)` for three classes and more.
      folds: number of the fold in which each row was tested, shape `(n,)`; None without folds.
      validation: None where the table has no validation rows of this training.
    """

    name: str
    scores: np.ndarray
    folds: np.ndarray | None
    validation: Validation | None


@dataclass(frozen=True)
class View:
    """One score for each model and row: what every figure and test is of.

    Attributes:
      name: of the view; "ensemble of 5 trainings" where scores are means.
      models: in order.
      scores: shape `(m, n)`, or `(m, n, k)` for three classes and more.
      folds: shape `(n,)`; None without folds, or where trainings were averaged over different partitions.
      validation: of each model.
      refused: why there is no validation although trainings have some; empty otherwise.
    """

    name: str
    models: tuple[str, ...]
    scores: np.ndarray
    folds: np.ndarray | None
    validation: Mapping[str, Validation | None]
    refused: str = ""


@dataclass(frozen=True)
class Panel:
    """All trainings of all models on the same rows.

    Attributes:
      units: what each row is called: a case, an instance of it, or a patient, shape `(n,)`.
      cases: case of each row, shape `(n,)`; the patient where rows are patients.
      patients: patient of each row, shape `(n,)`; None where the table does not tell.
      labels: number of the class, shape `(n,)`; None for tables with times alone.
      time, event: follow-up and whether the event happened, shape `(n,)`; None without them.
      classes: names of the classes; the second of two is positive.
      runs: trainings of each model.
      fold_names: of the numbers in `folds`.
      kinds: "probability" or "score", of each model.
      level: what a row is.
      notes: what a reader of the results has to know.
      uncommon: cases that were left out because some model lacks a prediction of them.
    """

    units: np.ndarray
    cases: np.ndarray
    patients: np.ndarray | None
    labels: np.ndarray | None
    time: np.ndarray | None
    event: np.ndarray | None
    classes: tuple[str, ...]
    runs: Mapping[str, tuple[Run, ...]]
    fold_names: tuple[str, ...]
    kinds: Mapping[str, str]
    level: Level
    notes: tuple[str, ...]
    uncommon: int = 0

    def __len__(self) -> int:
        return len(self.units)

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the models, in order."""
        return tuple(self.runs)

    @property
    def clustered(self) -> bool:
        """Whether some patient has more than one row."""
        return self.patients is not None and len(np.unique(self.patients)) < len(self)

    @property
    def patient_count(self) -> int | None:
        """How many patients there are; None where the table does not tell."""
        return None if self.patients is None else len(np.unique(self.patients))

    @property
    def whom(self) -> str:
        """What is counted as independent: patients, or rows where the table names none."""
        return self.level if self.patients is None else "patient"

    @property
    def class_sizes(self) -> tuple[int, ...]:
        """How many patients (rows, where the table names none) have each label; empty without labels."""
        if self.labels is None:
            return ()
        who = self.units if self.patients is None else self.patients
        return tuple(len(set(who[self.labels == number])) for number in range(len(self.classes)))

    @property
    def run_names(self) -> tuple[str, ...]:
        """Names of the trainings, of the model that has most."""
        return tuple(run.name for run in max(self.runs.values(), key=len))

    def take(self, rows: np.ndarray) -> "Panel":
        """The panel of these rows alone; validation rows stay."""

        def kept(values: np.ndarray | None) -> np.ndarray | None:
            return None if values is None else values[rows]

        runs = {
            model: tuple(run._replace(scores=run.scores[rows], folds=kept(run.folds)) for run in found)
            for model, found in self.runs.items()
        }
        return replace(
            self,
            units=self.units[rows],
            cases=self.cases[rows],
            patients=kept(self.patients),
            labels=kept(self.labels),
            time=kept(self.time),
            event=kept(self.event),
            runs=runs,
        )

    def ensemble(self) -> View:
        """One score a row: the mean over the trainings of each model."""
        scores = np.stack([np.mean([run.scores for run in runs], axis=0) for runs in self.runs.values()])
        folds = [run.folds for runs in self.runs.values() for run in runs]
        first = folds[0]
        shared = first is not None and all(other is not None and np.array_equal(first, other) for other in folds)
        validation, refused = {}, ""
        for model, runs in self.runs.items():
            validation[model], reason = _mean_validation(runs)
            refused = refused or reason
        if not shared:
            validation, reason = self._apart(validation)
            refused = refused or reason
        least, most = (how(len(runs) for runs in self.runs.values()) for how in (min, max))
        name = f"ensemble of {'' if least == most else 'up to '}{counted(most, 'training')}" if most > 1 else ""
        return View(name, self.models, scores, first if shared else None, validation, refused)

    def _apart(self, validation: Mapping[str, Validation | None]) -> tuple[dict[str, Validation | None], str]:
        """Validation rows, of rows without common folds: none that are of several trainings, or are judged as well."""
        reason = (
            "validation rows belong to the training of a fold, and the rows that are judged have no folds in common "
            "(models with different partitions, or cases tested in several folds), so that a threshold or a "
            "recalibration would have seen cases it is judged by"
        )
        judged = set(self.units) if self.patients is None else set(self.patients)
        kept, refused = dict(validation), ""
        for model, part in validation.items():
            if part is None:
                continue
            several = part.folds is not None and len(np.unique(part.folds)) > 1
            if several or judged & set(part.units if part.patients is None else part.patients):
                kept[model], refused = None, reason
        return kept, refused

    def each(self) -> tuple[View, ...]:
        """A view of every training; models that were trained once stand in each of them.

        Raises:
          ValueError: models were trained several times, and not with the same repeats and seeds.
        """
        names = self.run_names
        for model, runs in self.runs.items():
            if len(runs) > 1 and tuple(run.name for run in runs) != names:
                raise ValueError(
                    f"model {model!r} has the trainings {listed([run.name for run in runs])}, others have "
                    f"{listed(names)}; to compare training by training they must be the same. Average them instead: "
                    "--trainings ensemble."
                )
        views = []
        for index, name in enumerate(names):
            chosen = [runs[index % len(runs)] for runs in self.runs.values()]
            first = chosen[0].folds
            shared = first is not None and all(
                run.folds is not None and np.array_equal(first, run.folds) for run in chosen
            )
            validation, refused = {model: run.validation for model, run in zip(self.models, chosen, strict=True)}, ""
            if not shared:
                validation, refused = self._apart(validation)
            scores = np.stack([run.scores for run in chosen])
            views.append(View(name, self.models, scores, first if shared else None, validation, refused))
        return tuple(views)


def make_panel(predictions: Predictions, *, level: Level = "case", aggregate: Aggregate = "mean") -> Panel:
    """Arrays of checked predictions, every model and training in the same order of rows.

    Args:
      predictions: as checked by `fusion_jax.records.predictions`.
      level: what a row is. "case" aggregates the instances (slices, views, augmented copies) of a case, "patient" all
        cases of a patient, who is positive if one of them is; "instance" keeps every row, clustered by patient.
      aggregate: how scores of several instances become one: their mean, their largest, or the share of those that
        are at least 0.5.

    Raises:
      ValueError: `level` is "patient" and the table has no patients, or "instance" and it has no instances; votes of
        scores that are no probabilities; patients of several of more than two classes.
    """
    table: Any = predictions.table
    if level == "patient" and not predictions.has_patients:
        raise ValueError("level 'patient' needs a column 'patient_id', which the table lacks. Name it with --patient.")
    if level == "instance" and "instance" not in table.columns:
        raise ValueError("level 'instance' needs a column 'instance' (slice, view or copy), which the table lacks.")
    if aggregate == "vote" and "score" in set(predictions.score_kind.values()):
        raise ValueError("votes count probabilities of at least 0.5, and some scores are no probabilities.")
    if aggregate != "mean" and len(predictions.classes) > 2:
        raise ValueError(f"aggregate {aggregate!r} is for two classes; expected 'mean' with more.")
    notes: list[str] = []
    folds = tuple(sorted(set(table["fold"].dropna()), key=_number_first)) if "fold" in table.columns else ()
    rows = _aggregated(table, predictions, level, aggregate, folds, notes)
    test, validation = rows[rows["split"] == "test"], rows[rows["split"] == "validation"]
    scores = [column for column in rows.columns if column == "score" or str(column).startswith("score_")]

    order = test.drop_duplicates("unit")
    units = order["unit"].to_numpy(dtype=object)
    runs: dict[str, tuple[Run, ...]] = {}
    for model in predictions.models:
        of_model = test[test["model"] == model]
        found: list[Run] = []
        for name in sorted(set(of_model["run"]), key=_number_first):
            part = of_model[of_model["run"] == name].set_index("unit").loc[units]
            also = validation[(validation["model"] == model) & (validation["run"] == name)]
            found.append(
                Run(
                    name,
                    _squeezed(part[scores]),
                    part["fold"].to_numpy(dtype=int) if folds and (part["fold"] >= 0).all() else None,
                    Validation(
                        also["unit"].to_numpy(dtype=object),
                        also["label"].to_numpy(dtype=int),
                        _squeezed(also[scores]),
                        also["fold"].to_numpy(dtype=int) if folds and also["fold"].notna().all() else None,
                        also["patient"].to_numpy(dtype=object) if "patient" in also.columns else None,
                    )
                    if len(also) and "label" in also.columns
                    else None,
                )
            )
        runs[model] = tuple(found)

    def column(name: str, kind: Any) -> np.ndarray | None:
        return order[name].to_numpy(dtype=kind) if name in order.columns else None

    return Panel(
        units=units,
        cases=order["case"].to_numpy(dtype=object),
        patients=column("patient", object),
        labels=column("label", int),
        time=column("time", float),
        event=column("event", bool),
        classes=predictions.classes,
        runs=runs,
        fold_names=folds,
        kinds=predictions.score_kind,
        level=level,
        notes=(*predictions.notes, *notes),
        uncommon=predictions.uncommon,
    )


def _aggregated(
    table: Any,
    predictions: Predictions,
    level: Level,
    aggregate: Aggregate,
    folds: Sequence[str],
    notes: list[str],
) -> Any:
    """One row for each unit, model, training and split."""
    import pandas as pd

    rows = pd.DataFrame({"model": table["model"], "split": table["split"], "case": table["case_id"]})
    rows["run"] = _run_names(table)
    rows["fold"] = table["fold"].map({name: number for number, name in enumerate(folds)}) if folds else -1
    if predictions.has_patients:
        rows["patient"] = table["patient_id"]
    elif level == "instance":
        rows["patient"] = table["case_id"]
        notes.append("Without patient ids, instances are clustered by case: patients with several cases are not told.")
    if level == "instance":
        rows["unit"] = table["case_id"] + " / " + table["instance"]
    else:
        rows["unit"] = table["patient_id"] if level == "patient" else table["case_id"]
    if level == "patient":
        rows["case"] = table["patient_id"]
    known = [name for name in ("label", "time", "event") if name in table.columns]
    scores = [str(name) for name in table.columns if name == "score" or str(name).startswith("score_")]
    rows[known + scores] = table[known + scores]
    if aggregate == "vote":
        rows[scores] = (rows[scores] >= VOTE).astype(float)

    key = ["model", "run", "split", "unit"]
    doubled = rows.duplicated(key, keep=False).to_numpy()
    if not doubled.any():
        return rows
    several = rows[doubled].groupby(key, sort=False)["fold"].nunique()
    in_folds = bool((several[several.index.get_level_values("split") == "test"] > 1).any()) if folds else False
    if in_folds:
        rows.loc[rows["split"] == "test", "fold"] = -1
    # Validation rows of different folds belong to different trainings and are not averaged.
    key = [*key, "fold"]
    first = {name: "first" for name in ("case", "patient") if name in rows.columns}
    how: dict[str, Any] = dict.fromkeys(scores, "max" if aggregate == "max" else "mean")
    part = "case" if level == "patient" else "instance"
    grouped: Any = rows.groupby(key, sort=False, as_index=False, dropna=False)
    differ = {name: (grouped[name].nunique()[name] > 1).to_numpy() for name in known}
    for name in ("time", "event"):
        if differ.get(name, np.zeros(1)).any():
            one = grouped.first()["unit"][differ[name]].iloc[0]
            raise ValueError(
                f"{level} {one!r} has {part}s with different {name}s; follow-up is of the patient. Write the same time "
                f"and event into all rows of a patient, or judge {part}s (--level {part})."
            )
    mixed = "label" in known and bool(differ["label"].any())
    if mixed and len(predictions.classes) > 2:
        raise ValueError(
            f"{level}s have {part}s of several classes, and with more than two none of them stands for the {level}. "
            f"Judge {part}s (--level {part})."
        )
    if mixed:
        notes.append(f"A {level} counts as positive if one {part} is.")
    found = grouped.agg({**first, **dict.fromkeys(known, "max"), **how})
    if in_folds:
        notes.append(
            "Some cases were tested in several folds of one training; their scores were averaged, and figures are of "
            "that ensemble."
        )
    size = len(rows) / len(found)
    words = {"mean": "the mean score", "max": "the largest score", "vote": "the share of votes"}[aggregate]
    notes.append(f"A {level} is judged by {words} of its rows ({size:.3g} on average).")
    return found


def _run_names(table: Any) -> Any:
    """Name of the training of each row: its repeat and seed, where there is more than one."""
    varying = [name for name in ("repeat", "seed") if name in table.columns and table[name].nunique(dropna=False) > 1]
    if not varying:
        return ""
    words = [name + " " + table[name].fillna("0").astype(str) for name in varying]
    return words[0] if len(words) == 1 else words[0] + ", " + words[1]


def _number_first(name: str) -> tuple[Any, ...]:
    """Order of names in which 2 comes before 10."""
    return tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in str(name).split(" "))


def _squeezed(scores: Any) -> Float[np.ndarray, "..."]:
    values = scores.to_numpy(dtype=float)
    return values[:, 0] if values.shape[1] == 1 else values


def _mean_validation(runs: Sequence[Run]) -> tuple[Validation | None, str]:
    """Validation rows with scores averaged over trainings, where that has a meaning."""
    found = [run.validation for run in runs]
    first = found[0]
    if all(part is None for part in found):
        return None, ""
    if len(found) == 1:
        return first, ""
    reason = (
        "validation rows differ between the trainings that are averaged, so that no threshold or recalibration fits "
        "their ensemble; judge training by training (--trainings each)"
    )
    if first is None:
        return None, reason
    tested = runs[0].folds
    order = _order(first)
    scores = []
    for run, part in zip(runs, found, strict=True):
        if part is None or len(part.units) != len(first.units):
            return None, reason
        if tested is not None and not (run.folds is not None and np.array_equal(tested, run.folds)):
            return None, reason
        mine = _order(part)
        if not np.array_equal(part.units[mine], first.units[order]):
            return None, reason
        if first.folds is not None and not (
            part.folds is not None and np.array_equal(part.folds[mine], first.folds[order])
        ):
            return None, reason
        scores.append(part.scores[mine])
    return (
        Validation(
            first.units[order],
            first.labels[order],
            np.mean(scores, axis=0),
            None if first.folds is None else first.folds[order],
            None if first.patients is None else first.patients[order],
        ),
        "",
    )


def _order(part: Validation) -> Int[np.ndarray, "v"]:
    folds = np.zeros(len(part.units), int) if part.folds is None else part.folds
    return np.lexsort((part.units.astype(str), folds))
