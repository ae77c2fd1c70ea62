"""Redistribute against the bare MPI collective between two copies, in one interleaved run per number of ranks.

  cmake --build build --target race_redistribute
  python3 results/measured/redistribute_cpu.py --program build/race_redistribute -o results/measured/redistribute_cpu.md
"""
import argparse, os, subprocess, sys, time

ENVIRONMENT = dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1", OMPI_MCA_rmaps_base_oversubscribe="1",
                   OMPI_MCA_mpi_yield_when_idle="1", OMPI_MCA_btl_vader_single_copy_mechanism="none", OMP_NUM_THREADS="1")


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--program", default="build/race_redistribute")
    p.add_argument("--ranks", default="2,4,8")
    p.add_argument("--rounds", type=int, default=21)
    p.add_argument("-o", required=True)
    a = p.parse_args()
    rows, command = [], ""
    for ranks in a.ranks.split(","):
        words = ["mpirun", "--oversubscribe", "--bind-to", "none", "-n", ranks, a.program, str(a.rounds), "4096", "4096"]
        command = " ".join(words)
        done = subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(done.stderr[-2000:])
        rows += [line for line in done.stdout.splitlines() if line.startswith("|")]
    with open(a.o, "w") as f:
        f.write(f"# Redistribute on the CPU against bare MPI\n\n{time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime())}, {os.cpu_count()} cores shared with "
                f"other work, ranks beyond that oversubscribed. [4096, 4096]: 64 MiB in f32, 32 MiB in bf16. Times in ms, of the slowest rank, median "
                f"of {a.rounds} rounds; in a round ours, the peer and the bare collective take turns. Peer: the collective between one memcpy of "
                "what it sends and one of what it receives; where nothing travels, one memcpy of the part. Ratio: ours / peer, median and quartiles "
                "over rounds. MPI adds bf16 as 16-bit integers: it has no bf16, and that moves the same bytes for less arithmetic.\n\n"
                "| ranks | type | change | collective | collective alone | peer | ours | ratio | quartiles |\n|---|---|---|---|---|---|---|---|---|\n")
        f.write("\n".join(rows) + "\n\n")
        f.write("    python3 results/measured/redistribute_cpu.py " + " ".join(sys.argv[1:]) + f"\n    {command}\n")


main()
