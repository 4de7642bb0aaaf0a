// 2_order.c: owns step 2: the same loops in another order, so that the innermost one streams along rows of b and c.
//
// All 64 bytes of each line are used now, and the processor's prefetcher sees what comes next. And neighbours of the innermost loop belong to different chains:
// one fma need not wait for the other. Each chain still adds p = 0, 1, 2, ...; it only rests between, in memory.
// That is what it costs: each multiply-add loads two numbers and stores one, and about one is done in a cycle.
// Next: 3_registers.c
#include "ladder.h"

void STEP(order)(const Product *g) {
  for (size_t i = 0; i < g->m; i++) {
    float *c = g->c + i * g->n;
    for (size_t j = 0; j < g->n; j++) c[j] = 0;
    for (size_t p = 0; p < g->k; p++) {
      const float factor = g->a[i * g->k + p], *b = g->b + p * g->n;
      for (size_t j = 0; j < g->n; j++) c[j] = fmaf(factor, b[j], c[j]);
    }
  }
}
