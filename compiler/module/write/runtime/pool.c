/* A pool of threads that claim iterations of one parallel loop at a time.
 *
 * Each thread begins with a share of its own, the same part of every loop, so that
 * it finds in its cache what it has computed in the loop before; then it helps with
 * the others' shares. The caller works too and waits only for iterations that others
 * have claimed, so a thread that the system does not schedule delays nobody. Chunks
 * shrink as a share nears its end (guided self-scheduling). When the pool is taken
 * by another context, the loop runs in the calling thread alone.
 *
 * A thread that is woken is kept off the caller's processor: where the others are
 * taken, even if only by threads of another module that wait for work a little longer,
 * the system would put it there, behind the caller, and it would come too late for
 * the whole run. Waiting threads give way for the same reason.
 *
 * Each loop names how many of the threads share it, so that contexts may differ in that.
 *
 * A forked child has none of the threads, and locks and counters as they were at that moment.
 * It notices by a page that the kernel hands it zeroed, and begins anew (`pool_enter`).
 */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#if defined(__x86_64__)
#define PAUSE() __builtin_ia32_pause()
#elif defined(__aarch64__) || defined(__arm__)
#define PAUSE() __asm__ volatile("yield")
#else
#define PAUSE() ((void)0)
#endif

enum { MAX_THREADS = 256, PAUSES_PER_CLOCK = 64, LINE_BYTES = 64, LARGEST_PAGE_BYTES = 65536 };
/* So long a thread waits for the next loop at full speed, and then giving way, before it sleeps. */
enum { SPIN_MICROSECONDS = 20, YIELD_MICROSECONDS = 200 };
#define CLOSED UINT32_MAX

/* The iterations that one thread begins with, in a cache line of their own. */
typedef struct {
  _Alignas(LINE_BYTES) _Atomic uint64_t claim; /* generation << 32 | next iteration */
  atomic_int asleep;                           /* its thread waits for `wake` */
} pool_share;

/* Where the kernel wipes no pages (Linux before 4.14), or before `pool_construct` has run. */
static atomic_int pool_plain_owner;

static struct {
  pool_share shares[MAX_THREADS];
  pthread_mutex_t control; /* guards starting and stopping */
  pthread_mutex_t sleep;
  pthread_cond_t wake;
  atomic_int busy;    /* a loop is being shared out, or the threads are being stopped */
  atomic_int threads; /* that run, a caller included */
  atomic_int sharing; /* those that share the current loop: the first ones */
  atomic_int stop;
  _Atomic uint32_t done;
  _Atomic(stage_function) run;
  _Atomic(char *const *) pointers;
  _Atomic uint32_t extent;
  atomic_int failed;
  atomic_int *owner; /* the process whose threads these are; negative while it begins anew */
  int wiped;         /* `owner` lies on a page that is zero in a forked child */
  int lineage;       /* differs between a process and its forked children */
  cpu_set_t usable;   /* the processors of the process when the first threads were started */
  atomic_int avoided; /* the usable processor that the threads are kept off, or -1 */
  pthread_t handles[MAX_THREADS];
  char *scratch[MAX_THREADS];
} pool = {.control = PTHREAD_MUTEX_INITIALIZER,
          .sleep = PTHREAD_MUTEX_INITIALIZER,
          .wake = PTHREAD_COND_INITIALIZER,
          .threads = 1,
          .owner = &pool_plain_owner};

