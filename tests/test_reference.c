// test_reference.c: owns the tests of what has no derivative on the reference device: memory, copies, sums, the optimizer,
// decoding piece by piece, and values at the edge of the number range. Derivatives: test_gradients.c.
#include "oracle.h"     // random_value, real_buffer, acc_buffer, real_element, acc_element, buffers_end
#include "../util.h"    // ARRAY_LEN
#include <stdbool.h>

static Device *d;

static scalar *new_stats(const double *values, size_t n) {  // a stat is an fp64 number on every device
  scalar *s = d->allocate(d, n * sizeof(double));
  if (s) d->copy(d, s, values, n * sizeof(double));
  return s;
}

static double read_stat(scalar *s, size_t i) {
  double value;
  d->download_stat(d, &value, d->stat_at(s, i), 1);
  return value;
}

static void memory_is_zeroed_and_aligned(void) {
  static const size_t SIZES[] = {0, 1, 63, 64, 65, 4097};
  for (size_t i = 0; i < ARRAY_LEN(SIZES); i++) {
    unsigned char *p = d->allocate(d, SIZES[i]);
    CHECK(p != NULL && (uintptr_t)p % 64 == 0);
    for (size_t j = 0; j < SIZES[i]; j++) CHECK_EQ(p[j], 0);
    if (p) memset(p, 1, SIZES[i]);
    if (SIZES[i]) d->zero(d, p + 1, SIZES[i] - 1);
    if (SIZES[i]) CHECK_EQ(p[0], 1);
    for (size_t j = 1; j < SIZES[i]; j++) CHECK_EQ(p[j], 0);
    d->release(d, p, SIZES[i]);
  }
  CHECK(d->allocate(d, SIZE_MAX) == NULL);
  CHECK(d->allocate(d, SIZE_MAX - 80) == NULL);
}

static void device_is_described(void) {
  CHECK_STR(d->name, "reference");
  CHECK_STR(d->description, "fp64, plain loops, 1 thread");
  CHECK(d->real_size == 8 && d->acc_size == 8 && d->real_is_acc == 1 && d->row_multiple == 1 && reference_device() == d);
}

static void uploads_come_back(void) {
  enum { N = 5 };
  static const double values[N] = {0, -1.5, 1e300, 0.1, -0x1p-1074};
  static const float floats[N] = {0, -1.5f, 1e30f, 0.1f, -0x1p-149f};
  static const int32_t ids[N] = {0, 1, -1, INT32_MAX, 7};
  double got[N];
  real *x = real_buffer(d, NULL, N, 1);
  acc *y = acc_buffer(d, NULL, N, 1);
  d->upload_real(d, x, values, N), d->download_real(d, got, x, N);
  CHECK(!memcmp(got, values, sizeof got));
  d->upload_acc(d, y, values, N), d->download_acc(d, got, y, N);
  CHECK(!memcmp(got, values, sizeof got));
  d->upload_real_float(d, x, floats, N), d->upload_acc_float(d, y, floats, N);
  for (size_t i = 0; i < N; i++) CHECK(real_element(d, x, i) == floats[i] && acc_element(d, y, i) == floats[i]);
  int32_t *on_device = d->allocate(d, sizeof ids);
  d->upload_ids(d, on_device, ids, N);
  d->sync(d);
  CHECK(!memcmp(on_device, ids, sizeof ids));
  d->release(d, on_device, sizeof ids);
  buffers_end();
}

static void residuals_add_and_may_alias(void) {
  enum { N = 9 };
  real *x = real_buffer(d, "x", N, 1), *delta = real_buffer(d, "delta", N, 1), *out = real_buffer(d, NULL, N, 1);
  d->residual_forward(d, out, x, delta, N);
  d->residual_forward(d, x, x, delta, N);
  for (size_t i = 0; i < N; i++) {
    double want = random_value("x", i) + random_value("delta", i);
    CHECK(real_element(d, out, i) == want && real_element(d, x, i) == want);
  }
  buffers_end();
}

