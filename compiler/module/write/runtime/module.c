/* Opening weights, contexts, running the plan. Included by the generated driver, after
 * these have been defined: NAME, TARGET, VERSION, inputs, outputs, INPUT_COUNT,
 * OUTPUT_COUNT, steps, step_names, STEP_COUNT, copies, COPY_COUNT, MAX_PLACES,
 * WEIGHTS_BYTES, ARENA_BYTES, TASK_SCRATCH_BYTES, EMBEDDED_WEIGHTS (pointer or NULL),
 * MAP_WEIGHTS, HAS_MACHINE_CHECK (then machine_refuses has been defined, too: it may fail); of
 * a module with an open batch DIM_COUNT, DIM_NAME, DIM_LOW, DIM_HIGH, ENTRY_COUNT and, if that is
 * not 0, entries.
 */
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>

struct tinsmith_context {
  atomic_int running; /* 1 + the lineage of the process that runs it; a child's fork ends a run */
  atomic_int threads; /* 0: the module's number */
  size_t mapped;
  char *task_scratch;
  char *bases[2 + INPUT_COUNT + OUTPUT_COUNT];
};

static _Thread_local char error_text[256];
static const char *weights = EMBEDDED_WEIGHTS; /* guarded by pool.control, as opening is */
static atomic_int threads_wanted;              /* 0: not chosen yet */

static const char *module_last_error(void) { return error_text; }

static int fail(const char *what, const char *detail) {
  snprintf(error_text, sizeof error_text, "%s%s%s", what, detail[0] ? ": " : "", detail);
  return -1;
}

#if !HAS_MACHINE_CHECK
static int machine_refuses(void) { return 0; }
#endif

/* The weights in memory of our own (whoever rewrites the file changes nothing), or mapped. */
static void *load_weights(int file) {
  if (MAP_WEIGHTS) {
    void *mapped = mmap(NULL, WEIGHTS_BYTES, PROT_READ, MAP_PRIVATE, file, 0);
    if (mapped == MAP_FAILED) return NULL;
    madvise(mapped, WEIGHTS_BYTES, MADV_WILLNEED);
    return mapped;
  }
  char *memory = mmap(NULL, WEIGHTS_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
                      -1, 0);
  if (memory == MAP_FAILED) return NULL;
  size_t filled = 0;
  while (filled < (size_t)WEIGHTS_BYTES) {
    ssize_t got = pread(file, memory + filled, (size_t)WEIGHTS_BYTES - filled, (off_t)filled);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) {
      int reason = got < 0 ? errno : EIO;
      munmap(memory, WEIGHTS_BYTES);
      errno = reason;
      return NULL;
    }
    filled += (size_t)got;
  }
  mprotect(memory, WEIGHTS_BYTES, PROT_READ);
  return memory;
}

static int open_weights(const char *path) {
  if (weights || WEIGHTS_BYTES == 0) return 0;
  if (!path) return fail("this module's weights are in a file of their own", "no path was given");
  int file = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a pipe is refused, not waited for */
  if (file < 0) return fail("cannot open the weights", strerror(errno));
  struct stat status;
  if (fstat(file, &status) || !S_ISREG(status.st_mode)) {
    close(file);
    return fail("the weights are not a file", path);
  }
  if ((uint64_t)status.st_size != (uint64_t)WEIGHTS_BYTES) {
    close(file);
    return fail("the weights file does not have the size that the module expects", path);
  }
  weights = load_weights(file);
  int reason = errno;
  close(file);
  return weights ? 0 : fail("cannot read the weights", strerror(reason));
}

static int module_open(const char *path) {
  pool_enter();
  pthread_mutex_lock(&pool.control);
  int status = open_weights(path);
  pthread_mutex_unlock(&pool.control);
  return status;
}

/* Has `threads` threads run, if fewer do; `wanted` is lowered to what can be had. */
static int have_threads(int threads, atomic_int *wanted) {
  pthread_mutex_lock(&pool.control);
  int running = pool_start(threads, TASK_SCRATCH_BYTES), reason = errno;
  pthread_mutex_unlock(&pool.control);
  if (running >= threads) return 0;
  atomic_store(wanted, running);
  return fail("not all threads could be started", strerror(reason));
}

/* The number to use for what a caller asks for; -1 if it makes no sense. */
static int checked_threads(int threads) {
  if (threads < 0 || threads > MAX_THREADS) return fail("the number of threads is out of range", "");
  if (threads == 0) threads = usable_processors();
  return threads < MAX_THREADS ? threads : MAX_THREADS;
}

static int module_threads(void) {
  pool_enter();
  int threads = atomic_load(&threads_wanted);
  return threads ? threads : checked_threads(0);
}

static int module_set_threads(int threads) {
  pool_enter();
  if ((threads = checked_threads(threads)) < 0) return -1;
  pthread_mutex_lock(&pool.control);
  atomic_store(&threads_wanted, threads);
  pool_stop();
  pthread_mutex_unlock(&pool.control);
  return have_threads(threads, &threads_wanted);
}

static int module_set_context_threads(tinsmith_context *context, int threads) {
  pool_enter();
  if ((threads = checked_threads(threads)) < 0) return -1;
  atomic_store(&context->threads, threads);
  return have_threads(threads, &context->threads);
}

static tinsmith_context *module_create(void) {
  pool_enter();
  if (machine_refuses()) return NULL;
  pthread_mutex_lock(&pool.control);
  const char *opened = weights;
  pthread_mutex_unlock(&pool.control);
  if (!opened && WEIGHTS_BYTES > 0) {
    fail("open() must be called before create()", "");
    return NULL;
  }
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
  context->bases[0] = (char *)opened;
  return context;
}

