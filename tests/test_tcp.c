// test_tcp.c: owns the proof of what comm_tcp.c says byte by byte: this program plays one rank of two by hand, with a proof of its own making (HMAC-SHA256, RFC 2104),
// against a true rank in another process: joining, refusals, collectives, pulses, news of faults; and what a rank does that waits. `test_tcp WORD` runs some.
#include "comm_test.h"
#include <fcntl.h>          // open
#include <netinet/tcp.h>    // TCP_NODELAY
#include <poll.h>           // poll
#include <sys/resource.h>   // getrusage
#include <sys/stat.h>       // fstat

// A rank that fails leaves its memory to the system.
const char *__asan_default_options(void);
const char *__asan_default_options(void) { return "detect_leaks=0"; }

// ---- a true rank in a process of its own ----

static char log_path[300];
static CommMeeting meeting;      // of the true rank
static int (*true_body)(Comm *);
static int standard_input[2];    // a pair of sockets, of which each true rank has one as descriptor 0: nothing may come of it

static pid_t start_rank(int world, int rank, int (*body)(Comm *)) {
  true_body = body;
  fflush(NULL);
  pid_t pid = fork();
  if (pid) return pid;
  int fd = open(log_path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
  dup2(fd, 2);
  close(fd);
  dup2(standard_input[1], 0);
  close(standard_input[0]), close(standard_input[1]);
  meeting.world = world, meeting.rank = rank, meeting.port = port;
  Comm *c = comm_tcp_join(&meeting);
  if (c->rank != rank || c->world != world || c->deadline != 1800 || c->bytes_received || c->seconds > 0 || strcmp(c->transport, "TCP")) _exit(98);
  c->deadline = deadline;
  c->step = 7;
  int code = body(c);
  c->destroy(c);
  _exit(code);
}
static int exit_code(pid_t pid) {
  int status;
  waitpid(pid, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}
static const char *log_text(void) {
  static char text[4096];
  FILE *f = fopen(log_path, "r");
  const size_t n = f ? fread(text, 1, sizeof text - 1, f) : 0;
  text[n] = 0;
  if (f) fclose(f);
  return text;
}
static void prepare(void) {      // a new port, nothing said yet
  make_group(2);
  meeting = meeting_of(2, 0);
  unlink(log_path);
}

// ---- the other rank, by hand ----

enum { MEET, DATA, PULSE, HELLO_BYTES = 140, ADDRESS_BYTES = 68, HEADER_BYTES = 32 };
static const char *token = "a secret of sixteen";
static size_t token_bytes = 19;

static void hmac(const char *role, const uint8_t hello[HELLO_BYTES], const uint8_t nonce[32], uint8_t out[32]) {
  uint8_t key[64] = {0}, block[64];
  Sha256 s;
  if (token_bytes <= sizeof key) memcpy(key, token, token_bytes);
  else { sha256_init(&s); sha256_update(&s, token, token_bytes); sha256_final(&s, key); }
  sha256_init(&s);
  for (int i = 0; i < 64; i++) block[i] = key[i] ^ 0x36;
  sha256_update(&s, block, sizeof block), sha256_update(&s, role, strlen(role)), sha256_update(&s, hello, HELLO_BYTES), sha256_update(&s, nonce, 32);
  sha256_final(&s, out);
  sha256_init(&s);
  for (int i = 0; i < 64; i++) block[i] = key[i] ^ 0x5c;
  sha256_update(&s, block, sizeof block), sha256_update(&s, out, 32);
  sha256_final(&s, out);
}

static void make_hello(uint8_t hello[HELLO_BYTES], uint32_t purpose, uint32_t world, uint32_t rank, uint32_t listens) {
  memset(hello, 0, HELLO_BYTES);
  memcpy(hello, "gpt rank", 8);
  store_u32le(hello + 8, 1), store_u32le(hello + 12, purpose), store_u32le(hello + 16, world), store_u32le(hello + 20, rank), store_u32le(hello + 24, listens);
  hello[28] = '1';
  for (int i = 0; i < 32; i++) hello[108 + i] = (uint8_t)(7 * i);      // a nonce
}

// Receives n bytes within three seconds; how many came.
static size_t take(int fd, void *to, size_t n) {
  size_t got = 0;
  for (const double end = seconds_now() + 3; got < n && seconds_now() < end;) {
    poll(&(struct pollfd){.fd = fd, .events = POLLIN}, 1, 100);
    const ssize_t m = recv(fd, (char *)to + got, n - got, MSG_DONTWAIT);
    if (m == 0) break;
    if (m > 0) got += (size_t)m;
  }
  return got;
}
// In pieces of a few bytes, some of them late.
static bool give(int fd, const void *from, size_t n) {
  for (size_t done = 0; done < n;) {
    const size_t piece = MIN(n - done, done ? n / 3 + 1 : 1);
    if (send(fd, (const char *)from + done, piece, MSG_NOSIGNAL) != (ssize_t)piece) return false;
    done += piece;
    if (done < n) usleep(5000);
  }
  return true;
}
static int dial(void) {
  struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK), .sin_port = htons((uint16_t)port)};
  const int on = 1;
  for (int i = 0; i < 500; i++) {
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (connect(fd, (struct sockaddr *)&a, sizeof a) == 0) return fd;
    close(fd);
    usleep(10000);
  }
  abort();
}

// Comes in with this hello; `verdict` is what the true rank answers to the proof, of which byte `wrong` is changed (-1: none). -1: the connection was ended before.
static uint8_t nonce_of_server[32];
static int knock(const uint8_t hello[HELLO_BYTES], int wrong, char verdict[512]) {
  uint8_t challenge[64], proof[32], length[4];
  const int fd = dial();
  memset(verdict, 0, 512);
  if (!give(fd, hello, HELLO_BYTES) || take(fd, challenge, sizeof challenge) != sizeof challenge) { close(fd); return -1; }
  hmac("server", hello, challenge, proof);
  CHECK_MSG(!memcmp(proof, challenge + 32, 32), "the server's proof is another one");
  CHECK_MSG(memcmp(challenge, nonce_of_server, 32), "the same nonce again");
  memcpy(nonce_of_server, challenge, 32);
  hmac("client", hello, challenge, proof);
  if (wrong >= 0) proof[wrong] ^= 1;
  if (!give(fd, proof, sizeof proof) || take(fd, length, sizeof length) != sizeof length) { close(fd); return -1; }
  const uint32_t n = load_u32le(length);
  CHECK(n < 512 && take(fd, verdict, n) == n);
  return fd;
}

