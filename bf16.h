// bf16.h: owns the number of 16 bits that is the upper half of a float: sign, 8 bits of exponent, 7 of fraction (8 significant bits).
//
// Rounding is to nearest, ties to even, as every processor with instructions for it does; a NaN stays one.
// Tests: tests/test_safetensors.c (reading), tests/test_ops.c: bf16_* (rounding)
#pragma once
#include <math.h>     // fabs, isfinite
#include <stdint.h>
#include <string.h>   // memcpy

typedef uint16_t bf16;

static inline float float_of_bf16(bf16 x) {
  uint32_t bits = (uint32_t)x << 16;
  float f;
  memcpy(&f, &bits, 4);
  return f;
}

static inline bf16 bf16_of_float(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  if (!(x == x)) return (bf16)(bits >> 16 | 0x40);   // its fraction may lie wholly in the lower half
  return (bf16)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// Rounded once: the float between may lie halfway where x does not.
static inline bf16 bf16_of_double(double x) {
  float f = (float)x;
  uint32_t bits;
  memcpy(&bits, &f, 4);
  if ((bits & 0xffff) != 0x8000 || (double)f == x || !isfinite(f)) return bf16_of_float(f);
  return (bf16)((bits >> 16) + (fabs(x) > fabs((double)f)));
}
