// test_nccl.c: owns the proof of the NCCL transport (comm_nccl.c): every collective of 1 to 8 ranks on memory of their GPUs, even and odd sizes, exact against the
// sum; buckets beside the device's operations; and whatever NCCL or a rank may do wrong named within the deadline.
// `make test-nccl`: GPUs and NCCL are emulated (dev/cuda_on_cpu), which is not having run on a GPU. Where there are GPUs the same program uses them and NVIDIA's
// NCCL; faults are asked of the stand-in only. In a build without CUDA, or without a GPU, it tests that this is said. `test_nccl WORD` runs some.
#include "comm_test.h"
#include "device.h"     // cuda_device
#include <fcntl.h>      // open
#include <sys/syscall.h>  // SYS_clock_gettime
#include <time.h>       // timespec

// ---- a rank with its GPU ----

static Device *device;
static Comm *nccl;
static int (*rank_body)(void);

static void open_rank(Comm *host) {
  cuda_select(host->rank);
  device = cuda_device(CUDA_FP32, GEMM_OWN);
  host->step = 0;
  nccl = comm_nccl_join(host, device);
  host->step = 7;
}
static void close_rank(Comm *host) {
  if (nccl != host) nccl->destroy(nccl);
  device->destroy(device);
}
static int on_gpu(Comm *host) {
  open_rank(host);
  int code = rank_body();
  close_rank(host);
  return code;
}
static void run_ranks(int world, int (*body)(void)) {
  rank_body = body;
  run_group(world, on_gpu);
}

// A process of its own counts them: this one forks others that use them.
static int gpus_here(void) {
  int status;
  fflush(NULL);
  pid_t pid = fork();
  if (!pid) _exit(cuda_unavailable() ? 0 : cuda_devices());
  waitpid(pid, &status, 0);
  return WEXITSTATUS(status);
}

// ---- arrays: host bytes to the device and back; 64 more bytes in front and behind must not change ----

enum { MARGIN = 64, PATTERN = 0x5a };
typedef struct { char *memory, *x; size_t bytes, all; } Array;   // x: on the device

static void put_bytes(char *to, const void *from, size_t n) { device->upload_ids(device, (int32_t *)(void *)to, from, n / 4); }
static void get_bytes(void *to, const char *from, size_t n) { device->download_stat(device, to, (const scalar *)(const void *)from, n / 8); }

static Array array_of(const void *values, size_t bytes) {
  Array a = {.bytes = bytes, .all = (bytes + 2 * MARGIN + 7) / 8 * 8};
  char *host = xmalloc(a.all, 1);
  memset(host, PATTERN, a.all);
  memcpy(host + MARGIN, values, bytes);
  a.memory = device->allocate(device, a.all);
  a.x = a.memory + MARGIN;
  put_bytes(a.memory, host, a.all);
  free(host);
  return a;
}
// Whether the array is `values` now; gives its memory back.
static bool array_is(Array a, const void *values) {
  char *host = xmalloc(a.all, 1);
  bool good = true;
  get_bytes(host, a.memory, a.all);
  for (size_t i = 0; i < a.all; i++) if ((i < MARGIN || i >= MARGIN + a.bytes) && host[i] != PATTERN) good = false;
  good = good && !memcmp(host + MARGIN, values, a.bytes);
  device->release(device, a.memory, a.all);
  free(host);
  return good;
}

static size_t count;
static CommType type;
static size_t bytes_of_call(void) { return count * comm_type_size(type); }

// Whole numbers whose sums are exact in whatever order: an element that is left out, added twice or of another place shows.
static double number(int rank, size_t i) {
  uint32_t word = ((uint32_t)i * 2654435761u + (uint32_t)rank * 40503u + 17u) * 2246822519u;
  return (double)(word >> 13) - 262144;
}
static double sum_of(int world, size_t i) {
  double sum = 0;
  for (int r = 0; r < world; r++) sum += number(r, i);
  return sum;
}
static void set(void *x, size_t i, double v) {
  if (type == COMM_F32) ((float *)x)[i] = (float)v;
  else if (type == COMM_F64) ((double *)x)[i] = v;
  else ((uint16_t *)x)[i] = (uint16_t)(int64_t)v;
}
static void *fill(int rank) {
  void *x = xmalloc(count + 1, comm_type_size(type));
  for (size_t i = 0; i < count; i++) set(x, i, number(rank, i));
  return x;
}

