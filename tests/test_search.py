"""Best-of-n and its step-by-step form: keep the favourite, say what it cost, draw the same whatever n."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from cotgen_lite.generate.autoregressive import load_autoregressive
from cotgen_lite.generate.sampling import Cost, advance, branch, predict
from cotgen_lite.verify.search import ParmPath, best_of_n, parm_search, prm_search, reflect, shows_no_potential
from cotgen_lite.verify.verifier import ORM_QUESTION, REFLECTION_QUESTION

PROMPT = "a photo of a red cat and a blue dog"


class Favourite:
    """A verifier that counts its questions and likes dark images."""

    asked = 0

    def score(self, images: torch.Tensor, prompt: str, question: str = ORM_QUESTION) -> torch.Tensor:
        assert prompt == PROMPT and "{prompt}" in question
        self.asked += len(images)
        return -images.float().mean(dim=(1, 2, 3))


def test_keeps_the_favourite_and_bills_it(toy_generator: Any) -> None:
    verifier = Favourite()
    result = best_of_n(toy_generator, verifier, PROMPT, n=5, seed=3)  # type: ignore[arg-type]
    means = result.images.float().mean(dim=(1, 2, 3))
    assert result.chosen == int(means.argmin())
    assert torch.equal(result.image, result.images[result.chosen])
    assert verifier.asked == result.cost.verifier_passes == 5
    steps = toy_generator.settings.steps
    # one prompt and the empty one; first step shared by all five; then both passes for each
    assert result.cost.generator_passes == 2 + 2 + 2 * 5 * (steps - 1)
    assert result.cost.seconds == result.cost.generator_seconds + result.cost.verifier_seconds


def test_smaller_n_has_the_first_candidates_of_a_larger(toy_generator: Any) -> None:
    few = best_of_n(toy_generator, Favourite(), PROMPT, n=2, seed=3)  # type: ignore[arg-type]
    many = best_of_n(toy_generator, Favourite(), PROMPT, n=4, seed=3)  # type: ignore[arg-type]
    assert torch.equal(few.images, many.images[:2])


def test_needs_a_candidate(toy_generator: Any) -> None:
    with pytest.raises(ValueError, match="n must be a whole number from 1 to 1000, got 0"):
        best_of_n(toy_generator, Favourite(), PROMPT, n=0, seed=0)  # type: ignore[arg-type]


def test_step_by_step_goes_on_from_the_favourite(toy_generator: Any) -> None:
    verifier, steps = Favourite(), toy_generator.settings.steps
    result = prm_search(toy_generator, verifier, PROMPT, n=4, seed=3)  # type: ignore[arg-type]
    assert result.guesses.shape == (steps, 4, 64) and result.step_log_odds.shape == (steps, 4)
    for step in range(steps):
        images = toy_generator.decode(result.guesses[step])
        assert int(result.taken[step]) == int(images.float().mean(dim=(1, 2, 3)).argmin())
        assert torch.equal(result.path[step], result.guesses[step, result.taken[step]])
        if step:  # every draw keeps what the favourite of the step before had committed
            kept = result.committed[step - 1]
            before = result.path[step - 1]
            assert (result.guesses[step][:, kept] == before[kept]).all()
    assert torch.equal(result.images, images) and torch.equal(result.image, images[result.taken[-1]])
    # one guided pass a step serves all draws; the verifier looks at each draw of each step
    assert result.cost.generator_passes == 2 + 2 * steps
    assert verifier.asked == result.cost.verifier_passes == 4 * steps


def test_a_verifier_that_may_speak_later_changes_nothing_before(toy_generator: Any) -> None:
    verifier, steps = Favourite(), toy_generator.settings.steps
    late = prm_search(toy_generator, verifier, PROMPT, 4, seed=3, first_step=3)  # type: ignore[arg-type]
    alone = prm_search(toy_generator, Favourite(), PROMPT, 1, seed=3)  # type: ignore[arg-type]
    assert torch.equal(late.path[:2], alone.path[:2])
    assert late.step_log_odds[:2].isnan().all() and not late.step_log_odds[2:].isnan().any()
    assert verifier.asked == late.cost.verifier_passes == 4 * (steps - 2)


@pytest.mark.parametrize(("n", "first_step"), [(0, 1), (2, 0), (2, 6)])
def test_step_by_step_needs_draws_and_a_step(toy_generator: Any, n: int, first_step: int) -> None:
    with pytest.raises(ValueError, match=r"(n|first_step) must be a whole number from 1 to"):
        prm_search(toy_generator, Favourite(), PROMPT, n, 0, first_step=first_step)  # type: ignore[arg-type]


class Doubter(Favourite):
    """Finds every image clear, and doubts the potential of those that are lighter than `limit`."""

    def __init__(self, limit: float = 1e9, clear: float = 1.0) -> None:
        self.limit, self.clear, self.heard = limit, clear, []

    def clarity_and_potential(self, images: torch.Tensor, prompt: str) -> tuple[torch.Tensor, torch.Tensor]:
        assert prompt == PROMPT
        self.asked += len(images)
        self.heard.append(len(images))
        potential = self.limit - images.float().mean(dim=(1, 2, 3))
        return torch.full_like(potential, self.clear), potential


def test_parm_that_never_objects_is_best_of_n(toy_generator: Any) -> None:
    best = best_of_n(toy_generator, Favourite(), PROMPT, n=5, seed=3)  # type: ignore[arg-type]
    for verifier in (Doubter(), Doubter(-1e9, clear=-1.0)):  # sees potential in all; finds nothing clear
        found = parm_search(toy_generator, verifier, PROMPT, n=5, seed=3)  # type: ignore[arg-type]
        for path in found.paths:
            assert torch.equal(torch.stack(path.guesses), best.candidates.steps[path.candidate])
        assert found.kept.candidate == found.chosen == best.chosen and torch.equal(found.image, best.image)
        assert torch.equal(found.log_odds, best.log_odds) and not any(path.stopped_at for path in found.paths)
        assert found.cost.generator_passes == best.cost.generator_passes
        assert verifier.asked == found.cost.verifier_passes == 5 * toy_generator.settings.steps


def lightness(generator: Any, path: ParmPath) -> list[float]:
    """Mean of each guess."""
    return [float(generator.decode(guess).float().mean()) for guess in path.guesses]


def test_stopped_paths_cost_nothing_afterwards(toy_generator: Any) -> None:
    whole = parm_search(toy_generator, Doubter(), PROMPT, n=6, seed=3)  # type: ignore[arg-type]
    steps, means = toy_generator.settings.steps, [lightness(toy_generator, path)[:-1] for path in whole.paths]
    limit = sorted(map(max, means))[2] + 1e-3  # three of six paths stay below it
    verifier = Doubter(limit)
    found = parm_search(toy_generator, verifier, PROMPT, n=6, seed=3)  # type: ignore[arg-type]
    for path, before, light in zip(found.paths, whole.paths, means, strict=True):
        stopped_at = next((step for step, mean in enumerate(light, start=1) if mean > limit), None)
        ran = stopped_at or steps
        assert path.stopped_at == stopped_at and len(path.guesses) == ran and len(path.potential) == min(ran, steps - 1)
        assert torch.equal(torch.stack(path.guesses), torch.stack(before.guesses[:ran]))
    alive = [path for path in found.paths if path.stopped_at is None]
    assert len(alive) == len(found.images) == 3 and found.kept is alive[found.chosen]
    running = [sum(len(path.guesses) > t for path in found.paths) for t in range(steps)]
    assert verifier.heard == running[:-1]
    # prompt and empty prompt; the first step, shared by all; then both passes of every path that still runs
    assert found.cost.generator_passes == 2 + 2 + 2 * sum(running[1:]) < whole.cost.generator_passes


def test_if_none_is_left_the_least_doubted_is_resumed(toy_generator: Any) -> None:
    whole = parm_search(toy_generator, Doubter(), PROMPT, n=4, seed=3)  # type: ignore[arg-type]
    firsts = [lightness(toy_generator, path)[0] for path in whole.paths]
    darkest = firsts.index(min(firsts))
    found = parm_search(toy_generator, Doubter(-1.0), PROMPT, n=4, seed=3)  # type: ignore[arg-type]
    assert all(path.stopped_at == 1 for path in found.paths) and found.kept.candidate == darkest
    assert torch.equal(found.kept.guesses[-1], whole.paths[darkest].guesses[-1])
    steps = toy_generator.settings.steps
    assert [len(path.guesses) for path in found.paths] == [steps if path == darkest else 1 for path in range(4)]
    assert found.cost.generator_passes == 2 + 2 + 2 * (steps - 1)
    assert found.cost.verifier_passes == 4 + 1


def test_of_equal_doubts_the_first_path_is_resumed(toy_generator: Any) -> None:
    class Even(Doubter):
        def clarity_and_potential(self, images: torch.Tensor, prompt: str) -> tuple[torch.Tensor, torch.Tensor]:
            return torch.ones(len(images)), -torch.ones(len(images))

    found = parm_search(toy_generator, Even(), PROMPT, n=3, seed=3)  # type: ignore[arg-type]
    assert found.kept.candidate == 0  # as `stop_paths` reads it off a pool


def test_the_draws_of_a_step_have_the_thousand_seeds_of_their_own(toy_generator: Any) -> None:
    """Shipped choices hang on these very seeds."""
    found = prm_search(toy_generator, Favourite(), PROMPT, n=3, seed=2)  # type: ignore[arg-type]
    state = toy_generator.begin([PROMPT], [(0, 0)], 2, Cost())
    logits = predict(toy_generator.model, state)[[0, 0, 0]]
    _, step = advance(branch(state, [0, 0, 0], [2000, 2001, 2002]), logits)
    assert torch.equal(found.guesses[0], step.guess.to(torch.int16))


@pytest.mark.parametrize("search", [best_of_n, prm_search, parm_search])
def test_a_verifiers_seconds_are_charged_to_it_alone(
    toy_generator: Any, monkeypatch: pytest.MonkeyPatch, search: Any
) -> None:
    now = [0.0]

    class Slow(Doubter):
        def score(self, images: torch.Tensor, prompt: str, question: str = ORM_QUESTION) -> torch.Tensor:
            now[0] += len(images)
            return super().score(images, prompt, question)

        def clarity_and_potential(self, images: torch.Tensor, prompt: str) -> tuple[torch.Tensor, torch.Tensor]:
            now[0] += len(images)
            return super().clarity_and_potential(images, prompt)

    class Drawn:  # takes half a second for every decoding
        settings = toy_generator.settings

        def __getattr__(self, name: str) -> Any:
            return getattr(toy_generator, name)

        def __call__(self, *given: Any, **named: Any) -> Any:
            now[0] += 0.5
            return toy_generator(*given, **named)

        def begin(self, *given: Any) -> Any:
            now[0] += 0.5
            return toy_generator.begin(*given)

    monkeypatch.setattr("cotgen_lite.verify.search.time", SimpleNamespace(perf_counter=lambda: now[0]))
    cost = search(Drawn(), Slow(), PROMPT, 2, 0).cost
    assert cost.verifier_seconds == cost.verifier_passes >= 2 and cost.generator_seconds == 0.5


def test_what_is_clear_and_without_potential_is_stopped() -> None:
    nan, clarity = math.nan, [[-1.0, 2.0, 0.5, 0.0], [math.nan, 1.0, 1.0, 1.0]]
    potential = [[-1.0, 1.0, -0.1, -1.0], [nan, 0.0, 3.0, -3.0]]
    every = [[False, False, True, False], [False, True, False, True]]
    assert shows_no_potential(clarity, potential).tolist() == every
    first = [[False] * 4, [False, True, False, False]]  # the second step is the first clear one of both
    assert shows_no_potential(clarity, potential, "first").tolist() == first


def test_parm_needs_a_path(toy_generator: Any) -> None:
    with pytest.raises(ValueError, match="n must be a whole number from 1 to 1000, got 0"):
        parm_search(toy_generator, Doubter(), PROMPT, n=0, seed=0)  # type: ignore[arg-type]


class Critic:
    """A verifier that says of the k-th image it sees the k-th of its log-odds, and why by number."""

    def __init__(self, *odds: float) -> None:
        self.odds, self.seen, self.explained = list(odds), [], 0  # type: ignore[var-annotated]

    def score(self, images: torch.Tensor, prompt: str, question: str) -> torch.Tensor:
        assert question == REFLECTION_QUESTION and prompt == PROMPT
        self.seen.append(images[0])
        return torch.tensor(self.odds[len(self.seen) - 1 : len(self.seen)])

    def explain(self, images: torch.Tensor, prompt: str) -> list[str]:
        self.explained += 1
        return [["there is no dog", "the cat is missing", "the dog is red, not blue"][self.explained - 1]]


@pytest.mark.parametrize(
    ("odds", "rounds", "chosen"),
    [
        ((0.5,), 0, 0),
        ((-1.0, 2.0), 1, 1),
        ((0.0, 2.0), 1, 1),
        ((-1.0, -0.2, -3.0, -0.5), 3, 1),
        ((-0.1, -0.2, -3.0, 0.5), 3, 3),
    ],
)
def test_reflection_stops_at_a_yes_and_else_keeps_the_best(
    toy_generator: Any, odds: tuple[float, ...], rounds: int, chosen: int
) -> None:
    first, critic = torch.full((64,), 5), Critic(*odds)
    result = reflect(toy_generator, critic, PROMPT, first, seed=2)  # type: ignore[arg-type]
    assert len(result.reasons) == rounds and len(result.images) == len(result.tokens) == rounds + 1
    assert result.chosen == chosen and torch.equal(result.image, result.images[chosen])
    assert result.log_odds.tolist() == pytest.approx(list(odds))
    assert all(torch.equal(a, b) for a, b in zip(critic.seen, result.images, strict=True))
    steps, cost = toy_generator.settings.steps, result.cost
    # A round: its prefix and that of the image alone, then a conditional and an unconditional pass a step.
    assert cost.generator_passes == rounds * (2 + 2 * steps) and cost.verifier_passes == 2 * rounds + 1
    for done in range(rounds):  # each image is drawn from the one before it and the reasons given for that
        again = toy_generator.correct(PROMPT, result.tokens[done], result.reasons[done], seed=2001 + done)
        assert torch.equal(again.tokens[0], result.tokens[done + 1])


def test_reasons_may_come_from_elsewhere_and_rounds_be_fewer(toy_generator: Any) -> None:
    critic = Critic(-1, -2, -3)
    result = reflect(
        toy_generator,
        critic,
        PROMPT,
        torch.full((64,), 5),
        seed=2,
        rounds=2,
        explain=lambda image, prompt: "",  # type: ignore[arg-type]
    )
    assert result.reasons == ["", ""] and critic.explained == 0 and result.chosen == 0


class Says(Doubter):
    """A verifier that answers everything with what a function makes of the number of images."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def score(self, images: torch.Tensor, *_: object) -> torch.Tensor:
        return self.answer(len(images))

    def clarity_and_potential(self, images: torch.Tensor, *_: object) -> tuple[torch.Tensor, torch.Tensor]:
        return self.answer(len(images)), self.answer(len(images))

    def explain(self, images: torch.Tensor, *_: object) -> list[Any]:
        return [None]


