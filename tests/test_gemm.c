// test_gemm.c: owns the test of the CPU device's matrix products (cpu_gemm.c), on every instruction set of this processor; in bf16 where
// test_gemm_bf16.c includes it.
//
// The specification is bits: each output element is one chain of fmaf over k in order, from the bias, 0 or the stored
// gradient; in bf16 k goes 1, 0, 3, 2, ... but for gradients, and a result that is stored is rounded then. Matrix tiles have a chain of their own, over sums
// of 32 products. So every element of every shape is compared with its chain by its bits, for 1, 2, 3 and 7 threads; and the
// chains themselves with a sum in double, by a bound. Inputs must stay as they were.
// The tiles' kernels run with a stand-in for the instructions, in plain C and with AVX-512; and, where the processor lacks tiles and has AVX-512, as they
// were compiled for it: each instruction is trapped (small shapes, for a trap costs microseconds).
#include "../cpu.h"     // CpuState, CpuEpilogue, cpu_flush_denormals
#include "../util.h"    // xmalloc, MIN, ARRAY_LEN
#include "test.h"       // CHECK_MSG, RUN
#include "tile_emulator.h"   // tile_emulator_trap
#if defined(__x86_64__)
#include <cpuid.h>      // __get_cpuid_count
#endif
#include <sys/mman.h>   // mmap, mprotect

typedef void Forward(CpuState *, stored *, const stored *, const stored *, const stored *, size_t, size_t, size_t, const CpuEpilogue *);
typedef void BackwardInput(CpuState *, stored *, const stored *, const stored *, size_t, size_t, size_t);
typedef void BackwardWeight(CpuState *, float *, const stored *, const stored *, size_t, size_t, size_t);
typedef size_t Scratch(const CpuState *, size_t, size_t, size_t);
typedef struct {
  const char *name;
  bool available;
  bool tiles;              // it has their chain
  bool trapped;            // and each of their instructions takes microseconds
  Forward *forward;
  BackwardInput *backward_input;
  BackwardWeight *backward_weight;
  Scratch *scratch;
} InstructionSet;
#define PROTOTYPES(isa) Forward cpu_gemm_forward_##isa; BackwardInput cpu_gemm_backward_input_##isa; BackwardWeight cpu_gemm_backward_weight_##isa; Scratch cpu_gemm_scratch_##isa;
#define SET(isa) { #isa, false, false, false, cpu_gemm_forward_##isa, cpu_gemm_backward_input_##isa, cpu_gemm_backward_weight_##isa, cpu_gemm_scratch_##isa },
#ifndef __x86_64__
#define EACH_X86(X)
#elif defined(CPU_STORES_BF16)
#ifdef CPU_BUILDS_AMX
#define EACH_AMX(X) X(amx)
#else
#define EACH_AMX(X)
#endif
#define EACH_X86(X) X(avx2_bf16) X(avx512_bf16) X(avx512bf16) X(amx_emulated512) EACH_AMX(X)
#else
#define EACH_X86(X) X(avx2) X(avx512)
#endif
#ifdef CPU_STORES_BF16
#define EACH_SET(X) X(generic_bf16) X(amx_emulated) EACH_X86(X)
#else
#define EACH_SET(X) X(generic) EACH_X86(X)
#endif
EACH_SET(PROTOTYPES)
static InstructionSet sets[] = { EACH_SET(SET) };
static const int thread_counts[] = {1, 2, 3, 7};
static CpuState state;

