// test_model.c: owns what test_gradients.c leaves of the model: its memory, its initial numbers, decoding and the update. Its configuration
// is test_config.c's. Both devices where a device computes.
#include "oracle.h"      // random_value
#include "tiny_model.h"  // tiny
#include "../bf16.h"     // bf16_of_float
#include "../comm.h"     // comm_part
#include "../model.h"    // the whole model
#include <math.h>        // fabs, sqrt
#include <stdbool.h>

static Device *devices[2];   // reference, cpu

// ---- memory ----

static Device *inner;
static char *allocated;
static size_t allocated_bytes, allocations, releases, refreshes;

static void *count_allocate(Device *d, size_t bytes) {
  (void)d;
  allocations++;
  allocated_bytes = bytes;
  return allocated = inner->allocate(inner, bytes);
}

static void count_release(Device *d, void *p, size_t bytes) {
  (void)d;
  releases += p == allocated && bytes == allocated_bytes;
  inner->release(inner, p, bytes);
}

static void count_refresh(Device *d, const real *params, size_t n) {
  (void)d;
  CHECK(params && n > 0);
  refreshes++;
}

static void refuse_create(Device *d, const GptOptions *o) { gpt_create(d, o); }
static void *no_memory(Device *d, size_t bytes) { (void)d; (void)bytes; return NULL; }

// One allocation of exactly the total; every 64 bytes of it belong to something that has a name, and nothing outside does.
static void check_memory(Device *d, const GptOptions *o) {
  MemoryTable table;
  Device counting = *d;
  counting.allocate = count_allocate, counting.release = count_release;
  inner = d;
  allocations = releases = 0;
  gpt_memory(&table, d, o);
  Gpt *m = gpt_create(&counting, o);
  size_t sum = 0;
  for (size_t i = 0; i < table.count; i++) sum += table.line[i].bytes;
  CHECK_EQ(sum, table.total);
  CHECK_EQ(allocations, 1);
  CHECK_EQ(allocated_bytes, table.total);
  for (size_t at = 0; at < table.total; at += 64) CHECK_MSG(strcmp(gpt_name_at(m, allocated + at), "?"), "byte %zu of %zu belongs to nothing", at, table.total);
  CHECK_STR(gpt_name_at(m, allocated + table.total), "?");
  CHECK_STR(gpt_name_at(m, allocated - 1), "?");
  gpt_destroy(m);
  CHECK_EQ(releases, 1);
}

static void memory_is_what_was_counted(void) {
  for (int i = 0; i < 2; i++)
    for (Family family = FAMILY_GPT2; family <= FAMILY_LLAMA; family++)
      for (Purpose purpose = PURPOSE_TRAIN; purpose <= PURPOSE_SAMPLE; purpose++) {
        size_t totals[3];
        for (Recompute r = RECOMPUTE_NONE; r <= RECOMPUTE_BLOCK; r++) {
          GptOptions o = {.config = tiny(family), .purpose = purpose, .B = purpose == PURPOSE_SAMPLE ? 1 : 3, .T = 7, .recompute = r};
          MemoryTable table;
          check_memory(devices[i], &o);
          gpt_memory(&table, devices[i], &o);
          totals[r] = table.total;
        }
        if (purpose == PURPOSE_TRAIN) CHECK(totals[0] > totals[1] && totals[1] > totals[2]);
      }
}

// What the banner says each kind takes: every kind of memory is under its own name. Weights that are their own masters have no copy.
static size_t bytes_of_kind(const MemoryTable *table, const char *kind) {
  size_t bytes = 0;
  for (size_t i = 0; i < table->count; i++) bytes += strcmp(table->line[i].kind, kind) ? 0 : table->line[i].bytes;
  return bytes;
}

static void memory_is_under_its_kind(void) {
  for (int i = 0; i < 2; i++) {
    Device *d = devices[i];
    GptOptions o = {.config = tiny(FAMILY_LLAMA), .purpose = PURPOSE_TRAIN, .B = 3, .T = 7};
    MemoryTable table;
    gpt_memory(&table, d, &o);
    CHECK_EQ(bytes_of_kind(&table, "logits"), round_up(3 * 7 * round_up((size_t)o.config.vocab, d->row_multiple) * d->real_size, 64));
    CHECK_EQ(bytes_of_kind(&table, "key-value cache"), 0);
    Gpt *m = gpt_create(d, &o);
    CHECK_EQ(bytes_of_kind(&table, "weights"), round_up(gpt_table(m)->total * d->real_size, 64));
    CHECK_EQ(bytes_of_kind(&table, "gradients"), round_up(gpt_table(m)->total * d->acc_size, 64) + round_up(STAT_COUNT * sizeof(double), 64));
    CHECK_EQ(bytes_of_kind(&table, "optimizer"), 2 * round_up(gpt_table(m)->total * d->acc_size, 64));
    gpt_destroy(m);
    o.purpose = PURPOSE_SAMPLE, o.B = 1;
    gpt_memory(&table, d, &o);
    const size_t one = round_up((size_t)o.config.context * 2 * 6 * d->real_size, 64);   // 2 key-value heads of 6 channels
    CHECK_EQ(bytes_of_kind(&table, "key-value cache"), 2 * 2 * one);
  }
}

// Where weights are stored in 16 bits, training keeps their masters in 32, unless it is told not to; nothing else does.
static void memory_of_bf16(void) {
  Device *d = cpu_device_bf16(1);
  for (Purpose purpose = PURPOSE_TRAIN; purpose <= PURPOSE_SAMPLE; purpose++)
    for (int no_master = 0; no_master < 2; no_master++) {
      GptOptions o = {.config = tiny(FAMILY_GPT2), .purpose = purpose, .B = 1, .T = 7, .no_master = no_master};
      MemoryTable table;
      TensorTable t;
      gpt_memory(&table, d, &o);
      tensor_table_build(&t, &o.config, d->row_multiple);
      CHECK_EQ(bytes_of_kind(&table, "weights"), round_up(t.total * 2, 64) + (purpose == PURPOSE_TRAIN && !no_master ? round_up(t.total * 4, 64) : 0));
      tensor_table_free(&t);
    }
  d->destroy(d);
}

// The gradient of q, k, v takes the place of the feed-forward layer's where it fits; moments are shared among ranks, from two on.
static void memory_that_is_shared(void) {
  Device *d = devices[1];
  size_t optimizer = 0;
  for (int64_t ffn = 71; ffn <= 72; ffn++)   // 72 is the width of q, k and v
    for (int shards = 0; shards <= 2; shards++) {
      GptOptions o = {.config = tiny(FAMILY_GPT2), .purpose = PURPOSE_TRAIN, .B = 3, .T = 7, .shards = shards};
      MemoryTable table;
      o.config.ffn = ffn;
      gpt_memory(&table, d, &o);
      CHECK_EQ(bytes_of_kind(&table, "activation gradients"), round_up(21 * 24 * 4, 64) + (ffn < 72 ? round_up(21 * 72 * 4, 64) : 0));
      if (shards == 0) optimizer = bytes_of_kind(&table, "optimizer");
      else CHECK(shards == 1 ? bytes_of_kind(&table, "optimizer") == optimizer : bytes_of_kind(&table, "optimizer") < optimizer * 2 / 3);
    }
}

