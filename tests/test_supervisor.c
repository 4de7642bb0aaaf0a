// test_supervisor.c: owns the proof of ranks.c without any training: what a supervisor prints, returns and leaves behind, whatever its ranks write, say, or die of; what
// launchers and flags say; what ranks agree on. tests/test_ranks.sh and tests/test_join.sh try the same with the whole program. `test_supervisor WORD` runs some.
#include "device.h"         // cuda_unavailable
#include "ranks.h"
#include "test.h"
#include "util.h"
#include <fcntl.h>          // open
#include <poll.h>           // ppoll
#include <signal.h>         // kill
#include <sys/mman.h>       // mmap
#include <sys/resource.h>   // setrlimit
#include <sys/stat.h>       // chmod
#include <sys/syscall.h>    // SYS_clock_gettime
#include <time.h>           // timespec

static char folder[300];           // temporary: out, err, token
static char *in(const char *name) { static char path[400]; snprintf(path, sizeof path, "%s/%s", folder, name); return path; }
static const char *text_of(const char *name) {
  static char text[16384];
  FILE *f = fopen(in(name), "r");
  const size_t n = f ? fread(text, 1, sizeof text - 1, f) : 0;
  text[n] = 0;
  if (f) fclose(f);
  return text;
}

// A rank that fails leaves its memory to the system.
const char *__asan_default_options(void);
const char *__asan_default_options(void) { return "detect_leaks=0"; }

// ---- a supervisor and its ranks ----

typedef struct { _Atomic int ready, go, descriptors[8]; _Atomic pid_t pids[8], hasty; } Notes;
static Notes *notes;
static void wait_until(_Atomic int *x, int least) { for (int i = 0; i < 2000 && atomic_load(x) < least; i++) usleep(5000); }
static void say(const char *text) { (void)!write(2, text, strlen(text)); }

// Starts a supervisor of `world` ranks, of which each does `body` and ends with what it returns.
static pid_t supervise(int world, int (*body)(Comm *)) {
  memset(notes, 0, sizeof *notes);
  fflush(NULL);
  pid_t pid = fork();
  if (pid) return pid;
  setpgid(0, 0);
  dup2(open(in("out"), O_WRONLY | O_CREAT | O_TRUNC | O_APPEND, 0600), 1);
  dup2(open(in("err"), O_WRONLY | O_CREAT | O_TRUNC | O_APPEND, 0600), 2);
  Options o = {.ranks = world};
  Comm *c = ranks_start(&o, world, (const uint8_t[32]){0});
  notes->pids[c->rank] = getpid();
  printf("rank %d prints\n", c->rank);
  int code = body(c);
  fflush(stdout);
  _exit(code);
}
static int exit_code(pid_t pid) {
  int status;
  waitpid(pid, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}
static bool all_gone(int world) {
  for (int r = 0; r < world; r++)
    for (int i = 0; notes->pids[r] && kill(notes->pids[r], 0) == 0; i++) { if (i == 200) return false; usleep(10000); }
  return true;
}
static bool expect_gone;           // at once, not a little later
static void expect(const char *what, int world, int (*body)(Comm *), int code, const char *err, double least, double most) {
  const double start = seconds_now();
  pid_t pid = supervise(world, body);
  const int got = exit_code(pid);
  for (int r = 0; r < world && expect_gone; r++) CHECK_MSG(kill(notes->pids[r], 0), "%s: rank %d is still there", what, r);
  const double took = seconds_now() - start;
  CHECK_MSG(got == code, "%s: exit code %d, expected %d", what, got, code);
  CHECK_MSG(!strcmp(text_of("err"), err), "%s: it said \"%s\", expected \"%s\"", what, text_of("err"), err);
  CHECK_MSG(took >= least && took < most, "%s: it took %.2f s", what, took);
  CHECK_MSG(all_gone(world), "%s: a rank is left", what);
  kill(-pid, SIGKILL);
}

static int leave(Comm *c, int code) { c->barrier(c); c->destroy(c); return code; }
static int peaceful(Comm *c) {       // rank 0 first: its code counts
  const int rank = c->rank;
  c->barrier(c);
  if (rank) usleep(100000);
  c->destroy(c);
  return rank == 0 ? 5 : 7;
}
static int two_leave(Comm *c) {      // and rank 0 last, with 0
  const int rank = c->rank;
  leave(c, 9);
  if (rank == 0) usleep(300000);
  return rank == 0 ? 0 : 9;
}
// All ranks have the same descriptors, standard input among them. One that leaves early is not listened to any more, nor is standard input in its place.
static double cpu_of_children(void) {
  struct rusage u;
  getrusage(RUSAGE_CHILDREN, &u);
  return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) + 1e-6 * (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec);
}
static int early(Comm *c) {
  const int rank = c->rank;
  int open_here = 0;
  for (int fd = 0; fd < 64; fd++) open_here += fcntl(fd, F_GETFD) >= 0;
  if (fcntl(0, F_GETFD) < 0) return 2;
  notes->descriptors[rank] = open_here;
  leave(c, 0);
  if (rank == 0) usleep(600000);
  return 0;
}
static void one_leaves_early(void) {
  int ends[2];
  const int before = dup(0);
  if (pipe(ends) || write(ends[1], "of standard input\n", 18) != 18) abort();
  dup2(ends[0], 0);
  const double busy = cpu_of_children();
  expect("all but one leave early", 3, early, 0, "", 0.5, 5);
  CHECK_MSG(cpu_of_children() - busy < 0.3, "computed for %.2f s", cpu_of_children() - busy);
  for (int r = 1; r < 3; r++) CHECK_EQ(notes->descriptors[r], notes->descriptors[0]);
  dup2(before, 0);
  close(before), close(ends[0]), close(ends[1]);
}

