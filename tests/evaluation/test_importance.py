"""Permutation importance: known answers, the published table, and scikit-learn's."""

import logging
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import rankdata
from scipy.stats.contingency import association
from sklearn.inspection import permutation_importance as sklearn_importance
from sklearn.linear_model import LogisticRegression

from fusion_jax.evaluation import importance
from fusion_jax.evaluation.importance import (
    Relation,
    importance_ranks,
    merge_related,
    permutation_importance,
    rank_product,
    related_columns,
)
from fusion_jax.evaluation.ranked import make_ranked
from fusion_jax.evaluation.shuffling import auc, reliance
from tests.helpers import assert_close

# Median loss of AUC in percent and printed rank, for Non-Image-Only, Probability, Feature and Learned Feature Fusion:
# Holste 2021, in the order in which it prints the features; see specs/breast_mri_fusion.md, section 6.1.
PUBLISHED = {
    "MRI indication": ([21.26, 8.29, 5.72, 7.17], [1, 1, 1, 1]),
    "software version": ([2.71, 1.14, 0.35, 0.96], [2, 2, 4, 3]),
    "age": ([2.55, 0.64, 0.93, 1.74], [3, 5, 2, 2]),
    "MIP height": ([1.81, 0.33, 0.55, 0.80], [5, 6, 3, 4]),
    "precession frequency": ([1.01, 1.11, 0.31, 0.31], [8, 3, 5, 7]),
    "MIP max intensity": ([2.50, 0.21, 0.00, 0.31], [4, 8, 18, 8]),
    "BPE": ([1.33, 0.14, 0.23, 0.11], [7, 10, 6, 13]),
    "reconstruction diameter": ([0.13, 0.31, 0.03, 0.44], [15, 7, 13, 5]),
    "pixel dimensions": ([1.60, 0.83, -0.00, -0.05], [6, 4, 17, 17]),
    "repetition time": ([0.69, 0.11, 0.18, 0.15], [10, 11, 7, 10]),
    "breast density": ([0.45, 0.16, 0.16, 0.29], [13, 9, 8, 9]),
}

# The features that the paper leaves to its supplement: medians of the published draws.
UNPRINTED = {
    "MIP width": [0.23, -0.01, 0.03, 0.12],
    "flip angle": [-0.05, -0.00, -0.06, 0.05],
    "echo time": [0.67, 0.05, 0.02, 0.15],
    "echo train length": [0.61, 0.03, 0.10, 0.02],
    "field strength": [0.81, 0.00, 0.05, 0.32],
    "laterality": [0.13, -0.01, -0.01, -0.05],
    "shift days": [0.07, 0.07, 0.05, 0.07],
}


@pytest.fixture(scope="module")
def clinical():
    """A logistic model of age, three levels of stage as two dummies, and a column it does not use."""
    rng = np.random.default_rng(3)
    n = 400
    age, stage, noise = rng.normal(size=n), rng.integers(0, 3, n), rng.normal(size=n)
    columns = np.stack([age, stage == 1, stage == 2, noise], axis=1).astype(float)
    labels = (rng.random(n) < 1 / (1 + np.exp(-(0.9 * age + 1.2 * (stage == 2) - 0.6 * (stage == 1))))) * 1
    model = LogisticRegression().fit(columns, labels)
    model.coef_[0, 3] = 0.0
    return columns, labels, model


GROUPS = {"age": [0], "stage": [1, 2], "noise": [3]}


def score(model):
    return lambda inputs: model.predict_proba(inputs["clinical"])[:, 1]


# Known answers


@pytest.mark.parametrize("weight", [1.0, 0.5])
def test_a_copy_of_the_label_loses_all_that_exceeds_chance(weight):
    labels = np.arange(2000) % 2
    noise = np.random.default_rng(0).normal(size=2000)
    columns = np.stack([labels * 10.0 * weight, noise], axis=1)
    found = permutation_importance(lambda inputs: inputs["clinical"].sum(axis=1), {"clinical": columns}, labels)
    assert found.median[0] == pytest.approx(100 * (found.baseline - 0.5) / found.baseline, abs=1)
    assert found.names == ("column 0", "column 1")
    assert found.draws.shape == (2, 30)


