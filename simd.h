// simd.h: owns the vector of the CPU device: 16 floats, on every processor, and the operations on it; in memory they are floats or bf16.
//
// AVX-512 holds it in one register, AVX2 in two, and plain C in an array, one loop an operation. Kernels are written once, in terms of `vec`;
// a file that includes this is compiled once per instruction set, and the compiler's own macros choose the section below.
// Every operation is correctly rounded by IEEE 754 (no reciprocal or root estimates), so all sections give the same bits.
// NaN in vec_max and vec_min: the SECOND operand is the result if either is NaN (what x86 does; the plain loop is written so).
// Denormals are flushed (cpu_flush_denormals in cpu.h). A "tail" is the first n lanes, 0 <= n <= 16: vec_load_tail reads only
// those n floats and sets the rest to zero; vec_store_tail writes only those.
// Tests: tests/test_ops.c: simd_* for the plain section against libm and rng.h; every operation for equal bits of the others.
#pragma once
#include "bf16.h"       // bf16, float_of_bf16, bf16_of_float
#include <math.h>       // fmaf, sqrtf, in the plain section
#include <stdint.h>
#include <string.h>     // memcpy

#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif
// Under a sanitizer the plain section below must not be inlined: 16 checked lanes an operation would take minutes to compile.
#ifndef __has_feature   // clang's way of asking
#define __has_feature(x) 0
#endif
#if (defined(__SANITIZE_ADDRESS__) || __has_feature(address_sanitizer)) && !defined(__AVX2__)
#define ALWAYS_INLINE static __attribute__((noinline, unused))
#else
#define ALWAYS_INLINE static inline __attribute__((always_inline))
#endif

