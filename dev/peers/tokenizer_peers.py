"""tokenizer_peers.py: compares tokenizer*.c with Hugging Face's tokenizers and OpenAI's tiktoken, id for id.

    python3 -m venv v && v/bin/pip install tokenizers tiktoken transformers
    v/bin/python dev/peers/tokenizer_peers.py [--strings 20000] [--seed 1] [--gpt2 DIR] [TEXT...]

Builds the C files as a library in a temporary folder and calls them. Checks, with one line each and exit 1 on any difference:
  encode   gpt2 and gpt4 patterns against both peers, on every TEXT and on random valid strings
  train    the merges against BpeTrainer at 300, 1024 and 4096 entries, three kinds of documents, both patterns
  files    a tokenizer.json of every kind loads in tokenizers and transformers with the same ids, and theirs loads here
  golden   DIR/golden.json (a list of text and ids), where --gpt2 names a folder that has it
Without TEXT it reads this project's own sources. tiktoken's files are not needed: its encodings are built from our ranks.
"""
import argparse, base64, ctypes, glob, json, os, random, subprocess, sys, tempfile, time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
GPT2_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
GPT4_PATTERN = r"""'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s"""
EOT = "<|endoftext|>"
failures = 0


def report(ok, what):
    global failures
    failures += not ok
    print(("same      " if ok else "DIFFERENT ") + what, flush=True)


class Buffer(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("len", ctypes.c_size_t), ("cap", ctypes.c_size_t)]


class TokenBuffer(ctypes.Structure):
    _fields_ = [("ids", ctypes.POINTER(ctypes.c_int32)), ("count", ctypes.c_size_t), ("capacity", ctypes.c_size_t),
                ("unseen", ctypes.c_size_t), ("cache", ctypes.c_void_p)]


def build():
    folder = tempfile.mkdtemp()
    path = os.path.join(folder, "libtokenizer.so")
    names = ["tokenizer.c", "tokenizer_files.c", "tokenizer_merge.c", "tokenizer_pieces.c", "tokenizer_train.c", "manifest.c", "json.c", "util.c"]
    subprocess.run([os.environ.get("CC", "cc"), "-std=gnu11", "-D_GNU_SOURCE", "-O2", "-shared", "-fPIC", "-o", path]
                   + [os.path.join(ROOT, n) for n in names] + ["-lm"], check=True)
    c = ctypes.CDLL(path)
    for name in ("tokenizer_open", "tokenizer_gpt2", "tokenizer_byte", "tokenizer_char_from_text", "tokenizer_from_json",
                 "tokenizer_trainer", "tokenizer_trainer_finish", "tokenizer_decode_one"):
        getattr(c, name).restype = ctypes.c_void_p
    c.tokenizer_encode.restype = ctypes.c_int64
    c.tokenizer_decode.restype = ctypes.c_int64
    return c


C = None


class Ours:
    def __init__(self, pointer):
        self.pointer, self.ids = ctypes.c_void_p(pointer), TokenBuffer()

    def encode(self, data):
        data = data if isinstance(data, bytes) else data.encode("utf-8")
        self.ids.count = 0
        n = C.tokenizer_encode(self.pointer, data, ctypes.c_size_t(len(data)), ctypes.byref(self.ids), 0)
        return None if n < 0 else self.ids.ids[0:n]

    def decode(self, ids):
        array, out = (ctypes.c_int32 * max(1, len(ids)))(*ids), Buffer()
        bad = C.tokenizer_decode(self.pointer, array, ctypes.c_size_t(len(ids)), ctypes.byref(out))
        data = ctypes.string_at(out.data, out.len) if out.len else b""
        C.buffer_free(ctypes.byref(out))
        return data if bad < 0 else None

    def size(self):
        return C.tokenizer_vocab_size(self.pointer)

    def token(self, i):
        n = ctypes.c_size_t()
        p = C.tokenizer_decode_one(self.pointer, ctypes.c_int64(i), ctypes.byref(n))
        return ctypes.string_at(p, n.value)

    def config(self):
        out = Buffer()
        C.tokenizer_config_json(self.pointer, ctypes.c_int64(1 << 30), ctypes.byref(out))
        text = ctypes.string_at(out.data, out.len)
        C.buffer_free(ctypes.byref(out))
        return text.decode("utf-8")

    def json(self):
        out = Buffer()
        C.tokenizer_json(self.pointer, ctypes.byref(out))
        text = ctypes.string_at(out.data, out.len)
        C.buffer_free(ctypes.byref(out))
        return text.decode("utf-8")