static void in_peace(void) {
  expect("all leave", 3, peaceful, 5, "", 0, 5);
  CHECK_STR(text_of("out"), "rank 0 prints\n");
  expect("rank 0 leaves last", 3, two_leave, 0, "", 0.25, 5);
}

static int talk(Comm *c) {
  if (c->rank == 0) { say("plain\ngpt: warning: of 0\nand a b"); usleep(60000); say("it\n"); }
  c->barrier(c);
  if (c->rank == 1) say("gpt: warning: of 1\nnoise\ngpt\ngpt:\n\n");
  usleep(100000);
  c->barrier(c);
  if (c->rank == 2) say("gpt: warning:\n");     // an error that looks nearly like a warning
  usleep(100000);
  c->barrier(c);
  if (c->rank != 2) say("gpt: another error\nand more\n");
  return leave(c, 0);
}
static int talk_at_length(Comm *c) {
  char longer[9000];
  memset(longer, 'l', sizeof longer);
  longer[8999] = 0;
  if (c->rank == 1) { say(longer); say("\nshort\nunended"); }
  return leave(c, 0);
}
static void lines(void) {
  expect("lines", 3, talk, 0, "plain\ngpt: warning: of 0\nand a bit\ngpt: rank 1: warning: of 1\ngpt: rank 1: noise\ngpt: rank 1: gpt\ngpt: rank 1: gpt:\ngpt: rank 1: \ngpt: rank 2: warning:\n", 0, 5);
  char expected[9200] = "";
  size_t n = 0;      // in pieces of 4,095; the byte that did not fit any more is dropped with the line's end
  for (size_t left = 8999; left; ) {
    n += (size_t)snprintf(expected + n, sizeof expected - n, "gpt: rank 1: ");
    const size_t piece = MIN(left, 4095);
    memset(expected + n, 'l', piece);
    n += piece, left -= piece;
    n += (size_t)snprintf(expected + n, sizeof expected - n, "\n");
  }
  snprintf(expected + n, sizeof expected - n, "gpt: rank 1: short\n");
  expect("a long line", 2, talk_at_length, 0, expected, 0, 5);
}

// ---- ranks that end ----

static int ends_how;
static int ends(Comm *c) {
  if (ends_how % 2) { ranks_share_folder(c, c->rank ? "another/run" : "some/run"); c->step = 6; }
  c->barrier(c);
  if (c->rank != 1) { for (int i = 0; i < 100; i++) { c->barrier(c); usleep(20000); } return 0; }
  if (ends_how / 2 == 0) raise(SIGKILL);
  if (ends_how / 2 == 1) raise(SIGABRT);
  if (ends_how / 2 == 2) return 4;
  if (ends_how / 2 == 3) { say("gpt: that is wrong\n"); return EXIT_REQUEST; }
  if (ends_how / 2 == 4) { say("gpt: warning: only\n"); return EXIT_REQUEST; }
  return 0;
}
static void ranks_that_end(void) {
  static const char *const said[] = {"rank 1 was ended by signal 9 (Killed: by hand, or because memory ran out)", "rank 1 was ended by signal 6 (Aborted)", "rank 1 ended with exit code 4", NULL, "rank 1 ended with exit code 2"};
  for (ends_how = 0; ends_how < 10; ends_how++) {
    char expected[600];
    const char *what = said[ends_how / 2];
    const int step = ends_how % 2 ? 6 : 0;
    snprintf(expected, sizeof expected, "%sgpt: %s between collectives (0 bytes under way) at step %d; the other ranks have stopped, %s\n", ends_how / 2 == 4 ? "gpt: rank 1: warning: only\n" : "", what ? what : "", step,
             ends_how % 2 ? "earlier checkpoints in some/run are intact: go on with gpt train --resume some/run" : "nothing was saved yet: start again");
    expect(what ? what : "its own words", 3, ends, what ? EXIT_MACHINE : EXIT_REQUEST, what ? expected : "gpt: rank 1: that is wrong\n", 0, 4);
  }
}

// Whoever does not notice a fault is given five seconds, and then ended.
static _Noreturn int lingers(Comm *c) {
  c->barrier(c);
  if (c->rank == 1) raise(SIGKILL);
  if (c->rank == 2) {                            // what it says meanwhile is taken, though nobody is told of it
    char noise[1000];
    memset(noise, 'n', sizeof noise);
    noise[998] = '\n', noise[999] = 0;
    usleep(2000000);
    for (int i = 0; i < 200; i++) say(noise);
    replace_file(in("marker"), "x", 1);
    _exit(0);
  }
  // so large that its end takes a while: the supervisor waits for it
  if (c->rank == 0) memset(xmalloc(200 << 20, 1), 1, 200 << 20);
  for (;;) pause();
}
static void those_who_linger(void) {
  unlink(in("marker"));
  const double busy = cpu_of_children();
  expect_gone = true;
  expect("a rank that notices nothing", 3, lingers, EXIT_MACHINE, "gpt: rank 1 was ended by signal 9 (Killed: by hand, or because memory ran out) between collectives (0 bytes under way) at step 0; the other ranks have stopped, nothing was saved yet: start again\n", 4.6, 5.99);
  expect_gone = false;
  CHECK(file_exists(in("marker")));
  CHECK_MSG(cpu_of_children() - busy < 2, "computed for %.2f s", cpu_of_children() - busy);
}

