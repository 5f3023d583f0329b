"""Figures of an architecture search: what they say, where lines end, and what they refuse."""

import html
import itertools
import json
import re
from xml.dom import minidom

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.patches import FancyBboxPatch, PathPatch, Polygon

from fusion_jax.reporting import architecture
from fusion_jax.reporting.architecture import (
    CellDrawing,
    cell_figure,
    edge_weights_figure,
    genotype_figure,
    operation_label,
    search_figure,
)
from fusion_jax.reporting.search import write_search_report

# Liu et al. 2018: the cells that second-order search found on CIFAR-10.
NORMAL = [("sep3", 0), ("sep3", 1), ("sep3", 0), ("sep3", 1), ("sep3", 1), ("skip", 0), ("skip", 0), ("dil3", 2)]
REDUCE = [
    ("max_pool", 0),
    ("max_pool", 1),
    ("skip", 2),
    ("max_pool", 1),
    ("max_pool", 0),
    ("skip", 2),
    ("skip", 2),
    ("max_pool", 1),
]
THREE = [("conv5", 2), ("conv3", 0), ("skip", 1), ("dil5", 3)]
STEMS = ("PET stem", "CT stem")
OPERATIONS = ("none", "skip", "conv3", "sep5")


def texts(svg):
    """What a figure says: its text is drawn as outlines, each after a comment that holds it."""
    return [html.unescape(text) for text in re.findall(r"<!-- (.*?) -->", svg)]


def normal():
    return cell_figure([CellDrawing("Normal cell", NORMAL, STEMS)], caption="Fold 1.")


def both():
    cells = [CellDrawing("Normal cell", NORMAL, STEMS), CellDrawing("Reduction cell", REDUCE, ("a", "b"), (3, 5))]
    return cell_figure(cells, caption="Fold 1.")


def three():
    return cell_figure([CellDrawing("First cell", THREE, ("PET", "CT", "T2 $ MRI"))], caption="Fold 1.")


def lines(epochs=6, **more):
    """A search in which the entropy falls and two edges change their mind."""
    found = []
    for epoch in range(epochs):
        strong = 0.25 + 0.1 * epoch
        row = [(1 - strong) / 3] * 4
        weights = []
        for edge in range(5):
            here = list(row)
            here[3 if edge == 1 and epoch >= 4 else 2] = strong
            weights.append(here)
        weights[4] = [0.94, 0.02, 0.01, 0.03]  # nothing but `none`
        entropy = float(-(np.array(weights) * np.log(weights)).sum(1).mean())
        found.append(
            {
                "epoch": epoch,
                "validation_loss": [0.7, 0.6, 0.5, 0.55, 0.6, 0.65][epoch % 6],
                "entropy": {"normal": entropy, "reduce": 1.3},
                "skip_share": {"normal": 0.25, "reduce": 0.5},
                "eigenvalue": 0.1 * epoch if epoch % 2 == 0 else None,
                "operations": list(OPERATIONS),
                "weights": {"normal": weights, "reduce": weights},
                "genotype": {"normal": [["conv3", 0], ["sep5", 1], ["conv3", 0], ["sep5", 2]]},
            }
            | more
        )
    return found


def search():
    return search_figure(lines(), caption="Fold 1.")


def weights():
    return edge_weights_figure(lines(), "normal", inputs=STEMS, caption="Fold 1.")


@pytest.mark.parametrize("make", [normal, both, three, search, weights])
def test_a_figure_is_the_same_in_both_palettes_and_every_time(make):
    figure = make()
    for svg, background in ((figure.light, "#ffffff"), (figure.dark, "#14171b")):
        assert minidom.parseString(svg).getElementsByTagName("svg")  # noqa: S318
        assert background in svg
    assert texts(figure.light) == texts(figure.dark)
    assert figure.caption.startswith("Fold 1.")
    with mpl.rc_context({"font.size": 30, "text.parse_math": True}):
        assert make() == figure


def test_a_cell_names_inputs_operations_and_nodes_by_the_numbers_of_its_genotype():
    figure = normal()
    said = texts(figure.light)
    assert {"Normal cell", "PET stem", "CT stem", "output"} <= set(said)
    assert sorted(said).count("sep conv 3") == 5
    assert said.count("skip") == 2
    assert said.count("dil conv 3") == 1
    assert [text for text in said if text.isdigit()] == ["2", "3", "4", "5"]
    assert figure.alt == (
        "Normal cell: node 2 = sep conv 3 of PET stem + sep conv 3 of CT stem; node 3 = sep conv 3 of PET stem + sep "
        "conv 3 of CT stem; node 4 = sep conv 3 of CT stem + skip of PET stem; node 5 = skip of PET stem + dil conv 3 "
        "of node 2; output = nodes 2, 3, 4, 5."
    )
    assert "without weights" in figure.caption


