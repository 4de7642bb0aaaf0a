// load.h: opening a MODEL of the command line for use: checkpoint, tokenizer, device, weights on it.
// Tests: tests/test_load.c
#pragma once
#include "checkpoint.h"   // Checkpoint
#include "flags.h"        // Options
#include "model.h"        // Gpt
#include "tokenizer.h"    // Tokenizer

// The device that --device, --precision, --threads and --gpus ask for; where it is a GPU, the one with this number.
Device *device_open(const Options *o, int gpu);
// c's shape from the flags: --model's preset, or --family's smallest; what else is given in its place. Not the vocabulary nor the context.
void shape_from_flags(GptConfig *c, const Options *o);
// Threads of this process for --threads, at most one for each processor, and a share of them where there are --ranks. 0: the device's own choice.
int threads_of(const Options *o);
// Why --device auto takes the CPU; NULL where it takes a GPU, or another device was asked for.
const char *device_reason(const Options *o);

typedef struct {
  Checkpoint *checkpoint;
  GptConfig config;
  Tokenizer *tokenizer;   // of its tokenizer.json; NULL if the folder has none
  Device *device;
  Gpt *gpt;               // with the checkpoint's weights
} LoadedModel;

// model NULL: the newest run folder here. B sequences at once, of the model's context (PURPOSE_SAMPLE: of a piece of a
// prompt, at most 128 tokens). Exit 2 where the model is wrong, 3 where memory is short.
LoadedModel load_model(const char *model, const Options *o, Purpose purpose, int64_t B);
void unload_model(LoadedModel *l);

// Refuses (exit 3) what does not fit the device: needed and available bytes, and the flag that shrinks it. Nothing is allocated yet.
void require_memory(const Device *d, const MemoryTable *table, size_t more, const char *advice);
// The callbacks of checkpoint.h for a Gpt as context.
void checkpoint_get_gpt(void *gpt, Part part, const TensorRow *row, size_t first, size_t n, double *values);
void checkpoint_put_gpt(void *gpt, Part part, const TensorRow *row, size_t first, size_t n, const double *values);
// Exit 2 unless tokenizer and model have the same vocabulary.
void require_same_vocabulary(const Tokenizer *t, const GptConfig *c, const char *where);
