// nccl.cpp: owns the stand-in for NCCL, libnccl.so.2 beside the emulated programs: ranks are processes of this machine with an emulated GPU each.
//
// A communicator has a thread of its own that does what it is given in order, beside the emulated streams: work on a stream stands still behind a collective until
// the thread has done it. Sums go round the ranks as in a ring of NCCL's: the part of rank r begins at rank r+1, and every partial sum is rounded to the type.
// A communicator that does not block (ncclConfig_t) really does not: what it is given reaches the stream only after ncclCommGetAsyncError has been asked twice.
// As with NCCL nobody notices another call of another rank, or one that is missing: the call does not end until ncclCommAbort.
//
// It behaves badly on request, through the environment:
//   GPT_NCCL_LATE=MS           every call is MS milliseconds late; MS:SEED: a random part of that, another for each rank, communicator and call, so that the
//                              calls of two communicators end in another order on every rank
//   GPT_NCCL_FAIL=RANK:N       this rank's N-th call of NCCL (but for questions and ncclCommAbort) fails; RANK:N:later: it seems to succeed, and the communicator reports
//                              the error a while later; RANK:N:never: it never ends
//   GPT_NCCL_LOG=FILE          a line for every ncclCommAbort
//   GPT_NCCL_ABORT=never       ncclCommAbort never ends
//   GPT_NCCL_VERSION=CODE      what ncclGetVersion says
// The memory that ranks share is a file without a name, opened by way of rank 0's /proc: nothing is left behind, whoever is killed. Tests: tests/test_nccl.c
#include "nccl.h"
#include "emulator.h"       // host_wrote
#include <atomic>
#include <condition_variable>
#include <deque>
#include <fcntl.h>
#include <limits.h>
#include <mutex>
#include <stdarg.h>
#include <sys/mman.h>
#include <thread>
#include <unistd.h>

static const int MOST_RANKS = 16;
static const size_t CHUNK = 256 << 10, BOX = 64 << 10;

enum Operation { ALL_REDUCE, REDUCE_SCATTER, ALL_GATHER, BROADCAST, REDUCE, SEND, RECEIVE };
struct Call { Operation operation; const char *from; char *to; size_t n; int type, op, root; };   // root: of a send or receive, the other rank
struct Seen { long operation, n, type, op, root; };          // of a Call, what all ranks must agree on
struct Box { std::atomic<long> written, read; size_t length; char data[BOX]; };
struct Shared {
  std::atomic<int> joined, arrived, generation;
  Seen seen[MOST_RANKS];
  char stage[MOST_RANKS][CHUNK];
  Box box[MOST_RANKS][MOST_RANKS];                           // [from][to]
};

enum Behaviour { WELL, FAIL_NOW, FAIL_LATER, NEVER };
struct Job { std::vector<Call> calls; Behaviour behaviour; std::atomic<bool> done; };
typedef std::shared_ptr<Job> JobPointer;

struct ncclComm {
  Shared *shared;
  int rank, ranks, number;                                   // number: of this process's communicators
  bool blocking;
  std::atomic<bool> ready, aborted;
  std::atomic<int> error;
  std::thread thread;
  std::mutex mutex;                                          // guards queue
  std::condition_variable changed;
  std::deque<JobPointer> queue;
  std::vector<std::pair<cudaStream_t, JobPointer>> held;     // given, but not yet on its stream
  int questions;                                             // about what is held
  char last_error[160];
  cuemu::Random random;
};

// ---- behaviour ----

static int process_rank = -1, call_count, communicator_count;

static Behaviour next_call() {
  const char *text = getenv("GPT_NCCL_FAIL");
  char how[16] = "";
  int rank, n;
  call_count++;
  if (!text || sscanf(text, "%d:%d:%15s", &rank, &n, how) < 2 || rank != process_rank || n != call_count) return WELL;
  return !strcmp(how, "later") ? FAIL_LATER : !strcmp(how, "never") ? NEVER : FAIL_NOW;
}
static void be_late(ncclComm *c) {
  const char *text = getenv("GPT_NCCL_LATE");
  if (!text) return;
  const double milliseconds = atof(text);
  usleep((useconds_t)(strchr(text, ':') ? c->random.below((uint32_t)(1000 * milliseconds) + 1) : 1000 * milliseconds));
}

