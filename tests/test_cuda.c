// test_cuda.c: owns the tests of the CUDA device beyond its operations' numbers (test_ops, test_attention with TEST_DEVICE=cuda): memory,
// conversions, aliasing, fused equals unfused, refusals, tables longer than one launch, and the sentences of the start.
// In a build without the device it tests that the build says so. Run on a GPU where there is one, else emulated (`make test-cuda`).
#include "../device.h"  // cuda_device, cuda_refusal
#include "../model.h"   // gpt_memory
#include "../rng.h"     // rng_uniform
#include "../util.h"    // xmalloc
#include "test.h"
#include <float.h>      // FLT_MAX

static CudaPrecision precision;
static GemmLibrary library;   // TEST_DEVICE=cuda-bf16-wgmma: the products' other way, in bf16 only
static double unit(void) { return precision == CUDA_BF16 ? 0x1p-8 : 0x1p-24; }   // one rounding to storage
static Device *opened(void) { return cuda_device(precision, library); }

// ---- arrays on the device ----

static double *random_doubles(const char *name, size_t n, double size) {
  double *p = xmalloc(n, sizeof *p);
  for (size_t i = 0; i < n; i++) p[i] = (float)(size * (2 * rng_uniform(5, 0, rng_site(name), i) - 1));
  return p;
}
static real *real_of(Device *d, const double *values, size_t n) {
  real *p = d->allocate(d, n * d->real_size);
  if (values) d->upload_real(d, p, values, n);
  return p;
}
static acc *acc_of(Device *d, const double *values, size_t n) {
  acc *p = d->allocate(d, n * d->acc_size);
  if (values) d->upload_acc(d, p, values, n);
  return p;
}
static real *random_real(Device *d, const char *name, size_t n, double size) {
  double *values = random_doubles(name, n, size);
  real *p = real_of(d, values, n);
  free(values);
  return p;
}
static acc *random_acc(Device *d, const char *name, size_t n, double size) {
  double *values = random_doubles(name, n, size);
  acc *p = acc_of(d, values, n);
  free(values);
  return p;
}
static int32_t *ids_of(Device *d, const int32_t *ids, size_t n) {
  int32_t *p = d->allocate(d, n * sizeof *p);
  d->upload_ids(d, p, ids, n);
  return p;
}
static real *copy_real(Device *d, const real *from, size_t n) {
  real *p = real_of(d, NULL, n);
  d->copy(d, p, from, n * d->real_size);
  return p;
}
static double real_value(Device *d, const real *p, size_t i) { double x; d->download_real(d, &x, d->real_at((real *)(uintptr_t)p, i), 1); return x; }
static double acc_value(Device *d, const acc *p, size_t i) { double x; d->download_acc(d, &x, d->acc_at((acc *)(uintptr_t)p, i), 1); return x; }
static double stat_value(Device *d, const scalar *p) { double x; d->download_stat(d, &x, p, 1); return x; }
static bool equal_real(Device *d, const real *a, const real *b, size_t n) {
  double *x = xmalloc(n, 8), *y = xmalloc(n, 8);
  d->download_real(d, x, a, n), d->download_real(d, y, b, n);
  bool equal = !memcmp(x, y, n * 8);
  free(x), free(y);
  return equal;
}
static bool equal_acc(Device *d, const acc *a, const acc *b, size_t n) {
  double *x = xmalloc(n, 8), *y = xmalloc(n, 8);
  d->download_acc(d, x, a, n), d->download_acc(d, y, b, n);
  bool equal = !memcmp(x, y, n * 8);
  free(x), free(y);
  return equal;
}

// ---- memory and conversions ----

static void memory_is_zeroed_copied_and_refused(void) {
  Device *d = opened();
  size_t sizes[] = {1, 63, 64, 4097, 262144, 300001};
  for (size_t i = 0; i < ARRAY_LEN(sizes); i++) {
    size_t n = sizes[i], bad = 0;
    acc *p = d->allocate(d, n * 4), *q = random_acc(d, "q", n, 1);
    double *values = xmalloc(n, 8);
    d->download_acc(d, values, p, n);
    for (size_t j = 0; j < n; j++) bad += values[j] != 0;
    CHECK_EQ(bad, 0);
    d->copy(d, p, q, n * 4);
    CHECK(equal_acc(d, p, q, n));
    d->zero(d, q, n * 4);
    CHECK(acc_value(d, q, n - 1) == 0 && acc_value(d, p, n - 1) != 0);
    CHECK((uintptr_t)p % 16 == 0);
    free(values), d->release(d, p, n * 4), d->release(d, q, n * 4);
  }
  CHECK(d->allocate(d, SIZE_MAX) == NULL && d->allocate(d, (size_t)1 << 50) == NULL);
  const char *from = NULL;
  CHECK(d->memory_available(d, &from) > d->scratch_bytes && from != NULL);
  d->destroy(d);
}

static void values_are_rounded_once(void) {
  Device *d = opened();
  double h = unit(), in[] = {1.5, 1 + h, 1 + 3 * h, 1 + h + 0x1p-40, 1 + 3 * h - 0x1p-40, -(1 + h + 0x1p-40), INFINITY, 0, 1e300}, back[9];   // 1 + h: halfway
  real *x = real_of(d, in, 9);
  d->download_real(d, back, x, 9);
  CHECK(back[0] == 1.5 && back[1] == 1 && back[2] == 1 + 4 * h && back[3] == 1 + 2 * h && back[4] == 1 + 2 * h && back[5] == -(1 + 2 * h));
  CHECK(back[6] == INFINITY && back[7] == 0 && back[8] == INFINITY);
  acc *y = acc_of(d, in, 4);
  CHECK(acc_value(d, y, 0) == 1.5 && acc_value(d, y, 1) == (double)(float)in[1]);
  float wide[3] = {-2.25f, 3, 1.0078125f};
  d->upload_real_float(d, x, wide, 3);
  CHECK(real_value(d, x, 0) == -2.25 && real_value(d, x, 1) == 3 && real_value(d, x, 2) == 1.0078125);
  d->upload_acc_float(d, y, wide, 3);
  CHECK(acc_value(d, y, 2) == 1.0078125);
  double nan = NAN;
  d->upload_real(d, x, &nan, 1);
  CHECK(isnan(real_value(d, x, 0)));
  d->destroy(d);
}

