// evaluate.c: owns scoring text: validation during training and `gpt eval`. See evaluate.h.
//
// Conventions: a token is scored given what stands before it in its window; windows of `context` tokens follow one another
// without overlap (or --stride tokens apart, then each token is scored once, with the longest past it ever has).
#include "evaluate.h"
#include "corpus.h"      // corpus_read_texts, corpus_token_bytes
#include "load.h"        // load_model
#include <math.h>        // exp
#include <stdlib.h>      // free
#include <string.h>      // strcmp
#include <sys/stat.h>    // stat

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
  bool more = windows > 0;
  for (int64_t w = 0, targets = 0; more && !b.score.stopped; w++) {
    targets += dataloader_sequential(data, w, b.ids + b.filled * b.T, b.targets + b.filled * b.T);   // a row of one document has fewer targets than T
    if (++b.filled == b.B) batch_score(&b);
    more = w + 1 < windows && (most_tokens <= 0 || targets + b.T <= most_tokens);
    b.score.stopped = more && b.filled == 0 && stop && stop();
  }
  batch_score(&b);
  batch_close(&b);
  return b.score;
}

// ---- gpt eval ----

// The first n tokens of a stream: windows start every `stride` tokens; the targets that a window before has scored are ignored.
static Score evaluate_stream(Gpt *m, const Dataloader *stream, int64_t n, int64_t stride, const double *token_bytes) {
  const GptOptions *o = gpt_options(m);
  Batch b = batch_open(m, o->B, o->T, token_bytes);
  int32_t *window = xmalloc((size_t)b.T + 1, sizeof *window);
  int64_t scored = 0;                                   // last token that was a target
  for (int64_t start = 0; scored < n - 1; start += stride) {
    int32_t *ids = b.ids + b.filled * b.T, *targets = b.targets + b.filled * b.T;
    int64_t have = MIN(b.T + 1, n - start);
    dataloader_read(stream, start, have, window);
    for (int64_t t = 0; t < b.T; t++) {
      ids[t] = t < have ? window[t] : 0;
      targets[t] = t + 1 < have && start + t + 1 > scored ? window[t + 1] : IGNORED_TARGET;
    }
    scored = start + b.T;
    if (++b.filled == b.B) batch_score(&b);
  }
  batch_score(&b);
  batch_close(&b);
  free(window);
  return b.score;
}

// Shards are regular files: what is read of a pipe to look at it is gone.
static bool is_shard(const char *path) {
  uint8_t first[4];
  struct stat st;
  FILE *f = stat(path, &st) || !S_ISREG(st.st_mode) ? NULL : fopen(path, "rb");
  size_t n = f ? fread(first, 1, sizeof first, f) : 0;
  if (f) fclose(f);
  return shard_begins(first, n);
}

static Dataloader *open_stream(const Options *o, const LoadedModel *l) {
  const char *const *names = o->args + 1;
  size_t count = o->arg_count - 1, shards = 0, n;
  for (size_t i = 0; i < count; i++) shards += strcmp(names[i], "-") && is_shard(names[i]);
  if (shards) {
    if (shards < count) fail(EXIT_REQUEST, "%zu of the %zu files named are shards, the others are not: score them one after the other", shards, count);
    char **paths = xmalloc(count, sizeof *paths);
    for (size_t i = 0; i < count; i++) paths[i] = xstrdup(names[i]);
    Dataloader *stream = dataloader_open_paths(paths, count, SHARD_HEADER, l->config.vocab);
    corpus_check_tokenizer(stream, l->tokenizer, names[0]);
    free_names(paths, count);
    return stream;
  }
  if (!l->tokenizer) fail(EXIT_REQUEST, "%s: has no tokenizer.json, so a text cannot be scored", l->checkpoint->dir);
  TokenBuffer ids = {0};
  char *text = corpus_read_texts(names, count, &n);
  if (tokenizer_eot(l->tokenizer) >= 0) token_buffer_append(&ids, tokenizer_eot(l->tokenizer));   // so that the first token is scored too
  tokenizer_encode_or_fail(l->tokenizer, names[0], text, n, &ids, SPECIAL_NONE);
  Dataloader *stream = dataloader_open_tokens(ids.ids, (int64_t)ids.count, l->config.vocab, tokenizer_eot(l->tokenizer));
  free(text);
  token_buffer_free(&ids);
  return stream;
}

static void print_score(const Options *o, const Score *s, double seconds) {
  double loss = score_loss(s), bits = score_bits_per_byte(s);
  printf("%s", o->args[1]);
  if (o->arg_count > 2) printf(" and %zu more", o->arg_count - 2);
  printf(": loss %.6f nats a token, perplexity %.4f, ", loss, exp(loss));
  if (s->bytes > 0) printf("bits per byte %.4f; ", bits);
  printf("%lld tokens, %.0f bytes, %.1f s\n", (long long)s->tokens, s->bytes, seconds);
  if (!o->json) return;
  Buffer line = {0};
  buffer_printf(&line, "{\"loss\": ");
  json_write_number(&line, loss);
  buffer_printf(&line, ", \"perplexity\": ");
  json_write_number(&line, exp(loss));
  buffer_printf(&line, ", \"bits_per_byte\": ");
  if (s->bytes > 0) json_write_number(&line, bits);
  else buffer_printf(&line, "null");
  buffer_printf(&line, ", \"tokens\": %lld, \"bytes\": %.0f}", (long long)s->tokens, s->bytes);
  printf("%s\n", line.data);
  buffer_free(&line);
}

int eval_command(const Options *o) {
  if (o->arg_count < 2) fail(EXIT_REQUEST, "gpt eval needs a MODEL and a TEXT or shards, %zu were named; gpt eval run my.txt", o->arg_count);
  LoadedModel l = load_model(o->args[0], o, PURPOSE_EVALUATE, o->eval_batch);
  Dataloader *stream = open_stream(o, &l);
  int64_t count = dataloader_tokens(stream), T = l.config.context;
  if (o->limit > 0) count = MIN(count, o->limit + 1);
  if (count < 2) fail(EXIT_REQUEST, "%s: too short: %lld tokens, at least 2 are needed", o->args[1], (long long)count);
  if (o->stride > T) fail(EXIT_REQUEST, "--stride %lld is more than the context of %lld tokens", (long long)o->stride, (long long)T);
  double *bytes = l.tokenizer ? corpus_token_bytes(l.tokenizer, (int32_t)l.config.vocab) : NULL, start = seconds_now();
  Score score = evaluate_stream(l.gpt, stream, count, o->stride > 0 ? o->stride : T, bytes);
  if (!isfinite(score.nats)) fail(EXIT_NO, "%s: the loss is not finite: the weights are damaged or the run diverged", l.checkpoint->dir);
  print_score(o, &score, seconds_now() - start);
  free(bytes);
  dataloader_close(stream);
  unload_model(&l);
  return 0;
}
