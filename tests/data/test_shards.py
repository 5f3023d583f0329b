import os
import pickle
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion_jax.data import shards
from fusion_jax.data.cohort import Arrays, Boxes, Cohort, Columns
from fusion_jax.data.definition import Dropped, Flow, Step
from fusion_jax.data.image import UnreadableFile
from fusion_jax.data.shards import open_shards, write_shards

AFFINE = np.array([[0.0, 0, -0.7, 10.1], [0, -0.7, 0, 1 / 3], [2.5, 0, 0, -7], [0, 0, 0, 1]])


def rich_cohort(n=5):
    """Everything a cohort may hold: shapes that differ, absent sources, boxes, sites, all kinds of missing cells."""
    rng = np.random.default_rng([4, n])
    ct = [rng.normal(size=(2 + i, 4, 5, 1)).astype(np.float32) for i in range(n)]
    ct[0][0, 0, 0, 0] = np.nan
    pet = [None if i == 1 else rng.normal(size=(3, 3 + i, 2, 2)) for i in range(n)]
    here = np.array([array is not None for array in pet])
    table = pd.DataFrame(
        {
            "age": [0.1 + 0.2, np.nan, 61, 1 / 3, 99][:n],
            "grade": pd.array([1, None, 3, 2, 2][:n], dtype="Int64"),
            "sex": pd.Series(["F", None, "M", "ø", ""][:n], dtype="str"),
            "loose": pd.Series(["3", 3, None, np.nan, True][:n], dtype=object),
            "stage": pd.Categorical(
                ["II", "I", None, "I", "III"][:n], categories=["I", "II", "III", "IV"], ordered=True
            ),
            "scanned": np.array(
                ["2180-01-01", "NaT", "2180-05-06T22:23:00.5", "2180-01-02", "2181-01-01"][:n], "datetime64[us]"
            ),
            "smoker": pd.array([True, None, False, True, True][:n], dtype="boolean"),
            "dead": np.array([1, 0, 1, 0, 1][:n], np.int8),
            "days": np.arange(n) * 1.5,
            "hospital id/ward": ["a", "b", "c", "d", "e"][:n],
        },
        index=pd.Index([f"case/{i}" for i in range(n)], dtype=object, name="case_id"),
    )
    return Cohort(
        name="all of it",
        table=table,
        patient_id=np.array(["p1", "p1", "p2", "p3", "p4"][:n]),
        site=np.array(["A", "B", "A", "B", "Ö"][:n]),
        roles={
            "age": "input", "grade": "input", "sex": "input", "stage": "label", "smoker": "input",
            "scanned": "group", "dead": "event", "days": "time", "hospital id/ward": "group",
        },
        sources={
            "ct/thin": Arrays(
                ct, spacing=[(2.5, 0.7, 0.7 + i) for i in range(n)], affine=[AFFINE + i for i in range(n)], unit="HU"
            ),
            "pet": Arrays([np.zeros((0, 0, 0, 0)) if a is None else a for a in pet], unit="SUV"),
            "mask": Arrays([(array > 0) for array in ct], kind="mask", unit="label"),
            "features": Arrays(np.arange(3 * n, dtype=np.float16).reshape(n, 3), "array"),
            "clinical": Columns(("age", "sex"), n),
        },
        present={
            "ct/thin": np.ones(n, bool), "pet": here, "mask": np.ones(n, bool), "features": np.ones(n, bool),
            "clinical": np.ones(n, bool),
        },
        units={"age": "years", "ct/thin": "HU"},
        levels={"stage": ("III", "II", "I")},
        boxes=[
            Boxes(rng.uniform(0, 9, (m, 4)).astype(np.float32 if m else np.float64), np.arange(m, dtype=np.int32))
            for m in (0, 1, 2, 0, 1)[:n]
        ],
        box_classes=("nodule", "mass"),
        flow=Flow((Step("screened", n + 1, 5), Step("", n, 4, (Dropped("too young", ("c9",)),))), ("a note",)),
    )  # fmt: skip


def assert_same_array(found, expected):
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    assert found.flags.writeable
    np.testing.assert_array_equal(found, expected)


