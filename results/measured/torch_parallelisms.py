"""The peer of `meshwork parallelisms`: the same small language model under PyTorch's FSDP2 and DTensor tensor parallelism.

  torchrun --nproc_per_node 2 torch_parallelisms.py --mode fsdp --layers 8 --dim 4096 --hidden 14336 --vocab 32000 --tokens 8192

Model: embedding, blocks of RMSNorm and SwiGLU MLP with a residual, final norm, head, cross-entropy; no attention. Weights are f32
shards, computed with in bf16, gradients reduced in --reduce_dtype, AdamW fused: what FSDP2's own examples do. tp: gate and up
colwise, down rowwise, embedding and head over the vocabulary with the parallel loss; sp: norms on sharded tokens as well. Under tp
and sp every rank sees the same --tokens, under fsdp and ddp each has its own. One line per mode, medians of --samples steps in
milliseconds by CUDA events: forward + backward, and with the optimiser; peak memory as PyTorch counts it. nccl: no model, but
the all-gather (bf16) and the reduce-scatter (f32) of one block's parameters alone, in GB/s that leave a rank.
"""
import argparse, contextlib, json, os, statistics, torch, torch.nn as nn, torch.nn.functional as F
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import (ColwiseParallel, PrepareModuleInput, RowwiseParallel, SequenceParallel, loss_parallel,
                                               parallelize_module)

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


class Mlp(nn.Module):
    def __init__(self, dim, hidden):
        super().__init__()
        self.gate_proj = nn.Linear(dim, hidden, bias=False)
        self.up_proj = nn.Linear(dim, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, dim, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, dim, hidden):
        super().__init__()
        self.norm = nn.RMSNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, hidden)

    def forward(self, x):
        return x + self.mlp(self.norm(x))


class Model(nn.Module):
    def __init__(self, a):
        super().__init__()
        self.embed_tokens = nn.Embedding(a.vocab, a.dim)
        self.layers = nn.ModuleList(Block(a.dim, a.hidden) for _ in range(a.layers))
        self.norm = nn.RMSNorm(a.dim, eps=1e-6)
        self.lm_head = nn.Linear(a.dim, a.vocab, bias=False)

    def forward(self, ids):
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x)
        return self.lm_head(self.norm(x))


def apply_fsdp(model, mesh, a):
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=DTYPES[a.reduce_dtype])
    for layer in model.layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy, reshard_after_forward=not a.no_reshard)
    fully_shard(model, mesh=mesh, mp_policy=policy)


def apply_tp(model, mesh, sequence):
    tokens = Shard(1) if sequence else Replicate()
    plan = {"embed_tokens": RowwiseParallel(input_layouts=Replicate(), output_layouts=tokens),
            "lm_head": ColwiseParallel(input_layouts=tokens, output_layouts=Shard(-1), use_local_output=False)}
    if sequence:
        plan["norm"] = SequenceParallel()
    parallelize_module(model, mesh, plan)
    for layer in model.layers:
        plan = {"mlp.gate_proj": ColwiseParallel(), "mlp.up_proj": ColwiseParallel(),
                "mlp.down_proj": RowwiseParallel(output_layouts=tokens)}
        if sequence:
            plan["norm"] = SequenceParallel()
            plan["mlp"] = PrepareModuleInput(input_layouts=(Shard(1),), desired_input_layouts=(Replicate(),))
        parallelize_module(layer, mesh, plan)


