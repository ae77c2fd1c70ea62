"""Race one MoE layer on GPUs: meshwork dp2ep beside a PyTorch program, alternating in one run.

  python3 results/measured/race_moe_layer.py --peer torch_moe_layer.py --program build/meshwork \
      --rounds 3 --gpus 2 -o results/measured/moe_layer_h200.md
  python3 results/measured/race_moe_layer.py --peer torch_moe_layer.py --rounds 3 --gpus 1 --skews 0 --shapes qwen1.5-moe \
      --recipes fp8_row,fp8_block,mxfp8 -o results/measured/moe_recipes_h200.md      # ours also under recipes

The peer prints lines "moe_layer NAME W=.. skew=.. T/rank=.. fwd_ms=.. .. step_ms=..". Each round runs, for every number of
GPUs and every routing, the peer and then ours (the order flips each round). The table holds the median over rounds of
each program's own median, the smallest and largest round, and the ratio of the medians; clocks are read before and after.
Ours is --no-exact; the first round also runs --exact on several GPUs (its price) and checks results (see is_checked)
against the 1-rank reference.
"""
import argparse, json, re, statistics, sys, time

from racing import clocks, median_ms, run, run_ours, spread, torchrun

SHAPES = {  # name: tokens per rank, hidden, experts, top_k, inner
    "qwen1.5-moe": (16384, 2048, 60, 4, 1408),
    "qwen3-30b-a3b": (16384, 2048, 128, 8, 768),
    "dsv3-like": (8192, 7168, 64, 8, 2048),
}


def run_peer(peer, gpus, skew):
    words = ["python3", peer] if gpus == 1 else torchrun(gpus, [peer])
    extra = {"TORCH_COMPILE_DISABLE": "1"}
    cells = {}
    for line in run(words, dict(extra, SKEW=str(skew)) if skew else extra).splitlines():
        found = re.match(r"moe_layer (\S+) W=\d+ .*fwd_ms=([\d.]+) .*step_ms=([\d.]+)", line)
        if found:
            cells[found[1]] = (float(found[2]), float(found[3]))
    return cells


def is_checked(name, gpus, skew, exact):
    """One check of gigabytes of gradients takes the host longer than all timings: the largest layer gets one."""
    return not exact and (name != "dsv3-like" or (gpus > 1 and not skew))


def run_layer(program, name, gpus, skew, exact, check, recipe):
    tokens, hidden, experts, top_k, inner = SHAPES[name]
    return run_ours(gpus, [program, "dp2ep", "--device", "cuda", "--mesh", f"ep={gpus}", "--experts", str(experts), "--top_k", str(top_k),
                           "--dim", str(hidden), "--hidden", str(inner), "--tokens", str(tokens), "--score", "softmax", "--dtype", "bf16",
                           "--routing", f"skew:{skew}" if skew else "model", "--samples", "20", "--timeout", "3",
                           "--exact" if exact else "--no-exact", "--check" if check else "--no-check"] + (["--recipe", recipe] if recipe else []))


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--peer", required=True)
    p.add_argument("--program", default="build/meshwork")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--gpus", default="1,2")
    p.add_argument("--skews", default="0,7")
    p.add_argument("--shapes", default=",".join(SHAPES))
    p.add_argument("--recipes", default="", help="ours under these too")
    p.add_argument("--limit_s", type=float, default=1e9, help="start no round after this long")
    p.add_argument("--raw", help="every result, one JSON line each")
    p.add_argument("-o", required=True)
    a = p.parse_args()
    cells, commands, checks, last = {}, set(), {}, {}
    started, before = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()), clocks()
    raw = open(a.raw, "w") if a.raw else None
    begin, rounds = time.time(), 0
    for round_index in range(a.rounds):
        if round_index and (time.time() - begin) * (round_index + 1) / round_index > a.limit_s:
            break
        for gpus in map(int, a.gpus.split(",")):
            for skew in map(int, a.skews.split(",")):
                def peer_turn():
                    for name, (forward, step) in run_peer(a.peer, gpus, skew).items():
                        cells.setdefault((name, gpus, skew), {}).setdefault("peer", []).append((forward, step))

                def our_turn():
                    for name in a.shapes.split(","):
                        variants = ["fast"] + (["exact"] if round_index == 0 and gpus > 1 else []) + [r for r in a.recipes.split(",") if r]
                        for who in variants:
                            exact, recipe = who == "exact", "" if who in ("fast", "exact") else who
                            run_begin = time.time()
                            result, command = run_layer(a.program, name, gpus, skew, exact, round_index == 0 and is_checked(name, gpus, skew, exact), recipe)
                            print(f"  {name} gpus {gpus} skew {skew} {who} in {time.time() - run_begin:.0f} s", flush=True)
                            if not result:
                                continue
                            commands.add(command)
                            pair = (median_ms(result, "forward"), median_ms(result, "step"))
                            cells.setdefault((name, gpus, skew), {}).setdefault(who, []).append(pair)
                            last[(name, gpus, skew, who)] = result
                            for check in result["checks"]:
                                checks.setdefault((name, gpus, skew, who), []).append((check["name"], check["verdict"]))
                            if raw:
                                raw.write(json.dumps({"round": round_index, "cell": [name, gpus, skew, who], "ms": pair, "checks": [[c["name"], c["verdict"]] for c in result["checks"]]}) + "\n")
                                raw.flush()
                for turn in (peer_turn, our_turn) if round_index % 2 == 0 else (our_turn, peer_turn):
                    turn()
                print(f"round {round_index} gpus {gpus} skew {skew} done at {time.strftime('%H:%M:%S')}", flush=True)
        rounds = round_index + 1
        write(a, cells, checks, last, sorted(commands), f"{started}; {rounds} rounds", before)


