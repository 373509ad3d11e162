"""What stands in an ONNX model. Needs onnx, but no torch."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx


def operators(model: "onnx.ModelProto") -> dict[str, int]:
    """How many nodes of each operator a model has, most frequent first: bodies of Scan included, functions once."""
    counts: dict[str, int] = {}
    own = {(function.domain, function.name) for function in model.functions}
    for nodes in (
        *(graph.node for graph in graphs(model.graph)),
        *(f.node for f in model.functions),
    ):
        for node in nodes:
            if (node.domain, node.op_type) not in own:
                counts[node.op_type] = counts.get(node.op_type, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def graphs(graph: "onnx.GraphProto") -> "list[onnx.GraphProto]":
    """A graph and the graphs inside its nodes."""
    inner = [
        attribute.g
        for node in graph.node
        for attribute in node.attribute
        if attribute.HasField("g")
    ]
    return [graph, *(found for one in inner for found in graphs(one))]


def constant_bytes(model: "onnx.ModelProto") -> int:
    """Bytes of all constants: weights, biases, scales, sizes."""
    return sum(len(one.raw_data) for graph in graphs(model.graph) for one in graph.initializer)
