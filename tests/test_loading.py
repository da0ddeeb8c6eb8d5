"""Models read from folders and hub names: every official name of weights, and one sentence for all that is amiss."""

import json
import pickle
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from cotgen_lite.full_scale import tiny_random_models as tiny
from cotgen_lite.full_scale.janus import JanusGenerator
from cotgen_lite.full_scale.mask2former import Mask2FormerDetector
from cotgen_lite.generate.autoregressive import AutoregressiveModel, AutoregressiveSettings
from cotgen_lite.generate.pipeline import Generator, load_generator
from cotgen_lite.generate.showo import Showo
from cotgen_lite.generate.vq import Magvit
from cotgen_lite.hub import model_path
from cotgen_lite.loading import WEIGHTS, chosen_device, load_tokenizer
from cotgen_lite.verify import verifier
from cotgen_lite.verify.verifier import Verifier

OFFICIAL = "pytorch_model.safetensors"
RUNS = AutoregressiveSettings(steps=16)
Json = dict[str, Any]


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return tiny.save_all(tmp_path_factory.mktemp("models"))


@pytest.fixture
def copies(paths: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a model's folder, to be damaged."""

    def copied(part: str) -> Path:
        (folder := tmp_path / part).mkdir()
        for file in paths[part].iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        return folder

    return copied


def rename(folder: Path, name: str) -> None:
    """Give a folder's one file of weights another of the official names: a pickle, or two shards and their index."""
    state = load_file(folder / OFFICIAL)
    (folder / OFFICIAL).unlink()
    stem, end = (name.removesuffix(".index.json")).split(".")

    def save(part: Json, to: str) -> None:
        torch.save(part, folder / to) if end == "bin" else save_file(part, folder / to, {"format": "pt"})

    if name.endswith(".json"):
        names = sorted(state)
        halves = {f"{stem}-{i}.{end}": names[i::2] for i in range(2)}
        for to, half in halves.items():
            save({one: state[one] for one in half}, to)
        where = {one: to for to, half in halves.items() for one in half}
        size = sum(value.nbytes for value in state.values())
        (folder / name).write_text(json.dumps({"metadata": {"total_size": size}, "weight_map": where}))
    else:
        save(state, name)


def into_cache(folder: Path, repository: str, cache: Path) -> None:
    """A folder as the hub's cache holds a repository."""
    place = cache / f"models--{repository.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs/main").write_text("0" * 40)
    (place / "snapshots").mkdir()
    folder.rename(place / "snapshots" / ("0" * 40))


@pytest.mark.parametrize("hub", [False, True], ids=["folder", "hub"])
@pytest.mark.parametrize("name", [*WEIGHTS])
@pytest.mark.parametrize("kind", [Showo, Magvit])
def test_weights_load_under_every_official_name(
    paths: dict[str, Path],
    copies: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: type[Showo | Magvit],
    name: str,
    hub: bool,
) -> None:
    part, place = kind.__name__.lower(), copies(kind.__name__.lower())
    if name != OFFICIAL:
        rename(place, name)
    path: str | Path = place
    if hub:
        path = f"showlab/{part}"
        into_cache(place, path, tmp_path / "hub")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    model, state = kind.from_pretrained(path), load_file(paths[part] / OFFICIAL)
    assert all(torch.equal(weights, state[one]) for one, weights in model.state_dict().items())
    model.save_pretrained(tmp_path / "again")
    assert "transformers_weights" not in (tmp_path / "again/config.json").read_text()
    assert kind.from_pretrained(tmp_path / "again")


