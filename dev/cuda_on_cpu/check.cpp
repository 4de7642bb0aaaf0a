// check.cpp: owns the checked build, in which every access to memory is judged.
//
// Kernels are compiled with -fsanitize=thread: the compiler calls __tsan_read4(p), __tsan_write4(p), ... before each access. Instead of ThreadSanitizer's
// run time this file is linked, which knows what a CUDA thread may touch, and reports with source lines
//   - races in shared and global memory: two threads, at least one of them writing, and nothing that orders them (__syncthreads orders a block,
//     __syncwarp of all lanes a warp; shuffles order nothing; blocks of a launch are never ordered),
//   - reads of shared memory that this block has not written, of device memory that nobody has written, and of bytes that a cp.async still has to bring,
//   - accesses outside of allocations, of the launch's dynamic shared memory, of shared arrays; misaligned ones,
//   - kernels that follow host pointers, host code that follows device pointers; barriers after threads have left.
// Not seen: races between launches on different streams, or through atomics (an atomic orders nothing here: the "last block reduces" idiom is reported).
// Runs on one thread of the machine. Tests: tests/cuda_on_cpu.sh
#include "emulator.h"
#include <link.h>
#include <sys/mman.h>
#include <unistd.h>
#include <algorithm>
#include <set>
using namespace cuemu;

enum { GRAIN = 2, MOST_REPORTS = 20 };                      // bytes of a shadow cell: kernels write nothing smaller
// An access: by which thread (number + 1; 0: nobody), between which barriers, where in the program.
struct Who { uint32_t block_epoch; uint16_t warp_epoch, thread; uint32_t pc; };
// Who wrote last, and two readers since: of two warps, so that a later writer differs from at least one. generation: of what the rest is true.
struct Cell { uint32_t generation, block; Who writer, reader, other_reader; uint8_t written, atomic, in_flight; };
static Cell *shared_cells, *device_cells;
static uint32_t launch_number, block_number, block_index;  // block_index: within its grid
static uintptr_t tls_begin, tls_bytes, program_end;
static int reports;
static std::set<uint64_t> reported;                         // pairs of places

bool cuemu::in_checked_build() { return true; }

// ---- reports ----

static void finish() {
  if (!reports) return;
  fprintf(stderr, "cuda_on_cpu: %d problem(s) reported\n", reports);
  fflush(stdout);
  _exit(70);
}
static uint32_t place_of(const void *pc) { return (uint32_t)((uintptr_t)pc - program_base()); }
static void print_place(uint32_t pc) { print_line((const void *)(program_base() + pc)); }
// Each pair of places once. False: it was reported before.
static bool report(const char *what, uint32_t pc, uint32_t other, uintptr_t address) {
  if (!reported.insert((uint64_t)pc << 32 | other).second) return false;
  reports++;
  fprintf(stderr, "cuda_on_cpu: error: %s\n", what);
  where_am_i();
  describe_address(address);
  fprintf(stderr, "    here:\n");
  print_place(pc);
  return true;
}
static void report_race(const char *what, const Who &earlier, int thread, uint32_t pc, uint32_t earlier_block, uintptr_t address) {
  char text[200];
  if (earlier_block != block_index) snprintf(text, sizeof text, "race: %s by block %u and earlier by thread %d of block %u in the same launch", what, block_index, earlier.thread - 1, earlier_block);
  else snprintf(text, sizeof text, "race: %s by thread %d and earlier by thread %d, no barrier between", what, thread, earlier.thread - 1);
  if (report(text, pc, earlier.pc, address)) fprintf(stderr, "    earlier:\n"), print_place(earlier.pc);
  if (reports >= MOST_REPORTS) fprintf(stderr, "cuda_on_cpu: too many problems\n"), finish();
}

// ---- the shadow ----

static Cell *reserve(size_t bytes) {                        // zeros; touched pages cost memory
  void *p = mmap(NULL, (bytes / GRAIN + 1) * sizeof(Cell), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) fail("no address space to watch %zu bytes", bytes);
  return (Cell *)p;
}
static int find_end(dl_phdr_info *info, size_t, void *) {
  if (info->dlpi_name && info->dlpi_name[0]) return 0;
  for (int k = 0; k < info->dlpi_phnum; k++) if (info->dlpi_phdr[k].p_type == PT_LOAD) program_end = std::max(program_end, info->dlpi_addr + info->dlpi_phdr[k].p_vaddr + info->dlpi_phdr[k].p_memsz);
  return 1;
}
static void set_up() {
  if (shared_cells) return;
  tls_begin = tls_base(), tls_bytes = tls_size();
  dl_iterate_phdr(find_end, NULL);
  shared_cells = reserve(tls_bytes);
  device_cells = reserve(arena_hi - arena_lo);
  atexit(finish);
}