typedef struct { int data, pulse; } Hand;
static Hand join_by_hand(void) {
  uint8_t hello[HELLO_BYTES], addresses[2 * ADDRESS_BYTES];
  char verdict[512];
  Hand h;
  make_hello(hello, MEET, 2, 1, 4711);
  h.data = knock(hello, -1, verdict);
  CHECK_STR(verdict, "");
  CHECK_EQ(take(h.data, addresses, sizeof addresses), sizeof addresses);
  CHECK_STR((char *)addresses + ADDRESS_BYTES, "127.0.0.1");
  CHECK_EQ(load_u32le(addresses + ADDRESS_BYTES + 64), 4711);
  make_hello(hello, PULSE, 2, 1, 0);
  h.pulse = knock(hello, -1, verdict);
  CHECK_STR(verdict, "");
  return h;
}
static void close_hand(Hand h) { close(h.data), close(h.pulse); }

static void make_header(uint8_t h[HEADER_BYTES], uint64_t call, uint64_t detail, uint64_t bytes, int64_t step) {
  store_u64le(h, call), store_u64le(h + 8, detail), store_u64le(h + 16, bytes), store_u64le(h + 24, (uint64_t)step);
}
static bool header_comes(int fd, uint64_t call, uint64_t detail, uint64_t bytes, int64_t step) {
  uint8_t expected[HEADER_BYTES], h[HEADER_BYTES];
  make_header(expected, call, detail, bytes, step);
  return take(fd, h, sizeof h) == sizeof h && !memcmp(h, expected, sizeof h);
}

// What comes on pulse until the other side closes it, without the beats.
static size_t news_of(int pulse, uint8_t news[1024], int *beats) {
  uint8_t all[4096];
  size_t n = take(pulse, all, sizeof all), kept = 0;
  *beats = 0;
  for (size_t i = 0; i < n; i++) { if (all[i] == '.' && kept == 0) ++*beats; else if (kept < 1024) news[kept++] = all[i]; }
  return kept;
}

// Whether just these numbers come.
static bool floats_come(int fd, const float *expected, size_t n) {
  float x[8];
  return take(fd, x, n * sizeof *x) == n * sizeof *x && !memcmp(x, expected, n * sizeof *x);
}

// ---- bodies of true ranks ----

static int sum_body(Comm *c) {       // of 3 floats with rank 1's
  float x[3] = {1, 2, 3};
  c->all_reduce(c, x, 3, COMM_F32);
  return !(x[0] == 11 && x[1] == 22 && x[2] == 33);
}
// The hand's side of it
static bool sum_by_hand(Hand h) {
  uint8_t header[HEADER_BYTES];
  const float own[3] = {10, 20, 30};
  float sum[3];
  make_header(header, CALL_ALL_REDUCE, COMM_F32, 12, 7);
  return header_comes(h.data, CALL_ALL_REDUCE, COMM_F32, 12, 7) && give(h.data, header, sizeof header) && give(h.data, own, sizeof own) &&
         take(h.data, sum, sizeof sum) == sizeof sum && sum[0] == 11 && sum[1] == 22 && sum[2] == 33;
}

// ---- joining ----

static void every_byte_of_joining(void) {
  static const char secret[] = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef-and-more-of-it";
  static const size_t sizes[] = {16, 63, 64, 65, 79};
  for (size_t s = 0; s < ARRAY_LEN(sizes); s++) {
    prepare();
    token = secret, token_bytes = sizes[s];
    meeting.token = token, meeting.token_bytes = token_bytes;
    pid_t pid = start_rank(2, 0, sum_body);
    Hand h = join_by_hand();
    CHECK(sum_by_hand(h));
    uint8_t news[1024];
    int beats;
    CHECK(news_of(h.pulse, news, &beats) == 1 && news[0] == 'L');
    CHECK_EQ(exit_code(pid), 0);
    CHECK_STR(log_text(), "");
    close_hand(h);
  }
  token = "a secret of sixteen", token_bytes = 19;
}

static void who_may_not_come_in(void) {
  static const struct { uint32_t purpose, world, rank; const char *version; int run, wrong; uint32_t protocol; const char *verdict, *said; } cases[] = {
    {MEET, 2, 1, "2", 0, -1, 1, "it is of version 2, rank 0 of 1", "rank 1, from 127.0.0.1, was refused: it is of version 2, rank 0 of 1"},
    {MEET, 3, 1, "1", 0, -1, 1, "it has --world 3, rank 0 has --world 2", "was refused: it has --world 3"},
    {MEET, 2, 1, "1", 31, -1, 1, "its flags or its text are not those of rank 0: all ranks of a run need the same", "its flags or its text"},
    {3, 2, 1, "1", 0, -1, 1, "rank 1 has no business with rank 0", "rank 1 has no business with rank 0"},
    {MEET, 2, 0, "1", 0, -1, 1, "rank 0 has no business with rank 0", "rank 0 has no business with rank 0"},
    {MEET, 2, 2, "1", 0, -1, 1, "rank 2 has no business with rank 0", "rank 2 has no business with rank 0"},
    {MEET, 2, 1, "1", 0, 0, 1, NULL, "a connection from 127.0.0.1 was refused: it does not know the token"},
    {MEET, 2, 1, "1", 0, 31, 1, NULL, "it does not know the token"},
    {MEET, 2, 1, "1", 0, -1, 2, NULL, "it is a rank of another version"},
    {MEET, 2, 1, "1", 0, -1, 0, NULL, "it is a rank of another version"}};
  for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
    uint8_t hello[HELLO_BYTES];
    char verdict[512];
    prepare();
    pid_t pid = start_rank(2, 0, sum_body);
    make_hello(hello, cases[i].purpose, cases[i].world, cases[i].rank, 4711);
    hello[28] = (uint8_t)cases[i].version[0];
    if (cases[i].run) hello[76 + cases[i].run] = 1;
    store_u32le(hello + 8, cases[i].protocol);
    int fd = knock(hello, cases[i].wrong, verdict);
    CHECK_MSG((fd < 0) == !cases[i].verdict, "case %zu: %s", i, verdict);
    CHECK_STR(verdict, cases[i].verdict ? cases[i].verdict : "");
    char byte;
    CHECK_MSG(fd < 0 || take(fd, &byte, 1) == 0, "case %zu: the connection is still open", i);
    if (fd >= 0) close(fd);
    CHECK_MSG(strstr(log_text(), cases[i].said), "case %zu: rank 0 said %s", i, log_text());
    Hand h = join_by_hand();                               // and who may come in does
    make_hello(hello, MEET, 2, 1, 0);
    CHECK(sum_by_hand(h));
    close_hand(h);
    CHECK_EQ(exit_code(pid), 0);
  }
}

