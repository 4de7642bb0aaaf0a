// cpu_ops.c: owns the CPU device's operations other than matrix products and attention: embedding, dropout, norms, activations,
// rotary positions, classifier, norm of the gradient, AdamW; and the thin wrappers around the products of cpu_gemm.c.
//
// It promises bits (DESIGN.md, "Numbers: same bits"). Three habits give them:
//   - every output element has one owner, and threads divide outputs: rows where rows are independent, columns where
//     a column is a sum over rows, which is then one chain in row order from the stored value;
//   - a sum within a row adds element j to lane j mod 16, in order, and the 16 lanes in one fixed tree (vec_sum);
//   - every fused multiply-add is written out, and exp and log are our own (simd.h).
// Where storage is bf16, a number expands to float when it is loaded, and is rounded once, when it is stored.
// Read it beside reference.c: same order, same names, only vectors and threads differ. The loop over a row is always
//   for (c = 0; c < C; c += LANES) ... vec_load_row(x + c, C - c) ...
// Compiled once per instruction set (CPU_ISA, see cpu.h). Tests: tests/test_ops.c
#include "cpu.h"        // CPU_NAME, CpuState, cpu_flush_denormals, the products
#include "detmath.h"    // det_pow, det_cos, det_sin: the rotary table
#include "simd.h"       // vec and its operations
#include "util.h"       // MIN, MAX, fail
#include <math.h>       // sqrtf, sqrt, isfinite
#include <string.h>     // memcpy, memset

// without OpenMP no operation asks the device for its threads, nor counts the work to be shared
#pragma GCC diagnostic ignored "-Wunused-parameter"
#pragma GCC diagnostic ignored "-Wunused-function"
#pragma GCC diagnostic ignored "-Wunused-but-set-variable"

// ---- threads ----

// How many threads an operation gets that touches `work` floats: all, or one where waking the others costs more than it saves
// (about a microsecond, in which one core works on this many).
enum { SMALLEST_TEAM_WORK = 8192 };
static inline int team(const Device *d, size_t work) { return work < SMALLEST_TEAM_WORK ? 1 : cpu_state(d)->threads; }

// The calling thread's part of [0, n) in units of `unit` elements. Called by every thread of a team.
typedef struct { size_t begin, end; } Range;
static Range my_part(size_t n, size_t unit) {
  size_t units = (n + unit - 1) / unit, thread = (size_t)omp_get_thread_num(), threads = (size_t)omp_get_num_threads();
  return (Range){MIN(units * thread / threads * unit, n), MIN(units * (thread + 1) / threads * unit, n)};
}
enum { LINE = 64 };   // floats in a unit: a thread's elements begin at a multiple of 64, so no two threads write one cache line

static float first_lane(vec a) {
  float lane[LANES];
  vec_store(lane, a);
  return lane[0];
}

// ---- embedding ----

static void cpu_embedding_forward(Device *d, real *out, const int32_t *ids, const real *wte, const real *wpe, size_t B, size_t T,
                                  size_t C, size_t position) {
  #pragma omp parallel num_threads(team(d, B * T * C))
  {
    cpu_flush_denormals();
    Range rows = my_part(B * T, 1);
    for (size_t r = rows.begin; r < rows.end; r++) {
      stored *row = reals(out) + r * C;
      const stored *token = const_reals(wte) + (size_t)ids[r] * C;
      if (!wpe) { memcpy(row, token, C * sizeof *row); continue; }
      const stored *place = const_reals(wpe) + (position + r % T) * C;
      const stored *next = const_reals(wte) + (size_t)ids[MIN(r + 1, rows.end - 1)] * C;   // anywhere in memory: asked for ahead
      for (size_t c = 0; c < C; c += LANES) {
        __builtin_prefetch(next + c);
        vec_store_row(row + c, vec_add(vec_load_row(token + c, C - c), vec_load_row(place + c, C - c)), C - c);
      }
    }
  }
}

// out[begin, end) += x[begin, end)
static void add_range(float *out, const stored *x, size_t begin, size_t end) {
  for (size_t c = begin; c < end; c += LANES)
    vec_store_row(out + c, vec_add(vec_load_row(out + c, end - c), vec_load_row(x + c, end - c)), end - c);
}

// Each thread walks over all rows in order and adds its own columns.
static void cpu_embedding_backward(Device *d, acc *dwte, acc *dwpe, const real *dout, const int32_t *ids, size_t B, size_t T,
                                   size_t C, size_t V) {
  #pragma omp parallel num_threads(team(d, B * T * C))
  {
    cpu_flush_denormals();
    Range columns = my_part(C, LANES);
    for (size_t r = 0; r < B * T && columns.begin < columns.end; r++) {
      const stored *row = const_reals(dout) + r * C;
      if (dwte) add_range(acc_floats(dwte) + (size_t)ids[r] * C, row, columns.begin, columns.end);
      if (dwpe) add_range(acc_floats(dwpe) + r % T * C, row, columns.begin, columns.end);
    }
  }
}

// ---- dropout ----

