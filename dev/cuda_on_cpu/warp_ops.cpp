// warp_ops.cpp: owns what a whole warp does at once (shuffles, votes, ldmatrix, mma), cp.async, and atomics.
//
// A combine function runs once for a warp, when its last lane has arrived; slot[l] is what lane l handed in, NULL where a lane takes no part.
#include "emulator.h"

namespace cuemu {
int lane() { return core->current & 31; }

void shfl_combine(void **slot, unsigned) {
  for (int l = 0; l < 32; l++) {
    Shfl *s = (Shfl *)slot[l];
    if (!s) continue;
    if (s->src < 0) s->out = s->v;                                       // beyond its segment: keeps its own
    else s->out = slot[s->src] ? ((Shfl *)slot[s->src])->v : 0x7ff7dead7fc0deadull;   // of a lane that takes no part: undefined, here a NaN
  }
}
void vote_combine(void **slot, unsigned) {
  unsigned ballot = 0;
  for (int l = 0; l < 32; l++) if (slot[l] && ((Vote *)slot[l])->p) ballot |= 1u << l;
  for (int l = 0; l < 32; l++) if (slot[l]) ((Vote *)slot[l])->ballot = ballot;
}

// ---- tensor cores ----

static void ldmatrix_combine(void **slot, unsigned mask) {
  if (mask != ~0u) fail("ldmatrix needs all 32 lanes");
  if (settings().profile) profile_count(COUNT_LDMATRIX);
  LdMatrix *const *lanes = (LdMatrix *const *)slot;
  for (int i = 0; i < lanes[0]->n; i++) {
    uint16_t m[8][8];
    for (int r = 0; r < 8; r++) {
      const int l = i * 8 + r;
      const void *row = lanes[l]->row;
      if ((uintptr_t)row % 16) fail("ldmatrix: row address %p of lane %d is no multiple of 16", row, l);
      if (!in_shared(row, 16)) { describe_address((uintptr_t)row); fail("ldmatrix: row address of lane %d is not in shared memory", l); }
      note_read(row, 16, l, lanes[l]->pc);
      memcpy(m[r], row, 16);
    }
    for (int l = 0; l < 32; l++) {
      const int a = l / 4, b = l % 4 * 2;
      lanes[l]->r[i] = lanes[0]->trans ? m[b][a] | (uint32_t)m[b + 1][a] << 16 : m[a][b] | (uint32_t)m[a][b + 1] << 16;
    }
  }
}
void ldmatrix(LdMatrix *x, const char *file, int line) {
  x->pc = __builtin_return_address(0);
  warp_collective(~0u, x->trans ? "ldmatrix.trans" : "ldmatrix", ldmatrix_combine, x, file, line);
}

// Products are added one after the other in the order of k, each rounded; a GPU adds them in an order of its own.
void tensor_product(float *const d[4], const uint32_t *const a[4], const uint32_t *const b[2], const float *const c[4]) {
  alignas(64) uint32_t A[16][8], B[16][8];                                // A: words of two neighbouring k; B: one k a row, as the upper half of a float
  alignas(64) float C[16][8];
  for (int l = 0; l < 32; l++) {
    const int g = l / 4, t = l % 4;
    A[g][t] = a[0][l], A[g + 8][t] = a[1][l], A[g][t + 4] = a[2][l], A[g + 8][t + 4] = a[3][l];
    for (int h = 0; h < 2; h++) B[2 * t + 8 * h][g] = b[h][l] << 16, B[2 * t + 8 * h + 1][g] = b[h][l] & 0xffff0000u;
    C[g][2 * t] = c[0][l], C[g][2 * t + 1] = c[1][l], C[g + 8][2 * t] = c[2][l], C[g + 8][2 * t + 1] = c[3][l];
  }
  alignas(64) float right[16][8];
  memcpy(right, B, sizeof right);
  for (int i = 0; i < 16; i++) {
    float sum[8];
    memcpy(sum, C[i], sizeof sum);
    for (int k = 0; k < 8; k++) {
      const float low = __uint_as_float(A[i][k] << 16), high = __uint_as_float(A[i][k] & 0xffff0000u);
      for (int j = 0; j < 8; j++) sum[j] += low * right[2 * k][j];
      for (int j = 0; j < 8; j++) sum[j] += high * right[2 * k + 1][j];
    }
    memcpy(C[i], sum, sizeof sum);
  }
  for (int l = 0; l < 32; l++) {
    const int g = l / 4, t = l % 4;
    d[0][l] = C[g][2 * t], d[1][l] = C[g][2 * t + 1], d[2][l] = C[g + 8][2 * t], d[3][l] = C[g + 8][2 * t + 1];
  }
}
static void mma_combine(void **slot, unsigned mask) {
  if (mask != ~0u) fail("mma needs all 32 lanes");
  if (settings().profile) profile_count(COUNT_MMA);
  alignas(64) uint32_t a[4][32], b[2][32];
  alignas(64) float c[4][32];
  for (int l = 0; l < 32; l++) {
    const Mma *m = (const Mma *)slot[l];
    for (int k = 0; k < 4; k++) a[k][l] = m->a[k], c[k][l] = m->c[k];
    for (int k = 0; k < 2; k++) b[k][l] = m->b[k];
  }
  float *const d[4] = {c[0], c[1], c[2], c[3]};
  const uint32_t *const left[4] = {a[0], a[1], a[2], a[3]}, *const right[2] = {b[0], b[1]};
  tensor_product(d, left, right, d);
  for (int l = 0; l < 32; l++) for (int k = 0; k < 4; k++) ((Mma *)slot[l])->d[k] = c[k][l];
}
void mma_m16n8k16_bf16(Mma *x, const char *file, int line) { warp_collective(~0u, "mma.sync.m16n8k16", mma_combine, x, file, line); }

// ---- cp.async: the bytes land at the wait, or at once where GPT_CUDA_ASYNC=early ----

static void land(const Copy &c) {
  if (c.valid) memcpy(c.to, c.from, (size_t)c.valid);
  memset(c.to + c.valid, 0, (size_t)(c.bytes - c.valid));
}
void cp_async(void *to, const void *from, int bytes, int valid) {
  Thread &me = core->thread[core->current];
  if ((uintptr_t)to % (size_t)bytes || (uintptr_t)from % (size_t)bytes) fail("cp.async of %d bytes: misaligned address (shared %p, global %p)", bytes, to, from);
  if (!in_shared(to, (size_t)bytes)) { describe_address((uintptr_t)to); fail("cp.async: the destination is not shared memory of this block"); }
  if (valid && !in_device(from, (size_t)valid)) { describe_address((uintptr_t)from); fail("cp.async: the source is not device memory"); }
  const void *pc = __builtin_return_address(0);
  note_read(from, (size_t)valid, lane(), pc);
  note_write(to, (size_t)bytes, lane(), pc);                               // may land any time from now on
  note_in_flight(to, (size_t)bytes, true);                                 // until the wait
  const Copy c = {(char *)to, (const char *)from, bytes, valid, me.groups_closed, pc};
  if (!settings().copies_land_late) land(c);
  me.copies.push_back(c);
}
void cp_async_commit() { core->thread[core->current].groups_closed++; }
void cp_async_wait(int keep) {                                             // -1: all, those of no closed group too
  Thread &me = core->thread[core->current];
  size_t landed = 0;
  for (; landed < me.copies.size(); landed++) {
    const Copy &c = me.copies[landed];
    if (keep >= 0 && c.group >= me.groups_closed - keep) break;
    note_in_flight(c.to, (size_t)c.bytes, false);
    note_write(c.to, (size_t)c.bytes, lane(), c.pc);
    if (settings().copies_land_late) land(c);
  }
  me.copies.erase(me.copies.begin(), me.copies.begin() + (long)landed);
  if (landed) me.unfenced = true;
}
}  // namespace cuemu
using namespace cuemu;

