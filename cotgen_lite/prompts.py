"""GenEval's prompts: the record, the six templates, and the course's three disjoint sets.

GenEval (Ghosh et al., 2023) asks for object-centred pictures in six ways ("tags") and says in a small record what a
picture must show. The paper reuses the six templates for all of its training prompts (section 3.2), and so do we. The
lite world's names come from the data folder; GenEval's own are here. Read on in `geneval.py`: is a picture right?
"""

import hashlib
import json
import random
import re
import unicodedata
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import combinations, permutations
from pathlib import Path
from typing import Any

from cotgen_lite.hub import data_path, git_restore
from cotgen_lite.inputs import in_order, of_kind, one_of, settle, shown, texts, whole, with_methods
from cotgen_lite.inputs import text as check_text

TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
RELATIONS = ("left of", "right of", "above", "below")
SPLITS = ("train", "dev", "test")
COUNTS = {"two": 2, "three": 3, "four": 4}
_COUNT_WORDS = {number: word for word, number in COUNTS.items()}
MOST_REQUIRED = 100  # of one kind of thing; GenEval goes to four
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


@dataclass(frozen=True)
class Names:
    """What prompts may speak of: object names, colour names, and (name, plural) where `plural`'s rule gives none."""

    objects: tuple[str, ...]
    colors: tuple[str, ...]
    plurals: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        for field in ("objects", "colors"):
            settle(self, **{field: tuple(texts(getattr(self, field), f"The {field} of names"))})
            if twice := [name for name, times in Counter(getattr(self, field)).items() if times > 1]:
                raise ValueError(f"The {field} of names must differ, but {twice[0]!r} is there twice.")
        plurals = [tuple(texts(pair, "Each of plurals")) for pair in self.plurals]
        if any(len(pair) != 2 for pair in plurals):
            raise ValueError(f"Each of plurals is a name and its plural, got {shown(self.plurals)}.")
        settle(self, plurals=tuple(plurals))


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
    """The data folder's `world/world.json`, which describes the lite world; a process has one (see `lite/world.py`).

    ValueError if it is no JSON, names something twice, or lacks what prompts are made of.
    """
    path = data_path("world/world.json")
    try:
        file = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_each_once)
        check_world(file)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{path} does not describe a world ({_said(error)}): compare it with the shipped one, or restore that with "
            f"`{git_restore()}`."
        ) from error
    return file


def check_world(file: dict[str, Any]) -> None:
    """ValueError, KeyError, TypeError or AttributeError unless a world file says what prompts are made of."""
    objects, colors, sizes = file["objects"], file["colors"], file["prompts"]
    plurals = [check_text(about["plural"], f"The plural of {name!r}") for name, about in objects.items()]
    for word in (*objects, *plurals, *colors):
        if not re.fullmatch("[a-z]+( [a-z]+)*", word):
            raise ValueError(f"{word!r} is no name: use small letters a to z, and single spaces between words")
    if twice := [word for word, times in Counter((*objects, *plurals)).items() if times > 1]:
        raise ValueError(f"{twice[0]!r} is the singular or plural of two things")
    if len(objects) < 2 or len(colors) < 2:
        raise ValueError("two objects and two colours are the least")
    for part, least in (("test", 0), ("dev", 0), ("pools", 1)):
        for tag in TAGS:
            whole(sizes[part][tag], f"{tag} of prompts.{part}", least, 10_000)


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if twice := [key for key, times in Counter(key for key, _ in pairs).items() if times > 1]:
        raise ValueError(f"{twice[0]!r} is there twice")
    return dict(pairs)


def _said(error: Exception) -> str:
    """What an error says, for one about a file that lacks something."""
    return f"it lacks {error}" if isinstance(error, KeyError) else str(error).rstrip(".")


@cache
def lite_names() -> Names:
    """What prompts of the lite world may speak of."""
    objects, colors = world_file()["objects"], world_file()["colors"]
    return Names(tuple(objects), tuple(colors), tuple((name, about["plural"]) for name, about in objects.items()))


