"""How long everything is trained and how much is measured: the course's own config, and a toy one for tests."""

from dataclasses import dataclass

from cotgen_lite.lite.tokenizer_training import TokenizerTraining
from cotgen_lite.prompts import TAGS


@dataclass(frozen=True)
class Config:
    """How long everything is trained and how much is measured; all seeds are fixed."""

    tokenizer: tuple[TokenizerTraining, ...]
    judge_steps: int
    pictures: int
    generator_steps: int
    verifier: dict[str, int]
    pool_size: int
    dev_candidates: int
    one_prompt_in: int  # of the dev and test prompts of each tag: 1 takes all
    judged_scenes: int
    clean_scenes: int  # of each tag, on which the zero-shot verifier is checked
    images: dict[str, tuple[int, int]]  # of each tag: distinct training prompts, and pools of each
    images_a_pool: int
    paths: dict[str, int]  # of each tag: training prompts with a path whose steps are labelled
    noise_every: int  # of one in so many of those prompts another path is labelled with more rollouts
    learning_rates: tuple[float, ...]  # tried on ORM and PRM; the best on dev images is taken
    dev_images: int  # a prompt, for choosing it
    most_of_a_label: int  # images a pool and label that the ORM learns from
    path_prompts: dict[str, int]  # of each tag: training prompts for which PARM's paths are drawn
    paths_a_prompt: int  # drawn, of which a right and a wrong one are kept
    parm_rates: tuple[float, ...]  # learning rates tried on PARM
    first_steps: dict[str, tuple[int, ...]]  # from which on each PRM may speak
    dpo_rates: tuple[float, ...]  # learning rates tried; the best on dev prompts is taken
    aligned_dev_images: int  # a dev prompt, for choosing
    pairs_a_pool: int  # at most, of right and wrong images
    estimated_pairs: int  # of which the noise in estimates of log-probability is measured
    second_prompts: dict[str, int]  # of each tag, for which the first round's policy draws
    second_images: int  # of each
    online_prompts: int  # a step of guided DPO
    online_samples: int  # of each
    more_seeds: tuple[int, ...]  # other training seeds of both rounds
    seed_candidates: int  # images a pool by which these are measured
    corrections_a_pool: int  # wrong images at most that the generator learns to correct
    correction_steps: int
    correction_rate: float
    replayed: int  # pre-training pictures mixed in
    sequential_steps: int  # of the next-token generator
    sequential_dpo_rates: tuple[float, ...]  # learning rates tried on it
    many_prompts: int  # of each tag but the easiest, for best-of-n far beyond the usual n
    many_candidates: int


# The tokenizer first learns to rebuild, then to be certain: the same patch in the same code wherever it stands, which
# leaves the generator less to learn (392 codes in use, an icon in 4 different spellings instead of 19).
LITE = Config(
    tokenizer=(
        TokenizerTraining(1200, batch=32, certainty=0.002, commitment=0.03, seed=0),
        TokenizerTraining(300, batch=32, learning_rate=1e-3, certainty=0.05, commitment=0.5, seed=1),
        TokenizerTraining(350, batch=32, learning_rate=1.2e-3, certainty=0.2, commitment=1.0, seed=2),
        TokenizerTraining(250, batch=32, learning_rate=1.2e-3, certainty=0.1, commitment=1.0, foreground=8.0, seed=3),
    ),
    judge_steps=1200,
    pictures=40_000,
    generator_steps=4000,
    verifier={"tower_steps": 400, "fact_steps": 400, "match_steps": 2100, "evaluate_every": 50, "scenes_per_tag": 120},
    pool_size=20,
    dev_candidates=2,
    one_prompt_in=1,
    judged_scenes=2000,
    clean_scenes=400,
    images=dict(zip(TAGS, ((4, 2), (48, 1), (16, 4), (60, 1), (300, 1), (372, 1)), strict=True)),
    images_a_pool=30,
    paths=dict(zip(TAGS, (4, 48, 16, 60, 180, 192), strict=True)),
    noise_every=10,
    learning_rates=(1e-5, 1e-4, 3e-4, 1e-3),
    dev_images=8,
    most_of_a_label=10,
    path_prompts=dict(zip(TAGS, (4, 48, 16, 60, 300, 300), strict=True)),
    paths_a_prompt=6,
    parm_rates=(1e-4, 3e-4),
    first_steps={"zs-prm": (1,), "ft-prm": (1, 4, 8, 12)},
    dpo_rates=(1e-4, 2e-4, 4e-4),
    aligned_dev_images=4,
    pairs_a_pool=10,
    estimated_pairs=100,
    second_prompts=dict(zip(TAGS, (4, 48, 16, 60, 300, 372), strict=True)),
    second_images=10,
    online_prompts=2,
    online_samples=4,
    more_seeds=(1, 2),
    seed_candidates=4,
    corrections_a_pool=30,
    correction_steps=3000,
    correction_rate=1e-3,
    replayed=8000,
    sequential_steps=4000,
    sequential_dpo_rates=(2e-5, 5e-5, 1e-4),
    many_prompts=8,
    many_candidates=200,
)
QUICK = Config(
    tokenizer=(TokenizerTraining(20, batch=16), TokenizerTraining(20, batch=16, seed=1)),
    judge_steps=10,
    pictures=256,
    generator_steps=10,
    verifier={"tower_steps": 10, "fact_steps": 5, "match_steps": 10, "evaluate_every": 15},
    pool_size=2,
    dev_candidates=2,
    one_prompt_in=30,
    judged_scenes=20,
    clean_scenes=4,
    images=dict.fromkeys(TAGS, (1, 1)),
    images_a_pool=6,
    paths=dict(zip(TAGS, (1, 0, 0, 1, 0, 0), strict=True)),
    noise_every=2,
    learning_rates=(1e-4,),
    dev_images=2,
    most_of_a_label=2,
    path_prompts=dict.fromkeys(TAGS, 1),
    paths_a_prompt=4,
    parm_rates=(1e-4,),
    first_steps={"zs-prm": (1,), "ft-prm": (1,)},
    dpo_rates=(1e-4,),
    aligned_dev_images=1,
    pairs_a_pool=2,
    estimated_pairs=4,
    second_prompts=dict.fromkeys(TAGS, 1),
    second_images=4,
    online_prompts=1,
    online_samples=2,
    more_seeds=(1,),
    seed_candidates=1,
    corrections_a_pool=2,
    correction_steps=5,
    correction_rate=5e-4,
    replayed=64,
    sequential_steps=10,
    sequential_dpo_rates=(1e-4,),
    many_prompts=1,
    many_candidates=6,
)
