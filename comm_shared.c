// comm_shared.c: owns the shared-memory transport of comm.h: ranks that are processes of one machine.
//
// Each rank has a STAGING buffer that others read, a RESULT buffer, and two counters. A collective goes piece by piece, a
// piece small enough for the caches:
//   stage    copy what others need into the own staging buffer;  staged += 1;   wait until all have staged
//   work     add the own part of the piece, in rank order;       finished += 1; wait until all have finished
//   collect  copy the others' parts from their result buffers
// Staging is free again when all have finished, a result when all have staged the next piece: so no third wait is needed.
// The calls of all ranks are compared between the two waits of the first piece, while nobody can have gone on to another.
//
// A wait spins a little, then sleeps on the counter itself (futex), looking up every 50 ms for a fault, the other's heart
// and the deadline. Tests: tests/test_comm.c
#include "comm.h"
#include "util.h"           // fail, xcalloc, seconds_now
#include <errno.h>          // errno, ETIMEDOUT
#include <linux/futex.h>    // FUTEX_WAIT, FUTEX_WAKE
#include <pthread.h>        // pthread_join
#include <stdlib.h>         // free
#include <string.h>         // memcpy
#include <sys/mman.h>       // mmap
#include <sys/syscall.h>    // SYS_futex
#include <time.h>           // timespec
#include <unistd.h>         // syscall, _exit

enum { STAGING = 1 << 19 };   // bytes; two of each rank should stay in a core's caches

typedef struct { _Atomic uint32_t value, sleepers; } Counter;   // value only grows (and may wrap)

typedef struct {
  _Alignas(128) Counter staged;
  _Alignas(128) Counter finished;
  _Alignas(128) _Atomic uint32_t beat;
  _Atomic int left;
  _Atomic int call, detail;             // detail: type, root or peer
  _Atomic uint64_t bytes;
  _Atomic int64_t step;
} Slot;

typedef struct { Counter posted, taken; _Atomic uint64_t bytes; } Mail;   // of one sender to one receiver

enum { FAULT_NONE, FAULT_BEING_WRITTEN, FAULT_WRITTEN };

typedef struct {
  _Atomic int fault;
  int fault_rank;
  char fault_text[512];
  CommBoard board;
  Slot slots[COMM_MOST_RANKS];
  Mail mail[COMM_MOST_RANKS][COMM_MOST_RANKS];   // [from][to]
} Header;

typedef struct { uint32_t beat; double still, seen; } Pulse;    // what one process knows of another's heart

struct CommShared {        // one view: the supervisor's, or a rank's
  int world;
  double still_seconds;
  size_t bytes;
  Header *header;          // shared
  char *buffers;           // shared: staging and result of each rank
  Pulse pulses[COMM_MOST_RANKS];
};

typedef struct {
  CommShared view, *shared;   // shared = &view
  pthread_t heart;
  pthread_mutex_t mutex;
  pthread_cond_t quit_changed;
  bool quit;
  int spins;
} Member;

static Member *member(const Comm *c) { return c->state; }
static Slot *slot(const Comm *c, int rank) { return &member(c)->shared->header->slots[rank]; }
static char *staging(const Comm *c, int rank) { return member(c)->shared->buffers + (size_t)rank * 2 * STAGING; }
static char *result(const Comm *c, int rank) { return staging(c, rank) + STAGING; }

// ---- the memory ----

CommShared *comm_shared_create(int world, double still_seconds) {
  if (world < 1 || world > COMM_MOST_RANKS) fail(EXIT_REQUEST, "--ranks %d: from 1 to %d are possible", world, COMM_MOST_RANKS);
  CommShared *s = xcalloc(1, sizeof *s);
  size_t header = round_up(sizeof(Header), 4096);
  s->world = world;
  s->still_seconds = still_seconds;
  s->bytes = header + (size_t)world * 2 * STAGING;
  void *p = mmap(NULL, s->bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) fail(EXIT_MACHINE, "memory: %zu bytes to share between %d ranks were refused: %s; use fewer --ranks", s->bytes, world, strerror(errno));
  s->header = p;
  s->buffers = (char *)p + header;
  return s;
}

