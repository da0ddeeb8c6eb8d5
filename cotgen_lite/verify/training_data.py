"""The paper's data curation: images of training prompts, labelled by a judge, as conversations to learn from.

Paper: section 3.2. Outcome data labels finished images; process data labels each step of a path by whether any of a
few rollouts from it ends well (Math-Shepherd, arXiv 2312.08935). Labels come from the training judge, never from the
judge that reports, and no dev or test prompt is asked for, whatever its wording: of the lite sets by default, and at
full scale, with `held_out=geneval_meanings()`, of GenEval.
"""

import time
from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from cotgen_lite.generate.autoregressive import AnyGenerator
from cotgen_lite.generate.drawing import draw_pool, label_tokens
from cotgen_lite.generate.pipeline import Generator
from cotgen_lite.generate.sampling import Ledger, advance, branch, encode_prompts, predict, start, stream
from cotgen_lite.generate.showo import text_prefix
from cotgen_lite.generate.vq import Magvit
from cotgen_lite.geneval import Detector
from cotgen_lite.pools import Pool, in_shards, load_pool, save_pool
from cotgen_lite.prompts import TAGS, Prompt, encode_text, lite_prompts, refuse_held_out
from cotgen_lite.training import fingerprint
from cotgen_lite.verify.verifier import (
    CLARITY_QUESTION,
    ORM_QUESTION,
    POTENTIAL_QUESTION,
    PRM_QUESTION,
    REFLECTION_QUESTION,
    REFUSAL,
)

if TYPE_CHECKING:
    from datasets import Dataset

HOT = 1.3  # temperature of ranking data: more variety among a prompt's images, so that more prompts have both labels
IMAGES = "pool.safetensors"  # file of labelled images
FEW, MANY = "four.safetensors", "sixteen.safetensors"  # files of step labels, by their rollouts
PATHS = 10  # labelled side by side, and between two savings
# PARM's labels of steps, counted from 1: unclear before step 10, clear after step 11, the two between left out; and how
# many of its examples are unclear ones, clear ones asked about potential, and finished ones (120 : 80 : 200 in the
# paper, where the clear ones count among the 120 as well).
UNCLEAR_UNTIL, CLEAR_FROM = 9, 12
PROPORTIONS = {"unclear": 40, "potential": 80, "selection": 200}
# PARM++'s reflection examples: how many beside the 200, and how many wrong images for each right one (80% : 20%). The
# paper's 120 are for a verifier that could write before; the lite one learns its first sentence from them.
REFLECTIONS, WRONG_FOR_A_RIGHT = 300, 4


@dataclass(frozen=True)
class Example:
    """An image and a conversation about it: codes (L,), and (question, answer) turns with the prompt filled in."""

    codes: Tensor
    turns: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class StepLabels:
    """P paths, the guess at each of their T steps, and how R rollouts from each step ended.

    codes: int16 (P, T, L). ends_well: bool (P, T, R); after the last step every rollout is the finished image itself.
    """

    prompts: tuple[Prompt, ...]
    codes: Tensor
    ends_well: npt.NDArray[np.bool_]

    @property
    def labels(self) -> npt.NDArray[np.bool_]:
        """Math-Shepherd's label of each step, (P, T): yes if any rollout from it ends well."""
        return np.logical_or.reduce(self.ends_well, axis=2)


def train_prompts(distinct: dict[str, int], seed: int) -> tuple[Prompt, ...]:
    """Training prompts drawn by seed: `distinct` of each of the six tags, or all there are if those are fewer."""
    rng = np.random.default_rng(seed)
    chosen: list[Prompt] = []
    for tag in TAGS:
        prompts = [prompt for prompt in lite_prompts("train") if prompt.tag == tag]
        chosen += [prompts[i] for i in rng.permutation(len(prompts))[: distinct[tag]]]
    return tuple(chosen)


def draw_labelled(
    generator: AnyGenerator,
    detector: Detector,
    prompts: Sequence[Prompt],
    n: int,
    seed: int,
    work_dir: Path,
    temperature: float = HOT,
) -> tuple[Pool, float]:
    """N images of every prompt, each labelled right or wrong by the training judge.

    Sampled hot (paper: section 3.2, ORM ranking data) unless told otherwise. Arguments, equal neighbours, resuming and
    errors as in `draw_pool`. Returns a pool without scores, its labels in `correct["template"]`, and the
    seconds of drawing and labelling, of earlier calls and other processes too.
    """
    settings: Any = generator.settings
    hot: Any = replace(generator, settings=replace(settings, temperature=temperature))
    finals, _, cost = draw_pool(hot, prompts, n, seed, work_dir, final_only=True)
    codes = finals[:, :, 0].contiguous()
    labels, seconds = label_tokens(generator, codes, prompts, detector, work_dir / "labels")
    return Pool(tuple(prompts), codes, {}, {"template": labels}), cost["seconds"] + seconds