// The residual of a norm may be its own input.
static void norms_may_alias(void) {
  enum { ROWS = 2, C = 5, N = ROWS * C };
  for (int alias = 0; alias < 2; alias++) {
    for (int rms = 0; rms < 2; rms++) {
      real *x = real_buffer(d, "x", N, 1), *delta = real_buffer(d, "delta", N, 1), *weight = real_buffer(d, "weight", C, 1);
      real *out = real_buffer(d, NULL, N, 1), *residual = alias ? delta : x;
      acc *mean = acc_buffer(d, NULL, ROWS, 1), *rstd = acc_buffer(d, NULL, ROWS, 1);
      if (rms) d->rmsnorm_forward(d, residual, out, rstd, x, delta, weight, ROWS, C, 1e-5);
      else d->layernorm_forward(d, residual, out, mean, rstd, x, delta, weight, NULL, ROWS, C, 1e-5);
      for (size_t i = 0; i < N; i++) CHECK(real_element(d, residual, i) == random_value("x", i) + random_value("delta", i));
      // the rows of norm = out / weight have mean 0 (layer norm) and mean square 1 (both, but for eps)
      for (size_t r = 0; r < ROWS; r++) {
        double mean_norm = 0, mean_square = 0;
        for (size_t c = 0; c < C; c++) {
          double norm = real_element(d, out, r * C + c) / random_value("weight", c);
          mean_norm += norm / C, mean_square += norm * norm / C;
        }
        if (!rms) CHECK_NEAR(mean_norm, 0, 1e-14, "row %zu", r);
        CHECK_NEAR(mean_square, 1, 1e-3, "row %zu", r);
      }
      buffers_end();
    }
  }
}

static void rows_are_copied_with_strides(void) {
  enum { ROWS = 3, WIDTH = 4, FROM = 6, TO = 5 };
  real *src = real_buffer(d, "src", ROWS * FROM, 1), *dst = real_buffer(d, NULL, ROWS * TO, 1);
  d->copy_rows(d, dst, TO, src, FROM, ROWS, WIDTH);
  for (size_t r = 0; r < ROWS; r++) {
    for (size_t j = 0; j < WIDTH; j++) CHECK(real_element(d, dst, r * TO + j) == random_value("src", r * FROM + j));
    for (size_t j = WIDTH; j < TO; j++) CHECK(isnan(real_element(d, dst, r * TO + j)));
  }
  buffers_end();
}

// Positions p.. of a long sequence, looked up and turned alone: the same bits as within the whole.
static void positions_count_from_the_start(void) {
  enum { T = 6, AT = 4, C = 4, V = 3 };
  static const int32_t ids[T] = {0, 2, 1, 1, 0, 2};
  real *wte = real_buffer(d, "wte", V * C, 1), *wpe = real_buffer(d, "wpe", T * C, 1);
  real *whole = real_buffer(d, NULL, T * C, 1), *tail = real_buffer(d, NULL, (T - AT) * C, 1);
  acc *table = acc_buffer(d, NULL, T * C, 1);
  d->embedding_forward(d, whole, ids, wte, wpe, 1, T, C, 0);
  d->embedding_forward(d, tail, ids + AT, wte, wpe, 1, T - AT, C, AT);
  d->rope_table(d, table, T, C, 10000);
  d->rope(d, whole, table, 1, T, 0, 1, C, C, +1);
  d->rope(d, tail, table, 1, T - AT, AT, 1, C, C, +1);
  for (size_t i = 0; i < (T - AT) * C; i++) CHECK(real_element(d, tail, i) == real_element(d, whole, AT * C + i));
  buffers_end();
}

// A query alone, against a cache: the same bits as among all queries.
static void decoding_changes_no_bit(void) {
  enum { T = 7, NH = 4, KVH = 2, HS = 3, C = NH * HS, KV = KVH * HS };
  real *q = real_buffer(d, "q", T * C, 3), *k = real_buffer(d, "k", T * KV, 3), *v = real_buffer(d, "v", T * KV, 3);
  real *whole = real_buffer(d, NULL, T * C, 1), *alone = real_buffer(d, NULL, C, 1);
  AttentionShape shape = {.B = 1, .T = T, .S = T, .NH = NH, .KVH = KVH, .HS = HS, .q_stride = C, .kv_stride = KV, .out_stride = C,
                          .q_batch = T * C, .kv_batch = T * KV, .out_batch = T * C, .mask = MASK_CAUSAL, .scale = 0.5};
  d->attention_forward(d, whole, NULL, q, k, v, &shape);
  for (size_t t = 0; t < T; t++) {
    shape.T = 1, shape.S = t + 1, shape.position = t;
    d->attention_forward(d, alone, NULL, d->real_at(q, t * C), k, v, &shape);
    for (size_t i = 0; i < C; i++) CHECK(real_element(d, alone, i) == real_element(d, whole, t * C + i));
  }
  buffers_end();
}

