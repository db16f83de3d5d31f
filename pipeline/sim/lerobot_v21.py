"""The tabletop world as a LeRobot dataset v2.1: a table and, for each camera, a video an episode.

meta/{info.json, episodes.jsonl, episodes_stats.jsonl, tasks.jsonl}        info.json comes last
data/chunk-000/episode_000000.parquet
videos/chunk-000/observation.images.agent/episode_000000.mp4
"""

import shutil
from typing import Any

from pipeline.sim import lerobot_files as files
from pipeline.sim.lerobot_files import SIZES, VIEWS, prepare, write
from pipeline.sim.mjcf import CONTROL_HZ
from pipeline.sim.plan import Plan

__all__ = ["SIZES", "VIEWS", "finish", "prepare", "write"]

_DATA = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
_VIDEO = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"


def finish(plan: Plan, rows: list[dict[str, Any]]) -> None:
    """As in `pipeline.sim.plan.Format`."""
    from pyarrow import parquet

    tasks = files.task_numbers(rows)
    stats = []
    codec = files.codec_name(files.part(plan, 0, plan.views[0]))
    for index, row in enumerate(rows):
        chunk = {"episode_chunk": index // files.CHUNKS_SIZE, "episode_index": index}
        columns = files.columns(plan, rows, tasks, index)
        path = plan.out / _DATA.format(**chunk)
        path.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(files.as_table([columns]), path)
        for view in plan.views:
            path = plan.out / _VIDEO.format(video_key=files.camera_key(view), **chunk)
            path.parent.mkdir(parents=True, exist_ok=True)
            files.part(plan, index, view).rename(path)
        found = {name: files.array_stats(values) for name, values in columns.items()}
        stats.append({"episode_index": index, "stats": {**found, **row["stats"]}})
    meta = plan.out / "meta"
    episodes = ({"episode_index": i, "tasks": [row["task"]], "length": row["length"]} for i, row in enumerate(rows))
    files.write_json_lines(meta / "episodes.jsonl", episodes)
    files.write_json_lines(meta / "episodes_stats.jsonl", stats)
    files.write_json_lines(meta / "tasks.jsonl", ({"task_index": n, "task": task} for task, n in tasks.items()))
    info = {
        "codebase_version": "v2.1",
        "robot_type": "tabletop",
        "total_episodes": len(rows),
        "total_frames": sum(row["length"] for row in rows),
        "total_tasks": len(tasks),
        "total_videos": len(rows) * len(plan.views),
        "total_chunks": -(-len(rows) // files.CHUNKS_SIZE),
        "chunks_size": files.CHUNKS_SIZE,
        "fps": CONTROL_HZ,
        "splits": {"train": f"0:{len(rows)}"},
        "data_path": _DATA,
        "video_path": _VIDEO,
        "features": files.features(plan, codec),
    }
    shutil.rmtree(plan.parts)
    files.write_json(meta / "info.json", info)
