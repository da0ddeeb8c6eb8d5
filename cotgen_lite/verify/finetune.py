"""Supervised fine-tuning of verifiers with trl: the lite LLaVA, and real ones in full or through LoRA.

Paper: section 3.2 (ORM and PRM: one epoch, batches of 8). What is learned from is made in training_data.py; what
a tuned verifier is for stands in search.py. Read next: reasons.py.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cotgen_lite.hub import work_folder
from cotgen_lite.identity import check_same_run, fingerprint
from cotgen_lite.training import TrainerSettings, TrainingLog, run_trainer, trainer_arguments
from cotgen_lite.verify.verifier import Verifier

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import LoraConfig


@dataclass(frozen=True)
class FineTuning(TrainerSettings):
    """How a verifier is fine-tuned; the paper's are 1 epoch, batches of 8 and a learning rate of 1e-5 for 7 B."""


def finetune_verifier(
    verifier: Verifier,
    dataset: "Dataset",
    settings: FineTuning,
    work_dir: str | Path | None = None,
    lora: "LoraConfig | None" = None,
) -> tuple[Verifier, TrainingLog]:
    """Teach a verifier the answers of a dataset of conversations, its model in place; the loss is on answers alone.

    dataset: rows of `messages` and `images`, as `as_dataset` makes them. work_dir: for checkpoints, from the last of
    which an interrupted call goes on; without one, none are kept. lora: train a low-rank adapter instead of all
    weights, and merge it into them at the end.
    Returns the fine-tuned verifier and its log: the loss of every step, and the seconds (after an interrupt, what all
    steps take at the pace of the last). ValueError for an empty dataset, a chat template that does not mark answers or
    writes them elsewhere than where P(yes) is read, or a `work_dir` that holds another run. Paper: section 3.2.
    """
    from trl import SFTConfig

    if len(dataset) == 0:
        raise ValueError("There is nothing to learn from: the dataset has no rows.")
    if "{% generation %}" not in verifier.processor.chat_template:
        raise ValueError(
            "The chat template does not mark answers, so the loss cannot be put on them alone: write "
            "{% generation %} before and {% endgeneration %} after an answer in processor.chat_template."
        )
    _check_where_answers_stand(verifier.processor)
    # Images are as dear to read as to train on; the columns beside them tell runs apart.
    rows = dataset.with_format(None)
    data = [rows[name][:] for name in rows.column_names if name != "images"]
    with work_folder(work_dir) as folder:
        check_same_run(folder, fingerprint((verifier.model,), settings, lora, len(dataset), data))
        arguments = SFTConfig(
            **trainer_arguments(settings, len(dataset), folder, verifier.model.device),
            remove_unused_columns=False,
            assistant_only_loss=True,
            max_length=None,
            activation_checkpointing=verifier.model.device.type == "cuda",
        )
        trainer = _answer_trainer()(
            model=verifier.model,
            args=arguments,
            train_dataset=dataset,
            processing_class=verifier.processor,
            peft_config=lora,
        )
        model, log = run_trainer(trainer, "fine-tuning")
    return Verifier(model.merge_and_unload() if lora is not None else model, verifier.processor), log


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


def _answer_trainer() -> Any:
    """Trl's trainer, except that it finds the weights again when it goes on from a checkpoint."""
    from trl import SFTTrainer

    class AnswerTrainer(SFTTrainer):
        def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
            # `save_pretrained` writes LLaVA's weights under the names of older files. The library's own method looks
            # for today's names, finds none, warns, and goes on with the weights that it was given.
            target = self.model if model is None else model
            if hasattr(target, "peft_config"):
                super()._load_from_checkpoint(resume_from_checkpoint, model)
            else:
                target.load_state_dict(type(target).from_pretrained(resume_from_checkpoint).state_dict())

    return AnswerTrainer
