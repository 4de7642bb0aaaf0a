// ranks.c: owns the processes of a run: fork, the supervisor's loop, the one line when a rank fails, what launchers say, and what ranks
// agree on after each step. See ranks.h. Tests: tests/test_supervisor.c, tests/test_ranks.sh, tests/test_join.sh
#include "ranks.h"
#include "device.h"       // cuda_devices, cuda_unavailable
#include "version.h"      // GPT_VERSION, GPT_COMMIT
#include "util.h"         // fail, seconds_now
#include <errno.h>        // errno
#include <fcntl.h>        // fcntl
#include <math.h>         // INFINITY
#include <poll.h>         // poll
#include <signal.h>       // sigaction, kill
#include <stdlib.h>       // exit
#include <string.h>       // memset
#include <sys/prctl.h>    // PR_SET_PDEATHSIG
#include <sys/stat.h>     // stat
#include <sys/wait.h>     // waitpid
#include <unistd.h>       // fork, pipe, dup2

static CommShared *group;                       // NULL in a world of one
static volatile sig_atomic_t stop_signal;       // of a world of one; of the supervisor: the newest
static volatile sig_atomic_t signal_count;      // the supervisor's
static char folder[4096];                       // of the run, where there is no supervisor who has it

// ---- a rank ----

// A terminal that is closed sends SIGHUP, once by itself and once by its shell: it asks as SIGTERM does, but never twice.
static void on_signal(int number) {
  if (number == SIGHUP) { if (!stop_signal) stop_signal = SIGTERM; return; }
  if (stop_signal) { signal(number, SIG_DFL); raise(number); }    // the second of either kind ends it at once
  stop_signal = number;
}
static void on_rank_signal(int number) { (void)number; comm_shared_board(group)->stop_signal = SIGTERM; }

// Unless nohup has it ignored.
static void catch_hangup(const struct sigaction *action) {
  struct sigaction before;
  if (sigaction(SIGHUP, NULL, &before) == 0 && before.sa_handler != SIG_IGN) sigaction(SIGHUP, action, NULL);
}

void ranks_catch_signals(const Comm *c) {
  // A rank of many leaves SIGINT to the supervisor, for a terminal sends it to both; SIGTERM comes when the supervisor has died.
  struct sigaction alone = {.sa_handler = on_signal}, of_many = {.sa_handler = on_rank_signal, .sa_flags = SA_RESTART};
  if (!group) { sigaction(SIGINT, &alone, NULL); sigaction(SIGTERM, &alone, NULL); catch_hangup(&alone); return; }
  sigaction(SIGTERM, &of_many, NULL);
  if (c->rank == 0) comm_shared_board(group)->training = true;
}

void ranks_share_folder(Comm *c, const char *dir) {
  char *to = group ? comm_shared_board(group)->folder : folder;
  if (c->rank == 0) snprintf(to, sizeof folder, "%s", dir);
  if (!group) c->broadcast(c, folder, sizeof folder, 0);
}

// Only rank 0 prints.
static void be_silent(void) {
  if (!freopen("/dev/null", "w", stdout)) fail(EXIT_MACHINE, "/dev/null: cannot be opened: %s", strerror(errno));
}

static Comm *become_rank(int rank, pid_t supervisor, int errors) {
  prctl(PR_SET_PDEATHSIG, SIGTERM);
  if (getppid() != supervisor) _exit(EXIT_MACHINE);      // it died before the line above
  signal(SIGINT, SIG_IGN);
  signal(SIGHUP, SIG_IGN);
  signal(SIGTERM, SIG_DFL);
  signal(SIGPIPE, SIG_IGN);
  dup2(errors, STDERR_FILENO);
  close(errors);
  if (rank > 0) be_silent();
  return comm_shared_join(group, rank);
}

// ---- the supervisor ----

typedef struct {
  pid_t pid;               // 0: has ended
  int errors;              // what the rank writes to stderr; -1: closed
  bool spoke;              // it has written an error line
  char line[4096];         // what has come of a line
  size_t length;
} Ward;