@dataclass(frozen=True)
class Requirement:
    """One entry of GenEval's `include` or `exclude` list.

    name: the object's class. count: how many (for `exclude`: this many or more are wrong). color: its colour, if asked.
    position: (relation, index in `include` of the object that it relates to), if asked. ValueError for other things.
    """

    name: str
    count: int = 1
    color: str | None = None
    position: tuple[str, int] | None = None

    def __post_init__(self) -> None:
        settle(self, name=_word(self.name, "The name of what is required"))
        settle(self, count=whole(self.count, f"The count of {self.name!r}", 1, MOST_REQUIRED))
        if self.color is not None:
            settle(self, color=_word(self.color, f"The colour of {self.name!r}"))
        if self.position is not None:
            if not isinstance(self.position, tuple | list) or len(self.position) != 2:
                raise ValueError(
                    f"A position is a relation and an index, as ('left of', 0); got {shown(self.position)}."
                )
            relation = one_of(self.position[0], f"The relation of {self.name!r}", RELATIONS)
            index = whole(self.position[1], f"The index that {self.name!r} relates to", 0)
            settle(self, position=(relation, index))


@dataclass(frozen=True)
class Prompt:
    """A GenEval prompt: its text, its tag, what must be there (`include`) and what must not (`exclude`).

    ValueError for another tag, or a position that does not refer to a requirement before it.
    """

    text: str
    tag: str
    include: tuple[Requirement, ...]
    exclude: tuple[Requirement, ...] = ()

    def __post_init__(self) -> None:
        settle(self, text=check_text(self.text, "The text of a prompt"))
        settle(self, tag=one_of(self.tag, "The tag of a prompt", TAGS))
        for part in ("include", "exclude"):
            items = of_kind(getattr(self, part), f"`{part}`", (tuple, list), "a tuple of Requirements")
            items = tuple(of_kind(item, f"Each of `{part}`", Requirement, "a Requirement") for item in items)
            settle(self, **{part: items})
        if not self.include:
            raise ValueError(f"The prompt {self.text!r} requires nothing: put one Requirement or more into `include`.")
        for number, item in enumerate(self.include):
            if item.position and item.position[1] >= number:
                raise ValueError(
                    f"In {self.text!r} the position of {item.name!r} refers to requirement {item.position[1]}, but it "
                    f"can only refer to one of the {number} before it: put the reference object first in `include`."
                )


def each_prompt(prompts: Any, name: str = "prompts", none: bool = True) -> tuple[Prompt, ...]:
    """Prompts as a tuple; ValueError if they are no list of `Prompt`s, or none where `none` will not do."""
    if isinstance(prompts, Prompt | str | Mapping) or not isinstance(prompts, Iterable):
        raise ValueError(f"{name} must be a list of Prompts (`parse_prompt` makes them), got {shown(prompts)}.")
    in_order(prompts, name)
    wanted = "a Prompt (`parse_prompt` makes one)"
    known = tuple(of_kind(prompt, f"Each of {name}", Prompt, wanted) for prompt in prompts)
    if not known and not none:
        raise ValueError(f"{name} must hold at least one Prompt, got none.")
    return known


def _word(value: Any, name: str) -> str:
    if not (word := check_text(value, name)).strip():
        raise ValueError(f"{name} must not be empty.")
    return word


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
    count = whole(count, "The count")
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
    relation = one_of(relation, "The relation", RELATIONS)
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
    name = _word(name, "A name")
    return dict(_known(names).plurals).get(name, f"{name}es" if name.endswith("s") else f"{name}s")


