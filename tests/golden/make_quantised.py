#!/usr/bin/env python3
"""make_quantised.py DATA [OLD_TORCHAO]: the files of tests/golden/quantised.

Needs torch 2.11, torchao 0.18 and safetensors. DATA is a folder of one small bf16 model as other people's tools quantised
it: source/, v4-<recipe>/ (torchao on an H200, experts one by one), hf-<recipe>/ (transformers, experts fused) and
ct-<scheme>/ (llm-compressor). OLD_TORCHAO is a folder with torchao 0.14 (pip install --no-deps --target OLD_TORCHAO
torchao==0.14.1), the last that had int4 activations with int4 weights.

Every file but source.safetensors and edge_source.safetensors holds what one recipe makes of tensors of a source file:
  metadata   recipe: as `meshwork --recipe` takes it; operand: weights or activations; source: which file
  X/codes, X/scales, X/zeros, X/tensor_scales   the bytes; X/values: what they stand for in bf16; X/amax: where it was
             not measured on X alone; X/except_rows: rows whose codes are known to differ, see below

The edge files are made here, on the CPU, by torchao with one change: a division by a Python number is a multiplication
by its rounded reciprocal, as on CUDA. NaN codes are written without sign, as CUDA has them (x86 has 0 / 0 = -NaN).
"""
import json, os, struct, sys
import torch
from safetensors.torch import load_file, save_file

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "quantised")
DATA = sys.argv[1]
OLD = sys.argv[2] if len(sys.argv) > 2 else None
bf16, f32 = torch.bfloat16, torch.float32
LAYER = "model.layers.0."
EXPERT_TENSORS = [f"mlp.experts.{e}.{p}_proj" for e in range(3) for p in ("gate", "up", "down")]
ATTENTION = [f"self_attn.{p}_proj" for p in "qkv"]
# A row of zeros; a block of zeros; a tiny and a huge row.
CHOSEN = ["mlp.experts.1.gate_proj", "mlp.experts.0.down_proj", "mlp.experts.2.down_proj"]


def raw(path):
    """Tensors as they lie in the file; types that torch's loader may lack become bytes."""
    with open(path, "rb") as f:
        header = json.loads(f.read(struct.unpack("<Q", f.read(8))[0]))
        start = f.tell()
        out = {}
        for name, e in header.items():
            if name == "__metadata__":
                continue
            f.seek(start + e["data_offsets"][0])
            data = bytearray(f.read(e["data_offsets"][1] - e["data_offsets"][0]))
            out[name] = (e["dtype"], e["shape"], torch.frombuffer(data, dtype=torch.uint8).clone())
        return out


def write(name, tensors, **metadata):
    save_file({k: v.clone().contiguous() for k, v in tensors.items()}, os.path.join(HERE, name + ".safetensors"),
              metadata={"format": "pt", **metadata})


def as_bytes(t):
    return t.contiguous().reshape(-1).view(torch.uint8)


source = load_file(f"{DATA}/source/model.safetensors")
weights = {n: source[LAYER + n + ".weight"] for n in EXPERT_TENSORS + ATTENTION}
fused = torch.stack([torch.cat([weights[f"mlp.experts.{e}.gate_proj"], weights[f"mlp.experts.{e}.up_proj"]]) for e in range(3)])

PARTS = {"qdata": "codes", "scale": "scales", "scale_and_zero": "scales", "zero_point": "zeros", "per_tensor_scale": "tensor_scales"}


