"""The paper's ranking data at full scale: hot images by Show-o, labelled by GenEval's detector, as one pool.

`python -m cotgen_lite.full_scale.data --out full` makes it, under `accelerate launch` with as many GPUs as there are;
an interrupted run goes on where it was. `--estimate` says beforehand how long it would take. See
notebooks/FULL_SCALE.md.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from cotgen_lite.full_scale.mask2former import Mask2FormerDetector, self_check
from cotgen_lite.full_scale.models import COCO
from cotgen_lite.full_scale.prompts import full_prompts, geneval_meanings
from cotgen_lite.generate.pipeline import Generator
from cotgen_lite.generate.sampling import SamplingSettings
from cotgen_lite.geneval import Detector
from cotgen_lite.hub import write_json
from cotgen_lite.inputs import folder, one_of, whole
from cotgen_lite.pools import rank_and_processes, save_pool
from cotgen_lite.prompts import GENEVAL, Prompt, each_prompt, refuse_held_out
from cotgen_lite.verify.training_data import HOT_TEMPERATURE, POOL_FILE, generate_labelled

SETTINGS = SamplingSettings(guidance_scale=1.75)  # the paper's, but for the temperature, which is `HOT_TEMPERATURE`
IMAGES_A_PROMPT = 116  # 2,485 prompts x 116 = 288,260 images; the paper has 288 thousand
MOST_IMAGES = 10_000  # of a prompt
GPUS = 8  # of the estimate
BATCH = 20  # images that `Generator.draw` draws at once, whose first step is one pass

# What the released networks take, which the tests count again. Weights that every place is multiplied by, in Show-o's
# 24 layers; places of an image, [soi] and [eoi] among them; FLOPs of MAGVIT-v2's decoder for one image of 256 px, of
# Mask2Former (Swin-S) for one of 800 px, of CLIP (ViT-L/14) for one object.
SHOWO_WEIGHTS, PLACES = 1_208_506_368, 258
DECODE, DETECT, READ_COLOR = 300.9e9, 441.8e9, 162.0e9
OBJECTS = 2  # in an image, of which a colour is read: a guess
# Dense TFLOP/s that the vendor states, in 16 bits (Show-o's) and in float32 (everything else's), and the share of them
# that is reached: a guess.
CARDS = {"T4": (65, 8.1), "L4": (121, 30.3), "A100": (312, 19.5), "H100": (989, 67)}
SHARE = 0.3
# Bytes of an image on disk: in a shard its codes and each code's step, and its label; in the pool 13 bits a code.
IMAGE_BYTES = 256 * (2 + 1) + 1 + 256 * 13 // 8 + 1


def drawing_places(n: int, steps: int) -> int:
    """Sequence places that n images of a prompt take, guided, its words left out: two rows of all places at each step.

    At the first step the images of a batch are alike, and share them.
    """
    n, steps = whole(n, "n", 1), whole(steps, "steps", 1)
    return 2 * PLACES * (-(-n // BATCH) + n * (steps - 1))


def seconds_an_image(n: int, card: str) -> float:
    """Of one of `CARDS`, n images a prompt; computed, not measured: FLOPs at `SHARE` of what its vendor states.

    Show-o takes 2 FLOPs for each weight and place; attention (2% more), words, processors and disks are left out.
    """
    half, single = (SHARE * 1e12 * peak for peak in CARDS[one_of(card, "card", CARDS)])
    drawing = 2 * SHOWO_WEIGHTS * drawing_places(n, SETTINGS.steps) / n / half
    return drawing + (DECODE + DETECT + OBJECTS * READ_COLOR) / single


def judgeable(prompts: Sequence[Prompt]) -> tuple[Prompt, ...]:
    """The prompts all of whose objects GenEval's detector knows: of any other it would call every image wrong."""
    every = each_prompt(prompts)
    return tuple(prompt for prompt in every if all(item.name in GENEVAL.objects for item in prompt.include))


