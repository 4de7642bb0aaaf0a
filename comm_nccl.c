// comm_nccl.c: owns the NCCL transport of comm.h: collectives between the GPUs of the ranks, by NVIDIA's library, opened where it is found.
//
// It rides on a host transport (shared memory or TCP), which hands around NCCL's id and keeps what comm.h promises: before the host waits for the device all ranks
// meet there and compare what they have called, so that a rank that is missing, ended, or came with another call is named in the same words. NCCL itself would
// wait for ever.
//
// A call puts work on the device's side stream, behind all operations so far, and the backward pass goes on. Only `finish` waits: it asks the device and
// every 50 ms NCCL (ncclCommGetAsyncError) and the host transport for faults, and ends at the deadline. The communicator does not block: a call that
// is still in progress is asked for in the same way. Who ends because of a fault while NCCL has work takes that off the device first (ncclCommAbort).
//
// NCCL wants parts of one size where comm_part's differ by 16 elements: then each part is a reduce or a broadcast of its own, all in one group.
// Tests: tests/test_nccl.c, tests/nccl.sh (emulated GPUs, and the stand-in of dev/cuda_on_cpu); not seen on a GPU yet
#include "comm.h"
#include "device.h"      // side_stream, side_begin
#include "nccl_abi.h"    // what NCCL is
#include "util.h"        // fail, seconds_now
#include <dlfcn.h>       // dlopen
#include <stdlib.h>      // free, setenv
#include <string.h>      // strcmp
#include <unistd.h>      // usleep, _exit

typedef enum { STARTING, RUNNING, ENDING } Stage;
static const double ASIDE_SECONDS = 300;     // for NCCL to start and to end, where nobody is busy with anything else

typedef struct {
  Comm *host;
  Device *device;
  NcclLibrary library;
  void *comm, *stream;       // ncclComm_t, cudaStream_t
  char name[32];             // "NCCL 2.28.9"
  Stage stage;
  CommCall call;             // begun and not finished: the last of them, the bytes and a hash of all
  uint64_t bytes, hash;
} Member;

static Member *member(const Comm *c) { return c->state; }

// ---- the library ----

static const char *open_library(NcclLibrary *l, char version[COMM_NCCL_VERSION_ROOM]) {
  static const struct { const char *symbol; size_t offset; } functions[] = {
#define NCCL_ROW(field, symbol, result, parameters) {symbol, offsetof(NcclLibrary, field)},
    NCCL_FUNCTIONS(NCCL_ROW)
#undef NCCL_ROW
  };
  static char why[160];
  int number = 0;
  void *library = dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
  if (!library) return "libnccl.so.2 is not found: install NCCL (Debian: libnccl2; Python: nvidia-nccl-cu13) and set LD_LIBRARY_PATH to its folder";
  for (size_t i = 0; i < ARRAY_LEN(functions); i++) {
    void *symbol = dlsym(library, functions[i].symbol);
    snprintf(why, sizeof why, "the libnccl.so.2 that is found lacks %s: NCCL 2.14 or later is needed", functions[i].symbol);
    if (!symbol) return why;
    memcpy((char *)l + functions[i].offset, &symbol, sizeof symbol);
  }
  if (l->get_version(&number)) return "the libnccl.so.2 that is found does not tell its version";
  snprintf(version, COMM_NCCL_VERSION_ROOM, "%d.%d.%d", number / 10000, number / 100 % 100, number % 100);
  if (number >= NCCL_LEAST_VERSION) return NULL;
  snprintf(why, sizeof why, "the libnccl.so.2 that is found is of version code %d: NCCL 2.14 or later is needed", number);
  return why;
}

const char *comm_nccl_version(char text[COMM_NCCL_VERSION_ROOM]) {
  NcclLibrary l;
  return open_library(&l, text);
}

// ---- faults ----

// ncclCommAbort may itself wait for a device that does nothing any more: after a few seconds the process ends without it.
static void *end_at_last(void *context) {
  sleep(5);
  Comm *host = context;
  host->leave(host);
  return NULL;
}
// The group has a fault, which the host transport knows.
static _Noreturn void leave_with_fault(Comm *c) {
  Member *m = member(c);
  pthread_t thread;
  comm_start_thread(&thread, end_at_last, m->host);
  if (m->comm) m->library.abort(m->comm);
  m->host->leave(m->host);
  _exit(EXIT_MACHINE);
}

