"""The baseline, chapters 00 and 01: guidance on dev prompts, both judges, the test pool, best of n, finding F1.

Also all steps of some of its paths, which later chapters read, and the README's figure. How: measuring.py.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cotgen_lite.experiments.configs import Config
from cotgen_lite.experiments.findings import decide_f1, write_findings
from cotgen_lite.experiments.measuring import Bench, measure_pool, rounded
from cotgen_lite.experiments.results import steps_profile, write_rows
from cotgen_lite.experiments.rules import note_test_run, smallest_effect
from cotgen_lite.generate.pipeline import GeneratedPool, Generator, judge_tokens
from cotgen_lite.hub import in_place_of
from cotgen_lite.lite.judges import measure_judge
from cotgen_lite.lite.verifier import evaluation_set, measure_verifier
from cotgen_lite.metrics import (
    cohens_kappa,
    detectable_difference,
    expected_best_of,
    roc_auc,
    roc_auc_within_prompts,
    score,
)
from cotgen_lite.pools import (
    Pool,
    pack_tokens,
    pool_prompts,
    read_arrays,
    stratified_subset,
    unpack_tokens,
    write_arrays,
)
from cotgen_lite.prompts import TAGS, Prompt

GUIDANCE_SCALES = (0.0, 1.5, 3.0, 5.0)
KEPT_PER_TAG = 10  # prompts of which every candidate keeps all its steps
KEPT = "#0072B2"  # the colour that the notebooks' figures give to what is ours


def measure_all(out: Path, work: Path, config: Config) -> None:
    """Pools, scores, findings and figures, from the models under `out`; shards in `work` let it resume."""
    bench, n, scenes = Bench(out, work, config, "results"), config.pool_size, config.judge_test_scenes
    generator, verifier = bench.generator(), bench.verifier("verifier")
    rebuild = generator.image_tokenizer.rebuild
    rendered = {
        name: {
            "clean": measure_judge(judge, scenes, seed=11),
            "rebuilt": measure_judge(judge, scenes, seed=12, rebuild=rebuild),
        }
        for name, judge in bench.judges.items()
    }
    bench.write("dev", [measure_guidance(bench, generator, scale) for scale in GUIDANCE_SCALES])

    note_test_run(out, bench.step)
    bench.write("findings", {})  # what was found on older pools is worth nothing now
    write_rows(out / "results/scores.jsonl", [])
    prompts = stratified_subset(pool_prompts("test"), config.prompt_stride)
    pool, drawn = measure_pool(bench, generator, "baseline", {"zs-orm": verifier}, prompts)
    save_steps_of_pool(out / "pools/baseline_steps.safetensors", prompts, drawn)
    save_overview(out / "figures/overview.png", generator, pool, drawn.steps)
    log_odds, learned = pool.scores["zs-orm"], pool.correct["learned"]
    smallest = smallest_effect(out, "F1")
    write_findings(out, lambda judge: {"F1": decide_f1(prompts, log_odds, pool.correct[judge], smallest)})
    kappa = cohens_kappa(learned.ravel(), pool.correct["template"].ravel())
    judges = {"right_on_rendered_scenes": rendered, "kappa_on_generated_images": rounded(kappa)}
    bench.write("judges", judges | {"images": learned.size})
    held_out = evaluation_set(config.verifier_test_scenes, seed=21)  # fresh ones: training stopped by others
    on_clean = measure_verifier(verifier.model, verifier.processor.tokenizer, held_out)
    bench.write("verifier", {"scenes_a_tag": config.verifier_test_scenes, "auc_on_clean_scenes": on_clean})

    kept = kept_indices(prompts)
    few, texts = drawn.steps[kept, :4], [prompts[row] for row in kept]
    steps = [judge_tokens(generator, few[:, :, t], texts, bench.judges["template"]) for t in range(few.shape[2])]
    least = detectable_difference(prompts, expected_best_of(log_odds, learned, n), learned.mean(1))
    bench.write(
        "test_set",
        {
            "detectable_difference": rounded(least),
            "auc_on_generated_images": by_tag(roc_auc, prompts, log_odds, learned),
            "auc_within_prompts": by_tag(roc_auc_within_prompts, prompts, log_odds, learned),
            "tokens_equal_to_final_by_step": [rounded(share) for share in steps_profile(drawn.steps)],
            "judge_agrees_with_final_by_step": [rounded((at_step == steps[-1]).mean()) for at_step in steps],
            "images": {"tokens": learned.size, "verdicts": 4 * len(kept)},
        },
    )


def measure_guidance(bench: Bench, generator: Generator, scale: float) -> dict:
    """The dev score at a guidance scale, by the training judge."""
    guided = generator.with_settings(guidance_scale=scale)
    prompts, _, right = bench.generate_dev(guided, bench.config.guidance_dev_images)
    result = score(prompts, right.mean(1))
    tags = {tag: round(value, 4) for tag, value in result.tags.items()}
    return {"guidance_scale": scale, "tags": tags, "overall": round(result.overall, 4), "ci": result.ci}


def by_tag(
    measured: Callable[..., float], prompts: Sequence[Prompt], log_odds: npt.NDArray, correct: npt.NDArray
) -> dict[str, float | None]:
    """AUC on generated images, by tag and over all; None where it is not to be had."""
    tags = np.array([prompt.tag for prompt in prompts])
    rows = {tag: tags == tag for tag in TAGS} | {"all": np.ones(len(tags), dtype=bool)}
    return {tag: rounded(measured(log_odds[some], correct[some])) for tag, some in rows.items()}


def kept_indices(prompts: Sequence[Prompt]) -> list[int]:
    """Which of a pool's prompts keep all steps: the first pool of the first ten prompts of each tag."""
    firsts = {prompt: index for index, prompt in reversed(list(enumerate(prompts)))}
    by_tag = {tag: sorted(index for prompt, index in firsts.items() if prompt.tag == tag) for tag in TAGS}
    return [index for tag in TAGS for index in by_tag[tag][:KEPT_PER_TAG]]


