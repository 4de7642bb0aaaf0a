// report.h: report.html, a self-contained page made from a run folder alone (config.txt, log.jsonl). Tests: tests/test_cli_train.sh
#pragma once
#include "flags.h"   // Options

// Rewrites RUN/report.html atomically: curves as SVG, samples, settings, speed. A failure warns and never ends a run. Reads the whole log.
void report_write_run(const char *run_dir);
int report_command(const Options *o);    // gpt report RUN... : one page over several runs
