"""ONNX files in 8 bits: onnxruntime's dynamic quantization of linear layers, all other weights stored in 16 bits.

Linear layers have weights in int8, a scale for each output channel, and quantize what they are given as it comes.
Convolutions compute in float: the first ones hear raw audio, whose range no scale fits (moonshine#73). Their weights
take half the space in the file and are float again once it is loaded.
"""

import logging
from pathlib import Path

import numpy as np

LEAST_NUMBERS = 4096  # of a weight that is stored in 16 bits: norms and biases stay as they are


def to_int8(path: Path, out: Path) -> None:
    """Write the ONNX file at ``path`` in 8 bits at ``out``, what it says of itself kept."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    root, level = logging.getLogger(), logging.getLogger().level
    root.setLevel(logging.ERROR)  # it asks for a pre-processing that these graphs are quantized as well without
    try:
        quantize_dynamic(path, out, per_channel=True, op_types_to_quantize=["MatMul"], weight_type=QuantType.QInt8)
    finally:
        root.setLevel(level)
    model = onnx.load(out)
    weights, casts = [], []
    for weight in model.graph.initializer:
        values = onnx.numpy_helper.to_array(weight)
        if values.dtype == np.float32 and values.size >= LEAST_NUMBERS:
            stored = f"{weight.name}_16"
            casts.append(onnx.helper.make_node("Cast", [stored], [weight.name], to=onnx.TensorProto.FLOAT))
            weight = onnx.numpy_helper.from_array(values.astype(np.float16), stored)
        weights.append(weight)
    nodes = [*casts, *model.graph.node]
    for field, items in ((model.graph.initializer, weights), (model.graph.node, nodes)):
        del field[:]
        field.extend(items)
    del model.metadata_props[:]
    model.metadata_props.extend(onnx.load(path, load_external_data=False).metadata_props)
    onnx.save(model, out)
