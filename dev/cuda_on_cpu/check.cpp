// check.cpp: owns the checked build.  The kernels are compiled with -fsanitize=thread, so the compiler
// calls __tsan_read4(p), __tsan_write4(p), ... before every memory access; but instead of libtsan this file is
// linked.  It knows what a CUDA access may touch, and reports
//   - races in shared and global memory: two threads, at least one plain write, no barrier between them
//     (__syncthreads orders the block, __syncwarp the warp, nothing orders blocks of one launch),
//   - reads of shared memory not written by this block, of device memory never written,
//   - accesses outside device allocations, outside the launch's dynamic shared memory, outside shared arrays,
//   - kernels that follow host pointers, host code that follows device pointers,
//   - misaligned accesses.
// With GPT_CUDA_PROFILE=1 also: shared-memory bank conflicts and global-memory sectors per warp and source line.
#include "emulator.h"
#include <link.h>
#include <sys/mman.h>
#include <unistd.h>
#include <algorithm>
#include <map>
#include <set>
using namespace cuemu;

static const int GRAN = 2;                                  // bytes per shadow cell; 1 if kernels write single bytes
struct Who { uint32_t block_epoch; uint16_t warp_epoch; uint16_t tid; uint32_t pc; };   // tid 0: nobody, else thread + 1
struct Cell { uint32_t gen, block; Who w, r0, r1; uint8_t init, atomic, in_flight; };
static Cell *shared_shadow, *global_shadow;
static uint32_t launch_gen, block_gen;
static uint32_t cur_block;
static uintptr_t tbase, tsize, dyn, exe_lo, exe_hi;
static int reports;
static std::set<uint64_t> seen;
static bool profile;

