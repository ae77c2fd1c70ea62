"""Files of torchao's classes of before April 2026, and what their values are.

  PYTHONPATH=TORCHAO_0_9 python3 make_legacy_torchao.py [TILES]

Needs torch and torchao 0.9 (the last with AffineQuantizedTensor for which nothing has to be built). The tiles of an int4 weight, which
torchao 0.9 makes on a GPU alone, come from a file of torchao 0.18 of the same layout: {"q": qdata, "s": scale_and_zero} saved as TILES;
their expected values are what `meshwork convert` reads in that file (checked against torchao elsewhere). Without TILES they stay.
"""
import json, os, sys

import torch
from safetensors.torch import save_file
from torchao.dtypes.affine_quantized_tensor import AffineQuantizedTensor
from torchao.dtypes.uintx.plain_layout import PlainAQTTensorImpl
from torchao.dtypes.uintx.tensor_core_tiled_layout import TensorCoreTiledAQTTensorImpl, TensorCoreTiledLayout
from torchao.dtypes.utils import PlainLayout
from torchao.quantization import int8_dynamic_activation_int8_weight, int8_weight_only, quantize_
from torchao.quantization.quant_primitives import ZeroPointDomain

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "legacy_torchao")


def put(name, state, expected, **kwargs):
    folder = os.path.join(HERE, name)
    os.makedirs(folder, exist_ok=True)
    torch.save(state, folder + "/pytorch_model.bin")
    config = {"quant_method": "torchao", "quant_type": kwargs.pop("quant_type", name), **kwargs}
    with open(folder + "/config.json", "w") as f:
        json.dump({"model_type": "qwen2", "quantization_config": config}, f, indent=1)
    if expected:
        save_file(expected, folder + "/expected.safetensors")


torch.manual_seed(1)
NORM = {"model.norm.weight": torch.ones(64, dtype=torch.bfloat16)}
for name, config in (("int8_weight_only", int8_weight_only), ("int8_dynamic_activation_int8_weight", int8_dynamic_activation_int8_weight)):
    linear = torch.nn.Linear(64, 48, bias=False).to(torch.bfloat16)
    quantize_(linear, config())
    inner = getattr(linear.weight, "original_weight_tensor", linear.weight)
    key = "model.layers.0.mlp.up_proj.weight"
    put(name, {key: linear.weight, **NORM}, {key: inner.dequantize().contiguous(), **NORM})

plain = PlainAQTTensorImpl(torch.ones(16, 32, dtype=torch.int8), torch.ones(16, dtype=torch.bfloat16), torch.full((16,), 3), PlainLayout())
put("zero_points", {"w.weight": AffineQuantizedTensor(plain, (1, 32), torch.Size((16, 32)), None, None, ZeroPointDomain.INT, torch.bfloat16)},
    None, quant_type="int8_weight_only")

if len(sys.argv) > 1:
    parts = torch.load(sys.argv[1])
    tiles = TensorCoreTiledAQTTensorImpl(parts["q"], parts["s"], False, TensorCoreTiledLayout(inner_k_tiles=8))
    weight = AffineQuantizedTensor(tiles, (1, 128), torch.Size((128, 128)), 0, 15, ZeroPointDomain.FLOAT, torch.bfloat16)
    put("int4_weight_only", {"model.layers.0.mlp.experts.0.down_proj.weight": weight}, None, quant_type_kwargs={"group_size": 128})
