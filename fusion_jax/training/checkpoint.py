"""Checkpoints: whole or absent, checked when read, few.

A checkpoint holds the arrays of a state and one JSON of what lives on the host, written by Orbax, and a list of the
files with their sizes and CRC-32. It is filled under another name and moved into place. What a full disk, a power cut
or a careless copy has damaged is found before Orbax reads it, and an older checkpoint is used.
"""

import json
import logging
import shutil
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from fusion_jax.records import write_json
from fusion_jax.training.keys import is_key, key_from_data

__all__ = ["CHECKPOINTS", "Checkpoint", "Checkpoints", "as_host", "restore_best"]

State = TypeVar("State")

FORMAT = 1
KEPT = 2
FINAL = "final"
UNFINISHED = "unfinished_"
CHECKPOINTS = "checkpoints"
"""Of a run: where its checkpoints lie in its folder."""
FILES = "files.json"
CHUNK = 1 << 22
LOG = logging.getLogger("fusion_jax.training.checkpoint")


class Checkpoint(NamedTuple):
    """One checkpoint as it was read.

    Attributes:
      state: NumPy arrays in the structure of the state; keys are typed again.
      host: what lived on the host.
      best: the state in the checkpoint that `host` names as `best_name`, or None.
    """

    state: Any
    host: dict[str, Any]
    best: Any = None


class Checkpoints:
    """The checkpoints of one run.

    Names are `step_000000120` after so many steps, `best_000000012` for the state after the epoch that is best so far,
    and `final`, the best state of a run that has ended.

    Example:
      >>> import tempfile
      >>> found = Checkpoints(Path(tempfile.mkdtemp()))
      >>> found.save("step_000000001", {"w": np.ones(2)}, {"epoch": 0})
      >>> found.names(), found.restore("step_000000001", {"w": np.zeros(2)}).state["w"].tolist()
      (['step_000000001'], [1.0, 1.0])
    """

    def __init__(self, folder: Path) -> None:
        # Orbax takes absolute paths only, and reads these signs as a pattern that matches nothing.
        self.folder = Path(folder).resolve()
        if set("[]*?") & set(str(self.folder)):
            raise ValueError(
                f"{self.folder}: checkpoints cannot be kept in a folder with [, ], * or ? in its path. Choose another."
            )

    def names(self) -> list[str]:
        """Whole checkpoints that a run can go on from, newest first; not those of a best state."""
        found = self.folder.glob("step_*") if self.folder.is_dir() else ()
        steps = sorted((path.name for path in found if path.name.removeprefix("step_").isdigit()), reverse=True)
        return [FINAL, *steps] if (self.folder / FINAL).is_dir() else steps

    def save(self, name: str, state: Any, host: Mapping[str, Any]) -> None:
        """Write a checkpoint, replacing one of that name.

        Args:
          name: see above.
          state: any tree of arrays.
          host: anything that JSON can hold.
        """
        arrays = _named(as_host(state))
        leaves = {name: [list(leaf.shape), leaf.dtype.name] for name, leaf in arrays.items()}
        checkpoint, args = _orbax()
        self.folder.mkdir(parents=True, exist_ok=True)
        for left in self.folder.glob(f"{UNFINISHED}*"):
            shutil.rmtree(left, ignore_errors=True)
        filled, place = self.folder / (UNFINISHED + name), self.folder / name
        with _checkpointer(checkpoint) as writer:
            writer.save(
                filled,
                args.Composite(
                    state=args.PyTreeSave(arrays),
                    host=args.JsonSave({"format": FORMAT, "leaves": leaves, "host": dict(host)}),
                ),
            )
        files = sorted(path for path in filled.rglob("*") if path.is_file())
        write_json(filled / FILES, {path.relative_to(filled).as_posix(): _checksum(path) for path in files})
        if place.exists():
            shutil.rmtree(place)
        filled.rename(place)

    def host(self, name: str) -> dict[str, Any]:
        """What lived on the host.

        Raises:
          ValueError: it cannot be read.
        """
        return self._head(name)["host"]

    def restore(self, name: str, like: Any) -> Checkpoint:
        """Read one checkpoint, without the best state that it names.

        Args:
          name: of the checkpoint.
          like: a state, or shapes and dtypes of one, in whose structure the arrays are returned.

        Raises:
          ValueError: it is damaged, or holds another state than `like`.
        """
        where = self.folder / name
        head = self._head(name)
        wanted = _named(like)
        for path, leaf in wanted.items():
            found = head["leaves"].get(path)
            shape, dtype = _storage(leaf)
            if found != [list(shape), dtype]:
                stored = "nothing" if found is None else f"{found[1]}{found[0]}"
                raise StateMismatchError(
                    f"{where}: holds {stored} for {path}, the model now has {dtype}{list(shape)}; expected the state "
                    "of one model. Use another folder, or the settings the run was started with."
                )
        if more := head["leaves"].keys() - wanted.keys():
            raise StateMismatchError(
                f"{where}: holds {min(more)} ({len(more)} arrays) that the model does not have; expected the state of "
                "one model. Use another folder, or the settings the run was started with."
            )
        _refuse_damage(where)
        checkpoint, args = _orbax()
        restored_as = {path: checkpoint.RestoreArgs(restore_type=np.ndarray) for path in wanted}
        try:
            with _checkpointer(checkpoint) as reader:
                arrays = reader.restore(where, args.Composite(state=args.PyTreeRestore(restore_args=restored_as))).state
        except Exception as error:
            raise ValueError(f"{where}: cannot be read ({_first_line(error)}); the checkpoint is damaged.") from error
        leaves = [key_from_data(arrays[path], leaf) if is_key(leaf) else arrays[path] for path, leaf in wanted.items()]
        return Checkpoint(jax.tree.unflatten(jax.tree.structure(like), leaves), head["host"])

    def newest(self, like: Any, *, check: Callable[[Mapping[str, Any]], None] | None = None) -> Checkpoint | None:
        """The newest checkpoint that is whole; None without one.

        Args:
          like: see `restore`.
          check: looks at what lived on the host before the arrays are read, and raises if the run is another one.
        """
        for name in self.names():
            try:
                host = self.host(name)
            except ValueError as error:
                self._skip(error)
                continue
            if check is not None:
                check(host)
            try:
                found = self.restore(name, like)
                best = host.get("best_name")
                return found if best is None else found._replace(best=self.restore(best, like).state)
            except StateMismatchError:
                raise
            except ValueError as error:
                self._skip(error)
        return None

    def prune(self, *, only: str | None = None) -> None:
        """Delete all but the newest two checkpoints and the best states that they name, or all but one.

        Two, so that a damaged one costs no more than the time between them.
        """
        kept, whole = {only}, 0
        for name in self.names() if only is None else ():
            if whole < KEPT:
                try:
                    kept |= {name, self.host(name).get("best_name")}
                    whole += 1
                except ValueError as error:
                    LOG.debug("%s It is deleted.", error)
        for path in self.folder.glob("*"):
            if path.is_dir() and path.name.startswith((FINAL, "step_", "best_")) and path.name not in kept:
                shutil.rmtree(path, ignore_errors=True)

    def _skip(self, error: ValueError) -> None:
        LOG.warning("%s Going back to an older one, or to the start.", error)

    def _head(self, name: str) -> dict[str, Any]:
        where = self.folder / name
        _refuse_damage(where, "host/")
        checkpoint, args = _orbax()
        try:
            with _checkpointer(checkpoint) as reader:
                head = reader.restore(where, args.Composite(host=args.JsonRestore())).host
            if head["format"] != FORMAT:
                raise ValueError(f"format {head['format']}, expected {FORMAT}")
            return {"leaves": dict(head["leaves"]), "host": dict(head["host"])}
        except Exception as error:
            raise ValueError(f"{where}: cannot be read ({_first_line(error)}); the checkpoint is damaged.") from error