// ---- what a communicator's thread does ----

struct Aborted {};
static void wait_until(ncclComm *c, const std::function<bool()> &ok) {
  for (int spin = 0; !ok(); spin++) {
    if (c->aborted) throw Aborted();
    if (spin > 100) usleep(20);
  }
}
static void barrier(ncclComm *c) {
  const int g = c->shared->generation;
  if (++c->shared->arrived == c->ranks) c->shared->arrived = 0, c->shared->generation++;
  else wait_until(c, [=] { return c->shared->generation != g; });
}

static size_t size_of(int type) {
  static const size_t sizes[] = {1, 1, 4, 4, 8, 8, 2, 4, 8, 2};
  return sizes[type];
}
static double get(const char *p, int type, size_t i) {
  switch (type) {
    case ncclFloat32: return ((const float *)p)[i];
    case ncclFloat64: return ((const double *)p)[i];
    case ncclBfloat16: return (float)((const __nv_bfloat16 *)p)[i];
    default: cuemu::fail("nccl: sums of data type %d are not in the emulator", type);
  }
}
static double rounded(int type, double v) { return type == ncclFloat32 ? (float)v : type == ncclBfloat16 ? (float)__nv_bfloat16((float)v) : v; }
static void put(char *p, int type, size_t i, double v) {
  if (type == ncclFloat32) ((float *)p)[i] = (float)v;
  else if (type == ncclBfloat16) ((__nv_bfloat16 *)p)[i] = __nv_bfloat16((float)v);
  else ((double *)p)[i] = v;
}
static double combine(int op, double a, double b) { return op == ncclProd ? a * b : op == ncclMax ? (a > b ? a : b) : op == ncclMin ? (a < b ? a : b) : a + b; }

static size_t elements_from(const ncclComm *c, const Call &k) { return k.operation == REDUCE_SCATTER ? k.n * c->ranks : k.operation == RECEIVE ? 0 : k.n; }
static size_t elements_to(const ncclComm *c, const Call &k) {
  if (k.operation == SEND || (k.operation == REDUCE && k.root != c->rank)) return 0;
  return k.operation == ALL_GATHER ? k.n * c->ranks : k.n;
}

// Element i of the staged chunk, which is element `at` of `all`: the ring's sum.
static double ring_sum(const ncclComm *c, const Call &k, size_t i, size_t at, size_t all) {
  const int first = (int)(at * c->ranks / all) + 1;
  double v = get(c->shared->stage[first % c->ranks], k.type, i);
  for (int hop = 1; hop < c->ranks; hop++) v = rounded(k.type, combine(k.op, v, get(c->shared->stage[(first + hop) % c->ranks], k.type, i)));
  return k.op == ncclAvg ? v / c->ranks : v;
}
static void collective(ncclComm *c, const Call &k) {
  Shared *s = c->shared;
  const size_t size = size_of(k.type), chunk = CHUNK / size, from = elements_from(c, k), to = elements_to(c, k);
  s->seen[c->rank] = {k.operation, (long)k.n, k.type, k.op, k.root};
  barrier(c);
  for (int r = 0; r < c->ranks; r++) if (memcmp(&s->seen[r], &s->seen[c->rank], sizeof(Seen))) wait_until(c, [] { return false; });
  std::vector<char> out(to * size);                          // `to` may be where `from` is
  for (size_t first = 0; first < from; first += chunk) {
    const size_t n = std::min(chunk, from - first);
    memcpy(s->stage[c->rank], k.from + first * size, n * size);
    barrier(c);
    for (size_t i = 0; i < n && to; i++) {
      const size_t at = first + i;
      if (k.operation == ALL_REDUCE || k.operation == REDUCE) put(out.data(), k.type, at, ring_sum(c, k, i, at, from));
      if (k.operation == REDUCE_SCATTER && at / k.n == (size_t)c->rank) put(out.data(), k.type, at % k.n, ring_sum(c, k, i, at, from));
    }
    if (k.operation == BROADCAST) memcpy(&out[first * size], s->stage[k.root], n * size);
    if (k.operation == ALL_GATHER) for (int r = 0; r < c->ranks; r++) memcpy(&out[(r * k.n + first) * size], s->stage[r], n * size);
    barrier(c);
  }
  memcpy(k.to, out.data(), out.size());
}