// Scores of 1e4 overflow an exponential that is not shifted; the weight then lies on one key.
static void large_scores_do_not_overflow(void) {
  AttentionShape shape = {.B = 1, .T = 1, .S = 2, .position = 1, .NH = 1, .KVH = 1, .HS = 1, .q_stride = 1, .kv_stride = 1,
                          .out_stride = 1, .q_batch = 1, .kv_batch = 2, .out_batch = 1, .mask = MASK_FULL, .scale = 1};
  real *q = real_buffer(d, NULL, 1, 1), *k = real_buffer(d, NULL, 2, 1), *v = real_buffer(d, NULL, 2, 1), *out = real_buffer(d, NULL, 1, 1);
  acc *lse = acc_buffer(d, NULL, 1, 1);
  d->upload_real(d, q, (double[]){1}, 1);
  d->upload_real(d, k, (double[]){-1e4, 1e4}, 2);
  d->upload_real(d, v, (double[]){3, 5}, 2);
  d->attention_forward(d, out, lse, q, k, v, &shape);
  CHECK(real_element(d, out, 0) == 5 && acc_element(d, lse, 0) == 1e4);

  real *logits = real_buffer(d, NULL, 2, 1);
  acc *loss = acc_buffer(d, NULL, 1, 1);
  d->upload_real(d, logits, (double[]){-1e4, 1e4}, 2);
  d->crossentropy(d, logits, loss, (int32_t[]){0}, 1, 2, 2, 0.5, WITH_GRADIENT);
  CHECK(acc_element(d, loss, 0) == 2e4 && real_element(d, logits, 0) == -0.5 && real_element(d, logits, 1) == 0.5);
  d->upload_real(d, logits, (double[]){NAN, 1}, 2);
  d->crossentropy(d, logits, loss, (int32_t[]){1}, 1, 2, 2, 1, WITHOUT_GRADIENT);
  CHECK(isnan(acc_element(d, loss, 0)));  // a NaN is never swallowed
  buffers_end();
}

static void sums_continue_from_the_stored_value(void) {
  enum { N = 3 * 4096 + 17, CUT = 1234 };
  acc *x = acc_buffer(d, "x", N, 1), *y = acc_buffer(d, "y", N, 1);
  scalar *s = new_stats((double[]){0.5, 0.25, 0}, 3);
  d->sum(d, d->stat_at(s, 0), x, CUT);
  d->sum(d, d->stat_at(s, 0), d->acc_at(x, CUT), N - CUT);
  d->sumsq(d, d->stat_at(s, 1), x, N);
  double sum = 0.5, sumsq = 0.25, partial = 0;
  for (size_t i = 0; i < N; i++) {
    double value = random_value("x", i);
    sum += value;
    partial += value * value;
    if (i % 4096 == 4095 || i == N - 1) sumsq += partial, partial = 0;
  }
  CHECK(read_stat(s, 0) == sum);
  CHECK(read_stat(s, 1) == sumsq);
  CHECK(read_stat(s, 2) == 0);
  d->add_rows(d, y, x, NULL, 1, N, 1);
  for (size_t i = 0; i < N; i++) CHECK(acc_element(d, y, i) == random_value("y", i) + random_value("x", i));
  acc *z = acc_buffer(d, "z", 15, 1);
  d->add_rows(d, z, x, (int32_t[]){4, 0}, 2, 3, 5);     // rows 0 and 1 of x to rows 4 and 0
  for (size_t i = 0; i < 15; i++) CHECK(acc_element(d, z, i) == random_value("z", i) + (i >= 12 ? random_value("x", i - 12) : i < 3 ? random_value("x", i + 3) : 0));
  d->release(d, s, 3 * sizeof(double));
  buffers_end();
}

