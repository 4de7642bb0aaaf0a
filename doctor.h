// doctor.h: `gpt doctor`: what this machine has, what this build can use, what to do about the rest; the self-test hash.
// Tests: tests/test_bits.c
#pragma once
#include "flags.h"    // Options
#include "model.h"    // Gpt

// Trains a tiny model of each family for a few steps on the device and hashes the weights. On the CPU the hash is the same on every
// machine, compiler and number of threads: one hash in fp32, one in bf16.
void doctor_self_test(Device *d, char hex[65]);
const char *doctor_expected_hash(const Device *d);   // by the device's storage
int doctor_command(const Options *o);