// Every line of the memory table, of all kinds of models: what a banner says, and what fits, changes on purpose only.
static void memory_is_pinned(void) {
  Buffer all = {0};
  for (int i = 0; i < 2; i++)
    for (int kind = 0; kind < 2 * 3 * 3 * 2 * 2; kind++) {
      GptOptions o = {.config = tiny((Family)(kind % 2)), .purpose = (Purpose)(kind / 2 % 3), .T = 7, .recompute = (Recompute)(kind / 6 % 3), .shards = kind / 18 % 2 ? 3 : 0, .shard_rank = kind % 3,
                      .micro_batches = kind % 4};
      o.B = o.purpose == PURPOSE_SAMPLE ? 1 : 3;
      o.config.tie = kind / 36 % 2;
      if (kind % 5 == 0) o.config.ffn = 24;                // qkv is wider than that
      if (kind % 7 == 0) o.B *= 100, o.config.vocab = 257;    // more rows than logits are held at once
      MemoryTable table;
      gpt_memory(&table, devices[i], &o);
      buffer_printf(&all, "%s %d:", devices[i]->name, kind);
      for (size_t l = 0; l < table.count; l++) buffer_printf(&all, " %s %zu", table.line[l].kind, table.line[l].bytes);
      buffer_printf(&all, ", %zu\n", table.total);
    }
  CHECK_HASH(all.data, all.len, "ce2335830cdcc681b9c8fe0e5a2372ddc995cc6e166f51482233d0dc67bee442");
  buffer_free(&all);
}

// The device is asked for the room of each product of the model, and of its attention.
static Buffer asked;
static size_t ask_linear(const Device *d, size_t rows, size_t IC, size_t OC) {
  (void)d;
  char *shape = format(" %zux%zux%zu", rows, IC, OC);
  if (!asked.len || strcmp(strrchr(asked.data, ' '), shape)) buffer_append(&asked, shape, strlen(shape));   // it may ask twice
  free(shape);
  return rows * IC * OC;
}
static size_t ask_attention(const Device *d, const AttentionShape *s, WantGradient want) {
  (void)d;
  buffer_printf(&asked, " %zu,%zu,%zu heads %zu,%zu,%zu %g %d", s->B, s->T, s->S, s->NH, s->KVH, s->HS, s->dropout.p, want == WITH_GRADIENT);
  return 1;
}

static size_t copies_of(size_t OC, size_t IC) { return 1000 * OC + IC; }
static size_t ask_copies(const Device *d, size_t OC, size_t IC, WantGradient gradient) { (void)d; return copies_of(OC, IC) * (gradient == WITH_GRADIENT ? 2 : 1); }

static void scratch_is_asked_for(void) {
  static const char *const expected[] = {
    " 21x24x72 21x24x24 21x24x37 21x37x24 21x24x32 3,7,7 heads 4,4,6 0.1 1 = 36289", " 21x24x72 21x24x24 21x24x37 21x37x24 21x24x32 3,7,7 heads 4,4,6 0.1 0 = 36289",
    " 7x24x72 7x24x24 7x24x37 7x37x24 1x24x32 1,7,13 heads 4,4,6 0.1 0 = 12097", " 21x24x48 21x24x24 21x24x74 21x37x24 21x24x32 3,7,7 heads 4,2,6 0.1 1 = 37297"};
  Device d = *devices[1];
  d.linear_scratch = ask_linear, d.attention_scratch = ask_attention, d.scratch_bytes = 0;
  for (int i = 0; i < 4; i++) {
    GptOptions o = {.config = tiny(i == 3 ? FAMILY_LLAMA : FAMILY_GPT2), .purpose = i == 3 ? PURPOSE_TRAIN : (Purpose)i, .B = i == 2 ? 1 : 3, .T = 7};
    o.config.dropout = 0.1;
    asked.len = 0;
    const size_t most = gpt_scratch(&d, &o);
    buffer_printf(&asked, " = %zu", most);
    CHECK_STR(asked.data, expected[i]);
  }
  d.weight_copies = ask_copies, d.linear_scratch = NULL, d.attention_scratch = NULL;
  for (int train = 0; train < 2; train++) {   // both layers' four weights and the head
    const GptConfig c = tiny(FAMILY_GPT2);
    const size_t C = (size_t)c.channels, ffn = (size_t)c.ffn, sum = (size_t)c.layers * (copies_of(3 * C, C) + copies_of(C, C) + copies_of(ffn, C) + copies_of(C, ffn)) + copies_of(32, C);
    CHECK_EQ(gpt_scratch(&d, &(GptOptions){.config = c, .purpose = train ? PURPOSE_TRAIN : PURPOSE_EVALUATE, .B = 3, .T = 7}), train ? 2 * sum : sum);
  }
  d.weight_copies = NULL, d.scratch_bytes = 77;
  CHECK_EQ(gpt_scratch(&d, &(GptOptions){.config = tiny(FAMILY_GPT2), .purpose = PURPOSE_TRAIN, .B = 3, .T = 7}), 77);
  buffer_free(&asked);
}

// Without a backward pass one block's activations serve all blocks.
static void evaluation_keeps_one_block(void) {
  for (int i = 0; i < 2; i++)
    for (Purpose purpose = PURPOSE_EVALUATE; purpose <= PURPOSE_SAMPLE; purpose++) {
      GptOptions o = {.config = tiny(FAMILY_GPT2), .purpose = purpose, .B = 1, .T = 7};
      size_t bytes[2];
      for (int deep = 0; deep < 2; deep++) {
        MemoryTable table;
        o.config.layers = deep ? 9 : 2;
        gpt_memory(&table, devices[i], &o);
        bytes[deep] = bytes_of_kind(&table, "activations");
      }
      CHECK_EQ(bytes[0], bytes[1]);
    }
}

// Logits are held for as many rows at once as asked for, down to one, and for no more than there are.
static void logits_of_chosen_rows(void) {
  Device *d = devices[0];
  GptOptions o = {.config = tiny(FAMILY_GPT2), .purpose = PURPOSE_TRAIN, .B = 1, .T = 7};
  MemoryTable table;
  size_t totals[4], row = round_up(round_up((size_t)o.config.vocab, d->row_multiple) * d->real_size, 64);
  for (int i = 0; i < 4; i++) {
    o.classifier_rows = (int[]){1, 2, 7, 9}[i];
    gpt_memory(&table, d, &o);
    totals[i] = table.total;
  }
  CHECK_MSG(totals[1] - totals[0] >= row / 2 && totals[1] - totals[0] <= row, "one row: %zu bytes, of logits %zu", totals[1] - totals[0], row);
  CHECK(totals[2] > totals[1] && totals[3] == totals[2]);
}

