"""The step of a search, and searches that stop, resume, collapse and fail."""

import dataclasses
import json
import shutil
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from fusion_jax.arrays import Batch, Model
from fusion_jax.data import Cohort
from fusion_jax.encoders.linen import as_model
from fusion_jax.fusion import softmax_cross_entropy
from fusion_jax.nas.bilevel import unrolled
from fusion_jax.nas.costs import expected_cost, operation_costs
from fusion_jax.nas.diagnostics import collapsed, describe_architecture, eligible_epochs, mixing_entropy
from fusion_jax.nas.genotype import read_genotype
from fusion_jax.nas.judging import validation_eigenvalue, validation_loss
from fusion_jax.nas.paired import SearchBatch, paired_batches
from fusion_jax.nas.search import search
from fusion_jax.nas.step import SearchSettings, _apply, _decays, search_state, search_step
from fusion_jax.training.keys import run_key
from fusion_jax.training.logs import read_lines
from fusion_jax.training.optimiser import Optimiser, make_optimiser
from fusion_jax.training.scalars import DivergedError
from fusion_jax.training.state import Objective
from tests.helpers import assert_close
from tests.nas.mixture import OPERATIONS, Mixture, cohort

OBJECTIVE = softmax_cross_entropy()
TRAIN, VALIDATION = np.arange(12), np.arange(12, 24)
FAST = SearchSettings(
    weights=Optimiser("sgd", learning_rate=0.1, momentum=0.9, weight_decay=3e-3, clip_norm=5.0, schedule="cosine"),
    architecture=Optimiser("adam", learning_rate=0.05, betas=(0.5, 0.999), weight_decay=1e-3),
)
EPOCHS = 6


def run(folder, *, supernet=None, cases=None, train=TRAIN, validation=VALIDATION, settings=FAST, **options):
    options = {"key": run_key(0), "epochs": EPOCHS, "batch_size": 5, "objective": OBJECTIVE} | options
    return search(
        supernet or Mixture(), cases or cohort(), train, validation, settings=settings, folder=folder, **options
    )


