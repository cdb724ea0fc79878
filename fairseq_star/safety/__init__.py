"""What keeps a run alive and a machine safe: checkpoints read and written, signals, threads and memory."""
