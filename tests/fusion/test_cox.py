"""Cox's partial likelihood against brute force and a reference, its ties, its edges and its gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusion_jax.arrays import Batch, Outputs
from fusion_jax.fusion.cox import cox, cox_partial_likelihood
from tests.helpers import assert_close

likelihood = jax.jit(cox_partial_likelihood, static_argnames="ties")
score = jax.jit(jax.grad(cox_partial_likelihood), static_argnames="ties")

TIES = ("efron", "breslow")


def brute_force(risk, time, event, ties):
    """The formula, time by time, in double precision."""
    total = 0.0
    for t in np.unique(time[event]):
        dying, at_risk = event & (time == t), time >= t
        d = dying.sum()
        total += risk[dying].sum()
        for number in range(d):
            share = number / d if ties == "efron" else 0.0
            total -= np.log(np.exp(risk[at_risk]).sum() - share * np.exp(risk[dying]).sum())
    return total


def cohort(seed, n=40, distinct=12):
    rng = np.random.default_rng(seed)
    return rng.normal(size=n) * 2, rng.integers(1, distinct, n).astype(float), rng.random(n) < 0.6


@pytest.mark.parametrize("ties", TIES)
def test_equals_brute_force_with_many_ties(ties):
    for seed in range(10):
        risk, time, event = cohort(seed)
        found = likelihood(risk.astype(np.float32), time.astype(np.float32), event, ties=ties)
        assert_close(found, np.float64(brute_force(risk, time, event, ties)), rtol=3e-6)


@pytest.mark.parametrize("ties", TIES)
def test_gradient_is_that_of_brute_force(ties, x64):
    risk, time, event = cohort(3)
    found = score(risk, time, event, ties=ties)
    step = 1e-6
    expected = [
        (brute_force(risk + step * unit, time, event, ties) - brute_force(risk - step * unit, time, event, ties))
        / (2 * step)
        for unit in np.eye(len(risk))
    ]
    assert_close(found, np.array(expected), rtol=1e-7)


def test_score_and_optimum_are_those_of_scikit_survival(x64):
    """Their model maximises this likelihood, so its gradient vanishes at their coefficients, and at no others."""
    linear_model = pytest.importorskip("sksurv.linear_model")
    util = pytest.importorskip("sksurv.util")
    rng = np.random.default_rng(1)
    x = rng.normal(size=(40, 3))
    time = np.ceil(rng.exponential(np.exp(-x @ [0.8, -0.5, 0.0])) * 8)
    event = rng.random(40) < 0.7
    outcome = util.Surv.from_arrays(event, time)
    for ties in TIES:
        fitted = linear_model.CoxPHSurvivalAnalysis(ties=ties, tol=1e-12, n_iter=200).fit(x, outcome)
        of_beta = {name: x.T @ np.asarray(score(x @ fitted.coef_, time, event, ties=name)) for name in TIES}
        assert np.abs(of_beta.pop(ties)).max() < 1e-6
        [wrong] = of_beta.values()
        assert np.abs(wrong).max() > 1e-2


def test_without_ties_efron_is_breslow():
    risk, _, event = cohort(5)
    time = np.arange(40, dtype=np.float32)
    a, b = (likelihood(risk.astype(np.float32), time, event, ties=ties) for ties in TIES)
    assert_close(a, b)


def test_order_shift_and_scale_of_time_mean_nothing():
    risk, time, event = cohort(6)
    risk, time = risk.astype(np.float32), time.astype(np.float32)
    expected = likelihood(risk, time, event)
    order = np.random.default_rng(0).permutation(40)
    assert_close(likelihood(risk[order], time[order], event[order]), expected)
    assert_close(likelihood(risk + np.float32(50), time, event), expected, rtol=1e-4)
    assert_close(likelihood(risk, time.astype(np.int32) * 30, event), expected)


def test_large_risks_stay_finite():
    risk = np.resize(np.array([1e4, -1e4, 3e3, 0.0, 100.0, -100.0], np.float32), 40)
    _, time, event = cohort(8)
    for moment in (time, np.arange(40.0), np.ones(40)):
        for ties in TIES:
            assert np.isfinite(likelihood(risk, moment.astype(np.float32), event, ties=ties))
            assert np.isfinite(score(risk, moment.astype(np.float32), event, ties=ties)).all()


def test_a_case_that_leaves_at_an_events_time_was_at_risk():
    risk, event = np.zeros(2, np.float32), np.array([True, False])
    assert_close(likelihood(risk, np.ones(2, np.float32), event), np.log(0.5))
    assert likelihood(risk, np.array([2.0, 1.0], np.float32), event) == 0


def survival_batch(time, event, valid):
    target = {"time": jnp.asarray(time, jnp.float32), "event": jnp.asarray(event)}
    return Batch({}, target, jnp.asarray(valid), {}, jnp.arange(len(time)))


@jax.jit
def loss_and_gradient(logits, batch):
    return jax.value_and_grad(lambda z: cox().loss({}, Outputs(z, {}, {}), batch)[0])(logits)


def test_objective_divides_by_events_and_leaves_padding_out():
    risk, time, event = cohort(7)
    valid = np.arange(40) % 5 != 0
    expected = -brute_force(risk[valid], time[valid], event[valid], "efron") / event[valid].sum()
    # Padding at the latest time would enter every risk set.
    padded = survival_batch(np.where(valid, time, 99.0), event | ~valid, valid)
    logits = jnp.asarray(np.where(valid, risk, 1e6)[:, None], jnp.float32)
    assert_close(loss_and_gradient(logits, padded)[0], np.float64(expected))


def test_a_batch_without_events_or_cases_is_worth_0():
    risk, time, _ = cohort(9)
    everybody, nobody = np.ones(40, bool), np.zeros(40, bool)
    for event, valid in ((nobody, everybody), (everybody, nobody)):
        loss, gradient = loss_and_gradient(jnp.asarray(risk[:, None], jnp.float32), survival_batch(time, event, valid))
        assert loss == 0
        assert not np.asarray(gradient).any()


def test_what_does_not_fit_is_named(unchecked):
    batch = survival_batch([1.0, 2.0], [True, False], [True, True])
    with pytest.raises(ValueError, match="ties is 'exact'; expected 'efron' or 'breslow'"):
        cox(ties="exact")
    with pytest.raises(ValueError, match="ties is 'exact'"):
        cox_partial_likelihood(jnp.zeros(1), jnp.zeros(1), jnp.zeros(1, bool), ties="exact")
    with pytest.raises(ValueError, match=r"logits have shape \(2, 2\); expected \(b, 1\)"):
        cox().loss({}, Outputs(jnp.zeros((2, 2)), {}, {}), batch)
    lacking = batch._replace(target={"label": jnp.zeros(2, jnp.int32)})
    with pytest.raises(ValueError, match="the batch has no time and no event"):
        cox().loss({}, Outputs(jnp.zeros((2, 1)), {}, {}), lacking)