static void cpu_dropout(Device *d, real *x, size_t rows, size_t width, const Dropout *dropout) {
  if (dropout->p == 0) return;
  const uint32_t threshold = (uint32_t)(dropout->p * 0x1p32);
  const vec factor = vec_set((float)(1 / (1 - dropout->p)));
  const uint64_t first = dropout->row0 * width;   // element number of x[0]
  #pragma omp parallel num_threads(team(d, rows * width))
  {
    cpu_flush_denormals();
    enum { CHUNK = 256 };
    uint32_t word[CHUNK + 4 + LANES + PHILOX_ROOM];
    Range mine = my_part(rows * width, LINE);
    for (size_t begin = mine.begin; begin < mine.end; begin += CHUNK) {
      size_t n = MIN((size_t)CHUNK, mine.end - begin), skip = (first + begin) % 4;   // words come in blocks of four
      philox_words(word, dropout->seed, dropout->step, dropout->site, first + begin - skip, skip + round_up(n, LANES));
      stored *p = reals(x) + begin;
      for (size_t i = 0; i < n; i += LANES)
        vec_store_row(p + i, vec_keep(vec_mul(vec_load_row(p + i, n - i), factor), word + skip + i, threshold), n - i);
    }
  }
}

// ---- norms ----

// row = x + delta (delta NULL: x is returned and nothing written); *sum = sum of the row
static const stored *add_residual(stored *residual, const stored *x, const stored *delta, size_t C, vec *sum) {
  vec total = vec_zero();
  for (size_t c = 0; c < C; c += LANES) {
    vec v = vec_load_row(x + c, C - c);
    if (delta) {
      v = vec_as_stored(residual, vec_add(v, vec_load_row(delta + c, C - c)));
      vec_store_row(residual + c, v, C - c);
    }
    total = vec_add(total, v);
  }
  *sum = total;
  return delta ? residual : x;
}

static void cpu_layernorm_forward(Device *d, real *residual, real *out, acc *mean, acc *rstd, const real *x, const real *delta,
                                  const real *weight, const real *bias, size_t rows, size_t C, double eps) {
  #pragma omp parallel num_threads(team(d, rows * C))
  {
    cpu_flush_denormals();
    const stored *w = const_reals(weight), *b = const_reals(bias);
    Range mine = my_part(rows, 1);
    for (size_t r = mine.begin; r < mine.end; r++) {
      vec sum, squares = vec_zero();
      const stored *row = add_residual(delta ? reals(residual) + r * C : NULL, const_reals(x) + r * C,
                                      delta ? const_reals(delta) + r * C : NULL, C, &sum);
      const vec average = vec_set(vec_sum(sum) / (float)C);
      for (size_t c = 0; c < C; c += LANES) {
        vec centered = vec_cut(vec_sub(vec_load_row(row + c, C - c), average), C - c);
        squares = vec_fma(centered, centered, squares);
      }
      const float scale = 1.0f / sqrtf(vec_sum(squares) / (float)C + (float)eps);
      stored *o = reals(out) + r * C;
      for (size_t c = 0; c < C; c += LANES) {
        vec norm = vec_mul(vec_sub(vec_load_row(row + c, C - c), average), vec_set(scale));
        vec shift = b ? vec_load_row(b + c, C - c) : vec_zero();
        vec_store_row(o + c, vec_fma(norm, vec_load_row(w + c, C - c), shift), C - c);
      }
      acc_floats(mean)[r] = vec_sum(sum) / (float)C;
      acc_floats(rstd)[r] = scale;
    }
  }
}

enum { NORM_BLOCK = 32, NORM_VECS = 2 * VEC_TILE_VECS };   // rows that stay in a level-2 cache; vectors of columns whose sums stay in registers

// norm = (x - mean) * rstd of 16 elements; RMS norm has mean 0
ALWAYS_INLINE vec normalised(const stored *x, size_t n, float mean, float rstd) {
  return vec_mul(vec_sub(vec_load_row(x, n), vec_set(mean)), vec_set(rstd));
}

// One row of dx: dresidual + rstd * (dnorm - average(dnorm) - norm * average(dnorm * norm)), dnorm = dout * weight.
// centered false (RMS norm): without average(dnorm).
static void norm_backward_row(stored *dx, const stored *dout, const stored *dresidual, const stored *x, const stored *w, float mean,
                              float rstd, size_t C, bool centered) {
  vec sum_dnorm = vec_zero(), sum_dnorm_norm = vec_zero();
  for (size_t c = 0; c < C; c += LANES) {
    size_t n = C - c;
    vec dnorm = vec_mul(vec_load_row(dout + c, n), vec_load_row(w + c, n));   // 0 beyond the row, because both are
    sum_dnorm = vec_add(sum_dnorm, dnorm);
    sum_dnorm_norm = vec_fma(dnorm, vec_cut(normalised(x + c, n, mean, rstd), n), sum_dnorm_norm);
  }
  const vec average = vec_set(centered ? vec_sum(sum_dnorm) / (float)C : 0.0f), average_norm = vec_set(vec_sum(sum_dnorm_norm) / (float)C);
  for (size_t c = 0; c < C; c += LANES) {
    size_t n = C - c;
    vec dnorm = vec_mul(vec_load_row(dout + c, n), vec_load_row(w + c, n));
    vec through = vec_fnma(normalised(x + c, n, mean, rstd), average_norm, vec_sub(dnorm, average));
    vec start = dresidual ? vec_load_row(dresidual + c, n) : vec_zero();
    vec_store_row(dx + c, vec_fma(vec_set(rstd), through, start), n);
  }
}

