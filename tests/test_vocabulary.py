"""The frozen lite vocabulary reads every prompt and names the words that it does not know."""

import pytest
from transformers import PreTrainedTokenizerFast

from cotgen_lite.lite.vocabulary import lite_tokenizer, lite_words
from cotgen_lite.lite.world import world
from cotgen_lite.prompts import encode_text, lite_prompts, plural


def test_every_prompt_is_one_token_a_word() -> None:
    tokenizer = lite_tokenizer()
    for prompt in lite_prompts("test") + lite_prompts("dev"):
        ids = encode_text(tokenizer, prompt.text)
        assert len(ids) == len(prompt.text.split())
        assert tokenizer.decode(ids) == prompt.text


def test_words_are_unique_and_case_does_not_matter() -> None:
    tokenizer = lite_tokenizer()
    assert len(lite_words()) == len(set(lite_words()))
    assert len(tokenizer) == len(lite_words()) + 6
    assert encode_text(tokenizer, "Yes, A Cat") == encode_text(tokenizer, "yes , a cat")
    assert all(plural(name) in lite_words() for name in world().objects)


def test_unknown_word_is_named() -> None:
    with pytest.raises(ValueError, match=r"'unicorn'.*airplane"):
        encode_text(lite_tokenizer(), "a photo of a unicorn")


def test_other_models_words_are_not_said_to_be_the_lite_ones() -> None:
    other = PreTrainedTokenizerFast(tokenizer_object=lite_tokenizer().backend_tokenizer, unk_token="<unk>")
    other.add_tokens(["<unk>"])
    text = "a photo of a <unk>"
    with pytest.raises(ValueError, match=r"no token for '<unk>': use other words"):
        encode_text(other, text)


@pytest.mark.parametrize("token", ["<|endoftext|>", "<|pad|>", "<image>", "<|user|>", "and<image>and"])
def test_control_tokens_in_a_text_are_refused(token: str) -> None:
    with pytest.raises(ValueError, match=r"holds '<.*>', which the model would obey"):
        encode_text(lite_tokenizer(), f"a photo of a {token} cat")


def test_added_tokens_are_control_tokens_but_added_words_are_not() -> None:
    tokenizer = lite_tokenizer()
    tokenizer.add_tokens(["<tool_call>", "unicorn"])
    assert encode_text(tokenizer, "a unicorn")
    with pytest.raises(ValueError, match="holds '<tool_call>'"):
        encode_text(tokenizer, "a <tool_call> cat")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a " * 20_000, "40000 characters; at most 20000"),
        ("a photo of three cats", "5 tokens; this model reads at most 4"),
        ("a \ud800 cat", "half of a character"),
        (None, "must be a text, got None"),
        ([3, 4], "must be a text, got"),
    ],
)
def test_texts_that_cannot_be_read_are_refused(text: object, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        encode_text(lite_tokenizer(), text, most=4)  # type: ignore[arg-type]
