// nccl.cpp: owns the NCCL stand-in; see cpu/nccl.h.  Every rank is a process; they share one POSIX shared-memory object.
// Collectives are checked: all ranks must call the same one with the same arguments (real NCCL would hang).
#include "nccl.h"
#include <atomic>
#include <fcntl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>
#include <vector>
static const int MAXR = 16; static const size_t CHUNK = 256 << 10, BOX = 64 << 10;
struct Desc { long op; size_t n; long type, red, root; };   // no padding: compared with memcmp
struct Box { std::atomic<long> written, read; size_t len; char data[BOX]; };
struct Shm {
    std::atomic<int> joined, arrived, generation, failed;
    Desc desc[MAXR];
    char stage[MAXR][CHUNK];
    Box box[MAXR][MAXR];                                    // [from][to]
};
struct ncclComm { Shm *m; int rank, n; char name[64]; };
static const char *OPS[] = {"ncclAllReduce", "ncclReduceScatter", "ncclAllGather", "ncclBroadcast"};
static size_t size_of(int t) { static const size_t s[] = {1, 1, 4, 4, 8, 8, 2, 4, 8, 2}; return s[t]; }
static double secs() { timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec + 1e-9 * t.tv_nsec; }
static void wait_for(ncclComm *c, const std::function<bool()> &ok, const char *what) {
    double limit = secs() + (getenv("GPT_NCCL_TIMEOUT") ? atof(getenv("GPT_NCCL_TIMEOUT")) : 30);
    for (int spin = 0; !ok(); spin++) {
        if (c->m->failed) { fprintf(stderr, "nccl_on_cpu: rank %d: another rank failed\n", c->rank); _exit(71); }
        if (secs() > limit) { c->m->failed = 1; fprintf(stderr, "nccl_on_cpu: rank %d waited too long in %s: the other ranks do not take part\n", c->rank, what); _exit(71); }
        if (spin > 100) usleep(20);
    }
}
static void barrier(ncclComm *c, const char *what) {
    int g = c->m->generation;
    if (++c->m->arrived == c->n) { c->m->arrived = 0; c->m->generation++; }
    else wait_for(c, [=] { return c->m->generation != g; }, what);
}
static double get(const char *p, int t, size_t i) {
    switch (t) {
    case ncclInt8: return ((int8_t *)p)[i]; case ncclUint8: return ((uint8_t *)p)[i]; case ncclInt32: return ((int32_t *)p)[i]; case ncclUint32: return ((uint32_t *)p)[i];
    case ncclInt64: return (double)((int64_t *)p)[i]; case ncclUint64: return (double)((uint64_t *)p)[i]; case ncclFloat32: return ((float *)p)[i]; case ncclFloat64: return ((double *)p)[i];
    case ncclBfloat16: return (float)((__nv_bfloat16 *)p)[i]; default: cuemu::fail("nccl_on_cpu: data type %d", t);
    }
}
static void put(char *p, int t, size_t i, double v) {
    switch (t) {
    case ncclInt8: ((int8_t *)p)[i] = (int8_t)v; break; case ncclUint8: ((uint8_t *)p)[i] = (uint8_t)v; break; case ncclInt32: ((int32_t *)p)[i] = (int32_t)v; break; case ncclUint32: ((uint32_t *)p)[i] = (uint32_t)v; break;
    case ncclInt64: ((int64_t *)p)[i] = (int64_t)v; break; case ncclUint64: ((uint64_t *)p)[i] = (uint64_t)v; break; case ncclFloat32: ((float *)p)[i] = (float)v; break; case ncclFloat64: ((double *)p)[i] = v; break;
    case ncclBfloat16: ((__nv_bfloat16 *)p)[i] = __nv_bfloat16((float)v); break; default: cuemu::fail("nccl_on_cpu: data type %d", t);
    }
}
static double combine(int op, double a, double b) { return op == ncclProd ? a * b : op == ncclMax ? (a > b ? a : b) : op == ncclMin ? (a < b ? a : b) : a + b; }
// Stage one chunk per rank, then every rank reads what it needs.  Sums go round the ring as in NCCL: piece p starts at
// rank p+1 and is rounded to the data type after every hop, so bf16 sums lose the precision they lose on GPUs.
static void collective(ncclComm *c, Desc d, const void *send, void *recv) {
    Shm *m = c->m;
    size_t es = size_of(d.type), per = CHUNK / es;
    size_t nsend = d.op == 1 ? d.n * c->n : d.n, nrecv = d.op == 2 ? d.n * c->n : d.n;
    if (nsend && !cuemu::in_device(send, nsend * es)) cuemu::fail("%s: the send buffer is not a device range of %zu bytes", OPS[d.op], nsend * es);
    if (nrecv && !cuemu::in_device(recv, nrecv * es)) cuemu::fail("%s: the receive buffer is not a device range of %zu bytes", OPS[d.op], nrecv * es);
    m->desc[c->rank] = d;
    barrier(c, OPS[d.op]);
    for (int r = 0; r < c->n; r++) if (memcmp(&m->desc[r], &d, sizeof d)) {
        m->failed = 1;
        fprintf(stderr, "nccl_on_cpu: rank %d calls %s(count %zu, type %ld, op %ld, root %ld), rank %d calls %s(count %zu, type %ld, op %ld, root %ld)\n", c->rank, OPS[d.op], d.n, d.type, d.red, d.root, r, OPS[m->desc[r].op], m->desc[r].n, m->desc[r].type, m->desc[r].red, m->desc[r].root);
        _exit(71);
    }
    std::vector<char> out(nrecv * es), acc(es);             // out: send and recv may be the same buffer
    for (size_t o = 0; o < nsend; o += per) {
        size_t n = std::min(per, nsend - o);
        if (d.op != 3 || c->rank == d.root) memcpy(m->stage[c->rank], (char *)send + o * es, n * es);
        barrier(c, OPS[d.op]);
        if (d.op == 3) memcpy(&out[o * es], m->stage[d.root], n * es);
        else if (d.op == 2) for (int r = 0; r < c->n; r++) memcpy(&out[(r * d.n + o) * es], m->stage[r], n * es);
        else for (size_t i = 0; i < n; i++) {
            size_t gi = o + i; int piece = d.op == 1 ? (int)(gi / d.n) : (int)(gi * c->n / d.n);
            if (d.op == 1 && piece != c->rank) continue;
            double v = get(m->stage[(piece + 1) % c->n], d.type, i);
            for (int k = 2; k <= c->n; k++) { put(acc.data(), d.type, 0, combine(d.red, v, get(m->stage[(piece + k) % c->n], d.type, i))); v = get(acc.data(), d.type, 0); }
            put(out.data(), d.type, d.op == 1 ? gi - piece * d.n : gi, d.red == ncclAvg ? v / c->n : v);
        }
        barrier(c, OPS[d.op]);
    }
    memcpy(recv, out.data(), out.size());
}
struct P2P { ncclComm *c; bool send; char *buf; size_t left; int peer; };
static bool progress(P2P &x) {                              // returns true when finished
    Box &b = x.send ? x.c->m->box[x.c->rank][x.peer] : x.c->m->box[x.peer][x.c->rank];
    if (x.send) { if (b.written != b.read) return false; b.len = std::min(x.left, BOX); memcpy(b.data, x.buf, b.len); x.buf += b.len; x.left -= b.len; b.written++; }
    else { if (b.written == b.read) return false; if (b.len > x.left) cuemu::fail("ncclRecv from rank %d: the message is longer than the receive count", x.peer); memcpy(x.buf, b.data, b.len); x.buf += b.len; x.left -= b.len; b.read++; }
    return !x.left;
}
static void run_p2p(std::vector<P2P> v) {
    if (v.empty()) return;
    ncclComm *c = v[0].c;
    wait_for(c, [&] {
        for (size_t i = 0; i < v.size();) {
            bool blocked = false;                           // messages of one direction and peer keep their order
            for (size_t j = 0; j < i; j++) blocked |= v[j].send == v[i].send && v[j].peer == v[i].peer;
            if (!blocked && progress(v[i])) v.erase(v.begin() + i); else i++;
        }
        return v.empty();
    }, "ncclSend/ncclRecv");
}
static int depth; static std::vector<std::pair<cudaStream_t, std::function<void()>>> group; static std::vector<P2P> group_p2p; static cudaStream_t p2p_stream;
static ncclResult_t enqueue(cudaStream_t st, std::function<void()> f) { if (depth) group.push_back({st, f}); else cuemu::submit(st, f); return ncclSuccess; }
static ncclResult_t p2p(P2P x, cudaStream_t st) {
    if (x.left && !cuemu::in_device(x.buf, x.left)) cuemu::fail("%s: the buffer is not a device range", x.send ? "ncclSend" : "ncclRecv");
    if (depth) { group_p2p.push_back(x); p2p_stream = st; } else cuemu::submit(st, [x] { run_p2p({x}); });
    return ncclSuccess;
}
ncclResult_t ncclGroupStart() { depth++; return ncclSuccess; }
ncclResult_t ncclGroupEnd() {
    if (--depth) return ncclSuccess;
    for (auto &g : group) cuemu::submit(g.first, g.second);
    if (!group_p2p.empty()) { auto v = group_p2p; cuemu::submit(p2p_stream, [v] { run_p2p(v); }); }
    group.clear(); group_p2p.clear();
    return ncclSuccess;
}
ncclResult_t ncclAllReduce(const void *s, void *r, size_t n, ncclDataType_t t, ncclRedOp_t op, ncclComm_t c, cudaStream_t st) { Desc d; memset(&d, 0, sizeof d); d.op = 0; d.n = n; d.type = t; d.red = op; return enqueue(st, [=] { collective(c, d, s, r); }); }
ncclResult_t ncclReduceScatter(const void *s, void *r, size_t n, ncclDataType_t t, ncclRedOp_t op, ncclComm_t c, cudaStream_t st) { Desc d; memset(&d, 0, sizeof d); d.op = 1; d.n = n; d.type = t; d.red = op; return enqueue(st, [=] { collective(c, d, s, r); }); }
ncclResult_t ncclAllGather(const void *s, void *r, size_t n, ncclDataType_t t, ncclComm_t c, cudaStream_t st) { Desc d; memset(&d, 0, sizeof d); d.op = 2; d.n = n; d.type = t; return enqueue(st, [=] { collective(c, d, s, r); }); }
ncclResult_t ncclBroadcast(const void *s, void *r, size_t n, ncclDataType_t t, int root, ncclComm_t c, cudaStream_t st) { Desc d; memset(&d, 0, sizeof d); d.op = 3; d.n = n; d.type = t; d.root = root; return enqueue(st, [=] { collective(c, d, s, r); }); }
ncclResult_t ncclSend(const void *s, size_t n, ncclDataType_t t, int peer, ncclComm_t c, cudaStream_t st) { return p2p({c, true, (char *)s, n * size_of(t), peer}, st); }
ncclResult_t ncclRecv(void *r, size_t n, ncclDataType_t t, int peer, ncclComm_t c, cudaStream_t st) { return p2p({c, false, (char *)r, n * size_of(t), peer}, st); }
ncclResult_t ncclGetVersion(int *v) { *v = 22809; return ncclSuccess; }
ncclResult_t ncclGetUniqueId(ncclUniqueId *id) {
    static int k; memset(id, 0, sizeof *id);
    snprintf(id->internal, 64, "/nccl_cpu_%d_%d", getpid(), k++);
    int fd = shm_open(id->internal, O_CREAT | O_EXCL | O_RDWR, 0600);
    if (fd < 0 || ftruncate(fd, sizeof(Shm))) return ncclSystemError;
    close(fd);
    return ncclSuccess;
}
ncclResult_t ncclCommInitRank(ncclComm_t *c, int n, ncclUniqueId id, int rank) {
    if (n > MAXR || rank < 0 || rank >= n) return ncclInvalidArgument;
    int fd = shm_open(id.internal, O_RDWR, 0600);
    if (fd < 0) return ncclSystemError;
    void *p = mmap(nullptr, sizeof(Shm), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    ncclComm *x = new ncclComm{(Shm *)p, rank, n, {}};
    x->m->joined++;
    wait_for(x, [=] { return x->m->joined >= n; }, "ncclCommInitRank");
    if (rank == 0) shm_unlink(id.internal);                 // the mapping lives on; nothing is left behind after a crash
    *c = x;
    return ncclSuccess;
}
ncclResult_t ncclCommDestroy(ncclComm_t c) { munmap(c->m, sizeof(Shm)); delete c; return ncclSuccess; }
ncclResult_t ncclCommCount(ncclComm_t c, int *n) { *n = c->n; return ncclSuccess; }
ncclResult_t ncclCommUserRank(ncclComm_t c, int *r) { *r = c->rank; return ncclSuccess; }
const char *ncclGetErrorString(ncclResult_t r) { return r == ncclSuccess ? "no error" : "nccl error"; }