static void memory_that_is_not_there(void) {
  Device none = *devices[0];
  GptOptions o = {.config = tiny(FAMILY_GPT2), .purpose = PURPOSE_TRAIN, .B = 1, .T = 7};
  none.allocate = no_memory;
  EXPECT_FAIL(3, "smaller --batch", refuse_create(&none, &o));
  MemoryTable table;
  o.B = 1 << 12;
  gpt_memory(&table, &none, &o);
  char *words = format("refused %zu MiB for", table.total >> 20);
  EXPECT_FAIL(3, words, refuse_create(&none, &o));
  free(words);
  // a row is 192 bytes on the reference: one buffer beyond 2^64 bytes, one beyond 2^63, several together
  const size_t limit = (size_t)1 << 63;
  o.T = 1;
  o.B = (int64_t)1 << 57;
  EXPECT_FAIL(2, "residual needs", gpt_memory(&table, devices[0], &o));
  o.B = (int64_t)(limit / 192 * 5 / 4);
  EXPECT_FAIL(2, "residual needs", gpt_memory(&table, devices[0], &o));
  o.B = (int64_t)(limit / 192 * 3 / 5);
  EXPECT_FAIL(2, "mean 1 needs", gpt_memory(&table, devices[0], &o));
  o.B = INT64_MAX / 8;
  o.T = 1 << 20;
  EXPECT_FAIL(2, "--batch 1152921504606846975 x --context 1048576 overflows", refuse_create(devices[0], &o));
  o = (GptOptions){.config = tiny(FAMILY_GPT2), .purpose = PURPOSE_TRAIN, .B = 1, .T = 7};
  o.config.heads = o.config.kv_heads = 5;
  EXPECT_FAIL(2, "--heads 5 does not divide", refuse_create(devices[0], &o));
  for (int i = 0; i < 2; i++)      // whole pages of which are more than there are addresses
    for (size_t less = 1; less < (size_t)1 << 24; less = 3 * less + 1) CHECK(devices[i]->allocate(devices[i], SIZE_MAX - less) == NULL);
}

// Every kind of name occurs in the arena, and where weights and gradients lie the tensor is named.
static void names_in_the_arena(void) {
  static const char *const wanted[] = {"transformer.wte.weight", "transformer.h.1.attn.c_attn.weight", "gradient of transformer.ln_f.bias",
                                       "layer 1 qkv", "layer 0 residual", "logits", "losses", "gradient of qkv", "first moments", "statistics"};
  GptOptions o = {.config = tiny(FAMILY_GPT2), .purpose = PURPOSE_TRAIN, .B = 1, .T = 7};
  Device counting = *devices[0];
  counting.allocate = count_allocate;
  inner = devices[0];
  Gpt *m = gpt_create(&counting, &o);
  for (size_t w = 0; w < ARRAY_LEN(wanted); w++) {
    bool found = false;
    for (size_t at = 0; at < allocated_bytes && !found; at += 64) found = !strcmp(gpt_name_at(m, allocated + at), wanted[w]);
    CHECK_MSG(found, "%s is nowhere", wanted[w]);
  }
  CHECK_STR(gpt_name_at(m, allocated), "transformer.wte.weight");
  size_t gaps = 0;                          // between two tensors there are only weights
  for (size_t i = 0; i + 1 < gpt_table(m)->count; i++) {
    const TensorRow *row = &gpt_table(m)->rows[i];
    const size_t end = row->offset + row->size;
    CHECK_STR(gpt_name_at(m, allocated + (end - 1) * sizeof(double)), row->name);
    if (end == row[1].offset) continue;
    CHECK_STR(gpt_name_at(m, allocated + end * sizeof(double)), "weights");
    gaps++;
  }
  CHECK(gaps > 0);
  gpt_destroy(m);
}

// ---- decoding ----

enum { CONTEXT = 13, VOCAB = 29 };

static void random_ids(int32_t *ids, size_t n) {
  for (size_t i = 0; i < n; i++) ids[i] = (int32_t)((random_value("ids", i) + 1) / 2 * VOCAB);
}

// Noise on every tensor, so that norm weights and biases matter too.
static void disturb(Gpt *m) {
  const TensorTable *table = gpt_table(m);
  for (size_t i = 0; i < table->count; i++) {
    const TensorRow *row = &table->rows[i];
    size_t n = tensor_values(row);
    double *values = xmalloc(n + 1, sizeof *values);
    for (size_t j = 0; j < n; j++) values[j] = (row->init == INIT_ONE) + 0.3 * random_value(row->name, j);
    gpt_write(m, PART_WEIGHT, row, 0, n, values);
    free(values);
  }
  gpt_refresh(m);
}

// The cache is filled in pieces of `piece` tokens by calls of `call` tokens; after each call the logits must be the full pass's.
static void check_decode(Gpt *full, const int32_t *ids, const double *logits, int64_t piece, size_t call) {
  GptOptions o = {.config = *gpt_config(full), .purpose = PURPOSE_SAMPLE, .B = 1, .T = piece, .shares_weights = true, .weights_of = full};
  Gpt *m = gpt_create(gpt_device(full), &o);
  double got[VOCAB];
  for (int again = 0; again < 2; again++)      // the second time over a cache that is full of the first
    for (size_t at = 0, n; at < CONTEXT; at += n) {
      n = MIN(call, CONTEXT - at);
      gpt_decode(m, ids + at, n, at, got);
      CHECK_MSG(!memcmp(got, logits + (at + n - 1) * VOCAB, sizeof got), "%s, %s: position %zu, pieces of %lld, calls of %zu: %.17g is not %.17g", gpt_device(full)->name,
                o.config.family == FAMILY_GPT2 ? "gpt2" : "llama", at + n - 1, (long long)piece, call, got[0], logits[(at + n - 1) * VOCAB]);
      CHECK_EQ(gpt_options(m)->T, piece);
    }
  gpt_destroy(m);
}

static void decoding_equals_the_full_pass(void) {
  int32_t ids[2 * CONTEXT];
  double logits[2 * CONTEXT * VOCAB];
  random_ids(ids, ARRAY_LEN(ids));
  for (int i = 0; i < 2; i++)
    for (Family family = FAMILY_GPT2; family <= FAMILY_LLAMA; family++) {
      Gpt *m = gpt_create(devices[i], &(GptOptions){.config = tiny(family), .purpose = PURPOSE_EVALUATE, .B = 2, .T = CONTEXT, .classifier_rows = family == FAMILY_GPT2 ? 5 : 0});
      disturb(m);
      gpt_logits(m, ids, logits);
      for (int b = 0; b < 2; b++)
        for (int64_t piece = 1; piece <= CONTEXT; piece += 4)
          for (size_t call = 1; call <= CONTEXT; call += 6) check_decode(m, ids + b * CONTEXT, logits + b * CONTEXT * VOCAB, piece, call);
      gpt_destroy(m);
    }
}

