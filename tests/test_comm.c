// test_comm.c: owns the proof of comm.h, for shared memory and TCP alike: every collective over 1 to 8 processes, odd sizes, the same bits on all ranks and in
// every run, bytes as the ring's formula says, the queue beside the computation, slow ranks named, and each kind of fault named within its deadline. `test_comm WORD` runs some.
#include "comm_test.h"
#include "ranks.h"      // ranks_agree
#include "rng.h"        // rng_below
#include <fcntl.h>      // open

// ---- sums ----

static size_t count;       // elements of the call under test
static CommType type;

// Numbers whose sum depends on the order of addition
static double number(int rank, size_t i) {
  uint32_t word = ((uint32_t)i * 2654435761u + (uint32_t)rank * 40503u + 17u) * 2246822519u;
  return ((double)word - 2147483648.0) * (word & 4096 ? 1e-3 : 1e-9);
}

static void *fill(int rank) {
  void *x = xmalloc(count + 1, comm_type_size(type));
  for (size_t i = 0; i < count; i++) {
    if (type == COMM_F32) ((float *)x)[i] = (float)number(rank, i);
    else if (type == COMM_F64) ((double *)x)[i] = number(rank, i);
    else ((uint16_t *)x)[i] = (uint16_t)(hash_of(&i, sizeof i) + (uint64_t)rank);
  }
  return x;
}

static bool sum_is(const void *x, size_t i, int world) {    // the chain in rank order
  if (type == COMM_F32) {
    float sum = (float)number(0, i);
    for (int r = 1; r < world; r++) sum += (float)number(r, i);
    return !memcmp(&((const float *)x)[i], &sum, sizeof sum);
  }
  double sum = number(0, i);
  for (int r = 1; r < world; r++) sum += number(r, i);
  return !memcmp(&((const double *)x)[i], &sum, sizeof sum);
}

static bool own_is(const void *x, size_t i, int rank) {
  if (type == COMM_F32) return ((const float *)x)[i] == (float)number(rank, i);
  if (type == COMM_16) return ((const uint16_t *)x)[i] == (uint16_t)(hash_of(&i, sizeof i) + (uint64_t)rank);
  return ((const double *)x)[i] == number(rank, i);
}

static int all_reduce_body(Comm *c) {
  void *x = fill(c->rank);
  c->all_reduce(c, x, count, type);
  notes->hash[c->rank] = hash_of(x, count * comm_type_size(type));
  for (size_t i = 0; i < count; i++) if (!sum_is(x, i, c->world)) return 1;
  return 0;
}

static int reduce_scatter_body(Comm *c) {
  void *x = fill(c->rank);
  c->reduce_scatter(c, x, count, type);
  CommPart mine = comm_part(count, c->world, c->rank);
  for (size_t i = 0; i < count; i++) {
    bool own = i >= mine.first && i < mine.first + mine.n;
    if (own ? !sum_is(x, i, c->world) : !own_is(x, i, c->rank)) return 1;
  }
  return 0;
}

static int all_gather_body(Comm *c) {
  void *x = fill(c->rank);
  c->all_gather(c, x, count, type);
  for (int r = 0; r < c->world; r++) {
    CommPart part = comm_part(count, c->world, r);
    for (size_t i = part.first; i < part.first + part.n; i++) if (!own_is(x, i, r)) return 1;
  }
  return 0;
}

static int broadcast_body(Comm *c) {
  for (int root = 0; root < c->world; root++) {
    void *x = fill(c->rank);
    c->broadcast(c, x, count * comm_type_size(type), root);
    for (size_t i = 0; i < count; i++) if (!own_is(x, i, root)) return 1;
    free(x);
  }
  return 0;
}

// Each sends to each, the next rank first; then a ring in which all wait for one
static int send_body(Comm *c) {
  for (int from = 0; from < c->world; from++)
    for (int to = 0; to < c->world; to++) {
      if (from == to || (c->rank != from && c->rank != to)) continue;
      void *x = fill(c->rank);
      if (c->rank == from) c->send(c, x, count * comm_type_size(type), to);
      else c->receive(c, x, count * comm_type_size(type), from);
      for (size_t i = 0; i < count; i++) if (!own_is(x, i, from)) return 1;
      free(x);
    }
  return 0;
}

