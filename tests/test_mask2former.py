"""GenEval's own detector: names, masks, boxes, colours, results and self-check, on tiny models with random weights."""

import json
import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTokenizer,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessorPil,
    SwinConfig,
)

from cotgen_lite import prompts as P
from cotgen_lite.full_scale.mask2former import (
    DRAWN,
    GROUND,
    INK,
    Mask2FormerDetector,
    draw_pictures,
    geneval_names,
    grey_crop,
    mask_box,
    read_instances,
    self_check,
    write_geneval_results,
)
from cotgen_lite.geneval import Detection, Finding, evaluate, judge
from cotgen_lite.prompts import GENEVAL, Prompt, Requirement, from_record

RENAMED = {"computer mouse": "mouse", "tv remote": "remote", "computer keyboard": "keyboard"}
COCO = [RENAMED.get(name, name) for name in GENEVAL.objects]
HUB = {"motorcycle": "motorbike", "airplane": "aeroplane", "couch": "sofa", "tv": "tvmonitor"} | {
    "potted plant": "pottedplant",
    "dining table": "diningtable",
}  # how the hub's label file for COCO detectors writes six of them
SMALL = {"input_size": (64, 96), "batch_size": 2}


def save_detector(folder, labels):
    """A tiny Mask2Former of the hub's layout, its training loss included; returns transformers' own model."""
    backbone = SwinConfig(
        image_size=32,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 1, 1],
        window_size=2,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = Mask2FormerConfig(
        backbone_config=backbone,
        feature_size=32,  # the fewest channels: group norms have 32 groups
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=16,
        dim_feedforward=16,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        num_queries=12,
        id2label=dict(enumerate(labels)),
        label2id={label: i for i, label in enumerate(labels)},
    )
    torch.manual_seed(0)
    model = Mask2FormerForUniversalSegmentation(config).eval()
    model.class_predictor.weight.data *= 25  # some classes are sure, some nearly
    model.save_pretrained(folder)
    Mask2FormerImageProcessorPil(size={"height": 384, "width": 384}).save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    kept = {key: value for key, value in weights.items() if "swin.layernorm" not in key}  # nor does the hub's hold it
    assert "criterion.empty_weight" in kept and len(kept) < len(weights)
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    return model


