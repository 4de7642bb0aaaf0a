// nccl_abi.c: holds nccl_abi.h against NVIDIA's header: compiled, never run, by dev/peers/nccl.sh. Every difference is an error of the compiler.
#include <nccl.h>
#include "nccl_abi.h"

_Static_assert((int)ncclSuccess == NCCL_SUCCESS && (int)ncclInProgress == NCCL_IN_PROGRESS, "results");
_Static_assert((int)ncclUint8 == NCCL_UINT8 && (int)ncclFloat32 == NCCL_FLOAT32 && (int)ncclFloat64 == NCCL_FLOAT64 && (int)ncclSum == NCCL_SUM, "types and operations");
_Static_assert(sizeof(ncclResult_t) == sizeof(int) && sizeof(ncclDataType_t) == sizeof(int) && sizeof(ncclRedOp_t) == sizeof(int), "enumerations are passed as int");
_Static_assert(sizeof(ncclUniqueId) == sizeof(NcclId), "the id");
_Static_assert(sizeof(NcclConfig) <= sizeof(ncclConfig_t) && offsetof(NcclConfig, size) == offsetof(ncclConfig_t, size) && offsetof(NcclConfig, magic) == offsetof(ncclConfig_t, magic) &&
               offsetof(NcclConfig, version) == offsetof(ncclConfig_t, version) && offsetof(NcclConfig, blocking) == offsetof(ncclConfig_t, blocking), "the configuration");
_Static_assert(NCCL_LEAST_VERSION == NCCL_VERSION(2, 14, 0) && NCCL_VERSION_CODE >= NCCL_LEAST_VERSION, "versions");
extern const ncclConfig_t configuration;
const ncclConfig_t configuration = NCCL_CONFIG_INITIALIZER;
extern const unsigned magic;
const unsigned magic = NCCL_CONFIG_MAGIC;

// The functions, with the header's own types in the places of ours: a pointer that does not fit is an error.
#define FITS(name, result, parameters) static result (*const fits_##name) parameters = name
FITS(ncclGetVersion, ncclResult_t, (int *));
FITS(ncclGetUniqueId, ncclResult_t, (ncclUniqueId *));
FITS(ncclCommInitRankConfig, ncclResult_t, (ncclComm_t *, int, ncclUniqueId, int, ncclConfig_t *));
FITS(ncclCommFinalize, ncclResult_t, (ncclComm_t));
FITS(ncclCommDestroy, ncclResult_t, (ncclComm_t));
FITS(ncclCommAbort, ncclResult_t, (ncclComm_t));
FITS(ncclCommGetAsyncError, ncclResult_t, (ncclComm_t, ncclResult_t *));
FITS(ncclGetErrorString, const char *, (ncclResult_t));
FITS(ncclGetLastError, const char *, (ncclComm_t));
FITS(ncclAllReduce, ncclResult_t, (const void *, void *, size_t, ncclDataType_t, ncclRedOp_t, ncclComm_t, cudaStream_t));
FITS(ncclReduce, ncclResult_t, (const void *, void *, size_t, ncclDataType_t, ncclRedOp_t, int, ncclComm_t, cudaStream_t));
FITS(ncclReduceScatter, ncclResult_t, (const void *, void *, size_t, ncclDataType_t, ncclRedOp_t, ncclComm_t, cudaStream_t));
FITS(ncclAllGather, ncclResult_t, (const void *, void *, size_t, ncclDataType_t, ncclComm_t, cudaStream_t));
FITS(ncclBroadcast, ncclResult_t, (const void *, void *, size_t, ncclDataType_t, int, ncclComm_t, cudaStream_t));
FITS(ncclSend, ncclResult_t, (const void *, size_t, ncclDataType_t, int, ncclComm_t, cudaStream_t));
FITS(ncclRecv, ncclResult_t, (void *, size_t, ncclDataType_t, int, ncclComm_t, cudaStream_t));
FITS(ncclGroupStart, ncclResult_t, (void));
FITS(ncclGroupEnd, ncclResult_t, (void));