def save_steps_of_pool(path: Path, prompts: Sequence[Prompt], drawn: GeneratedPool) -> None:
    """Write all steps' guesses of `kept_indices`, and when each position got its token."""
    chosen = kept_indices(prompts)
    kept, bits = drawn.steps[chosen].contiguous(), max(1, int(drawn.steps.max()).bit_length())
    arrays = {"codes": pack_tokens(kept, bits), "committed_at": drawn.committed_at[chosen].contiguous()}
    write_arrays(path, arrays | {"pool_row": torch.tensor(chosen)}, {"bits": bits, "length": kept.shape[-1]})


def load_steps_of_pool(path: Path) -> tuple[Tensor, list[int]]:
    """All steps' guesses int16 (P, N, T, L) of some of a pool's prompts, and which rows of the pool these are.

    FileNotFoundError if the file is missing; ValueError if it is damaged or another kind of file.
    """
    arrays, about = read_arrays(path)
    if "pool_row" not in arrays:
        raise ValueError(f"{path} holds no steps of a pool: give a file that `save_steps_of_pool` wrote.")
    return unpack_tokens(arrays["codes"], about["bits"], about["length"]), arrays["pool_row"].tolist()


def save_overview(path: Path, generator: Generator, pool: Pool, steps: Tensor) -> None:
    """The README's figure: an image comes into being, above the candidates, of which the verifier keeps one.

    The prompt is drawn by seed among those with attribute binding. steps: (P, N, T, L).
    """
    import matplotlib.pyplot as plt

    options = [index for index, prompt in enumerate(pool.prompts) if prompt.tag == "color_attr"]
    row, columns = options[np.random.default_rng(0).integers(len(options))], min(8, steps.shape[1])
    beliefs = 1 / (1 + np.exp(-pool.scores["zs-orm"][row, :columns]))
    chosen = int(beliefs.argmax())
    chain, candidates = generator.decode(steps[row, chosen]), generator.decode(steps[row, :columns, -1])
    shown = np.linspace(0, len(chain) - 1, columns).round().astype(int)
    figure, axes = plt.subplots(2, columns, figsize=(1.3 * columns, 3.6), layout="constrained")
    titles = [f"step {step + 1}" for step in shown]
    for n, (belief, right) in enumerate(zip(beliefs, pool.correct["learned"][row], strict=False)):
        titles.append(f"{'kept' if n == chosen else ''}\n{'✓' if right else '✗'} P(yes) {belief:.2f}")
    for axis, picture, title in zip(axes.flat, [*chain[shown], *candidates], titles, strict=True):
        axis.set(xticks=[], yticks=[])
        axis.imshow(picture.permute(1, 2, 0).numpy(), interpolation="nearest")
        axis.set_title(title, fontsize=9)
    for spine in axes[1, chosen].spines.values():
        spine.set(color=KEPT, linewidth=4, linestyle="-")
    sizes = f"{columns} of {len(chain)} steps of one picture; {columns} candidates as the verifier sees them"
    figure.suptitle(f"“{pool.prompts[row].text}”: {sizes}", fontsize=11)
    with in_place_of(path) as part:
        figure.savefig(part, format="png", dpi=110, bbox_inches="tight", facecolor="white")
    plt.close(figure)
