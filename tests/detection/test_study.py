"""Several detectors, folds and seeds on one cohort: identical splits, tasks that are done once, tables for judging."""

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

from fusion_jax.data import k_fold
from fusion_jax.detection import study as module
from fusion_jax.detection.study import (
    compare_detectors,
    draw_detection_splits,
    open_detector_study,
    plan_detectors,
)
from fusion_jax.detection.tables import DETECTION_COLUMNS
from fusion_jax.records.detections import check_detections, check_truth
from fusion_jax.training.cross_validation import Task
from tests.detection.squares import TINY, squares

FIXED = {"sizes": [[22, 27]], "ratios": [1, 2], "strides": [8]}
"""The same anchors in every fold, so that folds share one compiled program."""

CHEAP: dict[str, Any] = {
    **{name: value for name, value in TINY.items() if name != "anchors"},
    "anchors": FIXED,
    "config": {**TINY["config"], "pyramid": False, "hidden": 8, "channels": 8},
    "epochs": 2,
}
ADDRESS = {"function": "tests.detection.squares:squares"}
MODELS = {"whole": {"recipe": "retinanet-1d"}, "brief": {"recipe": "retinanet-1d", "arguments": {"epochs": 1}}}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    out = tmp_path_factory.mktemp("study")
    told, steps = [], []
    study = compare_detectors(
        ADDRESS,
        MODELS,
        out=out,
        folds=2,
        fractions=(0.5, 0.25, 0.25),
        settings=CHEAP,
        report=told.append,
        progress=lambda task, progress: steps.append((task.model, progress.epoch)),
    )
    return study, told, steps


def test_every_model_is_trained_in_every_fold(found):
    study, told, steps = found
    assert study.failed == ()
    assert [(task.model, task.fold) for task in study.done] == [
        ("whole", 0), ("brief", 0), ("whole", 1), ("brief", 1),
    ]  # fmt: skip
    assert told[-1].done == 4
    assert {model for model, _ in steps} == {"whole", "brief"}
    assert [len(study.history(task)) for task in study.done] == [2, 1, 2, 1]
    assert study.record(study.done[1])["name"] == "retinanet-1d"
    assert study.anchors(study.done[0])["strides"] == [8]


def test_the_tables_are_those_that_evaluation_reads(found):
    study, *_ = found
    truth = check_truth(study.truth, where="truth", classes=("bright", "dark"))
    assert set(truth.cases) == set(study.plan.cohort.case_id)
    assert len(truth.boxes) == 16
    [*models] = check_detections(study.tested(), truth, where="detections", model="all")
    assert {one.model for one in models} == {"whole", "brief"}
    assert list(study.tested()) == list(DETECTION_COLUMNS)
    assert [path.name for path in study.detection_files] == ["whole.csv", "brief.csv"]
    assert all(path.exists() for path in study.detection_files)


def test_detections_of_a_fold_are_of_its_test_and_validation_patients(found):
    study, *_ = found
    seen = set()
    for split in study.plan.splits.splits:
        own = study.detections[study.detections["fold"] == split.fold]
        for part in ("test", "validation"):
            cases = set(own[own["split"] == part]["case_id"])
            assert cases <= set(getattr(split, part))
            seen |= cases
    assert seen


def test_a_study_is_opened_again_and_nothing_is_trained_twice(found, monkeypatch):
    study, *_ = found
    monkeypatch.setattr(module, "_run", None)
    again = compare_detectors(
        ADDRESS, MODELS, out=study.plan.folder, folds=2, fractions=(0.5, 0.25, 0.25), settings=CHEAP
    )
    opened = open_detector_study(study.plan.folder)
    for other in (again, opened):
        assert other.done == study.done
        assert other.detections.equals(study.detections)


def test_other_settings_in_the_same_folder_are_refused(found):
    study, *_ = found
    same: dict[str, Any] = {"out": study.plan.folder, "folds": 2, "fractions": (0.5, 0.25, 0.25)}
    with pytest.raises(ValueError, match="drawn with other settings"):
        compare_detectors(ADDRESS, MODELS, settings=CHEAP, **{**same, "folds": 3})
    with pytest.raises(ValueError, match=r"written with other settings: models\.brief\.arguments"):
        compare_detectors(ADDRESS, MODELS, settings={**CHEAP, "batch_size": 2}, **same)


def test_seeds_are_models_of_their_own(found):
    study, *_ = found
    rows = study.detections.assign(seed=1)
    both = study._replace(
        plan=dataclasses.replace(study.plan, seeds=(0, 1)),
        detections=rows,
        done=(*study.done, *(task._replace(seed=1) for task in study.done)),
    )
    assert both.tested_names == ("whole seed 0", "brief seed 0", "whole seed 1", "brief seed 1")
    assert set(both.tested()["model"]) == {"whole seed 1", "brief seed 1"}


def test_patients_stay_together_and_rare_classes_are_spread():
    cohort = squares(24)
    splits = draw_detection_splits(cohort, folds=4, seed=3)
    for split in splits.splits:
        patients = [{cohort.patient_id[cohort.case_id.index(case)] for case in part} for part in split[2:5]]
        assert not patients[0] & patients[1]
        assert not patients[0] & patients[2]
        assert not patients[1] & patients[2]
        assert split.validation
    assert sorted(case for split in splits.splits for case in split.test) == list(cohort.case_id)


def test_one_division_is_seventy_fifteen_fifteen():
    splits = draw_detection_splits(squares(40))
    assert [len(part) for part in splits.splits[0][2:5]] == [28, 6, 6]


def test_a_column_may_say_the_parts():
    cohort = squares()
    parts = ["train"] * 8 + ["validation"] * 2 + ["test"] * 2
    cohort = dataclasses.replace(cohort, table=cohort.table.assign(part=parts))
    assert draw_detection_splits(cohort, column="part").splits[0].test == ("c10", "c11")


