"""The training of a network as its recipe wants it: objective, optimiser, epochs, and what is told of them."""

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int

from fusion_jax.arrays import Batch, Key, Variables
from fusion_jax.data.augment import augmented, case_keys
from fusion_jax.data.batches import Batches
from fusion_jax.data.cohort import Cohort
from fusion_jax.data.splits import Rows
from fusion_jax.encoders.stored import save_arrays
from fusion_jax.fusion import (
    binary_cross_entropy,
    cox,
    energy_gap_regularised,
    focal,
    frozen_rates,
    joint,
    multiloss,
    softmax_cross_entropy,
    uncertainty_weighted,
)
from fusion_jax.models.cox import partial_likelihood
from fusion_jax.models.deep import WEIGHTS, DeepRecipe
from fusion_jax.models.network import Network, probabilities
from fusion_jax.models.quality import QualityLog
from fusion_jax.models.recipe import Report
from fusion_jax.models.target import Target, survival_of, with_target
from fusion_jax.training.fit import FitResult, fit
from fusion_jax.training.keys import named_key
from fusion_jax.training.optimiser import Optimiser, make_optimiser
from fusion_jax.training.state import Objective, initial_state, make_step

__all__ = ["Trained", "make_objective", "train", "validation_metrics"]

BATCH, SURVIVAL_BATCH = 16, 64

logger = logging.getLogger("fusion_jax.models.training_run")


class Trained(NamedTuple):
    """What training came to.

    Attributes:
      variables: of the best epoch, as NumPy arrays.
      facts: for the record.
    """

    variables: Variables
    facts: dict[str, Any]


def train(
    recipe: DeepRecipe,
    network: Network,
    ready: Cohort,
    rows: Rows,
    *,
    key: Key,
    folder: Path,
    settings: Mapping[str, Any],
    report: Report | None = None,
) -> Trained:
    """Train a network.

    Args:
      recipe: settings.
      network: to be trained.
      ready: prepared cohort.
      rows: `train` is fitted, `validation` decides on the epoch.
      key: of the run.
      folder: of the run.
      settings: that a run which goes on must have in common.
      report: told how far it is.
    """
    cohort = with_target(ready, network.target)
    size = recipe.batch_size or (SURVIVAL_BATCH if network.target.kind == "survival" else BATCH)
    size = min(size, len(rows.train))
    seed = tuple(int(part) for part in np.asarray(jax.random.key_data(key)).reshape(-1))
    batches = Batches(cohort, rows.train, size, seed, sampler=recipe.sampler)
    first = batches.at(0)
    variables, weights = network.initial(named_key(named_key(key, "init"), "model"), first)
    classes = _logits(network, variables, first)
    base = _base_objective(recipe, network.target, classes, cohort, rows.train)
    if recipe.objective == "staged":
        frozen = network.frozen()
        alone = joint(base, dict.fromkeys(network.sources, 1.0))
        stages = [(network, alone, "sources"), (frozen, base, "")]
    else:
        stages = [(network, make_objective(recipe, network, base), "")]
    result: FitResult | None = None
    for current, objective, part in stages:
        begun = variables if result is None else _model_only(result.state.variables)
        result = _fit_stage(
            recipe,
            current,
            objective,
            begun,
            cohort,
            batches,
            rows,
            size,
            key=key if not part else named_key(key, part),
            folder=folder / part if part else folder,
            settings=settings,
            report=report,
            followed=not part,
        )
        if part:
            save_arrays(folder / part / WEIGHTS, _model_only(result.state.variables))
    if result is None:
        raise ValueError("no stage of training; expected at least one.")
    facts = {
        "initialisation": {name: weights.get(name, {"kind": "random"}) for name in network.sources},
        "parameters": network.parameters(variables),
        "epochs": len(result.history),
        "best_epoch": int(result.best_epoch),
        "stopped_early": bool(result.stopped),
        "fixed_epochs": not len(rows.validation),
        "batch_size": size,
        "steps_per_epoch": batches.steps_per_epoch,
    }
    return Trained(jax.tree.map(np.asarray, _model_only(result.state.variables)), facts)


