// test_queue.c: owns the proof of what all transports share (comm.c): how an array is cut, the order of a sum, words for messages, threads and locks, and the
// queue beside the computation, over a communicator whose calls only take their time and note what they were asked for.
#include "comm.h"
#include "test.h"
#include "util.h"       // seconds_now
#include <signal.h>     // pthread_sigmask
#include <unistd.h>     // usleep

// ---- parts ----

// Blocks of 16 elements, dealt out as evenly as can be, more to the first ranks; the last block may be shorter.
static void parts(void) {
  for (int world = 1; world <= 9; world++)
    for (size_t n = 0; n < 900; n++) {
      const size_t blocks = (n + 15) / 16;
      size_t next = 0;
      for (int r = 0; r < world; r++) {
        const size_t own = blocks / (size_t)world + ((size_t)r < blocks % (size_t)world ? 1 : 0), end = MIN(next + 16 * own, n);
        const CommPart p = comm_part(n, world, r);
        CHECK_MSG(p.first == next && p.n == end - next, "%zu elements, rank %d of %d: %zu from %zu", n, r, world, p.n, p.first);
        next = end;
      }
      CHECK_EQ(next, n);
    }
}

// ---- sums: numbers whose sum depends on the order, from places of any alignment, in a place of its own or in one of the parts ----

static double number(int rank, size_t i) { return (double)((i * 7919 + (size_t)rank * 104729) % 1000003) * (i % 3 ? 1e-9 : 1e3) - (double)rank; }

static void check_sum(size_t n, int world, CommType type, int into) {
  const size_t size = comm_type_size(type);
  char *memory[4];
  const void *xs[5] = {NULL};                              // there is no part behind the last one
  for (int r = 0; r < world; r++) {
    memory[r] = xmalloc((n + 2) * size + 1, 1);
    char *x = memory[r] + size;                            // as parts lie: on multiples of the element's size only
    for (size_t i = 0; i < n; i++) {
      const double v = number(r, i);
      const float f = (float)v;
      memcpy(x + i * size, type == COMM_F32 ? (const void *)&f : &v, size);
    }
    memset(memory[r], 0x5a, size), memset(x + n * size, 0x5a, size + 1);
    xs[r] = x;
  }
  char *own = xmalloc((n + 2) * size, 1), *out = into < 0 ? own + size : memory[into] + size;
  memset(own, 0x5a, (n + 2) * size);
  comm_add(out, xs, world, n, type);
  for (size_t i = 0; i < n; i++) {
    double sum = number(0, i);
    float f = (float)sum;
    for (int r = 1; r < world; r++) sum += number(r, i), f += (float)number(r, i);
    CHECK_MSG(!memcmp(out + i * size, type == COMM_F32 ? (const void *)&f : &sum, size), "element %zu of %zu, %d ranks", i, n, world);
  }
  for (size_t i = 0; i < size; i++) CHECK_MSG(out[i - size] == 0x5a && out[n * size + i] == 0x5a, "%zu elements: written before or behind them", n);
  for (int r = 0; r < world; r++) free(memory[r]);
  free(own);
}
static void sums_are_chains(void) {
  static const size_t sizes[] = {0, 1, 3, 4, 5, 7, 8, 9, 31, 2047, 2048, 2049, 4096, 5000};
  for (size_t s = 0; s < ARRAY_LEN(sizes); s++)
    for (int world = 1; world <= 4; world++)
      for (int into = -1; into < world; into++) { check_sum(sizes[s], world, COMM_F32, into); check_sum(sizes[s], world, COMM_F64, into); }
}

// ---- words ----

static void words(void) {
  char text[COMM_WHERE_ROOM];
  comm_where(text, CALL_NONE, 17, 3);
  CHECK_STR(text, "between collectives (0 bytes under way) at step 3");
  static const char *const calls[] = {"no call", "all_reduce", "reduce_scatter", "all_gather", "broadcast", "send", "receive", "barrier"};
  for (int call = CALL_ALL_REDUCE; call < CALL_COUNT; call++) {
    char expected[COMM_WHERE_ROOM];
    snprintf(expected, sizeof expected, "in %s of 18446744073709551615 bytes at step -7", calls[call]);
    comm_where(text, (CommCall)call, UINT64_MAX, -7);
    CHECK_STR(text, expected);
  }
}

static void peers(void) {
  const Comm c = {.rank = 1, .world = 3};
  comm_check_peer(&c, "send", 0);
  comm_check_peer(&c, "send", 2);
  EXPECT_FAIL(EXIT_MACHINE, "send: rank 1 of 3 cannot do that with rank -1", comm_check_peer(&c, "send", -1));
  EXPECT_FAIL(EXIT_MACHINE, "receive: rank 1 of 3 cannot do that with rank 1", comm_check_peer(&c, "receive", 1));
  EXPECT_FAIL(EXIT_MACHINE, "receive: rank 1 of 3 cannot do that with rank 3", comm_check_peer(&c, "receive", 3));
}

