"""Shuffling a source: three numbers for three questions, on data where the answers are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from fusion_jax.evaluation.shuffling import (
    auc,
    benefit_null,
    pairing_index,
    reliance,
    row_exchange,
    shuffled_scores,
)


def independent_sources(n=600, shift=1.2, seed=0):
    """Two sources that are independent given the class; fusing them helps most."""
    rng = np.random.default_rng([seed, n])
    labels = np.arange(n) % 2
    return {name: rng.normal(size=n) + shift * labels for name in ("image", "clinical")}, labels


def total(inputs):
    return inputs["image"] + inputs["clinical"]


def stacked(inputs):
    return np.stack([np.asarray(array, float).reshape(len(array)) for array in inputs.values()], axis=1)


def trained_on_one_half(labels):
    """A retrain function: logistic regression trained on the even pairs of rows, scored on the others."""
    train = np.arange(len(labels)) // 2 % 2 == 0

    def retrain(inputs, _):
        scores = np.full(len(labels), np.nan)
        scores[~train] = (
            LogisticRegression().fit(stacked(inputs)[train], labels[train]).decision_function(stacked(inputs)[~train])
        )
        return scores

    return retrain


def least_squares(labels):
    """The same with linear regression on the labels, at a tenth of the time."""
    train = np.arange(len(labels)) // 2 % 2 == 0

    def retrain(inputs, _):
        columns = np.column_stack([stacked(inputs), np.ones(len(labels))])
        weights = np.linalg.lstsq(columns[train], labels[train] * 1.0, rcond=None)[0]
        return np.where(train, np.nan, columns @ weights)

    return retrain


def distance_of_means(labels, scores):
    """A metric without ties: those of an AUC of 24 cases make p-values a little too large."""
    return (scores[labels == 1].mean() - scores[labels == 0].mean()) / scores.std()


# Who exchanges with whom


@given(st.lists(st.integers(0, 5), min_size=2, max_size=24), st.integers(0, 3))
def test_patients_exchange_their_rows_as_blocks(patients, seed):
    patients = np.array(patients)
    try:
        exchange = row_exchange(len(patients), patients=patients)
    except ValueError:
        counts = np.unique(patients, return_counts=True)[1]
        assert len(set(counts)) == len(counts)
        return
    rows = exchange.draw(np.random.default_rng(seed))
    assert sorted(rows) == list(range(len(patients)))
    for patient in set(patients):
        given_by = patients[rows[patients == patient]]
        assert len(set(given_by)) == 1
        assert (rows[patients == patient] == np.flatnonzero(patients == given_by[0])).all()


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 2)), min_size=2, max_size=24), st.booleans())
def test_strata_of_the_rows_stay_as_they_are(pairs, agreeing):
    patients, strata = np.array(pairs).T
    try:
        exchange = row_exchange(len(patients), patients=patients, within=strata, agreeing=agreeing)
    except ValueError:
        return
    rows = exchange.draw(np.random.default_rng(0))
    if agreeing:  # any row of the donor will do: the donor has the same strata
        for row, donor in enumerate(patients[rows]):
            assert set(strata[patients == donor]) == set(strata[patients == patients[row]])
    else:
        assert (strata[rows] == strata).all()


def test_every_arrangement_of_patients_is_as_likely():
    exchange = row_exchange(3)
    rng = np.random.default_rng(1)
    drawn = [tuple(exchange.draw(rng)) for _ in range(6000)]
    counts = np.array([drawn.count(order) for order in set(drawn)])
    assert len(counts) == 6
    assert np.abs(counts - 1000).max() < 120  # four standard errors


def test_one_record_for_several_images_goes_to_patients_with_another_number():
    patients = np.array([0, 0, 0, 1, 1, 2])
    with pytest.raises(ValueError, match=r"3 patients in 6 rows: no two have equally many rows, so that nothing"):
        row_exchange(6, patients=patients)
    exchange = row_exchange(6, patients=patients, agreeing=True)
    assert exchange.fixed == 0
    drawn = {tuple(patients[exchange.draw(np.random.default_rng(seed))]) for seed in range(40)}
    assert len(drawn) == 6
    age = np.array([60.0, 60, 60, 40, 40, 70])
    labels = np.array([0, 0, 0, 1, 1, 1])
    found = reliance(lambda inputs: inputs["age"], {"age": age}, labels, "age", patients=patients, repeats=5)
    assert found.fixed == 0
    with pytest.raises(ValueError, match="no two have equally many rows"):
        reliance(lambda inputs: inputs["age"], {"age": age + np.arange(6)}, labels, "age", patients=patients)


def test_patients_whom_nobody_can_exchange_with_are_counted():
    exchange = row_exchange(5, patients=["a", "a", "b", "c", "d"])
    assert exchange.fixed == 1
    assert (exchange.draw(np.random.default_rng(0))[:2] == [0, 1]).all()
    assert row_exchange(4, within=["x", "y", "x", "z"]).fixed == 2


# Calls of the model


@pytest.mark.parametrize("batched", [False, True])
def test_stacked_calls_score_as_single_ones(batched, monkeypatch):
    monkeypatch.setattr("fusion_jax.evaluation.shuffling.ROWS_AT_ONCE", 40)
    inputs = {"a": np.arange(12.0), "image": np.ones((12, 2, 3))}
    sizes = []

    def apply(inputs):
        sizes.append(len(inputs["a"]))
        return inputs["a"] * inputs["image"].sum(axis=(1, 2))

    changes = [{"a": inputs["a"] + number} for number in range(7)]
    baseline, scores = shuffled_scores(apply, inputs, changes, 7, batched=batched)
    assert (baseline == 6 * inputs["a"]).all()
    found = list(scores)
    assert len(found) == 7
    for number, one in enumerate(found):
        assert (one == 6 * (inputs["a"] + number)).all()
    assert set(sizes) == ({36} if batched else {12})


def test_a_function_under_jit_compiles_once():
    inputs, labels = independent_sources(40)
    traces = []

    @jax.jit
    def apply(inputs):
        traces.append(1)
        return jnp.stack([-inputs["image"] - inputs["clinical"], inputs["image"] + inputs["clinical"]], axis=1)

    single = {name: array.astype(np.float32) for name, array in inputs.items()}
    found = reliance(apply, single, labels, "clinical", repeats=7, batched=True)
    assert len(traces) == 1
    assert found.draws == pytest.approx(reliance(total, single, labels, "clinical", repeats=7).draws)


def test_dropout_left_on_is_noticed():
    inputs, labels = independent_sources(40)
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match=r"scores of the same rows differ by up to .* dropout"):
        reliance(lambda inputs: total(inputs) + rng.normal(size=40), inputs, labels, "image")


def test_scores_that_depend_on_the_batch_are_noticed():
    inputs, labels = independent_sources(40)

    def normalised(inputs):
        return total(inputs) / total(inputs).std()

    assert reliance(normalised, inputs, labels, "image").loss > 0
    with pytest.raises(ValueError, match="batched=False where a score depends on the other rows"):
        reliance(normalised, inputs, labels, "image", batched=True)


# The default metric


def test_the_area_of_several_classes_is_the_mean_of_each_against_the_rest(key):
    labels = np.arange(60) % 3
    scores = np.array(jax.nn.softmax(jax.random.normal(key, (60, 3)) + jax.nn.one_hot(labels, 3)), float)
    expected = np.mean([roc_auc_score(labels == one, scores[:, one]) for one in range(3)])
    assert auc(labels, scores) == pytest.approx(expected, abs=1e-12)
    two = np.stack([1 - scores[:, 0], scores[:, 0]], axis=1)
    assert auc(labels % 2, two) == pytest.approx(auc(labels % 2, scores[:, 0]), abs=1e-12)


# What each number says


def test_independent_sources_help_without_a_pairing():
    inputs, labels = independent_sources(4000)
    fused, alone = auc(labels, total(inputs)), auc(labels, inputs["image"])
    assert fused - alone > 0.06
    index = pairing_index(total, inputs, labels, "clinical")
    assert abs(index.loss) < 0.01
    assert reliance(total, inputs, labels, "clinical").loss > 0.1


def test_shared_errors_make_the_pairing_index_negative():
    rng = np.random.default_rng(0)
    labels = np.arange(2000) % 2
    shared = rng.normal(size=2000)
    inputs = {name: shared + 0.3 * rng.normal(size=2000) + labels for name in ("image", "clinical")}
    assert pairing_index(total, inputs, labels, "clinical").loss < -0.05


def test_an_interaction_has_a_pairing():
    rng = np.random.default_rng(0)
    inputs = {name: rng.choice([-1.0, 1.0], 400) for name in ("image", "clinical")}
    product = inputs["image"] * inputs["clinical"]
    index = pairing_index(lambda inputs: inputs["image"] * inputs["clinical"], inputs, (product > 0) * 1, "image")
    assert index.baseline == 1
    assert index.loss == pytest.approx(0.5, abs=0.05)


def test_a_copy_of_a_source_is_relied_on_and_helps_nobody():
    inputs, labels = independent_sources(400)
    inputs["clinical"] = inputs["image"].copy()
    assert reliance(total, inputs, labels, "clinical").loss > 0.05
    found = benefit_null(trained_on_one_half(labels), inputs, labels, "clinical", permutations=39)
    assert found.gain < 0.02
    assert found.p_value > 0.05


def test_a_source_that_informs_is_found_and_its_smallest_p_value_depends_on_the_number_of_fits():
    inputs, labels = independent_sources(200)
    found = benefit_null(trained_on_one_half(labels), inputs, labels, "clinical", permutations=39)
    assert found.p_value == 1 / 40
    assert found.p_error == pytest.approx(np.sqrt(0.025 * 0.975 / 40))
    assert found.gain == pytest.approx(found.observed - found.null.mean())
    assert found.gain > 0.05
    assert found.null.shape == (39,)


@pytest.mark.parametrize(
    ("studies", "permutations"), [(100, 19), pytest.param(600, 49, marks=pytest.mark.slow)], ids=["100", "600"]
)
def test_noise_gives_uniform_p_values(studies, permutations):
    p_values = []
    for study in range(studies):
        inputs, labels = independent_sources(48, seed=study)
        inputs["clinical"] = np.random.default_rng([7, study]).normal(size=48)
        found = benefit_null(
            least_squares(labels),
            inputs,
            labels,
            "clinical",
            metric=distance_of_means,
            permutations=permutations,
            seed=study,
        )
        p_values.append(found.p_value)
    # Uniform on 1/(1+r) … 1: in the middle of the steps, up to half a step from the continuous uniform.
    middle = np.array(p_values) - 0.5 / (1 + permutations)
    assert kstest(middle, "uniform").pvalue > 0.01
    assert np.mean(np.array(p_values) <= 0.1) < 0.1 + 2.6 * np.sqrt(0.09 / studies)


def test_the_same_key_goes_into_every_fit_and_another_seed_gives_another():
    inputs, labels = independent_sources(40)
    keys = []

    def retrain(inputs, key):
        keys.append(tuple(jax.random.key_data(key).tolist()))
        return total(inputs)

    benefit_null(retrain, inputs, labels, "image", permutations=3)
    assert len(keys) == 4
    assert len(set(keys)) == 1
    benefit_null(retrain, inputs, labels, "image", permutations=1, seed=1)
    assert len(set(keys)) == 2


def test_a_source_and_its_presence_move_together():
    inputs, labels = independent_sources(40)
    inputs["present"] = np.arange(40) % 4 > 0
    inputs["image"] = np.where(inputs["present"], inputs["image"], -100)
    seen = []

    def apply(inputs):
        seen.append(bool(((inputs["image"] == -100) == ~inputs["present"]).all()))
        return inputs["clinical"]

    reliance(apply, inputs, labels, ["image", "present"], repeats=3)
    assert all(seen)
    reliance(apply, inputs, labels, "image", repeats=3)
    assert not all(seen)


def test_sites_can_be_kept_together():
    inputs, labels = independent_sources(40)
    site = np.arange(40) // 10
    inputs["image"] = site * 1.0
    seen = []

    def retrain(inputs, _):
        seen.append(bool((inputs["image"] == site).all()))
        return inputs["clinical"]

    benefit_null(retrain, inputs, labels, "image", permutations=3, within=site)
    assert all(seen)
    benefit_null(retrain, inputs, labels, "image", permutations=3)
    assert not all(seen)


def test_any_metric_will_do():
    inputs, _ = independent_sources(60)
    follow_up = np.stack([np.arange(60.0), np.arange(60) % 3 == 0], axis=1)

    def minus_error(follow_up, scores):
        return -np.abs(follow_up[:, 0] - scores).mean()

    inputs["image"] = np.arange(60.0)
    found = reliance(lambda inputs: inputs["image"], inputs, follow_up, "image", metric=minus_error)
    assert found.baseline == 0
    assert found.loss == pytest.approx(60 / 3, rel=0.1)  # mean distance of two of 60 places
    assert found.error == pytest.approx(found.draws.std(ddof=1) / np.sqrt(30))


# Messages


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": "ct"}, "no source 'ct' in inputs; they hold image, clinical"),
        ({"inputs": {}}, "inputs is empty"),
        ({"inputs": {"image": np.zeros(3)}}, r"inputs\['image'\] has shape \(3,\), labels \(40,\)"),
        ({"apply": lambda inputs: inputs["image"][:, None]}, r"apply returned scores of shape \(40, 1\) for 40 rows"),
        ({"apply": lambda inputs: inputs["image"] / np.r_[np.nan, np.ones(39)]}, "apply returned 1 score that is not"),
        ({"labels": np.ones(40, int)}, r"labels: found 1 in 40 rows; an AUC of scores \(40,\) needs classes 0 to 1"),
        ({"repeats": 0}, "repeats is 0"),
        ({"patients": np.arange(39)}, "39"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_what_is_wrong_is_named(change, message):
    inputs, labels = independent_sources(40)
    given = {"apply": total, "inputs": inputs, "labels": labels, "source": "image"} | change
    with pytest.raises(ValueError, match=message):
        reliance(**given)


@pytest.mark.usefixtures("unchecked")
def test_fits_that_score_other_rows_are_refused():
    inputs, labels = independent_sources(40)
    fits = iter(range(9))

    def retrain(inputs, _):
        return np.where(np.arange(40) == next(fits), np.nan, total(inputs))

    with pytest.raises(ValueError, match=r"retrain scored 39 of 40 rows, and 39 on the data as they are; .* same rows"):
        benefit_null(retrain, inputs, labels, "image", permutations=3)
    with pytest.raises(ValueError, match="retrain scored 0 of 40 rows"):
        benefit_null(lambda inputs, key: np.full(40, np.nan), inputs, labels, "image", permutations=3)
    with pytest.raises(ValueError, match="permutations is 0"):
        benefit_null(retrain, inputs, labels, "image", permutations=0)
    with pytest.raises(ValueError, match=r"within has shape \(3,\)"):
        benefit_null(retrain, inputs, labels, "image", permutations=1, within=np.zeros(3))