@pytest.mark.parametrize("batched", [False, True])
def test_an_unused_column_has_an_importance_of_exactly_zero(clinical, batched):
    columns, labels, model = clinical
    found = permutation_importance(
        score(model), {"clinical": columns}, labels, groups=GROUPS, batched=batched, repeats=9
    )
    assert (found.draws[2] == 0).all()
    assert found.median_error[2] == 0
    assert found.rank[2] == 3
    assert (found.median[:2] > 1).all()


def test_stacked_permutations_are_those_of_the_loop(clinical, monkeypatch):
    columns, labels, model = clinical
    loop = permutation_importance(score(model), {"clinical": columns}, labels, groups=GROUPS, repeats=10)
    monkeypatch.setattr("fusion_jax.evaluation.shuffling.ROWS_AT_ONCE", 2900)  # seven a call: 31 do not fill the last
    stacked = permutation_importance(
        score(model), {"clinical": columns}, labels, groups=GROUPS, repeats=10, batched=True
    )
    assert_close(stacked.draws, loop.draws, 1e-12)


def test_a_function_under_jit_takes_features_in_place_of_images(clinical):
    columns, labels, model = clinical
    weights = jnp.asarray(model.coef_[0], jnp.float32)
    inputs = {"clinical": columns.astype(np.float32), "image": labels[:, None].astype(np.float32)}
    traces = []

    @jax.jit
    def head(inputs):
        traces.append(1)
        return inputs["clinical"] @ weights + inputs["image"][:, 0]

    found = permutation_importance(head, inputs, labels, groups=GROUPS, whole=["image"], batched=True, repeats=5)
    assert len(traces) == 1
    assert found.names == ("age", "stage", "noise", "image")
    assert (found.draws[2] == 0).all()

    def numpy_head(inputs):
        return inputs["clinical"] @ model.coef_[0] + inputs["image"][:, 0]

    loop = permutation_importance(numpy_head, inputs, labels, groups=GROUPS, whole=["image"], repeats=5)
    assert found.draws == pytest.approx(loop.draws, abs=0.01)


def test_what_a_feature_is_permuted_with_does_not_change_its_draws(clinical):
    columns, labels, model = clinical
    few = permutation_importance(score(model), {"clinical": columns}, labels, groups={"stage": [1, 2]}, repeats=4)
    more = permutation_importance(score(model), {"clinical": columns}, labels, groups=GROUPS, repeats=6)
    assert (more.draws[1, :4] == few.draws[0]).all()
    other = permutation_importance(score(model), {"clinical": columns}, labels, groups=GROUPS, repeats=6, seed=1)
    assert (other.draws[:2] != more.draws[:2]).all()


def test_a_difference_is_the_percentage_times_the_baseline(clinical):
    columns, labels, model = clinical
    percent, plain = (
        permutation_importance(score(model), {"clinical": columns}, labels, groups=GROUPS, repeats=5, unit=unit)
        for unit in ("percent", "difference")
    )
    assert plain.draws == pytest.approx(percent.draws * percent.baseline / 100)
    assert plain.unit == "difference"


def test_a_whole_source_loses_what_the_model_relies_on(clinical):
    columns, labels, model = clinical
    found = permutation_importance(
        score(model), {"clinical": columns}, labels, whole=["clinical"], unit="difference", repeats=400
    )
    relied = reliance(score(model), {"clinical": columns}, labels, "clinical", repeats=400, seed=1)
    assert found.draws.mean() == pytest.approx(relied.loss, abs=6 * relied.error)
    assert found.related == ()


def test_several_classes_have_an_importance(key):
    labels = np.arange(90) % 3
    columns = np.stack([labels == 1, labels == 2, np.arange(90) % 7], axis=1).astype(float)
    weights = np.array([[-1.0, 1, -1], [-1, -1, 1], [0, 0, 0]])
    found = permutation_importance(
        lambda inputs: inputs["clinical"] @ weights, {"clinical": columns}, labels, groups={"a": [0, 1], "b": [2]}
    )
    assert found.baseline == 1
    assert found.median[0] == pytest.approx(50, abs=8)
    assert (found.draws[1] == 0).all()


