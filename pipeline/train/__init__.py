"""Training: one loop for every task, and the run folders it writes. See `pipeline.train.task` for what a task is."""
