// data.h: the command `gpt data`. Tests: tests/test_data.c
#pragma once
#include "flags.h"  // Options

// Runs `gpt data build|check|info`, whichever o->command says; returns the exit code.
int data_command(const Options *o);
int data_build(const Options *o);   // data_build.c
