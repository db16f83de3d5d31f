"""What is made of all shards of a store together: index, rejected clips, instructions, statistics, checksums."""

from typing import Any

from data_specs.actions import ACTION_PATH_NAME
from data_specs.shards import EXTRA
from pipeline.extract.encoders.text import TextEncoder
from pipeline.extract.language import store_language
from pipeline.extract.statistics import robot_statistics
from pipeline.store.layout import StoreLayout
from pipeline.store.sums import write_sums

_ROBOT = {"state", "action", EXTRA + ACTION_PATH_NAME}


def statistics_of(layout: StoreLayout) -> dict[str, Any]:
    """The statistics of robot data, where there is any."""
    robot = any(_ROBOT & sidecar.arrays.keys() for sidecar in layout.sidecars())
    return robot_statistics(layout.url) if robot else {}


def with_robot_statistics(layout: StoreLayout) -> StoreLayout:
    """Write the statistics of robot data, where there is any, into the manifest."""
    statistics = statistics_of(layout)
    return layout.with_statistics(statistics) if statistics else layout


def list_store(layout: StoreLayout, encoder: TextEncoder | None) -> int:
    """Write what a store has beside its shards, for the clips that are committed now. For whoever has it alone.

    Returns:
        How many distinct instructions were too long for the text encoder.
    """
    layout.write_index()
    layout.write_rejected()
    cut = store_language(layout, encoder)
    write_sums(layout)
    return cut
