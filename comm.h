// comm.h: the second contract: what the ranks of a run say to each other. Every transport promises the same.
//
// A RANK is one process that trains the same model on its own part of a step. Transports (comm.c: none; comm_shared.c:
// processes on one machine over shared memory; comm_tcp.c: processes of any machines; comm_nccl.c: their GPUs) implement one struct of
// functions; flow calls them and knows no more.
// A world of one rank is a value, not a branch: its calls return at once.
//
// ORDER. All ranks make the same calls in the same order with the same sizes; a rank that makes another call, or none, is named.
// One thread of a rank calls at a time.
//
// SAME BITS. A sum of N ranks is the chain x0 + x1 + ... + x(N-1) in rank order, whoever adds, so that every rank gets the
// same bits, and the same again from run to run. NCCL adds in an order of its own, which depends on n, N and the machine: the same for all ranks.
//
// PARTS. comm_part cuts n elements into one part for each rank, on multiples of 16 elements; a rank's part may be empty.
//
// MEMORY. A transport says by its kind where x lies: shared memory and TCP take the process's own memory, NCCL the memory of the rank's GPU. So
// a run has two: one for what ranks say to each other, and comm_nccl_join's for the arrays of the device, which is the same one where that has no memory of its own.
//
// BYTES. bytes_received counts what a rank reads from others: for all_reduce of S bytes over N ranks 2 (N-1)/N S, for
// reduce_scatter and all_gather (N-1)/N S each: what a ring sends (Patarasuk & Yuan 2009), and no algorithm needs less. NCCL does not tell: these numbers are taken.
//
// FAULTS. No call waits for ever: a rank that ended, was stopped, came with another call, or did not come before the deadline ends the
// wait of all, and one sentence names it with operation, bytes and step. A call that fails does not return.
// Tests: tests/test_comm.c, and of each file tests/test_queue.c, test_shared.c, test_tcp.c, test_nccl.c
#pragma once
#include <pthread.h>     // pthread_t
#include <stdatomic.h>   // the counters that other threads read
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum { COMM_F32, COMM_F64, COMM_16 /* two bytes of whatever kind: gathered, never added */ } CommType;
typedef enum { CALL_NONE, CALL_ALL_REDUCE, CALL_REDUCE_SCATTER, CALL_ALL_GATHER, CALL_BROADCAST, CALL_SEND, CALL_RECEIVE, CALL_BARRIER, CALL_COUNT } CommCall;
typedef struct Comm Comm;
struct Device;

struct Comm {
  int rank, world;              // 0 <= rank < world
  const char *transport;        // "none", "shared memory", "TCP", "NCCL x.y"
  double deadline;              // seconds that a call waits for ranks which are alive; long, for one may be validating
  int64_t step;                 // set by the caller; named in messages
  uint64_t bytes_received;      // from other ranks, so far
  double seconds;               // spent in calls, so far
  void *state;                  // the transport's own

  void (*all_reduce)(Comm *c, void *x /* = sum over ranks, (n) */, size_t n, CommType type);
  // Only the own part of x is set; the others stay as they were.
  void (*reduce_scatter)(Comm *c, void *x /* = in the own part, (n) */, size_t n, CommType type);
  void (*all_gather)(Comm *c, void *x /* = in the parts of others, (n) */, size_t n, CommType type);
  void (*broadcast)(Comm *c, void *x /* = but on root, (bytes) */, size_t bytes, int root);
  void (*send)(Comm *c, const void *x, size_t bytes, int to);          // returns when the receiver has taken it
  void (*receive)(Comm *c, void *x /* = */, size_t bytes, int from);
  void (*barrier)(Comm *c);
  void (*destroy)(Comm *c);     // this rank leaves in peace

  // ---- of a transport whose calls only give work to the device; NULL where a call returns when it is done ----
  // CALL_ALL_REDUCE or CALL_REDUCE_SCATTER of x as it will be when the device has done all that it has been given so far; returns at once.
  void (*begin)(Comm *c, CommCall call, void *x, size_t n, CommType type);
  void (*finish)(Comm *c);      // until all that was begun is done

  // ---- for a transport that rides on this one (comm_nccl.c): what makes its faults those of the group. NULL where none may ----
  void (*meet)(Comm *c, CommCall call, uint64_t bytes, int detail);   // a barrier to which all ranks must come with the same three
  void (*announce)(Comm *c, CommCall call, uint64_t bytes);           // what this rank is doing, for messages; CALL_NONE: nothing any more
  bool (*fault_known)(Comm *c);                   // call it about every 50 ms while waiting: the group has a fault (a rank ended, stands still, ...)
  void (*report)(Comm *c, const char *text);      // this rank has found one; the first of a group counts
  void (*leave)(Comm *c);                         // after either: ends the process
};

typedef struct { size_t first, n; } CommPart;   // in elements
CommPart comm_part(size_t n, int world, int rank);
static inline size_t comm_type_size(CommType type) { return type == COMM_F32 ? sizeof(float) : type == COMM_F64 ? sizeof(double) : 2; }

Comm *comm_none(void);          // a world of one

