"""Whether transformers loads what `meshwork quantize` writes, and computes with it what it computes with the library's own file.

  PYTHON tests/oracle_checkpoint_loads.py --program build/meshwork --model DIR [-o results/measured/checkpoint_loads.md]

PYTHON needs torch, transformers 5, torchao, compressed-tensors, and llmcompressor for compressed-tensors' own files. DIR is a small Qwen2-MoE;
recipes that its 64 rows and columns do not suit (groups of 128; swizzled scales of fused experts) get a model of random weights with 256 columns. Each recipe is applied twice to
the same bf16 model: by the library that owns it (from_pretrained with TorchAoConfig and save_pretrained; model_free_ptq) and by meshwork. Both
folders are loaded in the same way. Where the library can run its own file here, logits of both are compared; where it loads but cannot run it
(kernels that this machine lacks), its weights are, each dequantised by the library. Ends with 1 if ours does not load, or differs, where its own does not.
"""
import argparse, copy, importlib.metadata, logging, os, shutil, subprocess, sys, tempfile, warnings
from unittest import mock

import numpy
import torch

warnings.filterwarnings("ignore")
import transformers
from loguru import logger
from transformers import AutoModelForCausalLM, Qwen2MoeConfig, Qwen2MoeForCausalLM, TorchAoConfig

transformers.logging.set_verbosity_error()
logging.disable(logging.WARNING)
transformers.utils.logging.disable_progress_bar()
PATTERNS = [r"re:.*mlp\.experts\.down_proj", r"re:.*mlp\.experts\.gate_up_proj", r"re:.*self_attn\.[qkvo]_proj\.weight"]


def torchao_configs():
    import torchao.prototype.mx_formats as mx
    import torchao.quantization as q
    from torchao.quantization.granularity import PerBlock, PerGroup

    for module in list(sys.modules.values()):  # mx and nvfp4 ask for a GPU that only their products need
        if getattr(module, "__name__", "").startswith("torchao"):
            for name in ("is_sm_at_least_100", "is_sm_at_least_89", "is_sm_at_least_90"):
                if hasattr(module, name):
                    setattr(module, name, lambda *a, **k: True)
    fp8, fp4 = torch.float8_e4m3fn, torch.float4_e2m1fn_x2
    return {
        "fp8_row": lambda: q.Float8DynamicActivationFloat8WeightConfig(granularity=q.PerRow(), activation_value_lb=1e-12),
        "fp8_tensor": lambda: q.Float8DynamicActivationFloat8WeightConfig(granularity=q.PerTensor()),
        "fp8_block": lambda: q.Float8DynamicActivationFloat8WeightConfig(granularity=[PerBlock([1, 128]), PerBlock([128, 128])], activation_value_lb=1e-12),
        "fp8_weight_only": lambda: q.Float8WeightOnlyConfig(),
        "int8_weight_only": lambda: q.Int8WeightOnlyConfig(version=2),
        "int8_dynamic": lambda: q.Int8DynamicActivationInt8WeightConfig(version=2),
        "int8_int4": lambda: q.Int8DynamicActivationIntxWeightConfig(weight_dtype=torch.int4, weight_granularity=PerGroup(32)),
        "mxfp8": lambda: mx.MXDynamicActivationMXWeightConfig(activation_dtype=fp8, weight_dtype=fp8),
        "mxfp4": lambda: mx.MXDynamicActivationMXWeightConfig(activation_dtype=fp4, weight_dtype=fp4),
        "nvfp4": lambda: mx.NVFP4DynamicActivationNVFP4WeightConfig(use_triton_kernel=False),
        "nvfp4_one_level": lambda: mx.NVFP4DynamicActivationNVFP4WeightConfig(use_triton_kernel=False, use_dynamic_per_tensor_scale=False),
        "nvfp4_weight_only": lambda: mx.NVFP4WeightOnlyConfig(),
    }


