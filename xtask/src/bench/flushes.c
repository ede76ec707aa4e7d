/* Writes a line for each time the program waits for the disk: seconds since 1970, and the file.
 *
 * Loaded before libc by LD_PRELOAD, so that neither a counter of the program is believed nor a tracer is in the way
 * of its threads. Programs that ours start inherit the variable and are left alone. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static int out = -1;
static double least; /* Seconds that each takes, if it would not by itself. */
static int (*real_fsync)(int);
static int (*real_fdatasync)(int);
static int (*real_syncfs)(int);

/* Before main, so that the file is opened by whoever started the program, before it gives up any right. */
__attribute__((constructor)) static void begin(void) {
  real_fsync = dlsym(RTLD_NEXT, "fsync");
  real_fdatasync = dlsym(RTLD_NEXT, "fdatasync");
  real_syncfs = dlsym(RTLD_NEXT, "syncfs");
  const char *file = getenv("BENCH_FLUSHES");
  if (file && !strncmp(program_invocation_short_name, "rhyzome-", 8))
    out = open(file, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
  const char *ms = getenv("BENCH_FLUSH_MS");
  least = ms ? strtod(ms, NULL) / 1e3 : 0;
}

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

/* A disk as slow as is asked for: returns when so long has passed since it began. */
static int slowly(int outcome, double begun) {
  int error = errno;
  double left = begun + least - now();
  if (least > 0 && left > 0) {
    struct timespec rest = {(time_t)left, (long)((left - (double)(time_t)left) * 1e9)};
    while (nanosleep(&rest, &rest) && errno == EINTR)
      ;
  }
  errno = error;
  return outcome;
}

static void tell(int fd) {
  char link[64], path[4096], line[4200];
  struct timespec at;
  if (out < 0)
    return;
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t length = readlink(link, path, sizeof path);
  clock_gettime(CLOCK_REALTIME, &at);
  int size = snprintf(line, sizeof line, "%lld.%09ld %.*s\n", (long long)at.tv_sec, at.tv_nsec,
                      length < 0 ? 0 : (int)length, path);
  if (write(out, line, (size_t)size) != size)
    abort(); /* A count that misses one is worse than none. */
}

int fsync(int fd) {
  double begun = now();
  tell(fd);
  return slowly(real_fsync(fd), begun);
}

int fdatasync(int fd) {
  double begun = now();
  tell(fd);
  return slowly(real_fdatasync(fd), begun);
}

int syncfs(int fd) {
  double begun = now();
  tell(fd);
  return slowly(real_syncfs(fd), begun);
}
