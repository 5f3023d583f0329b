r"""Probabilities made right on validation rows: Platt scaling, temperature, isotonic regression, another prevalence.

All but isotonic regression are a straight line on the logit :math:`l = \log p / (1 - p)`:

.. math:: \operatorname{logit} p' = a + b\, l

with :math:`a` and :math:`b` free (Platt), :math:`a = 0, b = 1/T` (temperature), or :math:`b = 1` and
:math:`a` the change of the log prior odds (prevalence). The order of cases stays, and with it the AUC, where b > 0.

Fitted on validation rows only: a map that has seen the rows on which it is judged makes any model look calibrated.
"""

from collections.abc import Callable, Hashable
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Num, Shaped

from fusion_jax.evaluation.rows import Labels, both_classes, positives
from fusion_jax.wording import counted

__all__ = [
    "METHODS",
    "LogisticFit",
    "Method",
    "Recalibrated",
    "Recalibration",
    "ValidationRows",
    "apply",
    "as_logits",
    "check_prevalence",
    "check_probabilities",
    "column_products",
    "isotonic",
    "logistic_fit",
    "newton_step",
    "platt",
    "prior_shift",
    "recalibrate",
    "separated",
    "temperature",
]

Method = Literal["platt", "temperature", "isotonic"]

CLIP = 1e-6
"""Fits see probabilities no closer to 0 and 1: a forest's exact 0 is a small number, not an infinite logit."""

STEPS = 50
FEW_EVENTS, FEW_FOR_ISOTONIC = 20, 100
"""Cases of the smaller class below which a fitted line, or a fitted step function, is mostly noise."""


class LogisticFit(NamedTuple):
    """Logistic regression of labels on columns.

    Attributes:
      coefficients: one a column, shape `(k,)`; NaN where they are infinite or not determined.
      converged: whether the last step changed no linear predictor by more than 1e-8.
    """

    coefficients: Float[np.ndarray, "k"]
    converged: bool


class Recalibration(NamedTuple):
    """A fitted map from probability to probability, in plain numbers.

    Attributes:
      method: "platt", "temperature", "isotonic" or "prevalence".
      intercept, slope: of the line on the logit; 0 and 1 for isotonic regression.
      steps: (probability, recalibrated) corners between which isotonic regression interpolates; () for lines.
      n, events: rows and positive rows that it was fitted on; 0 for "prevalence", which is not fitted.
    """

    method: str
    intercept: float
    slope: float
    steps: tuple[tuple[float, float], ...] = ()
    n: int = 0
    events: int = 0


class ValidationRows(NamedTuple):
    """What a recalibration may see: predictions for rows that neither trained the model nor test it.

    Attributes:
      labels: 0 or 1, shape `(v,)`.
      probabilities: of label 1, by the model of the row's fold, shape `(v,)`.
      folds: fold (or any code of repeat, fold and seed) whose model made the prediction, shape `(v,)`.
    """

    labels: Int[np.ndarray, "v"] | Bool[np.ndarray, "v"]
    probabilities: Float[np.ndarray, "v"]
    folds: Shaped[np.ndarray, "v"]


class Recalibrated(NamedTuple):
    """Recalibrated test rows.

    Attributes:
      probabilities: shape `(n,)`.
      fits: fold to its map.
      warnings: what a reader should know about the fits, as sentences.
    """

    probabilities: Float[np.ndarray, "n"]
    fits: dict[Hashable, Recalibration]
    warnings: tuple[str, ...]


# What everything on probabilities starts with.


