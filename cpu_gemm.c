// cpu_gemm.c: owns the CPU device's matrix products: forward, gradient of the input, gradient of the weight.
//
// It promises bits: every output element is ONE chain of fused multiply-adds over k in order, which starts from what the
// output starts from (bias, zero or the stored gradient). So a result does not depend on tile, block, thread or vector
// width, and gradients may be accumulated over any cut of the rows. k is never split among threads and never padded.
//
//   forward          out (rows,OC) = bias + x weight^T     A = x         B = weight^T   k = IC
//   backward_input   dx (rows,IC)  = dout weight           A = dout      B = weight     k = OC
//   backward_weight  dweight (OC,IC) += dout^T x           A = dout^T    B = x          k = rows
//
// How it is fast (Goto & van de Geijn 2008): C (m,n) += A (m,k) B (k,n) is cut into tiles that fit in registers. What a
// tile reads should lie close together and come from a near cache, so factors are copied ("packed") into panels, which hold the
// few numbers that a tile needs for k = 0, 1, ... next to each other. One factor is STREAMED: each task packs its own
// piece into the level-2 cache of its core, uses it against all panels of the other factor, and forgets it. The other one is
// SHARED by all threads. If its rows run along k (x and dout in the first two) tiles read it where it is; if not, all
// threads together pack it first.
//
// In bf16 factors are 16 bits wide and sums are floats, rounded once, when the last k has been added. A tile's step along k is a WORD
// of 32 bits: one element, expanded when it is packed, or two of them where the processor multiplies pairs (AVX-512 BF16). Its
// instruction is two fused multiply-adds, the upper half's first (seen on AMD's Zen 5), so a chain goes k = 1, 0, 3, 2, ...; packing
// gives that order to the other sets too, so that all have the same bits. A weight's gradient, which later rows may continue, goes
// 0, 1, 2, ... as in float: there both factors are packed, and the first of two rows goes to the upper half. An odd last element has
// -0 times 0 beside it, which changes no sum.
//
// Compiled once per instruction set and storage (CPU_ISA, see cpu.h). Tests: tests/test_gemm.c; speed: dev/bench_gemm.c
#include "cpu.h"        // CPU_NAME, CpuState, cpu_scratch, the prototypes
#include "simd.h"       // vec: expanding and rounding bf16
#include "util.h"       // MIN, MAX, round_up
#include <math.h>       // fmaf
#include <string.h>     // memcpy
#if defined(__x86_64__)
#include <immintrin.h>  // AVX2, AVX-512
#endif

#define INLINE static inline __attribute__((always_inline))

// ---- the native vector of each instruction set, and the tile that fills its registers ----
// load_part and store_part touch only the first n lanes (0 <= n <= WIDTH) of memory; other lanes load as zero. load_words loads WIDTH
// words, of which n elements are there (at most all); word_fma is a step of a tile.
#define ISA_NUMBER_generic 0
#define ISA_NUMBER_avx2 1
#define ISA_NUMBER_avx512 2
#define ISA_NUMBER_generic_bf16 0
#define ISA_NUMBER_avx2_bf16 1
#define ISA_NUMBER_avx512_bf16 2
#define ISA_NUMBER_avx512bf16 2
#define ISA_NUMBER_OF(isa) ISA_NUMBER_JOIN(isa)
#define ISA_NUMBER_JOIN(isa) ISA_NUMBER_##isa

#if ISA_NUMBER_OF(CPU_ISA) == 2   // 32 registers: 24 sums, 3 of B, some of A
enum { WIDTH = 16, TILE_ROWS = 8, TILE_VECTORS = 3 };
#define EACH_HEIGHT(V, X) X(1, V) X(2, V) X(3, V) X(4, V) X(5, V) X(6, V) X(7, V) X(8, V)
#define EACH_WIDTH(X) X(1) X(2) X(3)
typedef __m512 vector;
INLINE vector load(const float *p) { return _mm512_loadu_ps(p); }
INLINE void store(float *p, vector v) { _mm512_storeu_ps(p, v); }
INLINE __mmask16 first_lanes(size_t n) { return (__mmask16)((1u << n) - 1); }
INLINE vector load_part(const float *p, size_t n) { return _mm512_maskz_loadu_ps(first_lanes(n), p); }
INLINE void store_part(float *p, vector v, size_t n) { _mm512_mask_storeu_ps(p, first_lanes(n), v); }
INLINE vector broadcast(float x) { return _mm512_set1_ps(x); }
#if defined(CPU_DOTS_BF16)
enum { WORD = 2 };   // elements of k
INLINE vector word_fma(vector a, vector b, vector c) { return _mm512_dpbf16_ps(c, (__m512bh)a, (__m512bh)b); }
INLINE vector load_words(const stored *p, size_t n) {
  return n == WORD * WIDTH ? _mm512_loadu_ps(p) : _mm512_castsi512_ps(_mm512_maskz_loadu_epi16((__mmask32)((1ull << n) - 1), p));
}
#else
enum { WORD = 1 };
INLINE vector word_fma(vector a, vector b, vector c) { return _mm512_fmadd_ps(a, b, c); }
INLINE vector load_words(const stored *p, size_t n) { return vec_load_row(p, n); }
#endif
INLINE void transpose(vector r[WIDTH]) {   // 2x2 blocks of 1, then of 2, then of 4, then of 8 lanes
  vector t[WIDTH];
  UNROLL for (int i = 0; i < 8; i++) {
    t[2 * i] = _mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]);
  }
  UNROLL for (int i = 0; i < 16; i += 4) {
    UNROLL for (int h = 0; h < 2; h++) {
      __m512d low = _mm512_castps_pd(t[i + h]), high = _mm512_castps_pd(t[i + h + 2]);
      r[i + 2 * h] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, high));
      r[i + 2 * h + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, high));
    }
  }
  UNROLL for (int i = 0; i < 4; i++) {
    t[i] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0xdd);
  }
  UNROLL for (int i = 0; i < 8; i++) {
    r[i] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0x88);
    r[i + 8] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0xdd);
  }
}

