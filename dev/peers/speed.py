"""speed.py [--pairs N] [--results FILE] [CELL...]: a training step of gpt beside the same step in PyTorch, alternating, on the same number of threads.

Prints tokens/s of both, the ratio of each pair and the median of ratios, and their geometric mean. Needs torch and ./gpt.
The PyTorch side is a plain GPT-2 with scaled_dot_product_attention and fused AdamW, two threads, spinning (OMP_WAIT_POLICY=active); bf16 is autocast.
A CELL is B x T as in 4x256; none: all four. --pairs: how often both sides alternate (5).
--results: fp32 and bf16, PyTorch eager and compiled, the better one counts; each cell is kept in build/peers.json as it is done, and FILE is written as a
table of all cells kept there, and a shorter one into README.md between its marks. A row that this gpt refuses says "not built".
Without --results: fp32, eager; ends with exit code 1 if the geometric mean is under 0.6 or one cell is under 0.5.
"""
import json
import math
import os
import statistics
import subprocess
import sys
import time

CELLS = [("gpt2-124M", 4, 64, 12, 12, 768, 50304), ("gpt2-124M", 4, 256, 12, 12, 768, 50304), ("gpt2-124M", 8, 512, 12, 12, 768, 50304), ("tiny", 12, 64, 4, 4, 128, 65)]


def torch_side(B, T, L, H, C, V, steps, precision="fp32", how="eager"):
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
    run = torch.compile(model) if how == "compiled" else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    ids, targets = torch.randint(V, (B, T)), torch.randint(V, (B, T))
    times = []
    for _ in range(steps + 1 + (how == "compiled")):
        start = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = run(ids, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        times.append(time.perf_counter() - start)
    print(B * T / statistics.median(times[-steps:]))


ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith("OPENBLAS")} | {"OMP_WAIT_POLICY": "active", "OMP_NUM_THREADS": "2"}
KEPT = "build/peers.json"
MARKS = "<!-- make bench-peers writes this table -->", "<!-- to here -->"


def ours(cell, steps, precision):
    """The bench's figures, or None where this gpt has no such kernels."""
    name, B, T, V = cell[0], cell[1], cell[2], cell[6]
    command = ["./gpt", "bench", "train", "--device", "cpu", "--model", name, "--batch", str(B), "--context", str(T), "--vocab", str(V), "--steps", str(steps), "--precision", precision, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)
    if done.returncode in (2, 3) and precision == "bf16":
        return None
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def theirs(cell, steps, precision, how):
    """Tokens/s, or 0 where PyTorch cannot (no compiler for its generated code)."""
    done = subprocess.run([sys.executable, __file__, "--torch", *map(str, (*cell[1:], steps, precision, how))], capture_output=True, text=True, env=ENVIRONMENT)
    if done.returncode and how == "eager":
        sys.exit(done.stderr)
    return float(done.stdout) if done.returncode == 0 else 0.0


def alternate(cell, pairs, precision, hows):
    """Pairs of (our figures, PyTorch's tokens/s by how), or None."""
    steps = 100 if cell[5] == 128 else (2 if cell[1] * cell[2] > 2000 else 4)
    result = []
    for _ in range(pairs):
        mine = ours(cell, steps, precision)
        if mine is None:
            return None
        other = {how: theirs(cell, steps, precision, how) for how in hows}
        result.append((mine, other))
        print(f"{cell[0]} B {cell[1]} T {cell[2]} {precision}: gpt {mine['tokens_per_s']:.0f} tokens/s ({100 * mine['fraction_of_peak']:.0f}% of {mine['peak_gflops']:.0f} GFLOP/s), PyTorch "
              + ", ".join(f"{how} {rate:.0f}" for how, rate in other.items()) + f", ratio {mine['tokens_per_s'] / max(other.values()):.2f}", flush=True)
    return result


def ratio(pair):
    return pair[0]["tokens_per_s"] / max(pair[1].values())


def processor():
    with open("/proc/cpuinfo") as f:
        lines = f.read().split("\n")
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "a processor without a name")
    flags = next((line for line in lines if line.startswith("flags")), "").split()
    sets = [word for word in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if word in flags]
    return f"{name}, {os.cpu_count()} logical processors, {', '.join(sets)}; two threads on each side"


