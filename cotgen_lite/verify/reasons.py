"""Why an image misses its prompt, in words: what PARM++ learns to write, and the generator to correct itself by.

The paper has GPT-4o write the reasons; here they are composed, in varied plain sentences, from a judge's findings.
Paper: section 5. Next: `reflection_examples` in training_data.py, and align/self_correction.py.
"""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import numpy.typing as npt
from torch import Tensor
from tqdm.auto import tqdm

from cotgen_lite.generate.pipeline import Generator
from cotgen_lite.geneval import Detector, Finding, evaluate
from cotgen_lite.inputs import of_kind, shaped, text, whole, with_methods
from cotgen_lite.prompts import Prompt, each_prompt, plural, with_article

AND = ", and "  # between two things that are wrong
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def write_reasons(findings: Sequence[Finding], rng: np.random.Generator) -> str:
    """One sentence about all that was found wrong, e.g. "the cat is blue but should be red, and there is no dog".

    findings: a verdict's, at least one. The wording is drawn from several. ValueError without findings.
    """
    if not of_kind(findings, "findings", Sequence, "a list of Findings"):
        raise ValueError("There is nothing to write about: only a wrong image has reasons.")
    of_kind(rng, "rng", np.random.Generator, "a generator of numpy's, such as `np.random.default_rng(0)` gives")
    pair, options = exchanged(findings), list[list[str]]()
    for place, finding in enumerate(findings):
        if place not in pair:
            options.append(wordings(finding))
        elif place == pair[0]:
            options.append(_wordings_of_exchange(*(findings[one] for one in pair)))
    return AND.join(ways[int(rng.random() * len(ways))] for ways in options)


def share_told(said: str, findings: Sequence[Finding]) -> tuple[float, float]:
    """How far a text says what was found wrong: the share of its parts that are true, and of the findings it tells.

    Word for word, in any of the wordings that `write_reasons` draws from.
    """
    of_kind(findings, "findings", Sequence, "a list of Findings")
    parts, told = text(said, "said").split(AND), [set(wordings(finding)) for finding in findings]
    pair = exchanged(findings)
    for place in pair:
        told[place] |= set(_wordings_of_exchange(*(findings[one] for one in pair)))
    true = sum(any(part in one for one in told) for part in parts)
    return true / len(parts), sum(bool(one & set(parts)) for one in told) / max(1, len(told))


def exchanged(findings: Sequence[Finding]) -> tuple[int, ...]:
    """The places of the first two findings of which each has the other's colour, or (): said together, in one part."""
    colors = [place for place, one in enumerate(findings) if isinstance(one, Finding) and one.kind == "color"]
    for first, second in combinations(colors, 2):
        a, b = findings[first], findings[second]
        if _color(a) == b.expected and _color(b) == a.expected:
            return first, second
    return ()


def _color(finding: Finding) -> str | None:
    """The wrong colour that a thing has: of several detections, the likeliest one's that is known."""
    wrong = [one for one in finding.found if one not in ("unknown", finding.expected)]  # type: ignore[union-attr]
    return wrong[0] if wrong else None


def _wordings_of_exchange(a: Finding, b: Finding) -> list[str]:
    return [
        f"the color of the {a.name} and that of the {b.name} are swapped",
        f"the {a.name} should be {a.expected} and the {b.name} {b.expected}: they are swapped",
        f"the {a.name} is {b.expected} and the {b.name} is {a.expected}, not {a.expected} and {b.expected}",
    ]


def wordings(finding: Finding) -> list[str]:
    """All ways in which `write_reasons` may say one finding. ValueError for one that GenEval's rules do not know."""
    of_kind(finding, "each of findings", Finding, "a Finding, as `evaluate` gives")
    name, expected = finding.name, finding.expected
    match finding.kind:
        case "missing":
            return [f"there is no {name}", f"the {name} is missing", f"{with_article(name)} should be there too"]
        case "count" | "extra":
            seen, wanted = _number(finding.found, name), NUMBERS[whole(expected, "a count that is asked for", 0, 10)]
            few = finding.kind == "count"
            return [
                f"there {'is' if finding.found == 1 else 'are'} {'only ' if few else ''}{seen}, not {wanted}",
                f"there {'is' if finding.found == 1 else 'are'} {seen} but there should be {wanted}",
                f"there are too {'few' if few else 'many'} {plural(name)}: {wanted} are asked for",
            ]
        case "color":
            if (color := _color(finding)) is None:
                return [f"the color of the {name} is unclear but should be {expected}"]
            return [
                f"the {name} is {color}, not {expected}",
                f"the {name} is {color} but should be {expected}",
                f"the {name} should be {expected} instead of {color}",
            ]
        case "position":
            place, other = " and ".join(finding.found), finding.reference  # type: ignore[arg-type]
            if not place:
                return [f"the {name} is not {expected} the {other}"]
            return [
                f"the {name} is {place} the {other}, not {expected} it",
                f"the {name} should be {expected} the {other}, not {place} it",
                f"the {name} is {place} the {other} but should be {expected} it",
            ]
    raise ValueError(f"There are no words for a finding of kind {finding.kind!r}: only for what `evaluate` finds.")


def _number(found: object, name: str) -> str:
    count = int(found)  # type: ignore[call-overload]
    return f"{NUMBERS[min(count, 10)]} {name if count == 1 else plural(name)}"


def find_reasons(
    generator: Generator, detector: Detector, tokens: Tensor, prompts: Sequence[Prompt], seed: int
) -> npt.NDArray[np.object_]:
    """What is wrong with each image of a pool, in words; "" where nothing is. tokens (P, N, L); returns str (P, N).

    ValueError for another number of prompts.
    """
    with_methods(generator, "generator", ("decode",), "a generator, such as `load_generator` gives")
    with_methods(detector, "detector", ("detect",), "a judge, such as `load_judges` gives")
    prompts = each_prompt(prompts)
    shaped(of_kind(tokens, "tokens", Tensor, "a tensor of tokens"), "tokens", (len(prompts), "N", "L"))
    seed = whole(seed, "seed", 0)
    rng, found = np.random.default_rng(seed), np.full(tokens.shape[:2], "", dtype=object)
    for row, (candidates, prompt) in enumerate(zip(tqdm(tokens, desc="reasons"), prompts, strict=True)):
        for column, detections in enumerate(detector.detect(generator.decode(candidates))):
            reasons = evaluate(prompt, detections).reasons
            found[row, column] = write_reasons(reasons, rng) if reasons else ""
    return found
