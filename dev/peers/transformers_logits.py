"""transformers_logits.py PRINT_LOGITS [CHECKPOINT...]: compares logits with transformers, in both directions.

PRINT_LOGITS is the program built from dev/print_logits.c. Our checkpoints (random ones of every family, and those named)
are loaded by transformers as they are; models that transformers saves, in three types of weights, are loaded by us.
Needs torch and transformers. The last line is "N passed, N failed".
"""
import subprocess
import sys
import tempfile

import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

# Both sides sum in fp32, in different orders; logits are of the order of 1 to 10. The bound is the project's promise.
BOUND = 2e-4
logging.disable_progress_bar()
logging.set_verbosity_error()
program, checkpoints = sys.argv[1], sys.argv[2:]
passed = failed = 0


def our_logits(device, folder, ids):
    text = subprocess.run([program, "show", device, folder, *map(str, ids)], check=True, capture_output=True, text=True).stdout
    return torch.tensor([[float(x) for x in line.split()] for line in text.splitlines()], dtype=torch.float64)


def compare(name, folder):
    global passed, failed
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    length = min(24, getattr(model.config, "max_position_embeddings"))
    ids = torch.randint(model.config.vocab_size, (length,), generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        theirs = model(ids[None]).logits[0].double()
    for device in ("reference", "cpu"):
        ours = our_logits(device, folder, ids.tolist())
        worst = (ours - theirs).abs().max().item() if ours.shape == theirs.shape else float("nan")
        good = worst <= BOUND and theirs.abs().max().item() > 0.1
        passed, failed = passed + good, failed + (not good)
        print(f"{'ok    ' if good else 'FAILED'} {name}, {device}: largest difference {worst:.2e} (at most {BOUND}), "
              f"largest logit {theirs.abs().max().item():.2f}")


def randomize(model):
    """Every tensor random, biases and norms too."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * (2 * torch.rand_like(parameter) - 1))
    return model


with tempfile.TemporaryDirectory() as folder:
    for family in ("gpt2", "gpt2-without-bias", "gpt2-untied", "llama", "llama-untied"):
        run = tempfile.mkdtemp(dir=folder)
        made = subprocess.run([program, "make", family, run], check=True, capture_output=True, text=True).stdout.strip()
        compare(f"our {family}", made)
    for checkpoint in checkpoints:
        compare(checkpoint, checkpoint)
    small = dict(vocab_size=61, bos_token_id=0, eos_token_id=0)
    gpt2 = dict(n_layer=2, n_head=3, n_embd=24, n_positions=32, **small)
    llama = dict(num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, hidden_size=32, intermediate_size=72,
                 max_position_embeddings=32, rope_theta=5000.0, **small)
    for name, model in (("gpt2", GPT2LMHeadModel(GPT2Config(**gpt2))), ("llama", LlamaForCausalLM(LlamaConfig(**llama))),
                        ("tied llama", LlamaForCausalLM(LlamaConfig(tie_word_embeddings=True, **llama)))):
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            saved = tempfile.mkdtemp(dir=folder)
            randomize(model).to(dtype).save_pretrained(saved)
            model.float()
            compare(f"their {name} in {dtype}", saved)

print(f"{passed} passed, {failed} failed")
sys.exit(failed != 0)
