"""The training of a detector as its recipe wants it: weights to begin with, objective, steps, and the best epoch."""

import functools
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from fusion_jax.arrays import Batch, Key, Variables
from fusion_jax.data.augment import augmented, case_keys, detection_recipe
from fusion_jax.data.batches import Batches
from fusion_jax.data.cohort import Cohort
from fusion_jax.detection.config import DetectorConfig
from fusion_jax.detection.detector import Detector, load_trunk, make_detector
from fusion_jax.detection.inputs import own_boxes
from fusion_jax.detection.judging import judge
from fusion_jax.detection.losses import homoscedastic, summed
from fusion_jax.detection.outputs import Stages
from fusion_jax.detection.recipe import DetectionRecipe, Prepared, checked_trunks
from fusion_jax.evaluation.detection_matching import Overlap
from fusion_jax.training.fit import fit
from fusion_jax.training.keys import named_key
from fusion_jax.training.optimiser import Optimiser, make_optimiser
from fusion_jax.training.state import Objective, Step, initial_state, make_step

__all__ = ["Trained", "inference", "inside", "train"]

logger = logging.getLogger("fusion_jax.detection.training")

PROGRAMS = 8
"""Detectors whose programs are kept: folds and seeds of a model share theirs."""


class Trained(NamedTuple):
    """What training came to.

    Attributes:
      variables: of the best epoch, as NumPy arrays.
      facts: for the record.
    """

    variables: Variables
    facts: dict[str, Any]


def train(
    recipe: DetectionRecipe,
    prepared: Prepared,
    *,
    key: Key,
    folder: Path,
    settings: Mapping[str, Any],
    report: Callable[[Any], None] | None = None,
) -> Trained:
    """Train a detector.

    `metrics.jsonl` gets, an epoch: every loss and its weight `alpha_<loss>`, and with validation cases
    `validation_ap`, `validation_ar`, `validation_ap_<class>` and the validation losses.

    Args:
      recipe: settings.
      prepared: from `fusion_jax.detection.recipe.prepare`.
      key: of the run.
      folder: of the run; a run that was killed in it goes on.
      settings: that a run which goes on must have in common.
      report: told how far it is.
    """
    cohort, rows = prepared.cohort, prepared.split.rows(prepared.cohort)
    size = min(recipe.batch_size, len(rows.train))
    seed = tuple(int(part) for part in np.asarray(jax.random.key_data(key)).reshape(-1))
    batches: Any = Batches(cohort, rows.train, size, seed, max_boxes=prepared.max_boxes)
    choices = optimiser_settings(recipe, validated=_validated(cohort, rows.validation))
    optimiser_json = json.dumps({name: getattr(choices, name) for name in _OPTIMISER}, sort_keys=True)
    detector = make_detector(prepared.config)
    # A rate that never changes knows no epochs: folds of other sizes then share the program.
    still = choices.schedule in ("constant", "plateau") and not choices.warmup
    length = (1, 1) if still else (batches.steps_per_epoch, recipe.epochs)
    program = _program(prepared.config, recipe.objective, optimiser_json, *length, recipe.augment)
    variables, initialisation = _initial(recipe, detector, named_key(named_key(key, "init"), "model"), batches.at(0))
    evaluate = None
    if _validated(cohort, rows.validation):
        evaluate = _Evaluation(prepared, rows.validation, size, seed, recipe.overlap)
    elif len(rows.validation):
        logger.warning(
            "%s: none of the %d validation cases has a box; training ends at epoch %d, which is taken",
            cohort.name,
            len(rows.validation),
            recipe.epochs,
        )
    result = fit(
        initial_state(
            detector.model._replace(init=lambda _key, _batch: variables), program.optimiser, program.objective
        ),
        program.step,
        batches,
        folder=folder,
        key=key,
        epochs=recipe.epochs,
        evaluate=evaluate,
        monitor="ap",
        patience=recipe.patience if evaluate else None,
        min_epochs=recipe.min_epochs,
        plateau=choices.plateau,
        # Before anything is found, no epoch is better than another.
        floor=0.0,
        settings=settings,
        case_ids=cohort.case_id,
        report=report,
    )
    best = result.history[result.best_epoch] if result.history else {}
    own = result.state.variables.get("objective", {})
    facts = {
        "initialisation": initialisation,
        "parameters": sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(variables["params"])),
        "objective": jax.tree.map(lambda leaf: np.asarray(leaf).tolist(), own),
        "epochs": len(result.history),
        "best_epoch": int(result.best_epoch),
        "validation_ap": best.get("validation_ap"),
        "validation_ar": best.get("validation_ar"),
        "stopped_early": bool(result.stopped),
        "fixed_epochs": evaluate is None,
        "batch_size": size,
        "steps_per_epoch": batches.steps_per_epoch,
        "max_boxes": prepared.max_boxes,
    }
    return Trained(jax.tree.map(np.asarray, _model_only(result.state.variables)), facts)


def optimiser_settings(recipe: DetectionRecipe, *, validated: bool = True) -> Optimiser:
    """The optimiser that a recipe names; without validation cases there is no plateau to see, and the rate stays."""
    return Optimiser(
        recipe.optimiser,
        learning_rate=recipe.learning_rate,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        decayed=recipe.decayed,
        schedule="constant" if recipe.schedule == "plateau" and not validated else recipe.schedule,
        warmup=recipe.warmup,
        decay_every=recipe.decay_every,
        decay_factor=recipe.decay_factor,
        clip_norm=recipe.clip_norm,
        rates=dict(recipe.rates),
    )


_OPTIMISER = tuple(Optimiser.__dataclass_fields__)


