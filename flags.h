// flags.h: the one flag table: a row gives a flag's name, type, default, range, commands, group and help text.
//
// Everything else about flags is derived from these rows: the fields of Options, parsing, `gpt help COMMAND`, the lines of a run's config.txt, what may be given beside --resume. To add a flag, add a row.
// Rules (CLI.md): long flags, `--flag value` or `--flag=value`, strict numbers with k M G Ki Mi Gi, given once, unknown
// names refused with the nearest one. `--config FILE` reads `flag = value` lines; the command line wins.
// Tests: tests/test_flags.c
#pragma once
#include "util.h"

enum {   // commands, as a bit set: which commands a row belongs to
  COMMAND_TRAIN = 1 << 0, COMMAND_SAMPLE = 1 << 1, COMMAND_EVAL = 1 << 2, COMMAND_TOKENIZER_TRAIN = 1 << 3,
  COMMAND_TOKENIZER_ENCODE = 1 << 4, COMMAND_TOKENIZER_DECODE = 1 << 5, COMMAND_TOKENIZER_INFO = 1 << 6,
  COMMAND_DATA_BUILD = 1 << 7, COMMAND_DATA_CHECK = 1 << 8, COMMAND_DATA_INFO = 1 << 9, COMMAND_REPORT = 1 << 10,
  COMMAND_PLAN = 1 << 11, COMMAND_DOCTOR = 1 << 12, COMMAND_BENCH_TRAIN = 1 << 13, COMMAND_BENCH_GEMM = 1 << 14,
  COMMAND_BENCH_ATTENTION = 1 << 15, COMMAND_BENCH_TOKENIZER = 1 << 16, COMMAND_BENCH_ALL = 1 << 17,
  // sets that several rows use
  COMMAND_BENCH = COMMAND_BENCH_TRAIN | COMMAND_BENCH_GEMM | COMMAND_BENCH_ATTENTION | COMMAND_BENCH_ALL,
  COMMAND_TRAINING = COMMAND_TRAIN | COMMAND_PLAN,
  COMMAND_SHAPED = COMMAND_TRAINING | COMMAND_BENCH,
  COMMAND_RUNNING = COMMAND_TRAINING | COMMAND_SAMPLE | COMMAND_EVAL | COMMAND_BENCH,
};

// INT and REAL with the default "auto" hold AUTO_INT / AUTO_REAL until the command resolves them.
#define AUTO_INT INT64_MIN
#define AUTO_REAL ((double)-INFINITY)

// FREE: may be given beside --resume: the result stays the same, to rounding where another device or another number of ranks adds in another order. FIXED: the stored setting rules.
// NOT_STORED: not a setting of the run (where it goes, what to load): not written to config.txt.
typedef enum { FIXED, FREE, NOT_STORED } ResumeRule;

