"""The README's evaluation command gives the numbers that the README prints."""

import re
import shlex

import pytest

from fusion_jax.commands.main import main
from tests.helpers import ROOT

pytestmark = pytest.mark.checkout


def readme_command() -> list[str]:
    """Words of the command behind `fusion-jax`."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    [block] = re.findall(r"^```sh\nfusion-jax (evaluate \\\n.*?)^```", text, re.DOTALL | re.MULTILINE)
    return shlex.split(block.replace("\\\n", " "))


def printed_rows() -> dict[str, list[str]]:
    """Cells of the README's table of published and own figures, by model."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = text.split("prints their Table 2", 1)[1].split("\n\n", 2)[1]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    return {row[0]: row[1:] for row in rows}


@pytest.mark.slow
def test_the_command_prints_the_table(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    words = readme_command()
    assert main([*words[: words.index("--out")], "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    for model, (_, auc, _, specificity) in printed_rows().items():
        line = next(line for line in shown.splitlines() if model in line and "[" in line)
        assert auc.replace(".", "0.") in line
        found = [float(number) for number in re.findall(r"0\.\d+", line)[3:]]
        assert found == pytest.approx([float(number) / 100 for number in re.findall(r"[\d.]+", specificity)], abs=6e-4)
    assert "+0.049 [+0.036, +0.062]" in shown


def test_the_command_runs_with_fewer_resamples(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    words = readme_command()
    quick = ["--resamples", "100", "--permutations", "100", "--scores", "score"]
    assert main([*words[: words.index("--out")], *quick, "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    for model, (_, auc, _, _) in printed_rows().items():
        line = next(line for line in shown.splitlines() if model in line and "[" in line)
        assert auc.split(" ")[0].replace(".", "0.") in line
    assert (tmp_path / "report.html").stat().st_size > 100_000
    # That files were paired by row order is no missing prediction.
    assert "Every model has a prediction of every case that was judged" in (
        tmp_path / "tables" / "claim_2024.md"
    ).read_text(encoding="utf-8")