// reduce_scatter and all_gather one after the other are an all_reduce, to the bit; with broadcasts and sends between
static int mixed_body(Comm *c) {
  for (int round = 0; round < 10; round++) {
    void *x = fill(c->rank), *y = fill(c->rank);
    c->all_reduce(c, x, count, type);
    if (c->world > 1 && c->rank == 0) c->send(c, x, 100, c->world - 1);
    if (c->world > 1 && c->rank == c->world - 1) c->receive(c, x, 100, 0);
    c->reduce_scatter(c, y, count, type);
    c->all_gather(c, y, count, type);
    if (memcmp(x, y, count * comm_type_size(type))) return 1;
    c->barrier(c);
    free(x);
    free(y);
  }
  return 0;
}

static const int worlds[] = {1, 2, 3, 4, 8};
static const size_t sizes[] = {0, 1, 17, 1000, 150001};

// all elements over all ranks, less what stays: (N-1) S, of which a rank has its share
static uint64_t moved(int world, int times) { return (uint64_t)times * (uint64_t)(world - 1) * count * comm_type_size(type); }
static uint64_t all_bytes(int world) {
  uint64_t sum = 0;
  for (int r = 0; r < world; r++) sum += notes->bytes[r];
  return sum;
}

enum { EACH = -1 };      // as many times as there are ranks
static void each_call(int (*body)(Comm *), int times) {
  for (size_t w = 0; w < ARRAY_LEN(worlds); w++)
    for (size_t s = 0; s < ARRAY_LEN(sizes); s++)
      for (type = COMM_F32; type <= (body == all_gather_body ? COMM_16 : COMM_F64); type++) {
        count = sizes[s];
        run_group(worlds[w], body);
        CHECK_EQ(all_bytes(worlds[w]), moved(worlds[w], times == EACH ? worlds[w] : times));
      }
}

static void all_reduces(void) { each_call(all_reduce_body, 2); }
static void reduce_scatters(void) { each_call(reduce_scatter_body, 1); }
static void all_gathers(void) { each_call(all_gather_body, 1); }
static void broadcasts(void) { each_call(broadcast_body, EACH); }    // from each rank to all others
static void sends(void) { each_call(send_body, EACH); }

static void mixtures(void) {
  count = 10007;
  for (size_t w = 0; w < ARRAY_LEN(worlds); w++) for (type = COMM_F32; type <= COMM_F64; type++) run_group(worlds[w], mixed_body);
}

static void same_bits(void) {
  count = 100003;
  type = COMM_F32;
  uint64_t first = 0;
  for (int run = 0; run < 3; run++) {
    run_group(4, all_reduce_body);
    if (run == 0) first = notes->hash[0];
    for (int r = 0; r < 4; r++) CHECK(notes->hash[r] == first);
  }
}

// A rank's own bytes: the ring's 2 (N-1)/N S to 1 %
static void ring_formula(void) {
  count = 300007;
  type = COMM_F32;
  for (size_t w = 0; w < ARRAY_LEN(worlds); w++) {
    int world = worlds[w];
    run_group(world, all_reduce_body);
    double ring = 2.0 * (world - 1) / world * (double)count * 4;
    for (int r = 0; r < world; r++) CHECK_NEAR((double)notes->bytes[r], ring, 0.01 * ring, "rank %d of %d", r, world);
  }
}