// NCCL's `function` went wrong. While there are steps the group has a fault, from which a run can go on; before and behind them this rank says what is wrong itself.
static _Noreturn void give_up(Comm *c, const char *function, const char *why) {
  Member *m = member(c);
  char text[COMM_FAULT_ROOM], where[COMM_WHERE_ROOM];
  if (m->host->fault_known(m->host)) leave_with_fault(c);       // what went wrong is that another rank did
  if (m->stage == STARTING)
    fail(EXIT_MACHINE, "%s does not start: %s: %s; set NCCL_DEBUG=WARN to learn more, or train on one GPU with --gpus 1, or on the CPU with --ranks %d", m->name, function, why, c->world);
  if (m->stage == ENDING) fail(EXIT_MACHINE, "rank %d: %s does not end: %s: %s; what was saved is intact", c->rank, m->name, function, why);
  comm_where(where, m->call, m->bytes, m->host->step);
  snprintf(text, sizeof text, "rank %d: %s failed: %s: %s, %s", c->rank, m->name, function, why, where);
  m->host->report(m->host, text);
  leave_with_fault(c);
}
static _Noreturn void broken(Comm *c, const char *function, int result) {
  char why[320];
  const char *more = member(c)->library.last_error(member(c)->comm);
  snprintf(why, sizeof why, "%s%s%.200s", member(c)->library.error_string(result), more && *more ? ": " : "", more ? more : "");
  give_up(c, function, why);
}

// ---- waiting ----

static bool settled(Comm *c) {
  int result = NCCL_SUCCESS;
  member(c)->library.get_async_error(member(c)->comm, &result);
  return result != NCCL_IN_PROGRESS;
}
static bool device_done(Comm *c) { return !member(c)->device->side_busy(member(c)->device); }

static void wait_until(Comm *c, bool (*done)(Comm *c), const char *function) {
  static const double LOOK = 0.05;      // seconds
  Member *m = member(c);
  double waited = 0, looked = 0, last = seconds_now();
  while (!done(c)) {
    usleep(20);
    const double now = seconds_now();
    int result = NCCL_SUCCESS;
    waited += MIN(now - last, 0.25);    // not the time in which this process was stopped
    last = now;
    if (waited - looked < LOOK) continue;
    looked = waited;
    if (m->library.get_async_error(m->comm, &result) || (result && result != NCCL_IN_PROGRESS)) broken(c, function, result);
    if (m->host->fault_known(m->host)) leave_with_fault(c);
    const double deadline = m->stage == RUNNING ? m->host->deadline : MIN(m->host->deadline, ASIDE_SECONDS);
    if (waited <= deadline) continue;
    char why[80];
    snprintf(why, sizeof why, "did not end within the deadline of %.3g seconds", deadline);
    give_up(c, function, why);
  }
}

// Of a call that has returned `result`: until it is no longer in progress.
static void settle(Comm *c, const char *function, int result) {
  if (result == NCCL_IN_PROGRESS) {
    wait_until(c, settled, function);
    if (member(c)->library.get_async_error(member(c)->comm, &result) || result) broken(c, function, result);
  }
  if (result) broken(c, function, result);
}

// ---- what every call begins and ends with ----

static void begin_call(Comm *c, CommCall call, uint64_t bytes, int detail) {
  Member *m = member(c);
  const uint64_t words[] = {(uint64_t)call, bytes, (uint64_t)detail};
  for (size_t i = 0; i < ARRAY_LEN(words); i++) m->hash = (m->hash ^ words[i]) * 1099511628211u;    // FNV-1a, a word at a time
  m->call = call;
  m->bytes += bytes;
  m->host->announce(m->host, call, m->bytes);
  m->device->side_begin(m->device);
}

// Until the device has done what was begun.
static void wait_for_device(Comm *c, const char *function) {
  Member *m = member(c);
  m->host->announce(m->host, m->call, m->bytes);
  wait_until(c, device_done, function);
  int result = NCCL_SUCCESS;
  if (m->library.get_async_error(m->comm, &result) || result) broken(c, function, result);
  c->seconds += m->device->side_seconds(m->device);
  m->host->announce(m->host, CALL_NONE, 0);
  m->call = CALL_NONE, m->bytes = 0, m->hash = 0;
}