static double seconds_now(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static uint32_t generation_of(uint64_t claim) { return (uint32_t)(claim >> 32); }

static uint32_t pool_generation(int share) {
  return generation_of(atomic_load_explicit(&pool.shares[share].claim, memory_order_acquire));
}

/* Where a share of a loop begins: the next one's beginning is its end. */
static uint32_t share_begin(int share, int threads, uint32_t extent) {
  return (uint32_t)((uint64_t)extent * (uint64_t)share / (uint64_t)threads);
}

/* Works on a share of the loop of `generation` until nothing is left to claim. */
static void pool_work_on(int share, int threads, uint32_t generation, char *task_scratch) {
  _Atomic uint64_t *word = &pool.shares[share].claim;
  for (;;) {
    uint64_t claim = atomic_load_explicit(word, memory_order_acquire);
    /* Acquire: a value of the next loop implies that this loop's claim word is gone. */
    uint32_t extent = atomic_load_explicit(&pool.extent, memory_order_acquire);
    stage_function run = atomic_load_explicit(&pool.run, memory_order_acquire);
    char *const *pointers = atomic_load_explicit(&pool.pointers, memory_order_acquire);
    uint32_t next = (uint32_t)claim, end = share_begin(share + 1, threads, extent);
    if (generation_of(claim) != generation || next >= end) return;
    uint32_t chunk = (end - next + 1) / 2;
    if (!atomic_compare_exchange_weak(word, &claim, claim + chunk)) continue;
    if (run((int32_t)next, (int32_t)(next + chunk), pointers, task_scratch))
      atomic_store_explicit(&pool.failed, 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&pool.done, chunk, memory_order_release);
  }
}

/* Works on the loop of `generation`: on the share `own`, then on those of the others. */
static void pool_work(int own, uint32_t generation, char *task_scratch) {
  /* Acquire: the number of the next loop implies that this loop's claim words are gone. */
  int threads = atomic_load_explicit(&pool.sharing, memory_order_acquire);
  for (int i = 0; i < threads; i++)
    pool_work_on((own + i) % threads, threads, generation, task_scratch);
}

static void *pool_thread(void *argument) {
  int own = (int)(intptr_t)argument;
  uint32_t seen = pool_generation(own);
  for (;;) {
    double start = 0;
    for (unsigned spins = 1;; spins++) {
      if (atomic_load_explicit(&pool.stop, memory_order_acquire)) return NULL;
      if (pool_generation(own) != seen) break;
      PAUSE();
      if (spins % PAUSES_PER_CLOCK) continue;
      double now = seconds_now();
      if (start == 0) start = now;
      if (now - start > 1e-6 * SPIN_MICROSECONDS) sched_yield();
      if (now - start > 1e-6 * YIELD_MICROSECONDS) {
        pthread_mutex_lock(&pool.sleep);
        atomic_store(&pool.shares[own].asleep, 1);
        while (generation_of(atomic_load(&pool.shares[own].claim)) == seen &&
               !atomic_load(&pool.stop))
          pthread_cond_wait(&pool.wake, &pool.sleep);
        atomic_store(&pool.shares[own].asleep, 0);
        pthread_mutex_unlock(&pool.sleep);
      }
    }
    seen = pool_generation(own);
    pool_work(own, seen, pool.scratch[own]);
  }
}

/* Keeps the threads off the processor of the caller, who is about to work there. */
static void pool_make_room(void) {
  int here = sched_getcpu();
  if (here < 0 || !CPU_ISSET(here, &pool.usable) || CPU_COUNT(&pool.usable) < 2) return;
  if (atomic_exchange(&pool.avoided, here) == here) return;
  cpu_set_t others = pool.usable;
  CPU_CLR(here, &others);
  int threads = atomic_load(&pool.threads);
  for (int i = 1; i < threads; i++) pthread_setaffinity_np(pool.handles[i], sizeof others, &others);
}

static void pool_wake(void) {
  pthread_mutex_lock(&pool.sleep);
  pthread_cond_broadcast(&pool.wake);
  pthread_mutex_unlock(&pool.sleep);
}

/* Runs a stage to its end on up to `threads` threads; `task_scratch` is the calling thread's. */
static int pool_run(const stage *s, int threads, char *const *pointers, char *task_scratch) {
  if (s->extent < 2 || threads < 2 ||
      atomic_load_explicit(&pool.threads, memory_order_relaxed) < 2 ||
      atomic_exchange(&pool.busy, 1))
    return s->run(0, s->extent, pointers, task_scratch);
  int running = atomic_load(&pool.threads);
  if (threads > running) threads = running;
  uint32_t extent = (uint32_t)s->extent, generation = pool_generation(0) + 1;
  atomic_store_explicit(&pool.run, s->run, memory_order_release);
  atomic_store_explicit(&pool.pointers, pointers, memory_order_release);
  atomic_store_explicit(&pool.failed, 0, memory_order_relaxed);
  atomic_store_explicit(&pool.done, 0, memory_order_relaxed);
  atomic_store_explicit(&pool.sharing, threads, memory_order_release);
  atomic_store_explicit(&pool.extent, extent, memory_order_release);
  int asleep = 0;
  for (int i = threads; i--;) {
    atomic_store(&pool.shares[i].claim,
                 (uint64_t)generation << 32 | share_begin(i, threads, extent));
    asleep |= atomic_load(&pool.shares[i].asleep);
  }
  if (asleep) {
    pool_make_room();
    pool_wake();
  }
  pool_work(0, generation, task_scratch);
  for (unsigned spins = 1;
       atomic_load_explicit(&pool.done, memory_order_acquire) < extent; spins++) {
    if (spins % 4096) PAUSE();
    else sched_yield();
  }
  /* Nobody may claim from a word that looks unfinished once the next loop's extent is set. */
  for (int i = 0; i < threads; i++)
    atomic_store(&pool.shares[i].claim, (uint64_t)generation << 32 | CLOSED);
  int failed = atomic_load_explicit(&pool.failed, memory_order_relaxed);
  atomic_store(&pool.busy, 0);
  return failed ? -1 : 0;
}

static int usable_processors(void) {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
  long online = sysconf(_SC_NPROCESSORS_ONLN);
  return online > 0 ? (int)online : 1;
}

/* Starts threads until `threads` run; the caller holds `control`. Returns the number that run. */
static int pool_start(int threads, uint64_t scratch_bytes) {
  int running = atomic_load(&pool.threads);
  if (running >= threads) return running;
  if (running == 1) {
    CPU_ZERO(&pool.usable);
    sched_getaffinity(0, sizeof pool.usable, &pool.usable);
  }
  while (running < threads) {
    void *scratch = NULL;
    if (scratch_bytes && (errno = posix_memalign(&scratch, 64, scratch_bytes))) break;
    pool.scratch[running] = scratch;
    errno = pthread_create(&pool.handles[running], NULL, pool_thread, (void *)(intptr_t)running);
    if (errno) {
      free(scratch);
      break;
    }
    running++;
  }
  atomic_store(&pool.threads, running);
  atomic_store(&pool.avoided, -1); /* the new ones are not kept off it */
  return running;
}

/* Stops all threads; the caller holds `control`. */
static void pool_stop(void) {
  while (atomic_exchange(&pool.busy, 1)) sched_yield();
  int running = atomic_exchange(&pool.threads, 1);
  atomic_store(&pool.stop, 1);
  pool_wake();
  for (int i = 1; i < running; i++) {
    pthread_join(pool.handles[i], NULL);
    free(pool.scratch[i]);
  }
  atomic_store(&pool.stop, 0);
  atomic_store(&pool.busy, 0);
}

/* Makes the pool the calling process's own, once, whichever of its threads comes first. The
 * threads' scratch memory is given up: they may have been about to free it. */
static void pool_adopt(void) {
  int self = (int)getpid(), owner = atomic_load(pool.owner);
  do {
    while (owner == -self) {
      sched_yield();
      owner = atomic_load(pool.owner);
    }
    if (owner == self) return;
  } while (!atomic_compare_exchange_weak(pool.owner, &owner, -self));
  pthread_mutex_init(&pool.control, NULL);
  pthread_mutex_init(&pool.sleep, NULL);
  pthread_cond_init(&pool.wake, NULL);
  for (int i = 0; i < MAX_THREADS; i++) {
    atomic_store(&pool.shares[i].claim, CLOSED);
    atomic_store(&pool.shares[i].asleep, 0);
  }
  atomic_store(&pool.threads, 1);
  atomic_store(&pool.stop, 0);
  atomic_store(&pool.busy, 0);
  pool.lineage++;
  atomic_store(pool.owner, self);
}

/* Comes before anything else in every function that the module offers. */
static inline void pool_enter(void) {
  int owner = atomic_load_explicit(pool.owner, memory_order_acquire);
  if (owner <= 0 || (!pool.wiped && owner != (int)getpid())) pool_adopt();
}

/* The page lies in the library's own memory, so that unloading takes it along. */
__attribute__((constructor)) static void pool_construct(void) {
#ifdef MADV_WIPEONFORK
  static char area[2 * LARGEST_PAGE_BYTES];
  long bytes = sysconf(_SC_PAGESIZE);
  if (bytes > 0 && bytes <= LARGEST_PAGE_BYTES) {
    uintptr_t page = ((uintptr_t)area + (uintptr_t)bytes - 1) / (uintptr_t)bytes * (uintptr_t)bytes;
    if (madvise((void *)page, (size_t)bytes, MADV_WIPEONFORK) == 0) {
      pool.owner = (atomic_int *)page;
      pool.wiped = 1;
    }
  }
#endif
  atomic_store(pool.owner, (int)getpid());
}
