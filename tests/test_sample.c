// test_sample.c: owns the tests of sample.c: the choice of a token, the loop around the cache, and how text leaves the program.
//
// Choices are held against a second, slower way to say the same (ranks instead of sorting); generation against a model that
// encodes the whole window anew for every token.
#include "oracle.h"        // random_value
#include "../detmath.h"    // det_exp
#include "../sample.h"     // what is tested

enum { VOCAB = 29, CONTEXT = 13 };

static uint64_t counter;
static double draw(void) { return random_value("test_sample", counter++); }   // in (-1, 1)

// ---- the choice of one token ----

static const SampleSettings plain = {.temperature = 1, .top_p = 1, .repetition_penalty = 1, .seed = 5};

static int32_t pick(SampleSettings s, const double *logits, size_t n, uint64_t sample, uint64_t position) {
  double copy[VOCAB];
  memcpy(copy, logits, n * sizeof *logits);
  return sample_pick(&s, copy, n, NULL, 0, sample, position);
}

// How many tokens are likelier than i, or as likely with a lower id.
static size_t rank_of(const double *logits, size_t i) {
  size_t rank = 0;
  for (size_t j = 0; j < VOCAB; j++) rank += logits[j] > logits[i] || (logits[j] == logits[i] && j < i);
  return rank;
}

// sample_pick() said again: token by token by its rank, where there is nothing to penalise. Tokens are laid end to end by rank if
// any cut is asked for, else by id, and the random number falls on one.
static int32_t pick_slowly(const SampleSettings *s, const double *logits, uint64_t sample, uint64_t position) {
  double p[VOCAB], by_rank[VOCAB], highest = -INFINITY, total = 0, before = 0;
  int32_t id_of[VOCAB];
  size_t likely = 0, kept = 0;
  for (size_t i = 0; i < VOCAB; i++) highest = MAX(highest, logits[i]);
  for (size_t i = 0; i < VOCAB; i++) {
    p[i] = det_exp((logits[i] - highest) / s->temperature);
    likely += !(p[i] < s->min_p);
    by_rank[rank_of(logits, i)] = p[i], id_of[rank_of(logits, i)] = (int32_t)i;
  }
  bool sorted = (s->top_k && (size_t)s->top_k < likely) || s->top_p < 1;
  kept = s->top_k && (size_t)s->top_k < likely ? (size_t)s->top_k : likely;
  for (size_t r = 0; r < kept; r++) total += by_rank[r];
  if (s->top_p < 1) {
    size_t r = 0;
    for (; r < kept && (r == 0 || before < s->top_p * total); r++) before += by_rank[r];
    kept = r, total = before;
  }
  double u = rng_uniform(s->seed, (uint32_t)sample, rng_site("sample"), position) * total, sum = 0;
  for (size_t i = 0; i < VOCAB; i++) {
    size_t r = sorted ? i : rank_of(logits, i);
    if (r >= kept) continue;
    sum += by_rank[r];
    if (u < sum) return id_of[r];
  }
  return -1;
}

static void choices_are_those_of_the_ranks(void) {
  for (int trial = 0; trial < 4000; trial++) {
    double logits[VOCAB];
    SampleSettings s = {.temperature = 1 + 0.9 * draw(), .top_k = trial % 3 ? 0 : trial % 37, .top_p = trial % 4 ? 1 : 0.6 + 0.39 * draw(),
                        .min_p = trial % 5 ? 0 : 0.2 + 0.19 * draw(), .repetition_penalty = 1, .seed = (uint64_t)trial};
    for (size_t i = 0; i < VOCAB; i++) logits[i] = trial % 7 ? 4 * draw() : floor(3 * draw());   // now and then many are equal
    uint64_t sample = (uint64_t)trial % 3, position = (uint64_t)trial * 11;
    int32_t got = pick(s, logits, VOCAB, sample, position), want = pick_slowly(&s, logits, sample, position);
    CHECK_MSG(got == want, "trial %d: token %d, expected %d (temperature %g, top k %lld, top p %g, min p %g)", trial, got, want, s.temperature,
              (long long)s.top_k, s.top_p, s.min_p);
  }
}

