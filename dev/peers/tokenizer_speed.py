"""tokenizer_speed.py [--rounds N] [--train TEXT] TEXT...: encode and decode beside gigatoken and tiktoken, training beside rustbpe and
Hugging Face's tokenizers: the same text, the same vocabulary (GPT-2's), one thread for encoding, alternating; medians of ratios.

Every program gets the whole text as bytes in memory and returns ids in memory. first: a tokenizer that has seen nothing yet; again: the
same text once more. Their tokenizers are built anew for each first pass (not timed), as ours is. Prints a Markdown table.
Without TEXT: three texts made of what this machine has: programs, manuals in English, manuals in other languages, and 50 MB of all.
--train TEXT: also trains 32,768 entries on TEXT with two threads, pattern gpt4 (rustbpe knows that one). Needs ./gpt, gigatoken, tiktoken, rustbpe, tokenizers.
Two threads: `gpt data build` of the last text, and of a long one where the start no longer counts (200 MB if the machine has them), whole commands, beside a probe: two of them with one thread each at once, which is what two cores give where nothing
is shared but the machine. --threads-only TEXT: only that; needs ./gpt and no peer.
"""
import argparse
import gzip
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
GPT = os.path.join(ROOT, "gpt")
VOCAB = 32768


def timed(f):
    start = time.perf_counter()
    result = f()
    return result, time.perf_counter() - start


def ours(path):
    out = subprocess.run([GPT, "bench", "tokenizer", "--tokenizer", "gpt2", path, "--steps", "1", "--json"], check=True, capture_output=True, text=True).stdout
    r = json.loads(out.splitlines()[-1])
    return {"first": r["encode_cold_mb_per_s"], "again": r["encode_mb_per_s"], "decode": r["decode_mb_per_s"]}


def gigatoken_side(vocabulary, text):
    import gigatoken
    t, size = gigatoken.Tokenizer.from_json(vocabulary), len(text) / 1e6
    ids, first = timed(lambda: t.encode(text))
    ids, again = timed(lambda: t.encode(text))
    back, decode = timed(lambda: t.decode(ids))
    assert back == text
    return {"first": size / first, "again": size / again, "decode": size / decode}, len(ids)