// ---- every collective ----

static bool reduces(CommCall call) {
  void *own = fill(nccl->rank);
  const CommPart mine = comm_part(count, nccl->world, nccl->rank);
  Array a = array_of(own, bytes_of_call());
  if (call == CALL_ALL_REDUCE) nccl->all_reduce(nccl, a.x, count, type);
  else nccl->reduce_scatter(nccl, a.x, count, type);
  for (size_t i = 0; i < count; i++) if (call == CALL_ALL_REDUCE || (i >= mine.first && i < mine.first + mine.n)) set(own, i, sum_of(nccl->world, i));
  bool good = array_is(a, own);
  free(own);
  return good;
}
static bool gathers(void) {
  void *x = fill(nccl->rank);
  Array a = array_of(x, bytes_of_call());
  nccl->all_gather(nccl, a.x, count, type);
  for (int r = 0; r < nccl->world; r++) {
    CommPart part = comm_part(count, nccl->world, r);
    for (size_t i = part.first; i < part.first + part.n; i++) set(x, i, number(r, i));
  }
  bool good = array_is(a, x);
  free(x);
  return good;
}
static bool broadcasts(int root) {
  void *own = fill(nccl->rank), *theirs = fill(root);
  Array a = array_of(own, bytes_of_call());
  nccl->broadcast(nccl, a.x, bytes_of_call(), root);
  bool good = array_is(a, theirs);
  free(own);
  free(theirs);
  return good;
}
static bool sends(int from, int to) {
  if (from == to || (nccl->rank != from && nccl->rank != to)) return true;
  void *own = fill(nccl->rank), *theirs = fill(from);
  Array a = array_of(own, bytes_of_call());
  if (nccl->rank == from) nccl->send(nccl, a.x, bytes_of_call(), to);
  else nccl->receive(nccl, a.x, bytes_of_call(), from);
  bool good = array_is(a, theirs);
  free(own);
  free(theirs);
  return good;
}

// What a ring gives each rank (comm.h)
static uint64_t ring_bytes(CommCall call) {
  const CommPart mine = comm_part(count, nccl->world, nccl->rank);
  const uint64_t reduced = (uint64_t)(nccl->world - 1) * mine.n, gathered = count - mine.n;
  return comm_type_size(type) * (call == CALL_ALL_REDUCE ? reduced + gathered : call == CALL_REDUCE_SCATTER ? reduced : gathered);
}
static bool counted(uint64_t *before, uint64_t expected) {
  const uint64_t received = nccl->bytes_received - *before;
  *before = nccl->bytes_received;
  return received == expected || nccl->world == 1;
}

static int all_calls(void) {
  const size_t sizes[] = {0, 1, 16, 17, 100, (size_t)nccl->world * 16, (size_t)nccl->world * 48, 1000, 70001};
  for (size_t s = 0; s < ARRAY_LEN(sizes); s++)
    for (type = COMM_F32; type <= COMM_16; type++) {
      uint64_t before = nccl->bytes_received;
      count = sizes[s];
      if (type != COMM_16) {
        if (nccl->world > 1 && !reduces(CALL_ALL_REDUCE)) return 1;
        if (!counted(&before, ring_bytes(CALL_ALL_REDUCE))) return 2;
        if (nccl->world > 1 && !reduces(CALL_REDUCE_SCATTER)) return 3;
        if (!counted(&before, ring_bytes(CALL_REDUCE_SCATTER))) return 4;
      }
      if (nccl->world > 1 && !gathers()) return 5;
      if (!counted(&before, ring_bytes(CALL_ALL_GATHER))) return 6;
      if (type != COMM_F32 || s % 2) continue;     // they move bytes, whatever these are
      for (int root = 0; root < nccl->world; root++) if (!broadcasts(root)) return 7;
      if (!counted(&before, (uint64_t)(nccl->world - 1) * bytes_of_call())) return 8;
      for (int from = 0; from < nccl->world; from++) if (!sends(from, (from + 1) % nccl->world)) return 9;
      if (!counted(&before, bytes_of_call())) return 10;
      nccl->barrier(nccl);
      if (nccl->finish && nccl->rank == 0) nccl->finish(nccl);     // nothing was begun: nobody else is needed
    }
  return nccl->world > 1 && !(nccl->seconds > 0);
}

