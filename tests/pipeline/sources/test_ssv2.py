import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from video_files import write_video

from data_specs.datasets import ClipRef, FrameSampling
from data_specs.records import BadClip
from pipeline.sources import open_source
from pipeline.sources.ssv2 import Ssv2Source

SMALL = FrameSampling(fps=None, max=3, size=32)
CLASSES = {"Holding something": "0", "Moving part of something": "1"}


def item(name: str, thing: str = "a cup") -> dict[str, Any]:
    return {
        "id": name,
        "label": f"holding {thing}",
        "template": "Holding [something]",
        "placeholders": [thing],
    }


def layout(root: Path, labels: str, videos: str, long_names: bool = True) -> Path:
    """Two train clips, one of validation, one of test; each with a video."""
    prefix = "something-something-v2-" if long_names else ""
    splits = {
        "train": [item("100"), item("9", "a spoon")],
        "validation": [item("55")],
        "test": [{"id": "7"}],
    }
    for split, items in splits.items():
        put(root / labels / f"{prefix}{split}.json", items)
    put(root / labels / f"{prefix}labels.json", CLASSES)
    write_video(root / videos / "100.webm")
    for name in ("9", "55", "7"):
        (root / videos / f"{name}.webm").write_bytes((root / videos / "100.webm").read_bytes())
    return root


def put(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def ssv2(root: Path, split: str | None = None) -> Ssv2Source:
    source = open_source("ssv2", root, split)
    assert isinstance(source, Ssv2Source)
    return source


LAYOUTS = [
    (".", "."),
    ("labels", "20bn-something-something-v2"),
    (".", "20bn-something-something-v2"),
    ("labels", "videos"),
    ("videos", "videos"),
    ("something-something-v2/labels", "something-something-v2/20bn-something-something-v2"),
    ("data", "data/videos"),
]


@pytest.mark.parametrize("long_names", [True, False])
@pytest.mark.parametrize(("labels", "videos"), LAYOUTS)
def test_layouts(tmp_path: Path, labels: str, videos: str, long_names: bool) -> None:
    source = ssv2(layout(tmp_path, labels, videos, long_names))
    refs = source.clips()
    assert [r.key for r in refs] == ["100", "55", "7", "9"]  # ids sort as strings
    assert [r.split for r in refs] == ["train", "validation", "test", "train"]
    assert [r.text for r in refs] == ["holding a cup", "holding a cup", "", "holding a spoon"]
    assert [r.problem for r in refs] == [None] * 4
    assert [r.index for r in refs] == [0, 1, 2, 3]
    assert dict(refs[0].extra) == {"class": "0", "template": "Holding [something]"}
    assert refs[2].extra == ()
    clip = source.read(refs[3], SMALL)
    assert (clip.key, clip.split, clip.text, clip.rgb.shape) == ("9", "train", "holding a spoon", (3, 32, 32, 3))


@pytest.mark.parametrize(
    ("split", "keys"),
    [("train", ["100", "9"]), ("validation", ["55"]), ("val", ["55"]), ("test", ["7"])],
)
def test_splits(tmp_path: Path, split: str, keys: list[str]) -> None:
    assert [r.key for r in ssv2(layout(tmp_path, "labels", "videos"), split).clips()] == keys


def test_only_the_splits_that_are_there(tmp_path: Path) -> None:
    layout(tmp_path, "labels", "videos")
    (tmp_path / "labels/something-something-v2-test.json").unlink()
    assert [r.key for r in ssv2(tmp_path).clips()] == ["100", "55", "9"]
    with pytest.raises(ValueError, match=r"no label file.*something-something-v2-test.json or test.json there"):
        ssv2(tmp_path, "test").clips()


def test_without_labels_json_there_is_no_class(tmp_path: Path) -> None:
    layout(tmp_path, "labels", "videos")
    (tmp_path / "labels/something-something-v2-labels.json").unlink()
    assert dict(ssv2(tmp_path, "train").clips()[0].extra) == {"template": "Holding [something]"}


def test_videos_on_another_disk(tmp_path: Path) -> None:
    layout(tmp_path / "disk", "x", "videos")
    (tmp_path / "root").mkdir()
    (tmp_path / "root/labels").symlink_to(tmp_path / "disk/x")
    (tmp_path / "root/20bn-something-something-v2").symlink_to(tmp_path / "disk/videos")
    (tmp_path / "disk/videos/again").symlink_to(tmp_path / "root")  # a circle
    refs = ssv2(tmp_path / "root").clips()
    assert [r.problem for r in refs] == [None] * 4


def test_webm_comes_before_a_transcoded_copy(tmp_path: Path) -> None:
    layout(tmp_path, "labels", "videos")
    (tmp_path / "100.mp4").touch()
    (tmp_path / "videos/9.webm").rename(tmp_path / "videos/9.MKV")
    paths = {r.key: r.path for r in ssv2(tmp_path).clips()}
    assert paths["100"] == tmp_path / "videos/100.webm"
    assert paths["9"] == tmp_path / "videos/9.MKV"


BAD_ITEMS = [
    ("no id", {"label": "x", "template": "x"}, "item 1 of train.json has no 'id', expected a string"),
    ("empty id", item(""), "item 1 of train.json has the id '', expected a string"),
    ("id is a list", item("4") | {"id": [4]}, "has the id [4], expected a string"),
    ("id is true", item("4") | {"id": True}, "has the id True, expected a string"),
    ("no label", {"id": "4", "template": "Holding [something]"}, "has no 'label', expected a sentence"),
    ("label is a number", item("4") | {"label": 12}, "has the label 12, expected a sentence"),
    ("label is long", item("4") | {"label": list("x" * 999)}, "', ..., expected a sentence"),
    ("no template", {"id": "4", "label": "x"}, "has no 'template', expected a sentence with [something]"),
    ("template is null", item("4") | {"template": None}, "has the template None, expected"),
    ("unknown template", item("4") | {"template": "Eating [something]"}, "expected one of the 2 in labels.json"),
    ("no object", "4", "item 1 of train.json is a str, expected an object"),
    ("null", None, "item 1 of train.json is a NoneType, expected an object"),
    ("no video", item("404"), "the video 404.webm is missing"),
    ("escaping id", item("../../etc/passwd"), "the video ../../etc/passwd.webm is missing"),
    ("twice", item("1", "another"), "the id 1 is listed 2 times (first in train.json), expected once"),
]


@pytest.mark.parametrize(("bad", "problem"), [b[1:] for b in BAD_ITEMS], ids=[b[0] for b in BAD_ITEMS])
def test_bad_items_become_bad_clips(tmp_path: Path, bad: Any, problem: str) -> None:
    put(tmp_path / "train.json", [item("1"), bad, item("2")])
    put(tmp_path / "labels.json", CLASSES)
    for name in ("1", "2", "4"):
        (tmp_path / f"{name}.webm").write_bytes(b"x")
    source = ssv2(tmp_path)
    refs = source.clips()
    assert len({r.key for r in refs}) == len(refs)
    (ref,) = [r for r in refs if r.problem is not None]
    assert problem.split("...")[0] in ref.problem and problem.split("...")[-1] in ref.problem
    assert len(ref.problem) < 250
    assert "2" in [r.key for r in refs if r.problem is None]
    with pytest.raises(BadClip) as caught:
        source.read(ref, SMALL)
    assert caught.value.key == ref.key and caught.value.reason == ref.problem


def test_bad_items_are_listed_beside_good_ones_with_unique_keys(tmp_path: Path) -> None:
    names = ["1", "train-item-3", "a b", None, "a.b"]
    items = [item("x") | {"id": n} for n in names]
    put(tmp_path / "train.json", items)
    keys = [r.key for r in ssv2(tmp_path).clips()]
    assert keys == sorted(keys) and len(set(keys)) == 5
    assert "1" in keys
    put(tmp_path / "train.json", items[::-1])
    again = {r.key for r in ssv2(tmp_path).clips() if not r.key.startswith("train-item")}
    assert again <= set(keys)  # the order of the file does not change the keys


def test_an_integer_id_names_the_same_video(tmp_path: Path) -> None:
    put(tmp_path / "train.json", [item("x") | {"id": 31}])
    (tmp_path / "31.webm").touch()
    assert [(r.key, r.problem) for r in ssv2(tmp_path).clips()] == [("31", None)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not JSON"),
        (b'[{"id": "1"', "is not JSON"),
        (b"\xff\xfe\x00", "is not JSON"),
        (b"[" * 100_000, "is nested deeper than 64 levels"),
        (b'{"id": "1"}', "holds a dict, expected a list"),
        (b"7", "holds a int, expected a list"),
    ],
)
def test_a_label_file_that_cannot_be_used(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "train.json").write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        ssv2(tmp_path).clips()
    assert "train.json" in str(caught.value)


