#!/usr/bin/env python3
"""Reference Mixture-of-Experts layers, computed by PyTorch in float64: the files in moe_layers/.

    make_moe_layers.py check FILE...     recompute every expect.* tensor of the files from their inputs
    make_moe_layers.py make FOLDER       write the cases of CASES below, and the seed's toy
    make_moe_layers.py new FILE --tokens 48 --hidden 24 --inner 16 --experts 16 --top_k 8 ...   one case of your own

A file holds one layer: inputs in f32 or bf16, results in float64. `__metadata__` has score, top_k,
score_before_experts, normalise_top_k and route_scale; tests read these files, and no test needs this program.
Needs torch and safetensors.
"""
import argparse
import math
import os
import sys

import torch
from safetensors import safe_open
from safetensors.torch import save_file

EXPERT_WEIGHTS = ("w1", "w3", "w2")
SHARED_WEIGHTS = ("shared_w1", "shared_w3", "shared_w2")
NO_GRADIENT = ("expert_bias", "grad_y")
ALLOWED_ERROR = 1e-12  # max |new - stored| / max |stored|

# Small on purpose; each case says what the other files do not show.
CASES = {
    # Many experts per token, weights normalised over eight of them, a bias that changes the choice only.
    "top8-softmax-bias": dict(tokens=40, hidden=24, inner=16, experts=16, top_k=8, score="softmax",
                              normalise=True, bias=0.05, seed=101),
    # The score multiplies the expert's input; a shared expert without a gate; the route scale comes last.
    "before-shared": dict(tokens=24, hidden=16, inner=24, experts=6, top_k=2, score="sigmoid", before=True,
                          route_scale=1.5, shared=20, seed=102),
    # Nothing is a multiple of anything: rows, columns and experts that no vector width divides.
    "odd-sizes": dict(tokens=31, hidden=9, inner=5, experts=7, top_k=3, score="softmax", normalise=True, seed=103),
    # bf16 storage together with a gated shared expert.
    "bf16-shared-gate": dict(tokens=32, hidden=32, inner=24, experts=8, top_k=2, score="sigmoid", shared=40,
                             gate=True, dtype="bf16", seed=104),
    # Router logits near +-60: a derivative written s * (1 - s) gives gradients that are all zero.
    "saturated": dict(tokens=20, hidden=16, inner=12, experts=6, top_k=2, score="sigmoid", logit=60.0, seed=105),
}


def settings_text(top_k, score, before, normalise, route_scale):
    return {"score": score, "top_k": str(top_k), "score_before_experts": str(before).lower(),
            "normalise_top_k": str(normalise).lower(), "route_scale": str(float(route_scale))}


def swiglu(x, w1, w3, w2):
    return (torch.nn.functional.silu(x @ w1.T) * (x @ w3.T)) @ w2.T


def router_scores(logits, kind):
    if kind == "softmax":
        return torch.softmax(logits, dim=-1)
    # exp(log sigmoid) has the derivative s * sigmoid(-z), which stays right where 1 - s is 0.
    return torch.exp(torch.nn.functional.logsigmoid(logits))


def layer(inputs, settings):
    """y [tokens, hidden] and expert_of_token [tokens, top_k] by falling score, from float64 inputs."""
    x, top_k = inputs["x"], int(settings["top_k"])
    scores = router_scores(x @ inputs["router"].T, settings["score"])
    with torch.no_grad():
        ranking = scores + inputs["expert_bias"] if "expert_bias" in inputs else scores
        # A stable sort leaves equal scores in their order, so that ties go to the lower index.
        chosen = torch.sort(ranking, dim=-1, descending=True, stable=True).indices[:, :top_k]
    weights = torch.gather(scores, 1, chosen)
    if settings["normalise_top_k"] == "true":
        weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20)
    weights = weights * float(settings["route_scale"])

    y = torch.zeros_like(x)
    for expert in range(inputs["w1"].shape[0]):
        token, place = torch.nonzero(chosen == expert, as_tuple=True)
        weight, rows = weights[token, place].unsqueeze(1), x[token]
        matrices = [inputs[name][expert] for name in EXPERT_WEIGHTS]
        if settings["score_before_experts"] == "true":
            result = swiglu(weight * rows, *matrices)
        else:
            result = weight * swiglu(rows, *matrices)
        y = y.index_add(0, token, result)
    if "shared_w1" in inputs:
        dense = swiglu(x, *(inputs[name] for name in SHARED_WEIGHTS))
        if "shared_gate" in inputs:
            dense = torch.sigmoid(x @ inputs["shared_gate"].T) * dense
        y = y + dense
    return y, chosen


def expectations(stored, settings):
    """Every expect.* tensor of a layer, from the inputs as stored."""
    inputs = {name: tensor.to(torch.float64).requires_grad_(name not in NO_GRADIENT)
              for name, tensor in stored.items()}
    y, chosen = layer(inputs, settings)
    y.backward(inputs["grad_y"])
    expected = {"expect.y": y.detach(), "expect.expert_of_token": chosen}
    for name, tensor in inputs.items():
        if tensor.requires_grad:
            expected["expect.grad." + name] = tensor.grad
    return expected


