"""DPO of the lite next-token generator with trl's own trainer: the log-probability of its images is exact.

Generators that read captions through another model (LlamaGen) or in words of their own (Janus) are not trained here.
Paper: section 4, table 4.
"""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerBase
from transformers.trainer_utils import get_last_checkpoint
from trl import DPOConfig, DPOTrainer

from cotgen_lite.generate.autoregressive import Sequential, sequence_ids
from cotgen_lite.generate.drawing import fingerprint
from cotgen_lite.lite.vocabulary import encode_text
from cotgen_lite.prompts import Prompt
from cotgen_lite.training import StepBar, check_same_run, rising_share, seconds_of_run


class _ReadyIds(DPOTrainer):
    """trl's trainer on ids as they are: there is no text to tokenise, and an image needs no end token."""

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        return dataset  # trl's own would append an end token to every image


def train_sequential_dpo(
    model: Sequential,
    words: PreTrainedTokenizerBase,
    triples: Sequence[tuple[Prompt, Tensor, Tensor]],
    learning_rate: float,
    work_dir: Path,
    beta: float = 0.1,
    batch_size: int = 10,
    seed: int = 0,
) -> tuple[list[dict[str, float]], float]:
    """Align a next-token generator in place, one epoch; the reference is what it is at the start, frozen.

    triples: prompt, chosen and rejected codes (L,). Resumes from `work_dir`. Returns for every step the loss, reward
    margin and accuracy, and the rewards of chosen and rejected images (β times what their log-probability has gained);
    and the seconds of training. ValueError without pairs, or for a `work_dir` that holds another run.
    """
    if not triples:
        raise ValueError("There is nothing to learn from: give at least one pair.")
    rows = [
        {
            "prompt_ids": sequence_ids(model.config, encode_text(words, prompt.text)),
            "chosen_ids": chosen.tolist(),
            "rejected_ids": rejected.tolist(),
        }
        for prompt, chosen, rejected in triples
    ]
    check_same_run(work_dir, fingerprint((model,), rows, learning_rate, beta, batch_size, seed))
    on_gpu = model.device.type == "cuda"
    arguments = DPOConfig(
        output_dir=str(work_dir),
        beta=beta,
        learning_rate=learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=rising_share(0.1, len(triples), batch_size),
        num_train_epochs=1,
        per_device_train_batch_size=batch_size,
        seed=seed,
        save_steps=50,
        save_total_limit=1,
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
        use_cpu=not on_gpu,
        bf16=on_gpu,
        gradient_checkpointing=False,
        max_length=None,
    )
    model.generation_config = GenerationConfig()  # where trl notes the pad
    reference = copy.deepcopy(model).eval().requires_grad_(False)
    trainer = _ReadyIds(model, reference, arguments, train_dataset=Dataset.from_list(rows), processing_class=words)
    StepBar.attach(trainer, "DPO")
    last = get_last_checkpoint(str(work_dir))
    output = trainer.train(resume_from_checkpoint=last)
    trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False).eval()
    model.__dict__.pop("forward", None)  # trl's, which would follow a copy of the model around with the old weights
    names = {"loss": "loss", "rewards/margins": "margin", "rewards/accuracies": "accuracy"}
    names |= {"rewards/chosen": "chosen", "rewards/rejected": "rejected"}
    steps = [row for row in trainer.state.log_history if "rewards/margins" in row]
    told = [{ours: row[theirs] for theirs, ours in names.items()} for row in steps]
    return told, seconds_of_run(work_dir, output, last)