def save_clip(folder):
    letters = "abcdefghijklmnopqrstuvwxyz-"
    pieces = ["<|startoftext|>", *letters, *(letter + "</w>" for letter in letters), "<|endoftext|>"]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    CLIPTokenizer(vocab=vocabulary, merges=[]).save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}).save_pretrained(folder)
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {"bos_token_id": 0, "eos_token_id": len(pieces) - 1, "pad_token_id": len(pieces) - 1}
    config = CLIPConfig(
        text_config={**shape, **ends, "vocab_size": len(pieces)},
        vision_config={**shape, "image_size": 16, "patch_size": 4},
        projection_dim=8,
    )
    torch.manual_seed(4)
    model = CLIPModel(config)
    for weights in model.parameters():
        weights.data *= 8  # freshly made, it sees next to nothing
    model.save_pretrained(folder)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folders of a detector and of a CLIP, and the detector as transformers itself made it."""
    root = tmp_path_factory.mktemp("models")
    (root / "detector").mkdir()
    whole = save_detector(root / "detector", [HUB.get(name, name) for name in COCO])
    save_clip(root / "clip")
    return root / "detector", root / "clip", whole


@pytest.fixture(scope="module")
def detector(saved):
    return Mask2FormerDetector.from_pretrained(saved[0], saved[1], device="cpu", **SMALL)


@pytest.fixture(scope="module")
def images():
    return torch.randint(0, 256, (5, 3, 40, 48), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


# --- names ---


def test_geneval_renames_three_of_cocos_80_classes():
    names = geneval_names(dict(enumerate(COCO)))
    assert names == GENEVAL.objects and len(set(names)) == 80
    assert {name: coco for name, coco in zip(names, COCO, strict=True) if name != coco} == RENAMED


def test_names_follow_the_models_labels_however_spelt_and_ordered():
    labels = [HUB.get(name, name) for name in COCO][::-1]
    assert sum(label not in COCO for label in labels) == 6
    assert geneval_names(dict(enumerate(labels))) == GENEVAL.objects[::-1]
    assert geneval_names(dict(enumerate(GENEVAL.objects))) == GENEVAL.objects


@pytest.mark.parametrize(
    "labels",
    [
        COCO[:79],
        [*COCO, "banner"],
        [*COCO[:79], "LABEL_79"],
        [*COCO[:79], COCO[0]],
        [],
    ],
)
def test_other_class_lists_are_refused(labels):
    with pytest.raises(ValueError, match=f"{len(labels)} classes are not the 80 of COCO's instances.*load a"):
        geneval_names(dict(enumerate(labels)))


# --- from logits to instances ---


def stretch(grid, height, width):
    """Bilinear interpolation between the centres of pixels, one at a time."""
    out = np.empty((height, width))
    for i, j in np.ndindex(height, width):
        y = np.clip((i + 0.5) * grid.shape[0] / height - 0.5, 0, None)
        x = np.clip((j + 0.5) * grid.shape[1] / width - 0.5, 0, None)
        y0, x0 = int(y), int(x)
        y1, x1 = min(y0 + 1, grid.shape[0] - 1), min(x0 + 1, grid.shape[1] - 1)
        top = grid[y0, x0] * (1 - x % 1) + grid[y0, x1] * (x % 1)
        low = grid[y1, x0] * (1 - x % 1) + grid[y1, x1] * (x % 1)
        out[i, j] = top * (1 - y % 1) + low * (y % 1)
    return out


def plain_instances(classes, masks, input_size, image_size, lowest):
    """(score, class, mask) of each instance, by loops over all pairs of a query and a class."""
    pairs, whole = [], [stretch(stretch(mask, *input_size), *image_size) for mask in masks]
    for query, logits in enumerate(classes):
        shares = [math.exp(value) for value in logits]
        pairs += [(share / sum(shares), query, label) for label, share in enumerate(shares[:-1])]
    found = []
    for likely, query, label in sorted(pairs, reverse=True)[:100]:
        values = [1 / (1 + math.exp(-value)) for value in whole[query].ravel() if value > 0]
        score = likely * sum(values) / len(values) if values else 0.0
        if score > lowest:
            found.append((score, label, whole[query] > 0))
    return sorted(found, key=lambda item: -item[0])


def test_instances_equal_those_of_plain_loops():
    rng = np.random.default_rng(0)
    classes, masks = rng.normal(0, 3, (4, 31)), rng.normal(0, 2, (4, 5, 4))  # 120 pairs, of which 100 are looked at
    for lowest in (0.05, 0.001, 0.0):
        expected = plain_instances(classes, masks, (10, 8), (9, 11), lowest)
        labels, scores, inside = read_instances(
            torch.from_numpy(classes), torch.from_numpy(masks), (10, 8), (9, 11), lowest
        )
        assert labels == [label for _, label, _ in expected]
        np.testing.assert_allclose(scores, [score for score, _, _ in expected], rtol=1e-4)
        assert inside.dtype == torch.bool
        np.testing.assert_array_equal(inside.numpy(), [mask for _, _, mask in expected])
    assert len(expected) == 100


def test_overlapping_masks_and_second_classes_all_stay():
    classes = torch.full((3, 5), -9.0)
    classes[0, 2] = classes[1, 2] = 9.0  # the same class, on the same mask
    classes[2, 0], classes[2, 1] = 1.5, 1.0  # one mask of two classes, as well on top of them
    labels, scores, inside = read_instances(classes, torch.full((3, 4, 4), 9.0), (16, 16), (32, 32))
    assert labels == [2, 2, 0, 1]
    assert scores == pytest.approx([1, 1, 1 / (1 + math.exp(-0.5)), 1 / (1 + math.exp(0.5))], abs=1e-3)
    assert inside.shape == (4, 32, 32) and inside.all()


def test_empty_masks_and_unlikely_classes_are_no_instances():
    classes = torch.zeros(2, 3)
    classes[:, 0] = 9.0
    masks = torch.tensor([-1.0, 1.0])[:, None, None].expand(2, 4, 4)
    labels, scores, _ = read_instances(classes, masks, (8, 8), (8, 8))
    assert labels == [0] and scores == [pytest.approx(1 / (1 + math.exp(-1)), abs=1e-3)]
    classes[:, 2] = 99.0  # surely nothing
    labels, scores, inside = read_instances(classes, masks, (8, 8), (8, 8))
    assert (labels, scores, inside.shape) == ([], [], (0, 8, 8))


# --- boxes and crops ---


def test_boxes_are_tight():
    rng = np.random.default_rng(0)
    for share in (0.01, 0.05, 0.5):
        for _ in range(20):
            mask = rng.random((7, 12)) < share
            mask[rng.integers(7), rng.integers(12)] = True
            places = [(x, y) for y in range(7) for x in range(12) if mask[y, x]]
            xs, ys = zip(*places, strict=True)
            assert mask_box(torch.from_numpy(mask)) == (min(xs), min(ys), max(xs) + 1, max(ys) + 1)


def test_a_crop_shows_the_object_alone_on_999():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
    mask = np.zeros((20, 30), dtype=bool)
    mask[4:9, 11:25] = rng.random((5, 14)) < 0.5
    mask[4, 11] = mask[8, 24] = True
    crop = np.asarray(grey_crop(Image.fromarray(image), torch.from_numpy(mask)))
    assert crop.shape == (5, 14, 3)
    for y, x in np.ndindex(5, 14):
        assert tuple(crop[y, x]) == (tuple(image[4 + y, 11 + x]) if mask[4 + y, 11 + x] else (153, 153, 153))


# --- loading ---


def test_it_computes_what_transformers_own_model_does(detector, saved):
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, theirs = detector.model(pixel_values=pixels), saved[2](pixel_values=pixels)
    assert torch.equal(ours.class_queries_logits, theirs.class_queries_logits)
    assert torch.equal(ours.masks_queries_logits, theirs.masks_queries_logits)
    assert not detector.model.training and not detector.clip.training


def test_images_go_in_as_in_geneval_whatever_the_checkpoint_says(saved):
    detector = Mask2FormerDetector.from_pretrained(saved[0], saved[1], device="cpu")
    (pixels,) = detector.processor(Image.new("RGB", (512, 512), (255, 0, 51)), return_tensors="pt")["pixel_values"]
    assert pixels.shape == (3, 800, 800)
    mean, spread = (torch.tensor(values) for values in ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)))
    torch.testing.assert_close(pixels[:, 400, 400], (torch.tensor([255.0, 0, 51]) - mean) / spread)


def test_a_detector_of_other_classes_is_not_loaded(saved, tmp_path):
    config = json.loads((saved[0] / "config.json").read_text())
    config["id2label"]["79"] = "banner"
    (tmp_path / "config.json").write_text(json.dumps(config))  # no weights: it is refused before they are looked for
    with pytest.raises(ValueError, match="unknown: banner"):
        Mask2FormerDetector.from_pretrained(tmp_path, saved[1], device="cpu")


@pytest.mark.parametrize(("part", "key"), [(0, "class_predictor.weight"), (1, "visual_projection.weight")])
def test_missing_weights_are_refused_not_drawn(saved, tmp_path, part, key):
    for file in saved[part].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(saved[part] / "model.safetensors")
    del weights[key]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    folders = [tmp_path if i == part else saved[i] for i in (0, 1)]
    with pytest.raises(ValueError, match=f"lacks 1 weights of .*{key}"):
        Mask2FormerDetector.from_pretrained(*folders, device="cpu")


# --- detection ---


def test_detections_are_the_models_instances(detector, saved, images):
    found = detector.detect(images)
    assert len(found) == 5 and sum(map(len, found)) > 10
    for image, detections in zip(images, found, strict=True):
        pixels = detector.processor(Image.fromarray(image.permute(1, 2, 0).numpy()), return_tensors="pt")
        assert pixels["pixel_values"].shape == (1, 3, 64, 96)  # 64 x 77, and on to a multiple of 32
        with torch.no_grad():
            out = saved[2](pixel_values=pixels["pixel_values"])
        labels, scores, masks = read_instances(
            out.class_queries_logits[0], out.masks_queries_logits[0], (64, 96), (40, 48)
        )
        assert [d.name for d in detections] == [GENEVAL.objects[label] for label in labels]
        assert [d.box for d in detections] == [mask_box(mask) for mask in masks]
        np.testing.assert_allclose([d.score for d in detections], scores, atol=1e-4)
        assert scores == sorted(scores, reverse=True) and min(scores) > 0.05


def test_colors_are_read_above_the_threshold_only(detector, images):
    found = [d for detections in detector.detect(images) for d in detections]
    assert {d.score > 0.3 for d in found} == {True, False}
    assert all((d.color in GENEVAL.colors) == (d.score > 0.3) for d in found)
    for threshold in (0.0, 1.0):
        found = replace(detector, color_above=threshold).detect(images[:1])[0]
        assert found and all((d.color is None) == (threshold == 1) for d in found)


def test_detections_do_not_depend_on_the_batch(detector, images):
    alone = replace(detector, batch_size=1).detect(images)
    together = replace(detector, batch_size=5).detect(images)
    assert [[(d.name, d.box, d.color) for d in found] for found in alone] == [
        [(d.name, d.box, d.color) for d in found] for found in together
    ]
    assert detector.detect(images[:0]) == []


def test_it_judges_as_any_detector(detector, images):
    first = detector.detect(images[:1])[0][0]
    assert judge(detector, images[:1], [P.single_object(first.name, GENEVAL)]).tolist() == [first.score > 0.3]


@pytest.mark.parametrize(
    "wrong", [torch.zeros(1, 3, 8, 8), torch.zeros(3, 8, 8).byte(), torch.zeros(1, 1, 8, 8).byte()]
)
def test_wrong_images_are_refused(detector, wrong):
    with pytest.raises(ValueError, match="uint8 tensor of shape"):
        detector.detect(wrong)


# --- colours ---


def plain_color(detector, crop, name):
    """The likeliest colour of one crop, each text alone and without padding."""

    def unit(vector):
        return vector / vector.norm()

    with torch.no_grad():
        pixels = detector.clip_processor(crop, return_tensors="pt")["pixel_values"]
        look = unit(detector.clip.get_image_features(pixel_values=pixels).pooler_output[0])
        likeness = {}
        for color in ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white"):
            texts = (
                f"a photo of a {color} {name}",
                f"a photo of a {color}-colored {name}",
                f"a photo of a {color} object",
            )
            tokens = [detector.tokenizer(text, return_tensors="pt") for text in texts]
            words = [unit(detector.clip.get_text_features(**ids).pooler_output[0]) for ids in tokens]
            likeness[color] = float(unit(sum(words) / 3) @ look)
    return max(likeness, key=likeness.get)


def test_colors_equal_those_of_plain_loops(detector):
    rng = np.random.default_rng(0)
    names = ["cat", "computer mouse", "cat"]
    crops = [Image.fromarray(rng.integers(0, 256, (9 + 9 * i, 14, 3), dtype=np.uint8)) for i in range(3)]
    colors = detector.read_colors(crops, names)
    assert colors == [plain_color(detector, crop, name) for crop, name in zip(crops, names, strict=True)]
    assert len(set(colors)) > 1
    assert detector.read_colors([], []) == []


# --- results ---


def seen(name, score, x=0.0, color="red"):
    return Detection(name, score, (x, 0.0, x + 10, 20.0), color)


def test_results_are_geneval_lines(tmp_path):
    path = tmp_path / "results" / "geneval.jsonl"
    prompts = [P.color_attr("cat", "red", "tv", "pink", GENEVAL), P.counting("cat", 2, GENEVAL)]
    found = [[seen("tv", 0.5), seen("cat", 0.4), seen("cat", 0.9, 30), seen("dog", 0.3)]]
    found += [[seen("cat", 0.95), seen("cat", 0.9, 30), seen("cat", 0.99, 60)]]
    write_geneval_results(path, ["00000/samples/0000.png", "00001/samples/0000.png"], prompts, found)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    keys = ["filename", "tag", "prompt", "correct", "reason", "metadata", "details"]
    assert [list(row) for row in rows] == [keys, keys]
    assert [from_record(json.loads(row["metadata"])) for row in rows] == prompts
    assert [(row["tag"], row["prompt"]) for row in rows] == [(prompt.tag, prompt.text) for prompt in prompts]
    assert [row["filename"] for row in rows] == ["00000/samples/0000.png", "00001/samples/0000.png"]
    assert [row["correct"] for row in rows] == [False, True]
    assert rows[0]["reason"] == str(Finding("color", "tv", "pink", ("red",))) and rows[1]["reason"] == ""
    # By GenEval's order of classes, likeliest first, above the tag's threshold.
    cats, tv = [[30.0, 0.0, 40.0, 20.0, 0.9], [0.0, 0.0, 10.0, 20.0, 0.4]], [[0.0, 0.0, 10.0, 20.0, 0.5]]
    assert list(json.loads(rows[0]["details"]).items()) == [("cat", cats), ("tv", tv)]
    sure = [[60.0, 0.0, 70.0, 20.0, 0.99], [0.0, 0.0, 10.0, 20.0, 0.95]]
    assert json.loads(rows[1]["details"]) == {"cat": sure}
    assert [file.name for file in path.parent.iterdir()] == ["geneval.jsonl"]


def test_results_hold_sixteen_of_a_class_as_the_rules_do(tmp_path):
    crowd = [seen("cat", 0.5 + i / 100) for i in range(20)]
    prompt = Prompt("a photo of 17 cats", "single_object", (Requirement("cat", 17),))
    write_geneval_results(tmp_path / "r.jsonl", ["0.png"], [prompt], [crowd])
    (row,) = map(json.loads, (tmp_path / "r.jsonl").read_text().splitlines())
    (cats,) = json.loads(row["details"]).values()
    assert len(cats) == 16 and [cat[4] for cat in cats] == sorted((d.score for d in crowd), reverse=True)[:16]
    assert row["reason"] == str(evaluate(prompt, crowd).reasons[0]) and not row["correct"]


def test_results_keep_geneval_s_order_and_threshold(tmp_path):
    edge = float(np.float32(0.3))  # which the original, in float32, does not let pass
    found = [seen("cat", 0.5), seen("cat", 0.5, 30), seen("cat", edge, 60), seen("cat", 0.4, 90)]
    write_geneval_results(tmp_path / "r.jsonl", ["0.png"], [P.single_object("cat", GENEVAL)], [found])
    (row,) = map(json.loads, (tmp_path / "r.jsonl").read_text().splitlines())
    (cats,) = json.loads(row["details"]).values()
    assert [cat[0] for cat in cats] == [30, 0, 90]  # of equal scores the last one first


CAT, ONE = Detection("cat", 0.5, (0, 0, 1, 1)), P.single_object("cat", GENEVAL)
SURE, MASKS = torch.eye(81)[:2] * 9, torch.ones(2, 4, 4)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda path: write_geneval_results(path, None, None, None), "prompts must be"),
        (lambda path: write_geneval_results(path, ["a"], ["a cat"], [[CAT]]), "Prompt"),
        (lambda path: write_geneval_results(path, [3], [ONE], [[CAT]]), "filenames must be a text"),
        (lambda path: write_geneval_results(path, ["a"], [ONE], [["cat"]]), "Detections"),
        (lambda path: write_geneval_results(None, ["a"], [ONE], [[CAT]]), "path must be"),
        (lambda path: write_geneval_results(path, ["a"], [ONE], [[replace(CAT, name="unicorn")]]), "'unicorn'"),
        (lambda path: read_instances(SURE * math.nan, MASKS, (8, 8), (8, 8)), "logits of classes must be finite"),
        (lambda path: read_instances(SURE, MASKS / 0, (8, 8), (8, 8)), "logits of masks must be finite"),
        (lambda path: read_instances(SURE, torch.ones(3, 4, 4), (8, 8), (8, 8)), "masks must have shape"),
        (lambda path: read_instances(SURE, MASKS, (0, 8), (8, 8)), "input_size must be"),
        (lambda path: read_instances(SURE, MASKS, (8, 8), "ab"), "image_size must be"),
        (lambda path: read_instances(SURE, MASKS, (8, 8), (8, 8), math.nan), "lowest must be"),
        (lambda path: mask_box(torch.zeros(3, 3, dtype=torch.bool)), "not empty"),
        (lambda path: grey_crop(None, torch.ones(3, 3, dtype=torch.bool)), "PIL"),
        (lambda path: geneval_names({0: None}), "id2label must be"),
        (lambda path: Mask2FormerDetector(None, None, None, None), "must be a Mask2Former"),
        (lambda path: self_check("detector"), "must be a detector"),
    ],
)
def test_wrong_values_are_one_clear_sentence(tmp_path, call, says):
    with pytest.raises(ValueError, match=says) as error:
        call(tmp_path / "r.jsonl")
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize(("option", "value"), [("batch_size", 0), ("color_above", math.nan), ("input_size", (64, 0))])
def test_a_detectors_settings_check_themselves(detector, option, value):
    with pytest.raises(ValueError, match=f"{option} must be"):
        replace(detector, **{option: value})


def test_unequal_lists_write_nothing(tmp_path):
    with pytest.raises(ValueError, match="2 files came with 1 prompts and the detections of 2 images"):
        write_geneval_results(tmp_path / "r.jsonl", ["0", "1"], [P.single_object("cat")], [[], []])
    assert not list(tmp_path.iterdir())


# --- self-check ---


once_drawn = cache(draw_pictures)


class Stub:
    """Finds in the self-check's pictures what it is told, plus something unsure everywhere."""

    def __init__(self, change=lambda i, detection: [detection]):
        self.change = change

    def detect(self, images):
        _, there = once_drawn()
        noise = Detection("kite", 0.2, (0.0, 0.0, 256.0, 256.0), "white")
        return [[noise, *self.change(i, there[i])] for i in range(len(images))]


