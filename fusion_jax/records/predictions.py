"""The predictions table: the one thing that evaluation and reports read, whoever wrote it.

One row is the score of one model for one case. The key of a row is its case, instance (slice, view or augmented copy),
model, split, fold, repeat and seed. What the rows say of the same case must agree, in every model and every repeat.
"""

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from fusion_jax.wording import counted, listed

if TYPE_CHECKING:
    import pandas  # noqa: ICN001 - run-time checks in the tests look the full name of an annotation up

__all__ = ["KEY", "ColumnNames", "Predictions", "ScoreKind", "check_predictions"]

ScoreKind: TypeAlias = Literal["auto", "probability", "logit", "score"]

KEY = ("case_id", "instance", "model", "split", "fold", "repeat", "seed")

TEST = frozenset({"test", "testing", "holdout", "external"})
VALIDATION = frozenset({"val", "valid", "validation", "tune", "tuning", "dev"})
TRAINING = frozenset({"train", "training"})

POSITIVE = frozenset({"1", "true", "yes", "positive", "pos"})
NEGATIVE = frozenset({"0", "false", "no", "negative", "neg"})

SHOWN = 4


@dataclass(frozen=True)
class ColumnNames:
    """What the columns of somebody's table are called; None where there is none.

    Attributes:
      case, patient, model, label, score: as in the predictions table. Without `case`, files are paired by row order.
      instance: slice, view or augmented copy of the case.
      split, fold, repeat, seed: which part of the data, and which of several trainings.
      site, time, event: where the case is from; follow-up in any unit of time, and whether the event happened.
      class_prefix: the score of class X is in the column `<class_prefix>X`.
    """

    case: str | None = "case_id"
    patient: str | None = "patient_id"
    model: str | None = "model"
    label: str | None = "label"
    score: str | None = "score"
    instance: str | None = "instance"
    split: str | None = "split"
    fold: str | None = "fold"
    repeat: str | None = "repeat"
    seed: str | None = "seed"
    site: str | None = "site"
    time: str | None = "time"
    event: str | None = "event"
    class_prefix: str = "score_"


@dataclass(frozen=True)
class Predictions:
    """Checked predictions.

    Attributes:
      table: one row a prediction, columns `case_id`, `model`, `split` ("test" or "validation") always; `patient_id`,
        `instance`, `fold`, `repeat`, `seed`, `site` as text where given; `label` as the number of its class;
        `score`, or `score_<class>` for three classes and more; `time` and `event` where given.
      classes: names of the classes in the order of their numbers; the second of two is the positive one. Empty for
        tables with times alone.
      models: in the order of their first rows.
      score_kind: of every model: "probability" or "score"; logits have become probabilities.
      notes: what a reader of the results has to know about how the table was read.
      uncommon: cases (or instances of cases) that were left out because some model lacks a prediction of them.
    """

    table: "pandas.DataFrame"
    classes: tuple[str, ...]
    models: tuple[str, ...]
    score_kind: Mapping[str, str]
    notes: tuple[str, ...]
    uncommon: int = 0

    @property
    def has_patients(self) -> bool:
        """Whether rows of the same patient can be told."""
        return "patient_id" in self.table.columns

    def only(self, models: Sequence[str]) -> "Predictions":
        """The predictions of these models.

        Raises:
          ValueError: a model that the table does not have; the message lists those it has.
        """
        for model in models:
            if model not in self.models:
                raise ValueError(
                    f"no model {model!r}{_close(model, self.models)}; the table has {listed(self.models)}."
                )
        kept: Any = self.table[self.table["model"].isin(list(models))].reset_index(drop=True)
        kinds = {model: self.score_kind[model] for model in models}
        return replace(self, table=kept, models=tuple(models), score_kind=kinds)