def test_a_publication_may_draw_its_own(tmp_path):
    made = plan_detectors(
        ADDRESS,
        ["mask-rcnn"],
        out=tmp_path,
        draw=lambda cohort: k_fold(cohort, 3, seed=1),
        settings={"image_size": [64, 96]},
    )
    assert made.tasks == tuple(Task("mask-rcnn", 0, fold, 0) for fold in range(3))
    assert made.waiting == made.tasks
    with pytest.raises(ValueError, match="drawn with other settings"):
        plan_detectors(
            ADDRESS,
            ["mask-rcnn"],
            out=tmp_path,
            draw=lambda cohort: k_fold(cohort, 3, seed=2),
            settings={"image_size": [64, 96]},
        )


CHANGING = {"shift": 0.0, "twice": False}


def changing_squares():
    """Squares whose first box is another one when it is opened again, or stands there twice."""
    cohort = squares()
    assert cohort.boxes is not None
    first, *others = cohort.boxes
    corners = first.corners + CHANGING["shift"]
    if CHANGING["twice"]:
        first = first._replace(classes=np.repeat(first.classes, 2))
        corners = np.repeat(corners, 2, axis=0)
    return dataclasses.replace(cohort, boxes=[first._replace(corners=corners), *others])


def test_a_cohort_that_has_changed_is_not_taken_for_the_one_before(tmp_path, monkeypatch):
    address = {"function": "tests.detection.test_study:changing_squares"}
    opened = []
    for number in range(2):
        monkeypatch.setitem(CHANGING, "shift", float(number))
        made = plan_detectors(address, ["mask-rcnn"], out=tmp_path / str(number), settings=CHEAP)
        opened.append(module._opened(json.dumps(dict(made.address)), made.cohort.fingerprint))
        assert opened[-1].fingerprint == made.cohort.fingerprint
    assert opened[0].fingerprint != opened[1].fingerprint
    with pytest.raises(ValueError, match="squares: the cohort has changed since its splits were drawn"):
        module._opened(json.dumps(address), opened[0].fingerprint)


def test_a_box_that_stands_there_twice_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(CHANGING, "twice", True)
    address = {"function": "tests.detection.test_study:changing_squares"}
    with pytest.raises(ValueError, match=r"squares: case c00 has the box .* of class 'bright' 2 times. Leave one"):
        plan_detectors(address, ["mask-rcnn"], out=tmp_path, settings=CHEAP)


@pytest.mark.parametrize(
    ("models", "options", "message"),
    [
        (["mdfnet"], {}, "no detector 'mdfnet'; did you mean 'mdf-net'"),
        (["mdf-net"], {"seeds": (1, 1)}, "seeds are 1, 1; expected different"),
        ([], {}, "expected at least one"),
        ({"a": {"name": "mdf-net"}}, {}, "expected recipe and arguments"),
        (["mdf-net"], {"settings": {"features": ["bmi"]}}, "no input column 'bmi'"),
        (["mdf-net"], {"fractions": (0.5, 0.5, 0.5)}, "expected training, validation and test that sum to 1"),
        (["mdf-net"], {"settings": {"image_size": [64, 90]}}, "90 columns; expected a multiple of 32"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused_before_any_training(models, options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        plan_detectors(ADDRESS, models, out=tmp_path, **options)
    assert not (tmp_path / "tasks").exists()


def test_a_training_that_fails_is_named_and_the_others_are_kept(found, monkeypatch, tmp_path):
    study, *_ = found
    one = study.plan.task_folder(study.done[0])
    target = tmp_path / "tasks" / "whole" / "r0_f0_s0"
    target.mkdir(parents=True)
    for name in ("predictions.csv", "recipe.json"):
        (target / name).write_text((one / name).read_text())
    stored = json.loads((study.plan.folder / "tasks" / "config.json").read_text())
    stored["config"]["splits"] = str((tmp_path / "splits.json").resolve())
    (tmp_path / "tasks" / "config.json").write_text(json.dumps(stored))
    (tmp_path / "splits.json").write_text((study.plan.folder / "splits.json").read_text())

    def broken(*_arguments: Any, **_options: Any) -> None:
        raise ValueError("the disk is full")

    monkeypatch.setattr(module, "_run", broken)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fusion_jax.training.cross_validation.LOG.warning", lambda *_: None)
        left = compare_detectors(ADDRESS, MODELS, out=tmp_path, folds=2, fractions=(0.5, 0.25, 0.25), settings=CHEAP)
    assert left.done == (Task("whole", 0, 0, 0),)
    assert [failure.task.model for failure in left.failed] == ["brief", "whole", "brief"]
    assert "the disk is full" in left.failed[0].message
    assert np.isin(left.detections["fold"], [0]).all()
    # The cases of the fold that failed are no missed boxes.
    assert [split.fold for split in left.judged_splits()] == [0]
    assert set(left.truth["case_id"]) == set(left.plan.splits.splits[0].test)
    written = (tmp_path / "truth.csv").read_text().splitlines()
    assert len(written) == len(left.truth) + 1


def test_detectors_are_judged_on_the_splits_that_all_of_them_have(found):
    study, *_ = found
    whole0, brief0, whole1, brief1 = study.done
    part = study._replace(done=(whole0, brief0, whole1))
    assert [split.fold for split in part.judged_splits()] == [0]
    assert set(part.tested()["case_id"]) <= set(study.plan.splits.splits[0].test)
    assert [split.fold for split in study.judged_splits()] == [0, 1]
    assert study._replace(done=(whole0, brief1)).judged_splits() == ()
    assert [split.fold for split in study._replace(done=(whole0, whole1)).judged_splits()] == [0, 1]
