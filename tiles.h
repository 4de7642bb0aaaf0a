// tiles.h: owns the instructions for matrix tiles (Intel AMX), as cpu_gemm_amx.c uses them: configure, load, multiply, store.
//
// A thread has eight tile registers. Configured as here each holds 16 rows of 64 bytes. TILE_DOT(c, a, b) is c (16,16) += a (16,32) b (32,16):
// a's rows are 32 numbers in bf16, c's 16 floats, and b has 16 rows, one for two k: its 32-bit word j holds b[2p][j] and, in the upper half, b[2p+1][j].
// Each sum goes (Intel's manual, TDPBF16PS): from 0 a chain of fused multiply-adds over the even k and another over the odd k, the two are
// added, and then that is added to c; denormals are zero, in and out, whatever MXCSR says.
// Written as assembly, because gcc's intrinsics for tiles do not tell the compiler that they read memory. A register is a digit, known when it is compiled.
// With CPU_EMULATES_TILES the same names are the stand-in's of tests/tile_emulator.h, so that all code that uses them runs on any processor.
#pragma once
#include <stddef.h>
#include <stdint.h>

// What a tile register holds, for all eight, as the processor reads it (palette 1: 16 rows of 64 bytes at most).
typedef struct {
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];   // of registers 0 to 7; the rest is zero
  uint8_t rows[16];
} TileConfig;
#define TILES_WHOLE { .palette = 1, .row_bytes = {64, 64, 64, 64, 64, 64, 64, 64}, .rows = {16, 16, 16, 16, 16, 16, 16, 16} }

#ifdef CPU_EMULATES_TILES
#include "tests/tile_emulator.h"   // tile_emulator_load and its like
#define TILE_CONFIGURE(config) tile_emulator_configure(config)
#define TILE_RELEASE() tile_emulator_release()
#define TILE_ZERO(t) tile_emulator_zero(t)
#define TILE_LOAD(t, from, stride) tile_emulator_load(t, from, stride)
#define TILE_LOAD_ONCE(t, from, stride) tile_emulator_load(t, from, stride)
#define TILE_STORE(t, to, stride) tile_emulator_store(t, to, stride)
#define TILE_DOT(c, a, b) tile_emulator_dot(c, a, b)
#else
#define TILE_CONFIGURE(config) __asm__ volatile("ldtilecfg (%0)" : : "r"(config) : "memory")   // all registers become zero
#define TILE_RELEASE() __asm__ volatile("tilerelease" : : : "memory")
#define TILE_ZERO(t) __asm__ volatile("tilezero %%tmm" #t : : : "memory")
// Row r is the 64 bytes at from + r * stride. _ONCE: they will not be needed again soon, and displace nothing from the level-1 cache.
#define TILE_LOAD(t, from, stride) __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #t : : "r"((const void *)(from)), "r"((size_t)(stride)) : "memory")
#define TILE_LOAD_ONCE(t, from, stride) __asm__ volatile("tileloaddt1 (%0,%1,1), %%tmm" #t : : "r"((const void *)(from)), "r"((size_t)(stride)) : "memory")
#define TILE_STORE(t, to, stride) __asm__ volatile("tilestored %%tmm" #t ", (%0,%1,1)" : : "r"((void *)(to)), "r"((size_t)(stride)) : "memory")
#define TILE_DOT(c, a, b) __asm__ volatile("tdpbf16ps %%tmm" #b ", %%tmm" #a ", %%tmm" #c : : : "memory")
#endif
