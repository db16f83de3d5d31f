"""A scene as MuJoCo reads it. Table top at z = 0, z up, metres; the robot's base is behind the table (-x).

Every body has one geom: `mj_multiRay` of MuJoCo 3.8 culls a body's rays by a sphere around its first geom and cuts
the others off (a test compares it with `mj_ray`). Geom groups say what may move and what casts shadows (`cast`).
`user` of a geom is (specular strength, pattern).
"""

from collections.abc import Sequence

from pipeline.sim.distractors import Distractor
from pipeline.sim.layout import Scene, Thing, Vec3

GROUP_MOVING, GROUP_STILL, GROUP_ROOM = 0, 1, 2  # robot, things, distractors; table, mats, trays; floor and wall

CONTROL_HZ = 20
SNAPSHOT_HZ = 60  # a multiple of the 20 Hz of control and of the 12 Hz of Something-Something V2
PHYSICS_HZ = 480

HAND_LOW: Vec3 = (-0.25, -0.32, 0.012)  # where the grip point may be sent, metres
HAND_HIGH: Vec3 = (0.27, 0.32, 0.36)
TILT_LIMIT = 0.6  # roll and pitch, radians
YAW_LIMIT = 2.2  # radians
FINGER_TRAVEL = 0.04  # of each finger, metres

BASE: Vec3 = (-0.50, 0.0, 0.0)  # of the arm
SHOULDER_HEIGHT = 0.30
LINK = 0.40  # length of upper arm and forearm, metres
FLANGE = 0.165  # height of the wrist over the grip point in the hand's frame

_WHITE: Vec3 = (0.93, 0.93, 0.94)
_GREY: Vec3 = (0.70, 0.71, 0.73)
_DARK: Vec3 = (0.16, 0.17, 0.19)
_FRICTION = "1.2 0.02 0.001"


def build_mjcf(scene: Scene, distractors: Sequence[Distractor] = ()) -> str:
    """The MJCF text of `scene`. Bodies thing0, thing1, ... stand in the order of `scene.things`.

    `distractors` are mocap bodies distractor0, distractor1, ..., seen and not felt: the generalised coordinates are
    the same with and without them.
    """
    look = scene.look
    bodies = [_thing(i, thing) for i, thing in enumerate(scene.things)]
    bodies += [_distractor(i, distractor.thing) for i, distractor in enumerate(distractors)]
    things = "\n".join(bodies)
    return f"""
<mujoco model="tabletop">
  <compiler angle="radian" autolimits="true"/>
  <size nuser_geom="2"/>
  <option timestep="{1 / PHYSICS_HZ!r}" integrator="implicitfast" cone="elliptic" impratio="10"
          iterations="30" ls_iterations="20" noslip_iterations="2"/>
  <default>
    <geom condim="4" friction="{_FRICTION}" solref="0.008 1" solimp="0.95 0.99 0.001" user="0.15 0"/>
    <default class="seen"><geom contype="0" conaffinity="0" mass="0"/></default>
  </default>
  <worldbody>
    <geom name="floor" class="seen" group="{GROUP_ROOM}" type="plane" size="4 4 0.1" pos="0 0 -0.75"
          rgba="0.55 0.56 0.58 1" user="0 2"/>
    <body><geom name="wall" class="seen" group="{GROUP_ROOM}" type="box" pos="-1.45 0 0.9" size="0.05 4 1.7"
      rgba="{_rgba(look.wall_rgb)}" user="0 0"/></body>
    <body><geom name="table" group="{GROUP_STILL}" type="box" pos="-0.12 0 -0.02" size="0.50 0.60 0.02"
      rgba="{_rgba(look.table_rgb)}" user="0.12 {look.table_pattern}"/></body>
{_arm(look.accent_rgb)}
{_hand(look.accent_rgb)}
{things}
  </worldbody>
  <contact>
    <exclude body1="hand" body2="left_finger"/>
    <exclude body1="hand" body2="right_finger"/>
  </contact>
  <equality>
    <joint joint1="left" joint2="right" polycoef="0 1 0 0 0" solref="0.004 1"/>
  </equality>
  <actuator>
    <position name="x" joint="x" kp="4000" kv="160" forcerange="-80 80"/>
    <position name="y" joint="y" kp="4000" kv="160" forcerange="-80 80"/>
    <position name="z" joint="z" kp="4000" kv="160" forcerange="-80 80"/>
    <position name="yaw" joint="yaw" kp="60" kv="1.6" forcerange="-8 8"/>
    <position name="pitch" joint="pitch" kp="60" kv="1.6" forcerange="-8 8"/>
    <position name="roll" joint="roll" kp="60" kv="1.6" forcerange="-8 8"/>
    <position name="left" joint="left" kp="600" kv="20" forcerange="-10 10"/>
    <position name="right" joint="right" kp="600" kv="20" forcerange="-10 10"/>
  </actuator>
</mujoco>
"""


