"""Ranking data: balanced, never a held-out prompt, read by trl as it was asked; rollouts that branch truly."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small_verifiers import save_lite

from cotgen_lite.align.dpo import preference_pairs
from cotgen_lite.full_scale.prompts import full_prompts, geneval_meanings
from cotgen_lite.hub import data_path
from cotgen_lite.pools import Pool, load_pool
from cotgen_lite.prompts import GENEVAL, TAGS, lite_prompts, meaning, meaning_hash, parse_prompt, two_object
from cotgen_lite.verify import training_data
from cotgen_lite.verify.finetune import FineTuning, finetune_verifier
from cotgen_lite.verify.training_data import (
    FOUR_ROLLOUTS,
    SIXTEEN_ROLLOUTS,
    Example,
    as_dataset,
    balanced,
    generate_labelled,
    generate_paths,
    label_steps,
    orm_examples,
    parm_examples,
    prm_examples,
    reflection_examples,
    train_prompts,
)
from cotgen_lite.verify.verifier import (
    CLARITY_QUESTION,
    ORM_QUESTION,
    POTENTIAL_QUESTION,
    PRM_QUESTION,
    REFLECTION_QUESTION,
    Verifier,
)

NOBODY = SimpleNamespace(detect=list)  # a detector that is never asked, where the judge is replaced


class DarkIsRight:
    """A judge for tests: an image is right where it is darker than a bound."""

    def __init__(self, bound: float) -> None:
        self.bound = bound

    def __call__(self, detector, images, prompts):
        assert len(images) == len(prompts)
        return (images.float().mean(dim=(1, 2, 3)) < self.bound).numpy()


@pytest.fixture
def judged(monkeypatch):
    """Replaces the judge's rules by brightness; returns the judge."""
    dark = DarkIsRight(bound=127.5)
    monkeypatch.setattr("cotgen_lite.generate.pipeline.judge", dark)
    return dark


def test_training_prompts_are_distinct_and_never_held_out():
    distinct = dict(zip(TAGS, (2, 5, 4, 5, 9, 9), strict=True))
    prompts = train_prompts(distinct, seed=0)
    assert {tag: sum(prompt.tag == tag for prompt in prompts) for tag in TAGS} == distinct
    everything = train_prompts(dict.fromkeys(TAGS, 10**6), seed=1)
    meanings = {meaning(prompt) for prompt in everything}
    assert len(meanings) == len(everything) == len(lite_prompts("train"))
    assert not meanings & {meaning(prompt) for split in ("dev", "test") for prompt in lite_prompts(split)}
    assert train_prompts(distinct, seed=0) == prompts != train_prompts(distinct, seed=1)


def test_balanced_takes_as_many_yes_as_no_of_each_row():
    rng = np.random.default_rng(0)
    labels = rng.random((30, 8)) < rng.random((30, 1))
    chosen = balanced(labels, 3, rng)
    assert len(set(chosen)) == len(chosen)
    for row in range(30):
        mine = [labels[row, column] for r, column in chosen if r == row]
        expected = min(labels[row].sum(), (~labels[row]).sum(), 3)
        assert sum(mine) == len(mine) - sum(mine) == expected


def test_orm_examples_carry_their_own_image_and_label():
    prompts = lite_prompts("train")[:2]
    prompts = (prompts[0], prompts[0], prompts[1])  # two pools of one prompt are balanced together
    codes = torch.arange(12).view(3, 4, 1).to(torch.int16)
    labels = np.array([[1, 1, 1, 1], [0, 0, 0, 1], [1, 0, 0, 0]], dtype=bool)
    examples = orm_examples(Pool(prompts, codes, {}, {"template": labels}), most=2, seed=0)
    assert len(examples) == 2 * 3 + 2
    for example in examples:
        code = int(example.tokens)
        row, column = divmod(code, 4)
        question, answer = example.turns[0]
        assert question == ORM_QUESTION.format(prompt=prompts[row].text)
        assert answer == ("yes" if labels[row, column] else "no")
    answers = [example.turns[0][1] for example in examples]
    assert answers.count("yes") == answers.count("no")


