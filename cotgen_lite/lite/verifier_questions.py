"""What the lite verifier is asked while it learns to see: questions about clean scenes, with their true answers.

Four kinds: a caption that lists what is where, open facts (which colour, how many, where), whether the picture matches
a prompt, and, if it does not, why. Negatives are hard: one count off, a colour swapped, the opposite relation, one
thing replaced.
But for counts, for plain questions whether one thing is there, and for two things of which one is counted ("one cat
and a dog"), no question asks what a dev or test prompt asks.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TypeVar

import numpy as np
from transformers import PreTrainedTokenizerBase

from cotgen_lite import prompts as templates
from cotgen_lite.geneval import POSITION_COMPONENT, evaluate, relation_components, relations
from cotgen_lite.inputs import number, of_kind, settle, shown, text, whole, with_methods, yes_or_no
from cotgen_lite.lite.judges import scene_detections
from cotgen_lite.lite.vocabulary import ASSISTANT, END_OF_TEXT, USER
from cotgen_lite.lite.world import Scene, SceneObject, random_prompt, random_scene, scene_for, world
from cotgen_lite.prompts import (
    OPPOSITE,
    RELATIONS,
    Prompt,
    encode_text,
    lite_prompts,
    meaning,
    plural,
    with_article,
)
from cotgen_lite.verify.reasons import write_reasons
from cotgen_lite.verify.verifier import (
    CLARITY_QUESTION,
    ORM_QUESTION,
    POTENTIAL_QUESTION,
    PRM_QUESTION,
    REFLECTION_QUESTION,
    REFUSAL,
)

T = TypeVar("T")
Turn = tuple[str, str]  # a question and its answer
Dialogue = tuple[Turn, ...]

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
OFFICIAL = (ORM_QUESTION, PRM_QUESTION, POTENTIAL_QUESTION)
SHORTER = ("Is this {prompt}?", "Does this image show {prompt}?", "Does the picture match the description {prompt}?")
CAPTION_REQUEST = "Describe the image."
# A relation counts as clear when its component is this far from GenEval's bound of 0.5; unclear ones are not asked.
CLEAR = 0.06
RNG = "a numpy Generator, as np.random.default_rng(0) gives"


@dataclass(frozen=True)
class Mix:
    """Shares of questions: of open facts (else matches); of matches, by how they are asked and what about.

    official: in the paper's own wordings. reasons: "and why not?", in the wording of PARM++; yes and no alike, as all
    matches are. arranged: draws of what is about places or whose colour is whose, of which not all lead to a question;
    captions of the web seldom are, and so a verifier trained on them is weak at it. absent: of questions that name
    something that is not there, how many are asked. Visual instructions seldom ask them, and what learned from these,
    as LLaVA did, is known to say yes to what is missing (arXiv 2305.10355). caption: whether the first question of each
    image asks for a caption.
    """

    facts: float
    official: float
    reasons: float = 0.0
    arranged: float = 0.3
    absent: float = 1.0
    caption: bool = False

    def __post_init__(self) -> None:
        for name in ("facts", "official", "reasons", "arranged", "absent"):
            settle(self, **{name: number(getattr(self, name), name, 0, 1)})
        settle(self, caption=yes_or_no(self.caption, "caption"))
        if self.official + self.reasons > 1:
            raise ValueError("Of all matches those in the paper's wordings and those with reasons are at most 1.")


def training_scene(rng: np.random.Generator) -> Scene:
    """A scene to ask about: a quarter hold anything, the others what a prompt of one of the six tags asks for."""
    of_kind(rng, "rng", np.random.Generator, RNG)
    if rng.random() < 0.25:
        return random_scene(rng)
    tags = ("two_object", "colors", *("counting",) * 3, *("position",) * 3, *("color_attr",) * 2)
    return scene_for(random_prompt(pick(tags, rng), rng), rng)


def draw_dialogues(scene: Scene, count: int, mix: Mix, rng: np.random.Generator) -> list[Dialogue]:
    """Questions about one scene, each a dialogue of its own: one turn, or two for PARM's potential.

    ValueError for a scene without anything to ask about.
    """
    count = whole(count, "count", 0, 4096)
    of_kind(mix, "mix", Mix, "a Mix")
    _check_scene(scene)
    of_kind(rng, "rng", np.random.Generator, RNG)
    dialogues: list[Dialogue] = [((CAPTION_REQUEST, caption(scene)),)] if mix.caption else []
    while len(dialogues) < count:
        if rng.random() < mix.facts:
            fact = _fact(scene, rng)
            if _is_asked(fact[0], scene, mix, rng):
                dialogues.append((fact,))
        elif drawn := draw_match(scene, rng, mix.arranged):
            prompt, holds = drawn
            if _is_asked(_said(prompt), scene, mix, rng):
                dialogues.append(_ask(scene, prompt, holds, mix, rng))
    return dialogues


def _is_asked(said: str, scene: Scene, mix: Mix, rng: np.random.Generator) -> bool:
    """What names only things that are there always is; anything else as often as the mix says."""
    there = {item.name for item in scene}
    named, any_noun = _nouns()
    return all(named[noun] in there for noun in any_noun.findall(said)) or rng.random() < mix.absent


@cache
def _nouns() -> tuple[dict[str, str], re.Pattern[str]]:
    """The object that each noun names, singular or plural, and a pattern that finds nouns."""
    named = {noun: name for name in world().objects for noun in (name, plural(name))}
    return named, re.compile(rf"\b({'|'.join(sorted(named, key=len, reverse=True))})\b")


def _said(prompt: Prompt | str) -> str:
    return prompt if isinstance(prompt, str) else prompt.text


def _ask(scene: Scene, prompt: Prompt | str, holds: bool, mix: Mix, rng: np.random.Generator) -> Dialogue:
    chance, said = rng.random(), _said(prompt)
    if chance >= mix.official + mix.reasons:
        return as_dialogue(pick(SHORTER, rng), said, holds)
    if isinstance(prompt, str) or chance < mix.official:  # what is outside the templates has no findings to tell
        return as_dialogue(pick(OFFICIAL, rng), said, holds)
    findings = evaluate(prompt, scene_detections(scene)).reasons
    if holds == bool(findings):
        raise AssertionError(f"GenEval's rules disagree about {said!r} and {scene}.")
    return ((REFLECTION_QUESTION.format(prompt=said), "yes" if holds else REFUSAL + write_reasons(findings, rng)),)


def _check_scene(scene: Scene) -> None:
    if not (isinstance(scene, tuple) and scene and all(isinstance(item, SceneObject) for item in scene)):
        raise ValueError(f"A scene must be a tuple of at least one SceneObject, got {shown(scene)}.")


def as_dialogue(wording: str, prompt: str, holds: bool) -> Dialogue:
    """A match question in one wording; the potential question follows a "yes" to clarity, as in the paper's PARM."""
    wording, prompt = text(wording, "wording"), text(prompt, "prompt")
    answer = "yes" if yes_or_no(holds, "holds") else "no"
    if wording == POTENTIAL_QUESTION:
        return (CLARITY_QUESTION.format(prompt=prompt), "yes"), (wording, answer)
    return ((wording.format(prompt=prompt), answer),)


