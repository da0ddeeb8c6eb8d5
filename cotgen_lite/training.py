"""How models are trained: one loop for all that is pre-trained here, and one way to run transformers' trainers.

First the loop (`train`): AdamW, warm-up and cosine, resuming. Then, for fine-tuning (section 3.2) and DPO
(section 3.3), what transformers' and trl's trainers have in common: settings, arguments, a progress bar.
Read next: prompts.py.
"""

import json
import math
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed, nn
from tqdm.auto import tqdm
from transformers import PrinterCallback, ProgressCallback, TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from cotgen_lite.hub import (
    HALF_WRITTEN,
    disk_is_full,
    file_sha256,
    first_line,
    in_place_of,
    write_atomically,
    write_json,
)
from cotgen_lite.identity import fingerprint, refuse_other_run
from cotgen_lite.inputs import all_whole, folder, number, of_kind, settle, shaped, shown, text, whole, with_methods
from cotgen_lite.loading import load_pickle
from cotgen_lite.muon import Muon

if TYPE_CHECKING:
    from transformers import Trainer

CHECKPOINT = "checkpoint.pt"
WHOLE = "whole.json"  # in a folder `checkpoint-N`, written last: the sha256 of every file there
LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR")  # variables that say which process this is
MOST_STEPS, MOST_AT_ONCE = 1_000_000, 65_536  # steps of a run; examples in a batch
LARGEST_SEED, LARGEST_RATE = 2**32 - 1, 1e9  # numpy's; what float32 can still multiply


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
    muon_rate: float | None = None,
) -> TrainingLog:
    """Train in place up to `steps`, going on from the checkpoint in `work_dir` if there is one.

    loss_at: the loss of a step (its number is all that it may depend on, beside the weights, so that a resumed run sees
    the data that an uninterrupted one sees). warmup: share of steps in which the rate rises; then it falls as a cosine
    to 1% of `learning_rate`. Gradients are clipped to norm 1. work_dir: None keeps no checkpoint; else it stays, so a
    finished run returns at once, and an interrupted one goes on, given the model as it was at first. about: what else
    the run depends on beside that model: data and their settings. muon_rate: if given, weight matrices learn by `Muon`
    at this peak, and AdamW is left the rest. ValueError if the checkpoint is damaged or that of another run; or if the
    loss, its gradient or a weight is not finite any more: it names the step, and the last checkpoint stays.
    """
    of_kind(model, "model", nn.Module, "a network of torch")
    with_methods(loss_at, "loss_at", ("__call__",), "a function from a step to its loss")
    of_kind(about, "about", (Mapping, type(None)), "a mapping, or None")
    label, save_seconds = text(label, "label"), number(save_seconds, "save_seconds", 0)
    if not any(weight.requires_grad for weight in model.parameters()):
        raise ValueError(f"model must have weights to train, and a {type(model).__name__} has none.")
    steps, learning_rate = whole(steps, "steps", 1, MOST_STEPS), number(learning_rate, "learning_rate", 0, LARGEST_RATE)
    weight_decay, warmup = number(weight_decay, "weight_decay", 0), number(warmup, "warmup", 0, 1)
    run = fingerprint((model,), steps, learning_rate, weight_decay, warmup, dict(about or {}), muon_rate)
    optimizer: torch.optim.Optimizer
    if muon_rate is None:
        betas = 0.9, 0.98
        optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=weight_decay, betas=betas)
    else:
        optimizer = Muon(model, number(muon_rate, "muon_rate", 0, LARGEST_RATE), learning_rate, weight_decay)
    peaks = [group["lr"] for group in optimizer.param_groups]
    checkpoint = folder(work_dir, "work_dir") / CHECKPOINT if work_dir is not None else None
    log, recent = TrainingLog(), []
    if checkpoint:
        delete_parts(checkpoint.parent, CHECKPOINT)
    if checkpoint and checkpoint.exists():
        state = read_checkpoint(checkpoint, run)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        log = TrainingLog(**state["log"])
        torch.set_rng_state(state["rng"][0])  # of dropout, if the model has any
        torch.cuda.set_rng_state_all(state["rng"][1:])
    started = saved = time.monotonic()
    earlier_seconds = log.seconds
    model.train()
    with tqdm(total=steps, initial=log.steps, desc=label, smoothing=0.05) as bar:
        while log.steps < steps:
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * _schedule(log.steps / steps, warmup)
            loss = of_kind(loss_at(log.steps), "a loss", Tensor, "a tensor")
            if loss.ndim or not loss.requires_grad:
                raise ValueError(f"A loss must be a single number with a gradient, got {shown(loss)}.")
            loss.backward()
            norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            log.steps += 1
            recent.append(loss.item())
            refuse_divergence(log.steps, {"loss": recent[-1], "gradient norm": norm.item()})
            optimizer.step()
            optimizer.zero_grad()
            log.seconds = earlier_seconds + time.monotonic() - started
            bar.update()
            if log.steps % 50 == 0 or log.steps == steps:
                log.losses.append(sum(recent) / len(recent))
                recent.clear()
                bar.set_postfix(loss=f"{log.losses[-1]:.3f}")
            due = log.steps == steps or (time.monotonic() - saved > save_seconds and not recent)
            if due:
                refuse_divergence(log.steps, {}, model)
            if due and checkpoint:
                state = {"run": run, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
                state |= {"log": vars(log), "rng": [torch.get_rng_state(), *torch.cuda.get_rng_state_all()]}
                with in_place_of(checkpoint) as part:
                    torch.save(state, part)
                saved = time.monotonic()
    model.eval()
    return log


def _schedule(done: float, warmup: float) -> float:
    if done < warmup:
        return (done + 1e-3) / (warmup + 1e-3)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup)))


