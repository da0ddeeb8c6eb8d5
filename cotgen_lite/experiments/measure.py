"""Everything that is measured: guidance on the dev prompts, both judges, the test pool, scores and findings."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from cotgen_lite.experiments.configs import Config
from cotgen_lite.experiments.findings import decide_f1, write_findings
from cotgen_lite.experiments.overview import save_overview
from cotgen_lite.experiments.results import SIZES, score_rows, score_tokens, steps_profile, write_rows
from cotgen_lite.generate.autoregressive import AnyGenerator
from cotgen_lite.generate.drawing import draw_pool, judge_tokens
from cotgen_lite.generate.pipeline import Generator, load_generator
from cotgen_lite.generate.sampling import Ledger
from cotgen_lite.geneval import Detector
from cotgen_lite.hub import in_place_of, write_json
from cotgen_lite.lite.judges import load_judges, measure_judge
from cotgen_lite.lite.verifier_evaluation import evaluation_set, measure
from cotgen_lite.metrics import (
    cohens_kappa,
    detectable_difference,
    expected_best_of,
    roc_auc,
    roc_auc_within_prompts,
    score,
)
from cotgen_lite.pools import Pool, pack_codes, pool_prompts, save_pool, stratified_subset, unpack_codes
from cotgen_lite.prompts import TAGS, Prompt, lite_prompts
from cotgen_lite.verify.verifier import Verifier

GUIDANCE_SCALES = (0.0, 1.5, 3.0, 5.0)
KEPT_PER_TAG = 10  # prompts of which every candidate keeps all its steps
COMMAND = "python -m cotgen_lite.build results"


def measure_all(out: Path, work: Path, config: Config) -> None:
    """Pools, scores, findings and figures, from the models under `out`; shards in `work` let it resume."""
    models = out / "models"
    generator = load_generator(models=models)
    verifier = Verifier.from_pretrained(models / "verifier")
    judges = load_judges(models)
    results = out / "results"

    judged = {
        name: {
            "clean": measure_judge(detector, config.judge_test_scenes, seed=11),
            "rebuilt": measure_judge(
                detector, config.judge_test_scenes, seed=12, rebuild=generator.image_tokenizer.rebuild
            ),
        }
        for name, detector in judges.items()
    }
    guidance = _measure_guidance(generator, config.guidance_dev_images, config.prompt_stride, work, judges["template"])
    write_json(results / "dev.json", guidance)

    prompts = stratified_subset(pool_prompts("test"), config.prompt_stride)
    guesses, committed_at, drawing = draw_pool(generator, prompts, config.pool_size, seed=0, work_dir=work / "pool")
    final = guesses[:, :, -1]
    correct = {name: judge_tokens(generator, final, prompts, detector) for name, detector in judges.items()}
    log_odds, scoring_seconds = score_tokens(generator, verifier, final, prompts)
    # In half precision, as the pool keeps them, so that the file gives these very results.
    log_odds = log_odds.astype(np.float16).astype(np.float32)
    save_pool(Pool(prompts, final, {"zs-orm": log_odds}, correct), out / "pools/baseline.safetensors")
    save_steps_of_pool(out / "pools/baseline_steps.safetensors", prompts, guesses, committed_at)

    images = final.shape[0] * final.shape[1]
    draw_cost, once = cost_of_drawing(generator, prompts[0].text)
    draw_cost |= {"seconds": drawing["seconds"] / images, "verifier_passes": 0.0}
    verify_cost = draw_cost | {"verifier_passes": 1.0, "seconds": draw_cost["seconds"] + scoring_seconds / images}
    _save_overview(out / "figures/overview.png", generator, prompts, guesses, log_odds, correct["learned"])

    about = {"generator": "baseline", "verifier": None, "seed": 0, "command": COMMAND}
    asked = about | {"verifier": "zero-shot"}
    chance, largest = np.zeros_like(log_odds), (config.pool_size,)
    sizes = [n for n in SIZES if n <= config.pool_size]
    rows = score_rows("baseline", prompts, chance, correct, (1,), about, draw_cost, once)
    rows += score_rows("random", prompts, chance, correct, largest, about, draw_cost, once)
    for name, verdicts in correct.items():
        rows += score_rows("oracle", prompts, verdicts, {name: verdicts}, sizes, about, draw_cost, once)
    rows += score_rows("zs-orm", prompts, log_odds, correct, sizes, asked, verify_cost, once)
    write_rows(results / "scores.jsonl", rows)

    learned = correct["learned"]
    best, mean = expected_best_of(log_odds, learned, config.pool_size), learned.mean(1)
    write_json(results / "findings.json", {})  # what was decided on older pools is worth nothing now
    write_findings(out, lambda judge: {"F1": decide_f1(prompts, log_odds, correct[judge])})
    write_json(
        results / "judges.json",
        {
            "right_on_rendered_scenes": judged,
            "kappa_on_generated_images": round(cohens_kappa(learned.ravel(), correct["template"].ravel()), 4),
            "images": images,
        },
    )
    held_out = evaluation_set(config.verifier_test_scenes, seed=21)  # fresh ones: training stopped by others
    on_clean = measure(verifier.model, verifier.processor.tokenizer, held_out)
    write_json(
        results / "verifier.json", {"scenes_a_tag": config.verifier_test_scenes, "auc_on_clean_scenes": on_clean}
    )
    write_json(
        results / "test_set.json",
        {
            "detectable_difference": round(detectable_difference(prompts, best, mean), 4),
            "auc_on_generated_images": _areas(prompts, log_odds, learned),
            "auc_within_prompts": _areas_within(prompts, log_odds, learned),
            "tokens_equal_to_final_by_step": [round(float(share), 4) for share in steps_profile(guesses)],
            "judge_agrees_with_final_by_step": _judge_by_step(generator, prompts, guesses, judges["template"]),
            "images": {"tokens": images, "verdicts": 4 * len(kept_indices(prompts))},
        },
    )


def cost_of_drawing(generator: AnyGenerator, prompt: str) -> tuple[dict[str, float], dict[str, float]]:
    """Passes and sequence places of each further candidate, and what comes on top once: the prompt, the first step."""
    spent = []
    for n in (1, 2):
        ledger = Ledger()
        generator.draw([prompt], n, seed=0, ledger=ledger)
        spent.append({"generator_passes": ledger.passes + ledger.prefix_passes, "tokens": ledger.places})
    each = {key: float(spent[1][key] - spent[0][key]) for key in spent[0]}
    return each, {key: spent[0][key] - each[key] for key in each}


def _save_overview(
    path: Path,
    generator: Generator,
    prompts: Sequence[Prompt],
    guesses: torch.Tensor,
    log_odds: npt.NDArray,
    right: npt.NDArray,
) -> None:
    """The README's figure: a prompt drawn by seed among those with attribute binding."""
    options = [index for index, prompt in enumerate(prompts) if prompt.tag == "color_attr"]
    row = options[np.random.default_rng(0).integers(len(options))]
    shown = slice(0, min(8, log_odds.shape[1]))
    candidates = generator.decode(guesses[row, shown, -1])
    beliefs = 1 / (1 + np.exp(-log_odds[row, shown]))
    steps = generator.decode(guesses[row, int(beliefs.argmax())])
    save_overview(path, prompts[row].text, steps, candidates, beliefs, right[row, shown])


