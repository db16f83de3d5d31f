import base64
import hashlib
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from headless_browser import find_browser, open_page, screenshot
from PIL import Image
from shown_store import CHANNELS, RANDOM, SIZE, TRAINED, small_records, write_store

from data_specs.examples import example_record
from data_specs.records import ClipRecord
from pipeline.config import RequestError
from pipeline.inspect_html import fill, script_json, write_page
from pipeline.inspect_rerun import unproject
from pipeline.inspect_shards import inspect_store
from pipeline.page import charts, clouds, pictures
from pipeline.store.language import LanguageTable, write_language
from pipeline.store.layout import StoreLayout

TEXT = RANDOM.model_copy(update={"role": "text"})
HOSTILE = "</script><script>document.body.dataset.error='ran'</script><img src=x onerror=alert(1)>{{title}}\u2028&\"'"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    store = write_store(folder / "store", small_records(), rejected=[("bad-clip", "frame 1 has no depth")])
    write_page(store, inspect_store(store, verify=True), folder / "page.html")
    return folder / "page.html"


@pytest.fixture(scope="module")
def hostile_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    model = TRAINED.model_copy(update={"name": HOSTILE, "revision": HOSTILE, "licence": HOSTILE})
    store = write_store(
        folder / "store", small_records(2, texts=[HOSTILE]), rejected=[("x", HOSTILE)], models=[model], title=HOSTILE
    )
    write_page(store, inspect_store(store), folder / "page.html")
    return folder / "page.html"


@pytest.fixture(scope="module")
def empty_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("empty")
    store = write_store(folder / "store", [], rejected=[("x", "too short")])
    write_page(store, inspect_store(store, verify=True), folder / "page.html")
    return folder / "page.html"