// ---- atomics: blocks run on several threads of this machine, so these are atomic here too ----

#define INLINED static inline __attribute__((always_inline))               // for the caller's address
template <class T> INLINED void note(T *p) {
  if ((uintptr_t)p % sizeof(T)) fail("misaligned atomic at %p", (void *)p);
  note_atomic(p, sizeof(T), __builtin_return_address(0));
}
template <class T, class F> INLINED T update(T *p, F next) {
  note(p);
  T old = __atomic_load_n(p, __ATOMIC_RELAXED);
  while (!__atomic_compare_exchange_n(p, &old, next(old), true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {}
  return old;
}
template <class Float, class Bits> INLINED Float add_float(Float *p, Float x) {
  const Bits old = update((Bits *)p, [x](Bits b) { return cuemu_bits<Bits>(cuemu_bits<Float>(b) + x); });
  return cuemu_bits<Float>(old);
}
float atomicAdd(float *p, float v) { return add_float<float, uint32_t>(p, v); }
double atomicAdd(double *p, double v) { return add_float<double, uint64_t>(p, v); }
int atomicAdd(int *p, int v) { return update(p, [v](int x) { return (int)((unsigned)x + (unsigned)v); }); }
unsigned atomicAdd(unsigned *p, unsigned v) { return update(p, [v](unsigned x) { return x + v; }); }
unsigned long long atomicAdd(unsigned long long *p, unsigned long long v) { return update(p, [v](unsigned long long x) { return x + v; }); }
int atomicMax(int *p, int v) { return update(p, [v](int x) { return x > v ? x : v; }); }
unsigned atomicMax(unsigned *p, unsigned v) { return update(p, [v](unsigned x) { return x > v ? x : v; }); }
unsigned atomicOr(unsigned *p, unsigned v) { return update(p, [v](unsigned x) { return x | v; }); }
unsigned atomicExch(unsigned *p, unsigned v) { return update(p, [v](unsigned) { return v; }); }
unsigned atomicInc(unsigned *p, unsigned wrap) { return update(p, [wrap](unsigned x) { return x >= wrap ? 0 : x + 1; }); }
int atomicCAS(int *p, int c, int v) { return update(p, [c, v](int x) { return x == c ? v : x; }); }
unsigned atomicCAS(unsigned *p, unsigned c, unsigned v) { return update(p, [c, v](unsigned x) { return x == c ? v : x; }); }
