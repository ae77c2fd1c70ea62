"""Casts on the CPU beside memcpy and torchao, alternating in one run.

  python3 results/measured/casts_cpu.py --python PYTHON_WITH_TORCHAO --peer torchao_rate.py --program build/race_casts \
      --rounds 3 -o results/measured/casts_cpu.md

The peer (PEER cpu N) prints one JSON line per recipe with GB of bf16 read per second, its fastest of three. Ours is the
fastest by the clock of all rounds, too, on the same N matrices of 1408 x 2048; memcpy of as many bytes alternates with it.
"""
import argparse, json, os, subprocess, time

ENVIRONMENT = dict(os.environ, OMP_WAIT_POLICY="passive")
SECONDS = ("cast_s", "cast_median_s", "cast_cpu_s", "copy_s", "copy_median_s", "copy_cpu_s")


def lines(words):
    out = subprocess.run([str(w) for w in words], env=ENVIRONMENT, capture_output=True, text=True, check=True).stdout
    return [json.loads(line) for line in out.splitlines() if line.startswith("{")]


def keep(best, row):
    """The least of every time over the rounds; of the medians, too."""
    old = best.setdefault(row["recipe"], row)
    for name in SECONDS:
        old[name] = min(old[name], row[name])


def rate(count, seconds):
    return f"{count / seconds / 1e9:.1f}"


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--python", required=True)
    p.add_argument("--peer", required=True)
    p.add_argument("--program", default="build/race_casts")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--samples", type=int, default=40)
    p.add_argument("--matrices", type=int, default=4)
    p.add_argument("-o", required=True)
    a = p.parse_args()
    rows, columns = 1408 * a.matrices, 2048
    one, two, theirs, load = {}, {}, {}, []
    for _ in range(a.rounds):
        for best, threads in ((one, 1), (two, 2)):
            for row in lines([a.program, rows, columns, threads, a.samples]):
                keep(best, row)
        for row in lines([a.python, a.peer, "cpu", a.matrices]):
            if "GB_per_s" in row:
                theirs[row["recipe"]] = max(theirs.get(row["recipe"], 0), row["GB_per_s"])
        load.append(f"{os.getloadavg()[0]:.1f}")
    sizes = []
    for log in range(10, 29, 2):
        best = {}
        for _ in range(a.rounds):
            for row in lines([a.program, max(1, 2**log // 2048), min(2**log, 2048), 1, 3000 if log < 16 else 30 if log < 24 else 5, "mxfp8"]):
                keep(best, row)
        sizes.append((log, best["mxfp8"]))
    values = rows * columns * 2
    (small, a_few), (large, more) = [(2**log, row["cast_cpu_s"]) for log, row in (sizes[0], sizes[2])]
    call_s = max(0.0, a_few - small * (more - a_few) / (large - small))
    knee = (f"The call itself takes {call_s * 1e6:.1f} us, as long as {call_s * (large - small) / (more - a_few):.0f} elements: below that many it is "
            "most of the time.")
    with open(a.o, "w") as f:
        f.write("# Casts on the CPU beside memcpy and torchao\n\n"
                f"{time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime())}; weights of bf16, {rows} x {columns}; {os.cpu_count()} cores; loops: "
                f"{one['fp8_row']['loops']}; {a.rounds} rounds of {a.samples} samples, casts, copies and torchao alternating. The machine was "
                f"shared: load {', '.join(load)} on {os.cpu_count()} cores at the ends of the rounds. So times are the least seen; for one thread "
                "they are processor time, which other programs do not lengthen but by what they take of caches and memory.\n\n"
                "rate: bytes that must move, read and written (values twice for a recipe with a scale over the tensor), in GB/s. copy: of a "
                "memcpy of as many bytes, alternating. torchao: its `quantize_`, GB/s of bf16 read, beside ours in the same unit (2 threads, "
                "by the clock).\n\n"
                "| recipe | rate, 1 thread | of copy | rate, 2 threads | of copy | ours, GB/s of bf16 | torchao | ours over torchao |\n|---|---|---|---|---|---|---|---|\n")
        for name in one:
            x, y, t = one[name], two[name], theirs.get(name)
            f.write(f"| {name} | {rate(x['bytes'], x['cast_cpu_s'])} | {100 * x['copy_cpu_s'] / x['cast_cpu_s']:.0f} % | {rate(y['bytes'], y['cast_s'])} | "
                    f"{100 * y['copy_s'] / y['cast_s']:.0f} % | {rate(values, y['cast_s'])} | "
                    + (f"{t:.2f} | {values / y['cast_s'] / 1e9 / t:.0f}x |\n" if t else "- | - |\n"))
        f.write(f"\nGrowth, mxfp8, one thread, processor time. {knee}\n\n"
                "| elements | us | GB/s | of copy |\n|---|---|---|---|\n")
        for log, row in sizes:
            f.write(f"| 2^{log} | {row['cast_cpu_s'] * 1e6:.1f} | {rate(row['bytes'], row['cast_cpu_s'])} | {100 * row['copy_cpu_s'] / row['cast_cpu_s']:.0f} % |\n")
        f.write("\n    python3 results/measured/casts_cpu.py " + " ".join(f"{k} {v}" for k, v in (
            ("--python", os.path.basename(a.python)), ("--peer", os.path.basename(a.peer)), ("--program", "build/race_casts"),
            ("--rounds", a.rounds), ("--samples", a.samples), ("--matrices", a.matrices))) + " -o results/measured/casts_cpu.md\n")


main()
