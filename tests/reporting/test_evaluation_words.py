"""What a report says of fusion is never more than its interval shows."""

import math

import pytest

from fusion_jax.evaluation.assembly import Evaluation
from fusion_jax.evaluation.benefit import Benefit
from fusion_jax.evaluation.protocol import Protocol
from fusion_jax.reporting.evaluation.words import p_text, verdict

LATE = Benefit(
    model="Late", hardest="Image", gain=0.03, low=-0.01, high=0.07, p_value=0.14, p_holm=0.28, test="bootstrap z",
    helped=False, excludes_margin=None, smallest_detectable=0.057, singles=("Image", "Clinical"),
)  # fmt: skip
EARLY = LATE._replace(model="Early", gain=0.08, low=0.04, high=0.12, p_value=0.0002, p_holm=0.0004, helped=True)


def sentences(*benefits, **options):
    """Verdicts of an evaluation that holds nothing but them."""
    empty = dict.fromkeys(Evaluation._fields)
    return verdict(Evaluation(**(empty | {"benefits": benefits, "protocol": Protocol(**options)})))


def test_no_evidence_prints_the_interval_and_what_could_have_been_seen():
    [sentence] = sentences(LATE)
    assert sentence.startswith("No evidence that Late beats every single source (Image, Clinical) in AUC")
    assert "against Image, the hardest to beat" in sentence
    assert "+0.030 [−0.010, +0.070]" in sentence
    assert "0.057 with 80 % power" in sentence
    assert "gain of" not in sentence


def test_what_is_not_known_is_not_said():
    nan = math.nan
    [sentence] = sentences(LATE._replace(low=nan, high=nan, smallest_detectable=nan, p_value=nan))
    assert "nan" not in sentence
    assert "interval" not in sentence
    assert "power" not in sentence


@pytest.mark.parametrize(("excluded", "words"), [(True, "excludes a gain of 0.1"), (False, "does not exclude a gain")])
def test_a_margin_is_said_to_be_excluded_or_not(excluded, words):
    [sentence] = sentences(LATE._replace(excludes_margin=excluded), margin=0.1)
    assert f"The interval {words}" in sentence


def test_a_fused_model_that_helped_says_against_whom_and_how_p_was_adjusted():
    late, early = sentences(LATE, EARLY)
    assert early.startswith("Early beats every single source (Image, Clinical) in AUC")
    assert "p < 0.001; after Holm over 2 fused models p < 0.001" in early
    assert "after Holm over 2 fused models p = 0.280" in late


def test_a_single_source_is_named_and_nobody_is_the_hardest():
    [sentence] = sentences(EARLY._replace(singles=("Image",)))
    assert sentence == "Early beats Image in AUC: gain +0.080 [+0.040, +0.120] (bootstrap z, p < 0.001)."


@pytest.mark.parametrize(
    ("value", "text"), [(0.0321, "= 0.032"), (1e-9, "< 0.001"), (0.9999, "> 0.999"), (math.nan, "–")]
)
def test_p_values_are_written_behind_their_letter(value, text):
    assert p_text(value) == text