enum { LANES = 16 };

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
// ================================================================ AVX-512: one register
#include <immintrin.h>
#define VEC_TILE_ROWS 8       // rows x vectors of a register tile in attention: 16 sums of 32 registers
#define VEC_TILE_VECS 2
typedef __m512 vec;
ALWAYS_INLINE __mmask16 vec_tail_mask(size_t n) { return (__mmask16)((1u << n) - 1); }
ALWAYS_INLINE vec vec_zero(void) { return _mm512_setzero_ps(); }
ALWAYS_INLINE vec vec_set(float x) { return _mm512_set1_ps(x); }
ALWAYS_INLINE vec vec_load(const float *p) { return _mm512_loadu_ps(p); }
ALWAYS_INLINE void vec_store(float *p, vec a) { _mm512_storeu_ps(p, a); }
ALWAYS_INLINE vec vec_load_tail(const float *p, size_t n) { return _mm512_maskz_loadu_ps(vec_tail_mask(n), p); }
ALWAYS_INLINE void vec_store_tail(float *p, vec a, size_t n) { _mm512_mask_storeu_ps(p, vec_tail_mask(n), a); }
ALWAYS_INLINE vec vec_add(vec a, vec b) { return _mm512_add_ps(a, b); }
ALWAYS_INLINE vec vec_sub(vec a, vec b) { return _mm512_sub_ps(a, b); }
ALWAYS_INLINE vec vec_mul(vec a, vec b) { return _mm512_mul_ps(a, b); }
ALWAYS_INLINE vec vec_div(vec a, vec b) { return _mm512_div_ps(a, b); }
ALWAYS_INLINE vec vec_fma(vec a, vec b, vec c) { return _mm512_fmadd_ps(a, b, c); }     // a*b + c, rounded once
ALWAYS_INLINE vec vec_fnma(vec a, vec b, vec c) { return _mm512_fnmadd_ps(a, b, c); }   // c - a*b, rounded once
ALWAYS_INLINE vec vec_sqrt(vec a) { return _mm512_sqrt_ps(a); }
ALWAYS_INLINE vec vec_max(vec a, vec b) { return _mm512_max_ps(a, b); }
ALWAYS_INLINE vec vec_min(vec a, vec b) { return _mm512_min_ps(a, b); }
// x where a < b, else y (also where a or b is NaN)
ALWAYS_INLINE vec vec_where_less(vec a, vec b, vec x, vec y) { return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), y, x); }
// the first n lanes of a, the rest of b
ALWAYS_INLINE vec vec_head(vec a, size_t n, vec b) { return _mm512_mask_blend_ps(vec_tail_mask(n), b, a); }
// lane i of *even, *odd = p[2i], p[2i+1]
ALWAYS_INLINE void vec_load_pairs(const float *p, vec *even, vec *odd) {
  const __m512i pick = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
  vec low = vec_load(p), high = vec_load(p + 16);
  *even = _mm512_permutex2var_ps(low, pick, high);
  *odd = _mm512_permutex2var_ps(low, _mm512_add_epi32(pick, _mm512_set1_epi32(1)), high);
}
// a * 2^n, where steps holds n in its lowest bits as a float 2^23 * 1.5 + n holds it; exponents stay in range
ALWAYS_INLINE vec vec_scale_exponent(vec a, vec steps) {
  return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(a), _mm512_slli_epi32(_mm512_castps_si512(steps), 23)));
}
// for a normal x > 0: x = m * 2^e, sqrt(1/2) <= m < sqrt(2) (to the last bits), e as a float
ALWAYS_INLINE vec vec_split_exponent(vec x, vec *e) {
  __m512i bits = _mm512_sub_epi32(_mm512_castps_si512(x), _mm512_set1_epi32(0x3f3504f3));   // bits of sqrt(1/2)
  *e = _mm512_cvtepi32_ps(_mm512_srai_epi32(bits, 23));
  return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_and_si512(bits, _mm512_set1_epi32(0x007fffff)), _mm512_set1_epi32(0x3f3504f3)));
}
ALWAYS_INLINE __m256 vec_fold_half(vec a, int max) {
  __m256 low = _mm512_castps512_ps256(a), high = _mm512_extractf32x8_ps(a, 1);
  return max ? _mm256_max_ps(low, high) : _mm256_add_ps(low, high);
}
// 16 rows in, 16 columns out
ALWAYS_INLINE void vec_transpose(vec r[16]) {
  __m512 t[16];
  UNROLL for (int i = 0; i < 8; i++) {
    t[2 * i] = _mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]);
  }
  UNROLL for (int i = 0; i < 4; i++) {
    r[4 * i] = _mm512_shuffle_ps(t[4 * i], t[4 * i + 2], 0x44);
    r[4 * i + 1] = _mm512_shuffle_ps(t[4 * i], t[4 * i + 2], 0xee);
    r[4 * i + 2] = _mm512_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0x44);
    r[4 * i + 3] = _mm512_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0xee);
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
// 16 doubles: for sums of squares. The square of a float is exact in double.
typedef struct { __m512d low, high; } vecd;
ALWAYS_INLINE vecd vecd_zero(void) { return (vecd){_mm512_setzero_pd(), _mm512_setzero_pd()}; }
ALWAYS_INLINE vecd vecd_add_squares(vecd s, vec a) {
  __m512d low = _mm512_cvtps_pd(_mm512_castps512_ps256(a)), high = _mm512_cvtps_pd(_mm512_extractf32x8_ps(a, 1));
  return (vecd){_mm512_add_pd(s.low, _mm512_mul_pd(low, low)), _mm512_add_pd(s.high, _mm512_mul_pd(high, high))};
}
ALWAYS_INLINE void vecd_store(double *p, vecd a) { _mm512_storeu_pd(p, a.low), _mm512_storeu_pd(p + 8, a.high); }
// Philox: 8 counters, one in the low half of each 64-bit lane; the upper halves hold anything, for a 32-bit product ignores them
enum { PHILOX_BLOCKS = 8 };
typedef __m512i philox_vec;
#define PHILOX_SET(x) _mm512_set1_epi64((long long)(uint64_t)(x))
#define PHILOX_MUL(a, b) _mm512_mul_epu32(a, b)
#define PHILOX_HIGH(a) _mm512_srli_epi64(a, 32)
#define PHILOX_XOR(a, b, c) _mm512_ternarylogic_epi64(a, b, c, 0x96)
// lanes 0, 2, 4, 6 are blocks 0..3 and lanes 1, 3, 5, 7 blocks 4..7, so that philox_store's unpacking puts words in order
ALWAYS_INLINE philox_vec philox_counters(uint64_t block) { return _mm512_add_epi64(PHILOX_SET(block), _mm512_set_epi64(7, 3, 6, 2, 5, 1, 4, 0)); }
ALWAYS_INLINE void philox_store(uint32_t out[32], philox_vec c0, philox_vec c1, philox_vec c2, philox_vec c3) {
  const __m512i low = PHILOX_SET(0xffffffffu);
  __m512i w01 = _mm512_or_si512(_mm512_and_si512(c0, low), _mm512_slli_epi64(c1, 32));
  __m512i w23 = _mm512_or_si512(_mm512_and_si512(c2, low), _mm512_slli_epi64(c3, 32));
  _mm512_storeu_si512(out, _mm512_unpacklo_epi64(w01, w23));
  _mm512_storeu_si512(out + 16, _mm512_unpackhi_epi64(w01, w23));
}
// x where word >= threshold (unsigned), else 0
ALWAYS_INLINE vec vec_keep(vec x, const uint32_t word[16], uint32_t threshold) {
  return _mm512_maskz_mov_ps(_mm512_cmpge_epu32_mask(_mm512_loadu_si512(word), _mm512_set1_epi32((int)threshold)), x);
}
// 16 numbers of bf16.h; rounding to nearest, ties to even
typedef __m256i vec_bf16;
ALWAYS_INLINE vec_bf16 vec_load_bf16(const bf16 *p) { return _mm256_loadu_si256((const __m256i *)p); }
ALWAYS_INLINE void vec_store_bf16(bf16 *p, vec_bf16 a) { _mm256_storeu_si256((__m256i *)p, a); }
ALWAYS_INLINE vec_bf16 vec_load_bf16_tail(const bf16 *p, size_t n) { return _mm256_maskz_loadu_epi16(vec_tail_mask(n), p); }
ALWAYS_INLINE void vec_store_bf16_tail(bf16 *p, vec_bf16 a, size_t n) { _mm256_mask_storeu_epi16(p, vec_tail_mask(n), a); }
ALWAYS_INLINE vec vec_expand(vec_bf16 a) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(a), 16)); }
// lane i as a word of 32 bits: low[i], and high[i] in its upper half
ALWAYS_INLINE vec vec_pair_bf16(vec_bf16 low, vec_bf16 high) {
  return _mm512_castsi512_ps(_mm512_or_si512(_mm512_cvtepu16_epi32(low), _mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16)));
}
ALWAYS_INLINE vec_bf16 vec_round(vec a) {
#ifdef __AVX512BF16__
  return (__m256i)_mm512_cvtneps_pbh(a);
#else
  __m512i bits = _mm512_castps_si512(a), half = _mm512_srli_epi32(bits, 16), one = _mm512_set1_epi32(1);
  __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(_mm512_set1_epi32(0x7fff), _mm512_and_si512(half, one))), 16);
  return _mm512_cvtepi32_epi16(_mm512_mask_or_epi32(rounded, _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q), half, _mm512_set1_epi32(0x40)));
