import pytest

from fusion_jax.data.exclusions import exclude, read_exclusions
from fusion_jax.data.image import UnreadableFile

COHORT = ("exam_1", "exam_2", "exam_3", "exam_4")


@pytest.fixture
def written(tmp_path):
    def write(text):
        path = tmp_path / "artefacts.csv"
        path.write_bytes(text.encode("utf-8"))
        return path

    return write


def test_a_list_from_a_spreadsheet_is_read_whole(written):
    # A byte-order mark, Windows line ends, further columns, quotes.
    path = written('\ufeffcase_id,reader,reason\r\nexam_3,AB,"motion, both sides"\r\n exam_1 ,CD,metal\r\n')
    assert read_exclusions(path) == {"exam_3": "motion, both sides", "exam_1": "metal"}


def test_cases_on_the_list_are_left_out_with_their_reasons():
    exclusion = exclude(COHORT, {"exam_3": "motion", "exam_1": "metal"})
    assert exclusion.kept == (1, 3)
    assert list(exclusion.excluded.items()) == [("exam_1", "metal"), ("exam_3", "motion")]


def test_an_empty_list_keeps_everybody(written):
    assert exclude(COHORT, read_exclusions(written("case_id,reason\n"))).kept == (0, 1, 2, 3)


def test_an_unknown_case_is_refused_with_the_close_ones():
    with pytest.raises(ValueError, match=r"list.csv: case 'exam3' is not in the cohort \(2 of 3 are not\).*'exam_3'"):
        exclude(COHORT, {"exam_1": "metal", "exam3": "motion", "x": "y"}, where="list.csv")


def test_nobody_left_is_refused():
    with pytest.raises(ValueError, match="all 4 cases are on the list"):
        exclude(COHORT, dict.fromkeys(COHORT, "metal"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,reason\nexam_1,metal\n", "artefacts.csv: no column 'case_id'; it has 'id', 'reason'"),
        ("", "no column 'case_id'; it has none"),
        ("case_id,reason\nexam_1,metal\nexam_2,\n", "line 3: case id 'exam_2', reason ''; expected both"),
        ("case_id,reason\nexam_2\n", "line 2: case id 'exam_2', reason ''"),
        ("case_id,reason\n,metal\n", "line 2: case id '', reason 'metal'"),
        ("case_id,reason\nexam_1,metal\nexam_1,motion\n", "line 3: case 'exam_1' stands in the list twice"),
    ],
)
def test_a_damaged_list_is_refused_by_line(written, text, message):
    with pytest.raises(ValueError, match=message):
        read_exclusions(written(text))


@pytest.mark.parametrize(
    "content",
    [
        b'case_id,reason\nexam_1,"motion\nexam_2,implant\n',  # the quote would hide exam_2
        "case_id,reason\nexam_1,Gerät\n".encode("latin-1"),
        "case_id,reason\nexam_1,motion\n".encode("utf-16"),
        b"case_id,reason\nexam_1," + b"a" * 200_000,
    ],
)
def test_what_is_no_csv_is_refused_by_name(tmp_path, content):
    path = tmp_path / "artefacts.csv"
    path.write_bytes(content)
    with pytest.raises(UnreadableFile, match=r"artefacts\.csv.*is no CSV in UTF-8"):
        read_exclusions(path)
