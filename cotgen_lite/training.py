"""One training loop for every lite model: AdamW, warm-up and cosine, a progress bar, resuming after an interrupt."""

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PrinterCallback, Trainer, TrainerCallback
from transformers.trainer_utils import TrainOutput

from cotgen_lite.hub import write_atomically

CHECKPOINT = "checkpoint.pt"


@dataclass
class TrainingLog:
    """What a training run was: its length in steps and seconds, and the mean loss of every 50 steps."""

    steps: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)


def train(
    model: nn.Module,
    loss_at: Callable[[int], Tensor],
    steps: int,
    learning_rate: float,
    work_dir: Path,
    label: str,
    weight_decay: float = 0.01,
    warmup: float = 0.05,
    save_seconds: float = 120.0,
    about: Mapping[str, object] | None = None,
) -> TrainingLog:
    """Train in place up to `steps`, going on from the checkpoint in `work_dir` if there is one.

    loss_at: the loss of a step (its number is all that it may depend on, beside the weights, so that a resumed run sees
    the data that an uninterrupted one sees). warmup: share of steps in which the rate rises; then it falls as a cosine
    to 1% of `learning_rate`. The checkpoint stays, so a finished run returns at once. Gradients are clipped to norm 1.
    about: what else the run depends on (its data's settings). ValueError if the checkpoint is that of another run.
    """
    settings = {"steps": steps, "learning_rate": learning_rate, "weight_decay": weight_decay, **(about or {})}
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=weight_decay, betas=(0.9, 0.98))
    log, recent = _resume(model, optimizer, work_dir, settings), []
    started = saved = time.monotonic()
    earlier_seconds = log.seconds
    model.train()
    with tqdm(total=steps, initial=min(log.steps, steps), desc=label, smoothing=0.05) as bar:
        while log.steps < steps:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * _schedule(log.steps / steps, warmup)
            loss = loss_at(log.steps)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            recent.append(loss.item())
            log.steps += 1
            log.seconds = earlier_seconds + time.monotonic() - started
            bar.update()
            if log.steps % 50 == 0 or log.steps == steps:
                log.losses.append(sum(recent) / len(recent))
                recent.clear()
                bar.set_postfix(loss=f"{log.losses[-1]:.3f}")
            if log.steps == steps or (time.monotonic() - saved > save_seconds and not recent):
                _save(model, optimizer, log, work_dir, settings)
                saved = time.monotonic()
    model.eval()
    return log


def check_same_run(work_dir: Path, run: str) -> None:
    """Note in the folder which run it belongs to; ValueError if it is another one's.

    run: a checksum of all that the run depends on.
    """
    note = work_dir / "run.txt"
    if note.exists() and note.read_text(encoding="utf-8") != run:
        raise ValueError(
            f"{work_dir} holds the checkpoints of another run (other weights, data or settings): "
            "take another folder, or delete this one to start afresh."
        )
    write_atomically(note, run)


def seconds_of_run(work_dir: Path, output: TrainOutput, last: str | None) -> float:
    """Seconds of a whole run of transformers' trainer, kept in its folder; a call with nothing left to do adds none.

    output: what `train` returned; last: the checkpoint from which it went on, if any. After an interrupt: what all
    steps take at the pace of the last ones.
    """
    done_now = output.global_step - (int(last.rpartition("-")[2]) if last else 0)
    note = work_dir / "seconds.txt"
    if done_now or not note.exists():
        write_atomically(note, str(output.metrics["train_runtime"] * output.global_step / max(1, done_now)))
    return float(note.read_text(encoding="utf-8"))


class StepBar(TrainerCallback):
    """One bar for transformers' trainers in place of their tables, which grow by a row at every step."""

    def __init__(self, label: str) -> None:
        self.label = label

    @classmethod
    def attach(cls, trainer: Trainer, label: str) -> None:
        """Give the bar to a trainer that was made with `disable_tqdm=True`."""
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(cls(label))

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Open the bar, where an earlier run stopped if it goes on."""
        self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc=self.label)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """One step further."""
        self.bar.update()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict | None = None, **_: Any) -> None:
        """Show the latest loss."""
        if logs and "loss" in logs:
            self.bar.set_postfix(loss=f"{float(logs['loss']):.3f}")

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Close the bar."""
        self.bar.close()


def _schedule(done: float, warmup: float) -> float:
    if done < warmup:
        return (done + 1e-3) / (warmup + 1e-3)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup)))


def rising_share(warmup: float, examples: float, batch_size: int) -> float:
    """`warmup` for transformers' trainers, which make at least one step of it, at rate 0: none where that is all."""
    return warmup if examples > batch_size else 0.0


def subsample(losses: Sequence[float]) -> list[float]:
    """Some forty to eighty of the losses of a run, evenly spread: for its manifest."""
    return [round(loss, 4) for loss in losses[:: max(1, len(losses) // 40)]]


def _save(
    model: nn.Module, optimizer: torch.optim.Optimizer, log: TrainingLog, work_dir: Path, settings: Mapping[str, object]
) -> None:
    work_dir.mkdir(parents=True, exist_ok=True)
    part = work_dir / f"{CHECKPOINT}.part"
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "log": vars(log)}
    torch.save(state | {"settings": dict(settings)}, part)
    part.replace(work_dir / CHECKPOINT)


def _resume(
    model: nn.Module, optimizer: torch.optim.Optimizer, work_dir: Path, settings: Mapping[str, object]
) -> TrainingLog:
    path = work_dir / CHECKPOINT
    if not path.exists():
        return TrainingLog()
    state = torch.load(path, weights_only=True)
    if state["settings"] != settings:
        raise ValueError(
            f"{path} is the checkpoint of a run with {state['settings']}, not {settings}: "
            "go on with those settings, or delete it to start afresh."
        )
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return TrainingLog(**state["log"])


def fingerprint(models: Sequence[nn.Module], *settings: object) -> str:
    """A name for all that a job depends on, so that another's shards or checkpoints are never taken for its own."""
    digest = hashlib.sha256(repr(settings).encode())
    for model in models:
        for weights in model.parameters():
            if weights.dtype != torch.float32:  # the same numbers compute others in half precision
                digest.update(str(weights.dtype).encode())
            digest.update(weights.detach().cpu().float().numpy().tobytes())
    return digest.hexdigest()[:12]
