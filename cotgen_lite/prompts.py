"""GenEval's prompts: the record, the six templates, and the course's three disjoint sets.

GenEval (Ghosh et al., 2023) asks for object-centred pictures in six ways ("tags") and says in a small record what a
picture must show. The paper reuses the six templates for all of its training prompts (section 3.2), and so do we. The
lite world's names come from the data folder; GenEval's own are here. Read on in `geneval.py`: is a picture right?
"""

import hashlib
import json
import random
import re
from collections.abc import Hashable, Sequence, Set
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import combinations, permutations
from pathlib import Path
from typing import Any

from cotgen_lite.hub import data_path
from cotgen_lite.inputs import text as check_text

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


# The 80 classes of COCO under GenEval's spelling, and its ten colours.
_COCO = """
person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign, parking
meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella, handbag, tie,
suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard, surfboard, tennis
racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot, hot
dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, laptop, computer mouse, tv
remote, computer keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase, scissors,
teddy bear, hair drier, toothbrush
"""
GENEVAL = Names(
    tuple(" ".join(_COCO.split()).split(", ")),
    ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white"),
)


@cache
def world_file() -> dict[str, Any]:
    """The data folder's `world/world.json`, which describes the lite world; a process has one (see `lite/world.py`)."""
    return json.loads(data_path("world/world.json").read_text(encoding="utf-8"))


@cache
def lite_names() -> Names:
    """What prompts of the lite world may speak of."""
    objects, colors = world_file()["objects"], world_file()["colors"]
    return Names(tuple(objects), tuple(colors), tuple((name, about["plural"]) for name, about in objects.items()))


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


def single_object(name: str, names: Names | None = None) -> Prompt:
    """ "a photo of a cat". names: what may be spoken of, here and in all templates; by default the lite world's."""
    _check("object", name, names)
    return Prompt(f"a photo of {with_article(name)}", "single_object", (Requirement(name),))


def two_object(first: str, second: str, names: Names | None = None) -> Prompt:
    """ "a photo of a cat and a dog"; ValueError if both are the same."""
    _check_different(first, second, names)
    text = f"a photo of {with_article(first)} and {with_article(second)}"
    return Prompt(text, "two_object", (Requirement(first), Requirement(second)))


def counting(name: str, count: int, names: Names | None = None) -> Prompt:
    """ "a photo of three cats": exactly `count` of them, 2 to 4."""
    _check("object", name, names)
    if count not in _COUNT_WORDS:
        raise ValueError(f"The count {count!r} is not one of GenEval's: use 2, 3 or 4.")
    text = f"a photo of {_COUNT_WORDS[count]} {plural(name, names)}"
    return Prompt(text, "counting", (Requirement(name, count),), (Requirement(name, count + 1),))


def colored(name: str, color: str, names: Names | None = None) -> Prompt:
    """ "a photo of a red cat"."""
    _check("object", name, names)
    _check("colour", color, names)
    text = f"a photo of {with_article(f'{color} {name}')}"
    return Prompt(text, "colors", (Requirement(name, color=color),))


def position(name: str, relation: str, reference: str, names: Names | None = None) -> Prompt:
    """ "a photo of a cat left of a dog": the reference ("dog") stands first in `include`, as in GenEval."""
    _check_different(name, reference, names)
    if relation not in RELATIONS:
        raise ValueError(f"Unknown relation {relation!r}: use one of {', '.join(RELATIONS)}.")
    text = f"a photo of {with_article(name)} {relation} {with_article(reference)}"
    return Prompt(text, "position", (Requirement(reference), Requirement(name, position=(relation, 0))))


def color_attr(first: str, first_color: str, second: str, second_color: str, names: Names | None = None) -> Prompt:
    """ "a photo of a red cat and a blue dog"."""
    _check_different(first, second, names)
    _check("colour", first_color, names)
    _check("colour", second_color, names)
    parts = (with_article(f"{first_color} {first}"), with_article(f"{second_color} {second}"))
    include = (Requirement(first, color=first_color), Requirement(second, color=second_color))
    return Prompt(f"a photo of {parts[0]} and {parts[1]}", "color_attr", include)