// FLAG(type, field, "name", default, low, high or words, commands, resume rule, "group", "help")
// types: INT int64_t | REAL double | TEXT string (default NULL: not set) | BOOL on or off | SWITCH, off unless given |
//        WORD one of the words separated by | (stored as its place) | LIST text that may be given again and again
#define FLAGS(FLAG) \
  FLAG(TEXT,   config,        "config",        NULL,     0, 0, "", ~0u, NOT_STORED, "", "FILE read `flag = value` lines; flags on the command line win") \
  FLAG(TEXT,   text,          "text",          NULL,     0, 0, "", COMMAND_TRAINING, FIXED, "data", "F,... the same as naming the texts after the command (for config files)") \
  FLAG(TEXT,   train_data,    "train-data",    NULL,     0, 0, "", COMMAND_TRAINING, FIXED, "data", "PATTERN of training shards (quoted glob), or a folder of gpt data build with both kinds of shards, instead of TEXT") \
  FLAG(TEXT,   val_data,      "val-data",      NULL,     0, 0, "", COMMAND_TRAINING, FIXED, "data", "PATTERN of validation shards") \
  FLAG(REAL,   val_fraction,  "val-fraction",  "0.1",    0, 0.9, "", COMMAND_TRAINING | COMMAND_DATA_BUILD, FIXED, "data", "share of raw text kept for validation: its tail; data build: from 100 documents up documents chosen by their content") \
  FLAG(TEXT,   tokenizer,     "tokenizer",     "auto",   0, 0, "", COMMAND_TRAINING, FIXED, "data", "auto, char, byte, gpt2, bpe:N, a tokenizer.json, a model directory or a run") \
  FLAG(TEXT,   separator,     "separator",     NULL,     0, 0, "", COMMAND_TRAINING, FIXED, "data", "text that stands between documents; an end-of-text token takes its place") \
  FLAG(TEXT,   model,         "model",         NULL,     0, 0, "", COMMAND_SHAPED, FIXED, "model", "preset that the flags below override: tiny, small, gpt2-124M, gpt2-355M, gpt2-774M, gpt2-1558M, llama-tiny, llama-125M") \
  FLAG(WORD,   family,        "family",        "gpt2",   0, 0, "gpt2|llama", COMMAND_SHAPED, FIXED, "model", "gpt2: layer norm, learned positions, GELU; llama: RMS norm, rotary positions, SwiGLU") \
  FLAG(INT,    layers,        "layers",        "auto",   1, 10000, "", COMMAND_SHAPED, FIXED, "model", "transformer blocks") \
  FLAG(INT,    heads,         "heads",         "auto",   1, 65536, "", COMMAND_SHAPED, FIXED, "model", "attention heads; must divide the channels") \
  FLAG(INT,    kv_heads,      "kv-heads",      "auto",   1, 65536, "", COMMAND_SHAPED, FIXED, "model", "key/value heads (llama); must divide the heads; auto: as many as heads") \
  FLAG(INT,    channels,      "channels",      "auto",   1, 1048576, "", COMMAND_SHAPED, FIXED, "model", "width of the residual stream") \
  FLAG(INT,    context,       "context",       "auto",   1, 16777216, "", COMMAND_SHAPED | COMMAND_DATA_CHECK, FIXED, "model", "tokens of a training sequence, and the most a model can look at") \
  FLAG(INT,    ffn,           "ffn",           "auto",   1, 16777216, "", COMMAND_SHAPED, FIXED, "model", "width of the feed-forward layer; auto: 4 x channels (gpt2), 8/3 x channels (llama)") \
  FLAG(REAL,   dropout,       "dropout",       "0",      0, 0.99, "", COMMAND_SHAPED, FIXED, "model", "probability, on embedding, attention and both residual branches") \
  FLAG(BOOL,   bias,          "bias",          "on",     0, 0, "", COMMAND_SHAPED, FIXED, "model", "on|off: biases in linear layers and layer norms (gpt2)") \
  FLAG(BOOL,   tie,           "tie",           "on",     0, 0, "", COMMAND_SHAPED, FIXED, "model", "on|off: the head is the token embedding") \
  FLAG(REAL,   init_std,      "init-std",      "auto",   0.000001, 10, "", COMMAND_TRAINING, FIXED, "model", "standard deviation of initial weights; auto: 0.02; residual projections get it over sqrt(2 x layers)") \
  FLAG(INT,    batch,         "batch",         "auto",   1, 1048576, "", COMMAND_SHAPED | COMMAND_DATA_CHECK, FIXED, "batch", "sequences of a micro-batch") \
  FLAG(INT,    tokens_per_step, "tokens-per-step", "auto", 1, 1e12, "", COMMAND_TRAINING, FIXED, "batch", "tokens of an optimizer step; a multiple of batch x context: micro-batches follow from it") \
  FLAG(WORD,   optimizer,     "optimizer",     "adamw",  0, 0, "adamw", COMMAND_TRAINING, FIXED, "optimizer", "adamw") \
  FLAG(REAL,   lr,            "lr",            "auto",   0, 100, "", COMMAND_TRAINING, FIXED, "optimizer", "highest learning rate") \
  FLAG(REAL,   min_lr,        "min-lr",        "auto",   0, 100, "", COMMAND_TRAINING, FIXED, "optimizer", "last learning rate; auto: a tenth of --lr") \
  FLAG(WORD,   schedule,      "schedule",      "cosine", 0, 0, "cosine|wsd|linear|constant", COMMAND_TRAINING, FIXED, "optimizer", "cosine, wsd (warm up, stay, decay), linear, constant") \
  FLAG(INT,    warmup,        "warmup",        "auto",   0, 1e9, "", COMMAND_TRAINING, FIXED, "optimizer", "steps in which the learning rate rises") \
  FLAG(INT,    decay,         "decay",         "auto",   0, 1e9, "", COMMAND_TRAINING, FIXED, "optimizer", "last steps in which wsd falls; auto: a fifth of all") \
  FLAG(REAL,   beta1,         "beta1",         "0.9",    0, 0.99999, "", COMMAND_TRAINING, FIXED, "optimizer", "decay of the first moment") \
  FLAG(REAL,   beta2,         "beta2",         "auto",   0, 0.99999, "", COMMAND_TRAINING, FIXED, "optimizer", "decay of the second moment") \
  FLAG(REAL,   eps,           "eps",           "1e-8",   0, 1, "", COMMAND_TRAINING, FIXED, "optimizer", "added to the root of the second moment") \
  FLAG(REAL,   weight_decay,  "weight-decay",  "0.1",    0, 100, "", COMMAND_TRAINING, FIXED, "optimizer", "decoupled, on matrices only") \
  FLAG(REAL,   grad_clip,     "grad-clip",     "1",      0, 1e9, "", COMMAND_TRAINING, FIXED, "optimizer", "largest global gradient norm; 0: no clipping") \
  FLAG(REAL,   skip_outliers, "skip-outliers", "0",      0, 1e6, "", COMMAND_TRAINING, FIXED, "optimizer", "Z: drop a step whose gradient norm lies over Z deviations above the mean of the last 128; 0: never") \
  FLAG(INT,    steps,         "steps",         "auto",   0, 1e12, "", COMMAND_TRAINING | COMMAND_BENCH | COMMAND_BENCH_TOKENIZER, FIXED, "length", "optimizer steps; of bench: samples that are timed") \
  FLAG(INT,    tokens,        "tokens",        "auto",   1, 1e18, "", COMMAND_TRAINING, FIXED, "length", "length in tokens, instead of steps") \
  FLAG(REAL,   epochs,        "epochs",        "auto",   0, 1e9, "", COMMAND_TRAINING | COMMAND_DATA_CHECK, FIXED, "length", "length in passes over the text, instead of steps") \
  FLAG(REAL,   minutes,       "minutes",       "auto",   0, 1e7, "", COMMAND_TRAINING, NOT_STORED, "length", "length in time: speed is measured once and written as steps into config.txt") \
  FLAG(TEXT,   out,           "out",           NULL,     0, 0, "", COMMAND_TRAINING, NOT_STORED, "run", "run folder (run; taken: run2, run3, ...)") \
  FLAG(TEXT,   resume,        "resume",        NULL,     0, 0, "", COMMAND_TRAINING, NOT_STORED, "run", "RUN: go on from its newest checkpoint, bit for bit") \
  FLAG(TEXT,   init,          "init",          NULL,     0, 0, "", COMMAND_TRAINING, FIXED, "run", "MODEL: start a new run from these weights") \
  FLAG(SWITCH, overwrite,     "overwrite",     "off",    0, 0, "", COMMAND_TRAINING, NOT_STORED, "run", "replace the run folder named by --out") \
  FLAG(INT,    seed,          "seed",          "1337",   0, 9e18, "", COMMAND_TRAINING | COMMAND_SAMPLE | COMMAND_DATA_CHECK | COMMAND_BENCH_TRAIN, FIXED, "run", "of initial weights, order of samples, dropout, sampling") \
  FLAG(INT,    save_every,    "save-every",    "auto",   0, 1e12, "", COMMAND_TRAINING, FREE, "run", "steps between checkpoints; 0: only the last") \
  FLAG(INT,    keep,          "keep",          "2",      0, 1e9, "", COMMAND_TRAINING, FREE, "run", "newest checkpoints that stay; 0: all") \
  FLAG(INT,    val_every,     "val-every",     "auto",   0, 1e12, "", COMMAND_TRAINING, FREE, "run", "steps between validations; 0: only the last") \
  FLAG(INT,    val_tokens,    "val-tokens",    "auto",   0, 1e12, "", COMMAND_TRAINING, FREE, "run", "tokens of a validation during the run; 0: the whole split; the last validation always takes the whole") \
  FLAG(INT,    sample_every,  "sample-every",  "auto",   0, 1e12, "", COMMAND_TRAINING, FREE, "run", "steps between samples; 0: only at the end") \
  FLAG(INT,    log_every,     "log-every",     "auto",   1, 1e12, "", COMMAND_TRAINING, FREE, "run", "steps between progress lines (log.jsonl has every step)") \
  FLAG(WORD,   on_nonfinite,  "on-nonfinite",  "stop",   0, 0, "stop|skip", COMMAND_TRAINING, FREE, "run", "stop, or skip exactly the step whose loss or gradient is not finite") \
  FLAG(WORD,   device,        "device",        "auto",   0, 0, "auto|reference|cpu|cuda", COMMAND_RUNNING, FREE, "machine", "auto (cuda where there is one, else cpu), reference (fp64, slow, the specification), cpu, cuda") \
  FLAG(INT,    threads,       "threads",       "auto",   1, 4096, "", COMMAND_RUNNING | COMMAND_DOCTOR | COMMAND_TOKENIZER_TRAIN | COMMAND_DATA_BUILD, FREE, "machine", "auto: physical cores within the quota") \
  FLAG(WORD,   precision,     "precision",     "fp32",   0, 0, "fp32|bf16", COMMAND_RUNNING, FIXED, "machine", "storage of weights and activations: fp32; bf16 beside fp32 master weights (the reference device is fp64 whatever this says)") \
  FLAG(BOOL, stochastic_rounding, "stochastic-rounding", "off", 0, 0, "", COMMAND_SHAPED, FIXED, "machine", "bf16 weights without fp32 master copies, rounded at random to either neighbour: 4 bytes a parameter less") \
  FLAG(WORD,   gemm,          "gemm",          "own",    0, 0, "own|cublaslt|wgmma", COMMAND_RUNNING, FREE, "machine", "matrix products on cuda: own kernels; NVIDIA's library where it is found; own kernels with wgmma (bf16, Hopper)") \
  FLAG(WORD,   recompute,     "recompute",     "none",   0, 0, "none|light|block", COMMAND_SHAPED, FREE, "machine", "computed again in the backward pass to save memory: none, light (norms and activations), block") \
  FLAG(INT,    ranks,         "ranks",         "1",      1, 64, "", COMMAND_TRAINING | COMMAND_DATA_CHECK, FREE, "ranks", "processes of this machine that train together, each on its part of every step") \
  FLAG(INT,    gpus,          "gpus",          "0",      0, 64, "", COMMAND_TRAINING, FREE, "ranks", "GPUs of this machine, 0 to N-1, that train together, a process each; 0: --device and --ranks say") \
  FLAG(TEXT,   rendezvous,    "rendezvous",    NULL,     0, 0, "", COMMAND_TRAIN, NOT_STORED, "ranks", "HOST:PORT of rank 0: this process is one rank of several, on any machines, started by Slurm, MPI or by hand") \
  FLAG(TEXT,   token,         "token",         NULL,     0, 0, "", COMMAND_TRAIN, NOT_STORED, "ranks", "F with the secret of this run's ranks (with --rendezvous): the same for all, for no one else") \
  FLAG(INT,    rank,          "rank",          "auto",   0, 63, "", COMMAND_TRAIN, NOT_STORED, "ranks", "number of this process, from 0 (with --rendezvous); auto: what Slurm or MPI says") \
  FLAG(INT,    world,         "world",         "auto",   1, 64, "", COMMAND_TRAIN, NOT_STORED, "ranks", "how many ranks there are (with --rendezvous); auto: what Slurm or MPI says") \
  FLAG(INT,    zero,          "zero",          "0",      0, 1, "", COMMAND_TRAINING, FREE, "ranks", "1: each rank keeps and updates the optimizer's state of its share of the parameters only (Rajbhandari et al. 2020)") \
  FLAG(INT,    log_tensors,   "log-tensors",   "0",      0, 1e12, "", COMMAND_TRAINING, FREE, "watch", "every N steps: norm and largest value of every tensor and its gradient") \
  FLAG(SWITCH, trace,         "trace",         "off",    0, 0, "", COMMAND_TRAINING | COMMAND_BENCH_TRAIN, FREE, "watch", "each operation of the first step (bench: of one more) with shapes, time and bytes") \
  FLAG(SWITCH, dry_run,       "dry-run",       "off",    0, 0, "", COMMAND_TRAIN, NOT_STORED, "try", "everything up to the first step, memory by kind, then stop") \
  FLAG(BOOL,   overfit_batch, "overfit-batch", "off",    0, 0, "", COMMAND_TRAINING, FIXED, "try", "on|off: one batch again and again: the loss must go to nearly 0") \
  FLAG(TEXT,   prompt,        "prompt",        NULL,     0, 0, "", COMMAND_SAMPLE, NOT_STORED, "text", "TEXT to go on from; without: the end-of-text token, or a newline") \
  FLAG(TEXT,   prompt_file,   "prompt-file",   NULL,     0, 0, "", COMMAND_SAMPLE, NOT_STORED, "text", "F|- read the prompt from a file") \
  FLAG(INT,    sample_tokens, "tokens",        "256",    0, 1e9, "", COMMAND_SAMPLE, NOT_STORED, "text", "tokens to generate, at most") \
  FLAG(INT,    count,         "count",         "1",      1, 1e9, "", COMMAND_SAMPLE, NOT_STORED, "text", "samples") \
  FLAG(TEXT,   stop,          "stop",          NULL,     0, 0, "", COMMAND_SAMPLE, NOT_STORED, "text", "TEXT at which to stop") \
  FLAG(REAL,   temperature,   "temperature",   "0.8",    0, 100, "", COMMAND_SAMPLE, NOT_STORED, "choice", "0: the most likely token always") \
  FLAG(INT,    top_k,         "top-k",         "0",      0, 1e9, "", COMMAND_SAMPLE, NOT_STORED, "choice", "only the k most likely tokens; 0: all") \
  FLAG(REAL,   top_p,         "top-p",         "1",      0, 1, "", COMMAND_SAMPLE, NOT_STORED, "choice", "only the fewest tokens whose probabilities reach p") \
  FLAG(REAL,   min_p,         "min-p",         "0",      0, 1, "", COMMAND_SAMPLE, NOT_STORED, "choice", "only tokens at least p times as likely as the likeliest") \
  FLAG(REAL,   repetition_penalty, "repetition-penalty", "1", 0.01, 100, "", COMMAND_SAMPLE, NOT_STORED, "choice", "over 1: tokens seen before become less likely (Keskar et al. 2019)") \
  FLAG(BOOL,   stream,        "stream",        "on",     0, 0, "", COMMAND_SAMPLE, NOT_STORED, "output", "on|off: write each token as it comes") \
  FLAG(BOOL,   verbose,       "verbose",       "off",    0, 0, "", COMMAND_SAMPLE, NOT_STORED, "output", "on|off: model and speed on stderr") \
  FLAG(INT,    limit,         "limit",         "0",      0, 1e12, "", COMMAND_EVAL, NOT_STORED, "text", "score at most N tokens; 0: all") \
  FLAG(INT,    stride,        "stride",        "0",      0, 1e9, "", COMMAND_EVAL, NOT_STORED, "text", "tokens between windows; 0: windows do not overlap") \
  FLAG(INT,    eval_batch,    "batch",         "8",      1, 4096, "", COMMAND_EVAL, NOT_STORED, "machine", "windows scored at once; the result does not depend on it") \
  FLAG(INT,    vocab,         "vocab",         "auto",   1, 10000000, "", COMMAND_TOKENIZER_TRAIN | COMMAND_BENCH, FIXED, "tokenizer", "entries, special tokens included") \
  FLAG(WORD,   pattern,       "pattern",       "gpt2",   0, 0, "gpt2|gpt4|none", COMMAND_TOKENIZER_TRAIN, NOT_STORED, "tokenizer", "how text is cut into pieces before merging") \
  FLAG(LIST,   add_special,   "add-special",   NULL,     0, 0, "", COMMAND_TOKENIZER_TRAIN, NOT_STORED, "tokenizer", "TEXT of a special token; may be given again") \
  FLAG(BOOL,   allow_fewer,   "allow-fewer",   "off",    0, 0, "", COMMAND_TOKENIZER_TRAIN, NOT_STORED, "tokenizer", "on|off: write what there is when the text has too few merges") \
  FLAG(INT,    max_memory,    "max-memory",    "2G",     1048576, 9e18, "", COMMAND_TOKENIZER_TRAIN, NOT_STORED, "tokenizer", "bytes; more is refused with the number") \
  FLAG(TEXT,   use_tokenizer, "tokenizer",     NULL,     0, 0, "", COMMAND_TOKENIZER_ENCODE | COMMAND_TOKENIZER_DECODE | COMMAND_TOKENIZER_INFO | COMMAND_DATA_BUILD | COMMAND_DATA_INFO | COMMAND_BENCH_TOKENIZER, NOT_STORED, "tokenizer", "gpt2, byte, char, a tokenizer.json, vocab.bpe, encoder.json, .tiktoken file, a model directory or a run") \
  FLAG(TEXT,   file_out,      "out",           NULL,     0, 0, "", COMMAND_TOKENIZER_TRAIN | COMMAND_TOKENIZER_ENCODE | COMMAND_TOKENIZER_DECODE | COMMAND_TOKENIZER_INFO | COMMAND_DATA_BUILD | COMMAND_REPORT, NOT_STORED, "output", "file or folder to write (tokenizer info: its tokenizer.json)") \
  FLAG(WORD,   format,        "format",        "text",   0, 0, "text|u16|u32", COMMAND_TOKENIZER_ENCODE | COMMAND_TOKENIZER_DECODE, NOT_STORED, "output", "of ids: text, u16, u32 (little-endian)") \
  FLAG(SWITCH, show,          "show",          "off",    0, 0, "", COMMAND_TOKENIZER_ENCODE, NOT_STORED, "output", "the pieces, visibly") \
  FLAG(WORD,   special,       "special",       "none",   0, 0, "none|all", COMMAND_TOKENIZER_ENCODE, NOT_STORED, "tokenizer", "whether the text of special tokens is recognised") \
  FLAG(WORD,   documents,     "documents",     "file",   0, 0, "file|blank-line|none", COMMAND_TOKENIZER_TRAIN | COMMAND_DATA_BUILD, NOT_STORED, "text", "what a document is: a file, what stands between blank lines, or all one") \
  FLAG(TEXT,   jsonl,         "jsonl",         NULL,     0, 0, "", COMMAND_DATA_BUILD, NOT_STORED, "text", "FIELD: the texts are JSON lines, a document is this field") \
  FLAG(INT,    shard_tokens,  "shard-tokens",  "100M",   1, 1e15, "", COMMAND_DATA_BUILD, NOT_STORED, "output", "tokens of a shard") \
  FLAG(WORD,   raw,           "raw",           "no",     0, 0, "no|u16|u32", COMMAND_TRAINING | COMMAND_DATA_CHECK | COMMAND_DATA_INFO, FIXED, "data", "shards are plain ids without a header: u16 or u32") \
  FLAG(BOOL,   order,         "order",         "off",    0, 0, "", COMMAND_DATA_CHECK, NOT_STORED, "check", "on|off: count that every token is a target once an epoch; auto is context 1024, batch 8, epochs 2") \
  FLAG(SWITCH, json,          "json",          "off",    0, 0, "", COMMAND_SAMPLE | COMMAND_EVAL | COMMAND_DATA_INFO | COMMAND_TOKENIZER_INFO | COMMAND_BENCH | COMMAND_BENCH_TOKENIZER | COMMAND_PLAN, NOT_STORED, "output", "one JSON object on stdout as the last line")