static void what_is_not_finite_is_counted(void) {
  enum { N = 6 };
  static const double values[N] = {1, INFINITY, -1e308, NAN, -INFINITY, 0};
  real *x = real_buffer(d, NULL, N, 1);
  acc *y = acc_buffer(d, NULL, N, 1);
  d->upload_real(d, x, values, N);
  d->upload_acc(d, y, values, N);
  scalar *s = new_stats((double[]){10, 20}, 2);
  d->count_nonfinite_real(d, d->stat_at(s, 0), x, N);
  d->count_nonfinite_acc(d, d->stat_at(s, 1), y, N - 2);
  CHECK(read_stat(s, 0) == 13 && read_stat(s, 1) == 22);
  d->release(d, s, 2 * sizeof(double));
  buffers_end();
}

// ---- AdamW ----

typedef struct { real *param; acc *master, *grad, *m, *v; AdamWTensor tensor; } Optimized;

enum { N = 5 };

static Optimized optimized(bool with_master, double weight_decay) {
  Optimized o = {.param = real_buffer(d, "w", N, 1), .master = with_master ? acc_buffer(d, "w", N, 1) : NULL,
                 .grad = acc_buffer(d, "grad", N, 1), .m = acc_buffer(d, "zero", N, 0), .v = acc_buffer(d, "zero", N, 0)};
  o.tensor = (AdamWTensor){o.param, o.master, o.grad, o.m, o.v, N, weight_decay, 0};
  return o;
}

static AdamWSettings settings_of_step(int step, double grad_clip, double max_norm) {
  double beta1 = 0.9, beta2 = 0.99;
  return (AdamWSettings){.lr = 0.1, .beta1 = beta1, .beta2 = beta2, .eps = 0.05, .bias1 = 1 - pow(beta1, step + 1),
                         .bias2 = 1 - pow(beta2, step + 1), .grad_clip = grad_clip, .max_norm = max_norm};
}

// With the same gradient g every step, m = g bias1 and v = g^2 bias2, so a step is w -= lr (g / (|g| + eps) + decay w).
static void check_adamw(bool with_master, double weight_decay, double norm, double grad_clip) {
  Optimized o = optimized(with_master, weight_decay), other = optimized(false, 0);
  AdamWTensor tensors[2] = {other.tensor, o.tensor};
  scalar *s = new_stats((double[]){1, norm * norm}, STAT_COUNT);
  double w[N], clip = grad_clip > 0 && norm > grad_clip ? grad_clip / norm : 1;
  for (size_t i = 0; i < N; i++) w[i] = random_value("w", i);
  for (int step = 0; step < 4; step++) {
    AdamWSettings settings = settings_of_step(step, grad_clip, 0);
    d->adamw(d, tensors, 2, &settings, s);
    for (size_t i = 0; i < N; i++) {
      double g = clip * random_value("grad", i);
      w[i] -= 0.1 * (g / (fabs(g) + 0.05) + weight_decay * w[i]);
      // 1e-14: each step adds a few roundings of numbers of size 1
      CHECK_NEAR(real_element(d, o.param, i), w[i], 1e-14, "step %d, element %zu", step, i);
      CHECK_NEAR(acc_element(d, o.m, i), g * settings.bias1, 1e-14, "m");
      CHECK_NEAR(acc_element(d, o.v, i), g * g * settings.bias2, 1e-14, "v");
      if (with_master) CHECK(acc_element(d, o.master, i) == real_element(d, o.param, i));
      CHECK(acc_element(d, o.grad, i) == random_value("grad", i));
    }
  }
  CHECK(weight_decay == 0 || real_element(d, other.param, 0) != real_element(d, o.param, 0));  // each tensor has its own decay
  d->release(d, s, STAT_COUNT * sizeof(double));
  buffers_end();
}

static void adamw_follows_its_formula(void) {
  check_adamw(false, 0, 3, 0);
  check_adamw(false, 0.1, 3, 0);
  check_adamw(true, 0.1, 3, 0);
  check_adamw(false, 0.1, 3, 1.5);  // clipped to half
  check_adamw(true, 0, 3, 4);       // below the clip
}