def caption(scene: Scene) -> str:
    """Everything there is, in reading order, with its place: "a red cat at row one column three, ..."."""
    _check_scene(scene)
    ordered = sorted(scene, key=lambda item: (item.y, item.x))
    return ", ".join(f"{with_article(f'{item.color} {item.name}')} at {_place_of(item)}" for item in ordered)


def draw_match(scene: Scene, rng: np.random.Generator, arranged: float = 0.3) -> tuple[Prompt | str, bool] | None:
    """A prompt and whether the scene shows it, yes and no equally often; None if the draw led nowhere.

    A text is outside the six templates. arranged: as in `Mix`.
    """
    _check_scene(scene)
    wanted = bool(of_kind(rng, "rng", np.random.Generator, RNG).random() < 0.5)
    kinds = _ARRANGED_KINDS if rng.random() < number(arranged, "arranged", 0, 1) else _OTHER_KINDS
    drawn = pick(kinds, rng)(scene, wanted, rng)
    if isinstance(drawn, Prompt) and meaning(drawn) in _held_out():
        return None
    return (drawn, wanted) if drawn else None


def relations_seen(item: SceneObject, reference: SceneObject) -> tuple[tuple[str, ...], bool]:
    """GenEval's relations of two icons' tight boxes, and whether they are clear of its bound."""
    _check_scene((item, reference))
    box, reference_box = (found.box for found in scene_detections((item, reference)))
    components = relation_components(box, reference_box)
    clear = all(abs(abs(part) - POSITION_COMPONENT) > CLEAR for part in components)
    return relations(box, reference_box), clear