def _measure_guidance(
    generator: Generator, candidates: int, one_prompt_in: int, work: Path, judge: Detector
) -> list[dict]:
    """The dev score at each guidance scale, by the training judge."""
    prompts, rows = stratified_subset(lite_prompts("dev"), one_prompt_in), []
    for scale in GUIDANCE_SCALES:
        guided = replace(generator, settings=replace(generator.settings, guidance_scale=scale))
        guesses, _, _ = draw_pool(guided, prompts, candidates, seed=0, work_dir=work / f"dev-{scale}")
        right = judge_tokens(generator, guesses[:, :, -1], prompts, judge)
        result = score(prompts, right.mean(1))
        tags = {tag: round(value, 4) for tag, value in result.tags.items()}
        rows.append({"guidance_scale": scale, "tags": tags, "overall": round(result.overall, 4), "ci": result.ci})
    return rows


def kept_indices(prompts: Sequence[Prompt]) -> list[int]:
    """Which of a pool's prompts keep all steps: the first pool of the first ten prompts of each tag."""
    firsts = {prompt: index for index, prompt in reversed(list(enumerate(prompts)))}
    by_tag = {tag: sorted(index for prompt, index in firsts.items() if prompt.tag == tag) for tag in TAGS}
    return [index for tag in TAGS for index in by_tag[tag][:KEPT_PER_TAG]]


