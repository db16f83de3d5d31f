"""What is made of all shards of a store together: index, rejected clips, instructions, statistics, checksums."""

from data_specs.actions import ACTION_PATH_NAME
from data_specs.shards import EXTRA
from pipeline.extract.encoders.text import TextEncoder
from pipeline.extract.language import store_language
from pipeline.extract.statistics import robot_statistics
from pipeline.store.layout import StoreLayout
from pipeline.store.sums import write_sums

_ROBOT = {"state", "action", EXTRA + ACTION_PATH_NAME}


def with_robot_statistics(layout: StoreLayout) -> StoreLayout:
    """Put the statistics of robot data, where there is any, into the manifest."""
    if any(_ROBOT & sidecar.arrays.keys() for sidecar in layout.sidecars()):
        return layout.with_statistics(robot_statistics(layout.url))
    return layout


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
