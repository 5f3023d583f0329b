"""Predictions tables are checked before anything is computed from them, and say what they were taken to mean."""

import re

import numpy as np
import pandas as pd
import pytest

from fusion_jax.records.predictions import ColumnNames, check_predictions, model_name


def table(**columns):
    """Four cases of one model, with columns replaced or, by None, taken out."""
    whole = {
        "case_id": ["a", "b", "c", "d"],
        "model": "CNN",
        "label": [0, 1, 0, 1],
        "score": [0.1, 0.8, 0.4, 0.6],
    } | columns
    return pd.DataFrame({name: values for name, values in whole.items() if values is not None})


def check(*tables, **options):
    return check_predictions({f"run/{chr(97 + i)}.csv": found for i, found in enumerate(tables)}, **options)


def test_a_table_without_models_is_named_after_its_file():
    found = check(table(model=None), table(model=None))
    assert found.models == ("a", "b")
    assert model_name("run/My model.csv.gz") == "My model"


def test_files_without_case_ids_are_paired_by_row_order_and_the_result_says_so():
    found = check(table(model=None, case_id=None), table(model=None, case_id=None))
    assert found.table["case_id"].tolist() == [f"row {i}" for i in (1, 2, 3, 4)] * 2
    assert "paired by row order" in found.notes[0]


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ([table(score=None, probability=[0.1, 0.2, 0.3, 0.4])], "run/a.csv: no column 'score'; its columns are"),
        ([table(label=None, lable=[0, 1, 0, 1])], "no column 'label' (did you mean 'lable'?)"),
        ([table(score=[0.1, np.nan, 0.3, 0.4])], "column 'score' holds 'nan' in row 3"),
        ([table(score=[0.1, 0.2, "n/a", 0.4])], "column 'score' holds 'n/a' in row 4"),
        ([table(score=[0.1, np.inf, 0.3, 0.4])], "column 'score' holds 'inf' in row 3"),
        ([table(label=[0, 1, None, 1])], "column 'label' is empty in 1 row (row 4 first)"),
        ([table(label=[1, 1, 1, 1])], "only the label '1' occurs in 4 rows"),
        ([table(label=["x", "y", "x", "y"])], "which of them is positive? Say it with --positive"),
        ([table(label=[0, 1, 2, 1])], "no column 'score_0'"),
        (
            [table(case_id=["a", "a", "c", "d"], label=[0, 0, 0, 1])],
            "'a' of model 'CNN' has two predictions (run/a.csv, row 2; run/a.csv, row 3)",
        ),
        (
            [table(), table(model="MLP", label=[0, 1, 0, 0])],
            "case 'd' has label '1' in run/a.csv, row 5 and '0' in run/b.csv, row 5",
        ),
        (
            [table(patient_id=["p", "p", "q", "q"]), table(model="MLP", patient_id=["p", "q", "q", "q"])],
            "case 'b' has patient_id 'p'",
        ),
        (
            [table(), table(model="MLP", case_id=["a", "b", "c", "e"])],
            "'CNN' has no prediction of 1 case that others have (e)",
        ),
        ([table(case_id=None), table()], "run/a.csv: no column 'case_id' with case ids, while run/b.csv has one"),
        (
            [table(case_id=None, model=None), table(case_id=None, model=None).iloc[:3]],
            "run/b.csv has 3 rows and run/a.csv has 4",
        ),
        (
            [table(case_id=None, model=None), table(case_id=None, model=None, label=[0, 1, 1, 0])],
            "different labels in 2 rows (row 4 first)",
        ),
        ([table(case_id=None, model=["A", "A", "B", "B"])], "row order cannot say which rows are of one case"),
        ([table(split=["test", "test", "oof", "test"])], "split 'oof' in row 4"),
        ([table(split="validation")], "no row of a test split"),
        ([table(time=[1.0, 2.0, 3.0, 4.0])], "a column 'time' but no 'event'"),
        ([table(time=[1.0, -2.0, 3.0, 4.0], event=[0, 1, 0, 1])], "column 'time' holds '-2' in row 3"),
        ([table(time=[1.0, 2.0, 3.0, 4.0], event=[0, 1, 2, 1])], "column 'event' holds '2' in row 4"),
        ([table().iloc[:0]], "run/a.csv: no rows"),
        ([table(case_id=["a", " ", "c", "d"])], "column 'case_id' is blank in 1 row (row 3 first)"),
        (
            [table(repeat=0), table(model="MLP", case_id=["a", "b", "c", "e"])],
            "has no prediction of 1 case that others have",
        ),
        (
            [table(repeat=0), pd.concat([table(model="MLP"), table(model="MLP").iloc[:1]])],
            "'a' of model 'MLP' has two predictions (run/b.csv, row 2; run/b.csv, row 6)",
        ),
        ([table(instance=0), table(model="MLP")], "run/b.csv has no column of the instance, while run/a.csv has one"),
        (
            [table(fold=0), table(case_id=["v", "w", "x", "y"], split="val")],
            "run/b.csv has no column of the fold, while run/a.csv has one for the same model 'CNN'",
        ),
        (
            [table(score=None, score_0=[3.0, 1.0, 2.0, 0.0], score_1=[1.0, 2.0, 3.0, 4.0])],
            "run/a.csv, row 2: scores of 0, 1 sum to 4; expected probabilities that sum to 1. Say --scores logit",
        ),
    ],
)
def test_bad_tables_are_refused_with_the_place_and_the_way_out(tables, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        check(*tables)


def test_a_patient_in_validation_and_test_rows_of_one_training_is_refused():
    crossing = table(split=["test", "test", "validation", "validation"], patient_id=["p", "q", "p", "r"])
    with pytest.raises(ValueError, match=r"1 patient in validation and test rows of the same training \(p\)"):
        check(crossing)
    of_another_label = table(split=["test", "test", "validation", "validation"], patient_id=["p", "q", "r", "p"])
    with pytest.raises(ValueError, match=r"1 patient in validation and test rows"):
        check(of_another_label)
    by_fold = table(
        split=["test", "test", "validation", "validation"], patient_id=["p", "q", "p", "q"], fold=[0, 1, 1, 0]
    )
    assert len(check(by_fold).table) == 4


def test_training_rows_are_left_out_and_counted():
    found = check(table(split=["train", "test", "test", "val"], label=[0, 1, 0, 1]))
    assert found.table["split"].tolist() == ["test", "test", "validation"]
    assert "1 row of the training split" in found.notes[0]


def test_logits_become_probabilities_and_scores_outside_the_unit_interval_do_not_by_themselves():
    logits = table(score=[-2.0, 3.0, 0.0, 1.0])
    assert check(logits).score_kind == {"CNN": "score"}
    assert "say --scores logit" in check(logits).notes[0]
    found = check(logits, scores="logit")
    assert found.score_kind == {"CNN": "probability"}
    assert found.table["score"].iloc[2] == 0.5
    assert check(table(), scores="score").score_kind == {"CNN": "score"}
    with pytest.raises(ValueError, match="declared probabilities and hold -2"):
        check(logits, scores="probability")


@pytest.mark.parametrize(
    ("labels", "positive", "classes"),
    [
        (["no", "yes", "no", "yes"], None, ("no", "yes")),
        ([False, True, False, True], None, ("0", "1")),
        ([0.0, 1.0, 0.0, 1.0], None, ("0", "1")),
        (["benign", "cancer", "benign", "cancer"], "cancer", ("benign", "cancer")),
        (["a-cancer", "benign", "a-cancer", "benign"], "a-cancer", ("benign", "a-cancer")),
        ([1, 2, 1, 2], "2", ("1", "2")),
    ],
)
def test_the_positive_class_is_second(labels, positive, classes):
    found = check(table(label=labels), positive=positive)
    assert found.classes == classes
    assert found.table["label"].tolist() == [
        int(str(label) == classes[1] or label is True or (label == 1.0 and classes == ("0", "1"))) for label in labels
    ]


def test_three_classes_have_a_score_each():
    three = table(label=["mild", "none", "severe", "none"], score=None)
    scores = pd.DataFrame(
        {"score_none": [0.2, 0.6, 0.1, 0.5], "score_mild": [0.7, 0.3, 0.1, 0.4], "score_severe": [0.1, 0.1, 0.8, 0.1]}
    )
    found = check(pd.concat([three, scores], axis=1))
    assert found.classes == ("mild", "none", "severe")
    assert found.table["label"].tolist() == [0, 1, 2, 1]
    assert found.score_kind == {"CNN": "probability"}


def test_two_columns_of_scores_become_the_score_of_the_positive_class():
    found = check(table(score=None, score_0=[0.9, 0.2, 0.6, 0.4], score_1=[0.1, 0.8, 0.4, 0.6]))
    assert found.table["score"].tolist() == [0.1, 0.8, 0.4, 0.6]


def test_two_columns_of_logits_become_the_probability_of_their_softmax():
    two = table(score=None, score_0=[3.0, 1.0, 2.0, 0.0], score_1=[3.0, 2.0, 0.0, 0.0])
    np.testing.assert_allclose(check(two, scores="logit").table["score"], 1 / (1 + np.exp([0.0, -1.0, 2.0, 0.0])))
    assert check(two, scores="score").table["score"].tolist() == [0.0, 1.0, -2.0, 0.0]


def test_one_file_may_hold_the_score_and_another_one_for_each_class():
    found = check(table(), table(model="MLP", score=None, score_0=[0.9, 0.2, 0.6, 0.4], score_1=[0.1, 0.8, 0.4, 0.6]))
    assert found.table["score"].tolist() == [0.1, 0.8, 0.4, 0.6] * 2
    assert not [column for column in found.table.columns if column.startswith("score_")]


def test_columns_that_begin_like_scores_of_classes_are_left_out_beside_the_score():
    found = check(table(score_std=[0.1, np.nan, 0.1, 0.1], score_note=["x", "", "", ""]))
    assert [column for column in found.table.columns if column.startswith("score")] == ["score"]
    assert "score_std, score_note were left out" in found.notes[0]


def test_columns_are_named_by_whoever_wrote_them():
    names = ColumnNames(case="ID", label="y_true", score="y_prob")
    found = check(
        table(case_id=None, label=None, score=None, ID=[1, 2, 3, 4], y_true=[0, 1, 0, 1], y_prob=[0.1, 0.2, 0.3, 0.4]),
        names=names,
    )
    assert found.table["case_id"].tolist() == ["1", "2", "3", "4"]


def test_models_may_be_compared_on_the_cases_they_have_in_common():
    found = check(table(), table(model="MLP", case_id=["a", "b", "c", "e"]), mismatched="common")
    assert sorted(set(found.table["case_id"])) == ["a", "b", "c"]
    assert "3 of 5 cases" in found.notes[0]
    assert found.uncommon == 2
    assert found.only(["CNN"]).uncommon == 2


def test_one_model_can_be_taken_out():
    found = check(table(), table(model="MLP"))
    assert found.only(["MLP"]).models == ("MLP",)
    with pytest.raises(ValueError, match="no model 'MPL' \\(did you mean 'MLP'"):
        found.only(["MPL"])
