// machine.c: owns the questions to the system: memory, cores, processor. See machine.h.
#include "machine.h"
#ifdef _OPENMP
#include <omp.h>          // omp_set_num_threads
#include <pthread.h>      // pthread_create
#endif
#include <sched.h>        // sched_getaffinity
#include <stdlib.h>       // strtoull
#include <string.h>       // strncmp
#include <sys/utsname.h>  // uname
#include <unistd.h>       // sysconf

// The whole of a small system file in text; false if it is not there.
static bool read_small(const char *path, char *text, size_t size) {
  FILE *f = fopen(path, "r");
  if (!f) return false;
  size_t n = fread(text, 1, size - 1, f);
  fclose(f);
  text[n] = 0;
  return n > 0;
}

// Number after "Name:" in a file of such lines, in kB, as bytes; 0 if absent.
static size_t field_kb(const char *text, const char *name) {
  const char *at = strstr(text, name);
  return at ? (size_t)strtoull(at + strlen(name), NULL, 10) * 1024 : 0;
}

// Smallest "limit - usage" over this process's control group and its parents (version 2, then version 1).
static size_t cgroup_left(void) {
  char text[8192], group[4096] = "";
  size_t least = SIZE_MAX;
  if (read_small("/proc/self/cgroup", text, sizeof text)) {
    const char *at = strstr(text, "0::");
    if (at) snprintf(group, sizeof group, "%.*s", (int)strcspn(at + 3, "\n"), at + 3);
  }
  for (;;) {
    char path[4400], limit[64], usage[64];
    snprintf(path, sizeof path, "/sys/fs/cgroup%s/memory.max", group);
    if (read_small(path, limit, sizeof limit) && strncmp(limit, "max", 3)) {
      snprintf(path, sizeof path, "/sys/fs/cgroup%s/memory.current", group);
      size_t most = (size_t)strtoull(limit, NULL, 10), used = read_small(path, usage, sizeof usage) ? (size_t)strtoull(usage, NULL, 10) : 0;
      least = MIN(least, most > used ? most - used : 0);
    }
    char *slash = strrchr(group, '/');
    if (!slash) break;
    *slash = 0;
  }
  char limit[64], usage[64];
  if (read_small("/sys/fs/cgroup/memory/memory.limit_in_bytes", limit, sizeof limit) && read_small("/sys/fs/cgroup/memory/memory.usage_in_bytes", usage, sizeof usage)) {
    size_t most = (size_t)strtoull(limit, NULL, 10), used = (size_t)strtoull(usage, NULL, 10);
    if (most < (size_t)1 << 60) least = MIN(least, most > used ? most - used : 0);
  }
  return least;
}

size_t machine_memory_available(const char **from) {
  char text[8192];
  size_t available = read_small("/proc/meminfo", text, sizeof text) ? field_kb(text, "MemAvailable:") : SIZE_MAX;
  size_t group = cgroup_left();
  if (from) *from = group < available ? "cgroup limit" : "memory";
  return MIN(available, group);
}

size_t machine_memory_total(void) {
  return (size_t)sysconf(_SC_PHYS_PAGES) * (size_t)sysconf(_SC_PAGESIZE);
}

size_t machine_resident(void) {
  char text[8192];
  return read_small("/proc/self/status", text, sizeof text) ? field_kb(text, "VmRSS:") : 0;
}

void machine_limit_threads(void) {
#ifdef _OPENMP
  if (omp_get_max_threads() > 4096) omp_set_num_threads(4096);
#endif
}

#ifdef _OPENMP
static void *wait_at(void *gate) {
  pthread_mutex_lock(gate);
  pthread_mutex_unlock(gate);
  return NULL;
}
#endif

void machine_require_threads(int n) {
#ifdef _OPENMP
  pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
  pthread_t *threads = xmalloc((size_t)MAX(n, 1), sizeof *threads);
  int made = 0, error = 0;   // beside the one that asks
  pthread_mutex_lock(&gate);
  while (made < n - 1 && !(error = pthread_create(&threads[made], NULL, wait_at, &gate))) made++;
  pthread_mutex_unlock(&gate);
  for (int i = 0; i < made; i++) pthread_join(threads[i], NULL);
  free(threads);
  if (error)
    fail(EXIT_MACHINE, "threads: %d are needed, the system gives this process %d (%s); use --threads %d or end other programs", n, made + 1,
         strerror(error), made + 1);
#else
  (void)n;
#endif
}

int machine_threads(void) {
  cpu_set_t set;
  return sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : (int)sysconf(_SC_NPROCESSORS_ONLN);
}

// Processors of the cgroup's quota, rounded up; a large number where there is none.
static int quota_processors(void) {
  char text[128];
  long long quota, period;
  if (!read_small("/sys/fs/cgroup/cpu.max", text, sizeof text) || sscanf(text, "%lld %lld", &quota, &period) != 2 || period < 1) return 1 << 20;
  return (int)MAX(1, (quota + period - 1) / period);
}

static int cores_of(const cpu_set_t *set) {
  cpu_set_t seen;
  CPU_ZERO(&seen);
  int cores = 0;
  for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
    if (!CPU_ISSET(cpu, set) || CPU_ISSET(cpu, &seen)) continue;
    cores++;   // a new core: its siblings are not counted again
    char path[96], text[256];
    snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/topology/thread_siblings_list", cpu);
    if (!read_small(path, text, sizeof text)) continue;
    for (char *p = text; *p >= '0' && *p <= '9';) {
      long first = strtol(p, &p, 10), last = *p == '-' ? strtol(p + 1, &p, 10) : first;
      for (long s = first; s <= last && s < CPU_SETSIZE; s++) CPU_SET((int)s, &seen);
      if (*p == ',') p++;
    }
  }
  return MAX(1, MIN(cores, quota_processors()));
}

int machine_cores(void) {
  cpu_set_t set;
  return sched_getaffinity(0, sizeof set, &set) == 0 ? cores_of(&set) : MAX(1, MIN((int)sysconf(_SC_NPROCESSORS_ONLN), quota_processors()));
}

int machine_cores_among(const int *processors, int count) {
  cpu_set_t set;
  CPU_ZERO(&set);
  for (int i = 0; i < count; i++) if (processors[i] >= 0 && processors[i] < CPU_SETSIZE) CPU_SET(processors[i], &set);
  return cores_of(&set);
}

void machine_processor(char name[128]) {
  char text[8192];
  const char *at = read_small("/proc/cpuinfo", text, sizeof text) ? strstr(text, "model name") : NULL;
  if (at && (at = strchr(at, ':'))) { snprintf(name, 128, "%.*s", (int)MIN(strcspn(at + 2, "\n"), (size_t)127), at + 2); return; }
  struct utsname u;
  snprintf(name, 128, "%.100s", uname(&u) == 0 ? u.machine : "unknown");
}
