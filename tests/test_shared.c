// test_shared.c: owns the proof of how ranks over shared memory (comm_shared.c) wait for each other, whatever the order in which they come: ranks that are late between
// calls, and in the midst of one (a page of their array that takes its time); hearts, deadlines and faults to the word and to the moment. `test_shared WORD` runs some.
#include "comm_test.h"
#include <sys/resource.h>   // getrusage

// A rank that fails leaves its memory to the system.
const char *__asan_default_options(void);
const char *__asan_default_options(void) { return "detect_leaks=0"; }

// ---- arrays whose use can be made to last: who touches `first..+n` of one for the first time is held up ----

static char *slow_begin, *slow_end;
static double slow_seconds = 0.03;
static void take_time(int number, siginfo_t *info, void *context) {
  (void)context;
  char *at = info->si_addr;
  if (at < slow_begin || at >= slow_end) { signal(number, SIG_DFL); return; }
  usleep((useconds_t)(1e6 * slow_seconds));
  mprotect(slow_begin, (size_t)(slow_end - slow_begin), PROT_READ | PROT_WRITE);
}
static char *room_for(size_t bytes) {      // whoever reads or writes behind it ends
  const size_t pages = round_up(bytes, 4096);
  char *x = mmap(NULL, pages + 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (x == MAP_FAILED || mprotect(x + pages, 4096, PROT_NONE)) abort();
  return x + (pages - bytes);
}
// protection: PROT_NONE, or PROT_READ where only the first write is held up. Whole pages of x within [first, first + n).
static void make_slow(char *x, size_t first, size_t n, int protection) {
  struct sigaction action = {.sa_sigaction = take_time, .sa_flags = SA_SIGINFO};
  sigaction(SIGSEGV, &action, NULL);
  const size_t begin = (uintptr_t)(x + first), end = begin + n;
  slow_begin = x + first + (round_up(begin, 4096) - begin), slow_end = x + first + n - end % 4096;
  if (slow_begin >= slow_end || mprotect(slow_begin, (size_t)(slow_end - slow_begin), protection)) abort();
}

// ---- late ranks ----

static int late_rank;
static size_t count;
static float value(int rank, size_t i) { return (float)(i % 1000) + 1000 * (float)(rank + 1); }
static float total(int world, size_t i) {
  float sum = 0;
  for (int r = 0; r < world; r++) sum += value(r, i);
  return sum;
}
static float *fill(int rank) {
  float *x = (float *)(void *)room_for(count * sizeof *x);
  for (size_t i = 0; i < count; i++) x[i] = value(rank, i);
  return x;
}
static void be_late(const Comm *c) { if (c->rank == late_rank) usleep(15000); }

static int late_body(Comm *c) {
  float *x = fill(c->rank);
  const CommPart mine = comm_part(count, c->world, c->rank);
  int bad = 0;
  be_late(c);
  c->all_reduce(c, x, count, COMM_F32);
  for (size_t i = 0; i < count; i++) bad |= x[i] != total(c->world, i);
  x = fill(c->rank);
  be_late(c);
  c->reduce_scatter(c, x, count, COMM_F32);
  for (size_t i = 0; i < count; i++) bad |= (x[i] != (i - mine.first < mine.n ? total(c->world, i) : value(c->rank, i))) << 1;
  x = fill(c->rank);
  be_late(c);
  c->all_gather(c, x, count, COMM_F32);
  for (int r = 0; r < c->world; r++) {
    const CommPart p = comm_part(count, c->world, r);
    for (size_t i = p.first; i < p.first + p.n; i++) bad |= (x[i] != value(r, i)) << 2;
  }
  for (int root = 0; root < c->world; root++) {
    x = fill(c->rank);
    be_late(c);
    c->broadcast(c, x, count * sizeof *x, root);
    for (size_t i = 0; i < count; i++) bad |= (x[i] != value(root, i)) << 3;
  }
  const int next = (c->rank + 1) % c->world, before = (c->rank + c->world - 1) % c->world;
  x = fill(c->rank);
  be_late(c);
  if (c->rank) c->receive(c, x, count * sizeof *x, before);
  float *own = fill(c->rank);
  c->send(c, own, count * sizeof *x, next);
  if (!c->rank) c->receive(c, x, count * sizeof *x, before);
  for (size_t i = 0; i < count; i++) bad |= (x[i] != value(before, i)) << 4;
  return bad;
}
// Nobody has passed a barrier, or an array of no length, before all have come.
static int barrier_body(Comm *c) {
  for (int round = 0; round < 6; round++) {
    be_late(c);
    atomic_fetch_add(&notes->rounds, 1);
    if (round % 2) c->barrier(c);
    else c->all_reduce(c, &round, 0, COMM_F32);
    if (atomic_load(&notes->rounds) < c->world * (round + 1)) return 1;
    c->barrier(c);
  }
  return 0;
}
static void late_ranks(void) {
  static const size_t sizes[] = {40, 1000, 150001};
  for (late_rank = 0; late_rank < 3; late_rank++) {
    for (size_t s = 0; s < ARRAY_LEN(sizes); s++) { count = sizes[s]; run_group(3, late_body); }
    run_group(3, barrier_body);
  }
}

// Parts that fill the staging buffer exactly, and one block more or less: 32,768 floats of two ranks
static void exact_pieces(void) {
  late_rank = -1;
  for (size_t pieces = 1; pieces <= 3; pieces++)
    for (int more = -32; more <= 48; more += 16) {
      count = (size_t)((int)(2 * 32768 * pieces) + more);
      run_group(2, late_body);
    }
}

// ---- a rank that is held up in the midst of a call ----

static int slow_call, slow_rank_here;
static size_t slow_part;           // of which rank's part the pages are
static int slow_protection;
static int held_up_body(Comm *c) {
  float *x = fill(c->rank);
  int bad = 0;
  for (int round = 0; round < 2; round++) {      // the second meets what the first has left behind
    for (size_t i = 0; i < count; i++) x[i] = value(c->rank, i);
    const CommPart part = comm_part(count, c->world, (int)slow_part);
    if (c->rank == slow_rank_here) make_slow((char *)x, part.first * sizeof *x, part.n * sizeof *x, slow_protection);
    if (slow_call == 0) c->all_reduce(c, x, count, COMM_F32);
    if (slow_call == 1) c->reduce_scatter(c, x, count, COMM_F32);
    if (slow_call == 2) c->all_gather(c, x, count, COMM_F32);
    if (slow_call == 3) c->broadcast(c, x, count * sizeof *x, (int)slow_part);
    for (size_t i = 0; i < count; i++) {
      const int owner = (int)(i < comm_part(count, c->world, 1).first ? 0 : i < comm_part(count, c->world, 2).first ? 1 : 2);
      const float sum = total(c->world, i);
      if (slow_call == 0) bad |= x[i] != sum;
      if (slow_call == 1) bad |= x[i] != (owner == c->rank ? sum : value(c->rank, i));
      if (slow_call == 2) bad |= x[i] != value(owner, i);
      if (slow_call == 3) bad |= x[i] != value((int)slow_part, i);
    }
  }
  return bad;
}
// Each rank, held up where it reads or writes each rank's part: staging, adding, collecting. Two pieces and a bit of each part.
static void held_up(void) {
  count = 3 * 100000;
  for (slow_call = 0; slow_call < 4; slow_call++)
    for (slow_rank_here = 0; slow_rank_here < 3; slow_rank_here++)
      for (slow_part = 0; slow_part < 3; slow_part++)
        for (int write = 0; write < 2; write++) {
          slow_protection = write ? PROT_READ : PROT_NONE;
          run_group(3, held_up_body);
        }
}

// ---- time ----

static double cpu_seconds(void) {
  struct rusage u;
  getrusage(RUSAGE_SELF, &u);
  return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) + 1e-6 * (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec);
}
// Who waits sleeps, and is woken at once; the seconds in calls are counted.
static int waiting_body(Comm *c) {
  const double start = seconds_now();
  double busy = cpu_seconds();
  for (int i = 0; i < 3; i++) {
    if (c->rank == 1) usleep(200000);
    c->barrier(c);
  }
  const double took = seconds_now() - start;
  busy = cpu_seconds() - busy;
  if (busy > 0.06) { printf("  rank %d computed for %.3f s while it waited\n", c->rank, busy); return 1; }
  return c->seconds > took || (c->rank == 0 && !(c->seconds > 0.5)) || c->deadline != deadline;
}
static int woken_body(Comm *c) {
  for (int i = 0; i < 100; i++) c->barrier(c);
  return 0;
}
static void waiting(void) {
  run_group(2, waiting_body);
  const double start = seconds_now();
  run_group(8, woken_body);
  CHECK_MSG(seconds_now() - start < 4, "100 barriers of 8 ranks took %.2f s", seconds_now() - start);
}
static void joining_and_leaving(void) {
  EXPECT_FAIL(EXIT_REQUEST, "--ranks 0: from 1 to 64 are possible", comm_shared_create(0, 20));
  EXPECT_FAIL(EXIT_REQUEST, "--ranks 65: from 1 to 64 are possible", comm_shared_create(65, 20));
  CommShared *s = comm_shared_create(64, 20);
  Comm *c = comm_shared_join(s, 63);
  CHECK(c->rank == 63 && c->world == 64 && c->deadline == 1800 && c->bytes_received == 0 && c->seconds == 0);
  CHECK_STR(c->transport, "shared memory");
  CHECK(!comm_shared_left(s, 63));
  c->destroy(c);
  CHECK(comm_shared_left(s, 63) && !comm_shared_left(s, 62));
  const double start = seconds_now();
  for (int i = 0; i < 20; i++) { c = comm_shared_join(s, i); c->destroy(c); }
  CHECK_MSG(seconds_now() - start < 0.5, "20 ranks joined and left in %.2f s", seconds_now() - start);
  comm_shared_free(s);
}

