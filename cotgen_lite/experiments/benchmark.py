"""How fast decoding is here: `python -m cotgen_lite.experiments.benchmark`, under a minute, on untrained models.

Compares decoding on cached prompts with the plain loop of Show-o's code, which recomputes every sequence and all
logits, at the lite shape and at Show-o's (129 places of text, 258 of image), and puts the speed beside this machine's
measured matrix peak. Both loops take turns at each step, so that other work on the machine slows both alike.
"""

import time
from dataclasses import dataclass

import torch
from torch import Tensor

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
from cotgen_lite.generate.showo import Showo, ShowoConfig, build_sequences, lite_config, text_prefix

SETTINGS = SamplingSettings(guidance_scale=1.75)


@dataclass(frozen=True)
class Speed:
    """One shape's outcome: seconds of both loops, images drawn by each, and the cached loop's matrix FLOPs."""

    cached_seconds: float
    plain_seconds: float
    images: int
    flops: float

    @property
    def ratio(self) -> float:
        """How many times faster than the plain loop."""
        return self.plain_seconds / self.cached_seconds


def matrix_peak(size: int = 2048, repeats: int = 5) -> float:
    """Best FLOP/s of a float32 product of two (size, size) matrices, on torch's current threads."""
    a, b = torch.randn(2, size, size).unbind()
    best = float("inf")
    for _ in range(repeats):
        began = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best


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


def decoding_flops(config: ShowoConfig, passes: int, prompt_places: int, logit_places: int) -> float:
    """Multiplications and additions in the matrix products of cached decoding.

    passes: over L + 2 image places each, which attend to themselves and to prompt_places; logit_places: places whose
    K logits were computed. The pass over the prompts is left out.
    """
    width, places = config.hidden_size, config.num_image_tokens + 2
    weights = 4 * width * width + 2 * width * config.intermediate_size
    attention = 2 * width * (places + prompt_places)
    layers = passes * places * config.num_hidden_layers * 2 * (weights + attention)
    return layers + logit_places * 2 * width * config.codebook_size


def measure(config: ShowoConfig, text_lengths: list[int], candidates: int) -> Speed:
    """Decode `candidates` images for prompts of the given numbers of words, each step by both loops, seeded."""
    torch.manual_seed(0)
    model = Showo(config).eval()
    texts = [torch.randint(config.text_vocab_size, (length,)).tolist() for length in text_lengths]
    prefixes = [text_prefix(config, text) for text in texts]
    paths = [(row, candidate) for row in range(len(texts)) for candidate in range(candidates)]
    cost, logit_places = Cost(), 0
    encode_prompts(model, prefixes, Cost())  # warm-up

    began = time.perf_counter()
    state = start(model, encode_prompts(model, prefixes, Cost()), paths, SETTINGS, 0, cost)
    cached_seconds = plain_seconds = time.perf_counter() - began
    while state.step < SETTINGS.steps:
        began = time.perf_counter()
        predict_plainly(model, state)
        plainly = time.perf_counter()
        logits = predict(model, state)
        predicted = time.perf_counter()
        logit_places += logits.shape[1] * (len(texts) if state.step == 0 else len(paths))
        state, _ = advance(state, logits)
        rest = time.perf_counter() - predicted  # sampling, which both loops need
        plain_seconds += plainly - began + rest
        cached_seconds += predicted - plainly + rest
    longest = max(len(prefix) for prefix in prefixes)
    flops = decoding_flops(config, cost.generator_passes, longest, logit_places)
    return Speed(cached_seconds, plain_seconds, len(paths), flops)


def main() -> None:
    """Print the table."""
    peak = matrix_peak()
    print(f"matrix peak (float32, {torch.get_num_threads()} threads): {peak / 1e9:.0f} GFLOP/s")
    shapes = (
        ("lite, 12 + 66 places, 4 prompts x 8 candidates", lite_config(300, 0, 0), [4, 5, 7, 9], 8),
        ("Show-o's, 129 + 258 places, 1 prompt x 8 candidates", showo_shape(), [126], 8),
    )
    for name, config, text_lengths, candidates in shapes:
        speed = measure(config, text_lengths, candidates)
        cached, plain = speed.images / speed.cached_seconds, speed.images / speed.plain_seconds
        print(
            f"{name}: {speed.ratio:.2f} times as fast as the plain loop "
            f"({cached:.1f} and {plain:.1f} images/s), {speed.flops / speed.cached_seconds / peak:.0%} of the peak"
        )


if __name__ == "__main__":
    main()


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
