"""The verifier against a naive reading of P(yes), on three kinds of checkpoint; and how the lite one learns."""

import copy
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_verifiers import PROMPTS, save_lite, save_llava, save_onevision

from cotgen_lite.geneval import Detection, evaluate, relations
from cotgen_lite.identity import identity
from cotgen_lite.lite import verifier_training
from cotgen_lite.lite.verifier import (
    CHAT_TEMPLATE,
    evaluation_set,
    image_features,
    lite_processor,
    lite_verifier,
    measure_verifier,
    read_together,
    save_verifier,
)
from cotgen_lite.lite.verifier_questions import (
    Mix,
    as_dialogue,
    caption,
    draw_dialogues,
    draw_match,
    encode_dialogue,
    relations_seen,
    training_scene,
)
from cotgen_lite.lite.verifier_training import VerifierTraining, train_verifier
from cotgen_lite.lite.vocabulary import lite_tokenizer
from cotgen_lite.lite.world import SceneObject, icon_box, random_prompt, random_scene, render, world
from cotgen_lite.prompts import TAGS, lite_prompts, meaning, parse_prompt, plural
from cotgen_lite.verify import verifier as verifier_module
from cotgen_lite.verify.reasons import share_told
from cotgen_lite.verify.verifier import (
    CLARITY_QUESTION,
    NO_WORDS,
    ORM_QUESTION,
    POTENTIAL_QUESTION,
    PRM_QUESTION,
    REFLECTION_QUESTION,
    YES_WORDS,
    Verifier,
    _single_tokens,
    load_verifier,
    probability_yes,
)


@pytest.fixture(scope="module", params=[save_lite, save_llava, save_onevision], ids=["lite", "llava", "onevision"])
def verifier(request, tmp_path_factory) -> Verifier:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("verifier")
    request.param(folder)
    return Verifier.from_pretrained(folder, device="cpu")


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    rng = np.random.default_rng(0)
    return render([random_scene(rng) for _ in PROMPTS])


def naive_log_odds(verifier: Verifier, image: torch.Tensor, messages: list[dict]) -> float:
    """One image alone, every logit computed, a softmax in double precision over the whole vocabulary."""
    text = verifier.processor.apply_chat_template(messages, add_generation_prompt=True)
    inputs = verifier.processor(images=[image], text=[text], return_tensors="pt")
    with torch.no_grad():
        words = verifier.model(**inputs).logits[0, -1].double().softmax(0)
    vocabulary = verifier.processor.tokenizer.get_vocab()
    written = {
        answer: {answer, answer.capitalize(), f"Ġ{answer}", f"Ġ{answer.capitalize()}"} for answer in ("yes", "no")
    }
    yes, no = (sum(words[i] for word, i in vocabulary.items() if word in written[answer]) for answer in ("yes", "no"))
    return float(torch.log(yes) - torch.log(no))


def question_message(text: str, image: bool = True) -> dict:
    return {"role": "user", "content": [*([{"type": "image"}] if image else []), {"type": "text", "text": text}]}


def test_score_equals_one_full_softmax_for_each_image(verifier, images):
    scores = verifier.score(images, PROMPTS)
    expected = [
        naive_log_odds(verifier, image, [question_message(ORM_QUESTION.format(prompt=prompt))])
        for image, prompt in zip(images, PROMPTS, strict=True)
    ]
    assert scores.dtype == torch.float32
    assert scores.shape == (len(PROMPTS),)
    assert scores.std() > 1e-3  # images and prompts matter, so equality says something
    torch.testing.assert_close(scores, torch.tensor(expected), atol=2e-5, rtol=1e-4)


def test_score_does_not_depend_on_the_batch(verifier, images):
    together = verifier.score(images, PROMPTS)
    torch.testing.assert_close(verifier.score(images, PROMPTS, batch_size=3), together, atol=2e-5, rtol=1e-4)
    order = [2, 0, 3, 1]
    shuffled = verifier.score(images[order], [PROMPTS[i] for i in order])
    torch.testing.assert_close(shuffled, together[order], atol=2e-5, rtol=1e-4)


def test_one_prompt_serves_all_images(verifier, images):
    for ask in (verifier.score, verifier.explain, lambda *some: verifier.score_questions(*some, [PRM_QUESTION])):
        one, each = ask(images, PROMPTS[0]), ask(images, [PROMPTS[0]] * len(images))
        assert one == each if isinstance(one, list) else torch.equal(one, each)


