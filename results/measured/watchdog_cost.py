"""What the watchdog costs a run in which nothing goes wrong.

  python3 results/measured/watchdog_cost.py --program build/meshwork --race build/race_ledger -o results/measured/watchdog_cost.md

Runs with and without it alternate (on off, off on, ...), and each pair of neighbours gives one ratio of step times: what
changes slowly on the machine changes both. Beside that the processor time of the side threads, as the kernel counts it, as a
share of the time that passed: for the step it is an upper bound where ranks have cores of their own. Last, what entering one
small collective costs the rank that makes it, in turns in one job (tests/race_ledger.c).
"""
import argparse, json, os, statistics, subprocess, sys, time

ENVIRONMENT = dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1", OMPI_MCA_rmaps_base_oversubscribe="1",
                   OMPI_MCA_mpi_yield_when_idle="1", OMPI_MCA_btl_vader_single_copy_mechanism="none", OMP_NUM_THREADS="1")
SHAPES = {  # name: words, samples, share of the rounds
    "dp2ep, the toy: 4 experts, 4 tokens a rank, dim 8": ("dp2ep --no-check --dtype bf16 --forward_only", 200, 0.5),
    "parallelisms, FSDP, the toy": ("parallelisms --no-check --mode fsdp", 2000, 1),
}


def thread_seconds(job):
    """Processor time so far of the threads named watchdog below this mpirun."""
    total = 0.0
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/stat") as f:
                parent = int(f.read().rsplit(")", 1)[1].split()[1])
            if parent != job:
                continue
            for task in os.listdir(f"/proc/{pid}/task"):
                with open(f"/proc/{pid}/task/{task}/comm") as f:
                    if f.read().strip() != "watchdog":
                        continue
                with open(f"/proc/{pid}/task/{task}/schedstat") as f:
                    total += int(f.read().split()[0]) * 1e-9
        except (OSError, ValueError, IndexError):
            pass
    return total


def run(words):
    """The lower quartile of each measurement, in seconds (on a shared machine the rest is what others do); and the side threads' share of the time."""
    job = subprocess.Popen(words, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    first = last = None
    while True:
        try:
            out, errors = job.communicate(timeout=0.3)
            break
        except subprocess.TimeoutExpired:
            now = (time.monotonic(), thread_seconds(job.pid))
            first = first or now
            last = now if now[1] > 0 or last is None else last
    if job.returncode != 0:
        sys.exit(errors[-2000:])
    share = (last[1] - first[1]) / (last[0] - first[0]) if first and last and last[0] > first[0] else 0.0
    quartiles = {}
    for m in json.loads(out)["measurements"]:
        for s in m["spans"]:
            if s["name"] == "total" and m["name"] in ("forward", "step"):
                quartiles[m["name"]] = s["statistics"]["q1"]
    return quartiles, share


def interval(values):
    """Rank-based 95 % interval of the median."""
    v, n = sorted(values), len(values)
    low = max(0, int((n - 1.96 * n ** 0.5) / 2))
    return v[low], v[n - 1 - low]


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--program", default="build/meshwork")
    p.add_argument("--ranks", default="2,4")
    p.add_argument("--rounds", type=int, default=20)
    p.add_argument("--race", required=True)
    p.add_argument("-o", required=True)
    a = p.parse_args()
    rows, commands = [], []
    for name, (words, samples, part) in SHAPES.items():
        for ranks in map(int, a.ranks.split(",")):
            base = ["mpirun", "-n", str(ranks), "--bind-to", "none", a.program, *words.split(), "--device", "cpu",
                    "--samples", str(samples), "--max_noise", "0", "--timeout", "60", "--json"]
            measured = "forward" if "--forward_only" in words else "step"
            rounds = max(6, int(a.rounds * part))
            ratios, shares, off, on_s = [], [], [], []
            for turn in range(rounds):
                seconds = {}
                for on in ((True, False) if turn % 2 else (False, True)):
                    quartiles, share = run(base + ([] if on else ["--watchdog_s", "0"]))
                    seconds[on] = quartiles[measured]
                    if on:
                        shares.append(share)
                off.append(seconds[False])
                on_s.append(seconds[True])
                ratios.append(seconds[True] / seconds[False] - 1)
            low, high = interval(ratios)
            rows.append(f"| {name} | {ranks} | {1e3 * statistics.median(off):.3f} ms | {rounds} | {100 * statistics.median(ratios):+.2f} % |"
                        f" {100 * low:+.2f} .. {100 * high:+.2f} % | {100 * (min(on_s) / min(off) - 1):+.2f} % |"
                        f" {100 * statistics.median(shares):.3f} % |")
            print(rows[-1], flush=True)
            commands.append(" ".join(base))
    race = ["mpirun", "-n", "2", "--bind-to", "none", a.race, "3001"]
    small = subprocess.run(race, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True, check=True).stdout
    commands.append(" ".join(race))
    with open(a.o, "w") as f:
        f.write(f"# What the watchdog costs\n\n{time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime())}, {os.cpu_count()} cores, shared with other work. Lower quartile of the step (forward where the "
                "command says so) with --watchdog_s 60, its default, over the same with --watchdog_s 0; runs alternate.\n\n"
                "| run | ranks | without | pairs of runs | more with it, median | 95 % interval | best run against best run | processor time of all side threads |\n"
                "|---|---|---|---|---|---|---|---|\n" + "\n".join(rows) + "\n\nEntering one collective; 3001 turns, nanoseconds of the slowest rank.\n\n"
                "| collective | bytes | ranks | without, lower quartile | entered, lower quartile | more | without, median | more, median of pairs | 95 % interval |\n"
                "|---|---|---|---|---|---|---|---|---|\n"
                + small + "\nREADING\n\n    python3 results/measured/watchdog_cost.py " + " ".join(sys.argv[1:]) + "\n" + "".join(f"    {c}\n" for c in commands))


main()