#elif ISA_NUMBER_OF(CPU_ISA) == 1   // 16 registers: 12 sums, 2 of B, 1 or 2 of A
enum { WIDTH = 8, TILE_ROWS = 6, TILE_VECTORS = 2 };
#define EACH_HEIGHT(V, X) X(1, V) X(2, V) X(3, V) X(4, V) X(5, V) X(6, V)
#define EACH_WIDTH(X) X(1) X(2)
typedef __m256 vector;
INLINE vector load(const float *p) { return _mm256_loadu_ps(p); }
INLINE void store(float *p, vector v) { _mm256_storeu_ps(p, v); }
INLINE __m256i first_lanes(size_t n) { return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)); }
INLINE vector load_part(const float *p, size_t n) { return _mm256_maskload_ps(p, first_lanes(n)); }
INLINE void store_part(float *p, vector v, size_t n) { _mm256_maskstore_ps(p, first_lanes(n), v); }
INLINE vector broadcast(float x) { return _mm256_set1_ps(x); }
enum { WORD = 1 };
INLINE vector word_fma(vector a, vector b, vector c) { return _mm256_fmadd_ps(a, b, c); }
INLINE vector load_words(const stored *p, size_t n) {
#ifdef CPU_STORES_BF16
  if (n == WIDTH) return vec_expand_half(_mm_loadu_si128((const __m128i *)p));
  return vec_load_row(p, n).low;
#else
  return n == WIDTH ? load(p) : load_part(p, n);
#endif
}
INLINE void transpose(vector r[WIDTH]) {   // 2x2 blocks of 1, then of 2, then of 4 lanes
  vector t[WIDTH];
  UNROLL for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
  }
  UNROLL for (int i = 0; i < 8; i += 4) {
    UNROLL for (int h = 0; h < 2; h++) {
      r[i + 2 * h] = _mm256_shuffle_ps(t[i + h], t[i + h + 2], 0x44);
      r[i + 2 * h + 1] = _mm256_shuffle_ps(t[i + h], t[i + h + 2], 0xee);
    }
  }
  UNROLL for (int i = 0; i < 4; i++) {
    t[i] = _mm256_permute2f128_ps(r[i], r[i + 4], 0x20);
    t[i + 4] = _mm256_permute2f128_ps(r[i], r[i + 4], 0x31);
  }
  UNROLL for (int i = 0; i < 8; i++) r[i] = t[i];
}

#else   // any processor: a compiler that knows four-lane fma turns the loops into it, otherwise libm's fmaf is called
enum { WIDTH = 4, TILE_ROWS = 4, TILE_VECTORS = 4 };
#define EACH_HEIGHT(V, X) X(1, V) X(2, V) X(3, V) X(4, V)
#define EACH_WIDTH(X) X(1) X(2) X(3) X(4)
typedef struct { float lane[WIDTH]; } vector;
INLINE vector load_part(const float *p, size_t n) { vector v = { { 0 } }; for (size_t l = 0; l < n; l++) v.lane[l] = p[l]; return v; }
INLINE void store_part(float *p, vector v, size_t n) { for (size_t l = 0; l < n; l++) p[l] = v.lane[l]; }
INLINE vector load(const float *p) { return load_part(p, WIDTH); }
INLINE void store(float *p, vector v) { store_part(p, v, WIDTH); }
INLINE vector broadcast(float x) { vector v; for (int l = 0; l < WIDTH; l++) v.lane[l] = x; return v; }
enum { WORD = 1 };
INLINE vector word_fma(vector a, vector b, vector c) { for (int l = 0; l < WIDTH; l++) c.lane[l] = fmaf(a.lane[l], b.lane[l], c.lane[l]); return c; }
INLINE vector load_words(const stored *p, size_t n) {
  vector v = { { 0 } };
  for (size_t l = 0; l < n; l++) v.lane[l] = number_of(p[l]);
  return v;
}
INLINE void transpose(vector r[WIDTH]) {
  for (int i = 0; i < WIDTH; i++)
    for (int j = 0; j < i; j++) { float t = r[i].lane[j]; r[i].lane[j] = r[j].lane[i]; r[j].lane[i] = t; }
}
#endif
enum { TILE_COLS = TILE_VECTORS * WIDTH, LINE = 16 };   // LINE: floats of a cache line
// Tiles may read words of A where they are, at any even address.
#ifdef CPU_DOTS_BF16
typedef float __attribute__((may_alias, aligned(2))) word;
#else
typedef float word;
#endif
INLINE size_t words_of(size_t k) { return (k + WORD - 1) / WORD; }

