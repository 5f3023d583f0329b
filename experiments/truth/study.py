"""The whole procedure on many cohorts: draw, divide, fit, predict out of fold, compare, decide."""

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from scipy.stats import binom

from experiments.truth.config import FUSED, SINGLES, SOURCES, Scenario
from fusion_jax.arrays import Batch, Model
from fusion_jax.data.cohort import Cohort
from fusion_jax.data.splits import k_fold
from fusion_jax.data.synthetic import Signal, area_under_curve, bayes_auc, dial
from fusion_jax.encoders import MLP, as_model
from fusion_jax.evaluation.benefit import Benefit, fusion_benefit
from fusion_jax.evaluation.comparisons import BOOTSTRAP, DELONG, Comparison
from fusion_jax.evaluation.delong import delong, delong_test
from fusion_jax.evaluation.estimates import MetricKey, judge
from fusion_jax.evaluation.panel import make_panel
from fusion_jax.evaluation.protocol import Protocol
from fusion_jax.evaluation.resampling import percentile_interval, z_test
from fusion_jax.fusion import FusionClassifier, binary_cross_entropy
from fusion_jax.records.predictions import check_predictions
from fusion_jax.training import Optimiser, make_optimiser
from fusion_jax.training.vmapped import fit_many, predict_many

MODELS = (*SINGLES, *FUSED)

PENALTY = {"image-only": 1.0, "clinical-only": 1.0, "concatenate": 1.0, "bilinear": 20.0}
"""Of the squared weights of standardised columns, beside the summed loss; fixed beforehand."""

NEWTON_STEPS = 12
AT_ONCE = 50
"""Cohorts that one call of the device fits."""


class Tally(NamedTuple):
    """What was said of the cohorts of one scenario.

    Attributes:
      scenario: which.
      cohorts: how many.
      helped: share of cohorts where it was said of each fused model, and of any of them.
      careless: the same of any, had a gain over the worse single source been enough.
      auc: mean over the cohorts of the AUC out of fold, by model.
      gain: mean gain of the fused model that counts over the better single source.
      agreed: share of the cohorts that the bootstrap judged alike; NaN where none was tried.
      bootstrapped: their number.
    """

    scenario: Scenario
    cohorts: int
    helped: dict[str, float]
    careless: float
    auc: dict[str, float]
    gain: float
    agreed: float
    bootstrapped: int


def tally(
    scenario: Scenario,
    cohorts: int,
    *,
    folds: int = 5,
    seed: int = 0,
    bootstrapped: int = 0,
    advance: Callable[[], None] = lambda: None,
) -> Tally:
    """Run the procedure on `cohorts` cohorts of a scenario."""
    verdicts, areas, agreed, careless = [], [], [], []
    for number, (label, scores, fold) in enumerate(_predicted(scenario, cohorts, folds, seed)):
        areas.append(delong(label, scores).auc)
        found = decide(label, scores)
        verdicts.append([found[model].helped for model in FUSED])
        careless.append(any(one.helped for one in decide(label, scores, "easiest single").values()))
        if number < bootstrapped:
            other = decide_by_bootstrap(label, scores, fold)
            agreed += [other[model].helped == found[model].helped for model in FUSED]
        advance()
    said, area = np.array(verdicts), np.array(areas)
    counts = MODELS.index(scenario.model)
    return Tally(
        scenario,
        cohorts,
        dict(zip((*FUSED, "any"), map(float, [*said.mean(0), said.any(1).mean()]), strict=True)),
        float(np.mean(careless)),
        dict(zip(MODELS, map(float, area.mean(0)), strict=True)),
        float((area[:, counts] - area[:, : len(SINGLES)].max(1)).mean()),
        float(np.mean(agreed)) if agreed else float("nan"),
        min(bootstrapped, cohorts),
    )


def decide(
    label: np.ndarray, scores: np.ndarray, weigh: Literal["all singles", "easiest single"] = "all singles"
) -> dict[str, Benefit]:
    """Did fusion help? `evaluation.benefit` with DeLong's tests, at 5 % over both fused models.

    Args:
      label: 0 or 1, shape `(n,)`.
      scores: of `MODELS`, shape `(n, 4)`.
      weigh: "easiest single" asks for a gain over some source alone, the mistake that these tests exist to catch.
    """
    area = delong(label, scores)
    test = delong_test(area)
    singles: tuple[str, ...] = SINGLES
    if weigh == "easiest single":
        singles = (MODELS[int(np.argmin(area.auc[: len(SINGLES)]))],)
    rows = [
        _comparison(
            i,
            j,
            DELONG,
            *(float(part[i, j]) for part in (test.difference, test.low, test.high, test.standard_error, test.p_value)),
        )
        for i, j in itertools.combinations(range(len(MODELS)), 2)
    ]
    models = (*singles, *FUSED)
    rows = [row for row in rows if {row.first, row.second} <= set(models)]
    found = fusion_benefit(models, tuple(rows), Protocol(test="delong", singles=singles))
    return {one.model: one for one in found}


