"""Folders of small models in exactly the format of the released ones: Qwen3-0.6B-Base, dinov2-base, CLIP, SigLIP."""

import json
from pathlib import Path
from typing import Any

import torch

CORPUS = [
    "push the red cube to the left",
    "pick up the blue ball and lift it",
    "stack the green block on the tray",
] * 20
NAME = {
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "image_processor_type": "BitImageProcessor",
}


def qwen_folder(path: Path, *, shards: str = "5GB", limit: int = 40960, seed: int = 0) -> Path:
    """A Qwen3ForCausalLM in bfloat16 with tied embeddings, and a byte-level BPE tokenizer, as on the Hub."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=400, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, tie_word_embeddings=True, max_position_embeddings=limit,
    )  # fmt: skip
    Qwen3ForCausalLM(config).to(torch.bfloat16).save_pretrained(path, max_shard_size=shards)
    _byte_level_tokenizer(path)
    return path


def _byte_level_tokenizer(path: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=380,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.save(str(path / "tokenizer.json"))
    config = {
        "tokenizer_class": "Qwen2Tokenizer",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "bos_token": None,
        "unk_token": None,
        "add_prefix_space": False,
        "model_max_length": 131072,
        "clean_up_tokenization_spaces": False,
    }
    (path / "tokenizer_config.json").write_text(json.dumps(config))


def dinov2_folder(path: Path, *, seed: int = 0, image: int = 70, **more: Any) -> Path:
    """A Dinov2Model that was trained at another size than it sees (518 in the released one), and its preprocessing."""
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(seed)
    config = Dinov2Config(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, image_size=image, patch_size=14, **more
    )
    Dinov2Model(config).save_pretrained(path)
    return _preprocessing(path)


def two_tower_folder(path: Path, kind: str, *, seed: int = 0) -> Path:
    """A whole CLIPModel or SiglipModel: text and vision towers in one file."""
    import transformers

    torch.manual_seed(seed)
    vision = {
        "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48, "image_size": 28,
        "patch_size": 14,
    }  # fmt: skip
    text = {
        "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48, "vocab_size": 400,
    }  # fmt: skip
    config = getattr(transformers, f"{kind}Config")(vision_config=vision, text_config=text)
    getattr(transformers, f"{kind}Model")(config).save_pretrained(path)
    return _preprocessing(path)


def _preprocessing(path: Path) -> Path:
    (path / "preprocessor_config.json").write_text(json.dumps(NAME))
    return path


def hub_cache(root: Path, repository: str, commit: str, folder: Path) -> Path:
    """The Hub's own cache layout around a folder: refs name a commit, snapshots hold its files."""
    home = root / f"models--{repository.replace('/', '--')}"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text(commit)
    (home / "snapshots").mkdir()
    (home / "snapshots" / commit).symlink_to(folder, target_is_directory=True)
    return home
