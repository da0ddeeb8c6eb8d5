"""A course on verifying and reinforcing image generation step by step (arXiv 2501.13926), at laptop scale.

What notebooks need can be imported from here by name; nothing is loaded before it is asked for. To understand the
paper, read `prompts` and `geneval`, then the folders `generate` (sections 2 and 3.1 of the paper), `verify` (3.2, 4
and 5) and `align` (3.3 to 5).
"""

from __future__ import annotations  # the doctor starts on an old Python, to say that it is too old

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "hub": "data_path model_path use_data",
    "prompts": "GENEVAL TAGS Prompt colored encode_text lite_prompts parse_prompt to_record two_object",
    "geneval": "evaluate judge",
    "metrics": "calibration calibration_error expected_best_of paired_interval score tag_means",
    "pools": "Pool load_pool stratified_subset",
    "generate.vq": "MagvitConfig images_at_once",
    "generate.pipeline": "Generator GeneratorOutput load_generator",
    "generate.autoregressive": (
        "AutoregressiveGenerator AutoregressiveSettings load_autoregressive pad_texts sequence_ids"
    ),
    "verify.verifier": (
        "CLARITY_QUESTION ORM_QUESTION POTENTIAL_QUESTION PRM_QUESTION REFLECTION_QUESTION Verifier load_verifier "
        "probability_yes"
    ),
    "verify.search": "best_of_n parm_search prm_search reflect",
    "verify.finetune": "FineTuning finetune_verifier",
    "verify.reasons": "write_reasons",
    "align.dpo": "DpoTraining preference_pairs reward_margins train_dpo",
    "lite.world": "CaptionNoise render scene_for world",
    "lite.judges": "TemplateJudge load_judge",
    "lite.edit_targets": "corrections",
    "full_scale.models": "RELEASED parameters",
    "full_scale.tiny_random_models": "save_all",
    "full_scale.llamagen": "LlamaGenGenerator",
    "full_scale.janus": "JanusGenerator",
    "full_scale.mask2former": "Mask2FormerDetector self_check write_geneval_results",
    "experiments.results": "read_rows results",
    "experiments.findings": "FINDINGS",
    "experiments.report": "JANUS LABELS PAPER paper_scores paper_table rows_by_method",
}
_MODULE_OF = {name: module for module, names in _PUBLIC.items() for name in names.split()}
__all__ = [*_MODULE_OF]


def __getattr__(name: str) -> Any:
    """A public name, its module imported when it is first asked for."""
    if name not in _MODULE_OF:
        raise AttributeError(f"cotgen_lite has no {name!r}: see `dir(cotgen_lite)`, or import the module that has it.")
    return getattr(import_module(f"cotgen_lite.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULE_OF])
