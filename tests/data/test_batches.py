"""Batches: every one a function of its number, the same with any number of workers and processes."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pandas as pd
import pytest

from fusion_jax.data.batches import Batches
from fusion_jax.data.cohort import Arrays, Boxes, Cohort, Columns, Lazy
from fusion_jax.data.image import Image, UnreadableFile
from fusion_jax.data.sampling import epoch_order


@dataclasses.dataclass(frozen=True)
class Painted:
    """Image of a row: its number everywhere."""

    broken: int = -1

    def __call__(self, row: int) -> Image:
        if row == self.broken:
            raise UnreadableFile(f"{row}.png", "ends after 3 rows", "Copy it again.")
        return Image(np.full((4, 5, 1), row, np.float32))


def make_cohort(n=10, **others):
    settings = {"label": [row % 2 for row in range(n)], "patient_id": [f"p{row // 2}" for row in range(n)]} | others
    sources = settings.pop("sources", {"image": Lazy(Painted(), np.arange(n))})
    return Cohort.from_arrays(sources, **settings)


def assert_same(first, second):
    assert jax.tree.structure(first) == jax.tree.structure(second)
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def rows_of(batches):
    return np.concatenate([batch.index[batch.valid] for batch in batches])


# What a batch holds


def test_a_batch_holds_the_cases_of_its_index():
    batches = Batches(make_cohort(), np.arange(10), 4, seed=(0,))
    for step in range(3):
        batch = batches.at(step)
        np.testing.assert_array_equal(batch.inputs["image"][:, 0, 0, 0], np.where(batch.valid, batch.index, 0))
        np.testing.assert_array_equal(batch.target["label"], np.where(batch.valid, batch.index % 2, 0))
        np.testing.assert_array_equal(batch.valid, batch.index >= 0)
        assert batch.inputs["image"].shape == (4, 4, 5, 1)
        assert (batch.index.dtype, batch.target["label"].dtype) == (np.int32, np.int32)


def test_absent_sources_are_zeros_and_marked():
    pet = [np.full(3, 7.0) if row % 3 else None for row in range(9)]
    cohort = make_cohort(9, sources={"image": np.ones((9, 2, 2, 1)), "pet": pet})
    batch = Batches(cohort, np.arange(9), 10, seed=(0,), sampler="sequential").at(0)
    assert batch.present["pet"].tolist() == [False, True, True] * 3 + [False]
    assert batch.present["image"].tolist() == [True] * 9 + [False]
    np.testing.assert_array_equal(batch.inputs["pet"][:, 0], np.where(batch.present["pet"], 7, 0))
    assert batch.inputs["pet"].dtype == np.float32


def test_a_source_that_nobody_has_needs_an_array_of_one_shape():
    cohort = make_cohort(2, sources={"image": np.ones((2, 2, 2, 1)), "pet": np.ones((2, 3))})
    nobody = {**cohort.present, "pet": np.zeros(2, bool)}
    batch = Batches(dataclasses.replace(cohort, present=nobody), np.arange(2), 2, seed=(0,)).at(0)
    assert (batch.inputs["pet"].shape, batch.inputs["pet"].dtype) == ((2, 3), np.float32)
    assert not batch.inputs["pet"].any()
    assert not batch.present["pet"].any()
    unread = cohort.with_source("pet", Lazy(Painted(), np.arange(2)), nobody["pet"])
    with pytest.raises(ValueError, match="no case has 'pet'"):
        Batches(unread, np.arange(2), 2, seed=(0,)).at(0)


def test_targets_carry_times_masks_and_boxes():
    boxes = [Boxes(np.full((row, 4), row, float), np.full(row, 1, int)) for row in range(4)]
    cohort = Cohort.from_arrays(
        {"image": np.ones((4, 6, 6, 1)), "tumour": Arrays(np.ones((4, 6, 6, 1), np.uint8), "mask")},
        label=list("abab"),
        table=pd.DataFrame({"days": [10, 20, 30, 40], "died": [0, 1, 0, 1]}),
        roles={"days": "time", "died": "event"},
        boxes=boxes,
        box_classes=("nodule", "mass"),
    )
    batch = Batches(cohort, np.arange(4), 4, seed=(0,), sampler="sequential").at(0)
    assert set(batch.inputs) == set(batch.present) == {"image"}
    assert batch.target["time"].tolist() == [10, 20, 30, 40]
    assert batch.target["event"].tolist() == [False, True, False, True]
    assert batch.target["masks"]["tumour"].dtype == np.uint8
    assert batch.target["boxes"].shape == (4, 3, 4)
    assert batch.target["box_valid"].sum(axis=1).tolist() == [0, 1, 2, 3]
    assert batch.target["classes"][3].tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match="case_3 has 3 boxes; max_boxes is 2"):
        Batches(cohort, np.arange(4), 4, seed=(0,), max_boxes=2).at(0)


def test_integers_and_halves_keep_their_width_and_doubles_are_cast_once():
    sources = {f"s{i}": np.ones((2, 3), dtype) for i, dtype in enumerate((np.uint8, np.float16, np.float64, np.int64))}
    batch = Batches(Cohort.from_arrays(sources, label=[0, 1]), np.arange(2), 2, seed=(0,)).at(0)
    dtypes = [batch.inputs[f"s{i}"].dtype for i in range(4)]
    assert dtypes == [np.uint8, np.float16, np.float32, np.int32]


# Order


def test_every_case_is_visited_once_an_epoch_in_another_order():
    batches = Batches(make_cohort(), np.arange(1, 9), 3, seed=(0, 1))
    first, second = (rows_of(batches.epoch(epoch)) for epoch in (0, 1))
    assert sorted(first) == sorted(second) == list(range(1, 9))
    assert first.tolist() != second.tolist()
    assert first.tolist() != rows_of(dataclasses.replace(batches, seed=(0, 2)).epoch(0)).tolist()


@pytest.mark.parametrize("sampler", ["shuffle", "balanced", "one per patient"])
def test_a_run_resumes_from_one_integer(sampler):
    def make():
        return Batches(make_cohort(), np.arange(10), 4, seed=(3,), sampler=sampler)

    whole = list(make().iterate(stop=9))
    assert len(whole) == 9
    for start in (0, 4, 8):
        for expected, found in zip(whole[start:], make().iterate(start, stop=9), strict=True):
            assert_same(found, expected)


def test_classes_are_drawn_equally_often_and_no_case_is_forgotten():
    rows, label = np.arange(100, 130), np.array([0] * 20 + [1] * 7 + [2] * 3)
    seen = []
    for epoch in range(6):
        order = epoch_order(rows, "balanced", seed=(0,), epoch=epoch, label=label)
        seen.append(order)
        assert np.bincount(label[order - 100]).tolist() == [10, 10, 10]
        assert set(rows[20:]) <= set(order)  # classes of at most n / k cases are seen whole
    # The large class goes on where the epoch before stopped: two epochs see each of its 20 cases once.
    for first, second in zip(seen[::2], seen[1::2], strict=True):
        large = [row for row in (*first, *second) if row < 120]
        assert sorted(large) == list(range(100, 120))


def test_balance_is_kept_when_classes_do_not_divide_the_cases():
    label = np.array([0] * 8 + [1] * 3)
    totals = sum(
        np.bincount(label[epoch_order(np.arange(11), "balanced", seed=(0,), epoch=epoch, label=label)])
        for epoch in range(4)
    )
    assert totals.tolist() == [22, 22]


def test_one_case_of_every_patient_is_drawn_and_all_come_up():
    batches = Batches(make_cohort(), np.arange(10), 2, seed=(0,), sampler="one per patient")
    assert batches.steps_per_epoch == 3
    seen = set()
    for epoch in range(8):
        rows = rows_of(batches.epoch(epoch))
        assert sorted(row // 2 for row in rows) == list(range(5))
        seen |= set(rows)
    assert seen == set(range(10))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sampler": "random"}, "sampler is 'random'; expected one of sequential"),
        ({"sampler": "balanced", "label": None}, "needs the label"),
        ({"sampler": "one per patient"}, "needs the patient"),
        ({"rows": np.zeros(0, int)}, "at least one case"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_an_order_that_cannot_be_is_refused(settings, message):
    settings = {"rows": np.arange(3), "label": np.zeros(3, int)} | settings
    with pytest.raises(ValueError, match=message):
        epoch_order(settings.pop("rows"), settings.pop("sampler", "shuffle"), seed=(0,), epoch=0, **settings)


# Processes and workers


def test_processes_share_a_batch_without_overlap():
    cohort = make_cohort()
    whole = Batches(cohort, np.arange(10), 4, seed=(0,))
    shares = [Batches(cohort, np.arange(10), 4, seed=(0,), process_index=i, process_count=2) for i in range(2)]
    for step in range(6):
        parts = [share.at(step) for share in shares]
        assert_same(jax.tree.map(lambda *a: np.concatenate(a), *parts), whole.at(step))


def test_worker_processes_give_the_same_bits():
    batches = Batches(make_cohort(), np.arange(10), 4, seed=(0,))
    for alone, helped in zip(batches.iterate(2, stop=7), batches.iterate(2, stop=7, workers=2), strict=True):
        assert_same(helped, alone)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # grain leaves shared memory to its finaliser when a worker fails
def test_a_broken_file_is_named_through_the_worker_boundary():
    batches = Batches(
        make_cohort(sources={"image": Lazy(Painted(broken=7), np.arange(10))}), np.arange(10), 4, seed=(0,)
    )
    with pytest.raises(UnreadableFile, match=r"7\.png: image of case case_7 ends after 3 rows") as caught:
        list(batches.iterate(stop=3, workers=1))
    assert caught.value.path == Path("7.png")


def test_a_broken_file_is_named_with_its_case():
    batches = Batches(
        make_cohort(sources={"image": Lazy(Painted(broken=7), np.arange(10))}), np.arange(10), 4, seed=(0,)
    )
    with pytest.raises(UnreadableFile, match=r"7\.png: image of case case_7 ends after 3 rows") as caught:
        list(batches.iterate(stop=3))
    assert caught.value.path == Path("7.png")


# What cannot become a batch


def test_shapes_that_differ_are_named_with_the_way_out():
    images = [np.zeros((4, 4, 1)), np.zeros((4, 5, 1))]
    with pytest.raises(ValueError, match=r"case_1 is float32 of shape \(4, 5, 1\), that of case case_0 .*preprocess"):
        Batches(make_cohort(2, sources={"image": images}), np.arange(2), 2, seed=(0,)).at(0)


def test_nan_never_reaches_a_model():
    values = np.ones((3, 2))
    values[2, 1] = np.nan
    with pytest.raises(ValueError, match="clinical of case case_2 holds NaN or infinity"):
        Batches(make_cohort(3, sources={"clinical": values}), np.arange(3), 3, seed=(0,)).at(0)


def test_a_table_must_be_encoded_first():
    table = pd.DataFrame({"age": [50, 60]})
    cohort = make_cohort(2, sources={"clinical": Columns(("age",), 2)}, table=table, roles={"age": "input"})
    with pytest.raises(ValueError, match="'clinical' holds columns of the table, not numbers"):
        Batches(cohort, np.arange(2), 2, seed=(0,))
    encoded = cohort.with_source("clinical", np.array([[5.0], [6.0]]))
    assert Batches(encoded, np.arange(2), 2, seed=(0,), sampler="sequential").at(0).inputs["clinical"].shape == (2, 1)


def test_cases_without_a_label_are_predicted_and_never_trained_on():
    cohort = make_cohort(4, label=["a", "b", None, "a"])
    with pytest.raises(ValueError, match=r"case_2 has no label \(1 in all\)"):
        Batches(cohort, np.arange(4), 4, seed=(0,))
    assert Batches(cohort, np.array([0, 1, 3]), 4, seed=(0,)).at(0).valid.sum() == 3
    batch = Batches(cohort, np.arange(4), 4, seed=(0,), targets=False).at(0)
    assert batch.target == {}
    assert batch.valid.all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": 3, "process_count": 2}, "expected a multiple"),
        ({"process_index": 1}, "process_index is 1"),
        ({"rows": np.array([10])}, "rows have to be some of 0 to 9"),
        ({"rows": np.zeros(0, int)}, "at least one"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    settings = {"rows": np.arange(4), "batch_size": 2, "seed": (0,)} | settings
    with pytest.raises(ValueError, match=message):
        Batches(make_cohort(), **settings)


@pytest.mark.parametrize(("column", "cell", "message"), [("days", "soon", "a number"), ("died", 2, "0 or 1")])
def test_times_and_events_are_numbers(column, cell, message):
    table = pd.DataFrame({"days": [1.0, 2.0], "died": [0, 1]}).astype(object)
    table.loc[1, column] = cell
    cohort = make_cohort(2, table=table, roles={"days": "time", "died": "event"})
    with pytest.raises(ValueError, match=rf"column '{column}' holds .* in case case_1; expected {message}"):
        Batches(cohort, np.arange(2), 2, seed=(0,))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rows": np.array([True, False] * 5)}, "rows are bool; expected row numbers"),
        ({"rows": np.array([0.0, 1.0])}, "rows are float64; expected row numbers"),
        ({"seed": 0}, r"seed is 0; expected a tuple"),
        ({"sampler": "balanced", "targets": False}, "balanced sampler needs a label"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_settings_of_another_kind_are_refused_before_the_first_step(settings, message):
    settings = {"rows": np.arange(4), "batch_size": 2, "seed": (0,)} | settings
    with pytest.raises(ValueError, match=message):
        Batches(make_cohort(), **settings)


@pytest.mark.parametrize("steps", [{"start": -1}, {"start": 3, "stop": 2}])
def test_steps_before_the_first_are_refused(steps):
    with pytest.raises(ValueError, match="expected steps from 0 on"):
        Batches(make_cohort(), np.arange(10), 4, seed=(0,)).iterate(**steps)


@pytest.mark.parametrize(
    ("column", "cells", "message"),
    [
        ("days", pd.to_datetime(["2020-01-01"] * 2), r"'days' holds datetime64.*; expected a number of days"),
        ("days", pd.to_timedelta([1, 2], unit="D"), r"'days' holds timedelta64.*; expected a number of days"),
        ("days", [1.0, np.inf], "'days' holds inf in case case_1"),
        ("days", [1.0, -2.0], "'days' holds -2.0 in case case_1"),
        ("days", pd.array([1, None], dtype="Int64"), "case_1 has no time"),
        ("died", pd.array([True, None], dtype="boolean"), "case_1 has no event"),
    ],
)
def test_times_are_durations_and_gaps_are_seen(column, cells, message):
    table = pd.DataFrame({"days": [1.0, 2.0], "died": [0, 1]}).assign(**{column: cells})
    cohort = make_cohort(2, table=table, roles={"days": "time", "died": "event"})
    with pytest.raises(ValueError, match=message):
        Batches(cohort, np.arange(2), 2, seed=(0,))


def test_further_labels_are_targets_of_their_own():
    def make(name, cells):
        table = pd.DataFrame({"grade": [2, 0, 1], name: cells})
        sources = {"f": np.zeros((3, 1))}
        return Cohort.from_arrays(sources, table=table, roles={"grade": "label", name: "label"})

    batches = Batches(make("stage", list("aba")), np.arange(3), 3, seed=(0,), sampler="sequential")
    assert {name: codes.tolist() for name, codes in batches.at(0).target.items()} == {
        "label": [2, 0, 1],
        "stage": [0, 1, 0],
    }
    with pytest.raises(ValueError, match=r"case case_1 has no stage \(1 in all\)"):
        Batches(make("stage", ["a", None, "b"]), np.arange(3), 3, seed=(0,))
    with pytest.raises(ValueError, match="second label is called 'label'"):
        Batches(make("label", list("aba")), np.arange(3), 3, seed=(0,))


def test_numbers_of_any_byte_order_arrive_and_none_wraps_round():
    batch = Batches(make_cohort(2, sources={"f": np.array([[1.5], [2.5]], ">f8")}), np.arange(2), 2, seed=(0,)).at(0)
    assert batch.inputs["f"].dtype == np.float32
    assert sorted(batch.inputs["f"][:, 0]) == [1.5, 2.5]
    assert batch.inputs["f"].dtype.isnative
    short = Batches(make_cohort(2, sources={"f": np.array([[1], [2]], ">i2")}), np.arange(2), 2, seed=(0,)).at(0)
    assert short.inputs["f"].dtype.isnative
    with pytest.raises(ValueError, match=r"f of case case_0 holds whole numbers from 1099511627776 .*fits into int32"):
        Batches(make_cohort(2, sources={"f": np.full((2, 1), 2**40)}), np.arange(2), 2, seed=(0,)).at(0)


def test_boxes_of_training_and_test_have_one_shape():
    boxes = [Boxes(np.zeros((row, 4)), np.zeros(row, int)) for row in range(4)]
    cohort = make_cohort(4, boxes=boxes, box_classes=("nodule",))
    for rows in (np.array([0, 1]), np.array([2, 3])):
        assert Batches(cohort, rows, 2, seed=(0,)).at(0).target["boxes"].shape == (2, 3, 4)
