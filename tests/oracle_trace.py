"""Opens a trace and what trace_merge made of it in Holistic Trace Analysis (PyPI: HolisticTraceAnalysis); both must give
the same tables, and plain json must read both to the same events but for args.inductor.

    oracle_trace.py trace.json merged.json
"""
import gzip
import json
import os
import shutil
import sys
import tempfile


def tables(path):
    from hta.trace_analysis import TraceAnalysis

    with tempfile.TemporaryDirectory() as folder:
        copy = os.path.join(folder, "rank0.json.gz")  # HTA wants the rank within the file
        with open(path, encoding="utf-8") as file:
            trace = json.load(file)
        trace["distributedInfo"] = {"rank": 0, "world_size": 1, "backend": "nccl"}
        with gzip.open(copy, "wt") as file:
            json.dump(trace, file)
        analysis = TraceAnalysis(trace_files={0: copy}, trace_dir=folder)
        kinds, kernels = analysis.get_gpu_kernel_breakdown(visualize=False)
        idle = analysis.get_temporal_breakdown(visualize=False)
        return [table.to_csv() for table in (kinds, kernels, idle)]


def main():
    original, merged = sys.argv[1:]
    with open(original, encoding="utf-8") as a, open(merged, encoding="utf-8") as b:
        one, two = json.load(a), json.load(b)
    added = sum(event.get("args", {}).pop("inductor", None) is not None for event in two["traceEvents"])
    if one != two:
        sys.exit("the merged trace differs in more than args.inductor")
    if added == 0:
        sys.exit("nothing was added")
    if tables(original) != tables(merged):
        sys.exit("Holistic Trace Analysis gives other tables for the merged trace")
    print(f"{added} events have args.inductor; Holistic Trace Analysis gives the same tables")


main()