def torchao_files():
    for folder in sorted(os.listdir(DATA)):
        kind, _, recipe = folder.partition("-")
        if kind == "v4":
            have = raw(f"{DATA}/{folder}/model.safetensors")
            path = f"{DATA}/{folder}/dequantised.safetensors"
            values = load_file(path) if os.path.exists(path) else {}
            out = {}
            for n in CHOSEN:
                for part, ours in PARTS.items():
                    key = f"{LAYER}{n}._weight_{part}"
                    if key in have:
                        out[f"{n}/{ours}"] = have[key][2]
                if f"{LAYER}{n}.weight" in values:
                    out[f"{n}/values"] = values[f"{LAYER}{n}.weight"]
            if recipe == "mxfp8":  # byte 0: torchao's fused kernel writes zeros, its eager path and we keep the values
                out["mlp.experts.2.down_proj/except_rows"] = torch.tensor([1])
            write(f"torchao_{recipe}", out, recipe=recipe, operand="weights", source="source")
        if kind == "hf":
            have = raw(f"{DATA}/{folder}/model.safetensors")
            out = {f"gate_up/{ours}": have[f"{LAYER}mlp.experts._gate_up_proj_{part}"][2]
                   for part, ours in PARTS.items() if f"{LAYER}mlp.experts._gate_up_proj_{part}" in have}
            write(f"fused_{recipe}", out, recipe=recipe, operand="weights", source="source")


def unpack_words(words, bits, count):
    """compressed-tensors: element i of a row at bits [i * bits, ...), stored as q + 2^(bits - 1)."""
    per = 32 // bits
    u = torch.stack([(words >> (bits * i)) & (2 ** bits - 1) for i in range(per)], -1).reshape(words.shape[0], -1)[:, :count]
    return (u - 2 ** (bits - 1)).to(torch.int8)


def ct_files():
    for folder in sorted(os.listdir(DATA)):
        kind, _, scheme = folder.partition("-")
        if kind != "ct":
            continue
        have = raw(f"{DATA}/{folder}/model.safetensors")
        chosen = ATTENTION + CHOSEN if scheme == "NVFP4A16" else CHOSEN
        shared = torch.stack([weights[n].abs().amax() for n in ATTENTION]).max().float()
        out = {}
        for n in chosen:
            get = lambda suffix: have.get(f"{LAYER}{n}.{suffix}", (None, None, None))
            dtype, shape, data = get("weight_packed")
            if dtype == "I32":
                out[f"{n}/codes"] = as_bytes(unpack_words(data.view(torch.int32).reshape(shape), int(scheme[1]), weights[n].shape[1]))
            else:
                out[f"{n}/codes"] = data if dtype else get("weight")[2]
            out[f"{n}/scales"] = get("weight_scale")[2]
            dtype, shape, data = get("weight_zero_point")
            if dtype:
                zeros = unpack_words(data.view(torch.int32).reshape(shape).t().contiguous(), 4, weights[n].shape[0])
                out[f"{n}/zeros"] = as_bytes(zeros.t())
            if get("weight_global_scale")[0]:
                out[f"{n}/tensor_scales"] = get("weight_global_scale")[2]
                if n in ATTENTION:
                    out[f"{n}/amax"] = shared.reshape(1)
        write(f"ct_{scheme}", out, recipe=scheme, operand="weights", source="source")


# ---- edges ----