def test_pairs_are_a_right_and_a_wrong_image_of_one_prompt():
    rng = np.random.default_rng(0)
    prompts = lite_prompts("train")[:8]
    codes = torch.arange(8 * 6).view(8, 6, 1).to(torch.int16)
    labels = rng.random((8, 6)) < 0.4
    pairs = preference_pairs(Pool(prompts, codes, {}, {"template": labels}), most=2, seed=0)
    taken = [int(code) for _, *both in pairs for code in both]
    assert len(set(taken)) == len(taken)  # no image in two pairs
    for prompt, chosen, rejected in pairs:
        (row, right), (other, wrong) = divmod(int(chosen), 6), divmod(int(rejected), 6)
        assert row == other and prompts[row] == prompt
        assert labels[row, right] and not labels[row, wrong]
    assert len(pairs) == np.minimum(np.minimum(labels.sum(1), (~labels).sum(1)), 2).sum()


def test_prm_examples_are_made_of_labelled_steps_only():
    with pytest.raises(ValueError, match="no labelled steps"):
        prm_examples(Pool((), torch.zeros(0, 2, 64, dtype=torch.int16), {}, {"template": np.zeros((0, 2), bool)}), 0)


def test_prm_examples_are_balanced_in_every_tag_and_step():
    rng = np.random.default_rng(0)
    prompts = train_prompts(dict.fromkeys(TAGS, 6), seed=0)
    number = len(prompts)
    codes = torch.arange(number * 5).view(number, 5, 1).to(torch.int16)
    steps = Pool(prompts, codes, {}, {"rollouts": rng.random((number, 5, 4)) < 0.2})
    examples = prm_examples(steps, seed=0)
    assert examples
    by_step = {}
    for example in examples:
        path, step = divmod(int(example.tokens), 5)
        assert example.turns[0][0] == PRM_QUESTION.format(prompt=prompts[path].text)
        assert example.turns[0][1] == ("yes" if steps.correct["rollouts"][path, step].any() else "no")
        by_step.setdefault((prompts[path].tag, step), []).append(example.turns[0][1])
    assert len(by_step) > 15
    assert all(answers.count("yes") == answers.count("no") for answers in by_step.values())


