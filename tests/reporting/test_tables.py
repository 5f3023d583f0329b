"""One table in four forms: every digit in CSV, and nothing in Markdown or LaTeX that either would read as its own."""

import csv
import math
import re
import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusion_jax.reporting import Section, Table, write_report
from fusion_jax.reporting.tables import (
    LINES_PER_FLOAT,
    Shown,
    format_interval,
    format_p,
    format_percent,
    latex_table,
    markdown_table,
    write_tables,
)

NASTY = "A_1 & 50 % of $x$ #2 {y} ~ ^ \\ <a|b> −3 ± 1 ≥ γ 10⁻⁷ “q” é"
METRICS = Table(
    ("model", "AUC", "p", "at 95 %", "n"),
    [
        ("Image-Only", format_interval(0.84912813, 0.83379, 0.86441), format_p(3.2e-7), format_percent(0.30105), 4909),
        ("none", "not computed", "–", "–", 7),
    ],
    "Metrics, n = 4,909.",
)


def cells(line):
    """Cells of a line of Markdown, split at bars that are not escaped."""
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


@pytest.mark.parametrize(
    ("numbers", "options", "shown"),
    [
        ((0.8491, 0.8338, 0.8644), {}, "0.849 [0.834, 0.864]"),
        ((0.04874, 0.0361, 0.0614), {"signed": True}, "+0.049 [+0.036, +0.061]"),
        ((-0.0121, -0.04, 0.0), {"signed": True, "digits": 2}, "−0.01 [−0.04, 0.00]"),
        ((-0.0004, -0.0004, 0.0004), {"signed": True}, "0.000 [0.000, 0.000]"),
        ((0.5, math.nan, math.nan), {}, "0.500"),
        ((math.nan, math.nan, math.nan), {}, "–"),
        ((1.0, -math.inf, math.inf), {"digits": 1}, "1.0 [−∞, ∞]"),
    ],
)
def test_an_interval_is_written_in_one_style(numbers, options, shown):
    assert format_interval(*numbers, **options) == shown


@pytest.mark.parametrize("p", [-0.01, 1.01])
def test_what_is_no_probability_is_no_p_value(p):
    with pytest.raises(ValueError, match="expected 0 to 1"):
        format_p(p)


@given(st.floats(0, 1))
def test_a_p_value_claims_no_more_than_three_decimals(p):
    shown = format_p(p)
    if shown[0] in "<>":
        assert (p < 0.001) == (shown[0] == "<")
        assert p < 0.001 or p > 0.999
    else:
        assert abs(float(shown) - p) <= 0.0005 + 1e-12
    assert shown.numbers[""] == p


def test_csv_keeps_every_digit_and_an_interval_takes_three_columns(tmp_path):
    path, *_ = write_tables(tmp_path / "tables", "metrics", METRICS)
    head, first, second = csv.reader(path.read_text(encoding="utf-8").splitlines())
    assert head == ["model", "AUC", "AUC low", "AUC high", "p", "at 95 %", "n"]
    assert [float(cell) for cell in first[1:]] == [0.84912813, 0.83379, 0.86441, 3.2e-7, 0.30105, 4909]
    assert second == ["none", "not computed", "", "", "–", "–", "7"]


def test_the_report_shows_the_text_of_such_a_cell(tmp_path):
    write_report(tmp_path / "r.html", title="t", summary=[], sections=[Section("s", [], [METRICS])], record={})
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "0.849 [0.834,\N{NO-BREAK SPACE}0.864]" in page
    assert "&lt;\N{NO-BREAK SPACE}0.001" in page


def test_two_columns_of_one_name_are_refused(tmp_path):
    row = (format_interval(0.5, 0.4, 0.6), 0.4)
    with pytest.raises(ValueError, match="two columns are called 'AUC low'"):
        write_tables(tmp_path, "twice", Table(("AUC", "AUC low"), [row], "Twice."))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("write", [markdown_table, lambda table: latex_table(table, label="x")])
def test_a_ragged_table_is_refused(write):
    with pytest.raises(ValueError, match="row 2 has 1 cells, the heading 2"):
        write(Table(("a", "b"), [("x", "y"), ("x",)], "Ragged."))


def test_markdown_is_aligned_and_numbers_are_on_the_right():
    caption, _, head, rule, *body = markdown_table(METRICS).splitlines()
    assert caption == METRICS.caption
    assert len({len(line) for line in (head, rule, *body)}) == 1
    assert [cell[-1] for cell in cells(rule)] == ["-", "-", ":", ":", ":"]
    assert cells(body[0]) == ["Image-Only", "0.849 [0.834, 0.864]", "\\< 0.001", "30.1 %", "4909"]


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=30))
def test_whatever_a_cell_says_a_row_of_markdown_keeps_its_cells(text):
    _, _, *lines = markdown_table(Table(("a", "b"), [(text, "x")], "c")).splitlines()
    assert [len(cells(line)) for line in lines if line] == [2, 2, 2]