def page_data(page: Path) -> dict[str, object]:
    found = re.search(r'id="page-data">(.*?)</script>', page.read_text(), re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def test_page_shows_encoders_cameras_and_language(tmp_path: Path) -> None:
    record = small_records(1)[0]
    rows = {"eye": np.zeros((3, 9, 6), np.float16)}
    images = record.rgb
    write_store(tmp_path / "store", [replace(record, vision=rows, views={"wrist": images})], models=[TRAINED, TEXT])
    table = LanguageTable.of({record.text: torch.ones(4, 5)}, model=TEXT, limit=77)
    write_language(StoreLayout.open(str(tmp_path / "store")), table)
    write_page(str(tmp_path / "store"), inspect_store(str(tmp_path / "store"), verify=True), tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert "through Concerto and a text encoder:" in text
    assert "tells instructions apart and knows nothing of what they mean" in text
    assert "not what the scene is" not in text
    assert "<dd>eye: 9 tokens of 6</dd>" in text
    assert "<dd>1 distinct instructions, up to 4 tokens of 5</dd>" in text
    (camera,) = re.findall(r'<figure><img src="data:image/jpeg;base64,([^"]+)" alt="Camera wrist">', text)
    assert base64.b64decode(camera) == images.data[: images.offset[1]].tobytes()


# ---- the file ----


def test_page_loads_nothing_from_anywhere(page: Path) -> None:
    text = page.read_text()
    markup = re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
    loaded = re.findall(r"""(?:src|srcset|href|action|poster)\s*=\s*["']?([^"'\s>]+)""", markup)
    assert loaded and all(target.startswith("data:") for target in loaded)
    assert not re.search(r"@import|url\(|https?://|//[a-z0-9.-]+\.[a-z]{2,}/|\bfetch\(|XMLHttpRequest|import\(", text)
    assert "default-src 'none'" in text


def test_policy_allows_exactly_the_script_of_the_page(page: Path) -> None:
    text = page.read_text()
    script = re.search(r"<script>(.*?)</script>", text, re.DOTALL)
    assert script is not None
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text


def test_page_says_what_the_store_is(page: Path) -> None:
    text = page.read_text()
    store = str(page.parent / "store")
    summary = inspect_store(store)
    assert "<h1>A small world</h1>" in text
    assert "3 clips and 9 frames through VGGT and Concerto" in text
    assert summary.digest in text and "every checksum verified" in text
    assert f"{summary.compression_vs_dense:.1f}".rstrip("0").rstrip(".") in text
    assert "Random weights." in text and "VGGT (<code>random:0</code>) is not trained" in text
    assert "frame 1 has no depth" in text
    assert "This store is damaged" not in text
    assert text.count('<img data-of="image"') == text.count('<img data-of="depth"') == 9
    assert not re.search(r"\{\{[a-z_]+\}\}", text)


def test_trained_models_get_no_banner(tmp_path: Path) -> None:
    store = write_store(tmp_path / "store", small_records(1), models=[TRAINED])
    write_page(store, inspect_store(store), tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert "Random weights." not in text and "verified" not in text.split("<style>")[0]
    assert "abababababab<" in text and "CC-BY-NC-4.0" in text


@pytest.mark.parametrize("store_format", ["zarr", "webdataset"])
def test_both_formats_give_the_same_clouds(tmp_path: Path, page: Path, store_format: str) -> None:
    store = write_store(tmp_path / "store", small_records(), store_format=store_format)  # type: ignore[arg-type]
    write_page(store, inspect_store(store), tmp_path / "page.html")
    assert page_data(tmp_path / "page.html") == page_data(page)


def test_texts_of_a_store_are_escaped(hostile_page: Path) -> None:
    text = hostile_page.read_text()
    assert text.count("<script") == 2 and text.count("</script>") == 2
    assert "<img src=x" not in text and "\u2028" not in re.findall(r'id="page-data">(.*?)</script>', text, re.DOTALL)[0]
    assert text.count("&lt;/script&gt;") >= 6  # title, texts, reason, model, revision, licence
    assert "{{title}}" in text  # a value is never filled in again
    assert page_data(hostile_page)["clips"][0]["text"] == HOSTILE  # type: ignore[index]


def test_store_without_clips_makes_a_page(empty_page: Path) -> None:
    text = empty_page.read_text()
    assert "No clips" in text and "0 clips and 0 frames" in text and "too short" in text
    assert 'id="stage"' not in text and page_data(empty_page)["clips"] == []


def test_damage_is_announced_and_whole_clips_are_shown(tmp_path: Path) -> None:
    store = write_store(tmp_path / "store", small_records(3), models=[RANDOM])
    file = next((tmp_path / "store" / "shards").glob("000001.*zip"))
    data = bytearray(file.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 30000] = bytes(255 - value for value in data[middle : middle + 30000])
    file.chmod(0o644)
    file.write_bytes(data)
    summary = inspect_store(store, verify=True)
    assert summary.damages
    write_page(store, summary, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert "This store is damaged" in text and "000001" in text.split('class="figures"')[0]
    assert "· damaged" in text
    keys = [clip["key"] for clip in page_data(tmp_path / "page.html")["clips"]]  # type: ignore[attr-defined]
    assert {"clip-0", "clip-2"} <= set(keys)


def test_missing_folder_and_missing_store_are_requests_that_are_wrong(tmp_path: Path) -> None:
    store = write_store(tmp_path / "store", small_records(1))
    summary = inspect_store(store)
    with pytest.raises(RequestError, match="no folder"):
        write_page(store, summary, tmp_path / "nowhere" / "page.html")
    with pytest.raises(RequestError):
        write_page(str(tmp_path / "other"), summary, tmp_path / "page.html")


# ---- its parts ----


def test_fill_replaces_once() -> None:
    assert fill("{{a}}-{{b}}", {"a": "{{b}}", "b": "x{{a}}"}) == "{{b}}-x{{a}}"
    with pytest.raises(KeyError):
        fill("{{unknown}}", {})


def test_script_json_cannot_close_its_element() -> None:
    text = script_json({"a": HOSTILE, "b": "<!--"})
    assert not set("<>&\u2028\u2029") & set(text) and text.isascii()
    assert json.loads(text) == {"a": HOSTILE, "b": "<!--"}


def test_depth_picture_keeps_stored_points_and_leaves_holes() -> None:
    pixel = np.array([10 * SIZE + 10, 10 * SIZE + 12, 200 * SIZE + 100])
    picture = Image.open(io.BytesIO(pictures.depth_picture(pixel, np.array([1.0, 2.0, 3.0]), 1.0, 3.0, SIZE)))
    index = np.asarray(picture)
    assert index.shape == (SIZE, SIZE)
    assert index[10, 10] == 0 and index[10, 12] == 127 and index[200, 100] == 254
    assert index[10, 11] == 0  # between two points the nearer surface wins
    assert index[200, 100 + pictures.REACH] == 254
    assert index[200, 101 + pictures.REACH] == pictures.HOLE and index[100, 100] == pictures.HOLE
    assert np.asarray(picture.convert("RGBA"))[100, 100, 3] == 0


def test_image_uri_accepts_images_only() -> None:
    assert pictures.image_uri(b"\xff\xd8\xff\xe0").startswith("data:image/jpeg;base64,")  # type: ignore[union-attr]
    assert pictures.image_uri(b"\x89PNG\r\n\x1a\n").startswith("data:image/png;base64,")  # type: ignore[union-attr]
    assert pictures.image_uri(b"<svg onload=alert(1)>") is None


def test_components_find_planted_directions_with_counts_as_weights() -> None:
    rng = np.random.default_rng(0)
    record = example_record("a", frames=2, points=4096, channels=CHANNELS, cell=0.05)
    basis = np.linalg.qr(rng.normal(size=(CHANNELS, 3)))[0]
    rows = len(record.tokens.feat)
    feat = (rng.normal(size=(rows, 3)) * [9.0, 3.0, 1.0]) @ basis.T + 5
    record.tokens.feat[:] = feat
    found = clouds.fit_components([record], [[0, 1]])
    np.testing.assert_allclose(np.abs(np.sum(found.axes * basis, axis=0)), 1, atol=0.02)
    repeated = np.repeat(feat, record.tokens.count, axis=0)
    variance = np.linalg.eigvalsh(np.cov(repeated.T))[:-4:-1]
    np.testing.assert_allclose(found.share, variance / np.var(repeated, axis=0).sum(), rtol=0.01)
    assert (found.axes[np.abs(found.axes).argmax(axis=0), range(3)] > 0).all()
    colour = found.colours(record.tokens.feat)
    assert colour.shape == (rows, 3) and colour.min() == 0 and colour.max() == 255
    order = np.argsort((feat - found.mean) @ found.axes[:, 0])
    assert (np.diff(colour[order, 0].astype(int)) >= -1).all()


def test_components_of_equal_features_are_grey() -> None:
    record = example_record("a", points=2000, channels=CHANNELS)
    record.tokens.feat[:] = 1.5
    colour = clouds.fit_components([record], [[0]]).colours(record.tokens.feat)
    assert (colour == 128).all()


def test_spread_takes_both_ends() -> None:
    assert clouds.spread(3, 8) == [0, 1, 2]
    assert clouds.spread(100, 4) == [0, 33, 66, 99]
    assert clouds.spread(5, 1) == [0] and clouds.spread(0, 3) == []
    assert clouds.frames_a_clip(8) * 8 <= clouds.MAX_FRAMES and clouds.frames_a_clip(1) == clouds.MAX_FRAMES_A_CLIP


def _view(record: ClipRecord) -> clouds.ClipView:
    frames = range(len(record))
    return clouds.clip_view(record, frames, clouds.fit_components([record], [frames]), SIZE)


def test_clip_view_carries_the_stored_points_without_padding() -> None:
    record = example_record("a", frames=2, points=2000, kept=1500, channels=CHANNELS)
    view = _view(record)
    for i, frame in enumerate(view.frames):
        n = clouds.point_count(record, i)
        pixel = np.frombuffer(base64.b64decode(frame.data["pixel"]), "<u2")
        count = np.frombuffer(base64.b64decode(frame.data["count"]), "<u2")
        assert frame.points == n == len(pixel) == count.sum()
        np.testing.assert_array_equal(pixel, record.points.pixel[i, :n])
        assert frame.tokens == len(count) == record.tokens.offset[i + 1] - record.tokens.offset[i]
    assert [frame.points for frame in view.frames] == [1500, 2000]


def test_large_clouds_are_thinned_with_their_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clouds, "MAX_POINTS", 500)
    record = example_record("a", frames=1, points=2000, channels=CHANNELS)
    frame = _view(record).frames[0]
    count = np.frombuffer(base64.b64decode(frame.data["count"]), "<u2")
    rgb = np.frombuffer(base64.b64decode(frame.data["rgb"]), "u1")
    assert frame.points == 2000 and count.sum() == 500 and len(rgb) == 1500 and len(count) == frame.tokens


def test_histogram_counts_every_value_once() -> None:
    values = np.random.default_rng(0).normal(size=1000)
    assert sum(charts.Histogram.of(values).counts) == 1000
    whole = charts.Histogram.of(np.array([3, 3, 4, 9]))
    assert sum(whole.counts) == 4 and whole.counts[0] == 2
    svg = charts.histogram_svg(whole, name="N′", unit="rows", mark=3.5)
    assert svg.count('class="bar"') == 3 and "median 3.5" in svg
    assert "everywhere" in charts.histogram_svg(charts.Histogram.of(np.ones(5)), name="c", unit="")
    assert "nothing" in charts.histogram_svg(charts.Histogram.of(np.zeros(0)), name="c", unit="")


def test_bar_list_adds_up_what_is_small() -> None:
    html = charts.bar_list({"large": 1000.0, "<b>": 500.0, "tiny": 1.0, "tinier": 2.0})
    assert "2 smaller arrays" in html and "3 B" in html and "&lt;b&gt;" in html and "tinier" not in html


def test_numbers_read_well() -> None:
    assert [charts.number(v) for v in (8192, 0.25, 1234.5, 3.14159)] == ["8,192", "0.25", "1,234", "3.14"]
    assert [charts.size(v) for v in (812, 83_400, 8_390_000, 999_600)] == ["812 B", "83.4 kB", "8.39 MB", "1 MB"]


# ---- in a browser ----


@pytest.mark.browser
def test_viewer_draws_with_webgl(page: Path, tmp_path: Path) -> None:
    dom = open_page(page, tmp_path)
    canvas = dom.by_id["cloud"]
    assert "data-error" not in dom.body
    assert canvas["data-painter"] == "webgl2"
    assert int(canvas["data-points"]) == 1800
    assert int(canvas["data-lit"]) > 20_000
    assert canvas["data-clip"] == "0" and canvas["data-color"] == "rgb"


@pytest.mark.browser
def test_viewer_draws_without_webgl_in_the_same_place(page: Path, tmp_path: Path) -> None:
    dom = open_page(page, tmp_path, "clip=1&frame=1&painter=2d")
    canvas = dom.by_id["cloud"]
    assert "data-error" not in dom.body
    assert canvas["data-painter"] == "2d" and canvas["data-clip"] == "1" and canvas["data-frame"] == "1"
    assert int(canvas["data-points"]) == 2000 and int(canvas["data-lit"]) > 5_000
    # the cloud lies where the stored cameras put it
    record = small_records()[1]
    depth, camera = clouds.point_depth(record, 1), record.camera
    xyz = unproject(record.points.pixel[1].astype(np.int64), depth, camera.intrinsic[1], camera.extrinsic[1], SIZE)
    coord = (xyz - camera.normalisation[1, :3]) * camera.normalisation[1, 3]
    low, high = (np.array(canvas[f"data-{end}"].split(","), float) for end in ("low", "high"))
    np.testing.assert_allclose(low, np.percentile(coord, 2, axis=0), atol=0.02)
    np.testing.assert_allclose(high, np.percentile(coord, 98, axis=0), atol=0.02)


@pytest.mark.browser
def test_every_colouring_is_another(page: Path, tmp_path: Path) -> None:
    means = {}
    for color in ("rgb", "pca", "token", "conf", "depth"):
        dom = open_page(page, tmp_path, f"color={color}&clip=2&painter=2d")
        assert "data-error" not in dom.body
        assert dom.by_id["cloud"]["data-color"] == color
        means[color] = dom.by_id["cloud"]["data-mean"]
    assert len(set(means.values())) == 5, means


@pytest.mark.browser
def test_hostile_texts_do_nothing(hostile_page: Path, tmp_path: Path) -> None:
    dom = open_page(hostile_page, tmp_path)
    assert "data-error" not in dom.body
    assert HOSTILE in dom.text["h1"]
    assert int(dom.by_id["cloud"]["data-lit"]) > 0


@pytest.mark.browser
def test_page_without_clips_opens(empty_page: Path, tmp_path: Path) -> None:
    assert "data-error" not in open_page(empty_page, tmp_path).body


@pytest.mark.browser
def test_screenshot_shows_the_cloud(page: Path, tmp_path: Path) -> None:
    screenshot(page, tmp_path, tmp_path / "page.png", "color=pca", size=(1280, 1600))
    picture = Image.open(tmp_path / "page.png").convert("RGB")
    stage = np.asarray(picture.crop((100, 900, 850, 1450))).astype(int)
    colourful = np.ptp(stage, axis=2) > 60  # the stage itself is grey
    assert colourful.mean() > 0.05


DRIVER = """
const seen = {}, $ = (query) => document.querySelector(query);
const cloud = () => ({ ...$("#cloud").dataset }), x = () => $("#axis-x line").getAttribute("x2");
const wait = (time) => new Promise((done) => setTimeout(done, time));
const paint = () => $("[data-color-button=rgb]").click();  // at once: headless, the next animation frame may never come
const drag = (type, x, y, more) => $("#stage").dispatchEvent(
  new PointerEvent(type, { pointerId: 1, clientX: x, clientY: y, bubbles: true, ...more }));
(async () => {
  $("#stage").setPointerCapture = () => {};  // a made-up pointer cannot be captured
  seen.start = x();
  drag("pointerdown", 100, 100); drag("pointermove", 180, 100); drag("pointerup", 180, 100);
  paint(); seen.turned = x();
  $("#stage").dispatchEvent(new MouseEvent("dblclick", { bubbles: true }));
  paint(); seen.reset = x();
  $("[data-color-button=conf]").click(); seen.conf = cloud();
  seen.legend = [...document.querySelectorAll("[data-legend]")].filter((l) => !l.hidden).map((l) => l.dataset.legend);
  const before = Number(cloud().lit);
  for (let i = 0; i < 4; i += 1) $("#stage").dispatchEvent(new WheelEvent("wheel", { deltaY: 300, cancelable: true }));
  $("[data-color-button=rgb]").click(); seen.zoomed = Number(cloud().lit) / before;
  $("[data-goto='2/1']").click(); seen.gone = cloud(); seen.number = $("#now-number").textContent;
  seen.same = $("#now-image").src === $("img[data-of=image][data-at='2/1']").src;
  seen.address = location.hash;
  $("#play").click(); await wait(500); $("#play").click(); seen.played = cloud().frame;
  document.body.dataset.seen = JSON.stringify(seen);
})();
"""


@pytest.mark.browser
def test_controls_do_what_they_say(page: Path, tmp_path: Path) -> None:
    driven = re.sub(r"script-src '[^']+'", "script-src 'unsafe-inline'", page.read_text())
    (tmp_path / "page.html").write_text(driven.replace("</body>", f"<script>{DRIVER}</script></body>"))
    dom = open_page(tmp_path / "page.html", tmp_path, "painter=2d")
    assert "data-error" not in dom.body
    seen = json.loads(dom.body["data-seen"])
    assert seen["turned"] != seen["start"] == seen["reset"], seen
    assert seen["conf"]["color"] == "conf" and seen["legend"] == ["conf"]
    assert seen["zoomed"] < 0.5
    assert (seen["gone"]["clip"], seen["gone"]["frame"]) == ("2", "1")
    assert seen["number"] == "2 of 3" and seen["same"]
    assert seen["address"] == "#clip=2&frame=1&color=rgb"
    assert seen["played"] == "2"


def test_missing_browser_skips_or_fails_as_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CLA_REQUIRE_BROWSER", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no Chromium"):
        find_browser()
    monkeypatch.setenv("CLA_REQUIRE_BROWSER", "1")
    with pytest.raises(pytest.fail.Exception, match="no Chromium"):
        find_browser()
