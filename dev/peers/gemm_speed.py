"""gemm_speed.py [--rounds N] [--precision fp32|bf16] [B x T...]: the matrix products of a step of GPT-2 124M beside PyTorch's, by turns.

PyTorch multiplies in this very process: MKL's sgemm in fp32, oneDNN in bf16, on two threads that spin between products, but not for ever: they would
hold a core while ours are timed. `gpt bench gemm` counts its epilogues (bias, GELU, adding up the weight's gradient in fp32), PyTorch's products are bare.
All three directions: x w^T, dout w, dout^T x. Step-weighted: each product as often as a step has it, arithmetic over time. Prints ours over theirs for
every product and direction, and for the whole; exit code 1 where the whole is under 1.0. Needs torch and ./gpt: `make bench-peers-gemm`.
"""
import json
import os
import statistics
import subprocess
import sys
import time

THREADS = 2
PATIENCE = {"GOMP_SPINCOUNT": "3000000", "KMP_BLOCKTIME": "10"}   # some ms
os.environ.pop("OMP_WAIT_POLICY", None)
os.environ.update(PATIENCE, OMP_NUM_THREADS=str(THREADS))   # before torch is loaded
import torch

TIMES = {"qkv": 12, "projection": 12, "feed-forward": 12, "down": 12, "head": 1}   # of a step


def seconds(product):
    """The median of as many runs as half a second holds, three at least."""
    product()
    times = []
    while len(times) < 3 or sum(times) < 0.5:
        start = time.perf_counter()
        product()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def theirs(figure, precision):
    """GFLOP/s of the product that `figure` describes."""
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    rows, width, out = figure["rows"], figure["in"], figure["out"]
    x, w, dout = torch.randn(rows, width, dtype=kind), torch.randn(out, width, dtype=kind), torch.randn(rows, out, dtype=kind)
    products = {"forward": lambda: torch.mm(x, w.T), "d input": lambda: torch.mm(dout, w), "d weight": lambda: torch.mm(dout.T, x)}
    flops = 2.0 * rows * width * out
    return 1e-9 * flops / seconds(products[figure["direction"]])


def ours(precision, batch, context):
    command = ["./gpt", "bench", "gemm", "--device", "cpu", "--model", "gpt2-124M", "--batch", str(batch), "--context", str(context), "--threads", str(THREADS), "--precision", precision, "--json"]
    env = {k: v for k, v in os.environ.items() if k not in PATIENCE}
    time.sleep(0.2)   # until PyTorch's threads sleep
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True, env=env).stdout.splitlines()[-1])


def whole(figures, rates):
    work = [TIMES[f["name"]] * f["rows"] * f["in"] * f["out"] for f in figures]
    return sum(work) / sum(w / r for w, r in zip(work, rates))


def main():
    words = sys.argv[1:]
    after = lambda flag, otherwise: words[words.index(flag) + 1] if flag in words else otherwise
    rounds, sizes = int(after("--rounds", 3)), [w for w in words if w.replace("x", "", 1).isdigit() and "x" in w]
    precisions = [after("--precision", "")] if "--precision" in words else ["fp32", "bf16"]
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    print(f"PyTorch {torch.__version__}: MKL {torch.backends.mkl.is_available()}, oneDNN {torch.backends.mkldnn.is_available()}; {torch.backends.cpu.get_cpu_capability()}", flush=True)
    worst = 9.0
    for size in sizes or ["4x64", "4x256"]:
        batch, context = map(int, size.split("x"))
        for precision in precisions:
            ratios, wholes, peaks = {}, [], []
            for _ in range(rounds):
                said = ours(precision, batch, context)
                figures = said["figures"]
                mine, other = [f["gflops"] for f in figures], [theirs(f, precision) for f in figures]
                for f, a, b in zip(figures, mine, other):
                    ratios.setdefault((f["name"], f["direction"]), []).append(a / b)
                wholes.append((whole(figures, mine), whole(figures, other)))
                peaks.append(said["peak_gflops"])
            print(f"\n| {batch * context} rows, {precision} | forward | d input | d weight |\n|---|---|---|---|")
            for name in TIMES:
                print(f"| {name} | " + " | ".join(f"{statistics.median(ratios[name, way]):.2f}" for way in ("forward", "d input", "d weight")) + " |")
            ratio = statistics.median(a / b for a, b in wholes)
            a, b = (statistics.median(w[i] for w in wholes) for i in (0, 1))
            print(f"\nthe whole: gpt {a:.0f}, PyTorch {b:.0f} GFLOP/s of {statistics.median(peaks):.0f}; median of ratios {ratio:.2f} ({', '.join(f'{x / y:.2f}' for x, y in wholes)})", flush=True)
            worst = min(worst, ratio)
    sys.exit(0 if worst >= 1 else 1)


main()
