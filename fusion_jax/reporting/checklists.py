"""Reporting checklists, filled as far as a run can prove them.

Items carry their published numbers; what they ask for is said here in our own few words, so whoever fills a checklist
in keeps the publication at hand. A run proves numbers and never reasons: an item that asks for both says which part is
left to the author.
"""

import difflib
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from fusion_jax.reporting.html import Table
from fusion_jax.wording import counted

__all__ = ["CLAIM_2024", "EVIDENCE", "TO_COMPLETE", "TRIPOD_AI", "Checklist", "Item", "fill"]

TO_COMPLETE = "author to complete"

EVIDENCE = MappingProxyType(
    {
        "calibration": "calibration measures and where their table is",
        "characteristics": "table of the patients' characteristics",
        "code": "software and revision that made the numbers",
        "comparison": "paired comparisons of models: test, adjustment, result",
        "conditions": "what the intervals are conditional on and what was not adjusted",
        "decision_curve": "net benefit over which thresholds",
        "ensembling": "scores that were averaged over seeds or repeats, or that none were",
        "events": "number of positives, or of events and follow-up",
        "failures": "false positives and false negatives, and where they are listed",
        "flow": "cases left out at every step",
        "importance": "permutation importance of clinical columns",
        "missing_predictions": "cases without a prediction, and what was done with them",
        "partition_disjoint": "that no patient is in two parts of a split, where that was checked",
        "partitions": "folds, repeats and the parts that were evaluated",
        "performance": "estimates with intervals, and where their table is",
        "performance_measures": "measures of performance that were computed",
        "predictions": "file of predictions and its fingerprint",
        "recalibration": "recalibration, the rows it was fitted on, and its effect",
        "robustness": "spread over seeds, folds or partitions",
        "sample_size": "number of cases and of patients",
        "sites": "performance by site or other cluster",
        "software": "libraries and their versions",
        "statistics": "how intervals and p-values were computed",
        "subgroups": "performance in subgroups, and which were withheld",
        "thresholds": "every threshold and where it came from",
        "unit_of_analysis": "what one observation is: a patient, an image, a slice",
    }
)
"""What an evaluation can prove, by key."""


class Item(NamedTuple):
    """An item of a checklist.

    Attributes:
      number: as published.
      section: of the manuscript.
      asks: what it asks for, in a few words of our own.
      proof: keys of `EVIDENCE` that bear on it; none where only an author can answer.
      left: what evidence of a run leaves open; "" where nothing.
    """

    number: str
    section: str
    asks: str
    proof: tuple[str, ...] = ()
    left: str = ""


class Checklist(NamedTuple):
    """A checklist.

    Attributes:
      name: as it is cited.
      source: publication.
      items: in their order.
    """

    name: str
    source: str
    items: tuple[Item, ...]


def fill(checklist: Checklist, evidence: Mapping[str, str]) -> Table:
    """A checklist as a table for reports and files, filled with what a run has proved.

    Args:
      checklist: `TRIPOD_AI` or `CLAIM_2024`.
      evidence: what was proved, with numbers and files, by key of `EVIDENCE`; one mapping serves every checklist.

    Returns:
      One row an item. Items without evidence say "author to complete" and nothing else.

    Raises:
      ValueError: a key that is no kind of evidence, or evidence without words.

    Example:
      >>> table = fill(TRIPOD_AI, {"sample_size": "4,909 cases of 4,909 patients."})
      >>> [row[3] for row in table.rows if row[0] in ("10", "17")]
      ['4,909 cases of 4,909 patients. Author to complete: how the size was arrived at.', 'author to complete']

    References:
      Collins et al. 2024, BMJ 385:e078378; Tejani et al. 2024, Radiology: Artificial Intelligence 6(4):e240300.
    """
    for key, text in evidence.items():
        if key not in EVIDENCE:
            close = difflib.get_close_matches(key, EVIDENCE, 1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"evidence {key!r} is of no known kind.{hint} There are: {', '.join(EVIDENCE)}.")
        if not text.strip():
            raise ValueError(f"evidence {key!r} says nothing; leave the key out, so that the author is asked.")
    rows = [(item.number, item.section, item.asks, _answer(item, evidence)) for item in checklist.items]
    filled = sum(row[3] != TO_COMPLETE for row in rows)
    caption = (
        f"{checklist.name} ({checklist.source}): this run gives evidence for {filled} of "
        f"{counted(len(rows), 'item')}; the rest is for the author to complete. Items are paraphrased."
    )
    return Table(("item", "section", "asks for", "answer"), rows, caption)


