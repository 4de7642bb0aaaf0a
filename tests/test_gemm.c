// test_gemm.c: owns the test of the CPU device's matrix products (cpu_gemm.c), on every instruction set of this processor.
//
// The specification is bits: each output element is one chain of fmaf over k in order, from the bias, 0 or the stored
// gradient. So every element of every shape is compared with that chain by its bits, for 1, 2, 3 and 7 threads; and the
// chain itself with a sum in double, by a bound. Inputs must stay as they were.
#include "../cpu.h"     // CpuState, CpuEpilogue, cpu_flush_denormals
#include "../util.h"    // xmalloc, MIN, ARRAY_LEN
#include "test.h"       // CHECK_MSG, RUN
#include <sys/mman.h>   // mmap, mprotect

#define PROTOTYPES(isa) \
  void cpu_gemm_forward_##isa(CpuState *, float *, const float *, const float *, const float *, size_t, size_t, size_t, const CpuEpilogue *); \
  void cpu_gemm_backward_input_##isa(CpuState *, float *, const float *, const float *, size_t, size_t, size_t); \
  void cpu_gemm_backward_weight_##isa(CpuState *, float *, const float *, const float *, size_t, size_t, size_t);
#define SET(isa, here) { #isa, here, cpu_gemm_forward_##isa, cpu_gemm_backward_input_##isa, cpu_gemm_backward_weight_##isa }

typedef struct {
  const char *name;
  bool available;
  void (*forward)(CpuState *, float *, const float *, const float *, const float *, size_t, size_t, size_t, const CpuEpilogue *);
  void (*backward_input)(CpuState *, float *, const float *, const float *, size_t, size_t, size_t);
  void (*backward_weight)(CpuState *, float *, const float *, const float *, size_t, size_t, size_t);
} InstructionSet;

PROTOTYPES(generic)
#if defined(__x86_64__)
PROTOTYPES(avx2)
PROTOTYPES(avx512)
#endif

static InstructionSet sets[] = {
  SET(generic, true),
#if defined(__x86_64__)
  SET(avx2, false),
  SET(avx512, false),
#endif
};
static const int thread_counts[] = {1, 2, 3, 7};
static CpuState state;

static void find_sets(void) {
#if defined(__x86_64__)
  sets[1].available = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  sets[2].available = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512dq");
#endif
}

// ---- shapes ----
// 1, primes, edges +-1 of tiles (4, 6, 8 rows; 16, 48 columns), of vectors, of blocks of k (768 and its multiples), of what
// is packed at a time (1,024 outer elements), and of the sum that is cut into passes (22,100 rows).
typedef struct { size_t rows, IC, OC; } Shape;
static const Shape shapes[] = {
  {1, 1, 1}, {1, 1, 2}, {2, 1, 1}, {1, 2, 1}, {3, 5, 7}, {7, 3, 5}, {5, 7, 3}, {4, 4, 4}, {6, 16, 16}, {8, 48, 48},
  {9, 49, 49}, {7, 47, 47}, {5, 15, 17}, {11, 17, 15}, {13, 31, 33}, {17, 33, 31}, {16, 64, 65}, {15, 65, 64}, {12, 95, 97}, {25, 97, 96},
  {1, 769, 50}, {2, 767, 31}, {3, 768, 100}, {4, 50, 769}, {5, 33, 767}, {8, 16, 768}, {769, 9, 7}, {767, 17, 49}, {768, 47, 8}, {61, 101, 103},
  {64, 128, 80}, {65, 127, 129}, {96, 96, 192}, {97, 193, 23}, {31, 191, 145}, {32, 143, 289}, {10, 1537, 11}, {11, 13, 1535}, {1536, 5, 11},
  {1025, 2200, 3}, {1031, 2, 2201}, {1024, 31, 5}, {22100, 9, 10}, {1, 300, 700}, {127, 257, 63}, {128, 64, 193}, {2, 1, 1100}, {2, 1100, 1},
};

// ---- data: before each array are canaries, behind its last element is a page that cannot even be read ----
enum { CANARIES = 19 };
static const float CANARY = -54321;
typedef struct { char *memory; size_t bytes, n; float *data, *copy; } Array;