def parse_prompt(text: str, names: Names | None = None) -> Prompt:
    """Read a sentence of one of the six templates back into its record.

    text: e.g. "a photo of a red apple and a blue car". Returns the `Prompt`.
    ValueError for a sentence of another form, an unknown object, colour or count; it lists what exists.
    """
    names = _known(names)
    if len(text := check_text(text, "A prompt")) > LONGEST_SENTENCE:
        raise ValueError(f"A prompt is one sentence of at most {LONGEST_SENTENCE} characters, got {len(text)}.")
    match = re.fullmatch(r"a photo of (.+)", " ".join(text.split()))
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

    "A left of B" equals "B right of A"; the order of "A and B", capitals, spaces and plurals do not matter.
    """
    of_kind(prompt, "prompt", Prompt, "a Prompt (`parse_prompt` makes one)")
    related = [item for item in prompt.include if item.position]
    if related:
        relation, index = related[0].position  # type: ignore[misc]
        first, second = _singular(related[0].name), _singular(prompt.include[index].name)
        if relation in ("right of", "below"):
            relation, first, second = OPPOSITE[relation], second, first
        return relation, first, second
    items = ((_singular(item.name), item.count, _plain(item.color or "")) for item in prompt.include)
    return tuple(sorted(set(items)))  # a requirement that is there twice asks for nothing more


def _plain(words: str) -> str:
    """Words in small letters, and in the plain form of each letter and space."""
    return " ".join(unicodedata.normalize("NFKC", words).casefold().split())


def _singular(name: str) -> str:
    """A plain name, of GenEval's and the lite world's objects the singular."""
    return _plurals(_every_name()).get(_plain(name), _plain(name))


@cache
def _plurals(names: Names) -> dict[str, str]:
    """Singulars by all the forms in which somebody may write a plural, and by themselves."""
    forms = {"people": "person", "knives": "knife", "computer mice": "computer mouse"}
    for name in names.objects:
        forms |= dict.fromkeys((f"{name}s", f"{name}es", f"{name[:-1]}ies", plural(name, names)), name)
    return forms | {name: name for name in names.objects}


def _every_name() -> Names:
    """GenEval's names and the lite world's, if there is one."""
    try:
        return _with_geneval(lite_names())
    except FileNotFoundError:
        return GENEVAL


@cache
def _with_geneval(lite: Names) -> Names:
    objects, colors = (dict.fromkeys((*own, *its)) for own, its in zip(_lists(lite), _lists(GENEVAL), strict=True))
    return Names(tuple(objects), tuple(colors), lite.plurals)


def _lists(names: Names) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return names.objects, names.colors


def lite_prompts(split: str) -> tuple[Prompt, ...]:
    """The lite prompts of one set; no meaning is in two sets, and which are in which was chosen once, by seed.

    Where the world file says "train_counts_every_object", one counting prompt of each is in train.

    split: "train" (7,080 prompts in the shipped world), "dev" (200; noise, guidance and learning rates are chosen on
        it) or "test" (232, for reporting).
    ValueError for another name, or if the world file asks for more dev and test prompts than there are.
    """
    return _lite_prompts(one_of(split, "The set of lite prompts", SPLITS))


@cache
def _lite_prompts(split: str) -> tuple[Prompt, ...]:
    sizes, chosen = world_file()["prompts"], []
    for tag in TAGS:
        prompts = _all_lite(tag)
        random.Random(f"cotgen_lite sets {tag}").shuffle(prompts)
        if tag == "counting" and sizes.get("train_counts_every_object"):
            last = {prompt.include[0].name: prompt for prompt in prompts}
            prompts = [prompt for prompt in prompts if prompt not in last.values()] + list(last.values())
        first, second = sizes["test"][tag], sizes["test"][tag] + sizes["dev"][tag]
        if second >= len(prompts):
            raise ValueError(
                f"The world has {len(prompts)} {tag} prompts, of which {second} for dev and test leave none to train "
                'on: name more objects or colours in world.json, or make its "prompts" smaller.'
            )
        chosen += {"test": prompts[:first], "dev": prompts[first:second], "train": prompts[second:]}[split]
    return tuple(chosen)


def read_geneval(path: str | Path, names: Names = GENEVAL) -> list[Prompt]:
    """Read GenEval's own jsonl, one record a line.

    names: the objects and colours that there are, by default GenEval's. ValueError for an empty file, or names the
    first line that is no record, or asks for a tag, object, colour or count (1 to 4) that does not exist.
    """
    of_kind(path, "path", (str, Path), "the path of a jsonl file")
    prompts = []
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()  # Windows' editors write a mark first
    except OSError as error:
        raise FileNotFoundError(f"{path} cannot be read ({error.strerror}): give GenEval's jsonl file.") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no jsonl file of GenEval's: {error}.") from error
    if not lines:
        raise ValueError(f"{path} holds no record: give GenEval's jsonl file, a record a line.")
    for number, line in enumerate(lines, start=1):
        try:
            prompt = from_record(json.loads(line))
            for item in (*prompt.include, *prompt.exclude):
                _check("object", item.name, names)
                if item.color:
                    _check("colour", item.color, names)
            for items, most in ((prompt.include, max(COUNTS.values())), (prompt.exclude, max(COUNTS.values()) + 1)):
                for item in items:
                    whole(item.count, f"The count of {item.name!r}", 1, most)
        except ValueError as error:
            raise ValueError(
                f"Line {number} of {path} is not a GenEval record (tag, include, prompt): {str(error).rstrip('.')}."
            ) from error
        prompts.append(prompt)
    return prompts


def from_record(record: dict) -> Prompt:
    """GenEval's JSON record as a `Prompt`; ValueError says what it lacks or holds too much."""
    _check_keys(record, "A record", ("tag", "include", "prompt"), ("exclude",))
    include, exclude = (
        of_kind(record.get(key, []), f"{key!r}", (list, tuple), "a list") for key in ("include", "exclude")
    )
    return Prompt(record["prompt"], record["tag"], tuple(map(_entry, include)), tuple(map(_entry, exclude)))


