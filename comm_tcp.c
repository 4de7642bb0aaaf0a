// comm_tcp.c: owns the TCP transport of comm.h: ranks that are processes of any machines, started by Slurm, by MPI or by hand.
//
// JOINING. Rank 0 listens at the rendezvous; the others come there, and learn where everybody listens. Then each pair has two connections: DATA, and
// PULSE, which carries a byte four times a second and the news that a rank failed or left. Who connects says who it is (Hello); both sides prove with HMAC-SHA256
// (RFC 2104) over each other's random numbers that they know the run's token, which itself is never sent. A stranger, a rank of another version, of
// another run or of another world is refused with a sentence. What is sent later is neither encrypted nor signed: a network of one's own is needed.
//
// A COLLECTIVE is a few exchanges: each rank sends to some others and receives from them at the same time (poll), piece by piece. In the first one all tell which
// call they make. A sum goes by parts: rank r receives everybody's part r, adds in rank order, and sends the sum to all: the bytes of a ring, in two turns.
// Tests: tests/test_tcp.c, tests/test_comm.c, tests/test_join.sh
#include "comm.h"
#include "util.h"            // fail, xcalloc, seconds_now
#include <errno.h>           // errno
#include <fcntl.h>           // fcntl
#include <math.h>            // INFINITY
#include <netdb.h>           // getaddrinfo
#include <netinet/tcp.h>     // TCP_NODELAY
#include <poll.h>            // poll
#include <pthread.h>         // pthread_join
#include <stdlib.h>          // free
#include <string.h>          // memcpy
#include <sys/random.h>      // getrandom
#include <sys/socket.h>      // socket
#include <unistd.h>          // close, _exit

enum { STAGING = 262144 };     // bytes that a rank receives from one other before they are added

enum { ALIVE, LEFT, LOST };
typedef struct {
  int data, pulse;             // sockets, neither of which ever blocks
  _Atomic int state;           // LEFT: it has said so; LOST: its connection ended without a word
  _Atomic int still;           // whole seconds without a pulse
  double quiet;                // the same with its fraction; the heart's own
  _Atomic bool told;           // it has told this rank of a fault
  unsigned char news[520];     // what has come of a message on pulse; the heart's own
  size_t length;
} Peer;

typedef struct {
  int world, rank;
  double still_seconds;
  bool own_process;
  void (*say)(const char *text);
  Peer peers[COMM_MOST_RANKS];
  char *staging;               // (world, STAGING)
  CommCall call;               // under way, of `bytes`
  uint64_t bytes;
  pthread_t heart;
  pthread_mutex_t mutex;       // guards what follows, and writing to pulses
  bool quit, fault;
  int mute;                    // the rank that cannot speak of it, for it is gone or stands still; NOBODY: all can
  bool spoken;                 // the failing rank has said its line itself
  char fault_text[COMM_FAULT_ROOM];
} Member;

static Member *member(const Comm *c) { return c->state; }

#define FOR_OTHERS(r, o) for (int r = 0; r < (o)->world; r++) if (r != (o)->rank)     // o: a Comm or a Member; no else may follow

// ---- sockets ----

static void prepare_socket(int fd) {
  const int on = true;
  fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
  fcntl(fd, F_SETFD, FD_CLOEXEC);
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

// A message of a few kilobytes at the most, for which an idle socket always has room. false: the connection has ended, or nobody reads.
static bool send_message(int fd, const void *data, size_t n) { return send(fd, data, n, MSG_NOSIGNAL) == (ssize_t)n; }
// All n bytes, until `end` (seconds_now). false: it ended, or did not come in time.
static bool receive_message(int fd, void *data, size_t n, double end) {
  char *p = data;
  while (n) {
    const ssize_t got = recv(fd, p, n, 0);
    if (got > 0) { p += got; n -= (size_t)got; continue; }
    if (got == 0 || errno != EAGAIN || seconds_now() > end) return false;
    poll(&(struct pollfd){.fd = fd, .events = POLLIN}, 1, 50);
  }
  return true;
}

typedef struct { char host[64]; uint32_t port; } Address;   // numeric

// One's own, or the other's: which is getsockname or getpeername.
static Address address_of(int fd, int (*which)(int, struct sockaddr *, socklen_t *)) {
  struct sockaddr_storage s;
  socklen_t n = sizeof s;
  char port[16] = "";
  Address a = {.host = ""};
  which(fd, (struct sockaddr *)&s, &n);
  getnameinfo((struct sockaddr *)&s, n, a.host, sizeof a.host, port, sizeof port, NI_NUMERICHOST | NI_NUMERICSERV);
  a.port = (uint32_t)strtoul(port, NULL, 10);
  return a;
}

static struct addrinfo *look_up_host(const char *host, uint32_t port) {
  char text[16];
  struct addrinfo wish = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM}, *found;
  snprintf(text, sizeof text, "%u", port);
  const int error = getaddrinfo(host, text, &wish, &found);
  if (error) fail(EXIT_MACHINE, "--rendezvous %s:%u: the host is not found: %s", host, port, gai_strerror(error));
  return found;
}

