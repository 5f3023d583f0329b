"""Tables: every format says the same, and a bad cell is named by column and row."""

import re

import numpy as np
import pandas as pd
import pytest

from fusion_jax.data.image import UnreadableFile
from fusion_jax.data.tables import NoRowsError, parsed, read_cells, read_table

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


def test_ids_keep_their_zeros_whatever_spaces_the_header_has(tmp_path):
    path = write(tmp_path / "t.csv", "case_id, patient \na,007\nb,  \n")
    assert read_table(path, text=["case_id", "patient"])["patient"].tolist() == ["007", None]
    pd.DataFrame({" patient": ["007", "008"]}).to_excel(tmp_path / "t.xlsx", index=False)
    assert read_table(tmp_path / "t.xlsx", text=["patient"])["patient"].tolist() == ["007", "008"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_newlines_and_marks_of_any_system_say_the_same(tmp_path, encoding, newline):
    path = tmp_path / "t.csv"
    path.write_bytes(newline.join(["", "id;größe", "007;1", ""]).encode(encoding))
    assert read_table(path, text=["id"]).to_dict("list") == {"id": ["007"], "größe": [1]}


def test_a_name_may_go_over_two_lines_and_still_not_stand_twice(tmp_path):
    path = write(tmp_path / "t.csv", 'id,"age\n(years)",x\na,1,2\n')
    assert list(read_table(path)) == ["id", "age\n(years)", "x"]
    with pytest.raises(ValueError, match="two columns are called 'x'"):
        read_table(write(path, 'id,"age\n(years)",x,x\na,1,2,3\n'))


def test_dates_without_hyphens_are_dates_and_no_nanoseconds(tmp_path):
    path = write(tmp_path / "t.csv", "id,date\na,20200131\nb,2021-02-28\n")
    assert read_table(path, types={"date": "date"})["date"].dt.strftime("%Y-%m-%d").tolist() == [
        "2020-01-31",
        "2021-02-28",
    ]


@pytest.mark.parametrize("cell", ["2020", "2020-01", "43861", "31.01.2020", "2020-13-01"])
def test_what_is_no_day_is_no_date(tmp_path, cell):
    with pytest.raises(ValueError, match=rf"'date' holds '{cell}' in row 2 .*expected a date such as"):
        read_table(write(tmp_path / "t.csv", f"id,date\na,{cell}\nb,\n"), types={"date": "date"})


def test_days_of_excel_without_their_format_are_refused(tmp_path):
    for cells in ([43861, 43862], [pd.Timestamp("2020-01-31"), 43862]):
        pd.DataFrame({"date": cells}).to_excel(tmp_path / "t.xlsx", index=False)
        with pytest.raises(ValueError, match=r"'date' holds 4386\d in row .*expected a date"):
            read_table(tmp_path / "t.xlsx", types={"date": "date"})
    cells = [pd.Timestamp("2020-01-31"), "2020-02-01", None]
    pd.DataFrame({"date": cells}).to_excel(tmp_path / "t.xlsx", index=False)
    assert read_table(tmp_path / "t.xlsx", types={"date": "date"})["date"].dt.day.tolist()[:2] == [31, 1]


def test_several_time_zones_are_named(tmp_path):
    path = write(tmp_path / "t.csv", "id,date\na,2020-01-31T00:00+01:00\nb,2020-02-01T00:00+02:00\n")
    with pytest.raises(ValueError, match=r"t\.csv: column 'date' holds times of several time zones"):
        read_table(path, types={"date": "date"})


def test_only_a_setting_of_the_user_is_named_as_the_way_out(tmp_path):
    path = write(tmp_path / "t.csv", "id,x\na,b\n")
    with pytest.raises(ValueError, match=r"\(1 such cell\); expected a number\. Fix the cells\.$"):
        read_table(path, types={"x": "number"})
    with pytest.raises(ValueError, match=r"or take the column out of `units`\.$"):
        read_table(path, units={"x": "mm"})


def test_a_header_alone_still_tells_its_columns(tmp_path):
    with pytest.raises(NoRowsError) as raised:
        read_table(write(tmp_path / "t.csv", "id, x\n"))
    assert raised.value.columns == ("id", "x")


def test_infinity_is_no_number(tmp_path):
    with pytest.raises(ValueError, match="'x' holds inf in row 3"):
        read_table(write(tmp_path / "t.csv", "id,x\na,1\nb,inf\nc,1e400\n"), units={"x": "mm"})


def test_cells_of_another_type_are_missing_once_parsed_and_there_before():
    cells = pd.Series(["63.5", "old", "inf", None])
    assert parsed(cells, "number").isna().tolist() == [False, True, True, True]
    days = pd.Series(["20200131", 43861, "2020", "2020-02-01"])
    assert parsed(days, "date").dt.day.tolist()[::3] == [31, 1]
    assert parsed(days, "date").isna().tolist() == [False, True, True, False]


def test_cells_are_read_before_they_are_held_to_a_type(tmp_path):
    path = write(tmp_path / "t.csv", "id,date,age\n007,20200131,63\n8,2020,old\n")
    table = read_cells(path, text=["id"], dates=["date"])
    assert table.to_dict("list") == {"id": ["007", "8"], "date": ["20200131", "2020"], "age": ["63", "old"]}


def test_the_index_of_a_parquet_file_is_a_column(tmp_path):
    pd.DataFrame({"age": [1, 2]}, index=pd.Index(["007", "b"], name="case_id")).to_parquet(tmp_path / "t.parquet")
    assert read_table(tmp_path / "t.parquet", text=["case_id"])["case_id"].tolist() == ["007", "b"]


def test_decimal_commas_beside_semicolons_are_numbers(tmp_path):
    path = write(tmp_path / "t.csv", "id;age;code;mixed\n1,5;63,5;1,2,3;1,5\n2,5;;4;about 2\n")
    table = read_table(path, text=["id"])
    assert table["age"].tolist()[0] == 63.5
    assert np.isnan(table["age"].tolist()[1])
    assert table["id"].tolist() == ["1,5", "2,5"]
    assert table["code"].tolist() == ["1,2,3", "4"]
    assert table["mixed"].tolist() == ["1,5", "about 2"]
