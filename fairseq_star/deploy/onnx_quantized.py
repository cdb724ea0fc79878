"""ONNX files in 8 or 4 bits, by onnxruntime's own tools; convolutions and all other weights stored in 16 bits.

Linear layers, that is products with a weight, are quantized. Convolutions compute in float: no scale fits the range of
raw audio, the input of the first ones (moonshine#73). Their weights take half the space in the file and are float again
once it is loaded. The products within attention stay in float too.
"""

import json
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

LEAST_NUMBERS = 4096  # of a weight that is stored in 16 bits: norms and biases stay in 32
BLOCK = 32  # weights of an output channel that share a scale in 4 bits
CALIBRATION = "fairseq_star.calibration"  # key of metadata
INT8_PRODUCTS = 4  # MatMulNBits' accuracy level: inputs are rounded to 8 bits, with a scale for each block


@contextmanager
def only_errors() -> Iterator[None]:
    """Suppress messages of exporter and quantizers on every node, where a library lowered the root logger's level."""
    root, level = logging.getLogger(), logging.getLogger().level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)


def to_int8(path: Path, out: Path) -> None:
    """Quantize the ONNX file at ``path`` to int8 at ``out``; its metadata stays.

    Weights have a scale for each output channel; inputs have one, computed at run time.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with only_errors():
        quantize_dynamic(path, out, per_channel=True, op_types_to_quantize=["MatMul"], weight_type=QuantType.QInt8)
    _store_the_rest_in_16_bits(path, out)


def to_static_int8(path: Path, out: Path, samples: Iterable[dict[str, np.ndarray]], origin: dict) -> None:
    """Quantize to int8 with a fixed input range for each linear layer: minimum and maximum over ``samples``, inputs of
    the file by name; their ``origin`` is stored in the file's metadata, as :data:`CALIBRATION`."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.left = iter(samples)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.left, None)

    with only_errors():
        quantize_static(
            path, out, Reader(), quant_format=QuantFormat.QDQ, per_channel=True, op_types_to_quantize=["MatMul"],
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
            # Neither products within attention nor a layer's output.
            extra_options={"MatMulConstBOnly": True, "OpTypesToExcludeOutputQuantization": ["MatMul"]},
        )  # fmt: skip
    _store_the_rest_in_16_bits(path, out, {CALIBRATION: json.dumps(origin)})


def to_int4(path: Path, out: Path) -> None:
    """Quantize weights to int4, a scale for each 32 of an output channel; inputs are rounded to int8 at run time."""
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    with only_errors():
        quantizer = MatMulNBitsQuantizer(
            onnx.load(path), block_size=BLOCK, is_symmetric=True, accuracy_level=INT8_PRODUCTS
        )
        quantizer.process()
    quantizer.model.save_model_to_file(str(out))
    _store_the_rest_in_16_bits(path, out)


def _store_the_rest_in_16_bits(path: Path, out: Path, more: dict[str, str] | None = None) -> None:
    """Store the large weights that are still float in ``out``, made from ``path``, in 16 bits; add metadata."""
    import onnx

    model = onnx.load(out)
    weights, casts = [], []
    scales = {name for node in model.graph.node if node.op_type == "MatMulNBits" for name in node.input[2:]}
    for weight in model.graph.initializer:
        values = onnx.numpy_helper.to_array(weight)
        if values.dtype == np.float32 and values.size >= LEAST_NUMBERS and weight.name not in scales:
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
    for key, value in (more or {}).items():
        model.metadata_props.add(key=key, value=value)
    onnx.save(model, out)