static void large_uploads_come_in_pieces(void) {   // over the staging buffers, several times around
  Device *d = opened();
  size_t n = 1500003;
  double *values = random_doubles("large", n, 8), *back = xmalloc(n, 8);
  for (size_t i = 0; i < n; i++) values[i] = rint(values[i] * 8) / 8;   // exact in both
  real *x = real_of(d, values, n);
  d->download_real(d, back, x, n);
  CHECK(!memcmp(values, back, n * 8));
  free(values), free(back), d->destroy(d);
}

// ---- what the contract promises beside numbers ----

enum { ROWS = 37, SHARP = 83, EVEN = 96 };   // channels: odd, and for 16-byte accesses

static void norms_may_alias_and_are_their_parts(void) {
  for (int even = 0; even < 2; even++) {
    Device *d = opened();
    size_t C = even ? EVEN : SHARP, n = ROWS * C;
    real *x = random_real(d, "x", n, 3), *delta = random_real(d, "delta", n, 3), *w = random_real(d, "w", C, 2), *b = random_real(d, "b", C, 2);
    real *residual = real_of(d, NULL, n), *out = real_of(d, NULL, n), *out2 = real_of(d, NULL, n), *sum = real_of(d, NULL, n);
    acc *mean = acc_of(d, NULL, ROWS), *rstd = acc_of(d, NULL, ROWS);
    d->layernorm_forward(d, residual, out, mean, rstd, x, delta, w, b, ROWS, C, 1e-5);
    for (int which = 0; which < 2; which++) {
      real *x2 = copy_real(d, x, n), *delta2 = copy_real(d, delta, n), *target = which ? delta2 : x2;
      d->layernorm_forward(d, target, out2, mean, rstd, x2, delta2, w, b, ROWS, C, 1e-5);
      CHECK(equal_real(d, target, residual, n) && equal_real(d, out2, out, n));
    }
    d->residual_forward(d, sum, x, delta, n);
    CHECK(equal_real(d, sum, residual, n));
    d->layernorm_forward(d, NULL, out2, mean, rstd, sum, NULL, w, b, ROWS, C, 1e-5);
    CHECK(equal_real(d, out2, out, n));
    d->rmsnorm_forward(d, residual, out, rstd, x, delta, w, ROWS, C, 1e-5);
    d->rmsnorm_forward(d, NULL, out2, rstd, sum, NULL, w, ROWS, C, 1e-5);
    CHECK(equal_real(d, out2, out, n));
    acc *dw = random_acc(d, "dw", C, 1), *dw2 = random_acc(d, "dw", C, 1);
    real *dx = real_of(d, NULL, n), *dresidual = copy_real(d, delta, n);
    d->layernorm_backward(d, dx, dw, NULL, x, dresidual, sum, w, mean, rstd, ROWS, C);
    d->layernorm_backward(d, dresidual, dw2, NULL, x, dresidual, sum, w, mean, rstd, ROWS, C);
    CHECK(equal_real(d, dx, dresidual, n) && equal_acc(d, dw, dw2, C));
    real *x2 = copy_real(d, x, n);
    d->residual_forward(d, x2, x2, delta, n);
    d->residual_forward(d, delta, x, delta, n);
    CHECK(equal_real(d, x2, sum, n) && equal_real(d, delta, sum, n));
    d->destroy(d);
  }
}

static void linear_forward_fused_is_unfused(void) {
  for (int even = 0; even < 2; even++) {
    Device *d = opened();
    size_t C = even ? EVEN : SHARP, OC = even ? 160 : 150;
    real *x = random_real(d, "x", ROWS * C, 1), *w = random_real(d, "w", OC * C, 1), *b = random_real(d, "b", OC, 1);
    real *pre = real_of(d, NULL, ROWS * OC), *post = real_of(d, NULL, ROWS * OC), *pre2 = real_of(d, NULL, ROWS * OC), *post2 = real_of(d, NULL, ROWS * OC);
    for (int a = ACTIVATION_GELU; a <= ACTIVATION_SWIGLU; a++) {
      size_t width = a == ACTIVATION_SWIGLU ? OC / 2 : OC;
      d->linear_forward(d, pre, NULL, x, w, b, ROWS, C, OC, ACTIVATION_NONE);
      d->activation_forward(d, post, pre, ROWS, OC, (Activation)a);
      d->linear_forward(d, pre2, post2, x, w, b, ROWS, C, OC, (Activation)a);
      CHECK(equal_real(d, pre, pre2, ROWS * OC) && equal_real(d, post, post2, ROWS * width));
      d->zero(d, post2, ROWS * OC * d->real_size);
      d->linear_forward(d, NULL, post2, x, w, b, 5, C, OC, (Activation)a);   // rows in two calls, pre not kept
      d->linear_forward(d, NULL, d->real_at(post2, 5 * width), d->real_at(x, 5 * C), w, b, ROWS - 5, C, OC, (Activation)a);
      CHECK(equal_real(d, post, post2, ROWS * width));
    }
    d->activation_backward(d, pre2, post, pre, ROWS, OC, ACTIVATION_GELU);
    d->activation_backward(d, post, post, pre, ROWS, OC, ACTIVATION_GELU);
    CHECK(equal_real(d, pre2, post, ROWS * OC));
    d->destroy(d);
  }
}