def _entry(item: dict) -> Requirement:
    _check_keys(item, "Each entry of a record", ("class", "count"), ("color", "position"))
    return Requirement(item["class"], item["count"], item.get("color"), item.get("position"))


def _check_keys(value: Any, name: str, needed: Sequence[str], more: Sequence[str]) -> None:
    of_kind(value, name, Mapping, "a JSON object")
    if missing := [key for key in needed if key not in value]:
        raise ValueError(f"{name} needs {', '.join(needed)}, but {missing[0]!r} is missing.")
    if strange := [key for key in value if key not in (*needed, *more)]:
        raise ValueError(f"{name} has {', '.join((*needed, *more))}, but no {strange[0]!r}.")


def to_record(prompt: Prompt) -> dict:
    """A `Prompt` as GenEval's JSON record; `from_record` undoes it."""
    of_kind(prompt, "prompt", Prompt, "a Prompt (`parse_prompt` makes one)")

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
    """ "a cat", "an orange cat"; ValueError for no word."""
    phrase = _word(phrase, "A phrase")
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def _strip_article(phrase: str) -> str:
    return re.sub(r"^an? ", "", phrase)


def _check_different(first: str, second: str, names: Names | None) -> None:
    _check("object", first, names)
    _check("object", second, names)
    if first == second:
        raise ValueError(f"A prompt about two things needs two different objects; got {first!r} twice.")


def _known(names: Names | None) -> Names:
    return lite_names() if names is None else of_kind(names, "names", Names, "Names, as GENEVAL is")


def _check(what: str, value: str, names: Names | None) -> None:
    known = _known(names).objects if what == "object" else _known(names).colors
    if check_text(value, f"The {what}") not in known:
        raise ValueError(f"Unknown {what} {value!r}: use one of {', '.join(known)}.")


UNKNOWN = "<|unknown|>"  # what the lite tokenizer makes of a word that it does not know


LONGEST_SENTENCE = 500  # characters of a sentence of the templates
LONGEST_TEXT = 20_000  # characters of a text; no model here reads as many, and nobody should wait for its tokens


def encode_text(tokenizer: Any, text: str, most: int | None = None) -> list[int]:
    """Text as token ids, without special tokens added.

    most: how many tokens the model reads. ValueError for a text that is longer, for a control token in it such as
    "<image>", and for words that the tokenizer does not know (lite models read only the course's words).
    """

    def ids(words: str) -> list[int]:
        return tokenizer(words, add_special_tokens=False)["input_ids"]

    with_methods(tokenizer, "tokenizer", ["__call__"], "a tokenizer")
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

    A prompt asks what its record says, and what its sentence says if it is one of the templates'. held_out: what must
    not be asked, as hashes (`meaning_hash`); by default what the lite dev and test prompts ask. At full scale the test
    is GenEval's: pass `full_scale.prompts.geneval_meanings()`.
    """
    forbidden = _lite_meanings() if held_out is None else held_out
    if not isinstance(forbidden, Set) or not all(re.fullmatch("[0-9a-f]{16}", str(one)) for one in forbidden):
        raise ValueError(f"held_out must be a set of hashes, as geneval_meanings() gives, got {shown(held_out)}.")
    for prompt in each_prompt(prompts):
        asked = {meaning_hash(prompt)}
        with suppress(ValueError):  # most wordings of one's own are no sentence of the templates
            asked.add(meaning_hash(parse_prompt(_plain(prompt.text).rstrip(" .!"), _every_name())))
        if asked & forbidden:
            raise ValueError(
                f"{prompt.text!r} asks what a dev or test prompt asks: train on `train_prompts` only, or at full scale "
                "on `full_prompts` with `held_out=geneval_meanings()`."
            )


@cache
def _lite_meanings() -> frozenset[str]:
    return frozenset(meaning_hash(prompt) for split in ("dev", "test") for prompt in lite_prompts(split))
