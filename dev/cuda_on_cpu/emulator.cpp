// emulator.cpp: owns the run time of cuda_on_cpu.h: fibers, scheduler, warp operations, runtime API.
// Compile without sanitizer instrumentation for the checked build (see Makefile).
//   GPT_CUDA_SCHED=forward|reverse|random[:seed]   order of blocks, warps, lanes
//   GPT_CUDA_ASYNC=late|early                      when cp.async data lands in shared memory
//   GPT_CUDA_STREAMS=eager|lazy[:seed]             lazy: work runs only when something waits for it
//   GPT_CUDA_STATS=1                               per-kernel table at exit
#include "cuda_runtime.h"
#undef threadIdx
#undef blockIdx
#undef blockDim
#undef gridDim
#include <elf.h>
#include <execinfo.h>
#include <link.h>
#include <omp.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <fcntl.h>
#include <time.h>
#include <unistd.h>
#include <cxxabi.h>
#include <algorithm>
#include <deque>
#include <map>
#include <mutex>
#include <string>
#include <vector>
#include "emulator.h"
#ifdef CUEMU_UCONTEXT
#include <ucontext.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#define CUEMU_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define CUEMU_ASAN 1
#endif
#endif
#ifdef CUEMU_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

// Dynamic shared memory: `extern __shared__ unsigned char smem[];` in a kernel names this object.
static constexpr size_t SMEM_MAX = 227 * 1024, SMEM_TAIL = 1024;
alignas(1024) thread_local unsigned char smem[SMEM_MAX + SMEM_TAIL];
// g++ -O2 may call a thread_local's initialising function without asking whether there is one; smem needs none, so this one is empty.
extern "C" void smem_needs_no_initialising() __asm__("_ZTH4smem");
extern "C" void smem_needs_no_initialising() {}

