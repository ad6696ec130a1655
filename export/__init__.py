"""From a checkpoint to a bundle whose numbers are proven: `python -m export RUN_OR_CHECKPOINT --out BUNDLE`."""

from convmae_deploy.program import require_extra

require_extra("export", ("torch", "torchvision", "timm", "onnx", "onnxscript"))