def make_full_data(
    generator: Generator, detector: Detector, prompts: Sequence[Prompt], n: int, seed: int, out: Path
) -> float:
    """Draw n hot images of each prompt, label them, and write them to `out` / "pool.safetensors", with an about.json.

    Work is kept in `out` / "shards": resumed, and shared out under `accelerate launch` (`pools.in_shards`). Returns the
    seconds of all processes and earlier calls together. ValueError if a prompt asks what GenEval tests.
    """
    n, seed = whole(n, "n", 1, MOST_IMAGES), whole(seed, "seed")
    out = folder(out, "out")
    refuse_held_out(each_prompt(prompts), geneval_meanings())
    pool, seconds = generate_labelled(generator, detector, prompts, n, seed, out / "shards")
    if rank_and_processes()[0] == 0:
        save_pool(pool, out / POOL_FILE)
        about = {"prompts": len(prompts), "images_a_prompt": n, "seed": seed, "temperature": HOT_TEMPERATURE}
        about |= {"guidance_scale": generator.settings.guidance_scale, "steps": generator.settings.steps}
        about |= {"right": round(float(pool.correct["template"].mean()), 4), "gpu_seconds": round(seconds)}
        write_json(out / "about.json", about)
    return seconds


def table() -> str:
    """The estimate for the whole job on `GPUS` of each card, as Markdown."""
    head = f"| GPU | TFLOP/s, 16 bits / float32 | images/s of one | hours on {GPUS} | GPU hours |"
    rows, images = [head, "|---|---|---|---|---|"], len(judgeable(full_prompts())) * IMAGES_A_PROMPT
    for card, (half, single) in CARDS.items():
        seconds = seconds_an_image(IMAGES_A_PROMPT, card)
        hours = images * seconds / 3600
        rows.append(f"| {card} | {half} / {single:g} | {1 / seconds:.2g} | {hours / GPUS:.1f} | {hours:.0f} |")
    return "\n".join(rows)


def main(arguments: list[str] | None = None) -> None:
    """Draw and label the ranking data of the full scale; under `accelerate launch`, on several GPUs."""
    program, style = "python -m cotgen_lite.full_scale.data", argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(program, description=main.__doc__, formatter_class=style)
    add = parser.add_argument
    add("--generator", default="showlab/show-o", help="Show-o: folder or hub name")
    add("--words", default="microsoft/phi-1_5", help="its words")
    add("--pixels", default="showlab/magvitv2", help="MAGVIT-v2")
    add("--detector", default=COCO, help="Mask2Former")
    add("--clip", default="openai/clip-vit-large-patch14", help="reads colours")
    add("--images-a-prompt", type=int, default=IMAGES_A_PROMPT, metavar="K", help="images of each prompt")
    add("--prompts", type=int, metavar="N", help="only the first N prompts, as a trial")
    add("--seed", type=int, default=0, help="of the images")
    add("--out", type=Path, default=Path("full"), help="where the pool goes")
    add("--dtype", choices=("float32", "bfloat16", "float16"), default="bfloat16", help="Show-o's; all else is float32")
    add("--estimate", action="store_true", help="only say what the whole job (with defaults) would take, as computed")
    options = parser.parse_args(arguments)
    if options.estimate:
        print(table())
        return
    if not 1 <= options.images_a_prompt <= MOST_IMAGES or (options.prompts is not None and options.prompts < 1):
        parser.error(f"--images-a-prompt must be from 1 to {MOST_IMAGES}, and --prompts 1 or more")
    device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    try:
        rank, _ = rank_and_processes()
        detector = Mask2FormerDetector.from_pretrained(options.detector, options.clip, device)
        self_check(detector)  # before hours of drawing
        parts, dtype = (options.generator, options.words, options.pixels), getattr(torch, options.dtype)
        generator = Generator.from_pretrained(*parts, SETTINGS, device, dtype)
    except (OSError, RuntimeError, ValueError) as error:
        parser.error(str(error))
    every = judgeable(full_prompts())
    chosen = every[: options.prompts]
    seconds = make_full_data(generator, detector, chosen, options.images_a_prompt, options.seed, options.out)
    if rank == 0:
        images, whole = (len(prompts) * options.images_a_prompt for prompts in (chosen, every))
        hours = f"{whole * seconds / images / 3600:.3g} hours of one process, shared by as many as are started"
        print(f"{options.out / POOL_FILE}: {images} images of {len(chosen)} prompts, {images / seconds:.3g} a second")
        print(f"all {len(every)} prompts at this rate: {hours}; {whole * IMAGE_BYTES / 1e6:.0f} MB of disk")


if __name__ == "__main__":
    main()