#define FIELD_INT int64_t
#define FIELD_REAL double
#define FIELD_TEXT const char *
#define FIELD_BOOL int64_t
#define FIELD_SWITCH int64_t
#define FIELD_WORD int64_t
#define FIELD_LIST const char **

#define FLAG_ENUM(type, field, ...) FLAG_##field,
enum { FLAGS(FLAG_ENUM) FLAG_COUNT };
#undef FLAG_ENUM

typedef struct {
#define FLAG_FIELD(type, field, ...) FIELD_##type field;
  FLAGS(FLAG_FIELD)
#undef FLAG_FIELD
  bool given[FLAG_COUNT];     // by the user: on the command line or in --config
  size_t list_count;          // entries of add_special
  unsigned command;           // the COMMAND_ bit
  const char **args;          // what stands after the command without a flag, in order
  size_t arg_count;
} Options;

enum { DEVICE_AUTO, DEVICE_REFERENCE, DEVICE_CPU, DEVICE_CUDA };  // places of --device's words
enum { PRECISION_FP32, PRECISION_BF16 };                         // places of --precision's words
enum { SCHEDULE_COSINE, SCHEDULE_WSD, SCHEDULE_LINEAR, SCHEDULE_CONSTANT };
enum { NONFINITE_STOP, NONFINITE_SKIP };
enum { DOCUMENTS_FILE, DOCUMENTS_BLANK_LINE, DOCUMENTS_NONE };
enum { RAW_NO, RAW_U16, RAW_U32 };
enum { FORMAT_TEXT, FORMAT_U16, FORMAT_U32 };