// dweight, dbias (NULL: none) += over the rows in order, for n columns from c on, whose sums stay in registers meanwhile
ALWAYS_INLINE void norm_backward_columns(const int vecs, float *dweight, float *dbias, const stored *dout, const stored *x, const float *mean,
                                         const float *rstd, Range rows, size_t C, size_t c, size_t n) {
  vec weight[NORM_VECS], bias[NORM_VECS];
  UNROLL for (int j = 0; j < vecs; j++) {
    weight[j] = vec_load_row(dweight + c + j * LANES, n - j * LANES);
    bias[j] = dbias ? vec_load_row(dbias + c + j * LANES, n - j * LANES) : vec_zero();
  }
  for (size_t r = rows.begin; r < rows.end; r++)
    UNROLL for (int j = 0; j < vecs; j++) {
      const size_t at = r * C + c + j * LANES;
      vec dy = vec_load_row(dout + at, n - j * LANES);
      weight[j] = vec_fma(dy, normalised(x + at, n - j * LANES, mean ? mean[r] : 0.0f, rstd[r]), weight[j]);
      bias[j] = vec_add(bias[j], dy);
    }
  UNROLL for (int j = 0; j < vecs; j++) {
    vec_store_row(dweight + c + j * LANES, weight[j], n - j * LANES);
    if (dbias) vec_store_row(dbias + c + j * LANES, bias[j], n - j * LANES);
  }
}

// Both norms: mean NULL is RMS norm. Threads divide rows for dx and columns for the sums over rows, block by block, so that the second half finds
// near what the first has read. The two write different outputs: no barrier.
static void norm_backward(Device *d, stored *dx, float *dweight, float *dbias, const stored *dout, const stored *dresidual,
                          const stored *x, const stored *w, const float *mean, const float *rstd, size_t rows, size_t C) {
  #pragma omp parallel num_threads(team(d, rows * C))
  {
    cpu_flush_denormals();
    const Range columns = my_part(C, LANES);
    for (size_t first = 0; first < rows; first += NORM_BLOCK) {
      const Range block = {first, MIN(first + NORM_BLOCK, rows)}, mine = my_part(block.end - first, 1);
      for (size_t r = first + mine.begin; r < first + mine.end; r++)
        norm_backward_row(dx + r * C, dout + r * C, dresidual ? dresidual + r * C : NULL, x + r * C, w, mean ? mean[r] : 0.0f, rstd[r], C, mean != NULL);
      size_t c = columns.begin;
      for (; c + NORM_VECS * LANES <= columns.end; c += NORM_VECS * LANES)
        norm_backward_columns(NORM_VECS, dweight, dbias, dout, x, mean, rstd, block, C, c, NORM_VECS * LANES);
      for (; c < columns.end; c += LANES) norm_backward_columns(1, dweight, dbias, dout, x, mean, rstd, block, C, c, columns.end - c);
    }
  }
}

static void cpu_layernorm_backward(Device *d, real *dx, acc *dweight, acc *dbias, const real *dout, const real *dresidual,
                                   const real *x, const real *weight, const acc *mean, const acc *rstd, size_t rows, size_t C) {
  norm_backward(d, reals(dx), acc_floats(dweight), acc_floats(dbias), const_reals(dout), const_reals(dresidual), const_reals(x),
                const_reals(weight), const_acc_floats(mean), const_acc_floats(rstd), rows, C);
}

static void cpu_rmsnorm_forward(Device *d, real *residual, real *out, acc *rstd, const real *x, const real *delta,
                                const real *weight, size_t rows, size_t C, double eps) {
  #pragma omp parallel num_threads(team(d, rows * C))
  {
    cpu_flush_denormals();
    const stored *w = const_reals(weight);
    Range mine = my_part(rows, 1);
    for (size_t r = mine.begin; r < mine.end; r++) {
      vec sum, squares = vec_zero();
      const stored *row = add_residual(delta ? reals(residual) + r * C : NULL, const_reals(x) + r * C,
                                      delta ? const_reals(delta) + r * C : NULL, C, &sum);
      for (size_t c = 0; c < C; c += LANES) {
        vec v = vec_load_row(row + c, C - c);
        squares = vec_fma(v, v, squares);
      }
      const float scale = 1.0f / sqrtf(vec_sum(squares) / (float)C + (float)eps);
      stored *o = reals(out) + r * C;
      for (size_t c = 0; c < C; c += LANES)
        vec_store_row(o + c, vec_mul(vec_mul(vec_load_row(row + c, C - c), vec_set(scale)), vec_load_row(w + c, C - c)), C - c);
      acc_floats(rstd)[r] = scale;
    }
  }
}

