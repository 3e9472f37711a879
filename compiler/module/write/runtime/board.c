/* Measures modules on a board, at the request of another machine.
 *
 * TVM's RPC server loads this library and calls `measure(order, milliseconds, bytes)`. The
 * files that it needs have been uploaded beside the library. Everything happens in a child of
 * the server's process, with limits of wall time and of address space, so that a module that
 * crashes or hangs does nothing to the server. Returned is what waitpid tells of the child, or
 * -1 if its time ran out; it leaves its findings in the file `result`.
 *
 * An order is a file of words, in this order, names being files beside it:
 *
 *     threads INT seconds FLOAT least INT most INT warm 0|1 group INT
 *     modules COUNT  {LIBRARY WEIGHTS}...
 *     inputs COUNT   {NAME}...
 *     expected COUNT {NAME}...
 *
 * The modules take the same inputs. Each runs once; `deviation MODULE OUTPUT VALUE` follows for
 * each output, relative to an `expected` file, or, with a group of n, to the outputs 0 to n-1.
 * Then come `least` to `most` rounds, for about `seconds`, in which the modules take turns;
 * `warm` runs a module untimed before each timed run, which brings back its weights. A line
 * `time MODULE RUN STEP...` for each tells the seconds of the whole run and of its steps. `end`
 * is the last line.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <tvm/ffi/c_api.h>
#include <unistd.h>

#include "deviation.h"
#include "tinsmith.h"

enum { NAME_LENGTH = 127, MOST_MODULES = 16 };

typedef struct {
  const tinsmith_module *module;
  tinsmith_context *context;
  double *times; /* of each round: the run, then its steps */
} subject;

static FILE *result;

/* ---- in the child ---- */

static void fail(const char *what, const char *detail) {
  fprintf(result, "error %s: %s\n", what, detail);
  fflush(result);
  _exit(2);
}

