"""One run over several devices and processes: the batch is divided over a mesh, the state is on every device.

On one machine, hand `data_mesh()` to `fit`. Over several processes, start the same program once a process (by
`srun`, by `mpirun`, or by hand), and before anything else touches a device call

    jax.distributed.initialize("first-host:1234", num_processes=4, process_id=0)

with the number of the process, or without arguments under SLURM and on TPUs, which know both. Then build the batches
with `Batches(..., process_index=jax.process_index(), process_count=jax.process_count())`, so that each process reads
its share of every batch, and hand `data_mesh()`, which holds the devices of all processes, to `fit`. `batch_size` stays
that of the whole batch, and has to be a multiple of the number of devices. Only the first process reads and writes the
folder of the run. Results agree with those of one device within rounding: sums over a batch are taken in another order.
"""

import json
from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from fusion_jax.training.keys import is_key, key_from_data

__all__ = [
    "data_mesh",
    "from_first_process",
    "replicate",
    "shard_batch",
    "spans_processes",
    "state_from_first_process",
]

Tree = TypeVar("Tree")


def data_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """Mesh with the one axis `data`.

    Args:
      devices: all devices of all processes by default.

    Example:
      >>> data_mesh(jax.devices()[:1]).shape["data"]
      1
    """
    devices = jax.devices() if devices is None else list(devices)
    return jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def spans_processes(mesh: Mesh | None) -> bool:
    """Whether devices of the mesh belong to another process."""
    return mesh is not None and any(device.process_index != jax.process_index() for device in mesh.devices.flat)


def shard_batch(batch: Tree, mesh: Mesh | None) -> Tree:
    """The batch on the devices of the mesh, each with its part of the rows.

    Args:
      batch: arrays whose leading axis are the rows that this process has read.
      mesh: None leaves the batch where it is.

    Raises:
      ValueError: the rows cannot be divided evenly.

    Example:
      >>> shard_batch({"x": np.zeros((4, 2))}, data_mesh(jax.devices()[:1]))["x"].sharding.spec[0]
      'data'
    """
    if mesh is None:
        return batch
    here = sum(device.process_index == jax.process_index() for device in mesh.devices.flat)
    for rows in {len(leaf) for leaf in jax.tree.leaves(batch)}:
        if not here or rows % here:
            raise ValueError(
                f"{rows} rows of a batch for {here} devices of this process; expected a multiple. Change batch_size, "
                "or use fewer devices."
            )
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    if spans_processes(mesh):
        return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(sharding, np.asarray(leaf)), batch)
    return jax.device_put(batch, sharding)


def replicate(tree: Tree, mesh: Mesh | None) -> Tree:
    """Every array on every device of the mesh, or on the default device; always a copy, so that it may be donated."""
    if mesh is None:
        return jax.device_put(tree, jax.local_devices()[0], may_alias=False)
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()), may_alias=False)


def from_first_process(value: Any, mesh: Mesh | None) -> Any:
    """What the first process has, in every process that the mesh spans.

    Args:
      value: anything that JSON can hold; other processes may hand over None.
      mesh: of the run.

    Example:
      >>> from_first_process({"epoch": 3}, None)
      {'epoch': 3}
    """
    if not spans_processes(mesh):
        return value
    from jax.experimental import multihost_utils

    sent = np.frombuffer(json.dumps(value).encode(), np.uint8)
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(sent))))
    padded = np.zeros(length, np.uint8)
    if jax.process_index() == 0:
        padded[:] = sent
    return json.loads(bytes(np.asarray(multihost_utils.broadcast_one_to_all(padded))))


def state_from_first_process(state: Any, like: Any, mesh: Mesh | None) -> Any:
    """Arrays that the first process has read, in every process that the mesh spans.

    Args:
      state: tree of arrays; other processes may hand over None.
      like: shapes and dtypes of it.
      mesh: of the run.
    """
    if not spans_processes(mesh):
        return state
    from jax.experimental import multihost_utils

    def stored(leaf: Any) -> Any:
        return jax.random.key_data(leaf) if is_key(leaf) else leaf

    bare = jax.eval_shape(lambda tree: jax.tree.map(stored, tree), like)
    sent = (
        jax.tree.map(stored, state)
        if jax.process_index() == 0
        else jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), bare)
    )
    received = multihost_utils.broadcast_one_to_all(sent)
    return jax.tree.map(lambda array, leaf: key_from_data(array, leaf) if is_key(leaf) else array, received, like)