static uint32_t random_bits(void) {
  static uint64_t x = 88172645463325252u;
  x ^= x << 13, x ^= x >> 7, x ^= x << 17;   // Marsaglia 2003
  return (uint32_t)(x >> 32);
}

// n numbers in (-size, size); size 0: NaN, for what is to be set.
static Array array_create(size_t n, double size) {
  const size_t page = (size_t)sysconf(_SC_PAGESIZE), used = round_up((n + CANARIES) * sizeof(float), page);
  Array a = { .bytes = used + page, .n = n, .copy = xmalloc(n, sizeof(float)) };
  a.memory = mmap(NULL, a.bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (a.memory == MAP_FAILED || mprotect(a.memory + used, page, PROT_NONE) != 0) abort();
  a.data = (float *)(a.memory + used) - n;
  for (size_t i = 1; i <= CANARIES; i++) *(a.data - i) = CANARY;
  for (size_t i = 0; i < n; i++) a.data[i] = size > 0 ? (float)(((int32_t)random_bits() * 0x1p-31) * size) : NAN;
  memcpy(a.copy, a.data, n * sizeof(float));
  return a;
}
static void array_restart(Array *a) { memcpy(a->data, a->copy, a->n * sizeof(float)); }
static void check_canaries(const Array *a, const char *what) {
  for (size_t i = 1; i <= CANARIES; i++) CHECK_MSG(*(a->data - i) == CANARY, "%s: canary %zu before the array was overwritten", what, i);
}
static void check_unchanged(const Array *a, const char *what) {
  CHECK_MSG(!memcmp(a->data, a->copy, a->n * sizeof(float)), "%s: an input was changed", what);
  check_canaries(a, what);
}
static void array_free(Array *a) { munmap(a->memory, a->bytes), free(a->copy); }

// ---- the specification ----
// Element (i,j) of C (m,n): a chain over k from start; A is (m,k) or, transposed, (k,m); B is (k,n) or, transposed, (n,k).
typedef struct {
  const char *name;
  size_t m, n, k;
  const float *a, *b;
  bool a_transposed, b_transposed;
  const float *start;      // (m,n), or (n) where start_row is false, or NULL: 0
  bool start_row;
} Specification;

static float factor_a(const Specification *s, size_t i, size_t p) { return s->a_transposed ? s->a[p * s->m + i] : s->a[i * s->k + p]; }
static float factor_b(const Specification *s, size_t p, size_t j) { return s->b_transposed ? s->b[j * s->k + p] : s->b[p * s->n + j]; }
static float start_of(const Specification *s, size_t i, size_t j) { return !s->start ? 0 : s->start[s->start_row ? i * s->n + j : j]; }
static float chain(const Specification *s, size_t i, size_t j) {
  float sum = start_of(s, i, j);
  for (size_t p = 0; p < s->k; p++) sum = fmaf(factor_a(s, i, p), factor_b(s, p, j), sum);
  return sum;
}

static bool within(double got, double want, double bound) { return fabs(got - want) <= bound; }

// Against a sum in double, whose own error is 2^29 times smaller. A chain of k fused multiply-adds in float errs by at most
// k u (1 + k u) times the sum of magnitudes, u = 2^-24 (Higham, Accuracy and Stability of Numerical Algorithms, 3.1).
static void check_bound(const Specification *s, const float *got) {
  size_t caught_nan = 0, caught_zero = 0, all = s->m * s->n;
  for (size_t i = 0; i < s->m; i++) {
    for (size_t j = 0; j < s->n; j++) {
      double want = start_of(s, i, j), magnitude = fabs(want);
      for (size_t p = 0; p < s->k; p++) {
        double product = (double)factor_a(s, i, p) * factor_b(s, p, j);
        want += product, magnitude += fabs(product);
      }
      double bound = (double)s->k * 0x1p-24 * (1 + (double)s->k * 0x1p-24) * magnitude;
      CHECK_MSG(within(got[i * s->n + j], want, bound), "%s m %zu n %zu k %zu (%zu,%zu): %.9g, in double %.17g, bound %.3g", s->name,
                s->m, s->n, s->k, i, j, got[i * s->n + j], want, bound);
      caught_nan += !within(NAN, want, bound), caught_zero += !within(0, want, bound);
    }
  }
  CHECK_MSG(caught_nan == all, "%s: the bound lets NaN pass", s->name);
  CHECK_MSG(caught_zero * 10 > all * 9 || all < 20 || s->k > 4096, "%s: the bound lets zeros pass", s->name);
}

static void check_bits(const Specification *s, const float *want, const float *got, const char *set, int threads) {
  for (size_t e = 0; e < s->m * s->n; e++)
    CHECK_MSG(!memcmp(want + e, got + e, sizeof(float)), "%s %s, %d threads, m %zu n %zu k %zu (%zu,%zu): %.9g, the chain gives %.9g", s->name,
              set, threads, s->m, s->n, s->k, e / s->n, e % s->n, got[e], want[e]);
}

// Runs one product on every instruction set and number of threads; out is restarted before each.
typedef void Product(const InstructionSet *set, float *out, const float *a, const float *b, const float *bias, const Shape *shape);
static void check_product(const Specification *s, Product *run, Array *out, const Array *a, const Array *b, const Array *bias, const Shape *shape) {
  float *want = xmalloc(s->m * s->n, sizeof *want);
  for (size_t e = 0; e < s->m * s->n; e++) want[e] = chain(s, e / s->n, e % s->n);
  check_bound(s, want);
  for (size_t i = 0; i < ARRAY_LEN(sets); i++) {
    for (size_t t = 0; sets[i].available && t < ARRAY_LEN(thread_counts); t++) {
      state.threads = thread_counts[t];
      array_restart(out);
      run(&sets[i], out->data, a->data, b->data, bias ? bias->data : NULL, shape);
      check_bits(s, want, out->data, sets[i].name, state.threads);
      check_canaries(out, s->name);
      check_unchanged(a, s->name);
      check_unchanged(b, s->name);
      if (bias) check_unchanged(bias, s->name);
    }
  }
  free(want);
}

static void run_forward(const InstructionSet *set, float *out, const float *x, const float *w, const float *bias, const Shape *s) {
  set->forward(&state, out, x, w, bias, s->rows, s->IC, s->OC, NULL);
}
static void run_input(const InstructionSet *set, float *dx, const float *dout, const float *w, const float *bias, const Shape *s) {
  (void)bias;
  set->backward_input(&state, dx, dout, w, s->rows, s->IC, s->OC);
}
static void run_weight(const InstructionSet *set, float *dw, const float *dout, const float *x, const float *bias, const Shape *s) {
  (void)bias;
  set->backward_weight(&state, dw, dout, x, s->rows, s->IC, s->OC);
}
static double size_of_case(size_t number) { return number % 3 == 0 ? 1 : number % 3 == 1 ? 1e4 : 0.02; }

static void forward(void) {
  for (size_t i = 0; i < ARRAY_LEN(shapes); i++) {
    const Shape *s = &shapes[i];
    Array x = array_create(s->rows * s->IC, size_of_case(i)), w = array_create(s->OC * s->IC, 1), bias = array_create(s->OC, 1);
    Array out = array_create(s->rows * s->OC, 0);
    Specification spec = { "forward", s->rows, s->OC, s->IC, x.data, w.data, false, true, NULL, false };
    if (i % 4 != 2) spec.start = bias.data;
    check_product(&spec, run_forward, &out, &x, &w, spec.start ? &bias : NULL, s);
    array_free(&x), array_free(&w), array_free(&bias), array_free(&out);
  }
}

static void backward_input(void) {
  for (size_t i = 0; i < ARRAY_LEN(shapes); i++) {
    const Shape *s = &shapes[i];
    Array dout = array_create(s->rows * s->OC, size_of_case(i)), w = array_create(s->OC * s->IC, 1), dx = array_create(s->rows * s->IC, 0);
    Specification spec = { "backward_input", s->rows, s->IC, s->OC, dout.data, w.data, false, false, NULL, false };
    check_product(&spec, run_input, &dx, &dout, &w, NULL, s);
    array_free(&dout), array_free(&w), array_free(&dx);
  }
}

static void backward_weight(void) {
  for (size_t i = 0; i < ARRAY_LEN(shapes); i++) {
    const Shape *s = &shapes[i];
    Array dout = array_create(s->rows * s->OC, size_of_case(i)), x = array_create(s->rows * s->IC, 1), dw = array_create(s->OC * s->IC, size_of_case(i + 1));
    Specification spec = { "backward_weight", s->OC, s->IC, s->rows, dout.data, x.data, true, false, dw.copy, true };
    check_product(&spec, run_weight, &dw, &dout, &x, NULL, s);
    array_free(&dout), array_free(&x), array_free(&dw);
  }
}

// The chain goes on: a gradient over all rows equals the one over the first rows, continued with the rest.
static void gradient_in_pieces(void) {
  const Shape s = {797, 53, 61};
  const size_t cuts[] = {0, 1, 8, 399, 400, 768, 797};
  Array dout = array_create(s.rows * s.OC, 1e4), x = array_create(s.rows * s.IC, 1), dw = array_create(s.OC * s.IC, 1);
  float *whole = xmalloc(dw.n, sizeof *whole);
  for (size_t i = 0; i < ARRAY_LEN(sets); i++) {
    if (!sets[i].available) continue;
    state.threads = 2;
    array_restart(&dw);
    sets[i].backward_weight(&state, dw.data, dout.data, x.data, s.rows, s.IC, s.OC);
    memcpy(whole, dw.data, dw.n * sizeof *whole);
    array_restart(&dw);
    for (size_t c = 0; c + 1 < ARRAY_LEN(cuts); c++)
      sets[i].backward_weight(&state, dw.data, dout.data + cuts[c] * s.OC, x.data + cuts[c] * s.IC, cuts[c + 1] - cuts[c], s.IC, s.OC);
    CHECK_MSG(!memcmp(whole, dw.data, dw.n * sizeof *whole), "%s: the gradient in pieces differs from the whole", sets[i].name);
  }
  free(whole);
  array_free(&dout), array_free(&x), array_free(&dw);
}

// Large enough to cut both outer dimensions of a gradient and the sum: every element of all sets and threads agree, and some
// are compared with the chain.
static void large_gradient(void) {
  const Shape s = {1030, 1026, 1031};
  Array dout = array_create(s.rows * s.OC, 1), x = array_create(s.rows * s.IC, 1), dw = array_create(s.OC * s.IC, 1);
  const Specification spec = { "large_gradient", s.OC, s.IC, s.rows, dout.data, x.data, true, false, dw.copy, true };
  float *first = NULL;
  for (size_t i = 1; i < ARRAY_LEN(sets); i++) {   // not the generic one: it would take seconds
    for (int threads = 1; sets[i].available && threads <= 3; threads += 2) {
      state.threads = threads;
      array_restart(&dw);
      sets[i].backward_weight(&state, dw.data, dout.data, x.data, s.rows, s.IC, s.OC);
      if (!first) memcpy(first = xmalloc(dw.n, sizeof *first), dw.data, dw.n * sizeof *first);
      CHECK_MSG(!memcmp(first, dw.data, dw.n * sizeof *first), "%s with %d threads differs", sets[i].name, threads);
      for (size_t e = 0; e < dw.n; e += 1009) {
        float want = chain(&spec, e / s.IC, e % s.IC);
        CHECK_MSG(!memcmp(&want, dw.data + e, sizeof want), "%s, %d threads, element %zu: %.9g, the chain gives %.9g", sets[i].name, threads, e, dw.data[e], want);
      }
    }
  }
  free(first);
  array_free(&dout), array_free(&x), array_free(&dw);
}

// ---- the epilogue: each element once, when it is finished ----
typedef struct { const float *out, *want; unsigned char *seen; size_t rows, OC; int early, uneven; } Seen;
static void see(const void *arg, size_t row0, size_t row1, size_t col0, size_t col1) {
  const Seen *s = arg;
  if (col0 % 16 != 0 || (col1 % 16 != 0 && col1 != s->OC) || row1 > s->rows || col1 > s->OC) {
    __atomic_store_n(&((Seen *)arg)->uneven, 1, __ATOMIC_RELAXED);
    return;
  }
  for (size_t r = row0; r < row1; r++) {
    for (size_t c = col0; c < col1; c++) {
      if (s->out[r * s->OC + c] != s->want[r * s->OC + c]) __atomic_store_n(&((Seen *)arg)->early, 1, __ATOMIC_RELAXED);
      s->seen[r * s->OC + c]++;   // an element is in one block, so no other thread writes it
    }
  }
}

static void epilogue(void) {
  const Shape some[] = {{1, 1, 1}, {9, 770, 130}, {130, 64, 100}, {1030, 20, 47}};
  for (size_t i = 0; i < ARRAY_LEN(some) * ARRAY_LEN(sets); i++) {
    const Shape *s = &some[i / ARRAY_LEN(sets)];
    const InstructionSet *set = &sets[i % ARRAY_LEN(sets)];
    if (!set->available) continue;
    Array x = array_create(s->rows * s->IC, 1), w = array_create(s->OC * s->IC, 1), out = array_create(s->rows * s->OC, 0), want = array_create(s->rows * s->OC, 0);
    state.threads = 3;
    set->forward(&state, want.data, x.data, w.data, NULL, s->rows, s->IC, s->OC, &(CpuEpilogue){ NULL, NULL });
    Seen seen = { out.data, want.data, xcalloc(out.n, 1), s->rows, s->OC, 0, 0 };
    set->forward(&state, out.data, x.data, w.data, NULL, s->rows, s->IC, s->OC, &(CpuEpilogue){ see, &seen });
    size_t once = 0;
    for (size_t e = 0; e < out.n; e++) once += seen.seen[e] == 1;
    CHECK_MSG(once == out.n && !seen.early && !seen.uneven, "%s: %zu of %zu elements seen once, %d early, %d uneven blocks", set->name, once, out.n, seen.early, seen.uneven);
    free(seen.seen);
    array_free(&x), array_free(&w), array_free(&out), array_free(&want);
  }
}

// A product flushes denormal numbers in every thread, also in helpers that were started without. Run it first.
static void denormals_are_zero(void) {
  Array x = array_create(700 * 40, 1), w = array_create(90 * 40, 1), out = array_create(700 * 90, 0);
  for (size_t i = 0; i < x.n; i++) x.data[i] = 1e-20f;
  for (size_t i = 0; i < w.n; i++) w.data[i] = 1e-20f;
  state.threads = 7;
  #pragma omp parallel num_threads(7)
  omp_get_thread_num();
  for (size_t i = 0; i < ARRAY_LEN(sets); i++) {
    if (!sets[i].available) continue;
    size_t zeros = 0;
    sets[i].forward(&state, out.data, x.data, w.data, NULL, 700, 40, 90, NULL);
    for (size_t e = 0; e < out.n; e++) zeros += out.data[e] == 0;
    CHECK_MSG(zeros == out.n, "%s: %zu of %zu sums of denormal products are zero", sets[i].name, zeros, out.n);
  }
  array_free(&x), array_free(&w), array_free(&out);
}

static void nothing_to_do(void) {
  Array x = array_create(8, 1), out = array_create(8, 1);
  for (size_t i = 0; i < ARRAY_LEN(sets); i++) {
    if (!sets[i].available) continue;
    sets[i].forward(&state, out.data, x.data, x.data, NULL, 0, 2, 2, NULL);
    sets[i].backward_weight(&state, out.data, x.data, x.data, 0, 2, 2);
    check_unchanged(&out, "no rows");
  }
  array_free(&x), array_free(&out);
}

int main(int argc, char **argv) {
  TEST_BEGIN(argc, argv);
  find_sets();
  state = (CpuState){ .threads = 1 };
  RUN(denormals_are_zero);
  cpu_flush_denormals();   // the chains of this file, as the products do in their threads
  RUN(forward);
  RUN(backward_input);
  RUN(backward_weight);
  RUN(gradient_in_pieces);
  RUN(large_gradient);
  RUN(epilogue);
  RUN(nothing_to_do);
  free(state.scratch[CPU_SCRATCH_GEMM].data);
  return TEST_END();
}