def test_no_question_is_refused(verifier, images):
    with pytest.raises(ValueError, match="questions must hold at least one text"):
        verifier.score_questions(images, PROMPTS, [])


def test_clarity_and_potential_are_one_conversation_read_in_one_pass(verifier, images):
    before = verifier.passes
    clarity, potential = verifier.clarity_and_potential(images, PROMPTS, batch_size=3)
    assert verifier.passes - before == len(PROMPTS)
    first = verifier.score(images, PROMPTS, CLARITY_QUESTION)
    torch.testing.assert_close(clarity, first, atol=2e-5, rtol=1e-4)
    assert (clarity - potential).abs().min() > 1e-4  # so that equality says something
    expected = [
        naive_log_odds(
            verifier,
            image,
            [
                question_message(CLARITY_QUESTION.format(prompt=prompt)),
                {"role": "assistant", "content": [{"type": "text", "text": "yes"}]},
                question_message(POTENTIAL_QUESTION, image=False),
            ],
        )
        for image, prompt in zip(images, PROMPTS, strict=True)
    ]
    torch.testing.assert_close(potential, torch.tensor(expected), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "questions",
    [
        (ORM_QUESTION, PRM_QUESTION, CLARITY_QUESTION),  # part soon after the image
        (ORM_QUESTION, REFLECTION_QUESTION),  # share the prompt, whose length differs from image to image
        (ORM_QUESTION, ORM_QUESTION),  # leave nothing apart
        (PRM_QUESTION,),
    ],
    ids=["early", "late", "same", "one"],
)
def test_questions_asked_of_one_reading_equal_questions_asked_alone(verifier, images, questions):
    before = verifier.passes
    together = verifier.score_questions(images, PROMPTS, questions, batch_size=3)
    assert verifier.passes - before == len(PROMPTS) * len(questions)
    alone = torch.stack([verifier.score(images, PROMPTS, question) for question in questions], dim=1)
    assert alone.std(dim=0).min() > 1e-3  # so that equality says something
    if len(set(questions)) > 1:
        assert (alone[:, 0] - alone[:, 1]).abs().max() > 1e-3
    assert together.dtype == torch.float32
    torch.testing.assert_close(together, alone, atol=2e-5, rtol=1e-4)


def test_an_image_is_read_once_for_all_questions(verifier, images):
    towers, places = [], []
    inner = verifier.model.model
    hooks = [
        inner.vision_tower.register_forward_hook(lambda module, inputs, output: towers.append(1)),
        inner.language_model.register_forward_pre_hook(
            lambda module, inputs, named: places.append(named["inputs_embeds"].shape[1]), with_kwargs=True
        ),
    ]
    verifier.score_questions(images, PROMPTS, (ORM_QUESTION, PRM_QUESTION))
    verifier.score(images, PROMPTS, ORM_QUESTION)
    for hook in hooks:
        hook.remove()
    assert len(towers) == 2  # one for each call
    first, one, _, alone = places
    assert first + one == alone


def test_questions_are_checked_each(lite, images):
    with pytest.raises(ValueError, match=r"\{prompt\}"):
        lite.score_questions(images, PROMPTS, (ORM_QUESTION, POTENTIAL_QUESTION))
    assert lite.score_questions(images[:0], [], (ORM_QUESTION, PRM_QUESTION)).shape == (0, 2)


@pytest.mark.parametrize("bits", [8, 4])
def test_weights_in_few_bits_are_asked_of_bitsandbytes(bits, lite, tmp_path, monkeypatch):
    save_lite(tmp_path)
    asked = []
    monkeypatch.setattr(
        verifier_module.AutoModelForImageTextToText,
        "from_pretrained",
        lambda path, **options: asked.append(options) or Unmovable(lite.model),
    )
    monkeypatch.setattr(verifier_module, "is_bitsandbytes_available", lambda: True)
    Verifier.from_pretrained(tmp_path, device="cpu", dtype=torch.bfloat16, bits=bits)
    (options,) = asked
    assert options.pop("config").transformers_weights == "model.safetensors"
    config = options.pop("quantization_config")
    assert options == {"dtype": torch.bfloat16, "device_map": {"": "cpu"}, "trust_remote_code": False}
    assert (config.load_in_8bit, config.load_in_4bit) == (bits == 8, bits == 4)
    if bits == 4:
        assert (config.bnb_4bit_quant_type, config.bnb_4bit_compute_dtype) == ("nf4", torch.bfloat16)