static void world_of_one(void) {
  Comm *c = comm_none();
  float x = 3;
  c->all_reduce(c, &x, 1, COMM_F32);
  c->reduce_scatter(c, &x, 1, COMM_F32);
  c->all_gather(c, &x, 1, COMM_F32);
  c->broadcast(c, &x, sizeof x, 0);
  c->barrier(c);
  CHECK(x == 3 && c->bytes_received == 0 && c->world == 1 && c->rank == 0);
  EXPECT_FAIL(EXIT_MACHINE, "send: rank 1 does not exist", c->send(c, &x, 4, 1));
  EXPECT_FAIL(EXIT_MACHINE, "receive: rank 1 does not exist", c->receive(c, &x, 4, 1));
  c->destroy(c);
}

// ---- threads and locks ----

static int threads_here(void) {
  size_t n;
  char **names = list_directory("/proc/self/task", &n);
  free_names(names, n);
  return (int)n;
}

static void *note_mask(void *mask) {
  pthread_sigmask(SIG_BLOCK, NULL, mask);
  return NULL;
}
static void threads_take_no_signals(void) {
  sigset_t before, theirs, after;
  pthread_t thread;
  sigemptyset(&before), sigemptyset(&theirs);
  sigaddset(&before, SIGUSR2);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  comm_start_thread(&thread, note_mask, &theirs);
  pthread_join(thread, NULL);
  pthread_sigmask(SIG_SETMASK, NULL, &after);
  for (int s = 1; s < 32; s++) CHECK_EQ(sigismember(&after, s), s == SIGUSR2);
  CHECK(sigismember(&theirs, SIGINT) && sigismember(&theirs, SIGTERM) && sigismember(&theirs, SIGUSR1) && sigismember(&theirs, SIGCHLD));
  sigemptyset(&before);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
}
static void start_with_no_room(void) {
  pthread_attr_t huge;
  pthread_t thread;
  pthread_attr_init(&huge);
  pthread_attr_setstacksize(&huge, (size_t)1 << 50);
  pthread_setattr_default_np(&huge);
  comm_start_thread(&thread, note_mask, NULL);
}
static void a_thread_that_is_refused(void) { EXPECT_FAIL(EXIT_MACHINE, "a thread was refused by the system", start_with_no_room()); }

static pthread_mutex_t mutex = COMM_MUTEX_INITIALIZER;
static pthread_cond_t condition = PTHREAD_COND_INITIALIZER;
static void mistakes_with_locks_end_the_program(void) {
  comm_lock(&mutex);
  comm_unlock(&mutex);
  EXPECT_FAIL(EXIT_MACHINE, "pthread_mutex_unlock: Operation not permitted", comm_unlock(&mutex));
  EXPECT_FAIL(EXIT_MACHINE, "pthread_mutex_lock: Resource deadlock avoided", comm_lock(&mutex); comm_lock(&mutex));
  EXPECT_FAIL(EXIT_MACHINE, "pthread_cond_wait: Operation not permitted", comm_wait(&condition, &mutex));
}

// ---- the queue ----

enum { MOST = 64 };
static struct { CommCall call; CommType type; void *x; size_t n; bool beside; } asked[MOST];
static int count, finished;
static double pause_of_call;          // seconds
static pthread_t own_thread;

static void note_call(Comm *c, CommCall call, void *x, size_t n, CommType type) {
  if (count < MOST) asked[count].call = call, asked[count].type = type, asked[count].x = x, asked[count].n = n, asked[count].beside = !pthread_equal(pthread_self(), own_thread);
  count++;
  if (!c->begin) usleep((useconds_t)(1e6 * pause_of_call));
  c->bytes_received += 1000 + n;
}
static void slow_all_reduce(Comm *c, void *x, size_t n, CommType type) { note_call(c, CALL_ALL_REDUCE, x, n, type); }
static void slow_reduce_scatter(Comm *c, void *x, size_t n, CommType type) { note_call(c, CALL_REDUCE_SCATTER, x, n, type); }
static void finish_slowly(Comm *c) {
  usleep((useconds_t)(1e6 * pause_of_call));
  finished++;
  c->seconds += 0.125;
}
static Comm slow_comm(bool device) {
  own_thread = pthread_self();
  count = finished = 0;
  return (Comm){.world = 2, .bytes_received = 77, .seconds = 40, .all_reduce = slow_all_reduce, .reduce_scatter = slow_reduce_scatter, .begin = device ? note_call : NULL, .finish = finish_slowly};
}
static char places[MOST];
static void add_some(CommQueue *q, int n) {
  for (int i = 0; i < n; i++) comm_queue_add(q, i % 3 == 1 ? CALL_REDUCE_SCATTER : CALL_ALL_REDUCE, &places[i], (size_t)i, i % 2 ? COMM_F64 : COMM_F32);
}
static void check_asked(int first, int n, bool beside) {
  CHECK_EQ(count, first + n);
  for (int i = 0; i < n; i++) {
    const int a = first + i;
    CHECK_MSG(asked[a].call == (i % 3 == 1 ? CALL_REDUCE_SCATTER : CALL_ALL_REDUCE) && asked[a].x == &places[i] && asked[a].n == (size_t)i && asked[a].type == (i % 2 ? COMM_F64 : COMM_F32) && asked[a].beside == beside, "call %d", a);
  }
}

