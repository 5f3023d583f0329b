"""One call judges a table of predictions: the published figures, the unit of inference, and what is refused."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from fusion_jax.data.collections import breast_mri_predictions
from fusion_jax.evaluation.assembly import evaluate
from fusion_jax.evaluation.estimates import MetricKey
from fusion_jax.evaluation.operating import CARRIED_OVER, GIVEN, READ_OFF, make_rules
from fusion_jax.evaluation.paired import benjamini_hochberg, holm
from fusion_jax.evaluation.panel import make_panel
from fusion_jax.evaluation.protocol import Protocol
from fusion_jax.evaluation.spread import fold_tests, fold_values
from fusion_jax.evaluation.subgroups import judge_subgroups
from fusion_jax.records.predictions import check_predictions

QUICK = {"resamples": 200, "permutations": 100, "curves": False}


def judged(*tables, protocol=None, level="case", view=None, covariates=None, **options):
    predictions = check_predictions({f"{i}.csv": table for i, table in enumerate(tables)}, **options)
    panel = make_panel(predictions, level=level)
    if view is not None:
        view = panel.each()[view]
    return evaluate(panel, protocol or Protocol(**QUICK), view=view, covariates=covariates)


def estimate(found, model, metric, rule="", method=0):
    rows = [r for r in found.judged.estimates if (r.model, r.metric, r.rule, r.of_class) == (model, metric, rule, "")]
    return rows[method]


def table(model, scores, labels, **columns):
    """Scores that are no probabilities, so that nothing is calibrated."""
    return pd.DataFrame({"case_id": np.arange(len(labels)), "model": model, "label": labels, "score": scores} | columns)


@pytest.fixture(scope="module")
def published():
    protocol = Protocol(singles=("Image-Only",), permutations=200)
    return evaluate(make_panel(check_predictions({"breast.csv": breast_mri_predictions()}, scores="score")), protocol)


@pytest.mark.parametrize(
    ("model", "auc", "low", "high", "specificity"),
    [("Image-Only", 0.849, 0.834, 0.864, 0.301), ("Learned Feature Fusion", 0.898, 0.885, 0.909, 0.491)],
)
def test_the_published_table_comes_out_to_the_printed_digit(published, model, auc, low, high, specificity):
    area = estimate(published, model, "auc")
    assert round(area.value, 3) == auc
    # The printed ends are rounded, and resampled in the paper too.
    assert abs(area.low - low) < 0.0005 + 4 * np.hypot(area.low_error, area.low_error)
    assert abs(area.high - high) < 0.0005 + 4 * np.hypot(area.high_error, area.high_error)
    assert round(estimate(published, model, "specificity_at_sensitivity").value, 3) == specificity


@pytest.mark.parametrize(
    ("model", "low", "high"), [("Image-Only", 0.231, 0.370), ("Learned Feature Fusion", 0.388, 0.553)]
)
def test_the_published_intervals_of_specificity_come_out(published, model, low, high):
    found = estimate(published, model, "specificity_at_sensitivity")
    assert abs(found.low - low) < 0.0005 + 4 * np.sqrt(2) * found.low_error
    assert abs(found.high - high) < 0.0005 + 4 * np.sqrt(2) * found.high_error


def test_fusion_recognises_743_more_benign_cases(published):
    benign = [row for row in published.changes if row.rule == READ_OFF and row.of_class == 0]
    assert [(row.first_right, row.second_right, row.net) for row in benign] == [(1175, 1918, 743)]


def test_the_published_fusion_helped_by_every_test(published):
    [verdict] = published.benefits
    assert verdict.helped
    assert verdict.p_value == pytest.approx(5e-14, rel=2)  # specs/breast_mri_fusion.md, section 6
    assert {row.test for row in published.comparisons if row.key == MetricKey("auc")} == {
        "bootstrap z", "DeLong", "rank permutation",
    }  # fmt: skip


def test_a_table_without_patients_says_that_its_intervals_are_too_narrow(published):
    assert any("too narrow" in warning for warning in published.warnings)


# The unit of inference.


def noise(rng, cases=80, repeats=1):
    """Two models of equal worth: label, and for each repeat their scores."""
    labels = np.arange(cases) % 2
    return labels, [tuple(labels + rng.normal(0, 1.2, cases) for _ in range(2)) for _ in range(repeats)]


def two_tables(labels, runs, **columns):
    return [
        pd.concat([table(name, pair[which], labels, repeat=number, **columns) for number, pair in enumerate(runs)])
        for which, name in enumerate(("A", "B"))
    ]


def p_value(found, test="bootstrap z"):
    return next(row.p_value for row in found.comparisons if row.key == MetricKey("auc") and row.test == test)


def false_positives(kind, cohorts, tests=("bootstrap z", "DeLong", "clustered DeLong (Obuchowski)")):
    """Share of cohorts of equal models in which a test finds a difference at the level of 5 %."""
    found = {}
    for number in range(cohorts):
        rng = np.random.default_rng([len(kind), number])
        if kind == "repeated":
            labels = np.arange(80) % 2
            once = [labels + rng.normal(0, 1.2, 80) for _ in range(2)]
            # A case scores alike in every repeat: ten repeats know little more than one.
            runs = [tuple(scores + rng.normal(0, 0.2, 80) for scores in once) for _ in range(10)]
            tables = two_tables(labels, runs, patient_id=np.arange(80))
        elif kind == "clustered":
            patient = np.repeat(np.arange(40), 2)
            # Four of the forty have a breast of each kind.
            labels = patient % 2 * (np.arange(80) >= 8) + (np.arange(80) < 8) * (np.arange(80) % 2)
            runs = [tuple(labels + np.repeat(rng.normal(0, 1, 40), 2) + rng.normal(0, 0.3, 80) for _ in range(2))]
            tables = two_tables(labels, runs, patient_id=patient)
        else:
            labels = np.arange(80) % 2
            tables = two_tables(
                labels, [tuple(labels + rng.normal(0, 1.2, 80) for _ in range(2))], patient_id=np.arange(80)
            )
        one = judged(*tables)
        for test in tests:
            if any(row.test == test for row in one.comparisons):
                found.setdefault(test, []).append(p_value(one, test) < 0.05)
    return {test: float(np.mean(hits)) for test, hits in found.items()}


@pytest.mark.parametrize("kind", ["independent", "clustered", "repeated"])
def test_equal_models_rarely_differ(kind):
    # 40 cohorts at a level of 5 %: more than 8 is one in a thousand; taking all rows as independent gives 12 and more.
    for test, share in false_positives(kind, 40).items():
        assert share <= 0.2, test


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["independent", "clustered", "repeated"])
def test_equal_models_differ_at_the_nominal_level(kind):
    # 600 cohorts: the standard error of the share is 0.9 %.
    for test, share in false_positives(kind, 600).items():
        assert 0.025 <= share <= 0.08, test


def test_ten_repeats_are_no_more_cases_than_one():
    rng = np.random.default_rng(5)
    labels, [pair] = noise(rng)
    once = judged(*two_tables(labels, [pair]))
    ten = judged(*two_tables(labels, [pair] * 10))
    assert len(ten.panel) == 80
    assert estimate(ten, "A", "auc")._replace(method="") == estimate(once, "A", "auc")._replace(method="")
    assert p_value(ten) == p_value(once)
    assert ten.view.name == "ensemble of 10 trainings"


def test_rows_of_one_patient_written_twice_add_nothing():
    rng = np.random.default_rng(6)
    labels, [pair] = noise(rng)
    protocol = Protocol(threshold=0.5, **QUICK)
    once = judged(*two_tables(labels, [pair], patient_id=np.arange(80)), protocol=protocol)
    twice = [
        pd.concat([one, one.assign(case_id=one["case_id"] + 1000)]).reset_index(drop=True)
        for one in two_tables(labels, [pair], patient_id=np.arange(80))
    ]
    again = judged(*twice, protocol=protocol)
    assert again.panel.clustered
    for metric in ("accuracy", "sensitivity", "specificity", "precision"):
        first, second = (estimate(found, "A", metric, GIVEN) for found in (once, again))
        np.testing.assert_allclose((first.low, first.high), (second.low, second.high))
        assert (first.method, second.method) == ("Wilson", "Wilson over patients")
    for method in (0, 1):
        first, second = (estimate(found, "A", "auc", method=method) for found in (once, again))
        np.testing.assert_allclose((first.low, first.high), (second.low, second.high), atol=1e-6)
    assert estimate(again, "A", "auc", method=1).method.startswith("clustered DeLong")


def test_one_training_can_be_judged_by_itself():
    rng = np.random.default_rng(7)
    labels, runs = noise(rng, repeats=2)
    first = judged(*two_tables(labels, runs), view=0)
    alone = judged(*two_tables(labels, runs[:1]))
    assert first.view.name == "repeat 0"
    assert estimate(first, "A", "auc").value == estimate(alone, "A", "auc").value
    assert {row.trainings for row in first.trainings} == {2}
    each = [roc_auc_score(labels, run[0]) for run in runs]
    spread = next(row for row in first.trainings if (row.model, row.metric) == ("A", "auc"))
    assert (spread.mean, spread.sd) == pytest.approx((np.mean(each), np.std(each, ddof=1)))
    assert (spread.least, spread.most) == pytest.approx((min(each), max(each)))


def test_a_class_of_one_patient_gives_no_interval_no_p_value_and_no_benefit():
    rng = np.random.default_rng(16)
    labels = (np.arange(60) == 3).astype(int)
    tables = [table(name, rng.normal(size=60) + gain * labels, labels) for name, gain in (("A", 0), ("B", 9))]
    found = judged(*tables, protocol=Protocol(singles=("A",), **QUICK))
    assert np.isnan(estimate(found, "A", "auc").low)
    assert estimate(found, "A", "auc").method == "none: a single case has the label 1"
    assert np.isnan(p_value(found))
    assert not found.benefits[0].helped
    assert any("Only 1 case with label 1" in warning for warning in found.warnings)


def test_classes_that_are_parted_perfectly_are_no_certainty():
    labels = np.arange(40) % 2
    found = judged(table("A", labels * 1.0 + 2, labels), table("B", np.full(40, 3.0), labels))
    for model, value in (("A", 1.0), ("B", 0.5)):
        for method in (0, 1):
            row = estimate(found, model, "auc", method=method)
            assert row.value == value
            assert np.isnan((row.low, row.high)).all()
    assert np.isnan(p_value(found))
    assert np.isnan(next(row.low for row in found.comparisons if row.key == MetricKey("auc")))


def test_patients_of_many_sets_of_classes_vary_in_resamples():
    rng = np.random.default_rng(17)
    labels, patient = rng.integers(0, 5, 240), np.repeat(np.arange(60), 4)
    raw = np.eye(5)[labels] + rng.normal(0, 1.5, (240, 5)) + np.repeat(rng.normal(0, 1, (60, 5)), 4, axis=0)
    frame = table("A", None, labels, patient_id=patient).drop(columns="score")
    found = judged(frame.assign(**{f"score_{name}": raw[:, name] for name in range(5)}))
    sizes = np.bincount(found.judged.design.stratum)
    assert sizes.min() >= 10


def test_models_that_were_not_trained_equally_often_are_told_apart():
    labels, runs = noise(np.random.default_rng(18), repeats=2)
    first, second = two_tables(labels, runs)
    found = judged(first, second[second["repeat"] == 0])
    assert any("not trained equally often (A 2, B 1)" in warning for warning in found.warnings)
    alone = judged(first, second[second["repeat"] == 0], view=0)
    assert not any("equally often" in warning for warning in alone.warnings)


def test_patients_in_several_folds_are_a_warning():
    labels, [pair] = noise(np.random.default_rng(19))
    # Rows go to folds two by two, as patients do but for the first, who has four.
    patient = np.arange(80) // 2
    patient[2:4] = 0
    found = judged(*two_tables(labels, [pair], patient_id=patient, fold=np.arange(80) // 2 % 2))
    assert any(warning.startswith("1 patient (0) with cases in several folds") for warning in found.warnings)


def sizes_of_folds(*tables):
    panel = make_panel(check_predictions({"p.csv": pd.concat(tables)}))
    return [
        (row.test.n_test, row.test.n_train) for row in fold_tests(panel, fold_values(panel, Protocol()), Protocol())
    ]


def test_folds_of_the_same_name_with_other_rows_are_not_compared_fold_by_fold():
    labels, [pair] = noise(np.random.default_rng(20))
    one, other = np.arange(80) // 2 % 4, np.arange(80) // 20
    first = table("A", pair[0], labels, fold=one)
    assert sizes_of_folds(first, table("B", pair[1], labels, fold=one)) == [(20, 60)]
    assert sizes_of_folds(first, table("B", pair[1], labels, fold=other)) == []


def test_patients_who_validated_a_fold_did_not_train_it():
    labels, [pair] = noise(np.random.default_rng(21))
    fold, tables = np.arange(80) // 2 % 4, []
    for name, scores in zip("AB", pair, strict=True):
        test = table(name, scores, labels, fold=fold, split="test")
        tables += [test, test.assign(fold=(fold + 1) % 4, split="val")]
    assert sizes_of_folds(*tables) == [(20, 40)]


def test_pairs_are_adjusted_within_their_metric_and_test():
    rng = np.random.default_rng(26)
    labels = np.arange(80) % 2
    gains = {"A": 0.0, "B": 1.0, "C": 1.5}
    found = judged(*(table(name, gain * labels + rng.normal(size=80), labels) for name, gain in gains.items()))
    families = {}
    for row in found.comparisons:
        families.setdefault((row.key, row.test), []).append(row)
    for rows in families.values():
        assert [(row.first, row.second) for row in rows] == [("A", "B"), ("A", "C"), ("B", "C")]
        p_values = np.array([row.p_value for row in rows])
        np.testing.assert_array_equal([row.p_holm for row in rows], holm(p_values))
        np.testing.assert_array_equal([row.p_benjamini_hochberg for row in rows], benjamini_hochberg(p_values))
    # Without single sources, every pair changes sides once, in the order of the table.
    assert [(row.first, row.second) for row in found.changes[::2]] == [("A", "B"), ("A", "C"), ("B", "C")]


# Operating points.


def with_validation(shift=0.0):
    rng = np.random.default_rng(8)
    parts = []
    for fold in (0, 1):
        # The second fold's model answers on another scale.
        for split, count in (("test", 40), ("val", 60)):
            labels = np.arange(count) % 2
            scores = labels + rng.normal(0, 0.8, count) + shift * fold
            ids = [f"{split}{fold}_{i}" for i in range(count)]
            parts.append(table("A", scores, labels, split=split, fold=fold).assign(case_id=ids))
    return pd.concat(parts)


def test_thresholds_are_carried_over_from_validation_rows_of_the_same_fold():
    found = judged(with_validation(shift=50.0))
    rule = next(rule for rule in found.rules if rule.name == CARRIED_OVER)
    low, high = rule.operating["A"].thresholds.values()
    assert high - low > 40
    sensitivity = estimate(found, "A", "sensitivity", CARRIED_OVER)
    assert sensitivity.value > 0.8
    assert sensitivity.rows == 40
    assert any("few valid" in warning for warning in found.warnings)


def test_scores_of_folds_on_different_scales_are_noticed():
    found = judged(with_validation(shift=50.0))
    assert estimate(found, "A", "within_fold_auc").value > estimate(found, "A", "auc").value + 0.05
    assert any("pooled AUC" in warning for warning in found.warnings)


def test_without_validation_rows_no_threshold_is_carried_over_and_the_report_says_why():
    labels, [pair] = noise(np.random.default_rng(9))
    found = judged(*two_tables(labels, [pair]))
    assert [rule.name for rule in found.rules] == [READ_OFF]
    assert any("has no validation rows" in note for note in found.rule_notes)


def test_figures_at_a_threshold_that_the_rows_chose_have_no_interval_and_no_test():
    labels, [pair] = noise(np.random.default_rng(10))
    found = judged(*two_tables(labels, [pair]), protocol=Protocol(threshold=0.5, **QUICK))
    chosen = estimate(found, "A", "specificity", READ_OFF)
    assert np.isnan(chosen.low)
    assert chosen.method.startswith("none")
    assert {row.rule for row in found.comparisons if row.rule} == {GIVEN}
    # Every test of one metric is of the same difference.
    bootstrapped = {row.key: row.difference for row in found.comparisons if row.test == "bootstrap z"}
    others = [row for row in found.comparisons if row.test != "bootstrap z"]
    assert {row.test for row in others} >= {"DeLong", "rank permutation", "McNemar mid-p"}
    for row in others:
        assert row.difference == pytest.approx(bootstrapped[row.key]), row
    precise = estimate(found, "A", "precision", GIVEN)
    called = np.asarray(pair[0]) >= 0.5
    assert (precise.rows, precise.events) == (called.sum(), (called & (labels == 1)).sum())


def test_a_given_threshold_that_is_no_probability_is_refused_for_logits():
    labels, [pair] = noise(np.random.default_rng(22))
    with pytest.raises(ValueError, match="threshold 0 with probabilities, which logits have become"):
        judged(*two_tables(labels, [pair]), scores="logit", protocol=Protocol(threshold=0.0, **QUICK))


# Covariates, classes, times.


def test_subgroups_count_patients_and_have_no_interval_where_the_rows_chose_the_threshold():
    labels, [pair] = noise(np.random.default_rng(23))
    sites = pd.DataFrame({"site": [1000001] * 40 + [1000002] * 40, "mixed": [1, "a"] * 40})

    def cells(patients, covariates):
        frame = pd.concat(two_tables(labels, [pair], patient_id=patients))
        panel = make_panel(check_predictions({"p.csv": frame}))
        rules, _ = make_rules(panel, panel.ensemble(), Protocol())
        return judge_subgroups(panel, panel.ensemble(), rules, covariates, Protocol())

    areas = [cell for cell in cells(np.arange(80), sites) if cell.metric == "auc"]
    assert {(cell.value, cell.rows) for cell in areas if cell.column == "site"} == {("1000001", 40), ("1000002", 40)}
    assert {cell.withheld for cell in areas if cell.column == "mixed"} == {"fewer than 5 patients of a class"}
    chosen = [cell for cell in cells(np.arange(80), sites) if cell.rule == READ_OFF]
    assert chosen
    assert all(np.isnan(cell.low) and not np.isnan(cell.estimate) for cell in chosen)
    assert {cell.withheld for cell in cells(np.arange(80) // 4, sites[["site"]])} == {"fewer than 20 patients"}


def test_subgroups_are_joined_by_case_and_small_cells_are_withheld():
    labels, [pair] = noise(np.random.default_rng(11))
    covariates = pd.DataFrame({"site": ["x"] * 60 + ["y"] * 20 + ["z"] * 9}, index=[str(i) for i in range(89)])
    covariates.loc["79", "site"] = "w"
    found = judged(*two_tables(labels, [pair]), covariates=covariates)
    areas = {(cell.value, cell.model): cell for cell in found.cells if cell.metric == "auc"}
    assert areas["x", "A"].rows == 60
    one, other = (roc_auc_score(labels[:60], scores[:60]) for scores in pair)
    assert (areas["x", "A"].estimate, areas["x", "B"].estimate) == pytest.approx((one, other))
    assert areas["x", "B"].difference == pytest.approx(other - one)
    assert areas["x", "B"].difference_low < other - one < areas["x", "B"].difference_high
    assert areas["w", "A"].withheld == "fewer than 20 rows"
    assert areas["w", "A"].rows == -1
    assert np.isnan(areas["w", "A"].estimate)
    with pytest.raises(ValueError, match="no row of case '0' and 1 others"):
        judged(*two_tables(labels, [pair]), covariates=covariates.iloc[2:])


def test_three_classes_are_judged_one_against_the_rest():
    from sklearn.metrics import balanced_accuracy_score

    rng = np.random.default_rng(12)
    labels = np.arange(90) % 3
    raw = np.eye(3)[labels] + rng.normal(0, 0.8, (90, 3))
    chances = np.exp(raw) / np.exp(raw).sum(axis=1, keepdims=True)
    columns = {f"score_{name}": chances[:, i] for i, name in enumerate("abc")}
    frame = pd.DataFrame({"case_id": np.arange(90), "model": "A", "label": np.array(list("abc"))[labels]} | columns)
    other = frame.assign(model="B", score_a=frame["score_b"], score_b=frame["score_a"])
    found = judged(frame, other)
    macro = estimate(found, "A", "auc")
    assert macro.value == pytest.approx(roc_auc_score(labels, chances, multi_class="ovr"))
    assert macro.low < macro.value < macro.high
    right = estimate(found, "A", "balanced_accuracy", "highest")
    assert right.value == pytest.approx(balanced_accuracy_score(labels, chances.argmax(axis=1)))
    assert p_value(found) < 0.01
    assert found.calibrations == {}


def test_tests_of_two_classes_give_no_verdict_on_three():
    rng = np.random.default_rng(24)
    labels = np.arange(30) % 3
    frames = [
        table(name, None, labels).drop(columns="score").assign(**{f"score_{i}": rng.normal(size=30) for i in range(3)})
        for name in "AB"
    ]
    with pytest.raises(ValueError, match=r"by the test 'delong'.*need two classes"):
        judged(*frames, protocol=Protocol(singles=("A",), test="delong", **QUICK))
    followed = [frame.assign(time=1.0 + np.arange(30), event=1) for frame in frames]
    found = judged(*followed)
    assert found.survival is None
    assert any("Survival is not judged" in note for note in found.notes)


def test_a_prevalence_without_probabilities_is_answered():
    labels, [pair] = noise(np.random.default_rng(25))
    found = judged(*two_tables(labels, [pair]), protocol=Protocol(prevalence=0.1, **QUICK))
    assert any("for a prevalence of 0.1" in note for note in found.calibration_notes)


def test_times_are_judged_without_labels():
    rng = np.random.default_rng(13)
    risk = rng.normal(size=60)
    time = rng.exponential(np.exp(-risk))
    frame = pd.DataFrame(
        {"case_id": np.arange(60), "model": "A", "score": risk, "time": time, "event": rng.random(60) < 0.7}
    )
    found = judged(frame)
    assert found.judged is None
    assert found.survival.comparison.metrics[0].harrell.c > 0.7
    assert list(found.survival.groups) == ["A"]
    assert found.protocol.primary == "harrell_c"


def test_fusion_is_judged_by_concordance_where_there_are_times_alone():
    rng = np.random.default_rng(13)
    risk = rng.normal(size=60)
    time, event = rng.exponential(np.exp(-1.5 * risk)), rng.random(60) < 0.8
    frame = pd.DataFrame({"case_id": np.arange(60), "model": "fused", "score": risk, "time": time, "event": event})
    single = frame.assign(model="image", score=rng.normal(size=60))
    found = judged(frame, single, protocol=Protocol(singles=("image",), **QUICK))
    assert found.benefits[0].helped
    assert [row.metric for row in found.comparisons] == ["harrell_c", "uno_c"]
    assert all(row.p_holm == row.p_value for row in found.comparisons)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sensitivity": 1.2}, "sensitivity is 1.2; expected a fraction"),
        ({"margin": -0.1}, "expected a gain above 0"),
        ({"resamples": 5}, "resamples is 5; expected at least 100"),
        ({"test": "delong", "primary": "brier"}, "DeLong's test is for the AUC"),
        ({"test": "permutation", "primary": "brier"}, "exchange of ranks has no brier"),
        ({"singles": ("A", "A")}, "name a model twice"),
    ],
)
def test_protocols_that_cannot_be_followed_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Protocol(**options)


def test_a_single_source_that_is_no_model_is_refused():
    labels, [pair] = noise(np.random.default_rng(14))
    with pytest.raises(ValueError, match="single source 'C' is no model of the table; it has A, B"):
        judged(*two_tables(labels, [pair]), protocol=Protocol(singles=("C",), **QUICK))
    with pytest.raises(ValueError, match="none is fused"):
        judged(*two_tables(labels, [pair]), protocol=Protocol(singles=("A", "B"), **QUICK))


def test_with_few_of_a_class_the_exchange_of_ranks_decides():
    rng = np.random.default_rng(16)
    labels = (np.arange(80) < 9).astype(int)
    tables = [table(name, labels * worth + rng.normal(0, 1, 80), labels) for name, worth in (("A", 0.2), ("B", 4.0))]
    found = judged(*tables, protocol=Protocol(singles=("A",), **QUICK))
    [verdict] = found.benefits
    assert verdict.test == "rank permutation"
    assert verdict.p_value == pytest.approx(1 / 101)
    assert verdict.low < verdict.gain < verdict.high
    assert any("exchange of ranks decides" in warning for warning in found.warnings)


def test_every_metric_is_told_in_every_fold():
    labels, [pair] = noise(np.random.default_rng(17))
    tables = two_tables(labels, [pair], fold=np.arange(80) % 4 // 2, patient_id=np.arange(80))
    found = judged(*tables, protocol=Protocol(threshold=0.5, **QUICK))
    metrics = {row.metric for row in found.folds}
    assert metrics == {
        "auc", "average_precision", "specificity_at_sensitivity", "sensitivity_at_specificity", "accuracy",
        "sensitivity", "specificity", "f1",
    }  # fmt: skip
    accuracy = [row.value for row in found.folds if (row.model, row.metric) == ("A", "accuracy")]
    assert np.mean(accuracy) == pytest.approx(np.mean((pair[0] >= 0.5) == labels))
    assert found.fold_tests[0].test.ratio == 1.0


def test_bca_intervals_lie_near_the_percentile_ones():
    labels, [pair] = noise(np.random.default_rng(15))
    plain = judged(*two_tables(labels, [pair]))
    moved = judged(*two_tables(labels, [pair]), protocol=Protocol(interval="bca", **QUICK))
    first, second = estimate(plain, "A", "auc"), estimate(moved, "A", "auc")
    assert "BCa" in second.method
    assert 0 < abs(first.low - second.low) < 0.05
