"""How long everything is trained and how much is measured: the amounts of the course, of a small world and of tests.

All seeds are fixed where they are used. What the steps do with these numbers: `build.py` lists them.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from cotgen_lite.lite.generator_training import Stage
from cotgen_lite.lite.tokenizer_training import TokenizerTraining
from cotgen_lite.lite.verifier_training import VerifierTraining
from cotgen_lite.pools import stratified_subset
from cotgen_lite.prompts import TAGS, Prompt, lite_prompts


def _per_tag(*amounts: Any) -> Callable[[], dict[str, Any]]:
    """Makes a dictionary of an amount for each tag, in the order of `TAGS`."""
    return lambda: dict(zip(TAGS, amounts, strict=True))


@dataclass(frozen=True)
class Config:
    """The amounts of the whole build; the defaults are the course's own."""

    flag: str = ""  # of the build's command, by which these amounts are chosen
    steps: tuple[str, ...] = ()  # those that are made where none is named; all, if there is none
    # The tokenizer first learns to rebuild, then to be certain: the same patch in the same code wherever it stands,
    # which leaves the generator less to learn (392 codes in use, an icon in 4 different spellings instead of 19).
    tokenizer: tuple[TokenizerTraining, ...] = (
        TokenizerTraining(1200, batch=32, certainty=0.002, commitment=0.03, seed=0),
        TokenizerTraining(300, batch=32, learning_rate=1e-3, certainty=0.05, commitment=0.5, seed=1),
        TokenizerTraining(350, batch=32, learning_rate=1.2e-3, certainty=0.2, commitment=1.0, seed=2),
        TokenizerTraining(250, batch=32, learning_rate=1.2e-3, certainty=0.1, commitment=1.0, foreground=8.0, seed=3),
    )
    judge_steps: int = 1200
    # Right captions first, of what is learned late; then noisy ones of all kinds. Mostly hidden images teach places.
    generator: tuple[Stage, ...] = (
        Stage(
            1400, False, {"position": 0.35, "color_attr": 0.5, "single_object": 0.15}, mask_power=0.5, pictures=40_000
        ),
        Stage(900, True, muon_rate=0.004, learning_rate=1e-3, mask_power=0.7, seed=1),
    )
    twins: int = 320  # of each skill, by which it is told what the generator has learned
    autoregressive: tuple[Stage, ...] = (Stage(4000, True, muon_rate=None, learning_rate=2e-3, batch=64),)
    verifier: VerifierTraining = field(default_factory=VerifierTraining)
    verifier_scenes: int = 1000  # of each tag, clean ones of dev prompts, by which it is told how well it sees
    explained_scenes: int = 100  # of each tag, clean ones, half of which the verifier explains what is wrong with
    pilot_prompts: dict[str, int] = field(default_factory=_per_tag(4, 84, 20, 60, 160, 172))  # 500, for DPO and ORM
    pilot_images: int = 8  # a prompt
    # What is measured.
    prompt_stride: int = 1  # one in so many dev and test prompts of each tag
    pool_size: int = 20  # candidates a test prompt
    guidance_dev_images: int = 2  # a dev prompt and guidance scale
    judge_test_scenes: int = 2000
    verifier_test_scenes: int = 400  # of each tag, on which the zero-shot verifier is checked
    prm_first_steps: dict[str, tuple[int, ...]] = field(
        default_factory=lambda: {"zs-prm": (1,), "ft-prm": (1, 4, 8, 12)}  # from which on each PRM may speak
    )
    estimator_pairs: int = 100  # of which the noise in estimates of log-probability is measured
    extra_seeds: tuple[int, ...] = (1, 2)  # other training seeds of both rounds of DPO
    extra_seed_images: int = 4  # a pool, by which these are measured
    best_of_many_prompts: int = 8  # of each tag but the easiest, for best-of-n far beyond the usual n
    best_of_many_images: int = 200
    # The verifiers' fine-tuning.
    orm_prompts: dict[str, tuple[int, int]] = field(  # and how many pools of each
        default_factory=_per_tag((4, 2), (48, 1), (16, 4), (60, 1), (300, 1), (372, 1))
    )
    orm_images: int = 30  # a pool
    orm_images_per_label: int = 10  # of a pool, at most, that the ORM learns from
    prm_prompts: dict[str, int] = field(default_factory=_per_tag(4, 48, 16, 60, 180, 192))  # of one path each
    prm_recheck_stride: int = 10  # of one in so many of those prompts another path is labelled with more rollouts
    parm_prompts: dict[str, int] = field(default_factory=_per_tag(4, 48, 16, 60, 300, 300))
    parm_paths: int = 6  # a prompt, of which a right and a wrong one are kept
    verifier_learning_rates: tuple[float, ...] = (1e-5, 1e-4, 3e-4, 1e-3)  # tried on ORM and PRM; dev images decide
    parm_learning_rates: tuple[float, ...] = (1e-4, 3e-4)
    verifier_dev_images: int = 8  # a prompt
    # The generators' alignment.
    pairs_per_prompt: int = 10  # at most, of right and wrong images
    dpo_learning_rates: tuple[float, ...] = (1e-4, 2e-4, 4e-4)  # tried; dev prompts decide
    autoregressive_dpo_learning_rates: tuple[float, ...] = (2e-5, 5e-5, 1e-4)
    generator_dev_images: int = 4  # a prompt
    round_two_prompts: dict[str, int] = field(default_factory=_per_tag(4, 48, 16, 60, 300, 372))
    round_two_images: int = 10  # a prompt
    online_prompts: int = 2  # a step of guided DPO
    online_samples: int = 4  # of each
    corrections_per_prompt: int = 30  # wrong images at most that the generator learns to correct
    correction_steps: int = 3000
    correction_learning_rate: float = 1e-3
    replay_pictures: int = 8000  # of pre-training, mixed in

    @property
    def dev_prompts(self) -> tuple[Prompt, ...]:
        """The dev prompts on which settings are chosen."""
        return stratified_subset(lite_prompts("dev"), self.prompt_stride)