// Stand in for the system's clock and poll, for the process whose time flies: its waits take a fortieth, and its clock runs a hundred times as fast.
static _Atomic pid_t *hasty;
static bool hastens(void) { return hasty && *hasty == getpid(); }
int clock_gettime(clockid_t clock, struct timespec *t) {
  static struct timespec from;      // when it began to fly
  const long result = syscall(SYS_clock_gettime, clock, t);
  if (!hastens() || clock != CLOCK_MONOTONIC) return (int)result;
  if (!from.tv_sec) from = *t;
  const long long flown = from.tv_sec * 1000000000ll + from.tv_nsec + 100 * ((t->tv_sec - from.tv_sec) * 1000000000ll + t->tv_nsec - from.tv_nsec);
  *t = (struct timespec){.tv_sec = flown / 1000000000, .tv_nsec = flown % 1000000000};
  return (int)result;
}
int poll(struct pollfd *files, nfds_t n, int milliseconds) {
  const struct timespec wait = {.tv_sec = milliseconds / 1000, .tv_nsec = (hastens() ? 25000 : 1000000) * (milliseconds % 1000)};
  return ppoll(files, n, &wait, NULL);
}

// All ranks are stopped at once: none waits for another and sees it, only the supervisor does.
static _Noreturn int stands(Comm *c) {
  c->barrier(c);
  atomic_fetch_add(&notes->ready, 1);
  for (;;) pause();
}
static void all_stand_still(void) {
  pid_t pid = supervise(2, stands);
  wait_until(&notes->ready, 2);
  for (int r = 0; r < 2; r++) kill(notes->pids[r], SIGSTOP);
  notes->hasty = pid;
  int status = 0;
  pid_t ended = 0;
  for (int i = 0; i < 500 && !(ended = waitpid(pid, &status, WNOHANG)); i++) usleep(10000);
  CHECK_MSG(ended == pid, "the supervisor waits for ranks that all stand still");
  if (!ended) kill(-pid, SIGKILL), waitpid(pid, &status, 0);
  CHECK_EQ(WEXITSTATUS(status), EXIT_MACHINE);
  char *said = xstrdup(text_of("err"));
  if (!strncmp(said, "gpt: rank 1", 11)) said[10] = '0';      // whichever heart beat last
  CHECK_STR(said, "gpt: rank 0 has stood still for 20 seconds (stopped, or its machine is overloaded) between collectives (0 bytes under way) at step 0; the other ranks have stopped, nothing was saved yet: start again\n");
  free(said);
  CHECK(all_gone(2));
}

static _Noreturn int sleepy(Comm *c) { (void)c; for (;;) pause(); }
static void start_too_many(void) {
  struct rlimit few = {40, 40};
  setrlimit(RLIMIT_NOFILE, &few);
  Options o = {.ranks = 60};
  sleepy(ranks_start(&o, 60, (const uint8_t[32]){0}));
}
static void ranks_that_cannot_be_started(void) {
  EXPECT_FAIL(EXIT_MACHINE, " of 60 could not be started: Too many open files; use fewer --ranks", start_too_many());
}

// ---- signals ----