def encode_dialogue(
    tokenizer: PreTrainedTokenizerBase, dialogue: Dialogue, clarity: bool
) -> tuple[list[int], list[int]]:
    """A dialogue as it follows the image in the chat template: token ids, and which are to be predicted.

    Those are answers and their ends. clarity: whether the first of two answers is learned too, or only stands there.
    """
    with_methods(tokenizer, "tokenizer", ("convert_tokens_to_ids",), "a tokenizer of transformers")
    user, assistant, end = (tokenizer.convert_tokens_to_ids(token) for token in (USER, ASSISTANT, END_OF_TEXT))
    for part in of_kind(dialogue, "dialogue", Sequence, "a tuple of turns"):
        if not (isinstance(part, tuple | list) and len(part) == 2 and all(isinstance(said, str) for said in part)):
            raise ValueError(f"Each turn of a dialogue must be a question and an answer, got {shown(part)}.")
    ids, learned = list[int](), list[int]()
    for turn, (question, answer) in enumerate(dialogue):
        ids += [*([user] if turn else []), *_ids(tokenizer, question), assistant]
        start = len(ids)
        ids += [*_ids(tokenizer, answer), end]
        if clarity or turn == len(dialogue) - 1:
            learned += range(start, len(ids))
    return ids, learned


_ids = lru_cache(maxsize=200_000)(encode_text)


@cache
def _held_out() -> frozenset:
    held_out = (prompt for split in ("dev", "test") for prompt in lite_prompts(split))
    # Of 48 counts the train set has 16, too few to learn counting from: they would be learned by heart.
    return frozenset(meaning(prompt) for prompt in held_out if prompt.tag != "counting")


def _fact(scene: Scene, rng: np.random.Generator) -> Turn:
    """An open question, or whether one kind of thing is there."""
    alone, kind = _alone(scene), rng.random()
    if alone and kind < 0.4:
        item = pick(alone, rng)
        if kind < 0.2:
            return f"What color is the {item.name}?", item.color
        return f"Where is the {item.name}?", _place_of(item)
    if len(alone) > 1 and kind < 0.6:
        a, b = _pick_two(alone, rng)
        seen, clear = relations_seen(a, b)
        if clear:
            return f"Where is the {a.name} from the {b.name}?", " and ".join(seen) or "near"
    if kind < 0.7:
        item = pick(scene, rng)
        return f"What is at {_place_of(item)}?", with_article(f"{item.color} {item.name}")
    if kind < 0.85:
        name = pick(scene, rng).name if rng.random() < 0.7 else pick(world().objects, rng)
        return f"How many {plural(name)} are there?", NUMBERS[_count(scene, name)]
    wanted = rng.random() < 0.5
    name = pick(scene, rng).name if wanted else _absent(scene, rng)
    return f"Is there {with_article(name)}?", "yes" if wanted else "no"


def _match_single(scene: Scene, wanted: bool, rng: np.random.Generator) -> Prompt:
    return templates.single_object(pick(scene, rng).name if wanted else _absent(scene, rng))


def _match_two(scene: Scene, wanted: bool, rng: np.random.Generator) -> Prompt | None:
    names = list(dict.fromkeys(item.name for item in scene))
    if wanted:
        return templates.two_object(*_pick_two(names, rng)) if len(names) > 1 else None
    if len(names) < 2 and rng.random() < 0.6:  # else "no" would be far more frequent than "yes"
        return None
    return templates.two_object(*_pick_two([pick(scene, rng).name, _absent(scene, rng)], rng))


def _match_count(scene: Scene, wanted: bool, rng: np.random.Generator) -> Prompt | None:
    name = pick(scene, rng).name
    count = _count(scene, name)
    if wanted:
        return templates.counting(name, count) if count > 1 else None
    if count == 1 and rng.random() < 0.8:
        return None
    if rng.random() < 0.1:
        return templates.counting(_absent(scene, rng), pick((2, 3, 4), rng))
    farthest = 1 if rng.random() < 0.7 else 4
    return templates.counting(name, pick([n for n in (2, 3, 4) if 0 < abs(n - count) <= farthest], rng))


def _match_color(scene: Scene, wanted: bool, rng: np.random.Generator) -> Prompt | None:
    if not (alone := _alone(scene)):
        return None
    item = pick(alone, rng)
    if not wanted and rng.random() < 0.2:
        return templates.colored(_absent(scene, rng), item.color)
    return templates.colored(item.name, item.color if wanted else _wrong_color(scene, item, rng))