class _Program(NamedTuple):
    step: Step
    optimiser: Any
    objective: Objective


@functools.lru_cache(maxsize=PROGRAMS)
def _program(
    config: DetectorConfig, objective: str, optimiser_json: str, steps_per_epoch: int, epochs: int, augment: str
) -> _Program:
    """Step, optimiser and objective; the same objects for every fold and seed, which then share a compiled program."""
    names = config.loss_names
    minimised = (
        summed(names)
        if objective == "sum"
        else homoscedastic(names, form="paper" if objective == "homoscedastic-paper" else "code")
    )
    settings = json.loads(optimiser_json)
    optimiser = make_optimiser(Optimiser(settings.pop("name"), **settings), steps_per_epoch, epochs)
    step = make_step(
        make_detector(config).model, optimiser, minimised, augment=_mirrored if augment == "flip" else None
    )
    return _Program(step, optimiser, minimised)


def _mirrored(batch: Batch, key: Key) -> Batch:
    return augmented(detection_recipe(), batch, case_keys(key, 0, batch.index))


@functools.lru_cache(maxsize=PROGRAMS)
def inference(config: DetectorConfig) -> Callable[[Variables, Batch], tuple[Any, Any]]:
    """Detections and masks (None without) of a batch without targets, compiled once a shape.

    Args:
      config: of the detector.
    """
    model = make_detector(config).model

    @jax.jit
    def run(variables: Variables, batch: Batch) -> tuple[Any, Any]:
        outputs: Any = model.apply(variables, batch, train=False)[0]
        return outputs.detections, outputs.masks

    return run


@functools.lru_cache(maxsize=PROGRAMS)
def inside(config: DetectorConfig) -> Callable[[Variables, Batch], Stages]:
    """Proposals, detections and maps of a batch without targets, compiled once a shape.

    Args:
      config: of the detector.
    """
    return jax.jit(make_detector(config).stages)


@functools.lru_cache(maxsize=PROGRAMS)
def _losses(config: DetectorConfig) -> Callable[[Variables, Batch, Key], Mapping[str, Any]]:
    return jax.jit(make_detector(config).losses)


@functools.lru_cache(maxsize=PROGRAMS)
def _init(config: DetectorConfig) -> Callable[[Key, Batch], Variables]:
    return jax.jit(make_detector(config).model.init)


class _Evaluation:
    """What an epoch is judged by: average precision on the validation cases, and the losses there."""

    def __init__(
        self, prepared: Prepared, rows: np.ndarray, size: int, seed: tuple[int, ...], overlap: Overlap
    ) -> None:
        cohort, most = prepared.cohort, prepared.max_boxes
        self.config, self.classes = prepared.config, prepared.inputs.classes
        self.overlap: Overlap = overlap
        self.truth = [own_boxes(cohort)[row] for row in rows.tolist()]
        self.place = {row: place for place, row in enumerate(rows.tolist())}
        self.batches = Batches(cohort, rows, size, (0,), sampler="sequential", max_boxes=most)
        self.key = named_key(jax.random.key(0), "validation")

    def __call__(self, state: Any, _epoch: int) -> dict[str, float]:
        variables = _model_only(state.variables)
        run, losses = inference(self.config), _losses(self.config)
        found, totals = [], []
        for step, batch in enumerate(self.batches.iterate(stop=self.batches.steps_per_epoch)):
            detections, _ = run(variables, batch._replace(target={}))
            # The same draw of anchors and regions in every epoch, so that curves show the model and not the draw.
            lost = losses(variables, batch, jax.random.fold_in(self.key, step))
            valid = np.asarray(detections.valid) & (batch.index >= 0)[:, None]
            places = np.array([self.place.get(row, 0) for row in batch.index.tolist()], np.int64)
            case = np.broadcast_to(places[:, None], valid.shape)[valid]
            found.append([np.asarray(part)[valid] for part in detections[:3]] + [case])
            totals.append(({name: float(value) for name, value in lost.items()}, int(batch.valid.sum())))
        boxes, label, score, case = (np.concatenate(parts) for parts in zip(*found, strict=True))
        judged = judge(self.truth, boxes, case, label, score, classes=len(self.classes), overlap=self.overlap)
        counts = sum(count for _, count in totals)
        means = {name: sum(one[name] * count for one, count in totals) / counts for name in totals[0][0]}
        by_class = {f"ap_{name}": value for name, value in zip(self.classes, judged.ap_by_class, strict=True)}
        return {"ap": judged.ap, "ar": judged.ar, **by_class, **means}


def _initial(
    recipe: DetectionRecipe, detector: Detector, key: Key, batch: Batch
) -> tuple[Variables, dict[str, dict[str, str]]]:
    """Variables to begin with, and where those of each trunk came from."""
    trunks = checked_trunks(recipe, detector.config)
    variables = _init(detector.config)(key, batch._replace(target={}))
    records: dict[str, dict[str, str]] = {name: {"kind": "random"} for name in trunks}
    for name in trunks:
        if name not in recipe.weights:
            continue
        trunk: Any = name
        file = recipe.weights[name]
        loaded = load_trunk(
            detector.config, variables, trunk, file["file"], sha256=file.get("sha256"), origin=file.get("origin", "")
        )
        variables, records[name] = loaded.variables, dict(loaded.initialisation._asdict())
    return variables, records


def _validated(cohort: Cohort, rows: np.ndarray) -> bool:
    """Whether there is a box among the validation cases: without one, no epoch is better than another."""
    return any(len(own_boxes(cohort)[row].corners) for row in rows.tolist())


def _model_only(variables: Variables) -> Variables:
    return {name: value for name, value in variables.items() if name != "objective"}