def smallest_gap(stored, settings):
    """How far apart neighbouring scores of the first top_k + 1 are: what float32 has to tell apart."""
    x, router = stored["x"].double(), stored["router"].double()
    scores = router_scores(x @ router.T, settings["score"]) + stored.get("expert_bias", torch.zeros(1)).double()
    ordered = torch.sort(scores, dim=-1, descending=True).values[:, : int(settings["top_k"]) + 1]
    gaps = ordered[:, :-1] - ordered[:, 1:]
    return (gaps / ordered[:, :-1].abs()).min().item()


def write(path, stored, settings):
    tensors = {name: tensor.contiguous() for name, tensor in {**stored, **expectations(stored, settings)}.items()}
    save_file(tensors, path, metadata=settings)
    print(f"{path}: {os.path.getsize(path)} bytes, smallest relative score gap {smallest_gap(stored, settings):.1e}")


def check(path):
    with safe_open(path, "pt") as file:
        settings = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    stored = {name: tensor for name, tensor in tensors.items() if not name.startswith("expect.")}
    recomputed = expectations(stored, settings)
    wanted = {name for name in tensors if name.startswith("expect.")}
    if wanted != set(recomputed):
        print(f"{path}: tensors differ: {sorted(wanted ^ set(recomputed))}")
        return False
    worst, worst_name = 0.0, ""
    for name in wanted:
        difference = (recomputed[name] - tensors[name]).abs().max().item()
        size = tensors[name].abs().max().item()
        error = difference if name == "expect.expert_of_token" else difference / size if size else difference
        if not error <= worst:
            worst, worst_name = error, name
    print(f"{path}: largest error {worst:.1e} {worst_name}")
    return worst <= ALLOWED_ERROR


def draw(generator, shape, deviation):
    return torch.randn(shape, generator=generator, dtype=torch.float64) * deviation


def saturated_router(generator, tokens, hidden, experts, logit):
    """x and router whose logits lie near +-logit. All values are multiples of 1/8, so that float32 has the logits
    exactly: an error of 1e-5 in a logit would already be one of 1e-5 in exp(-logit)."""
    x = torch.round(draw(generator, (tokens, hidden), 8.0)) / 8
    signs = torch.sign(draw(generator, (tokens, experts), 1.0))
    jitter = torch.randint(-2, 3, (tokens, experts), generator=generator)
    x[:, :experts] = signs * (logit + jitter) / 8
    router = torch.zeros(experts, hidden, dtype=torch.float64)
    router[:, :experts] = 8 * torch.eye(experts, dtype=torch.float64)
    router[:, experts:] = torch.randint(-1, 2, (experts, hidden - experts), generator=generator) / 8
    return x, router


def make(path, tokens, hidden, inner, experts, top_k, score="softmax", before=False, normalise=False, route_scale=1.0,
         bias=0.0, shared=0, gate=False, dtype="f32", logit=0.0, seed=1):
    generator = torch.Generator().manual_seed(seed)
    settings = settings_text(top_k, score, before, normalise, route_scale)
    stored = {}
    if logit:
        stored["x"], stored["router"] = saturated_router(generator, tokens, hidden, experts, logit)
    else:
        stored["x"] = draw(generator, (tokens, hidden), 1.0)
        stored["router"] = draw(generator, (experts, hidden), 1.0 / math.sqrt(hidden))
    if bias:
        stored["expert_bias"] = draw(generator, (experts,), bias)
    stored["w1"] = draw(generator, (experts, inner, hidden), 1.0 / math.sqrt(hidden))
    stored["w3"] = draw(generator, (experts, inner, hidden), 1.0 / math.sqrt(hidden))
    stored["w2"] = draw(generator, (experts, hidden, inner), 1.0 / math.sqrt(inner))
    if shared:
        stored["shared_w1"] = draw(generator, (shared, hidden), 1.0 / math.sqrt(hidden))
        stored["shared_w3"] = draw(generator, (shared, hidden), 1.0 / math.sqrt(hidden))
        stored["shared_w2"] = draw(generator, (hidden, shared), 1.0 / math.sqrt(shared))
    if gate:
        stored["shared_gate"] = draw(generator, (1, hidden), 1.0 / math.sqrt(hidden))
    stored["grad_y"] = draw(generator, (tokens, hidden), 1.0)
    storage = {"f32": torch.float32, "bf16": torch.bfloat16}[dtype]
    # The bias is f32 whatever the layer's storage, as everywhere.
    stored = {name: tensor.to(torch.float32 if name == "expert_bias" else storage) for name, tensor in stored.items()}
    write(path, stored, settings)