def _answer(item: Item, evidence: Mapping[str, str]) -> str:
    found = [evidence[key].strip() for key in item.proof if key in evidence]
    if not found:
        return TO_COMPLETE
    sentences = [text if text.endswith((".", "!", "?")) else f"{text}." for text in found]
    if item.left:
        sentences.append(f"A{TO_COMPLETE[1:]}: {item.left}.")
    return " ".join(sentences)


TRIPOD_AI = Checklist(
    "TRIPOD+AI",
    "Collins et al. 2024, BMJ 385:e078378",
    (
        Item("1", "Title", "Development or evaluation of a prediction model, population and outcome are named."),
        Item("2", "Abstract", "The items of TRIPOD+AI for Abstracts."),
        Item("3a", "Introduction: background", "Healthcare context, reason for the study, existing models."),
        Item("3b", "Introduction: background", "Target population, place in the care pathway, intended users."),
        Item("3c", "Introduction: background", "Known health inequalities between groups of patients."),
        Item("4", "Introduction: objectives", "Aims; whether a model is developed, evaluated or both."),
        Item("5a", "Methods: data", "Sources for development and evaluation, why these, how representative."),
        Item("5b", "Methods: data", "Dates of inclusion and of the end of follow-up."),
        Item("6a", "Methods: participants", "Setting; number and place of centres."),
        Item("6b", "Methods: participants", "Who was eligible."),
        Item("6c", "Methods: participants", "Treatments received, and how they were dealt with."),
        Item("7", "Methods: data preparation", "Preprocessing and quality checks, alike across groups or not."),
        Item(
            "8a",
            "Methods: outcome",
            "Outcome and time horizon; how, when and why so assessed; alike across groups.",
        ),
        Item("8b", "Methods: outcome", "Qualifications and demographics of those who judge a subjective outcome."),
        Item("8c", "Methods: outcome", "Blinding of the assessment of the outcome."),
        Item("9a", "Methods: predictors", "How the initial predictors were chosen and preselected."),
        Item("9b", "Methods: predictors", "Definition of every predictor; how, when and how blindly measured."),
        Item("9c", "Methods: predictors", "Qualifications and demographics of those who judge subjective predictors."),
        Item(
            "10",
            "Methods: sample size",
            "How the size was arrived at, for development and evaluation, and why it suffices.",
            ("sample_size", "events", "unit_of_analysis"),
            "how the size was arrived at",
        ),
        Item(
            "11",
            "Methods: missing data",
            "How missing values were handled; reasons for leaving data out.",
            ("missing_predictions",),
            "missing predictors and outcomes",
        ),
        Item(
            "12a",
            "Methods: analysis",
            "How the data were used and divided for development and evaluation.",
            ("partitions", "partition_disjoint"),
        ),
        Item("12b", "Methods: analysis", "How predictors entered the analysis: form, scaling, transformation."),
        Item(
            "12c", "Methods: analysis", "Kind of model and why; all steps of building, tuning and internal validation."
        ),
        Item(
            "12d",
            "Methods: analysis",
            "How differences between clusters such as hospitals were handled and measured.",
            ("sites",),
            "differences between clusters in the parameters of the model",
        ),
        Item(
            "12e",
            "Methods: analysis",
            "Measures and plots of performance with reasons; how models were compared.",
            ("performance_measures", "statistics", "comparison", "calibration", "decision_curve"),
            "why these measures",
        ),
        Item(
            "12f", "Methods: analysis", "Updating of the model that followed from its evaluation.", ("recalibration",)
        ),
        Item(
            "12g",
            "Methods: analysis",
            "How predictions were computed in the evaluation: formula, code, object or interface.",
            ("predictions",),
            "how the scores in this file were computed",
        ),
        Item("13", "Methods: class imbalance", "Methods against imbalance, why, and recalibration after them."),
        Item(
            "14",
            "Methods: fairness",
            "What was done about fairness, and why.",
            ("subgroups",),
            "approach to fairness and its reasons",
        ),
        Item(
            "15",
            "Methods: model output",
            "What the model puts out; where classes come from, and how thresholds were found.",
            ("thresholds",),
            "what the output means and why it is cut there",
        ),
        Item("16", "Methods: training against evaluation", "How data of development and evaluation differ."),
        Item("17", "Methods: ethical approval", "Committee and approval; consent or its waiver."),
        Item("18a", "Open science: funding", "Source of funding and role of funders."),
        Item("18b", "Open science: conflicts of interest", "Conflicts of interest and financial disclosures."),
        Item("18c", "Open science: protocol", "Where the protocol is, or that there is none."),
        Item("18d", "Open science: registration", "Registration of the study, or that there is none."),
        Item("18e", "Open science: data sharing", "Availability of the data."),
        Item(
            "18f",
            "Open science: code sharing",
            "Availability of the code of the analysis.",
            ("code", "software"),
            "code of the models and where it is kept",
        ),
        Item("19", "Patient and public involvement", "Involvement at any stage, or that there was none."),
        Item(
            "20a",
            "Results: participants",
            "Flow of participants, with and without the outcome; follow-up.",
            ("flow", "events"),
            "a flow chart from all who were eligible",
        ),
        Item(
            "20b",
            "Results: participants",
            "Characteristics by source and setting, with events, follow-up and missing values.",
            ("characteristics", "events"),
        ),
        Item("20c", "Results: participants", "Important predictors in evaluation data against development data."),
        Item(
            "21",
            "Results: model development",
            "Participants and events in every analysis.",
            ("sample_size", "events"),
            "participants and events of development and tuning",
        ),
        Item("22", "Results: model specification", "The whole model, to predict for new patients; limits of access."),
        Item(
            "23a",
            "Results: performance",
            "Performance with intervals, subgroups included; plots.",
            ("performance", "calibration", "subgroups"),
        ),
        Item("23b", "Results: performance", "Differences in performance between clusters.", ("sites",)),
        Item("24", "Results: model updating", "The updated model and its performance.", ("recalibration",)),
        Item("25", "Discussion: interpretation", "Main results against aims, earlier studies and fairness."),
        Item(
            "26",
            "Discussion: limitations",
            "Limits of the study and what they do to bias, uncertainty and reach.",
            ("conditions",),
            "all other limits of the study",
        ),
        Item("27a", "Discussion: usability", "What to do with poor or absent inputs when the model is used."),
        Item("27b", "Discussion: usability", "What users have to do and have to know."),
        Item("27c", "Discussion: usability", "Next steps; where the model may apply."),
    ),
)
"""TRIPOD+AI: 27 items in 52 parts."""


