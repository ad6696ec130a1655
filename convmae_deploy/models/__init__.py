"""ConvMAE in PyTorch: one backbone, and the models built on it."""

from convmae_deploy.models.classifier import ConvMAEClassifier
from convmae_deploy.models.convmae import MODELS, ConvMAE, ConvMAEConfig, build_convmae

__all__ = ["MODELS", "ConvMAE", "ConvMAEClassifier", "ConvMAEConfig", "build_convmae"]