def test_labels_json_that_is_no_map(tmp_path: Path) -> None:
    put(tmp_path / "train.json", [])
    put(tmp_path / "labels.json", {"Holding something": 0})
    with pytest.raises(ValueError, match="is no map from a template to its index"):
        ssv2(tmp_path).clips()


def test_two_label_files_that_differ(tmp_path: Path) -> None:
    put(tmp_path / "train.json", [item("1")])
    put(tmp_path / "labels/something-something-v2-train.json", [item("1")])
    assert len(ssv2(tmp_path).clips()) == 1
    put(tmp_path / "labels/something-something-v2-train.json", [item("2")])
    with pytest.raises(ValueError, match="differ; keep the one that is meant"):
        ssv2(tmp_path).clips()


def test_no_label_files(tmp_path: Path) -> None:
    (tmp_path / "1.webm").touch()
    with pytest.raises(ValueError, match=r"1 videos were found.*--dataset video"):
        ssv2(tmp_path).clips()


def test_unknown_split_and_option(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"no split 'validate'; choose from train, validation, test.*mean 'validation'"
    ):
        ssv2(tmp_path, "validate")
    with pytest.raises(ValueError, match="no option 'fps'; it has none"):
        Ssv2Source(tmp_path, None, {"fps": "3"})
    with pytest.raises(ValueError, match="needs --root"):
        Ssv2Source(None, None, {})


def test_a_pickled_source_reads_and_is_small(tmp_path: Path) -> None:
    source = ssv2(layout(tmp_path, "labels", "videos"))
    before = len(pickle.dumps(source))
    refs = source.clips()
    assert source.clips() is refs
    assert len(pickle.dumps(source)) == before < 1000
    copy = pickle.loads(pickle.dumps(source))
    ref: ClipRef = pickle.loads(pickle.dumps(refs[0]))
    assert (copy.read(ref, SMALL).rgb == source.read(ref, SMALL).rgb).all()
    assert list(copy.clips()) == list(refs)