def share(rate, ceiling):
    return f"{100 * rate / ceiling:.0f} %" if ceiling and rate else "-"


def write(a, cells, checks, last, commands, started, before):
    with open(a.o, "w") as f:
        f.write("# One MoE layer on H200: meshwork dp2ep beside PyTorch eager\n\n")
        f.write(f"Started {started}, programs alternating. Milliseconds: median of rounds (smallest-largest).\n")
        f.write(f"Clocks, power, temperature, throttle reasons before: {before}; after: {clocks()}\n\n")
        f.write("| layer | GPUs | skew | PyTorch fwd | ours fwd | ratio | exact fwd | PyTorch step | ours step | ratio | exact step |\n")
        f.write("|---|---|---|---|---|---|---|---|---|---|---|\n")
        for (name, gpus, skew), who in sorted(cells.items()):
            row = [name, str(gpus), str(skew or "even")]
            for part in (0, 1):
                peer = [v[part] for v in who.get("peer", [])]
                fast = [v[part] for v in who.get("fast", [])]
                exact = [v[part] for v in who.get("exact", [])]
                row += [spread(peer) if peer else "-", spread(fast) if fast else "-",
                        f"{statistics.median(peer) / statistics.median(fast):.2f}x" if peer and fast else "-",
                        spread(exact) if exact else "-"]
            f.write("| " + " | ".join(row) + " |\n")
        if a.recipes:
            f.write("\n## Ours under recipes\n\n| layer | GPUs | skew | recipe | fwd | of ours bf16 | of PyTorch bf16 | step | of ours bf16 | of PyTorch bf16 |\n|---|---|---|---|---|---|---|---|---|---|\n")
        for (name, gpus, skew), who in sorted(cells.items()):
            for recipe in [r for r in a.recipes.split(",") if r in who]:
                row = [name, str(gpus), str(skew or "even"), recipe]
                for part in (0, 1):
                    ours = [v[part] for v in who[recipe]]
                    row += [spread(ours)] + [f"{statistics.median([v[part] for v in who[other]]) / statistics.median(ours):.2f}x" if other in who else "-"
                                             for other in ("fast", "peer")]
                f.write("| " + " | ".join(row) + " |\n")
        f.write("\nRatio: PyTorch over ours, above 1 is ours ahead.\n\n## Phases, last round, not --exact (medians, ms; enqueued, not in a graph)\n\n")
        for (name, gpus, skew, who), result in sorted(last.items()):
            if who == "exact":
                continue
            f.write(f"\n### {name}, {gpus} GPU, skew {skew or 'even'}{'' if who == 'fast' else ', ' + who}\n\n| span | ms | floor ms | TFLOP/s | GB/s memory | wire MB | logical MB | wire GB/s | of the link |\n|---|---|---|---|---|---|---|---|---|\n")
            ceilings = result["run"].get("extra", result["run"]).get("ceilings") or {}
            link = ceilings.get("link_bytes_per_s") or 0
            for m in result["measurements"]:
                if m["name"] != "phases":
                    continue
                for s in m["spans"]:
                    t = s["statistics"]["median"]
                    f.write(f"| {s['name']} | {1e3 * t:.3f} | {1e3 * s['floor_s']:.3f} | {s['flops'] / t / 1e12:.0f} | {s['memory_bytes'] / t / 1e9:.0f} |"
                            f" {s['wire_bytes'] / 1e6:.1f} | {s['logical_bytes'] / 1e6:.1f} | {s['wire_bytes'] / t / 1e9:.0f} |"
                            f" {share(s['wire_bytes'] / t, link)} |\n")
            f.write(f"\nceilings: {json.dumps(ceilings)}; transport {result['run'].get('extra', result['run']).get('transport')}\n")
        f.write("\n## Checks in the same runs\n\n")
        for key, found in sorted(checks.items()):
            f.write(f"- {key[0]}, {key[1]} GPU, skew {key[2] or 'even'}, {key[3]}: " + "; ".join(f"{n}: {v}" for n, v in found) + "\n")
        f.write("\n## Commands\n\n    python3 results/measured/race_moe_layer.py " + " ".join(sys.argv[1:]) + "\n")
        for command in commands:
            f.write(f"    {command}\n")


main()
