// memory.cpp: owns device memory, what an address is in words, and what happens at a fault.
//
// One range of addresses is reserved. Each allocation ends at an inaccessible page, is filled with NaN and its addresses are never used again, so
// that overruns and uses after free fault in every build, and are named.
#include "emulator.h"
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>
#include <execinfo.h>
#include <map>
#include <mutex>

namespace cuemu {
static const size_t ARENA = (size_t)1 << 36, PAGE = 4096, DEVICE_MEMORY = (size_t)80 << 30;
static const unsigned char POISON = 0xff;      // a NaN in fp32 and bf16, -1 in integers
uintptr_t arena_lo, arena_hi;
static uintptr_t arena_next;
static std::map<uintptr_t, Alloc> allocations;
static std::map<uintptr_t, size_t> freed;
static int allocation_count, changes;          // changes: of the map, so that what was found before may be old

const Alloc *find_alloc(uintptr_t a) {
  static thread_local struct { const Alloc *alloc; int changes; } last;      // most accesses are to what was accessed before
  if (last.alloc && last.changes == changes && a - last.alloc->addr < last.alloc->size) return last.alloc;
  auto next = allocations.upper_bound(a);
  if (next == allocations.begin()) return NULL;
  const Alloc &found = std::prev(next)->second;
  if (a - found.addr >= found.size) return NULL;
  last = {&found, changes};
  return &found;
}
bool in_device(const void *p, size_t n) {
  const Alloc *a = find_alloc((uintptr_t)p);
  return a && (uintptr_t)p + n <= a->addr + a->size;
}
bool in_shared(const void *p, size_t n) {
  const uintptr_t q = (uintptr_t)p, dynamic = (uintptr_t)dynamic_shared();
  if (q >= dynamic && q + n <= dynamic + core->launch->smem) return true;
  for (const Symbol &a : shared_arrays()) if (q >= core->tls_base + a.addr && q + n <= core->tls_base + a.addr + a.size) return true;
  return false;
}

void describe_address(uintptr_t a) {
  void *const p = (void *)a;
  if (a >= arena_lo && a < arena_hi) {
    auto next = allocations.upper_bound(a);
    if (next != allocations.begin()) {
      const Alloc &before = std::prev(next)->second;
      const size_t into = a - before.addr;
      if (into < before.size) fprintf(stderr, "  %p is %zu bytes into a device allocation of %zu bytes (no. %d)\n", p, into, before.size, before.id);
      else fprintf(stderr, "  %p is %zu bytes past the end of a device allocation of %zu bytes (no. %d)\n", p, into - before.size, before.size, before.id);
    }
    if (next != allocations.end() && next->first - a < 2 * PAGE)
      fprintf(stderr, "  %p is %zu bytes before a device allocation of %zu bytes (no. %d)\n", p, next->first - a, next->second.size, next->second.id);
    auto old = freed.upper_bound(a);
    if (old != freed.begin() && a - std::prev(old)->first < std::prev(old)->second) fprintf(stderr, "  it lies in a freed allocation of %zu bytes\n", std::prev(old)->second);
    return;
  }
  const uintptr_t dynamic = (uintptr_t)dynamic_shared();
  if (core && a >= dynamic && a < dynamic + SHARED_MOST + SHARED_TAIL) {
    fprintf(stderr, "  %p is byte %zu of dynamic shared memory (the launch asked for %zu)\n", p, a - dynamic, core->launch ? core->launch->smem : 0);
    return;
  }
  if (core)
    for (const Symbol &s : shared_arrays())
      if (a - core->tls_base - s.addr < s.size) { fprintf(stderr, "  %p is byte %zu of shared array %s (%zu bytes)\n", p, a - core->tls_base - s.addr, s.name.c_str(), s.size); return; }
  fprintf(stderr, "  %p is not device or shared memory\n", p);
}

// ---- faults ----

static void on_fault(int signal, siginfo_t *info, void *) {
  fprintf(stderr, "cuda_on_cpu: error: %s at address %p\n", signal == SIGSEGV ? "invalid memory access" : signal == SIGFPE ? "a division by zero" : "bus error", info->si_addr);
  where_am_i();
  describe_address((uintptr_t)info->si_addr);
  print_backtrace();
  _exit(70);
}
static void on_abort(int, siginfo_t *, void *) { where_am_i(); _exit(70); }

static void handle_faults() {
  stack_t own = {};
  own.ss_size = 1 << 16, own.ss_sp = malloc(own.ss_size);
  sigaltstack(&own, NULL);
  struct sigaction action = {};
  action.sa_flags = SA_SIGINFO | SA_ONSTACK, action.sa_sigaction = on_fault;
  sigaction(SIGSEGV, &action, NULL), sigaction(SIGBUS, &action, NULL), sigaction(SIGFPE, &action, NULL);
  action.sa_sigaction = on_abort;
  sigaction(SIGABRT, &action, NULL);
  void *first_use[2];
  backtrace(first_use, 2);                     // loads what it needs, which it could not in the handler
}

void initialise() {
  static std::once_flag once;
  std::call_once(once, [] {
    void *p = mmap(NULL, ARENA, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) fail("no %zu bytes of address space for device memory", ARENA);
    arena_lo = arena_next = (uintptr_t)p, arena_hi = arena_lo + ARENA;
    settings(), functions();
    handle_faults();
  });
}
}  // namespace cuemu
using namespace cuemu;

cudaError_t cuemu_malloc(void **p, size_t n) {
  initialise();
  const size_t size = n ? n : 1, body = (size + 15) & ~(size_t)15, pages = (body + PAGE - 1) / PAGE * PAGE;
  if (size > ARENA || arena_next + pages + 2 * PAGE > arena_hi) return record_error(cudaErrorMemoryAllocation);
  const uintptr_t first = arena_next + PAGE;
  if (mprotect((void *)first, pages, PROT_READ | PROT_WRITE)) return record_error(cudaErrorMemoryAllocation);
  arena_next = first + pages;
  const uintptr_t a = first + pages - body;    // the end touches the next inaccessible page
  memset((void *)a, POISON, body);
  allocations[a] = {a, size, ++allocation_count};
  changes++;
  *p = (void *)a;
  return cudaSuccess;
}
// Work that is still queued is not waited for, as it need not be on a GPU: it faults when it runs.
cudaError_t cudaFree(void *p) {
  if (!p) return cudaSuccess;
  auto it = allocations.find((uintptr_t)p);
  if (it == allocations.end()) fail("cudaFree(%p): not a device allocation (freed twice?)", p);
  const uintptr_t first = it->first & ~(PAGE - 1), end = (it->first + it->second.size + PAGE - 1) & ~(PAGE - 1);
  if (mmap((void *)first, end - first, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) == MAP_FAILED) fail("cudaFree: the memory cannot be given back");
  freed[it->first] = it->second.size;
  allocations.erase(it);
  changes++;
  return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total) {
  size_t used = 0;
  for (const auto &a : allocations) used += a.second.size;
  *total = DEVICE_MEMORY, *free_bytes = DEVICE_MEMORY - used;
  return cudaSuccess;
}