static bool catches, asked_first, only_rank_0;
static int obeys(Comm *c) {
  StepTimes t = {0};
  char slow[128];
  if (catches && (c->rank == 0 || !only_rank_0)) ranks_catch_signals(c);
  c->barrier(c);
  atomic_fetch_add(&notes->ready, 1);
  for (int i = 0; i < 2000; i++) {
    const int number = ranks_agree(c, &t, slow);
    if (number) { if (asked_first) for (;;) pause(); return leave(c, 128 + number); }
    usleep(2000);
  }
  return 1;
}
static void check_signal(const char *what, bool catch, bool ignore, int whom, int number, int second, int code) {
  catches = catch, asked_first = ignore;
  const double start = seconds_now();
  pid_t pid = supervise(3, obeys);
  wait_until(&notes->ready, 3);
  usleep(30000);
  kill(whom < 0 ? pid : notes->pids[whom], number);
  if (second) { usleep(300000); kill(pid, second); }
  const int got = exit_code(pid);
  CHECK_MSG(got == code, "%s: exit code %d, expected %d: %s", what, got, code, text_of("err"));
  CHECK_MSG(text_of("err")[0] == 0, "%s: %s", what, text_of("err"));
  CHECK_MSG(seconds_now() - start < 4, "%s: took %.2f s", what, seconds_now() - start);
  CHECK_MSG(all_gone(3), "%s: a rank is left", what);
}
static void signals(void) {
  check_signal("SIGINT in training", true, false, -1, SIGINT, 0, 130);
  check_signal("SIGTERM in training", true, false, -1, SIGTERM, 0, 143);
  check_signal("SIGTERM to one rank", true, false, 1, SIGTERM, 0, 143);
  check_signal("SIGINT before it", false, false, -1, SIGINT, 0, 130);
  check_signal("SIGTERM before it", false, false, -1, SIGTERM, 0, 143);
  check_signal("a second one", true, true, -1, SIGTERM, SIGINT, 130);
  only_rank_0 = true;                            // it is rank 0 that says that they train
  check_signal("... where rank 0 trains", true, true, -1, SIGTERM, SIGINT, 130);
  only_rank_0 = false;
  // a terminal's SIGINT to a rank is none of its business
  catches = true, asked_first = false;
  pid_t pid = supervise(3, obeys);
  wait_until(&notes->ready, 3);
  for (int r = 0; r < 3; r++) kill(notes->pids[r], SIGINT);
  usleep(200000);
  CHECK(waitpid(pid, NULL, WNOHANG) == 0);
  kill(pid, SIGTERM);
  CHECK_EQ(exit_code(pid), 143);
}
// If the supervisor is killed its ranks are asked to stop; before they train they end at once.
static int survives(Comm *c) {
  const int rank = c->rank, code = obeys(c);
  if (rank == 0) { say("gpt: warning: nobody reads this\n"); replace_file(in("marker"), "x", 1); }
  return code;
}
static _Noreturn int waits(Comm *c) { (void)c; atomic_fetch_add(&notes->ready, 1); for (;;) pause(); }
static void the_supervisor_killed(void) {
  unlink(in("marker"));
  catches = true, asked_first = false;
  pid_t pid = supervise(3, survives);
  wait_until(&notes->ready, 3);
  kill(pid, SIGKILL);
  exit_code(pid);
  for (int i = 0; i < 300 && !file_exists(in("marker")); i++) usleep(10000);
  CHECK(file_exists(in("marker")));
  CHECK(all_gone(3));
  pid = supervise(3, waits);
  wait_until(&notes->ready, 3);
  kill(pid, SIGKILL);
  exit_code(pid);
  CHECK(all_gone(3));
}

// A world of one has no supervisor: the first signal is a wish, the second ends it.
static void alone(void) {
  for (int again = 0; again < 2; again++)
    for (int term = 0; term < 2; term++) {
      fflush(NULL);
      pid_t pid = fork();
      if (!pid) {
        Options o = {.ranks = 1};
        StepTimes t = {0};
        char slow[128];
        Comm *c = ranks_start(&o, 1, (const uint8_t[32]){0});
        ranks_catch_signals(c);
        ranks_share_folder(c, "x");
        if (ranks_agree(c, &t, slow) || c->world != 1) _exit(1);
        raise(term ? SIGTERM : SIGINT);
        if (again) raise(term ? SIGTERM : SIGINT);
        _exit(ranks_agree(c, &t, slow));
      }
      const int number = term ? SIGTERM : SIGINT;
      CHECK_EQ(exit_code(pid), again ? 1000 + number : number);
    }
}

// ---- what flags and launchers say ----

static void set(const char *name, const char *value) { if (value) setenv(name, value, 1); else unsetenv(name); }
static void write_token(size_t n, const char *behind, mode_t mode) {
  char *text = xmalloc(n + 10, 1);
  memset(text, 't', n);
  strcpy(text + n, behind);
  replace_file(in("token"), text, n + strlen(behind));
  chmod(in("token"), mode);
  free(text);
}
static Options meet(const char *rendezvous) { return (Options){.ranks = 1, .rendezvous = rendezvous, .token = xstrdup(in("token")), .rank = 0, .world = 2}; }
static void place(Options o) { ranks_place(&o); exit(0); }

static void meetings(void) {
  write_token(16, "", 0600);
  static const struct { const char *text, *host; uint32_t port; } good[] = {{"127.0.0.1:29400", "127.0.0.1", 29400}, {"node7:1", "node7", 1}, {"a:65535", "a", 65535}, {"[::1]:80", "::1", 80}, {"::1:80", "::1", 80}, {"x]:80", "x]", 80}, {"[x:80", "[x", 80}};
  for (size_t i = 0; i < ARRAY_LEN(good); i++) {
    Options o = meet(good[i].text);
    o.world = 3;
    ranks_place(&o);
    const CommMeeting *m = ranks_meeting();
    CHECK_STR(m->host, good[i].host);
    CHECK(m->port == good[i].port && m->rank == 0 && m->world == 3 && m->seconds == 300 && m->still_seconds == 20 && m->own_process && m->token_bytes == 16 && m->say && strchr(m->version, ' '));
    CHECK(o.ranks == 3 && o.given[FLAG_ranks] && o.given[FLAG_gpus]);
  }
  char longer[270];
  memset(longer, 'h', sizeof longer);
  strcpy(longer + 255, ":80");
  Options o = meet(longer);
  ranks_place(&o);
  CHECK_EQ(strlen(ranks_meeting()->host), 255);
  memcpy(longer + 255, "h:80", 5);
  EXPECT_FAIL(EXIT_REQUEST, ": HOST:PORT is needed, as 127.0.0.1:29400 or node7:29400, port from 1 to 65535", place(meet(longer)));
  static const char *const bad[] = {"", ":", ":80", "a", "a:", "a:0", "a:65536", "a:80x", "a:x"};
  for (size_t i = 0; i < ARRAY_LEN(bad); i++) EXPECT_FAIL(EXIT_REQUEST, ": HOST:PORT is needed", place(meet(bad[i])));
}
static void tokens(void) {
  static const struct { size_t n, bytes; const char *behind; mode_t mode; const char *refusal; } cases[] = {
    {16, 16, "", 0600, NULL}, {16, 16, " \n\r\t\n", 0400, NULL}, {17, 17, "\n", 0700, NULL}, {4096, 4096, "", 0600, NULL},
    {15, 0, "", 0600, ": has 15 bytes, at least 16 are needed"}, {15, 0, "\n\n", 0600, ": has 15 bytes, at least 16 are needed"}, {0, 0, "", 0600, ": has 0 bytes, at least 16 are needed"},
    {0, 0, " \n", 0600, ": has 0 bytes"}, {4097, 0, "", 0600, "4096"},
    {16, 0, "", 0640, ": others may read it (mode 640); chmod 600 "}, {16, 0, "", 0620, "(mode 620)"}, {16, 0, "", 0610, "(mode 610)"}, {16, 0, "", 0604, "(mode 604)"}, {16, 0, "", 0602, "(mode 602)"}, {16, 0, "", 0601, "(mode 601)"}};
  for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
    write_token(cases[i].n, cases[i].behind, cases[i].mode);
    Options o = meet("127.0.0.1:80");
    if (cases[i].refusal) { EXPECT_FAIL(EXIT_REQUEST, cases[i].refusal, place(o)); continue; }
    ranks_place(&o);
    CHECK_EQ(ranks_meeting()->token_bytes, cases[i].bytes);
    CHECK(((const char *)ranks_meeting()->token)[cases[i].bytes - 1] == 't');
  }
}

