"""Makes every_dtype.safetensors with PyTorch and the reference writer: every dtype that both know, empty tensors, a scalar,
awkward names. For the small float types it holds all 256 codes and, as f32, what PyTorch says they mean.

    python3 make_every_dtype.py write FILE      # made with torch 2.11, safetensors 0.8
    python3 make_every_dtype.py check FILE      # 0 if FILE holds exactly these tensors, dtypes, shapes and bits
    python3 make_every_dtype.py same FILE FILE  # 0 if the reference reader finds the same in both
"""

import sys

import torch
from safetensors import safe_open
from safetensors.torch import save_file

SMALL = {
    "f8_e4m3": torch.float8_e4m3fn,
    "f8_e5m2": torch.float8_e5m2,
    "f8_e4m3fnuz": torch.float8_e4m3fnuz,
    "f8_e5m2fnuz": torch.float8_e5m2fnuz,
    "f8_e8m0": torch.float8_e8m0fnu,
}
PLAIN = {
    "f32": torch.float32, "f64": torch.float64, "f16": torch.float16, "bf16": torch.bfloat16,
    "i64": torch.int64, "i32": torch.int32, "i16": torch.int16, "i8": torch.int8,
    "u64": torch.uint64, "u32": torch.uint32, "u16": torch.uint16, "u8": torch.uint8,
    "c64": torch.complex64,
}


def tensors():
    made = {}
    random = torch.Generator().manual_seed(3)
    for name, dtype in SMALL.items():
        codes = torch.arange(256, dtype=torch.int16).to(torch.uint8).view(dtype).reshape(16, 16)
        made[name] = codes
        made[name + ".value"] = codes.to(torch.float32)
    for name, dtype in PLAIN.items():
        size = torch.empty(0, dtype=dtype).element_size()
        raw = torch.randint(0, 256, (3, 5, size), dtype=torch.uint8, generator=random)
        made[name] = raw.view(dtype).reshape(3, 5)
    made["bool"] = torch.tensor([True, False, True, True])
    made["scalar"] = torch.tensor(-2.5)
    made["empty"] = torch.empty(0, 7)
    made["empty too"] = torch.empty(3, 0, 2, dtype=torch.uint8)
    made["ranks/of.eight"] = torch.arange(2.0).reshape(1, 1, 1, 2, 1, 1, 1, 1)
    made['quote" back\\slash, new\nline, tab\t, \u00e4\u4e2d'] = torch.tensor([1, 2, 3])
    return made


def differences(found, expected):
    """found, expected: name -> tensor."""
    if set(found) != set(expected):
        yield f"names differ: {set(found) ^ set(expected)}"
        return
    for name, want in expected.items():
        have = found[name]
        same = have.dtype == want.dtype and have.shape == want.shape
        if same and want.numel() > 0:
            flat = [t.contiguous().reshape(-1).view(torch.uint8) for t in (have, want)]
            same = torch.equal(*flat)
        if not same:
            yield f"{name!r} differs: {have.dtype} {tuple(have.shape)}, expected {want.dtype} {tuple(want.shape)}"


def read(path):
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()


def main(verb, *paths):
    if verb == "write":
        save_file(tensors(), paths[0], metadata={"made by": "make_every_dtype.py \u2713"})
        return 0
    if verb == "check":
        problems = list(differences(read(paths[0])[0], tensors()))
    elif verb == "same":
        (found, found_metadata), (expected, expected_metadata) = read(paths[0]), read(paths[1])
        problems = list(differences(found, expected))
        if found_metadata != expected_metadata:
            problems.append(f"metadata: {found_metadata}, expected {expected_metadata}")
    else:
        problems = [__doc__]
    print("\n".join(problems))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