// A guest that says nothing is sent away; and one that begins as a rank does not, at once.
static int idle_body(Comm *c) { (void)c; return 0; }
static void silence_and_noise(void) {
  prepare();
  meeting.seconds = 2;                                     // a quarter of it is how long a guest may be silent
  pid_t pid = start_rank(2, 0, idle_body);
  char byte;
  const int silent = dial();
  const double start = seconds_now();
  CHECK_EQ(take(silent, &byte, 1), 0);
  const double took = seconds_now() - start;
  CHECK_MSG(took > 0.4 && took < 1.5, "a silent guest was sent away after %.2f s", took);
  CHECK_MSG(strstr(log_text(), "a connection from 127.0.0.1 was refused: it said nothing for too long"), "%s", log_text());
  static const char *const beginnings[] = {"X", "gpt ranX", "gPt rank"};
  for (size_t i = 0; i < ARRAY_LEN(beginnings); i++) {
    const int noisy = dial();
    const double then = seconds_now();
    CHECK(send(noisy, beginnings[i], strlen(beginnings[i]), MSG_NOSIGNAL) > 0);
    take(noisy, &byte, 1);
    CHECK_MSG(seconds_now() - then < 0.4, "%s: answered after %.2f s", beginnings[i], seconds_now() - then);
    close(noisy);
  }
  CHECK_MSG(strstr(log_text(), "it does not speak as a rank does"), "%s", log_text());
  kill(pid, SIGKILL);
  exit_code(pid);
  close(silent);
}

// Whoever still sits there when all have come is sent home.
static void guests_are_sent_home(void) {
  prepare();
  pid_t pid = start_rank(2, 0, sum_body);
  const int first = dial(), second = dial();
  usleep(50000);
  Hand h = join_by_hand();
  char byte;
  const double start = seconds_now();
  CHECK(take(first, &byte, 1) == 0 && take(second, &byte, 1) == 0);
  CHECK_MSG(seconds_now() - start < 2, "a guest was still there");
  CHECK(sum_by_hand(h));
  CHECK_EQ(exit_code(pid), 0);
  close(first), close(second), close_hand(h);
}

// More guests at once than there is room for: they wait outside, and nothing is written where there is no room.
static void more_guests_than_chairs(void) {
  enum { GUESTS = 300 };
  int fds[GUESTS];
  prepare();
  pid_t pid = start_rank(2, 0, sum_body);
  for (int i = 0; i < GUESTS; i++) fds[i] = dial();
  usleep(200000);
  for (int i = 0; i < GUESTS; i++) close(fds[i]);
  Hand h = join_by_hand();
  CHECK(sum_by_hand(h));
  close_hand(h);
  CHECK_EQ(exit_code(pid), 0);
}

// Whoever listens, and whoever has come in, can neither hold up the rank nor be handed on to another program.
static void sockets_while_joining(void) {
  prepare();
  pid_t pid = start_rank(2, 0, idle_body);
  const int guest = dial();
  int sockets = 0;
  usleep(100000);
  for (int fd = 3; fd < 20; fd++) {
    char path[64], to[64] = "", line[64];
    unsigned flags = 0;
    snprintf(path, sizeof path, "/proc/%d/fd/%d", (int)pid, fd);
    if (readlink(path, to, sizeof to - 1) < 0 || strncmp(to, "socket:", 7)) continue;
    snprintf(path, sizeof path, "/proc/%d/fdinfo/%d", (int)pid, fd);
    FILE *f = fopen(path, "r");
    while (f && fgets(line, sizeof line, f)) sscanf(line, "flags: %o", &flags);
    if (f) fclose(f);
    CHECK_MSG(flags & O_NONBLOCK && flags & O_CLOEXEC, "socket %d has the flags %o", fd, flags);
    sockets++;
  }
  CHECK_EQ(sockets, 2);                                    // of listening, and the guest's
  kill(pid, SIGKILL);
  exit_code(pid);
  close(guest);
}

// ---- rank 0 by hand ----

static int listen_by_hand(void) {
  struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK), .sin_port = htons((uint16_t)port)};
  const int fd = socket(AF_INET, SOCK_STREAM, 0), on = 1;
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  if (bind(fd, (struct sockaddr *)&a, sizeof a) || listen(fd, 10)) abort();
  return fd;
}
// The next who comes within three seconds; -1: nobody does.
static int next_guest(int listener) { return poll(&(struct pollfd){.fd = listener, .events = POLLIN}, 1, 3000) == 1 ? accept(listener, NULL, NULL) : -1; }
// Takes the hello of rank `rank` and answers it; `verdict_bytes` of `verdict` behind the length `verdict_length`. wrong: the proof is.
static int welcome(int listener, uint32_t world, uint32_t rank, uint32_t purpose, bool wrong, uint32_t verdict_length, const char *verdict, uint32_t *listens) {
  uint8_t hello[HELLO_BYTES], expected[HELLO_BYTES], challenge[64], proof[32], theirs[32], length[4];
  int fd = next_guest(listener);
  size_t n = take(fd, hello, sizeof hello);
  if (n == 0) { close(fd); fd = next_guest(listener); n = take(fd, hello, sizeof hello); }      // the first one only asks whether somebody listens
  if (n != sizeof hello) return -1;
  make_hello(expected, purpose, world, rank, 0);
  CHECK_MSG(!memcmp(hello, expected, 24) && !memcmp(hello + 28, expected + 28, 80), "another hello");
  CHECK_MSG((load_u32le(hello + 24) == 0) == (purpose == PULSE), "it listens at %u", load_u32le(hello + 24));
  if (listens) *listens = load_u32le(hello + 24);
  CHECK_MSG(memcmp(hello + 108, nonce_of_server, 32), "the same nonce again");
  memcpy(nonce_of_server, hello + 108, 32);
  for (int i = 0; i < 32; i++) challenge[i] = (uint8_t)(11 * i + (int)purpose);
  hmac("server", hello, challenge, challenge + 32);
  if (wrong) challenge[32] ^= 128;
  give(fd, challenge, sizeof challenge);
  if (take(fd, theirs, sizeof theirs) != sizeof theirs) return fd;
  hmac("client", hello, challenge, proof);
  CHECK_MSG(!memcmp(theirs, proof, sizeof proof), "the client's proof is another one");
  store_u32le(length, verdict_length);
  give(fd, length, sizeof length);
  if (*verdict) give(fd, verdict, strlen(verdict));
  return fd;
}
// What a true rank 1 of `world` says to a rank 0 that does the above and then closes all.
static void check_verdict(uint32_t length, const char *verdict, bool wrong, int code, const char *said) {
  prepare();
  meeting.seconds = 1;
  const int listener = listen_by_hand();
  pid_t pid = start_rank(2, 1, idle_body);
  const int fd = welcome(listener, 2, 1, MEET, wrong, length, verdict, NULL);
  close(fd);
  close(listener);
  CHECK_EQ(exit_code(pid), code);
  CHECK_MSG(strstr(log_text(), said), "it said %s, expected %s", log_text(), said);
}
static void verdicts(void) {
  char text[420], said[600], where[80];
  memset(text, 'v', sizeof text);
  check_verdict(0, "", true, EXIT_REQUEST, "has another token: another run, or a stranger; give all ranks of a run the same --token");
  text[400] = 0;
  CHECK(port > 0);
  check_verdict(400, text, false, EXIT_REQUEST, text);
  check_verdict(401, text, false, EXIT_MACHINE, "(the rendezvous, rank 0) ended the connection while this rank was joining");
  text[9] = 0;
  check_verdict(10, text, false, EXIT_MACHINE, "ended the connection while this rank was joining");
  check_verdict(9, text, false, EXIT_REQUEST, "(the rendezvous, rank 0): vvvvvvvvv");
  snprintf(where, sizeof where, "rank 1 was refused by 127.0.0.1:%u (the rendezvous, rank 0): vvvvvvvvv\n", port);
  snprintf(said, sizeof said, "gpt: %s", where);
  CHECK_STR(log_text(), said);
}