def time_nccl(a):
    ranks = dist.get_world_size()
    share = (3 * a.dim * a.hidden + a.dim + ranks - 1) // ranks
    whole16, part16 = torch.randn(ranks * share, device="cuda").bfloat16(), torch.randn(share, device="cuda").bfloat16()
    whole32, part32 = torch.randn(ranks * share, device="cuda"), torch.randn(share, device="cuda")
    calls = {"all_gather": lambda: dist.all_gather_into_tensor(whole16, part16),
             "reduce_scatter": lambda: dist.reduce_scatter_tensor(part32, whole32)}
    line = {"mode": "nccl", "ranks": ranks}
    for name, call in calls.items():
        bytes_out = (ranks - 1) * share * (2 if name == "all_gather" else 4)
        times = []
        for _ in range(a.samples + 3):
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            dist.barrier()
            begin.record()
            call()
            end.record()
            torch.cuda.synchronize()
            times.append(begin.elapsed_time(end))
        line[name + "_gb_s"] = bytes_out / statistics.median(times[3:]) / 1e6
    if dist.get_rank() == 0:
        print(json.dumps(line), flush=True)
    dist.destroy_process_group()


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--mode", default="fsdp", choices=["fsdp", "ddp", "tp", "sp", "nccl"])
    for name, value in (("layers", 8), ("dim", 4096), ("hidden", 14336), ("vocab", 32000), ("tokens", 8192), ("samples", 10)):
        p.add_argument(f"--{name}", type=int, default=value)
    p.add_argument("--reduce_dtype", default="f32", choices=list(DTYPES))
    p.add_argument("--no_reshard", action="store_true")
    p.add_argument("--compile", action="store_true")
    a = p.parse_args()
    local = int(os.environ.get("LOCAL_RANK", 0))
    torch.cuda.set_device(local)
    dist.init_process_group("nccl", device_id=torch.device("cuda", local))
    if a.mode == "nccl":
        return time_nccl(a)
    mesh = init_device_mesh("cuda", (dist.get_world_size(),), mesh_dim_names=(a.mode,))
    torch.manual_seed(1)
    parallel_tensors = a.mode in ("tp", "sp")
    with torch.device("cuda"):
        model = Model(a)
    if parallel_tensors:
        apply_tp(model.to(torch.bfloat16), mesh, a.mode == "sp")
    elif a.mode == "fsdp":
        apply_fsdp(model, mesh, a)
    if a.compile:
        for layer in model.layers:
            layer.compile()
    if a.mode == "ddp":
        model = nn.parallel.DistributedDataParallel(model, device_ids=[local], gradient_as_bucket_view=True)
    plain = [p for p in model.parameters() if not isinstance(p, DTensor)]
    sharded = [p for p in model.parameters() if isinstance(p, DTensor)]
    optimizer = torch.optim.AdamW([{"params": group} for group in (plain, sharded) if group], lr=1e-4, fused=True)
    torch.manual_seed(2 + (0 if parallel_tensors else dist.get_rank()))
    ids = torch.randint(a.vocab, (1, a.tokens), device="cuda")
    targets = torch.randint(a.vocab, (1, a.tokens), device="cuda")
    precision = torch.autocast("cuda", torch.bfloat16) if a.mode == "ddp" else contextlib.nullcontext()
    marks = [[torch.cuda.Event(enable_timing=True) for _ in range(3)] for _ in range(a.samples)]
    for step in range(-3, a.samples):
        mark = marks[max(step, 0)]
        if step == 0:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        mark[0].record()
        with precision, loss_parallel() if parallel_tensors else contextlib.nullcontext():
            logits = model(ids)
            loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
            loss.backward()
        mark[1].record()
        optimizer.step()
        optimizer.zero_grad()
        mark[2].record()
    torch.cuda.synchronize()
    compute = statistics.median(m[0].elapsed_time(m[1]) for m in marks)
    whole = statistics.median(m[0].elapsed_time(m[2]) for m in marks)
    if dist.get_rank() == 0:
        value = loss.full_tensor() if isinstance(loss, DTensor) else loss
        print(json.dumps({"mode": a.mode, "compile": a.compile, "ranks": dist.get_world_size(), "forward_backward_ms": compute,
                          "step_ms": whole, "peak_gib": torch.cuda.max_memory_allocated() / 2**30, "loss": float(value)}), flush=True)
    dist.destroy_process_group()


main()
