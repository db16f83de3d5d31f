"""Text and image encoders: the released formats, random ones, and every way in which they cannot be had."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from encoder_folders import NAME, dinov2_folder, hub_cache, qwen_folder, two_tower_folder

from pipeline.config import RequestError, TextSection, VisionSection, override
from pipeline.extract.encoders.loading import quiet
from pipeline.extract.encoders.text import TextEncoder, find_text, load_text, word_ids
from pipeline.extract.encoders.towers import VisionTower, find_tower, load_tower, vggt_tokens
from pipeline.extract.models import load_models
from pipeline.recipes import extract_recipe

CPU = torch.device("cpu")
TEXT = "pick up the blue ball"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    with quiet():
        return {
            "qwen": qwen_folder(root / "qwen"),
            "sharded": qwen_folder(root / "sharded", shards="20KB"),
            "dinov2": dinov2_folder(root / "dinov2"),
            "CLIP": two_tower_folder(root / "clip", "CLIP"),
            "Siglip": two_tower_folder(root / "siglip", "Siglip"),
        }


@pytest.fixture(autouse=True)
def _no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


def _text(weights: object, **more: object) -> TextEncoder:
    section = TextSection(weights=str(weights), **more)  # type: ignore[arg-type]
    return load_text(section, find_text(section), CPU)


def _tower(weights: object, size: int = 56) -> VisionTower:
    return load_tower("eye", VisionSection(), find_tower("eye", str(weights)), size, CPU)


@pytest.mark.parametrize("name", ["qwen", "sharded"])
def test_a_released_text_model_gives_its_last_hidden_states(folders: dict[str, Path], name: str) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    encoder = _text(folders[name])
    with quiet(), torch.no_grad():
        tokenizer = AutoTokenizer.from_pretrained(folders[name])
        model = AutoModelForCausalLM.from_pretrained(folders[name]).float()
        ids = tokenizer(TEXT, return_tensors="pt")["input_ids"]
        expected = model(ids, output_hidden_states=True).hidden_states[-1][0]
    assert ids.shape[1] > 4
    found = encoder.encode(TEXT)
    assert (found.dtype, found.shape) == (torch.float16, (ids.shape[1], 32))
    torch.testing.assert_close(found, expected.half())
    assert (encoder.record.role, encoder.record.name, encoder.record.random) == ("text", str(folders[name]), False)


def test_the_sha256_is_of_the_weights(folders: dict[str, Path]) -> None:
    one = hashlib.sha256((folders["qwen"] / "model.safetensors").read_bytes()).hexdigest()
    assert find_text(TextSection(weights=str(folders["qwen"]))).record.sha256 == one
    shards = sorted(folders["sharded"].glob("*.safetensors"))
    assert len(shards) > 1
    lines = "".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in shards)
    several = hashlib.sha256(lines.encode()).hexdigest()
    assert find_text(TextSection(weights=str(folders["sharded"]))).record.sha256 == several


def test_long_and_empty_instructions(folders: dict[str, Path]) -> None:
    encoder = _text(folders["qwen"], tokens=5)
    assert encoder.limit == 5
    assert not encoder.too_long("push")
    assert encoder.too_long(TEXT * 4)
    assert len(encoder.encode(TEXT * 4)) == 5
    # a causal model: what is cut changes nothing of what is left
    torch.testing.assert_close(encoder.encode(TEXT * 4)[:3], encoder.encode(TEXT)[:3])
    assert len(encoder.encode("")) == 1
    random = _text("random:0", tokens=3)
    assert len(random.encode("")) == 1
    assert random.too_long("a b c d")
    assert not random.too_long("a b c")
    assert len(random.encode("a b c d")) == 3


def test_an_instruction_does_not_depend_on_the_others(folders: dict[str, Path]) -> None:
    for weights in (folders["qwen"], "random:3"):
        first, second = _text(weights), _text(weights)
        for other in ("stack it", "a much longer instruction than the one before"):
            second.encode(other)
        assert torch.equal(first.encode(TEXT), second.encode(TEXT))


def test_the_random_text_model_is_its_seed_alone_and_tells_words_apart() -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    encoder = _text("random:0")
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(encoder.encode(TEXT), _text("random:0").encode(TEXT))
    assert not torch.equal(encoder.encode(TEXT), _text("random:1").encode(TEXT))
    red, blue = encoder.encode("push the red cube").float(), encoder.encode("push the blue cube").float()
    assert torch.equal(red[:2], blue[:2])
    assert torch.nn.functional.cosine_similarity(red[2], blue[2], dim=0) < 0.9
    assert 0.3 < float(red.std()) < 3


def test_the_words_of_the_tabletop_world_have_tokens_of_their_own() -> None:
    from pipeline.sim.layout import COLOURS

    words = [
        *COLOURS,
        *[
            "cube",
            "ball",
            "cylinder",
            "mat",
            "tray",
            "block",
            "push",
            "pick",
            "up",
            "the",
            "to",
            "onto",
            "reach",
            "stack",
            "place",
            "put",
            "it",
            "in",
            "on",
        ],
    ]
    assert len({word_ids(word)[0] for word in words}) == len(set(words))
    assert word_ids("Push, the  CUBE!") == word_ids("push , the cube !")
    assert len(word_ids("Push, the cube!")) == 5
    assert word_ids("") == [0]


def _pictures(count: int = 2, size: int = 56) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(256, size=(count, size, size, 3), dtype=np.uint8))


def _normalised(pictures: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(NAME[name])[:, None, None] for name in ("image_mean", "image_std"))
    return (pictures.permute(0, 3, 1, 2).float() / 255 - mean) / std


def test_dinov2_gives_its_patch_tokens_without_the_class_token(folders: dict[str, Path]) -> None:
    from transformers import AutoModel

    tower = _tower(folders["dinov2"])
    assert (tower.tokens, tower.channels, tower.side) == (16, 24, 56)
    with quiet(), torch.no_grad():
        expected = AutoModel.from_pretrained(folders["dinov2"]).eval()(_normalised(_pictures())).last_hidden_state
    assert expected.shape == (2, 17, 24)
    torch.testing.assert_close(tower(_pictures()), expected[:, 1:])


def test_registers_are_not_kept_either(tmp_path: Path) -> None:
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    config = Dinov2WithRegistersConfig(
        hidden_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=56, patch_size=14, num_register_tokens=4
    )
    with quiet():
        model = Dinov2WithRegistersModel(config).eval()
        model.save_pretrained(tmp_path / "m")
    (tmp_path / "m" / "preprocessor_config.json").write_text(json.dumps(NAME))
    with torch.no_grad():
        expected = model(_normalised(_pictures())).last_hidden_state
    assert expected.shape[1] == 1 + 4 + 16
    torch.testing.assert_close(_tower(tmp_path / "m")(_pictures()), expected[:, 5:])


@pytest.mark.parametrize(("kind", "special"), [("CLIP", 1), ("Siglip", 0)])
def test_a_two_tower_model_gives_its_vision_tower_at_its_own_size(
    folders: dict[str, Path], kind: str, special: int
) -> None:
    import transformers

    tower = _tower(folders[kind])
    assert (tower.tokens, tower.channels, tower.side) == (4, 24, 28)
    pictures = _pictures(size=28)
    with quiet(), torch.no_grad():
        model = getattr(transformers, f"{kind}Model").from_pretrained(folders[kind]).eval()
        expected = model.vision_model(pixel_values=_normalised(pictures)).last_hidden_state
    assert expected.shape[1] == 4 + special
    torch.testing.assert_close(tower(pictures), expected[:, special:])
    # frames of another size are resized: a constant picture stays one
    grey = torch.full((1, 56, 56, 3), 90, dtype=torch.uint8)
    torch.testing.assert_close(tower(grey), tower(grey[:, :28, :28]), atol=1e-5, rtol=1e-5)


def test_a_random_tower_is_its_seed_alone() -> None:
    first, again, other = _tower("random:0"), _tower("random:0"), _tower("random:1")
    assert (first.tokens, first.channels) == (16, 64)
    assert torch.equal(first(_pictures()), again(_pictures()))
    assert not torch.equal(first(_pictures()), other(_pictures()))
    assert not torch.equal(first(_pictures())[0], first(_pictures())[1])


def test_vggt_gives_the_state_of_its_tokens_frame_by_frame() -> None:
    recipe = override(extract_recipe("robot_tiny"), ["frames.size=56"])
    models = load_models(recipe, CPU, parts=["vision/vggt"])
    assert models.vggt is not None
    assert models.concerto is None
    width = models.vggt.vggt.config.embed_dim
    assert models.vision == {"vggt": (5 + 16, width)}
    frames = _pictures(3).permute(0, 3, 1, 2).float() / 255
    tokens = vggt_tokens(models.vggt.vggt, frames)
    assert tokens.shape == (3, 21, width)
    with torch.inference_mode():
        whole = models.vggt.vggt(frames[1:2, None], ("last_tokens",))["last_tokens"][0]
        joint = models.vggt(frames)  # with geometry, as extraction runs it
    torch.testing.assert_close(tokens[1], whole[0, :, width:], atol=1e-5, rtol=1e-4)
    assert joint.tokens is not None
    torch.testing.assert_close(joint.tokens[..., width:], tokens, atol=1e-5, rtol=1e-4)


def _copy(folder: Path, to: Path, *without: str) -> Path:
    shutil.copytree(folder, to)
    for name in without:
        (to / name).unlink()
    return to


def test_what_is_missing_in_a_folder_is_named(folders: dict[str, Path], tmp_path: Path) -> None:
    for name, sentence in (("config.json", "holds no config.json"), ("model.safetensors", r"holds no \.safetensors")):
        with pytest.raises(RequestError, match=rf"{sentence}.*text\.weights"):
            _text(_copy(folders["qwen"], tmp_path / f"no-{name}", name))
    with pytest.raises(RequestError, match=r"holds no tokenizer \(tokenizer\.json, or"):
        _text(_copy(folders["qwen"], tmp_path / "t", "tokenizer.json"))
    small = _copy(folders["qwen"], tmp_path / "v")
    (small / "tokenizer.json").write_text((small / "tokenizer.json").read_text()[:-9])
    with pytest.raises(RequestError, match="cannot be loaded"):
        _text(small)
    with pytest.raises(RequestError, match=r"lacks preprocessor_config\.json, which vision\.towers=eye needs"):
        _tower(_copy(folders["dinov2"], tmp_path / "p", "preprocessor_config.json"))
    shard = sorted(path.name for path in folders["sharded"].glob("*.safetensors"))[1]
    with pytest.raises(RequestError, match=f"lacks {shard}"):
        _text(_copy(folders["sharded"], tmp_path / "s", shard))


def test_weights_that_do_not_fit_are_refused_and_never_drawn_anew(folders: dict[str, Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    state = load_file(folders["qwen"] / "model.safetensors")
    gone = next(name for name in state if name.endswith("q_proj.weight"))
    folder = _copy(folders["qwen"], tmp_path / "missing")
    save_file({k: v for k, v in state.items() if k != gone}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RequestError, match=r"1 missing, first 'layers\.0\.self_attn\.q_proj\.weight'.*random:0"):
        _text(folder)
    folder = _copy(folders["qwen"], tmp_path / "shape")
    save_file({**state, gone: torch.zeros(3, 3)}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RequestError, match=r"cannot be loaded|of another shape"):
        _text(folder)
    folder = _copy(folders["qwen"], tmp_path / "broken")
    (folder / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(RequestError, match="cannot be loaded"):
        _text(folder)


def test_pickles_are_not_read(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = _copy(folders["dinov2"], tmp_path / "m", "model.safetensors")
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(RequestError, match=r"holds no \.safetensors \(nothing else is read\)"):
        _tower(folder)


def test_models_that_are_no_such_encoder_are_named(folders: dict[str, Path], tmp_path: Path) -> None:
    unknown = _copy(folders["qwen"], tmp_path / "unknown")
    (unknown / "config.json").write_text(json.dumps({"model_type": "no-such-model"}))
    with pytest.raises(RequestError, match="no model that transformers knows"):
        _text(unknown)
    with pytest.raises(RequestError, match="vision transformer"):
        _tower(_copy(folders["qwen"], tmp_path / "text"))
    with quiet():
        naflex = two_tower_folder(tmp_path / "naflex", "Siglip2")
    with pytest.raises(RequestError, match="google/siglip-base-patch16-224"):
        _tower(naflex)
    with pytest.raises(RequestError, match=r"patches of 14 pixels.*frames\.size=56"):
        _tower(folders["dinov2"], size=60)
    with pytest.raises(RequestError, match=r"frames\.size=56"):
        _tower("random:0", size=60)


@pytest.mark.parametrize("spec", ["Qwen/Qwen3-0.6B-Base", "/nowhere/model", "model", "random", "random:x"])
def test_a_model_that_cannot_be_had_names_the_ways_out(spec: str) -> None:
    with pytest.raises(RequestError, match=r"text\.weights=.*random:0"):
        _text(spec)
    with pytest.raises(RequestError, match=r"vision\.towers=eye=.*random:0"):
        _tower(spec)


def test_the_hub_cache_is_used_and_its_commit_recorded(folders: dict[str, Path], tmp_path: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    hub_cache(tmp_path / "hub", "Qwen/Qwen3-0.6B-Base", commit, folders["qwen"])
    encoder = _text("Qwen/Qwen3-0.6B-Base")
    record = encoder.record
    assert (record.name, record.revision, record.licence) == ("Qwen/Qwen3-0.6B-Base", commit, "Apache-2.0")
    assert torch.equal(encoder.encode(TEXT), _text(folders["qwen"]).encode(TEXT))


def test_a_cache_that_lacks_a_file_is_not_enough(folders: dict[str, Path], tmp_path: Path) -> None:
    part = _copy(folders["qwen"], tmp_path / "part", "model.safetensors")
    hub_cache(tmp_path / "hub", "Qwen/Qwen3-0.6B-Base", "0" * 40, part)
    with pytest.raises(RequestError, match=r"Cannot get Qwen/Qwen3-0\.6B-Base"):
        _text("Qwen/Qwen3-0.6B-Base")


def test_a_fallback_is_used_only_where_the_recipe_names_one(
    folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = _text(f"Qwen/Qwen3-0.6B-Base|{folders['qwen']}|random:0")
    assert encoder.record.name == str(folders["qwen"])
    said = capsys.readouterr().err
    assert "Cannot get Qwen/Qwen3-0.6B-Base" in said
    assert f"names {folders['qwen']} instead" in said
    assert find_tower("eye", "facebook/dinov2-base | random:4").record.name == "random:4"
    recipe = override(extract_recipe("rgbd_tiny"), ["concerto.weights=/nowhere.pth|builtin"])
    assert load_models(recipe, CPU, parts=["cloud"]).records[0].name == "builtin:concerto_tiny"


def test_values_that_are_not_finite_are_named(folders: dict[str, Path]) -> None:
    encoder = _text(folders["qwen"])
    with torch.no_grad():
        encoder.model.norm.weight[3] = float("nan")  # type: ignore[union-attr, index]
    with pytest.raises(ValueError, match="not finite in float16 for 'push'"):
        encoder.encode("push")


@pytest.mark.parametrize(
    ("towers", "sentence"),
    [("dinov2", "expected NAME=WEIGHTS"), ("a.b=random:0", "letters, digits"), ("a=random:0,a=random:1", "twice")],
)
def test_a_wrong_list_of_towers_is_a_sentence(towers: str, sentence: str) -> None:
    with pytest.raises(RequestError, match=sentence):
        override(extract_recipe("tiny"), [f"vision.towers={towers}"])


def test_overrides_reach_towers_and_text() -> None:
    recipe = override(
        extract_recipe("robot_full"),
        ["vision.towers=dinov2=facebook/dinov2-base@abc, siglip=/models/siglip", "vision.vggt=false", "text.weights="],
    )
    assert recipe.vision.named == {"dinov2": "facebook/dinov2-base@abc", "siglip": "/models/siglip"}
    assert recipe.text.weights == ""
    assert "text" not in recipe.recorded()
