"""Products of quantised operands on a GPU beside PyTorch's, alternating in one run.

  python3 results/measured/race_gemms.py --peer torch_casts.py --rounds 3 -o results/measured/gemms_h200.md

Dense 8192^3, the grouped products of two MoE layers (60 x 2816 x 2048 with 61440 rows, 32 x 4096 x 7168 with 65536), and few rows
under weights alone; once, squares of growing size (--grow). The peer prints lines `gemm NAME RATE TF/s` and `grouped NAME RATE TF/s` of the same sizes. Every product of ours
is checked in the same run against one in double precision of the dequantised operands. Medians over rounds, smallest and largest.
"""
import argparse, json, re, statistics, sys, time

from racing import clocks, run, spread

TENSOR_CORES = "none,fp8_row,fp8_tensor,fp8_block,mxfp8,int8_dynamic"
FEW_ROWS = "int4_weight_only,int4_tile,int8_weight_only,fp8_weight_only,nvfp4_weight_only,mxfp4"
SETS = {
    "Dense and grouped": (TENSOR_CORES, ["8192,8192,8192", "60,61440,2816,2048", "32,65536,4096,7168"]),
    "Few rows": (FEW_ROWS, ["60,60,2816,2048", "60,960,2816,2048", "1,4096,4096", "16,4096,14336"]),
}


def ours(program, shape, recipes):
    words = [program, "gemms", "--device", "cuda", "--shape", shape, "--recipe", recipes, "--check_rows", "4", "--timeout", "1", "--json"]
    text, found = run(words), {}
    try:
        result = json.loads(text)
    except ValueError:
        print("no JSON:", text[-300:], file=sys.stderr)
        return {}, " ".join(words)
    copy = result["run"]["ceilings"]["copy_bytes_per_s"]
    good = {c["name"]: c["good"] for c in result["checks"]}
    for m in result["measurements"]:
        s = m["spans"][0]
        t = s["statistics"]["median"]
        name = m["name"].split(" ", 1)[1]
        found[name] = {"us": 1e6 * t, "rate": s["flops"] / t / 1e12, "memory": s["memory_bytes"] / t / copy,
                       "good": all(v for k, v in good.items() if name in k)}
    return found, " ".join(words)


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--program", default="build/meshwork")
    p.add_argument("--peer")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--grow", type=int, default=30)
    p.add_argument("-o", required=True)
    a = p.parse_args()
    started, before = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()), clocks()
    cells, peers, commands = {}, {}, set()
    for index in range(a.rounds):
        def peer_turn():
            for line in run([sys.executable, a.peer]).splitlines() if a.peer else []:
                m = re.match(r"((?:gemm|grouped) .*?) (\d+) TF/s", line)
                if m:
                    peers.setdefault(m[1], []).append(float(m[2]))

        def our_turn():
            for title, (recipes, shapes) in SETS.items():
                for shape in shapes:
                    found, command = ours(a.program, shape, recipes)
                    commands.add(command)
                    for name, value in found.items():
                        cells.setdefault((title, shape, name), []).append(value)
        for turn in (peer_turn, our_turn) if index % 2 == 0 else (our_turn, peer_turn):
            turn()
    grow = [a.program, "gemms", "--device", "cuda", "--grow", str(a.grow), "--timeout", "0.3", "--no-check", "--recipe", TENSOR_CORES + ",nvfp4,int4_weight_only"]
    growth = run(grow) if a.grow else ""
    with open(a.o, "w") as f:
        f.write("# Quantised products on an H200\n\n")
        f.write(f"{started}, {a.rounds} rounds, programs alternating; bf16 in and out. Clocks, power, temperature, throttle reasons before: "
                f"{before}; after: {clocks()}\n\nMedian of the rounds (smallest-largest). Shapes: [experts,] rows, columns of the result, "
                "length of the sums; rows are divided evenly over experts. Memory: the bytes that must move, over a device copy's rate.\n")
        for title in SETS:
            f.write(f"\n## {title}\n\n| shape | recipe | us | TFLOP/s | of memory | against double |\n|---|---|---|---|---|---|\n")
            for (of, shape, name), values in cells.items():
                if of == title:
                    f.write(f"| {shape} | {name} | {spread([v['us'] for v in values], 1)} | {spread([v['rate'] for v in values], 0)} | "
                            f"{statistics.median([100 * v['memory'] for v in values]):.0f} % | {'good' if all(v['good'] for v in values) else 'BAD'} |\n")
        if peers:
            f.write("\n## PyTorch in the same run\n\n| product | TFLOP/s |\n|---|---|\n")
            for name, values in peers.items():
                f.write(f"| {name} | {spread(values, 0)} |\n")
        if growth:
            f.write(f"\n## Growth: squares of up to 2^{a.grow} elements\n\n```\n{growth.strip()}\n```\n")
            commands.add(" ".join(grow))
        f.write("\n## Commands\n\n    python3 results/measured/race_gemms.py " + " ".join(sys.argv[1:]) + "\n")
        for command in sorted(commands):
            f.write(f"    {command}\n")


main()
