// oracle.h: owns what the tests of devices share: named random numbers, and device buffers that stand between canaries.
//
// A random array is known by its name: element i of "weight" is random_value("weight", i), in the buffer and in the test.
// buffers_end() checks every canary and releases every buffer; call it at the end of each test.
#pragma once
#include "../device.h"  // Device, real, acc
#include "../rng.h"     // rng_uniform, rng_site
#include "test.h"       // CHECK_MSG

enum { CANARIES = 16, MOST_BUFFERS = 64 };  // 16 elements on either side: a whole vector of the widest instruction set
static const double CANARY = 12345;         // exact in every type

// Uniform in (-1, 1).
static inline double random_value(const char *name, uint64_t i) {
  return 2 * rng_uniform(1, 0, rng_site(name), i) - 1;
}

typedef struct {
  Device *device;
  int is_acc;
  void *memory;
  size_t n;  // without the canaries
} OracleBuffer;

static OracleBuffer oracle_buffers[MOST_BUFFERS];
static size_t oracle_buffer_count;

// Memory for canaries, n elements and canaries; everything is the canary so far.
static inline void *buffer_create(Device *d, int is_acc, size_t n) {
  size_t all = n + 2 * CANARIES;
  double *values = malloc(all * sizeof *values);
  void *memory = d->allocate(d, all * (is_acc ? d->acc_size : d->real_size));
  if (!values || !memory || oracle_buffer_count == MOST_BUFFERS) abort();
  for (size_t i = 0; i < all; i++) values[i] = CANARY;
  if (is_acc) d->upload_acc(d, memory, values, all);
  else d->upload_real(d, memory, values, all);
  free(values);
  oracle_buffers[oracle_buffer_count++] = (OracleBuffer){d, is_acc, memory, n};
  return memory;
}

// name NULL: filled with NaN, for outputs that are to be set. Else element i is size * random_value(name, i).
static inline real *real_buffer(Device *d, const char *name, size_t n, double size) {
  real *p = d->real_at(buffer_create(d, 0, n), CANARIES);
  for (size_t i = 0; i < n; i++) d->upload_real(d, d->real_at(p, i), &(double){name ? size * random_value(name, i) : NAN}, 1);
  return p;
}

static inline acc *acc_buffer(Device *d, const char *name, size_t n, double size) {
  acc *p = d->acc_at(buffer_create(d, 1, n), CANARIES);
  for (size_t i = 0; i < n; i++) d->upload_acc(d, d->acc_at(p, i), &(double){name ? size * random_value(name, i) : NAN}, 1);
  return p;
}

static inline double real_element(Device *d, real *p, size_t i) {
  double value;
  d->download_real(d, &value, d->real_at(p, i), 1);
  return value;
}

static inline double acc_element(Device *d, acc *p, size_t i) {
  double value;
  d->download_acc(d, &value, d->acc_at(p, i), 1);
  return value;
}

// sum_i name[i] * x[i]: the scalar that a test takes derivatives of. Its derivative by x[i] is random_value(name, i).
static inline double random_functional(Device *d, const char *name, real *x, size_t n) {
  double sum = 0;
  for (size_t i = 0; i < n; i++) sum += random_value(name, i) * real_element(d, x, i);
  return sum;
}

static inline void buffers_end(void) {
  for (size_t b = 0; b < oracle_buffer_count; b++) {
    const OracleBuffer *buffer = &oracle_buffers[b];
    Device *d = buffer->device;
    size_t all = buffer->n + 2 * CANARIES;
    double *values = malloc(all * sizeof *values);
    if (!values) abort();
    if (buffer->is_acc) d->download_acc(d, values, buffer->memory, all);
    else d->download_real(d, values, buffer->memory, all);
    for (size_t i = 0; i < all; i++) {
      int outside = i < CANARIES || i >= CANARIES + buffer->n;
      if (outside) CHECK_MSG(values[i] == CANARY, "buffer %zu of %zu elements: something was written at element %lld", b, buffer->n,
                             (long long)i - CANARIES);
    }
    free(values);
    d->release(d, buffer->memory, all * (buffer->is_acc ? d->acc_size : d->real_size));
  }
  oracle_buffer_count = 0;
}
