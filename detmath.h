// detmath.h: exp, log, sin, cos, tanh, erf and powers in fp64 with the same bits on every machine, compiler and level.
//
// libm's versions differ in the last bit between versions and processors; what trains or initialises a model may
// depend on nothing but IEEE +, -, *, /, sqrt, fma, rint and ldexp. Errors are below 2 units in the last place.
// Sources of the methods and the bounds stand beside each function in detmath.c. Tests: tests/test_detmath.c
#pragma once
#include <stddef.h>  // size_t
#include <stdint.h>

double det_exp(double x);
double det_log(double x);            // x > 0; 0: -inf; negative: NaN
double det_pow(double x, double y);  // x > 0
double det_sin(double x);            // |x| <= 1e6 to the stated error
double det_cos(double x);
double det_tanh(double x);
double det_erf(double x);
// Standard normal numbers for elements first..first+n-1 of the stream (seed, site): Box-Muller on rng.h.
void det_normals(uint64_t seed, uint32_t site, uint64_t first, size_t n, double *values /* = (n) */);
