"""Where the thing that a demonstration handles stands, and where it brings it, as extraction writes both.

Found in hindsight, from what became of the scene by the end of the demonstration: no labels, no simulator's truth.
"""

from data_specs.shards import EXTRA

POINTING_NAME = "pointing"
"""Key of `ClipRecord.extra`: f4 [F,2,4], for each frame the thing and the goal (`THING`, `GOAL`): x, y, z in the
world's units and 1 where they are known; all 0 where they are not."""

POINTING_COLUMN = EXTRA + POINTING_NAME
"""Column of a store."""

THING, GOAL = 0, 1
"""Slots: what is handled, where it stands; the place to which it is brought."""

SLOTS = ("thing", "goal")
