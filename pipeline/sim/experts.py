"""Scripted experts: for each task a generator that looks at the world and yields the next action f4 [7].

They see the true poses (they are privileged), and act through the same 7 numbers as any policy. Each looks again before
every action, so that it comes back from where noise on its actions has put the hand (`pipeline.sim.perturb`).
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from pipeline.sim.geometry import Floats, wrap
from pipeline.sim.mjcf import CONTROL_HZ
from pipeline.sim.tasks import REACH_CLEARANCE
from pipeline.sim.world import POSITION_SCALE, ROTATION_SCALE, World

Action = NDArray[np.float32]
Actions = Iterator[Action]

OPEN, CLOSED = -1.0, 1.0
_ACCELERATION = 1.6  # m/s^2
_TURN_SPEED = 2.4  # rad/s
_ABOVE = 0.075  # height of the fingertips over an object before the descent, metres
_LOWEST = 0.016  # of the grip point: fingertips 6 mm over the table
_STAND_OFF = 0.035  # from the object's edge to the fingers before a push, metres


def expert(world: World, rng: np.random.Generator, *, linger: int = 0) -> Actions:
    """The actions that do the task of `world.scene`; the caller applies each, with noise or without, with `world.step`
    before the next.

    A reach that is to `linger` stays at its end for that many steps and comes back from where noise leads it: what to
    do close to the end is what a policy needs to see of it, and a hand that comes and rests shows it once.
    """
    pace = rng.uniform(0.36, 0.54)  # metres a second at most
    match world.scene.task.name:
        case "reach":
            yield from _reach(world, pace, linger)
            if linger:
                return
        case "push":
            yield from _push(world, pace)
        case "pick":
            yield from _grasp(world, pace)
            yield from _go(world, world.command[:3] + _up(rng.uniform(0.13, 0.18)), None, CLOSED, pace)
        case "stack":
            yield from _grasp(world, pace)
            top = world.position(1)[2] + world.half_height(1)
            yield from _put(world, pace, height=top + world.half_height(0) + 0.003, rng=rng)
        case "place":
            yield from _grasp(world, pace)
            yield from _put(world, pace, height=world.half_height(0) + 0.012, rng=rng)
        case other:
            raise AssertionError(other)
    yield from _hold(world, world.gripper_command, 6)


def _reach(world: World, pace: float, linger: int) -> Actions:
    target, yaw = world.position(0) + _up(world.half_height(0) + REACH_CLEARANCE), _grasp_yaw(world)
    yield from _go(world, target, yaw, OPEN, 0.3 * pace)  # it has no other motion to show
    stayed = 0
    while stayed < linger:
        yield _action(np.zeros(3), 0.0, OPEN)
        stayed += 1
        for action in _go(world, target, yaw, OPEN, 0.3 * pace):
            yield action
            stayed += 1


def _grasp(world: World, pace: float) -> Actions:
    """Over the object, down around it, and close."""
    centre, yaw = world.position(0), _grasp_yaw(world)
    yield from _go(world, centre + _up(world.half_height(0) + _ABOVE), yaw, OPEN, pace)
    # A little under the middle, so that round things are not squeezed out downwards; never onto the table.
    depth = max(_LOWEST, centre[2] - 0.004)
    yield from _go(world, np.array([*centre[:2], depth]), yaw, OPEN, 0.6 * pace)
    yield from _hold(world, CLOSED, 7)


def _put(world: World, pace: float, height: float, rng: np.random.Generator) -> Actions:
    """Lift what is held, carry it over the goal, lower its centre to `height`, open, and move up."""
    lift = rng.uniform(0.10, 0.13)
    yield from _go(world, np.array([*world.command[:2], height + lift]), None, CLOSED, pace)
    yaw = _nearest(world.yaw(1) - world.yaw(0) + world.command[3], world.command[3], np.pi / 2)
    for target, slow in ((height + lift, 0.85), (height, 0.5)):
        # Where the object sits between the fingers is seen, not assumed.
        offset = world.position(0) - world.grip_position
        goal = np.array([*world.position(1)[:2], target]) - _turned(offset, yaw - world.command[3])
        yield from _go(world, goal, yaw, CLOSED, slow * pace)
    yield from _hold(world, CLOSED, 3)
    yield from _hold(world, OPEN, 4)
    yield from _go(world, world.command[:3] + _up(0.07), None, OPEN, pace)


def _push(world: World, pace: float) -> Actions:
    """Closed fingers behind the object, flat side on; steer so that it keeps to the way to the mat."""
    goal = world.position(1)[:2]
    way, _ = _direction(goal - world.position(0)[:2])
    yaw = _nearest(float(np.arctan2(way[1], way[0])), world.command[3], np.pi)
    back = world.scene.things[0].radius + _STAND_OFF
    height = max(_LOWEST, min(0.022, world.position(0)[2]))
    behind = world.position(0)[:2] - back * way
    yield from _go(world, np.array([*behind, 0.11]), yaw, CLOSED, pace)
    yield from _go(world, np.array([*behind, height]), yaw, CLOSED, 0.8 * pace)
    for _ in range(4 * CONTROL_HZ):
        centre = world.position(0)[:2]
        left = float((goal - centre) @ way)
        if left < 0.006:
            break
        towards, _ = _direction(goal + 0.02 * way - centre)  # a little past it, or the way would spin at the end
        # Stay on the line through goal and centre: what is off it, sideways, is corrected faster than progress.
        behind = centre - world.command[:2]
        aside = behind - (behind @ towards) * towards
        step = min(0.5 * pace, 0.04 + 2.0 * left) / CONTROL_HZ * towards + np.clip(0.35 * aside, -0.006, 0.006)
        turn = wrap(float(np.arctan2(towards[1], towards[0])) - world.command[3], np.pi)
        yield _action(np.array([*step, height - world.command[2]]), float(np.clip(turn, -0.06, 0.06)), CLOSED)
    yield from _go(world, np.array([*(world.command[:2] - 0.03 * way), height]), None, CLOSED, 0.5 * pace)
    yield from _go(world, world.command[:3] + _up(0.07), None, CLOSED, pace)


def _go(world: World, target: Floats, yaw: float | None, gripper: float, pace: float) -> Actions:
    """A straight way to `target` [3] that speeds up and slows down, turning to `yaw` on it, until the hand is there."""
    speed = 0.0
    for _ in range(6 * CONTROL_HZ):
        way, left = _direction(target - world.command[:3])
        turn = 0.0 if yaw is None else yaw - world.command[3]
        if left < 1e-4 and abs(turn) < 1e-3:
            if np.linalg.norm(world.grip_position - target) < 0.006:
                return
            yield _action(np.zeros(3), 0.0, gripper)  # the hand lags behind what it is sent to
            continue
        speed = min(pace, speed + _ACCELERATION / CONTROL_HZ, float(np.sqrt(2 * _ACCELERATION * left)) + 0.02)
        turn = float(np.clip(turn, -_TURN_SPEED / CONTROL_HZ, _TURN_SPEED / CONTROL_HZ))
        yield _action(way * min(left, speed / CONTROL_HZ), turn, gripper)


def _hold(world: World, gripper: float, steps: int) -> Actions:
    """Stay where the hand has been sent; noise is undone."""
    place = world.command[:3]
    for _ in range(steps):
        yield _action(place - world.command[:3], 0.0, gripper)


def _action(move: Floats, turn: float, gripper: float) -> Action:
    """Metres and radians (about z) as an action."""
    scaled = [*(move / POSITION_SCALE), 0.0, 0.0, turn / ROTATION_SCALE, gripper]
    return np.asarray(np.clip(scaled, -1.0, 1.0), dtype=np.float32)


def _up(metres: float) -> Floats:
    return np.array([0.0, 0.0, metres])


def _direction(way: Floats) -> tuple[Floats, float]:
    length = float(np.linalg.norm(way))
    return (way / length if length > 1e-9 else np.zeros_like(way)), length


def _turned(offset: Floats, yaw: float) -> Floats:
    cosine, sine = np.cos(yaw), np.sin(yaw)
    return np.array([cosine * offset[0] - sine * offset[1], sine * offset[0] + cosine * offset[1], offset[2]])


def _nearest(angle: float, to: float, period: float) -> float:
    """`angle` modulo `period`, as near to the angle `to` as it can be."""
    return to + wrap(angle - to, period)


def _grasp_yaw(world: World) -> float:
    """The hand's yaw that closes the fingers on parallel faces, across the short side of a block."""
    now = float(world.command[3])
    match world.scene.things[0].shape:
        case "cube":
            return _nearest(world.yaw(0), now, np.pi / 2)
        case "block":
            return _nearest(world.yaw(0), now, np.pi)
        case _:
            return now
