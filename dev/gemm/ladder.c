// ladder.c: owns the check and the clock of this ladder: every step on odd shapes, then one line each.
//
// A step must give the bits of the plain chain of fused multiply-adds, and be within the bound of that chain of sums in double.
//   gemm_ladder [check | SIZE]   check: no timing; SIZE: n and k of the product that is timed; GPT_CPU=avx2, OMP_NUM_THREADS=1 as for gpt
#include "../../flags.h"  // parse_number
#include "ladder.h"
#include <stdio.h>        // printf

typedef void Run(const Product *);
#if defined(__x86_64__)
enum { SETS = 3 };
#define PROTOTYPES(name) Run cpu_ladder_##name##_generic, cpu_ladder_##name##_avx2, cpu_ladder_##name##_avx512;
#define EACH_SET(name) {cpu_ladder_##name##_generic, cpu_ladder_##name##_avx2, cpu_ladder_##name##_avx512}
#else
enum { SETS = 1 };
#define PROTOTYPES(name) Run cpu_ladder_##name##_generic;
#define EACH_SET(name) {cpu_ladder_##name##_generic}
#endif
static const char *const set_names[] = {"generic", "avx2", "avx512"};
PROTOTYPES(loops) PROTOTYPES(order) PROTOTYPES(registers) PROTOTYPES(vectors) PROTOTYPES(packing) PROTOTYPES(blocks) PROTOTYPES(threads)
Run ladder_forward, ladder_backward_input;

typedef struct { const char *name; bool all_threads; Run *run[SETS]; } Step;   // run[0] alone: the device chooses
static const Step steps[] = {
  {"1 three loops", false, EACH_SET(loops)}, {"2 streaming order", false, EACH_SET(order)}, {"3 register tile", false, EACH_SET(registers)},
  {"4 vectors", false, EACH_SET(vectors)}, {"5 packing", false, EACH_SET(packing)}, {"6 blocks for caches", false, EACH_SET(blocks)},
  {"7 threads", true, EACH_SET(threads)}, {"8 gpt, forward", true, {ladder_forward}}, {"8 gpt, input's grad.", true, {ladder_backward_input}},
};

static Product product_create(Device *device, size_t m, size_t n, size_t k) {
  float *a = floats(m * k), *b = floats(k * n), *turned = floats(n * k);
  uint32_t x = 1;
  for (size_t i = 0; i < m * k; i++) x = x * 1664525u + 1013904223u, a[i] = (float)(int32_t)x * 0x1p-31f;   // in [-1, 1)
  for (size_t i = 0; i < k * n; i++) x = x * 1664525u + 1013904223u, b[i] = (float)(int32_t)x * 0x1p-31f;
  for (size_t p = 0; p < k; p++) for (size_t j = 0; j < n; j++) turned[j * k + p] = b[p * n + j];
  return (Product){m, n, k, a, b, turned, floats(m * n), device};
}
static void product_free(const Product *g) { free((void *)g->a), free((void *)g->b), free((void *)g->b_turned), free(g->c); }

// c against the chain, by bits, and against a sum in double: an fma rounds once, so k of them err by k 2^-24 sum |a b| at most, to first order (Higham 2002, 3.1)
static bool is_right(const Product *g, const char *name) {
  for (size_t i = 0; i < g->m; i++)
    for (size_t j = 0; j < g->n; j++) {
      float chain = 0;
      double sum = 0, size = 0;
      for (size_t p = 0; p < g->k; p++) {
        const double product = (double)g->a[i * g->k + p] * (double)g->b[p * g->n + j];
        chain = fmaf(g->a[i * g->k + p], g->b[p * g->n + j], chain), sum += product, size += fabs(product);
      }
      const float *c = &g->c[i * g->n + j];
      if (!(fabs((double)*c - sum) <= 1.001 * (double)g->k * 0x1p-24 * size) || memcmp(c, &chain, sizeof chain)) {
        printf("%s: WRONG: (%zu,%zu) times (%zu,%zu): c[%zu,%zu] is %.9g, the chain gives %.9g, a sum in double %.17g\n", name, g->m, g->k, g->k, g->n, i, j, (double)*c, (double)chain, sum);
        return false;
      }
    }
  return true;
}

