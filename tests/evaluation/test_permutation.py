"""Permutation tests of paired models: what is exchanged, exact p-values, and the level."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from fusion_jax.evaluation import permutation
from fusion_jax.evaluation.permutation import merge_models, permutation_test
from fusion_jax.evaluation.ranked import (
    classification_statistics,
    exact_ratio,
    make_ranked,
    row_losses,
    weighted_auc,
    weighted_within_fold_auc,
)
from fusion_jax.evaluation.resampling import make_design


def auc(data, weights):
    return weighted_auc(jax.tree.map(lambda part: part[0], data.ranked), weights)


def folded_auc(data, weights):
    return weighted_within_fold_auc(jax.tree.map(lambda part: part[0], data.pairs), weights)


LABELS = np.array([0, 1, 0, 1, 1, 0, 0, 1, 0, 0])
PATIENTS = np.array([0, 0, 1, 1, 2, 3, 4, 5, 5, 6])
FIRST = np.array([0.1, 0.7, 0.1, 0.9, 0.4, 0.3, 0.5, 0.6, 0.2, 0.4])
SECOND = np.array([3.0, 9.0, 4.0, 2.0, 5.0, 4.0, 8.0, 7.0, 2.0, 1.0])


def enumerated(metric, first, second, patients):
    """Differences of all exchanges of whole patients, the first of them nobody's."""
    found = []
    for exchanged in itertools.product([False, True], repeat=patients.max() + 1):
        swap = np.array(exchanged)[patients]
        found.append(metric(np.where(swap, second, first)) - metric(np.where(swap, first, second)))
    return np.array(found)


def test_all_exchanges_of_ranks_are_enumerated_where_there_are_few():
    ranks = scipy.stats.rankdata(FIRST), scipy.stats.rankdata(SECOND)
    wanted = enumerated(lambda ranks: sklearn.metrics.roc_auc_score(LABELS, ranks), *ranks, PATIENTS)
    test = permutation_test(auc, merge_models(LABELS, FIRST, SECOND), make_design(LABELS, PATIENTS), resamples=128)
    assert test.exact
    assert test.permutations == 128 == len(wanted)
    assert test.difference == pytest.approx(wanted[0], abs=1e-6)
    assert test.p_value == pytest.approx(np.mean(np.abs(wanted) >= abs(wanted[0]) - 1e-9))
    assert test.p_error == 0


def test_random_exchanges_estimate_the_exact_p_value():
    merged, design = merge_models(LABELS, FIRST, SECOND), make_design(LABELS, PATIENTS)
    exact = permutation_test(auc, merged, design, resamples=128)
    drawn = permutation_test(auc, merged, design, resamples=127 * 50 - 6, seed=1)
    assert drawn.exact  # 2^7 exchanges are fewer than those asked for
    few = [permutation_test(auc, merged, design, resamples=120, seed=seed) for seed in range(40)]
    assert not any(test.exact for test in few)
    p_values = np.array([test.p_value for test in few])
    # (1 + hits) / (1 + r) instead of hits / r.
    expected = (1 + 120 * exact.p_value) / 121
    assert p_values.mean() == pytest.approx(expected, abs=4 * few[0].p_error / np.sqrt(40))
    assert p_values.std() == pytest.approx(np.mean([test.p_error for test in few]), rel=0.4)
    assert permutation_test(auc, merged, design, resamples=120, seed=3).p_value == p_values[3]


def test_no_p_value_is_smaller_than_the_number_of_exchanges_allows():
    labels = np.repeat([0, 1], 20)
    best = np.arange(40.0)
    test = permutation_test(auc, merge_models(labels, best, -best), make_design(labels), resamples=99)
    assert test.difference == 1
    assert test.p_value == 0.01


def test_scales_of_scores_do_not_matter_and_raw_scores_are_never_exchanged():
    design = make_design(LABELS, PATIENTS)
    one = permutation_test(auc, merge_models(LABELS, FIRST, SECOND), design)
    other = permutation_test(auc, merge_models(LABELS, np.exp(9 * FIRST), -1e6 + SECOND), design)
    assert one == other


def test_models_of_the_same_order_do_not_differ_and_the_test_is_symmetric():
    design = make_design(LABELS, PATIENTS)
    assert permutation_test(auc, merge_models(LABELS, FIRST, 5 * FIRST), design).p_value == 1
    there = permutation_test(auc, merge_models(LABELS, FIRST, SECOND), design)
    back = permutation_test(auc, merge_models(LABELS, SECOND, FIRST), design)
    assert there.difference == -back.difference != 0
    assert there.p_value == back.p_value


def test_every_metric_is_tested_from_the_same_exchanges():
    probabilities = FIRST, SECOND / 10
    losses = [row_losses(LABELS, p) for p in probabilities]
    merged = merge_models(
        LABELS,
        *probabilities,
        sensitivities=exact_ratio(0.7)[None],
        decisions={"at 0.45": tuple(p >= 0.45 for p in probabilities)},
        losses={name: (losses[0][name], losses[1][name]) for name in losses[0]},
    )
    tests = permutation_test(classification_statistics, merged, make_design(LABELS, PATIENTS))
    called = [(p >= 0.45).astype(int) for p in probabilities]
    for name, metric in (("accuracy", sklearn.metrics.accuracy_score), ("f1", sklearn.metrics.f1_score)):
        wanted = enumerated(lambda decided, of=metric: of(LABELS, decided), *called, PATIENTS)
        test = getattr(tests.decisions["at 0.45"], name)
        assert test.difference[0] == pytest.approx(wanted[0], abs=1e-6)
        assert test.p_value[0] == pytest.approx(np.mean(np.abs(wanted) >= abs(wanted[0]) - 1e-9))
    wanted = enumerated(np.mean, losses[0]["brier"], losses[1]["brier"], PATIENTS)
    assert tests.losses["brier"].p_value[0] == pytest.approx(np.mean(np.abs(wanted) >= abs(wanted[0]) - 1e-9))
    assert tests.auc.p_value[0] == permutation_test(auc, merged, make_design(LABELS, PATIENTS)).p_value
    assert tests.specificity_at_sensitivity.p_value.shape == (1, 1)


