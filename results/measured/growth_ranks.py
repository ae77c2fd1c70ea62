"""How set-up and the dispatch plan grow with oversubscribed CPU ranks.

  python3 results/measured/growth_ranks.py --program build/meshwork -o results/measured/growth_ranks.md

Weak growth: every rank has the same tokens and the same number of experts, so a plan without loops over the whole job costs
a rank the same at every size. More ranks than cores share the cores: wall time is divided by ranks per core.
"""
import argparse, json, os, statistics, subprocess, sys, time

ENVIRONMENT = dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1", OMPI_MCA_rmaps_base_oversubscribe="1",
                   OMPI_MCA_mpi_yield_when_idle="1", OMPI_MCA_btl_vader_single_copy_mechanism="none", OMP_NUM_THREADS="1")
TOKENS, HIDDEN, TOP_K, EXPERTS_PER_RANK = 2048, 64, 4, 4


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--program", default="build/meshwork")
    p.add_argument("--ranks", default="1,2,4,8,16,32")
    p.add_argument("--repeats", type=int, default=3)
    p.add_argument("-o", required=True)
    a = p.parse_args()
    cores, rows, command = os.cpu_count(), [], ""
    for ranks in map(int, a.ranks.split(",")):
        experts = max(TOP_K, EXPERTS_PER_RANK * ranks)
        words = ["mpirun", "-n", str(ranks), "--bind-to", "none", a.program, "dp2ep", "--device", "cpu", "--experts", str(experts), "--top_k",
                 str(TOP_K), "--dim", str(HIDDEN), "--hidden", "32", "--tokens", str(TOKENS), "--dtype", "f32", "--no-check",
                 "--samples", "7", "--max_noise", "0", "--json"]
        command = " ".join(words)
        cells = {}
        for _ in range(a.repeats):
            done = subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True)
            if done.returncode != 0:
                sys.exit(done.stderr[-2000:])
            result = json.loads(done.stdout)
            cells.setdefault("mesh", []).append(result["run"]["set_up_mesh_s"])
            cells.setdefault("layer", []).append(result["run"]["set_up_layer_s"])
            for m in result["measurements"]:
                for s in m["spans"]:
                    if m["name"] == "phases" and s["name"] in ("forward/plan", "forward/dispatch"):
                        cells.setdefault(s["name"], []).append(statistics.median(s["statistics"]["rank_medians"]))
        rows.append((ranks, max(1, ranks / cores), {k: statistics.median(v) for k, v in cells.items()}))
    with open(a.o, "w") as f:
        f.write(f"# Set-up and dispatch plan over oversubscribed CPU ranks\n\n{time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime())}, {cores} cores. "
                f"{TOKENS} tokens and {EXPERTS_PER_RANK} experts a rank, top-{TOP_K}, width {HIDDEN}; median of {a.repeats} runs; ms. "
                "\"a rank\": the median rank's wall time divided by ranks per core.\n\n"
                "| ranks | set-up of communicators and mesh | set-up of the layer | plan, wall | plan, a rank | dispatch with its exchange, wall | a rank |\n"
                "|---|---|---|---|---|---|---|\n")
        for ranks, share, c in rows:
            f.write(f"| {ranks} | {1e3 * c['mesh']:.2f} | {1e3 * c['layer']:.2f} | {1e3 * c['forward/plan']:.3f} | {1e3 * c['forward/plan'] / share:.3f} |"
                    f" {1e3 * c['forward/dispatch']:.2f} | {1e3 * c['forward/dispatch'] / share:.2f} |\n")
        f.write("\n    python3 results/measured/growth_ranks.py " + " ".join(sys.argv[1:]) + f"\n    {command}\n")


main()