static void cpu_rmsnorm_backward(Device *d, real *dx, acc *dweight, const real *dout, const real *dresidual, const real *x,
                                 const real *weight, const acc *rstd, size_t rows, size_t C) {
  norm_backward(d, reals(dx), acc_floats(dweight), NULL, const_reals(dout), const_reals(dresidual), const_reals(x),
                const_reals(weight), NULL, const_acc_floats(rstd), rows, C);
}

static void cpu_residual_forward(Device *d, real *out, const real *x, const real *delta, size_t n) {
  #pragma omp parallel num_threads(team(d, n))
  {
    cpu_flush_denormals();
    Range mine = my_part(n, LINE);
    for (size_t i = mine.begin; i < mine.end; i += LANES) {
      vec sum = vec_add(vec_load_row(const_reals(x) + i, mine.end - i), vec_load_row(const_reals(delta) + i, mine.end - i));
      vec_store_row(reals(out) + i, sum, mine.end - i);
    }
  }
}

// ---- activations ----

// e^(-2u) with u = sqrt(2/pi) (x + 0.044715 x^3). Because (1 + tanh u) / 2 = 1 / (1 + e^(-2u)), gelu(x) = x / (1 + e^(-2u)), which
// loses nothing to cancellation. x is held within +-9.9, where e^(-2u) is still a normal number and gelu(x) is x or 0 in fp32.
static const float GELU_LINEAR = 1.5957691216f, GELU_CUBIC = 0.071354816273f;   // 2 sqrt(2/pi), and that times 0.044715
ALWAYS_INLINE vec gelu_held(vec x) { return vec_max(vec_set(-9.9f), vec_min(vec_set(9.9f), x)); }
ALWAYS_INLINE vec gelu_exp(vec held) {
  vec slope = vec_fma(vec_mul(held, held), vec_set(-GELU_CUBIC), vec_set(-GELU_LINEAR));
  return vec_exp(vec_mul(held, slope));
}
ALWAYS_INLINE vec gelu(vec x) { return vec_div(x, vec_add(vec_set(1.0f), gelu_exp(gelu_held(x)))); }
// With s = 1 / (1 + e), e = e^(-2u): gelu' = s + x s (1-s) (2u)', and 1 - s = e s
ALWAYS_INLINE vec gelu_derivative(vec x) {
  vec held = gelu_held(x), e = gelu_exp(held), s = vec_div(vec_set(1.0f), vec_add(vec_set(1.0f), e));
  vec inner = vec_fma(vec_mul(held, held), vec_set(3.0f * GELU_CUBIC), vec_set(GELU_LINEAR));
  return vec_fma(vec_mul(held, inner), vec_mul(vec_mul(e, s), s), s);   // e s <= 1 first: s s alone would underflow
}

// e^-x, held below 2^126 so that 1 - s = e s stays finite in the derivative
ALWAYS_INLINE vec silu_exp(vec x) { return vec_exp(vec_min(vec_set(87.0f), vec_sub(vec_zero(), x))); }
ALWAYS_INLINE vec silu(vec x) { return vec_div(x, vec_add(vec_set(1.0f), silu_exp(x))); }
// silu' = s (1 + x (1 - s)), 1 - s = e s
ALWAYS_INLINE vec silu_derivative(vec x) {
  vec e = silu_exp(x), s = vec_div(vec_set(1.0f), vec_add(vec_set(1.0f), e));
  return vec_fma(vec_mul(s, x), vec_mul(e, s), s);
}

static void gelu_range(stored *post, const stored *pre, size_t n) {
  for (size_t i = 0; i < n; i += LANES) vec_store_row(post + i, gelu(vec_load_row(pre + i, n - i)), n - i);
}

static void swiglu_row(stored *post, const stored *pre, size_t half) {
  for (size_t j = 0; j < half; j += LANES)
    vec_store_row(post + j, vec_mul(silu(vec_load_row(pre + j, half - j)), vec_load_row(pre + half + j, half - j)), half - j);
}

static void cpu_activation_forward(Device *d, real *post, const real *pre, size_t rows, size_t width, Activation activation) {
  #pragma omp parallel num_threads(team(d, rows * width))
  {
    cpu_flush_denormals();
    stored *y = reals(post);
    const stored *x = const_reals(pre);
    Range elements = my_part(rows * width, LINE), mine = my_part(rows, 1);
    switch (activation) {
      case ACTIVATION_NONE: memcpy(y + elements.begin, x + elements.begin, (elements.end - elements.begin) * sizeof *y); break;
      case ACTIVATION_GELU: gelu_range(y + elements.begin, x + elements.begin, elements.end - elements.begin); break;
      case ACTIVATION_SWIGLU:
        for (size_t r = mine.begin; r < mine.end; r++) swiglu_row(y + r * (width / 2), x + r * width, width / 2);
        break;
    }
  }
}

static void gelu_backward_range(stored *dpre, const stored *dpost, const stored *pre, size_t n) {
  for (size_t i = 0; i < n; i += LANES)
    vec_store_row(dpre + i, vec_mul(vec_load_row(dpost + i, n - i), gelu_derivative(vec_load_row(pre + i, n - i))), n - i);
}