// ---- block sizes; none of them changes a bit of the result ----
enum {
  K_BLOCK = 768,                  // most words of k of one visit of a tile: 8 rows of A are then half of a level-1 cache
  STREAMED_FLOATS = 128 * 1024,   // most of a task's packed piece: half of the smallest level-2 cache of today, a megabyte
  SHARED_FLOATS = 1024 * 1024,    // the shared factor's packed piece
  PARTIAL_FLOATS = 4096 * 1024,   // most sums between blocks of k, where the result is bf16
  CHUNK = 1024,                   // outer elements of the shared factor in one piece, at least, if there are so many
  SMALLEST_BLOCK = 64,            // outer elements of the streamed factor of a task
  SMALLEST_GROUP = 8,             // panels of the shared factor of a task
  SMALLEST_TEAM_WORK = 32 * 1024, // multiply-adds; below it waking a team costs more than it saves
};

// ---- the tile: the innermost loop, where nearly all of the time is spent ----
// A panel of A is TILE_ROWS high, one of B TILE_COLS wide; only the last of a matrix may hold less.
typedef struct {
  size_t k;                // in words, here and in all that follows
  const word *a;           // A (rows,k): word (i,p) is a[i*a_row + p*a_k]
  size_t a_row, a_k;
  const float *b;          // packed panel of B (k,TILE_COLS)
  const float *start;      // (rows,cols): what the chains start from: c itself, or the bias or zeros with start_stride 0
  size_t start_stride;
  float *c;                // = (rows,cols)
  size_t c_stride;
  size_t last_lanes;       // columns in the last vector, 1..WIDTH
  const word *ahead;       // (ahead_rows,k): what will be needed soon; it is asked for while the tile is computed
  size_t ahead_rows, ahead_stride;
} Tile;

// One k: sum (rows,cols) = fma(column of A, row of B, sum).
INLINE void tile_step(const int rows, const int vectors, vector sum[TILE_ROWS][TILE_VECTORS], const word *a, size_t a_row, const float *b) {
  vector row[TILE_VECTORS];
  UNROLL for (int j = 0; j < vectors; j++) row[j] = load(b + j * WIDTH);
  const word *a4 = rows > 4 ? a + 4 * a_row : a;   // two bases and a_row times 1, 2, 3: as few registers as the addresses need
  UNROLL for (int i = 0; i < rows; i++) {
    vector factor = broadcast(i < 4 ? a[(size_t)i * a_row] : a4[(size_t)(i - 4) * a_row]);
    UNROLL for (int j = 0; j < vectors; j++) sum[i][j] = word_fma(factor, row[j], sum[i][j]);
  }
}

INLINE void tile(const int rows, const int vectors, const Tile *t) {
  vector sum[TILE_ROWS][TILE_VECTORS];
  const bool whole = t->last_lanes == WIDTH;
  UNROLL for (int i = 0; i < rows; i++) {
    UNROLL for (int j = 0; j < vectors; j++) {
      const float *p = t->start + (size_t)i * t->start_stride + j * WIDTH;
      sum[i][j] = whole || j < vectors - 1 ? load(p) : load_part(p, t->last_lanes);
    }
  }
  const word *a = t->a, *ahead = t->ahead;
  const float *b = t->b;
  const size_t a_row = t->a_row, a_k = t->a_k;
  for (size_t left = t->k; left > 0;) {
    const size_t run = MIN(left, (size_t)16);
    for (size_t r = 0; r < t->ahead_rows; r++) __builtin_prefetch(ahead + r * t->ahead_stride);
    for (size_t p = run; p > 0; p--, a += a_k, b += TILE_COLS) tile_step(rows, vectors, sum, a, a_row, b);
    ahead += 16;
    left -= run;
  }
  UNROLL for (int i = 0; i < rows; i++) {
    UNROLL for (int j = 0; j < vectors; j++) {
      float *p = t->c + (size_t)i * t->c_stride + j * WIDTH;
      if (whole || j < vectors - 1) store(p, sum[i][j]);
      else store_part(p, sum[i][j], t->last_lanes);
    }
  }
}