// Sends and receives of one group go on beside each other; those of one direction and rank keep their order.
static bool advance(ncclComm *c, Call &k) {                   // returns whether it is finished; n: bytes that are left
  Box &b = k.operation == SEND ? c->shared->box[c->rank][k.root] : c->shared->box[k.root][c->rank];
  if ((b.written == b.read) != (k.operation == SEND)) return false;
  if (k.operation == SEND) {
    b.length = std::min(k.n, BOX);
    memcpy(b.data, k.from, b.length);
    k.from += b.length, k.n -= b.length, b.written++;
  } else {
    if (b.length > k.n) wait_until(c, [] { return false; });   // more than was asked for
    memcpy(k.to, b.data, b.length);
    k.to += b.length, k.n -= b.length, b.read++;
  }
  return !k.n;
}
static void exchange(ncclComm *c, std::vector<Call> calls) {
  for (Call &k : calls) k.n *= size_of(k.type);
  wait_until(c, [&] {
    for (size_t i = 0; i < calls.size();) {
      bool behind = false;
      for (size_t j = 0; j < i; j++) behind |= calls[j].operation == calls[i].operation && calls[j].root == calls[i].root;
      if (!behind && advance(c, calls[i])) calls.erase(calls.begin() + (long)i);
      else i++;
    }
    return calls.empty();
  });
}

static void do_job(ncclComm *c, Job &job) {
  std::vector<Call> messages;
  be_late(c);
  if (job.behaviour == FAIL_LATER) snprintf(c->last_error, sizeof c->last_error, "failing later, as GPT_NCCL_FAIL asked"), c->error = ncclRemoteError;
  if (job.behaviour != WELL) wait_until(c, [] { return false; });
  for (const Call &k : job.calls) {
    if (k.operation == SEND || k.operation == RECEIVE) messages.push_back(k);
    else collective(c, k);
  }
  exchange(c, messages);
}
static void work(ncclComm *c, Behaviour start) {
  try {
    if (start == FAIL_LATER) c->error = ncclRemoteError;
    if (start != WELL) wait_until(c, [] { return false; });
    c->shared->joined++;
    wait_until(c, [=] { return c->shared->joined >= c->ranks; });
    c->ready = true;
    for (;;) {
      std::unique_lock<std::mutex> lock(c->mutex);
      c->changed.wait(lock, [=] { return c->aborted || !c->queue.empty(); });
      if (c->queue.empty()) return;
      JobPointer job = c->queue.front();
      c->queue.pop_front();
      lock.unlock();
      do_job(c, *job);
      job->done = true;
    }
  } catch (Aborted) { }
}

// ---- from a call to its stream ----

static void check_range(const Call &k, const void *p, size_t n) {
  static const char *const names[] = {"ncclAllReduce", "ncclReduceScatter", "ncclAllGather", "ncclBroadcast", "ncclReduce", "ncclSend", "ncclRecv"};
  if (n && !cuemu::in_device(p, n)) cuemu::fail("%s: %zu bytes at %p are not a device range", names[k.operation], n, p);
}
static void put_on_stream(ncclComm *c, cudaStream_t stream, JobPointer job) {
  auto begin = [c, job] {
    for (const Call &k : job->calls) check_range(k, k.from, elements_from(c, k) * size_of(k.type)), check_range(k, k.to, elements_to(c, k) * size_of(k.type));
    std::lock_guard<std::mutex> lock(c->mutex);
    c->queue.push_back(job);
    c->changed.notify_all();
  };
  std::vector<std::pair<void *, size_t>> outputs;             // the communicator may be gone when the stream asks for the last time
  for (const Call &k : job->calls) if (elements_to(c, k)) outputs.push_back({k.to, elements_to(c, k) * size_of(k.type)});
  auto done = [outputs, job] {
    if (job->done) for (const auto &o : outputs) cuemu::host_wrote(o.first, o.second);
    return (bool)job->done;
  };
  cuemu::submit_to_others(stream, begin, done);
}
static ncclResult_t give(ncclComm *c, cudaStream_t stream, std::vector<Call> calls, Behaviour behaviour) {
  JobPointer job(new Job{std::move(calls), behaviour, {false}});
  if (c->blocking) { put_on_stream(c, stream, job); return ncclSuccess; }
  c->held.push_back({stream, job});
  c->questions = 0;
  return ncclInProgress;
}

