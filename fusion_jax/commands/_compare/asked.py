"""What the options of a comparison ask for."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fusion_jax.commands.compare import Config
from fusion_jax.evaluation.protocol import Protocol
from fusion_jax.training.executors import ExecutorFactory, dask_executor, spawned
from fusion_jax.wording import listed

__all__ = ["default_folder", "executor", "make_protocol", "parse_model", "read_models"]

QUICK = {"epochs": 15, "patience": 5}

SHARED = ("encoder", "epochs", "batch_size", "learning_rate", "patience", "augment")
"""Options that become arguments of every network."""

MODEL = re.compile(r"(?:(?P<label>[^={]+)=)?(?P<recipe>[^={]+)(?P<arguments>\{.*\})?", re.DOTALL)


def default_folder(cohort: str) -> Path:
    """Where the results go when nothing is said."""
    from fusion_jax.commands._shared.screen import file_name

    path = Path(cohort)
    name = path.parent.name if path.name == "cohort.toml" else path.name
    return Path("results") / "compare" / file_name(name)


def make_protocol(config: Config) -> Protocol:
    """The protocol that the options describe.

    Raises:
      ValueError: an option outside its range, by the name of the option.
    """
    if not config.cohort:
        raise ValueError(
            "no cohort was given; expected a folder with a cohort.toml, shards, or the name of a bundled cohort "
            "(soft_tissue_sarcoma, hcc_survival). `fusion-jax cohort init` writes a cohort.toml."
        )
    if config.folds < 2 or config.repeats < 1:
        raise ValueError(f"--folds {config.folds} --repeats {config.repeats}; expected at least 2 and 1.")
    for name, value in (("importance", config.importance), ("null", config.null), ("explained", config.explained)):
        if value is not None and value < 0:
            raise ValueError(f"--{name} is {value}; expected 0 or more.")
    try:
        return Protocol(
            primary=config.primary,
            singles=config.single,
            margin=config.margin,
            resamples=config.resamples,
            seed=config.seed,
        )
    except ValueError as error:
        raise ValueError(f"--{error}") from None


def read_models(config: Config) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Models by their name in the tables, and the arguments that all networks share.

    Raises:
      ValueError: words that name no model, a name twice, or a file that does not hold models.
    """
    models: dict[str, dict[str, Any]] = {}
    settings: dict[str, Any] = dict(QUICK) if config.preset == "quick" else {}
    if config.config is not None:
        stored = _read_config(config.config)
        models |= stored.get("models", {})
        settings |= stored.get("settings", {})
    asked = [parse_model(word) for word in config.models]
    for number, (label, choice) in enumerate(asked):
        if label in [name for name, _ in asked[:number]]:
            raise ValueError(
                f"--models names {label!r} twice; give one of them a name of its own: OTHER={choice['recipe']}."
            )
        models[label] = choice
    settings |= {name: value for name in SHARED if (value := getattr(config, name)) is not None}
    return models, settings


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


def _read_config(path: Path) -> Mapping[str, Any]:
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: no JSON ({error}).") from None
    if not isinstance(stored, dict) or not set(stored) <= {"models", "settings"}:
        found = listed(stored) if isinstance(stored, dict) else type(stored).__name__
        raise ValueError(f"{path}: holds {found}; expected an object with 'models' and perhaps 'settings'.")
    return stored


def executor(config: Config) -> ExecutorFactory | None:
    """Who trains; None for this process.

    Raises:
      ValueError: both processes and a cluster, or fewer than one worker.
      ImportError: a Dask cluster without dask.distributed.
    """
    if config.workers < 1:
        raise ValueError(f"--workers is {config.workers}; expected 1 or more.")
    if config.dask is not None:
        if config.workers > 1:
            raise ValueError("--workers are processes here and --dask is a cluster elsewhere; give one of them.")
        return dask_executor(config.dask)
    return spawned(config.workers) if config.workers > 1 else None
