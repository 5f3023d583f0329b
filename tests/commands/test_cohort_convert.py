"""`fusion-jax cohort convert` from end to end."""

import re

import numpy as np
import pytest

import fusion_jax.data.shards
from fusion_jax.commands.cohort_convert import check_same
from fusion_jax.commands.main import main
from fusion_jax.data.cohort import Boxes, Cohort
from fusion_jax.data.folder import open_cohort
from fusion_jax.data.image import Image
from fusion_jax.data.shards import open_shards
from tests.data.folders import edit, write_folder


def nothing(done, of):
    del done, of


def test_shards_hold_what_the_folder_holds(tmp_path, capsys):
    folder = write_folder(tmp_path / "study")
    (folder / "masks" / "c002.png").unlink()
    text = (
        (folder / "cohort.toml")
        .read_text()
        .replace('of = "xray"\n\n[sources.cl', 'of = "xray"\nrequired = false\n\n[sources.cl')
    )
    (folder / "cohort.toml").write_text(text)
    assert main(["cohort", "convert", str(folder)]) == 0
    out = capsys.readouterr().out
    assert re.search(r"Wrote 8 cases to .*study_shards: \d+\.\d MB, [\d.e+]+ cases/s\.", out)
    assert "Read back and compared with the files: identical" in out
    cohort, again = open_cohort(folder), open_shards(tmp_path / "study_shards")
    assert again.present["nodule"].tolist() == cohort.present["nodule"].tolist() == [True, True, False] + 5 * [True]
    for row in range(8):
        np.testing.assert_array_equal(again.image("xray", row).values, cohort.image("xray", row).values)


def test_a_folder_with_contents_is_left_alone(tmp_path, capsys):
    folder = write_folder(tmp_path / "study")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    assert main(["cohort", "convert", str(folder), "--out", str(tmp_path / "out")]) == 2
    assert "exists; expected a new folder" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_a_damaged_image_ends_the_conversion_without_a_folder(tmp_path, capsys):
    folder = write_folder(tmp_path / "study")
    (folder / "images" / "c005.png").write_bytes(b"no image")
    assert main(["cohort", "convert", str(folder)]) == 2
    assert "xray of case c005" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["study"]


def test_shards_that_differ_are_deleted(tmp_path, capsys, monkeypatch):
    folder = write_folder(tmp_path / "study")

    def open_changed(path):
        again = open_shards(path)
        values = np.stack([again.image("xray", row).values for row in range(8)])
        values[6, 0, 0] += 1
        return again.with_source("xray", values)

    monkeypatch.setattr(fusion_jax.data.shards, "open_shards", open_changed)
    assert main(["cohort", "convert", str(folder)]) == 2
    assert "shards: xray of case c006 is not what the files hold" in capsys.readouterr().err
    assert not (tmp_path / "study_shards").exists()


def test_without_verification_nothing_is_compared(tmp_path, capsys):
    folder = write_folder(tmp_path / "study")
    assert main(["cohort", "convert", str(folder), "--no-verify", "--out", str(tmp_path / "out")]) == 0
    assert "compared" not in capsys.readouterr().out


def test_a_cohort_without_labels(tmp_path, capsys):
    folder = write_folder(tmp_path / "study")
    edit(folder / "cohort.toml", 'label = "malignant"\n', "")
    assert main(["cohort", "convert", str(folder)]) == 0
    assert "identical" in capsys.readouterr().out


class Still:
    """A source of one image, of which one attribute may be another."""

    kind = "image"

    def __init__(self, **changed):
        self.one = Image(np.ones((2, 3, 4, 1), np.float32), (2.0, 1.0, 1.0), np.eye(4), "HU")._replace(**changed)

    def __len__(self):
        return 2

    def image(self, row):
        del row
        return self.one

    def __getitem__(self, row):
        return self.image(row).values

    def take(self, rows):
        del rows
        return self

    def fingerprint(self):
        return ""


@pytest.mark.parametrize(
    "changed",
    [
        {"values": np.ones((2, 3, 4, 1), np.float64)},
        {"values": np.ones((3, 2, 4, 1), np.float32)},
        {"values": -np.ones((2, 3, 4, 1), np.float32)},
        {"spacing": (2.0, 1.0, 1.5)},
        {"spacing": None},
        {"affine": None},
        {"affine": np.diag([1.0, 1.0, 2.0, 1.0])},
        {"unit": ""},
    ],
    ids=str,
)
def test_every_part_of_an_image_is_compared(changed):
    one, other = (Cohort.from_arrays({"ct": Still(**parts)}, label=[0, 1]) for parts in ({}, changed))
    check_same(one, one, nothing)
    with pytest.raises(ValueError, match="ct of case case_0 is not what the files hold"):
        check_same(one, other, nothing)


def test_the_image_that_boxes_lie_on_is_compared():
    arrays = {"pet": np.zeros((1, 4, 4, 1)), "ct": np.zeros((1, 4, 4, 1))}
    boxes = [Boxes(np.array([[0.0, 0, 2, 2]]), np.array([0]))]
    on_pet, on_ct = (Cohort.from_arrays(arrays, boxes=boxes, boxes_of=name) for name in arrays)
    check_same(on_pet, on_pet, nothing)
    with pytest.raises(ValueError, match="boxes_of differs: 'ct' for 'pet'"):
        check_same(on_pet, on_ct, nothing)


def test_ids_tables_and_labels_are_compared():
    arrays = {"x": np.zeros((3, 2))}
    one = Cohort.from_arrays(arrays, label=[0, 1, 1])
    with pytest.raises(ValueError, match="case_id differs"):
        check_same(one, Cohort.from_arrays(arrays, label=[0, 1, 1], case_id=["a", "b", "c"]), nothing)
    with pytest.raises(ValueError, match="the table differs"):
        check_same(one, Cohort.from_arrays(arrays, label=[0, 0, 1]), nothing)
    levels = {"label": ("1", "0")}
    with pytest.raises(ValueError, match="classes of label differ"):
        check_same(one, Cohort.from_arrays(arrays, label=[0, 1, 1], levels=levels), nothing)
    with pytest.raises(ValueError, match="patients or sources differ"):
        check_same(one, Cohort.from_arrays(arrays, label=[0, 1, 1], patient_id=["p", "p", "q"]), nothing)
