"""The paper's data curation: images of training prompts, labelled by a judge, as conversations to learn from.

First what is drawn and labelled (sections 3.2 and 4): finished images for the ORM and for DPO; each step of a path by
whether any of a few rollouts from it ends well, for the PRM (Math-Shepherd, arXiv 2312.08935); paths for PARM. Then the
examples made of it. Labels come from the training judge, never from the judge that reports, and no dev or test prompt
is asked for, whatever its wording: of the lite sets by default, and at full scale, with `held_out=geneval_meanings()`,
of GenEval. Next: finetune.py, which learns from them, and align/dpo.py.
"""

import time
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from cotgen_lite.generate.pipeline import Generator, ImageGenerator, State, generate_pool, label_tokens
from cotgen_lite.generate.sampling import Cost, branch
from cotgen_lite.geneval import Detector
from cotgen_lite.identity import fingerprint
from cotgen_lite.inputs import (
    folder,
    of_kind,
    one_of,
    settle,
    shaped,
    shown,
    text,
    verdicts,
    whole,
    whole_numbers,
    with_methods,
)
from cotgen_lite.pools import Pool, in_shards
from cotgen_lite.prompts import TAGS, Prompt, each_prompt, lite_prompts, refuse_held_out
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

T = TypeVar("T")

HOT_TEMPERATURE = 1.3  # of what is learned from: more variety, so that more prompts have images of both labels
POOL_FILE = "pool.safetensors"  # labelled images or paths
FOUR_ROLLOUTS, SIXTEEN_ROLLOUTS = "four.safetensors", "sixteen.safetensors"  # steps, labelled by so many
MOST_ROLLOUTS = 1000  # whose noise has seeds 1000 · seed + number, so that more were another seed's
PATHS_AT_ONCE = 10  # labelled side by side, and between two savings
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
    """An image and a conversation about it: tokens (L,), and (question, answer) turns with the prompt filled in."""

    tokens: Tensor
    turns: tuple[tuple[str, str], ...]

    def __post_init__(self) -> None:
        shaped(of_kind(self.tokens, "tokens", Tensor, "a tensor of an image's tokens"), "tokens", ("L",))
        whole_numbers(self.tokens, "tokens")
        if (
            not isinstance(self.turns, Sequence)
            or not self.turns
            or any(isinstance(turn, str) or len(turn) != 2 for turn in self.turns)
        ):
            raise ValueError(f"turns must be pairs of question and answer, at least one, got {shown(self.turns)}.")
        turns = tuple((text(asked, "a question"), text(said, "an answer")) for asked, said in self.turns)
        settle(self, turns=turns)


def train_prompts(distinct: dict[str, int], seed: int) -> tuple[Prompt, ...]:
    """Training prompts drawn by seed: `distinct` of each of the six tags, or all there are if those are fewer.

    ValueError for other tags, or numbers below 0.
    """
    of_kind(distinct, "distinct", Mapping, "a number of prompts for each tag")
    distinct = {one_of(tag, "each tag of distinct", TAGS): whole(number, tag, 0) for tag, number in distinct.items()}
    if lacking := [tag for tag in TAGS if tag not in distinct]:
        raise ValueError(f"distinct must say how many prompts of each tag, 0 for none; it lacks {', '.join(lacking)}.")
    seed = whole(seed, "seed", 0)
    rng = np.random.default_rng(seed)
    chosen: list[Prompt] = []
    for tag in TAGS:
        prompts = [prompt for prompt in lite_prompts("train") if prompt.tag == tag]
        chosen += [prompts[i] for i in rng.permutation(len(prompts))[: distinct[tag]]]
    return tuple(chosen)