def check_predictions(
    tables: Mapping[str, "pandas.DataFrame"],
    *,
    names: ColumnNames | None = None,
    positive: str | None = None,
    scores: ScoreKind = "auto",
    mismatched: Literal["refuse", "common"] = "refuse",
) -> Predictions:
    """Predictions of one table or several, checked before anything is computed from them.

    Args:
      tables: by the name that messages use, such as the path; that name also stands for the model where a table has
        no column of models (of a path, its stem).
      names: what the columns are called.
      positive: of two classes, the label that counts as positive. Not needed for 0 and 1, no and yes, false and true,
        negative and positive.
      scores: what the scores are. "auto" takes scores that all lie in [0, 1] as probabilities, others as scores of
        which only the order means something; "logit" turns them into probabilities.
      mismatched: models that were not run on the same cases are refused, or compared on the cases they have in
        common.

    Returns:
      The predictions. Rows of a training split are left out, and counted in the notes.

    Raises:
      ValueError: a column that is missing, a cell that is not what its column holds, two rows with one key, labels or
        patients of one case that disagree, a patient in validation and test rows of one fold, models without the same
        cases. The message names the table and the row; row 1 is the header.

    Example:
      >>> import pandas as pd
      >>> table = pd.DataFrame({"case_id": ["a", "b"], "model": "CNN", "label": [0, 1], "score": [0.2, 0.7]})
      >>> found = check_predictions({"cnn.csv": table})
      >>> found.models, found.classes, found.score_kind
      (('CNN',), ('0', '1'), {'CNN': 'probability'})
    """
    import pandas as pd

    names = names or ColumnNames()
    if not tables:
        raise ValueError("no table of predictions was given; expected at least one.")
    notes: list[str] = []
    parts = [_Part(where, table, names) for where, table in tables.items()]
    notes += [
        f"{part.where}: {listed(part.ignored)} {'was' if len(part.ignored) == 1 else 'were'} left out: the column "
        f"{part.found['score']!r} holds the score."
        for part in parts
        if part.ignored
    ]
    by_order = _paired_by_order(parts)
    if by_order:
        notes.append(
            "Files without case ids were paired by row order: they have the same number of rows and the same labels "
            "row by row, which does not prove that they are of the same cases."
        )
    whole: Any = pd.concat([part.canonical() for part in parts], ignore_index=True)
    whole = _only_judged(whole, notes)
    _check_columns(whole)
    _check_keys(whole)
    _check_cases(whole)
    _check_leak(whole)
    classes = _classes(whole, parts, positive, scores)
    kinds = _score_kinds(whole, classes, scores, notes)
    whole, uncommon = _same_cases(whole, mismatched, notes)
    models = tuple(dict.fromkeys(whole["model"]))
    table = whole.drop(columns=["_where", "_row"]).reset_index(drop=True)
    return Predictions(table, classes, models, kinds, tuple(notes), uncommon)


