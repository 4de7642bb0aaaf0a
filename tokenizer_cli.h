// tokenizer_cli.h: the command `gpt tokenizer`. Tests: tests/test_tokenizer.c
#pragma once
#include "flags.h"  // Options

// Runs `gpt tokenizer train|encode|decode|info`, whichever o->command says; returns the exit code.
int tokenizer_command(const Options *o);
