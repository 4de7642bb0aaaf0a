// test_gemm_bf16.c: owns the test of the CPU device's matrix products in bf16: test_gemm.c with other storage, and the chain as it goes there.
#define CPU_STORES_BF16
#include "test_gemm.c"
