"""The one recipe of all networks: prepare, build, train, choose the epoch, predict; every setting is an argument."""

import dataclasses
import functools
import hashlib
import json
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from fusion_jax.arrays import Key
from fusion_jax.data.cohort import Arrays, Cohort
from fusion_jax.data.sampling import Sampler
from fusion_jax.data.splits import Rows, Split
from fusion_jax.encoders.stored import load_arrays, save_arrays
from fusion_jax.models.images import check_shapes, remembered
from fusion_jax.models.preparation import Preparation, prepare
from fusion_jax.models.recipe import Report, open_recipe, write_recipe
from fusion_jax.models.target import Target, Task, check_labels, target_of
from fusion_jax.records import write_json

__all__ = ["DeepRecipe", "Ready", "features", "ready_to_train"]

PREPARATION, DIVISION, WEIGHTS = "preparation.json", "division.json", "weights.npz"

logger = logging.getLogger("fusion_jax.models.deep")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeepRecipe:
    """A network of any sources of a cohort, and how it is trained.

    The defaults suit 50 to 500 cases on a laptop: small encoders, at most 60 epochs, stopped after 15 without a better
    AUC on the validation cases. A split without validation cases is trained to the last epoch, and that one is taken.

    Attributes:
      name: of the strategy, in the table of recipes.
      inputs: the only sources to be read; by default all that the strategy takes.
      encoder: of images, by name or as an object with `name` and settings of it ("cnn" unless given).
      encoders: source to its encoder, likewise.
      encoding: of clinical values under `positional`: `kind`, `size`, `scale`, `base` and so on.
      features: of every source, as far as the encoder can choose.
      head: widths of the layers between fusion and last layer.
      dropout: in the head.
      source_dropout: probability with which a source is hidden in training.
      model: under `published`, which of `fusion_jax.models.published.PUBLISHED`.
      settings: of that model; under `genotype`, of its network, such as `layout` and `channels`.
      genotype: under `genotype`, the cells, as `genotype.json` of a search holds them.
      rename: name of a source in that model to the source of the cohort.
      weights: source to a file of pretrained weights of its encoder: `file`, and if wanted `sha256`, `origin`, `prefix`
        and `inflate`, see `fusion_jax.encoders.pretrained.load_pretrained`.
      columns: declarations of clinical columns; suggested from the training cases by default.
      selection: `alpha` and `correction` of the chi-squared test by which the training cases choose among `columns`;
        all are read by default.
      clinical_values: "encoded" (scaled) or "native" (in their units); by default native under `positional` alone.
      standardise: scale images by mean and standard deviation of the training cases.
      objective: what is minimised; "default" is cross-entropy of the classes, or Cox for survival.
      loss_weights: of the heads under "joint", sources and "fused"; by default half for "fused", and the rest in equal
        parts.
      focusing: of "focal".
      energy_gap: of "energy-gap": `pair` of sources, `weight` and `bandwidth`.
      smoothing: of the labels.
      balanced: weigh classes inversely to their frequency in the training cases.
      optimiser, learning_rate, momentum, weight_decay, schedule, warmup, decay_every, decay_factor, clip_norm, rates:
        see `fusion_jax.training.optimiser.Optimiser`.
      epochs: at most, or exactly where there are no validation cases.
      patience: epochs without improvement that are let pass; None trains to the last epoch, and takes the best.
      min_epochs: in any case.
      monitor: "auc" (the concordance of survival) or "loss", on the validation cases.
      batch_size: cases of a step; by default 16, for survival 64, since risks are ranked within a batch.
      sampler: order of an epoch.
      augment: name of what images go through in training, see `AUGMENTATIONS`.
      test_augment: name of what the copies of a case go through when it is predicted; `augment` by default.
      test_copies: number of these copies; 0 predicts the case as it is.
      test_identity: whether the case as it is counts beside its copies.
      precision: of the computation.
      task: what is predicted, where the cohort has a label and times.
      quality: fusion quality of the live features: at "epochs", after the "final" one, or "none".
      gigabytes: of memory that images may take; what does not fit is read again in every epoch.
    """

    name: str
    inputs: tuple[str, ...] = ()
    encoder: str | Mapping[str, Any] | None = None
    encoders: Mapping[str, str | Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    encoding: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    features: int = 32
    head: tuple[int, ...] = (32,)
    dropout: float = 0.25
    source_dropout: float = 0.0
    model: str | None = None
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    genotype: Mapping[str, Any] | None = None
    rename: Mapping[str, str] = dataclasses.field(default_factory=dict)
    weights: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    columns: tuple[Mapping[str, Any], ...] | None = None
    selection: Mapping[str, Any] | None = None
    clinical_values: Literal["encoded", "native"] | None = None
    standardise: bool = True
    objective: Literal["default", "focal", "joint", "multiloss", "multiopt", "staged", "uncertainty", "energy-gap"] = (
        "default"
    )
    loss_weights: Mapping[str, float] = dataclasses.field(default_factory=dict)
    focusing: float = 2.0
    energy_gap: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    smoothing: float = 0.0
    balanced: bool = False
    optimiser: Literal["adam", "adamw", "sgd"] = "adam"
    learning_rate: float = 1e-3
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: Literal["constant", "step", "cosine", "plateau"] = "constant"
    warmup: float = 0.0
    decay_every: int = 20
    decay_factor: float = 0.1
    clip_norm: float | None = None
    rates: Mapping[str, float] = dataclasses.field(default_factory=dict)
    epochs: int = 60
    patience: int | None = 15
    min_epochs: int = 0
    monitor: Literal["auc", "loss"] = "auc"
    batch_size: int | None = None
    sampler: Sampler = "shuffle"
    augment: str = "none"
    test_augment: str | None = None
    test_copies: int = 0
    test_identity: bool = False
    precision: Literal["float32", "bfloat16"] = "float32"
    task: Task = "auto"
    quality: Literal["none", "final", "epochs"] = "epochs"
    gigabytes: float = 4.0

    def __post_init__(self) -> None:
        limits = {
            "features": (self.features >= 1, "at least 1"),
            "epochs": (self.epochs >= 1, "at least 1"),
            "dropout": (0 <= self.dropout < 1, "a fraction from 0 to below 1"),
            "batch_size": (self.batch_size is None or self.batch_size >= 1, "at least 1"),
            "test_copies": (self.test_copies >= 0, "0 or more"),
            "gigabytes": (self.gigabytes >= 0, "0 or more"),
            "model": (
                (self.model is not None) == (self.name == "published"),
                "given with the recipe 'published' alone",
            ),
            "genotype": (
                (self.genotype is not None) == (self.name == "genotype"),
                "given with the recipe 'genotype' alone; `genotype:PATH` takes it from the file of a search",
            ),
        }
        for field, (fits, expected) in limits.items():
            if not fits:
                raise ValueError(f"recipe {self.name!r}: {field} is {getattr(self, field)!r}; expected {expected}.")
        from fusion_jax.models.augmentation import check_augmentation

        for choice in (self.augment, self.test_augment):
            if choice is not None:
                check_augmentation(choice)

    def arguments(self) -> dict[str, Any]:
        """What differs from the defaults."""
        from fusion_jax.models.registry import arguments_of

        return arguments_of(self)

    def sources(self, cohort: Cohort) -> tuple[str, ...]:
        """Sources that it reads, in the order of the network.

        Raises:
          ValueError: a source or an encoder that is not there; the message names it.
        """
        from fusion_jax.models.strategies import check_encoders, published, strategy_sources

        if self.model is None:
            read = strategy_sources(cohort, self.name, self.inputs)
            check_encoders(cohort, read, self.encoder, self.encoders)
            return read
        module: Any = published(self.model, self.settings, self.encoder)
        wanted = tuple(self.rename.get(name, name) for name in module.sources)
        for name in wanted:
            if name not in cohort.sources:
                raise ValueError(
                    f"{cohort.name}: {self.model} reads a source {name!r}; it has {', '.join(cohort.sources)}. Say "
                    f'which one it is: {{"rename": {{"{name}": "..."}}}}.'
                )
        return wanted

    def target(self, cohort: Cohort) -> Target:
        """What it predicts of a cohort."""
        return target_of(cohort, self.task)

    def fit(self, cohort: Cohort, split: Split, key: Key, folder: Path, *, report: Report | None = None) -> None:
        """Train the network; see `Recipe.fit`. Called again on the same folder it goes on where it was killed."""
        from fusion_jax.models.network import Network
        from fusion_jax.models.training_run import train

        started = time.perf_counter()
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        sources, target = self.sources(cohort), self.target(cohort)
        division, lacking, rows, preparation, ready = ready_to_train(
            cohort,
            split,
            sources,
            target,
            columns=self.columns,
            selection=self.selection,
            values=self.clinical_values or ("native" if self.name == "positional" else "encoded"),
            standardise=self.standardise,
            gigabytes=self.gigabytes,
        )
        network = Network.of(self, ready, sources, target, rows.train, preparation.images)
        write_json(folder / DIVISION, {"train": list(division.train), "validation": list(division.validation)})
        write_json(folder / PREPARATION, preparation.to_json())
        trained = train(
            self,
            network,
            ready,
            rows,
            key=key,
            folder=folder,
            report=report,
            settings={
                "recipe": self.name,
                "arguments": self.arguments(),
                "preparation": _digest(preparation.to_json()),
                "cases": _digest([division.train, division.validation]),
            },
        )
        save_arrays(folder / WEIGHTS, trained.variables)
        facts = {
            **trained.facts,
            "left_out": lacking,
            "cases": {"train": len(division.train), "validation": len(division.validation)},
            "shapes": {name: list(shape) for name, shape in network.shapes.items()},
            "seconds": time.perf_counter() - started,
        }
        write_recipe(folder, self, cohort, target=target, facts=facts)

    def predict(self, folder: Path, cohort: Cohort, rows: Int[np.ndarray, "n"]) -> Float[np.ndarray, "n k"]:
        """Predictions of rows; see `Recipe.predict`."""
        fitted = _fitted(self, Path(folder))
        rows = np.asarray(rows)
        unique, place = np.unique(rows, return_inverse=True)
        ready = fitted.ready(cohort, unique)
        found = fitted.network.predict(fitted.variables, ready, np.arange(len(unique)), fitted.batch_size)
        return found[place.reshape(-1)]

    def measure(self, folder: Path, cohort: Cohort, rows: Int[np.ndarray, "n"]) -> dict[str, Any] | None:
        """Measure the fusion quality of tested rows, with what the training cases say of scale and bandwidth.

        Args:
          folder: of the training; gets `quality_cases.csv` and `quality_densities.npz`.
          cohort: with the training cases and the tested ones.
          rows: of the tested cases.

        Returns:
          Means over these cases; None where nothing is fused, or the recipe says "none".
        """
        from fusion_jax.models.quality import write_case_quality

        fitted = _fitted(self, Path(folder))
        if self.quality == "none" or len(fitted.preparation.sources) < 2:
            return None
        index = {case: row for row, case in enumerate(cohort.case_id)}
        train = np.array([index[case] for case in fitted.train], np.int64)
        parts = [fitted.ready(cohort, np.asarray(part)) for part in (train, rows)]
        return write_case_quality(
            Path(folder),
            fitted.network,
            fitted.variables,
            reference=(parts[0], np.arange(len(train))),
            tested=(parts[1], np.arange(len(rows))),
            batch_size=fitted.batch_size,
        )


class Ready(NamedTuple):
    """What a network is trained on.

    Attributes:
      division: the split without cases that have none of the sources.
      lacking: how many training cases that were.
      rows: of the division, in the cohort.
      preparation: fitted to the training cases.
      cohort: prepared by it.
    """

    division: Split
    lacking: int
    rows: Rows
    preparation: Preparation
    cohort: Cohort


def ready_to_train(
    cohort: Cohort,
    split: Split,
    sources: tuple[str, ...],
    target: Target,
    *,
    columns: Sequence[Mapping[str, Any]] | None,
    selection: Mapping[str, Any] | None,
    values: Literal["encoded", "native"],
    standardise: bool,
    gigabytes: float,
) -> Ready:
    """Training and validation cases, checked, and prepared by what the training cases say.

    Args:
      cohort: with these cases.
      split: of it.
      sources: that are read.
      target: that is predicted.
      columns, selection, values, standardise: as `DeepRecipe` has them.
      gigabytes: of memory for images.

    Raises:
      ValueError: labels, shapes or values that do not fit; the message names the case.
    """
    cohort = remembered(cohort, gigabytes=gigabytes)
    division, lacking = _with_a_source(cohort, split, sources)
    rows = division.rows(cohort)
    check_labels(cohort, target, np.r_[rows.train, rows.validation])
    images = [name for name in sources if cohort.sources[name].kind == "image"]
    check_shapes(cohort.take(np.sort(np.r_[rows.train, rows.validation])), images, most=CHECKED)
    preparation = prepare(
        cohort,
        sources,
        rows.train,
        fold=f"r{split.repeat}_f{split.fold}",
        columns=columns,
        selection=selection,
        values=values,
        standardise=standardise,
    )
    return Ready(division, lacking, rows, preparation, preparation.apply(cohort, division.train))


CHECKED = 4096
"""Images whose shape is looked at before training."""


class _Fitted:
    """A trained recipe, read from its folder."""

    def __init__(self, recipe: DeepRecipe, folder: Path) -> None:
        from fusion_jax.models.network import Network

        record = open_recipe(folder)
        facts = record["facts"]
        self.preparation = Preparation.from_json(json.loads((folder / PREPARATION).read_text(encoding="utf-8")))
        division = folder / DIVISION
        # An exported folder has no ids of patients; its cases are all new.
        self.train = json.loads(division.read_text(encoding="utf-8"))["train"] if division.exists() else []
        shapes = {name: tuple(shape) for name, shape in facts["shapes"].items()}
        target = Target.from_json(record["target"])
        self.network = Network(recipe, self.preparation.sources, shapes, target, scales=self.preparation.images)
        self.variables = load_arrays(folder / WEIGHTS)
        self.batch_size = int(facts["batch_size"])

    def ready(self, cohort: Cohort, rows: Int[np.ndarray, "n"]) -> Cohort:
        for name in self.preparation.sources:
            if name not in cohort.sources:
                raise ValueError(
                    f"{cohort.name}: no source {name!r}, which the model reads; it has {', '.join(cohort.sources)}."
                )
        ready = self.preparation.apply(cohort.take(rows), self.train)
        for name in self.preparation.sources:
            # A source that none of these cases has is known by its shape alone; one case may be asked about.
            if not ready.present[name].any():
                empty = np.broadcast_to(np.float32(0), (len(rows), *self.network.shapes[name]))
                ready = ready.with_source(name, Arrays(empty, ready.sources[name].kind), ready.present[name])
        return ready


def features(folder: str | Path, cohort: Cohort, rows: Int[np.ndarray, "n"]) -> dict[str, Float[np.ndarray, "n f"]]:
    """Features of every source of a trained network as they enter the fusion, for rows of a cohort.

    Args:
      folder: in which a `DeepRecipe` was fitted.
      cohort: of the same schema.
      rows: of it.

    Returns:
      Source to features, zeros where a case lacks the source.
    """
    from fusion_jax.models.registry import load_recipe

    recipe = load_recipe(folder)
    if not isinstance(recipe, DeepRecipe):
        raise ValueError(f"{folder}: {recipe.name} is no network; only networks have features.")
    fitted = _fitted(recipe, Path(folder))
    unique, place = np.unique(np.asarray(rows), return_inverse=True)
    ready = fitted.ready(cohort, unique)
    found = fitted.network.outputs(fitted.variables, ready, np.arange(len(unique)), fitted.batch_size)
    return {name: values[place.reshape(-1)] for name, values in found.features.items()}


def _with_a_source(cohort: Cohort, split: Split, sources: Sequence[str]) -> tuple[Split, int]:
    """The split without cases that have none of the sources, and how many training cases that were."""
    rows = split._replace(test=()).rows(cohort)
    there = np.any([cohort.present[name] for name in sources], axis=0)
    train, validation = (
        tuple(cohort.case_id[int(row)] for row in part if there[row]) for part in (rows.train, rows.validation)
    )
    if not train:
        raise ValueError(f"{cohort.name}: no training case has any of {', '.join(sources)}; expected some.")
    return split._replace(train=train, validation=validation, test=()), len(split.train) - len(train)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _fitted(recipe: DeepRecipe, folder: Path) -> _Fitted:
    settings = json.dumps([recipe.name, recipe.arguments()], sort_keys=True)
    return _read(settings, str(folder.resolve()), (folder / WEIGHTS).stat().st_mtime_ns)


@functools.lru_cache(maxsize=16)
def _read(settings: str, folder: str, _changed: int) -> _Fitted:
    from fusion_jax.models.registry import make_recipe

    recipe: Any = make_recipe(*json.loads(settings))
    return _Fitted(recipe, Path(folder))