def read_checkpoint(path: Path, run: str) -> dict[str, Any]:
    """A run's state as `torch.save` wrote it: tensors and plain data alone, and no code is run.

    ValueError names a file that is damaged, or the folder if the state is another run's.
    """
    try:
        state = of_kind(load_pickle(path), "what it holds", dict, "a run's state")
    except Exception as error:  # whatever damaged bytes lead to
        raise ValueError(f"{path} is damaged ({first_line(error)}): delete it to start afresh.") from error
    refuse_other_run(path.parent, str(state.get("run")), run)
    return state


def delete_parts(work: Path, start: str = "") -> None:
    """Delete what a killed process has left of files that it was writing, or of those whose names start so."""
    for part in [path for path in work.glob(f"{start}*") if path.is_file() and HALF_WRITTEN.fullmatch(path.name)]:
        part.unlink(missing_ok=True)


def refuse_divergence(step: int, values: Mapping[str, float], model: nn.Module | None = None) -> None:
    """ValueError, which names the step, if a loss, a gradient's norm or a weight of the model is not finite."""
    wrong = [f"its {name} is {value}" for name, value in values.items() if not math.isfinite(value)]
    if model is not None:
        bad = (name for name, weight in model.named_parameters() if not weight.isfinite().all())
        wrong += [f"weights are not finite ({name} first)" for name in list(bad)[:1]]
    if wrong:
        raise ValueError(
            f"Training diverged at step {step}: {wrong[0]}. The last checkpoint before it, if any, stays: "
            "take a lower learning rate, and check the data."
        )


def stack_tokens(images: Sequence[Tensor] | Tensor, length: int, codes: int) -> Tensor:
    """Images to learn from, tokens int64 (B, L): at least one, each L whole numbers below `codes`, or ValueError."""
    if not len(images):
        raise ValueError("There is no image to learn from: give the tokens of at least one.")
    for image in images:
        shaped(of_kind(image, "an image's tokens", Tensor, "a tensor"), "an image's tokens", (length,))
    stacked = torch.stack(list(images))
    if not all_whole(stacked) or stacked.min() < 0 or stacked.max() >= codes:
        raise ValueError(
            f"An image's tokens must be whole numbers from 0 to {codes - 1}, got {stacked.dtype} from "
            f"{stacked.min()} to {stacked.max()}: give finished images of this generator's own tokenizer."
        )
    return stacked.long()


