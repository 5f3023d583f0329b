"""What was compared, what came of it, and whether fusion helped."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fusion_jax.evaluation.estimates import MetricKey, title
from fusion_jax.models.analysis import Analysis, Training, is_network
from fusion_jax.models.comparison import Choice, Comparison
from fusion_jax.reporting.evaluation.words import people
from fusion_jax.reporting.html import Section, Table, format_number
from fusion_jax.reporting.tables import format_interval, format_p
from fusion_jax.wording import counted, listed

__all__ = ["answer_section", "models_section"]


def answer_section(comparison: Comparison, tables: dict[str, Table]) -> Section | None:
    """The verdict on every fused model; None where no model is fused, or none is of one source."""
    found = comparison.evaluation
    if not found.benefits:
        return None
    metric = title(MetricKey(found.protocol.primary), found.protocol)
    rows: list[list[Any]] = [
        [
            one.model,
            _reads(comparison, one.model),
            "yes" if one.helped else "not shown",
            one.hardest,
            format_interval(one.gain, one.low, one.high, signed=True),
            format_p(one.p_value),
            format_p(one.p_holm),
            "–" if math.isnan(one.smallest_detectable) else format_number(one.smallest_detectable, 2),
        ]
        for one in found.benefits
    ]
    tables["answer"] = Table(
        ("fused model", "reads", "did fusion help?", "hardest single source", f"gain in {metric}", "p", "p, Holm",
         "smallest detectable"),
        rows,
        f"Every fused model against all models of one source ({listed(found.protocol.singles, 8)}), {people(found)}. "
        "Fusion has helped where the model beats each of them; the one that is hardest to beat is shown. Smallest "
        "detectable: the difference that this cohort would find with 80 % power.",
    )  # fmt: skip
    text = [
        "“Not shown” is not “no”: where the interval holds gains that would matter, this cohort is too small to tell."
    ]
    return Section("Fused models against single sources", text, [tables["answer"]])


def models_section(comparison: Comparison, analysis: Analysis, tables: dict[str, Table]) -> Section:
    """Every model with what it reads, how it began and what it took; and the trainings that failed."""
    made = comparison.plan
    rows: list[list[Any]] = []
    for model in comparison.models:
        choice, some = made.choices[model], analysis.trainings[model]
        rows.append(
            [
                _named(model, choice),
                _reads(comparison, model),
                _initialisation(some),
                _span(some, "parameters", "{:,.0f}"),
                _epochs(some),
                _span(some, "task_seconds", "{:.1f}"),
            ]
        )
    repeats = len({split.repeat for split in made.splits.splits})
    splits = f"{counted(len(made.splits.splits) // repeats, 'fold')}, {counted(repeats, 'repeat')}"
    tables["models"] = Table(
        ("model", "reads", "initialisation", "parameters", "epochs, best of run", "seconds a training"),
        rows,
        f"Models, each trained {counted(len(made.tasks) // len(made.choices), 'time')} ({splits}, "
        f"{counted(len(made.seeds), 'seed')}); numbers are medians over trainings, with their range where they differ.",
    )
    items = [tables["models"]]
    own = _own_arguments(comparison)
    if own:
        tables["arguments"] = Table(
            ("model", "argument", "value"), own, "Arguments that differ from those a recipe has by itself."
        )
        items.append(tables["arguments"])
    if comparison.failed:
        tables["failed"] = Table(
            ("model", "repeat", "fold", "seed", "error"),
            [[*one.task, one.message] for one in comparison.failed],
            f"{counted(len(comparison.failed), 'training')} failed; their models are in no other table.",
        )
        items.append(tables["failed"])
    text = [
        (
            f"All models were trained and tested on the same splits of patients ({made.splits.kind}; {splits}; "
            f"splits.json, SHA-256 {made.splits.hash[:12]}…). Early stopping and every other choice saw "
            "training patients only."
        )
    ]
    if made.copies:
        text.append(
            f"{counted(len(made.copies), 'group')} of cases hold the same image or nearly so; none is in two parts of "
            "a split."
        )
    reasons = dict.fromkeys(
        str(one.facts["inner_split"])
        for some in analysis.trainings.values()
        for one in some
        if one.history and one.facts.get("inner_split")
    )
    text += list(reasons)[:3]
    return Section("Models", text, items)


def _named(model: str, choice: Choice) -> str:
    """A model with its recipe, and with what has to be known of a published one."""
    from fusion_jax.models.published import STAND_INS

    note = STAND_INS.get(str(choice.arguments.get("model")))
    about = [*([] if model == choice.recipe else [choice.recipe]), *([note] if note else [])]
    return f"{model} ({'; '.join(about)})" if about else model


def _own_arguments(comparison: Comparison) -> list[list[Any]]:
    """Arguments of every model; what all networks share stands in one row."""
    choices = comparison.plan.choices
    networks = [model for model in choices if is_network(comparison, model)]
    shared = {
        name: value
        for name, value in (choices[networks[0]].arguments.items() if networks else ())
        if len(networks) > 1 and all(choices[model].arguments.get(name) == value for model in networks)
    }
    rows: list[list[Any]] = [["all networks", name, _argument(value)] for name, value in shared.items()]
    for model, choice in choices.items():
        known = shared if model in networks else {}
        rows += [[model, name, _argument(value)] for name, value in choice.arguments.items() if name not in known]
    return rows


def _reads(comparison: Comparison, model: str) -> str:
    return " + ".join(comparison.plan.sources[model])


def _argument(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {_argument(one)}" for name, one in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_argument(one) for one in value)
    return str(value)


def _initialisation(trainings: Sequence[Training]) -> str:
    """How the sources of a network began: random, or from which file."""
    begun: Any = trainings[0].facts.get("initialisation")
    if not isinstance(begun, Mapping):
        return "–"
    kinds = {name: _weights(about) for name, about in begun.items()}
    return next(iter(kinds.values())) if len(set(kinds.values())) == 1 else _argument(kinds)


def _weights(about: Any) -> str:
    if not isinstance(about, Mapping) or not about.get("file"):
        return str(about.get("kind", "random") if isinstance(about, Mapping) else about)
    return f"{Path(str(about['file'])).name} (SHA-256 {str(about.get('sha256', ''))[:12]})"


def _span(trainings: Sequence[Training], name: str, form: str) -> str:
    values = [float(one.facts[name]) for one in trainings if isinstance(one.facts.get(name), int | float)]
    if not values:
        return "–"
    least, middle, most = (form.format(float(value)) for value in (min(values), np.median(values), max(values)))
    return middle if least == most else f"{middle} ({least}–{most})"


def _epochs(trainings: Sequence[Training]) -> str:
    """Median of the epoch that was kept and of those that were run."""
    kept = [one.facts["best_epoch"] + 1 for one in trainings if one.history and "best_epoch" in one.facts]
    run = [len(one.history) for one in trainings if one.history]
    if not run:
        return "–"
    return f"{np.median(kept):.0f} of {np.median(run):.0f}" if kept else f"{np.median(run):.0f}"