def test_a_first_cell_of_three_inputs_counts_its_nodes_from_three():
    figure = three()
    assert [text for text in texts(figure.light) if text.isdigit()] == ["3", "4"]
    assert "T2 $ MRI" in texts(figure.light)
    assert "node 4 = skip of CT + dil conv 5 of node 3" in figure.alt


def test_only_concatenated_nodes_lead_to_the_output():
    assert both().alt.endswith("output = nodes 3, 5.")
    from_input = CellDrawing("Cell", [("conv3", 0), ("conv5", 1)], STEMS, concat=(1, 2))
    assert cell_figure([from_input], caption="").alt.endswith("output = CT stem + node 2.")
    assert cell_figure([from_input], caption="").caption == ""  # nothing dashed to explain


class Drawn:
    """The artists of a cell, taken from its axes before they become outlines."""

    def __init__(self, monkeypatch, cells):
        real = architecture.draw_literally

        def spy(plot, **keywords):
            self.size = keywords["size"]

            def watched(figure, palette):
                plot(figure, palette)
                [self.axes] = figure.axes

            return real(watched, **keywords)

        monkeypatch.setattr(architecture, "draw_literally", spy)
        cell_figure(cells, caption="")
        patches = self.axes.patches
        seen = [patch for patch in patches if isinstance(patch, PathPatch) and patch.get_linewidth() < 2]
        self.paths = [np.asarray(patch.get_path().vertices) for patch in seen]
        self.heads = [patch.get_xy() for patch in patches if isinstance(patch, Polygon)]
        self.boxes = [patch.get_window_extent().transformed(self.axes.transData.inverted()) for patch in patches
                      if isinstance(patch, FancyBboxPatch)]  # fmt: skip


@pytest.mark.parametrize(
    "cell",
    [
        CellDrawing("A", NORMAL, STEMS),
        CellDrawing("B", REDUCE, STEMS, (3, 5)),
        CellDrawing("C", THREE, ("a", "b", "c")),
    ],
)
def test_every_edge_ends_at_its_operation_and_no_line_runs_through_a_box(monkeypatch, cell):
    drawn = Drawn(monkeypatch, [cell])
    nodes = len(cell.edges) // 2
    outputs = nodes if cell.concat is None else len(cell.concat)
    assert len(drawn.paths) == len(cell.edges) + outputs
    assert len(drawn.heads) == len(cell.edges)
    assert len(drawn.boxes) == len(cell.inputs) + len(cell.edges) + 1
    lefts = [(box.x0, (box.y0 + box.y1) / 2) for box in drawn.boxes]
    for head in drawn.heads:
        tip = head[:, 0].max(), head[head[:, 0].argmax(), 1]
        assert min(np.hypot(x - tip[0], y - tip[1]) for x, y in lefts) < 0.02
    for path in drawn.paths:
        # All legs are upright or level, but for round corners.
        for (x0, y0), (x1, y1) in itertools.pairwise(path):
            low, high = (min(x0, x1), min(y0, y1)), (max(x0, x1), max(y0, y1))
            for box in drawn.boxes:
                inside = low[0] < box.x1 - 0.03 and high[0] > box.x0 + 0.03
                upper, lower = min(box.y0, box.y1), max(box.y0, box.y1)
                assert not (inside and low[1] < lower - 0.03 and high[1] > upper + 0.03), (path, box)


def test_everything_lies_on_the_page_and_boxes_do_not_touch(monkeypatch):
    cells = [CellDrawing("A", NORMAL, STEMS), CellDrawing("B", REDUCE, STEMS), CellDrawing("C", THREE, ("a", "b", "c"))]
    drawn = Drawn(monkeypatch, cells)
    width, height = drawn.size
    for box in drawn.boxes:
        assert 0 < box.x0 < box.x1 < width
        assert 0 < min(box.y0, box.y1) < max(box.y0, box.y1) < height
    for number, one in enumerate(drawn.boxes):
        for other in drawn.boxes[:number]:
            across = min(one.x1, other.x1) - max(one.x0, other.x0)
            along = min(max(one.y0, one.y1), max(other.y0, other.y1)) - max(
                min(one.y0, one.y1), min(other.y0, other.y1)
            )
            assert min(across, along) < 0


def test_small_cells_stand_beside_each_other_and_large_ones_below(monkeypatch):
    small = CellDrawing("A", [("conv3", 0), ("skip", 1)], STEMS)
    beside = Drawn(monkeypatch, [small, small]).size
    chain = CellDrawing("B", [("conv3", 0), ("sep3", 1), ("skip", 0), ("dil5", 2), ("conv5", 3), ("skip", 1)], STEMS)
    alone, below = Drawn(monkeypatch, [chain]).size, Drawn(monkeypatch, [chain, chain]).size
    assert beside[0] > 1.9 * Drawn(monkeypatch, [small]).size[0]
    assert below[0] == alone[0]
    assert below[1] > 1.9 * alone[1]