// Sets every field to its default, then reads argv[0..argc) (what follows the command's name) and --config. Exit 2 with one line on
// any mistake. Strings point into argv or are never freed.
void options_parse(Options *o, unsigned command, const char *command_name, int argc, char **argv);
// Reads `flag = value` lines (from --config or a run's config.txt) for flags the command line has not given.
void options_read_config(Options *o, const char *path);
// Appends `flag = value` lines of every stored flag of the command: a run can be repeated from them.
void options_write_config(const Options *o, Buffer *out);
// Appends those that the command line has given, `flag = value, flag = value`. Before options_read_config, which gives others.
void options_write_given(const Options *o, Buffer *out);
// First flag given on the command line beside --resume that would change the result, or NULL.
const char *options_result_changer(const Options *o);
// Whether it has another value than where nobody gives it (a run's config.txt gives every flag).
bool options_changed(const Options *o, int flag);
// Threads that read and encode texts: --threads as it is, else one for each core. Of what computes: threads_of in load.h.
int text_threads(const Options *o);
// "name" of a flag, for messages: flag_name(FLAG_lr) is "lr".
const char *flag_name(int flag);
// The flags of a command by group, for `gpt help COMMAND`.
void options_print_help(unsigned command, FILE *out);
// Strict number with k M G Ki Mi Gi; false if the text is anything else, or overflows, or (whole) has a fraction.
bool parse_number(const char *text, bool whole, double *value, int64_t *integer);
