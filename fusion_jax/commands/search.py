"""`fusion-jax search`: cells that fuse the images of a cohort, found by gradient descent."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

__all__ = ["Config", "run"]

RECORD = "search.json"

OF_THE_CALL = ("out", "resume", "compilation_cache")
"""Options that change nothing of the search."""


@dataclass(frozen=True)
class Config:
    """Search the cells of a network that fuses the images of a cohort, with its clinical data at the head.

    Half of the patients move the weights of the search, the other half the architecture. Writes genotype.json,
    report.html with the cells and the course of the search, cells.dot and architecture.jsonl to the folder OUT. All
    patients of the cohort are looked at: to judge such cells on patients that the search has not seen, compare the
    recipe mm-nas, which searches anew among the training patients of every fold, or use genotype:OUT/genotype.json on
    other patients.

    Example: fusion-jax search data/sarcoma --sources pet ct clinical --epochs 50 --out results/search/sarcoma

    Attributes:
      cohort: folder with a cohort.toml or shards, or the name of a bundled cohort. Images have one shape.
      sources: images and clinical sources to read; all by default.
      out: folder of the results. Default: results/search/ and the name of the cohort.
      resume: go on with the search in OUT with the options it was started with, or write its report again.
      epochs: of the search.
      layout: normal (N) and reduction cells (R) in turn, beginning with N.
      nodes: of a cell.
      channels: of a node of the first cell.
      stem_stride: of the stems; 2 makes every map a quarter (2-D) or an eighth (3-D) as large.
      space: candidates of an edge: standard (with standard convolutions), darts, or names, such as none skip conv3.
      partial: one over the share of channels that the candidates see (PC-DARTS); 1 for all.
      mixing: weighted sums, or samples (Gumbel) of the candidates.
      norm: of maps, by groups of channels or by the batch.
      remat: what is computed again in the backward pass to save memory, from quick to small.
      order: first or second order of the bilevel gradient; the second takes about three times as long.
      batch_size: cases of a step; by default 4, for survival 64 or half of the patients.
      rate, architecture_rate: learning rates of weights and architecture.
      warmup_epochs: in which the weights move alone.
      penalty: on the expected number of parameters.
      collapse: what ends the search early: too many skip connections, or a rising eigenvalue.
      eigenvalue_every: epochs between measurements of the dominant eigenvalue; 0 for none.
      augment: what images go through.
      precision: of the computation; bfloat16 on accelerators.
      task: what is predicted, where the cohort has a label and times.
      seed: of what is drawn in the search; which patients are in which half does not depend on it.
      compilation_cache: keep compiled programs for the next run, in a private folder of the user's cache.
    """

    cohort: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="COHORT")]
    sources: Annotated[tuple[str, ...], tyro.conf.arg(metavar="SOURCE...", help_behavior_hint="")] = ()
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")] = None
    resume: bool = False
    epochs: int = 50
    layout: str = "NR"
    nodes: int = 3
    channels: int = 4
    stem_stride: int = 2
    space: tuple[str, ...] = ("standard",)
    partial: int = 1
    mixing: Literal["softmax", "gumbel"] = "softmax"
    norm: Literal["group", "batch"] = "group"
    remat: Literal["none", "operation", "edge", "cell"] = "none"
    order: Literal["first", "second"] = "first"
    batch_size: Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="")] = None
    rate: float = 0.025
    architecture_rate: float = 3e-3
    warmup_epochs: int = 0
    penalty: float = 0.0
    collapse: Literal["none", "skips", "eigenvalue"] = "none"
    eigenvalue_every: int = 0
    augment: str = "none"
    precision: Literal["float32", "bfloat16"] = "float32"
    task: Literal["auto", "label", "survival"] = "auto"
    seed: int = 0
    compilation_cache: bool = True


def run(config: Config) -> int:
    """Search, write the report, and say how the cells can be used.

    Returns:
      0.

    Raises:
      ValueError: input that cannot be used; the message says what was found where, what was expected and what to do.
      OSError: a file that cannot be read or written.
    """
    from fusion_jax.commands._shared.screen import checked_folder, file_name, progress_bar

    name = Path(config.cohort).parent.name if Path(config.cohort).suffix == ".toml" else Path(config.cohort).name
    out = checked_folder(config.out or Path("results") / "search" / file_name(name))
    if (out / RECORD).exists() and not config.resume:
        raise ValueError(f"{out} holds a search. Go on with it: --resume; or name another folder: --out DIR.")
    if config.resume:
        config = _resumed(config, out)
    from fusion_jax.data.address import cohort_address, open_address
    from fusion_jax.data.splits import Split
    from fusion_jax.models.registry import make_recipe
    from fusion_jax.nas.genotype import dot
    from fusion_jax.records import run_record, write_json
    from fusion_jax.reporting.search import write_search_report
    from fusion_jax.training.keys import run_key

    recipe: Any = make_recipe("mm-nas", _arguments(config))
    cohort = open_address(cohort_address(config.cohort))
    images = [source for source in recipe.sources(cohort) if cohort.sources[source].kind == "image"]
    print(f"{cohort.name}: {len(cohort)} cases. Cells that fuse {', '.join(images)}. Folder: {out}")
    everybody = Split(0, 0, tuple(cohort.case_id), (), ())
    print(recipe.memory(cohort))
    versions: dict[str, Any] = dict(run_record())

    def begin() -> None:
        if not config.resume:
            options = {name: value for name, value in asdict(config).items() if name not in OF_THE_CALL}
            write_json(out / RECORD, {"options": options, "run": versions})

    with progress_bar("preparing images") as bar:

        def told(progress: Any) -> None:
            loss = "" if progress.loss is None else f", loss {progress.loss:.3f}"
            done = progress.epoch * progress.steps + progress.step
            bar(done, progress.epochs * progress.steps, f"epoch {progress.epoch + 1}{loss}")

        found = recipe.find(cohort, everybody, run_key(config.seed, 0, 0), out, report=told, checked=begin)
    names = images if len(images) > 1 else [images[0], images[0]]
    report = write_search_report(
        out,
        images=images,
        dot=dot(found.genotype, names),
        record={"settings": recipe.arguments(), "seed": config.seed, **versions},
    )
    print(f"Report: {report}")
    print(f"On other patients: fusion-jax compare COHORT --models genotype:{out / 'genotype.json'} ...")
    print(f"On these: fusion-jax compare {config.cohort} --models mm-nas ..., which searches anew in every fold.")
    return 0


def _resumed(config: Config, out: Path) -> Config:
    """The options of the search in a folder; options given now may say nothing else.

    Raises:
      ValueError: no search there, or another one.
    """
    if not (out / RECORD).exists():
        raise ValueError(f"--resume: {out} holds no search. Leave --resume out to begin one there.")
    stored = json.loads((out / RECORD).read_text(encoding="utf-8"))["options"]
    stored = {name: tuple(value) if isinstance(value, list) else value for name, value in stored.items()}
    default = Config(cohort=config.cohort)
    for name, before in stored.items():
        now = getattr(config, name)
        if now not in (before, getattr(default, name)):
            raise ValueError(
                f"--resume with --{name.replace('_', '-')} {now}; the search in {out} has {before}. Leave the option "
                "out, or search in another folder."
            )
    if config.cohort != stored["cohort"]:
        raise ValueError(
            f"--resume on {config.cohort}; the search in {out} is on {stored['cohort']}. Name that cohort, or search "
            "in another folder."
        )
    return replace(config, **stored)


def _arguments(config: Config) -> dict[str, Any]:
    """Arguments of the recipe, which has other names for some."""
    renamed = {
        "sources": "inputs",
        "epochs": "search_epochs",
        "batch_size": "search_batch_size",
        "rate": "search_rate",
    }
    own = ("cohort", "seed", *OF_THE_CALL)
    values = {name: getattr(config, name) for name in config.__dataclass_fields__ if name not in own}
    values["space"] = config.space[0] if len(config.space) == 1 else config.space
    return {renamed.get(name, name): list(v) if isinstance(v, tuple) else v for name, v in values.items()}
