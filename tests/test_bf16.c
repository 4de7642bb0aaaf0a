// test_bf16.c: owns the tests of bf16.h, of simd.h's conversions, and of what the CPU device promises in bf16 beside numbers: what is fused equals
// what is not, arrays may alias, gradients do not see where rows are cut, weights without masters are rounded at random as rng.h says.
//
// Numbers are in test_ops.c and test_attention.c, products in test_gemm_bf16.c, whole runs in test_bits.c.
#include "../bf16.h"    // what is tested
#include "../device.h"  // cpu_device_bf16
#include "../rng.h"     // rng_uniform, rng_u32
#include "../simd.h"    // the plain section, which the others equal (test_ops.c)
#include "../util.h"    // xmalloc
#include "test.h"       // RUN, CHECK
#include <float.h>      // FLT_MAX

// ---- the number ----

static uint32_t bits_of(float x) { uint32_t u; memcpy(&u, &x, 4); return u; }

// Every bf16 and, between it and the next, the points where rounding turns.
static void bf16_rounds_to_nearest_even(void) {
  for (uint32_t b = 0; b < 0x7f80; b++) {
    double low = float_of_bf16((bf16)b), high = b == 0x7f7f ? 0x1p128 : float_of_bf16((bf16)(b + 1)), middle = (low + high) / 2;
    bf16 even = (bf16)(b + (b & 1));
    CHECK(bf16_of_float((float)low) == b && bf16_of_double(low) == b && bf16_of_double(-low) == (b | 0x8000));
    CHECK(bf16_of_float((float)middle) == even && bf16_of_double(middle) == even && bf16_of_double(-middle) == (even | 0x8000));
    double step = middle * 0x1p-50;   // less than half of a float's last place: through a float it would be the middle
    if (b < 0x80) continue;           // what is denormal has fewer digits
    CHECK_MSG(bf16_of_double(middle - step) == b && bf16_of_double(middle + step) == b + 1 && bf16_of_double(-middle - step) == ((b + 1) | 0x8000), "beside %a", middle);
    CHECK(bf16_of_float(nextafterf((float)middle, 0)) == b && (b == 0x7f7f || bf16_of_float(nextafterf((float)middle, INFINITY)) == b + 1));
  }
  CHECK(bf16_of_double(INFINITY) == 0x7f80 && bf16_of_float(-INFINITY) == 0xff80 && bf16_of_double(1e300) == 0x7f80);
  float lower_half_only;   // a NaN that truncation would make infinite
  memcpy(&lower_half_only, &(uint32_t){0x7f800001}, 4);
  CHECK(isnan(float_of_bf16(bf16_of_float(lower_half_only))) && isnan(float_of_bf16(bf16_of_double(-NAN))));
}

static void simd_converts_as_bf16(void) {
  for (uint64_t i = 0; i < 20000; i++) {
    float x[LANES];
    bf16 y[LANES + 2];
    uint32_t word[LANES];
    for (uint64_t l = 0; l < LANES; l++) {
      uint32_t bits = rng_u32(1, 0, 7, i * LANES + l);
      word[l] = rng_u32(1, 0, 8, i * LANES + l);
      if ((bits >> 23 & 255) == 0) bits |= 1u << 30;   // denormal numbers are flushed by some
      memcpy(&x[l], &bits, 4);
    }
    const size_t n = i % (LANES + 1);
    y[n] = 0x1234;
    vec_store_row(y, vec_load(x), n);
    CHECK(y[n] == (n < LANES ? 0x1234 : y[n]));
    for (size_t l = 0; l < n; l++) CHECK(y[l] == bf16_of_float(x[l]));
    float back[LANES], at_random[LANES];
    vec_store(back, vec_load_row(y, n));
    for (size_t l = 0; l < LANES; l++) CHECK(l < n ? !memcmp(&back[l], &(float){float_of_bf16(y[l])}, 4) : back[l] == 0);
    vec_store(at_random, vec_round_at_random(vec_load(x), word));
    for (size_t l = 0; l < LANES; l++)
      CHECK(isfinite(x[l]) ? bits_of(at_random[l]) == ((bits_of(x[l]) + (word[l] & 0xffff)) & 0xffff0000u) : !memcmp(&at_random[l], &x[l], 4));
  }
}

// ---- the device ----

