// ptx_run.cpp: owns how kernels run as the PTX that nvcc made of them: warps, blocks, launches.
//
// With GPT_CUDA_PTX=file.ptx every kernel that is found in the file is interpreted instead of called, so inline assembly, code behind
// __CUDA_ARCH__ and nvcc's own work are tested too. The lanes of a warp run together; when they part, those with the lowest program counter go first,
// which brings them together again behind the branch.
#include "ptx.h"
#include <stdarg.h>
#include <unistd.h>
#include <algorithm>
#include <unordered_map>

namespace ptx {
void fail_in(const Warp &w, const Instruction &i, int lane, const char *format, ...) {
  const Block &b = *w.block;
  const unsigned t = (unsigned)(w.number * LANES + lane);
  va_list list;
  va_start(list, format);
  fprintf(stderr, "cuda_on_cpu: error: PTX: "), vfprintf(stderr, format, list), fprintf(stderr, "\n");
  va_end(list);
  fprintf(stderr, "  in kernel %s, block (%u,%u,%u), thread (%u,%u,%u)\n  at %s", cuemu::kernel_name(b.launch->fn).c_str(), b.index.x, b.index.y, b.index.z, t % b.launch->block.x,
          t / b.launch->block.x % b.launch->block.y, t / b.launch->block.x / b.launch->block.y, place_of(i).c_str());
  fprintf(stderr, "%s%s\n", i.source ? "\n  from " : "", i.source ? b.kernel->sources[(size_t)i.source].c_str() : "");
  fflush(stdout);
  _exit(70);
}

namespace {
uint32_t lanes_below(int n) { return n >= LANES ? ALL_LANES : (1u << n) - 1; }

uint32_t special_value(const Warp &w, SpecialRegister which, int lane) {
  const Block &b = *w.block;
  const dim3 &n = b.launch->block, &grid = b.launch->grid;
  const uint32_t t = (uint32_t)(w.number * LANES + lane), before = (1u << lane) - 1;
  const uint32_t values[SPECIAL_REGISTERS] = {t % n.x, t / n.x % n.y, t / n.x / n.y, n.x, n.y, n.z, b.index.x, b.index.y, b.index.z, grid.x, grid.y, grid.z,
    (uint32_t)lane, (uint32_t)w.number, before, before | 1u << lane, ~(before | 1u << lane), ~before, 1u << lane};
  return values[which];
}
void begin_warp(Warp &w, Block &b, int number, int lanes, char *registers) {
  w.block = &b, w.number = number, w.registers = registers;
  w.alive = lanes_below(lanes), w.at_barrier = w.waiting = 0;
  w.reduction = NULL;
  w.copies.clear(), w.products.clear();
  w.product_groups = 0;
  std::fill(w.pc, w.pc + LANES, 0), std::fill(w.groups_closed, w.groups_closed + LANES, 0);
  for (const Constant &c : b.kernel->constants)
    for (int l = 0; l < LANES; l++)
      if (c.wide) lanes_at<uint64_t>(w, c.place)[l] = c.value; else lanes_at<uint32_t>(w, c.place)[l] = (uint32_t)c.value;
  for (const Special &s : b.kernel->specials)
    for (int l = 0; l < LANES; l++) lanes_at<uint32_t>(w, s.place)[l] = special_value(w, s.which, l);
}

// The lanes at the lowest program counter, and how far they may go alone: to where others stand.
struct Group { uint32_t lanes; int pc, limit; };
Group lowest_group(const Warp &w) {
  Group g = {0, INT32_MAX, INT32_MAX};
  for (uint32_t m = w.alive & ~w.at_barrier & ~w.waiting; m; m &= m - 1) g.pc = std::min(g.pc, w.pc[__builtin_ctz(m)]);
  for (uint32_t m = w.alive & ~w.at_barrier; m; m &= m - 1) {
    const int l = __builtin_ctz(m);
    if (w.pc[l] == g.pc) g.lanes |= 1u << l;
    else if (w.pc[l] > g.pc) g.limit = std::min(g.limit, w.pc[l]);
  }
  return g;
}
void put_pc(Warp &w, uint32_t lanes, int pc) { for (; lanes; lanes &= lanes - 1) w.pc[__builtin_ctz(lanes)] = pc; }

void arrive(Warp &w, const Instruction &i, uint32_t lanes) {
  w.at_barrier |= lanes;
  if (i.option == BARRIER_PLAIN) return;
  w.reduction = &i;
  w.block->votes += (uint32_t)__builtin_popcount(predicate_at(w, i.operand[2]) & lanes), w.block->voters += (uint32_t)__builtin_popcount(lanes);
}
// Lets the warp's lanes through; false: none waited.
bool leave_barrier(Warp &w) {
  const uint32_t lanes = w.at_barrier & w.alive;
  w.at_barrier = 0;
  if (const Instruction *i = w.reduction) {
    const uint32_t votes = w.block->votes, result = i->option == BARRIER_COUNT ? votes : i->option == BARRIER_OR ? votes != 0 : votes == w.block->voters;
    for (uint32_t m = lanes; m && i->option == BARRIER_COUNT; m &= m - 1) lanes_at<uint32_t>(w, i->operand[0])[__builtin_ctz(m)] = result;
    if (i->option != BARRIER_COUNT) { uint32_t &p = predicate_at(w, i->operand[0]); p = result ? p | lanes : p & ~lanes; }
    w.reduction = NULL;
  }
  return lanes != 0;
}

// Runs a group until it parts, ends, has to wait, or meets others. Returns how many instructions it took.
int run_group(Warp &w, const Group &g, int most) {
  const Instruction *const code = w.block->kernel->instructions.data();
  int pc = g.pc, count = 0;
  for (; pc < g.limit && count < most; count++) {
    const Instruction &i = code[pc];
    uint32_t lanes = g.lanes;
    if (i.guard >= 0) lanes &= i.guard_negated ? ~predicate_at(w, i.guard) : predicate_at(w, i.guard);
    if (i.flow == STRAIGHT) {
      if (lanes) i.execute(w, i, lanes);
      pc++;
    } else if (i.flow == BRANCH) {
      if (lanes == g.lanes) { pc = i.target; continue; }
      if (!lanes) { pc++; continue; }
      put_pc(w, g.lanes & ~lanes, pc + 1), put_pc(w, lanes, i.target);
      return count + 1;
    } else if (i.flow == TOGETHER) {
      if (lanes) {
        const uint32_t named = i.mask < 0 ? ALL_LANES : lanes_at<uint32_t>(w, i.mask)[__builtin_ctz(lanes)], needed = named & w.alive;
        if (lanes & ~named) fail_in(w, i, __builtin_ctz(lanes & ~named), "the mask %08x lacks the lane itself", named);
        if (lanes != needed) { w.waiting |= g.lanes; put_pc(w, g.lanes, pc); return count; }
        if (i.mask < 0 && lanes != ALL_LANES) fail_in(w, i, __builtin_ctz(lanes), "the instruction needs all 32 lanes and has %08x", lanes);
        w.waiting &= ~g.lanes;
        i.execute(w, i, lanes);
      }
      pc++;
    } else {                                            // RETURN, BARRIER
      if (i.flow == RETURN) w.alive &= ~lanes;
      else arrive(w, i, lanes);
      put_pc(w, g.lanes, pc + 1);
      return count + 1;
    }
  }
  put_pc(w, g.lanes, pc);
  return count;
}

bool can_run(const Warp &w) { return (w.alive & ~w.at_barrier) != 0; }
// Until all its lanes have ended or wait at a barrier, or for so many instructions.
void run_warp(Warp &w, int most) {
  while (can_run(w) && most > 0) {
    const Group g = lowest_group(w);
    if (!g.lanes) fail_in(w, w.block->kernel->instructions[(size_t)w.pc[__builtin_ctz(w.waiting)]], __builtin_ctz(w.waiting), "lanes %08x wait for others that never come", w.waiting);
    most -= std::max(run_group(w, g, most), 1);
  }
}

// What a thread of this machine needs to run blocks, kept from block to block.
struct Workplace { std::vector<Warp> warps; std::vector<char> registers, local; cuemu::Random random; };
thread_local Workplace workplace;
alignas(1024) thread_local char shared_memory[cuemu::SHARED_MOST + cuemu::SHARED_TAIL];

// Which warp goes on; -1: none can. Forward and reverse: one after the other to the next barrier; random: any, for a while.
int next_warp(const std::vector<Warp> &warps, int last, int n) {
  const cuemu::Order order = cuemu::settings().order;
  if (order == cuemu::RANDOM) {
    const int start = (int)workplace.random.below((uint32_t)n);
    for (int k = 0; k < n; k++) if (can_run(warps[(size_t)((start + k) % n)])) return (start + k) % n;
    return -1;
  }
  for (int k = 1; k <= n; k++) {
    const int w = order == cuemu::FORWARD ? (last + k) % n : (last - k + 2 * n) % n;
    if (can_run(warps[(size_t)w])) return w;
  }
  return -1;
}
void run_block(const Kernel &k, const Launch &l, const char *parameters, uint3 index) {
  Workplace &place = workplace;
  const int threads = (int)(l.block.x * l.block.y * l.block.z), n = (threads + LANES - 1) / LANES;
  Block b = {&k, &l, index, shared_memory, NULL, parameters, k.dynamic_shared_at + l.smem, 0, 0};
  if (b.shared_bytes > cuemu::SHARED_MOST) cuemu::fail("PTX: %zu bytes of shared memory in %s; a GPU has at most %d", b.shared_bytes, k.name.c_str(), cuemu::SHARED_MOST);
  if (place.warps.size() < (size_t)n) place.warps.resize((size_t)n);
  if (place.registers.size() < (size_t)n * k.register_bytes + 64) place.registers.assign((size_t)n * k.register_bytes + 64, (char)0xff);   // NaN
  place.local.resize(k.local_bytes * (size_t)(n * LANES));
  b.local = place.local.data();
  char *registers = place.registers.data() + (64 - (uintptr_t)place.registers.data() % 64) % 64;
  memset(shared_memory, 0xff, b.shared_bytes);
  for (int w = 0; w < n; w++) begin_warp(place.warps[(size_t)w], b, w, std::min<int>(LANES, threads - w * LANES), registers + (size_t)w * k.register_bytes);
  for (int last = cuemu::settings().order == cuemu::FORWARD ? n - 1 : 0;;) {
    const int w = next_warp(place.warps, last, n);
    if (w >= 0) { run_warp(place.warps[(size_t)w], cuemu::settings().order == cuemu::RANDOM ? 1 + (int)place.random.below(300) : INT32_MAX); last = w; continue; }
    bool any = false;                                   // nobody can run: the barrier opens, or the block has ended
    for (int v = 0; v < n; v++) any |= leave_barrier(place.warps[(size_t)v]);
    b.votes = b.voters = 0;
    if (!any) break;
  }
}

const Kernel *kernel_of(const void *fn) {
  static std::unordered_map<const void *, const Kernel *> known;     // launches come one after the other
  auto found = known.find(fn);
  if (found != known.end()) return found->second;
  const cuemu::Symbol *s = cuemu::function_at(fn);
  return known[fn] = s ? find_kernel(s->mangled) : NULL;
}
}  // namespace
}  // namespace ptx

