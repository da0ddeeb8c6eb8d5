"""The generator: vocabulary, sequence, attention rule, loss, and the released checkpoint's format."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import PhiConfig, PhiForCausalLM

from cotgen_lite.generate.showo import (
    Showo,
    ShowoConfig,
    attention_mask,
    build_sequences,
    correction_prefix,
    draw_mask,
    image_logits,
    lite_showo_config,
    masked_loss,
    pad_prefixes,
    text_prefix,
)


def small_config(**changes) -> ShowoConfig:
    sizes = {
        "text_vocab_size": 20,
        "codebook_size": 16,
        "num_image_tokens": 9,
        "max_text_length": 12,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "max_position_embeddings": 64,
    }
    return ShowoConfig(**{**sizes, **changes})


def small_model(**changes) -> Showo:
    torch.manual_seed(0)
    model = Showo(small_config(**changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms too: a swapped or lost one must show
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def test_vocabulary_is_the_released_checkpoints():
    config = ShowoConfig()
    assert (config.pad_id, config.soi_id, config.eoi_id, config.t2i_id) == (50295, 50296, 50297, 50300)
    assert (config.image_offset, config.mask_id, config.vocab_size) == (50305, 58497, 58498)


def test_lite_model_keeps_its_budget():
    model = Showo(lite_showo_config(text_vocab_size=400, bos_token_id=0, eos_token_id=0))
    assert sum(parameter.numel() for parameter in model.parameters()) <= 1_500_000
    assert model.showo.lm_head.weight is model.showo.model.embed_tokens.weight


def test_sequence_layout():
    config = small_config()
    prefixes = [text_prefix(config, [7, 8]), text_prefix(config, [])]
    tokens = torch.arange(18).view(2, 9) % 16
    masked = torch.zeros(2, 9, dtype=torch.bool)
    masked[1, 0] = True
    ids = build_sequences(config, prefixes, tokens, masked)
    image = (tokens + config.image_offset).tolist()
    assert ids[0].tolist() == [config.t2i_id, 1, 7, 8, 2, config.soi_id, *image[0], config.eoi_id]
    pads = [config.pad_id] * 2
    empty = [*pads, config.t2i_id, 1, 2]
    assert ids[1].tolist() == [*empty, config.soi_id, config.mask_id, *image[1][1:], config.eoi_id]
    assert torch.equal(pad_prefixes(config, prefixes), ids[:, :5])


@pytest.mark.parametrize("text", [[3] * 10, [20], [-1]])
def test_bad_text_is_one_clear_sentence(text):
    with pytest.raises(ValueError, match=r"tokens; this model reads at most 9|must lie in 0\.\.19"):
        text_prefix(small_config(), text)


def test_attention_rule_by_brute_force():
    config = small_config()
    earlier_image = [config.soi_id, config.image_offset, config.image_offset + 1, config.eoi_id]
    prefixes = [[*text_prefix(config, [5]), *earlier_image], text_prefix(config, [6, 7])]
    ids = build_sequences(config, prefixes, torch.zeros(2, 9, dtype=torch.long))
    mask = attention_mask(config, ids)[:, 0]
    assert mask.dtype == torch.float32
    for b, row in enumerate(ids.tolist()):
        image_number, number, inside = [], 0, False
        for token in row:
            if token == config.soi_id:
                number, inside = number + 1, True
            image_number.append(number if inside else 0)
            if token == config.eoi_id:
                inside = False
        for q in range(len(row)):
            for k in range(len(row)):
                within = image_number[q] > 0 and image_number[q] == image_number[k]
                sees = (row[k] != config.pad_id and (k <= q or within)) or q == k
                assert mask[b, q, k].item() == (0 if sees else torch.finfo(torch.float32).min), (b, q, k)
    # with one image at the end: image places attend to all but pads (the paper's rule)
    last_image = mask[1, -11:]
    assert torch.equal(last_image == 0, (ids[1] != config.pad_id).expand(11, -1))


def test_padding_changes_nothing():
    model = small_model()
    prefix = text_prefix(model.config, [4, 9, 6])
    tokens = torch.randint(0, 16, (1, 9), generator=torch.Generator().manual_seed(1))
    masked = torch.ones(1, 9, dtype=torch.bool)
    alone = image_logits(model, [prefix], tokens, masked)
    longer = text_prefix(model.config, [4, 4, 4, 4, 4, 4])
    beside = image_logits(model, [prefix, longer], tokens.expand(2, -1), masked.expand(2, -1))[:9]
    torch.testing.assert_close(alone, beside, atol=1e-5, rtol=1e-5)


def test_text_and_earlier_images_never_see_the_target():
    model = small_model()
    earlier_image = [model.config.soi_id, model.config.image_offset + 3, model.config.eoi_id]
    prefix = [*text_prefix(model.config, [4, 9]), *earlier_image]
    tokens = torch.tensor([[0] * 9, [5] * 9])
    hidden = model.hidden_states(build_sequences(model.config, [prefix, prefix], tokens))
    assert torch.equal(hidden[0, : len(prefix)], hidden[1, : len(prefix)])
    assert not torch.allclose(hidden[0, len(prefix)], hidden[1, len(prefix)])


def test_masks_follow_the_cosine_schedule():
    masked = draw_mask(4000, 64, torch.Generator().manual_seed(0))
    counts = masked.sum(dim=1).float()
    assert counts.min() >= 1
    assert abs(counts.mean().item() / 64 - 2 / math.pi) < 0.01  # the mean of cos(pi U / 2)
    assert (counts < 32).float().mean().item() == pytest.approx(1 / 3, abs=0.03)  # cos(pi U / 2) < 1/2 for U > 2/3
    assert (masked.float().mean(dim=0) - 2 / math.pi).abs().max() < 0.04  # every place equally often


@pytest.mark.parametrize("dropout", [0.0, 1.0])
def test_loss_equals_the_whole_computation(dropout):
    model = small_model()
    config = model.config
    texts = [[4, 5, 6], [7], [8, 9]]
    tokens = torch.randint(0, 16, (3, 9), generator=torch.Generator().manual_seed(2))
    given = [text_prefix(config, text) for text in texts]
    loss = masked_loss(model, given, tokens, torch.Generator().manual_seed(3), condition_dropout=dropout)

    masked = draw_mask(3, 9, torch.Generator().manual_seed(3))
    prefixes = [text_prefix(config, [] if dropout else text) for text in texts]
    ids = build_sequences(config, prefixes, tokens, masked)
    logits = model(ids)[:, -10:-1, config.image_offset : config.mask_id]
    terms = [-logits[b, i].log_softmax(-1)[tokens[b, i]] for b in range(3) for i in range(9) if masked[b, i]]
    torch.testing.assert_close(loss, torch.stack(terms).mean(), atol=1e-5, rtol=1e-5)


def test_loss_falls_to_zero_on_one_image():
    model = small_model().train()
    tokens = torch.randint(0, 16, (1, 9), generator=torch.Generator().manual_seed(4)).expand(8, -1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(5)
    for _ in range(60):
        loss = masked_loss(model, [text_prefix(model.config, [4])] * 8, tokens, generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.2


def test_round_trip_keeps_tied_weights_and_logits(tmp_path):
    model = small_model(tie_word_embeddings=True)
    model.save_pretrained(tmp_path)
    again = Showo.from_pretrained(tmp_path)
    ids = build_sequences(model.config, [text_prefix(model.config, [4])], torch.zeros(1, 9, dtype=torch.long))
    assert torch.equal(model(ids), again(ids))
    assert again.showo.lm_head.weight is again.showo.model.embed_tokens.weight
    model.half().save_pretrained(tmp_path)
    assert Showo.from_pretrained(tmp_path).dtype == torch.float32


def write_original_checkpoint(folder: Path) -> PhiForCausalLM:
    """A folder as the released checkpoint's: its own config fields, weights of a plain Phi under `showo.`."""
    torch.manual_seed(1)
    phi = PhiForCausalLM(
        PhiConfig(
            vocab_size=20 + 10 + 16 + 1,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=48,
            max_position_embeddings=64,
            qk_layernorm=True,
            partial_rotary_factor=0.5,
        )
    ).eval()
    with torch.no_grad():
        for parameter in phi.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    save_file(
        {f"showo.{name}": value for name, value in phi.state_dict().items()}, folder / "pytorch_model.safetensors"
    )
    fields = {
        "_class_name": "Showo",
        "_diffusers_version": "0.30.1",
        "w_clip_vit": False,
        "vocab_size": 47,
        "llm_vocab_size": 20,
        "llm_model_path": "microsoft/phi-1_5",
        "codebook_size": 16,
        "num_vq_tokens": 9,
        "load_from_showo": True,
        "mask_token_id": 46,
    }
    small_sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "max_position_embeddings": 64,
        "max_text_length": 12,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    (folder / "config.json").write_text(json.dumps({**fields, **small_sizes}))
    return phi