// Sums so long that the device cuts them where it has more multiprocessors than tiles; beside plain sums in double.
static void long_products_are_their_sums(void) {
  enum { LONG = 2568, IC = 72, OC = 136 };   // a tile of 128, and an edge
  Device *d = opened();
  double *x = random_doubles("x", LONG * IC, 1), *dy = random_doubles("dy", LONG * OC, 1), *sums = random_doubles("sums", OC * IC, 1), *biases = random_doubles("biases", OC, 1);
  real *a = real_of(d, x, LONG * IC), *b = real_of(d, dy, LONG * OC), *wide = random_real(d, "weight", (size_t)LONG * 80, 1), *narrow = random_real(d, "dout", 72 * (size_t)LONG, 1), *dx = real_of(d, NULL, 72 * 80);
  acc *dweight = acc_of(d, sums, OC * IC), *dbias = acc_of(d, biases, OC);
  d->download_real(d, x, a, LONG * IC), d->download_real(d, dy, b, LONG * OC);   // as they are stored
  d->linear_backward_weight(d, dweight, dbias, b, a, LONG, IC, OC);
  double bound = (LONG + 2) * 0x1p-24;   // a chain of n additions errs by at most n u times the sum of magnitudes; splitting it only shortens it
  for (size_t o = 0; o < OC; o++) {
    double bias = biases[o], size = fabs(bias);
    for (size_t r = 0; r < LONG; r++) bias += dy[r * OC + o], size += fabs(dy[r * OC + o]);
    CHECK_NEAR(acc_value(d, dbias, o), bias, bound * size, "dbias %zu", o);
    for (size_t i = 0; i < IC; i++) {
      double sum = sums[o * IC + i], magnitude = fabs(sum);
      for (size_t r = 0; r < LONG; r++) sum += dy[r * OC + o] * x[r * IC + i], magnitude += fabs(dy[r * OC + o] * x[r * IC + i]);
      CHECK_NEAR(acc_value(d, dweight, o * IC + i), sum, bound * magnitude, "dweight %zu %zu", o, i);
    }
  }
  d->linear_backward_input(d, dx, narrow, wide, 72, 80, LONG);
  double *w = xmalloc((size_t)LONG * 80, 8), *dout = xmalloc(72 * (size_t)LONG, 8);
  d->download_real(d, w, wide, (size_t)LONG * 80), d->download_real(d, dout, narrow, 72 * (size_t)LONG);
  for (size_t r = 0; r < 72; r++)
    for (size_t i = 0; i < 80; i++) {
      double sum = 0, magnitude = 0;
      for (size_t o = 0; o < LONG; o++) sum += dout[r * LONG + o] * w[o * 80 + i], magnitude += fabs(dout[r * LONG + o] * w[o * 80 + i]);
      CHECK_NEAR(real_value(d, dx, r * 80 + i), sum, bound * magnitude + unit() * fabs(sum), "dx %zu %zu", r, i);
    }
  free(x), free(dy), free(sums), free(biases), free(w), free(dout);
  d->destroy(d);
}

// Products of so many large tiles (11 x 13) that every GPU takes those: all directions and activations, edges that are no multiples of a tile, beside
// the reference.
static void large_products_are_the_references(void) {
  enum { M = 1400, N = 1544, K = 136 };
  Device *d = opened(), *r = reference_device();
  double *a = random_doubles("a", (size_t)M * N, 1), *b = random_doubles("b", (size_t)N * K, 1), *c = random_doubles("c", N, 1), *e = random_doubles("e", (size_t)N * M, 1);
  // as they are stored
  real *da = real_of(d, a, (size_t)M * N), *db = real_of(d, b, (size_t)N * K), *dc = real_of(d, c, N), *dpre = real_of(d, NULL, (size_t)M * N), *dpost = real_of(d, NULL, (size_t)M * N);
  d->download_real(d, a, da, (size_t)M * N), d->download_real(d, b, db, (size_t)N * K), d->download_real(d, c, dc, N);
  real *ra = real_of(r, a, (size_t)M * N), *rb = real_of(r, b, (size_t)N * K), *rc = real_of(r, c, N), *rpre = real_of(r, NULL, (size_t)M * N), *rpost = real_of(r, NULL, (size_t)M * N);
  acc *dsum = acc_of(d, e, (size_t)N * M), *dbias = acc_of(d, c, N), *rsum = acc_of(r, e, (size_t)N * M), *rbias = acc_of(r, c, N);
  double *got = xmalloc((size_t)N * M, 8), *want = xmalloc((size_t)N * M, 8), *pre = xmalloc((size_t)N * M, 8);
  // all factors are below 1: a chain of n products and its rounding to storage
  const double chain = (K + 2) * 0x1p-24 * (K + 1);

  for (int activation = ACTIVATION_NONE; activation <= ACTIVATION_SWIGLU; activation++) {
    const size_t width = activation == ACTIVATION_SWIGLU ? N / 2 : N;
    d->linear_forward(d, dpre, activation ? dpost : NULL, da, db, dc, M, K, N, (Activation)activation);
    r->linear_forward(r, rpre, activation ? rpost : NULL, ra, rb, rc, M, K, N, (Activation)activation);
    d->download_real(d, got, dpre, (size_t)M * N), r->download_real(r, pre, rpre, (size_t)M * N);
    for (size_t i = 0; i < (size_t)M * N; i++) if (!(fabs(got[i] - pre[i]) <= chain + unit() * fabs(pre[i]))) { CHECK_NEAR(got[i], pre[i], chain + unit() * fabs(pre[i]), "pre %zu, activation %d", i, activation); break; }
    if (!activation) continue;
    d->download_real(d, got, dpost, M * width), r->download_real(r, want, rpost, M * width);
    for (size_t i = 0; i < M * width; i++) {   // slopes of gelu and silu are below 1.13
      const size_t row = i / width, j = i % width;
      const double x = pre[row * N + j], up = activation == ACTIVATION_SWIGLU ? pre[row * N + width + j] : 1, silu = x / (1 + exp(-x));
      double bound = 1.13 * fabs(up) * (chain + unit() * fabs(x)) + (unit() + 8 * 0x1p-24) * fabs(want[i]) + 1e-6;
      if (activation == ACTIVATION_SWIGLU) bound += fabs(silu) * (chain + unit() * fabs(up)) * 1.01;
      if (!(fabs(got[i] - want[i]) <= bound)) { CHECK_NEAR(got[i], want[i], bound, "post %zu, activation %d", i, activation); break; }
    }
  }
  // dx (M,N) = dout (M,K) . weight (K,N)
  d->linear_backward_input(d, dpre, da, db, M, N, K), r->linear_backward_input(r, rpre, ra, rb, M, N, K);
  d->download_real(d, got, dpre, (size_t)M * N), r->download_real(r, want, rpre, (size_t)M * N);
  for (size_t i = 0; i < (size_t)M * N; i++) if (!(fabs(got[i] - want[i]) <= chain + unit() * fabs(want[i]))) { CHECK_NEAR(got[i], want[i], chain + unit() * fabs(want[i]), "dx %zu", i); break; }
  // dweight (N,M) += of K rows; its factors are pieces of the same arrays
  d->linear_backward_weight(d, dsum, dbias, db, da, K, M, N), r->linear_backward_weight(r, rsum, rbias, rb, ra, K, M, N);
  d->download_acc(d, got, dsum, (size_t)N * M), r->download_acc(r, want, rsum, (size_t)N * M);
  for (size_t i = 0; i < (size_t)N * M; i++) if (!(fabs(got[i] - want[i]) <= chain)) { CHECK_NEAR(got[i], want[i], chain, "dweight %zu", i); break; }
  d->download_acc(d, got, dbias, N), r->download_acc(r, want, rbias, N);
  for (size_t i = 0; i < N; i++) CHECK_NEAR(got[i], want[i], chain, "dbias %zu", i);
  free(a), free(b), free(c), free(e), free(got), free(want), free(pre);
  d->destroy(d), r->destroy(r);
}

