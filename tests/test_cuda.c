// test_cuda.c: owns the tests of the CUDA device beyond its operations' numbers (test_ops, test_attention with TEST_DEVICE=cuda): memory,
// conversions, aliasing, fused equals unfused, refusals, tables longer than one launch, and the sentences of the start.
// In a build without the device it tests that the build says so. Run on a GPU where there is one, else emulated (`make test-cuda`).
#include "../model.h"   // gpt_memory
#include "cuda_launches.h"
#include "cuda_library.h" // library_*
#include "cuda_test.h"
#include <float.h>      // FLT_MAX
#include <sys/mman.h>   // mprotect

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
  d->sum(d, d->allocate(d, sizeof(double)), acc_of(d, NULL, 1), 1);   // and no later launch is blamed for it
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

// Doubles at and around ties between two stored numbers, of both signs and all magnitudes: by way of float some would be rounded twice.
static void ties_are_rounded_once(void) {
  static const int exponents[] = {-100, -1, 0, 1, 90};
  Device *d = opened();
  double in[1600], want[ARRAY_LEN(in)], back[ARRAY_LEN(in)];
  size_t n = 0;
  for (size_t e = 0; e < ARRAY_LEN(exponents); e++)
    for (int place = 0; place < 8; place++)          // stored numbers and the ties between them, even and odd ones
      for (int unit_of_float = -2; unit_of_float <= 2; unit_of_float++)
        for (int part = -1; part <= 1; part++)
          for (int sign = -1; sign <= 1; sign += 2) in[n++] = sign * ldexp(1 + place * 0x1p-8 + unit_of_float * 0x1p-23 + part * 0x1p-45, exponents[e]);
  in[n++] = 1e-300, in[n++] = -1e-300, in[n++] = 5e-324;
  for (size_t i = 0; i < n; i++) {
    int exponent;
    frexp(in[i], &exponent);
    want[i] = precision == CUDA_FP32 ? (double)(float)in[i] : fabs(in[i]) < 1e-200 ? 0 * in[i] : ldexp(rint(ldexp(in[i], 8 - exponent)), exponent - 8);
  }
  real *x = real_of(d, in, n);
  d->download_real(d, back, x, n);
  for (size_t i = 0; i < n; i++) CHECK_MSG(back[i] == want[i], "%a became %a, expected %a", in[i], back[i], want[i]);
  d->destroy(d);
}

