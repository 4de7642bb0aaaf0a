// runtime.cpp: owns the CUDA run-time interface: streams, events, graphs, copies, launches, properties.
//
// A stream is a queue of closures. Eager: work runs when it is enqueued. Lazy (GPT_CUDA_STREAMS=lazy): work runs only when somebody waits for it,
// the streams' heads in random order, so that a missing wait or event shows as a wrong result. Work that others do (nccl.cpp) is begun in its turn and keeps its
// stream until it is done, while the other streams go on: so in both modes.
#include "emulator.h"
#include <time.h>
#include <unistd.h>
#include <algorithm>
#include <deque>
#include <map>
using namespace cuemu;

typedef std::function<void()> Work;
struct CUevent_st { long recorded = 0, done = 0; double milliseconds = 0; };
struct Item {
  Work run;                                                      // empty: has run, or there is nothing to run
  CUevent_st *wait = NULL;                                       // runs when that event has been recorded `ticket` times
  long ticket = 0;
  std::function<bool()> done;                                    // of work that others do: whether they have; empty: done when it has run
};
struct CUgraph_st { std::vector<Work> work; };
struct CUstream_st { std::deque<Item> queue; CUgraph_st *capture = NULL; };
static std::vector<CUstream_st *> streams;
static cudaError_t last_error = cudaSuccess;
static std::map<const void *, size_t> shared_allowed;            // by cudaFuncSetAttribute

cudaError_t cuemu::record_error(cudaError_t e) { if (e) last_error = e; return e; }
static double milliseconds() { timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6; }

// ---- queues ----

static bool run_head(CUstream_st *s) {                           // whether something was done
  if (s->queue.empty()) return false;
  Item &item = s->queue.front();
  if (item.wait && item.wait->done < item.ticket) return false;
  Work work = std::move(item.run);
  item.run = NULL;
  if (work) work();
  if (item.done && !item.done()) return (bool)work;
  s->queue.pop_front();
  return true;
}
static bool run_any_head() {                                     // of a stream drawn at random
  static Random random = {settings().stream_seed * 0x9e3779b97f4a7c15u + 88172645463325252u};
  std::vector<CUstream_st *> order = streams;
  for (size_t i = order.size(); i > 1; i--) std::swap(order[i - 1], order[random.below((uint32_t)i)]);
  for (CUstream_st *s : order) if (run_head(s)) return true;
  return false;
}
static void drain(const std::function<bool()> &until) {
  while (!until()) {
    if (run_any_head()) continue;
    if (std::none_of(streams.begin(), streams.end(), [](CUstream_st *s) { return !s->queue.empty() && s->queue.front().done; }))
      fail("streams wait for each other: every queue waits for an event that nobody will record");
    usleep(50);
  }
}
static void enqueue(cudaStream_t s, Item item) {
  s->queue.push_back(std::move(item));
  if (!settings().lazy_streams) while (run_head(s)) { }
}
// On a GPU a stream whose work has ended elsewhere goes on by itself; here when the host comes by.
static void look_at_others() {
  if (settings().lazy_streams) return;
  for (CUstream_st *s : streams) if (!s->queue.empty() && s->queue.front().done) while (run_head(s)) { }
}
void cuemu::submit(cudaStream_t s, Work work) {
  initialise();
  look_at_others();
  if (s && s->capture) { s->capture->work.push_back(std::move(work)); return; }
  if (!s || (!settings().lazy_streams && s->queue.empty())) { work(); return; }
  Item item;
  item.run = std::move(work);
  enqueue(s, std::move(item));
}
void cuemu::submit_to_others(cudaStream_t s, Work begin, std::function<bool()> done) {
  Item item;
  item.run = std::move(begin), item.done = std::move(done);
  enqueue(s, std::move(item));
}

// Refuses what a GPU refuses: over 1,024 threads, too large a grid, over 48 KiB of shared memory that was not asked for.
// What was launched since this was last asked, in the order of the calls, a line a kernel: "name<arguments> blocks x threads, bytes of dynamic
// shared memory". Nothing is kept before it is asked for the first time. For tests, which find it where they are linked with the emulator.
static std::string launched;
static bool launches_are_kept;
extern "C" const char *emulated_launches(void) {
  static std::string said;
  launches_are_kept = true;
  said.swap(launched);
  launched.clear();
  return said.c_str();
}
static void keep_launch(const Launch &l) {
  const std::string name = kernel_name(l.fn);   // "void name<arguments>(parameters)"; an argument may have brackets too
  const size_t begin = name.rfind("void ", 0) == 0 ? 5 : 0;
  size_t end = begin;
  for (int depth = 0; end < name.size() && (depth || name[end] != '('); end++) depth += (name[end] == '<') - (name[end] == '>');
  launched += name.substr(begin, end - begin) + " " + std::to_string(l.grid.x) + (l.grid.y > 1 ? "," + std::to_string(l.grid.y) : "") + " x " + std::to_string(l.block.x);
  launched += l.smem ? ", " + std::to_string(l.smem) + "\n" : "\n";
}

