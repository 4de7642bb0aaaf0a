// emulator.cpp: owns how the threads of a kernel run on this machine: fibers, their order, barriers, blocks and grids.
//
// A CUDA thread is a fiber: a stack, and a saved stack pointer. It runs until it meets a barrier or an operation of the whole warp; then another
// thread of the block runs. A fiber whose thread has ended without ever waiting goes on with the next thread, so that a kernel without barriers is a
// plain loop. A block runs on one thread of this machine from beginning to end; the blocks of a grid are spread over all of them.
// Never compiled with instrumentation: the checked build watches kernels, not this file.
#include "emulator.h"
#include <errno.h>
#include <omp.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>
#include <algorithm>
#include <map>
#ifndef __x86_64__
#define PORTABLE_SWITCH 1      // by ucontext: 20 times slower, and tested on x86-64 too
#endif
#ifdef PORTABLE_SWITCH
#include <ucontext.h>
#endif

// Dynamic shared memory: `extern __shared__ unsigned char smem[];` in a kernel names this object.
alignas(1024) thread_local unsigned char smem[cuemu::SHARED_MOST + cuemu::SHARED_TAIL];
// g++ -O2 may call a thread_local's initialising function without asking whether there is one; smem needs none, so this one is empty.
extern "C" void smem_needs_no_initialising() __asm__("_ZTH4smem");
extern "C" void smem_needs_no_initialising() {}