// One function for each height and width, so that the edges of a matrix cost no more than they are.
#define DEFINE_TILE(R, V) static void tile_##R##x##V(const Tile *t) { tile(R, V, t); }
#define DEFINE_TILES(V) EACH_HEIGHT(V, DEFINE_TILE)
#define NAME_TILE(R, V) tile_##R##x##V,
#define NAME_TILES(V) { EACH_HEIGHT(V, NAME_TILE) },
EACH_WIDTH(DEFINE_TILES)
static void (*const tiles[TILE_VECTORS][TILE_ROWS])(const Tile *) = { EACH_WIDTH(NAME_TILES) };

// ---- packing ----
// One factor of a product. "Outer" is its dimension that is not summed: m of A, n of B.
typedef enum { ALONG_K, ACROSS_K } Order;   // element (outer, k) is data[outer*stride + k], or data[k*stride + outer]
typedef struct {
  const stored *data;
  size_t stride, k;        // k: in elements
  Order order;
  bool in_order;           // words of bf16: the chain goes k = 0, 1, 2, ..., not 1, 0, 3, 2, ...
  bf16 partner;            // what stands beside an odd last element: -0 in A, 0 in B
} Factor;

// The element that word p of a chain over k elements expands, where words are single elements of bf16.
INLINE size_t turned(size_t p, size_t k) { return STORES_BF16 && WORD == 1 && (p ^ 1) < k ? p ^ 1 : p; }

// dst panel (k, TILE_COLS) = transpose of src (rows, k elements), row stride `stride`, rows <= TILE_COLS; missing rows become zeros.
static void pack_along(float *dst, const stored *src, size_t stride, size_t rows, size_t k) {
  for (size_t i0 = 0; i0 < TILE_COLS; i0 += WIDTH) {
    for (size_t p = 0; p < words_of(k); p += WIDTH) {
      vector r[WIDTH];
      const size_t left = k - p * WORD, depth = MIN((size_t)WIDTH, words_of(left));
      const stored *s = src + i0 * stride + p * WORD;
      float *d = dst + p * TILE_COLS + i0;
      if (rows == TILE_COLS && left >= WIDTH * WORD) {
        UNROLL for (size_t i = 0; i < WIDTH; i++) {
          r[i] = load_words(s + i * stride, WIDTH * WORD);
          __builtin_prefetch(s + (i + WIDTH) * stride);   // the next vectors of rows: hardware sees only short runs
        }
        transpose(r);
        UNROLL for (size_t q = 0; q < WIDTH; q++) store(d + q * TILE_COLS, r[turned(q, WIDTH)]);
      } else {
        for (size_t i = 0; i < WIDTH; i++) r[i] = i0 + i < rows ? load_words(s + i * stride, MIN(left, (size_t)(WIDTH * WORD))) : broadcast(0);
        transpose(r);
        for (size_t q = 0; q < depth; q++) store(d + q * TILE_COLS, r[turned(q, depth)]);
      }
    }
  }
}

// dst (width) = word p of outer elements [0, there); the rest stays as it is, for nobody reads what comes of it. f->data is not looked at:
// src is where they begin.
INLINE void pack_row_across(float *dst, const Factor *f, const stored *src, size_t there, size_t p, size_t k) {
#if defined(CPU_DOTS_BF16)
  const stored *one = src + 2 * p * f->stride, *two = one + f->stride;
  const bool pair = 2 * p + 1 < k;
  for (size_t i = 0; i < there; i += 16) {
    const __mmask16 some = there - i >= 16 ? 0xffff : first_lanes(there - i);
    __m512i a = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(some, one + i)), b = _mm512_set1_epi32(f->partner);
    if (pair) b = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(some, two + i));
    _mm512_mask_storeu_epi32(dst + i, some, f->in_order ? _mm512_or_si512(b, _mm512_slli_epi32(a, 16)) : _mm512_or_si512(a, _mm512_slli_epi32(b, 16)));
  }
#elif defined(CPU_STORES_BF16)
  const stored *s = src + (f->in_order ? p : turned(p, k)) * f->stride;
  for (size_t i = 0; i < there; i += LANES) vec_store_row(dst + i, vec_load_row(s + i, there - i), there - i);
#else
  memcpy(dst, src + p * f->stride, there * sizeof *dst);
  (void)k;
#endif
}

// dst: panels (k, width) = columns [0, count) of src (k elements, count); missing columns of the last stay as they are. Goes over
// all panels a few rows at a time, so that each line of the source is read once, and lines of panels are written whole.
INLINE void pack_across(float *dst, const size_t width, const Factor *f, const stored *src, size_t count, size_t k) {
  enum { ROWS = 4, ROWS_AHEAD = 8 };
  const size_t words = words_of(k), whole = count / width * width, even = words / ROWS * ROWS;
  for (size_t p = 0; p < even; p += ROWS) {
    for (size_t c = 0; c < whole; c += width) {
      UNROLL for (size_t q = p; q < p + ROWS; q++) {
        UNROLL for (size_t e = 0; e < WORD; e++) __builtin_prefetch(src + ((q + ROWS_AHEAD) * WORD + e) * f->stride + c);
        pack_row_across(dst + c * words + q * width, f, src + c, width, q, k);
      }
    }
  }
  for (size_t p = even; p < words; p++)
    for (size_t c = 0; c < whole; c += width) pack_row_across(dst + c * words + p * width, f, src + c, width, p, k);
  for (size_t p = 0; p < words && whole < count; p++) pack_row_across(dst + whole * words + p * width, f, src + whole, count - whole, p, k);
}

