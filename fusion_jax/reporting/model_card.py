"""A model card: what is proved about a model, and what its author still has to say."""

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import jinja2

from fusion_jax.records import write_text
from fusion_jax.reporting.checklists import TO_COMPLETE
from fusion_jax.reporting.html import Section, Table

__all__ = ["HEADINGS", "NOTICE", "model_card", "model_card_section", "write_model_card"]

NOTICE = (
    "Research software, not a medical device: not for diagnosis, treatment or any other clinical decision. "
    "Neither the model nor this card has been reviewed by a regulator."
)

HEADINGS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "Model details": {
            "developers": "who developed it",
            "version": "date and version",
            "kind": "kind of model",
            "training": "how it was trained",
            "software": "software",
            "citation": "publication",
            "licence": "licence",
            "contact": "contact",
        },
        "Intended use": {
            "uses": "primary intended uses",
            "users": "primary intended users",
            "out_of_scope": "uses out of scope",
        },
        "Factors": {
            "relevant_factors": "groups, instruments and settings that may matter",
            "evaluated_factors": "those that were evaluated",
        },
        "Metrics": {
            "measures": "measures of performance",
            "thresholds": "decision thresholds",
            "uncertainty": "how uncertainty was estimated",
        },
        "Evaluation data": {
            "evaluation_data": "data",
            "evaluation_size": "cases, patients and events",
            "evaluation_reason": "why these data",
            "evaluation_preprocessing": "preprocessing",
            "disjoint": "patients shared with training",
        },
        "Training data": {
            "training_data": "data",
            "training_size": "cases, patients and events",
            "training_preprocessing": "preprocessing",
        },
        "Quantitative analyses": {
            "overall": "overall",
            "comparison": "against other models",
            "calibration": "calibration",
            "subgroups": "by single factors",
            "intersections": "by factors together",
        },
        "Ethical considerations": {
            "sensitive_data": "sensitive data",
            "approval": "approval and consent",
            "harms": "risks and harms, and what was done about them",
        },
        "Caveats and recommendations": {
            "conditions": "what the numbers are conditional on",
            "caveats": "further caveats",
            "recommendations": "recommendations",
        },
    }
)
"""Headings of a model card, and under each the facts by key with what they answer."""


def model_card(name: str, facts: Mapping[str, str]) -> str:
    """A model card as Markdown.

    Args:
      name: of the model.
      facts: what is proved, by a key of `HEADINGS`; what is not in it says "author to complete".

    Raises:
      ValueError: a fact that no heading asks for, or one without words.

    Example:
      >>> card = model_card("Image-Only", {"overall": "AUC 0.849 [0.834, 0.864], n = 4,909."})
      >>> [line for line in card.splitlines() if "overall" in line or "licence" in line]
      ['- **licence:** author to complete', '- **overall:** AUC 0.849 [0.834, 0.864], n = 4,909.']

    References:
      Mitchell et al. 2019, Model cards for model reporting, FAT* 2019: the nine headings.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fusion_jax.reporting"),
        autoescape=False,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    headings = [
        (heading, [(asked, _markdown(answer)) for asked, answer in rows]) for heading, rows in _answered(facts).items()
    ]
    return environment.get_template("model_card.md.j2").render(name=_markdown(name), notice=NOTICE, headings=headings)


def model_card_section(name: str, facts: Mapping[str, str]) -> Section:
    """A model card as a section of a report: the notice, and a table of every heading.

    Args:
      name, facts: as for `model_card`.

    Raises:
      ValueError: as for `model_card`.

    Example:
      >>> model_card_section("Image-Only", {}).heading
      'Model card: Image-Only'
    """
    rows = [
        (heading if number == 0 else "", asked, answer)
        for heading, answers in _answered(facts).items()
        for number, (asked, answer) in enumerate(answers)
    ]
    caption = f"Model card of {name}, after Mitchell et al. 2019: what this run proves, and what is left to the author."
    return Section(f"Model card: {name}", [NOTICE], [Table(("heading", "asked", "answer"), rows, caption)])


def write_model_card(path: str | Path, name: str, facts: Mapping[str, str]) -> None:
    """Write a model card as Markdown, whole or not at all."""
    write_text(path, model_card(name, facts))


def _answered(facts: Mapping[str, str]) -> dict[str, list[tuple[str, str]]]:
    known = {key for questions in HEADINGS.values() for key in questions}
    for key, text in facts.items():
        if key not in known:
            close = difflib.get_close_matches(key, known, 1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"a model card asks for no fact {key!r}.{hint} There are: {', '.join(sorted(known))}.")
        if not text.strip():
            raise ValueError(f"fact {key!r} says nothing; leave the key out, so that the author is asked.")
    return {
        heading: [(asked, facts.get(key, TO_COMPLETE)) for key, asked in questions.items()]
        for heading, questions in HEADINGS.items()
    }


def _markdown(text: str) -> str:
    """Text on one line, signs that Markdown would read escaped."""
    return re.sub(r"([\\*_<`])|\](?=[(\[])", lambda match: "\\" + match[0], " ".join(text.split()))
