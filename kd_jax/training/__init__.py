"""A run: set-up, loop, evaluation, checkpoints, logs, and what it leaves behind."""
