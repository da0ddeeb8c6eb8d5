"""The training loop: an interrupted run ends where an uninterrupted one does, and learns at all."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import TrainingArguments

from cotgen_lite.training import (
    CHECKPOINT,
    LAUNCHERS,
    WHOLE,
    TrainerSettings,
    is_whole,
    read_checkpoint,
    refuse_divergence,
    stack_tokens,
    subsample,
    train,
    trainer_arguments,
)


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
    with pytest.raises(ValueError, match=r"load its model afresh, .* delete this one to start afresh"):
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


@pytest.mark.parametrize("part", ["weights", "data", "warmup"])
def test_a_run_is_told_by_its_model_data_and_numbers(tmp_path: Path, part: str) -> None:
    def run(shift: float, data: Tensor, **settings: float) -> None:
        model = make_model()
        model.weight.data += shift
        train(model, lambda step: loss_of(model, step), 10, 0.05, tmp_path, "run", about={"data": data}, **settings)

    run(0.0, torch.arange(3))
    run(0.0, torch.arange(3))
    with pytest.raises(ValueError, match="another run"):
        run(
            1e-3 if part == "weights" else 0.0,
            torch.tensor([2, 1, 0] if part == "data" else [0, 1, 2]),
            **({"warmup": 0.1} if part == "warmup" else {}),
        )


def test_dropout_goes_on_where_it_was(tmp_path: Path) -> None:
    def run(folder: Path, last: int) -> dict[str, Tensor]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1))

        def loss_at(step: int) -> Tensor:
            if step == last:
                raise KeyboardInterrupt
            return loss_of(model, step)  # type: ignore[arg-type]

        train(model, loss_at, 120, 0.05, folder, "dropout", save_seconds=0)
        return model.state_dict()

    whole = run(tmp_path / "whole", -1)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parted", 77)
    torch.rand(5)  # what another job has drawn in between
    parted = run(tmp_path / "parted", -1)
    assert all(torch.equal(parted[name], weight) for name, weight in whole.items())


def diverge(model: nn.Linear, step: int, how: str) -> Tensor:
    loss = loss_of(model, step)
    if step < 60 or how == "weights":
        return loss
    if how == "loss":
        return loss * float("nan")
    # finite itself, but not its gradient
    return loss + (torch.zeros(1, requires_grad=True) * model.weight.sum()).sqrt().sum()


@pytest.mark.parametrize("how", ["loss", "gradient"])
def test_a_training_that_diverges_stops_at_once_and_keeps_its_checkpoint(tmp_path: Path, how: str) -> None:
    model = make_model()
    with pytest.raises(ValueError, match=f"diverged at step 61: its {how}.* is nan"):
        train(model, lambda step: diverge(model, step, how), 100, 0.05, tmp_path, "run", save_seconds=0)
    assert all(weight.isfinite().all() for weight in model.parameters())
    kept = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    assert kept["log"]["steps"] == 50


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    model = make_model()
    model.idle = nn.Parameter(torch.ones(2))  # plays no part in the loss

    def loss_at(step: int) -> Tensor:
        if step == 4:
            model.idle.data[1] = float("inf")
        return loss_of(model, step)

    with pytest.raises(ValueError, match=r"diverged at step 5: weights are not finite \(idle first\)"):
        train(model, loss_at, 5, 0.1, tmp_path, "run")
    assert not (tmp_path / CHECKPOINT).exists()
    with pytest.raises(ValueError, match="step 7"):
        refuse_divergence(7, {"loss": float("inf")})


@pytest.mark.parametrize("how", ["cut", "flipped", "empty"])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, how: str) -> None:
    model = make_model()
    train(model, lambda step: loss_of(model, step), 10, 0.05, tmp_path, "run")
    path, held = tmp_path / CHECKPOINT, bytearray((tmp_path / CHECKPOINT).read_bytes())
    weights = held.index(model.weight.detach().numpy().tobytes())
    held[weights + 2] ^= 1
    path.write_bytes({"cut": held[: len(held) // 2], "flipped": held, "empty": b""}[how])
    with pytest.raises(ValueError, match=f"{CHECKPOINT} is damaged .*: delete it to start afresh"):
        train(make_model(), lambda step: loss_of(model, step), 10, 0.05, tmp_path, "run")


class RunsCode:
    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Callable, tuple]:
        return (os.mkdir, (self.path,))


def test_a_planted_checkpoint_runs_no_code(tmp_path: Path) -> None:
    torch.save({"run": RunsCode(tmp_path / "ran")}, tmp_path / CHECKPOINT)
    with pytest.raises(ValueError, match="is damaged"):
        read_checkpoint(tmp_path / CHECKPOINT, "run")
    assert not (tmp_path / "ran").exists()


def test_what_a_killed_run_was_writing_is_cleared_away(tmp_path: Path) -> None:
    model = make_model()
    (tmp_path / f"{CHECKPOINT}.{'0a' * 16}.part").write_bytes(b"half")
    (tmp_path / "others.part").write_bytes(b"another job's")
    train(model, lambda step: loss_of(model, step), 5, 0.05, tmp_path, "run")
    assert sorted(path.name for path in tmp_path.iterdir()) == [CHECKPOINT, "others.part"]


def test_a_checkpoint_folder_is_whole_if_every_file_is(tmp_path: Path) -> None:
    assert not is_whole(tmp_path)
    for note in ("", "{}", "[]", '{"a": 1}', '{"weights": "0"}'):
        (tmp_path / WHOLE).write_text(note)
        assert not is_whole(tmp_path)


@pytest.mark.parametrize(
    ("name", "values"),
    {
        "learning_rate": (float("nan"), float("inf"), -1e-3, 1e39, "1e-3", None, True),
        "epochs": (0, -1, float("nan"), 1e9),
        "batch_size": (0, 2.5, 10**9, None),
        "warmup": (-0.1, 1.5, float("nan")),
        "save_steps": (0, -1, 1.5),
        "seed": (-1, 2**32, 0.5, "0"),
    }.items(),
)
def test_impossible_settings_are_refused_in_a_sentence(name: str, values: tuple[Any, ...]) -> None:
    for value in values:
        with pytest.raises(ValueError, match=f"^{name} must be .*, got"):
            TrainerSettings(**({"learning_rate": 1e-3} | {name: value}))


@pytest.mark.parametrize(("warmup", "steps"), [(0, 0), (0.1, 5), (0.101, 6), (0.999, 50), (1, 50), (1.0, 50)])
def test_warm_up_is_a_share_of_all_steps_of_transformers_trainers(tmp_path: Path, warmup: float, steps: int) -> None:
    given = trainer_arguments(TrainerSettings(1e-3, warmup=warmup), 400, tmp_path, torch.device("cpu"))
    assert TrainingArguments(**given).get_warmup_steps(50) == steps


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 0},
        {"steps": 10**9},
        {"steps": 1.5},
        {"learning_rate": float("nan")},
        {"learning_rate": -1.0},
        {"weight_decay": float("inf")},
        {"warmup": 2},
        {"work_dir": 5},
        {"work_dir": ""},
        {"work_dir": __file__},
        {"label": None},
        {"save_seconds": float("nan")},
        {"about": 5},
        {"model": None},
        {"model": nn.ReLU()},
        {"loss_at": 5},
    ],
)
def test_the_loop_checks_its_numbers(change: dict[str, Any]) -> None:
    model = make_model()
    given = {"model": model, "loss_at": lambda step: loss_of(model, step), "work_dir": None, "label": "run"}
    with pytest.raises(ValueError, match=f"^{next(iter(change))} must"):
        train(**(given | {"steps": 5, "learning_rate": 0.1} | change))


@pytest.mark.parametrize("loss", [0.0, None, torch.zeros(()), torch.zeros(3, requires_grad=True)])
def test_a_loss_is_one_number_with_a_gradient(loss: Any) -> None:
    with pytest.raises(ValueError, match="loss must be"):
        train(make_model(), lambda step: loss, 1, 0.1, None, "run")


@pytest.mark.parametrize(
    ("left", "refused"),
    [
        ("", False),
        ("RANK=0 WORLD_SIZE=1", False),
        ("MASTER_ADDR=127.0.0.1", False),
        ("RANK=0 WORLD_SIZE=2 LOCAL_RANK=0 MASTER_ADDR=127.0.0.1", True),  # the trainers would wait for half an hour
        ("WORLD_SIZE=2", True),
        ("LOCAL_RANK=0", True),
        ("RANK=0 WORLD_SIZE=2 LOCAL_RANK=0 MASTER_ADDR=127.0.0.1 TORCHELASTIC_RUN_ID=none", False),
    ],
)
def test_trainers_do_not_wait_for_processes_that_nothing_started(
    left: str, refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (*LAUNCHERS, "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in (one.split("=") for one in left.split()):
        monkeypatch.setenv(name, value)
    arguments = (TrainerSettings(1e-3), 8, tmp_path, torch.device("cpu"))
    if not refused:
        assert trainer_arguments(*arguments)["output_dir"] == str(tmp_path)
        return
    names = " ".join(one.split("=")[0] for one in left.split())
    with pytest.raises(ValueError, match=f"no launcher started this one: .*or `unset {names}` to train alone"):
        trainer_arguments(*arguments)


def test_losses_for_a_manifest_are_numbers() -> None:
    assert subsample([0.12345] * 100) == [0.1235] * 50
    for losses in (None, "abc", [float("nan")], {"loss": 1.0}):
        with pytest.raises(ValueError, match="losses must be"):
            subsample(losses)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "tokens",
    [
        torch.full((4,), 9),
        torch.full((4,), -1),
        torch.zeros(4),
        torch.zeros(5).long(),
        torch.zeros(1, 4).long(),
        [0] * 4,
    ],
)
def test_tokens_of_another_kind_are_refused(tokens: Any) -> None:
    good = torch.arange(4).short()
    assert stack_tokens([good, good.long()], 4, 9).tolist() == [[0, 1, 2, 3]] * 2
    with pytest.raises(ValueError, match="tokens must"):
        stack_tokens([good, tokens], 4, 9)
    with pytest.raises(ValueError, match="There is no image to learn from"):
        stack_tokens([], 4, 9)


HASHED = """
import hashlib, json, sys
from pathlib import Path
import numpy as np
import torch
from cotgen_lite.experiments.pretrain import _draw_scenes
from cotgen_lite.generate.vq import Magvit, lite_magvit_config
from cotgen_lite.lite.generator_training import make_captioned_tokens
from cotgen_lite.lite.judges import draw_lessons, random_question
from cotgen_lite.lite.tokenizer_training import TokenizerTraining, train_tokenizer
from cotgen_lite.lite.verifier import evaluation_set
from cotgen_lite.lite.verifier_questions import Mix, draw_dialogues, training_scene
from cotgen_lite.lite.verifier_training import VerifierTraining, train_verifier
from cotgen_lite.lite.vocabulary import lite_tokenizer
from cotgen_lite.lite.world import world
from cotgen_lite.pools import pool_prompts
from cotgen_lite.prompts import TAGS, lite_prompts
from cotgen_lite.verify.training_data import train_prompts