static void find_sets(void) {
  for (size_t i = 0; i < ARRAY_LEN(sets); i++) {
    const char *name = sets[i].name;
    sets[i].available = !strncmp(name, "generic", 7) || !strcmp(name, "amx_emulated");
    sets[i].tiles = !strncmp(name, "amx", 3);
#if defined(__x86_64__)
    unsigned a = 0, b, c, d;
    if (!strncmp(name, "avx2", 4)) sets[i].available = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (!strncmp(name, "avx512", 6) || !strcmp(name, "amx") || !strcmp(name, "amx_emulated512"))
      sets[i].available = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                          __builtin_cpu_supports("avx512dq");
    if (!strcmp(name, "avx512bf16")) sets[i].available = sets[i].available && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 5 & 1);
    if (!strcmp(name, "amx") && sets[i].available && cpu_tiles_unavailable()) {
      sets[i].available = sets[i].trapped = tile_emulator_trap();
      printf("amx: its instructions are trapped and emulated here: %s\n", sets[i].available ? "yes" : "no, not tested");
    }
#endif
  }
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
  {32, 32, 32}, {31, 33, 31}, {33, 31, 33}, {480, 1024, 5}, {64, 128, 1568}, {33, 1025, 65}, {300, 40, 1100}, {1, 1056, 33}, {1056, 160, 10},
  {1025, 2200, 3}, {1031, 2, 2201}, {1024, 31, 5}, {22100, 9, 10}, {1, 300, 700}, {127, 257, 63}, {128, 64, 193}, {2, 1, 1100}, {2, 1100, 1},
};

// ---- data: before each array are canaries, behind its last element is a page that cannot even be read ----
enum { CANARIES = 19, CANARY = 0xa5 };
typedef struct { char *memory; size_t bytes, n, size; char *data, *copy; } Array;   // n elements of `size` bytes each: stored, or floats

static double value_of(const char *p, size_t size) {   // which is 2 only for bf16
  float f;
  bf16 half;
  memcpy(&half, p, 2);
  if (size == 2) return float_of_bf16(half);
  memcpy(&f, p, 4);
  return f;
}
static double value_at(const Array *a, size_t i) { return value_of(a->data + i * a->size, a->size); }
static stored *S(const Array *a) { return (stored *)(void *)a->data; }
static float *F(const Array *a) { return (float *)(void *)a->data; }

static uint32_t random_bits(void) {
  static uint64_t x = 88172645463325252u;
  x ^= x << 13, x ^= x >> 7, x ^= x << 17;   // Marsaglia 2003
  return (uint32_t)(x >> 32);
}

// As an element of that many bytes.
static void put_value(char *p, size_t size, float x) {
  bf16 half = bf16_of_float(x);
  if (size == 2) memcpy(p, &half, 2);
  else memcpy(p, &x, 4);
}