SCHEMES = {"FP8_DYNAMIC": 0, "W8A8": 0, "NVFP4A16": 0, "MXFP4": 0, "MXFP4A16": 0, "MXFP8": 0, "MXFP8A16": 0,
           "FP8_BLOCK": 1, "W8A16": 1, "W4A16": 1, "W4A16_ASYM": 1, "W4A8": 1, "W4AFP8": 1}  # 1: on the model with 256 columns


# transformers 5.17 cannot make or load its own of these.
HOPELESS = {"int8_int4", "nvfp4_weight_only", "fp8_block", "W8A8", "MXFP8", "MXFP8A16", "FP8_BLOCK", "W4A16_ASYM", "W4A8", "W4AFP8"}


class Outcome:
    """of one folder: what loading said, and logits or weights."""

    def __init__(self):
        self.error, self.run_error, self.info, self.logits, self.weights = "", "", "", None, {}


def short(error):
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:110]}"


def plain(tensor):
    return (tensor.dequantize() if type(tensor) not in (torch.Tensor, torch.nn.Parameter) else tensor).detach().float()


def load(folder, ids):
    outcome = Outcome()
    try:
        model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, output_loading_info=True)
        bad = [f"{len(info[key])} {key.replace('_', ' ')}" for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs") if info.get(key)]
        outcome.info = ", ".join(bad)
    except Exception as error:
        outcome.error = short(error)
        return outcome
    try:
        with torch.no_grad():
            outcome.logits = model(ids).logits.float()
    except Exception as error:
        outcome.run_error = short(error)
    for name, tensor in model.state_dict().items():
        try:
            outcome.weights[name] = plain(tensor)
        except Exception as error:
            outcome.weights[name] = short(error)
    return outcome


def compare(own, ours):
    """(what was compared, verdict)"""
    if own.error or ours.error:
        return "-", "-"
    if own.logits is not None and ours.logits is not None:
        same = torch.equal(own.logits, ours.logits) or torch.equal(own.logits.nan_to_num(), ours.logits.nan_to_num())
        worst = (own.logits - ours.logits).abs().max().item() / own.logits.abs().max().item()
        return "logits", "the same" if same else f"differ by {worst:.1e} of the largest"
    differing = [name for name in own.weights if name not in ours.weights or isinstance(own.weights[name], str) != isinstance(ours.weights[name], str)
                 or (not isinstance(own.weights[name], str) and not torch.equal(own.weights[name].nan_to_num(), ours.weights[name].nan_to_num()))]
    readable = sum(not isinstance(value, str) for value in own.weights.values())
    return f"{readable} of {len(own.weights)} weights, dequantised", "the same" if not differing else f"{len(differing)} differ: {differing[0]}"


def meshwork(program, source, target, recipe, words):
    job = subprocess.run([program, "quantize", "--model", source, "--out", target, "--recipe", recipe, *words], capture_output=True, text=True)
    if job.returncode != 0:
        sys.exit(f"{recipe}: {job.stderr}")


def as_bf16(model, folder):
    AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).save_pretrained(folder)


def wide_model(folder):
    torch.manual_seed(3)
    config = Qwen2MoeConfig(vocab_size=320, hidden_size=256, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4,
                            moe_intermediate_size=128, shared_expert_intermediate_size=256, num_experts=4, num_experts_per_tok=2, max_position_embeddings=128)
    Qwen2MoeForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)


def divide_as_cuda(tensor, other, divide=torch.Tensor.__truediv__):
    """CUDA multiplies f32 by the reciprocal of a number; torchao's files are made there."""
    if isinstance(other, (int, float)) and tensor.dtype == torch.float32:
        return tensor * float(numpy.float32(1 / other))
    return divide(tensor, other)


def make_torchao(source, target, config):
    from torchao.quantization import FqnToConfig

    mapping = FqnToConfig({pattern: copy.deepcopy(config) for pattern in PATTERNS})
    # A GPU is asked for only by those who want products.
    with mock.patch("torch.xpu.is_available", lambda: True), mock.patch.object(torch.Tensor, "__truediv__", divide_as_cuda):
        model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16, quantization_config=TorchAoConfig(mapping))
    model.save_pretrained(target)


