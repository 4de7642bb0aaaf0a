// 3_registers.c: owns step 3: a small tile of c stays in registers until it is done.
//
// A tile of 4 x 3 sums takes 4 numbers of a and 3 of b for 12 multiply-adds: 7 loads and no store, where step 2 has 24 loads and 12 stores. The 12 chains are independent,
// which is enough to keep two units with a latency of four cycles busy. 12 sums, 3 numbers of b and one of a are the 16 registers that AVX2 has.
// What is left: a register with room for 16 floats holds one of them. And b is read down columns again, 3 wide: with a power of two that loses more than registers bring.
// Next: 4_vectors.c
#include "ladder.h"

enum { ROWS = 4, COLS = 3 };

// rows x cols sums of c from (i,j); both are constants where it is called, so that all sums are registers
ALWAYS_INLINE void tile(const size_t rows, const size_t cols, const Product *g, size_t i, size_t j) {
  float sum[ROWS][COLS] = {{0}};
  const float *a = g->a + i * g->k, *b = g->b + j;
  for (size_t p = 0; p < g->k; p++, a++, b += g->n) {
    UNROLL for (size_t r = 0; r < rows; r++) {
      UNROLL for (size_t s = 0; s < cols; s++) sum[r][s] = fmaf(a[r * g->k], b[s], sum[r][s]);
    }
  }
  for (size_t r = 0; r < rows; r++)
    for (size_t s = 0; s < cols; s++) g->c[(i + r) * g->n + j + s] = sum[r][s];
}

void STEP(registers)(const Product *g) {
  const size_t m = g->m / ROWS * ROWS, n = g->n / COLS * COLS;   // of whole tiles
  for (size_t j = 0; j < n; j += COLS)
    for (size_t i = 0; i < m; i += ROWS) tile(ROWS, COLS, g, i, j);
  for (size_t i = 0; i < g->m; i++)                              // the edges, one by one
    for (size_t j = i < m ? n : 0; j < g->n; j++) tile(1, 1, g, i, j);
}
