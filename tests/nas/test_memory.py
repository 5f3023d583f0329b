"""The stated memory of a search against what compiled programs ask for, and refusals that name a way out."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fusion_jax.arrays import Batch
from fusion_jax.encoders.linen import as_model
from fusion_jax.fusion import softmax_cross_entropy
from fusion_jax.nas import memory
from fusion_jax.nas.memory import available_memory, check_memory, fitting_settings, memory_estimate
from fusion_jax.nas.supernet import SuperNet

GIB = 2**30
FULL = (112, 112, 144, 1)


def compiled_bytes(net, shape):
    """Temporary memory of the compiled gradient of weights and architecture; nothing is run."""
    model, objective = as_model(net), softmax_cross_entropy()
    image, row = jax.ShapeDtypeStruct((1, *shape), np.float32), jax.ShapeDtypeStruct((1,), np.bool_)
    batch = Batch(
        {"pet": image, "ct": image}, {"label": jax.ShapeDtypeStruct((1,), np.int32)}, row, {"pet": row, "ct": row}, row
    )
    variables = jax.eval_shape(lambda batch: model.init(jax.random.key(0), batch), batch)

    def loss(params, architecture, batch):
        held = {**variables, "params": params, "architecture": architecture}
        outputs, _ = model.apply(held, batch, train=True, key=jax.random.key(1))
        return objective.loss({}, outputs, batch)[0]

    gradient = jax.jit(jax.grad(loss, (0, 1)))
    compiled = gradient.lower(variables["params"], variables["architecture"], batch).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def net(**changes):
    return SuperNet(("pet", "ct"), **{"layout": "N", "nodes": 2, "stem_stride": 1, "remat": "none"} | changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"nodes": 1, "operations": ("none", "skip", "max_pool", "conv3", "dil3")},
        pytest.param({"remat": "edge"}, marks=pytest.mark.slow),
    ],
    ids=["few operations", "ten operations"],
)
def test_the_estimate_is_what_the_compiler_asks_for(changes):
    own, shape = net(**changes), (32, 32, 32, 1)
    estimate = memory_estimate(own, shape, 1, platform="cpu")
    assert 1 / 1.4 < compiled_bytes(own, shape) / (estimate.kept + estimate.working) < 1.4


def test_on_the_cpu_computing_again_saves_nothing_and_is_not_offered():
    totals = {memory_estimate(net(remat=remat), FULL, 1, platform="cpu").total for remat in ("none", "edge", "cell")}
    assert len(totals) == 1
    found = fitting_settings(net(nodes=4), FULL, 1, available=10 * GIB, platform="cpu")
    assert found
    assert not any("remat" in changes or "dtype" in changes for changes, _ in found)


def test_computing_again_halving_and_striding_save_memory_and_the_second_order_takes_more():
    def total(order="first", batch_size=1, **changes):
        return memory_estimate(
            net(**{"layout": "NR", "nodes": 4} | changes), (64, 64, 64, 1), batch_size, order, platform="gpu"
        ).total

    whole = total()
    assert whole > total(remat="edge") > total(remat="operation")
    assert total(remat="edge") > total(remat="cell")
    assert total(stem_stride=2) < whole / 6
    assert total(partial=4) < whole / 2
    assert total(nodes=3) < 0.8 * whole
    assert 0.5 * whole < total(dtype=jnp.bfloat16) < 0.55 * whole
    assert 2.5 * whole < total("second") < 2.7 * whole
    assert 1.9 * whole < total(batch_size=2) < 2.1 * whole


def test_a_search_that_does_not_fit_is_refused_with_settings_that_would():
    with pytest.raises(ValueError, match=r"needs about .* GiB .*112 x 112 x 144.*10\.0 GiB are free") as caught:
        check_memory(net(layout="NRNRNR", nodes=4), FULL, 1, available=10 * GIB, platform="gpu")
    assert re.search(r"These would fit: .*remat=.*\(\d+\.\d GiB\)", str(caught.value))
    for changes, size in fitting_settings(net(layout="NRNRNR", nodes=4), FULL, 1, available=10 * GIB, platform="gpu"):
        own = net(**{"layout": "NRNRNR", "nodes": 4} | changes)
        assert check_memory(own, FULL, 1, available=10 * GIB, platform="gpu").total == size < 10 * GIB


def test_settings_that_change_no_result_come_first_and_few_changes_before_many():
    tight = memory_estimate(net(nodes=4, remat="edge"), (64, 64, 64, 1), 1, platform="gpu").total * 1.3
    found = fitting_settings(net(nodes=4), (64, 64, 64, 1), 1, available=round(tight), platform="gpu")
    assert found[0][0] == {"remat": "edge"}
    assert {len(changes) for changes, _ in found} == {1}
    # Far too little for any one change.
    assert (
        min(
            len(changes)
            for changes, _ in fitting_settings(net(nodes=4), FULL, 1, "second", available=GIB // 2, platform="gpu")
        )
        > 1
    )
    assert fitting_settings(net(nodes=4), FULL, 1, available=2**20) == []
    with pytest.raises(ValueError, match=r"1 MiB are free\. Crop the images"):
        check_memory(net(nodes=4), FULL, 1, available=2**20)


@pytest.mark.parametrize(("channels", "partial"), [(4, 4), (6, 2), (6, 1)])
def test_only_channels_that_the_partial_ones_divide_are_offered(channels, partial):
    own = net(channels=channels, partial=partial)
    for share in (0.8, 0.3, 0.1):
        available = round(share * memory_estimate(own, FULL, 4, platform="cpu").total)
        for changes, _ in fitting_settings(own, FULL, 4, available=available, platform="cpu"):
            assert changes.get("channels", channels) % changes.get("partial", partial) == 0, changes


def test_no_batch_below_the_least_is_offered():
    available = round(0.7 * memory_estimate(net(), FULL, 64, platform="cpu").total)
    for least, offered in ((1, {1, 32}), (8, {8, 32}), (64, set())):
        found = fitting_settings(net(), FULL, 64, available=available, platform="cpu", least_batch=least)
        assert {changes["batch_size"] for changes, _ in found if "batch_size" in changes} == offered


def test_the_memory_of_this_machine_is_a_number():
    found = available_memory()
    assert found is not None
    assert 2**20 < found < 2**50


def test_free_memory_is_the_smaller_of_machine_and_container(tmp_path, monkeypatch):
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:     1024 kB\n")
    assert memory._machine_free(str(tmp_path / "meminfo")) == 2**20
    assert memory._machine_free(str(tmp_path / "none")) is None
    assert memory._group_free(str(tmp_path)) is None
    (tmp_path / "memory.current").write_text("100\n")
    for limit, free in (("1100\n", 1000), ("max\n", None)):
        (tmp_path / "memory.max").write_text(limit)
        assert memory._group_free(str(tmp_path)) == free
    old = Path(tmp_path, "old", "memory")
    old.mkdir(parents=True)
    (old / "memory.usage_in_bytes").write_text("5")
    for limit, free in (("25", 20), (str(2**63 - 4096), None)):
        (old / "memory.limit_in_bytes").write_text(limit)
        assert memory._group_free(str(tmp_path / "old")) == free
    monkeypatch.setattr(memory, "_group_free", lambda: 1000)
    assert available_memory(jax.devices()[0]) == 1000


def test_an_accelerator_says_itself_how_much_is_free(unchecked):
    class Device:
        platform = "gpu"

        def __init__(self, stats):
            self.memory_stats = lambda: stats

    assert available_memory(Device({"bytes_limit": 100, "bytes_in_use": 30})) == 70
    assert available_memory(Device(None)) is None