def test_a_generator_loads_by_hub_names(
    paths: dict[str, Path], copies: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {"showo": "showlab/show-o", "words": "microsoft/phi-1_5", "magvit": "showlab/magvitv2"}
    for part, name in names.items():
        if part == "words":
            (paths[part] / "config.json").write_text('{"model_type": "phi"}')
        into_cache(copies(part), name, tmp_path / "hub")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    generator = Generator.from_pretrained(*names.values(), device="cpu")
    assert generator.image_tokenizer.config.image_size == 256
    assert generator("a cat", steps=1).images.shape == (1, 3, 256, 256)


class Planted:
    """What runs code where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_no_code_of_a_folder_runs(
    copies: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # as one who is asked would answer
    ran = tmp_path / "ran"
    code = f"from pathlib import Path\nPath({str(ran)!r}).touch()\nclass X: ...\n"
    loads: list[tuple[str, Callable[[Path], Any]]] = [
        ("showo", Showo.from_pretrained),
        ("magvit", Magvit.from_pretrained),
        ("words", load_tokenizer),
        ("onevision", lambda path: Verifier.from_pretrained(path, "cpu")),
        ("janus", lambda path: JanusGenerator.from_pretrained(path, RUNS, "cpu")),
    ]
    kinds = ("AutoConfig", "AutoTokenizer", "AutoProcessor", "AutoModel", "AutoModelForImageTextToText")
    for part, load in loads:
        folder = copies(part)
        (folder / "planted.py").write_text(code)
        for file in ("config.json", "tokenizer_config.json", "processor_config.json"):
            if (folder / file).exists():
                fields = json.loads((folder / file).read_text())
                fields["auto_map"] = dict.fromkeys(kinds, "planted.X")
                (folder / file).write_text(json.dumps(fields))
        with suppress(ValueError):
            load(folder)
        assert not ran.exists()
    bad = copies("showo-512")
    (bad / OFFICIAL).unlink()
    with (bad / "pytorch_model.bin").open("wb") as file:
        pickle.dump((Planted(ran), b"0" * 10**7), file)
    with pytest.raises(ValueError, match="No Show-o model can be read"):
        Showo.from_pretrained(bad)
    assert not ran.exists()


@pytest.mark.parametrize("shard", ["../outside.safetensors", "/tmp/outside.safetensors", "..\\outside.safetensors", 3])
@pytest.mark.parametrize(("kind", "settings"), [(Showo, {}), (Verifier, {}), (Verifier, {"bits": 8})])
def test_an_index_may_not_name_files_elsewhere(
    copies: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, kind: Any, settings: Json, shard: object
) -> None:
    monkeypatch.setattr(verifier, "is_bitsandbytes_available", lambda: True)
    folder = copies("showo" if kind is Showo else "onevision")
    for file in folder.glob("*.safetensors"):
        file.rename(folder.parent / "outside.safetensors")
    index = {"metadata": {"total_size": 10**9}, "weight_map": {"showo.lm_head.weight": shard}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"index\.json names .* no file of weights beside it"):
        kind.from_pretrained(folder, **settings)


def test_weights_that_are_rounded_have_any_official_name_and_the_size_that_the_config_asks_for(
    copies: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verifier, "is_bitsandbytes_available", lambda: True)
    monkeypatch.setattr(verifier, "_quantization", lambda *_: None)  # all but the rounding
    folder = copies("onevision")
    whole = Verifier.from_pretrained(folder, "cpu").model.state_dict()
    (folder / "model.safetensors").rename(folder / OFFICIAL)
    model = Verifier.from_pretrained(folder, "cpu", torch.bfloat16, bits=8).model
    assert model.dtype == torch.bfloat16 and not model.training and not hasattr(model.config, "transformers_weights")
    assert all(torch.equal(weights, whole[name].bfloat16()) for name, weights in model.state_dict().items())
    fields = json.loads((folder / "config.json").read_text())
    nested(fields, "intermediate_size")["intermediate_size"] *= 100
    (folder / "config.json").write_text(json.dumps(fields))
    with pytest.raises(ValueError, match=r"config\.json of .* asks for .* weights, but .* one of them is damaged"):
        Verifier.from_pretrained(folder, "cpu", bits=8)


@pytest.mark.parametrize("name", [name for name in WEIGHTS if ".bin" in name])
def test_a_flipped_bit_in_a_pickle_of_weights_is_seen(copies: Callable[[str], Path], name: str) -> None:
    folder = copies("magvit")
    state = load_file(folder / OFFICIAL)
    rename(folder, name)
    file = sorted(folder.glob("pytorch_model*.bin"))[-1]
    held = bytearray(file.read_bytes())
    values = max(torch.load(file, weights_only=True), key=lambda one: state[one].numel())
    held[held.index(state[values].numpy().tobytes()) + 2] ^= 1
    file.write_bytes(held)
    assert torch.load(file, weights_only=True)  # torch itself sees nothing
    with pytest.raises(ValueError, match=r"(the checksum of .* differs|Bad CRC)") as error:
        Magvit.from_pretrained(folder)
    assert str(folder) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("about", [{"metadata": {}}, {"metadata": {"total_size": 1e6}}])
def test_an_index_need_not_say_how_large_its_files_are(copies: Callable[[str], Path], about: dict) -> None:
    folder = copies("showo")
    names = list(load_file(folder / OFFICIAL))
    (folder / OFFICIAL).rename(folder / "one.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({**about, "weight_map": dict.fromkeys(names, "one.safetensors")}))
    assert Showo.from_pretrained(folder)
    (folder / "one.safetensors").unlink()
    with pytest.raises(ValueError, match=r"lacks one\.safetensors, which model\.safetensors\.index\.json names"):
        Showo.from_pretrained(folder)
    for damaged in (about, {"weight_map": {"a": "one.safetensors"}}):
        index.write_text(json.dumps(damaged))
        with pytest.raises(ValueError, match=r"is damaged .it lacks weight_map or metadata"):
            Showo.from_pretrained(folder)


LOADERS: dict[str, Callable[[Path], Any]] = {
    "showo": Showo.from_pretrained,
    "magvit": Magvit.from_pretrained,
    "onevision": lambda path: Verifier.from_pretrained(path, "cpu"),
    "janus": lambda path: JanusGenerator.from_pretrained(path, RUNS, "cpu"),
}


@pytest.mark.parametrize("loader", [*LOADERS, "sequential", "mask2former"])
@pytest.mark.parametrize("part", ["showo", "magvit", "onevision", "janus", "clip", "t5", "mask2former", "words"])
def test_other_models_folders_are_refused_before_weights(
    paths: dict[str, Path], monkeypatch: pytest.MonkeyPatch, loader: str, part: str
) -> None:
    more = {
        "sequential": AutoregressiveModel.from_pretrained,
        "mask2former": lambda path: Mask2FormerDetector.from_pretrained(path, path, "cpu"),
    }
    if loader == part or (loader, part) == ("onevision", "janus"):  # the latter reads images too
        return
    monkeypatch.setattr("transformers.modeling_utils.load_state_dict", None)
    with pytest.raises((ValueError, OSError), match=f"{part}.*(not of a|has no config)") as error:
        (LOADERS | more)[loader](paths[part])
    assert "\n" not in str(error.value)


def test_a_shipped_model_of_another_kind_is_refused() -> None:
    for name, kind in (("verifier", "llava"), ("sequential", "sequential"), ("tokenizer", "magvit")):
        with pytest.raises(ValueError, match=f"kind '{kind}', not of a Show-o model"):
            load_generator(name)
    with pytest.raises(ValueError, match="kind 'showo', not of a verifier"):
        Verifier.from_pretrained(model_path("generator"))


def nested(fields: Json, name: str) -> Json:
    """The innermost fields with this one."""
    inner = [nested(value, name) for value in fields.values() if isinstance(value, dict)]
    return next((one for one in inner if name in one), fields)


@pytest.mark.parametrize("part", LOADERS)
@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", "{}", '{"a": 1}', "[" * 99999, "\ufeff{}", "\x00"])
def test_a_config_that_is_none_is_named(copies: Callable[[str], Path], part: str, text: str) -> None:
    folder = copies(part)
    (folder / "config.json").write_text(text)
    with pytest.raises(ValueError, match=rf"{part}/config\.json is (damaged|without a model_type)") as error:
        LOADERS[part](folder)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


@pytest.mark.parametrize("value", [0, -1, 10**6, 10**12, 2.5, "32", None, [32], float("nan"), True])
@pytest.mark.parametrize(
    ("part", "field"),
    [
        ("showo", "hidden_size"),
        ("showo", "num_hidden_layers"),
        ("showo", "codebook_size"),
        ("showo", "num_vq_tokens"),
        ("magvit", "channels"),
        ("onevision", "hidden_size"),
        ("onevision", "num_hidden_layers"),
        ("janus", "num_hidden_layers"),
        ("janus", "num_embeddings"),
    ],
)
def test_a_config_with_impossible_sizes_is_one_clear_sentence(
    copies: Callable[[str], Path], part: str, field: str, value: object
) -> None:
    folder = copies(part)
    fields = json.loads((folder / "config.json").read_text())
    nested(fields, field)[field] = value
    (folder / "config.json").write_text(json.dumps(fields))
    with pytest.raises(ValueError, match=part) as error:
        LOADERS[part](folder)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


def test_our_own_config_states_all_sizes(tmp_path: Path) -> None:
    for name, load in (("generator", Showo), ("tokenizer", Magvit), ("sequential", AutoregressiveModel)):
        stated = json.loads((model_path(name) / "config.json").read_text())
        for field in load.config_class.__annotations__:  # type: ignore[attr-defined]
            (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in stated.items() if k != field}))
            with pytest.raises(ValueError, match=f"lacks {field}: build"):
                load.from_pretrained(tmp_path)


@pytest.mark.parametrize("text", ["", "{}", "{% for", "<image>", "{{ messages[0]['content'][1]['text'] }}"])
def test_a_chat_template_that_leaves_something_out_is_refused(copies: Callable[[str], Path], text: str) -> None:
    folder = copies("onevision")
    (folder / "chat_template.jinja").write_text(text)
    with pytest.raises(ValueError, match="chat template") as error:
        Verifier.from_pretrained(folder, "cpu")
    assert str(folder) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("damage", ["cut", "empty", "no json", "gone", "other"])
def test_a_damaged_tokenizer_names_its_folder(copies: Callable[[str], Path], damage: str) -> None:
    folder = copies("words")
    file = folder / "tokenizer.json"
    text = {"cut": file.read_text()[:100], "empty": "", "no json": "nothing", "other": "{}"}
    if damage == "gone":
        file.unlink()
    else:
        file.write_text(text[damage])
    with pytest.raises(ValueError, match=f"No text tokenizer can be read from {folder}") as error:
        load_tokenizer(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("path", [None, 3, "", "/no/such/folder", "no such/name", Path("/dev/null"), b"showo"])
def test_a_path_that_is_none_is_one_clear_sentence(path: Any) -> None:
    for load in (*LOADERS.values(), load_tokenizer):
        with pytest.raises((ValueError, OSError), match=r"folder|can be read") as error:
            load(path)
        assert "\n" not in str(error.value)


def test_a_device_or_precision_that_is_none_is_refused(paths: dict[str, Path]) -> None:
    for device in ("gpu", None, 3, "cuda:x"):
        with pytest.raises(ValueError, match=r"device must be"):
            chosen_device(device)  # type: ignore[arg-type]
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="no such GPU"):
            chosen_device("cuda")
    for device in ("meta", "xpu", "vulkan"):
        with pytest.raises(ValueError, match=f'^device is \'{device}\', wh.*: give "auto" or "cpu".$'):
            chosen_device(device)
    for dtype in (torch.int8, "float7", 3):
        with pytest.raises(ValueError, match="dtype must be"):
            Showo.from_pretrained(paths["showo"], dtype=dtype)


def test_weights_come_from_where_the_config_comes_from(copies: Callable[[str], Path], tmp_path: Path) -> None:
    into_cache(copies("magvit"), "showlab/magvit", tmp_path / "elsewhere")
    assert Magvit.from_pretrained("showlab/magvit", cache_dir=tmp_path / "elsewhere")