static void crossentropy_does_not_see_the_chunk(void) {
  Device *d = opened();
  enum { N = 9, V = 301, STRIDE = 320 };
  int32_t list[N] = {0, 300, 17, 5, IGNORED_TARGET, 44, 45, 46, 299}, *targets = ids_of(d, list, N);
  real *logits = random_real(d, "logits", N * STRIDE, 5), *before = copy_real(d, logits, N * STRIDE), *other = copy_real(d, logits, N * STRIDE);
  acc *loss = acc_of(d, NULL, N), *loss2 = acc_of(d, NULL, N);
  d->crossentropy(d, logits, loss, targets, N, V, STRIDE, 0.1, WITHOUT_GRADIENT);
  CHECK(equal_real(d, logits, before, N * STRIDE));
  d->crossentropy(d, logits, loss, targets, N, V, STRIDE, 0.1, WITH_GRADIENT);
  for (size_t r = 0; r < N; r++) d->crossentropy(d, d->real_at(other, r * STRIDE), d->acc_at(loss2, r), targets + r, 1, V, STRIDE, 0.1, WITH_GRADIENT);
  CHECK(equal_real(d, logits, other, N * STRIDE) && equal_acc(d, loss, loss2, N));
  CHECK(real_value(d, logits, V) == 0 && real_value(d, logits, 4 * STRIDE) == 0 && acc_value(d, loss, 4) == 0);
  d->destroy(d);
}

static void nan_is_never_hidden(void) {
  Device *d = opened();
  real *w = random_real(d, "w", 32, 1), *out = real_of(d, NULL, 32);
  acc *mean = acc_of(d, NULL, 1), *rstd = acc_of(d, NULL, 1), *loss = acc_of(d, NULL, 1);
  int32_t three = 3, *target = ids_of(d, &three, 1);
  for (size_t place = 0; place < 32; place += 31) {
    real *x = random_real(d, "x", 32, 1);
    double nan = NAN;
    d->upload_real(d, d->real_at(x, place), &nan, 1);
    d->activation_forward(d, out, x, 1, 32, ACTIVATION_GELU);
    CHECK(isnan(real_value(d, out, place)));
    d->activation_backward(d, out, w, x, 1, 32, ACTIVATION_GELU);
    CHECK(isnan(real_value(d, out, place)));
    d->activation_forward(d, out, x, 1, 32, ACTIVATION_SWIGLU);
    CHECK(isnan(real_value(d, out, place % 16)));
    d->layernorm_forward(d, NULL, out, mean, rstd, x, NULL, w, NULL, 1, 32, 1e-5);
    CHECK(isnan(real_value(d, out, 0)) && isnan(acc_value(d, mean, 0)) && isnan(acc_value(d, rstd, 0)));
    d->linear_forward(d, out, NULL, x, w, NULL, 1, 32, 1, ACTIVATION_NONE);
    CHECK(isnan(real_value(d, out, 0)));
    scalar *count = d->allocate(d, 8);
    d->count_nonfinite_real(d, count, x, 32);
    CHECK(stat_value(d, count) == 1);
    d->crossentropy(d, x, loss, target, 1, 32, 32, 1, WITH_GRADIENT);
    CHECK(isnan(acc_value(d, loss, 0)) && isnan(real_value(d, x, 7)));
  }
  d->destroy(d);
}

// ---- attention ----

