"""What a comparison is looked at for, beyond its scores: what its models lean on, whether they learnt by heart, what a
source was worth, and how their trainings went.
"""

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fusion_jax.evaluation.importance import Importance
from fusion_jax.models.comparison import Comparison
from fusion_jax.models.explanations import Occlusion, chosen_cases, occlusion_maps
from fusion_jax.models.fold_models import Gap, measure, train_test_gaps
from fusion_jax.models.importance import Dropped, comparison_importance, drop_sources
from fusion_jax.models.registry import RECIPES
from fusion_jax.models.retraining import Retrained, retraining_null
from fusion_jax.records import read_json_lines
from fusion_jax.training.cross_validation import Task

__all__ = ["Analysis", "Training", "analyse", "is_network", "read_trainings"]

LOG = logging.getLogger("fusion_jax.models.analysis")


class Training(NamedTuple):
    """One training of a comparison, as its folder tells.

    Attributes:
      task: which.
      folder: of it.
      facts: what `run.json` says: `initialisation`, `parameters`, `seconds`, `epochs`, `inner_split` and so on.
      history: a mapping an epoch, as `metrics.jsonl` has it; empty for models that are not trained in epochs.
    """

    task: Task
    folder: Path
    facts: Mapping[str, Any]
    history: tuple[Mapping[str, Any], ...]


class Analysis(NamedTuple):
    """Everything that is known of a comparison beside its evaluation.

    Attributes:
      trainings: of every model.
      gaps: of every model.
      importance: of every model that was asked, with what its columns and sources are worth to it.
      dropped: of networks that read several sources.
      nulls: of all models, also of those that are too slow for it.
      occlusions: of networks that read images.
      left_out: analyses that failed, with the reason.
    """

    trainings: Mapping[str, tuple[Training, ...]]
    gaps: tuple[Gap, ...] = ()
    importance: Mapping[str, Importance] = {}
    dropped: Mapping[str, Dropped] = {}
    nulls: tuple[Retrained, ...] = ()
    occlusions: Mapping[str, tuple[Occlusion, ...]] = {}
    left_out: tuple[str, ...] = ()


def analyse(
    comparison: Comparison,
    *,
    importance: int = 10,
    null: int = 99,
    null_minutes: float = 1.0,
    explained: int = 4,
    seed: int = 0,
    report: Callable[[int, int, str], None] | None = None,
) -> Analysis:
    """Ask the trained models of a comparison everything that a report shows.

    An analysis that does not suit a model is left out with its reason, and stops nothing.

    Args:
      comparison: that was carried out.
      importance: permutations of every column and source; 0 leaves permutation importance out.
      null: retrainings of every model and source; 0 leaves the retraining null out.
      null_minutes: that those of one source may take; slower models are left out.
      explained: cases whose images are covered patch by patch, for the best network that fuses images with other data
        and the best of images alone; 0 for none.
      seed: of everything random.
      report: told how many of how many analyses are done, and what is being done.
    """
    made = comparison.plan
    deep = [model for model in comparison.models if is_network(comparison, model)]
    fused = [model for model in deep if len(made.sources[model]) > 1]
    kinds = {name: source.kind for name, source in made.cohort.sources.items()}
    with_image = [model for model in deep if any(kinds[name] == "image" for name in made.sources[model])]
    # Maps of one model are many figures: of the best that fuses, and of the best of images alone.
    clinical = [model for model in with_image if any(kinds[name] != "image" for name in made.sources[model])]
    mapped = [_best(comparison, some) for some in (clinical, [m for m in with_image if m not in clinical]) if some]
    wanted: list[tuple[str, str, Callable[[str], Any]]] = [
        ("train-test gap", model, lambda model: train_test_gaps(comparison, model)) for model in comparison.models
    ]
    if importance:
        wanted += [
            (
                "permutation importance",
                model,
                lambda model: comparison_importance(comparison, model, repeats=importance, seed=seed),
            )
            for model in comparison.models
        ]
    wanted += [("dropped sources", model, lambda model: drop_sources(comparison, model)) for model in fused]
    if explained and with_image:
        rows = chosen_cases(comparison, with_image[0], count=explained, seed=seed)
        wanted += [("occlusion", model, lambda model: occlusion_maps(comparison, model, rows)) for model in mapped]
    if null:
        wanted += [
            (
                "retraining null",
                model,
                lambda model: retraining_null(comparison, model, permutations=null, minutes=null_minutes, seed=seed),
            )
            for model in comparison.models
        ]
    found: dict[str, dict[str, Any]] = {}
    left_out = []
    for number, (what, model, make) in enumerate(wanted):
        if report is not None:
            report(number, len(wanted), f"{what}: {model}")
        try:
            found.setdefault(what, {})[model] = make(model)
        except ValueError as error:
            LOG.warning("%s of %s left out: %s", what, model, error)
            left_out.append(f"{what} of {model}: {error}")
    return Analysis(
        read_trainings(comparison),
        tuple(found.get("train-test gap", {}).values()),
        found.get("permutation importance", {}),
        found.get("dropped sources", {}),
        tuple(one for some in found.get("retraining null", {}).values() for one in some),
        found.get("occlusion", {}),
        tuple(left_out),
    )


def read_trainings(comparison: Comparison) -> dict[str, tuple[Training, ...]]:
    """The trainings of every model that was judged."""
    made = comparison.plan
    found: dict[str, list[Training]] = {model: [] for model in comparison.models}
    for task in made.tasks:
        folder = made.task_folder(task)
        if task.model in found:
            facts = json.loads((folder / "run.json").read_text(encoding="utf-8"))
            found[task.model].append(Training(task, folder, facts, _history(folder / "metrics.jsonl")))
    return {model: tuple(some) for model, some in found.items()}


def _history(path: Path) -> tuple[Mapping[str, Any], ...]:
    if not path.exists():
        return ()
    return tuple(read_json_lines(path))


def is_network(comparison: Comparison, model: str) -> bool:
    """Whether a model of a comparison is a network, or chosen among networks alone."""
    choice = comparison.plan.choices[model]
    tried = [one["recipe"] for one in choice.arguments["candidates"].values()] if choice.recipe == "tuned" else []
    return all(
        recipe not in RECIPES or RECIPES[recipe].kind in ("deep", "searched") for recipe in tried or [choice.recipe]
    )


def _best(comparison: Comparison, models: list[str]) -> str:
    """The model with the best AUC, or the best Harrell's C."""
    panel, view = comparison.panel, comparison.evaluation.view
    if comparison.plan.target.kind == "survival":
        if panel.time is None or panel.event is None:
            raise ValueError("the predictions have no times; expected those of a survival task.")
        labels = np.stack([panel.time, panel.event.astype(float)], axis=1)
    else:
        labels = np.asarray(panel.labels)
    return max(models, key=lambda model: measure(labels, view.scores[view.models.index(model)]))
