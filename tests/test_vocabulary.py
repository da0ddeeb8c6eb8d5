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
