"""Words and cells that all sections of an evaluation share."""

import math
from collections.abc import Sequence
from typing import Any

from fusion_jax.evaluation.assembly import Evaluation
from fusion_jax.evaluation.estimates import Estimate, MetricKey, title
from fusion_jax.reporting.tables import format_interval, format_percent, p_text
from fusion_jax.wording import counted, listed

__all__ = ["CONDITION", "cell", "first_estimates", "named", "people", "primary_estimates", "shown", "verdict"]

CONDITION = "conditional on the trained models"
"""What every interval over patients leaves out: another training."""


def people(found: Evaluation) -> str:
    """Whom all figures are of."""
    panel = found.panel
    text = f"{len(panel):,} {panel.level}{'' if len(panel) == 1 else 's'}"
    if panel.patients is not None and panel.level != "patient":
        text += f" of {panel.patient_count:,} patients"
    if panel.labels is not None:
        counts = [(int((panel.labels == number).sum()), name) for number, name in enumerate(panel.classes)]
        of = [f"{count:,} with label {name}" for count, name in counts]
        text += f" ({listed(of[::-1] if len(of) == 2 else of, 8)})"
    elif panel.event is not None:
        text += f" ({counted(int(panel.event.sum()), 'event')})"
    return text


def verdict(found: Evaluation) -> tuple[str, ...]:
    """One sentence or two on every fused model, never more than the data support."""
    level = format_percent(found.protocol.level, 0)
    metric = title(MetricKey(found.protocol.primary), found.protocol)
    sentences = []
    for one in found.benefits:
        gain = format_interval(one.gain, one.low, one.high, signed=True)
        few = f"every single source ({listed(one.singles)})" if len(one.singles) > 1 else one.hardest
        tested = f"{one.test}, p {p_text(one.p_value)}" + (
            f"; after Holm over {len(found.benefits)} fused models p {p_text(one.p_holm)}"
            if len(found.benefits) > 1
            else ""
        )
        against = f"against {one.hardest}, the hardest to beat, " if len(one.singles) > 1 else ""
        if one.helped:
            sentences.append(f"{one.model} beats {few} in {metric}: {against}gain {gain} ({tested}).")
        else:
            sentence = (
                f"No evidence that {one.model} beats {few} in {metric}: {against}difference {gain}"
                f"{'' if math.isnan(one.low) else f', {level} interval'} ({tested})."
            )
            margin = found.protocol.margin
            if margin is not None and one.excludes_margin is not None:
                sentence += (
                    f" The interval {'excludes' if one.excludes_margin else 'does not exclude'} a gain of {margin:g}."
                )
            if not math.isnan(one.smallest_detectable):
                power = f"a difference of {one.smallest_detectable:.3f} with 80 % power"
                sentence += f" Such a study would have shown {power}."
            sentences.append(sentence)
    return tuple(sentences)


def primary_estimates(found: Evaluation) -> dict[str, Estimate]:
    """The primary metric of every model that has it."""
    key = MetricKey(found.protocol.primary)
    rows = () if found.judged is None else found.judged.estimates
    mine = [row for row in rows if (row.metric, row.rule, row.of_class) == key]
    order = {model: number for number, model in enumerate(found.view.models)}
    # Reversed, so that of several intervals the first stays.
    first = {row.model: row for row in reversed(mine)}
    return dict(sorted(first.items(), key=lambda item: order[item[0]]))


def first_estimates(estimates: Sequence[Estimate]) -> dict[tuple[str, MetricKey], Estimate]:
    """By model and key the first of several estimates: the one to report."""
    found: dict[tuple[str, MetricKey], Estimate] = {}
    for row in estimates:
        found.setdefault((row.model, MetricKey(row.metric, row.rule, row.of_class)), row)
    return found


def named(key: MetricKey, found: Evaluation) -> str:
    """A metric with its threshold."""
    name = title(key, found.protocol)
    return f"{name}, threshold {key.rule}" if key.rule else name


def cell(row: Estimate | None) -> str:
    """An estimate with its interval; a dash where there is none."""
    return "–" if row is None else format_interval(row.value, row.low, row.high)


def shown(estimate: Any, digits: int = 3, number: int | None = None) -> str:
    """A number with its interval, or one of several."""

    def part(values: Any) -> float:
        return float(values if number is None else values[number])

    return format_interval(part(estimate.value), part(estimate.interval.low), part(estimate.interval.high), digits)