def test_original_checkpoint_format(tmp_path):
    phi = write_original_checkpoint(tmp_path)
    model = Showo.from_pretrained(tmp_path)
    config = model.config
    assert (config.text_vocab_size, config.num_image_tokens, config.mask_id) == (20, 9, 46)
    prefixes = [text_prefix(config, [4, 5]), text_prefix(config, [])]
    tokens = torch.randint(0, 16, (2, 9), generator=torch.Generator().manual_seed(6))
    ids = build_sequences(config, prefixes, tokens, torch.ones_like(tokens, dtype=torch.bool))
    expected = phi(ids, attention_mask=attention_mask(config, ids)).logits
    torch.testing.assert_close(model(ids), expected, atol=1e-5, rtol=1e-5)
    model.save_pretrained(tmp_path / "again")
    assert torch.equal(Showo.from_pretrained(tmp_path / "again")(ids), model(ids))


@pytest.mark.parametrize("damage", ["missing", "unexpected", "shape", "truncated", "no file", "no config"])
def test_damaged_checkpoint_is_one_clear_sentence(tmp_path, damage):
    write_original_checkpoint(tmp_path)
    path = tmp_path / "pytorch_model.safetensors"
    weights = load_file(path)
    if damage == "missing":
        del weights["showo.model.layers.1.mlp.fc1.bias"]
    elif damage == "unexpected":
        weights["mm_projector.0.weight"] = torch.zeros(2)
    elif damage == "shape":
        weights["showo.lm_head.bias"] = torch.zeros(5)
    save_file(weights, path)
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "no file":
        path.unlink()
    elif damage == "no config":
        (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match="again") as error:
        Showo.from_pretrained(tmp_path)
    assert "\n" not in str(error.value)


