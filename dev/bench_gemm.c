// bench_gemm.c: owns the timing of the CPU device's matrix products. tests/test_gemm.c says whether they are right.
//
// Each product is timed between two runs of a loop of fused multiply-adds on registers alone, by the same threads: that is
// what the machine could do in that moment, and the column "%" is the share of it. Printed are medians.
//   bench_gemm [gpt2 ROWS | small | decode] [seconds per product]      GPT_CPU=avx2, OMP_NUM_THREADS=1 as for gpt
// Link it with all objects of gpt but gpt.o, as the tests are.
#include "../cpu.h"     // cpu_fma_rate_*, cpu_device
#include "../util.h"    // xmalloc, seconds_now, fail
#include <stdlib.h>     // qsort, strtod, strtoull
#include <string.h>     // strcmp, strstr

typedef struct { size_t OC, IC; int times; } Shape;   // times: how often it stands in one model
static const Shape gpt2[] = {{2304, 768, 12}, {768, 768, 12}, {3072, 768, 12}, {768, 3072, 12}, {50304, 768, 1}};
static const Shape small[] = {{384, 128, 4}, {128, 128, 4}, {512, 128, 4}, {128, 512, 4}, {80, 128, 1}};
enum { SHAPES = 5, FORWARD = 0, INPUT, WEIGHT, OPERATIONS, MOST_REPEATS = 1000 };
static const char *const operation_names[] = {"forward", "backward_input", "backward_weight"};

typedef struct { Device *device; real *x, *weight, *out; acc *dweight; size_t rows; double seconds; } Bench;

static double probe(const Device *d) {
  const int threads = ((const CpuState *)d->state)->threads;
  double total = 0, *rate = xcalloc((size_t)threads, sizeof *rate);
  #pragma omp parallel num_threads(threads)
  {
    rate[omp_get_thread_num()] = ((const CpuState *)d->state)->fma_rate(1e-4);
  }
  for (int t = 0; t < threads; t++) total += rate[t];
  free(rate);
  return total;
}

static void run(const Bench *b, const Shape *s, int operation) {
  Device *d = b->device;
  if (operation == FORWARD) d->linear_forward(d, b->out, NULL, b->x, b->weight, NULL, b->rows, s->IC, s->OC, ACTIVATION_NONE);
  if (operation == INPUT) d->linear_backward_input(d, b->x, b->out, b->weight, b->rows, s->IC, s->OC);
  if (operation == WEIGHT) d->linear_backward_weight(d, b->dweight, NULL, b->out, b->x, b->rows, s->IC, s->OC);
}

static int by_value(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return x < y ? -1 : x > y;
}

// Median seconds of one product; *share: median of the rate over the probe's.
static double measure(const Bench *b, const Shape *s, int operation, double *share) {
  static double times[MOST_REPEATS], shares[MOST_REPEATS];
  const double flop = 2.0 * (double)b->rows * (double)s->OC * (double)s->IC, end = seconds_now() + b->seconds;
  const int calls = 1 + (int)(2e7 / flop);   // what is timed takes a tenth of a millisecond at least
  size_t n = 0;
  run(b, s, operation);
  while (n < 3 || (n < MOST_REPEATS && seconds_now() < end)) {
    double before = probe(b->device), start = seconds_now();
    for (int i = 0; i < calls; i++) run(b, s, operation);
    times[n] = (seconds_now() - start) / calls;
    shares[n] = flop / times[n] / ((before + probe(b->device)) / 2);
    n++;
  }
  qsort(times, n, sizeof *times, by_value);
  qsort(shares, n, sizeof *shares, by_value);
  *share = shares[n / 2];
  return times[n / 2];
}

static void fill(Device *d, real *p, size_t n) {
  float piece[4096];
  uint32_t x = 1;
  for (size_t i = 0; i < n; i += 4096) {
    for (size_t j = 0; j < 4096; j++) x = x * 1664525u + 1013904223u, piece[j] = (float)(int32_t)x * 0x1p-31f;
    d->upload_real_float(d, d->real_at(p, i), piece, MIN((size_t)4096, n - i));
  }
}

static void bench(Bench *b, const Shape *shapes, int operations) {
  Device *d = b->device;
  size_t weights = 0, inputs = 0, outputs = 0;
  for (int i = 0; i < SHAPES; i++) {
    weights = MAX(weights, shapes[i].OC * shapes[i].IC), inputs = MAX(inputs, shapes[i].IC), outputs = MAX(outputs, shapes[i].OC);
  }
  b->x = d->allocate(d, b->rows * inputs * sizeof(float)), b->out = d->allocate(d, b->rows * outputs * sizeof(float));
  b->weight = d->allocate(d, weights * sizeof(float)), b->dweight = d->allocate(d, weights * sizeof(float));
  if (!b->x || !b->out || !b->weight || !b->dweight) fail(EXIT_MACHINE, "memory: not enough for %zu rows", b->rows);
  fill(d, b->x, b->rows * inputs), fill(d, b->out, b->rows * outputs), fill(d, b->weight, weights), d->zero(d, b->dweight, weights * sizeof(float));
  double step_seconds = 0, step_flop = 0, step_best = 0;
  for (int o = 0; o < operations; o++) {
    for (int i = 0; i < SHAPES; i++) {
      const Shape *s = &shapes[i];
      double share, seconds = measure(b, s, o, &share), flop = 2.0 * (double)b->rows * (double)s->OC * (double)s->IC;
      printf("%-15s rows %5zu  OC %5zu  IC %4zu  %9.1f us  %6.1f GFLOP/s  %3.0f %%  weights %5.1f GB/s\n", operation_names[o], b->rows, s->OC,
             s->IC, seconds * 1e6, flop / seconds * 1e-9, 100 * share, (double)(s->OC * s->IC * sizeof(float)) / seconds * 1e-9);
      step_seconds += s->times * seconds, step_flop += s->times * flop, step_best += s->times * seconds * share;
    }
  }
  printf("a model's products: %.2f ms, %.1f GFLOP/s, %.0f %%\n", step_seconds * 1e3, step_flop / step_seconds * 1e-9, 100 * step_best / step_seconds);
}

int main(int argc, char **argv) {
  const char *what = argc > 1 ? argv[1] : "gpt2";
  const bool has_rows = !strcmp(what, "gpt2") && argc > 2;
  const int next = has_rows ? 3 : 2;
  Bench b = { .device = cpu_device(0), .rows = has_rows ? strtoull(argv[2], NULL, 10) : 256, .seconds = argc > next ? strtod(argv[next], NULL) : 0.3 };
  if (b.rows == 0 || !(b.seconds > 0)) fail(EXIT_REQUEST, "bench_gemm: rows and seconds must be positive");
  printf("%s\n", b.device->description);
  if (!strcmp(what, "small")) b.rows = 768, bench(&b, small, OPERATIONS);
  else if (!strcmp(what, "decode")) b.rows = 1, bench(&b, gpt2, INPUT);
  else if (!strcmp(what, "gpt2")) bench(&b, gpt2, OPERATIONS);
  else fail(EXIT_REQUEST, "bench_gemm: %s: there are gpt2 ROWS, small and decode", what);
  b.device->destroy(b.device);
  return 0;
}
