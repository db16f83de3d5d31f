"""The tasks of the tabletop world: what is asked for, in words, and when it is done."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from pipeline.config import suggest

if TYPE_CHECKING:
    from pipeline.sim.world import World

Shape = Literal["cube", "block", "cylinder", "ball", "mat", "tray"]

REACH_TOLERANCE = 0.02  # metres between the grip point and the point above the object
REACH_CLEARANCE = 0.03  # that point's height over the object's top, metres
LIFT_HEIGHT = 0.08  # how far a picked object's underside is over the table, metres


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task: `phrases` name the object as {a} and the goal, where there is one, as {b}.

    `template` is its Something-Something V2 class, `movers` and `goals` the shapes that may play the two roles.
    """

    name: str
    phrases: tuple[str, ...]
    template: str
    movers: tuple[Shape, ...]
    goals: tuple[Shape, ...] = ()


TASKS: tuple[Task, ...] = (
    Task(
        name="reach",
        phrases=(
            "move the gripper to the {a}",
            "reach for the {a}",
            "go to the {a}",
            "bring the hand over the {a}",
        ),
        template="Moving [something] closer to [something]",
        movers=("cube", "block", "cylinder", "ball"),
    ),
    Task(
        name="push",
        phrases=(
            "push the {a} to the {b}",
            "slide the {a} onto the {b}",
            "push the {a} over to the {b}",
            "move the {a} to the {b} by pushing it",
        ),
        template="Pushing [something] onto [something]",
        movers=("cube", "block", "cylinder"),
        goals=("mat",),
    ),
    Task(
        name="pick",
        phrases=("pick up the {a}", "lift the {a}", "grasp the {a} and lift it", "take the {a} off the table"),
        template="Picking [something] up",
        movers=("cube", "block", "cylinder", "ball"),
    ),
    Task(
        name="stack",
        phrases=(
            "put the {a} on the {b}",
            "stack the {a} on top of the {b}",
            "place the {a} on the {b}",
            "set the {a} down on the {b}",
        ),
        template="Putting [something] onto [something]",
        movers=("cube", "block", "cylinder"),
        goals=("cube", "block", "cylinder"),
    ),
    Task(
        name="place",
        phrases=(
            "put the {a} in the {b}",
            "place the {a} into the {b}",
            "drop the {a} in the {b}",
            "move the {a} into the {b}",
        ),
        template="Putting [something] into [something]",
        movers=("cube", "block", "cylinder", "ball"),
        goals=("tray",),
    ),
)


def find_tasks(names: str | Sequence[str]) -> tuple[Task, ...]:
    """The tasks named: "all", "push", "pick,stack" or a sequence of names; ValueError for an unknown one."""
    wanted = [n.strip() for n in names.split(",")] if isinstance(names, str) else list(names)
    if wanted == ["all"]:
        return TASKS
    known = {task.name: task for task in TASKS}
    for name in wanted:
        if name not in known:
            choices = (*known, "all")
            raise ValueError(f"Unknown task {name!r}; choose from {', '.join(choices)}.{suggest(name, choices)}")
    if not wanted or len(set(wanted)) != len(wanted):
        raise ValueError(f"Expected each task once, got {', '.join(wanted)}.")
    return tuple(known[name] for name in wanted)


def succeeded(world: "World") -> bool:
    """Whether the task of `world.scene` is done in the world's present state."""
    scene = world.scene
    a = world.position(0)
    match scene.task.name:
        case "reach":
            above = a + np.array([0.0, 0.0, world.half_height(0) + REACH_CLEARANCE])
            return bool(np.linalg.norm(world.grip_position - above) < REACH_TOLERANCE)
        case "push":
            inside = np.abs(world.in_frame_of(1, a)[:2]) < np.array(scene.things[1].size[:2])
            return bool(inside.all() and world.touches_table(0))
        case "pick":
            return bool(a[2] - world.half_height(0) > LIFT_HEIGHT and world.is_held(0))
        case "stack":
            offset = world.in_frame_of(1, a)
            over = np.abs(offset[:2]) < np.array(scene.things[1].size[:2])
            resting = world.touching(0, 1) and not world.touches_table(0) and world.speed(0) < 0.05
            return bool(over.all() and offset[2] > 0.02 and resting and not world.is_held(0))
        case "place":
            inside = np.abs(world.in_frame_of(1, a)[:2]) < np.array(scene.things[1].size[:2])
            return bool(inside.all() and a[2] < 0.06 and world.speed(0) < 0.1 and not world.is_held(0))
    raise AssertionError(scene.task.name)