// ---- faults ----

static pid_t idle_rank(CommShared *s, int rank) {      // a rank with a heart, that does nothing
  fflush(NULL);
  pid_t pid = fork();
  if (pid) return pid;
  comm_shared_join(s, rank);
  for (;;) pause();
}
static void end_rank(pid_t pid) { kill(pid, SIGKILL); waitpid(pid, NULL, 0); }

static void hearts(void) {
  char text[COMM_FAULT_ROOM];
  int rank = -2;
  CommShared *s = comm_shared_create(2, 1);
  Comm *own = comm_shared_join(s, 0);
  pid_t pid = idle_rank(s, 1);
  for (int i = 0; i < 10; i++) { comm_shared_watch(s); usleep(100000); }
  CHECK_MSG(!comm_shared_fault(s, &rank, text), "%s", text);
  kill(pid, SIGSTOP);                                  // for less than it takes, twice
  for (int again = 0; again < 2; again++) {
    usleep(60000);
    for (int i = 0; i < 4; i++) { comm_shared_watch(s); usleep(80000); }
    kill(pid, SIGCONT);
    usleep(100000);
    comm_shared_watch(s);
    kill(pid, SIGSTOP);
  }
  CHECK_MSG(!comm_shared_fault(s, &rank, text), "%s", text);
  for (int i = 0; i < 100 && !comm_shared_fault(s, &rank, text); i++) { comm_shared_watch(s); usleep(50000); }
  CHECK(comm_shared_fault(s, &rank, text));
  CHECK_EQ(rank, 1);
  own->destroy(own);
  end_rank(pid);
  comm_shared_free(s);
  // one whose heart has never beaten. Of the time in which this process did not look a quarter of a second counts: just half a second after the third look
  s = comm_shared_create(2, 0.5);
  own = comm_shared_join(s, 0);
  own->destroy(own);
  for (int i = 0; i < 3; i++) {
    CHECK_MSG(!comm_shared_fault(s, &rank, text), "%s", text);
    if (i) usleep(i == 1 ? 700000 : 300000);
    comm_shared_watch(s);
  }
  CHECK(comm_shared_fault(s, &rank, text));
  CHECK_EQ(rank, 1);
  CHECK_STR(text, "rank 1 has stood still for 0 seconds (stopped, or its machine is overloaded) between collectives (0 bytes under way) at step 0");
  comm_shared_free(s);
  s = comm_shared_create(1, 0.3);                      // one that has left in peace has no heart to beat
  own = comm_shared_join(s, 0);
  own->destroy(own);
  for (int i = 0; i < 12; i++) { comm_shared_watch(s); usleep(50000); }
  CHECK_MSG(!comm_shared_fault(s, &rank, text), "%s", text);
  comm_shared_free(s);
}