// n numbers in (-magnitude, magnitude); magnitude 0: NaN, for what is to be set.
static Array array_of(size_t n, size_t size, double magnitude) {
  const size_t page = (size_t)sysconf(_SC_PAGESIZE), used = round_up((n + CANARIES) * size, page);
  Array a = { .bytes = used + page, .n = n, .size = size, .copy = xmalloc(n, size) };
  a.memory = mmap(NULL, a.bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (a.memory == MAP_FAILED || mprotect(a.memory + used, page, PROT_NONE) != 0) abort();
  a.data = a.memory + used - n * size;
  memset(a.data - CANARIES * size, CANARY, CANARIES * size);
  for (size_t i = 0; i < n; i++) put_value(a.data + i * size, size, magnitude > 0 ? (float)(((int32_t)random_bits() * 0x1p-31) * magnitude) : NAN);
  memcpy(a.copy, a.data, n * size);
  return a;
}
static Array array_create(size_t n, double magnitude) { return array_of(n, sizeof(stored), magnitude); }
static Array gradient_create(size_t n, double magnitude) { return array_of(n, sizeof(float), magnitude); }
static void array_restart(Array *a) { memcpy(a->data, a->copy, a->n * a->size); }
static void check_canaries(const Array *a, const char *what) {
  for (size_t i = 1; i <= CANARIES * a->size; i++)
    CHECK_MSG((unsigned char)*(a->data - i) == CANARY, "%s: the byte %zu before the array was overwritten", what, i);
}
static void check_unchanged(const Array *a, const char *what) {
  CHECK_MSG(!memcmp(a->data, a->copy, a->n * a->size), "%s: an input was changed", what);
  check_canaries(a, what);
}
static void array_free(Array *a) { munmap(a->memory, a->bytes), free(a->copy); }

// ---- the specification ----
// Element (i,j) of C (m,n): a chain over k from start; A is (m,k) or, transposed, (k,m); B is (k,n) or, transposed, (n,k).
typedef struct {
  const char *name;
  size_t m, n, k;
  const Array *a, *b;
  bool a_transposed, b_transposed;
  const Array *start;      // (m,n), as it was, or (n) where start_row is false, or NULL: 0
  bool start_row;          // a gradient: floats, k in order
} Specification;

static float factor_a(const Specification *s, size_t i, size_t p) { return (float)value_at(s->a, s->a_transposed ? p * s->m + i : i * s->k + p); }
static float factor_b(const Specification *s, size_t p, size_t j) { return (float)value_at(s->b, s->b_transposed ? j * s->k + p : p * s->n + j); }
static float start_of(const Specification *s, size_t i, size_t j) {
  return !s->start ? 0 : (float)value_of(s->start->copy + (s->start_row ? i * s->n + j : j) * s->start->size, s->start->size);
}
static size_t result_size(const Specification *s) { return s->start_row ? sizeof(float) : sizeof(stored); }
// The result's element, in the first bytes.
static void chain(const Specification *s, bool tiles, size_t i, size_t j, char result[4]) {
  float sum = start_of(s, i, j);
  for (size_t first = 0; tiles && first < s->k; first += 32) {   // even k, odd k, both together, and then the sum: see tiles.h
    float part[2] = {0, 0};
    for (size_t p = first; p < MIN(first + 32, s->k); p++) part[p % 2] = fmaf(factor_a(s, i, p), factor_b(s, p, j), part[p % 2]);
    sum += part[0] + part[1];
  }
  for (size_t p = 0; !tiles && p < s->k; p++) {
    const size_t at = STORES_BF16 && !s->start_row && (p ^ 1) < s->k ? p ^ 1 : p;
    sum = fmaf(factor_a(s, i, at), factor_b(s, at, j), sum);
  }
  put_value(result, result_size(s), sum);
}

static bool within(double got, double want, double bound) { return fabs(got - want) <= bound; }

// Against a sum in double, whose own error is 2^29 times smaller. A chain of k fused multiply-adds in float errs by at most
// k u (1 + k u) times the sum of magnitudes, u = 2^-24 (Higham, Accuracy and Stability of Numerical Algorithms, 3.1); storing in bf16
// rounds by 2^-8 of the result at most (half of its last place, 2^-7).
static void check_bound(const Specification *s, const char *got_bytes) {
  const size_t size = result_size(s);
  size_t caught_nan = 0, caught_zero = 0, all = s->m * s->n;
  for (size_t i = 0; i < s->m; i++) {
    for (size_t j = 0; j < s->n; j++) {
      double want = start_of(s, i, j), magnitude = fabs(want);
      for (size_t p = 0; p < s->k; p++) {
        double product = (double)factor_a(s, i, p) * factor_b(s, p, j);
        want += product, magnitude += fabs(product);
      }
      double bound = (double)s->k * 0x1p-24 * (1 + (double)s->k * 0x1p-24) * magnitude, got = value_of(got_bytes + (i * s->n + j) * size, size);
      if (size == 2) bound += 0x1p-8 * (fabs(want) + bound);
      CHECK_MSG(within(got, want, bound), "%s m %zu n %zu k %zu (%zu,%zu): %.9g, in double %.17g, bound %.3g", s->name,
                s->m, s->n, s->k, i, j, got, want, bound);
      caught_nan += !within(NAN, want, bound), caught_zero += !within(0, want, bound);
    }
  }
  CHECK_MSG(caught_nan == all, "%s: the bound lets NaN pass", s->name);
  CHECK_MSG(caught_zero * 10 > all * 9 || all < 20 || s->k > 4096, "%s: the bound lets zeros pass", s->name);
}

static void check_bits(const Specification *s, const char *want, const char *got, const char *set, int threads) {
  const size_t size = result_size(s);
  for (size_t e = 0; e < s->m * s->n; e++)
    CHECK_MSG(!memcmp(want + e * size, got + e * size, size), "%s %s, %d threads, m %zu n %zu k %zu (%zu,%zu): %.9g, the chain gives %.9g", s->name,
              set, threads, s->m, s->n, s->k, e / s->n, e % s->n, value_of(got + e * size, size), value_of(want + e * size, size));
}

// Runs one product on every instruction set and number of threads; out is restarted before each.
typedef void Product(const InstructionSet *set, Array *out, const Array *a, const Array *b, const Array *bias, const Shape *shape);
static void check_product(const Specification *s, Product *run, Array *out, const Array *bias, const Shape *shape) {
  char *want[2] = {NULL};
  for (int tiles = 0; tiles <= STORES_BF16; tiles++) {
    want[tiles] = xmalloc(s->m * s->n + 1, result_size(s));
    for (size_t e = 0; e < s->m * s->n; e++) {
      char result[4];
      chain(s, tiles, e / s->n, e % s->n, result);
      memcpy(want[tiles] + e * result_size(s), result, result_size(s));
    }
    check_bound(s, want[tiles]);
  }
  const size_t steps = (s->m + 31) / 32 * ((s->n + 31) / 32) * ((s->k + 31) / 32);   // of tiles
  for (size_t i = 0; i < ARRAY_LEN(sets); i++) {
    for (size_t t = 0; sets[i].available && t < ARRAY_LEN(thread_counts); t++) {
      if (sets[i].trapped && (steps > 64 || t % 2)) continue;
      state.threads = thread_counts[t];
      array_restart(out);
      run(&sets[i], out, s->a, s->b, bias, shape);
      check_bits(s, want[sets[i].tiles], out->data, sets[i].name, state.threads);
      check_canaries(out, s->name);
      check_unchanged(s->a, s->name);
      check_unchanged(s->b, s->name);
      if (bias) check_unchanged(bias, s->name);
    }
  }
  free(want[0]), free(want[1]);
}

static void run_forward(const InstructionSet *set, Array *out, const Array *x, const Array *w, const Array *bias, const Shape *s) {
  set->forward(&state, S(out), S(x), S(w), bias ? S(bias) : NULL, s->rows, s->IC, s->OC, NULL);
}
static void run_input(const InstructionSet *set, Array *dx, const Array *dout, const Array *w, const Array *bias, const Shape *s) {
  (void)bias;
  set->backward_input(&state, S(dx), S(dout), S(w), s->rows, s->IC, s->OC);
}
static void run_weight(const InstructionSet *set, Array *dw, const Array *dout, const Array *x, const Array *bias, const Shape *s) {
  (void)bias;
  set->backward_weight(&state, F(dw), S(dout), S(x), s->rows, s->IC, s->OC);
}
static double size_of_case(size_t number) { return number % 3 == 0 ? 1 : number % 3 == 1 ? 1e4 : 0.02; }

static void forward(void) {
  for (size_t i = 0; i < ARRAY_LEN(shapes); i++) {
    const Shape *s = &shapes[i];
    Array x = array_create(s->rows * s->IC, size_of_case(i)), w = array_create(s->OC * s->IC, 1), bias = array_create(s->OC, 1);
    Array out = array_create(s->rows * s->OC, 0);
    Specification spec = { "forward", s->rows, s->OC, s->IC, &x, &w, false, true, NULL, false };
    if (i % 4 != 2) spec.start = &bias;
    check_product(&spec, run_forward, &out, spec.start, s);
    array_free(&x), array_free(&w), array_free(&bias), array_free(&out);
  }
}

static void backward_input(void) {
  for (size_t i = 0; i < ARRAY_LEN(shapes); i++) {
    const Shape *s = &shapes[i];
    Array dout = array_create(s->rows * s->OC, size_of_case(i)), w = array_create(s->OC * s->IC, 1), dx = array_create(s->rows * s->IC, 0);
    Specification spec = { "backward_input", s->rows, s->IC, s->OC, &dout, &w, false, false, NULL, false };
    check_product(&spec, run_input, &dx, NULL, s);
    array_free(&dout), array_free(&w), array_free(&dx);
  }
}

static void backward_weight(void) {
  for (size_t i = 0; i < ARRAY_LEN(shapes); i++) {
    const Shape *s = &shapes[i];
    Array dout = array_create(s->rows * s->OC, size_of_case(i)), x = array_create(s->rows * s->IC, 1), dw = gradient_create(s->OC * s->IC, size_of_case(i + 1));
    Specification spec = { "backward_weight", s->OC, s->IC, s->rows, &dout, &x, true, false, &dw, true };
    check_product(&spec, run_weight, &dw, NULL, s);
    array_free(&dout), array_free(&x), array_free(&dw);
  }
}

// The chain goes on: a gradient over all rows equals the one over the first rows, continued with the rest. Tiles: cut at multiples of 32.
static void gradient_in_pieces(void) {
  const Shape s = {797, 53, 61};
  const size_t row_cuts[] = {0, 1, 8, 399, 400, 768, 797}, tile_cuts[] = {0, 32, 64, 384, 416, 768, 797};
  Array dout = array_create(s.rows * s.OC, 1e4), x = array_create(s.rows * s.IC, 1), dw = gradient_create(s.OC * s.IC, 1);
  float *whole = xmalloc(dw.n, sizeof *whole);
  for (size_t i = 0; i < ARRAY_LEN(sets); i++) {
    const size_t *cuts = sets[i].tiles ? tile_cuts : row_cuts;
    if (!sets[i].available || sets[i].trapped) continue;
    state.threads = 2;
    array_restart(&dw);
    sets[i].backward_weight(&state, F(&dw), S(&dout), S(&x), s.rows, s.IC, s.OC);
    memcpy(whole, dw.data, dw.n * sizeof *whole);
    array_restart(&dw);
    for (size_t c = 0; c + 1 < ARRAY_LEN(row_cuts); c++)
      sets[i].backward_weight(&state, F(&dw), S(&dout) + cuts[c] * s.OC, S(&x) + cuts[c] * s.IC, cuts[c + 1] - cuts[c], s.IC, s.OC);
    CHECK_MSG(!memcmp(whole, dw.data, dw.n * sizeof *whole), "%s: the gradient in pieces differs from the whole", sets[i].name);
  }
  free(whole);
  array_free(&dout), array_free(&x), array_free(&dw);
}

// Large enough to cut both outer dimensions of a gradient and the sum: every element of all sets and threads agree, and some
// are compared with the chain.
static void large_gradient(void) {
  const Shape s = {1030, 1026, 1031};
  Array dout = array_create(s.rows * s.OC, 1), x = array_create(s.rows * s.IC, 1), dw = gradient_create(s.OC * s.IC, 1);
  const Specification spec = { "large_gradient", s.OC, s.IC, s.rows, &dout, &x, true, false, &dw, true };
  float *firsts[2] = {NULL};
  for (size_t i = 1; i < ARRAY_LEN(sets); i++) {   // not the generic one: it would take seconds
    for (int threads = sets[i].tiles ? 3 : 1; sets[i].available && !sets[i].trapped && threads <= 3; threads += 2) {
      float *first = firsts[sets[i].tiles];
      state.threads = threads;
      array_restart(&dw);
      sets[i].backward_weight(&state, F(&dw), S(&dout), S(&x), s.rows, s.IC, s.OC);
      if (!first) memcpy(first = firsts[sets[i].tiles] = xmalloc(dw.n, sizeof *first), dw.data, dw.n * sizeof *first);
      CHECK_MSG(!memcmp(first, dw.data, dw.n * sizeof *first), "%s with %d threads differs", sets[i].name, threads);
      for (size_t e = 0; e < dw.n; e += 1009) {
        char want[4];
        chain(&spec, sets[i].tiles, e / s.IC, e % s.IC, want);
        CHECK_MSG(!memcmp(want, F(&dw) + e, 4), "%s, %d threads, element %zu: %.9g, the chain gives %.9g", sets[i].name, threads, e, F(&dw)[e], value_of(want, 4));
      }
    }
  }
  free(firsts[0]), free(firsts[1]);
  array_free(&dout), array_free(&x), array_free(&dw);
}

#ifdef CPU_STORES_BF16
// A result that is large enough to go past the caches, where there is a set that does so.
static void past_the_caches(void) {
  const Shape s = {1056, 3, 8192};
  const struct { size_t rows, OC, first; } outs[] = {{1056, 8192, 0}, {1056, 8180, 0}, {1055, 8192, 8}};   // the first alone can: a line begins with each row
  Array x = array_create(s.rows * s.IC, 1), w = array_create(s.OC * s.IC, 1), out = array_create(s.rows * s.OC, 0);
  for (size_t i = 0; i < ARRAY_LEN(sets) * ARRAY_LEN(outs); i++) {
    const InstructionSet *set = &sets[i / ARRAY_LEN(outs)];
    const size_t rows = outs[i % ARRAY_LEN(outs)].rows, OC = outs[i % ARRAY_LEN(outs)].OC;
    stored *to = S(&out) + outs[i % ARRAY_LEN(outs)].first;
    if (!set->available || strcmp(set->name, "amx_emulated512")) continue;
    const Specification spec = { "past_the_caches", rows, OC, s.IC, &x, &w, false, true, NULL, false };
    state.threads = 2;
    array_restart(&out);
    set->forward(&state, to, S(&x), S(&w), NULL, rows, s.IC, OC, NULL);
    for (size_t e = 0; e < rows * OC; e += 7) {
      char want[4];
      chain(&spec, true, e / OC, e % OC, want);
      CHECK_MSG(!memcmp(want, to + e, 2), "%s: element %zu of %zu x %zu", set->name, e, rows, OC);
    }
    check_canaries(&out, spec.name);
  }
  array_free(&x), array_free(&w), array_free(&out);
}
#endif

// ---- the epilogue: each element once, when it is finished ----
typedef struct { const stored *out, *want; unsigned char *seen; size_t rows, OC; int early, uneven; } Seen;
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
    if (!set->available || (set->trapped && s->rows > 9)) continue;
    Array x = array_create(s->rows * s->IC, 1), w = array_create(s->OC * s->IC, 1), out = array_create(s->rows * s->OC, 0), want = array_create(s->rows * s->OC, 0);
    state.threads = 3;
    set->forward(&state, S(&want), S(&x), S(&w), NULL, s->rows, s->IC, s->OC, &(CpuEpilogue){ NULL, NULL });
    Seen seen = { S(&out), S(&want), xcalloc(out.n, 1), s->rows, s->OC, 0, 0 };
    set->forward(&state, S(&out), S(&x), S(&w), NULL, s->rows, s->IC, s->OC, &(CpuEpilogue){ see, &seen });
    size_t once = 0;
    for (size_t e = 0; e < out.n; e++) once += seen.seen[e] == 1;
    CHECK_MSG(once == out.n && !seen.early && !seen.uneven, "%s: %zu of %zu elements seen once, %d early, %d uneven blocks", set->name, once, out.n, seen.early, seen.uneven);
    free(seen.seen);
    array_free(&x), array_free(&w), array_free(&out), array_free(&want);
  }
}