bool cuemu::in_checked_build() { return true; }
static void finish() { if (reports) { fprintf(stderr, "cuda_on_cpu: %d problem(s) reported\n", reports); fflush(stdout); _exit(70); } }
static int exe_cb(dl_phdr_info *i, size_t, void *) {
    if (i->dlpi_name && i->dlpi_name[0]) return 0;
    exe_lo = ~0ul;
    for (int k = 0; k < i->dlpi_phnum; k++) if (i->dlpi_phdr[k].p_type == PT_LOAD) {
        exe_lo = std::min(exe_lo, i->dlpi_addr + i->dlpi_phdr[k].p_vaddr); exe_hi = std::max(exe_hi, i->dlpi_addr + i->dlpi_phdr[k].p_vaddr + i->dlpi_phdr[k].p_memsz);
    }
    return 1;
}
static void print_profile();
static void setup() {
    if (shared_shadow) return;
    tbase = tls_base(); tsize = tls_size(); dyn = (uintptr_t)dynamic_smem();
    dl_iterate_phdr(exe_cb, nullptr);
    auto map = [](size_t n) { void *p = mmap(nullptr, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0); if (p == MAP_FAILED) { perror("shadow"); _exit(70); } return (Cell *)p; };
    shared_shadow = map((tsize / GRAN + 1) * sizeof(Cell));
    global_shadow = map((arena_hi - arena_lo) / GRAN * sizeof(Cell));
    profile = getenv("GPT_CUDA_PROFILE");
    atexit(finish);
    if (profile) atexit(print_profile);
}
static bool report(const char *what, uint32_t pc1, uint32_t pc2, uintptr_t a) {
    if (!seen.insert((uint64_t)pc1 << 32 | pc2).second) return false;
    reports++;
    fprintf(stderr, "cuda_on_cpu: error: %s\n", what);
    where_am_i();
    describe_address(a);
    fprintf(stderr, "    here:\n"); print_line((void *)(exe_base + pc1));
    return true;
}
static void race(const char *what, const Who &o, int t, uint32_t pc, uint32_t oblock, uintptr_t a) {
    char b[200];
    if (oblock != cur_block) snprintf(b, sizeof b, "race: %s by block %u and earlier by thread %d of block %u in the same launch", what, cur_block, o.tid - 1, oblock);
    else snprintf(b, sizeof b, "race: %s by thread %d and earlier by thread %d, no barrier between", what, t, o.tid - 1);
    if (report(b, pc, o.pc, a)) { fprintf(stderr, "    earlier:\n"); print_line((void *)(exe_base + o.pc)); }
    if (reports >= 20) { fprintf(stderr, "cuda_on_cpu: too many problems\n"); finish(); }
}
// Does a barrier lie between the earlier access o and thread t now?
static inline bool ordered(const Who &o, int t, unsigned be, unsigned we) {
    int ot = o.tid - 1;
    return o.block_epoch != be || ot == t || (ot >> 5 == t >> 5 && o.warp_epoch != (uint16_t)we);
}
enum { READ, WRITE, ATOMIC };
static void touch(Cell *c, uintptr_t a, size_t n, int kind, int t, uint32_t pc, uint32_t gen, bool shared) {
    SM &s = *sm;
    unsigned be = s.block_epoch, we = s.warp[t >> 5].epoch;
    Who me{be, (uint16_t)we, (uint16_t)(t + 1), pc};
    for (size_t k = 0; k < (n + GRAN - 1) / GRAN; k++, c++, a += GRAN) {
        if (c->gen != gen) {
            c->gen = gen; c->block = cur_block; c->w.tid = c->r0.tid = c->r1.tid = 0;
            if (shared) c->init = c->in_flight = 0;
        }
        bool other = c->block != cur_block;
        if (c->in_flight) report(kind == READ ? "read of shared memory while a cp.async into it is in flight (no wait yet)" : "write to shared memory while a cp.async into it is in flight", pc, 2, a);
        if (kind != WRITE && !c->init) { report(shared ? "read of shared memory that no thread of this block has written" : "read of device memory that was never written", pc, 0, a); c->init = 1; }
        if (c->w.tid && !(kind == ATOMIC && c->atomic) && (other || !ordered(c->w, t, be, we))) race(kind == READ ? "read after write" : "two writes", c->w, t, pc, c->block, a);
        if (kind != READ) {
            if (c->r0.tid && (other || !ordered(c->r0, t, be, we))) race("write after read", c->r0, t, pc, c->block, a);
            else if (c->r1.tid && !other && !ordered(c->r1, t, be, we)) race("write after read", c->r1, t, pc, c->block, a);
            c->w = me; c->atomic = kind == ATOMIC; c->init = 1; c->r0.tid = c->r1.tid = 0; c->block = cur_block;
        } else {
            // two readers of different warps suffice: a later writer differs from at least one of them
            if (c->r0.tid && (c->r0.tid - 1) >> 5 != t >> 5) c->r1 = c->r0;
            c->r0 = me;
            if (!c->w.tid) c->block = cur_block;
        }
    }
}
// ---- profile: lanes run one after the other, so the k-th execution of an instruction by each lane is one request
struct Request { uint32_t a[32]; unsigned mask; };
struct Line { long requests = 0, cost = 0, lanes = 0; int n = 0; bool shared = false, write = false; };
static std::map<uint64_t, Line> lines;                      // key: shared, write, pc
struct Pending { std::vector<Request> r; int count[32] = {}; };
static std::map<uint64_t, Pending> pending;                 // key: warp, pc
static void account(Line &l, const Request &q) {
    int n = l.n; bool shared = l.shared;
    l.requests++; l.lanes += __builtin_popcount(q.mask);
    if (shared) {                                           // 32 banks of 4 bytes; 8- and 16-byte accesses go in 2 and 4 phases
        int per = n <= 4 ? 32 : n == 8 ? 16 : 8;
        for (int p = 0; p < 32; p += per) {
            std::map<int, std::set<uint32_t>> bank;
            for (int i = p; i < p + per; i++) if (q.mask >> i & 1) for (int b = 0; b < std::max(n, 4); b += 4) bank[(q.a[i] + b) / 4 % 32].insert((q.a[i] + b) / 4);
            size_t worst = 0; for (auto &x : bank) worst = std::max(worst, x.second.size());
            l.cost += worst;
        }
    } else { std::set<uint32_t> sect; for (int i = 0; i < 32; i++) if (q.mask >> i & 1) for (int b = 0; b < n; b += 4) sect.insert((q.a[i] + b) / 32); l.cost += sect.size(); }
}
static void prof(uintptr_t a, int n, int t, uint32_t pc, bool shared, bool write) {
    uint64_t key = (uint64_t)shared << 33 | (uint64_t)write << 32 | pc;
    Pending &p = pending[(uint64_t)(t >> 5) << 40 | key];
    int l = t & 31, k = p.count[l]++;
    if ((int)p.r.size() <= k) p.r.push_back({});
    p.r[k].a[l] = (uint32_t)(a - (shared ? tbase : arena_lo)); p.r[k].mask |= 1u << l;
    Line &x = lines[key];
    x.n = n; x.shared = shared; x.write = write;
}
static void flush_profile() {
    for (auto &p : pending) { Line &l = lines[p.first & ((1ull << 40) - 1)]; for (auto &q : p.second.r) account(l, q); }
    pending.clear();
}
static void print_profile() {
    fprintf(stderr, "%-7s %-5s %5s %9s %8s  %s\n", "memory", "", "bytes", "requests", "per req.", "ideal; source line");
    for (auto &x : lines) {
        Line &l = x.second; if (!l.requests) continue;
        double per = (double)l.cost / l.requests, ideal = l.shared ? (l.n <= 4 ? 1 : l.n / 4) : std::max(1.0, (double)l.lanes / l.requests * l.n / 32);
        if (per < ideal * 1.26) continue;                   // show only what costs more than it must
        fprintf(stderr, "%-7s %-5s %5d %9ld %8.1f  %.1f\n", l.shared ? "shared" : "global", l.write ? "write" : "read", l.n, l.requests, per, ideal);
        print_line((void *)(exe_base + (uint32_t)x.first));
    }
}