def _part(kind: str, where: str, size: str, rgb: Vec3, *, gloss: float = 0.35) -> str:
    """A geom that is seen and not felt, in a body of its own; `where` is its `pos` or `fromto` attribute."""
    return f'<body><geom class="seen" type="{kind}" {where} size="{size}" rgba="{_rgba(rgb)}" user="{gloss} 0"/></body>'


def _arm(accent: Vec3) -> str:
    """The arm is seen and not felt: `arm.place_arm` bends it so that its wrist meets the hand."""
    shoulder, link = SHOULDER_HEIGHT, LINK
    turret = (
        _part("cylinder", 'pos="0 0 0.015"', "0.10 0.015", _DARK),
        _part("cylinder", 'pos="0 0 0.12"', "0.072 0.105", _WHITE),
        _part("cylinder", 'pos="0 0 0.232"', "0.074 0.008", accent),
        _part("capsule", f'fromto="0 -0.055 {shoulder} 0 0.055 {shoulder}"', "0.062", _WHITE),
        _part("cylinder", f'fromto="0 -0.125 {shoulder} 0 0.125 {shoulder}"', "0.045", _DARK),
    )
    upper = (
        _part("capsule", f'fromto="0 0 0 {link} 0 0"', "0.046", _WHITE),
        _part("cylinder", f'fromto="{link} -0.062 0 {link} 0.062 0"', "0.053", accent),
        _part("cylinder", f'fromto="{link} -0.068 0 {link} 0.068 0"', "0.036", _DARK),
    )
    fore = (
        _part("capsule", f'fromto="0 0 0 {link} 0 0"', "0.037", _WHITE),
        _part("cylinder", f'fromto="{link * 0.72:g} 0 0 {link * 0.76:g} 0 0"', "0.039", accent),
        _part("sphere", f'pos="{link} 0 0"', "0.043", _DARK),
    )
    return "\n".join(
        f'    <body name="{name}" mocap="true">\n      ' + "\n      ".join(parts) + "\n    </body>"
        for name, parts in (("turret", turret), ("upper", upper), ("fore", fore))
    )


def _hand(accent: Vec3) -> str:
    slides = (("x", "1 0 0"), ("y", "0 1 0"), ("z", "0 0 1"))
    hinges = (("yaw", "0 0 1"), ("pitch", "0 1 0"), ("roll", "1 0 0"))
    joints = [f'<joint name="{name}" type="slide" axis="{axis}" damping="2"/>' for name, axis in slides]
    joints += [f'<joint name="{n}" type="hinge" axis="{a}" damping="0.05" armature="0.01"/>' for n, a in hinges]
    parts = [
        *joints,
        '<inertial pos="0 0 0.08" mass="1.0" diaginertia="0.003 0.003 0.003"/>',
        f'<geom name="palm" type="box" pos="0 0 0.090" size="0.024 0.078 0.018" rgba="{_rgba(_WHITE)}" user="0.35 0"/>',
        _part("box", 'pos="0 0 0.0905"', "0.0245 0.0785 0.004", accent),
        _part("box", 'pos="0 0 0.071"', "0.014 0.070 0.003", _DARK),
        _part("cylinder", 'pos="0 0 0.122"', "0.036 0.016", _WHITE),
        _part("cylinder", 'pos="0 0 0.144"', "0.030 0.014", _DARK),
        _part("box", 'pos="0.044 0 0.108"', "0.018 0.024 0.010", _DARK),  # the wrist camera
        _finger("left", 1),
        _finger("right", -1),
    ]
    return '    <body name="hand" gravcomp="1">\n      ' + "\n      ".join(parts) + "\n    </body>"