static void nccl_finish(Comm *c) {
  Member *m = member(c);
  if (m->call == CALL_NONE) return;
  m->host->meet(m->host, m->call, m->bytes, (int)(m->hash ^ m->hash >> 32));
  wait_for_device(c, comm_call_names[m->call]);
}

// ---- the calls: `put` gives work to the side stream, and nobody waits ----

static int type_of(CommType type) { return type == COMM_F32 ? NCCL_FLOAT32 : NCCL_FLOAT64; }
static bool even(size_t n, int world) { return comm_part(n, world, 0).n * (size_t)world == n; }
static char *at(void *x, size_t first, size_t size) { return (char *)x + first * size; }

static void put_all_reduce(Comm *c, void *x, size_t n, CommType type) {
  Member *m = member(c);
  begin_call(c, CALL_ALL_REDUCE, n * comm_type_size(type), (int)type);
  if (n) settle(c, "ncclAllReduce", m->library.all_reduce(x, x, n, type_of(type), NCCL_SUM, m->comm, m->stream));
  m->device->side_end(m->device);
  for (int r = 0; r < c->world; r++) c->bytes_received += (r == c->rank ? (uint64_t)c->world - 1 : 1) * comm_part(n, c->world, r).n * comm_type_size(type);
}

static void put_reduce_scatter(Comm *c, void *x, size_t n, CommType type) {
  Member *m = member(c);
  const size_t size = comm_type_size(type);
  const CommPart mine = comm_part(n, c->world, c->rank);
  begin_call(c, CALL_REDUCE_SCATTER, n * size, (int)type);
  if (n && even(n, c->world)) settle(c, "ncclReduceScatter", m->library.reduce_scatter(x, at(x, mine.first, size), mine.n, type_of(type), NCCL_SUM, m->comm, m->stream));
  else if (n) {
    settle(c, "ncclGroupStart", m->library.group_start());
    for (int r = 0; r < c->world; r++) {
      const CommPart part = comm_part(n, c->world, r);
      char *p = at(x, part.first, size);
      if (part.n) settle(c, "ncclReduce", m->library.reduce(p, p, part.n, type_of(type), NCCL_SUM, r, m->comm, m->stream));
    }
    settle(c, "ncclGroupEnd", m->library.group_end());
  }
  m->device->side_end(m->device);
  c->bytes_received += (uint64_t)(c->world - 1) * mine.n * size;
}

static void put_all_gather(Comm *c, void *x, size_t n, CommType type) {
  Member *m = member(c);
  const size_t size = comm_type_size(type);
  const CommPart mine = comm_part(n, c->world, c->rank);
  begin_call(c, CALL_ALL_GATHER, n * size, (int)type);
  if (n && even(n, c->world)) settle(c, "ncclAllGather", m->library.all_gather(at(x, mine.first, size), x, mine.n * size, NCCL_UINT8, m->comm, m->stream));
  else if (n) {
    settle(c, "ncclGroupStart", m->library.group_start());
    for (int r = 0; r < c->world; r++) {
      const CommPart part = comm_part(n, c->world, r);
      char *p = at(x, part.first, size);
      if (part.n) settle(c, "ncclBroadcast", m->library.broadcast(p, p, part.n * size, NCCL_UINT8, r, m->comm, m->stream));
    }
    settle(c, "ncclGroupEnd", m->library.group_end());
  }
  m->device->side_end(m->device);
  c->bytes_received += (uint64_t)(n - mine.n) * size;
}

static void nccl_begin(Comm *c, CommCall call, void *x, size_t n, CommType type) {
  if (call == CALL_ALL_REDUCE) put_all_reduce(c, x, n, type);
  else put_reduce_scatter(c, x, n, type);
}
static void nccl_all_reduce(Comm *c, void *x, size_t n, CommType type) {
  put_all_reduce(c, x, n, type);
  nccl_finish(c);
}
static void nccl_reduce_scatter(Comm *c, void *x, size_t n, CommType type) {
  put_reduce_scatter(c, x, n, type);
  nccl_finish(c);
}
static void nccl_all_gather(Comm *c, void *x, size_t n, CommType type) {
  put_all_gather(c, x, n, type);
  nccl_finish(c);
}
static void nccl_broadcast(Comm *c, void *x, size_t bytes, int root) {
  Member *m = member(c);
  begin_call(c, CALL_BROADCAST, bytes, root);
  if (bytes) settle(c, "ncclBroadcast", m->library.broadcast(x, x, bytes, NCCL_UINT8, root, m->comm, m->stream));
  m->device->side_end(m->device);
  if (c->rank != root) c->bytes_received += bytes;
  nccl_finish(c);
}
static void nccl_barrier(Comm *c) { member(c)->host->barrier(member(c)->host); }

