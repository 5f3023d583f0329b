"""Checklists: every published number once, evidence where there is some, and otherwise the author's turn."""

import re

import pytest

from fusion_jax.reporting.checklists import CLAIM_2024, EVIDENCE, TO_COMPLETE, TRIPOD_AI, fill
from fusion_jax.reporting.tables import write_tables

PARTS = {3: "abc", 5: "ab", 6: "abc", 8: "abc", 9: "abc", 12: "abcdefg", 18: "abcdef", 20: "abc", 23: "ab", 27: "abc"}
"""Items of TRIPOD+AI that have parts (Collins et al. 2024, Table 2)."""

EVERYTHING = {key: f"{key} proved." for key in EVIDENCE}


def answers(checklist, evidence):
    return {row[0]: row[3] for row in fill(checklist, evidence).rows}


def test_tripod_ai_has_27_items_in_52_parts():
    expected = [f"{number}{part}" for number in range(1, 28) for part in PARTS.get(number, [""])]
    assert [item.number for item in TRIPOD_AI.items] == expected
    assert len(expected) == 52


def test_claim_2024_has_44_items():
    assert [item.number for item in CLAIM_2024.items] == [str(number) for number in range(1, 45)]


@pytest.mark.parametrize("checklist", [TRIPOD_AI, CLAIM_2024])
def test_without_evidence_everything_is_for_the_author(checklist):
    assert set(answers(checklist, {}).values()) == {"author to complete"}
    assert "evidence for 0 of" in fill(checklist, {}).caption


@pytest.mark.parametrize("checklist", [TRIPOD_AI, CLAIM_2024])
def test_items_only_an_author_can_answer_stay_open_whatever_a_run_proves(checklist):
    found = answers(checklist, EVERYTHING)
    for item in checklist.items:
        assert (found[item.number] == TO_COMPLETE) == (not item.proof)
    assert found["44" if checklist is CLAIM_2024 else "18a"] == TO_COMPLETE  # funding


@pytest.mark.parametrize("checklist", [TRIPOD_AI, CLAIM_2024])
def test_items_are_well_formed(checklist):
    for item in checklist.items:
        assert set(item.proof) <= set(EVIDENCE)
        assert item.proof or not item.left
        assert 10 < len(item.asks) <= 90  # a hint, not the published sentence
        assert item.asks.endswith(".")
        assert not item.left.endswith(".")


def test_every_kind_of_evidence_is_asked_for_somewhere():
    asked = {key for checklist in (TRIPOD_AI, CLAIM_2024) for item in checklist.items for key in item.proof}
    assert asked == set(EVIDENCE)


def test_evidence_stands_where_it_belongs_and_says_what_is_left():
    found = answers(TRIPOD_AI, {"thresholds": "0.31, carried over from validation", "sites": "3 sites."})
    assert found["15"] == (
        "0.31, carried over from validation. Author to complete: what the output means and why it is cut there."
    )
    assert found["23b"] == "3 sites."
    assert {number for number, answer in found.items() if answer != TO_COMPLETE} == {"12d", "15", "23b"}
    claim = answers(CLAIM_2024, {"partition_disjoint": "No patient is in two parts."})
    assert {number for number, answer in claim.items() if answer != TO_COMPLETE} == {"20"}


def test_unknown_evidence_is_refused():
    with pytest.raises(ValueError, match=r"'treshold' is of no known kind. Did you mean 'thresholds'\?"):
        fill(TRIPOD_AI, {"treshold": "0.5"})


def test_evidence_without_words_is_refused():
    with pytest.raises(ValueError, match="'sites' says nothing"):
        fill(CLAIM_2024, {"sites": " "})


def test_a_checklist_goes_to_every_kind_of_file(tmp_path):
    paths = write_tables(tmp_path, "tripod_ai", fill(TRIPOD_AI, {"events": "1,006 positives of 4,909"}))
    for path in paths:
        text = path.read_text(encoding="utf-8")
        assert "author to complete" in text
        assert "1,006 positives of 4,909" in text
        assert len(re.findall(r"(?m)^[|\s]*(?:27c|12g)\b", text)) == 2