namespace cuemu {
__thread Tls tls;
thread_local Core *core;
unsigned char *dynamic_shared() { return smem; }

// ---- settings ----

// "random:7": the word, and the number behind it
static bool named(const char *value, const char *word, uint64_t *seed) {
  const size_t n = strlen(word);
  if (strncmp(value, word, n) || (value[n] && (value[n] != ':' || !seed))) return false;
  if (value[n]) {
    char *end;
    errno = 0;
    *seed = strtoull(value + n + 1, &end, 10);
    if (*end || end == value + n + 1 || errno) return false;
  }
  return true;
}
static Settings read_settings() {
  Settings s = {FORWARD, 1, true, false, 1, false, NULL};
  const char *v = getenv("GPT_CUDA_SCHED");
  if (v) {
    if (named(v, "reverse", NULL)) s.order = REVERSE;
    else if (named(v, "random", &s.order_seed)) s.order = RANDOM;
    else if (!named(v, "forward", NULL)) fail("GPT_CUDA_SCHED=%s: it is forward, reverse, random or random:SEED", v);
  }
  if ((v = getenv("GPT_CUDA_ASYNC"))) {
    s.copies_land_late = named(v, "late", NULL);
    if (!s.copies_land_late && !named(v, "early", NULL)) fail("GPT_CUDA_ASYNC=%s: it is late or early", v);
  }
  if ((v = getenv("GPT_CUDA_STREAMS"))) {
    s.lazy_streams = named(v, "lazy", &s.stream_seed);
    if (!s.lazy_streams && !named(v, "eager", NULL)) fail("GPT_CUDA_STREAMS=%s: it is eager, lazy or lazy:SEED", v);
  }
  s.statistics = getenv("GPT_CUDA_STATS") != NULL, s.profile = getenv("GPT_CUDA_PROFILE");
  return s;
}
const Settings &settings() { static const Settings s = read_settings(); return s; }

// ---- messages ----

void where_am_i() {
  if (!core || !core->launch) { fprintf(stderr, "  in host code\n"); return; }
  fprintf(stderr, "  in kernel %s, block (%u,%u,%u)", kernel_name(core->launch->fn).c_str(), tls.blockIdx.x, tls.blockIdx.y, tls.blockIdx.z);
  if (core->current >= 0) fprintf(stderr, ", thread (%u,%u,%u)", tls.threadIdx.x, tls.threadIdx.y, tls.threadIdx.z);
  fprintf(stderr, "\n");
}
void fail(const char *format, ...) {
  va_list list;
  va_start(list, format);
  fprintf(stderr, "cuda_on_cpu: error: "), vfprintf(stderr, format, list), fprintf(stderr, "\n");
  va_end(list);
  where_am_i();
  fflush(stdout);
  _exit(70);
}
static void deadlock() {
  const Core &c = *core;
  fprintf(stderr, "cuda_on_cpu: error: deadlock: no thread of the block can run\n");
  if (c.barrier.arrived) fprintf(stderr, "  %d of %d live threads wait at %s (%s:%d)\n", c.barrier.arrived, c.live, c.barrier.what, c.barrier.file, c.barrier.line);
  int shown = 0;
  for (int w = 0; w < c.warps; w++)
    for (const WarpOp &o : c.warp[w].op)
      if (o.arrived && shown++ < 8) fprintf(stderr, "  warp %d: lanes %08x wait at %s (%s:%d) for lanes %08x\n", w, o.arrived, o.what, o.file, o.line, o.mask & c.warp[w].live & ~o.arrived);
  core->current = -1;
  where_am_i();
  fflush(stdout);
  _exit(70);
}

// ---- the order of threads ----

static inline int lowest(unsigned mask) { return __builtin_ctz(mask); }
static inline int highest(unsigned mask) { return 31 - __builtin_clz(mask); }
static int nth(unsigned mask, unsigned n) { while (n--) mask &= mask - 1; return lowest(mask); }

static int next_thread() {                             // -1: none can run
  Core &c = *core;
  if (!c.warps_ready) return -1;
  int w = c.current >= 0 ? c.current >> 5 : 0;
  const unsigned ready = c.warp[w].ready;
  switch (settings().order) {
    case FORWARD:
      if (c.current >= 0 && ready && (ready & -ready) == 2u << (c.current & 31)) return c.current + 1;   // the common case, as a branch that is predicted
      if (!ready) { const unsigned above = c.warps_ready & ~((2u << w) - 1); w = lowest(w < 31 && above ? above : c.warps_ready); }
      return w * 32 + lowest(c.warp[w].ready);
    case REVERSE:
      if (c.current < 0) w = highest(c.warps_ready);
      else if (!ready) { const unsigned below = c.warps_ready & ((1u << w) - 1); w = highest(below ? below : c.warps_ready); }
      return w * 32 + highest(c.warp[w].ready);
    default:
      w = nth(c.warps_ready, c.random.below((uint32_t)__builtin_popcount(c.warps_ready)));
      return w * 32 + nth(c.warp[w].ready, c.random.below((uint32_t)__builtin_popcount(c.warp[w].ready)));
  }
}
static void set_ready(int w, unsigned lanes) { core->warp[w].ready |= lanes; if (lanes) core->warps_ready |= 1u << w; }
static void clear_ready(int t) {
  unsigned &ready = core->warp[t >> 5].ready;
  ready &= ~(1u << (t & 31));
  if (!ready) core->warps_ready &= ~(1u << (t >> 5));
}
static void become(int t) { core->current = t, tls.threadIdx = core->thread[t].index; }

// ---- fibers ----

static void run_fiber();
static void *new_stack() {                             // its top
  Core &c = *core;
  if (!c.free_stacks.empty()) { void *p = c.free_stacks.back(); c.free_stacks.pop_back(); return p; }
  char *p = (char *)mmap(NULL, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) fail("no memory for the stack of a CUDA thread");
  mprotect(p, 4096, PROT_NONE);                        // a stack that grows too far faults
  return p + STACK - c.stacks++ * 7 % 61 * 64;         // shifted, or the tops of all stacks would share a few sets of the cache
}
enum { HOST = -1, ENDED = -2 };                        // in place of a thread: the stack of the machine's own thread; a fiber that never runs again

#ifdef PORTABLE_SWITCH
static void begin_fiber(Thread &n) {
  n.stack = new_stack();
  if (!n.stack_pointer) n.stack_pointer = new ucontext_t;
  ucontext_t *own = (ucontext_t *)n.stack_pointer;
  getcontext(own);
  own->uc_stack.ss_sp = (char *)n.stack - STACK + 8192, own->uc_stack.ss_size = STACK - 8192, own->uc_link = NULL;
  makecontext(own, run_fiber, 0);
}
static void switch_to(int from, int t) {
  Core &c = *core;
  c.switches++;
  if (t >= 0) {
    if (!c.thread[t].stack) begin_fiber(c.thread[t]);
    become(t);
  }
  const ucontext_t *to = (const ucontext_t *)(t < 0 ? c.main_stack_pointer : c.thread[t].stack_pointer);
  if (from == ENDED) setcontext(to);
  else swapcontext((ucontext_t *)(from == HOST ? c.main_stack_pointer : c.thread[from].stack_pointer), to);
}
#else
// Saves the registers that a function must keep and the stack pointer, loads those of another fiber. It leaves by `ret`, which the processor predicts.
extern "C" void cuemu_switch(void **save, void *load);
asm(R"(
.text
.globl cuemu_switch
.type cuemu_switch,@function
cuemu_switch:
  push %rbp
  push %rbx
  push %r12
  push %r13
  push %r14
  push %r15
  mov  %rsp, (%rdi)
  mov  %rsi, %rsp
  pop  %r15
  pop  %r14
  pop  %r13
  pop  %r12
  pop  %rbx
  pop  %rbp
  ret
.size cuemu_switch,.-cuemu_switch
)");
static void switch_to(int from, int t) {
  static void *nowhere;
  Core &c = *core;
  c.switches++;
  if (t >= 0) {
    Thread &n = c.thread[t];
    if (!n.stack) {
      n.stack = new_stack();
      void **p = (void **)((uintptr_t)n.stack & ~(uintptr_t)63);
      *--p = NULL;                                     // where run_fiber would return to; and the alignment that the calling convention wants
      *--p = (void *)run_fiber;
      for (int i = 0; i < 6; i++) *--p = NULL;
      n.stack_pointer = p;
    }
    become(t);
  }
  cuemu_switch(from == HOST ? &c.main_stack_pointer : from == ENDED ? &nowhere : &c.thread[from].stack_pointer, t < 0 ? c.main_stack_pointer : c.thread[t].stack_pointer);
}
#endif
static void yield() {
  const int me = core->current, t = next_thread();
  if (t < 0) deadlock();
  if (t != me) switch_to(me, t);
}

// ---- waiting for each other ----

static void open_barrier() {
  Core &c = *core;
  if (c.live != c.threads) note_strict("barrier passed although threads of the block have already exited");
  c.barrier.result = c.barrier.votes, c.barrier.arrived = c.barrier.votes = 0;
  c.block_epoch++;
  for (int w = 0; w < c.warps; w++) set_ready(w, c.warp[w].at_barrier), c.warp[w].at_barrier = 0;
}
int block_barrier(int vote, const char *what, const char *file, int line) {
  Core &c = *core;
  const int me = c.current;
  if (!c.barrier.arrived) c.barrier.what = what, c.barrier.file = file, c.barrier.line = line;
  else if (c.barrier.line != line) fail("divergent barrier: this thread is at %s %s:%d, others wait at %s %s:%d", what, file, line, c.barrier.what, c.barrier.file, c.barrier.line);
  c.barrier.votes += vote != 0;
  if (++c.barrier.arrived == c.live) {
    open_barrier();
    if (settings().order == RANDOM) yield();
  } else {
    clear_ready(me);
    c.warp[me >> 5].at_barrier |= 1u << (me & 31);
    yield();
  }
  return c.barrier.result;
}

static bool complete(int w, WarpOp &o) {               // if all have arrived that still live
  Warp &warp = core->warp[w];
  if (!o.arrived || (o.mask & warp.live) != o.arrived) return false;
  if (o.combine) o.combine(o.slot, o.mask);
  else if (o.arrived == warp.live) warp.epoch++;       // __syncwarp of all orders what they read and wrote
  set_ready(w, o.arrived);
  memset(o.slot, 0, sizeof o.slot);
  o.arrived = 0;
  warp.pending &= ~(1u << (&o - warp.op));
  return true;
}
static WarpOp &operation_of(Warp &warp, unsigned mask, const char *what, Combine combine, const char *file, int line, int lane) {
  for (unsigned m = warp.pending; m; m &= m - 1) {
    WarpOp &o = warp.op[lowest(m)];
    if (o.mask != mask) continue;
    if (o.combine != combine || (o.what != what && strcmp(o.what, what)))
      fail("divergent warp operation: lane %d is at %s %s:%d, lanes %08x wait at %s %s:%d", lane, what, file, line, o.arrived, o.what, o.file, o.line);
    return o;
  }
  if (warp.pending == 255) fail("%s at %s:%d: too many different masks in flight in one warp", what, file, line);
  const int k = lowest(~warp.pending);
  warp.pending |= 1u << k;
  WarpOp &o = warp.op[k];
  o.mask = mask, o.what = what, o.combine = combine, o.file = file, o.line = line;
  return o;
}
void warp_collective(unsigned mask, const char *what, Combine combine, void *slot, const char *file, int line) {
  const int me = core->current, w = me >> 5, l = me & 31;
  if (!(mask >> l & 1)) fail("%s at %s:%d: the mask %08x lacks the calling lane %d", what, file, line, mask, l);
  WarpOp &o = operation_of(core->warp[w], mask, what, combine, file, line, l);
  core->collectives += o.arrived == 0;
  o.slot[l] = slot;
  o.arrived |= 1u << l;
  if (!complete(w, o)) clear_ready(me), yield();
  else if (settings().order == RANDOM) yield();
}
void warp_sync(unsigned mask, const char *file, int line) {
  static int present;
  warp_collective(mask, "__syncwarp", NULL, &present, file, line);
}

// ---- a thread's end, a block, a grid ----

static void end_thread() {
  Core &c = *core;
  const int me = c.current, w = me >> 5;
  if (!c.thread[me].copies.empty()) cp_async_wait(-1);
  if (!c.warp[w].products.empty()) fail("the thread ends with a wgmma under way that nobody waited for");
  clear_ready(me);
  c.warp[w].live &= ~(1u << (me & 31));
  c.live--;
  if (c.warp[w].pending) for (WarpOp &o : c.warp[w].op) complete(w, o);
  if (c.barrier.arrived && c.barrier.arrived == c.live) open_barrier();
}
static void run_fiber() {
  Core &c = *core;
  void *const stack = c.thread[c.current].stack;
  for (;;) {
    c.thread[c.current].stack = stack;
    c.launch->invoke(c.launch->fn, c.args);
    end_thread();
    const int t = next_thread();
    if (t < 0 && c.live) deadlock();
    if (t >= 0 && !c.thread[t].stack) { become(t); continue; }
    c.free_stacks.push_back(stack);                    // nobody takes it before we have left it
    switch_to(ENDED, t);
  }
}

static const unsigned char POISON = 0xff, CANARY = 0xa5;
enum { CANARIES = 256 };                               // bytes behind dynamic shared memory

static Core *core_of_this_thread() {
  if (core) return core;
  core = new Core();
  core->tls_base = tls_base();
  core->random.state = settings().order_seed * 0x9e3779b97f4a7c15u + 12345 + (uint64_t)omp_get_thread_num();
#ifdef PORTABLE_SWITCH
  core->main_stack_pointer = new ucontext_t;
#endif
  return core;
}

static void begin_block(const Launch &l, const void *args, uint3 b) {
  Core &c = *core;
  tls.blockIdx = b, tls.blockDim = {l.block.x, l.block.y, l.block.z}, tls.gridDim = {l.grid.x, l.grid.y, l.grid.z};
  c.launch = &l, c.args = args;
  c.threads = c.live = (int)(l.block.x * l.block.y * l.block.z);
  c.warps = (c.threads + 31) / 32;
  c.warps_ready = c.warps == 32 ? ~0u : (1u << c.warps) - 1;
  c.barrier.arrived = c.barrier.votes = 0, c.current = -1, c.block_epoch = 0;
  for (int w = 0; w < c.warps; w++) {
    const int lanes = std::min(32, c.threads - w * 32);
    c.warp[w].live = c.warp[w].ready = lanes == 32 ? ~0u : (1u << lanes) - 1;
    c.warp[w].at_barrier = c.warp[w].epoch = 0;
    c.warp[w].product_groups = 0, c.warp[w].products_asked = 0, c.warp[w].sums_fenced = false;
    c.asked[w / 4].clear();
  }
  uint3 index = {0, 0, 0};
  for (int t = 0; t < c.threads; t++) {
    c.thread[t].index = index, c.thread[t].stack = NULL, c.thread[t].groups_closed = 0, c.thread[t].unfenced = false;
    if (++index.x == l.block.x) { index.x = 0; if (++index.y == l.block.y) index.y = 0, index.z++; }
  }
}
static void run_block(const Launch &l, const void *args, uint3 b) {
  begin_block(l, args, b);
  for (const Symbol &a : shared_arrays()) memset((void *)(core->tls_base + a.addr), POISON, a.size);
  memset(smem, POISON, l.smem);
  memset(smem + l.smem, CANARY, CANARIES);
  block_begin(b);
  switch_to(HOST, next_thread());                      // returns when every thread has ended
  core->current = -1;
  for (int i = 0; i < CANARIES; i++) if (smem[l.smem + (size_t)i] != CANARY) fail("the block wrote past the end of its %zu bytes of dynamic shared memory (byte %d)", l.smem, i);
  if (settings().profile) profile_end_of_block();
  core->launch = NULL;
}

long block_at(long i, long n) {
  const Settings &s = settings();
  const long prime = 2654435761;                       // so i -> i prime + seed modulo n meets every block once, unless n is its multiple
  return s.order == FORWARD ? i : s.order == REVERSE ? n - 1 - i : n % prime == 0 ? i : (long)(((uint64_t)i * (uint64_t)prime + s.order_seed) % (uint64_t)n);
}

// ---- statistics ----

struct Statistics { long launches, threads, switches, collectives; double milliseconds; };
static std::map<const void *, Statistics> statistics;
static void print_statistics() {
  fprintf(stderr, "%-60s %8s %10s %11s %11s %10s\n", "kernel", "launches", "threads", "switches", "warp ops", "ms");
  for (const auto &s : statistics)
    fprintf(stderr, "%-60.60s %8ld %10ld %11ld %11ld %10.3f\n", kernel_name(s.first).c_str(), s.second.launches, s.second.threads, s.second.switches, s.second.collectives, s.second.milliseconds);
}
static double milliseconds() { timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6; }
static void count_launch(const Launch &l, long switches, long collectives, double ms) {
  if (statistics.empty()) atexit(print_statistics);
  Statistics &s = statistics[l.fn];
  s.launches++, s.threads += (long)l.grid.x * l.grid.y * l.grid.z * l.block.x * l.block.y * l.block.z;
  s.switches += switches, s.collectives += collectives, s.milliseconds += ms;
}

void run_grid(const Launch &l, const void *args) {
  const long n = (long)l.grid.x * l.grid.y * l.grid.z;
  const double start = settings().statistics ? milliseconds() : 0;
  long switches = 0, collectives = 0;
  grid_begin(l);
  if (settings().profile) profile_launch(l);
  if (ptx_has(l.fn)) ptx_run(l, args);
  else {
    const bool parallel = n > 1 && !in_checked_build() && !settings().profile;
    #pragma omp parallel if (parallel) reduction(+ : switches, collectives)
    {
      const Core *c = core_of_this_thread();
      const long switches_before = c->switches, collectives_before = c->collectives;
      #pragma omp for schedule(dynamic, 1)
      for (long i = 0; i < n; i++) {
        const long b = block_at(i, n);
        run_block(l, args, {(unsigned)(b % l.grid.x), (unsigned)(b / l.grid.x % l.grid.y), (unsigned)(b / l.grid.x / l.grid.y)});
      }
      switches += c->switches - switches_before, collectives += c->collectives - collectives_before;
    }
  }
  if (settings().statistics) count_launch(l, switches, collectives, milliseconds() - start);
}

// ---- hooks, where neither check.cpp nor the interpreter is linked ----

#define WEAK __attribute__((weak))
WEAK void note_read(const void *, size_t, int, const void *) {}
WEAK void note_write(const void *, size_t, int, const void *) {}
WEAK void note_atomic(const void *, size_t, const void *) {}
WEAK void note_in_flight(const void *, size_t, bool) {}
WEAK void note_strict(const char *) {}
WEAK void host_wrote(const void *, size_t) {}
WEAK void grid_begin(const Launch &) {}
WEAK void block_begin(uint3) {}
WEAK bool in_checked_build() { return false; }
WEAK bool ptx_has(const void *) { return false; }
WEAK void ptx_run(const Launch &, const void *) {}
}  // namespace cuemu