static void frequencies_are_the_probabilities(void) {
  enum { DRAWS = 20000 };
  const double logits[4] = {0, 1, -1, 2}, temperature = 2;
  int seen[4] = {0};
  double total = 0;
  SampleSettings s = plain;
  s.temperature = temperature;
  for (int i = 0; i < 4; i++) total += exp(logits[i] / temperature);
  for (uint64_t i = 0; i < DRAWS; i++) seen[pick(s, logits, 4, i % 2, i / 2)]++;
  for (int i = 0; i < 4; i++) {
    double p = exp(logits[i] / temperature) / total;
    CHECK_NEAR(seen[i], DRAWS * p, 5 * sqrt(DRAWS * p * (1 - p)), "token %d: within five standard deviations", i);
  }
}

static void the_likeliest_and_its_equals(void) {
  const double logits[5] = {-1, 3, 0, 3, 2};
  SampleSettings s = plain;
  bool seen[5] = {false};
  s.temperature = 0;
  for (uint64_t i = 0; i < 20; i++) CHECK_EQ(pick(s, logits, 5, 0, i), 1);
  s = plain, s.top_k = 1;
  for (uint64_t i = 0; i < 20; i++) CHECK_EQ(pick(s, logits, 5, 0, i), 1);
  s = plain, s.top_p = 1e-9;                   // one always stays
  for (uint64_t i = 0; i < 20; i++) CHECK_EQ(pick(s, logits, 5, 0, i), 1);
  s = plain, s.min_p = 1;                      // as likely as the likeliest is not below it
  for (uint64_t i = 0; i < 40; i++) seen[pick(s, logits, 5, 0, i)] = true;
  CHECK(!seen[0] && seen[1] && !seen[2] && seen[3] && !seen[4]);
}

static void seed_sample_and_position_decide(void) {
  const double logits[VOCAB] = {0};            // all equally likely
  int same[3] = {0};
  for (uint64_t i = 0; i < 100; i++) {
    SampleSettings other = plain;
    other.seed++;
    int32_t id = pick(plain, logits, VOCAB, 0, i);
    same[0] += id == pick(other, logits, VOCAB, 0, i);
    same[1] += id == pick(plain, logits, VOCAB, 1, i);
    same[2] += id == pick(plain, logits, VOCAB, 0, i + 1);
  }
  // 100 / 29 = 3.4 are expected, more than 20 have a probability of about 1e-10
  for (int i = 0; i < 3; i++) CHECK_MSG(same[i] <= 20, "%d of 100 are equal", same[i]);
}

static void what_was_said_is_penalised_once(void) {
  double logits[6] = {4, -3, 0, 2, -1, 5};
  const double want[6] = {2, -6, 0, 2, -1, 2.5};
  const int32_t history[] = {0, 1, 0, 5, 2, 1, 0};
  SampleSettings s = plain;
  s.temperature = 0, s.repetition_penalty = 2;
  CHECK_EQ(sample_pick(&s, logits, 6, history, 7, 0, 0), 5);
  for (int i = 0; i < 6; i++) CHECK_NEAR(logits[i], want[i], 0, "logit %d", i);
}

static void damaged_models_are_refused(void) {
  const double bad[3] = {NAN, 1, 2}, large[3] = {0, INFINITY, 1}, none[2] = {-INFINITY, -INFINITY}, ruled_out[2] = {-INFINITY, 0};
  EXPECT_FAIL(EXIT_NO, "not finite", pick(plain, bad, 3, 0, 0));
  EXPECT_FAIL(EXIT_NO, "not finite", pick(plain, large, 3, 0, 0));
  EXPECT_FAIL(EXIT_NO, "not finite", pick(plain, none, 2, 0, 0));
  for (uint64_t i = 0; i < 20; i++) CHECK_EQ(pick(plain, ruled_out, 2, 0, i), 1);
}

// ---- the loop ----

