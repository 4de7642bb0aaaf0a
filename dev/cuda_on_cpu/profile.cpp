// profile.cpp: owns the counting of requests to memory, where GPT_CUDA_PROFILE is set (checked build, PTX).
//
// A request is one instruction of a warp. In shared memory it takes a wavefront for every 128 bytes, and more where lanes want different words of
// one of the 32 banks of 4 bytes. In global memory it takes the sectors of 32 bytes that the lanes touch. At exit: the source lines that cost more than they must; and, in
// the file that GPT_CUDA_PROFILE names, one row a kernel (columns: see COLUMNS).
//
// "needed" are the distinct bytes that a launch reads before it writes them, and the distinct bytes that it writes. "moved" are the sectors
// that would go to and from memory behind a cache of 128 KiB, 16 ways, which drops what was used longest ago. On a GPU the second-level cache is shared by all blocks in
// flight: 40 MiB for two blocks on each of an A100's 108 multiprocessors are 190 KiB a block; here blocks run one after the other, so a block's share is what counts.
#include "emulator.h"
#include <algorithm>
#include <map>
#include <unordered_map>
#include <unistd.h>

namespace cuemu {
namespace {
const char *const COLUMNS = "kernel\tlaunches\tbytes_needed\tbytes_moved\tglobal_requests\tsectors\tsectors_ideal\tshared_requests\twavefronts\twavefronts_ideal\tmma\tldmatrix\tcp_async\tthreads\tshared_bytes\n";
enum { SECTOR = 32, BANKS = 32, WAYS = 16, SETS = 128 * 1024 / SECTOR / WAYS };

struct Cost { long requests, cost, ideal; };
struct Totals { long launches, needed, moved, counted[COUNTED]; Cost global, shared; long threads, shared_bytes; };   // the last two: the most of a block; shared_bytes: asked for by launches
struct Line { const std::string *line; std::string kernel_name; size_t bytes; Cost cost; };
std::map<const void *, Totals> kernels;                                  // by function
std::map<std::pair<const void *, int>, Line> lines;                      // by place and kind of request
std::unordered_map<uint64_t, std::pair<uint32_t, uint32_t>> bytes_seen;  // of this launch: sector to its bytes read and written, a bit each
struct Way { uint64_t sector, used; bool valid, dirty; } cache[SETS][WAYS];
uint64_t clock_ticks;
const void *kernel;                                                      // whose launch runs

bool is_shared(RequestKind k) { return k == READ_SHARED || k == WRITE_SHARED; }
bool is_write(RequestKind k) { return k == WRITE_GLOBAL || k == WRITE_SHARED; }

// The sectors that go to or from memory because of this access.
int through_cache(uint64_t sector, bool write) {
  Way *set = cache[sector % SETS], *oldest = set;
  for (Way *w = set; w < set + WAYS; w++) {
    if (w->valid && w->sector == sector) { w->used = ++clock_ticks, w->dirty |= write; return 0; }
    if (!w->valid || (oldest->valid && w->used < oldest->used)) oldest = w;
  }
  const int written_back = oldest->valid && oldest->dirty;
  *oldest = {sector, ++clock_ticks, true, write};
  return written_back + !write;                                          // a written sector is not fetched
}
// What a launch leaves in the cache is its own to write back.
void end_launch() {
  for (auto &set : cache) for (Way &w : set) kernels[kernel].moved += w.valid && w.dirty ? SECTOR : 0, w.valid = false;
  bytes_seen.clear();
}

void count_global(Totals &t, bool write, size_t n, const uint64_t address[32], uint32_t lanes, Cost *cost) {
  std::map<uint64_t, uint32_t> sectors;                                  // to bytes
  for (uint32_t m = lanes; m; m &= m - 1)
    for (size_t b = 0; b < n; b++) { const uint64_t a = address[__builtin_ctz(m)] + b; sectors[a / SECTOR] |= 1u << a % SECTOR; }
  long bytes = 0;
  for (const auto &s : sectors) {
    auto &seen = bytes_seen[s.first];
    const uint32_t fresh = write ? s.second & ~seen.second : s.second & ~seen.first & ~seen.second;
    t.needed += __builtin_popcount(fresh), bytes += __builtin_popcount(s.second);
    (write ? seen.second : seen.first) |= s.second;
    t.moved += SECTOR * through_cache(s.first, write);
  }
  *cost = {1, (long)sectors.size(), (bytes + SECTOR - 1) / SECTOR};
}
// 8- and 16-byte accesses go in two and four phases.
void count_shared(size_t n, const uint64_t address[32], uint32_t lanes, Cost *cost) {
  const int lanes_a_phase = n <= 4 ? 32 : n == 8 ? 16 : 8;
  *cost = {1, 0, 0};
  for (int first = 0; first < 32; first += lanes_a_phase) {
    std::vector<uint64_t> words[BANKS];
    size_t most = 0;
    for (int l = first; l < first + lanes_a_phase; l++) {
      if (!(lanes >> l & 1)) continue;
      for (size_t b = 0; b < std::max<size_t>(n, 4); b += 4) {
        const uint64_t word = (address[l] + b) / 4;
        std::vector<uint64_t> &bank = words[word % BANKS];
        if (std::find(bank.begin(), bank.end(), word) == bank.end()) bank.push_back(word);
        most = std::max(most, bank.size());
      }
    }
    cost->cost += (long)most, cost->ideal += most > 0;
  }
}

// ---- at exit ----

void print_lines() {
  fprintf(stderr, "%-7s %-5s %5s %9s %9s %6s  where more is spent than must be\n", "memory", "", "bytes", "requests", "a request", "ideal");
  for (const auto &entry : lines) {
    const Line &l = entry.second;
    if (l.cost.cost * 4 < l.cost.ideal * 5) continue;
    const RequestKind kind = (RequestKind)entry.first.second;
    fprintf(stderr, "%-7s %-5s %5zu %9ld %9.1f %6.1f  in %s\n", is_shared(kind) ? "shared" : "global", is_write(kind) ? "write" : "read", l.bytes, l.cost.requests,
            (double)l.cost.cost / (double)l.cost.requests, (double)l.cost.ideal / (double)l.cost.requests, l.kernel_name.c_str());
    if (l.line) fprintf(stderr, "      %s\n", l.line->c_str());
    else print_line(entry.first.first);
  }
}
void write_kernels(const char *path) {
  FILE *f = fopen(path, "w");
  if (!f) { fprintf(stderr, "cuda_on_cpu: error: GPT_CUDA_PROFILE=%s cannot be written\n", path); _exit(70); }
  fputs(COLUMNS, f);
  for (const auto &entry : kernels) {
    const Totals &t = entry.second;
    fprintf(f, "%s\t%ld\t%ld\t%ld\t%ld\t%ld\t%ld\t%ld\t%ld\t%ld\t%ld\t%ld\t%ld\t%ld\t%ld\n", kernel_name(entry.first).c_str(), t.launches, t.needed, t.moved, t.global.requests, t.global.cost, t.global.ideal,
            t.shared.requests, t.shared.cost, t.shared.ideal, t.counted[COUNT_MMA], t.counted[COUNT_LDMATRIX], t.counted[COUNT_CP_ASYNC], t.threads, t.shared_bytes);
  }
  if (fclose(f)) { fprintf(stderr, "cuda_on_cpu: error: GPT_CUDA_PROFILE=%s cannot be written\n", path); _exit(70); }
}
}  // namespace

void profile_request(const void *place, const std::string *line, RequestKind kind, size_t n, const uint64_t address[32], uint32_t lanes) {
  Totals &t = kernels[kernel];
  Cost cost;
  if (is_shared(kind)) count_shared(n, address, lanes, &cost);
  else count_global(t, is_write(kind), n, address, lanes, &cost);
  Line &l = lines[{place, kind}];
  if (l.cost.requests == 0) l.line = line, l.kernel_name = kernel_name(kernel), l.bytes = n;
  for (Cost *to : {&l.cost, is_shared(kind) ? &t.shared : &t.global}) to->requests += cost.requests, to->cost += cost.cost, to->ideal += cost.ideal;
}

// ---- requests from single accesses ----

namespace {
struct Request { const void *pc; RequestKind kind; size_t n; uint64_t address[32]; uint32_t lanes; };
std::vector<Request> pending;                                            // of this block, in the order of their first lanes
struct Place { std::vector<size_t> requests; int count[32]; };           // how often each lane was here
std::map<std::pair<int, std::pair<const void *, int>>, Place> places;    // warp, pc, kind

void print_at_exit() {
  end_launch();
  print_lines();
  if (strcmp(settings().profile, "1")) write_kernels(settings().profile);
}
}  // namespace

void profile_launch(const Launch &l) {
  if (!kernel) atexit(print_at_exit);
  else end_launch();
  kernel = l.fn;
  Totals &t = kernels[l.fn];
  t.launches++;
  t.threads = std::max(t.threads, (long)l.block.x * l.block.y * l.block.z), t.shared_bytes = std::max(t.shared_bytes, (long)l.smem);
}
void profile_end_of_block() {
  for (const Request &r : pending) profile_request(r.pc, NULL, r.kind, r.n, r.address, r.lanes);
  pending.clear(), places.clear();
}
void profile_access(int thread, const void *pc, RequestKind kind, size_t n, uint64_t address) {
  Place &p = places[{thread >> 5, {pc, kind}}];
  const int lane = thread & 31;
  const size_t k = (size_t)p.count[lane]++;
  if (p.requests.size() <= k) p.requests.push_back(pending.size()), pending.push_back({pc, kind, n, {}, 0});
  Request &r = pending[p.requests[k]];
  r.address[lane] = address, r.lanes |= 1u << lane;
}
void profile_count(Counted what) { kernels[kernel].counted[what]++; }
}  // namespace cuemu

// For tests: wavefronts that bank conflicts have cost since this was last asked; -1: requests are not counted.
extern "C" long emulated_bank_conflicts(void) {
  static long before;
  if (!cuemu::settings().profile) return -1;
  long now = 0;
  for (const auto &k : cuemu::kernels) now += k.second.shared.cost - k.second.shared.ideal;
  const long more = now - before;
  before = now;
  return more;
}