// The first fault counts. One that is being written is waited for; one whose writer has died over it is a fault as well.
static void *unready;              // text that is not there yet when it is read
static void make_ready(int number) { (void)number; usleep(40000); mprotect(unready, 4096, PROT_READ); }
static void written_faults(void) {
  char text[COMM_FAULT_ROOM], longer[700];
  int rank = -2, status;
  CommShared *s = comm_shared_create(2, 20);
  const double begin = seconds_now();
  for (int i = 0; i < 20; i++) CHECK(!comm_shared_fault(s, &rank, text) && rank == -2);
  CHECK_MSG(seconds_now() - begin < 0.5, "to find no fault took %.2f s", seconds_now() - begin);
  memset(longer, 'x', sizeof longer);
  longer[699] = 0;
  comm_shared_abort(s, 1, "first %s", longer);
  comm_shared_abort(s, 0, "second");
  CHECK(comm_shared_fault(s, &rank, text));
  CHECK_EQ(rank, 1);
  CHECK(!strncmp(text, "first xxx", 9) && strlen(text) == COMM_FAULT_ROOM - 1);
  comm_shared_free(s);
  for (int dies = 0; dies < 2; dies++) {
    s = comm_shared_create(2, 20);
    unready = room_for(4096);
    strcpy(unready, "at last");
    mprotect(unready, 4096, PROT_NONE);
    fflush(NULL);
    pid_t pid = fork();
    if (!pid) {
      signal(SIGSEGV, dies ? SIG_DFL : make_ready);
      comm_shared_abort(s, 1, "%s", (char *)unready);
      _exit(0);
    }
    if (dies) waitpid(pid, &status, 0);
    const double start = seconds_now();
    for (bool found = false; !found && seconds_now() - start < 5;) found = comm_shared_fault(s, &rank, text);
    const double took = seconds_now() - start;
    CHECK_EQ(rank, dies ? -1 : 1);
    CHECK_STR(text, dies ? "a rank ended while it reported a fault" : "at last");
    if (dies) CHECK_MSG(took > 0.08 && took < 1, "found after %.3f s", took);
    if (!dies) waitpid(pid, &status, 0);
    comm_shared_free(s);
  }
}