// At this host's address only. port 0: any that is free.
static int listen_at(const char *host, uint32_t port) {
  struct addrinfo *found = look_up_host(host, port);
  const int on = true;
  int fd = -1, error = 0;
  for (struct addrinfo *a = found; a && fd < 0; a = a->ai_next) {
    fd = socket(a->ai_family, a->ai_socktype, 0);
    if (fd >= 0 && setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) == 0 && bind(fd, a->ai_addr, a->ai_addrlen) == 0 && listen(fd, SOMAXCONN) == 0) break;
    error = errno;
    close(fd);
    fd = -1;
  }
  freeaddrinfo(found);
  if (fd < 0) fail(EXIT_MACHINE, "--rendezvous %s:%u: rank 0 cannot listen there: %s; it must be an address of rank 0's machine and a port that is free", host, port, strerror(error));
  prepare_socket(fd);
  return fd;
}

// -1: nobody listens there.
static int connect_once(const struct addrinfo *a) {
  static const struct timeval PATIENCE = {.tv_sec = 2};      // one that does not answer at all may have been busy
  const int fd = socket(a->ai_family, a->ai_socktype, 0);
  setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &PATIENCE, sizeof PATIENCE);
  if (connect(fd, a->ai_addr, a->ai_addrlen)) { close(fd); return -1; }
  prepare_socket(fd);
  return fd;
}

// Tries until `end`, for the other may start later.
static int connect_to(const char *host, uint32_t port, double end) {
  struct addrinfo *found = look_up_host(host, port);
  int fd;
  for (;;) {
    fd = -1;
    for (struct addrinfo *a = found; a && fd < 0; a = a->ai_next) fd = connect_once(a);
    if (fd >= 0 || seconds_now() > end) break;
    usleep(20000);
  }
  freeaddrinfo(found);
  return fd;
}

// ---- who is there ----

enum { DIGEST = 32, VERSION_BYTES = 48, MOST_VERDICT = 400, PROTOCOL = 1 };
typedef enum { MEET, DATA, PULSE } Purpose;      // MEET: at the rendezvous; it becomes the DATA of its pair
static const char MAGIC[8] = "gpt rank";

typedef struct {                                 // sent as it is: fields of whole bytes, no padding
  char magic[8];
  uint8_t protocol[4], purpose[4], world[4], rank[4], port[4];   // port: where this rank listens
  char version[VERSION_BYTES];
  uint8_t run[DIGEST], nonce[DIGEST];
} Hello;
typedef struct { uint8_t nonce[DIGEST], proof[DIGEST]; } Challenge;
_Static_assert(sizeof(Hello) == 8 + 20 + VERSION_BYTES + 64 && sizeof(Challenge) == 64, "no padding");

static void hmac(const CommMeeting *m, const char *role, const Hello *hello, const uint8_t nonce[DIGEST], uint8_t out[DIGEST]) {
  uint8_t key[64] = {0}, inner[64], outer[64];
  Sha256 s;
  if (m->token_bytes > 64) { sha256_init(&s); sha256_update(&s, m->token, m->token_bytes); sha256_final(&s, key); } else memcpy(key, m->token, m->token_bytes);
  for (int i = 0; i < 64; i++) inner[i] = key[i] ^ 0x36, outer[i] = key[i] ^ 0x5c;
  sha256_init(&s);
  sha256_update(&s, inner, 64);
  sha256_update(&s, role, strlen(role));
  sha256_update(&s, hello, sizeof *hello);
  sha256_update(&s, nonce, DIGEST);
  sha256_final(&s, out);
  sha256_init(&s);
  sha256_update(&s, outer, 64);
  sha256_update(&s, out, DIGEST);
  sha256_final(&s, out);
}
// In a time that does not depend on where they differ.
static bool same_digest(const uint8_t *a, const uint8_t *b) {
  uint8_t different = 0;
  for (int i = 0; i < DIGEST; i++) different |= a[i] ^ b[i];
  return !different;
}
static void random_bytes(uint8_t out[DIGEST]) {
  if (getrandom(out, DIGEST, 0) != DIGEST) fail(EXIT_MACHINE, "the system gives no random numbers: %s", strerror(errno));
}

static Hello hello_of(const CommMeeting *m, Purpose purpose, uint32_t port) {
  Hello h = {0};
  memcpy(h.magic, MAGIC, sizeof MAGIC);
  store_u32le(h.protocol, PROTOCOL), store_u32le(h.purpose, purpose), store_u32le(h.world, (uint32_t)m->world), store_u32le(h.rank, (uint32_t)m->rank), store_u32le(h.port, port);
  snprintf(h.version, sizeof h.version, "%s", m->version);
  memcpy(h.run, m->run, DIGEST);
  random_bytes(h.nonce);
  return h;
}