namespace cuemu {
__thread Tls tls;

// ---- context switch ----------------------------------------------------------------------------
#ifndef CUEMU_UCONTEXT
#if !defined(__x86_64__)
#error "add a context switch for this CPU, or build with -DCUEMU_UCONTEXT"
#endif
// Save the callee-saved registers and the stack pointer of the running fiber, load those of another.
extern "C" void cuemu_switch(void **save_sp, void *load_sp);
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
#endif

enum Order { FORWARD, REVERSE, RANDOM };
static Order order = FORWARD;
static bool async_late = true, lazy_streams = false, want_stats = false, colour_stacks = true;
static uint64_t seed = 1;

thread_local SM *sm;
static thread_local uint64_t rng;
static unsigned rnd() { rng ^= rng << 13; rng ^= rng >> 7; rng ^= rng << 17; return (unsigned)(rng >> 11); }
int lane() { return sm->cur & 31; }

// ---- errors ------------------------------------------------------------------------------------
std::string kernel_name(const void *fn) {
    for (auto &f : functions()) if (f.addr == (uintptr_t)fn) return f.name;
    return "?";
}
void where_am_i() {
    if (!sm || !sm->launch) { fprintf(stderr, "  in host code\n"); return; }
    Tls &t = tls;
    fprintf(stderr, "  in kernel %s, block (%u,%u,%u)", kernel_name(sm->launch->fn).c_str(), t.blockIdx.x, t.blockIdx.y, t.blockIdx.z);
    if (sm->cur >= 0) fprintf(stderr, ", thread (%u,%u,%u)", t.threadIdx.x, t.threadIdx.y, t.threadIdx.z);
    fprintf(stderr, "\n");
}
void fail(const char *fmt, ...) {
    va_list ap; va_start(ap, fmt);
    fprintf(stderr, "cuda_on_cpu: error: "); vfprintf(stderr, fmt, ap); fprintf(stderr, "\n");
    va_end(ap);
    where_am_i();
    fflush(stdout);
    _exit(70);
}

// ---- scheduler ---------------------------------------------------------------------------------
static inline int first(unsigned m) { return __builtin_ctz(m); }
static inline int last(unsigned m) { return 31 - __builtin_clz(m); }
static int nth(unsigned m, int n) { while (n--) m &= m - 1; return first(m); }

static int pick() {                                       // the next thread to run, or -1
    SM &s = *sm;
    if (!s.warps_ready) return -1;
    int w = s.cur >= 0 ? s.cur >> 5 : 0;
    if (order == FORWARD) {
        unsigned r = s.warp[w].ready;
        if (s.cur >= 0 && r && (r & -r) == 2u << (s.cur & 31)) return s.cur + 1;   // the common case, as a predictable branch
        if (!s.warp[w].ready) { unsigned hi = s.warps_ready & ~((2u << w) - 1); w = first(w < 31 && hi ? hi : s.warps_ready); }
        return w * 32 + first(s.warp[w].ready);
    }
    if (order == REVERSE) {
        if (s.cur < 0) w = 31;
        if (!s.warp[w].ready) { unsigned lo = s.warps_ready & ((1u << w) - 1); w = last(lo ? lo : s.warps_ready); }
        return w * 32 + last(s.warp[w].ready);
    }
    w = nth(s.warps_ready, rnd() % __builtin_popcount(s.warps_ready));
    return w * 32 + nth(s.warp[w].ready, rnd() % __builtin_popcount(s.warp[w].ready));
}
static void set_ready_mask(int w, unsigned m) { sm->warp[w].ready |= m; if (m) sm->warps_ready |= 1u << w; }
static void clear_ready(int t) { unsigned &r = sm->warp[t >> 5].ready; r &= ~(1u << (t & 31)); if (!r) sm->warps_ready &= ~(1u << (t >> 5)); }
static void become(int t) { sm->cur = t; tls.threadIdx = sm->thread[t].idx; }

static void deadlock() {
    SM &s = *sm;
    fprintf(stderr, "cuda_on_cpu: error: deadlock: no thread of the block can run\n");
    if (s.bar_arrived) fprintf(stderr, "  %d of %d live threads wait at %s (%s:%d)\n", s.bar_arrived, s.live, s.bar_what, s.bar_file, s.bar_line);
    for (int w = 0, shown = 0; w < s.nwarps && shown < 8; w++)
        for (WarpOp &o : s.warp[w].op) if (o.arrived && shown++ < 8)
            fprintf(stderr, "  warp %d: lanes %08x wait at %s (%s:%d) for lanes %08x\n", w, o.arrived, o.what, o.file, o.line, o.mask & s.warp[w].live & ~o.arrived);
    s.cur = -1; where_am_i();
    fflush(stdout);
    _exit(70);
}

static void fiber_main();
static void *new_stack() {
    SM &s = *sm;
    if (!s.free_stacks.empty()) { void *p = s.free_stacks.back(); s.free_stacks.pop_back(); return p; }
    char *p = (char *)mmap(nullptr, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) fail("cannot map a fiber stack");
    mprotect(p, 4096, PROT_NONE);
    s.stack_ranges.push_back({(uintptr_t)p, (uintptr_t)p + STACK});
    // Colour the stacks: without an offset the hot frames of all fibers share the same L1 cache sets.
    size_t colour = colour_stacks ? (s.nstacks++ * 7 % 61) * 64 : 0;
    return p + STACK - colour;
}
#ifdef CUEMU_UCONTEXT
static void switch_to(int me, int t) {                    // me < 0: from the OS thread's own stack
    SM &s = *sm;
    s.switches++;
    ucontext_t *from = me < 0 ? (ucontext_t *)s.main_sp : (ucontext_t *)s.thread[me].sp, *to;
    if (t < 0) to = (ucontext_t *)s.main_sp;
    else {
        Thread &n = s.thread[t];
        if (!n.stack) {
            n.stack = new_stack();
            getcontext((ucontext_t *)n.sp);
            ((ucontext_t *)n.sp)->uc_stack.ss_sp = (char *)n.stack - STACK + 8192; ((ucontext_t *)n.sp)->uc_stack.ss_size = STACK - 8192; ((ucontext_t *)n.sp)->uc_link = nullptr;
            makecontext((ucontext_t *)n.sp, fiber_main, 0);
        }
        to = (ucontext_t *)n.sp;
        become(t);
    }
    swapcontext(from, to);
}
#else
static void *dead_sp;
static void switch_to(int me, int t) {
    SM &s = *sm;
    s.switches++;
    void **from = me == -1 ? &s.main_sp : me == -2 ? &dead_sp : &s.thread[me].sp, *to;
    if (t < 0) to = s.main_sp;
    else {
        Thread &n = s.thread[t];
        if (!n.stack) {
            n.stack = new_stack();
            void **p = (void **)((uintptr_t)n.stack & ~(uintptr_t)63);
            *--p = nullptr;                                // return address of fiber_main; also the ABI's alignment
            *--p = (void *)fiber_main;
            for (int i = 0; i < 6; i++) *--p = nullptr;
            n.sp = p;
        }
        to = n.sp;
        become(t);
    }
#ifdef CUEMU_ASAN
    void *fake = nullptr;
    uintptr_t lo = s.main_lo; size_t sz = s.main_size;
    if (t >= 0) for (auto &r : s.stack_ranges) if ((uintptr_t)s.thread[t].stack > r.lo && (uintptr_t)s.thread[t].stack <= r.hi) { lo = r.lo; sz = STACK; }
    __sanitizer_start_switch_fiber(me == -2 ? nullptr : &fake, (void *)lo, sz);
#endif
    cuemu_switch(from, to);
#ifdef CUEMU_ASAN
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
}
#endif
static void yield() {
    int me = sm->cur, t = pick();
    if (t < 0) deadlock();
    if (t != me) switch_to(me, t);
}

static void release_barrier() {
    SM &s = *sm;
    if (s.live != s.nthreads) note_strict("barrier passed although threads of the block have already exited");
    s.bar_result = s.bar_pred; s.bar_arrived = s.bar_pred = 0; s.block_epoch++;
    for (int w = 0; w < s.nwarps; w++) { set_ready_mask(w, s.warp[w].at_barrier); s.warp[w].at_barrier = 0; }
}
int block_barrier(int pred, const char *what, const char *file, int line) {
    SM &s = *sm;
    int me = s.cur;
    if (!s.bar_arrived) { s.bar_what = what; s.bar_file = file; s.bar_line = line; }
    else if (s.bar_line != line) fail("divergent barrier: this thread is at %s %s:%d, others wait at %s %s:%d", what, file, line, s.bar_what, s.bar_file, s.bar_line);
    s.bar_pred += pred != 0;
    if (++s.bar_arrived == s.live) {
        release_barrier();
        if (order == RANDOM) yield();
    } else {
        clear_ready(me);
        s.warp[me >> 5].at_barrier |= 1u << (me & 31);
        yield();
    }
    return s.bar_result;
}
static bool try_complete(int w, WarpOp &o) {
    Warp &wp = sm->warp[w];
    if (!o.arrived || (o.mask & wp.live) != o.arrived) return false;
    if (o.combine) o.combine(o.slot, o.mask);
    else if (o.arrived == wp.live) wp.epoch++;            // __syncwarp of all live lanes orders their memory accesses
    set_ready_mask(w, o.arrived);
    memset(o.slot, 0, sizeof o.slot);
    o.arrived = 0;
    wp.ops &= ~(1u << (&o - wp.op));
    return true;
}
void warp_collective(unsigned mask, const char *what, Combine combine, void *slot, const char *file, int line) {
    SM &s = *sm;
    int me = s.cur, w = me >> 5, l = me & 31;
    Warp &wp = s.warp[w];
    if (!(mask >> l & 1)) fail("%s at %s:%d: the mask %08x lacks the calling lane %d", what, file, line, mask, l);
    WarpOp *o = nullptr;
    for (unsigned m = wp.ops; m; m &= m - 1) if (wp.op[first(m)].mask == mask) { o = &wp.op[first(m)]; break; }
    if (!o) {
        if (wp.ops == 255) fail("%s at %s:%d: too many different masks in flight in one warp", what, file, line);
        int k = first(~wp.ops);
        wp.ops |= 1u << k;
        o = &wp.op[k];
        o->mask = mask; o->what = what; o->combine = combine; o->file = file; o->line = line;
    } else if (o->combine != combine || (o->what != what && strcmp(o->what, what)))
        fail("divergent warp operation: lane %d is at %s %s:%d, lanes %08x wait at %s %s:%d", l, what, file, line, o->arrived, o->what, o->file, o->line);
    o->slot[l] = slot;
    o->arrived |= 1u << l;
    s.collectives += o->arrived == (1u << l);
    if (!try_complete(w, *o)) { clear_ready(me); yield(); }
    else if (order == RANDOM) yield();
}
void warp_sync(unsigned mask, const char *file, int line) { warp_collective(mask, "__syncwarp", nullptr, (void *)1, file, line); }

static void thread_exit() {
    SM &s = *sm;
    int me = s.cur, w = me >> 5;
    if (!s.thread[me].copies.empty()) cp_async_wait(-1);
    clear_ready(me);
    s.warp[w].live &= ~(1u << (me & 31));
    s.live--;
    if (s.warp[w].ops) for (WarpOp &o : s.warp[w].op) try_complete(w, o);
    if (s.bar_arrived && s.bar_arrived == s.live) release_barrier();
}
// A fiber runs threads one after the other on the same stack until one of them blocks; so a kernel
// without barriers is a plain loop over its threads, with one stack and no switch.
static void fiber_main() {
#ifdef CUEMU_ASAN
    __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
    SM &s = *sm;
    void *mystack = s.thread[s.cur].stack;
    for (;;) {
        s.thread[s.cur].stack = mystack;
        s.launch->invoke(s.launch->fn, s.args);
        thread_exit();
        int t = pick();
        if (t < 0 && s.live) deadlock();
        if (t >= 0 && !s.thread[t].stack) { become(t); continue; }
        s.free_stacks.push_back(mystack);                 // nobody can take it before we have left it
#ifdef CUEMU_UCONTEXT
        if (t < 0) setcontext((ucontext_t *)s.main_sp); else { s.switches++; become(t); if (!s.thread[t].stack) abort(); setcontext((ucontext_t *)s.thread[t].sp); }
#else
        switch_to(-2, t);
#endif
    }
}

// ---- static shared memory: found through the symbol table, so that it can be poisoned and named ---
struct TlsFind { uintptr_t base; size_t size; };
void print_line(const void *pc) {
    char cmd[200];
    snprintf(cmd, sizeof cmd, "addr2line -Cfpise /proc/%d/exe %lx | grep -v cuda_on_cpu | sed 's/^/      /' 1>&2", getpid(), (unsigned long)((uintptr_t)pc - exe_base - 1));
    if (system(cmd)) {}
}
static int tls_cb(dl_phdr_info *i, size_t, void *p) {
    TlsFind *f = (TlsFind *)p;
    if (i->dlpi_name && i->dlpi_name[0]) return 0;
    f->base = (uintptr_t)i->dlpi_tls_data;
    for (int k = 0; k < i->dlpi_phnum; k++) if (i->dlpi_phdr[k].p_type == PT_TLS) f->size = i->dlpi_phdr[k].p_memsz;
    return 1;
}
uintptr_t exe_base;
static int base_cb(dl_phdr_info *i, size_t, void *) {
    if (i->dlpi_name && i->dlpi_name[0]) return 0;
    exe_base = i->dlpi_addr;
    return 1;
}
static std::vector<Symbol> fun_syms, tls_syms;
static void load_symbols() {
    static std::once_flag once;
    std::call_once(once, [] {
        dl_iterate_phdr(base_cb, nullptr);
        int fd = open("/proc/self/exe", O_RDONLY);
        struct stat st; fstat(fd, &st);
        char *m = (char *)mmap(nullptr, st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        close(fd);
        Elf64_Ehdr *e = (Elf64_Ehdr *)m; Elf64_Shdr *sh = (Elf64_Shdr *)(m + e->e_shoff);
        for (int i = 0; i < e->e_shnum; i++) if (sh[i].sh_type == SHT_SYMTAB) {
            Elf64_Sym *y = (Elf64_Sym *)(m + sh[i].sh_offset);
            const char *str = m + sh[sh[i].sh_link].sh_offset;
            for (size_t k = 0; k < sh[i].sh_size / sizeof *y; k++) {
                int type = ELF64_ST_TYPE(y[k].st_info);
                const char *nm = str + y[k].st_name;
                if (type != STT_FUNC && type != STT_TLS) continue;
                if (type == STT_TLS && (strncmp(nm, "_ZZ", 3) || strstr(nm, "5cuemu"))) continue;   // function-local: __shared__ arrays
                int bad; char *d = abi::__cxa_demangle(nm, nullptr, nullptr, &bad);
                Symbol sy{d ? d : nm, (uintptr_t)y[k].st_value + (type == STT_FUNC ? exe_base : 0), y[k].st_size, nm};
                free(d);
                (type == STT_FUNC ? fun_syms : tls_syms).push_back(sy);
            }
        }
        munmap(m, st.st_size);
    });
}
const std::vector<Symbol> &functions() { load_symbols(); return fun_syms; }
const std::vector<Symbol> &shared_arrays() { load_symbols(); return tls_syms; }
uintptr_t tls_size() { TlsFind f{}; dl_iterate_phdr(tls_cb, &f); return f.size; }
uintptr_t tls_base() { TlsFind f{}; dl_iterate_phdr(tls_cb, &f); return f.base; }
unsigned char *dynamic_smem() { return ::smem; }

// ---- running a grid ----------------------------------------------------------------------------
static const unsigned char POISON = 0xff, CANARY = 0xa5;   // 0xff...: a NaN in fp32, bf16 and fp16, -1 in integers
static SM *get_sm() {
    static thread_local SM *mine = nullptr;
    if (!mine) {
        mine = new SM();
        mine->tls_base = tls_base();
        rng = seed * 0x9e3779b97f4a7c15ull + 12345 + omp_get_thread_num();
#ifdef CUEMU_UCONTEXT
        mine->main_sp = new ucontext_t;
        for (Thread &t : mine->thread) t.sp = new ucontext_t;
#endif
#ifdef CUEMU_ASAN
        pthread_attr_t a; void *lo; size_t sz;
        pthread_getattr_np(pthread_self(), &a); pthread_attr_getstack(&a, &lo, &sz); pthread_attr_destroy(&a);
        mine->main_lo = (uintptr_t)lo; mine->main_size = sz;
#endif
    }
    return sm = mine;
}
static void run_block(const Launch &l, const void *args, uint3 b) {
    SM &s = *sm;
    Tls &t = tls;
    t.blockIdx = b; t.blockDim = {l.block.x, l.block.y, l.block.z}; t.gridDim = {l.grid.x, l.grid.y, l.grid.z};
    s.launch = &l; s.args = args;
    s.nthreads = l.block.x * l.block.y * l.block.z;
    s.nwarps = (s.nthreads + 31) / 32;
    s.live = s.nthreads; s.bar_arrived = s.bar_pred = 0; s.cur = -1; s.block_epoch = 0;
    s.warps_ready = s.nwarps == 32 ? ~0u : (1u << s.nwarps) - 1;
    for (int w = 0; w < s.nwarps; w++) {
        int n = std::min(32, s.nthreads - w * 32);
        Warp &wp = s.warp[w];
        wp.live = wp.ready = n == 32 ? ~0u : (1u << n) - 1;
        wp.at_barrier = 0; wp.epoch = 0;
    }
    for (const Symbol &a : shared_arrays()) memset((void *)(s.tls_base + a.addr), POISON, a.size);
    memset(::smem, POISON, l.smem);
#ifdef CUEMU_ASAN
    ASAN_POISON_MEMORY_REGION(::smem + l.smem, SMEM_MAX + SMEM_TAIL - l.smem);
#else
    memset(::smem + l.smem, CANARY, 256);
#endif
    block_begin(b);
    unsigned x = 0, y = 0, z = 0;
    for (int i = 0; i < s.nthreads; i++) {
        s.thread[i].idx = {x, y, z};
        s.thread[i].stack = nullptr; s.thread[i].committed = 0;
        if (++x == l.block.x) { x = 0; if (++y == l.block.y) { y = 0; z++; } }
    }
    switch_to(-1, pick());                                 // returns when every thread has finished
    s.cur = -1;
#ifdef CUEMU_ASAN
    ASAN_UNPOISON_MEMORY_REGION(::smem, sizeof ::smem);
#else
    for (int i = 0; i < 256; i++) if (::smem[l.smem + i] != CANARY) fail("the block wrote past the end of its %zu bytes of dynamic shared memory (byte %d)", l.smem, i);
#endif
    s.launch = nullptr;
}
struct Stat { long launches = 0, threads = 0, switches = 0, collectives = 0; double ms = 0; };
static std::map<const void *, Stat> stats;
static double now_ms() { timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec * 1e3 + t.tv_nsec * 1e-6; }
static void print_stats() {
    fprintf(stderr, "%-44s %8s %10s %11s %11s %10s\n", "kernel", "launches", "threads", "switches", "warp ops", "ms");
    for (auto &p : stats) { std::string n = kernel_name(p.first); fprintf(stderr, "%-44.44s %8ld %10ld %11ld %11ld %10.3f\n", n.c_str(), p.second.launches, p.second.threads, p.second.switches, p.second.collectives, p.second.ms); }
}
static void run_grid(const Launch &l, const void *args) {
    long n = (long)l.grid.x * l.grid.y * l.grid.z, sw = 0, co = 0;
    double t0 = want_stats ? now_ms() : 0;
    grid_begin(l);
    if (ptx_has(l.fn)) { ptx_run(l, args); if (want_stats) { Stat &t = stats[l.fn]; t.launches++; t.threads += n * l.block.x * l.block.y * l.block.z; t.ms += now_ms() - t0; } return; }
    bool par = n > 1 && !in_checked_build();
    #pragma omp parallel if (par) reduction(+ : sw, co)
    {
        SM *s = get_sm();
        long s0 = s->switches, c0 = s->collectives;
        #pragma omp for schedule(dynamic, 1)
        for (long i = 0; i < n; i++) {
            long k = order == FORWARD ? i : order == REVERSE ? n - 1 - i : (long)((i * 2654435761u + seed) % n);
            if (order == RANDOM && n % 2654435761u == 0) k = i;
            run_block(l, args, {(unsigned)(k % l.grid.x), (unsigned)(k / l.grid.x % l.grid.y), (unsigned)(k / l.grid.x / l.grid.y)});
        }
        sw += s->switches - s0; co += s->collectives - c0;
    }
    if (want_stats) { Stat &t = stats[l.fn]; t.launches++; t.threads += n * l.block.x * l.block.y * l.block.z; t.switches += sw; t.collectives += co; t.ms += now_ms() - t0; }
}

// ---- device memory: one reserved range, each allocation ends at an inaccessible page ------------
static const size_t ARENA = 1ull << 36, PAGE = 4096;
uintptr_t arena_lo, arena_hi, arena_next;
static std::map<uintptr_t, Alloc> allocs;
static std::map<uintptr_t, size_t> freed;
const Alloc *find_alloc(uintptr_t a) {
    auto it = allocs.upper_bound(a);
    if (it == allocs.begin()) return nullptr;
    --it;
    return a < it->first + it->second.size ? &it->second : nullptr;
}
bool in_device(const void *p, size_t n) { const Alloc *a = find_alloc((uintptr_t)p); return a && (uintptr_t)p + n <= a->addr + a->size; }
bool in_shared(const void *p, size_t n) {
    SM &s = *sm;
    uintptr_t q = (uintptr_t)p, d = (uintptr_t)::smem;
    if (q >= d && q + n <= d + s.launch->smem) return true;
    for (const Symbol &a : shared_arrays()) if (q >= s.tls_base + a.addr && q + n <= s.tls_base + a.addr + a.size) return true;
    return false;
}
void describe_address(uintptr_t a) {
    SM *s = sm;
    if (a >= arena_lo && a < arena_hi) {
        auto it = allocs.upper_bound(a);
        if (it != allocs.begin()) {
            auto pv = std::prev(it);
            if (a < pv->first + pv->second.size) fprintf(stderr, "  %p is %zu bytes into a device allocation of %zu bytes (no. %d)\n", (void *)a, a - pv->first, pv->second.size, pv->second.id);
            else fprintf(stderr, "  %p is %zu bytes past the end of a device allocation of %zu bytes (no. %d)\n", (void *)a, a - pv->first - pv->second.size, pv->second.size, pv->second.id);
        }
        if (it != allocs.end() && it->first - a < 8192) fprintf(stderr, "  %p is %zu bytes before a device allocation of %zu bytes (no. %d)\n", (void *)a, it->first - a, it->second.size, it->second.id);
        auto f = freed.upper_bound(a);
        if (f != freed.begin()) { --f; if (a < f->first + f->second) fprintf(stderr, "  it lies in a freed allocation of %zu bytes\n", f->second); }
        return;
    }
    uintptr_t d = (uintptr_t)::smem;
    if (s && a >= d && a < d + SMEM_MAX + SMEM_TAIL) { fprintf(stderr, "  %p is byte %zu of dynamic shared memory (the launch asked for %zu)\n", (void *)a, a - d, s->launch ? s->launch->smem : 0); return; }
    if (s) for (const Symbol &y : shared_arrays()) if (a >= s->tls_base + y.addr && a < s->tls_base + y.addr + y.size) { fprintf(stderr, "  %p is byte %zu of shared array %s (%zu bytes)\n", (void *)a, a - s->tls_base - y.addr, y.name.c_str(), y.size); return; }
    fprintf(stderr, "  %p is not device or shared memory\n", (void *)a);
}
static void on_fault(int sig, siginfo_t *si, void *) {
    fprintf(stderr, "cuda_on_cpu: error: %s at address %p\n", sig == SIGSEGV ? "invalid memory access" : "bus error", si->si_addr);
    where_am_i();
    describe_address((uintptr_t)si->si_addr);
    print_backtrace();
    _exit(70);
}
static void on_abort(int, siginfo_t *, void *) { where_am_i(); _exit(70); }
void print_backtrace() {                                    // addr2line gives file:line of the kernel source
    void *pc[24]; int n = backtrace(pc, 24);
    std::string cmd = "addr2line -Cfpise /proc/" + std::to_string(getpid()) + "/exe";
    char b[32];
    for (int i = 2; i < n; i++) { snprintf(b, sizeof b, " %lx", (unsigned long)((uintptr_t)pc[i] - exe_base - 1)); cmd += b; }
    cmd += " 2>/dev/null | grep -v -E 'cuda_on_cpu|\\?\\?|std::' | sed 's/^/    /' | head -6 1>&2";
    if (system(cmd.c_str())) {}
}
static void init() {
    static std::once_flag once;
    std::call_once(once, [] {
        arena_lo = arena_next = (uintptr_t)mmap(nullptr, ARENA, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        arena_hi = arena_lo + ARENA;
        const char *e;
        if ((e = getenv("GPT_CUDA_SCHED"))) { order = *e == 'r' && e[1] == 'e' ? REVERSE : *e == 'r' ? RANDOM : FORWARD; if (strchr(e, ':')) seed = atol(strchr(e, ':') + 1); }
        if ((e = getenv("GPT_CUDA_ASYNC"))) async_late = *e != 'e';
        if ((e = getenv("GPT_CUDA_STREAMS"))) lazy_streams = *e == 'l';
        if (getenv("CUEMU_NOCOLOUR")) colour_stacks = false;
        if (getenv("GPT_CUDA_STATS")) { want_stats = true; atexit(print_stats); }
        load_symbols();
#ifndef CUEMU_ASAN
        stack_t ss{}; ss.ss_sp = malloc(1 << 16); ss.ss_size = 1 << 16; sigaltstack(&ss, nullptr);
        struct sigaction sa{}; sa.sa_sigaction = on_fault; sa.sa_flags = SA_SIGINFO | SA_ONSTACK;
        sigaction(SIGSEGV, &sa, nullptr); sigaction(SIGBUS, &sa, nullptr); sigaction(SIGFPE, &sa, nullptr);
        sa.sa_sigaction = on_abort; sigaction(SIGABRT, &sa, nullptr);
#endif
        void *warm[2]; backtrace(warm, 2);
    });
}
// ---- cp.async, ldmatrix, mma -------------------------------------------------------------------
static void do_copy(const Copy &c) { memcpy(c.dst, c.src, c.nsrc); memset(c.dst + c.nsrc, 0, c.n - c.nsrc); }
void cp_async(void *dst, const void *src, int n, int nsrc) {
    int me = sm->cur;
    if ((uintptr_t)dst % n || (nsrc && (uintptr_t)src % n)) fail("cp.async of %d bytes: misaligned address (shared %p, global %p)", n, dst, src);
    if (!in_shared(dst, n)) { describe_address((uintptr_t)dst); fail("cp.async: the destination is not shared memory of this block"); }
    if (nsrc && !in_device(src, nsrc)) { describe_address((uintptr_t)src); fail("cp.async: the source is not device memory"); }
    const void *pc = __builtin_return_address(0);
    note_read(src, nsrc, me & 31, pc);
    note_write(dst, n, me & 31, pc);                            // may land any time from now on
    Copy c{(char *)dst, (const char *)src, n, nsrc, sm->thread[me].committed, pc};
    note_in_flight(dst, n, true);                           // until the wait
    if (!async_late) do_copy(c);
    sm->thread[me].copies.push_back(c);
}
void cp_async_commit() { sm->thread[sm->cur].committed++; }
void cp_async_wait(int keep) {                              // keep = -1: all, also uncommitted ones
    int me = sm->cur;
    std::vector<Copy> &v = sm->thread[me].copies;
    size_t i = 0;
    for (; i < v.size() && (keep < 0 || v[i].group < sm->thread[me].committed - keep); i++) { note_in_flight(v[i].dst, v[i].n, false); note_write(v[i].dst, v[i].n, me & 31, v[i].pc); if (async_late) do_copy(v[i]); }
    v.erase(v.begin(), v.begin() + i);
}

void shfl_combine(void **slot, unsigned) {
    for (int l = 0; l < 32; l++) if (slot[l]) {
        Shfl *s = (Shfl *)slot[l];
        if (s->src < 0) s->out = s->v;                                   // out of segment: keep own value
        else if (!slot[s->src]) s->out = 0x7ff7dead7fc0deadull;           // source lane not in mask: undefined
        else s->out = ((Shfl *)slot[s->src])->v;
    }
}
void vote_combine(void **slot, unsigned) {
    unsigned b = 0;
    for (int l = 0; l < 32; l++) if (slot[l] && ((Vote *)slot[l])->p) b |= 1u << l;
    for (int l = 0; l < 32; l++) if (slot[l]) ((Vote *)slot[l])->ballot = b;
}

static void ldmatrix_combine(void **slot, unsigned mask) {
    if (mask != ~0u) fail("ldmatrix needs all 32 lanes");
    int n = ((LdMatrix *)slot[0])->n; bool trans = ((LdMatrix *)slot[0])->trans;
    for (int i = 0; i < n; i++) {
        uint16_t m[8][8];
        for (int r = 0; r < 8; r++) {
            const void *row = ((LdMatrix *)slot[i * 8 + r])->row;
            if ((uintptr_t)row % 16) fail("ldmatrix: row address %p of lane %d is not 16-byte aligned", row, i * 8 + r);
            if (!in_shared(row, 16)) { describe_address((uintptr_t)row); fail("ldmatrix: row address of lane %d is not in shared memory", i * 8 + r); }
            note_read(row, 16, i * 8 + r, ((LdMatrix *)slot[i * 8 + r])->pc);
            memcpy(m[r], row, 16);
        }
        for (int l = 0; l < 32; l++) {
            int a = l >> 2, b = (l & 3) * 2;
            ((LdMatrix *)slot[l])->r[i] = trans ? m[b][a] | (uint32_t)m[b + 1][a] << 16 : m[a][b] | (uint32_t)m[a][b + 1] << 16;
        }
    }
}
void ldmatrix(LdMatrix *x, const char *file, int line) { x->pc = __builtin_return_address(0); warp_collective(~0u, x->trans ? "ldmatrix.trans" : "ldmatrix", ldmatrix_combine, x, file, line); }

static void mma_combine(void **slot, unsigned mask) {
    if (mask != ~0u) fail("mma needs all 32 lanes");
    alignas(64) uint32_t A[16][8], B[8][8];                 // words: two neighbouring k of one row of A, of one column of B
    alignas(64) float C[16][8];
    for (int l = 0; l < 32; l++) {
        Mma *m = (Mma *)slot[l];
        int g = l >> 2, t = l & 3;
        A[g][t] = m->a[0]; A[g + 8][t] = m->a[1]; A[g][t + 4] = m->a[2]; A[g + 8][t + 4] = m->a[3];
        B[t][g] = m->b[0]; B[t + 4][g] = m->b[1];
        memcpy(&C[g][t * 2], m->c, 8); memcpy(&C[g + 8][t * 2], m->c + 2, 8);
    }
    alignas(64) uint32_t bits[16][8]; alignas(64) float Bf[16][8];
    for (int k = 0; k < 8; k++) for (int j = 0; j < 8; j++) { bits[2 * k][j] = B[k][j] << 16; bits[2 * k + 1][j] = B[k][j] & 0xffff0000u; }
    memcpy(Bf, bits, sizeof Bf);
    for (int i = 0; i < 16; i++) {
        float acc[8];
        for (int j = 0; j < 8; j++) acc[j] = C[i][j];
        for (int k = 0; k < 8; k++) {
            float lo = __uint_as_float(A[i][k] << 16), hi = __uint_as_float(A[i][k] & 0xffff0000u);
            for (int j = 0; j < 8; j++) acc[j] += lo * Bf[2 * k][j];
            for (int j = 0; j < 8; j++) acc[j] += hi * Bf[2 * k + 1][j];
        }
        for (int j = 0; j < 8; j++) C[i][j] = acc[j];
    }
    for (int l = 0; l < 32; l++) {
        Mma *m = (Mma *)slot[l];
        memcpy(m->d, &C[l >> 2][(l & 3) * 2], 8); memcpy(m->d + 2, &C[(l >> 2) + 8][(l & 3) * 2], 8);
    }
}
void mma_m16n8k16_bf16(Mma *x, const char *file, int line) { warp_collective(~0u, "mma.sync.m16n8k16", mma_combine, x, file, line); }
}  // namespace cuemu
using namespace cuemu;

// ---- atomics -----------------------------------------------------------------------------------
template <class T> static inline __attribute__((always_inline)) void chk_atomic(T *p) { if ((uintptr_t)p % sizeof(T)) fail("misaligned atomic at %p", (void *)p); note_atomic(p, sizeof(T), __builtin_return_address(0)); }
template <class F, class I> static inline __attribute__((always_inline)) F fadd(F *p, F v) {
    chk_atomic(p);
    I old = __atomic_load_n((I *)p, __ATOMIC_RELAXED), nw; F o, s;
    do { memcpy(&o, &old, sizeof o); s = o + v; memcpy(&nw, &s, sizeof s); } while (!__atomic_compare_exchange_n((I *)p, &old, nw, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    return o;
}
template <class T, class F> static inline __attribute__((always_inline)) T rmw(T *p, F f) {
    chk_atomic(p);
    T old = __atomic_load_n(p, __ATOMIC_RELAXED);
    while (!__atomic_compare_exchange_n(p, &old, f(old), true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {}
    return old;
}
float atomicAdd(float *p, float v) { return fadd<float, uint32_t>(p, v); }
double atomicAdd(double *p, double v) { return fadd<double, uint64_t>(p, v); }
int atomicAdd(int *p, int v) { chk_atomic(p); return __atomic_fetch_add(p, v, __ATOMIC_RELAXED); }
unsigned atomicAdd(unsigned *p, unsigned v) { chk_atomic(p); return __atomic_fetch_add(p, v, __ATOMIC_RELAXED); }
unsigned long long atomicAdd(unsigned long long *p, unsigned long long v) { chk_atomic(p); return __atomic_fetch_add(p, v, __ATOMIC_RELAXED); }
int atomicMax(int *p, int v) { return rmw(p, [v](int o) { return o > v ? o : v; }); }
unsigned atomicMax(unsigned *p, unsigned v) { return rmw(p, [v](unsigned o) { return o > v ? o : v; }); }
unsigned atomicOr(unsigned *p, unsigned v) { return rmw(p, [v](unsigned o) { return o | v; }); }
unsigned atomicExch(unsigned *p, unsigned v) { chk_atomic(p); return __atomic_exchange_n(p, v, __ATOMIC_RELAXED); }
unsigned atomicInc(unsigned *p, unsigned wrap) { return rmw(p, [wrap](unsigned o) { return o >= wrap ? 0 : o + 1; }); }
int atomicCAS(int *p, int c, int v) { chk_atomic(p); __atomic_compare_exchange_n(p, &c, v, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED); return c; }
unsigned atomicCAS(unsigned *p, unsigned c, unsigned v) { chk_atomic(p); __atomic_compare_exchange_n(p, &c, v, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED); return c; }

// ---- runtime API: streams are queues of closures -------------------------------------------------
typedef std::function<void()> Op;
struct CUevent_st { long recorded = 0, done = 0; double ms = 0; };
struct Item { Op run; CUevent_st *wait; long ticket; };
struct CUgraph_st { std::vector<Op> ops; };
struct CUstream_st { std::deque<Item> q; CUgraph_st *capture = nullptr; };
static std::vector<CUstream_st *> streams;
static cudaError_t last_error = cudaSuccess;
static std::map<const void *, int> smem_optin;
static uint64_t stream_rng = 88172645463325252ull;
static cudaError_t err(cudaError_t e) { if (e) last_error = e; return e; }

static bool step(CUstream_st *s) {                          // run the head of one stream if it may run
    if (s->q.empty()) return false;
    Item &i = s->q.front();
    if (i.wait && i.wait->done < i.ticket) return false;
    Op f = std::move(i.run);
    s->q.pop_front();
    if (f) f();
    return true;
}
static void drain(const std::function<bool()> &until) {      // run queued work in a random order until the condition holds
    while (!until()) {
        std::vector<CUstream_st *> c = streams;
        for (size_t i = c.size(); i > 1; i--) { stream_rng ^= stream_rng << 13; stream_rng ^= stream_rng >> 7; stream_rng ^= stream_rng << 17; std::swap(c[i - 1], c[stream_rng % i]); }
        bool any = false;
        for (CUstream_st *s : c) if (step(s)) { any = true; break; }
        if (!any) fail("streams deadlocked: every queue waits for an event that was never recorded");
    }
}
void cuemu::submit(cudaStream_t s, Op f) {
    init();
    if (s && s->capture) { s->capture->ops.push_back(std::move(f)); return; }
    if (!s || !lazy_streams) { f(); return; }
    s->q.push_back({std::move(f), nullptr, 0});
}
void cuemu::launch(const Launch &l, std::function<const void *()> args) {
    init();
    size_t n = (size_t)l.block.x * l.block.y * l.block.z;
    if (!n || n > 1024 || l.block.z > 64 || !l.grid.x || !l.grid.y || !l.grid.z || l.grid.y > 65535 || l.grid.z > 65535 || l.grid.x > 0x7fffffffu) { err(cudaErrorInvalidConfiguration); return; }
    size_t cap = 48 * 1024;
    auto it = smem_optin.find(l.fn);
    if (it != smem_optin.end()) cap = it->second;
    if (l.smem > cap) { err(cudaErrorInvalidValue); return; }  // as the GPU: above 48 KiB needs cudaFuncSetAttribute
    submit(l.stream, [l, args] { run_grid(l, args()); });
}
cudaError_t cuemu_func_set_attribute(const void *f, cudaFuncAttribute a, int v) {
    if (a == cudaFuncAttributeMaxDynamicSharedMemorySize) { if (v < 0 || (size_t)v > SMEM_MAX) return err(cudaErrorInvalidValue); smem_optin[f] = v; }
    return cudaSuccess;
}
cudaError_t cuemu_malloc(void **p, size_t n) {
    init();
    static int id = 0;
    size_t sz = n ? n : 1, body = (sz + 15) & ~(size_t)15, pages = (body + PAGE - 1) / PAGE * PAGE;
    if (arena_next + pages + 2 * PAGE > arena_hi) return err(cudaErrorMemoryAllocation);
    uintptr_t lo = arena_next + PAGE;
    arena_next = lo + pages;
    if (mprotect((void *)lo, pages, PROT_READ | PROT_WRITE)) return err(cudaErrorMemoryAllocation);
    uintptr_t a = lo + pages - body;                        // the end touches the next guard page
    memset((void *)a, 0xff, body);
    allocs[a] = {a, sz, ++id};
    *p = (void *)a;
    return cudaSuccess;
}
cudaError_t cudaFree(void *p) {
    if (!p) return cudaSuccess;
    auto it = allocs.find((uintptr_t)p);
    if (it == allocs.end()) fail("cudaFree(%p): not a device allocation (freed twice?)", p);
    uintptr_t lo = it->first & ~(PAGE - 1), hi = (it->first + it->second.size + PAGE - 1) & ~(PAGE - 1);
    if (mmap((void *)lo, hi - lo, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) == MAP_FAILED) abort();
    freed[it->first] = it->second.size;
    allocs.erase(it);
    return cudaSuccess;
}
static void copy(void *d, const void *s, size_t n, cudaMemcpyKind k) {
    bool dd = k == cudaMemcpyHostToDevice || k == cudaMemcpyDeviceToDevice, sd = k == cudaMemcpyDeviceToHost || k == cudaMemcpyDeviceToDevice;
    if (k != cudaMemcpyDefault) {
        if (n && in_device(d, n) != dd) { describe_address((uintptr_t)d); fail("cudaMemcpy of %zu bytes: the destination %s", n, dd ? "is not a device range" : "is device memory"); }
        if (n && in_device(s, n) != sd) { describe_address((uintptr_t)s); fail("cudaMemcpy of %zu bytes: the source %s", n, sd ? "is not a device range" : "is device memory"); }
    }
    memcpy(d, s, n);
    host_wrote(d, n);
}
static void set(void *d, int v, size_t n) {
    if (n && !in_device(d, n)) { describe_address((uintptr_t)d); fail("cudaMemset of %zu bytes: not a device range", n); }
    memset(d, v, n);
    host_wrote(d, n);
}
cudaError_t cudaMemcpyAsync(void *d, const void *s, size_t n, cudaMemcpyKind k, cudaStream_t st) { submit(st, [=] { copy(d, s, n, k); }); return cudaSuccess; }
cudaError_t cudaMemcpy(void *d, const void *s, size_t n, cudaMemcpyKind k) { return cudaMemcpyAsync(d, s, n, k, nullptr); }
cudaError_t cudaMemsetAsync(void *d, int v, size_t n, cudaStream_t st) { submit(st, [=] { set(d, v, n); }); return cudaSuccess; }
cudaError_t cudaMemset(void *d, int v, size_t n) { return cudaMemsetAsync(d, v, n, nullptr); }
cudaError_t cudaMemGetInfo(size_t *f, size_t *t) { *t = 80ull << 30; size_t u = 0; for (auto &a : allocs) u += a.second.size; *f = *t - u; return cudaSuccess; }
cudaError_t cudaDeviceSynchronize() { drain([] { for (auto s : streams) if (!s->q.empty()) return false; return true; }); return cudaSuccess; }
cudaError_t cudaGetLastError() { cudaError_t e = last_error; last_error = cudaSuccess; return e; }
cudaError_t cudaPeekAtLastError() { return last_error; }
const char *cudaGetErrorName(cudaError_t e) { return e == cudaSuccess ? "cudaSuccess" : e == cudaErrorInvalidConfiguration ? "cudaErrorInvalidConfiguration" : e == cudaErrorMemoryAllocation ? "cudaErrorMemoryAllocation" : "cudaErrorInvalidValue"; }
const char *cudaGetErrorString(cudaError_t e) { return cudaGetErrorName(e); }
cudaError_t cudaGetDeviceCount(int *n) { *n = 1; return cudaSuccess; }
cudaError_t cudaSetDevice(int) { return cudaSuccess; }
cudaError_t cudaGetDevice(int *d) { *d = 0; return cudaSuccess; }
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int) {
    memset(p, 0, sizeof *p);
    snprintf(p->name, sizeof p->name, "cuda_on_cpu (emulated sm_80)");
    p->totalGlobalMem = 80ull << 30; p->sharedMemPerBlock = 48 << 10; p->sharedMemPerBlockOptin = SMEM_MAX; p->multiProcessorCount = omp_get_max_threads();
    p->maxThreadsPerMultiProcessor = 2048; p->major = 8; p->warpSize = 32; p->maxThreadsPerBlock = 1024; p->l2CacheSize = 40 << 20;
    return cudaSuccess;
}
cudaError_t cudaStreamCreate(cudaStream_t *s) { init(); *s = new CUstream_st; streams.push_back(*s); return cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t s) { if (!s) return cudaDeviceSynchronize(); drain([s] { return s->q.empty(); }); return cudaSuccess; }
cudaError_t cudaStreamDestroy(cudaStream_t s) { cudaStreamSynchronize(s); streams.erase(std::find(streams.begin(), streams.end(), s)); delete s; return cudaSuccess; }
cudaError_t cudaEventCreate(cudaEvent_t *e) { *e = new CUevent_st; return cudaSuccess; }
cudaError_t cudaEventDestroy(cudaEvent_t e) { delete e; return cudaSuccess; }
cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s) { long t = ++e->recorded; submit(s, [e, t] { e->done = t; e->ms = now_ms(); }); return cudaSuccess; }
cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned) { if (s && lazy_streams && !s->capture) s->q.push_back({nullptr, e, e->recorded}); return cudaSuccess; }
cudaError_t cudaEventSynchronize(cudaEvent_t e) { long t = e->recorded; drain([e, t] { return e->done >= t; }); return cudaSuccess; }
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t a, cudaEvent_t b) { *ms = (float)(b->ms - a->ms); return cudaSuccess; }
cudaError_t cudaStreamBeginCapture(cudaStream_t s, cudaStreamCaptureMode) { if (!s) return err(cudaErrorInvalidValue); s->capture = new CUgraph_st; return cudaSuccess; }
cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *g) { *g = s->capture; s->capture = nullptr; return cudaSuccess; }
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *x, cudaGraph_t g, unsigned long long) { *x = new CUgraph_st(*g); return cudaSuccess; }
cudaError_t cudaGraphLaunch(cudaGraphExec_t x, cudaStream_t s) { for (auto &f : x->ops) submit(s, f); return cudaSuccess; }
cudaError_t cudaGraphDestroy(cudaGraph_t g) { delete g; return cudaSuccess; }
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t x) { delete x; return cudaSuccess; }

// hooks: overridden by cuda_on_cpu_check.cpp
namespace cuemu {
__attribute__((weak)) void note_read(const void *, size_t, int, const void *) {}
__attribute__((weak)) void note_write(const void *, size_t, int, const void *) {}
__attribute__((weak)) void note_atomic(const void *, size_t, const void *) {}
__attribute__((weak)) void note_in_flight(const void *, size_t, bool) {}
__attribute__((weak)) void note_strict(const char *) {}
__attribute__((weak)) void host_wrote(const void *, size_t) {}
__attribute__((weak)) void grid_begin(const Launch &) {}
__attribute__((weak)) void block_begin(uint3) {}
__attribute__((weak)) bool ptx_has(const void *) { return false; }
__attribute__((weak)) void ptx_run(const Launch &, const void *) {}
__attribute__((weak)) bool in_checked_build() { return false; }
}
