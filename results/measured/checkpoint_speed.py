"""quantize and convert from folder to folder beside cp + fsync, and beside torchao, alternating in one run.

  python3 results/measured/checkpoint_speed.py --program build/meshwork --folder BIG_EMPTY_FOLDER --python PYTHON_WITH_TORCHAO \
      -o results/measured/checkpoint_speed.md
  python3 results/measured/checkpoint_speed.py --program build/meshwork --folder BIG_EMPTY_FOLDER --gpu --ranks 16 --sizes 12000 \
      --rounds 3 -o results/measured/checkpoint_speed_h200.md      # 1 rank + GPU, and that many CPU ranks; room for two sources
  python3 results/measured/checkpoint_speed.py --make DIR --megabytes 28632     # only the model; this many: Qwen1.5-MoE-A2.7B's own shapes

In every round: cp -r and fsync of the source folder, then each command once, everything before it synced. A copy reads and
writes each byte once; the commands read as much and write less. So rates are of bytes read and written in a second, and
"of cp" is the command's rate over the copy's of the same round. Times are those of the whole process, from its start to its
end, with MPI's start, config, manifest and fsyncs. Needs numpy and build/tool_peak_memory; torchao's rows only with --python.
"""
import argparse, json, os, re, shutil, statistics, subprocess, sys, time

import numpy as np

HIDDEN, INNER, SHARED = 2048, 1408, 5632
ENVIRONMENT = dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1", OMPI_MCA_rmaps_base_oversubscribe="1",
                   OMPI_MCA_mpi_yield_when_idle="1", OMPI_MCA_btl_vader_single_copy_mechanism="none")


# ---- a model folder of any size ----

def shapes_of(megabytes):
    """Names and shapes of a Qwen1.5-MoE: as many layers and experts as fill the bytes; 28632 MB are the real one's."""
    full = megabytes >= 28000
    vocabulary, shared = (151936 if full else 1024), (SHARED if megabytes >= 500 else INNER)
    attention = 4 * HIDDEN * HIDDEN * 2
    one = 3 * HIDDEN * INNER * 2
    layers = 24 if full else max(1, round(megabytes / 1150))  # a real layer has 1140 MB
    left = megabytes * 1e6 - 2 * vocabulary * HIDDEN * 2 - layers * (attention + 3 * HIDDEN * shared * 2)
    experts = 60 if full else max(1, round(left / layers / one))
    shapes = {"model.embed_tokens.weight": (vocabulary, HIDDEN), "lm_head.weight": (vocabulary, HIDDEN), "model.norm.weight": (HIDDEN,)}
    for layer in range(layers):
        p = f"model.layers.{layer}."
        shapes[p + "input_layernorm.weight"] = shapes[p + "post_attention_layernorm.weight"] = (HIDDEN,)
        for x in "qkv":
            shapes[p + f"self_attn.{x}_proj.weight"], shapes[p + f"self_attn.{x}_proj.bias"] = (HIDDEN, HIDDEN), (HIDDEN,)
        shapes[p + "self_attn.o_proj.weight"] = (HIDDEN, HIDDEN)
        shapes[p + "mlp.gate.weight"], shapes[p + "mlp.shared_expert_gate.weight"] = (experts, HIDDEN), (1, HIDDEN)
        for name, inner in [("shared_expert", shared)] + [(f"experts.{e}", INNER) for e in range(experts)]:
            shapes[p + f"mlp.{name}.gate_proj.weight"] = shapes[p + f"mlp.{name}.up_proj.weight"] = (inner, HIDDEN)
            shapes[p + f"mlp.{name}.down_proj.weight"] = (HIDDEN, inner)
    config = {"architectures": ["Qwen2MoeForCausalLM"], "model_type": "qwen2_moe", "hidden_size": HIDDEN, "num_hidden_layers": layers,
              "num_attention_heads": 16, "num_key_value_heads": 16, "moe_intermediate_size": INNER, "shared_expert_intermediate_size": shared,
              "num_experts": experts, "num_experts_per_tok": min(4, experts), "vocab_size": vocabulary, "dtype": "bfloat16", "tie_word_embeddings": False}
    return shapes, config


def values(random, count):
    """bf16 with random sign and mantissa and 8 exponents below 1: no two rows alike, nothing that compresses."""
    bits = np.frombuffer(random.bytes(2 * count), np.uint16)
    return (bits & 0x83FF) + np.uint16(0x3C00)


