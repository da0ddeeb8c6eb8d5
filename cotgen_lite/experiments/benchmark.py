"""How much faster decoding is on cached prompts: `python -m cotgen_lite.experiments.benchmark`, two minutes.

`predict_plainly` is the plain loop of Show-o's code, which computes every sequence and all logits anew: what the tests
hold the cached loop of `generate/sampling.py` against. Both are timed at the lite shape and at Show-o's (129 positions
of text, 258 of image) on untrained models, and take turns at each step, so that other work slows both alike. The speed
is put beside this machine's measured matrix peak, which on a shared machine may differ by a third from one run to the
next, and all shares of it alike.
"""

import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from cotgen_lite.generate.sampling import (
    MASKED,
    Cost,
    DecodingState,
    SamplingSettings,
    advance,
    encode_prompts,
    predict,
    start,
)
from cotgen_lite.generate.showo import Showo, ShowoConfig, build_sequences, lite_showo_config, text_prefix

SETTINGS = SamplingSettings(guidance_scale=1.75)


@torch.inference_mode()
def predict_plainly(model: Showo, state: DecodingState) -> Tensor:
    """What `predict` computes, by the plain loop of Show-o's code: every sequence anew, over the whole vocabulary."""
    config, masked = model.config, state.tokens == MASKED
    prefixes = [state.prompts.prefixes[row] for row in state.prompt.tolist()]
    empty = [state.prompts.prefixes[row] for row in state.prompts.against[state.prompt].tolist()]
    ids = build_sequences(config, prefixes + empty, state.tokens.repeat(2, 1), masked.repeat(2, 1))
    logits = model(ids)[:, -masked.shape[1] - 1 : -1, config.image_offset : config.mask_id].float()
    conditional, unconditional = logits.chunk(2)
    g = state.settings.guidance_scale
    guided = (1 + g) * conditional - g * unconditional
    return guided[masked].view(len(prefixes), -1, config.codebook_size)


def showo_shape() -> ShowoConfig:
    """Show-o's sequence (129 + 258 places, 64-wide heads) in a small network.

    960 words and 160 codes give the output layer the share of the work that it has in the 1.3 B model.
    """
    return ShowoConfig(
        text_vocab_size=960,
        codebook_size=160,
        num_image_tokens=256,
        max_text_length=129,
        bos_token_id=0,
        eos_token_id=0,
        hidden_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=1024,
        max_position_embeddings=512,
    )


def matrix_peak(size: int = 2048, repeats: int = 5) -> float:
    """Best FLOP/s of a float32 product of two (size, size) matrices, on torch's current threads."""
    a, b = torch.randn(2, size, size).unbind()
    return 2 * size**3 / _least_seconds(lambda: a @ b, repeats)


def products_alone(config: ShowoConfig, sequences: int, repeats: int = 5) -> float:
    """Best FLOP/s of one layer's six matrix products and nothing else: what a pass reaches if all else is free."""
    rows, width, inner = sequences * (config.num_image_tokens + 2), config.hidden_size, config.intermediate_size
    hidden, between = torch.randn(rows, width), torch.randn(rows, inner)
    square, up, down = torch.randn(4, width, width), torch.randn(inner, width), torch.randn(width, inner)

    def products() -> None:
        for weights in (*square, up):
            F.linear(hidden, weights)
        F.linear(between, down)

    return 2 * rows * (4 * width**2 + 2 * width * inner) / _least_seconds(products, repeats)


def _least_seconds(work: Callable[[], object], repeats: int) -> float:
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def decoding_flops(
    config: ShowoConfig, passes: int, prompt_positions: int, last_positions: int, logit_positions: int
) -> float:
    """Multiplications and additions in the matrix products of cached decoding; the pass over the prompts is left out.

    passes: over L + 2 image positions each, which attend to themselves and to prompt_positions; last_positions: those,
    of all passes, for which the last layer computed more than keys and values; logit_positions: those whose K logits
    were computed.
    """
    width, positions = config.hidden_size, config.num_image_tokens + 2
    keys_and_values = 2 * width * width
    rest = 2 * width * width + 2 * width * config.intermediate_size + 2 * width * (positions + prompt_positions)
    every = passes * positions * (config.num_hidden_layers * keys_and_values + (config.num_hidden_layers - 1) * rest)
    return 2 * (every + last_positions * rest + logit_positions * width * config.codebook_size)


