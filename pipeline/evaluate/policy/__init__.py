"""Judges policies: in closed loop in a simulator, and in open loop on held-out episodes."""