// The losses of a batch are those of its logits.
static void losses_are_those_of_the_logits(void) {
  int32_t ids[CONTEXT], targets[CONTEXT];
  double logits[CONTEXT * VOCAB], losses[CONTEXT];
  random_ids(ids, CONTEXT);
  for (int t = 0; t < CONTEXT; t++) targets[t] = t == 4 ? IGNORED_TARGET : ids[CONTEXT - 1 - t];
  for (int i = 0; i < 2; i++) {
    Gpt *m = gpt_create(devices[i], &(GptOptions){.config = tiny(FAMILY_LLAMA), .purpose = PURPOSE_EVALUATE, .B = 1, .T = CONTEXT});
    disturb(m);
    gpt_logits(m, ids, logits);
    gpt_begin_step(m);
    gpt_forward(m, ids, targets, &(MicroBatch){.loss_scale = 1}, WITHOUT_GRADIENT);
    gpt_token_losses(m, losses);
    double sum = 0;
    for (int t = 0; t < CONTEXT; t++) {
      double exps = 0;
      for (int j = 0; j < VOCAB; j++) exps += exp(logits[t * VOCAB + j]);
      double expected = t == 4 ? 0 : log(exps) - logits[t * VOCAB + targets[t]];
      // fp32: an exponential and a sum of 29, each rounded, of numbers about 10
      CHECK_NEAR(losses[t], expected, i ? 1e-5 : 1e-13, "position %d", t);
      sum += losses[t];
    }
    CHECK_NEAR(gpt_loss_sum(m), sum, 1e-12, "sum of %d losses in fp64", CONTEXT);
    gpt_destroy(m);
  }
}

// ---- the update ----

static const Part parts[] = {PART_WEIGHT, PART_M, PART_V, PART_GRADIENT};

// All weights, moments (and gradients) in one array: values[part][table order].
static double *snapshot(Gpt *m, size_t *count) {
  const TensorTable *table = gpt_table(m);
  double *values = xmalloc(4 * (size_t)table->parameters, sizeof *values);
  size_t at = 0;
  for (size_t p = 0; p < 4; p++)
    for (size_t i = 0; i < table->count; i++) {
      size_t n = tensor_values(&table->rows[i]);
      if (n) gpt_read(m, parts[p], &table->rows[i], 0, n, values + at);
      at += n;
    }
  *count = at;
  return values;
}

// Known weights, gradients and moments (second ones positive) in every tensor; returns the gradients' norm as the model sums it.
static double fill(Gpt *m) {
  const TensorTable *table = gpt_table(m);
  disturb(m);
  gpt_begin_step(m);
  for (size_t i = 0; i < table->count; i++) {
    const TensorRow *row = &table->rows[i];
    size_t n = tensor_values(row);
    double *values = xmalloc(n + 1, sizeof *values);
    for (size_t p = 1; p < 4; p++) {
      for (size_t j = 0; j < n; j++) {
        double x = random_value(p == 1 ? "m" : p == 2 ? "v" : "g", j + row->offset);
        values[j] = p == 2 ? 0.01 + x * x : 0.1 * x;
      }
      gpt_write(m, parts[p], row, 0, n, values);
    }
    free(values);
  }
  gpt_finish_gradients(m);
  return gpt_grad_norm(m);
}

static const AdamWSettings SETTINGS = {.lr = 0.02, .beta1 = 0.8, .beta2 = 0.95, .eps = 1e-3, .bias1 = 0.488, .bias2 = 0.142625, .grad_clip = 1};
static const double DECAY = 0.3;

static void check_updated(const Device *d, const TensorRow *row, const double *before, const double *after, size_t n, size_t at, double clip) {
  const AdamWSettings *s = &SETTINGS;
  double unit = d->real_size == 4 ? 1e-6 : 1e-15;   // about ten roundings of fp32 or fp64
  for (size_t j = at; j < at + tensor_values(row); j++) {
    double g = before[3 * n + j] * clip, w = before[j];
    double first = s->beta1 * before[n + j] + (1 - s->beta1) * g, second = s->beta2 * before[2 * n + j] + (1 - s->beta2) * g * g;
    double step = first / s->bias1 / (sqrt(second / s->bias2) + s->eps) + (row->decays ? DECAY : 0) * w;
    CHECK_NEAR(after[n + j], first, unit * 0.2, "%s: %s, first moment of %zu", d->name, row->name, j - at);
    CHECK_NEAR(after[2 * n + j], second, unit * 1.2, "%s: %s, second moment of %zu", d->name, row->name, j - at);
    CHECK_NEAR(after[j], w - s->lr * step, unit * (fabs(w) + s->lr * fabs(step)), "%s: %s, weight of %zu", d->name, row->name, j - at);
  }
}

static void check_padding(Gpt *m, const TensorRow *row) {
  size_t n = tensor_values(row), more = row->size - n;
  double values[16 * 24];
  for (size_t p = 0; p < 4 && more; p++) {
    gpt_read(m, parts[p], row, n, more, values);
    for (size_t j = 0; j < more; j++) CHECK_MSG(values[j] == 0, "%s: padding holds %g", row->name, values[j]);
  }
}

static void update_is_adamw(void) {
  for (int i = 0; i < 2; i++)
    for (Family family = FAMILY_GPT2; family <= FAMILY_LLAMA; family++) {
      Gpt *m = gpt_create(devices[i], &(GptOptions){.config = tiny(family), .purpose = PURPOSE_TRAIN, .B = 1, .T = 3});
      const TensorTable *table = gpt_table(m);
      double norm = fill(m), squares = 0;
      size_t n, at = 0;
      double *before = snapshot(m, &n), *after;
      n /= 4;
      for (size_t j = 0; j < n; j++) squares += before[3 * n + j] * before[3 * n + j];
      CHECK_NEAR(norm, sqrt(squares), 1e-12 * norm, "norm");
      CHECK_MSG(norm > 1, "the norm %g must lie above the clip", norm);
      gpt_update(m, &SETTINGS, DECAY);
      after = snapshot(m, &n);
      n /= 4;
      for (size_t t = 0; t < table->count; at += tensor_values(&table->rows[t++])) {
        check_updated(devices[i], &table->rows[t], before, after, n, at, SETTINGS.grad_clip / norm);
        check_padding(m, &table->rows[t]);
        CHECK(table->rows[t].decays == (table->rows[t].dims == 2));
      }
      free(before);
      free(after);
      gpt_destroy(m);
    }
}

// Runs an update that must (or must not) change anything.
static void check_written(Gpt *m, const AdamWSettings *s, bool written, const char *what) {
  size_t n;
  double *before = snapshot(m, &n), *after;
  gpt_update(m, s, DECAY);
  after = snapshot(m, &n);
  bool same = !memcmp(before, after, n * sizeof *before);
  CHECK_MSG(same == !written, "%s: %s was %s", gpt_device(m)->name, what, written ? "ignored" : "applied");
  free(before);
  free(after);
}

