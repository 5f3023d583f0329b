"""`fusion-jax export`: a trained network as files that others can use."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

if TYPE_CHECKING:
    from fusion_jax.models.export import Exported

__all__ = ["Config", "run"]


@dataclass(frozen=True)
class Config:
    """Write a trained network as weights (safetensors), settings (JSON) and a portable program (jax.export).

    The folder holds a README that says how to load each, and a model card for its author to complete. Ids of patients
    are not exported. Weights and settings can always be read; the program is read by versions of JAX up to a date that
    the README states.

    Example: fusion-jax export results/compare/sarcoma/tasks/gated/r0_f0_s0 --out gated

    Attributes:
      run: folder of one training, such as OUT/tasks/MODEL/r0_f0_s0.
      out: a new folder.
    """

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")]


def run(config: Config) -> int:
    """Export, and say what was written.

    Raises:
      ValueError: input that cannot be used; the message says what was found where, what was expected and what to do.
      OSError: a file that cannot be read or written.
    """
    from fusion_jax.commands._shared.screen import checked_folder
    from fusion_jax.models.export import export_run
    from fusion_jax.models.prediction import find_runs

    runs = find_runs(config.run)
    if len(runs) > 1:
        raise ValueError(
            f"{config.run}: {len(runs)} trainings; an export is of one of them. Name its folder, such as {runs[0]}."
        )
    found = export_run(runs[0], checked_folder(config.out))
    _write_card(runs[0], found)
    rows = "any number of cases a call" if found.batch is None else f"{found.batch} case a call"
    print(f"{found.folder}: weights, settings, model card, and a program ({rows}; {', '.join(found.platforms)}).")
    print(f"Later versions of JAX promise to read the program until {found.expires}; README.md says how to load it.")
    return 0


def _write_card(run: Path, found: "Exported") -> None:
    """A model card with what the training proves; the author has to say the rest."""
    from fusion_jax.models.recipe import open_recipe
    from fusion_jax.reporting.model_card import write_model_card

    record = open_recipe(run)
    facts: dict[str, Any] = record["facts"]
    versions = record["run"]["versions"]
    cases = facts.get("cases", {})
    schema = record["schema"]
    answers = {
        "version": f"Trained {record['run']['time']}, exported until {found.expires}",
        "kind": f"{record['name']}, a network of {', '.join(schema['sources'])}, {facts['parameters']:,} parameters",
        "training": f"{facts.get('epochs')} epochs, epoch {int(facts.get('best_epoch', -1)) + 1} kept. "
        f"{facts.get('inner_split', '')}",
        "software": ", ".join(
            f"{name} {versions[name]}" for name in ("fusion_jax", "jax", "flax") if versions.get(name)
        ),
        "training_data": f"Cohort {schema['cohort']}",
        "training_size": f"{cases.get('train')} training cases, {cases.get('validation')} validation cases",
        "caveats": "One training of one fold; its performance is that of the comparison it comes from",
    }
    write_model_card(found.folder / "model_card.md", record["name"], answers)
