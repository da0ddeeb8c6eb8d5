"""Both judges on whole, changed and broken scenes, and the training of the learned one."""

import numpy as np
import pytest
import torch

from cotgen_lite.geneval import evaluate, judge
from cotgen_lite.hub import data_root, model_path
from cotgen_lite.lite import judges as judge_training
from cotgen_lite.lite.judges import (
    LearnedJudge,
    LearnedJudgeConfig,
    TemplateJudge,
    draw_lessons,
    look_alikes,
    measure_judge,
    random_question,
    scene_detections,
    train_judge,
)
from cotgen_lite.lite.world import SceneObject, icon_box, icon_mask, random_scene, render, world
from cotgen_lite.prompts import TAGS, counting, single_object


@pytest.fixture(scope="module")
def template():
    return TemplateJudge()


@pytest.fixture(scope="module")
def learned():
    return LearnedJudge.from_pretrained(model_path("judge"))


@pytest.fixture(params=["template", "learned"])
def either(request):
    return request.getfixturevalue(request.param)


def random_scenes(number, seed=0):
    rng = np.random.default_rng(seed)
    return [random_scene(rng) for _ in range(number)]


def sure(detections, threshold=0.3):
    """What GenEval's rules would see, without the confidences."""
    return sorted((d.name, d.box, d.color) for d in detections if d.score > threshold)


def test_scene_detections_are_the_icons_tight_boxes():
    (detection,) = scene_detections((SceneObject("car", "blue", 16, 40),))
    x0, y0, x1, y1 = icon_box("car")
    assert (detection.name, detection.color, detection.score) == ("car", "blue", 1.0)
    assert detection.box == (16 + x0, 40 + y0, 16 + x1, 40 + y1)
    image = render([(SceneObject("car", "blue", 16, 40),)])[0].int()
    rows, columns = np.nonzero((image - torch.tensor(world().background)[:, None, None]).abs().sum(0).numpy() > 200)
    assert detection.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)


@pytest.mark.parametrize("threshold", [0.3, 0.9])
def test_every_object_of_a_scene_is_found_with_class_box_and_color(either, threshold):
    scenes = random_scenes(100)
    found = either.detect(render(scenes))
    wrong = [
        (scene, detections)
        for scene, detections in zip(scenes, found, strict=True)
        if sure(detections, threshold) != sure(scene_detections(scene))
    ]
    assert len(wrong) <= (0 if isinstance(either, TemplateJudge) else 1), wrong[:2]


def test_every_icon_in_every_color_is_told_apart(either):
    scenes = [(SceneObject(name, color, 16, 24),) for name in world().objects for color in world().colors]
    for scene, detections in zip(scenes, either.detect(render(scenes)), strict=True):
        assert sure(detections, 0.9) == sure(scene_detections(scene)), scene


def test_look_alikes_are_named_the_most_alike_first():
    found = look_alikes()
    assert len(found) == len({frozenset(pair) for _, *pair in found}) == 16 * 15 / 2
    assert sorted(found, reverse=True) == found and 0.5 < found[0][0] < 0.8  # what no icon of a world may reach


def test_verdicts_on_true_and_nearly_true_prompts(either):
    right = measure_judge(either, number=120, seed=1)
    assert list(right) == [*TAGS, "all"]
    assert right["all"] >= 0.99, right


def test_a_changed_scene_no_longer_shows_its_prompt(either):
    cats = (SceneObject("cat", "red", 0, 0), SceneObject("cat", "blue", 24, 0), SceneObject("cat", "red", 0, 32))
    changed = [
        cats,
        cats[:2],
        (*cats, SceneObject("cat", "black", 40, 40)),
        (*cats[:2], SceneObject("dog", "red", 0, 32)),
    ]
    three = counting("cat", 3)
    assert judge(either, render(changed), [three] * 4).tolist() == [True, False, False, False]


def test_an_empty_picture_holds_nothing(either):
    empty = render([()])
    noise = torch.randint(-6, 7, (4, 3, 64, 64), generator=torch.Generator().manual_seed(0))
    noisy = (empty.int() + noise).clamp(0, 255).to(torch.uint8)
    assert [sure(found) for found in either.detect(torch.cat([empty, noisy]))] == [[]] * 5


