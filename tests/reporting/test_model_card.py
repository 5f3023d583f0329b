"""A model card says what is proved, asks its author for the rest, and never calls itself a medical device."""

import pytest

from fusion_jax.reporting import write_report
from fusion_jax.reporting.model_card import HEADINGS, NOTICE, model_card, model_card_section, write_model_card

FACTS = {"overall": "AUC 0.849 [0.834, 0.864], n = 4,909", "disjoint": "none, checked by patient_id"}


def test_the_nine_headings_stand_in_their_order():
    card = model_card("Image-Only", FACTS)
    assert [line[3:] for line in card.splitlines() if line.startswith("## ")] == list(HEADINGS)
    assert len(HEADINGS) == 9


def test_what_is_known_is_said_and_the_rest_is_for_the_author():
    lines = [line for line in model_card("Image-Only", FACTS).splitlines() if line.startswith("- ")]
    asked = [question for questions in HEADINGS.values() for question in questions.values()]
    assert len(lines) == len(asked)
    filled = [line for line in lines if not line.endswith(":** author to complete")]
    assert filled == [
        "- **patients shared with training:** none, checked by patient\\_id",
        "- **overall:** AUC 0.849 [0.834, 0.864], n = 4,909",
    ]


@pytest.mark.parametrize("facts", [{}, FACTS])
def test_it_always_says_that_it_is_no_medical_device(facts):
    assert f"**{NOTICE}**" in model_card("x", facts)
    assert model_card_section("x", facts).text == [NOTICE]
    assert "not a medical device" in NOTICE


def test_keys_are_unique_over_headings():
    keys = [key for questions in HEADINGS.values() for key in questions]
    assert len(keys) == len(set(keys))


def test_facts_nobody_asks_for_are_refused():
    with pytest.raises(ValueError, match=r"no fact 'license'. Did you mean 'licence'\?"):
        model_card("x", {"license": "MIT"})
    with pytest.raises(ValueError, match="'harms' says nothing"):
        model_card_section("x", {"harms": ""})


def test_signs_of_markdown_and_html_are_only_signs(tmp_path):
    facts = {"caveats": "<script>alert(1)</script> *a* [b](c)\nsecond line"}
    card = model_card("L*L*", facts)
    assert card.startswith("# Model card: L\\*L\\*\n")
    assert r"\<script>alert(1)\</script> \*a\* [b\](c) second line" in card
    write_report(tmp_path / "r.html", title="t", summary=[], sections=[model_card_section("x", facts)], record={})
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_a_card_is_written_whole(tmp_path):
    write_model_card(tmp_path / "cards" / "image_only.md", "Image-Only", FACTS)
    assert (tmp_path / "cards" / "image_only.md").read_text(encoding="utf-8") == model_card("Image-Only", FACTS)
