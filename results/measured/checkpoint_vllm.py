"""Whether vLLM loads and runs what `meshwork quantize` writes. On a machine with a GPU and vLLM 0.20.2:

  python3 results/measured/checkpoint_vllm.py --program build/meshwork -o results/measured/checkpoint_vllm.md

A Qwen2-MoE of random weights with dimensions of 256 and more, in bf16 and quantised to each scheme. Each folder is loaded in a process of its
own, which prints 16 greedy tokens and the log-probability of every token of the prompt. Verdict: it generates, and the mean difference of these
log-probabilities from bf16's is below a quarter of the control's: W4A16 with the codes of each weight in reverse order.
"""
import argparse, json, os, shutil, subprocess, sys, tempfile, time

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


def spoil(folder, target):
    """The folder with the codes of every weight in reverse order: loads as well, means something else."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(folder, target)
    tensors = load_file(f"{target}/model.safetensors")
    for name in tensors:
        if name.endswith("weight_packed"):
            tensors[name] = tensors[name].flatten().flip(0).reshape(tensors[name].shape).contiguous()
    save_file(tensors, f"{target}/model.safetensors", metadata={"format": "pt"})


def generate(folder):
    import vllm

    llm = vllm.LLM(folder, skip_tokenizer_init=True, enforce_eager=True, gpu_memory_utilization=0.15, kv_cache_memory_bytes=1 << 28, max_model_len=128)
    out = llm.generate([{"prompt_token_ids": PROMPT}], vllm.SamplingParams(temperature=0, max_tokens=16, prompt_logprobs=0, detokenize=False))[0]
    given = [at[token].logprob for token, at in zip(PROMPT[1:], out.prompt_logprobs[1:])]
    print(json.dumps({"version": vllm.__version__, "tokens": list(out.outputs[0].token_ids), "logprobs": given}))


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


def difference(ours, plain):
    """Mean over the prompt's tokens."""
    pairs = list(zip(ours["logprobs"], plain["logprobs"])) if ours and plain else []
    return sum(abs(x - y) for x, y in pairs) / len(pairs) if pairs else float("nan")


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
        spoil(f"{work}/W4A16", f"{work}/control")
        jobs = [start(f"{work}/{name}") for name in ("source",) + SCHEMES + ("control",)]
        (plain, why), *quantised = [end(*job) for job in jobs]
        rows = [("bf16", "generates" if plain else why, "", "")]
        worst = [difference(ours, plain) for ours, _ in quantised]
        for scheme, (ours, why), off in zip(SCHEMES + ("control",), quantised, worst):
            verdict = "wrong on purpose" if scheme == "control" else "good" if off < worst[-1] / 4 else "BAD"
            rows.append((scheme, "generates" if ours else why, f"{off:.3f}", verdict))
    with open(a.o, "w") as f:
        f.write(f"# Files made here in vLLM\n\n{time.strftime('%Y-%m-%d', time.gmtime())}; vLLM {plain['version'] if plain else '?'}.\n\n"
                "| scheme | vLLM | difference of log-probabilities from bf16 | verdict |\n|---|---|---|---|\n")
        for row in rows:
            f.write("| " + " | ".join(row) + " |\n")
        f.write("\n    python3 results/measured/checkpoint_vllm.py --program build/meshwork -o results/measured/checkpoint_vllm.md\n")
    return 0


main()