def write_results(path, kept):
    rows = []
    for name, B, T, *_ in CELLS:
        for precision in ("fp32", "bf16"):
            key = f"{name} {B}x{T} {precision}"
            if key not in kept:
                rows.append(f"| {name} | {B} | {T} | {precision} | not measured | | | | | |")
            elif kept[key] is None:
                rows.append(f"| {name} | {B} | {T} | {precision} | not built | | | | | |")
            else:
                pairs = kept[key]
                middle = lambda f: statistics.median(map(f, pairs))
                ratios = [ratio(pair) for pair in pairs]
                rows.append(f"| {name} | {B} | {T} | {precision} | {middle(lambda p: p[0]['tokens_per_s']):.0f} | {middle(lambda p: p[1]['eager']):.0f} | {middle(lambda p: p[1].get('compiled', 0)):.0f} "
                            f"| **{statistics.median(ratios):.2f}** | {', '.join(f'{r:.2f}' for r in ratios)} | {100 * middle(lambda p: p[0]['fraction_of_peak']):.0f} % of {middle(lambda p: p[0]['peak_gflops']):.0f}, {middle(lambda p: p[0]['bandwidth_gb_per_s']):.0f} GB/s |")
    with open(path, "w") as f:
        f.write("# A training step beside PyTorch, on a CPU\n\nWritten by `make bench-peers`; not edited by hand. Tokens/s, medians; both sides by turns, a ratio for each pair (to the better of eager and compiled; 0: "
                "it could not be compiled), then the median of ratios.\nA whole step is counted: forward, backward, clipping, AdamW. PyTorch 2.13: scaled_dot_product_attention, fused AdamW, active waiting; bf16 is its autocast. "
                "Peak and memory speed are measured beside our steps, on the same threads.\n\n"
                f"Machine: {kept.get('machine', 'unknown')}; {kept.get('day', '')}.\n\n"
                "| model | B | T | precision | gpt | PyTorch eager | compiled | ratio | of each pair | gpt's share of the peak (GFLOP/s), memory |\n|---|---|---|---|---|---|---|---|---|---|\n" + "\n".join(rows) + "\n")


def write_readme(kept):
    rows = []
    for name, B, T, *_ in CELLS:
        for precision in ("fp32", "bf16"):
            pairs = kept.get(f"{name} {B}x{T} {precision}")
            if pairs:
                ours, theirs = (statistics.median(rates) for rates in ([p[0]["tokens_per_s"] for p in pairs], [max(p[1].values()) for p in pairs]))
                rows.append(f"| {name} | {B} | {T} | {precision} | {ours:.0f} | {theirs:.0f} | {statistics.median(map(ratio, pairs)):.2f} |")
    with open("README.md") as f:
        before, rest = f.read().split(MARKS[0])
    with open("README.md", "w") as f:
        f.write(before + MARKS[0] + "\n| model | B | T | precision | gpt | PyTorch 2.13 | ratio |\n|---|---|---|---|---|---|---|\n" + "\n".join(rows) + "\n" + MARKS[1] + rest.split(MARKS[1])[1])


def main():
    words = sys.argv[1:]
    after = lambda flag, otherwise: words[words.index(flag) + 1] if flag in words else otherwise
    pairs, results = int(after("--pairs", 5)), after("--results", None)
    wanted = [word for word in words if "x" in word and word != results]
    cells = [cell for cell in CELLS if not wanted or f"{cell[1]}x{cell[2]}" in wanted]
    if results:
        kept = json.load(open(KEPT)) if os.path.exists(KEPT) else {}
        for cell in cells:
            for precision in ("fp32", "bf16"):
                kept[f"{cell[0]} {cell[1]}x{cell[2]} {precision}"] = alternate(cell, pairs, precision, ("eager", "compiled"))
                kept["machine"], kept["day"] = processor(), time.strftime("%Y-%m-%d")
                json.dump(kept, open(KEPT, "w"))
                write_results(results, kept)
                write_readme(kept)
        return
    ratios = [statistics.median(map(ratio, alternate(cell, pairs, "fp32", ("eager",)))) for cell in cells]
    mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
    print("medians of ratios: " + ", ".join(f"{r:.2f}" for r in ratios) + f"; geometric mean {mean:.2f} (wanted 0.6, none under 0.5)")
    sys.exit(0 if mean >= 0.6 and min(ratios) >= 0.5 else 1)


if len(sys.argv) > 1 and sys.argv[1] == "--torch":
    torch_side(*map(int, sys.argv[2:9]), *sys.argv[9:])
else:
    main()
