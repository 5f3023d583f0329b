"""Choosing settings inside the training patients, with the same number of tries for every model.

A comparison in which one model was tuned and the others were not compares the tuning. So every model of a study brings
the same number of candidates, each of them is judged on the same inner folds of the training patients, and which one
won in which outer fold is a part of the result.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from fusion_jax.data.cohort import Cohort
from fusion_jax.data.splits import Split, check_leakage, k_fold
from fusion_jax.records import write_json
from fusion_jax.wording import counted, listed

__all__ = ["Choice", "check_budget", "inner_folds", "nested_choice", "read_choice", "winners", "write_choice"]


class Choice(NamedTuple):
    """Which settings were chosen in one outer fold.

    Attributes:
      model, repeat, fold: where.
      winner: name of the chosen settings.
      scores: name of every candidate to its score in each inner fold; None where there was no number.
      mode: whether a larger ("max") or a smaller score ("min") was better.
    """

    model: str
    repeat: int
    fold: int
    winner: str
    scores: Mapping[str, tuple[float | None, ...]]
    mode: str = "max"

    @property
    def trainings(self) -> int:
        """How many trainings the choice has cost."""
        return sum(map(len, self.scores.values()))


def check_budget(candidates: Mapping[str, Mapping[str, Any]]) -> int:
    """The number of candidates that every model has.

    Args:
      candidates: of every model of the comparison, settings by name; a model without a choice has one.

    Raises:
      ValueError: models with different numbers of them, or none.

    Example:
      >>> check_budget({"clinical-only": {"C = 1": {}, "C = 0.1": {}}, "concatenate": {"wide": {}, "narrow": {}}})
      2
    """
    counts = {model: len(named) for model, named in candidates.items()}
    if not counts or min(counts.values()) < 1:
        empty = [model for model, count in counts.items() if not count]
        raise ValueError(f"no candidate settings of {listed(empty) or 'any model'}; expected at least one a model.")
    if len(set(counts.values())) > 1:
        said = ", ".join(f"{model}: {count}" for model, count in counts.items())
        raise ValueError(
            f"models have different numbers of candidate settings ({said}), so that one of them would be tuned better. "
            "Give each the same number; a model with nothing to tune may try other seeds."
        )
    return next(iter(counts.values()))


def inner_folds(cohort: Cohort, split: Split, folds: int = 5, *, seed: int) -> tuple[Split, ...]:
    """Divisions of the training patients of an outer fold: those the split brings, or drawn.

    Validation patients of the split are divided with the training ones; the test part is not read, so `cohort` need not
    have it.

    Args:
      cohort: with the training cases.
      split: the outer one.
      folds: how many, where it has none of its own.
      seed: of the draw; repeat and fold of the split enter as well, the model does not.

    Returns:
      Splits with the held-out cases as `validation` and no test.

    Raises:
      ValueError: a class has fewer training patients than folds.

    Example:
      >>> cohort = Cohort.from_arrays({"image": np.zeros((40, 2))}, label=[0, 1] * 20)
      >>> split = k_fold(cohort, 4, seed=0).splits[0]
      >>> [len(inner.validation) for inner in inner_folds(cohort, split, 3, seed=0)]
      [10, 10, 10]
    """
    if split.inner:
        return split.inner
    rows = split._replace(test=()).rows(cohort)
    part = cohort.take(np.sort(np.concatenate([rows.train, rows.validation])))
    number = int(np.random.SeedSequence([seed, split.repeat, split.fold]).generate_state(1)[0])
    drawn = k_fold(part, folds, seed=number).splits
    return tuple(
        Split(split.repeat, inner.fold, inner.train, inner.test, (), f"inner fold {inner.fold}") for inner in drawn
    )


def nested_choice(
    cohort: Cohort,
    split: Split,
    candidates: Mapping[str, Any],
    score: Callable[[Any, Split], float],
    *,
    model: str,
    folds: int = 5,
    seed: int,
    mode: Literal["max", "min"] = "max",
) -> Choice:
    """Choose settings by cross-validation inside the training patients of an outer fold.

    The mean over the inner folds decides; of equal candidates the first wins, so list the simplest first. A candidate
    that has no number in some fold, because its training diverged or a fold has no AUC, cannot win.

    Args:
      cohort: with the training cases of the split.
      split: the outer one.
      candidates: settings by name.
      score: `score(settings, inner) -> number`: trains on `inner.train` and judges on `inner.validation`. With a single
        candidate it is not called.
      model: whose settings they are.
      folds: inner ones.
      seed: of the draw, the same for all models.
      mode: whether a larger or a smaller score is better.

    Raises:
      ValueError: no candidate, a class with too few patients, or no candidate with a number in every fold.

    Example:
      >>> cohort = Cohort.from_arrays({"image": np.zeros((40, 2))}, label=[0, 1] * 20)
      >>> split = k_fold(cohort, 4, seed=0).splits[0]
      >>> def score(penalty, inner):
      ...     return 0.7 - abs(penalty - 1.0) / len(inner.validation)
      >>> choice = nested_choice(cohort, split, {"C = 1": 1.0, "C = 10": 10.0}, score, model="clinical-only", seed=0)
      >>> choice.winner, choice.trainings
      ('C = 1', 10)
    """
    if not candidates:
        raise ValueError(f"{model}: no candidate settings; expected at least one.")
    if mode not in ("max", "min"):
        raise ValueError(f"mode is {mode!r}; expected 'max' or 'min'.")
    if len(candidates) == 1:
        [name] = candidates
        return Choice(model, split.repeat, split.fold, name, {name: ()}, mode)
    divisions = inner_folds(cohort, split, folds, seed=seed)
    tested = set(split.test)
    for inner in divisions:
        check_leakage(cohort, inner)
        if tested & {*inner.train, *inner.validation}:
            raise ValueError(
                f"{model}: the inner folds of the split hold cases of its test part; draw the splits again."
            )
    scores = {
        name: tuple(_number(score(settings, inner)) for inner in divisions) for name, settings in candidates.items()
    }
    means = {name: _mean(values) for name, values in scores.items()}
    usable = {name: mean for name, mean in means.items() if mean is not None}
    if not usable:
        raise ValueError(
            f"{model}, repeat {split.repeat}, fold {split.fold}: none of {counted(len(candidates), 'candidate')} has a "
            f"score in every one of {counted(len(divisions), 'inner fold')}. Take fewer folds, or settings that "
            "converge."
        )
    sign = 1.0 if mode == "max" else -1.0
    winner = max(usable, key=lambda name: sign * usable[name])  # the first of equals
    return Choice(model, split.repeat, split.fold, winner, scores, mode)


def write_choice(path: str | Path, choice: Choice) -> None:
    """Write a choice as JSON, whole or not at all."""
    write_json(path, choice)


def read_choice(path: str | Path) -> Choice:
    """A choice from the file that `write_choice` wrote.

    Raises:
      ValueError: it is no such file.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        scores = {name: tuple(values) for name, values in content.pop("scores").items()}
        return Choice(**content, scores=scores)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path}: no file of a choice ({error}); expected what `write_choice` writes.") from None