def test_draws_agree_with_scikit_learn(clinical):
    columns, labels, model = clinical
    ours = permutation_importance(
        score(model), {"clinical": columns}, labels, unit="difference", repeats=200, batched=True
    )
    theirs = sklearn_importance(model, columns, labels, scoring="roc_auc", n_repeats=200, random_state=0)
    error = np.sqrt(ours.draws.var(axis=1) / 200 + theirs.importances.var(axis=1) / 200)
    assert (np.abs(ours.draws.mean(axis=1) - theirs.importances_mean) <= 4 * error).all()
    spread = ours.draws.std(axis=1)[:3] / theirs.importances_std[:3]
    assert spread == pytest.approx(1, abs=0.25)


def test_the_error_of_a_median_is_its_spread_over_seeds():
    draws = np.random.default_rng(0).normal(size=(2000, 30))
    assert importance._median_error(draws).mean() == pytest.approx(np.median(draws, axis=1).std(), rel=0.15)


# Dummies


def seen_blocks(columns, groups, **options):
    """The blocks of columns that a model is shown."""
    blocks = []

    def apply(inputs):
        blocks.append(inputs["clinical"].copy())
        return columns[:, 0]

    labels = np.arange(len(columns)) % 2
    permutation_importance(apply, {"clinical": columns}, labels, groups=groups, repeats=3, **options)
    return blocks[2:]  # after the two of the data as they are


def test_levels_of_a_group_stay_levels_and_as_frequent():
    level = np.arange(60) % 4
    columns = np.stack([np.arange(60), level == 1, level == 2, level == 3], axis=1).astype(float)
    for block in seen_blocks(columns, {"level": [1, 2, 3]}):
        assert (block[:, 0] == columns[:, 0]).all()
        assert (block[:, 1:].sum(axis=0) == 15).all()
        assert (block[:, 1:].sum(axis=1) == 0).sum() == 15
        assert not (block == columns).all()


def test_the_published_reading_loses_the_reference_level():
    level = np.arange(60) % 4
    columns = np.stack([np.arange(60), level == 1, level == 2, level == 3], axis=1).astype(float)
    for block in seen_blocks(columns, {"level": [1, 2, 3], "number": [0]}, legacy=True)[:3]:
        assert (block[:, 1:].sum(axis=1) == 1).all()
        assert block[:, 1:].sum(axis=0).tolist() == [30, 15, 15]  # the reference is merged with the first level


def test_the_published_reading_counts_a_merged_level_as_importance():
    """What the reading costs: a group that only tells reference from first level loses all in one way, more or less."""
    level = np.arange(400) % 2
    columns = np.stack([level == 1, np.zeros(400)], axis=1).astype(float)
    labels = level
    apply = {"groups": {"level": [0, 1]}, "unit": "difference"}
    rows = permutation_importance(lambda inputs: inputs["clinical"][:, 0], {"clinical": columns}, labels, **apply)
    legacy = permutation_importance(
        lambda inputs: inputs["clinical"][:, 0], {"clinical": columns}, labels, legacy=True, **apply
    )
    assert (legacy.draws == 0.5).all()  # every row holds the first level: all ties
    assert rows.draws.std() > 0


# Patients


def test_images_of_a_patient_keep_one_clinical_record():
    patients = np.repeat(np.arange(30), np.arange(30) % 3 + 1)
    age = np.random.default_rng(0).normal(size=30)[patients]
    columns = np.stack([age, np.arange(len(patients))], axis=1)
    blocks = seen_blocks(columns, {"age": [0], "image number": [1]}, patients=patients)
    for block in blocks[:3]:
        for patient in range(30):
            assert len(set(block[patients == patient, 0])) == 1
    for block in blocks[3:]:
        donors = patients[block[:, 1].astype(int)]
        for patient in range(30):
            assert len(set(donors[patients == patient])) == 1


# Ranks