enum { ROWS = 37, C = 83, OC = 150 };
static bf16 *numbers(const char *name, size_t n, double size) {
  bf16 *p = xmalloc(n + 1, sizeof *p);
  for (size_t i = 0; i < n; i++) p[i] = bf16_of_double(size * (2 * rng_uniform(5, 0, rng_site(name), i) - 1));
  return p;
}
static float *floats_of(const char *name, size_t n, double size) {
  float *p = xmalloc(n + 1, sizeof *p);
  for (size_t i = 0; i < n; i++) p[i] = (float)(size * (2 * rng_uniform(5, 0, rng_site(name), i) - 1));
  return p;
}
static bf16 *copy_of(const bf16 *p, size_t n) { return memcpy(xmalloc(n + 1, sizeof *p), p, n * sizeof *p); }
static real *R(bf16 *p) { return (real *)p; }
static acc *A(float *p) { return (acc *)p; }
static bool equal(const bf16 *a, const bf16 *b, size_t n) { return !memcmp(a, b, n * sizeof *a); }

static void device_says_what_it_is(void) {
  Device *d = cpu_device_bf16(3);
  double in[] = {1, 1 + 0x1p-8, 1 + 3 * 0x1p-8, -0.1}, out[4];   // the second and third lie halfway: to even
  bf16 x[5];
  CHECK(d->real_size == 2 && d->acc_size == 4 && !d->real_is_acc && !strncmp(d->description, "bf16, ", 6) && strstr(d->description, "3 threads"));
  CHECK((void *)d->real_at(R(x), 3) == (void *)(x + 3));
  d->upload_real(d, R(x), in, 4), d->download_real(d, out, R(x), 4);
  CHECK(out[0] == 1 && out[1] == 1 && out[2] == 1 + 0x1p-6 && fabs(out[3] + 0.1) <= 0.1 * 0x1p-8);
  d->upload_real_float(d, R(x), (float[]){1 + 0x1p-8f, 3}, 2), d->download_real(d, out, R(x), 2);
  CHECK(out[0] == 1 && out[1] == 3);
  double count = 0;
  x[0] = 0x7f80, x[1] = 0x7f7f, x[2] = 0xffc0, x[3] = 0;
  d->count_nonfinite_real(d, (scalar *)&count, R(x), 4);
  CHECK(count == 2);
  d->destroy(d);
}

static void norms_fused_are_unfused(void) {
  Device *d = cpu_device_bf16(2);
  const size_t n = ROWS * C;
  bf16 *x = numbers("x", n, 3), *delta = numbers("delta", n, 3), *w = numbers("w", C, 2), *b = numbers("b", C, 2);
  bf16 *residual = copy_of(x, n), *out = copy_of(x, n), *residual2 = copy_of(x, n), *out2 = copy_of(x, n);
  float mean[ROWS], rstd[ROWS], mean2[ROWS], rstd2[ROWS];
  for (int rms = 0; rms < 2; rms++) {
    d->residual_forward(d, R(residual), R(x), R(delta), n);
    memcpy(residual2, x, n * sizeof *x);   // in place of x
    if (rms) {
      d->rmsnorm_forward(d, NULL, R(out), A(rstd), R(residual), NULL, R(w), ROWS, C, 1e-5);
      d->rmsnorm_forward(d, R(residual2), R(out2), A(rstd2), R(residual2), R(delta), R(w), ROWS, C, 1e-5);
    } else {
      d->layernorm_forward(d, NULL, R(out), A(mean), A(rstd), R(residual), NULL, R(w), R(b), ROWS, C, 1e-5);
      d->layernorm_forward(d, R(residual2), R(out2), A(mean2), A(rstd2), R(residual2), R(delta), R(w), R(b), ROWS, C, 1e-5);
      CHECK(!memcmp(mean, mean2, sizeof mean));
    }
    CHECK(equal(residual, residual2, n) && equal(out, out2, n) && !memcmp(rstd, rstd2, sizeof rstd));
  }
  free(x), free(delta), free(w), free(b), free(residual), free(out), free(residual2), free(out2);
  d->destroy(d);
}

