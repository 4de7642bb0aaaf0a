// 4_vectors.c: owns step 4: the tile's sums are vectors of columns.
//
// One instruction does 16 multiply-adds (AVX-512) or 8 (AVX2). A lane is a column of c, so it has a chain of its own, and its order is the plain one.
// (Were lanes pieces of k, as in a dot product, the pieces would have to be added in the end: another order, other bits, and other ones for each width.)
// Tile: 8 x 2 vectors are 16 sums of AVX-512's 32 registers; 6 x 2 of AVX2's 16. For each p it loads 2 vectors of b, and 8 (6) numbers of a, each of which goes to all lanes.
// What is left: a row of the tile's piece of b is 128 bytes (64), and the next row lies n floats further, in another page.
// Next: 5_packing.c
#include "ladder.h"

ALWAYS_INLINE vec load(const float *p, bool whole, size_t lanes) { return whole ? vec_load(p) : vec_load_tail(p, lanes); }

// rows and whole (all TILE_COLS columns are there) are constants where it is called
ALWAYS_INLINE void tile(const size_t rows, const bool whole, const Tile *t) {
  vec sum[TILE_ROWS][VEC_TILE_VECS];
  size_t lanes[VEC_TILE_VECS];   // columns of each vector
  UNROLL for (size_t v = 0; v < VEC_TILE_VECS; v++) lanes[v] = t->cols > v * LANES ? MIN(t->cols - v * LANES, (size_t)LANES) : 0;
  UNROLL for (size_t r = 0; r < rows; r++) {
    UNROLL for (size_t v = 0; v < VEC_TILE_VECS; v++) sum[r][v] = t->continues ? load(t->c + r * t->c_row + v * LANES, whole, lanes[v]) : vec_zero();
  }
  const float *a = t->a, *b = t->b;
  for (size_t p = 0; p < t->k; p++, a++, b += t->b_row) {
    vec row[VEC_TILE_VECS];
    UNROLL for (size_t v = 0; v < VEC_TILE_VECS; v++) row[v] = load(b + v * LANES, whole, lanes[v]);
    UNROLL for (size_t r = 0; r < rows; r++) {
      const vec factor = vec_set(a[r * t->a_row]);
      UNROLL for (size_t v = 0; v < VEC_TILE_VECS; v++) sum[r][v] = vec_fma(factor, row[v], sum[r][v]);
    }
  }
  UNROLL for (size_t r = 0; r < rows; r++) {
    UNROLL for (size_t v = 0; v < VEC_TILE_VECS; v++) {
      if (whole) vec_store(t->c + r * t->c_row + v * LANES, sum[r][v]);
      else vec_store_tail(t->c + r * t->c_row + v * LANES, sum[r][v], lanes[v]);
    }
  }
}

void STEP(tile)(const Tile *t) {
  if (t->rows == TILE_ROWS && t->cols == TILE_COLS) { tile(TILE_ROWS, true, t); return; }
  if (t->rows == TILE_ROWS) { tile(TILE_ROWS, false, t); return; }
  Tile row = *t;   // the last rows, one by one
  for (size_t r = 0; r < t->rows; r++, row.a += t->a_row, row.c += t->c_row) tile(1, false, &row);
}

void STEP(vectors)(const Product *g) {
  Tile t = {.k = g->k, .a_row = g->k, .b_row = g->n, .c_row = g->n};
  for (size_t j = 0; j < g->n; j += TILE_COLS)
    for (size_t i = 0; i < g->m; i += TILE_ROWS) {
      t.rows = MIN((size_t)TILE_ROWS, g->m - i), t.cols = MIN((size_t)TILE_COLS, g->n - j);
      t.a = g->a + i * g->k, t.b = g->b + j, t.c = g->c + i * g->n + j;
      STEP(tile)(&t);
    }
}