def check_probabilities(
    labels: Labels, probabilities: Num[np.ndarray, "*m n"], *, purpose: str = "calibration", one_class: bool = False
) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "*m n"]]:
    """Labels and probabilities in double precision, or an error that says why they are none.

    Args:
      labels: 0 or 1.
      probabilities: of label 1, for one model or several.
      purpose: what they are for, in messages.
      one_class: whether labels of a single class will do.

    Raises:
      ValueError: lengths differ, there are no rows, labels other than 0 and 1, one class only, or values that are
        missing or outside [0, 1].

    Example:
      >>> check_probabilities(np.array([0, 1]), np.array([-1.5, 2.0]))
      Traceback (most recent call last):
        ...
      ValueError: scores are no probabilities: 2 of 2 lie outside [0, 1], from -1.5 to 2; calibration has no meaning for
      them. Give probabilities; a logit becomes one by 1 / (1 + exp(-logit)).
    """
    wanted = (positives if one_class else lambda found: both_classes(found, purpose))(labels).astype(float)
    found = np.asarray(probabilities, float)
    if found.ndim == 0 or found.shape[-1] != len(wanted) or found.size == 0:
        raise ValueError(
            f"probabilities: shape {found.shape} beside {counted(len(wanted), 'label')}; expected one for every label."
        )
    missing = int(np.isnan(found).sum())
    if missing:
        raise ValueError(
            f"probabilities: {missing} of {found.size} are NaN. Leave the cases out for every model, or predict them."
        )
    outside = int(((found < 0) | (found > 1)).sum())
    if outside:
        raise ValueError(
            f"scores are no probabilities: {outside} of {found.size} lie outside [0, 1], from {found.min():.4g} to "
            f"{found.max():.4g}; {purpose} has no meaning for them. Give probabilities; a logit becomes one by "
            "1 / (1 + exp(-logit))."
        )
    return wanted, found


def as_logits(probabilities: Float[np.ndarray, "*n"], clip: float = CLIP) -> Float[np.ndarray, "*n"]:
    """Log odds of probabilities, kept `clip` away from 0 and 1.

    Example:
      >>> as_logits(np.array([0.5, 0.9, 1.0])).round(2).tolist()
      [0.0, 2.2, 13.82]
    """
    inside = np.clip(probabilities, clip, 1 - clip)
    return np.log(inside) - np.log1p(-inside)


# Logistic regression, the same step on the host in float64 and in JAX for every resample.


def newton_step(
    coefficients: Any,
    design: Any,
    products: Any,
    label: Any,
    weights: Any,
    offset: Any,
    ridge: Any,
    solve: Callable[[Any, Any], Any],
    xp: Any,
) -> tuple[Any, Any]:
    r"""One damped Newton step of a weighted, ridged logistic regression, and its reach.

    .. math:: \beta \leftarrow \beta + \frac{\log(1 + M)}{M} \Delta, \qquad
              \Delta = (X^T W X + \lambda I)^{-1} (X^T w (y - p) - \lambda \beta), \qquad M = \max_i |x_i \Delta|

    The damping makes every step a descent from any start, and vanishes near the optimum, where the step is Newton's:
    the logistic loss is self-concordant with :math:`|f'''| \le M f''`.

    Args:
      coefficients: (k,); design: (n, k); products: `column_products(design)`; label, weights, offset: (n,); ridge: ().
      solve: `solve(matrix, vector)` for a positive definite matrix.
      xp: the module of the arrays, `numpy` or `jax.numpy`.

    Returns:
      The next coefficients and M.

    References:
      Sun & Tran-Dinh 2019, "Generalized self-concordant functions", the damped step for order 2.
    """
    columns = design.shape[1]
    linear = design @ coefficients + offset
    probability = (1 + xp.tanh(linear / 2)) / 2
    gradient = (weights * (label - probability)) @ design - ridge * coefficients
    # Over many resamples, and with the products computed once, this is one matrix product.
    curvature = ((weights * probability * (1 - probability)) @ products).reshape(columns, columns)
    step = solve(curvature + ridge * xp.eye(columns, dtype=design.dtype), gradient)
    reach = xp.max(xp.abs(design @ step))
    damping = xp.where(reach > 1e-6, xp.log1p(reach) / xp.maximum(reach, 1e-6), 1.0)
    return coefficients + damping * step, reach


def column_products(design: Any) -> Any:
    """Products of every two columns, shape `(n, k * k)`: what the curvature of a logistic loss is a weighted sum of."""
    rows, columns = design.shape
    return (design[:, :, None] * design[:, None, :]).reshape(rows, columns * columns)