static inline void access(uintptr_t a, size_t n, int kind, const void *pcp, int t = -1, size_t align = 1) {
    SM *s = sm;
    if (!s || !s->launch || s->cur < 0) {
        if (a >= arena_lo && a < arena_hi && arena_lo) report("host code dereferences device memory", (uint32_t)((uintptr_t)pcp - exe_base), 0, a);
        return;
    }
    if (t < 0) t = s->cur;
    uintptr_t st = (uintptr_t)s->thread[t].stack;
    if (a < st && a >= st - STACK) return;                  // own local memory
    uint32_t pc = (uint32_t)((uintptr_t)pcp - exe_base);
    if (a >= arena_lo && a < arena_hi) {
        const Alloc *al = find_alloc(a);
        if (!al || a + n > al->addr + al->size) { report("access outside any device allocation", pc, 0, a); finish(); }
        touch(global_shadow + (a - arena_lo) / GRAN, a, n, kind, t, pc, launch_gen, false);
        if (profile) prof(a, n, t, pc, false, kind != READ);
    } else if (a >= tbase && a < tbase + tsize) {
        if (a >= (uintptr_t)&tls && a < (uintptr_t)(&tls + 1)) return;
        if (!in_shared((void *)a, n)) { report("access outside the shared memory of this kernel", pc, 0, a); return; }
        touch(shared_shadow + (a - tbase) / GRAN, a, n, kind, t, pc, block_gen, true);
        if (profile) prof(a, n, t, pc, true, kind != READ);
    } else if (a >= exe_lo && a < exe_hi) return;           // constants and __constant__ / __device__ variables
    else if (a >= (uintptr_t)s->args && a + n <= (uintptr_t)s->args + s->launch->args_size) return;
    else report("kernel dereferences host memory", pc, 0, a);
    if (a % align) report("misaligned access", pc, 1, a);
}
void cuemu::note_read(const void *p, size_t n, int lane, const void *pc) { if (n) access((uintptr_t)p, n, READ, pc, (sm->cur & ~31) | lane, 1); }
void cuemu::note_write(const void *p, size_t n, int lane, const void *pc) { if (n) access((uintptr_t)p, n, WRITE, pc, (sm->cur & ~31) | lane, 1); }
void cuemu::note_atomic(const void *p, size_t n, const void *pc) { access((uintptr_t)p, n, ATOMIC, pc, -1, n); }
void cuemu::host_wrote(const void *p, size_t n) {
    setup();
    uintptr_t a = (uintptr_t)p;
    if (a < arena_lo || a >= arena_hi) return;
    Cell *c = global_shadow + (a - arena_lo) / GRAN;
    for (size_t k = 0; k < (n + GRAN - 1) / GRAN; k++) c[k].init = 1;
}
void cuemu::note_in_flight(const void *p, size_t n, bool on) {
    Cell *c = shared_shadow + ((uintptr_t)p - tbase) / GRAN;
    for (size_t k = 0; k < n / GRAN; k++) c[k].in_flight = on;
}
void cuemu::note_strict(const char *what) {
    static std::set<const void *> once;
    if (!once.insert(sm->launch->fn).second) return;
    reports++; fprintf(stderr, "cuda_on_cpu: error: %s (%s:%d)\n", what, sm->bar_file, sm->bar_line); where_am_i();
}
void cuemu::grid_begin(const Launch &) { setup(); launch_gen++; }
void cuemu::block_begin(uint3 b) { SM &s = *sm; if (profile) flush_profile(); block_gen++; cur_block = b.x + s.launch->grid.x * (b.y + s.launch->grid.y * b.z); }

