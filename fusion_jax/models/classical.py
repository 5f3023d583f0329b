"""Classical models on tables: the baselines that every fused network has to stand beside.

Linear models are stored as numbers. Trees are grown again, from the recorded training rows and the seed, when they are
first asked for in a process: nothing is unpickled, and scikit-learn grows the same trees from the same rows.
"""

import dataclasses
import functools
import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int

from fusion_jax.arrays import Key
from fusion_jax.data.cohort import Cohort
from fusion_jax.data.splits import Split
from fusion_jax.models.cox import fit_cox, partial_likelihood
from fusion_jax.models.features import FeatureSet, TabularFeatures, feature_sources, fit_features
from fusion_jax.models.measurements import MEASUREMENTS, Measurement
from fusion_jax.models.recipe import Report, write_recipe
from fusion_jax.models.target import Survival, Target, Task, check_labels, survival_of, target_of
from fusion_jax.records import atomic_path, write_json
from fusion_jax.wording import counted

__all__ = ["ClassicalRecipe", "Family"]

Family = Literal["logistic-regression", "elastic-net", "random-forest", "gradient-boosting", "cox"]

STRENGTHS = (0.001, 0.01, 0.1, 1.0, 10.0)
"""Inverse penalties C that are tried; of a Cox model the penalties 1 / C."""

FOLDS = 5

FITTED, ROWS, DIVISION = "fitted.json", "training_rows.npz", "division.json"

