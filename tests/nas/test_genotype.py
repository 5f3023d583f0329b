"""Genotypes: what logits derive to, what files hold, and what is refused on the way back."""

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion_jax.nas.genotype import (
    DARTS_OPERATIONS,
    DARTS_V1,
    DARTS_V2,
    OPERATIONS,
    Genotype,
    cell_inputs,
    derive,
    dot,
    edge_count,
    edges_of,
    genotype_from_json,
    genotype_to_json,
    random_genotype,
    read_genotype,
    skip_share,
    uses_inputs,
    write_genotype,
)

SMALL = ("none", "skip", "conv3")


def logits(rows, operations=SMALL):
    """Logits whose softmax on each edge favours one operation by so much."""
    alpha = np.zeros((len(rows), len(operations)))
    for row, (name, height) in enumerate(rows):
        alpha[row, operations.index(name)] = height
    return alpha


# Derivation


def test_a_node_keeps_its_two_strongest_edges_and_never_none():
    # Node 2 has two edges and keeps both. At node 3 the edge from 0 is nearly all "none": of what is left of it, both
    # others are stronger.
    alpha = logits([("conv3", 1.0), ("skip", 2.0), ("none", 9.0), ("skip", 0.5), ("conv3", 0.1)])
    found = derive({"normal": alpha}, SMALL, nodes=2)
    assert found.normal == (("skip", 1), ("conv3", 0), ("skip", 1), ("conv3", 2))
    assert found.normal_concat == (2, 3)
    assert (found.reduce, found.first, found.inputs) == ((), (), 2)


def test_none_competes_in_the_softmax():
    # Both edges have the same logit for conv3, but on the second "none" takes most of the weight.
    alpha = np.array([[0.0, 0.0, 1.0], [5.0, 0.0, 1.0], [0.0, 0.0, 0.5]])
    found = derive({"first": np.vstack([alpha])}, SMALL, nodes=1)
    assert found.first == (("conv3", 0), ("conv3", 2))
    assert (found.inputs, found.first_concat) == (3, (3,))


def test_among_equals_the_first_edge_and_the_first_operation_win():
    found = derive({"normal": np.zeros((5, 3))}, SMALL, nodes=2)
    assert found.normal == (("skip", 0), ("skip", 1)) * 2


def test_edge_weights_count_within_their_node():
    alpha = np.zeros((5, 3))
    edges = np.array([9.0, 9.0, 0.0, 3.0, 1.0])
    found = derive({"normal": alpha, "normal_edges": edges}, SMALL, nodes=2)
    assert found.normal == (("skip", 0), ("skip", 1), ("skip", 1), ("skip", 2))


def test_derivation_is_that_of_the_published_code_written_out():
    rng = np.random.default_rng(0)
    alpha = rng.normal(size=(14, 8))
    weights = np.exp(alpha) / np.exp(alpha).sum(1, keepdims=True)
    expected, start = [], 0
    for node in range(4):
        rows = weights[start : start + 2 + node]
        start += 2 + node
        for source in sorted(range(2 + node), key=lambda i: -max(rows[i][k] for k in range(1, 8)))[:2]:
            best = max(range(1, 8), key=lambda k: rows[source][k])
            expected.append((DARTS_OPERATIONS[best], source))
    assert derive({"normal": alpha, "reduce": alpha}, DARTS_OPERATIONS, nodes=4).normal == tuple(expected)


@settings(max_examples=30)
@given(st.integers(1, 4), st.integers(2, 4), st.integers(0, 2**32 - 1))
def test_what_is_derived_or_drawn_is_a_cell_that_comes_back_from_json(nodes, inputs, seed):
    rng = np.random.default_rng(seed)
    table = {"normal": rng.normal(size=(edge_count(nodes), len(OPERATIONS)))}
    if inputs > 2:
        table["first"] = rng.normal(size=(edge_count(nodes, inputs), len(OPERATIONS)))
    for genotype in (derive(table, OPERATIONS, nodes=nodes), random_genotype(rng, nodes, OPERATIONS, inputs)):
        assert genotype.inputs == inputs
        assert genotype_from_json(json.loads(json.dumps(genotype_to_json(genotype)))) == genotype
        for cell, count in ((genotype.normal, 2), (genotype.first or genotype.normal, inputs)):
            for node in range(nodes):
                sources = [source for _, source in cell[2 * node : 2 * node + 2]]
                assert len(set(sources)) == 2
                assert max(sources) < count + node


def test_random_cells_are_drawn_again_by_the_same_seed_and_uniformly():
    first, again, other = (random_genotype(np.random.default_rng(seed), 4) for seed in (0, 0, 1))
    assert first == again != other
    rng = np.random.default_rng(2)
    drawn = [edge for _ in range(500) for edge in random_genotype(rng, 1, DARTS_OPERATIONS).normal]
    counts = {name: sum(operation == name for operation, _ in drawn) for name in DARTS_OPERATIONS}
    assert counts.pop("none") == 0
    assert min(counts.values()) > 100  # 1000 / 7 = 143, with a deviation of 11
    assert sum(source == 0 for _, source in drawn[::2]) == pytest.approx(250, abs=40)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"normal": np.zeros((14, 3))}, "14 rows is that of no cell with 3 nodes: two inputs have 9, three 12"),
        ({"normal": np.zeros((9, 4))}, r"shape \(9, 4\); expected one row an edge and 3 columns, one for each of none"),
        ({"normal": np.full((9, 3), np.nan)}, "holds NaN or infinities"),
        ({"normal": np.zeros((9, 3)), "normal_edges": np.zeros(8)}, r"shape \(8,\); expected \(9,\)"),
        ({"usual": np.zeros((9, 3))}, "no cell is called usual"),
    ],
)
def test_tables_that_fit_no_cell_are_refused(table, message):
    with pytest.raises(ValueError, match=message):
        derive(table, SMALL, nodes=3)