// One that takes connections and says nothing, or ends them at once, is given up in time, and without keeping a core busy.
static double cpu_of_children(void) {
  struct rusage u;
  getrusage(RUSAGE_CHILDREN, &u);
  return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) + 1e-6 * (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec);
}
static void check_in_vain(bool answers, const char *said) {
  const double start = seconds_now(), busy = cpu_of_children();
  meeting.seconds = 0.6;
  pid_t pid = start_rank(2, 1, idle_body);
  if (answers) {
    const int listener = listen_by_hand();
    for (int fd; waitpid(pid, NULL, WNOHANG) == 0 && kill(pid, 0) == 0;) {
      if (poll(&(struct pollfd){.fd = listener, .events = POLLIN}, 1, 10) == 1 && (fd = accept(listener, NULL, NULL)) >= 0) close(fd);
      if (seconds_now() - start > 5) break;
    }
    close(listener);
  } else CHECK_EQ(exit_code(pid), EXIT_MACHINE);
  const double took = seconds_now() - start;
  CHECK_MSG(took >= 0.55 && took < 3, "it took %.2f s", took);
  CHECK_MSG(cpu_of_children() - busy < 0.3, "it computed for %.2f s", cpu_of_children() - busy);
  CHECK_MSG(strstr(log_text(), said), "it said %s", log_text());
}
static void joining_in_vain(void) {
  prepare();
  check_in_vain(false, "rank 1: nobody listens at 127.0.0.1");
  prepare();
  check_in_vain(true, "(the rendezvous, rank 0) ");
  prepare();                                               // silence
  const int listener = listen_by_hand();
  check_in_vain(false, "(the rendezvous, rank 0) does not answer as a rank");
  close(listener);
  // one whose backlog is full: connections hang
  prepare();
  const int busy = listen_by_hand();
  listen(busy, 0);
  int waiting[4];
  for (int i = 0; i < 4; i++) {
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK), .sin_port = htons((uint16_t)port)};
    waiting[i] = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    (void)!connect(waiting[i], (struct sockaddr *)&a, sizeof a);
  }
  meeting.seconds = 0.3;
  const double start = seconds_now();
  pid_t pid = start_rank(2, 1, idle_body);
  CHECK_EQ(exit_code(pid), EXIT_MACHINE);
  CHECK_MSG(seconds_now() - start < 5, "it took %.1f s", seconds_now() - start);
  CHECK_MSG(strstr(log_text(), "nobody listens at 127.0.0.1"), "it said %s", log_text());
  for (int i = 0; i < 4; i++) close(waiting[i]);
  close(busy);
}

// What a rank waits for while it joins wakes it: it does not look now and then.
static void answers_come_at_once(void) {
  double quickest = 9;
  for (int i = 0; i < 3; i++) {
    uint8_t hello[HELLO_BYTES], challenge[64] = {7}, proof[32];
    prepare();
    const int listener = listen_by_hand();
    pid_t pid = start_rank(2, 1, idle_body);
    close(next_guest(listener));                           // it only asks whether somebody listens
    const int fd = next_guest(listener);
    CHECK_EQ(take(fd, hello, sizeof hello), sizeof hello);
    hmac("server", hello, challenge, challenge + 32);
    usleep(10000);
    const double start = seconds_now();
    send(fd, challenge, sizeof challenge, MSG_NOSIGNAL);
    CHECK_EQ(take(fd, proof, sizeof proof), sizeof proof);
    quickest = MIN(quickest, seconds_now() - start);
    kill(pid, SIGKILL);
    exit_code(pid);
    close(fd), close(listener);
  }
  CHECK_MSG(quickest < 0.02, "an answer took %.3f s at best", quickest);
}

static void rank_0_by_hand(void) {
  for (int world = 2; world <= 3; world++) {               // 3: with an address that fills its place and does not end
    uint8_t addresses[3 * ADDRESS_BYTES] = {0};
    prepare();
    const int listener = listen_by_hand();
    pid_t pid = start_rank(world, world - 1, sum_body);
    const int data = welcome(listener, (uint32_t)world, (uint32_t)world - 1, MEET, false, 0, "", NULL);
    memset(addresses + ADDRESS_BYTES, world == 3 ? 'x' : 0, ADDRESS_BYTES);
    CHECK(give(data, addresses, (size_t)world * ADDRESS_BYTES));
    const int pulse = welcome(listener, (uint32_t)world, (uint32_t)world - 1, PULSE, false, 0, "", NULL);
    if (world == 3) {
      CHECK_EQ(exit_code(pid), EXIT_MACHINE);
      CHECK_MSG(strstr(log_text(), " xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx:2021161080: the host is not found"), "%s", log_text());
    } else {
      CHECK(header_comes(data, CALL_ALL_REDUCE, COMM_F32, 12, 7));
      // all three numbers are rank 0's to add
      uint8_t header[HEADER_BYTES], news[1024];
      int beats;
      make_header(header, CALL_ALL_REDUCE, COMM_F32, 12, 7);
      CHECK(give(data, header, sizeof header) && floats_come(data, (const float[]){1, 2, 3}, 3) && give(data, (const float[]){11, 22, 33}, 12));
      CHECK(news_of(pulse, news, &beats) == 1 && news[0] == 'L');
      CHECK_EQ(exit_code(pid), 0);
      CHECK_STR(notes->said, "");
    }
    close(data), close(pulse), close(listener);
  }
}

// Rank 0 ends: rank 1 is the lowest that is left, and says so, but not where rank 0 has told of a fault that it can speak of itself.
static void rank_0_ends(void) {
  for (int told = 0; told < 2; told++) {
    uint8_t addresses[2 * ADDRESS_BYTES] = {0};
    prepare();
    const int listener = listen_by_hand();
    pid_t pid = start_rank(2, 1, sum_body);
    const int data = welcome(listener, 2, 1, MEET, false, 0, "", NULL);
    CHECK(give(data, addresses, sizeof addresses));
    const int pulse = welcome(listener, 2, 1, PULSE, false, 0, "", NULL);
    CHECK(header_comes(data, CALL_ALL_REDUCE, COMM_F32, 12, 7));
    send(pulse, "..", 2, MSG_NOSIGNAL);
    usleep(50000);
    if (told) send(pulse, ".F\377\2\0so.", 8, MSG_NOSIGNAL), usleep(50000);
    close(data), close(pulse), close(listener);
    CHECK_EQ(exit_code(pid), EXIT_MACHINE);
    CHECK_STR(notes->said, told ? "" : "rank 0 has ended (killed, or out of memory, or its machine is gone) while rank 1 is in all_reduce of 12 bytes at step 7");
  }
}