def _match_position(scene: Scene, wanted: bool, rng: np.random.Generator) -> Prompt | None:
    alone = _alone(scene)
    if len(alone) < 2:
        if wanted or not alone or rng.random() < 0.7:
            return None
        first, second = _pick_two([alone[0].name, _absent(scene, rng)], rng)
        return templates.position(first, pick(RELATIONS, rng), second)
    a, b = _pick_two(alone, rng)
    seen, clear = relations_seen(a, b)
    if not clear or (wanted and not seen):
        return None
    if wanted:
        return templates.position(a.name, pick(seen, rng), b.name)
    if rng.random() < 0.15:
        names = (a.name, _absent(scene, rng)) if rng.random() < 0.5 else (_absent(scene, rng), b.name)
        return templates.position(names[0], pick(seen or RELATIONS, rng), names[1])
    opposite = [OPPOSITE[relation] for relation in seen]
    unseen = [relation for relation in RELATIONS if relation not in seen]
    return templates.position(a.name, pick(opposite if opposite and rng.random() < 0.6 else unseen, rng), b.name)


def _match_binding(scene: Scene, wanted: bool, rng: np.random.Generator) -> Prompt | None:
    alone = _alone(scene)
    if len(alone) < 2:
        return None
    a, b = _pick_two(alone, rng)
    names, colors = [a.name, b.name], [a.color, b.color]
    if not wanted:
        chance = rng.random()
        if chance < 0.5 and a.color != b.color:
            colors.reverse()
        elif chance < 0.8:
            one = int(rng.integers(2))
            colors[one] = _wrong_color(scene, (a, b)[one], rng)
        else:
            names[int(rng.integers(2))] = _absent(scene, rng)
    return templates.color_attr(names[0], colors[0], names[1], colors[1])


def _match_mixed(scene: Scene, wanted: bool, rng: np.random.Generator) -> str | None:
    """Two things of which one is counted or coloured and the other is not: outside the six templates."""
    names = list(dict.fromkeys(item.name for item in scene))
    pair = _pick_two(names, rng) if len(names) > 1 else (names[0], _absent(scene, rng))
    if wanted and len(names) < 2:
        return None
    broken = -1 if wanted else int(rng.integers(2))
    broken, special, parts = broken if len(names) > 1 else 1, int(rng.integers(2)), []
    for index, name in enumerate(pair):
        count = _count(scene, name)
        if index != special:
            parts.append(with_article(_absent(scene, rng) if index == broken and count else name))
        elif count == 1 and rng.random() < 0.7:
            item = next(item for item in scene if item.name == name)
            color = _wrong_color(scene, item, rng) if index == broken else item.color
            parts.append(with_article(f"{color} {name}"))
        else:
            said = count or 2
            if index == broken:
                said = pick([n for n in (1, 2, 3, 4) if n != said], rng)
            parts.append(f"{NUMBERS[said]} {name if said == 1 else plural(name)}")
    first, second = parts[:: pick((1, -1), rng)]
    return f"a photo of {first} and {second}"


_OTHER_KINDS = (_match_single, _match_two, _match_mixed, *(_match_color,) * 4, *(_match_count,) * 2)
_ARRANGED_KINDS = (_match_position, _match_binding)


def _alone(scene: Scene) -> list[SceneObject]:
    """Things of which there is only one, so that "the cat" is clear whatever detector looks."""
    return [item for item in scene if _count(scene, item.name) == 1]


def _count(scene: Scene, name: str) -> int:
    return sum(item.name == name for item in scene)


def _absent(scene: Scene, rng: np.random.Generator) -> str:
    return another(world().objects, [item.name for item in scene], rng)


def _wrong_color(scene: Scene, item: SceneObject, rng: np.random.Generator) -> str:
    """Another colour, more often one that something else in the scene has."""
    there = [other.color for other in scene if other.color != item.color]
    return pick(there, rng) if there and rng.random() < 0.6 else another(world().colors, [item.color], rng)


def another(options: Sequence[T], taken: Collection[T], rng: np.random.Generator) -> T:
    """A random option that is not taken."""
    return pick([option for option in options if option not in taken], rng)


def pick(options: Sequence[T], rng: np.random.Generator) -> T:
    """A random option; much faster than `rng.choice`, which counts when a step asks hundreds of questions."""
    return options[int(rng.random() * len(options))]


def _pick_two(options: Sequence[T], rng: np.random.Generator) -> tuple[T, T]:
    first = int(rng.random() * len(options))
    second = (first + 1 + int(rng.random() * (len(options) - 1))) % len(options)
    return options[first], options[second]


def _place_of(item: SceneObject) -> str:
    return f"row {NUMBERS[item.y // world().lattice + 1]} column {NUMBERS[item.x // world().lattice + 1]}"