class Eyes:
    """Knows names and boxes, but looks for the colour itself: the palette's that is nearest to most of the ink."""

    def __init__(self, bgr=False):
        self.bgr = bgr

    def detect(self, images):
        _, there = once_drawn()
        images = (images.flip(1) if self.bgr else images)[:, :, ::4, ::4]
        palette = torch.tensor([INK[color] for color in INK], dtype=torch.float32)
        ground = torch.tensor(GROUND, dtype=torch.float32)
        found = []
        for item, image in zip(there, images.float(), strict=True):
            ink = image.flatten(1).T
            ink = ink[(ink - ground).norm(dim=1) > 100]
            color = list(INK)[int(torch.cdist(ink, palette).argmin(dim=1).mode().values)]
            found.append([replace(item, color=color)])
        return found


def test_pictures_show_big_known_objects_off_centre():
    images, there = draw_pictures()
    assert images.shape == (12, 3, 256, 256) and images.dtype == torch.uint8
    assert [(item.name, item.color) for item in there] == list(DRAWN)
    for image, item in zip(images, there, strict=True):
        assert item.name in GENEVAL.objects and item.color in GENEVAL.colors
        x0, y0, x1, y1 = item.box
        assert y0 > 0 and x1 < 256 and min(x1 - x0, y1 - y0) > 60
        flat = (image == torch.tensor(GROUND, dtype=torch.uint8)[:, None, None]).all(dim=0)
        assert not flat[int(y0) : int(y1), int(x0) : int(x1)].all() and int((~flat).sum()) > 2000
        assert mask_box(~flat) == item.box
        assert (x0 + x1) / 2 > 150 and (y0 + y1) / 2 < 106