// dst (rows, k), row after row, of src (rows, k elements): what tiles cannot read where it is, because it is to be expanded, or odd.
static void pack_rows(float *dst, const Factor *f, const stored *src, size_t rows, size_t k) {
  const size_t words = words_of(k);
  for (size_t i = 0; i < rows; i++, src += f->stride, dst += words) {
#if defined(CPU_DOTS_BF16)
    memcpy(dst, src, k * sizeof *src);
    if (k % 2) memcpy((bf16 *)dst + k, &f->partner, sizeof(bf16));
#else
    const size_t even = k / 2 * 2;
    for (size_t p = 0; p < even; p += LANES) vec_store_row(dst + p, vec_swap_pairs(vec_load_row(src + p, even - p)), even - p);
    if (even < k) vec_store_row(dst + even, vec_load_row(src + even, 1), 1);
#endif
  }
}

// One of the two roles, and the factor that has it.
typedef struct {
  const Factor *factor;
  size_t outer;            // outer elements
  size_t width;            // of a panel
  bool direct;             // tiles read it where it is, unpacked
  bool rows;               // a panel holds rows, one behind the other, as in the matrix
} Role;

// Packs outer elements [first, first + count) and words [k0, k0 + k) into panels, width*k floats each. first is a multiple of width.
static void pack(float *dst, const Role *role, size_t first, size_t count, size_t k0, size_t k) {
  const Factor *f = role->factor;
  const size_t e0 = k0 * WORD, elements = MIN(k * WORD, f->k - e0), width = role->width;
  const stored *src = f->data + (f->order == ALONG_K ? first * f->stride + e0 : e0 * f->stride + first);
  if (role->rows) pack_rows(dst, f, src, count, elements);
  else if (f->order == ALONG_K)   // only B is ever packed so
    for (size_t i = 0; i < count; i += width) pack_along(dst + i * k, src + i * f->stride, f->stride, MIN(width, count - i), elements);
  else if (width == TILE_ROWS) pack_across(dst, TILE_ROWS, f, src, count, elements);
  else pack_across(dst, TILE_COLS, f, src, count, elements);
}

// ---- a product: how it is cut, and who computes what ----
typedef struct {
  size_t m, n, k;          // k in words
  Factor a, b;             // a: (m,k); b: (n,k)
  float *c;                // (m,n); NULL: rounded gets the result
  stored *rounded;         // (m,n), where storage is bf16
  float *partial;          // (chunk,n), sums between blocks of k that are not in c yet
  size_t c_stride;
  const stored *bias;      // (n) or NULL: the chains start from it
  bool accumulate;         // the chains start from c; without it and without a bias they start from 0
  const CpuEpilogue *epilogue;
} Product;

// Cuts. None of them changes a bit of the result.
typedef struct {
  Role streamed, shared;
  bool stream_a;           // A is streamed and B shared, or the other way round
  size_t k_block;          // k of one visit of a tile
  size_t k_pass;           // k of the shared factor that is used, and packed, at a time; a multiple of k_block
  size_t chunk;            // its outer elements that are used, and packed, at a time; a multiple of its panel's width
  size_t block;            // outer elements of the streamed factor of one task; a multiple of its panel's width
  size_t groups;           // tasks into which the panels of a chunk are divided, for each block
  size_t shared_floats;    // of the shared factor's packed piece; 0: it is read where it is
  size_t streamed_floats;  // of a task's packed piece
  size_t partial_floats;   // of sums between blocks of k
  bool one_pass;           // the shared factor is packed once, and as a whole
} Plan;

// Where the packed pieces stand: plan_floats() of them, one behind the other.
typedef struct {
  float *shared[2];        // used in turn, so that one barrier for each pass is enough
  float *streamed;         // streamed_floats for each thread
} Pieces;

// Panels, packed or where they are: word (i,p) of the panel of outer elements s, s+1, ... is data[s*next + i*outer + p*k].
typedef struct { const word *data; size_t next, outer, k; } View;

