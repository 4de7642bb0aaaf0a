/* ranks.pml: a model of what ranks do to each other in a training step, for the model checker spin (Holzmann 1997): three ranks, one of which may die at any moment.
 *
 * Each rank is two processes. COMPUTE hands over the buckets of a backward pass, waits until they are summed, and then all vote whether to stop (ranks_agree: a signal may have
 * come, and must end all after the same step). QUEUE sums the buckets (CommQueue in comm.c). A sum is comm_shared.c's: stage, wait for all, add, finish, wait for all.
 * The supervisor sees a rank that died and records the fault; whoever waits sees that.
 *
 * Checked over all interleavings (`make model-check`):
 *   no deadlock       whoever dies and when, every other process comes to its end
 *   same step         without a death all leave after the same step, and with the same sum of votes
 *   no stale vote     what is read between the two waits is what was staged for this step
 * -DBUG=1 the staging is written again before all have finished; 2 a waiting rank does not look for a fault; 3 a rank acts on its own view of the signal: spin must find each.
 */
#ifndef BUG
#define BUG 0
#endif
#define RANKS 3
#define STEPS 2
#define BUCKETS 2

byte staged[RANKS], finished[RANKS];        /* counters of calls */
byte staging[RANKS];                        /* what others read: the number of the call that it was staged for */
byte queued[RANKS], done[RANKS];            /* buckets handed over, summed */
bool vote[RANKS], dead[RANKS], left[RANKS], fault, stop;
byte last[RANKS], deaths;

/* At any moment, but once: its own death, or that of its other half. */
#define MAY_DIE if :: atomic { deaths == 0 -> deaths = 1; dead[me] = true }; goto out :: dead[me] -> goto out :: true fi

/* Until all ranks' counters have come to the own one. */
#define WAIT_FOR_ALL(counter) \
  r = 0; \
  do \
  :: r < RANKS && counter[r] >= counter[me] -> r++ \
  :: r < RANKS && counter[r] < counter[me] && dead[me] -> goto out \
  LOOK_FOR_FAULT(counter) \
  :: r == RANKS -> break \
  od
#if BUG == 2
#define LOOK_FOR_FAULT(counter)
#else
#define LOOK_FOR_FAULT(counter) \
  :: r < RANKS && counter[r] < counter[me] && fault -> goto out \
  :: r < RANKS && counter[r] < counter[me] && left[r] -> assert(deaths > 0); fault = true; goto out
#endif
#define READ_ALL r = 0; do :: r < RANKS -> assert(dead[r] || staging[r] == staged[me]); any = any || vote[r]; r++ :: r == RANKS -> break od

inline sum() {
  staging[me] = staged[me] + 1;
  staged[me]++;
  WAIT_FOR_ALL(staged);
#if BUG == 1
  finished[me]++;
  READ_ALL;
#else
  READ_ALL;
  finished[me]++;
  WAIT_FOR_ALL(finished);
#endif
}

proctype compute(byte me) {
  byte r, step, bucket;
  bool any;
  do
  :: step < STEPS ->
     step++;
     bucket = 0;
     do
     :: bucket < BUCKETS -> MAY_DIE; queued[me]++; bucket++
     :: bucket == BUCKETS -> break
     od;
     if :: done[me] == queued[me] :: fault -> goto out :: dead[me] -> goto out fi;
     MAY_DIE;
     vote[me] = stop;
     any = false;
     sum();
#if BUG == 3
     any = stop;
#endif
     if :: any -> break :: else -> skip fi
  :: step == STEPS -> break
  od;
  last[me] = step;
  left[me] = true;
out: skip
}

proctype queue(byte me) {
  byte r;
  bool any;
  do
  :: done[me] < queued[me] ->
     sum();
     MAY_DIE;
     done[me]++
  :: left[me] || fault || dead[me] -> break
  od;
out: skip
}

proctype supervise() {
  do
  :: (dead[0] || dead[1] || dead[2]) && !fault -> fault = true
  :: fault || (left[0] && left[1] && left[2]) -> break
  od
}

proctype signal_comes() { if :: stop = true :: skip fi }

/* With a death it need not come to this. */
proctype agree() {
end: (left[0] && left[1] && left[2]) -> assert(last[0] == last[1] && last[1] == last[2])
}

init {
  atomic {
    byte i = 0;
    do :: i < RANKS -> run compute(i); run queue(i); i++ :: i == RANKS -> break od;
    run supervise(); run signal_comes(); run agree()
  }
}