// Threads that have finished a block, as bits. Each waits in its first one until all are there, or for two seconds: then one thread does what all should.
typedef struct { unsigned there, all; } Team;
static void meet(const void *arg, size_t row0, size_t row1, size_t col0, size_t col1) {
  (void)row0, (void)row1, (void)col0, (void)col1;
  Team *t = (Team *)(uintptr_t)arg;
  __atomic_fetch_or(&t->there, 1u << omp_get_thread_num(), __ATOMIC_RELAXED);
  for (int i = 0; i < 2000 && __atomic_load_n(&t->there, __ATOMIC_RELAXED) != t->all; i++) usleep(1000);
  __atomic_store_n(&t->all, __atomic_load_n(&t->there, __ATOMIC_RELAXED), __ATOMIC_RELAXED);      // waited once
}

// A product of many rows and few columns is shared among the threads by its rows: no thread takes the parts of the others.
static void threads_share_a_product(void) {
#ifdef _OPENMP
  enum { THREADS = 3, ROWS = 400 };
#else
  enum { THREADS = 1, ROWS = 400 };
#endif
  Array x = array_create(ROWS * 40, 1), w = array_create(16 * 40, 1), out = array_create(ROWS * 16, 0);
  for (size_t i = 0; i < ARRAY_LEN(sets); i++) {
    if (!sets[i].available || sets[i].tiles) continue;      // tiles are cut into larger parts: this is one
    state.threads = THREADS;
    Team team = { 0, (1u << THREADS) - 1 };
    sets[i].forward(&state, S(&out), S(&x), S(&w), NULL, ROWS, 40, 16, &(CpuEpilogue){ meet, &team });
    CHECK_MSG(team.there == (1u << THREADS) - 1, "%s: of %d threads those of %x have work", sets[i].name, THREADS, team.there);
  }
  array_free(&x), array_free(&w), array_free(&out);
}