class StateMismatchError(ValueError):
    """A checkpoint holds the state of another model."""


def restore_best(folder: str | Path, like: State) -> State:
    """The best state of a run that `fit` has ended, as NumPy arrays.

    Args:
      folder: that `fit` got.
      like: a state, or shapes and dtypes of one (`jax.eval_shape(init, key, batch)`).

    Raises:
      FileNotFoundError: the run has not ended.
      ValueError: the checkpoint is damaged, or of another model.
    """
    checkpoints = Checkpoints(Path(folder) / CHECKPOINTS)
    if FINAL not in checkpoints.names():
        raise FileNotFoundError(
            f"{checkpoints.folder / FINAL}: no such checkpoint; expected the folder of a run that has ended. Call "
            "`fit` on it again, which goes on where it stopped."
        )
    return checkpoints.restore(FINAL, like).state


def as_host(state: State) -> State:
    """A copy of every array in the memory of the host, keys as they are."""
    return jax.tree.map(lambda leaf: leaf if is_key(leaf) else np.array(leaf, copy=True), state)


def _orbax() -> tuple[Any, Any]:
    # Half a second that only runs which write checkpoints pay.
    import orbax.checkpoint as checkpoint

    return checkpoint, checkpoint.args


def _checkpointer(checkpoint: Any) -> Any:
    """A synchronous writer that waits for no other process: the first one alone writes."""
    from orbax.checkpoint.options import MultiprocessingOptions

    alone: dict[str, Any] = {}
    if jax.process_count() > 1:
        own = jax.process_index()
        alone = {
            "multiprocessing_options": MultiprocessingOptions(
                primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"process{own}"
            )
        }
    options = checkpoint.CompositeOptions(**alone) if alone else None
    handler = checkpoint.CompositeCheckpointHandler(**({} if options is None else {"composite_options": options}))
    return checkpoint.Checkpointer(handler, **alone)


def _storage(leaf: Any) -> tuple[tuple[int, ...], str]:
    """Shape and dtype that a leaf is stored in."""
    if is_key(leaf):
        leaf = jax.eval_shape(jax.random.key_data, leaf)
    return tuple(np.shape(leaf)), np.dtype(getattr(leaf, "dtype", np.asarray(leaf).dtype)).name


def _named(state: Any) -> dict[str, Any]:
    """Leaves by their path in the state, keys as what they consist of unless they are mere shapes."""
    named = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        stored = np.asarray(jax.random.key_data(leaf)) if is_key(leaf) and isinstance(leaf, jax.Array) else leaf
        named[jax.tree_util.keystr(path, simple=True, separator=".") or "state"] = stored
    return named


def _checksum(path: Path) -> list[int]:
    """Size and CRC-32 of a file."""
    size = crc = 0
    with path.open("rb") as file:
        while part := file.read(CHUNK):
            size, crc = size + len(part), zlib.crc32(part, crc)
    return [size, crc]


def _refuse_damage(where: Path, start: str = "") -> None:
    """Compare the files whose names begin with `start` with what was written.

    Orbax is not asked to find damage: it reads many arrays at once, and those that are still under way when one fails
    complain after it has returned.

    Raises:
      ValueError: naming the first file that differs.
    """
    try:
        files = json.loads((where / FILES).read_text(encoding="utf-8"))
        for name, written in files.items():
            if name.startswith(start) and _checksum(where / name) != written:
                raise ValueError(f"{name} is not what was written")
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(f"{where}: cannot be read ({_first_line(error)}); the checkpoint is damaged.") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