def balanced(labels: npt.NDArray[np.bool_], most: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Places (row, column) of as many yes as no in every row, at most `most` of each; rows with one label give none.

    Balanced row by row, a verifier cannot learn from the prompt alone how likely a yes is. labels: (P, N).
    """
    chosen: list[tuple[int, int]] = []
    for row, right in enumerate(labels):
        yes, no = (rng.permutation(np.flatnonzero(side)) for side in (right, ~right))
        kept = min(len(yes), len(no), most)
        chosen += [(row, int(column)) for column in (*yes[:kept], *no[:kept])]
    return chosen


def orm_examples(pool: Pool, most: int, seed: int, held_out: Set[str] | None = None) -> list[Example]:
    """The ORM's training set, shuffled: finished images, yes and no alike for every prompt.

    most: images of either label a pool; neighbouring pools of one prompt are balanced together. ValueError if a dev or
    test prompt is among them, in whatever wording; held_out: as in `refuse_held_out`. Paper: section 3.2.
    """
    refuse_held_out(pool.prompts, held_out)
    rng = np.random.default_rng(seed)
    labels = pool.correct["template"]
    examples = []
    for _, group in groupby(range(len(pool.prompts)), key=lambda row: pool.prompts[row]):
        rows = list(group)
        for _, place in balanced(labels[rows].reshape(1, -1), most * len(rows), rng):
            row, column = rows[place // labels.shape[1]], place % labels.shape[1]
            examples.append(_example(pool.prompts[row], pool.tokens[row, column], ORM_QUESTION, labels[row, column]))
    return [examples[i] for i in rng.permutation(len(examples))]


def prm_examples(steps: StepLabels, seed: int, held_out: Set[str] | None = None) -> list[Example]:
    """The PRM's training set, shuffled: all steps' guesses with their labels, yes and no alike in each tag and step.

    Otherwise the verifier would learn from the tag, or from the blur, how likely a yes is. (A single prompt may still
    tell: it has one path.) ValueError if a dev or test prompt is among them; held_out: as in `refuse_held_out`. Paper:
    section 3.2.
    """
    refuse_held_out(steps.prompts, held_out)
    rng = np.random.default_rng(seed)
    labels = steps.labels
    examples = []
    for tag in TAGS:
        paths = [path for path, prompt in enumerate(steps.prompts) if prompt.tag == tag]
        for t, place in balanced(labels[paths].T, len(paths), rng):
            path = paths[place]
            examples.append(_example(steps.prompts[path], steps.codes[path, t], PRM_QUESTION, labels[path, t]))
    return [examples[i] for i in rng.permutation(len(examples))]


def draw_paths(
    generator: AnyGenerator,
    detector: Detector,
    prompts: Sequence[Prompt],
    n: int,
    seed: int,
    work_dir: Path,
    held_out: Set[str] | None = None,
) -> tuple[Pool, float]:
    """Paths for PARM to learn from: of n drawn for each prompt one that ends right and one that ends wrong.

    Prompts of which all end alike give none. Returns a pool with a row for each path, a right one before the wrong one
    of its prompt, and the guesses of all steps as columns, judged one by one: tokens (P, T, L), `correct["template"]`
    (P, T), whose last column is the path's label; and the seconds it took, earlier calls' and other processes' too.
    Resumes from `work_dir`. ValueError if a dev or test prompt is among them; held_out: as in `refuse_held_out`. Paper:
    section 4.
    """
    refuse_held_out(prompts, held_out)
    guesses, _, cost = draw_pool(generator, prompts, n, seed, work_dir)
    right, seconds = label_tokens(generator, guesses[:, :, -1].contiguous(), prompts, detector, work_dir / "labels")
    chosen = balanced(right, 1, np.random.default_rng(seed))
    rows = [prompts[row] for row, _ in chosen]
    codes = torch.stack([guesses[place] for place in chosen]) if chosen else guesses[:0, 0]
    labels, more_seconds = np.zeros((0, guesses.shape[2]), dtype=bool), 0.0
    if chosen:
        labels, more_seconds = label_tokens(generator, codes, rows, detector, work_dir / "labels")
    return Pool(tuple(rows), codes, {}, {"template": labels}), cost["seconds"] + seconds + more_seconds


def parm_examples(paths: Pool, pool: Pool, most: int, seed: int, held_out: Set[str] | None = None) -> list[Example]:
    """PARM's training set, shuffled, in the paper's `PROPORTIONS`; fewer steps of paths if there are not so many.

    Finished images, as `orm_examples(pool, most, seed)`; guesses of unclear steps, answered no; and guesses of clear
    steps: clear, yes, and in a second turn whether the path has potential, that is, whether it ends right. A clear step
    is taken of the right and of the wrong path of a prompt alike, so that neither prompt nor blur gives that away.
    ValueError for paths that do not come in pairs as `draw_paths` gives them, or if a dev or test prompt is among them;
    held_out: as in `refuse_held_out`. Paper: section 4.
    """
    refuse_held_out(paths.prompts, held_out)
    ends = paths.correct["template"][:, -1]
    if (ends[::2] == ends[1::2]).any() or paths.prompts[::2] != paths.prompts[1::2]:
        raise ValueError(
            "Paths must come in pairs, a right and a wrong one of each prompt: give what `draw_paths` drew."
        )
    rng, examples = np.random.default_rng(seed), orm_examples(pool, most, seed, held_out)
    steps, share = paths.tokens.shape[1], len(examples) / PROPORTIONS["selection"]
    clear = [(pair, t) for pair in range(0, len(paths.prompts), 2) for t in range(CLEAR_FROM - 1, steps)]
    blurry = [(path, t) for path in range(len(paths.prompts)) for t in range(min(UNCLEAR_UNTIL, steps))]
    few = rng.permutation(len(clear))[: round(share * PROPORTIONS["potential"] / 2)]
    for pair, t in (clear[i] for i in few):
        for path in (pair, pair + 1):
            turns = _clarity(paths.prompts[path], "yes"), (POTENTIAL_QUESTION, "yes" if ends[path] else "no")
            examples.append(Example(paths.tokens[path, t], turns))
    few = rng.permutation(len(blurry))[: round(share * PROPORTIONS["unclear"])]
    for path, t in (blurry[i] for i in few):
        examples.append(Example(paths.tokens[path, t], (_clarity(paths.prompts[path], "no"),)))
    return [examples[i] for i in rng.permutation(len(examples))]


def reflection_examples(
    pool: Pool, reasons: npt.NDArray, number: int, seed: int, held_out: Set[str] | None = None
) -> list[Example]:
    """PARM++'s reflection set, shuffled: finished images, answered yes, or no with the reasons written out.

    pool: labelled images; reasons: of each (P, N), "" where it is right (`reasons.find_reasons`). number: examples;
    fewer if there are not so many images. Of every prompt as many wrong images for each right one, so that the prompt
    alone gives nothing away. ValueError if a dev or test prompt is among them; held_out: as in `refuse_held_out`.
    Paper: section 5.
    """
    refuse_held_out(pool.prompts, held_out)
    rng, groups = np.random.default_rng(seed), []
    for row, texts in enumerate(reasons):
        right, wrong = (rng.permutation(np.flatnonzero(side)) for side in (texts == "", texts != ""))
        for k in range(min(len(right), len(wrong) // WRONG_FOR_A_RIGHT)):
            some = wrong[k * WRONG_FOR_A_RIGHT : (k + 1) * WRONG_FOR_A_RIGHT]
            groups.append([(row, column) for column in (right[k], *some)])
    few = rng.permutation(len(groups))[: round(number / (1 + WRONG_FOR_A_RIGHT))]
    examples = []
    for row, column in (place for group in few for place in groups[group]):
        asked, why = REFLECTION_QUESTION.format(prompt=pool.prompts[row].text), reasons[row, column]
        examples.append(Example(pool.tokens[row, column], ((asked, f"{REFUSAL}{why}" if why else "yes"),)))
    return [examples[i] for i in rng.permutation(len(examples))]


def _clarity(prompt: Prompt, answer: str) -> tuple[str, str]:
    return CLARITY_QUESTION.format(prompt=prompt.text), answer


def _example(prompt: Prompt, codes: Tensor, question: str, right: bool | np.bool_) -> Example:
    return Example(codes, ((question.format(prompt=prompt.text), "yes" if right else "no"),))


def as_dataset(examples: Sequence[Example], pixels: Magvit | AnyGenerator) -> "Dataset":
    """Examples as trl trains on them: rows of `messages` and `images` (one of Pillow's), decoded when they are read."""
    from datasets import Dataset

    rows = [{"codes": example.codes.tolist(), "turns": [list(turn) for turn in example.turns]} for example in examples]

    def decode(batch: dict[str, list]) -> dict[str, list]:
        images = pixels.decode(torch.tensor(batch["codes"])).permute(0, 2, 3, 1).cpu().numpy()
        return {
            "messages": [_messages(turns) for turns in batch["turns"]],
            "images": [[Image.fromarray(image)] for image in images],
        }

    return Dataset.from_list(rows).with_transform(decode)


def _messages(turns: Sequence[Sequence[str]]) -> list[dict]:
    messages: list[dict] = []
    for question, answer in turns:
        content = [{"type": "text", "text": question}]
        if not messages:
            content.insert(0, {"type": "image"})
        messages.append({"role": "user", "content": content})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    return messages


def label_steps(
    generator: Generator, detector: Detector, prompts: Sequence[Prompt], rollouts: int, seed: int, work_dir: Path
) -> tuple[StepLabels, float]:
    """Draw one path for each prompt and label all its steps: from each, `rollouts` fresh ways to go on to the end.

    Path i is candidate i of its prompt, so a prompt that is listed again gets another path. Rollouts branch from the
    path's state; nothing before it is computed anew. Resumes from `work_dir`. Returns the labels, and the seconds of
    drawing and labelling, of earlier calls and other processes too. ValueError for rollouts < 1. Paper: section 3.2,
    PRM ranking data.
    """
    if rollouts < 1:
        raise ValueError(f"A step is labelled by its rollouts: rollouts must be 1 or more, got {rollouts}.")
    paths = [(prompt.text, number) for number, prompt in enumerate(prompts)]
    shards = [paths[i : i + PATHS] for i in range(0, len(paths), PATHS)]
    folder = work_dir / fingerprint((generator.model,), generator.settings, shards, rollouts, seed)
    parts = in_shards(shards, lambda shard: _draw_rollouts(generator, shard, rollouts, seed), folder, "rollouts")
    codes, ends = (torch.cat([part[name] for part in parts]) for name in ("codes", "ends"))
    right, seconds = label_tokens(generator, ends.flatten(1, 2), prompts, detector, work_dir / "labels")
    seconds += sum(float(part["seconds"]) for part in parts)
    return StepLabels(tuple(prompts), codes, right.reshape(ends.shape[:3])), seconds


def save_steps(steps: StepLabels, path: Path) -> None:
    """Write step labels as one safetensors file, atomically."""
    save_pool(Pool(steps.prompts, steps.codes, {}, {"rollouts": steps.ends_well}), path)


def load_steps(path: Path) -> StepLabels:
    """Read step labels back; errors as in `load_pool`, and ValueError if it is another kind of pool."""
    pool = load_pool(path)
    if "rollouts" not in pool.correct:
        raise ValueError(f"{path} holds no step labels: give a file that `save_steps` wrote.")
    return StepLabels(pool.prompts, pool.tokens, pool.correct["rollouts"])


def _draw_rollouts(
    generator: Generator, paths: Sequence[tuple[str, int]], rollouts: int, seed: int
) -> dict[str, Tensor]:
    """Guesses (P, T, L) of paths (text, candidate), how rollouts from each step end (P, T, R, L), and seconds."""
    model, ledger, started = generator.model, Ledger(), time.monotonic()
    prefixes = [text_prefix(model.config, encode_text(generator.text_tokenizer, text)) for text, _ in paths]
    cache = encode_prompts(model, prefixes, ledger)
    numbered = [(row, number) for row, (_, number) in enumerate(paths)]
    state = start(model, cache, numbered, generator.settings, seed, ledger)
    copies = [row for row in range(len(paths)) for _ in range(rollouts)]
    seeds = [seed * 1000 + k for _ in paths for k in range(rollouts)]
    codes, ends = [], []
    while state.step < state.settings.steps:
        state, step = advance(state, predict(model, state))
        end = step.guess[copies]
        for later in stream(model, branch(state, copies, seeds)):
            end = later.guess
        codes.append(step.guess.to("cpu", torch.int16))
        ends.append(end.to("cpu", torch.int16).view(len(paths), rollouts, -1))
    seconds = torch.tensor(time.monotonic() - started)
    return {"codes": torch.stack(codes, dim=1), "ends": torch.stack(ends, dim=1), "seconds": seconds}
