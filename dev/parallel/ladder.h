// ladder.h: owns what the steps of this ladder share: N processes that can send bytes to each other, numbers to be summed, the check, the clock.
//
// A step is one file with one idea: a function that leaves in x, on every rank, the sum over all ranks. It is checked against the plain sum, then timed.
// The ranks are forked, with a socket between each two; everything a rank knows of the others comes through those.
#include <fcntl.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { MOST_RANKS = 8 };
typedef struct { int rank, world, to[MOST_RANKS]; uint64_t sent; } Rank;          // to: sockets; sent: bytes so far
typedef void Step(Rank *me, float *x /* = sum over ranks, (n) */, size_t n);

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

// Sends out_n floats to one rank while in_n come from another one: were all to send first and then to receive, all would wait once the sockets are full.
static inline void exchange(Rank *me, int to, const float *out, size_t out_n, int from, float *in, size_t in_n) {
  const char *o = (const char *)out;
  char *i = (char *)in;
  size_t out_left = 4 * out_n, in_left = 4 * in_n;
  me->sent += out_left;
  while (out_left || in_left) {
    struct pollfd fds[2] = {{.fd = out_left ? me->to[to] : -1, .events = POLLOUT}, {.fd = in_left ? me->to[from] : -1, .events = POLLIN}};
    poll(fds, 2, -1);
    if (fds[0].revents) { ssize_t n = send(me->to[to], o, out_left, MSG_DONTWAIT | MSG_NOSIGNAL); if (n > 0) o += n, out_left -= (size_t)n; }
    if (fds[1].revents) { ssize_t n = recv(me->to[from], i, in_left, MSG_DONTWAIT); if (n > 0) i += n, in_left -= (size_t)n; else if (n == 0) exit(1); }
  }
}

// Rank r's part of n elements
static inline size_t part_begin(size_t n, int world, int r) { return n * (size_t)r / (size_t)world; }

// Whole numbers, so that every order of addition gives the same sum, and the check can be exact
static inline float number(int rank, size_t i) { return (float)((i * 7 + (size_t)rank * 13) % 101); }
static inline void fill(float *x, size_t n, int rank) { for (size_t i = 0; i < n; i++) x[i] = number(rank, i); }
static inline bool is_sum(const float *x, size_t n, int world) {
  for (size_t i = 0; i < n; i++) {
    float sum = 0;
    for (int r = 0; r < world; r++) sum += number(r, i);
    if (x[i] != sum) return false;
  }
  return true;
}

typedef struct { double seconds; uint64_t sent; bool right; } Result;

// Runs the step on `world` ranks, n elements: once to be checked, then `times` times for the clock. results: of each rank
static inline void run(int world, size_t n, int times, Step *step, Result results[MOST_RANKS]) {
  int pairs[MOST_RANKS][MOST_RANKS] = {{0}};
  Result *shared = mmap(NULL, MOST_RANKS * sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  for (int a = 0; a < world; a++)
    for (int b = a + 1; b < world; b++) {
      int ends[2];
      if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends)) { perror("socketpair"); exit(1); }
      pairs[a][b] = ends[0], pairs[b][a] = ends[1];
    }
  fflush(stdout);
  for (int r = 0; r < world; r++) {
    if (fork()) continue;
    Rank me = {.rank = r, .world = world};
    for (int other = 0; other < world; other++) me.to[other] = pairs[r][other];
    float *x = malloc(n * sizeof *x + 1);
    fill(x, n, r);
    step(&me, x, n);
    shared[r].right = is_sum(x, n, world);
    me.sent = 0;
    double best = 1e9;
    for (int t = 0; t < times; t++) {
      fill(x, n, r);
      const double start = now();
      step(&me, x, n);
      if (now() - start < best) best = now() - start;
    }
    shared[r].seconds = best;
    shared[r].sent = me.sent / (uint64_t)(times ? times : 1);
    _exit(0);
  }
  for (int a = 0; a < world; a++) for (int b = 0; b < world; b++) if (a != b) close(pairs[a][b]);
  for (int r = 0; r < world; r++) wait(NULL);
  memcpy(results, shared, MOST_RANKS * sizeof *shared);
  munmap(shared, MOST_RANKS * sizeof *shared);
}

// Checks odd sizes and 1 to 5 ranks, then prints the time for a gradient of 16 MiB; the exit code of the program.
static inline int check_and_time(const char *name, Step *step) {
  static const size_t sizes[] = {1, 3, 1000, 65537};
  Result results[MOST_RANKS];
  for (int world = 1; world <= 5; world++)
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
      run(world, sizes[s], 0, step, results);
      for (int r = 0; r < world; r++) if (!results[r].right) { printf("%s: WRONG on rank %d of %d, %zu elements\n", name, r, world, sizes[s]); return 1; }
    }
  for (int world = 2; world <= 4; world += 2) {
    const size_t n = 4 << 20;
    run(world, n, 5, step, results);
    double slowest = 0;
    uint64_t most = 0;
    for (int r = 0; r < world; r++) {
      if (results[r].seconds > slowest) slowest = results[r].seconds;
      if (results[r].sent > most) most = results[r].sent;
    }
    printf("%-10s %d ranks: right; %7.1f ms; the busiest rank sends %5.1f MiB of %.0f\n", name, world, 1e3 * slowest, (double)most / (1 << 20), (double)(4 * n) / (1 << 20));
  }
  return 0;
}
