"""quantize and convert from folder to folder beside cp + fsync of the same bytes, and beside torchao, alternating in one run.

  python3 results/measured/checkpoint_speed.py --program build/meshwork --folder BIG_EMPTY_FOLDER -o results/measured/checkpoint_speed.md
  python3 results/measured/checkpoint_speed.py --make DIR --megabytes 28632        # only the synthetic model: Qwen1.5-MoE-A2.7B's names and shapes

A copy reads and writes every byte of the source once. quantize reads as much and writes less, so two ratios are given: of
the bytes that are read and written in a second, which is what 60 % refers to, and of the time.
"""
import argparse, json, os, shutil, statistics, subprocess, sys, time

import numpy as np

HIDDEN, INNER, SHARED = 2048, 1408, 5632
ENVIRONMENT = dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1", OMPI_MCA_rmaps_base_oversubscribe="1",
                   OMPI_MCA_mpi_yield_when_idle="1", OMPI_MCA_btl_vader_single_copy_mechanism="none")


# ---- a model folder of any size ----

def shapes_of(megabytes):
    """Names and shapes of a Qwen1.5-MoE: as many layers and experts as fill the bytes; 28632 MB are the real one's."""
    full = megabytes >= 28000
    vocabulary, shared = (151936 if full else 1024), (SHARED if megabytes >= 500 else INNER)
    attention = 4 * HIDDEN * HIDDEN * 2
    one = 3 * HIDDEN * INNER * 2
    layers = 24 if full else max(1, round(megabytes / 1150))
    left = megabytes * 1e6 - 2 * vocabulary * HIDDEN * 2 - layers * (attention + 3 * HIDDEN * shared * 2)
    experts = 60 if full else max(1, round(left / layers / one))
    shapes = {"model.embed_tokens.weight": (vocabulary, HIDDEN), "lm_head.weight": (vocabulary, HIDDEN), "model.norm.weight": (HIDDEN,)}
    for layer in range(layers):
        p = f"model.layers.{layer}."
        shapes[p + "input_layernorm.weight"] = shapes[p + "post_attention_layernorm.weight"] = (HIDDEN,)
        for x in "qkv":
            shapes[p + f"self_attn.{x}_proj.weight"], shapes[p + f"self_attn.{x}_proj.bias"] = (HIDDEN, HIDDEN), (HIDDEN,)
        shapes[p + "self_attn.o_proj.weight"] = (HIDDEN, HIDDEN)
        shapes[p + "mlp.gate.weight"], shapes[p + "mlp.shared_expert_gate.weight"] = (experts, HIDDEN), (1, HIDDEN)
        for name, inner in [("shared_expert", shared)] + [(f"experts.{e}", INNER) for e in range(experts)]:
            shapes[p + f"mlp.{name}.gate_proj.weight"] = shapes[p + f"mlp.{name}.up_proj.weight"] = (inner, HIDDEN)
            shapes[p + f"mlp.{name}.down_proj.weight"] = (HIDDEN, inner)
    config = {"architectures": ["Qwen2MoeForCausalLM"], "model_type": "qwen2_moe", "hidden_size": HIDDEN, "num_hidden_layers": layers,
              "num_attention_heads": 16, "num_key_value_heads": 16, "moe_intermediate_size": INNER, "shared_expert_intermediate_size": shared,
              "num_experts": experts, "num_experts_per_tok": min(4, experts), "vocab_size": vocabulary, "dtype": "bfloat16", "tie_word_embeddings": False}
    return shapes, config


def values(random, count):
    """bf16 with random sign and mantissa and 8 exponents below 1: no two rows alike, nothing that compresses."""
    bits = np.frombuffer(random.bytes(2 * count), np.uint16)
    return (bits & 0x83FF) + np.uint16(0x3C00)


def make(folder, megabytes, shard_bytes=5_000_000_000):
    shapes, config = shapes_of(megabytes)
    os.makedirs(folder)
    with open(f"{folder}/config.json", "w") as f:
        json.dump(config, f, indent=2)
    shards, filled = [[]], 0
    for name in sorted(shapes):
        size = 2 * int(np.prod(shapes[name]))
        if filled and filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append((name, size))
        filled += size
    random, where = np.random.default_rng(1), {}
    for index, shard in enumerate(shards):
        file = "model.safetensors" if len(shards) == 1 else f"model-{index + 1:05}-of-{len(shards):05}.safetensors"
        header, at = {"__metadata__": {"format": "pt"}}, 0
        for name, size in shard:
            header[name] = {"dtype": "BF16", "shape": list(shapes[name]), "data_offsets": [at, at + size]}
            where[name], at = file, at + size
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with open(f"{folder}/{file}", "wb") as f:
            f.write(len(text).to_bytes(8, "little") + text)
            for name, size in shard:
                f.write(values(random, size // 2).tobytes())
            f.flush()
            os.fsync(f.fileno())
    if len(shards) > 1:
        with open(f"{folder}/model.safetensors.index.json", "w") as f:
            json.dump({"metadata": {"total_size": sum(size for shard in shards for _, size in shard)}, "weight_map": where}, f)
if __name__ == "__main__":
    make(sys.argv[1], int(sys.argv[2]))