typedef struct {
  int world;
  Ward wards[COMM_MOST_RANKS];
  bool said;               // the one line has been printed
  int code;                // exit code to end with
  bool failed;
} Supervisor;

static void on_supervisor_signal(int number) {
  if (number == SIGHUP && signal_count) return;
  stop_signal = number == SIGINT ? SIGINT : SIGTERM;
  signal_count++;
}

// After the one line that says what ended the run there is nothing to add.
static void print_line(Supervisor *s, int rank, const char *line) {
  bool ours = !strncmp(line, "gpt: ", 5), warning = !strncmp(line, "gpt: warning: ", 14);
  if (ours && !warning) s->wards[rank].spoke = true;
  if (s->said) return;
  if (rank == 0) fprintf(stderr, "%s\n", line);
  else fprintf(stderr, "gpt: rank %d: %s\n", rank, ours ? line + 5 : line);
  if (ours && !warning) s->said = true;
}

// Takes what a rank has written, and prints whole lines.
static void read_errors(Supervisor *s, int rank) {
  Ward *w = &s->wards[rank];
  char piece[4096];
  ssize_t n;
  while (w->errors >= 0 && (n = read(w->errors, piece, sizeof piece)) != 0) {
    if (n < 0) return;     // nothing more for now
    for (ssize_t i = 0; i < n; i++) {
      if (piece[i] != '\n') w->line[w->length++] = piece[i];
      if (piece[i] != '\n' && w->length < sizeof w->line - 1) continue;
      w->line[w->length] = 0;
      print_line(s, rank, w->line);
      w->length = 0;
    }
  }
  if (w->errors >= 0) close(w->errors);
  w->errors = -1;
}

static bool some_run(const Supervisor *s) {
  for (int r = 0; r < s->world; r++) if (s->wards[r].pid) return true;
  return false;
}

static void end_with(Supervisor *s, int code) {
  if (!s->failed) s->code = code;
  s->failed = true;
}

static void one_ended(Supervisor *s, int rank, int status) {
  char where[COMM_WHERE_ROOM];
  s->wards[rank].pid = 0;
  read_errors(s, rank);
  comm_shared_where(group, rank, where);
  int code = WIFEXITED(status) ? WEXITSTATUS(status) : EXIT_MACHINE;
  if (WIFSIGNALED(status)) {
    int number = WTERMSIG(status);
    comm_shared_abort(group, rank, "rank %d was ended by signal %d (%s%s) %s", rank, number, strsignal(number),
                      number == SIGKILL ? ": by hand, or because memory ran out" : "", where);
    end_with(s, EXIT_MACHINE);
  } else if (!comm_shared_left(group, rank)) {
    comm_shared_abort(group, rank, "rank %d ended with exit code %d %s", rank, code, where);
    end_with(s, s->wards[rank].spoke ? code : EXIT_MACHINE);
  } else if (rank == 0 && !s->failed) s->code = code;
}

static void collect(Supervisor *s) {
  for (int r = 0; r < s->world; r++) {
    int status;
    if (s->wards[r].pid && waitpid(s->wards[r].pid, &status, WNOHANG) == s->wards[r].pid) one_ended(s, r, status);
  }
}

static void end_all(Supervisor *s) {
  for (int r = 0; r < s->world; r++) {
    if (!s->wards[r].pid) continue;
    kill(s->wards[r].pid, SIGKILL);
    waitpid(s->wards[r].pid, NULL, 0);
  }
}

// The one line: who, what happened, in which operation of how many bytes at which step, and how to go on.
static void say_loss(const char *text, const char *run) {
  if (*run) fprintf(stderr, "gpt: %s; the other ranks have stopped, earlier checkpoints in %s are intact: go on with gpt train --resume %s\n", text, run, run);
  else fprintf(stderr, "gpt: %s; the other ranks have stopped, nothing was saved yet: start again\n", text);
}
static void say_fault(Supervisor *s) {
  char text[COMM_FAULT_ROOM];
  int rank;
  if (s->said || !comm_shared_fault(group, &rank, text)) return;
  s->said = true;
  say_loss(text, comm_shared_board(group)->folder);
}