static void launchers(void) {
  static const struct { const char *rank, *world, *here, *local; } names[] = {
    {"SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_TASKS_PER_NODE", "SLURM_LOCALID"},
    {"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"},
    {"PMI_RANK", "PMI_SIZE", "MPI_LOCALNRANKS", "MPI_LOCALRANKID"}};
  static const char *const started[] = {"Slurm started 4 processes", "Open MPI started 4 processes", "MPI started 4 processes"};
  for (size_t l = 0; l < ARRAY_LEN(names); l++) for (int i = 0; i < 4; i++) set((&names[l].rank)[i], NULL);
  write_token(16, "", 0600);
  const Comm comm = {.rank = 5, .world = 8};
  Options gpus = {.gpus = 8}, alone_here = {.ranks = 6};
  CHECK(ranks_gpu(&gpus, &comm) == 5 && ranks_gpu(&alone_here, &comm) == 0 && ranks_here(&alone_here) == 6);
  for (size_t l = 0; l < ARRAY_LEN(names); l++) {
    // "-1": no number of a rank, as are others than from 0 to 64
    static const struct { const char *rank, *world, *here, *local; int is_rank, is_world, is_here, is_local; } cases[] = {
      {"0", "2", NULL, NULL, 0, 2, 1, 0}, {"3", "4", "2", "1", 3, 4, 2, 1}, {"63", "64", "64", "63", 63, 64, 64, 63}, {"3", "4", "0", "-1", 3, 4, 1, 0}, {"3", "4", "1", "", 3, 4, 1, 0},
      {"3", "4", "2x", "1x", 3, 4, 1, 0}, {"0", "65", NULL, "1", -1, -1, 1, 0}, {"", "4", NULL, "1", -1, -1, 1, 0}, {"0", "1", NULL, "1", -1, -1, 1, 0}, {"0x", "4", NULL, NULL, -1, -1, 1, 0}};
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
      set(names[l].rank, cases[i].rank), set(names[l].world, cases[i].world), set(names[l].here, cases[i].here), set(names[l].local, cases[i].local);
      Options o = meet("node7:29400");
      o.rank = o.world = AUTO_INT;
      if (cases[i].is_rank < 0) { EXPECT_FAIL(EXIT_REQUEST, "--rendezvous needs --rank and --world, for no launcher (Slurm, MPI) says which rank this is", place(o)); }
      else {
        FILE *keep = fdopen(dup(1), "w");
        const int terminal = dup(1);
        ranks_place(&o);
        dup2(terminal, 1);
        close(terminal);
        fclose(keep);
        CHECK_MSG(o.rank == cases[i].is_rank && o.world == cases[i].is_world && o.ranks == cases[i].is_world, "launcher %zu, case %zu: rank %lld of %lld", l, i, (long long)o.rank, (long long)o.world);
      }
      o.ranks = 9;
      CHECK_MSG(ranks_here(&o) == cases[i].is_here, "launcher %zu, case %zu: %d here", l, i, ranks_here(&o));
      CHECK_MSG(ranks_gpu(&o, &comm) == cases[i].is_local, "launcher %zu, case %zu: GPU %d", l, i, ranks_gpu(&o, &comm));
      CHECK_EQ(ranks_gpu(&alone_here, &comm), 0);
      if (cases[i].is_here != 1) continue;
      o.rendezvous = "127.9.9.9:1";
      CHECK_EQ(ranks_here(&o), cases[i].here && !strcmp(cases[i].here, "1") ? 1 : 9);
      o.rendezvous = "localhost:1";
      CHECK_EQ(ranks_here(&o), cases[i].here && !strcmp(cases[i].here, "1") ? 1 : 9);
      o.rendezvous = "localhosts:1";
      CHECK_EQ(ranks_here(&o), 1);
      o.rendezvous = "127x";
      CHECK_EQ(ranks_here(&o), 1);
    }
    set(names[l].rank, "2"), set(names[l].world, "4");
    const Options none = {.ranks = 1, .rank = AUTO_INT, .world = AUTO_INT};
    EXPECT_FAIL(EXIT_REQUEST, started[l], place(none));
    Options many = none;
    many.ranks = 2;
    ranks_place(&many);
    many = none, many.gpus = 2;
    ranks_place(&many);
    many = none, many.gpus = 1;
    EXPECT_FAIL(EXIT_REQUEST, started[l], place(many));
    for (int i = 0; i < 4; i++) set((&names[l].rank)[i], NULL);
  }
}