// A rank that others do not find where rank 0 has said that it is
static void an_absent_rank_is_named(void) {
  uint8_t addresses[3 * ADDRESS_BYTES] = {0};
  char said[100];
  prepare();
  meeting.seconds = 0.5;
  const int listener = listen_by_hand();
  const uint32_t nowhere = free_port();
  pid_t pid = start_rank(3, 2, idle_body);
  const int data = welcome(listener, 3, 2, MEET, false, 0, "", NULL);
  strcpy((char *)addresses + ADDRESS_BYTES, "127.0.0.1");
  store_u32le(addresses + ADDRESS_BYTES + 64, nowhere);
  CHECK(give(data, addresses, sizeof addresses));
  const int pulse = welcome(listener, 3, 2, PULSE, false, 0, "", NULL);
  CHECK_EQ(exit_code(pid), EXIT_MACHINE);
  snprintf(said, sizeof said, "gpt: rank 2: nobody listens at 127.0.0.1:%u (rank 1) within 0 seconds; is it running", nowhere);
  CHECK_MSG(!strncmp(log_text(), said, strlen(said)), "it said %s, expected %s", log_text(), said);
  close(data), close(pulse), close(listener);
}

// ---- a true rank's sockets; its port; other families ----

static int count_sockets(void) {
  int sockets = 0;
  struct stat s;
  for (int fd = 0; fd < 200; fd++) sockets += fstat(fd, &s) == 0 && S_ISSOCK(s.st_mode);
  return sockets;
}
static int sockets_body(Comm *c) {
  int sockets = 0, bad = 0;
  for (int fd = 3; fd < 200; fd++) {
    struct stat s;
    int delay = 0;
    socklen_t n = sizeof delay;
    if (fstat(fd, &s) || !S_ISSOCK(s.st_mode)) continue;
    sockets++;
    getsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &delay, &n);
    if (!(fcntl(fd, F_GETFL) & O_NONBLOCK) || !(fcntl(fd, F_GETFD) & FD_CLOEXEC) || !delay) bad++;
  }
  c->barrier(c);
  if (c->rank == 1) usleep(100000);                        // the rendezvous' side of the connections ends first
  return bad || sockets != 2 * (c->world - 1);
}
static void the_port_is_free_again(void) {
  prepare();
  for (int i = 0; i < 2; i++) {
    meeting.rank = 0;
    pid_t zero = start_rank(3, 0, sockets_body), one = start_rank(3, 1, sockets_body), two = start_rank(3, 2, sockets_body);
    CHECK_EQ(exit_code(zero), 0);
    CHECK_EQ(exit_code(one), 0);
    CHECK_EQ(exit_code(two), 0);
  }
}
static void six(void) {
  struct sockaddr_in6 a = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
  const int fd = socket(AF_INET6, SOCK_STREAM, 0);
  const bool here = fd >= 0 && bind(fd, (struct sockaddr *)&a, sizeof a) == 0;
  close(fd);
  if (!here) { printf("no IPv6 on this machine: not tried\n"); return; }
  prepare();
  meeting.host = "::1";
  pid_t pids_here[3];
  for (int r = 0; r < 3; r++) pids_here[r] = start_rank(3, r, sockets_body);
  for (int r = 0; r < 3; r++) CHECK_EQ(exit_code(pids_here[r]), 0);
}

static void ports_that_are_not_free(void) {
  prepare();
  CommMeeting m = meeting_of(2, 0);
  const int taken = listen_by_hand();
  EXPECT_FAIL(EXIT_MACHINE, "rank 0 cannot listen there: Address already in use; it must be", comm_tcp_join(&m));
  close(taken);
  m.host = "192.0.2.1";                                    // of nobody's (RFC 5737)
  EXPECT_FAIL(EXIT_MACHINE, "rank 0 cannot listen there: Cannot assign requested address; it must be", comm_tcp_join(&m));
}

// ---- pulses and news ----

static int long_body(Comm *c) { (void)c; usleep(1100000); return 0; }
static void a_heart_beats_four_times_a_second(void) {
  prepare();
  pid_t pid = start_rank(2, 0, long_body);
  Hand h = join_by_hand();
  uint8_t news[1024];
  int beats;
  CHECK(news_of(h.pulse, news, &beats) == 1 && news[0] == 'L');
  CHECK_MSG(beats >= 2 && beats <= 5, "%d beats in 1.1 s", beats);
  CHECK_EQ(exit_code(pid), 0);
  close_hand(h);
}

// Rank 0 is in an all_reduce of 12 bytes when the hand does `what`; all that it says, its exit code, how long it takes, and its last words on pulse.
static void check_fault(void (*what)(Hand *), int code, const char *said, double least, double most, const char *last) {
  uint8_t news[1024];
  int beats;
  prepare();
  meeting.still_seconds = still;
  pid_t pid = start_rank(2, 0, sum_body);
  Hand h = join_by_hand();
  CHECK(header_comes(h.data, CALL_ALL_REDUCE, COMM_F32, 12, 7));
  const double start = seconds_now();
  what(&h);
  CHECK_EQ(exit_code(pid), code);
  const double took = seconds_now() - start;
  CHECK_MSG(took >= least && took < most, "%s: took %.2f s", said, took);
  CHECK_STR(notes->said, said);
  CHECK_EQ(atomic_load(&notes->lines), said[0] != 0);
  CHECK_STR(log_text(), "");
  const size_t n = h.pulse >= 0 ? news_of(h.pulse, news, &beats) : 0;
  if (last) CHECK_MSG(n == (last[0] == 'F' ? 4 + strlen(said) + 1 : strlen(last)), "%zu bytes of news: %.*s", n, (int)n, (char *)news);
  if (last && last[0] == 'F') {
    const size_t length = strlen(said);
    CHECK(news[0] == 'F' && news[1] == (uint8_t)last[1] && news[2] == length % 256 && news[3] == length / 256 && !memcmp(news + 4, said, length) && news[4 + length] == 'B');
  } else if (last && n) CHECK(!memcmp(news, last, n));
  if (h.data >= 0) close(h.data);
  if (h.pulse >= 0) close(h.pulse);
}
static void beat_for(Hand *h, double seconds) {
  for (const double end = seconds_now() + seconds; seconds_now() < end; usleep(100000)) if (send(h->pulse, ".", 1, MSG_NOSIGNAL) < 0) return;
}
static void leaves(Hand *h) { close(h->data), h->data = -1; usleep(150000); send(h->pulse, "L", 1, MSG_NOSIGNAL); }
static void ends(Hand *h) { close_hand(*h), h->data = h->pulse = -1; }
static void ends_in_silence(Hand *h) { close(h->data), h->data = -1; beat_for(h, 1.5); }
static void leaves_first(Hand *h) { send(h->pulse, ".L", 2, MSG_NOSIGNAL); usleep(300000); }
static void stops(Hand *h) { (void)h; }
static void beats_and_is_late(Hand *h) { beat_for(h, 3); }
static void sends_news(Hand *h, const void *news, size_t n) { for (size_t i = 0; i < n; i++) { send(h->pulse, (const char *)news + i, 1, MSG_NOSIGNAL); usleep(i < 8 ? 2000 : 0); } }
static void reports(Hand *h) { sends_news(h, "..F\1\16\0rank 1 says so..F\1\7\0another", 33); }
static void reports_of_all(Hand *h) { sends_news(h, ".F\377\20\0rank 1 says so..", 21); }
static void has_spoken(Hand *h) { sends_news(h, "..Q.", 4); }
static char long_text[301];
static void reports_at_length(Hand *h) {
  char news[305] = {'F', 1, 300 % 256, 300 / 256};
  memcpy(news + 4, long_text, 300);
  send(h->pulse, news, 304, MSG_NOSIGNAL);
}
static void reports_without_end(Hand *h) {
  char news[700] = {'F', 1, (char)0xff, (char)0xff};
  memset(news + 4, '.', sizeof news - 4);
  memcpy(news + 4, "endless", 7);
  send(h->pulse, news, sizeof news, MSG_NOSIGNAL);
}
static uint64_t other_call, other_detail, other_bytes;
static void makes_another_call(Hand *h) {
  uint8_t header[HEADER_BYTES];
  make_header(header, other_call, other_detail, other_bytes, 9);
  give(h->data, header, sizeof header);
}

