// bench.h: `gpt bench train|gemm|attention|all|tokenizer`: speed of a training step, of its operations beside the peak, and of a tokenizer. Tests: tests/test_cli.sh
#pragma once
#include "flags.h"   // Options

int bench_command(const Options *o);