// ---- gradients over ranks: a reducer that stands for two ranks of the same rows gives twice every gradient, each element once ----

typedef struct { Device *d; int scalars, waits; size_t elements; } Twins;

static void twice(void *context, acc *x, size_t n) {
  Twins *twins = context;
  double *values = xmalloc(n, sizeof *values);
  twins->d->download_acc(twins->d, values, x, n);
  for (size_t i = 0; i < n; i++) values[i] *= 2;
  twins->d->upload_acc(twins->d, x, values, n);
  twins->elements += n;
  free(values);
}
static void count_scalars(void *context, scalar *x, size_t n) { (void)x; ((Twins *)context)->scalars += (int)n; }
static void count_waits(void *context) { ((Twins *)context)->waits++; }

static double *gradients_of_step(Gpt *m, size_t *n) {
  int32_t ids[6] = {1, 2, 3, 4, 5, 6}, targets[6] = {2, 3, 4, 5, 6, 7};
  MicroBatch place = {.loss_scale = 1 / 6.0, .last = true};
  const TensorTable *table = gpt_table(m);
  gpt_begin_step(m);
  gpt_forward(m, ids, targets, &place, WITH_GRADIENT);
  gpt_backward(m, &place);
  gpt_finish_gradients(m);
  double *all = xmalloc(table->parameters, sizeof *all);
  *n = 0;
  for (size_t i = 0; i < table->count; *n += tensor_values(&table->rows[i++]))
    if (table->rows[i].size) gpt_read(m, PART_GRADIENT, &table->rows[i], 0, tensor_values(&table->rows[i]), all + *n);
  return all;
}

static void every_gradient_is_reduced_once(void) {
  for (int i = 0; i < 2; i++)
    for (Family family = FAMILY_GPT2; family <= FAMILY_LLAMA; family++) {
      Gpt *m = gpt_create(devices[i], &(GptOptions){.config = tiny(family), .purpose = PURPOSE_TRAIN, .B = 2, .T = 3});
      size_t n;
      disturb(m);
      double *alone = gradients_of_step(m, &n), norm = gpt_grad_norm(m);
      Twins twins = {.d = devices[i]};
      gpt_set_reducer(m, &(Reducer){.gradients = twice, .scalars = count_scalars, .wait = count_waits, .context = &twins});
      double *both = gradients_of_step(m, &n);
      size_t wrong = 0;
      for (size_t j = 0; j < n; j++) wrong += !(both[j] == 2 * alone[j]);   // a factor of two rounds nothing
      CHECK_MSG(wrong == 0, "%zu of %zu gradients are not twice those of one rank", wrong, n);
      CHECK(gpt_grad_norm(m) == 2 * norm && norm > 0);
      CHECK(twins.elements == gpt_table(m)->total && twins.scalars == 1 && twins.waits >= 1);
      gpt_destroy(m);
      free(alone);
      free(both);
    }
}

// Gradients of two micro-batches of three tokens, of which six may differ.
static double *gradients_of_two(Gpt *m, const int32_t ids[6], size_t *n) {
  static const int32_t targets[3] = {5, 6, 7};
  const MicroBatch place = {.loss_scale = 1 / 6.0};
  const TensorTable *table = gpt_table(m);
  double *all = xmalloc(table->parameters, sizeof *all);
  gpt_begin_step(m);
  for (int k = 0; k < 2; k++) {
    gpt_forward(m, ids + 3 * k, targets, &place, WITH_GRADIENT);
    gpt_backward(m, &place);
  }
  gpt_finish_gradients(m);
  *n = 0;
  for (size_t i = 0; i < table->count; *n += tensor_values(&table->rows[i++])) gpt_read(m, PART_GRADIENT, &table->rows[i], 0, tensor_values(&table->rows[i]), all + *n);
  return all;
}

// Tokens that a step looks up have a row of the lookup's gradient each, and no step sees those of the step before. Room for the tokens of as
// many micro-batches as were promised gives the bits of room for all; a step that breaks the promise is refused.
static void lookups_have_rows_for_what_they_touch(void) {
  static const int32_t steps[][6] = {{0, 1, 2, 3, 4, 28}, {9, 9, 0, 0, 9, 9}, {28, 27, 26, 25, 24, 23}, {1, 1, 1, 1, 1, 1}};
  for (int i = 0; i < 2; i++) {
    GptOptions o = {.config = tiny(FAMILY_GPT2), .purpose = PURPOSE_TRAIN, .B = 1, .T = 3};
    Gpt *all = gpt_create(devices[i], &o);
    o.micro_batches = 2;
    Gpt *few = gpt_create(devices[i], &o);
    gpt_init(all, 1), gpt_init(few, 1);
    for (size_t s = 0; s < ARRAY_LEN(steps); s++) {
      size_t n;
      double *want = gradients_of_two(all, steps[s], &n), *got = gradients_of_two(few, steps[s], &n);
      CHECK_MSG(!memcmp(want, got, n * sizeof *want), "%s: step %zu differs", devices[i]->name, s);
      free(got);
      got = gradients_of_two(few, steps[s], &n);
      CHECK_MSG(!memcmp(want, got, n * sizeof *want), "%s: step %zu differs the second time", devices[i]->name, s);
      free(want);
      free(got);
    }
    size_t n;
    free(gradients_of_two(few, steps[0], &n));
    const MicroBatch place = {.loss_scale = 1};
    gpt_forward(few, (int32_t[]){28, 0, 4}, (int32_t[]){1, 2, 3}, &place, WITH_GRADIENT);          // looked up before
    gpt_forward(few, (int32_t[]){5, 6, 7}, (int32_t[]){1, 2, 3}, &place, WITHOUT_GRADIENT);
    if (i == 0) EXPECT_FAIL(EXIT_FAILURE, "a step of more than 2 micro-batches", gpt_forward(few, (int32_t[]){28, 5, 4}, (int32_t[]){1, 2, 3}, &place, WITH_GRADIENT));
    gpt_destroy(all);
    gpt_destroy(few);
  }
}

// In a tensor that could be forgotten, a gradient is zero everywhere.
static void every_tensor_has_a_gradient(void) {
  for (int i = 0; i < 2; i++)
    for (Family family = FAMILY_GPT2; family <= FAMILY_LLAMA; family++)
      for (int tie = 0; tie < 2; tie++) {
        GptConfig c = tiny(family);
        c.tie = tie;
        Gpt *m = gpt_create(devices[i], &(GptOptions){.config = c, .purpose = PURPOSE_TRAIN, .B = 2, .T = 3});
        size_t n, at = 0;
        disturb(m);
        double *all = gradients_of_step(m, &n);
        for (size_t t = 0; t < gpt_table(m)->count; at += tensor_values(&gpt_table(m)->rows[t++])) {
          size_t moved = 0;
          for (size_t j = at; j < at + tensor_values(&gpt_table(m)->rows[t]); j++) moved += all[j] != 0;
          CHECK_MSG(moved > 0, "%s has no gradient", gpt_table(m)->rows[t].name);
        }
        gpt_destroy(m);
        free(all);
      }
}