def test_markdown_makes_neither_links_nor_tags():
    row = cells(markdown_table(Table(("a",), [("[L,L](x) <b>_y_</b>",)], "")).splitlines()[-1])
    assert row == [r"[L,L\](x) \<b>\_y\_\</b>"]


def test_latex_escapes_what_it_would_read():
    line = latex_table(Table((NASTY,), [("x",)], NASTY), label="a b_c")
    assert r"A\_1 \& 50 \% of \$x\$ \#2 \{y\} \textasciitilde{} \textasciicircum{} \textbackslash{}" in line
    assert r"$<$a$|$b$>$ $-$3 $\pm$ 1 $\geq$ $\gamma$ 10$^{-7}$ ``q'' é" in line
    assert r"\label{tab:a-b-c}" in line


def test_a_cell_in_brackets_is_no_argument_of_the_line_break():
    body = latex_table(Table(("model", "n"), [("x", 1), ("[L,L]", 2)], ""), label="x")
    assert "\n{}[L,L] & 2" in body


def test_long_tables_become_several_that_fit_a_page():
    rows = [(str(k), "long text " * 12) for k in range(60)]
    text = latex_table(Table(("item", "asks for"), rows, "Long."), label="long")
    parts = text.split(r"\begin{table}")[1:]
    assert len(parts) > 2
    assert [part.count(r"\caption{Long.}") for part in parts] == [1] + [0] * (len(parts) - 1)
    assert all(part.count(r"\\") <= LINES_PER_FLOAT + 1 for part in parts)
    assert len(re.findall(r"\\label\{tab:(.*?)\}", text)) == len(set(re.findall(r"\\label\{tab:(.*?)\}", text)))
    assert r"p{" in parts[0]


def test_a_table_without_rows_is_a_heading():
    empty = Table(("a", "b"), [], "Nothing.")
    assert markdown_table(empty).count("\n") == 4
    assert "a & b" in latex_table(empty, label="x")


def test_numbers_survive_in_a_cell_that_is_also_text():
    cell = format_interval(0.5, 0.25, 0.75)
    assert isinstance(cell, str)
    assert isinstance(cell, Shown)
    assert dict(cell.numbers) == {"": 0.5, "low": 0.25, "high": 0.75}
    assert str(cell) == "0.500 [0.250, 0.750]"


WIDE_TABLE = Table(
    ("model", *(f"Sensitivity at {k} % specificity" for k in range(90, 97))),
    [(name, *[format_interval(0.8, 0.7, 0.9)] * 7) for name in ("image", "clinical", "fusion")],
    "Seven metrics.",
)


def test_a_table_wider_than_a_page_of_latex_goes_on_below():
    text = latex_table(WIDE_TABLE, label="wide")
    panels = text.split(r"\begin{tabular}")[1:]
    assert len(panels) > 1
    assert all("fusion & 0.800 & " in panel for panel in panels)
    assert sum(panel.count("{}[0.700, 0.900]") for panel in panels) == 21
    assert "0.800 [0.700" not in text
    assert text.count(r"\caption") == 1


def test_a_table_that_fits_keeps_every_row_on_its_line():
    narrow = Table(WIDE_TABLE.columns[:4], [row[:4] for row in WIDE_TABLE.rows], "")
    short = narrow._replace(columns=("model", "AUC", "AP", "F1"))
    assert "fusion & 0.800 [0.700, 0.900] & 0.800" in latex_table(short, label="x")


def test_pages_of_a_long_table_keep_its_number_and_are_of_one_length():
    text = latex_table(Table(("model", "n"), [(f"m{k}", k) for k in range(LINES_PER_FLOAT + 2)], "Long."), label="x")
    parts = text.split(r"\begin{table}")[1:]
    assert [part.count(r"\addtocounter{table}{-1}") for part in parts] == [0, 1]
    assert min(len(re.findall(r"^m\d", part, re.MULTILINE)) for part in parts) >= LINES_PER_FLOAT // 2 - 2


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_latex_compiles_with_booktabs_alone(tmp_path):
    write_tables(tmp_path, "nasty", Table((NASTY, "value"), [(NASTY, METRICS.rows[0][1]), ("[b]", "x")], NASTY))
    rows = [(f"{k}a", "Methods", "what is asked for " * 4, "author to complete") for k in range(52)]
    write_tables(tmp_path, "long", Table(("item", "section", "asks for", "answer"), rows, "Checklist."))
    write_tables(tmp_path, "wide", WIDE_TABLE)
    document = (
        r"\documentclass{article}\usepackage{booktabs}\begin{document}\input{nasty}\clearpage\input{long}\clearpage"
        r"\message{WIDE}\input{wide}\end{document}"
    )
    (tmp_path / "main.tex").write_text(document, encoding="utf-8")
    run = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "main.tex"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-2000:]
    assert "Float too large" not in run.stdout
    assert "Overfull" not in run.stdout.split("WIDE")[1]