def _fit_stage(
    recipe: DeepRecipe,
    network: Network,
    objective: Objective,
    variables: Variables,
    cohort: Cohort,
    batches: Any,
    rows: Rows,
    size: int,
    *,
    key: Key,
    folder: Path,
    settings: Mapping[str, Any],
    report: Report | None,
    followed: bool,
) -> FitResult:
    """One call of `fit`."""
    validated = len(rows.validation) > 0
    choices = optimiser_settings(recipe, validated=validated)
    if network.frozen_sources:
        choices = _frozen(choices, variables, network)
    optimiser = make_optimiser(choices, batches.steps_per_epoch, recipe.epochs)
    model = network.model._replace(init=lambda _key, _batch: variables)
    augmentation = network.augmentation(recipe.augment)

    def shown(batch: Batch, key: Key) -> Batch:
        return augmented(augmentation, batch, case_keys(key, 0, batch.index)) if augmentation is not None else batch

    step = make_step(model, optimiser, objective, augment=None if augmentation is None else shown)

    def evaluate(state: Any, _epoch: int) -> dict[str, float]:
        variables = _model_only(state.variables)
        if followed:
            # Copies of a case are for its prediction: they would make an epoch's judgement noisy, and slow.
            scores = network.predict(variables, cohort, rows.validation, size, clean=True)
        else:
            # The fused layers are untrained as yet; what the sources say by themselves is judged.
            said = network.outputs(variables, cohort, rows.validation, size).source_logits.values()
            scores = np.mean([probabilities(logits, network.target) for logits in said], axis=0)
        return validation_metrics(scores, cohort, rows.validation, network.target)

    log = QualityLog(folder, network, cohort, rows, size) if followed and recipe.quality == "epochs" else None
    callbacks = [lambda state, epoch, _line: log(_model_only(state.variables), epoch)] if log is not None else []
    return fit(
        initial_state(model, optimiser, objective),
        step,
        batches,
        folder=folder,
        key=key,
        epochs=recipe.epochs,
        evaluate=evaluate if validated else None,
        monitor=recipe.monitor,
        mode="max" if recipe.monitor == "auc" else "min",
        patience=recipe.patience if validated else None,
        min_epochs=recipe.min_epochs,
        plateau=choices.plateau,
        settings=settings,
        case_ids=cohort.case_id,
        report=report,
        callbacks=callbacks,
    )


def optimiser_settings(recipe: DeepRecipe, *, validated: bool = True) -> Optimiser:
    """The optimiser that a recipe names; without validation cases there is no plateau to see, and the rate stays."""
    schedule = "constant" if recipe.schedule == "plateau" and not validated else recipe.schedule
    return Optimiser(
        recipe.optimiser,
        learning_rate=recipe.learning_rate,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        schedule=schedule,
        warmup=recipe.warmup,
        decay_every=recipe.decay_every,
        decay_factor=recipe.decay_factor,
        clip_norm=recipe.clip_norm,
        rates=dict(recipe.rates),
    )


def make_objective(recipe: DeepRecipe, network: Network, base: Objective) -> Objective:
    """The objective of a recipe, over one of the fused logits."""
    sources = network.sources
    if recipe.objective == "joint":
        equal = 0.5 / len(sources)
        return joint(base, dict(recipe.loss_weights) or {**dict.fromkeys(sources, equal), "fused": 0.5})
    if recipe.objective in ("multiloss", "multiopt"):
        return multiloss(base)
    if recipe.objective == "uncertainty":
        return uncertainty_weighted(base, ("fused", *sources))
    if recipe.objective == "energy-gap":
        given: dict[str, Any] = {"pair": list(sources[:2]), "weight": 0.1, "bandwidth": 0.5, **recipe.energy_gap}
        if len(given["pair"]) != 2 or len(given) > 3:
            raise ValueError(
                f"recipe {recipe.name!r}: energy_gap is {dict(recipe.energy_gap)}; expected pair, weight and bandwidth."
            )
        pair = (str(given["pair"][0]), str(given["pair"][1]))
        return energy_gap_regularised(base, pair, float(given["weight"]), float(given["bandwidth"]))
    return base


