"""Frozen encoders beside VGGT and Concerto: of instructions and of pictures, through `transformers`."""
