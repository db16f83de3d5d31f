"""The tabletop world as Something-Something V2's own files: VP9 in WebM, 240 pixels high, 12 frames a second.

20bn-something-something-v2/<id>.webm
labels/train.json, validation.json, test.json     {id, label, template, placeholders}; of test only the ids
labels/labels.json                                template without brackets -> number of the class, as a string
"""

import json
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from pipeline.sim.episode import Episode
from pipeline.sim.plan import Plan
from pipeline.sim.tasks import Task

VIDEOS = "20bn-something-something-v2"
LABELS = "labels"
SPLITS = ("train", "validation", "test")
FPS = 12
HEIGHT, WIDTH = 240, 320
VIEWS, SIZES = ("agent",), (HEIGHT, WIDTH)
_IDS_A_SEED = 100_000


def prepare(plan: Plan) -> None:
    """As in `pipeline.sim.plan.Format`."""
    for folder in (VIDEOS, LABELS):
        (plan.out / folder).mkdir()


def write(plan: Plan, index: int) -> dict[str, Any]:
    """As in `pipeline.sim.plan.Format`."""
    return write_clip(plan.out, plan.episode(index))


def finish(plan: Plan, rows: list[dict[str, Any]]) -> None:
    """As in `pipeline.sim.plan.Format`."""
    write_labels(plan.out, [(split_of(index), row) for index, row in enumerate(rows)], plan.tasks)


def video_id(seed: int, index: int) -> str:
    """A numeric id as the dataset has them, different for different seeds."""
    return str(seed * _IDS_A_SEED + index + 1)


def split_of(index: int) -> str:
    """Of every ten clips the ninth is test, the tenth validation."""
    return {8: "test", 9: "validation"}.get(index % 10, "train")


def write_clip(out: Path, episode: Episode) -> dict[str, Any]:
    """Write one video under `out`, whole or not at all; its entry for the label files."""
    name = video_id(episode.seed, episode.index)
    final = out / VIDEOS / f"{name}.webm"
    unfinished = final.with_name(f".{name}.tmp")
    _encode(unfinished, episode)
    unfinished.rename(final)
    template, placeholders = episode.scene.task.template, list(episode.scene.placeholders)
    label = template
    for placeholder in placeholders:
        label = label.replace("[something]", placeholder, 1)
    return {
        "id": name,
        "label": label[0].lower() + label[1:],
        "template": template,
        "placeholders": placeholders,
    }


def write_labels(out: Path, entries: Sequence[tuple[str, dict[str, Any]]], tasks: Sequence[Task]) -> None:
    """Write the label files of (split, entry) pairs."""
    classes = sorted(task.template.replace("[something]", "something") for task in tasks)
    _write_json(out / LABELS / "labels.json", {name: str(number) for number, name in enumerate(classes)})
    for split in SPLITS:
        listed = [entry for its_split, entry in entries if its_split == split]
        if split == "test":
            listed = [{"id": entry["id"]} for entry in listed]
        _write_json(out / LABELS / f"{split}.json", listed)


def _write_json(path: Path, content: Any) -> None:
    unfinished = path.with_name(f".{path.name}.tmp")
    unfinished.write_text(json.dumps(content, indent=1))
    unfinished.rename(path)


def _encode(path: Path, episode: Episode) -> None:
    """One thread and bit-exact muxing: the same episode gives the same bytes."""
    import av
    from av.codec.context import Flags

    with av.open(str(path), "w", format="webm", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libvpx-vp9", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.options = {"crf": "24", "b": "0", "deadline": "good", "cpu-used": "4", "row-mt": "0", "threads": "1"}
        stream.codec_context.thread_count = 1
        stream.codec_context.flags |= Flags.bitexact
        stream.codec_context.time_base = Fraction(1, FPS)
        for k in range(int(episode.seconds * FPS) + 1):
            picture = episode.picture(k / FPS, "agent", HEIGHT, WIDTH)
            frame = av.VideoFrame.from_ndarray(picture.rgb, format="rgb24")
            frame.pts, frame.time_base = k, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