static Gpt *tiny_model(Device *d, int64_t vocab, int64_t context, double size) {
  GptConfig c = {.family = FAMILY_GPT2, .layers = 1, .heads = 2, .kv_heads = 2, .channels = 8, .context = context, .ffn = 16, .vocab = vocab,
                 .bias = true, .tie = true, .norm_eps = 1e-5, .rope_theta = 10000};
  Gpt *m = gpt_create(d, &(GptOptions){.config = c, .purpose = PURPOSE_SAMPLE, .B = 1, .T = 4});
  const TensorTable *table = gpt_table(m);
  for (size_t i = 0; i < table->count; i++) {
    const TensorRow *row = &table->rows[i];
    size_t n = tensor_values(row);
    double *values = xmalloc(n, sizeof *values);
    for (size_t j = 0; j < n; j++) values[j] = (row->init == INIT_ONE) + size * random_value(row->name, j);
    gpt_write(m, PART_WEIGHT, row, 0, n, values);
    free(values);
  }
  gpt_refresh(m);
  return m;
}

typedef struct { int32_t ids[200]; size_t count, limit; } Taken;
static bool take(void *context, int32_t id) {
  Taken *t = context;
  t->ids[t->count++] = id;
  return t->count < t->limit;
}

// The same, with the whole window encoded for every token.
static void generate_slowly(Gpt *m, const int32_t *prompt, size_t n, size_t most, const SampleSettings *s, uint64_t sample, Taken *out, int64_t *dropped) {
  int32_t window[200];
  double logits[VOCAB];
  size_t limit = (size_t)gpt_config(m)->context, have = 0;
  *dropped = n > limit;
  for (size_t i = n > limit ? n - limit : 0; i < n; i++) window[have++] = prompt[i];
  for (out->count = 0; out->count < most;) {
    if (have > limit) {
      size_t keep = limit / 2 > 0 ? limit / 2 : 1;
      for (size_t i = 0; i < keep; i++) window[i] = window[have - keep + i];
      have = keep;
      ++*dropped;
    }
    gpt_decode(m, window, have, 0, logits);
    window[have] = sample_pick(s, logits, VOCAB, window, have, sample, out->count);
    out->ids[out->count++] = window[have++];
  }
}

static void the_cache_changes_no_token(void) {
  Device *d = reference_device();
  for (int64_t context = 1; context <= CONTEXT; context += 4) {
    Gpt *m = tiny_model(d, VOCAB, context, 1.5), *again = tiny_model(d, VOCAB, context, 1.5);
    for (size_t n = 1; n <= 17; n += n < 12 ? 3 : 1) {
      int32_t prompt[17];
      int64_t dropped, want_dropped;
      Taken got = {.limit = 200}, want = {.limit = 200};
      SampleSettings s = plain;
      s.repetition_penalty = 1.3, s.seed = n;
      for (size_t i = 0; i < n; i++) prompt[i] = (int32_t)((draw() + 1) / 2 * VOCAB);
      CHECK_EQ(sample_generate(m, prompt, n, 40, -1, &s, 3, take, &got, &dropped), 40);
      generate_slowly(again, prompt, n, 40, &s, 3, &want, &want_dropped);
      CHECK_EQ(got.count, 40);
      CHECK_EQ(dropped, want_dropped);
      for (size_t i = 0; i < 40; i++) CHECK_MSG(got.ids[i] == want.ids[i], "context %lld, prompt of %zu, token %zu: %d, expected %d", (long long)context, n, i, got.ids[i], want.ids[i]);
    }
    gpt_destroy(m);
    gpt_destroy(again);
  }
}

