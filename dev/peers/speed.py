"""speed.py [--pairs N] [CELL...]: a training step of gpt beside the same step in PyTorch, alternating, fp32, on the same number of threads.

Prints tokens/s of both, the ratio of each pair and the median of ratios, and their geometric mean. Needs torch and ./gpt.
The PyTorch side is a plain GPT-2 with scaled_dot_product_attention and fused AdamW, eager, two threads, spinning (OMP_WAIT_POLICY=active).
A CELL is B x T as in 4x256; none: all four. --pairs: how often both sides alternate (5).
Ends with exit code 1 if the geometric mean is under 0.6 or one cell is under 0.5.
"""
import json
import math
import os
import statistics
import subprocess
import sys
import time

CELLS = [("gpt2-124M", 4, 64, 12, 12, 768, 50304), ("gpt2-124M", 4, 256, 12, 12, 768, 50304), ("gpt2-124M", 8, 512, 12, 12, 768, 50304), ("tiny", 12, 64, 4, 4, 128, 65)]


def torch_side(B, T, L, H, C, V, steps):
    import torch
    import torch.nn as nn
    import torch.nn.functional as F
    torch.manual_seed(0)

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.n1, self.n2 = nn.LayerNorm(C), nn.LayerNorm(C)
            self.qkv, self.proj, self.fc, self.down = nn.Linear(C, 3 * C), nn.Linear(C, C), nn.Linear(C, 4 * C), nn.Linear(4 * C, C)

        def forward(self, x):
            q, k, v = (t.view(B, T, H, C // H).transpose(1, 2) for t in self.qkv(self.n1(x)).split(C, 2))
            x = x + self.proj(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(B, T, C))
            return x + self.down(F.gelu(self.fc(self.n2(x)), approximate="tanh"))

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.wte, self.wpe = nn.Embedding(V, C), nn.Embedding(T, C)
            self.blocks, self.norm = nn.ModuleList(Block() for _ in range(L)), nn.LayerNorm(C)

        def forward(self, ids, targets):
            x = self.wte(ids) + self.wpe.weight
            for block in self.blocks:
                x = block(x)
            return F.cross_entropy((self.norm(x) @ self.wte.weight.T).view(-1, V), targets.view(-1))

    model = Model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    ids, targets = torch.randint(V, (B, T)), torch.randint(V, (B, T))
    times = []
    for _ in range(steps + 1):
        start = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        model(ids, targets).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        times.append(time.perf_counter() - start)
    print(B * T / statistics.median(times[1:]))


def main():
    words = sys.argv[1:]
    pairs = int(words[words.index("--pairs") + 1]) if "--pairs" in words else 5
    wanted = [word for word in words if "x" in word]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("OPENBLAS")} | {"OMP_WAIT_POLICY": "active", "OMP_NUM_THREADS": "2"}
    ratios = []
    for name, B, T, L, H, C, V in CELLS:
        if wanted and f"{B}x{T}" not in wanted:
            continue
        steps = 100 if C == 128 else (2 if B * T > 2000 else 4)
        cell = []
        for _ in range(pairs):
            ours = json.loads(subprocess.run(["./gpt", "bench", "train", "--model", name, "--batch", str(B), "--context", str(T), "--vocab", str(V), "--steps", str(steps), "--json"],
                                             check=True, capture_output=True, text=True, env=environment).stdout.splitlines()[-1])
            theirs = float(subprocess.run([sys.executable, __file__, "--torch", *map(str, (B, T, L, H, C, V, steps))], check=True, capture_output=True, text=True, env=environment).stdout)
            cell.append(ours["tokens_per_s"] / theirs)
            print(f"{name} B {B} T {T}: gpt {ours['tokens_per_s']:.0f} tokens/s ({100 * ours['fraction_of_peak']:.0f}% of {ours['peak_gflops']:.0f} GFLOP/s), PyTorch {theirs:.0f}, ratio {cell[-1]:.2f}", flush=True)
        ratios.append(statistics.median(cell))
    mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
    print("medians of ratios: " + ", ".join(f"{r:.2f}" for r in ratios) + f"; geometric mean {mean:.2f} (wanted 0.6, none under 0.5)")
    sys.exit(0 if mean >= 0.6 and min(ratios) >= 0.5 else 1)


if len(sys.argv) > 1 and sys.argv[1] == "--torch":
    torch_side(*map(int, sys.argv[2:]))
else:
    main()
