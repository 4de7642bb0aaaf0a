// 7_threads.c: owns step 7: all cores.
//
// Rows of c are divided: nobody waits for anybody's sum, and a thread's piece of a stays in its own cache. The panels are packed by all threads together, each one once, and read by all.
// Tiles are given out a few rows at a time to whoever is free, so that a core that is slowed down holds up nobody for long. Which thread takes which
// rows differs from run to run, but k is never divided, so the bits do not.
// Two barriers a block: nobody reads a panel before it is packed, nobody packs a new one while it is read (the end of an "omp for" is one).
// Next: 8_program.c
#include "ladder.h"

enum { K_BLOCK = 256, BLOCK_COLS = 512, ROWS_AT_ONCE = 4 * TILE_ROWS };

void STEP(threads)(const Product *g) {
  float *panels = floats(K_BLOCK * BLOCK_COLS);
  #pragma omp parallel num_threads(cpu_state(g->device)->threads)
  for (size_t k0 = 0; k0 < g->k; k0 += K_BLOCK)
    for (size_t j0 = 0; j0 < g->n; j0 += BLOCK_COLS) {
      const size_t k = MIN((size_t)K_BLOCK, g->k - k0), end = MIN(j0 + BLOCK_COLS, g->n);
      Tile t = {.k = k, .a_row = g->k, .b_row = TILE_COLS, .c_row = g->n, .continues = k0 > 0};
      #pragma omp for schedule(static)
      for (size_t j = j0; j < end; j += TILE_COLS) STEP(pack)(panels + (j - j0) * k, g->b + k0 * g->n + j, g->n, MIN((size_t)TILE_COLS, end - j), k);
      #pragma omp for schedule(dynamic)
      for (size_t i0 = 0; i0 < g->m; i0 += ROWS_AT_ONCE)
        for (size_t i = i0; i < MIN(i0 + ROWS_AT_ONCE, g->m); i += TILE_ROWS)
          for (size_t j = j0; j < end; j += TILE_COLS) {
            t.rows = MIN((size_t)TILE_ROWS, g->m - i), t.cols = MIN((size_t)TILE_COLS, end - j);
            t.a = g->a + i * g->k + k0, t.b = panels + (j - j0) * k, t.c = g->c + i * g->n + j;
            STEP(tile)(&t);
          }
    }
  free(panels);
}
