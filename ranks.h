// ranks.h: a run's ranks: processes of this machine, started, watched over and ended together; or processes of any machines, which others started.
//
// gpt train --ranks N (or --gpus N: the same, with a GPU for each) stays as the SUPERVISOR and forks N ranks. Rank 0 prints, logs and writes the run; the others compute.
// Whatever a rank writes to stderr goes through the supervisor, line by line, "rank R: " before those of ranks but 0: lines never mix.
// SIGINT and SIGTERM: the supervisor asks all to stop after the step; a second one ends them at once. A rank that dies, is
// stopped, or fails ends the whole run with ONE line and exit code 3 (or the failing rank's own code). If the supervisor itself is
// killed, its ranks finish the step, save, and leave.
//
// gpt train --rendezvous HOST:PORT is ONE rank, and finds the others there (comm_tcp.c). Its number and the number of all are --rank and --world, or what
// Slurm's or MPI's environment says. Ranks above 0 print nothing but errors. A signal to any rank stops all after the step. When a rank is lost, the lowest that
// is left says so; all end with exit code 3.
// Tests: tests/test_supervisor.c, tests/test_ranks.sh, tests/test_join.sh
#pragma once
#include "comm.h"   // Comm
#include "flags.h"  // Options

// First of all: whether this process is one of several ranks that others started. Sets o->ranks to their number. Exit 2 where flags, environment and token do not fit.
void ranks_place(Options *o);
// What it has understood of --rendezvous and --token, for tests; all zero where they are not given.
const CommMeeting *ranks_meeting(void);
// How many ranks share this machine's cores, as far as flags and environment say.
int ranks_here(const Options *o);
// The number of the GPU that this rank takes, where it takes one: of --gpus its own; else what the launcher counts on this machine, or 0.
int ranks_gpu(const Options *o, const Comm *c);
// A world of one: comm_none(), nothing is forked. With --ranks this function returns once in each rank, and never in the supervisor; with --rendezvous, when all have joined.
// agreed: a hash of all that ranks must agree on. Before: no thread may run, and nothing of OpenMP may have run.
Comm *ranks_start(const Options *o, int world, const uint8_t agreed[32]);
// From now on SIGINT and SIGTERM are wishes to stop after the step; before, they end the run at once.
void ranks_catch_signals(const Comm *c);
// Collective: dir (rank 0's) is the run's folder, for the advice in messages.
void ranks_share_folder(Comm *c, const char *dir);

// ---- what all ranks agree on after a step ----
enum { PHASE_DATA, PHASE_FORWARD, PHASE_BACKWARD, PHASE_UPDATE, PHASE_COUNT };
enum { STEPS_WATCHED = 10 };
typedef struct {
  double own[PHASE_COUNT];                            // seconds of this rank in the step under way
  double window[STEPS_WATCHED][COMM_MOST_RANKS][PHASE_COUNT];   // of all ranks in the last steps
  int steps;                                          // in the window
  int slow_rank;                                      // the one that `slow` names
} StepTimes;
// The signal that has asked this rank to stop, or 0.
int ranks_signal(void);
// Collective. Returns the signal that asks to stop, on any rank, or 0: the same on all ranks. Takes times->own, and sets it to
// zero. Every 10 steps `slow` names a rank that computes 1.25 times as long as the median of the others (and a millisecond longer), with the phase that
// lags most; else it is "". Of the ten steps the median counts: one that another program disturbed says nothing.
int ranks_agree(Comm *c, StepTimes *times, char slow[128]);
// Collective, at any time rank 0 has done something alone, however long that took: its heart says that it lives.
void ranks_wait_for_rank_0(Comm *c);
// Collective: the text of the lowest rank whose text is not empty, to all.
void ranks_first_text(Comm *c, char text[256]);