def make_compressed(source, target, scheme):
    from llmcompressor import model_free_ptq

    logger.remove()
    model_free_ptq(source, target, scheme=scheme, ignore=["lm_head", "re:.*mlp.gate$", "re:.*shared_expert_gate$", "re:.*embed_tokens$", "re:.*norm$"])


def row_of(work, recipe, source, ids, make, words, program):
    own_folder, our_folder = f"{work}/own", f"{work}/ours"
    for folder in (own_folder, our_folder):
        shutil.rmtree(folder, ignore_errors=True)
    meshwork(program, source, our_folder, recipe, words)
    if os.environ.get("MESHWORK_ORACLE_PLANT"):  # for the test of this test
        with open(f"{our_folder}/model.safetensors", "r+b") as f:
            f.seek(-30000, os.SEEK_END)
            f.write(b"\x7e\x01\x7e")
    try:
        make(source, own_folder)
        own = load(own_folder, ids)
    except Exception as error:
        own = Outcome()
        own.error = "cannot make it: " + short(error)
    ours = load(our_folder, ids)
    what, verdict = compare(own, ours)
    state = lambda o: o.error or ("loads" + (f", {o.info}" if o.info else "") + (f"; does not run here: {o.run_error}" if o.run_error else ""))
    good = recipe in HOPELESS if own.error else verdict == "the same" and ours.info == own.info
    return good, [recipe, state(own), state(ours) if state(ours) != state(own) else "as its own", what, verdict]


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--program", required=True)
    p.add_argument("--model", required=True)
    p.add_argument("--only", help="recipes, with commas between")
    p.add_argument("-o")
    a = p.parse_args()
    bad, rows = [], []
    with tempfile.TemporaryDirectory() as work:
        as_bf16(a.model, f"{work}/tiny")
        wide_model(f"{work}/wide")
        tiny_ids = torch.arange(24).reshape(2, 12) * 7 % 300
        jobs = []
        fused = ["--experts", "fused", *sum((["--match", pattern] for pattern in PATTERNS), [])]
        for recipe, config in torchao_configs().items():
            source = "wide" if recipe == "fp8_block" or recipe.startswith(("mx", "nv")) else "tiny"
            jobs.append((recipe, source, lambda s, t, config=config: make_torchao(s, t, config()), fused))
        for scheme, wide in SCHEMES.items():
            jobs.append((scheme, "wide" if wide else "tiny", lambda s, t, scheme=scheme: make_compressed(s, t, scheme), []))
        for recipe, source, make, words in jobs:
            if a.only and recipe not in a.only.split(","):
                continue
            good, row = row_of(work, recipe, f"{work}/{source}", tiny_ids, make, words, a.program)
            rows.append(row)
            bad += [] if good else [recipe]
            print(" | ".join(row), flush=True)
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "transformers", "torchao", "compressed-tensors", "llmcompressor"))
    if a.o:
        with open(a.o, "w") as f:
            f.write("# Files made here in the libraries that own their recipes\n\n"
                    f"{versions}; CPU; torchao's fused experts, compressed-tensors' experts one by one. The script says what is compared. fp8_block, mx*, nvfp4*, FP8_BLOCK, "
                    "W8A16 and W4*: a model with 256 columns; the others: tiny-qwen2-moe in bf16.\n\n| recipe | the library's own file | the file made here | compared | verdict |\n|---|---|---|---|---|\n")
            for row in rows:
                f.write("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |\n")
            f.write("\n    PYTHON tests/oracle_checkpoint_loads.py --program build/meshwork --model tiny-qwen2-moe -o results/measured/checkpoint_loads.md\n")
    if bad:
        sys.exit("not as the library's own: " + ", ".join(bad))


main()
