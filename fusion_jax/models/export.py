"""A trained network for others: weights and settings as plain files, and the network itself as a portable program."""

import json
import logging
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fusion_jax.arrays import Array, Batch
from fusion_jax.data.tabular.training_cases import TrainingCases
from fusion_jax.encoders.stored import load_arrays
from fusion_jax.models.deep import PREPARATION, WEIGHTS, DeepRecipe
from fusion_jax.models.network import Network
from fusion_jax.models.preparation import Preparation
from fusion_jax.models.recipe import RECORD, open_recipe
from fusion_jax.models.registry import make_recipe
from fusion_jax.models.target import Target
from fusion_jax.models.tuned import CHOSEN, TunedRecipe
from fusion_jax.records import run_record, write_bytes, write_json, write_text

__all__ = ["Exported", "export_run", "exported_inputs"]

PROGRAM, TENSORS, CONFIG, README = "model.jax_export", "weights.safetensors", "config.json", "README.md"

READABLE = timedelta(days=180)
"""How long later versions of JAX promise to read an exported program; weights and settings have no such end."""

NOBODY = 16 * "0"
"""Digest of no case, in the place of those of the training cases."""

PLATFORMS = ("cpu", "cuda", "tpu")

LOG = logging.getLogger("fusion_jax.models.export")


class Exported(NamedTuple):
    """What was written.

    Attributes:
      folder: of everything.
      batch: rows that the program takes; None for any number.
      platforms: that it was lowered for.
      expires: until when later versions of JAX promise to read it.
    """

    folder: Path
    batch: int | None
    platforms: tuple[str, ...]
    expires: date


def export_run(run: str | Path, out: str | Path) -> Exported:
    """Write a trained network as safetensors, JSON and a program of `jax.export`.

    The program takes, of every source, values and whether they are there, and returns what `predict` returns:
    probabilities `(b, k)`, or log risks `(b, 1)`. Images enter in the unit of the cohort, after its `preprocess` steps;
    clinical columns enter encoded, as `preparation.json` says. The folder can be given to `fusion-jax predict`.

    Args:
      run: folder of one training of a network.
      out: a new or empty folder.

    Raises:
      ValueError: the run is not of a network, averages augmented copies, or `out` is not empty.
      FileNotFoundError: no trained recipe there.
      ImportError: flatbuffers is not installed.
    """
    try:
        import flatbuffers  # noqa: F401
    except ImportError:
        raise ImportError(
            "jax.export needs flatbuffers to write a program; install it: pip install flatbuffers"
        ) from None
    run, out = Path(run), Path(out)
    record = open_recipe(run)
    recipe = make_recipe(record["name"], record["arguments"])
    if isinstance(recipe, TunedRecipe):
        return export_run(run / CHOSEN, out)
    if not isinstance(recipe, DeepRecipe):
        raise ValueError(
            f"{run}: {record['name']} is no network; its numbers already stand as JSON in its folder (fitted.json), "
            "which `fusion-jax predict` reads."
        )
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out}: not empty; expected a new folder for an export.")
    preparation = Preparation.from_json(json.loads((run / PREPARATION).read_text(encoding="utf-8")))
    shapes = {name: tuple(shape) for name, shape in record["facts"]["shapes"].items()}
    target = Target.from_json(record["target"])
    network = Network(recipe, preparation.sources, shapes, target, scales=preparation.images)
    variables = load_arrays(run / WEIGHTS)
    out.mkdir(parents=True, exist_ok=True)
    program, batch, platforms = _lowered(_program(network, variables, preparation), shapes, out)
    write_bytes(out / PROGRAM, program)
    _write_tensors(out / TENSORS, variables)
    for name in (RECORD, WEIGHTS):
        write_bytes(out / name, (run / name).read_bytes())
    write_json(out / PREPARATION, _without_cases(preparation.to_json()))
    expires = (datetime.now(UTC) + READABLE).date()
    found = Exported(out, batch, platforms, expires)
    config = _config(record, preparation, shapes, target, found)
    write_json(out / CONFIG, config)
    write_text(out / README, _readme(config, found))
    return found


def exported_inputs(ready: Any, sources: tuple[str, ...], rows: Any) -> dict[str, Any]:
    """Values and presence of rows of a cohort, as the program takes them.

    Args:
      ready: cohort whose clinical sources hold encoded numbers, and whose images are in their own unit.
      sources: of the network.
      rows: of the cohort.
    """
    found = {}
    for name in sources:
        there = np.asarray(ready.present[name])[rows]
        shape = np.shape(ready.sources[name][int(np.flatnonzero(ready.present[name])[0])])
        values = [
            np.asarray(ready.sources[name][int(row)], np.float32) if here else np.zeros(shape, np.float32)
            for row, here in zip(rows, there, strict=True)
        ]
        found[name] = {"values": np.stack(values), "present": there}
    return found