bool cuemu::ptx_has(const void *fn) { return ptx::kernel_of(fn) != NULL; }
void cuemu::ptx_run(const Launch &l, const void *args) {
  const ptx::Kernel &k = *ptx::kernel_of(l.fn);
  if (!k.unknown.empty()) fail("PTX: kernel %s cannot be interpreted: %s", kernel_name(l.fn).c_str(), k.unknown.c_str());
  std::vector<char> parameters(k.parameter_bytes + 16);
  const void *values[64];
  l.params(args, values);
  for (size_t n = 0; n < k.parameters.size(); n++) memcpy(&parameters[k.parameters[n].offset], values[n], k.parameters[n].bytes);
  const long blocks = (long)l.grid.x * l.grid.y * l.grid.z;
  #pragma omp parallel for schedule(dynamic, 1) if (blocks > 1 && !settings().profile)
  for (long i = 0; i < blocks; i++) {
    const long b = block_at(i, blocks);
    ptx::workplace.random.state = settings().order_seed * 0x9e3779b97f4a7c15u + (uint64_t)b + 1;   // the same order wherever the block runs
    ptx::run_block(k, l, parameters.data(), {(unsigned)(b % l.grid.x), (unsigned)(b / l.grid.x % l.grid.y), (unsigned)(b / l.grid.x / l.grid.y)});
  }
}
