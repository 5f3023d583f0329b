"""Searched cells as diagrams, and how a search came to them."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, FancyBboxPatch, PathPatch, Polygon
from matplotlib.path import Path as Outline
from matplotlib.ticker import MaxNLocator

from fusion_jax.reporting.figure_parts import draw_literally, ink_on, model_style, reference_line, text_width
from fusion_jax.reporting.figures import WIDTH, Palette, wrapped
from fusion_jax.reporting.html import Figure, format_number
from fusion_jax.wording import counted, listed

__all__ = [
    "CellDrawing",
    "cell_figure",
    "edge_weights_figure",
    "genotype_figure",
    "operation_label",
    "search_figure",
]

# Inches.
MARGIN = 0.08
TITLE = 0.3
INPUT_ROW = 0.36
PILL = 0.21
BAND = 0.55
"""Height of a node: its operations above each other, and room to the next."""
PITCH = 0.26
"""From one operation of a node to the next."""
LANE = 0.085
"""Between vertical lines of one gutter."""
GUTTER = 0.17
"""What a gutter takes beside its lanes."""
LEAD = 0.12
"""From operations to their node."""
RADIUS = 0.115
ARROW = 0.08
OUTPUT = 0.2
BESIDE = 8.2
"""Widest row of cells: two of four nodes, two of which follow one another."""
BETWEEN = 0.35

FONT_SIZE = 8.5
KEPT = 2
"""Edges that a node keeps."""
TABLES = {"first": "first cell", "normal": "normal cell", "reduce": "reduction cell"}
LATER = ("cell before last", "last cell")
"""Inputs of a cell that is not the first."""
KERNELS = {"conv": "conv", "sep": "sep conv", "dil": "dil conv"}
POOLS = {"max_pool": "max pool", "avg_pool": "avg pool"}
WEIGHTLESS = ("skip", "max_pool", "avg_pool", "none")


class CellDrawing(NamedTuple):
    """A derived cell as plain names and numbers.

    Attributes:
      title: over the drawing.
      edges: operation and predecessor of every kept edge, two a node, node by node. Predecessors are numbered as in
        genotype.json: the inputs, then the nodes.
      inputs: names of the inputs.
      concat: predecessors whose maps are concatenated to the output, by the same numbers; None for all nodes.
    """

    title: str
    edges: Sequence[Sequence[Any]]
    inputs: Sequence[str]
    concat: Sequence[int] | None = None


class _Layout(NamedTuple):
    """Where the parts of a cell lie, in inches from its left upper corner, downwards."""

    cell: CellDrawing
    nodes: tuple[tuple[tuple[str, int], tuple[str, int]], ...]
    concat: tuple[int, ...]
    rows: tuple[float, ...]
    """Height of each input and node."""
    leaves: tuple[float, ...]
    """Where the line of each input and node begins."""
    columns: tuple[int, ...]
    """Column of each input and node; inputs are in column 0."""
    pills: tuple[float, ...]
    """Left edge of the operations of each column from 1."""
    lanes: tuple[dict[int, float], ...]
    """Where the line of a source goes down on its way to a column."""
    pill_width: float
    output: float
    width: float
    height: float


def operation_label(name: str) -> str:
    """How a figure names an operation.

    Example:
      >>> [operation_label(name) for name in ("sep3", "max_pool", "skip", "my_operation")]
      ['sep conv 3', 'max pool', 'skip', 'my operation']
    """
    kind, kernel = name[:-1], name[-1:]
    if kind in KERNELS and kernel.isdigit():
        return f"{KERNELS[kind]} {kernel}"
    return POOLS.get(name, name.replace("_", " "))


def genotype_figure(genotype: Mapping[str, Any], *, inputs: Sequence[str], caption: str) -> Figure:
    """All cells of a genotype: see `cell_figure`.

    Args:
      genotype: as genotype.json holds it: edges by cell under `first`, `normal` and `reduce`, and `..._concat`.
      inputs: names of the maps that the first cell takes.
      caption: says of which search it is.

    Raises:
      ValueError: a genotype without cells, or one that no network has.

    Example:
      >>> genotype = {"normal": [["sep3", 0], ["conv5", 1]], "normal_concat": [2], "reduce": []}
      >>> genotype_figure(genotype, inputs=["PET stem", "CT stem"], caption="Fold 1.").alt
      'Normal cell: node 2 = sep conv 3 of PET stem + conv 5 of CT stem; output = node 2.'
    """
    names = [table for table in TABLES if genotype.get(table)]
    if not names:
        raise ValueError(f"a genotype with {listed(genotype) or 'nothing'} has no cell; expected {listed(TABLES)}.")
    cells = [
        CellDrawing(
            TABLES[table].capitalize(),
            genotype[table],
            LATER if number else inputs,
            genotype.get(f"{table}_concat"),
        )
        for number, table in enumerate(names)
    ]
    return cell_figure(cells, caption=caption)


def cell_figure(cells: Sequence[CellDrawing], *, caption: str) -> Figure:
    """Derived cells as diagrams: inputs on the left, operations and nodes, concatenated output on the right.

    Every input and node has a line of its own colour, which leads through the operations on its way to later nodes and
    to the output. Operations without weights have dashed frames. Cells stand beside each other where they fit.

    Args:
      cells: in the order of the figure.
      caption: says of which search they are.

    Raises:
      ValueError: no cell, a cell without nodes, or an edge from what does not come before its node.

    Example:
      >>> edges = [("sep3", 0), ("conv5", 1), ("skip", 0), ("dil3", 2)]
      >>> cell_figure([CellDrawing("Normal cell", edges, ["PET stem", "CT stem"])], caption="Fold 1.").alt
      'Normal cell: node 2 = sep conv 3 of PET stem + conv 5 of CT stem; node 3 = skip of PET stem + dil conv 3 of
      node 2; output = nodes 2, 3.'

    References:
      Peng et al. 2020, Figure 3b.
    """
    if not cells:
        raise ValueError("a figure of no cells; expected at least one.")
    layouts = [_layout(cell) for cell in cells]
    rows: list[list[_Layout]] = []
    for layout in layouts:
        used = sum(other.width + BETWEEN for other in rows[-1]) if rows else math.inf
        if used + layout.width + 2 * MARGIN > BESIDE:
            rows.append([])
        rows[-1].append(layout)
    heights = [max(layout.height for layout in row) for row in rows]
    widths = [sum(layout.width for layout in row) + BETWEEN * (len(row) - 1) for row in rows]
    width = max(widths) + 2 * MARGIN
    height = sum(heights) + BETWEEN * (len(rows) - 1) + 2 * MARGIN

    def plot(figure: Canvas, palette: Palette) -> None:
        figure.set_layout_engine("none")
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, width), ylim=(height, 0))
        axes.axis("off")
        top = MARGIN
        for row, tall in zip(rows, heights, strict=True):
            left = MARGIN
            for layout in row:
                _draw_cell(axes, palette, layout, left, top)
                left += layout.width + BETWEEN
            top += tall + BETWEEN

    alt = " ".join(f"{layout.cell.title}: {_told(layout)}." for layout in layouts)
    if any(operation in WEIGHTLESS for cell in cells for operation, _ in cell.edges):
        caption = f"{caption} Dashed frames: operations without weights.".strip()
    return draw_literally(plot, size=(width, height), caption=caption, alt=alt)


def _layout(cell: CellDrawing) -> _Layout:
    inputs = len(cell.inputs)
    edges = [(str(operation), int(source)) for operation, source in cell.edges]
    if not edges or len(edges) % KEPT:
        raise ValueError(f"{cell.title}: {counted(len(edges), 'edge')}; expected two for each of at least one node.")
    nodes = tuple(zip(edges[::KEPT], edges[1::KEPT], strict=True))
    for node, kept in enumerate(nodes, start=inputs):
        for operation, source in kept:
            if not 0 <= source < node:
                raise ValueError(
                    f"{cell.title}: node {node} takes {operation_label(operation)} of {source}; expected one of 0 to "
                    f"{node - 1} ({counted(inputs, 'input')}, then the nodes before it)."
                )
    concat = tuple(range(inputs, inputs + len(nodes))) if cell.concat is None else tuple(cell.concat)
    if not concat or not all(0 <= source < inputs + len(nodes) for source in concat):
        raise ValueError(
            f"{cell.title}: the output concatenates {list(concat)}; expected numbers from 0 to "
            f"{inputs + len(nodes) - 1} of inputs and nodes."
        )
    columns = [0] * inputs
    for kept in nodes:
        columns.append(1 + max(columns[source] for _, source in kept))
    tops = [TITLE + INPUT_ROW * (k + 0.5) for k in range(inputs)]
    tops += [TITLE + INPUT_ROW * inputs + BAND * (k + 0.5) for k in range(len(nodes))]
    label_width = max(text_width(wrapped(name), FONT_SIZE) for name in cell.inputs) + 0.16
    pill_width = max(text_width(operation_label(operation), FONT_SIZE) for operation, _ in edges) + 0.16
    lanes: list[dict[int, float]] = []
    pills: list[float] = []
    leaves = [label_width] * inputs + [0.0] * len(nodes)
    across = label_width
    for column in range(1, max(columns) + 1):
        here = [k for k in range(len(nodes)) if columns[inputs + k] == column]
        # The first source goes down on the right of the others, which then cross it only once.
        sources = sorted({source for k in here for _, source in nodes[k]}, reverse=True)
        across += GUTTER / 2
        lanes.append({source: across + LANE * place for place, source in enumerate(sources)})
        across += LANE * (len(sources) - 1) + GUTTER
        pills.append(across)
        across += pill_width + LEAD + 2 * RADIUS
        for k in here:
            leaves[inputs + k] = across
    return _Layout(
        cell=cell,
        nodes=nodes,
        concat=concat,
        rows=tuple(tops),
        leaves=tuple(leaves),
        columns=tuple(columns),
        pills=tuple(pills),
        lanes=tuple(lanes),
        pill_width=pill_width,
        output=across + GUTTER,
        width=across + GUTTER + OUTPUT,
        height=TITLE + INPUT_ROW * inputs + BAND * len(nodes),
    )


def _draw_cell(axes: Axes, palette: Palette, layout: _Layout, left: float, top: float) -> None:
    cell, inputs = layout.cell, len(layout.cell.inputs)
    axes.text(left, top + 0.09, cell.title, ha="left", va="center", fontsize=10, fontweight="bold")
    rows = [top + row for row in layout.rows]
    colours = [model_style(palette, k)["color"] for k in range(len(rows))]

    # Later sources first: their lanes lie further left, and those that come before pass over their branches.
    for source in range(len(rows) - 1, -1, -1):
        start = (left + layout.leaves[source], rows[source])
        paths = [[start, (left + layout.output, rows[source])]] if source in layout.concat else []
        for node, kept in enumerate(layout.nodes):
            column = layout.columns[inputs + node] - 1
            for place, (_, wanted) in enumerate(kept):
                if wanted == source:
                    lane, end = left + layout.lanes[column][source], left + layout.pills[column]
                    height = _pill_row(rows[inputs + node], place)
                    paths.append([start, (lane, rows[source]), (lane, height), (end - ARROW / 2, height)])
                    head = [(end - ARROW, height - ARROW / 2), (end - ARROW, height + ARROW / 2), (end, height)]
                    axes.add_patch(Polygon(head, facecolor=colours[source], linewidth=0, zorder=2))
        # What crosses is parted by a seam in the colour of the page; all seams first, or a line would cut its branches.
        for colour, thickness in ((palette.background, 4.2), (colours[source], 1.6)):
            for points in paths:
                outline = PathPatch(
                    _rounded(points), facecolor="none", edgecolor=colour, linewidth=thickness, capstyle="butt"
                )
                axes.add_patch(outline)
    for number, name in enumerate(cell.inputs):
        _box(axes, palette, left, rows[number], layout.leaves[number], 0.28, colours[number], filled=True)
        axes.text(
            left + layout.leaves[number] / 2,
            rows[number],
            wrapped(name),
            ha="center",
            va="center",
            fontsize=FONT_SIZE,
            color=ink_on(to_rgb(colours[number])),
            linespacing=0.95,
        )
    for node, kept in enumerate(layout.nodes):
        source = inputs + node
        pill = left + layout.pills[layout.columns[source] - 1]
        centre = left + layout.leaves[source] - RADIUS
        for place, (operation, _) in enumerate(kept):
            height = _pill_row(rows[source], place)
            axes.plot(
                [pill + layout.pill_width, centre],
                [height, rows[source]],
                color=palette.soft,
                linewidth=1.2,
                zorder=1.5,
            )
            dashed = operation in WEIGHTLESS
            _box(axes, palette, pill, height, layout.pill_width, PILL, palette.soft, dashed=dashed)
            axes.text(
                pill + layout.pill_width / 2,
                height,
                operation_label(operation),
                ha="center",
                va="center",
                fontsize=FONT_SIZE,
            )
        axes.add_patch(Circle((centre, rows[source]), RADIUS, facecolor=colours[source], linewidth=0, zorder=3))
        axes.text(
            centre,
            rows[source],
            str(source),
            ha="center",
            va="center",
            fontsize=FONT_SIZE,
            color=ink_on(to_rgb(colours[source])),
            zorder=4,
        )
    upper = min(rows[source] for source in layout.concat) - 0.2
    lower = max(rows[source] for source in layout.concat) + 0.2
    lower = max(lower, upper + 0.62)  # room for the word
    axes.add_patch(
        FancyBboxPatch(
            (left + layout.output, upper),
            OUTPUT,
            lower - upper,
            boxstyle="round,pad=0,rounding_size=0.05",
            facecolor=palette.rule,
            linewidth=0,
            zorder=3,
        )
    )
    axes.text(
        left + layout.output + OUTPUT / 2,
        (upper + lower) / 2,
        "output",
        rotation=90,
        ha="center",
        va="center",
        fontsize=FONT_SIZE,
        zorder=4,
    )


def _box(
    axes: Axes,
    palette: Palette,
    left: float,
    middle: float,
    width: float,
    height: float,
    colour: str,
    *,
    filled: bool = False,
    dashed: bool = False,
) -> None:
    axes.add_patch(
        FancyBboxPatch(
            (left, middle - height / 2),
            width,
            height,
            boxstyle="round,pad=0,rounding_size=0.06",
            facecolor=colour if filled else palette.background,
            edgecolor=colour,
            linewidth=0 if filled else 1,
            linestyle=(0, (3, 2)) if dashed else "-",
            zorder=2,
        )
    )


def _pill_row(middle: float, place: int) -> float:
    """Height of the first or second operation of a node."""
    return middle + PITCH * (place - 0.5)


def _rounded(points: Sequence[tuple[float, float]], radius: float = 0.05) -> Outline:
    """A line through these points with round corners."""
    corners = np.asarray(points, float)
    places, codes = [corners[0]], [Outline.MOVETO]
    for before, corner, after in zip(corners, corners[1:], corners[2:], strict=False):
        legs = []
        for end in (before, after):
            length = float(np.hypot(*(end - corner)))
            legs.append(corner + (end - corner) * min(1.0, radius / length) if length else corner)
        places += [legs[0], corner, legs[1]]
        codes += [Outline.LINETO, Outline.CURVE3, Outline.CURVE3]
    return Outline(np.array([*places, corners[-1]]), np.array([*codes, Outline.LINETO], np.uint8))


def _told(layout: _Layout) -> str:
    inputs = len(layout.cell.inputs)

    def name(source: int) -> str:
        return layout.cell.inputs[source] if source < inputs else f"node {source}"

    parts = [
        f"node {k} = " + " + ".join(f"{operation_label(operation)} of {name(source)}" for operation, source in kept)
        for k, kept in enumerate(layout.nodes, start=inputs)
    ]
    nodes = [source for source in layout.concat if source >= inputs]
    others = [name(source) for source in layout.concat if source < inputs]
    joined = [f"node{'' if len(nodes) == 1 else 's'} {', '.join(map(str, nodes))}"] if nodes else []
    return "; ".join([*parts, f"output = {' + '.join([*others, *joined])}"])


# How a search went.


def search_figure(lines: Sequence[Mapping[str, Any]], *, caption: str, chosen: int | None = None) -> Figure:
    """Inner validation loss, entropy of the mixing weights, share of skips and sharpness over the epochs of a search.

    Args:
      lines: of `architecture.jsonl`, one an epoch: `epoch`, `validation_loss`, `entropy` and `skip_share` by table of
        mixing weights, `operations`, and where it was computed `eigenvalue`, the dominant one of the Hessian of the
        validation loss by the architecture.
      caption: says of which search.
      chosen: `epoch` of the line whose architecture was derived; by default that of the lowest validation loss. Lines
        count epochs from 0, the figure counts them from 1.

    Raises:
      ValueError: no line, or a line that lacks one of these.

    Example:
      >>> line = {"entropy": {"normal": 2.2}, "skip_share": {"normal": 0.25}, "operations": ["none", "skip"]}
      >>> lines = [line | {"epoch": k, "validation_loss": loss} for k, loss in enumerate([0.7, 0.6, 0.65])]
      >>> search_figure(lines, caption="Fold 1.").alt
      'Search of 3 epochs: validation loss from 0.700 to 0.650, lowest 0.600 in epoch 2, whose architecture was chosen;
      entropy of normal cell from 2.20 to 2.20 nats; share of skips of normal cell from 0.250 to 0.250.'

    References:
      Share of skips and dominant eigenvalue as signs of collapse: Zela et al. 2020, https://arxiv.org/abs/1909.09656.
    """
    _check(lines, ("epoch", "validation_loss", "entropy", "skip_share", "operations"))
    epochs = np.array([line["epoch"] + 1 for line in lines], float)
    losses = _numbers(line["validation_loss"] for line in lines)
    sharpness = _numbers(line.get("eigenvalue") for line in lines)
    tables = [str(name) for name in lines[0]["entropy"]]
    entropies = {name: _numbers(line["entropy"].get(name) for line in lines) for name in tables}
    skips = {name: _numbers(line["skip_share"].get(name) for line in lines) for name in tables}
    best = None if chosen is None else chosen + 1
    if best is None and np.isfinite(losses).any():
        best = int(epochs[int(np.nanargmin(losses))])
    names = [str(TABLES.get(name, name)) for name in tables]
    panels = [
        ("validation loss", {"": losses}),
        ("entropy of mixing weights (nats)", entropies),
        ("share of skips", skips),
    ]
    if np.isfinite(sharpness).any():
        panels.append(("dominant Hessian eigenvalue", {"": sharpness}))
    even = math.log(len(lines[0]["operations"]))

    def plot(figure: Canvas, palette: Palette) -> None:
        grid = figure.subplots(2, 2, sharex=True, squeeze=False)
        for axes in grid.flat[len(panels) :]:
            axes.set_visible(False)
        for axes, (title, curves) in zip(grid.flat, panels, strict=False):
            for index, values in enumerate(curves.values()):
                style = palette.style(index) if len(curves) > 1 else {"color": palette.ink}
                seen = np.isfinite(values)
                dots = {"marker": "o", "markersize": 3.5} if seen.sum() <= 30 else {}
                axes.plot(epochs[seen], values[seen], **style, **dots)
            if curves is entropies:
                reference_line(axes, palette, even, upright=False)
                axes.annotate(
                    "all operations alike",
                    (1, even),
                    (-2, 2),
                    xycoords=("axes fraction", "data"),
                    textcoords="offset points",
                    ha="right",
                    va="bottom",
                    fontsize=8.5,
                    bbox={"facecolor": palette.background, "edgecolor": "none", "alpha": 0.8, "pad": 0.5},
                )
                span = max(even - min((v[np.isfinite(v)].min() for v in curves.values()), default=0.0), 0.01 * even)
                axes.set_ylim(even - 1.1 * span, even + 0.25 * span)
            if curves is skips:
                axes.set_ylim(-0.03, 1.03)
            if best is not None:
                reference_line(axes, palette, best)
            axes.set_title(title, fontsize=9.5, loc="left")
            axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True, min_n_ticks=1))
            axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
        below = [axes for place, axes in enumerate(grid.flat) if place < len(panels) <= place + 2]
        for axes in below:
            axes.set_xlabel("epoch")
            axes.tick_params(labelbottom=True)
        if best is not None:
            grid[0, 0].annotate(
                f"chosen: {best}",
                (best, 1),
                (-4 if best > epochs.mean() else 4, -3),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                ha="right" if best > epochs.mean() else "left",
                va="top",
                fontsize=8.5,
                bbox={"facecolor": palette.background, "edgecolor": "none", "alpha": 0.8, "pad": 1.0},
            )
        if len(names) > 1:
            handles = [Line2D([], [], **palette.style(index)) for index in range(len(names))]
            figure.legend(handles, names, loc="outside upper left", ncols=len(names), borderaxespad=0.2)

    told = [f"validation loss from {_ends(losses)}"]
    if best is not None:
        where = epochs == best
        value = format_number(float(losses[where][0])) if where.any() else "–"
        lowest = "lowest " if chosen is None else ""
        told[0] += f", {lowest}{value} in epoch {best}, whose architecture was chosen"
    told += [f"entropy of {name} from {_ends(v)} nats" for name, v in zip(names, entropies.values(), strict=True)]
    told += [f"share of skips of {name} from {_ends(v)}" for name, v in zip(names, skips.values(), strict=True)]
    if len(panels) > 3:
        told.append(f"dominant Hessian eigenvalue from {_ends(sharpness)}")
    alt = f"Search of {counted(len(lines), 'epoch')}: {'; '.join(told)}."
    height = 4.3 + (0.25 if len(names) > 1 else 0.0)
    return draw_literally(plot, size=(WIDTH, height), caption=caption, alt=alt)


def edge_weights_figure(
    lines: Sequence[Mapping[str, Any]], table: str, *, inputs: Sequence[str], caption: str
) -> Figure:
    """The strongest mixing weight of every edge over the epochs of a search, and the operation that has it at the end.

    `none` competes for weight but is never chosen, so that it is left out here. A gap stands before an epoch in which
    another operation is the strongest than before, and operations on edges of the last genotype are set in bold.

    Args:
      lines: of `architecture.jsonl`: `epoch`, `operations`, `weights` by table, softmaxed, shape `(edges, operations)`,
        and `genotype` where edges that were kept are to be marked.
      table: of which cell, as "normal".
      inputs: names of its inputs.
      caption: says of which search.

    Raises:
      ValueError: no line, a line that lacks one of these, or edges that no number of nodes has.

    Example:
      >>> weights = {"normal": [[0.2, 0.3, 0.5], [0.6, 0.3, 0.1]]}
      >>> line = {"epoch": 0, "operations": ["none", "skip", "conv3"], "weights": weights}
      >>> edge_weights_figure([line], "normal", inputs=["PET stem", "CT stem"], caption="Fold 1.").alt
      'Strongest operation of every edge of the normal cell after 1 epoch: PET stem to node 2 conv 3 (0.500), CT stem
      to node 2 skip (0.300).'
    """
    _check(lines, ("epoch", "operations", "weights"))
    operations = list(lines[0]["operations"])
    for number, line in enumerate(lines):
        if table not in line["weights"]:
            raise ValueError(
                f"line {number + 1} of the search has weights of {listed(line['weights'])}; expected {table!r} too."
            )
    weights = np.array([line["weights"][table] for line in lines], float)
    edges = _edge_ends(weights.shape[1], len(inputs))
    if weights.shape[2] != len(operations):
        raise ValueError(
            f"the search has {counted(weights.shape[2], 'weight')} an edge in {table!r} and "
            f"{counted(len(operations), 'operation')}; they must agree."
        )
    candidates = [place for place, name in enumerate(operations) if name != "none"]
    strongest = np.array(candidates)[weights[:, :, candidates].argmax(2)]
    strength = weights[:, :, candidates].max(2)
    name = str(TABLES.get(table, table))
    labels = [f"{inputs[source] if source < len(inputs) else f'node {source}'} → {node}" for source, node in edges]
    kept = _kept(lines[-1].get("genotype"), table, len(inputs))
    faintest = min(1 / len(operations), float(strength.min()))
    epochs = np.array([line["epoch"] + 1 for line in lines], float)
    chosen = [operation_label(operations[place]) for place in strongest[-1]]

    def plot(figure: Canvas, palette: Palette) -> None:
        axes = figure.subplots()
        colours = mpl.colormaps[palette.sequential]
        sides = (epochs[0] - 0.5, epochs[-1] + 0.5, len(edges) - 0.5, -0.5)
        image = axes.imshow(
            strength.T, cmap=colours, vmin=faintest, aspect="auto", extent=sides, interpolation="nearest"
        )
        for edge, epoch in zip(*np.nonzero(np.diff(strongest, axis=0).T), strict=True):
            at = (epochs[epoch] + epochs[epoch + 1]) / 2
            axes.plot([at, at], [edge - 0.42, edge + 0.42], color=palette.background, linewidth=2)
        for edge in range(1, len(edges)):
            apart = 2.5 if edges[edge][1] != edges[edge - 1][1] else 0.8
            axes.axhline(edge - 0.5, color=palette.background, linewidth=apart)
        axes.set_yticks(range(len(edges)), labels, fontsize=8.5)
        for edge, ends in enumerate(edges):
            axes.text(
                1.02,
                edge,
                chosen[edge],
                transform=axes.get_yaxis_transform(),
                va="center",
                fontsize=8.5,
                fontweight="bold" if ends in kept else "normal",
            )
        axes.set(xlabel="epoch", ylim=(len(edges) - 0.5, -0.5), xlim=sides[:2])
        axes.set_ylabel("edge")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
        axes.tick_params(length=0)
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        bar = figure.colorbar(
            image, ax=axes, label="largest weight", location="top", aspect=40, pad=0.02, fraction=0.05
        )
        bar.ax.spines[:].set_visible(False)
        bar.ax.tick_params(length=0)

    told = [
        f"{label.replace('→', 'to node')} {operation} ({format_number(float(value))})"
        for label, operation, value in zip(labels, chosen, strength[-1], strict=True)
    ]
    after = counted(len(lines), "epoch")
    alt = f"Strongest operation of every edge of the {name} after {after}: {', '.join(told)}."
    caption = f"{caption} A gap: from here on another operation is the strongest.".strip()
    if kept:
        caption += " Bold: edges of the last genotype."
    return draw_literally(plot, size=(WIDTH, 1.25 + 0.2 * len(edges)), caption=caption, alt=alt)


def _check(lines: Sequence[Mapping[str, Any]], wanted: Sequence[str]) -> None:
    if not lines:
        raise ValueError("a figure of a search without epochs; expected the lines of its architecture.jsonl.")
    for number, line in enumerate(lines):
        missing = [key for key in wanted if key not in line]
        if missing:
            raise ValueError(
                f"line {number + 1} of the search lacks {listed(missing)}; it has {listed(line)}. Expected a line of "
                "architecture.jsonl."
            )


def _numbers(values: Any) -> Float[np.ndarray, "e"]:
    """Numbers over the epochs; NaN where there is none."""
    return np.array([math.nan if value is None else value for value in values], float)


def _ends(values: Float[np.ndarray, "e"]) -> str:
    """First and last number, as "0.700 to 0.600"."""
    finite = values[np.isfinite(values)]
    return f"{format_number(float(finite[0]))} to {format_number(float(finite[-1]))}" if finite.size else "– to –"


def _edge_ends(count: int, inputs: int) -> list[tuple[int, int]]:
    """Source and node of every edge, node by node."""
    edges: list[tuple[int, int]] = []
    node = inputs
    while len(edges) < count:
        edges += [(source, node) for source in range(node)]
        node += 1
    if len(edges) != count or not count:
        raise ValueError(
            f"{counted(count, 'edge')} of a cell with {counted(inputs, 'input')}; expected {inputs}, "
            f"{2 * inputs + 1}, {3 * inputs + 3} or another sum over nodes. Name the inputs of this cell."
        )
    return edges


def _kept(genotype: Mapping[str, Any] | None, table: str, inputs: int) -> set[tuple[int, int]]:
    """Source and node of the edges that a genotype keeps."""
    edges = [] if genotype is None else genotype.get(table, [])
    return {(int(source), inputs + place // KEPT) for place, (_, source) in enumerate(edges)}
