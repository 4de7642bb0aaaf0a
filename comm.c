// comm.c: owns what all transports share: the parts of an array, the world of one rank, and the thread that communicates
// beside the computation. See comm.h. Tests: tests/test_queue.c, tests/test_comm.c
#include "comm.h"
#include "util.h"      // xcalloc, MIN, seconds_now
#include <signal.h>    // sigfillset
#include <stdlib.h>    // free
#include <string.h>    // strerror

CommPart comm_part(size_t n, int world, int rank) {
  size_t blocks = n / 16 + (n % 16 != 0), each = blocks / (size_t)world, more = blocks % (size_t)world, r = (size_t)rank;
  size_t first = MIN(16 * (each * r + MIN(r, more)), n), end = MIN(16 * (each * (r + 1) + MIN(r + 1, more)), n);
  return (CommPart){first, end - first};
}

// ---- for transports ----

const char *const comm_call_names[CALL_COUNT] = {"no call", "all_reduce", "reduce_scatter", "all_gather", "broadcast", "send", "receive", "barrier"};

void comm_where(char text[COMM_WHERE_ROOM], CommCall call, uint64_t bytes, int64_t step) {
  if (call == CALL_NONE) snprintf(text, COMM_WHERE_ROOM, "between collectives (0 bytes under way) at step %lld", (long long)step);
  else snprintf(text, COMM_WHERE_ROOM, "in %s of %llu bytes at step %lld", comm_call_names[call], (unsigned long long)bytes, (long long)step);
}

void comm_check_peer(const Comm *c, const char *call, int peer) {
  if (peer < 0 || peer >= c->world || peer == c->rank) fail(EXIT_MACHINE, "%s: rank %d of %d cannot do that with rank %d", call, c->rank, c->world, peer);
}

void comm_start_thread(pthread_t *thread, void *(*start)(void *), void *context) {
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  int error = pthread_create(thread, NULL, start, context);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  if (error) fail(EXIT_MACHINE, "a thread was refused by the system: %s; end other programs", strerror(error));
}

static void check_lock(int error, const char *call) { if (error) fail(EXIT_MACHINE, "%s: %s: a mistake in this program", call, strerror(error)); }

void comm_lock(pthread_mutex_t *m) { check_lock(pthread_mutex_lock(m), "pthread_mutex_lock"); }
void comm_unlock(pthread_mutex_t *m) { check_lock(pthread_mutex_unlock(m), "pthread_mutex_unlock"); }
void comm_wait(pthread_cond_t *changed, pthread_mutex_t *m) { check_lock(pthread_cond_wait(changed, m), "pthread_cond_wait"); }

// out = a + b, (n): eight floats or four doubles at a time; element by element the same additions. out may be a or b.
typedef float Floats __attribute__((vector_size(32), aligned(4), may_alias));
typedef double Doubles __attribute__((vector_size(32), aligned(8), may_alias));

#define DEFINE_ADD(name, type, vector) \
  static void name(type *out, const type *a, const type *b, size_t n) { \
    enum { WIDTH = sizeof(vector) / sizeof(type) }; \
    size_t i = 0; \
    for (; i + WIDTH <= n; i += WIDTH) *(vector *)(out + i) = *(const vector *)(a + i) + *(const vector *)(b + i); \
    for (; i < n; i++) out[i] = a[i] + b[i]; \
  }
DEFINE_ADD(add_floats, float, Floats)
DEFINE_ADD(add_doubles, double, Doubles)

// Block by block: what is not the sum of all yet stays in the first cache, in a place of its own, for out may be one of the parts.
void comm_add(void *out, const void *const *parts, int world, size_t n, CommType type) {
  enum { BLOCK = 2048 };
  const size_t size = comm_type_size(type);
  double sum[BLOCK];
  if (world == 1) memmove(out, parts[0], n * size);
  for (size_t first = 0; first < n; first += BLOCK) {
    const size_t m = MIN((size_t)BLOCK, n - first), at = first * size;
    const void *so_far = (const char *)parts[0] + at;
    for (int r = 1; r < world; r++) {
      const void *x = (const char *)parts[r] + at;
      void *to = r == world - 1 ? (char *)out + at : (void *)sum;
      if (type == COMM_F32) add_floats(to, so_far, x, m);
      else add_doubles(to, so_far, x, m);
      so_far = sum;
    }
  }
}

// ---- a world of one: every sum is the own number, nobody is to be waited for ----

static void none_elements(Comm *c, void *x, size_t n, CommType type) { (void)c; (void)x; (void)n; (void)type; }
static void none_broadcast(Comm *c, void *x, size_t bytes, int root) { (void)c; (void)x; (void)bytes; (void)root; }
static void none_barrier(Comm *c) { (void)c; }