static void swiglu_backward_row(stored *dpre, const stored *dpost, const stored *pre, size_t half) {
  for (size_t j = 0; j < half; j += LANES) {
    size_t n = half - j;
    vec gate = vec_load_row(pre + j, n), up = vec_load_row(pre + half + j, n), dy = vec_load_row(dpost + j, n);
    vec_store_row(dpre + j, vec_mul(vec_mul(dy, silu_derivative(gate)), up), n);
    vec_store_row(dpre + half + j, vec_mul(dy, silu(gate)), n);
  }
}

static void cpu_activation_backward(Device *d, real *dpre, const real *dpost, const real *pre, size_t rows, size_t width,
                                    Activation activation) {
  #pragma omp parallel num_threads(team(d, rows * width))
  {
    cpu_flush_denormals();
    stored *dx = reals(dpre);
    const stored *dy = const_reals(dpost), *x = const_reals(pre);
    Range elements = my_part(rows * width, LINE), mine = my_part(rows, 1);
    size_t begin = elements.begin, n = elements.end - elements.begin;
    switch (activation) {
      case ACTIVATION_NONE: memmove(dx + begin, dy + begin, n * sizeof *dx); break;
      case ACTIVATION_GELU: gelu_backward_range(dx + begin, dy + begin, x + begin, n); break;
      case ACTIVATION_SWIGLU:
        for (size_t r = mine.begin; r < mine.end; r++) swiglu_backward_row(dx + r * width, dy + r * (width / 2), x + r * width, width / 2);
        break;
    }
  }
}

// ---- matrix products: cpu_gemm.c does them; here are activations and the gradient of the bias ----

typedef struct { stored *post; const stored *pre; size_t OC; } GeluBlock;
// pre and post may be the same array: an element is read before it is written
static void gelu_block(const void *arg, size_t row0, size_t row1, size_t col0, size_t col1) {
  const GeluBlock *g = arg;
  for (size_t r = row0; r < row1; r++) gelu_range(g->post + r * g->OC + col0, g->pre + r * g->OC + col0, col1 - col0);
}

// SwiGLU needs two distant columns of pre for each one of post, so it follows the product, a few rows at a time.
static void linear_swiglu(Device *d, stored *pre, stored *post, const stored *x, const stored *weight, const stored *bias, size_t rows, size_t IC, size_t OC) {
  const size_t most = MAX((size_t)1, MIN(rows, MAX((size_t)64, ((size_t)1 << 20) / MAX(OC, (size_t)1))));
  for (size_t first = 0; first < rows; first += most) {
    size_t n = MIN(most, rows - first);
    stored *block = pre ? pre + first * OC : cpu_scratch(cpu_state(d), CPU_SCRATCH_OPS, n * OC * sizeof(stored));
    CPU_NAME(gemm_forward)(cpu_state(d), block, x + first * IC, weight, bias, n, IC, OC, NULL);
    cpu_activation_forward(d, (real *)(post + first * (OC / 2)), (const real *)block, n, OC, ACTIVATION_SWIGLU);
  }
}

static size_t cpu_linear_scratch(const Device *d, size_t rows, size_t IC, size_t OC) { return CPU_NAME(gemm_scratch)(cpu_state(d), rows, IC, OC); }

#ifdef CPU_TILES
static size_t cpu_weight_copies(const Device *d, size_t OC, size_t IC, WantGradient gradient) { return CPU_NAME(gemm_copies)(OC, IC, gradient); }
#endif

static void cpu_linear_forward(Device *d, real *pre, real *post, const real *x, const real *weight, const real *bias, size_t rows,
                               size_t IC, size_t OC, Activation activation) {
  const stored *in = const_reals(x), *w = const_reals(weight), *b = const_reals(bias);
  stored *product = pre || activation == ACTIVATION_NONE ? reals(pre) : reals(post);
  GeluBlock block = {reals(post), product, OC};
  CpuEpilogue epilogue = {activation == ACTIVATION_GELU ? gelu_block : NULL, &block};
  if (activation == ACTIVATION_SWIGLU) linear_swiglu(d, reals(pre), reals(post), in, w, b, rows, IC, OC);
  else CPU_NAME(gemm_forward)(cpu_state(d), product, in, w, b, rows, IC, OC, &epilogue);
}

static void cpu_linear_backward_input(Device *d, real *dx, const real *dout, const real *weight, size_t rows, size_t IC, size_t OC) {
  CPU_NAME(gemm_backward_input)(cpu_state(d), reals(dx), const_reals(dout), const_reals(weight), rows, IC, OC);
}

static void cpu_linear_backward_weight(Device *d, acc *dweight, acc *dbias, const real *dout, const real *x, size_t rows, size_t IC, size_t OC) {
  CPU_NAME(gemm_backward_weight)(cpu_state(d), acc_floats(dweight), const_reals(dout), const_reals(x), rows, IC, OC);
  if (!dbias) return;
  #pragma omp parallel num_threads(team(d, rows * OC))
  {
    cpu_flush_denormals();
    Range columns = my_part(OC, LANES);
    for (size_t r = 0; r < rows; r++) add_range(acc_floats(dbias), const_reals(dout) + r * OC, columns.begin, columns.end);
  }
}

