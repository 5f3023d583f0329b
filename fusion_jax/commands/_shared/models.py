"""Models, their files and who trains them, as options name them."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fusion_jax.training.executors import ExecutorFactory, dask_executor, spawned
from fusion_jax.wording import listed

__all__ = ["executor", "named_models", "parse_model"]

MODEL = re.compile(r"(?:(?P<label>[^={]+)=)?(?P<recipe>[^={]+)(?P<arguments>\{.*\})?", re.DOTALL)


def named_models(words: Sequence[str], path: Path | None) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Models by their name in the tables, and the arguments that all share, of a file and of words, which go before.

    Args:
      words: of `--models`.
      path: JSON file with "models" and "settings"; None for no file.

    Raises:
      ValueError: words that name no model, a name twice, or a file that does not hold models.
    """
    stored: Mapping[str, Any] = {} if path is None else _read_config(path)
    models: dict[str, dict[str, Any]] = dict(stored.get("models", {}))
    asked = [parse_model(word) for word in words]
    for number, (label, choice) in enumerate(asked):
        if label in [name for name, _ in asked[:number]]:
            raise ValueError(
                f"--models names {label!r} twice; give one of them a name of its own: OTHER={choice['recipe']}."
            )
        models[label] = choice
    return models, dict(stored.get("settings", {}))


def parse_model(word: str) -> tuple[str, dict[str, Any]]:
    """Name in the tables and choice of a model, from NAME, NAME{...} or LABEL=NAME{...}.

    Example:
      >>> parse_model('wide=gated{"features": 64}')
      ('wide', {'recipe': 'gated', 'arguments': {'features': 64}})
    """
    found = MODEL.fullmatch(word.strip())
    if found is None:
        raise ValueError(f'--models {word!r}; expected NAME, NAME{{"argument": value}}, or LABEL=NAME{{...}}.')
    arguments: Any = {}
    if found["arguments"]:
        try:
            arguments = json.loads(found["arguments"])
        except ValueError as error:
            raise ValueError(
                f"--models {word!r}: the arguments are no JSON ({error}); expected such as "
                f"'{found['recipe']}{{\"features\": 64}}', in single quotes for the shell."
            ) from None
    return found["label"] or found["recipe"], {"recipe": found["recipe"], "arguments": arguments}


def executor(workers: int, dask: str | None) -> ExecutorFactory | None:
    """Who trains; None for this process.

    Raises:
      ValueError: both processes and a cluster, or fewer than one worker.
      ImportError: a Dask cluster without dask.distributed.
    """
    if workers < 1:
        raise ValueError(f"--workers is {workers}; expected 1 or more.")
    if dask is not None:
        if workers > 1:
            raise ValueError("--workers are processes here and --dask is a cluster elsewhere; give one of them.")
        return dask_executor(dask)
    return spawned(workers) if workers > 1 else None


def _read_config(path: Path) -> Mapping[str, Any]:
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: no JSON ({error}).") from None
    if not isinstance(stored, dict) or not set(stored) <= {"models", "settings"}:
        found = listed(stored) if isinstance(stored, dict) else type(stored).__name__
        raise ValueError(f"{path}: holds {found}; expected an object with 'models' and perhaps 'settings'.")
    return stored