// Buckets of any size one after the other, and a number for all: what a backward pass hands over
static int queue_body(Comm *c) {
  enum { BUCKETS = 6 };
  CommQueue *q = comm_queue_create(c);
  uint64_t expected = 0;
  for (int step = 0; step < 5; step++) {
    void *x[BUCKETS];
    size_t all = count;
    for (int b = 0; b < BUCKETS; b++) {
      x[b] = fill(c->rank);
      comm_queue_add(q, b == 1 ? CALL_REDUCE_SCATTER : CALL_ALL_REDUCE, x[b], all / (size_t)(b + 1), type);
      expected += (uint64_t)(c->world - 1) * (b == 1 ? 1 : 2) * (all / (size_t)(b + 1)) * comm_type_size(type);
    }
    comm_queue_wait(q);
    for (int b = 0; b < BUCKETS; b++) {
      size_t n = all / (size_t)(b + 1);
      CommPart mine = b == 1 ? comm_part(n, c->world, c->rank) : (CommPart){0, n};
      for (size_t i = mine.first; i < mine.first + mine.n; i++) if (!sum_is(x[b], i, c->world)) return 1;
      free(x[b]);
    }
  }
  CommQueueTimes times = comm_queue_times(q), after = comm_queue_times(q);
  bool alone = c->world == 1, ok = times.calls == (alone ? 0u : 5u * BUCKETS) && times.bytes == c->bytes_received && times.busy >= 0 && times.waited >= 0 && !after.calls && !after.bytes;
  ok = ok && (alone || (times.busy > 0 && times.waited > 0 && times.bytes > expected / (uint64_t)c->world / 2));
  comm_queue_destroy(q);
  return !ok;
}

static void queues(void) {
  count = 20011;
  for (size_t w = 0; w < ARRAY_LEN(worlds); w++) for (type = COMM_F32; type <= COMM_F64; type++) run_group(worlds[w], queue_body);
}

// 1.3 times as long in one phase of ten: named at the end of every ten steps, with rank and phase; 1.2 times is not
static double slowness;
static int slow_phase;
static int slow_body(Comm *c) {
  static const char *const words[] = {"reading data", "the forward pass", "the backward pass", "the update"};
  StepTimes t = {0};
  char slow[128];
  for (int step = 1; step <= 20; step++) {
    for (int p = 0; p < PHASE_COUNT; p++) t.own[p] = 0.010;
    if (c->rank == 1) t.own[slow_phase] += 0.040 * (slowness - 1);
    if (step % 7 == 0) t.own[0] += 10;                  // another program, now and then, on all
    if (step == 5 && c->rank == 0) t.own[0] += 10;      // ... or once on one rank
    if (ranks_agree(c, &t, slow)) return 1;             // nobody asked to stop
    bool named = slow[0] != 0, right = named && t.slow_rank == 1 && strstr(slow, "rank 1 computes 1.3") && strstr(slow, words[slow_phase]);
    if (step % 10 == 0 && slowness > 1.25 && c->world > 1 ? !right : named) return 1;
  }
  return 0;
}

static void slow_ranks(void) {
  for (int world = 1; world <= 4; world++)
    for (slow_phase = 0; slow_phase < PHASE_COUNT; slow_phase++) {
      slowness = 1.3;
      run_group(world, slow_body);
      slowness = 1.2;
      run_group(world, slow_body);
    }
}

static int first_text_body(Comm *c) {
  char text[256] = "";
  if (c->rank >= 1) snprintf(text, sizeof text, "rank %d says", c->rank);
  ranks_first_text(c, text);
  if (strcmp(text, c->world > 1 ? "rank 1 says" : "")) return 1;
  memset(text, 0, sizeof text);
  ranks_first_text(c, text);
  const double before = c->deadline;
  ranks_wait_for_rank_0(c);
  return text[0] != 0 || c->deadline != before;
}

static void first_texts(void) { for (size_t w = 0; w < ARRAY_LEN(worlds); w++) run_group(worlds[w], first_text_body); }

// ---- faults ----

static int odd_rank;      // the one that misbehaves
static int which;         // the collective in which it does

static void call_one(Comm *c, int call, double *x) {
  if (call == 0) c->all_reduce(c, x, count, COMM_F64);
  if (call == 1) c->reduce_scatter(c, x, count, COMM_F64);
  if (call == 2) c->all_gather(c, x, count, COMM_F64);
  if (call == 3) c->broadcast(c, x, count * 8, 0);
  if (call == 4) c->barrier(c);
}