def _untrained(
    config: ShowoConfig, text_lengths: list[int], candidates: int
) -> tuple[Showo, list[list[int]], list[tuple[int, int]]]:
    """An untrained model, prompts of random words, and the paths of their candidates; seeded."""
    torch.manual_seed(0)
    model = Showo(config).eval()
    texts = [torch.randint(config.text_vocab_size, (length,)).tolist() for length in text_lengths]
    paths = [(row, candidate) for row in range(len(texts)) for candidate in range(candidates)]
    return model, [text_prefix(config, text) for text in texts], paths


def measure(config: ShowoConfig, text_lengths: list[int], candidates: int) -> tuple[float, float, float]:
    """Images a second of the cached and of the plain loop, and the cached one's FLOP/s, seeded.

    text_lengths: of each prompt its number of words; candidates: images of each.
    """
    model, prefixes, paths = _untrained(config, text_lengths, candidates)
    encode_prompts(model, prefixes, Cost())  # warm-up

    began, cost, last_positions, logit_positions = time.perf_counter(), Cost(), 0, 0
    state = start(model, encode_prompts(model, prefixes, Cost()), paths, SETTINGS, 0, cost)
    cached = plain = time.perf_counter() - began
    while state.step < SETTINGS.steps:
        began = time.perf_counter()
        predict_plainly(model, state)
        plainly, passes = time.perf_counter(), cost.generator_passes
        logits = predict(model, state)
        predicted = time.perf_counter()
        last_positions += logits.shape[1] * (cost.generator_passes - passes)
        logit_positions += logits.shape[1] * (len(prefixes) if state.step == 0 else len(paths))
        state, _ = advance(state, logits)
        rest = time.perf_counter() - predicted  # sampling, which both loops need
        plain += plainly - began + rest
        cached += predicted - plainly + rest
    flops = decoding_flops(config, cost.generator_passes, max(map(len, prefixes)), last_positions, logit_positions)
    return len(paths) / cached, len(paths) / plain, flops / cached


@torch.inference_mode()
def time_shares(config: ShowoConfig, text_lengths: list[int], candidates: int) -> dict[str, float]:
    """Shares of the cached loop's time: matrix products, attention, and all else, which adds, scales and samples.

    Arguments as in `measure`. All else moves numbers without computing much, and cannot be faster than memory is.
    """
    model, prefixes, paths = _untrained(config, text_lengths, candidates)
    state = start(model, encode_prompts(model, prefixes, Cost()), paths, SETTINGS, 0, Cost())
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        while state.step < SETTINGS.steps:
            state, _ = advance(state, predict(model, state))
    spent = dict.fromkeys(("products", "attention", "all else"), 0.0)
    for event in profiler.key_averages():
        kind = "products" if event.key in ("aten::addmm", "aten::mm", "aten::bmm") else "all else"
        spent["attention" if "scaled_dot_product" in event.key else kind] += event.self_cpu_time_total
    return {kind: seconds / sum(spent.values()) for kind, seconds in spent.items()}


if __name__ == "__main__":
    peak = matrix_peak()
    print(f"matrix peak (float32, {torch.get_num_threads()} threads): {peak / 1e9:.0f} GFLOP/s")
    for name, config, text_lengths in (
        ("lite, 12 + 66 positions, 4 prompts x 8 candidates", lite_showo_config(300, 0, 0), [4, 5, 7, 9]),
        ("Show-o's, 129 + 258 positions, 1 prompt x 8 candidates", showo_shape(), [126]),
    ):
        cached, plain, speed = measure(config, text_lengths, 8)
        told = f"{cached / plain:.2f} times as fast as the plain loop ({cached:.1f} and {plain:.1f} images/s)"
        bound = products_alone(config, 2 * 8 * len(text_lengths))
        print(f"{name}: {told}, {speed / peak:.0%} of the peak; its products alone {bound / peak:.0%}")
        shares = time_shares(config, text_lengths, 8)
        rest = ", ".join(f"{share:.0%} {kind}" for kind, share in shares.items())
        print(f"  of its time {rest}; were that free, {speed / peak / (1 - shares['all else']):.0%} of the peak")
