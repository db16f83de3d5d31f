"""What an extraction will take, said before anything runs: clips, frames, bytes, device-hours, workers."""
