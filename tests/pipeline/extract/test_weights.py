import io
import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pipeline.config import RequestError, override
from pipeline.extract.models import CONCERTO_CONFIGS, VGGT_CONFIGS, load_models
from pipeline.extract.weights import find_weights, load_into
from pipeline.recipes import extract_recipe
from stages import concerto, vggt

CPU = torch.device("cpu")


def _vggt_state() -> dict[str, torch.Tensor]:
    model = vggt.build_vggt(VGGT_CONFIGS["tiny"].to_dict())
    vggt.init_random(model, 5)
    return {k: v.clone() for k, v in model.state_dict().items()}


def _concerto_checkpoint() -> dict[str, object]:
    config = CONCERTO_CONFIGS["tiny"].to_dict()
    model = concerto.build_concerto(config)
    concerto.init_random(model, 6)
    return {"config": config, "state_dict": model.state_dict()}


def test_random_weights_must_be_asked_for_by_name_and_are_recorded(capsys: pytest.CaptureFixture[str]) -> None:
    random = ["vggt.weights=random:0", "concerto.weights=random:0"]
    models = load_models(override(extract_recipe("tiny"), random), CPU)
    assert [record.random for record in models.records] == [True, True]
    assert capsys.readouterr().err.count("RANDOM weights") == 2
    with pytest.raises(RequestError, match="expected random:SEED"):
        find_weights("vggt", "random", "main")


def test_released_formats_load_strictly_and_are_identified(tmp_path: Path) -> None:
    state = _vggt_state()
    # the released VGGT also holds a track head, which this project does not run
    save_file({**state, "track_head.norm.weight": torch.zeros(3)}, tmp_path / "model.safetensors")
    torch.save(_concerto_checkpoint(), tmp_path / "concerto_base.pth")
    recipe = override(
        extract_recipe("tiny"),
        [f"vggt.weights={tmp_path}", f"concerto.weights={tmp_path / 'concerto_base.pth'}", "concerto.model=base"],
    )
    models = load_models(recipe, CPU)
    assert models.vggt is not None
    for name, value in models.vggt.vggt.state_dict().items():
        assert torch.equal(value, state[name])
    # the architecture came from the checkpoint's own config, not from concerto.model
    assert models.channels == CONCERTO_CONFIGS["tiny"].enc_channels[-1]
    assert not any(record.random for record in models.records)
    assert all(len(record.sha256) == 64 for record in models.records)


def test_a_torch_file_of_vggt_loads_too(tmp_path: Path) -> None:
    torch.save(_vggt_state(), tmp_path / "model.pt")
    found = find_weights("vggt", str(tmp_path / "model.pt"), "main")
    model = vggt.build_vggt(VGGT_CONFIGS["tiny"].to_dict())
    load_into(model, found, "vggt")


def test_a_checkpoint_that_does_not_fit_names_its_first_wrong_keys(tmp_path: Path) -> None:
    state = _vggt_state()
    first, second = list(state)[:2]
    wrong = {k: v for k, v in state.items() if k != first}
    wrong[second] = torch.zeros(3, 3, 3)
    wrong["extra.weight"] = torch.zeros(1)
    save_file(wrong, tmp_path / "model.safetensors")
    model = vggt.build_vggt(VGGT_CONFIGS["tiny"].to_dict())
    with pytest.raises(RequestError) as caught:
        load_into(model, find_weights("vggt", str(tmp_path), "main"), "vggt")
    sentence = str(caught.value)
    assert f"1 missing, first '{first}'" in sentence
    assert "1 unexpected, first 'extra.weight'" in sentence
    assert f"1 of another shape, first '{second}': [3, 3, 3]" in sentence


def test_code_in_a_checkpoint_is_never_run(tmp_path: Path) -> None:
    marker = tmp_path / "ran"

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (str(marker),))

    plain = io.BytesIO()
    pickle.dump({"state_dict": Evil()}, plain)
    (tmp_path / "plain.pth").write_bytes(plain.getvalue())
    torch.save({"state_dict": Evil()}, tmp_path / "torch.pth")
    for name in ("plain.pth", "torch.pth"):
        with pytest.raises(RequestError, match="weights_only=True"):
            find_weights("concerto", str(tmp_path / name), "main")
    assert not marker.exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 truncated"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_broken_file_is_a_sentence(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(RequestError, match=r"[Dd]ownload it again"):
        find_weights("vggt", str(path), "main")


def test_a_folder_without_weights_and_a_missing_path_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"model\.safetensors"):
        find_weights("vggt", str(tmp_path), "main")
    with pytest.raises(RequestError, match="random:0"):
        find_weights("vggt", str(tmp_path / "gone.pt"), "main")
    (tmp_path / "numbers.pth").write_bytes(b"")
    torch.save([1, 2, 3], tmp_path / "numbers.pth")
    with pytest.raises(RequestError, match="state_dict"):
        find_weights("vggt", str(tmp_path / "numbers.pth"), "main")


def _hub_cache(root: Path, repository: str, commit: str, files: dict[str, bytes]) -> None:
    """The Hub's own cache layout: refs name a commit, snapshots hold its files."""
    folder = root / "hub" / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    (folder / "snapshots" / commit).mkdir(parents=True)
    for name, content in files.items():
        (folder / "snapshots" / commit / name).write_bytes(content)


def test_the_hub_cache_is_used_and_its_commit_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    commit = "0123456789abcdef0123456789abcdef01234567"
    buffer = io.BytesIO()
    torch.save(_concerto_checkpoint(), buffer)
    _hub_cache(tmp_path, "Pointcept/Concerto", commit, {"concerto_base.pth": buffer.getvalue()})
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    found = find_weights("concerto", "Pointcept/Concerto/concerto_base.pth", "main")
    assert found.record.name == "Pointcept/Concerto/concerto_base.pth"
    assert found.record.revision == commit
    assert "NC" in found.record.licence
    assert found.config == json.loads(json.dumps(CONCERTO_CONFIGS["tiny"].to_dict()))


def test_a_download_that_cannot_be_had_names_the_offline_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    with pytest.raises(RequestError, match=r"vggt\.weights=/path/to/file"):
        find_weights("vggt", "facebook/VGGT-1B", "main")
