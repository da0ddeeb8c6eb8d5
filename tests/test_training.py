"""The training loop: an interrupted run ends where an uninterrupted one does, and learns at all."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cotgen_lite.training import CHECKPOINT, train


def make_model() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 1)


def loss_of(model: nn.Linear, step: int) -> Tensor:
    x = torch.randn(16, 3, generator=torch.Generator().manual_seed(step))
    return ((model(x) - x.sum(1, keepdim=True)) ** 2).mean()


def test_resumed_run_equals_uninterrupted_one(tmp_path: Path) -> None:
    whole = make_model()
    log = train(whole, lambda step: loss_of(whole, step), 120, 0.05, tmp_path / "whole", "whole")
    assert log.steps == 120 and len(log.losses) == 3
    assert log.losses[-1] < 0.05 * log.losses[0]

    parted = make_model()

    def interrupted(step: int) -> Tensor:
        if step == 77:
            raise KeyboardInterrupt
        return loss_of(parted, step)

    with pytest.raises(KeyboardInterrupt):
        train(parted, interrupted, 120, 0.05, tmp_path / "parted", "parted", save_seconds=0)
    again = make_model()
    steps_seen = []

    def watched(step: int) -> Tensor:
        steps_seen.append(step)
        return loss_of(again, step)

    resumed = train(again, watched, 120, 0.05, tmp_path / "parted", "parted")
    assert steps_seen[0] == 50  # saved with the last full mean
    assert resumed.steps == 120
    torch.testing.assert_close(again.state_dict(), whole.state_dict())


def test_finished_run_returns_at_once(tmp_path: Path) -> None:
    model = make_model()
    first = train(model, lambda step: loss_of(model, step), 10, 0.05, tmp_path, "run")

    def must_not_run(step: int) -> Tensor:
        raise AssertionError

    second = train(make_model(), must_not_run, 10, 0.05, tmp_path, "run")
    assert second == first and (tmp_path / CHECKPOINT).exists()


def test_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    model = make_model()
    train(model, lambda step: loss_of(model, step), 10, 0.05, tmp_path, "run")
    with pytest.raises(ValueError, match="delete this one to start afresh"):
        train(model, lambda step: loss_of(model, step), 12, 0.05, tmp_path, "run")


def test_a_folder_without_a_checkpoint_is_free_for_any_run(tmp_path: Path) -> None:
    model = make_model()

    def interrupted(step: int) -> Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(model, interrupted, 50, 0.05, tmp_path, "cut off")
    assert train(model, lambda step: loss_of(model, step), 50, 0.01, tmp_path, "at another rate").steps == 50


def test_a_run_without_a_folder_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    kept, free = make_model(), make_model()
    log = train(kept, lambda step: loss_of(kept, step), 60, 0.05, tmp_path / "kept", "run")
    assert train(free, lambda step: loss_of(free, step), 60, 0.05, None, "run").losses == log.losses
    torch.testing.assert_close(free.state_dict(), kept.state_dict())
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