def assert_same(found: Cohort, expected: Cohort):
    pd.testing.assert_frame_equal(found.table, expected.table, check_exact=True, check_column_type=False)
    for column in (name for name, dtype in expected.table.dtypes.items() if dtype.kind == "O"):
        for ours, theirs in zip(found.table[column], expected.table[column], strict=True):
            assert type(ours) is type(theirs)
            assert ours is theirs or ours == theirs or np.isnan(ours)
    np.testing.assert_array_equal(found.patient_id, expected.patient_id)
    assert found.patient_id.dtype == expected.patient_id.dtype
    assert (found.site is None) == (expected.site is None)
    if expected.site is not None and found.site is not None:
        np.testing.assert_array_equal(found.site, expected.site)
    for name in ("name", "roles", "units", "levels", "box_classes", "flow"):
        assert getattr(found, name) == getattr(expected, name), name
    assert list(found.sources) == list(expected.sources) == list(found.present)
    for name, source in expected.sources.items():
        assert found.sources[name].kind == source.kind
        np.testing.assert_array_equal(found.present[name], expected.present[name])
        if isinstance(source, Columns):
            assert found.sources[name] == source or found.sources[name].names == source.names
            continue
        for row in np.flatnonzero(expected.present[name]):
            ours, theirs = found.image(name, int(row)), expected.image(name, int(row))
            assert_same_array(ours.values, theirs.values)
            assert (ours.spacing, ours.unit) == (theirs.spacing, theirs.unit)
            assert (ours.affine is None) == (theirs.affine is None)
            if theirs.affine is not None:
                assert_same_array(ours.affine, theirs.affine)
    assert (found.boxes is None) == (expected.boxes is None)
    for ours, theirs in zip(found.boxes or (), expected.boxes or (), strict=True):
        assert_same_array(ours.corners, theirs.corners)
        assert_same_array(ours.classes, theirs.classes)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    cohort = rich_cohort()
    return cohort, write_shards(cohort, tmp_path_factory.mktemp("shards") / "cohort")


def test_a_cohort_comes_back_as_it_was(written):
    cohort, folder = written
    assert_same(open_shards(folder), cohort)
    assert open_shards(folder).label.tolist() == cohort.label.tolist() == [1, 2, -1, 2, 0]


def test_cases_are_read_in_any_order_and_rows_can_be_taken(written):
    cohort, folder = written
    taken = open_shards(folder).take([4, 0, 3])
    assert_same(taken, cohort.take([4, 0, 3]))
    case = taken[1]
    assert (case.case_id, sorted(case.images)) == ("case/0", ["ct/thin", "features", "mask", "pet"])


def test_opening_reads_no_record(written, monkeypatch):
    def refuse(folder):
        raise AssertionError(folder)

    monkeypatch.setattr(shards, "_records", refuse)
    cohort = open_shards(written[1])
    assert len(cohort.fingerprint) == 64
    assert np.all(cohort.take([1]).inputs["age"].isna())


