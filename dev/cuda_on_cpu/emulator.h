// emulator.h: owns what the files of the emulator share.
//
//   emulator.cpp   fibers, the order in which they run, barriers, blocks and grids
//   warp_ops.cpp   what a whole warp does at once, cp.async, atomics; wgmma.cpp: what four warps do
//   memory.cpp     device memory, what an address is, faults
//   runtime.cpp    the CUDA run-time interface: streams, events, graphs, copies
//   symbols.cpp    names, source lines and shared arrays, from the program's own symbol table
//   check.cpp      the checked build (linked only there); profile.cpp   requests to memory, counted
//   ptx_*.cpp      the interpreter of PTX
// Tests: tests/cuda_on_cpu.sh
#pragma once
#include "cuda_runtime.h"
#undef threadIdx
#undef blockIdx
#undef blockDim
#undef gridDim
#include <string>
#include <vector>

namespace cuemu {
// ---- settings, from the environment ----

enum Order { FORWARD, REVERSE, RANDOM };
struct Settings {
  Order order;              // GPT_CUDA_SCHED=forward|reverse|random[:SEED]: of blocks, warps and lanes
  uint64_t order_seed;
  bool copies_land_late;    // GPT_CUDA_ASYNC=late|early: when the bytes of a cp.async arrive
  bool lazy_streams;        // GPT_CUDA_STREAMS=eager|lazy[:SEED]: work runs only when something waits for it, streams in random order
  uint64_t stream_seed;
  bool statistics;          // GPT_CUDA_STATS=1: a table of kernels at exit
  const char *profile;      // GPT_CUDA_PROFILE=1 or a file for the table of kernels: requests to memory are counted (checked build, PTX); NULL: not
};
const Settings &settings();

struct Random {             // Marsaglia's xorshift
  uint64_t state;
  uint32_t below(uint32_t n) { state ^= state << 13, state ^= state >> 7, state ^= state << 17; return (uint32_t)(state >> 11) % n; }
};
// The block that runs as number i of n.
long block_at(long i, long n);

// ---- the block that a thread of this machine runs ----

struct WarpOp { unsigned mask, arrived; const char *what, *file; int line; Combine combine; void *slot[32]; };   // lanes that wait for each other
struct WgmmaTiles { uint64_t a, b; bool a_transposed, b_transposed; };                                       // operands as wgmma_operand makes them (ptx.cuh)
struct Product { WgmmaTiles tiles; float (*sums[32])[4]; int group; const void *pc; };                         // a wgmma under way; sums of each lane
struct Warp {
  unsigned live, ready, at_barrier, epoch, pending;    // pending: which op[] have arrivals
  WarpOp op[8];
  std::vector<Product> products;
  int product_groups;                                  // closed
  size_t products_asked;
  bool sums_fenced;                                    // since products were waited for
};
struct Copy { char *to; const char *from; int bytes, valid, group; const void *pc; };                          // a cp.async in flight
struct Thread { void *stack_pointer, *stack; uint3 index; int groups_closed; std::vector<Copy> copies; bool unfenced; };   // unfenced: copies landed since its last proxy fence
struct Range { uintptr_t lo, hi; };
struct Core {
  const Launch *launch;     // NULL: host code runs
  const void *args;
  int current, threads, warps, live;                   // current: number of the running thread, -1: none
  unsigned warps_ready;
  struct { int arrived, votes, result, line; const char *what, *file; } barrier;
  unsigned block_epoch;     // barriers passed
  void *main_stack_pointer;
  uintptr_t tls_base;
  Random random;
  long switches, collectives;
  int stacks;
  std::vector<void *> free_stacks;
  Warp warp[32];
  Thread thread[1024];
  std::vector<WgmmaTiles> asked[8];                    // of each four warps: what the first of them asked for, in order
};
extern thread_local Core *core;
static const size_t STACK = 256 * 1024;                // address space of a fiber's stack; only touched pages cost memory
enum { SHARED_MOST = 227 * 1024, SHARED_TAIL = 1024 };
unsigned char *dynamic_shared();

void run_grid(const Launch &l, const void *args);
// An operation of all lanes, on lane's values side by side: d = a b + c, m16n8k16, bf16 and fp32 (fragments as in ptx.cuh).
void tensor_product(float *const d[4], const uint32_t *const a[4], const uint32_t *const b[2], const float *const c[4]);

// The same of wgmma, m64n128k16: what one warp of the four has of it; d[r][l]: register r of lane l. NULL: the operand's layout is known, else why not.
struct WgmmaMemory { const char *begin; size_t bytes; };   // a block's shared memory, from address 0 on
void wgmma_product(const WgmmaMemory &m, const WgmmaTiles &t, int warp, float *const d[64]);
const char *wgmma_refusal(uint64_t operand);

// ---- messages ----

void where_am_i();                                     // "in kernel k, block (x,y,z), thread (x,y,z)", to stderr
void print_line(const void *pc);                       // source lines of an instruction of this program
void print_backtrace();
void describe_address(uintptr_t a);

// ---- memory and names ----

struct Alloc { uintptr_t addr; size_t size; int id; };
const Alloc *find_alloc(uintptr_t a);                  // NULL: none holds that byte
extern uintptr_t arena_lo, arena_hi;                   // all allocations lie within
void initialise();
cudaError_t record_error(cudaError_t e);                // for cudaGetLastError; returns it

struct Symbol { std::string name, mangled; uintptr_t addr; size_t size; };
const std::vector<Symbol> &functions();
const std::vector<Symbol> &shared_arrays();            // addr: offset in the program's thread-local storage
const Symbol *function_at(const void *fn);
std::string kernel_name(const void *fn);
uintptr_t tls_base();
size_t tls_size();
uintptr_t program_base();

// ---- hooks: weak, and empty unless check.cpp or the interpreter is linked ----

void note_atomic(const void *p, size_t n, const void *pc);
void note_in_flight(const void *p, size_t n, bool on);
void note_strict(const char *what);
void host_wrote(const void *p, size_t n);
void grid_begin(const Launch &l);
void block_begin(uint3 b);
bool in_checked_build();
bool ptx_has(const void *fn);
void ptx_run(const Launch &l, const void *args);

// ---- profile.cpp ----

enum RequestKind { READ_GLOBAL, WRITE_GLOBAL, READ_SHARED, WRITE_SHARED };
enum Counted { COUNT_MMA, COUNT_LDMATRIX, COUNT_CP_ASYNC, COUNTED };
// One instruction of a warp: where the lanes (a bit each) read or write n bytes. Global addresses are counted from the arena's begin, shared ones
// from the block's. place: what lines are told apart by; line: "file:line", or NULL where place is an instruction of this program.
void profile_request(const void *place, const std::string *line, RequestKind kind, size_t n, const uint64_t address[32], uint32_t lanes);
// One lane's part of it: the k-th access of every lane at one place is taken for one request.
void profile_access(int thread, const void *pc, RequestKind kind, size_t n, uint64_t address);
void profile_count(Counted what);
void profile_launch(const Launch &l);                  // before the first block of a grid
void profile_end_of_block();
}  // namespace cuemu