def subsample(losses: Sequence[float]) -> list[float]:
    """Some forty to eighty of the losses of a run, evenly spread: for its manifest."""
    some = of_kind(losses, "losses", Sequence, "a list of numbers")[:: max(1, len(losses) // 40)]
    return [round(number(loss, "each of losses"), 4) for loss in some]


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

    def __post_init__(self) -> None:
        settle(
            self,
            learning_rate=number(self.learning_rate, "learning_rate", 0, LARGEST_RATE),
            epochs=number(self.epochs, "epochs", above=0, most=10_000),
            batch_size=whole(self.batch_size, "batch_size", 1, MOST_AT_ONCE),
            warmup=number(self.warmup, "warmup", 0, 1),
            save_steps=whole(self.save_steps, "save_steps", 1, MOST_STEPS),
            seed=whole(self.seed, "seed", 0, LARGEST_SEED),
        )


def trainer_arguments(settings: TrainerSettings, examples: int, work: Path, device: torch.device) -> dict[str, Any]:
    """What `TrainingArguments`, and trl's kinds of it, are given: examples to learn from, a folder for checkpoints.

    On a GPU the model computes in bfloat16. ValueError if others are said to train too, and nothing started them.
    """
    refuse_to_wait()
    of_kind(settings, "settings", TrainerSettings, "TrainerSettings")
    on_gpu = of_kind(device, "device", torch.device, "a device of torch").type == "cuda"
    rises = examples * settings.epochs > settings.batch_size  # warm-up makes one step at rate 0: the only one, maybe
    return {
        "output_dir": str(work),
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": "cosine",
        # Of 1, transformers would make a single step.
        "warmup_steps": min(settings.warmup, math.nextafter(1, 0)) if rises else 0.0,
        "num_train_epochs": settings.epochs,
        "per_device_train_batch_size": settings.batch_size,
        "seed": settings.seed,
        "save_steps": settings.save_steps,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # it shows a NaN as 0
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": not on_gpu,
        "bf16": on_gpu,
        "dataloader_pin_memory": on_gpu,
    }


def refuse_to_wait() -> None:
    """ValueError if a launcher's variables speak of other processes, but no launcher started this one.

    The trainers would wait for them without a word.
    """
    said = {name: os.environ[name] for name in LAUNCHERS if name in os.environ}
    others = said.get("WORLD_SIZE", "1") != "1" or ("LOCAL_RANK" in said and "MASTER_ADDR" not in said)
    if others and not (distributed.is_torchelastic_launched() or distributed.is_initialized()):
        raise ValueError(
            f"{', '.join(f'{name}={value}' for name, value in said.items())} in the environment would make training "
            "wait for other processes, and no launcher started this one: start all of them with `accelerate launch`, "
            f"or `unset {' '.join(said)}` to train alone."
        )


def run_trainer(trainer: "Trainer", label: str) -> tuple[Any, TrainingLog]:
    """Train, going on from the last checkpoint in the trainer's folder; the model, for evaluation, and the log.

    label: of the progress bar. After an interrupt the log's seconds are what all steps take at the pace of the last.
    What is half-written in the folder is deleted first. ValueError if training diverges, as in `train`, or for a file
    where a checkpoint's folder is to stand; OSError names the folder if the disk is full.
    """
    with_methods(trainer, "trainer", ("train", "remove_callback"), "a Trainer of transformers")
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(StepBar(label))
    trainer.add_callback(WholeCheckpoints())
    work = Path(str(trainer.args.output_dir))
    if files := [path for path in checkpoints(work) if not path.is_dir()]:
        raise ValueError(f"{files[0]} must be a folder, as a trainer saves it, and is a file: delete it.")
    trainer.accelerator.wait_for_everyone()
    if trainer.is_world_process_zero():
        delete_parts(work)
        for checkpoint in checkpoints(work):
            if not is_whole(checkpoint):
                shutil.rmtree(checkpoint)
    trainer.accelerator.wait_for_everyone()
    last = get_last_checkpoint(str(work))
    try:
        output = trainer.train(resume_from_checkpoint=last)
    except Exception as error:
        if disk_is_full(error, work):
            raise OSError(
                f"No space left for {work}, the disk is full: free some, and the same call, with its model loaded "
                "afresh, goes on where it was."
            ) from error
        raise
    done_now = output.global_step - (int(last.rpartition("-")[2]) if last else 0)
    note = work / "seconds.txt"
    seconds = _seconds(note)
    if done_now or seconds is None:  # a call with nothing left to do adds none
        seconds = output.metrics["train_runtime"] * output.global_step / max(1, done_now)
        write_atomically(note, str(seconds))
    # On a GPU, accelerate has wrapped `forward` in half precision; the model is to compute in float32 again.
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False).eval()
    rows = [row for row in trainer.state.log_history if "loss" in row]
    return model, TrainingLog(len(rows), seconds, [row["loss"] for row in rows], rows)


def _seconds(note: Path) -> float | None:
    """The seconds that a file notes; None if it is missing or damaged."""
    try:
        seconds = float(note.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):  # of UTF-8 too
        return None
    return seconds if math.isfinite(seconds) else None


def checkpoints(work: Path) -> list[Path]:
    """Folders that transformers' trainers have saved; what somebody copied there under a longer name is not of them."""
    return [path for path in work.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]


def is_whole(checkpoint: Path) -> bool:
    """Whether all that was saved in a checkpoint's folder is there, unharmed, by the note that is written last."""
    try:
        sums = json.loads((checkpoint / WHOLE).read_text(encoding="utf-8"))
        return bool(sums) and all(file_sha256(checkpoint / name) == expected for name, expected in sums.items())
    except (OSError, ValueError, AttributeError):
        return False


class WholeCheckpoints(TrainerCallback):
    """Stops a training that diverges before that is saved, and notes in a checkpoint, last, that it is whole.

    Only then are older checkpoints deleted, so that there is always one to go on from.
    """

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict | None = None, model: Any = None, **_: Any
    ) -> None:
        """Look at the latest loss and its gradient, and at the weights if they are about to be saved."""
        values = {name: float(logs[key]) for key, name in GUARDED.items() if key in logs} if logs else {}
        refuse_divergence(state.global_step, values, model if control.should_save else None)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Note the checksums, and delete older checkpoints."""
        args.distributed_state.wait_for_everyone()  # each process writes its share of the checkpoint
        if state.is_world_process_zero:
            here = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            files = sorted(path for path in here.rglob("*") if path.is_file())
            write_json(here / WHOLE, {path.relative_to(here).as_posix(): file_sha256(path) for path in files})
            for other in checkpoints(here.parent):
                if other != here:
                    shutil.rmtree(other)


GUARDED = {"loss": "loss", "grad_norm": "gradient norm"}  # as transformers and as we name them


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