// ---- rotary positions ----

static void cpu_rope_table(Device *d, acc *table, size_t context, size_t HS, double theta) {
  #pragma omp parallel num_threads(team(d, context * HS * 16))
  {
    cpu_flush_denormals();
    Range mine = my_part(context, 1);
    for (size_t p = mine.begin; p < mine.end; p++) {
      for (size_t i = 0; i < HS / 2; i++) {
        double angle = (double)p * det_pow(theta, -2.0 * (double)i / (double)HS);
        acc_floats(table)[(p * (HS / 2) + i) * 2] = (float)det_cos(angle);
        acc_floats(table)[(p * (HS / 2) + i) * 2 + 1] = (float)det_sin(angle);
      }
    }
  }
}

// The pairs (head[i], head[i + half]) of one head; angles: cos and sin in turn
static void rotate_head(stored *head, const float *angles, size_t half, float direction) {
  for (size_t i = 0; i < half; i += LANES) {
    size_t n = half - i;
    vec cos, sin;
    if (n >= LANES) vec_load_pairs(angles + 2 * i, &cos, &sin);
    else {
      float last[2 * LANES] = {0};
      memcpy(last, angles + 2 * i, 2 * n * sizeof(float));
      vec_load_pairs(last, &cos, &sin);
    }
    sin = vec_mul(sin, vec_set(direction));
    vec first = vec_load_row(head + i, n), second = vec_load_row(head + half + i, n);
    vec_store_row(head + i, vec_fnma(second, sin, vec_mul(first, cos)), n);
    vec_store_row(head + half + i, vec_fma(second, cos, vec_mul(first, sin)), n);
  }
}

static void cpu_rope(Device *d, real *x, const acc *table, size_t B, size_t T, size_t position, size_t heads, size_t HS, size_t stride,
                     int direction) {
  #pragma omp parallel num_threads(team(d, B * T * heads * HS))
  {
    cpu_flush_denormals();
    Range rows = my_part(B * T, 1);
    for (size_t r = rows.begin; r < rows.end; r++)
      for (size_t h = 0; h < heads; h++)
        rotate_head(reals(x) + r * stride + h * HS, const_acc_floats(table) + (position + r % T) * (HS / 2 * 2), HS / 2, (float)direction);
  }
}

static void cpu_copy_rows(Device *d, real *dst, size_t dst_stride, const real *src, size_t src_stride, size_t rows, size_t width) {
  #pragma omp parallel num_threads(team(d, rows * width))
  {
    Range mine = my_part(rows, 1);
    for (size_t r = mine.begin; r < mine.end; r++) memcpy(reals(dst) + r * dst_stride, const_reals(src) + r * src_stride, width * sizeof(stored));
  }
}

// ---- classifier ----

// In float the exponentials of the sum are kept in the row where the gradient is wanted: there is one exp for each logit, not two. In
// bf16 they would be rounded twice, so they are computed again.
static void crossentropy_row(stored *row, float *loss, int32_t target, size_t V, size_t stride, float scale, WantGradient gradient) {
  if (target == IGNORED_TARGET) {
    *loss = 0;
    if (gradient == WITH_GRADIENT) memset(row, 0, stride * sizeof *row);
    return;
  }
  vec largest = vec_set(-INFINITY), sum = vec_zero();
  for (size_t j = 0; j < V; j += LANES) {
    vec v = vec_load_row(row + j, V - j);
    largest = vec_max(largest, V - j >= LANES ? v : vec_head(v, V - j, largest));
  }
  const float max = vec_largest(largest), logit = number_of(row[target]);
  const bool keeps = !STORES_BF16 && gradient == WITH_GRADIENT;
  for (size_t j = 0; j < V; j += LANES) {
    vec e = vec_cut(vec_exp(vec_sub(vec_load_row(row + j, V - j), vec_set(max))), V - j);
    __builtin_prefetch(row + stride + j);   // this loop computes, the next row's first one waits for memory
    sum = vec_add(sum, e);
    if (keeps) vec_store_row(row + j, e, V - j);
  }
  const float total = vec_sum(sum);
  *loss = (max - logit) + first_lane(vec_log(vec_set(total)));
  if (gradient == WITHOUT_GRADIENT) return;
  const vec factor = vec_set(scale / total);
  const float correct = first_lane(vec_mul(vec_exp(vec_set(logit - max)), factor)) - scale;   // before the row is written over
  for (size_t j = 0; j < V; j += LANES) {
    vec e = vec_load_row(row + j, V - j);
    if (!keeps) e = vec_exp(vec_sub(e, vec_set(max)));
    vec_store_row(row + j, vec_mul(e, factor), V - j);
  }
  vec_store_row(row + target, vec_set(correct), 1);
  memset(row + V, 0, (stride - V) * sizeof *row);
}

static void cpu_crossentropy(Device *d, real *logits, acc *loss, const int32_t *targets, size_t rows, size_t V, size_t stride,
                             double scale, WantGradient gradient) {
  #pragma omp parallel num_threads(team(d, rows * V))
  {
    cpu_flush_denormals();
    Range mine = my_part(rows, 1);
    for (size_t r = mine.begin; r < mine.end; r++)
      crossentropy_row(reals(logits) + r * stride, acc_floats(loss) + r, targets[r], V, stride, (float)scale, gradient);
  }
}

