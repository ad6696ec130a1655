"""Training programs, run from the root of the repository: `python -m training.finetune ...`."""

from convmae_deploy.program import require_extra

require_extra("train", ("torch", "torchvision", "timm", "accelerate", "matplotlib"))