def plural(name: str, names: Names | None = None) -> str:
    """The plural listed in `names`; else GenEval's, which only knows -s and -es: "buses", but also "benchs"."""
    return dict((names or lite_names()).plurals).get(name, f"{name}es" if name.endswith("s") else f"{name}s")


def parse_prompt(text: str, names: Names | None = None) -> Prompt:
    """Read a sentence of one of the six templates back into its record.

    text: e.g. "a photo of a red apple and a blue car". Returns the `Prompt`.
    ValueError for a sentence of another form, an unknown object, colour or count; it lists what exists.
    """
    names = names or lite_names()
    match = re.fullmatch(r"a photo of (.+)", text.strip())
    if not match:
        example = colored(names.objects[0], names.colors[0], names).text
        raise ValueError(f'A prompt starts with "a photo of", for example "{example}"; got {text!r}.')
    body = match[1]
    related = re.fullmatch(rf"(an? .+) ({'|'.join(RELATIONS)}) (an? .+)", body)
    if related:
        return position(_strip_article(related[1]), related[2], _strip_article(related[3]), names)
    if not re.match(r"an? ", body):
        return _parse_counting(body, names)
    parts = [_split_color(_strip_article(part), names) for part in re.split(r" and (?=an? )", body)]
    if len(parts) > 2:
        raise ValueError(f"A prompt speaks of one or two things, joined by one 'and'; got {text!r}.")
    if len(parts) == 1:
        color, name = parts[0]
        return colored(name, color, names) if color else single_object(name, names)
    (color_a, name_a), (color_b, name_b) = parts
    if color_a and color_b:
        return color_attr(name_a, color_a, name_b, color_b, names)
    if color_a or color_b:
        raise ValueError(f"GenEval colours both things or neither; got {text!r}.")
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


@cache
def lite_prompts(split: str) -> tuple[Prompt, ...]:
    """The lite prompts of one set; no meaning is in two sets, and which are in which was chosen once, by seed.

    split: "train" (7,080 prompts in the shipped world), "dev" (200; noise, guidance and learning rates are chosen on
        it) or "test" (232, for reporting).
    ValueError for another name, or if the world file asks for more dev and test prompts than there are.
    """
    if split not in ("train", "dev", "test"):
        raise ValueError(f'There is no set {split!r}: use "train", "dev" or "test".')
    sizes, chosen = world_file()["prompts"], []
    for tag in TAGS:
        prompts = _all_lite(tag)
        random.Random(f"cotgen_lite sets {tag}").shuffle(prompts)
        first, second = sizes["test"][tag], sizes["test"][tag] + sizes["dev"][tag]
        if second >= len(prompts):
            raise ValueError(
                f"The world has {len(prompts)} {tag} prompts, of which {second} for dev and test leave none to train "
                'on: name more objects or colours in world.json, or make its "prompts" smaller.'
            )
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
            Requirement(item["class"], item["count"], item.get("color"), tuple(item.get("position", ())) or None)
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
    chance, names = random.Random(f"cotgen_lite order {tag}"), lite_names()
    if tag == "single_object":
        return [single_object(name) for name in names.objects]
    if tag == "counting":
        return [counting(name, count) for name in names.objects for count in _COUNT_WORDS]
    if tag == "colors":
        return [colored(name, color) for name in names.objects for color in names.colors]
    pairs = [chance.sample(pair, 2) for pair in combinations(names.objects, 2)]
    if tag == "two_object":
        return [two_object(a, b) for a, b in pairs]
    if tag == "color_attr":
        return [color_attr(a, own, b, its) for a, b in pairs for own, its in permutations(names.colors, 2)]
    prompts = []
    for a, b in permutations(names.objects, 2):
        for relation, opposite in (("left of", "right of"), ("above", "below")):
            prompts.append(position(a, relation, b) if chance.random() < 0.5 else position(b, opposite, a))
    return prompts


def _parse_counting(body: str, names: Names) -> Prompt:
    word, _, plural_name = body.partition(" ")
    if word not in COUNTS:
        raise ValueError(f'After "a photo of" comes a, an, {", ".join(COUNTS)}; got {word!r}.')
    singular = {plural(name, names): name for name in names.objects}
    if plural_name not in singular:
        raise ValueError(f"Unknown plural {plural_name!r}: use one of {', '.join(singular)}.")
    return counting(singular[plural_name], COUNTS[word], names)