class _Part:
    """One table on its way to the canonical form."""

    def __init__(self, where: str, table: "pandas.DataFrame", names: ColumnNames) -> None:
        self.where, self.names = where, names
        self.table = table.reset_index(drop=True)
        if not len(table):
            raise ValueError(f"{where}: no rows; expected one row for every case and model.")
        self.found = {field.name: getattr(names, field.name) for field in fields(names)}
        self.class_columns = [str(column) for column in table.columns if str(column).startswith(names.class_prefix)]
        self.ignored = self._not_of_a_class()
        self.class_columns = [column for column in self.class_columns if column not in self.ignored]
        self._require()

    def has(self, column: str) -> bool:
        return self.found[column] in self.table.columns

    def _not_of_a_class(self) -> list[str]:
        """Columns such as `score_std` beside the column of scores: no label has that name."""
        if not self.has("score"):
            return []
        if not self.has("label"):
            return self.class_columns
        labels = {_word(value) for value in self.table[self.found["label"]]}
        scored = {column.removeprefix(self.names.class_prefix) for column in self.class_columns}
        return [] if labels <= scored and len(scored) > 2 else self.class_columns

    def _require(self) -> None:
        survival = self.has("time") and self.has("event")
        wanted = [] if self.class_columns and self.has("label") else ["score"]
        wanted += [] if survival else ["label"]
        for column in wanted:
            if not self.has(column):
                raise ValueError(
                    f"{self.where}: no column {self.found[column]!r}"
                    f"{_close(str(self.found[column]), self.table.columns)}; its columns are "
                    f"{listed(self.table.columns, 12)}. Name the one that holds the {column} with --{column}."
                )
        if self.has("time") != self.has("event"):
            present, absent = ("time", "event") if self.has("time") else ("event", "time")
            raise ValueError(
                f"{self.where}: a column {self.found[present]!r} but no {self.found[absent]!r}; survival needs both."
            )

    def canonical(self) -> "pandas.DataFrame":
        """The table with canonical columns, and where each row came from."""
        import pandas as pd

        count = len(self.table)
        rows: dict[str, Any] = {"_where": self.where, "_row": np.arange(2, count + 2)}
        rows["case_id"] = (
            self._words("case") if self.has("case") else np.array([f"row {index + 1}" for index in range(count)])
        )
        rows["model"] = self._words("model") if self.has("model") else model_name(self.where)
        for column in ("patient", "instance", "split", "fold", "repeat", "seed", "site", "label"):
            if self.has(column):
                name = "patient_id" if column == "patient" else column
                rows[name] = self._words(column)
        if self.has("score"):
            rows["score"] = self._numbers(self.found["score"])
        for column in self.class_columns:
            rows["score_" + column.removeprefix(self.names.class_prefix)] = self._numbers(column)
        if self.has("time"):
            rows["time"] = self._numbers(self.found["time"], least=0.0)
            rows["event"] = self._events()
        return pd.DataFrame(rows, index=range(count))

    def _words(self, column: str) -> np.ndarray:
        found: Any = self.table[self.found[column]]
        missing = np.asarray(found.isna())
        if missing.any():
            raise ValueError(
                f"{self.where}: column {self.found[column]!r} is empty in {counted(int(missing.sum()), 'row')} "
                f"(row {int(np.flatnonzero(missing)[0]) + 2} first); every row needs one."
            )
        words = np.array([_word(value) for value in found], dtype=object)
        blank = np.flatnonzero(words == "")
        if blank.size:
            raise ValueError(
                f"{self.where}: column {self.found[column]!r} is blank in {counted(blank.size, 'row')} "
                f"(row {blank[0] + 2} first); every row needs one."
            )
        return words

    def _numbers(self, column: str, least: float | None = None) -> np.ndarray:
        import pandas as pd

        values = np.asarray(pd.to_numeric(self.table[column], errors="coerce"), dtype=float)
        bad = ~np.isfinite(values) if least is None else ~(np.isfinite(values) & (values >= least))
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            wanted = "a finite number" if least is None else f"a finite number of at least {least:g}"
            raise ValueError(
                f"{self.where}: column {column!r} holds {_word(self.table[column].iloc[row])!r} in row {row + 2}, and "
                f"{counted(int(bad.sum()), 'such cell')} in all; expected {wanted}. Predict these cases again, or take "
                "them out of every model's table and say so."
            )
        return values

    def _events(self) -> np.ndarray:
        words = [_word(value).lower() for value in self.table[self.found["event"]]]
        known = [word in POSITIVE or word in NEGATIVE for word in words]
        if not all(known):
            row = known.index(False)
            raise ValueError(
                f"{self.where}: column {self.found['event']!r} holds {words[row]!r} in row {row + 2}; expected 1 where "
                "the event happened and 0 where follow-up ended without it."
            )
        return np.array([word in POSITIVE for word in words])


def model_name(where: str) -> str:
    """The model that a file without a column of models is taken to be of: its name without folder and suffixes."""
    return re.sub(r"(\.(csv|tsv|parquet|xlsx|gz))+$", "", where.replace("\\", "/").rsplit("/", 1)[-1]) or where