enum Kind { READ, WRITE, ATOMIC };
// Does a barrier lie between the earlier access of this block and thread t now?
static inline bool is_ordered(const Who &earlier, int t, unsigned block_epoch, unsigned warp_epoch) {
  const int other = earlier.thread - 1;
  return earlier.block_epoch != block_epoch || other == t || (other >> 5 == t >> 5 && earlier.warp_epoch != (uint16_t)warp_epoch);
}
static void touch(Cell *c, uintptr_t a, size_t n, Kind kind, int t, uint32_t pc, bool shared) {
  const unsigned block_epoch = core->block_epoch, warp_epoch = core->warp[t >> 5].epoch;
  const uint32_t generation = shared ? block_number : launch_number;
  const Who me = {block_epoch, (uint16_t)warp_epoch, (uint16_t)(t + 1), pc};
  for (size_t k = 0; k < (n + GRAIN - 1) / GRAIN; k++, c++, a += GRAIN) {
    if (c->generation != generation) {                      // of another block, or of another launch: ordered before this one
      c->generation = generation, c->block = block_index, c->writer.thread = c->reader.thread = c->other_reader.thread = 0;
      if (shared) c->written = c->in_flight = 0;
    }
    const bool other_block = c->block != block_index;
    if (c->in_flight) report(kind == READ ? "read of shared memory while a cp.async into it is in flight (no wait yet)" : "write to shared memory while a cp.async into it is in flight", pc, 2, a);
    if (kind != WRITE && !c->written) {
      report(shared ? "read of shared memory that no thread of this block has written" : "read of device memory that was never written", pc, 0, a);
      c->written = 1;
    }
    if (c->writer.thread && !(kind == ATOMIC && c->atomic) && (other_block || !is_ordered(c->writer, t, block_epoch, warp_epoch)))
      report_race(kind == READ ? "read after write" : "two writes", c->writer, t, pc, c->block, a);
    if (kind == READ) {
      if (c->reader.thread && (c->reader.thread - 1) >> 5 != t >> 5) c->other_reader = c->reader;
      c->reader = me;
      if (!c->writer.thread) c->block = block_index;
    } else {
      if (c->reader.thread && (other_block || !is_ordered(c->reader, t, block_epoch, warp_epoch))) report_race("write after read", c->reader, t, pc, c->block, a);
      else if (c->other_reader.thread && !other_block && !is_ordered(c->other_reader, t, block_epoch, warp_epoch)) report_race("write after read", c->other_reader, t, pc, c->block, a);
      c->writer = me, c->atomic = kind == ATOMIC, c->written = 1, c->block = block_index;
      c->reader.thread = c->other_reader.thread = 0;
    }
  }
}

// ---- one access: what is it to? ----

static void access(uintptr_t a, size_t n, Kind kind, const void *at, size_t alignment, int t = -1) {
  Core *c = core;
  if (!c || !c->launch || c->current < 0) {
    if (arena_lo && a >= arena_lo && a < arena_hi) report("host code dereferences device memory", place_of(at), 0, a);
    return;
  }
  if (t < 0) t = c->current;
  const uintptr_t stack = (uintptr_t)c->thread[t].stack;
  if (a < stack && a >= stack - STACK) return;              // its own local memory
  const uint32_t pc = place_of(at);
  if (a >= arena_lo && a < arena_hi) {
    const Alloc *alloc = find_alloc(a);
    if (!alloc || a + n > alloc->addr + alloc->size) { report("access outside any device allocation", pc, 0, a); finish(); }
    touch(device_cells + (a - arena_lo) / GRAIN, a, n, kind, t, pc, false);
    if (settings().profile) profile_access(t, at, kind == READ ? READ_GLOBAL : WRITE_GLOBAL, n, a - arena_lo);
  } else if (a >= tls_begin && a < tls_begin + tls_bytes) {
    if (a >= (uintptr_t)&tls && a < (uintptr_t)(&tls + 1)) return;   // threadIdx and its like
    if (!in_shared((void *)a, n)) { report("access outside the shared memory of this kernel", pc, 0, a); return; }
    touch(shared_cells + (a - tls_begin) / GRAIN, a, n, kind, t, pc, true);
    if (settings().profile) profile_access(t, at, kind == READ ? READ_SHARED : WRITE_SHARED, n, a - tls_begin);
  } else if (a >= program_base() && a < program_end) return;         // constants
  else if (a >= (uintptr_t)c->args && a + n <= (uintptr_t)c->args + c->launch->args_size) return;
  else report("kernel dereferences host memory", pc, 0, a);
  if (a % alignment) report("misaligned access", pc, 1, a);
}

// ---- hooks ----

