// ladder.h: owns what the steps of this ladder share: the product, the tile, the panel.
//
// A step is one file with one idea: a function that computes c = a b. Like the program's own kernels (cpu.h) it is compiled once per instruction set,
// and ladder.c takes the set that this processor has. Every element of c is ONE chain of fused multiply-adds over k = 0, 1, 2, ... from 0, in every step: what
// moves is who computes an element, and when, and where its factors lie. So all steps give the same bits.
#pragma once
#include "../../cpu.h"    // CPU_NAME, Device, cpu_state
#include "../../util.h"   // MIN, fail
#include <stdlib.h>       // aligned_alloc, free

typedef struct {
  size_t m, n, k;
  const float *a;          // (m,k), row after row, as all of them
  const float *b;          // (k,n)
  const float *b_turned;   // (n,k): the same numbers, as a model stores its weights; only the last step reads it
  float *c;                // = (m,n)
  Device *device;          // the program's own, and whose threads are to be used
} Product;

#define STEP(name) CPU_NAME(ladder_##name)

// Some numbers that begin with a cache line: a vector that lies in two lines costs two loads.
static inline float *floats(size_t n) {
  float *p = aligned_alloc(64, round_up(n * sizeof *p, 64));
  if (!p) fail(EXIT_MACHINE, "memory: no %zu bytes", n * sizeof *p);
  return p;
}

#ifdef CPU_ISA
#include "../../simd.h"   // vec, VEC_TILE_ROWS, VEC_TILE_VECS
enum { TILE_ROWS = VEC_TILE_ROWS, TILE_COLS = VEC_TILE_VECS * LANES };

// 4_vectors.c: c (rows,cols) = a (rows,k) b (k,cols), or continues from c; rows <= TILE_ROWS, cols <= TILE_COLS; x_row: floats from one row to the next.
typedef struct {
  size_t rows, cols, k, a_row, b_row, c_row;
  const float *a, *b;
  float *c;
  bool continues;
} Tile;
void STEP(tile)(const Tile *t);
// 5_packing.c: panel (k,TILE_COLS) = b (k,cols), row after row without a gap; missing columns stay as they are, no tile reads them.
void STEP(pack)(float *panel, const float *b, size_t b_row, size_t cols, size_t k);
#endif