static double seconds_now(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static double number(FILE *order, const char *keyword) {
  char word[NAME_LENGTH + 1];
  double value;
  if (fscanf(order, "%127s %lf", word, &value) != 2 || strcmp(word, keyword))
    fail("the order lacks", keyword);
  return value;
}

static const char *name(FILE *order, char *text) {
  if (fscanf(order, "%127s", text) != 1) fail("the order", "ends early");
  return text;
}

/* Shared memory has small pages, as mapped weights have; private memory may get huge ones. */
static void *allocate(uint64_t bytes) {
  void *memory = mmap(NULL, bytes ? (size_t)bytes : 1, PROT_READ | PROT_WRITE,
                      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) fail("a tensor", strerror(errno));
  return memory;
}

static void *read_tensor(const char *path, const tinsmith_tensor *tensor) {
  void *memory = allocate(tensor->nbytes);
  FILE *file = fopen(path, "rb");
  if (!file) fail(path, strerror(errno));
  if (fread(memory, 1, (size_t)tensor->nbytes, file) != tensor->nbytes || fgetc(file) != EOF)
    fail(path, "does not have the size of the tensor");
  fclose(file);
  return memory;
}

static void open_module(subject *s, const char *library, const char *weights, int threads) {
  char path[NAME_LENGTH + 8];
  snprintf(path, sizeof path, "./%s", library);
  void *handle = dlopen(path, RTLD_LOCAL | RTLD_NOW);
  if (!handle) fail("a module cannot be loaded", dlerror());
  const tinsmith_module *(*entry)(void) =
      (const tinsmith_module *(*)(void))dlsym(handle, "tinsmith_get_module");
  if (!entry) fail(library, "is not a module");
  const tinsmith_module *m = s->module = entry();
  if (m->abi != TINSMITH_ABI) fail(library, "has another runtime interface");
  if (m->open(weights) || m->set_threads(threads)) fail(library, m->last_error());
  s->context = m->create();
  if (!s->context) fail(library, m->last_error());
}

static void check(const tinsmith_module *m, int status) {
  if (status) fail(m->name, m->last_error());
}

static void measure_all(FILE *order) {
  int threads = (int)number(order, "threads");
  double seconds = number(order, "seconds");
  int least = (int)number(order, "least"), most = (int)number(order, "most");
  int warm = (int)number(order, "warm"), group = (int)number(order, "group");
  int count = (int)number(order, "modules");
  if (least < 0 || most < least || count < 1 || count > MOST_MODULES)
    fail("the order", "is out of range");
  subject subjects[MOST_MODULES];
  char first[NAME_LENGTH + 1], second[NAME_LENGTH + 1];
  for (int i = 0; i < count; i++) {
    name(order, first);
    open_module(&subjects[i], first, name(order, second), threads);
    size_t numbers = (size_t)(subjects[i].module->step_count + 1) * (size_t)(most + 1);
    subjects[i].times = allocate(sizeof(double) * numbers);
  }

  const tinsmith_module *m = subjects[0].module;
  if ((int)number(order, "inputs") != m->input_count) fail("the order", "has other inputs");
  const void **in = allocate(sizeof(void *) * (uint64_t)(m->input_count + 1));
  for (int i = 0; i < m->input_count; i++) in[i] = read_tensor(name(order, first), &m->inputs[i]);
  int expected = (int)number(order, "expected");
  if (expected && expected != m->output_count) fail("the order", "has other outputs");
  void **reference = allocate(sizeof(void *) * (uint64_t)(m->output_count + 1));
  for (int i = 0; i < expected; i++)
    reference[i] = read_tensor(name(order, first), &m->outputs[i]);

  void **out = allocate(sizeof(void *) * (uint64_t)(m->output_count + 1));
  for (int i = 0; i < m->output_count; i++) out[i] = allocate(m->outputs[i].nbytes);
  for (int k = 0; k < count; k++) {
    check(subjects[k].module, subjects[k].module->run(subjects[k].context, NULL, in, out));
    for (int i = 0; i < m->output_count && (group || expected); i++) {
      const void *wanted = expected ? reference[i] : out[i % group];
      fprintf(result, "deviation %d %d %.9g\n", k, i, deviation(&m->outputs[i], out[i], wanted));
    }
  }
  /* One place for the results of all calls: a model's arena is as warm. */
  for (int i = group; group && i < m->output_count; i++) out[i] = out[i % group];

  int done = 0;
  double deadline = seconds_now() + seconds;
  for (; done < most && (done < least || seconds_now() < deadline); done++) {
    for (int k = 0; k < count; k++) {
      subject *s = &subjects[k];
      double *times = s->times + (size_t)done * (size_t)(s->module->step_count + 1);
      if (warm) check(s->module, s->module->run(s->context, NULL, in, out));
      double begin = seconds_now();
      check(s->module, s->module->profile(s->context, NULL, in, out, times + 1));
      times[0] = seconds_now() - begin;
    }
  }
  for (int k = 0; k < count; k++) {
    const double *time = subjects[k].times;
    for (int i = 0; i < done; i++) {
      fprintf(result, "time %d", k);
      for (int step = 0; step <= subjects[k].module->step_count; step++)
        fprintf(result, " %.9g", *time++);
      fputc('\n', result);
    }
  }
  fputs("end\n", result);
}

static void child(const char *order, int64_t bytes) {
  setsid();
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  FILE *file = fopen(order, "r");
  if (!file) fail(order, strerror(errno));
  unsigned long pages = 0;
  FILE *memory = fopen("/proc/self/statm", "r");
  if (!memory || fscanf(memory, "%lu", &pages) != 1) fail("/proc/self/statm", "cannot be read");
  fclose(memory);
  rlim_t used = (rlim_t)pages * (rlim_t)sysconf(_SC_PAGESIZE);
  struct rlimit space = {used + (rlim_t)bytes, used + (rlim_t)bytes}, none = {0, 0};
  setrlimit(RLIMIT_AS, &space);
  setrlimit(RLIMIT_CORE, &none);
  measure_all(file);
  fflush(result);
  _exit(0);
}

/* ---- in the server ---- */

/* Go to where the library is, and begin the result, which is there whatever becomes of the child. */
static int prepare(void) {
  Dl_info own;
  char folder[4096];
  if (!dladdr((void *)prepare, &own)) return -1;
  snprintf(folder, sizeof folder, "%s", own.dli_fname);
  char *slash = strrchr(folder, '/');
  if (slash) *slash = 0;
  if (slash && chdir(folder)) return -1;
  result = fopen("result", "w");
  return result ? 0 : -1;
}

static int wait_for(pid_t pid, int alive, int milliseconds) {
  /* The child has the other end: it closes when the child ends, however it does. */
  struct pollfd end = {alive, POLLIN, 0};
  int ended = poll(&end, 1, milliseconds), status = 0;
  kill(-pid, SIGKILL);
  kill(pid, SIGKILL);
  waitpid(pid, &status, 0);
  return ended == 0 ? -1 : status;
}

__attribute__((visibility("default"))) int __tvm_ffi_measure(void *handle, const TVMFFIAny *args,
                                                             int32_t count, TVMFFIAny *returned) {
  (void)handle;
  if (count != 3 || args[0].type_index != kTVMFFIRawStr) return -1;
  int ends[2];
  if (prepare() || pipe(ends)) return -1;
  pid_t pid = fork();
  if (pid == 0) {
    close(ends[0]);
    child(args[0].v_c_str, args[2].v_int64);
  }
  fclose(result);
  close(ends[1]);
  int status = pid < 0 ? -1 : wait_for(pid, ends[0], (int)args[1].v_int64);
  close(ends[0]);
  memset(returned, 0, sizeof *returned);
  returned->type_index = kTVMFFIInt;
  returned->v_int64 = status;
  return 0;
}