def _word(value: Any) -> str:
    """A cell as text, whole numbers without decimals: 1, 1.0 and "1" are one label."""
    if isinstance(value, bool | np.bool_):
        return "1" if value else "0"
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    text = str(value).strip()
    return text[:-2] if re.fullmatch(r"-?\d+\.0", text) else text


def _close(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, [str(column) for column in known], n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _paired_by_order(parts: list[_Part]) -> bool:
    """Whether rows stand for cases; then the tables must be alike.

    Raises:
      ValueError: some tables have case ids and some have none, or tables without them cannot be paired.
    """
    without = [part for part in parts if not part.has("case")]
    if not without:
        return False
    if len(without) < len(parts):
        has = next(part for part in parts if part.has("case"))
        raise ValueError(
            f"{without[0].where}: no column {without[0].found['case']!r} with case ids, while {has.where} has one; "
            "either every table names its cases, or none does. Name the column with --case."
        )
    for part in parts:
        repeated = [
            name
            for name in ("model", "instance", "repeat", "seed")
            if part.has(name) and len(set(part.table[part.found[name]])) > 1
        ]
        if repeated:
            raise ValueError(
                f"{part.where}: no column {part.found['case']!r} with case ids, but a column "
                f"{part.found[repeated[0]]!r}: row order cannot say which rows are of one case. Name the column of "
                "case ids with --case."
            )
    first = parts[0]
    if not first.has("label"):
        return True
    labels = first._words("label")
    for part in parts[1:]:
        if len(part.table) != len(first.table):
            raise ValueError(
                f"{part.where} has {counted(len(part.table), 'row')} and {first.where} has {len(first.table)}; without "
                "case ids, files are paired by row order and must agree. Name the column of case ids with --case."
            )
        different = np.flatnonzero(part._words("label") != labels)
        if different.size:
            raise ValueError(
                f"{part.where} and {first.where} have no case ids, and different labels in "
                f"{counted(different.size, 'row')} (row {different[0] + 2} first): they are not in the same order. "
                "Name the column of case ids with --case."
            )
    return True


def _only_judged(whole: Any, notes: list[str]) -> Any:
    """The rows with splits named "test" and "validation", without training rows."""
    if "split" not in whole.columns:
        return whole.assign(split="test")
    # Tables of several files may differ in which of them have the column.
    words = whole["split"].where(whole["split"].notna(), "test").astype(str).str.lower()
    known = TEST | VALIDATION | TRAINING
    for row in np.flatnonzero(~words.isin(known).to_numpy()):
        where, line, value = whole["_where"].iloc[row], whole["_row"].iloc[row], whole["split"].iloc[row]
        raise ValueError(
            f"{where}: split {value!r} in row {line}; expected 'test', 'validation' or 'train'. Rename it, or rename "
            "the column if it is something else."
        )
    whole["split"] = np.where(words.isin(TEST), "test", np.where(words.isin(VALIDATION), "validation", "train"))
    training = whole["split"] == "train"
    if training.any():
        notes.append(f"{counted(int(training.sum()), 'row')} of the training split were left out.")
        whole = whole[~training].reset_index(drop=True)
    if not (whole["split"] == "test").any():
        raise ValueError("the predictions hold no row of a test split; expected split 'test' in the rows to judge.")
    return whole


def _classes(whole: Any, parts: list[_Part], positive: str | None, scores: ScoreKind) -> tuple[str, ...]:
    """Names of the classes; the labels become their numbers, in place."""
    if "label" not in whole.columns:
        return ()
    if whole["label"].isna().any():
        row = int(np.flatnonzero(whole["label"].isna())[0])
        raise ValueError(f"{whole['_where'].iloc[row]}: no label in row {whole['_row'].iloc[row]}; expected one.")
    found = sorted(set(whole["label"]), key=_natural)
    scored = [column.removeprefix("score_") for column in whole.columns if str(column).startswith("score_")]
    if len(found) > 2 or len(scored) > 2:
        return _many_classes(whole, parts, found, scored, positive)
    if scored:
        # Of several files, some may have a column of scores and others one for each class.
        rows = np.ones(len(whole), bool) if "score" not in whole.columns else whole["score"].isna().to_numpy()
        whole.loc[rows, "score"] = _from_two(whole[rows], found, scored, positive, scores)
        for name in scored:
            del whole[f"score_{name}"]
    if len(found) < 2:
        what = f"only the label {found[0]!r} occurs in {counted(len(whole), 'row')}" if found else "there are no labels"
        raise ValueError(f"{listed([part.where for part in parts], 2)}: {what}; expected cases of two classes.")
    first, second = found
    if positive is not None:
        if positive not in found:
            raise ValueError(f"--positive {positive!r} is no label of the table; its labels are {first!r}, {second!r}.")
        first, second = (second, first) if positive == first else (first, second)
    elif first.lower() in POSITIVE and second.lower() in NEGATIVE:
        first, second = second, first
    elif not (first.lower() in NEGATIVE and second.lower() in POSITIVE):
        raise ValueError(
            f"{parts[0].where}: labels {first!r} and {second!r}; which of them is positive? Say it with --positive."
        )
    whole["label"] = (whole["label"] == second).to_numpy().astype(int)
    return (first, second)


def _from_two(whole: Any, found: list[str], scored: list[str], positive: str | None, scores: ScoreKind) -> Any:
    """Score of the positive class from columns of classes: a probability, or how far it is above that of the other."""
    where = whole["_where"].iloc[0]
    names = [positive] if positive else [name for name in scored if name.lower() in POSITIVE] or scored[1:]
    if len(names) != 1 or names[0] not in scored:
        raise ValueError(
            f"{where}: scores of {listed(scored)} and labels {listed(found)}; which is positive? Say it with "
            "--positive."
        )
    of_positive = whole[f"score_{names[0]}"]
    others = [name for name in scored if name != names[0]]
    if not others:
        return of_positive
    other = whole[f"score_{others[0]}"]
    # The softmax of two logits is the logistic function of their difference; one of them alone ranks cases wrongly.
    if scores in ("logit", "score"):
        return of_positive - other
    wrong = np.flatnonzero(~np.isclose(of_positive + other, 1.0, atol=1e-3))
    if wrong.size:
        raise ValueError(
            f"{_row(whole, int(wrong[0]))}: scores of {listed(scored)} sum to "
            f"{(of_positive + other).iloc[wrong[0]]:g}; expected probabilities that sum to 1. Say --scores logit for "
            "logits, --scores score to rank by their difference, or name one column with --score."
        )
    return of_positive


def _many_classes(
    whole: Any, parts: list[_Part], found: list[str], scored: list[str], positive: str | None
) -> tuple[str, ...]:
    if positive is not None:
        raise ValueError(
            f"--positive {positive!r} is for two classes, and the labels are {listed(found, 8)}. To judge one class "
            "against the rest, write such a label and its score into the table."
        )
    missing = [name for name in found if name not in scored]
    if missing:
        raise ValueError(
            f"{parts[0].where}: labels {listed(found, 8)}, but no column {'score_' + missing[0]!r}; three classes and "
            "more need one column of scores each (score_<class>)."
        )
    order = sorted(scored, key=_natural)
    columns = [f"score_{name}" for name in order]
    if whole[columns].isna().any(axis=None):
        raise ValueError(
            f"{parts[0].where}: not every row has a score of every class ({listed(order, 8)}); tables given together "
            "must have the same classes."
        )
    whole["label"] = whole["label"].map({name: number for number, name in enumerate(order)}).astype(int)
    if "score" in whole.columns:
        del whole["score"]
    return tuple(order)


def _natural(name: str) -> tuple[int, float, str]:
    """Numbers in their order, before words in theirs."""
    try:
        return (0, float(name), name)
    except ValueError:
        return (1, 0.0, name)


def _row(whole: Any, index: int) -> str:
    return f"{whole['_where'].iloc[index]}, row {whole['_row'].iloc[index]}"


def _check_columns(whole: Any) -> None:
    """Columns that only some tables have: instances in all or none, folds, repeats and seeds in all rows of a model."""
    for column in ("instance", "fold", "repeat", "seed"):
        if column not in whole.columns:
            continue
        missing, models = whole[column].isna().to_numpy(), whole["model"]
        both = set(models[missing]) & set(models[~missing])
        if missing.any() and (both or column == "instance"):
            rows = models.isin(list(both)).to_numpy() if both else np.ones(len(whole), bool)
            without, has = (int(np.flatnonzero(which & rows)[0]) for which in (missing, ~missing))
            raise ValueError(
                f"{whole['_where'].iloc[without]} has no column of the {column}, while {whole['_where'].iloc[has]} has "
                + (
                    "one; write such a column into both, repeating a score for every instance where the model has one "
                    "a case, or average the instances first."
                    if column == "instance"
                    else f"one for the same model {whole['model'].iloc[has]!r}; expected it in all rows of a model."
                )
            )


def _check_keys(whole: Any) -> None:
    key = [column for column in KEY if column in whole.columns]
    doubled = whole.duplicated(key, keep=False).to_numpy()
    if doubled.any():
        again = int(np.flatnonzero(whole.duplicated(key).to_numpy())[0])
        # A column that other tables have is missing here, and missing equals nothing.
        words = whole[key].fillna("")
        same = (words == words.iloc[again]).all(axis=1).to_numpy()
        first = int(np.flatnonzero(same)[0])
        absent = [column for column in ("instance", "fold", "repeat", "seed") if column not in whole.columns]
        raise ValueError(
            f"case {whole['case_id'].iloc[again]!r} of model {whole['model'].iloc[again]!r} has two predictions "
            f"({_row(whole, first)}; {_row(whole, again)}), and {counted(int(doubled.sum()), 'row')} are such doubles; "
            "expected one row for each case, model and training."
            + (f" If rows differ in {listed(absent)}, add that column." if absent else "")
        )


def _check_cases(whole: Any) -> None:
    """What is said of one case must agree in all rows."""
    per_case = [column for column in ("patient_id", "site", "time", "event") if column in whole.columns]
    per_instance = ["label"] if "label" in whole.columns else []
    for columns, key in ((per_case, ["case_id"]), (per_instance, ["case_id", "instance"])):
        key = [name for name in key if name in whole.columns]
        for column in columns:
            if whole[column].isna().any():
                row = int(np.flatnonzero(whole[column].isna().to_numpy())[0])
                raise ValueError(
                    f"{_row(whole, row)}: no {column}, while other tables have it; expected it in all or in none."
                )
            seen = whole.groupby(key, sort=False)[column].transform("first")
            different = np.flatnonzero((whole[column] != seen).to_numpy())
            if different.size:
                row = int(different[0])
                first = int(np.flatnonzero((whole["case_id"] == whole["case_id"].iloc[row]).to_numpy())[0])
                case, one, other = whole["case_id"].iloc[row], _word(seen.iloc[row]), _word(whole[column].iloc[row])
                raise ValueError(
                    f"case {case!r} has {column} {one!r} in {_row(whole, first)} and {other!r} in {_row(whole, row)}; "
                    "what is known of a case must agree in all rows."
                )


def _check_leak(whole: Any) -> None:
    """Patients never cross from validation to test of the same training."""
    who = "patient_id" if "patient_id" in whole.columns else "case_id"
    training = [column for column in ("model", "fold", "repeat", "seed") if column in whole.columns]
    parts = {name: part[[*training, who]].drop_duplicates() for name, part in whole.groupby("split", sort=False)}
    if len(parts) < 2:
        return
    crossing = parts["test"].merge(parts["validation"], on=[*training, who])
    if len(crossing):
        what = "patients" if who == "patient_id" else "cases"
        raise ValueError(
            f"{counted(crossing[who].nunique(), what[:-1])} in validation and test rows of the same training "
            f"({listed(crossing[who].unique(), SHOWN)}): a threshold carried over would have seen them. Split by "
            "patient, or take the validation rows out."
        )


def _score_kinds(whole: Any, classes: tuple[str, ...], scores: ScoreKind, notes: list[str]) -> dict[str, str]:
    """What the scores of each model are; logits become probabilities, in place."""
    many = [f"score_{name}" for name in classes] if len(classes) > 2 else ["score"]
    values = whole[many].to_numpy(dtype=float)
    if scores == "logit":
        from scipy.special import expit, softmax

        convert: Callable[..., Any] = (lambda x: softmax(x, axis=1)) if len(many) > 1 else expit
        whole[many] = convert(values)
        return dict.fromkeys(dict.fromkeys(whole["model"]), "probability")
    kinds = {}
    for model, rows in whole.groupby("model", sort=False).indices.items():
        inside = bool(((values[rows] >= 0) & (values[rows] <= 1)).all())
        if inside and len(many) > 1:
            inside = bool(np.allclose(values[rows].sum(axis=1), 1.0, atol=1e-3))
        if scores == "probability" and not inside:
            bad = values[rows][~((values[rows] >= 0) & (values[rows] <= 1))]
            what = f"{bad[0]:g}" if bad.size else "classes that do not sum to 1"
            raise ValueError(
                f"model {model!r}: scores are declared probabilities and hold {what}; expected numbers in [0, 1]. Say "
                "--scores logit for logits, --scores score for others."
            )
        kinds[str(model)] = "score" if scores == "score" or not inside else "probability"
    others = [model for model, kind in kinds.items() if kind == "score"]
    if others and scores == "auto":
        notes.append(
            f"Scores of {listed(others)} do not lie in [0, 1] and are taken as scores of which only the order means "
            "something; say --scores logit if they are logits."
        )
    return kinds


def _same_cases(whole: Any, mismatched: str, notes: list[str]) -> tuple[Any, int]:
    """Every model and training must have judged the same cases; those they have in common, and how many go."""
    unit = [column for column in ("case_id", "instance") if column in whole.columns]
    test = whole[whole["split"] == "test"]
    runs = [column for column in ("model", "repeat", "seed") if column in whole.columns]
    found = {
        run if isinstance(run, tuple) else (run,): set(map(tuple, rows[unit].to_numpy()))
        for run, rows in test.groupby(runs, sort=False, dropna=False)
    }
    everything = set.union(*found.values())
    common = set.intersection(*found.values())
    if everything == common:
        return whole, 0
    if mismatched == "refuse" or not common:
        run, least = min(found.items(), key=lambda item: len(item[1]))
        missing = sorted(" ".join(map(str, case)) for case in everything - least)
        said = ", ".join(
            f"{name} {value}" if name != "model" else repr(value)
            for name, value in zip(runs, run, strict=True)
            if value == value  # a table without that column
        )
        raise ValueError(
            f"models were not judged on the same cases: {said} has no prediction of {counted(len(missing), 'case')} "
            f"that others have ({listed(missing, SHOWN)}); {len(common)} of {len(everything)} cases are common to all. "
            + ("Predict them, or compare on the common ones with --mismatched common." if common else "Check the ids.")
        )
    kept = [tuple(row) in common for row in whole[unit].to_numpy()] | np.asarray(whole["split"] != "test")
    notes.append(
        f"Models were not judged on the same cases; all figures are of the {len(common)} of {len(everything)} cases "
        "that every model has."
    )
    return whole[kept], len(everything - common)
