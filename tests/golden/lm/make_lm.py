#!/usr/bin/env python3
"""The small language model of `meshwork parallelisms`, computed by PyTorch in float64: the files beside this one.

    make_lm.py make FOLDER     write the cases of CASES below
    make_lm.py check FILE...   recompute loss and gradients of the files from their parameters and tokens

A file holds every parameter under its Hugging Face name (f32), ids and targets (i32), expect.loss and
expect.grad.<parameter> (f64); `__metadata__` has layers and top_k. Tests read the files; no test needs this program.
Needs torch and safetensors.
"""
import os
import sys

import torch
from safetensors import safe_open
from safetensors.torch import save_file

ALLOWED_ERROR = 1e-12  # max |new - stored| / max |stored|
CASES = {
    "mlp": dict(tokens=13, vocab=29, dim=24, inner=20, layers=2, experts=0, top_k=0, seed=1),
    "moe": dict(tokens=17, vocab=23, dim=16, inner=12, layers=2, experts=6, top_k=2, seed=2),
}


def rms_norm(x, weight):
    return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-6) * weight


def swiglu(x, gate, up, down):
    return (torch.nn.functional.silu(x @ gate.T) * (x @ up.T)) @ down.T


def experts(x, p, name, top_k):
    """Softmax over all experts, the top_k chosen, their scores divided by their sum."""
    scores = torch.softmax(x @ p[name + "mlp.gate.weight"].T, dim=-1)
    chosen, index = torch.topk(scores, top_k, dim=-1)
    weights = chosen / (chosen.sum(-1, keepdim=True) + 1e-20)
    gate_up, down = p[name + "mlp.experts.gate_up_proj"], p[name + "mlp.experts.down_proj"]
    inner = gate_up.shape[1] // 2
    rows = []
    for t in range(x.shape[0]):
        row = 0
        for k in range(top_k):
            e = index[t, k]
            row = row + weights[t, k] * swiglu(x[t : t + 1], gate_up[e, :inner], gate_up[e, inner:], down[e])[0]
        rows.append(row)
    return torch.stack(rows)


def loss_of(p, ids, targets, layers, top_k):
    h = p["model.embed_tokens.weight"][ids]
    for layer in range(layers):
        name = f"model.layers.{layer}."
        n = rms_norm(h, p[name + "post_attention_layernorm.weight"])
        if top_k:
            h = h + experts(n, p, name, top_k)
        else:
            h = h + swiglu(n, *(p[name + f"mlp.{w}_proj.weight"] for w in ("gate", "up", "down")))
    logits = rms_norm(h, p["model.norm.weight"]) @ p["lm_head.weight"].T
    return torch.nn.functional.cross_entropy(logits, targets)


def expectations(parameters, ids, targets, layers, top_k):
    p = {name: value.double().requires_grad_() for name, value in parameters.items()}
    loss = loss_of(p, ids.long(), targets.long(), layers, top_k)
    loss.backward()
    found = {"expect.loss": loss.detach().reshape(1)}
    found.update({"expect.grad." + name: value.grad for name, value in p.items()})
    return found


def draw(case):
    torch.manual_seed(case["seed"])
    dim, inner, vocab, count = case["dim"], case["inner"], case["vocab"], case["experts"]
    p = {"model.embed_tokens.weight": torch.randn(vocab, dim)}
    for layer in range(case["layers"]):
        name = f"model.layers.{layer}."
        p[name + "post_attention_layernorm.weight"] = 1 + 0.1 * torch.randn(dim)
        if count:
            p[name + "mlp.gate.weight"] = torch.randn(count, dim) / dim**0.5
            p[name + "mlp.experts.gate_up_proj"] = torch.randn(count, 2 * inner, dim) / dim**0.5
            p[name + "mlp.experts.down_proj"] = torch.randn(count, dim, inner) / inner**0.5
        else:
            p[name + "mlp.gate_proj.weight"] = torch.randn(inner, dim) / dim**0.5
            p[name + "mlp.up_proj.weight"] = torch.randn(inner, dim) / dim**0.5
            p[name + "mlp.down_proj.weight"] = torch.randn(dim, inner) / inner**0.5
    p["model.norm.weight"] = 1 + 0.1 * torch.randn(dim)
    p["lm_head.weight"] = torch.randn(vocab, dim) / dim**0.5
    tokens = torch.randint(vocab, (case["tokens"] + 1,), dtype=torch.int32)
    return p, tokens[:-1].clone(), tokens[1:].clone()


def make(folder):
    for name, case in CASES.items():
        p, ids, targets = draw(case)
        tensors = dict(p, ids=ids, targets=targets)
        tensors.update(expectations(p, ids, targets, case["layers"], case["top_k"]))
        metadata = {"layers": str(case["layers"]), "top_k": str(case["top_k"])}
        save_file({k: v.contiguous() for k, v in tensors.items()}, os.path.join(folder, name + ".safetensors"), metadata)


def check(path):
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        stored = {name: file.get_tensor(name) for name in file.keys()}
    p = {name: value for name, value in stored.items() if name.startswith(("model.", "lm_head."))}
    found = expectations(p, stored["ids"], stored["targets"], int(metadata["layers"]), int(metadata["top_k"]))
    for name, value in found.items():
        error = ((value - stored[name]).abs().max() / stored[name].abs().max()).item()
        if not error <= ALLOWED_ERROR:
            sys.exit(f"{path}: {name} differs by {error:.3g}")
    print(f"{path}: {len(found)} tensors as stored")


if __name__ == "__main__":
    if len(sys.argv) < 3 or sys.argv[1] not in ("make", "check"):
        sys.exit(__doc__)
    for argument in sys.argv[2:]:
        (make if sys.argv[1] == "make" else check)(argument)
