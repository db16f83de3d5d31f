"""Writes what `cla eval probe` shows: the page of a run, and the picture of codes against motion."""

from pathlib import Path

from data_specs.arrays import Array
from pipeline.config import FailedError, RequestError
from pipeline.evaluate.encoding import Encoder
from pipeline.evaluate.figure import choose_shared, draw_shared
from pipeline.evaluate.judge import Judged
from pipeline.evaluate.page import PageContent, render_page
from pipeline.store.pixels import decode_images
from pipeline.train.metrics import read_metrics


def check_out(path: Path, option: str) -> None:
    """RequestError when there is no folder for a file; before the work, not after."""
    if not path.parent.is_dir():
        raise RequestError(f"There is no folder {path.parent}: create it, or name another file for {option}.")
    if path.is_dir():
        raise RequestError(f"{path} is a folder: name a file for {option}.")


def picture(encoder: Encoder, judged: Judged) -> bytes:
    """Codes against motion as PNG: held-out pairs that share the most used codes, as the store has their images."""
    held_out, judgement = judged.held_out, judged.judgement
    moving = [at for at, name in enumerate(judgement.all_dimensions) if name in judgement.dimensions]
    shared = choose_shared(held_out.latents.codes, held_out.clip, held_out.action[:, moving], encoder.codes)
    images = [_pairs(encoder, judged, held_out.rows[item.rows]) for item in shared]
    return draw_shared(shared, images, judgement.dimensions)


def write_report(encoder: Encoder, judged: Judged, *, html: Path | None, png: Path | None) -> None:
    """Write the page and the picture where they are asked for. FailedError when a file cannot be written."""
    drawn = picture(encoder, judged)
    if png is not None:
        _write(png, drawn)
    if html is not None:
        train, val = (read_metrics(encoder.run.path, split) for split in ("train", "val"))
        page = render_page(PageContent(judgement=judged.judgement, train=train, val=val, picture=drawn))
        _write(html, page.encode())


def _pairs(encoder: Encoder, judged: Judged, rows: Array) -> list[tuple[Array, Array]]:
    """Both frames u1 [W,W,3] of pairs."""
    first, second = (
        decode_images(images).numpy()
        for frames in (judged.pairs.first[rows], judged.pairs.second[rows])
        if (images := encoder.store.batch(frames, ("rgb",)).rgb) is not None
    )
    return list(zip(first, second, strict=True))


def _write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise FailedError(f"{path} cannot be written: {error.strerror or error}.") from error
