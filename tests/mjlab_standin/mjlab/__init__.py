"""A strict stand-in for mjlab 1.6, written from its source: what the adapter uses, and nothing else."""