static int most_gpus = 8;
static const int worlds[] = {1, 2, 3, 4, 8};
static void each_world(int (*body)(void)) { for (size_t w = 0; w < ARRAY_LEN(worlds) && worlds[w] <= most_gpus; w++) run_ranks(worlds[w], body); }

static void every_collective(void) { each_world(all_calls); }

// With work that runs when somebody waits for it, and calls that are late, another time on each rank
static void every_collective_late(void) {
  setenv("GPT_CUDA_STREAMS", "lazy:3", 1);
  setenv("GPT_NCCL_LATE", "2:7", 1);
  run_ranks(2, all_calls);
  run_ranks(3, all_calls);
  unsetenv("GPT_CUDA_STREAMS");
  unsetenv("GPT_NCCL_LATE");
}

// ---- buckets beside the computation ----

// Each bucket is set by operations of the device that are under way when it is handed over; while it is summed they go on with others.
enum { BUCKETS = 6 };
static int queue_body(void) {
  CommQueue *q = comm_queue_create(nccl);
  int bad = 0;
  type = COMM_F32;
  for (int step = 0; step < 3; step++) {
    Array x[BUCKETS], y[BUCKETS];
    float *want[BUCKETS];
    uint64_t expected = 0;
    for (int b = 0; b < BUCKETS; b++) {
      count = b % 2 ? (size_t)nccl->world * 1600 : 5000 + 7 * (size_t)b;
      float *values = fill(nccl->rank);
      x[b] = array_of(values, bytes_of_call()), y[b] = array_of(values, bytes_of_call());
      want[b] = values;
      expected += ring_bytes(b == 2 ? CALL_REDUCE_SCATTER : CALL_ALL_REDUCE);
    }
    for (int b = 0; b < BUCKETS; b++) {
      count = y[b].bytes / 4;
      for (int again = 0; again < 3; again++) device->add_rows(device, (acc *)(void *)x[b].x, (const acc *)(const void *)y[b].x, NULL, 1, count, 1);   // x = 4 y
      comm_queue_add(q, b == 2 ? CALL_REDUCE_SCATTER : CALL_ALL_REDUCE, x[b].x, count, COMM_F32);
    }
    comm_queue_wait(q);
    for (int b = 0; b < BUCKETS; b++) {
      count = y[b].bytes / 4;
      device->add_rows(device, (acc *)(void *)x[b].x, (const acc *)(const void *)y[b].x, NULL, 1, count, 1);
      const CommPart mine = b == 2 ? comm_part(count, nccl->world, nccl->rank) : (CommPart){0, count};
      for (size_t i = 0; i < count; i++) {
        const double own = number(nccl->rank, i);
        want[b][i] = (float)((i >= mine.first && i < mine.first + mine.n ? 4 * sum_of(nccl->world, i) : 4 * own) + own);
      }
      if (!array_is(x[b], want[b])) bad = 1;
      device->release(device, y[b].memory, y[b].all);
      free(want[b]);
    }
    CommQueueTimes t = comm_queue_times(q);
    if (nccl->world > 1 && (t.calls != BUCKETS || t.bytes != expected || !(t.busy > 0) || !(t.waited > 0) || !(t.busy < 60))) bad = 2;
  }
  comm_queue_destroy(q);
  return bad;
}
static void buckets(void) { each_world(queue_body); }
static void buckets_late(void) {
  for (int lazy = 0; lazy < 2; lazy++) {
    if (lazy) setenv("GPT_CUDA_STREAMS", "lazy:5", 1);
    setenv("GPT_NCCL_LATE", "3:11", 1);
    run_ranks(2, queue_body);
    run_ranks(4, queue_body);
  }
  unsetenv("GPT_CUDA_STREAMS");
  unsetenv("GPT_NCCL_LATE");
}

