// 1_naive.c: all-reduce as one would first think of it: everybody sends all to rank 0, which adds, and sends the sum to everybody.
//
// Rank 0 receives (N-1) S bytes and sends (N-1) S, one rank after the other, while the others wait: its connection is the bottleneck, the more so the more ranks.
// Next: 2_ring.c
#include "ladder.h"

static void naive(Rank *me, float *x, size_t n) {
  if (me->rank > 0) {
    exchange(me, 0, x, n, 0, NULL, 0);
    exchange(me, 0, NULL, 0, 0, x, n);
    return;
  }
  float *other = malloc(n * sizeof *other + 1);
  for (int r = 1; r < me->world; r++) {
    exchange(me, r, NULL, 0, r, other, n);
    for (size_t i = 0; i < n; i++) x[i] += other[i];
  }
  for (int r = 1; r < me->world; r++) exchange(me, r, x, n, r, NULL, 0);
  free(other);
}

int main(void) { return check_and_time("naive", naive); }