def test_of_a_genotype_the_cell_that_comes_first_takes_the_sources():
    two = {"normal": NORMAL, "normal_concat": [2, 4], "reduce": REDUCE, "first": [], "inputs": 2}
    alt = genotype_figure(two, inputs=STEMS, caption="").alt
    assert "Normal cell: node 2 = sep conv 3 of PET stem" in alt
    assert "output = nodes 2, 4. Reduction cell: node 2 = max pool of cell before last + max pool of last cell" in alt
    three = two | {"first": THREE, "first_concat": [3, 4]}
    alt = genotype_figure(three, inputs=("PET", "CT", "MRI"), caption="").alt
    assert alt.startswith("First cell: node 3 = conv 5 of MRI + conv 3 of PET; ")
    assert "Normal cell: node 2 = sep conv 3 of cell before last" in alt
    with pytest.raises(ValueError, match="a genotype with inputs has no cell"):
        genotype_figure({"inputs": 2}, inputs=STEMS, caption="")


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ([], "a figure of no cells"),
        ([CellDrawing("Normal cell", [], STEMS)], "Normal cell: 0 edges; expected two"),
        ([CellDrawing("Normal cell", NORMAL[:3], STEMS)], "Normal cell: 3 edges; expected two"),
        (
            [CellDrawing("C", [("conv3", 0), ("sep5", 2)], STEMS)],
            r"C: node 2 takes sep conv 5 of 2; expected .* 0 to 1",
        ),
        ([CellDrawing("C", NORMAL, STEMS, concat=(6,))], r"C: the output concatenates \[6\]; expected .* 0 to 5"),
        ([CellDrawing("C", NORMAL, STEMS, concat=())], r"C: the output concatenates \[\]"),
    ],
)
def test_what_is_no_cell_is_refused(cells, message):
    with pytest.raises(ValueError, match=message):
        cell_figure(cells, caption="")


def test_operations_have_names_that_can_be_read():
    labels = [operation_label(name) for name in ("conv3", "conv5", "sep3", "dil5", "avg_pool", "none", "shuffle_2")]
    assert labels == ["conv 3", "conv 5", "sep conv 3", "dil conv 5", "avg pool", "none", "shuffle 2"]


def test_a_search_tells_its_ends_and_its_best_epoch():
    figure = search()
    assert figure.alt.startswith(
        "Search of 6 epochs: validation loss from 0.700 to 0.650, lowest 0.500 in epoch 3, whose architecture was "
        "chosen; entropy of normal cell from 1.1"
    )
    assert figure.alt.endswith(
        "share of skips of reduction cell from 0.500 to 0.500; dominant Hessian eigenvalue from 0 to 0.400."
    )
    said = texts(figure.light)
    assert {"chosen: 3", "normal cell", "reduction cell", "all operations alike"} <= set(said)
    assert "dominant Hessian eigenvalue" in said


def test_an_epoch_chosen_otherwise_is_marked():
    figure = search_figure(lines(), caption="", chosen=5)
    assert "chosen: 6" in texts(figure.light)
    assert ", 0.650 in epoch 6, whose architecture was chosen" in figure.alt


def test_a_search_without_eigenvalues_or_with_one_table_has_no_panel_and_no_legend_for_them():
    single = lines(1, entropy={"normal": 1.2}, skip_share={"normal": 0.0}, eigenvalue=None)
    said = texts(search_figure(single, caption="").light)
    assert "dominant Hessian eigenvalue" not in said
    assert "normal cell" not in said
    assert said.count("epoch") == 2  # below the lowest panel of each column


def test_a_search_whose_loss_was_never_finite_has_no_chosen_epoch():
    figure = search_figure(lines(2, validation_loss=None), caption="")
    assert "validation loss from – to –;" in figure.alt
    assert not [text for text in texts(figure.light) if text.startswith("chosen")]


def test_edges_show_the_operation_that_is_strongest_at_the_end_but_never_none():
    figure = weights()
    said = texts(figure.light)
    edges = ["PET stem → 2", "CT stem → 2", "PET stem → 3", "CT stem → 3", "node 2 → 3"]
    assert [text for text in said if "→" in text] == edges
    assert [text for text in said if text in ("conv 3", "sep conv 5", "skip", "none")] == [
        "conv 3",
        "sep conv 5",
        "conv 3",
        "conv 3",
        "sep conv 5",
    ]
    assert figure.alt.endswith("CT stem to node 3 conv 3 (0.750), node 2 to node 3 sep conv 5 (0.0300).")
    assert figure.caption.endswith("Bold: edges of the last genotype.")
    assert "Bold" not in edge_weights_figure(lines(genotype=None), "normal", inputs=STEMS, caption="").caption