// Dropout acts where gradients are wanted, as seed, step and place say; elsewhere the model is the one without.
static double loss_with(double dropout, const MicroBatch *place, WantGradient want) {
  int32_t ids[6] = {1, 2, 3, 4, 5, 6}, targets[6] = {2, 3, 4, 5, 6, 7};
  GptConfig c = tiny(FAMILY_GPT2);
  c.dropout = dropout;
  Gpt *m = gpt_create(devices[0], &(GptOptions){.config = c, .purpose = PURPOSE_TRAIN, .B = 2, .T = 3});
  disturb(m);
  gpt_begin_step(m);
  gpt_forward(m, ids, targets, place, want);
  double loss = gpt_loss_sum(m);
  gpt_destroy(m);
  return loss;
}

static void dropout_is_where_it_is_asked_for(void) {
  const MicroBatch place = {.loss_scale = 1, .seed = 3, .step = 4, .row0 = 5}, others[] = {{.loss_scale = 1, .seed = 9, .step = 4, .row0 = 5},
    {.loss_scale = 1, .seed = 3, .step = 9, .row0 = 5}, {.loss_scale = 1, .seed = 3, .step = 4, .row0 = 9}};
  const double none = loss_with(0, &place, WITH_GRADIENT), some = loss_with(0.3, &place, WITH_GRADIENT);
  CHECK(loss_with(0.3, &place, WITHOUT_GRADIENT) == none && loss_with(0, &place, WITHOUT_GRADIENT) == none);
  CHECK(some != none && loss_with(0.3, &place, WITH_GRADIENT) == some);
  for (size_t i = 0; i < ARRAY_LEN(others); i++) CHECK(loss_with(0.3, &others[i], WITH_GRADIENT) != some);
}

// The device's copies of the weights are renewed after every change of them; the model uses the device that it is given.
static void weights_are_refreshed(void) {
  Device counting = *devices[1];
  counting.refresh = count_refresh;
  Gpt *m = gpt_create(devices[1], &(GptOptions){.config = tiny(FAMILY_GPT2), .purpose = PURPOSE_TRAIN, .B = 1, .T = 3});
  gpt_set_device(m, &counting);
  CHECK(gpt_device(m) == &counting);
  refreshes = 0;
  gpt_init(m, 3);
  CHECK_EQ(refreshes, 1);
  gpt_refresh(m);
  CHECK_EQ(refreshes, 2);
  gpt_begin_step(m);
  gpt_finish_gradients(m);
  CHECK_EQ(refreshes, 2);
  gpt_update(m, &SETTINGS, DECAY);
  CHECK_EQ(refreshes, 3);
  gpt_set_device(m, devices[1]);
  gpt_destroy(m);
}

// ---- moments shared among ranks (--zero 1) ----
// Each rank in turn, beside a model that shares nothing and has the same numbers: what a rank gives to the others must be that model's, and what it
// would get from them is taken from that model.

typedef struct { const double *expected; size_t at, calls, wrong; int shards, rank, scalars, waits; double whole, sum; } Ranks;

static float number_at(const void *x, size_t i, size_t size) { return size == 2 ? float_of_bf16(((const bf16 *)x)[i]) : ((const float *)x)[i]; }

static void gather_from_expected(void *context, void *x, size_t n, size_t size) {
  Ranks *r = context;
  const CommPart mine = comm_part(n, r->shards, r->rank);
  for (size_t i = 0; i < n; i++) {
    const float value = (float)r->expected[r->at + i];
    const bool own = i >= mine.first && i < mine.first + mine.n;
    if (own) r->wrong += number_at(x, i, size) != (size == 2 ? float_of_bf16(bf16_of_float(value)) : value);
    else if (size == 2) ((bf16 *)x)[i] = bf16_of_float(value);
    else ((float *)x)[i] = value;
  }
  r->at += n, r->calls++;
}
static void nothing_to_reduce(void *context, acc *x, size_t n) { (void)context, (void)x, (void)n; }
static void sum_of_ranks(void *context, scalar *x, size_t n) {   // the loss, then the sum of squares
  Ranks *r = context;
  r->scalars += (int)n;
  if (r->scalars == 2) r->sum += *(double *)x, *(double *)x = r->whole;
}
static void wait_of_ranks(void *context) { ((Ranks *)context)->waits++; }

// A part as it lies in the arena.
static double *arena_of(Gpt *m, Part part) {
  const TensorTable *t = gpt_table(m);
  double *values = xcalloc(t->total, sizeof *values);
  for (size_t i = 0; i < t->count; i++) if (t->rows[i].size) gpt_read(m, part, &t->rows[i], 0, t->rows[i].size, values + t->rows[i].offset);
  return values;
}

// A part is gathered when it is read for the first time, and only then.
static void check_gathered(Gpt *m, Ranks *r, Part part, const double *expected, size_t calls, const char *what) {
  const size_t total = gpt_table(m)->total;
  *r = (Ranks){.expected = expected, .shards = r->shards, .rank = r->rank};
  for (int again = 0; again < 2; again++) {
    double *got = arena_of(m, part);
    CHECK_MSG(!memcmp(got, expected, total * sizeof *got), "%s differ", what);
    CHECK_MSG(r->wrong == 0 && r->calls == calls && r->at == (calls ? total : 0), "%s: %zu wrong, %zu calls, %zu of %zu elements", what, r->wrong, r->calls, r->at, total);
    free(got);
  }
}

static void check_rank(Gpt *whole, double *const expected[4], double whole_norm, int shards, int rank, double *sum) {
  GptOptions o = *gpt_options(whole);
  o.shards = shards, o.shard_rank = rank;
  Gpt *m = gpt_create(gpt_device(whole), &o);
  const size_t buckets = (size_t)o.config.layers + 2, total = gpt_table(m)->total;
  const bool masters = gpt_device(m)->real_size == 2;
  Ranks r = {.shards = shards, .rank = rank, .whole = whole_norm * whole_norm};
  gpt_set_reducer(m, &(Reducer){.gradients = nothing_to_reduce, .scalars = sum_of_ranks, .wait = wait_of_ranks, .gather = gather_from_expected, .context = &r});
  CHECK(fill(m) == whole_norm && r.scalars == 2 && r.waits == 2);
  *sum += r.sum;
  r = (Ranks){.expected = expected[3], .shards = shards, .rank = rank};
  gpt_gather(m, PART_GRADIENT);
  CHECK(r.wrong == 0 && r.calls == buckets && r.at == total);
  r = (Ranks){.expected = expected[0], .shards = shards, .rank = rank};
  gpt_update(m, &SETTINGS, DECAY);
  CHECK_MSG(r.wrong == 0 && r.calls == buckets && r.at == total, "update: %zu wrong, %zu calls", r.wrong, r.calls);
  check_gathered(m, &r, PART_M, expected[1], buckets, "first moments");
  check_gathered(m, &r, PART_V, expected[2], buckets, "second moments");
  check_gathered(m, &r, PART_WEIGHT, expected[0], masters ? buckets : 0, "weights");
  check_gathered(m, &r, PART_V, expected[2], 0, "second moments again");
  gpt_begin_step(m);          // whose gradients take the place of what was gathered
  check_gathered(m, &r, PART_V, expected[2], buckets, "second moments in the next step");
  gpt_destroy(m);
}