def winners(choices: Sequence[Choice]) -> dict[str, dict[str, int]]:
    """In how many outer folds which settings won, by model, the most frequent first.

    Raises:
      ValueError: models that did not have the same number of trainings.

    Example:
      >>> tried = {"wide": (), "deep": ()}
      >>> winners([Choice("add", 0, fold, name, tried) for fold, name in enumerate(["wide", "deep", "wide"])])
      {'add': {'wide': 2, 'deep': 1}}
    """
    costs: dict[str, set[int]] = {}
    found: dict[str, dict[str, int]] = {}
    for choice in choices:
        costs.setdefault(choice.model, set()).add(len(choice.scores))
        won = found.setdefault(choice.model, {})
        won[choice.winner] = won.get(choice.winner, 0) + 1
    if len({number for numbers in costs.values() for number in numbers}) > 1:
        said = ", ".join(f"{model}: {listed(sorted(numbers))}" for model, numbers in costs.items())
        raise ValueError(f"models chose among different numbers of settings ({said}); expected one budget for all.")
    return {model: dict(sorted(won.items(), key=lambda item: (-item[1], item[0]))) for model, won in found.items()}


def _number(value: float) -> float | None:
    """None for what JSON cannot hold."""
    value = float(value)
    return value if math.isfinite(value) else None


def _mean(values: Sequence[float | None]) -> float | None:
    numbers = [value for value in values if value is not None]
    return sum(numbers) / len(numbers) if numbers and len(numbers) == len(values) else None
