"""Race one MoE layer's forward on the CPU: meshwork dp2ep beside a PyTorch program, alternating in one run.

  python3 results/measured/race_moe_cpu.py --python PYTHON_WITH_TORCH --peer torch_cpu_moe.py --program build/meshwork \
      --rounds 3 -o results/measured/moe_layer_cpu.md

The peer prints one JSON line per dtype with "moe_fwd_s". Peak memory is the largest resident set of ours, run with
--no-check (a check keeps a second copy of everything); the check is a run of its own in the same session.
"""
import argparse, json, os, resource, statistics, subprocess, sys, time

T, H, E, K, I = 2048, 2048, 60, 4, 1408
ENVIRONMENT = dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")


def ours(program, check):
    words = [program, "dp2ep", "--device", "cpu", "--experts", str(E), "--top_k", str(K), "--dim", str(H), "--hidden", str(I),
             "--tokens", str(T), "--score", "softmax", "--dtype", "f32", "--forward_only", "--samples", "5", "--json",
             "--check" if check else "--no-check"]
    done = subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"ours failed: {done.stderr[-2000:]}")
    return json.loads(done.stdout), " ".join(words)


def peer(python, path):
    out = subprocess.run([python, path], env=ENVIRONMENT, capture_output=True, text=True).stdout
    return {json.loads(line)["dtype"]: json.loads(line) for line in out.splitlines() if line.startswith("{")}


def median(result):
    for m in result["measurements"]:
        if m["name"] == "forward":
            return next(s["statistics"]["median"] for s in m["spans"] if s["name"] == "total")


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--python", default=sys.executable)
    p.add_argument("--peer", required=True)
    p.add_argument("--program", default="build/meshwork")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("-o", required=True)
    a = p.parse_args()
    our_s, peer_s, peer_bf16, matmul, command = [], [], [], [], ""
    peak = 0
    for _ in range(a.rounds):
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        result, command = ours(a.program, False)
        if not peak:  # the first child: the running maximum is ours alone
            peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
        our_s.append(median(result))
        theirs = peer(a.python, a.peer)
        peer_s.append(theirs["torch.float32"]["moe_fwd_s"])
        peer_bf16.append(theirs["torch.bfloat16"]["moe_fwd_s"])
        matmul.append(theirs["torch.float32"]["matmul2048_gflops"])
    checked, _ = ours(a.program, True)
    flops = 6 * T * K * H * I
    weights, activations = 4 * 3 * E * H * I, 4 * (T * K * (3 * I + H) + 2 * T * H)
    with open(a.o, "w") as f:
        f.write("# One MoE layer's forward on the CPU, f32: meshwork dp2ep beside PyTorch\n\n")
        f.write(f"{time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime())}; {a.rounds} rounds, programs alternating; T={T} H={H} E={E} k={K} I={I}; "
                f"{os.cpu_count()} cores.\n\n| | seconds: median (smallest-largest) | GFLOP/s |\n|---|---|---|\n")
        for name, values in (("PyTorch f32", peer_s), ("meshwork f32, exact order of sums", our_s), ("PyTorch bf16, for scale", peer_bf16)):
            f.write(f"| {name} | {statistics.median(values):.3f} ({min(values):.3f}-{max(values):.3f}) | {flops / statistics.median(values) / 1e9:.0f} |\n")
        f.write(f"\nPyTorch f32 over ours: {statistics.median(peer_s) / statistics.median(our_s):.2f}x (above 1 is ours ahead). "
                f"PyTorch's own 2048^3 matmul in the same runs: {statistics.median(matmul)} GFLOP/s.\n\n")
        f.write(f"Peak resident set: {peak / 2**30:.2f} GiB; weights {weights / 2**30:.2f} GiB + 2 x activations {2 * activations / 2**30:.2f} GiB = "
                f"{(weights + 2 * activations) / 2**30:.2f} GiB.\n\n")
        for m in checked["checks"]:
            f.write(f"- check in the same session: {m['name']}: {m['verdict']}\n")
        f.write("\n    python3 results/measured/race_moe_cpu.py " + " ".join(sys.argv[1:]) + f"\n    {command}\n")


main()