def make(folder, megabytes, shard_bytes=5_000_000_000):
    shapes, config = shapes_of(megabytes)
    os.makedirs(folder)
    with open(f"{folder}/config.json", "w") as f:
        json.dump(config, f, indent=2)
    shards, filled = [[]], 0
    for name in sorted(shapes):
        size = 2 * int(np.prod(shapes[name]))
        if filled and filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append((name, size))
        filled += size
    random, where = np.random.default_rng(1), {}
    for index, shard in enumerate(shards):
        file = "model.safetensors" if len(shards) == 1 else f"model-{index + 1:05}-of-{len(shards):05}.safetensors"
        header, at = {"__metadata__": {"format": "pt"}}, 0
        for name, size in shard:
            header[name] = {"dtype": "BF16", "shape": list(shapes[name]), "data_offsets": [at, at + size]}
            where[name], at = file, at + size
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with open(f"{folder}/{file}", "wb") as f:
            f.write(len(text).to_bytes(8, "little") + text)
            for name, size in shard:
                f.write(values(random, size // 2).tobytes())
            f.flush()
            os.fsync(f.fileno())
    if len(shards) > 1:
        with open(f"{folder}/model.safetensors.index.json", "w") as f:
            json.dump({"metadata": {"total_size": sum(size for shard in shards for _, size in shard)}, "weight_map": where}, f)


# ---- torchao, as its users do it ----

def torchao(source, target, recipe):
    """Load, quantize_, save: every expert and attention matrix, one Linear each."""
    import torch
    from safetensors.torch import load_file, save_file
    from torchao.prototype.mx_formats import NVFP4WeightOnlyConfig
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict
    from torchao.quantization import Float8WeightOnlyConfig, quantize_

    start = time.perf_counter()
    tensors = {}
    for name in sorted(os.listdir(source)):
        if name.endswith(".safetensors"):
            tensors.update(load_file(f"{source}/{name}"))
    for name, tensor in tensors.items():
        if name.endswith("_proj.weight"):
            linear = torch.nn.Linear(tensor.shape[1], tensor.shape[0], bias=False, dtype=torch.bfloat16, device="meta")
            linear.weight = torch.nn.Parameter(tensor, requires_grad=False)
            quantize_(linear, Float8WeightOnlyConfig() if recipe == "fp8_weight_only" else NVFP4WeightOnlyConfig())
            tensors[name] = linear.weight.detach()
    os.makedirs(target)
    flat, metadata = flatten_tensor_state_dict(tensors)
    save_file(flat, f"{target}/model.safetensors", metadata=metadata)
    with open(f"{target}/model.safetensors", "rb") as f:
        os.fsync(f.fileno())
    print(json.dumps({"seconds": time.perf_counter() - start}))


# ---- measuring ----

def folder_bytes(folder):
    return sum(os.path.getsize(f"{folder}/{name}") for name in os.listdir(folder))


def forget(folder):
    """Out of the system's cache."""
    for name in os.listdir(folder):
        with open(f"{folder}/{name}", "rb") as f:
            os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def timed(a, words):
    """Seconds, and the largest resident set of any process of it (a child's begins with its parent's, so a small one starts it)."""
    tool, peak = f"{os.path.dirname(a.program)}/tool_peak_memory", f"{a.folder}/peak"
    os.sync()
    start = time.perf_counter()
    job = subprocess.run([tool, peak] + [str(w) for w in words], env=ENVIRONMENT, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if job.returncode != 0:
        sys.exit(f"{' '.join(map(str, words))}: {job.stderr[-600:]}")
    with open(peak) as f:
        return seconds, int(f.read()), job.stdout


def copy(source, target):
    """Seconds. A large folder's files one by one, each removed before the next: there may be no room for two folders."""
    os.sync()
    if folder_bytes(source) < 16e9:
        start = time.perf_counter()
        subprocess.run(["cp", "-r", "--reflink=never", source, target], check=True)
        subprocess.run(["sync"] + [f"{target}/{name}" for name in os.listdir(target)] + [target], check=True)
        return time.perf_counter() - start
    os.makedirs(target)
    seconds = 0.0
    for name in sorted(os.listdir(source)):
        start = time.perf_counter()
        subprocess.run(["cp", "--reflink=never", f"{source}/{name}", target], check=True)
        subprocess.run(["sync", f"{target}/{name}"], check=True)
        seconds += time.perf_counter() - start
        os.remove(f"{target}/{name}")
    return seconds


class Row:
    def __init__(self, name):
        self.name, self.seconds, self.own, self.ratios, self.rates, self.peak = name, [], [], [], [], 0


def median(values):
    return statistics.median(values)


def spread(values):
    return f"{median(values):.2f} ({min(values):.2f} .. {max(values):.2f})"


def measure(a, megabytes, rounds, jobs, cold=False):
    """jobs: (name, words with SOURCE and OUT, source). Returns the copy's seconds, rates, and the rows."""
    base, out = f"{a.folder}/source", f"{a.folder}/out"
    copies, rates, rows = [], [], [Row(name) for name, _, _ in jobs]
    for _ in range(rounds):
        if cold:
            forget(base)
        copies.append(copy(base, out))
        rates.append(2 * folder_bytes(base) / copies[-1])
        shutil.rmtree(out)
        for row, (_, words, source) in zip(rows, jobs):
            source = f"{a.folder}/{source}"
            if cold:
                forget(source)
            seconds, peak, text = timed(a, [w.replace("SOURCE", source).replace("OUT", out) for w in words])
            moved = folder_bytes(source) + folder_bytes(out)
            row.seconds.append(seconds)
            row.rates.append(moved / seconds)
            row.ratios.append(moved / seconds / rates[-1])
            row.peak = max(row.peak, peak)
            print(f"{row.name}: {seconds:.2f} s, {100 * row.ratios[-1]:.0f} % of {rates[-1] / 1e9:.2f} GB/s", flush=True)
            lines = [line for line in text.splitlines() if line.startswith("{")]
            if lines and "seconds" in json.loads(lines[-1]):
                row.own.append(json.loads(lines[-1])["seconds"])
            shutil.rmtree(out)
    return copies, rates, rows


def table(f, title, copies, rates, rows):
    f.write(f"\n{title}\n\n| | s | GB/s | of cp | s without start and end of the process | peak resident set of a rank |\n|---|---|---|---|---|---|\n")
    f.write(f"| cp + fsync | {spread(copies)} | {median(rates) / 1e9:.2f} | | | |\n")
    for row in rows:
        f.write(f"| {row.name} | {spread(row.seconds)} | {median(row.rates) / 1e9:.2f} | {100 * median(row.ratios):.0f} % "
                f"({100 * min(row.ratios):.0f} .. {100 * max(row.ratios):.0f}) | {median(row.own) if row.own else float('nan'):.2f} | {row.peak / 1e6:.0f} MB |\n")
    f.flush()


def command(a, verb, *words, ranks=0):
    start = ["mpirun", "--oversubscribe", "--bind-to", "none", "-n", str(ranks)] if ranks else []
    return start + [a.program, verb, "--model", "SOURCE", "--out", "OUT", "--json", *words]


def prepare(a, megabytes):
    for name in ("source", "quantised", "packed", "out"):
        shutil.rmtree(f"{a.folder}/{name}", ignore_errors=True)
    make(f"{a.folder}/source", megabytes)
    timed(a, [w.replace("SOURCE", f"{a.folder}/source").replace("OUT", f"{a.folder}/quantised") for w in command(a, "quantize", "--recipe", "nvfp4")])
    timed(a, [w.replace("SOURCE", f"{a.folder}/source").replace("OUT", f"{a.folder}/packed") for w in command(a, "quantize", "--recipe", "fp8_row")])


def measure_gpu(a, sizes):
    """One rank and a GPU, one rank without, and many: beside cp + fsync, and what of it is the digests'."""
    named = subprocess.run("nvidia-smi --query-gpu=name --format=csv,noheader", shell=True, capture_output=True, text=True)
    gpu = named.stdout.splitlines() if named.returncode == 0 else []
    jobs = []
    for recipe in ("fp8_row", "nvfp4"):
        words = ["quantize", "--recipe", recipe]
        jobs += [(f"quantize {recipe}, 1 rank + GPU", command(a, *words, "--device", "cuda"), "source"),
                 (f"quantize {recipe}, 1 rank + GPU, --no-hash", command(a, *words, "--device", "cuda", "--no-hash"), "source"),
                 (f"quantize {recipe}, 1 rank, CPU", command(a, *words), "source"),
                 (f"quantize {recipe}, {a.ranks} CPU ranks", command(a, *words, ranks=a.ranks), "source")]
    jobs = [job for job in jobs if re.search(a.jobs, job[0])]
    with open(a.o, "w") as f:
        f.write("# quantize on a GPU and on many ranks beside cp + fsync\n\n"
                f"{time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime())}; {os.cpu_count()} cores, {gpu[0] if gpu else 'a GPU'}; random bf16 in the names and shapes of "
                f"Qwen1.5-MoE; load {os.getloadavg()[0]:.1f} at the start. GB/s are bytes read and written, of the whole process; \"of cp\" compares with the copy of "
                "the same round: median (least .. most). The page cache is warm. What CUDA takes is in the resident set.\n")
        for size in sizes:
            if not a.made:
                shutil.rmtree(f"{a.folder}/source", ignore_errors=True)
                make(f"{a.folder}/source", size)
            table(f, f"{folder_bytes(a.folder + '/source') / 1e6:.0f} MB, {a.rounds} rounds:", *measure(a, size, a.rounds, jobs))
        f.write(f"\n    python3 results/measured/checkpoint_speed.py --program build/meshwork --folder {a.folder} --gpu --ranks {a.ranks} --sizes {a.sizes} "
                f"--rounds {a.rounds} -o results/measured/checkpoint_speed_h200.md\n")
    shutil.rmtree(f"{a.folder}/source")


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--make")
    p.add_argument("--megabytes", type=int, default=1000)
    p.add_argument("--torchao", nargs=3, metavar=("SOURCE", "OUT", "RECIPE"))
    p.add_argument("--program", default="build/meshwork")
    p.add_argument("--folder")
    p.add_argument("--python", help="with torchao")
    p.add_argument("--sizes", default="64,256,1000,4000")
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--gpu", action="store_true")
    p.add_argument("--jobs", default="", help="--gpu: only commands whose name has a match")
    p.add_argument("--made", action="store_true", help="--gpu: the folder's source is there already, by --make")
    p.add_argument("--ranks", type=int, default=16)
    p.add_argument("-o")
    a = p.parse_args()
    if a.make:
        return make(a.make, a.megabytes)
    if a.torchao:
        return torchao(*a.torchao)
    sizes = [int(size) for size in a.sizes.split(",")]
    if a.gpu:
        return measure_gpu(a, sizes)
    jobs = [(f"quantize {recipe}", command(a, "quantize", "--recipe", recipe), "source") for recipe in ("fp8_row", "nvfp4", "mxfp8", "FP8_DYNAMIC", "W4A16")]
    jobs += [("quantize fp8_row --no-hash", command(a, "quantize", "--recipe", "fp8_row", "--no-hash"), "source"),
             ("convert nvfp4 to compressed-tensors", command(a, "convert", "--layout", "compressed-tensors"), "quantised"),
             ("convert fp8_row to bf16", command(a, "convert", "--layout", "bf16"), "packed")]
    ranks = [(f"quantize nvfp4, {n} rank{'s' * (n > 1)}", command(a, "quantize", "--recipe", "nvfp4", ranks=n), "source") for n in (1, 2, 4)]
    theirs = [("quantize fp8_weight_only", command(a, "quantize", "--recipe", "fp8_weight_only"), "source"),
              ("torchao fp8_weight_only: load, quantize_, save, fsync", [a.python, __file__, "--torchao", "SOURCE", "OUT", "fp8_weight_only"], "source"),
              ("quantize nvfp4_weight_only", command(a, "quantize", "--recipe", "nvfp4_weight_only"), "source"),
              ("torchao nvfp4_weight_only", [a.python, __file__, "--torchao", "SOURCE", "OUT", "nvfp4_weight_only"], "source")]
    with open(a.o, "w") as f:
        f.write("# quantize and convert beside cp + fsync\n\n"
                f"{time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime())}; {os.cpu_count()} cores; random bf16 in the names and shapes of Qwen1.5-MoE; the machine was "
                f"shared, load {os.getloadavg()[0]:.1f} at the start. GB/s are bytes read and written, of the whole process; \"of cp\" compares with the copy of the same "
                "round: median (least .. most). The page cache is warm unless said otherwise.\n")
        for size in sizes:
            prepare(a, size)
            rounds = a.rounds if size < 2000 else max(3, a.rounds - 2)
            table(f, f"{folder_bytes(a.folder + '/source') / 1e6:.0f} MB, {rounds} rounds:", *measure(a, size, rounds, jobs))
            if size >= 1000:
                table(f, f"Ranks, {size} MB:", *measure(a, size, rounds, ranks))
                if a.python and size == 1000:
                    table(f, f"torchao, {size} MB, on as many cores:", *measure(a, size, 3, theirs))
        table(f, f"{sizes[-1]} MB that are not in the cache:", *measure(a, sizes[-1], 3, jobs[:2], cold=True))
        f.write(f"\nLoad at the end: {os.getloadavg()[0]:.1f}.\n\n    python3 results/measured/checkpoint_speed.py --program build/meshwork --folder BIG_EMPTY_FOLDER "
                f"--python PYTHON_WITH_TORCHAO --sizes {a.sizes} --rounds {a.rounds} -o results/measured/checkpoint_speed.md\n")
    for name in ("source", "quantised", "packed"):
        shutil.rmtree(f"{a.folder}/{name}")


main()