// Two ranks only, which meet by the message's size: the host transport names the one that does not come.
static void nccl_send(Comm *c, const void *x, size_t bytes, int to) {
  Member *m = member(c);
  const uint64_t size = bytes;
  comm_check_peer(c, "send", to);
  m->host->send(m->host, &size, sizeof size, to);
  begin_call(c, CALL_SEND, bytes, to);
  if (bytes) settle(c, "ncclSend", m->library.send(x, bytes, NCCL_UINT8, to, m->comm, m->stream));
  m->device->side_end(m->device);
  wait_for_device(c, "send");
}
static void nccl_receive(Comm *c, void *x, size_t bytes, int from) {
  Member *m = member(c);
  uint64_t size = 0;
  comm_check_peer(c, "receive", from);
  m->host->receive(m->host, &size, sizeof size, from);
  if (size != bytes) {
    char text[256];
    snprintf(text, sizeof text, "rank %d sent %llu bytes where rank %d is in receive of %zu bytes at step %lld", from, (unsigned long long)size, c->rank, bytes, (long long)m->host->step);
    m->host->report(m->host, text);
    leave_with_fault(c);
  }
  begin_call(c, CALL_RECEIVE, bytes, from);
  if (bytes) settle(c, "ncclRecv", m->library.receive(x, bytes, NCCL_UINT8, from, m->comm, m->stream));
  m->device->side_end(m->device);
  c->bytes_received += bytes;
  wait_for_device(c, "receive");
}

// ---- joining and leaving ----

static void nccl_destroy(Comm *c) {
  Member *m = member(c);
  m->stage = ENDING;
  settle(c, "ncclCommFinalize", m->library.finalize(m->comm));
  m->library.destroy(m->comm);
  free(m);
  free(c);
}

Comm *comm_nccl_join(Comm *host, Device *d) {
  if (host->world == 1 || !d->side_stream) return host;
  Comm *c = xzero(sizeof *c);
  Member *m = xzero(sizeof *m);
  char version[COMM_NCCL_VERSION_ROOM];
  NcclId id;
  NcclConfig config = {sizeof config, NCCL_CONFIG_MAGIC, NCCL_LEAST_VERSION, 0};
  const char *why = open_library(&m->library, version);
  if (why) fail(EXIT_MACHINE, "several GPUs need NCCL: %s; or train on one GPU with --gpus 1, or on the CPU with --ranks %d", why, host->world);
  snprintf(m->name, sizeof m->name, "NCCL %s", version);
  m->host = host, m->device = d, m->stream = d->side_stream(d);
  *c = (Comm){.rank = host->rank, .world = host->world, .transport = m->name, .state = m, .all_reduce = nccl_all_reduce, .reduce_scatter = nccl_reduce_scatter,
              .all_gather = nccl_all_gather, .broadcast = nccl_broadcast, .send = nccl_send, .receive = nccl_receive, .barrier = nccl_barrier,
              .begin = nccl_begin, .finish = nccl_finish, .destroy = nccl_destroy};
  // Ranks of one machine need no network: NCCL's own sockets stay on the loopback, unless NCCL_SOCKET_IFNAME names another
  if (!strcmp(host->transport, "shared memory")) setenv("NCCL_SOCKET_IFNAME", "lo", 0);
  if (c->rank == 0) settle(c, "ncclGetUniqueId", m->library.get_id(&id));
  host->broadcast(host, &id, sizeof id, 0);
  settle(c, "ncclCommInitRankConfig", m->library.init(&m->comm, c->world, id, c->rank, &config));
  host->barrier(host);     // all are in, or the one that is not has said why
  m->stage = RUNNING;
  return c;
}