// ---- the step's scalars and the optimizer ----

static void cpu_add_rows(Device *d, acc *out, const acc *x, const int32_t *ids, size_t n, size_t C, size_t V) {
  #pragma omp parallel num_threads(team(d, n * C))
  {
    cpu_flush_denormals();
    Range mine = my_part(n, 1);
    for (size_t i = mine.begin; i < mine.end; i++) {
      float *row = acc_floats(out) + (ids ? (size_t)ids[i] : i) * C;
      for (size_t c = 0; c < C; c += LANES)
        vec_store_row(row + c, vec_add(vec_load_row(row + c, C - c), vec_load_row(const_acc_floats(x) + i * C + c, C - c)), C - c);
    }
  }
}

static void cpu_sum(Device *d, scalar *out, const acc *x, size_t n) {
  double *sum = (double *)out;
  for (size_t i = 0; i < n; i++) *sum += (double)const_acc_floats(x)[i];
}

enum { SUMSQ_BLOCK = 4096, SUMSQ_AHEAD = 1024 };   // elements; hardware alone asks for too little at a time
static double sum_of_squares(const float *x, size_t n) {
  vecd sum = vecd_zero();
  for (size_t i = 0; i < n; i += LANES) {
    __builtin_prefetch(x + i + SUMSQ_AHEAD);
    sum = vecd_add_squares(sum, vec_load_row(x + i, n - i));
  }
  return vecd_sum(sum);
}

static void cpu_sumsq(Device *d, scalar *out, const acc *x, size_t n) {
  const size_t blocks = round_up(n, SUMSQ_BLOCK) / SUMSQ_BLOCK;
  double *partial = cpu_scratch(cpu_state(d), CPU_SCRATCH_OPS, blocks * sizeof(double)), *sum = (double *)out;
  #pragma omp parallel num_threads(team(d, n))
  {
    cpu_flush_denormals();
    Range mine = my_part(blocks, 1);
    for (size_t b = mine.begin; b < mine.end; b++)
      partial[b] = sum_of_squares(const_acc_floats(x) + b * SUMSQ_BLOCK, MIN((size_t)SUMSQ_BLOCK, n - b * SUMSQ_BLOCK));
  }
  for (size_t b = 0; b < blocks; b++) *sum += partial[b];
}

// The scalars of an update, rounded once.
typedef struct { float clip, beta1, rest1, beta2, rest2, unbias1, unbias2, eps, lr, decay; } AdamWScalars;

enum { ADAMW_CHUNK = 256 };   // elements whose random words are made at a time
static void adamw_chunk(const AdamWTensor *t, size_t begin, size_t end, const AdamWScalars *s, const uint32_t *word) {
  float *master = acc_floats(t->master), *m = acc_floats(t->m), *v = acc_floats(t->v);
  const float *grad = const_acc_floats(t->grad);
  stored *param = reals(t->param);
  for (size_t i = begin; i < end; i += LANES) {
    size_t n = end - i;
    vec g = vec_mul(vec_load_row(grad + i, n), vec_set(s->clip)), old = master ? vec_load_row(master + i, n) : vec_load_row(param + i, n);
    vec first = vec_fma(vec_set(s->rest1), g, vec_mul(vec_set(s->beta1), vec_load_row(m + i, n)));
    vec second = vec_fma(vec_mul(vec_set(s->rest2), g), g, vec_mul(vec_set(s->beta2), vec_load_row(v + i, n)));
    vec root = vec_add(vec_sqrt(vec_mul(second, vec_set(s->unbias2))), vec_set(s->eps));
    vec step = vec_fma(vec_set(s->decay), old, vec_div(vec_mul(first, vec_set(s->unbias1)), root));
    vec updated = vec_fnma(vec_set(s->lr), step, old);
    vec_store_row(m + i, first, n);
    vec_store_row(v + i, second, n);
    if (master) vec_store_row(master + i, updated, n);
    vec_store_row(param + i, word ? vec_round_at_random(updated, word + (i - begin)) : updated, n);
  }
}

static void adamw_range(const AdamWTensor *t, Range mine, const AdamWScalars *s, const AdamWSettings *settings) {
  if (!STORES_BF16 || t->master) { adamw_chunk(t, mine.begin, mine.end, s, NULL); return; }
  uint32_t word[ADAMW_CHUNK + PHILOX_ROOM];
  for (size_t begin = mine.begin; begin < mine.end; begin += ADAMW_CHUNK) {   // mine.begin is a multiple of LINE, and so of four
    philox_words(word, settings->seed, settings->step, t->site, begin, ADAMW_CHUNK);
    adamw_chunk(t, begin, MIN(begin + ADAMW_CHUNK, mine.end), s, word);
  }
}