static Plan make_plan(const Product *g, const CpuState *state) {
  Plan plan;
  const bool along = g->a.order == ALONG_K, direct = along && (!STORES_BF16 || (WORD == 2 && g->a.k % 2 == 0));
  const Role a = { &g->a, g->m, TILE_ROWS, direct, along && !direct }, b = { &g->b, g->n, TILE_COLS, false, false };
  plan.stream_a = !along && g->m >= g->n;
  plan.streamed = plan.stream_a ? a : b;
  plan.shared = plan.stream_a ? b : a;
  const size_t width = plan.streamed.width, shared_width = plan.shared.width;
  plan.k_block = even_part(g->k, K_BLOCK, WIDTH);
  const bool in_parts = !g->c && g->k > plan.k_block;
  size_t most = MAX((size_t)CHUNK, SHARED_FLOATS / round_up(g->k, plan.k_block) / shared_width * shared_width);
  if (in_parts) most = MIN(most, MAX(PARTIAL_FLOATS / g->n, (size_t)1));
  plan.chunk = even_part(plan.shared.outer, most, shared_width);
  plan.partial_floats = in_parts ? round_up(MIN(plan.chunk, g->m) * g->n, LINE) : 0;
  plan.k_pass = MAX(SHARED_FLOATS / (plan.chunk * plan.k_block), (size_t)1) * plan.k_block;

  // Four tasks for each thread where the shape allows it, so that a thread which the system holds up does not hold up all.
  const size_t tasks = 4 * (size_t)state->threads;
  const size_t largest = MAX(STREAMED_FLOATS / plan.k_block, width), smallest = round_up(SMALLEST_BLOCK, width);
  plan.block = even_part(plan.streamed.outer, MIN(MAX(divide_up(plan.streamed.outer, tasks), smallest), largest / width * width), width);
  const size_t blocks = divide_up(plan.streamed.outer, plan.block), panels = divide_up(plan.chunk, shared_width);
  plan.groups = MIN(divide_up(tasks, blocks), MAX(panels / SMALLEST_GROUP, (size_t)1));
  plan.one_pass = plan.chunk >= plan.shared.outer && plan.k_pass >= g->k;
  plan.shared_floats = plan.shared.direct ? 0 : round_up(plan.chunk, shared_width) * MIN(plan.k_pass, g->k);
  plan.streamed_floats = round_up(plan.block * MIN(plan.k_block, g->k), LINE);
  return plan;
}

static size_t plan_floats(const Plan *plan, const CpuState *state) {
  return (plan->one_pass ? 1 : 2) * round_up(plan->shared_floats, LINE) + (size_t)state->threads * plan->streamed_floats + plan->partial_floats;
}

static const float *bias_floats(const stored *bias, size_t n, float room[TILE_COLS]) {
#ifdef CPU_STORES_BF16
  for (size_t i = 0; i < n; i += LANES) vec_store_row(room + i, vec_load_row(bias + i, n - i), n - i);
  return room;
#else
  (void)n, (void)room;
  return bias;
#endif
}

// Where the sums of the tile at (row, col) stand between blocks of k.
static float *sums_at(const Product *g, const Plan *plan, size_t row, size_t col) {
  return g->c ? g->c + row * g->c_stride + col : g->partial + row % plan->chunk * g->n + col;
}

// One tile of C at (row, col): k of it. `at` is where its k begins.
static void compute_tile(const Product *g, const Plan *plan, size_t row, size_t col, size_t at, Tile *t) {
  static const float zeros[TILE_COLS];
  float bias[TILE_COLS], sums[TILE_ROWS * TILE_COLS];
  const size_t rows = MIN((size_t)TILE_ROWS, g->m - row), cols = MIN((size_t)TILE_COLS, g->n - col);
  const size_t vectors = divide_up(cols, WIDTH), stride = g->c ? g->c_stride : g->n;
  const bool rounds = !g->c && at + t->k == g->k, stored_sums = at > 0 || g->accumulate;
  t->c = rounds ? sums : sums_at(g, plan, row, col);
  t->c_stride = rounds ? (size_t)TILE_COLS : stride;
  t->last_lanes = cols - (vectors - 1) * WIDTH;
  t->start = stored_sums ? sums_at(g, plan, row, col) : g->bias ? bias_floats(g->bias + col, cols, bias) : zeros;
  t->start_stride = stored_sums ? stride : 0;
  tiles[vectors - 1][rows - 1](t);
  if (!rounds) return;
  for (size_t i = 0; i < rows; i++)
    for (size_t j = 0; j < cols; j += LANES)
      vec_store_row(g->rounded + (row + i) * g->c_stride + col + j, vec_load_row(sums + i * TILE_COLS + j, cols - j), cols - j);
}

// Asks for the tile of C at (row, col) before it is needed.
INLINE void prefetch_tile(const Product *g, const Plan *plan, size_t row, size_t col, size_t at, size_t k) {
  if (row >= g->m || col >= g->n) return;
  const size_t rows = MIN((size_t)TILE_ROWS, g->m - row);
  if (g->c || at + k < g->k) {
    const float *c = sums_at(g, plan, row, col);
    for (size_t r = 0; r < rows; r++)
      for (size_t j = 0; j < TILE_COLS; j += 16) __builtin_prefetch(c + r * (g->c ? g->c_stride : g->n) + j, 1);
  } else {
    const stored *c = g->rounded + row * g->c_stride + col;
    for (size_t r = 0; r < rows; r++)
      for (size_t j = 0; j < TILE_COLS; j += 32) __builtin_prefetch(c + r * g->c_stride + j, 1);
  }
}

// The shared factor of one chunk and pass.
typedef struct { const float *panels; size_t first, count, k0, k; } Shared;
// What a thread has packed of the streamed factor: a next task of the same block need not pack it again.
typedef struct { float *panels; size_t block, k0; bool valid; } Held;