def test_edges_are_counted_and_listed_in_the_order_of_the_tables():
    assert edges_of(2, 3) == ((0, 3), (1, 3), (2, 3), (0, 4), (1, 4), (2, 4), (3, 4))
    for nodes in range(1, 6):
        for inputs in range(1, 5):
            assert len(edges_of(nodes, inputs)) == edge_count(nodes, inputs)
            assert cell_inputs(edge_count(nodes, inputs), nodes) == inputs


# What a cell is made of


def test_inputs_that_reach_the_output():
    assert uses_inputs(DARTS_V2.normal) == {0, 1}
    blind = (("skip", 0), ("conv3", 0), ("sep3", 2), ("skip", 0))
    assert uses_inputs(blind) == {0}
    # The second input enters a node that nothing reads and that is not concatenated.
    aside = (("skip", 1), ("conv3", 1), ("sep3", 0), ("skip", 0))
    assert uses_inputs(aside, concat=(3,)) == {0}
    assert uses_inputs((("skip", 2), ("conv3", 1)), inputs=3) == {1, 2}


def test_share_of_skips():
    assert skip_share(DARTS_V1.normal) == 3 / 8
    assert skip_share(DARTS_V1.reduce) == 3 / 8


# Files


def test_a_genotype_comes_back_from_its_file_with_or_without_facts(tmp_path):
    path = tmp_path / "found" / "genotype.json"
    genotype = random_genotype(np.random.default_rng(0), 3, inputs=4)
    write_genotype(path, genotype, {"epoch": 70, "validation_loss": 0.5})
    assert read_genotype(path) == genotype
    assert json.loads(path.read_text())["facts"]["epoch"] == 70
    path.write_text(json.dumps(genotype_to_json(genotype)))
    assert read_genotype(path) == genotype
    # By hand: two lists suffice.
    path.write_text('{"normal": [["conv3", 0], ["skip", 1]], "reduce": [["skip", 0], ["skip", 1]]}')
    assert read_genotype(path).normal_concat == (2,)


def changed(**entries):
    return {**genotype_to_json(DARTS_V2), **entries}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "g: found a list; expected an object with the cells first, normal, reduce"),
        (changed(cells=[]), "g: unknown entry cells"),
        (changed(normal=[["sep7", 0], ["skip", 1]]), r"g: normal\[0\]: unknown operation 'sep7'; expected one of skip"),
        (changed(normal=[["none", 0], ["skip", 1]]), r"normal\[0\]: unknown operation 'none'"),
        (changed(reduce=[["skip", 0], ["skip", 2]]), r"reduce\[1\] comes from node 2; node 2 can take from 0 to 1"),
        (changed(reduce=[["skip", 0], ["skip", -1]]), r"reduce\[1\] comes from node -1"),
        (changed(reduce=[["skip", 0], ["skip", True]]), r"reduce\[1\] comes from node True"),
        (changed(normal=[["skip", 0]]), "normal has 1 edge; expected two for every node"),
        (changed(normal=[["skip", 0], "skip"]), r"normal\[1\] is 'skip'; expected \[operation, node\]"),
        (changed(normal="skip"), "normal is text; expected a list of edges"),
        (changed(normal_concat=[6]), r"normal_concat is \[6\]; expected some of the nodes 2 to 5"),
        (changed(normal_concat=[]), "normal_concat is"),
        (changed(normal=[], normal_concat=[]), "no normal cell"),
        (changed(inputs=3), "inputs is 3, and there is no cell 'first'"),
        (changed(inputs="2"), "inputs is '2'"),
        (changed(first=[["skip", 0], ["skip", 1]], first_concat=[2]), "inputs is 2, and there is a cell 'first'"),
    ],
)
def test_what_would_not_build_is_refused_by_place(value, message):
    with pytest.raises(ValueError, match=message):
        genotype_from_json(value, "g")


def test_files_that_hold_no_genotype_are_named(tmp_path):
    path = tmp_path / "genotype.json"
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_genotype(path)
    path.write_text("{")
    with pytest.raises(ValueError, match=r"genotype\.json: line 1 is no JSON"):
        read_genotype(path)
    path.write_text('{"genotype": {"normal": 3}}')
    with pytest.raises(ValueError, match=r"genotype\.json: normal is a number"):
        read_genotype(path)


# Drawing


def test_dot_has_every_edge_once_and_the_names_of_the_first_inputs():
    text = dot(DARTS_V2, ("pet", 'c"t'))
    assert text.count(" -> ") == 2 * (8 + 4)
    assert 'normal_0 [label="pet"]' in text
    assert r'normal_1 [label="c\"t"]' in text
    assert 'reduce_0 [label="cell before last"]' in text
    assert text.count("{") == text.count("}")
    drawn = dot(random_genotype(np.random.default_rng(0), 2, inputs=3), ("pet", "ct", "mr"))
    assert 'first_2 [label="mr"]' in drawn
    assert 'normal_1 [label="last cell"]' in drawn
    with pytest.raises(ValueError, match="3 names for 2 inputs"):
        dot(DARTS_V2, ("pet", "ct", "mr"))


def test_genotypes_are_read_without_jax():
    code = "import sys; import fusion_jax.nas.genotype; assert not {'jax', 'flax'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_genotype_is_hashable_and_plain():
    assert hash(DARTS_V1) != hash(DARTS_V2)
    assert Genotype(**DARTS_V1._asdict()) == DARTS_V1