typedef struct { size_t T, NH, KVH, HS; real *q, *k, *v; } Sequence;
static void attend(Device *d, const Sequence *x, real *out, acc *lse, size_t position, size_t T, const int32_t *first_key) {
  AttentionShape s = {.B = 1, .T = T, .S = position + T, .position = position, .NH = x->NH, .KVH = x->KVH, .HS = x->HS, .q_stride = x->NH * x->HS,
                      .kv_stride = x->KVH * x->HS, .out_stride = x->NH * x->HS, .mask = MASK_CAUSAL, .scale = 0.3, .first_key = first_key};
  d->attention_forward(d, out, lse, d->real_at(x->q, position * x->NH * x->HS), x->k, x->v, &s);
}

// One position at a time gives the bits of the whole sequence at once: both families begin chunks of keys at fixed places.
static void decoding_is_the_full_pass(void) {
  static const size_t shapes[][4] = {{67, 2, 1, 32}, {33, 3, 3, 17}, {70, 4, 2, 64}, {19, 1, 1, 300}};
  for (size_t i = 0; i < ARRAY_LEN(shapes); i++) {
    Device *d = opened();
    Sequence x = {shapes[i][0], shapes[i][1], shapes[i][2], shapes[i][3], NULL, NULL, NULL};
    size_t row = x.NH * x.HS;
    x.q = random_real(d, "q", x.T * row, 2), x.k = random_real(d, "k", x.T * x.KVH * x.HS, 2), x.v = random_real(d, "v", x.T * x.KVH * x.HS, 1);
    real *whole = real_of(d, NULL, x.T * row), *parts = real_of(d, NULL, x.T * row);
    attend(d, &x, whole, NULL, 0, x.T, NULL);
    for (size_t t = 0; t < x.T; t++) attend(d, &x, d->real_at(parts, t * row), NULL, t, 1, NULL);
    CHECK_MSG(equal_real(d, whole, parts, x.T * row), "T %zu HS %zu: decoding differs", x.T, x.HS);
    d->destroy(d);
  }
}

static void unseen_keys_change_nothing(void) {
  static const size_t head_sizes[] = {24, 64};
  for (size_t i = 0; i < ARRAY_LEN(head_sizes); i++) {
    Device *d = opened();
    Sequence x = {100, 2, 1, head_sizes[i], NULL, NULL, NULL};
    size_t row = 2 * x.HS;
    int32_t list[100];
    for (int t = 0; t < 100; t++) list[t] = t < 37 ? 0 : 37;
    int32_t *first_key = ids_of(d, list, 100);
    x.q = random_real(d, "q", 100 * row, 2), x.k = random_real(d, "k", 100 * x.HS, 2), x.v = random_real(d, "v", 100 * x.HS, 1);
    real *before = real_of(d, NULL, 100 * row), *after = real_of(d, NULL, 100 * row), *noise = random_real(d, "noise", 100 * x.HS, 1e4);
    attend(d, &x, before, NULL, 0, 100, first_key);
    d->copy(d, d->real_at(x.k, 50 * x.HS), noise, 50 * x.HS * d->real_size), d->copy(d, d->real_at(x.v, 50 * x.HS), noise, 50 * x.HS * d->real_size);
    attend(d, &x, after, NULL, 0, 100, first_key);   // the future of the first 50 is another
    CHECK(equal_real(d, before, after, 50 * row) && !equal_real(d, d->real_at(before, 50 * row), d->real_at(after, 50 * row), 50 * row));
    attend(d, &x, before, NULL, 0, 100, first_key);
    d->copy(d, x.k, noise, 37 * x.HS * d->real_size), d->copy(d, x.v, noise, 37 * x.HS * d->real_size);
    attend(d, &x, after, NULL, 0, 100, first_key);   // another document is another
    CHECK(equal_real(d, d->real_at(before, 37 * row), d->real_at(after, 37 * row), 63 * row) && !equal_real(d, before, after, 37 * row));
    d->destroy(d);
  }
}

static void attention_of_nothing_is_nothing(void) {
  static const size_t head_sizes[] = {16, 64};
  for (size_t i = 0; i < ARRAY_LEN(head_sizes); i++) {
    Device *d = opened();
    size_t HS = head_sizes[i];
    real *q = random_real(d, "q", 3 * HS, 1), *k = random_real(d, "k", 3 * HS, 1), *out = random_real(d, "out", HS, 1), *zero = real_of(d, NULL, 3 * HS);
    acc *lse = acc_of(d, NULL, 3);
    int32_t list = 3, *nothing = ids_of(d, &list, 1);
    AttentionShape s = {.B = 1, .T = 1, .S = 3, .position = 2, .NH = 1, .KVH = 1, .HS = HS, .q_stride = HS, .kv_stride = HS, .out_stride = HS, .first_key = nothing, .scale = 1};
    d->attention_forward(d, out, lse, q, k, k, &s);
    CHECK(equal_real(d, out, zero, HS) && acc_value(d, lse, 0) == -INFINITY);
    real *g[3];
    d->zero(d, lse, 3 * d->acc_size);
    for (int j = 0; j < 3; j++) g[j] = random_real(d, "old", 3 * HS, 1);
    AttentionShape all = {.B = 1, .T = 3, .S = 3, .NH = 1, .KVH = 1, .HS = HS, .q_stride = HS, .kv_stride = HS, .out_stride = HS, .scale = 1};
    d->attention_backward(d, g[0], g[1], g[2], zero, q, k, k, q, lse, &all);   // no gradient comes in: none goes out
    for (int j = 0; j < 3; j++) CHECK(equal_real(d, g[j], zero, 3 * HS));
    d->destroy(d);
  }
}

// ---- more than one launch takes ----

