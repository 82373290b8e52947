"""Files, checkpoints and signals: nothing is lost, whatever happens."""
