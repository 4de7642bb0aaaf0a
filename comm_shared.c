// comm_shared.c: owns the shared-memory transport of comm.h: ranks that are processes of one machine.
//
// Each rank has a STAGING buffer that others read, a RESULT buffer, and two counters. A collective goes piece by piece, a
// piece small enough for the caches:
//   stage    copy what others need into the own staging buffer;  staged += 1;   wait until all have staged
//   work     add the own part of the piece, in rank order;       finished += 1; wait until all have finished
//   collect  copy the others' parts from their result buffers
// Staging is free again when all have finished, a result when all have staged what they stage after collecting it: so no third wait is needed.
// The calls of all ranks are compared between the two waits of the first piece, while nobody can have gone on to another.
//
// An all_reduce has two of each buffer, and stages the next piece before it adds one: a rank that is late by less than a piece is not waited for.
//
// A wait spins a little, then sleeps on the counter itself (futex), and looks up whenever it wakes, every 50 ms at the latest, for a fault, the
// other's heart and the deadline. Tests: tests/test_shared.c, tests/test_comm.c
#include "comm.h"
#include "util.h"           // fail, xcalloc, seconds_now
#include <errno.h>          // errno
#include <linux/futex.h>    // FUTEX_WAIT, FUTEX_WAKE
#include <pthread.h>        // pthread_join
#include <sched.h>          // sched_yield
#include <stdlib.h>         // free
#include <string.h>         // memcpy
#include <sys/mman.h>       // mmap
#include <sys/syscall.h>    // SYS_futex
#include <time.h>           // timespec
#include <unistd.h>         // syscall, _exit

enum { PIECE = 262144 };   // bytes; four of each rank should stay in a core's caches

typedef struct { _Atomic uint32_t value; } Counter;   // only grows (and may wrap)

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

typedef struct { _Alignas(128) char staging[2][PIECE], result[2][PIECE]; } Buffers;   // of a rank

typedef struct {
  _Atomic int fault;
  int fault_rank;
  char fault_text[COMM_FAULT_ROOM];
  CommBoard board;
  Slot slots[COMM_MOST_RANKS];
  Mail mail[COMM_MOST_RANKS][COMM_MOST_RANKS];   // [from][to]
  Buffers buffers[];       // (world)
} Header;

typedef struct { uint32_t beat; double still, seen; } Pulse;    // what one process knows of another's heart

struct CommShared {        // one view: the supervisor's, or a rank's
  int world;
  double still_seconds;
  size_t bytes;
  Header *header;          // shared
  Pulse pulses[COMM_MOST_RANKS];
};

typedef struct {
  CommShared view, *shared;   // shared = &view
  pthread_t heart;
  _Atomic uint32_t quit;
  int spins;
} Member;

static Member *member(const Comm *c) { return c->state; }
static Slot *slot(const Comm *c, int rank) { return &member(c)->shared->header->slots[rank]; }
static char *staging(const Comm *c, int rank) { return member(c)->shared->header->buffers[rank].staging[0]; }

// ---- the memory ----