static void ranks_share_the_moments(void) {
  Device *bf16_device = cpu_device_bf16(1);
  for (int kind = 0; kind < 8; kind++) {
    GptConfig c = tiny(kind & 1 ? FAMILY_LLAMA : FAMILY_GPT2);
    c.bias = kind & 4 && c.bias;
    c.tie = kind & 4;
    Gpt *whole = gpt_create(kind & 2 ? bf16_device : devices[1], &(GptOptions){.config = c, .purpose = PURPOSE_TRAIN, .B = 1, .T = 3});
    const double norm = fill(whole);
    double *expected[4];
    expected[3] = arena_of(whole, PART_GRADIENT);
    gpt_gather(whole, PART_M);   // nothing is shared: does nothing
    double *same = arena_of(whole, PART_GRADIENT);
    CHECK(!memcmp(same, expected[3], gpt_table(whole)->total * sizeof *same));
    free(same);
    gpt_update(whole, &SETTINGS, DECAY);
    for (int p = 0; p < 3; p++) expected[p] = arena_of(whole, parts[p]);
    for (int shards = 2; shards <= 3; shards++) {
      double sum = 0;
      for (int rank = 0; rank < shards; rank++) check_rank(whole, expected, norm, shards, rank, &sum);
      CHECK_NEAR(sqrt(sum), norm, 1e-12 * norm, "norm of %d parts", shards);
    }
    for (int p = 0; p < 4; p++) free(expected[p]);
    gpt_destroy(whole);
  }
  bf16_device->destroy(bf16_device);
}

static void bad_gradients_change_nothing(void) {
  static const double bad[] = {NAN, INFINITY, -INFINITY};
  for (int i = 0; i < 2; i++) {
    Gpt *m = gpt_create(devices[i], &(GptOptions){.config = tiny(FAMILY_GPT2), .purpose = PURPOSE_TRAIN, .B = 1, .T = 3});
    const TensorRow *last = &gpt_table(m)->rows[gpt_table(m)->count - 1];
    AdamWSettings s = SETTINGS;
    for (size_t b = 0; b < ARRAY_LEN(bad); b++) {
      fill(m);
      gpt_begin_step(m);
      gpt_write(m, PART_GRADIENT, last, tensor_values(last) - 1, 1, &bad[b]);
      gpt_finish_gradients(m);
      check_written(m, &s, false, "a gradient that is not finite");
    }
    s.max_norm = fill(m) * 0.999;
    check_written(m, &s, false, "a norm over max_norm");
    s.max_norm = fill(m) * 1.001;
    check_written(m, &s, true, "a norm below max_norm");
    // a loss that is not finite, with gradients that are
    int32_t ids[3] = {1, 2, 3}, targets[3] = {2, 3, IGNORED_TARGET};
    const TensorRow *wpe = tensor_of(gpt_table(m), ROLE_WPE, -1);
    fill(m);
    gpt_begin_step(m);
    gpt_write(m, PART_WEIGHT, wpe, 0, 1, &bad[0]);
    gpt_refresh(m);
    gpt_forward(m, ids, targets, &(MicroBatch){.loss_scale = 1}, WITHOUT_GRADIENT);
    CHECK(!isfinite(gpt_loss_sum(m)));
    gpt_finish_gradients(m);
    check_written(m, &(AdamWSettings){.lr = 1, .bias1 = 1, .bias2 = 1, .eps = 1}, false, "a loss that is not finite");
    gpt_destroy(m);
  }
}

// Every part comes back as it was written, piece by piece, and parts do not overlap.
static void parts_are_apart(void) {
  for (int i = 0; i < 4; i++) {        // one rank alone shares with nobody
    Gpt *m = gpt_create(devices[i % 2], &(GptOptions){.config = tiny(FAMILY_LLAMA), .purpose = PURPOSE_TRAIN, .B = 1, .T = 3, .shards = i / 2});
    const TensorTable *table = gpt_table(m);
    for (size_t p = 0; p < 4; p++)
      for (size_t t = 0; t < table->count; t++)
        for (size_t j = 0; j < tensor_values(&table->rows[t]); j++) gpt_write(m, parts[p], &table->rows[t], j, 1, &(double){(double)(1000 * p + 10 * t + j % 7)});
    for (size_t p = 0; p < 4; p++)
      for (size_t t = 0; t < table->count; t++)
        for (size_t j = 0; j < tensor_values(&table->rows[t]); j += 5) {
          double value;
          gpt_read(m, parts[p], &table->rows[t], j, 1, &value);
          CHECK_EQ(value, 1000 * p + 10 * t + j % 7);
        }
    gpt_destroy(m);
  }
}

// ---- initial numbers ----

static void check_initial(Gpt *m, const TensorRow *row, double std) {
  size_t n = tensor_values(row);
  double *values = xmalloc(n + 1, sizeof *values), *pure = xmalloc(n + 1, sizeof *pure), mean = 0, square = 0;
  gpt_read(m, PART_WEIGHT, row, 0, n, values);
  tensor_init(row, 5, 0, n, pure);
  for (size_t j = 0; j < n; j++) {
    mean += values[j];
    square += values[j] * values[j];
    CHECK_MSG(gpt_device(m)->real_size == 4 ? (float)pure[j] == values[j] : pure[j] == values[j], "%s[%zu] is %g, not %g", row->name, j, values[j], pure[j]);
  }
  mean /= (double)MAX(n, (size_t)1);      // of whole numbers: exact
  square /= (double)MAX(n, (size_t)1);
  if (row->init == INIT_NORMAL) {         // six deviations of the mean and of the variance's estimate
    CHECK_NEAR(mean, 0, 6 * std / sqrt((double)n), "mean of %s", row->name);
    CHECK_NEAR(square / std / std, 1, 6 * sqrt(2 / (double)n), "variance of %s", row->name);
  } else if (n) CHECK_MSG(mean == (row->init == INIT_ONE) && square == mean, "%s is not all %d", row->name, row->init == INIT_ONE);
  CHECK_MSG((row->init == INIT_NORMAL) == (row->dims == 2), "%s", row->name);
  free(values);
  free(pure);
}

