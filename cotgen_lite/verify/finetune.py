"""Supervised fine-tuning of verifiers with trl: the lite LLaVA, and real ones in full or through LoRA.

Paper: section 3.2 (ORM and PRM: one epoch, batches of 8).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from cotgen_lite.training import TrainerSettings, check_same_run, fingerprint, run_trainer, trainer_arguments
from cotgen_lite.verify.verifier import Verifier

if TYPE_CHECKING:
    from peft import LoraConfig


@dataclass(frozen=True)
class FineTuning(TrainerSettings):
    """How a verifier is fine-tuned; the paper's are 1 epoch, batches of 8 and a learning rate of 1e-5 for 7 B."""


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
    arguments = SFTConfig(
        **trainer_arguments(settings, len(dataset), Path(work_dir), verifier.model.device),
        remove_unused_columns=False,
        assistant_only_loss=True,
        max_length=None,
        activation_checkpointing=verifier.model.device.type == "cuda",
    )
    trainer = AnswerTrainer(
        model=verifier.model,
        args=arguments,
        train_dataset=dataset,
        processing_class=verifier.processor,
        peft_config=lora,
    )
    model, log = run_trainer(trainer, "fine-tuning")
    tuned = Verifier(model.merge_and_unload() if lora is not None else model, verifier.processor)
    return tuned, log.losses, log.seconds


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
