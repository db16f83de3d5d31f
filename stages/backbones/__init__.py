"""What lets language, vision, state and action queries see each other."""
