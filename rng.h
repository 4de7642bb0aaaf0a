// rng.h: counter-based random numbers (Philox 4x32-10; Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC11).
//
// There is no generator state in this project. A random number is a pure function of WHERE it is used:
//   (seed, step, site, element)
// seed: --seed; step: optimizer step (or epoch, or another small counter); site: which tensor or use, see rng_site();
// element: index counted over the whole step, never over a micro-batch or a rank. So nothing has to be saved with a
// checkpoint, and cutting a batch differently changes nothing.
// Tests: tests/test_rng.c (the authors' published known answers).
#pragma once
#include <stdint.h>

typedef struct { uint32_t v[4]; } Philox4;

// Four independent uniform 32-bit words for the 128-bit counter and the 64-bit key.
static inline Philox4 philox(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint64_t key) {
  uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
  for (int round = 0; round < 10; round++) {
    uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
    uint32_t n0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0, n2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
    c0 = n0; c1 = (uint32_t)p1; c2 = n2; c3 = (uint32_t)p0;
    k0 += 0x9E3779B9u; k1 += 0xBB67AE85u;
  }
  return (Philox4){{c0, c1, c2, c3}};
}

// Words 4*block .. 4*block+3 of the stream (seed, step, site).
static inline Philox4 rng_block(uint64_t seed, uint32_t step, uint32_t site, uint64_t block) {
  return philox((uint32_t)block, (uint32_t)(block >> 32), site, step, seed);
}

// Word `element` of the stream (seed, step, site).
static inline uint32_t rng_u32(uint64_t seed, uint32_t step, uint32_t site, uint64_t element) {
  return rng_block(seed, step, site, element >> 2).v[element & 3];
}

static inline uint64_t rng_u64(uint64_t seed, uint32_t step, uint32_t site, uint64_t element) {
  Philox4 r = rng_block(seed, step, site, element >> 1);
  int i = (int)(element & 1) * 2;
  return r.v[i] | (uint64_t)r.v[i + 1] << 32;
}

// Uniform in (0, 1), never 0 or 1, 53 bits.
static inline double rng_uniform(uint64_t seed, uint32_t step, uint32_t site, uint64_t element) {
  return ((double)(rng_u64(seed, step, site, element) >> 11) + 0.5) * 0x1p-53;
}

// Uniform integer in [0, n), n >= 1: high half of a 64 x 64 product (bias < n / 2^64).
static inline uint64_t rng_below(uint64_t n, uint64_t seed, uint32_t step, uint32_t site, uint64_t element) {
  return (uint64_t)(((unsigned __int128)rng_u64(seed, step, site, element) * n) >> 64);
}

// The site of a named use: FNV-1a of its name. Tensors use their name in the model file; so none is known by a number.
static inline uint32_t rng_site(const char *name) {
  uint32_t h = 2166136261u;
  for (; *name; name++) h = (h ^ (uint8_t)*name) * 16777619u;
  return h;
}