static View shared_view(const Plan *plan, const Shared *shared, size_t k0, size_t k) {
  const Role *role = &plan->shared;
  const size_t stride = role->factor->stride;
  if (role->direct) return (View){ (const word *)role->factor->data + (shared->first * stride / WORD + shared->k0 + k0), stride / WORD, stride / WORD, 1 };
  const word *panels = shared->panels + k0 * round_up(shared->count, role->width);
  return role->rows ? (View){ panels, k, k, 1 } : (View){ panels, k, 1, role->width };
}

static View streamed_view(const Plan *plan, Held *held, size_t block, size_t at, size_t k) {
  const Role *role = &plan->streamed;
  const size_t first = block * plan->block, count = MIN(plan->block, role->outer - first);
  if (!(held->valid && held->block == block && held->k0 == at)) {
    pack(held->panels, role, first, count, at, k);
    held->block = block, held->k0 = at, held->valid = true;
  }
  return (View){ held->panels, k, 1, role->width };
}

// One shared panel, that of outer element `here`, against the streamed panels of outer elements [first, end).
static void run_panel(const Product *g, const Plan *plan, const View *streamed, const View *shared, const word *panel, size_t here,
                      size_t first, size_t end, size_t at, size_t k) {
  const size_t width = plan->streamed.width, shared_width = plan->shared.width;
  const View *a = plan->stream_a ? streamed : shared;
  Tile t = { .k = k, .a_row = a->outer, .a_k = a->k };
  t.ahead = panel + shared_width * shared->next;   // the next panel, a few rows with each tile
  t.ahead_rows = divide_up(shared_width, divide_up(end - first, width));
  t.ahead_stride = plan->shared.direct ? shared->outer : k;   // a panel of rows is as long
  for (size_t p = first; p < end; p += width, t.ahead += t.ahead_rows * t.ahead_stride) {
    const word *mine = streamed->data + (p - first) * streamed->next;
    const bool more = p + width < end;   // the next tile: beside this one, or at the start of the next panel
    const size_t next = more ? p + width : first, next_here = more ? here : here + shared_width;
    if (plan->stream_a) {
      t.a = mine, t.b = (const float *)panel;
      prefetch_tile(g, plan, next, next_here, at, k);
      compute_tile(g, plan, p, here, at, &t);
    } else {
      t.a = panel, t.b = (const float *)mine;
      prefetch_tile(g, plan, next_here, next, at, k);
      compute_tile(g, plan, here, p, at, &t);
    }
  }
}

// One task: the streamed elements of `block` against the panels of `group`, for the k of the pass.
static void run_task(const Product *g, const Plan *plan, const Shared *shared, size_t block, size_t group, Held *held) {
  const size_t shared_width = plan->shared.width, panels = divide_up(shared->count, shared_width);
  const size_t first = block * plan->block, end = MIN(first + plan->block, plan->streamed.outer);
  const size_t s_first = panels * group / plan->groups * shared_width;
  const size_t s_end = MIN(panels * (group + 1) / plan->groups * shared_width, shared->count);
  for (size_t k0 = 0; k0 < shared->k; k0 += plan->k_block) {
    const size_t k = MIN(plan->k_block, shared->k - k0), at = shared->k0 + k0;
    const View mine = streamed_view(plan, held, block, at, k), theirs = shared_view(plan, shared, k0, k);
    for (size_t s = s_first; s < s_end; s += shared_width) {
      const size_t here = shared->first + s, here_end = MIN(here + shared_width, shared->first + s_end);
      run_panel(g, plan, &mine, &theirs, theirs.data + s * theirs.next, here, first, end, at, k);
      // only forward products have an epilogue, and they stream B: rows are `here`, columns the block's
      if (g->epilogue && g->epilogue->run && at + k == g->k) g->epilogue->run(g->epilogue->arg, here, here_end, first, end);
    }
  }
}

// Every thread of the team calls it, and leaves when all have done their tasks of the pass before: it packs a chunk's k of
// the pass into `panels`, if the factor needs it.
static Shared prepare_shared(const Product *g, const Plan *plan, float *panels, size_t first, size_t k0) {
  const Role *role = &plan->shared;
  const size_t count = MIN(plan->chunk, role->outer - first), k = MIN(plan->k_pass, g->k - k0);
  const size_t pieces = divide_up(count, role->width), k_blocks = divide_up(k, plan->k_block);
  const Shared shared = { panels, first, count, k0, k };
  if (role->direct) {
    if (first > 0 || k0 > 0) {
      #pragma omp barrier
    }
    return shared;
  }
  #pragma omp for schedule(static)
  for (size_t item = 0; item < pieces * k_blocks; item++) {
    const size_t kb = item / pieces * plan->k_block, i = item % pieces * role->width;
    const size_t depth = MIN(plan->k_block, k - kb);
    pack(panels + kb * pieces * role->width + i * depth, role, first + i, MIN(role->width, count - i), k0 + kb, depth);
  }
  return shared;
}