def train(documents, size, pattern, specials=()):
    t = ctypes.c_void_p(C.tokenizer_trainer(pattern))
    for d in documents:
        d = d.encode("utf-8")
        C.tokenizer_trainer_add(t, d, ctypes.c_size_t(len(d)))
    names = (ctypes.c_char_p * max(1, len(specials)))(*[s.encode() for s in specials])
    return Ours(C.tokenizer_trainer_finish(t, ctypes.c_int64(size), names, ctypes.c_size_t(len(specials))))


def from_json(text):
    data = text.encode("utf-8")
    return Ours(C.tokenizer_from_json(b"json", data, ctypes.c_size_t(len(data))))


def tiktoken_of(ours, pattern):
    import tiktoken
    specials = {EOT: i for i in range(ours.size()) if ours.token(i) == EOT.encode()}
    ranks = {ours.token(i): i for i in range(ours.size()) if i not in specials.values()}
    return tiktoken.Encoding(name="x", pat_str=pattern, mergeable_ranks=ranks, special_tokens=specials)


SPACES = "\t\n\x0b\x0c\r \x85\xa0\u1680\u2000\u2003\u200a\u2028\u2029\u202f\u205f\u3000\u200b\u180e\ufeff"


def random_string(r):
    """Runs over the classes that patterns tell apart, and any code point of Unicode 15."""
    def piece():
        k = r.randrange(14)
        if k == 0: return r.choice(SPACES) * r.choice([1, 1, 2, 3, 7])
        if k == 1: return "".join(r.choice(SPACES) for _ in range(r.randrange(1, 5)))
        if k == 2: return " " * r.randrange(1, 6)
        if k == 3: return "'" + r.choice(["s", "t", "re", "ve", "m", "ll", "d", "S", "LL", "Re", "vE", "\u017f", "x", "l", "r", "", "K"])
        if k == 4: return "".join(r.choice("0123456789\u00b2\u00bd\u0663\u2167\u3007\U0001d7d8") for _ in range(r.randrange(1, 9)))
        if k == 5: return r.choice(["the", "Hello", "world", "naïve", "über", "слово", "日本語", "한국어", "עברית", "हिन्दी", "ไทย"])
        if k == 6: return r.choice("!?.,:;-_/\\|@#$%^&*()[]{}<>=+~`\"") * r.choice([1, 1, 2, 5, 40])
        if k == 7: return "".join(chr(r.randrange(0x300, 0x370)) for _ in range(r.randrange(1, 4)))
        if k == 8: return r.choice(["\U0001f600", "\U0001f469\u200d\U0001f4bb", "\U0001f1ea\U0001f1f8", "\u2764\ufe0f", "\U0001f3f4\U000e0067"])
        if k == 9: return r.choice("\r\n") * r.randrange(1, 4)
        if k == 10: return r.choice("aZé語") * r.randrange(1, 80)
        if k == 11: return chr(r.randrange(0x20, 0x250))
        if k == 12: return chr(r.randrange(0x20, 0xd800))
        c = r.randrange(0x10000, 0x32400)
        return chr(c)
    return "".join(piece() for _ in range(r.randrange(1, 12)))


def assigned(text, limit=(15, 0)):
    """Only code points that every peer's Unicode tables know alike: assigned in this Python's, or private."""
    import unicodedata
    return "".join(c for c in text if unicodedata.category(c) != "Cn")


