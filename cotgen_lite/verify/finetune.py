"""Supervised fine-tuning of verifiers with trl: the lite LLaVA, and real ones in full or through LoRA.

Paper: section 3.2 (ORM and PRM: one epoch, batches of 8).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset
from transformers.trainer_utils import get_last_checkpoint
from trl import SFTConfig, SFTTrainer

from cotgen_lite.training import StepBar, check_same_run, fingerprint, rising_share, seconds_of_run
from cotgen_lite.verify.verifier import Verifier

if TYPE_CHECKING:
    from peft import LoraConfig


@dataclass(frozen=True)
class FineTuning:
    """How a verifier is fine-tuned; the paper's are 1 epoch, batches of 8 and a learning rate of 1e-5 for 7 B."""

    learning_rate: float
    epochs: float = 1
    batch_size: int = 8
    warmup: float = 0.1  # share of steps in which the rate rises; then it falls as a cosine
    save_steps: int = 500
    seed: int = 0


def finetune_verifier(
    verifier: Verifier,
    dataset: Dataset,
    settings: FineTuning,
    work_dir: str | Path,
    lora: "LoraConfig | None" = None,
) -> tuple[Verifier, list[float], float]:
    """Teach a verifier the answers of a dataset of conversations; the loss is on the answers alone.

    Args:
        verifier: its model is trained in place.
        dataset: rows of `messages` and `images`, as `ranking.as_dataset` makes them.
        settings: learning rate, epochs, batch.
        work_dir: checkpoints; an interrupted call goes on from the last one there.
        lora: train a low-rank adapter instead of all weights, and merge it into them at the end.

    Returns:
        The fine-tuned verifier, the loss of every step, and the seconds of training (after an interrupt, what all steps
        take at the pace of the last).

    Raises:
        ValueError: for an empty dataset, a chat template that does not mark answers or writes them elsewhere than where
            P(yes) is read, or a `work_dir` that holds another run.
    """
    if len(dataset) == 0:
        raise ValueError("There is nothing to learn from: the dataset has no rows.")
    if "{% generation %}" not in verifier.processor.chat_template:
        raise ValueError(
            "The chat template does not mark answers, so the loss cannot be put on them alone: write "
            "{% generation %} before and {% endgeneration %} after an answer in processor.chat_template."
        )
    _check_where_answers_stand(verifier.processor)
    check_same_run(Path(work_dir), _describe(verifier, dataset, settings, lora))
    on_gpu = verifier.model.device.type == "cuda"
    arguments = SFTConfig(
        output_dir=str(work_dir),
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=rising_share(settings.warmup, len(dataset) * settings.epochs, settings.batch_size),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size,
        seed=settings.seed,
        save_steps=settings.save_steps,
        save_total_limit=1,
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        assistant_only_loss=True,
        max_length=None,
        use_cpu=not on_gpu,
        bf16=on_gpu,
        activation_checkpointing=on_gpu,
        dataloader_pin_memory=on_gpu,
    )
    trainer = AnswerTrainer(
        model=verifier.model,
        args=arguments,
        train_dataset=dataset,
        processing_class=verifier.processor,
        peft_config=lora,
    )
    StepBar.attach(trainer, "fine-tuning")
    last = get_last_checkpoint(str(work_dir))
    output = trainer.train(resume_from_checkpoint=last)
    seconds = seconds_of_run(Path(work_dir), output, last)
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    # On a GPU, accelerate has wrapped `forward` in half precision; log-odds are to be float32 again.
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    return Verifier(model.merge_and_unload() if lora is not None else model, verifier.processor), losses, seconds


def _check_where_answers_stand(processor: Any) -> None:
    """ValueError if what stands before an answer in training is not what stands there when P(yes) is read."""
    asked = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "question"}]}]
    told = [*asked, {"role": "assistant", "content": [{"type": "text", "text": "yes"}]}]
    scored = processor.apply_chat_template(asked, add_generation_prompt=True)
    if not processor.apply_chat_template(told).startswith(f"{scored}yes"):
        raise ValueError(
            "The chat template writes answers elsewhere than right after its generation prompt, where P(yes) is read: "
            f"use one in which a conversation goes on as {scored + 'yes'!r}."
        )


def _describe(verifier: Verifier, dataset: Dataset, settings: FineTuning, lora: "LoraConfig | None") -> str:
    """A checksum of all that a run depends on: weights, data, settings."""
    rows = dataset.with_format(None)
    # Images are as dear to read as to train on; the columns beside them tell runs apart.
    data = [rows[name][:] for name in rows.column_names if name != "images"]
    return fingerprint((verifier.model,), settings, lora, len(dataset), data)


class AnswerTrainer(SFTTrainer):
    """trl's trainer, except that it finds the weights again when it goes on from a checkpoint."""

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        # `save_pretrained` writes LLaVA's weights under the names of older files. The library's own method looks for
        # today's names, finds none, warns, and goes on with the weights that it was given.
        target = self.model if model is None else model
        if hasattr(target, "peft_config"):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            target.load_state_dict(type(target).from_pretrained(resume_from_checkpoint).state_dict())
