"""A network of a recipe with the shapes of its sources: built, initialised, and asked."""

import copy
import dataclasses
import functools
import json
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int

from fusion_jax.arrays import Batch, Key, Model, Outputs, Variables
from fusion_jax.data.augment import Recipe as Augmentation
from fusion_jax.data.augment import Sample, augmented_predictions
from fusion_jax.data.batches import Batches
from fusion_jax.data.cohort import Cohort
from fusion_jax.encoders import as_model, count_parameters
from fusion_jax.encoders.pretrained import load_pretrained, load_state_dict, unflatten
from fusion_jax.models.architecture import derived_network
from fusion_jax.models.augmentation import augmentation
from fusion_jax.models.deep import DeepRecipe
from fusion_jax.models.images import ImageScale
from fusion_jax.models.strategies import Design, build, published
from fusion_jax.models.target import Target

__all__ = ["Network", "native_fill", "of_sources", "probabilities"]

HEADED = ("joint", "multiloss", "multiopt", "staged", "uncertainty")
"""Objectives for which every source has logits of its own."""


class Network:
    """The module of a recipe for sources of certain shapes.

    Attributes:
      recipe: whose network it is.
      sources: names in the cohort, in the order of the network.
      shapes: source to the shape of a case.
      target: what it predicts.
      module, model: of it; `model` takes batches of the cohort as they come.
    """

    def __init__(
        self,
        recipe: DeepRecipe,
        sources: tuple[str, ...],
        shapes: Mapping[str, tuple[int, ...]],
        target: Target,
        *,
        values: Mapping[str, Float[np.ndarray, "n t"]] | None = None,
        scales: Mapping[str, ImageScale] | None = None,
    ) -> None:
        """Build it.

        Args:
          recipe: settings.
          sources, shapes, target: see the attributes.
          values: clinical values of the training cases, for encodings that are fitted.
          scales: of the images, which the border of an augmented image follows.

        Raises:
          ValueError: an encoder or setting that does not fit.
        """
        self.recipe, self.sources, self.shapes, self.target = recipe, sources, dict(shapes), target
        self.scales = dict(scales or {})
        self.module = _module(recipe, sources, shapes, target, values)
        self.model = of_sources(as_model(self.module), self.names)
        self.frozen_sources: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        recipe: DeepRecipe,
        ready: Cohort,
        sources: tuple[str, ...],
        target: Target,
        train: Int[np.ndarray, "n"],
        scales: Mapping[str, ImageScale] | None = None,
    ) -> "Network":
        """The network for a prepared cohort."""
        shapes, values = {}, {}
        for name in sources:
            there = np.flatnonzero(ready.present[name])
            shapes[name] = tuple(np.shape(ready.sources[name][int(there[0])]))
            if len(shapes[name]) == 1:
                known = [int(row) for row in train if ready.present[name][row]]
                values[name] = np.stack([np.asarray(ready.sources[name][row]) for row in known])
        return cls(recipe, sources, shapes, target, values=values, scales=scales)

    @property
    def names(self) -> dict[str, str]:
        """Name in the module to name in the cohort."""
        if self.recipe.model is None:
            return {name: name for name in self.sources}
        module: Any = self.module
        return dict(zip(module.sources, self.sources, strict=True))

    def frozen(self) -> "Network":
        """The same network with its encoders as they are: the second stage of training."""
        found = copy.copy(self)
        module: Any = self.module
        if not hasattr(module, "frozen_encoders"):
            raise ValueError(
                f"recipe {self.recipe.name!r}: training in stages freezes encoders, and this one fuses "
                "whole networks. Choose another objective."
            )
        # What has no parameters cannot be frozen, and needs not be.
        found.module = module.clone(frozen_encoders=tuple(module.sources))
        found.model = of_sources(as_model(found.module), self.names)
        found.frozen_sources = self.sources
        return found

    def initial(self, key: Key, batch: Batch) -> tuple[Variables, dict[str, Any]]:
        """Variables before training, with pretrained weights where the recipe names files, and a record of them."""
        variables = self.model.init(key, batch)
        record: dict[str, Any] = {}
        theirs = {cohort: module for module, cohort in self.names.items()}
        for source, asked in self.recipe.weights.items():
            if source not in theirs:
                raise ValueError(f"weights of {source!r}, which the model does not read; it reads {', '.join(theirs)}.")
            variables, record[source] = _loaded(variables, theirs[source], dict(asked))
        return variables, record

    def parameters(self, variables: Variables) -> int:
        """Number of trained parameters."""
        return count_parameters(variables)

    def outputs(self, variables: Variables, ready: Cohort, rows: Int[np.ndarray, "n"], batch_size: int) -> Outputs:
        """Outputs for rows of a prepared cohort, as NumPy arrays."""
        return self._asked(variables, ready, rows, batch_size, lambda outputs: outputs)

    def _asked(
        self,
        variables: Variables,
        ready: Cohort,
        rows: Int[np.ndarray, "n"],
        batch_size: int,
        wanted: Callable[[Outputs], Any],
    ) -> Any:
        """What is wanted of the outputs, batch by batch, without padding."""
        forward = self._forward()
        variables = jax.tree.map(jax.numpy.asarray, variables)
        parts = []
        for batch in _in_order(ready, rows, batch_size):
            count = int(batch.valid.sum())
            outputs = wanted(forward(variables, batch))
            parts.append(jax.tree.map(lambda x, count=count: np.asarray(x)[:count], outputs))
        return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)

    def predict(
        self,
        variables: Variables,
        ready: Cohort,
        rows: Int[np.ndarray, "n"],
        batch_size: int,
        *,
        clean: bool = False,
    ) -> Float[np.ndarray, "n k"]:
        """Probabilities, or log risks, of rows of a prepared cohort.

        They are averaged over test-time copies where the recipe has some, unless the cases are to be judged `clean`.
        """
        if clean or not self.recipe.test_copies:
            # Features of a large cohort would fill the memory.
            logits = self._asked(variables, ready, rows, batch_size, lambda outputs: outputs.logits)
            return probabilities(logits, self.target)
        forward, recipe = self._forward(), self.augmentation(self.recipe.test_augment or self.recipe.augment)
        if recipe is None:
            raise ValueError(
                f"recipe {self.recipe.name!r}: test_copies is {self.recipe.test_copies} without an augmentation; name "
                "one as test_augment."
            )
        variables = jax.tree.map(jax.numpy.asarray, variables)
        found = []
        for batch in _in_order(ready, rows, batch_size):
            images = {name: x for name, x in batch.inputs.items() if np.ndim(x) > 2}
            present = {name: batch.present[name] for name in images}

            def answer(sample: Sample, batch: Batch = batch) -> np.ndarray:
                shown = batch._replace(inputs={**batch.inputs, **sample.images})
                return probabilities(np.asarray(forward(variables, shown).logits), self.target)

            # The copies of a case are its own, whatever it is predicted together with.
            index = np.array([_number(ready.case_id[row]) if row >= 0 else -1 for row in batch.index], np.int32)
            scores = augmented_predictions(
                answer,
                recipe,
                Sample(jax.tree.map(jax.numpy.asarray, images), present=present),
                jax.random.key(0),
                index,
                copies=self.recipe.test_copies,
                include_identity=self.recipe.test_identity,
                valid=batch.valid,
            )
            found.append(np.asarray(scores)[: int(batch.valid.sum())])
        return np.concatenate(found)

    def augmentation(self, name: str) -> Augmentation | None:
        """An augmentation for the images as the network sees them."""
        sides = [max(shape[:-1]) for shape in self.shapes.values() if len(shape) > 1]
        recipe = augmentation(name, max(sides, default=1))
        return None if recipe is None or not sides else native_fill(recipe, self.scales)

    def _forward(self) -> Callable[[Variables, Batch], Outputs]:
        settings = json.dumps(
            [
                [self.recipe.name, self.recipe.arguments()],
                self.sources,
                {name: list(shape) for name, shape in self.shapes.items()},
                self.target.to_json(),
            ],
            sort_keys=True,
        )
        return _compiled(settings)