class Unmovable(torch.nn.Module):
    """A model that was loaded in few bits: it raises when it is moved."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model, self.config = model, model.config

    def to(self, *args, **kwargs):
        raise ValueError("`.to` is not supported for this model.")


def test_few_bits_need_their_extra(tmp_path, monkeypatch):
    save_lite(tmp_path)
    monkeypatch.setattr(verifier_module, "is_bitsandbytes_available", lambda: False)
    with pytest.raises(ImportError, match=r'pip install -e "\.\[quantized\]"'):
        Verifier.from_pretrained(tmp_path, bits=4)
    with pytest.raises(ValueError, match="8 or 4 bits, not 16"):
        Verifier.from_pretrained(tmp_path, bits=16)


def test_reasons_are_written_word_by_word_as_if_each_image_were_alone(verifier, images):
    tokenizer, expected = verifier.processor.tokenizer, []
    for image, prompt in zip(images, PROMPTS, strict=True):
        asked = [question_message(REFLECTION_QUESTION.format(prompt=prompt))]
        text = verifier.processor.apply_chat_template(asked, add_generation_prompt=True) + "no, "
        inputs = dict(verifier.processor(images=[image], text=[text], return_tensors="pt"))
        start = inputs["input_ids"].shape[1]
        for _ in range(6):
            with torch.no_grad():
                word = verifier.model(**inputs).logits[0, -1].argmax().view(1, 1)
            inputs["input_ids"] = torch.cat([inputs["input_ids"], word], dim=1)
            inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
            if word.item() == tokenizer.eos_token_id:
                break
        said = tokenizer.decode(inputs["input_ids"][0, start:], skip_special_tokens=True)
        expected.append(said.strip().replace(" ,", ",").replace(" :", ":"))
    before = verifier.passes
    assert verifier.explain(images, PROMPTS, max_new_tokens=6, batch_size=3) == expected
    assert verifier.passes - before == len(PROMPTS)
    # The untrained lite model says one word whatever it sees; of the others equality says something.
    assert len(set(expected)) > 1 or tokenizer.unk_token


def test_every_spelling_of_yes_counts(verifier):
    spellings = 1 if verifier.processor.tokenizer.unk_token else 4  # the word-level tokenizer lower-cases
    assert len(verifier._yes) == len(verifier._no) == spellings
    assert not set(verifier._yes) & set(verifier._no)


def test_passes_count_images(verifier, images):
    before = verifier.passes
    verifier.score(images, PROMPTS, batch_size=3)
    assert verifier.passes - before == len(PROMPTS)


def test_probability_is_the_share_of_yes():
    odds = torch.log(torch.tensor([1.0, 3.0, 0.25]))
    torch.testing.assert_close(probability_yes(odds), torch.tensor([0.5, 0.75, 0.2]))


@pytest.fixture(scope="module")
def lite(tmp_path_factory) -> Verifier:
    folder = tmp_path_factory.mktemp("lite")
    save_lite(folder)
    return Verifier.from_pretrained(folder, device="cpu")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda images: (images[:3], PROMPTS), "3 images came with 4 prompts"),
        (lambda images: (images[:, :, :32, :32], PROMPTS), "64 x 64 pixels; got 32 x 32"),
        (lambda images: (images.float(), PROMPTS), "uint8"),
        (lambda images: (images, ["a photo of a zeppelin", *PROMPTS[1:]]), "zeppelin"),
    ],
)
def test_wrong_input_is_explained(lite, images, change, says):
    with pytest.raises(ValueError, match=says):
        lite.score(*change(images))


@pytest.mark.parametrize("token", ["<image>", "<|endoftext|>", "<|assistant|>", "<|pad|>"])
def test_control_tokens_are_refused_in_prompts_and_questions(verifier, images, token):
    known = verifier.processor.tokenizer.get_added_vocab()
    token = token if token in known else next(iter(known))  # every model has some of its own
    for prompts, question in (
        ([*PROMPTS[:3], f"a cat {token}"], ORM_QUESTION),
        (PROMPTS, f"{token} {{prompt}}"),
        ([token[1:-1]] * 4, f"{token[0]}{{prompt}}{token[-1]}"),
    ):
        for ask in (verifier.score, verifier.explain, lambda *some: verifier.score_questions(*some[:2], [some[2]])):
            with pytest.raises(ValueError, match=r"holds '.*', which the model would obey"):
                ask(images, prompts, question)


def test_a_prompt_that_is_too_long_is_refused_with_the_bound(verifier, images, monkeypatch):
    most, long = 512, " and ".join(["a cat"] * 200)
    monkeypatch.setattr(verifier.model.config.get_text_config(), "max_position_embeddings", most)
    for ask in (
        verifier.score,
        verifier.explain,
        verifier.clarity_and_potential,
        lambda *some: verifier.score_questions(*some, [ORM_QUESTION, PRM_QUESTION]),
    ):
        with pytest.raises(ValueError, match=f"this verifier reads at most {most}: shorten"):
            ask(images[:1], long)


def test_the_longest_of_several_questions_counts(lite, images):
    long = "is it a cat, " * 30
    assert lite.score_questions(images, PROMPTS, [ORM_QUESTION, f"{long} {{prompt}}"]).shape == (4, 2)
    with pytest.raises(ValueError, match="reads at most 512"):
        lite.score_questions(images, PROMPTS, [ORM_QUESTION, f"{long * 4} {{prompt}}"])


PICTURES = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
PROMPT = PROMPTS[0]


@pytest.mark.parametrize(
    "images",
    [None, "images", PICTURES.numpy(), list(PICTURES), PICTURES.float(), PICTURES / 255, PICTURES[0], PICTURES[:, :1],
     PICTURES.permute(0, 2, 3, 1), PICTURES[:, :, :0], PICTURES.bool(), torch.full((2, 3, 64, 64), torch.nan)],
    ids=range(12),
)  # fmt: skip
def test_only_pictures_are_read(lite, images):
    for ask in (
        lite.score,
        lite.clarity_and_potential,
        lite.explain,
        lambda *to: lite.score_questions(*to, [ORM_QUESTION]),
    ):
        with pytest.raises(ValueError, match=r"^[Ii]mages must be a uint8 tensor of shape \(B, 3, H, W\)"):
            ask(images, PROMPT)


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        *((one, "prompts must be a text or a list of texts") for one in (None, 3, b"a cat", {PROMPT: 1})),
        *((one, "each of prompts must be a text") for one in ([PROMPT, 3], [PROMPT, None], lite_prompts("train")[:2])),
        *((one, "must say what the image shows") for one in ("", [PROMPT, " "])),
        *((one, "2 images came with . prompts") for one in ([PROMPT], [PROMPT] * 3, [])),
        ("a cat " * 1000, "shorten"),
    ],
)
def test_only_prompts_are_asked_about(lite, prompt, says):
    for ask in (
        lite.score,
        lite.clarity_and_potential,
        lite.explain,
        lambda *to: lite.score_questions(*to, [ORM_QUESTION]),
    ):
        with pytest.raises(ValueError, match=says):
            ask(PICTURES, prompt)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        *((lambda v, q=q: v.score(PICTURES, PROMPT, q), "question must be a text") for q in (None, 3, ["{prompt}"])),
        *((lambda v, q=q: v.explain(PICTURES, PROMPT, q), "where the prompt goes") for q in ("", "Is it right?")),
        *((lambda v, b=b: v.score(PICTURES, PROMPT, batch_size=b), "batch_size must") for b in (0, -1, "2", 1.5, None)),
        *(
            (lambda v, n=n: v.explain(PICTURES, PROMPT, max_new_tokens=n), "max_new_tokens must")
            for n in (0, -1, "2", 10**9)
        ),
        *((lambda v, q=q: v.score_questions(PICTURES, PROMPT, q), "questions must") for q in (None, [], 3)),
        (lambda v: v.score_questions(PICTURES, PROMPT, [ORM_QUESTION, None]), "each of questions must"),
        (lambda v: Verifier(None, None), "model must be"),
        (lambda v: Verifier(v.processor, v.model), "model must be"),
        (lambda v: Verifier(v.model, None), "processor must be"),
        (lambda v: Verifier(v.model, v.processor.tokenizer), "processor must be"),
        (lambda v: probability_yes(0.5), "log_odds must be a tensor"),
        (lambda v: evaluation_set(1, 0), "scenes_per_tag must be a whole number from 2"),
        (lambda v: measure_verifier(v.model, v.processor.tokenizer, []), "nothing to measure by"),
        (lambda v: lite_verifier("words"), "tokenizer must be"),
    ],
)
def test_what_no_verifier_can_be_asked_is_said_in_a_sentence(lite, call, says):
    with pytest.raises(ValueError, match=says):
        call(lite)


@pytest.mark.parametrize("other", ["generator", "judge", "words", "tokenizer", "nothing"])
def test_another_models_folder_is_no_verifier(other):
    with pytest.raises((ValueError, OSError), match=r"verifier|missing") as error:
        load_verifier(other, device="cpu")
    assert "\n" not in str(error.value)


def test_answers_that_are_not_finite_are_not_given(lite, images):
    spoiled = Verifier(copy.deepcopy(lite.model), lite.processor)
    with torch.no_grad():
        spoiled.model.lm_head.weight[lite._yes[0]] = torch.nan
    for ask in (spoiled.score, spoiled.clarity_and_potential, lambda *to: spoiled.score_questions(*to, [ORM_QUESTION])):
        with pytest.raises(ValueError, match=f"^log-odds that Verifier .* gave for '{PROMPTS[0]}' must be finite"):
            ask(images, PROMPTS)


def test_what_a_verifiers_answers_hang_on_is_plain_and_does_not_change_when_it_is_asked(lite, images):
    before = identity(lite.described)
    lite.score(images, PROMPTS)
    assert identity(lite.described) == before


def test_what_is_written_is_tidied(lite, images, monkeypatch):
    monkeypatch.setattr(lite.processor.tokenizer, "batch_decode", lambda *_, **__: [" no dog , and two : cats "])
    assert lite.explain(images[:1], PROMPT, max_new_tokens=1) == ["no dog, and two: cats"]


def test_a_verifier_is_asked_in_evaluation_mode(lite):
    assert not Verifier(copy.deepcopy(lite.model).train(), lite.processor).model.training


def test_unknown_words_are_no_answers():
    class Words:
        unk_token_id = 0

        def __call__(self, word, **_):
            return {"input_ids": {"yes": [5], "Yes": [5], " yes": [7, 5], "no": [6]}.get(word, [0])}

    assert _single_tokens(Words(), YES_WORDS) == [5] and _single_tokens(Words(), NO_WORDS) == [6]
    with pytest.raises(ValueError, match="no single token for any of 'maybe'"):
        _single_tokens(Words(), ("maybe",))


def test_a_question_without_the_prompt_is_refused(lite, images):
    with pytest.raises(ValueError, match=r"\{prompt\}"):
        lite.score(images, PROMPTS, POTENTIAL_QUESTION)


@pytest.mark.parametrize("save", [save_lite, save_llava, save_onevision], ids=["lite", "llava", "onevision"])
def test_a_verifier_without_all_its_weights_is_refused(save, tmp_path):
    save(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    lost = sorted(name for name in weights if "layers.0" in name)[0]
    save_file({name: weight for name, weight in weights.items() if name != lost}, file, {"format": "pt"})
    with pytest.raises(ValueError, match="lacks 1 weights"):
        Verifier.from_pretrained(tmp_path, device="cpu")
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="damaged"):
        Verifier.from_pretrained(tmp_path, device="cpu")


def test_no_images_no_scores(lite, images):
    assert lite.score(images[:0], []).shape == (0,)


def test_the_lite_verifier_is_small_and_its_fp16_file_reads_as_float32(tmp_path):
    tokenizer = lite_tokenizer()
    model = lite_verifier(tokenizer)
    assert sum(p.numel() for p in model.parameters()) <= 1_400_000
    save_verifier(model, tokenizer, tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_size < 2 * 1_400_000 + 20_000
    loaded = Verifier.from_pretrained(tmp_path, device="cpu").model
    assert loaded.dtype == torch.float32
    for name, value in model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value.half().float())


def test_the_template_marks_answers_with_their_end():
    tokenizer = lite_tokenizer()
    encoded = tokenizer.apply_chat_template(
        [
            {"role": "user", "content": "is it clear?"},
            {"role": "assistant", "content": "yes"},
            {"role": "user", "content": "is it a cat?"},
            {"role": "assistant", "content": "no"},
        ],
        chat_template=CHAT_TEMPLATE,
        return_assistant_tokens_mask=True,
        return_dict=True,
    )
    learned = [i for i, use in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if use]
    assert tokenizer.convert_ids_to_tokens(learned) == ["yes", "<|endoftext|>", "no", "<|endoftext|>"]


def detections(scene) -> list[Detection]:
    found = []
    for item in scene:
        x0, y0, x1, y1 = icon_box(item.name)
        found.append(Detection(item.name, 1.0, (item.x + x0, item.y + y0, item.x + x1, item.y + y1), item.color))
    return found


def test_answers_to_matches_agree_with_genevals_rules():
    rng = np.random.default_rng(0)
    seen = {tag: [0, 0] for tag in TAGS}
    for _ in range(3000):
        scene = training_scene(rng)
        asked = draw_match(scene, rng)
        if asked is None:
            continue
        prompt, holds = asked
        if isinstance(prompt, str):  # "a red cat and two dogs" is no template of GenEval's
            with pytest.raises(ValueError, match=r"Unknown|both things|comes a, an"):
                parse_prompt(prompt)
            continue
        assert evaluate(prompt, detections(scene)).correct == holds, (prompt.text, scene)
        seen[prompt.tag][holds] += 1
    for no, yes in seen.values():
        assert min(no, yes) > 0.25 * (no + yes) > 0


def test_reasons_are_true_of_the_scene_and_asked_where_prompts_do_and_do_not_hold():
    rng, said = np.random.default_rng(2), {"yes": 0, "no": 0}
    for _ in range(200):
        scene = training_scene(rng)
        for dialogue in draw_dialogues(scene, 4, Mix(facts=0, official=0, reasons=1), rng):
            question, answer = dialogue[0]
            if "with reasons" not in question:
                continue  # of a text outside the templates nothing is told
            asked = parse_prompt(question[question.index("a photo of") :].split(". Does")[0])
            findings = evaluate(asked, detections(scene)).reasons
            yes_or_no, _, why = answer.partition(", ")
            said[yes_or_no] += 1
            assert (yes_or_no == "yes") == (not findings) and (
                not why if not findings else share_told(why, findings)[0] == 1
            )
    assert min(said.values()) > 0.4 * sum(said.values()) > 100


def test_matches_about_arrangement_are_drawn_as_often_as_told():
    told = []
    for share in (0, 0.1, 0.4, 1):
        rng = np.random.default_rng(0)
        asked = [draw_match(training_scene(rng), rng, share) for _ in range(1000)]
        tags = [one[0].tag for one in asked if one and not isinstance(one[0], str)]
        told.append(sum(tag in ("position", "color_attr") for tag in tags) / len(tags))
    assert told[0] == 0 < told[1] < told[2] - 0.1 < told[3] == 1


@pytest.mark.parametrize("facts", [0.0, 1.0])
def test_what_is_not_there_is_asked_about_as_seldom_as_told(facts):
    def asked(absent):
        """Of 6,000 questions, how many name a thing that their scene does not hold."""
        rng, found = np.random.default_rng(0), 0
        for _ in range(600):
            scene = training_scene(rng)
            there = {item.name for item in scene}
            for (question, _), *_ in draw_dialogues(scene, 10, Mix(facts, 0.6, absent=absent), rng):
                words = {*re.findall(r"\w+", question)}
                found += any({name, plural(name)} & words for name in world().objects if name not in there)
        return found

    seldom, always = asked(0.25), asked(1.0)
    assert asked(0.0) == 0 and always > 300
    # Of what comes up a quarter is asked; what takes the others' place names such things again, as often as before.
    share = always / 6000
    assert seldom / 6000 == pytest.approx(share / 4 / (1 - 0.75 * share), rel=0.25)


def test_hard_negatives_fail_their_prompts_and_positives_hold():
    for example in evaluation_set(scenes_per_tag=40, seed=3):
        assert evaluate(parse_prompt(example.prompt), detections(example.scene)).correct == example.holds


def test_dev_and_test_prompts_are_never_asked_but_for_counts():
    held_out = {meaning(p) for split in ("dev", "test") for p in lite_prompts(split) if p.tag != "counting"}
    rng = np.random.default_rng(1)
    asked = 0
    for _ in range(300):
        for dialogue in draw_dialogues(training_scene(rng), 6, Mix(facts=0.0, official=0.0), rng):
            text = dialogue[0][0]
            start = text.find("a photo of")
            try:
                assert meaning(parse_prompt(text[start:].rstrip("?"))) not in held_out
            except ValueError:
                continue
            asked += 1
    assert asked > 1000


def test_relations_are_genevals():
    rng = np.random.default_rng(2)
    for _ in range(300):
        scene = random_scene(rng)
        if len(scene) < 2:
            continue
        boxes = [d.box for d in detections(scene)]
        assert tuple(relations_seen(scene[0], scene[1])[0]) == relations(boxes[0], boxes[1])


def test_dialogues_read_as_the_chat_template_writes_them():
    tokenizer = lite_tokenizer()
    processor = lite_processor(tokenizer)
    dialogue = as_dialogue(POTENTIAL_QUESTION, PROMPTS[1], False)
    ids, learned = encode_dialogue(tokenizer, dialogue, clarity=True)
    messages = []
    for turn, (question, answer) in enumerate(dialogue):
        messages += [
            question_message(question, image=turn == 0),
            {"role": "assistant", "content": [{"type": "text", "text": answer}]},
        ]
    whole = tokenizer(processor.apply_chat_template(messages))["input_ids"]
    assert whole[2:] == ids  # after the user's mark and the image
    assert tokenizer.convert_ids_to_tokens([ids[place] for place in learned]) == [
        "yes",
        "<|endoftext|>",
        "no",
        "<|endoftext|>",
    ]
    assert encode_dialogue(tokenizer, dialogue, clarity=False)[1] == learned[2:]


def test_questions_read_together_equal_questions_asked_alone(lite, images):
    tokenizer = lite.processor.tokenizer
    asked = [(row, wording) for row in range(len(images)) for wording in (ORM_QUESTION, PRM_QUESTION)]
    encoded = [
        (row, *encode_dialogue(tokenizer, as_dialogue(wording, PROMPTS[row], True), clarity=True))
        for row, wording in asked
    ]
    together = torch.zeros(len(asked))
    with torch.no_grad():
        for group in read_together(lite.model, tokenizer, image_features(lite.model, images), encoded):
            for row, index in enumerate(group.source):
                logits = lite.model.lm_head(group.last[row, encoded[index][2][0] - 1])
                together[index] = logits[lite._yes[0]] - logits[lite._no[0]]
    alone = torch.stack([lite.score(images, PROMPTS, wording) for wording in (ORM_QUESTION, PRM_QUESTION)], dim=1)
    torch.testing.assert_close(together, alone.flatten(), atol=2e-5, rtol=1e-4)


SIZES = VerifierTraining(tower_steps=1, fact_steps=2, match_steps=4, images=2, questions=2)


def test_a_training_that_was_cut_off_anywhere_ends_alike(tmp_path, monkeypatch):
    model, log = train_verifier(SIZES, tmp_path / "whole")
    assert log.steps == 7 and log.seconds > 0 and len(log.losses) == 2
    drawn, stops = verifier_training.draw_dialogues, [9, 3]  # questions into a run

    def interrupted(*given):
        if stops:
            stops[-1] -= 1
            if not stops[-1]:
                stops.pop()
                raise KeyboardInterrupt
        return drawn(*given)

    monkeypatch.setattr(verifier_training, "draw_dialogues", interrupted)
    while stops:
        with pytest.raises(KeyboardInterrupt):
            train_verifier(SIZES, tmp_path / "parted")
    parted, _ = train_verifier(SIZES, tmp_path / "parted")
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, parted.state_dict()[name]), name
    for change in ({"match_steps": 5}, {"images": 3}, {"arranged": 0.5}, {"absent": 0.5}, {"seed": 1}):
        with pytest.raises(ValueError, match="another run"):
            train_verifier(replace(SIZES, **change), tmp_path / "whole")
    monkeypatch.setattr(verifier_training, "PROBE_WEIGHT", 0.1)
    with pytest.raises(ValueError, match="another run"):
        train_verifier(SIZES, tmp_path / "whole")


def test_all_of_the_verifier_learns(tmp_path):
    model, _ = train_verifier(SIZES, tmp_path)
    torch.manual_seed(SIZES.seed)
    untrained = lite_verifier(lite_tokenizer()).state_dict()
    unread = ("post_layernorm", "rotary")  # what neither images nor questions go through
    for name, weight in model.state_dict().items():
        assert any(part in name for part in unread) or not torch.equal(weight, untrained[name]), name


def test_pre_training_that_diverges_names_the_step(tmp_path):
    with pytest.raises(ValueError, match=r"Training diverged at step \d"):
        train_verifier(replace(SIZES, muon_rate=1e9, learning_rate=1e9), tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"tower_steps": 0},
        {"fact_steps": 1.5},
        {"match_steps": 10**9},
        {"images": 0},
        {"questions": 0},
        {"muon_rate": float("nan")},
        {"learning_rate": -1},
        {"arranged": 1.5},
        {"absent": -1},
        {"seed": -1},
    ],
)
def test_impossible_sizes_of_pre_training_are_refused(change):
    with pytest.raises(ValueError, match=f"^{next(iter(change))} must be"):
        replace(SIZES, **change)


def test_pre_training_needs_its_sizes_and_a_folder(tmp_path):
    with pytest.raises(ValueError, match="training must be a VerifierTraining"):
        train_verifier({}, tmp_path)
    with pytest.raises(ValueError, match="work_dir must be"):
        train_verifier(SIZES, None)


SCENE = training_scene(np.random.default_rng(0))


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda rng: Mix(facts=1.5, official=0.0), "facts must be"),
        (lambda rng: Mix(facts=0.5, official=float("nan")), "official must be"),
        (lambda rng: Mix(facts=0.5, official=0.0, caption="yes"), "caption must be"),
        (lambda rng: Mix(facts=0.5, official=0.6, reasons=0.5), "at most 1"),
        (lambda rng: Mix(facts=0.5, official=0.6, arranged=2), "arranged must be"),
        (lambda rng: Mix(facts=0.5, official=0.6, absent=2), "absent must be"),
        (lambda rng: random_prompt("positions", rng), "tag must be one of"),
        (lambda rng: draw_dialogues((), 3, Mix(0.5, 0.5), rng), "scene"),
        (lambda rng: draw_dialogues(None, 3, Mix(0.5, 0.5), rng), "scene"),
        (lambda rng: draw_dialogues(("cat",), 3, Mix(0.5, 0.5), rng), "scene"),
        (lambda rng: draw_dialogues(SCENE, 10**9, Mix(0.5, 0.5), rng), "count must be"),
        (lambda rng: draw_dialogues(SCENE, 3, 0.5, rng), "mix must be"),
        (lambda rng: draw_dialogues(SCENE, 3, Mix(0.5, 0.5), 0), "rng must be"),
        (lambda rng: training_scene(0), "rng must be"),
        (lambda rng: random_prompt("colors", None), "rng must be"),
        (lambda rng: draw_match((), rng), "scene"),
        (lambda rng: draw_match(SCENE, None), "rng must be"),
        (lambda rng: caption("scene"), "scene"),
        (lambda rng: relations_seen(None, None), "scene"),
        (lambda rng: as_dialogue(None, "a photo of a cat", True), "wording must be"),
        (lambda rng: as_dialogue(ORM_QUESTION, parse_prompt("a photo of a cat"), True), "prompt must be"),
        (lambda rng: as_dialogue(ORM_QUESTION, "a photo of a cat", "no"), "holds must be"),
        (lambda rng: encode_dialogue(lite_tokenizer(), None, True), "dialogue must be"),
        (lambda rng: encode_dialogue(lite_tokenizer(), ("a", "b"), True), "question and an answer"),
        (lambda rng: encode_dialogue(None, (("is this a cat?", "yes"),), True), "tokenizer must"),
    ],
)
def test_questions_that_cannot_be_asked_are_refused(call, said):
    with pytest.raises(ValueError, match=said):
        call(np.random.default_rng(0))


def test_a_caption_lists_things_in_reading_order():
    scene = parse_scene((("cat", "red", 40, 0), ("apple", "blue", 0, 0), ("dog", "green", 8, 32)))
    assert caption(scene) == (
        "a blue apple at row one column one, a red cat at row one column six, a green dog at row five column two"
    )


def parse_scene(items):
    return tuple(SceneObject(*item) for item in items)
