"""From a model to its layer graph, and back to the model's own runtime to check it."""

from curvverify.graph.layers import Graph, Node
from curvverify.graph.loading import LoadedModel, load
from curvverify.graph.onnx_import.supported import supported_operators, supported_opsets
from curvverify.graph.ports import Port

__all__ = ["Graph", "LoadedModel", "Node", "Port", "load", "supported_operators", "supported_opsets"]