void cuemu::launch(const Launch &l, std::function<const void *()> args) {
  initialise();
  const size_t threads = (size_t)l.block.x * l.block.y * l.block.z;
  const bool grid = l.grid.x && l.grid.y && l.grid.z && l.grid.x <= 0x7fffffffu && l.grid.y <= 65535 && l.grid.z <= 65535;
  if (!threads || threads > 1024 || l.block.z > 64 || !grid) { record_error(cudaErrorInvalidConfiguration); return; }
  auto allowed = shared_allowed.find(l.fn);
  if (l.smem > (allowed == shared_allowed.end() ? 48 * 1024 : allowed->second)) { record_error(cudaErrorInvalidValue); return; }
  if (launches_are_kept) keep_launch(l);
  submit(l.stream, [l, args] { run_grid(l, args()); });
}
cudaError_t cuemu_func_set_attribute(const void *f, cudaFuncAttribute a, int v) {
  if (a != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  if (v < 0 || v > SHARED_MOST) return record_error(cudaErrorInvalidValue);
  shared_allowed[f] = (size_t)v;
  return cudaSuccess;
}

// ---- copies ----

static void copy(void *to, const void *from, size_t n, cudaMemcpyKind kind) {
  const bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice, from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
  if (n && kind != cudaMemcpyDefault) {
    if (in_device(to, n) != to_device) { describe_address((uintptr_t)to); fail("cudaMemcpy of %zu bytes: the destination %s", n, to_device ? "is not a device range" : "is device memory"); }
    if (in_device(from, n) != from_device) { describe_address((uintptr_t)from); fail("cudaMemcpy of %zu bytes: the source %s", n, from_device ? "is not a device range" : "is device memory"); }
  }
  memmove(to, from, n);
  host_wrote(to, n);
}
static void set(void *to, int value, size_t n) {
  if (n && !in_device(to, n)) { describe_address((uintptr_t)to); fail("cudaMemset of %zu bytes: not a device range", n); }
  memset(to, value, n);
  host_wrote(to, n);
}
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t n, cudaMemcpyKind kind, cudaStream_t s) { submit(s, [=] { copy(to, from, n, kind); }); return cudaSuccess; }
// Within the device, for tests in C of what a stream waits for.
extern "C" void emulated_copy(void *to, const void *from, size_t n, void *stream) { cudaMemcpyAsync(to, from, n, cudaMemcpyDeviceToDevice, (cudaStream_t)stream); }
cudaError_t cudaMemcpy(void *to, const void *from, size_t n, cudaMemcpyKind kind) { return cudaMemcpyAsync(to, from, n, kind, NULL); }
cudaError_t cudaMemsetAsync(void *to, int value, size_t n, cudaStream_t s) { submit(s, [=] { set(to, value, n); }); return cudaSuccess; }
cudaError_t cudaMemset(void *to, int value, size_t n) { return cudaMemsetAsync(to, value, n, NULL); }

// ---- streams, events, graphs ----

cudaError_t cudaDeviceSynchronize() {
  drain([] { return std::all_of(streams.begin(), streams.end(), [](CUstream_st *s) { return s->queue.empty(); }); });
  return cudaSuccess;
}
cudaError_t cudaStreamCreate(cudaStream_t *s) { initialise(); *s = new CUstream_st; streams.push_back(*s); return cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t s) {
  if (!s) return cudaDeviceSynchronize();
  drain([s] { return s->queue.empty(); });
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t s) {
  cudaStreamSynchronize(s);
  streams.erase(std::find(streams.begin(), streams.end(), s));
  delete s;
  return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t *e) { *e = new CUevent_st; return cudaSuccess; }