@pytest.mark.parametrize(
    ("change", "keywords", "message"),
    [
        ({}, {"inputs": ("a", "b", "c")}, r"5 edges of a cell with 3 inputs; expected 3, 7, 12"),
        ({"operations": ["none", "skip"]}, {}, r"4 weights an edge in 'normal' and 2 operations"),
        ({"weights": {"reduce": [[1.0]]}}, {}, r"line 1 .* weights of reduce; expected 'normal' too"),
    ],
)
def test_weights_that_fit_no_cell_are_refused(change, keywords, message):
    with pytest.raises(ValueError, match=message):
        edge_weights_figure(lines(**change), "normal", **{"inputs": STEMS, "caption": ""} | keywords)


def test_lines_that_lack_something_are_named():
    with pytest.raises(ValueError, match="without epochs"):
        search_figure([], caption="")
    broken = lines()
    del broken[3]["entropy"], broken[3]["skip_share"]
    with pytest.raises(ValueError, match=r"line 4 of the search lacks entropy, skip_share; it has epoch"):
        search_figure(broken, caption="")


@pytest.fixture
def report(tmp_path):
    """Writes the report of a search of three epochs, the later two of which have collapsed, and returns its text."""

    def written(genotype, images, tables=("normal",), **facts):
        def told(epoch):
            weights = {name: [[0.1, 0.2, 0.3, 0.4]] * (7 if name == "first" else 5) for name in tables}
            return {
                "epoch": epoch,
                "validation_loss": 0.7 - 0.1 * epoch,
                "weights": weights,
                "entropy": dict.fromkeys(tables, 1.2),
                "skip_share": dict.fromkeys(tables, 0.0),
                "operations": OPERATIONS,
                "genotype": genotype | {"normal": [["skip", 0]] * 2} if epoch else genotype,
            }

        own = [told(epoch) for epoch in range(3)]
        facts = {"epoch": 0, "skip_share": {"normal": 0.0}, "validation_loss": 0.7} | facts
        (tmp_path / "genotype.json").write_text(json.dumps({"genotype": genotype, "facts": facts}))
        (tmp_path / "architecture.jsonl").write_text("".join(json.dumps(line) + "\n" for line in own))
        path = write_search_report(tmp_path, images=images, dot="", record={})
        return html.unescape(path.read_text())

    return written


TWO = {"normal": [["conv3", 0], ["sep5", 1], ["conv3", 0], ["conv3", 2]], "reduce": []}


def test_a_report_counts_epochs_from_one_in_words_and_figures(report):
    said = report(TWO, STEMS)
    assert "The cells of epoch 1 were kept" in said
    assert "Cells derived from epoch 1 of 3." in said
    assert "0.700 in epoch 1, whose architecture was chosen" in said


def test_the_axis_of_a_search_begins_with_its_first_epoch(monkeypatch):
    seen = []
    real = architecture.draw_literally

    def spy(plot, **keywords):
        def watched(figure, palette):
            plot(figure, palette)
            seen.append(figure.axes[0])

        return real(watched, **keywords)

    monkeypatch.setattr(architecture, "draw_literally", spy)
    search_figure(lines(), caption="")
    assert list(seen[-1].lines[0].get_xdata()) == [1, 2, 3, 4, 5, 6]
    edge_weights_figure(lines(), "normal", inputs=STEMS, caption="")
    assert seen[-1].get_xlim() == (0.5, 6.5)


def test_a_report_says_what_its_nodes_count_from(report):
    assert "4 edges; of every cell, nodes 0 and 1 are inputs." in report(TWO, STEMS)
    three = {"first": THREE, "first_concat": [3, 4], "normal": [], "reduce": [], "inputs": 3}
    images = ("pet", "ct", "mri")
    assert "4 edges; of the first cell, nodes 0 to 2 are inputs." in report(three, images, ("first",))
    said = report(three | {"reduce": REDUCE}, images, ("first", "reduce"))
    assert "12 edges; of the first cell, nodes 0 to 2 are inputs, of the others 0 and 1." in said


@pytest.mark.parametrize(
    ("collapse", "genotype", "words"),
    [
        ("none", TWO, "was the smallest: 0.700"),
        ("skips", TWO, "smallest among those that the rule on skips admits (1 of 3 epochs): 0.700"),
        (
            "skips",
            TWO | {"normal": [["skip", 0], ["skip", 1]]},
            "smallest (the rule on skips admits none of the 3 epochs): 0.700",
        ),
    ],
)
def test_a_loss_is_called_the_smallest_of_the_epochs_that_the_rule_admits(report, collapse, genotype, words):
    assert words in report(genotype, STEMS, search={"collapse": collapse})
