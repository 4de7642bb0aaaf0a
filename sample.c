// sample.c: owns generation: the choice of a token, the loop with its key-value cache, the writing of text as it comes. See sample.h.
#include "sample.h"
#include "detmath.h"   // det_exp
#include "load.h"      // load_model
#include "rng.h"       // rng_uniform
#include <errno.h>     // errno
#include <math.h>      // INFINITY
#include <stdlib.h>    // qsort, free
#include <string.h>    // strlen

// ---- the choice of one token ----

typedef struct { double logit; int32_t id; } Candidate;

static int likeliest_first(const void *a, const void *b) {
  const Candidate *x = a, *y = b;
  if (x->logit != y->logit) return x->logit > y->logit ? -1 : 1;
  return x->id < y->id ? -1 : x->id > y->id;
}

// Keskar et al. 2019: the logit of a token seen before is divided by the penalty if positive, else multiplied. Once a token.
static void penalise(double *logits, const int32_t *history, size_t n, double penalty) {
  for (size_t i = 0; i < n; i++) {
    bool first = true;
    for (size_t j = 0; j < i && first; j++) first = history[j] != history[i];
    if (!first) continue;
    double *x = &logits[history[i]];
    *x = *x > 0 ? *x / penalty : *x * penalty;
  }
}

int32_t sample_pick(const SampleSettings *s, double *logits, size_t vocab, const int32_t *history, size_t n, uint64_t sample, uint64_t position) {
  if (s->repetition_penalty != 1) penalise(logits, history, n, s->repetition_penalty);
  size_t best = 0;
  for (size_t i = 1; i < vocab; i++) if (logits[i] > logits[best]) best = i;
  if (!isfinite(logits[best])) fail(EXIT_NO, "the model's logits are not finite: its weights are damaged or it diverged");
  if (s->temperature == 0) return (int32_t)best;

  Candidate *c = xmalloc(vocab, sizeof *c);
  size_t kept = 0;
  double highest = logits[best], total = 0;
  for (size_t i = 0; i < vocab; i++) {
    double logit = (logits[i] - highest) / s->temperature;   // 0 for the likeliest
    if (s->min_p > 0 && det_exp(logit) < s->min_p) continue;
    c[kept++] = (Candidate){logit, (int32_t)i};
  }
  bool cut = (s->top_k > 0 && (size_t)s->top_k < kept) || s->top_p < 1;
  if (cut) qsort(c, kept, sizeof *c, likeliest_first);
  if (s->top_k > 0) kept = MIN(kept, (size_t)s->top_k);
  for (size_t i = 0; i < kept; i++) total += c[i].logit = det_exp(c[i].logit);   // from here on: a probability
  if (s->top_p < 1) {
    double reached = 0, wanted = s->top_p * total;
    size_t i = 0;
    while (i < kept && (i == 0 || reached < wanted)) reached += c[i++].logit;
    kept = i;
    total = reached;
  }
  double u = rng_uniform(s->seed, (uint32_t)sample, rng_site("sample"), position) * total;
  size_t chosen = 0;
  for (double sum = c[0].logit; sum <= u && chosen + 1 < kept; ) sum += c[++chosen].logit;
  int32_t id = c[chosen].id;
  free(c);
  return id;
}

// ---- the loop ----

int64_t sample_generate(Gpt *m, const int32_t *prompt, size_t n, int64_t most, int32_t eot, const SampleSettings *s, uint64_t sample,
                        SampleSink sink, void *context, int64_t *dropped) {
  size_t limit = (size_t)gpt_config(m)->context, vocab = (size_t)gpt_config(m)->vocab, ids = s->ids ? MIN((size_t)s->ids, vocab) : vocab;
  int32_t *window = xmalloc(MAX(limit, (size_t)1) + 1, sizeof *window);   // the tokens that the cache stands for
  double *logits = xmalloc(vocab, sizeof *logits);
  size_t have = MIN(n, limit), cached = 0;
  int64_t made = 0;
  memcpy(window, prompt + (n - have), have * sizeof *window);
  if (dropped) *dropped = n > limit;
  for (; made < most; made++) {
    if (have == limit + 1) {          // full: the newer half stays and is encoded again from position 0
      size_t keep = MAX(limit / 2, (size_t)1);
      memmove(window, window + have - keep, keep * sizeof *window);
      have = keep;
      cached = 0;
      if (dropped) ++*dropped;
    }
    gpt_decode(m, window + cached, have - cached, cached, logits);
    cached = have;
    int32_t id = sample_pick(s, logits, ids, window, have, sample, (uint64_t)made);
    if (id == eot) break;
    if (!sink(context, id)) { made++; break; }
    window[have++] = id;
  }
  free(window);
  free(logits);
  return made;
}

