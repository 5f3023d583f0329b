"""Fusion has helped when it beats every single source, and no evidence is never more than that."""

import math

import pytest

from fusion_jax.evaluation.benefit import fusion_benefit
from fusion_jax.evaluation.comparisons import BOOTSTRAP, DELONG, Comparison
from fusion_jax.evaluation.protocol import Protocol

MODELS = ("image", "clinical", "late", "early")


def row(first, second, difference, p_value, *, metric="auc", test=BOOTSTRAP, half=0.05):
    return Comparison(
        metric, "", "", first, second, difference, difference - half, difference + half, half / 2, test, p_value, 0.0,
        math.nan, math.nan,
    )  # fmt: skip


def benefit(*rows, **options):
    return {one.model: one for one in fusion_benefit(MODELS, rows, Protocol(singles=("image", "clinical"), **options))}


ROWS = (
    row("image", "late", -0.10, 0.001),
    row("clinical", "late", -0.04, 0.030),
    row("image", "early", -0.10, 0.001),
    row("early", "clinical", -0.02, 0.400),
)


def test_the_hardest_source_decides():
    late = benefit(*ROWS)["late"]
    assert (late.hardest, late.gain, late.p_value) == ("clinical", pytest.approx(0.04), 0.03)
    assert (late.low, late.high) == (pytest.approx(-0.01), pytest.approx(0.09))


def test_a_source_that_is_better_gives_p_of_one_however_sure_it_is():
    found = benefit(*ROWS[:2], row("image", "early", -0.10, 0.001), row("early", "clinical", -0.20, 1e-9))
    assert found["early"].p_value == 1.0
    assert not found["early"].helped
    assert found["early"].hardest == "clinical"


def test_holm_pays_for_the_number_of_fused_models():
    found = benefit(*ROWS)
    assert found["late"].p_holm == pytest.approx(0.06)
    assert not found["late"].helped
    alone = fusion_benefit(MODELS[:3], ROWS[:2], Protocol(singles=("image", "clinical")))
    assert alone[0].helped


def test_the_interval_says_whether_a_margin_is_excluded():
    assert benefit(*ROWS, margin=0.1)["late"].excludes_margin
    assert not benefit(*ROWS, margin=0.05)["late"].excludes_margin
    assert benefit(*ROWS)["late"].excludes_margin is None


def test_the_smallest_detectable_difference_follows_from_the_standard_error():
    assert benefit(*ROWS)["late"].smallest_detectable == pytest.approx((1.959964 + 0.841621) * 0.025, rel=1e-5)


def test_smaller_is_better_for_losses():
    rows = [one._replace(metric="brier") for one in ROWS]
    found = benefit(*rows, primary="brier")
    assert found["late"].gain == pytest.approx(-0.10)
    assert found["late"].p_value == 1.0


def test_only_the_test_that_was_fixed_counts():
    rows = (*ROWS, *(one._replace(test=DELONG, p_value=0.2) for one in ROWS))
    assert benefit(*rows, test="delong")["late"].p_value == 0.2


def test_a_source_that_was_not_compared_is_no_source_that_was_beaten():
    with pytest.raises(ValueError, match=r"late: no comparison of auc with a single source \(clinical\)"):
        benefit(ROWS[0], *ROWS[2:])


@pytest.mark.parametrize("order", [1, -1])
def test_a_comparison_without_a_p_value_shows_no_benefit_in_any_order(order):
    rows = [row("image", "late", -0.10, 0.001), row("clinical", "late", -0.04, math.nan)][::order]
    late = fusion_benefit(("image", "clinical", "late"), tuple(rows), Protocol(singles=("image", "clinical")))[0]
    assert (late.hardest, late.helped) == ("clinical", False)
    assert math.isnan(late.p_value)
    assert math.isnan(late.p_holm)


def test_a_model_that_could_not_be_tested_was_tried_all_the_same():
    untested = row("early", "clinical", 0.02, math.nan)
    assert benefit(*ROWS[:3], untested)["late"].p_holm == pytest.approx(0.06)


def test_a_metric_that_was_not_compared_is_refused():
    with pytest.raises(ValueError, match="late: no comparison of auc with a single source"):
        benefit(*(one._replace(metric="brier") for one in ROWS))
