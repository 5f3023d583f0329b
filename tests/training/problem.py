"""A small problem to train on, with everything in it that a resumed run has to carry: dropout, running statistics, a
trained objective, momentum, a plateau rule.

    python -m tests.training.problem FOLDER               # a run that saves after every step, to be killed
    python -m tests.training.problem FOLDER ADDRESS N I   # process I of N, each with one device
"""

import sys
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fusion_jax.arrays import Batch, Model, Outputs
from fusion_jax.data import Batches, Cohort
from fusion_jax.training import (
    FitResult,
    Objective,
    Optimiser,
    fit,
    initial_state,
    make_optimiser,
    make_step,
    named_key,
    run_key,
)

EPOCHS = 12
SETTINGS = Optimiser(
    "adam", learning_rate=0.4, weight_decay=0.01, schedule="plateau", decay_every=1, decay_factor=0.5, clip_norm=1.0
)


@cache
def cohort(cases: int = 22) -> Cohort:
    rng = np.random.default_rng(7)
    x = rng.normal(size=(cases, 3)).astype(np.float32)
    label = (x[:, 0] + 0.5 * rng.normal(size=cases) > 0).astype(int)
    return Cohort.from_arrays({"clinical": x}, label=label.tolist())


def batches(**changes: Any) -> Batches:
    """22 cases in batches of 8: three steps an epoch, the last with two rows of padding."""
    return Batches(cohort(), **{"rows": np.arange(22), "batch_size": 8, "seed": (0,)} | changes)


def _init(key: Any, batch: Batch) -> dict[str, Any]:
    width = batch.inputs["clinical"].shape[-1]
    first, second = jax.random.split(named_key(key, "weights"))
    params = {
        "hidden": {"kernel": jax.random.normal(first, (width, 4)), "bias": jnp.zeros(4)},
        "out": {"kernel": jax.random.normal(second, (4, 1))},
    }
    return {"params": params, "batch_stats": {"mean": jnp.zeros(width)}}


def _apply(variables: dict[str, Any], batch: Batch, *, train: bool, key: Any = None) -> tuple[Outputs, dict[str, Any]]:
    x, params = batch.inputs["clinical"], variables["params"]
    weight = jnp.asarray(batch.valid, x.dtype)[:, None]
    mean = variables["batch_stats"]["mean"]
    if train:
        now = jnp.sum(x * weight, axis=0) / jnp.maximum(jnp.sum(weight), 1.0)
        mean = 0.9 * mean + 0.1 * now
        x = x - now[None]
    else:
        x = x - mean[None]
    hidden = jnp.tanh(x @ params["hidden"]["kernel"] + params["hidden"]["bias"][None])
    if train:
        hidden = hidden * jax.random.bernoulli(key, 0.8, hidden.shape).astype(hidden.dtype)
    return Outputs(hidden @ params["out"]["kernel"], {}, {}), {**variables, "batch_stats": {"mean": mean}}


MODEL = Model(_init, _apply)


def _loss(own: Any, outputs: Outputs, batch: Batch) -> tuple[Any, dict[str, Any]]:
    valid = jnp.asarray(batch.valid, jnp.float32)
    each = optax.sigmoid_binary_cross_entropy(outputs.logits[:, 0], jnp.asarray(batch.target["label"], jnp.float32))
    mean = jnp.sum(each * valid) / jnp.maximum(jnp.sum(valid), 1.0)
    # Kendall's weighting of one loss: has a parameter of its own.
    return jnp.exp(-own["s"]) * mean + 0.5 * own["s"], {"unweighted": mean}


OBJECTIVE = Objective(lambda: {"s": jnp.zeros(())}, _loss)


@jax.jit
def validation_loss(variables: dict[str, Any], batch: Batch) -> Any:
    outputs, _ = MODEL.apply(variables, batch, train=False)
    return OBJECTIVE.loss(variables["objective"], outputs, batch)[1]["unweighted"]


def evaluate(state: Any, epoch: int) -> dict[str, float]:
    everybody = batches(batch_size=22, sampler="sequential").at(0)
    return {"loss": float(validation_loss(state.variables, everybody))}


@cache
def parts() -> tuple[Any, Any]:
    """`init` and `step`."""
    optimiser = make_optimiser(SETTINGS, 3, EPOCHS)
    return initial_state(MODEL, optimiser, OBJECTIVE), make_step(MODEL, optimiser, OBJECTIVE)


def train(folder: Path, **changes: Any) -> FitResult:
    init, step = parts()
    arguments = {
        "folder": folder,
        "key": run_key(0),
        "epochs": EPOCHS,
        "evaluate": evaluate,
        "monitor": "loss",
        "mode": "min",
        "plateau": SETTINGS.plateau,
        "settings": {"learning_rate": SETTINGS.learning_rate},
    }
    return fit(init, step, changes.pop("batches", None) or batches(), **arguments | changes)


def main(folder: str, address: str = "", count: str = "1", index: str = "0") -> None:
    if not address:
        jax.config.update("jax_num_cpu_devices", 2)  # as the tests have it
        train(Path(folder), checkpoint_seconds=0.0)
        return
    jax.config.update("jax_num_cpu_devices", 1)
    jax.distributed.initialize(address, int(count), int(index))
    from fusion_jax.training import data_mesh

    own = batches(process_index=jax.process_index(), process_count=jax.process_count())
    result = train(Path(folder), batches=own, mesh=data_mesh(), checkpoint_steps=5)
    again = train(Path(folder), batches=own, mesh=data_mesh())
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(result.state)]
    for leaf, other in zip(leaves, jax.tree.leaves(again.state), strict=True):
        np.testing.assert_array_equal(leaf, np.asarray(other))
    np.savez(Path(folder).parent / f"state{index}.npz", *leaves)
    jax.distributed.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
