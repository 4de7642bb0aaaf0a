// test.h: the whole test framework. A test file is one program: static functions, and a main() that RUN()s them.
//
//   static void adds(void) { CHECK(1 + 1 == 2); CHECK_NEAR(0.1 + 0.2, 0.3, 1e-15, "sum %d", 3); }
//   int main(int argc, char **argv) { TEST_BEGIN(argc, argv); RUN(adds); return TEST_END(); }
//
// `test_x WORD` runs only the tests whose name contains WORD. The last line printed is "N passed, N failed"; the exit
// code is 1 if any failed. A comparison is written !(diff <= tol), so that a NaN fails.
// EXPECT_FAIL runs a statement in a child process and checks exit code and stderr: for code that ends in fail().
#pragma once
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static int test_passed, test_failed, test_bad;
static const char *test_filter;

#define TEST_BEGIN(argc, argv) (test_filter = (argc) > 1 ? (argv)[1] : NULL, setvbuf(stdout, NULL, _IOLBF, 0))
#define RUN(fn) do { \
    if (test_filter && !strstr(#fn, test_filter)) break; \
    test_bad = 0; fn(); \
    if (test_bad) { test_failed++; printf("FAILED %s: %s\n", __FILE__, #fn); } else test_passed++; \
  } while (0)
#define TEST_END() (printf("%s: %d passed, %d failed\n", __FILE__, test_passed, test_failed), test_failed != 0)

#define CHECK_MSG(ok, ...) do { if (!(ok)) { \
    if (test_bad++ < 5) { printf("  %s:%d: %s: ", __FILE__, __LINE__, #ok); printf(__VA_ARGS__); printf("\n"); } } } while (0)
#define CHECK(ok) CHECK_MSG(ok, "is false")
#define CHECK_EQ(a, b) do { long long a_ = (long long)(a), b_ = (long long)(b); \
    CHECK_MSG(a_ == b_, "%s is %lld, expected %lld", #a, a_, b_); } while (0)
#define CHECK_STR(a, b) do { const char *a_ = (a), *b_ = (b); CHECK_MSG(!strcmp(a_, b_), "got \"%s\", expected \"%s\"", a_, b_); } while (0)
#define CHECK_NEAR(a, b, tol, ...) do { double a_ = (a), b_ = (b), t_ = (tol); \
    if (!(fabs(a_ - b_) <= t_)) { if (test_bad++ < 5) { printf("  %s:%d: %.17g vs %.17g, |diff| %.3g > %.3g: ", __FILE__, __LINE__, a_, b_, fabs(a_ - b_), t_); printf(__VA_ARGS__); printf("\n"); } } } while (0)

// Text that must never change, by its hash (util.h); where it has, it is shown, and the hash that it has.
#define CHECK_HASH(text, n, expected) do { char hex_[65]; sha256_of((text), (n), hex_); CHECK_STR(hex_, (expected)); \
    if (strcmp(hex_, (expected))) printf("%.*s\n", (int)(n), (const char *)(text)); } while (0)

// A new folder, `gpt-NAME-` and six letters, where temporary files go; its path into folder (room).
static inline void test_folder(char *folder, size_t room, const char *name) {
  const char *where = getenv("TMPDIR");
  snprintf(folder, room, "%s/gpt-%s-XXXXXX", where && *where ? where : "/tmp", name);
  if (!mkdtemp(folder)) { perror(folder); exit(1); }
}

// Runs `statement` in a child; its exit code must be `code` and its stderr must be one line that contains `needle`.
#define EXPECT_FAIL(code, needle, statement) do { \
    int pipe_[2]; if (pipe(pipe_)) abort(); \
    fflush(NULL); pid_t pid_ = fork(); \
    if (pid_ == 0) { dup2(pipe_[1], 2); close(pipe_[0]); close(pipe_[1]); { statement; } fflush(NULL); _exit(0); } \
    close(pipe_[1]); char err_[4096]; size_t n_ = 0; ssize_t got_; \
    while (n_ < sizeof err_ - 1 && (got_ = read(pipe_[0], err_ + n_, sizeof err_ - 1 - n_)) > 0) n_ += (size_t)got_; \
    err_[n_] = 0; close(pipe_[0]); int status_; waitpid(pid_, &status_, 0); \
    int exit_ = WIFEXITED(status_) ? WEXITSTATUS(status_) : 1000 + WTERMSIG(status_); \
    CHECK_MSG(exit_ == (code), "exit %d, expected %d; stderr: %s", exit_, (code), err_); \
    CHECK_MSG(strstr(err_, (needle)) != NULL, "stderr lacks \"%s\": %s", (needle), err_); \
    CHECK_MSG(strchr(err_, '\n') == err_ + n_ - 1, "stderr is not one line: %s", err_); \
  } while (0)