def without_seconds(folder):
    return [{k: v for k, v in line.items() if k != "seconds"} for line in read_lines(folder / "metrics.jsonl")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A search that nobody interrupts."""
    folder = tmp_path_factory.mktemp("whole")
    states = []

    def keep(state, epoch, line):
        states.append(np.array(state.variables["architecture"]["normal"]))

    return folder, run(folder, callbacks=[keep]), states


# Batches


def test_every_epoch_visits_the_training_rows_once_and_draws_validation_rows_with_replacement():
    batches = paired_batches(cohort(), TRAIN, VALIDATION, 5, (3,))
    assert batches.steps_per_epoch == 3
    pairs = [batches.at(step) for step in range(6)]
    for epoch in (pairs[:3], pairs[3:]):
        visited = np.concatenate([pair.train.index for pair in epoch])
        assert sorted(visited[visited >= 0]) == list(TRAIN)
        drawn = np.concatenate([pair.validation.index for pair in epoch])
        assert set(drawn) <= set(VALIDATION)
        assert len(set(drawn)) < len(drawn) == 15
    assert pairs[0].validation.index.tolist() != pairs[3].validation.index.tolist()
    assert pairs[0].index.tolist() == [*pairs[0].train.index, *pairs[0].validation.index]
    assert pairs[2].valid.tolist() == [True, True, False, False, False]


def test_pairs_read_ahead_are_those_asked_for_one_by_one():
    batches = paired_batches(cohort(), TRAIN, VALIDATION, 5, (3,))
    for start, stop in ((0, 7), (4, 6), (3, 3)):
        ahead = list(batches.iterate(start, stop=stop))
        assert len(ahead) == stop - start
        for step, pair in enumerate(ahead, start):
            np.testing.assert_array_equal(pair.index, batches.at(step).index)


def test_a_patient_on_both_sides_is_refused_by_name():
    twice = Cohort.from_arrays(
        {"pet": np.zeros((4, 4), np.float32)}, label=[0, 1, 0, 1], patient_id=["ann", "bob", "cy", "ann"]
    )
    with pytest.raises(ValueError, match=r"1 patients are on both sides of the search.*ann.*Divide by patient"):
        paired_batches(twice, np.array([0, 1]), np.array([2, 3]), 2, (0,))


# The step


LENGTH: dict[str, int] = {"steps_per_epoch": 3, "epochs": 4}
# SGD of rate 1 on the architecture shows the gradient itself; weights without clipping follow the step ahead.
BARE = SearchSettings(
    order="second",
    weights=Optimiser("sgd", learning_rate=0.1, momentum=0.9, weight_decay=3e-3, schedule="cosine"),
    architecture=Optimiser("sgd", learning_rate=1.0, momentum=0.0),
)


class Begun(NamedTuple):
    """A search of the second order after four of its twelve steps, without dropout."""

    model: Model
    state: Any
    batch: SearchBatch
    after: Any
    info: Any


@pytest.fixture(scope="module")
def begun():
    model = as_model(Mixture(dropout=0.0))
    batches = paired_batches(cohort(), TRAIN, VALIDATION, 5, (0,))
    state = jax.jit(search_state(model, BARE, OBJECTIVE, **LENGTH))(run_key(0), batches.at(0))
    step = search_step(model, BARE, OBJECTIVE, **LENGTH)
    for number in range(4):
        state, _ = step(state, batches.at(number), run_key(1))
    return Begun(model, state, batches.at(4), *step(state, batches.at(4), run_key(1)))


def expected_step(begun, batch, *, order, judge=lambda architecture: 0.0):
    """What a step does, by autodiff through a step of SGD that is written out here."""
    model, state = begun.model, begun.state
    rate = 0.1 * 0.5 * (1 + np.cos(np.pi * (4 / 3) / 4))

    @jax.jit
    def expected(variables, momentum, train, validation):
        weights = {name: variables[name] for name in ("params", "objective")}

        def loss(weights, architecture, batch):
            held = {**variables, **weights, "architecture": architecture}
            outputs, moved = model.apply(held, batch, train=True)
            return OBJECTIVE.loss({}, outputs, batch)[0], moved

        def ahead(architecture):
            slope = jax.grad(loss, has_aux=True)(weights, architecture, train)[0]
            decay = jax.tree.map(lambda leaf: 3e-3 if leaf.ndim > 1 else 0.0, weights)
            return jax.tree.map(lambda w, g, v, d: w - rate * (0.9 * v + g + d * w), weights, slope, momentum, decay)

        def judged(architecture):
            own = weights if order == "first" else ahead(architecture)
            return loss(own, architecture, validation)[0] + judge(architecture)

        value, slope = jax.value_and_grad(judged)(variables["architecture"])
        architecture = jax.tree.map(lambda old, own: old - own, variables["architecture"], slope)
        # The weights' step sees the architecture that has moved; running statistics move there only.
        statistics = loss(weights, architecture, train)[1]["batch_stats"]
        return value, {**ahead(architecture), "architecture": architecture, "batch_stats": statistics}

    value, variables = expected(state.variables, state.opt_state[1].trace, batch.train, batch.validation)
    return value, variables, rate


def test_the_second_order_step_is_autodiff_through_the_weights_own_step(begun):
    assert max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(begun.state.opt_state[1].trace)) > 0.01
    value, variables, rate = expected_step(begun, begun.batch, order="second")
    assert_close(begun.after.variables, variables, 2e-5)
    assert_close(begun.info["architecture_loss"], value)
    assert_close(begun.info["learning_rate"], rate)
    assert int(begun.after.step) == 5


def test_the_first_order_step_takes_penalty_augmentation_and_warm_up_into_account(begun):
    costs = operation_costs("N", OPERATIONS, nodes=1, channels=4, axes=3)

    def scaled(batch, key):
        return batch._replace(inputs={name: 1.5 * values for name, values in batch.inputs.items()})

    settings = dataclasses.replace(BARE, order="first", penalty=2.0, warmup_epochs=1)
    step = jax.jit(search_step(begun.model, settings, OBJECTIVE, **LENGTH, augment=scaled, costs=costs))
    after, info = step(begun.state, begun.batch, run_key(1))
    batch = SearchBatch(scaled(begun.batch.train, None), scaled(begun.batch.validation, None))
    value, variables, _ = expected_step(
        begun, batch, order="first", judge=lambda architecture: 2.0 * expected_cost(architecture, costs)
    )
    assert_close(after.variables, variables, 2e-5)
    assert_close(info["architecture_loss"], value)
    assert_close(info["expected_cost"], float(expected_cost(variables["architecture"], costs)))
    # In the first epoch the weights move alone.
    early = begun.state._replace(step=np.int32(2))
    after, _ = step(early, begun.batch, run_key(1))
    np.testing.assert_array_equal(after.variables["architecture"]["normal"], early.variables["architecture"]["normal"])
    assert not np.array_equal(after.variables["params"]["pet"]["kernel"], early.variables["params"]["pet"]["kernel"])
    with pytest.raises(ValueError, match=r"penalty is 1\.0 and there are no costs"):
        search_step(begun.model, dataclasses.replace(BARE, penalty=1.0), OBJECTIVE, **LENGTH)


def test_a_model_without_architecture_is_refused():
    model = Model(lambda key, batch: {"params": {"w": np.zeros(2)}}, lambda variables, batch, **_: (batch, variables))
    batch = Batch({}, {}, True, {}, 0)
    with pytest.raises(ValueError, match="hold no 'architecture'; expected the logits of a SuperNet"):
        search_state(model, FAST, Objective(dict, OBJECTIVE.loss), steps_per_epoch=1, epochs=1)(
            run_key(0), SearchBatch(batch, batch)
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"order": "third"}, "order of the search is 'third'; expected first, second"),
        ({"product": "rough"}, "product of the search"),
        ({"collapse": "soon"}, "collapse of the search"),
        ({"penalty": -1.0}, "penalty of the search is -1.0; expected 0 or more"),
        ({"warmup_epochs": -1}, "warmup_epochs"),
        ({"order": "second", "weights": Optimiser("adam")}, "'adam'; expected 'sgd'.*or order='first'"),
        ({"order": "second", "weights": Optimiser("sgd", rates={"head": 0.1})}, "with rates by group"),
        ({"collapse": "eigenvalue"}, "expected it to be measured"),
        ({"weights": Optimiser("sgd", schedule="plateau")}, "schedule of weights is 'plateau'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(unchecked, changes, message):
    with pytest.raises(ValueError, match=message):
        SearchSettings(**changes)


def test_a_warm_up_that_never_ends_is_refused(tmp_path):
    with pytest.raises(ValueError, match="warmup_epochs is 6 of 6 epochs"):
        run(tmp_path, settings=dataclasses.replace(FAST, warmup_epochs=6))


@pytest.mark.parametrize("decayed", ["kernels", "all"])
def test_the_step_ahead_decays_what_the_optimiser_decays(decayed):
    settings = Optimiser("sgd", learning_rate=0.5, momentum=0.0, weight_decay=0.2, decayed=decayed)
    weights = {"params": {"kernel": np.ones((2, 3), np.float32), "bias": np.ones(3, np.float32)}, "objective": {}}
    still, optimiser = jax.tree.map(np.zeros_like, weights), make_optimiser(settings, 1, 1)
    own, _ = _apply(optimiser, still, optimiser.init(weights), weights)
    ahead = unrolled(weights, still, None, rate=0.5, momentum=0.0, weight_decay=_decays(settings, weights))
    assert_close(ahead, own)
    assert_close(own["params"]["bias"], np.full(3, 0.9 if decayed == "all" else 1.0))


@pytest.mark.parametrize(("epochs", "every"), [(6, 1), (19, 2)])
def test_a_rule_that_can_never_end_a_search_is_refused(tmp_path, epochs, every):
    settings = dataclasses.replace(FAST, collapse="eigenvalue", eigenvalue_every=every)
    message = rf"eigenvalue_every is {every} of {epochs} epochs.* expected 10 measurements or more"
    with pytest.raises(ValueError, match=message):
        run(tmp_path, settings=settings, epochs=epochs)


# A search


def test_a_search_finds_the_source_that_shows_the_class(whole):
    folder, found, _ = whole
    assert mixing_entropy(found.architecture["normal"]) < mixing_entropy(np.zeros((2, 3))) - 1e-3
    lines = read_lines(folder / "architecture.jsonl")
    assert [line["epoch"] for line in lines] == list(range(EPOCHS))
    assert list(found.history) == lines
    losses = [line["validation_loss"] for line in lines]
    assert found.best_epoch == int(np.argmin(losses))
    assert losses[found.best_epoch] < 0.9 * losses[0]
    assert [line["validation_loss"] for line in read_lines(folder / "metrics.jsonl")] == losses
    # The edge of the source that shows the class carries more of it than that of the noise.
    weights = np.array(lines[-1]["weights"]["normal"])
    assert weights[1, 0] < weights[0, 0]


def test_what_a_search_writes_is_what_it_returns(whole):
    folder, found, _ = whole
    assert read_genotype(folder / "genotype.json") == found.genotype
    assert read_genotype(folder / "genotype_last.json") == found.last_genotype
    facts = json.loads((folder / "genotype.json").read_text())["facts"]
    assert facts["epoch"] == found.best_epoch
    assert facts["search"]["order"] == "first"
    assert facts["train"].startswith("12 cases, CRC-32 ")
    line = found.history[found.best_epoch]
    described = describe_architecture(found.architecture, OPERATIONS, nodes=1)
    assert json.loads(json.dumps(described)) == {name: line[name] for name in described}


def test_the_logits_of_the_log_are_those_of_the_state_to_the_bit(whole):
    _, found, states = whole
    np.testing.assert_array_equal(found.architecture["normal"], states[found.best_epoch])
    assert found.architecture["normal"].dtype == np.float32


class Killed(Exception):
    """What a test raises in the middle of a search."""


@pytest.mark.parametrize("order", ["first", pytest.param("second", marks=pytest.mark.slow)])
def test_a_search_that_is_killed_goes_on_to_the_same_bits(tmp_path, whole, order):
    settings = dataclasses.replace(FAST, order=order, eigenvalue_every=2 if order == "second" else 0)
    if order == "first":
        folder, reference, _ = whole
    else:
        folder = tmp_path / "whole"
        reference = run(folder, settings=settings)

    def kill_after(last):
        def kill(state, epoch, line):
            if epoch == last:
                raise Killed

        return kill

    for last in (1, 3):
        with pytest.raises(Killed):
            # A checkpoint after every step: the kill comes between the lines of an epoch and its checkpoint.
            run(tmp_path / "own", settings=settings, callbacks=[kill_after(last)], checkpoint_seconds=0.0)
        assert len(read_lines(tmp_path / "own" / "architecture.jsonl")) == last + 1
    found = run(tmp_path / "own", settings=settings)
    for name in ("architecture.jsonl", "genotype.json", "genotype_last.json"):
        assert (tmp_path / "own" / name).read_text() == (folder / name).read_text(), name
    assert without_seconds(tmp_path / "own") == without_seconds(folder)
    np.testing.assert_array_equal(found.architecture["normal"], reference.architecture["normal"])
    if order == "second":
        assert [line["eigenvalue"] is None for line in found.history] == [True, False] * 3


def test_a_search_that_has_ended_returns_at_once(tmp_path, whole):
    folder, reference, _ = whole
    shutil.copytree(folder, tmp_path / "own")

    def never(state, epoch, line):
        raise AssertionError("a search that has ended ran on")

    again = run(tmp_path / "own", callbacks=[never])
    assert again.genotype == reference.genotype
    assert again.history == reference.history
    (tmp_path / "own" / "architecture.jsonl").unlink()
    with pytest.raises(ValueError, match=r"architecture.jsonl: no line.*put it back"):
        run(tmp_path / "own")


def test_a_folder_of_another_search_is_refused(tmp_path, whole):
    folder, *_ = whole
    for changes, name in (
        ({"settings": dataclasses.replace(FAST, order="second")}, "order"),
        ({"supernet": Mixture(channels=4, dropout=0.2)}, "dropout"),
        ({"train": TRAIN[1:]}, "train"),
        ({"record": {"clip": "-200 to 300 HU"}}, "clip"),
    ):
        with pytest.raises(ValueError, match=name):
            run(folder, **changes)


def test_a_search_that_diverges_names_the_cases_of_both_batches(tmp_path):
    data = cohort()
    pet = np.array([data.sources["pet"][row] for row in range(24)])
    pet[13] = 1e38  # a validation case
    cases = Cohort.from_arrays(
        {"pet": pet, "ct": np.array([data.sources["ct"][row] for row in range(24)])}, label=data.label.tolist()
    )
    with pytest.raises(DivergedError, match="not finite in epoch 0") as caught:
        run(tmp_path, cases=cases)
    named = set(caught.value.case_ids)
    assert str(cases.case_id[13]) in named
    assert named & {str(cases.case_id[row]) for row in TRAIN}


def test_validation_loss_and_eigenvalue_are_those_of_all_cases_at_once(begun, key):
    data, variables = cohort(), begun.state.variables
    whole = paired_batches(data, VALIDATION, TRAIN, 12, (0,)).at(0).train

    @jax.jit
    def reference(variables, batch, count):
        def loss(flat):
            outputs, _ = begun.model.apply(
                {**variables, "architecture": {"normal": flat.reshape(2, 3)}}, batch, train=False
            )
            return OBJECTIVE.loss({}, outputs, batch._replace(valid=count))[0]

        flat = variables["architecture"]["normal"].reshape(-1)
        return loss(flat), jax.hessian(loss)(flat)

    loss, _ = reference(variables, whole, whole.valid)
    assert_close(validation_loss(begun.model, OBJECTIVE, data, VALIDATION, 5)(variables), float(loss))
    # Eight of the twelve, three at a time, the last with padding; as many products as there are logits.
    chosen = np.isin(whole.index, VALIDATION[[0, 2, 3, 5, 6, 8, 9, 11]])
    _, hessian = reference(variables, whole, chosen)
    found = validation_eigenvalue(begun.model, OBJECTIVE, data, VALIDATION, 3, 6)(variables, key)
    assert_close(found, float(np.linalg.eigvalsh(np.asarray(hessian))[-1]), 1e-3)


# Collapse


def line(skips, eigenvalue=None, loss=1.0, edges=4) -> dict[str, Any]:
    cell = [["skip", 0]] * skips + [["conv3", 1]] * (edges - skips)
    return {"genotype": {"normal": cell}, "eigenvalue": eigenvalue, "validation_loss": loss}


def test_two_skips_three_epochs_in_a_row_are_a_collapse():
    lines = [line(skips) for skips in (2, 1, 2, 2)]
    assert not collapsed(lines, "skips")
    assert eligible_epochs(lines, "skips") == [1]
    assert collapsed([*lines, line(3)], "skips")
    assert not collapsed([*lines, line(3)], "none")
    # Noise may begin with skips; there is nothing to go back to yet.
    assert not collapsed([line(2)] * 5, "skips")


def test_skips_are_counted_in_the_first_cell_where_it_is_the_only_normal_one():
    lines = [line(skips) for skips in (1, 2, 2, 2)]
    three = [
        own | {"genotype": {"first": own["genotype"]["normal"], "normal": [], "reduce": [["skip", 0]] * 4}}
        for own in lines
    ]
    assert collapsed(three, "skips")
    assert eligible_epochs(three, "skips") == [0]
    both = [own | {"genotype": own["genotype"] | {"first": [["skip", 0]] * 4}} for own in lines]
    assert eligible_epochs(both, "skips") == [0]


def test_an_eigenvalue_that_rises_by_a_third_over_five_measurements_is_a_collapse():
    steady = [line(0, value) for value in (1.0, 1.1, 0.9, 1.0, 1.0)]
    below, above = ([line(0, 4 / 3 * factor)] * 5 for factor in (0.99, 1.01))
    assert not collapsed(steady + below, "eigenvalue")
    assert collapsed(steady + above, "eigenvalue")
    # Epochs without a measurement lie between; the architecture is that of five measurements ago.
    thin = [own for pair in zip([line(0)] * 10, steady + above, strict=True) for own in pair]
    assert collapsed(thin, "eigenvalue")
    assert eligible_epochs(thin, "eigenvalue") == list(range(10))
    assert eligible_epochs(thin[:-2], "eigenvalue") == list(range(18))


def test_a_search_ends_when_it_collapses_and_takes_an_epoch_from_before(tmp_path, monkeypatch, caplog):
    found = run(
        tmp_path,
        supernet=Mixture(operations=("none", "conv3", "skip")),
        epochs=40,
        settings=dataclasses.replace(FAST, collapse="skips"),
    )
    skips = [sum(op == "skip" for op, _ in line["genotype"]["normal"]) for line in found.history]
    assert found.stopped
    assert len(skips) < 40
    assert min(skips[-3:]) == 2
    assert skips[found.best_epoch] < 2
    assert "the search collapsed (skips) and ends after epoch" in caplog.text


# Costs


def test_costs_count_every_cell_of_a_table_with_its_channels_and_positions():
    shares = operation_costs("NRN", ("none", "conv3", "skip"), nodes=2, channels=4, axes=2)
    # Normal cells of 4 and 8 channels, the reduction of 8; its skips at stride 2 hold a matrix.
    normal, reduce = 9 * (4**2 + 8**2), 9 * 8**2
    total = 5 * (normal + reduce)
    assert_close(shares["normal"], np.tile([0.0, normal / total, 0.0], (5, 1)))
    skip = np.array([64, 64, 64, 64, 0])[:, None] / total
    assert_close(shares["reduce"], np.concatenate([np.tile([0.0, reduce / total], (5, 1)), skip], axis=1))
    shares = operation_costs("NRN", ("none", "conv3"), nodes=2, channels=4, axes=2, cost="multiply-adds")
    # The second normal cell sees a quarter of the positions, and so do all edges of the reduction once strided.
    normal, reduce = 9 * (4**2 + 8**2 / 4), 9 * 8**2 / 4
    assert_close(shares["normal"][0, 1] / shares["reduce"][4, 1], normal / reduce)
    assert_close(shares["reduce"][:, 1], np.full(5, shares["reduce"][0, 1]))


def test_three_modalities_have_a_first_table_and_nothing_to_weigh_is_refused():
    shares = operation_costs("NR", ("none", "conv3"), nodes=2, channels=4, axes=3, inputs=3)
    assert {name: table.shape for name, table in shares.items()} == {"first": (7, 2), "reduce": (5, 2)}
    with pytest.raises(ValueError, match="none of the operations none, max_pool has parameters"):
        operation_costs("NR", ("none", "max_pool"), nodes=2, channels=4, axes=3)
    logits: dict[str, Any] = {name: np.where(table == 0, 0.0, 100.0) for name, table in shares.items()}
    assert_close(expected_cost(logits, shares), 1.0)
