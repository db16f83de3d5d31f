"""What moves in a frame, as extraction writes it: names and layout of the two arrays, and of their parts.

A point moves when another frame of its clip looks through the place where it is: there was free space at that moment.
The test needs depth and camera only, not a still camera, and no labels.
"""

from data_specs.shards import EXTRA, GRID

CELLS_NAME, STATISTICS_NAME = "motion_cells", "motion"
"""Keys of `ClipRecord.extra`."""

CELLS_COLUMN, STATISTICS_COLUMN = EXTRA + CELLS_NAME, EXTRA + STATISTICS_NAME
"""Columns of a store. `CELLS_COLUMN` f2 [F, 196, 4]: the share of a cell's points that move, and the mean normalised
coordinate of those (0 where there are none). `STATISTICS_COLUMN` f4 [F, 21]: `PARTS`, over all points that move."""

CELLS_WIDTH = 4
CELLS = GRID * GRID

PARTS: tuple[tuple[str, int, float], ...] = (
    ("share", 1, 0.5),  # of the frame's points that move
    ("mean", 3, 1.0),  # their mean coordinate, normalised space
    ("spread", 6, 0.5),  # signed roots of their covariance xx, xy, xz, yy, yz, zz, normalised units
    ("low_mean", 3, 1.0),  # the same of the lowest fifth of them: the fingers of a hand over a table
    ("low_spread", 6, 0.5),
    ("heading", 2, 1.0),  # angles, seen from above, of two slices over the lowest point; continuous over the clip
)
"""Parts of the statistics in order: name, width, and emphasis: what a standard change of it counts for a model. Where
things are counts more than the shape of what is seen of them, which depends on what hides what.
"""

STATISTICS_WIDTH = sum(width for _, width, _ in PARTS)
