"""Graphs of models that tests make."""

from convmae_deploy.bundle.manifest import InputSpec
from convmae_deploy.models.classifier import ConvMAEClassifier
from convmae_deploy.tasks.classification import CLASSIFIER_OUTPUTS
from export.graphs.to_onnx import ExportedGraph, export_graph
from export.tasks.classification import ClassifierGraph


def export_classifier(model: ConvMAEClassifier, image_size: tuple[int, int], max_batch: int) -> ExportedGraph:
    """`export_graph` of a classifier in evaluation mode."""
    entry = InputSpec(shape=(3, *image_size), max_batch=max_batch)
    return export_graph(ClassifierGraph(model).eval(), entry, CLASSIFIER_OUTPUTS)