static void linear_fused_is_unfused(void) {
  Device *d = cpu_device_bf16(2);
  bf16 *x = numbers("x", ROWS * C, 2), *w = numbers("w", OC * C, 1), *b = numbers("b", OC, 1);
  bf16 *pre = numbers("a", ROWS * OC, 1), *post = numbers("b", ROWS * OC, 1), *pre2 = numbers("c", ROWS * OC, 1), *post2 = numbers("d", ROWS * OC, 1);
  for (Activation a = ACTIVATION_GELU; a <= ACTIVATION_SWIGLU; a++) {
    const size_t width = a == ACTIVATION_SWIGLU ? OC / 2 : OC;
    d->linear_forward(d, R(pre), NULL, R(x), R(w), R(b), ROWS, C, OC, ACTIVATION_NONE);
    d->activation_forward(d, R(post), R(pre), ROWS, OC, a);
    d->linear_forward(d, R(pre2), R(post2), R(x), R(w), R(b), ROWS, C, OC, a);
    CHECK(equal(pre2, pre, ROWS * OC) && equal(post2, post, ROWS * width));
    memset(post2, 0, ROWS * OC * sizeof *post2);
    d->linear_forward(d, NULL, R(post2), R(x), R(w), R(b), 5, C, OC, a);
    d->linear_forward(d, NULL, R(post2 + 5 * width), R(x + 5 * C), R(w), R(b), ROWS - 5, C, OC, a);
    CHECK(equal(post2, post, ROWS * width));
  }
  d->activation_backward(d, R(pre2), R(post), R(pre), ROWS, OC, ACTIVATION_GELU);
  d->activation_backward(d, R(post), R(post), R(pre), ROWS, OC, ACTIVATION_GELU);   // in place
  CHECK(equal(pre2, post, ROWS * OC));
  free(x), free(w), free(b), free(pre), free(post), free(pre2), free(post2);
  d->destroy(d);
}

static void gradients_on(Device *d) {
  enum { GRADIENTS = OC * C + OC };
  bf16 *x = numbers("x", ROWS * C, 2), *dx = numbers("dx", ROWS * C, 1), *dy = numbers("dy", ROWS * OC, 2), *w = numbers("w", C, 1);
  float *mean = floats_of("mean", ROWS, 1), *rstd = floats_of("rstd", ROWS, 1), *start = floats_of("gradient", GRADIENTS, 1), *whole[3] = {NULL};
  int32_t ids[ROWS];
  for (size_t r = 0; r < ROWS; r++) ids[r] = (int32_t)(r * r % 7);
  for (size_t cut = 0; cut < ROWS; cut += d->row_group) {   // also odd where it is 1: pairs of rows are then other pairs
    float *g[3];
    for (int i = 0; i < 3; i++) g[i] = memcpy(xmalloc(GRADIENTS, 4), start, GRADIENTS * 4);
    for (int half = 0; half < 2; half++) {
      size_t r = half ? cut : 0, n = half ? ROWS - cut : cut;
      d->linear_backward_weight(d, A(g[0]), A(g[0] + OC * C), R(dy + r * OC), R(x + r * C), n, C, OC);
      d->embedding_backward(d, A(g[1]), NULL, R(x + r * C), ids + r, 1, n, C, 7);
      d->layernorm_backward(d, R(dx + r * C), A(g[2]), A(g[2] + C), R(x + r * C), NULL, R(x + r * C), R(w), A(mean + r), A(rstd + r), n, C);
    }
    for (int i = 0; i < 3; i++) {
      if (cut == 0) { whole[i] = g[i]; continue; }
      CHECK_MSG(!memcmp(g[i], whole[i], GRADIENTS * 4), "%s: operation %d, cut at row %zu", d->description, i, cut);
      free(g[i]);
    }
  }
  for (int i = 0; i < 3; i++) free(whole[i]);
  free(x), free(dx), free(dy), free(w), free(mean), free(rstd), free(start);
  d->destroy(d);
}

static void gradients_do_not_see_the_cut(void) {
  gradients_on(cpu_device_bf16(2));
  setenv("GPT_CPU", "amx-emulated", 1);
  gradients_on(cpu_device_bf16(2));
  unsetenv("GPT_CPU");
}