def logistic_fit(
    label: Float[np.ndarray, "n"],
    design: Float[np.ndarray, "n k"],
    *,
    weights: Float[np.ndarray, "n"] | None = None,
    offset: Float[np.ndarray, "n"] | None = None,
    ridge: float = 0.0,
) -> LogisticFit:
    """Logistic regression by maximum likelihood, or penalised by half the ridge times the squared coefficients.

    Args:
      label: 0 to 1; fractions are allowed, as in Platt's targets.
      design: columns, with one of ones where an intercept is wanted.
      weights: of rows; ones by default.
      offset: added to the linear predictor as it is.
      ridge: penalty on all coefficients.

    Returns:
      The fit; NaN coefficients where the maximum is at infinity or not unique.

    Example:
      >>> fit = logistic_fit(np.array([0.0, 1.0, 1.0, 1.0]), np.ones((4, 1)))
      >>> round(float(fit.coefficients[0]), 4)  # log(3)
      1.0986
    """
    from scipy.linalg import cho_factor, cho_solve

    def solve(matrix: Any, vector: Any) -> Any:
        return cho_solve(cho_factor(matrix), vector)

    weights = np.ones_like(label) if weights is None else weights
    offset = np.zeros_like(label) if offset is None else offset
    coefficients, products = np.zeros(design.shape[1]), column_products(design)
    for _ in range(STEPS):
        try:
            coefficients, reach = newton_step(coefficients, design, products, label, weights, offset, ridge, solve, np)
        except np.linalg.LinAlgError:
            break
        if reach <= 1e-8:
            return LogisticFit(coefficients, True)
    return LogisticFit(np.full(design.shape[1], np.nan), False)


def separated(labels: Num[np.ndarray, "n"], scores: Float[np.ndarray, "n"]) -> bool:
    """Whether a threshold on the scores parts the classes, up to ties on it: then no finite slope fits best.

    Example:
      >>> separated(np.array([0, 0, 1]), np.array([0.1, 0.4, 0.4]))
      True
    """
    negative, positive = scores[labels == 0], scores[labels == 1]
    return bool(negative.max() <= positive.min() or positive.max() <= negative.min())


# The maps.