static int lane_of_warp(int lane) { return (core->current & ~31) | lane; }
void cuemu::note_read(const void *p, size_t n, int lane, const void *pc) { if (n) access((uintptr_t)p, n, READ, pc, 1, lane_of_warp(lane)); }
void cuemu::note_write(const void *p, size_t n, int lane, const void *pc) { if (n) access((uintptr_t)p, n, WRITE, pc, 1, lane_of_warp(lane)); }
void cuemu::note_atomic(const void *p, size_t n, const void *pc) { access((uintptr_t)p, n, ATOMIC, pc, n); }
void cuemu::host_wrote(const void *p, size_t n) {
  set_up();
  const uintptr_t a = (uintptr_t)p;
  if (a < arena_lo || a >= arena_hi) return;
  Cell *c = device_cells + (a - arena_lo) / GRAIN;
  for (size_t k = 0; k < (n + GRAIN - 1) / GRAIN; k++) c[k].written = 1;
}
void cuemu::note_in_flight(const void *p, size_t n, bool on) {
  Cell *c = shared_cells + ((uintptr_t)p - tls_begin) / GRAIN;
  for (size_t k = 0; k < n / GRAIN; k++) c[k].in_flight = on;
}
void cuemu::note_strict(const char *what) {
  static std::set<const void *> once;
  if (!once.insert(core->launch->fn).second) return;
  reports++;
  fprintf(stderr, "cuda_on_cpu: error: %s (%s:%d)\n", what, core->barrier.file, core->barrier.line);
  where_am_i();
}
void cuemu::grid_begin(const Launch &) { set_up(); launch_number++; }
void cuemu::block_begin(uint3 b) {
  const dim3 &grid = core->launch->grid;
  block_number++, block_index = b.x + grid.x * (b.y + grid.y * b.z);
}

// ---- what the compiler calls ----

extern "C" {
void __tsan_init() {}
void __tsan_func_entry(void *) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void **, void *) {}
void __tsan_vptr_read(void **) {}
#define PC __builtin_return_address(0)
#define OF_SIZE(n)                                                                                 \
  void __tsan_read##n(void *p) { access((uintptr_t)p, n, READ, PC, n); }                           \
  void __tsan_write##n(void *p) { access((uintptr_t)p, n, WRITE, PC, n); }                         \
  void __tsan_volatile_read##n(void *p) { access((uintptr_t)p, n, READ, PC, n); }                  \
  void __tsan_volatile_write##n(void *p) { access((uintptr_t)p, n, WRITE, PC, n); }                \
  void __tsan_unaligned_read##n(void *p) { access((uintptr_t)p, n, READ, PC, 1); }                 \
  void __tsan_unaligned_write##n(void *p) { access((uintptr_t)p, n, WRITE, PC, 1); }               \
  void __tsan_read_write##n(void *p) { access((uintptr_t)p, n, READ, PC, n); access((uintptr_t)p, n, WRITE, PC, n); } \
  void __tsan_unaligned_read_write##n(void *p) { access((uintptr_t)p, n, READ, PC, 1); access((uintptr_t)p, n, WRITE, PC, 1); }
OF_SIZE(1) OF_SIZE(2) OF_SIZE(4) OF_SIZE(8) OF_SIZE(16)
void __tsan_read_range(void *p, size_t n) { access((uintptr_t)p, n, READ, PC, 1); }
void __tsan_write_range(void *p, size_t n) { access((uintptr_t)p, n, WRITE, PC, 1); }
void *__tsan_memcpy(void *d, const void *s, size_t n) { access((uintptr_t)s, n, READ, PC, 1); access((uintptr_t)d, n, WRITE, PC, 1); return memcpy(d, s, n); }
void *__tsan_memmove(void *d, const void *s, size_t n) { access((uintptr_t)s, n, READ, PC, 1); access((uintptr_t)d, n, WRITE, PC, 1); return memmove(d, s, n); }
void *__tsan_memset(void *d, int v, size_t n) { access((uintptr_t)d, n, WRITE, PC, 1); return memset(d, v, n); }
// of host code (shared_ptr, std::atomic): plain atomics, not judged
#define ATOMICS(b, T)                                                                                                     \
  T __tsan_atomic##b##_load(const volatile T *p, int) { return __atomic_load_n(p, __ATOMIC_SEQ_CST); }                    \
  void __tsan_atomic##b##_store(volatile T *p, T v, int) { __atomic_store_n(p, v, __ATOMIC_SEQ_CST); }                    \
  T __tsan_atomic##b##_exchange(volatile T *p, T v, int) { return __atomic_exchange_n(p, v, __ATOMIC_SEQ_CST); }          \
  T __tsan_atomic##b##_fetch_add(volatile T *p, T v, int) { return __atomic_fetch_add(p, v, __ATOMIC_SEQ_CST); }          \
  T __tsan_atomic##b##_fetch_sub(volatile T *p, T v, int) { return __atomic_fetch_sub(p, v, __ATOMIC_SEQ_CST); }          \
  T __tsan_atomic##b##_fetch_or(volatile T *p, T v, int) { return __atomic_fetch_or(p, v, __ATOMIC_SEQ_CST); }            \
  T __tsan_atomic##b##_fetch_and(volatile T *p, T v, int) { return __atomic_fetch_and(p, v, __ATOMIC_SEQ_CST); }          \
  int __tsan_atomic##b##_compare_exchange_strong(volatile T *p, T *c, T v, int, int) { return __atomic_compare_exchange_n(p, c, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST); } \
  int __tsan_atomic##b##_compare_exchange_weak(volatile T *p, T *c, T v, int, int) { return __atomic_compare_exchange_n(p, c, v, true, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST); }
ATOMICS(8, uint8_t) ATOMICS(16, uint16_t) ATOMICS(32, uint32_t) ATOMICS(64, uint64_t)
void __tsan_atomic_thread_fence(int) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
void __tsan_atomic_signal_fence(int) {}
}
