"""Whether vLLM loads and runs what `meshwork quantize` writes. On a machine with a GPU and vLLM 0.20.2:

  python3 results/measured/checkpoint_vllm.py --program build/meshwork -o results/measured/checkpoint_vllm.md

A Qwen2-MoE of random weights with dimensions of 256 and more, in bf16 and quantised to each scheme. Each folder is loaded in a process of its
own, which prints the log-probabilities of 16 greedy tokens after one prompt of token ids. Verdict: it generates, and the mean difference of the
first token's log-probability from bf16's is below 0.5 (a wrong layout of codes or scales gives noise of several).
"""
import argparse, json, os, subprocess, sys, tempfile, time

SCHEMES = ("FP8_DYNAMIC", "W4A16", "NVFP4A16")
LIMIT_S = 300
PROMPT = [(7 * i) % 300 for i in range(24)]


def make(folder):
    import torch
    from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

    torch.manual_seed(3)
    config = Qwen2MoeConfig(vocab_size=512, hidden_size=512, intermediate_size=512, num_hidden_layers=2, num_attention_heads=8, num_key_value_heads=8,
                            moe_intermediate_size=256, shared_expert_intermediate_size=512, num_experts=8, num_experts_per_tok=2, max_position_embeddings=256)
    Qwen2MoeForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)


def generate(folder):
    import vllm

    llm = vllm.LLM(folder, skip_tokenizer_init=True, enforce_eager=True, gpu_memory_utilization=0.15, max_model_len=128)
    out = llm.generate([{"prompt_token_ids": PROMPT}], vllm.SamplingParams(temperature=0, max_tokens=16, logprobs=5, detokenize=False))[0].outputs[0]
    print(json.dumps({"version": vllm.__version__, "tokens": list(out.token_ids), "logprobs": {str(k): v.logprob for k, v in out.logprobs[0].items()}}))


def start(folder):
    """A load takes most of a minute, so all run at once; a pipe of each would fill."""
    with open(folder + ".out", "w") as out, open(folder + ".err", "w") as err:
        return folder, subprocess.Popen([sys.executable, __file__, "--generate", folder], stdout=out, stderr=err, env=dict(os.environ, VLLM_ENABLE_V1_MULTIPROCESSING="0"))


def end(folder, job):
    try:
        job.wait(LIMIT_S)
    except subprocess.TimeoutExpired:
        job.kill()
    text, why = open(folder + ".out").read(), open(folder + ".err").read()
    lines = [line for line in text.splitlines() if line.startswith("{")]
    good = job.returncode == 0 and lines
    print(folder.split("/")[-1], "generates" if good else f"exit {job.returncode}: {why[-1500:]}", flush=True)
    return (json.loads(lines[-1]), "") if good else (None, " ".join(why.split())[-200:])


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--generate")
    p.add_argument("--program", default="build/meshwork")
    p.add_argument("-o")
    a = p.parse_args()
    if a.generate:
        return generate(a.generate)
    with tempfile.TemporaryDirectory() as work:
        make(f"{work}/source")
        for scheme in SCHEMES:
            subprocess.run([a.program, "quantize", "--model", f"{work}/source", "--out", f"{work}/{scheme}", "--recipe", scheme], check=True)
        jobs = [start(f"{work}/{name}") for name in ("source",) + SCHEMES]
        (plain, why), *quantised = [end(*job) for job in jobs]
        rows = [("bf16", "generates" if plain else why, "", "")]
        for scheme, (ours, why) in zip(SCHEMES, quantised):
            both = [k for k in ours["logprobs"] if k in plain["logprobs"]] if ours and plain else []
            worst = sum(abs(ours["logprobs"][k] - plain["logprobs"][k]) for k in both) / len(both) if both else float("nan")
            rows.append((scheme, "generates" if ours else why, f"{worst:.3f}", "good" if ours and worst < 0.5 else "BAD"))
    with open(a.o, "w") as f:
        f.write(f"# Files made here in vLLM\n\n{time.strftime('%Y-%m-%d', time.gmtime())}; vLLM {plain['version'] if plain else '?'}.\n\n"
                "| scheme | vLLM | difference of log-probabilities from bf16 | verdict |\n|---|---|---|---|\n")
        for row in rows:
            f.write("| " + " | ".join(row) + " |\n")
        f.write("\n    python3 results/measured/checkpoint_vllm.py --program build/meshwork -o results/measured/checkpoint_vllm.md\n")
    return 0


main()