// What the device does meanwhile is not waited for: a late sum is hidden behind operations that take as long.
static int hidden_body(void) {
  type = COMM_F32, count = 1000;
  float *values = fill(0);
  Array a = array_of(values, bytes_of_call()), b = array_of(values, bytes_of_call());
  CommQueue *q = comm_queue_create(nccl);
  comm_queue_add(q, CALL_ALL_REDUCE, a.x, count, COMM_F32);
  for (const double end = seconds_now() + 0.3; seconds_now() < end;) {     // longer than GPT_NCCL_LATE
    device->add_rows(device, (acc *)(void *)b.x, (const acc *)(const void *)b.x, NULL, 1, 1, 1);
    device->sync(device);
  }
  comm_queue_wait(q);
  CommQueueTimes t = comm_queue_times(q);
  return !(t.busy >= 0.1 && t.busy < 0.3 && t.waited < 0.5 * t.busy);
}
static void sums_are_hidden(void) {
  setenv("GPT_NCCL_LATE", "100", 1);
  run_ranks(2, hidden_body);
  unsetenv("GPT_NCCL_LATE");
}

// Sums whose order matters: the same bits on all ranks, and in every run
static int bits_body(void) {
  type = COMM_F32, count = 10007;
  float *x = xmalloc(count, sizeof *x);
  for (size_t i = 0; i < count; i++) x[i] = (float)(number(nccl->rank, i) * ((i + (size_t)nccl->rank) % 3 ? 1e-7 : 1.1));
  Array a = array_of(x, bytes_of_call());
  nccl->all_reduce(nccl, a.x, count, type);
  double *sum = xmalloc(count, sizeof *sum);
  device->download_acc(device, sum, (const acc *)(const void *)a.x, count);
  notes->hash[nccl->rank] = hash_of(sum, count * sizeof *sum);
  return 0;
}
static void same_bits(void) {
  uint64_t first = 0;
  for (int run = 0; run < 2; run++) {
    run_ranks(3, bits_body);
    if (!run) first = notes->hash[0];
    for (int r = 0; r < 3; r++) CHECK(notes->hash[r] == first);
  }
}

// Two communicators on one device, used by turns, then closed and opened again
static int two_body(Comm *host) {
  open_rank(host);
  int bad = 0;
  for (int round = 0; round < 2; round++) {
    Comm *first = nccl, *second = comm_nccl_join(host, device);
    type = COMM_F64, count = 333;
    for (int i = 0; i < 4; i++) {
      nccl = i % 2 ? second : first;
      bad |= !reduces(CALL_ALL_REDUCE) || !gathers();
    }
    nccl = first;
    second->destroy(second);
  }
  close_rank(host);
  return bad;
}
static void two_communicators(void) {
  setenv("GPT_NCCL_LATE", "3:5", 1);
  run_group(3, two_body);
  unsetenv("GPT_NCCL_LATE");
}

// How versions are read, and which one is too old
static void versions(void) {
  static const struct { const char *code, *text, *why; } cases[] = {
    {"29999", "2.99.99", NULL}, {"30000", "3.0.0", NULL}, {"21400", "2.14.0", NULL}, {"21399", "2.13.99", "the libnccl.so.2 that is found is of version code 21399: NCCL 2.14 or later is needed"},
    {"0", "", "the libnccl.so.2 that is found does not tell its version"}};
  for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
    char text[COMM_NCCL_VERSION_ROOM] = "";
    setenv("GPT_NCCL_VERSION", cases[i].code, 1);
    const char *why = comm_nccl_version(text);
    CHECK_STR(why ? why : "", cases[i].why ? cases[i].why : "");
    CHECK_STR(text, cases[i].text);
  }
  unsetenv("GPT_NCCL_VERSION");
}

static void no_gpu_needs_none(void) {
  Comm *one = comm_none();
  Device *cpu = cpu_device(1);
  CHECK(comm_nccl_join(one, cpu) == one);
  Comm many = {.world = 2};
  CHECK(comm_nccl_join(&many, cpu) == &many);      // its memory is the process's: any transport will do
  cpu->destroy(cpu);
  one->destroy(one);
}

// ---- faults ----