def test_ranks_and_their_product_give_the_published_table():
    medians = np.array([values for values, _ in PUBLISHED.values()] + list(UNPRINTED.values())).T
    product = rank_product(medians)
    printed = np.array([ranks for _, ranks in PUBLISHED.values()]).T
    # Printed medians tie where the unrounded ones do not: the printed rank is one of the ranks of the tie.
    lowest, highest = (rankdata(-np.abs(medians), method=method, axis=1)[:, :11] for method in ("min", "max"))
    assert ((lowest <= printed) & (printed <= highest)).all()
    assert (product.rank[:, :11] == (lowest + highest) / 2).all()
    untied = lowest == highest
    assert (product.rank[:, :11][untied] == printed[untied]).all()
    assert untied.mean() > 0.7
    # The eleven that the paper prints come first. In its order too, but for one pair that rounding turns round
    # (geometric means of the printed ranks 9.09 and 9.13)...
    names = list(PUBLISHED)
    swapped = [name for name, place in zip(names, product.order, strict=False) if names[place] != name]
    assert swapped == ["reconstruction diameter", "pixel dimensions"]
    # ... and exactly, where the printed ranks say which of the tied medians was larger.
    given = np.array([[*row, *np.full(7, 99)] for row in printed])
    for ranks, row in zip(given, np.abs(medians), strict=True):
        left = sorted(set(range(1, 19)) - set(ranks))
        ranks[11 + np.argsort(-row[11:], kind="stable")] = left
    exact = rank_product(np.abs(medians) + 1e-4 * (19 - given))
    assert (exact.rank == given).all()
    assert exact.order[:11].tolist() == list(range(11))
    assert exact.mean[:3] == pytest.approx([1, 48**0.25, 60**0.25])


def test_a_permutation_that_helps_ranks_by_its_size():
    assert importance_ranks(np.array([-2.0, 1.0, 0.0, -0.0])).tolist() == [1, 2, 3.5, 3.5]
    with pytest.raises(ValueError, match="1 median not finite"):
        rank_product(np.array([[1.0, np.nan]]))


# Intervals


def test_weights_of_one_give_the_medians_and_repeated_rows_those_of_the_repeated_data():
    rng = np.random.default_rng(0)
    labels = np.arange(50) % 2
    scores = rng.integers(0, 12, (6, 50)) + labels * 3.0
    weights = rng.integers(0, 3, 50)
    for times in (np.ones(50, int), weights):
        rows = np.repeat(np.arange(50), times)
        areas = np.array([auc(labels[rows], one[rows]) for one in scores])
        data = make_ranked(labels == 1, scores)
        found = importance._areas(data, jnp.asarray(times, jnp.float32))
        assert_close(found, areas)
        percent = importance._median_percent(data, jnp.asarray(times, jnp.float32))
        assert float(percent) == pytest.approx(np.median(100 * (areas[0] - areas[1:]) / areas[0]), rel=1e-4)


def test_intervals_hold_the_median_and_an_unused_column_has_none_of_width(clinical):
    columns, labels, model = clinical
    options = {"groups": GROUPS, "repeats": 5, "resamples": 200}
    found = permutation_importance(score(model), {"clinical": columns}, labels, **options)
    assert (found.interval.low[:2] < found.median[:2]).all()
    assert (found.median[:2] < found.interval.high[:2]).all()
    assert found.interval.low[2] == found.interval.high[2] == 0
    twice = np.tile(np.arange(400), 2)
    doubled = permutation_importance(
        score(model), {"clinical": columns[twice]}, labels[twice], patients=twice, **options
    )
    width = found.interval.high - found.interval.low
    assert (doubled.interval.high - doubled.interval.low)[:2] == pytest.approx(width[:2], rel=0.3)


# Relations


def test_association_is_correlation_cramers_v_and_the_correlation_ratio():
    rng = np.random.default_rng(0)
    x = rng.normal(size=300)
    y = x + rng.normal(size=300)
    level = np.digitize(x, [-0.5, 0.5])
    other = (level + (rng.random(300) < 0.3)) % 4
    columns = np.stack([x, y, level == 1, level == 2, other == 1, other == 2, other == 3], axis=1).astype(float)
    groups = {"x": [0], "y": [1], "level": [2, 3], "other": [4, 5, 6]}
    found = {pair[:2]: pair[2] for pair in related_columns(columns, groups, threshold=0.0)}
    assert found["x", "y"] == pytest.approx(abs(np.corrcoef(x, y)[0, 1]), abs=1e-9)
    table = np.array([[np.sum((level == a) & (other == b)) for b in range(4)] for a in range(3)])
    assert found["level", "other"] == pytest.approx(association(table, method="cramer"), abs=1e-9)
    within = np.array([x[level == one].mean() for one in range(3)])[level]
    assert found["x", "level"] == pytest.approx(np.sqrt(within.var() / x.var()), abs=1e-9)