CLAIM_2024 = Checklist(
    "CLAIM 2024",
    "Tejani et al. 2024, Radiology: Artificial Intelligence 6(4):e240300",
    (
        Item("1", "Title", "That this is a study of AI, and of which technology."),
        Item("2", "Abstract", "Design, methods, results and conclusions."),
        Item("3", "Introduction", "Scientific and clinical background; intended use and clinical role."),
        Item("4", "Introduction", "Aims, objectives and hypotheses."),
        Item("5", "Methods: study design", "Prospective or retrospective."),
        Item("6", "Methods: study design", "Goal of the study."),
        Item("7", "Methods: data", "Sources of the data."),
        Item("8", "Methods: data", "Criteria of inclusion and exclusion."),
        Item("9", "Methods: data", "Preprocessing."),
        Item("10", "Methods: data", "Selection of subsets of the data."),
        Item("11", "Methods: data", "De-identification."),
        Item(
            "12",
            "Methods: data",
            "Handling of missing data.",
            ("missing_predictions",),
            "missing images and clinical values",
        ),
        Item("13", "Methods: data", "Protocol of image acquisition."),
        Item("14", "Methods: reference standard", "How the reference standard was obtained."),
        Item("15", "Methods: reference standard", "Why this reference standard."),
        Item("16", "Methods: reference standard", "Who or what annotated."),
        Item("17", "Methods: reference standard", "How the test set was annotated."),
        Item("18", "Methods: reference standard", "Variability between and within annotators."),
        Item(
            "19",
            "Methods: data partitions",
            "How data were assigned to partitions.",
            ("partitions",),
            "how cases were assigned",
        ),
        Item(
            "20",
            "Methods: data partitions",
            "At what level partitions are disjoint: patient, image, institution.",
            ("partition_disjoint", "unit_of_analysis"),
        ),
        Item(
            "21",
            "Methods: testing data",
            "Intended size of the test set.",
            ("sample_size", "events"),
            "which size was intended and why",
        ),
        Item("22", "Methods: model", "The model: inputs, outputs, layers and connections."),
        Item(
            "23",
            "Methods: model",
            "Software libraries and frameworks.",
            ("software",),
            "software with which the models were trained",
        ),
        Item("24", "Methods: model", "Initial values of the parameters."),
        Item("25", "Methods: training", "Training: augmentation, hyperparameters, number of models."),
        Item("26", "Methods: training", "How the final model was selected."),
        Item(
            "27",
            "Methods: training",
            "Ensembles, and how they were combined.",
            ("ensembling",),
            "ensembles inside the models that gave the scores",
        ),
        Item(
            "28",
            "Methods: evaluation",
            "Measures of performance.",
            ("performance_measures", "thresholds", "calibration", "decision_curve"),
        ),
        Item(
            "29",
            "Methods: evaluation",
            "Statistics of significance and uncertainty.",
            ("statistics", "comparison"),
        ),
        Item("30", "Methods: evaluation", "Robustness or sensitivity.", ("robustness", "sites", "subgroups")),
        Item(
            "31",
            "Methods: evaluation",
            "Methods of explanation.",
            ("importance",),
            "how explanations were validated",
        ),
        Item(
            "32",
            "Methods: evaluation",
            "Evaluation on internal data.",
            ("partitions",),
            "whether these data are internal",
        ),
        Item("33", "Methods: evaluation", "Testing on external data."),
        Item("34", "Methods: evaluation", "Registration of a clinical trial."),
        Item(
            "35",
            "Results: data",
            "Numbers of patients or examinations included and excluded.",
            ("flow", "sample_size"),
            "a flow chart from all who were eligible",
        ),
        Item(
            "36",
            "Results: data",
            "Demographic and clinical characteristics in every partition.",
            ("characteristics",),
        ),
        Item(
            "37",
            "Results: model performance",
            "Performance with its uncertainty.",
            ("performance", "comparison"),
        ),
        Item(
            "38",
            "Results: model performance",
            "Diagnostic performance and its precision.",
            ("performance", "thresholds"),
        ),
        Item(
            "39",
            "Results: model performance",
            "Analysis of failures.",
            ("failures",),
            "why these cases were called wrongly",
        ),
        Item("40", "Discussion", "Limitations.", ("conditions",), "all other limits of the study"),
        Item("41", "Discussion", "Implications for practice; intended use and clinical role."),
        Item("42", "Other information", "Where the full protocol or further technical details are."),
        Item(
            "43",
            "Other information",
            "Availability of software, trained model and data.",
            ("code",),
            "availability of the trained models and the data",
        ),
        Item("44", "Other information", "Funding and the role of funders."),
    ),
)
"""CLAIM, 2024 update: 44 items."""