// What a Slurm of several nodes really says (22.05, `srun -N3 -n4 env`), and what it and mpirun say of each other's processes.
static void launchers_within_launchers(void) {
  static const struct { const char *tasks, *node; int here; } cases[] = {
    {"2,1(x2)", "0", 2}, {"2,1(x2)", "1", 1}, {"2,1(x2)", "2", 1}, {"2,1(x2)", "3", 1 /* there is none: as if nothing were said */}, {"4(x3),7", "2", 4}, {"4(x3),7", "3", 7}, {"5", NULL, 5}, {"5,6", NULL, 5},
    {"64", "0", 64}, {"65", "0", 1}, {"0", "0", 1}, {"-1", "0", 1}, {"2(x", "0", 1}, {"2(x0),3", "0", 1}, {"2(x3", "0", 1}, {"2(x3)9", "0", 1}, {"2;3", "0", 1}, {"2,", "1", 1}, {",2", "0", 1}, {"2(y3)", "0", 1}};
  const Comm comm = {.rank = 5, .world = 8};
  Options o = meet("node7:29400");
  set("SLURM_PROCID", "1"), set("SLURM_STEP_NUM_TASKS", "3"), set("SLURM_LOCALID", "1");
  for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
    set("SLURM_STEP_TASKS_PER_NODE", cases[i].tasks), set("SLURM_NODEID", cases[i].node);
    CHECK_MSG(ranks_here(&o) == cases[i].here, "%s on node %s: %d here", cases[i].tasks, cases[i].node ? cases[i].node : "not said", ranks_here(&o));
  }
  set("SLURM_STEP_TASKS_PER_NODE", "2(x3)"), set("SLURM_NODEID", "1");
  set("PMI_RANK", "4"), set("PMI_SIZE", "6");   // srun --mpi=pmi2: rank and world; the rest from Slurm
  CHECK(ranks_here(&o) == 2 && ranks_gpu(&o, &comm) == 1);
  set("MPI_LOCALNRANKS", "4"), set("MPI_LOCALRANKID", "3");   // mpiexec in a job
  CHECK(ranks_here(&o) == 4 && ranks_gpu(&o, &comm) == 3);
  write_token(16, "", 0600);
  o.rank = o.world = AUTO_INT;
  set("OMPI_COMM_WORLD_RANK", "0"), set("OMPI_COMM_WORLD_SIZE", "9");   // mpirun in a job: Slurm's numbers are those of mpirun's helper
  ranks_place(&o);
  CHECK(o.rank == 0 && o.world == 9);
  static const char *const used[] = {"SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE", "SLURM_NODEID", "PMI_RANK", "PMI_SIZE", "MPI_LOCALNRANKS", "MPI_LOCALRANKID", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"};
  for (size_t i = 0; i < ARRAY_LEN(used); i++) set(used[i], NULL);
}

static void count_with_no_room(void) {
  struct rlimit none = {3, 3};
  setrlimit(RLIMIT_NOFILE, &none);
  Options o = {.gpus = 2};
  ranks_start(&o, 2, (const uint8_t[32]){0});
}
static void flags(void) {
  const Options none = {.ranks = 1, .rank = AUTO_INT, .world = AUTO_INT};
  write_token(16, "", 0600);
  Options o = none;
  ranks_place(&o);
  CHECK(!o.given[FLAG_ranks] && !o.given[FLAG_gpus] && o.ranks == 1);
  o = none, o.ranks = 2, o.given[FLAG_ranks] = true;
  ranks_place(&o);
  CHECK(o.given[FLAG_ranks] && o.given[FLAG_gpus]);
  o = none, o.gpus = 2, o.given[FLAG_gpus] = true;
  ranks_place(&o);
  CHECK(o.given[FLAG_ranks] && o.given[FLAG_gpus]);
  o = none, o.gpus = 1;
  ranks_place(&o);
  o.ranks = 2;
  EXPECT_FAIL(EXIT_REQUEST, "--gpus 1 and --ranks 2 are both given", place(o));
  o = meet("a:1"), o.gpus = 2;
  EXPECT_FAIL(EXIT_REQUEST, "--gpus 2 and --rendezvous are both given", place(o));
  o = meet("a:1"), o.ranks = 2;
  EXPECT_FAIL(EXIT_REQUEST, "--ranks 2 and --rendezvous are both given", place(o));
  o = none, o.token = "x";
  EXPECT_FAIL(EXIT_REQUEST, "--token needs --rendezvous HOST:PORT", place(o));
  o = none, o.rank = 0;
  EXPECT_FAIL(EXIT_REQUEST, "--rank needs --rendezvous HOST:PORT", place(o));
  o = none, o.world = 1;
  EXPECT_FAIL(EXIT_REQUEST, "--world needs --rendezvous HOST:PORT", place(o));
  o = meet("a:1"), o.token = NULL;
  EXPECT_FAIL(EXIT_REQUEST, "--rendezvous needs --token FILE", place(o));
  o = meet("a:1"), o.rank = 2;
  EXPECT_FAIL(EXIT_REQUEST, "--rank 2: with --world 2 ranks are numbered from 0 to 1", place(o));
  o = meet("a:1"), o.rank = AUTO_INT;
  EXPECT_FAIL(EXIT_REQUEST, "needs --rank and --world", place(o));
  o = meet("a:1"), o.world = AUTO_INT;
  EXPECT_FAIL(EXIT_REQUEST, "needs --rank and --world", place(o));
  o = meet("a:1"), o.rank = 0, o.world = 1;
  ranks_place(&o);
  CHECK_EQ(o.ranks, 1);
  if (cuda_unavailable() == NULL) return;
  EXPECT_FAIL(EXIT_MACHINE, "a process that counts the GPUs could not be started: Too many open files", count_with_no_room());
  Options gpus = {.gpus = 2};
  EXPECT_FAIL(EXIT_MACHINE, "; or use --ranks 2 on the CPU", ranks_start(&gpus, 2, (const uint8_t[32]){0}));
}