cudaError_t cudaEventDestroy(cudaEvent_t e) { delete e; return cudaSuccess; }
cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s) {
  const long ticket = ++e->recorded;
  submit(s, [e, ticket] { e->done = ticket, e->milliseconds = milliseconds(); });
  return cudaSuccess;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned) {
  if (!s || s->capture) return cudaSuccess;
  Item item;
  item.wait = e, item.ticket = e->recorded;
  enqueue(s, std::move(item));
  return cudaSuccess;
}
// On a GPU time goes on while the host asks; here a little work is done for each question.
cudaError_t cudaEventQuery(cudaEvent_t e) {
  run_any_head();
  return e->done >= e->recorded ? cudaSuccess : cudaErrorNotReady;
}
cudaError_t cudaEventSynchronize(cudaEvent_t e) {
  const long ticket = e->recorded;
  drain([e, ticket] { return e->done >= ticket; });
  return cudaSuccess;
}
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t a, cudaEvent_t b) { *ms = (float)(b->milliseconds - a->milliseconds); return cudaSuccess; }
cudaError_t cudaStreamBeginCapture(cudaStream_t s, cudaStreamCaptureMode) {
  if (!s) return record_error(cudaErrorInvalidValue);
  s->capture = new CUgraph_st;
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *g) { *g = s->capture; s->capture = NULL; return cudaSuccess; }
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *x, cudaGraph_t g, unsigned long long) { *x = new CUgraph_st(*g); return cudaSuccess; }
cudaError_t cudaGraphLaunch(cudaGraphExec_t x, cudaStream_t s) { for (const Work &w : x->work) submit(s, w); return cudaSuccess; }
cudaError_t cudaGraphDestroy(cudaGraph_t g) { delete g; return cudaSuccess; }
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t x) { delete x; return cudaSuccess; }

// ---- errors and properties ----

cudaError_t cudaGetLastError() { const cudaError_t e = last_error; last_error = cudaSuccess; return e; }
cudaError_t cudaPeekAtLastError() { return last_error; }
const char *cudaGetErrorName(cudaError_t e) {
  switch (e) {
    case cudaSuccess: return "cudaSuccess";
    case cudaErrorInvalidValue: return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation: return "cudaErrorMemoryAllocation";
    case cudaErrorInvalidConfiguration: return "cudaErrorInvalidConfiguration";
    case cudaErrorInvalidDevicePointer: return "cudaErrorInvalidDevicePointer";
    case cudaErrorInvalidResourceHandle: return "cudaErrorInvalidResourceHandle";
    case cudaErrorNoDevice: return "cudaErrorNoDevice";
    case cudaErrorInvalidDevice: return "cudaErrorInvalidDevice";
    case cudaErrorNotReady: return "cudaErrorNotReady";
    default: return "an error that the emulator never gives";
  }
}
const char *cudaGetErrorString(cudaError_t e) { return cudaGetErrorName(e); }
// As many devices as GPT_CUDA_DEVICES says, one if it does not. They share this machine's memory; a process uses one of them.
static int number_from(const char *variable, int otherwise) {
  const char *text = getenv(variable);
  return text ? atoi(text) : otherwise;
}
static int device_count() { return number_from("GPT_CUDA_DEVICES", 1); }
static int current_device;
cudaError_t cudaGetDeviceCount(int *n) {
  *n = device_count();
  return *n > 0 ? cudaSuccess : record_error(cudaErrorNoDevice);
}
cudaError_t cudaSetDevice(int d) {
  if (d < 0 || d >= device_count()) return record_error(cudaErrorInvalidDevice);
  current_device = d;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int *d) { *d = current_device; return cudaSuccess; }
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int d) {
  size_t free_bytes;
  if (d < 0 || d >= device_count()) return record_error(cudaErrorInvalidDevice);
  memset(p, 0, sizeof *p);
  snprintf(p->name, sizeof p->name, "emulated sm_80 (no GPU)");
  cudaMemGetInfo(&free_bytes, &p->totalGlobalMem);
  p->sharedMemPerBlock = 48 << 10, p->sharedMemPerBlockOptin = SHARED_MOST, p->multiProcessorCount = number_from("GPT_CUDA_MULTIPROCESSORS", 2), p->maxThreadsPerMultiProcessor = 2048;
  p->major = 8, p->minor = 0, p->warpSize = 32, p->maxThreadsPerBlock = 1024, p->l2CacheSize = 40 << 20;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr, int) { *value = number_from("GPT_CUDA_CLOCK_KHZ", 0); return cudaSuccess; }   // 0: not known