static void generation_ends(void) {
  Device *d = reference_device();
  Gpt *m = tiny_model(d, VOCAB, CONTEXT, 1.5);
  const int32_t prompt[2] = {3, 4};
  Taken all = {.limit = 200}, some = {.limit = 200}, few = {.limit = 5}, none = {.limit = 200};
  CHECK_EQ(sample_generate(m, prompt, 2, 30, -1, &plain, 0, take, &all, NULL), 30);
  int32_t eot = all.ids[12];
  size_t first = 0;
  while (all.ids[first] != eot) first++;
  CHECK_EQ(sample_generate(m, prompt, 2, 30, eot, &plain, 0, take, &some, NULL), first);   // and the end itself is not handed on
  CHECK_EQ(some.count, first);
  CHECK(!memcmp(some.ids, all.ids, first * sizeof *all.ids));
  CHECK_EQ(sample_generate(m, prompt, 2, 30, -1, &plain, 0, take, &few, NULL), 5);         // the fifth counts, it was made
  CHECK_EQ(few.count, 5);
  CHECK_EQ(sample_generate(m, prompt, 2, 0, -1, &plain, 0, take, &none, NULL), 0);
  CHECK_EQ(none.count, 0);
  gpt_destroy(m);
}

static void text_is_the_decoded_tokens(void) {
  Device *d = reference_device();
  Tokenizer *t = tokenizer_byte(true);
  Gpt *m = tiny_model(d, 257, CONTEXT, 0.5);
  const int32_t prompt[1] = {'a'};
  Taken ids = {.limit = 200};
  Buffer text = {0};
  buffer_append(&text, ">", 1);
  int64_t made = sample_text(m, t, prompt, 1, 50, &plain, 2, &text);
  sample_generate(m, prompt, 1, 50, 256, &plain, 2, take, &ids, NULL);
  CHECK_EQ(made, ids.count);
  CHECK_EQ(text.len, ids.count + 1);
  for (size_t i = 0; i < ids.count; i++) CHECK_EQ((unsigned char)text.data[i + 1], ids.ids[i]);
  buffer_free(&text);
  gpt_destroy(m);
  CHECK_EQ(sample_start(t), 256);
  tokenizer_free(t);
  t = tokenizer_char_from_text("text", "zy\nx", 4, false);
  CHECK_EQ(sample_start(t), 0);        // a newline sorts first
  tokenizer_free(t);
  t = tokenizer_byte(false);
  CHECK_EQ(sample_start(t), '\n');
  tokenizer_free(t);
}

// Vocabularies are padded: 50304 rows for GPT-2's 50257 ids. A token that has no text must not be made and counted.
static void padding_of_the_vocabulary_is_never_chosen(void) {
  Device *d = reference_device();
  Tokenizer *t = tokenizer_byte(false);
  Gpt *m = tiny_model(d, 700, CONTEXT, 0.5);
  const int32_t prompt[1] = {'a'};
  Taken all = {.limit = 200}, some = {.limit = 200};
  size_t beyond = 0;
  sample_generate(m, prompt, 1, 100, -1, &plain, 2, take, &all, NULL);
  for (size_t i = 0; i < all.count; i++) beyond += all.ids[i] >= 256;
  CHECK(beyond > 20);                       // the model does prefer them
  SampleSettings known = plain;
  known.ids = 256;
  sample_generate(m, prompt, 1, 100, -1, &known, 2, take, &some, NULL);
  for (size_t i = 0; i < some.count; i++) CHECK_MSG(some.ids[i] < 256, "token %zu: id %d", i, some.ids[i]);
  Buffer text = {0};
  CHECK_EQ(sample_text(m, t, prompt, 1, 100, &plain, 2, &text), 100);
  CHECK_EQ(text.len, 100);
  buffer_free(&text);
  gpt_destroy(m);
  tokenizer_free(t);
}

int main(int argc, char **argv) {
  TEST_BEGIN(argc, argv);
  RUN(choices_are_those_of_the_ranks);
  RUN(frequencies_are_the_probabilities);
  RUN(the_likeliest_and_its_equals);
  RUN(seed_sample_and_position_decide);
  RUN(what_was_said_is_penalised_once);
  RUN(damaged_models_are_refused);
  RUN(the_cache_changes_no_token);
  RUN(generation_ends);
  RUN(text_is_the_decoded_tokens);
  RUN(padding_of_the_vocabulary_is_never_chosen);
  return TEST_END();
}
