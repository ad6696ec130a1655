"""Training programs, run from the root of the repository: `python -m training.finetune ...`."""
