// tile_emulator.c: owns the stand-in for matrix tiles. See tile_emulator.h.
#include "tile_emulator.h"
#include <math.h>     // fmaf
#include <stdint.h>
#include <stdio.h>    // fprintf
#include <stdlib.h>   // _Exit
#include <string.h>   // memcpy
#if defined(__x86_64__) && defined(__linux__)
#include <signal.h>   // sigaction
#include <ucontext.h> // registers of the trapped thread
#endif

enum { TILES = 8, ROWS = 16, ROW_BYTES = 64 };
typedef struct {
  bool configured;
  int rows[TILES], row_bytes[TILES];
  unsigned char data[TILES][ROWS][ROW_BYTES];
} Registers;
static __thread Registers r;

static void fault(const char *what, int t) {
  fprintf(stderr, "tiles: %s (register %d)\n", what, t);
  fflush(NULL);
  _Exit(TILE_FAULT);
}

void tile_emulator_configure(const void *config) {
  unsigned char c[64];
  memcpy(c, config, sizeof c);
  memset(&r, 0, sizeof r);
  if (c[0] == 0) return;   // as tilerelease
  if (c[0] != 1) fault("palette is neither 0 nor 1", -1);
  if (c[1] >= ROWS) fault("start_row is above 15", -1);
  for (int i = 2; i < 16; i++) if (c[i]) fault("a reserved byte is not zero", -1);
  for (int t = 0; t < 16; t++) {
    uint16_t row_bytes;
    memcpy(&row_bytes, c + 16 + 2 * t, 2);
    const int rows = c[48 + t];
    if (t >= TILES) {
      if (row_bytes || rows) fault("there are eight registers", t);
      continue;
    }
    if (row_bytes > ROW_BYTES) fault("more than 64 bytes a row", t);
    if (rows > ROWS) fault("more than 16 rows", t);
    if (!row_bytes != !rows) fault("rows without bytes, or bytes without rows", t);
    r.rows[t] = rows, r.row_bytes[t] = row_bytes;
  }
  r.configured = true;
}

void tile_emulator_release(void) { memset(&r, 0, sizeof r); }

static void check(int t) {
  if (!r.configured) fault("no configuration", t);
  if (t < 0 || t >= TILES || !r.rows[t]) fault("not configured", t);
}

void tile_emulator_zero(int t) { check(t); memset(r.data[t], 0, sizeof r.data[t]); }

void tile_emulator_load(int t, const void *from, size_t stride) {
  check(t);
  memset(r.data[t], 0, sizeof r.data[t]);
  for (int row = 0; row < r.rows[t]; row++) memcpy(r.data[t][row], (const char *)from + (size_t)row * stride, (size_t)r.row_bytes[t]);
}

void tile_emulator_store(int t, void *to, size_t stride) {
  check(t);
  for (int row = 0; row < r.rows[t]; row++) memcpy((char *)to + (size_t)row * stride, r.data[t][row], (size_t)r.row_bytes[t]);
}

// A denormal becomes zero, its sign is kept.
static inline uint32_t flushed(uint32_t bits) { return bits & 0x7f800000u ? bits : bits & 0x80000000u; }
static inline float number(uint32_t bits) { float f; bits = flushed(bits); memcpy(&f, &bits, 4); return f; }
static inline uint32_t bits_of(float f) { uint32_t bits; memcpy(&bits, &f, 4); return flushed(bits); }

// One row of c: from 0 a chain over the even k and one over the odd k, then their sum, then c.
static inline __attribute__((always_inline)) void dot_row(uint32_t c[16], int columns, const uint32_t *a, int pairs, unsigned char b[ROWS][ROW_BYTES]) {
  float even[16] = {0}, odd[16] = {0};
  for (int p = 0; p < pairs; p++) {
    uint32_t words[16];
    memcpy(words, b[p], sizeof words);
    const float low = number(a[p] << 16), high = number(a[p] & 0xffff0000u);
    for (int j = 0; j < 16; j++) {
      even[j] = number(bits_of(fmaf(low, number(words[j] << 16), even[j])));
      odd[j] = number(bits_of(fmaf(high, number(words[j] & 0xffff0000u), odd[j])));
    }
  }
  for (int j = 0; j < columns; j++) c[j] = bits_of(number(c[j]) + number(bits_of(even[j] + odd[j])));
}