static int mismatch_body(Comm *c) {
  double *x = xcalloc(count + 32, sizeof *x);
  call_one(c, c->rank == odd_rank ? (which + 1) % 5 : which, x);
  return 0;
}

static void another_call(void) {
  count = 100;
  for (int world = 2; world <= 4; world++)
    for (which = 0; which < 5; which++) {
      odd_rank = world - 1;
      begin_group(world, mismatch_body);
      expect_fault(world, 0, -1, "all ranks must make the same call", 5);
    }
}

static int size_body(Comm *c) {
  double *x = xcalloc(count + 32, sizeof *x);
  if (c->rank == odd_rank) count++;
  call_one(c, 0, x);
  return 0;
}

static void another_size(void) {
  count = 100;
  odd_rank = 1;
  begin_group(3, size_body);
  expect_fault(3, 0, -1, "of 808 bytes", 5);
}

static int size_of_mail_body(Comm *c) {
  double x[4] = {0};
  if (c->rank == 0) c->send(c, x, 24, 1); else c->receive(c, x, 16, 0);
  return 0;
}

static void another_size_of_mail(void) {
  begin_group(2, size_of_mail_body);
  expect_fault(2, 0, 0, tcp ? "rank 0 is in send of 24 bytes at step 7, while rank 1 is in receive of 16 bytes" : "sent 24 bytes where rank 1 is in receive of 16 bytes", 5);
}

static int absent_body(Comm *c) {
  double *x = xcalloc(count + 32, sizeof *x);
  if (c->rank == odd_rank) { usleep(450000); return 0; }
  call_one(c, which, x);
  return 0;
}

static void absent_rank(void) {
  count = 100;
  deadline = 0.2;
  odd_rank = 1;
  for (which = 0; which < 5; which++) {
    begin_group(3, absent_body);
    expect_fault(3, 1, 1, "rank 1 did not come within the deadline of 0.2 seconds", 5);
  }
  deadline = 20;
}

static int early_body(Comm *c) {
  double *x = xcalloc(count + 32, sizeof *x);
  if (c->rank != odd_rank) call_one(c, which, x);
  return 0;
}

static void rank_that_left(void) {
  count = 100;
  odd_rank = 2;
  which = 0;
  begin_group(3, early_body);
  expect_fault(3, 1, 2, "rank 2 has ended its part", 5);
}

static int endless_body(Comm *c) {
  double *x = xcalloc(count + 32, sizeof *x);
  for (bool first = true;; first = false) {
    call_one(c, which, x);
    if (first) atomic_fetch_add(&notes->rounds, 1);
  }
  return 0;
}

static void stopped_or_killed(int signal) {
  count = 50000;
  still = 0.5;
  for (which = 0; which < 5; which += signal == SIGSTOP ? 1 : 3) {
    begin_group(3, endless_body);
    while (atomic_load(&notes->rounds) < 3) usleep(1000);     // a rank under way, on however busy a machine
    usleep(1000 * (which * 7 + 1));
    kill(pids[1], signal);
    // the group cannot be waited for before the stopped one is ended, and the test does not do what the supervisor does
    int status, ended = 0;
    for (int r = 0; r < 3; r += 2) { waitpid(pids[r], &status, 0); ended += WIFEXITED(status) && WEXITSTATUS(status) == EXIT_MACHINE; }
    CHECK_EQ(ended, 2);
    kill(pids[1], SIGKILL);
    waitpid(pids[1], &status, 0);
    char text[512] = "";
    int rank = -1;
    CHECK(found_fault(&rank, text));
    CHECK_MSG(rank == 1 && strstr(text, tcp && signal == SIGKILL ? "rank 1 has ended (killed" : "rank 1 has stood still") && strstr(text, "step 7"), "got: %s", text);
    if (tcp) CHECK_EQ(notes->lines, 1);
    free_group();
  }
  still = 20;
}

static void stopped_rank(void) { stopped_or_killed(SIGSTOP); }
static void killed_rank(void) { stopped_or_killed(SIGKILL); }

// ---- who may come in (TCP) ----

