#!/usr/bin/env python3
"""make_fuzz.py PROGRAM: the seeds under tests/golden/fuzz, small inputs for every target of tests/fuzz_targets.h.

A tiny model is written here and quantised by PROGRAM (build/meshwork) with recipes of every kind. Inputs that once crashed
a parser stay there beside the seeds; this script does not touch them.
"""
import json, os, struct, subprocess, sys, tempfile, zipfile

PROGRAM = os.path.abspath(sys.argv[1])
HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "fuzz")


def put(target, name, data):
    os.makedirs(f"{HERE}/{target}", exist_ok=True)
    open(f"{HERE}/{target}/{name}", "wb").write(data)


def safetensors(tensors):
    header, data = {}, b""
    for name, (dtype, shape, raw) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def values(rows, columns):
    return b"".join(struct.pack("<H", 0x3F00 + (i * 37) % 200) for i in range(rows * columns))


with tempfile.TemporaryDirectory() as work:
    os.makedirs(f"{work}/in")
    shapes = {"a.0.q_proj.weight": [16, 16], "norm.weight": [4]}
    model = safetensors({n: ("BF16", s, values(s[0], s[1] if len(s) > 1 else 1)) for n, s in shapes.items()})
    open(f"{work}/in/model.safetensors", "wb").write(model)
    json.dump({"model_type": "x"}, open(f"{work}/in/config.json", "w"))
    put("safetensors", "plain", model)
    put("safetensors", "scalar", safetensors({"s": ("F32", [], b"\0\0\0\0"), "e": ("U8", [0, 3], b"")}))
    for recipe, layout in (("fp8_row", "torchao"), ("nvfp4", "torchao"), ("int8_weight_only", "torchao"),
                           ("FP8_DYNAMIC", "compressed-tensors"), ("W8A8", "compressed-tensors"),
                           ("NVFP4A16", "compressed-tensors"), ("deepseek_block", "deepseek"),
                           ("int8_weight_only", "compressed-tensors"),
                           ("fp8_row", "torchao-bin"), ("nvfp4", "torchao-bin")):
        out = f"{work}/{recipe}-{layout}"
        subprocess.run([PROGRAM, "quantize", "--model", f"{work}/in", "--out", out, "--recipe", recipe, "--layout", layout],
                       check=True, capture_output=True)
        config = json.dumps(json.load(open(f"{out}/config.json")), separators=(",", ":")).encode()
        torch = layout == "torchao-bin"
        file = open(f"{out}/" + ("pytorch_model.bin" if torch else "model.safetensors"), "rb").read()
        put("torch" if torch else "checkpoint", f"{recipe}-{layout}",
            struct.pack("<I", len(config)) + config + file if not torch else struct.pack("<I", 0) + file)
        if torch:
            put("zip", recipe, file)
            with zipfile.ZipFile(f"{out}/pytorch_model.bin") as z:
                put("pickle", recipe, z.read("pytorch_model/data.pkl"))
    put("index", "two", json.dumps({"metadata": {"total_size": 5}, "weight_map": {
        "a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}).encode())
    put("index", "outside", json.dumps({"weight_map": {"a": "../secret.safetensors"}}).encode())
    put("rules", "some", json.dumps({"re:.*experts.*": "nvfp4", "lm_head": None, "re:(a|b)+c": "int4_tile:group=64",
                                     "_default": "fp8_row"}).encode())
    put("rules", "slow", json.dumps({"re:(([a-z.0-9_]+)+)+x": "fp8_row"}).encode())
