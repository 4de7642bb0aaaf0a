// evaluate.c: owns scoring text: validation during training and `gpt eval`. See evaluate.h.
//
// Conventions: a token is scored given what stands before it in its window; windows of `context` tokens follow one another
// without overlap (or --stride tokens apart, then each token is scored once, with the longest past it ever has).
#include "evaluate.h"
#include "corpus.h"      // corpus_read_text, token_bytes_of
#include "load.h"        // load_model
#include <math.h>        // exp
#include <stdlib.h>      // free
#include <string.h>      // memcpy

double score_bits_per_byte(const Score *s) { return s->bytes > 0 ? s->nats / 0.69314718055994530942 / s->bytes : 0; }

// ---- a batch of windows ----

typedef struct {
  Gpt *m;
  int64_t B, T, filled;          // windows in the batch
  int32_t *ids, *targets;        // (B,T)
  double *losses;                // (B*T)
  const double *token_bytes;     // (vocab) or NULL
  Score score;
} Batch;

static Batch batch_open(Gpt *m, int64_t B, int64_t T, const double *token_bytes) {
  size_t rows = (size_t)(B * T);
  return (Batch){.m = m, .B = B, .T = T, .ids = xcalloc(rows, sizeof(int32_t)), .targets = xmalloc(rows, sizeof(int32_t)), .losses = xmalloc(rows, sizeof(double)), .token_bytes = token_bytes};
}

// Scores what is in the batch; windows that are not filled are ignored.
static void batch_score(Batch *b) {
  if (!b->filled) return;
  MicroBatch place = {.loss_scale = 1};
  for (int64_t i = b->filled * b->T; i < b->B * b->T; i++) { b->ids[i] = 0; b->targets[i] = IGNORED_TARGET; }
  gpt_forward(b->m, b->ids, b->targets, &place, WITHOUT_GRADIENT);
  gpt_token_losses(b->m, b->losses);
  for (int64_t i = 0; i < b->filled * b->T; i++) {
    if (b->targets[i] == IGNORED_TARGET) continue;
    b->score.nats += b->losses[i];
    b->score.tokens++;
    if (b->token_bytes) b->score.bytes += b->token_bytes[b->targets[i]];
  }
  b->filled = 0;
}

static void batch_close(Batch *b) {
  free(b->ids);
  free(b->targets);
  free(b->losses);
}

Score evaluate_loader(Gpt *m, Dataloader *data, const double *token_bytes, int64_t most_tokens, int (*stop)(void)) {
  const GptOptions *o = gpt_options(m);
  Batch b = batch_open(m, o->B, o->T, token_bytes);
  int64_t windows = dataloader_sequential_count(data);
  if (most_tokens > 0) windows = MIN(windows, MAX(1, most_tokens / b.T));
  for (int64_t w = 0; w < windows && !b.score.stopped; w++) {
    dataloader_sequential(data, w, b.ids + b.filled * b.T, b.targets + b.filled * b.T);
    if (++b.filled == b.B) batch_score(&b);
    b.score.stopped = b.filled == 0 && stop && stop();
  }
  batch_score(&b);
  batch_close(&b);
  return b.score;
}

// ---- gpt eval ----

// tokens (n): windows start every `stride` tokens; the targets that a window before has scored are ignored.
static Score evaluate_tokens(Gpt *m, const int32_t *tokens, int64_t n, int64_t stride, const double *token_bytes) {
  const GptOptions *o = gpt_options(m);
  Batch b = batch_open(m, o->B, o->T, token_bytes);
  int64_t scored = 0;                                   // last token that was a target
  for (int64_t start = 0; scored < n - 1; start += stride) {
    int32_t *ids = b.ids + b.filled * b.T, *targets = b.targets + b.filled * b.T;
    for (int64_t t = 0; t < b.T; t++) {
      int64_t at = start + t;
      ids[t] = at < n ? tokens[at] : 0;
      targets[t] = at + 1 < n && at + 1 > scored ? tokens[at + 1] : IGNORED_TARGET;
    }
    scored = start + b.T;
    if (++b.filled == b.B) batch_score(&b);
  }
  batch_score(&b);
  batch_close(&b);
  return b.score;
}

static void print_score(const Options *o, const Score *s, const char *name, double seconds) {
  double loss = score_loss(s), bits = score_bits_per_byte(s);
  printf("%s: loss %.6f nats a token, perplexity %.4f, bits per byte %.4f; %lld tokens, %.0f bytes, %.1f s\n", name, loss, exp(loss), bits, (long long)s->tokens, s->bytes, seconds);
  if (!o->json) return;
  Buffer line = {0};
  buffer_printf(&line, "{\"loss\": ");
  json_write_number(&line, loss);
  buffer_printf(&line, ", \"perplexity\": ");
  json_write_number(&line, exp(loss));
  buffer_printf(&line, ", \"bits_per_byte\": ");
  json_write_number(&line, bits);
  buffer_printf(&line, ", \"tokens\": %lld, \"bytes\": %.0f}", (long long)s->tokens, s->bytes);
  printf("%s\n", line.data);
  buffer_free(&line);
}

int eval_command(const Options *o) {
  if (o->arg_count < 2) fail(EXIT_REQUEST, "gpt eval needs a MODEL and a TEXT, %zu were named; gpt eval run my.txt", o->arg_count);
  LoadedModel l = load_model(o->args[0], o, PURPOSE_EVALUATE, o->eval_batch);
  if (!l.tokenizer) fail(EXIT_REQUEST, "%s: has no tokenizer.json, so a text cannot be scored", l.checkpoint->dir);
  TokenBuffer ids = {0};
  size_t n;
  char *text = corpus_read_texts(o->args + 1, o->arg_count - 1, &n);
  if (tokenizer_eot(l.tokenizer) >= 0) token_buffer_append(&ids, tokenizer_eot(l.tokenizer));   // so that the first token is scored too
  tokenizer_encode_or_fail(l.tokenizer, o->args[1], text, n, &ids, SPECIAL_NONE);
  int64_t count = (int64_t)ids.count, T = l.config.context;
  if (o->limit > 0) count = MIN(count, o->limit + 1);
  if (count < 2) fail(EXIT_REQUEST, "%s: too short: %lld tokens, at least 2 are needed", o->args[1], (long long)count);
  if (o->stride > T) fail(EXIT_REQUEST, "--stride %lld is more than the context of %lld tokens", (long long)o->stride, (long long)T);
  double *bytes = corpus_token_bytes(l.tokenizer, (int32_t)l.config.vocab), start = seconds_now();
  Score score = evaluate_tokens(l.gpt, ids.ids, count, o->stride > 0 ? o->stride : T, bytes);
  if (!isfinite(score.nats)) fail(EXIT_NO, "%s: the loss is not finite: the weights are damaged or the run diverged", l.checkpoint->dir);
  print_score(o, &score, o->args[1], seconds_now() - start);
  free(bytes);
  free(text);
  token_buffer_free(&ids);
  unload_model(&l);
  return 0;
}
