"""`fusion-jax cohort check` from end to end."""

import contextlib
import io
import json
import re

import pytest

from fusion_jax.commands.main import main
from fusion_jax.data.integrity import Report
from tests.data.folders import CONFIG, edit, write_folder

CLEAN = CONFIG.replace('never = ["name"]\n', "").replace('input = ["age", "sex"]', 'input = ["age", "sex"]')


def ask(*words):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(word) for word in words])
    return code, out.getvalue(), err.getvalue()


def text_of(page):
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "data", n=20, size=32)


def test_warnings_leave_the_exit_code_at_0(folder, tmp_path):
    code, out, err = ask("cohort", "check", folder, "--out", tmp_path / "out")
    assert (code, err) == (0, "")
    assert "nodules: 20 cases of 20 patients. 0 errors, 1 warning, 0 notes." in out
    assert "personal data" in out
    assert str(tmp_path / "out" / "integrity.html") in out.replace("\n", "")


def test_errors_make_it_1_and_are_in_every_output(folder, tmp_path):
    (folder / "images" / "c003.png").unlink()
    (folder / "images" / "c005.png").write_bytes(b"nothing")
    code, out, _ = ask("cohort", "check", folder, "--out", tmp_path / "out")
    assert code == 1
    assert "2 errors, 1 warning" in out
    content = json.loads((tmp_path / "out" / "integrity.json").read_text())
    report = Report.from_dict({key: content[key] for key in ("name", "findings", "facts", "duplicates")})
    assert [(one.check, one.cases) for one in report.findings[:2]] == [
        ("missing file", ("c003",)),
        ("unreadable file", ("c005",)),
    ]
    assert content["counts"] == {"error": 2, "warning": 1, "note": 0}
    assert content["record"]["versions"]["fusion_jax"]
    page = text_of((tmp_path / "out" / "integrity.html").read_text())
    assert "1 of 20 cases lack their file: images/c003.png of c003." in page
    assert "c005.png" in page
    assert "What was checked" in page


def test_nothing_is_written_into_the_cohort(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(path for path in folder.rglob("*"))
    code, _, _ = ask("cohort", "check", folder)
    assert code == 0
    assert sorted(path for path in folder.rglob("*")) == before
    assert (tmp_path / "results" / "cohort" / "nodules" / "integrity.html").is_file()


def test_no_cell_of_a_column_without_a_role_is_in_the_report(folder, tmp_path):
    ask("cohort", "check", folder, "--out", tmp_path / "out")
    for file in ("integrity.json", "integrity.html"):
        assert "Somebody" not in (tmp_path / "out" / file).read_text()


def test_a_clean_cohort_is_told_so(tmp_path):
    folder = write_folder(tmp_path / "data", n=20, size=32, config=CLEAN)
    table = (folder / "cases.csv").read_text().splitlines()
    (folder / "cases.csv").write_text("\n".join(line.rsplit(",", 1)[0] for line in table) + "\n")
    code, out, _ = ask("cohort", "check", folder, "--out", tmp_path / "out")
    assert code == 0
    assert "Nothing to object to." in re.sub(r"\s+", " ", out)


def test_a_finding_is_told_whole_on_the_screen(folder, tmp_path):
    edit(folder / "cohort.toml", 'of = "xray"\n\n', 'of = "xray"\npreprocess = [{op = "resample", spacing = 2}]\n\n')
    code, out, _ = ask("cohort", "check", folder, "--out", tmp_path / "out")
    content = json.loads((tmp_path / "out" / "integrity.json").read_text())
    message = next(one["message"] for one in content["findings"] if one["check"] == "preprocessing")
    assert code == 1
    assert len(message) > 100
    said = re.sub(r"\s+", "", re.sub(r"│[^│\n]*│[^│\n]*│([^│\n]*)│", r"\1", out))
    assert re.sub(r"\s+", "", message) in said
    page = text_of((tmp_path / "out" / "integrity.html").read_text())
    assert "Images were not read." not in page


def test_a_long_list_is_cut_on_the_screen_only(folder, tmp_path):
    for number in range(20):
        (folder / "images" / f"c{number:03d}.png").write_bytes(b"")
    table = (folder / "cases.csv").read_text().splitlines()
    extra = [f"flat{k}" for k in range(14)]
    lines = [",".join([table[0], *extra])] + [",".join([line, *("1" for _ in extra)]) for line in table[1:]]
    (folder / "cases.csv").write_text("\n".join(lines) + "\n")
    named = ", ".join(f'"{name}"' for name in extra)
    edit(folder / "cohort.toml", 'input = ["age", "sex"]', f'input = ["age", "sex", {named}]')
    code, out, _ = ask("cohort", "check", folder, "--out", tmp_path / "out")
    assert code == 1
    assert re.search(r"and \d+ more in the report", out)
    assert len(out.splitlines()) < 50
    assert "flat13" in (tmp_path / "out" / "integrity.html").read_text()


def test_images_can_be_left_out(folder, tmp_path):
    (folder / "images" / "c005.png").write_bytes(b"nothing")
    code, _, _ = ask("cohort", "check", folder, "--no-images", "--out", tmp_path / "out")
    assert code == 0
    assert "Images were not read." in text_of((tmp_path / "out" / "integrity.html").read_text())


def test_input_that_cannot_be_used_is_one_message_and_2(folder, tmp_path):
    for words, message in (
        ((tmp_path / "nowhere",), "no such file"),
        ((folder, "--workers", "0"), "--workers is 0; expected 1 or more"),
        ((folder, "--out", folder / "cases.csv"), "is a file; expected a folder"),
    ):
        code, out, err = ask("cohort", "check", *words)
        assert (code, out) == (2, "")
        assert message in err
        assert len(err.strip().splitlines()) == 1


def test_help_says_what_the_exit_codes_mean():
    code, out, _ = ask("cohort", "check", "--help")
    assert code == 0
    assert "exit code is 1" in re.sub(r"[\s│]+", " ", out)
