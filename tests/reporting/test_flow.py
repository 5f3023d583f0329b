import html
import re
from xml.dom import minidom

import pandas as pd
import pytest

from fusion_jax.data import soft_tissue_sarcoma
from fusion_jax.data.definition import Dropped, Flow, Step, apply_definition, parse_definition
from fusion_jax.reporting.flow import flow_figure


def ids(n):
    return tuple(f"c{i}" for i in range(n))


HCC = Flow(
    (
        Step("screened", 331, 331),
        Step("", 291, 291, (Dropped("no proven hepatocellular carcinoma", ids(40)),)),
        Step(
            "", 251, 251, (Dropped("CT more than a month before surgery", ids(35)), Dropped("CT date unknown", ids(5)))
        ),
        Step("early recurrence known", 167, 167, (Dropped("censored before 365 days", ids(84)),), ("c9", "c10")),
    )
)
READINGS = Flow(
    (
        Step("readings", 3052, 2199),
        Step("", 2600, 2199, (Dropped("eye tracking discarded", ids(452)),)),
        Step("", 670, 540, (Dropped("outside an emergency-department stay", ids(1930)),)),
    )
)
MANY = tuple(Dropped(f"reason {k} in a few words", (f"c{k}",)) for k in range(6))
CROWDED = Flow((Step("a", 30, 30), Step("b", 24, 24, MANY), Step("c", 18, 18, MANY)))


def lines(svg):
    """Text of a figure: it is drawn as outlines, each after a comment that holds it."""
    return [html.unescape(text) for text in re.findall(r"<!-- (.*?) -->", svg)]


def boxes(svg):
    """Corners of the boxes of a figure, in points, as (x0, y0, x1, y1)."""
    found = []
    for path in re.findall(r'<g id="patch_\d+">\s*<path d="([^"]*)"', svg):
        numbers = [float(number) for number in re.findall(r"-?\d+\.?\d*", path)]
        found.append((min(numbers[::2]), min(numbers[1::2]), max(numbers[::2]), max(numbers[1::2])))
    return found


@pytest.mark.parametrize("flow", [HCC, READINGS, Flow((Step("everybody", 3, 3),))])
def test_both_figures_say_the_same_in_their_own_colours(flow):
    figure = flow_figure(flow)
    for svg, background in ((figure.light, "#ffffff"), (figure.dark, "#14171b")):
        assert minidom.parseString(svg).getElementsByTagName("svg")  # noqa: S318
        assert background in svg
    assert lines(figure.light) == lines(figure.dark)
    assert flow_figure(flow) == figure


def test_every_count_and_reason_is_there():
    said = lines(flow_figure(HCC).light)
    assert [line for line in said if line.endswith("patients")] == [f"{n} patients" for n in (331, 291, 251, 167)]
    for line in ("40 left out", "5  CT date unknown", "84  censored before 365 days", "2 of them undecided"):
        assert line in said
    assert "early recurrence known" in said


def test_cases_and_patients_are_told_apart():
    figure = flow_figure(READINGS)
    said = lines(figure.light)
    assert "452 left out, 0 patients fewer" in said
    assert "1,930 left out, 1,659 patients fewer" in said
    assert figure.caption == "From 3,052 cases of 2,199 patients to 670 cases of 540 patients."


def test_the_description_tells_the_whole_story():
    alt = flow_figure(HCC).alt
    assert alt.startswith("Flow diagram: 331 patients screened; 40 left out: no proven hepatocellular carcinoma; 291")
    assert alt.endswith("167 patients left (early recurrence known).")


def test_the_sarcoma_cohort_is_drawn_from_its_definition():
    rule = {"rule": "local_or_regional_recurrence", "reason": "local or regional recurrence", "label": "cohort"}
    table = soft_tissue_sarcoma().table
    _, flow = apply_definition(table, parse_definition({"exclude": [rule]}), read_table=pd.read_csv)
    figure = flow_figure(flow)
    assert figure.caption == "From 51 patients to 48 patients."
    assert "3  local or regional recurrence" in lines(figure.light)


@pytest.mark.parametrize("flow", [HCC, READINGS, CROWDED])
def test_boxes_neither_overlap_nor_leave_the_page(flow):
    svg = flow_figure(flow).light
    width, height = (float(x) for x in re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)[0])
    page, *drawn = boxes(svg)
    assert page[2] == pytest.approx(width)
    assert len(drawn) >= 2 * len(flow.steps) - 1
    for i, (x0, y0, x1, y1) in enumerate(drawn):
        assert min(x0, y0) >= 0
        assert x1 <= width
        assert y1 <= height
        for other in drawn[i + 1 :]:
            apart = x1 < other[0] or other[2] < x0 or y1 < other[1] or other[3] < y0
            # The page is followed by arrows, whose heads touch boxes; boxes are wider than any arrow.
            if min(x1 - x0, other[2] - other[0]) > 100:
                assert apart


def test_long_reasons_arewrapped_and_signs_are_no_formulas():
    reason = "costs more than $5, or $6 & <7> where nothing else in this long reason is known about the patient"
    flow = Flow((Step("a", 2, 2), Step("b", 1, 1, (Dropped(reason, ("c1",)),))))
    svg = flow_figure(flow).light
    said = [line for line in lines(svg) if "a" != line != "b"]
    assert "Oblique" not in svg  # the letters of a formula are slanted
    assert "1  costs more than $5, or $6 & <7>" in said
    assert max(map(len, said)) <= 40


def test_a_flow_has_at_least_one_step():
    with pytest.raises(ValueError, match="without steps"):
        flow_figure(Flow(()))