#endif
}
ALWAYS_INLINE vec vec_swap_pairs(vec a) { return _mm512_permute_ps(a, 0xb1); }   // lanes 1, 0, 3, 2, ...
// a finite number becomes one of its two neighbours in bf16: the upper one with probability (distance from the lower one) / (theirs)
ALWAYS_INLINE vec vec_round_at_random(vec a, const uint32_t word[16]) {
  __m512i bits = _mm512_castps_si512(a), lower = _mm512_and_si512(_mm512_loadu_si512(word), _mm512_set1_epi32(0xffff));
  __m512i rounded = _mm512_and_si512(_mm512_add_epi32(bits, lower), _mm512_set1_epi32((int)0xffff0000));
  return _mm512_mask_mov_ps(a, _mm512_cmp_ps_mask(_mm512_sub_ps(a, a), _mm512_setzero_ps(), _CMP_EQ_OQ), _mm512_castsi512_ps(rounded));
}

#elif defined(__AVX2__) && defined(__FMA__)
// ================================================================ AVX2 + FMA: two registers
#include <immintrin.h>
#define VEC_TILE_ROWS 6       // 12 sums, two of a row, one broadcast: 15 of 16 registers
#define VEC_TILE_VECS 1
typedef struct { __m256 low, high; } vec;
// lanes i < n all ones, as two masks
ALWAYS_INLINE void vec_tail_masks(size_t n, __m256i *low, __m256i *high) {
  const __m256i lane = _mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0);
  *low = _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), lane);
  *high = _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n - 8), lane);
}
ALWAYS_INLINE vec vec_zero(void) { return (vec){_mm256_setzero_ps(), _mm256_setzero_ps()}; }
ALWAYS_INLINE vec vec_set(float x) { return (vec){_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
ALWAYS_INLINE vec vec_load(const float *p) { return (vec){_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
ALWAYS_INLINE void vec_store(float *p, vec a) { _mm256_storeu_ps(p, a.low), _mm256_storeu_ps(p + 8, a.high); }
ALWAYS_INLINE vec vec_load_tail(const float *p, size_t n) {
  __m256i low, high;
  vec_tail_masks(n, &low, &high);
  return (vec){_mm256_maskload_ps(p, low), _mm256_maskload_ps(p + 8, high)};
}
ALWAYS_INLINE void vec_store_tail(float *p, vec a, size_t n) {
  __m256i low, high;
  vec_tail_masks(n, &low, &high);
  _mm256_maskstore_ps(p, low, a.low), _mm256_maskstore_ps(p + 8, high, a.high);
}
ALWAYS_INLINE vec vec_add(vec a, vec b) { return (vec){_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)}; }
ALWAYS_INLINE vec vec_sub(vec a, vec b) { return (vec){_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)}; }
ALWAYS_INLINE vec vec_mul(vec a, vec b) { return (vec){_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)}; }
ALWAYS_INLINE vec vec_div(vec a, vec b) { return (vec){_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)}; }
ALWAYS_INLINE vec vec_fma(vec a, vec b, vec c) { return (vec){_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)}; }
ALWAYS_INLINE vec vec_fnma(vec a, vec b, vec c) { return (vec){_mm256_fnmadd_ps(a.low, b.low, c.low), _mm256_fnmadd_ps(a.high, b.high, c.high)}; }
ALWAYS_INLINE vec vec_sqrt(vec a) { return (vec){_mm256_sqrt_ps(a.low), _mm256_sqrt_ps(a.high)}; }
ALWAYS_INLINE vec vec_max(vec a, vec b) { return (vec){_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)}; }
ALWAYS_INLINE vec vec_min(vec a, vec b) { return (vec){_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)}; }
ALWAYS_INLINE vec vec_where_less(vec a, vec b, vec x, vec y) {
  return (vec){_mm256_blendv_ps(y.low, x.low, _mm256_cmp_ps(a.low, b.low, _CMP_LT_OQ)),
               _mm256_blendv_ps(y.high, x.high, _mm256_cmp_ps(a.high, b.high, _CMP_LT_OQ))};
}
ALWAYS_INLINE vec vec_head(vec a, size_t n, vec b) {
  __m256i low, high;
  vec_tail_masks(n, &low, &high);
  return (vec){_mm256_blendv_ps(b.low, a.low, _mm256_castsi256_ps(low)), _mm256_blendv_ps(b.high, a.high, _mm256_castsi256_ps(high))};
}
ALWAYS_INLINE void vec_load_pairs(const float *p, vec *even, vec *odd) {
  const __m256i order = _mm256_set_epi32(7, 6, 3, 2, 5, 4, 1, 0);   // undoes that a shuffle works within 128-bit halves
  __m256 e[2], o[2];
  UNROLL for (int i = 0; i < 2; i++) {
    __m256 a = _mm256_loadu_ps(p + 16 * i), b = _mm256_loadu_ps(p + 16 * i + 8);
    e[i] = _mm256_permutevar8x32_ps(_mm256_shuffle_ps(a, b, 0x88), order);
    o[i] = _mm256_permutevar8x32_ps(_mm256_shuffle_ps(a, b, 0xdd), order);
  }
  *even = (vec){e[0], e[1]}, *odd = (vec){o[0], o[1]};
}
ALWAYS_INLINE __m256 vec_scale_exponent_half(__m256 a, __m256 steps) {
  return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a), _mm256_slli_epi32(_mm256_castps_si256(steps), 23)));
}
ALWAYS_INLINE vec vec_scale_exponent(vec a, vec steps) {
  return (vec){vec_scale_exponent_half(a.low, steps.low), vec_scale_exponent_half(a.high, steps.high)};
}
ALWAYS_INLINE __m256 vec_split_exponent_half(__m256 x, __m256 *e) {
  __m256i bits = _mm256_sub_epi32(_mm256_castps_si256(x), _mm256_set1_epi32(0x3f3504f3));
  *e = _mm256_cvtepi32_ps(_mm256_srai_epi32(bits, 23));
  return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_and_si256(bits, _mm256_set1_epi32(0x007fffff)), _mm256_set1_epi32(0x3f3504f3)));
}
ALWAYS_INLINE vec vec_split_exponent(vec x, vec *e) { return (vec){vec_split_exponent_half(x.low, &e->low), vec_split_exponent_half(x.high, &e->high)}; }
ALWAYS_INLINE __m256 vec_fold_half(vec a, int max) { return max ? _mm256_max_ps(a.low, a.high) : _mm256_add_ps(a.low, a.high); }
ALWAYS_INLINE void vec_transpose8(__m256 r[8]) {
  __m256 t[8];
  UNROLL for (int i = 0; i < 4; i++) {
    t[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
  }
  UNROLL for (int i = 0; i < 2; i++) {
    r[4 * i] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0x44);
    r[4 * i + 1] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0xee);
    r[4 * i + 2] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0x44);
    r[4 * i + 3] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0xee);
  }
  UNROLL for (int i = 0; i < 4; i++) {
    t[i] = _mm256_permute2f128_ps(r[i], r[i + 4], 0x20);
    t[i + 4] = _mm256_permute2f128_ps(r[i], r[i + 4], 0x31);
  }
  UNROLL for (int i = 0; i < 8; i++) r[i] = t[i];
}
ALWAYS_INLINE void vec_transpose(vec r[16]) {   // four 8 x 8 blocks; the two off the diagonal change places
  __m256 a[8], b[8];
  UNROLL for (int i = 0; i < 8; i++) a[i] = r[i].low;
  vec_transpose8(a);
  UNROLL for (int i = 0; i < 8; i++) r[i].low = a[i], a[i] = r[i].high, b[i] = r[i + 8].low;
  vec_transpose8(a), vec_transpose8(b);
  UNROLL for (int i = 0; i < 8; i++) r[i].high = b[i], r[i + 8].low = a[i], a[i] = r[i + 8].high;
  vec_transpose8(a);
  UNROLL for (int i = 0; i < 8; i++) r[i + 8].high = a[i];
}
typedef struct { __m256d part[4]; } vecd;
ALWAYS_INLINE vecd vecd_zero(void) { return (vecd){{_mm256_setzero_pd(), _mm256_setzero_pd(), _mm256_setzero_pd(), _mm256_setzero_pd()}}; }
ALWAYS_INLINE __m256d vecd_add_square(__m256d s, __m128 a) {
  __m256d x = _mm256_cvtps_pd(a);
  return _mm256_add_pd(s, _mm256_mul_pd(x, x));
}
ALWAYS_INLINE vecd vecd_add_squares(vecd s, vec a) {
  return (vecd){{vecd_add_square(s.part[0], _mm256_castps256_ps128(a.low)), vecd_add_square(s.part[1], _mm256_extractf128_ps(a.low, 1)),
                 vecd_add_square(s.part[2], _mm256_castps256_ps128(a.high)), vecd_add_square(s.part[3], _mm256_extractf128_ps(a.high, 1))}};
}
ALWAYS_INLINE void vecd_store(double *p, vecd a) {
  UNROLL for (int i = 0; i < 4; i++) _mm256_storeu_pd(p + 4 * i, a.part[i]);
}
enum { PHILOX_BLOCKS = 4 };
typedef __m256i philox_vec;
#define PHILOX_SET(x) _mm256_set1_epi64x((long long)(uint64_t)(x))
#define PHILOX_MUL(a, b) _mm256_mul_epu32(a, b)
#define PHILOX_HIGH(a) _mm256_srli_epi64(a, 32)
#define PHILOX_XOR(a, b, c) _mm256_xor_si256(_mm256_xor_si256(a, b), c)
ALWAYS_INLINE philox_vec philox_counters(uint64_t block) { return _mm256_add_epi64(PHILOX_SET(block), _mm256_set_epi64x(3, 1, 2, 0)); }
ALWAYS_INLINE void philox_store(uint32_t out[16], philox_vec c0, philox_vec c1, philox_vec c2, philox_vec c3) {
  const __m256i low = PHILOX_SET(0xffffffffu);
  __m256i w01 = _mm256_or_si256(_mm256_and_si256(c0, low), _mm256_slli_epi64(c1, 32));
  __m256i w23 = _mm256_or_si256(_mm256_and_si256(c2, low), _mm256_slli_epi64(c3, 32));
  _mm256_storeu_si256((__m256i *)out, _mm256_unpacklo_epi64(w01, w23));
  _mm256_storeu_si256((__m256i *)(out + 8), _mm256_unpackhi_epi64(w01, w23));
}
ALWAYS_INLINE __m256 vec_keep_half(__m256 x, const uint32_t *word, uint32_t threshold) {
  __m256i w = _mm256_loadu_si256((const __m256i *)word);
  __m256i kept = _mm256_cmpeq_epi32(_mm256_max_epu32(w, _mm256_set1_epi32((int)threshold)), w);   // unsigned w >= threshold
  return _mm256_and_ps(x, _mm256_castsi256_ps(kept));
}
ALWAYS_INLINE vec vec_keep(vec x, const uint32_t word[16], uint32_t threshold) {
  return (vec){vec_keep_half(x.low, word, threshold), vec_keep_half(x.high, word + 8, threshold)};
}
typedef __m256i vec_bf16;
ALWAYS_INLINE vec_bf16 vec_load_bf16(const bf16 *p) { return _mm256_loadu_si256((const __m256i *)p); }
ALWAYS_INLINE void vec_store_bf16(bf16 *p, vec_bf16 a) { _mm256_storeu_si256((__m256i *)p, a); }
ALWAYS_INLINE vec_bf16 vec_load_bf16_tail(const bf16 *p, size_t n) {
  bf16 all[16] = {0};
  memcpy(all, p, n * sizeof *p);
  return vec_load_bf16(all);
}
ALWAYS_INLINE void vec_store_bf16_tail(bf16 *p, vec_bf16 a, size_t n) {
  bf16 all[16];
  vec_store_bf16(all, a);
  memcpy(p, all, n * sizeof *p);
}
ALWAYS_INLINE __m256 vec_expand_half(__m128i a) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(a), 16)); }
ALWAYS_INLINE vec vec_expand(vec_bf16 a) { return (vec){vec_expand_half(_mm256_castsi256_si128(a)), vec_expand_half(_mm256_extracti128_si256(a, 1))}; }
ALWAYS_INLINE __m256 vec_pair_half(__m128i low, __m128i high) {
  return _mm256_castsi256_ps(_mm256_or_si256(_mm256_cvtepu16_epi32(low), _mm256_slli_epi32(_mm256_cvtepu16_epi32(high), 16)));
}
ALWAYS_INLINE vec vec_pair_bf16(vec_bf16 low, vec_bf16 high) {
  return (vec){vec_pair_half(_mm256_castsi256_si128(low), _mm256_castsi256_si128(high)), vec_pair_half(_mm256_extracti128_si256(low, 1), _mm256_extracti128_si256(high, 1))};
}
ALWAYS_INLINE __m256i vec_round_half(__m256 a) {   // in the lower halves of 32 bits
  __m256i bits = _mm256_castps_si256(a), half = _mm256_srli_epi32(bits, 16), odd = _mm256_and_si256(half, _mm256_set1_epi32(1));
  __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(_mm256_set1_epi32(0x7fff), odd)), 16);
  return _mm256_blendv_epi8(rounded, _mm256_or_si256(half, _mm256_set1_epi32(0x40)), _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q)));
}
ALWAYS_INLINE vec_bf16 vec_round(vec a) {   // packing works within 128-bit halves; the permutation undoes that
  return _mm256_permute4x64_epi64(_mm256_packus_epi32(vec_round_half(a.low), vec_round_half(a.high)), 0xd8);
}
ALWAYS_INLINE vec vec_swap_pairs(vec a) { return (vec){_mm256_permute_ps(a.low, 0xb1), _mm256_permute_ps(a.high, 0xb1)}; }
ALWAYS_INLINE __m256 vec_round_at_random_half(__m256 a, const uint32_t *word) {
  __m256i lower = _mm256_and_si256(_mm256_loadu_si256((const __m256i *)word), _mm256_set1_epi32(0xffff));
  __m256i rounded = _mm256_and_si256(_mm256_add_epi32(_mm256_castps_si256(a), lower), _mm256_set1_epi32((int)0xffff0000));
  return _mm256_blendv_ps(a, _mm256_castsi256_ps(rounded), _mm256_cmp_ps(_mm256_sub_ps(a, a), _mm256_setzero_ps(), _CMP_EQ_OQ));
}
ALWAYS_INLINE vec vec_round_at_random(vec a, const uint32_t word[16]) {
  return (vec){vec_round_at_random_half(a.low, word), vec_round_at_random_half(a.high, word + 8)};
}

