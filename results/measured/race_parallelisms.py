"""Race a small language model over GPUs: meshwork parallelisms beside FSDP2 and DTensor, alternating in one run.

  python3 results/measured/race_parallelisms.py --gpus 2 --rounds 3 -o results/measured/parallelisms_h200.md

Each round runs, for fsdp, tp and sp, torch_parallelisms.py eager and compiled, and ours with --no-exact (the order flips
each round); the first round also runs ours with --exact, its price, and both programs' collectives alone. Sizes are
torch_parallelisms.py's own. Medians over rounds of each program's own median, smallest and largest round; clocks before
and after. Gathers and reductions of ours are hidden as far as the compute stream did not stand still for them.
"""
import argparse, json, os, statistics, sys, time

from racing import clocks, median_ms, run, run_ours, span, spread, torchrun

MODES = ("fsdp", "tp", "sp")
SIZES = {"layers": 8, "dim": 4096, "hidden": 14336, "vocab": 32000, "tokens": 8192}
PEER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "torch_parallelisms.py")


def words_of(sizes):
    return [word for name, value in sizes.items() for word in (f"--{name}", str(value))]


def run_peer(gpus, mode, compiled, sizes):
    words = torchrun(gpus, [PEER, "--mode", mode, "--samples", "10"] + words_of(sizes) + (["--compile"] if compiled else []))
    for line in run(words).splitlines():
        if line.startswith("{"):
            return json.loads(line), " ".join(words[1:])
    return None, " ".join(words[1:])


def run_model(program, gpus, mode, exact, sizes):
    return run_ours(gpus, [program, "parallelisms", "--device", "cuda", "--mode", mode] + words_of(sizes) +
                    ["--dtype", "bf16", "--steps", "1", "--no-check", "--samples", "10", "--timeout", "20",
                     "--exact" if exact else "--no-exact"])


def cell_of_ours(result):
    """Forward + backward ms, step ms, GiB, hidden share of the communication (None without any)."""
    both = median_ms(result, "step", "forward") + median_ms(result, "step", "backward")
    memory = result["run"].get("extra", result["run"])["memory_peak_bytes"]
    held = sum(value for name, value in memory.items() if name not in ("parameter_shards", "parameters_gathered", "largest_unit"))
    busy = sum(median_ms(result, "step", f"fsdp/{kind}") for kind in ("gather", "reduce"))
    waited = sum(median_ms(result, "step", f"fsdp/{kind}_exposed") for kind in ("gather", "reduce"))
    return both, median_ms(result, "step"), held / 2**30, 1 - waited / busy if busy > 0 else None


def alone(program, gpus, sizes):
    """GB/s out of a rank of the collectives alone, ours through `redistribute`: one block's parameters."""
    count = 3 * sizes["dim"] * sizes["hidden"] + sizes["dim"]
    rows = []
    for name, dtype, source, target in (("all_gather", "bf16", "S0", "R"), ("reduce_scatter", "f32", "P", "S0")):
        result, command = run_ours(gpus, [program, "redistribute", "--device", "cuda", "--shape", str(count), "--mesh", f"dp={gpus}",
                                          "--from", source, "--to", target, "--dtype", dtype, "--no-check"])
        if result:
            most = max(step["wire_bytes_max"] for step in result["steps"])
            rows.append((name, most / result["seconds"] / 1e9, command))
    return rows