def edge_tensors():
    g = torch.Generator().manual_seed(6)
    K = 256
    rows = torch.zeros(48, K)
    rows[1] = -0.0
    rows[2] = torch.randint(-127, 128, (K,), generator=g) * 2.0 ** -133
    rows[3] = torch.where(torch.arange(K) % 2 == 0, 2.0 ** -126, -2.0 ** -126)
    rows[4] = 3.3895313892515355e38 * torch.where(torch.arange(K) % 3 == 0, -1.0, 1.0)
    e4m3 = torch.arange(0x7F, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    rows[5, 0] = 448.0
    ties = (e4m3[1:] + e4m3[:-1]) / 2  # 126 ties, of the subnormals too
    rows[5, 1:127], rows[5, 128:254] = ties, -ties
    rows[6] = torch.arange(K) - 127.5
    e2m1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    few = torch.cat([(e2m1[1:] + e2m1[:-1]) / 2, e2m1])
    rows[7] = torch.cat([few, -few, torch.tensor([6.0, -6.0])]).repeat(K // 32)
    rows[8] = -torch.rand(K, generator=g) - 0.01
    rows[9] = torch.rand(K, generator=g) + 0.01
    rows[10, 77] = 1.0
    rows[11] = 0.3
    rows[12] = torch.where(torch.arange(K) % 16 == 5, 1e30, 1e-30)
    rows[13] = torch.exp2(torch.arange(K) / 8 - 16)
    rows[14] = torch.arange(K) / 2 - 7.5 * 8
    rows[15, ::2] = 1e-39
    for i in range(16, 48):
        rows[i] = torch.randn(K, generator=g) * 2.0 ** ((i - 32) * 4)
    nan = torch.randn(16, K, generator=g)
    nan[1, 3] = float("nan")
    nan[2, 130] = float("inf")
    nan[3, 255] = float("-inf")
    nan[4, 0], nan[4, 1] = float("inf"), float("-inf")
    nan[5, 16] = -float("nan")
    nan[6] = float("nan")
    nan[7, :128] = float("inf")
    mild = torch.cat([rows[5:8], rows[13:15], rows[40:43], torch.randn(16, K, generator=g), torch.zeros(8, K)])
    batch = torch.randn(3, 32, K, generator=g)
    batch[1] *= 100
    return {"rows": rows.to(bf16), "nan": nan.to(bf16), "mild": mild.to(bf16), "batch": batch.to(bf16)}


def divide(self, other, original=torch.Tensor.__truediv__):
    if isinstance(other, (int, float)) and self.is_floating_point():
        return (self.float() * torch.tensor(1.0 / other, dtype=f32)).to(self.dtype)
    return original(self, other)


def without_nan_sign(t):
    b = t.contiguous().view(torch.uint8)
    return torch.where(b == 0xFF, torch.full_like(b, 0x7F), b)


def positive_nan(t):
    return torch.where(t.isnan(), torch.full_like(t, float("nan")).abs(), t)


def per_matrix(make):
    """torchao's swizzle of stacks needs 128 rows; ours is of each matrix."""
    def stacked(t):
        if t.dim() == 2:
            return make(t)
        parts = zip(*[make(matrix) for matrix in t])
        return [None if p[0] is None else torch.stack(p) for p in parts]
    return stacked


def put(out, name, codes, scales, zeros=None, tensor_scales=None):
    if scales.dtype in (bf16, f32):
        scales = positive_nan(scales)
    if zeros is not None and zeros.dtype == bf16:
        zeros = positive_nan(zeros)
    out[f"{name}/codes"], out[f"{name}/scales"] = as_bytes(codes), as_bytes(scales)
    if zeros is not None:
        out[f"{name}/zeros"] = as_bytes(zeros)
    if tensor_scales is not None:
        out[f"{name}/tensor_scales"] = as_bytes(tensor_scales)


def symmetric_rows(t, lower_bound=None, granularity=None):
    from torchao.quantization import PerRow
    from torchao.quantization.quantize_.workflows.float8.float8_tensor import Float8Tensor
    from torchao.quantization.quantize_.common import KernelPreference
    q = Float8Tensor.from_hp(t, float8_dtype=torch.float8_e4m3fn, granularity=granularity or PerRow(), hp_value_lb=lower_bound,
                             kernel_preference=KernelPreference.TORCH)
    return without_nan_sign(q.qdata), q.scale


def int8_rows(t):
    from torchao.quantization import PerRow
    from torchao.quantization.quantize_.workflows.int8.int8_tensor import Int8Tensor
    q = Int8Tensor.from_hp(t, granularity=PerRow())
    return q.qdata, q.scale, q.zero_point


def intx(t, group):
    from torchao.quantization.quantize_.workflows import IntxUnpackedToInt8Tensor
    q = IntxUnpackedToInt8Tensor.from_hp(t, (1, group), torch.int4)
    return q.qdata, q.scale, q.zero_point


def token_zero_points(t):
    from torchao.quantization.quant_primitives import MappingType, choose_qparams_affine, quantize_affine
    block = (1, t.shape[-1])
    s, z = choose_qparams_affine(t, MappingType.ASYMMETRIC, block, target_dtype=torch.int8, quant_min=-128, quant_max=127,
                                 zero_point_dtype=torch.int8)
    return quantize_affine(t, block, s, z, torch.int8, -128, 127), s, z


def mx(t, element, mode):
    from torchao.prototype.mx_formats.config import ScaleCalculationMode
    from torchao.prototype.mx_formats.mx_tensor import MXTensor
    q = MXTensor.to_mx(t, element, block_size=32, scaling_mode=ScaleCalculationMode[mode.upper()], is_swizzled_scales=True)
    codes = q.qdata.view(torch.uint8)
    return without_nan_sign(codes) if element == torch.float8_e4m3fn else codes, q.scale.view(torch.uint8)


def nvfp4(t, two_level):
    from torchao.prototype.mx_formats.nvfp4_tensor import NVFP4Tensor, per_tensor_amax_to_scale
    T = None
    if two_level:
        T = per_tensor_amax_to_scale(t.abs().amax())
    q = NVFP4Tensor.to_nvfp4(t, per_tensor_scale=T, is_swizzled_scales=True)
    return q.qdata.view(torch.uint8), without_nan_sign(q.scale.view(torch.uint8)), None, T


def int4_tile(t, group):
    from torchao.quantization.quant_primitives import (MappingType, _choose_qparams_affine_tinygemm, _quantize_affine_tinygemm)
    n, k = -(-t.shape[0] // 8) * 8, -(-t.shape[1] // 1024) * 1024
    w = torch.nn.functional.pad(t, (0, k - t.shape[1], 0, n - t.shape[0]))
    s, z = _choose_qparams_affine_tinygemm(w, MappingType.ASYMMETRIC, (1, group), torch.int32, 0, 15)
    q = _quantize_affine_tinygemm(w, (1, group), s, z, torch.int32, 0, 15)
    # tinygemm's words: [n / 8][k / 128][t of 32][j of 4], nibbles k0, k0 + 8, k0 + 16, k0 + 24, k0 + 1, ...
    words = torch.zeros(n // 8, k // 128, 32, 4, dtype=torch.int64)
    for i, step in enumerate((0, 8, 16, 24, 1, 9, 17, 25)):
        for lane in range(32):
            for j in range(4):
                k0 = 32 * j + 2 * (lane % 4) + step
                words[:, :, lane, j] |= (q.to(torch.int64) & 0xF)[lane // 4::8, k0::128] << (4 * i)
    pairs = torch.stack([s.reshape(n, -1), z.reshape(n, -1)], -1).transpose(0, 1)
    return torch.from_numpy(words.numpy().astype("uint32")), pairs


def pack_pairs(q):
    return (q[..., ::2] & 0xF) | ((q[..., 1::2] & 0xF) << 4)


def int4_range(t, group):
    """MSLK's int4_row_quantize_zp, which has no public build: the same steps."""
    x = t.float().unflatten(-1, (-1, group))
    low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    s = (high - low).clamp(min=1e-6) / 15
    q = (((x - low) / s).round().clamp(0, 15) - 8).nan_to_num(0).to(torch.int8).flatten(-2)
    turn = lambda v: v.squeeze(-1).transpose(-2, -1).to(bf16)
    return pack_pairs(q), turn(s), turn(low + s * 8)


def int4_eighths(t, group):
    """MSLK's int4_row_quantize, likewise."""
    x = t.float().unflatten(-1, (-1, group))
    s = x.abs().amax(-1, keepdim=True).clamp(min=1e-6) / 8
    q = (x / s).round().clamp(-8, 7).nan_to_num(0).to(torch.int8).flatten(-2)
    s = s.squeeze(-1).transpose(-2, -1).to(bf16)
    return pack_pairs(q), s, torch.zeros_like(s)


def deepseek(t, rows):
    n, k = t.shape[0] // rows, t.shape[1] // 128
    x = t.reshape(n, rows, k, 128)
    s = x.abs().amax(dim=(1, 3), keepdim=True).clamp(min=1e-12).float() / 448.0
    q = (x.float() * (1.0 / s)).clamp(-448, 448).to(torch.float8_e4m3fn)
    return without_nan_sign(q.reshape(t.shape)), s.reshape(n, k)


def edge_files():
    t = edge_tensors()
    write("edge_source", t)
    torch.Tensor.__truediv__ = divide
    finite, all_of = ["rows", "mild"], ["rows", "nan", "mild"]
    from torchao.quantization import PerTensor

    def file(name, recipe, make, names, operand="weights", except_rows={}):
        out = {}
        for n in names:
            put(out, n, *make(t[n]))
            if n in except_rows:
                out[f"{n}/except_rows"] = torch.tensor(except_rows[n])
        write(f"edge_{name}", out, recipe=recipe, operand=operand, source="edge_source")

    file("fp8_row", "fp8_row", symmetric_rows, all_of + ["batch"])
    file("fp8_row_activations", "fp8_row", lambda x: symmetric_rows(x, 1e-12), all_of, "activations")
    file("fp8_tensor", "fp8_tensor", lambda x: symmetric_rows(x, None, PerTensor()), ["rows", "mild", "nan", "batch"])
    file("int8", "int8_weight_only", int8_rows, all_of + ["batch"])
    file("int8_activations", "int8_dynamic", int8_rows, all_of, "activations")
    file("int8_int4", "int8_int4", lambda x: intx(x, 32), all_of)
    file("int8_int4_128", "int8_int4:group=128", lambda x: intx(x, 128), all_of)
    file("int8_int4_activations", "int8_int4", token_zero_points, finite, "activations")
    for mode in ("floor", "ceil", "even", "rceil"):
        for name, element in (("mxfp8", torch.float8_e4m3fn), ("mxfp4", torch.float4_e2m1fn_x2)):
            # torchao 0.18, unlike 0.19: bytes 0 and FF stand for other factors, and infinities do not give FF
            differ = {"rows": [2, 3, 15] + [4] * (mode == "even"), "nan": list(range(1, 8))}
            names = all_of
            file(f"{name}_{mode}", f"{name}:mode={mode}", per_matrix(lambda x: mx(x, element, mode)), names + ["batch"] * (name == "mxfp4"),
                 except_rows=differ)
    file("nvfp4", "nvfp4", per_matrix(lambda x: nvfp4(x, True)), ["mild", "rows", "batch"])
    file("nvfp4_one_level", "nvfp4_one_level", per_matrix(lambda x: nvfp4(x, False)), ["mild", "rows", "batch"])
    for group in (32, 64, 128, 256):
        file(f"int4_tile_{group}", f"int4_tile:group={group}", lambda x: int4_tile(x, group), ["mild"] if group != 128 else finite)
        file(f"int4_weight_only_{group}", f"int4_weight_only:group={group}", lambda x: int4_range(x, group), finite)
    file("int4_weight_only_nan", "int4_weight_only", per_matrix(lambda x: int4_range(x, 128)), ["nan", "batch"])
    file("fp8_int4", "fp8_int4", lambda x: int4_eighths(x, 128), all_of + ["batch"])
    file("deepseek_activations", "deepseek_block", lambda x: deepseek(x, 1), all_of, "activations")
    t["square"] = torch.cat([t["rows"][5:15], t["batch"].flatten(0, 1), t["batch"].flatten(0, 1) * 3, t["mild"]])[:128].contiguous()
    write("edge_source", t)
    file("deepseek_block", "deepseek_block", lambda x: deepseek(x, 128), ["square"])
    torch.Tensor.__truediv__ = divide.__defaults__[0]


def old_files():
    """In a process of its own: the old torchao instead of the new."""
    sys.path.insert(0, OLD)
    from torchao.quantization.quant_api import _int4_symm_cutlass_quant
    t = load_file(os.path.join(HERE, "edge_source.safetensors"))
    torch.Tensor.__truediv__ = divide
    for operand in ("weights", "activations"):
        out = {}
        for n in ("rows", "mild", "nan"):
            layout = _int4_symm_cutlass_quant(t[n]).tensor_impl
            put(out, n, layout.int_data.view(torch.uint8), layout.scale.float().reshape(-1))
        write(f"edge_int4_int4_{operand}", out, recipe="int4_int4", operand=operand, source="edge_source")


if len(sys.argv) > 3 and sys.argv[3] == "--old":
    old_files()
else:
    os.makedirs(HERE, exist_ok=True)
    write("source", {**{n: weights[n] for n in CHOSEN + ATTENTION}, "gate_up": fused})
    torchao_files()
    ct_files()
    edge_files()
    if OLD:
        os.execv(sys.executable, [sys.executable, __file__, DATA, OLD, "--old"])
