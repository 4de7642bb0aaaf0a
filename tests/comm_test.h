// comm_test.h: owns the groups of ranks that tests of transports start: processes over shared memory or TCP, what they tell, how they must end.
// Tests: tests/test_comm.c, tests/test_nccl.c
#pragma once
#include "comm.h"
#include "test.h"
#include "util.h"       // xmalloc, seconds_now
#include <arpa/inet.h>  // htonl
#include <pthread.h>    // pthread_create
#include <signal.h>     // kill
#include <sys/mman.h>   // mmap
#include <sys/socket.h> // socket

// ---- a group of processes ----

typedef struct { uint64_t hash[COMM_MOST_RANKS], bytes[COMM_MOST_RANKS]; double seconds; _Atomic int rounds, lines; char said[512]; } Notes;   // what ranks tell the test; lines: how often a loss was said
static Notes *notes;
static double deadline = 20, still = 20;
static CommShared *shared;
static pid_t pids[COMM_MOST_RANKS];

// ---- over shared memory, or over TCP ----

static bool tcp;
static uint32_t port;      // of the rendezvous

static inline void make_notes(void) { notes = mmap(NULL, sizeof *notes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0); }

static inline void note_loss(const char *text) {
  snprintf(notes->said, sizeof notes->said, "%s", text);
  atomic_fetch_add(&notes->lines, 1);
}
static inline uint32_t free_port(void) {
  struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  socklen_t n = sizeof a;
  int fd = socket(AF_INET, SOCK_STREAM, 0);
  if (bind(fd, (struct sockaddr *)&a, sizeof a) || getsockname(fd, (struct sockaddr *)&a, &n)) abort();
  close(fd);
  return ntohs(a.sin_port);
}
static inline CommMeeting meeting_of(int world, int rank) {
  return (CommMeeting){.rank = rank, .world = world, .host = "127.0.0.1", .port = port, .token = "a secret of sixteen", .token_bytes = 19, .version = "1",
                       .seconds = 20, .still_seconds = still, .own_process = !getenv("GPT_TEST_THREADS"), .say = note_loss};
}
static inline void make_group(int world) {
  memset(notes, 0, sizeof *notes);
  if (tcp) port = free_port();
  shared = tcp ? NULL : comm_shared_create(world, still);
}
static inline Comm *join(int world, int rank) {
  if (!tcp) return comm_shared_join(shared, rank);
  if (world == 1) return comm_none();
  const CommMeeting meeting = meeting_of(world, rank);
  return comm_tcp_join(&meeting);
}
// The fault that was found: what was said of it.
static inline bool found_fault(int *rank, char text[512]) {
  if (!tcp) return comm_shared_fault(shared, rank, text);
  snprintf(text, 512, "%s", notes->said);
  if (sscanf(text, "rank %d", rank) != 1) *rank = -1;
  return atomic_load(&notes->lines) > 0;
}
static inline void free_group(void) { if (shared) comm_shared_free(shared); }

// One rank from joining to leaving; returns what body did.
static inline int run_rank(int world, int r, int (*body)(Comm *)) {
  Comm *c = join(world, r);
  c->deadline = deadline;
  c->step = 7;
  const double start = seconds_now();
  int code = body(c);
  if (code == 0 && world > 1 && !(c->seconds > 0 && c->seconds <= seconds_now() - start)) code = 99;   // the time in calls is not counted
  notes->bytes[r] = c->bytes_received;
  c->destroy(c);
  return code;
}

static inline void begin_group(int world, int (*body)(Comm *)) {
  make_group(world);
  fflush(NULL);
  for (int r = 0; r < world; r++) {
    if ((pids[r] = fork())) continue;
    int code = run_rank(world, r, body);
    fflush(stdout);
    _exit(code);
  }
}

// Exit codes: how many ranks ended with `code`
static inline int end_group(int world, int code) {
  int count = 0;
  for (int r = 0; r < world; r++) {
    int status;
    waitpid(pids[r], &status, 0);
    count += WIFEXITED(status) && WEXITSTATUS(status) == code;
  }
  return count;
}

// GPT_TEST_THREADS=1: ranks are threads of one process instead, for ThreadSanitizer sees no others. What ends a process is not tried then.
static int (*thread_body)(Comm *);

static int thread_world;
static inline void *thread_rank(void *rank) {
  return (void *)(intptr_t)run_rank(thread_world, (int)(intptr_t)rank, thread_body);
}

static inline int run_threads(int world, int (*body)(Comm *)) {
  pthread_t threads[COMM_MOST_RANKS];
  int count_good = 0;
  make_group(world);
  thread_body = body;
  thread_world = world;
  for (int r = 0; r < world; r++) pthread_create(&threads[r], NULL, thread_rank, (void *)(intptr_t)r);
  for (int r = 0; r < world; r++) {
    void *code;
    pthread_join(threads[r], &code);
    count_good += code == NULL;
  }
  return count_good;
}

static inline void run_group(int world, int (*body)(Comm *)) {
  if (getenv("GPT_TEST_THREADS")) CHECK_EQ(run_threads(world, body), world);
  else {
    begin_group(world, body);
    CHECK_EQ(end_group(world, 0), world);
  }
  char text[512];
  int rank;
  CHECK_MSG(!found_fault(&rank, text), "%s", text);
  free_group();
}

static inline uint64_t hash_of(const void *data, size_t n) {   // FNV-1a
  uint64_t h = 1469598103934665603u;
  for (size_t i = 0; i < n; i++) h = (h ^ ((const unsigned char *)data)[i]) * 1099511628211u;
  return h;
}

// Expects: all but `absent` ranks end with 3, and the sentence names `needle`, operation, bytes and step
static inline void expect_fault(int world, int absent, int rank, const char *needle, double most) {
  char text[512] = "";
  int found = -1;
  double start = seconds_now();
  int ended = end_group(world, EXIT_MACHINE);
  CHECK_EQ(ended, world - absent);
  CHECK_MSG(seconds_now() - start < most, "took %.1f s", seconds_now() - start);
  CHECK_MSG(found_fault(&found, text), "no fault was found");
  CHECK_MSG(strstr(text, needle) && strstr(text, "step 7") && strstr(text, "bytes"), "got: %s", text);
  if (rank >= 0) CHECK_EQ(found, rank);
  if (tcp && rank >= 0) CHECK_EQ(notes->lines, 1);
  free_group();
}
