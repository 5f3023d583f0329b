"""`fusion-jax cohort table` from end to end."""

import csv
import html
import json

import pytest

from fusion_jax.commands.main import main
from fusion_jax.data.folder import open_cohort
from fusion_jax.data.splits import k_fold, save_splits
from tests.data.folders import edit, write_folder


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "study")


@pytest.fixture
def table(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where results go by default

    def ask(*words):
        code = main(["cohort", "table", *map(str, words)])
        answer = capsys.readouterr()
        return code, answer.out, answer.err

    return ask


def rows_of(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_inputs_by_label_are_the_default(table, folder, tmp_path):
    out_folder = tmp_path / "results" / "cohort" / "nodules"
    code, out, err = table(folder)
    assert (code, err) == (0, "")
    assert "| Overall (n = 8) | malignant: no (n = 4) | malignant: yes (n = 4) | SMD |" in out
    assert "| age, years, mean ± SD | 8 | 0 |" in out
    names = {path.name for path in out_folder.iterdir()}
    assert names == {"table1.csv", "table1_comparisons.csv", "table1.md", "table1.tex", "flow.svg", "flow.json"}
    rows = rows_of(out_folder / "table1.csv")
    ages = open_cohort(folder).table["age"]
    assert float(rows[0]["mean"]) == pytest.approx(ages.mean())
    assert {row["variable"] for row in rows} == {"age", "sex"}
    assert out.startswith(html.unescape((out_folder / "table1.md").read_text(encoding="utf-8")))


def test_parts_of_a_split_are_groups(table, folder, tmp_path):
    splits = k_fold(open_cohort(folder), 2, seed=0)
    save_splits(tmp_path / "splits.json", splits)
    code, out, _ = table(folder, "--splits", tmp_path / "splits.json", "--split", 1, "--out", tmp_path / "out")
    assert code == 0
    assert "| split: train (n = 4) | split: test (n = 4) |" in out
    rows = rows_of(tmp_path / "out" / "table1.csv")
    mean = open_cohort(folder).table.loc[list(splits.splits[1].test), "age"].mean()
    [found] = [row for row in rows if (row["variable"], row["by"], row["group"]) == ("age", "split", "test")]
    assert float(found["mean"]) == pytest.approx(mean)


def test_without_a_label_all_are_one_group(table, folder, tmp_path):
    edit(folder / "cohort.toml", 'label = "malignant"\n', "")
    code, out, _ = table(folder, "--out", tmp_path / "out")
    assert code == 0
    assert out.startswith("| Characteristic | n | Missing | Overall (n = 8) |\n")


def test_a_split_that_is_not_there(table, folder, tmp_path):
    save_splits(tmp_path / "splits.json", k_fold(open_cohort(folder), 2, seed=0))
    code, _, err = table(folder, "--splits", tmp_path / "splits.json", "--split", 2)
    assert code == 2
    assert "--split is 2; expected 0 to 1" in err


def test_columns_groups_and_statistics_can_be_named(table, folder, tmp_path):
    options = ("--by", "hospital", "sex", "--columns", "age", "malignant", "--median", "age", "--test", "fisher")
    code, out, _ = table(folder, *options, "--out", tmp_path / "out")
    assert code == 0
    assert "| age, years, median [IQR] |" in out
    assert "hospital: a (n = 4)" in out
    assert "sex: f (n = 4)" in out
    assert "p by Fisher's exact test: malignant." in out.replace("&#39;", "'")


def test_levels_keep_their_declared_order(table, folder, tmp_path):
    edit(folder / "cohort.toml", "[sources.xray]", '[levels]\nmalignant = ["yes", "no"]\n\n[sources.xray]')
    code, out, _ = table(folder, "--out", tmp_path / "out")
    assert code == 0
    assert "| malignant: yes (n = 4) | malignant: no (n = 4) |" in out


def test_the_flow_counts_who_was_left_out(table, folder, tmp_path):
    with (folder / "cohort.toml").open("a", encoding="utf-8") as file:
        file.write('\n[[exclude]]\nrule = "hospital == \\"b\\" and malignant == \\"no\\""\nreason = "moved away"\n')
    code, out, _ = table(folder, "--out", tmp_path / "out")
    assert code == 0
    assert "− 2: moved away\n6 patients" in out
    flow = json.loads((tmp_path / "out" / "flow.json").read_text(encoding="utf-8"))
    assert [step["cases"] for step in flow["steps"]] == [8, 6]
    assert flow["steps"][1]["dropped"][0]["n"] == 2
    assert "moved away" in (tmp_path / "out" / "flow.svg").read_text(encoding="utf-8")


def test_several_cases_of_a_patient_are_pointed_out(table, folder, tmp_path):
    edit(folder / "cases.csv", "p001", "p000")
    code, out, _ = table(folder, "--out", tmp_path / "out")
    assert code == 0
    assert "n counts 8 cases of 7 patients" in out


def test_images_need_not_be_at_hand(table, folder, tmp_path):
    for path in (folder / "images").iterdir():
        path.unlink()
    assert table(folder, "--out", tmp_path / "out")[0] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--by", "malign"], "no column 'malign' (--by). Did you mean 'malignant'?"),
        (["--columns", "weight"], "no column 'weight' (--columns)"),
        (["--median", "weight"], "no column 'weight' (--median)"),
        (["--splits", "absent.json"], "absent.json"),
    ],
)
def test_options_that_cannot_be_used(table, folder, tmp_path, options, message):
    code, _, err = table(folder, *options)
    assert code == 2
    assert message in err
    assert not (tmp_path / "results").exists()


def test_groups_must_be_few(table, folder):
    text = (folder / "cohort.toml").read_text().replace("size", "size")
    rows = ["case_id,patient,hospital,age,sex,malignant,name"]
    rows += [f"c{n % 8:03d}x{n},p{n},a,{30 + n},f,{'yes' if n % 2 else 'no'},x" for n in range(12)]
    (folder / "cases.csv").write_text("\n".join(rows) + "\n")
    (folder / "cohort.toml").write_text(text.split("[sources.xray]")[0] + '[sources.clinical]\ncolumns = ["age"]\n')
    code, _, err = table(folder, "--by", "age")
    assert code == 2
    assert "column 'age' has 12 different values; expected at most 10 groups" in err


def test_levels_of_inputs_stand_in_their_order(table, folder, tmp_path):
    edit(folder / "cohort.toml", "[units]", '[levels]\nsex = ["m", "f"]\n\n[units]')
    _, out, _ = table(folder, "--out", tmp_path / "out")
    assert out.index("\N{NO-BREAK SPACE}m |") < out.index("\N{NO-BREAK SPACE}f |")
    assert "&" not in out