def _finger(name: str, side: int) -> str:
    return f"""<body name="{name}_finger" pos="0 {side * 0.007} 0" gravcomp="1">
        <joint name="{name}" type="slide" axis="0 {side} 0" range="0 {FINGER_TRAVEL}" damping="4" armature="0.1"/>
        <geom name="{name}_pad" type="box" pos="0 0 0.013" size="0.0105 0.007 0.023" mass="0.03"
              friction="2 0.05 0.001" rgba="{_rgba(_DARK)}" user="0.2 0"/>
        {_part("box", f'pos="0 {side * 0.003} 0.052"', "0.0115 0.010 0.017", _GREY)}
      </body>"""


def _thing(index: int, thing: Thing) -> str:
    group = GROUP_MOVING if thing.movable else GROUP_STILL
    colour = f'rgba="{_rgba(thing.rgb)}" user="0.3 0" group="{group}"'
    sx, sy, sz = thing.size
    x, y = thing.xy
    if thing.shape == "mat":
        # A printed zone: 1 mm high and not felt, so that things slide onto it.
        return (
            f'    <body name="thing{index}" pos="{x!r} {y!r} 0" euler="0 0 {thing.yaw!r}">\n'
            f'      <geom class="seen" type="box" size="{sx!r} {sy!r} {sz!r}" {colour}/>\n'
            f"    </body>"
        )
    if thing.shape == "tray":
        wall = 0.004
        sides = "\n".join(
            f'      <body><geom type="box" pos="{px!r} {py!r} {sz!r}" size="{hx!r} {hy!r} {sz!r}" {colour}/></body>'
            for px, py, hx, hy in (
                (sx, 0.0, wall, sy + wall),
                (-sx, 0.0, wall, sy + wall),
                (0.0, sy, sx + wall, wall),
                (0.0, -sy, sx + wall, wall),
            )
        )
        return (
            f'    <body name="thing{index}" pos="{x!r} {y!r} 0" euler="0 0 {thing.yaw!r}">\n'
            f'      <geom type="box" pos="0 0 0.002" size="{sx!r} {sy!r} 0.002" {colour}/>\n{sides}\n    </body>'
        )
    rolling = 'condim="6" friction="1.2 0.02 0.004"' if thing.shape == "ball" else ""
    return (
        f'    <body name="thing{index}" pos="{x!r} {y!r} {sz!r}" euler="0 0 {thing.yaw!r}">\n'
        f'      <freejoint/>\n      <geom {_solid(thing)} density="400" {rolling} {colour}/>\n'
        f"    </body>"
    )


def _distractor(index: int, thing: Thing) -> str:
    return (
        f'    <body name="distractor{index}" mocap="true">\n'
        f'      <geom class="seen" {_solid(thing)} rgba="{_rgba(thing.rgb)}" user="0.3 0" group="{GROUP_MOVING}"/>\n'
        f"    </body>"
    )


def _solid(thing: Thing) -> str:
    """Type and size of the one geom of a thing that may move."""
    sx, sy, sz = thing.size
    kind, size = {
        "cylinder": ("cylinder", f"{sx!r} {sz!r}"),
        "ball": ("sphere", f"{sx!r}"),
    }.get(thing.shape, ("box", f"{sx!r} {sy!r} {sz!r}"))
    return f'type="{kind}" size="{size}"'


def _rgba(rgb: Vec3) -> str:
    return f"{rgb[0]:.4f} {rgb[1]:.4f} {rgb[2]:.4f} 1"
