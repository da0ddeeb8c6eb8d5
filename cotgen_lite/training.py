"""How models are trained: one loop for all that is pre-trained here, and one way to run transformers' trainers.

First the loop (`train`): AdamW, warm-up and cosine, resuming. Then, for fine-tuning (section 3.2) and DPO
(section 3.3), what transformers' and trl's trainers have in common: settings, arguments, a progress bar.
Read next: generate/vq.py.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PrinterCallback, ProgressCallback
from transformers.trainer_utils import get_last_checkpoint

from cotgen_lite.hub import in_place_of, write_atomically
from cotgen_lite.identity import refuse_other_run

if TYPE_CHECKING:
    from transformers import Trainer

CHECKPOINT = "checkpoint.pt"


@dataclass
class TrainingLog:
    """What a training run was: its length in steps and seconds, and losses.

    losses: the mean of every 50 steps of `train`; of each step of transformers' trainers, which note more about it in
    rows, such as DPO's "margin".
    """

    steps: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)
    rows: list[dict[str, float]] = field(default_factory=list)


def train(
    model: nn.Module,
    loss_at: Callable[[int], Tensor],
    steps: int,
    learning_rate: float,
    work_dir: str | Path | None,
    label: str,
    weight_decay: float = 0.01,
    warmup: float = 0.05,
    save_seconds: float = 120.0,
    about: Mapping[str, object] | None = None,
) -> TrainingLog:
    """Train in place up to `steps`, going on from the checkpoint in `work_dir` if there is one.

    loss_at: the loss of a step (its number is all that it may depend on, beside the weights, so that a resumed run sees
    the data that an uninterrupted one sees). warmup: share of steps in which the rate rises; then it falls as a cosine
    to 1% of `learning_rate`. Gradients are clipped to norm 1. work_dir: None keeps no checkpoint; else it stays, so a
    finished run returns at once. about: what else the run depends on (its data's settings). ValueError if the
    checkpoint is that of another run.
    """
    run = repr({"steps": steps, "learning_rate": learning_rate, "weight_decay": weight_decay, **(about or {})})
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=weight_decay, betas=(0.9, 0.98))
    checkpoint = Path(work_dir) / CHECKPOINT if work_dir else None
    log, recent = TrainingLog(), []
    if checkpoint and checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        refuse_other_run(checkpoint.parent, state["run"], run)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        log = TrainingLog(**state["log"])
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
            if checkpoint and (log.steps == steps or (time.monotonic() - saved > save_seconds and not recent)):
                state = {"run": run, "model": model.state_dict(), "optimizer": optimizer.state_dict(), "log": vars(log)}
                with in_place_of(checkpoint) as part:
                    torch.save(state, part)
                saved = time.monotonic()
    model.eval()
    return log


def _schedule(done: float, warmup: float) -> float:
    if done < warmup:
        return (done + 1e-3) / (warmup + 1e-3)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup)))


def subsample(losses: Sequence[float]) -> list[float]:
    """Some forty to eighty of the losses of a run, evenly spread: for its manifest."""
    return [round(loss, 4) for loss in losses[:: max(1, len(losses) // 40)]]


# What follows is for transformers' and trl's trainers.


@dataclass(frozen=True)
class TrainerSettings:
    """How a model is fine-tuned by transformers' trainers, whatever its loss.

    warmup: share of steps in which the rate rises; then it falls as a cosine to 0. save_steps: between checkpoints.
    """

    learning_rate: float
    epochs: float = 1
    batch_size: int = 8
    warmup: float = 0.1
    save_steps: int = 500
    seed: int = 0


def trainer_arguments(settings: TrainerSettings, examples: int, folder: Path, device: torch.device) -> dict[str, Any]:
    """What `TrainingArguments`, and trl's kinds of it, are given: examples to learn from, a folder for checkpoints.

    On a GPU the model computes in bfloat16.
    """
    on_gpu = device.type == "cuda"
    rises = examples * settings.epochs > settings.batch_size  # warm-up makes one step at rate 0: the only one, maybe
    return {
        "output_dir": str(folder),
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": settings.warmup if rises else 0.0,
        "num_train_epochs": settings.epochs,
        "per_device_train_batch_size": settings.batch_size,
        "seed": settings.seed,
        "save_steps": settings.save_steps,
        "save_total_limit": 1,
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": not on_gpu,
        "bf16": on_gpu,
        "dataloader_pin_memory": on_gpu,
    }


def run_trainer(trainer: "Trainer", label: str) -> tuple[Any, TrainingLog]:
    """Train, going on from the last checkpoint in the trainer's folder; the model, for evaluation, and the log.

    label: of the progress bar. After an interrupt the log's seconds are what all steps take at the pace of the last.
    """
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(StepBar(label))
    folder = Path(str(trainer.args.output_dir))
    last = get_last_checkpoint(str(folder))
    output = trainer.train(resume_from_checkpoint=last)
    done_now = output.global_step - (int(last.rpartition("-")[2]) if last else 0)
    note = folder / "seconds.txt"
    if done_now or not note.exists():  # a call with nothing left to do adds none
        write_atomically(note, str(output.metrics["train_runtime"] * output.global_step / max(1, done_now)))
    seconds = float(note.read_text(encoding="utf-8"))
    # On a GPU, accelerate has wrapped `forward` in half precision; the model is to compute in float32 again.
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False).eval()
    rows = [row for row in trainer.state.log_history if "loss" in row]
    return model, TrainingLog(len(rows), seconds, [row["loss"] for row in rows], rows)


class StepBar(ProgressCallback):
    """One bar for a trainer in place of its table, which would grow by a row at every step."""

    def __init__(self, label: str) -> None:
        super().__init__()
        self.label = label

    def on_log(self, args: Any, state: Any, control: Any, logs: dict | None = None, **_: Any) -> None:
        """Show the latest loss."""
        if self.training_bar is not None and logs and "loss" in logs:
            self.training_bar.set_description(self.label)
            self.training_bar.set_postfix(loss=f"{float(logs['loss']):.3f}")