static void embedding_gradient_of_many_rows(void) {   // over the 65,536 rows that are sorted at once, and ids of three digits of 8 bits
  Device *d = opened();
  size_t n = 65536 + 700, V = 70000;
  int32_t *list = xmalloc(n, sizeof *list);
  for (size_t i = 0; i < n; i++) list[i] = i % 3 ? 69999 : (int32_t)(i * 7919 % V);
  int32_t *ids = ids_of(d, list, n);
  double *ones = xmalloc(n, 8), *want = xcalloc(V, 8), *got = xmalloc(V, 8);
  for (size_t i = 0; i < n; i++) ones[i] = 1 + (double)(i % 2), want[list[i]] += ones[i];   // whole numbers below 2^24: exact
  real *dout = real_of(d, ones, n);
  acc *dwte = acc_of(d, NULL, V);
  d->embedding_backward(d, dwte, NULL, dout, ids, 1, n, 1, V);
  d->download_acc(d, got, dwte, V);
  CHECK(!memcmp(want, got, V * 8));
  free(list), free(ones), free(want), free(got), d->destroy(d);
}

static void norms_of_many_tensors(void) {   // more requests than one table, two sums by turns, and what comes next sees them
  Device *d = opened();
  acc *x = random_acc(d, "x", 3000, 1);
  scalar *stats = d->allocate(d, 16);
  double *values = random_doubles("x", 3000, 1), want[2] = {0};
  for (size_t i = 0; i < 3000; i++) {
    d->sumsq(d, d->stat_at(stats, i < 1500 ? 0 : i % 2), d->acc_at(x, i), 1);
    want[i < 1500 ? 0 : i % 2] += values[i] * values[i];
  }
  d->zero(d, x, 3000 * 4);   // later: must not reach the sums
  for (size_t i = 0; i < 2; i++) CHECK_NEAR(stat_value(d, d->stat_at(stats, i)), want[i], 3000 * 0x1p-53 * want[i], "sum %zu", i);
  free(values), d->destroy(d);
}

static AdamWSettings some_settings(void) {
  return (AdamWSettings){.lr = 1e-2, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .bias1 = 0.1, .bias2 = 0.05};
}
static void uploads_come_after_what_was_put_off(void) {
  enum { N = 5000 };
  Device *d = opened();
  double *values = random_doubles("norm", N, 1), *zeros = xcalloc(N, sizeof *zeros), sum = 0, got;
  acc *x = acc_of(d, values, N);
  scalar *out = d->allocate(d, sizeof(double));
  for (int i = 0; i < N; i++) sum += values[i] * values[i];
  d->sumsq(d, out, x, N);
  d->upload_acc(d, x, zeros, N);
  d->download_stat(d, &got, out, 1);
  CHECK_MSG(fabs(got - sum) <= 1e-9 * sum, "%.17g, expected %.17g", got, sum);
  free(values);
  free(zeros);
  d->destroy(d);
}

// Every kernel is counted: what --trace says, and where a refused launch is named.
static void launches_are_counted(void) {
  enum { R = 64, C = 64 };
  Device *d = opened();
  real *x = random_real(d, "x", R * C, 1), *y = random_real(d, "y", R * C, 1), *weight = random_real(d, "weight", C * C, 1);
  real *out = random_real(d, "out", R * C, 1), *residual = random_real(d, "residual", R * C, 1), *dk = random_real(d, "dk", R * C, 1), *dv = random_real(d, "dv", R * C, 1);
  acc *shift = acc_of(d, NULL, C), *mean = acc_of(d, NULL, R), *rstd = acc_of(d, NULL, R), *gradient = acc_of(d, NULL, C * C), *lse = acc_of(d, NULL, R);
  scalar *stat = d->allocate(d, STAT_COUNT * sizeof(double));
  int32_t *ids = ids_of(d, (int32_t[R]){0}, R);
  const Dropout dropout = {.p = 0.5};
  const AttentionShape shape = {.B = 1, .T = R, .S = R, .NH = 1, .KVH = 1, .HS = C, .q_stride = C, .kv_stride = C, .out_stride = C, .scale = 0.1};
  uint64_t before;
#define LAUNCHES(count, ...) do { before = d->launches(d); __VA_ARGS__; CHECK_MSG(d->launches(d) - before == (count), "%s: %d launches", #__VA_ARGS__, (int)(d->launches(d) - before)); } while (0)
  const bool half = precision == CUDA_BF16;
  LAUNCHES(1, d->embedding_forward(d, x, ids, weight, NULL, 1, R, C, 0));
  LAUNCHES(2, d->embedding_backward(d, gradient, NULL, x, ids, 1, R, C, C));
  LAUNCHES(1, d->embedding_backward(d, NULL, gradient, x, ids, 1, R, C, C));
  LAUNCHES(1, d->dropout(d, x, R, C, &dropout));
  LAUNCHES(1, d->layernorm_forward(d, residual, out, mean, rstd, x, y, weight, weight, R, C, 1e-5));
  LAUNCHES(2, d->layernorm_backward(d, out, gradient, shift, y, NULL, x, weight, mean, rstd, R, C));
  LAUNCHES(1, d->rmsnorm_forward(d, residual, out, rstd, x, y, weight, R, C, 1e-5));
  LAUNCHES(2, d->rmsnorm_backward(d, out, gradient, y, NULL, x, weight, rstd, R, C));
  LAUNCHES(1, d->residual_forward(d, y, x, y, R * C));
  LAUNCHES(1, d->linear_forward(d, y, NULL, x, weight, NULL, R, C, C, ACTIVATION_NONE));
  LAUNCHES(1, d->linear_backward_input(d, y, x, weight, R, C, C));
  LAUNCHES(1, d->linear_backward_weight(d, gradient, NULL, x, y, R, C, C));
  LAUNCHES(1, d->activation_forward(d, y, x, R, C, ACTIVATION_GELU));
  LAUNCHES(1, d->activation_backward(d, out, y, x, R, C, ACTIVATION_GELU));
  LAUNCHES(0, d->rope_table(d, gradient, R, C, 10000));
  LAUNCHES(1, d->rope(d, x, gradient, 1, R, 0, 1, C, C, 1));
  LAUNCHES(1, d->attention_forward(d, out, lse, x, x, x, &shape));
  LAUNCHES(half ? 2 : 3, d->attention_backward(d, residual, dk, dv, y, x, x, x, out, lse, &shape));
  LAUNCHES(1, d->copy_rows(d, y, C, x, C, R, C));
  LAUNCHES(1, d->crossentropy(d, x, lse, ids, R, C, C, 1, WITH_GRADIENT));
  LAUNCHES(1, d->add_rows(d, gradient, lse, ids, 1, R, 1));
  LAUNCHES(1, d->sum(d, stat, lse, R));
  LAUNCHES(2, d->sumsq(d, stat, gradient, C * C); d->sync(d));
  LAUNCHES(1, d->count_nonfinite_acc(d, stat, gradient, C * C));
  LAUNCHES(1, d->count_nonfinite_real(d, stat, x, R * C));
#undef LAUNCHES
  CHECK(!strstr(d->description, "cuBLASLt") && strstr(d->description, half ? "bf16" : "fp32") == d->description && strstr(d->description, "multiprocessors"));
  d->destroy(d);
}