# The seed's toy: vkuzo/pytorch_scripts, dp2ep, with manual_seed(6) on a CUDA device, without the device. PyTorch's CUDA
# generator is Philox 4x32-10 with key = seed and counter = (call number, 0, element, 0) for small tensors; a uniform
# value is word 0, a normal one Box-Muller on words 0 and 1. Call by call the program draws: 0 the gate's default
# initialisation (thrown away), 1 w1, 2 w2, 3 w3, 4 the gate, 5 x. tests compare the result with SEMANTICS' table.
TOY_SEED, TOY_TOKENS, TOY_HIDDEN, TOY_INNER, TOY_EXPERTS = 6, 8, 8, 16, 4
TOY_CHOICE = [2, 2, 3, 0, 3, 3, 2, 3]
TOY_SCORES = [.5530, .5045, .5964, .5081, .6243, .7090, .6397, .7186]


def philox(seed, counter):
    word, key = list(counter), [seed & 0xFFFFFFFF, seed >> 32]
    for _ in range(10):
        left, right = 0xD2511F53 * word[0], 0xCD9E8D57 * word[2]
        word = [(right >> 32) ^ word[1] ^ key[0], right & 0xFFFFFFFF, (left >> 32) ^ word[3] ^ key[1], left & 0xFFFFFFFF]
        key = [(key[0] + 0x9E3779B9) & 0xFFFFFFFF, (key[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return word


def toy_uniform(call, element, which=0):
    return (philox(TOY_SEED, (call, 0, element, 0))[which] + 0.5) / 2.0**32


def toy_truncated_normal(call, shape, deviation):
    """Inverse error function of a uniform value, rounded to bf16 after every step; a value that rounds to the upper end
    wraps to the lower, and both ends become -2: two such weights are in w1 and w3."""
    edge = math.erf(2.0 / deviation / math.sqrt(2.0))
    values = torch.tensor([(2 * toy_uniform(call, i) - 1) * edge for i in range(math.prod(shape))])
    values = values.to(torch.float32).to(torch.bfloat16)
    values = torch.where(values == edge, torch.full_like(values, -edge), values)
    values = torch.erfinv(values.to(torch.float32)).to(torch.bfloat16)
    return (values.to(torch.float32) * (deviation * math.sqrt(2.0))).to(torch.bfloat16).clamp(-2, 2).reshape(shape)


def toy_normal(call, shape):
    values = [math.sqrt(-2 * math.log(toy_uniform(call, i))) * math.sin(2 * math.pi * toy_uniform(call, i, 1))
              for i in range(math.prod(shape))]
    return torch.tensor(values, dtype=torch.float32).to(torch.bfloat16).reshape(shape)


def make_toy(path):
    stored = {
        "x": toy_normal(5, (TOY_TOKENS, TOY_HIDDEN)),
        "router": toy_truncated_normal(4, (TOY_EXPERTS, TOY_HIDDEN), 0.1),
        "w1": toy_truncated_normal(1, (TOY_EXPERTS, TOY_INNER, TOY_HIDDEN), 0.02),
        "w2": toy_truncated_normal(2, (TOY_EXPERTS, TOY_HIDDEN, TOY_INNER), 0.1),
        "w3": toy_truncated_normal(3, (TOY_EXPERTS, TOY_INNER, TOY_HIDDEN), 0.1),
        # The seed's program has no backward; any gradient will do.
        "grad_y": draw(torch.Generator().manual_seed(TOY_SEED), (TOY_TOKENS, TOY_HIDDEN), 1.0).to(torch.bfloat16),
    }
    logits = (stored["x"].float() @ stored["router"].float().T).to(torch.bfloat16)  # its gate rounds them to bf16
    score, choice = torch.sigmoid(logits.float()).max(dim=1)
    assert choice.tolist() == TOY_CHOICE, choice.tolist()
    assert [f"{value:.4f}" for value in score.tolist()] == [f"{value:.4f}" for value in TOY_SCORES], score.tolist()
    write(path, stored, settings_text(1, "sigmoid", False, False, 1.0))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("check").add_argument("files", nargs="+")
    commands.add_parser("make").add_argument("folder")
    new = commands.add_parser("new")
    new.add_argument("path")
    for name in ("tokens", "hidden", "inner", "experts", "top_k"):
        new.add_argument("--" + name, type=int, required=True)
    new.add_argument("--score", choices=("softmax", "sigmoid"), default="softmax")
    new.add_argument("--dtype", choices=("f32", "bf16"), default="f32")
    for name in ("before", "normalise", "gate"):
        new.add_argument("--" + name, action="store_true")
    for name, default in (("route_scale", 1.0), ("bias", 0.0), ("logit", 0.0)):
        new.add_argument("--" + name, type=float, default=default)
    for name, default in (("shared", 0), ("seed", 1)):
        new.add_argument("--" + name, type=int, default=default)
    arguments = vars(parser.parse_args())

    command = arguments.pop("command")
    if command == "check":
        good = [check(path) for path in arguments["files"]]
        return 0 if all(good) else 1
    if command == "make":
        for name, case in CASES.items():
            make(os.path.join(arguments["folder"], name + ".safetensors"), **case)
        make_toy(os.path.join(arguments["folder"], "toy-seed6.safetensors"))
        return 0
    make(**arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