def test_contradicting_config_is_refused():
    with pytest.raises(ValueError, match="vocab_size 99"):
        small_config(vocab_size=99)
    with pytest.raises(ValueError, match="CLIP"):
        small_config(w_clip_vit=True)
    with pytest.raises(ValueError, match="max_position_embeddings"):
        small_config(max_position_embeddings=20)


def test_wrong_shapes_are_refused():
    model = small_model()
    with pytest.raises(ValueError, match=r"\(B, 9\)"):
        masked_loss(model, [[4]], torch.zeros(1, 8, dtype=torch.long), torch.Generator())
    with pytest.raises(ValueError, match="one prompt per image"):
        build_sequences(model.config, [[4]], torch.zeros(2, 9, dtype=torch.long))


def test_code_logits_are_the_head_restricted():
    model = small_model()
    config = model.config
    prefix = text_prefix(config, [4])
    tokens = torch.arange(9)[None]
    masked = torch.tensor([[True, False] * 4 + [True]])
    ids = build_sequences(config, [prefix], tokens, masked)
    whole = model(ids)[:, -10:-1, config.image_offset : config.mask_id][masked]
    torch.testing.assert_close(image_logits(model, [prefix], tokens, masked), whole)
    assert F.cross_entropy(whole, tokens[masked]).item() > 0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("hidden_size", value) for value in (math.nan, 33, 0, "32", 32.5)),
        *(("num_hidden_layers", value) for value in (0, 10**9)),
        *(("bos_token_id", value) for value in (20, -1, None)),
        *(("partial_rotary_factor", value) for value in (math.nan, 0, 1.1)),
        *(("qk_layernorm", 1), ("tie_word_embeddings", "yes"), ("num_image_tokens", 0), ("max_text_length", 2)),
        *(("llm_vocab_size", "x"), ("num_vq_tokens", None), ("mask_token_id", "a")),
    ],
)
def test_a_config_checks_itself(field, value):
    with pytest.raises(ValueError, match=r"must be|cannot be cut|Config says") as error:
        small_config(**{field: value})
    assert "\n" not in str(error.value)


