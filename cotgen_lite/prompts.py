"""GenEval's prompts: the record, the six templates, and the course's three disjoint sets.

GenEval (Ghosh et al., 2023) asks for object-centred pictures in six ways ("tags") and says in a small record what a
picture must show. The paper reuses the six templates for all of its training prompts (section 3.2), and so do we.
"""

import hashlib
import json
import random
import re
from collections.abc import Hashable, Sequence, Set
from dataclasses import dataclass
from functools import cache
from itertools import combinations, permutations
from pathlib import Path
from typing import Any

TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
RELATIONS = ("left of", "right of", "above", "below")
COUNTS = {"two": 2, "three": 3, "four": 4}
_COUNT_WORDS = {number: word for word, number in COUNTS.items()}
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


@dataclass(frozen=True)
class Names:
    """What prompts may speak of: object names, colour names, and (name, plural) where `plural`'s rule gives none."""

    objects: tuple[str, ...]
    colors: tuple[str, ...]
    plurals: tuple[tuple[str, str], ...] = ()


LITE = Names(
    objects=(
        *("airplane", "apple", "bird", "boat", "book", "bus", "cake", "car"),
        *("cat", "chair", "clock", "cup", "dog", "elephant", "pizza", "umbrella"),
    ),
    colors=("red", "orange", "yellow", "green", "blue", "purple", "brown", "black"),
)
OBJECTS, COLORS = LITE.objects, LITE.colors