torch.set_num_threads(1)
work, said = Path(sys.argv[1]), []
rng = np.random.default_rng(0)
for _ in range(60):
    scene = training_scene(rng)
    said += draw_dialogues(scene, 8, Mix(facts=0.3, official=0.5, caption=True), rng)
    said += [random_question(scene, tag, True, rng) for tag in TAGS]
said += [pool_prompts("test"), lite_prompts("train"), train_prompts(dict.fromkeys(TAGS, 3), 0), evaluation_set(4, 1)]
lessons = draw_lessons(8, rng)
torch.manual_seed(0)
model = Magvit(lite_magvit_config())
train_tokenizer(model, _draw_scenes, TokenizerTraining(2, batch=2), work / "tokenizer")
captioned = make_captioned_tokens(20, model, lite_tokenizer(), world().caption_noise, 0)
verifier, _ = train_verifier(VerifierTraining(1, 2, 2, images=2, questions=6), work / "verifier")
digest = hashlib.sha256(repr(said).encode())
for values in (*lessons, *model.state_dict().values(), *verifier.state_dict().values(), captioned.tokens):
    digest.update(values.numpy().tobytes())
digest.update(repr(captioned.text_ids).encode())
print(digest.hexdigest())
"""


@pytest.mark.slow
def test_what_is_learned_does_not_hang_on_the_seed_of_hashes(tmp_path: Path) -> None:
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", HASHED, str(tmp_path / seed)],
            env=os.environ | {"PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in ("1", "2")
    ]
    said = [run.communicate()[0] for run in runs]
    assert said[0] == said[1] and len(said[0].strip()) == 64