def _split_color(phrase: str, names: Names) -> tuple[str | None, str]:
    if phrase in names.objects:  # "orange" is a colour and a fruit
        return None, phrase
    color, _, name = phrase.partition(" ")
    if not name:
        return None, phrase
    if color not in names.colors and name in names.objects:
        _check("colour", color, names)
    return (color, name) if color in names.colors else (None, phrase)


def with_article(phrase: str) -> str:
    """ "a cat", "an orange cat"."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def _strip_article(phrase: str) -> str:
    return re.sub(r"^an? ", "", phrase)


def _check_different(first: str, second: str, names: Names | None) -> None:
    _check("object", first, names)
    _check("object", second, names)
    if first == second:
        raise ValueError(f"A prompt about two things needs two different objects; got {first!r} twice.")


def _check(what: str, value: str, names: Names | None) -> None:
    names = names or lite_names()
    known = names.objects if what == "object" else names.colors
    if value not in known:
        raise ValueError(f"Unknown {what} {value!r}: use one of {', '.join(known)}.")


UNKNOWN = "<|unknown|>"  # what the lite tokenizer makes of a word that it does not know


LONGEST_TEXT = 20_000  # characters of a text; no model here reads as many, and nobody should wait for its tokens


def encode_text(tokenizer: Any, text: str, most: int | None = None) -> list[int]:
    """Text as token ids, without special tokens added.

    most: how many tokens the model reads. ValueError for a text that is longer, for a control token in it such as
    "<image>", and for words that the tokenizer does not know (lite models read only the course's words).
    """

    def ids(words: str) -> list[int]:
        return tokenizer(words, add_special_tokens=False)["input_ids"]

    text = check_text(text, "A prompt")
    if len(text) > LONGEST_TEXT:
        raise ValueError(f"The text has {len(text)} characters; at most {LONGEST_TEXT} are read: shorten it.")
    if not text.isascii() and re.search("[\ud800-\udfff]", text):
        raise ValueError(f"The text holds half of a character (a surrogate), which cannot be read: {ascii(text)[:60]}.")
    encoded, unknown = ids(text), tokenizer.unk_token_id
    if unknown is not None and unknown in encoded:
        strange = ", ".join(repr(word) for word in text.split() if unknown in ids(word))
        if tokenizer.unk_token != UNKNOWN:
            raise ValueError(f"The model has no token for {strange}: use other words or signs.")
        objects, colors = (", ".join(known) for known in (lite_names().objects, lite_names().colors))
        raise ValueError(
            f"The lite models do not know {strange}: they know the objects {objects}; the colours {colors}; "
            f"the counts {', '.join(COUNTS)}; left of, right of, above and below."
        )
    controls = _control_tokens(tokenizer, len(tokenizer))
    if found := sorted({controls[one] for one in encoded if one in controls}):
        said = ", ".join(map(repr, found))
        raise ValueError(f"The text holds {said}, which the model would obey as a sign of control: leave it out.")
    if most is not None and len(encoded) > most:
        raise ValueError(f"The text has {len(encoded)} tokens; this model reads at most {most}: shorten it.")
    return encoded


@lru_cache(maxsize=16)
def _control_tokens(tokenizer: Any, _size: int) -> dict[int, str]:
    """Ids and texts of a tokenizer's special and added tokens; added words and spaces are not of them."""
    added = {number: str(token) for number, token in tokenizer.added_tokens_decoder.items()}
    added = {number: token for number, token in added.items() if token.strip() and not token.strip().isalnum()}
    return added | dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))


def meaning_hash(prompt: Prompt) -> str:
    """What a prompt asks for (`meaning`) as 16 hexadecimal digits."""
    return hashlib.sha256(repr(meaning(prompt)).encode()).hexdigest()[:16]


def refuse_held_out(prompts: Sequence[Prompt], held_out: Set[str] | None = None) -> None:
    """ValueError if a prompt asks what a dev or test prompt asks, in whatever wording.

    held_out: what must not be asked, as hashes (`meaning_hash`); by default what the lite dev and test prompts ask. At
    full scale the test is GenEval's: pass `full_scale.prompts.geneval_meanings()`.
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