def test_many_shards_keep_the_order(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_BYTES", 600)
    cohort = rich_cohort()
    folder = write_shards(cohort, tmp_path / "cohort")
    assert len(list(folder.glob("*.array_record-*"))) > 2
    assert_same(open_shards(folder), cohort)


def test_loader_workers_and_threads_read_the_same(written):
    cohort, folder = written
    source = pickle.loads(pickle.dumps(open_shards(folder).sources["ct/thin"]))  # noqa: S301 - made here
    with ThreadPoolExecutor(4) as pool:
        rows = [i % len(cohort) for i in range(200)]
        for row, values in zip(rows, pool.map(source.__getitem__, rows), strict=True):
            np.testing.assert_array_equal(values, cohort.sources["ct/thin"][row])


def test_other_programs_read_labels_and_values_by_name(written):
    """What somebody without this package gets from TensorFlow Datasets."""
    import tensorflow_datasets as tfds

    cohort, folder = written
    builder: Any = tfds.builder_from_directory(folder)
    records = builder.as_data_source("cases")
    assert len(records) == len(cohort)
    assert builder.info.features["label.stage"].names == ["III", "II", "I"]
    record = records[4]
    assert record["case_id"].decode() == "case/4"
    assert (record["label.stage"], record["column.sex"], record["column.age"].item()) == (0, b"", 99.0)
    np.testing.assert_array_equal(record["source.ct%2Fthin"]["values"], cohort.sources["ct/thin"][4])
    assert not records[1]["source.pet"]["present"]
    # A column that no model may read is in the table only.
    assert not [key for key in record if "loose" in key or "never" in key]
    assert "column.hospital id%2Fward" in record


def test_tensorflow_is_not_imported(tmp_path):
    code = (
        "import sys, numpy as np; from fusion_jax.data.cohort import Cohort; "
        "from fusion_jax.data.shards import open_shards, write_shards; "
        "assert 'tensorflow_datasets' not in sys.modules; "
        "cohort = Cohort.from_arrays({'image': np.zeros((2, 4, 4, 1))}); "
        "open_shards(write_shards(cohort, sys.argv[1])).image('image', 1); "
        "sys.exit('tensorflow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "s"], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_images_of_several_dtypes_keep_theirs(tmp_path):
    rng = np.random.default_rng(8)
    images = [
        rng.integers(0, 256, (3, 3, 1), np.uint8),
        rng.integers(0, 60_000, (2, 3, 1), np.uint16),
        rng.normal(size=(2, 2, 1)),
        rng.integers(-9, 9, (2, 2, 1)).astype(">i2"),
        rng.random((2, 2, 1)) > 0.5,
    ]
    cohort = Cohort.from_arrays({"image": images})
    found = open_shards(write_shards(cohort, tmp_path / "cohort"))
    for row, image in enumerate(images):
        assert_same_array(found.sources["image"][row], image)
        assert found.sources["image"][row].dtype.str == image.dtype.str


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.float16, np.int8])
def test_the_smallest_images_come_back(dtype, tmp_path):
    images = [np.ones((1, 1, 1, 1), dtype), None, np.ones((1, 2, 1, 1), dtype)]
    cohort = Cohort.from_arrays({"image": images, "other": np.ones((3, 2))})
    assert_same(open_shards(write_shards(cohort, tmp_path / "cohort")), cohort)


def test_an_image_without_values_is_refused(tmp_path):
    cohort = Cohort.from_arrays({"image": [np.zeros((2, 2, 1)), np.zeros((0, 2, 1))]})
    with pytest.raises(ValueError, match=r"source 'image' of case case_1 has shape \(0, 2, 1\)"):
        write_shards(cohort, tmp_path / "cohort")


def test_dtypes_that_none_can_hold_together_are_refused(tmp_path):
    cohort = Cohort.from_arrays({"image": [np.full((2, 2, 1), 2**53 + 1), np.zeros((2, 2, 1), np.float32)]})
    with pytest.raises(ValueError, match=r"source 'image' mixes dtypes; float64, .* int64 of case case_0"):
        write_shards(cohort, tmp_path / "cohort")
    assert not list(tmp_path.iterdir())


def test_images_and_volumes_in_one_source_are_refused(tmp_path):
    cohort = Cohort.from_arrays({"image": Arrays([np.zeros((2, 2, 1)), np.zeros((2, 2, 2, 1))])})
    with pytest.raises(ValueError, match="source 'image' has 3 axes in its first case and 4 in case case_1"):
        write_shards(cohort, tmp_path / "cohort")


cells = st.one_of(
    st.none(), st.text(max_size=5), st.integers(-(2**60), 2**60), st.floats(), st.booleans(), st.just(pd.NA)
)


@settings(max_examples=8)
@given(values=st.lists(cells, min_size=3, max_size=3), numbers=st.lists(st.floats(), min_size=3, max_size=3))
def test_any_cell_comes_back(values, numbers, tmp_path_factory):
    table = pd.DataFrame({"any": pd.Series(values, dtype=object), "number": numbers})
    cohort = Cohort.from_arrays({"x": np.zeros((3, 1))}, table=table)
    folder = write_shards(cohort, tmp_path_factory.mktemp("cells") / "cohort")
    assert_same(open_shards(folder), cohort)


