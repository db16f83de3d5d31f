"""`cla inspect-shards --rerun`: a recording of a store for the Rerun viewer, with the `[viz]` extra."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_specs.arrays import Array
from data_specs.records import ClipRecord
from pipeline.config import FailedError, RequestError
from pipeline.page.clouds import (
    MAX_CLIPS,
    Components,
    fit_components,
    frames_a_clip,
    point_conf,
    point_count,
    point_depth,
    point_tokens,
    spread,
    stored_image,
)
from pipeline.page.pictures import colour_map, media_type
from pipeline.store import open_store

if TYPE_CHECKING:
    from types import ModuleType

TIMELINE = "video"
"""Seconds from the start of the clip's video."""


def write_recording(store: str, out: Path) -> None:
    """Write clouds, frames and cameras of up to 8 clips, spread over the store, to `out` (.rrd).

    Clip i is the entity `/clips/KEY` with `points/{rgb,features,confidence}`, `camera`, `camera/image`,
    `camera/depth` and `text`, on the timeline `video`. Points and cameras are in the stored world, z up.

    Raises:
        RequestError: rerun-sdk is not installed, there is no store, or no folder for `out`.
        FailedError: the store is damaged, or `out` cannot be written.
    """
    rerun = _import_rerun()
    if not out.parent.is_dir():
        raise RequestError(f"There is no folder {out.parent}: create it, or name another file for --rerun.")
    opened = open_store(store)
    records = [opened[i] for i in spread(len(opened), MAX_CLIPS)]
    frames = [spread(len(record), frames_a_clip(len(records))) for record in records]
    components = fit_components(records, frames)
    # the same store gives the same recording, up to the time it was written
    recording = rerun.RecordingStream("cla", recording_id=f"cla-{opened.digest[:16]}", send_properties=False)
    try:
        recording.save(str(out), default_blueprint=_blueprint([_entity(record) for record in records]))
    except (OSError, RuntimeError) as error:
        raise FailedError(f"The recording cannot be written to {out}: {error}") from error
    with recording:
        for record, chosen in zip(records, frames, strict=True):
            _log_clip(rerun, recording, record, chosen, components, opened.manifest.sizes["W"])
    recording.flush()
    recording.disconnect()


def _import_rerun() -> "ModuleType":
    try:
        import rerun
    except ImportError:
        raise RequestError(
            "--rerun needs the Rerun SDK, which is not installed: pip install 'concerto-laq[viz]'"
        ) from None
    return rerun


def _entity(record: ClipRecord) -> list[str]:
    # the parts of a path as a list: Rerun then escapes whatever a key holds
    return ["clips", record.key]


def _blueprint(entities: list[list[str]]) -> Any:
    import rerun
    import rerun.blueprint as layout

    tabs = []
    for entity in entities:
        path = "/" + rerun.new_entity_path(entity)
        cloud = layout.Spatial3DView(origin=path, name="cloud", contents=["$origin/points/rgb", "$origin/camera"])
        features = layout.Spatial3DView(origin=path, name="features", contents=["$origin/points/features"])
        frame = layout.Spatial2DView(origin=f"{path}/camera", name="frame", contents=["$origin/image"])
        depth = layout.Spatial2DView(origin=f"{path}/camera", name="depth", contents=["$origin/depth"])
        tabs.append(
            layout.Horizontal(
                cloud, layout.Vertical(features, layout.Horizontal(frame, depth)), column_shares=[3, 2], name=entity[-1]
            )
        )
    return layout.Blueprint(layout.Tabs(*tabs), collapse_panels=True)


def _log_clip(
    rerun: "ModuleType", recording: Any, record: ClipRecord, frames: list[int], components: Components, width: int
) -> None:
    entity = _entity(record)
    recording.log(entity, rerun.ViewCoordinates.RIGHT_HAND_Z_UP, static=True)
    recording.log([*entity, "text"], rerun.TextDocument(record.text or record.key), static=True)
    for i in frames:
        recording.set_time(TIMELINE, duration=float(record.time[i]))
        _log_frame(rerun, recording, record, i, components, width)


def _log_frame(
    rerun: "ModuleType", recording: Any, record: ClipRecord, i: int, components: Components, width: int
) -> None:
    entity, camera = _entity(record), record.camera
    n, depth_n = point_count(record, i), point_depth(record, i)
    pixel_n = record.points.pixel[i, :n].astype(np.int64)
    xyz_n3 = unproject(pixel_n, depth_n, camera.intrinsic[i], camera.extrinsic[i], width)
    # half the distance between neighbouring points as the camera sees them
    radius_n = 0.5 * depth_n / camera.intrinsic[i, 0, 0] * np.sqrt(width * width / max(n, 1))
    rows = slice(int(record.tokens.offset[i]), int(record.tokens.offset[i + 1]))
    low, high = (float(value) for value in camera.conf_range[i])
    level = (point_conf(record, i) - low) / (high - low) if high > low else np.ones(n)
    colours = {
        "rgb": record.points.rgb[i, :n],
        "features": components.colours(record.tokens.features[rows])[point_tokens(record, i)],
        "confidence": colour_map("conf")[np.rint(np.clip(level, 0, 1) * 255).astype(int)],
    }
    for name, colour in colours.items():
        recording.log([*entity, "points", name], rerun.Points3D(xyz_n3, colors=colour, radii=radius_n))
    rotation, translation = camera.extrinsic[i, :, :3], camera.extrinsic[i, :, 3]
    recording.log(
        [*entity, "camera"],
        rerun.Transform3D(translation=-rotation.T @ translation, mat3x3=rotation.T),
        rerun.Pinhole(
            image_from_camera=camera.intrinsic[i],
            resolution=[width, width],
            camera_xyz=rerun.ViewCoordinates.RDF,
            image_plane_distance=float(np.median(depth_n)) * 0.25 if n else None,
        ),
    )
    image = stored_image(record, i)
    recording.log([*entity, "camera", "image"], rerun.EncodedImage(contents=image, media_type=media_type(image)))
    # zero where no point was kept, which is what Rerun takes for no reading
    sparse = np.zeros((width, width), np.float32)
    sparse.reshape(-1)[pixel_n] = depth_n
    recording.log([*entity, "camera", "depth"], rerun.DepthImage(sparse, meter=1.0))


def unproject(pixel_n: Array, depth_n: Array, intrinsic: Array, extrinsic: Array, width: int) -> Array:
    """World coordinates f8 [n,3] of pixels (row * width + column) at depths along the optical axis.

    `intrinsic` [3,3] in pixels, `extrinsic` [3,4] OpenCV camera-from-world.
    """
    pixel = np.stack([pixel_n % width, pixel_n // width], axis=1)
    focal, middle = intrinsic[[0, 1], [0, 1]].astype(np.float64), intrinsic[[0, 1], [2, 2]].astype(np.float64)
    camera = np.concatenate([(pixel - middle) / focal * depth_n[:, None], depth_n[:, None]], axis=1)
    return np.asarray((camera - extrinsic[:, 3]) @ extrinsic[:, :3])