// Starts rank 0 of a meeting of `world`, which waits `seconds` for the others; its words go to the file `log`. Exit code: 0, or what join gives.
static char log_path[300];
static pid_t start_rank_0(int world, double seconds) {
  make_group(world);
  fflush(NULL);
  pid_t pid = fork();
  if (pid) return pid;
  int fd = open(log_path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
  dup2(fd, 2);
  CommMeeting m = meeting_of(world, 0);
  m.seconds = seconds;
  Comm *c = comm_tcp_join(&m);
  float x = 1;
  c->all_reduce(c, &x, 1, COMM_F32);
  c->destroy(c);
  _exit(x == (float)world ? 0 : 1);
}
static int exit_code(pid_t pid) {
  int status;
  waitpid(pid, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}
static char *log_text(void) {
  size_t n;
  return read_file(log_path, "log", 1 << 20, &n);
}
static int dial(void) {
  struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK), .sin_port = htons((uint16_t)port)};
  for (int i = 0; i < 500; i++) {
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(fd, (struct sockaddr *)&a, sizeof a) == 0) return fd;
    close(fd);
    usleep(10000);
  }
  abort();
}

// A hello as comm_tcp.c's, from its words on; the proof that follows it is wrong.
enum { HELLO_BYTES = 140 };
static void make_hello(uint8_t hello[HELLO_BYTES], uint32_t purpose, uint32_t world, uint32_t rank) {
  memset(hello, 0, HELLO_BYTES);
  memcpy(hello, "gpt rank", 8);
  store_u32le(hello + 8, 1), store_u32le(hello + 12, purpose), store_u32le(hello + 16, world), store_u32le(hello + 20, rank);
  hello[28] = '1';
}

static uint64_t drawn;
static uint32_t draw(uint32_t below) { return (uint32_t)rng_below(below, 11, 0, rng_site("strangers"), drawn++); }

// One of several hundred strangers: noise, a hello that is cut, changed, or whole but without the secret, silence.
static void be_a_stranger(int kind, int sockets[], int *open_sockets) {
  uint8_t message[4096];
  int fd = dial();
  size_t n = 1 + draw(sizeof message - 1);
  for (size_t i = 0; i < sizeof message; i++) message[i] = (uint8_t)draw(256);
  if (kind % 6 == 1) n = draw(HELLO_BYTES);
  if (kind % 6 == 2) n = HELLO_BYTES;
  if (kind % 6 == 3 || kind % 6 == 4) n = HELLO_BYTES + 32;
  if (kind % 6 == 5) n = 0;
  if (kind % 6) make_hello(message, draw(4), 2, draw(3));
  if (kind % 6 == 2) message[draw(HELLO_BYTES)] ^= (uint8_t)(1 + draw(255));
  if (kind % 6 == 4) store_u32le(message + 12 + 4 * draw(4), draw(UINT32_MAX));
  if (n && send(fd, message, n, MSG_NOSIGNAL) < 0) n = 0;
  if (draw(2) || *open_sockets == 60) close(fd);
  else sockets[(*open_sockets)++] = fd;            // and waits for an answer
}

static void strangers_are_refused(void) {
  int sockets[64], open_sockets = 0;
  pid_t rank_0 = start_rank_0(2, 60);
  for (int kind = 0; kind < 330; kind++) be_a_stranger(kind, sockets, &open_sockets);
  // and yet the true rank comes in
  CommMeeting m = meeting_of(2, 1);
  Comm *c = comm_tcp_join(&m);
  float x = 1;
  c->all_reduce(c, &x, 1, COMM_F32);
  CHECK(x == 2);
  c->destroy(c);
  CHECK_EQ(exit_code(rank_0), 0);
  for (int i = 0; i < open_sockets; i++) close(sockets[i]);
  char *log = log_text();
  int lines = 0;
  for (char *p = log; (p = strchr(p, '\n')); p++) lines++;
  CHECK_MSG(strstr(log, "a connection from 127.0.0.1 was refused: ") && lines == 5, "rank 0 said: %s", log);
  free(log);
}