def test_a_cell_that_is_no_value_is_refused(tmp_path):
    table = pd.DataFrame({"scan": pd.Series([{"a": 1}, None], dtype=object)})
    cohort = Cohort.from_arrays({"x": np.zeros((2, 1))}, table=table)
    with pytest.raises(ValueError, match=r"cohort: column 'scan' holds \{'a': 1\} of type dict; expected text"):
        write_shards(cohort, tmp_path / "cohort")
    assert not list(tmp_path.iterdir())


def test_a_source_that_no_case_has_comes_back_absent(tmp_path):
    cohort = Cohort.from_arrays({"image": np.zeros((2, 4, 4, 1)), "pet": Arrays(np.zeros((2, 1, 1, 1)))})
    cohort = cohort.with_source("pet", cohort.sources["pet"], np.zeros(2, bool))
    found = open_shards(write_shards(cohort, tmp_path / "cohort"))
    assert not found.present["pet"].any()
    with pytest.raises(ValueError, match="case case_0 has no pet"):
        found.image("pet", 0)


def test_progress_counts_every_case(tmp_path):
    seen = []
    write_shards(rich_cohort(3), tmp_path / "cohort", progress=lambda done, n: seen.append((done, n)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


# Whole or not at all


def test_a_folder_with_contents_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="exists; expected a new folder"):
        write_shards(rich_cohort(2), tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_conversion_that_fails_leaves_nothing(tmp_path):
    class Broken(Arrays):
        def image(self, row):
            if row == 2:
                raise UnreadableFile("scan_2.png", "ends after 12 of 40 rows", "Copy it again.")
            return super().image(row)

    cohort = Cohort.from_arrays({"image": Broken(np.zeros((4, 3, 3, 1)))})
    with pytest.raises(ValueError, match=r"scan_2\.png: .*case_2.* ends after 12 of 40 rows"):
        write_shards(cohort, tmp_path / "cohort")
    assert not list(tmp_path.iterdir())


def test_the_folder_appears_by_one_rename(tmp_path, monkeypatch):
    """Between the last byte and the rename nothing can be mistaken for a cohort."""
    original = Path.replace

    def stop(self, target):
        if Path(target) == tmp_path / "cohort":
            assert (self / "cohort.json").is_file()
            assert (self / "dataset_info.json").is_file()
            raise KeyboardInterrupt
        return original(self, target)

    monkeypatch.setattr(Path, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        write_shards(rich_cohort(2), tmp_path / "cohort")
    assert not list(tmp_path.iterdir())


def test_a_killed_conversion_leaves_nothing_that_opens(tmp_path):
    code = """
import sys, time, numpy as np
from fusion_jax.data.cohort import Cohort
from fusion_jax.data.shards import write_shards
def wait(done, n):
    if done == 3:
        print("half", flush=True)
        time.sleep(60)
write_shards(Cohort.from_arrays({"image": np.zeros((4, 9, 9, 1))}), sys.argv[1], progress=wait)
"""
    # The builder's own words go nowhere, and so would these: progress reports through stderr.
    code = code.replace('print("half", flush=True)', 'print("half", flush=True, file=sys.stderr)')
    process = subprocess.Popen([sys.executable, "-c", code, tmp_path / "cohort"], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert process.stderr.readline() == "half\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "cohort").exists()
    left = [Path(folder) for folder, _, _ in os.walk(tmp_path)]
    assert len(left) > 1
    for folder in left:
        with pytest.raises(UnreadableFile, match=r"has no cohort\.json"):
            open_shards(folder)
    cohort = rich_cohort(2)
    assert_same(open_shards(write_shards(cohort, tmp_path / "cohort")), cohort)


# Damage


@pytest.fixture
def copy(written, tmp_path):
    folder = tmp_path / "copy"
    folder.mkdir()
    for file in written[1].iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def shard_of(folder):
    return next(iter(folder.glob("*.array_record-*")))


def test_a_missing_or_truncated_file_is_named(copy):
    shard = shard_of(copy)
    content = shard.read_bytes()
    shard.write_bytes(content[:-7])
    with pytest.raises(UnreadableFile, match=rf"array_record.*has {len(content) - 7} bytes, expected {len(content)}"):
        open_shards(copy)
    shard.unlink()
    with pytest.raises(UnreadableFile, match=r"array_record.*: is missing"):
        open_shards(copy)


@pytest.mark.parametrize("name", ["cohort.json", "table.parquet", "rows.npz"])
def test_flipped_bytes_beside_the_records_never_open(copy, name):
    content = bytearray((copy / name).read_bytes())
    for at in np.random.default_rng(3).integers(0, len(content), 12):
        changed = content.copy()
        changed[at] ^= 0xFF
        (copy / name).write_bytes(changed)
        with pytest.raises(UnreadableFile, match="copy"):
            open_shards(copy)


def test_a_role_that_somebody_edited_is_refused(copy):
    about = copy / "cohort.json"
    content = about.read_text()
    assert '"dead": "event"' in content
    about.write_text(content.replace('"dead": "event"', '"dead": "input"'))
    with pytest.raises(UnreadableFile, match=r"cohort\.json: does not have the SHA-256 it states"):
        open_shards(copy)


def test_flipped_bytes_of_a_record_are_one_kind_of_error(copy, written):
    cohort, _ = written
    shard = shard_of(copy)
    content = shard.read_bytes()
    refused = 0
    for at in np.random.default_rng(5).integers(0, len(content), 12):
        changed = bytearray(content)
        changed[at] ^= 0xFF
        shard.write_bytes(changed)
        shards._opened.clear()
        found = open_shards(copy)
        for row in range(len(cohort)):
            try:
                values = found.sources["ct/thin"][row]
            except UnreadableFile:
                refused += 1
            else:
                np.testing.assert_array_equal(values, cohort.sources["ct/thin"][row])
    assert refused


def test_another_format_is_refused(copy):
    about = copy / "cohort.json"
    about.write_text(about.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(UnreadableFile, match=r"has format 2, expected 1. Convert the cohort again"):
        open_shards(copy)


def test_a_folder_that_is_written_anew_is_read_anew(tmp_path):
    folder = tmp_path / "cohort"
    for value in (1, 2):
        write_shards(Cohort.from_arrays({"image": np.full((2, 3, 3, 1), value)}), folder)
        assert open_shards(folder).sources["image"][0].max() == value
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    with pytest.raises(UnreadableFile, match=r"has no cohort\.json"):
        open_shards(folder)


def test_a_folder_that_went_away_is_named(tmp_path):
    folder = write_shards(Cohort.from_arrays({"image": np.zeros((2, 3, 3, 1))}), tmp_path / "cohort")
    cohort = open_shards(folder)
    folder.rename(tmp_path / "elsewhere")
    with pytest.raises(UnreadableFile, match="is gone"):
        cohort.image("image", 0)


def test_thousands_of_cases_open_without_reading_them(tmp_path):
    n = 5_000
    table = pd.DataFrame(np.random.default_rng(2).normal(size=(n, 10)), columns=[f"x{i}" for i in range(10)])
    cohort = Cohort.from_arrays({"image": np.zeros((n, 2, 2, 1), np.uint8)}, label=np.arange(n) % 2, table=table)
    folder = write_shards(cohort, tmp_path / "cohort")
    began = time.process_time()
    found = open_shards(folder)
    assert time.process_time() - began < 2
    assert len(found) == n
    assert found[n - 1].images["image"].values.shape == (2, 2, 1)


def test_a_folder_opened_by_a_relative_path_is_read_from_anywhere(tmp_path, monkeypatch):
    cohort = Cohort.from_arrays({"image": np.arange(8.0).reshape(2, 2, 2, 1)})
    write_shards(cohort, tmp_path / "shards")
    monkeypatch.chdir(tmp_path)
    again = open_shards("shards")
    monkeypatch.chdir("/")
    assert again.sources["image"][1].ravel().tolist() == [4, 5, 6, 7]