// 1, primes, edges of tiles (4, 6, 8 rows; 16, 32 columns), of blocks (256 of k, 512 columns), +-1
static bool check(Run *run, const char *name, Device *device) {
  static const size_t shapes[][3] = {{1, 1, 1}, {3, 5, 7}, {4, 3, 2}, {8, 32, 16}, {7, 31, 255}, {17, 33, 257}, {24, 48, 256}, {65, 67, 101}, {13, 1031, 515}, {131, 511, 19}, {2, 513, 3}};
  for (size_t s = 0; s < ARRAY_LEN(shapes); s++) {
    const Product g = product_create(device, shapes[s][0], shapes[s][1], shapes[s][2]);
    for (size_t i = 0; i < g.m * g.n; i++) g.c[i] = NAN;   // what was there must not matter
    run(&g);
    const bool right = is_right(&g, name);
    product_free(&g);
    if (!right) return false;
  }
  return true;
}

static double seconds_of(Run *run, const Product *g) {
  const double start = seconds_now();
  run(g);
  return seconds_now() - start;
}

// GFLOP/s, the best of three; a slow step gets as few rows of a as take it a twentieth of a second, a fast one 1,024 at most. *peak: the most FLOP/s so far of an fma loop on registers alone
static double rate_of(const Step *step, Run *run, const Product *whole, double *peak) {
  Device *d = whole->device;
  Product g = *whole;
  g.m = MIN((size_t)8, whole->m);
  double best;
  while ((best = seconds_of(run, &g)) < 0.05 && g.m < whole->m) g.m = MIN(2 * g.m, whole->m);
  for (int t = 0; t < 3; t++) {
    *peak = MAX(*peak, step->all_threads ? d->measure_peak(d) : cpu_state(d)->fma_rate(2e-3));
    best = MIN(best, seconds_of(run, &g));
  }
  return 2.0 * (double)g.m * (double)g.n * (double)g.k / best;
}

int main(int argc, char **argv) {
  const bool only_check = argc > 1 && !strcmp(argv[1], "check");
  size_t sizes[] = {2000, 2048}, count = only_check ? 0 : argc > 1 ? 1 : ARRAY_LEN(sizes);
  double size = 2048;
  int64_t whole;
  if (argc > 2 || (count == 1 && !(parse_number(argv[1], true, &size, &whole) && size >= 1 && size <= 8192)))
    fail(EXIT_REQUEST, "gemm_ladder: %s: wanted is one word at most, check or a size from 1 to 8192", argv[argc - 1]);
  if (count == 1) sizes[0] = (size_t)size;
  cpu_wait_briefly(argv);
  Device *device = cpu_device(0);
  int set = 0;
  for (int s = 0; s < SETS; s++) if (strstr(device->description, set_names[s])) set = s;
  Product g[ARRAY_LEN(sizes)];
  for (size_t s = 0; s < count; s++) g[s] = product_create(device, MIN(sizes[s], (size_t)1024), sizes[s], sizes[s]);
  double peaks[2] = {0};   // of one thread, and of all
  printf("%s; c (m,n) = a (m,k) b (k,n)%s\n", device->description, count ? "; % of what a loop of fma on registers alone reaches, with as many threads" : "");
  for (size_t i = 0; i < ARRAY_LEN(steps); i++) {
    Run *run = steps[i].run[set] ? steps[i].run[set] : steps[i].run[0];
    if (!check(run, steps[i].name, device)) return 1;
    printf("%-20s right, bit for bit; threads: %d", steps[i].name, steps[i].all_threads ? cpu_state(device)->threads : 1);
    for (size_t s = 0; s < count; s++) {
      double *peak = &peaks[steps[i].all_threads];
      const double rate = rate_of(&steps[i], run, &g[s], peak);
      printf("; n = k = %zu: %6.1f GFLOP/s, %4.1f %% of %.1f", sizes[s], rate * 1e-9, 100 * rate / *peak, *peak * 1e-9);
    }
    printf("\n");
    fflush(stdout);
  }
  for (size_t s = 0; s < count; s++) product_free(&g[s]);
  device->destroy(device);
  return 0;
}
