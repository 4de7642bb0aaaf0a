// bench_comm.c: owns the measurement of the transports between ranks: an all-reduce beside copying the same bytes in memory.
//
//   bench_comm [MB] [RANKS]      500 MB, 2 ranks; shared memory and TCP over loopback. `make bench-comm`
// All ranks at once copy MB from one array to another (the best that moving so many bytes costs), then sum an array of MB, or the other way round: nine such pairs by
// turns, each measured from a barrier to the next, so that the slowest rank counts. The pages of all arrays have been touched before. The median of the ratios of the
// two times of a pair is the result: what fraction of the copy's bandwidth the sum reaches. Exit 1 if over shared memory that is less than half.
#include "comm.h"
#include "util.h"       // xmalloc, seconds_now
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>   // mmap
#include <sys/wait.h>   // waitpid
#include <unistd.h>     // fork

enum { TIMES = 9 };
typedef struct { double copy[TIMES], sum[TIMES]; } Notes;

static int ascending(const void *a, const void *b) { return *(const double *)a < *(const double *)b ? -1 : *(const double *)a > *(const double *)b; }
static void say(const char *text) { fprintf(stderr, "%s\n", text); }

static void measure(Comm *c, size_t n, Notes *notes) {
  float *x = xmalloc(n, sizeof *x), *y = xmalloc(n, sizeof *y);
  for (size_t i = 0; i < n; i++) x[i] = y[i] = (float)(i % 7);
  c->all_reduce(c, y, n, COMM_F32);
  for (size_t i = 0; i < n; i++) if (y[i] != (float)(i % 7) * (float)c->world) fail(EXIT_NO, "element %zu of the sum is wrong", i);
  for (int t = 0; t < 2 * TIMES; t++) {
    const bool copies = t % 4 == 0 || t % 4 == 3;
    c->barrier(c);
    const double start = seconds_now();
    if (copies) memcpy(y, x, n * sizeof *x);
    else c->all_reduce(c, y, n, COMM_F32);
    c->barrier(c);
    (copies ? notes->copy : notes->sum)[t / 2] = seconds_now() - start;
  }
  free(x);
  free(y);
  c->destroy(c);
}

static double run(const char *transport, size_t n, int world, Notes *notes, Comm *(*join)(int, int)) {
  fflush(stdout);
  for (int r = 0; r < world; r++) {
    if (fork()) continue;
    measure(join(r, world), n, &notes[r]);
    _exit(0);
  }
  for (int r = 0; r < world; r++) { int status; wait(&status); if (status) fail(EXIT_NO, "%s: a rank failed", transport); }
  double ratios[TIMES], copy[TIMES], sum[TIMES];
  for (int t = 0; t < TIMES; t++) copy[t] = notes[0].copy[t], sum[t] = notes[0].sum[t], ratios[t] = copy[t] / sum[t];
  qsort(ratios, TIMES, sizeof *ratios, ascending), qsort(copy, TIMES, sizeof *copy, ascending), qsort(sum, TIMES, sizeof *sum, ascending);
  const double gb = (double)(n * sizeof(float)) * 1e-9;
  printf("%-14s %d ranks, %.0f MB: copy %.2f GB/s, all_reduce %.2f GB/s; median of ratios %.2f (%.2f to %.2f)\n", transport, world, 1e3 * gb, gb / copy[TIMES / 2], gb / sum[TIMES / 2], ratios[TIMES / 2], ratios[0], ratios[TIMES - 1]);
  return ratios[TIMES / 2];
}

static CommShared *group;
static Comm *join_shared(int rank, int world) { (void)world; return comm_shared_join(group, rank); }
static Comm *join_tcp(int rank, int world) {
  const CommMeeting m = {.rank = rank, .world = world, .host = "127.0.0.1", .port = 29477, .token = "bench_comm's token", .token_bytes = 18, .version = "", .seconds = 20, .still_seconds = 20, .own_process = true, .say = say};
  return comm_tcp_join(&m);
}

int main(int argc, char **argv) {
  const long mb = argc > 1 ? atol(argv[1]) : 500, world = argc > 2 ? atol(argv[2]) : 2;
  if (mb < 1 || world < 2 || world > COMM_MOST_RANKS) { fprintf(stderr, "usage: bench_comm [MB] [RANKS]\n"); return 2; }
  Notes *notes = mmap(NULL, COMM_MOST_RANKS * sizeof *notes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  group = comm_shared_create((int)world, 20);
  const double ratio = run("shared memory", (size_t)mb * 250000, (int)world, notes, join_shared);
  run("TCP", (size_t)mb * 250000, (int)world, notes, join_tcp);
  return !(ratio >= 0.5);
}