def test_half_an_icon_is_no_object(either):
    """A half with no more of the icon's ink than two icons may share is nothing, but for a rare slip of the learned
    judge's; no half is sure."""
    images = render([(SceneObject(name, "blue", 16, 16),) for name in world().objects])
    masks = np.stack([icon_mask(name) for name in world().objects])
    broken_halves, slips = 0, []
    for half in (np.s_[..., :12, :], np.s_[..., :, :12], np.s_[..., 12:, :], np.s_[..., :, 12:]):
        kept = 1 - masks[half].sum((1, 2)) / masks.sum((1, 2))
        broken = images.clone()
        broken[:, :, 16:40, 16:40][half] = torch.tensor(world().background, dtype=torch.uint8)[:, None, None]
        for name, share, found in zip(world().objects, kept, either.detect(broken), strict=True):
            assert not sure(found, 0.9), (name, share)
            if share <= judge_training.BROKEN:
                broken_halves += 1
                slips += [(name, share)] if sure(found) else []
    assert broken_halves > 50  # of 64
    assert len(slips) <= isinstance(either, LearnedJudge), slips


def test_half_cat_half_dog_is_surely_neither(either):
    cat, dog, cake = render([(SceneObject(name, "black", 16, 16),) for name in ("cat", "dog", "cake")])
    mixed = []
    for a, b in ((cat, dog), (dog, cake), (cake, cat)):
        image = a.clone()
        image[:, :, 28:] = b[:, :, 28:]
        mixed.append(image)
    assert [sure(found, 0.9) for found in either.detect(torch.stack(mixed))] == [[], [], []]


def test_color_needs_two_thirds_of_an_object(either):
    red, blue = render([(SceneObject("clock", color, 16, 16),) for color in ("red", "blue")])
    half, most = red.clone(), red.clone()
    half[:, :, 28:] = blue[:, :, 28:]
    most[:, :, 35:] = blue[:, :, 35:]
    (first,), (second,) = ([d for d in found if d.score > 0.3] for found in either.detect(torch.stack([half, most])))
    assert (first.name, first.color) == ("clock", None)
    assert (second.name, second.color) == ("clock", "red")


def test_detections_do_not_depend_on_the_batch(either):
    images = render(random_scenes(140))
    together = either.detect(images)
    alone = either.detect(images[130:131])[0]
    assert sure(together[130]) == sure(alone)
    np.testing.assert_allclose([d.score for d in together[130]], [d.score for d in alone], atol=1e-4)


def test_template_finds_icons_off_the_lattice_and_touching(template):
    scene = (SceneObject("cat", "red", 3, 5), SceneObject("dog", "blue", 27, 5), SceneObject("car", "green", 11, 37))
    assert sure(template.detect(render([scene]))[0], 0.9) == sure(scene_detections(scene))


def test_template_confidence_is_one_curve_of_the_correlation(template):
    """Less and less of a picture: correlation and confidence fall together, from sure to nothing."""
    image = render([(SceneObject("boat", "black", 16, 16),)])[0].float()
    other = render([(SceneObject("clock", "black", 16, 16),)])[0].float()
    blends = torch.stack([image * (1 - t) + other * t for t in (0, 0.15, 0.3, 0.45)])
    boat = world().objects.index("boat")
    correlations = template.correlate(blends)[:, boat, 16, 16]
    mask, second = icon_mask("boat"), icon_mask("clock")
    for t, value in zip((0, 0.15, 0.3, 0.45), correlations.tolist(), strict=True):
        assert value == pytest.approx(np.corrcoef(mask.ravel(), ((1 - t) * mask + t * second).ravel())[0, 1], abs=1e-4)
    scores = [max(d.score for d in found) for found in template.detect(blends.round().to(torch.uint8))]
    assert scores == sorted(scores, reverse=True) and scores[0] > 0.99 and scores[-1] < 0.9


@pytest.mark.parametrize("shape", [(1, 3, 32, 32), (1, 1, 64, 64), (3, 64, 64)])
def test_wrong_images_are_refused(template, shape):
    with pytest.raises(ValueError, match="lite judges look at"):
        template.detect(torch.zeros(shape, dtype=torch.uint8))
    with pytest.raises(ValueError, match="lite judges look at"):
        template.detect(torch.zeros(1, 3, 64, 64))


