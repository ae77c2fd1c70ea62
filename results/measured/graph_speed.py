#!/usr/bin/env python3
"""Speed of `meshwork graph` and `meshwork trace_merge`, beside Python's json on the same trace.

    results/measured/graph_speed.py build/meshwork [--megabytes 64 512 2048] [--out results/measured/graph_speed.md]

Inputs are the samples of tests/golden/torch_logs, repeated until they have the wanted size: each copy has kernels of its
own names (of eight sets for the trace, as a program runs its kernels again and again), times, External ids and
correlations. One core: everything runs under taskset on one. Times are the shortest of the repetitions, as other
programs on the machine can only add to them; CPU time is user + system of the process. Standard library only.
"""
import argparse
import os
import re
import resource
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
LOGS = os.path.join(HERE, "..", "..", "tests", "golden", "torch_logs")
NAME_SETS = 8
GOALS = ("goals: 200 MB/s of log, 100 MB/s of trace in under 300 MB of memory, both alike up to 2 GB; a page of 2,000 nodes "
         "within 5 s. Wall times hold the waiting for other programs of a shared machine, CPU times do not.")
PAGE_NODES = (500, 2000, 20000)


def sample(name):
    with open(os.path.join(LOGS, name), encoding="utf-8") as file:
        return file.read()


def make_log(path, megabytes, name="train.short.txt"):
    text, written, copy = sample(name), 0, 0
    with open(path, "w", encoding="utf-8") as file:
        while written < megabytes << 20:
            written += file.write(text.replace("triton_", f"triton_c{copy}_"))
            copy += 1


def make_large_graph(path, nodes):
    with open(path, "w", encoding="utf-8") as file:
        file.write("INFO:torch.x.__aot_graphs:TRACED GRAPH\n ===== Forward graph 0 =====\n class GraphModule(torch.nn.Module):\n"
                   '    def forward(self, x0: "f32[8, 8][8, 1]cuda:0"):\n')
        for i in range(1, nodes - 1):
            file.write(f'        x{i}: "f32[8, 8][8, 1]cuda:0" = torch.ops.aten.add.Tensor(x{i - 1}, x{i * 7 // 11})\n')
        file.write(f"        return (x{nodes - 2},)\n")


def make_name_log(path):
    with open(path, "w", encoding="utf-8") as file:
        for copy in range(NAME_SETS):
            text = sample("train.short.txt").replace("triton_", f"triton_c{copy}_")
            file.write(re.sub(r"\b0_(forward|backward)\b", rf"{copy}_\1", text).replace("graph 0 =", f"graph {copy} ="))


def make_trace(path, megabytes):
    text = sample("train.trace.json")
    start = text.index('"traceEvents": [') + len('"traceEvents": [')
    end = text.rindex("]")
    events = text[start:end].strip()
    # A template in which only what must differ is filled in.
    parts = re.split(r'("External id": |"correlation": |"ts": 45453|triton_)(\d*)', events)
    written = 0
    with open(path, "w", encoding="utf-8") as file:
        written += file.write(text[:start])
        copy = 0
        while written < megabytes << 20:
            pieces = ["" if copy == 0 else ",\n", parts[0]]
            for key, digits, rest in zip(parts[1::3], parts[2::3], parts[3::3]):
                if key == "triton_":
                    pieces += [key, f"c{copy % NAME_SETS}_", digits, rest]
                elif key.startswith('"ts"'):
                    pieces += ['"ts": ', str(int("45453" + digits) + copy * 20000), rest]
                else:
                    pieces += [key, str(int(digits) + copy * 10000), rest]
            written += file.write("".join(pieces))
            copy += 1
        file.write(text[end:])


