"""Robot actions as a store keeps them beside those of its own frames."""

from data_specs.shards import EXTRA

ACTION_NAME = "action_sum"
"""Key of `ClipRecord.extra`: f4 [F,A], the sum of all control steps' actions before the frame."""

ACTION_COLUMN = EXTRA + ACTION_NAME
"""Column of a store. The difference of two frames is the action accumulated between them, at any sampling rate."""