def probabilities(logits: Float[np.ndarray, "n k"], target: Target) -> Float[np.ndarray, "n c"]:
    """What a recipe predicts, from logits: probabilities of all classes, or the log risk as it is.

    Example:
      >>> probabilities(np.zeros((1, 1)), Target("label", "y", ("no", "yes"))).tolist()
      [[0.5, 0.5]]
    """
    from scipy.special import expit, softmax

    wide = np.asarray(logits, np.float64)
    if target.kind == "survival":
        return wide
    return np.concatenate([expit(-wide), expit(wide)], axis=1) if wide.shape[1] == 1 else softmax(wide, axis=1)


def of_sources(model: Model, names: Mapping[str, str]) -> Model:
    """A model that finds its sources under other names in a batch, and is shown no others.

    Args:
      model: any.
      names: name in the model to name in the batch.
    """

    def renamed(batch: Batch) -> Batch:
        return batch._replace(
            inputs={ours: batch.inputs[theirs] for ours, theirs in names.items()},
            present={ours: batch.present[theirs] for ours, theirs in names.items()},
        )

    def back(outputs: Outputs) -> Outputs:
        return outputs._replace(
            source_logits={names.get(name, name): x for name, x in outputs.source_logits.items()},
            features={names.get(name, name): x for name, x in outputs.features.items()},
        )

    def init(key: Key, batch: Batch) -> Variables:
        return model.init(key, renamed(batch))

    def apply(variables: Variables, batch: Batch, *, train: bool, key: Key | None = None) -> tuple[Outputs, Variables]:
        outputs, variables = model.apply(variables, renamed(batch), train=train, key=key)
        return back(outputs), variables

    return Model(init, apply)


def native_fill(recipe: Augmentation, scales: Mapping[str, ImageScale]) -> Augmentation:
    """An augmentation whose border has the value it has in the unit of the image, after the image was scaled."""
    fill = {name: (recipe.fill_of(name) - scale.centre[0]) / scale.spread[0] for name, scale in scales.items()}
    return dataclasses.replace(recipe, fill=fill) if fill else recipe