logger = logging.getLogger("fusion_jax.models.classical")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassicalRecipe:
    """A classical model of clinical data, of measurements inside a mask, or of both.

    The model is fitted twice: to the training part, which scores the validation part, and to both, which scores
    everybody else. A network spends its validation part on choosing the epoch; here it is free to be learned from.

    Attributes:
      name: in the table of recipes.
      family: kind of model.
      features: what it reads.
      columns: declarations of clinical columns; suggested by default.
      selection: `alpha` and `correction` of the chi-squared test by which the training cases choose among `columns`;
        all are read by default.
      measurements: taken inside masks.
      images: that measurements are taken on; all by default.
      table: path of a CSV of measurements by `case_id`, such as radiomic features.
      unit: what one row of training is: a case, or a patient with the mean features of its training cases, so that
        patients with many slices or visits count once. Cases are predicted one by one in either way.
      screen: "lasso" shows trees only what logistic regression with an absolute penalty keeps of the training rows, at
        the penalty with the least loss in inner cross-validation; "lasso-1se" at the strongest one whose loss is within
        a standard error of that, which keeps fewer.
      strength: inverse penalty C of linear models; chosen by inner cross-validation over patients where None.
      l1_share: share of the absolute penalty of an elastic net; 1 is the LASSO.
      trees: of a forest, and at most of boosting.
      depth: of boosted trees.
      leaf: least cases of a leaf.
      balanced: weigh classes inversely to their frequency.
      task: what is predicted.
    """

    name: str
    family: Family
    features: FeatureSet = "clinical"
    columns: tuple[Mapping[str, Any], ...] | None = None
    selection: Mapping[str, Any] | None = None
    measurements: tuple[Measurement, ...] = MEASUREMENTS
    images: tuple[str, ...] = ()
    table: str | None = None
    unit: Literal["case", "patient"] = "case"
    screen: Literal["none", "lasso", "lasso-1se"] = "none"
    strength: float | None = None
    l1_share: float = 0.5
    trees: int = 500
    depth: int = 3
    leaf: int = 2
    balanced: bool = False
    task: Task = "auto"

    def __post_init__(self) -> None:
        for name, least in (("trees", 1), ("depth", 1), ("leaf", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{self.name}: {name} is {getattr(self, name)}; expected at least {least}.")
        if self.strength is not None and not self.strength > 0:
            raise ValueError(f"{self.name}: strength is {self.strength}; expected a positive number.")
        if self.screen != "none" and self.family not in ("random-forest", "gradient-boosting"):
            raise ValueError(f"{self.name}: screen is {self.screen!r}, which is for trees; take 'elastic-net' instead.")
        if not 0 <= self.l1_share <= 1:
            raise ValueError(f"{self.name}: l1_share is {self.l1_share}; expected a share from 0 to 1.")

    def arguments(self) -> dict[str, Any]:
        """What differs from the defaults."""
        from fusion_jax.models.registry import arguments_of

        return arguments_of(self)

    def sources(self, cohort: Cohort) -> tuple[str, ...]:
        """Sources that it reads."""
        return feature_sources(cohort, self.features, self.images, self.table)

    def target(self, cohort: Cohort) -> Target:
        """What it predicts of a cohort.

        Raises:
          ValueError: a Cox model without times, or another without a label.
        """
        task = self.task
        if task == "auto" and self.family == "cox":
            task = "survival"
        target = target_of(cohort, task)
        if (target.kind == "survival") != (self.family == "cox"):
            wanted = "a label" if target.kind == "survival" else "time and event (task 'survival')"
            raise ValueError(
                f"{self.name} on {cohort.name}: it predicts {wanted}, and the task is {target.kind}. Choose "
                f"{'cox' if target.kind == 'survival' else 'logistic-regression'}, or another `task`."
            )
        return target

    def fit(self, cohort: Cohort, split: Split, key: Key, folder: Path, *, report: Report | None = None) -> None:
        """Fit to the training cases; see `Recipe.fit`."""
        started = time.perf_counter()
        target = self.target(cohort)
        self.sources(cohort)
        seed = _seed(key)
        rows = split._replace(test=()).rows(cohort)
        check_labels(cohort, target, np.r_[rows.train, rows.validation])
        fits = {"all": (*split.train, *split.validation)}
        if split.validation:
            fits["train"] = split.train
        stored: dict[str, Any] = {}
        arrays: dict[str, np.ndarray] = {}
        for which, cases in fits.items():
            index = {case: row for row, case in enumerate(cohort.case_id)}
            chosen = np.array([index[case] for case in cases], np.int64)
            features = fit_features(
                cohort,
                cases,
                fold=f"r{split.repeat}_f{split.fold}",
                features=self.features,
                columns=self.columns,
                selection=self.selection,
                measurements=self.measurements,
                images=self.images,
                table=self.table,
            )
            x = features.apply(cohort, chosen, cases)
            if self.unit == "patient":
                chosen, x = _one_row_a_patient(cohort, target, chosen, x)
            patients = cohort.patient_id[chosen]
            if target.kind == "survival":
                survival = survival_of(cohort, chosen)
                fitted = _fit_cox(x, survival, patients, self.strength, seed)
            else:
                y = cohort.label[chosen]
                _check_classes(y, target, cohort.name)
                if self.family in ("logistic-regression", "elastic-net"):
                    fitted = _fit_linear(self, x, y, patients, seed)
                else:
                    fitted = {"seed": seed}
                    if self.screen != "none":
                        fitted |= _kept_by_lasso(self, x, y, patients, seed)
                        x = x[:, fitted["kept"]]
                    arrays |= {f"{which}_x": x, f"{which}_y": y}
            stored[which] = {"features": features.to_json(), "fitted": fitted, "outputs": list(features.names)}
        if arrays:
            with atomic_path(folder / ROWS) as path, path.open("wb") as file:
                np.savez_compressed(file, allow_pickle=False, **arrays)
        write_json(folder / DIVISION, {"train": list(split.train), "validation": list(split.validation)})
        write_json(folder / FITTED, stored)
        main = stored["all"]
        facts = {
            "initialisation": "none",
            "parameters": sum(np.size(value) for value in main["fitted"].get("coefficients", [])) or None,
            "features": len(main["outputs"]),
            "cases": {"train": len(split.train), "validation": len(split.validation)},
            "strength": main["fitted"].get("strength"),
            "seconds": time.perf_counter() - started,
        }
        write_recipe(folder, self, cohort, target=target, facts=facts)

    def predict(self, folder: Path, cohort: Cohort, rows: Int[np.ndarray, "n"]) -> Float[np.ndarray, "n k"]:
        """Predictions of rows; see `Recipe.predict`."""
        folder = Path(folder)
        stored = json.loads((folder / FITTED).read_text(encoding="utf-8"))
        division = json.loads((folder / DIVISION).read_text(encoding="utf-8"))
        rows = np.asarray(rows)
        held = set(division["validation"]) if "train" in stored else set()
        by_training = np.array([cohort.case_id[int(row)] in held for row in rows], bool)
        parts, places = [], []
        for which, mask in (("all", ~by_training), ("train", by_training)):
            if not mask.any():
                continue
            cases = division["train"] if which == "train" else division["train"] + division["validation"]
            features = TabularFeatures.from_json(stored[which]["features"])
            x = features.apply(cohort, rows[mask], cases)
            parts.append(_predict(self, folder, which, stored[which]["fitted"], x))
            places.append(np.flatnonzero(mask))
        return np.concatenate(parts)[np.argsort(np.concatenate(places))]


def _predict(
    recipe: ClassicalRecipe, folder: Path, which: str, fitted: Mapping[str, Any], x: Float[np.ndarray, "n t"]
) -> Float[np.ndarray, "n k"]:
    from scipy.special import expit, softmax

    if recipe.family in ("logistic-regression", "elastic-net", "cox"):
        scores = x @ np.array(fitted["coefficients"], float).reshape(-1, x.shape[1]).T + np.array(fitted["intercept"])
        if recipe.family == "cox":
            return scores
        return np.c_[expit(-scores), expit(scores)] if scores.shape[1] == 1 else softmax(scores, axis=1)
    path = folder / ROWS
    settings = json.dumps([recipe.name, recipe.arguments()], sort_keys=True)
    model: Any = _grown(settings, str(path), path.stat().st_mtime_ns, which, int(fitted["seed"]))
    if "kept" in fitted:
        x = x[:, fitted["kept"]]
    return np.asarray(model.predict_proba(x), float)


@functools.lru_cache(maxsize=8)
def _grown(settings: str, path: str, _changed: int, which: str, seed: int) -> Any:
    """The trees of recorded rows."""
    from fusion_jax.models.registry import make_recipe

    recipe: Any = make_recipe(*json.loads(settings))
    with np.load(path, allow_pickle=False) as file:
        x, y = file[f"{which}_x"], file[f"{which}_y"]
    model = _trees(recipe, seed)
    return model.fit(x, y)


def _trees(recipe: ClassicalRecipe, seed: int) -> Any:
    from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier

    weight = "balanced" if recipe.balanced else None
    if recipe.family == "random-forest":
        return RandomForestClassifier(
            recipe.trees, min_samples_leaf=recipe.leaf, class_weight=weight, random_state=seed, n_jobs=1
        )
    # Without early stopping, which would set cases aside that other baselines learn from.
    options: dict[str, Any] = {"early_stopping": False, "random_state": seed}
    return HistGradientBoostingClassifier(
        max_iter=recipe.trees,
        max_depth=recipe.depth,
        learning_rate=BOOSTING_RATE,
        min_samples_leaf=max(recipe.leaf, LEAST_BOOSTED),
        class_weight=weight,
        **options,
    )


BOOSTING_RATE, LEAST_BOOSTED = 0.05, 5


def _fit_linear(
    recipe: ClassicalRecipe, x: np.ndarray, y: np.ndarray, patients: np.ndarray, seed: int
) -> dict[str, Any]:
    strength = recipe.strength or _best_strength(recipe, x, y, patients, seed)
    model = _linear(recipe, strength).fit(x, y)
    return {
        "strength": strength,
        "coefficients": model.coef_.tolist(),
        "intercept": model.intercept_.tolist(),
        "seed": seed,
    }


def _best_strength(recipe: ClassicalRecipe, x: np.ndarray, y: np.ndarray, patients: np.ndarray, seed: int) -> float:
    """The inverse penalty with the smallest loss on held-out training patients, or the simplest that is as good."""
    folds = _inner_folds(y, patients, seed)
    if not folds:
        return 1.0
    losses = np.array([[_loss(recipe, c, x, y, train, held) for train, held in folds] for c in STRENGTHS])
    means = losses.mean(axis=1)
    best = int(np.argmin(means))
    if recipe.screen != "lasso-1se" or len(folds) < 2:
        return STRENGTHS[best]
    error = losses[best].std(ddof=1) / np.sqrt(len(folds))
    return STRENGTHS[int(np.flatnonzero(means <= means[best] + error)[0])]


def _kept_by_lasso(
    recipe: ClassicalRecipe, x: np.ndarray, y: np.ndarray, patients: np.ndarray, seed: int
) -> dict[str, Any]:
    """Columns with a coefficient, at the best penalty or the next weaker one that leaves any."""
    best = _best_strength(recipe, x, y, patients, seed)
    for strength in (c for c in STRENGTHS if c >= best):
        found = np.flatnonzero(np.any(_linear(recipe, strength).fit(x, y).coef_ != 0, axis=0))
        if len(found):
            return {"kept": found.tolist(), "strength": strength}
    return {"kept": list(range(x.shape[1])), "strength": None}


def _one_row_a_patient(
    cohort: Cohort, target: Target, chosen: Int[np.ndarray, "n"], x: Float[np.ndarray, "n t"]
) -> tuple[Int[np.ndarray, "p"], Float[np.ndarray, "p t"]]:
    """A row of every patient, for outcome and name, and the mean features of its rows."""
    patients, first, code = np.unique(cohort.patient_id[chosen], return_index=True, return_inverse=True)
    outcomes = np.stack(survival_of(cohort, chosen)) if target.kind == "survival" else cohort.label[chosen][None]
    differ = np.flatnonzero((outcomes != outcomes[:, first[code]]).any(axis=0))
    if len(differ):
        raise ValueError(
            f"{cohort.name}: cases of patient {patients[code[differ[0]]]} differ in the outcome, so that no row can "
            "stand for the patient. Train on cases (unit 'case')."
        )
    sums = np.zeros((len(patients), x.shape[1]))
    np.add.at(sums, code, x)
    return chosen[first], sums / np.bincount(code)[:, None]


def _linear(recipe: ClassicalRecipe, strength: float) -> Any:
    from sklearn.linear_model import LogisticRegression

    weight = "balanced" if recipe.balanced else None
    if recipe.screen != "none":
        return LogisticRegression(
            C=strength, l1_ratio=1.0, solver="liblinear", class_weight=weight, max_iter=1000, random_state=0
        )
    if recipe.family == "elastic-net":
        return LogisticRegression(
            C=strength,
            l1_ratio=recipe.l1_share,
            solver="saga",
            class_weight=weight,
            max_iter=20_000,
            tol=1e-5,
            random_state=0,
        )
    return LogisticRegression(C=strength, class_weight=weight, max_iter=10_000)


def _loss(
    recipe: ClassicalRecipe, strength: float, x: np.ndarray, y: np.ndarray, train: np.ndarray, held: np.ndarray
) -> float:
    """Mean log loss of held-out cases."""
    model = _linear(recipe, strength).fit(x[train], y[train])
    place = {code: number for number, code in enumerate(model.classes_.tolist())}
    probabilities = model.predict_proba(x[held])
    own = [probabilities[row, place[code]] if code in place else 0.0 for row, code in enumerate(y[held].tolist())]
    return float(-np.log(np.maximum(own, 1e-15)).mean())


def _inner_folds(y: np.ndarray, patients: np.ndarray, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Folds of the training patients, stratified; none where a class has a single patient."""
    import warnings

    from sklearn.model_selection import StratifiedGroupKFold

    fewest = min(len(set(patients[y == code].tolist())) for code in np.unique(y))
    if fewest < 2:
        return []
    folds = StratifiedGroupKFold(min(FOLDS, fewest), shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class")
        found = list(folds.split(np.zeros(len(y)), y, patients))
    # A fold whose training part lacks a class cannot be fitted.
    return [(train, held) for train, held in found if len(held) and len(np.unique(y[train])) == len(np.unique(y))]


def _fit_cox(
    x: np.ndarray, survival: Survival, patients: np.ndarray, strength: float | None, seed: int
) -> dict[str, Any]:
    when, event = survival
    if strength is None:
        folds = [(train, held) for train, held in _inner_folds(event.astype(int), patients, seed) if event[train].any()]
        gains = [sum(_held_out_likelihood(x, when, event, train, 1 / c) for train, _ in folds) for c in STRENGTHS]
        strength = STRENGTHS[int(np.argmax(gains))] if folds else 1.0
    beta = fit_cox(x, when, event, penalty=1 / strength)
    return {"strength": strength, "coefficients": [beta.tolist()], "intercept": [0.0], "seed": seed}


def _held_out_likelihood(
    x: np.ndarray, when: np.ndarray, event: np.ndarray, train: np.ndarray, penalty: float
) -> float:
    """What held-out cases add to the partial likelihood, in which they cannot be judged alone (Verweij 1993)."""
    beta = fit_cox(x[train], when[train], event[train], penalty=penalty)
    whole = partial_likelihood(beta, x, when, event).value
    return whole - partial_likelihood(beta, x[train], when[train], event[train]).value


def _check_classes(y: Int[np.ndarray, "n"], target: Target, name: str) -> None:
    lacking = [word for code, word in enumerate(target.classes) if not (y == code).any()]
    if lacking:
        raise ValueError(
            f"{name}: no training case of class {lacking[0]!r} among {counted(len(y), 'case')}; expected some of every "
            "class. Draw fewer folds, or merge rare classes."
        )


def _seed(key: Key) -> int:
    """A seed for scikit-learn from a key."""
    import jax

    return int(jax.random.bits(key, dtype="uint32")) % (2**31)
