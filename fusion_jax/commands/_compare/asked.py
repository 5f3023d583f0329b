"""What the options of a comparison ask for."""

from pathlib import Path
from typing import Any

from fusion_jax.commands._shared.models import named_models
from fusion_jax.commands.compare import Config
from fusion_jax.evaluation.protocol import Protocol

__all__ = ["default_folder", "make_protocol", "read_models"]

QUICK = {"epochs": 15, "patience": 5}

SHARED = ("encoder", "epochs", "batch_size", "learning_rate", "patience", "augment")
"""Options that become arguments of every network."""


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
    models, stored = named_models(config.models, config.config)
    settings = {**stored, **(QUICK if config.preset == "quick" else {})}
    settings |= {name: value for name in SHARED if (value := getattr(config, name)) is not None}
    return models, settings