// ---- what ranks agree on, over a communicator that knows what the others would say ----

static int others_signal;                      // of rank 2
static double others[5][PHASE_COUNT];          // seconds of each rank
static double deadline_in_barrier;
static void tell_others(Comm *c, void *x, size_t n, CommType type) {
  double *v = x;
  CHECK(type == COMM_F64 && n == (size_t)(2 + c->world * PHASE_COUNT));
  for (int r = 0; r < c->world; r++) for (int p = 0; p < PHASE_COUNT; p++) {
    if (r == c->rank) CHECK(v[2 + r * PHASE_COUNT + p] == others[r][p]);
    else { CHECK(v[2 + r * PHASE_COUNT + p] == 0); v[2 + r * PHASE_COUNT + p] = others[r][p]; }
  }
  if (others_signal == SIGINT || others_signal < 0) v[0] += 1;
  if (others_signal == SIGTERM || others_signal < 0) v[1] += 1;
}
static void note_deadline(Comm *c) { deadline_in_barrier = c->deadline; }
static size_t shared_bytes;
static void note_broadcast(Comm *c, void *x, size_t bytes, int root) {
  CHECK_EQ(root, 0);
  CHECK_STR(x, c->rank == 0 ? "runs/a" : "");
  shared_bytes = bytes;
}
static void gather_texts(Comm *c, void *x, size_t n, CommType type) {
  CHECK(type == COMM_F32 && n == (size_t)c->world * 64);
  char (*all)[256] = x;
  for (int r = 0; r < c->world; r++) if (r != c->rank) { memset(all[r], 0, 256); if (r == others_signal) memset(all[r], 'o', 255); }
}

