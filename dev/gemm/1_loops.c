// 1_loops.c: owns step 1: the definition, as three loops. c[i,j] = sum over p of a[i,p] b[p,j].
//
// Each multiply-add needs the sum before it, and an fma takes four cycles or so: the processor, which could begin two vectors of them in every cycle, begins one number in four.
// And b is read down a column. A step down is n floats further: another cache line of 64 bytes, of which 4 are used. As long as a cache keeps a column's k lines, the next 15 columns
// find them there. But a cache has a few places for each address modulo some KiB (a SET): if n is a power of two, all lines of a column want the same few places, and are gone
// before they are used again. Then each fma waits for a line of 64 bytes from far away.
// Next: 2_order.c
#include "ladder.h"

void STEP(loops)(const Product *g) {
  for (size_t i = 0; i < g->m; i++)
    for (size_t j = 0; j < g->n; j++) {
      float sum = 0;
      for (size_t p = 0; p < g->k; p++) sum = fmaf(g->a[i * g->k + p], g->b[p * g->n + j], sum);
      g->c[i * g->n + j] = sum;
    }
}
