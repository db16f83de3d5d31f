"""The file of a store that holds a text encoder's outputs."""

import json
from pathlib import Path

import pytest
import torch
from store_factory import FORMATS, small_manifest, small_record, write_shards

from data_specs.shards import LANGUAGE, ModelRecord
from pipeline.inspect_shards import inspect_store
from pipeline.inspect_text import summary_lines
from pipeline.store import ShardError, StoreError, open_store
from pipeline.store.language import LanguageTable, write_language
from pipeline.store.layout import StoreLayout
from pipeline.store.sums import write_sums
from pipeline.store.verify import verify

MODEL = ModelRecord(role="text", name="random:0", revision="", sha256="", random=True)
TEXTS = ("push the ball", "lift the ✓", "push the ball")


def encoded(*lengths: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    texts = sorted(set(TEXTS))
    return {text: torch.randn(n, 5, generator=generator) for text, n in zip(texts, lengths, strict=True)}


def table(*lengths: int) -> LanguageTable:
    return LanguageTable.of(encoded(*(lengths or (4, 3))), model=MODEL, limit=77, truncated=["lift the ✓"])


def text_store(path: Path, store_format: str = "zarr", written: bool = True) -> StoreLayout:
    manifest = small_manifest(store_format)  # type: ignore[arg-type]
    layout = StoreLayout.create(str(path), manifest.model_copy(update={"models": (*manifest.models, MODEL)}))
    write_shards(layout, [small_record(f"k{i}", text=text) for i, text in enumerate(TEXTS)], per_shard=2)
    layout.write_index()
    layout.write_rejected()
    if written:
        write_language(layout, table())
    write_sums(layout)
    return layout


@pytest.mark.parametrize("store_format", FORMATS)
def test_a_store_gives_the_tokens_of_any_of_its_instructions(tmp_path: Path, store_format: str) -> None:
    store = open_store(text_store(tmp_path / "s", store_format).url)
    found = store.language()
    assert found is not None
    assert (found.texts, len(found), found.truncated) == (("lift the ✓", "push the ball"), 2, ("lift the ✓",))
    batch = found.batch([store.info(i).text for i in range(3)])
    assert (batch.feat.dtype, batch.feat.shape) == (torch.float16, (3, 4, 5))
    assert batch.mask.sum(1).tolist() == [3, 4, 3]
    rows = encoded(4, 3)
    assert torch.equal(batch.feat[0, :3], rows["push the ball"].half())
    assert batch.feat[0, 3].eq(0).all()
    assert torch.equal(batch.feat[1], rows["lift the ✓"].half())
    # padded to the longest that was asked for, whatever else the store holds
    assert found.batch(["push the ball"]).feat.shape == (1, 3, 5)
    for text, tokens in found.encoded().items():
        assert torch.equal(tokens, rows[text].half())
    assert verify(store.layout) == []


def test_an_instruction_of_another_store_is_named(tmp_path: Path) -> None:
    found = open_store(text_store(tmp_path / "s").url).language()
    assert found is not None
    with pytest.raises(ValueError, match=r"no instruction 'open the drawer'.*live"):
        found.batch(["push the ball", "open the drawer"])


def test_a_store_without_an_encoder_has_no_language(tmp_path: Path) -> None:
    layout = StoreLayout.create(str(tmp_path / "s"), small_manifest())
    write_shards(layout, [small_record("a")], per_shard=1)
    layout.write_index()
    layout.write_rejected()
    assert open_store(layout.url).language() is None
    write_language(layout, table())
    write_sums(layout)
    assert [(d.shard, d.problem) for d in verify(layout)] == [
        (LANGUAGE, "is there, but the manifest names no text encoder")
    ]


def test_the_file_is_the_same_bytes_for_the_same_table() -> None:
    assert table().to_bytes() == table().to_bytes()
    again = LanguageTable.from_bytes(table().to_bytes())
    assert again.to_bytes() == table().to_bytes()


def test_a_missing_file_says_that_the_run_has_not_ended(tmp_path: Path) -> None:
    layout = text_store(tmp_path / "s", written=False)
    with pytest.raises(StoreError, match="--resume"):
        open_store(layout.url).language()
    missing = "is missing; --resume or `cla merge` writes it"
    assert [(d.shard, d.problem) for d in verify(layout)] == [(LANGUAGE, missing)]


@pytest.mark.parametrize("seed", range(40))
def test_no_flipped_bit_passes(tmp_path: Path, seed: int) -> None:
    layout = text_store(tmp_path / "s")
    path = tmp_path / "s" / LANGUAGE
    data = bytearray(path.read_bytes())
    at = int(torch.randint(len(data), (1,), generator=torch.Generator().manual_seed(seed)))
    data[at] ^= 1 << seed % 8
    path.write_bytes(bytes(data))
    try:
        same = open_store(layout.url).language()
    except ShardError:
        assert LANGUAGE in {damage.shard for damage in verify(layout)}
        return
    # JSON has spaces that mean nothing, and texts that are not compared with the clips before --verify
    assert same is not None
    assert torch.equal(same.feat, table().feat)
    assert same.texts == table().texts or verify(layout) or same.truncated != table().truncated


@pytest.mark.parametrize("cut", [0, 4, 100, -1])
def test_a_cut_file_is_named(tmp_path: Path, cut: int) -> None:
    layout = text_store(tmp_path / "s")
    path = tmp_path / "s" / LANGUAGE
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ShardError, match="cannot be read"):
        open_store(layout.url).language()
    assert [damage.shard for damage in verify(layout)] == [LANGUAGE]


def test_verify_compares_the_instructions_with_the_clips(tmp_path: Path) -> None:
    layout = text_store(tmp_path / "s")
    rows = encoded(4, 3)
    rows["another"] = rows.pop("lift the ✓")
    write_language(layout, LanguageTable.of(rows, model=MODEL, limit=77))
    problems = [damage.problem for damage in verify(layout)]
    assert any("lacks 1 instructions of the clips, for example 'lift the ✓'" in problem for problem in problems)
    assert any("has 1 instructions of no clip, for example 'another'" in problem for problem in problems)


def test_a_file_of_another_encoder_is_refused(tmp_path: Path) -> None:
    layout = text_store(tmp_path / "s")
    other = MODEL.model_copy(update={"name": "random:1"})
    write_language(layout, LanguageTable.of(encoded(4, 3), model=other, limit=77))
    with pytest.raises(ShardError, match="random:1, the manifest names random:0"):
        open_store(layout.url).language()
    assert len(verify(layout)) == 1


def test_the_summary_says_what_the_language_is(tmp_path: Path) -> None:
    summary = inspect_store(text_store(tmp_path / "s").url, verify=True)
    assert summary.verified is True
    assert json.loads(json.dumps(summary.as_json()))["language"] == {
        "instructions": 2, "tokens": 4, "channels": 5, "limit": 77, "truncated": 1, "bytes": 2 * 4 * 5 * 2 + 8,
    }  # fmt: skip
    line = next(line for line in summary_lines(summary) if line.startswith("language"))
    assert line == "language   2 distinct instructions, up to 4 tokens of 5; 1 cut at 77 tokens"


def test_overwriting_a_store_removes_its_language(tmp_path: Path) -> None:
    text_store(tmp_path / "s")
    StoreLayout.create(str(tmp_path / "s"), small_manifest(), "overwrite")
    assert not (tmp_path / "s" / LANGUAGE).exists()