def check_encode(texts, strings, seed, models):
    for name, ours, hf, tik in models:
        hf.encode_special_tokens = True   # as text, for a text may well speak of <|endoftext|>
        for label, text in texts:
            want = tik.encode_ordinary(text)
            got = ours.encode(text)
            report(got == want, f"encode {name} tiktoken   {label} ({len(text)} characters)")
            report(got == hf.encode(text, add_special_tokens=False).ids, f"encode {name} tokenizers {label}")
            report(ours.decode(got) == text.encode("utf-8"), f"decode {name}            {label}")
        r, wrong_tik, wrong_hf, peers_differ, shown = random.Random(seed), 0, 0, 0, 0
        for _ in range(strings):
            s = assigned(random_string(r))
            got, a, b = ours.encode(s), tik.encode_ordinary(s), hf.encode(s, add_special_tokens=False).ids
            wrong_tik += got != a
            wrong_hf += got != b
            peers_differ += a != b
            if (got != a or got != b) and shown < 5:
                shown += 1
                print("  ", ascii(s), got, a, b)
            if ours.decode(got) != s.encode("utf-8"):
                report(False, f"round trip of {ascii(s)}")
        report(wrong_tik == 0, f"encode {name} tiktoken   {strings} random strings ({wrong_tik} differ; the peers differ among themselves on {peers_differ})")
        report(wrong_hf == peers_differ, f"encode {name} tokenizers {strings} random strings ({wrong_hf} differ)")
        wrong = sum(ours.decode(ours.encode(x)) != x for x in (r.randbytes(r.randrange(200)) for _ in range(strings // 10)))
        report(wrong == 0, f"round trip {name} of {strings // 10} random byte strings")


def hf_train(documents, size, pattern, specials=()):
    from tokenizers import Tokenizer, Regex, models, pre_tokenizers, trainers, decoders
    t = Tokenizer(models.BPE())
    if pattern == 0:
        t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        regex = json.loads(train(["ab"], 256, 1).json())["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"]
        t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(regex), "isolated"),
                                                   pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    t.decoder = decoders.ByteLevel()
    t.train_from_iterator(documents, trainers.BpeTrainer(vocab_size=size, show_progress=False, special_tokens=list(specials),
                                                         initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return t


def merges_of(text):
    return [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in json.loads(text)["model"]["merges"]]


def check_train(texts, seed, sizes):
    r = random.Random(seed)
    runs = ["".join(r.choice("a-= ") * r.randrange(1, 30) for _ in range(200)) for _ in range(40)]  # many ties, many ways to one token
    noise = ["".join(r.choice("ab") for _ in range(r.randrange(60))) for _ in range(300)]
    corpora = [(label, [d for d in text.split("\n\n") if d]) for label, text in texts] + [("runs", runs), ("two letters", noise)]
    for label, documents in corpora:
        for pattern in (0, 1):
            for size in sizes:
                specials = [EOT] if size == sizes[1] else []
                ours, theirs = train(documents, size, pattern, specials), hf_train(documents, size, pattern, specials)
                a, b = merges_of(ours.json()), merges_of(theirs.to_str())
                first = next((i for i in range(max(len(a), len(b))) if a[i:i + 1] != b[i:i + 1]), -1)
                report(a == b, f"train gpt{'24'[pattern]} {size:5d} {label}: {len(a)} merges" + ("" if a == b else f", {len(b)} in the peer, first difference {first}"))


def check_files(text, gpt2):
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer, PreTrainedTokenizerFast
    kinds = [("gpt2", gpt2), ("byte", Ours(C.tokenizer_byte(True))),
             ("char", Ours(C.tokenizer_char_from_text(b"text", text.encode(), ctypes.c_size_t(len(text.encode())), True))),
             ("bpe gpt2", train([text], 1000, 0, [EOT])), ("bpe gpt4", train([text], 1000, 1, [EOT, "<|x y|>"])), ("bpe none", train(text.split("\n"), 600, 2))]
    for name, ours in kinds:
        js = ours.json()
        hf, sample = Tokenizer.from_str(js), text[:20000]
        ids = ours.encode(sample)
        report(hf.get_vocab_size() == ours.size(), f"files {name}: vocabulary of {ours.size()}")
        report(hf.encode(sample, add_special_tokens=False).ids == ids, f"files {name}: ids in tokenizers")
        report(hf.decode(ids, skip_special_tokens=False) == sample, f"files {name}: text in tokenizers")
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "tokenizer.json")
            open(path, "w", encoding="utf-8").write(js)
            tr = PreTrainedTokenizerFast(tokenizer_file=path)
            report(tr.encode(sample, add_special_tokens=False) == ids, f"files {name}: ids in transformers")
            open(os.path.join(folder, "tokenizer_config.json"), "w").write(ours.config())
            for family in ("gpt2", "llama"):  # as in the model directories of this project
                open(os.path.join(folder, "config.json"), "w").write(json.dumps({"model_type": family, "vocab_size": ours.size()}))
                tr = AutoTokenizer.from_pretrained(folder)
                same = tr.encode(sample, add_special_tokens=False) == ids and tr.decode(ids) == sample
                report(same, f"files {name}: ids and text in AutoTokenizer beside a {family} model")
        report(from_json(js).json() == js, f"files {name}: read back, written again, the same bytes")
        again = from_json(hf.to_str())
        report(again.encode(sample) == ids and again.json() == js, f"files {name}: the peer's own writing of it, read here")


def walk(folder):
    return sorted(os.path.join(at, f) for at, _, files in os.walk(folder) for f in files)


def main():
    global C
    p = argparse.ArgumentParser()
    p.add_argument("--strings", type=int, default=20000)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--gpt2")
    p.add_argument("--sizes", default="300,1024,4096")
    p.add_argument("--only", default="files,train,encode")
    p.add_argument("--patterns", default="gpt2,gpt4")
    p.add_argument("texts", nargs="*")
    a = p.parse_args()
    C = build()
    from tokenizers import Tokenizer
    paths = [f for x in a.texts for f in (walk(x) if os.path.isdir(x) else [x])] or sorted(glob.glob(os.path.join(ROOT, "*.c")))[:12] + sorted(glob.glob(os.path.join(ROOT, "*.md")))
    texts = [(os.path.basename(x), open(x, encoding="utf-8", errors="ignore", newline="").read()) for x in paths]
    gpt2 = Ours(C.tokenizer_gpt2())
    joined = "\n\n".join(t for _, t in texts)
    gpt4 = train(joined[:5_000_000].split("\n\n"), 5000, 1)
    models = [("gpt2", gpt2, Tokenizer.from_str(gpt2.json()), tiktoken_of(gpt2, GPT2_PATTERN)),
              ("gpt4", gpt4, Tokenizer.from_str(gpt4.json()), tiktoken_of(gpt4, GPT4_PATTERN))]
    if a.gpt2:
        golden = json.load(open(os.path.join(a.gpt2, "golden.json"), encoding="utf-8"))
        bad = [g["text"] for g in golden if gpt2.encode(g["text"]) != g["ids"]]
        report(not bad, f"golden {len(golden)} texts {ascii(bad[:2]) if bad else ''}")
        for name in ("vocab.bpe", "encoder.json"):
            other = Ours(C.tokenizer_open(os.path.join(a.gpt2, name).encode()))
            report(other.json() == gpt2.json(), f"golden {name} is the embedded vocabulary")
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "gpt2.tiktoken")
        open(path, "wb").write(b"".join(base64.b64encode(gpt2.token(i)) + b" %d\n" % i for i in range(50256)))
        ranks = Ours(C.tokenizer_open(path.encode()))
        report(all(ranks.encode(t) == gpt2.encode(t) for _, t in texts), "files .tiktoken: the same ids as the merges")
    if "files" in a.only: check_files(joined[:200000] + "é日本\U0001f600", gpt2)
    if "train" in a.only: check_train(texts[:3], a.seed, [int(x) for x in a.sizes.split(",")])
    if "encode" in a.only: check_encode(texts, a.strings, a.seed, [m for m in models if m[0] in a.patterns])
    print(f"{failures} differences")
    sys.exit(failures > 0)


if __name__ == "__main__":
    main()
