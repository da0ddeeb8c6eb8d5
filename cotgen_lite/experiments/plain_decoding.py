"""The reference for `sampling.predict`: one step of decoding without any cache, for tests and the benchmark."""

import torch
from torch import Tensor

from cotgen_lite.generate.sampling import MASKED, DecodingState
from cotgen_lite.generate.showo import Showo, build_sequences


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
