"""The tabletop world as a LeRobot dataset v3.0: episodes share tables and videos.

meta/{info.json, stats.json, tasks.parquet}                              info.json comes last
meta/episodes/chunk-000/file-000.parquet      a row an episode: in which files it is, from where to where
data/chunk-000/file-000.parquet
videos/observation.images.agent/chunk-000/file-000.mp4
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from pipeline.sim import lerobot_files as files
from pipeline.sim.lerobot_files import SIZES, VIEWS, prepare, write
from pipeline.sim.mjcf import CONTROL_HZ
from pipeline.sim.plan import Plan

__all__ = ["SIZES", "VIEWS", "finish", "prepare", "write"]

DATA_MB, VIDEO_MB = 100, 200
"""Of a file, at most, as LeRobot has it."""
_FILE = "chunk-{chunk_index:03d}/file-{file_index:03d}"
_DATA, _EPISODES = f"data/{_FILE}.parquet", f"meta/episodes/{_FILE}.parquet"
_VIDEO = f"videos/{{video_key}}/{_FILE}.mp4"


def finish(plan: Plan, rows: list[dict[str, Any]]) -> None:
    """As in `pipeline.sim.plan.Format`."""
    tasks = files.task_numbers(rows)
    tables = [files.columns(plan, rows, tasks, index) for index in range(len(rows))]
    stats = [
        {**{name: files.array_stats(values) for name, values in table.items()}, **row["stats"]}
        for table, row in zip(tables, rows, strict=True)
    ]
    codec = files.codec_name(files.part(plan, 0, plan.views[0]))
    episodes: list[dict[str, Any]] = [
        {
            "episode_index": index,
            "tasks": [row["task"]],
            "length": row["length"],
            "dataset_from_index": int(table["index"][0]),
            "dataset_to_index": int(table["index"][-1]) + 1,
            "meta/episodes/chunk_index": 0,
            "meta/episodes/file_index": 0,
        }
        for index, (row, table) in enumerate(zip(rows, tables, strict=True))
    ]
    _write_data(plan, tables, episodes)
    for view in plan.views:
        _write_videos(plan, view, episodes)
    for episode, found in zip(episodes, stats, strict=True):
        for name, kinds in found.items():
            episode.update({f"stats/{name}/{kind}": value for kind, value in kinds.items()})
    _write_table(plan.out / _EPISODES.format(chunk_index=0, file_index=0), _episode_table(episodes))
    _write_table(plan.out / "meta/tasks.parquet", _task_table(tasks))
    files.write_json(
        plan.out / "meta/stats.json", {name: files.pooled_stats(s[name] for s in stats) for name in stats[0]}
    )
    info = {
        "codebase_version": "v3.0",
        "robot_type": "tabletop",
        "total_episodes": len(rows),
        "total_frames": sum(row["length"] for row in rows),
        "total_tasks": len(tasks),
        "chunks_size": files.CHUNKS_SIZE,
        "data_files_size_in_mb": DATA_MB,
        "video_files_size_in_mb": VIDEO_MB,
        "fps": CONTROL_HZ,
        "splits": {"train": f"0:{len(rows)}"},
        "data_path": _DATA,
        "video_path": _VIDEO,
        "features": files.features(plan, codec),
    }
    shutil.rmtree(plan.parts)
    files.write_json(plan.out / "meta/info.json", info)


def _write_data(plan: Plan, tables: Sequence[dict[str, Any]], episodes: list[dict[str, Any]]) -> None:
    sizes = [sum(values.nbytes for values in table.values()) for table in tables]
    for place, members in _files(sizes, DATA_MB):
        _write_table(plan.out / _DATA.format(**place), files.as_table([tables[i] for i in members]))
        for i in members:
            episodes[i].update({f"data/{name}": number for name, number in place.items()})


def _write_videos(plan: Plan, view: str, episodes: list[dict[str, Any]]) -> None:
    key = files.camera_key(view)
    parts = [files.part(plan, index, view) for index in range(len(episodes))]
    for place, members in _files([path.stat().st_size for path in parts], VIDEO_MB):
        path = plan.out / _VIDEO.format(video_key=key, **place)
        path.parent.mkdir(parents=True, exist_ok=True)
        join_videos([parts[i] for i in members], [episodes[i]["length"] for i in members], path)
        frames = 0
        for i in members:
            end = frames + episodes[i]["length"]
            seconds = {"from_timestamp": frames / CONTROL_HZ, "to_timestamp": end / CONTROL_HZ}
            episodes[i].update({f"videos/{key}/{name}": value for name, value in {**place, **seconds}.items()})
            frames = end


def _files(sizes: Sequence[int], megabytes: float) -> Iterator[tuple[dict[str, int], list[int]]]:
    """Which episodes share a file, in their order, and that file's chunk and number."""
    number, members, used = 0, list[int](), 0
    for index, size in enumerate(sizes):
        if members and used + size > megabytes * 2**20:
            yield _place(number), members
            number, members, used = number + 1, [], 0
        members.append(index)
        used += size
    yield _place(number), members


def _place(number: int) -> dict[str, int]:
    return {"chunk_index": number // files.CHUNKS_SIZE, "file_index": number % files.CHUNKS_SIZE}


def join_videos(parts: Sequence[Path], lengths: Sequence[int], path: Path) -> None:
    """One MP4 of several of the same encoder, `lengths` frames each at 20 a second, without coding them again."""
    import av

    with av.open(str(path), "w", format="mp4", options={"fflags": "+bitexact"}) as target:
        out = None
        done = 0
        for part, length in zip(parts, lengths, strict=True):
            with av.open(str(part)) as source:
                stream = source.streams.video[0]
                out = target.add_stream_from_template(stream) if out is None else out
                assert stream.time_base is not None
                shift = int(Fraction(done, CONTROL_HZ) / stream.time_base)
                for packet in source.demux(stream):
                    if packet.dts is None or packet.pts is None:  # the flush at the end
                        continue
                    packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                    packet.stream = out
                    target.mux(packet)
            done += length


def _episode_table(episodes: list[dict[str, Any]]) -> Any:
    import pyarrow

    return pyarrow.Table.from_pylist(episodes)


def _task_table(tasks: dict[str, int]) -> Any:
    """As pandas writes a frame whose index is the task: LeRobot reads it as one."""
    import pyarrow

    index = "__index_level_0__"
    described = (("task_index", "task_index", "int64", "int64"), (None, index, "unicode", "object"))
    pandas = {
        "index_columns": [index],
        "column_indexes": [
            {"name": None, "field_name": None, "pandas_type": "unicode", "numpy_type": "object", "metadata": None}
        ],
        "columns": [
            {"name": name, "field_name": field, "pandas_type": kind, "numpy_type": numpy, "metadata": None}
            for name, field, kind, numpy in described
        ],
        "creator": {"library": "pyarrow", "version": pyarrow.__version__},
        "pandas_version": "2.2.0",
    }
    table = pyarrow.table({"task_index": list(tasks.values()), index: list(tasks)})
    return table.replace_schema_metadata({"pandas": json.dumps(pandas)})


def _write_table(path: Path, table: Any) -> None:
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, path)