// A fault has happened: the others see it in their next call. Whoever is stopped, or computes on, is ended after a while;
// a checkpoint under way is whole or absent, whenever its writer ends.
static void end_after_fault(Supervisor *s) {
  static const double GRACE = 5;
  double start = seconds_now();
  say_fault(s);
  end_with(s, EXIT_MACHINE);
  while (some_run(s) && seconds_now() - start < GRACE) {
    usleep(20000);
    for (int r = 0; r < s->world; r++) read_errors(s, r);
    collect(s);
  }
  end_all(s);
  exit(s->code);
}

static void pass_on_signals(Supervisor *s) {
  CommBoard *board = comm_shared_board(group);
  if (!signal_count || (signal_count == 1 && board->stop_signal)) return;
  if (signal_count == 1 && board->training) { board->stop_signal = stop_signal; return; }
  end_all(s);                              // too early for a checkpoint, or a second signal
  exit(128 + stop_signal);
}

static _Noreturn void supervise(Supervisor *s) {
  struct pollfd pipes[COMM_MOST_RANKS];
  while (some_run(s)) {
    for (int r = 0; r < s->world; r++) pipes[r] = (struct pollfd){.fd = s->wards[r].errors, .events = POLLIN};
    poll(pipes, (nfds_t)s->world, 100);    // a signal ends it, too
    for (int r = 0; r < s->world; r++) read_errors(s, r);
    collect(s);
    pass_on_signals(s);
    comm_shared_watch(group);
    int rank;
    char text[COMM_FAULT_ROOM];
    if (comm_shared_fault(group, &rank, text)) end_after_fault(s);
  }
  exit(s->code);
}

static Comm *start_here(int world) {
  static Supervisor s;
  pid_t supervisor = getpid();
  struct sigaction action = {.sa_handler = on_supervisor_signal};
  group = comm_shared_create(world, COMM_STILL_SECONDS);
  sigaction(SIGINT, &action, NULL);
  sigaction(SIGTERM, &action, NULL);
  catch_hangup(&action);
  fflush(NULL);
  s.world = world;
  for (int r = 0; r < world; r++) {
    int ends[2];
    pid_t pid = pipe2(ends, O_CLOEXEC) == 0 ? fork() : -1;
    if (pid < 0) { end_all(&s); fail(EXIT_MACHINE, "rank %d of %d could not be started: %s; use fewer --ranks", r, world, strerror(errno)); }
    if (pid == 0) {
      for (int i = 0; i < r; i++) close(s.wards[i].errors);
      close(ends[0]);
      return become_rank(r, supervisor, ends[1]);
    }
    close(ends[1]);
    fcntl(ends[0], F_SETFL, O_NONBLOCK);
    s.wards[r] = (Ward){.pid = pid, .errors = ends[0]};
  }
  supervise(&s);
}

// ---- ranks that others started ----