@pytest.mark.parametrize("other", ["generator", "tokenizer", "orm", "sequential", "words", "nothing"])
def test_another_models_folder_is_no_judge(other):
    with pytest.raises(ValueError, match="learned judge") as error:
        LearnedJudge.from_pretrained(data_root() / "models" / other)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        *((lambda path=path: LearnedJudge.from_pretrained(path), "folder or a hub name") for path in (None, 3, ["a"])),
        *(
            (lambda images=images: TemplateJudge().detect(images), "images must be a uint8")
            for images in (None, "x", [])
        ),
        *((lambda w=w: LearnedJudge(LearnedJudgeConfig(width=w)), "width must be") for w in (0, "96", 10**6)),
        *((lambda b=b: LearnedJudge(LearnedJudgeConfig(blocks=b)), "blocks must be") for b in (-1, 1.5)),
        *((lambda n=n: draw_lessons(n, np.random.default_rng(0)), "count must be") for n in (0, "2", 10**9)),
        (lambda: draw_lessons(2, 0), "rng must be"),
        (lambda: draw_lessons(2, np.random.default_rng(0), "x"), "rebuild must be a function"),
        *((lambda n=n: train_judge("work", n), "steps must be") for n in (0, "2", 10**12)),
        (lambda: train_judge("work", 2, -1), "seed must be"),
        (lambda: train_judge(None, 2), "work_dir must be the path"),
        *((lambda n=n: measure_judge(TemplateJudge(), n, 0), "number must be") for n in (0, -1, "1", 10**12)),
        (lambda: measure_judge("judge", 1, 0), "detector must be a judge"),
        (lambda: measure_judge(TemplateJudge(), 1, None), "seed must be"),
    ],
)
def test_what_no_judge_can_do_is_said_in_a_sentence(call, says):
    with pytest.raises(ValueError, match=says):
        call()


# --- questions and training ---


def test_questions_are_true_or_false_as_ordered():
    rng = np.random.default_rng(0)
    asked = dict.fromkeys(TAGS, 0)
    for scene in random_scenes(60):
        for tag in TAGS:
            for true in (True, False):
                question = random_question(scene, tag, true, rng)
                if question is not None:
                    asked[tag] += 1
                    assert question.tag == tag
                    assert evaluate(question, scene_detections(scene)).correct is true, (scene, question)
    assert min(asked.values()) > 30, asked


def test_a_blind_judge_is_right_on_false_prompts_only():
    class Blind:
        def detect(self, images):
            return [[] for _ in images]

    right = measure_judge(Blind(), number=100, seed=0)
    assert right["single_object"] == 0.5 and right["color_attr"] == 0.5


def test_lessons_agree_with_the_other_judge(template):
    """Cells that a lesson calls whole and of one colour are so for the templates, which share nothing with it."""
    rng = np.random.default_rng(0)
    lessons = draw_lessons(200, rng)
    found = template.detect(lessons.images)
    agreed, broken = [], 0
    for i, detections in enumerate(found):
        classes, colors, boxes = (part[i].numpy() for part in (lessons.classes, lessons.colors, lessons.boxes))
        seen = {(d.name, d.box): d.color or "none" for d in detections if d.score > 0.5}
        assert classes.min() >= 0 and classes.max() <= 1
        for name, row, column in np.argwhere(classes == 1):
            x, y = np.array([column, row]) * 8 + 4
            box = tuple(np.round(boxes[:, row, column] * 8 + [x, y, x, y]))
            color = colors[row, column]
            if color >= 0:
                agreed.append(seen.get((world().objects[name], box)) == [*world().colors, "none"][color])
        broken += int(((classes > 0) & (classes < 1)).sum())
    assert len(agreed) > 200 and np.mean(agreed) > 0.98
    assert broken > 20  # doubt is taught too


def test_training_learns_rebuilds_half_and_saves_what_it_returns(tmp_path, monkeypatch):
    monkeypatch.setattr(judge_training, "BATCH", 16)
    rebuilt = []

    def rebuild(images):
        rebuilt.append(len(images))
        return images

    _, log = train_judge(tmp_path, steps=12, seed=1, rebuild=rebuild)
    assert rebuilt == [16] * 13  # half of the batch, with as many twins; the first one names the run, too
    finished, _ = train_judge(tmp_path, steps=12, seed=1, rebuild=rebuild)  # from its checkpoint: nothing is left to do
    assert len(rebuilt) == 14
    again = LearnedJudge.from_pretrained(tmp_path)
    assert not again.training and again.dtype == torch.float32
    for name, weight in finished.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name
    _, first = train_judge(tmp_path / "start", steps=1, seed=1)
    assert log.losses[0] < first.losses[0]


def test_an_untrained_judge_sees_nothing():
    torch.manual_seed(0)
    model = LearnedJudge(LearnedJudgeConfig(width=16, blocks=1)).eval()
    assert [sure(found) for found in model.detect(render(random_scenes(3)))] == [[]] * 3
    assert not judge(model, render(random_scenes(1)), [single_object("cat")]).any()


def test_no_images_hold_nothing():
    none = torch.zeros(0, 3, 64, 64, dtype=torch.uint8)
    assert all(judge.detect(none) == [] for judge in judge_training.load_judges().values())
