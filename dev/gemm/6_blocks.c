// 6_blocks.c: owns step 6: blocks that fit in caches (Goto and van de Geijn 2008).
//
// Step 5 reads all of a again for every panel, from wherever a fits, and its panel, k x 128 bytes, is larger than a level-1 cache if k is above 300.
// Here k is cut: a panel of K_BLOCK rows is 32 KiB, the tile's rows of a 8 KiB. And panels are packed BLOCK_COLS columns at a time, half a level-2 cache: the tile's
// rows of a, now in level 1, meet all of them, and a is read n / BLOCK_COLS times instead of n / TILE_COLS times.
// The price: c is loaded and stored once for each block of k. A float is what it holds between, in memory as in the register, so the chain goes on with the same bits.
// Next: 7_threads.c
#include "ladder.h"

enum { K_BLOCK = 256, BLOCK_COLS = 512 };

void STEP(blocks)(const Product *g) {
  float *panels = floats(K_BLOCK * BLOCK_COLS);
  for (size_t k0 = 0; k0 < g->k; k0 += K_BLOCK)
    for (size_t j0 = 0; j0 < g->n; j0 += BLOCK_COLS) {
      const size_t k = MIN((size_t)K_BLOCK, g->k - k0), end = MIN(j0 + BLOCK_COLS, g->n);
      Tile t = {.k = k, .a_row = g->k, .b_row = TILE_COLS, .c_row = g->n, .continues = k0 > 0};
      for (size_t j = j0; j < end; j += TILE_COLS) STEP(pack)(panels + (j - j0) * k, g->b + k0 * g->n + j, g->n, MIN((size_t)TILE_COLS, end - j), k);
      for (size_t i = 0; i < g->m; i += TILE_ROWS)
        for (size_t j = j0; j < end; j += TILE_COLS) {
          t.rows = MIN((size_t)TILE_ROWS, g->m - i), t.cols = MIN((size_t)TILE_COLS, end - j);
          t.a = g->a + i * g->k + k0, t.b = panels + (j - j0) * k, t.c = g->c + i * g->n + j;
          STEP(tile)(&t);
        }
    }
  free(panels);
}
