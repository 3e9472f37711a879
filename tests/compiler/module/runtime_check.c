/* The runtime with a model of two kernels in C, driven from many threads and from forked
 * children, to be built with sanitizers: runtime_check WEIGHTS contexts|forks ROUNDS
 */
#define _GNU_SOURCE
#include "plan.h"

enum { LENGTH = 4096, WEIGHTS = 256, CHUNKS = 64, PER_CHUNK = LENGTH / CHUNKS };

#define NAME "check"
#define TARGET "host"
#define VERSION "0"
#define INPUT_COUNT 1
#define OUTPUT_COUNT 1
#define STEP_COUNT 2
#define COPY_COUNT 0
#define MAX_PLACES 3
#define WEIGHTS_BYTES (4u * WEIGHTS)
#define ARENA_BYTES (4u * LENGTH)
#define TASK_SCRATCH_BYTES 256u
#define EMBEDDED_WEIGHTS ((const char *)0)
#ifndef MAP_WEIGHTS
#define MAP_WEIGHTS 0
#endif
#define HAS_MACHINE_CHECK 0

static int32_t scale(int32_t begin, int32_t end, char *const *pointers, char *scratch) {
  const float *x = (const float *)pointers[0], *w = (const float *)pointers[1];
  float *y = (float *)pointers[2], *row = (float *)scratch;
  for (int32_t chunk = begin; chunk < end; chunk++) {
    for (int i = 0; i < PER_CHUNK; i++) row[i] = x[chunk * PER_CHUNK + i];
    for (int i = 0; i < PER_CHUNK; i++)
      y[chunk * PER_CHUNK + i] = row[i] * w[(chunk * PER_CHUNK + i) % WEIGHTS];
  }
  return 0;
}

static int32_t add_next(int32_t begin, int32_t end, char *const *pointers, char *scratch) {
  (void)scratch;
  const float *x = (const float *)pointers[0];
  float *y = (float *)pointers[1];
  for (int32_t i = begin * PER_CHUNK; i < end * PER_CHUNK; i++) y[i] = x[i] + x[(i + 1) % LENGTH];
  return 0;
}

static const int64_t shape[] = {LENGTH};
static const tinsmith_tensor inputs[] = {{"x", "float32", shape, 1, 0, 4u * LENGTH}};
static const tinsmith_tensor outputs[] = {{"y", "float32", shape, 1, 0, 4u * LENGTH}};
/* The second computes the same in each of its rounds. */
static const stage stages_0[] = {{scale, CHUNKS, 1, 1}}, stages_1[] = {{add_next, CHUNKS, 3, 1}};
static const place places_0[] = {{2, 0}, {0, 0}, {1, 0}}, places_1[] = {{1, 0}, {3, 0}};
static const step steps[] = {{stages_0, places_0, 1, 3}, {stages_1, places_1, 1, 2}};
static const char *const step_names[] = {"scale", "add_next"};
static const output_copy copies[] = {{0}};

#include "pool.c"
#include "module.c"

#include <signal.h>
#include <sys/wait.h>

static const tinsmith_module *const module = &description;
static atomic_int over;

static void expect(int condition, const char *what) {
  if (condition) return;
  fprintf(stderr, "runtime_check: %s (%s)\n", what, module->last_error());
  _exit(1);
}

static void run_and_compare(tinsmith_context *context, float start) {
  static const char *failed = "a run failed";
  float *x = malloc(4 * LENGTH), *y = malloc(4 * LENGTH), product[LENGTH];
  for (int i = 0; i < LENGTH; i++) x[i] = start + (float)i;
  const void *in[] = {x};
  void *out[] = {y};
  double seconds[STEP_COUNT];
  expect(module->run(context, NULL, in, out) == 0, failed);
  expect(module->profile(context, NULL, in, out, seconds) == 0, failed);
  for (int i = 0; i < LENGTH; i++) product[i] = x[i] * (float)(i % WEIGHTS);
  for (int i = 0; i < LENGTH; i++)
    expect(y[i] == product[i] + product[(i + 1) % LENGTH], "a result is wrong");
  free(x);
  free(y);
}

/* Contexts of several numbers of threads, made and dropped while the others run. */
static void *caller(void *argument) {
  int number = (int)(intptr_t)argument;
  for (int round = 0; !atomic_load(&over); round++) {
    tinsmith_context *context = module->create();
    expect(context != NULL, "a context could not be made");
    if (number % 2) expect(module->set_context_threads(context, 1 + (number + round) % 4) == 0,
                           "the threads of a context could not be set");
    for (int i = 0; i < 5; i++) run_and_compare(context, (float)(number + i));
    expect(module->threads() > 0, "the module has no threads");
    module->destroy(context);
  }
  return NULL;
}

static void contexts(int rounds) {
  pthread_t callers[6];
  for (int i = 0; i < 6; i++) pthread_create(&callers[i], NULL, caller, (void *)(intptr_t)i);
  for (int i = 0; i < rounds; i++) {
    expect(module->set_threads(1 + i % 4) == 0, "the threads could not be set");
    usleep(1000);
  }
  atomic_store(&over, 1);
  for (int i = 0; i < 6; i++) pthread_join(callers[i], NULL);
}

static void *opener(void *path) {
  expect(module->open(path) == 0, "the weights could not be opened");
  return NULL;
}

static int wait_for(pid_t pid) {
  int status;
  expect(waitpid(pid, &status, 0) == pid, "no child");
  return status;
}

