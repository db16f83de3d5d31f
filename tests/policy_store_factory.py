"""Small stores of made-up demonstrations: states, chunks of actions, instructions, further cameras, frozen encoders."""

import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from store_factory import small_manifest, small_record, write_shards

from data_specs.actions import ACTION_PATH_NAME, CHUNK_NAME, CHUNK_PAD_NAME, STATE_PATH_NAME, STEP_NAME
from data_specs.arrays import Array
from data_specs.records import ClipRecord, Images, exclusive_sum
from data_specs.shards import ModelRecord
from pipeline.label_file import KEY
from pipeline.store import open_store
from pipeline.store.language import LanguageTable, write_language
from pipeline.store.layout import StoreLayout
from pipeline.store.loader import Store
from pipeline.store.sums import write_sums

STATE, ACTION, CHUNK, STRIDE = 8, 7, 6, 2
LANGUAGE, WRIST = 12, (20, 28)
VISION = {"dinov2": (9, 16), "vggt": (9, 20)}
TEXTS = {"reach": "reach the red block", "push": "push the green block to the left", "pick": "pick up the blue block"}
TEXT_MODEL = ModelRecord(role="text", name="random:0", revision="", sha256="", random=True)

SMALL = [
    "model.dim=16",
    "model.depth=1",
    "model.heads=2",
    "model.hidden=16",
    "model.queries=4",
    "model.horizon=4",
    "model.language.hidden=16",
    "model.chunk.hidden=16",
    "model.latent.hidden=16",
    "model.latent.tokens=2",
    "model.latent.codes=16",
    "model.vision.concerto.dim=16",
    "model.vision.concerto.layers=1",
    "model.vision.concerto.heads=2",
    "model.vision.concerto.hidden=16",
    "model.vision.concerto.grid=4",
    "train.precision=float32",
    "train.lr=0.001",
    "train.ema=0.99",
    "train.steps=4",
    "train.batch=4",
    "train.warmup=8",
    "train.workers=0",
    "train.log_every=1",
    "train.validate_every=2",
]
"""Overrides that make any VLA recipe tiny and 4 steps long."""


def demonstration(
    key: str,
    *,
    frames: int = 4,
    seed: int = 0,
    text: str = TEXTS["reach"],
    split: str = "train",
    state: int = STATE,
    action: int = ACTION,
    chunk: int = CHUNK,
    vision: bool = False,
    views: bool = False,
) -> ClipRecord:
    """A clip of `frames` frames, every second control step; its last frame is after the last action."""
    rng = np.random.default_rng([seed, *key.encode()])
    record = small_record(key, frames=frames, seed=seed, state=state, action=action, text=text, split=split)
    steps = (frames - 1) * STRIDE
    at = np.arange(frames) * STRIDE
    path_state = rng.normal(size=(steps, state)).astype(np.float32) + 3.0
    path_action = rng.normal(size=(steps, action)).astype(np.float32) * 0.1
    extra: dict[str, Array] = dict(record.extra)
    if chunk:
        wanted = at[:, None] + np.arange(chunk)
        extra |= {
            CHUNK_NAME: path_action[np.minimum(wanted, steps - 1)],
            CHUNK_PAD_NAME: wanted >= steps,
            STATE_PATH_NAME: path_state,
            ACTION_PATH_NAME: path_action,
            STEP_NAME: at.astype(np.int64),
        }
    encoded = {n: rng.normal(size=(frames, *shape)).astype(np.float16) for n, shape in VISION.items()} if vision else {}
    pictures = {"wrist": _pictures(rng, frames)} if views else {}
    seen = path_state[np.minimum(at, steps - 1)]
    return replace(record, state=seen if state else None, extra=extra, vision=encoded, views=pictures)


def _pictures(rng: np.random.Generator, frames: int) -> Images:
    encoded = []
    for _ in range(frames):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(256, size=(*WRIST, 3), dtype=np.uint8)).save(buffer, format="png")
        encoded.append(np.frombuffer(buffer.getvalue(), dtype=np.uint8))
    return Images(data=np.concatenate(encoded), offset=exclusive_sum(np.array([len(e) for e in encoded])))


def demonstrations(count: int = 8, tasks: Sequence[str] = ("reach", "push", "pick"), **more: Any) -> list[ClipRecord]:
    """Clips `s0-000000-reach`, …, of the tasks in turn; every fourth is held out."""
    names = [tasks[i % len(tasks)] for i in range(count)]
    return [
        demonstration(
            f"s0-{i:06d}-{name}", text=TEXTS[name], split="val" if i % 4 == 3 else "train", **{"seed": i, **more}
        )
        for i, name in enumerate(names)
    ]


def policy_store(
    path: Path, records: Sequence[ClipRecord] | None = None, *, language: bool = True, seed: int = 0, **sizes: int
) -> Store:
    """A finished store of demonstrations."""
    records = demonstrations() if records is None else records
    manifest = small_manifest(**{"S": STATE, "A": ACTION, **sizes})
    models = (*manifest.models, TEXT_MODEL) if language else manifest.models
    layout = StoreLayout.create(str(path), manifest.model_copy(update={"models": models}))
    write_shards(layout, records, per_shard=3)
    if language:
        generator = torch.Generator().manual_seed(seed)
        texts = sorted({record.text for record in records})
        encoded = {text: torch.randn(len(text.split()), LANGUAGE, generator=generator) for text in texts}
        write_language(layout, LanguageTable.of(encoded, model=TEXT_MODEL, limit=77))
    layout.write_index()
    layout.write_rejected()
    write_sums(layout)
    return open_store(str(path))


def label_file(path: Path, store: Store, *, skip: int = 1, offset: float = 0.5, sha: str = "aa", **more: Any) -> Path:
    """Codes of all frames of a store but the last `skip` of each clip, a function of clip and frame."""
    keys = store.clips["key"].to_pylist()
    rows = [(key, i) for c, key in enumerate(keys) for i in range(len(store.frames(c)) - skip)]
    tokens, codes = more.get("tokens", 2), more.get("codes", 16)
    table = pa.table(
        {
            "clip": [key for key, _ in rows],
            "frame": np.array([i for _, i in rows], dtype=np.int32),
            **{
                f"code_{k}": np.array([(7 * i + len(key) + k) % codes for key, i in rows], np.int16)
                for k in range(tokens)
            },
        }
    )
    facts = {
        "run": {"name": "laq", "step": 10, "weights_sha256": sha, "store_digest": "dd"},
        "store": {"digest": more.get("digest", store.digest), "split": None},
        "offset_seconds": offset,
    }
    pq.write_table(table.replace_schema_metadata({KEY: json.dumps(facts)}), path)
    return path
