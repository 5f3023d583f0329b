"""The same layers under heads that are trained as the paper trains: SGD with momentum, early stopping, no penalty.

Here the size of a block acts through the learning rate, since its coordinates learn side by side. All splits and
controls of one size are one program (`fusion_jax.training.vmapped`).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from experiments.portal_hypertension.blocks import Control, block_sizes, marker_block
from experiments.portal_hypertension.claim import Study
from experiments.portal_hypertension.heads import standardised
from fusion_jax.arrays import Batch
from fusion_jax.data.splits import Rows
from fusion_jax.encoders import MLP, PassThrough, as_model
from fusion_jax.fusion import FusionClassifier, binary_cross_entropy
from fusion_jax.training import Optimiser, make_optimiser
from fusion_jax.training.vmapped import fit_many, predict_many

__all__ = ["HeadTraining", "fit_layers", "run_trained_study"]


class HeadTraining(NamedTuple):
    """How heads are trained; the defaults are the paper's where it states them, else the specification's.

    Attributes:
      hidden: widths of layers before the last one; none for the paper's linear head.
      learning_rate, momentum: of SGD; the rate falls to a tenth every 20 epochs.
      batch_size: patients of a step.
      epochs, patience: most of them, and those without a better validation AUC that are let pass.
      smoothing: of the labels.
    """

    hidden: tuple[int, ...] = ()
    learning_rate: float = 1e-3
    momentum: float = 0.9
    batch_size: int = 8
    epochs: int = 80
    patience: int = 15
    smoothing: float = 0.1


def run_trained_study(
    features: Sequence[Float[np.ndarray, "n f"]],
    markers: Float[np.ndarray, "n t"],
    label: Int[np.ndarray, "n"],
    rows: Sequence[Rows],
    gammas: tuple[float, ...],
    training: HeadTraining,
    *,
    controls: Sequence[Control] = ("positional", "repetition", "shuffled"),
    seed: int = 0,
    advance: Callable[[], None] = lambda: None,
) -> Study:
    """As `claim.run_study`, with trained heads; `Study.fixed` holds the same logits, since there is no penalty.

    Args:
      features, markers, label, rows, gammas, controls, seed: see there.
      training: of the heads.
      advance: called once a size.
    """
    width = features[0].shape[1]
    sizes = block_sizes(gammas, width, markers.shape[1])
    images = [standardised(own, split.train) for own, split in zip(features, rows, strict=True)]
    raw = [standardised(markers, split.train) for split in rows]
    models: list[str | tuple[str, int]] = ["image", "markers"]
    found = [fit_layers([[image] for image in images], label, rows, training, seed)]
    found += [fit_layers([[values] for values in raw], label, rows, training, seed)]
    for size in sizes:
        models += [(control, size) for control in controls]
        layers, own_rows = [], []
        for control in controls:
            for number, (image, split) in enumerate(zip(images, rows, strict=True)):
                block = marker_block(control, markers, size, split.train, seed=1000 * seed + number)
                layers.append([image, np.pad(block, ((0, 0), (0, size - block.shape[1])))])
                own_rows.append(split)
        logits = fit_layers(layers, label, own_rows, training, seed)
        found += list(logits.reshape(len(controls), len(rows), len(label)))
        advance()
    logits = np.stack([one.reshape(len(rows), len(label)) for one in found])
    train, test = np.zeros(logits.shape[1:], bool), np.zeros(logits.shape[1:], bool)
    for number, split in enumerate(rows):
        train[number, split.train], test[number, split.test] = True, True
    penalties = np.zeros(logits.shape[:2], np.int64)
    return Study(gammas, sizes, width, label, train, test, tuple(models), logits, logits, penalties)


def fit_layers(
    layers: Sequence[Sequence[Float[np.ndarray, "n _"]]],
    label: Int[np.ndarray, "n"],
    rows: Sequence[Rows],
    training: HeadTraining,
    seed: int,
) -> Float[np.ndarray, "t n"]:
    """Logits of all patients from one head a layer, all trained in one program.

    Args:
      layers: one a head, each the features of all patients, or those beside a block of markers.
      label: 0 or 1.
      rows: of each head: trained on, validated on for the best epoch; no other label is read.
      training: of all heads.
      seed: of all heads.
    """
    count, n = len(layers), len(label)
    names = ("image", "markers")[: len(layers[0])]
    inputs = {
        name: np.concatenate([layer[place] for layer in layers]).astype(np.float32) for place, name in enumerate(names)
    }
    everybody = np.ones(count * n, bool)
    cases = Batch(
        inputs, {"label": np.tile(label, count)}, everybody, dict.fromkeys(names, everybody), np.arange(count * n)
    )
    head = MLP(training.hidden) if training.hidden else None
    model = as_model(FusionClassifier({name: PassThrough() for name in names}, head=head, classes=1))
    steps = -(-max(len(split.train) for split in rows) // training.batch_size)
    settings = Optimiser(
        "sgd", learning_rate=training.learning_rate, momentum=training.momentum, schedule="step", decay_every=20
    )
    trained = fit_many(
        model,
        make_optimiser(settings, steps, training.epochs),
        binary_cross_entropy(smoothing=training.smoothing),
        cases,
        [split.train + place * n for place, split in enumerate(rows)],
        [split.validation + place * n for place, split in enumerate(rows)],
        seeds=[(seed, place % max(1, count), 0) for place in range(count)],
        epochs=training.epochs,
        batch_size=training.batch_size,
        patience=training.patience,
    )
    everyone = [np.arange(n) + place * n for place in range(count)]
    return np.asarray(jnp.asarray(predict_many(model, trained.variables, cases, everyone)))[..., 0]
