"""How long a rank plans a redistribute, from 1 to 64 oversubscribed ranks.

  python3 results/measured/redistribute_plan.py --program build/meshwork -o results/measured/redistribute_plan.md
"""
import argparse, json, os, subprocess, sys, time

ENVIRONMENT = dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1", OMPI_MCA_rmaps_base_oversubscribe="1",
                   OMPI_MCA_mpi_yield_when_idle="1", OMPI_MCA_btl_vader_single_copy_mechanism="none", OMP_NUM_THREADS="1")
# One axis of all ranks; then two axes, the second of at most 8.
CHANGES = [("S0", "R"), ("S1", "R"), ("S0", "S1"), ("P", "R"), ("P", "S1"), ("S0,P", "R,S1"), ("S0x{b},S0", "S0,S0")]


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--program", default="build/meshwork")
    p.add_argument("--ranks", default="1,2,4,8,16,32,64")
    p.add_argument("--shape", default="1000,1000")
    p.add_argument("-o", required=True)
    a = p.parse_args()
    table, command = [], ""
    for ranks in map(int, a.ranks.split(",")):
        inner = min(ranks, 8)
        cells = []
        for source, target in CHANGES:
            mesh = f"a={ranks // inner},b={inner}" if "," in source else f"x={ranks}"
            words = ["mpirun", "--oversubscribe", "--bind-to", "none", "-n", str(ranks), a.program, "redistribute", "--device", "cpu", "--shape",
                     a.shape, "--mesh", mesh, "--from", source.format(b=inner), "--to", target, "--no-check", "--samples", "1", "--json"]
            command = " ".join(words)
            done = subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True)
            if done.returncode != 0:
                sys.exit(done.stderr[-2000:])
            cells.append(f"{1e6 * json.loads(done.stdout)['plan_seconds']:.2f}")
        table.append(f"| {ranks} | " + " | ".join(cells) + " |")
    with open(a.o, "w") as f:
        f.write(f"# Planning a redistribute over oversubscribed CPU ranks\n\n{time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime())}, {os.cpu_count()} cores "
                f"shared with other work. [{a.shape}] of f32; microseconds for a plan with its buffers and copies: the median of 101 plans on each "
                "rank, of the slowest rank. Changes of one placement: an axis of all ranks; of two: a = ranks / 8, b = 8 (fewer below 8 ranks).\n\n"
                "| ranks | " + " | ".join(f"{s.format(b='8')} -> {t}" for s, t in CHANGES) + " |\n|" + "---|" * (len(CHANGES) + 1) + "\n")
        f.write("\n".join(table) + "\n\n    python3 results/measured/redistribute_plan.py " + " ".join(sys.argv[1:]) + f"\n    {command}\n")


main()
