"""Casts on a GPU beside PyTorch's under torch.compile, alternating in one run.

  python3 results/measured/race_casts.py --peer torch_casts.py --rounds 3 -o results/measured/casts_h200.md

The peer prints `copy N GB/s` and lines `cast NAME compile MS ms GB/s GB/s SHARE% of copy` for 16384 x 16384 values of bf16. Ours are
the same size, forward of both operands, transposed, both ways from one call, and the experts of a layer (60 x 2816 x 2048). Shares
are of each program's own device copy, measured in the same process; bytes are what must move (casts_cost of kernels/cast.h).
Medians over rounds of each run's own median, smallest and largest. --grow: sizes from 2^10 elements, once.
"""
import argparse, json, re, sys, time

from racing import clocks, run, spread

WAYS = {
    "weights": ["--shape", "16384,16384"],
    "activations": ["--shape", "16384,16384", "--operand", "activations"],
    "weights, transposed": ["--shape", "16384,16384", "--form", "transposed"],
    "weights, both ways": ["--shape", "16384,16384", "--form", "dual"],
    "60 experts": ["--shape", "60,2816,2048"],
}
BOTH_WAYS = "fp8_row,fp8_tensor,fp8_block,mxfp8,int8_dynamic,deepseek_block,FP8_BLOCK,MXFP8"  # whose backward needs it


def ours(program, words):
    """{recipe: (microseconds, share of copy)} and the command."""
    words = [program, "casts", "--device", "cuda", "--no-check", "--timeout", "1", "--json"] + words
    found, text = {}, run(words)
    try:
        result = json.loads(text)
    except ValueError:
        print("no JSON:", text[-300:], file=sys.stderr)
        return {}, " ".join(words)
    copy = result["run"]["ceilings"]["copy_bytes_per_s"]
    for m in result["measurements"]:
        s = m["spans"][0]
        t = s["statistics"]["median"]
        found[m["name"]] = (1e6 * t, s["memory_bytes"] / t / copy)
    return found, " ".join(words)


def theirs(peer):
    found = {}
    for line in run([sys.executable, peer]).splitlines():
        m = re.match(r"cast (\S+) compile ([\d.]+) ms .* ([\d.]+)% of copy", line)
        if m:
            found[m[1]] = (1e3 * float(m[2]), float(m[3]) / 100)
    return found


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--program", default="build/meshwork")
    p.add_argument("--peer")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--grow", type=int, default=30)
    p.add_argument("-o", required=True)
    a = p.parse_args()
    started, before = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()), clocks()
    cells, peers, commands = {way: {} for way in WAYS}, {}, set()
    for index in range(a.rounds):
        def peer_turn():
            for name, found in (theirs(a.peer) if a.peer else {}).items():
                peers.setdefault(name, []).append(found)

        def our_turn():
            for way, words in WAYS.items():
                if "--form" in words:
                    words = words + ["--recipe", BOTH_WAYS]
                found, command = ours(a.program, words)
                commands.add(command)
                for name, value in found.items():
                    cells[way].setdefault(name, []).append(value)
        for turn in (peer_turn, our_turn) if index % 2 == 0 else (our_turn, peer_turn):
            turn()
    growth = run([a.program, "casts", "--device", "cuda", "--grow", str(a.grow), "--timeout", "0.3", "--no-check",
                  "--recipe", "fp8_row,fp8_block,mxfp8,nvfp4,int4_weight_only"]) if a.grow else ""
    names = list(dict.fromkeys(name for way in cells.values() for name in way))
    with open(a.o, "w") as f:
        f.write("# Casts on an H200: per cent of a device copy\n\n")
        f.write(f"{started}, {a.rounds} rounds, programs alternating; bf16. Clocks, power, temperature, throttle reasons before: {before}; "
                f"after: {clocks()}\n\nMedian of the rounds (smallest-largest).\n\n")
        f.write("| recipe | " + " | ".join(WAYS) + " |\n|---|" + "---|" * len(WAYS) + "\n")
        for name in names:
            f.write(f"| {name} | " + " | ".join(spread([100 * v[1] for v in cells[way][name]], 0) if name in cells[way] else "-" for way in WAYS) + " |\n")
        if peers:
            f.write("\n## PyTorch, torch.compile\n\n| cast | us | % of copy |\n|---|---|---|\n")
            for name, values in peers.items():
                f.write(f"| {name} | {spread([v[0] for v in values], 0)} | {spread([100 * v[1] for v in values], 0)} |\n")
        f.write("\n## Microseconds of ours\n\n| recipe | " + " | ".join(WAYS) + " |\n|---|" + "---|" * len(WAYS) + "\n")
        for name in names:
            f.write(f"| {name} | " + " | ".join(spread([v[0] for v in cells[way][name]], 0) if name in cells[way] else "-" for way in WAYS) + " |\n")
        if growth:
            f.write(f"\n## Growth, up to 2^{a.grow} elements\n\n```\n{growth.strip()}\n```\n")
        f.write("\n## Commands\n\n    python3 results/measured/race_casts.py " + " ".join(sys.argv[1:]) + "\n")
        for command in sorted(commands):
            f.write(f"    {command}\n")


main()
