"""From a latent action model's own labels to a policy: what `cla label` writes is what `cla train vla` reads."""

from pathlib import Path

import torch
from motion_arrays import with_motion
from policy_store_factory import SMALL, demonstrations, policy_store

from pipeline.config import override
from pipeline.evaluate.encoding import Encoder
from pipeline.label import label
from pipeline.label_file import read_codes
from pipeline.recipes import vla_recipe
from pipeline.train.laq import LaqTask
from pipeline.train.laq_recipe import LAQ_RECIPES
from pipeline.train.launch import TrainRequest, train
from pipeline.train.progress import SilentReporter
from pipeline.train.vla_command import VlaSources, open_task, run_vla

TINY = ["model.dim=16", "model.heads=2", "model.hidden=16", "model.codes=16", "model.code_dim=4", "pairs.offset=0.5"]
TINY += ["train.steps=1", "train.batch=4", "train.workers=0", "train.validate_samples=0"]


def test_labels_are_learned_and_a_policy_starts_from_them(tmp_path: Path) -> None:
    records = [with_motion(record, i) for i, record in enumerate(demonstrations())]
    store = policy_store(tmp_path / "store", records)
    laq = tmp_path / "laq"
    train(
        LaqTask(override(LAQ_RECIPES["laq_tiny"], TINY), store), TrainRequest(out=laq, device="cpu"), SilentReporter()
    )
    encoder = Encoder.open(laq, store.layout.url, device=torch.device("cpu"))
    path = tmp_path / "codes.parquet"
    label(encoder, path)
    codes = read_codes(path)
    recipe = override(vla_recipe("vla_3d"), [*SMALL, "model.objective=latent", "model.latent.tokens=4"])
    sources = VlaSources(stores=(store.layout.url,), codes=(path,))
    task = open_task(recipe, sources)
    batch = next(iter(task.moments.first(8)))
    assert batch.codes is not None
    known = {(key, int(frame)): row for key, frame, row in zip(codes.clip, codes.frame, codes.codes, strict=True)}
    for row, frame in enumerate(batch.frames.index.tolist()):
        clip, place = (int(v[0]) for v in store.clip_of([frame]))
        assert batch.codes[row].tolist() == known[store.info(clip).key, place].tolist()
    # half a second is two frames: the last two of each clip have no partner
    assert task.describe()["split"]["without"] == 6 * 2
    run_vla(recipe, sources, TrainRequest(out=tmp_path / "latent", device="cpu"), SilentReporter())
    after = override(vla_recipe("vla_3d"), SMALL)
    start = VlaSources(stores=(store.layout.url,), init_from=tmp_path / "latent")
    summary = run_vla(after, start, TrainRequest(out=tmp_path / "run", device="cpu"), SilentReporter())
    assert summary.steps == 4 and summary.val["error"] > 0