static int depth;
static struct { ncclComm *comm; cudaStream_t stream; std::vector<Call> calls; Behaviour behaviour; } group;

static ncclResult_t refuse(ncclComm *c, ncclResult_t result, const char *why) {
  if (c) snprintf(c->last_error, sizeof c->last_error, "%s", why);
  return result;
}
static ncclResult_t call(ncclComm *c, cudaStream_t stream, const Call &k) {
  const Behaviour behaviour = next_call();
  if (behaviour == FAIL_NOW) return refuse(c, ncclInternalError, "failing, as GPT_NCCL_FAIL asked");
  if (!c->ready || !c->held.empty()) return refuse(c, ncclInvalidUsage, "the communicator is still in progress");
  if (!depth) return give(c, stream, {k}, behaviour);
  if (group.comm && (group.comm != c || group.stream != stream)) cuemu::fail("nccl: a group of several communicators or streams is not in the emulator");
  group.comm = c, group.stream = stream;
  if (behaviour != WELL) group.behaviour = behaviour;
  group.calls.push_back(k);
  return ncclSuccess;
}

ncclResult_t ncclGroupStart(void) {
  if (next_call() != WELL) return ncclInternalError;
  if (!depth++) group = {};
  return ncclSuccess;
}
ncclResult_t ncclGroupEnd(void) {
  const Behaviour behaviour = next_call();
  if (--depth || !group.comm) return behaviour == WELL ? ncclSuccess : ncclInternalError;
  if (behaviour == FAIL_NOW) return refuse(group.comm, ncclInternalError, "failing, as GPT_NCCL_FAIL asked");
  return give(group.comm, group.stream, group.calls, behaviour != WELL ? behaviour : group.behaviour);
}
ncclResult_t ncclAllReduce(const void *send, void *receive, size_t n, ncclDataType_t type, ncclRedOp_t op, ncclComm_t c, cudaStream_t stream) {
  return call(c, stream, {ALL_REDUCE, (const char *)send, (char *)receive, n, type, op, 0});
}
ncclResult_t ncclReduce(const void *send, void *receive, size_t n, ncclDataType_t type, ncclRedOp_t op, int root, ncclComm_t c, cudaStream_t stream) {
  return call(c, stream, {REDUCE, (const char *)send, (char *)receive, n, type, op, root});
}
ncclResult_t ncclReduceScatter(const void *send, void *receive, size_t n, ncclDataType_t type, ncclRedOp_t op, ncclComm_t c, cudaStream_t stream) {
  return call(c, stream, {REDUCE_SCATTER, (const char *)send, (char *)receive, n, type, op, 0});
}
ncclResult_t ncclAllGather(const void *send, void *receive, size_t n, ncclDataType_t type, ncclComm_t c, cudaStream_t stream) {
  return call(c, stream, {ALL_GATHER, (const char *)send, (char *)receive, n, type, 0, 0});
}
ncclResult_t ncclBroadcast(const void *send, void *receive, size_t n, ncclDataType_t type, int root, ncclComm_t c, cudaStream_t stream) {
  return call(c, stream, {BROADCAST, (const char *)send, (char *)receive, n, type, 0, root});
}
ncclResult_t ncclSend(const void *send, size_t n, ncclDataType_t type, int peer, ncclComm_t c, cudaStream_t stream) {
  return call(c, stream, {SEND, (const char *)send, NULL, n, type, 0, peer});
}
ncclResult_t ncclRecv(void *receive, size_t n, ncclDataType_t type, int peer, ncclComm_t c, cudaStream_t stream) {
  return call(c, stream, {RECEIVE, NULL, (char *)receive, n, type, 0, peer});
}

// ---- communicators ----