# The 80 classes of COCO under GenEval's spelling, and its ten colours.
GENEVAL = Names(
    objects=(
        *(
            "person",
            "bicycle",
            "car",
            "motorcycle",
            "airplane",
            "bus",
            "train",
            "truck",
            "boat",
            "traffic light",
        ),
        *(
            "fire hydrant",
            "stop sign",
            "parking meter",
            "bench",
            "bird",
            "cat",
            "dog",
            "horse",
            "sheep",
            "cow",
        ),
        *(
            "elephant",
            "bear",
            "zebra",
            "giraffe",
            "backpack",
            "umbrella",
            "handbag",
            "tie",
            "suitcase",
            "frisbee",
        ),
        *(
            "skis",
            "snowboard",
            "sports ball",
            "kite",
            "baseball bat",
            "baseball glove",
            "skateboard",
            "surfboard",
        ),
        *(
            "tennis racket",
            "bottle",
            "wine glass",
            "cup",
            "fork",
            "knife",
            "spoon",
            "bowl",
            "banana",
            "apple",
        ),
        *("sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch"),
        *("potted plant", "bed", "dining table", "toilet", "tv", "laptop", "computer mouse", "tv remote"),
        *("computer keyboard", "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "book"),
        *("clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush"),
    ),
    colors=("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white"),
)


@dataclass(frozen=True)
class Requirement:
    """One entry of GenEval's `include` or `exclude` list.

    name: the object's class. count: how many (for `exclude`: this many or more are wrong). color: its colour, if asked.
    position: (relation, index in `include` of the object that it relates to), if asked.
    """

    name: str
    count: int = 1
    color: str | None = None
    position: tuple[str, int] | None = None


@dataclass(frozen=True)
class Prompt:
    """A GenEval prompt: its text, its tag, what must be there (`include`) and what must not (`exclude`)."""

    text: str
    tag: str
    include: tuple[Requirement, ...]
    exclude: tuple[Requirement, ...] = ()


def single_object(name: str, names: Names = LITE) -> Prompt:
    """ "a photo of a cat"."""
    _check("object", name, names.objects)
    return Prompt(f"a photo of {with_article(name)}", "single_object", (Requirement(name),))


def two_object(first: str, second: str, names: Names = LITE) -> Prompt:
    """ "a photo of a cat and a dog"; ValueError if both are the same."""
    _check_different(first, second, names)
    text = f"a photo of {with_article(first)} and {with_article(second)}"
    return Prompt(text, "two_object", (Requirement(first), Requirement(second)))


def counting(name: str, count: int, names: Names = LITE) -> Prompt:
    """ "a photo of three cats": exactly `count` of them, 2 to 4."""
    _check("object", name, names.objects)
    if count not in _COUNT_WORDS:
        raise ValueError(f"The count {count!r} is not one of GenEval's: use 2, 3 or 4.")
    text = f"a photo of {_COUNT_WORDS[count]} {plural(name, names)}"
    return Prompt(text, "counting", (Requirement(name, count),), (Requirement(name, count + 1),))


def colored(name: str, color: str, names: Names = LITE) -> Prompt:
    """ "a photo of a red cat"."""
    _check("object", name, names.objects)
    _check("colour", color, names.colors)
    text = f"a photo of {with_article(f'{color} {name}')}"
    return Prompt(text, "colors", (Requirement(name, color=color),))


def position(name: str, relation: str, reference: str, names: Names = LITE) -> Prompt:
    """ "a photo of a cat left of a dog": the reference ("dog") stands first in `include`, as in GenEval."""
    _check_different(name, reference, names)
    _check("relation", relation, RELATIONS)
    text = f"a photo of {with_article(name)} {relation} {with_article(reference)}"
    return Prompt(text, "position", (Requirement(reference), Requirement(name, position=(relation, 0))))


def color_attr(first: str, first_color: str, second: str, second_color: str, names: Names = LITE) -> Prompt:
    """ "a photo of a red cat and a blue dog"."""
    _check_different(first, second, names)
    _check("colour", first_color, names.colors)
    _check("colour", second_color, names.colors)
    parts = (with_article(f"{first_color} {first}"), with_article(f"{second_color} {second}"))
    include = (Requirement(first, color=first_color), Requirement(second, color=second_color))
    return Prompt(f"a photo of {parts[0]} and {parts[1]}", "color_attr", include)


def plural(name: str, names: Names = LITE) -> str:
    """The plural listed in `names`; else GenEval's, which only knows -s and -es: "buses", but also "benchs"."""
    return dict(names.plurals).get(name, f"{name}es" if name.endswith("s") else f"{name}s")


def parse_prompt(text: str, names: Names = LITE) -> Prompt:
    """Read a sentence of one of the six templates back into its record.

    text: e.g. "a photo of a red apple and a blue car". Returns the `Prompt`.
    ValueError for a sentence of another form, an unknown object, colour or count; it lists what exists.
    """
    match = re.fullmatch(r"a photo of (.+)", text.strip())
    if not match:
        raise ValueError(
            f'A prompt starts with "a photo of", for example "a photo of a red {names.objects[0]}"; got {text!r}.'
        )
    body = match[1]
    related = re.fullmatch(rf"(an? .+) ({'|'.join(RELATIONS)}) (an? .+)", body)
    if related:
        return position(_strip_article(related[1]), related[2], _strip_article(related[3]), names)
    if not re.match(r"an? ", body):
        return _parse_counting(body, names)
    parts = [_split_color(_strip_article(part), names) for part in re.split(r" and (?=an? )", body)]
    if len(parts) > 2:
        raise ValueError(f"A prompt speaks of one or two things, joined by one 'and'; got {text!r}.")
    colors = [color for color, _ in parts if color]
    if len(parts) == 1:
        color, name = parts[0]
        return colored(name, color, names) if color else single_object(name, names)
    if len(colors) == 1:
        raise ValueError(f"GenEval colours both things or neither; got {text!r}.")
    (color_a, name_a), (color_b, name_b) = parts
    if color_a and color_b:
        return color_attr(name_a, color_a, name_b, color_b, names)
    return two_object(name_a, name_b, names)


def meaning(prompt: Prompt) -> Hashable:
    """What a prompt asks for, the same for two sentences that ask for the same picture.

    "A left of B" equals "B right of A", and the order of "A and B" does not matter.
    """
    related = [item for item in prompt.include if item.position]
    if related:
        relation, index = related[0].position  # type: ignore[misc]
        first, second = related[0].name, prompt.include[index].name
        if relation in ("right of", "below"):
            relation, first, second = OPPOSITE[relation], second, first
        return relation, first, second
    return tuple(sorted((item.name, item.count, item.color or "") for item in prompt.include))


# How many meanings of each tag go to the test and dev sets; the rest is for training. All are chosen once, by seed.
SPLIT_SIZES = {
    "test": dict(zip(TAGS, (8, 40, 24, 40, 60, 60), strict=True)),
    "dev": dict(zip(TAGS, (4, 32, 8, 28, 60, 68), strict=True)),
}


@cache
def lite_prompts(split: str) -> tuple[Prompt, ...]:
    """The lite prompts of one set; no meaning is in two sets.

    split: "train" (7,080 prompts), "dev" (200; noise, guidance and learning rates are chosen on it) or
        "test" (232, for reporting).
    """
    if split not in ("train", "dev", "test"):
        raise ValueError(f'There is no set {split!r}: use "train", "dev" or "test".')
    chosen: list[Prompt] = []
    for tag in TAGS:
        prompts = _all_lite(tag)
        random.Random(f"cotgen_lite sets {tag}").shuffle(prompts)
        first, second = SPLIT_SIZES["test"][tag], SPLIT_SIZES["test"][tag] + SPLIT_SIZES["dev"][tag]
        chosen += {"test": prompts[:first], "dev": prompts[first:second], "train": prompts[second:]}[split]
    return tuple(chosen)


def read_geneval(path: str | Path) -> list[Prompt]:
    """Read GenEval's own jsonl (one record a line); ValueError names the first line that is not a record."""
    prompts = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), start=1):
        try:
            prompts.append(from_record(json.loads(line)))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"Line {number} of {path} is not a GenEval record (tag, include, prompt): {error}"
            ) from error
    return prompts


def from_record(record: dict) -> Prompt:
    """GenEval's JSON record as a `Prompt`."""
    include, exclude = (
        tuple(
            Requirement(
                item["class"],
                item["count"],
                item.get("color"),
                tuple(item["position"]) if "position" in item else None,
            )
            for item in record.get(key, ())
        )
        for key in ("include", "exclude")
    )
    return Prompt(record["prompt"], record["tag"], include, exclude)