def run(command, report):
    """Wall seconds, CPU seconds, peak bytes of a child. This program itself stays small: a child's peak counts what it
    was before exec."""
    with open(report, "wb") as file:
        began = time.perf_counter()
        child = subprocess.Popen(command, stdout=file, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = status
        wall = time.perf_counter() - began
    if status:
        sys.exit(f"{command} ended with status {status}")
    return wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


def best(command, repetitions, report):
    rows = [run(command, report) for _ in range(repetitions)]
    return min(r[0] for r in rows), min(r[1] for r in rows), max(r[2] for r in rows)


def numbers(report):
    """The first integer of each key of a report, without loading it."""
    found = {}
    with open(report, encoding="utf-8") as file:
        for line in file:
            match = re.match(r' *"(\w+)": (\d+),?$', line)
            if match:
                found.setdefault(match[1], int(match[2]))
                found["lines of " + match[1]] = found.get("lines of " + match[1], 0) + 1
    return found


def python_json(trace, out):
    code = "import json,sys\nwith open(sys.argv[1]) as f: d = json.load(f)\nwith open(sys.argv[2],'w') as f: json.dump(d, f)"
    return [sys.executable, "-c", code, trace, out]


def row(label, size, wall, cpu, peak, note):
    return (f"| {label} | {size / 1e6:.3g} | {wall:.2f} | {cpu:.2f} | {size / wall / 1e6:.0f} | {size / cpu / 1e6:.0f} "
            f"| {peak / 2**20:.0f} | {note} |")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("--megabytes", type=int, nargs="+", default=[64, 512, 2048])
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--python_up_to", type=int, default=512, help="json.load of more needs too much memory")
    parser.add_argument("--folder", default=None)
    parser.add_argument("--out")
    options = parser.parse_args()
    core = ["taskset", "-c", str(sorted(os.sched_getaffinity(0))[0])]
    lines = ["| work | MB | wall s | CPU s | MB/s of wall | MB/s of CPU | peak MiB | |", "|---|---|---|---|---|---|---|---|"]
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        log, trace, names, out, report = (os.path.join(folder, n) for n in
                                          ("log.txt", "trace.json", "names.txt", "out.json", "report.json"))
        make_name_log(names)
        for megabytes in options.megabytes:
            make_log(log, megabytes)
            size = os.path.getsize(log)
            wall, cpu, peak = best(core + [options.program, "graph", log, "--json"], options.repetitions, report)
            kernels = numbers(report)["lines of calls"]
            lines.append(row("`graph --json`, log parsed and reported", size, wall, cpu, peak, f"{kernels} kernels"))
            make_log(log, megabytes, "train.prefix.txt")
            size = os.path.getsize(log)
            wall, cpu, peak = best(core + [options.program, "graph", log, "--json"], options.repetitions, report)
            kernels = numbers(report)["lines of calls"]
            lines.append(row("the same, each line with a prefix", size, wall, cpu, peak, f"{kernels} kernels"))
            os.remove(log)
            make_trace(trace, megabytes)
            size = os.path.getsize(trace)
            wall, cpu, peak = best(core + [options.program, "trace_merge", trace, names, "-o", out, "--force", "--json"],
                                   options.repetitions, report)
            counts = numbers(report)
            note = f"{counts['merged']} of {counts['kernel_events']} kernel events merged"
            if counts["merged_generated"] != counts["generated_kernel_events"]:
                sys.exit(f"only {counts['merged_generated']} of {counts['generated_kernel_events']} merged")
            lines.append(row("`trace_merge`", size, wall, cpu, peak, note))
            if megabytes <= options.python_up_to:
                wall, cpu, peak = best(core + python_json(trace, out), 1, report)
                lines.append(row("Python json.load + json.dump", size, wall, cpu, peak, "nothing added"))
            os.remove(trace)
        for nodes in PAGE_NODES:
            make_large_graph(log, nodes)
            wall, cpu, peak = best(core + [options.program, "graph", log, "-o", out, "--force"], options.repetitions, report)
            size = os.path.getsize(log)
            lines.append(row("`graph -o page.html`", size, wall, cpu, peak, f"one graph of {nodes} nodes"))
    text = "\n".join(lines) + "\n"
    print(text)
    if options.out:
        with open(options.out, "w", encoding="utf-8") as file:
            file.write("# Speed of graph and trace_merge\n\nMade by `results/measured/graph_speed.py build/meshwork --out "
                       f"results/measured/graph_speed.md`, {time.strftime('%Y-%m-%d', time.gmtime())}, "
                       f"{cpu_model()}, one core; {GOALS}\n\n{text}")


def cpu_model():
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return "unknown CPU"


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    main()
