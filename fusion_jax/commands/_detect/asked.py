"""What the options of `fusion-jax detect` ask for."""

from pathlib import Path
from typing import Any

from fusion_jax.commands._shared.models import named_models
from fusion_jax.commands._shared.screen import file_name
from fusion_jax.commands.detect_train import Config
from fusion_jax.wording import listed

__all__ = ["address_of", "default_folder", "fractions_of", "read_detectors"]

QUICK = {"epochs": 5}

SHARED = (
    "epochs", "batch_size", "learning_rate", "patience", "anchors", "objective", "augment", "overlap",
    "clinical_values", "missing", "precision", "image",
)  # fmt: skip
"""Options that become arguments of every detector."""

FUNCTION = "fusion_jax.data.coco:read_coco"


def address_of(
    cohort: str, *, coco: Path | None, images: Path | None, table: Path | None, inputs: tuple[str, ...] = ()
) -> dict[str, Any]:
    """The address of the cohort that the options name: a cohort, or a COCO file with its images and its table.

    Raises:
      ValueError: both, neither, or images and a table without a COCO file.
    """
    if (coco is None) == (not cohort):
        given = f"{cohort} and --coco {coco}" if cohort else "neither"
        raise ValueError(
            f"expected a cohort (a folder with a cohort.toml, or the name of a collection) or --coco FILE; got {given}."
        )
    if coco is None:
        for option, value in (("--images", images), ("--table", table), ("--inputs", inputs or None)):
            if value is not None:
                raise ValueError(f"{option} belongs to --coco FILE; a cohort says itself where its files are.")
        from fusion_jax.data.address import cohort_address

        return cohort_address(cohort)
    arguments: dict[str, Any] = {"annotations": str(coco.resolve())}
    if images is not None:
        arguments["images"] = str(images.resolve())
    if table is not None:
        arguments["table"] = str(table.resolve())
    if inputs:
        arguments["inputs"] = list(inputs)
    return {"function": FUNCTION, "arguments": arguments}


def default_folder(config: Config) -> Path:
    """Where the results go when nothing is said."""
    path = Path(config.cohort) if config.coco is None else config.coco.with_suffix("")
    name = path.parent.name if path.name == "cohort.toml" else path.name
    return Path("results") / "detect" / file_name(name)


def fractions_of(config: Config) -> tuple[float, float, float]:
    """Parts of the patients in training, validation and test.

    Raises:
      ValueError: parts that leave nobody to train on, or nobody to test.
    """
    if not (0 <= config.validation < 1 and 0 < config.test < 1 and config.validation + config.test < 1):
        raise ValueError(
            f"--validation {config.validation:g} --test {config.test:g}; expected fractions of the patients that leave "
            "some to train on."
        )
    return 1 - config.validation - config.test, config.validation, config.test


def read_detectors(config: Config) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Models by their name in the tables, and the arguments that all share.

    Raises:
      ValueError: words that name no model, a name twice, or a file that does not hold models.
    """
    models, stored = named_models(config.models, config.config)
    settings: dict[str, Any] = {**stored, **(QUICK if config.preset == "quick" else {})}
    models = models or named_models(("mdf-net",), None)[0]
    settings |= {name: value for name in SHARED if (value := getattr(config, name)) is not None}
    if config.features:
        settings["features"] = list(config.features)
    size = list(config.image_size)
    if len(size) > 2:
        raise ValueError(f"--image-size {listed(size)}; expected one number, or rows and columns.")
    if size:
        settings["image_size"] = [size[0], size[-1]]
    if config.backbone is not None:
        settings["config"] = {**settings.get("config", {}), "backbone": config.backbone}
    return models, settings
