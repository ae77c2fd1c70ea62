#!/usr/bin/env python3
"""make_checkpoints.py DATA: the files of tests/golden/checkpoints.

DATA is a folder of one small bf16 model as other people's tools quantised it: source/, v4-<recipe>/ (torchao on an H200,
experts one by one), hf-<recipe>/ (transformers, experts fused) and ct-<scheme>/ (llm-compressor). Nothing is needed but
Python.

  source/         the model itself
  bin-<recipe>/   two of torchao's pytorch_model.bin with their config.json
  expected.json   of every other folder: the rules that made it, its config.json, and of each tensor its type, its shape
                  and the SHA-256 of its bytes. null instead of the digest where the library is known to differ: torchao's
                  fused kernel for mxfp8 writes zeros in a row whose scale byte is 0, its eager path and we keep the values.
"""
import hashlib, json, os, shutil, struct, sys

DATA = sys.argv[1]
HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "checkpoints")
V4 = ["re:.*experts\\.[0-9]+\\.(gate|up|down)_proj", "re:.*self_attn\\.[qkvo]_proj"]
HF = ["re:.*mlp\\.experts\\.down_proj", "re:.*mlp\\.experts\\.gate_up_proj", "re:.*self_attn\\.[qkvo]_proj\\.weight"]
CT = ["lm_head", "re:.*embed_tokens$", "re:.*mlp.gate$", "re:.*shared_expert_gate$", "re:.*norm$"]
KNOWN = {"v4-mxfp8": "model.layers.0.mlp.experts.2.down_proj._weight_qdata",
         "hf-mxfp8": "model.layers.0.mlp.experts._down_proj_qdata"}


def tensors(folder):
    with open(f"{DATA}/{folder}/model.safetensors", "rb") as f:
        header = json.loads(f.read(struct.unpack("<Q", f.read(8))[0]))
        data = f.read()
    out = {}
    for name, e in header.items():
        if name != "__metadata__":
            begin, end = e["data_offsets"]
            digest = None if KNOWN.get(folder) == name else hashlib.sha256(data[begin:end]).hexdigest()
            out[name] = [e["dtype"], e["shape"], digest]
    return out


os.makedirs(HERE, exist_ok=True)
expected = {}
for folder in sorted(os.listdir(DATA)):
    kind, _, recipe = folder.partition("-")
    if kind not in ("v4", "hf", "ct"):
        continue
    expected[folder] = {
        "recipe": recipe,
        "match": V4[:1] if kind == "v4" and recipe.startswith("nvfp4") else V4 if kind == "v4" else HF if kind == "hf" else [],
        "skip": CT if kind == "ct" else [],
        "experts": "fused" if kind == "hf" else "separate",
        "config": json.load(open(f"{DATA}/{folder}/config.json")),
        "tensors": tensors(folder),
    }
json.dump(expected, open(f"{HERE}/expected.json", "w"), indent=0, sort_keys=True)
for name, source in (("source", "source"), ("bin-nvfp4", "v4-nvfp4"), ("bin-mxfp8", "v4-mxfp8")):
    os.makedirs(f"{HERE}/{name}", exist_ok=True)
    files = ["pytorch_model.bin", "config.json"] if name != "source" else ["model.safetensors", "config.json",
                                                                          "generation_config.json"]
    for file in files:
        shutil.copyfile(f"{DATA}/{source}/{file}", f"{HERE}/{name}/{file}")