// Numbers that launchers give to each process they start: Open MPI, MPICH with its kin, and Slurm (a step's tasks). The innermost first:
// mpirun in a job of Slurm has a helper started on each node, whose numbers its processes inherit. Slurm's own PMI (srun --mpi=pmi2)
// says rank and world only; the rest is then Slurm's.
typedef struct { const char *name, *rank, *world, *local, *here, *node; } Launcher;   // node: where `here` tells of all nodes, which one this is
static const Launcher launchers[] = {
  {"Open MPI", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE", NULL},
  {"MPI", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS", NULL},
  {"Slurm", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE", "SLURM_NODEID"},
};
// -1: it is not there, or is no number of a rank.
static int number_of(const char *variable) {
  const char *text = getenv(variable);
  char *end;
  long n = text && *text ? strtol(text, &end, 10) : -1;
  return n < 0 || *end || n > COMM_MOST_RANKS ? -1 : (int)n;
}
// The launcher that started this process as one of several; the end of the table: none did.
static const Launcher *const no_launcher = launchers + ARRAY_LEN(launchers);
static const Launcher *launcher_here(void) {
  const Launcher *l = launchers;
  while (l < no_launcher && (number_of(l->rank) < 0 || number_of(l->world) < 2)) l++;
  return l;
}

// Processes on this node. Slurm says it of all nodes in runs, "2(x3),1" for 2, 2, 2 and 1; others say the number alone. 0: it is not there, or is neither.
static int tasks_here(const Launcher *l) {
  const char *text = getenv(l->here);
  long node = l->node ? MAX(number_of(l->node), 0) : 0;
  while (text) {
    char *end;
    long tasks = strtol(text, &end, 10), nodes = 1;
    if (end == text || tasks < 1 || tasks > COMM_MOST_RANKS) return 0;
    if (!strncmp(end, "(x", 2)) {
      nodes = strtol(end + 2, &end, 10);
      if (nodes < 1 || *end++ != ')') return 0;
    }
    if (*end && *end != ',') return 0;
    if (node < nodes) return (int)tasks;
    node -= nodes;
    text = *end ? end + 1 : NULL;
  }
  return 0;
}

int ranks_here(const Options *o) {
  if (!o->rendezvous) return (int)o->ranks;
  const bool loopback = !strncmp(o->rendezvous, "127.", 4) || !strncmp(o->rendezvous, "localhost:", 10);
  int here = 0;
  for (const Launcher *l = launcher_here(); l < no_launcher && here == 0; l++) here = tasks_here(l);
  return here > 0 ? here : loopback ? (int)o->ranks : 1;
}

int ranks_gpu(const Options *o, const Comm *c) {
  if (o->gpus) return c->rank;
  int local = -1;
  for (const Launcher *l = o->rendezvous ? launcher_here() : no_launcher; l < no_launcher && local < 0; l++) local = number_of(l->local);
  return MAX(local, 0);
}

// A process of its own counts the GPUs: this one forks ranks, which CUDA does not survive once it has been asked.
static void require_gpus(int world) {
  struct { int count; char why[320]; } answer = {0};
  int ends[2];
  fflush(NULL);
  const pid_t pid = pipe2(ends, O_CLOEXEC) == 0 ? fork() : -1;
  if (pid < 0) fail(EXIT_MACHINE, "a process that counts the GPUs could not be started: %s", strerror(errno));
  if (pid == 0) {
    const char *why = cuda_unavailable();
    answer.count = why ? 0 : cuda_devices();
    snprintf(answer.why, sizeof answer.why, "%s", why ? why : "");
    _exit(write(ends[1], &answer, sizeof answer) != (ssize_t)sizeof answer);
  }
  close(ends[1]);
  const bool answered = read(ends[0], &answer, sizeof answer) == (ssize_t)sizeof answer;
  close(ends[0]);
  waitpid(pid, NULL, 0);
  if (!answered) fail(EXIT_MACHINE, "--gpus %d: CUDA ended the process that counts the GPUs; does nvidia-smi work?", world);
  if (answer.why[0]) fail(EXIT_MACHINE, "--gpus %d: %s; or use --ranks %d on the CPU", world, answer.why, world);
  if (answer.count < world) fail(EXIT_MACHINE, "--gpus %d: this machine has %d (CUDA_VISIBLE_DEVICES may hide some); use --gpus %d", world, answer.count, answer.count);
}

static CommMeeting meeting;

// HOST:PORT, or [HOST]:PORT of IPv6.
static void read_rendezvous(const char *text) {
  static char host[256];
  const char *colon = strrchr(text, ':');
  char *end = NULL;
  const long port = colon ? strtol(colon + 1, &end, 10) : 0;
  const bool bracketed = colon && text[0] == '[' && colon[-1] == ']';
  if (!colon || colon == text || (size_t)(colon - text) >= sizeof host || port < 1 || port > 65535 || *end)
    fail(EXIT_REQUEST, "--rendezvous %s: HOST:PORT is needed, as 127.0.0.1:29400 or node7:29400, port from 1 to 65535", text);
  snprintf(host, sizeof host, "%.*s", (int)(colon - text) - 2 * bracketed, text + bracketed);
  meeting.host = host;
  meeting.port = (uint32_t)port;
}

static void read_token(const Options *o) {
  enum { LEAST = 16, MOST = 4096 };
  struct stat s;
  size_t n;
  if (!o->token) fail(EXIT_REQUEST, "--rendezvous needs --token FILE, a secret of this run's ranks; make one with: head -c 32 /dev/urandom | base64 > token; chmod 600 token");
  char *text = read_file(o->token, "--token", MOST, &n);
  if (stat(o->token, &s) == 0 && s.st_mode & 077) fail(EXIT_REQUEST, "--token %s: others may read it (mode %o); chmod 600 %s", o->token, s.st_mode & 0777, o->token);
  while (n && strchr(" \n\r\t", text[n - 1])) n--;
  if (n < LEAST) fail(EXIT_REQUEST, "--token %s: has %zu bytes, at least %d are needed", o->token, n, LEAST);
  meeting.token = text;
  meeting.token_bytes = n;
}

static void say(const char *text) { say_loss(text, folder); }

void ranks_place(Options *o) {
  const Launcher *l = launcher_here();
  const bool launched = l < no_launcher;
  if (o->gpus && o->ranks > 1) fail(EXIT_REQUEST, "--gpus %lld and --ranks %lld are both given: --gpus starts one rank for each GPU, --ranks starts them on the CPU", (long long)o->gpus, (long long)o->ranks);
  if (o->gpus && o->rendezvous) fail(EXIT_REQUEST, "--gpus %lld and --rendezvous are both given: --gpus starts ranks on this machine, with --rendezvous each process is one rank; it takes a GPU with --device cuda", (long long)o->gpus);
  // one of the two says how many ranks there are, and what a resumed run has stored of the other does not count
  o->given[FLAG_ranks] |= o->given[FLAG_gpus] || o->rendezvous;
  o->given[FLAG_gpus] |= o->given[FLAG_ranks];
  const char *alone = o->token ? "token" : o->rank != AUTO_INT ? "rank" : o->world != AUTO_INT ? "world" : NULL;
  if (!o->rendezvous) {
    if (alone) fail(EXIT_REQUEST, "--%s needs --rendezvous HOST:PORT, where the ranks meet; or let --ranks N start them on this machine", alone);
    if (launched && o->ranks == 1 && o->gpus <= 1)
      fail(EXIT_REQUEST, "%s started %d processes: for one run give all --rendezvous HOST:PORT --token FILE (README, Several machines); or start one process, with --ranks %d",
           l->name, number_of(l->world), number_of(l->world));
    return;
  }
  if (o->ranks > 1) fail(EXIT_REQUEST, "--ranks %lld and --rendezvous are both given: --ranks starts ranks on this machine, with --rendezvous each process is one rank", (long long)o->ranks);
  if (o->rank == AUTO_INT) o->rank = launched ? number_of(l->rank) : -1;
  if (o->world == AUTO_INT) o->world = launched ? number_of(l->world) : 0;
  if (o->rank < 0 || o->world < 1) fail(EXIT_REQUEST, "--rendezvous needs --rank and --world, for no launcher (Slurm, MPI) says which rank this is");
  if (o->rank >= o->world) fail(EXIT_REQUEST, "--rank %lld: with --world %lld ranks are numbered from 0 to %lld", (long long)o->rank, (long long)o->world, (long long)o->world - 1);
  read_rendezvous(o->rendezvous);
  read_token(o);
  meeting.rank = (int)o->rank, meeting.world = (int)o->world, meeting.version = GPT_VERSION " " GPT_COMMIT, meeting.seconds = 300, meeting.still_seconds = COMM_STILL_SECONDS, meeting.own_process = true, meeting.say = say;
  o->ranks = o->world;
  if (o->rank > 0) be_silent();
}

const CommMeeting *ranks_meeting(void) { return &meeting; }

Comm *ranks_start(const Options *o, int world, const uint8_t agreed[32]) {
  if (o->gpus) require_gpus((int)o->gpus);
  if (world == 1) return comm_none();
  if (!o->rendezvous) return start_here(world);
  memcpy(meeting.run, agreed, sizeof meeting.run);
  return comm_tcp_join(&meeting);
}

// ---- what all agree on ----

static int compare_doubles(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

static double median(double *x, int n) {
  qsort(x, (size_t)n, sizeof *x, compare_doubles);
  return n % 2 ? x[n / 2] : 0.5 * (x[n / 2 - 1] + x[n / 2]);
}

// Of `world` numbers but the one of `rank`
static double median_of_others(const double *x, int world, int rank) {
  double others[COMM_MOST_RANKS];
  int n = 0;
  for (int r = 0; r < world; r++) if (r != rank) others[n++] = x[r];
  return median(others, n);
}

// The usual seconds of a step: of one phase, or of all (phase PHASE_COUNT).
static double usual_seconds(const StepTimes *t, int rank, int phase) {
  double x[STEPS_WATCHED] = {0};
  for (int i = 0; i < t->steps; i++) for (int p = 0; p < PHASE_COUNT; p++) if (phase == PHASE_COUNT || p == phase) x[i] += t->window[i][rank][p];
  return median(x, t->steps);
}

static void name_slow_rank(StepTimes *t, int world, char slow[128]) {
  static const char *const phases[] = {"reading data", "the forward pass", "the backward pass", "the update"};
  static const double LIMIT = 1.25, LEAST = 1e-3;      // seconds: less is the system's noise
  double seconds[PHASE_COUNT + 1][COMM_MOST_RANKS];
  for (int p = 0; p <= PHASE_COUNT; p++) for (int r = 0; r < world; r++) seconds[p][r] = usual_seconds(t, r, p);
  for (int r = 0; r < world && world > 1; r++) {
    double own = seconds[PHASE_COUNT][r], others = median_of_others(seconds[PHASE_COUNT], world, r), most = 0;
    if (!(own > LIMIT * others && own > others + LEAST)) continue;
    int worst = 0;
    for (int p = 0; p < PHASE_COUNT; p++) {
      double excess = seconds[p][r] - median_of_others(seconds[p], world, r);
      if (excess > most) { most = excess; worst = p; }
    }
    t->slow_rank = r;
    snprintf(slow, 128, "rank %d computes %.2f times as long as the others, most of it in %s (%.1f ms a step more)", r, own / others, phases[worst], 1e3 * most);
    return;
  }
}

int ranks_signal(void) { return group ? comm_shared_board(group)->stop_signal : stop_signal; }

int ranks_agree(Comm *c, StepTimes *t, char slow[128]) {
  enum { SIGNALS = 2 };
  double v[SIGNALS + COMM_MOST_RANKS * PHASE_COUNT] = {0};    // each rank fills in its own places; the sum is everybody's
  int signal_number = ranks_signal();
  v[0] = signal_number == SIGINT;
  v[1] = signal_number == SIGTERM;
  for (int p = 0; p < PHASE_COUNT; p++) v[SIGNALS + c->rank * PHASE_COUNT + p] = t->own[p];
  c->all_reduce(c, v, (size_t)(SIGNALS + c->world * PHASE_COUNT), COMM_F64);
  for (int r = 0; r < c->world; r++) for (int p = 0; p < PHASE_COUNT; p++) t->window[t->steps][r][p] = v[SIGNALS + r * PHASE_COUNT + p];
  memset(t->own, 0, sizeof t->own);
  slow[0] = 0;
  if (++t->steps == STEPS_WATCHED) {
    name_slow_rank(t, c->world, slow);
    t->steps = 0;
  }
  return v[0] > 0 ? SIGINT : v[1] > 0 ? SIGTERM : 0;
}

void ranks_wait_for_rank_0(Comm *c) {
  const double before = c->deadline;
  c->deadline = INFINITY;
  c->barrier(c);
  c->deadline = before;
}

void ranks_first_text(Comm *c, char text[256]) {
  enum { FLOATS = 64 };                                       // 256 bytes a rank: a part of the gathered array each
  char all[COMM_MOST_RANKS][256];
  memcpy(all[c->rank], text, 256);
  c->all_gather(c, all, (size_t)c->world * FLOATS, COMM_F32);
  for (int r = 0; r < c->world; r++) if (all[r][0]) { memcpy(text, all[r], 256); return; }
}
