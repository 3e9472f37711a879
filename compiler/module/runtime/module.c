/* Opening weights, contexts, running the plan. Included by the generated driver, after
 * these have been defined: NAME, TARGET, VERSION, inputs, outputs, INPUT_COUNT,
 * OUTPUT_COUNT, steps, step_names, STEP_COUNT, copies, COPY_COUNT, MAX_PLACES,
 * WEIGHTS_BYTES, ARENA_BYTES, TASK_SCRATCH_BYTES, EMBEDDED_WEIGHTS (pointer or NULL),
 * NEEDS_TILES.
 */
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>

struct tinsmith_context {
  atomic_int running;
  size_t mapped;
  char *task_scratch;
  char *bases[2 + INPUT_COUNT + OUTPUT_COUNT];
};

static _Thread_local char error_text[256];
static const char *weights = EMBEDDED_WEIGHTS;
static int threads_wanted; /* 0: not chosen yet */

static const char *module_last_error(void) { return error_text; }

static int fail(const char *what, const char *detail) {
  snprintf(error_text, sizeof error_text, "%s%s%s", what, detail[0] ? ": " : "", detail);
  return -1;
}

#if NEEDS_TILES
#include "tiles.c"
#else
static int machine_refuses(void) { return 0; }
#endif

static int module_open(const char *path) {
  if (weights || WEIGHTS_BYTES == 0) return 0;
  if (!path) return fail("this module's weights are in a file of their own", "no path was given");
  int file = open(path, O_RDONLY | O_CLOEXEC);
  if (file < 0) return fail("cannot open the weights", strerror(errno));
  struct stat status;
  if (fstat(file, &status) || (uint64_t)status.st_size != (uint64_t)WEIGHTS_BYTES) {
    close(file);
    return fail("the weights file does not have the size that the module expects", path);
  }
  void *mapped = mmap(NULL, WEIGHTS_BYTES, PROT_READ, MAP_PRIVATE, file, 0);
  int reason = errno;
  close(file);
  if (mapped == MAP_FAILED) return fail("cannot map the weights", strerror(reason));
  madvise(mapped, WEIGHTS_BYTES, MADV_WILLNEED);
  weights = mapped;
  return 0;
}

static int module_threads(void) { return atomic_load(&pool.threads); }

static int module_set_threads(int threads) {
  if (threads < 0 || threads > MAX_THREADS) return fail("the number of threads is out of range", "");
  if (threads == 0) threads = usable_processors();
  if (threads > MAX_THREADS) threads = MAX_THREADS;
  pthread_mutex_lock(&pool.control);
  threads_wanted = threads;
  int started = pool_resize(threads, TASK_SCRATCH_BYTES);
  pthread_mutex_unlock(&pool.control);
  return started == threads ? 0 : fail("not all threads could be started", strerror(errno));
}

static tinsmith_context *module_create(void) {
  if (machine_refuses()) return NULL;
  if (!weights && WEIGHTS_BYTES) {
    fail("open() must be called before create()", "");
    return NULL;
  }
  if (threads_wanted == 0 && module_set_threads(0)) return NULL;
  size_t bytes = (size_t)ARENA_BYTES + (size_t)TASK_SCRATCH_BYTES;
  tinsmith_context *context = calloc(1, sizeof *context);
  if (!context) {
    fail("out of memory", "");
    return NULL;
  }
  if (bytes) {
    void *arena = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (arena == MAP_FAILED) {
      fail("cannot reserve the arena", strerror(errno));
      free(context);
      return NULL;
    }
#ifdef MADV_HUGEPAGE
    if (bytes >= (size_t)4 << 20) madvise(arena, bytes, MADV_HUGEPAGE);
#endif
    context->bases[1] = arena;
    context->task_scratch = (char *)arena + ARENA_BYTES;
    context->mapped = bytes;
  }
  context->bases[0] = (char *)weights;
  return context;
}

static void module_destroy(tinsmith_context *context) {
  if (!context) return;
  if (context->mapped) munmap(context->bases[1], context->mapped);
  free(context);
}

static void module_close(void) {
  pthread_mutex_lock(&pool.control);
  pool_resize(1, 0);
  threads_wanted = 0;
  pthread_mutex_unlock(&pool.control);
  if (weights && !(EMBEDDED_WEIGHTS)) {
    munmap((void *)weights, WEIGHTS_BYTES);
    weights = NULL;
  }
}

static int run_step(const tinsmith_context *context, const step *s) {
  char *pointers[MAX_PLACES];
  for (int32_t i = 0; i < s->place_count; i++)
    pointers[i] = context->bases[s->places[i].base] + s->places[i].offset;
  for (int32_t i = 0; i < s->stage_count; i++)
    if (pool_run(&s->stages[i], pointers, context->task_scratch)) return -1;
  return 0;
}

static int run_plan(tinsmith_context *context, const void *const *in, void *const *out,
                    double *seconds) {
  if (atomic_exchange(&context->running, 1))
    return fail("this context is already running in another thread",
                "give each thread its own context");
  int status = 0;
  for (int i = 0; i < INPUT_COUNT; i++) context->bases[2 + i] = (char *)in[i];
  for (int i = 0; i < OUTPUT_COUNT; i++) context->bases[2 + INPUT_COUNT + i] = (char *)out[i];
  for (int i = 0; i < STEP_COUNT && status == 0; i++) {
    double begin = seconds ? seconds_now() : 0;
    if (run_step(context, &steps[i])) status = fail("a kernel failed", step_names[i]);
    if (seconds) seconds[i] = seconds_now() - begin;
  }
  for (int i = 0; i < COPY_COUNT && status == 0; i++)
    memcpy(out[copies[i].output],
           context->bases[copies[i].source.base] + copies[i].source.offset, copies[i].nbytes);
  atomic_store(&context->running, 0);
  return status;
}

static int module_run(tinsmith_context *context, const void *const *in, void *const *out) {
  return run_plan(context, in, out, NULL);
}

static int module_profile(tinsmith_context *context, const void *const *in, void *const *out,
                          double *seconds) {
  return run_plan(context, in, out, seconds);
}

static const tinsmith_module description = {
    .abi = TINSMITH_ABI,
    .weights_embedded = WEIGHTS_BYTES == 0 || (EMBEDDED_WEIGHTS) != NULL,
    .name = NAME,
    .target = TARGET,
    .version = VERSION,
    .input_count = INPUT_COUNT,
    .output_count = OUTPUT_COUNT,
    .inputs = inputs,
    .outputs = outputs,
    .step_count = STEP_COUNT,
    .step_names = step_names,
    .weights_bytes = WEIGHTS_BYTES,
    .arena_bytes = (uint64_t)ARENA_BYTES + TASK_SCRATCH_BYTES,
    .open = module_open,
    .close = module_close,
    .create = module_create,
    .destroy = module_destroy,
    .run = module_run,
    .profile = module_profile,
    .set_threads = module_set_threads,
    .threads = module_threads,
    .last_error = module_last_error,
};