def odd_last(value: float) -> Says:
    return Says(lambda number: torch.tensor([*[0.0] * (number - 1), value]))


TOKENS = torch.full((64,), 5)
FINITE = (
    r"^log-odds that Says gave for 'a photo of a red cat and a blue dog' must be finite, but 1 of \d are NaN or inf"
)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("search", [best_of_n, prm_search, parm_search])
def test_log_odds_that_are_not_finite_choose_nothing(toy_generator: Any, search: Any, wrong: float) -> None:
    with pytest.raises(ValueError, match=FINITE):
        search(toy_generator, odd_last(wrong), PROMPT, 4, 0)
    with pytest.raises(ValueError, match=FINITE):
        reflect(toy_generator, odd_last(wrong), PROMPT, TOKENS)  # type: ignore[arg-type]


@pytest.mark.parametrize("search", [best_of_n, prm_search, parm_search])
def test_numpys_numbers_and_strings_search_as_pythons_do(toy_generator: Any, search: Any) -> None:
    plain = search(toy_generator, Doubter(), PROMPT, 3, 2)
    other = search(toy_generator, Doubter(), np.str_(PROMPT), np.int64(3), np.int32(2))
    assert torch.equal(plain.images, other.images) and plain.chosen == other.chosen and type(other.prompt) is str


