"""The full scale's 13,000 training prompts: everyday objects in GenEval's six templates, but no prompt of GenEval's.

The paper's list of 200 objects (section 3.2) came from GPT-4; ours is `data/prompts/everyday_objects.txt`, GenEval's 80
classes and 120 more. GenEval's prompts are not shipped: hashes of what they ask for suffice to keep them out.
`python -m cotgen_lite.full_scale.prompts GENEVAL.jsonl` makes the hashes anew.
"""

import argparse
import random
from collections import Counter
from collections.abc import Iterator
from functools import cache
from itertools import chain, islice
from pathlib import Path

from cotgen_lite import prompts as templates
from cotgen_lite.hub import data_path, data_root, git_restore, write_atomically
from cotgen_lite.prompts import COUNTS, GENEVAL, RELATIONS, TAGS, Names, Prompt, meaning_hash, read_geneval

OBJECTS_FILE, MEANINGS_FILE = "prompts/everyday_objects.txt", "prompts/geneval_meanings.txt"

# Of the tags about one kind of thing all that GenEval leaves: 200 - 80 names, 600 - 80 counts, 1,990 - 94 colours.
# The three about two things are the hard ones and have over a million prompts: they share the rest of 13,000 evenly.
FULL_SIZES = dict(zip(TAGS, (120, 3488, 520, 1896, 3488, 3488), strict=True))
GENEVAL_SIZES = dict(zip(TAGS, (80, 99, 80, 94, 100, 100), strict=True))
GENEVAL_MEANINGS = 552  # of 553 prompts: a laptop left of a cow is asked for from both sides


def everyday_names() -> Names:
    """The 200 everyday objects with their irregular plurals, and GenEval's ten colours."""
    rows = [line.partition("\t") for line in data_path(OBJECTS_FILE).read_text(encoding="utf-8").splitlines()]
    plurals = tuple((name, several) for name, _, several in rows if several)
    return Names(tuple(name for name, _, _ in rows), GENEVAL.colors, plurals)


@cache
def full_prompts() -> tuple[Prompt, ...]:
    """The 13,000 training prompts of the full scale, tag after tag: no two mean the same, and none what GenEval tests.

    ValueError if the shipped hashes of GenEval's meanings are not whole. Section 3.2, "ORM Ranking Data Curation".
    """
    names, seen = everyday_names(), set(geneval_meanings())
    parts = (islice(_unseen(_candidates(tag, names), seen), size) for tag, size in FULL_SIZES.items())
    return tuple(chain.from_iterable(parts))


def forbidden_meanings(path: str | Path) -> set[str]:
    """The hashes of what GenEval's test asks for, from its evaluation_metadata.jsonl; ValueError for another file."""
    try:
        prompts = read_geneval(path)
        if Counter(prompt.tag for prompt in prompts) != GENEVAL_SIZES:
            raise ValueError(f"its {len(prompts)} prompts are not {', '.join(map(str, GENEVAL_SIZES.values()))} by tag")
    except ValueError as error:
        raise ValueError(
            f"{path} is not GenEval's list of 553 prompts ({error}): give the file "
            "prompts/evaluation_metadata.jsonl of https://github.com/djghosh13/geneval."
        ) from error
    return {meaning_hash(prompt) for prompt in prompts}


def geneval_meanings() -> frozenset[str]:
    """The shipped hashes of what GenEval's 553 prompts ask for; ValueError if they are not whole."""
    path = data_path(MEANINGS_FILE)
    hashes = frozenset(path.read_text(encoding="utf-8").split())
    if len(hashes) != GENEVAL_MEANINGS:
        raise ValueError(
            f"{path} is damaged (it has {len(hashes)} hashes, not {GENEVAL_MEANINGS}): restore the "
            f"shipped ones by `{git_restore()}`, or run `python -m cotgen_lite.full_scale.prompts GENEVAL.jsonl`."
        )
    return hashes


def _candidates(tag: str, names: Names) -> Iterator[Prompt]:
    """All prompts of a tag about one kind of thing; of a tag about two things, random ones without end."""
    colorable = [name for name in names.objects if name != "person"]  # GenEval colours no person either
    if tag == "single_object":
        yield from (templates.single_object(name, names) for name in names.objects)
    elif tag == "counting":
        yield from (templates.counting(name, count, names) for name in names.objects for count in COUNTS.values())
    elif tag == "colors":
        yield from (templates.colored(name, color, names) for name in colorable for color in names.colors)
    chance = random.Random(f"cotgen_lite full {tag}")
    while tag == "color_attr":
        (a, b), (color_a, color_b) = chance.sample(colorable, 2), chance.sample(names.colors, 2)
        yield templates.color_attr(a, color_a, b, color_b, names)
    while tag in ("two_object", "position"):
        a, b = chance.sample(names.objects, 2)
        if tag == "two_object":
            yield templates.two_object(a, b, names)
        else:
            yield templates.position(a, chance.choice(RELATIONS), b, names)


def _unseen(prompts: Iterator[Prompt], seen: set[str]) -> Iterator[Prompt]:
    """Those prompts whose meaning is not in `seen` yet; adds each to it."""
    for prompt in prompts:
        if (key := meaning_hash(prompt)) not in seen:
            seen.add(key)
            yield prompt


def main(arguments: list[str] | None = None) -> None:
    """Make the hashes of what GenEval's prompts ask for anew, from its own file."""
    parser = argparse.ArgumentParser(prog="python -m cotgen_lite.full_scale.prompts", description=main.__doc__)
    parser.add_argument("geneval", type=Path, metavar="GENEVAL.jsonl", help="GenEval's own evaluation_metadata.jsonl")
    options = parser.parse_args(arguments)
    try:
        hashes = sorted(forbidden_meanings(options.geneval))
    except (OSError, ValueError) as error:
        parser.error(str(error))
    write_atomically(data_root() / MEANINGS_FILE, "".join(f"{key}\n" for key in hashes))
    print(f"{data_root() / MEANINGS_FILE}: what {sum(GENEVAL_SIZES.values())} prompts ask for, {len(hashes)} meanings")


if __name__ == "__main__":
    main()