// Runs `body` in ranks that may fail; says nothing on this terminal, and leaves what they said in `said`.
static char said[4096];
static int quiet_gpu(Comm *host) {
  char path[64];
  snprintf(path, sizeof path, "/tmp/gpt-test-nccl-%d", (int)getppid());
  int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
  dup2(fd, 2);
  return on_gpu(host);
}
static void forget(void) {
  char path[64];
  snprintf(path, sizeof path, "/tmp/gpt-test-nccl-%d", (int)getpid());
  unlink(path);
  snprintf(path, sizeof path, "/tmp/gpt-test-nccl-%d.aborts", (int)getpid());
  unlink(path);
  setenv("GPT_NCCL_LOG", path, 1);
}
static void begin_ranks(int world, int (*body)(void)) {
  forget();
  rank_body = body;
  begin_group(world, quiet_gpu);
}
static void read_said(void) {
  char path[64];
  snprintf(path, sizeof path, "/tmp/gpt-test-nccl-%d", (int)getpid());
  FILE *f = fopen(path, "r");
  size_t n = f ? fread(said, 1, sizeof said - 1, f) : 0;
  said[n] = 0;
  if (f) fclose(f);
}
// How many ranks have taken their work off the device since begin_ranks: not one that waited for the others on the host
static int aborts(void) {
  FILE *f = fopen(getenv("GPT_NCCL_LOG"), "r");
  int count_lines = 0;
  for (int c; f && (c = fgetc(f)) != EOF;) count_lines += c == '\n';
  if (f) fclose(f);
  return count_lines;
}
static void set_fault(int rank, int n, const char *how) {
  char text[64];
  snprintf(text, sizeof text, "%d:%d%s", rank, n, how);
  setenv("GPT_NCCL_FAIL", text, 1);
}

// One of each call, in a fixed order
static int one_of_each(void) {
  type = COMM_F32;
  count = 100;
  void *x = fill(0);
  Array a = array_of(x, bytes_of_call());
  nccl->all_reduce(nccl, a.x, 100, type);
  nccl->reduce_scatter(nccl, a.x, 96, type);
  nccl->reduce_scatter(nccl, a.x, 100, type);
  nccl->all_gather(nccl, a.x, 96, type);
  nccl->all_gather(nccl, a.x, 100, type);
  nccl->broadcast(nccl, a.x, 40, 0);
  if (nccl->rank == 1) nccl->send(nccl, a.x, 24, 0);
  else nccl->receive(nccl, a.x, 24, 1);
  return 0;
}
// What rank 1 of two calls, and where that is said to be
static const struct { const char *function, *where; CommCall call; } order[] = {   // where NULL: before or behind all of them
  {"ncclCommInitRankConfig", NULL, CALL_NONE}, {"ncclAllReduce", "in all_reduce of 400 bytes", CALL_ALL_REDUCE}, {"ncclReduceScatter", "in reduce_scatter of 384 bytes", CALL_REDUCE_SCATTER},
  {"ncclGroupStart", "in reduce_scatter of 400 bytes", CALL_REDUCE_SCATTER}, {"ncclReduce", "in reduce_scatter of 400 bytes", CALL_REDUCE_SCATTER},
  {"ncclReduce", "in reduce_scatter of 400 bytes", CALL_REDUCE_SCATTER}, {"ncclGroupEnd", "in reduce_scatter of 400 bytes", CALL_REDUCE_SCATTER},
  {"ncclAllGather", "in all_gather of 384 bytes", CALL_ALL_GATHER}, {"ncclGroupStart", "in all_gather of 400 bytes", CALL_ALL_GATHER}, {"ncclBroadcast", "in all_gather of 400 bytes", CALL_ALL_GATHER},
  {"ncclBroadcast", "in all_gather of 400 bytes", CALL_ALL_GATHER}, {"ncclGroupEnd", "in all_gather of 400 bytes", CALL_ALL_GATHER},
  {"ncclBroadcast", "in broadcast of 40 bytes", CALL_BROADCAST}, {"ncclSend", "in send of 24 bytes", CALL_SEND}, {"ncclCommFinalize", NULL, CALL_NONE}};