static void module_destroy(tinsmith_context *context) {
  if (!context) return;
  if (context->mapped) munmap(context->bases[1], context->mapped);
  free(context);
}

static void module_close(void) {
  pool_enter();
  pthread_mutex_lock(&pool.control);
  pool_stop();
  atomic_store(&threads_wanted, 0);
  if (weights && !(EMBEDDED_WEIGHTS)) {
    munmap((void *)weights, WEIGHTS_BYTES);
    weights = NULL;
  }
  pthread_mutex_unlock(&pool.control);
}

#if DIM_COUNT
static const tinsmith_dim dimensions[] = {{DIM_NAME, DIM_LOW, DIM_HIGH, 1}};

/* The size of the batch; 0 if it is out of bounds. */
static int64_t batch_of(const int64_t *dims) {
  int64_t size = dims ? dims[0] : DIM_HIGH;
  if (size >= DIM_LOW && size <= DIM_HIGH) return size;
  char told[128];
  snprintf(told, sizeof told, "%.60s is %lld, the module takes %lld to %lld", DIM_NAME,
           (long long)size, (long long)DIM_LOW, (long long)DIM_HIGH);
  fail(told, "");
  return 0;
}

/* The images of a batch between tensors without gaps and memory of the largest batch. */
static void copy_images(const output_copy *copy, char *packed, char *whole, int into_whole,
                        int64_t batch) {
  uint64_t blocks = copy->blocks ? copy->blocks : 1, stride = copy->nbytes / blocks;
  uint64_t bytes = copy->blocks ? stride / DIM_HIGH * (uint64_t)batch : stride;
  for (uint64_t i = 0; i < blocks; i++)
    if (into_whole) memcpy(whole + i * stride, packed + i * bytes, bytes);
    else memcpy(packed + i * bytes, whole + i * stride, bytes);
}

static int run_stage(const stage *s, int threads, char *const *pointers, char *scratch,
                     int64_t batch) {
  if (!s->ends) return pool_run(s, threads, pointers, scratch);
  stage part = *s;
  part.extent = s->ends[batch - 1];
  return pool_run(&part, s->alone ? 1 : threads, pointers, scratch);
}
#else
#define run_stage(s, threads, pointers, scratch, batch) pool_run(s, threads, pointers, scratch)
#endif

static int run_step(const tinsmith_context *context, int threads, const step *s, int64_t batch) {
  (void)batch;
  char *pointers[MAX_PLACES];
  for (int32_t i = 0; i < s->place_count; i++)
    pointers[i] = context->bases[s->places[i].base] + s->places[i].offset;
  for (const stage *first = s->stages; first < s->stages + s->stage_count; first += first->span)
    for (int32_t round = 0; round < first->rounds; round++)
      for (int32_t i = 0; i < first->span; i++)
        if (run_stage(&first[i], threads, pointers, context->task_scratch, batch)) return -1;
  return 0;
}

static int run_plan(tinsmith_context *context, const int64_t *dims, const void *const *in,
                    void *const *out, double *seconds) {
  pool_enter();
  int64_t batch = 0;
  (void)dims;
#if DIM_COUNT
  if (!(batch = batch_of(dims))) return -1;
#endif
  int self = 1 + pool.lineage;
  if (atomic_exchange(&context->running, self) == self)
    return fail("this context is already running in another thread",
                "give each thread its own context");
  atomic_int *wanted = atomic_load(&context->threads) ? &context->threads : &threads_wanted;
  int threads = atomic_load(wanted), status = 0;
  if (!threads) {
    threads = checked_threads(0);
    atomic_store(wanted, threads);
  }
  /* Those of the parent, if this is a forked child, or nobody has chosen a number yet. */
  if (threads > atomic_load(&pool.threads)) status = have_threads(threads, wanted);
  for (int i = 0; i < INPUT_COUNT; i++) context->bases[2 + i] = (char *)in[i];
  for (int i = 0; i < OUTPUT_COUNT; i++) context->bases[2 + INPUT_COUNT + i] = (char *)out[i];
#if DIM_COUNT && ENTRY_COUNT
  for (int i = 0; i < ENTRY_COUNT; i++)
    copy_images(&entries[i], (char *)in[entries[i].output],
                context->bases[entries[i].source.base] + entries[i].source.offset, 1, batch);
#endif
  for (int i = 0; i < STEP_COUNT && status == 0; i++) {
    double begin = seconds ? seconds_now() : 0;
    if (run_step(context, threads, &steps[i], batch)) status = fail("a kernel failed", step_names[i]);
    if (seconds) seconds[i] = seconds_now() - begin;
  }
  for (int i = 0; i < COPY_COUNT && status == 0; i++)
#if DIM_COUNT
    copy_images(&copies[i], out[copies[i].output],
                context->bases[copies[i].source.base] + copies[i].source.offset, 0, batch);
#else
    memcpy(out[copies[i].output],
           context->bases[copies[i].source.base] + copies[i].source.offset, copies[i].nbytes);
#endif
  atomic_store(&context->running, 0);
  return status;
}

static int module_run(tinsmith_context *context, const int64_t *dims, const void *const *in,
                      void *const *out) {
  return run_plan(context, dims, in, out, NULL);
}

static int module_profile(tinsmith_context *context, const int64_t *dims, const void *const *in,
                          void *const *out, double *seconds) {
  return run_plan(context, dims, in, out, seconds);
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
    .revision = TINSMITH_REVISION,
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
    .set_context_threads = module_set_context_threads,
    .dim_count = DIM_COUNT,
#if DIM_COUNT
    .dims = dimensions,
#endif
};
