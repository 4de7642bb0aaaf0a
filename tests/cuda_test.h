// cuda_test.h: owns the device that test_cuda opens, the arrays that it puts there, and what the emulator says of it.
#pragma once
#include "../device.h"  // cuda_device
#include "../rng.h"     // rng_uniform
#include "../util.h"    // xmalloc
#include "test.h"

// dev/cuda_on_cpu/runtime.cpp and profile.cpp: only there where the GPU is emulated
const char *emulated_launches(void) __attribute__((weak));
long emulated_bank_conflicts(void) __attribute__((weak));
void emulated_copy(void *to, const void *from, size_t n, void *stream) __attribute__((weak));

static CudaPrecision precision;
static GemmLibrary library;   // TEST_DEVICE=cuda-bf16-wgmma: the products' other way, in bf16 only
static double unit(void) { return precision == CUDA_BF16 ? 0x1p-8 : 0x1p-24; }   // one rounding to storage
static Device *opened(void) { return cuda_device(precision, library); }
// A GPU has as many as it has; the emulated one as many as is said here, else two.
static Device *opened_with(int multiprocessors) {
  char text[16];
  snprintf(text, sizeof text, "%d", multiprocessors);
  setenv("GPT_CUDA_MULTIPROCESSORS", text, 1);
  Device *d = opened();
  unsetenv("GPT_CUDA_MULTIPROCESSORS");
  return d;
}

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
static bool equal_then_free(double *x, double *y, size_t n) {   // of the same bits
  bool equal = !memcmp(x, y, n * sizeof *x);
  free(x), free(y);
  return equal;
}
static bool equal_real(Device *d, const real *a, const real *b, size_t n) {
  double *x = xmalloc(n, sizeof *x), *y = xmalloc(n, sizeof *y);
  d->download_real(d, x, a, n), d->download_real(d, y, b, n);
  return equal_then_free(x, y, n);
}
static bool equal_acc(Device *d, const acc *a, const acc *b, size_t n) {
  double *x = xmalloc(n, sizeof *x), *y = xmalloc(n, sizeof *y);
  d->download_acc(d, x, a, n), d->download_acc(d, y, b, n);
  return equal_then_free(x, y, n);
}

static AdamWSettings some_settings(void) {
  return (AdamWSettings){.lr = 1e-2, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .bias1 = 0.1, .bias2 = 0.05};
}