// The host's arrays end where their memory ends.
static void transfers_stay_within_their_arrays(void) {
  enum { N = 5 };
  const size_t page = (size_t)sysconf(_SC_PAGESIZE);
  char *memory = mmap(NULL, 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED || mprotect(memory + page, page, PROT_NONE)) abort();
  double *last = (double *)(void *)(memory + page) - N;
  float *last_floats = (float *)(void *)(memory + page) - N;
  int32_t *last_ids = (int32_t *)(void *)(memory + page) - N;
  Device *d = opened();
  real *x = real_of(d, NULL, N);
  acc *y = acc_of(d, NULL, N);
  for (int i = 0; i < N; i++) last[i] = i + 1;
  d->upload_real(d, x, last, N), d->upload_acc(d, y, last, N);
  memset(last, 0, N * sizeof *last);
  d->download_real(d, last, x, N);
  CHECK(last[0] == 1 && last[N - 1] == N);
  d->download_acc(d, last, y, N);
  CHECK(last[0] == 1 && last[N - 1] == N);
  for (int i = 0; i < N; i++) last_floats[i] = (float)(i + 2);
  d->upload_real_float(d, x, last_floats, N), d->upload_acc_float(d, y, last_floats, N);
  CHECK(real_value(d, x, N - 1) == N + 1 && acc_value(d, y, N - 1) == N + 1);
  for (int i = 0; i < N; i++) last_ids[i] = i;
  d->upload_ids(d, (int32_t *)(void *)y, last_ids, N);
  d->sync(d);
  munmap(memory, 2 * page);
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
      if (library == GEMM_CUBLASLT) continue;   // a product that is not kept is our own: its sums have another order
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

// Numbers of outputs that are odd, which those of a model never are: the last column of a pair is not there, and arrays end with their allocation.
static void odd_products_are_the_references(void) {
  static const size_t shapes[][3] = {{1, 1, 1}, {3, 5, 7}, {65, 17, 65}, {9, 24, 129}};   // rows, IC, OC
  for (size_t which = 0; which < ARRAY_LEN(shapes); which++) {
    const size_t rows = shapes[which][0], IC = shapes[which][1], OC = shapes[which][2];
    double *x = random_doubles("x", rows * IC, 1), *w = random_doubles("w", OC * IC, 1), *b = random_doubles("b", OC, 1), *got = xmalloc(rows * OC, 8), *want = xmalloc(rows * OC, 8), *post = xmalloc(rows * OC, 8);
    Device *d = opened(), *r = reference_device();
    real *dx = real_of(d, x, rows * IC), *dw = real_of(d, w, OC * IC), *db = real_of(d, b, OC), *dpre = real_of(d, NULL, rows * OC), *dpost = real_of(d, NULL, rows * OC);
    d->download_real(d, x, dx, rows * IC), d->download_real(d, w, dw, OC * IC), d->download_real(d, b, db, OC);   // as they are stored
    real *rpre = real_of(r, NULL, rows * OC);
    for (int biased = 0; biased < 2; biased++) {
      d->linear_forward(d, dpre, dpost, dx, dw, biased ? db : NULL, rows, IC, OC, ACTIVATION_GELU);
      r->linear_forward(r, rpre, NULL, (real *)x, (real *)w, biased ? (real *)b : NULL, rows, IC, OC, ACTIVATION_NONE);   // its real is double
      d->download_real(d, got, dpre, rows * OC), d->download_real(d, post, dpost, rows * OC), r->download_real(r, want, rpre, rows * OC);
      const double chain = ((double)IC + 2) * 0x1p-24 * ((double)IC + 1);
      for (size_t i = 0; i < rows * OC; i++) {
        const double gelu = want[i] / (1 + exp(-1.5957691216057308 * (want[i] + 0.044715 * want[i] * want[i] * want[i])));
        CHECK_NEAR(got[i], want[i], chain + unit() * fabs(want[i]), "OC %zu, pre %zu", OC, i);
        CHECK_NEAR(post[i], gelu, 1.13 * (chain + unit() * fabs(want[i])) + (unit() + 8 * 0x1p-24) * fabs(gelu) + 1e-6, "OC %zu, post %zu", OC, i);
      }
    }
    free(x), free(w), free(b), free(got), free(want), free(post);
    d->destroy(d), r->destroy(r);
  }
}

// Sums so long that the device cuts them where it has more multiprocessors than tiles; beside plain sums in double.
static void long_products_of(int multiprocessors) {
  enum { LONG = 2568, IC = 72, OC = 136 };   // a tile of 128, and an edge
  Device *d = opened_with(multiprocessors);
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

static void long_products_are_their_sums(void) { long_products_of(2), long_products_of(6); }   // in two and four parts, and in five

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

// So many rows that the parts of a norm's gradients are several for each warp that adds them (39 for 8), on a GPU with room for them.
static void norms_of_many_slices_are_their_sums(void) {
  enum { SLICED = 1220, C = 40 };   // a column of a block of 32, and an edge
  Device *d = opened_with(108);
  real *dx = real_of(d, NULL, SLICED * C), *dout = random_real(d, "dout", SLICED * C, 1), *x = random_real(d, "x", SLICED * C, 1), *weight = random_real(d, "weight", C, 1);
  acc *mean = random_acc(d, "mean", SLICED, 1), *rstd = random_acc(d, "rstd", SLICED, 1), *dweight = random_acc(d, "dweight", C, 1), *dbias = random_acc(d, "dbias", C, 1);
  double gain[C], shift[C], *dy = xmalloc(SLICED * C, 8), *v = xmalloc(SLICED * C, 8), *centre = random_doubles("mean", SLICED, 1), *scale = random_doubles("rstd", SLICED, 1);
  d->download_real(d, dy, dout, SLICED * C), d->download_real(d, v, x, SLICED * C), d->download_acc(d, gain, dweight, C), d->download_acc(d, shift, dbias, C);
  for (size_t i = 0; i < SLICED * C; i++) gain[i % C] += dy[i] * (v[i] - centre[i / C]) * scale[i / C], shift[i % C] += dy[i];
  d->layernorm_backward(d, dx, dweight, dbias, dout, NULL, x, weight, mean, rstd, SLICED, C);
  const double bound = (SLICED + 4) * 0x1p-24 * 2 * SLICED;   // a chain, whose terms are at most 2
  for (size_t c = 0; c < C; c++) {
    CHECK_NEAR(acc_value(d, dweight, c), gain[c], bound, "dweight %zu", c);
    CHECK_NEAR(acc_value(d, dbias, c), shift[c], bound, "dbias %zu", c);
  }
  free(dy), free(v), free(centre), free(scale);
  d->destroy(d);
}

// Rows so long that more threads work on each, with and without an end that is no multiple of 16 bytes.
static void crossentropy_of_a_large_vocabulary(void) {
  static const size_t words[] = {8192, 8197};
  enum { N = 3, STRIDE = 8200 };
  for (size_t which = 0; which < ARRAY_LEN(words); which++) {
    Device *d = opened();
    const size_t V = words[which];
    int32_t list[N] = {0, (int32_t)V - 1, 4000};
    real *logits = random_real(d, "logits", N * STRIDE, 8);
    acc *loss = acc_of(d, NULL, N);
    double *x = xmalloc(N * STRIDE, 8), *got = xmalloc(N * STRIDE, 8);
    d->download_real(d, x, logits, N * STRIDE);
    d->crossentropy(d, logits, loss, ids_of(d, list, N), N, V, STRIDE, 0.5, WITH_GRADIENT);
    d->download_real(d, got, logits, N * STRIDE);
    for (size_t r = 0; r < N; r++) {
      double sum = 0;
      for (size_t j = 0; j < V; j++) sum += exp(x[r * STRIDE + j]);
      CHECK_NEAR(acc_value(d, loss, r), log(sum) - x[r * STRIDE + (size_t)list[r]], 100 * 0x1p-24, "loss %zu", r);   // of numbers below 20
      for (size_t j = 0; j < STRIDE; j++) {
        const double want = j < V ? 0.5 * (exp(x[r * STRIDE + j]) / sum - (j == (size_t)list[r])) : 0;
        if (!(fabs(got[r * STRIDE + j] - want) <= (unit() + 40 * 0x1p-24) * fabs(want) + 0x1p-26)) { CHECK_MSG(false, "gradient %zu of row %zu: %.9g, expected %.9g", j, r, got[r * STRIDE + j], want); break; }
      }
    }
    free(x), free(got), d->destroy(d);
  }
}

// Head sizes beyond the 256 columns that a warp holds at once, forward and backward, beside the reference.
static void large_heads_are_the_references(void) {
  static const size_t head_sizes[] = {264, 301, 520};
  enum { T = 37, NH = 2 };
  for (size_t which = 0; which < ARRAY_LEN(head_sizes); which++) {
    const size_t HS = head_sizes[which], n = T * NH * HS, nk = T * HS;
    AttentionShape s = {.B = 1, .T = T, .S = T, .NH = NH, .KVH = 1, .HS = HS, .q_stride = NH * HS, .kv_stride = HS, .out_stride = NH * HS, .scale = 1 / sqrt((double)HS)};
    double *start = xmalloc(n, 8), *q = random_doubles("q", n, 1), *k = random_doubles("k", nk, 1), *v = random_doubles("v", nk, 1), *dy = random_doubles("dout", n, 1), *got[4], *want[4];
    for (int device = 0; device < 2; device++) {
      Device *d = device ? reference_device() : opened();
      real *a = real_of(d, q, n), *b = real_of(d, k, nk), *c = real_of(d, v, nk), *e = real_of(d, dy, n), *out = real_of(d, NULL, n), *dq = real_of(d, NULL, n), *dk = real_of(d, NULL, nk), *dv = real_of(d, NULL, nk);
      acc *lse = acc_of(d, NULL, T * NH);
      if (!device) d->download_real(d, q, a, n), d->download_real(d, k, b, nk), d->download_real(d, v, c, nk), d->download_real(d, dy, e, n);   // as they are stored
      d->attention_forward(d, out, lse, a, b, c, &s), d->attention_backward(d, dq, dk, dv, e, a, b, c, out, lse, &s);
      const real *const results[] = {out, dq, dk, dv};
      for (int i = 0; i < 4; i++) {
        double **to = device ? &want[i] : &got[i];
        *to = xmalloc(n, 8);
        d->download_real(d, *to, results[i], i < 2 ? n : nk);
      }
      d->destroy(d);
    }
    for (int i = 0; i < 4; i++)
      for (size_t j = 0; j < (i < 2 ? n : nk); j++)   // a result's rounding, and out's, which dscore is made of (sums of HS terms below 1, over at most 2 T queries)
        if (!(fabs(got[i][j] - want[i][j]) <= 8 * unit() * (1 + sqrt((double)HS)))) { CHECK_MSG(false, "HS %zu, result %d, element %zu: %.9g, expected %.9g", HS, i, j, got[i][j], want[i][j]); break; }
    free(start), free(q), free(k), free(v), free(dy);
    for (int i = 0; i < 4; i++) free(got[i]), free(want[i]);
  }
}

// Vocabularies just within and just beyond what one, two and three passes of the sort can tell apart.
static void rows_are_sorted_by_all_digits(void) {
  static const size_t sizes[] = {1, 2, 256, 257, 65536, 65537, (1 << 24) + 1};
  for (size_t i = 0; i < ARRAY_LEN(sizes); i++) {
    Device *d = opened();
    const int32_t last = (int32_t)sizes[i] - 1, low = last & ~0xff, ids[6] = {last, 0, last, low, 0, last};   // last and low differ in the first digit, last and 0 in the last one too
    double values[6] = {1, 2, 4, 8, 16, 32}, sum[3] = {0};
    acc *dwte = acc_of(d, NULL, sizes[i]);
    d->embedding_backward(d, dwte, NULL, real_of(d, values, 6), ids_of(d, ids, 6), 1, 6, 1, sizes[i]);
    for (int j = 0; j < 6; j++) sum[0] += ids[j] == 0 ? values[j] : 0, sum[1] += ids[j] == last ? values[j] : 0, sum[2] += ids[j] == low ? values[j] : 0;
    CHECK_MSG(acc_value(d, dwte, 0) == sum[0] && acc_value(d, dwte, (size_t)last) == sum[1] && acc_value(d, dwte, (size_t)low) == sum[2], "%zu words", sizes[i]);
    d->release(d, dwte, sizes[i] * 4);
    d->destroy(d);
  }
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

// Logits of minus infinity have probability 0, be they all that a thread sees; slopes of gelu and silu are 0 and 1 where nothing else fits a float.
static void infinities_are_no_nan(void) {
  enum { V = 301, STRIDE = 304 };
  static const size_t masked[] = {0, 1, 2, 3, 4, 5, 6, 7, 16, 300};   // all of the first threads; the first of another; the last, which no access of 16 bytes has
  Device *d = opened();
  double *values = random_doubles("logits", STRIDE, 3), got[STRIDE], sum = 0;
  for (size_t i = 0; i < ARRAY_LEN(masked); i++) values[masked[i]] = -INFINITY;
  real *logits = real_of(d, values, STRIDE);
  acc *loss = acc_of(d, NULL, 1);
  d->download_real(d, values, logits, STRIDE);
  for (size_t j = 0; j < V; j++) sum += exp(values[j]);
  d->crossentropy(d, logits, loss, ids_of(d, (int32_t[]){17}, 1), 1, V, STRIDE, 1, WITH_GRADIENT);
  d->download_real(d, got, logits, STRIDE);
  CHECK_NEAR(acc_value(d, loss, 0), log(sum) - values[17], 100 * 0x1p-24, "loss");
  for (size_t j = 0; j < V; j++) CHECK_NEAR(got[j], exp(values[j]) / sum - (j == 17), unit() + 1e-6, "gradient %zu", j);
  for (size_t i = 0; i < ARRAY_LEN(masked); i++) CHECK(got[masked[i]] == 0);
  double large[8] = {1e30, -1e30, 3e38, -3e38, 1e20, -1e20, 50, -200}, slope[8];
  real *x = real_of(d, large, 8), *one = real_of(d, (double[]){1, 1, 1, 1, 1, 1, 1, 1}, 8), *out = real_of(d, NULL, 8);
  d->activation_backward(d, out, one, x, 1, 8, ACTIVATION_GELU);
  d->download_real(d, slope, out, 8);
  for (int i = 0; i < 8; i++) CHECK_MSG(slope[i] == (i % 2 ? 0 : 1), "gelu's slope at %g is %g", large[i], slope[i]);
  free(values), d->destroy(d);
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
    if (precision == CUDA_FP32 || x.HS % 32) {   // the plain family does not even multiply by it
      double *nan = xmalloc(100 * x.HS, 8);
      for (size_t j = 0; j < 100 * x.HS; j++) nan[j] = NAN;
      d->upload_real(d, noise, nan, 100 * x.HS);
      free(nan);
    }
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
  const uint64_t before = d->launches(d);
  d->embedding_backward(d, dwte, NULL, dout, ids, 1, n, 1, V);
  CHECK_EQ(d->launches(d) - before, 4);
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

// Sums of squares are enqueued before the memory that they read is given back.
static void memory_is_released_after_what_was_put_off(void) {
  Device *d = opened();
  acc *x = acc_of(d, (double[]){3, 4}, 2);
  scalar *out = d->allocate(d, sizeof(double));
  d->sumsq(d, out, x, 2);
  d->release(d, x, 2 * d->acc_size);
  CHECK(stat_value(d, out) == 25);
  d->destroy(d);
}

// A thread adds four neighbours of an aligned array before others are added, and one element of another: the order that every run has.
// 2^52 swallows a number below 1/2, but not the sum of two.
static void squares_are_added_in_their_order(void) {
  Device *d = opened();
  const double values[] = {0x1p26, 0.625, 0.625, 0.625};
  acc *x = d->allocate(d, 64 * d->acc_size);
  for (size_t at = 0; at < 20; at++) {   // of three multiples of 16 bytes in a row one at most is one of 15 or 17 too
    scalar *out = d->allocate(d, sizeof(double));
    acc *place = d->acc_at(x, at);
    d->upload_acc(d, place, values, 4);
    d->sumsq(d, out, place, 4);
    const double got = stat_value(d, out), want = (uintptr_t)place % 16 == 0 ? 0x1p52 : 0x1p52 + 1;
    CHECK_MSG(got == want, "at %p: %.17g, expected %.17g", (void *)place, got, want);
  }
  d->destroy(d);
}

// With so little working memory that it is done in pieces: the same bits, and as many launches as there are pieces.
static void pieces_are_the_whole(void) {
  enum { T = 38, NH = 4, KVH = 2, B = 2, N = 100000, QUARTER = 4 * 4096 };
  static const size_t head_sizes[] = {24, 64};
  int32_t starts[B * T];   // of documents; a multiple of 16 bytes, so that nothing behind them can be read
  for (int i = 0; i < B * T; i++) starts[i] = i % T / 13 * 13;
  Device *d = opened();
  for (size_t i = 0; i < ARRAY_LEN(head_sizes); i++) {
    const size_t HS = head_sizes[i], n = B * T * NH * HS, nk = B * T * KVH * HS;
    AttentionShape s = {.B = B, .T = T, .S = T, .NH = NH, .KVH = KVH, .HS = HS, .q_stride = NH * HS, .kv_stride = KVH * HS, .out_stride = NH * HS, .q_batch = T * NH * HS,
                        .kv_batch = T * KVH * HS, .out_batch = T * NH * HS, .mask = MASK_CAUSAL, .first_key = ids_of(d, starts, B * T), .scale = 0.2, .dropout = {.p = 0.25, .seed = 3, .step = 4, .site = 5, .row0 = 6}};
    real *q = random_real(d, "q", n, 1), *k = random_real(d, "k", nk, 1), *v = random_real(d, "v", nk, 1), *dout = random_real(d, "dout", n, 1), *out = real_of(d, NULL, n);
    acc *lse = acc_of(d, NULL, B * T * NH);
    real *grads[2][3];
    uint64_t launches[2];
    d->attention_forward(d, out, lse, q, k, v, &s);
    for (int cut = 0; cut < 2; cut++) {
      for (int g = 0; g < 3; g++) grads[cut][g] = real_of(d, NULL, g ? nk : n);
      if (cut) cuda_limit_work(3 * T * sizeof(float));   // three heads, of which groups of two are whole
      const uint64_t before = d->launches(d);
      d->attention_backward(d, grads[cut][0], grads[cut][1], grads[cut][2], dout, q, k, v, out, lse, &s);
      launches[cut] = d->launches(d) - before;
    }
    cuda_limit_work(SIZE_MAX);
    for (int g = 0; g < 3; g++) CHECK_MSG(equal_real(d, grads[0][g], grads[1][g], g ? nk : n), "head size %zu, gradient %d", HS, g);
    CHECK_EQ(launches[1], 4 * launches[0]);
  }
  // eight blocks of squares at once: 25 of one array, then twice four
  double *values = random_doubles("squares", N, 1), sum = 0;
  acc *x = acc_of(d, values, N);
  scalar *out = d->allocate(d, sizeof(double));
  for (size_t i = 0; i < N; i++) sum += values[i] * values[i];
  for (size_t i = 0; i < 2 * QUARTER; i++) sum += values[i] * values[i];
  cuda_limit_work(8 * sizeof(double));
  const uint64_t before = d->launches(d);
  d->sumsq(d, out, x, N), d->sync(d);
  CHECK_EQ(d->launches(d) - before, 4 * 2);
  d->sumsq(d, out, x, QUARTER), d->sumsq(d, out, d->acc_at(x, QUARTER), QUARTER), d->sync(d);
  CHECK_EQ(d->launches(d) - before, 5 * 2);
  cuda_limit_work(SIZE_MAX);
  CHECK_NEAR(stat_value(d, out), sum, 1e-12 * sum, "pieces of squares");
  free(values), d->destroy(d);
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
  LAUNCHES(0, d->activation_forward(d, y, x, R, C, ACTIVATION_NONE); d->activation_backward(d, out, y, x, R, C, ACTIVATION_NONE));   // a copy
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
  if (emulated_launches) CHECK_STR(d->description, !half ? "fp32, emulated sm_80 (no GPU), 2 multiprocessors" : library == GEMM_WGMMA ? "bf16, wgmma, emulated sm_80 (no GPU), 2 multiprocessors" : "bf16, emulated sm_80 (no GPU), 2 multiprocessors");
  CHECK(d->row_multiple == 64 && d->row_group == 1);   // eight tiles of 8 elements of 16 bytes; sums over rows that can be cut anywhere
  d->destroy(d);
}

// Attention and products with all sizes whole tiles: where shuffled places are not those that they must be, results are right and lanes wait for each other.
// Where GPT_CUDA_PROFILE is set. Of the PTX every access is counted as it is; in the checked build the compiler takes accesses of 16 bytes to shared memory
// apart, so that only what ldmatrix and cp.async do can be counted: attention in bf16.
static void no_bank_conflicts_on_the_main_path(void) {
  const bool whole = getenv("GPT_CUDA_PTX") != NULL;
  Device *d = opened();
  const Room r = room_for(d, 256 * 256 * 4);
  for (size_t n = 64; whole && n <= 256; n *= 4) {   // one small tile, four large ones
    d->linear_forward(d, r.a, NULL, r.b, r.c, NULL, n, 64, n, ACTIVATION_NONE), d->linear_forward(d, r.a, r.e, r.b, r.c, NULL, n, 64, n, ACTIVATION_GELU);
    d->linear_forward(d, r.a, r.e, r.b, r.c, NULL, n, 64, n, ACTIVATION_SWIGLU);
    CHECK_EQ(emulated_bank_conflicts(), 0);
    d->linear_backward_input(d, r.a, r.b, r.c, n, n, 64), d->linear_backward_weight(d, r.f, r.g, r.b, r.c, 64, n, n);
    CHECK_EQ(emulated_bank_conflicts(), 0);
  }
  for (size_t HS = 32; (whole || precision == CUDA_BF16) && HS <= 128; HS += 32) {
    const AttentionShape s = {.B = 1, .T = 128, .S = 128, .NH = 1, .KVH = 1, .HS = HS, .q_stride = HS, .kv_stride = HS, .out_stride = HS, .scale = 1};
    d->attention_forward(d, r.a, r.f, r.b, r.c, r.c, &s);
    CHECK_MSG(emulated_bank_conflicts() == 0, "forward, head size %zu", HS);
    d->attention_backward(d, r.a, r.b, r.c, r.e, r.e, r.e, r.e, r.e, r.g, &s);
    CHECK_MSG(emulated_bank_conflicts() == 0, "backward, head size %zu", HS);
  }
  d->destroy(d);
}

// What has no elements, rows or batches launches nothing and is no fault.
static void nothing_is_launched_for_nothing(void) {
  Device *d = opened();
  const Room r = room_for(d, 4096);
  const uint64_t before = d->launches(d);
  const Dropout dropout = {.p = 0.5};
  const AttentionShape s = {.B = 0, .T = 3, .S = 3, .NH = 1, .KVH = 1, .HS = 8, .q_stride = 8, .kv_stride = 8, .out_stride = 8, .scale = 1};
  d->dropout(d, r.a, 0, 8, &dropout);
  d->layernorm_backward(d, r.a, r.f, r.g, r.b, r.c, r.c, r.e, r.h, r.i, 0, 8), d->rmsnorm_backward(d, r.a, r.f, r.b, r.c, r.c, r.e, r.h, 0, 8);
  d->linear_forward(d, r.a, NULL, r.b, r.c, NULL, 0, 8, 8, ACTIVATION_NONE), d->linear_forward(d, r.a, NULL, r.b, r.c, NULL, 8, 8, 0, ACTIVATION_NONE);
  d->linear_backward_input(d, r.a, r.b, r.c, 0, 8, 8), d->linear_backward_input(d, r.a, r.b, r.c, 8, 0, 8);
  d->linear_backward_weight(d, r.f, r.g, r.b, r.c, 0, 8, 8), d->linear_backward_weight(d, r.f, r.g, r.b, r.c, 8, 8, 0);
  d->activation_forward(d, r.a, r.b, 0, 8, ACTIVATION_GELU), d->activation_forward(d, r.a, r.b, 8, 0, ACTIVATION_SWIGLU);
  d->activation_backward(d, r.a, r.b, r.c, 0, 8, ACTIVATION_GELU), d->activation_backward(d, r.a, r.b, r.c, 8, 0, ACTIVATION_SWIGLU);
  d->rope(d, r.a, r.f, 0, 3, 0, 1, 8, 8, 1);
  d->attention_forward(d, r.a, r.f, r.b, r.c, r.c, &s), d->attention_backward(d, r.a, r.b, r.c, r.e, r.e, r.e, r.e, r.e, r.g, &s);
  d->copy_rows(d, r.a, 8, r.b, 8, 0, 8), d->copy_rows(d, r.a, 8, r.b, 8, 8, 0);
  d->crossentropy(d, r.a, r.f, r.ids, 0, 8, 8, 1, WITH_GRADIENT);
  d->embedding_backward(d, r.f, NULL, r.a, r.ids, 0, 3, 8, 8);
  d->add_rows(d, r.f, r.g, r.ids, 0, 8, 8), d->sumsq(d, r.stat, r.f, 0), d->adamw(d, NULL, 0, &(AdamWSettings){.lr = 1}, r.stat);
  d->adamw(d, &(AdamWTensor){.param = r.a, .grad = r.f, .m = r.g, .v = r.h}, 1, &(AdamWSettings){.lr = 1}, r.stat), d->refresh(d, r.a, 8);
  d->zero(d, r.a, 0), d->copy(d, r.a, r.b, 0), d->upload_acc(d, r.f, NULL, 0);
  void *empty = d->allocate(d, 0);
  CHECK(empty != NULL);
  d->release(d, empty, 0);
  d->sync(d);
  CHECK_EQ(d->launches(d) - before, 0);
  d->destroy(d);
}

// Sizes beyond what tiles and working memory can count are refused in a sentence, before anything is launched.
static void sizes_beyond_count_are_refused(void) {
  Device *d = opened();
  const size_t most = INT32_MAX / 2, work = (size_t)32 << 20;
  EXPECT_FAIL(EXIT_MACHINE, "a product of 1073741824 x 4 x 8 is too large", d->linear_forward(d, NULL, NULL, NULL, NULL, NULL, most + 1, 4, 8, ACTIVATION_NONE));
  EXPECT_FAIL(EXIT_MACHINE, "a product of 4 x 8 x 1073741824 is too large: at most 1073741823 on a side", d->linear_backward_input(d, NULL, NULL, NULL, 4, 8, most + 1));
  EXPECT_FAIL(EXIT_MACHINE, "a product of 4 x 1073741824 x 8 is too large", d->linear_backward_weight(d, NULL, NULL, NULL, NULL, 4, most + 1, 8));
  // what is just not too large to count is too large for a grid: 2^48 tiles of 64, 2^46 of 128
  EXPECT_FAIL(EXIT_MACHINE, "cuda: linear_forward: cudaErrorInvalidConfiguration (cudaErrorInvalidConfiguration); run it again with CUDA_LAUNCH_BLOCKING=1 to see where",
              d->linear_forward(d, NULL, NULL, NULL, NULL, NULL, most, most, most, ACTIVATION_NONE));
  EXPECT_FAIL(EXIT_MACHINE, "norm_backward: 4194305 channels are too many; at most 4194304", d->rmsnorm_backward(d, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 1, work / 8 + 1));
  AttentionShape s = {.B = 1, .T = work / 8 + 1, .S = work / 8 + 1, .NH = 2, .KVH = 1, .HS = 8, .scale = 1};
  EXPECT_FAIL(EXIT_MACHINE, "2 query heads a key head at --context 4194305 are too many; at most 1", d->attention_backward(d, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, &s));
  d->destroy(d);
}

// Sums over k are cut so that the last round of blocks is as full as the others; parts have eight steps of 64 at least, and fit the working memory.
static void sums_are_cut_to_fill_the_device(void) {
  static const struct { size_t M, N, K, tiles, places; int splits; } cases[] = {
    {72, 72, 1023, 1, 4, 1}, {72, 72, 1024, 1, 4, 2}, {72, 72, 1535, 1, 4, 2}, {72, 72, 1536, 1, 4, 3}, {72, 72, 65536, 1, 4, 4}, {72, 72, 65536, 2, 4, 2}, {72, 72, 65536, 3, 4, 4}, {72, 72, 65536, 4, 4, 1},
    {72, 72, 65536, 1, 216, 6}, {768, 768, 65536, 36, 216, 6}, {768, 3072, 65536, 144, 216, 3}, {768, 2304, 65536, 108, 216, 2}, {2048, 2047, 65536, 1, 216, 2}, {2048, 2048, 65536, 1, 216, 1},
    {2896, 1449, 65536, 1, 216, 1}, {1024, 1637, 65536, 1, 216, 5}, {1024, 1638, 65536, 1, 216, 4}, {72, 72, 65536, 15, 28, 5}, {72, 72, 65536, 25, 216, 6}};
  for (size_t i = 0; i < ARRAY_LEN(cases); i++) CHECK_EQ(cuda_splits(cases[i].M, cases[i].N, cases[i].K, cases[i].tiles, cases[i].places), cases[i].splits);
}

// FLOP a cycle as NVIDIA's papers on each architecture give them.
static void peaks_are_the_vendors(void) {
  static const struct { int major, minor; double single, half; } known[] = {{8, 0, 128, 2048}, {8, 6, 256, 1024}, {8, 9, 256, 1024}, {9, 0, 256, 4096}, {10, 0, 256, 8192}, {12, 0, 256, 1024}};
  for (size_t i = 0; i < ARRAY_LEN(known); i++)
    CHECK(cuda_flops_a_cycle(known[i].major, known[i].minor, CUDA_FP32) == known[i].single && cuda_flops_a_cycle(known[i].major, known[i].minor, CUDA_BF16) == known[i].half);
  if (!emulated_launches) return;
  setenv("GPT_CUDA_CLOCK_KHZ", "1410000", 1);
  Device *d = opened_with(108);   // an A100
  unsetenv("GPT_CUDA_CLOCK_KHZ");
  CHECK_NEAR(d->peak_flops, 108 * 1.41e9 * (precision == CUDA_BF16 ? 2048 : 128), 1, "108 multiprocessors at 1.41 GHz");
  CHECK(strstr(d->description, ", 108 multiprocessors") != NULL);
  d->destroy(d);
}

// Spans of the side stream: any number of them, counted once.
static void spans_of_the_side_stream_are_counted_once(void) {
  Device *d = opened();
  CHECK(d->side_busy(d) == 0 && d->side_seconds(d) == 0);
  void *side = d->side_stream(d);
  CHECK(side != NULL && d->side_stream(d) == side);
  for (int round = 0; round < 2; round++) {
    const double start = seconds_now();
    for (int i = 0; i < 60; i++) d->side_begin(d), d->side_end(d);
    while (d->side_busy(d)) {}
    const double spans = d->side_seconds(d);
    CHECK(spans >= 0 && spans <= seconds_now() - start);
    CHECK(d->side_seconds(d) == 0 && d->side_busy(d) == 0);
  }
  if (emulated_copy) {   // a long span, then an empty one: the time is the sum of both
    const size_t bytes = (size_t)16 << 20;
    void *from = d->allocate(d, bytes), *to = d->allocate(d, bytes);
    d->sync(d);
    const double start = seconds_now();
    d->side_begin(d), emulated_copy(to, from, bytes, side), d->side_end(d);
    d->side_begin(d), d->side_end(d);
    while (d->side_busy(d)) {}
    const double spans = d->side_seconds(d), all = seconds_now() - start;
    CHECK_MSG(spans >= all / 2 && spans <= all, "spans of %.9f s in %.9f s", spans, all);
    d->release(d, from, bytes), d->release(d, to, bytes);
  }
  d->destroy(d);
}

// What the side stream does begins when the operations enqueued before are done, those that were put off among them; seen where streams are lazy.
static void side_stream_comes_after_the_operations(void) {
  if (!emulated_copy) return;
  Device *d = opened();
  void *side = d->side_stream(d);
  for (int round = 0; round < 8; round++) {
    acc *x = acc_of(d, (double[]){3, 4}, 2), *y = acc_of(d, NULL, 2);
    scalar *squares = d->allocate(d, sizeof(double)), *copy = d->allocate(d, sizeof(double));
    d->sync(d);
    d->add_rows(d, x, x, NULL, 1, 2, 1);
    d->sumsq(d, squares, x, 2);
    d->side_begin(d);
    emulated_copy(y, x, 2 * d->acc_size, side), emulated_copy(copy, squares, sizeof(double), side);
    d->side_end(d);
    while (d->side_busy(d)) {}
    CHECK(acc_value(d, y, 0) == 6 && acc_value(d, y, 1) == 8 && stat_value(d, copy) == 100);
  }
  d->destroy(d);
}

// Free memory is what CUDA says, and the scratch that the table counts.
static void free_memory_is_counted(void) {
  Device *d = opened();
  const char *from = NULL;
  const size_t before = d->memory_available(d, &from);
  CHECK_STR(from, "free on the CUDA device");
  void *p = d->allocate(d, (size_t)64 << 20);
  CHECK(!emulated_launches || before - d->memory_available(d, &from) == (size_t)64 << 20);   // a GPU's driver hands out memory in large pieces
  static bool later;
  CHECK(!emulated_launches || later || before == (size_t)80 << 30);   // all that the emulator has, before any other test
  later = true;
  d->release(d, p, (size_t)64 << 20);
  CHECK_EQ(d->memory_available(d, &from), before);
  CHECK_EQ(d->scratch_bytes, 1024 * 24 + 2048 * 72 + ((size_t)32 << 20));   // tables of norms and tensors, work: what the table says
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
    real *w = d->real_at(real_of(d, NULL, N + 1), (size_t)run);   // the second time element by element
    d->upload_real(d, w, ones, N);
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

// A NaN with all bits set stays one: rounded up at random it would become zero.
static void broken_weights_stay_broken(void) {
  enum { N = 64 };
  if (precision != CUDA_BF16) return;
  Device *d = opened();
  float nan[N];
  double back[N];
  for (int i = 0; i < N; i++) memcpy(&nan[i], &(uint32_t){0x7fffffff}, 4);
  acc *grad = acc_of(d, NULL, N);
  AdamWTensor t = {.param = real_of(d, NULL, N), .grad = grad, .m = acc_of(d, NULL, N), .v = acc_of(d, NULL, N), .n = N};
  d->upload_acc_float(d, grad, nan, N);
  const AdamWSettings settings = some_settings();
  d->adamw(d, &t, 1, &settings, d->allocate(d, STAT_COUNT * sizeof(double)));   // of a step that says it is not broken
  d->download_real(d, back, t.param, N);
  for (int i = 0; i < N; i++) CHECK(isnan(back[i]));
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
    settings.max_norm = i == 4 ? 0.5 : i == 5 ? 4 : 0;   // the norm is 4
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
  // edges: what is just enough, and what is just too little
  f = good, f.driver = 13000, f.runtime = 13020;   // a driver of the same major version serves every minor one
  CHECK(cuda_refusal(&f) == NULL);
  f.driver = 12999;
  CHECK_STR(cuda_refusal(&f), "the NVIDIA driver is too old: it knows CUDA 12.99 and this binary needs 13.0 or later; install a newer driver, or build with an older toolkit");
  f.driver = 12000;
  CHECK(strstr(cuda_refusal(&f), "knows CUDA 12.0 and this binary needs 13.0") != NULL);
  f.runtime = 13990;                               // whatever the minor version
  CHECK(strstr(cuda_refusal(&f), "knows CUDA 12.0 and this binary needs 13.0") != NULL);
  f.driver = 13000;
  CHECK(cuda_refusal(&f) == NULL);
  f.driver = 0, f.error = 35;
  CHECK_STR(cuda_refusal(&f), "there is no NVIDIA driver here; this binary needs one for CUDA 13.0 or later");
  f = good, f.memory_free = f.memory_needed;
  CHECK(cuda_refusal(&f) == NULL);
  f.memory_free--;
  CHECK_STR(cuda_refusal(&f), "the CUDA device has too little free memory: 15 MiB, the device itself needs 16; end other programs on it");
  f = good, f.error = 2;
  CHECK(strstr(cuda_refusal(&f), "too little free memory") != NULL);
  f = good, f.devices = 0;
  CHECK(strstr(cuda_refusal(&f), "no CUDA device here") != NULL);
  f = good, f.major = 9;
  CHECK(cuda_refusal(&f) == NULL);
  f = good, f.driver = 0, f.error = 100;   // without a driver the error is what counts
  CHECK(strstr(cuda_refusal(&f), "no CUDA device here") != NULL);
}

static void each_refusal_of_wgmma_has_its_sentence(void) {
  CHECK(cuda_wgmma_refusal(1, 9, 0) == NULL && cuda_wgmma_refusal(1, 8, 0) == NULL);   // emulated, it is there
  CHECK_STR(cuda_wgmma_refusal(0, 9, 0), "this binary has no kernels for sm_90a; build it with make CUDA_ARCHS=sm_90a, or use --gemm own");
  CHECK_STR(cuda_wgmma_refusal(0, 8, 6), "this GPU has compute capability 8.6, the instruction needs 9.0; use --gemm own");
  CHECK_STR(cuda_wgmma_refusal(0, 10, 0), "this GPU has compute capability 10.0, the instruction needs 9.0; use --gemm own");
}

// The GPU that was chosen is the one that is asked, and one that is not there is refused.
static void a_device_is_chosen_by_its_number(void) {
  if (!emulated_launches) return;
  Device *d = opened();
  setenv("GPT_CUDA_DEVICES", "0", 1);
  CHECK(cuda_devices() == 0 && strstr(cuda_unavailable(), "there is no CUDA device here") != NULL);
  setenv("GPT_CUDA_DEVICES", "3", 1);
  cuda_select(2);
  CHECK(cuda_devices() == 3 && cuda_unavailable() == NULL);
  cuda_select(3);
  CHECK(strstr(cuda_unavailable(), "the CUDA device does not start: cudaErrorInvalidDevice") != NULL);
  cuda_select(0);
  unsetenv("GPT_CUDA_DEVICES");
  CHECK(cuda_devices() == 1 && cuda_unavailable() == NULL);
  // no question that is answered with an error spoils a launch
  scalar *sum = d->allocate(d, sizeof(double));
  acc *x = acc_of(d, NULL, 1);
  for (int question = 0; question < 2; question++) {
    setenv("GPT_CUDA_DEVICES", "0", 1);
    CHECK(question ? cuda_unavailable() != NULL : cuda_devices() == 0);
    unsetenv("GPT_CUDA_DEVICES");
    d->sum(d, sum, x, 1);
  }
  d->release(d, sum, sizeof(double)), d->release(d, x, d->acc_size);
  d->destroy(d);
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

// Products by cuBLASLt, where the library's own way ends and ours begins.
static void test_library(void) {
  library = GEMM_CUBLASLT;
  if (emulated_launches) RUN(library_that_does_not_start);
  for (precision = CUDA_FP32; precision <= CUDA_BF16; precision++) {
    RUN(linear_forward_fused_is_unfused);
    RUN(odd_products_are_the_references);
    RUN(long_products_are_their_sums);
    RUN(library_bias_gradients_are_their_sums);
    if (!emulated_launches) { RUN(large_products_are_the_references); continue; }
    RUN(library_is_asked_once_for_a_product);
    RUN(library_tells_products_apart);
    RUN(library_plans_are_replaced);
    RUN(library_failures_are_own_products);
    RUN(library_without_an_algorithm);
  }
}

static void no_device_is_said(void) { EXPECT_FAIL(EXIT_MACHINE, cuda_unavailable(), cuda_device(CUDA_FP32, GEMM_OWN)); }

int main(int argc, char **argv) {
  TEST_BEGIN(argc, argv);
  CudaFacts nothing = {.error = 100};
  if (strstr(cuda_refusal(&nothing), "no CUDA device here")) {   // else the build has no device at all
    RUN(each_refusal_has_its_sentence);
    RUN(each_refusal_of_wgmma_has_its_sentence);
  }
  if (cuda_unavailable()) {
    printf("no CUDA device: %s; only that is tested\n", cuda_unavailable());
    RUN(no_device_is_said);
    return TEST_END();
  }
  const char *device = getenv("TEST_DEVICE");
  if (device && !strcmp(device, "cuda-bf16-wgmma")) library = GEMM_WGMMA;
  if (device && !strcmp(device, "cuda-cublaslt")) { test_library(); return TEST_END(); }
  RUN(a_device_is_chosen_by_its_number);
  for (precision = library == GEMM_WGMMA ? CUDA_BF16 : CUDA_FP32; precision <= CUDA_BF16; precision++) {
    if (emulated_launches && emulated_bank_conflicts() >= 0) { RUN(no_bank_conflicts_on_the_main_path); continue; }   // counting is slow: nothing else
    RUN(free_memory_is_counted);
    RUN(memory_is_zeroed_copied_and_refused);
    RUN(values_are_rounded_once);
    RUN(ties_are_rounded_once);
    RUN(transfers_stay_within_their_arrays);
    RUN(large_uploads_come_in_pieces);
    RUN(norms_may_alias_and_are_their_parts);
    RUN(linear_forward_fused_is_unfused);
    RUN(odd_products_are_the_references);
    RUN(long_products_are_their_sums);
    RUN(large_products_are_the_references);
    RUN(norms_of_many_slices_are_their_sums);
    RUN(crossentropy_of_a_large_vocabulary);
    RUN(large_heads_are_the_references);
    RUN(rows_are_sorted_by_all_digits);
    RUN(crossentropy_does_not_see_the_chunk);
    RUN(nan_is_never_hidden);
    RUN(infinities_are_no_nan);
    RUN(decoding_is_the_full_pass);
    RUN(unseen_keys_change_nothing);
    RUN(attention_of_nothing_is_nothing);
    RUN(embedding_gradient_of_many_rows);
    RUN(norms_of_many_tensors);
    RUN(uploads_come_after_what_was_put_off);
    RUN(memory_is_released_after_what_was_put_off);
    RUN(squares_are_added_in_their_order);
    RUN(pieces_are_the_whole);
    RUN(launches_are_counted);
    RUN(launches_are_golden);
    RUN(nothing_is_launched_for_nothing);
    RUN(sizes_beyond_count_are_refused);
    RUN(sums_are_cut_to_fill_the_device);
    RUN(peaks_are_the_vendors);
    RUN(spans_of_the_side_stream_are_counted_once);
    RUN(side_stream_comes_after_the_operations);
    RUN(adamw_of_many_tensors);
    RUN(weights_without_masters_are_rounded_at_random);
    RUN(broken_weights_stay_broken);
    RUN(adamw_refuses_bad_steps);
    RUN(sequences_fit);
  }
  return TEST_END();
}