static int agree(Comm *c, StepTimes *t, char slow[128]) {
  memcpy(t->own, others[c->rank], sizeof t->own);
  const int number = ranks_agree(c, t, slow);
  for (int p = 0; p < PHASE_COUNT; p++) CHECK(t->own[p] == 0);
  return number;
}
// Ten steps; what is said of them. In step i the seconds of `rank` in `phase` are those of `of`.
static void check_slow(int world, int own, int rank, int phase, const double of[10], const char *expected) {
  Comm c = {.rank = own, .world = world, .all_reduce = tell_others};
  StepTimes t = {.slow_rank = -7};
  char slow[128] = "?";
  for (int round = 0; round < 2; round++)
    for (int i = 0; i < 10; i++) {
      for (int r = 0; r < world; r++) for (int p = 0; p < PHASE_COUNT; p++) others[r][p] = 0.010 * (p + 1);
      others[rank][phase] = of[i];
      CHECK_EQ(agree(&c, &t, slow), 0);
      CHECK_EQ(t.steps, (i + 1) % 10);
      CHECK_STR(slow, i < 9 ? "" : expected);
    }
  CHECK_EQ(t.slow_rank, expected[0] ? rank : -7);
}
static void slow_ranks(void) {
  // the usual step takes 100 ms, its phases 10, 20, 30, 40; the median of ten steps is between the fifth and the sixth
  static const double late[10] = {0.041, 0.041, 0.041, 0.041, 0.041, 0.041, 0.041, 0.041, 0.041, 0.041}, half[10] = {0.010, 0.050, 0.010, 0.050, 0.010, 0.050, 0.010, 0.050, 0.010, 0.050},
                      most[10] = {9, 0.060, 0.010, 0.062, 0.010, 0.060, 0.010, 0.062, 0.010, 0.062}, less[10] = {0.034, 0.034, 0.034, 0.034, 0.034, 0.034, 0.034, 0.034, 0.034, 0.034},
                      once[10] = {0.010, 0.010, 9, 0.010, 0.010, 0.010, 0.010, 0.010, 0.010, 0.010};
  char expected[128];
  for (int world = 2; world <= 4; world++)
    for (int own = 0; own < world; own++) {
      snprintf(expected, sizeof expected, "rank %d computes 1.31 times as long as the others, most of it in reading data (31.0 ms a step more)", world - 1);
      check_slow(world, own, world - 1, PHASE_DATA, late, expected);
      check_slow(world, own, 0, PHASE_DATA, less, "");
      check_slow(world, own, 0, PHASE_DATA, once, "");
      check_slow(world, own, 0, PHASE_DATA, half, "");                // 30 ms in the middle: a fifth more
      check_slow(world, own, 0, PHASE_DATA, most, "rank 0 computes 1.50 times as long as the others, most of it in reading data (50.0 ms a step more)");
    }
  // of two the first is named
  Comm five = {.rank = 4, .world = 5, .all_reduce = tell_others};
  StepTimes t = {0};
  char slow[128];
  for (int i = 0; i < 10; i++) {
    for (int r = 0; r < 5; r++) for (int p = 0; p < PHASE_COUNT; p++) others[r][p] = r % 2 ? 0.020 : 0.010;
    agree(&five, &t, slow);
  }
  CHECK_STR(slow, "rank 1 computes 2.00 times as long as the others, most of it in reading data (10.0 ms a step more)");
  static const char *const words[] = {"reading data", "the forward pass", "the backward pass", "the update"};
  for (int phase = 0; phase < PHASE_COUNT; phase++) {
    double slower[10];
    for (int i = 0; i < 10; i++) slower[i] = 0.010 * (phase + 1) + 0.100;
    snprintf(expected, sizeof expected, "rank 1 computes 2.00 times as long as the others, most of it in %s (100.0 ms a step more)", words[phase]);
    check_slow(3, 0, 1, phase, slower, expected);
  }
}
// Less than a millisecond more is the system's noise, however much it is of a step; a world of one is never slow.
static void noise(void) {
  for (int world = 1; world <= 3; world++)
    for (int more = 0; more < 2; more++) {
      Comm c = {.rank = 0, .world = world, .all_reduce = tell_others};
      StepTimes t = {0};
      char slow[128];
      for (int i = 0; i < 10; i++) {
        for (int r = 0; r < world; r++) for (int p = 0; p < PHASE_COUNT; p++) others[r][p] = 0.0001;
        others[0][PHASE_UPDATE] = more ? 0.0012 : 0.0010;
        agree(&c, &t, slow);
      }
      CHECK_STR(slow, more && world > 1 ? "rank 0 computes 3.75 times as long as the others, most of it in the update (1.1 ms a step more)" : "");
    }
}
// Just 1.25 times as long, and just a millisecond longer, are not slow: numbers that are exact.
static void just_not_slow(void) {
  for (int least = 0; least < 2; least++) {
    Comm c = {.rank = 0, .world = 3, .all_reduce = tell_others};
    StepTimes t = {0};
    char slow[128];
    for (int i = 0; i < 10; i++) {
      for (int r = 0; r < 3; r++) for (int p = 0; p < PHASE_COUNT; p++) others[r][p] = least ? 0 : 0.0625;
      others[0][PHASE_FORWARD] = least ? 1e-3 : 0.125;
      agree(&c, &t, slow);
    }
    CHECK_STR(slow, "");
  }
}
static void wishes(void) {
  Comm c = {.rank = 0, .world = 3, .all_reduce = tell_others, .barrier = note_deadline, .all_gather = gather_texts, .deadline = 17};
  StepTimes t = {0};
  char slow[128], text[256];
  memset(others, 0, sizeof others);
  static const struct { int of_others, all; } cases[] = {{0, 0}, {SIGINT, SIGINT}, {SIGTERM, SIGTERM}, {-1, SIGINT}};
  for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
    others_signal = cases[i].of_others;
    CHECK_EQ(agree(&c, &t, slow), cases[i].all);
  }
  c.broadcast = note_broadcast;
  c.rank = 1;
  ranks_share_folder(&c, "runs/b");
  c.rank = 0;
  ranks_share_folder(&c, "runs/a");
  CHECK_EQ(shared_bytes, 4096);
  ranks_wait_for_rank_0(&c);
  CHECK(deadline_in_barrier == (double)INFINITY && c.deadline == 17);
  for (others_signal = 0; others_signal < 4; others_signal++)
    for (c.rank = 0; c.rank < 3; c.rank++) {
      memset(text, 0, sizeof text);
      ranks_first_text(&c, text);
      CHECK(strlen(text) == (others_signal != c.rank && others_signal < 3 ? 255 : 0));
      strcpy(text, "o");
      ranks_first_text(&c, text);
      CHECK_MSG(others_signal < c.rank && others_signal < 3 ? strlen(text) == 255 : !strcmp(text, "o"), "rank %d, others %d: %s", c.rank, others_signal, text);
    }
}

int main(int argc, char **argv) {
  TEST_BEGIN(argc, argv);
  notes = mmap(NULL, sizeof *notes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  hasty = &notes->hasty;
  test_folder(folder, sizeof folder, "supervisor");
  RUN(slow_ranks);
  RUN(noise);
  RUN(just_not_slow);
  RUN(wishes);
  RUN(launchers);
  RUN(launchers_within_launchers);
  RUN(flags);
  RUN(meetings);
  RUN(tokens);
  RUN(alone);
  RUN(in_peace);
  RUN(one_leaves_early);
  RUN(lines);
  RUN(ranks_that_end);
  RUN(signals);
  RUN(the_supervisor_killed);
  RUN(ranks_that_cannot_be_started);
  RUN(all_stand_still);
  RUN(those_who_linger);
  remove_tree(folder);
  return TEST_END();
}