def save_steps_of_pool(
    path: Path, prompts: Sequence[Prompt], guesses: torch.Tensor, committed_at: torch.Tensor
) -> None:
    """Write all steps' guesses (P, N, T, L) of `kept_indices`, and when each place got its code (P, N, L)."""
    chosen = kept_indices(prompts)
    kept, bits = guesses[chosen].contiguous(), max(1, int(guesses.max()).bit_length())
    arrays = {"codes": pack_codes(kept, bits), "committed_at": committed_at[chosen].contiguous()}
    about = {"bits": str(bits), "length": str(kept.shape[-1])}
    with in_place_of(path) as part:
        save_file(arrays | {"pool_row": torch.tensor(chosen)}, part, metadata=about)


def load_steps_of_pool(path: Path) -> tuple[torch.Tensor, list[int]]:
    """All steps' guesses int16 (P, N, T, L) of some of a pool's prompts, and which rows of the pool these are.

    FileNotFoundError if the file is missing.
    """
    with safe_open(path, framework="pt") as file:
        about = file.metadata()
        codes = unpack_codes(file.get_tensor("codes"), int(about["bits"]), int(about["length"]))
        return codes, file.get_tensor("pool_row").tolist()


def _areas(prompts: Sequence[Prompt], log_odds: npt.NDArray, correct: npt.NDArray) -> dict[str, float]:
    """AUC of the verifier on generated images, by tag and over all."""
    tags = np.array([prompt.tag for prompt in prompts])
    areas = {tag: roc_auc(log_odds[tags == tag], correct[tags == tag]) for tag in TAGS}
    areas["all"] = roc_auc(log_odds, correct)
    return {tag: round(area, 4) for tag, area in areas.items()}


def _areas_within(prompts: Sequence[Prompt], log_odds: npt.NDArray, correct: npt.NDArray) -> dict[str, float | None]:
    """Mean AUC among the candidates of one pool, by tag and over all; None where no pool has both verdicts."""
    tags = np.array([prompt.tag for prompt in prompts])
    members = {tag: tags == tag for tag in TAGS} | {"all": np.ones(len(tags), dtype=bool)}
    areas = {tag: roc_auc_within_prompts(log_odds[rows], correct[rows]) for tag, rows in members.items()}
    return {tag: None if np.isnan(area) else round(area, 4) for tag, area in areas.items()}


def _judge_by_step(
    generator: Generator, prompts: Sequence[Prompt], guesses: torch.Tensor, judge: Detector
) -> list[float]:
    """How often a judge's verdict on the guess of each step is its verdict on the final image; kept prompts, 4 each."""
    chosen = kept_indices(prompts)
    few, texts = guesses[chosen, :4], [prompts[index] for index in chosen]
    verdicts = np.stack([judge_tokens(generator, few[:, :, step], texts, judge) for step in range(few.shape[2])])
    return [round(float((at_step == verdicts[-1]).mean()), 4) for at_step in verdicts]
