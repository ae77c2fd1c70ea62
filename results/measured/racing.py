"""What the races against PyTorch on GPUs share: running both programs, reading clocks, medians and their spread."""
import json, os, statistics, subprocess, sys

ENVIRONMENT = dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1", NCCL_NVLS_ENABLE="0")


def run(words, extra=None, limit_s=240):
    """Its stdout; a failure is told on stderr."""
    done = subprocess.run(words, env=dict(ENVIRONMENT, **(extra or {})), capture_output=True, text=True, timeout=limit_s)
    if done.returncode != 0:
        print("FAILED", " ".join(words), done.returncode, done.stdout[-1500:], done.stderr[-3000:], file=sys.stderr, flush=True)
    return done.stdout


def torchrun(gpus, words):
    return [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(gpus)] + words


def run_ours(gpus, words):
    """The document of --json, or None, and the command."""
    words = ["mpirun", "-n", str(gpus), "--bind-to", "none"] + words + ["--json"]
    text = run(words)
    try:
        return json.loads(text), " ".join(words)
    except ValueError:
        print("no JSON:", text[-500:], file=sys.stderr, flush=True)
        return None, " ".join(words)


def clocks():
    query = "--query-gpu=clocks.sm,clocks.mem,power.draw,temperature.gpu,clocks_event_reasons.active"
    return run(["nvidia-smi", query, "--format=csv,noheader"]).strip().replace("\n", " | ")


def span(result, measurement, name="total"):
    """A span's record in a result, or None."""
    for m in result["measurements"]:
        if m["name"] == measurement:
            for s in m["spans"]:
                if s["name"] == name:
                    return s
    return None


def median_ms(result, measurement, name="total"):
    found = span(result, measurement, name)
    return 1e3 * found["statistics"]["median"] if found else float("nan")


def spread(values, digits=2):
    """Median (smallest-largest)."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"
