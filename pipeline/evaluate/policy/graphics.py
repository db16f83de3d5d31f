"""OpenGL for simulators that draw with it: chosen before they are imported, and explained where there is none."""

import os

from pipeline.config import FailedError


def opengl() -> None:
    """Let MuJoCo draw without a screen where there is none, unless MUJOCO_GL says otherwise."""
    if "MUJOCO_GL" not in os.environ and not os.environ.get("DISPLAY"):
        os.environ["MUJOCO_GL"] = "egl"
        os.environ.setdefault("PYOPENGL_PLATFORM", "egl")


def opengl_fails(environment: str, error: Exception) -> FailedError:
    """The sentence for a simulator that cannot draw."""
    used = os.environ.get("MUJOCO_GL", "its default")
    return FailedError(
        f"Environment {environment} cannot draw with MUJOCO_GL={used} ({type(error).__name__}: {error}): install EGL "
        "(apt-get install libegl1) or OSMesa (apt-get install libosmesa6, MUJOCO_GL=osmesa)."
    )