typedef struct { const Tokenizer *t; Buffer *out; } TextSink;

static bool append_text(void *context, int32_t id) {
  TextSink *sink = context;
  size_t length;
  const char *bytes = tokenizer_decode_one(sink->t, id, &length);
  if (bytes) buffer_append(sink->out, bytes, length);
  return true;
}

int64_t sample_text(Gpt *m, const Tokenizer *t, const int32_t *prompt, size_t n, int64_t most, const SampleSettings *s, uint64_t sample, Buffer *out) {
  TextSink sink = {t, out};
  SampleSettings known = *s;
  known.ids = tokenizer_vocab_size(t);
  return sample_generate(m, prompt, n, most, tokenizer_eot(t), &known, sample, append_text, &sink, NULL);
}

int32_t sample_start(const Tokenizer *t) {
  if (tokenizer_eot(t) >= 0) return tokenizer_eot(t);
  TokenBuffer ids = {0};
  int32_t start = tokenizer_encode(t, "\n", 1, &ids, SPECIAL_NONE) == 1 ? ids.ids[0] : 0;
  token_buffer_free(&ids);
  return start;
}

// ---- writing text as it comes ----

typedef struct {
  const Tokenizer *t;
  Buffer text;           // everything generated
  size_t written;        // bytes of it that are out
  const char *stop;      // or NULL
  bool stream, stopped;
} Writer;

// What may go out now: up to a character that is not complete yet, and short of what may become the stop text.
static size_t safe_length(const Writer *w) {
  size_t n = w->text.len, held = w->stop ? strlen(w->stop) - 1 : 0;
  n = n > held ? n - held : 0;
  for (size_t back = 1; back <= 3 && back <= n; back++) {
    unsigned char c = (unsigned char)w->text.data[n - back];
    if (c < 0x80) break;
    if (c < 0xC0) continue;
    size_t whole = c >= 0xF0 ? 4 : c >= 0xE0 ? 3 : 2;
    return back < whole ? n - back : n;
  }
  return n;
}

static void put_out(Writer *w, size_t upto) {
  if (!w->stream || upto <= w->written) return;
  fwrite(w->text.data + w->written, 1, upto - w->written, stdout);
  if (fflush(stdout)) fail(EXIT_MACHINE, "cannot write to stdout: %s", strerror(errno));
  w->written = upto;
}

static bool write_token(void *context, int32_t id) {
  Writer *w = context;
  size_t length, before = w->text.len;
  const char *bytes = tokenizer_decode_one(w->t, id, &length);
  if (bytes) buffer_append(&w->text, bytes, length);
  if (w->stop && w->text.len) {
    size_t from = before > strlen(w->stop) ? before - strlen(w->stop) : 0;
    char *at = memmem(w->text.data + from, w->text.len - from, w->stop, strlen(w->stop));
    if (at) { w->text.len = (size_t)(at - w->text.data); w->stopped = true; return false; }
  }
  put_out(w, safe_length(w));
  return true;
}

// ---- gpt sample ----

static char *read_prompt(const Options *o, size_t *n) {
  if (o->prompt && o->prompt_file) fail(EXIT_REQUEST, "--prompt and --prompt-file are both given: take one");
  if (o->prompt) { *n = strlen(o->prompt); return xstrdup(o->prompt); }
  if (!o->prompt_file) { *n = 0; return NULL; }
  return read_file(strcmp(o->prompt_file, "-") ? o->prompt_file : STANDARD_INPUT, "--prompt-file", (size_t)1 << 30, n);
}

typedef struct { LoadedModel model; SampleSettings settings; TokenBuffer prompt; char *text; size_t n; } Session;