ncclResult_t ncclGetVersion(int *version) {
  const char *text = getenv("GPT_NCCL_VERSION");
  *version = text ? atoi(text) : 22809;
  return *version ? ncclSuccess : ncclInternalError;
}
ncclResult_t ncclGetUniqueId(ncclUniqueId *id) {
  process_rank = 0;
  if (next_call() != WELL) return ncclInternalError;
  const int fd = memfd_create("nccl", 0);
  if (fd < 0 || ftruncate(fd, sizeof(Shared))) return ncclSystemError;
  memset(id, 0, sizeof *id);
  snprintf(id->internal, sizeof id->internal, "/proc/%d/fd/%d", getpid(), fd);
  return ncclSuccess;
}
ncclResult_t ncclCommInitRankConfig(ncclComm_t *comm, int ranks, ncclUniqueId id, int rank, ncclConfig_t *config) {
  process_rank = rank;
  const Behaviour behaviour = next_call();
  if (behaviour == FAIL_NOW) return ncclInternalError;
  if (ranks < 1 || ranks > MOST_RANKS || rank < 0 || rank >= ranks) return ncclInvalidArgument;
  if (config->magic != 0xcafebeefu || config->size < sizeof *config || config->version < 21400) return ncclInvalidArgument;
  const int fd = open(id.internal, O_RDWR | O_CLOEXEC);
  void *p = fd < 0 ? MAP_FAILED : mmap(NULL, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (p == MAP_FAILED) return ncclSystemError;
  close(fd);
  ncclComm *c = new ncclComm();
  c->shared = (Shared *)p, c->rank = rank, c->ranks = ranks, c->number = communicator_count++, c->blocking = config->blocking != 0;
  const char *late = getenv("GPT_NCCL_LATE"), *seed = late ? strchr(late, ':') : NULL;
  c->random.state = (uint64_t)(seed ? atol(seed + 1) : 1) * 0x9e3779b97f4a7c15u + (uint64_t)(rank * 64 + c->number) * 0x2545f4914f6cdd1du + 88172645463325252u;
  c->thread = std::thread(work, c, behaviour);
  *comm = c;
  if (!c->blocking) return ncclInProgress;
  while (!c->ready) usleep(100);
  return ncclSuccess;
}
ncclResult_t ncclCommGetAsyncError(ncclComm_t c, ncclResult_t *error) {
  *error = (ncclResult_t)c->error.load();
  if (*error != ncclSuccess) return ncclSuccess;
  if (!c->ready || (!c->held.empty() && c->questions++ < 1)) { *error = ncclInProgress; return ncclSuccess; }
  for (auto &h : c->held) put_on_stream(c, h.first, h.second);
  c->held.clear();
  return ncclSuccess;
}
ncclResult_t ncclCommFinalize(ncclComm_t c) {
  const Behaviour behaviour = next_call();
  if (behaviour == FAIL_NOW) return refuse(c, ncclInternalError, "failing, as GPT_NCCL_FAIL asked");
  if (behaviour == FAIL_LATER) c->error = ncclRemoteError;
  if (behaviour == NEVER) c->ready = false;
  return c->blocking ? ncclSuccess : ncclInProgress;
}
static void end(ncclComm *c) {
  {
    std::lock_guard<std::mutex> lock(c->mutex);
    c->aborted = true;
    c->changed.notify_all();
  }
  c->thread.join();
  munmap(c->shared, sizeof(Shared));
  delete c;
}
ncclResult_t ncclCommDestroy(ncclComm_t c) {
  if (next_call() == FAIL_NOW) return ncclInternalError;
  end(c);
  return ncclSuccess;
}
ncclResult_t ncclCommAbort(ncclComm_t c) {
  FILE *log = getenv("GPT_NCCL_LOG") ? fopen(getenv("GPT_NCCL_LOG"), "a") : NULL;
  if (log) fprintf(log, "rank %d: ncclCommAbort\n", c->rank), fclose(log);
  if (getenv("GPT_NCCL_ABORT")) for (;;) pause();
  end(c);
  return ncclSuccess;
}

const char *ncclGetErrorString(ncclResult_t result) {
  static const char *const names[] = {"no error", "unhandled cuda error", "unhandled system error", "internal error", "invalid argument", "invalid usage", "remote process exited or there was a network error", "NCCL operation in progress"};
  return result <= ncclInProgress ? names[result] : "unknown result code";
}
const char *ncclGetLastError(ncclComm_t c) { return c ? c->last_error : ""; }