// ---- for transports ----
// out = parts[0] + parts[1] + ... + parts[world-1], (n) each, element by element in this order; out may be one of them.
void comm_add(void *out, const void *const *parts, int world, size_t n, CommType type);
extern const char *const comm_call_names[CALL_COUNT];
// "in all_reduce of 4096 bytes at step 17", or "between collectives (0 bytes under way) at step 17"
enum { COMM_WHERE_ROOM = 128 };
void comm_where(char text[COMM_WHERE_ROOM], CommCall call, uint64_t bytes, int64_t step);
void comm_check_peer(const Comm *c, const char *call, int peer);   // exit 3: there is no such other rank
// A thread that takes no signals: their handlers belong to the rank's first thread. Exit 3 if the system refuses it.
void comm_start_thread(pthread_t *thread, void *(*work)(void *), void *context);
// Mutexes that notice mistakes: one that is taken twice, given back or waited with by a thread that does not hold it ends the program, exit 3.
#define COMM_MUTEX_INITIALIZER PTHREAD_ERRORCHECK_MUTEX_INITIALIZER_NP
void comm_lock(pthread_mutex_t *m);
void comm_unlock(pthread_mutex_t *m);
void comm_wait(pthread_cond_t *changed, pthread_mutex_t *m);

// ---- collectives beside the computation (comm.c): a thread that makes the calls given to it, in order; or the device itself (begin, finish) ----
// While it has work, no other thread of the rank may use the communicator: comm_queue_wait comes first.
typedef struct CommQueue CommQueue;
CommQueue *comm_queue_create(Comm *c);                     // a world of one needs no thread, and gets none
// call: CALL_ALL_REDUCE or CALL_REDUCE_SCATTER. x is the queue's until comm_queue_wait
void comm_queue_add(CommQueue *q, CommCall call, void *x, size_t n, CommType type);
void comm_queue_wait(CommQueue *q);                        // until all that was added is done
typedef struct { uint64_t bytes, calls; double busy, waited; } CommQueueTimes;   // received bytes; seconds in calls; seconds of them that were waited for
CommQueueTimes comm_queue_times(CommQueue *q);             // since the last call of this function
void comm_queue_destroy(CommQueue *q);                     // NULL is fine

// ---- shared memory between processes of one machine (comm_shared.c) ----
// The memory is anonymous and made before the fork: it has no name, so that nothing is left behind even if all are killed.
typedef struct CommShared CommShared;
enum { COMM_MOST_RANKS = 64 };
enum { COMM_STILL_SECONDS = 20 };   // a heart beats twenty times a second: one that stands still this long is stopped or dead
CommShared *comm_shared_create(int world, double still_seconds);   // exit 3 if the system refuses it
void comm_shared_free(CommShared *s);                      // this process's view of it
// Called once by each rank, after the fork. A thread of its own keeps the heart beating until destroy.
Comm *comm_shared_join(CommShared *s, int rank);

// The first fault of the group. Whoever finds it records it; later ones change nothing. A rank whose wait is ended by a
// fault exits silently with EXIT_MACHINE: the supervisor says the sentence.
void comm_shared_abort(CommShared *s, int rank, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
enum { COMM_FAULT_ROOM = 512 };
bool comm_shared_fault(CommShared *s, int *rank, char text[COMM_FAULT_ROOM]);   // false: none so far
void comm_shared_where(const CommShared *s, int rank, char text[COMM_WHERE_ROOM]);   // where a rank is, for messages
bool comm_shared_left(const CommShared *s, int rank);      // it has called destroy
// Call about ten times a second: records a rank whose heart has stood still for too long.
void comm_shared_watch(CommShared *s);
// Memory for the supervisor and its ranks: a signal that asks all to stop, and the run's folder.
typedef struct { _Atomic int stop_signal, training; char folder[4096]; } CommBoard;
CommBoard *comm_shared_board(CommShared *s);

// ---- NCCL between the GPUs of ranks (comm_nccl.c; cuda_missing.c in a build without CUDA) ----
// The transport for arrays that live where d computes: NCCL's, riding on host, where d has memory of its own; else host itself. Collective. Host has the deadline
// and the step, and outlives what is returned; one call at a time on the two together. Exit 3: NCCL is not found, is too old, or does not start.
Comm *comm_nccl_join(Comm *host, struct Device *d);
enum { COMM_NCCL_VERSION_ROOM = 16 };
const char *comm_nccl_version(char text[COMM_NCCL_VERSION_ROOM]);   // NULL, and text is as "2.28.9"; or why there is none, without a full stop

// ---- TCP between processes of any machines (comm_tcp.c) ----
typedef struct {
  int rank, world;             // world at least 2
  const char *host;            // the rendezvous: where rank 0 listens, and the others come to
  uint32_t port;
  const void *token;           // a secret that all ranks of the run share, and nobody else
  size_t token_bytes;
  const char *version;         // of the program; and a hash of what all ranks must agree on: another one is refused
  uint8_t run[32];
  double seconds;              // to wait for the others until all have joined
  double still_seconds;        // a rank without a pulse for so long is stopped, or its machine is gone
  bool own_process;            // no other rank lives in this process: its fail() tells the others
  void (*say)(const char *text);   // prints the one line when a rank is lost; called by the lowest rank that is left
} CommMeeting;
// Returns when all ranks have joined. Exit 2: refused, with the reason. Exit 3: nobody there, too late, no such address.
Comm *comm_tcp_join(const CommMeeting *meeting);