def decide_by_bootstrap(label: np.ndarray, scores: np.ndarray, fold: np.ndarray) -> dict[str, Benefit]:
    """The same question as `fusion-jax compare` asks it by default: from the predictions table, by the bootstrap."""
    n = len(label)
    table = pd.DataFrame(
        {
            "case_id": np.tile([f"{case:05d}" for case in range(n)], len(MODELS)),
            "patient_id": np.tile([f"{case:05d}" for case in range(n)], len(MODELS)),
            "model": np.repeat(MODELS, n),
            "label": np.tile(label, len(MODELS)),
            "score": scores.T.ravel(),
            "fold": np.tile(fold, len(MODELS)),
        }
    )
    panel = make_panel(check_predictions({"truth": table}, scores="score"))
    view, protocol = panel.ensemble(), Protocol(singles=SINGLES, resamples=1000, curves=False)
    judged, key = judge(panel, view, (), protocol), MetricKey("auc")
    rows = []
    for i, j in itertools.combinations(range(len(MODELS)), 2):
        difference = float(judged.values[key][i] - judged.values[key][j])
        draws = judged.draws[key][:, i] - judged.draws[key][:, j]
        test, ends = z_test(difference, draws), percentile_interval(draws)
        rows.append(
            _comparison(
                i, j, BOOTSTRAP, difference, float(ends.low), float(ends.high), float(test.sd), float(test.p_value)
            )
        )
    return {one.model: one for one in fusion_benefit(view.models, tuple(rows), protocol)}


def _comparison(
    i: int, j: int, test: str, difference: float, low: float, high: float, sd: float, p: float
) -> Comparison:
    return Comparison(*MetricKey("auc"), MODELS[i], MODELS[j], difference, low, high, sd, test, p, None, np.nan, np.nan)