// Deadlines and the words of all who wait, exactly; a rank that never came, came before, or has left.
static int which_call;
static void call_one(Comm *c, void *x) {
  if (which_call == 0) c->all_reduce(c, x, 100, COMM_F64);
  if (which_call == 1) c->reduce_scatter(c, x, 100, COMM_F64);
  if (which_call == 2) c->all_gather(c, x, 100, COMM_F64);
  if (which_call == 3) c->broadcast(c, x, 800, 0);
  if (which_call == 4) c->barrier(c);
  if (which_call == 5) c->send(c, x, 24, 1);
  if (which_call == 6) c->receive(c, x, 24, 1);
}
static int missing_body(Comm *c) {
  double x[200] = {0};
  if (c->rank == 1 && which_call == 5) c->receive(c, x, 24, 0);
  else if (c->rank == 1 && which_call == 6) c->send(c, x, 24, 0);
  else call_one(c, x);
  if (c->rank == 1) { usleep(1000000); return 0; }
  call_one(c, x);
  return 0;
}
static void missing_ranks(void) {
  static const char *const calls[] = {"all_reduce of 800", "reduce_scatter of 800", "all_gather of 800", "broadcast of 800", "barrier of 0", "send of 24", "receive of 24"};
  deadline = 0.3;
  for (which_call = 0; which_call < 7; which_call++) {
    char text[COMM_FAULT_ROOM] = "", expected[COMM_FAULT_ROOM];
    int rank = -1;
    begin_group(2, missing_body);
    const double start = seconds_now();
    int status;
    waitpid(pids[0], &status, 0);
    const double took = seconds_now() - start;
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == EXIT_MACHINE);
    CHECK_MSG(took >= 0.28 && took < 0.98, "call %d: it waited %.2f s", which_call, took);
    waitpid(pids[1], &status, 0);
    CHECK(found_fault(&rank, text));
    CHECK_EQ(rank, 1);
    snprintf(expected, sizeof expected, "rank 1 did not come within the deadline of 0.3 seconds: it is between collectives (0 bytes under way) at step 7, while rank 0 is in %s bytes at step 7", calls[which_call]);
    CHECK_STR(text, expected);
    free_group();
  }
  deadline = 20;
}
static int gone_body(Comm *c) {
  double x[200] = {0};
  if (c->rank == 0) call_one(c, x);
  return 0;
}
static void ranks_that_have_left(void) {
  for (which_call = 0; which_call < 7; which_call++) {
    char text[COMM_FAULT_ROOM] = "";
    int rank = -1;
    begin_group(2, gone_body);
    const double start = seconds_now();
    CHECK_EQ(end_group(2, EXIT_MACHINE), 1);
    CHECK_MSG(seconds_now() - start < 2, "it took %.2f s", seconds_now() - start);
    CHECK(found_fault(&rank, text));
    CHECK_MSG(rank == 1 && !strncmp(text, "rank 1 has ended its part while rank 0 is in ", 45), "%s", text);
    free_group();
  }
}
// The time in which a rank was stopped itself is not counted: neither for the deadline nor for the hearts of others.
static int stopped_body(Comm *c) {
  c->barrier(c);
  if (c->rank == 1) usleep(1500000);
  c->barrier(c);
  return 0;
}
static void stopped_itself(void) {
  char text[COMM_FAULT_ROOM];
  int rank;
  deadline = 0.9;
  begin_group(2, stopped_body);
  usleep(150000);
  kill(pids[0], SIGSTOP);
  usleep(1200000);
  kill(pids[0], SIGCONT);
  CHECK_EQ(end_group(2, 0), 2);
  CHECK_MSG(!found_fault(&rank, text), "%s", text);
  free_group();
  deadline = 20;
}