UNSURE = Says(lambda number: -torch.ones(number))
VERIFIERS = "verifier must be a verifier, such as"
GENERATORS = "generator must be a generator, such as"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        *(({"n": n}, "^n must be a whole number from 1 to 1000, got ") for n in (-1, "4", 2.0, True, None, 10**9)),
        *(({"seed": seed}, "^seed must be a whole number") for seed in ("0", 1.5, None, math.nan)),
        *(({"prompt": prompt}, "^prompt must be a text") for prompt in (None, 3, [1, 2], [PROMPT], b"a cat")),
        *(({"prompt": prompt}, "^prompt must say what the image shows") for prompt in ("", " ")),
        *(({"generator": generator}, GENERATORS) for generator in ("generator", None, Favourite())),
        *(({"verifier": verifier}, VERIFIERS) for verifier in ("orm", None, Says, [UNSURE])),
        ({"generator": UNSURE, "verifier": "generator"}, GENERATORS),
        *(({"question": question}, "question must be a text") for question in (None, 3, ["{prompt}"])),
        ({"question": "Is it right?"}, "^No question says where the prompt goes"),
        *(
            ({"verifier": Says(answer)}, "^log-odds of Says must ")
            for answer in (lambda n: [0.0] * n, np.zeros, lambda n: torch.zeros(n + 1), lambda n: torch.zeros(n, 1))
        ),
    ],
)
def test_what_no_search_can_do_is_said_in_a_sentence(toy_generator: Any, change: dict, says: str) -> None:
    given: dict = {"generator": toy_generator, "verifier": UNSURE, "prompt": PROMPT, "n": 2, "seed": 0}
    for search in (best_of_n, prm_search) if "question" in change else (best_of_n, prm_search, parm_search):
        with pytest.raises(ValueError, match=says) as error:
            search(**(given | change))
        assert "\n" not in str(error.value) and len(str(error.value)) < 300


