#!/usr/bin/env python3
"""What PyTorch computes where kernels/ has rms_norm, embedding, cross_entropy, optimizer and clip_scale.

    make_lm_kernels.py make FILE     # made with torch 2.11, safetensors 0.8
    make_lm_kernels.py check FILE    # 0 if FILE holds what this PyTorch computes from the inputs in it

Inputs are f32 (ids and targets i32). Results are f64, computed in f64 from them; the optimisers' ".f32" results are
what PyTorch has in f32. Trajectories are [steps, count]: the parameters after each step. Needs torch and safetensors.
"""
import sys

import torch
from safetensors import safe_open
from safetensors.torch import save_file

# Options of torch.optim, stored as metadata "<case>.<option>".
SGD = {
    "sgd": dict(lr=0.1),
    "sgd-momentum": dict(lr=0.05, momentum=0.9, weight_decay=0.01),
}
ADAMW = {
    "adamw": dict(lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1),
    "adamw-eps": dict(lr=3e-2, betas=(0.8, 0.999), eps=1e-2, weight_decay=0.0),
}
RMS_EPS = 1e-5
MAX_NORM = {"below": 1.0, "above": 1e6}
# max |new - stored| / max |stored|. PyTorch may order its f32 operations differently on another CPU.
ALLOWED_ERROR = {torch.float64: 1e-12, torch.float32: 1e-5}


def draw(generator, *shape, deviation=1.0):
    return (torch.randn(*shape, generator=generator, dtype=torch.float64) * deviation).to(torch.float32)


def make_inputs():
    generator = torch.Generator().manual_seed(4)
    rows, hidden, vocab, tokens = 7, 29, 23, 31
    inputs = {
        "norm.x": draw(generator, rows, hidden, deviation=2.0),
        "norm.weight": draw(generator, hidden),
        "norm.dy": draw(generator, rows, hidden),
        "embedding.ids": torch.randint(0, vocab, (tokens,), generator=generator, dtype=torch.int32),
        "embedding.table": draw(generator, vocab, hidden),
        "embedding.dy": draw(generator, tokens, hidden),
        "loss.logits": draw(generator, tokens, vocab, deviation=4.0),
        "loss.targets": torch.randint(0, vocab, (tokens,), generator=generator, dtype=torch.int32),
        "optimizer.param": draw(generator, 37),
        "optimizer.grads": draw(generator, 12, 37, deviation=3.0),
    }
    inputs["loss.targets"][[0, 5, 30]] = -100
    inputs["optimizer.grads"][3] = 0.0
    inputs["optimizer.grads"][:, 0] = 0.0
    return inputs


def trajectory(make, param, grads, dtype):
    leaf = param.to(dtype).clone().requires_grad_(True)
    optimizer = make([leaf])
    rows = []
    for grad in grads.to(dtype):
        leaf.grad = grad.clone()
        optimizer.step()
        rows.append(leaf.detach().clone())
    return torch.stack(rows)


def expectations(inputs):
    wide = {name: value.to(torch.float64) for name, value in inputs.items() if value.dtype == torch.float32}
    leaf = {name: wide[name].clone().requires_grad_(True)
            for name in ("norm.x", "norm.weight", "embedding.table", "loss.logits")}
    norm = torch.nn.functional.rms_norm(leaf["norm.x"], leaf["norm.x"].shape[-1:], leaf["norm.weight"], RMS_EPS)
    norm.backward(wide["norm.dy"])
    rows = torch.nn.functional.embedding(inputs["embedding.ids"].long(), leaf["embedding.table"])
    rows.backward(wide["embedding.dy"])
    targets = inputs["loss.targets"].long()
    losses = torch.nn.functional.cross_entropy(leaf["loss.logits"], targets, reduction="none")
    mean = torch.nn.functional.cross_entropy(leaf["loss.logits"], targets)
    mean.backward()
    expected = {"norm.y": norm, "embedding.y": rows, "loss.losses": losses, "loss.mean": mean}
    expected.update({name + ".grad": value.grad for name, value in leaf.items()})

    param, grads = inputs["optimizer.param"], inputs["optimizer.grads"]
    for cases, kind in ((SGD, torch.optim.SGD), (ADAMW, torch.optim.AdamW)):
        for name, options in cases.items():
            for suffix, dtype in (("", torch.float64), (".f32", torch.float32)):
                expected[name + suffix] = trajectory(lambda leaves: kind(leaves, **options), param, grads, dtype)
    for name, max_norm in MAX_NORM.items():
        leaves = [torch.zeros_like(grad, requires_grad=True) for grad in wide["optimizer.grads"]]
        for tensor, grad in zip(leaves, wide["optimizer.grads"]):
            tensor.grad = grad.clone()
        expected["clip.norm"] = torch.nn.utils.clip_grad_norm_(leaves, max_norm)
        expected["clip." + name] = torch.stack([tensor.grad for tensor in leaves])
    return {name: value.detach().contiguous() for name, value in expected.items()}


def metadata():
    settings = {"norm.eps": repr(RMS_EPS)}
    settings.update({"clip." + name: repr(value) for name, value in MAX_NORM.items()})
    for name, options in {**SGD, **ADAMW}.items():
        for option, value in options.items():
            if option == "betas":
                settings[name + ".beta1"], settings[name + ".beta2"] = repr(value[0]), repr(value[1])
            else:
                settings[name + "." + option] = repr(value)
    return settings


def check(path):
    with safe_open(path, "pt") as file:
        stored, settings = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()
    if settings != metadata():
        print(f"{path}: its settings are not those of this program")
        return False
    inputs = {name: stored[name] for name in make_inputs()}
    expected = expectations(inputs)
    if set(stored) != set(inputs) | set(expected):
        print(f"{path}: tensors differ: {sorted(set(stored) ^ (set(inputs) | set(expected)))}")
        return False
    worst, worst_name = 0.0, ""
    for name, value in expected.items():
        error = ((value - stored[name]).abs().max() / stored[name].abs().max()).item() / ALLOWED_ERROR[value.dtype]
        if not error <= worst:
            worst, worst_name = error, name
    print(f"{path}: largest error {worst:.1e} of what is allowed {worst_name}")
    return worst <= 1


def main():
    command, path = sys.argv[1:]
    if command == "check":
        return 0 if check(path) else 1
    inputs = make_inputs()
    save_file({**inputs, **expectations(inputs)}, path, metadata=metadata())
    return 0


if __name__ == "__main__":
    sys.exit(main())