def platt(labels: Labels, probabilities: Float[np.ndarray, "n"]) -> Recalibration:
    r"""Platt scaling: logistic regression of the label on the logit.

    The targets are Platt's, :math:`(n_1 + 1)/(n_1 + 2)` for positives and :math:`1/(n_0 + 2)` for negatives, so that
    the line stays finite where the classes are separated and is pulled in where there are few rows.

    Args:
      labels: 0 or 1, of validation rows.
      probabilities: of label 1.

    Raises:
      ValueError: no probabilities, one class only, or one probability for all rows.

    Example:
      >>> rng = np.random.default_rng(0)
      >>> truth = rng.normal(size=4000)
      >>> labels = (rng.random(4000) < 1 / (1 + np.exp(-truth))).astype(int)
      >>> fit = platt(labels, 1 / (1 + np.exp(-2 * truth)))  # twice too sure
      >>> round(fit.slope, 1)
      0.5

    References:
      Platt 1999, "Probabilistic outputs for support vector machines", section 2.2.
    """
    label, probability = check_probabilities(labels, probabilities, purpose="recalibration")
    _check_varied(probability)
    positives, negatives = label.sum(), (1 - label).sum()
    target = np.where(label == 1, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    logits = as_logits(probability)
    fit = logistic_fit(target, np.stack([np.ones_like(logits), logits], axis=1))
    return _line("platt", fit.coefficients[0], fit.coefficients[1], label)


def temperature(labels: Labels, probabilities: Float[np.ndarray, "n"]) -> Recalibration:
    """Temperature scaling: one factor on the logit, by maximum likelihood; 0.5 stays 0.5.

    Args:
      labels: 0 or 1, of validation rows.
      probabilities: of label 1.

    Returns:
      The map; its temperature is 1 / `slope`.

    Raises:
      ValueError: no probabilities, one class only, or no finite positive temperature fits best: the rows are told apart
        without an error at 0.5, or the scores point the wrong way.

    Example:
      >>> fit = temperature(np.array([0, 1, 1, 0, 1]), np.array([0.01, 0.99, 0.99, 0.99, 0.99]))
      >>> round(1 / fit.slope, 2)  # right in four of five
      3.31

    References:
      Guo et al. 2017, "On Calibration of Modern Neural Networks", section 4.2.
    """
    label, probability = check_probabilities(labels, probabilities, purpose="recalibration")
    logits = as_logits(probability)
    sides = (2 * label - 1) * logits
    if sides.sum() <= 0:
        raise ValueError(
            f"temperature: on the {counted(len(label), 'validation row')} the probabilities point the wrong way or "
            "nowhere, and the best temperature is infinite. Use `platt`, which can move and turn them, and look for "
            "swapped labels."
        )
    if (sides >= 0).all():
        raise ValueError(
            f"temperature: no error at 0.5 among the {counted(len(label), 'validation row')}, so the best temperature "
            "is 0. Use `platt`, whose targets keep the slope finite, or more validation rows."
        )
    slope = logistic_fit(label, logits[:, None]).coefficients[0]
    return _line("temperature", 0.0, slope, label)


def isotonic(labels: Labels, probabilities: Float[np.ndarray, "n"]) -> Recalibration:
    """Isotonic regression: the best rising step function, interpolated between its corners.

    It merges cases into ties and may answer exactly 0 or 1, so AUC and log loss change; it needs some hundred cases of
    each class.

    Raises:
      ValueError: no probabilities, or one class only.

    Example:
      >>> fit = isotonic(np.array([0, 1, 0, 1]), np.array([0.1, 0.2, 0.3, 0.4]))
      >>> apply(fit, np.array([0.05, 0.25, 0.9])).tolist()
      [0.0, 0.5, 1.0]

    References:
      Zadrozny & Elkan 2002, "Transforming classifier scores into accurate multiclass probability estimates".
    """
    from sklearn.isotonic import IsotonicRegression

    label, probability = check_probabilities(labels, probabilities, purpose="recalibration")
    fit = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip").fit(probability, label)
    corners = zip(fit.X_thresholds_.tolist(), fit.y_thresholds_.tolist(), strict=True)
    return Recalibration("isotonic", 0.0, 1.0, tuple(corners), len(label), int(label.sum()))


def prior_shift(given: float, wanted: float) -> Recalibration:
    r"""Probabilities for a population of another prevalence, where the disease looks the same in both.

    .. math:: \frac{p'}{1 - p'} = \frac{p}{1 - p} \cdot \frac{\pi' / (1 - \pi')}{\pi / (1 - \pi)}

    Right if the probabilities are calibrated at the prevalence `given`, and cases and controls are like those there
    (prior shift). A model trained with balanced class weights answers as if the prevalence were 0.5.

    Args:
      given: prevalence for which the probabilities hold, between 0 and 1.
      wanted: prevalence of the population they are for.

    Raises:
      ValueError: a prevalence outside (0, 1).

    Example:
      >>> apply(prior_shift(0.5, 0.1), np.array([0.5, 0.9])).round(3).tolist()
      [0.1, 0.5]

    References:
      Saerens, Latinne & Decaestecker 2002, Eq. 2.4, both priors being known.
    """
    odds = []
    for name, prevalence in (("given", given), ("wanted", wanted)):
        check_prevalence(prevalence, name)
        odds.append(np.log(prevalence) - np.log1p(-prevalence))
    return Recalibration("prevalence", float(odds[1] - odds[0]), 1.0)


def check_prevalence(prevalence: float, name: str = "prevalence") -> None:
    """Raise ValueError unless a prevalence lies between 0 and 1.

    Example:
      >>> check_prevalence(20)
      Traceback (most recent call last):
        ...
      ValueError: prevalence: 20; expected a fraction between 0 and 1, such as 0.02 for two in a hundred.
    """
    if not 0 < prevalence < 1:
        raise ValueError(
            f"{name}: {prevalence:g}; expected a fraction between 0 and 1, such as 0.02 for two in a hundred."
        )


METHODS: dict[str, Callable[..., Recalibration]] = {"platt": platt, "temperature": temperature, "isotonic": isotonic}
"""Maps that are fitted, by name."""


def apply(fit: Recalibration, probabilities: Float[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
    """Recalibrated probabilities. A line of positive slope keeps the order of the cases, exact 0 and 1 included.

    Example:
      >>> apply(Recalibration("platt", 0.0, 2.0), np.array([0.5, 0.75])).tolist()
      [0.5, 0.9]
    """
    from scipy.special import expit

    found = np.asarray(probabilities, float)
    if fit.steps:
        corners = np.array(fit.steps)
        return np.interp(found, corners[:, 0], corners[:, 1])
    # The smallest positive number is the clip here: what is applied need not be robust, and ties would change the AUC.
    tiny, one = np.finfo(found.dtype).tiny, np.nextafter(1.0, 0.0)
    logits = np.log(np.maximum(found, tiny)) - np.log1p(-np.minimum(found, one))
    return np.asarray(expit(fit.intercept + fit.slope * logits))


def recalibrate(
    probabilities: Float[np.ndarray, "n"],
    folds: Shaped[np.ndarray, "n"],
    *,
    validation: ValidationRows | None,
    method: Method = "platt",
) -> Recalibrated:
    """Test probabilities recalibrated fold by fold, each with the map fitted on the validation rows of its fold.

    Args:
      probabilities: of test rows.
      folds: fold (or code of repeat, fold and seed) of each test row.
      validation: rows to fit on; None where there are none, which is refused.
      method: name of the map.

    Raises:
      ValueError: no validation rows, a fold without any, one class only, an unknown method; or what the method refuses.

    Example:
      >>> rows = ValidationRows(np.array([0, 1, 0, 1]), np.array([0.1, 0.2, 0.3, 0.4]), np.zeros(4, int))
      >>> done = recalibrate(np.array([0.25, 0.9]), np.zeros(2, int), validation=rows, method="isotonic")
      >>> done.probabilities.tolist()
      [0.5, 1.0]
      >>> done.warnings[0]
      'Isotonic recalibration was fitted on few validation rows in 1 of 1 fold, fewest in fold 0: 4, 2 of the smaller
      class; below 100 a step function is mostly noise.'
    """
    if method not in METHODS:
        raise ValueError(f"method: {method!r}; expected one of {', '.join(METHODS)}.")
    if validation is None or len(validation.labels) == 0:
        raise ValueError(
            "recalibration: there are no validation rows. Fitted on the test rows themselves it would make any model "
            "look calibrated; write the validation predictions of each fold into the table (split `validation`)."
        )
    _, test = check_probabilities(np.zeros(len(folds), int), probabilities, purpose="recalibration", one_class=True)
    done, fits = np.empty(len(test)), {}
    for fold in np.unique(folds).tolist():
        rows = validation.folds == fold
        labels = validation.labels[rows]
        if len(np.unique(labels)) < 2:
            found = (
                f"only class {int(labels[0])} occurs in its {counted(len(labels), 'row')}"
                if rows.any()
                else "it has none"
            )
            raise ValueError(
                f"recalibration: fold {fold} needs validation rows of both classes, and {found}. Set more patients "
                "aside for validation, or judge the raw probabilities."
            )
        fits[fold] = METHODS[method](labels, validation.probabilities[rows])
        done[folds == fold] = apply(fits[fold], test[folds == fold])
    return Recalibrated(done, fits, _warnings(fits))


def _warnings(fits: dict[Hashable, Recalibration]) -> tuple[str, ...]:
    found = []
    smaller = {fold: min(fit.events, fit.n - fit.events) for fold, fit in fits.items()}
    any_fit = next(iter(fits.values()))
    enough, kind = (FEW_FOR_ISOTONIC, "step function") if any_fit.steps else (FEW_EVENTS, "line")
    few = [fold for fold in fits if smaller[fold] < enough]
    if few:
        worst = min(few, key=lambda fold: smaller[fold])
        found.append(
            f"{any_fit.method.capitalize()} recalibration was fitted on few validation rows in {len(few)} of "
            f"{counted(len(fits), 'fold')}, fewest in fold {worst}: {fits[worst].n}, {smaller[worst]} of the smaller "
            f"class; below {enough} a {kind} is mostly noise."
        )
    found += [
        f"{fit.method.capitalize()} recalibration of fold {fold} has the slope {fit.slope:.3g}: on its validation rows "
        "the scores point the wrong way, and the map turns the order of the cases round."
        for fold, fit in fits.items()
        if fit.slope <= 0
    ]
    return tuple(found)


def _line(method: str, intercept: float, slope: float, label: Float[np.ndarray, "n"]) -> Recalibration:
    return Recalibration(method, float(intercept), float(slope), (), len(label), int(label.sum()))


def _check_varied(probability: Float[np.ndarray, "n"]) -> None:
    if np.ptp(probability) == 0:
        raise ValueError(
            f"validation probabilities: all {len(probability)} are {probability[0]:.4g}; a slope needs different ones."
        )
