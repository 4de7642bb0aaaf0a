// 8_program.c: owns step 8: the program's own products (cpu_gemm.c), called as a model calls them.
//
// They are the seven ideas again, and what a model needs beside them: three directions, any shape (one row while decoding, 50,304 columns at the end), bias and
// activation while a block is in the cache, bf16. A weight is stored as (n,k), so packing it for the forward product turns it; the gradient of the input finds the same array in the order of step 5.
// Beside step 7: tiles of 8 x 3 vectors (fewer loads for each fma) with a function for every height and width of an edge, cuts that follow the shape, lines asked for ahead of time,
// one barrier a pass instead of two.
#include "ladder.h"

static real *reals_of(const float *p) { return (real *)(uintptr_t)p; }   // floats are what the fp32 CPU device stores

void ladder_forward(const Product *g) {
  g->device->linear_forward(g->device, reals_of(g->c), NULL, reals_of(g->a), reals_of(g->b_turned), NULL, g->m, g->k, g->n, ACTIVATION_NONE);
}

void ladder_backward_input(const Product *g) {
  g->device->linear_backward_input(g->device, reals_of(g->c), reals_of(g->a), reals_of(g->b), g->m, g->n, g->k);
}
