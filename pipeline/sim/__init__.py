"""The tabletop world: a gripper on a table in MuJoCo, seen by ray casting without OpenGL, with scripted experts.

layout (what stands where) -> mjcf (as MuJoCo reads it) -> world (physics) -> experts, episode (what happens)
camera, render, shade (what it looks like)      env (Gymnasium)
plan, record, replay -> rgbd, ssv2, libero, lerobot_v21, lerobot_v30, aloha (as a dataset's files)
"""