static void sample_one(const Session *s, const Options *o, int64_t index, Buffer *json) {
  Writer w = {.t = s->model.tokenizer, .stop = o->stop && *o->stop ? o->stop : NULL, .stream = !o->json && o->stream};
  int64_t dropped = 0;
  double start = seconds_now();
  if (s->n && !o->json) { fwrite(s->text, 1, s->n, stdout); fflush(stdout); }
  int64_t made = sample_generate(s->model.gpt, s->prompt.ids, s->prompt.count, o->sample_tokens, tokenizer_eot(w.t), &s->settings, (uint64_t)index, write_token, &w, &dropped);
  double seconds = seconds_now() - start;
  static bool said;
  if (dropped && !said) warn("the text is longer than the model's context of %lld tokens: the older half was dropped %lld times", (long long)s->model.config.context, (long long)dropped);
  said |= dropped > 0;
  if (o->verbose) fprintf(stderr, "%lld tokens in %.2f s, %.1f tokens/s\n", (long long)made, seconds, (double)made / seconds);
  if (o->json) {
    buffer_printf(json, "%s{\"text\": ", index ? ", " : "");
    json_write_string(json, w.text.data ? w.text.data : "", w.text.len);
    buffer_printf(json, ", \"tokens\": %lld, \"stopped\": %s, \"seconds\": %.3f}", (long long)made, made < o->sample_tokens || w.stopped ? "true" : "false", seconds);
  } else {
    w.stream = true;
    put_out(&w, w.text.len);
    if (w.text.len == 0 || w.text.data[w.text.len - 1] != '\n') fputc('\n', stdout);
    if (index + 1 < o->count) printf("---\n");
  }
  buffer_free(&w.text);
}

int sample_command(const Options *o) {
  if (o->arg_count > 1) fail(EXIT_REQUEST, "gpt sample takes one MODEL, %zu are named (the second is %s); a prompt goes behind --prompt", o->arg_count, o->args[1]);
  Session s = {0};
  s.text = read_prompt(o, &s.n);
  s.model = load_model(o->arg_count ? o->args[0] : NULL, o, PURPOSE_SAMPLE, 1);
  const Tokenizer *t = s.model.tokenizer;
  if (!t) fail(EXIT_REQUEST, "%s: has no tokenizer.json, so its tokens cannot be shown", s.model.checkpoint->dir);
  s.settings = (SampleSettings){o->temperature, o->top_k, o->top_p, o->min_p, o->repetition_penalty, (uint64_t)o->seed, tokenizer_vocab_size(t)};
  if (s.n && s.model.config.starts_with_eot && tokenizer_eot(t) >= 0) token_buffer_append(&s.prompt, tokenizer_eot(t));
  char *name = o->prompt_file ? format("--prompt-file %s", o->prompt_file) : xstrdup("--prompt");
  if (s.n) tokenizer_encode_or_fail(t, name, s.text, s.n, &s.prompt, SPECIAL_NONE);
  else token_buffer_append(&s.prompt, sample_start(t));
  if (o->verbose)
    fprintf(stderr, "%s: %lld layers, %lld channels, context %lld, vocabulary %lld; %s\n", s.model.checkpoint->dir, (long long)s.model.config.layers,
            (long long)s.model.config.channels, (long long)s.model.config.context, (long long)s.model.config.vocab, s.model.device->description);
  Buffer json = {0};
  if (o->json) {
    buffer_printf(&json, "{\"model\": ");
    json_write_string(&json, s.model.checkpoint->dir, strlen(s.model.checkpoint->dir));
    buffer_printf(&json, ", \"prompt\": ");
    json_write_string(&json, s.text ? s.text : "", s.n);
    buffer_printf(&json, ", \"samples\": [");
  }
  for (int64_t i = 0; i < o->count; i++) sample_one(&s, o, i, &json);
  if (o->json) printf("%s]}\n", json.data);
  if (fflush(stdout)) fail(EXIT_MACHINE, "cannot write to stdout: %s", strerror(errno));
  buffer_free(&json);
  token_buffer_free(&s.prompt);
  free(name);
  free(s.text);
  unload_model(&s.model);
  return 0;
}