// Every thread of the team calls it.
static void multiply_in_team(const Product *g, const Plan *plan, const Pieces *pieces) {
  Held held = { .panels = pieces->streamed + (size_t)omp_get_thread_num() * plan->streamed_floats };
  const size_t blocks = divide_up(plan->streamed.outer, plan->block);
  int turn = 0;
  for (size_t first = 0; first < plan->shared.outer; first += plan->chunk) {
    for (size_t k0 = 0; k0 < g->k; k0 += plan->k_pass, turn ^= 1) {
      // No barrier behind the tasks: one stands at the end of the next pass's preparation. A thread reaches it when its
      // tasks of this pass are done, and the panels of this pass are written over only after it.
      const Shared shared = prepare_shared(g, plan, pieces->shared[turn], first, k0);
      #pragma omp for schedule(dynamic, 1) nowait
      for (size_t task = 0; task < blocks * plan->groups; task++)
        run_task(g, plan, &shared, task / plan->groups, task % plan->groups, &held);
    }
  }
}

static void multiply(CpuState *state, Product *g) {
  if (g->m == 0 || g->n == 0 || g->k == 0) return;
  const Plan plan = make_plan(g, state);
  const size_t shared = round_up(plan.shared_floats, LINE);
  float *scratch = cpu_scratch(state, CPU_SCRATCH_GEMM, plan_floats(&plan, state) * sizeof(float));
  g->partial = scratch;
  scratch += plan.partial_floats;
  const Pieces pieces = { { scratch, plan.one_pass ? scratch : scratch + shared }, scratch + (plan.one_pass ? 1 : 2) * shared };
  #pragma omp parallel num_threads(g->m * g->n * g->k < SMALLEST_TEAM_WORK ? 1 : state->threads)
  {
    cpu_flush_denormals();
    multiply_in_team(g, &plan, &pieces);
  }
}

enum { MINUS_ZERO = 0x8000 };   // in bf16

static Product forward_product(stored *out, const stored *x, const stored *weight, size_t rows, size_t IC, size_t OC) {
  return (Product){ .m = rows, .n = OC, .k = words_of(IC), .a = { x, IC, IC, ALONG_K, false, MINUS_ZERO }, .b = { weight, IC, IC, ALONG_K, false, 0 },
                    .c = STORES_BF16 ? NULL : (float *)out, .rounded = out, .c_stride = OC };
}

static Product input_product(stored *dx, const stored *dout, const stored *weight, size_t rows, size_t IC, size_t OC) {
  return (Product){ .m = rows, .n = IC, .k = words_of(OC), .a = { dout, OC, OC, ALONG_K, false, MINUS_ZERO }, .b = { weight, IC, OC, ACROSS_K, false, 0 },
                    .c = STORES_BF16 ? NULL : (float *)dx, .rounded = dx, .c_stride = IC };
}

static Product weight_product(float *dweight, const stored *dout, const stored *x, size_t rows, size_t IC, size_t OC) {
  return (Product){ .m = OC, .n = IC, .k = words_of(rows), .a = { dout, OC, rows, ACROSS_K, true, MINUS_ZERO }, .b = { x, IC, rows, ACROSS_K, true, 0 },
                    .c = dweight, .c_stride = IC, .accumulate = true };
}

size_t CPU_NAME(gemm_scratch)(const CpuState *state, size_t rows, size_t IC, size_t OC) {
  static stored no_output;   // which arrays there are decides what is needed
  static float no_gradient;
  const Product products[] = { forward_product(&no_output, NULL, NULL, rows, IC, OC), input_product(&no_output, NULL, NULL, rows, IC, OC),
                               weight_product(&no_gradient, NULL, NULL, rows, IC, OC) };
  size_t most = 0;
  for (size_t i = 0; i < ARRAY_LEN(products); i++) {
    if (products[i].m == 0 || products[i].n == 0 || products[i].k == 0) continue;
    const Plan plan = make_plan(&products[i], state);
    most = MAX(most, plan_floats(&plan, state));
  }
  return most * sizeof(float);
}

void CPU_NAME(gemm_forward)(CpuState *state, stored *out, const stored *x, const stored *weight, const stored *bias,
                            size_t rows, size_t IC, size_t OC, const CpuEpilogue *epilogue) {
  Product g = forward_product(out, x, weight, rows, IC, OC);
  g.bias = bias;
  g.epilogue = epilogue;
  multiply(state, &g);
}

void CPU_NAME(gemm_backward_input)(CpuState *state, stored *dx, const stored *dout, const stored *weight, size_t rows, size_t IC, size_t OC) {
  Product g = input_product(dx, dout, weight, rows, IC, OC);
  multiply(state, &g);
}

void CPU_NAME(gemm_backward_weight)(CpuState *state, float *dweight, const stored *dout, const stored *x, size_t rows, size_t IC, size_t OC) {
  Product g = weight_product(dweight, dout, x, rows, IC, OC);
  multiply(state, &g);
}