void comm_shared_free(CommShared *s) {
  munmap(s->header, s->bytes);
  free(s);
}

CommBoard *comm_shared_board(CommShared *s) { return &s->header->board; }

// ---- faults ----

void comm_shared_abort(CommShared *s, int rank, const char *fmt, ...) {
  Header *h = s->header;
  int none = FAULT_NONE;
  if (!atomic_compare_exchange_strong(&h->fault, &none, FAULT_BEING_WRITTEN)) return;
  va_list args;
  va_start(args, fmt);
  h->fault_rank = rank;
  vsnprintf(h->fault_text, sizeof h->fault_text, fmt, args);
  va_end(args);
  atomic_store(&h->fault, FAULT_WRITTEN);
}

bool comm_shared_fault(CommShared *s, int *rank, char text[512]) {
  Header *h = s->header;
  for (int i = 0; i < 100 && atomic_load(&h->fault) == FAULT_BEING_WRITTEN; i++) usleep(1000);   // its finder may have died over it
  int state = atomic_load(&h->fault);
  if (state == FAULT_NONE) return false;
  *rank = state == FAULT_WRITTEN ? h->fault_rank : -1;
  snprintf(text, 512, "%s", state == FAULT_WRITTEN ? h->fault_text : "a rank ended while it reported a fault");
  return true;
}

void comm_shared_where(const CommShared *s, int rank, char text[128]) {
  const Slot *r = &s->header->slots[rank];
  comm_where(text, (CommCall)r->call, r->bytes, r->step);
}

bool comm_shared_left(const CommShared *s, int rank) { return s->header->slots[rank].left; }

void comm_shared_watch(CommShared *s) {
  double now = seconds_now();
  for (int r = 0; r < s->world; r++) {
    Slot *other = &s->header->slots[r];
    Pulse *p = &s->pulses[r];
    uint32_t beat = other->beat;
    // Only time in which this process itself ran is counted: all may have been stopped together, and wake together.
    if (beat != p->beat || p->seen == 0) { p->beat = beat; p->still = 0; } else p->still += MIN(now - p->seen, 0.25);
    p->seen = now;
    if (other->left || p->still < s->still_seconds) continue;
    char where[128];
    comm_shared_where(s, r, where);
    comm_shared_abort(s, r, "rank %d has stood still for %.0f seconds (stopped, or its machine is overloaded) %s", r, p->still, where);
  }
}

// Somebody has recorded a fault. The supervisor says what it is; here nothing more can be done.
static _Noreturn void leave_silently(void) {
  fflush(stdout);
  _exit(EXIT_MACHINE);
}

// ---- waiting ----

static long futex(_Atomic uint32_t *word, int operation, uint32_t value, const struct timespec *timeout) {
  return syscall(SYS_futex, word, operation, value, timeout, NULL, 0);
}

static void publish(Counter *counter) {
  atomic_fetch_add(&counter->value, 1);
  if (atomic_load(&counter->sleepers)) futex(&counter->value, FUTEX_WAKE, INT32_MAX, NULL);
}

static bool reached(Counter *counter, uint32_t target, uint32_t *value) {
  *value = atomic_load_explicit(&counter->value, memory_order_acquire);
  return (int32_t)(*value - target) >= 0;
}

