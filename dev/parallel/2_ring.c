// 2_ring.c: the ring (Patarasuk and Yuan 2009): x is cut into N parts, and every rank sends to the next one and receives from the one before, all at once.
//
// N-1 turns of REDUCE-SCATTER: part p travels once around, and each rank on its way adds its own; afterwards rank r has the sum of one part. N-1 turns of ALL-GATHER: the
// sums travel around. Every rank sends 2 (N-1)/N S bytes, which is hardly more for 100 ranks than for 4, and no algorithm needs less.
// The program's own transports (comm_shared.c, comm_tcp.c) do the same two halves without the ring: rank r takes everybody's part r at once and adds in rank order, so that the
// bits do not depend on who stands beside whom. The bytes are the same. ZeRO-1 keeps the halves apart: between them each rank updates its part.
// Next: 3_buckets.c
#include "ladder.h"

void ring(Rank *me, float *x, size_t n) {
  const int N = me->world, next = (me->rank + 1) % N, before = (me->rank + N - 1) % N;
  float *come = malloc((n / (size_t)N + 1) * sizeof *come);
  for (int turn = 0; turn < N - 1; turn++) {                   // reduce-scatter
    const int out = (me->rank - turn + N) % N, in = (me->rank - turn - 1 + N) % N;
    const size_t o = part_begin(n, N, out), o_end = part_begin(n, N, out + 1), i = part_begin(n, N, in), i_end = part_begin(n, N, in + 1);
    exchange(me, next, x + o, o_end - o, before, come, i_end - i);
    for (size_t k = 0; k < i_end - i; k++) x[i + k] += come[k];
  }
  for (int turn = 0; turn < N - 1; turn++) {                   // all-gather: this rank has the sum of part rank + 1
    const int out = (me->rank + 1 - turn + N) % N, in = (me->rank - turn + N) % N;
    const size_t o = part_begin(n, N, out), o_end = part_begin(n, N, out + 1), i = part_begin(n, N, in), i_end = part_begin(n, N, in + 1);
    exchange(me, next, x + o, o_end - o, before, x + i, i_end - i);
  }
  free(come);
}

#ifndef LIBRARY
int main(void) { return check_and_time("ring", ring); }
#endif