// A rank that has done its part may leave: who has slept meanwhile finds its number reached, and does not miss it.
static int leaves_first_body(Comm *c) {
  float *x = fill(c->rank);
  const CommPart mine = comm_part(count, c->world, c->rank);
  slow_seconds = 0.4;
  if (c->rank == 1) make_slow((char *)x, mine.first * sizeof *x, mine.n * sizeof *x, PROT_NONE);
  c->reduce_scatter(c, x, count, COMM_F32);
  return x[mine.first] != total(2, mine.first);
}
static void who_leaves_is_not_missed(void) {
  char text[COMM_FAULT_ROOM];
  int rank;
  count = 40000;
  begin_group(2, leaves_first_body);
  usleep(200000);
  kill(pids[0], SIGSTOP);                              // while it waits for rank 1 to finish
  usleep(500000);
  kill(pids[0], SIGCONT);
  CHECK_EQ(end_group(2, 0), 2);
  CHECK_MSG(!found_fault(&rank, text), "%s", text);
  free_group();
}

// Calls that differ in one thing only
static int odd_thing;
static int odd_body(Comm *c) {
  double x[200] = {0};
  const bool odd = c->rank == 1;
  if (odd_thing == 0) { if (odd) c->reduce_scatter(c, x, 100, COMM_F64); else c->all_reduce(c, x, 100, COMM_F64); }
  if (odd_thing == 1) c->all_reduce(c, x, odd ? 101 : 100, COMM_F64);
  if (odd_thing == 2) c->all_reduce(c, x, odd ? 100 : 50, odd ? COMM_F32 : COMM_F64);
  if (odd_thing == 3) c->broadcast(c, x, 80, odd);
  if (odd_thing == 4) { if (odd) c->barrier(c); else c->all_reduce(c, x, 0, COMM_F32); }
  if (odd_thing == 5) c->meet(c, CALL_ALL_REDUCE, 5, odd ? 6 : 7);
  if (odd_thing == 6) c->meet(c, CALL_ALL_REDUCE, odd ? 6 : 7, 5);
  if (odd_thing == 7) c->all_gather(c, x, 100, odd ? COMM_F32 : COMM_F64);
  if (odd_thing == 8) c->reduce_scatter(c, x, odd ? 99 : 100, COMM_F64);
  return 0;
}
static void calls_that_differ(void) {
  static const char *const said[] = {"reduce_scatter of 800 bytes at step 7, while rank 0 is in all_reduce of 800", "all_reduce of 808 bytes at step 7, while rank 0 is in all_reduce of 800",
    "all_reduce of 400 bytes at step 7, while rank 0 is in all_reduce of 400", "broadcast of 80 bytes at step 7, while rank 0 is in broadcast of 80",
    "barrier of 0 bytes at step 7, while rank 0 is in all_reduce of 0", "all_reduce of 5 bytes at step 7, while rank 0 is in all_reduce of 5", "all_reduce of 6 bytes at step 7, while rank 0 is in all_reduce of 7",
    "all_gather of 400 bytes at step 7, while rank 0 is in all_gather of 800", "reduce_scatter of 792 bytes at step 7, while rank 0 is in reduce_scatter of 800"};
  for (odd_thing = 0; odd_thing < (int)ARRAY_LEN(said); odd_thing++) {
    char text[COMM_FAULT_ROOM] = "", expected[COMM_FAULT_ROOM];
    int rank = -1;
    begin_group(3, odd_body);
    CHECK_EQ(end_group(3, EXIT_MACHINE), 3);
    CHECK(found_fault(&rank, text));
    snprintf(expected, sizeof expected, "rank 1 is in %s bytes at step 7: all ranks must make the same call", said[odd_thing]);
    CHECK_MSG(rank == 1 && !strcmp(text, expected), "thing %d: rank %d: %s", odd_thing, rank, text);
    free_group();
  }
}
static void call_peer(int peer, bool sends) {
  Comm *c = comm_shared_join(comm_shared_create(3, 20), 1);
  char x[8] = {0};
  if (sends) c->send(c, x, 8, peer);
  else c->receive(c, x, 8, peer);
}
static void wrong_peers(void) {
  EXPECT_FAIL(EXIT_MACHINE, "send: rank 1 of 3 cannot do that with rank 3", call_peer(3, true));
  EXPECT_FAIL(EXIT_MACHINE, "receive: rank 1 of 3 cannot do that with rank 1", call_peer(1, false));
}
static int mail_body(Comm *c) {
  double x[4] = {0};
  if (c->rank == 0) c->send(c, x, 24, 1); else c->receive(c, x, 16, 0);
  return 0;
}
static void mail_of_another_size(void) {
  char text[COMM_FAULT_ROOM] = "";
  int rank = -1;
  begin_group(2, mail_body);
  CHECK_EQ(end_group(2, EXIT_MACHINE), 2);
  CHECK(found_fault(&rank, text));
  CHECK_EQ(rank, 0);
  CHECK_STR(text, "rank 0 sent 24 bytes where rank 1 is in receive of 16 bytes at step 7");
  free_group();
}