// A product flushes denormal numbers in every thread, also in helpers that were started without. Run it first.
static void denormals_are_zero(void) {
  Array x = array_create(700 * 40, 1), w = array_create(90 * 40, 1), out = array_create(700 * 90, 0);
  for (size_t i = 0; i < x.n; i++) put_value(x.data + i * x.size, x.size, 1e-20f);
  for (size_t i = 0; i < w.n; i++) put_value(w.data + i * w.size, w.size, 1e-20f);
  state.threads = 7;
  #pragma omp parallel num_threads(7)
  omp_get_thread_num();
  for (size_t i = 0; i < ARRAY_LEN(sets); i++) {
    if (!sets[i].available || sets[i].trapped) continue;
    size_t zeros = 0;
    sets[i].forward(&state, S(&out), S(&x), S(&w), NULL, 700, 40, 90, NULL);
    for (size_t e = 0; e < out.n; e++) zeros += value_at(&out, e) == 0;
    CHECK_MSG(zeros == out.n, "%s: %zu of %zu sums of denormal products are zero", sets[i].name, zeros, out.n);
  }
  array_free(&x), array_free(&w), array_free(&out);
}

// ---- working memory ----

// How products are cut, as far as it shows in the memory that they take: changed on purpose only, for speed was measured with these cuts and the
// printed table of memory counts on it.
static void cuts_are_pinned(void) {
  static const size_t sides[] = {0, 1, 2, 7, 16, 47, 48, 64, 96, 100, 384, 767, 768, 769, 1023, 1024, 1025, 1536, 2048, 3072, 4100, 22100, 50304};
  static const struct { const char *set, *hash; } pinned[] = {{"generic", "e731686b332ec91bc699328543dfc2b2ffbba7451c0625acfceb30d1d1464d6c"}, {"avx2", "1a095aeb64fe3eb04ccd7aa82be67b4371152bfdd836c44fa171c1dbc21c139b"}, {"avx512", "badb45e0df75e7438532632d1b5df947c412539244b1611da8590c291d02b80c"},
    {"generic_bf16", "2e5b898b99ecae1442c0ff4b216cd3ccddf3b24fbe97173a808d1659c40be306"}, {"avx2_bf16", "ce3e4f72688cfd3ba66ef34c1f3b450ad008f7b3ae1c89bcd024d94637ea1a97"}, {"avx512_bf16", "3852d767fb15aa7dcfcc08d50507a921fb9c52034cce4cd06295dc8154b618d0"}, {"avx512bf16", "0bc558876786c6f0941117bc2d2929ac6fea0434a95ad01b7e366aac30045a93"}};
  for (size_t i = 0; i < ARRAY_LEN(sets); i++) {
    Buffer all = {0};
    char hex[65];
    for (size_t a = 0; a < ARRAY_LEN(sides); a++)
      for (size_t b = 0; b < ARRAY_LEN(sides); b++)
        for (size_t c = 0; c < ARRAY_LEN(sides); c++) {
          const CpuState some = { .threads = thread_counts[(a + b + c) % ARRAY_LEN(thread_counts)] };
          buffer_printf(&all, "%zu ", sets[i].scratch(&some, sides[a], sides[b], sides[c]));
        }
    sha256_of(all.data, all.len, hex);
    buffer_free(&all);
    for (size_t p = 0; p < ARRAY_LEN(pinned); p++) if (!strcmp(pinned[p].set, sets[i].name)) CHECK_MSG(!strcmp(pinned[p].hash, hex), "%s: %s", sets[i].name, hex);
    CHECK_EQ(sets[i].scratch(&state, 0, 5, 7), 0);
  }
}