extern "C" {
void __tsan_init() {}
void __tsan_func_entry(void *) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void **, void *) {}
void __tsan_vptr_read(void **) {}
#define PC __builtin_return_address(0)
#define RW(n)                                                                                      \
    void __tsan_read##n(void *p) { access((uintptr_t)p, n, READ, PC, -1, n); }                      \
    void __tsan_write##n(void *p) { access((uintptr_t)p, n, WRITE, PC, -1, n); }                    \
    void __tsan_volatile_read##n(void *p) { access((uintptr_t)p, n, READ, PC, -1, n); }             \
    void __tsan_volatile_write##n(void *p) { access((uintptr_t)p, n, WRITE, PC, -1, n); }           \
    void __tsan_unaligned_read##n(void *p) { access((uintptr_t)p, n, READ, PC); }                   \
    void __tsan_unaligned_write##n(void *p) { access((uintptr_t)p, n, WRITE, PC); }                 \
    void __tsan_read_write##n(void *p) { access((uintptr_t)p, n, READ, PC, -1, n); access((uintptr_t)p, n, WRITE, PC, -1, n); } \
    void __tsan_unaligned_read_write##n(void *p) { access((uintptr_t)p, n, READ, PC); access((uintptr_t)p, n, WRITE, PC); }
RW(1) RW(2) RW(4) RW(8) RW(16)
void __tsan_read_range(void *p, size_t n) { access((uintptr_t)p, n, READ, PC); }
void __tsan_write_range(void *p, size_t n) { access((uintptr_t)p, n, WRITE, PC); }
void *__tsan_memcpy(void *d, const void *s, size_t n) { access((uintptr_t)s, n, READ, PC); access((uintptr_t)d, n, WRITE, PC); return memcpy(d, s, n); }
void *__tsan_memmove(void *d, const void *s, size_t n) { access((uintptr_t)s, n, READ, PC); access((uintptr_t)d, n, WRITE, PC); return memmove(d, s, n); }
void *__tsan_memset(void *d, int v, size_t n) { access((uintptr_t)d, n, WRITE, PC); return memset(d, v, n); }
// host code (shared_ptr, std::atomic): plain atomics, not checked
#define AT(b, T)                                                                                   \
    T __tsan_atomic##b##_load(const volatile T *p, int) { return __atomic_load_n(p, __ATOMIC_SEQ_CST); }           \
    void __tsan_atomic##b##_store(volatile T *p, T v, int) { __atomic_store_n(p, v, __ATOMIC_SEQ_CST); }           \
    T __tsan_atomic##b##_exchange(volatile T *p, T v, int) { return __atomic_exchange_n(p, v, __ATOMIC_SEQ_CST); } \
    T __tsan_atomic##b##_fetch_add(volatile T *p, T v, int) { return __atomic_fetch_add(p, v, __ATOMIC_SEQ_CST); } \
    T __tsan_atomic##b##_fetch_sub(volatile T *p, T v, int) { return __atomic_fetch_sub(p, v, __ATOMIC_SEQ_CST); } \
    T __tsan_atomic##b##_fetch_or(volatile T *p, T v, int) { return __atomic_fetch_or(p, v, __ATOMIC_SEQ_CST); }   \
    T __tsan_atomic##b##_fetch_and(volatile T *p, T v, int) { return __atomic_fetch_and(p, v, __ATOMIC_SEQ_CST); } \
    int __tsan_atomic##b##_compare_exchange_strong(volatile T *p, T *c, T v, int, int) { return __atomic_compare_exchange_n(p, c, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST); } \
    int __tsan_atomic##b##_compare_exchange_weak(volatile T *p, T *c, T v, int, int) { return __atomic_compare_exchange_n(p, c, v, true, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST); }
AT(8, uint8_t) AT(16, uint16_t) AT(32, uint32_t) AT(64, uint64_t)
void __tsan_atomic_thread_fence(int) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
void __tsan_atomic_signal_fence(int) {}
}