// A rank that knows the secret, but is not of this run: it is told why, and so is rank 0, which goes on waiting.
static void other_ranks_are_refused(void) {
  static const struct { const char *sentence; int rank, world; const char *version; uint8_t run; const char *token; } cases[] = {
    {"another token", 1, 2, "1", 0, "another secret of this size"},
    {"it is of version 2, rank 0 of 1", 1, 2, "2", 0, NULL},
    {"it has --world 3, rank 0 has --world 2", 1, 3, "1", 0, NULL},
    {"its flags or its text are not those of rank 0", 1, 2, "1", 7, NULL},
    {"rank 2 has no business with rank 0", 2, 2, "1", 0, NULL}};
  pid_t rank_0 = start_rank_0(2, 60);
  for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
    CommMeeting m = meeting_of(cases[i].world, cases[i].rank);
    m.version = cases[i].version;
    m.run[31] = cases[i].run;
    if (cases[i].token) m.token = cases[i].token, m.token_bytes = strlen(cases[i].token);
    EXPECT_FAIL(EXIT_REQUEST, cases[i].sentence, comm_tcp_join(&m));
    char *log = log_text();
    CHECK_MSG(cases[i].token || strstr(log, cases[i].sentence), "rank 0 said: %s", log);
    free(log);
  }
  CommMeeting m = meeting_of(2, 1);
  Comm *c = comm_tcp_join(&m);
  float x = 1;
  c->all_reduce(c, &x, 1, COMM_F32);
  c->destroy(c);
  CHECK_EQ(exit_code(rank_0), 0);
}

static void meetings_that_fail(void) {
  make_group(3);
  CommMeeting m = meeting_of(3, 1);
  m.seconds = 0.3;
  EXPECT_FAIL(EXIT_MACHINE, "nobody listens at 127.0.0.1", comm_tcp_join(&m));
  m.rank = 0;
  EXPECT_FAIL(EXIT_MACHINE, "these ranks did not come: 1, 2", comm_tcp_join(&m));
  m.host = "192.0.2.1";                              // of nobody's (RFC 5737)
  EXPECT_FAIL(EXIT_MACHINE, "rank 0 cannot listen there", comm_tcp_join(&m));
  m.host = "no host.invalid";
  EXPECT_FAIL(EXIT_MACHINE, "the host is not found", comm_tcp_join(&m));
  // two that say they are rank 1
  pid_t rank_0 = start_rank_0(3, 2);
  m = meeting_of(3, 1);
  m.seconds = 2;
  pid_t one = fork();
  if (!one) { dup2(open("/dev/null", O_WRONLY), 2); comm_tcp_join(&m); _exit(0); }
  usleep(500000);
  EXPECT_FAIL(EXIT_REQUEST, "rank 1 is here already", comm_tcp_join(&m));
  CHECK_EQ(exit_code(rank_0), EXIT_MACHINE);
  CHECK_EQ(exit_code(one), EXIT_MACHINE);            // it is told of rank 0's end
}

static void run_all(void) {
  RUN(all_reduces);
  RUN(reduce_scatters);
  RUN(all_gathers);
  RUN(broadcasts);
  RUN(sends);
  RUN(mixtures);
  RUN(same_bits);
  RUN(ring_formula);
  RUN(queues);
  RUN(slow_ranks);
  RUN(first_texts);
  if (getenv("GPT_TEST_THREADS")) return;
  RUN(another_call);
  RUN(another_size);
  RUN(another_size_of_mail);
  RUN(absent_rank);
  RUN(rank_that_left);
  RUN(stopped_rank);
  RUN(killed_rank);
}

int main(int argc, char **argv) {
  TEST_BEGIN(argc, argv);
  make_notes();
  run_all();
  tcp = true;
  run_all();
  if (!getenv("GPT_TEST_THREADS")) {
    snprintf(log_path, sizeof log_path, "%s/gpt-test-comm-%d", getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp", (int)getpid());
    RUN(strangers_are_refused);
    RUN(other_ranks_are_refused);
    RUN(meetings_that_fail);
    unlink(log_path);
  }
  return TEST_END();
}