def test_self_check_passes_a_sound_detector():
    assert self_check(Stub()) == {"drawn": 12, "found": 12, "colored": 12}
    assert self_check(Eyes()) == {"drawn": 12, "found": 12, "colored": 12}
    # On the bounds: a third found, half of these in their colour; whatever else is seen does not matter.
    third = Stub(lambda i, d: [replace(d, color=d.color if i % 2 else None), seen("dog", 0.9)] if i < 4 else [])
    assert self_check(third) == {"drawn": 12, "found": 4, "colored": 2}


@pytest.mark.parametrize(
    ("change", "number"),
    [
        (lambda i, d: [], 0),
        (lambda i, d: [d] if i < 3 else [], 3),
        (lambda i, d: [replace(d, score=0.3)], 0),
        (lambda i, d: [replace(d, name="person")], 0),
        (lambda i, d: [replace(d, box=tuple(1.5 * edge for edge in d.box))], 0),
        (lambda i, d: [replace(d, box=(d.box[1], d.box[0], d.box[3], d.box[2]))], 0),
    ],
    ids=["blind", "nearly blind", "unsure", "wrong names", "boxes of 384 px", "swapped axes"],
)
def test_self_check_stops_where_too_little_is_found(change, number):
    with pytest.raises(RuntimeError, match=f"found {number} of 12 big drawn objects.*check that its weights"):
        self_check(Stub(change))


def test_self_check_stops_where_colors_are_wrong():
    with pytest.raises(RuntimeError, match=r"Of 12 drawn objects 5 got their colour, fewer than half \(blue bird as"):
        self_check(Stub(lambda i, d: [d if i in (0, 1, 2, 3, 11) else replace(d, color="white")]))
    with pytest.raises(RuntimeError, match=r"red car as blue.*RGB, not BGR"):
        self_check(Eyes(bgr=True))


def test_self_check_stops_at_random_weights(detector):
    with pytest.raises(RuntimeError, match="fewer than a third"):
        self_check(replace(detector, color_above=1.0, batch_size=12))
