"""The log of a run, and the pictures of it that TensorBoard shows."""

import builtins
import math

import pytest

from fusion_jax.training import write_tensorboard
from fusion_jax.training.logs import append_line, keep_epochs, read_lines


@pytest.fixture
def metrics(tmp_path):
    path = tmp_path / "run" / "metrics.jsonl"
    for epoch in range(4):
        append_line(path, {"epoch": epoch, "loss": 0.1 + epoch / 3, "validation_auc": math.nan if epoch == 1 else 0.5})
    return path


def test_lines_come_back_bit_for_bit(metrics):
    lines = read_lines(metrics)
    assert [line["loss"] for line in lines] == [0.1 + epoch / 3 for epoch in range(4)]
    assert [line["validation_auc"] for line in lines] == [0.5, None, 0.5, 0.5]


def test_a_line_that_was_cut_short_is_passed_over(metrics):
    content = metrics.read_text()
    metrics.write_text(content[:-20])
    assert len(read_lines(metrics)) == 3
    assert len(keep_epochs(metrics, 10)) == 3
    append_line(metrics, {"epoch": 3, "loss": 0.0})
    assert [line["epoch"] for line in read_lines(metrics)] == [0, 1, 2, 3]


def test_resuming_cuts_the_log_to_the_epoch(metrics):
    before = metrics.read_text().splitlines()
    assert len(keep_epochs(metrics, 2)) == 2
    assert metrics.read_text().splitlines() == before[:2]
    assert keep_epochs(metrics.with_name("absent.jsonl"), 2) == []
    assert not metrics.with_name("absent.jsonl").exists()


def test_tensorboard_gets_every_number_once(metrics, tmp_path):
    pytest.importorskip("tensorboardX", reason="TensorBoard files need fusion-jax[tensorboard]")
    from tensorboardX.proto.event_pb2 import Event

    for _ in range(2):
        assert write_tensorboard(metrics, tmp_path / "board") == 4
    [written] = (tmp_path / "board").glob("events.out.tfevents.*")
    content, found = written.read_bytes(), []
    while content:  # length, its checksum, the event, its checksum
        length = int.from_bytes(content[:8], "little")
        event = Event.FromString(content[12 : 12 + length])
        found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
        content = content[16 + length :]
    losses = [(step, value) for tag, step, value in found if tag == "loss"]
    assert losses == [(epoch, pytest.approx(0.1 + epoch / 3)) for epoch in range(4)]
    assert [step for tag, step, _ in found if tag == "validation_auc"] == [0, 2, 3]


def test_a_missing_log_is_named(tmp_path):
    pytest.importorskip("tensorboardX", reason="TensorBoard files need fusion-jax[tensorboard]")
    with pytest.raises(FileNotFoundError, match=r"metrics\.jsonl: no such file"):
        write_tensorboard(tmp_path / "metrics.jsonl", tmp_path)


def test_without_tensorboardx_the_install_command_is_said(metrics, tmp_path, monkeypatch):
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.startswith("tensorboardX"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=r'pip install "fusion-jax\[tensorboard\]"'):
        write_tensorboard(metrics, tmp_path)