static void last_words(void) {
  static const char here[] = "while rank 0 is in all_reduce of 12 bytes at step 7";
  char said[400];
  snprintf(said, sizeof said, "rank 1 has ended its part %s", here);
  check_fault(leaves, EXIT_MACHINE, said, 0.1, 2, NULL);
  check_fault(leaves_first, EXIT_MACHINE, said, 0, 2, NULL);
  snprintf(said, sizeof said, "rank 1 has ended (killed, or out of memory, or its machine is gone) %s", here);
  check_fault(ends, EXIT_MACHINE, said, 0, 1, NULL);
  check_fault(ends_in_silence, EXIT_MACHINE, said, 0.35, 1.3, NULL);
  still = 1;
  snprintf(said, sizeof said, "rank 1 has stood still for 1 seconds (stopped, or its machine or the network is down) %s", here);
  check_fault(stops, EXIT_MACHINE, said, 0.8, 2, "F\1B");
  deadline = 0.5;
  snprintf(said, sizeof said, "rank 1 did not come within the deadline of 0.5 seconds: rank 0 is in all_reduce of 12 bytes at step 7");
  check_fault(beats_and_is_late, EXIT_MACHINE, said, 0.45, 4, NULL);
  deadline = still = 20;
  check_fault(reports, EXIT_MACHINE, "rank 1 says so", 0, 2, "B");
  check_fault(reports_of_all, EXIT_MACHINE, "rank 1 says so..", 0, 2, "B");
  check_fault(has_spoken, EXIT_MACHINE, "", 0, 2, "B");
  memset(long_text, 'n', 300);
  check_fault(reports_at_length, EXIT_MACHINE, long_text, 0, 2, "B");
  prepare();
}
// News of a length that no rank sends is taken as far as it has come; one of the greatest that a rank sends is waited for.
static void long_news(void) {
  char news[515], rest[512];
  memset(rest, 'm', sizeof rest);
  rest[511] = 0;
  for (size_t length = 511; length <= 512; length++) {
    prepare();
    pid_t pid = start_rank(2, 0, sum_body);
    Hand h = join_by_hand();
    CHECK(header_comes(h.data, CALL_ALL_REDUCE, COMM_F32, 12, 7));
    memcpy(news, (char[]){'F', 1, (char)(length % 256), (char)(length / 256)}, 4);
    memset(news + 4, 'm', 511);
    send(h.pulse, news, length == 511 ? 204 : 54, MSG_NOSIGNAL);
    usleep(150000);
    if (length == 511) send(h.pulse, news + 204, 311, MSG_NOSIGNAL);
    CHECK_EQ(exit_code(pid), EXIT_MACHINE);
    CHECK_STR(notes->said, length == 511 ? rest : rest + 461);
    close_hand(h);
  }
}
static void endless_news(void) {
  prepare();
  pid_t pid = start_rank(2, 0, sum_body);
  Hand h = join_by_hand();
  reports_without_end(&h);
  CHECK_EQ(exit_code(pid), EXIT_MACHINE);
  CHECK_MSG(!strncmp(notes->said, "endless.", 8) && strlen(notes->said) == COMM_FAULT_ROOM - 1, "%zu bytes: %s", strlen(notes->said), notes->said);
  close_hand(h);
}
static void other_calls(void) {
  static const struct { uint64_t call, detail, bytes; const char *said; } cases[] = {
    {CALL_REDUCE_SCATTER, COMM_F32, 12, "reduce_scatter of 12 bytes"}, {CALL_ALL_REDUCE, COMM_F64, 12, "all_reduce of 12 bytes"}, {CALL_ALL_REDUCE, COMM_F32, 8, "all_reduce of 8 bytes"},
    {CALL_BARRIER, COMM_F32, 12, "barrier of 12 bytes"}, {CALL_COUNT, 0, 5, "an unknown call of 5 bytes"}, {UINT64_MAX, 0, 5, "an unknown call of 5 bytes"}};
  for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
    char said[400];
    other_call = cases[i].call, other_detail = cases[i].detail, other_bytes = cases[i].bytes;
    snprintf(said, sizeof said, "rank 1 is in %s at step 9, while rank 0 is in all_reduce of 12 bytes at step 7: all ranks must make the same call", cases[i].said);
    check_fault(makes_another_call, EXIT_MACHINE, said, 0, 2, "F\377B");
  }
}

// ---- each call byte by byte ----