def test_constant_columns_are_related_to_nothing():
    columns = np.stack([np.full(20, 1e6), np.arange(20.0), np.full(20, 0.1)], axis=1)
    assert related_columns(columns, threshold=0.0) == ()


def test_related_columns_are_reported_and_can_be_merged(clinical, caplog):
    columns, labels, model = clinical
    both = np.column_stack([columns, columns[:, 0] + 0.3 * np.sin(np.arange(400))])
    groups = GROUPS | {"birth year": [4]}
    with caplog.at_level(logging.WARNING, "fusion_jax"):
        found = permutation_importance(
            lambda inputs: model.predict_proba(inputs["clinical"][:, :4])[:, 1],
            {"clinical": both},
            labels,
            groups=groups,
            repeats=2,
        )
    assert [relation[:2] for relation in found.related] == [("age", "birth year")]
    assert re.search(
        r"clinical: 1 pair of features related by more than 0.7 share .*: age and birth year \(0.9\d\)", caplog.text
    )
    merged = merge_related(groups, found.related)
    assert merged == {"age + birth year": (0, 4), "stage": (1, 2), "noise": (3,)}
    assert related_columns(both, merged) == ()
    chain = [Relation("b", "c", 0.8), Relation("a", "c", 0.9)]
    assert merge_related({"a": [0], "b": [1], "c": [2], "d": [3]}, chain) == {"a + b + c": (0, 1, 2), "d": (3,)}
    with pytest.raises(ValueError, match="'z' is not among the groups; they hold a"):
        merge_related({"a": [0]}, [Relation("a", "z", 0.9)])


# Messages


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"groups": {"age": [4]}},
            r"groups\['age'\] is \[4\]; expected different columns of inputs\['clinical'\], 0 to 3",
        ),
        ({"groups": {"age": []}}, r"groups\['age'\] is \[\]"),
        ({"groups": {}}, "groups is empty"),
        ({"source": "blood"}, "no source 'blood' in inputs; they hold clinical"),
        ({"whole": ["ct"]}, "no source 'ct' in inputs"),
        ({"groups": {"clinical": [0]}, "whole": ["clinical"]}, "both a source under `whole` and a feature"),
        ({"unit": "ratio"}, "unit is 'ratio'; expected 'percent' or 'difference'"),
        ({"repeats": 0}, "repeats is 0"),
        ({"legacy": True, "groups": {"age": [0, 1]}}, r"groups\['age'\]: legacy=True needs dummies"),
        ({"metric": lambda labels, scores: -1.0}, "the metric is -1 on the data; .* unit='difference'"),
        ({"metric": auc, "resamples": 9}, "offered for the default metric"),
        ({"labels": np.zeros(400, int)}, "labels: found 0 in 400 rows"),
        ({"inputs": {"clinical": np.zeros((400, 2, 2))}}, r"shape \(400, 2, 2\); expected \(cases, columns\)"),
    ],
)
def test_what_is_wrong_is_named(clinical, change, message):
    columns, labels, model = clinical
    given = {"apply": score(model), "inputs": {"clinical": columns}, "labels": labels} | change
    with pytest.raises(ValueError, match=message):
        permutation_importance(given.pop("apply"), given.pop("inputs"), given.pop("labels"), **given)


def test_columns_that_are_not_encoded_are_named():
    with pytest.raises(ValueError, match="row 1, column 0 is not finite"):
        related_columns(np.array([[0.0], [np.nan]]))


def test_an_interval_needs_one_score_a_case(clinical):
    columns, labels, model = clinical
    with pytest.raises(ValueError, match=r"an interval needs scores \(n,\)"):
        permutation_importance(
            lambda inputs: model.predict_proba(inputs["clinical"]), {"clinical": columns}, labels, resamples=9
        )
