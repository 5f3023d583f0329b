"""Tables: every format says the same, and a bad cell is named by column and row."""

import re

import numpy as np
import pandas as pd
import pytest

from fusion_jax.data.image import UnreadableFile
from fusion_jax.data.tables import read_table

CELLS = 'id,age,date,note\n007,63.5,2020-01-31,"a, b"\n12,,2021-02-01,NA\n'


def write(path, text=CELLS):
    path.write_text(text, encoding="utf-8")
    return path


def test_text_stays_as_written_and_gaps_are_missing(tmp_path):
    table = read_table(write(tmp_path / "t.csv"), text=["id"], types={"date": "date", "age": "number"})
    assert table["id"].tolist() == ["007", "12"]
    assert table["note"].isna().tolist() == [False, True]
    assert np.isnan(table["age"].iloc[1])
    assert table["date"].dt.year.tolist() == [2020, 2021]


@pytest.mark.parametrize("suffix", [".tsv", ".csv.gz", ".xlsx", ".parquet"])
def test_formats_agree(tmp_path, suffix):
    expected = read_table(write(tmp_path / "t.csv"), text=["id"], types={"date": "date"})
    path = tmp_path / f"t{suffix}"
    if suffix == ".xlsx":
        expected.to_excel(path, index=False)
    elif suffix == ".parquet":
        expected.to_parquet(path)
    else:
        expected.to_csv(path, index=False, sep="\t" if suffix == ".tsv" else ",")
    found = read_table(path, text=["id"], types={"date": "date"})
    pd.testing.assert_frame_equal(found, expected, check_dtype=False)


def test_a_sheet_is_found_by_name(tmp_path):
    path = tmp_path / "t.xlsx"
    with pd.ExcelWriter(path) as book:
        pd.DataFrame({"a": [1]}).to_excel(book, sheet_name="first", index=False)
        pd.DataFrame({"b": [2]}).to_excel(book, sheet_name="second", index=False)
    assert list(read_table(path)) == ["a"]
    assert list(read_table(path, sheet="second")) == ["b"]
    with pytest.raises(UnreadableFile, match="no sheet 'third'; it has first, second"):
        read_table(path, sheet="third")


def test_numbers_of_excel_ids_lose_no_digit(tmp_path):
    pd.DataFrame({"id": [7.0, 10001.0]}).to_excel(tmp_path / "t.xlsx", index=False)
    assert read_table(tmp_path / "t.xlsx", text=["id"])["id"].tolist() == ["7", "10001"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,age\n1,2\n3,4,5\n", "cannot be read as a table.*line 3"),
        ("id,age\n1,2,3\n", "more cells than the header"),
        ("id,id\n1,2\n", "two columns are called 'id'"),
        ("id,\n1,2\n", "column 2 has no name"),
        ("id,age\n", "a header and no rows"),
        ("", "cannot be read as a table"),
    ],
)
def test_a_table_that_is_none_is_named(tmp_path, text, message):
    path = write(tmp_path / "t.csv", text)
    with pytest.raises(ValueError, match=rf"{re.escape(str(path))}: .*{message}"):
        read_table(path)


@pytest.mark.parametrize("name", ["t.csv", "t.xlsx", "t.parquet", "t.csv.gz", "t.pdf"])
def test_bytes_that_are_no_table_are_one_error(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"\xff\xfe\x00PK\x03\x04" * 40)
    with pytest.raises(UnreadableFile, match=re.escape(str(path))):
        read_table(path)


@pytest.mark.parametrize(
    ("column", "kind", "message"),
    [("note", "number", "'note' holds 'a, b' in row 2 .* expected a number"), ("id", "date", "'id' holds .*in row")],
)
def test_a_cell_of_another_type_is_named(tmp_path, column, kind, message):
    with pytest.raises(ValueError, match=message):
        read_table(write(tmp_path / "t.csv", CELLS.replace("12,", "x12,")), types={column: kind})


def test_a_missing_table_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"t\.csv: no such file"):
        read_table(tmp_path / "t.csv")