static int each_body(Comm *c) {
  float x[32], y = 0;
  unsigned char byte = 77;
  for (int i = 0; i < 32; i++) x[i] = (float)i;
  c->barrier(c);
  c->broadcast(c, &byte, 1, 0);
  c->broadcast(c, &byte, 1, 1);
  c->reduce_scatter(c, x, 17, COMM_F32);
  c->all_gather(c, x, 17, COMM_F32);
  c->meet(c, CALL_ALL_GATHER, 5, 9);
  c->send(c, x, 4, 1);
  c->receive(c, &y, 4, 1);
  return byte != 78 || x[0] != 100 || x[15] != 115 || x[16] != 200 || y != 0.5f || c->bytes_received != 1 + 64 + 4 + 4;
}
static bool meet_by_hand(Hand h, uint64_t call, uint64_t detail, uint64_t bytes) {
  uint8_t header[HEADER_BYTES];
  make_header(header, call, detail, bytes, 7);
  return header_comes(h.data, call, detail, bytes, 7) && give(h.data, header, sizeof header);
}
static void every_byte_of_each_call(void) {
  float part[16];
  for (int i = 0; i < 16; i++) part[i] = 100;
  prepare();
  pid_t pid = start_rank(2, 0, each_body);
  Hand h = join_by_hand();
  char byte = 0;
  CHECK(meet_by_hand(h, CALL_BARRIER, 0, 0));
  CHECK(meet_by_hand(h, CALL_BROADCAST, 0, 1) && take(h.data, &byte, 1) == 1 && byte == 77);
  CHECK(meet_by_hand(h, CALL_BROADCAST, 1, 1) && give(h.data, "N", 1));
  CHECK(meet_by_hand(h, CALL_REDUCE_SCATTER, COMM_F32, 68) && floats_come(h.data, (const float[]){16}, 1) && give(h.data, part, sizeof part));
  CHECK(meet_by_hand(h, CALL_ALL_GATHER, COMM_F32, 68) && take(h.data, part, sizeof part) == sizeof part && part[0] == 100 && part[15] == 115 && give(h.data, (const float[]){200}, 4));
  CHECK(meet_by_hand(h, CALL_ALL_GATHER, 9, 5));
  uint8_t header[HEADER_BYTES];
  make_header(header, CALL_SEND, 0, 4, 7);
  CHECK(header_comes(h.data, CALL_SEND, 0, 4, 7) && floats_come(h.data, (const float[]){100}, 1) && give(h.data, header, sizeof header));
  CHECK(give(h.data, header, sizeof header) && give(h.data, (const float[]){0.5f}, 4) && header_comes(h.data, CALL_SEND, 0, 4, 7));
  CHECK_EQ(exit_code(pid), 0);
  close_hand(h);
}

// Parts that fill the staging buffer just once or twice, and a block more or less.
static size_t exact_count;
static int exact_body(Comm *c) {
  float *x = xmalloc(exact_count, sizeof *x);
  const CommPart mine = comm_part(exact_count, c->world, c->rank);
  bool bad = false;
  for (int call = 0; call < 2; call++) {
    for (size_t i = 0; i < exact_count; i++) x[i] = (float)(i % 1000 + (size_t)c->rank);
    if (call) c->reduce_scatter(c, x, exact_count, COMM_F32);
    else c->all_reduce(c, x, exact_count, COMM_F32);
    for (size_t i = call ? mine.first : 0; i < (call ? mine.first + mine.n : exact_count); i++) bad |= x[i] != (float)(2 * (i % 1000) + 1);
  }
  free(x);
  return bad;
}
static void exact_pieces(void) {
  for (size_t pieces = 1; pieces <= 2; pieces++)
    for (int more = -16; more <= 16; more += 16) {
      exact_count = (size_t)((int)(2 * 65536 * pieces) + more);
      run_group(2, exact_body);
    }
}

// ---- what a transport that rides on this one needs ----

static int rider_body(Comm *c) {
  c->announce(c, CALL_ALL_REDUCE, 12);
  for (int i = 0; i < 500; i++) { if (c->fault_known(c)) c->leave(c); usleep(10000); }
  return 0;
}
static int reporting_body(Comm *c) {
  if (c->fault_known(c)) return 1;
  c->report(c, long_text);
  if (!c->fault_known(c)) return 2;
  c->leave(c);
  return 3;
}
static void riders(void) {
  for (int stands_still = 0; stands_still < 2; stands_still++) {
    prepare();
    meeting.still_seconds = 1;
    pid_t pid = start_rank(2, 0, rider_body);
    Hand h = join_by_hand();
    if (!stands_still) ends(&h);
    CHECK_EQ(exit_code(pid), EXIT_MACHINE);
    CHECK_STR(notes->said, stands_still ? "rank 1 has stood still for 1 seconds (stopped, or its machine or the network is down) while rank 0 is in all_reduce of 12 bytes at step 7"
                                        : "rank 1 has ended (killed, or out of memory, or its machine is gone) while rank 0 is in all_reduce of 12 bytes at step 7");
    if (stands_still) close_hand(h);
  }
  uint8_t news[1024];
  int beats;
  prepare();
  memset(long_text, 'n', 300);
  pid_t pid = start_rank(2, 0, reporting_body);
  Hand h = join_by_hand();
  CHECK_EQ(news_of(h.pulse, news, &beats), 305);
  CHECK(news[0] == 'F' && news[1] == 255 && news[2] == 300 % 256 && news[3] == 300 / 256 && !memcmp(news + 4, long_text, 300) && news[304] == 'B');
  CHECK_EQ(exit_code(pid), EXIT_MACHINE);
  CHECK_STR(notes->said, long_text);
  close_hand(h);
}

// ---- waits that end well ----

static double most_cpu;
static int waiting_body(Comm *c) {     // without keeping a core busy
  struct rusage before, after;
  getrusage(RUSAGE_SELF, &before);
  int code = sum_body(c);
  getrusage(RUSAGE_SELF, &after);
  const double busy = (double)(after.ru_utime.tv_sec - before.ru_utime.tv_sec + after.ru_stime.tv_sec - before.ru_stime.tv_sec) +
                      1e-6 * (double)(after.ru_utime.tv_usec - before.ru_utime.tv_usec + after.ru_stime.tv_usec - before.ru_stime.tv_usec);
  return code ? code : busy > most_cpu ? 9 : 0;
}
// The seconds in calls are added up.
static int two_late_body(Comm *c) {
  const double start = seconds_now();
  int code = sum_body(c) | sum_body(c);
  return code || !(c->seconds > 0.25 && c->seconds <= seconds_now() - start);
}
static void late_sums(void) {
  prepare();
  pid_t pid = start_rank(2, 0, two_late_body);
  Hand h = join_by_hand();
  for (int i = 0; i < 2; i++) { usleep(150000); CHECK(sum_by_hand(h)); }
  CHECK_EQ(exit_code(pid), 0);
  close_hand(h);
}