def to_record(prompt: Prompt) -> dict:
    """A `Prompt` as GenEval's JSON record; `from_record` undoes it."""

    def entry(item: Requirement) -> dict:
        record: dict = {"class": item.name, "count": item.count}
        if item.color:
            record["color"] = item.color
        if item.position:
            record["position"] = list(item.position)
        return record

    record: dict = {"tag": prompt.tag, "include": [entry(item) for item in prompt.include]}
    if prompt.exclude:
        record["exclude"] = [entry(item) for item in prompt.exclude]
    return record | {"prompt": prompt.text}


def _all_lite(tag: str) -> list[Prompt]:
    """Every lite prompt of a tag, one sentence a meaning; which of two equal sentences is drawn by seed."""
    chance = random.Random(f"cotgen_lite order {tag}")
    if tag == "single_object":
        return [single_object(name) for name in OBJECTS]
    if tag == "counting":
        return [counting(name, count) for name in OBJECTS for count in _COUNT_WORDS]
    if tag == "colors":
        return [colored(name, color) for name in OBJECTS for color in COLORS]
    pairs = [chance.sample(pair, 2) for pair in combinations(OBJECTS, 2)]
    if tag == "two_object":
        return [two_object(a, b) for a, b in pairs]
    if tag == "color_attr":
        return [color_attr(a, color_a, b, color_b) for a, b in pairs for color_a, color_b in permutations(COLORS, 2)]
    prompts = []
    for a, b in permutations(OBJECTS, 2):
        for relation, opposite in (("left of", "right of"), ("above", "below")):
            prompts.append(position(a, relation, b) if chance.random() < 0.5 else position(b, opposite, a))
    return prompts


def _parse_counting(body: str, names: Names) -> Prompt:
    word, _, plural_name = body.partition(" ")
    if word not in COUNTS:
        raise ValueError(f'After "a photo of" comes a, an, {", ".join(COUNTS)}; got {word!r}.')
    singular = {plural(name, names): name for name in names.objects}
    _check("plural", plural_name, tuple(singular))
    return counting(singular[plural_name], COUNTS[word], names)


def _split_color(phrase: str, names: Names) -> tuple[str | None, str]:
    if phrase in names.objects:  # "orange" is a colour and a fruit
        return None, phrase
    color, _, name = phrase.partition(" ")
    if not name:
        return None, phrase
    if color not in names.colors and name in names.objects:
        _check("colour", color, names.colors)
    return (color, name) if color in names.colors else (None, phrase)


def with_article(phrase: str) -> str:
    """ "a cat", "an orange cat"."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def _strip_article(phrase: str) -> str:
    return re.sub(r"^an? ", "", phrase)


def _check_different(first: str, second: str, names: Names) -> None:
    _check("object", first, names.objects)
    _check("object", second, names.objects)
    if first == second:
        raise ValueError(f"A prompt about two things needs two different objects; got {first!r} twice.")


def _check(what: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise ValueError(f"Unknown {what} {value!r}: use one of {', '.join(known)}.")


UNKNOWN = "<|unknown|>"


def encode_text(tokenizer: Any, text: str) -> list[int]:
    """Text as token ids, without special tokens added.

    ValueError names the words that the tokenizer does not know (lite models read only the course's words).
    """
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in ids:
        unknown = [
            word
            for word in text.split()
            if tokenizer.unk_token_id in tokenizer(word, add_special_tokens=False)["input_ids"]
        ]
        if tokenizer.unk_token != UNKNOWN:
            raise ValueError(f"The model has no token for {', '.join(map(repr, unknown))}: use other words or signs.")
        raise ValueError(
            f"The lite models do not know {', '.join(map(repr, unknown))}: they know the objects {', '.join(OBJECTS)}; "
            f"the colours {', '.join(COLORS)}; the counts {', '.join(COUNTS)}; left of, right of, above and below."
        )
    return ids


def meaning_hash(prompt: Prompt) -> str:
    """What a prompt asks for (`prompts.meaning`) as 16 hexadecimal digits."""
    return hashlib.sha256(repr(meaning(prompt)).encode()).hexdigest()[:16]


def refuse_held_out(prompts: Sequence[Prompt], held_out: Set[str] | None = None) -> None:
    """ValueError if a prompt asks what a dev or test prompt asks, in whatever wording.

    held_out: what must not be asked, as hashes (`full_prompts.meaning_hash`); by default what the lite dev and test
    prompts ask. At full scale the test is GenEval's: pass `full_prompts.geneval_meanings()`.
    """
    forbidden = _lite_meanings() if held_out is None else held_out
    for prompt in prompts:
        if meaning_hash(prompt) in forbidden:
            raise ValueError(
                f"{prompt.text!r} asks what a dev or test prompt asks: train on `train_prompts` only, or at full scale "
                "on `full_prompts` with `held_out=geneval_meanings()`."
            )


@cache
def _lite_meanings() -> frozenset[str]:
    return frozenset(meaning_hash(prompt) for split in ("dev", "test") for prompt in lite_prompts(split))
