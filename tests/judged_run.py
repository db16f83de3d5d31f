"""A store with actions and a tiny run trained on it, for the tests of what judges runs."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from motion_arrays import with_motion

from data_specs.examples import example_record
from data_specs.records import ClipRecord
from data_specs.shards import DatasetRecord, Manifest, ModelRecord
from pipeline.store import open_store
from pipeline.store.layout import StoreLayout
from pipeline.store.writer import ShardWriter
from pipeline.train.laq import LaqTask
from pipeline.train.laq_recipe import LaqRecipe
from pipeline.train.launch import TrainRequest, train
from pipeline.train.progress import SilentReporter
from pipeline.train_config import CodebookSection, PairsSection, SplitSection, TrainSection
from stages.laq import LAQConfig

CHANNELS, CLIPS, FRAMES, STEP, DIMS = 8, 12, 6, 0.25, 3
CODES = 16
MODEL = ModelRecord(role="concerto", name="random:0", revision="", sha256="ab" * 32, random=True)


def moving_record(number: int, *, action: bool = True) -> ClipRecord:
    """Clip `number`: six frames a quarter of a second apart, actions in two of three dimensions."""
    rng = np.random.default_rng(number)
    record = example_record(f"clip-{number:02d}", frames=FRAMES, points=200, channels=CHANNELS, kept=150, seed=number)
    sums = np.cumsum(rng.normal(size=(FRAMES, DIMS)), axis=0).astype(np.float32)
    sums[:, 1] = 0
    extra = {"action_sum": sums} if action else {}
    return with_motion(replace(record, time=np.arange(FRAMES) * STEP, extra=extra), number)


def moving_store(
    path: Path, *, clips: int = CLIPS, action: bool = True, models: tuple[ModelRecord, ...] = (MODEL,)
) -> str:
    """A finished store of moving records, three clips a shard."""
    manifest = Manifest(
        format="zarr",
        dataset=DatasetRecord(name="small", split="train"),
        models=models,
        recipe={"name": "test"},
        sizes={"C": CHANNELS, "P": 200, "W": 224},
    )
    layout = StoreLayout.create(str(path), manifest)
    for shard in range(0, clips, 3):
        writer = ShardWriter(layout, f"{shard:06d}")
        for number in range(shard, min(shard + 3, clips)):
            writer.add(moving_record(number, action=action))
        writer.commit()
    layout.write_index()
    return str(path)


def tiny_run(path: Path, store: str) -> Path:
    """A run of two steps on a store, with a third of the clips held out."""
    recipe = LaqRecipe(
        name="test",
        train=TrainSection(steps=2, batch=8, warmup=1, workers=0, log_every=1, validate_every=2, validate_samples=16),
        pairs=PairsSection(offset=2 * STEP),
        split=SplitSection(validation=0.34),
        codebook=CodebookSection(init_samples=16, replace_every=1),
        model=LAQConfig(
            dim=16,
            heads=2,
            hidden=16,
            s2d_layers=1,
            spatial_layers=1,
            temporal_layers=1,
            decoder_layers=1,
            codes=CODES,
            tokens=2,
            code_dim=4,
        ),
    )
    train(LaqTask(recipe, open_store(store)), TrainRequest(out=path, device="cpu"), SilentReporter())
    return path
