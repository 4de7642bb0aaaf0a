// tile_emulator.h: owns a stand-in for the instructions for matrix tiles (Intel AMX), in plain C: as functions, which tiles.h calls where
// CPU_EMULATES_TILES is defined, and as a handler for the instructions themselves on a processor that lacks them.
//
// Each thread has its own registers. What the processor would fault on ends the process with a sentence (exit code 70): a palette other than 1, more than
// 16 rows or 64 bytes a row, reserved bytes, a register that is not configured, shapes that do not fit together. Sums are as Intel's manual has them.
// Tests: tests/test_tiles.c
#pragma once
#include <stdbool.h>
#include <stddef.h>

enum { TILE_FAULT = 70 };   // exit code

void tile_emulator_configure(const void *config /* 64 bytes */);
void tile_emulator_release(void);
void tile_emulator_zero(int t);
void tile_emulator_load(int t, const void *from, size_t stride);
void tile_emulator_store(int t, void *to, size_t stride);
void tile_emulator_dot(int c, int a, int b);   // c += a b
// From now on an unknown instruction of any thread that is one of tiles.h is done by the functions above. false: not possible here.
bool tile_emulator_trap(void);
