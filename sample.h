// sample.h: choosing tokens and generating text with a key-value cache; `gpt sample`. Tests: tests/test_sample.c
#pragma once
#include "flags.h"       // Options
#include "model.h"       // Gpt
#include "tokenizer.h"   // Tokenizer

typedef struct {
  double temperature;          // 0: the most likely token (the lowest id of equals)
  int64_t top_k;               // 0: all
  double top_p, min_p;         // 1, 0: all
  double repetition_penalty;   // 1: none
  uint64_t seed;
  int64_t ids;                 // only ids below may be chosen: a model's vocabulary may be padded beyond its tokenizer's; 0: all
} SampleSettings;

// One token id. logits (vocab) are changed. history (n): tokens seen so far, for the penalty. sample and position say
// which random number to take: the choice is a function of (logits, history, settings, sample, position).
int32_t sample_pick(const SampleSettings *s, double *logits, size_t vocab, const int32_t *history, size_t n, uint64_t sample, uint64_t position);

// Called for each new token; false stops.
typedef bool (*SampleSink)(void *context, int32_t id);
// Generates at most `most` tokens after the prompt (n >= 1 ids), until eot (-1: none) comes, which is not given to the sink.
// m is a PURPOSE_SAMPLE model. Past the context the older half is dropped and the rest is encoded again; *dropped (may be NULL) counts how often.
// Returns the number of tokens generated.
int64_t sample_generate(Gpt *m, const int32_t *prompt, size_t n, int64_t most, int32_t eot, const SampleSettings *s, uint64_t sample,
                        SampleSink sink, void *context, int64_t *dropped);
// Generated text of one sample appended to out (the prompt is not).
int64_t sample_text(Gpt *m, const Tokenizer *t, const int32_t *prompt, size_t n, int64_t most, const SampleSettings *s, uint64_t sample, Buffer *out);
// What a sample starts from without a prompt: the end-of-text token, or a newline (character tokenizers), or id 0.
int32_t sample_start(const Tokenizer *t);
int sample_command(const Options *o);