CommShared *comm_shared_create(int world, double still_seconds) {
  if (world < 1 || world > COMM_MOST_RANKS) fail(EXIT_REQUEST, "--ranks %d: from 1 to %d are possible", world, COMM_MOST_RANKS);
  CommShared *s = xzero(sizeof *s);
  s->world = world;
  s->still_seconds = still_seconds;
  s->bytes = sizeof(Header) + (size_t)world * sizeof(Buffers);
  void *p = mmap(NULL, s->bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) fail(EXIT_MACHINE, "memory: %zu bytes to share between %d ranks were refused: %s; use fewer --ranks", s->bytes, world, strerror(errno));
  s->header = p;
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

bool comm_shared_fault(CommShared *s, int *rank, char text[COMM_FAULT_ROOM]) {
  static const double PATIENCE = 0.1;      // seconds for its finder to write it down, who may have died over it
  Header *h = s->header;
  for (double end = seconds_now() + PATIENCE; atomic_load(&h->fault) == FAULT_BEING_WRITTEN && seconds_now() < end;) sched_yield();
  int state = atomic_load(&h->fault);
  if (state == FAULT_NONE) return false;
  *rank = state == FAULT_WRITTEN ? h->fault_rank : -1;
  snprintf(text, COMM_FAULT_ROOM, "%s", state == FAULT_WRITTEN ? h->fault_text : "a rank ended while it reported a fault");
  return true;
}

void comm_shared_where(const CommShared *s, int rank, char text[COMM_WHERE_ROOM]) {
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
    char where[COMM_WHERE_ROOM];
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

// FUTEX_WAIT: returns at once if *word is not `value` any more, else when woken, or after 50 ms. FUTEX_WAKE: so many sleepers at the most.
static long futex(_Atomic uint32_t *word, int operation, uint32_t value) {
  static const struct timespec pause = {.tv_nsec = 50000000};
  return syscall(SYS_futex, word, operation, value, &pause);
}

static void publish(Counter *counter) {
  atomic_fetch_add(&counter->value, 1);
  futex(&counter->value, FUTEX_WAKE, INT32_MAX);
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

// Called whenever a wait for `rank` has slept, after `waited` seconds.
static void look_up(Comm *c, int rank, Counter *counter, uint32_t target, double waited) {
  CommShared *s = member(c)->shared;
  char here[COMM_WHERE_ROOM], there[COMM_WHERE_ROOM];
  bool gone = slot(c, rank)->left;      // read before the counter: a rank that left in peace has done its part first
  uint32_t value;
  if (reached(counter, target, &value)) return;
  comm_shared_watch(s);
  comm_shared_where(s, c->rank, here);
  comm_shared_where(s, rank, there);
  if (gone) comm_shared_abort(s, rank, "rank %d has ended its part while rank %d is %s", rank, c->rank, here);
  if (waited > c->deadline)
    comm_shared_abort(s, rank, "rank %d did not come within the deadline of %.3g seconds: it is %s, while rank %d is %s", rank, c->deadline, there, c->rank, here);
  if (atomic_load(&s->header->fault)) leave_silently();
}

static void wait_for(Comm *c, int rank, Counter *counter, uint32_t target) {
  uint32_t value;
  for (int i = 0; i < member(c)->spins; i++) { if (reached(counter, target, &value)) return; relax(); }
  double waited = 0, last = seconds_now();
  while (!reached(counter, target, &value)) {
    futex(&counter->value, FUTEX_WAIT, value);
    const double now = seconds_now();
    waited += MIN(now - last, 0.25);                      // not the time in which this process was stopped
    last = now;
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
  return seconds_now();
}

static void leave(Comm *c, double start) {
  slot(c, c->rank)->call = CALL_NONE;
  c->seconds += seconds_now() - start;
}

// All must have come with the same call; else the sums would be of apples and pears. Each compares its own with rank 0's.
static void compare_calls(Comm *c) {
  const Slot *own = slot(c, c->rank), *first = slot(c, 0);
  if (first->call == own->call && first->bytes == own->bytes && first->detail == own->detail) return;
  char here[COMM_WHERE_ROOM], there[COMM_WHERE_ROOM];
  comm_shared_where(member(c)->shared, c->rank, here);
  comm_shared_where(member(c)->shared, 0, there);
  comm_shared_abort(member(c)->shared, c->rank, "rank %d is %s, while rank 0 is %s: all ranks must make the same call", c->rank, here, there);
  leave_silently();
}

// Until all counters have reached `target`; the counts of all ranks are the same between calls.
static void wait_for_staged(Comm *c, uint32_t target) { for (int r = 0; r < c->world; r++) wait_for(c, r, &slot(c, r)->staged, target); }
static void wait_for_finished(Comm *c, uint32_t target) { for (int r = 0; r < c->world; r++) wait_for(c, r, &slot(c, r)->finished, target); }

static void all_have_staged(Comm *c, bool first) {
  Counter *own = &slot(c, c->rank)->staged;
  publish(own);
  wait_for_staged(c, own->value);
  if (first) compare_calls(c);
}

static void all_have_finished(Comm *c) {
  Counter *own = &slot(c, c->rank)->finished;
  publish(own);
  wait_for_finished(c, own->value);
}

// ---- sums ----

// The ranks' parts of piece p: elements p*quantum.. of each part; the last ones are shorter, or empty.
typedef struct { size_t quantum, pieces, size; } Cut;

static Cut cut(size_t n, int world, CommType type, size_t room) {
  size_t size = comm_type_size(type), quantum = room / size, longest = comm_part(n, world, 0).n;
  return (Cut){quantum, MAX(round_up(longest, quantum) / quantum, (size_t)1), size};
}

static CommPart piece_of(const Cut *k, size_t n, int world, int rank, size_t p) {
  CommPart part = comm_part(n, world, rank);
  size_t skipped = MIN(p * k->quantum, part.n);
  return (CommPart){part.first + skipped, MIN(k->quantum, part.n - skipped)};
}

// The buffers of piece p. What is staged for rank r stands at r * quantum.
static char *staged(const Comm *c, const Cut *k, size_t p, int from, int to) { return member(c)->shared->header->buffers[from].staging[p % 2] + (size_t)to * k->quantum * k->size; }
static char *result(const Comm *c, size_t p, int rank) { return member(c)->shared->header->buffers[rank].result[p % 2]; }

static void stage_piece(Comm *c, const char *x, size_t n, const Cut *k, size_t p) {
  for (int r = 0; r < c->world; r++) {
    const CommPart theirs = piece_of(k, n, c->world, r, p);
    if (r != c->rank) memcpy(staged(c, k, p, c->rank, r), x + theirs.first * k->size, theirs.n * k->size);
  }
}
static void add_piece(Comm *c, const char *x, size_t n, CommType type, const Cut *k, size_t p, char *out) {
  const CommPart mine = piece_of(k, n, c->world, c->rank, p);
  const void *parts[COMM_MOST_RANKS];
  for (int r = 0; r < c->world; r++) parts[r] = r == c->rank ? x + mine.first * k->size : staged(c, k, p, r, c->rank);
  comm_add(out, parts, c->world, mine.n, type);
  c->bytes_received += (uint64_t)(c->world - 1) * mine.n * k->size;
}
static void collect_piece(Comm *c, char *x, size_t n, const Cut *k, size_t p) {
  for (int i = 0; i < c->world; i++) {
    const int r = (c->rank + i) % c->world;     // each begins with itself: not all read from the same rank at once
    const CommPart theirs = piece_of(k, n, c->world, r, p);
    memcpy(x + theirs.first * k->size, result(c, p, r), theirs.n * k->size);
    if (r != c->rank) c->bytes_received += theirs.n * k->size;
  }
}

// ---- the calls ----

static void shared_all_reduce(Comm *c, void *x, size_t n, CommType type) {
  const double start = enter(c, CALL_ALL_REDUCE, n * comm_type_size(type), (int)type);
  const Cut k = cut(n, c->world, type, PIECE / (size_t)c->world);
  Slot *own = slot(c, c->rank);
  const uint32_t all_staged = own->staged.value, all_finished = own->finished.value;
  for (size_t p = 0; p < k.pieces + 2; p++) {      // stages piece p, adds the one before it, and collects the one before that: all begun one round earlier
    if (p >= 2) { wait_for_finished(c, all_finished + (uint32_t)p - 1); collect_piece(c, x, n, &k, p - 2); }
    if (p < k.pieces) { stage_piece(c, x, n, &k, p); publish(&own->staged); }
    if (p == 0 || p > k.pieces) continue;
    wait_for_staged(c, all_staged + (uint32_t)p);
    if (p == 1) compare_calls(c);
    add_piece(c, x, n, type, &k, p - 1, result(c, p - 1, c->rank));
    publish(&own->finished);
  }
  leave(c, start);
}

static void shared_reduce_scatter(Comm *c, void *x, size_t n, CommType type) {
  const double start = enter(c, CALL_REDUCE_SCATTER, n * comm_type_size(type), (int)type);
  const Cut k = cut(n, c->world, type, PIECE / (size_t)c->world);
  for (size_t p = 0; p < k.pieces; p++) {
    stage_piece(c, x, n, &k, p);
    all_have_staged(c, p == 0);
    add_piece(c, x, n, type, &k, p, (char *)x + piece_of(&k, n, c->world, c->rank, p).first * k.size);
    all_have_finished(c);
  }
  leave(c, start);
}

static void shared_all_gather(Comm *c, void *x, size_t n, CommType type) {
  double start = enter(c, CALL_ALL_GATHER, n * comm_type_size(type), (int)type);
  Cut k = cut(n, c->world, type, PIECE);
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
  size_t done = 0;
  do {
    const size_t n = MIN(bytes - done, (size_t)PIECE);
    if (c->rank == root) memcpy(staging(c, root), (char *)x + done, n);
    all_have_staged(c, done == 0);
    if (c->rank != root) { memcpy((char *)x + done, staging(c, root), n); c->bytes_received += n; }
    all_have_finished(c);
    done += n;
  } while (done < bytes);
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
  size_t done = 0;
  do {
    const size_t n = MIN(bytes - done, (size_t)PIECE);
    memcpy(staging(c, c->rank), (const char *)x + done, n);
    publish(&mail->posted);
    wait_for(c, to, &mail->taken, mail->posted.value);
    done += n;
  } while (done < bytes);
  leave(c, start);
}

static void shared_receive(Comm *c, void *x, size_t bytes, int from) {
  comm_check_peer(c, "receive", from);
  double start = enter(c, CALL_RECEIVE, bytes, from);
  Mail *mail = &member(c)->shared->header->mail[from][c->rank];
  size_t done = 0;
  do {
    const size_t n = MIN(bytes - done, (size_t)PIECE);
    wait_for(c, from, &mail->posted, mail->taken.value + 1);
    if (mail->bytes != bytes) {
      comm_shared_abort(member(c)->shared, from, "rank %d sent %llu bytes where rank %d is in receive of %zu bytes at step %lld", from,
                        (unsigned long long)mail->bytes, c->rank, bytes, (long long)c->step);
      leave_silently();
    }
    memcpy((char *)x + done, staging(c, from), n);
    c->bytes_received += n;
    publish(&mail->taken);
    done += n;
  } while (done < bytes);
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

// Every 50 ms, until this rank leaves.
static void *beat(void *context) {
  Comm *c = context;
  while (!member(c)->quit) {
    atomic_fetch_add(&slot(c, c->rank)->beat, 1);
    futex(&member(c)->quit, FUTEX_WAIT, 0);
  }
  return NULL;
}

static void shared_destroy(Comm *c) {
  Member *m = member(c);
  slot(c, c->rank)->left = true;
  m->quit = true;
  futex(&m->quit, FUTEX_WAKE, INT32_MAX);
  pthread_join(m->heart, NULL);
  free(m);
  free(c);
}

Comm *comm_shared_join(CommShared *s, int rank) {
  Comm *c = xzero(sizeof *c);
  Member *m = xzero(sizeof *m);
  m->view = *s;
  m->shared = &m->view;
  // Spinning pays only where the others run at the same time
  m->spins = sysconf(_SC_NPROCESSORS_ONLN) >= s->world ? 500 : 0;
  *c = (Comm){.rank = rank, .world = s->world, .transport = "shared memory", .deadline = 1800, .state = m,
              .all_reduce = shared_all_reduce, .reduce_scatter = shared_reduce_scatter, .all_gather = shared_all_gather, .broadcast = shared_broadcast,
              .send = shared_send, .receive = shared_receive, .barrier = shared_barrier, .destroy = shared_destroy,
              .meet = shared_meet, .announce = shared_announce, .fault_known = shared_fault_known, .report = shared_report, .leave = shared_leave};
  comm_start_thread(&m->heart, beat, c);
  return c;
}
