"""Two processes under `accelerate launch` make what one makes: images, labels, opinions, and an aligned generator."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cotgen_lite.generate.pipeline import Generator

JOB = """
import os, sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from cotgen_lite.verify.verifier import load_verifier
from cotgen_lite.align.dpo import DpoTraining, Pair, train_dpo
from cotgen_lite.hub import model_path
from cotgen_lite.generate.pipeline import Generator
from cotgen_lite.lite.judges import TemplateJudge
from cotgen_lite.verify.pool_search import ask_of_paths
from cotgen_lite.prompts import lite_prompts
from cotgen_lite.verify.training_data import generate_labelled
from cotgen_lite.generate.sampling import SamplingSettings

torch.set_num_threads(1)
folder, out = Path(sys.argv[1]), Path(sys.argv[2])
generator = Generator.from_pretrained(
    folder, model_path("words"), model_path("tokenizer"), SamplingSettings(1.5, steps=3), "cpu"
)
prompts = lite_prompts("train")[::400]
pool, _ = generate_labelled(generator, TemplateJudge(), prompts, 2, 0, out / "images")
guesses = pool.tokens[:10, :, None].expand(-1, -1, 3, -1).contiguous()
opinions = ask_of_paths(generator, load_verifier("parm"), guesses, prompts[:10], out / "opinions")
pairs = [Pair(prompt, *pool.tokens[row]) for row, prompt in enumerate(prompts[:16])]
settings = DpoTraining(1e-3, epochs=1, batch_size=8 // int(os.environ.get("WORLD_SIZE", 1)), masks=2)
aligned, _ = train_dpo(generator, pairs, settings, out / "dpo")
made = {"tokens": pool.tokens, "labels": torch.from_numpy(pool.correct["template"])}
made |= {name: torch.from_numpy(getattr(opinions, name)).contiguous() for name in ("clarity", "selection")}
made["weights"] = torch.cat([weights.flatten() for weights in aligned.model.state_dict().values()])
save_file(made, out / f"made-{os.environ.get('RANK', 0)}.safetensors")
"""


@pytest.mark.slow
def test_two_processes_make_what_one_makes(tmp_path: Path, toy_generator: Generator) -> None:
    toy_generator.model.save_pretrained(tmp_path / "model")
    (tmp_path / "job.py").write_text(JOB, encoding="utf-8")
    launched = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launched += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    for name, command in (("one", [sys.executable]), ("two", launched)):
        (tmp_path / name).mkdir()
        job = [*command, str(tmp_path / "job.py"), str(tmp_path / "model"), str(tmp_path / name)]
        setting = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
        done = subprocess.run(job, env=setting, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stderr[-3000:]
    one, *two = (
        load_file(tmp_path / path)
        for path in ("one/made-0.safetensors", "two/made-0.safetensors", "two/made-1.safetensors")
    )
    for made in two:
        for key in ("tokens", "labels", "clarity", "selection"):
            assert torch.equal(torch.nan_to_num(made[key].float()), torch.nan_to_num(one[key].float())), key
    before = torch.cat([weights.flatten() for weights in toy_generator.model.state_dict().values()])
    assert torch.equal(two[0]["weights"], two[1]["weights"]) and not torch.equal(two[0]["weights"], before)
    shards = [sorted(p.name for p in (tmp_path / name / "images").rglob("shard-*")) for name in ("one", "two")]
    assert shards[0] == shards[1] and len(shards[0]) > 4