#else
// ================================================================ plain C: an array, and what the two above must equal
#define VEC_PLAIN 1
#define VEC_TILE_ROWS 4
#define VEC_TILE_VECS 1
typedef struct { float lane[16]; } vec;
#define VEC_EACH(expression) vec r; for (int i = 0; i < 16; i++) r.lane[i] = (expression); return r
ALWAYS_INLINE vec vec_set(float x) { VEC_EACH(x); }
ALWAYS_INLINE vec vec_zero(void) { return vec_set(0); }
ALWAYS_INLINE vec vec_load(const float *p) { vec r; memcpy(&r, p, sizeof r); return r; }
ALWAYS_INLINE void vec_store(float *p, vec a) { memcpy(p, &a, sizeof a); }
ALWAYS_INLINE vec vec_load_tail(const float *p, size_t n) { vec r = vec_zero(); for (size_t i = 0; i < n; i++) r.lane[i] = p[i]; return r; }
ALWAYS_INLINE void vec_store_tail(float *p, vec a, size_t n) { for (size_t i = 0; i < n; i++) p[i] = a.lane[i]; }
ALWAYS_INLINE vec vec_add(vec a, vec b) { VEC_EACH(a.lane[i] + b.lane[i]); }
ALWAYS_INLINE vec vec_sub(vec a, vec b) { VEC_EACH(a.lane[i] - b.lane[i]); }
ALWAYS_INLINE vec vec_mul(vec a, vec b) { VEC_EACH(a.lane[i] * b.lane[i]); }
ALWAYS_INLINE vec vec_div(vec a, vec b) { VEC_EACH(a.lane[i] / b.lane[i]); }
ALWAYS_INLINE vec vec_fma(vec a, vec b, vec c) { VEC_EACH(fmaf(a.lane[i], b.lane[i], c.lane[i])); }
ALWAYS_INLINE vec vec_fnma(vec a, vec b, vec c) { VEC_EACH(fmaf(-a.lane[i], b.lane[i], c.lane[i])); }
ALWAYS_INLINE vec vec_sqrt(vec a) { VEC_EACH(sqrtf(a.lane[i])); }
ALWAYS_INLINE vec vec_max(vec a, vec b) { VEC_EACH(a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]); }
ALWAYS_INLINE vec vec_min(vec a, vec b) { VEC_EACH(a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]); }
ALWAYS_INLINE vec vec_where_less(vec a, vec b, vec x, vec y) { VEC_EACH(a.lane[i] < b.lane[i] ? x.lane[i] : y.lane[i]); }
ALWAYS_INLINE vec vec_head(vec a, size_t n, vec b) { VEC_EACH((size_t)i < n ? a.lane[i] : b.lane[i]); }
ALWAYS_INLINE void vec_load_pairs(const float *p, vec *even, vec *odd) {
  for (int i = 0; i < 16; i++) even->lane[i] = p[2 * i], odd->lane[i] = p[2 * i + 1];
}
ALWAYS_INLINE uint32_t float_bits(float x) { uint32_t u; memcpy(&u, &x, 4); return u; }
ALWAYS_INLINE float bits_float(uint32_t u) { float x; memcpy(&x, &u, 4); return x; }
ALWAYS_INLINE vec vec_scale_exponent(vec a, vec steps) { VEC_EACH(bits_float(float_bits(a.lane[i]) + (float_bits(steps.lane[i]) << 23))); }
ALWAYS_INLINE vec vec_split_exponent(vec x, vec *e) {
  vec r;
  for (int i = 0; i < 16; i++) {
    uint32_t bits = float_bits(x.lane[i]) - 0x3f3504f3u;
    e->lane[i] = (float)((int32_t)bits >> 23);
    r.lane[i] = bits_float((bits & 0x007fffffu) + 0x3f3504f3u);
  }
  return r;
}
ALWAYS_INLINE void vec_transpose(vec r[16]) {
  for (int i = 0; i < 16; i++)
    for (int j = 0; j < i; j++) {
      float t = r[i].lane[j];
      r[i].lane[j] = r[j].lane[i], r[j].lane[i] = t;
    }
}
typedef struct { double lane[16]; } vecd;
ALWAYS_INLINE vecd vecd_zero(void) { return (vecd){{0}}; }
ALWAYS_INLINE vecd vecd_add_squares(vecd s, vec a) {
  for (int i = 0; i < 16; i++) s.lane[i] += (double)a.lane[i] * a.lane[i];
  return s;
}
ALWAYS_INLINE void vecd_store(double *p, vecd a) { memcpy(p, &a, sizeof a); }
enum { PHILOX_BLOCKS = 1 };
typedef uint64_t philox_vec;
#define PHILOX_SET(x) ((uint64_t)(x))
#define PHILOX_MUL(a, b) ((uint64_t)(uint32_t)(a) * (uint32_t)(b))
#define PHILOX_HIGH(a) ((a) >> 32)
#define PHILOX_XOR(a, b, c) ((a) ^ (b) ^ (c))
ALWAYS_INLINE philox_vec philox_counters(uint64_t block) { return block; }
ALWAYS_INLINE void philox_store(uint32_t out[4], philox_vec c0, philox_vec c1, philox_vec c2, philox_vec c3) {
  out[0] = (uint32_t)c0, out[1] = (uint32_t)c1, out[2] = (uint32_t)c2, out[3] = (uint32_t)c3;
}
ALWAYS_INLINE vec vec_keep(vec x, const uint32_t word[16], uint32_t threshold) { VEC_EACH(word[i] >= threshold ? x.lane[i] : 0.0f); }
typedef struct { bf16 lane[16]; } vec_bf16;
ALWAYS_INLINE vec_bf16 vec_load_bf16(const bf16 *p) { vec_bf16 r; memcpy(&r, p, sizeof r); return r; }
ALWAYS_INLINE void vec_store_bf16(bf16 *p, vec_bf16 a) { memcpy(p, &a, sizeof a); }
ALWAYS_INLINE vec_bf16 vec_load_bf16_tail(const bf16 *p, size_t n) { vec_bf16 r = {{0}}; memcpy(&r, p, n * sizeof *p); return r; }
ALWAYS_INLINE void vec_store_bf16_tail(bf16 *p, vec_bf16 a, size_t n) { memcpy(p, &a, n * sizeof *p); }
ALWAYS_INLINE vec vec_pair_bf16(vec_bf16 low, vec_bf16 high) { VEC_EACH(bits_float(low.lane[i] | (uint32_t)high.lane[i] << 16)); }
ALWAYS_INLINE vec vec_expand(vec_bf16 a) { VEC_EACH(float_of_bf16(a.lane[i])); }
ALWAYS_INLINE vec_bf16 vec_round(vec a) { vec_bf16 r; for (int i = 0; i < 16; i++) r.lane[i] = bf16_of_float(a.lane[i]); return r; }
ALWAYS_INLINE vec vec_swap_pairs(vec a) { VEC_EACH(a.lane[i ^ 1]); }
ALWAYS_INLINE vec vec_round_at_random(vec a, const uint32_t word[16]) {
  VEC_EACH(a.lane[i] - a.lane[i] == 0 ? bits_float((float_bits(a.lane[i]) + (word[i] & 0xffff)) & 0xffff0000u) : a.lane[i]);
}
#endif