static double least_seconds;      // of what never ends
static void expect_ends(int ranks, double most) {
  const double start = seconds_now();
  CHECK_EQ(end_group(2, EXIT_MACHINE), ranks);
  CHECK_MSG(seconds_now() - start < most && seconds_now() - start >= least_seconds, "took %.1f s", seconds_now() - start);
  read_said();
}

// Every call of rank 1 fails once: at once; a while later, as an asynchronous error; or never ends.
static void every_call_fails(void) {
  static const char *const ways[] = {"", ":later", ":never"}, *const whys[] = {"internal error", "remote process exited", "did not end within the deadline of 0.3 seconds"};
  char text[512], expected[256];
  int rank;
  still = 1;
  for (int way = 0; way < 3; way++) {
    deadline = way == 2 ? 0.3 : 20, least_seconds = way == 2 ? 0.29 : 0;
    for (int n = 0; n < (int)ARRAY_LEN(order); n++) {
      if (way && !strcmp(order[n].function, "ncclGroupStart")) continue;      // it does nothing that could be late
      set_fault(1, n + 1, ways[way]);
      begin_ranks(2, one_of_each);
      expect_ends(n == (int)ARRAY_LEN(order) - 1 ? 1 : 2, 8);      // the other one has left in peace by then
      const bool known = found_fault(&rank, text);
      // before and behind the steps the rank says it itself. An error that comes later is met in that call, at the end of its group, or when the device is waited for;
      // what never ends, by either rank
      const bool aside = !order[n].where, mail = !aside && order[n].call == CALL_SEND;
      if (aside) snprintf(expected, sizeof expected, "NCCL 2.28.9 does not %s: %s: %s", n ? "end" : "start", order[n].function, whys[way]);
      const char *const met[] = {order[n].function, comm_call_names[order[n].call], "ncclGroupEnd", "receive"};
      for (int i = 0; !aside && i < (way ? 4 : 1) && (i == 0 || !strstr(text, expected)); i++) snprintf(expected, sizeof expected, "NCCL 2.28.9 failed: %s: %s", met[i], whys[way]);
      CHECK_MSG(strstr(aside ? said : text, expected), "way %d, call %d: %s%s, expected %s", way, n, text, said, expected);
      const bool placed = !aside && (strstr(text, order[n].where) || (mail && strstr(text, "in receive of 24 bytes"))) && strstr(text, "at step 7");
      const int aborted = aborts();
      CHECK_MSG(aside || (aborted >= 1 && aborted <= 2), "way %d, call %d: ncclCommAbort was called %d times", way, n, aborted);
      CHECK_MSG(aside || (known && !said[0] && placed && (way == 2 || strstr(text, "rank 1: "))), "way %d, call %d: %s%s", way, n, text, said);
      free_group();
    }
  }
  set_fault(1, (int)ARRAY_LEN(order) + 2, "");       // behind the last: there are no other calls
  deadline = still = 20;
  rank_body = one_of_each;
  run_group(2, on_gpu);
  unsetenv("GPT_NCCL_FAIL");
}

// Stands in for the system's clock: where time flies, each look at it is a quarter of a second later, which is the most that counts at once.
static bool time_flies;
int clock_gettime(clockid_t clock, struct timespec *t) {
  static _Thread_local long long looks;
  const long result = syscall(SYS_clock_gettime, clock, t);
  if (!time_flies || clock != CLOCK_MONOTONIC) return (int)result;
  looks++;
  t->tv_sec += looks / 4, t->tv_nsec += looks % 4 * 250000000;
  if (t->tv_nsec >= 1000000000) t->tv_sec++, t->tv_nsec -= 1000000000;
  return (int)result;
}

