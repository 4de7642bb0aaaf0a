// watch.h: a device that wraps another: it times every operation (--trace), or checks every output for numbers that are
// not finite (the re-run of a bad step). Flow does not change for it. Tests: tests/test_watch.c, tests/test_train.c
#pragma once
#include "device.h"
#include "model.h"

typedef enum { WATCH_TRACE, WATCH_CHECK } WatchMode;

// Wraps inner, whose memory it shares; names come from m's arena. Destroy with watch_destroy; inner lives on.
Device *watch_device(Device *inner, const Gpt *m, WatchMode mode);
void watch_destroy(Device *d);
// WATCH_TRACE: prints one line per operation in order (name, tensor, shape, ms, MB, GB/s or GFLOP/s) and a sum by operation; of those that only read and
// write, also the bytes that they need and their share of the memory's speed. step_seconds: of the whole step on d; what noting took is subtracted.
void watch_print(const Device *d, FILE *out, double step_seconds);
// WATCH_CHECK: "linear_forward: layer 3 qkv: 12 of 98304 numbers are not finite" for the first bad output, or NULL.
const char *watch_finding(const Device *d);