static void adamw_of_many_tensors(void) {   // more than one table; bf16 keeps masters, and its weights are their roundings
  Device *d = opened();
  enum { COUNT = 2100, EACH = 3 };
  bool master = !d->real_is_acc;
  real *param = real_of(d, NULL, COUNT * EACH);
  acc *masters = random_acc(d, "w", COUNT * EACH, 1), *grad = random_acc(d, "g", COUNT * EACH, 1), *m = acc_of(d, NULL, COUNT * EACH), *v = acc_of(d, NULL, COUNT * EACH);
  double *w = random_doubles("w", COUNT * EACH, 1), *g = random_doubles("g", COUNT * EACH, 1), *got = xmalloc(COUNT * EACH, 8);
  d->upload_real(d, param, w, COUNT * EACH);
  AdamWTensor *tensors = xcalloc(COUNT, sizeof *tensors);
  for (size_t i = 0; i < COUNT; i++)
    tensors[i] = (AdamWTensor){d->real_at(param, i * EACH), master ? d->acc_at(masters, i * EACH) : NULL, d->acc_at(grad, i * EACH), d->acc_at(m, i * EACH), d->acc_at(v, i * EACH), EACH, i % 2 ? 0.1 : 0, 0};
  scalar *stats = d->allocate(d, STAT_COUNT * 8);
  AdamWSettings s = some_settings();
  for (int step = 0; step < 2; step++) d->adamw(d, tensors, COUNT, &s, stats);   // the same gradient twice
  d->download_real(d, got, param, COUNT * EACH);
  for (size_t i = 0; i < COUNT * EACH; i++) {
    double x = w[i], m1 = 0, v1 = 0;
    for (int step = 0; step < 2; step++) {
      m1 = 0.9 * m1 + 0.1 * g[i], v1 = 0.95 * v1 + 0.05 * g[i] * g[i];
      x -= 1e-2 * (m1 / 0.1 / (sqrt(v1 / 0.05) + 1e-8) + (i / EACH % 2 ? 0.1 : 0) * x);
    }
    CHECK_NEAR(got[i], x, unit() * fabs(x) + 100 * 0x1p-24, "element %zu", i);   // two updates in float, one rounding to storage
    if (master) CHECK_NEAR(acc_value(d, masters, i), x, 100 * 0x1p-24, "master %zu", i);
    if (i > 200) i += 97;
  }
  free(tensors), free(w), free(g), free(got), d->destroy(d);
}

// A step whose loss or norm is not finite, or whose norm is beyond max_norm, writes nothing.
// A weight of 1 that should become 1 + 2^-9 becomes 1 + 2^-7, its neighbour in bf16, in a quarter of the cases, and else stays.
static void weights_without_masters_are_rounded_at_random(void) {
  enum { N = 4099 };
  if (precision != CUDA_BF16) return;
  Device *d = opened();
  double ones[N], back[2][N];
  for (int i = 0; i < N; i++) ones[i] = 1;
  scalar *stats = d->allocate(d, STAT_COUNT * sizeof(double));
  for (int run = 0; run < 2; run++) {
    real *w = real_of(d, ones, N);
    double minus[N];
    for (int i = 0; i < N; i++) minus[i] = -1;
    AdamWTensor t = {.param = w, .grad = acc_of(d, minus, N), .m = acc_of(d, NULL, N), .v = acc_of(d, NULL, N), .n = N, .site = 7};
    AdamWSettings s = {.lr = 0x1p-9, .beta1 = 0.5, .beta2 = 0.5, .bias1 = 0.5, .bias2 = 0.5, .seed = 3, .step = 5};   // the first step goes by lr, whatever the gradient
    d->adamw(d, &t, 1, &s, stats);
    d->download_real(d, back[run], w, N);
  }
  int up = 0;
  for (int i = 0; i < N; i++) {
    uint32_t word = rng_u32(3, 5, 7, (uint64_t)i) & 0xffff;      // 2^-9 is 2^14 of the 2^16 places between the neighbours
    CHECK_MSG(back[0][i] == (word >= 0x10000 - 0x4000 ? 1 + 0x1p-7 : 1), "element %d became %.9g", i, back[0][i]);
    up += back[0][i] > 1;
  }
  CHECK_MSG(abs(up - N / 4) < 112, "%d of %d went up", up, N);    // four deviations of sqrt(N 1/4 3/4)
  CHECK(!memcmp(back[0], back[1], sizeof back[0]));
  d->destroy(d);
}