// ================================================================ the same for all: written in the operations above
#ifdef VEC_PLAIN
#define VEC_LONG static __attribute__((noinline, unused))   // 16 lanes of it at each call would be too much code
#else
#define VEC_LONG ALWAYS_INLINE
#endif

// Adds (max 0) or takes the largest of (max 1) the lanes in the one fixed tree: lane[i] with lane[i+8], then +4, +2, +1.
ALWAYS_INLINE float vec_fold(vec a, int max) {
#ifdef VEC_PLAIN
  for (int width = 8; width; width /= 2)
    for (int i = 0; i < width; i++)
      a.lane[i] = max ? (a.lane[i] > a.lane[i + width] ? a.lane[i] : a.lane[i + width]) : a.lane[i] + a.lane[i + width];
  return a.lane[0];
#else
  __m256 half = vec_fold_half(a, max);
  __m128 low = _mm256_castps256_ps128(half), high = _mm256_extractf128_ps(half, 1);
  __m128 x = max ? _mm_max_ps(low, high) : _mm_add_ps(low, high), y = _mm_movehl_ps(x, x);
  x = max ? _mm_max_ps(x, y) : _mm_add_ps(x, y), y = _mm_shuffle_ps(x, x, 1);
  return _mm_cvtss_f32(max ? _mm_max_ss(x, y) : _mm_add_ss(x, y));
#endif
}
ALWAYS_INLINE float vec_sum(vec a) { return vec_fold(a, 0); }
ALWAYS_INLINE float vec_largest(vec a) { return vec_fold(a, 1); }
ALWAYS_INLINE double vecd_sum(vecd a) {   // the same tree in double
  double lane[16];
  vecd_store(lane, a);
  for (int width = 8; width; width /= 2)
    for (int i = 0; i < width; i++) lane[i] += lane[i + width];
  return lane[0];
}