static void initial_numbers(void) {
  for (int i = 0; i < 2; i++)
    for (Family family = FAMILY_GPT2; family <= FAMILY_LLAMA; family++) {
      GptConfig c = tiny(family);
      c.init_std = i ? 0.05 : 0;                 // 0: 0.02
      c.layers = 3;
      if (i && family == FAMILY_LLAMA) c.vocab = 11000;   // more numbers than are made at once, in the last tensor
      double std = i ? 0.05 : 0.02;
      Gpt *m = gpt_create(devices[i], &(GptOptions){.config = c, .purpose = PURPOSE_TRAIN, .B = 1, .T = 3});
      disturb(m);                                // every number must be set
      gpt_init(m, 5);
      for (size_t t = 0; t < gpt_table(m)->count; t++) {
        const TensorRow *row = &gpt_table(m)->rows[t];
        bool residual = row->role == ROLE_PROJ_WEIGHT || row->role == ROLE_DOWN_WEIGHT;
        check_initial(m, row, residual ? std / sqrt(6.0) : std);
      }
      gpt_destroy(m);
    }
}

// The values depend on seed, name and element alone: not on the piece, the number of layers, the vocabulary.
static void initial_numbers_depend_on_the_name(void) {
  GptConfig c = tiny(FAMILY_GPT2), larger = c;
  TensorTable a, b;
  double x[40], y[41];
  larger.vocab += 11;
  larger.layers = 5;
  tensor_table_build(&a, &c, 16);
  tensor_table_build(&b, &larger, 1);
  const char *names[] = {"transformer.wte.weight", "transformer.h.1.attn.c_attn.weight", "transformer.h.0.attn.c_attn.weight"};
  for (size_t i = 0; i < ARRAY_LEN(names); i++) {
    tensor_init(tensor_find(&a, names[i]), 9, 3, 40, x);
    y[40] = 7;
    for (size_t j = 0; j < 40; j++) tensor_init(tensor_find(&b, names[i]), 9, 3 + j, 1, y + j);
    CHECK(!memcmp(x, y, sizeof x) && y[40] == 7);
    tensor_init(tensor_find(&b, names[i]), 10, 3, 40, y);
    CHECK_MSG(memcmp(x, y, sizeof x), "%s does not depend on the seed", names[i]);
    tensor_init(tensor_find(&b, names[(i + 1) % 3]), 9, 3, 40, y);
    CHECK_MSG(memcmp(x, y, sizeof x), "%s has the numbers of %s", names[i], names[(i + 1) % 3]);
  }
  tensor_table_free(&a);
  tensor_table_free(&b);
}

// ---- the table ----

static void check_table(const GptConfig *c, size_t multiple) {
  TensorTable t;
  tensor_table_build(&t, c, multiple);
  size_t at = 0;
  int64_t parameters = 0;
  for (size_t i = 0; i < t.count; i++) {
    const TensorRow *row = &t.rows[i];
    CHECK(tensor_find(&t, row->name) == row);          // names are unique
    if (row->role != ROLE_JOINED) CHECK(tensor_of(&t, row->role, row->layer) == row);
    if (row->zero_in_file_only) { CHECK(row->size == 0 && !row->trainable && tensor_values(row) == 0); continue; }
    CHECK_MSG(row->joined ? row->offset == at : row->offset >= at && row->offset % 16 == 0, "%s lies at %zu", row->name, row->offset);
    CHECK(row->size == row->padded_rows * (size_t)row->cols && row->padded_rows >= (size_t)row->rows && row->trainable);
    at = row->offset + row->size;
    parameters += row->rows * row->cols;
  }
  CHECK(t.total >= at && t.total < at + 16);
  CHECK_EQ(t.parameters, parameters);
  CHECK(!tensor_find(&t, "transformer.h.9.ln_1.weight"));
  tensor_table_free(&t);
}

// Every field of every row: files, plans and the bits of every run depend on it.
static void table_is_pinned(void) {
  Buffer all = {0};
  for (int kind = 0; kind < 32; kind++) {
    GptConfig c = tiny((Family)(kind % 2));
    TensorTable t;
    c.tie = kind / 2 % 2;
    c.bias = kind / 4 % 2 && c.family == FAMILY_GPT2;
    c.init_std = kind / 8 % 2 ? 0.05 : 0;
    c.layers = kind / 8 + 1;
    tensor_table_build(&t, &c, kind / 16 ? 16 : 1);
    for (size_t i = 0; i < t.count; i++) {
      const TensorRow *r = &t.rows[i];
      buffer_printf(&all, "%d %d %s %lldx%lld %d %d%d%d%d%d %d %.17g %zu %zu %zu\n", (int)r->role, r->layer, r->name, (long long)r->rows, (long long)r->cols, r->dims, r->trainable,
                    r->decays, r->joined, r->file_transposed, r->zero_in_file_only, (int)r->init, r->init_std, r->padded_rows, r->offset, r->size);
    }
    buffer_printf(&all, "%zu %lld\n", t.total, (long long)t.parameters);
    tensor_table_free(&t);
  }
  char hex[65];
  sha256_of(all.data, all.len, hex);
  CHECK_STR(hex, "08bce751b051a7d99f46b303580f748c7d672d7eaaa821baf565ad6d8b2fd1a1");
  buffer_free(&all);
  GptConfig c = tiny(FAMILY_GPT2);
  TensorTable t;
  c.vocab = (int64_t)1 << 62;
  EXPECT_FAIL(2, "transformer.wte.weight of 4611686018427387904 x 24 is more than an address can hold", tensor_table_build(&t, &c, 1));
}

static void table(void) {
  for (Family family = FAMILY_GPT2; family <= FAMILY_LLAMA; family++)
    for (int tie = 0; tie < 2; tie++)
      for (int bias = 0; bias < 2; bias++)
        for (size_t multiple = 1; multiple <= 16; multiple *= 16) {
          GptConfig c = tiny(family);
          c.tie = tie;
          c.bias = bias && family == FAMILY_GPT2;
          check_table(&c, multiple);
        }
}

int main(int argc, char **argv) {
  TEST_BEGIN(argc, argv);
  devices[0] = reference_device();
  devices[1] = cpu_device(2);
  RUN(memory_is_what_was_counted);
  RUN(memory_is_under_its_kind);
  RUN(memory_of_bf16);
  RUN(memory_that_is_shared);
  RUN(memory_is_pinned);
  RUN(scratch_is_asked_for);
  RUN(evaluation_keeps_one_block);
  RUN(logits_of_chosen_rows);
  RUN(memory_that_is_not_there);
  RUN(names_in_the_arena);
  RUN(decoding_equals_the_full_pass);
  RUN(losses_are_those_of_the_logits);
  RUN(update_is_adamw);
  RUN(every_gradient_is_reduced_once);
  RUN(lookups_have_rows_for_what_they_touch);
  RUN(every_tensor_has_a_gradient);
  RUN(dropout_is_where_it_is_asked_for);
  RUN(weights_are_refreshed);
  RUN(ranks_share_the_moments);
  RUN(bad_gradients_change_nothing);
  RUN(parts_are_apart);
  RUN(initial_numbers);
  RUN(initial_numbers_depend_on_the_name);
  RUN(table);
  RUN(table_is_pinned);
  devices[1]->destroy(devices[1]);
  return TEST_END();
}
