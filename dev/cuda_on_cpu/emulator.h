// emulator.h: owns what the files of the emulator share: the state of a block, its warps and threads, symbols, hooks.
#pragma once
#include "cuda_runtime.h"
#undef threadIdx
#undef blockIdx
#undef blockDim
#undef gridDim
#include <string>
#include <vector>
namespace cuemu {
struct WarpOp { unsigned mask, arrived; const char *what, *file; int line; Combine combine; void *slot[32]; };
struct Warp { unsigned live, ready, at_barrier, epoch, ops; WarpOp op[8]; };   // ops: which op[] are pending
struct Copy { char *dst; const char *src; int n, nsrc, group; const void *pc; };        // a cp.async in flight
struct Thread { void *sp, *stack; uint3 idx; int committed; std::vector<Copy> copies; };
struct Range { uintptr_t lo, hi; };
struct SM {                                                // one per OS thread
    int cur, nthreads, nwarps, live;
    unsigned warps_ready;
    int bar_arrived, bar_pred, bar_result, bar_line; const char *bar_what, *bar_file;
    unsigned block_epoch;
    const Launch *launch; const void *args;
    void *main_sp; uintptr_t tls_base, main_lo; size_t main_size;
    long switches, collectives;
    int nstacks;
    std::vector<void *> free_stacks;
    std::vector<Range> stack_ranges;
    Warp warp[32];
    Thread thread[1024];
};
extern thread_local SM *sm;
struct Symbol { std::string name; uintptr_t addr; size_t size; std::string mangled; };
bool ptx_has(const void *fn);                              // ptx_run.cpp, optional
void ptx_run(const Launch &l, const void *args);
const std::vector<Symbol> &functions();
const std::vector<Symbol> &shared_arrays();                // addr: offset in the executable's TLS block
struct Alloc { uintptr_t addr; size_t size; int id; };
const Alloc *find_alloc(uintptr_t a);
void describe_address(uintptr_t a);
void print_backtrace();
std::string kernel_name(const void *fn);
unsigned char *dynamic_smem();
uintptr_t tls_base();
extern uintptr_t arena_lo, arena_hi, arena_next;
void note_atomic(const void *p, size_t n, const void *pc);
extern uintptr_t exe_base;
uintptr_t tls_size();
static const size_t STACK = 256 * 1024;                  // address space of a fiber stack; only touched pages cost memory
void where_am_i();
void print_line(const void *pc);
void host_wrote(const void *p, size_t n);
void note_in_flight(const void *p, size_t n, bool on);
void note_strict(const char *what);
void grid_begin(const Launch &l);
void block_begin(uint3 b);
bool in_checked_build();
}
