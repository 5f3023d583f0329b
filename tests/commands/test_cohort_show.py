"""`fusion-jax cohort show` from end to end."""

import contextlib
import io
import re
from xml.dom import minidom

import numpy as np
import pytest

from fusion_jax.commands.main import main
from fusion_jax.data.samples import soft_tissue_sarcoma
from tests.data.folders import edit, write_folder

SARCOMA = """\
name = "sarcoma"
table = "cases.csv"
[ids]
case = "patient_id"
patient = "patient_id"
[roles]
input = ["age_years", "sex", "grade"]
label = "distant_metastases"
[units]
age_years = "years"
[sources.pet]
files = "{patient_id}.npz"
unit = "SUV"
options = {array = "pet", axes = "dhw", affine = "affine"}
[sources.ct]
files = "{patient_id}.npz"
unit = "HU"
options = {array = "ct", axes = "dhw", affine = "affine"}
[sources.tumour]
files = "{patient_id}.npz"
kind = "mask"
of = "ct"
options = {array = "mask", axes = "dhw", affine = "affine"}
"""


def ask(*words):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(word) for word in words])
    return code, out.getvalue(), err.getvalue()


def drawn(path):
    """Text of a figure, which is drawn as outlines after comments that hold it; fails where it is no XML."""
    content = path.read_text()
    minidom.parseString(content)  # noqa: S318 - written here
    return re.findall(r"<!-- (.*?) -->", content)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("show") / "data", n=20, size=32)


@pytest.fixture(scope="module")
def shown(folder):
    out = folder.parent / "out"
    code, said, err = ask("cohort", "show", folder, "--cases", "6", "--out", out)
    assert (code, err) == (0, "")
    assert "1 contact sheet of 6 cases, 3 histograms." in said
    return out


def test_the_sheet_names_every_case_with_its_values(shown):
    words = drawn(shown / "figures" / "images_xray.svg")
    cases = [word for word in words if re.fullmatch(r"c\d{3}", word)]
    assert len(set(cases)) == 6
    assert words.count("malignant: yes") == words.count("malignant: no") == 3
    assert sum(bool(re.fullmatch(r"age \d+ years", word)) for word in words) == 6


def test_every_input_has_a_histogram_with_its_n(shown):
    page = (shown / "cohort.html").read_text().replace("\N{NO-BREAK SPACE}", " ")
    assert "age by malignant: n = 20 of 20 cases, 0 missing." in page
    assert "sex by malignant: n = 20 of 20 cases, 0 missing." in page
    assert {path.name for path in (shown / "figures").iterdir()} == {
        "images_xray.svg", "column_age.svg", "column_sex.svg", "column_hospital.svg",
    }  # fmt: skip
    assert "age (years)" in drawn(shown / "figures" / "column_age.svg")


def test_columns_that_are_never_used_are_not_shown(shown):
    assert "Somebody" not in (shown / "cohort.html").read_text()


def test_the_same_seed_shows_the_same_cases(folder, shown, tmp_path):
    for seed, same in ((0, True), (1, False)):
        ask("cohort", "show", folder, "--cases", "6", "--seed", seed, "--out", tmp_path / str(seed))
        again = (tmp_path / str(seed) / "figures" / "images_xray.svg").read_text()
        assert (again == (shown / "figures" / "images_xray.svg").read_text()) is same


def test_cases_and_values_can_be_named(folder, tmp_path):
    code, _, _ = ask(
        "cohort", "show", folder, "--only", "c007", "c003", "--values", "hospital", "--out", tmp_path / "out"
    )
    words = drawn(tmp_path / "out" / "figures" / "images_xray.svg")
    assert code == 0
    assert [word for word in words if re.fullmatch(r"c\d{3}", word)] == ["c007", "c003"]
    assert sum(word.startswith("hospital ") for word in words) == 2