def tiktoken_side(vocabulary, text):
    import tiktoken
    alphabet = {chr(c): b for b, c in byte_alphabet().items()}
    model = json.loads(vocabulary)
    ranks = {bytes(alphabet[c] for c in token): i for token, i in model["model"]["vocab"].items() if not token.startswith("<|")}
    t = tiktoken.Encoding(name="x", pat_str=r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s", mergeable_ranks=ranks, special_tokens={})
    size, string = len(text) / 1e6, text.decode("utf-8")
    ids, first = timed(lambda: t.encode_ordinary(string))
    back, decode = timed(lambda: t.decode_bytes(ids))
    assert back == text
    return {"first": size / first, "again": size / first, "decode": size / decode}, len(ids)


def byte_alphabet():
    """GPT-2's visible character of every byte."""
    visible = [b for b in range(256) if 33 <= b <= 126 or 161 <= b <= 172 or b >= 174]
    hidden = [b for b in range(256) if b not in visible]
    return {**{b: b for b in visible}, **{b: 256 + i for i, b in enumerate(hidden)}}


def encode_table(path, vocabulary, rounds):
    text = open(path, "rb").read()
    sides = {"gigatoken": gigatoken_side, "tiktoken": tiktoken_side}
    got = {name: [] for name in ("gpt", *sides)}
    for r in range(rounds):
        got["gpt"].append(ours(path))
        for name, side in sides.items():
            if name == "tiktoken" and r > 0: continue   # ten times slower: once is enough
            speed, _ = side(vocabulary, text)
            got[name].append(speed)
    for what in ("first", "again", "decode"):
        mine = [g[what] for g in got["gpt"]]
        row = f"| {os.path.basename(path)}, {len(text) / 1e6:.1f} MB | {what} | {statistics.median(mine):.0f} |"
        for name in sides:
            theirs = [g[what] for g in got[name]]
            ratio = statistics.median(a / theirs[min(i, len(theirs) - 1)] for i, a in enumerate(mine))
            row += f" {statistics.median(theirs):.0f} ({ratio:.2f}) |"
        print(row, flush=True)


def train_table(path, rounds):
    import tokenizers
    from tokenizers import Regex, models, pre_tokenizers, trainers
    text = open(path, encoding="utf-8", errors="ignore", newline="").read()
    documents = text.split("\n\n")
    pattern = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"

    def run_ours():
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run([GPT, "tokenizer", "train", path, "--vocab", str(VOCAB), "--pattern", "gpt4", "--documents", "blank-line", "--out", os.path.join(folder, "t.json")], check=True, capture_output=True)

    def run_rustbpe():
        import rustbpe
        rustbpe.Tokenizer().train_from_iterator(iter(documents), VOCAB, pattern=pattern)

    def run_hf():
        t = tokenizers.Tokenizer(models.BPE())
        t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
        t.train_from_iterator(documents, trainers.BpeTrainer(vocab_size=VOCAB, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))

    sides = {"gpt": run_ours, "rustbpe": run_rustbpe, "tokenizers": run_hf}
    seconds = {name: [timed(run)[1] for _ in range(1)] for name, run in sides.items()}
    for _ in range(rounds - 1):
        for name, run in sides.items():
            seconds[name].append(timed(run)[1])
    mine = seconds.pop("gpt")
    print(f"\n| train {VOCAB} entries on {os.path.basename(path)}, two threads | {statistics.median(mine):.2f} s |", end="")
    for name, theirs in seconds.items():
        print(f" {name} {statistics.median(theirs):.2f} s ({statistics.median(a / b for a, b in zip(theirs, mine)):.2f} x ours) |", end="")
    print()


def threads_table(path, rounds):
    """Rounds of one thread, two threads, and the probe, one after the other; ratio: what two threads gain on one, divided by what the probe gains."""
    def builds(threads, programs):
        with tempfile.TemporaryDirectory() as folder:
            command = [GPT, "data", "build", path, "--tokenizer", "gpt2", "--threads", str(threads), "--out"]
            def run():
                running = [subprocess.Popen([*command, os.path.join(folder, str(i))], stdout=subprocess.DEVNULL) for i in range(programs)]
                if any([p.wait() for p in running]): sys.exit("gpt data build failed")
            return timed(run)[1]

    builds(1, 1)   # the text is read from memory in every round
    one, two, probe = [], [], []
    for _ in range(rounds):
        one.append(builds(1, 1))
        two.append(builds(2, 1))
        probe.append(builds(1, 2))
    gains = [a / b for a, b in zip(one, two)], [2 * a / b for a, b in zip(one, probe)]
    ratios = [a / b for a, b in zip(*gains)]
    ms = [1e3 * statistics.median(t) for t in (one, two, probe)]
    print(f"\n| gpt data build {os.path.basename(path)}, {rounds} rounds | one thread {ms[0]:.0f} ms | two {ms[1]:.0f} ms ({statistics.median(gains[0]):.2f} x) | "
          f"two programs at once {ms[2]:.0f} ms ({statistics.median(gains[1]):.2f} x) | two threads / probe {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) |", flush=True)


def gather(path, most, roots, endings):
    """The UTF-8 files below the roots, in the order of their names, up to `most` bytes; None if there is less than 1 MB."""
    size = 0
    with open(path, "wb") as out:
        for root in roots:
            for at, folders, names in os.walk(root):
                folders.sort()
                for name in sorted(names):
                    file = os.path.join(at, name)
                    if os.path.islink(file) or not name.endswith(endings): continue
                    try:
                        data = (gzip.open if name.endswith(".gz") else open)(file, "rb").read()
                        data.decode("utf-8")
                    except (OSError, EOFError, UnicodeDecodeError): continue
                    data = data[:most - size].decode("utf-8", errors="ignore").encode()
                    out.write(data)
                    size += len(data)
    if size >= 1_000_000: return path
    print(f"{os.path.basename(path)}: {size} bytes found, 1 MB is needed: left out", file=sys.stderr)


def texts_of_this_machine(folder):
    man, at = "/usr/share/man", lambda name: os.path.join(folder, name)
    languages = sorted(d for d in os.listdir(man) if not d.startswith("man")) if os.path.isdir(man) else []
    made = [gather(at("english.txt"), 20_000_000, [os.path.join(man, "man%d" % i) for i in range(1, 9)] + ["/usr/share/vim/vim90/doc"], (".gz", ".txt")),
            gather(at("languages.txt"), 20_000_000, [os.path.join(man, d) for d in languages], (".gz",)),
            gather(at("programs.txt"), 40_000_000, [os.path.dirname(os.__file__), sys.prefix, "/usr/include"], (".py", ".h", ".md", ".txt", ".rst"))]
    made = [m for m in made if m]
    mixed = b"".join(open(m, "rb").read() for m in reversed(made))[:50_000_000]
    with open(at("mixed.txt"), "wb") as out:
        out.write(mixed.decode("utf-8", errors="ignore").encode())   # not cut within a character
    return made + [at("mixed.txt")]


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--train")
    p.add_argument("--threads-only")
    p.add_argument("texts", nargs="*")
    a = p.parse_args()
    if a.threads_only: return threads_table(a.threads_only, a.rounds)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "gpt2.json")
        subprocess.run([GPT, "tokenizer", "info", "--tokenizer", "gpt2", "--out", path], check=True, capture_output=True)
        vocabulary = open(path, encoding="utf-8").read()
    os.environ["RAYON_NUM_THREADS"] = "2"
    print("| text | pass | gpt MB/s | gigatoken (gpt / it) | tiktoken (gpt / it) |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        texts = a.texts or texts_of_this_machine(folder)
        for path in texts:
            encode_table(path, vocabulary, a.rounds)
        threads_table(texts[-1], a.rounds)
        long = not a.texts and gather(os.path.join(folder, "long.txt"), 200_000_000, [sys.prefix, os.path.dirname(os.__file__), "/usr/include", "/usr/share"],
                                      (".py", ".h", ".md", ".txt", ".rst", ".html", ".xml", ".vim", ".pm"))
        if long: threads_table(long, a.rounds)
        if a.train or not a.texts:
            train_table(a.train or texts[-1], a.rounds)


if __name__ == "__main__":
    sys.exit(main())