// A run whose steps may take longer than five minutes does not wait longer than that for NCCL to start and to end.
static void long_deadlines(void) {
  static const struct { int n; const char *words; } cases[] = {
    {1, "NCCL 2.28.9 does not start: ncclCommInitRankConfig: did not end within the deadline of 300 seconds"},
    {2, ": did not end within the deadline of 2e+03 seconds, in all_reduce of 400 bytes at step 7"},
    {(int)ARRAY_LEN(order), "NCCL 2.28.9 does not end: ncclCommFinalize: did not end within the deadline of 300 seconds"}};
  char text[512];
  int rank;
  if (tcp) return;                    // whose own patience is another
  deadline = 2000, still = 1e9;
  for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
    set_fault(1, cases[i].n, ":never");
    time_flies = true;
    begin_ranks(2, one_of_each);
    time_flies = false;
    const double start = seconds_now();
    end_group(2, EXIT_MACHINE);
    CHECK_MSG(seconds_now() - start < 20, "took %.1f s", seconds_now() - start);
    read_said();
    const bool known = found_fault(&rank, text);
    CHECK_MSG(strstr(known ? text : said, cases[i].words), "call %d: %s%s, expected %s", cases[i].n, known ? text : "", said, cases[i].words);
    free_group();
  }
  deadline = still = 20;
  unsetenv("GPT_NCCL_FAIL");
}

// A rank that ends while the others wait for their devices: the host transport knows
static int endless_body(void) {
  atomic_fetch_add(&notes->rounds, 1);
  return one_of_each();
}
static void killed_while_devices_work(void) {
  char text[512] = "";
  int rank = -1;
  still = 0.5;
  for (int n = 2; n <= 14; n += 6) {           // an all_reduce, a reduce_scatter, a send: rank 1's never ends, and so nobody's
    set_fault(1, n, ":never");
    begin_ranks(2, endless_body);
    while (atomic_load(&notes->rounds) < 2) usleep(1000);
    usleep(200000);
    kill(pids[1], SIGKILL);
    CHECK(end_group(2, EXIT_MACHINE) == 1);
    CHECK(found_fault(&rank, text));
    CHECK_MSG(rank == 1 && strstr(text, tcp ? "rank 1 has ended (killed" : "rank 1 has stood still") && strstr(text, tcp && n == 14 ? "in receive of 24 bytes" : order[n - 1].where) && strstr(text, "step 7"), "got: %s", text);
    free_group();
  }
  still = 20;
  unsetenv("GPT_NCCL_FAIL");
}

// NCCL fails because another rank has died: that one is named, if the host transport knows
static int survivor_body(void) {
  if (nccl->rank == 1) raise(SIGKILL);
  usleep(500000);                        // until the connection is known to have ended
  return one_of_each();
}
static void dead_rank_explains_an_error(void) {
  char text[512] = "";
  int rank = -1;
  if (!tcp) return;                      // over shared memory it is the supervisor who knows
  set_fault(0, 3, "");
  begin_ranks(2, survivor_body);
  CHECK(end_group(2, EXIT_MACHINE) == 1);
  CHECK(found_fault(&rank, text));
  CHECK_MSG(rank == 1 && strstr(text, "rank 1 has ended (killed") && strstr(text, "in all_reduce of 400 bytes at step 7"), "got: %s", text);
  free_group();
  unsetenv("GPT_NCCL_FAIL");
}

// A device that does nothing any more may keep ncclCommAbort itself waiting: five seconds, then the rank ends without it.
static void an_abort_that_never_ends(void) {
  char text[512] = "";
  int rank;
  if (tcp) return;
  setenv("GPT_NCCL_ABORT", "never", 1);
  set_fault(1, 2, "");
  begin_ranks(2, one_of_each);
  const double start = seconds_now();
  CHECK_EQ(end_group(2, EXIT_MACHINE), 2);
  const double took = seconds_now() - start;
  CHECK_MSG(took > 4.5 && took < 8, "took %.1f s", took);
  CHECK(found_fault(&rank, text) && strstr(text, "NCCL 2.28.9 failed: ncclAllReduce: internal error"));
  read_said();
  free_group();
  unsetenv("GPT_NCCL_ABORT");
  unsetenv("GPT_NCCL_FAIL");
}

