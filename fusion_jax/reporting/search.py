"""The report of an architecture search: the cells, how they came about, and what the search was given."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fusion_jax.nas.diagnostics import eligible_epochs
from fusion_jax.records import read_json_lines, write_text
from fusion_jax.reporting.architecture import edge_weights_figure, genotype_figure, search_figure
from fusion_jax.reporting.figures import save_figure
from fusion_jax.reporting.html import Section, Table, write_report
from fusion_jax.wording import counted, listed

__all__ = ["write_search_report"]

TITLES = {"first": "First cell", "normal": "Normal cell", "reduce": "Reduction cell"}
RULES = {"skips": "skips", "eigenvalue": "the eigenvalue"}
"""Rules against collapse, as the report names them."""


def write_search_report(folder: str | Path, *, images: Sequence[str], dot: str, record: Mapping[str, Any]) -> Path:
    """Write `report.html`, `figures/` and `cells.dot` into the folder of a search that has ended.

    Args:
      folder: with `genotype.json` and `architecture.jsonl`.
      images: sources that the first cell takes.
      dot: the cells as Graphviz text.
      record: settings and versions, for the end of the page.

    Returns:
      Path of the report.

    Raises:
      FileNotFoundError: the search has not ended.
    """
    folder = Path(folder)
    stored = json.loads((folder / "genotype.json").read_text(encoding="utf-8"))
    lines = read_json_lines(folder / "architecture.jsonl")
    genotype, facts = stored["genotype"], stored["facts"]
    best = int(facts["epoch"])
    first = list(images) if len(images) > 1 else [images[0], images[0]]
    cells = genotype_figure(genotype, inputs=first, caption=f"Cells derived from epoch {best + 1} of {len(lines)}.")
    curves = search_figure(lines, chosen=best, caption="The search, epoch by epoch.")
    tables = [name for name in TITLES if name in lines[-1]["weights"]]
    inputs = {name: first if name == tables[0] else ["cell before last", "last cell"] for name in tables}
    weights = [
        edge_weights_figure(lines, name, inputs=inputs[name], caption=f"{TITLES[name]}, weights of the candidates.")
        for name in tables
    ]
    for name, figure in (("cells", cells), ("search", curves)):
        save_figure(figure, folder / "figures" / f"{name}.svg")
    write_text(folder / "cells.dot", dot)
    skips = max(facts["skip_share"].values())
    loss = facts["validation_loss"]
    summary = [
        (
            f"The cells of epoch {best + 1} were kept, whose loss on the other half of the patients was the smallest"
            f"{_among(lines, facts)}: {loss:.3f}."
        )
        if loss is not None
        else f"The loss on the other half of the patients was never a number; the cells of epoch {best + 1} were kept.",
        (
            f"Entropy of the mixing weights, {_from_to(lines, 'entropy')} nats an edge; "
            f"{len(lines[-1]['operations'])} candidates start from {_start(lines):.2f}."
        ),
    ]
    if skips >= 0.5:
        summary.append(
            f"Skip connections are {skips:.0%} of a cell, a sign that the search collapsed: stop it earlier "
            "(--collapse skips), or let the candidates see a part of the channels (--partial 4)."
        )
    sections = [
        Section("Cells", ["Arrows lead from a map through its operation to the node that adds it up."], [cells]),
        Section("Search", [], [curves, *weights]),
        Section("Edges", [], [_edges(genotype)]),
    ]
    path = folder / "report.html"
    write_report(
        path, title=f"Architecture search over {listed(images)}", summary=summary, sections=sections, record=record
    )
    return path


def _edges(genotype: Mapping[str, Any]) -> Table:
    rows = []
    sources = int(genotype.get("inputs", 2))
    for name, title in TITLES.items():
        edges: Sequence[Any] = genotype.get(name) or ()
        inputs = sources if name == "first" else 2
        rows += [
            (title, inputs + place // 2, str(operation), int(source)) for place, (operation, source) in enumerate(edges)
        ]
    if not genotype.get("first"):
        said = "of every cell, nodes 0 and 1 are inputs"
    else:
        said = f"of the first cell, nodes 0 to {sources - 1} are inputs"
        said += ", of the others 0 and 1" if genotype.get("normal") or genotype.get("reduce") else ""
    return Table(("cell", "node", "operation", "from node"), rows, f"{counted(len(rows), 'edge')}; {said}.")


def _among(lines: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]) -> str:
    """Of which epochs the loss is the smallest, where a rule against collapse bars some."""
    rule = facts.get("search", {}).get("collapse", "none")
    admitted = len(eligible_epochs(lines, rule))
    if admitted == len(lines):
        return ""
    if not admitted:
        return f" (the rule on {RULES[rule]} admits none of the {counted(len(lines), 'epoch')})"
    return f" among those that the rule on {RULES[rule]} admits ({admitted} of {counted(len(lines), 'epoch')})"


def _start(lines: Sequence[Mapping[str, Any]]) -> float:
    return math.log(len(lines[0]["operations"]))


def _from_to(lines: Sequence[Mapping[str, Any]], name: str) -> str:
    parts = [f"{table} {lines[0][name][table]:.2f} to {lines[-1][name][table]:.2f}" for table in lines[0][name]]
    return ", ".join(parts)
