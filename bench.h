// bench.h: `gpt bench train`: speed of a whole training step beside the processor's peak. Tests: tests/test_cli.sh
#pragma once
#include "flags.h"   // Options

int bench_command(const Options *o);
