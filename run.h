// run.h: a run: everything between flags and the training loop. What the flags left open is resolved here, the text becomes
// tokens, the run folder is made, and what happens is written to its log.
// Tests: tests/test_train.c, tests/test_cli.sh
#pragma once
#include "checkpoint.h"   // TrainerState
#include "dataloader.h"   // Dataloader
#include "flags.h"        // Options
#include "model.h"        // GptConfig
#include "tokenizer.h"    // Tokenizer

typedef struct {
  Options *o;                  // every "auto" replaced by its value
  char *dir;                   // the run folder; NULL with --dry-run
  char run_id[33];
  bool resumed;
  bool stories;                // the embedded stories, not a text
  bool documents;              // a training row is one document, not a piece of the stream
  Tokenizer *tokenizer;        // NULL: shards without a tokenizer.json
  int32_t vocab, eot;          // eot -1: none
  Dataloader *train, *val;     // val NULL: nothing to validate on
  int64_t text_bytes;          // of the raw text; 0 with shards
  char data_hash[65];          // SHA-256 over the tokens of both splits
  double *token_bytes;         // (vocab) bytes of the text that each id stands for
  GptConfig config;
  GptOptions gpt;
  int64_t sequences;           // of a step, over all ranks: tokens_per_step / context
  int64_t micro_batches;       // of a step, for each rank: sequences / ranks / gpt.B
  Checkpoint *init;            // the weights to begin with: the newest checkpoint of --resume, else those of --init; NULL: new ones
  bool continues;              // init is a checkpoint of this run: its step and its optimizer's state go on, too
  Buffer memory;               // the memory table as a JSON object, bytes by kind
  Buffer asked;                // flags given beside --resume: "log-every = 5, keep = 0"
  FILE *log;                   // log.jsonl
} Run;

// Reads the flags (and with --resume the stored ones), the text and the tokenizer; resolves all that is auto. Nothing is
// written. Exit 2 for every request that cannot be.
Run *run_prepare(Options *o);
// Settings, text, model and the memory table; resident: bytes that the program and the tokens take. On stdout.
void run_print_banner(const Run *r, const Device *d, const MemoryTable *memory, size_t resident);
// After the number of steps changed: warm-up, decay and the intervals that were left open.
void run_resolve_intervals(Run *r);
// Makes the folder, config.txt and log.jsonl, or opens those of --resume, which goes on after `step`.
void run_create_folder(Run *r, const char *device, int64_t step);
// A hash of what all ranks of a run must agree on: settings (but for --threads), text, and where it goes on.
void run_agreement(const Run *r, uint8_t digest[32]);
void run_free(Run *r);

// One JSON object a line, flushed: {"kind": "step", "step": 12, ...}. fmt gives what follows the kind, from its comma on.
void run_log(Run *r, const char *kind, const char *fmt, ...) PRINTF_LIKE(3, 4);
// A number for it: nine digits, or null where it is not finite (JSON has no NaN). Used as run_number(x).text.
typedef struct { char text[32]; } NumberText;
NumberText run_number(double x);
// Writes a checkpoint of the model and the trainer's state, and logs it.
void run_save(Run *r, Gpt *m, const TrainerState *state);