#if defined(__x86_64__)
__attribute__((target("avx2,fma"))) static void dot_row_fma(uint32_t c[16], int columns, const uint32_t *a, int pairs, unsigned char b[ROWS][ROW_BYTES]) { dot_row(c, columns, a, pairs, b); }
#endif
static void dot_row_any(uint32_t c[16], int columns, const uint32_t *a, int pairs, unsigned char b[ROWS][ROW_BYTES]) { dot_row(c, columns, a, pairs, b); }

void tile_emulator_dot(int c, int a, int b) {
  void (*row_of)(uint32_t *, int, const uint32_t *, int, unsigned char (*)[ROW_BYTES]) = dot_row_any;
  check(c), check(a), check(b);
  if (c == a || c == b || a == b) fault("the same register twice", c);
  if (r.row_bytes[c] % 4 || r.row_bytes[a] % 4 || r.row_bytes[b] % 4) fault("half a word at a row's end", c);
  if (r.rows[c] != r.rows[a]) fault("c and a differ in rows", c);
  if (r.row_bytes[a] / 4 != r.rows[b]) fault("a's pairs are not b's rows", a);
  if (r.row_bytes[c] != r.row_bytes[b]) fault("c and b differ in columns", c);
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) row_of = dot_row_fma;   // the same bits, sooner
#endif
  for (int row = 0; row < r.rows[c]; row++) {
    uint32_t sums[16], factors[16];
    memcpy(sums, r.data[c][row], sizeof sums);
    memcpy(factors, r.data[a][row], sizeof factors);
    row_of(sums, r.row_bytes[c] / 4, factors, r.row_bytes[a] / 4, r.data[b]);
    memcpy(r.data[c][row], sums, sizeof sums);
  }
}

// ---- the instructions themselves ----
#if defined(__x86_64__) && defined(__linux__)
static const int general[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                REG_R8, REG_R9, REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};

// VEX with three bytes, map 0F38, 128 bits, W 0: c4, RXB and map, vvvv and prefix, opcode, ModRM, perhaps SIB and a displacement of 8 or 32 bits.
static bool emulate(greg_t *regs) {
  unsigned char *code = (unsigned char *)(uintptr_t)regs[REG_RIP];   // readable: it was about to run
  if (code[0] != 0xc4 || (code[1] & 0x1f) != 2 || (code[2] & 0x84)) return false;
  const int prefix = code[2] & 3, opcode = code[3], mod = code[4] >> 6, reg = code[4] >> 3 & 7, rm = code[4] & 7, vvvv = ~code[2] >> 3 & 15;
  size_t length = 5;
  char *base = NULL;
  size_t stride = 0;
  if (mod != 3) {
    int base_register = rm;
    if (rm == 4) {
      const int sib = code[length++], index = (sib >> 3 & 7) + (code[1] & 0x40 ? 0 : 8);
      base_register = sib & 7;
      if (index != 4) stride = (size_t)regs[general[index]] << (sib >> 6);
    }
    if (mod == 0 && base_register == 5) return false;   // relative addresses are not used here
    base = (char *)(uintptr_t)regs[general[base_register + (code[1] & 0x20 ? 0 : 8)]];
    if (mod == 1) base += (signed char)code[length++];
    if (mod == 2) { int32_t d; memcpy(&d, code + length, 4); base += d, length += 4; }
  }
  if (opcode == 0x49 && prefix == 0 && mod != 3) tile_emulator_configure(base);
  else if (opcode == 0x49 && prefix == 0) tile_emulator_release();
  else if (opcode == 0x49 && prefix == 3 && mod == 3) tile_emulator_zero(reg);
  else if (opcode == 0x4b && mod != 3 && (prefix == 3 || prefix == 1)) tile_emulator_load(reg, base, stride);
  else if (opcode == 0x4b && mod != 3 && prefix == 2) tile_emulator_store(reg, base, stride);
  else if (opcode == 0x5c && mod == 3 && prefix == 2) tile_emulator_dot(reg, rm, vvvv);
  else return false;
  regs[REG_RIP] += (greg_t)length;
  return true;
}

static void trapped(int signal_number, siginfo_t *info, void *context) {
  (void)info;
  if (!emulate(((ucontext_t *)context)->uc_mcontext.gregs)) signal(signal_number, SIG_DFL);   // it is tried again, and ends the process
}

bool tile_emulator_trap(void) {
  struct sigaction action = {.sa_flags = SA_SIGINFO, .sa_sigaction = trapped};
  return !sigaction(SIGILL, &action, NULL);
}
#else
bool tile_emulator_trap(void) { return false; }
#endif