static void relax(void) {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// Called about every 50 ms while waiting for `rank`, after `waited` seconds.
static void look_up(Comm *c, int rank, Counter *counter, uint32_t target, double waited) {
  CommShared *s = member(c)->shared;
  char here[128], there[128];
  bool gone = slot(c, rank)->left;      // read before the counter: a rank that left in peace has done its part first
  uint32_t value;
  if (reached(counter, target, &value)) return;
  if (atomic_load(&s->header->fault)) leave_silently();
  comm_shared_watch(s);
  comm_shared_where(s, c->rank, here);
  comm_shared_where(s, rank, there);
  if (gone) comm_shared_abort(s, rank, "rank %d has ended its part while rank %d is %s", rank, c->rank, here);
  if (waited > c->deadline)
    comm_shared_abort(s, rank, "rank %d did not come within the deadline of %.3g seconds: it is %s, while rank %d is %s", rank, c->deadline, there, c->rank, here);
  if (atomic_load(&s->header->fault)) leave_silently();
}

static void wait_for(Comm *c, int rank, Counter *counter, uint32_t target) {
  static const struct timespec pause = {.tv_nsec = 50 * 1000 * 1000};
  uint32_t value;
  for (int i = 0; i < member(c)->spins; i++) { if (reached(counter, target, &value)) return; relax(); }
  double waited = 0, last = seconds_now(), looked = 0;
  while (!reached(counter, target, &value)) {
    atomic_fetch_add(&counter->sleepers, 1);
    futex(&counter->value, FUTEX_WAIT, value, &pause);    // returns at once if the value has changed meanwhile
    atomic_fetch_sub(&counter->sleepers, 1);
    double now = seconds_now();
    waited += MIN(now - last, 0.25);                      // not the time in which this process was stopped
    last = now;
    if (waited - looked < 0.04) continue;
    looked = waited;
    look_up(c, rank, counter, target, waited);
  }
}

// ---- what every call begins and ends with ----

static void shared_announce(Comm *c, CommCall call, uint64_t bytes) {
  Slot *own = slot(c, c->rank);
  own->bytes = bytes;
  own->step = c->step;
  own->call = (int)call;
}

static double enter(Comm *c, CommCall call, uint64_t bytes, int detail) {
  slot(c, c->rank)->detail = detail;
  shared_announce(c, call, bytes);
  if (atomic_load(&member(c)->shared->header->fault)) leave_silently();
  return seconds_now();
}

static void leave(Comm *c, double start) {
  slot(c, c->rank)->call = CALL_NONE;
  c->seconds += seconds_now() - start;
}

// All must have come with the same call; else the sums would be of apples and pears.
static void compare_calls(Comm *c) {
  Slot *own = slot(c, c->rank);
  for (int r = 0; r < c->world; r++) {
    Slot *other = slot(c, r);
    if (other->call == own->call && other->bytes == own->bytes && other->detail == own->detail) continue;
    char here[128], there[128];
    comm_shared_where(member(c)->shared, c->rank, here);
    comm_shared_where(member(c)->shared, r, there);
    comm_shared_abort(member(c)->shared, r, "rank %d is %s, while rank %d is %s: all ranks must make the same call", r, there, c->rank, here);
    leave_silently();
  }
}

static void all_have_staged(Comm *c, bool first) {
  Counter *own = &slot(c, c->rank)->staged;
  publish(own);
  for (int r = 0; r < c->world; r++) if (r != c->rank) wait_for(c, r, &slot(c, r)->staged, own->value);
  if (first) compare_calls(c);
}

static void all_have_finished(Comm *c) {
  Counter *own = &slot(c, c->rank)->finished;
  publish(own);
  for (int r = 0; r < c->world; r++) if (r != c->rank) wait_for(c, r, &slot(c, r)->finished, own->value);
}

// ---- sums ----

// The ranks' parts of piece p: elements p*quantum.. of each part; the last ones are shorter, or empty.
typedef struct { size_t quantum, pieces, size; } Cut;

static Cut cut(size_t n, int world, CommType type, size_t room) {
  size_t size = comm_type_size(type), quantum = room / size / 16 * 16, longest = comm_part(n, world, 0).n;
  return (Cut){quantum, MAX((longest + quantum - 1) / quantum, (size_t)1), size};
}

static CommPart piece_of(const Cut *k, size_t n, int world, int rank, size_t p) {
  CommPart part = comm_part(n, world, rank);
  size_t skipped = MIN(p * k->quantum, part.n);
  return (CommPart){part.first + skipped, MIN(k->quantum, part.n - skipped)};
}

// What is staged for rank r stands at r * quantum.
static char *at(char *buffer, const Cut *k, int r) { return buffer + (size_t)r * k->quantum * k->size; }

// The first half of both sums: stage, wait, add the own part into `out`.
static CommPart reduce_piece(Comm *c, char *x, size_t n, CommType type, const Cut *k, size_t p, char *out) {
  CommPart mine = piece_of(k, n, c->world, c->rank, p);
  for (int r = 0; r < c->world; r++) {
    CommPart theirs = piece_of(k, n, c->world, r, p);
    if (r != c->rank) memcpy(at(staging(c, c->rank), k, r), x + theirs.first * k->size, theirs.n * k->size);
  }
  all_have_staged(c, p == 0);
  const void *parts[COMM_MOST_RANKS];
  for (int r = 0; r < c->world; r++) parts[r] = r == c->rank ? x + mine.first * k->size : at(staging(c, r), k, c->rank);
  comm_add(out, parts, c->world, mine.n, type);
  c->bytes_received += (uint64_t)(c->world - 1) * mine.n * k->size;
  return mine;
}

// ---- the calls ----

static void shared_all_reduce(Comm *c, void *x, size_t n, CommType type) {
  double start = enter(c, CALL_ALL_REDUCE, n * comm_type_size(type), (int)type);
  Cut k = cut(n, c->world, type, STAGING / (size_t)c->world);
  for (size_t p = 0; p < k.pieces; p++) {
    CommPart mine = reduce_piece(c, x, n, type, &k, p, result(c, c->rank));
    all_have_finished(c);
    for (int i = 0; i < c->world; i++) {
      int r = (c->rank + i) % c->world;     // each begins with itself: not all read from the same rank at once
      CommPart theirs = r == c->rank ? mine : piece_of(&k, n, c->world, r, p);
      memcpy((char *)x + theirs.first * k.size, result(c, r), theirs.n * k.size);
      if (r != c->rank) c->bytes_received += theirs.n * k.size;
    }
  }
  leave(c, start);
}

static void shared_reduce_scatter(Comm *c, void *x, size_t n, CommType type) {
  double start = enter(c, CALL_REDUCE_SCATTER, n * comm_type_size(type), (int)type);
  Cut k = cut(n, c->world, type, STAGING / (size_t)c->world);
  for (size_t p = 0; p < k.pieces; p++) {
    CommPart mine = reduce_piece(c, x, n, type, &k, p, result(c, c->rank));
    memcpy((char *)x + mine.first * k.size, result(c, c->rank), mine.n * k.size);
    all_have_finished(c);
  }
  leave(c, start);
}

static void shared_all_gather(Comm *c, void *x, size_t n, CommType type) {
  double start = enter(c, CALL_ALL_GATHER, n * comm_type_size(type), (int)type);
  Cut k = cut(n, c->world, type, STAGING);
  for (size_t p = 0; p < k.pieces; p++) {
    CommPart mine = piece_of(&k, n, c->world, c->rank, p);
    memcpy(staging(c, c->rank), (char *)x + mine.first * k.size, mine.n * k.size);
    all_have_staged(c, p == 0);
    for (int i = 1; i < c->world; i++) {
      int r = (c->rank + i) % c->world;
      CommPart theirs = piece_of(&k, n, c->world, r, p);
      memcpy((char *)x + theirs.first * k.size, staging(c, r), theirs.n * k.size);
      c->bytes_received += theirs.n * k.size;
    }
    all_have_finished(c);
  }
  leave(c, start);
}

static void shared_broadcast(Comm *c, void *x, size_t bytes, int root) {
  double start = enter(c, CALL_BROADCAST, bytes, root);
  for (size_t done = 0, n; done == 0 || done < bytes; done += MAX(n, (size_t)1)) {
    n = MIN(bytes - done, (size_t)STAGING);
    if (c->rank == root && n) memcpy(staging(c, root), (char *)x + done, n);
    all_have_staged(c, done == 0);
    if (c->rank != root && n) { memcpy((char *)x + done, staging(c, root), n); c->bytes_received += n; }
    all_have_finished(c);
  }
  leave(c, start);
}

static void shared_meet(Comm *c, CommCall call, uint64_t bytes, int detail) {
  double start = enter(c, call, bytes, detail);
  all_have_staged(c, true);
  all_have_finished(c);
  leave(c, start);
}
static void shared_barrier(Comm *c) { shared_meet(c, CALL_BARRIER, 0, 0); }

static void shared_send(Comm *c, const void *x, size_t bytes, int to) {
  comm_check_peer(c, "send", to);
  double start = enter(c, CALL_SEND, bytes, to);
  Mail *mail = &member(c)->shared->header->mail[c->rank][to];
  mail->bytes = bytes;
  for (size_t done = 0, n; done == 0 || done < bytes; done += MAX(n, (size_t)1)) {
    n = MIN(bytes - done, (size_t)STAGING);
    if (n) memcpy(staging(c, c->rank), (const char *)x + done, n);
    publish(&mail->posted);
    wait_for(c, to, &mail->taken, mail->posted.value);
  }
  leave(c, start);
}

static void shared_receive(Comm *c, void *x, size_t bytes, int from) {
  comm_check_peer(c, "receive", from);
  double start = enter(c, CALL_RECEIVE, bytes, from);
  Mail *mail = &member(c)->shared->header->mail[from][c->rank];
  for (size_t done = 0, n; done == 0 || done < bytes; done += MAX(n, (size_t)1)) {
    n = MIN(bytes - done, (size_t)STAGING);
    wait_for(c, from, &mail->posted, mail->taken.value + 1);
    if (mail->bytes != bytes) {
      comm_shared_abort(member(c)->shared, from, "rank %d sent %llu bytes where rank %d is in receive of %zu bytes at step %lld", from,
                        (unsigned long long)mail->bytes, c->rank, bytes, (long long)c->step);
      leave_silently();
    }
    if (n) memcpy((char *)x + done, staging(c, from), n);
    c->bytes_received += n;
    publish(&mail->taken);
  }
  leave(c, start);
}

// ---- for a transport that rides on this one ----

static bool shared_fault_known(Comm *c) {
  comm_shared_watch(member(c)->shared);
  return atomic_load(&member(c)->shared->header->fault);
}
static void shared_report(Comm *c, const char *text) { comm_shared_abort(member(c)->shared, c->rank, "%s", text); }
static _Noreturn void shared_leave(Comm *c) {
  (void)c;
  leave_silently();
}

// ---- joining and leaving ----

static void *beat(void *context) {
  Comm *c = context;
  Member *m = member(c);
  pthread_mutex_lock(&m->mutex);
  while (!m->quit) {
    atomic_fetch_add(&slot(c, c->rank)->beat, 1);
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += 100 * 1000 * 1000;
    if (until.tv_nsec >= 1000 * 1000 * 1000) { until.tv_nsec -= 1000 * 1000 * 1000; until.tv_sec++; }
    pthread_cond_timedwait(&m->quit_changed, &m->mutex, &until);
  }
  pthread_mutex_unlock(&m->mutex);
  return NULL;
}

static void shared_destroy(Comm *c) {
  Member *m = member(c);
  slot(c, c->rank)->left = 1;
  pthread_mutex_lock(&m->mutex);
  m->quit = true;
  pthread_cond_signal(&m->quit_changed);
  pthread_mutex_unlock(&m->mutex);
  pthread_join(m->heart, NULL);
  free(m);
  free(c);
}

Comm *comm_shared_join(CommShared *s, int rank) {
  Comm *c = xcalloc(1, sizeof *c);
  Member *m = xcalloc(1, sizeof *m);
  m->view = *s;
  m->shared = &m->view;
  // Spinning pays only where the others run at the same time
  m->spins = sysconf(_SC_NPROCESSORS_ONLN) >= s->world ? 500 : 0;
  pthread_mutex_init(&m->mutex, NULL);
  pthread_cond_init(&m->quit_changed, NULL);
  *c = (Comm){.rank = rank, .world = s->world, .transport = "shared memory", .deadline = 1800, .state = m,
              .all_reduce = shared_all_reduce, .reduce_scatter = shared_reduce_scatter, .all_gather = shared_all_gather, .broadcast = shared_broadcast,
              .send = shared_send, .receive = shared_receive, .barrier = shared_barrier, .destroy = shared_destroy,
              .meet = shared_meet, .announce = shared_announce, .fault_known = shared_fault_known, .report = shared_report, .leave = shared_leave};
  comm_start_thread(&m->heart, beat, c);
  return c;
}