// exp(x), error below 1 ulp. x = n ln2 + r, |r| <= ln2/2; e^r = 1 + r + r^2 q(r), q of degree 4 fitted to least relative error;
// 2^n goes straight into the exponent. Above 88.7228 infinite; below -87.336 zero (what lies there is denormal); NaN stays NaN.
VEC_LONG vec vec_exp(vec x) {
  const vec to_integer = vec_set(12582912.0f);   // 1.5 * 2^23: in this binade neighbouring floats differ by 1
  vec steps = vec_fma(x, vec_set(0x1.715476p+0f), to_integer);   // n, in the low bits
  vec n = vec_sub(steps, to_integer);
  vec r = vec_fnma(n, vec_set(0x1.62e4p-1f), x);                 // ln2 in two parts; n times the first is exact
  r = vec_fnma(n, vec_set(0x1.7f7d1cp-20f), r);
  vec q = vec_set(0x1.6a2434p-10f);
  q = vec_fma(q, r, vec_set(0x1.1239e2p-7f));
  q = vec_fma(q, r, vec_set(0x1.5558f2p-5f));
  q = vec_fma(q, r, vec_set(0x1.555492p-3f));
  q = vec_fma(q, r, vec_set(0x1.fffffcp-2f));
  vec power = vec_add(vec_fma(vec_mul(r, r), q, r), vec_set(1.0f));
  vec value = vec_scale_exponent(power, steps);
  value = vec_where_less(x, vec_set(-87.336f), vec_zero(), value);
  return vec_where_less(x, vec_set(88.7228f), value, vec_mul(x, vec_set(INFINITY)));   // else: infinity, or NaN from NaN
}

