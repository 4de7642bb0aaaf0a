// bench.h: `gpt bench train|gemm|attention`: speed of a training step and of its operations beside the peak. Tests: tests/test_cli.sh
#pragma once
#include "flags.h"   // Options

int bench_command(const Options *o);