LITE = Config()
# Six objects in four colours are an eighth of what the second world has to tell apart: half an hour will do for what
# draws and judges them (notebooks/YOUR_WORLD.md; measured in results/own_world.json).
SMALL = replace(
    LITE,
    flag="--small",
    steps=("prompts", "tokenizer", "judge", "generator", "calibration"),
    tokenizer=tuple(replace(phase, steps=phase.steps // 3, batch=16) for phase in LITE.tokenizer),
    judge_steps=300,
    generator=(
        replace(LITE.generator[0], steps=400, pictures=10_000),
        replace(LITE.generator[1], steps=300, muon_rate=0.008, pictures=8_000),
    ),
    twins=48,
    pool_size=8,
)
# fmt: off
QUICK = Config(
    flag="--quick",
    tokenizer=(TokenizerTraining(20, batch=16), TokenizerTraining(20, batch=16, seed=1)), judge_steps=10,
    generator=(Stage(6, False, pictures=128), Stage(6, True, pictures=128, seed=1)),
    autoregressive=(Stage(10, True, muon_rate=None, pictures=256),), twins=4,
    verifier=VerifierTraining(4, 2, 4), verifier_scenes=8, explained_scenes=4,
    pilot_prompts=dict.fromkeys(TAGS, 1), pilot_images=4,
    prompt_stride=30, pool_size=2, judge_test_scenes=20, verifier_test_scenes=4, estimator_pairs=4,
    prm_first_steps={"zs-prm": (1,), "ft-prm": (1,)}, extra_seeds=(1,), extra_seed_images=1,
    best_of_many_prompts=1, best_of_many_images=6, orm_prompts=dict.fromkeys(TAGS, (1, 1)), orm_images=6,
    orm_images_per_label=2, prm_prompts=dict(zip(TAGS, (1, 0, 0, 1, 0, 0), strict=True)), prm_recheck_stride=2,
    parm_prompts=dict.fromkeys(TAGS, 1), parm_paths=4, verifier_learning_rates=(1e-4,), parm_learning_rates=(1e-4,),
    verifier_dev_images=2, pairs_per_prompt=2, dpo_learning_rates=(1e-4,), generator_dev_images=1,
    autoregressive_dpo_learning_rates=(1e-4,), round_two_prompts=dict.fromkeys(TAGS, 1), round_two_images=4,
    online_prompts=1, online_samples=2, corrections_per_prompt=2, correction_steps=5, correction_learning_rate=5e-4,
    replay_pictures=64,
)
# fmt: on