// log(x), error below 1 ulp. x = m 2^e, f = m - 1; log m = f - f^2/2 + f^3 q(f), q of degree 7 fitted to least relative error.
// Zero and denormals: -infinity; negative: NaN; infinity and NaN are kept.
VEC_LONG vec vec_log(vec x) {
  vec e, f = vec_sub(vec_split_exponent(x, &e), vec_set(1.0f));
  vec q = vec_set(-0x1.38b580p-4f);
  q = vec_fma(q, f, vec_set(0x1.055b6ap-3f));
  q = vec_fma(q, f, vec_set(-0x1.0d8542p-3f));
  q = vec_fma(q, f, vec_set(0x1.22da1cp-3f));
  q = vec_fma(q, f, vec_set(-0x1.547244p-3f));
  q = vec_fma(q, f, vec_set(0x1.99a008p-3f));
  q = vec_fma(q, f, vec_set(-0x1.000226p-2f));
  q = vec_fma(q, f, vec_set(0x1.555554p-2f));
  vec curve = vec_mul(vec_mul(f, f), vec_fma(q, f, vec_set(-0.5f)));
  curve = vec_add(f, vec_fma(e, vec_set(0x1.7f7d1cp-20f), curve));     // ln2 in two parts, as in vec_exp
  vec value = vec_fma(e, vec_set(0x1.62e4p-1f), curve);
  value = vec_where_less(x, vec_set(INFINITY), value, x);
  return vec_where_less(x, vec_set(0x1p-126f), vec_where_less(x, vec_zero(), vec_set(NAN), vec_set(-INFINITY)), value);
}