def test_an_image_that_cannot_be_read_leaves_its_place_empty(tmp_path):
    folder = write_folder(tmp_path / "data", n=8, size=32)
    (folder / "images" / "c002.png").write_bytes(b"nothing")
    (folder / "images" / "c003.png").unlink()
    code, _, _ = ask("cohort", "show", folder, "--cases", "8", "--out", tmp_path / "out")
    words = drawn(tmp_path / "out" / "figures" / "images_xray.svg")
    assert code == 0
    assert words.count("not shown") == 2
    assert {"cannot be read", "absent"} <= set(words)
    page = (tmp_path / "out" / "cohort.html").read_text()
    assert "Not shown" in page
    assert "c002.png" in page


def test_cases_that_have_their_images_are_drawn_first(tmp_path):
    folder = write_folder(tmp_path / "data", n=8, size=32)
    for case in ("c001", "c002", "c005"):
        (folder / "images" / f"{case}.png").unlink()
    edit(folder / "cohort.toml", "[sources.xray]\n", "[sources.xray]\nrequired = false\n")
    for seed in range(3):
        code, _, _ = ask("cohort", "show", folder, "--cases", "4", "--seed", seed, "--out", tmp_path / "out")
        assert code == 0
        assert "not shown" not in drawn(tmp_path / "out" / "figures" / "images_xray.svg")


def test_a_table_alone_has_histograms_and_no_pictures(tmp_path):
    (tmp_path / "cases.csv").write_text("case,age,died\n" + "".join(f"c{n},{40 + n},{n % 2}\n" for n in range(12)))
    (tmp_path / "cohort.toml").write_text(
        'name = "t"\ntable = "cases.csv"\n[ids]\ncase = "case"\npatient = "case"\n'
        '[roles]\ninput = "age"\nlabel = "died"\n[sources.clinical]\ncolumns = ["age"]\n'
    )
    code, said, _ = ask("cohort", "show", tmp_path, "--out", tmp_path / "out")
    assert (code, "No images, 1 histogram." in said) == (0, True)
    assert "Pictures of patients" not in (tmp_path / "out" / "cohort.html").read_text()


def test_a_cohort_without_a_label_is_shown_as_one(tmp_path):
    folder = write_folder(tmp_path / "data", n=8, size=32)
    edit(folder / "cohort.toml", 'label = "malignant"\n', "")
    code, _, _ = ask("cohort", "show", folder, "--cases", "4", "--out", tmp_path / "out")
    assert code == 0
    assert "all cases (n = 8)" in drawn(tmp_path / "out" / "figures" / "column_age.svg")


def test_volumes_are_shown_where_the_tumour_is(tmp_path):
    sample = soft_tissue_sarcoma()
    ids = list(sample.table.index)[:4]
    sample.table.iloc[:4].to_csv(tmp_path / "cases.csv", index_label="patient_id")
    for row, case in enumerate(ids):
        np.savez(
            tmp_path / f"{case}.npz",
            pet=sample.pet[row],
            ct=sample.ct[row],
            mask=sample.mask[row],
            affine=sample.affine[row],
        )
    (tmp_path / "cohort.toml").write_text(SARCOMA)
    code, said, _ = ask("cohort", "show", tmp_path, "--out", tmp_path / "out")
    assert code == 0
    assert "2 contact sheets of 4 cases" in said
    page = (tmp_path / "out" / "cohort.html").read_text()
    assert "maximum from front to back, high uptake dark" in page
    assert "the axial slice with most of the mask" in page


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--cases", "0"], "--cases is 0; expected 1 or more."),
        (["--only", "c999"], "--only names 'c999', which is no case of nodules; its ids start with c000, c001, c002."),
        (["--values", "name"], "--values names 'name'; expected columns with a role other than never: "),
    ],
)
def test_options_that_cannot_be_used_are_one_message(folder, tmp_path, words, message):
    code, out, err = ask("cohort", "show", folder, *words, "--out", tmp_path / "out")
    assert (code, out) == (2, "")
    assert message in err
    assert not (tmp_path / "out").exists()