// A connection to `host` with both proofs exchanged. whom: for messages
static int introduce(const CommMeeting *m, const char *host, uint32_t port, Purpose purpose, uint32_t own_port, const char *whom) {
  const double end = seconds_now() + m->seconds;
  const Hello hello = hello_of(m, purpose, own_port);
  Challenge challenge;
  uint8_t proof[DIGEST], length[4] = "";
  char verdict[MOST_VERDICT];
  int fd;
  for (;;) {                                    // who ends the connection at once may be ending, or just beginning
    fd = connect_to(host, port, end);
    if (fd < 0) fail(EXIT_MACHINE, "rank %d: nobody listens at %s:%u (%s) within %.0f seconds; is it running, and may this machine connect there?", m->rank, host, port, whom, m->seconds);
    if (send_message(fd, &hello, sizeof hello) && receive_message(fd, &challenge, sizeof challenge, end)) break;
    close(fd);
    if (seconds_now() > end) fail(EXIT_MACHINE, "rank %d: who listens at %s:%u (%s) does not answer as a rank", m->rank, host, port, whom);
    usleep(20000);
  }
  hmac(m, "server", &hello, challenge.nonce, proof);
  if (!same_digest(proof, challenge.proof)) fail(EXIT_REQUEST, "rank %d: who listens at %s:%u (%s) has another token: another run, or a stranger; give all ranks of a run the same --token", m->rank, host, port, whom);
  hmac(m, "client", &hello, challenge.nonce, proof);
  const bool answered = send_message(fd, proof, DIGEST) && receive_message(fd, length, sizeof length, end);
  const uint32_t n = load_u32le(length);
  if (!answered || n > sizeof verdict || !receive_message(fd, verdict, n, end)) fail(EXIT_MACHINE, "rank %d: %s:%u (%s) ended the connection while this rank was joining", m->rank, host, port, whom);
  if (n) fail(EXIT_REQUEST, "rank %d was refused by %s:%u (%s): %.*s", m->rank, host, port, whom, (int)n, verdict);
  return fd;
}

// ---- letting others in ----

enum { MOST_GUESTS = 256 };
static const double MOST_SILENCE = 10;           // seconds for the two messages of a hello; or a quarter of the meeting
typedef struct { int fd; double since; bool challenged; Challenge challenge; Hello hello; uint8_t proof[DIGEST]; size_t got; } Guest;
typedef struct {
  const CommMeeting *m;
  int listener;
  Guest guests[MOST_GUESTS];
  int count, refused;
  int sockets[3][COMM_MOST_RANKS];               // of those who have been let in, by purpose; -1: not yet
  Address addresses[COMM_MOST_RANKS];            // where they listen
} Door;

static void dismiss(Door *d, int i) {
  close(d->guests[i].fd);
  d->guests[i] = d->guests[--d->count];
}
// Strangers do not end a run, and do not fill its log either.
static void refuse_stranger(Door *d, int i, const char *why) {
  if (d->refused++ < 5) warn("a connection from %s was refused: %s", address_of(d->guests[i].fd, getpeername).host, why);
  dismiss(d, i);
}

// Why a rank that knows the token may not come in, to be freed; NULL: it may.
static char *objection(const Door *d, const Hello *h) {
  const uint32_t world = load_u32le(h->world), rank = load_u32le(h->rank), purpose = load_u32le(h->purpose);
  const int own = d->m->rank;
  if (strncmp(h->version, d->m->version, VERSION_BYTES)) return format("it is of version %.*s, rank %d of %s", VERSION_BYTES, h->version, own, d->m->version);
  if (world != (uint32_t)d->m->world) return format("it has --world %u, rank %d has --world %d", world, own, d->m->world);
  if (memcmp(h->run, d->m->run, DIGEST)) return format("its flags or its text are not those of rank %d: all ranks of a run need the same", own);
  if (purpose > PULSE || rank >= world || (int)rank <= own) return format("rank %u has no business with rank %d", rank, own);
  if (d->sockets[purpose][rank] >= 0) return format("rank %u is here already: two processes say that they are rank %u", rank, rank);
  return NULL;
}

static void answer_hello(Door *d, int i) {
  Guest *g = &d->guests[i];
  if (load_u32le(g->hello.protocol) != PROTOCOL) { refuse_stranger(d, i, "it is a rank of another version"); return; }
  random_bytes(g->challenge.nonce);
  hmac(d->m, "server", &g->hello, g->challenge.nonce, g->challenge.proof);
  g->challenged = true;
  g->got = 0;
  if (!send_message(g->fd, &g->challenge, sizeof g->challenge)) dismiss(d, i);
}