// The first n numbers from p, or all 16 if n >= 16. A row of C numbers is walked by c = 0, 16, 32, ... with n = C - c. They are
// floats, or bf16, which expand when they are loaded and are rounded when they are stored.
ALWAYS_INLINE vec vec_load_row_float(const float *p, size_t n) { return n >= LANES ? vec_load(p) : vec_load_tail(p, n); }
ALWAYS_INLINE void vec_store_row_float(float *p, vec a, size_t n) {
  if (n >= LANES) vec_store(p, a);
  else vec_store_tail(p, a, n);
}
ALWAYS_INLINE vec vec_load_row_bf16(const bf16 *p, size_t n) { return vec_expand(n >= LANES ? vec_load_bf16(p) : vec_load_bf16_tail(p, n)); }
ALWAYS_INLINE void vec_store_row_bf16(bf16 *p, vec a, size_t n) {
  if (n >= LANES) vec_store_bf16(p, vec_round(a));
  else vec_store_bf16_tail(p, vec_round(a), n);
}
#define vec_load_row(p, n) _Generic(*(p), float: vec_load_row_float, bf16: vec_load_row_bf16)(p, n)
#define vec_store_row(p, a, n) _Generic(*(p), float: vec_store_row_float, bf16: vec_store_row_bf16)(p, a, n)
// a as a later load finds it where it was stored at p
#define vec_as_stored(p, a) _Generic(*(p), float: vec_same, bf16: vec_through_bf16)(a)
ALWAYS_INLINE vec vec_same(vec a) { return a; }
ALWAYS_INLINE vec vec_through_bf16(vec a) { return vec_expand(vec_round(a)); }
// a with zeros in the lanes from n on: what a sum over a row must not count
ALWAYS_INLINE vec vec_cut(vec a, size_t n) { return n >= LANES ? a : vec_head(a, n, vec_zero()); }

// Words of the stream (seed, step, site) of rng.h from element `first` on, which must be a multiple of 4, at least n of them;
// out has room for n + PHILOX_ROOM. Philox 4x32-10 on several counters at a time.
enum { PHILOX_ROOM = 4 * PHILOX_BLOCKS };
static inline void philox_words(uint32_t *out, uint64_t seed, uint32_t step, uint32_t site, uint64_t first, size_t n) {
  for (size_t i = 0; i < n; i += 4 * PHILOX_BLOCKS) {
    philox_vec c0 = philox_counters(first / 4 + i / 4), c1 = PHILOX_HIGH(c0), c2 = PHILOX_SET(site), c3 = PHILOX_SET(step);
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    for (int round = 0; round < 10; round++) {
      philox_vec p0 = PHILOX_MUL(c0, PHILOX_SET(0xD2511F53u)), p1 = PHILOX_MUL(c2, PHILOX_SET(0xCD9E8D57u));
      c0 = PHILOX_XOR(PHILOX_HIGH(p1), c1, PHILOX_SET(k0));
      c2 = PHILOX_XOR(PHILOX_HIGH(p0), c3, PHILOX_SET(k1));
      c1 = p1, c3 = p0;
      k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
    }
    philox_store(out + i, c0, c1, c2, c3);
  }
}