/* `number` says how many threads it takes, and whether it has a child of its own. */
static void child(tinsmith_context *old, const char *weights, const cpu_set_t *usable, int number) {
  alarm(300); /* what hangs dies */
  run_and_compare(old, 1);
  expect(module->set_threads(1 + number % 4) == 0, "a child could not set its threads");
  run_and_compare(old, 2);
  cpu_set_t now;
  sched_getaffinity(0, sizeof now, &now);
  expect(CPU_EQUAL(&now, usable), "the child's own affinity has changed");
  if (number % 3 == 0) {
    pid_t pid = fork();
    if (pid == 0) {
      run_and_compare(old, 5);
      _exit(0);
    }
    expect(wait_for(pid) == 0, "a grandchild failed");
  }
  tinsmith_context *context = module->create();
  expect(context != NULL, "a child could not make a context");
  run_and_compare(context, 3);
  module->destroy(context);
  module->destroy(old);
  module->close();
  expect(module->open(weights) == 0, "a child could not open the weights again");
  context = module->create();
  run_and_compare(context, 4);
  module->destroy(context);
  module->close();
  _exit(0);
}

/* Children of a parent that runs, idles, or stops and starts its threads at that moment. */
static void forks(int rounds, const char *weights) {
  cpu_set_t usable;
  sched_getaffinity(0, sizeof usable, &usable);
  expect(module->set_threads(4) == 0, "the threads could not be set");
  tinsmith_context *context = module->create();
  run_and_compare(context, 0);
  pthread_t callers[3];
  for (int busy = 0; busy < 2; busy++) {
    for (int i = 0; busy && i < 3; i++)
      pthread_create(&callers[i], NULL, caller, (void *)(intptr_t)i);
    for (int i = 0; i < rounds; i++) {
      usleep((unsigned)(i * 37 % 900));
      pid_t pid = fork();
      if (pid == 0) child(context, weights, &usable, i);
      if (busy) expect(module->set_threads(1 + i % 4) == 0, "the threads could not be set");
      int status = wait_for(pid);
      expect(status == 0, WIFSIGNALED(status) ? "a child hung or crashed" : "a child failed");
      run_and_compare(context, (float)i);
    }
  }
  atomic_store(&over, 1);
  for (int i = 0; i < 3; i++) pthread_join(callers[i], NULL);
  module->destroy(context);
}

/* A thread of a child that comes while another one makes the pool the child's own. */
static void *latecomer(void *passed) {
  pool_enter();
  atomic_store((atomic_int *)passed, 1);
  return NULL;
}

/* One thread of a child begins anew, and the others wait until it has: who began on locks that
 * are about to be made would hold them alone. */
static void adoption(void) {
  int lineage = pool.lineage;
  pid_t pid = fork();
  if (pid == 0) {
    alarm(300);
    pool_enter();
    expect(atomic_load(pool.owner) == getpid(), "the pool is not the child's");
    expect(pool.lineage == lineage + 1, "the child is taken for its parent");
    pool_enter();
    pool_adopt(); /* as one that saw the pool's old owner, and came too late */
    expect(pool.lineage == lineage + 1, "the pool was begun twice");
    atomic_int passed = 0;
    pthread_t late;
    atomic_store(pool.owner, -getpid());
    pthread_create(&late, NULL, latecomer, &passed);
    usleep(100000);
    expect(!atomic_load(&passed), "a thread did not wait for the one that begins anew");
    atomic_store(pool.owner, getpid());
    pthread_join(late, NULL);
    expect(pool.lineage == lineage + 1, "the pool was begun again by the one that waited");
    _exit(0);
  }
  expect(wait_for(pid) == 0, "a child did not make the pool its own");
}

/* The thread that ran a context when the process was forked is none of the child's. */
static void running_context(void) {
  tinsmith_context *context = module->create();
  atomic_store(&context->running, 1 + pool.lineage);
  float x[LENGTH] = {0}, y[LENGTH];
  const void *in[] = {x};
  void *out[] = {y};
  expect(module->run(context, NULL, in, out) != 0, "two threads ran one context");
  pid_t pid = fork();
  if (pid == 0) {
    alarm(300);
    run_and_compare(context, 1);
    _exit(0);
  }
  expect(wait_for(pid) == 0, "a child could not run a context that its parent was running");
  atomic_store(&context->running, 0);
  module->destroy(context);
}

int main(int argc, char **argv) {
  expect(argc == 4, "usage: runtime_check WEIGHTS contexts|forks ROUNDS");
#ifdef NO_WIPING
  pool.owner = &pool_plain_owner; /* as on a kernel that wipes no pages */
  pool.wiped = 0;
#else
  void *page = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (madvise(page, 4096, MADV_WIPEONFORK) == 0) expect(pool.wiped, "no page is wiped");
#endif
  expect(module->create() == NULL, "a context was made without weights");
  expect(module->open("/dev/zero") != 0 && module->open("/") != 0, "a device was opened");
  pthread_t openers[4];
  for (int i = 0; i < 4; i++) pthread_create(&openers[i], NULL, opener, argv[1]);
  for (int i = 0; i < 4; i++) pthread_join(openers[i], NULL);
  if (!strcmp(argv[2], "forks")) {
    adoption();
    running_context();
    forks(atoi(argv[3]), argv[1]);
  } else {
    contexts(atoi(argv[3]));
  }
  module->close();
  puts("ok");
  return 0;
}
