// machine.h: what this machine has: memory, cores, processor. Plumbing. Tests: tests/test_util.c
#pragma once
#include "util.h"

// Bytes a new allocation can count on: the smaller of the system's available memory and what is left in the control
// group's limit; *from (may be NULL) = "memory" or "cgroup limit".
size_t machine_memory_available(const char **from);
size_t machine_memory_total(void);
size_t machine_resident(void);            // resident set of this process, bytes
int machine_cores(void);                  // physical cores within affinity and cgroup quota, at least 1
int machine_cores_among(const int *processors, int count);   // the same among these logical processors, whatever the affinity
int machine_threads(void);                // logical processors this process may run on
// OMP_NUM_THREADS beyond 4,096 becomes that: more stacks than there is memory for would end the process without a word.
void machine_limit_threads(void);
// Exit 3 if the system does not give this process n threads at once. OpenMP would end it with a code and lines of its own, wherever it then is.
void machine_require_threads(int n);
void machine_processor(char name[128]);   // "Intel(R) Xeon(R) ..."; the architecture where unknown