static int odd_size, odd_call;
static int mismatch_body(void) {
  type = COMM_F32;
  count = 200;
  void *x = fill(0);
  Array a = array_of(x, bytes_of_call());
  const bool odd = nccl->rank == 1;
  const size_t n = odd && odd_size ? 101 : 100;
  if (!odd && odd_call == 4) {
    nccl->begin(nccl, CALL_ALL_REDUCE, a.x, 40, COMM_F32);
    nccl->begin(nccl, CALL_ALL_REDUCE, a.x + 160, 60, COMM_F32);
    nccl->finish(nccl);
  } else if (!odd || !odd_call) nccl->all_reduce(nccl, a.x, n, COMM_F32);
  else if (odd_call == 1) nccl->reduce_scatter(nccl, a.x, n, COMM_F32);
  else if (odd_call == 2) nccl->all_reduce(nccl, a.x, n / 2, COMM_F64);
  else if (odd_call == 4) {                    // another one before the last
    nccl->begin(nccl, CALL_REDUCE_SCATTER, a.x, 40, COMM_F32);
    nccl->begin(nccl, CALL_ALL_REDUCE, a.x + 160, 60, COMM_F32);
    nccl->finish(nccl);
  } else {                                       // the same bytes in another cut
    nccl->begin(nccl, CALL_ALL_REDUCE, a.x, 40, COMM_F32);
    nccl->begin(nccl, CALL_ALL_REDUCE, a.x + 160, 60, COMM_F32);
    nccl->finish(nccl);
  }
  return 0;
}
static void another_call_is_named(void) {
  for (odd_call = 0; odd_call < 5; odd_call++) {
    odd_size = odd_call == 0;
    begin_ranks(2, mismatch_body);
    expect_fault(2, 0, -1, "all ranks must make the same call", 8);
    read_said();
  }
}

static int absent_body(void) {
  type = COMM_F32, count = 100;
  void *x = fill(0);
  Array a = array_of(x, bytes_of_call());
  if (nccl->rank == 1) { usleep(700000); _exit(0); }
  nccl->all_reduce(nccl, a.x, 100, COMM_F32);
  return 0;
}
static void absent_rank_is_named(void) {
  deadline = 0.2;
  begin_ranks(3, absent_body);
  expect_fault(3, 1, 1, "rank 1 did not come within the deadline of 0.2 seconds", 8);
  read_said();
  deadline = 20;
}

static int size_of_mail_body(void) {
  type = COMM_F32, count = 100;
  void *x = fill(0);
  Array a = array_of(x, bytes_of_call());
  if (nccl->rank == 0) nccl->send(nccl, a.x, 24, 1);
  else nccl->receive(nccl, a.x, 16, 0);
  nccl->barrier(nccl);     // the sender's part may be done
  return 0;
}
static void another_size_of_mail_is_named(void) {
  begin_ranks(2, size_of_mail_body);
  expect_fault(2, 0, -1, "rank 0 sent 24 bytes where rank 1 is in receive of 16 bytes", 8);
  read_said();
}

static void run_faults(void) {
  RUN(every_call_fails);
  RUN(long_deadlines);
  RUN(an_abort_that_never_ends);
  RUN(killed_while_devices_work);
  RUN(dead_rank_explains_an_error);
  RUN(another_call_is_named);
  RUN(absent_rank_is_named);
  RUN(another_size_of_mail_is_named);
}
static void run_all(void) {
  RUN(every_collective);
  RUN(buckets);
  RUN(same_bits);
}

int main(int argc, char **argv) {
  TEST_BEGIN(argc, argv);
  char version[COMM_NCCL_VERSION_ROOM] = "";
  const char *none = comm_nccl_version(version);
  make_notes();
  RUN(no_gpu_needs_none);
  if (!getenv("GPT_CUDA_DEVICES") && getenv("GPT_TEST_EMULATED")) setenv("GPT_CUDA_DEVICES", "8", 1);
  most_gpus = gpus_here();
  if (none || most_gpus < 2) {
    printf("%s%s; only that is tested\n", none ? "no NCCL: " : "fewer than two GPUs", none ? none : "");
    return TEST_END();
  }
  const bool stand_in = getenv("GPT_TEST_EMULATED");
  run_all();
  if (stand_in) {
    RUN(versions);
    RUN(every_collective_late);
    RUN(buckets_late);
    RUN(sums_are_hidden);
    RUN(two_communicators);
    run_faults();
    tcp = true;
    run_all();
    run_faults();
    forget();
  }
  return TEST_END();
}