def test_the_steps_of_a_next_token_generator_are_not_drawn_anew() -> None:
    with pytest.raises(
        ValueError, match=r"^generator must be a masked-token one for PRM search, .* got Autoregressive"
    ):
        prm_search(load_autoregressive(), UNSURE, PROMPT, 2)  # type: ignore[arg-type]


@pytest.mark.parametrize("first_step", [0, 6, -1, "1", 1.0, None])
def test_a_first_step_is_one_of_the_steps(toy_generator: Any, first_step: Any) -> None:
    for search in (prm_search, parm_search):
        with pytest.raises(ValueError, match=r"^first_step must be a whole number from 1 to 5"):
            search(toy_generator, Doubter(), PROMPT, 2, 0, first_step=first_step)  # type: ignore[arg-type]


@pytest.mark.parametrize("assess", ["last", "", None, 1, ["every"]])
def test_an_unknown_way_to_assess_is_not_taken_for_every(toy_generator: Any, assess: Any) -> None:
    for call in (
        lambda: parm_search(toy_generator, Doubter(), PROMPT, 2, 0, assess),  # type: ignore[arg-type]
        lambda: shows_no_potential([1.0], [1.0], assess),
    ):
        with pytest.raises(ValueError, match=r"^assess must be one of 'every', 'first', got"):
            call()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        *(
            ({"rounds": rounds}, "^rounds must be a whole number from 0 to 999")
            for rounds in (-1, "3", 1.5, None, 10**9)
        ),
        *(
            ({"tokens": tokens}, "^tokens must ")
            for tokens in (None, [5] * 64, TOKENS[:10], TOKENS[None], TOKENS.float(), TOKENS.bool(), TOKENS.numpy())
        ),
        *(({"explain": explain}, "^explain must be a function") for explain in ("why", 3)),
        *(({"explain": explain}, "^what explain gives must be a text") for explain in (None, lambda *_: ["no dog"])),
        ({"generator": "self-correct"}, "^generator must be a generator that corrects"),
        ({"verifier": Favourite()}, VERIFIERS),  # it cannot explain
        ({"prompt": [PROMPT]}, "^prompt must be a text"),
    ],
)
def test_what_cannot_be_reflected_on_is_said_in_a_sentence(toy_generator: Any, change: dict, says: str) -> None:
    given: dict = {"generator": toy_generator, "verifier": UNSURE, "prompt": PROMPT, "tokens": TOKENS}
    with pytest.raises(ValueError, match=says):
        reflect(**(given | change))


@pytest.mark.parametrize(
    ("clarity", "potential", "says"),
    [
        ([1.0], [1.0, 2.0], "potential must have shape"),
        ([1.0], [math.nan], "potential must be a number wherever an image is clear"),
        ([math.inf], [1.0], "clarity must be log-odds"),
        ([1.0], [-math.inf], "potential must be log-odds"),
        (["1"], [1.0], "clarity must be log-odds"),
        (None, None, "clarity must be log-odds"),
        (1.0, 1.0, "clarity must be log-odds"),
        ([True], [1.0], "clarity must be log-odds"),
    ],
)
def test_a_stopping_rule_needs_log_odds(clarity: Any, potential: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        shows_no_potential(clarity, potential)
