// nccl_abi.h: what comm_nccl.c uses of NVIDIA's NCCL: names, values and layouts as facts of its C interface, so that neither header nor library is needed
// to build (NCCL documentation, "NCCL API": Types, Communicator Creation and Management, Collective, Point To Point, Group Calls). They are the same in all
// versions from 2.14, the first whose communicators need not block (ncclConfig_t). dev/peers/nccl_abi.c holds them against NVIDIA's own header.
// Tests: dev/peers/nccl.sh
#pragma once
#include <limits.h>   // INT_MIN
#include <stddef.h>

enum { NCCL_SUCCESS = 0, NCCL_IN_PROGRESS = 7 };                  // ncclResult_t; all others are errors
enum { NCCL_UINT8 = 1, NCCL_FLOAT32 = 7, NCCL_FLOAT64 = 8 };      // ncclDataType_t
enum { NCCL_SUM = 0 };                                            // ncclRedOp_t
enum { NCCL_LEAST_VERSION = 21400 };                              // 10000 major + 100 minor + patch, from 2.9 on

typedef struct { char bytes[128]; } NcclId;                       // ncclUniqueId, passed by value
// ncclConfig_t as it was in 2.14: later versions take the fields behind these as not set where `version` is an older one.
typedef struct { size_t size; unsigned magic, version; int blocking; } NcclConfig;
#define NCCL_CONFIG_MAGIC 0xcafebeefu

// NCCL(field, "symbol", result, parameters): enumerations are passed as int, communicators and streams (cudaStream_t) as pointers
#define NCCL_FUNCTIONS(NCCL) \
  NCCL(get_version, "ncclGetVersion", int, (int *version)) \
  NCCL(get_id, "ncclGetUniqueId", int, (NcclId *id)) \
  NCCL(init, "ncclCommInitRankConfig", int, (void **comm, int ranks, NcclId id, int rank, NcclConfig *config)) \
  NCCL(finalize, "ncclCommFinalize", int, (void *comm)) \
  NCCL(destroy, "ncclCommDestroy", int, (void *comm)) \
  NCCL(abort, "ncclCommAbort", int, (void *comm)) \
  NCCL(get_async_error, "ncclCommGetAsyncError", int, (void *comm, int *error)) \
  NCCL(error_string, "ncclGetErrorString", const char *, (int result)) \
  NCCL(last_error, "ncclGetLastError", const char *, (void *comm)) \
  NCCL(all_reduce, "ncclAllReduce", int, (const void *send, void *receive, size_t count, int type, int op, void *comm, void *stream)) \
  NCCL(reduce, "ncclReduce", int, (const void *send, void *receive, size_t count, int type, int op, int root, void *comm, void *stream)) \
  NCCL(reduce_scatter, "ncclReduceScatter", int, (const void *send, void *receive, size_t count, int type, int op, void *comm, void *stream)) \
  NCCL(all_gather, "ncclAllGather", int, (const void *send, void *receive, size_t count, int type, void *comm, void *stream)) \
  NCCL(broadcast, "ncclBroadcast", int, (const void *send, void *receive, size_t count, int type, int root, void *comm, void *stream)) \
  NCCL(send, "ncclSend", int, (const void *send, size_t count, int type, int peer, void *comm, void *stream)) \
  NCCL(receive, "ncclRecv", int, (void *receive, size_t count, int type, int peer, void *comm, void *stream)) \
  NCCL(group_start, "ncclGroupStart", int, (void)) \
  NCCL(group_end, "ncclGroupEnd", int, (void))

typedef struct {
#define NCCL_FIELD(field, symbol, result, parameters) result (*field) parameters;
  NCCL_FUNCTIONS(NCCL_FIELD)
#undef NCCL_FIELD
} NcclLibrary;