// Products take the memory that they say, and not a byte behind it; what was there before changes nothing.
static void products_stay_in_their_memory(void) {
  static const Shape some[] = {{1, 1, 1}, {61, 101, 103}, {40, 769, 50}, {50, 40, 1537}, {97, 64, 129}, {31, 1600, 33}, {1600, 31, 33}, {1030, 17, 49}, {9, 2200, 130}};
  const size_t page = (size_t)sysconf(_SC_PAGESIZE);
  for (size_t i = 0; i < ARRAY_LEN(some) * ARRAY_LEN(sets) * 2; i++) {
    const Shape *s = &some[i / 2 / ARRAY_LEN(sets)];
    const InstructionSet *set = &sets[i / 2 % ARRAY_LEN(sets)];
    if (!set->available || set->tiles) continue;   // tiles say what they take where weights are kept, which these are not
    CpuState guarded = { .threads = i % 2 ? 3 : 1 };
    const size_t bytes = set->scratch(&guarded, s->rows, s->IC, s->OC), used = round_up(bytes, page);
    char *memory = mmap(NULL, used + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED || mprotect(memory + used, page, PROT_NONE) != 0) abort();
    memset(memory, 0xff, used);   // NaN
    guarded.scratch[CPU_SCRATCH_GEMM].data = memory + used - bytes, guarded.scratch[CPU_SCRATCH_GEMM].bytes = bytes;
    Array x = array_create(s->rows * s->IC, 1), w = array_create(s->OC * s->IC, 1), dout = array_create(s->rows * s->OC, 1), dw = gradient_create(s->OC * s->IC, 1);
    Array out[2] = {array_create(s->rows * s->OC, 0), array_create(s->rows * s->OC, 0)}, dx[2] = {array_create(s->rows * s->IC, 0), array_create(s->rows * s->IC, 0)};
    float *first = xmalloc(dw.n, sizeof *first);
    for (int again = 0; again < 2; again++) {
      CpuState *which = again ? &guarded : &state;
      state.threads = 2;
      array_restart(&dw);
      set->forward(which, S(&out[again]), S(&x), S(&w), NULL, s->rows, s->IC, s->OC, NULL);
      set->backward_input(which, S(&dx[again]), S(&dout), S(&w), s->rows, s->IC, s->OC);
      set->backward_weight(which, F(&dw), S(&dout), S(&x), s->rows, s->IC, s->OC);
      if (!again) memcpy(first, dw.data, dw.n * sizeof *first);
    }
    CHECK_MSG(!memcmp(out[0].data, out[1].data, out[0].n * out[0].size) && !memcmp(dx[0].data, dx[1].data, dx[0].n * dx[0].size) && !memcmp(first, dw.data, dw.n * sizeof *first),
              "%s, %zu x %zu x %zu: other bits in other memory", set->name, s->rows, s->IC, s->OC);
    CHECK_EQ(guarded.scratch[CPU_SCRATCH_GEMM].bytes, bytes);
    CHECK(state.scratch[CPU_SCRATCH_GEMM].bytes >= set->scratch(&state, s->rows, s->IC, s->OC) || !set->scratch(&state, s->rows, s->IC, s->OC));
    munmap(memory, used + page);
    free(first);
    array_free(&x), array_free(&w), array_free(&dout), array_free(&dw);
    for (int k = 0; k < 2; k++) array_free(&out[k]), array_free(&dx[k]);
  }
}

static void nothing_to_do(void) {
  Array x = array_create(8, 1), out = array_create(8, 1), dw = gradient_create(8, 1);
  for (size_t i = 0; i < ARRAY_LEN(sets); i++) {
    if (!sets[i].available) continue;
    sets[i].forward(&state, S(&out), S(&x), S(&x), NULL, 0, 2, 2, NULL);
    sets[i].backward_weight(&state, F(&dw), S(&x), S(&x), 0, 2, 2);
    check_unchanged(&out, "no rows"), check_unchanged(&dw, "no rows");
  }
  array_free(&x), array_free(&out), array_free(&dw);
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
#ifdef CPU_STORES_BF16
  RUN(past_the_caches);
#endif
  RUN(epilogue);
  RUN(threads_share_a_product);
  RUN(cuts_are_pinned);
  RUN(products_stay_in_their_memory);
  RUN(nothing_to_do);
  free(state.scratch[CPU_SCRATCH_GEMM].data);
  return TEST_END();
}