def test_prm_examples_are_as_many_as_can_be_of_either_answer():
    """All pairs of a right and a wrong step that a tag and step allow, by brute force; no step twice; shuffled."""
    rng = np.random.default_rng(1)
    prompts = train_prompts(dict(zip(TAGS, (2, 5, 0, 1, 7, 4), strict=True)), seed=0)
    number, steps, rollouts = len(prompts), 3, 2
    codes = torch.arange(number * steps).view(number, steps, 1).to(torch.int16)
    ends = rng.random((number, steps, rollouts)) < 0.3
    ends[2:7, 0] = [[1, 0], [0, 1], [1, 1], [1, 0], [0, 0]]  # four right, one wrong
    pool = Pool(prompts, codes, {}, {"rollouts": ends})
    examples = prm_examples(pool, seed=0)
    right = [[any(one) for one in path] for path in ends.tolist()]
    wanted = {}
    for tag in TAGS:
        paths = [path for path in range(number) if prompts[path].tag == tag]
        for step in range(steps):
            yes = sum(right[path][step] for path in paths)
            wanted[tag, step] = min(yes, len(paths) - yes)
    assert wanted["two_object", 0] == 1 and max(wanted.values()) > 1
    found = dict.fromkeys(wanted, 0)
    order = [int(example.tokens) for example in examples]
    for code, example in zip(order, examples, strict=True):
        path, step = divmod(code, steps)
        assert example.turns == (
            (PRM_QUESTION.format(prompt=prompts[path].text), "yes" if right[path][step] else "no"),
        )
        found[prompts[path].tag, step] += right[path][step]
    assert found == wanted and len(order) == len(set(order)) == 2 * sum(wanted.values())
    again = [int(example.tokens) for example in prm_examples(pool, seed=0)]
    other = [int(example.tokens) for example in prm_examples(pool, seed=1)]
    assert again == order != other
    tags = [TAGS.index(prompts[code // steps].tag) for code in order]
    assert tags != sorted(tags)  # not tag by tag
    assert prm_examples(replace(pool, correct={"rollouts": np.ones_like(ends)}), seed=0) == []


def test_parm_examples_ask_in_turns_and_give_nothing_away():
    rng = np.random.default_rng(0)
    prompts = train_prompts(dict.fromkeys(TAGS, 4), seed=0)
    number, steps, images = len(prompts), 18, 30
    rows = tuple(prompt for prompt in prompts for _ in range(2))
    codes = torch.arange(2 * number * steps).view(2 * number, steps, 1)
    verdicts = rng.random((2 * number, steps)) < 0.5
    verdicts[:, -1] = np.tile([True, False], number)  # a right path, then a wrong one
    verdicts[:2, -1] = False, True  # or turned about
    paths = Pool(rows, codes, {}, {"template": verdicts})
    pool = Pool(prompts, torch.full((number, images, 1), -1), {}, {"template": rng.random((number, images)) < 0.4})
    examples = parm_examples(paths, pool, most=2, seed=0)
    finished = [example for example in examples if example.tokens < 0]
    assert all(len(example.turns) == 1 and example.turns[0][0].startswith("This image is gen") for example in finished)
    assert sorted(example.turns for example in finished) == sorted(e.turns for e in orm_examples(pool, most=2, seed=0))
    seen = {}
    for example in examples:
        if example.tokens < 0:
            continue
        path, step = divmod(int(example.tokens), steps)
        (question, clear), *later = example.turns
        assert question == CLARITY_QUESTION.format(prompt=rows[path].text)
        assert clear == ("yes" if step >= 11 else "no") and step not in (9, 10)  # counted from 0
        answer = "yes" if verdicts[path, -1] else "no"
        assert later == ([(POTENTIAL_QUESTION, answer)] if clear == "yes" else [])
        seen.setdefault(clear, []).append((path // 2, step, path % 2))
    assert len(set(seen["yes"])) == len(seen["yes"]) and len(set(seen["no"])) == len(seen["no"])
    right, wrong = (sorted((a, b) for a, b, end in seen["yes"] if end == way) for way in (0, 1))
    assert right == wrong  # the same prompts at the same steps
    assert len(finished) == 4 * number == 96
    assert (len(seen["yes"]), len(seen["no"])) == (2 * round(96 * 40 / 200), round(96 * 40 / 200))


def test_parm_examples_are_of_all_clear_and_all_unclear_steps():
    steps, prompts = 18, train_prompts(dict.fromkeys(TAGS, 2), seed=0)
    rows = tuple(prompt for prompt in prompts for _ in range(2))
    codes = torch.arange(len(rows) * steps).view(len(rows), steps, 1)
    ends = np.tile([[True], [False]], (len(prompts), steps))
    pool = Pool(prompts, torch.full((12, 20, 1), -1), {}, {"template": np.tile([True, False], (12, 10))})
    seen = {"yes": set(), "no": set()}
    for seed in range(8):
        for example in parm_examples(Pool(rows, codes, {}, {"template": ends}), pool, most=5, seed=seed):
            if example.tokens >= 0:
                seen[example.turns[0][1]].add(divmod(int(example.tokens), steps))
    assert [{step for _, step in seen[answer]} for answer in ("yes", "no")] == [set(range(11, 18)), set(range(9))]
    assert all({path for path, _ in places} == set(range(24)) for places in seen.values())  # not the first ones alone


def test_examples_are_shuffled():
    """Neither prompt by prompt, nor kind by kind, nor a right image before its wrong ones."""
    prompts = train_prompts(dict.fromkeys(TAGS, 2), seed=0)
    codes = torch.arange(12 * 20).view(12, 20, 1).to(torch.int16)
    pool = Pool(prompts, codes, {}, {"template": np.tile([True, False], (12, 10))})
    rows = [int(example.tokens) // 20 for example in orm_examples(pool, most=5, seed=0)]
    assert rows != sorted(rows)
    ends = np.tile([[True], [False]], (12, 18))
    paths = Pool(tuple(p for p in prompts for _ in range(2)), torch.full((24, 18, 1), -1), {}, {"template": ends})
    finished = [int(example.tokens) >= 0 for example in parm_examples(paths, pool, most=5, seed=0)]
    assert finished != sorted(finished) and finished != sorted(finished, reverse=True)
    reasons = np.where(np.arange(20) % 5 == 0, "", "there is no dog") + np.full((12, 1), "")
    right = [example.turns[0][1] == "yes" for example in reflection_examples(pool, reasons, number=100, seed=0)]
    assert len(right) == 100 and sum(right) == 20 and sum(right[::5]) < 20
    few = [{int(e.tokens) // 20 for e in reflection_examples(pool, reasons, number=5, seed=seed)} for seed in range(4)]
    assert len(set.union(*few)) > 1  # not the first prompt's alone


def test_paths_are_a_right_and_a_wrong_one_of_each_prompt(toy_generator, tmp_path: Path, judged):
    prompts = lite_prompts("train")[:3]
    drawn = toy_generator([prompt.text for prompt in prompts], 4, seed=1)
    finals = drawn.images.split(4)
    judged.bound = torch.cat(finals).float().mean(dim=(1, 2, 3)).median()
    ends = np.stack([judged(None, images, [None] * 4) for images in finals])
    paths, seconds = generate_paths(toy_generator, NOBODY, prompts, 4, seed=1, work_dir=tmp_path)
    usable = np.flatnonzero(ends.any(1) & ~ends.all(1))
    assert (
        len(usable) and generate_paths(toy_generator, NOBODY, prompts, 4, seed=1, work_dir=tmp_path)[1] == seconds > 0
    )
    assert paths.prompts == tuple(prompts[row] for row in usable for _ in range(2))
    right = paths.correct["template"]
    assert right[::2, -1].all() and not right[1::2, -1].any()
    for row, codes in enumerate(paths.tokens):
        options = drawn.steps.split(4)[usable[row // 2]]
        assert any(torch.equal(codes, option) for option in options)
        np.testing.assert_array_equal(right[row], judged(None, toy_generator.decode(codes), [None] * len(codes)))


@pytest.mark.parametrize("split", ["dev", "test"])
def test_held_out_prompts_are_refused_whatever_their_wording(split):
    held_out = next(prompt for prompt in lite_prompts(split) if prompt.tag == "two_object")
    first, second = (item.name for item in held_out.include)
    turned = two_object(second, first)
    assert turned != held_out
    labels = np.array([[True, False]])
    with pytest.raises(ValueError, match="dev or test"):
        orm_examples(Pool((turned,), torch.zeros(1, 2, 64, dtype=torch.int16), {}, {"template": labels}), 1, 0)
    with pytest.raises(ValueError, match="dev or test"):
        prm_examples(Pool((turned,), torch.zeros(1, 2, 64, dtype=torch.int16), {}, {"rollouts": labels[..., None]}), 0)
    paths = Pool((turned, turned), torch.zeros(2, 18, 64, dtype=torch.int16), {}, {"template": np.zeros((2, 18), bool)})
    fine = Pool(lite_prompts("train")[:1], torch.zeros(1, 2, 64, dtype=torch.int16), {}, {"template": labels})
    with pytest.raises(ValueError, match="dev or test"):
        parm_examples(paths, fine, 1, 0)
    with pytest.raises(ValueError, match="in pairs"):
        parm_examples(replace(paths, prompts=lite_prompts("train")[:2]), fine, 1, 0)


def test_full_scale_holds_out_geneval_and_not_the_lite_sets(toy_generator, tmp_path: Path):
    held_out, labels = geneval_meanings(), np.array([[True, False], [False, True]])
    lite = {meaning(prompt) for split in ("dev", "test") for prompt in lite_prompts(split)}
    theirs = [prompt for prompt in full_prompts() if meaning(prompt) in lite]
    bench = parse_prompt("a photo of a bench", GENEVAL)  # asked by GenEval, unknown to the lite world
    assert len(theirs) == 99 and meaning_hash(bench) in held_out
    codes, ends = torch.zeros(2, 2, 1, dtype=torch.int16), np.array([[True, True], [True, False]])
    pair = (theirs[0],) * 2
    pool, paths = (Pool(pair, codes, {}, {"template": right}) for right in (labels, ends))
    assert orm_examples(pool, 1, 0, held_out) and parm_examples(paths, pool, 1, 0, held_out)
    assert preference_pairs(pool, 1, 0, held_out)
    assert prm_examples(Pool(pair, codes, {}, {"rollouts": labels[..., None]}), 0, held_out)
    reasons = np.where(labels, "", "there is no bench")
    assert reflection_examples(pool, reasons, 5, 0, held_out) == []  # not refused, but there are too few wrong ones
    one = Pool((theirs[0],), codes[:1], {}, {"template": labels[:1]})
    for make in (
        lambda prompts, **scale: orm_examples(replace(one, prompts=prompts), 1, 0, **scale),
        lambda prompts, **scale: prm_examples(
            Pool(prompts, codes[:1], {}, {"rollouts": labels[:1, :, None]}), 0, **scale
        ),
        lambda prompts, **scale: parm_examples(replace(one, prompts=prompts), one, 1, 0, **scale),
        lambda prompts, **scale: parm_examples(
            Pool(theirs[:1] * 2, codes, {}, {"template": ends}), replace(one, prompts=prompts), 1, 0, **scale
        ),
        lambda prompts, **scale: reflection_examples(
            replace(one, prompts=prompts), np.array([["", "no"]]), 5, 0, **scale
        ),
        lambda prompts, **scale: preference_pairs(replace(one, prompts=prompts), 1, 0, **scale),
        lambda prompts, **scale: generate_paths(toy_generator, NOBODY, prompts, 2, 0, tmp_path, **scale),
    ):
        with pytest.raises(ValueError, match=r"bench.*held_out=geneval_meanings\(\)"):
            make((bench,), held_out=held_out)
        with pytest.raises(ValueError, match="dev or test"):
            make((theirs[0],))  # no scale is named: as strict as ever


PAIR = lite_prompts("train")[:2]
LABELS = np.array([[True, False, True], [False, True, True]])
POOL = Pool(PAIR, torch.zeros(2, 3, 64, dtype=torch.int16), {}, {"template": LABELS})
RNG, CODES = np.random.default_rng(0), torch.zeros(64, dtype=torch.int16)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        *((lambda d=d: train_prompts(d, 0), says) for d, says in (
            (None, "distinct must be a number of prompts for each tag"),
            ({}, "lacks single_object, two_object"),
            ({"cats": 1}, "each tag of distinct must be one of"),
            (dict.fromkeys(TAGS, -1), "single_object must be a whole number of at least 0"),
            (dict.fromkeys(TAGS, "2"), "single_object must be a whole number"),
            (dict.fromkeys(TAGS[:3], 1), "lacks colors, position, color_attr"),
        )),
        *((lambda s=s: train_prompts(dict.fromkeys(TAGS, 1), s), "seed must be") for s in ("0", -1, None, 0.5)),
        *((lambda most=most: balanced(LABELS, most, RNG), "most must be") for most in (0, -1, "1", None)),
        (lambda: balanced(LABELS * 2, 1, RNG), "labels must be verdicts"),
        (lambda: balanced(LABELS[0], 1, RNG), "labels must have shape"),
        (lambda: balanced(LABELS, 1, 0), "rng must be a generator of numpy's"),
        *((lambda most=most: orm_examples(POOL, most, 0), "most must be") for most in (0, -2, "1", 1.5)),
        *((lambda s=s: orm_examples(POOL, 1, s), "seed must be") for s in (None, -1, "0")),
        (lambda: orm_examples(None, 1, 0), "a pool must be a Pool"),
        (lambda: orm_examples(replace(POOL, correct={}), 1, 0), "no verdicts 'template'"),
        (lambda: orm_examples(replace(POOL, correct={"template": LABELS[:1]}), 1, 0), r"must have shape \(2, 3\)"),
        (lambda: orm_examples(replace(POOL, correct={"template": LABELS * 3}), 1, 0), "must be verdicts"),
        (lambda: orm_examples(replace(POOL, correct={"template": LABELS * 0.5}), 1, 0), "must be verdicts"),
        (lambda: prm_examples(None, 0), "steps must be a Pool"),
        (lambda: prm_examples(replace(POOL, correct={"rollouts": LABELS}), 0), r"must have shape \(2, 3, R\)"),
        (lambda: prm_examples(replace(POOL, correct={"rollouts": np.full((2, 3, 2), 5)}), 0), "must be verdicts"),
        (lambda: prm_examples(replace(POOL, correct={"rollouts": np.ones((2, 3, 0), bool)}), 0), "rollouts of each"),
        (lambda: prm_examples(replace(POOL, correct={"rollouts": LABELS[..., None]}), -1), "seed must be"),
        (lambda: parm_examples(None, POOL, 1, 0), "a pool must be a Pool"),
        (lambda: parm_examples(Pool(PAIR[:1], POOL.tokens[:1], {}, {"template": LABELS[:1]}), POOL, 1, 0), "in pairs"),
        *((lambda n=n: reflection_examples(POOL, np.full((2, 3), ""), n, 0), "number must be") for n in (0, -5, "5")),
        (lambda: reflection_examples(POOL, None, 5, 0), r"reasons must have shape \(2, 3\)"),
        (lambda: reflection_examples(POOL, np.full((2, 4), ""), 5, 0), r"reasons must have shape \(2, 3\)"),
        (lambda: reflection_examples(POOL, np.full((2, 3), None), 5, 0), "each of reasons must be a text"),
        (lambda: reflection_examples(POOL, np.full((2, 3), np.nan, object), 5, 0), "each of reasons must be a text"),
        (lambda: Example(None, (("q", "a"),)), "tokens must be"),
        (lambda: Example(CODES.float(), (("q", "a"),)), "tokens must be whole numbers"),
        *((lambda t=t: Example(CODES, t), "turns must be pairs") for t in ((), ("qa",), (("q",),), None)),
        (lambda: Example(CODES, (("q", 1),)), "an answer must be a text"),
        (lambda: as_dataset([1], NOBODY), "generator must be"),
        (lambda: as_dataset(None, SimpleNamespace(decode=list)), "examples must be a list of Examples"),
        (lambda: as_dataset([1], SimpleNamespace(decode=list)), "each of examples must be an Example"),
    ],
)  # fmt: skip
def test_what_nothing_can_be_learned_from_is_said_in_a_sentence(call, says):
    with pytest.raises(ValueError, match=says) as error:
        call()
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"generator": "generator"}, "generator must be a generator"),
        ({"generator": NOBODY}, "generator must be a generator"),
        ({"detector": "judge"}, "detector must be a judge"),
        ({"prompts": ()}, "at least one Prompt"),
        ({"prompts": None}, "prompts must be a list of Prompts"),
        ({"prompts": ["a photo of a cat"]}, "Each of prompts must be a Prompt"),
        ({"work_dir": None}, "work_dir must be the path of a folder"),
        *(({"rollouts": rollouts}, "rollouts must be a whole number from 1 to 1000") for rollouts in (-1, "2", 10**9)),
        ({"seed": "0"}, "seed must be"),
    ],
)
def test_what_cannot_be_drawn_and_labelled_is_said_in_a_sentence(toy_generator, tmp_path, change, says):
    given = {"generator": toy_generator, "detector": NOBODY, "prompts": PAIR, "seed": 0, "work_dir": tmp_path}
    with pytest.raises(ValueError, match=says):
        label_steps(**({"rollouts": 2} | given | change))
    if "rollouts" not in change:
        with pytest.raises(ValueError, match=says):
            generate_paths(**({"n": 2} | given | change))


def test_steps_are_kept_apart_by_all_that_they_hang_on(toy_generator, tmp_path: Path, judged):
    def label(**change) -> set[str]:
        given = {"prompts": PAIR[:1], "rollouts": 1, "seed": 0} | change
        label_steps(toy_generator, NOBODY, work_dir=tmp_path, **given)
        return {path.name for path in tmp_path.iterdir()} - {"labels"}

    once = label()
    assert len(once) == 1 and label(rollouts=np.int64(1), seed=np.int32(0), prompts=list(PAIR[:1])) == once
    assert len(label(rollouts=2)) == 2 and len(label(seed=1)) == 3 and len(label(prompts=PAIR)) == 4


def test_the_dataset_decodes_when_it_is_read(toy_generator):
    codes = torch.randint(0, 1024, (3, 64), generator=torch.Generator().manual_seed(0)).to(torch.int16)
    turns = ((CLARITY_QUESTION, "yes"), (POTENTIAL_QUESTION, "no"))
    dataset = as_dataset([Example(row, turns) for row in codes], toy_generator)
    assert len(dataset) == 3
    row = dataset[1]
    assert set(row) == {"messages", "images"}
    expected = toy_generator.image_tokenizer.decode(codes[1:2].long())[0].permute(1, 2, 0)
    assert np.array_equal(np.asarray(row["images"][0]), expected)
    assert [message["role"] for message in row["messages"]] == ["user", "assistant"] * 2
    assert [part["type"] for message in row["messages"] for part in message["content"]].count("image") == 1
    assert row["messages"][0]["content"][0] == {"type": "image"}
    assert row["messages"][3]["content"] == [{"type": "text", "text": "no"}]


def test_labelled_images_are_hot_ones(toy_generator, tmp_path: Path, judged):
    prompts = lite_prompts("train")[:2]
    pool, seconds = generate_labelled(toy_generator, NOBODY, prompts, 3, seed=1, work_dir=tmp_path)
    again, same = generate_labelled(toy_generator, NOBODY, prompts, 3, seed=1, work_dir=tmp_path)
    assert seconds == same > 0 and torch.equal(again.tokens, pool.tokens)  # seconds are kept with the shards
    drawn = toy_generator([prompt.text for prompt in prompts], 3, temperature=1.3, seed=1)
    assert torch.equal(pool.tokens[1, 2].long(), drawn.tokens[5])
    right = judged(None, toy_generator.decode(pool.tokens[1]), [None] * 3)
    np.testing.assert_array_equal(pool.correct["template"][1], right)


def test_steps_are_labelled_by_how_their_rollouts_end(toy_generator, tmp_path: Path, judged, monkeypatch):
    prompts = (*lite_prompts("train")[:2], lite_prompts("train")[0])
    steps = toy_generator.settings.steps
    labels, seconds = label_steps(toy_generator, NOBODY, prompts, rollouts=3, seed=5, work_dir=tmp_path)
    assert label_steps(toy_generator, NOBODY, prompts, rollouts=3, seed=5, work_dir=tmp_path)[1] == seconds > 0
    ends_well = labels.correct["rollouts"]
    assert labels.tokens.shape == (3, steps, 64) and ends_well.shape == (3, steps, 3)
    # the paths are those that the generator draws, a prompt's second path being another candidate
    drawn = toy_generator(prompts[0].text, 3, seed=5).steps
    assert torch.equal(labels.tokens[0], drawn[0]) and torch.equal(labels.tokens[2], drawn[2])
    # after the last step, all rollouts are the finished image
    finished = judged(None, toy_generator.decode(labels.tokens[:, -1]), prompts)
    np.testing.assert_array_equal(ends_well[:, -1], np.repeat(finished[:, None], 3, axis=1))
    # an interrupted run gives the same
    monkeypatch.setattr("cotgen_lite.verify.training_data.PATHS_AT_ONCE", 2)
    label_steps(toy_generator, NOBODY, prompts, 3, 5, tmp_path / "parted")
    for shard in sorted((tmp_path / "parted").glob("*/shard-*"))[1:]:
        shard.unlink()
    drawn = []
    made = training_data._roll_out
    monkeypatch.setattr(training_data, "_roll_out", lambda *given: drawn.append(given[1]) or made(*given))
    again, _ = label_steps(toy_generator, NOBODY, prompts, 3, 5, tmp_path / "parted")
    assert [len(shard) for shard in drawn] == [1]  # the first shard's two paths were there
    assert torch.equal(again.tokens, labels.tokens)
    np.testing.assert_array_equal(again.correct["rollouts"], ends_well)


def test_seconds_of_labelling_count(toy_generator, tmp_path: Path, judged, monkeypatch):
    judged.bound = toy_generator([p.text for p in PAIR], 4, seed=1).images.float().mean(dim=(1, 2, 3)).median()
    label = training_data.label_tokens
    monkeypatch.setattr(training_data, "label_tokens", lambda *given: (label(*given)[0], 1000.0))
    paths, seconds = generate_paths(toy_generator, NOBODY, PAIR, 4, seed=1, work_dir=tmp_path)
    assert paths.prompts and 2000 < seconds < 2900  # of the ends, and of the steps before
    assert 1000 < label_steps(toy_generator, NOBODY, PAIR, 1, seed=1, work_dir=tmp_path)[1] < 1900


def test_rollouts_of_a_path_do_not_hang_on_the_paths_beside_it(toy_generator):
    """Rollout k of every path has the noise of seed 1000 · seed + k: the shipped labels hang on that."""
    first, second = (prompt.text for prompt in lite_prompts("train")[:2])
    both = training_data._roll_out(toy_generator, [(first, 0), (second, 1)], rollouts=2, seed=2)
    alone = training_data._roll_out(toy_generator, [(second, 1)], rollouts=2, seed=2)
    assert torch.equal(both["tokens"][1], alone["tokens"][0]) and torch.equal(both["ends"][1], alone["ends"][0])


def test_rollouts_keep_what_is_committed(toy_generator):
    """Every rollout's end agrees with its path wherever the path had committed codes by then."""
    prompt = lite_prompts("train")[0].text
    drawn = training_data._roll_out(toy_generator, [(prompt, 0)], rollouts=4, seed=2)
    out = toy_generator(prompt, seed=2)
    steps = toy_generator.settings.steps
    assert drawn["ends"].shape == (1, steps, 4, 64)
    for step, ends in enumerate(drawn["ends"][0]):
        committed = out.committed[0, step]
        assert (ends[:, committed] == out.steps[0, step][committed]).all()
        if step + 2 < steps:
            assert len({tuple(end.tolist()) for end in ends}) > 1  # and the rollouts differ elsewhere


def test_examples_are_what_trl_learns_from(toy_generator, tmp_path: Path):
    """From codes to a trained verifier, with questions of different lengths and a conversation of two turns."""
    torch.manual_seed(0)
    save_lite(tmp_path / "model")
    verifier = Verifier.from_pretrained(tmp_path / "model", device="cpu")
    codes = torch.randint(0, 1024, (4, 64), generator=torch.Generator().manual_seed(0)).to(torch.int16)
    single = ((ORM_QUESTION.format(prompt="a photo of a cat"), "yes"),)
    double = ((CLARITY_QUESTION.format(prompt="a photo of two dogs"), "yes"), (POTENTIAL_QUESTION, "no"))
    examples = [Example(row, turns) for row, turns in zip(codes, (single, double) * 2, strict=True)]
    dataset = as_dataset(examples, toy_generator)
    _, log = finetune_verifier(verifier, dataset, FineTuning(1e-4, batch_size=2))
    assert log.steps == 2 and np.isfinite(log.losses).all()


def test_a_step_needs_a_rollout(toy_generator, tmp_path: Path):
    with pytest.raises(ValueError, match="rollouts must be a whole number from 1 to 1000, got 0"):
        label_steps(toy_generator, NOBODY, lite_prompts("train")[:1], 0, 0, tmp_path)


def test_shipped_images_are_of_training_prompts_alone():
    pool = load_pool(data_path("training/images/pool.safetensors"))
    asked = {meaning(prompt) for prompt in pool.prompts}
    held_out = {meaning(prompt) for split in ("dev", "test") for prompt in lite_prompts(split)}
    assert len(set(pool.prompts)) >= 800 and {prompt.tag for prompt in pool.prompts} == set(TAGS)
    assert pool.tokens.shape[1] >= 30 and not asked & held_out
    answers = [example.turns[0][1] for example in orm_examples(pool, most=10, seed=0)]
    assert answers.count("yes") == answers.count("no") > 3000


def test_shipped_rollouts_are_of_training_prompts_alone():
    few, many = (load_pool(data_path(f"training/rollouts/{name}")) for name in (FOUR_ROLLOUTS, SIXTEEN_ROLLOUTS))
    held_out = {meaning(prompt) for split in ("dev", "test") for prompt in lite_prompts(split)}
    assert not {meaning(prompt) for prompt in few.prompts + many.prompts} & held_out
    ends = few.correct["rollouts"]
    assert ends.shape == (500, 18, 4) and many.correct["rollouts"].shape == (50, 18, 16)
    assert set(many.prompts) <= set(few.prompts) and {prompt.tag for prompt in few.prompts} == set(TAGS)
    assert (ends[:, -1] == ends[:, -1, :1]).all()  # after the last step nothing is left to roll out


def test_reflection_examples_are_four_wrong_for_a_right_of_every_prompt():
    prompts = lite_prompts("train")[:3]
    codes = torch.arange(3 * 12).view(3, 12, 1).repeat(1, 1, 64).to(torch.int16)
    reasons = np.full((3, 12), "there is no cat", dtype=object)
    reasons[0, :2] = ""  # two right, ten wrong: two groups
    reasons[1, :9] = ""  # nine right, three wrong: none
    pool = Pool(prompts, codes, {}, {})
    examples = reflection_examples(pool, reasons, number=100, seed=0)
    assert len(examples) == 10 and len({int(example.tokens[0]) for example in examples}) == 10
    for example in examples:
        column = int(example.tokens[0])
        ((asked, answer),) = example.turns
        assert column < 12 and asked == REFLECTION_QUESTION.format(prompt=prompts[0].text)
        assert answer == ("yes" if column < 2 else "no, there is no cat")
    assert sum(example.turns[0][1] == "yes" for example in examples) == 2
    assert len(reflection_examples(pool, reasons, number=5, seed=0)) == 5
    with pytest.raises(ValueError, match="dev or test prompt"):
        reflection_examples(replace(pool, prompts=lite_prompts("test")[:3]), reasons, 5, 0)