def _predicted(
    scenario: Scenario, cohorts: int, folds: int, seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Labels, logits out of fold of all models, and folds, cohort by cohort."""
    for start in range(0, cohorts, AT_ONCE):
        numbers = range(start, min(start + AT_ONCE, cohorts))
        drawn = [dial(scenario.n, **scenario.signal, seed=_seed(seed, number)).cohort for number in numbers]
        label = np.stack([cohort.label for cohort in drawn])
        fold = np.stack(
            [_folds(cohort, folds, _seed(seed, number)) for cohort, number in zip(drawn, numbers, strict=True)]
        )
        inputs = {name: np.stack([_columns(cohort, name) for cohort in drawn]) for name in MODELS}
        scores = np.stack(
            [
                np.asarray(_many_out_of_fold(inputs[name], label, fold, np.float32(PENALTY[name]), folds=folds))
                for name in MODELS
            ],
            axis=-1,
        )
        for cohort in range(len(drawn)):
            yield label[cohort], scores[cohort].astype(float), fold[cohort]


def _seed(seed: int, number: int) -> int:
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


def _folds(cohort: Cohort, folds: int, seed: int) -> np.ndarray:
    of_case = np.empty(len(cohort), np.int32)
    for split in k_fold(cohort, folds, seed=seed).splits:
        of_case[split.rows(cohort).test] = split.fold
    return of_case


def _columns(cohort: Cohort, model: str) -> np.ndarray:
    """What a model reads: a source, both, or both and all products between them."""
    image, clinical = (np.stack([cohort.sources[name][row] for row in range(len(cohort))]) for name in SOURCES)
    if model in SINGLES:
        return image if model == "image-only" else clinical
    products = (image[:, :, None] * clinical[:, None, :]).reshape(len(cohort), -1)
    return np.concatenate([image, clinical, *([products] if model == "bilinear" else [])], axis=1)


def ridge_logistic(x: jax.Array, y: jax.Array, weight: jax.Array, penalty: jax.Array) -> jax.Array:
    r"""Logits of all rows by a logistic regression of the weighted ones, columns standardised on these.

    .. math:: \min_{w, b} \sum_i m_i \log\bigl(1 + e^{-s_i (w^\top z_i + b)}\bigr) + \tfrac{\lambda}{2} \|w\|^2

    by Newton steps from 0; with standardised columns and :math:`\lambda \ge 1` they need no line search.

    Args:
      x: columns, shape `(n, t)`.
      y: class, 0 or 1, shape `(n,)`.
      weight: 1 for training rows and 0 for others, shape `(n,)`.
      penalty: :math:`\lambda`.
    """
    count = weight.sum()
    centred = x - (weight @ x / count)[None]
    sd = jnp.sqrt(weight @ jnp.square(centred) / count)
    z = jnp.concatenate([centred / jnp.where(sd > 0, sd, 1.0)[None], jnp.ones_like(x[:, :1])], axis=1)
    ridge = jnp.full(z.shape[1:], penalty).at[-1].set(1e-6)

    def newton(_: Any, w: jax.Array) -> jax.Array:
        p = jax.nn.sigmoid(z @ w)
        gradient = z.T @ (weight * (p - y)) + ridge * w
        hessian = (z * (weight * p * (1 - p))[:, None]).T @ z + jnp.diag(ridge)
        return w - jax.scipy.linalg.solve(hessian, gradient, assume_a="pos")

    return z @ jax.lax.fori_loop(0, NEWTON_STEPS, newton, jnp.zeros_like(z[0]))


@functools.partial(jax.jit, static_argnames="folds")
def _many_out_of_fold(x: jax.Array, label: jax.Array, fold: jax.Array, penalty: jax.Array, *, folds: int) -> jax.Array:
    """Logits of every case by the model that was fitted without its fold; all cohorts and folds in one program."""

    def of_cohort(x: jax.Array, label: jax.Array, fold: jax.Array) -> jax.Array:
        y = label.astype(x.dtype)

        def without(held: jax.Array) -> jax.Array:
            return ridge_logistic(x, y, (fold != held).astype(x.dtype), penalty)

        logits = jax.vmap(without)(jnp.arange(folds))
        return jnp.take_along_axis(logits, fold[None], axis=0)[0]

    return jax.vmap(of_cohort)(x, label, fold)


class Limit(NamedTuple):
    """AUC of a model that has seen many cases, on as many new ones, beside the best possible.

    Attributes:
      scenario, model: of what.
      auc, standard_error: found.
      best: AUC of the exact likelihood ratio.
    """

    scenario: Scenario
    model: str
    auc: float
    standard_error: float
    best: float


def at_large_n(scenario: Scenario, n: int, *, seed: int = 0, epochs: int = 30) -> list[Limit]:
    """Train on half of a large cohort and judge on the other half: linear single sources, and a fused network.

    The single sources need no more than a linear model, for their likelihood ratio is linear. The fused model is a
    small network, which has to find the synergy for itself.
    """
    cohort = dial(n, **scenario.signal, seed=_seed(seed, 10**6)).cohort
    signal = Signal(**scenario.signal)
    train = np.arange(n) < n // 2
    label = np.asarray(cohort.label)
    found = []
    for model, source in zip(SINGLES, SOURCES, strict=True):
        logits = jax.jit(ridge_logistic)(
            jnp.asarray(_columns(cohort, model)),
            jnp.asarray(label, jnp.float32),
            jnp.asarray(train, jnp.float32),
            jnp.float32(1.0),
        )
        area = area_under_curve(np.asarray(logits, float)[~train], label[~train] == 1)
        found.append(Limit(scenario, model, *area, bayes_auc(signal, (source,)).value))
    logits = network_logits(cohort, train, seed=seed, epochs=epochs)
    area = area_under_curve(logits[~train], label[~train] == 1)
    found.append(Limit(scenario, "network", *area, bayes_auc(signal).value))
    return found


def network_logits(cohort: Cohort, train: np.ndarray, *, seed: int = 0, epochs: int = 30) -> np.ndarray:
    """Logits of a small fused network, trained on some rows by `fit_many`; the best epoch by a tenth of them."""
    n = len(cohort)
    inputs = {name: _columns(cohort, f"{name}-only") for name in SOURCES}
    there = np.ones(n, bool)
    cases = Batch(
        inputs, {"label": np.asarray(cohort.label, np.int32)}, there, dict.fromkeys(SOURCES, there), np.arange(n)
    )
    rows = np.flatnonzero(train)
    held = len(rows) // 10
    model, optimiser = _network(-(-(len(rows) - held) // 256), epochs)
    found = fit_many(
        model,
        optimiser,
        OBJECTIVE,
        cases,
        [rows[held:]],
        [rows[:held]],
        seeds=[(seed, 0, 0)],
        epochs=epochs,
        batch_size=256,
    )
    return predict_many(model, found.variables, cases, [np.arange(n)])[0, :, 0].astype(float)


@functools.cache  # the same model again is the same program
def _network(steps: int, epochs: int) -> tuple[Model, Any]:
    module = FusionClassifier({name: MLP((32,)) for name in SOURCES}, head=MLP((64, 32)), classes=1)
    settings = Optimiser("adamw", learning_rate=3e-3, schedule="cosine", weight_decay=1e-3)
    return as_model(module), make_optimiser(settings, steps, epochs)


OBJECTIVE = binary_cross_entropy()


def largest_chance_rate(cohorts: int, rate: float = 0.05, level: float = 0.99) -> float:
    """Share of cohorts that a test of this rate exceeds with probability 1 - level: 5 % plus Monte-Carlo error."""
    return float(binom.ppf(level, cohorts, rate)) / cohorts


def smallest_chance_rate(cohorts: int, rate: float = 0.8, level: float = 0.99) -> float:
    """Share of cohorts that a test of this power falls below with probability 1 - level."""
    return float(binom.ppf(1 - level, cohorts, rate)) / cohorts