def _program(
    network: Network, variables: Mapping[str, Any], preparation: Preparation
) -> Callable[[Mapping[str, Mapping[str, Array]]], Array]:
    """The network as a function of values and presence by source."""
    constants = jax.tree.map(jnp.asarray, dict(variables))

    def predict(inputs: Mapping[str, Mapping[str, Array]]) -> Array:
        values, present = {}, {}
        for name in network.sources:
            x, there = inputs[name]["values"], inputs[name]["present"]
            if name in preparation.images:
                scale = preparation.images[name]
                centre, spread = (jnp.asarray(part, jnp.float32) for part in (scale.centre, scale.spread))
                # All axes by name: rank promotion may be off where this is traced.
                x = (x - jnp.broadcast_to(centre, x.shape)) / jnp.broadcast_to(spread, x.shape)
            kept = jnp.reshape(there, (there.shape[0],) + (1,) * (x.ndim - 1))
            values[name] = jnp.where(jnp.broadcast_to(kept, x.shape), x, jnp.zeros_like(x))
            present[name] = there
        rows = values[network.sources[0]].shape[0]
        batch = Batch(values, {}, jnp.ones(rows, bool), present, jnp.arange(rows, dtype=jnp.int32))
        logits = network.model.apply(constants, batch, train=False)[0].logits
        if network.target.kind == "survival":
            return logits
        if logits.shape[1] > 1:
            return jax.nn.softmax(logits, axis=1)
        return jnp.concatenate([jax.nn.sigmoid(-logits), jax.nn.sigmoid(logits)], axis=1)

    return predict


def _lowered(
    predict: Callable[..., Array], shapes: Mapping[str, tuple[int, ...]], out: Path
) -> tuple[bytes, int | None, tuple[str, ...]]:
    """The program, for any number of rows and all platforms where that goes, else for less."""
    from jax import export

    here = (jax.default_backend().replace("gpu", "cuda"),)
    reasons = []
    for platforms, rows in ((PLATFORMS, None), (here, None), (here, 1)):
        scope = export.symbolic_shape("b")[0] if rows is None else rows
        inputs = {
            name: {
                "values": jax.ShapeDtypeStruct((scope, *shape), jnp.float32),
                "present": jax.ShapeDtypeStruct((scope,), jnp.bool_),
            }
            for name, shape in shapes.items()
        }
        try:
            exported = export.export(jax.jit(predict), platforms=platforms)(inputs)
            return bytes(exported.serialize()), rows, tuple(platforms)
        except Exception as error:  # jax raises many kinds where a shape or a platform is out of reach
            reasons.append(str(error).splitlines()[0])
            LOG.info("no program for %s and %s rows: %s", ", ".join(platforms), rows or "any", error)
    raise ValueError(f"{out}: the network has no portable program ({reasons[-1]}).")


def _write_tensors(path: Path, variables: Mapping[str, Any]) -> None:
    from safetensors.numpy import save

    from fusion_jax.encoders.pretrained import flatten

    tensors = {name: np.ascontiguousarray(array) for name, array in flatten(variables).items()}
    write_bytes(path, save(tensors, metadata={"format": "fusion_jax"}))


def _without_cases(preparation: Mapping[str, Any]) -> dict[str, Any]:
    """A preparation without the digests of its training cases: ids are easily guessed, and every new case is new."""
    tables = {
        name: {**table, **TrainingCases(table["fold"], (NOBODY,)).to_json()}
        for name, table in preparation["tables"].items()
    }
    return {**preparation, "tables": tables}


def _config(
    record: Mapping[str, Any],
    preparation: Preparation,
    shapes: Mapping[str, tuple[int, ...]],
    target: Target,
    found: Exported,
) -> dict[str, Any]:
    inputs = {}
    for name in preparation.sources:
        schema = record["schema"]["sources"][name]
        inputs[name] = {"values": ["b", *shapes[name]], "present": ["b"], "kind": schema["kind"]}
        if name in preparation.tables:
            inputs[name]["columns"] = list(preparation.tables[name].names)
        else:
            inputs[name] |= {"spacing_mm": schema["spacing"], "unit": schema["unit"]}
    return {
        "recipe": record["name"],
        "arguments": record["arguments"],
        "target": target.to_json(),
        "inputs": inputs,
        "output": ["b", target.outputs],
        "program": {
            "file": PROGRAM,
            "batch": found.batch or "any",
            "platforms": found.platforms,
            "readable_until": found.expires.isoformat(),
            "jax": jax.__version__,
        },
        "facts": record["facts"],
        "exported": run_record(),
    }


def _readme(config: Mapping[str, Any], found: Exported) -> str:
    rows = "any number of rows" if found.batch is None else f"{found.batch} row a call"
    names = ", ".join(f"{name} {one['values']}" for name, one in config["inputs"].items())
    outputs = ", ".join(config["target"]["classes"]) or "log risk"
    return f"""# {config["recipe"]}, exported by fusion_jax

Research software, not a medical device. What each input is stands in {CONFIG}; {RECORD}, {PREPARATION} and {WEIGHTS}
are for `fusion-jax predict THIS_FOLDER COHORT --out FILE`, which checks and encodes a cohort by itself.

- Weights anywhere: `safetensors.numpy.load_file("{TENSORS}")`; names are paths such as `params/encoders_image/...`.
- Program, with JAX and flatbuffers: `f = jax.export.deserialize(bytearray(open("{PROGRAM}", "rb").read()))`,
  then `f.call({{name: {{"values": float32, "present": bool (b,)}}, ...}})`; inputs {names}; output (b, k): {outputs}.
  Images as in the cohort after its preprocessing; clinical columns encoded as {PREPARATION} says.
- It takes {rows}, runs on {", ".join(found.platforms)}, and was made by JAX {config["program"]["jax"]}. Later
  versions promise to read it until {found.expires.isoformat()}; export again then. Weights do not expire.
"""
