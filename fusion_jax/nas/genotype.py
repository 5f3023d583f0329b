"""What a search finds: which operation lies on which edge of the cells, as plain data that files and figures can hold.

A cell is a directed acyclic graph. Its first nodes are the inputs, numbered from 0; the nodes that follow add up the
maps that their edges bring. Nothing here needs JAX.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Float
from scipy.special import softmax

from fusion_jax.records.files import write_json
from fusion_jax.wording import counted, listed

__all__ = [
    "DARTS_OPERATIONS",
    "DARTS_V1",
    "DARTS_V2",
    "OPERATIONS",
    "Edge",
    "Genotype",
    "Operation",
    "cell_inputs",
    "derive",
    "dot",
    "edge_count",
    "edges_of",
    "genotype_from_json",
    "genotype_to_json",
    "random_genotype",
    "read_genotype",
    "skip_share",
    "uses_inputs",
    "write_genotype",
]

Operation = Literal["none", "skip", "max_pool", "avg_pool", "conv3", "conv5", "sep3", "sep5", "dil3", "dil5"]

OPERATIONS: tuple[Operation, ...] = get_args(Operation)
"""Candidates of the multi-modality search: those of DARTS and the standard convolutions."""

DARTS_OPERATIONS: tuple[Operation, ...] = (
    "none",
    "max_pool",
    "avg_pool",
    "skip",
    "sep3",
    "sep5",
    "dil3",
    "dil5",
)
"""Candidates of Liu et al. 2018, in their order."""

Edge = tuple[str, int]
"""Operation, and the node that it takes its map from."""

CELLS = ("first", "normal", "reduce")
KEPT = 2
"""Edges that a node keeps (Liu et al. 2018, section 2.4)."""


class Genotype(NamedTuple):
    """The cells of a derived network; two edges a node, nodes in turn.

    Attributes:
      normal: edges of the normal cell, whose inputs are the outputs of the two cells before it; empty if there is none.
      reduce: edges of the reduction cell, likewise.
      normal_concat: nodes of the normal cell whose maps, one after the other, are its output.
      reduce_concat: likewise.
      first: edges of the first cell where it takes more than two maps; empty where it is the normal cell.
      first_concat: likewise.
      inputs: maps that the first cell takes.

    Example:
      >>> Genotype((("conv3", 0), ("skip", 1)), (), (2,), ()).normal[1]
      ('skip', 1)
    """

    normal: tuple[Edge, ...]
    reduce: tuple[Edge, ...]
    normal_concat: tuple[int, ...]
    reduce_concat: tuple[int, ...]
    first: tuple[Edge, ...] = ()
    first_concat: tuple[int, ...] = ()
    inputs: int = 2


DARTS_V1 = Genotype(
    normal=(
        ("sep3", 1),
        ("sep3", 0),
        ("skip", 0),
        ("sep3", 1),
        ("skip", 0),
        ("sep3", 1),
        ("sep3", 0),
        ("skip", 2),
    ),
    reduce=(
        ("max_pool", 0),
        ("max_pool", 1),
        ("skip", 2),
        ("max_pool", 0),
        ("max_pool", 0),
        ("skip", 2),
        ("skip", 2),
        ("avg_pool", 0),
    ),
    normal_concat=(2, 3, 4, 5),
    reduce_concat=(2, 3, 4, 5),
)
"""Found by first-order search on CIFAR-10 (Liu et al. 2018)."""

DARTS_V2 = Genotype(
    normal=(
        ("sep3", 0),
        ("sep3", 1),
        ("sep3", 0),
        ("sep3", 1),
        ("sep3", 1),
        ("skip", 0),
        ("skip", 0),
        ("dil3", 2),
    ),
    reduce=(
        ("max_pool", 0),
        ("max_pool", 1),
        ("skip", 2),
        ("max_pool", 1),
        ("max_pool", 0),
        ("skip", 2),
        ("skip", 2),
        ("max_pool", 1),
    ),
    normal_concat=(2, 3, 4, 5),
    reduce_concat=(2, 3, 4, 5),
)
"""Found by second-order search on CIFAR-10 (Liu et al. 2018)."""


# Edges of a cell before any is left out


def edge_count(nodes: int, inputs: int = 2) -> int:
    r"""Edges of a cell that is searched.

    .. math:: k = \sum_{i=0}^{N-1} (I + i)

    Args:
      nodes: :math:`N`, without the inputs.
      inputs: :math:`I`.

    Example:
      >>> edge_count(4), edge_count(4, inputs=3)
      (14, 18)
    """
    return nodes * inputs + nodes * (nodes - 1) // 2


def edges_of(nodes: int, inputs: int = 2) -> tuple[tuple[int, int], ...]:
    """Every edge as (where from, where to) in the order of the tables: node by node, predecessors ascending.

    Example:
      >>> edges_of(2)
      ((0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
    """
    return tuple((source, inputs + node) for node in range(nodes) for source in range(inputs + node))


def cell_inputs(edges: int, nodes: int) -> int:
    """Inputs of a cell with so many edges and nodes.

    Raises:
      ValueError: no cell has these numbers.

    Example:
      >>> cell_inputs(14, 4)
      2
    """
    inputs = (edges - nodes * (nodes - 1) // 2) // nodes if nodes > 0 else 0
    if nodes < 1 or inputs < 1 or edge_count(nodes, inputs) != edges:
        raise ValueError(
            f"a table of {edges} rows is that of no cell with {counted(nodes, 'node')}: two inputs have "
            f"{edge_count(max(nodes, 1))}, three {edge_count(max(nodes, 1), 3)}. Give the number of nodes that was "
            "searched."
        )
    return inputs


# Derivation


def derive(architecture: Mapping[str, Float[np.ndarray, "..."]], operations: Sequence[str], *, nodes: int) -> Genotype:
    r"""The discrete cells that logits stand for.

    .. math:: s_{ij} = b_{ij} \max_{o \ne \text{none}} \operatorname{softmax}(\alpha_{ij})_o

    Every node keeps the two edges of the largest :math:`s_{ij}`, the larger one first, and on each the operation that
    attains it; "none" takes part in the softmax and is never kept. :math:`b` is 1, or the softmax of the node's edge
    weights where there are such. Among equals the first edge and the first operation win.

    Args:
      architecture: logits :math:`\alpha`, shape `(edges, operations)`, of the cells `normal`, `reduce` and `first`;
        whichever of these there are. Edges are in the order of `edges_of`. Logits of edge weights, `(edges,)`, under
        `normal_edges` and so on.
      operations: what the columns stand for.
      nodes: of every cell, without its inputs.

    Returns:
      The genotype; all nodes are concatenated.

    Raises:
      ValueError: a table that does not fit the operations or the nodes, or holds numbers that are not finite.

    Example:
      >>> alpha = np.zeros((2, 3)); alpha[0, 2] = alpha[1, 1] = 1.0
      >>> derive({"normal": alpha}, ("none", "skip", "conv3"), nodes=1).normal
      (('conv3', 0), ('skip', 1))

    References:
      Liu et al. 2018, section 2.4; Xu et al. 2020 for the edge weights; specs/mm_nas.md, section 3.
    """
    known = {*CELLS, *(f"{cell}_edges" for cell in CELLS)}
    if unknown := sorted(set(architecture) - known):
        raise ValueError(f"architecture: no cell is called {listed(unknown)}; expected {listed(sorted(known), 6)}.")
    if not set(operations) - {"none"}:
        raise ValueError("operations: nothing to choose from but 'none'. Name at least one operation.")
    cells, inputs = {}, {}
    for cell in CELLS:
        if cell in architecture:
            cells[cell], inputs[cell] = _derive_cell(architecture, cell, tuple(operations), nodes)
    # Two modalities and more cells: the normal cell stands first and takes as many maps as any.
    first = inputs.get("first", inputs.get("normal", 2))
    concat = {cell: tuple(range(inputs[cell], inputs[cell] + nodes)) for cell in cells}
    return Genotype(
        cells.get("normal", ()),
        cells.get("reduce", ()),
        concat.get("normal", ()),
        concat.get("reduce", ()),
        cells.get("first", ()),
        concat.get("first", ()),
        first,
    )


def _derive_cell(
    architecture: Mapping[str, Any], cell: str, operations: tuple[str, ...], nodes: int
) -> tuple[tuple[Edge, ...], int]:
    logits = np.asarray(architecture[cell], np.float64)
    if logits.ndim != 2 or logits.shape[1] != len(operations):
        raise ValueError(
            f"architecture[{cell!r}] has shape {logits.shape}; expected one row an edge and {len(operations)} columns, "
            f"one for each of {listed(operations, len(operations))}."
        )
    inputs = cell_inputs(len(logits), nodes)
    beta = np.asarray(architecture.get(f"{cell}_edges", np.zeros(len(logits))), np.float64)
    if beta.shape != (len(logits),):
        raise ValueError(
            f"architecture['{cell}_edges'] has shape {beta.shape}; expected ({len(logits)},), one an edge."
        )
    if not (np.isfinite(logits).all() and np.isfinite(beta).all()):
        raise ValueError(f"architecture[{cell!r}] holds NaN or infinities: the search diverged. Lower its rates.")
    weights = softmax(logits, axis=-1)
    columns = [column for column, name in enumerate(operations) if name != "none"]
    kept, start = [], 0
    for node in range(nodes):
        rows = slice(start, start + inputs + node)
        start = rows.stop
        # Every node weighs its own edges; without edge weights this is the same number on all of them.
        strength = weights[rows][:, columns].max(axis=1) * softmax(beta[rows])
        for source in np.argsort(-strength, kind="stable")[:KEPT]:
            best = columns[int(weights[rows][source, columns].argmax())]
            kept.append((operations[best], int(source)))
    return tuple(kept), inputs


def random_genotype(
    rng: np.random.Generator, nodes: int, operations: Sequence[str] = OPERATIONS, inputs: int = 2
) -> Genotype:
    """Cells drawn at random: the control of every search.

    Every node takes two predecessors that differ, and on each edge any operation but "none", all equally likely.

    Args:
      rng: draws.
      nodes: of every cell.
      operations: to draw from.
      inputs: of the first cell; above two it becomes a cell of its own.

    Example:
      >>> drawn = random_genotype(np.random.default_rng(0), 2, ("none", "skip", "conv3"))
      >>> drawn.normal
      (('conv3', 0), ('conv3', 1), ('skip', 1), ('skip', 2))

    References:
      Li and Talwalkar 2019; Yang et al. 2020.
    """
    if nodes < 1 or inputs < KEPT:
        raise ValueError(f"random_genotype: {nodes} nodes and {inputs} inputs; expected at least 1 and {KEPT}.")
    choices = [name for name in operations if name != "none"]
    if not choices:
        raise ValueError("operations: nothing to choose from but 'none'. Name at least one operation.")

    def cell(count: int) -> tuple[Edge, ...]:
        return tuple(
            (str(choices[int(rng.integers(len(choices)))]), int(source))
            for node in range(nodes)
            for source in rng.permutation(count + node)[:KEPT]
        )

    concat = tuple(range(KEPT, KEPT + nodes))
    normal, reduce = cell(KEPT), cell(KEPT)
    if inputs == KEPT:
        return Genotype(normal, reduce, concat, concat)
    return Genotype(normal, reduce, concat, concat, cell(inputs), tuple(range(inputs, inputs + nodes)), inputs)


# What a cell is made of


def skip_share(cell: Sequence[Edge]) -> float:
    """Share of a cell's edges that pass their map on unchanged; a collapsed search has many.

    Example:
      >>> skip_share(DARTS_V2.normal), skip_share(())
      (0.25, 0.0)

    References:
      Liang et al. 2019 (DARTS+), who stop at two skips in the normal cell.
    """
    return sum(operation == "skip" for operation, _ in cell) / len(cell) if cell else 0.0


def uses_inputs(cell: Sequence[Edge], *, inputs: int = 2, concat: Sequence[int] | None = None) -> set[int]:
    """Inputs of a cell from which some path leads to its output.

    Args:
      cell: edges.
      inputs: how many inputs the cell has.
      concat: nodes that make the output; all of them unless given.

    Example:
      >>> uses_inputs((("skip", 0), ("conv3", 0), ("skip", 1), ("conv3", 2)))
      {0, 1}
      >>> uses_inputs((("skip", 0), ("conv3", 0), ("skip", 1), ("conv3", 2)), concat=(2,))
      {0}
    """
    reached: list[set[int]] = [{number} for number in range(inputs)]
    for node in range(len(cell) // KEPT):
        edges = cell[KEPT * node : KEPT * (node + 1)]
        reached.append(set().union(*(reached[source] for operation, source in edges if operation != "none")))
    outputs = range(inputs, len(reached)) if concat is None else concat
    return set().union(*(reached[number] for number in outputs))


# Files


def genotype_to_json(genotype: Genotype) -> dict[str, Any]:
    """A genotype in terms of lists, text and numbers.

    Example:
      >>> genotype_to_json(DARTS_V2)["normal"][0]
      ['sep3', 0]
    """
    plain: dict[str, Any] = {}
    for cell in CELLS:
        plain[cell] = [list(edge) for edge in getattr(genotype, cell)]
        plain[f"{cell}_concat"] = list(getattr(genotype, f"{cell}_concat"))
    return {**plain, "inputs": genotype.inputs}


def genotype_from_json(value: object, where: str = "genotype") -> Genotype:
    """The genotype that `genotype_to_json` wrote, or somebody by hand; nothing that would not build is let through.

    Args:
      value: what a JSON file held.
      where: the file, for messages.

    Raises:
      ValueError: an unknown operation, an edge from a node that does not come before, or anything else that is not a
        genotype; the message names the place.

    Example:
      >>> genotype_from_json(genotype_to_json(DARTS_V1)) == DARTS_V1
      True
    """
    if not isinstance(value, Mapping):
        raise ValueError(f"{where}: found {_kind(value)}; expected an object with the cells {listed(CELLS)}.")
    keys = [*CELLS, *(f"{cell}_concat" for cell in CELLS), "inputs"]
    if unknown := sorted(str(key) for key in set(value) - set(keys)):
        raise ValueError(f"{where}: unknown entry {listed(unknown)}; expected {listed(keys, len(keys))}.")
    inputs = value.get("inputs", KEPT)
    if not _is_number(inputs) or inputs < KEPT:
        raise ValueError(f"{where}: inputs is {inputs!r}; expected the number of maps of the first cell, 2 or more.")
    cells: dict[str, Any] = {}
    for cell in CELLS:
        count = inputs if cell == "first" else KEPT
        cells[cell] = _edges_from_json(value.get(cell, []), count, f"{where}: {cell}")
        nodes = range(count, count + len(cells[cell]) // KEPT)
        concat = value.get(f"{cell}_concat", list(nodes))
        cells[f"{cell}_concat"] = _concat_from_json(concat, nodes, f"{where}: {cell}_concat")
    if not cells["normal"] and not cells["first"]:
        raise ValueError(f"{where}: no normal cell, and none called 'first'. A network starts with one of them.")
    if (inputs > KEPT) != bool(cells["first"]):
        found = "no cell 'first'" if inputs > KEPT else "a cell 'first'"
        raise ValueError(
            f"{where}: inputs is {inputs}, and there is {found}; expected such a cell for three inputs or more, and "
            "none for two, where the normal cell is the first."
        )
    return Genotype(**cells, inputs=inputs)


def _edges_from_json(value: object, inputs: int, where: str) -> tuple[Edge, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise ValueError(f"{where} is {_kind(value)}; expected a list of edges, [operation, node].")
    if len(value) % KEPT:
        raise ValueError(f"{where} has {counted(len(value), 'edge')}; expected two for every node.")
    edges = []
    for number, edge in enumerate(value):
        place, node = f"{where}[{number}]", inputs + number // KEPT
        if not isinstance(edge, Sequence) or isinstance(edge, str) or len(edge) != KEPT:
            raise ValueError(f"{place} is {edge!r}; expected [operation, node].")
        operation, source = edge
        if operation not in OPERATIONS or operation == "none":
            known = [name for name in OPERATIONS if name != "none"]
            raise ValueError(f"{place}: unknown operation {operation!r}; expected one of {listed(known, len(known))}.")
        if not _is_number(source) or not 0 <= source < node:
            raise ValueError(
                f"{place} comes from node {source!r}; node {node} can take from 0 to {node - 1}, where 0 to "
                f"{inputs - 1} are the inputs."
            )
        edges.append((operation, source))
    return tuple(edges)


def _concat_from_json(value: object, nodes: range, where: str) -> tuple[int, ...]:
    numbers: list[Any] = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [None]
    known = all(_is_number(number) and number in nodes for number in numbers)
    if not known or len(set(numbers)) != len(numbers) or (len(nodes) > 0) != (len(numbers) > 0):
        expected = f"some of the nodes {nodes.start} to {nodes.stop - 1}, each once" if nodes else "an empty list"
        raise ValueError(f"{where} is {value!r}; expected {expected}.")
    return tuple(numbers)


def _is_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _kind(value: object) -> str:
    names = {"list": "a list", "dict": "an object", "str": "text", "int": "a number", "float": "a number"}
    kind = type(value).__name__
    return names.get(kind, "nothing" if value is None else f"a {kind}")


def write_genotype(path: str | Path, genotype: Genotype, facts: Mapping[str, Any] | None = None) -> None:
    """Write a genotype and what is known of it, as JSON.

    Args:
      path: the file, replaced if it exists.
      genotype: what `read_genotype` gives back.
      facts: how it was found; for readers, and not read back.

    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "genotype.json"
      >>> write_genotype(path, DARTS_V2, {"epoch": 50})
      >>> read_genotype(path) == DARTS_V2
      True
    """
    write_json(path, {"genotype": genotype_to_json(genotype), "facts": dict(facts or {})})


def read_genotype(path: str | Path) -> Genotype:
    """The genotype in a file that `write_genotype` wrote, or in one that holds the genotype alone.

    Raises:
      FileNotFoundError: no such file.
      ValueError: what it holds is no genotype; the message names file and place.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, IsADirectoryError) as error:
        raise FileNotFoundError(f"{path}: no such file. Expected a genotype.json, as a search writes it.") from error
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: line {error.lineno} is no JSON ({error.msg}); expected a genotype.") from error
    if isinstance(value, Mapping) and "genotype" in value:
        value = value["genotype"]
    return genotype_from_json(value, str(path))


# Drawing


def dot(genotype: Genotype, names: Sequence[str] = ()) -> str:
    """The cells as text for Graphviz, one cluster a cell: `dot -Tsvg genotype.dot`.

    Args:
      genotype: the cells.
      names: of the maps that the first cell takes. Other cells take the outputs of the two cells before them.

    Raises:
      ValueError: another number of names than the first cell has inputs.

    Example:
      >>> print(dot(Genotype((("conv3", 0), ("skip", 1)), (), (2,), ()), ("pet", "ct")))
      digraph genotype {
        rankdir=LR;
        node [shape=box, fontname="sans-serif"];
        edge [fontname="sans-serif"];
        subgraph cluster_normal {
          label="normal cell";
          normal_0 [label="pet"];
          normal_1 [label="ct"];
          normal_2 [label="2"];
          normal_output [label="output"];
          normal_0 -> normal_2 [label="conv3"];
          normal_1 -> normal_2 [label="skip"];
          normal_2 -> normal_output;
        }
      }
    """
    if names and len(names) != genotype.inputs:
        raise ValueError(f"dot: {counted(len(names), 'name')} for {genotype.inputs} inputs of the first cell.")
    lines = [
        "digraph genotype {",
        "  rankdir=LR;",
        '  node [shape=box, fontname="sans-serif"];',
        '  edge [fontname="sans-serif"];',
    ]
    leading = "first" if genotype.first else "normal"
    for cell in CELLS:
        edges = getattr(genotype, cell)
        if edges:
            inputs = genotype.inputs if cell == "first" else KEPT
            labels = names if names and cell == leading else _input_names(inputs)
            lines += _dot_cell(cell, edges, getattr(genotype, f"{cell}_concat"), labels)
    return "\n".join([*lines, "}"])


def _input_names(inputs: int) -> list[str]:
    return ["cell before last", "last cell"] if inputs == KEPT else [f"input {number}" for number in range(inputs)]


def _dot_cell(cell: str, edges: Sequence[Edge], concat: Iterable[int], labels: Sequence[str]) -> list[str]:
    inputs = len(labels)
    title = "reduction cell" if cell == "reduce" else f"{cell} cell"
    lines = [f"  subgraph cluster_{cell} {{", f'    label="{title}";']
    lines += [f"    {cell}_{number} [label={json.dumps(label)}];" for number, label in enumerate(labels)]
    lines += [f'    {cell}_{inputs + node} [label="{inputs + node}"];' for node in range(len(edges) // KEPT)]
    lines.append(f'    {cell}_output [label="output"];')
    for number, (operation, source) in enumerate(edges):
        lines.append(f'    {cell}_{source} -> {cell}_{inputs + number // KEPT} [label="{operation}"];')
    lines += [f"    {cell}_{number} -> {cell}_output;" for number in concat]
    return [*lines, "  }"]
