"""A made-up stored clip that obeys every rule of the schema, for tests, for `--help` examples and for debug recipes.

The scene is a bumpy table seen by a pinhole camera; a token is a cell of the normalised space, as in a real store,
so that sizes and compression are lifelike. Features are noise.
"""

import io

import numpy as np

from data_specs.arrays import Array
from data_specs.records import Cameras, Cells, ClipRecord, Images, Points, Tokens, exclusive_sum
from data_specs.shards import GRID


def example_record(
    key: str = "clip",
    *,
    frames: int = 2,
    points: int = 8192,
    channels: int = 512,
    size: int = 224,
    kept: int | None = None,
    cell: float = 0.32,
    state: int = 0,
    action: int = 0,
    split: str = "train",
    text: str = "Moving something up",
    seed: int = 0,
) -> ClipRecord:
    """A valid `ClipRecord` of `frames` frames, a function of its arguments.

    Args:
        key: also seeds the content, with `seed`.
        frames: F. points: P, at most size**2. channels: C. size: side of the frame in pixels, at least 14.
        kept: points that are real in every other frame (the rest is padding); all of them by default.
        cell: side of a token's cell in the normalised space [-1, 1]; smaller gives more tokens.
        state, action: their dimensions, 0 for none.
        split, text: as in `ClipRecord`.
        seed: another one gives another clip.
    """
    rng = np.random.default_rng([seed, *key.encode()])
    parts = [
        _frame(rng, i, points, points if kept is None or i % 2 else kept, channels, size, cell) for i in range(frames)
    ]

    def stack(name: str) -> Array:
        return np.stack([part[name] for part in parts])

    def join(name: str) -> Array:
        return np.concatenate([part[name] for part in parts])

    def offsets(name: str) -> Array:
        return exclusive_sum(np.array([len(part[name]) for part in parts]))

    return ClipRecord(
        key=key,
        split=split,
        text=text,
        time=np.arange(frames) / 4.0,
        tokens=Tokens(feat=join("feat"), coord=join("coord"), count=join("count"), offset=offsets("feat")),
        cells=Cells(cell=join("cell"), token=join("token"), count=join("cell_count"), offset=offsets("cell")),
        points=Points(pixel=stack("pixel"), rgb=stack("rgb"), depth=stack("depth"), conf=stack("conf")),
        camera=Cameras(
            intrinsic=stack("intrinsic"),
            extrinsic=stack("extrinsic"),
            range=stack("range"),
            conf_range=stack("conf_range"),
            normalisation=stack("normalisation"),
        ),
        rgb=Images(data=join("image"), offset=offsets("image")),
        state=rng.normal(size=(frames, state)).astype(np.float32) if state else None,
        action=rng.normal(size=(frames, action)).astype(np.float32) if action else None,
        is_pad=np.arange(frames) == frames - 1 if action else None,
    )


def _frame(
    rng: np.random.Generator, index: int, points: int, kept: int, channels: int, size: int, cell: float
) -> dict[str, Array]:
    row, column = np.divmod(np.arange(size * size), size)
    bumps = np.sin(row / size * 9 + index / 3) * np.cos(column / size * 7) * 0.2 + rng.normal(size=size * size) * 1e-3
    depth_all = 2.0 - row / size + bumps
    pixel = rng.choice(size * size, size=kept, replace=False)
    depth, focal = depth_all[pixel], 1.2 * size
    xyz = np.stack(
        [
            (column[pixel] - size / 2) / focal * depth,
            depth,
            -(row[pixel] - size / 2) / focal * depth,
        ],
        axis=1,
    )
    middle, scale = (xyz.max(0) + xyz.min(0)) / 2, 2.0 / max(np.ptp(xyz, axis=0).max(), 1e-3)
    coord = (xyz - middle) * scale
    _, token = np.unique(np.floor((coord + 1) / cell).astype(np.int64), axis=0, return_inverse=True)
    order = np.lexsort((pixel, token))
    pixel, depth, coord, token = pixel[order], depth[order], coord[order], token[order]
    count = np.bincount(token)
    mean = np.stack([np.bincount(token, coord[:, axis]) / count for axis in range(3)], axis=1)
    grid = (row[pixel] * GRID // size) * GRID + column[pixel] * GRID // size
    triplet, cell_count = np.unique(np.stack([grid, token], axis=1), axis=0, return_counts=True)
    near, far = depth.min(), depth.max()
    shade = np.clip(128 + 100 * bumps * 5, 0, 255)
    colour = np.stack([shade, 255 - shade, np.full_like(shade, 90)], axis=1).astype(np.uint8)

    def padded(values: Array, dtype: str) -> Array:
        out = np.zeros((points, *values.shape[1:]), dtype=dtype)
        out[:kept] = values
        return out

    return {
        "feat": rng.normal(size=(len(count), channels)).astype("<f2"),
        "coord": mean.astype("<f2"),
        "count": count.astype("<u2"),
        "cell": triplet[:, 0].astype("|u1"),
        "token": triplet[:, 1].astype("<u2"),
        "cell_count": cell_count.astype("<u2"),
        "pixel": padded(pixel, "<u2"),
        "rgb": padded(colour[pixel], "|u1"),
        "depth": padded(np.rint((depth - near) / max(far - near, 1e-9) * 65535), "<u2"),
        "conf": padded(np.clip(200 - 40 * depth + rng.normal(size=kept) * 4, 0, 255), "|u1"),
        "intrinsic": np.array([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]], dtype="<f4"),
        "extrinsic": np.array([[1, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0]], dtype="<f4"),
        "range": np.array([near, far], dtype="<f4"),
        "conf_range": np.array([1.0, 8.0], dtype="<f4"),
        "normalisation": np.array([*middle, scale], dtype="<f4"),
        "image": np.frombuffer(_jpeg(colour.reshape(size, size, 3)), dtype=np.uint8),
    }


def _jpeg(image: Array) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="jpeg", quality=90)
    return buffer.getvalue()