// The master copy is what counts: param may have been rounded.
static void adamw_starts_from_the_master_copy(void) {
  Optimized o = optimized(true, 0);
  d->upload_real(d, o.param, (double[N]){0}, N);
  scalar *s = new_stats((double[]){1, 1}, STAT_COUNT);
  AdamWSettings settings = settings_of_step(0, 0, 0);
  d->adamw(d, &o.tensor, 1, &settings, s);
  for (size_t i = 0; i < N; i++) {
    double g = random_value("grad", i);
    CHECK_NEAR(real_element(d, o.param, i), random_value("w", i) - 0.1 * g / (fabs(g) + 0.05), 1e-14, "element %zu", i);
  }
  d->release(d, s, STAT_COUNT * sizeof(double));
  buffers_end();
}

static void bad_steps_change_nothing(void) {
  static const struct { double loss, sumsq, max_norm; bool updates; } cases[] = {
    {NAN, 4, 0, false},      {INFINITY, 4, 0, false}, {1, NAN, 0, false}, {1, INFINITY, 0, false}, {1, 4, 1.99, false},
    {1, 4, 2, true},         {1, 4, 0, true},         {1, 0, 0, true},
  };
  for (size_t c = 0; c < ARRAY_LEN(cases); c++) {
    Optimized o = optimized(true, 0.1);
    scalar *s = new_stats((double[]){cases[c].loss, cases[c].sumsq}, STAT_COUNT);
    AdamWSettings settings = settings_of_step(0, 1, cases[c].max_norm);
    d->adamw(d, &o.tensor, 1, &settings, s);
    d->refresh(d, o.param, N);
    for (size_t i = 0; i < N; i++) {
      bool same = real_element(d, o.param, i) == random_value("w", i) && acc_element(d, o.master, i) == random_value("w", i) &&
                  acc_element(d, o.m, i) == 0 && acc_element(d, o.v, i) == 0;
      CHECK_MSG(same == !cases[c].updates && isfinite(real_element(d, o.param, i)), "case %zu, element %zu", c, i);
    }
    d->release(d, s, STAT_COUNT * sizeof(double));
    buffers_end();
  }
}

// A random number of just the threshold is kept: it is 2^-32 of all, so p is made of the number of one element. On the CPU device too.
static void dropout_keeps_the_threshold(void) {
  enum { COUNT = 5 };
  Device *devices[] = {d, cpu_device(1)};
  for (size_t i = 0; i < ARRAY_LEN(devices); i++)
    for (uint64_t e = 0; e < COUNT; e++) {
      const Dropout dropout = {.p = rng_u32(1, 2, 3, e) * 0x1p-32, .seed = 1, .step = 2, .site = 3};
      const double ones[COUNT] = {1, 1, 1, 1, 1};
      double after[COUNT];
      real *x = devices[i]->allocate(devices[i], COUNT * devices[i]->real_size);
      devices[i]->upload_real(devices[i], x, ones, COUNT);
      devices[i]->dropout(devices[i], x, 1, COUNT, &dropout);
      devices[i]->download_real(devices[i], after, x, COUNT);
      for (uint64_t j = 0; j < COUNT; j++) CHECK_EQ(after[j] > 0, rng_u32(1, 2, 3, j) >= rng_u32(1, 2, 3, e));
      devices[i]->release(devices[i], x, COUNT * devices[i]->real_size);
    }
}

int main(int argc, char **argv) {
  TEST_BEGIN(argc, argv);
  d = reference_device();
  RUN(memory_is_zeroed_and_aligned);
  RUN(device_is_described);
  RUN(uploads_come_back);
  RUN(residuals_add_and_may_alias);
  RUN(norms_may_alias);
  RUN(rows_are_copied_with_strides);
  RUN(positions_count_from_the_start);
  RUN(decoding_changes_no_bit);
  RUN(large_scores_do_not_overflow);
  RUN(sums_continue_from_the_stored_value);
  RUN(what_is_not_finite_is_counted);
  RUN(adamw_follows_its_formula);
  RUN(adamw_starts_from_the_master_copy);
  RUN(bad_steps_change_nothing);
  RUN(dropout_keeps_the_threshold);
  return TEST_END();
}