static void cpu_adamw(Device *d, const AdamWTensor *tensors, size_t count, const AdamWSettings *settings, const scalar *step_stat) {
  const double *stats = (const double *)step_stat;
  const double norm = sqrt(stats[STAT_GRAD_SUMSQ]);
  if (!isfinite(stats[STAT_LOSS]) || !isfinite(norm)) return;
  if (settings->max_norm > 0 && norm > settings->max_norm) return;
  AdamWScalars scalars = {
    .clip = (float)(settings->grad_clip > 0 && norm > settings->grad_clip ? settings->grad_clip / norm : 1),
    .beta1 = (float)settings->beta1, .rest1 = (float)(1 - settings->beta1), .beta2 = (float)settings->beta2, .rest2 = (float)(1 - settings->beta2),
    .unbias1 = (float)(1 / settings->bias1), .unbias2 = (float)(1 / settings->bias2), .eps = (float)settings->eps, .lr = (float)settings->lr,
  };
  size_t elements = 0;
  for (size_t t = 0; t < count; t++) elements += tensors[t].n;
  #pragma omp parallel num_threads(team(d, elements))
  {
    cpu_flush_denormals();
    AdamWScalars mine = scalars;
    for (size_t t = 0; t < count; t++) {
      mine.decay = (float)tensors[t].weight_decay;
      adamw_range(&tensors[t], my_part(tensors[t].n, LINE), &mine, settings);
    }
  }
}

static void cpu_count_nonfinite_real(Device *d, scalar *out, const real *x, size_t n) {
  for (size_t i = 0; i < n; i++) *(double *)out += !isfinite(number_of(const_reals(x)[i]));   // whole numbers: exact
}

static void cpu_count_nonfinite_acc(Device *d, scalar *out, const acc *x, size_t n) {
  for (size_t i = 0; i < n; i++) *(double *)out += !isfinite(const_acc_floats(x)[i]);
}

// ---- the peak: the products' instruction on registers alone (tiles: cpu_gemm_amx.c) ----

#ifndef CPU_TILES
#if defined(CPU_DOTS_BF16)
enum { RATE_FLOPS = 4 * LANES };   // two multiply-adds a lane
ALWAYS_INLINE vec rate_step(vec sum, vec factor, vec term) { return _mm512_dpbf16_ps(sum, (__m512bh)factor, (__m512bh)term); }
#else
enum { RATE_FLOPS = 2 * LANES };
ALWAYS_INLINE vec rate_step(vec sum, vec factor, vec term) { return vec_fma(sum, factor, term); }
#endif

double CPU_NAME(fma_rate)(double seconds) {
  enum { SUMS = sizeof(vec) == 64 && VEC_TILE_VECS == 2 ? 16 : 5, ROUNDS = 1000 };   // enough independent sums to hide the latency
  vec sum[SUMS], factor = vec_set(0.999f), term = vec_set(0.001f);
  float lane[LANES];   // all different: of equal halves of a vector the compiler would compute one
  for (int l = 0; l < LANES; l++) lane[l] = (float)l;
  UNROLL for (int i = 0; i < SUMS; i++) sum[i] = vec_add(vec_load(lane), vec_set((float)(LANES * i)));
  const double start = seconds_now();
  double elapsed = 0, flops = 0;
  while (elapsed < seconds) {
    for (int round = 0; round < ROUNDS; round++) {
      UNROLL for (int i = 0; i < SUMS; i++) sum[i] = rate_step(sum[i], factor, term);
    }
    flops += (double)RATE_FLOPS * SUMS * ROUNDS;
    elapsed = seconds_now() - start;
  }
  vec total = vec_zero();
  UNROLL for (int i = 0; i < SUMS; i++) total = vec_add(total, sum[i]);
  volatile float used = vec_sum(total);   // so that the loop is not removed
  (void)used;
  return flops / elapsed;
}
#endif

// ---- the table ----

void CPU_NAME(ops)(Device *d) {
  d->row_group = CPU_ROW_GROUP;
  d->embedding_forward = cpu_embedding_forward;
  d->embedding_backward = cpu_embedding_backward;
  d->dropout = cpu_dropout;
  d->layernorm_forward = cpu_layernorm_forward;
  d->layernorm_backward = cpu_layernorm_backward;
  d->rmsnorm_forward = cpu_rmsnorm_forward;
  d->rmsnorm_backward = cpu_rmsnorm_backward;
  d->residual_forward = cpu_residual_forward;
  d->linear_scratch = cpu_linear_scratch;
#ifdef CPU_TILES
  d->weight_copies = cpu_weight_copies;
#endif
  d->linear_forward = cpu_linear_forward;
  d->linear_backward_input = cpu_linear_backward_input;
  d->linear_backward_weight = cpu_linear_backward_weight;
  d->activation_forward = cpu_activation_forward;
  d->activation_backward = cpu_activation_backward;
  d->rope_table = cpu_rope_table;
  d->rope = cpu_rope;
  d->copy_rows = cpu_copy_rows;
  d->crossentropy = cpu_crossentropy;
  d->add_rows = cpu_add_rows;
  d->sum = cpu_sum;
  d->sumsq = cpu_sumsq;
  d->adamw = cpu_adamw;
  d->count_nonfinite_real = cpu_count_nonfinite_real;
  d->count_nonfinite_acc = cpu_count_nonfinite_acc;
}