CONFIG, TOKENS, TEXTS = small_config(), torch.zeros(2, 9, dtype=torch.long), [[14], [14, 3]]


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: text_prefix(CONFIG, "cat"), "encode the prompt"),
        (lambda: text_prefix(CONFIG, None), "encode the prompt"),
        (lambda: text_prefix(CONFIG, [math.nan]), "encode the prompt"),
        (lambda: text_prefix(None, [1]), "must be a ShowoConfig"),
        (lambda: correction_prefix(CONFIG, [1], [CONFIG.mask_id], [0] * 9), "encode the prompt"),
        (lambda: correction_prefix(CONFIG, [1], [1], [0] * 3), "An image has 9 tokens"),
        (lambda: correction_prefix(CONFIG, [1], [1], [16] * 9), "from 0 to 15"),
        (lambda: correction_prefix(CONFIG, [1], [1], None), "an image's tokens"),
        (lambda: pad_prefixes(CONFIG, []), "none empty"),
        (lambda: pad_prefixes(CONFIG, [[]]), "none empty"),
        (lambda: pad_prefixes(CONFIG, [[0.5]]), "lists of ids"),
        (lambda: build_sequences(CONFIG, TEXTS, TOKENS + 16), r"in 0\.\.15"),
        (lambda: build_sequences(CONFIG, TEXTS, TOKENS - 1), r"in 0\.\.15"),
        (lambda: build_sequences(CONFIG, TEXTS, TOKENS.float()), "whole numbers"),
        (lambda: build_sequences(CONFIG, TEXTS, TOKENS, TOKENS), "bool tensor of shape"),
        (lambda: build_sequences(CONFIG, TEXTS, TOKENS, TOKENS[:, 1:].bool()), "bool tensor of shape"),
        (lambda: attention_mask(CONFIG, TOKENS[0]), "Ids must be"),
        (lambda: attention_mask(CONFIG, TOKENS + CONFIG.vocab_size), "Ids must be"),
        (lambda: attention_mask(CONFIG, TOKENS, torch.int64), "dtype must be"),
        (lambda: draw_mask(2, 0, torch.Generator()), "length must be"),
        (lambda: draw_mask(10**9, 10**5, torch.Generator()), "length must be"),
        (lambda: draw_mask(2, 3, 0), "must be a torch.Generator"),
        (lambda: image_logits(small_model(), TEXTS, TOKENS, None), "which positions are hidden"),
        (lambda: image_logits(None, TEXTS, TOKENS, TOKENS.bool()), "must be a Showo"),
        (lambda: Showo(None), "must be a ShowoConfig"),
    ],
)
def test_wrong_values_are_one_clear_sentence(call, says):
    with pytest.raises(ValueError, match=says) as error:
        call()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("dropout", [1.5, -0.1, math.nan, [0.1] * 3, "a", None])
def test_a_share_of_prompts_to_drop_is_checked(dropout):
    with pytest.raises(ValueError, match="condition_dropout must be from 0 to 1"):
        masked_loss(small_model(), TEXTS, TOKENS, torch.Generator(), dropout)


def test_equal_numbers_make_equal_prefixes():
    plain = text_prefix(CONFIG, [3, 4])
    assert repr(text_prefix(CONFIG, torch.tensor([3, 4]).numpy())) == repr(plain)  # the noise is drawn by it


def test_bounds_hold_to_the_last_position():
    assert small_config(max_position_embeddings=12 + 9 + 2)
    with pytest.raises(ValueError, match="too small"):
        small_config(max_position_embeddings=12 + 9 + 1)
    room = 64 - (9 + 2)  # before the new image
    prefix = correction_prefix(CONFIG, [1], [1] * 37, [0] * 9)
    assert len(prefix) == room
    with pytest.raises(ValueError, match=f"at most {room} before"):
        correction_prefix(CONFIG, [1], [1] * 38, [0] * 9)
