// wgmma.cpp: owns the products of four warps on tiles in shared memory, which go on while their threads do (PTX ISA, "wgmma").
//
// Each warp computes its own 16 of the 64 rows. A product reads its tiles and changes its sums when it is waited for, or at once where
// GPT_CUDA_ASYNC=early: whoever overwrites a tile or reads a sum too soon finds other numbers. Said besides: a product without the fence that must
// stand before it, or of bytes that cp.async brought and that were not fenced for this way of reading; one that is never waited for; four warps that do
// not ask for the same; a layout other than the one of wgmma_operand (ptx.cuh). Not seen: sums that are touched while a product is under way and
// happen to be what they will be.
#include "emulator.h"

namespace cuemu {
uint64_t shared_address(const void *p) {
  const uintptr_t into = (uintptr_t)p - (uintptr_t)dynamic_shared();
  if (into >= core->launch->smem) { describe_address((uintptr_t)p); fail("wgmma: the operand is not in the block's dynamic shared memory"); }
  return into;
}

// ---- the numbers; for the interpreter, too ----

static uint32_t field(uint64_t operand, int bit) { return (uint32_t)(operand >> bit & 0x3fff) << 4; }
const char *wgmma_refusal(uint64_t operand) {
  if (operand >> 62 != 1) return "the layout of an operand is not the 128-byte swizzle, the only one known here";
  if (operand >> 49 & 7) return "an operand has a base offset: its pattern does not begin at a multiple of 1,024 bytes, which is not known here";
  return NULL;
}
// Where element (i, k) lies, from the begin of shared memory; i: row of a, column of b.
static uint32_t place_in(uint64_t operand, bool transposed, int i, int k) {
  const uint32_t panel = field(operand, 16), group = field(operand, 32), line = transposed ? (uint32_t)k : (uint32_t)i, along = transposed ? (uint32_t)i % 64 : (uint32_t)k;
  const uint32_t address = field(operand, 0) + line / 8 * group + line % 8 * 128 + along * 2 + (transposed ? (uint32_t)i / 64 * panel : 0);
  return address ^ (address >> 3 & 0x70);
}
static float element(const WgmmaMemory &m, uint64_t operand, bool transposed, int i, int k) {
  const uint32_t place = place_in(operand, transposed, i, k);
  if (place + 2 > m.bytes) fail("wgmma: byte %u of shared memory is read, the block has %zu", place, m.bytes);
  uint16_t word;
  memcpy(&word, m.begin + place, 2);
  return __uint_as_float((uint32_t)word << 16);
}
// Products are added one after the other in the order of k, each rounded; a GPU adds them in an order of its own.
void wgmma_product(const WgmmaMemory &m, const WgmmaTiles &t, int warp, float *const d[64]) {
  alignas(64) float left[16][16], right[16][128];
  for (int k = 0; k < 16; k++) {
    for (int i = 0; i < 16; i++) left[i][k] = element(m, t.a, t.a_transposed, warp % 4 * 16 + i, k);
    for (int j = 0; j < 128; j++) right[k][j] = element(m, t.b, t.b_transposed, j, k);
  }
  for (int i = 0; i < 16; i++) {
    alignas(64) float sum[128];
    for (int j = 0; j < 128; j++) sum[j] = d[j / 8 * 4 + i / 8 * 2 + j % 2][i % 8 * 4 + j % 8 / 2];
    for (int k = 0; k < 16; k++)
      for (int j = 0; j < 128; j++) sum[j] += left[i][k] * right[k][j];
    for (int j = 0; j < 128; j++) d[j / 8 * 4 + i / 8 * 2 + j % 2][i % 8 * 4 + j % 8 / 2] = sum[j];
  }
}

// ---- the threads' side ----

struct Ask { int keep; };
static int warp_number() { return core->current >> 5; }

void async_proxy_fence() { core->thread[core->current].unfenced = false; }

// Every chunk of 16 bytes that this warp's part of the product reads, noted as a read of the lane that it falls to.
static void note_reads(const WgmmaTiles &t, const void *pc) {
  int n = 0;
  auto note = [&](uint64_t operand, bool transposed, int first, int count) {
    for (int i = 0; i < count; i += transposed ? 8 : 1)
      for (int k = 0; k < 16; k += transposed ? 1 : 8) note_read(dynamic_shared() + place_in(operand, transposed, first + i, k), 16, n++ % 32, pc);
  };
  note(t.a, t.a_transposed, warp_number() % 4 * 16, 16);
  note(t.b, t.b_transposed, 0, 128);
}
static void run(const Product &p) {
  alignas(64) float values[64][32];
  float *d[64];
  for (int r = 0; r < 64; r++) {
    d[r] = values[r];
    for (int l = 0; l < 32; l++) values[r][l] = p.sums[l][r / 4][r % 4];
  }
  wgmma_product({(const char *)dynamic_shared(), core->launch->smem}, p.tiles, warp_number(), d);
  for (int r = 0; r < 64; r++) for (int l = 0; l < 32; l++) p.sums[l][r / 4][r % 4] = values[r][l];
}

static void product_combine(void **slot, unsigned mask) {
  Core &c = *core;
  Warp &w = c.warp[warp_number()];
  const Wgmma &first = *(const Wgmma *)slot[0];
  if (mask != ~0u || c.threads % 128) fail("wgmma needs all lanes of four warps");
  if (!w.sums_fenced) fail("wgmma without wgmma.fence before it: registers of its sums may not have been written yet");
  for (int t = 0; t < c.threads; t++) if (c.thread[t].unfenced) fail("wgmma reads shared memory to which thread %d wrote by cp.async without fence.proxy.async behind its wait", t);
  if (const char *why = wgmma_refusal(first.a)) fail("wgmma: %s", why);
  if (const char *why = wgmma_refusal(first.b)) fail("wgmma: %s", why);
  Product p = {{first.a, first.b, first.a_transposed, first.b_transposed}, {}, w.product_groups, first.pc};
  for (int l = 0; l < 32; l++) {
    const Wgmma &x = *(const Wgmma *)slot[l];
    if (x.a != first.a || x.b != first.b) fail("wgmma: lane %d has another operand than lane 0", l);
    p.sums[l] = x.d;
  }
  std::vector<WgmmaTiles> &asked = c.asked[warp_number() / 4];
  if (w.products_asked == asked.size()) asked.push_back(p.tiles);
  if (asked[w.products_asked].a != p.tiles.a || asked[w.products_asked].b != p.tiles.b) fail("wgmma: warp %d has other operands than another of its four", warp_number());
  w.products_asked++;
  if (settings().profile) for (int n = 0; n < 16; n++) profile_count(COUNT_MMA);   // as much as 16 of mma.sync
  note_reads(p.tiles, p.pc);
  if (!settings().copies_land_late) run(p);
  w.products.push_back(p);
}
void wgmma_m64n128k16_bf16(Wgmma *x, const char *file, int line) {
  x->pc = __builtin_return_address(0);
  warp_collective(~0u, "wgmma", product_combine, x, file, line);
}

static void fence_combine(void **, unsigned) { core->warp[warp_number()].sums_fenced = true; }
void wgmma_fence(const char *file, int line) { static int present; warp_collective(~0u, "wgmma.fence", fence_combine, &present, file, line); }

static void commit_combine(void **, unsigned) { core->warp[warp_number()].product_groups++; }
void wgmma_commit(const char *file, int line) { static int present; warp_collective(~0u, "wgmma.commit_group", commit_combine, &present, file, line); }

static void wait_combine(void **slot, unsigned) {
  Warp &w = core->warp[warp_number()];
  size_t done = 0;
  for (; done < w.products.size() && w.products[done].group < w.product_groups - ((const Ask *)slot[0])->keep; done++) {
    note_reads(w.products[done].tiles, w.products[done].pc);   // it may have read them as late as now
    if (settings().copies_land_late) run(w.products[done]);
  }
  w.products.erase(w.products.begin(), w.products.begin() + (long)done);
  if (w.products.empty()) w.sums_fenced = false;             // their sums are the threads' again
}
void wgmma_wait(int keep, const char *file, int line) { Ask ask = {keep}; warp_collective(~0u, "wgmma.wait_group", wait_combine, &ask, file, line); }
}  // namespace cuemu