// The other one is a call ahead, and takes its time to read this one's: what waits to be read is not looked at again and again.
enum { MANY_BYTES = 16 << 20 };
static int ahead_body(Comm *c) {
  struct rusage before, after;
  char *x = xcalloc(MANY_BYTES, 1);
  getrusage(RUSAGE_SELF, &before);
  c->broadcast(c, x, MANY_BYTES, 0);
  getrusage(RUSAGE_SELF, &after);
  c->barrier(c);
  free(x);
  const double busy = (double)(after.ru_utime.tv_sec - before.ru_utime.tv_sec + after.ru_stime.tv_sec - before.ru_stime.tv_sec) +
                      1e-6 * (double)(after.ru_utime.tv_usec - before.ru_utime.tv_usec + after.ru_stime.tv_usec - before.ru_stime.tv_usec);
  return busy > 0.35;
}
static void a_call_ahead(void) {
  uint8_t headers[2 * HEADER_BYTES];
  char *x = xmalloc(MANY_BYTES, 1);
  prepare();
  pid_t pid = start_rank(2, 0, ahead_body);
  Hand h = join_by_hand();
  make_header(headers, CALL_BROADCAST, 0, MANY_BYTES, 7), make_header(headers + HEADER_BYTES, CALL_BARRIER, 0, 0, 7);
  CHECK(send(h.data, headers, sizeof headers, MSG_NOSIGNAL) == sizeof headers);
  usleep(700000);
  CHECK(header_comes(h.data, CALL_BROADCAST, 0, MANY_BYTES, 7) && take(h.data, x, MANY_BYTES) == MANY_BYTES && header_comes(h.data, CALL_BARRIER, 0, 0, 7));
  CHECK_EQ(exit_code(pid), 0);
  free(x);
  close_hand(h);
}

// Bytes that come slowly, but come, meet any deadline.
static void slow_bytes(void) {
  uint8_t all[HEADER_BYTES + 12];
  const float own[3] = {10, 20, 30};
  make_header(all, CALL_ALL_REDUCE, COMM_F32, 12, 7);
  memcpy(all + HEADER_BYTES, own, 12);
  prepare();
  deadline = 0.7, most_cpu = 0.3;
  pid_t pid = start_rank(2, 0, waiting_body);
  Hand h = join_by_hand();
  for (size_t i = 0; i < sizeof all; i += 11) { usleep(250000); send(h.data, all + i, 11, MSG_NOSIGNAL); }
  CHECK_EQ(exit_code(pid), 0);
  close_hand(h);
  deadline = 20;
}
// Nor is the time counted in which a rank was stopped itself: neither for the deadline nor for the other's heart.
static void stopped_itself(void) {
  prepare();
  deadline = 0.8, meeting.still_seconds = 1;
  pid_t pid = start_rank(2, 0, sum_body);
  Hand h = join_by_hand();
  usleep(150000);
  kill(pid, SIGSTOP);
  usleep(1800000);
  kill(pid, SIGCONT);
  usleep(100000);
  CHECK(sum_by_hand(h));
  CHECK_EQ(exit_code(pid), 0);
  CHECK_STR(notes->said, "");
  close_hand(h);
  deadline = 20;
}

// ---- a rank's own fail() ----

static int wrong_peer_body(Comm *c) {
  char x[8] = {0};
  c->send(c, x, 8, 2);
  return 0;
}
static int own_peer_body(Comm *c) {
  char x[8];
  c->receive(c, x, 8, 0);
  return 0;
}
static void wrong_peers(void) {
  prepare();
  pid_t pid = start_rank(2, 0, wrong_peer_body);
  Hand h = join_by_hand();
  CHECK_EQ(exit_code(pid), EXIT_MACHINE);
  CHECK_STR(log_text(), "gpt: send: rank 0 of 2 cannot do that with rank 2\n");
  close_hand(h);
  prepare();
  pid = start_rank(2, 0, own_peer_body);
  h = join_by_hand();
  CHECK_EQ(exit_code(pid), EXIT_MACHINE);
  CHECK_STR(log_text(), "gpt: receive: rank 0 of 2 cannot do that with rank 0\n");
  close_hand(h);
}

static int failing_body(Comm *c) { (void)c; fail(EXIT_REQUEST, "what is wrong"); }
static int fail_late(void) {
  meeting.world = 2, meeting.rank = 0, meeting.port = port;
  dup2(standard_input[1], 0);
  const int before = count_sockets();
  Comm *c = comm_tcp_join(&meeting);
  c->destroy(c);
  if (count_sockets() != before) fail(EXIT_NO, "sockets are left");
  void *again = xzero(1 << 20);         // over what was freed
  memset(again, 0xee, 1 << 20);
  fail(EXIT_NO, "afterwards");
}
static void own_failures(void) {
  uint8_t news[1024];
  int beats;
  prepare();
  pid_t pid = start_rank(2, 0, failing_body);
  Hand h = join_by_hand();
  CHECK(news_of(h.pulse, news, &beats) == 1 && news[0] == 'Q');
  CHECK_EQ(exit_code(pid), EXIT_REQUEST);
  CHECK_STR(log_text(), "gpt: what is wrong\n");
  close_hand(h);
  for (int own = 0; own < 2; own++) {                      // where several ranks are one process, a fail is nobody's
    prepare();
    meeting.own_process = own;
    fflush(NULL);
    if (!(pid = fork())) { dup2(open(log_path, O_WRONLY | O_CREAT | O_TRUNC, 0600), 2); _exit(fail_late()); }
    h = join_by_hand();
    CHECK(news_of(h.pulse, news, &beats) == 1 && news[0] == 'L');
    CHECK_EQ(exit_code(pid), EXIT_NO);
    CHECK_STR(log_text(), "gpt: afterwards\n");
    close_hand(h);
  }
  prepare();
  meeting.own_process = false;
  pid = start_rank(2, 0, failing_body);
  h = join_by_hand();
  CHECK(news_of(h.pulse, news, &beats) == 0);
  CHECK_EQ(exit_code(pid), EXIT_REQUEST);
  close_hand(h);
}

// By none of the ranks so far.
static void standard_input_is_left_alone(void) {
  char byte;
  CHECK(recv(standard_input[0], &byte, 1, MSG_DONTWAIT) < 0);
}

int main(int argc, char **argv) {
  TEST_BEGIN(argc, argv);
  make_notes();
  tcp = true;
  alarm(120);             // it takes half a minute: what hangs ends, and is a failure
  if (socketpair(AF_UNIX, SOCK_STREAM, 0, standard_input)) abort();
  snprintf(log_path, sizeof log_path, "%s/gpt-test-tcp-%d", getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp", (int)getpid());
  RUN(every_byte_of_joining);
  RUN(who_may_not_come_in);
  RUN(silence_and_noise);
  RUN(guests_are_sent_home);
  RUN(more_guests_than_chairs);
  RUN(sockets_while_joining);
  RUN(verdicts);
  RUN(joining_in_vain);
  RUN(answers_come_at_once);
  RUN(rank_0_by_hand);
  RUN(rank_0_ends);
  RUN(an_absent_rank_is_named);
  RUN(the_port_is_free_again);
  RUN(six);
  RUN(ports_that_are_not_free);
  RUN(a_heart_beats_four_times_a_second);
  RUN(last_words);
  RUN(endless_news);
  RUN(long_news);
  RUN(other_calls);
  RUN(every_byte_of_each_call);
  RUN(exact_pieces);
  RUN(riders);
  RUN(a_call_ahead);
  RUN(late_sums);
  RUN(slow_bytes);
  RUN(stopped_itself);
  RUN(wrong_peers);
  RUN(own_failures);
  RUN(standard_input_is_left_alone);
  unlink(log_path);
  return TEST_END();
}