// All calls in the order in which they were added, by another thread. Whoever waits at once waits for all of them; whoever works meanwhile waits for nothing.
static void calls_in_order_beside_the_computation(void) {
  enum { CALLS = 20 };
  Comm c = slow_comm(false);
  CommQueue *q = comm_queue_create(&c);
  CommQueueTimes t = comm_queue_times(q);
  CHECK(!t.calls && !t.bytes && t.busy == 0 && t.waited == 0);
  comm_queue_wait(q);                                      // for nothing
  for (int round = 0; round < 2; round++) {                // into the same table twice
    pause_of_call = 0.004;
    const double start = seconds_now();
    add_some(q, CALLS);
    const double added = seconds_now() - start;
    comm_queue_wait(q);
    const double took = seconds_now() - start;
    check_asked(round * CALLS, CALLS, true);
    t = comm_queue_times(q);
    CHECK_EQ(t.calls, CALLS);
    CHECK_EQ(t.bytes, CALLS * 1000 + CALLS * (CALLS - 1) / 2);
    CHECK_MSG(t.busy >= CALLS * pause_of_call && t.busy <= took, "busy %g of %g s", t.busy, took);
    CHECK_MSG(t.waited >= CALLS * pause_of_call - added && t.waited <= took, "waited %g of %g s", t.waited, took);
    t = comm_queue_times(q);
    CHECK(!t.calls && !t.bytes && t.busy == 0 && t.waited == 0);
  }
  count = 0;
  pause_of_call = 0.02;
  double waits = 0;
  for (int i = 0; i < 3; i++) {                            // what was waited for is added up
    add_some(q, 2);
    const double start = seconds_now();
    comm_queue_wait(q);
    waits += seconds_now() - start;
  }
  t = comm_queue_times(q);
  CHECK_MSG(t.waited <= waits && t.waited >= 0.06, "waited %g of %g s", t.waited, waits);
  CHECK_EQ(t.calls, 6);
  add_some(q, 1);
  usleep(200000);                                          // the computation
  comm_queue_wait(q);
  t = comm_queue_times(q);
  CHECK_MSG(t.busy >= pause_of_call && t.waited < 0.5 * pause_of_call, "busy %g, waited %g s", t.busy, t.waited);
  comm_queue_destroy(q);
}

// A queue is ended behind what it has still to do.
static void nothing_is_left_undone(void) {
  Comm c = slow_comm(false);
  CommQueue *q = comm_queue_create(&c);
  pause_of_call = 0.005;
  add_some(q, 10);
  comm_queue_destroy(q);
  check_asked(0, 10, true);
  comm_queue_destroy(NULL);
  q = comm_queue_create(&c);                               // asleep when it is ended
  usleep(20000);
  comm_queue_destroy(q);
}

// A device takes calls at once and does them itself: no thread, nothing is waited for but its end.
static void a_device_needs_no_thread(void) {
  Comm c = slow_comm(true);
  CommQueue *q = comm_queue_create(&c);
  pause_of_call = 0.02;
  add_some(q, 5);
  check_asked(0, 5, false);
  CHECK_EQ(finished, 0);
  double waits = 0;
  for (int i = 0; i < 2; i++) {
    const double start = seconds_now();
    comm_queue_wait(q);
    waits += seconds_now() - start;
  }
  CHECK_EQ(finished, 2);
  const CommQueueTimes t = comm_queue_times(q), after = comm_queue_times(q);
  CHECK_EQ(t.calls, 5);
  CHECK_EQ(t.bytes, 5 * 1000 + 10);
  CHECK_MSG(t.busy == 0.25 && t.waited >= 0.04 && t.waited <= waits, "busy %g, waited %g of %g s", t.busy, t.waited, waits);
  CHECK(!after.calls && !after.bytes && after.busy == 0 && after.waited == 0);
  comm_queue_destroy(q);
}

static void a_world_of_one_has_nothing_to_say(void) {
  Comm c = slow_comm(false);
  c.world = 1;
  CommQueue *q = comm_queue_create(&c);
  add_some(q, 3);
  comm_queue_wait(q);
  CHECK_EQ(threads_here(), 1);
  const CommQueueTimes t = comm_queue_times(q);
  CHECK(count == 0 && finished == 0 && !t.calls && !t.bytes && t.busy == 0 && t.waited == 0);
  comm_queue_destroy(q);
}

int main(int argc, char **argv) {
  TEST_BEGIN(argc, argv);
  RUN(parts);
  RUN(sums_are_chains);
  RUN(words);
  RUN(peers);
  RUN(world_of_one);
  RUN(threads_take_no_signals);
  RUN(a_thread_that_is_refused);
  RUN(mistakes_with_locks_end_the_program);
  RUN(calls_in_order_beside_the_computation);
  RUN(nothing_is_left_undone);
  RUN(a_device_needs_no_thread);
  RUN(a_world_of_one_has_nothing_to_say);
  return TEST_END();
}