static void answer_proof(Door *d, int i) {
  Guest *g = &d->guests[i];
  uint8_t expected[DIGEST], length[4];
  hmac(d->m, "client", &g->hello, g->challenge.nonce, expected);
  if (!same_digest(expected, g->proof)) { refuse_stranger(d, i, "it does not know the token"); return; }
  char *why = objection(d, &g->hello);
  store_u32le(length, why ? (uint32_t)strlen(why) : 0);
  if (why) warn("rank %u, from %s, was refused: %s", load_u32le(g->hello.rank), address_of(g->fd, getpeername).host, why);
  const bool sent = send_message(g->fd, length, sizeof length) && (!why || send_message(g->fd, why, strlen(why)));
  if (why || !sent) { dismiss(d, i); free(why); return; }
  const uint32_t rank = load_u32le(g->hello.rank);
  d->sockets[load_u32le(g->hello.purpose)][rank] = g->fd;
  d->addresses[rank] = address_of(g->fd, getpeername);
  d->addresses[rank].port = load_u32le(g->hello.port);
  d->guests[i] = d->guests[--d->count];
}

// What has come from guest i. It may be dismissed, and another one stand in its place.
static void hear(Door *d, int i) {
  Guest *g = &d->guests[i];
  char *to = g->challenged ? (char *)g->proof : (char *)&g->hello;
  const size_t wanted = g->challenged ? DIGEST : sizeof g->hello;
  ssize_t n = recv(g->fd, to + g->got, wanted - g->got, 0);
  if (n <= 0) { dismiss(d, i); return; }
  g->got += (size_t)n;
  // whoever begins otherwise will not send more
  if (!g->challenged && memcmp(g->hello.magic, MAGIC, MIN(g->got, sizeof MAGIC))) { refuse_stranger(d, i, "it does not speak as a rank does"); return; }
  if (g->got < wanted) return;
  if (g->challenged) answer_proof(d, i);
  else answer_hello(d, i);
}

static bool complete(const Door *d, Purpose purpose) {
  for (int r = d->m->rank + 1; r < d->m->world; r++) if (d->sockets[purpose][r] < 0) return false;
  return true;
}

// Until all ranks above this one have come for this purpose.
static void let_in(Door *d, Purpose purpose) {
  const double end = seconds_now() + d->m->seconds, most_silence = MIN(MOST_SILENCE, 0.25 * d->m->seconds);
  struct pollfd fds[MOST_GUESTS + 1];
  while (!complete(d, purpose)) {
    const int count = d->count;
    for (int i = 0; i < count; i++) fds[i] = (struct pollfd){.fd = d->guests[i].fd, .events = POLLIN};
    fds[count] = (struct pollfd){.fd = count < MOST_GUESTS ? d->listener : -1, .events = POLLIN};
    poll(fds, (nfds_t)count + 1, 100);
    for (int i = count - 1; i >= 0; i--) {       // from the end: who takes a dismissed one's place has been heard
      if (fds[i].revents) hear(d, i);
      else if (seconds_now() - d->guests[i].since > most_silence) refuse_stranger(d, i, "it said nothing for too long");
    }
    int fd = fds[count].revents ? accept(d->listener, NULL, NULL) : -1;
    if (fd >= 0) {
      prepare_socket(fd);
      d->guests[d->count++] = (Guest){.fd = fd, .since = seconds_now()};
    }
    if (seconds_now() <= end) continue;
    Buffer missing = {0};
    for (int r = d->m->rank + 1; r < d->m->world; r++) if (d->sockets[purpose][r] < 0) buffer_printf(&missing, "%s%d", missing.len ? ", " : "", r);
    fail(EXIT_MACHINE, "rank %d waited %.0f seconds at the rendezvous; these ranks did not come: %s", d->m->rank, d->m->seconds, missing.data);
  }
}

// ---- faults ----

static void where_text(const Comm *c, char text[COMM_WHERE_ROOM]) { comm_where(text, member(c)->call, member(c)->bytes, c->step); }

// Of all that are left the lowest speaks, so that there is one line for the run. One that has said goodbye has spoken, or knew who would.
static bool speaks(const Member *m) {
  for (int r = 0; r < m->rank; r++)
    if (r != m->mute && (atomic_load(&m->peers[r].state) == ALIVE || atomic_load(&m->peers[r].told))) return false;
  return m->rank != m->mute;
}

// News over pulse. 'F', mute rank, length, text: a fault. 'B': this rank ends because of one. 'Q': it has failed and said why. m->mutex is held.
static void tell_all(Member *m, const unsigned char *news, size_t n) {
  FOR_OTHERS(r, m) if (atomic_load(&m->peers[r].state) == ALIVE) send_message(m->peers[r].pulse, news, n);
}

static _Noreturn void leave_with_fault(Comm *c) {
  Member *m = member(c);
  comm_lock(&m->mutex);
  fflush(stdout);
  if (!m->spoken && speaks(m)) m->say(m->fault_text);
  tell_all(m, (const unsigned char *)"B", 1);
  _exit(EXIT_MACHINE);
}