static void adamw_refuses_bad_steps(void) {
  Device *d = opened();
  double start[4] = {1, 2, 3, 4}, stats[][STAT_COUNT] = {{NAN, 16}, {INFINITY, 16}, {1, NAN}, {1, INFINITY}, {1, 16}};
  real *w = real_of(d, start, 1);
  acc *m = acc_of(d, start + 1, 1), *v = acc_of(d, start + 2, 1), *g = acc_of(d, start + 3, 1);
  AdamWTensor tensor = {w, NULL, g, m, v, 1, 0.1, 0};
  AdamWSettings settings = some_settings();
  for (size_t i = 0; i <= ARRAY_LEN(stats); i++) {
    acc *values = acc_of(d, NULL, 1);
    scalar *stat = d->allocate(d, STAT_COUNT * 8);
    const double *s = stats[MIN(i, ARRAY_LEN(stats) - 1)];
    for (size_t j = 0; j < STAT_COUNT; j++) {   // sum() is the only way to set a scalar: fp32 holds these
      d->upload_acc(d, values, &s[j], 1);
      d->sum(d, d->stat_at(stat, j), values, 1);
    }
    settings.max_norm = i == 4 ? 0.5 : 0;   // the norm is 4
    d->adamw(d, &tensor, 1, &settings, stat);
    bool wrote = real_value(d, w, 0) != 1 || acc_value(d, m, 0) != 2 || acc_value(d, v, 0) != 3;
    CHECK_MSG(wrote == (i == ARRAY_LEN(stats)), "case %zu", i);
  }
  d->destroy(d);
}

// ---- the start ----

static void each_refusal_has_its_sentence(void) {
  CudaFacts good = {.driver = 13000, .runtime = 13000, .devices = 1, .major = 8, .minor = 0, .memory_free = (size_t)1 << 34, .memory_needed = 1 << 24};
  CHECK(cuda_refusal(&good) == NULL);
  CudaFacts f = good;
  f.driver = 12080, f.error = 35;
  CHECK(strstr(cuda_refusal(&f), "knows CUDA 12.8 and this binary needs 13.0") != NULL);
  f.driver = 0;
  CHECK(strstr(cuda_refusal(&f), "there is no NVIDIA driver here; this binary needs one for CUDA 13.0") != NULL);
  f = good, f.error = 100, f.devices = 0;
  CHECK(strstr(cuda_refusal(&f), "no CUDA device here") != NULL);
  f = good, f.error = 46;
  CHECK(strstr(cuda_refusal(&f), "exclusive use") != NULL);
  f = good, f.memory_free = 1 << 20;
  CHECK(strstr(cuda_refusal(&f), "too little free memory: 1 MiB, the device itself needs") != NULL);
  f = good, f.major = 7, f.minor = 5;
  CHECK(strstr(cuda_refusal(&f), "capability 7.5 and this binary needs 8.0") != NULL);
  f = good, f.error = 999;
  CHECK(strstr(cuda_refusal(&f), "does not start") != NULL);
}

// What a further sequence of 1,024 tokens costs a model of 124M parameters in bf16: the numbers of the README.
static void sequences_fit(void) {
  static const struct { Recompute recompute; double most_mib; } cases[] = {{RECOMPUTE_LIGHT, 200}, {RECOMPUTE_BLOCK, 47}};
  if (precision != CUDA_BF16) return;
  Device *d = opened();
  for (int i = 0; i < 2; i++) {
    MemoryTable four, five;
    GptOptions o = {.purpose = PURPOSE_TRAIN, .B = 4, .T = 1024, .recompute = cases[i].recompute};
    config_preset(&o.config, "gpt2-124M");
    o.config.vocab = 50257;
    gpt_memory(&four, d, &o);
    o.B = 5;
    gpt_memory(&five, d, &o);
    double mib = (double)(five.total - four.total) / (1 << 20);   // activations and their gradients
    CHECK_MSG(mib <= cases[i].most_mib, "a sequence takes %.1f MiB, at most %.0f are wanted", mib, cases[i].most_mib);
  }
  d->destroy(d);
}

static void no_device_is_said(void) { EXPECT_FAIL(EXIT_MACHINE, cuda_unavailable(), cuda_device(CUDA_FP32, GEMM_OWN)); }

int main(int argc, char **argv) {
  TEST_BEGIN(argc, argv);
  CudaFacts nothing = {.error = 100};
  if (strstr(cuda_refusal(&nothing), "no CUDA device here")) RUN(each_refusal_has_its_sentence);   // else the build has no device at all
  if (cuda_unavailable()) {
    printf("no CUDA device: %s; only that is tested\n", cuda_unavailable());
    RUN(no_device_is_said);
    return TEST_END();
  }
  const char *device = getenv("TEST_DEVICE");
  if (device && !strcmp(device, "cuda-bf16-wgmma")) library = GEMM_WGMMA;
  for (precision = library == GEMM_WGMMA ? CUDA_BF16 : CUDA_FP32; precision <= CUDA_BF16; precision++) {
    RUN(memory_is_zeroed_copied_and_refused);
    RUN(values_are_rounded_once);
    RUN(large_uploads_come_in_pieces);
    RUN(norms_may_alias_and_are_their_parts);
    RUN(linear_forward_fused_is_unfused);
    RUN(long_products_are_their_sums);
    RUN(large_products_are_the_references);
    RUN(crossentropy_does_not_see_the_chunk);
    RUN(nan_is_never_hidden);
    RUN(decoding_is_the_full_pass);
    RUN(unseen_keys_change_nothing);
    RUN(attention_of_nothing_is_nothing);
    RUN(embedding_gradient_of_many_rows);
    RUN(norms_of_many_tensors);
    RUN(uploads_come_after_what_was_put_off);
    RUN(launches_are_counted);
    RUN(adamw_of_many_tensors);
    RUN(weights_without_masters_are_rounded_at_random);
    RUN(adamw_refuses_bad_steps);
    RUN(sequences_fit);
  }
  return TEST_END();
}