def generate_labelled(
    generator: ImageGenerator[State],
    detector: Detector,
    prompts: Sequence[Prompt],
    n: int,
    seed: int,
    work_dir: Path,
    temperature: float = HOT_TEMPERATURE,
) -> tuple[Pool, float]:
    """N images of every prompt, each labelled right or wrong by the training judge.

    Sampled hot (paper: section 3.2, ORM ranking data) unless told otherwise. Arguments, equal neighbours, resuming and
    errors as in `generate_pool`. Returns a pool without scores, its labels in `correct["template"]`, and the seconds
    of drawing and labelling, of earlier calls and other processes too.
    """
    prompts, work_dir = _checked(generator, detector, prompts), folder(work_dir, "work_dir")
    made = generate_pool(generator, prompts, n, seed, work_dir, final_only=True, temperature=temperature)
    labels, seconds = label_tokens(generator, made.tokens, prompts, detector, work_dir / "labels")
    return Pool(tuple(prompts), made.tokens, {}, {"template": labels}), made.cost.seconds + seconds


def generate_paths(
    generator: ImageGenerator[State],
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
    Resumes from `work_dir`. ValueError for a dev or test prompt, as in `orm_examples`. Paper: section 4.
    """
    prompts, seed = _checked(generator, detector, prompts), whole(seed, "seed", 0)
    work_dir = folder(work_dir, "work_dir")
    refuse_held_out(prompts, held_out)
    made = generate_pool(generator, prompts, n, seed, work_dir)
    right, seconds = label_tokens(generator, made.tokens, prompts, detector, work_dir / "labels")
    chosen = balanced(right, 1, np.random.default_rng(seed))
    paths = tuple(prompts[row] for row, _ in chosen)
    tokens = made.steps[[row for row, _ in chosen], [column for _, column in chosen]]
    labels, more_seconds = np.zeros((0, tokens.shape[1]), dtype=bool), 0.0
    if chosen:
        labels, more_seconds = label_tokens(generator, tokens, paths, detector, work_dir / "labels")
    return Pool(paths, tokens, {}, {"template": labels}), made.cost.seconds + seconds + more_seconds


def label_steps(
    generator: Generator, detector: Detector, prompts: Sequence[Prompt], rollouts: int, seed: int, work_dir: Path
) -> tuple[Pool, float]:
    """Draw one path for each prompt and label all its steps: from each, `rollouts` fresh ways to go on to the end.

    Path i is candidate i of its prompt, so a prompt that is listed again gets another path. Rollouts branch from the
    path's state; nothing before it is computed anew. Resumes from `work_dir`. Returns a pool with a row for each path
    and the guesses of all steps as columns, tokens (P, T, L), and in `correct["rollouts"]` how each rollout ended, bool
    (P, T, R), after the last step the finished image itself; and the seconds of drawing and labelling, of earlier calls
    and other processes too. rollouts: 1 to 1000; ValueError for others. Paper: section 3.2, PRM ranking data.
    """
    prompts, work_dir = _checked(generator, detector, prompts), folder(work_dir, "work_dir")
    rollouts, seed = whole(rollouts, "rollouts", 1, MOST_ROLLOUTS), whole(seed, "seed")
    paths = [(prompt.text, number) for number, prompt in enumerate(prompts)]
    shards = [paths[i : i + PATHS_AT_ONCE] for i in range(0, len(paths), PATHS_AT_ONCE)]
    read = [generator.encode(prompt.text) for prompt in prompts]
    name = fingerprint((generator.model,), generator.settings, shards, read, rollouts, seed)
    parts = in_shards(shards, lambda shard: _roll_out(generator, shard, rollouts, seed), work_dir / name, "rollouts")
    tokens, ends = (torch.cat([part[name] for part in parts]) for name in ("tokens", "ends"))
    right, seconds = label_tokens(generator, ends.flatten(1, 2), prompts, detector, work_dir / "labels")
    seconds += sum(float(part["seconds"]) for part in parts)
    return Pool(tuple(prompts), tokens, {}, {"rollouts": right.reshape(ends.shape[:3])}), seconds


def _checked(generator: Any, detector: Any, prompts: Any) -> tuple[Prompt, ...]:
    """The prompts; ValueError unless these are a generator, a judge's detector and prompts, at least one."""
    with_methods(generator, "generator", ("begin", "decode"), "a generator, such as `load_generator` gives")
    with_methods(detector, "detector", ("detect",), "a judge, such as `load_judges` gives")
    return each_prompt(prompts, none=False)


def _labels(pool: Any, judge: str, *shape: str) -> npt.NDArray[np.bool_]:
    """A pool's verdicts, of a row for each prompt; ValueError if there are none, or if they do not fit its images."""
    of_kind(pool, "a pool", Pool, "a Pool, as `load_pool` gives")
    if judge not in pool.correct:
        raise ValueError(
            f"The pool has no verdicts {judge!r}: give one that was labelled, it has {list(pool.correct)}."
        )
    known = dict(zip("PN", pool.tokens.shape, strict=False)) | {"P": len(pool.prompts)}
    each_prompt(pool.prompts, "the pool's prompts")
    whole(shaped(pool.tokens, "the pool's tokens", ("P", "N", "L")).shape[1], "candidates of each prompt", 1)
    return verdicts(pool.correct[judge], f"the pool's verdicts {judge!r}", [known.get(size, size) for size in shape])


def _roll_out(generator: Generator, paths: Sequence[tuple[str, int]], rollouts: int, seed: int) -> dict[str, Tensor]:
    """Guesses (P, T, L) of paths (text, candidate), how rollouts from each step end (P, T, R, L), and seconds."""
    started, steps = time.monotonic(), generator.settings.steps
    numbered = [(row, number) for row, (_, number) in enumerate(paths)]
    state = generator.begin([text for text, _ in paths], numbered, seed, Cost())
    copies = [row for row in range(len(paths)) for _ in range(rollouts)]
    seeds = [seed * 1000 + k for _ in paths for k in range(rollouts)]
    guesses, ends = [], []
    while state.step < steps:
        state, step = generator.advance(state)
        end = step.guess[copies]
        for later in generator.stream(branch(state, copies, seeds)):
            end = later.guess
        guesses.append(step.guess.to("cpu", torch.int16))
        ends.append(end.to("cpu", torch.int16).view(len(paths), rollouts, -1))
    seconds = torch.tensor(time.monotonic() - started)
    return {"tokens": torch.stack(guesses, dim=1), "ends": torch.stack(ends, dim=1), "seconds": seconds}


def balanced(labels: npt.NDArray[np.bool_], most: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Places (row, column) of as many yes as no in every row, at most `most` of each; rows with one label give none.

    Balanced row by row, a verifier cannot learn from the prompt alone how likely a yes is. labels: (P, N).
    ValueError for labels that are no verdicts, or most < 1.
    """
    labels, most = verdicts(labels, "labels", ("P", "N")), whole(most, "most", 1)
    of_kind(rng, "rng", np.random.Generator, "a generator of numpy's, such as `np.random.default_rng(0)` gives")
    chosen: list[tuple[int, int]] = []
    for row, right in enumerate(labels):
        yes, no = (rng.permutation(np.flatnonzero(side)) for side in (right, ~right))
        kept = min(len(yes), len(no), most)
        chosen += [(row, int(column)) for column in (*yes[:kept], *no[:kept])]
    return chosen


def _turn(question: str, prompt: Prompt, right: bool | np.bool_) -> tuple[str, str]:
    return question.format(prompt=prompt.text), "yes" if right else "no"


def orm_examples(pool: Pool, most: int, seed: int, held_out: Set[str] | None = None) -> list[Example]:
    """The ORM's training set, shuffled: finished images, yes and no alike for every prompt.

    most: images of either label a pool; neighbouring pools of one prompt are balanced together. ValueError if a dev or
    test prompt is among them, in whatever wording, for most < 1 or a pool without labels; held_out: as in
    `refuse_held_out`. Paper: section 3.2.
    """
    labels, most, examples = _labels(pool, "template", "P", "N"), whole(most, "most", 1), []
    refuse_held_out(pool.prompts, held_out)
    rng = np.random.default_rng(whole(seed, "seed", 0))
    for prompt, group in groupby(range(len(pool.prompts)), key=lambda row: pool.prompts[row]):
        rows = list(group)
        for _, place in balanced(labels[rows].reshape(1, -1), most * len(rows), rng):
            row, column = rows[place // labels.shape[1]], place % labels.shape[1]
            examples.append(Example(pool.tokens[row, column], (_turn(ORM_QUESTION, prompt, labels[row, column]),)))
    return _shuffled(examples, rng)


def prm_examples(steps: Pool, seed: int, held_out: Set[str] | None = None) -> list[Example]:
    """The PRM's training set, shuffled: all steps' guesses with their labels, yes and no alike in each tag and step.

    steps: from `label_steps`; a step is a yes if any rollout from it ends well (Math-Shepherd). Were they not balanced,
    the verifier would learn from the tag, or from the blur, how likely a yes is. (A single prompt may still tell: it
    has one path.) ValueError for a dev or test prompt, as in `orm_examples`. Paper: section 3.2.
    """
    if "rollouts" not in of_kind(steps, "steps", Pool, "a Pool, as `label_steps` gives").correct:
        raise ValueError("These are no labelled steps: give what `label_steps` made, or a pool loaded from its file.")
    ends = _labels(steps, "rollouts", "P", "N", "R")
    whole(ends.shape[2], "rollouts of each step", 1)
    labels = np.logical_or.reduce(ends, axis=2)
    refuse_held_out(steps.prompts, held_out)
    rng, examples = np.random.default_rng(whole(seed, "seed", 0)), []
    for tag in TAGS:
        paths = [path for path, prompt in enumerate(steps.prompts) if prompt.tag == tag]
        for t, place in balanced(labels[paths].T, max(1, len(paths)), rng):
            path = paths[place]
            turn = _turn(PRM_QUESTION, steps.prompts[path], labels[path, t])
            examples.append(Example(steps.tokens[path, t], (turn,)))
    return _shuffled(examples, rng)


def parm_examples(paths: Pool, pool: Pool, most: int, seed: int, held_out: Set[str] | None = None) -> list[Example]:
    """PARM's training set, shuffled, in the paper's `PROPORTIONS`; fewer steps of paths if there are not so many.

    Finished images, as `orm_examples(pool, most, seed)`; guesses of unclear steps, answered no; and guesses of clear
    steps: clear, yes, and in a second turn whether the path has potential, that is, whether it ends right. A clear step
    is taken of the right and of the wrong path of a prompt alike, so that neither prompt nor blur gives that away.
    ValueError for paths that do not come in pairs as `generate_paths` gives them, or for a dev or test prompt, as in
    `orm_examples`. Paper: section 4.
    """
    ends = _labels(paths, "template", "P", "N")[:, -1]
    refuse_held_out(paths.prompts, held_out)
    if len(ends) % 2 or (ends[::2] == ends[1::2]).any() or paths.prompts[::2] != paths.prompts[1::2]:
        raise ValueError(
            "Paths must come in pairs, a right and a wrong one of each prompt: give what `generate_paths` drew."
        )
    examples = orm_examples(pool, most, seed, held_out)
    rng = np.random.default_rng(whole(seed, "seed", 0))
    steps, share = paths.tokens.shape[1], len(examples) / PROPORTIONS["selection"]
    clear = [(pair, t) for pair in range(0, len(paths.prompts), 2) for t in range(CLEAR_FROM - 1, steps)]
    for pair, t in _shuffled(clear, rng)[: round(share * PROPORTIONS["potential"] / 2)]:
        for path in (pair, pair + 1):
            prompt = paths.prompts[path]
            turns = _turn(CLARITY_QUESTION, prompt, True), _turn(POTENTIAL_QUESTION, prompt, ends[path])
            examples.append(Example(paths.tokens[path, t], turns))
    blurry = [(path, t) for path in range(len(paths.prompts)) for t in range(min(UNCLEAR_UNTIL, steps))]
    for path, t in _shuffled(blurry, rng)[: round(share * PROPORTIONS["unclear"])]:
        examples.append(Example(paths.tokens[path, t], (_turn(CLARITY_QUESTION, paths.prompts[path], False),)))
    return _shuffled(examples, rng)


def reflection_examples(
    pool: Pool, reasons: npt.NDArray, number: int, seed: int, held_out: Set[str] | None = None
) -> list[Example]:
    """PARM++'s reflection set, shuffled: finished images, answered yes, or no with the reasons written out.

    pool: labelled images; reasons: of each (P, N), "" where it is right (`reasons.find_reasons`). number: examples;
    fewer if there are not so many images. Of every prompt as many wrong images for each right one, so that the prompt
    alone gives nothing away. ValueError for a dev or test prompt, as in `orm_examples`, or reasons that do not fit the
    pool. Paper: section 5.
    """
    of_kind(pool, "pool", Pool, "a Pool, as `load_pool` gives")
    shaped(np.asarray(reasons), "reasons", (len(pool.prompts), *pool.tokens.shape[1:2]))
    reasons = np.array([[text(why, "each of reasons") for why in row] for row in reasons], dtype=object)
    refuse_held_out(pool.prompts, held_out)
    rng, number, groups = np.random.default_rng(whole(seed, "seed", 0)), whole(number, "number", 1), []
    for row, texts in enumerate(reasons):
        right, wrong = (rng.permutation(np.flatnonzero(side)) for side in (texts == "", texts != ""))
        for k in range(min(len(right), len(wrong) // WRONG_FOR_A_RIGHT)):
            some = wrong[k * WRONG_FOR_A_RIGHT : (k + 1) * WRONG_FOR_A_RIGHT]
            groups.append([(row, column) for column in (right[k], *some)])
    examples = []
    for group in _shuffled(groups, rng)[: round(number / (1 + WRONG_FOR_A_RIGHT))]:
        for row, column in group:
            why = reasons[row, column]
            answer = f"{REFUSAL}{why}" if why else "yes"
            turn = REFLECTION_QUESTION.format(prompt=pool.prompts[row].text), answer
            examples.append(Example(pool.tokens[row, column], (turn,)))
    return _shuffled(examples, rng)


def _shuffled(items: Sequence[T], rng: np.random.Generator) -> list[T]:
    return [items[i] for i in rng.permutation(len(items))]


def as_dataset(examples: Sequence[Example], generator: ImageGenerator[State]) -> "Dataset":
    """Examples as trl trains on them: rows of `messages` and `images` (one of Pillow's), decoded when they are read."""
    from datasets import Dataset

    with_methods(generator, "generator", ("decode",), "a generator, such as `load_generator` gives")
    for one in of_kind(examples, "examples", Sequence, "a list of Examples"):
        of_kind(one, "each of examples", Example, "an Example, as `orm_examples` gives")
    rows = [{"tokens": one.tokens.tolist(), "turns": [list(turn) for turn in one.turns]} for one in examples]
    return Dataset.from_list(rows).with_transform(DecodedExamples(generator))


@dataclass(frozen=True)
class DecodedExamples:
    """The transform of `as_dataset`: stored tokens and turns as images and messages."""

    generator: Any

    def __call__(self, batch: dict[str, list]) -> dict[str, list]:
        images = self.generator.decode(torch.tensor(batch["tokens"])).permute(0, 2, 3, 1).numpy()
        messages = [as_messages(turns) for turns in batch["turns"]]
        return {"messages": messages, "images": [[Image.fromarray(image)] for image in images]}


def as_messages(turns: Sequence[Sequence[str]]) -> list[dict]:
    """Turns of question and answer as a conversation about one image, which stands before the first question."""
    messages: list[dict] = []
    for question, answer in turns:
        content = [{"type": "text", "text": question}]
        if not messages:
            content.insert(0, {"type": "image"})
        messages.append({"role": "user", "content": content})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    return messages