def validation_metrics(
    scores: Float[np.ndarray, "n k"], cohort: Cohort, rows: Int[np.ndarray, "n"], target: Target
) -> dict[str, float]:
    """What an epoch is judged by on validation cases: `auc` (the concordance for survival) and `loss`.

    The AUC is NaN where the cases are all of one class; of more than two classes it is the mean over one against all
    others. The loss is the mean log loss, or the negative partial likelihood an event.
    """
    from fusion_jax.evaluation.classification import auc

    if target.kind == "survival":
        from fusion_jax.evaluation.survival import harrell_c

        when, event = survival_of(cohort, rows)
        try:
            concordance = float(harrell_c(scores[:, 0], when, event).c)
        except ValueError:  # no comparable pair
            concordance = float("nan")
        likelihood = partial_likelihood(np.ones(1), scores, when, event).value
        return {"auc": concordance, "loss": -likelihood / max(1, int(event.sum()))}
    label = cohort.label[rows]
    true = np.maximum(scores[np.arange(len(label)), label], np.finfo(np.float64).tiny)
    columns = [1] if scores.shape[1] == 2 else range(scores.shape[1])
    areas = [auc((label == code).astype(np.int32), scores[:, code]) for code in columns]
    return {"auc": float(np.mean(areas)), "loss": float(-np.log(true).mean())}


def _base_objective(
    recipe: DeepRecipe, target: Target, logits: int, cohort: Cohort, train: Int[np.ndarray, "n"]
) -> Objective:
    if target.kind == "survival":
        return cox()
    counts = np.bincount(cohort.label[train], minlength=len(target.classes))
    if not counts.all():
        lacking = target.classes[int(np.flatnonzero(counts == 0)[0])]
        raise ValueError(
            f"{cohort.name}: no training case of class {lacking!r}; expected some of every class. Draw fewer folds, or "
            "merge rare classes."
        )
    weights = (len(train) / (len(counts) * counts)).tolist() if recipe.balanced else None
    if recipe.objective == "focal":
        return focal(focusing=recipe.focusing, class_weights=weights)
    if logits == 1:
        positive = float(counts[0] / counts[1]) if recipe.balanced else 1.0
        return binary_cross_entropy(positive_weight=positive, smoothing=recipe.smoothing)
    return softmax_cross_entropy(class_weights=weights, smoothing=recipe.smoothing)


def _logits(network: Network, variables: Variables, batch: Batch) -> int:
    """Columns of the logits, checked against the classes before anything is compiled."""
    found: Any = jax.eval_shape(lambda v, b: network.model.apply(v, b, train=False)[0].logits, variables, batch)
    columns = int(found.shape[-1])
    fits = {1, 2} if len(network.target.classes) == 2 else {network.target.outputs}
    if columns not in fits:
        raise ValueError(
            f"the model has {columns} logits for {network.target.outputs} outputs of {network.target.column!r}; "
            f"expected {' or '.join(map(str, sorted(fits)))}. Choose another model or task."
        )
    return columns


def _frozen(choices: Optimiser, variables: Variables, network: Network) -> Optimiser:
    names = {cohort: module for module, cohort in network.names.items()}
    rates = frozen_rates(variables["params"], [names[source] for source in network.frozen_sources])
    return dataclasses.replace(choices, rates={**choices.rates, **rates})


def _model_only(variables: Variables) -> Variables:
    return {name: value for name, value in variables.items() if name != "objective"}