@functools.lru_cache(maxsize=32)
def _compiled(settings: str) -> Callable[[Variables, Batch], Outputs]:
    """The forward pass of a network, compiled once for all folds, seeds and calls of a process."""
    from fusion_jax.models.registry import make_recipe

    (name, arguments), sources, shapes, target = json.loads(settings)
    recipe: Any = make_recipe(name, arguments)
    network = Network(
        recipe, tuple(sources), {name: tuple(shape) for name, shape in shapes.items()}, Target.from_json(target)
    )

    def forward(variables: Variables, batch: Batch) -> Outputs:
        return network.model.apply(variables, batch._replace(target={}), train=False)[0]

    return jax.jit(forward)


def _module(
    recipe: DeepRecipe,
    sources: tuple[str, ...],
    shapes: Mapping[str, tuple[int, ...]],
    target: Target,
    values: Mapping[str, Any] | None,
) -> Any:
    if recipe.genotype is not None:
        read = {name: shapes[name] for name in sources}
        return derived_network(recipe.genotype, recipe.settings, read, outputs=target.outputs, dtype=recipe.precision)
    if recipe.model is not None:
        return published(recipe.model, recipe.settings, recipe.encoder)
    return build(
        Design(
            strategy=recipe.name,
            sources=sources,
            shapes=shapes,
            classes=len(target.classes) if len(target.classes) > 2 else 1,
            survival=target.kind == "survival",
            encoder=recipe.encoder or "cnn",
            encoders=recipe.encoders,
            encoding=recipe.encoding,
            features=recipe.features,
            head=recipe.head,
            dropout=recipe.dropout,
            source_heads=recipe.objective in HEADED,
            stop_fused_gradient=recipe.objective == "multiopt",
            source_dropout=recipe.source_dropout,
            dtype=recipe.precision,
        ),
        values,
    )


def _in_order(ready: Cohort, rows: Int[np.ndarray, "n"], batch_size: int) -> list[Batch] | Any:
    batches = Batches(ready, rows, batch_size, (0,), sampler="sequential", targets=False)
    return (batches.at(step) for step in range(batches.steps_per_epoch))


def _number(case: str) -> int:
    return zlib.crc32(case.encode()) & 0x7FFFFFFF


def _loaded(variables: Variables, source: str, asked: dict[str, Any]) -> tuple[Variables, dict[str, Any]]:
    """Variables with a weight file in the place of one encoder, and the record of the file."""
    known = ("file", "sha256", "origin", "prefix", "inflate")
    for name in asked:
        if name not in known:
            raise ValueError(f"weights of {source!r}: no setting {name!r}; expected some of {', '.join(known)}.")
    if "file" not in asked:
        raise ValueError(f'weights of {source!r} name no file; expected {{"file": path}}.')
    path = asked.pop("file")
    where = _place(variables, source)
    state = load_state_dict(path, sha256=asked.get("sha256"))
    if any(name.startswith("params/") for name in state.tensors):
        return _own(variables, where, state.tensors, str(path)), {
            "kind": "pretrained",
            "file": state.file,
            "sha256": state.sha256,
            "origin": asked.get("origin", ""),
        }
    found = load_pretrained(path, variables, at=where, **asked)
    return found.variables, dict(found.initialisation._asdict())


def _place(variables: Variables, source: str) -> tuple[str, ...]:
    """Names that lead to the encoder of a source."""
    own = f"encoders_{source}"
    if own in variables["params"]:
        return (own,)
    member = f"members_{source}"
    if own in variables["params"].get(member, {}):
        return (member, own)
    raise ValueError(f"weights of {source!r}: its encoder has no parameters to be replaced.")


def _own(variables: Variables, where: tuple[str, ...], tensors: Mapping[str, Any], path: str) -> Variables:
    """An encoder from a file with our own names: those of the encoder alone, or of a network that has it."""
    stored: Any = unflatten(tensors)
    result = dict(variables)
    for collection, whole in variables.items():
        inside: Any = whole
        for name in where:
            inside = inside.get(name, {}) if isinstance(inside, Mapping) else {}
        if not inside:
            continue
        found: Any = stored.get(collection, {})
        for name in where:
            found = found.get(name, found)
        ours, theirs = (
            {jax.tree_util.keystr(key): np.shape(leaf) for key, leaf in jax.tree_util.tree_leaves_with_path(tree)}
            for tree in (inside, found)
        )
        wrong = [name for name in ours if ours[name] != theirs.get(name)]
        if wrong:
            raise ValueError(
                f"{path}: {collection}{wrong[0]} is {theirs.get(wrong[0], 'not there')} in the file and "
                f"{ours[wrong[0]]} in the model ({len(wrong)} such arrays); expected weights of the same encoder."
            )
        kept = jax.tree.map(lambda old, new: jax.numpy.asarray(new, old.dtype), inside, found)
        result[collection] = _put(whole, where, kept)
    return result


def _put(tree: Mapping[str, Any], where: tuple[str, ...], value: Any) -> dict[str, Any]:
    if not where:
        return value
    return {**tree, where[0]: _put(tree[where[0]], where[1:], value)}