enum { NOBODY = 255 };
// The first fault of the group, if it is one: all others are told of it.
static void note_fault(Comm *c, int mute, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
static void note_fault(Comm *c, int mute, const char *fmt, ...) {
  Member *m = member(c);
  comm_lock(&m->mutex);
  if (!m->fault) {
    unsigned char news[4 + sizeof m->fault_text];
    va_list args;
    va_start(args, fmt);
    vsnprintf(m->fault_text, sizeof m->fault_text, fmt, args);
    va_end(args);
    const size_t n = strlen(m->fault_text);
    m->fault = true, m->mute = mute;
    news[0] = 'F', news[1] = (unsigned char)mute, news[2] = (unsigned char)(n & 255), news[3] = (unsigned char)(n >> 8);
    memcpy(news + 4, m->fault_text, n);
    tell_all(m, news, n + 4);
  }
  comm_unlock(&m->mutex);
}

// This rank's own fail(): it has said its line, the others need not.
static void tell_failure(void *context) {
  Member *m = context;
  comm_lock(&m->mutex);
  tell_all(m, (const unsigned char *)"Q", 1);
  comm_unlock(&m->mutex);
}

static bool has_fault(Member *m) {
  comm_lock(&m->mutex);
  const bool known = m->fault;
  comm_unlock(&m->mutex);
  return known;
}

// The connection with rank r has ended. Its last word, if there was one, comes over pulse.
static void note_end(Comm *c, int r) {
  static const double PATIENCE = 0.4;     // seconds
  Member *m = member(c);
  char here[COMM_WHERE_ROOM];
  where_text(c, here);
  for (const double end = seconds_now() + PATIENCE; atomic_load(&m->peers[r].state) == ALIVE && seconds_now() < end;) usleep(1000);
  if (atomic_load(&m->peers[r].state) == LEFT) note_fault(c, r, "rank %d has ended its part while rank %d is %s", r, c->rank, here);
  else note_fault(c, r, "rank %d has ended (killed, or out of memory, or its machine is gone) while rank %d is %s", r, c->rank, here);
}
static _Noreturn void ended(Comm *c, int r) {
  note_end(c, r);
  leave_with_fault(c);
}

// Whether the group has a fault: known already, or some other rank's connection has ended, or its heart stands still.
static bool tcp_fault_known(Comm *c) {
  Member *m = member(c);
  char here[COMM_WHERE_ROOM];
  FOR_OTHERS(other, c) if (atomic_load(&m->peers[other].state) == LOST) note_end(c, other);
  where_text(c, here);
  FOR_OTHERS(other, c)
    if (atomic_load(&m->peers[other].state) == ALIVE && atomic_load(&m->peers[other].still) >= m->still_seconds)
      note_fault(c, other, "rank %d has stood still for %.0f seconds (stopped, or its machine or the network is down) while rank %d is %s", other, m->still_seconds, c->rank, here);
  return has_fault(m);
}

// Called while waiting for rank r, after `waited` seconds without a byte from anybody.
static void look_around(Comm *c, int r, double waited) {
  Member *m = member(c);
  char here[COMM_WHERE_ROOM];
  if (tcp_fault_known(c)) leave_with_fault(c);
  if (atomic_load(&m->peers[r].state) == LEFT) ended(c, r);
  where_text(c, here);
  if (waited <= c->deadline) return;
  note_fault(c, r, "rank %d did not come within the deadline of %.3g seconds: rank %d is %s", r, c->deadline, c->rank, here);
  leave_with_fault(c);
}

// ---- the exchange ----

typedef struct { const char *out; size_t out_left; char *in; size_t in_left; } Traffic;   // with one other rank

// One step of the traffic with rank r; returns whether a byte moved.
static bool move(Comm *c, int r, Traffic *t) {
  const int fd = member(c)->peers[r].data;
  bool moved = false;
  if (t->in_left) {
    const ssize_t n = recv(fd, t->in, t->in_left, 0);
    if (n > 0) { t->in += n; t->in_left -= (size_t)n; moved = true; }
    else if (n == 0 || errno != EAGAIN) ended(c, r);
  }
  if (t->out_left) {
    const ssize_t n = send(fd, t->out, t->out_left, MSG_NOSIGNAL);
    if (n > 0) { t->out += n; t->out_left -= (size_t)n; moved = true; }
    else if (errno != EAGAIN) ended(c, r);
  }
  return moved;
}

static void exchange(Comm *c, Traffic t[COMM_MOST_RANKS]) {
  struct pollfd fds[COMM_MOST_RANKS];
  int who[COMM_MOST_RANKS];
  double waited = 0, last = seconds_now();
  for (;;) {
    int n = 0;
    for (int i = 1; i < c->world; i++) {
      const int r = (c->rank + i) % c->world;     // each begins with another one
      if (!t[r].out_left && !t[r].in_left) continue;
      fds[n] = (struct pollfd){.fd = member(c)->peers[r].data, .events = (short)((t[r].out_left ? POLLOUT : 0) | (t[r].in_left ? POLLIN : 0))};
      who[n++] = r;
    }
    if (!n) return;
    poll(fds, (nfds_t)n, 50);
    bool moved = false;
    for (int i = 0; i < n; i++) if (fds[i].revents) moved |= move(c, who[i], &t[who[i]]);
    const double now = seconds_now();
    waited = moved ? 0 : waited + MIN(now - last, 0.25);   // not the time in which this process was stopped
    last = now;
    if (!moved) look_around(c, who[0], waited);
  }
}

// ---- what every call begins and ends with ----

typedef struct { uint64_t call, detail, bytes; int64_t step; } Header;   // detail: type, root

static double enter(Comm *c, CommCall call, uint64_t bytes) {
  Member *m = member(c);
  m->call = call;
  m->bytes = bytes;
  return seconds_now();
}
static void leave(Comm *c, double start) {
  member(c)->call = CALL_NONE;
  c->seconds += seconds_now() - start;
}

// All must come with the same call; else the sums would be of apples and pears.
static void compare(Comm *c, int r, const Header *own, const Header *other) {
  if (other->call == own->call && other->detail == own->detail && other->bytes == own->bytes) return;
  char here[COMM_WHERE_ROOM];
  where_text(c, here);
  note_fault(c, NOBODY, "rank %d is in %s of %llu bytes at step %lld, while rank %d is %s: all ranks must make the same call", r,
        other->call < CALL_COUNT ? comm_call_names[other->call] : "an unknown call", (unsigned long long)other->bytes, (long long)other->step, c->rank, here);
  leave_with_fault(c);
}
static double enter_together(Comm *c, CommCall call, uint64_t bytes, int detail) {
  const double start = enter(c, call, bytes);
  const Header own = {call, (uint64_t)detail, bytes, c->step};
  Header others[COMM_MOST_RANKS];
  Traffic t[COMM_MOST_RANKS] = {{0}};
  FOR_OTHERS(r, c) t[r] = (Traffic){(const char *)&own, sizeof own, (char *)&others[r], sizeof own};
  exchange(c, t);
  FOR_OTHERS(r, c) compare(c, r, &own, &others[r]);
  return start;
}

// ---- the calls ----

// The elements of piece p of rank r's part.
static CommPart piece_of(size_t n, int world, int r, size_t quantum, size_t p) {
  const CommPart part = comm_part(n, world, r);
  const size_t skipped = MIN(p * quantum, part.n);
  return (CommPart){part.first + skipped, MIN(quantum, part.n - skipped)};
}
static size_t pieces_of(size_t n, int world, size_t quantum) { return round_up(comm_part(n, world, 0).n, quantum) / quantum; }

// Everybody's elements of this rank's piece come, and are added in rank order into the own ones.
static void reduce_piece(Comm *c, char *x, size_t n, CommType type, size_t quantum, size_t p) {
  const size_t size = comm_type_size(type);
  const CommPart mine = piece_of(n, c->world, c->rank, quantum, p);
  const void *parts[COMM_MOST_RANKS];
  Traffic t[COMM_MOST_RANKS] = {{0}};
  parts[c->rank] = x + mine.first * size;
  FOR_OTHERS(r, c) {
    char *staged = member(c)->staging + (size_t)r * STAGING;
    const CommPart theirs = piece_of(n, c->world, r, quantum, p);
    parts[r] = staged;
    t[r] = (Traffic){x + theirs.first * size, theirs.n * size, staged, mine.n * size};
  }
  exchange(c, t);
  comm_add(x + mine.first * size, parts, c->world, mine.n, type);
  c->bytes_received += (uint64_t)(c->world - 1) * mine.n * size;
}
static void gather_piece(Comm *c, char *x, size_t n, size_t size, size_t quantum, size_t p) {
  const CommPart mine = piece_of(n, c->world, c->rank, quantum, p);
  Traffic t[COMM_MOST_RANKS] = {{0}};
  FOR_OTHERS(r, c) {
    const CommPart theirs = piece_of(n, c->world, r, quantum, p);
    t[r] = (Traffic){x + mine.first * size, mine.n * size, x + theirs.first * size, theirs.n * size};
    c->bytes_received += theirs.n * size;
  }
  exchange(c, t);
}

static size_t quantum_of(CommType type) { return STAGING / comm_type_size(type); }
static void tcp_all_reduce(Comm *c, void *x, size_t n, CommType type) {
  const double start = enter_together(c, CALL_ALL_REDUCE, n * comm_type_size(type), (int)type);
  const size_t quantum = quantum_of(type);
  for (size_t p = 0; p < pieces_of(n, c->world, quantum); p++) {
    reduce_piece(c, x, n, type, quantum, p);
    gather_piece(c, x, n, comm_type_size(type), quantum, p);
  }
  leave(c, start);
}
static void tcp_reduce_scatter(Comm *c, void *x, size_t n, CommType type) {
  const double start = enter_together(c, CALL_REDUCE_SCATTER, n * comm_type_size(type), (int)type);
  const size_t quantum = quantum_of(type);
  for (size_t p = 0; p < pieces_of(n, c->world, quantum); p++) reduce_piece(c, x, n, type, quantum, p);
  leave(c, start);
}
static void tcp_all_gather(Comm *c, void *x, size_t n, CommType type) {
  const double start = enter_together(c, CALL_ALL_GATHER, n * comm_type_size(type), (int)type);
  gather_piece(c, x, n, comm_type_size(type), n, 0);      // nothing is staged: in one piece
  leave(c, start);
}
static void tcp_broadcast(Comm *c, void *x, size_t bytes, int root) {
  const double start = enter_together(c, CALL_BROADCAST, bytes, root);
  Traffic t[COMM_MOST_RANKS] = {{0}};
  if (c->rank == root) {
    FOR_OTHERS(r, c) t[r] = (Traffic){.out = x, .out_left = bytes};
  } else t[root] = (Traffic){.in = x, .in_left = bytes}, c->bytes_received += bytes;
  exchange(c, t);
  leave(c, start);
}
static void tcp_meet(Comm *c, CommCall call, uint64_t bytes, int detail) { leave(c, enter_together(c, call, bytes, detail)); }
static void tcp_barrier(Comm *c) { tcp_meet(c, CALL_BARRIER, 0, 0); }

// With a word of the receiver at the end: it has taken it.
static void tcp_send(Comm *c, const void *x, size_t bytes, int to) {
  comm_check_peer(c, "send", to);
  const double start = enter(c, CALL_SEND, bytes);
  const Header own = {CALL_SEND, 0, bytes, c->step};
  Header other;
  Traffic t[COMM_MOST_RANKS] = {{0}};
  t[to] = (Traffic){.out = (const char *)&own, .out_left = sizeof own};
  exchange(c, t);
  t[to] = (Traffic){x, bytes, (char *)&other, sizeof other};
  exchange(c, t);
  leave(c, start);
}
static void tcp_receive(Comm *c, void *x, size_t bytes, int from) {
  comm_check_peer(c, "receive", from);
  const double start = enter(c, CALL_RECEIVE, bytes);
  const Header own = {CALL_SEND, 0, bytes, c->step};
  Header other;
  Traffic t[COMM_MOST_RANKS] = {{0}};
  t[from] = (Traffic){.in = (char *)&other, .in_left = sizeof other};
  exchange(c, t);
  compare(c, from, &own, &other);
  t[from] = (Traffic){.in = x, .in_left = bytes};
  exchange(c, t);
  t[from] = (Traffic){.out = (const char *)&own, .out_left = sizeof own};
  exchange(c, t);
  c->bytes_received += bytes;
  leave(c, start);
}

// ---- for a transport that rides on this one ----

static void tcp_announce(Comm *c, CommCall call, uint64_t bytes) { member(c)->call = call, member(c)->bytes = bytes; }
static void tcp_report(Comm *c, const char *text) { note_fault(c, NOBODY, "%s", text); }

// ---- the heart ----

// What rank r has sent on pulse: '.' each beat, 'L' it leaves in peace, the rest see tell_all.
static void read_news(Member *m, int r) {
  Peer *p = &m->peers[r];
  for (;;) {
    ssize_t n = recv(p->pulse, p->news + p->length, sizeof p->news - p->length, 0);
    if (n < 0 && errno == EAGAIN) return;
    if (n <= 0) { if (atomic_load(&p->state) == ALIVE) atomic_store(&p->state, LOST); return; }
    p->length += (size_t)n;
    size_t used = 0;
    while (used < p->length) {
      const unsigned char *at = p->news + used;
      const size_t left = p->length - used, text = at[0] == 'F' && left >= 4 ? (size_t)(at[2] | at[3] << 8) : 0;
      if (at[0] == 'F' && left < 4 + text && text < sizeof m->fault_text) break;   // the rest is on its way
      const size_t whole = at[0] == 'F' ? MIN(4 + text, left) : 1;
      used += whole;
      if (at[0] == 'L') atomic_store(&p->state, LEFT);
      if (at[0] == 'F' || at[0] == 'B' || at[0] == 'Q') atomic_store(&p->told, true);
      if (at[0] != 'F' && at[0] != 'Q') continue;
      comm_lock(&m->mutex);
      if (!m->fault) {
        m->fault = true;
        m->spoken = at[0] == 'Q';
        m->mute = at[0] == 'Q' ? r : at[1];
        snprintf(m->fault_text, sizeof m->fault_text, "%.*s", (int)(whole - 4), (const char *)at + 4);
      }
      comm_unlock(&m->mutex);
    }
    memmove(p->news, p->news + used, p->length - used);
    p->length -= used;
  }
}

static void *beat(void *context) {
  Member *m = context;
  double last = seconds_now(), sent = -INFINITY;
  for (;;) {
    struct pollfd fds[COMM_MOST_RANKS];
    for (int r = 0; r < m->world; r++) fds[r] = (struct pollfd){.fd = r != m->rank && atomic_load(&m->peers[r].state) == ALIVE ? m->peers[r].pulse : -1, .events = POLLIN};
    poll(fds, (nfds_t)m->world, 100);
    const double now = seconds_now(), passed = MIN(now - last, 0.5);   // not the time in which this process was stopped
    last = now;
    comm_lock(&m->mutex);
    const bool quit = m->quit;
    if (!quit && now - sent >= 0.25) {
      for (int r = 0; r < m->world; r++) if (fds[r].fd >= 0) send(fds[r].fd, ".", 1, MSG_NOSIGNAL);   // a full socket has enough of them
      sent = now;
    }
    comm_unlock(&m->mutex);
    if (quit) return NULL;
    FOR_OTHERS(r, m) {
      Peer *p = &m->peers[r];
      p->quiet = fds[r].revents ? 0 : p->quiet + passed;
      atomic_store(&p->still, (int)p->quiet);
      if (fds[r].revents) read_news(m, r);
    }
  }
}

static void tcp_destroy(Comm *c) {
  Member *m = member(c);
  if (m->own_process) at_fail_cancel(tell_failure, m);
  comm_lock(&m->mutex);
  m->quit = true;
  tell_all(m, (const unsigned char *)"L", 1);
  comm_unlock(&m->mutex);
  pthread_join(m->heart, NULL);
  FOR_OTHERS(r, m) { close(m->peers[r].pulse); close(m->peers[r].data); }
  free(m->staging);
  free(m);
  free(c);
}

// ---- joining ----

// Everybody's address, from rank 0 by way of the connections of the meeting.
static void share_addresses(Door *d, int meeting) {
  const size_t bytes = (size_t)d->m->world * sizeof(Address);
  if (d->m->rank == 0) {
    for (int r = 1; r < d->m->world; r++)
      if (!send_message(d->sockets[MEET][r], d->addresses, bytes)) fail(EXIT_MACHINE, "rank %d ended while it was joining", r);
  } else if (!receive_message(meeting, d->addresses, bytes, seconds_now() + d->m->seconds)) fail(EXIT_MACHINE, "rank %d: rank 0 ended, or waits for other ranks in vain, while this one was joining", d->m->rank);
  for (int r = 0; r < d->m->world; r++) d->addresses[r].host[sizeof d->addresses[r].host - 1] = 0;
}

Comm *comm_tcp_join(const CommMeeting *meeting) {
  Comm *c = xzero(sizeof *c);
  Member *m = xzero(sizeof *m);
  Door *d = xzero(sizeof *d);
  int first = -1;
  *m = (Member){.world = meeting->world, .rank = meeting->rank, .still_seconds = meeting->still_seconds, .own_process = meeting->own_process, .say = meeting->say,
                .staging = xmalloc((size_t)meeting->world, STAGING), .mutex = COMM_MUTEX_INITIALIZER};
  d->m = meeting;
  for (int p = MEET; p <= PULSE; p++) for (int r = 0; r < COMM_MOST_RANKS; r++) d->sockets[p][r] = -1;
  if (m->rank == 0) {
    d->listener = listen_at(meeting->host, meeting->port);
    let_in(d, MEET);
  } else {
    // this rank's door must be open before rank 0 tells where it is: at the address by which rank 0 is reached
    int probe = connect_to(meeting->host, meeting->port, seconds_now() + meeting->seconds);
    if (probe < 0) fail(EXIT_MACHINE, "rank %d: nobody listens at %s:%u (the rendezvous, rank 0) within %.0f seconds; is rank 0 running, and may this machine connect there?", m->rank, meeting->host, meeting->port, meeting->seconds);
    const Address own = address_of(probe, getsockname);
    close(probe);
    d->listener = listen_at(own.host, 0);
    first = introduce(meeting, meeting->host, meeting->port, MEET, address_of(d->listener, getsockname).port, "the rendezvous, rank 0");
  }
  share_addresses(d, first);
  for (int r = 0; r < m->rank; r++) {
    char whom[32];
    const char *host = r ? d->addresses[r].host : meeting->host;
    const uint32_t port = r ? d->addresses[r].port : meeting->port;
    snprintf(whom, sizeof whom, "rank %d", r);
    m->peers[r].data = r ? introduce(meeting, host, port, DATA, 0, whom) : first;
    m->peers[r].pulse = introduce(meeting, host, port, PULSE, 0, whom);
  }
  if (m->rank > 0) let_in(d, DATA);
  let_in(d, PULSE);
  for (int r = m->rank + 1; r < m->world; r++) m->peers[r].data = d->sockets[m->rank ? DATA : MEET][r], m->peers[r].pulse = d->sockets[PULSE][r];
  for (int i = 0; i < d->count; i++) close(d->guests[i].fd);
  close(d->listener);
  free(d);
  *c = (Comm){.rank = m->rank, .world = m->world, .transport = "TCP", .deadline = 1800, .state = m,
              .all_reduce = tcp_all_reduce, .reduce_scatter = tcp_reduce_scatter, .all_gather = tcp_all_gather, .broadcast = tcp_broadcast,
              .send = tcp_send, .receive = tcp_receive, .barrier = tcp_barrier, .destroy = tcp_destroy,
              .meet = tcp_meet, .announce = tcp_announce, .fault_known = tcp_fault_known, .report = tcp_report, .leave = leave_with_fault};
  comm_start_thread(&m->heart, beat, m);
  if (m->own_process) at_fail(tell_failure, m);
  return c;
}
