// 5_packing.c: owns step 5: what a tile reads of b is copied first, so that it lies together.
//
// A panel, (k,TILE_COLS), is read once for every tile below another: m / TILE_ROWS times. Where it is, its rows are n floats apart, and if that is a power of two they throw each
// other out of the cache (1_loops.c). Copied, it is one run of bytes, in one place of each set after the other, whatever n is: the time no longer depends on the shape's numbers.
// The copy costs a load and a store for each number of b, once; 2 m operations follow for each.
// Rows of a are read along k, which is a run of bytes already: a tile takes them where they are, as in cpu_gemm.c.
// Next: 6_blocks.c
#include "ladder.h"

void STEP(pack)(float *panel, const float *b, size_t b_row, size_t cols, size_t k) {
  for (size_t p = 0; p < k; p++) memcpy(panel + p * TILE_COLS, b + p * b_row, cols * sizeof *b);
}

void STEP(packing)(const Product *g) {
  float *panel = floats(g->k * TILE_COLS);
  Tile t = {.k = g->k, .a_row = g->k, .b = panel, .b_row = TILE_COLS, .c_row = g->n};
  for (size_t j = 0; j < g->n; j += TILE_COLS) {
    t.cols = MIN((size_t)TILE_COLS, g->n - j);
    STEP(pack)(panel, g->b + j, g->n, t.cols, g->k);
    for (size_t i = 0; i < g->m; i += TILE_ROWS) {
      t.rows = MIN((size_t)TILE_ROWS, g->m - i), t.a = g->a + i * g->k, t.c = g->c + i * g->n + j;
      STEP(tile)(&t);
    }
  }
  free(panel);
}