// ---- what a transport that rides on this one needs ----

static int rider_body(Comm *c) {
  char where[COMM_WHERE_ROOM];
  for (int i = 0; i < 3; i++) c->meet(c, CALL_ALL_REDUCE, 5, i);
  if (c->fault_known(c)) return 1;
  c->announce(c, CALL_ALL_REDUCE, 44);
  comm_shared_where(shared, c->rank, where);
  if (strcmp(where, "in all_reduce of 44 bytes at step 7")) return 2;
  c->announce(c, CALL_NONE, 0);
  comm_shared_where(shared, c->rank, where);
  if (strcmp(where, "between collectives (0 bytes under way) at step 7")) return 3;
  c->barrier(c);
  if (c->rank == 1) c->report(c, "rank 1 says 100% so");
  else for (int i = 0; i < 500 && !c->fault_known(c); i++) usleep(10000);
  if (!c->fault_known(c)) return 4;
  c->leave(c);
  return 5;
}
static void riders(void) {
  char text[COMM_FAULT_ROOM] = "";
  int rank = -1;
  begin_group(3, rider_body);
  CHECK_EQ(end_group(3, EXIT_MACHINE), 3);
  CHECK(found_fault(&rank, text));
  CHECK_EQ(rank, 1);
  CHECK_STR(text, "rank 1 says 100% so");
  free_group();
}
static int watching_body(Comm *c) {      // by fault_known alone: nobody calls
  c->barrier(c);
  if (c->rank == 1) raise(SIGSTOP);
  for (int i = 0; i < 500; i++) { if (c->fault_known(c)) c->leave(c); usleep(10000); }
  return 0;
}
static void riders_watch_hearts(void) {
  char text[COMM_FAULT_ROOM] = "";
  int rank = -1, status;
  still = 0.5;
  begin_group(2, watching_body);
  waitpid(pids[0], &status, 0);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == EXIT_MACHINE);
  CHECK(found_fault(&rank, text) && rank == 1);
  end_rank(pids[1]);
  free_group();
  still = 20;
}

int main(int argc, char **argv) {
  TEST_BEGIN(argc, argv);
  make_notes();
  RUN(joining_and_leaving);
  RUN(late_ranks);
  RUN(exact_pieces);
  RUN(held_up);
  RUN(waiting);
  RUN(hearts);
  RUN(written_faults);
  RUN(missing_ranks);
  RUN(ranks_that_have_left);
  RUN(stopped_itself);
  RUN(who_leaves_is_not_missed);
  RUN(calls_that_differ);
  RUN(wrong_peers);
  RUN(mail_of_another_size);
  RUN(riders);
  RUN(riders_watch_hearts);
  return TEST_END();
}