def write(a, cells, lone, last, commands, started, before, sizes):
    with open(a.o, "w") as f:
        f.write("# A small language model over GPUs: meshwork parallelisms beside FSDP2 and DTensor\n\n")
        f.write(f"Started {started}, programs alternating, {a.gpus} GPUs, sizes {sizes}, bf16, gradients reduced in f32, AdamW.\n")
        f.write(f"Clocks, power, temperature, throttle reasons before: {before}; after: {clocks()}\n\n")
        f.write("| mode | program | forward + backward ms | step ms | PyTorch step / ours | GiB | hidden |\n|---|---|---|---|---|---|---|\n")
        for mode in MODES:
            who = cells.get(mode, {})
            ours = [cell[1] for cell in who.get("ours", [])]
            for name, found in who.items():
                step = [cell[1] for cell in found]
                ratio = f"{statistics.median(step) / statistics.median(ours):.2f}x" if ours and not name.startswith("ours") else "-"
                hidden = f"{100 * found[-1][3]:.0f} %" if found[-1][3] is not None else "-"
                f.write(f"| {mode} | {name} | {spread([cell[0] for cell in found])} | {spread(step)} | {ratio} | "
                        f"{max(cell[2] for cell in found):.1f} | {hidden} |\n")
        f.write("\nGiB: the peak that PyTorch's allocator counts; ours, what its arenas held.\n\n## Collectives alone, GB/s out of a rank\n\n")
        for name, rate in lone:
            f.write(f"- {name}: {rate:.0f}\n")
        f.write("\n## Spans of ours, last round (medians)\n\n| mode | span | ms | TFLOP/s | wire GB/s |\n|---|---|---|---|---|\n")
        for (mode, name), result in sorted(last.items()):
            for m in result["measurements"]:
                for s in m["spans"]:
                    t = s["statistics"]["median"]
                    if t > 0:
                        f.write(f"| {mode} {name} | {s['name']} | {1e3 * t:.3f} | {s['flops'] / t / 1e12:.0f} | {s['wire_bytes'] / t / 1e9:.0f} |\n")
        f.write("\n## Commands\n\n    python3 results/measured/race_parallelisms.py " + " ".join(sys.argv[1:]) + "\n")
        for command in sorted(commands):
            f.write(f"    {command}\n")


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--program", default="build/meshwork")
    p.add_argument("--gpus", type=int, default=2)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--modes", default=",".join(MODES), help="of " + ", ".join(MODES))
    p.add_argument("--limit_s", type=float, default=1e9, help="start no round that would end after this long")
    for name, value in SIZES.items():
        p.add_argument(f"--{name}", type=int, default=value)
    p.add_argument("-o", required=True)
    a = p.parse_args()
    sizes = {name: getattr(a, name) for name in SIZES}
    cells, last, commands, lone = {}, {}, set(), []
    started, before, begin = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()), clocks(), time.time()

    def keep(mode, name, cell, command):
        commands.add(command)
        if cell:
            cells.setdefault(mode, {}).setdefault(name, []).append(cell)

    for index in range(a.rounds):
        if index and (time.time() - begin) * (index + 1) / index > a.limit_s:
            break
        for mode in a.modes.split(","):
            def peer_turn():
                for compiled in (False, True):
                    line, command = run_peer(a.gpus, mode, compiled, sizes)
                    cell = (line["forward_backward_ms"], line["step_ms"], line["peak_gib"], None) if line else None
                    keep(mode, "PyTorch compiled" if compiled else "PyTorch eager", cell, command)

            def our_turn():
                for exact in (False, True) if index == 0 else (False,):
                    result, command = run_model(a.program, a.gpus, mode, exact, sizes)
                    name = "ours --exact" if exact else "ours"
                    keep(mode, name, cell_of_ours(result) if result else None, command)
                    if result:
                        last[(mode, name)] = result
            for turn in (peer_turn, our_turn) if index % 2 == 0 else (our_turn, peer_turn):
                turn()
            print(f"round {index} {mode} done at {time.strftime('%H:%M:%S')}", flush=True)
        if index == 0 and a.gpus > 1:
            line, command = run_peer(a.gpus, "nccl", False, sizes)
            commands.add(command)
            lone += [(f"PyTorch {name}", line[f"{name}_gb_s"]) for name in ("all_gather", "reduce_scatter") if line]
            for name, rate, command in alone(a.program, a.gpus, sizes):
                commands.add(command)
                lone.append((f"ours {name}", rate))
        write(a, cells, lone, last, commands, f"{started}; {index + 1} rounds", before, sizes)


main()