def test_within_folds_ranks_are_those_of_the_fold():
    fold = np.repeat([0, 1], 5)
    # The second model's folds lie on different scales, which an order over all rows would mistake for a ranking.
    shifted = SECOND + 100.0 * fold
    design = make_design(LABELS)
    plain = permutation_test(folded_auc, merge_models(LABELS, FIRST, SECOND, fold=fold), design, resamples=1024)
    moved = permutation_test(folded_auc, merge_models(LABELS, FIRST, shifted, fold=fold), design, resamples=1024)
    assert plain == moved
    within = [np.concatenate([scipy.stats.rankdata(s[:5]), scipy.stats.rankdata(s[5:])]) for s in (FIRST, SECOND)]

    def pairs_won(ranks):
        won = [(ranks[i] > ranks[j]) + 0.5 * (ranks[i] == ranks[j]) for i, j in pairs]
        return np.mean(won)

    pairs = [(i, j) for i in range(10) for j in range(10) if LABELS[i] > LABELS[j] and fold[i] == fold[j]]
    wanted = enumerated(pairs_won, *within, np.arange(10))
    assert plain.p_value == pytest.approx(np.mean(np.abs(wanted) >= abs(wanted[0]) - 1e-9))


def precision(data, weights):
    called, truly = jnp.asarray(data.decisions["rule"][0]), jnp.asarray(data.positive)
    return jnp.sum(weights * called * truly) / jnp.sum(weights * called)


def test_exchanges_without_a_value_are_left_out_and_counted():
    # Nobody is called positive by the one model whenever both positive calls come from the other.
    rule = np.array([1, 1, 0, 0]), np.array([0, 0, 0, 1])
    labels = np.array([1, 0, 0, 1])
    merged = merge_models(labels, rule[0] / 2, rule[1] / 2, decisions={"rule": rule})
    test = permutation_test(precision, merged, make_design(labels), resamples=16)
    assert test.undefined == 4
    assert test.permutations == 16
    assert 0 < test.p_value <= 1


def test_what_cannot_be_tested_is_refused(unchecked):
    with pytest.raises(ValueError, match="resamples: 0; expected at least 1"):
        permutation_test(auc, merge_models(LABELS, FIRST, SECOND), make_design(LABELS), resamples=0)
    with pytest.raises(ValueError, match="scores: NaN in row 0"):
        merge_models(LABELS, FIRST, SECOND * np.nan)
    with pytest.raises(ValueError, match="10 labels and 3 scores; expected the same rows"):
        merge_models(LABELS, FIRST, SECOND[:3])


# Error rates.


def equal_models(rng, patients, rows, similar):
    """Two equally good models; the rows of a patient are as alike as `similar` says. Labels, scores."""
    label = np.repeat(np.arange(patients) % 2, rows)
    shared = np.repeat(rng.normal(size=(3, patients)), rows, axis=1)
    own = rng.normal(size=(3, patients * rows))
    common, first, second = np.sqrt(similar) * shared + np.sqrt(1 - similar) * own
    return label, label + common + first, label + common + second


def rejections(studies, patients, rows, similar, *, units=None, better=0.0, resamples=199):
    """Fraction of studies with p <= 0.05, where the `units` exchanged are patients unless told otherwise."""
    rng, ids = np.random.default_rng(7), np.repeat(np.arange(patients), rows) if units is None else units
    hits = 0
    for study in range(studies):
        label, first, second = equal_models(rng, patients, rows, similar)
        merged = merge_models(label, first + better * label, np.exp(second))
        hits += permutation_test(auc, merged, make_design(label, ids), resamples=resamples, seed=study).p_value <= 0.05
    return hits / studies


def binomial_bounds(studies, rate=0.05):
    return scipy.stats.binom.ppf([0.0005, 0.9995], studies, rate) / studies


def test_the_level_holds_for_patients_and_not_for_rows_taken_for_patients():
    low, high = binomial_bounds(150)
    assert low <= rejections(150, 40, 3, 0.95) <= high
    assert rejections(150, 40, 3, 0.95, units=np.arange(120)) > high
    assert rejections(30, 40, 3, 0.95, better=2.0) > 0.5


@pytest.mark.slow
@pytest.mark.parametrize(("patients", "rows", "similar"), [(200, 1, 0.5), (100, 2, 0.9), (100, 10, 0.98)])
def test_the_level_holds_over_a_thousand_studies(patients, rows, similar):
    low, high = binomial_bounds(1000)
    assert low <= rejections(1000, patients, rows, similar, resamples=999) <= high
    if rows > 1:
        assert rejections(1000, patients, rows, similar, units=np.arange(patients * rows), resamples=999) > 2 * high


def test_merged_models_keep_their_own_metrics():
    merged = merge_models(LABELS, FIRST, SECOND)
    whole = jax.jit(auc)
    nobody, everybody = np.repeat([1, 0], 10), np.repeat([0, 1], 10)
    for weights, scores in ((nobody, FIRST), (everybody, SECOND)):
        wanted = weighted_auc(make_ranked(LABELS, scores), jnp.ones(10))
        assert float(whole(merged, weights)) == pytest.approx(float(wanted), abs=1e-7)
    assert permutation.NOBODY < 0
