"""Does the search find what is there? Images of two modalities whose class takes both of them."""

from typing import NamedTuple

import jax
import numpy as np
import pytest

from fusion_jax.data import Arrays, Batches
from fusion_jax.data.synthetic.truth import area_under_curve
from fusion_jax.data.synthetic.two_modalities import focus_and_texture
from fusion_jax.encoders.linen import as_model
from fusion_jax.fusion import softmax_cross_entropy
from fusion_jax.nas.genotype import OPERATIONS, uses_inputs
from fusion_jax.nas.search import SearchSettings, search
from fusion_jax.nas.supernet import DerivedNet, SuperNet
from fusion_jax.training.fit import fit
from fusion_jax.training.keys import run_key
from fusion_jax.training.optimiser import Optimiser, make_optimiser
from fusion_jax.training.state import initial_state, make_step

OBJECTIVE = softmax_cross_entropy()
SETTINGS = SearchSettings(
    weights=Optimiser("sgd", learning_rate=0.03, momentum=0.9, weight_decay=3e-4, clip_norm=5.0),
    architecture=Optimiser("adam", learning_rate=0.05, betas=(0.5, 0.999), weight_decay=1e-3),
)


class Scene(NamedTuple):
    """A search space and the size of its images."""

    layout: str
    nodes: int
    operations: tuple[str, ...]
    shape: tuple[int, ...]
    cases: int
    epochs: int


SMALL = Scene("N", 1, ("none", "skip", "max_pool", "conv3"), (12, 12), 48, 8)
WHOLE = Scene("NR", 2, OPERATIONS, (12, 12, 12), 64, 10)


@pytest.mark.parametrize("scene", [SMALL, pytest.param(WHOLE, marks=pytest.mark.slow)], ids=["small", "whole"])
def test_the_searched_network_beats_those_of_one_modality(tmp_path, scene):
    n = scene.cases
    cohort, truth = focus_and_texture(2 * n + 100, shape=scene.shape, seed=1)
    halves, training, held_out = (np.arange(n), np.arange(n, 2 * n)), np.arange(2 * n), np.arange(2 * n, 2 * n + 100)
    common = {"layout": scene.layout, "channels": 4, "stem_multiplier": 2, "stem_stride": 1, "head": (16,)}
    found = search(
        SuperNet(("pet", "ct"), nodes=scene.nodes, operations=scene.operations, remat="none", **common),
        cohort,
        *halves,
        objective=OBJECTIVE,
        settings=SETTINGS,
        folder=tmp_path / "search",
        key=run_key(0),
        epochs=scene.epochs,
        batch_size=16,
    )
    # The mixture decides: the entropy falls from that of chance.
    chance = np.log(len(scene.operations))
    for table, first in found.history[0]["entropy"].items():
        assert found.history[-1]["entropy"][table] < first < chance
    assert found.history[-1]["entropy"]["normal"] < 0.98 * chance

    def held_out_auc(sources):
        """AUC of the derived network of some sources, trained anew with one budget."""
        model = as_model(DerivedNet(found.genotype, sources, **common))
        batches = Batches(cohort, training, 16, (0,))
        optimiser = make_optimiser(Optimiser("adam", learning_rate=3e-3), batches.steps_per_epoch, 20)
        result = fit(
            initial_state(model, optimiser, OBJECTIVE),
            make_step(model, optimiser, OBJECTIVE),
            batches,
            folder=tmp_path / "-".join(sources),
            key=run_key(0),
            epochs=20,
        )
        forward = jax.jit(lambda variables, batch: model.apply(variables, batch, train=False)[0].logits)
        test = Batches(cohort, held_out, len(held_out), (0,), sampler="sequential").at(0)
        logits = np.asarray(forward(result.state.variables, test))
        return area_under_curve(logits[:, 1] - logits[:, 0], truth.label[held_out, 0] == 1).value

    # What one modality can reach on these very cases, whoever looks: no network of one exceeds it but by chance.
    bayes = {
        source: area_under_curve(truth.evidence[source][held_out, 0], truth.label[held_out, 0] == 1).value
        for source in ("pet", "ct")
    }
    together = held_out_auc(("pet", "ct"))
    assert together > 0.95
    assert together > max(bayes.values()) + 0.1
    if scene is WHOLE:
        alone = {source: held_out_auc((source,)) for source in bayes}
        assert max(alone.values()) < together - 0.1
        assert all(auc < bayes[source] + 0.1 for source, auc in alone.items())


def test_a_cell_takes_the_two_modalities_that_tell_and_leaves_noise_out(tmp_path):
    """Of three inputs a node keeps two; those of no use come first, where ties would take them."""
    n = SMALL.cases
    cohort, _ = focus_and_texture(2 * n, shape=SMALL.shape, seed=1)
    noise = np.random.default_rng(0).normal(size=(2 * n, *SMALL.shape, 1)).astype(np.float32)
    cohort = cohort.with_source("noise", Arrays(noise))
    net = SuperNet(
        ("noise", "pet", "ct"),
        layout="N",
        nodes=1,
        channels=4,
        stem_multiplier=2,
        stem_stride=1,
        head=(16,),
        operations=SMALL.operations,
        remat="none",
    )
    found = search(
        net,
        cohort,
        np.arange(n),
        np.arange(n, 2 * n),
        objective=OBJECTIVE,
        settings=SETTINGS,
        folder=tmp_path,
        key=run_key(0),
        epochs=SMALL.epochs,
        batch_size=16,
    )
    assert uses_inputs(found.genotype.first, inputs=3) == {1, 2}
