"""Judges what a run has learned: probes from its latents to the true action, its codebook, its decoder.

`pipeline.evaluate.policy` judges policies.
"""
