import csv
import dataclasses
import json
import re
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fusion_jax
from fusion_jax.records import atomic_path, read_json_lines, run_record, write_bytes, write_csv, write_json, write_text


class Gap(NamedTuple):
    gamma: float
    values: np.ndarray


@dataclasses.dataclass(frozen=True)
class Config:
    out: Path
    gammas: tuple[float, ...]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "table.txt"
    write_text(path, "old")
    with pytest.raises(UnicodeEncodeError), atomic_path(path) as temporary:
        temporary.write_text("half of a new file, then \ud800", encoding="utf-8")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["table.txt"]


def test_the_new_file_appears_only_when_it_is_whole(tmp_path):
    path = tmp_path / "new" / "array.npz"
    with atomic_path(path) as temporary:
        np.savez(temporary, x=np.arange(3))
        assert not path.exists()
        assert temporary.parent == path.parent
    np.testing.assert_array_equal(np.load(path)["x"], np.arange(3))
    assert names(path.parent) == ["array.npz"]


def test_a_writer_that_wrote_nothing_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "forgotten.txt"):
        pass
    assert names(tmp_path) == []


def test_files_have_ordinary_permissions(tmp_path):
    write_bytes(tmp_path / "ours", b"")
    (tmp_path / "plain").touch()
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_json_keeps_order_and_takes_arrays_dataclasses_and_named_tuples(tmp_path):
    value = {
        "zeta": np.float32(0.5),
        "alpha": [np.arange(2), jnp.ones((1, 2)), np.bool_(True), None],
        "gap": Gap(1.0, np.array([2, 3])),
        "config": Config(Path("results"), (0.1, 1.0)),
        "μ": "é",
    }
    write_json(tmp_path / "value.json", value)
    text = (tmp_path / "value.json").read_text(encoding="utf-8")
    assert json.loads(text) == {
        "zeta": 0.5,
        "alpha": [[0, 1], [[1.0, 1.0]], True, None],
        "gap": {"gamma": 1.0, "values": [2, 3]},
        "config": {"out": "results", "gammas": [0.1, 1.0]},
        "μ": "é",
    }
    assert text.startswith('{\n  "zeta": 0.5,\n  "alpha"')
    assert text.endswith("}\n")


@pytest.mark.parametrize("bad", [float("nan"), np.float32("inf"), np.array([1.0, -np.inf])])
def test_json_refuses_what_it_cannot_hold_and_says_where(tmp_path, bad):
    with pytest.raises(ValueError, match=r"gap\.json: value\['curve'\]\[1\].* is (nan|-?inf), .*Store None"):
        write_json(tmp_path / "gap.json", {"curve": [0.0, bad]})
    assert names(tmp_path) == []


@pytest.mark.parametrize("bad", [{1.0: 2}, {"set": {1}}, {"class": Config}])
def test_json_refuses_values_and_keys_without_a_json_form(tmp_path, bad):
    with pytest.raises(TypeError, match=r"bad\.json: value"):
        write_json(tmp_path / "bad.json", bad)


@given(values=st.lists(st.floats(width=64), min_size=1))
def test_csv_floats_read_back_bit_for_bit(tmp_path_factory, values):
    path = tmp_path_factory.mktemp("csv") / "floats.csv"
    write_csv(path, {"value": np.array(values)})
    with path.open(newline="") as file:
        read = [float(row["value"]) for row in csv.DictReader(file)]
    np.testing.assert_array_equal(read, values)


def test_csv_rows_and_columns_give_the_same_file(tmp_path):
    columns = {"case": ["a, b", 'say "c"'], "n": np.array([1, 2]), "score": [0.1, None]}
    rows = [{"case": "a, b", "n": 1, "score": 0.1}, {"n": np.int64(2), "case": 'say "c"', "score": None}]
    write_csv(tmp_path / "columns.csv", columns)
    write_csv(tmp_path / "rows.csv", iter(rows))
    text = (tmp_path / "columns.csv").read_text()
    assert text == 'case,n,score\n"a, b",1,0.1\n"say ""c""",2,\n'
    assert (tmp_path / "rows.csv").read_text() == text


def test_csv_without_rows_keeps_its_header(tmp_path):
    write_csv(tmp_path / "empty.csv", {"case": [], "score": []})
    assert (tmp_path / "empty.csv").read_text() == "case,score\n"


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"a": [1], "b": [1, 2]}, "different lengths"),
        ([{"a": 1}, {"b": 1}], r"row 2 has columns \['b'\]"),
        ([], "without columns"),
        ({}, "without columns"),
    ],
)
def test_csv_refuses_ragged_tables(tmp_path, table, message):
    with pytest.raises(ValueError, match=rf"ragged\.csv: .*{message}"):
        write_csv(tmp_path / "ragged.csv", table)


def test_csv_refuses_cells_that_are_not_one_value(tmp_path):
    with pytest.raises(TypeError, match=r"row 1, column 'curve' is a list"):
        write_csv(tmp_path / "nested.csv", {"curve": np.ones((1, 2))})


def test_lines_of_json_are_read_and_a_broken_one_is_named(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"epoch": 0}\n\n{"epoch": 1}\n')
    assert read_json_lines(path) == [{"epoch": 0}, {"epoch": 1}]
    path.write_text('{"epoch": 0}\n{"epo')
    with pytest.raises(ValueError, match=r"log\.jsonl: line 2 is no JSON"):
        read_json_lines(path)


def test_run_record_names_time_versions_and_machine(tmp_path):
    record = run_record()
    write_json(tmp_path / "run.json", record)
    assert json.loads((tmp_path / "run.json").read_text()) == record
    assert datetime.fromisoformat(record["time"]).utcoffset() == timedelta(0)
    assert record["versions"]["fusion_jax"] == fusion_jax.__version__
    assert record["versions"]["jax"] is not None
    assert record["platform"]["cpu_count"] >= record["platform"]["usable_cpus"] >= 1
    assert record["revision"] is None or re.fullmatch(r"[0-9a-f]{40}(-dirty)?", record["revision"])


def test_records_import_no_jax():
    code = "import sys, fusion_jax.records; print(sorted({'jax', 'numpy', 'pandas'} & sys.modules.keys()))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
