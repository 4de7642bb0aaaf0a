// evaluate.h: validation during training and `gpt eval`: loss, perplexity, bits per byte. Tests: tests/test_evaluate.c, tests/test_cli_train.sh
#pragma once
#include "dataloader.h"   // Dataloader
#include "flags.h"        // Options
#include "model.h"        // Gpt

typedef struct {
  double nats;       // summed over the scored tokens
  int64_t tokens;
  double bytes;      // of the text that these tokens stand for; 0: not known
  bool stopped;      // windows are missing
} Score;

static inline double score_loss(const Score *s) { return s->tokens ? s->nats / (double)s->tokens : 0; }
double score_bits_per_byte(const Score *s);    // 0 where the bytes are not known

// Scores the split in sequential windows, at most about most_tokens (0: all). token_bytes (vocab) or NULL. The model's B x T
// rows are filled window by window; the result does not depend on B. stop (or NULL): asked after each batch that another follows; a
// number that is not 0 ends it there.
Score evaluate_loader(Gpt *m, Dataloader *data, const double *token_bytes, int64_t most_tokens, int (*stop)(void));
int eval_command(const Options *o);