static _Noreturn void none_peer(const char *operation, int peer) {
  fail(EXIT_MACHINE, "%s: rank %d does not exist in a world of one rank", operation, peer);
}
static void none_send(Comm *c, const void *x, size_t bytes, int to) { (void)c; (void)x; (void)bytes; none_peer("send", to); }
static void none_receive(Comm *c, void *x, size_t bytes, int from) { (void)c; (void)x; (void)bytes; none_peer("receive", from); }
static void none_destroy(Comm *c) { free(c); }

Comm *comm_none(void) {
  Comm *c = xzero(sizeof *c);
  *c = (Comm){.rank = 0, .world = 1, .transport = "none", .all_reduce = none_elements, .reduce_scatter = none_elements, .all_gather = none_elements,
              .broadcast = none_broadcast, .send = none_send, .receive = none_receive, .barrier = none_barrier, .destroy = none_destroy};
  return c;
}

// ---- the queue ----

typedef struct Job Job;
struct Job { CommCall call; CommType type; void *x; size_t n; Job *next; };

struct CommQueue {
  Comm *comm;
  bool threaded;                  // a thread makes the calls: neither is this rank alone, nor does the device work beside the computation by itself
  pthread_t thread;
  pthread_mutex_t mutex;          // guards what follows
  pthread_cond_t changed;
  Job *first, **end;              // what is under way, and still to do; where the next one is put
  bool quit;
  CommQueueTimes times;
};

static void make_call(Comm *c, const Job *j) {
  if (j->call == CALL_ALL_REDUCE) c->all_reduce(c, j->x, j->n, j->type);
  else c->reduce_scatter(c, j->x, j->n, j->type);
}

static void *work(void *context) {
  CommQueue *q = context;
  comm_lock(&q->mutex);
  for (;;) {
    while (!q->first && !q->quit) comm_wait(&q->changed, &q->mutex);
    Job *job = q->first;
    if (!job) break;
    comm_unlock(&q->mutex);
    double start = seconds_now();
    uint64_t before = q->comm->bytes_received;
    make_call(q->comm, job);
    comm_lock(&q->mutex);
    q->times.busy += seconds_now() - start;
    q->times.bytes += q->comm->bytes_received - before;
    q->times.calls++;
    q->first = job->next;
    if (!q->first) q->end = &q->first;
    free(job);
    pthread_cond_broadcast(&q->changed);
  }
  comm_unlock(&q->mutex);      // as it was found; nobody is left who would take it
  return NULL;
}

CommQueue *comm_queue_create(Comm *c) {
  CommQueue *q = xzero(sizeof *q);
  *q = (CommQueue){.comm = c, .threaded = c->world > 1 && !c->begin, .mutex = COMM_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER, .end = &q->first};
  if (q->threaded) comm_start_thread(&q->thread, work, q);
  return q;
}

static void put(CommQueue *q, CommCall call, void *x, size_t n, CommType type) {
  Job *job = xzero(sizeof *job);
  *job = (Job){call, type, x, n, NULL};
  comm_lock(&q->mutex);
  *q->end = job;
  q->end = &job->next;
  pthread_cond_broadcast(&q->changed);
  comm_unlock(&q->mutex);
}

static void begin_on_device(CommQueue *q, CommCall call, void *x, size_t n, CommType type) {
  const uint64_t before = q->comm->bytes_received;
  q->comm->begin(q->comm, call, x, n, type);
  q->times.bytes += q->comm->bytes_received - before;
  q->times.calls++;
}

static void wait_for_thread(CommQueue *q) {
  const double start = seconds_now();
  comm_lock(&q->mutex);
  while (q->first) comm_wait(&q->changed, &q->mutex);
  q->times.waited += seconds_now() - start;
  comm_unlock(&q->mutex);
}

static void wait_for_device(CommQueue *q) {
  Comm *c = q->comm;
  const double start = seconds_now(), before = c->seconds;
  c->finish(c);
  q->times.waited += seconds_now() - start;
  q->times.busy += c->seconds - before;
}

void comm_queue_add(CommQueue *q, CommCall call, void *x, size_t n, CommType type) {
  if (q->comm->world == 1) return;
  if (q->threaded) put(q, call, x, n, type);
  else begin_on_device(q, call, x, n, type);
}

void comm_queue_wait(CommQueue *q) {
  if (q->comm->world == 1) return;
  if (q->threaded) wait_for_thread(q);
  else wait_for_device(q);
}

CommQueueTimes comm_queue_times(CommQueue *q) {
  comm_lock(&q->mutex);
  CommQueueTimes times = q->times;
  q->times = (CommQueueTimes){0};
  comm_unlock(&q->mutex);
  return times;
}

void comm_queue_destroy(CommQueue *q) {
  if (!q) return;
  if (q->threaded) {
    comm_lock(&q->mutex);
    q->quit = true;
    pthread_cond_broadcast(&q->changed);
    comm_unlock(&q->mutex);
    pthread_join(q->thread, NULL);
  }
  free(q);
}
