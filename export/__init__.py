"""From a checkpoint to a bundle whose numbers are proven: `python -m export RUN_OR_CHECKPOINT --out BUNDLE`."""
