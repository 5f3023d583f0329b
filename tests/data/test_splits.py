"""Splits: patients never cross, strata hold, files are checked, leaks stop a run."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given as hypothesis_given
from hypothesis import settings
from hypothesis import strategies as st

from fusion_jax.data.cohort import Cohort
from fusion_jax.data.samples import soft_tissue_sarcoma
from fusion_jax.data.splits import (
    check_leakage,
    draw_once,
    given,
    k_fold,
    leave_site_out,
    load_splits,
    monte_carlo,
    nested,
    save_splits,
)
from fusion_jax.data.tabular import TrainingCases


def make_cohort(labels, patients=None, site=None, **others):
    """One row a case with a feature, so that only ids and labels matter."""
    ids = [f"c{row:03d}" for row in range(len(labels))]
    return Cohort.from_arrays(
        {"clinical": np.zeros((len(labels), 1))}, label=labels, case_id=ids, patient_id=patients, site=site, **others
    )


def patients_of(cohort, cases):
    patient = dict(zip(cohort.case_id, cohort.patient_id, strict=True))
    return {patient[case] for case in cases}


@pytest.fixture(scope="module")
def slices():
    """167 patients with 765 slices: 65 recurrences, 102 without (Wang W. et al. 2020)."""
    rng = np.random.default_rng(0)
    counts = np.ones(167, int) + rng.multinomial(765 - 167, np.full(167, 1 / 167))
    labels = np.repeat(["ER"] * 65 + ["NER"] * 102, counts)
    patients = np.repeat([f"p{number}" for number in range(167)], counts)
    return make_cohort(labels, patients)


def test_ten_folds_of_65_and_102_have_the_published_composition(slices):
    splits = k_fold(slices, 10, seed=3)
    label = dict(zip(slices.patient_id, slices.table["label"], strict=True))
    composition = []
    for split in splits.splits:
        tested = [label[patient] for patient in patients_of(slices, split.test)]
        composition.append((tested.count("ER"), tested.count("NER")))
    assert sorted(composition) == [(6, 10)] * 3 + [(6, 11)] * 2 + [(7, 10)] * 5
    assert sum(len(split.test) for split in splits.splits) == 765
    assert {len(split.train) + len(split.test) for split in splits.splits} == {765}


def test_six_folds_of_the_sarcoma_cohort_test_four_and_four():
    sample = soft_tissue_sarcoma(paper_cohort=True)
    cohort = Cohort.from_arrays(
        {"age": sample.table[["age_years"]].to_numpy(float)},
        label=sample.table["distant_metastases"].to_numpy(int),
        case_id=sample.patient_id,
    )
    for seed in range(5):
        for split in k_fold(cohort, 6, seed=seed).splits:
            tested = cohort.take(split.rows(cohort).test).label
            assert np.bincount(tested).tolist() == [4, 4]
            assert len(split.train) == 40


@settings(max_examples=30)
@hypothesis_given(
    st.lists(st.integers(1, 4), min_size=20, max_size=40), st.integers(2, 4), st.integers(0, 10**6), st.data()
)
def test_folds_are_a_partition_of_patients_whatever_the_order_of_rows(counts, k, seed, data):
    patients = np.repeat([f"p{number:02d}" for number in range(len(counts))], counts)
    labels = np.array([int(patient[1:]) % 2 for patient in patients])
    cohort = make_cohort(labels, patients)
    splits = k_fold(cohort, k, seed=seed, repeats=2, validation=0.2)
    for repeat in range(2):
        tested = [case for split in splits.splits if split.repeat == repeat for case in split.test]
        assert sorted(tested) == sorted(cohort.case_id)
    sizes = []
    for split in splits.splits:
        parts = [patients_of(cohort, part) for part in (split.train, split.validation, split.test)]
        assert set.union(*parts) == set(patients)
        assert sum(map(len, parts)) == len(counts)
        sizes.append(len(parts[2]))
    assert max(sizes) - min(sizes) <= 2  # each of the two classes divides within one patient
    order = data.draw(st.permutations(range(len(cohort))))
    shuffled = k_fold(cohort.take(order), k, seed=seed, repeats=2, validation=0.2)
    assert [set(split.test) for split in shuffled.splits] == [set(split.test) for split in splits.splits]
    assert [set(split.validation) for split in shuffled.splits] == [set(split.validation) for split in splits.splits]


def test_seeds_and_repeats_draw_differently_and_again_the_same(slices):
    first = k_fold(slices, 10, seed=0, repeats=2)
    assert first == k_fold(slices, 10, seed=0, repeats=2)
    assert first.hash != k_fold(slices, 10, seed=1, repeats=2).hash
    assert set(first.splits[0].test) != set(first.splits[10].test)


def test_monte_carlo_parts_have_their_sizes_and_classes(slices):
    splits = monte_carlo(slices, seed=1, repeats=20)
    assert len({split.test for split in splits.splits}) == 20
    for split in splits.splits:
        sizes = [len(patients_of(slices, part)) for part in (split.train, split.validation, split.test)]
        assert sizes == [133, 17, 17]
        label = dict(zip(slices.patient_id, slices.table["label"], strict=True))
        recurred = sum(label[patient] == "ER" for patient in patients_of(slices, split.test))
        assert 6 <= recurred <= 7


def test_nested_folds_never_show_the_outer_test_patients(slices):
    for split in nested(slices, 5, 3, seed=0).splits:
        assert len(split.inner) == 3
        held = [case for inner in split.inner for case in inner.validation]
        assert sorted(held) == sorted(split.train)
        for inner in split.inner:
            assert not inner.test
            assert not patients_of(slices, inner.train) & patients_of(slices, inner.validation)
            assert not set(inner.train + inner.validation) & set(split.test)


def test_each_site_is_left_out_once():
    cohort = make_cohort([0, 1] * 6, site=list("aaaabbbbcccc"))
    splits = leave_site_out(cohort, validation=0.25)
    assert [split.name for split in splits.splits] == ["a", "b", "c"]
    for split in splits.splits:
        tested = cohort.take(split.rows(cohort).test)
        assert set(tested.site) == {split.name}
        assert len(split.validation) == 2


@pytest.mark.parametrize(
    ("site", "patients", "message"),
    [
        (None, None, "no site; expected at least two"),
        (list("aaaaaa"), None, "one site, a; expected at least two"),
        (list("aaabbb"), list("uvwwxy"), "patient w was seen at a, b"),
        (list("aabbab"), list("uvwxyz"), "site a: no case of class '2' in test"),
    ],
)
def test_sites_that_cannot_be_left_out_are_named(site, patients, message):
    with pytest.raises(ValueError, match=message):
        leave_site_out(make_cohort([0, 1, 2, 0, 1, 2], patients, site))


def test_a_site_without_a_class_may_be_kept():
    cohort = make_cohort([0, 1, 0, 1, 0, 0], site=list("aabbcc"))
    assert len(leave_site_out(cohort, lacking="keep").splits) == 3


def test_a_rare_class_names_the_largest_feasible_k():
    cohort = make_cohort([0] * 20 + [1] * 4, patients=[f"p{i}" for i in range(20)] + ["q", "q", "r", "s"])
    with pytest.raises(ValueError, match=r"5 folds.*class '1' has 3 patients.*largest feasible k is 3"):
        k_fold(cohort, 5, seed=0)
    assert len(k_fold(cohort, 3, seed=0).splits) == 3
    with pytest.raises(ValueError, match=r"inner|training patients of outer fold 0.*largest feasible k is 2"):
        nested(cohort, 3, 3, seed=0)
    with pytest.raises(ValueError, match="No k is feasible"):
        k_fold(make_cohort([0] * 9 + [1]), 2, seed=0)


def test_a_part_without_a_class_is_refused():
    with pytest.raises(ValueError, match=r"no case of class '1' in test .*1: 3 patients in all"):
        monte_carlo(make_cohort([0] * 27 + [1] * 3), seed=0, fractions=(0.9, 0.05, 0.05))


def test_strata_of_several_columns_spread_both():
    table = pd.DataFrame({"sex": list("fm") * 12})
    cohort = make_cohort([0] * 12 + [1] * 12, table=table, roles={"sex": "group"})
    for split in k_fold(cohort, 3, seed=0, by=("label", "sex")).splits:
        tested = cohort.table.loc[list(split.test)]
        assert tested.groupby(["label", "sex"]).size().tolist() == [2, 2, 2, 2]
    with pytest.raises(ValueError, match="no column 'age' to stratify by"):
        k_fold(cohort, 3, seed=0, by=("age",))


def test_events_are_spread_where_there_is_no_label():
    table = pd.DataFrame({"days": np.arange(1.0, 31), "died": [1, 0, 0] * 10})
    roles = {"days": "time", "died": "event"}
    cohort = Cohort.from_arrays({"clinical": np.zeros((30, 1))}, table=table, roles=roles)
    for split in k_fold(cohort, 5, seed=0).splits:
        assert cohort.table.loc[list(split.test), "died"].sum() == 2
    rare = Cohort.from_arrays({"clinical": np.zeros((30, 1))}, table=table.assign(died=[1, 1] + [0] * 28), roles=roles)
    with pytest.raises(ValueError, match=r"3 folds, but .*class 'event 1' has 2 patients"):
        k_fold(rare, 3, seed=0)


def test_a_case_without_a_site_is_named():
    cohort = make_cohort([0, 1] * 4, site=["a", "a", "a", "", "b", "b", "b", "b"])
    with pytest.raises(ValueError, match=r"case c003 has no site \(1 in all\)"):
        leave_site_out(cohort)


def test_groups_keep_near_duplicates_of_two_patients_together():
    cohort = make_cohort([0, 1] * 10)
    groups = [f"g{row}" for row in range(20)]
    groups[4] = groups[0]
    for seed in range(8):
        for split in k_fold(cohort, 5, seed=seed, groups=groups).splits:
            assert ("c000" in split.test) == ("c004" in split.test)


def test_a_patient_with_several_labels_counts_for_the_rarest():
    patients = [f"p{row // 2}" for row in range(40)]
    labels = [0] * 40
    for row in (1, 11, 21, 31):
        labels[row] = 1
    cohort = make_cohort(labels, patients)
    for split in k_fold(cohort, 4, seed=0).splits:
        assert cohort.take(split.rows(cohort).test).label.sum() == 1


def test_a_published_division_is_taken_as_given():
    parts = ["train"] * 4 + ["validation"] * 2 + ["test"] * 2
    cohort = make_cohort([0, 1] * 4, table=pd.DataFrame({"part": parts}))
    for way in ("part", parts, dict(zip(cohort.case_id, parts, strict=True))):
        [split] = given(cohort, way).splits
        assert (len(split.train), len(split.validation), len(split.test)) == (4, 2, 2)
    with pytest.raises(ValueError, match="case c000 is in part 'dev'"):
        given(cohort, ["dev", *parts[1:]])
    with pytest.raises(ValueError, match="no part for case c001"):
        given(cohort, {"c000": "train"} | dict.fromkeys(cohort.case_id[2:], "test"))
    crossing = make_cohort([0, 1] * 4, patients=["p"] * 8)
    with pytest.raises(ValueError, match=r"1 patients are in more than one part \(p\)"):
        given(crossing, parts)


# Files


def test_splits_come_back_from_their_file(slices, tmp_path):
    path = tmp_path / "splits.json"
    for splits in (k_fold(slices, 10, seed=0, validation=0.1), nested(slices, 3, 2, seed=0)):
        save_splits(path, splits)
        assert load_splits(path, slices) == splits
        assert json.loads(path.read_text())["hash"] == splits.hash


def test_splits_are_drawn_once(slices, tmp_path):
    path = tmp_path / "splits.json"
    first = draw_once(path, slices, lambda cohort: k_fold(cohort, 5, seed=0))
    again = draw_once(path, slices, lambda cohort: pytest.fail("drawn again"))
    assert first == again


def test_an_edited_file_is_refused(slices, tmp_path):
    path = tmp_path / "splits.json"
    save_splits(path, k_fold(slices, 5, seed=0))
    content = json.loads(path.read_text())
    split = content["splits"][0]
    split["train"].append(split["test"].pop())
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"{re.escape(str(path))}: its hash is .* was changed"):
        load_splits(path, slices)
    path.write_text("[]")
    with pytest.raises(ValueError, match="no file of splits"):
        load_splits(path, slices)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("label", "case c002 had label '0' when the splits were drawn and has '1'"),
        ("patient", "case c002 had patient 'c002' when the splits were drawn and has 'c001'"),
        ("fewer", "case c011 is not in cohort"),
        ("more", "case c012 of cohort cohort is not in the splits"),
    ],
)
def test_a_changed_cohort_is_refused_by_case(change, message, tmp_path):
    labels = [0, 1] * 6
    path = tmp_path / "splits.json"
    save_splits(path, k_fold(make_cohort(labels), 3, seed=0))
    patients = [f"c{row:03d}" for row in range(12)]
    if change == "label":
        labels[2] = 1
    elif change == "patient":
        patients[2] = "c001"
    elif change == "fewer":
        labels, patients = labels[:-1], patients[:-1]
    else:
        labels, patients = [*labels, 0], [*patients, "c012"]
    with pytest.raises(ValueError, match=message):
        load_splits(path, make_cohort(labels, patients))


# Leaks


def test_a_protocol_that_divides_cases_is_possible_and_marked(slices):
    with pytest.raises(ValueError, match="fractions"):
        monte_carlo(slices, seed=0, fractions=(0.7, 0.2, 0.2))
    splits = monte_carlo(slices, seed=0, fractions=(0.7, 0.15, 0.15), patients="may cross")
    [split] = splits.splits
    assert [len(part) for part in split[2:5]] == [535, 115, 115]
    assert patients_of(slices, split.train) & patients_of(slices, split.test)
    assert splits.settings["patients"] == "may cross"
    with pytest.raises(ValueError, match=r"patients are in more than one part .*may cross"):
        check_leakage(slices, split)
    check_leakage(slices, split, patients="may cross")


def test_one_image_in_two_parts_stops_a_run():
    cohort = make_cohort([0, 1] * 6)
    split = k_fold(cohort, 3, seed=0).splits[0]
    check_leakage(cohort, split, duplicates=[split.test[:2]])
    twins = (split.train[0], split.test[0])
    with pytest.raises(ValueError, match=rf"fold 0: cases {twins[0]}, {twins[1]} hold the same image .*test and train"):
        check_leakage(cohort, split, duplicates=[twins])


def test_a_transform_of_another_fold_stops_a_run():
    cohort = make_cohort([0, 1] * 6)
    first, second, _ = k_fold(cohort, 3, seed=0).splits
    fitted = {"scaling": TrainingCases.of(first.train, fold="f0")}
    check_leakage(cohort, first, fitted=fitted)
    with pytest.raises(ValueError, match=r"fold 1: scaling: .*fitted in fold 'f0'"):
        check_leakage(cohort, second, fitted=fitted)


def test_a_case_in_two_parts_stops_a_run():
    cohort = make_cohort([0, 1] * 6)
    split = k_fold(cohort, 3, seed=0).splits[0]
    with pytest.raises(ValueError, match="a case stands in two parts"):
        check_leakage(cohort, split._replace(validation=split.test[:1]))


def test_rows_of_a_split_need_its_cases():
    cohort = make_cohort([0, 1] * 6)
    split = k_fold(cohort, 3, seed=0).splits[0]
    assert [cohort.case_id[row] for row in split.rows(cohort).test] == list(split.test)
    with pytest.raises(ValueError, match=r"no case 'c0.*which the split names"):
        split.rows(cohort.take([0, 1]))


# Small and odd cohorts


@pytest.mark.parametrize(
    "draw",
    [
        lambda cohort: monte_carlo(cohort, seed=0),
        lambda cohort: k_fold(cohort, 3, seed=0, validation=0.1),
        lambda cohort: leave_site_out(cohort, validation=0.1),
        lambda cohort: monte_carlo(cohort, seed=0, fractions=(0.02, 0.49, 0.49)),
    ],
)
def test_a_part_that_was_asked_for_is_never_silently_empty(draw):
    cohort = Cohort.from_arrays({"f": np.zeros((4, 1))}, site=list("aabb"))  # without labels, no class is lacking
    with pytest.raises(ValueError, match=r"of \d patients are \d; expected at least one in every part"):
        draw(cohort)


def test_a_site_may_lack_a_class_only_where_it_is_tested():
    cohort = make_cohort([0, 1, 0, 1, 0, 0], site=list("aaaabb"))
    with pytest.raises(ValueError, match="site a: no case of class '1' in train"):
        leave_site_out(cohort, lacking="keep")


@pytest.mark.parametrize("gap", [None, float("nan")])
def test_cases_without_a_group_are_alone(gap):
    cohort = make_cohort([0, 1] * 6)
    splits = k_fold(cohort, 3, seed=0, groups=[gap] * 10 + ["twins", "twins"])
    for split in splits.splits:
        assert 3 <= len(split.test) <= 5
        assert ("c010" in split.test) == ("c011" in split.test)


def test_a_published_division_in_a_series_goes_by_its_index():
    cohort = make_cohort([0, 1] * 4)
    parts = pd.Series(["train"] * 4 + ["test"] * 4, index=cohort.case_id[::-1])
    [split] = given(cohort, parts).splits
    assert split.test == cohort.case_id[:4]


@pytest.mark.parametrize("parts", [["train"] * 8, ["test"] * 8, ["validation"] * 4 + ["test"] * 4])
def test_a_division_without_training_or_evaluation_is_none(parts):
    with pytest.raises(ValueError, match="expected cases to train on and others to evaluate on"):
        given(make_cohort([0, 1] * 4), parts)


def test_a_split_of_other_cases_is_not_cleared():
    cohort = make_cohort([0, 1] * 6)
    split = k_fold(cohort, 3, seed=0).splits[0]
    with pytest.raises(ValueError, match=r"case c006.* is not in the cohort"):
        check_leakage(cohort.take(range(6)), split)


@pytest.mark.usefixtures("unchecked")
def test_arguments_of_another_kind_are_named(tmp_path):
    cohort = make_cohort([0, 1] * 6)
    with pytest.raises(ValueError, match=r"by is 'label'; expected a list of columns"):
        k_fold(cohort, 3, seed=0, by="label")
    with pytest.raises(ValueError, match=r"fractions are \(0.8, 0.2\); expected training, validation and test"):
        monte_carlo(cohort, seed=0, fractions=(0.8, 0.2))
    splits = k_fold(cohort, np.int64(3), seed=np.int64(0))
    save_splits(tmp_path / "splits.json", splits)
    assert load_splits(tmp_path / "splits.json", cohort) == splits == k_fold(cohort, 3, seed=0)