// The loss is that of the stored logits, and the same with and without the gradient, which is rounded once.
static void crossentropy_rounds_once(void) {
  enum { V = 301, STRIDE = 320 };
  Device *d = cpu_device_bf16(2);
  bf16 *logits = numbers("logits", 5 * STRIDE, 5), *copy = copy_of(logits, 5 * STRIDE);
  float loss[5], loss2[5];
  int32_t targets[5] = {0, 300, 17, IGNORED_TARGET, 299};
  d->crossentropy(d, R(logits), A(loss), targets, 5, V, STRIDE, 0.1, WITHOUT_GRADIENT);
  CHECK(equal(logits, copy, 5 * STRIDE));
  for (size_t r = 0; r < 5; r++) d->crossentropy(d, R(logits + r * STRIDE), A(loss2 + r), targets + r, 1, V, STRIDE, 0.1, WITH_GRADIENT);
  CHECK(!memcmp(loss, loss2, sizeof loss));
  for (size_t r = 0; r < 5; r++) {
    double sum = 0;
    for (size_t j = 0; j < V; j++) sum += exp((double)float_of_bf16(copy[r * STRIDE + j]));
    for (size_t j = 0; j < STRIDE; j++) {
      double want = j >= V || targets[r] < 0 ? 0 : 0.1 * (exp((double)float_of_bf16(copy[r * STRIDE + j])) / sum - (j == (size_t)targets[r]));
      double got = float_of_bf16(logits[r * STRIDE + j]);
      CHECK_MSG(fabs(got - want) <= (0x1p-8 + 0x1p-18) * fabs(want), "row %zu column %zu: %g, in double %g", r, j, got, want);   // one rounding to bf16; float's are far less
    }
  }
  free(logits), free(copy);
  d->destroy(d);
}

// With a master copy the weight is its nearest bf16; without one, either neighbour.
static void adamw_keeps_master_and_weight(void) {
  enum { N = 4099 };
  Device *d = cpu_device_bf16(3);
  bf16 *w = numbers("w", N, 1), *alone = copy_of(w, N);
  float *master = xmalloc(N, 4), *grad = floats_of("grad", N, 1), *m[2], *v[2];
  double stats[STAT_COUNT] = {0};
  for (int i = 0; i < N; i++) master[i] = float_of_bf16(w[i]);
  for (int i = 0; i < 2; i++) m[i] = xcalloc(N, 4), v[i] = xcalloc(N, 4);
  AdamWTensor tensors[] = {{.param = R(w), .master = A(master), .grad = A(grad), .m = A(m[0]), .v = A(v[0]), .n = N, .weight_decay = 0.1, .site = 9},
                           {.param = R(alone), .grad = A(grad), .m = A(m[1]), .v = A(v[1]), .n = N, .weight_decay = 0.1, .site = 9}};
  AdamWSettings s = {.lr = 1e-3, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .bias1 = 0.1, .bias2 = 0.05, .seed = 3, .step = 5};
  d->adamw(d, tensors, 2, &s, (scalar *)stats);
  int up = 0, down = 0;
  for (uint64_t i = 0; i < N; i++) {
    const bf16 random = (bf16)((bits_of(master[i]) + (rng_u32(3, 5, 9, i) & 0xffff)) >> 16);
    CHECK_MSG(w[i] == bf16_of_float(master[i]), "weight %d", (int)i);
    CHECK_MSG(alone[i] == random, "weight %d alone", (int)i);
    up += (alone[i] & 0x7fff) > (w[i] & 0x7fff), down += (alone[i] & 0x7fff) < (w[i] & 0x7fff);
  }
  CHECK_MSG(up > N / 16 && down > N / 16, "%d up, %d down of %d", up, down, N);   // a quarter, were distances even
  CHECK(!memcmp(m[0], m[1], N * 4) && !memcmp(v[0], v[1], N * 4));
  for (int i = 0; i < 2; i++) free(m[i]), free(v[i]);
  free(w), free(alone), free(master), free(grad);
  d->destroy(d);
}

int main(int argc, char **argv) {
  TEST_BEGIN(argc, argv);
  RUN(bf16_rounds_to_nearest_even);
  RUN(simd_converts_as_bf16);
  RUN(device_says_what_it_is);
  RUN(norms_fused_are_unfused);
  RUN(linear_fused_is_unfused);
  RUN(gradients_do_not_see_the_cut);
  RUN(crossentropy_rounds_once);
  RUN(adamw_keeps_master_and_weight);
  return TEST_END();
}
